"""Every flag that the training scripts share: its name, its default, and whether it can be honoured.

A flag is a promise: each one is used, or refused before anything is read or written.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dataloaders import AUDIO_FORMATS, DATASETS, DEFAULT_DIRS, audio_channels
from errors import OptionError
from training.checkpoint_schema import LARGEST
from training.depth_losses import TASK_LOSSES

EPOCHS = "number of epochs"
WEIGHTS = "any .pth of a training script, or Depth Anything's weights (.pth, .safetensors)"
PRECISIONS = ("auto", "32", "bf16", "16")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Show defaults, but not those that say nothing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def _number(kind: type[int] | type[float], text: str, fits: Callable[[float], bool], what: str) -> Any:
    """Parse a number; one that does not fit, or is none, is said not to be ``what``.

    A whole number has 64 bits at most, as in the checkpoints that keep it.
    """
    try:
        value = kind(text)
    except ValueError:
        value = None
    if isinstance(value, int) and value > LARGEST:
        raise argparse.ArgumentTypeError(f"{text} is above {LARGEST}")
    if value is None or not fits(value):
        raise argparse.ArgumentTypeError(f"{text} is not {what}")
    return value


def positive_int(text: str) -> int:
    """Parse a whole number from 1 on."""
    return _number(int, text, lambda value: value >= 1, "a whole number from 1 on")


def non_negative_int(text: str) -> int:
    """Parse a whole number from 0 on."""
    return _number(int, text, lambda value: value >= 0, "a whole number from 0 on")


def positive_float(text: str) -> float:
    """Parse a finite number above 0."""
    return _number(float, text, lambda value: 0 < value < math.inf, "a number above 0")


def non_negative_float(text: str) -> float:
    """Parse a finite number from 0 on."""
    return _number(float, text, lambda value: 0 <= value < math.inf, "a number from 0 on")


def fraction(text: str) -> float:
    """Parse a number in [0, 1]."""
    return _number(float, text, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def some_text(text: str) -> str:
    """Take a text that says something: a variable of the shell that was never set is none."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; say what is meant, or leave the flag out")
    return text


def gpu_list(text: str) -> list[int]:
    """Parse ``0,1,3`` into different device numbers."""
    ids = [non_negative_int(part) for part in text.split(",")]
    if len(set(ids)) != len(ids):
        raise argparse.ArgumentTypeError(f"{text} names a GPU twice")
    return ids


def image_size(sides: Sequence[int]) -> int | tuple[int, int]:
    """Return a size of one number (a square) or of two (height, width).

    Raises:
        OptionError: more numbers.
    """
    if len(sides) > 2:
        raise OptionError(f"--image_size {' '.join(map(str, sides))}: the side of a square, or height and width")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def create_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser of the house: no abbreviated flags, defaults in the help."""
    return argparse.ArgumentParser(
        description=description,
        formatter_class=lambda prog: HelpFormatter(prog, max_help_position=32, width=110),
        allow_abbrev=False,
    )


def add_data_options(
    parser: argparse.ArgumentParser,
    *,
    dataset: str = "batvisionv2",
    hears: str | None = None,
    only_hears: bool = False,
    takes_pairs: bool = False,
) -> None:
    """Add what decides which samples a script trains on.

    ``hears``: also how echoes become pictures, by default in this format; ``only_hears``: also how scenes change their
    size, which a picture does not show; ``takes_pairs``: also a folder of pairs without depth.
    """
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", choices=sorted(DATASETS), default=dataset, help="simulated needs no download")
    group.add_argument(
        "--dataset_dir", type=Path, metavar="DIR", help=f"its folder (default: of {dataset} {DEFAULT_DIRS[dataset]})"
    )
    group.add_argument(
        "--image_size", type=positive_int, default=256, metavar="N", help="side of input and depth map [pixels]"
    )
    group.add_argument(
        "--max_depth",
        type=positive_float,
        metavar="M",
        help="cap [m] (default: 12 for V1 and simulated, 30 for V2, 10 for nyu)",
    )
    group.add_argument(
        "--min_depth", type=positive_float, default=1e-3, metavar="M", help="nearer depth is invalid [m]"
    )
    group.add_argument(
        "--num_workers",
        type=non_negative_int,
        default=4,
        metavar="N",
        help="loader processes, at most one for each core",
    )
    group.add_argument(
        "--cache_dir", type=Path, metavar="DIR", help="keep prepared samples here, and read them in every later epoch"
    )
    group.add_argument("--holdout_location", metavar="NAME[,NAME]", help="keep these locations for the test split")
    group.add_argument(
        "--label_fraction", type=fraction, default=1.0, metavar="F", help="share of training pairs with depth"
    )
    group.add_argument("--label_seed", type=non_negative_int, default=0, metavar="N", help="draws the labelled pairs")
    if takes_pairs:
        group.add_argument(
            "--pairs_dir",
            type=Path,
            metavar="DIR",
            help="a second folder of the data set's format: its training pairs are added, and their depth is not read",
        )
    group.add_argument("--augment", action="store_true", help="mirror image, depth and ears together; jitter RGB")
    if only_hears:
        group.add_argument(
            "--augment_scale",
            type=non_negative_float,
            default=0.0,
            metavar="S",
            help="make each scene up to 1 + S times as large or as small: its echoes come later, its depth grows "
            "(0.2 is a fifth; --audio_format interaural)",
        )
    if hears:
        add_audio_options(group, hears)


def add_audio_options(group: argparse._ArgumentGroup, default: str) -> None:
    """Add how echoes become pictures."""
    group.add_argument(
        "--audio_format",
        choices=AUDIO_FORMATS,
        default=default,
        help="what the network hears: a spectrogram of each ear (as it is, as its logarithm, or in mel bands), or "
        "interaural: those of the echoes without their chirp, and from which side each comes",
    )
    group.add_argument("--resample", action="store_true", help="bring other sample rates to 44.1 kHz")


def add_width_option(group: argparse._ArgumentGroup, help: str, metavar: str | None = None) -> None:
    """Add how wide a network is; ``help`` says what that means for it."""
    group.add_argument("--base_channels", type=positive_int, default=64, metavar=metavar, help=help)


def add_upsampling_option(group: argparse._ArgumentGroup, default: bool | None = True, note: str = "") -> None:
    """Add how a decoder enlarges its levels; ``note`` ends the help."""
    group.add_argument(
        "--bilinear",
        action=argparse.BooleanOptionalAction,
        default=default,
        help=f"upsampling; else transposed convolutions{note}",
    )


def add_attention_option(group: argparse._ArgumentGroup, help: str, default: list[int] | None = None) -> None:
    """Add the levels at which the ears ask each other."""
    group.add_argument(
        "--attention_levels", type=int, choices=range(1, 6), nargs="+", default=default, metavar="LEVEL", help=help
    )


def add_ears_option(group: argparse._ArgumentGroup, default: bool | None = False) -> None:
    """Add whether both ears have the same weights."""
    group.add_argument(
        "--share_ears",
        action=argparse.BooleanOptionalAction,
        default=default,
        help="one set of weights for both ears, instead of one for each",
    )


def add_compression_option(group: argparse._ArgumentGroup) -> None:
    """Add whether a model takes the logarithm of the spectrograms itself; :func:`hearing_config` reads it."""
    group.add_argument(
        "--compress_input",
        action=argparse.BooleanOptionalAction,
        help="take the logarithm of what is heard first (default: of --audio_format spectrogram alone)",
    )


def hearing_config(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of a model that follow from what it hears.

    By default it takes the logarithm itself of magnitudes, the one linear format.
    """
    asked = getattr(args, "compress_input", None)
    compresses = args.audio_format == "spectrogram" if asked is None else asked
    return {"compress_input": compresses, "audio_channels": audio_channels(args.audio_format)}


def add_depth_loss_options(
    group: argparse._ArgumentGroup, *, smoothness: str, lambda_smooth: float | None = 0.1, l1_alias: str | None = None
) -> None:
    """Add the distance from measured depth, its weight and that of smoothness.

    ``smoothness`` says which one it is, ``l1_alias`` is another name of the distance's weight.
    """
    names = ("--lambda_l1", l1_alias) if l1_alias else ("--lambda_l1",)
    group.add_argument(*names, type=non_negative_float, default=1.0, help="weight of the distance from measured depth")
    add_task_loss_option(group)
    group.add_argument("--lambda_smooth", type=non_negative_float, default=lambda_smooth, help=smoothness)


def add_task_loss_option(group: argparse._ArgumentGroup, default: str | None = "l1", note: str = "") -> None:
    """Add how the distance from measured depth is measured; ``note`` ends the help."""
    group.add_argument(
        "--task_loss",
        choices=tuple(TASK_LOSSES),
        default=default,
        help="distance from measured depth: of each image the mean absolute error, the root mean square error, half of "
        f"each [m], or the scale-invariant logarithmic one{note}",
    )


def add_training_options(
    parser: argparse.ArgumentParser,
    *,
    learning_rate: float = 1e-3,
    wandb_project: str = "batvision-depth-estimation",
    epochs: str = EPOCHS,
) -> None:
    """Add what every training script ends with: optimiser, experiment, device, repeatability."""
    add_optimization_options(parser, learning_rate=learning_rate, epochs=epochs)
    add_experiment_options(parser, wandb_project=wandb_project)
    add_run_options(parser)


def add_optimization_options(
    parser: argparse.ArgumentParser, *, batch_size: int = 64, learning_rate: float = 1e-3, epochs: str = EPOCHS
) -> None:
    """Add the optimiser's flags; ``epochs`` is the help of their number."""
    group = parser.add_argument_group("optimisation")
    group.add_argument(
        "--batch_size", type=positive_int, default=batch_size, metavar="N", help="over all processes together"
    )
    group.add_argument(
        "--micro_batch",
        type=positive_int,
        metavar="N",
        help="pairs that go through at a time, on each process; their gradients add up to the batch's (default: all, "
        "and half as many whenever the memory runs out)",
    )
    group.add_argument("--learning_rate", type=positive_float, default=learning_rate, metavar="LR", help="at the start")
    group.add_argument("--nb_epochs", type=positive_int, default=200, metavar="N", help=epochs)
    group.add_argument(
        "--steps_per_epoch",
        type=positive_int,
        metavar="N",
        help="batches of an epoch, however many pairs there are: equal steps for few labels and for many "
        "(default: once through the pairs)",
    )
    group.add_argument(
        "--optimizer",
        choices=("Adam", "AdamW", "Muon", "SGD"),
        default="AdamW",
        help="Muon: of matrices and convolutions, NAdamW of the rest; SGD: momentum 0.9",
    )
    group.add_argument("--weight_decay", type=non_negative_float, default=0.01, metavar="W", help="of the weights")
    group.add_argument(
        "--scheduler",
        choices=("none", "cosine", "step"),
        default="cosine",
        help="cosine: to 0 over all steps; step: to a tenth at 1/2 and at 3/4 of them",
    )
    group.add_argument(
        "--warmup_epochs",
        type=non_negative_float,
        default=0.0,
        metavar="N",
        help="all rates grow from nothing to the scheduler's, step by step; also part of an epoch",
    )
    group.add_argument("--limit_train_batches", type=positive_int, metavar="N", help="of an epoch (default: all)")
    group.add_argument("--limit_val_batches", type=positive_int, metavar="N", help="of a validation (default: all)")
    group.add_argument("--stop_after_epoch", type=positive_int, metavar="N", help="to resume later (default: the last)")


def add_experiment_options(parser: argparse.ArgumentParser, *, wandb_project: str) -> None:
    """Add where a run is kept, how it goes on, and where it is logged."""
    group = parser.add_argument_group("experiment")
    group.add_argument(
        "--experiment_name", metavar="NAME", help="of its folders (default: <stage>_<dataset>_BS<batch>_Lr<lr>)"
    )
    group.add_argument(
        "--output_dir", type=Path, default=Path(), metavar="DIR", help="holds checkpoints/, results/ and logs/"
    )
    group.add_argument(
        "--save_frequency", type=positive_int, default=2, metavar="N", help="epochs between checkpoints and pictures"
    )
    start = group.add_mutually_exclusive_group()
    start.add_argument(
        "--checkpoints", type=some_text, metavar="EPOCH|FILE", help="resume from that epoch's checkpoint"
    )
    start.add_argument("--resume", action="store_true", help="resume from last.pth")
    start.add_argument(
        "--init_from", type=some_text, metavar="NAME|FILE", help="take an experiment's weights and start at epoch 0"
    )
    start.add_argument("--overwrite", action="store_true", help="replace an experiment of the same name")
    group.add_argument("--use_wandb", action="store_true", help="log to Weights & Biases (WANDB_MODE=offline works)")
    group.add_argument("--wandb_project", default=wandb_project, metavar="NAME", help="its project")


def add_checkpoint_option(group: argparse._ActionsContainer, help: str = WEIGHTS, *, several: bool = False) -> None:
    """Add the file of the network that a script opens, or of ``several``; ``help`` says which files it takes."""
    nargs = "+" if several else None
    group.add_argument("--checkpoint", type=Path, required=True, nargs=nargs, metavar="FILE", help=help)


def add_one_device_options(parser: argparse.ArgumentParser, *, exact: bool = False) -> None:
    """Add where a script of one process computes, and how exactly; ``exact``: :func:`settle_precision` follows."""
    group = parser.add_argument_group("device")
    group.add_argument("--gpu_ids", type=gpu_list, metavar="N", help="the GPU to use (default: the first)")
    add_precision_option(group, "auto: bf16 on a GPU that has it, 32 on a CPU" if exact else None)


def add_mirror_option(group: argparse._ArgumentGroup) -> None:
    """Add whether a network is asked twice (:class:`training.mirrored.Mirrored`)."""
    group.add_argument(
        "--mirror",
        action="store_true",
        help="the mean of the answers to a sample and to its mirror image, in which the ears change places: a few "
        "percent more exact, twice the time",
    )


def add_precision_option(group: argparse._ArgumentGroup, help: str | None = None) -> None:
    """Add how exactly the network is computed."""
    help = help or "auto: bf16 where the hardware has it"
    group.add_argument("--precision", choices=PRECISIONS, default="auto", help=help)


def settle_precision(args: argparse.Namespace) -> None:
    """Take float32 for answers on a CPU, unless ``--precision`` says otherwise.

    A training gains more time by bfloat16 than it loses; one answer gains milliseconds, and would be up to 15 mm off
    what the exported file says.
    """
    if args.precision == "auto" and not torch.cuda.is_available():
        args.precision = "32"


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add where the network is computed, and what decides whether a run repeats itself."""
    group = parser.add_argument_group("device")
    group.add_argument("--gpu_ids", type=gpu_list, metavar="0,1,...", help="one process per GPU (default: the first)")
    group.add_argument(
        "--num_nodes", type=positive_int, default=1, metavar="N", help="machines, each started by torchrun or SLURM"
    )
    add_precision_option(group)
    group = parser.add_argument_group("repeatability and speed")
    group.add_argument(
        "--seed", type=non_negative_int, default=0, metavar="N", help="of the weights, the order and augmentation"
    )
    group.add_argument("--deterministic", action="store_true", help="refuse operations that do not repeat bit for bit")
    group.add_argument("--compile", action="store_true", help="torch.compile the training step")
    group.add_argument("--sync_bn", action="store_true", help="batch norm's statistics over all GPUs, not on each")


def parse_training_options(parser: argparse.ArgumentParser, stage: str, argv: Sequence[str] | None) -> Any:
    """Parse, and :func:`check_training_options`.

    Raises:
        OptionError: naming the flags that cannot be honoured.
    """
    args = parser.parse_args(argv)
    check_training_options(args, parser, stage)
    return args


def check_training_options(args: argparse.Namespace, parser: argparse.ArgumentParser, stage: str) -> None:
    """Check the flags together and fill in the experiment's name, which begins with ``stage``.

    ``parser`` is the one that they are of: what has another value than its default there was given.

    Raises:
        OptionError: naming the flags that cannot be honoured.
    """
    check_device(args)
    if args.max_depth is not None and args.max_depth <= args.min_depth:
        raise OptionError(f"--max_depth {args.max_depth} must be above --min_depth {args.min_depth}")
    if args.label_fraction < 1 and args.dataset == "images":
        raise OptionError("--label_fraction: --dataset images has no depth labels to leave out")
    refuse_idle(args, parser, idle_flags(args))
    if args.stop_after_epoch and args.stop_after_epoch > args.nb_epochs:
        raise OptionError(f"--stop_after_epoch {args.stop_after_epoch} is beyond --nb_epochs {args.nb_epochs}")
    if args.warmup_epochs >= args.nb_epochs:
        raise OptionError(f"--warmup_epochs {args.warmup_epochs:g} must be below --nb_epochs {args.nb_epochs}")
    if args.experiment_name is None:
        args.experiment_name = f"{stage}_{args.dataset}_BS{args.batch_size}_Lr{args.learning_rate:g}"
    if not is_folder_name(args.experiment_name):
        raise OptionError(f"--experiment_name {args.experiment_name!r} must be the name of a folder, not a path")
    args.stage = stage


def idle_flags(args: argparse.Namespace) -> dict[str, str]:
    """Return those of the shared flags that have no effect beside the others, and beside which.

    Raises:
        OptionError: the loss has no term.
    """
    idle = {}
    if args.label_fraction in (0, 1):
        idle["label_seed"] = f"with --label_fraction {args.label_fraction:g}: there is nothing to draw"
    if not args.use_wandb:
        idle["wandb_project"] = "without --use_wandb"
    if hasattr(args, "lambda_l1"):  # of a script of measured depth alone
        if not any(value for flag, value in vars(args).items() if flag.startswith("lambda_")):
            raise OptionError("all weights of the loss are 0: nothing would be learnt")
        if args.lambda_l1 == 0:
            idle["task_loss"] = "with --lambda_l1 0"
        if args.lambda_smooth == 0 and getattr(args, "lambda_edge", 0) == 0 and hasattr(args, "use_adaptive_loss"):
            idle["use_adaptive_loss"] = "with --lambda_smooth 0 and --lambda_edge 0"
    return idle


def refuse_idle(args: argparse.Namespace, parser: argparse.ArgumentParser, idle: Mapping[str, str]) -> None:
    """Refuse flags that have another value than their default, and no effect; ``idle`` says of each under what.

    Raises:
        OptionError: naming the first.
    """
    for flag, why in idle.items():
        if getattr(args, flag) != parser.get_default(flag):
            raise OptionError(f"--{flag} has no effect {why}")


def check_teacher_cache(args: argparse.Namespace, kept: str) -> None:
    """Refuse what ``--cache_teacher`` cannot keep; ``kept`` says what it keeps.

    Raises:
        OptionError: naming the flag.
    """
    if args.lambda_feat > 0:
        raise OptionError(f"--cache_teacher keeps {kept}; give --lambda_feat 0")
    if args.num_nodes > 1:
        raise OptionError("--cache_teacher is of one machine: --num_nodes 1")


def is_folder_name(name: str) -> bool:
    """Return whether a text names a folder inside another one: it is no path that leads elsewhere."""
    return name not in ("", ".", "..") and not any(mark in name for mark in "/\\\0")


def check_device(args: argparse.Namespace, most: int | None = None) -> None:
    """Refuse GPUs that are not there, more than ``most`` of them, and half precision on a CPU.

    Raises:
        OptionError: naming the flag and what this machine has.
    """
    uses_gpus = torch.cuda.is_available() and getattr(args, "device", None) != "cpu"
    present = torch.cuda.device_count() if uses_gpus else 0
    missing = [gpu for gpu in args.gpu_ids or [] if gpu >= present]
    if missing:
        raise OptionError(f"--gpu_ids {','.join(map(str, missing))}: this machine has {present} CUDA GPUs")
    if most is not None and len(args.gpu_ids or []) > most:
        raise OptionError(f"--gpu_ids {','.join(map(str, args.gpu_ids))}: this script runs on {most} GPU; name one")
    if args.precision == "16" and not present:
        raise OptionError("--precision 16 needs a CUDA GPU; on a CPU use bf16, 32 or auto")


def dataset_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of ``dataloaders.create_dataset`` that the flags set, but the split and the modalities."""
    options = {
        "name": args.dataset,
        "dataset_dir": args.dataset_dir,
        "image_size": args.image_size,
        "max_depth": args.max_depth,
        "min_depth": args.min_depth,
        "holdout_location": args.holdout_location,
        "label_fraction": args.label_fraction,
        "label_seed": args.label_seed,
        "augment": args.augment,
        "seed": args.seed,
        "cache_dir": args.cache_dir,
    }
    if hasattr(args, "audio_format"):
        options |= {"audio_format": args.audio_format, "resample": args.resample}
    if hasattr(args, "augment_scale"):
        options["augment_scale"] = args.augment_scale
    return options


def loader_options(args: argparse.Namespace, fabric: Any) -> dict[str, Any]:
    """Return the arguments of ``dataloaders.create_loaders`` that the flags and the processes set."""
    return {
        "batch_size": args.batch_size,
        "seed": args.seed,
        "num_workers": args.num_workers,
        "rank": fabric.global_rank,
        "world_size": fabric.world_size,
        "steps": args.steps_per_epoch,
    }


def plain_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return the flags as plain values (paths as text), for args.json and for the checkpoint."""

    def plain(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return {key: plain(value) for key, value in sorted(vars(args).items())}
