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
from errors import OptionError, run_script
from models.depth_anything import ALIASES, PRESETS, DepthAnything, create_depth_anything_model, find_preset
from models.weights import read_metadata
from training import loop, options
from training.checkpoint import load_checkpoint, load_model, restore_model, save_model
from training.engine import create_fabric, resolve_precision, seed_weights
from training.experiment import Experiment
from training.metrics import scoring_on
from training.run_log import Row
from training.session import Validation, run_training
from training.task import Batch
from training.tasks import DisparityDistillationTask, MeasuredDisparity
from training.visualization import Column, save_grid
from utils_distillation_loss import HDN_VARIANTS, NORMALIZATIONS, RECIPES, DisparityDistillationLoss

GROUND_TRUTH = "ground_truth"
NETWORKS = (*PRESETS, *ALIASES)
MULTIPLE = DepthAnything.size_multiple
WEIGHTS = ("lambda_sc", "lambda_lg", "lambda_feat", "lambda_grad", "lambda_hdn")
PICTURED = 4  # samples in the picture of a step
# Under which the published weights may be used, and so those that are distilled from them.
LICENSES = {"vits": "Apache-2.0", "vitb": "CC-BY-NC-4.0", "vitl": "CC-BY-NC-4.0"}


def create_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag and its default."""
    parser = options.create_parser((__doc__ or "").splitlines()[0])
    options.add_data_options(parser, dataset="nyu")
    group = parser.add_argument_group("views")
    group.add_argument(
        "--local_crops", type=options.non_negative_int, default=2, metavar="N", help="closer views of each picture"
    )
    group.add_argument(
        "--global_scale", type=options.fraction, nargs=2, default=[0.7, 1.0], metavar=("A", "B"),
        help="side of the view, a square: between these shares of the picture's shorter side",
    )  # fmt: skip
    group.add_argument(
        "--local_scale", type=options.fraction, nargs=2, default=[0.4, 0.8], metavar=("A", "B"),
        help="side of a closer view, between these shares of the view's",
    )  # fmt: skip
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
    group.add_argument("--hdn_variant", choices=HDN_VARIANTS, default="dr", help="segments of range, ranks or space")
    group.add_argument("--hdn_level", type=options.positive_int, default=3, metavar="N", help="levels of contexts")
    group.add_argument(
        "--trim", type=options.fraction, default=0.0, metavar="F", help="share of the largest residuals left out"
    )
    group.add_argument(
        "--feature_margin", type=options.fraction, default=0.85, metavar="C", help="tokens closer than this cosine rest"
    )
    options.add_training_options(parser, learning_rate=1e-4, wandb_project="distill-any-depth")
    group = parser.add_argument_group("schedule and memory")
    group.add_argument(
        "--encoder_learning_rate",
        type=options.positive_float,
        metavar="LR",
        help="(default: a tenth of the other under --student_checkpoint, else the same)",
    )
    group.add_argument(
        "--warmup_epochs", type=options.non_negative_int, default=0, metavar="N", help="the rates grow, step by step"
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


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, build, fit, export."""
    args = options.parse_training_options(create_parser(), "distill_any_depth", argv)
    notes = check_options(args)
    fabric = create_fabric(args, rests=len(args.teacher_models) > 1)
    datasets = create_datasets(args)
    only_labelled = args.teacher_models == [GROUND_TRUTH]  # from the others, nothing could be learnt
    loaders = create_loaders(datasets, **options.loader_options(args, fabric), only_labelled=only_labelled)
    teachers, licenses = open_teachers(args)
    exports = Exports(args, licenses)
    seed_weights(args.seed)
    student = create_student(args, notes)
    task = DisparityDistillationTask(
        student,
        teachers,
        [create_loss(args, student, teacher) for teacher in teachers],
        args.teacher_weights,
        encoder=student.pretrained,
        encoder_rate=args.encoder_learning_rate / args.learning_rate,
        bf16_teachers=resolve_precision(args.teacher_precision) == "bf16",
    )
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
    )
    if fabric.is_global_zero:
        exports.write(Experiment(args.output_dir, args.experiment_name))


# -------------------------------------------------------------------------------------------------------------- options


def check_options(args: argparse.Namespace) -> list[str]:
    """Refuse what cannot be honoured, fill in what was left open; return what the log should say.

    Raises:
        OptionError: naming the flag.
    """
    notes = []
    networks = [name for name in args.teacher_models if name != GROUND_TRUTH]
    if len(args.teacher_checkpoints) != len(networks):
        raise OptionError(
            f"--teacher_checkpoints: {len(args.teacher_checkpoints)} files for {len(networks)} networks "
            f"({' '.join(networks) or 'none'}); a teacher has learnt, so each needs its weights"
        )
    if args.teacher_weights is None:
        args.teacher_weights = [1.0] * len(args.teacher_models)
    if len(args.teacher_weights) != len(args.teacher_models):
        raise OptionError(f"--teacher_weights: {len(args.teacher_weights)} for {len(args.teacher_models)} teachers")
    for flag in (*WEIGHTS, "normalization"):
        given = getattr(args, flag)
        if not networks and flag in ("lambda_lg", "lambda_feat"):
            if given:
                raise OptionError(f"--{flag} has no effect under {GROUND_TRUTH} alone: it compares with a network")
            args.__dict__[flag] = 0.0
        elif given is None:
            args.__dict__[flag] = RECIPES[args.recipe][flag]
    if not networks:
        args.local_crops = 0
    if args.lambda_lg > 0 and args.local_crops == 0:
        raise OptionError("--local_crops 0 leaves nothing for --lambda_lg to compare; give --lambda_lg 0 too")
    if args.local_crops > 0 and args.lambda_lg == 0:
        raise OptionError("--local_crops has no effect with --lambda_lg 0; give --local_crops 0 too")
    if not any(getattr(args, flag) for flag in WEIGHTS):
        raise OptionError("all weights of the loss are 0: nothing would be learnt")
    if GROUND_TRUTH in args.teacher_models and args.dataset == "images":
        raise OptionError(f"--teacher_models {GROUND_TRUTH}: --dataset images has no depth")
    if args.label_fraction < 1 and GROUND_TRUTH not in args.teacher_models:
        raise OptionError(f"--label_fraction has no effect without --teacher_models {GROUND_TRUTH}")
    if args.device and args.gpu_ids:
        raise OptionError(f"--device {args.device} stands beside --gpu_ids; give one of the two")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise OptionError("--device cuda: this machine has no CUDA GPU")
    if args.warmup_epochs >= args.nb_epochs:
        raise OptionError(f"--warmup_epochs {args.warmup_epochs} must be below --nb_epochs {args.nb_epochs}")
    if args.encoder_learning_rate is None:
        args.encoder_learning_rate = args.learning_rate / 10 if args.student_checkpoint else args.learning_rate
    if args.image_size % MULTIPLE:
        rounded = -(-args.image_size // MULTIPLE) * MULTIPLE
        notes.append(f"--image_size {args.image_size} is no multiple of {MULTIPLE}: {rounded} is used")
        args.image_size = rounded
    return notes


def create_datasets(args: argparse.Namespace) -> dict[str, DepthDataset]:
    """Return the pictures to train on, in crops, and those to validate on, with their depth where there is any."""
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
            continue
        path = next(files)
        teacher, checkpoint = load_model(path)
        if not isinstance(teacher, DepthAnything) or teacher.config["preset"] != find_preset(name):
            holds = f"{teacher.name} {teacher.config.get('preset', '')}".strip()
            raise OptionError(f"--teacher_checkpoints {path} holds {holds}, not {name}")
        teachers.append(teacher)
        licenses.append(license_of(path, find_preset(name), own=checkpoint is not None))
    return teachers, list(dict.fromkeys(licenses))


def license_of(path: Path, preset: str, *, own: bool) -> str:
    """Return the licence of a teacher's weights: what the file says, or else the published weights' of that size."""
    if own:
        return "that of its training data"
    said = read_metadata(path).get("license")
    return said or LICENSES.get(preset, "unknown")


def create_student(args: argparse.Namespace, notes: list[str]) -> DepthAnything:
    """Return the student, with the weights that it begins with."""
    preset = find_preset(args.student_arch)
    if args.student_checkpoint is None:
        student = create_depth_anything_model(preset)
        if not (args.resume or args.checkpoints or args.init_from):
            notes.append("the student begins with random weights; --student_checkpoint FILE begins with published ones")
    else:
        opened, _ = load_model(args.student_checkpoint)
        if not isinstance(opened, DepthAnything) or opened.config["preset"] != preset:
            raise OptionError(f"--student_checkpoint {args.student_checkpoint} does not hold {args.student_arch}")
        student = opened.train()
    student.checkpoint_gradients(args.gradient_checkpointing)
    return student


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
        return Validation("val_abs_rel", scoring)

    @torch.no_grad()
    def measure(epoch: int) -> Row:
        """Average the loss over the held-out pictures, all teachers in turn."""
        task.eval()
        sums = torch.zeros(2, device=fabric.device)
        steps = loop.steps_per_epoch(loader, args.limit_val_batches)
        with loop.Batches(fabric, loader, steps, f"epoch {epoch} validation") as batches:
            for batch in batches:
                with fabric.autocast():
                    distance = task.distance(batch)  # [B]
                sums += torch.stack([distance.sum(), torch.tensor(len(distance), device=fabric.device)])
        total, number = (float(loop.reduce(fabric, value, "sum")) for value in sums)
        return {"val_distance": total / number, "val_n_images": int(number)}

    return Validation("val_distance", measure=measure)


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
        self.folder = args.output_dir / "visualizations"
        self.fabric, self.task = fabric, task
        self.columns = columns_with(task, fabric)

    def __call__(self, step: int, batch: Batch) -> None:
        if step % self.every or not self.fabric.is_global_zero:
            return
        first = {key: value[:PICTURED] for key, value in batch.items()}
        student = self.task.student.eval()
        prediction = loop.predict(self.fabric, student, first)
        student.train()
        self.folder.mkdir(parents=True, exist_ok=True)
        save_grid(self.folder / f"step_{step:06d}.png", self.columns(first, prediction), first["id"], f"step {step}")


# -------------------------------------------------------------------------------------------------------------- exports


class Exports:
    """``student_best.safetensors`` and ``student_final.safetensors`` under ``--output_dir``.

    Raises:
        OptionError: they are there already, of another experiment.
    """

    def __init__(self, args: argparse.Namespace, licenses: Sequence[str]) -> None:
        self.files = {
            "best_model.pth": args.output_dir / "student_best.safetensors",
            "last.pth": args.output_dir / "student_final.safetensors",
        }
        self.experiment = args.experiment_name
        self.license = ", ".join(licenses) or "that of its training data"
        self.teachers = ", ".join(args.teacher_models)
        for path in self.files.values():
            if path.is_file() and not args.overwrite:
                owner = read_metadata(path).get("experiment")
                if owner != self.experiment:
                    raise OptionError(
                        f"{path} is of another experiment ({owner or 'unknown'}): give another --output_dir, or "
                        "--overwrite"
                    )

    def write(self, experiment: Experiment) -> None:
        """Write the best epoch's student and the last one's, with what they are and under which licence."""
        for name, path in self.files.items():
            source = experiment.checkpoints / name
            if source.is_file():
                checkpoint = load_checkpoint(source)
                model = restore_model(checkpoint, source)
                about = {"experiment": self.experiment, "teachers": self.teachers, "epoch": str(checkpoint["epoch"])}
                save_model(model, path, license=self.license, **about)
                print(f"weights: {path}")


if __name__ == "__main__":
    run_script(main)
