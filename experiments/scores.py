"""What a row of a suite scored over its seeds, and how it differs from another row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from errors import DataError
from experiments.records import METRICS, Record
from experiments.runs import Run
from experiments.statistics import Interval, change_interval


@dataclass
class Scores:
    """The test of one row.

    Attributes:
        run: what was trained.
        seeds: those that ended.
        tested: names of the N test images, and the mean measured depth of each in metres.
        errors: RMSE in metres [S, N] of these under S seeds.
        means: further metrics by name, mean over images and seeds.
        curves: of each seed, the validation RMSE in metres after each epoch.
        minutes: that each seed trained, without its teacher; NaN where nobody wrote it down.
    """

    run: Run
    seeds: list[int]
    tested: list[tuple[str, float]]
    errors: np.ndarray
    means: dict[str, float]
    curves: list[list[float]]
    minutes: list[float] = field(default_factory=list)


def gather_scores(run: Run, records: Mapping[int, Record]) -> Scores:
    """Return the scores of a row.

    Args:
        run: the row.
        records: by seed.

    Raises:
        DataError: the seeds were not tested on the same images and depths.
    """
    first, *others = records.values()
    if any(record.tested != first.tested for record in others):
        raise DataError(f"{run.name}: its seeds were not tested on the same images and depths; test them anew")
    compared, *shown = ([record.scores[metric] for record in records.values()] for metric in METRICS)
    means = {metric: float(np.mean(values)) for metric, values in zip(METRICS[1:], shown, strict=True)}
    minutes = [math.nan if record.minutes is None else record.minutes for record in records.values()]
    curves = [record.curve for record in records.values()]
    return Scores(run, list(records), first.tested, np.array(compared), means, curves, minutes)


def shared(*rows: Scores | None) -> list[np.ndarray] | None:
    """Return the errors of rows over the seeds that all of them have; None where there is no such seed, or no row.

    Raises:
        DataError: the rows were not tested on the same images and depths, so that no image has a pair.
    """
    known = [row for row in rows if row is not None]
    for row in known[1:]:
        if row.tested != known[0].tested:
            raise DataError(f"{row.run.name} and {known[0].run.name} were not tested on the same images and depths")
    seeds = [seed for seed in known[0].seeds if all(seed in row.seeds for row in known)] if known else []
    if len(known) < len(rows) or not seeds:
        return None
    return [row.errors[[row.seeds.index(seed) for seed in seeds]] for row in known]


def change(row: Scores, control: Scores | None) -> Interval | None:
    """Return how a row's RMSE differs from its control's, over the seeds that both have."""
    errors = shared(row, control)
    return None if errors is None else change_interval(errors[0], errors[1])
