"""What a suite found out: a table with intervals, pictures, the commands; as Markdown and as one HTML page."""

from __future__ import annotations

import base64
import html
import math
import os
import platform
import shlex
import statistics
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import torch

from experiments.charts import draw_bars, draw_curves, draw_label_curves
from experiments.records import MADE_BY, METRICS, Record
from experiments.scores import Scores, change, shared
from experiments.statistics import Interval, change_interval, gap_closed_interval, gap_interval, mean_interval
from experiments.suites import Suite
from training.files import write_whole, writing
from training.machine import cpu_name
from training.version import commit

ONE_SEED = (
    "Intervals of one seed are over test images alone: they say nothing of how far another seed would be from it."
)


def findings(suite: Suite, scores: Mapping[str, Scores]) -> list[str]:
    """Return what the suite asks beside its controls, each answer a line: its comparisons, and its gaps."""
    lines = []
    for name, other in suite.comparisons:
        errors = shared(scores.get(name), scores.get(other))
        if errors is not None:
            lines.append(f"{name}, against {other}: {_percent(change_interval(errors[0], errors[1]), '+.1f')}")
    for start, name, end in suite.gaps:
        errors = shared(*(scores.get(row) for row in (start, name, end)))
        if errors is not None:
            closed = gap_closed_interval(errors[0], errors[1], errors[2])
            if closed is not None:
                said = f"{_percent(closed, '.0f')} of the gap"
            elif (gap := gap_interval(errors[0], errors[2])).value > 0:
                said = f"a gap that may be none, of {gap.value:.3f} m (95 %: {gap.low:.3f} to {gap.high:.3f} m),"
            else:
                said = "no gap to close"
            lines.append(f"{name}: {said} between {start}, and {end}")
    return lines


def _fewest_seeds(suite: Suite, scores: Mapping[str, Scores]) -> int:
    """Return over how few seeds an interval of the report is: a row's, or those that compared rows share."""
    together = [*((name,) for name in scores), *suite.control.items(), *suite.comparisons, *suite.gaps]
    found = [shared(*(scores.get(name) for name in names)) for names in together]
    return min((len(errors[0]) for errors in found if errors is not None), default=0)


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
    lines = [[*head, "against", "difference", "95 %"]]
    if reference is not None:
        lines.append(["mean depth map", f"{reference:.3f}", "", "", "1.000", *[""] * 6])
    for run in suite.rows:
        row = scores.get(run.name)
        if row is None:
            lines.append([run.name, missing, *[""] * 9])
            continue
        mean = mean_interval(row.errors)
        seeds = " ".join(f"{value:.3f}" for value in row.errors.mean(axis=1))
        cells = [run.name, f"{mean.value:.3f}", f"{mean.low:.3f} to {mean.high:.3f}", seeds]
        share = f"{mean.value / reference:.3f}" if reference else ""  # it is 0 for one pair, tested on itself
        cells += [share, *(f"{row.means[metric]:.3f}" for metric in METRICS[1:])]
        known = [minutes for minutes in row.minutes if not math.isnan(minutes)]
        cells.append(f"{statistics.median(known):.1f}" if known else "")
        control = suite.control.get(run.name, "")
        found = change(row, scores.get(control))
        if found is None:
            cells += ["", "", ""]
        else:
            cells += [control, f"{100 * found.value:+.1f} %", f"{100 * found.low:+.1f} to {100 * found.high:+.1f} %"]
        lines.append(cells)
    return lines


def versions() -> dict[str, str]:
    """Return what made the figures: commit, Python, libraries, machine."""
    libraries = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "torchvision", "numpy"))
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    machine = f"{cpu_name()}, {os.cpu_count()} cores{gpu}"
    return dict(zip(MADE_BY, (commit() or "unknown", platform.python_version(), libraries, machine), strict=True))


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
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    means = [record.mean_map for record in records if record.mean_map is not None]
    reference = min(means, default=None)  # the mean of the most labels is the best one
    trained = {name: row for name, row in scores.items() if row.run.network is None}
    pictures = {"bars.png": draw_bars(suite, scores, reference), "curves.png": draw_curves(trained)}
    if any(row in scores for points in suite.label_curves.values() for _, row in points):
        pictures["labels.png"] = draw_label_curves(suite, scores)
    drawn, caption = rooms
    if drawn is not None:
        pictures["rooms.png"] = drawn.read_bytes()
    captions = {
        "bars.png": "Test RMSE of each row.",
        "curves.png": "Validation RMSE by epoch: mean and range of the seeds.",
        "labels.png": "Test RMSE by the share of the training pairs that have a label: mean and range of the seeds.",
        "rooms.png": caption,
    }
    lines = table(suite, scores, reference, missing)
    notes = [
        *findings(suite, scores),
        "RMSE in metres per image over the measured pixels, then the mean over the test images. Intervals: 95 %, from "
        "a bootstrap over seeds and test images, widened for few seeds; those of a difference are paired, over the "
        "seeds that both rows have. Minutes: of one training, without that of its teacher, the median of the seeds.",
        *([ONE_SEED] if _fewest_seeds(suite, scores) == 1 else []),
        *(f"{name}, seed {seed}: {missing} ({why})" for (name, seed), why in failed.items()),
        *warnings,
        *([] if drawn else [caption]),
        *(f"{key}: {'; '.join(dict.fromkeys(r.made_by[key] for r in records))}" for key in MADE_BY),
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
        with writing(folder / name), write_whole(folder / name) as file:
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
