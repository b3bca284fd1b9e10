"""Files of simulated data sets: formats, determinism, resuming, and folders that must not be touched."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

import simulate_rooms
from errors import DataError, OptionError
from simulation import is_complete, is_simulated, write_dataset
from simulation.rooms import KINDS
from simulation.scenes import draw_sample

REPOSITORY = Path(__file__).parent.parent
SMALL: dict[str, Any] = {"train": 12, "val": 5, "test": 6, "image_size": 32, "workers": 2, "progress": False}


def content(folder):
    """Bytes of every file but the lock, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.name != ".simulation-lock"
    }


def command(folder, *options):
    return [sys.executable, str(REPOSITORY / "simulate_rooms.py"), "--output", str(folder), *map(str, options)]


def rows(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def batvision(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated") / "rooms"
    write_dataset(folder, **SMALL)
    return folder


@pytest.fixture(scope="module")
def nyu(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated") / "nyu"
    write_dataset(folder, layout="nyu", **SMALL)
    return folder


# ---- formats


def test_batvision_folders_columns_and_files(batvision):
    assert {path.name for path in batvision.iterdir() if path.is_dir()} == set(KINDS)
    counts = dict.fromkeys(("train", "val", "test"), 0)
    seen = set()
    for location in KINDS:
        for split in counts:
            header, *body = rows(batvision / location / f"{split}.csv")
            assert ",".join(header) == (
                "index,time,left audio time,right audio time,audio path,audio file name,"
                "camera time,camera path,camera file name,depth time,depth path,depth file name"
            )
            counts[split] += len(body)
            for values in body:
                row = dict(zip(header, values, strict=True))
                for kind, suffix in (("audio", "wav"), ("camera", "jpeg"), ("depth", "npy")):
                    assert row[f"{kind} path"] == f"{location}/{kind}/"
                    assert row[f"{kind} file name"] == f"{kind}_{row['index']}.{suffix}"
                    file = batvision / row[f"{kind} path"] / row[f"{kind} file name"]
                    assert file.is_file() and file not in seen
                    seen.add(file)
    assert counts == {"train": 12, "val": 5, "test": 6}
    assert len(seen) == 3 * 23


def test_batvision_audio_is_24_bit_in_32_bit_containers(batvision):
    path = batvision / "Hall" / "audio" / "audio_0.wav"
    info = soundfile.info(path)
    assert (info.samplerate, info.channels, info.subtype) == (44100, 2, "PCM_32")
    assert info.frames >= int(2 * 30 / 340 * 44100), "the cut at 30 m finds all its samples"
    audio, _ = soundfile.read(path, dtype="int32")
    assert not (audio & 0xFF).any() and (audio & 0xFF00).any()
    loud = np.flatnonzero(np.abs(audio / 2**31).max(1) > 0.1)[0]
    assert loud / 44100 == pytest.approx(0.0066, abs=0.0004)
    expected = draw_sample(0, "train", list(KINDS).index("Hall"), 32).audio
    assert expected is not None
    np.testing.assert_allclose(audio / 2**31, expected.T, atol=2e-7)


def test_batvision_depth_and_camera(batvision):
    depth = np.load(batvision / "Office" / "depth" / "depth_0.npy")
    assert depth.dtype == np.uint16 and depth.shape == (32, 32)
    sample = draw_sample(0, "train", list(KINDS).index("Office"), 32)
    np.testing.assert_array_equal(depth == 0, sample.lost)
    np.testing.assert_allclose(depth[~sample.lost] / 1000, sample.depth[~sample.lost], atol=5.1e-4)
    image = Image.open(batvision / "Office" / "camera" / "camera_0.jpeg")
    assert image.format == "JPEG" and image.size == (32, 32) and image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - sample.rgb).mean() < 8


def test_a_fifth_of_the_depth_pixels_is_missing():
    lost = [draw_sample(1, "train", index, 64, with_audio=False).lost.mean() for index in range(100)]
    assert 0.16 < np.mean(lost) < 0.24
    assert np.std(lost) > 0.03


def test_holes_prefer_far_and_slanted_surfaces():
    from simulation.sensors import measure

    even = np.full((64, 64), 2.0, np.float32)
    bright = np.full((64, 64), 0.5, np.float32)

    def share(depth, slant, reflectance):
        rng = np.random.default_rng(0)
        return np.mean([measure(depth, slant, reflectance, rng)[1].mean() for _ in range(20)])

    facing = np.ones((64, 64), np.float32)
    plain = share(even, facing, bright)
    assert share(even * 4, facing, bright) > 2 * plain
    assert share(even, facing * 0.1, bright) > 2 * plain
    assert share(even, facing, bright * 0.1) > 2 * plain
    step = even.copy()
    step[:, 32:] = 3.0
    lost = np.mean([measure(step, facing, bright, np.random.default_rng(seed))[1] for seed in range(40)], 0)
    assert lost[:, 31].mean() > lost[:, 20].mean() + 0.4


def test_nyu_lists_and_depth_units(nyu):
    train, test = rows(nyu / "nyu2_train.csv"), rows(nyu / "nyu2_test.csv")
    assert len(train) == 12 + 5 and len(test) == 6
    assert test[0] == ["data/nyu2_test/00000_colors.png", "data/nyu2_test/00000_depth.png"]
    assert len({Path(image).parent for image, _ in train}) == 17, "each room is a scene"
    for split, table in (("train", train[:12]), ("val", train[12:]), ("test", test)):
        for index, (image, depth) in enumerate(table):
            sample = draw_sample(0, split, index, 32, with_audio=False)
            rgb = Image.open(nyu / image.removeprefix("data/"))
            values = np.asarray(Image.open(nyu / depth.removeprefix("data/")))
            assert rgb.size == values.shape == (32, 32)
            metres = np.minimum(sample.depth, 10)
            if split == "test":
                assert rgb.format == "PNG" and values.dtype == np.uint16 and values.max() <= 10_000
                np.testing.assert_array_equal(values == 0, sample.lost)
                np.testing.assert_allclose(values[~sample.lost] / 1000, metres[~sample.lost], atol=5.1e-4)
            else:
                assert Path(image).parent.name.endswith("_out") and rgb.format == "JPEG"
                assert values.dtype == np.uint8 and values.min() > 0, "holes are filled"
                np.testing.assert_allclose(values / 255 * 10, metres, atol=5 / 255 + 1e-6)


# ---- determinism, resuming, two at once


def test_bytes_do_not_depend_on_the_number_of_workers(batvision, tmp_path):
    write_dataset(tmp_path / "one", **{**SMALL, "workers": 1})
    assert content(tmp_path / "one") == content(batvision)


def test_another_seed_gives_other_rooms(batvision, tmp_path):
    write_dataset(tmp_path / "other", **SMALL, seed=1)
    ours, theirs = content(batvision), content(tmp_path / "other")
    assert ours.keys() == theirs.keys()
    same = [name for name in ours if ours[name] == theirs[name]]
    assert all(name.endswith(".csv") for name in same)


def test_complete_data_set_is_left_alone(batvision):
    before = {path: path.stat().st_mtime_ns for path in batvision.rglob("*")}
    write_dataset(batvision, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in batvision.rglob("*")} == before
    assert is_simulated(batvision) and is_complete(batvision)
    assert not [path for path in batvision.rglob("*") if "partial" in path.name]


def test_killed_run_is_continued_to_the_same_bytes(tmp_path):
    options = ("--train", 150, "--val", 3, "--test", 3, "--image_size", 48, "--workers", 2)
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    process = subprocess.Popen(command(broken, *options), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(broken.glob("*/depth/*.npy"))) < 20:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert is_simulated(broken) and not is_complete(broken)
    assert not list(broken.glob("*/*.csv")), "lists come last"
    time.sleep(0.3)  # its workers end after the sample at hand
    kept = {path: path.stat().st_mtime_ns for path in broken.glob("*/depth/*.npy")}
    assert len(kept) < 156
    subprocess.run(command(broken, *options), check=True, capture_output=True)
    for path, written in kept.items():
        whole_sample = path.parent.parent / "audio" / path.name.replace("depth", "audio").replace("npy", "wav")
        assert whole_sample.is_file() and path.stat().st_mtime_ns >= written
    assert sum(path.stat().st_mtime_ns == written for path, written in kept.items()) >= len(kept) - 2
    subprocess.run(command(whole, *options), check=True, capture_output=True)
    assert is_complete(broken) and content(broken) == content(whole)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_says_so_in_one_line(tmp_path, stop):
    options = ("--train", 300, "--val", 0, "--test", 0, "--image_size", 48, "--workers", 1)
    process = subprocess.Popen(
        command(tmp_path / "rooms", *options),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job would ignore it
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("rooms/*/depth/*.npy")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, stop)  # as a terminal or a batch system does: to parent and workers
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.splitlines() == ["simulate_rooms.py: interrupted"]
    assert is_simulated(tmp_path / "rooms") and not is_complete(tmp_path / "rooms")


def test_two_processes_at_once_write_one_data_set(batvision, tmp_path):
    options = ("--train", 12, "--val", 5, "--test", 6, "--image_size", 32, "--workers", 1)
    both = [
        subprocess.Popen(command(tmp_path / "rooms", *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in both:
        process.communicate(timeout=60)
    assert [process.returncode for process in both] == [0, 0]
    assert content(tmp_path / "rooms") == content(batvision)


def test_second_process_waits_for_the_first(tmp_path):
    with (tmp_path / ".simulation-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        options = ("--train", 1, "--val", 0, "--test", 0, "--image_size", 16, "--workers", 1)
        process = subprocess.Popen(command(tmp_path, *options), stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        assert process.stderr.readline().startswith("waiting for another process")
        time.sleep(0.2)
        assert process.poll() is None and not is_simulated(tmp_path)
    process.communicate(timeout=60)
    assert process.returncode == 0 and is_complete(tmp_path)


# ---- refusals


@pytest.mark.parametrize(
    "change", [{"seed": 3}, {"train": 13}, {"image_size": 64}, {"layout": "nyu"}], ids=lambda change: next(iter(change))
)
def test_other_settings_in_the_same_folder_are_refused(batvision, change):
    before = content(batvision)
    with pytest.raises(DataError, match=next(iter(change))):
        write_dataset(batvision, **{**SMALL, **change})
    assert content(batvision) == before


@pytest.mark.parametrize("name", ["train.csv", "Attic/train.csv", "notes.txt"])
def test_foreign_folder_is_never_touched(tmp_path, name):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("index\n")
    with pytest.raises(DataError, match="not simulated"):
        write_dataset(tmp_path, **SMALL)
    assert content(tmp_path) == {name: b"index\n"} and not (tmp_path / ".simulation-lock").exists()
    assert not is_simulated(tmp_path) and not is_complete(tmp_path)


def test_damaged_manifest_is_refused(tmp_path):
    (tmp_path / "simulation.json").write_text('{"version": 1, "se')
    with pytest.raises(DataError, match="damaged"):
        write_dataset(tmp_path, **SMALL)


def test_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "rooms").write_text("")
    with pytest.raises(DataError, match="is a file"):
        write_dataset(tmp_path / "rooms", **SMALL)


def test_other_version_of_the_generator_is_refused(batvision, tmp_path):
    manifest = json.loads((batvision / "simulation.json").read_text())
    (tmp_path / "simulation.json").write_text(json.dumps({**manifest, "version": 0}))
    with pytest.raises(DataError, match="version 0"):
        write_dataset(tmp_path, **SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": -1}, "--train -1"),
        ({"train": 0, "val": 0, "test": 0}, "all 0"),
        ({"image_size": 15}, "--image_size 15"),
        ({"image_size": 4096}, "--image_size 4096"),
        ({"seed": -1}, "--seed -1"),
        ({"workers": 0}, "--workers 0"),
        ({"layout": "kitti"}, "kitti"),
    ],
)
def test_nonsense_settings_are_refused_before_anything_is_written(tmp_path, change, message):
    with pytest.raises(OptionError, match=message):
        write_dataset(tmp_path / "rooms", **{**SMALL, **change})
    assert not (tmp_path / "rooms").exists()


def test_splits_may_be_empty(tmp_path):
    write_dataset(tmp_path / "rooms", **{**SMALL, "train": 2, "val": 0, "test": 0})
    assert [len(rows(path)) for path in sorted(tmp_path.glob("rooms/*/train.csv"))] == [2, 2]
    assert [len(rows(path)) for path in sorted(tmp_path.glob("rooms/*/val.csv"))] == [1, 1]


def test_script_says_what_is_wrong_in_one_line(batvision, tmp_path):
    result = subprocess.run(command(batvision, "--train", 1), capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("simulate_rooms.py: error: ") and result.stderr.count("\n") == 1


def test_a_folder_that_cannot_be_listed_is_one_line(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "rooms").mkdir()
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=r"rooms: .*Permission denied"):
        write_dataset(tmp_path / "rooms", **SMALL)


def test_help_shows_no_default_that_says_nothing():
    text = simulate_rooms.create_parser().format_help()
    assert "None" not in text
    assert "one per core); they change nothing in the data" in " ".join(text.split())


def test_script_runs_from_any_folder(tmp_path):
    (tmp_path / "simulation.py").write_text("raise RuntimeError('not this one')\n")
    options = ("--train", 1, "--val", 0, "--test", 0, "--image_size", 16, "--workers", 1)
    subprocess.run(command("rooms", *options), cwd=tmp_path, check=True, capture_output=True)
    assert is_complete(tmp_path / "rooms")


def test_script_takes_no_abbreviations_and_writes_through_main(tmp_path, capsys):
    with pytest.raises(SystemExit):
        simulate_rooms.main(["--output", str(tmp_path / "rooms"), "--image", "32"])
    options = ["--format", "nyu", "--train", "1", "--val", "0", "--test", "1", "--image_size", "16", "--workers", "1"]
    simulate_rooms.main(["--output", str(tmp_path / "rooms"), *options])
    assert "complete: 2 rooms" in capsys.readouterr().out
    simulate_rooms.main(["--output", str(tmp_path / "rooms"), *options])
    assert "already complete" in capsys.readouterr().out
