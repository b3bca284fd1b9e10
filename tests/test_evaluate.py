"""evaluate.py on checkpoints of tiny networks, and what stands beside a score."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from make_data import truncate, write_batvision_v1, write_batvision_v2, write_nyu_b

import evaluate
import train_baseline
import train_rgb_depth
from dataloaders import create_dataset, create_loader
from dataloaders.base import location_names
from models import create_model
from models.depth_anything_files import to_layout
from training.baselines import fit_baselines
from training.checkpoint import load_checkpoint, save_checkpoint, save_model
from training.metrics import DEPTH_BINS, METRICS

SMALL = ("--image_size", 32, "--base_channels", 4, "--batch_size", 4, "--num_workers", 0)


@pytest.fixture(scope="module")
def trained(rooms, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    flags = ("--dataset", "simulated", "--dataset_dir", rooms, "--output_dir", folder, "--experiment_name", "e", *SMALL)
    train_rgb_depth.main([str(x) for x in (*flags, "--nb_epochs", 2)])
    return folder / "checkpoints/e/best_model.pth"


def report_of(run_cli, folder, *flags):
    code, out, errors = run_cli(
        evaluate.main, "--num_workers", 0, "--output_dir", folder, "--json", folder / "report.json", *flags
    )
    assert (code, errors) == (0, "")
    return json.loads((folder / "report.json").read_text()), out


def test_the_report_has_every_figure(trained, tmp_path, run_cli):
    report, out = report_of(run_cli, tmp_path, "--checkpoint", trained, "--per_location", "--depth_bins")
    keys = {*METRICS, "n_images"}
    assert keys <= set(report)
    assert keys == set(report["gt_0.5"])
    for name in ("constant", "mean_map"):
        assert keys <= set(report["baselines"][name])
        assert keys == set(report["baselines"][name]["gt_0.5"])
        assert name in out
    assert report["n_images"] == 6
    assert sum(row["n_images"] for row in report["per_location"].values()) == 6
    assert report["depth_bins"]
    assert set(report["depth_bins"]) <= set(DEPTH_BINS)
    assert not set(report) & set(DEPTH_BINS), "they have a table of their own"
    assert (tmp_path / "results/e/simulated_test_cases.png").is_file()


def test_it_repeats_the_validation_of_the_training(trained, tmp_path, run_cli):
    report, _ = report_of(run_cli, tmp_path, "--checkpoint", trained, "--split", "val")
    assert report["rmse"] == pytest.approx(load_checkpoint(trained)["best"]["value"], rel=1e-9)


def test_checkpoints_are_compared_on_the_same_samples(trained, rooms, tmp_path, run_cli):
    flags = ("--dataset", "simulated", "--dataset_dir", rooms, "--output_dir", tmp_path, "--experiment_name", "other")
    small = [48 if x == 32 else x for x in SMALL]
    train_rgb_depth.main([str(x) for x in (*flags, *small, "--nb_epochs", 1)])
    other = tmp_path / "checkpoints/other/last.pth"
    both, out = report_of(run_cli, tmp_path, "--checkpoint", trained, other, "--cases", tmp_path / "both.png")
    alone, _ = report_of(run_cli, tmp_path, "--checkpoint", other)
    labels = list(both["checkpoints"])
    assert [label.split(",")[0] for label in labels] == ["e", "other"]
    assert both["checkpoints"][labels[1]]["rmse"] == alone["rmse"], "at its own image size"
    assert both["rmse"] == both["checkpoints"][labels[0]]["rmse"]
    assert all(label in out for label in labels)
    assert (tmp_path / "both.png").is_file()


def test_the_mirror_image_is_asked_about_too(trained, tmp_path, run_cli):
    plain, _ = report_of(run_cli, tmp_path, "--checkpoint", trained)
    twice, out = report_of(run_cli, tmp_path, "--checkpoint", trained, "--mirror")
    assert (plain["mirror"], twice["mirror"]) == (False, True) and "mirrored too" in out
    assert twice["rmse"] != plain["rmse"]
    assert twice["baselines"] == plain["baselines"], "what looks at nothing says what it said"


def test_batch_size_changes_no_figure(trained, tmp_path, run_cli):
    one, _ = report_of(run_cli, tmp_path, "--checkpoint", trained, "--precision", "32", "--batch_size", 1)
    five, _ = report_of(run_cli, tmp_path, "--checkpoint", trained, "--precision", "32", "--batch_size", 5)
    assert one["rmse"] == pytest.approx(five["rmse"], rel=1e-5)


def test_baselines_by_hand(rooms):
    dataset = create_dataset("simulated", rooms, "train", image_size=32, modalities={"depth"})
    baselines = fit_baselines(create_loader(dataset, 5, shuffle=False, num_workers=0))
    depth = np.stack([dataset[i]["depth"].numpy() for i in range(len(dataset))])
    constant = depth[depth > 0].mean()
    measured = (depth > 0).sum(axis=0)
    mean_map = np.where(measured, depth.sum(axis=0) / np.maximum(measured, 1), constant)
    assert baselines["constant"].depth.unique().item() == pytest.approx(constant, rel=1e-6)
    assert np.allclose(baselines["mean_map"].depth[0].numpy(), mean_map, rtol=1e-5)


def test_baselines_see_the_labelled_pairs_alone(rooms, tmp_path, run_cli):
    flags = (
        "--dataset",
        "simulated",
        "--dataset_dir",
        rooms,
        "--output_dir",
        tmp_path,
        "--experiment_name",
        "e",
        *SMALL,
    )
    train_rgb_depth.main([str(x) for x in (*flags, "--nb_epochs", 1, "--label_fraction", 0.25, "--batch_size", 2)])
    report, _ = report_of(run_cli, tmp_path, "--checkpoint", tmp_path / "checkpoints/e/last.pth")
    train = create_dataset("simulated", rooms, "train", image_size=32, modalities={"depth"}, label_fraction=0.25)
    depth = torch.stack([train[i]["depth"] for i in np.flatnonzero(train.labelled)])
    test = create_dataset("simulated", rooms, "test", image_size=32, modalities={"depth"})
    constant = depth[depth > 0].mean()
    errors = [(constant - d[d > 0]).abs().mean() for d in (test[i]["depth"] for i in range(len(test)))]
    assert report["baselines"]["constant"]["mae"] == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)


def test_another_data_set(trained, tmp_path, run_cli):
    write_batvision_v2(tmp_path / "data")
    report, out = report_of(
        run_cli, tmp_path, "--checkpoint", trained, "--dataset", "batvisionv2", "--dataset_dir", tmp_path / "data"
    )
    assert report["n_images"] == 6
    assert report["data"]["max_depth"] == 12, "the checkpoint's, not the data set's"
    assert "batvisionv2 test" in out


def test_a_held_out_location(rooms, tmp_path, run_cli, monkeypatch):
    location = sorted(set(create_dataset("simulated", rooms, "test", image_size=32).locations))[0]
    flags = (
        "--dataset",
        "simulated",
        "--dataset_dir",
        rooms,
        "--output_dir",
        tmp_path,
        "--experiment_name",
        "e",
        *SMALL,
    )
    train_rgb_depth.main([str(x) for x in (*flags, "--nb_epochs", 1, "--holdout_location", location)])
    checkpoint = tmp_path / "checkpoints/e/last.pth"
    report, _ = report_of(run_cli, tmp_path, "--checkpoint", checkpoint, "--per_location")
    assert list(report["per_location"]) == [location]

    moved = tmp_path / "elsewhere" / "rooms"
    shutil.copytree(rooms, moved)
    monkeypatch.chdir(moved.parent)
    assert location_names("Attic, Hall ,") == {"Attic", "Hall"}, "as the training read them"
    for folder in (moved, "rooms", f"{rooms}/."):  # however its folder is spelt, and wherever it lies now
        again, out = report_of(run_cli, tmp_path, "--checkpoint", checkpoint, "--dataset_dir", folder)
        assert again["data"]["holdout_location"] == location and again["rmse"] == report["rmse"]
        assert f"simulated test, {location} held out, up to 12 m" in out
    (moved / location).rename(moved / "Otherwise")
    for table in moved.glob("Otherwise/*.csv"):
        table.write_text(table.read_text().replace(location, "Otherwise"))
    again, out = report_of(run_cli, tmp_path, "--checkpoint", checkpoint, "--dataset_dir", moved)
    assert again["data"]["holdout_location"] is None and f"{moved} has no {location}" in out


def test_networks_of_another_cap_do_not_stand_in_one_table(trained, rooms, tmp_path, run_cli):
    flags = ("--dataset", "simulated", "--dataset_dir", rooms, "--output_dir", tmp_path, "--experiment_name", "near")
    train_rgb_depth.main([str(x) for x in (*flags, *SMALL, "--nb_epochs", 1, "--max_depth", 4)])
    near = tmp_path / "checkpoints/near/last.pth"
    report, out = report_of(run_cli, tmp_path, "--checkpoint", near)
    assert report["data"]["max_depth"] == 4 and "simulated test, up to 4 m" in out
    code, _, errors = run_cli(evaluate.main, "--checkpoint", trained, near)
    assert code == 2 and errors.count("\n") == 1
    assert "up to --max_depth 4 m" in errors and "up to 12 m" in errors


def test_a_model_that_says_nan_is_reported_as_null(trained, tmp_path, run_cli):
    checkpoint = load_checkpoint(trained)
    checkpoint["model_state_dict"]["head.project.bias"].fill_(math.nan)
    save_checkpoint(checkpoint, tmp_path / "nan.pth")
    report, out = report_of(run_cli, tmp_path, "--checkpoint", tmp_path / "nan.pth")
    assert report["rmse"] is None
    assert report["delta1"] is None
    assert "nan" in out


@pytest.mark.parametrize("damage", ["missing", "truncated", "pickle", "text", "other", "unknown"])
def test_checkpoints_that_cannot_be_read(trained, tmp_path, run_cli, damage):
    path = tmp_path / "broken.pth"
    if damage == "truncated":
        path.write_bytes(trained.read_bytes()[:2000])
    elif damage == "pickle":
        torch.save({"model_state_dict": print}, path)
    elif damage == "text":
        path.write_text("no checkpoint")
    elif damage == "other":
        torch.save({"weights": torch.zeros(1)}, path)
    elif damage == "unknown":
        checkpoint = load_checkpoint(trained)
        checkpoint["model"]["name"] = "rgb_deep"
        save_checkpoint(checkpoint, path)
    code, _, errors = run_cli(evaluate.main, "--checkpoint", path, "--output_dir", tmp_path)
    assert code == 2
    assert len(errors.strip().splitlines()) == 1
    assert "broken.pth" in errors
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_training_file_costs_the_baselines_alone(trained, tmp_path, run_cli, workers):
    write_batvision_v2(tmp_path / "data", locations=["Hall"])
    truncate(tmp_path / "data/Hall/depth/depth_3.npy")
    flags = ("--dataset", "batvisionv2", "--dataset_dir", tmp_path / "data", "--num_workers", workers)
    report, out = report_of(run_cli, tmp_path, "--checkpoint", trained, *flags)
    assert report["n_images"] == 3
    assert report["baselines"] == {}
    (line,) = (line for line in out.splitlines() if line.startswith("no baselines: "))
    assert "Hall/depth/depth_3.npy" in line and "row 4" in line


def test_a_broken_file_that_the_network_does_not_take_costs_no_figure(trained, tmp_path, run_cli):
    write_batvision_v2(tmp_path / "data", locations=["Hall"])
    truncate(tmp_path / "data/Hall/audio/audio_9.wav")
    flags = ("--dataset", "batvisionv2", "--dataset_dir", tmp_path / "data")
    report, out = report_of(run_cli, tmp_path, "--checkpoint", trained, *flags)
    assert report["n_images"] == 3
    assert "the cases are shown without what the network does not take: " in out
    assert (tmp_path / "results/e/batvisionv2_test_cases.png").is_file()


def test_a_checkpoint_writes_results_by_name_only(trained, tmp_path, run_cli):
    checkpoint = load_checkpoint(trained)
    checkpoint["args"]["experiment_name"] = "../elsewhere"
    save_checkpoint(checkpoint, tmp_path / "e.pth")
    code, _, errors = run_cli(evaluate.main, "--checkpoint", tmp_path / "e.pth", "--output_dir", tmp_path / "out")
    assert code == 2
    assert "its experiment_name is a path" in errors


def test_a_report_that_cannot_be_written_is_one_line(trained, tmp_path, run_cli):
    (tmp_path / "file").write_text("")
    flags = ("--checkpoint", trained, "--output_dir", tmp_path, "--json", tmp_path / "file/report.json")
    code, _, errors = run_cli(evaluate.main, *flags, "--num_workers", 0)
    assert code == 2
    assert "report.json cannot be written" in errors
    code, out, errors = run_cli(evaluate.main, "--checkpoint", trained, "--json", tmp_path)
    assert (code, out) == (2, "") and f"--json {tmp_path} is a folder; name a file" in errors


def test_a_data_set_without_depth(trained, tmp_path, run_cli):
    from make_data import write_images

    write_images(tmp_path / "data")
    code, _, errors = run_cli(
        evaluate.main, "--checkpoint", trained, "--dataset", "images", "--dataset_dir", tmp_path / "data",
        "--output_dir", tmp_path,
    )  # fmt: skip
    assert code == 2
    assert "depth" in errors


def test_per_location_needs_locations(trained, tmp_path, run_cli, monkeypatch):
    monkeypatch.setattr(evaluate.loop, "evaluate", lambda *_, **__: pytest.fail("nothing need be scored"))
    write_nyu_b(tmp_path / "data")
    code, _, errors = run_cli(
        evaluate.main, "--checkpoint", trained, "--dataset", "nyu", "--dataset_dir", tmp_path / "data",
        "--output_dir", tmp_path, "--per_location", "--num_workers", 0,
    )  # fmt: skip
    assert code == 2
    assert "--per_location" in errors


# -------------------------------------------------------------------------------------------------------- bare weights


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A network in the form in which Distill-Any-Depth's large one is published, but for its size."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("published") / "distill_any_depth_tiny.pth"
    torch.save(to_layout(create_model("depth_anything", preset="tiny").state_dict(), "nested", path), path)
    return path


def test_a_published_file_is_scored_as_it_is(published, tmp_path, run_cli):
    write_nyu_b(tmp_path / "data", size=(48, 64))
    flags = ("--checkpoint", published, "--dataset", "nyu", "--dataset_dir", tmp_path / "data", "--image_size", 56, 70)
    report, out = report_of(run_cli, tmp_path, *flags)
    assert (report["scoring"]["protocol"], report["epoch"], report["n_images"]) == ("disparity_lsq", None, 3)
    assert (report["data"]["rgb_filter"], report["data"]["image_size"]) == ("bicubic", [56, 70])
    assert 0 < report["delta1"] < 1
    assert "\ndistill_any_depth_tiny " in out, "its name is the file's"
    assert (tmp_path / "results/distill_any_depth_tiny/nyu_test_cases.png").is_file()


def test_a_published_file_stands_beside_a_checkpoint(trained, published, tmp_path, run_cli):
    flags = ("--checkpoint", trained, published, "--protocol", "disparity_lsq")
    report, _ = report_of(run_cli, tmp_path, *flags)
    assert list(report["checkpoints"])[1] == "distill_any_depth_tiny", "on the data set of the first"
    alone, _ = report_of(run_cli, tmp_path, "--checkpoint", published, *data_of(trained))
    assert alone["data"]["image_size"] == 112, "the square whose positions it has learnt"
    assert alone["rmse"] == report["checkpoints"]["distill_any_depth_tiny"]["rmse"]


def data_of(trained):
    return "--dataset", "simulated", "--dataset_dir", load_checkpoint(trained)["args"]["dataset_dir"]


def test_a_bare_file_says_neither_data_nor_preprocessing(published, tmp_path, run_cli):
    save_model(create_model("rgb_depth", base_channels=4), tmp_path / "eye.safetensors", "MIT")
    for path, named in ((published, "--dataset"), (tmp_path / "eye.safetensors", "rgb_depth alone")):
        code, _, errors = run_cli(evaluate.main, "--checkpoint", path, "--output_dir", tmp_path)
        assert code == 2 and named in errors and len(errors.splitlines()) == 1


def test_data_that_moved_are_asked_for_and_not_simulated_anew(trained, rooms, tmp_path, run_cli):
    checkpoint = load_checkpoint(trained)
    checkpoint["args"]["dataset_dir"] = "moved/rooms"
    save_checkpoint(checkpoint, tmp_path / "moved.pth")
    code, _, errors = run_cli(evaluate.main, "--checkpoint", tmp_path / "moved.pth", "--output_dir", tmp_path)
    assert code == 2 and "moved/rooms, which is not here" in errors and "--dataset_dir" in errors
    report, _ = report_of(run_cli, tmp_path, "--checkpoint", tmp_path / "moved.pth", "--dataset_dir", rooms)
    assert report["n_images"] == 6


def test_a_folder_that_is_mistyped_or_empty_is_refused_and_not_simulated(trained, tmp_path, run_cli):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "rroms"):
        code, _, errors = run_cli(evaluate.main, "--checkpoint", trained, "--dataset_dir", folder)
        assert code == 2 and f"--dataset_dir {folder} is no folder with data in it" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["empty"] and not any((tmp_path / "empty").iterdir())


@pytest.mark.parametrize("named", [False, True])
def test_no_rooms_are_simulated_to_test_on(named, trained, rooms, tmp_path, run_cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = load_checkpoint(trained)
    checkpoint["args"]["dataset_dir"] = None  # the default
    save_checkpoint(checkpoint, tmp_path / "e.pth")
    code, _, errors = run_cli(evaluate.main, "--checkpoint", "e.pth", *(("--dataset", "simulated") if named else ()))
    assert code == 2 and "SimulatedRooms, which is not here" in errors

    begun = tmp_path / "data/SimulatedRooms"
    shutil.copytree(rooms, begun)
    manifest = begun / "simulation.json"  # as one that was stopped leaves it
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"complete": False}))
    before = {path: path.stat().st_mtime_ns for path in begun.rglob("*")}
    code, _, errors = run_cli(evaluate.main, "--checkpoint", "e.pth", *(("--dataset_dir", begun) if named else ()))
    assert code == 2 and "does not hold all rooms of a simulation" in errors
    assert {path: path.stat().st_mtime_ns for path in begun.rglob("*")} == before


def test_what_was_too_near_to_learn_from_counts_all_the_same(trained, rooms, tmp_path, run_cli):
    checkpoint = load_checkpoint(trained)
    known, _ = report_of(run_cli, tmp_path, "--checkpoint", trained)
    checkpoint["preprocessing"]["min_depth"] = 2.0
    save_checkpoint(checkpoint, tmp_path / "far.pth")
    found, _ = report_of(run_cli, tmp_path, "--checkpoint", tmp_path / "far.pth")
    assert found["rmse"] == known["rmse"] and found["baselines"] == known["baselines"]


@pytest.fixture
def holes(rooms, tmp_path):
    """Return a function that copies the rooms and empties the depth maps of a split, all or the first ones."""

    def empty(split, count=None):
        folder = tmp_path / f"no_{split}_depth"
        shutil.copytree(rooms, folder)
        data = create_dataset("simulated", folder, split, image_size=32, modalities={"depth"})
        for row in data.rows[:count]:
            path = row.files["depth"][0]
            np.save(path, np.zeros_like(np.load(path)))
        return folder

    return empty


def test_where_no_pixel_is_measured_there_are_no_scores_and_no_baselines(trained, holes, tmp_path, run_cli):
    report, out = report_of(run_cli, tmp_path, "--checkpoint", trained, "--dataset_dir", holes("train"))
    assert report["baselines"] == {} and "no baselines: no training pair has depth" in out
    code, _, errors = run_cli(evaluate.main, "--checkpoint", trained, "--dataset_dir", holes("test"))
    assert code == 2 and "not one of the" in errors


def test_a_validation_that_sees_no_measured_depth_ends_the_training(holes, tmp_path, run_cli):
    flags = ("--dataset", "simulated", "--dataset_dir", holes("val", 2), "--output_dir", tmp_path, *SMALL)
    flags += ("--nb_epochs", 1, "--batch_size", 2, "--limit_val_batches", 1)
    code, _, errors = run_cli(train_rgb_depth.main, *flags)
    assert code == 2 and "validation images has measured depth" in errors and "--limit_val_batches" in errors


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    rows = {"train": 4, "val": 2, "test": 2}
    return {
        "batvisionv1": write_batvision_v1(folder / "v1", rows=rows, frames=4410),
        "batvisionv2": write_batvision_v2(folder / "v2", rows=rows, locations=("Attic",), frames=9000),
    }


@pytest.mark.parametrize(
    ("learnt", "audio_format", "samples"),
    [("batvisionv2", "spectrogram", 7782), ("batvisionv2", "interaural", 7782), ("batvisionv1", "spectrogram", None)],
)
def test_other_data_are_heard_on_the_axis_of_time_that_was_learnt(
    recorded, tmp_path, run_cli, learnt, audio_format, samples
):
    """V2's recordings are cut where the cap asks for it, V1's are heard whole: its spectrograms end earlier."""
    other = next(name for name in recorded if name != learnt)
    code, _, errors = run_cli(
        train_baseline.main, "--model", "unet_baseline", "--audio_format", audio_format, "--dataset", learnt,
        "--dataset_dir", recorded[learnt], *SMALL, "--batch_size", 2, "--nb_epochs", 1, "--output_dir", tmp_path,
        "--experiment_name", "e",
    )  # fmt: skip
    assert (code, errors) == (0, "")
    checkpoint = tmp_path / "checkpoints/e/best_model.pth"
    flags = ("--checkpoint", checkpoint, "--dataset", other, "--dataset_dir", recorded[other])
    report, out = report_of(run_cli, tmp_path, *flags)
    assert report["data"].get("audio_samples") == samples
    assert ("another axis of time" in out) is (samples is None)
    data = create_dataset(**report["data"], split="test", modalities={"audio"})
    trained_on = create_dataset(learnt, recorded[learnt], "test", 32, audio_format=audio_format, modalities={"audio"})
    if samples:
        data.read_audio = trained_on.read_audio = lambda row: torch.linspace(-1, 1, 4410).sin().expand(2, -1)
        assert torch.equal(data[0]["audio"], trained_on[0]["audio"])
