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
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import on_rooms
from errors import run_script
from experiments.runs import Run

SIZE = ("--image_size", "84", "--batch_size", "16", "--augment", "--num_workers", "0", "--visualize_every", "1000000")
SCRIPT = ("train_distill_any_depth.py", "--learning_rate", "0.001", "--warmup_epochs", "1")
MEASURED = ("--teacher_models", "ground_truth")
STEPS = ("--steps_per_epoch", "93")  # all 1500 pictures once
EPOCHS, TEACHER_EPOCHS = 10, 15

row = partial(Run, cached=False)  # views are cut anew in each epoch

TEACHER = row("rooms mini", (*SCRIPT, *MEASURED, *STEPS, "--student_arch", "mini"), TEACHER_EPOCHS)
ROWS = {
    "teacher: mini, on measured depth": TEACHER,
    "tiny, on measured depth": row("rooms tiny", (*SCRIPT, *MEASURED, *STEPS, "--student_arch", "tiny"), EPOCHS),
    "tiny, on a tenth of it": row(
        "rooms tiny tenth", (*SCRIPT, *MEASURED, *STEPS, "--student_arch", "tiny", "--label_fraction", "0.1"), EPOCHS
    ),
    **{
        f"tiny, taught by mini, {recipe} recipe": row(
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
    return on_rooms.create_parser(__doc__ or "")


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is not trained, score, print a Markdown table."""
    args = create_parser().parse_args(argv)
    scored = on_rooms.train_and_score(args, "distill_any_depth", ROWS, SIZE)
    if scored is None:
        return
    rows, mean_map = scored
    figures = {
        name: {metric: [seed[metric] for seed in seeds] for metric in ("abs_rel", "delta1")}
        for name, seeds in {"mean depth map": [mean_map], **rows}.items()
    }
    print(table(figures))
    on_rooms.write_json(args, {"figures": figures})


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
