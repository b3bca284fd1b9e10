"""The experiments: intervals, who is run before whom, what a failure stops, and that every command is a command."""

import dataclasses
import importlib
import io
import itertools
import json
import math
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from make_data import write_batvision_v1, write_nyu_b
from PIL import Image

import run_experiments
from dataloaders import create_dataset
from errors import DataError, OptionError
from experiments.charts import draw_bars, draw_curves, draw_label_curves
from experiments.records import Record, load, read_depths, read_results, save
from experiments.report import findings, table, write_report
from experiments.runs import Run, Runner, with_teachers
from experiments.scores import Scores, change
from experiments.settings import differences, settings_in, settings_of, without_folders
from experiments.suites import PRESETS, SMOKE, SUITES, Budget, Setting, Suite
from experiments.testing import Evaluator
from training.checkpoint import load_checkpoint

REPOSITORY = Path(__file__).resolve().parent.parent
TESTED = [(name, 2.0) for name in "abcde"]
SETTING = Setting(PRESETS["cpu"], 93, ("--dataset", "simulated", "--dataset_dir", "other"), "pairs", "Hall")


# -------------------------------------------------------------------------------------------------------------- suites


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", SUITES)
def test_every_command_of_every_suite_parses_and_every_control_is_a_row(name, preset, tmp_path):
    suite = SUITES[name](Setting(PRESETS[preset], 93, SETTING.other_data, "pairs", "Hall"))
    runner = Runner(tmp_path, ("--dataset", "simulated"), PRESETS[preset].size)
    names = [row.name for row in suite.rows]
    assert len(set(names)) == len(names)
    assert set(suite.control) | set(suite.control.values()) <= set(names)
    assert {name for asked in (*suite.comparisons, *suite.gaps) for name in asked} <= set(names)
    for curve in suite.label_curves.values():
        for share, row in curve:
            of = dict(itertools.pairwise(suite.rows[names.index(row)].command))
            assert of["--label_fraction"] == f"{share:g}", "it is drawn where its labels are"
    for run in with_teachers(suite.rows):
        script, *flags = runner.command(run, 0)
        module = importlib.import_module(script.removesuffix(".py"))
        args = module.create_parser().parse_args(flags)
        if hasattr(module, "check_options"):
            module.check_options(args)  # no flag is refused
        assert args.experiment_name == run.folder(0)
        assert args.nb_epochs == run.epochs


def test_runs_of_one_name_are_the_same_in_all_suites():
    known = {}
    for make in SUITES.values():
        for run in with_teachers(make(SETTING).rows):
            folder, its_own = run.folder(0), run.network or run
            assert known.setdefault(folder, its_own) == its_own, f"{folder} means two things"
            assert known.setdefault(run.name, run) == run, f"{run.name} means two things"


def test_locations_of_any_script_have_folders_of_their_own():
    """Names of ASCII letters have the folders that they always had: records are known by them."""

    def folder(location):
        return Run(f"audio alone, 100 % labels, 12 epochs, without {location}", (), 1).folder(0)

    assert folder("강의실") == "audio_alone_100_labels_12_epochs_without_강의실_seed0" != folder("복도")
    assert folder("Straße 2").endswith("_without_straße_2_seed0")
    assert folder("2nd_Floor - B_") == "audio_alone_100_labels_12_epochs_without_2nd_floor_b_seed0"


def test_rows_that_hear_something_else_say_so():
    spectrograms = [row for row in SUITES["ablation"](SETTING).rows if "spectrograms" in row.name]
    assert [row.command[row.command.index("--audio_format") + 1] for row in spectrograms] == ["spectrogram"]
    assert all("--audio_format" in row.command for row in SUITES["ladder"](SETTING).rows if "audio alone" in row.name)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_student_is_held_against_a_u_net_of_the_published_width(preset):
    suite = SUITES["budget"](dataclasses.replace(SETTING, preset=PRESETS[preset]))
    unets = {row.name for row in suite.rows if row.command[row.command.index("--base_channels") + 1] == "64"}
    pairs = {*suite.comparisons, *suite.control.items()}
    assert any(pair[0].startswith("audio alone") and pair[1] in unets for pair in pairs)


@pytest.mark.parametrize("name", ["ladder", "ablation"])
def test_bins_that_are_taught_are_held_against_bins_that_are_not(name):
    suite = SUITES[name](SETTING)
    for row in suite.rows:
        if row.name.startswith("AdaBins") and "finetune" not in row.command:
            assert suite.control[row.name].startswith("AdaBins"), row.name


def test_all_rows_of_a_table_take_equally_many_steps():
    for name in ("ladder", "labels"):
        rows = [row for row in SUITES[name](SETTING).rows if not row.name.startswith(("RGB", "fusion"))]
        students = [row for row in rows if not row.name.startswith("unet")]
        assert students
        assert len({row.epochs for row in students}) == 1
        assert all("--steps_per_epoch" in row.command for row in rows)
        plain = {row.epochs for row in rows if row.name.startswith("unet baseline, 100 %")}
        assert plain == {students[0].epochs, PRESETS["cpu"].epochs}, "the U-Net for as long as the others, and longer"


def test_a_suite_trains_under_the_budget_that_is_asked_for():
    """All its rows, but for the optimiser of the U-Net, which is AdamW; their teachers for at least as long."""
    asked = dataclasses.replace(SETTING, epochs=20, optimizer="Muon")
    for run in with_teachers(SUITES["labels"](asked).rows):
        by = run.command[run.command.index("--optimizer") + 1]
        unet = run.name.startswith("unet")
        assert (by, run.epochs) == ("AdamW" if unet else "Muon", 20), run.name
        assert ("Muon" in run.name) != unet
    short = dataclasses.replace(SETTING, epochs=2, optimizer="AdamW")
    assert {row.teacher.epochs for row in SUITES["ladder"](short).rows if row.teacher} == {PRESETS["cpu"].epochs}
    for run in with_teachers(SUITES["labels"](short).rows):
        assert "Muon" not in f"{run.name} {run.command}", "nor does another train the teachers"
    unets = [row.epochs for row in SUITES["ladder"](short).rows if row.name.startswith("unet")]
    assert sorted(unets) == [2, PRESETS["cpu"].epochs, PRESETS["cpu"].epochs]
    said = next(action.help for action in run_experiments.create_parser()._actions if action.dest == "epochs")
    assert "teachers, and ladder's U-Nets, have those of the preset at least" in said


def test_a_warm_up_goes_with_the_optimiser_of_its_budget():
    growing = Budget(5, "Muon", warmup=0.25)
    grows = SETTING.rows(growing).audio()
    steady = dataclasses.replace(SETTING, optimizer="AdamW").rows(growing).audio()
    assert grows.command[grows.command.index("--warmup_epochs") + 1] == "0.25" and "Muon with warm-up" in grows.name
    assert "--warmup_epochs" not in steady.command and "warm-up" not in steady.name


def test_a_row_says_how_its_teacher_was_trained_where_that_is_otherwise():
    for name in ("ladder", "labels", "ablation", "transfer"):
        budget = getattr(PRESETS["cpu"], name)
        by = budget.teachers or budget.optimizer
        rows = with_teachers(SUITES[name](SETTING).rows)
        assert len({row.folder(0) for row in rows}) == len(rows), "a name for each"
        for row in rows:
            if row.teacher:
                assert row.teacher.command[row.teacher.command.index("--optimizer") + 1] == by
                assert (f"teacher by {by}" in row.name) == (by != budget.optimizer)
            grows = "--warmup_epochs" in row.command
            assert grows == ("with warm-up" in row.name), row.name
            assert not (grows and row.name.startswith(("RGB", "AdaBins RGB"))), "students, not teachers"


def test_no_row_is_taught_on_labels_that_it_does_not_have():
    for row in SUITES["labels"](SETTING).rows:
        if row.teacher and "other rooms" not in row.name:
            share = row.command[row.command.index("--label_fraction") + 1]
            assert row.teacher.command[row.teacher.command.index("--label_fraction") + 1] == share
    alone = [row for row in SUITES["labels"](Setting(PRESETS["cpu"], 93)).rows if "0 % labels" in row.name.split(", ")]
    assert not alone, "without other rooms nobody can learn without a label"


# ---------------------------------------------------------------------------------------------------------------- runs


def test_teachers_come_first_and_once():
    teacher = Run("eye", ("t.py",), 1)
    first, second = (Run(name, ("s.py",), 1, teacher=teacher) for name in ("a", "b"))
    assert with_teachers([first, second]) == [teacher, first, second]


def test_a_network_is_trained_once_before_it_is_tested_in_two_ways(tmp_path, monkeypatch):
    eye = Run("eye", ("t.py",), 1)
    ear = Run("ear", ("s.py",), 1, teacher=eye)
    twice = dataclasses.replace(ear, name="twice", network=ear, test=("--mirror",))
    assert with_teachers([twice, ear]) == [eye, ear, twice]
    assert twice.folder(0) == ear.folder(0)
    monkeypatch.setattr(Runner, "train", lambda self, run, seed: "it said so" if run is ear else None)
    runner = Runner(tmp_path, (), jobs=2, say=lambda text: None)
    assert runner.train_all([twice, ear], [0]) == {("ear", 0): "it said so", ("twice", 0): "its network, ear, failed"}
    tested = []
    monkeypatch.setattr(Runner, "train", lambda self, run, seed: None)
    runner.train_all([twice, ear], [0], known={("ear", 0): None}, then=lambda run, seed: tested.append(run.name))
    assert tested == ["twice"], "the other is known"
    evaluator = Evaluator(Runner(tmp_path, ("--dataset", "simulated")), SUITES["mirror"](SETTING), [0], tmp_path)
    rows = [run for run in evaluator.suite.rows if run.network]
    assert len(rows) == 2 and all(evaluator.command(run, 0).endswith(" --mirror") for run in rows)
    assert all(evaluator.record(run, 0).name.endswith("_seed0_mirror.json") for run in rows)
    assert {evaluator.record(run, 0) for run in rows}.isdisjoint(evaluator.record(run.network, 0) for run in rows)


def test_a_failure_stops_whom_it_would_have_taught_and_nobody_else(tmp_path, monkeypatch):
    eye, blind = Run("eye", ("t.py",), 1), Run("blind", ("t.py",), 1)
    rows = [
        Run("of eye", ("s.py",), 1, teacher=eye),
        Run("of blind", ("s.py",), 1, teacher=blind),
        Run("c", ("c.py",), 1),
    ]
    trained = []

    def train(self, run, seed):
        trained.append(run.name)
        return "exit code 2: it said so" if run is blind else None

    monkeypatch.setattr(Runner, "train", train)
    said = []
    failed = Runner(tmp_path, (), jobs=2, say=said.append).train_all(rows, [0])
    assert set(failed) == {("blind", 0), ("of blind", 0)}
    assert "its teacher, blind, failed" in failed["of blind", 0]
    assert sorted(trained) == ["blind", "c", "eye", "of eye"]
    assert trained.index("eye") < trained.index("of eye")
    assert sum("FAILED" in line for line in said) == 2 and len(said) == 5


def test_each_is_handed_on_as_soon_as_it_is_trained(tmp_path, monkeypatch):
    events = []

    def train(self, run, seed):
        events.append(f"train {run.name}")
        return "exit code 2: it said so" if run.name == "b" else None

    monkeypatch.setattr(Runner, "train", train)
    rows = [Run("a", ("s.py",), 1, teacher=Run("eye", ("t.py",), 1)), Run("b", ("b.py",), 1), Run("c", ("c.py",), 1)]
    runner = Runner(tmp_path, (), say=lambda _: None)
    runner.train_all(rows, [0], known={("c", 0)}, then=lambda run, seed: events.append(f"test {run.name}"))
    assert events == ["train eye", "train a", "test a", "train b"]
    events.clear()
    taught = [rows[0].teacher, rows[0]]
    runner.train_all(taught, [0], known={("eye", 0)}, then=lambda run, seed: events.append(f"test {run.name}"))
    assert events == ["train eye", "train a", "test a"], "the record of a teacher that is trained anew stays"


def test_a_test_that_fails_is_said_when_it_does(tmp_path, monkeypatch):
    monkeypatch.setattr(Runner, "train", lambda self, run, seed: None)
    said, teacher = [], Run("teacher", ("t.py",), 1)
    rows = [teacher, Run("student", ("s.py",), 1, teacher=teacher)]
    failed = Runner(tmp_path, (), say=said.append).train_all(rows, [0], then=lambda run, seed: "its test failed")
    assert failed == {} and said[0] == "[1/2] teacher, seed 0: trained, but its test failed"
    assert len(said) == 2, "whom it teaches is trained all the same"


def test_records_in_a_folder_that_cannot_be_written_are_reported(tmp_path, rooms, run_cli, monkeypatch):
    """They are asked for a place only where a test would put one there."""
    kept, asked, whole = tmp_path / "scores", [], tempfile.TemporaryFile

    def temporary(dir):
        asked.append(Path(dir))
        return whole(dir=dir)

    monkeypatch.setattr("run_experiments.tempfile.TemporaryFile", temporary)
    monkeypatch.setattr(Runner, "train_all", lambda *_, **__: {("a row", 0): "it is not trained here"})
    common = ("smoke", "--dataset_dir", rooms, "--seeds", 0, "--output_dir", tmp_path / "r", "--scores_dir", kept)
    run_cli(run_experiments.main, *common, "--report_only")
    assert kept not in asked, "nothing is trained, nothing is tested"
    monkeypatch.setattr(Evaluator, "test_all", lambda *_: {})
    run_cli(run_experiments.main, *common)
    assert kept in asked
    suite = SUITES["smoke"](Setting(SMOKE, 3))
    monkeypatch.setattr(Evaluator, "known", lambda self: {(row.name, 0): None for row in suite.rows})
    asked.clear()
    run_cli(run_experiments.main, *common)
    assert asked and kept not in asked, "all are known"


def test_smoke_has_a_few_rooms_of_its_own_and_short_epochs(rooms, tmp_path, monkeypatch, run_cli):
    monkeypatch.chdir(tmp_path)
    code, out, err = run_cli(run_experiments.main, "smoke", "--dry_run")
    assert code == 0, err
    assert f"simulate_rooms.py --output {tmp_path}/data/SimulatedRoomsSmoke --train 24 --val 8 --test 8" in out
    assert "--steps_per_epoch 6" in out
    assert not (tmp_path / "data").exists()
    out = run_cli(run_experiments.main, "smoke", "--dry_run", "--dataset_dir", rooms)[1]
    assert "simulate_rooms.py" not in out and "--steps_per_epoch 3" in out


def test_what_another_process_trains_keeps_its_command_log_and_time(tmp_path):
    """Two of one folder: the second would begin them anew, and the first be taken for its own training."""
    run = Run("a", ("-c", "import time; print('begun', flush=True); time.sleep(60)"), 1)
    runner = Runner(tmp_path, ())
    (tmp_path / "logs").mkdir()
    held = subprocess.Popen(
        [sys.executable, "-c", "import sys, time; from training.files import claim; from pathlib import Path\n"
         "kept = claim(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)", tmp_path / "logs/.a_seed0.lock"],
        cwd=REPOSITORY, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert held.stdout.readline() == "held\n"
        assert runner.train(run, 0) == "another process trains it"
        assert [path.name for path in (tmp_path / "logs").iterdir()] == [".a_seed0.lock"]
    finally:
        held.kill()
        held.wait()


def test_what_one_row_raises_stops_no_other(tmp_path, monkeypatch):
    """Its log cannot be written, its record finds the disk full."""

    def train(self, run, seed):
        if run.name == "a":
            (tmp_path / "none" / "times.csv").write_text("")

    def evaluate(self, run, seed):
        raise OptionError("b.json cannot be written (No space left on device)")

    monkeypatch.setattr(Runner, "train", train)
    monkeypatch.setattr(Evaluator, "evaluate", evaluate)
    rows = [Run(name, (f"{name}.py",), 1) for name in "ab"]
    rows.append(Run("c", ("c.py",), 1, teacher=rows[1]))
    said = []
    evaluator = Evaluator(Runner(tmp_path, (), say=said.append), Suite("?", rows), [0])
    failed = evaluator.runner.train_all(rows, [0], then=evaluator.evaluate)
    assert set(failed) == {("a", 0)} and "times.csv" in failed["a", 0]
    assert said[1] == "[2/3] b, seed 0: trained, but b.json cannot be written (No space left on device)"
    assert evaluator.test_all(failed, {}) == {} and set(failed) == {("a", 0), ("b", 0), ("c", 0)}


def test_a_test_that_was_told_to_end_has_not_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(Runner, "train", lambda self, run, seed: None)
    said = []
    runner = Runner(tmp_path, (), say=said.append)

    def told_to_end(run, seed):
        runner.stop()
        return "its test failed: interrupted"

    assert runner.train_all([Run("a", ("a.py",), 1), Run("b", ("b.py",), 1)], [0], then=told_to_end) == {}
    assert said == []


@pytest.mark.parametrize(("visible", "expected"), [(None, {"2", "5"}), ("7,1,4,9,8,3", {"4", "3"})])
def test_trainings_share_the_gpus_out_among_them(tmp_path, monkeypatch, visible, expected):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    runner = Runner(tmp_path, (), jobs=2, gpus=(2, 5))
    tell = ["-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"]
    assert {runner.call(tell).stdout.strip() for _ in range(2)} == expected
    assert runner.call(tell).stdout.strip() in expected, "each is given back"


def test_a_failed_script_is_reported_by_its_last_line(tmp_path):
    run = Run("nonsense", ("train_rgb_depth.py", "--dataset", "simulated", "--max_depth", "-1"), 1)
    reason = Runner(tmp_path, ()).train(run, 0)
    assert reason is not None and reason.startswith("exit code 2") and "--max_depth" in reason


# A suite of three scripts that never end by themselves: two run, one waits.
ENDLESS = """
import sys
import run_experiments
from errors import run_script
from experiments.runs import Run
from experiments.suites import SUITES, Suite

waits = "import os, time, errors; errors.run_script(lambda _: (print(os.getpid(), flush=True), time.sleep(99)))"
SUITES["smoke"] = lambda setting: Suite("who waits?", [Run(name, ("-c", waits), 9) for name in "abc"])
sys.argv = ["run_experiments.py", "smoke", "--jobs", "2", "--seeds", "0", *sys.argv[1:]]
run_script(run_experiments.main)
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="other systems do not tell a child of its parent's end"
)
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_what_ends_the_experiments_ends_their_trainings(tmp_path, rooms, stop):
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, "--dataset_dir", rooms, "--output_dir", tmp_path],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while len(running := [log.read_text() for log in tmp_path.glob("logs/*.txt")]) < 2 or not all(running):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(stop)
        out, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    deadline = time.monotonic() + 30
    while any(Path("/proc", pid.split()[0]).exists() for pid in running):
        assert time.monotonic() < deadline, "a training outlives the experiments"
        time.sleep(0.05)
    assert len(list(tmp_path.glob("logs/*.txt"))) == 2, "no further one was started"
    assert all("interrupted" in log.read_text() for log in tmp_path.glob("logs/*.txt"))
    if stop is not signal.SIGKILL:
        assert process.returncode == 128 + stop
        assert errors.splitlines() == [
            "run_experiments.py: interrupted; the same command goes on where each training was"
        ]
        assert "FAILED" not in out and "2 running scripts are told to end" in out


def test_the_table_names_mean_interval_share_and_difference():
    errors = np.full((2, 5), 0.6)
    suite = SUITES["smoke"](Setting(SMOKE, 3))
    means = {"abs_rel": 0.1, "delta1": 0.9}
    control, taught, *_ = (Scores(row, [0, 1], TESTED, errors, means, [[1.0], [1.0]]) for row in suite.rows)
    taught.errors = 0.8 * errors
    taught.minutes = [3.0, math.nan]
    asked = dataclasses.replace(
        suite,
        comparisons=[(taught.run.name, control.run.name), (taught.run.name, "not trained")],
        gaps=[(control.run.name, taught.run.name, "half"), ("half", taught.run.name, control.run.name)],
    )
    half = Scores(control.run, [0, 1], TESTED, 0.5 * errors, means, [[1.0], [1.0]])
    said = findings(asked, {control.run.name: control, taught.run.name: taught, "half": half})
    assert said == [
        f"{taught.run.name}, against {control.run.name}: -20.0 % (95 %: -20.0 to -20.0 %)",
        f"{taught.run.name}: 40 % (95 %: 40 to 40 %) of the gap between {control.run.name}, and half",
        f"{taught.run.name}: no gap to close between half, and {control.run.name}",
    ]
    lines = table(suite, {control.run.name: control, taught.run.name: taught}, 1.2)
    assert lines[2][1:5] == ["0.600", "0.600 to 0.600", "0.600 0.600", "0.500"]
    assert lines[3][-3:] == [control.run.name, "-20.0 %", "-20.0 to -20.0 %"], "against whom, and by how much"
    assert lines[0][7] == "minutes" and [line[7] for line in lines[2:4]] == ["", "3.0"]
    assert lines[4][1] == "failed" and len({len(line) for line in lines}) == 1
    for reference, rows in ((0.0, 6), (None, 5)):  # of one pair that is tested on itself; of no labels
        lines = table(suite, {control.run.name: control, taught.run.name: taught}, reference)
        assert len(lines) == rows and [line[4] for line in lines[-4:-2]] == ["", ""]
        assert draw_bars(suite, {control.run.name: control}, reference).startswith(b"\x89PNG")
    assert change(Scores(taught.run, [7], TESTED, errors[:1], means, [[1.0]]), control) is None, "no seed in common"
    for other in ([*TESTED[:-1], ("f", 2.0)], [*TESTED[:-1], ("e", 2.1)]):
        with pytest.raises(DataError, match="not tested on the same images and depths"):
            change(Scores(taught.run, [0, 1], other, errors, means, [[1.0]]), control)


def test_a_gap_that_is_uncertain_is_not_said_to_be_none():
    means, rows = ([0.50, 0.46, 0.42], [0.42] * 3, [0.40] * 3), ("start", "middle", "end")
    scores = {
        name: Scores(Run(name, (), 1), [0, 1, 2], TESTED, np.tile(np.array(mean)[:, None], 5), {}, [])
        for name, mean in zip(rows, means, strict=True)
    }
    (said,) = findings(Suite("?", [], gaps=[rows]), scores)
    assert re.fullmatch(
        r"middle: a gap that may be none, of 0\.060 m \(95 %: -0\.\d+ to 0\.\d+ m\), between start, and end", said
    ), said
    (said,) = findings(Suite("?", [], gaps=[rows[::-1]]), scores)
    assert said == "middle: no gap to close between end, and start"


def test_a_comparison_over_one_common_seed_says_what_its_interval_is_of(tmp_path):
    suite, means = SUITES["smoke"](Setting(SMOKE, 3)), {"abs_rel": 0.1, "delta1": 0.9}
    control, taught, *_ = suite.rows
    made_by = dict.fromkeys(("commit", "Python", "libraries", "machine"), "")
    made = [Record("x", None, None, [], [], [], [], {}, made_by)]
    for seeds, warned in (([1, 2], True), ([0, 1], False), ([2, 3], False)):
        errors = np.random.default_rng(0).uniform(0.5, 0.7, (2, 5))
        scores = {
            run.name: Scores(run, of, TESTED, errors, means, [[1.0]] * 2, [1.0, 1.0])
            for run, of in ((control, [0, 1]), (taught, seeds))
        }
        said = {"command": ["x"], "commands": [], "failed": {}, "rooms": (None, "none")}
        report, _ = write_report(tmp_path, suite, scores, made, **said)
        assert ("Intervals of one seed are over test images alone" in report.read_text()) == warned, seeds


@pytest.fixture(scope="module")
def smoke(tmp_path_factory, rooms):
    folder = tmp_path_factory.mktemp("smoke")
    run_experiments.main(
        ["smoke", "--dataset_dir", str(rooms), "--seeds", "0", "--output_dir", str(folder), "--jobs", "2"]
    )
    return folder


def test_a_suite_from_nothing_to_a_report(smoke, rooms, capsys):
    report = (smoke / "reports/smoke/report.md").read_text()
    assert re.search(r"\| audio alone.*\| \d+\.\d \| +\| +\| +\|", report), "minutes, and no control of its own"
    assert report.count("\n| audio alone") == 1 and report.count("| audio alone") == 2, "a row, and a control"
    assert "Intervals of one seed are over test images alone" in report
    assert "depth distillation" in report and "failed" not in report
    once, twice = (
        smoke / f"results/depth_distillation_50_labels_2_epochs_seed0/test{how}.json" for how in ("", "_mirror")
    )
    figures = [json.loads(file.read_text()) for file in (once, twice)]
    assert [found["mirror"] for found in figures] == [False, True] and figures[0]["rmse"] != figures[1]["rmse"]
    assert all(f"| {found['rmse']:.3f} |" in report for found in figures), "one network, two tests"
    assert report.count("train_distillation.py") == 1
    assert f"python run_experiments.py smoke --dataset_dir {rooms}" in report
    page = (smoke / "reports/smoke/report.html").read_text()
    assert len(re.findall(r"data:image/png;base64,", page)) == 3, "bars, curves and rooms"
    rows = [row.name for row in SUITES["smoke"](Setting(SMOKE, 3)).rows if row.network is None]
    assert f"as predicted by {'; '.join(rows)}: from the easiest to the hardest for the first" in report
    assert "The networks of the other rows" not in report and "warning" not in report
    logs = [smoke / "logs" / f"{row.folder(0)}.txt" for row in SUITES["smoke"](Setting(SMOKE, 3)).rows[:2]]
    said = [log.read_text() for log in logs]
    for log in logs:
        log.write_text(f"{log.read_text()}warning: epoch 1: 3 are blank\nwarning: epoch 2: 4 are blank\n")
    assert '<img src="data:' in page and "http" not in page, "it needs no other file"
    before = {path: path.stat().st_mtime_ns for path in smoke.rglob("*.pth")}
    run_experiments.main(["smoke", "--dataset_dir", str(rooms), "--seeds", "0", "--output_dir", str(smoke)])
    assert {path: path.stat().st_mtime_ns for path in smoke.rglob("*.pth")} == before, "what is done is not done again"
    assert "minutes" not in capsys.readouterr().out
    report = (smoke / "reports/smoke/report.md").read_text()
    assert report.count("are blank") == 2 and f"- {rows[0]}: warning: epoch 1: 3 are blank" in report
    for log, text in zip(logs, said, strict=True):
        log.write_text(text)


def test_minutes_of_a_start_whose_end_nobody_wrote_down_are_not_known(tmp_path):
    runner = Runner(tmp_path, ())
    run = Run("one", ("train.py",), 2)
    assert math.isnan(runner.minutes(run, 0))
    runner.times.parent.mkdir()
    for lines, minutes in (
        ("one_seed0,60.0\n", 1.0),  # of a version that wrote down the ends alone
        ("one_seed0,begun\none_seed0,60.0\none_seed1,begun\n", 1.0),
        ("one_seed0,begun\none_seed0,60.0\none_seed0,begun\none_seed0,30.0\n", 1.5),
        ("one_seed0,begun\none_seed0,begun\none_seed0,30.0\n", math.nan),
        ("one_seed0,60.0\none_seed0,begun\none_seed0,begun\none_seed0,30.0\n", math.nan),
        ("one_seed0,begun\none_seed0,60.0\none_seed0,begun\n", math.nan),
        ("one_seed0,begun\none_seed0,60.0\none_seed0,anew\none_seed0,30.0\n", 0.5),
        ("one_seed0,anew\none_seed0,anew\none_seed0,30.0\none_seed0,begun\none_seed0,30.0\n", 1.0),
        ("one_seed0,60.0\none_seed0,anew\n", math.nan),
    ):
        runner.times.write_text(lines)
        assert runner.minutes(run, 0) == pytest.approx(minutes, nan_ok=True)


def test_a_training_that_begins_from_nothing_has_its_own_minutes_and_log(tmp_path, monkeypatch):
    runner, run = Runner(tmp_path, ()), Run("one", ("train.py",), 2)
    monkeypatch.setattr("experiments.runs.settings_of", lambda command: {})

    def call(self, command, log):
        log.write("warning: it is there\n")
        time.sleep(0.1)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(Runner, "call", call)
    for _ in range(2):
        assert runner.train(run, 0) is None
    assert re.fullmatch(r"(one_seed0,anew\none_seed0,0\.\d\n){2}", runner.times.read_text())
    assert len(runner.warnings(run, 0)) == 1
    monkeypatch.setattr(Runner, "epochs_done", lambda *_: 1)
    runner.train(run, 0)
    assert runner.times.read_text().count("anew") == 2 and len(runner.warnings(run, 0)) == 2, "it goes on"


def test_a_time_that_was_cut_off_is_none_and_is_not_written_on(tmp_path):
    runner, run = Runner(tmp_path, ()), Run("one", ("train.py",), 2)
    runner.times.parent.mkdir()
    for cut in ("one_se", "one_seed0", "one_seed0,", "one_seed0,beg", "one_seed0,6", "one_seed0,6.", "\0\0\0"):
        runner.times.write_text(f"one_seed0,begun\none_seed0,60.0\n{cut}")
        assert runner.minutes(run, 0) == 1, cut
        runner._note_time(run, 0, "begun")
        runner._note_time(run, 0, "30.0")
        assert runner.minutes(run, 0) == 1.5, cut


def test_a_legend_has_room_for_all_rows():
    scores = {
        f"row {number}": Scores(Run(f"row {number}", (), 2), [0], TESTED, np.ones((1, 5)), {}, [[1.0, 0.5 + number]])
        for number in range(37)
    }
    few, many = (
        Image.open(io.BytesIO(draw_curves(dict(list(scores.items())[:number])))).size for number in (5, len(scores))
    )
    assert few[0] == many[0] and many[1] > 1.3 * few[1]


def test_a_name_with_dollars_is_drawn_as_it_is():
    run = Run("audio, without Lab $_$ 3", (), 2)
    scores = {run.name: Scores(run, [0], TESTED, np.ones((1, 5)), {}, [[1.0, 0.5]])}
    suite = Suite("?", [run], label_curves={run.name: [(1.0, run.name)]})
    for picture in (draw_bars(suite, scores, None), draw_curves(scores), draw_label_curves(suite, scores)):
        assert picture.startswith(b"\x89PNG")


def test_scores_on_nyu_are_known_again(tmp_path):
    """``evaluate.py`` scores maps of their own size within Eigen's crop; so is the test known by its depths."""
    frames = write_nyu_b(tmp_path / "nyu", size=(480, 640), rows={"train": 20, "test": 2})
    data = ("--dataset", "nyu", "--dataset_dir", f"{frames}")
    run = Run("RGB", ("train_rgb_depth.py", "--base_channels", "4"), 1)
    runner = Runner(tmp_path / "runs", data, ("--image_size", "32", "--batch_size", "8", "--num_workers", "0"))
    evaluator = Evaluator(runner, Suite("?", [run]), [0], tmp_path)
    assert runner.train_all([run], [0], then=evaluator.evaluate) == {}
    assert set(evaluator.known()) == {("RGB", 0)}


def test_what_another_command_trained_is_not_taken_for_it(smoke, tmp_path, rooms):
    run = SUITES["smoke"](Setting(SMOKE, 3)).rows[0]
    data = ("--dataset", "simulated", "--dataset_dir", f"{rooms}")
    assert Runner(smoke, data, SMOKE.size).train(run, 0) is None, "it is there"
    moved = smoke.rename(tmp_path / "moved")
    try:
        assert Runner(moved, data, SMOKE.size).train(run, 0) is None, "the folder's name is no part of it"
        elsewhere = Runner(moved, (*data[:-1], "other_rooms"), SMOKE.size).train(run, 0)
        assert elsewhere is not None and "another command" in elsewhere and "--output_dir" in elsewhere
        taught = SUITES["smoke"](Setting(SMOKE, 3)).rows[1]
        assert Runner(moved, data, SMOKE.size).find_untrained([run, taught], [0]) == {}
        found = Runner(moved, (*data[:-1], "other_rooms"), SMOKE.size).find_untrained([run, taught], [0])
        assert set(found) == {(run.name, 0), (taught.name, 0)}, "nor reported as if it were"
        assert all("another command" in why for why in found.values())
    finally:
        moved.rename(smoke)


def test_a_training_is_known_again_where_its_folder_is_moved(tmp_path, monkeypatch):
    """Whatever has to be quoted, before and after, and where the data lie beside it under a longer name."""
    monkeypatch.setattr("experiments.runs.settings_of", lambda command: {})
    run = Run("one", ("train.py", "--note", "it's 5 %"), 2)

    def runner(folder, data="runs of/data"):
        return Runner(tmp_path / folder, ("--dataset", "simulated", "--dataset_dir", f"{tmp_path / data}"))

    def keep(folder, line):
        file, _ = runner(folder).kept_command(run, 0)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(line)

    folders = "runs", "runs of", "it's", "elsewhere"
    for first, then in itertools.product(folders, folders):
        keep(then, shlex.join(runner(first, f"{first}/rooms").kept_command(run, 0)[1]))
        assert runner(then, f"{then}/rooms").not_of_this_command(run, 0) is None, "the data lie in it"
        keep(then, shlex.join(runner(first).kept_command(run, 0)[1]))
        if "runs of" not in (first, then):
            assert runner(then).not_of_this_command(run, 0) is None, (first, then)
        assert "another command" in runner(then, "other").not_of_this_command(run, 0)
    for folder in folders:  # as earlier versions wrote it
        keep(folder, shlex.join(runner(folder).command(run, 0)).replace(f"{tmp_path / folder}", "."))
        assert runner(folder).not_of_this_command(run, 0) is None, folder
    keep("runs", "train.py 'cut o")
    assert "another command" in runner("runs").not_of_this_command(run, 0)


def test_what_cannot_be_read_of_a_training_is_not_begun_anew(smoke, tmp_path, rooms, monkeypatch):
    """A later version wrote it, or a copy was cut off: it is said, and nothing is written over it."""
    run = SUITES["smoke"](Setting(SMOKE, 3)).rows[0]
    shutil.copytree(smoke, tmp_path / "runs")
    data = ("--dataset", "simulated", "--dataset_dir", f"{rooms}")
    runner = Runner(tmp_path / "runs", data, SMOKE.size)
    last = runner.best(run, 0).with_name("last.pth")
    monkeypatch.setattr(Runner, "call", lambda *_: pytest.fail("it is trained"))
    whole, kept = last.read_bytes(), load_checkpoint(last)
    torch.save(kept | {"format": kept["format"] + 1}, last)
    assert "update the toolkit" in runner.train(run, 0)
    last.write_bytes(whole[: len(whole) // 2])
    assert "damaged" in runner.train(run, 0)
    assert set(runner.find_untrained([run], [0])) == {(run.name, 0)}
    last.unlink()
    other = Runner(tmp_path / "runs", (*data[:-1], "other_rooms"), SMOKE.size)
    assert "another command" in other.train(run, 0), "its best epoch is there"
    assert runner.epochs_done(run, 0) == 0


def test_what_was_trained_under_other_defaults_is_not_taken_for_it(smoke, rooms):
    runner = Runner(smoke, ("--dataset", "simulated", "--dataset_dir", f"{rooms}"), SMOKE.size)
    for run in with_teachers(SUITES["smoke"](Setting(SMOKE, 3)).rows):
        trained, today = runner.trained_settings(run, 0), runner.settings(run, 0)
        assert len(trained) == len(today) == 1 + bool(run.teacher)
        assert [differences(*pair) for pair in zip(trained, today, strict=True)] == [""] * len(today)
    _, eye, taught, _ = with_teachers(SUITES["smoke"](Setting(SMOKE, 3)).rows)
    file = runner.best(eye, 0).with_name("args.json")
    kept = file.read_text()
    try:
        file.write_text(json.dumps(json.loads(kept) | {"task_loss": "berhu"}))
        why = runner.train(taught, 0)
        assert why is not None and "other defaults (--task_loss was berhu, is l1)" in why and "--output_dir" in why
    finally:
        file.write_text(kept)


def test_settings_are_flags_and_what_is_behind_those_that_are_not_given(tmp_path):
    command = ["train_baseline.py", "--dataset", "simulated", "--output_dir", f"{tmp_path}", "--experiment_name", "e"]
    unet, residual = (settings_of([*command, "--model", model]) for model in ("unet_baseline", "base_residual"))
    assert [unet["batch_size"], residual["batch_size"]] == [128, 64], "the defaults are those of the model"
    assert "lambda_base" in residual and "lambda_base" not in unet and "experiment_name" not in unet
    assert differences(unet, unet | {"batch_size": 1, "seed": None, "new": 2}) == (
        f"--batch_size was {unet['batch_size']}, is 1"
    )
    assert settings_in(tmp_path) is None


def test_a_suite_is_repeated_from_its_records(smoke, tmp_path, rooms, run_cli):
    kept = tmp_path / "scores"
    common = ("smoke", "--dataset_dir", rooms, "--seeds", 0, "--scores_dir", kept)
    code, _, err = run_cli(run_experiments.main, *common, "--output_dir", smoke, "--report_only")
    assert code == 0 and not err
    assert len(list(kept.glob("*.json"))) == 4
    elsewhere = tmp_path / "elsewhere"
    code, out, _ = run_cli(run_experiments.main, *common, "--output_dir", elsewhere)
    assert code == 0 and "python train" not in out, "nothing is trained"
    rows = [
        [line for line in (folder / "reports/smoke/report.md").read_text().splitlines() if line.startswith("| ")]
        for folder in (smoke, elsewhere)
    ]
    assert rows[0] == rows[1]

    code, _, err = run_cli(run_experiments.main, *common, "--output_dir", tmp_path, "--seeds", 0, 1, "--report_only")
    assert code == 2 and err.count("\n") == 1 and "4 of the trainings are not there" in err
    report = (tmp_path / "reports/smoke/report.md").read_text()
    assert "seed 1: not there (0 of its 2 epochs are trained)" in report and "failed" not in report
    assert f"No picture of the test samples: no row's network is in {tmp_path}" in report

    path = next(iter(kept.glob("audio_alone*.json")))
    whole = path.read_text()
    path.write_text(whole.replace("train_binaural_attention.py", "train_distillation.py"))
    code, _, err = run_cli(run_experiments.main, *common, "--output_dir", elsewhere)
    assert code == 2 and "another command" in err and "--scores_dir" in err
    path.write_text(whole.replace("--optimizer AdamW ", ""))  # which is the default
    code, _, err = run_cli(run_experiments.main, *common, "--output_dir", elsewhere)
    assert code == 0 and not err, "what is said is trained as what goes without saying"
    path.write_text(whole)
    record = json.loads(path.read_text())
    trained = load_checkpoint(next(smoke.glob("checkpoints/audio_alone*/best_model.pth")))
    assert record["made_by"]["commit"] == trained["versions"].get("commit", "unknown")
    test = create_dataset("simulated", rooms, "test", image_size=32, modalities={"depth"})
    depths = [depth[depth > 0].double().mean().item() for depth in (test[i]["depth"] for i in range(len(test)))]
    assert record["images"] == test.ids and record["depths"] == pytest.approx(depths, rel=1e-4)
    record["settings"][0]["weight_decay"] = 0.5
    path.write_text(json.dumps(record))
    code, _, err = run_cli(run_experiments.main, *common, "--output_dir", elsewhere)
    assert code == 2 and "other settings (--weight_decay was 0.5, is 0.01)" in err and "--scores_dir" in err
    path.write_text("{}")
    code, _, err = run_cli(run_experiments.main, *common, "--output_dir", elsewhere)
    assert code == 2 and "no record of a test" in err and path.name in err


def test_a_test_on_other_data_is_not_taken_for_that_of_another_suite(tmp_path):
    runner = Runner(tmp_path, ("--dataset", "simulated", "--dataset_dir", "/data/rooms"))
    here = Evaluator(runner, SUITES["budget"](SETTING), [0], tmp_path / "scores")
    other_test = ("--dataset", "batvisionv1", "--dataset_dir", "/data/V1")
    there = dataclasses.replace(here, suite=SUITES["transfer"](dataclasses.replace(SETTING, other_location=None,
                                                                                   other_test=other_test)))  # fmt: skip
    run = next(row for row in there.suite.rows if row in here.suite.rows)
    assert {*here.files(run, 0)}.isdisjoint(there.files(run, 0))
    assert here.record(run, 0) != there.record(run, 0)
    assert there.record(run, 0).name.endswith("_dataset_batvisionv1_dataset_dir_v1.json")


def test_an_eye_of_other_rooms_is_tested_where_all_are(tmp_path):
    runner = Runner(tmp_path, ("--dataset", "simulated", "--dataset_dir", "/data/rooms"))
    evaluator = Evaluator(runner, SUITES["labels"](SETTING), [0])
    flags = {row.name: evaluator.data(row) for row in evaluator.suite.rows}
    eyes = {"RGB, Muon, other rooms, 12 epochs", "fusion, Muon, other rooms, 12 epochs"}
    assert {name for name, given in flags.items() if given} == eyes
    assert all(flags[name] == runner.data for name in eyes)


def test_teachers_of_other_rooms_alone_are_tested_where_all_are(tmp_path, rooms):
    runner = Runner(tmp_path, ("--dataset", "simulated", "--dataset_dir", f"{rooms}"))
    suite = run_experiments.choose_rows(SUITES["labels"](SETTING), ["other rooms, 12"])
    names, _ = Evaluator(runner, suite, [0]).tested
    assert {row.data for row in suite.rows} == {SETTING.other_data}
    assert names == create_dataset("simulated", rooms, "test", 32, modalities={"depth"}).ids


@pytest.mark.parametrize(("name", "students"), [("labels", 11), ("pairs", 12)])
def test_a_teacher_that_is_asked_once_is_asked_for_all_whom_it_teaches(tmp_path, name, students):
    runner = Runner(tmp_path, ("--dataset", "simulated"))
    taught = [row for row in SUITES[name](SETTING).rows if row.teacher]
    assert len(taught) == students and all(row.asks_once for row in taught)
    asked = {}
    for row, seed in itertools.product(taught, (0, 1)):
        command = runner.command(row, seed)
        pictures = [command[command.index(flag) + 1] for flag in ("--dataset_dir", "--pairs_dir") if flag in command]
        answers = Path(command[command.index("--cache_teacher") + 1])
        more = "_more_pairs" if "more pairs" in row.name else ""
        assert answers == tmp_path / "answers" / f"{row.teacher.folder(seed)}{more}" and "asked once" in row.name
        asked.setdefault((row.teacher.name, seed, *pictures), set()).add(answers)
    folders = [folder for answers in asked.values() for folder in answers]
    assert len({*folders}) == len(folders) == len(asked), "one for each teacher and what it is shown, and for no other"


def test_what_a_test_left_is_asked_for_where_it_is_missing_broken_or_old(tmp_path):
    figures, images, curves = (tmp_path / name for name in ("test.json", "test_images.csv", "metrics.csv"))
    whole = {
        figures: '{"baselines": {"mean_map": {"rmse": 1.0}}}',
        images: "id,depth,rmse,abs_rel,delta1\na,2.0,0.5,0.1,0.9\n",
        curves: "epoch,val_rmse\n1,0.5\n",
    }
    for file, text, said in (
        (curves, None, "put it back"),
        (figures, None, "tested anew"),
        (figures, "{", "tested anew"),
        (figures, '{"rmse": 1.0}', "tested anew"),
        (figures, "[]", "tested anew"),
        (images, "id,depth,rmse\na,2.0,0.5\n", "tested anew"),
        (images, "id,depth,rmse,abs_rel,delta1\na,2.0\n", "tested anew"),
    ):
        for path, content in whole.items():
            path.write_text(content)
        assert read_results(figures, images, 1, "", [], math.nan, {}).images == ["a"]
        file.unlink()
        if text is not None:
            file.write_text(text)
        with pytest.raises(DataError, match=f"{re.escape(f'{file}')} is .*{said}"):
            read_results(figures, images, 1, "", [], math.nan, {})
    images.write_text("id,depth\na,?\n")
    with pytest.raises(DataError, match="tested anew"):
        read_depths(images)


def test_a_record_that_a_report_could_not_take_is_refused(tmp_path):
    path = tmp_path / "a.json"
    made_by = dict.fromkeys(("commit", "Python", "libraries", "machine"), "x")
    scores = {"rmse": [0.5, 1], "abs_rel": [0.1, 0.1], "delta1": [0.9, 0.9]}
    record = Record("train.py --x", None, 1.0, [0.5, 0.4], [{}], ["a", "b"], [2.0, 2], scores, made_by)
    save(record, path)
    assert load(path, "train.py", [{}]) == record
    whole = json.loads(path.read_text())
    for change_of in (
        {"scores": scores | {"rmse": [0.5, None]}},
        {"scores": scores | {"delta1": "ab"}},
        {"scores": scores | {"abs_rel": [0.1]}},
        {"scores": [scores]},
        {"depths": [2.0, True]},
        {"minutes": "x"},
        {"mean_map": [1.0]},
        {"curve": None},
        {"curve": [0.5, None]},
        {"settings": None},
        {"settings": ["{}"]},
        {"images": [], "depths": [], "scores": {key: [] for key in scores}},
        {"images": [1, 2]},
        {"made_by": {}},
        {"made_by": made_by | {"commit": None}},
        {"command": ["train.py"]},
    ):
        path.write_text(json.dumps(whole | change_of))
        with pytest.raises(DataError, match=r"a\.json is no record of a test .*; delete it"):
            load(path, "train.py", [{}])


def test_curves_that_two_runs_wrote_are_refused(smoke, tmp_path):
    run = SUITES["smoke"](Setting(SMOKE, 3)).rows[0]
    folder = tmp_path / "results"
    shutil.copytree(smoke / "results" / run.folder(0), folder)
    files = folder / "test.json", folder / "test_images.csv"
    assert len(read_results(*files, 2, "", [], math.nan, {}).curve) == 2
    head, first, second = (folder / "metrics.csv").read_text().splitlines()
    (folder / "metrics.csv").write_text("\n".join([head, first, second, second, ""]))
    with pytest.raises(DataError, match=r"metrics.csv has 3 of 2 epochs"):
        read_results(*files, 2, "", [], math.nan, {})


def test_further_rooms_are_simulated_beside_the_rooms_where_a_row_needs_them(tmp_path, capsys):
    rooms = tmp_path / "Rooms"
    rooms.mkdir()
    args = run_experiments.create_parser().parse_args(["labels"])
    args.dataset_dir = rooms
    (rooms / "Hall").mkdir()
    (rooms / "Hall" / "train.csv").write_text("of another simulator")
    for suite, other, pairs, said in (
        ("labels", None, None, True),
        ("labels", rooms, None, False),
        ("pairs", rooms, rooms, False),
        ("pairs", None, rooms, True),
        ("pairs", None, None, False),  # which it needs
    ):
        args.suite, args.other_dataset_dir, args.pairs_dataset_dir = suite, other, pairs
        assert run_experiments.plan_further_rooms(args) == []
        printed = capsys.readouterr()
        assert ("rows of such are left out" in printed.err) == said and not printed.out
    args.suite, args.other_dataset_dir, args.pairs_dataset_dir = "labels", None, None
    told = {"layout": "batvisionv2", "train": 3, "val": 1, "test": 2, "image_size": 32, "seed": 4, "complete": True}
    for wrong in ({"complete": True}, told | {"train": "3"}, []):
        (rooms / "simulation.json").write_text(json.dumps(wrong))
        with pytest.raises(DataError, match=r"simulation\.json is broken"):
            run_experiments.plan_further_rooms(args)
    (rooms / "simulation.json").write_text(json.dumps(told))
    planned = run_experiments.plan_further_rooms(args)
    assert [folder.name for folder, _ in planned] == ["RoomsOther", "RoomsPairs"]
    needs = [Run("more", ("train.py", "--pairs_dir", f"{tmp_path / 'RoomsPairs'}"), 1)]
    run_experiments.simulate_further_rooms(planned, needs, planned=True)
    out = capsys.readouterr().out
    assert "--train 9 --val 1 --test 0 --image_size 32 --seed 6" in out and "RoomsOther" not in out
    assert not (tmp_path / "RoomsPairs").exists()
    (tmp_path / "RoomsPairs").write_text("not a folder")
    run_experiments.simulate_further_rooms(planned, [Run("none", ("train.py",), 1)], planned=False)
    with pytest.raises(DataError, match="RoomsPairs"):
        run_experiments.simulate_further_rooms(planned, needs, planned=False)


def test_a_command_is_the_same_on_every_machine(tmp_path):
    command = ["train.py", "--dataset_dir", "/data/Rooms", "--teacher", f"{tmp_path / 'checkpoints/a'}", "--name", "x"]
    assert without_folders(command, tmp_path) == "train.py --dataset_dir Rooms --teacher ./checkpoints/a --name x"
    inside = ["train.py", "--dataset_dir", f"{tmp_path / 'data/Rooms'}", *command[3:]]
    assert without_folders(inside, tmp_path) == without_folders(command, tmp_path), "wherever the data lie"


def test_a_dry_run_prints_commands_and_writes_nothing(tmp_path, rooms, run_cli):
    code, out, errors = run_cli(
        run_experiments.main,
        "ladder",
        "--dataset_dir",
        rooms,
        "--seeds",
        0,
        "--output_dir",
        tmp_path / "r",
        "--dry_run",
    )
    assert code == 0
    assert len([shlex.split(line) for line in out.splitlines()]) == 14, "of whom the network that sees teaches three"
    assert errors == "14 trainings, 1 at a time; what is done is not done again\n"
    assert not (tmp_path / "r").exists()


def test_rows_are_chosen_with_their_controls(tmp_path, rooms, run_cli):
    common = ("ladder", "--dataset_dir", rooms, "--seeds", 0, "--output_dir", tmp_path, "--dry_run")
    code, out, _ = run_cli(run_experiments.main, *common, "--only", "base residual")
    assert code == 0 and [line.split()[1] for line in out.splitlines()] == [
        "train_binaural_attention.py", "train_baseline.py"
    ]  # fmt: skip
    code, _, err = run_cli(run_experiments.main, *common, "--only", "base residual", "nothing")
    assert code == 2 and "--only nothing: the rows are" in err


def test_transfer_holds_a_location_out_for_all(tmp_path, rooms, run_cli):
    code, out, _ = run_cli(
        run_experiments.main, "transfer", "--dataset_dir", rooms, "--seeds", 0, "--output_dir", tmp_path, "--dry_run"
    )
    assert code == 0
    held = {re.search(r"--holdout_location (\S+)", line)[1] for line in out.splitlines()}
    assert len(held) == 1


def test_flags_that_would_have_no_effect_are_refused(tmp_path, rooms, run_cli):
    common = ("--dataset_dir", rooms, "--output_dir", tmp_path / "r", "--dry_run")
    for suite, flags, named in (
        ("ladder", ("--holdout_location", "Hall"), "--holdout_location has no effect in ladder"),
        ("smoke", ("--transfer_to", "nyu"), "--transfer_to has no effect in smoke"),
        ("transfer", ("--pairs_dataset_dir", rooms), "--pairs_dataset_dir has no effect in transfer"),
        ("transfer", ("--transfer_dir", rooms), "--transfer_dir has no effect without --transfer_to"),
        ("transfer", ("--transfer_to", "nyu", "--holdout_location", "Hall"), "are two tests"),
        ("transfer", ("--holdout_location", "Nowhere"), "Nowhere"),
        ("smoke", ("--preset", "gpu"), "--preset has no effect in smoke"),
        ("ladder", ("--gpu_ids", "97"), "--gpu_ids 97: this machine has"),
        ("labels", ("--pairs_dataset_dir", rooms), "--pairs_dataset_dir has no effect in labels; it is of pairs"),
        ("tune", ("--optimizer", "Muon"), "--optimizer has no effect in tune"),
        ("budget", ("--epochs", "3"), "--epochs has no effect in budget"),
    ):
        code, _, errors = run_cli(run_experiments.main, suite, *common, *flags)
        assert code == 2 and named in errors, (suite, flags, errors)


def test_data_that_no_row_can_learn_from_is_refused_before_the_first_training(tmp_path, rooms, run_cli):
    frames = write_nyu_b(tmp_path / "nyu", size=(48, 64), rows={"train": 4, "test": 2})
    bare = tmp_path / "bare"  # rooms of which nobody knows how to simulate more
    shutil.copytree(rooms, bare, ignore=shutil.ignore_patterns("simulation.json"))
    for suite, flags, named in (
        ("ladder", ("--dataset", "nyu", "--dataset_dir", frames), "audio"),
        (
            "transfer",
            ("--dataset_dir", rooms, "--transfer_to", "nyu", "--transfer_dir", tmp_path / "no"),
            "is no folder",
        ),
        ("transfer", ("--dataset_dir", rooms, "--transfer_to", "nyu", "--transfer_dir", frames), "audio"),
        ("labels", ("--dataset_dir", rooms, "--other_dataset_dir", tmp_path / "other"), "other"),
        ("pairs", ("--dataset_dir", rooms, "--pairs_dataset_dir", tmp_path / "pairs"), "is no folder"),
        ("pairs", ("--dataset_dir", bare), "needs --pairs_dataset_dir"),
    ):
        code, out, errors = run_cli(run_experiments.main, suite, *flags, "--output_dir", tmp_path / "r", "--dry_run")
        assert code == 2 and named in errors and errors.count("\n") == 1 and "python " not in out, (
            suite,
            flags,
            out,
            errors,
        )
    assert not (tmp_path / "other").exists() and not (tmp_path / "pairs").exists()


def test_data_without_pictures_are_taken_for_the_rows_that_need_none(tmp_path, rooms, run_cli):
    write_batvision_v1(tmp_path / "V1", camera=False)
    common = ("--seeds", 0, "--output_dir", tmp_path / "r", "--dry_run")
    v1 = ("--dataset", "batvisionv1", "--dataset_dir", tmp_path / "V1")
    to_v1 = ("--dataset_dir", rooms, "--transfer_to", "batvisionv1", "--transfer_dir", tmp_path / "V1")
    for suite, flags in (("ladder", v1), ("transfer", to_v1)):
        code, out, errors = run_cli(run_experiments.main, suite, *flags, *common)
        assert code == 0 and "train_binaural_attention.py" in out, errors


def test_a_dry_run_of_rooms_that_are_not_simulated_yet_simulates_none(tmp_path, run_cli):
    for suite, said in (("transfer", "--holdout_location Storage"), ("labels", f"--dataset_dir {tmp_path}/RoomsOther")):
        code, out, _ = run_cli(
            run_experiments.main, suite, "--dataset_dir", tmp_path / "Rooms", "--seeds", 0, "--dry_run"
        )
        assert code == 0 and said in out and "--steps_per_epoch 93" in out
    assert not list(tmp_path.iterdir())


def test_nothing_is_simulated_where_nothing_is_trained(tmp_path, rooms, run_cli, monkeypatch):
    """Nor anywhere in the place of rooms that a flag names."""
    monkeypatch.setattr("simulation.write_dataset", lambda *_, **__: pytest.fail("rooms are simulated"))
    empty, missing, begun, pictures = (tmp_path / name for name in ("empty", "missing", "begun", "pictures"))
    empty.mkdir()
    pictures.mkdir()
    (pictures / "0.png").write_bytes(b"")
    shutil.copytree(rooms, begun)
    manifest = begun / "simulation.json"
    manifest.write_text(manifest.read_text().replace('"complete": true', '"complete": false'))
    common = ("--seeds", 0, "--output_dir", tmp_path / "r")
    to_rooms = ("transfer", "--transfer_to", "simulated", "--transfer_dir")
    for folder, dry, suite in itertools.product(
        (empty, missing), ("--dry_run", "--report_only", "--jobs=1"),
        (("labels", "--other_dataset_dir"), ("pairs", "--pairs_dataset_dir"), to_rooms),
    ):  # fmt: skip
        code, out, errors = run_cli(run_experiments.main, *suite, folder, "--dataset_dir", rooms, *common, dry)
        assert (code, out) == (2, "") and errors.endswith(
            f"error: {suite[-1]} {folder} is no folder with data in it; name one\n"
        )
    for suite, folder, flag in (
        *((("smoke", "--dataset_dir"), folder, "--report_only") for folder in (empty, missing, begun, pictures)),
        (("smoke", "--dataset_dir"), pictures, "--dry_run"),
        *(((*to_rooms,), folder, flag) for folder in (begun, pictures) for flag in ("--dry_run", "--report_only")),
    ):
        data = () if suite[0] == "smoke" else ("--dataset_dir", rooms)
        code, out, errors = run_cli(run_experiments.main, *suite, folder, *data, *common, flag)
        assert (code, out, errors.count("\n")) == (2, "", 1) and f"{folder} does not hold all rooms" in errors
    for folder, steps in ((empty, 93), (begun, 1)):
        code, out, _ = run_cli(run_experiments.main, "ladder", "--dataset_dir", folder, *common, "--dry_run")
        assert code == 0 and f"--steps_per_epoch {steps} " in out, out
    assert not (tmp_path / "r").exists() and not missing.exists() and not list(empty.iterdir())


def test_folders_that_cannot_be_written_end_a_suite_before_it_begins(tmp_path, rooms, run_cli):
    (tmp_path / "file").write_text("")
    for flag in ("--output_dir", "--scores_dir"):
        common = ("smoke", "--dataset_dir", rooms, "--seeds", 0, "--output_dir", tmp_path / "r")
        code, out, errors = run_cli(run_experiments.main, *common, flag, tmp_path / "file")
        assert code == 2 and "cannot be written" in errors and "python train" not in out


def test_a_location_without_test_samples_is_not_held_out(tmp_path, rooms, run_cli):
    folder = tmp_path / "rooms"
    shutil.copytree(rooms, folder)
    (folder / "simulation.json").unlink()
    places = sorted(path.parent.name for path in folder.glob("*/test.csv"))
    last = folder / places[-1] / "test.csv"
    last.write_text(last.read_text().splitlines()[0] + "\n")
    code, out, _ = run_cli(run_experiments.main, "transfer", "--dataset_dir", folder, "--seeds", 0, "--dry_run")
    tested = create_dataset("simulated", folder, "test", modalities={"depth"}).locations
    assert code == 0 and f"--holdout_location {max(tested)} " in out and max(tested) < places[-1]


def test_scores_of_other_data_under_the_same_names_are_refused_and_tests_of_them_repeated(
    smoke, tmp_path, rooms, run_cli
):
    """The folders have the same name, the samples too; the depth is another."""
    other, kept, runs = tmp_path / rooms.name, tmp_path / "scores", tmp_path / "runs"
    shutil.copytree(rooms, other)
    (other / "simulation.json").unlink()
    for path in other.glob("*/depth/*.npy"):
        np.save(path, np.load(path) // 2)
    shutil.copytree(smoke, runs)
    common = ("smoke", "--seeds", 0, "--output_dir", runs, "--report_only", "--dataset_dir")
    code, _, errors = run_cli(run_experiments.main, *common, rooms, "--scores_dir", kept)
    assert code == 0, errors
    code, _, errors = run_cli(run_experiments.main, *common, other, "--scores_dir", kept)
    assert code == 2 and "is of a test on other data" in errors
    suite, data = SUITES["smoke"](Setting(SMOKE, 3)), ("--dataset", "simulated", "--dataset_dir", f"{rooms}")
    evaluator = Evaluator(Runner(runs, data, SMOKE.size), suite, [0])
    _, images = evaluator.files(suite.rows[0], 0)
    before = images.read_text()
    assert evaluator.test(suite.rows[0], 0) is None and images.read_text() == before
    images.write_text(before.replace(before.splitlines()[1].split(",")[1], "9.5"))
    assert read_depths(images)[evaluator.tested[0][0]] == 9.5
    assert evaluator.test(suite.rows[0], 0) is None
    assert evaluator.is_of_this_test(read_depths(images)), "it was tested anew"
    evaluator.runner.best(suite.rows[0], 0).unlink()
    assert "is not there" in evaluator.test(suite.rows[0], 0)


def test_a_training_whose_validation_has_no_measured_depth_has_no_curve(smoke, tmp_path):
    run = SUITES["smoke"](Setting(SMOKE, 3)).rows[0]
    folder = tmp_path / "results"
    shutil.copytree(smoke / "results" / run.folder(0), folder)
    (folder / "metrics.csv").write_text("epoch,val_distance\n1,0.5\n2,0.4\n")
    assert read_results(folder / "test.json", folder / "test_images.csv", 2, "", [], math.nan, {}).curve == []


def test_where_there_is_nothing_to_report_the_folder_and_the_trainings_are_named(rooms, tmp_path, run_cli):
    flags = ("smoke", "--report_only", "--dataset_dir", rooms, "--output_dir", tmp_path)
    code, _, errors = run_cli(run_experiments.main, *flags)
    assert code == 2 and errors.count("\n") == 1
    assert f"there is nothing to report in {tmp_path}: audio alone, 50 % labels, 2 epochs, seed 0: 0 of its 2" in errors
    assert "and 9 more" in errors
