"""Teach an ear what an eye sees: a frozen network that takes pictures teaches one that takes echoes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader

from dataloaders import DepthDataset, create_loader, create_training_data, create_training_split, swap_ears
from errors import OptionError, run_script
from models import MODELS, DepthModel, create_model, options_of
from models.blocks import EARS
from training import loop, options
from training.checkpoint import license_of, load_model, other_axis_of_time, require_entries
from training.engine import create_fabric, resolve_precision, seed_weights
from training.micro_batches import MicroBatches
from training.session import Validation, depth_columns, distance_validation, run_training
from training.task import Batch, Guest, nearest_size
from training.tasks import DistillationTask
from training.teacher_cache import TeacherCache, open_cache
from training.visualization import Column
from utils_distillation_loss import (
    ADAPTERS,
    CHANNEL_BY_CHANNEL,
    FEATURE_LOSSES,
    RESPONSE_LOSSES,
    TEMPERATURE,
    FeatureDistillation,
    ResponseDistillation,
)

HEARING = ("audio_format", "audio_samples")  # how a network hears, in its preprocessing
# What a student that sees, too, cannot learn under, and why.
SEEN_WITHOUT = {
    "cache_teacher": "and training has none under this flag; leave it out, or take a student that hears alone",
    "augment_scale": "which does not show the scale; leave it out, or take a student that hears alone",
}
# Of the flags that only say how features are matched. None in the parser, so that one given in vain is refused.
FEATURE_DEFAULTS: dict[str, Any] = {
    "feature_loss": "mse",
    "feature_levels": ["d1", "d2", "d3"],
    "feature_adapters": "all",
    "temperature": TEMPERATURE,
}


def create_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag and its default."""
    parser = options.create_parser(__doc__)
    options.add_data_options(parser, hears="interaural", only_hears=True, takes_pairs=True)
    group = parser.add_argument_group("teacher and student")
    group.add_argument(
        "--teacher_checkpoint",
        type=Path,
        required=True,
        metavar="FILE",
        help="of a model that takes rgb, or Depth Anything's published weights (.pth, .safetensors); it is frozen",
    )
    hearing = sorted(name for name, model in MODELS.items() if "audio" in model.inputs)
    group.add_argument(
        "--cache_teacher",
        type=Path,
        metavar="DIR",
        help="ask it once about each scene, before --augment, and about the mirrored one; keep the answers here",
    )
    group.add_argument("--student_model", choices=hearing, default="binaural_attention", help="what learns")
    options.add_width_option(group, "its width", metavar="N")
    options.add_upsampling_option(group, default=None, note=" (default: bilinear, where the model has a choice)")
    options.add_attention_option(
        group, "of binaural_attention, 1 to 5: where the ears ask each other (default: 2 3 4 5)"
    )
    options.add_ears_option(group, default=None)
    options.add_compression_option(group)
    group = parser.add_argument_group("loss = task + response + features")
    group.add_argument(
        "--lambda_task",
        type=options.non_negative_float,
        metavar="W",
        help="of the distance from measured depth (default: 1.0)",
    )
    options.add_task_loss_option(group, None, " (default: l1)")
    group.add_argument(
        "--lambda_kd", type=options.non_negative_float, default=1.0, metavar="W", help="of the teacher's depth map"
    )
    group.add_argument(
        "--lambda_feat", type=options.non_negative_float, default=0.0, metavar="W", help="of the sum over the levels"
    )
    group.add_argument(
        "--response_loss",
        choices=tuple(RESPONSE_LOSSES),
        help="of the depth maps (default: l1; ssi, which is blind to scale and shift, where the teacher gives "
        "disparity)",
    )
    group.add_argument("--feature_loss", choices=tuple(FEATURE_LOSSES), help="distance of the features (default: mse)")
    group.add_argument(
        "--feature_levels", nargs="+", metavar="LEVEL", help="of x1..x5, d1..d4 (default: d1 d2 d3, of the decoder)"
    )
    group.add_argument(
        "--feature_adapters",
        choices=ADAPTERS,
        help="levels with a learned 1x1 convolution, for mse, cosine and cwd (default: all)",
    )
    group.add_argument("--temperature", type=options.positive_float, metavar="T", help="of cwd (default: 4.0)")
    group.add_argument(
        "--schedule",
        choices=tuple(DistillationTask.SCHEDULES),
        default="constant",
        help="adaptive: over training, task from 0.5 of its weight to 1, response and features from 1 to 0.3",
    )
    options.add_training_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, build, fit."""
    args = options.parse_training_options(create_parser(), "distill", argv)
    check_options(args)
    fabric = create_fabric(args)
    teacher, checkpoint = load_model(args.teacher_checkpoint)
    args.license = license_of(teacher, checkpoint, args.teacher_checkpoint)  # what it teaches comes from its weights
    data, loading = options.dataset_options(args), options.loader_options(args, fabric)
    pictures = {"rgb"} if args.cache_teacher else set()  # which training does without
    datasets, loaders = create_training_data(
        DistillationTask.needs, data, args.pairs_dir, val_only=pictures, **loading, only_labelled=False
    )
    notes = check_teacher(args, teacher, checkpoint, datasets["train"].preprocessing)
    response = create_response(args, teacher, datasets["train"])
    seed_weights(args.seed)  # here, so that the student begins as it would without a teacher
    student = create_model(args.student_model, **student_config(args), max_depth=datasets["train"].max_depth)
    task = DistillationTask(
        student,
        teacher,
        response,
        create_features(args, student, teacher, fabric.world_size) if args.lambda_feat > 0 else None,
        lambda_task=args.lambda_task,
        lambda_kd=args.lambda_kd,
        lambda_feat=args.lambda_feat,
        task_loss=args.task_loss,
        schedule=args.schedule,
    )
    shown = "audio" not in teacher.inputs or not args.cache_teacher  # what the student is shown, as it learnt it
    validation = create_validation(args, fabric, task, datasets["val"], loaders["val"], shown=shown)

    def prepare() -> None:
        if args.cache_teacher:
            task.cache = ask_beforehand(args, fabric, task.teacher, checkpoint)

    if validation.measure is not None:
        notes.append("no validation pair has measured depth: epochs are compared by the distance from the teacher [m]")
    columns: Callable[[Batch, Tensor], list[Column]] = depth_columns
    if shown:
        columns = columns_with(task.teacher, fabric, measured=validation.measure is None)
    run_training(
        args, fabric, task, loaders["train"], loaders["val"],
        columns=columns, notes=notes, validation=validation, prepare=prepare,
    )  # fmt: skip


def check_options(args: argparse.Namespace) -> None:
    """Refuse what would have no effect, and fill in the defaults of what has one.

    Raises:
        OptionError: naming the flag.
    """
    if args.lambda_kd == 0 and args.lambda_feat == 0:
        raise OptionError(
            "--lambda_kd 0 and --lambda_feat 0 leave nothing to distil; train_binaural_attention.py learns from "
            "measured depth alone"
        )
    if args.lambda_kd == 0 and args.response_loss is not None:
        raise OptionError("--response_loss has no effect with --lambda_kd 0")
    for flag, default in (("lambda_task", 1.0), ("task_loss", "l1")):
        if args.label_fraction == 0 and getattr(args, flag) is not None:
            raise OptionError(f"--{flag} has no effect with --label_fraction 0: there is no measured depth")
        if getattr(args, flag) is None:
            setattr(args, flag, default)
    if args.lambda_task == 0 and args.task_loss != "l1":
        raise OptionError(f"--task_loss {args.task_loss} has no effect with --lambda_task 0")
    if args.cache_teacher:
        options.check_teacher_cache(args, "depth maps, no features")
    if "rgb" in MODELS[args.student_model].inputs:
        for flag, why in SEEN_WITHOUT.items():
            if getattr(args, flag):
                raise OptionError(f"--{flag}: --student_model {args.student_model} looks at the picture, {why}")
    if args.lambda_feat == 0:
        for flag in FEATURE_DEFAULTS:
            if getattr(args, flag) is not None:
                raise OptionError(f"--{flag} has no effect with --lambda_feat 0; give a weight above 0")
        return
    kind = args.feature_loss or FEATURE_DEFAULTS["feature_loss"]
    if kind == "similarity" and args.micro_batch == 1:
        raise OptionError(
            "--micro_batch 1: --feature_loss similarity compares the images that go through together; give 2 or more"
        )
    if args.temperature is not None and kind != "cwd":
        raise OptionError(f"--temperature has no effect with --feature_loss {kind}; it belongs to cwd")
    if args.feature_adapters is not None and kind not in CHANNEL_BY_CHANNEL:
        raise OptionError(f"--feature_adapters has no effect with --feature_loss {kind}, which compares no channels")
    for flag, default in FEATURE_DEFAULTS.items():
        if getattr(args, flag) is None:
            setattr(args, flag, default)


def check_teacher(
    args: argparse.Namespace, teacher: DepthModel, checkpoint: dict[str, Any] | None, preprocessing: dict[str, Any]
) -> list[str]:
    """Make sure that the teacher can look at what the student's samples hold; return what the log should say.

    Args:
        args: the flags.
        teacher: of ``--teacher_checkpoint``.
        checkpoint: likewise; None if the file is bare weights, of which it is not known how they were trained.
        preprocessing: of the student's samples.

    Raises:
        OptionError: it does not see, or would have to hear what the student hears, which is not what it learnt.
        CheckpointError: its file does not say how it hears.
    """
    path, before = args.teacher_checkpoint, checkpoint["preprocessing"] if checkpoint else {}
    if "rgb" not in teacher.inputs:
        takes = " and ".join(teacher.inputs)
        raise OptionError(f"--teacher_checkpoint {path}: {teacher.name} takes {takes}; a teacher must see (rgb)")
    if "audio" in teacher.inputs:
        teacher.check_image_size(args.image_size)
        if checkpoint is None:
            raise OptionError(f"--teacher_checkpoint {path}: bare weights do not say what {teacher.name} heard")
        require_entries(checkpoint, path, "preprocessing", *HEARING)
        if args.augment_scale and not args.cache_teacher:
            raise OptionError(
                "--augment_scale: the teacher hears and sees, and a picture does not show the scale; give "
                "--cache_teacher, where it is asked beforehand"
            )
        if args.cache_teacher:
            require_entries(checkpoint, path, "args", "dataset")
            if why := other_axis_of_time(checkpoint, args.dataset):
                raise OptionError(f"--teacher_checkpoint {path}: {why}")
        else:
            for key in HEARING:
                if before[key] != preprocessing[key]:
                    raise OptionError(
                        f"--teacher_checkpoint {path}: it was trained with {key} {before[key]}, not "
                        f"{preprocessing[key]}; give the flags of its training, or --cache_teacher, where it hears "
                        "what it learnt to hear"
                    )
    parameters = sum(parameter.numel() for parameter in teacher.parameters()) / 1e6
    origin = f"epoch {checkpoint['epoch']} of {path}" if checkpoint else f"{path}"
    notes = [f"teacher: {teacher.name}, {parameters:.2f} M parameters, frozen, {origin}"]
    shown = nearest_size(teacher, args.image_size)
    if shown != args.image_size:
        notes.append(f"the teacher is shown {shown}x{shown} pixels: it takes multiples of {teacher.size_multiple}")
    if before.get("image_size", shown) != shown:
        notes.append(f"warning: the teacher was trained at image size {before['image_size']} and is shown {shown}")
    return notes


def ask_beforehand(
    args: argparse.Namespace, fabric: Fabric, teacher: Guest, checkpoint: dict[str, Any] | None
) -> TeacherCache:
    """Return the teacher's answers to all that there is to train on, as it is before augmentation.

    A teacher that hears, too, hears it in its own format, whatever the student's is.
    """
    data = options.dataset_options(args) | {"augment": False, "augment_scale": 0.0}
    if "audio" in teacher.model.inputs and checkpoint is not None:
        data |= {key: checkpoint["preprocessing"][key] for key in HEARING}
    pictures = create_training_split(set(teacher.model.inputs), data, args.pairs_dir)
    precision = resolve_precision(args.precision, fabric.device.type)
    cache = open_cache(
        fabric, args.cache_teacher, teacher, pictures, args.image_size, precision=precision, view="and its mirror image"
    )
    if not cache.whole:  # else no picture need be prepared
        loader = create_loader(pictures, shuffle=False, **options.loader_options(args, fabric))
        teacher.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        ask_once(fabric, teacher, cache, loader, args.micro_batch)
    fabric.barrier()
    return cache


@torch.no_grad()
def ask_once(
    fabric: Fabric, teacher: Guest, cache: TeacherCache, loader: DataLoader, at_a_time: int | None = None
) -> None:
    """Ask a teacher for what a cache lacks: the mean of its answers to a scene and to the mirrored one, turned back.

    That mean errs less than either, and is the same for a scene and for the mirrored one.

    Args:
        fabric: device, precision and processes, among which the pictures are shared out.
        teacher: who answers.
        cache: of all rows of ``loader``.
        loader: yields the scenes in order, ``rgb`` [B, 3, S, S] and, if the teacher hears, ``audio``, as they are
            without augmentation.
        at_a_time: scenes of a batch that go through the teacher together; None: all.
    """

    def ask(batch: Batch) -> Tensor:
        mirrored = {**batch, "rgb": batch["rgb"].flip(-1)}
        if "audio" in batch:
            mirrored["audio"] = swap_ears(batch["audio"])
        with fabric.autocast():
            here, there = (teacher(view).float() for view in (batch, mirrored))  # [B, 1, S, S]
        return (here + there.flip(-1)) / 2

    micro = MicroBatches(fabric, at_a_time)
    with loop.Batches(fabric, loader, len(loader), "asking the teacher") as batches:
        for batch in batches:
            cache.answer(batch["index"], partial(micro.answers, ask, batch))


def create_response(args: argparse.Namespace, teacher: DepthModel, dataset: DepthDataset) -> ResponseDistillation:
    """Return the response loss that fits the teacher's output and the training split.

    Raises:
        OptionError: it does not fit, or nothing would tell the student how long a metre is.
    """
    kind = args.response_loss or ("ssi" if teacher.output == "disparity" else "l1")
    response = ResponseDistillation(kind, teacher.output, dataset.max_depth)
    if args.lambda_kd > 0:
        args.response_loss = kind
    measured = args.lambda_task > 0 and dataset.labelled.any()
    if not measured and (kind == "ssi" or args.lambda_kd == 0):
        raise OptionError(
            "nothing would teach the student metres: that takes pairs with measured depth (--label_fraction and "
            "--lambda_task above 0), or a teacher's depth (--lambda_kd above 0, and not ssi)"
        )
    return response


def student_config(args: argparse.Namespace) -> dict[str, Any]:
    """Return those arguments that the student takes of the ones that the flags set.

    Raises:
        OptionError: a flag that it does not take.
    """
    taken = options_of(args.student_model)
    for flag in ("bilinear", "attention_levels", "share_ears", "compress_input"):
        if getattr(args, flag) is not None and flag not in taken:
            raise OptionError(f"--{flag} has no effect on --student_model {args.student_model}")
    hearing = options.hearing_config(args)
    if hearing["audio_channels"] != EARS and "audio_channels" not in taken:
        raise OptionError(
            f"--audio_format {args.audio_format}: --student_model {args.student_model} takes spectrograms; "
            "give --audio_format spectrogram"
        )
    config = {
        "base_channels": args.base_channels,
        "bilinear": args.bilinear,
        "attention_levels": args.attention_levels,
        "share_ears": args.share_ears,
        "min_depth": args.min_depth,
        **hearing,
        "image_size": args.image_size,
    }
    return {key: value for key, value in config.items() if key in taken and value is not None}


def create_features(
    args: argparse.Namespace, student: DepthModel, teacher: DepthModel, processes: int
) -> FeatureDistillation:
    """Return the feature losses over the levels asked for, with their adapters.

    Raises:
        OptionError: a level that one of the two has not, or a batch in which there is nothing to compare.
    """
    if args.feature_loss == "similarity" and args.batch_size < 2 * processes:
        raise OptionError(
            f"--feature_loss similarity compares the images of a batch: --batch_size {2 * processes} or more"
        )
    widths = [{level: shape[0] for level, shape in model.feature_shapes().items()} for model in (student, teacher)]
    return FeatureDistillation(
        widths[0], widths[1], args.feature_levels, args.feature_loss, args.feature_adapters, args.temperature
    )


def create_validation(
    args: argparse.Namespace,
    fabric: Fabric,
    task: DistillationTask,
    dataset: DepthDataset,
    loader: DataLoader,
    *,
    shown: bool,
) -> Validation:
    """Compare epochs by measured depth; where no validation pair has any, by the distance from a metric teacher.

    A teacher of disparities says no metres: without measured depth nothing tells one epoch from another.

    Args:
        args: the flags.
        fabric: device, precision and processes.
        task: student and teacher.
        dataset: the validation samples.
        loader: of them.
        shown: whether the teacher can be asked about them, as the student hears them.

    Raises:
        OptionError: there is neither measured depth nor an answer.
    """
    if dataset.labelled.any() or task.teacher.model.output != "metres":
        return Validation()
    if not shown:
        raise OptionError(
            f"{dataset.dataset_dir}: no validation pair has measured depth, and a teacher that hears is asked, under "
            "--cache_teacher, about training pairs alone; take a teacher that only sees"
        )
    return distance_validation(fabric, task, loader, args.limit_val_batches, unit=" m")


def columns_with(teacher: Guest, fabric: Fabric, *, measured: bool) -> Callable[[Batch, Tensor], list[Column]]:
    """Return the columns of an epoch's picture, the teacher's answer among them, or in the place of measured depth."""

    def columns(batch: Batch, prediction: Tensor) -> list[Column]:
        with fabric.autocast():
            answer = teacher(fabric.to_device(batch)).float().cpu()
        if not measured:
            *before, truth, predicted, error = depth_columns({**batch, "depth": answer}, prediction)
            return [*before, ("teacher", *truth[1:]), predicted, ("distance from the teacher", *error[1:])]
        *before, predicted, error = depth_columns(batch, prediction)
        kind = "depth" if teacher.model.output == "metres" else "disparity"
        return [*before, ("teacher", kind, list(answer)), predicted, error]

    return columns


if __name__ == "__main__":
    run_script(main)
