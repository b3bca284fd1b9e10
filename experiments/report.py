"""What a suite found out: a table with intervals, pictures, the commands; as Markdown and as one HTML page."""

from __future__ import annotations

import base64
import html
import io
import math
import os
import platform
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

from errors import DataError
from experiments.records import METRICS, Record
from experiments.runs import Run
from experiments.statistics import Interval, change_interval, closed_interval, mean_interval
from experiments.suites import Suite
from training.files import write_whole
from training.machine import cpu_name
from training.version import commit

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator


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


def findings(suite: Suite, scores: Mapping[str, Scores]) -> list[str]:
    """Return what the suite asks beside its controls, each answer a line: its rivals, and its ways."""
    lines = []
    for name, rival in suite.rivals:
        errors = shared(scores.get(name), scores.get(rival))
        if errors is not None:
            lines.append(f"{name}, against {rival}: {_percent(change_interval(errors[0], errors[1]), '+.1f')}")
    for start, name, end in suite.ways:
        errors = shared(*(scores.get(row) for row in (start, name, end)))
        if errors is not None:
            share = _percent(closed_interval(errors[0], errors[1], errors[2]), ".0f")
            lines.append(f"{name}: {share} of the way from {start}, to {end}")
    return lines


def _percent(found: Interval, form: str) -> str:
    value, low, high = (f"{100 * number:{form}}" for number in (found.value, found.low, found.high))
    return f"{value} % (95 %: {low} to {high} %)"


def table(
    suite: Suite, scores: Mapping[str, Scores], reference: float | None, missing: str = "failed"
) -> list[list[str]]:
    """Return the suite's table as texts, its header first.

    Args:
        suite: the rows and their controls.
        scores: by the name of a row; some may have none.
        reference: RMSE in metres of the mean depth map; None where no training pair has depth.
        missing: what is said of a row without scores.
    """
    head = ["", "RMSE [m]", "95 %", "seeds", "of the mean map's", "ABS_REL", "delta1", "minutes"]
    lines = [[*head, "against its control", "95 %"]]
    if reference is not None:
        lines.append(["mean depth map", f"{reference:.3f}", "", "", "1.000", *[""] * 5])
    for run in suite.rows:
        row = scores.get(run.name)
        if row is None:
            lines.append([run.name, missing, *[""] * 8])
            continue
        mean = mean_interval(row.errors)
        seeds = " ".join(f"{value:.3f}" for value in row.errors.mean(axis=1))
        cells = [run.name, f"{mean.value:.3f}", f"{mean.low:.3f} to {mean.high:.3f}", seeds]
        share = f"{mean.value / reference:.3f}" if reference else ""  # it is 0 for one pair, tested on itself
        cells += [share, *(f"{row.means[metric]:.3f}" for metric in METRICS[1:])]
        known = [minutes for minutes in row.minutes if not math.isnan(minutes)]
        cells.append(f"{statistics.median(known):.1f}" if known else "")
        found = change(row, scores.get(suite.control.get(run.name, "")))
        if found is None:
            cells += ["", ""]
        else:
            cells += [f"{100 * found.value:+.1f} %", f"{100 * found.low:+.1f} to {100 * found.high:+.1f} %"]
        lines.append(cells)
    return lines


def draw_curves(scores: Mapping[str, Scores]) -> bytes:
    """Draw the validation RMSE by epoch, the mean over the seeds and their range: a PNG."""
    figure, axis = plt.subplots(figsize=(9, max(5, 0.5 + 0.17 * len(scores))), layout="constrained")
    colors = matplotlib.colormaps["tab20"]
    for number, (name, row) in enumerate(scores.items()):
        length = min(len(curve) for curve in row.curves)
        if length == 0:
            continue
        curves = np.array([curve[:length] for curve in row.curves])
        epochs = np.arange(1, length + 1)
        line = ("-", "--", ":")[number // 20 % 3]  # there are twenty colours
        axis.plot(epochs, curves.mean(axis=0), label=name, color=colors(number % 20), linestyle=line)
        axis.fill_between(epochs, curves.min(axis=0), curves.max(axis=0), alpha=0.15, color=colors(number % 20))
    axis.set_xlabel("epoch")
    axis.set_ylabel("validation RMSE [m]")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1))  # no line is under it
    return _png(figure)


def draw_bars(suite: Suite, scores: Mapping[str, Scores], reference: float | None) -> bytes:
    """Draw each row's RMSE with its interval, and each seed as a point: a PNG."""
    rows = [run.name for run in suite.rows if run.name in scores]
    figure, axis = plt.subplots(figsize=(9, 0.8 + 0.34 * len(rows)), layout="constrained")
    controls = set(suite.control.values())
    for place, name in enumerate(reversed(rows)):
        mean = mean_interval(scores[name].errors)
        axis.barh(place, mean.value, color="tab:gray" if name in controls else "tab:blue", alpha=0.7)
        axis.plot([mean.low, mean.high], [place, place], color="black")
        points = scores[name].errors.mean(axis=1)
        axis.plot(points, [place] * len(points), ".", color="black", markersize=4)
    if reference is not None:
        axis.axvline(reference, color="tab:red", linestyle="--", label="mean depth map")
        axis.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1))  # no bar is under it
    axis.set_yticks(range(len(rows)), list(reversed(rows)), fontsize=8)
    axis.set_xlabel("test RMSE [m], 95 % interval, seeds; controls in grey")
    return _png(figure)


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, dpi=110)
    plt.close(figure)
    return stream.getvalue()


def versions() -> dict[str, str]:
    """Return what made the figures: commit, Python, libraries, machine."""
    libraries = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "torchvision", "numpy"))
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return {
        "commit": commit() or "unknown",
        "Python": platform.python_version(),
        "libraries": libraries,
        "machine": f"{cpu_name()}, {os.cpu_count()} cores{gpu}",
    }


def write_report(
    folder: Path,
    suite: Suite,
    scores: Mapping[str, Scores],
    records: Sequence[Record],
    *,
    command: Sequence[str],
    commands: Sequence[str],
    failed: Mapping[tuple[str, int], str],
    rooms: tuple[Path | None, str],
    warnings: Sequence[str] = (),
    missing: str = "failed",
) -> list[Path]:
    """Write ``report.md`` with its pictures, and ``report.html``, which needs no other file.

    Args:
        folder: where they go; it is made.
        suite: what was compared.
        scores: by the name of a row.
        records: of all trainings; the report says what made them.
        command: what repeats the suite.
        commands: what it ran.
        failed: why, of each (name, seed) that has no scores.
        rooms: a picture of the same test samples as each row predicts them, and its caption; None, and why there is
            none.
        warnings: of the trainings.
        missing: what is said of that which has no scores.
    """
    folder.mkdir(parents=True, exist_ok=True)
    means = [record.mean_map for record in records if record.mean_map is not None]
    reference = min(means, default=None)  # the mean of the most labels is the best one
    pictures = {"bars.png": draw_bars(suite, scores, reference), "curves.png": draw_curves(scores)}
    drawn, caption = rooms
    if drawn is not None:
        pictures["rooms.png"] = drawn.read_bytes()
    captions = {
        "bars.png": "Test RMSE of each row.",
        "curves.png": "Validation RMSE by epoch: mean and range of the seeds.",
        "rooms.png": caption,
    }
    lines = table(suite, scores, reference, missing)
    notes = [
        *findings(suite, scores),
        "RMSE in metres per image over the measured pixels, then the mean over the test images. Intervals: 95 %, from "
        "a bootstrap over seeds and test images; those of a difference are paired, over the seeds that both rows have. "
        "Minutes: of one training, without that of its teacher, the median of the seeds.",
        *(f"{name}, seed {seed}: {missing} ({why})" for (name, seed), why in failed.items()),
        *warnings,
        *([] if drawn else [caption]),
        *(f"{key}: {'; '.join(dict.fromkeys(r.made_by[key] for r in records))}" for key in records[0].made_by),
    ]
    repeat = f"python {shlex.join(command)}"

    text = [f"# {suite.title}", "", *_markdown(lines), "", *(f"- {note}" for note in notes), ""]
    text += ["```bash", repeat, "```", ""]
    text += [f"![{captions[name]}]({name})" for name in pictures]
    text += ["", "What was run:", "", "```", *commands, "```", ""]
    page = [f"<h1>{html.escape(suite.title)}</h1>", _html(lines)]
    page += [f"<p>{html.escape(note)}</p>" for note in notes]
    page += [f"<pre>{html.escape(repeat)}</pre>"]
    for name, picture in pictures.items():
        source = base64.b64encode(picture).decode()
        said, kind = html.escape(captions[name]), ' class="wide"' if name == "rooms.png" else ""
        page.append(f'<figure{kind}><img src="data:image/png;base64,{source}"><figcaption>{said}</figcaption></figure>')
    page += ["<details><summary>What was run</summary><pre>", html.escape("\n".join(commands)), "</pre></details>"]
    files = {**pictures, "report.md": "\n".join(text).encode(), "report.html": (_HEAD + "\n".join(page)).encode()}
    for name, content in files.items():
        with write_whole(folder / name) as file:
            file.write(content)
    return [folder / "report.md", folder / "report.html"]


_HEAD = """<!doctype html><meta charset="utf-8"><title>Report</title><style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left }
pre { background: #f5f5f5; padding: .7rem; overflow-x: auto }
img { max-width: 100% }
figure { margin: 2rem 0 }
figure.wide { overflow-x: auto }
figure.wide img { max-width: none }
figure.wide figcaption { position: sticky; left: 0 }
figcaption { color: #555 }
</style>
"""


def _markdown(lines: Sequence[Sequence[str]]) -> list[str]:
    head, *rest = [f"| {' | '.join(cells)} |" for cells in lines]
    return [head, "|" + "---|" * len(lines[0]), *rest]


def _html(lines: Sequence[Sequence[str]]) -> str:
    rows = []
    for number, cells in enumerate(lines):
        tag = "td" if number else "th"
        rows.append("<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>")
    return f"<table>{''.join(rows)}</table>"
