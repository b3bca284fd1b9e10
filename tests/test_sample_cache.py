"""Prepared samples on the disk: the same samples, made once, whole under a kill, and never those of other files."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from make_data import write_batvision_v1, write_batvision_v2, write_images, write_nyu_a

import train_binaural_attention
import train_distill_any_depth
import train_rgb_depth
from dataloaders import CropRule, create_dataset, create_loader
from dataloaders.base import DepthDataset
from dataloaders.sample_cache import FORMS, key_of
from errors import DataError, OptionError
from training.checkpoint import load_checkpoint
from training.mapped_rows import MappedRows, open_whole

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def v2(tmp_path_factory):
    return write_batvision_v2(tmp_path_factory.mktemp("v2"), locations=("Attic",), rows={"train": 6, "val": 2})


@pytest.fixture
def own_v2(v2, tmp_path):
    return Path(shutil.copytree(v2, tmp_path / "data"))


@pytest.fixture
def prepared(monkeypatch):
    """Which rows and modalities were prepared from their files."""
    calls = []
    prepare = DepthDataset.prepare

    def counting(self, index, modality):
        calls.append((modality, index))
        return prepare(self, index, modality)

    monkeypatch.setattr(DepthDataset, "prepare", counting)
    return calls


def opened(root, cache, split="train", name="batvisionv2", num_workers=0, **options):
    """A data set whose loader has been made."""
    dataset = create_dataset(name, root, split, options.pop("size", 16), cache_dir=cache, **options)
    create_loader(dataset, 2, shuffle=False, num_workers=num_workers)
    return dataset


def folders(cache):
    return sorted(path.name.rsplit("-", 1)[0] for path in cache.iterdir() if path.is_dir())


# -------------------------------------------------------------------------------------------------------------- samples


@pytest.mark.parametrize("split", ["train", "val"])
def test_samples_are_the_same_with_and_without_a_cache(v2, tmp_path, split, prepared):
    options = {"augment": True, "seed": 3, "label_fraction": 0.5}
    plain = create_dataset("batvisionv2", v2, split, 16, **options)
    expected = [plain[(epoch, index)] for epoch in (1, 2) for index in range(len(plain))]
    opened(v2, tmp_path, split)
    prepared.clear()
    cached = opened(v2, tmp_path, split, **options)
    samples = [cached[(epoch, index)] for epoch in (1, 2) for index in range(len(cached))]
    assert prepared == [], "whoever is labelled: the cache is the same"
    for ours, theirs in zip(samples, expected, strict=True):
        assert ours.keys() == theirs.keys() and ours["id"] == theirs["id"] and ours["index"] == theirs["index"]
        assert torch.equal(ours["rgb"], theirs["rgb"]) and torch.equal(ours["depth"], theirs["depth"])
        assert torch.equal(ours["audio"], theirs["audio"].half().float())
        assert all(ours[key].dtype == torch.float32 for key in ("audio", "rgb", "depth"))
    assert cached.labelled.sum() == (3 if split == "train" else 2)


def test_spectrograms_are_rounded_by_less_than_a_two_thousandth(samples_dir, tmp_path):
    """The figures of the module's docstring, on a real recording."""
    root = samples_dir / "BatvisionV2"
    exact = create_dataset("batvisionv2", root, "train", 256, modalities={"audio"})[0]["audio"]
    kept = opened(root, tmp_path, size=256, modalities={"audio"})[0]["audio"]
    assert ((kept - exact).abs() <= exact * 2**-11).all()
    heard = [torch.log1p(audio / 1e-3) / np.log(1001) for audio in (kept, exact)]
    assert 1e-5 < (heard[0] - heard[1]).abs().max() < 7.1e-5


@pytest.mark.parametrize(
    ("write", "name", "form"),
    [(write_batvision_v1, "batvisionv1", "uint16"), (write_nyu_a, "nyu", "float32")],
    ids=["whole millimetres with NaN holes", "8 bits over 10 m"],
)
def test_depth_is_kept_to_the_bit_in_the_smallest_form_that_does(tmp_path, write, name, form):
    root = write(tmp_path / "data")
    plain = create_dataset(name, root, "train", 16, modalities={"depth"})
    cached = opened(root, tmp_path / "cache", name=name, modalities={"depth"})
    assert folders(tmp_path / "cache") == [f"{name}-depth-{form}"]
    for index in range(len(plain)):
        assert torch.equal(cached[index]["depth"], plain[index]["depth"])


def test_one_map_between_the_millimetres_moves_all_to_float32(own_v2, tmp_path, prepared):
    path = own_v2 / "Attic/depth/depth_5.npy"
    np.save(path, np.load(path) + np.float32(0.25))
    expected = create_dataset("batvisionv2", own_v2, "train", 16, modalities={"depth"})[4]["depth"]
    cached = opened(own_v2, tmp_path / "cache", modalities={"depth"})
    assert folders(tmp_path / "cache") == ["batvisionv2-depth-float32"]
    assert torch.equal(cached[4]["depth"], expected)
    prepared.clear()
    opened(own_v2, tmp_path / "cache", modalities={"depth"})
    assert prepared == []


def test_a_kill_while_a_form_is_given_up_is_made_up_for(own_v2, tmp_path, monkeypatch):
    path = own_v2 / "Attic/depth/depth_5.npy"
    np.save(path, np.load(path) + np.float32(0.25))

    def killed(folder):
        (folder / "cache.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        opened(own_v2, tmp_path / "cache", modalities={"depth"})
    expected = create_dataset("batvisionv2", own_v2, "train", 16, modalities={"depth"})[4]["depth"]
    assert torch.equal(opened(own_v2, tmp_path / "cache", modalities={"depth"})[4]["depth"], expected)


def test_a_cache_may_be_larger_than_the_memory(tmp_path):
    """It is laid out, and opened to be read; a file that is all holes takes no room on the disk."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    MappedRows(tmp_path / "small", {"of": "what"}, (2, 4), np.uint8, flag="--cache_dir").mark(np.array([0, 1]))
    np.lib.format.open_memmap(tmp_path / "small/rows.npy", mode="w+", dtype=np.uint8, shape=(2, memory)).flush()
    rows = open_whole(tmp_path / "small", (2, memory), np.uint8)
    assert rows.shape == (2, memory) and rows[1, memory - 1] == 0 and not rows.flags.writeable


def test_every_millimetre_that_16_bits_hold_comes_back_to_the_bit():
    metres = torch.arange(65_536).float() / 1000
    form = FORMS["depth"][0]
    assert torch.equal(form.decode(form.kept(metres)), metres)
    assert form.kept(torch.tensor([65.536])) is None
    assert form.kept(torch.tensor([1.0005])) is None


def test_magnitudes_beyond_float16_are_kept_in_float32():
    half, single = FORMS["audio"]
    loud = torch.tensor([7e4])
    assert half.kept(loud) is None and torch.equal(single.decode(single.kept(loud)), loud)


def test_what_is_done_to_a_sample_does_not_reach_the_cache(v2, tmp_path):
    """float32 is handed out as a copy, too."""
    for modality, forms in FORMS.items():
        kept = forms[-1].kept(torch.full((2,), 0.6 if modality != "rgb" else 0.2))
        forms[-1].decode(kept).zero_()
        assert (forms[-1].decode(kept) > 0).all()


# ------------------------------------------------------------------------------------------------------------------ key


def test_each_modality_is_prepared_once_for_all_who_need_it(v2, tmp_path, prepared):
    opened(v2, tmp_path, modalities={"rgb", "depth"})
    assert len(prepared) == 12
    opened(v2, tmp_path, modalities={"audio", "depth"})
    assert len(prepared) == 18 and {modality for modality, _ in prepared[12:]} == {"audio"}
    opened(v2, tmp_path)
    assert len(prepared) == 18
    assert folders(tmp_path) == [f"batvisionv2-{kind}" for kind in ("audio-float16", "depth-uint16", "rgb-uint8")]


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"size": 24}, {"audio", "rgb", "depth"}),
        ({"max_depth": 8.0}, {"audio", "depth"}),
        ({"min_depth": 1.0}, {"depth"}),
        ({"audio_format": "mel"}, {"audio"}),
        ({"resample": True}, {"audio"}),
        ({"rgb_filter": "bicubic"}, {"rgb"}),
        ({"label_fraction": 0.5, "label_seed": 1, "augment": True, "seed": 7}, set()),
    ],
    ids=lambda value: "-".join(sorted(value)),
)
def test_what_shapes_a_sample_is_in_its_key_and_nothing_else(v2, change, again):
    def keys(**options):
        dataset = create_dataset("batvisionv2", v2, "train", options.pop("size", 16), **options)
        return {modality: key_of(dataset, modality) for modality in dataset.modalities}

    before, after = keys(), keys(**change)
    assert {modality for modality in before if before[modality] != after[modality]} == again


def test_files_that_changed_are_prepared_anew_and_the_old_cache_is_named(own_v2, tmp_path, prepared, caplog):
    caplog.set_level("INFO", "dataloaders")
    first = opened(own_v2, tmp_path / "cache", modalities={"rgb", "depth"})[1]["depth"]
    old = {path for path in (tmp_path / "cache").iterdir() if path.is_dir()}
    assert not any("out of date" in line for line in caplog.messages)
    path = own_v2 / "Attic/depth/depth_2.npy"
    np.save(path, np.load(path) + np.uint16(1))
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))
    prepared.clear()
    second = opened(own_v2, tmp_path / "cache", modalities={"rgb", "depth"})[1]["depth"]
    assert {modality for modality, _ in prepared} == {"depth"} and len(prepared) == 6
    assert not torch.equal(first, second)
    (stale,) = (line for line in caplog.messages if "out of date" in line)
    assert any(stale.startswith(f"{folder} ") and "depth" in folder.name for folder in old)


def test_other_rows_have_a_cache_of_their_own(own_v2, tmp_path, prepared):
    opened(own_v2, tmp_path / "cache", modalities={"rgb"})
    lines = (own_v2 / "Attic/train.csv").read_text().splitlines()
    (own_v2 / "Attic/train.csv").write_text("\n".join(lines[:-1]) + "\n")
    prepared.clear()
    opened(own_v2, tmp_path / "cache", modalities={"rgb"})
    assert len(prepared) == 5


def test_code_that_changed_makes_a_cache_old(v2, tmp_path, prepared, monkeypatch):
    opened(v2, tmp_path, modalities={"rgb"})
    monkeypatch.setattr("dataloaders.sample_cache._code", lambda: "changed")
    opened(v2, tmp_path, modalities={"rgb"})
    assert len(prepared) == 12


# ------------------------------------------------------------------------------------------- processes, kills, damages


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def test_a_kill_in_the_middle_costs_only_what_was_not_committed(v2, tmp_path, prepared, monkeypatch, two_threads):
    """Ctrl-C at the fifth row, while another thread may be at the sixth: with one row a thread, four rows stay."""
    monkeypatch.setattr("dataloaders.sample_cache.BATCH", 1)
    counting = DepthDataset.prepare

    def interrupted(self, index, modality):
        if index == 4:
            raise KeyboardInterrupt
        return counting(self, index, modality)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(DepthDataset, "prepare", interrupted)
        opened(v2, tmp_path, modalities={"depth"})
    assert {index for _, index in prepared} - {5} == {0, 1, 2, 3}
    prepared.clear()
    cached = opened(v2, tmp_path, modalities={"depth"})
    assert sorted(index for _, index in prepared) == [4, 5]
    plain = create_dataset("batvisionv2", v2, "train", 16, modalities={"depth"})
    assert all(torch.equal(cached[index]["depth"], plain[index]["depth"]) for index in range(6))


def test_threads_leave_everything_as_it_was(v2, tmp_path, two_threads):
    """A sample takes one thread each; computing goes on on both, and warnings that were heard are heard."""
    used = []
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("error")
        filters = list(warnings.filters)
        prepare = DepthDataset.prepare

        def noting(self, index, modality):
            used.append(torch.get_num_threads())
            return prepare(self, index, modality)

        patch.setattr(DepthDataset, "prepare", noting)
        opened(v2, tmp_path)
        assert list(warnings.filters) == filters
    assert set(used) == {1} and torch.get_num_threads() == 2


BUILD = """
import sys, time
from dataloaders import create_dataset, create_loader
from dataloaders.base import DepthDataset
root, cache, slow = sys.argv[1:]
prepare = DepthDataset.prepare
def slowly(self, index, modality):
    print(index, flush=True)
    if slow == "slow":
        time.sleep(0.5)
    return prepare(self, index, modality)
DepthDataset.prepare = slowly
create_loader(create_dataset("batvisionv2", root, "train", 16, modalities={"depth"}, cache_dir=cache), 2,
              shuffle=False, num_workers=0)
"""


def build_elsewhere(root, cache, pace):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}  # one row after the other
    command = [sys.executable, "-c", BUILD, str(root), str(cache), pace]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)


def test_one_process_prepares_while_another_waits_and_takes_over_when_it_is_killed(v2, tmp_path, prepared):
    first = build_elsewhere(v2, tmp_path, "slow")
    assert first.stdout.readline() == b"0\n"
    second = build_elsewhere(v2, tmp_path, "fast")
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stdout.close()
    read = second.communicate(timeout=120)[0].split()
    assert second.returncode == 0 and read == [b"0", b"1", b"2", b"3", b"4", b"5"], "nothing was committed yet"
    prepared.clear()
    cached = opened(v2, tmp_path, modalities={"depth"})
    assert prepared == []
    plain = create_dataset("batvisionv2", v2, "train", 16, modalities={"depth"})
    assert all(torch.equal(cached[index]["depth"], plain[index]["depth"]) for index in range(6))


def test_of_two_at_a_time_one_prepares_and_the_other_finds_it_made(v2, tmp_path, prepared, monkeypatch, caplog):
    """In two threads, between which the lock holds as it does between processes."""
    caplog.set_level("INFO", "dataloaders")
    begun, come = threading.Event(), threading.Event()
    counting = DepthDataset.prepare

    def slowly(self, index, modality):
        begun.set()
        assert come.wait(60)
        return counting(self, index, modality)

    monkeypatch.setattr(DepthDataset, "prepare", slowly)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(opened, v2, tmp_path, modalities={"depth"})
        assert begun.wait(60)
        second = threads.submit(opened, v2, tmp_path, modalities={"depth"})
        for _ in range(3000):
            if any("waiting for another" in line for line in caplog.messages):
                break
            time.sleep(0.01)
        come.set()
        samples = [future.result(60)[3]["depth"] for future in (first, second)]
    assert any("waiting for another" in line for line in caplog.messages)
    assert len(prepared) == 6 and torch.equal(*samples)


def test_workers_build_and_read_it_too(v2, tmp_path):
    cached = opened(v2, tmp_path, num_workers=2)
    plain = create_dataset("batvisionv2", v2, "train", 16)
    batches = list(create_loader(cached, 3, shuffle=False, num_workers=2))
    assert torch.equal(torch.cat([batch["rgb"] for batch in batches]), torch.stack([s["rgb"] for s in plain]))
    assert len(pickle.dumps(cached.cache)) < 2000, "a worker that is spawned is sent no samples"
    assert torch.equal(pickle.loads(pickle.dumps(cached.cache)).read("rgb", 2), plain[2]["rgb"])


def test_a_cache_may_be_read_only(v2, tmp_path):
    """Files of another user: nothing is locked, and nothing is written."""
    opened(v2, tmp_path, modalities={"rgb"})
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for lock in tmp_path.rglob("*.lock"):
        lock.unlink()
        before.pop(lock)
    before = {path: path.stat().st_mtime_ns for path in before}
    time.sleep(0.01)
    opened(v2, tmp_path, modalities={"rgb"})[0]["rgb"].zero_()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_broken_file_is_named_with_its_row(own_v2, tmp_path):
    (own_v2 / "Attic/depth/depth_3.npy").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"depth_3.npy cannot be read.*train.csv, row 4\)"):
        opened(own_v2, tmp_path / "cache", modalities={"depth"})


@pytest.mark.parametrize("name", ["rows.npy", "done.npy"])
def test_a_damaged_cache_is_named(v2, tmp_path, name):
    opened(v2, tmp_path, modalities={"rgb"})
    (path,) = tmp_path.glob(f"*/{name}")
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataError, match=r"damaged .*delete the folder"):
        opened(v2, tmp_path, modalities={"rgb"})


@pytest.mark.parametrize("rows", [np.zeros((3, 3, 16, 16), np.uint8), np.zeros((5, 3, 16, 16))])
def test_a_cache_that_holds_other_rows_is_named(v2, tmp_path, rows):
    opened(v2, tmp_path, modalities={"rgb"})
    (path,) = tmp_path.glob("*/rows.npy")
    np.save(path, rows)
    with pytest.raises(DataError, match=r"damaged \(rows.npy holds .*, not uint8 \[\d+, 3, 16, 16\]"):
        opened(v2, tmp_path, modalities={"rgb"})


def test_half_a_cache_whose_rows_were_cut_off_is_named(own_v2, tmp_path):
    """A copy that was broken off: opened to be written, NumPy would fill it up with zeros."""
    opened(own_v2, tmp_path / "cache", modalities={"depth"})
    (path,) = (tmp_path / "cache").glob("*/rows.npy")
    done = np.load(path.with_name("done.npy"))
    done[0] = 0
    np.save(path.with_name("done.npy"), done)
    size = path.stat().st_size
    os.truncate(path, size // 2)
    with pytest.raises(DataError, match=r"damaged .*delete the folder"):
        opened(own_v2, tmp_path / "cache", modalities={"depth"})
    assert path.stat().st_size == size // 2


def test_a_folder_has_one_cache_however_it_is_named(own_v2, tmp_path, prepared, monkeypatch):
    opened(own_v2, tmp_path / "cache", modalities={"rgb"})
    count = len(prepared)
    assert count
    monkeypatch.chdir(own_v2)
    for name in (".", f"../{own_v2.name}/", "./Attic/.."):
        opened(name, tmp_path / "cache", modalities={"rgb"})
    assert len(prepared) == count and len(folders(tmp_path / "cache")) == 1


def test_a_folder_that_cannot_be_written(v2, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match=r"--cache_dir .*cannot be written"):
        opened(v2, tmp_path / "file", modalities={"rgb"})


def test_what_is_drawn_anew_each_epoch_is_not_kept(tmp_path):
    root = write_images(tmp_path / "pictures")
    options = {"modalities": {"rgb"}, "cache_dir": tmp_path / "cache"}
    with pytest.raises(OptionError, match="--fixed_views"):
        create_dataset("images", root, "train", 28, crops=CropRule(2), **options)
    with pytest.raises(OptionError, match="--cache_dir"):
        create_dataset("images", root, "train", 28, native_depth=True, **options)


def test_pictures_that_train_and_validate_are_kept_once(tmp_path, prepared):
    root = write_images(tmp_path / "pictures")
    for split in ("train", "val"):
        opened(root, tmp_path / "cache", split, "images", modalities={"rgb"})
    assert len(prepared) == 5


# -------------------------------------------------------------------------------------------------------------- scripts


@pytest.mark.parametrize("script", [train_rgb_depth, train_binaural_attention], ids=["sees", "hears"])
def test_a_training_with_a_cache_ends_like_one_without(rooms, tmp_path, run_cli, prepared, script):
    """To the bit where storage is exact; within what the rounding of spectrograms does, where it is not."""

    def run(name, *more):
        prepared.clear()
        flags = ("--dataset", "simulated", "--dataset_dir", rooms, "--image_size", 32, "--base_channels", 4)
        flags += ("--batch_size", 4, "--nb_epochs", 1, "--num_workers", 0, "--augment", "--label_fraction", 0.5)
        code, out, err = run_cli(script.main, *flags, "--output_dir", tmp_path / name, "--experiment_name", "e", *more)
        assert code == 0, err
        state = load_checkpoint(tmp_path / name / "checkpoints/e/last.pth")
        return torch.cat([v.flatten() for v in state["model_state_dict"].values()]), len(prepared), out

    plain, _, _ = run("plain")
    first, built, said = run("first", "--cache_dir", tmp_path / "cache")
    second, read, _ = run("second", "--cache_dir", tmp_path / "cache")
    assert built == 2 * (12 + 4) and read == 0 and "preparing" in said
    assert torch.equal(first, second), "cold or warm"
    if script is train_rgb_depth:
        assert torch.equal(first, plain)
    else:
        assert not torch.equal(first, plain) and torch.allclose(first, plain, atol=2e-2)
        _, _, said = run("plain", "--resume", "--nb_epochs", 2, "--cache_dir", tmp_path / "cache")
        assert "cache_dir None -> given" in said


def test_crops_are_refused_beside_a_cache(tmp_path, run_cli):
    root = write_images(tmp_path / "pictures")
    flags = ("--dataset", "images", "--dataset_dir", root, "--teacher_checkpoints", tmp_path / "none.pth")
    code, _, error = run_cli(train_distill_any_depth.main, *flags, "--cache_dir", tmp_path / "cache")
    assert code == 2 and "--fixed_views" in error and len(error.splitlines()) == 1
