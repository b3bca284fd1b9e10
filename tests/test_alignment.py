"""Scale and shift by hand: what a perfect answer scores under each protocol, and what can never win."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.alignment import PROTOCOLS, align_depth, align_disparity, fit_affine, scale_by_median
from training.metrics import NYU, NYU_METRICS, MetricTable, Scoring, valid_pixels

ALIGNED = {"disparity_lsq": "disparity", "depth_lsq": "metres", "median": "metres"}


def truth(images=3, height=48, width=64, seed=0):
    """Rooms [B, 1, H, W] float32 in metres with a fifth of holes."""
    generator = torch.Generator().manual_seed(seed)
    depth = 0.5 + 9 * torch.rand(images, 1, height, width, generator=generator)
    return torch.where(torch.rand(depth.shape, generator=generator) < 0.2, 0.0, depth)


def disparity_of(depth):
    return torch.where(depth > 0, depth, 1.0).reciprocal()


def scored(prediction, target, **scoring):
    table = MetricTable(scoring=Scoring(metrics=NYU_METRICS, clip=(1e-3, 10.0), **scoring))
    table.add(torch.arange(len(target)), prediction, target)
    return table.gather().mean()


# -------------------------------------------------------------------------------------------------------- least squares


def test_a_fit_by_hand():
    # x = 0, 1, 2 and y = 1, 2, 6 (the fourth pixel is a hole): s = cov / var = (5/3) / (2/3), t = 3 - 2.5
    x, y = torch.tensor([0.0, 1.0, 2.0, 99.0]), torch.tensor([1.0, 2.0, 6.0, math.nan])
    scale, shift = fit_affine(*(z[None, None, None] for z in (x, y)), torch.tensor([[[[True, True, True, False]]]]))
    assert (scale.item(), shift.item()) == pytest.approx((2.5, 0.5), abs=1e-12)


def test_the_fit_of_each_image_is_numpys():
    target = truth()
    prediction = 3 * disparity_of(target) + torch.rand(target.shape)
    scale, shift = fit_affine(prediction, disparity_of(target), target > 0)
    for i in range(len(target)):
        inside = target[i] > 0
        expected = np.polyfit(prediction[i][inside].double(), disparity_of(target)[i][inside].double(), 1)
        assert (scale[i].item(), shift[i].item()) == pytest.approx(tuple(expected), rel=1e-9)


def test_medians_by_hand():
    target, prediction = torch.tensor([[[[2.0, 4.0, 8.0, 0.0]]]]), torch.tensor([[[[1.0, 3.0, 2.0, 99.0]]]])
    aligned = scale_by_median(prediction, target, target > 0)
    assert aligned[..., :3].flatten().tolist() == [2.0, 6.0, 4.0], "the medians are 4 and 2"


# ------------------------------------------------------------------------------------------------------ perfect answers


@given(scale=st.floats(0.01, 1000), shift=st.floats(-100, 100))
def test_a_perfect_disparity_of_any_scale_and_shift_is_perfect(scale, shift):
    target = truth()
    prediction = (scale * disparity_of(target).double() + shift).float()
    means = scored(prediction, target, protocol="disparity_lsq", output="disparity")
    rounding = 1e-6 * (1 + abs(shift) / scale)  # of the prediction itself, in float32, far off its own scale
    assert means["abs_rel"] == pytest.approx(0, abs=rounding)
    assert means["delta1"] == 1
    assert means["n_images"] == 3


def test_that_disparity_fitted_in_depth_space_is_not_perfect():
    target = truth()
    means = scored(disparity_of(target), target, protocol="depth_lsq")
    assert means["abs_rel"] > 0.1


def test_perfect_depth_of_any_scale_is_perfect():
    target = truth()
    assert scored(0.3 * target, target, protocol="median")["rmse"] == pytest.approx(0, abs=1e-6)
    assert scored(0.3 * target, target, protocol="disparity_lsq")["rmse"] == pytest.approx(0, abs=1e-5)
    for protocol in ("depth_lsq", "metric"):
        shifted = 0.3 * target + 5 if protocol == "depth_lsq" else target
        assert scored(shifted, target, protocol=protocol)["rmse"] == pytest.approx(0, abs=1e-5)
    assert scored(0.3 * target + 5, target, protocol="median")["rmse"] > 0.1, "it knows no shift"
    assert scored(0.3 * target, target, protocol="metric")["rmse"] > 0.1


@pytest.mark.parametrize("protocol", sorted(ALIGNED))
def test_scale_changes_no_figure(protocol):
    target = truth()
    noisy = target + torch.rand(target.shape)
    if ALIGNED[protocol] == "disparity":
        noisy = noisy.reciprocal()
    small, large = (scored(k * noisy, target, protocol=protocol, output=ALIGNED[protocol]) for k in (2**-10, 2**10))
    assert small == pytest.approx(large, rel=1e-9)
    assert small["abs_rel"] > 0.01


# ------------------------------------------------------------------------------------------------- what goes wrong


def test_least_squares_is_least():
    target = truth()
    noisy = disparity_of(target) + 0.3 * torch.rand(target.shape)
    scale, shift = fit_affine(noisy, disparity_of(target), target > 0)

    def error(s, t):
        squares = (s * noisy + t - disparity_of(target)) ** 2
        return torch.where(target > 0, squares, 0.0).sum(dim=(1, 2, 3))

    best = error(scale, shift)
    for step in (1e-3, -1e-3):
        assert (error(scale + step, shift) > best).all() and (error(scale, shift + step) > best).all()


def test_holes_do_not_count():
    target = truth()
    noisy = disparity_of(target) + torch.rand(target.shape)
    torn = torch.where(target > 0, noisy, math.nan)
    for scoring in ({"protocol": "disparity_lsq", "output": "disparity"}, {"protocol": "median"}):
        assert scored(torn, target, **scoring) == scored(noisy, target, **scoring)


@pytest.mark.parametrize("value", [0.0, 0.1, 7.0, -3e5, 1e-30])
def test_a_constant_disparity_becomes_the_mean_disparity_of_each_image(value):
    target = truth()
    depth = align_disparity(torch.full_like(target, value), target, target > 0)
    for i in range(len(target)):
        mean = disparity_of(target)[i][target[i] > 0].double().mean().item()
        assert torch.allclose(depth[i], torch.tensor(1 / mean, dtype=torch.float64), rtol=1e-9)
    means = scored(torch.full_like(target, value), target, protocol="disparity_lsq", output="disparity")
    assert all(math.isfinite(number) for number in means.values())
    assert means["delta1"] < 1


def test_constant_depth_becomes_the_mean_or_the_median():
    target = truth()
    flat = torch.full_like(target, 2.5)
    depth = align_depth(flat, target, target > 0)
    assert depth[0, 0, 0, 0].item() == pytest.approx(target[0][target[0] > 0].double().mean().item())
    assert scale_by_median(flat, target, target > 0)[0, 0, 0, 0].item() == target[0][target[0] > 0].median().item()


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("protocol", sorted(ALIGNED))
def test_what_is_no_number_stays_none_and_never_wins(protocol, poison):
    target = truth()
    prediction = target.clone() if ALIGNED[protocol] == "metres" else disparity_of(target)
    y, x = (target[1, 0] > 0).nonzero()[0].tolist()
    prediction[1, 0, y, x] = poison
    table = MetricTable(scoring=Scoring(protocol=protocol, output=ALIGNED[protocol], clip=(1e-3, 10.0)))
    table.add(torch.arange(3), prediction, target)
    table.gather()
    rows = table.per_image("delta1")
    assert (rows[0], rows[2]) == (1, 1)
    assert math.isnan(rows[1])
    assert math.isnan(table.mean()["rmse"])


def test_an_image_without_a_valid_pixel_spoils_no_other():
    target = truth()
    target[1] = 0
    means = scored(disparity_of(truth()), target, protocol="disparity_lsq", output="disparity")
    assert means["n_images"] == 2
    assert means["abs_rel"] == pytest.approx(0, abs=1e-6)


def test_a_disparity_aligned_below_zero_is_far_away_not_behind():
    # s, t = 1, 0 suit 100 pixels at 1 m and 2 m; a single pixel of disparity -1 is clipped to 1e-3 and then to 10 m
    target = torch.tensor([1.0, 2.0] * 5000 + [9.0])[None, None, None]
    prediction = torch.tensor([1.0, 0.5] * 5000 + [-1.0])[None, None, None]
    scoring = Scoring(protocol="disparity_lsq", output="disparity", clip=(1e-3, 10.0))
    assert scoring.in_metres(prediction, target)[0, 0, 0, -1].item() == 10
    assert align_disparity(prediction, target, target > 0)[0, 0, 0, -1].item() == pytest.approx(1000)


def test_a_disparity_is_no_depth():
    assert {name for name, protocol in PROTOCOLS.items() if protocol.accepts("disparity")} == {"disparity_lsq"}
    assert all(protocol.accepts("metres") for protocol in PROTOCOLS.values())


# ------------------------------------------------------------------------------------------------ which pixels it sees


def test_the_fit_sees_the_crop_alone():
    target = truth(2, 480, 640)
    outside = torch.ones_like(target, dtype=torch.bool)
    outside[..., 45:471, 41:601] = False
    prediction = torch.where(outside, 0.0, 3 * disparity_of(target) + 1)
    for crop, least, most in ((True, 0, 1e-6), (False, 0.01, math.inf)):
        means = scored(prediction, target, protocol="disparity_lsq", output="disparity", eigen_crop=crop)
        assert least <= means["abs_rel"] <= most


def test_bins_are_scored_under_the_fit_of_the_whole_image():
    target = truth()
    noisy = disparity_of(target) + 0.1 * torch.rand(target.shape)
    scoring = Scoring(protocol="disparity_lsq", output="disparity", clip=(1e-3, 10.0))
    table = MetricTable({"2-3 m": (2.0, 3.0)}, scoring)
    table.add(torch.arange(3), noisy, target)
    depth, inside = align_disparity(noisy, target, target > 0), valid_pixels(target, (2.0, 3.0))
    expected = [(p - t)[v].abs().mean().item() for p, t, v in zip(depth.clamp(max=10), target, inside, strict=True)]
    assert table.gather().mean("2-3 m")["mae"] == pytest.approx(np.mean(expected), rel=1e-9)


@given(st.integers(1, 7), st.randoms(use_true_random=False))
def test_batches_and_order_do_not_change_a_bit(batch, random):
    target = truth(7, 24, 32)
    prediction = disparity_of(target) + torch.rand(target.shape, generator=torch.Generator().manual_seed(1))
    scoring = Scoring(protocol="disparity_lsq", output="disparity", masks=NYU.masks, metrics=NYU_METRICS, clip=NYU.clip)
    whole, parts = MetricTable(scoring=scoring), MetricTable(scoring=scoring)
    whole.add(torch.arange(7), prediction, target)
    order = list(range(7))
    random.shuffle(order)
    for start in range(0, 7, batch):
        chosen = torch.tensor(order[start : start + batch])
        parts.add(chosen, prediction[chosen], target[chosen])
    assert parts.gather().means() == whole.gather().means()
