"""evaluate.py under each protocol: metres on NYU Depth V2, and networks that know depth up to scale and shift."""

import json
import math

import numpy as np
import pytest
import torch
from make_data import save_png16, write_nyu_b, write_nyu_of_livingroom
from PIL import Image
from torch import nn

import evaluate
from models import MODELS
from models.base import DepthModel
from training.checkpoint import load_checkpoint, save_checkpoint
from training.metrics import METRICS, NYU_METRICS


class Eye(DepthModel):
    """Answers with the brightness b of each pixel: a b + c."""

    name = "eye"
    inputs = ("rgb",)
    seen: list = []  # noqa: RUF012 - the shapes that it was shown

    def __init__(self, a=1.0, c=0.0):
        super().__init__(a=a, c=c)
        self.a, self.c = nn.Parameter(torch.tensor(float(a))), nn.Parameter(torch.tensor(float(c)))

    def forward(self, rgb, return_features=False):
        self.seen.append(tuple(rgb.shape[-2:]))
        return rgb.mean(dim=1, keepdim=True) * self.a + self.c


class RelativeEye(Eye):
    """The same, as a disparity."""

    name = "relative_eye"
    output = "disparity"


class PatchEye(RelativeEye):
    """The same, of patches of 14 pixels."""

    name = "patch_eye"
    size_multiple = 14


@pytest.fixture(scope="module", autouse=True)
def stand_ins():
    with pytest.MonkeyPatch.context() as patch:
        for model in (Eye, RelativeEye, PatchEye):
            patch.setitem(MODELS, model.name, model)
        yield


def a_checkpoint(
    folder, dataset_dir, name="relative_eye", image_size=(24, 32), dataset="nyu", max_depth=10.0, **config
):
    model = MODELS[name](**config)
    state = {
        "format": 1, "epoch": 1,
        "model": {"name": name, "config": model.config}, "model_state_dict": model.state_dict(),
        "preprocessing": {
            "dataset": dataset, "image_size": image_size if isinstance(image_size, int) else list(image_size),
            "max_depth": max_depth, "min_depth": 1e-3, "audio_format": None, "audio_samples": None, "resample": False,
            "rgb_filter": "bicubic",
        },
        "args": {
            "experiment_name": name, "dataset": dataset, "dataset_dir": str(dataset_dir), "holdout_location": None,
            "label_fraction": 1.0, "label_seed": 0,
        },
    }  # fmt: skip
    save_checkpoint(state, folder / f"{name}.pth")
    return folder / f"{name}.pth"


def report_of(run_cli, folder, *flags):
    code, out, errors = run_cli(
        evaluate.main, "--num_workers", 0, "--output_dir", folder, "--json", folder / "report.json",
        "--precision", 32, *flags,
    )  # fmt: skip
    assert (code, errors) == (0, "")
    return json.loads((folder / "report.json").read_text()), out


def refused(run_cli, folder, *flags):
    code, _, errors = run_cli(evaluate.main, "--num_workers", 0, "--output_dir", folder, *flags)
    assert code == 2
    assert len(errors.strip().splitlines()) == 1, errors
    return errors


def write_bright_is_near(root, size=(24, 32), seed=0):
    """Frames whose disparity is affine in the brightness of the picture: 1 / d = 1.02 b + 0.1, d from 0.9 to 4.6 m."""
    write_nyu_b(root, size=size)
    rng = np.random.default_rng(seed)
    for frame in (1, 2, 3):
        grey = rng.integers(30, 256, size, dtype=np.uint8)
        Image.fromarray(grey).save(root / f"test/rgb/{frame}.png")
        depth = np.rint(1000 / (1.02 * grey / 255 + 0.1))
        depth[rng.random(size) < 0.2] = 0
        save_png16(root / f"test/depth/{frame}.png", depth)
    return root


def nyu_metrics(prediction, target):
    """The definitions in plain NumPy: one image, pixels that count [N]."""
    p, t = prediction.clip(1e-3, 10).astype(np.float64), target.astype(np.float64)
    e, ratio = np.log(p) - np.log(t), np.maximum(p / t, t / p)
    return {
        "abs_rel": np.mean(np.abs(p - t) / t),
        "sq_rel": np.mean((p - t) ** 2 / t),
        "rmse": np.sqrt(np.mean((p - t) ** 2)),
        "rmse_log": np.sqrt(np.mean(e**2)),
        "log10": np.mean(np.abs(np.log10(p) - np.log10(t))),
        "silog": 100 * np.sqrt(np.mean(e**2) - np.mean(e) ** 2),
        **{f"delta{k}": np.mean(ratio < 1.25**k) for k in (1, 2, 3)},
    }


def depth_files(root, split="test"):
    for path in sorted((root / split / "depth").iterdir()):
        yield path.stem, np.asarray(Image.open(path)).astype(np.float64) / 1000


# --------------------------------------------------------------------------------------------------------------- metres


@pytest.mark.parametrize("crop", [True, False])
def test_real_frames_in_metres(tmp_path, samples_dir, run_cli, crop):
    root = write_nyu_of_livingroom(tmp_path / "data", samples_dir, train=2, test=3)
    # The same depth wherever one looks, from a network of 64 x 64 pixels that was trained on another cap. No measured
    # depth, in whole millimetres, lies on the edge of a delta.
    checkpoint = a_checkpoint(tmp_path, root, "eye", 64, max_depth=5.0, a=0.0, c=2.00037)
    flags = () if crop else ("--no-eigen_crop",)
    report, out = report_of(run_cli, tmp_path, "--checkpoint", checkpoint, *flags)
    rows = []
    for _, depth in depth_files(root):
        assert depth.shape == (480, 640)
        depth = depth[45:471, 41:601] if crop else depth
        inside = depth[(depth > 1e-3) & (depth < 10)]
        rows.append(nyu_metrics(np.full_like(inside, 2.00037), inside))
    expected = {key: np.mean([row[key] for row in rows]) for key in NYU_METRICS}
    assert {key: report[key] for key in NYU_METRICS} == pytest.approx(expected, rel=1e-6)
    assert report["n_images"] == 3
    assert "gt_0.5" not in report
    assert report["scoring"] == {
        "protocol": "metric", "output": "metres", "masks": {"nyu": [0.001, 10]}, "clip": [0.001, 10],
        "eigen_crop": {"rows": [45, 471], "columns": [41, 601], "of": [480, 640]} if crop else None,
    }  # fmt: skip
    assert ("Eigen crop" in out) == crop
    assert set(report["baselines"]) == {"constant", "mean_map"}
    assert (tmp_path / "results/eye/nyu_test_cases.png").is_file()


def test_a_prediction_is_brought_to_the_size_of_what_was_measured(tmp_path, run_cli):
    root = write_nyu_b(tmp_path / "data", {"train": 2, "test": 1}, size=(48, 64))
    ramp = np.tile(np.arange(16, dtype=np.uint8) * 15, (12, 1))
    Image.fromarray(ramp).save(root / "test/rgb/1.png")
    report, _ = report_of(
        run_cli,
        tmp_path,
        "--checkpoint",
        a_checkpoint(tmp_path, root, "eye", (12, 16), a=5.0, c=1.0),
        "--no-eigen_crop",
    )
    brightness = torch.nn.functional.interpolate(
        torch.tensor(ramp / 255.0)[None, None], (48, 64), mode="bilinear", align_corners=False
    )[0, 0].numpy()
    ((_, depth),) = depth_files(root)
    inside = (depth > 0) & (depth < 10)
    assert report["abs_rel"] == pytest.approx(
        nyu_metrics((5 * brightness + 1)[inside], depth[inside])["abs_rel"], rel=1e-5
    )


def test_depth_maps_of_several_sizes_are_scored_one_by_one(tmp_path, run_cli):
    root = write_nyu_b(tmp_path / "data")
    save_png16(root / "test/depth/2.png", np.random.default_rng(0).integers(300, 9000, (30, 40)))
    flags = ("--checkpoint", a_checkpoint(tmp_path, root, "eye", a=0.0, c=2.0), "--no-eigen_crop")
    assert "use --batch_size 1" in refused(run_cli, tmp_path, *flags)
    report, _ = report_of(run_cli, tmp_path, *flags, "--batch_size", 1)
    rows = [nyu_metrics(np.full((depth > 0).sum(), 2.0), depth[depth > 0]) for _, depth in depth_files(root)]
    assert report["n_images"] == 3
    assert report["rmse"] == pytest.approx(np.mean([row["rmse"] for row in rows]), rel=1e-6)


# ---------------------------------------------------------------------------------------------------------- disparities


def test_a_perfect_disparity_is_perfect_whatever_its_scale(tmp_path, run_cli):
    root = write_bright_is_near(tmp_path / "data")
    checkpoint = a_checkpoint(tmp_path, root, a=40.0, c=700.0)
    report, out = report_of(run_cli, tmp_path, "--checkpoint", checkpoint)
    assert report["abs_rel"] < 3e-4, "what millimetres leave"
    assert report["delta1"] == 1
    assert set(report) >= set(NYU_METRICS)
    assert report["scoring"]["protocol"] == "disparity_lsq"
    assert "disparity_lsq" in out
    for baseline in report["baselines"].values():
        assert baseline["abs_rel"] > 0.1
    assert (tmp_path / "results/relative_eye/nyu_test_cases.png").is_file()


def test_no_figure_of_a_disparity_depends_on_the_batch(tmp_path, run_cli):
    root = write_nyu_b(tmp_path / "data")
    flags = ("--checkpoint", a_checkpoint(tmp_path, root), "--depth_bins")
    one, three = (report_of(run_cli, tmp_path, *flags, "--batch_size", size)[0] for size in (1, 3))
    assert one["rmse"] == pytest.approx(three["rmse"], rel=1e-9)
    assert one["depth_bins"]["2-3 m"]["rmse"] == pytest.approx(three["depth_bins"]["2-3 m"]["rmse"], rel=1e-9)


def test_a_disparity_on_the_simulated_rooms_has_both_masks(rooms, tmp_path, run_cli):
    checkpoint = a_checkpoint(tmp_path, rooms, image_size=32, dataset="simulated", max_depth=12.0)
    report, out = report_of(run_cli, tmp_path, "--checkpoint", checkpoint)
    assert set(report["gt_0.5"]) == {*METRICS, "n_images"}
    assert report["scoring"]["masks"] == {"gt_0": [0, None], "gt_0.5": [0.5, None]}
    assert report["scoring"]["clip"] == [0.001, 12]
    assert "gt >= 0.5 m, disparity_lsq" in out


@pytest.mark.parametrize("protocol", ["metric", "depth_lsq", "median"])
def test_a_disparity_is_not_taken_for_depth(tmp_path, run_cli, protocol):
    root = write_nyu_b(tmp_path / "data")
    flags = ("--checkpoint", a_checkpoint(tmp_path, root), "--protocol", protocol)
    errors = refused(run_cli, tmp_path, *flags)
    assert f"--protocol {protocol}" in errors
    assert "relative_eye" in errors
    assert "use --protocol disparity_lsq" in errors


def test_metres_and_disparities_are_compared_up_to_scale_and_shift(tmp_path, run_cli):
    root = write_bright_is_near(tmp_path / "data")
    relative, metric = a_checkpoint(tmp_path, root), a_checkpoint(tmp_path, root, "eye", a=-5.0, c=6.0)
    assert "use --protocol disparity_lsq" in refused(run_cli, tmp_path, "--checkpoint", metric, relative)
    report, _ = report_of(run_cli, tmp_path, "--checkpoint", metric, relative, "--protocol", "disparity_lsq")
    eye, relative_eye = report["checkpoints"].values()
    assert relative_eye["abs_rel"] < 3e-4
    assert 0.01 < eye["abs_rel"] < 0.5
    again, _ = report_of(run_cli, tmp_path, "--checkpoint", relative, metric)
    assert list(again["checkpoints"].values()) == [relative_eye, eye], "the first one's protocol is the default"


def test_metres_of_an_unknown_scale(tmp_path, run_cli):
    root = write_nyu_b(tmp_path / "data")
    reports = []
    for protocol in ("median", "depth_lsq"):
        for scale in (0.25, 4.0):
            checkpoint = a_checkpoint(tmp_path, root, "eye", a=scale, c=scale)
            reports.append(report_of(run_cli, tmp_path, "--checkpoint", checkpoint, "--protocol", protocol)[0])
    assert reports[0]["rmse"] == pytest.approx(reports[1]["rmse"], rel=1e-6)
    assert reports[2]["rmse"] == pytest.approx(reports[3]["rmse"], rel=1e-6)
    assert reports[0]["scoring"]["protocol"] == "median"


def test_a_network_that_says_nan_is_reported_as_null(tmp_path, run_cli):
    root = write_nyu_b(tmp_path / "data")
    path = a_checkpoint(tmp_path, root)
    checkpoint = load_checkpoint(path)
    checkpoint["model_state_dict"]["c"].fill_(math.nan)
    save_checkpoint(checkpoint, path)
    report, out = report_of(run_cli, tmp_path, "--checkpoint", path)
    assert report["abs_rel"] is None
    assert report["delta1"] is None
    assert "nan" in out


def test_a_network_that_always_says_the_same_has_finite_figures(tmp_path, run_cli):
    root = write_nyu_b(tmp_path / "data")
    report, _ = report_of(run_cli, tmp_path, "--checkpoint", a_checkpoint(tmp_path, root, a=0.0, c=3.0))
    assert all(math.isfinite(report[name]) for name in NYU_METRICS)
    assert report["abs_rel"] == pytest.approx(report["baselines"]["constant"]["abs_rel"], rel=1e-6), "so does the mean"


# ---------------------------------------------------------------------------------------------------------------- sizes


def test_depth_anythings_view_of_a_real_frame(tmp_path, samples_dir, run_cli):
    root = write_nyu_of_livingroom(tmp_path / "data", samples_dir, train=2, test=1)
    checkpoint = a_checkpoint(tmp_path, root, "patch_eye", 392)
    Eye.seen.clear()
    report, _ = report_of(run_cli, tmp_path, "--checkpoint", checkpoint, "--image_size", 518, 686)
    assert set(Eye.seen) == {(518, 686)}
    assert report["data"]["image_size"] == [518, 686]
    assert report["data"]["rgb_filter"] == "bicubic", "the checkpoint's"
    assert report["n_images"] == 1
    assert 0 < report["abs_rel"] < 1
    Eye.seen.clear()
    report_of(run_cli, tmp_path, "--checkpoint", checkpoint)
    assert set(Eye.seen) == {(392, 392)}, "the checkpoint's"


def test_a_size_of_a_checkpoint_may_be_a_height_and_a_width(rooms, tmp_path, run_cli):
    checkpoint = a_checkpoint(tmp_path, rooms, image_size=(16, 48), dataset="simulated", max_depth=12.0)
    Eye.seen.clear()
    report_of(run_cli, tmp_path, "--checkpoint", checkpoint)
    assert set(Eye.seen) == {(16, 48)}
    Eye.seen.clear()
    report_of(run_cli, tmp_path, "--checkpoint", checkpoint, "--image_size", 24)
    assert set(Eye.seen) == {(24, 24)}


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--image_size", 518, 640), "--image_size 640: patch_eye takes multiples of 14 from 28 on; use 630 or 644"),
        (("--image_size", 14), "--image_size 14"),
        (("--image_size", 28, 28, 3), "--image_size 28 28 3"),
        (("--dataset", "simulated", "--eigen_crop"), "--eigen_crop is of nyu's frames"),
        (("--dataset", "simulated", "--no-eigen_crop"), "--no-eigen_crop is of nyu's frames"),
    ],
)
def test_what_cannot_be_honoured(tmp_path, rooms, run_cli, flags, named):
    root = write_nyu_b(tmp_path / "data")
    checkpoint = a_checkpoint(tmp_path, root, "patch_eye", 28)
    assert named in refused(run_cli, tmp_path, "--checkpoint", checkpoint, *flags)
    assert not (tmp_path / "results").exists()
