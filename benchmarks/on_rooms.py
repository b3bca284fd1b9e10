"""What the comparisons of trainings on simulated rooms share: flags, the trainings themselves, their scores."""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from errors import OptionError, TrainingError
from experiments.runs import Run, Runner, data_flags, with_teachers
from training import files, options

Metrics = dict[str, Any]


def create_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the flags of every comparison."""
    parser = options.create_parser(description.splitlines()[0])
    group = parser.add_argument_group("rows")
    group.add_argument("--only", nargs="+", metavar="ROW", help="these rows alone (default: all)")
    group.add_argument(
        "--seeds", type=options.non_negative_int, nargs="+", default=[0, 1, 2], metavar="N", help="of each row"
    )
    group.add_argument(
        "--split", choices=("val", "test"), default="val", help="where they are scored; choose nothing by test"
    )
    group = parser.add_argument_group("run")
    group.add_argument(
        "--dataset_dir", type=Path, default=Path("data/SimulatedRooms"), metavar="DIR", help="the simulated rooms"
    )
    group.add_argument("--output_dir", type=Path, default=Path("runs"), metavar="DIR", help="holds the trainings")
    group.add_argument(
        "--jobs", type=options.positive_int, default=1, metavar="N", help="trainings at a time, of 1/N of the cores"
    )
    group.add_argument("--dry_run", action="store_true", help="print the commands and run none")
    group.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return parser


def train_and_score(
    args: argparse.Namespace, name: str, rows: Mapping[str, Run], shared: Sequence[str]
) -> tuple[dict[str, list[Metrics]], Metrics] | None:
    """Train what is not trained, and score the best epoch of every seed of every row on the split.

    A teacher of a row that was asked for is trained, and scored where it is a row.

    Args:
        args: the flags of :func:`create_parser`.
        name: of the report among the results.
        rows: what the table calls them, and how they are trained.
        shared: flags of all trainings.

    Returns:
        The metrics of each seed by row, and the mean depth map's; or None after ``--dry_run``.

    Raises:
        OptionError: ``--only`` names no row.
        TrainingError: a training failed, or the split could not be scored.
    """
    for row in set(args.only or ()) - set(rows):
        raise OptionError(f"--only {row!r}: the rows are {', '.join(rows)}")
    wanted = with_teachers([run for row, run in rows.items() if not args.only or row in args.only])
    data = data_flags("simulated", args.dataset_dir)
    runner = Runner(args.output_dir.resolve(), data, tuple(shared), args.jobs)
    if args.dry_run:
        for run in wanted:
            for seed in args.seeds:
                print("python", shlex.join(runner.command(run, seed)))
        return None
    failed = runner.train_all(wanted, args.seeds)
    if failed:
        raise TrainingError("; ".join(f"{row}, seed {seed}: {why}" for (row, seed), why in failed.items()))
    rows = {row: run for row, run in rows.items() if run in wanted}
    files = [f"{runner.best(run, seed)}" for run in rows.values() for seed in args.seeds]
    report = runner.output_dir / "results" / f"{name}_{args.split}.json"
    command = ["evaluate.py", "--split", args.split, "--num_workers", "0", "--json", f"{report}"]
    command += [*data, "--output_dir", f"{runner.output_dir}", "--checkpoint", *files]
    ended = runner.call(command)
    if ended.returncode:
        raise TrainingError(f"python {shlex.join(command)}: {ended.stderr.strip()}")
    scored: dict[str, Any] = json.loads(report.read_text())
    each = list(scored["checkpoints"].values()) if len(files) > 1 else [scored]
    seeds = len(args.seeds)
    return {row: each[i * seeds : (i + 1) * seeds] for i, row in enumerate(rows)}, scored["baselines"]["mean_map"]


def table(figures: Mapping[str, Sequence[float]]) -> str:
    """Return a Markdown table of RMSE in metres: mean, each seed, and the share of the mean map's error."""
    (reference,) = figures["mean depth map"]
    lines = ["| | RMSE [m] | seeds | of the mean map's |", "|---|---|---|---|"]
    for name, values in figures.items():
        mean = statistics.mean(values)
        seeds = " ".join(f"{value:.3f}" for value in values) if len(values) > 1 else ""
        lines.append(f"| {name} | {mean:.3f} | {seeds} | {mean / reference:.3f} |")
    return "\n".join(lines)


def write_json(args: argparse.Namespace, figures: Any, **settings: Any) -> None:
    """Write ``--json``, if it was asked for: what the figures were made under, and the figures."""
    if args.json:
        settings = {**settings, "split": args.split, "jobs": args.jobs, "torch": str(torch.__version__)}
        files.write_json({"settings": settings, **figures}, args.json)
