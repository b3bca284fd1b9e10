"""The figures of docs/DISTILL_ANY_DEPTH.md: does a small network learn more from a larger one than from measured depth?

    python benchmarks/distill_any_depth.py --jobs 2

A ``mini`` learns from the measured depth of simulated rooms, then teaches a ``tiny``, which never sees a depth label.
Beside it stand the same ``tiny`` on measured depth alone, and on a tenth of it; all take the same pictures and equally
many steps. One table: AbsRel and d1 on the split, once scale and shift are fitted to each image (``disparity_lsq``),
beside the mean depth map under the same protocol. Simulate the rooms first: ``python simulate_rooms.py --output
data/SimulatedRooms``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from errors import TrainingError, run_script
from experiments.runs import Laboratory, Run, with_teachers
from training import options

SIZE = ("--image_size", "84", "--batch_size", "16", "--augment", "--num_workers", "0", "--visualize_every", "1000000")
SCRIPT = ("train_distill_any_depth.py", "--learning_rate", "0.001", "--warmup_epochs", "1")
MEASURED = ("--teacher_models", "ground_truth")
STEPS = ("--steps_per_epoch", "93")  # all 1500 pictures once
EPOCHS, TEACHER_EPOCHS = 10, 15

TEACHER = Run("rooms mini", (*SCRIPT, *MEASURED, *STEPS, "--student_arch", "mini"), TEACHER_EPOCHS)
ROWS = {
    "teacher: mini, on measured depth": TEACHER,
    "tiny, on measured depth": Run("rooms tiny", (*SCRIPT, *MEASURED, *STEPS, "--student_arch", "tiny"), EPOCHS),
    "tiny, on a tenth of it": Run(
        "rooms tiny tenth", (*SCRIPT, *MEASURED, *STEPS, "--student_arch", "tiny", "--label_fraction", "0.1"), EPOCHS
    ),
    **{
        f"tiny, taught by mini, {recipe} recipe": Run(
            f"rooms tiny taught {recipe}",
            (*SCRIPT, "--teacher_models", "mini", "--student_arch", "tiny", "--recipe", recipe, *STEPS),
            EPOCHS,
            teacher=TEACHER,
            teacher_flag="--teacher_checkpoints",
        )
        for recipe in ("paper", "documents")
    },
}


def create_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag and its default."""
    parser = options.create_parser((__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--seeds", type=options.non_negative_int, nargs="+", default=[0, 1, 2], metavar="N", help="of each row"
    )
    parser.add_argument(
        "--split", choices=("val", "test"), default="val", help="where they are scored; choose nothing by test"
    )
    parser.add_argument(
        "--dataset_dir", type=Path, default=Path("data/SimulatedRooms"), metavar="DIR", help="the simulated rooms"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("runs"), metavar="DIR", help="holds the trainings")
    parser.add_argument(
        "--jobs", type=options.positive_int, default=1, metavar="N", help="trainings at a time, of 1/N of the cores"
    )
    parser.add_argument("--dry_run", action="store_true", help="print the commands and run none")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is not trained, score, print a Markdown table."""
    args = create_parser().parse_args(argv)
    data = ("--dataset", "simulated", "--dataset_dir", f"{args.dataset_dir.resolve()}")
    laboratory = Laboratory(args.output_dir.resolve(), data, SIZE, args.jobs)
    if args.dry_run:
        for run in with_teachers(list(ROWS.values())):
            for seed in args.seeds:
                print("python", shlex.join(laboratory.command(run, seed)))
        return
    failed = laboratory.train_all(list(ROWS.values()), args.seeds)
    if failed:
        raise TrainingError("; ".join(f"{name}, seed {seed}: {why}" for (name, seed), why in failed.items()))
    figures = score(args, laboratory)
    print(table(figures))
    if args.json:
        settings = {"split": args.split, "jobs": args.jobs, "torch": torch.__version__}
        args.json.write_text(json.dumps({"settings": settings, "figures": figures}, indent=2) + "\n")


def score(args: argparse.Namespace, laboratory: Laboratory) -> dict[str, dict[str, list[float]]]:
    """Return AbsRel and d1 of every seed of every row, and of the mean depth map.

    Raises:
        TrainingError: the split could not be scored.
    """
    files = [f"{laboratory.best(run, seed)}" for run in ROWS.values() for seed in args.seeds]
    report = laboratory.output_dir / "results" / f"distill_any_depth_{args.split}.json"
    command = ["evaluate.py", "--split", args.split, "--num_workers", "0", "--json", f"{report}"]
    command += [*laboratory.data, "--output_dir", f"{laboratory.output_dir}", "--checkpoint", *files]
    ended = laboratory.call(command, capture_output=True, text=True)
    if ended.returncode:
        raise TrainingError(f"python {shlex.join(command)}: {ended.stderr.strip()}")
    scored: dict[str, Any] = json.loads(report.read_text())
    each, seeds = list(scored["checkpoints"].values()), len(args.seeds)
    rows = {"mean depth map": [scored["baselines"]["mean_map"]]}
    rows |= {name: each[i * seeds : (i + 1) * seeds] for i, name in enumerate(ROWS)}
    return {
        name: {metric: [row[metric] for row in seeds_of] for metric in ("abs_rel", "delta1")}
        for name, seeds_of in rows.items()
    }


def table(figures: dict[str, dict[str, list[float]]]) -> str:
    """Return a Markdown table: mean and each seed."""
    lines = ["| | AbsRel | seeds | d1 |", "|---|---|---|---|"]
    for name, metrics in figures.items():
        seeds = " ".join(f"{value:.4f}" for value in metrics["abs_rel"]) if len(metrics["abs_rel"]) > 1 else ""
        means = [statistics.mean(metrics[key]) for key in ("abs_rel", "delta1")]
        lines.append(f"| {name} | {means[0]:.4f} | {seeds} | {means[1]:.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
