"""The scripts of the student and of what it is compared with, from end to end, on a few pixels."""

import csv
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train_adabins_distillation
import train_baseline
import train_binaural_attention
import train_distill_any_depth
import train_rgb_depth
import verify_feature_compatibility
from dataloaders import audio_channels
from models import create_model
from training import options
from training.checkpoint import load_checkpoint, restore_model
from training.tasks import BaseResidualTask, SupervisedDepthTask

REPOSITORY = Path(__file__).resolve().parent.parent
SMALL = ("--image_size", 32, "--base_channels", 4, "--batch_size", 4, "--num_workers", 0)
RUNS = {
    "binaural_attention": (
        train_binaural_attention.main,
        ("--use_adaptive_loss", "--attention_levels", 3, 5, "--share_ears", "--optimizer", "Muon"),
    ),
    "unet_baseline": (train_baseline.main, ("--model", "unet_baseline")),
    "base_residual": (train_baseline.main, ("--model", "base_residual")),
    "multimodal_fusion": (train_baseline.main, ("--model", "multimodal_fusion")),
}
PARTS = {
    "binaural_attention": {"l1": 1.0, "smooth": 0.1, "edge": 0.2},
    "unet_baseline": {"l1": 1.0, "smooth": 0.0},
    "base_residual": {"l1": 1.0, "smooth": 0.1, "base": 0.5, "sparse": 0.1},
    "multimodal_fusion": {"l1": 1.0, "smooth": 0.1},
}


def arguments(rooms, output, *more):
    given = ("--dataset", "simulated", "--dataset_dir", rooms, "--output_dir", output, *SMALL, *more)
    return [str(x) for x in given]


def rows(folder):
    with (folder / "results/e/metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", sorted(RUNS))
def test_a_stopped_run_ends_as_the_unbroken_one(name, rooms, tmp_path):
    main, flags = RUNS[name]
    ends = []
    for folder, sessions in (("unbroken", [()]), ("stopped", [("--stop_after_epoch", 1), ("--resume",)])):
        for more in sessions:
            begin = ("--experiment_name", "e", "--nb_epochs", 2, "--save_frequency", 2, "--augment", *flags, *more)
            main(arguments(rooms, tmp_path / folder, *begin))
        ends.append(load_checkpoint(tmp_path / folder / "checkpoints/e/last.pth"))
    unbroken, stopped = ends
    assert unbroken["model"]["config"].get("share_ears", False) is ("--share_ears" in flags)
    assert unbroken["model"]["name"] == name
    assert all(torch.equal(stopped["model_state_dict"][k], v) for k, v in unbroken["model_state_dict"].items())
    assert rows(tmp_path / "unbroken") == rows(tmp_path / "stopped")
    assert (tmp_path / "stopped/results/e/epoch_0002.png").stat().st_size > 10_000

    last = rows(tmp_path / "unbroken")[-1]
    assert {key for key in last if key.startswith("train_")} == {"train_loss", *(f"train_{x}" for x in PARTS[name])}
    loss = sum(weight * float(last[f"train_{part}"]) for part, weight in PARTS[name].items())
    assert float(last["train_loss"]) == pytest.approx(loss, rel=1e-4), "the ramp is over after a fifth"
    model = restore_model(unbroken, tmp_path)
    assert model.config["max_depth"] == 12


def test_few_labels_need_not_mean_few_steps(rooms, tmp_path):
    ends = []
    flags = ("--experiment_name", "e", "--nb_epochs", 2, "--label_fraction", 0.25, "--steps_per_epoch", 4, "--augment")
    for folder, sessions in (("unbroken", [()]), ("stopped", [("--stop_after_epoch", 1), ("--resume",)])):
        for more in sessions:
            train_binaural_attention.main(arguments(rooms, tmp_path / folder, *flags, *more))
        ends.append(load_checkpoint(tmp_path / folder / "checkpoints/e/last.pth"))
    unbroken, stopped = ends
    assert unbroken["step"] == 8  # of 3 labelled pairs, which are fewer than one batch
    assert all(torch.equal(stopped["model_state_dict"][k], v) for k, v in unbroken["model_state_dict"].items())


def test_the_student_learns(rooms, tmp_path, run_cli):
    flags = ("--experiment_name", "e", "--nb_epochs", 15, "--save_frequency", 15, "--learning_rate", 0.003)
    code, _, _ = run_cli(train_binaural_attention.main, *arguments(rooms, tmp_path, *flags))
    assert code == 0
    losses = [float(row["train_l1"]) for row in rows(tmp_path)]
    assert losses[-1] < 0.7 * losses[0]


def test_default_names(rooms, tmp_path):
    limits = ("--nb_epochs", 1, "--limit_train_batches", 1, "--limit_val_batches", 1)
    train_binaural_attention.main(arguments(rooms, tmp_path, *limits))
    train_baseline.main(arguments(rooms, tmp_path, *limits, "--model", "base_residual"))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "base_residual_simulated_BS4_Lr0.001",
        "binaural_attn_simulated_BS4_Lr0.001",
    ]


# ---------------------------------------------------------------------------------------------------------------- flags


def test_the_students_defaults():
    args = vars(train_binaural_attention.create_parser().parse_args([]))
    expected = {"learning_rate": 1e-3, "batch_size": 64, "lambda_l1": 1.0, "lambda_edge": 0.2, "base_channels": 64,
                "attention_levels": [2, 3, 4, 5], "wandb_project": "batvision-depth-estimation"}  # fmt: skip
    assert {key: args[key] for key in expected} == expected


def test_lambda_recon_is_another_name_of_lambda_l1():
    assert train_binaural_attention.create_parser().parse_args(["--lambda_recon", "2"]).lambda_l1 == 2


@pytest.mark.parametrize("flags", [("--attention_levels", 6), ("--attention_levels", 0), ("--attention_levels",),
                                   ("--lambda_edge", -1)])  # fmt: skip
def test_flags_that_the_student_refuses(flags, run_cli):
    code, _, errors = run_cli(train_binaural_attention.main, *flags)
    assert code == 2
    assert flags[0] in errors


NOTHING = ("--lambda_l1", 0, "--lambda_smooth", 0)
PLAIN = ("--lambda_smooth", 0, "--lambda_edge", 0)


@pytest.mark.parametrize(
    ("main", "flags", "named"),
    [
        (train_rgb_depth.main, NOTHING, "all weights of the loss are 0"),
        (train_binaural_attention.main, (*PLAIN, "--lambda_recon", 0), "all weights of the loss are 0"),
        (train_baseline.main, ("--model", "unet_baseline", "--lambda_l1", 0), "all weights of the loss are 0"),
        (train_rgb_depth.main, ("--lambda_l1", 0, "--task_loss", "silog"), "--task_loss has no effect"),
        (train_baseline.main, ("--model", "base_residual", "--lambda_l1", 0, "--task_loss", "rmse"), "--task_loss"),
        (train_binaural_attention.main, (*PLAIN, "--use_adaptive_loss"), "--use_adaptive_loss has no effect"),
        (train_rgb_depth.main, ("--label_seed", 3), "--label_seed has no effect with --label_fraction 1"),
        (train_rgb_depth.main, ("--wandb_project", "mine"), "--wandb_project has no effect without --use_wandb"),
        (train_adabins_distillation.main, ("--label_seed", 3), "--label_seed has no effect"),
        (train_distill_any_depth.main, ("--teacher_models", "ground_truth", "--wandb_project", "x"), "--use_wandb"),
    ],
)
def test_what_would_have_no_effect_is_refused(main, flags, named, rooms, tmp_path, run_cli):
    data = ("--dataset", "simulated", "--dataset_dir", rooms, "--output_dir", tmp_path)
    code, _, errors = run_cli(main, *data, *flags)
    assert code == 2 and named in errors and len(errors.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "flags"),
    [
        (None, PLAIN),
        (None, (*PLAIN, "--task_loss", "l1_rmse", "--label_fraction", 0.1, "--label_seed", 3)),
        (None, ("--lambda_l1", 0, "--use_adaptive_loss", "--lambda_edge", 0, "--task_loss", "l1", "--label_seed", 0)),
        ("unet_baseline", ()),
        ("base_residual", NOTHING),
        ("multimodal_fusion", ("--lambda_smooth", 0, "--use_wandb", "--wandb_project", "mine")),
    ],
)
def test_what_has_an_effect_or_its_default_is_taken(model, flags):
    script = train_binaural_attention if model is None else train_baseline
    parser = script.create_parser(*([] if model is None else [model]))
    given = [*([] if model is None else ["--model", model]), *map(str, flags)]
    assert options.parse_training_options(parser, "x", given).stage == "x"


@pytest.mark.parametrize(
    ("flags", "compresses"),
    [((), False), (("--audio_format", "spectrogram"), True),
     (("--audio_format", "log_spectrogram"), False), (("--audio_format", "mel"), False),
     (("--no-compress_input",), False), (("--audio_format", "mel", "--compress_input"), True)],
)  # fmt: skip
def test_the_network_takes_the_logarithm_of_magnitudes_alone(flags, compresses, rooms, tmp_path):
    limits = ("--experiment_name", "e", "--nb_epochs", 1, "--limit_train_batches", 1, "--limit_val_batches", 1)
    train_binaural_attention.main(arguments(rooms, tmp_path, *limits, *flags))
    assert load_checkpoint(tmp_path / "checkpoints/e/last.pth")["model"]["config"]["compress_input"] is compresses


def test_each_baseline_has_its_own_defaults(run_cli):
    unet = vars(train_baseline.create_parser("unet_baseline").parse_args(["--model", "unet_baseline"]))
    authors = {"batch_size": 128, "nb_epochs": 80, "learning_rate": 1e-3, "optimizer": "AdamW", "scheduler": "none",
               "lambda_smooth": 0.0, "audio_format": "spectrogram"}  # fmt: skip
    assert {key: unet[key] for key in authors} == authors
    code, out, _ = run_cli(train_baseline.main, "--model", "unet_baseline", "--help")
    assert code == 0
    assert "(default: 128)" in out
    fusion = train_baseline.create_parser("multimodal_fusion").parse_args(["--model", "multimodal_fusion"])
    assert (fusion.batch_size, fusion.scheduler) == (64, "cosine")


@pytest.mark.parametrize(
    "flags",
    [
        ("--model", "unet_baseline", "--lambda_sparse", 0.1),
        ("--model", "unet_baseline", "--no-bilinear"),
        ("--model", "multimodal_fusion", "--lambda_base", 1),
        ("--model", "vgg"),
        (),
    ],
)
def test_flags_that_a_baseline_has_no_use_for(flags, run_cli):
    code, _, errors = run_cli(train_baseline.main, *flags)
    assert code == 2
    assert errors.startswith("usage: train_baseline.py")


def test_the_unets_size_is_refused_before_anything_is_written(rooms, tmp_path, run_cli):
    flags = (*arguments(rooms, tmp_path, "--model", "unet_baseline"), "--image_size", 48)
    code, _, errors = run_cli(train_baseline.main, *flags)
    assert (code, len(errors.splitlines())) == (2, 1)
    assert "32 or 64" in errors
    assert not (tmp_path / "checkpoints").exists()


# ---------------------------------------------------------------------------------------------------------------- tasks


def test_the_ramp_by_hand():
    task = SupervisedDepthTask(
        create_model("rgb_depth", base_channels=4), {"l1": 1.0, "smooth": 0.1, "edge": 0.2}, ramped=("smooth", "edge")
    )
    assert task.weights_at(0.0) == {"l1": 1.0, "smooth": 0.0, "edge": 0.0}
    assert task.weights_at(0.1) == pytest.approx({"l1": 1.0, "smooth": 0.05, "edge": 0.1})
    for progress in (0.2, 0.5, 1.0):
        assert task.weights_at(progress) == {"l1": 1.0, "smooth": 0.1, "edge": 0.2}


class Fixed(torch.nn.Module):
    """Answers with one map, which is its parameter."""

    inputs = ("audio",)

    def __init__(self, depth, features):
        super().__init__()
        self.depth, self.features = torch.nn.Parameter(depth), features

    def forward(self, audio, return_features=False):
        return (self.depth, self.features) if return_features else self.depth


def test_the_terms_by_hand():
    depth, target = torch.full((2, 1, 4, 4), 3.0), torch.full((2, 1, 4, 4), 2.0)
    target[1] = 0  # without a label
    features = {"base": torch.full((2, 1, 4, 4), 4.0), "residual": torch.full((2, 1, 4, 4), -1.0)}
    batch = {"audio": torch.zeros(2, 2, 4, 4), "depth": target}
    weights = {"l1": 1.0, "smooth": 0.1, "edge": 0.2, "base": 0.5, "sparse": 0.1}
    losses = BaseResidualTask(Fixed(depth, features), weights)(batch, 0.5)
    parts = {key: losses[key].item() for key in weights}
    assert parts == pytest.approx({"l1": 1.0, "smooth": 0.0, "edge": 0.0, "base": 2.0, "sparse": 1.0})
    assert losses["loss"].item() == pytest.approx(1.0 + 0.5 * 2.0 + 0.1 * 1.0)
    losses["loss"].backward()


# ------------------------------------------------------------------------------------------------------------- the menu


def example(number, *more, **environment):
    return subprocess.run(
        ["bash", REPOSITORY / "run_binaural_attention_examples.sh", str(number), *map(str, more)],
        capture_output=True, text=True, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHON": sys.executable, **environment},
    )  # fmt: skip


EXPECTED = {
    1: {"experiment_name": "binaural_attn_basic", "batch_size": 64, "learning_rate": 1e-3},
    2: {"base_channels": 32, "attention_levels": [4, 5]},
    3: {"use_adaptive_loss": True},
    4: {"audio_format": "log_spectrogram"},
    5: {"holdout_location": "Attic"},
    6: {"label_fraction": 0.1},
    7: {"experiment_name": "before", "checkpoints": "7"},
    8: {"dataset": "batvisionv1"},
}


@pytest.mark.parametrize("number", range(1, 9))
def test_every_example_parses(number):
    printed = example(number, *(("before", "7") if number == 7 else ()), "--seed", 3, DRY_RUN="1")
    assert printed.returncode == 0, printed.stderr
    command = shlex.split(printed.stdout)
    assert command[1].endswith("train_binaural_attention.py")
    args = vars(train_binaural_attention.create_parser().parse_args(command[2:]))
    assert args["seed"] == 3
    assert {key: args[key] for key in EXPECTED[number]} == EXPECTED[number]


def test_the_menu_refuses_what_it_has_not():
    done = example(9)
    assert done.returncode == 2
    assert done.stderr == "run_binaural_attention_examples.sh: error: there is no example '9'; choose 1 to 8\n"


# ----------------------------------------------------------------------------------------------------------- the shapes


def test_the_default_teacher_can_teach_the_default_student(run_cli):
    code, out, _ = run_cli(verify_feature_compatibility.main)
    assert code == 0
    assert "distillation can start" in out
    assert "19.59 M" in out and "47.86 M" in out
    assert "[512, 16, 16]" in out


def test_the_student_is_measured_with_what_it_hears(run_cli):
    for audio_format, flags in (("interaural", ()), ("mel", ("--audio_format", "mel"))):
        _, out, _ = run_cli(verify_feature_compatibility.main, "--base_channels", 4, "--image_size", 32, *flags)
        channels = audio_channels(audio_format)
        count = create_model("binaural_attention", base_channels=4, audio_channels=channels).count_parameters()
        assert f"{count / 1e6:.2f} M parameters" in out.splitlines()[-2].split("parameters", 1)[1]
    flags = ("--student", "rgb_depth", "--audio_format", "mel")
    code, _, errors = run_cli(verify_feature_compatibility.main, *flags)
    assert code == 2
    assert "--audio_format has no effect on rgb_depth and rgb_depth" in errors


@pytest.mark.parametrize(
    ("flags", "named"),
    [(("--student_base_channels", 32), "x1, x2, x3, x4, x5, d1, d2, d3, d4"), (("--student", "unet_baseline"), "x1")],
)
def test_levels_that_differ_are_named(flags, named, run_cli):
    code, out, _ = run_cli(verify_feature_compatibility.main, "--image_size", 64, *flags)
    assert code == 1
    assert f"cannot start: the shapes differ at {named}" in out


def test_a_size_that_does_not_fit(run_cli):
    code, _, errors = run_cli(verify_feature_compatibility.main, "--image_size", 100)
    assert code == 2
    assert "96 or 112" in errors


@pytest.mark.parametrize("name", ["rgb_depth", "binaural_attention", "multimodal_fusion", "unet_baseline"])
def test_every_parameter_belongs_to_one_level(name):
    levels = verify_feature_compatibility.measure(name, base_channels=8, image_size=64)
    sized = {"image_size": 64} if name == "unet_baseline" else {}
    model = create_model(name, base_channels=8, **sized)
    assert sum(number for _, number in levels.values()) == model.count_parameters()
