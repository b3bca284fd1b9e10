"""Intervals over seeds and test images: what a difference between two ways to train is worth."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.stats import norm, t

DRAWS = 10_000


@dataclass(frozen=True)
class Interval:
    """A value and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def resample(errors: np.ndarray, draws: int = DRAWS) -> np.ndarray:
    """Draw the mean error of a way to train, again and again, with other seeds and other images.

    A bootstrap of both (Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8): images are
    drawn with replacement, the same ones for all seeds, since all are tested on the same ones; and so are seeds. How
    far a draw of seeds lies from the mean of all moves the mean over the images drawn. Tables of one shape are drawn
    alike, so that their difference is paired.

    Draws of few seeds vary too little: of three, a plain 95 % interval over seeds alone holds the truth in 3 of 4
    cases. So they are taken :func:`widening` times as far from their mean. Of one seed nothing is known about others:
    the draws are of images alone.

    Args:
        errors: [S, N], of N images under S seeds.
        draws: how many.

    Returns:
        The means, [draws].
    """
    seeds, images = errors.shape
    chosen, times = _draw(seeds, images, draws)
    of_seeds = errors.mean(axis=1)  # [S]
    deviation = of_seeds[chosen].mean(axis=1) - of_seeds.mean()  # [draws]
    return times @ errors.mean(axis=0) / images + widening(seeds) * deviation


@lru_cache(maxsize=4)
def _draw(seeds: int, images: int, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the seeds of each draw [draws, S], and how often it has each image [draws, N]: once for a whole report."""
    rng = np.random.default_rng(0)
    chosen = rng.integers(seeds, size=(draws, seeds))
    return chosen, rng.multinomial(images, np.full(images, 1 / images), size=draws).astype(float)


def widening(seeds: int) -> float:
    """Return how many times wider than a bootstrap's the 95 % interval of a mean over few seeds is.

    The bootstrap divides by S instead of S - 1, and takes the quantile of a normal distribution for Student's
    (Hesterberg, "What Teachers Should Know About the Bootstrap", The American Statistician 69(4), 2015).
    """
    if seeds < 2:
        return 1.0
    return float(np.sqrt(seeds / (seeds - 1)) * t.ppf(0.975, seeds - 1) / norm.ppf(0.975))


def mean_interval(errors: np.ndarray, draws: int = DRAWS) -> Interval:
    """Return the mean of errors [S, N] and its 95 % interval."""
    return _interval(float(errors.mean()), resample(errors, draws))


def change_interval(errors: np.ndarray, control: np.ndarray, draws: int = DRAWS) -> Interval:
    """Return by how much the mean of errors [S, N] differs from the control's, as a share of it, with its interval.

    Paired: seed by seed and image by image.

    Raises:
        ValueError: the two were not measured on the same seeds and images.
    """
    if errors.shape != control.shape:
        raise ValueError(f"errors {errors.shape} and control {control.shape} are not pairs")
    ours, theirs = (resample(table, draws) for table in (errors, control))
    return _interval(float(errors.mean() / control.mean() - 1), ours / theirs - 1)


def gap_interval(start: np.ndarray, end: np.ndarray, draws: int = DRAWS) -> Interval:
    """Return by how much the mean of errors [S, N] is above that of others, in their unit, with its interval.

    Paired, as :func:`change_interval` is.
    """
    return _interval(float(start.mean() - end.mean()), resample(start, draws) - resample(end, draws))


def gap_closed_interval(start: np.ndarray, reached: np.ndarray, end: np.ndarray, draws: int = DRAWS) -> Interval | None:
    """Return which share of the gap between two mean errors a third closes, with its interval: 1 is all of it.

    Paired, as :func:`change_interval` is.

    Args:
        start: errors [S, N] at the wide end of the gap.
        reached: those that close some of it.
        end: those at its other end.
        draws: how many.

    Returns:
        None where the gap may be none: its own interval reaches 0.

    Raises:
        ValueError: they were not measured on the same seeds and images.
    """
    if not start.shape == reached.shape == end.shape:
        raise ValueError(f"errors {start.shape}, {reached.shape} and {end.shape} do not belong together")
    a, b, c = (resample(table, draws) for table in (start, reached, end))
    gap = _interval(float(start.mean() - end.mean()), a - c)
    if gap.low <= 0:
        return None
    return _interval(float(start.mean() - reached.mean()) / gap.value, (a - b) / (a - c))


def _interval(value: float, drawn: np.ndarray) -> Interval:
    low, high = np.percentile(drawn, [2.5, 97.5]).tolist()
    return Interval(value, low, high)
