"""The scripts behind the documents' numbers: their arithmetic, and that the commands they run are commands."""

import argparse
import importlib
import json
import logging
import pickle
import re
import shlex
from pathlib import Path

import pytest
import torch
from make_networks import write_network

import train_distill_any_depth
from benchmarks import (
    activation_memory,
    audio_student,
    bench_data,
    bench_distill_any_depth,
    bench_front_end,
    bench_inference,
    bench_scaling,
    bench_simulation,
    bench_training,
    distill_any_depth,
    left_and_right,
    measure,
    on_rooms,
    room_difficulty,
    snippet_faults,
)
from dataloaders import AUDIO_FORMATS, create_dataset
from errors import TrainingError
from experiments.settings import parse
from models import create_model
from training.checkpoint import FORMAT, save_checkpoint

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def truth():
    torch.manual_seed(0)
    return 1 + torch.rand(3, 1, 8, 8)


def test_a_perfect_network_hears_the_sides(truth):
    assert left_and_right.sides_correlation(truth, truth) == pytest.approx(1)
    assert left_and_right.sides_correlation(truth, truth.flip(-1)) == pytest.approx(-1)
    assert left_and_right.ears_correlation(truth, truth.flip(-1)) == pytest.approx(-1)


def test_what_is_alike_on_both_sides_says_nothing(truth):
    noise, even = torch.randn(3, 1, 8, 8), truth + truth.flip(-1)
    alone = left_and_right.sides_correlation(truth, noise)
    assert left_and_right.sides_correlation(truth, noise + even) == pytest.approx(alone, abs=1e-6)


def test_pixels_measured_on_one_side_only_do_not_count(truth):
    holed = truth.clone()
    holed[..., 1] = 0
    wrong = truth.clone()
    wrong[..., 1] = 100
    assert left_and_right.sides_correlation(holed, wrong) == pytest.approx(1)


def test_left_and_right_of_a_checkpoint(tmp_path, rooms, run_cli):
    model = create_model("binaural_attention", base_channels=4, attention_levels=[5])
    dataset = {"image_size": 32, "max_depth": 12.0, "min_depth": 1e-3, "resample": False, "audio_format": "spectrogram"}
    state = {
        "format": FORMAT, "model": {"name": model.name, "config": model.config}, "epoch": 1,
        "model_state_dict": model.state_dict(), "preprocessing": dataset,
        "args": {"dataset": "simulated", "dataset_dir": str(rooms)},
    }  # fmt: skip
    save_checkpoint(state, tmp_path / "best_model.pth")
    code, out, _ = run_cli(left_and_right.main, "--checkpoint", tmp_path / "best_model.pth", "--num_workers", 0)
    assert code == 0
    truth, ears = (float(cell) for cell in out.splitlines()[-1].split("|")[2:4])
    assert -1 <= truth <= 1
    assert -1 <= ears <= 1

    seeing = create_model("rgb_depth", base_channels=4)
    state |= {"model": {"name": seeing.name, "config": seeing.config}, "model_state_dict": seeing.state_dict()}
    save_checkpoint(state, tmp_path / "best_model.pth")
    code, _, err = run_cli(left_and_right.main, "--checkpoint", tmp_path / "best_model.pth")
    assert code == 2
    assert "has no ears" in err


@pytest.mark.parametrize("suite", audio_student.SUITES)
def test_every_command_of_a_suite_parses(suite, tmp_path, run_cli):
    code, out, _ = run_cli(
        audio_student.main, "--suite", suite, "--seeds", 0, 1, "--dry_run", "--output_dir", tmp_path
    )  # fmt: skip
    assert code == 0
    commands = [shlex.split(line)[1:] for line in out.splitlines()]
    assert len(commands) >= 6
    names = set()
    for script, *flags in commands:
        module = importlib.import_module(script.removesuffix(".py"))
        names.add(module.create_parser().parse_args(flags).experiment_name)
    assert len(names) == len(commands)


def test_every_training_of_the_small_depth_anything_can_begin(rooms, tmp_path, run_cli):
    flags = ("--seeds", 0, "--dry_run", "--output_dir", tmp_path, "--dataset_dir", rooms)
    code, out, _ = run_cli(distill_any_depth.main, *flags)
    assert code == 0
    commands = [parse(shlex.split(line)[1:]) for line in out.splitlines()]
    assert len(commands) == len(distill_any_depth.ROWS) and len({args.steps_per_epoch for args in commands}) == 1
    for args in commands:
        assert all(map(len, train_distill_any_depth.create_datasets(args).values()))


def test_the_mean_of_both_ears_goes_to_loader_processes(rooms):
    data = create_dataset("simulated", rooms, "test", 32, modalities={"audio", "depth"})
    ears = pickle.loads(pickle.dumps(room_difficulty.InBothEars(data.read_audio)))(data.rows[0])
    assert torch.equal(ears[0], ears[1]) and torch.allclose(ears[0], data.read_audio(data.rows[0]).mean(0))


def test_the_table_of_the_small_depth_anything():
    figures = {
        "mean depth map": {"abs_rel": [0.2], "delta1": [0.7]},
        "a": {"abs_rel": [0.1, 0.2], "delta1": [0.9, 0.8]},
    }
    assert distill_any_depth.table(figures).splitlines()[2:] == [
        "| mean depth map | 0.2000 |  | 0.700 |", "| a | 0.1500 | 0.1000 0.2000 | 0.850 |"
    ]  # fmt: skip


def test_both_students_of_few_labels_take_equally_many_steps():
    rows = [row for row in audio_student.scarce().values() if row is not audio_student.TEACHER]
    assert len({row.epochs for row in rows}) == 1
    assert all(row.command[-4:] == audio_student.FEW for row in rows)
    assert "--steps_per_epoch" in audio_student.FEW


def test_the_table_holds_mean_seeds_and_share():
    table = on_rooms.table({"mean depth map": [0.8], "student": [0.3, 0.4, 0.5]})
    assert table.splitlines()[-1] == "| student | 0.400 | 0.300 0.400 0.500 | 0.500 |"


@pytest.mark.parametrize("model", ["binaural_attention", "rgb_depth"])
def test_every_module_that_keeps_memory_has_a_row(model, capsys):
    activation_memory.main(["--model", model, "--image_size", "128"])
    rows = dict(line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| "))
    levels = [f"x{i}" for i in range(1, 6)] + [f"d{i}" for i in range(1, 5)]
    assert all(float(rows[level]) > 0 for level in levels)
    assert float(rows["all"]) == pytest.approx(
        sum(float(rows[x]) for x in rows if x not in ("all", "level")), abs=0.1 * len(rows)
    )


def test_each_snippet_is_restated_and_its_fault_has_a_number(capsys):
    snippet_faults.main([])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(snippet_faults.ROWS) == 11
    assert all(line.count("|") == 4 and re.search(r"\d", line.split("|")[3]) for line in lines[2:])
    document = (REPOSITORY / "docs" / "DISTILL_ANY_DEPTH.md").read_text()
    assert all(line in document for line in lines), "what the guide shows is what the script prints"


def test_the_snippets_have_their_faults():
    s = torch.tensor([1.0, 2.0, 3.0])[None, None, None]
    scale, shift = snippet_faults.align_by_ratio(s, s + 1, torch.ones_like(s, dtype=torch.bool))
    assert scale.unique().item() == pytest.approx(20 / 14), "2 + 6 + 12 over 1 + 4 + 9, where it should be 1"
    assert shift.unique().item() == pytest.approx(3 - 20 / 14 * 2)
    tokens = torch.randn(1, 8, 4)
    assert snippet_faults.all_pairs_cosine(tokens, tokens.flip(1)) == pytest.approx(
        snippet_faults.all_pairs_cosine(tokens, tokens).item()
    )
    assert [context.tolist() for context in snippet_faults.half_open_contexts(torch.tensor([0.0, 1.0, 2.0, 3.0]))] == [
        [True, False, False, False], [False, True, False, False], [False, False, True, False]
    ]  # fmt: skip
    assert snippet_faults.edge_strength(torch.full((1, 1, 8, 8), 0.0)).max() == pytest.approx(1e-4)
    network = torch.nn.Linear(2, 2)
    assert snippet_faults.load_what_fits(network, {"weight": torch.ones(2, 2)}) == ["bias"]
    assert snippet_faults.load_what_fits(network, network.state_dict()) == []
    assert snippet_faults.AnotherInstead([False, True])[1] == 0


# ---------------------------------------------------------------------------------------------------------------- speed


def test_turns_are_taken_and_the_first_round_does_not_count():
    calls = []
    seconds = measure.take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert "".join(calls) == "ab" * 4
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


def test_a_turn_of_several_calls_begins_with_one_that_does_not_count():
    calls = []
    seconds = measure.take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, calls=3)
    assert "".join(calls) == "aaaabbbb" * 3
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}


def test_a_ratio_is_the_median_of_the_rounds():
    assert measure.ratio([2, 30, 8], [1, 10, 2]) == 3


def test_a_convolution_and_a_product_have_their_work():
    assert measure.convolution(torch.float32, "cpu")[1] == pytest.approx(2 * 4 * 128**2 * 128**2 * 9 / 1e9)
    assert measure.product(torch.float32, "cpu")[1] == pytest.approx(2 * 2048**3 / 1e9)


def allocate(megabytes):
    return lambda: bytearray(megabytes * 2**20).count(1)


def test_what_runs_apart_has_memory_of_its_own():
    apart = measure.Apart(allocate, 300)
    apart()
    assert 290 * 2**20 < apart.memory < 400 * 2**20
    apart.end()
    with pytest.raises(TrainingError):
        apart()


def test_a_tables_rows():
    assert measure.table([{"a": 1, "b": 0.12345}]).splitlines() == ["| a | b |", "|---|---|", "| 1 | 0.123 |"]


def test_training_is_measured(tmp_path, run_cli):
    flags = ("--model", "rgb_depth", "--base_channels", 4, "--image_size", 32, "--batch_size", 2, "--rounds", 1)
    code, out, _ = run_cli(bench_training.main, *flags, "--json", tmp_path / "x.json")
    assert code == 0 and "| rgb_depth |" in out
    found = json.loads((tmp_path / "x.json").read_text())
    assert min(found[key] for key in ("ratio", "gflops", "conv_peak_gflops")) > 0
    settings = {"model": "rgb_depth", "base_channels": 4, "image_size": 32, "batch_size": 2}
    assert bench_training.work_of({**settings, "batch_size": 4}) == pytest.approx(2 * bench_training.work_of(settings))


def test_what_is_heard_is_measured(tmp_path, run_cli):
    flags = ("--batch_size", 2, "--image_size", 32, "--max_depth", 2, "--rounds", 1, "--json", tmp_path / "x.json")
    code, out, _ = run_cli(bench_front_end.main, *flags)
    assert code == 0 and all(f"| {name} |" in out for name in AUDIO_FORMATS)
    args = argparse.Namespace(batch_size=2, image_size=32, max_depth=2.0)
    ways = bench_front_end.one_at_a_time(args, "interaural"), bench_front_end.a_batch(args, "interaural", "cpu")
    one, batch = (way() for way in ways)
    assert torch.allclose(one, batch, atol=1e-4) and one.shape == (2, 4, 32, 32), "both ways make the same"


@pytest.mark.parametrize("recipe", ["paper", "documents"])
def test_the_naive_step_has_the_losses_of_ours(recipe):
    settings = {"teacher": "tiny", "student": "tiny", "image_size": 56, "batch_size": 2, "local_crops": 2}
    assert bench_distill_any_depth.losses_apart({**settings, "recipe": recipe, "precision": "32"}) < 1e-3


def test_inference_is_measured_also_where_onnx_runtime_is_not_installed(run_cli, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_inference.export, "EXTRAS", ("no_such_module",))
    flags = ("--model", "rgb_depth", "--base_channels", 2, "--image_size", 32, "--rounds", 1)
    code, out, _ = run_cli(bench_inference.main, *flags, "--json", tmp_path / "x.json")
    assert code == 0 and out.count("| rgb_depth 2 | PyTorch, ") == out.count("| unet_256 | PyTorch, ") == 4
    assert out.count("| not installed |") == 8, "of two networks, in float32 and in 8 bits, at two batches"
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["ratio"] == found["ratios"]["1"]["best"] > 0 and found["ratios"]["32"][bench_inference.PLAIN] > 0
    assert set(found["front_end_ms"]) == {"spectrogram"}, "a network that does not hear has no format of its own"


def test_flags_that_do_not_fit_the_network_are_refused_before_anything_is_measured(run_cli, tmp_path):
    for flags, named in (
        (("--model", "rgb_depth", "--attention_levels", 5), "--attention_levels has no effect on rgb_depth"),
        (("--model", "rgb_depth", "--audio_format", "mel"), "--audio_format has no effect on rgb_depth"),
        (("--model", "depth_anything", "--base_channels", 4), "--base_channels has no effect on depth_anything"),
        (("--checkpoint", tmp_path / "x.pth", "--base_channels", 4), "--base_channels has no effect beside"),
        (("--base_channels", 4, "--image_size", 100), "--image_size 100: binaural_attention takes multiples"),
    ):
        code, out, errors = run_cli(bench_inference.main, *flags)
        assert code == 2 and named in errors and not out, (flags, errors)
    for script in (bench_training, activation_memory):
        code, out, errors = run_cli(script.main, "--model", "rgb_depth", "--image_size", 100)
        assert code == 2 and "--image_size 100: rgb_depth takes multiples of 16" in errors and not out


def test_what_a_network_hears_is_what_is_timed(tmp_path):
    path = tmp_path / "best_model.pth"
    write_network(path, "binaural_attention", {"image_size": 32, "audio_samples": 3000, "audio_format": "mel"})
    for flags in (("--audio_format", "mel"), ("--checkpoint", f"{path}")):
        args = bench_inference.create_parser().parse_args(["--image_size", "32", "--rounds", "1", *flags])
        _, model, heard = bench_inference.open_model(args)
        assert set(bench_inference.front_ends(args, heard, "cpu")) == {"spectrogram", "mel"}
        assert bench_inference.audio_format_of(model) == "spectrogram", "of as many channels"


def test_a_network_in_onnx_runtime_answers_as_in_pytorch(tmp_path):
    """A spectrogram stands where the waveform would: what is timed is the network alone."""
    pytest.importorskip("onnxruntime")
    model = create_model("binaural_attention", base_channels=2, attention_levels=[5])
    files = bench_inference.write_files(model, 32, tmp_path / "x", bench_inference.ways(False, "cpu"))
    expected = bench_inference.answer(model, 3, 32, "cpu")()
    plain, quantized = (bench_inference.answer(model, 3, 32, "cpu", way, file)() for way, file in files.items())
    assert torch.allclose(plain, expected, atol=1e-4)
    assert quantized.shape == expected.shape and not torch.allclose(quantized, expected, atol=1e-4)


def test_a_network_is_held_against_unet_256_in_each_way_and_at_the_best_of_both():
    """Ours is best in B with 2 s, unet_256 in A with 4 s."""
    seconds = {("x", "A"): [3.0], ("x", "B"): [2.0], ("unet_256", "A"): [4.0], ("unet_256", "B"): [8.0]}
    ratios = bench_inference.ratios_of("x", ["A", "B", "C"], seconds)
    assert ratios == {"A": 0.75, "B": 0.25, "best": 0.5}, "C could not be measured"


def test_the_time_of_an_epoch_is_between_the_lines_of_two():
    lines = [
        "data: 16",
        "epoch 1: lr 0.1",
        "warning: slow",
        "epoch 2: lr 0.1",
        "took 9.0 s, at most 0.50 GiB of memory",
    ]
    said = list(zip([3.0, 5.0, 5.5, 9.0, 11.0], lines, strict=True))
    assert bench_scaling.read(said) == (4, 11, 0.5)
    with pytest.raises(TrainingError, match="data: 16"):
        bench_scaling.read(said[:2])


def test_a_script_is_timed_line_by_line_on_the_threads_that_were_asked_for():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    code = "import os, time; print(os.environ['OMP_NUM_THREADS'], flush=True); time.sleep(0.3); print('done')"
    (first, one), (second, two) = measure.call("-c", code)
    torch.set_num_threads(threads)
    assert (one, two) == ("1\n", "done\n") and second - first > 0.25
    with pytest.raises(TrainingError, match="no such thing"):
        measure.call("-c", "raise SystemExit('no such thing')")


def test_simulation_is_measured_on_as_many_processes_as_are_asked_for(run_cli):
    code, out, _ = run_cli(bench_simulation.main, "--rooms", 3, "--rounds", 1, "--image_size", 32, "--workers", 1)
    assert code == 0 and "| 32 | 3 | 1 |" in out
    code, _, errors = run_cli(bench_simulation.main, "--threads", 1)
    assert code == 2 and "--threads" in errors


def test_the_plain_loader_does_what_ours_does(tmp_path):
    """The same echo, and the same depth where the neighbours that it blends are alike: at its own size."""
    bench_data.write_files(tmp_path / "data", 2)
    plain = bench_data.PlainDataset(tmp_path / "data", 2, ("audio", "depth", "rgb"), 64)[1]
    ours = create_dataset("batvisionv2", tmp_path / "data", "train", 64, bench_data.MAX_DEPTH)[1]
    assert torch.allclose(plain["audio"], ours["audio"], atol=1e-6)
    assert {key: value.shape for key, value in plain.items()} == {key: ours[key].shape for key in plain}
    native = create_dataset("batvisionv2", tmp_path / "data", "train", 64, bench_data.MAX_DEPTH, native_depth=True)[1]
    assert native["depth"].shape == (1, 720, 1280)
    assert plain["depth"].mean() == pytest.approx(float(native["depth"].mean()), rel=0.01)


def test_the_speed_of_loaders_is_measured(tmp_path, run_cli):
    level = logging.getLogger("dataloaders").level
    flags = ("--samples", 2, "--rounds", 1, "--image_size", 32, "--json", tmp_path / "data.json")
    code, out, _ = run_cli(bench_data.main, *flags)
    logging.getLogger("dataloaders").setLevel(level)
    assert code == 0
    report = json.loads((tmp_path / "data.json").read_text())
    for case, rates in report["samples_per_second"].items():
        (row,) = (line for line in out.splitlines() if line.startswith(f"| {case} |"))
        assert f"({rates['warm'][0] / rates['plain'][0]:.1f} x)" in row
        assert rates["warm"][0] > 2 * rates["plain"][0]


def test_a_ratio_is_of_neighbours():
    """Plain 1, 10, 100 and warm 5, 20, 900: the ratios 5, 2, 9, whose median is not the ratio of the medians."""
    rates = {"plain": [1.0, 10.0, 100.0], "no cache": [1.0] * 3, "cold": [1.0] * 3, "warm": [5.0, 20.0, 900.0]}
    assert bench_data.rows_of({"case": rates})[0]["warm"] == "20 (5.0 x)"
