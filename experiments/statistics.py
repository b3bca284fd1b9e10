"""Intervals over seeds and test images: what a difference between two ways to train is worth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DRAWS = 10_000


@dataclass(frozen=True)
class Interval:
    """A value and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def resample(errors: np.ndarray, rng: np.random.Generator, draws: int = DRAWS) -> np.ndarray:
    """Draw the mean error of a way to train, again and again, with other seeds and other images.

    A two-level bootstrap (Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8): seeds are
    drawn with replacement, and so are images; the same images for all seeds, since all are tested on the same ones. Two
    tables drawn with equally seeded ``rng`` are drawn alike, so that their difference is paired.

    Args:
        errors: [S, N], of N images under S seeds.
        rng: decides the draws.
        draws: how many.

    Returns:
        The means, [draws].
    """
    seeds, images = errors.shape
    chosen = rng.integers(seeds, size=(draws, seeds))
    times = rng.multinomial(images, np.full(images, 1 / images), size=draws)  # [draws, N]
    per_seed = times @ errors.T / images  # [draws, S]
    return np.take_along_axis(per_seed, chosen, axis=1).mean(axis=1)


def mean_interval(errors: np.ndarray, draws: int = DRAWS) -> Interval:
    """Return the mean of errors [S, N] and its 95 % interval."""
    return _interval(float(errors.mean()), resample(errors, np.random.default_rng(0), draws))


def change_interval(errors: np.ndarray, control: np.ndarray, draws: int = DRAWS) -> Interval:
    """Return by how much the mean of errors [S, N] differs from the control's, as a share of it, with its interval.

    Paired: seed by seed and image by image.

    Raises:
        ValueError: the two were not measured on the same seeds and images.
    """
    if errors.shape != control.shape:
        raise ValueError(f"errors {errors.shape} and control {control.shape} are not pairs")
    ours, theirs = (resample(table, np.random.default_rng(0), draws) for table in (errors, control))
    return _interval(float(errors.mean() / control.mean() - 1), ours / theirs - 1)


def closed_interval(few: np.ndarray, taught: np.ndarray, all_: np.ndarray, draws: int = DRAWS) -> Interval:
    """Return which share of the way from one mean error to another a third has gone, with its interval: 1 is all of it.

    Paired, as :func:`change_interval` is.

    Args:
        few: errors [S, N] at the beginning of the way.
        taught: those that have gone some of it.
        all_: those at its end.
        draws: how many.

    Raises:
        ValueError: they were not measured on the same seeds and images.
    """
    if not few.shape == taught.shape == all_.shape:
        raise ValueError(f"errors {few.shape}, {taught.shape} and {all_.shape} do not belong together")
    a, b, c = (resample(table, np.random.default_rng(0), draws) for table in (few, taught, all_))
    value = (few.mean() - taught.mean()) / (few.mean() - all_.mean())
    return _interval(float(value), (a - b) / (a - c))


def _interval(value: float, drawn: np.ndarray) -> Interval:
    low, high = np.percentile(drawn, [2.5, 97.5]).tolist()
    return Interval(value, low, high)
