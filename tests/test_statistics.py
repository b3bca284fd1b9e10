"""Intervals over few seeds and many images: how wide they are, and how often they hold the truth."""

import numpy as np
import pytest

from experiments import statistics
from experiments.statistics import change_interval, gap_closed_interval, mean_interval, resample


def test_one_seed_and_one_image_leave_nothing_to_draw():
    found = mean_interval(np.array([[0.5]]), 100)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def test_the_interval_of_many_images_is_that_of_the_normal_distribution():
    errors = np.random.default_rng(1).normal(2.0, 0.5, size=(1, 2500))
    found = mean_interval(errors)
    half = 1.96 * errors.std() / 50
    assert found.value == pytest.approx(errors.mean())
    assert found.low == pytest.approx(errors.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(errors.mean() + half, abs=0.1 * half)


def test_seeds_that_differ_widen_the_interval():
    images = np.random.default_rng(0).normal(1, 0.1, size=400)
    alike, apart = np.stack([images] * 3), np.stack([images - 0.2, images, images + 0.2])
    a, b = mean_interval(alike), mean_interval(apart)
    assert b.high - b.low > 10 * (a.high - a.low)


def test_a_difference_is_paired_seed_by_seed_and_image_by_image():
    control = np.random.default_rng(0).uniform(0.2, 2.0, size=(3, 300))
    found = change_interval(0.9 * control, control)
    assert found.value == pytest.approx(-0.1)
    assert found.low == pytest.approx(-0.1) and found.high == pytest.approx(-0.1)
    with pytest.raises(ValueError, match="not pairs"):
        change_interval(control[:2], control)


def test_the_share_of_a_gap_is_paired_too():
    few = np.random.default_rng(0).uniform(0.5, 2.0, size=(3, 300))
    found = gap_closed_interval(few, 0.7 * few, 0.6 * few)
    assert (found.value, found.low, found.high) == pytest.approx((0.75, 0.75, 0.75))
    with pytest.raises(ValueError, match="do not belong together"):
        gap_closed_interval(few, few, few[:2])


def test_draws_repeat():
    errors = np.random.default_rng(0).uniform(size=(2, 10))
    first = resample(errors, 50)
    statistics._draw.cache_clear()
    again = resample(errors, 50)
    assert np.array_equal(first, again)
    assert len(set(first.tolist())) > 40


def test_where_there_may_be_no_gap_no_share_of_it_is_closed():
    rng = np.random.default_rng(0)
    few = rng.uniform(0.5, 2.0, size=(3, 300))
    assert gap_closed_interval(few, 0.7 * few, few) is None
    assert gap_closed_interval(0.6 * few, 0.7 * few, few) is None, "the end is worse than the start"
    alike = few + rng.normal(0.001, 0.05, size=few.shape)
    assert gap_closed_interval(alike, few, few) is None


@pytest.mark.parametrize("seeds", [3, 6])
@pytest.mark.parametrize("of_image", [0.01, 0.5])
def test_intervals_hold_the_truth_as_often_as_they_say(seeds, of_image):
    """Few seeds, whose draws alone would vary too little: 75 % at three seeds without the correction."""
    rng, held, trials, images = np.random.default_rng(0), 0, 400, 30
    for _ in range(trials):
        errors = 2 + rng.normal(0, 0.1, (seeds, 1)) + rng.normal(0, of_image, (1, images))
        found = mean_interval(errors, 400)
        held += found.low <= 2 <= found.high
    assert held / trials == pytest.approx(0.95, abs=0.035)
