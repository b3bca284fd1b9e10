"""The figures of docs/DISTILLATION.md and of the AdaBins guide: what an ear learns on simulated rooms, and from whom.

    python benchmarks/audio_student.py --suite dense      every pair has depth: the student and what it is compared with
    python benchmarks/audio_student.py --suite scarce     a tenth has depth: alone, and taught by who had the same tenth
    python benchmarks/audio_student.py --suite features   which feature loss, at which levels (validation rooms)
    python benchmarks/audio_student.py --suite tuning     the U-Net baseline's width and rate (validation rooms)
    python benchmarks/audio_student.py --suite adabins    every pair has depth: three ways to teach AdaBins, the U-Net
    python benchmarks/audio_student.py --suite bins       bin loss, temperature, number of bins (validation rooms)

Each training is a command of this toolkit, printed before it runs; one that is done is not run again, one that was
stopped goes on. Then one table: the RMSE of each on the split (per image over valid pixels, then the mean over images),
beside the mean depth map. The students hear spectrograms; those that hear both ears together are in docs/results.md.
Simulate the rooms first: ``python simulate_rooms.py --output data/SimulatedRooms``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import on_rooms
from errors import run_script
from experiments.runs import Run

HEARS = ("--audio_format", "spectrogram")  # what these figures are of; students hear both ears together by default
SIZE = ("--image_size", "64", "--batch_size", "16", "--augment", "--num_workers", "0")
STUDENT = ("train_binaural_attention.py", "--base_channels", "16", "--attention_levels", "4", "5", *HEARS)
TAUGHT = ("train_distillation.py", "--base_channels", "16", "--attention_levels", "4", "5", *HEARS)
SMALL_TAUGHT = ("train_distillation.py", "--base_channels", "8", "--attention_levels", "4", "5", *HEARS)


Rows = dict[str, Run]  # by what the table calls them


def baseline(model: str, *flags: str) -> tuple[str, ...]:
    """Return the command of one of the systems that the student is compared with, under the student's budget."""
    return ("train_baseline.py", "--model", model, "--scheduler", "cosine", *flags)


UNET = baseline("unet_baseline", "--base_channels", "32", "--learning_rate", "0.002")


def dense() -> Rows:
    """All pairs have depth; all take the same pairs equally often."""
    return {
        "binaural student": Run("dense binaural student", STUDENT, 15),
        "unet_baseline": Run("dense unet_baseline", UNET, 15),
        "base_residual": Run("dense base_residual", baseline("base_residual", "--base_channels", "16"), 15),
        "multimodal_fusion": Run("dense multimodal_fusion", baseline("multimodal_fusion", "--base_channels", "16"), 15),
    }


def tuning() -> Rows:
    """Width and rate of the U-Net baseline."""
    rows = {}
    for width in (16, 32, 64):
        for rate in (0.0005, 0.001, 0.002, 0.004):
            name, size = f"width {width}, rate {rate}", ("--base_channels", f"{width}", "--learning_rate", f"{rate}")
            rows[name] = Run(f"tuning {name}", baseline("unet_baseline", *size), 15)
    return rows


FEW = ("--label_fraction", "0.1", "--steps_per_epoch", "93")  # as many steps as all 1500 pairs would be
TEACHER = Run("scarce teacher", ("train_rgb_depth.py", "--base_channels", "16", "--learning_rate", "0.002", *FEW), 10)


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


def scarce() -> Rows:
    """A tenth of the pairs has depth, the same tenth for all; all take equally many steps."""
    return {
        "teacher": TEACHER,
        "audio alone": Run("scarce audio alone", (*STUDENT, *FEW), 12),
        "distilled": Run("scarce distilled", (*TAUGHT, *FEW), 12, teacher=TEACHER),
    }


def features() -> Rows:
    """As ``scarce``, with a narrower student: the response alone, and with each feature loss beside it."""
    taught = (*SMALL_TAUGHT, *FEW)
    rows = {"teacher": TEACHER, "response alone": Run("features response alone", taught, 6, teacher=TEACHER)}
    for kind, levels, weight in FEATURES:
        flags = ("--feature_loss", kind, "--lambda_feat", f"{weight:g}", "--feature_levels", *levels.split())
        name = f"{kind}, {levels}"
        rows[name] = Run(f"features {name}", (*taught, *flags), 6, teacher=TEACHER)
    return rows


def adabins_teacher(base_channels: int, *flags: str) -> tuple[str, ...]:
    """Return the command that trains a teacher of bins on its own."""
    return ("train_adabins_distillation.py", "--base_channels", f"{base_channels}", "--phase", "teacher", *flags)


def adabins_student(base_channels: int, *flags: str) -> tuple[str, ...]:
    """Return the command that trains a student of bins."""
    ears = ("--base_channels", f"{base_channels}", "--attention_levels", "4", "5", *HEARS)
    return ("train_adabins_distillation.py", *ears, *flags)


ASKED = ("--response_at", "everywhere")  # as the teacher was when the guide's tables were made


def adabins() -> Rows:
    """All pairs have depth; the three ways to teach an AdaBins student, and those whom nobody teaches."""
    bins = ("--n_bins", "64")
    eye = Run("adabins teacher", adabins_teacher(16, *bins), 10)
    return {
        "teacher": eye,
        "standard": Run("adabins standard", adabins_student(16, *ASKED, *bins), 10),
        "adaptive": Run("adabins adaptive", adabins_student(16, "--use_adaptive_loss", *ASKED, *bins), 10),
        "frozen": Run("adabins frozen", adabins_student(16, "--freeze_rgb", *ASKED, *bins), 10, teacher=eye),
        "measured depth alone": Run("adabins alone", adabins_student(16, "--phase", "finetune", *bins), 10),
        "unet_baseline": Run("adabins unet_baseline", UNET, 10),
    }


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


def bins() -> Rows:
    """A tenth of the pairs has depth: narrow AdaBins students under a teacher that had the same tenth and stays frozen.

    64 bins, and the features of the encoder, where nothing else is said. A teacher has the student's number of bins, so
    that each number has its own.
    """
    rows = {}
    for cut, flags in {
        "": ("--n_bins", "64"),
        "16 bins": ("--n_bins", "16"),
        "256 bins": ("--n_bins", "256"),
        "fixed bins": ("--n_bins", "64", "--fixed_bins"),
    }.items():
        eye = Run(f"bins teacher {cut}", adabins_teacher(8, *flags, *FEW), 6)
        rows[f"teacher {cut}".strip()] = eye
        taught = adabins_student(8, "--freeze_rgb", *ASKED, *flags, *FEW)
        for name, choice in ({cut: (*ENCODER, *SHARED)} if cut else BINS).items():
            rows[name] = Run(f"bins {name}", (*taught, *choice), 6, teacher=eye)
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
    parser = on_rooms.create_parser(__doc__ or "")
    parser.add_argument("--suite", choices=tuple(SUITES), required=True, help="which trainings")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is not trained, score, print a Markdown table."""
    args = create_parser().parse_args(argv)
    scored = on_rooms.train_and_score(args, args.suite, SUITES[args.suite](), SIZE)
    if scored is None:
        return
    rows, mean_map = scored
    figures = {"mean depth map": [mean_map["rmse"]], **{row: [seed["rmse"] for seed in rows[row]] for row in rows}}
    print(on_rooms.table(figures))
    on_rooms.write_json(args, {"rmse": figures}, suite=args.suite)


if __name__ == "__main__":
    run_script(main)
