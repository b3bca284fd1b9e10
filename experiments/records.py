"""What is left of a training once it is tested: its scores image by image, in a file small enough for a repository.

A report needs nothing else. So suites can be run in parts, on several machines, and repeated from their records.
"""

from __future__ import annotations

import csv
import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from errors import DataError
from training.files import write_whole
from training.run_log import read_csv

METRICS = ("rmse", "abs_rel", "delta1")  # of each image; the first is the one that suites compare
DIGITS = 5  # of each figure; images differ in the second


@dataclass(frozen=True)
class Record:
    """The test of one seed of a row.

    Attributes:
        command: what trained and tested it, without the folders of a machine.
        minutes: that it trained, without its teacher; None where nobody wrote it down.
        mean_map: RMSE in metres of the mean depth map of its training's labels; None where there is none.
        curve: validation RMSE in metres after each epoch.
        images: names of the test images.
        scores: by metric, of each of them.
        made_by: commit, versions and machine.
    """

    command: str
    minutes: float | None
    mean_map: float | None
    curve: list[float]
    images: list[str]
    scores: dict[str, list[float]]
    made_by: dict[str, str]


def read_results(
    figures: Path, images: Path, epochs: int, command: str, minutes: float, made_by: dict[str, str]
) -> Record:
    """Read what a training, and the test of its best epoch, left in a folder.

    Args:
        figures: from ``evaluate.py --json``; beside it lies the training's ``metrics.csv``.
        images: from ``evaluate.py --per_image``.
        epochs: of the training.
        command: see :class:`Record`, as of the others.
        minutes: of the training; NaN where nobody wrote it down.
        made_by: commit, versions and machine.

    Raises:
        DataError: ``metrics.csv`` is not that of these epochs.
    """
    with images.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    baseline = json.loads(figures.read_text(encoding="utf-8"))["baselines"].get("mean_map")
    curves = figures.with_name("metrics.csv")
    curve = [shortened(row["val_rmse"]) for row in read_csv(curves) if "val_rmse" in row]
    if len(curve) != epochs:
        raise DataError(f"{curves} has {len(curve)} epochs with val_rmse, of {epochs}; train it anew (--overwrite)")
    return Record(
        command=command,
        minutes=None if math.isnan(minutes) else round(minutes, 2),
        mean_map=shortened(baseline["rmse"]) if baseline else None,
        curve=curve,
        images=[row["id"] for row in rows],
        scores={metric: [shortened(float(row[metric])) for row in rows] for metric in METRICS},
        made_by=made_by,
    )


def shortened(value: float) -> float:
    """Return a number with ``DIGITS`` digits."""
    return float(f"{value:.{DIGITS}g}")


def without_folders(command: Sequence[str], output_dir: Path) -> str:
    """Return a command in which a path is its name, or its place in ``output_dir``: the same on every machine."""

    def place(word: str) -> str:
        path = Path(word)
        if not path.is_absolute():
            return word
        return f"./{path.relative_to(output_dir)}" if path.is_relative_to(output_dir) else path.name

    return shlex.join(place(word) for word in command)


def save(record: Record, path: Path) -> None:
    """Write a record, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(path) as file:
        file.write(json.dumps(asdict(record), separators=(",", ":")).encode() + b"\n")


def load(path: Path, command: str) -> Record | None:
    """Read a record; None where there is none.

    Raises:
        DataError: the file is broken, or of another command.
    """
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        record = Record(**{field.name: content[field.name] for field in fields(Record)})
        counts = {len(record.images), *(len(record.scores[metric]) for metric in METRICS)}
        if len(counts) > 1 or not all(isinstance(record.scores[metric][0], (int, float)) for metric in METRICS):
            raise ValueError("its scores are not of its images")
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"{path} is no record of a test ({type(error).__name__}: {error}); delete it") from None
    if record.command != command:
        raise DataError(f"{path} was made by another command, {record.command!r}; give another --scores_dir")
    return record
