"""Distil one Depth Anything network into a smaller one: disparity from a picture, without a depth label.

After He et al., "Distill Any Depth" (arXiv 2502.19204): the student answers to a view, frozen teachers to the view and
to closer views of its parts. Measured depth is not needed by any of the five terms; where a data set has it, it
validates, and --teacher_models ground_truth puts it in a teacher's place.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader

from dataloaders import CropRule, DepthDataset, create_dataset, create_loaders
from errors import CheckpointError, OptionError, run_script
from models.depth_anything import ALIASES, PRESETS, DepthAnything, create_depth_anything_model, find_preset
from models.depth_anything_files import PUBLISHED
from models.weights import read_metadata
from training import loop, options
from training.checkpoint import (
    OWN_LICENSE,
    join_licenses,
    license_of,
    load_checkpoint,
    load_model,
    restore_model,
    save_model,
)
from training.engine import create_fabric, resolve_precision, seed_weights
from training.experiment import Experiment
from training.metrics import scoring_on
from training.model_card import model_card, write_card
from training.session import Validation, distance_validation, run_training
from training.task import Batch
from training.tasks import DisparityDistillationTask, MeasuredDisparity
from training.teacher_cache import open_cache
from training.visualization import Column, save_grid
from utils_distillation_loss import HDN_VARIANTS, NORMALIZATIONS, RECIPES, DisparityDistillationLoss

GROUND_TRUTH = "ground_truth"
NETWORKS = (*PRESETS, *ALIASES)
MULTIPLE = DepthAnything.size_multiple
WEIGHTS = ("lambda_sc", "lambda_lg", "lambda_feat", "lambda_grad", "lambda_hdn")
PICTURED = 4  # samples in the picture of a step
# None in the parser, so that one given in vain is refused.
VIEWS: dict[str, Any] = {"local_crops": 2, "global_scale": [0.7, 1.0], "local_scale": [0.4, 0.8]}
CONTEXTS: dict[str, Any] = {"hdn_variant": "dr", "hdn_level": 3}
COMPARED: dict[str, Any] = {"normalization": None, "trim": 0.0}  # of sc and lg; the normalisation is the recipe's
MOST_LEVELS = 8  # the last of which cuts a picture into 128 x 128 cells
FEATURE_MARGIN = 0.85


def create_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag and its default."""
    parser = options.create_parser((__doc__ or "").splitlines()[0])
    options.add_data_options(parser, dataset="nyu")
    group = parser.add_argument_group("views")
    group.add_argument(
        "--local_crops", type=options.non_negative_int, metavar="N", help="closer views of each picture (default: 2)"
    )
    group.add_argument(
        "--global_scale", type=options.fraction, nargs=2, metavar=("A", "B"),
        help="side of the view, a square: between these shares of the picture's shorter side (default: 0.7 1)",
    )  # fmt: skip
    group.add_argument(
        "--local_scale", type=options.fraction, nargs=2, metavar=("A", "B"),
        help="side of a closer view, between these shares of the view's (default: 0.4 0.8)",
    )  # fmt: skip
    group.add_argument(
        "--fixed_views", action="store_true", help="whole pictures, resized to the square, instead of crops"
    )
    group = parser.add_argument_group("teachers and student")
    group.add_argument(
        "--teacher_models", nargs="+", choices=(*NETWORKS, GROUND_TRUTH), default=["depthanything-large"],
        metavar="NAME", help=f"{', '.join(NETWORKS)}; {GROUND_TRUTH}: measured depth in a teacher's place",
    )  # fmt: skip
    group.add_argument(
        "--teacher_checkpoints", type=Path, nargs="+", default=[], metavar="FILE",
        help="weights of each network among them: published (.pth, .safetensors), or of a run of this script",
    )  # fmt: skip
    group.add_argument(
        "--teacher_weights", type=shares, metavar="A,B,...", help="how often each is drawn (default: equally often)"
    )
    group.add_argument("--student_arch", choices=NETWORKS, default="depthanything-base", metavar="NAME", help="learns")
    group.add_argument(
        "--student_checkpoint", type=Path, metavar="FILE", help="weights that it begins with (default: random ones)"
    )
    group.add_argument(
        "--teacher_precision", choices=("auto", "32", "bf16"), default="auto",
        help="auto: bf16 where the hardware has it, whatever --precision says of the student",
    )  # fmt: skip
    group.add_argument(
        "--cache_teacher", type=Path, metavar="DIR",
        help="keep its answers here, of --fixed_views with --lambda_feat 0, and ask it once for each picture",
    )  # fmt: skip
    group = parser.add_argument_group("loss")
    group.add_argument(
        "--recipe", choices=tuple(RECIPES), default="documents",
        help="weights and normalisation: the paper's, or those of the documents; each can be given on its own",
    )  # fmt: skip
    for flag, of in zip(WEIGHTS, ("shared view", "closer views", "tokens", "gradients", "HDN"), strict=True):
        values = " or ".join(f"{RECIPES[recipe][flag]:g} ({recipe})" for recipe in RECIPES)
        group.add_argument(
            f"--{flag}", type=options.non_negative_float, metavar="W", help=f"of {of} (default: {values})"
        )
    group.add_argument("--normalization", choices=NORMALIZATIONS, help="of shared and closer views")
    group.add_argument("--hdn_variant", choices=HDN_VARIANTS, help="segments of range, ranks or space (default: dr)")
    group.add_argument(
        "--hdn_level", type=levels, metavar="N", help=f"levels of contexts, 1 to {MOST_LEVELS} (default: 3)"
    )
    group.add_argument(
        "--trim", type=less_than_all, metavar="F", help="share of the largest residuals left out (default: 0)"
    )
    group.add_argument(
        "--feature_margin", type=options.fraction, metavar="C",
        help=f"tokens closer than this cosine rest (default: {FEATURE_MARGIN})",
    )  # fmt: skip
    options.add_training_options(parser, learning_rate=1e-4, wandb_project="distill-any-depth")
    group = parser.add_argument_group("schedule and memory")
    group.add_argument(
        "--encoder_learning_rate",
        type=options.positive_float,
        metavar="LR",
        help="of the transformer (default: a tenth of the other under --student_checkpoint, else the same)",
    )
    group.add_argument("--gradient_checkpointing", action="store_true", help="less memory, a third more time")
    group.add_argument(
        "--visualize_every", type=options.positive_int, default=100, metavar="N", help="steps between two pictures"
    )
    group = parser.add_argument_group("other names")
    for alias, flag, kind in (
        ("--lr", "learning_rate", options.positive_float),
        ("--num_epochs", "nb_epochs", options.positive_int),
        ("--global_crop_size", "image_size", options.positive_int),
    ):
        group.add_argument(alias, dest=flag, type=kind, default=argparse.SUPPRESS, metavar="N", help=f"--{flag}")
    group.add_argument(
        "--use_nyu_dataset", dest="dataset", action="store_const", const="nyu", default=argparse.SUPPRESS,
        help="--dataset nyu",
    )  # fmt: skip
    group.add_argument("--device", choices=("cuda", "cpu"), help="instead of --gpu_ids")
    parser.set_defaults(image_size=392, batch_size=8, nb_epochs=30, weight_decay=1e-5)
    return parser


def shares(text: str) -> list[float]:
    """Parse ``7,3`` into numbers above 0."""
    return [options.positive_float(part) for part in text.split(",")]


def levels(text: str) -> int:
    """Parse a whole number of levels of contexts: each has twice or four times as many as the one before."""
    value = options.positive_int(text)
    if value > MOST_LEVELS:
        raise argparse.ArgumentTypeError(f"{text} is above {MOST_LEVELS}")
    return value


def less_than_all(text: str) -> float:
    """Parse a number in [0, 1)."""
    value = options.fraction(text)
    if value == 1:
        raise argparse.ArgumentTypeError(f"{text} leaves nothing to learn from; give less than 1")
    return value


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, build, fit, export."""
    parser = create_parser()
    args = parser.parse_args(argv)
    notes = check_options(args)
    options.check_training_options(args, parser, "distill_any_depth")
    if args.encoder_learning_rate is None:
        args.encoder_learning_rate = default_encoder_rate(args)
    fabric = create_fabric(args, rests=len(args.teacher_models) > 1)
    datasets = create_datasets(args)
    if args.dataset == "images" and datasets["train"].ids == datasets["val"].ids:
        args.held_out = False  # the model card says so
        count = len(datasets["val"])
        notes.append(f"the folder has no train/ and val/: its {count} pictures teach, and compare the epochs too")
    only_labelled = args.teacher_models == [GROUND_TRUTH]  # from the others, nothing could be learnt
    loaders = create_loaders(datasets, **options.loader_options(args, fabric), only_labelled=only_labelled)
    teachers, licenses = open_teachers(args)
    seed_weights(args.seed)
    student, own = create_student(args, notes)
    args.license = join_licenses(*licenses, *own) or OWN_LICENSE
    task = DisparityDistillationTask(
        student,
        teachers,
        [create_loss(args, student, teacher) for teacher in teachers],
        args.teacher_weights,
        encoder=student.pretrained,
        encoder_rate=args.encoder_learning_rate / args.learning_rate,
        bf16_teachers=resolve_precision(args.teacher_precision, fabric.device.type) == "bf16",
        seed=args.seed,
    )

    def prepare() -> None:
        if args.cache_teacher:
            teacher: Any = task.teacher0
            key = {"precision": "bf16" if task.bf16_teachers else "32", "dataset": args.dataset}
            task.cache = open_cache(fabric, args.cache_teacher, teacher, datasets["train"], args.image_size, **key)

    picture = StepPicture(args, fabric, task)
    run_training(
        args,
        fabric,
        task,
        loaders["train"],
        loaders["val"],
        columns=columns_with(task, fabric),
        notes=notes,
        validation=create_validation(args, fabric, task, datasets, loaders["val"]),
        on_step=picture,
        prepare=prepare,
    )
    if fabric.is_global_zero:
        export_student(args, Experiment(args.output_dir, args.experiment_name))


# -------------------------------------------------------------------------------------------------------------- options


def check_options(args: argparse.Namespace) -> list[str]:
    """Refuse what cannot be honoured, fill in what was left open; return what the log should say.

    Raises:
        OptionError: naming the flag.
    """
    notes = []
    check_teachers(args)
    check_loss_and_views(args)
    if args.cache_teacher:
        check_cache(args)
    if args.device and args.gpu_ids:
        raise OptionError(f"--device {args.device} stands beside --gpu_ids; give one of the two")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise OptionError("--device cuda: this machine has no CUDA GPU")
    if args.image_size % MULTIPLE:
        rounded = -(-args.image_size // MULTIPLE) * MULTIPLE
        notes.append(f"--image_size {args.image_size} is no multiple of {MULTIPLE}: {rounded} is used")
        args.image_size = rounded
    return notes


def default_encoder_rate(args: argparse.Namespace) -> float:
    """Return a tenth of the rate for an encoder with published weights; a run goes on with that which it began with.

    Raises:
        CheckpointError: what is to be resumed is missing or broken.
    """
    if (args.resume or args.checkpoints) and not args.student_checkpoint:
        begun = Experiment(args.output_dir, args.experiment_name).find_start(args).checkpoint or {}
        return begun.get("args", {}).get("encoder_learning_rate") or args.learning_rate
    return args.learning_rate / 10 if args.student_checkpoint else args.learning_rate


def check_teachers(args: argparse.Namespace) -> None:
    """Make sure that each teacher has what it teaches from.

    Raises:
        OptionError: naming the flag.
    """
    networks = networks_of(args)
    measured = GROUND_TRUTH in args.teacher_models
    if len(args.teacher_checkpoints) != len(networks):
        raise OptionError(
            f"--teacher_checkpoints: {len(args.teacher_checkpoints)} files for {len(networks)} networks "
            f"({' '.join(networks) or 'none'}); a teacher has learnt, so each needs its weights"
        )
    if args.teacher_weights is None:
        args.teacher_weights = [1.0] * len(args.teacher_models)
    elif len(args.teacher_models) == 1:
        raise OptionError("--teacher_weights has no effect: there is one teacher")
    if len(args.teacher_weights) != len(args.teacher_models):
        raise OptionError(f"--teacher_weights: {len(args.teacher_weights)} for {len(args.teacher_models)} teachers")
    if not networks and args.teacher_precision != "auto":
        raise OptionError(f"--teacher_precision has no effect under {GROUND_TRUTH} alone: nothing is computed")
    if measured and args.dataset == "images":
        raise OptionError(f"--teacher_models {GROUND_TRUTH}: --dataset images has no depth")
    if measured and args.label_fraction == 0:
        raise OptionError(f"--label_fraction 0 leaves nothing for {GROUND_TRUTH} to teach")
    if not measured and args.label_fraction < 1:
        raise OptionError(f"--label_fraction has no effect without --teacher_models {GROUND_TRUTH}")


def networks_of(args: argparse.Namespace) -> list[str]:
    """Return the names of those teachers that are networks."""
    return [name for name in args.teacher_models if name != GROUND_TRUTH]


def check_loss_and_views(args: argparse.Namespace) -> None:
    """Fill in the weights of the recipe, and the views that they compare.

    Raises:
        OptionError: naming a flag that has no effect, or a weight with nothing to compare.
    """
    recipe, given = RECIPES[args.recipe], vars(args)
    idle: dict[str, str] = {}  # flags without an effect, and under what
    if args.fixed_views:
        idle |= dict.fromkeys((*VIEWS, "lambda_lg"), "with --fixed_views: there are no crops")
    if not networks_of(args):
        why = f"under {GROUND_TRUTH} alone: it compares with a network"
        idle |= dict.fromkeys(("local_crops", "local_scale", "lambda_lg", "lambda_feat"), why)
    for flag, why in idle.items():
        if given[flag]:
            raise OptionError(f"--{flag} has no effect {why}")
    for flag in WEIGHTS:
        given[flag] = 0.0 if flag in idle else recipe[flag] if given[flag] is None else given[flag]
    compares = args.lambda_sc > 0 or args.lambda_lg > 0 or args.dataset == "images"  # whose val_distance is sc
    for flag in () if compares else COMPARED:
        if given[flag] is not None:
            raise OptionError(f"--{flag} has no effect with --lambda_sc 0 and --lambda_lg 0")
    args.normalization = args.normalization or recipe["normalization"]
    if "local_crops" in idle:
        args.local_crops = 0
    elif args.local_crops is None:
        args.local_crops = VIEWS["local_crops"] if args.lambda_lg > 0 else 0
    if args.lambda_lg > 0 and args.local_crops == 0:
        raise OptionError("--local_crops 0 leaves nothing for --lambda_lg to compare; give --lambda_lg 0 too")
    if args.local_crops > 0 and args.lambda_lg == 0:
        raise OptionError("--local_crops has no effect with --lambda_lg 0")
    if args.local_crops == 0 and args.local_scale:
        raise OptionError("--local_scale has no effect with --local_crops 0")
    if not any(given[flag] for flag in WEIGHTS):
        raise OptionError("all weights of the loss are 0: nothing would be learnt")
    if not any(given[flag] for flag in WEIGHTS if flag != "lambda_feat"):
        raise OptionError("--lambda_feat alone teaches an encoder and no disparity; give another --lambda_ a weight")
    of_depth = ("lambda_sc", "lambda_grad", "lambda_hdn")  # the others compare with a network's views and features
    if GROUND_TRUTH in args.teacher_models and not any(given[flag] for flag in of_depth):
        raise OptionError(
            f"--teacher_models {GROUND_TRUTH} teaches nothing with {', '.join(f'--{flag} 0' for flag in of_depth)}; "
            "give one of them a weight, or leave it out"
        )
    if args.lambda_feat == 0 and args.feature_margin is not None:
        raise OptionError("--feature_margin has no effect with --lambda_feat 0")
    if args.lambda_hdn == 0 and (not compares or args.normalization in ("global", "none")):
        others = f"--normalization {args.normalization}" if compares else "--lambda_sc 0, --lambda_lg 0"
        for flag in CONTEXTS:
            if given[flag] is not None:
                raise OptionError(f"--{flag} has no effect with --lambda_hdn 0 and {others}")
    for flag, default in (VIEWS | CONTEXTS | COMPARED | {"feature_margin": FEATURE_MARGIN}).items():
        if given[flag] is None:
            given[flag] = default


def check_cache(args: argparse.Namespace) -> None:
    """Make sure that a teacher's answers of one epoch are those of the next.

    Raises:
        OptionError: naming the flag.
    """
    if len(args.teacher_models) > 1 or not networks_of(args):
        raise OptionError("--cache_teacher keeps the answers of one network: name one in --teacher_models")
    if not args.fixed_views or args.augment:
        raise OptionError("--cache_teacher: what is kept must not change; give --fixed_views, and no --augment")
    options.check_teacher_cache(args, "disparities, no tokens")


def create_datasets(args: argparse.Namespace) -> dict[str, DepthDataset]:
    """Return the pictures to train on, and those to validate on, with their depth where there is any."""
    crops = None
    if not args.fixed_views:
        crops = CropRule(args.local_crops, tuple(args.global_scale), tuple(args.local_scale))
    data = options.dataset_options(args) | {"rgb_filter": "bicubic"}
    depth = {"depth"} if args.dataset != "images" else set()
    learns_from = {"rgb"} | (depth if GROUND_TRUTH in args.teacher_models else set())
    return {
        "train": create_dataset(**data, split="train", modalities=learns_from, crops=crops),
        "val": create_dataset(**data, split="val", modalities={"rgb"} | depth),
    }


# ----------------------------------------------------------------------------------------------------------- networks


def open_teachers(args: argparse.Namespace) -> tuple[list[Any], list[str]]:
    """Return the teachers in the order of the flags, and the licences under which their weights may be used.

    Raises:
        OptionError: a file holds another network than the flag says.
        CheckpointError: a file is missing or damaged.
    """
    teachers: list[Any] = []
    licenses: list[str] = []
    files = iter(args.teacher_checkpoints)
    for name in args.teacher_models:
        if name == GROUND_TRUTH:
            teachers.append(MeasuredDisparity())
        else:
            network, license = open_network("teacher_checkpoints", next(files), name)
            teachers.append(network)
            licenses.append(license)
    return teachers, licenses


def create_student(args: argparse.Namespace, notes: list[str]) -> tuple[DepthAnything, list[str]]:
    """Return the student, and the licence of the weights that it begins with, if these are not random."""
    licenses = []
    if args.student_checkpoint is None:
        student = create_depth_anything_model(args.student_arch)
        if not (args.resume or args.checkpoints or args.init_from):
            notes.append("the student begins with random weights; --student_checkpoint FILE begins with published ones")
    else:
        student, license = open_network("student_checkpoint", args.student_checkpoint, args.student_arch)
        student.train()
        licenses.append(license)
    student.checkpoint_gradients(args.gradient_checkpointing)
    return student, licenses


def open_network(flag: str, path: Path, name: str) -> tuple[DepthAnything, str]:
    """Return the network in a file, and the licence of its weights: what is said with them, or else the published one.

    Raises:
        OptionError: it is another network than ``name``.
        CheckpointError: the file is missing or damaged.
    """
    preset = find_preset(name)
    if not path.exists() and preset in PUBLISHED:
        raise CheckpointError(
            f"--{flag} {path}: there is no such file; {name} is published as {PUBLISHED[preset]} (Distill-Any-Depth's: "
            "https://github.com/Westlake-AGI-Lab/Distill-Any-Depth). Without weights: bash "
            "run_distill_any_depth_examples.sh 6, then 7"
        )
    network, checkpoint = load_model(path)
    if not isinstance(network, DepthAnything) or network.config["preset"] != preset:
        holds = f"{network.name} {network.config.get('preset', '')}".strip()
        raise OptionError(f"--{flag} {path} holds {holds}, not {name}")
    return network, license_of(network, checkpoint, path)


def create_loss(args: argparse.Namespace, student: DepthAnything, teacher: Any) -> DisparityDistillationLoss:
    """Return the loss under one teacher: measured depth has no tokens, and no closer look."""
    measured = isinstance(teacher, MeasuredDisparity)
    weights = {flag: getattr(args, flag) for flag in WEIGHTS}
    if measured:
        weights |= {"lambda_lg": 0.0, "lambda_feat": 0.0}
    return DisparityDistillationLoss(
        **weights,
        normalization=args.normalization,
        hdn_variant=args.hdn_variant,
        hdn_level=args.hdn_level,
        trim=args.trim,
        widths=None if measured else (token_width(student), token_width(teacher)),
        margin=args.feature_margin,
    )


def token_width(network: DepthAnything) -> int:
    """Return the channels of a network's last tokens."""
    return network.feature_shapes()["t4"][0]


# --------------------------------------------------------------------------------------------------------- validation


def create_validation(
    args: argparse.Namespace,
    fabric: Fabric,
    task: DisparityDistillationTask,
    datasets: dict[str, DepthDataset],
    loader: DataLoader,
) -> Validation:
    """Compare epochs by AbsRel against measured depth; without it, by the distance from the teachers' answers."""
    if "depth" in datasets["val"].modalities:
        scoring = scoring_on(args.dataset, "disparity", "disparity_lsq", datasets["val"].max_depth)
        return Validation("val_abs_rel", scoring, figure="validation AbsRel {:.4f}")
    return distance_validation(fabric, task, loader, args.limit_val_batches, unit="")


def columns_with(task: DisparityDistillationTask, fabric: Fabric) -> Callable[[Batch, Tensor], list[Column]]:
    """Return the columns of a picture: the view, measured depth, each network teacher's disparity, the student's."""

    def columns(batch: Batch, prediction: Tensor) -> list[Column]:
        shown: list[Column] = [("RGB", "rgb", list(batch["rgb"].cpu()))]
        if "depth" in batch:
            shown.append(("ground truth", "depth", list(batch["depth"].cpu())))
        for name, guest in task.guests().items():
            with torch.no_grad(), fabric.autocast():
                answer = guest(fabric.to_device(batch)).float().cpu()
            shown.append((name, "disparity", list(answer)))
        return [*shown, ("student", "disparity", list(prediction.cpu()))]

    return columns


class StepPicture:
    """Called after each step; every so often, saves what teachers and student see in the step's first samples."""

    def __init__(self, args: argparse.Namespace, fabric: Fabric, task: DisparityDistillationTask) -> None:
        self.every = args.visualize_every
        self.folder = args.output_dir / "visualizations" / args.experiment_name
        self.fabric, self.task = fabric, task
        self.columns = columns_with(task, fabric)

    def __call__(self, step: int, batch: Batch) -> None:
        if step % self.every or not self.fabric.is_global_zero:
            return
        first = {key: value[:PICTURED] for key, value in batch.items()}
        student = self.task.student.eval()
        prediction = loop.predict(self.fabric, student, first)
        student.train()
        save_grid(self.folder / f"step_{step:06d}.png", self.columns(first, prediction), first["id"], f"step {step}")


# -------------------------------------------------------------------------------------------------------------- exports


def export_student(args: argparse.Namespace, experiment: Experiment) -> None:
    """Write the best epoch's student and the last one's, with what they are and under which licence; with cards.

    ``student_best.safetensors`` and ``student_final.safetensors`` lie in ``--output_dir``; where those of another
    experiment are there already, beside this one's checkpoints.
    """
    sources = {"student_best.safetensors": "best_model.pth", "student_final.safetensors": "last.pth"}
    folder = args.output_dir
    for name in sources:
        if (folder / name).is_file():
            owner = read_metadata(folder / name).get("experiment", "unknown")
            if owner != args.experiment_name:
                print(f"{folder / name} is of another experiment ({owner}) and stays")
                folder = experiment.checkpoints
                break
    for name, kept in sources.items():
        source = experiment.checkpoints / kept
        if source.is_file():
            checkpoint = load_checkpoint(source)
            model = restore_model(checkpoint, source)
            about = {
                "experiment": args.experiment_name,
                "teachers": ", ".join(args.teacher_models),
                "epoch": str(checkpoint["epoch"]),
            }
            save_model(model, folder / name, license=args.license, **about)
            card = model_card(
                name, "Weights alone (safetensors)", model, checkpoint["preprocessing"], checkpoint,
                takes=model.inputs, license=args.license, versions=checkpoint["versions"],
            )  # fmt: skip
            write_card(folder / name, card)
            print(f"weights: {folder / name} (licence: {args.license})")


if __name__ == "__main__":
    run_script(main)
