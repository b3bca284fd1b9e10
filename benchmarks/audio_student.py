"""The figures of docs/DISTILLATION.md and of the AdaBins guide: what an ear learns on simulated rooms, and from whom.

    python benchmarks/audio_student.py --suite dense      every pair has depth: the student and what it is compared with
    python benchmarks/audio_student.py --suite scarce     a tenth has depth: alone, and taught by who had the same tenth
    python benchmarks/audio_student.py --suite features   which feature loss, at which levels (validation rooms)
    python benchmarks/audio_student.py --suite tuning     the U-Net baseline's width and rate (validation rooms)
    python benchmarks/audio_student.py --suite adabins    every pair has depth: three ways to teach AdaBins, the U-Net
    python benchmarks/audio_student.py --suite bins       bin loss, temperature, number of bins (validation rooms)

Each training is a command of this toolkit, printed before it runs; one that is done is not run again, one that was
stopped goes on. Then one table: the RMSE of each on the split (per image over valid pixels, then the mean over images),
beside the mean depth map. Simulate the rooms first: ``python simulate_rooms.py --output data/SimulatedRooms``.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from errors import OptionError, TrainingError, run_script
from training import options
from training.checkpoint import load_checkpoint

HERE = Path(__file__).resolve().parent.parent
SIZE = ("--image_size", "64", "--batch_size", "16", "--augment")
STUDENT = ("train_binaural_attention.py", "--base_channels", "16", "--attention_levels", "4", "5")
TAUGHT = ("train_distillation.py", "--base_channels", "16", "--attention_levels", "4", "5")
SMALL_TAUGHT = ("train_distillation.py", "--base_channels", "8", "--attention_levels", "4", "5")


@dataclass(frozen=True)
class Training:
    """A row of a table: its suite, its name, its command but for data, seed and names, its length, its teacher."""

    suite: str
    name: str
    command: tuple[str, ...]
    epochs: int
    teacher: Training | None = None


def baseline(model: str, *flags: str) -> tuple[str, ...]:
    """Return the command of one of the systems that the student is compared with, under the student's budget."""
    return ("train_baseline.py", "--model", model, "--scheduler", "cosine", *flags)


UNET = Training(
    "dense",
    "unet_baseline",
    baseline("unet_baseline", "--base_channels", "32", "--learning_rate", "0.002"),
    15,
)


def dense() -> list[Training]:
    """All pairs have depth; all take the same pairs equally often."""
    return [
        Training("dense", "binaural student", STUDENT, 15),
        UNET,
        Training("dense", "base_residual", baseline("base_residual", "--base_channels", "16"), 15),
        Training("dense", "multimodal_fusion", baseline("multimodal_fusion", "--base_channels", "16"), 15),
    ]


def tuning() -> list[Training]:
    """Width and rate of the U-Net baseline."""
    return [
        Training(
            "tuning",
            f"width {width}, rate {rate}",
            baseline("unet_baseline", "--base_channels", f"{width}", "--learning_rate", f"{rate}"),
            15,
        )
        for width in (16, 32, 64)
        for rate in (0.0005, 0.001, 0.002, 0.004)
    ]


FEW = ("--label_fraction", "0.1", "--steps_per_epoch", "93")  # as many steps as all 1500 pairs would be
TEACHER = Training(
    "scarce", "teacher", ("train_rgb_depth.py", "--base_channels", "16", "--learning_rate", "0.002", *FEW), 10
)


# Loss, levels, weight: one with which the sum over the levels, once the adapters have settled, is about a fifth of the
# response's 0.25 m.
FEATURES = (
    ("mse", "x4 x5", 0.15),
    ("mse", "d1 d2 d3", 0.1),
    ("cosine", "x4 x5", 0.1),
    ("cosine", "d1 d2 d3", 0.1),
    ("cwd", "x1 x2 x3", 0.1),
    ("cwd", "x4 x5", 0.3),
    ("cwd", "d1 d2 d3", 0.25),
    ("similarity", "x4 x5", 2.5),
    ("similarity", "d1 d2 d3", 4.0),
    ("attention", "x4 x5", 0.04),
    ("attention", "d1 d2 d3", 0.04),
)


def scarce() -> list[Training]:
    """A tenth of the pairs has depth, the same tenth for all; all take equally many steps."""
    return [
        TEACHER,
        Training("scarce", "audio alone", (*STUDENT, *FEW), 12),
        Training("scarce", "distilled", (*TAUGHT, *FEW), 12, TEACHER),
    ]


def features() -> list[Training]:
    """As ``scarce``, with a narrower student: the response alone, and with each feature loss beside it."""
    taught = (*SMALL_TAUGHT, *FEW)
    rows = [TEACHER, Training("features", "response alone", taught, 6, TEACHER)]
    for kind, levels, weight in FEATURES:
        flags = ("--feature_loss", kind, "--lambda_feat", f"{weight:g}", "--feature_levels", *levels.split())
        rows.append(Training("features", f"{kind}, {levels}", (*taught, *flags), 6, TEACHER))
    return rows


def adabins_teacher(base_channels: int, *flags: str) -> tuple[str, ...]:
    """Return the command that trains a teacher of bins on its own."""
    return ("train_adabins_distillation.py", "--base_channels", f"{base_channels}", "--phase", "teacher", *flags)


def adabins_student(base_channels: int, *flags: str) -> tuple[str, ...]:
    """Return the command that trains a student of bins."""
    ears = ("--base_channels", f"{base_channels}", "--attention_levels", "4", "5")
    return ("train_adabins_distillation.py", *ears, *flags)


def adabins() -> list[Training]:
    """All pairs have depth; the three ways to teach an AdaBins student, and those whom nobody teaches."""
    bins = ("--n_bins", "64")
    eye = Training("adabins", "teacher", adabins_teacher(16, *bins), 10)
    return [
        eye,
        Training("adabins", "standard", adabins_student(16, *bins), 10),
        Training("adabins", "adaptive", adabins_student(16, "--use_adaptive_loss", *bins), 10),
        Training("adabins", "frozen", adabins_student(16, "--freeze_rgb", *bins), 10, eye),
        Training("adabins", "measured depth alone", adabins_student(16, "--phase", "finetune", *bins), 10),
        Training("adabins", UNET.name, UNET.command, 10),
    ]


ENCODER = ("--feature_levels", "x1", "x2", "x3", "x4", "x5")
SHARED = ("--bin_loss", "shared_support")
BINS = {
    "no bin loss": (*ENCODER, "--lambda_bin", "0"),
    "widths": (*ENCODER, "--bin_loss", "widths"),
    "widths, T 1": (*ENCODER, "--bin_loss", "widths", "--temperature", "1"),
    "widths, T 8": (*ENCODER, "--bin_loss", "widths", "--temperature", "8"),
    "shared_support": (*ENCODER, *SHARED),
    "shared_support, T 1": (*ENCODER, *SHARED, "--temperature", "1"),
    "shared_support, T 8": (*ENCODER, *SHARED, "--temperature", "8"),
    "wasserstein": (*ENCODER, "--bin_loss", "wasserstein"),
    "shared_support, no features": (*SHARED, "--lambda_feature", "0"),
    "shared_support, features d1 d2 d3": (*SHARED, "--feature_levels", "d1", "d2", "d3"),
}


def bins() -> list[Training]:
    """A tenth of the pairs has depth: narrow AdaBins students under a teacher that had the same tenth and stays frozen.

    64 bins, and the features of the encoder, where nothing else is said. A teacher has the student's number of bins, so
    that each number has its own.
    """
    rows = []
    for name, cut in {
        "": ("--n_bins", "64"),
        "16 bins": ("--n_bins", "16"),
        "256 bins": ("--n_bins", "256"),
        "fixed bins": ("--n_bins", "64", "--fixed_bins"),
    }.items():
        eye = Training("bins", f"teacher {name}".strip(), adabins_teacher(8, *cut, *FEW), 6)
        students = {name: (*ENCODER, *SHARED)} if name else BINS
        taught = adabins_student(8, "--freeze_rgb", *cut, *FEW)
        rows += [eye, *(Training("bins", kind, (*taught, *flags), 6, eye) for kind, flags in students.items())]
    return rows


SUITES = {
    "dense": dense,
    "scarce": scarce,
    "features": features,
    "tuning": tuning,
    "adabins": adabins,
    "bins": bins,
}


def create_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag and its default."""
    parser = options.create_parser((__doc__ or "").splitlines()[0])
    parser.add_argument("--suite", choices=tuple(SUITES), required=True, help="which trainings")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="these rows alone (default: all of the suite)")
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
    args.dataset_dir, args.output_dir = args.dataset_dir.resolve(), args.output_dir.resolve()
    suite = SUITES[args.suite]()
    for name in set(args.only or ()) - {row.name for row in suite}:
        raise OptionError(f"--only {name!r}: the rows of {args.suite} are {', '.join(row.name for row in suite)}")
    rows = [row for row in suite if not args.only or row.name in args.only]
    teachers = [row for row in suite if row in [other.teacher for other in rows]]
    rows = [row for row in suite if row in rows or row in teachers]
    for wave in (teachers, [row for row in rows if row not in teachers]):  # teachers before those whom they teach
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(lambda job: train(args, *job), [(row, seed) for seed in args.seeds for row in wave]))
    if not args.dry_run:
        figures = score(args, rows)
        print(table(figures))
        if args.json:
            settings = {"suite": args.suite, "split": args.split, "jobs": args.jobs, "torch": torch.__version__}
            args.json.write_text(json.dumps({"settings": settings, "rmse": figures}, indent=2) + "\n")


def checkpoint(args: argparse.Namespace, row: Training, seed: int) -> Path:
    """Return the file of one training's best epoch on the validation rooms."""
    folder = "_".join([row.suite, *row.name.replace(",", "").split(), f"seed{seed}"])
    root: Path = args.output_dir / "checkpoints" / folder
    return root / "best_model.pth"


def train(args: argparse.Namespace, row: Training, seed: int) -> None:
    """Run one training to its end, unless it is there.

    Raises:
        TrainingError: the command failed.
    """
    best = checkpoint(args, row, seed)
    last = best.with_name("last.pth")
    done = load_checkpoint(last)["epoch"] if last.is_file() else 0
    if done >= row.epochs:
        return
    command = [*row.command, *SIZE, "--nb_epochs", str(row.epochs), "--seed", str(seed), "--save_frequency", "1000"]
    command += ["--dataset", "simulated", "--dataset_dir", str(args.dataset_dir), "--num_workers", "0"]
    command += ["--output_dir", str(args.output_dir), "--experiment_name", best.parent.name]
    command += ["--resume" if done else "--overwrite"]
    if row.teacher:
        command += ["--teacher_checkpoint", str(checkpoint(args, row.teacher, seed))]
    print("python", shlex.join(command), flush=True)
    if args.dry_run:
        return
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // args.jobs))}
    ended = subprocess.run(
        [sys.executable, *command], cwd=HERE, env=os.environ | threads, stdout=subprocess.DEVNULL, check=False
    )
    if ended.returncode:
        raise TrainingError(f"{best.parent.name}: the command above failed (exit code {ended.returncode})")


def score(args: argparse.Namespace, rows: Sequence[Training]) -> dict[str, list[float]]:
    """Return the RMSE in metres of every seed of every row, and of the mean depth map."""
    files = [checkpoint(args, row, seed) for row in rows for seed in args.seeds]
    report = args.output_dir / "results" / f"{args.suite}_{args.split}.json"
    command = ["evaluate.py", "--dataset", "simulated", "--dataset_dir", str(args.dataset_dir), "--split", args.split]
    command += ["--num_workers", "0", "--output_dir", str(args.output_dir), "--json", str(report)]
    command += ["--checkpoint", *map(str, files)]
    subprocess.run([sys.executable, *command], cwd=HERE, stdout=subprocess.DEVNULL, check=True)
    scored: dict[str, Any] = json.loads(report.read_text())
    each = [row["rmse"] for row in scored["checkpoints"].values()] if len(files) > 1 else [scored["rmse"]]
    seeds = len(args.seeds)
    figures = {row.name: each[i * seeds : (i + 1) * seeds] for i, row in enumerate(rows)}
    return {"mean depth map": [scored["baselines"]["mean_map"]["rmse"]], **figures}


def table(figures: dict[str, list[float]]) -> str:
    """Return a Markdown table: mean, each seed, and the share of the mean map's error."""
    reference = figures["mean depth map"][0]
    lines = ["| | RMSE [m] | seeds | of the mean map's |", "|---|---|---|---|"]
    for name, values in figures.items():
        mean = statistics.mean(values)
        seeds = " ".join(f"{value:.3f}" for value in values) if len(values) > 1 else ""
        lines.append(f"| {name} | {mean:.3f} | {seeds} | {mean / reference:.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
