"""Samples, labels, hold-outs, augmentation and loaders."""

import logging
import math
import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from make_data import (
    SAMPLE_RATE,
    set_cell,
    write_batvision_v1,
    write_batvision_v2,
    write_images,
    write_nyu_b,
    write_nyu_d,
)
from PIL import Image

import simulation
from dataloaders import (
    AUDIO_FORMATS,
    DATASETS,
    audio_channels,
    create_dataset,
    create_loader,
    create_loaders,
    create_training_data,
    find_dataset,
    simulated,
)
from errors import DataError, OptionError, from_worker


@pytest.fixture(scope="module")
def v2(tmp_path_factory):
    return write_batvision_v2(tmp_path_factory.mktemp("v2"))


@pytest.fixture(scope="module")
def v1(tmp_path_factory):
    return write_batvision_v1(tmp_path_factory.mktemp("v1"))


def same(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(first[k], second[k]) if torch.is_tensor(first[k]) else first[k] == second[k] for k in first)


# ------------------------------------------------------------------------------------------------------------- samples


def test_genuine_sample_has_the_official_spectrogram(samples_dir):
    dataset = create_dataset("batvisionv2", samples_dir / "BatvisionV2", "train", 256)
    audio = dataset[0]["audio"]
    assert audio.shape == (2, 256, 256)
    assert audio.mean().item() == pytest.approx(0.0716127, abs=1e-5)
    assert audio.max().item() == pytest.approx(5.7030907, abs=1e-5)
    assert dataset.preprocessing["audio_samples"] == 7782


def test_genuine_depth_keeps_its_holes_and_its_values(samples_dir):
    dataset = create_dataset("batvisionv2", samples_dir / "BatvisionV2", "test", 256)
    original = np.load(samples_dir / "BatvisionV2/Sample_Room/depth/depth_47.npy")
    depth = dataset[0]["depth"].numpy()
    assert abs((depth == 0).mean() - (original == 0).mean()) < 0.01
    assert set(np.unique(depth)) <= set(np.unique(original.astype(np.float32) / np.float32(1000)))
    assert depth.max() == pytest.approx(original.max() / 1000, abs=0.2)


@pytest.mark.parametrize("name", ["batvisionv1", "batvisionv2"])
def test_sample_contract(name, v1, v2):
    root = {"batvisionv1": v1, "batvisionv2": v2}[name]
    dataset = create_dataset(name, root, "train", 32, None, "spectrogram")
    sample = dataset[3]
    assert set(sample) == {"audio", "rgb", "depth", "id", "index"}
    assert (sample["audio"].shape, sample["rgb"].shape, sample["depth"].shape) == (
        (2, 32, 32),
        (3, 32, 32),
        (1, 32, 32),
    )
    assert all(sample[key].dtype == torch.float32 for key in ("audio", "rgb", "depth"))
    assert sample["rgb"].min() >= 0 and 0.2 < sample["rgb"].max() <= 1
    assert (sample["id"], sample["index"]) == (dataset.ids[3], 3)
    assert len(set(dataset.ids)) == len(dataset)
    assert dataset.supplied == {"audio", "rgb", "depth"}
    assert same(dataset[-1], dataset[len(dataset) - 1])
    assert len(list(dataset)) == len(dataset)
    assert pickle.loads(pickle.dumps(dataset.preprocessing)) == dataset.preprocessing
    assert same(pickle.loads(pickle.dumps(dataset))[1], dataset[1])


def test_v2_rows_come_by_location_in_order(v2):
    (v2 / "stray.txt").write_text("no location")
    (v2 / "notes").mkdir(exist_ok=True)
    dataset = create_dataset("batvisionv2", v2, "train", 16)
    assert dataset.locations == ["Attic"] * 6 + ["Hall"] * 6
    assert dataset.ids[0] == "Attic/1" and dataset.ids[-1] == "Hall/6"
    assert dataset.row_name(7) == f"{v2}/Hall/train.csv, row 3"


def test_v2_depth_is_metres_clipped_to_max_depth(v2):
    original = np.load(v2 / "Attic/depth/depth_1.npy").astype(np.float32) / 1000
    dataset = create_dataset("batvisionv2", v2, "train", 16, max_depth=5.0, native_depth=True, modalities=("depth",))
    depth = dataset[0]["depth"][0].numpy()
    np.testing.assert_allclose(depth, np.where(original > 0, np.minimum(original, 5), 0), rtol=1e-6)


def test_v1_holes_are_nan_and_infinity(v1):
    original = np.load(v1 / "depth/1.npy")
    dataset = create_dataset("batvisionv1", v1, "train", 16, native_depth=True, modalities=("depth",))
    depth = dataset[0]["depth"][0].numpy()
    assert not np.isfinite(original).all()
    expected = np.where(np.isfinite(original) & (original > 0), original / 1000, 0)
    np.testing.assert_allclose(depth, expected, rtol=1e-6)


def test_v1_sound_is_not_cut_and_v2_is(tmp_path, v1):
    loud_end = np.zeros((12_000, 2))
    loud_end[9000:] = 0.5  # after the 7782 samples of 30 m
    v2 = write_batvision_v2(tmp_path, locations=("Attic",), rows={"train": 1})
    soundfile.write(v2 / "Attic/audio/audio_1.wav", loud_end, SAMPLE_RATE, "PCM_32")
    assert create_dataset("batvisionv2", v2, "train", 16)[0]["audio"].abs().max() == 0

    for ear in ("left", "right"):
        np.save(v1 / f"audio_{ear}/2.npy", loud_end[:, 0].astype(np.float32))
    dataset = create_dataset("batvisionv1", v1, "train", 16, modalities=("audio",))
    assert dataset[1]["audio"].max() > 0.01
    assert dataset.preprocessing["audio_samples"] is None


def test_short_sound_is_filled_up_with_silence(tmp_path):
    root = write_batvision_v2(tmp_path, locations=("Attic",), rows={"train": 2}, frames=2000)
    path = root / "Attic/audio/audio_1.wav"
    sound, rate = soundfile.read(path)
    soundfile.write(root / "Attic/audio/audio_2.wav", np.pad(sound, ((0, 9000), (0, 0))), rate, "PCM_32")
    dataset = create_dataset("batvisionv2", root, "train", 32)
    assert torch.equal(dataset[0]["audio"], dataset[1]["audio"])


def test_only_wanted_modalities_are_read(tmp_path):
    root = write_batvision_v2(tmp_path, locations=("Attic",), rows={"train": 1})
    (root / "Attic/audio/audio_1.wav").unlink()
    assert set(create_dataset("batvisionv2", root, "train", 16, modalities=("rgb", "depth"))[0]) == {
        "rgb",
        "depth",
        "id",
        "index",
    }


@pytest.mark.parametrize("audio_format", AUDIO_FORMATS)
def test_audio_formats_differ_and_are_finite(v2, audio_format):
    audio = create_dataset("batvisionv2", v2, "train", 32, audio_format=audio_format)[0]["audio"]
    assert audio.shape == (audio_channels(audio_format), 32, 32) and torch.isfinite(audio).all()
    assert audio[:2].min() >= 0
    assert (audio.max() < 1.5) or audio_format in ("spectrogram", "interaural")
    if audio_format != "spectrogram":
        plain = create_dataset("batvisionv2", v2, "train", 32)[0]["audio"]
        assert not torch.allclose(audio[:2], plain, atol=0.05)


def test_pair_of_numbers_as_image_size(v2):
    sample = create_dataset("batvisionv2", v2, "train", (16, 48))[0]
    assert sample["rgb"].shape == (3, 16, 48) and sample["depth"].shape == (1, 16, 48)
    assert sample["audio"].shape == (2, 16, 48)


def test_pictures_of_other_modes_become_rgb(tmp_path):
    root = write_images(tmp_path, count=0)
    red: dict[str, Any] = {"RGB": (200, 10, 10), "RGBA": (200, 10, 10, 128), "CMYK": (0, 242, 242, 55), "L": 90}
    for mode, colour in red.items():
        Image.new(mode, (8, 6), colour).save(root / f"{mode}.tif")
    samples = {sample["id"]: sample["rgb"] for sample in create_dataset("images", root, "test", 4)}
    assert all(rgb.shape == (3, 4, 4) for rgb in samples.values())
    assert samples["RGBA.tif"].mean((1, 2)).tolist() == pytest.approx([200 / 255, 10 / 255, 10 / 255], abs=1e-3)
    assert samples["CMYK.tif"][0].mean() > 0.7 > 0.1 > samples["CMYK.tif"][1].mean()
    assert samples["L.tif"].unique().tolist() == pytest.approx([90 / 255])


def test_hidden_files_are_no_pictures(tmp_path):
    root = write_images(tmp_path / ".home/data", count=2)
    write_images(root / ".thumbnails")
    write_images(root / "day/.cache")
    write_images(root / "day", count=1)
    (root / "._0.jpg").write_bytes(b"a resource fork")
    assert create_dataset("images", root, "train", 16).ids == ["0.jpg", "1.jpg", "day/0.jpg"]
    write_images(tmp_path / "none/.thumbnails")
    with pytest.raises(DataError, match="looks like none"):
        find_dataset(tmp_path / "none")
    nyu = write_nyu_b(tmp_path / "b")
    count = len(create_dataset("nyu", nyu, "train", 16))
    for name in ("rgb/._1.jpg", "depth/._1.png"):
        (nyu / "train" / name).write_bytes(b"a resource fork")
    assert len(create_dataset("nyu", nyu, "train", 16)) == count
    nyu = write_nyu_d(tmp_path / "d")
    (nyu / "._nyudepthv2_train_files_with_gt.txt").write_bytes(b"a resource fork")
    assert create_dataset("nyu", nyu, "train", 16)[0]["depth"].any()


def test_pictures_in_linked_folders_are_found_once(tmp_path):
    root = write_images(tmp_path / "pictures", count=1)
    other = write_images(tmp_path / "other", count=2)
    (root / "more").symlink_to(other)
    (root / "same").symlink_to(other)
    (other / "back").symlink_to(root)
    assert create_dataset("images", root, "train", 16).ids == ["0.jpg", "more/0.jpg", "more/1.jpg"]


def test_images_have_rgb_only_in_natural_order_and_stand_upright(tmp_path):
    root = write_images(tmp_path, count=11)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees
    picture = Image.new("RGB", (40, 20))
    picture.paste((255, 255, 255), (0, 0, 20, 20))
    picture.save(root / "11.jpg", exif=turned)
    dataset = create_dataset("images", root, "train", 8)
    assert dataset.ids == [f"{number}.jpg" for number in range(12)]
    sample = dataset[11]
    assert set(sample) == {"rgb", "id", "index"}
    assert sample["rgb"][:, 0].mean() > 0.9 and sample["rgb"][:, -1].mean() < 0.1
    assert not dataset.labelled.any()


def test_simulation_is_written_read_and_finished(tmp_path, monkeypatch):
    tiny = {**simulated.DEFAULT_SIMULATION, "train": 2, "val": 1, "test": 1, "image_size": 16}
    monkeypatch.setattr(simulated, "DEFAULT_SIMULATION", tiny)
    root = tmp_path / "rooms"
    dataset = create_dataset("simulated", root, "train", 16)
    assert len(dataset) == 2 and dataset.max_depth == 12
    assert set(dataset[0]) == {"audio", "rgb", "depth", "id", "index"} and dataset[0]["depth"].max() > 0.5

    # One that was interrupted goes on with its own settings, whatever the default is.
    manifest = root / "simulation.json"
    manifest.write_text(manifest.read_text().replace('"complete": true', '"complete": false'))
    assert not simulation.is_complete(root)
    wav = next(root.glob("*/audio/*.wav"))
    wav.unlink()
    monkeypatch.setattr(simulated, "DEFAULT_SIMULATION", {**tiny, "train": 5})
    assert len(create_dataset("simulated", root, "train", 16)) == 2
    assert simulation.is_complete(root) and wav.is_file()


def test_other_simulators_data_is_read_as_it_is(v2):
    dataset = create_dataset("simulated", v2, "train", 16)
    assert len(dataset) == 12 and not (v2 / "simulation.json").exists()


# ------------------------------------------------------------------------------------------------- labels and hold-outs


def labelled_ids(root, fraction, label_seed=0, **options):
    dataset = create_dataset(
        "batvisionv2", root, "train", 16, label_fraction=fraction, label_seed=label_seed, **options
    )
    return {dataset.ids[i] for i in np.flatnonzero(dataset.labelled)}


def test_label_fraction_is_nested_and_its_seed_is_its_own(v2):
    shares = {fraction: labelled_ids(v2, fraction) for fraction in (0, 0.01, 0.25, 0.5, 1)}
    assert [len(shares[fraction]) for fraction in (0, 0.01, 0.25, 0.5, 1)] == [0, 1, 3, 6, 12]
    assert shares[0.5] != {f"Attic/{number}" for number in range(1, 7)}  # not simply the first ones
    assert shares[0.01] < shares[0.25] < shares[0.5] < shares[1]
    assert labelled_ids(v2, 0.5, seed=7) == shares[0.5]
    assert labelled_ids(v2, 0.5, label_seed=1) != shares[0.5]


def test_unlabelled_pairs_keep_picture_and_sound(v2):
    full = create_dataset("batvisionv2", v2, "train", 16)
    part = create_dataset("batvisionv2", v2, "train", 16, label_fraction=0.25)
    for i in range(len(full)):
        assert torch.equal(part[i]["rgb"], full[i]["rgb"]) and torch.equal(part[i]["audio"], full[i]["audio"])
        assert torch.equal(part[i]["depth"], full[i]["depth"]) == bool(part.labelled[i])
        assert part.labelled[i] or not part[i]["depth"].any()


@pytest.mark.parametrize("split", ["val", "test"])
def test_label_fraction_leaves_evaluation_alone(v2, split):
    assert create_dataset("batvisionv2", v2, split, 16, label_fraction=0).labelled.all()


def test_empty_depth_cell_is_an_unlabelled_pair(tmp_path):
    root = write_batvision_v2(tmp_path, locations=("Attic",), rows={"train": 3})
    set_cell(root / "Attic/train.csv", 3, "depth file name", " ")
    dataset = create_dataset("batvisionv2", root, "train", 16)
    assert dataset.labelled.tolist() == [True, False, True]
    assert dataset[0]["depth"].any() and not dataset[1]["depth"].any()


def test_holdout_by_location(v2):
    def locations(split, held):
        return set(create_dataset("batvisionv2", v2, split, 16, holdout_location=held).locations)

    assert locations("train", "Attic") == locations("val", "Attic") == {"Hall"}
    assert locations("test", "Attic") == {"Attic"}
    assert locations("test", "Attic, Hall") == {"Attic", "Hall"}
    with pytest.raises(DataError, match="train split is empty"):
        locations("train", "Attic,Hall")
    with pytest.raises(OptionError, match=r"unknown Cellar; .* has Attic, Hall"):
        locations("train", "Cellar")


def test_holdout_is_refused_without_locations(v1):
    with pytest.raises(OptionError, match="names no locations"):
        create_dataset("batvisionv1", v1, holdout_location="Attic")


def test_require_depth_wants_one_valid_pixel(tmp_path):
    root = write_batvision_v2(tmp_path, locations=("Attic",), rows={"train": 2})
    hole = np.zeros((24, 40), np.uint16)
    np.save(root / "Attic/depth/depth_1.npy", hole)
    dataset = create_dataset("batvisionv2", root, "train", 16)
    dataset.require_depth()
    assert dataset.labelled.all() and not dataset[0]["depth"].any()
    np.save(root / "Attic/depth/depth_2.npy", hole)
    lost = hole.copy()
    lost[1, 1] = 1000  # which the smaller map leaves out
    for depth in (hole, lost):
        np.save(root / "Attic/depth/depth_2.npy", depth)
        assert not dataset[1]["depth"].any()
        with pytest.raises(DataError, match="not one of the 2 train pairs has a valid depth pixel"):
            dataset.require_depth()


def test_require_depth_stops_at_the_first_valid_pixel(v2, monkeypatch):
    dataset = create_dataset("batvisionv2", v2, "train", 16)
    read = []
    original = dataset.read_depth

    def counting(row):
        read.append(row.id)
        return original(row)

    monkeypatch.setattr(dataset, "read_depth", counting)
    dataset.require_depth()
    assert read == ["Attic/1"]


# -------------------------------------------------------------------------------------------------------- augmentation


def test_mirroring_flips_picture_and_depth_and_swaps_the_ears(v2):
    plain = create_dataset("batvisionv2", v2, "train", 32)
    augmented = create_dataset("batvisionv2", v2, "train", 32, augment=True, seed=3)
    mirrored = 0
    for epoch in range(12):
        before, after = plain[0], augmented[(epoch, 0)]
        flipped = torch.equal(after["depth"], before["depth"].flip(-1))
        assert flipped or torch.equal(after["depth"], before["depth"])
        assert torch.equal(after["audio"], before["audio"].flip(0) if flipped else before["audio"])
        grey = (before["rgb"].flip(-1) if flipped else before["rgb"]).mean(0).flatten()
        assert torch.corrcoef(torch.stack([grey, after["rgb"].mean(0).flatten()]))[0, 1] > 0.95
        assert not torch.equal(after["rgb"], before["rgb"])
        assert after["rgb"].min() >= 0 and after["rgb"].max() <= 1
        mirrored += flipped
    assert 2 <= mirrored <= 10


def test_augmentation_depends_on_seed_epoch_and_index_alone(v2):
    dataset = create_dataset("batvisionv2", v2, "train", 16, augment=True, seed=1)
    first = dataset[(4, 2)]
    torch.manual_seed(99)
    np.random.seed(99)
    assert same(first, dataset[(4, 2)])
    assert same(dataset[(0, 2)], dataset[2])
    others = [dataset[(5, 2)], create_dataset("batvisionv2", v2, "train", 16, augment=True, seed=2)[(4, 2)]]
    assert not any(torch.equal(first["rgb"], other["rgb"]) for other in others)
    picture_only = create_dataset("batvisionv2", v2, "train", 16, augment=True, seed=1, modalities=("rgb",))
    assert torch.equal(picture_only[(4, 2)]["rgb"], first["rgb"])


def test_evaluation_is_never_augmented(v2):
    plain, asked = (create_dataset("batvisionv2", v2, "val", 16, augment=augment) for augment in (False, True))
    assert all(same(plain[(epoch, 0)], asked[(epoch, 0)]) for epoch in range(6))


# ------------------------------------------------------------------------------------------------------------- loaders


def flat(batches):
    return [index for batch in batches for index in batch]


def start_epoch(loader: Any, epoch):
    loader.batch_sampler.start_epoch(epoch)


def indices(loader, epoch):
    start_epoch(loader, epoch)
    return [batch["index"].tolist() for batch in loader]


def test_workers_change_nothing(v2):
    dataset = create_dataset("batvisionv2", v2, "train", 16, augment=True)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    alone, helped = (create_loader(dataset, 4, shuffle=True, num_workers=count, seed=5) for count in (0, 2))
    for epoch in (1, 2):
        for loader in (alone, helped):
            start_epoch(loader, epoch)
        pairs = list(zip(alone, helped, strict=True))
        assert len(pairs) == 3 and all(same(first, second) for first, second in pairs)
    assert torch.equal(torch.get_rng_state(), before)


def test_batch_layout(v2):
    batch = next(iter(create_loader(create_dataset("batvisionv2", v2, "val", 16), 4, shuffle=False, num_workers=0)))
    assert batch["audio"].shape == (4, 2, 16, 16) and batch["depth"].shape == (4, 1, 16, 16)
    assert batch["id"] == ["Attic/7", "Attic/8", "Hall/7", "Hall/8"]
    assert batch["index"].tolist() == [0, 1, 2, 3] and batch["index"].dtype == torch.int64


def test_order_comes_from_seed_and_epoch(v2):
    dataset = create_dataset("batvisionv2", v2, "train", 16, modalities=("depth",))
    loader = create_loader(dataset, 4, shuffle=True, seed=1, num_workers=0)
    first, second = indices(loader, 1), indices(loader, 2)
    assert first != second and sorted(flat(first)) == list(range(12))
    resumed = create_loader(dataset, 4, shuffle=True, seed=1, num_workers=0)
    assert indices(resumed, 2) == second
    assert indices(create_loader(dataset, 4, shuffle=True, seed=2, num_workers=0), 1) != first


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_epochs_of_a_number_of_steps_draw_every_pair_equally_often(v2, steps):
    dataset = create_dataset("batvisionv2", v2, "train", 16, modalities=("depth",))
    loader = create_loader(dataset, 5, shuffle=True, num_workers=0, seed=3, steps=steps)
    assert len(loader) == steps
    drawn = []
    for epoch in range(1, 13):
        start_epoch(loader, epoch)
        batches = list(loader.batch_sampler)
        assert [len(batch) for batch in batches] == [5] * steps
        drawn += flat(batches)
    assert len(set(drawn)) == len(drawn)  # (pass, index): augmented anew each time
    counts = Counter(index for _, index in drawn)
    assert set(counts) == set(range(12)) and max(counts.values()) - min(counts.values()) <= 1
    start_epoch(loader, 4)
    assert list(loader.batch_sampler) == [drawn[i : i + 5] for i in range(15 * steps, 20 * steps, 5)]


def test_evaluation_has_no_steps(v2):
    dataset = create_dataset("batvisionv2", v2, "train", 16, modalities=("depth",))
    assert flat(indices(create_loader(dataset, 5, shuffle=False, num_workers=0, steps=1), 1)) == list(range(12))


@pytest.mark.parametrize("steps", [None, 3])
def test_two_processes_share_each_global_batch(v2, steps):
    dataset = create_dataset("batvisionv2", v2, "train", 16, modalities=("depth",))
    whole = indices(create_loader(dataset, 4, shuffle=True, num_workers=0, steps=steps), 3)
    ranks = [
        create_loader(dataset, 4, shuffle=True, num_workers=0, rank=rank, world_size=2, steps=steps) for rank in (0, 1)
    ]
    shares = [indices(loader, 3) for loader in ranks]
    assert [len(share) for share in shares] == [len(loader) for loader in ranks] == [3, 3]
    for batch, first, second in zip(whole, *shares, strict=True):
        assert len(first) == len(second) == 2 and set(batch) == {*first, *second}


@pytest.mark.parametrize(("rows", "size", "expected"), [(5, 8, [2]), (7, 4, [2]), (1 + 8, 4, [2, 2]), (6, 8, [3])])
def test_processes_train_on_equally_many_pairs_at_every_step(v2, rows, size, expected):
    dataset = create_dataset("batvisionv2", v2, "train", 16, modalities=("depth",))
    del dataset.rows[rows:]
    dataset.labelled = dataset.labelled[:rows]
    for drop_last in (None, False):
        loaders = [
            create_loader(dataset, size, shuffle=True, num_workers=0, rank=rank, world_size=2, drop_last=drop_last)
            for rank in (0, 1)
        ]
        shares = [[len(batch) for batch in indices(loader, 1)] for loader in loaders]
        assert shares[0] == shares[1] and len(shares[0]) == len(loaders[0])
        if drop_last is None:
            assert shares[0] == expected


@pytest.mark.parametrize("batch_size", [2, 4, 8, 32])
@pytest.mark.parametrize("kept", [1, 5, 7, 12])
def test_evaluation_shards_hold_every_row_once(v2, batch_size, kept):
    dataset = create_dataset("batvisionv2", v2, "train", 16, modalities=("depth",))
    del dataset.rows[kept:]
    loaders = [
        create_loader(dataset, batch_size, shuffle=False, num_workers=0, rank=rank, world_size=2) for rank in (0, 1)
    ]
    shares = [indices(loader, 0) for loader in loaders]
    assert [flat(share) for share in shares] == [list(range(rank, kept, 2)) for rank in (0, 1)]
    assert [len(share) for share in shares] == [len(loader) for loader in loaders]


def test_training_drops_the_incomplete_batch_unless_it_is_the_only_one(v2):
    dataset = create_dataset("batvisionv2", v2, "train", 16, modalities=("depth",))
    sizes = {size: [len(batch) for batch in indices(create_loader(dataset, size, shuffle=True, num_workers=0), 1)]
             for size in (5, 12, 64)}  # fmt: skip
    assert sizes == {5: [5, 5], 12: [12], 64: [12]}


def test_training_draws_labelled_pairs_only(v2):
    dataset = create_dataset("batvisionv2", v2, "train", 16, label_fraction=0.5, modalities=("depth",))
    drawn = sorted(flat(indices(create_loader(dataset, 2, shuffle=True, num_workers=0), 1)))
    assert drawn == np.flatnonzero(dataset.labelled).tolist()
    every = create_loader(dataset, 2, shuffle=True, num_workers=0, only_labelled=False)
    assert sorted(flat(indices(every, 1))) == list(range(12))
    none = create_dataset("batvisionv2", v2, "train", 16, label_fraction=0)
    with pytest.raises(DataError, match="no train pair has a depth label"):
        create_loader(none, 2, shuffle=True)


def test_batch_size_must_be_divisible(v2):
    dataset = create_dataset("batvisionv2", v2, "train", 16)
    with pytest.raises(OptionError, match="--batch_size 5 cannot be divided evenly over 2"):
        create_loader(dataset, 5, shuffle=True, world_size=2)


def test_create_loaders_shuffles_training_only(v2):
    datasets = {
        split: create_dataset("batvisionv2", v2, split, 16, modalities=("depth",)) for split in ("train", "val")
    }
    loaders = create_loaders(datasets, 4, num_workers=0)
    assert flat(indices(loaders["train"], 1)) != list(range(12))
    assert flat(indices(loaders["val"], 1)) == list(range(4))


def test_training_data_is_both_splits_and_their_loaders(v2):
    options = {"name": "batvisionv2", "dataset_dir": v2, "image_size": 16, "label_fraction": 0.5}
    datasets, loaders = create_training_data({"depth"}, options, batch_size=4, num_workers=0)
    assert {split: data.split for split, data in datasets.items()} == {"train": "train", "val": "val"}
    assert all(loaders[split].dataset is datasets[split] for split in ("train", "val"))
    assert set(datasets["train"][0]) == {"depth", "id", "index"}
    assert len(flat(indices(loaders["train"], 1))) == 4, "6 of 12 are labelled, and the rest of a batch is dropped"
    _, everything = create_training_data({"depth"}, options, batch_size=4, num_workers=0, only_labelled=False)
    assert len(flat(indices(everything["train"], 1))) == 12


def test_a_workers_error_is_one_line_again(tmp_path):
    root = write_batvision_v2(tmp_path, locations=("Attic",), rows={"train": 2})
    (root / "Attic/audio/audio_2.wav").write_bytes(b"no sound")
    dataset = create_dataset("batvisionv2", root, "train", 16)
    with pytest.raises(DataError) as direct:
        dataset[1]
    with pytest.raises(DataError) as wrapped:
        list(create_loader(dataset, 2, shuffle=False, num_workers=1))
    assert str(wrapped.value).startswith("Caught DataError")
    assert str(from_worker(wrapped.value)) == str(direct.value)
    assert "audio_2.wav" in str(direct.value) and "train.csv, row 3" in str(direct.value)


def test_native_sizes_that_differ_are_refused_in_one_batch(tmp_path):
    root = write_batvision_v2(tmp_path, locations=("Attic",), rows={"val": 2})
    np.save(root / "Attic/depth/depth_2.npy", np.full((10, 10), 2000, np.uint16))
    dataset = create_dataset("batvisionv2", root, "val", 16, native_depth=True)
    with pytest.raises(DataError, match="depth has different sizes"):
        next(iter(create_loader(dataset, 2, shuffle=False, num_workers=0)))
    assert next(iter(create_loader(dataset, 1, shuffle=False, num_workers=0)))["depth"].shape == (1, 1, 24, 40)


# ------------------------------------------------------------------------------------------------------------- options


def test_unknown_names_list_the_known_ones(v2):
    with pytest.raises(
        OptionError, match="unknown data set kitti; known: batvisionv1, batvisionv2, images, nyu, simulated"
    ):
        create_dataset("kitti")
    with pytest.raises(OptionError, match="known: train, val, test"):
        create_dataset("batvisionv2", v2, "valid")
    with pytest.raises(OptionError, match="known: spectrogram, log_spectrogram, mel"):
        create_dataset("batvisionv2", v2, audio_format="mfcc")
    with pytest.raises(OptionError, match="unknown rgb_filter nearest; known: bilinear, bicubic"):
        create_dataset("batvisionv2", v2, rgb_filter="nearest")
    with pytest.raises(OptionError, match="unknown modalities sonar; known: audio, rgb, depth"):
        create_dataset("batvisionv2", v2, modalities=("sonar",))


@pytest.mark.parametrize(
    "options",
    [
        {"label_fraction": 1.5},
        {"label_fraction": -0.1},
        {"label_fraction": math.nan},
        {"image_size": 0},
        {"max_depth": 0},
        {"max_depth": 0.5},
        {"max_depth": math.nan},
        {"min_depth": 40},
        {"seed": -1},
    ],
    ids=str,
)
def test_options_out_of_range(v2, options):
    with pytest.raises(OptionError):
        create_dataset("batvisionv2", v2, **options)


def test_defaults_by_data_set(v2, v1):
    assert create_dataset("batvisionv2", v2).max_depth == 30
    assert create_dataset("batvisionv1", v1).max_depth == 12
    assert {name: data_set.default_dir for name, data_set in DATASETS.items()} == {
        "batvisionv1": "data/BatvisionV1",
        "batvisionv2": "data/BatvisionV2",
        "nyu": "data/nyu",
        "simulated": "data/SimulatedRooms",
        "images": "data/images",
    }


def test_a_copy_without_pictures_loads_and_says_so(tmp_path, caplog):
    root = write_batvision_v1(tmp_path, camera=False)
    with caplog.at_level(logging.INFO, "dataloaders"):
        dataset = create_dataset("batvisionv1", root, "train", 16)
    assert dataset.supplied == {"audio", "depth"} and set(dataset[0]) == {"audio", "depth", "id", "index"}
    assert "no rgb" in caplog.text
    with pytest.raises(
        DataError, match=r"no camera images.*need none \(train_binaural_attention\.py, train_baseline\.py\)"
    ):
        create_dataset("batvisionv1", root, "train", 16, modalities=("audio", "rgb", "depth"))
