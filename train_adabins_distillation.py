"""Teach an ear what an eye sees, in bins: AdaBins networks of both, which learn together or one after the other."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor

from dataloaders import DepthDataset, create_dataset, create_training_data
from errors import CheckpointError, OptionError, run_script
from models import DepthModel, create_model
from models.adabins_distillation_model import load_pretrained, read_pretrained
from training import options
from training.checkpoint import license_of, load_checkpoint, restore_model, save_checkpoint
from training.engine import create_fabric, seed_weights
from training.model_card import model_card, write_card
from training.session import depth_columns, run_training
from training.task import Batch, model_inputs
from training.tasks import AdaBinsDistillationTask
from training.visualization import Column
from utils_distillation_loss import (
    BIN_LOSSES,
    RESPONSE_AT,
    TEMPERATURE,
    AdaptiveDistillationLoss,
    DistillationLoss,
)

PHASES = ("teacher", "distill", "finetune")
NB_EPOCHS = 200
STAGES = {
    "teacher": "adabins_teacher",
    "distill": "adabins_distill",
    "finetune": "adabins_finetune",
    "all": "adabins_distill",
}
# Flags that are None in the parser, so that one given in vain is refused; these are the defaults of the others.
TEACHING: dict[str, Any] = {
    "lambda_response": 0.5,
    "response_at": "unmeasured",
    "lambda_feature": 0.3,
    "lambda_bin": 0.2,
    "temperature": TEMPERATURE,
    "bin_loss": "shared_support",
    "feature_levels": ["d1", "d2", "d3"],
}
BIN_FLAGS = {"lambda_bin", "bin_loss", "temperature"}
CURRICULUM = ("lambda_task", "lambda_response", "lambda_feature", "lambda_bin")  # what --use_adaptive_loss decides


def create_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag and its default."""
    parser = options.create_parser(__doc__)
    options.add_data_options(parser, hears="interaural", only_hears=True)
    group = parser.add_argument_group("networks")
    options.add_width_option(group, "of both networks", metavar="N")
    options.add_upsampling_option(group)
    options.add_attention_option(group, "of 1 to 5: where the ears ask each other", default=[2, 3, 4, 5])
    options.add_ears_option(group)
    options.add_compression_option(group)
    group.add_argument(
        "--n_bins", type=options.positive_int, default=128, metavar="N", help="bins of each scene, 2 or more"
    )
    group.add_argument("--fixed_bins", action="store_true", help="cut the range evenly, for all scenes alike")
    group = parser.add_argument_group("phases and teacher")
    group.add_argument(
        "--phase",
        choices=(*PHASES, "all"),
        default="distill",
        help="teacher: the eye alone; distill: the ear under it, which learns along unless frozen; finetune: the ear "
        "by measured depth alone; all: one after the other",
    )
    group.add_argument(
        "--phase_epochs",
        type=epochs_of_phases,
        metavar="A,B,C",
        help="of --phase all (default: 1/4, 1/2, 1/4 of the epochs)",
    )
    group.add_argument("--freeze_rgb", action="store_true", help="the teacher has learnt and stays as it is")
    group.add_argument(
        "--teacher_checkpoint", type=Path, metavar="FILE", help="of --phase teacher, or of train_rgb_depth.py"
    )
    group.add_argument(
        "--use_pretrained_rgb",
        type=options.some_text,
        metavar="imagenet|FILE",
        help="what the teacher's encoder begins with: a ResNet-50 with ImageNet's weights, from the cache or a file, "
        "or a checkpoint of train_rgb_depth.py",
    )
    group.add_argument("--export_student", action="store_true", help="write the best student alone to student.pth")
    group = parser.add_argument_group("loss")
    options.add_task_loss_option(group, None, " (default: l1)")
    group.add_argument("--lambda_task", type=options.non_negative_float, metavar="W", help="its weight (default: 1.0)")
    group.add_argument(
        "--lambda_response", type=options.non_negative_float, metavar="W", help="of the teacher's depth (default: 0.5)"
    )
    group.add_argument(
        "--response_at",
        choices=RESPONSE_AT,
        help="its pixels: those without measured depth, or all (default: unmeasured)",
    )
    group.add_argument(
        "--lambda_feature", type=options.non_negative_float, metavar="W", help="of its features (default: 0.3)"
    )
    group.add_argument("--lambda_bin", type=options.non_negative_float, metavar="W", help="of its bins (default: 0.2)")
    group.add_argument(
        "--lambda_sparse", type=options.non_negative_float, default=0.1, metavar="W", help="of the residual's size"
    )
    group.add_argument(
        "--lambda_chamfer",
        type=options.non_negative_float,
        default=0.0,
        metavar="W",
        help="of centres to measured depth",
    )
    group.add_argument("--bin_loss", choices=BIN_LOSSES, help="how bins are compared (default: shared_support)")
    group.add_argument(
        "--temperature", type=options.positive_float, metavar="T", help="of the bins' distributions (default: 4.0)"
    )
    group.add_argument("--feature_levels", nargs="+", metavar="LEVEL", help="of x1..x5, d1..d4 (default: d1 d2 d3)")
    group.add_argument(
        "--use_adaptive_loss",
        action="store_true",
        help="a curriculum of the weights of task, response, feature and bin: first the teacher, then measured depth",
    )
    epochs = f"number of epochs (default: the sum of --phase_epochs, or {NB_EPOCHS})"
    options.add_training_options(parser, epochs=epochs)
    parser.set_defaults(nb_epochs=None)
    return parser


def epochs_of_phases(text: str) -> list[int]:
    """Parse ``5,10,5``."""
    epochs = [options.positive_int(part) for part in text.split(",")]
    if len(epochs) != len(PHASES):
        raise argparse.ArgumentTypeError(f"{text} is not three numbers: of teacher, distill and finetune")
    return epochs


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, build, fit."""
    parser = create_parser()
    args = parser.parse_args(argv)
    given = check_options(args)
    options.check_training_options(args, parser, STAGES[args.phase])
    fabric = create_fabric(args, rests=args.phase == "all")
    data = options.dataset_options(args)
    sees = args.phase != "finetune" and can_see(data)
    modalities = {"depth", *(["rgb"] if sees else []), *(["audio"] if args.phase != "teacher" else [])}
    datasets, loaders = create_training_data(
        modalities, data, only_labelled=not sees or args.phase == "teacher", **options.loader_options(args, fabric)
    )
    notes = []
    if not sees and args.phase != "finetune":
        refuse_teaching(args, given)
        notes.append(f"warning: {args.dataset} has no pictures here: the ear learns from measured depth alone")
    seed_weights(args.seed)
    student, teacher = create_networks(args, datasets["train"], sees, notes)
    if args.freeze_rgb and teacher is not None and teacher.name == "rgb_depth" and given & BIN_FLAGS:
        raise OptionError(f"--{min(given & BIN_FLAGS)} has no effect: {args.teacher_checkpoint} has no bins to teach")
    labelled = datasets["train"].labelled
    learnt_elsewhere = args.phase == "distill" and args.freeze_rgb and args.teacher_checkpoint and teacher
    if not labelled.any() and not learnt_elsewhere:
        raise OptionError(
            "no training pair has depth, so that only a teacher that has learnt elsewhere can teach: --phase distill "
            "with --freeze_rgb and --teacher_checkpoint"
        )
    if args.phase == "distill" and not args.use_adaptive_loss:
        require_metres(args, teacher, measured=labelled.any())
    if teacher is not None and args.init_from and not args.teacher_checkpoint:
        notes.append(
            "warning: --init_from brings the ear alone, and its teacher begins anew; --teacher_checkpoint brings one"
        )
    if teacher is not None and labelled.mean() < 0.5:
        few = f"{labelled.sum()} of {len(labelled)} training pairs have depth: a teacher that has learnt from these"
        if args.phase == "distill" and not args.freeze_rgb:
            notes.append(f"{few} before (--phase teacher, then --freeze_rgb) teaches better than one that learns along")
        elif args.phase == "all":
            notes.append(f"{few} in a run of its own (--phase teacher, then --freeze_rgb) draws no others")
    phases = dict(zip(PHASES, args.phase_epochs, strict=True)) if args.phase == "all" else None
    if teacher is None:
        phases = {"finetune": 1.0}
    task = AdaBinsDistillationTask(student, teacher, create_loss(args), frozen=args.freeze_rgb, phases=phases)
    run_training(
        args, fabric, task, loaders["train"], loaders["val"],
        columns=columns_with(student, teacher, fabric), notes=notes, picture="epoch_{:04d}_distill.png",
    )  # fmt: skip
    if fabric.is_global_zero:
        keep_networks(args, teacher)


def check_options(args: argparse.Namespace) -> set[str]:
    """Refuse what would have no effect, and fill in the defaults of what has one; return those that were given.

    Raises:
        OptionError: naming the flag.
    """
    check_phases(args)
    given = [flag for flag in TEACHING if getattr(args, flag) is not None]
    if args.phase in ("teacher", "finetune"):
        for flag in (*given, *(flag for flag in ("freeze_rgb", "use_adaptive_loss") if getattr(args, flag))):
            raise OptionError(f"--{flag} has no effect in --phase {args.phase}, in which nobody is taught")
    if args.use_adaptive_loss:
        for flag in CURRICULUM:
            if getattr(args, flag) is not None:
                raise OptionError(f"--{flag}: --use_adaptive_loss decides this weight; give one of the two")
    if args.bin_loss == "wasserstein" and args.temperature is not None:
        raise OptionError("--temperature has no effect with --bin_loss wasserstein")
    if args.fixed_bins and args.bin_loss == "widths":
        raise OptionError("--bin_loss widths has no effect with --fixed_bins: all bins are alike")
    if args.augment_scale and args.bin_loss == "widths":
        raise OptionError(
            "--bin_loss widths compares how the range is divided, which the teacher says of the scene that its picture "
            "shows, not of the one that --augment_scale makes of it; give another --bin_loss"
        )
    if args.lambda_bin == 0 and not args.use_adaptive_loss:
        for flag in ("bin_loss", "temperature"):
            if getattr(args, flag) is not None:
                raise OptionError(f"--{flag} has no effect with --lambda_bin 0")
    if args.lambda_response == 0 and args.response_at is not None:
        raise OptionError("--response_at has no effect with --lambda_response 0")
    if args.lambda_feature == 0 and args.feature_levels is not None:
        raise OptionError("--feature_levels has no effect with --lambda_feature 0")
    if args.fixed_bins and args.lambda_chamfer > 0:
        raise OptionError("--lambda_chamfer has no effect with --fixed_bins: their centres stay where they are")
    if args.label_fraction == 0:
        measured = (args.lambda_task, args.task_loss, args.lambda_chamfer or None)
        for flag, value in zip(("lambda_task", "task_loss", "lambda_chamfer"), measured, strict=True):
            if value is not None:
                raise OptionError(f"--{flag} has no effect with --label_fraction 0: there is no measured depth")
    for flag, default in ({"lambda_task": 1.0, "task_loss": "l1"} | TEACHING).items():
        if getattr(args, flag) is None and not (flag in CURRICULUM and args.use_adaptive_loss):
            setattr(args, flag, default)
    known = [f"x{i}" for i in range(1, 6)] + [f"d{i}" for i in range(1, 5)]
    for level in args.feature_levels:
        if level not in known:
            raise OptionError(f"--feature_levels {level}: the levels are {' '.join(known)}")
    return set(given)


def check_phases(args: argparse.Namespace) -> None:
    """Make sure that the phases have a teacher and a length.

    Raises:
        OptionError: naming the flag.
    """
    if args.phase_epochs is not None:
        total = sum(args.phase_epochs)
        if args.phase != "all":
            raise OptionError("--phase_epochs has no effect without --phase all")
        if args.nb_epochs not in (None, total):
            raise OptionError(f"--nb_epochs {args.nb_epochs}: --phase_epochs sums up to {total}; give one of the two")
        args.nb_epochs = total
    if args.nb_epochs is None:
        args.nb_epochs = NB_EPOCHS
    if args.phase == "all" and args.phase_epochs is None:
        if args.nb_epochs < len(PHASES):
            raise OptionError(
                f"--nb_epochs {args.nb_epochs}: --phase all takes one for each of its {len(PHASES)} phases"
            )
        quarter = max(1, args.nb_epochs // 4)
        args.phase_epochs = [quarter, args.nb_epochs - 2 * quarter, quarter]
    if args.phase != "distill" and args.lambda_task == 0:
        where = "in the phase finetune of --phase all" if args.phase == "all" else f"in --phase {args.phase}"
        raise OptionError(f"--lambda_task 0 leaves nothing to learn {where}")
    heard = ("attention_levels", "share_ears", "compress_input", "audio_format", "augment_scale", "resample")
    if args.phase == "teacher":
        options.refuse_idle(args, create_parser(), dict.fromkeys(heard, "in --phase teacher, in which nobody listens"))
    if args.phase == "teacher" and args.export_student:
        raise OptionError("--export_student: --phase teacher trains no student")
    if args.phase in ("teacher", "finetune") and args.teacher_checkpoint:
        raise OptionError(
            f"--teacher_checkpoint has no effect in --phase {args.phase}; --init_from goes on from weights"
        )
    if args.use_pretrained_rgb and (args.phase == "finetune" or args.teacher_checkpoint):
        where = "in --phase finetune" if args.phase == "finetune" else "beside --teacher_checkpoint"
        raise OptionError(f"--use_pretrained_rgb has no effect {where}")
    if args.freeze_rgb and args.phase == "distill" and not args.teacher_checkpoint:
        raise OptionError(
            "--freeze_rgb needs a teacher that has learnt: train one with --phase teacher and give its best_model.pth "
            "as --teacher_checkpoint, or let --phase all train one first"
        )


def require_metres(args: argparse.Namespace, teacher: DepthModel | None, *, measured: bool) -> None:
    """Make sure that something tells the student how far things are, with or without pairs that were measured.

    Raises:
        OptionError: nothing does.
    """
    answers = args.lambda_response > 0 or (args.lambda_bin > 0 and teacher is not None and teacher.name != "rgb_depth")
    if not (measured and args.lambda_task > 0) and not (teacher is not None and answers):
        raise OptionError(
            "nothing would teach the student metres: that takes pairs with measured depth (--label_fraction and "
            "--lambda_task above 0), a teacher's depth (--lambda_response above 0) or its bins (--lambda_bin above 0)"
        )


def can_see(data: dict[str, Any]) -> bool:
    """Return whether the data set has pictures, in training and in validation."""
    return all(
        "rgb" in create_dataset(**data, split=split, modalities={"depth"}).supplied for split in ("train", "val")
    )


def refuse_teaching(args: argparse.Namespace, given: set[str]) -> None:
    """Refuse what a teacher is needed for, where there are no pictures for one to see.

    Args:
        args: the flags.
        given: of :func:`check_options`.

    Raises:
        OptionError: naming the flag.
    """
    why = f"--dataset {args.dataset} has no pictures here, and nobody is taught"
    for flag in ("freeze_rgb", "teacher_checkpoint", "use_pretrained_rgb", "use_adaptive_loss", *sorted(given)):
        if getattr(args, flag) or flag in given:
            raise OptionError(f"--{flag} has no effect: {why}")
    if args.phase == "all":
        raise OptionError(f"--phase all: {why}; --phase finetune learns from measured depth alone")
    if args.lambda_task == 0:
        raise OptionError(f"--lambda_task 0 leaves nothing to learn: {why}")


def create_networks(
    args: argparse.Namespace, dataset: DepthDataset, sees: bool, notes: list[str]
) -> tuple[DepthModel, DepthModel | None]:
    """Return the network that is saved and evaluated, and its teacher where it has one.

    In ``--phase teacher`` the former is the one that sees.

    Raises:
        OptionError: an impossible size.
        CheckpointError: weights that are not there, or do not fit.
    """
    shared = {
        "base_channels": args.base_channels,
        "n_bins": args.n_bins,
        "min_depth": args.min_depth,
        "max_depth": dataset.max_depth,
        "bilinear": args.bilinear,
        "fixed_bins": args.fixed_bins,
    }
    if args.phase == "teacher":
        if not sees:
            raise OptionError(f"--phase teacher: --dataset {args.dataset} has no pictures here")
        return create_teacher(args, shared, notes), None
    hearing = {"attention_levels": args.attention_levels, "share_ears": args.share_ears, **options.hearing_config(args)}
    student = create_model("adabins_audio", **shared, **hearing)
    return student, create_teacher(args, shared, notes) if sees else None


def create_teacher(args: argparse.Namespace, shared: dict[str, Any], notes: list[str]) -> DepthModel:
    """Return the network that sees: from scratch, over a pretrained encoder, or from a checkpoint.

    Raises:
        CheckpointError: the checkpoint is of another kind, or of another size.
        OptionError: a frozen teacher without bins, where bins are asked for.
    """
    if args.use_pretrained_rgb:
        rgb_encoder, weights = read_pretrained(args.use_pretrained_rgb)
        model: Any = create_model("adabins_rgb", **shared, rgb_encoder=rgb_encoder)
        load_pretrained(model, weights, args.use_pretrained_rgb)
        notes.append(f"teacher: its {rgb_encoder} encoder begins with {args.use_pretrained_rgb}")
        return model
    path = args.teacher_checkpoint
    if path is None:
        return create_model("adabins_rgb", **shared)
    checkpoint = load_checkpoint(path)
    before = restore_model(checkpoint, path)
    if before.name not in ("adabins_rgb", "rgb_depth"):
        raise CheckpointError(f"--teacher_checkpoint {path}: holds a {before.name}; it takes adabins_rgb or rgb_depth")
    begins_anew = before.name == "rgb_depth" and not (args.freeze_rgb and args.phase != "all")
    may_differ = {"max_depth"} if begins_anew else set()
    if args.bin_loss != "widths" or args.lambda_bin == 0:
        may_differ.add("n_bins")  # the other bin losses compare depths, not slots
    differing = [
        f"{key}={before.config[key]} (asked for: {value})"
        for key, value in shared.items()
        if key in before.config and before.config[key] != value and key not in may_differ
    ]
    if differing:
        raise CheckpointError(
            f"--teacher_checkpoint {path}: was trained with {', '.join(differing)}; give the same flags"
        )
    notes.append(
        f"teacher: {before.name}, epoch {checkpoint['epoch']} of {path}{', frozen' if args.freeze_rgb else ''}"
    )
    if before.name == "adabins_rgb":
        return before
    if not begins_anew:
        notes.append("this teacher has no bins: what it teaches is its depth and its features")
        return before
    model = create_model("adabins_rgb", **shared)
    model.encoder.levels.load_state_dict(before.encoder.state_dict())  # type: ignore[union-attr]
    model.decoder.up.load_state_dict(before.decoder.state_dict())  # type: ignore[union-attr]
    notes.append("its encoder and decoder are taken over; its bins begin anew")
    return model


def create_loss(args: argparse.Namespace) -> DistillationLoss:
    """Return the terms that the flags ask for."""
    kinds = {
        "temperature": args.temperature,
        "bin_loss": args.bin_loss,
        "task_loss": args.task_loss,
        "response_at": args.response_at,
    }
    kept = {"lambda_sparse": args.lambda_sparse, "lambda_chamfer": args.lambda_chamfer, "levels": args.feature_levels}
    if args.use_adaptive_loss:
        return AdaptiveDistillationLoss(**kept, **kinds)
    return DistillationLoss(
        args.lambda_task, args.lambda_response, args.lambda_feature, args.lambda_bin, **kept, **kinds
    )


def columns_with(
    student: DepthModel, teacher: DepthModel | None, fabric: Fabric
) -> Callable[[Batch, Tensor], list[Column]]:
    """Return the panels of an epoch's picture: what is heard and seen, the truth, both answers, the error, the bins."""

    def ask(model: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        on_device = fabric.to_device(batch)
        with torch.no_grad(), fabric.autocast():
            return model.eval()(*model_inputs(model, on_device), return_features=True)

    def columns(batch: Batch, prediction: Tensor) -> list[Column]:
        *before, predicted, error = depth_columns(batch, prediction)
        networks: list[Any] = [model for model in (student, teacher) if model is not None]
        answers = [ask(model, batch) for model in networks]
        panels: list[Column] = [*before, (f"{student.inputs[0]} prediction", *predicted[1:])]
        if teacher is not None:
            panels.append(("RGB prediction", "depth", list(answers[1][0].float().cpu())))
        by_sense = {model.inputs[0]: answer for model, answer in zip(networks, answers, strict=True)}
        most = max(model.config.get("n_bins", 0) for model in networks) + 1
        edges, maps = [], [batch["depth"]]
        for sense in ("audio", "rgb"):
            depth, features = by_sense.get(sense, (torch.zeros_like(prediction), {}))
            known = features["edges"].flatten(1).float().cpu() if "edges" in features else torch.empty(len(depth), 0)
            edges.append(F.pad(known, (0, most - known.shape[1]), value=torch.nan))  # [B, N + 1], N of the finer one
            maps.append(depth.float().cpu())
        return [
            *panels,
            error,
            ("bins", "bins", list(torch.stack(edges, dim=1))),  # [2, N + 1] each
            ("depth histogram", "histogram", list(torch.stack(maps, dim=1).flatten(2))),  # [3, H * W] each
        ]

    return columns


def keep_networks(args: argparse.Namespace, teacher: DepthModel | None) -> None:
    """Write a teacher that learnt along to ``teacher.pth``, and on request the best student to ``student.pth``.

    A card lies beside each.
    """
    folder = args.output_dir / "checkpoints" / args.experiment_name
    last = {key: value for key, value in load_checkpoint(folder / "last.pth").items() if key != "training"}
    if teacher is not None and any(parameter.requires_grad for parameter in teacher.parameters()):
        weights = {key: value.cpu() for key, value in teacher.state_dict().items()}
        as_saved = {"model": {"name": teacher.name, "config": teacher.config}, "model_state_dict": weights}
        as_saved["best"] = {}  # the run's is the student's
        keep(last | as_saved, folder / "teacher.pth")
        print(f"teacher: {folder / 'teacher.pth'}")
    if args.export_student:
        best = folder / "best_model.pth"
        keep(load_checkpoint(best) if best.is_file() else last, folder / "student.pth")
        print(f"student alone: {folder / 'student.pth'}")


def keep(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint, and the card of its network beside it."""
    save_checkpoint(checkpoint, path)
    model = restore_model(checkpoint, path)
    card = model_card(
        path.name, "A checkpoint without what a training needs (.pth)", model, checkpoint["preprocessing"], checkpoint,
        takes=model.inputs, license=license_of(model, checkpoint, path), versions=checkpoint["versions"],
    )  # fmt: skip
    write_card(path, card)


if __name__ == "__main__":
    run_script(main)
