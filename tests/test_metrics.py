import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.metrics import (
    DEPTH_BINS,
    METRICS,
    NYU,
    NYU_METRICS,
    MetricTable,
    image_metrics,
    inside_eigen_crop,
    valid_pixels,
)


def maps(*values):
    """Images of one row of pixels: [B, 1, 1, W]."""
    return torch.tensor(values)[:, None, None, :]


def test_by_hand():
    # pixels: 2 predicted as 1 (ratio 2), 4 as 5 (ratio 1.25), 1 as 1 (ratio 1), and a hole predicted as 9
    target, prediction = maps([2.0, 4.0, 1.0, 0.0]), maps([1.0, 5.0, 1.0, 9.0])
    row = image_metrics(prediction, target, valid_pixels(target))[0]
    expected = {
        "rmse": math.sqrt((1 + 1 + 0) / 3),
        "abs_rel": (1 / 2 + 1 / 4 + 0) / 3,
        "log10": (math.log10(2) + math.log10(1.25)) / 3,
        "mae": 2 / 3,
        "delta1": 1 / 3,  # 1.25 is not below 1.25
        "delta2": 2 / 3,
        "delta3": 2 / 3,  # 2 is not below 1.953
    }
    assert dict(zip(METRICS, row.tolist(), strict=True)) == pytest.approx(expected, abs=1e-12)


def test_the_metrics_of_nyu_by_hand():
    # pixels: 2 predicted as 1, 4 as 8, 1 as 1, and a hole: e = ln p - ln t is -ln 2, ln 2, 0
    target, prediction = maps([2.0, 4.0, 1.0, 0.0]), maps([1.0, 8.0, 1.0, 9.0])
    row = image_metrics(prediction, target, valid_pixels(target), metrics=NYU_METRICS)[0]
    log_2 = math.log(2)
    expected = {
        "abs_rel": (1 / 2 + 4 / 4) / 3,
        "sq_rel": (1 / 2 + 16 / 4) / 3,
        "rmse": math.sqrt((1 + 16) / 3),
        "rmse_log": math.sqrt(2 * log_2**2 / 3),
        "log10": 2 * math.log10(2) / 3,
        "silog": 100 * math.sqrt(2 * log_2**2 / 3 - 0),
        "delta1": 1 / 3,
        "delta2": 1 / 3,
        "delta3": 1 / 3,
    }
    assert dict(zip(NYU_METRICS, row.tolist(), strict=True)) == pytest.approx(expected, abs=1e-12)
    doubled = image_metrics(2 * target, target, valid_pixels(target), metrics=("silog", "rmse_log"))[0]
    assert doubled.tolist() == pytest.approx([0, log_2], abs=1e-12), "it is blind to the scale"


def test_eigens_crop():
    inside = inside_eigen_crop(torch.zeros(2, 1, 480, 640))[0, 0]
    assert inside.sum() == (471 - 45) * (601 - 41)
    assert inside[45, 41] and inside[470, 600] and not inside[44, 41] and not inside[471, 600]
    assert not inside[45, 40] and not inside[470, 601]
    half = inside_eigen_crop(torch.zeros(1, 1, 240, 320))[0, 0].nonzero()
    assert (half.amin(dim=0).tolist(), half.amax(dim=0).tolist()) == ([22, 20], [235, 299])


def test_nyu_is_scored_inside_its_crop_and_its_range():
    target = torch.full((1, 1, 480, 640), 2.0)
    prediction = torch.full_like(target, 3.0)
    prediction[..., :45, :] = 1000  # outside the crop
    target[..., 100, 100:200] = torch.linspace(10, 12, 100)  # 10 m and more
    target[..., 101, 100:200] = 0.0005  # nearer than 1 mm
    target[..., 102, 100:200] = 0
    prediction[..., 100:103, 100:200] = 1000
    prediction[..., 200, 100] = 1000  # counts, as 10 m
    prediction[..., 200, 101] = -4  # counts, as 1 mm
    table = MetricTable(scoring=NYU)
    table.add(torch.tensor([0]), prediction, target)
    pixels = (471 - 45) * (601 - 41) - 300
    squares = (pixels - 2) * 1 + 8**2 + (2 - 1e-3) ** 2
    means = table.gather().means()
    assert means["rmse"] == pytest.approx(math.sqrt(squares / pixels), rel=1e-9)
    assert set(means) == {*NYU_METRICS, "n_images"}


def test_the_mean_is_over_images_not_over_pixels():
    target = maps([1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0])
    prediction = maps([4.0, 0.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0])
    table = MetricTable()
    table.add(torch.tensor([0, 1]), prediction, target)
    assert table.gather().mean()["mae"] == pytest.approx((3 + 1) / 2)


def test_both_protocols():
    target, prediction = maps([0.4, 2.0]), maps([0.8, 2.0])
    table = MetricTable()
    table.add(torch.tensor([0]), prediction, target)
    means = table.gather().means()
    assert means["mae"] == pytest.approx(0.2)
    assert means["gt_0.5"]["mae"] == 0
    assert valid_pixels(maps([0.5]), (0.5, math.inf)).all(), "0.5 m itself counts"


def test_depth_bins_share_out_every_pixel():
    target = torch.rand(2, 1, 8, 8) * 25
    inside = torch.stack([valid_pixels(target, between) for between in DEPTH_BINS.values()])
    assert (inside.sum(dim=0) == 1).all()


def test_bins_are_scored_beside_the_protocols_and_change_none_of_their_figures():
    target = torch.rand(5, 1, 8, 8) * 25
    prediction = target + torch.rand_like(target)
    plain, binned = MetricTable(), MetricTable(DEPTH_BINS)
    for table in (plain, binned):
        table.add(torch.arange(5), prediction, target)
        table.gather()
    assert binned.means() == plain.means()
    assert binned.per_image() == plain.per_image()
    inside = valid_pixels(target, (12.0, 20.0))
    expected = [(p - t)[v].abs().mean().item() for p, t, v in zip(prediction, target, inside, strict=True)]
    assert binned.mean("12-20 m")["mae"] == pytest.approx(np.mean(expected), rel=1e-5)


def test_an_image_without_a_valid_pixel_is_left_out_and_counted():
    table = MetricTable()
    table.add(torch.tensor([0, 1]), maps([1.0, 1.0], [3.0, 3.0]), maps([0.0, 0.0], [2.0, 2.0]))
    means = table.gather().mean()
    assert (means["mae"], means["n_images"]) == (1.0, 1)


def test_nothing_at_all_is_nan_not_zero():
    means = MetricTable().gather().mean()
    assert math.isnan(means["rmse"])
    assert means["n_images"] == 0


@pytest.mark.parametrize("metric", NYU_METRICS)
def test_nan_stays_nan_on_nyu(metric):
    table = MetricTable(scoring=NYU)
    table.add(torch.tensor([0]), torch.full((1, 1, 48, 64), math.nan), torch.ones(1, 1, 48, 64))
    assert math.isnan(table.gather().mean()[metric])


@pytest.mark.parametrize("metric", METRICS)
def test_nan_stays_nan(metric):
    table = MetricTable()
    table.add(torch.tensor([0, 1]), maps([math.nan, 1.0], [1.0, 1.0]), maps([1.0, 1.0], [1.0, 1.0]))
    assert math.isnan(table.gather().mean()[metric])


def test_nan_in_a_hole_does_not_count():
    table = MetricTable()
    table.add(torch.tensor([0]), maps([math.nan, 1.0]), maps([0.0, 1.0]))
    assert table.gather().mean()["rmse"] == 0


@given(st.integers(1, 7), st.randoms(use_true_random=False))
def test_batches_and_order_do_not_change_a_bit(batch, random):
    generator = torch.Generator().manual_seed(0)
    target, prediction = (torch.rand(7, 1, 4, 4, generator=generator) * 9 for _ in range(2))
    whole = MetricTable()
    whole.add(torch.arange(7), prediction, target)
    order = list(range(7))
    random.shuffle(order)
    parts = MetricTable()
    for start in range(0, 7, batch):
        chosen = torch.tensor(order[start : start + batch])
        parts.add(chosen, prediction[chosen], target[chosen])
    assert parts.gather().means() == whole.gather().means()


def test_against_plain_numpy():
    rng = np.random.default_rng(0)
    target, prediction = rng.uniform(0.1, 9, (5, 1, 6, 6)), rng.uniform(0.1, 9, (5, 1, 6, 6))
    target[rng.random(target.shape) < 0.3] = 0
    table = MetricTable()
    table.add(torch.arange(5), torch.tensor(prediction), torch.tensor(target))
    rmse = np.mean([np.sqrt(np.mean((p - t)[t > 0] ** 2)) for p, t in zip(prediction, target, strict=True)])
    ratio = [np.maximum(p / t, t / p)[t > 0] for p, t in zip(prediction, np.where(target > 0, target, 1), strict=True)]
    inside = [t > 0 for t in target]
    ratio = [np.maximum(p[m] / t[m], t[m] / p[m]) for p, t, m in zip(prediction, target, inside, strict=True)]
    means = table.gather().mean()
    assert means["rmse"] == pytest.approx(rmse, rel=1e-12)
    assert means["delta2"] == pytest.approx(np.mean([np.mean(r < 1.25**2) for r in ratio]), rel=1e-12)


def test_a_share_of_the_images():
    table = MetricTable()
    table.add(torch.tensor([2, 0, 1]), maps([1.0], [2.0], [4.0]), maps([1.0], [1.0], [1.0]))
    table.gather()
    assert table.mean(among=[0, 1])["mae"] == 2.0
    assert table.per_image("mae") == {0: 1.0, 1: 3.0, 2: 0.0}
