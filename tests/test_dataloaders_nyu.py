"""Metres in all four layouts of NYU Depth V2, and a validation split that never touches the test frames."""

import logging
import shutil
import sys

import numpy as np
import pytest
import torch
from make_data import (
    save_png16,
    write_csv,
    write_nyu_a,
    write_nyu_b,
    write_nyu_c,
    write_nyu_d,
    write_nyu_of_livingroom,
)
from PIL import Image

from dataloaders import create_dataset
from dataloaders.matlab import read_splits
from errors import DataError, OptionError


def native(root, split="train", index=0, **options):
    return create_dataset("nyu", root, split, 16, native_depth=True, **options)[index]["depth"][0].numpy()


def valid_millimetres(path):
    values = np.asarray(Image.open(path)).astype(np.float32) / 1000
    return np.where((values > 1e-3) & (values < 10), values, 0)


# --------------------------------------------------------------------------------------------------------------- units


def test_csv_layout_trains_on_8_bits_and_tests_on_millimetres(tmp_path):
    root = write_nyu_a(tmp_path)
    dataset = create_dataset("nyu", root, "train", 16, native_depth=True)
    values = np.asarray(Image.open(root / "nyu2_train/study_0002_out/1.png")).astype(np.float64)
    expected = np.where(values < 255, values / 255 * 10, 0)
    assert dataset.ids[0] == "study_0002_out/1"
    np.testing.assert_allclose(dataset[0]["depth"][0].numpy(), expected, atol=1e-5)
    np.testing.assert_array_equal(native(root, "test", 1), valid_millimetres(root / "nyu2_test/00001_depth.png"))


def test_five_metres_are_five_metres_in_train_and_test(tmp_path):
    root = write_nyu_a(tmp_path)
    Image.fromarray(np.full((8, 8), 128, np.uint8)).save(root / "nyu2_train/study_0002_out/1.png")
    save_png16(root / "nyu2_test/00000_depth.png", np.full((8, 8), 5020))
    assert native(root).mean() == pytest.approx(5.02, abs=0.01)
    assert native(root, "test").mean() == pytest.approx(5.02, abs=1e-5)


def test_folder_layout_with_real_frames(tmp_path, samples_dir):
    write_nyu_of_livingroom(tmp_path, samples_dir, train=15, test=5)
    original = np.asarray(Image.open(samples_dir / "livingroom/depth/00000.png"))
    depth = native(tmp_path)
    assert depth.shape == (480, 640)
    np.testing.assert_array_equal(depth, original.astype(np.float32) / 1000)
    sizes = [len(create_dataset("nyu", tmp_path, split)) for split in ("train", "val", "test")]
    assert sizes == [13, 2, 5]
    sample = create_dataset("nyu", tmp_path, "test", 64)[0]
    assert sample["rgb"].shape == (3, 64, 64) and sample["depth"].shape == (1, 64, 64)
    assert 0.5 < sample["depth"][sample["depth"] > 0].median() < 4


def test_list_layout(tmp_path):
    root = write_nyu_d(tmp_path)
    dataset = create_dataset("nyu", root, "train", 16, native_depth=True)
    expected = valid_millimetres(root / "sync/study_0002/sync_depth_00001.png")
    np.testing.assert_array_equal(dataset[1]["depth"][0].numpy(), expected)  # a path that begins with /
    assert (expected == 0).mean() > 0.1
    test = create_dataset("nyu", root, "test", 16, native_depth=True)
    expected = valid_millimetres(root / "official_splits/test/bathroom/sync_depth_00002.png")
    np.testing.assert_array_equal(test[2]["depth"][0].numpy(), expected)


@pytest.mark.parametrize("matlab5", [False, True])
def test_matlab_layout(tmp_path, matlab5):
    h5py = pytest.importorskip("h5py")
    if matlab5:
        pytest.importorskip("scipy")
    root = write_nyu_c(tmp_path, frames=12, tests=3, matlab5=matlab5)
    with h5py.File(root / "nyu_depth_v2_labeled.mat") as file:
        raw, pictures = file["rawDepths"][:], file["images"][:]
    dataset = create_dataset("nyu", root, "test", (24, 32), native_depth=True)
    assert [dataset.rows[i].number for i in range(3)] == [10, 11, 12]  # MATLAB counts from 1
    sample = dataset[0]
    np.testing.assert_array_equal(sample["depth"][0].numpy(), raw[9].T)
    np.testing.assert_allclose(sample["rgb"].numpy(), pictures[9].transpose(0, 2, 1) / 255, atol=1e-6)
    assert [len(create_dataset("nyu", root, split)) for split in ("train", "val")] == [8, 1]
    loaders = torch.utils.data.DataLoader(dataset, num_workers=2)
    assert torch.equal(torch.cat([batch["depth"] for batch in loaders])[0], sample["depth"])


def test_matlab_layout_without_raw_depth_and_without_h5py(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    root = write_nyu_c(tmp_path)
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "a") as file:
        del file["rawDepths"]
        filled = file["depths"][0].T
    np.testing.assert_array_equal(native(root), filled)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match="pip install h5py"):
        create_dataset("nyu", root)


def test_broken_matlab_files(tmp_path):
    h5py = pytest.importorskip("h5py")
    root = write_nyu_c(tmp_path)
    splits, labelled = root / "splits.mat", root / "nyu_depth_v2_labeled.mat"
    good = splits.read_bytes()
    splits.write_bytes(good[:100])
    with pytest.raises(DataError, match=r"splits\.mat cannot be read as a MATLAB file"):
        create_dataset("nyu", root)
    splits.unlink()
    with pytest.raises(DataError, match=r"splits\.mat is missing"):
        create_dataset("nyu", root)
    with h5py.File(splits, "w") as file:
        file["trainNdxs"] = np.array([[1.0, 99.0]])
    with pytest.raises(DataError, match=r"names frame 99; .* holds 12"):
        create_dataset("nyu", root)
    with pytest.raises(DataError, match="has no 'testNdxs'; found: trainNdxs"):
        create_dataset("nyu", root, "test")
    splits.write_bytes(good)
    labelled.write_bytes(labelled.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"labeled\.mat cannot be read as HDF5"):
        create_dataset("nyu", root)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64])
def test_splits_of_matlab_5(tmp_path, compressed, dtype):
    io = pytest.importorskip("scipy.io")
    path = tmp_path / "splits.mat"
    numbers = np.array([[3], [200], [7]], dtype=dtype)
    variables = {
        "note": "text",
        "one": np.array([[1]], dtype),
        "trainNdxs": numbers,
        "cells": np.array([1, "a"], object),
    }
    io.savemat(path, variables, do_compression=compressed)
    assert read_splits(path, "trainNdxs") == [3, 200, 7]
    assert read_splits(path, "one") == [1]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"splits\.mat"):
        read_splits(path, "cells")


def test_depth_that_is_in_no_known_unit_is_refused(tmp_path):
    root = write_nyu_a(tmp_path)
    path = root / "nyu2_test/00000_depth.png"
    for values, part in (
        (np.full((8, 8), 40_000, np.uint16), "reaches 40000"),
        (np.full((8, 8), 200, np.uint16), "reaches 200"),
        (np.full((8, 8), 200, np.uint8), "has 8 bits"),
        (np.full((8, 8, 3), 200, np.uint8), "no single-channel"),
    ):
        Image.fromarray(values).save(path)
        with pytest.raises(DataError, match=rf"00000_depth\.png.*{part}.*nyu2_test\.csv, row 1"):
            native(root, "test")
    save_png16(path, np.zeros((8, 8)))  # one that is a single hole is unlabelled, not wrong
    assert not native(root, "test").any()
    root = write_nyu_b(tmp_path / "b")
    Image.fromarray(np.full((8, 8), 200, np.uint8)).save(root / "train/depth/1.png")
    with pytest.raises(DataError, match="has 8 bits"):
        native(root)


def test_only_depth_inside_the_open_range_is_valid(tmp_path):
    root = write_nyu_b(tmp_path)
    save_png16(root / "test/depth/1.png", np.array([[0, 1, 2, 9_999, 10_000, 10_500]]))
    np.testing.assert_allclose(native(root, "test")[0], [0, 0, 0.002, 9.999, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(native(root, "test", max_depth=5.0)[0], [0, 0, 0.002, 0, 0, 0], rtol=1e-6)


# --------------------------------------------------------------------------------------------------- where paths begin


def test_csv_paths_under_the_folder_its_data_folder_and_its_parent(tmp_path):
    inside = write_nyu_a(tmp_path / "kaggle" / "data")
    flat = tmp_path / "other"
    shutil.copytree(inside, flat)
    expected = native(inside)
    for root in (inside, inside.parent, flat):
        np.testing.assert_array_equal(native(root), expected)
    # The documents' flat form: pictures lie in nyu2_train itself, so that no scene is named.
    shutil.rmtree(flat / "nyu2_train")
    (flat / "nyu2_train").mkdir()
    lines = []
    for number in range(1, 11):
        shutil.copy(inside / "nyu2_train/study_0002_out/1.jpg", flat / f"nyu2_train/{number:05d}_colors.png")
        shutil.copy(inside / "nyu2_train/study_0002_out/1.png", flat / f"nyu2_train/{number:05d}_depth.png")
        lines.append([f"data/nyu2_train/{number:05d}_{kind}.png" for kind in ("colors", "depth")])
    write_csv(flat / "nyu2_train.csv", lines)
    train, val = (create_dataset("nyu", flat, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (9, 1) and val.ids == ["nyu2_train/00010_colors"]
    assert set(train.locations) == {None}


def test_lists_in_train_test_inputs(tmp_path):
    root = write_nyu_d(tmp_path)
    (root / "train_test_inputs").mkdir()
    for path in root.glob("*.txt"):
        shutil.move(path, root / "train_test_inputs")
    assert len(create_dataset("nyu", root, "test")) == 3


# ---------------------------------------------------------------------------------------------------------- validation


@pytest.mark.parametrize("write", [write_nyu_a, write_nyu_d])
def test_validation_holds_out_whole_rooms(tmp_path, write, caplog):
    scenes = {f"kitchen_{number:04d}{take}": 3 for number in range(12) for take in ("a", "b")}
    root = write(tmp_path, scenes=scenes, size=(4, 4))
    with caplog.at_level(logging.INFO, "dataloaders"):
        train, val, test = (create_dataset("nyu", root, split, 4) for split in ("train", "val", "test"))
    rooms = [{str(location)[:-1] for location in dataset.locations} for dataset in (train, val)]
    assert not rooms[0] & rooms[1] and len(rooms[0] | rooms[1]) == 12
    assert len(train) + len(val) == 72 and len(val) == 6  # a tenth is 7.2; one room has 6
    assert len(test) == 3 and not {row.files["rgb"] for row in test.rows} & {row.files["rgb"] for row in val.rows}
    assert "validation holds out 1 of 12 scenes" in caplog.text
    assert create_dataset("nyu", root, "val", 4).ids == val.ids


def test_validation_is_the_last_tenth_where_no_scene_is_named(tmp_path, caplog):
    root = write_nyu_b(tmp_path)
    with caplog.at_level(logging.INFO, "dataloaders"):
        train, val = (create_dataset("nyu", root, split) for split in ("train", "val"))
    assert train.ids == [f"rgb/{number}" for number in range(1, 19)]  # 10 after 9
    assert val.ids == ["rgb/19", "rgb/20"]
    assert "the last 2 of 20 training frames" in caplog.text


def test_holdout_location_is_refused(tmp_path):
    with pytest.raises(OptionError, match="--dataset nyu names no locations"):
        create_dataset("nyu", write_nyu_b(tmp_path), holdout_location="kitchen")
