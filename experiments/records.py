"""What is left of a training once it is tested: its scores image by image, in a file small enough for a repository.

A report needs nothing else. So suites can be run in parts, on several machines, and repeated from their records.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from errors import DataError
from experiments.settings import Settings, differences
from training.files import write_whole, writing
from training.run_log import read_csv

METRICS = ("rmse", "abs_rel", "delta1")  # of each image; the first is the one that suites compare
MADE_BY = ("commit", "Python", "libraries", "machine")
DIGITS = 5  # of each figure; images differ in the second


@dataclass(frozen=True)
class Record:
    """The test of one seed of a row.

    Attributes:
        command: what trained and tested it, without the folders of a machine.
        minutes: that it trained, without its teacher; None where nobody wrote it down.
        mean_map: RMSE in metres of the mean depth map of its training's labels; None where there is none.
        curve: validation RMSE in metres after each epoch; empty where no validation sample has measured depth.
        settings: of the training, the defaults behind its command too, after those of its teacher if it has one.
        images: names of the test images.
        depths: mean measured depth in metres of each of them, which tells other data under the same names.
        scores: by metric, of each of them.
        made_by: commit, versions and machine, by ``MADE_BY``.
    """

    command: str
    minutes: float | None
    mean_map: float | None
    curve: list[float]
    settings: list[Settings]
    images: list[str]
    depths: list[float]
    scores: dict[str, list[float]]
    made_by: dict[str, str]

    @property
    def tested(self) -> list[tuple[str, float]]:
        """What it was tested on: equal for tests that can be compared."""
        return list(zip(self.images, self.depths, strict=True))


def read_results(
    figures: Path,
    images: Path,
    epochs: int,
    command: str,
    settings: list[Settings],
    minutes: float,
    made_by: dict[str, str],
) -> Record:
    """Read what a training, and the test of its best epoch, left in a folder.

    Args:
        figures: from ``evaluate.py --json``; beside it lies the training's ``metrics.csv``.
        images: from ``evaluate.py --per_image``.
        epochs: of the training.
        command: see :class:`Record`, as of the others.
        settings: likewise.
        minutes: of the training; NaN where nobody wrote it down.
        made_by: commit, versions and machine.

    Raises:
        DataError: the test is broken or of an older version; ``metrics.csv`` is not there or not that of these epochs.
    """
    with _reading_test(figures):
        baseline = json.loads(figures.read_text(encoding="utf-8"))["baselines"].get("mean_map")
        mean_map = shortened(baseline["rmse"]) if baseline else None
    with _reading_test(images):
        rows = _read_images(images)
        ids, depths = [row["id"] for row in rows], [shortened(float(row["depth"])) for row in rows]
        scores = {metric: [shortened(float(row[metric])) for row in rows] for metric in METRICS}
    curves = figures.with_name("metrics.csv")
    if not curves.is_file():
        raise DataError(
            f"{curves} is not there; put it back, or delete checkpoints/{curves.parent.name} to train it anew"
        )
    trained = read_csv(curves)
    curve = [shortened(row["val_rmse"]) for row in trained if "val_rmse" in row]
    if len(trained) != epochs or len(curve) not in (0, epochs):
        raise DataError(
            f"{curves} has {len(trained)} of {epochs} epochs, val_rmse of {len(curve)}; train it anew (--overwrite)"
        )
    return Record(
        command=command,
        minutes=None if math.isnan(minutes) else round(minutes, 2),
        mean_map=mean_map,
        curve=curve,
        settings=settings,
        images=ids,
        depths=depths,
        scores=scores,
        made_by=made_by,
    )


def read_depths(images: Path) -> dict[str, float]:
    """Return the mean measured depth in metres of each image of a test, by its name; none of an older version's.

    Raises:
        DataError: the file is broken.
    """
    with _reading_test(images):
        return {row["id"]: shortened(float(row["depth"])) for row in _read_images(images) if "depth" in row}


@contextmanager
def _reading_test(path: Path) -> Iterator[None]:
    """Around what reads a file of a test: what is wrong in it becomes a DataError that says what to do."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        why = f"{type(error).__name__}: {error}"
        raise DataError(f"{path} is no test of this version ({why}); delete it, then it is tested anew") from None


def _read_images(images: Path) -> list[dict[str, str]]:
    with images.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def shortened(value: float) -> float:
    """Return a number with ``DIGITS`` digits."""
    return float(f"{value:.{DIGITS}g}")


def save(record: Record, path: Path) -> None:
    """Write a record, whole or not at all.

    Raises:
        OptionError: the disk is full or not writable.
    """
    with writing(path), write_whole(path) as file:
        file.write(json.dumps(asdict(record), separators=(",", ":")).encode() + b"\n")


def _check_values(record: Record) -> None:
    """Make sure that a record from a file holds what a report needs.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it does not.
    """
    columns = [record.depths, *(record.scores[metric] for metric in METRICS)]
    if not record.images or any(len(column) != len(record.images) for column in columns):
        raise ValueError("its scores are not of its images")
    for kind, values in (
        ((int, float), [*itertools.chain(*columns), *record.curve]),
        ((int, float, type(None)), [record.minutes, record.mean_map]),
        ((str,), [record.command, *record.images, *record.made_by.values(), *(record.made_by[key] for key in MADE_BY)]),
        ((dict,), record.settings),
    ):
        if wrong := [value for value in values if type(value) not in kind]:
            raise ValueError(f"{wrong[0]!r} in it is no {kind[0].__name__}")


def load(path: Path, script: str, settings: Sequence[Settings]) -> Record:
    """Read a record.

    Args:
        path: its file.
        script: what makes such a record.
        settings: of the training today, see :class:`Record`: whether a flag says them or a default.

    Raises:
        DataError: the file is broken, or of another script, or of other settings.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        record = Record(**{field.name: content[field.name] for field in fields(Record)})
        _check_values(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no record of a test ({type(error).__name__}: {error}); delete it") from None
    if not record.command.startswith(f"{script} ") or len(record.settings) != len(settings):
        raise DataError(f"{path} was made by another command, {record.command!r}; give another --scores_dir")
    for before, now in zip(record.settings, settings, strict=True):
        if differing := differences(before, now):
            raise DataError(
                f"{path} was made under other settings ({differing}); delete it to train it anew, or give another "
                "--scores_dir"
            )
    return record
