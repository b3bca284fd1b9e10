"""The RGB teacher's script from end to end, on rooms and networks of a few pixels."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from make_data import read_csv, set_cell, write_batvision_v1, write_batvision_v2, write_images, write_nyu_b

import train_rgb_depth
from errors import OptionError
from models import create_model
from training.checkpoint import load_checkpoint, save_checkpoint
from training.experiment import Experiment, Start

REPOSITORY = Path(__file__).resolve().parent.parent
SMALL = ("--image_size", 32, "--base_channels", 4, "--batch_size", 4, "--num_workers", 0, "--learning_rate", 0.003)


def arguments(rooms, output, *more):
    return [
        "--dataset",
        "simulated",
        "--dataset_dir",
        rooms,
        "--output_dir",
        output,
        "--experiment_name",
        "e",
        *SMALL,
        *more,
    ]


def weights(folder, name="last.pth"):
    return load_checkpoint(Path(folder) / "checkpoints" / "e" / name)["model_state_dict"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def unbroken(rooms, tmp_path_factory):
    """Four epochs in one go."""
    folder = tmp_path_factory.mktemp("unbroken")
    train_rgb_depth.main([str(x) for x in arguments(rooms, folder, "--nb_epochs", 4, "--augment")])
    return folder


def test_what_a_run_writes(unbroken):
    written = sorted(str(path.relative_to(unbroken)) for path in unbroken.rglob("*") if path.is_file())
    assert written == [
        "checkpoints/e/.lock",
        "checkpoints/e/args.json",
        "checkpoints/e/best_model.pth",
        "checkpoints/e/checkpoint_0002.pth",
        "checkpoints/e/checkpoint_0004.pth",
        "checkpoints/e/last.pth",
        "logs/e/console.log",
        "logs/e/steps.csv",
        "results/e/curves.png",
        "results/e/epoch_0002.png",
        "results/e/epoch_0004.png",
        "results/e/metrics.csv",
    ]


def test_the_csv_has_a_row_per_epoch_with_every_part_and_both_protocols(unbroken):
    with (unbroken / "results/e/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    parts = {
        "lr",
        "train_loss",
        "train_l1",
        "train_smooth",
        "val_rmse",
        "val_gt_0.5_rmse",
        "val_delta3",
        "val_n_images",
    }
    assert parts <= set(rows[0])
    assert all(cell for row in rows for cell in row.values())
    loss = [float(row["train_l1"]) + 0.1 * float(row["train_smooth"]) for row in rows]
    assert loss == pytest.approx([float(row["train_loss"]) for row in rows], rel=1e-5)


def test_best_model_is_the_epoch_of_the_lowest_rmse(unbroken):
    with (unbroken / "results/e/metrics.csv").open(newline="") as file:
        errors = [float(row["val_rmse"]) for row in csv.DictReader(file)]
    best = load_checkpoint(unbroken / "checkpoints/e/best_model.pth")
    assert best["epoch"] == 1 + errors.index(min(errors))
    assert best["best"] == {"value": min(errors), "epoch": best["epoch"], "criterion": "val_rmse"}
    assert "training" not in best


def test_args_json_holds_every_flag(unbroken):
    saved = json.loads((unbroken / "checkpoints/e/args.json").read_text())
    assert saved["base_channels"] == 4
    assert saved["learning_rate"] == 0.003
    assert saved["bilinear"] is True


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_run_ends_as_the_unbroken_one(rooms, unbroken, tmp_path, workers):
    begin = arguments(rooms, tmp_path, "--nb_epochs", 4, "--augment", "--num_workers", workers)
    train_rgb_depth.main([str(x) for x in [*begin, "--stop_after_epoch", 1]])
    assert not same(weights(tmp_path), weights(unbroken))
    train_rgb_depth.main([str(x) for x in [*begin, "--resume"]])
    assert same(weights(tmp_path), weights(unbroken))
    assert same(weights(tmp_path, "best_model.pth"), weights(unbroken, "best_model.pth"))
    for table in ("results/e/metrics.csv", "logs/e/steps.csv"):
        assert (tmp_path / table).read_bytes() == (unbroken / table).read_bytes()


def test_a_best_model_of_an_epoch_that_was_not_completed_makes_way_for_the_one_before(rooms, tmp_path):
    begin = [str(x) for x in arguments(rooms, tmp_path, "--nb_epochs", 4, "--save_frequency", 4)]
    train_rgb_depth.main([*begin, "--stop_after_epoch", "1"])
    folder = tmp_path / "checkpoints/e"
    last, best = (load_checkpoint(folder / name) for name in ("last.pth", "best_model.pth"))
    save_checkpoint({**best, "epoch": 2}, folder / "best_model.pth")  # killed before last.pth of epoch 2
    Experiment(tmp_path, "e")._rewind(Start(last, folder / "last.pth"))
    assert load_checkpoint(folder / "superseded_1/best_model.pth")["epoch"] == 2
    restored = load_checkpoint(folder / "best_model.pth")
    assert restored["epoch"] == 1 and restored.keys() == best.keys()
    assert same(restored["model_state_dict"], best["model_state_dict"])


def test_a_best_model_is_brought_back_without_its_training_state_and_an_unreadable_one_is_set_aside(rooms, tmp_path):
    begin = [str(x) for x in arguments(rooms, tmp_path, "--nb_epochs", 4)]
    train_rgb_depth.main([*begin, "--stop_after_epoch", "3"])
    folder = tmp_path / "checkpoints/e"
    last, second = (load_checkpoint(folder / name) for name in ("last.pth", "checkpoint_0002.pth"))
    last["best"] = {**last["best"], "epoch": 2}
    (folder / "best_model.pth").write_bytes(b"PK torn")  # by a kill, of a version that copied it in place
    Experiment(tmp_path, "e")._rewind(Start(last, folder / "last.pth"))
    assert (folder / "superseded_1/best_model.pth").read_bytes() == b"PK torn"
    restored = load_checkpoint(folder / "best_model.pth")
    assert "training" not in restored and restored["epoch"] == 2
    assert same(restored["model_state_dict"], second["model_state_dict"])

    for name in ("best_model.pth", "checkpoint_0002.pth"):
        (folder / name).write_bytes(b"PK torn")
    train_rgb_depth.main([*begin, "--resume"])
    assert load_checkpoint(folder / "last.pth")["epoch"] == 4


def test_the_flags_are_written_whole_or_not_at_all(rooms, tmp_path, monkeypatch):
    args = train_rgb_depth.create_parser().parse_args([str(x) for x in arguments(rooms, tmp_path)])
    experiment = Experiment(tmp_path, "e")
    experiment.begin(args, Start())
    experiment.end()
    before = (tmp_path / "checkpoints/e/args.json").read_bytes()
    start = Start({"epoch": 1, "best": {"epoch": 0}}, tmp_path / "last.pth")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OptionError, match="No space left"):
        experiment.begin(args, start)
    assert (tmp_path / "checkpoints/e/args.json").read_bytes() == before


def test_going_back_to_an_epoch_sets_the_later_ones_aside(rooms, unbroken, tmp_path):
    begin = [str(x) for x in arguments(rooms, tmp_path, "--nb_epochs", 4, "--augment")]
    train_rgb_depth.main(begin)
    train_rgb_depth.main([*begin, "--checkpoints", "2"])
    aside = tmp_path / "checkpoints/e/superseded_1"
    assert (aside / "checkpoint_0004.pth").is_file() and load_checkpoint(aside / "last.pth")["epoch"] == 4
    assert same(weights(tmp_path), weights(unbroken))
    for folder, table in (("results/e", "metrics.csv"), ("logs/e", "steps.csv")):
        for path in (tmp_path / folder / table, tmp_path / folder / "superseded_1" / table):
            assert path.read_bytes() == (unbroken / folder / table).read_bytes()


def test_a_best_epoch_that_was_not_kept_is_missed_aloud(rooms, tmp_path, run_cli):
    begin = arguments(rooms, tmp_path, "--nb_epochs", 4, "--save_frequency", 1)
    run_cli(train_rgb_depth.main, *begin, "--stop_after_epoch", 3)
    second = tmp_path / "checkpoints/e/checkpoint_0002.pth"
    state = load_checkpoint(second)
    save_checkpoint({**state, "best": {**state["best"], "epoch": 1}}, second)
    for lost in ("checkpoint_0001.pth", "best_model.pth"):
        (tmp_path / "checkpoints/e" / lost).unlink()
    code, out, _ = run_cli(train_rgb_depth.main, *begin, "--checkpoints", 2)
    assert code == 0 and "warning: of epoch 1, the best until epoch 2, there is no checkpoint" in out
    assert load_checkpoint(tmp_path / "checkpoints/e/best_model.pth")["epoch"] > 2


@pytest.mark.parametrize("begun", ["--overwrite", "--init_from"])
def test_a_run_that_stops_says_which_command_goes_on(begun, rooms, unbroken, tmp_path, run_cli):
    source = (unbroken / "checkpoints/e/last.pth",) if begun == "--init_from" else ()
    begin = arguments(rooms, tmp_path, "--nb_epochs", 4)
    code, out, _ = run_cli(train_rgb_depth.main, *begin, begun, *source, "--stop_after_epoch", 1)
    assert code == 0
    assert f"the same command with --resume in the place of {begun} goes on, without --stop_after_epoch or" in out


def test_another_optimiser_does_not_go_on_with_the_state_of_the_first(rooms, tmp_path, run_cli):
    begin = arguments(rooms, tmp_path, "--nb_epochs", 4)
    run_cli(train_rgb_depth.main, *begin, "--stop_after_epoch", 1)
    before = (tmp_path / "checkpoints/e/args.json").read_bytes()
    for optimizer in ("Adam", "SGD", "Muon"):  # PyTorch would take each
        code, _, errors = run_cli(train_rgb_depth.main, *begin, "--resume", "--optimizer", optimizer)
        assert code == 2 and f"its --optimizer was AdamW and is {optimizer} now" in errors
    assert (tmp_path / "checkpoints/e/args.json").read_bytes() == before


def test_a_location_that_was_held_out_stays_so(rooms, tmp_path, run_cli):
    begin = arguments(rooms, tmp_path, "--nb_epochs", 4)
    assert run_cli(train_rgb_depth.main, *begin, "--holdout_location", "Hall", "--stop_after_epoch", 1)[0] == 0
    code, _, errors = run_cli(train_rgb_depth.main, *begin, "--resume")
    assert code == 2 and "its --holdout_location was Hall and is none now: a location would be learnt" in errors


def test_a_flag_that_an_earlier_version_did_not_have_is_no_other_setting(rooms, tmp_path, run_cli):
    begin = arguments(rooms, tmp_path, "--nb_epochs", 4)
    run_cli(train_rgb_depth.main, *begin, "--stop_after_epoch", 1)
    last = tmp_path / "checkpoints/e/last.pth"
    state = load_checkpoint(last)
    del state["args"]["warmup_epochs"]
    save_checkpoint(state, last)
    code, out, _ = run_cli(train_rgb_depth.main, *begin, "--resume")
    assert code == 0 and "resumed with other settings" not in out


def test_another_learning_rate_is_taken_on_resuming(rooms, tmp_path, run_cli):
    begin = arguments(rooms, tmp_path, "--nb_epochs", 4, "--scheduler", "none")
    run_cli(train_rgb_depth.main, *begin, "--stop_after_epoch", 1)
    code, out, _ = run_cli(train_rgb_depth.main, *begin, "--resume", "--learning_rate", 0.0005)
    assert code == 0
    assert "learning_rate 0.003 -> 0.0005" in out
    with (tmp_path / "results/e/metrics.csv").open(newline="") as file:
        assert [float(row["lr"]) for row in csv.DictReader(file)] == [0.003, 0.0005, 0.0005, 0.0005]


def test_the_rate_grows_in_the_first_part_of_a_run(rooms, tmp_path, run_cli):
    begin = arguments(rooms, tmp_path, "--nb_epochs", 2, "--scheduler", "none")
    assert run_cli(train_rgb_depth.main, *begin, "--warmup_epochs", 1.5)[0] == 0
    with (tmp_path / "logs/e/steps.csv").open(newline="") as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    growing = 3 * len(rates) // 4
    assert rates[:growing] == pytest.approx([0.003 * (step + 1) / growing for step in range(growing)])
    assert rates[growing:] == [0.003] * (len(rates) - growing)
    code, _, errors = run_cli(train_rgb_depth.main, *begin, "--overwrite", "--warmup_epochs", 0.3)
    assert code == 2 and "has no effect: of 3 steps an epoch it is 1; give 0.67 at least" in errors
    code, _, errors = run_cli(train_rgb_depth.main, *begin, "--warmup_epochs", 2)
    assert code == 2 and "--warmup_epochs 2 must be below --nb_epochs 2" in errors


def test_a_killed_run_ends_as_the_unbroken_one(rooms, unbroken, tmp_path):
    begin = [str(x) for x in arguments(rooms, tmp_path, "--nb_epochs", 4, "--augment")]
    process = subprocess.Popen([sys.executable, REPOSITORY / "train_rgb_depth.py", *begin], stdout=subprocess.DEVNULL)
    metrics = tmp_path / "results/e/metrics.csv"
    deadline = time.time() + 120
    while time.time() < deadline and not (metrics.is_file() and len(metrics.read_text().splitlines()) >= 3):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    load_checkpoint(tmp_path / "checkpoints/e/last.pth")
    try:
        train_rgb_depth.main([*begin, "--resume"])
    except Exception as error:  # the kill came after the last epoch
        assert "is done already" in str(error)
    assert same(weights(tmp_path), weights(unbroken))
    assert metrics.read_bytes() == (unbroken / "results/e/metrics.csv").read_bytes()


def test_a_schedulers_notice_ends_a_run_as_ctrl_c_does(rooms, tmp_path):
    flags = [str(x) for x in arguments(rooms, tmp_path, "--nb_epochs", 500)]
    process = subprocess.Popen(
        [sys.executable, REPOSITORY / "train_rgb_depth.py", *flags],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as a shell starts a job in the background
    )  # fmt: skip
    deadline = time.time() + 120
    while time.time() < deadline and not (tmp_path / "checkpoints/e/last.pth").is_file():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "--resume goes on" in out
    assert "Traceback" not in errors
    load_checkpoint(tmp_path / "checkpoints/e/last.pth")


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_what_is_sent_to_the_workers_too_ends_a_run_in_one_line(rooms, tmp_path, stop):
    flags = [str(x) for x in arguments(rooms, tmp_path, "--nb_epochs", 500, "--num_workers", 2)]
    process = subprocess.Popen(
        [sys.executable, REPOSITORY / "train_rgb_depth.py", *flags],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    deadline = time.time() + 300
    while time.time() < deadline and not (tmp_path / "checkpoints/e/last.pth").is_file():
        time.sleep(0.05)
    os.killpg(process.pid, stop)  # as a terminal, timeout(1) or a scheduler does
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "train_rgb_depth.py: interrupted\n")
    assert "--resume goes on" in out.splitlines()[-1]


def test_it_learns(rooms, tmp_path, run_cli):
    more = ("--nb_epochs", 15, "--lambda_smooth", 0, "--save_frequency", 15)
    code, _, _ = run_cli(train_rgb_depth.main, *arguments(rooms, tmp_path, *more))
    assert code == 0
    with (tmp_path / "results/e/metrics.csv").open(newline="") as file:
        losses = [float(row["train_l1"]) for row in csv.DictReader(file)]
    assert losses[-1] < 0.7 * losses[0]


def test_weights_that_overflow_reach_no_checkpoint(rooms, tmp_path, run_cli):
    begin = arguments(rooms, tmp_path, "--nb_epochs", 3, "--precision", "32", "--limit_train_batches", 1)
    code, _, errors = run_cli(train_rgb_depth.main, *begin, "--learning_rate", 1e38)
    assert code == 2
    assert "not a number" in errors
    assert not list(tmp_path.rglob("*.pth"))
    assert run_cli(train_rgb_depth.main, *begin)[0] == 0, "a run that failed at once left nothing to protect"


def test_init_from_takes_the_weights_and_starts_at_epoch_0(rooms, unbroken, tmp_path):
    best = unbroken / "checkpoints/e/best_model.pth"
    frozen = ("--nb_epochs", 1, "--learning_rate", 1e-12, "--weight_decay", 0, "--init_from", best)
    train_rgb_depth.main([str(x) for x in arguments(rooms, tmp_path, *frozen)])
    start, end = weights(unbroken, "best_model.pth"), weights(tmp_path)
    assert all(torch.allclose(start[key], end[key]) for key in start if key.endswith("weight"))
    assert load_checkpoint(tmp_path / "checkpoints/e/last.pth")["epoch"] == 1


def test_an_experiment_has_one_process_at_a_time(rooms, tmp_path, run_cli):
    """Two would write their epochs over each other's."""
    code = "import sys, time; from pathlib import Path; from training.files import claim\n"
    code += "file = claim(Path(sys.argv[1])); print('claimed', flush=True); time.sleep(60)"
    folder = tmp_path / "checkpoints/e"
    folder.mkdir(parents=True)
    other = subprocess.Popen([sys.executable, "-c", code, folder / ".lock"], stdout=subprocess.PIPE, cwd=REPOSITORY)
    assert other.stdout.readline() == b"claimed\n"
    begin = arguments(rooms, tmp_path, "--nb_epochs", 1)
    try:
        code, _, errors = run_cli(train_rgb_depth.main, *begin)
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    assert code == 2 and errors.count("\n") == 1
    assert f"{folder}: another process trains this experiment" in errors and "--experiment_name" in errors
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [".lock"]
    assert run_cli(train_rgb_depth.main, *begin)[0] == 0


def test_an_experiment_is_never_overwritten_silently(rooms, tmp_path, run_cli):
    begin = arguments(rooms, tmp_path, "--nb_epochs", 1)
    assert run_cli(train_rgb_depth.main, *begin)[0] == 0
    before = (tmp_path / "checkpoints/e/last.pth").read_bytes()
    code, _, errors = run_cli(train_rgb_depth.main, *begin)
    assert code == 2
    assert all(flag in errors for flag in ("--resume", "--checkpoints", "--init_from", "--overwrite"))
    assert (tmp_path / "checkpoints/e/last.pth").read_bytes() == before
    code, out, _ = run_cli(train_rgb_depth.main, *begin, "--init_from", "e")
    assert code == 0
    assert "set aside" in out
    assert (tmp_path / "checkpoints/e/superseded_1/last.pth").read_bytes() == before
    failed = tmp_path / "checkpoints/e/replaced_1"  # of a run that failed before its first epoch
    failed.mkdir()
    (failed / "last.pth").write_bytes(before)
    code, out, _ = run_cli(train_rgb_depth.main, *begin, "--overwrite")
    assert code == 0
    assert "set aside in replaced_2/ folders until an epoch is saved" in out
    assert not list(tmp_path.rglob("replaced_*")), "an epoch of the new run is saved"
    assert (tmp_path / "checkpoints/e/superseded_1/last.pth").read_bytes() == before
    assert (tmp_path / "checkpoints/e/last.pth").is_file()


def test_an_output_folder_that_cannot_be_written_to(rooms, tmp_path, run_cli):
    (tmp_path / "file").write_text("")
    code, _, errors = run_cli(train_rgb_depth.main, *arguments(rooms, tmp_path / "file", "--nb_epochs", 1))
    assert code == 2
    assert f"--output_dir {tmp_path / 'file'} cannot be written to" in errors


def test_an_experiments_default_name(rooms, tmp_path, run_cli):
    flags = [x for x in arguments(rooms, tmp_path, "--nb_epochs", 1) if x not in ("--experiment_name", "e")]
    assert run_cli(train_rgb_depth.main, *flags)[0] == 0
    assert (tmp_path / "checkpoints/rgb_depth_simulated_BS4_Lr0.003/last.pth").is_file()


def test_weights_and_biases_offline(rooms, tmp_path, run_cli, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    code, _, _ = run_cli(train_rgb_depth.main, *arguments(rooms, tmp_path, "--nb_epochs", 1, "--use_wandb"))
    assert code == 0
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_a_project_that_weights_and_biases_does_not_take(rooms, unbroken, run_cli, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    flags = ("--overwrite", "--use_wandb", "--wandb_project", "a/b")
    code, _, errors = run_cli(train_rgb_depth.main, *arguments(rooms, unbroken, "--nb_epochs", 4, *flags))
    assert code == 2 and "--wandb_project a/b: " in errors and len(errors.splitlines()) == 1
    assert not list(unbroken.rglob("superseded_*")), "nothing was set aside"


@pytest.mark.parametrize("flags", [("--precision", "32", "--deterministic"), ("--optimizer", "SGD"),
                                   ("--scheduler", "step", "--optimizer", "Adam"), ("--no-bilinear",)])  # fmt: skip
def test_flags_that_change_how_it_runs(rooms, tmp_path, run_cli, flags):
    deterministic = torch.are_deterministic_algorithms_enabled()
    limits = ("--limit_train_batches", 2, "--limit_val_batches", 1, "--nb_epochs", 1)
    code, _, errors = run_cli(train_rgb_depth.main, *arguments(rooms, tmp_path, *limits, *flags))
    torch.use_deterministic_algorithms(deterministic)
    assert (code, errors) == (0, "")
    assert not [key for key in weights(tmp_path) if "_orig_mod" in key or "module." in key]


@pytest.mark.slow
def test_a_compiled_step_leaves_no_trace_in_the_keys(rooms, tmp_path, run_cli):
    limits = ("--limit_train_batches", 2, "--limit_val_batches", 1, "--nb_epochs", 1, "--compile")
    assert run_cli(train_rgb_depth.main, *arguments(rooms, tmp_path, *limits))[0] == 0
    assert weights(tmp_path).keys() == create_model("rgb_depth", base_channels=4).state_dict().keys()


def test_few_labels_make_a_short_epoch(rooms, tmp_path, run_cli):
    code, out, _ = run_cli(
        train_rgb_depth.main, *arguments(rooms, tmp_path, "--nb_epochs", 1, "--label_fraction", 0.5, "--batch_size", 2)
    )
    assert code == 0
    assert "6 of 12 training pairs have depth" in out
    assert len((tmp_path / "logs/e/steps.csv").read_text().splitlines()) == 1 + 3


@pytest.mark.parametrize("write", [write_batvision_v1, write_batvision_v2, write_nyu_b])
def test_every_data_set_trains(write, tmp_path, run_cli):
    name = {"write_batvision_v1": "batvisionv1", "write_batvision_v2": "batvisionv2", "write_nyu_b": "nyu"}[
        write.__name__
    ]
    write(tmp_path / "data")
    code, out, errors = run_cli(
        train_rgb_depth.main, "--dataset", name, "--dataset_dir", tmp_path / "data", "--output_dir", tmp_path, *SMALL,
        "--nb_epochs", 1, "--experiment_name", "e",
    )  # fmt: skip
    assert (code, errors) == (0, "")
    assert "epoch 1" in out


def test_real_frames_in_nyu_folders_train(samples_dir, tmp_path, run_cli):
    import shutil

    frames = sorted((samples_dir / "livingroom" / "image").glob("*.jpg"))
    for split, part in (("train", frames[:36]), ("test", frames[36:])):
        for kind in ("rgb", "depth"):
            (tmp_path / "nyu" / split / kind).mkdir(parents=True)
        for frame in part:
            shutil.copy(frame, tmp_path / "nyu" / split / "rgb")
            shutil.copy(samples_dir / "livingroom" / "depth" / f"{frame.stem}.png", tmp_path / "nyu" / split / "depth")
    code, _, errors = run_cli(
        train_rgb_depth.main, "--dataset", "nyu", "--dataset_dir", tmp_path / "nyu", "--output_dir", tmp_path, *SMALL,
        "--nb_epochs", 2, "--experiment_name", "e",
    )  # fmt: skip
    assert (code, errors) == (0, "")
    with (tmp_path / "results/e/metrics.csv").open(newline="") as file:
        errors = [float(row["val_rmse"]) for row in csv.DictReader(file)]
    assert all(0.05 < error < 6 for error in errors), "metres of a living room"


# ------------------------------------------------------------------------------------------------------------ bad input


def refused(run_cli, folder, *flags):
    code, _, errors = run_cli(train_rgb_depth.main, *flags)
    assert code == 2
    assert len(errors.strip().splitlines()) == 1, errors
    assert "Traceback" not in errors
    assert not (Path(folder) / "checkpoints").exists(), "nothing is written before all is in order"
    return errors


def test_a_missing_folder_says_where_the_data_is(tmp_path, run_cli):
    errors = refused(run_cli, tmp_path, "--dataset_dir", tmp_path / "nowhere", "--output_dir", tmp_path)
    assert str(tmp_path / "nowhere") in errors
    assert "--dataset simulated" in errors
    assert "HYLZNL" in errors


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_is_named_with_its_row(tmp_path, run_cli, workers):
    write_batvision_v2(tmp_path / "data", locations=["Hall"])
    row = read_csv(tmp_path / "data/Hall/train.csv")[3]
    picture = tmp_path / "data/Hall/camera" / row[8]
    picture.write_bytes(picture.read_bytes()[:100])
    flags = (
        "--dataset_dir",
        tmp_path / "data",
        "--output_dir",
        tmp_path,
        *SMALL,
        "--batch_size",
        2,
        "--num_workers",
        workers,
    )
    code, _, errors = run_cli(train_rgb_depth.main, *flags, "--nb_epochs", 1)
    assert code == 2
    assert len(errors.strip().splitlines()) == 1, errors
    assert picture.name in errors
    assert "row 4" in errors


def test_a_row_whose_file_is_absent(tmp_path, run_cli):
    write_batvision_v2(tmp_path / "data", locations=["Hall"])
    set_cell(tmp_path / "data/Hall/train.csv", 3, "depth file name", "gone.npy")
    errors = refused(run_cli, tmp_path, "--dataset_dir", tmp_path / "data", "--output_dir", tmp_path, *SMALL)
    assert "gone.npy" in errors
    assert "row 3" in errors


def test_a_split_without_one_valid_pixel(tmp_path, run_cli):
    write_batvision_v2(tmp_path / "data", locations=["Hall"])
    for row in read_csv(tmp_path / "data/Hall/val.csv")[1:]:
        np.save(tmp_path / "data/Hall/depth" / row[11], np.zeros((24, 40), np.uint16))
    errors = refused(run_cli, tmp_path, "--dataset_dir", tmp_path / "data", "--output_dir", tmp_path, *SMALL)
    assert "val" in errors
    assert "valid depth" in errors


def test_pictures_without_depth(tmp_path, run_cli):
    write_images(tmp_path / "data")
    flags = ("--dataset", "images", "--dataset_dir", tmp_path / "data", "--output_dir", tmp_path)
    assert "depth" in refused(run_cli, tmp_path, *flags)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--image_size", 100), "96 or 112"),
        (("--max_depth", 1, "--min_depth", 2), "--min_depth"),
        (("--experiment_name", "a/b"), "a/b"),
        (("--precision", "16"), "--precision 16"),
        (("--gpu_ids", "0,97"), "--gpu_ids"),
        (("--stop_after_epoch", 300), "--stop_after_epoch"),
        (("--holdout_location", "Cellar"), "Cellar"),
        (("--checkpoints", 3), "checkpoint_0003.pth"),
        (("--resume",), "last.pth"),
        (("--init_from", "nobody"), "nobody"),
        (("--checkpoints", "."), "--checkpoints . is a folder"),
        (("--num_nodes", 2), "--num_nodes 2: nobody has told this process of the other machines"),
        (("--label_fraction", 0), "label"),
    ],
)
def test_flags_that_cannot_be_honoured(rooms, tmp_path, run_cli, flags, named):
    base = ["--dataset", "simulated", "--dataset_dir", rooms, "--output_dir", tmp_path, *SMALL]
    assert named in refused(run_cli, tmp_path, *base, *flags)


@pytest.mark.parametrize("flags", [("--nb_epochs", "0"), ("--learning_rate", "nan"), ("--label_fraction", "1.5"),
                                   ("--batch", "4"), ("--gpu_ids", "0,0"), ("--resume", "--overwrite"),
                                   ("--image_size", "64.5"), ("--learning_rate", "fast"), ("--init_from", ""),
                                   ("--checkpoints", "")])  # fmt: skip
def test_argument_errors_keep_argparses_form(run_cli, flags):
    code, _, errors = run_cli(train_rgb_depth.main, *flags)
    assert code == 2
    assert errors.startswith("usage: train_rgb_depth.py")
    assert "invalid" not in errors, "which names a function"


@pytest.mark.parametrize("flag", ["--init_from", "--experiment_name", "--output_dir"])
def test_a_name_that_is_too_long_is_one_line(rooms, tmp_path, flag):
    command = [sys.executable, REPOSITORY / "train_rgb_depth.py", *arguments(rooms, tmp_path), flag, "a" * 300]
    ended = subprocess.run([f"{word}" for word in command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr and ended.stderr.count("\n") == 1
    assert "takes no name as long as that" in ended.stderr or "File name too long" in ended.stderr


@pytest.mark.parametrize(("content", "named"), [(b"garbage,\xff\n1,2\n", "no text"), (b"a,b\n1,2\n", "without epoch")])
@pytest.mark.parametrize("name", ["results/e/metrics.csv", "logs/e/steps.csv"])
def test_a_table_that_was_spoilt_is_named_on_resuming(rooms, unbroken, tmp_path, run_cli, name, content, named):
    shutil.copytree(unbroken, tmp_path / "copy")
    (tmp_path / "copy" / name).write_bytes(content)
    code, _, errors = run_cli(
        train_rgb_depth.main, *arguments(rooms, tmp_path / "copy", "--resume", "--nb_epochs", 5, "--augment")
    )
    assert code == 2 and named in errors and name in errors


def test_steps_of_an_epoch_that_is_done_stay_whatever_the_batch_was(rooms, tmp_path, run_cli):
    for batch, last in ((2, 1), (7, 2), (7, 3)):
        start = ("--resume",) if last > 1 else ()
        flags = ("--nb_epochs", 3, "--batch_size", batch, "--stop_after_epoch", last, *start)
        assert run_cli(train_rgb_depth.main, *arguments(rooms, tmp_path, *flags))[0] == 0
    with (tmp_path / "logs/e/steps.csv").open(newline="") as file:
        epochs = [int(row["epoch"]) for row in csv.DictReader(file)]
    assert epochs == [1] * 6 + [2] + [3]


def test_a_checkpoint_of_another_shape(rooms, unbroken, run_cli):
    flags = arguments(rooms, unbroken, "--resume", "--base_channels", 8, "--nb_epochs", 9)
    code, _, errors = run_cli(train_rgb_depth.main, *flags)
    assert code == 2
    assert "base_channels=4" in errors


def test_weights_without_training_state_do_not_resume(rooms, unbroken, run_cli):
    best = unbroken / "checkpoints/e/best_model.pth"
    code, _, errors = run_cli(train_rgb_depth.main, *arguments(rooms, unbroken, "--checkpoints", best))
    assert code == 2
    assert "--init_from" in errors


def test_a_finished_run_says_so(rooms, unbroken, run_cli):
    code, _, errors = run_cli(train_rgb_depth.main, *arguments(rooms, unbroken, "--resume", "--nb_epochs", 4))
    assert code == 2
    assert "done already" in errors


# ------------------------------------------------------------------------------------------------------------ the menu


def example(number, *more, **environment):
    return subprocess.run(
        ["bash", REPOSITORY / "run_rgb_depth_examples.sh", str(number), *map(str, more)],
        capture_output=True, text=True, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHON": sys.executable, **environment},
    )  # fmt: skip


EXPECTED = {
    1: {"experiment_name": "rgb_depth_basic", "batch_size": 64, "learning_rate": 1e-4},
    2: {"use_wandb": True},
    3: {"base_channels": 32, "batch_size": 128, "learning_rate": 2e-4},
    4: {"base_channels": 96, "batch_size": 32, "learning_rate": 5e-5},
    5: {"experiment_name": "before", "checkpoints": "7"},
    6: {"base_channels": 64, "batch_size": 64, "learning_rate": 1e-4, "nb_epochs": 200, "use_wandb": True,
        "experiment_name": "rgb_teacher_for_kd"},
    7: {"lambda_smooth": 0.2},
    8: {"dataset": "batvisionv1"},
}  # fmt: skip


@pytest.mark.parametrize("number", range(1, 9))
def test_every_example_parses(number):
    import shlex

    given = ("before", "7") if number == 5 else ()
    printed = example(number, *given, "--seed", 3, DRY_RUN="1")
    assert printed.returncode == 0
    command = shlex.split(printed.stdout)
    assert command[1].endswith("train_rgb_depth.py")
    args = vars(train_rgb_depth.create_parser().parse_args(command[2:]))
    assert args["seed"] == 3
    assert {key: args[key] for key in EXPECTED[number]} == EXPECTED[number]


@pytest.mark.parametrize("number", range(1, 9))
def test_every_example_starts(number, rooms, unbroken, tmp_path):
    given = ()
    if number == 5:
        import shutil

        shutil.copytree(unbroken / "checkpoints", tmp_path / "checkpoints")
        given = ("e", "2")
    done = example(
        number, *given, "--dataset", "simulated", "--dataset_dir", rooms, "--output_dir", tmp_path, *SMALL,
        "--nb_epochs", 3, "--stop_after_epoch", 3 if number == 5 else 1, "--limit_train_batches", 2,
        "--limit_val_batches", 1, WANDB_MODE="offline",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "done:" in done.stdout


def test_the_menu_refuses_what_it_has_not():
    done = example(9)
    assert done.returncode == 2
    assert "1 to 8" in done.stderr


def test_the_menu_asks_where_nothing_is_chosen():
    done = subprocess.run(
        ["bash", REPOSITORY / "run_rgb_depth_examples.sh"], capture_output=True, text=True, input="3\n",
        env={**os.environ, "PYTHON": sys.executable, "DRY_RUN": "1"},
    )  # fmt: skip
    *menu, command = done.stdout.splitlines()
    assert (done.returncode, menu[0]) == (0, "Training the RGB teacher")
    assert "rgb_depth_lightweight" in command


def test_two_processes_under_torchrun(rooms, tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = [str(x) for x in arguments(rooms, tmp_path, "--nb_epochs", 2)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    done = subprocess.run([*torchrun, REPOSITORY / "train_rgb_depth.py", *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 x cpu" in done.stdout
    assert done.stdout.count("epoch 2:") == 1, "one process speaks"
    with (tmp_path / "results/e/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["val_n_images"] for row in rows] == ["4", "4"], "every validation sample once"
    assert load_checkpoint(tmp_path / "checkpoints/e/last.pth")["processes"] == 2
