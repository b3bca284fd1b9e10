"""A training session, from parsed flags to the last curve. The scripts hand it their data, their task and their names.

It knows no model, no data set and no loss: those are its arguments.
"""

from __future__ import annotations

import argparse
import itertools
import math
import platform
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from errors import CheckpointError, OptionError
from training import loop, optimizers
from training.checkpoint import FORMAT, best_value, join_licenses, load_weights, save_checkpoint
from training.engine import resolve_precision, synchronize_batch_norm
from training.experiment import Experiment, Start
from training.loop import Plan, Progress
from training.machine import peak_memory
from training.metrics import BATVISION, Scoring
from training.micro_batches import MicroBatches
from training.options import plain_arguments
from training.run_log import Row, RunLog, check_wandb
from training.task import Batch, Task
from training.version import VERSION, commit
from training.visualization import Column, error_map, save_curves, save_grid

# Flags that may differ between a run and its continuation without a change to its end.
HARMLESS = frozenset(
    {
        "checkpoints",
        "dataset_dir",
        "export_student",
        "init_from",
        "license",
        "num_workers",
        "output_dir",
        "overwrite",
        "resume",
        "save_frequency",
    }
    | {"student_checkpoint", "teacher_checkpoints", "visualize_every"}
    | {"stop_after_epoch", "teacher_checkpoint", "use_wandb", "wandb_project"}  # a teacher is known by its weights
)
# Flags that are a run's own from its beginning to its end, and why.
LASTING = {
    "optimizer": "the state of one is not another's",  # PyTorch takes it, and stumbles in the first step or not at all
    "holdout_location": "a location would be learnt that was held out, or held out though it was learnt",
}
PICTURED = 4  # validation samples in the picture of an epoch


def sample_columns(batch: Batch) -> list[Column]:
    """Return the columns that show the samples: what can be heard and seen, and the measured depth."""
    inputs: list[Column] = [(key.upper(), key, list(batch[key])) for key in ("audio", "rgb") if key in batch]
    return [*inputs, ("ground truth", "depth", list(batch["depth"]))]


def depth_columns(batch: Batch, prediction: Tensor | Sequence[Tensor]) -> list[Column]:
    """Return the columns of an epoch's picture: the samples, the predictions [1, H, W] and their errors."""
    errors = [error_map(p, t) for p, t in zip(prediction, batch["depth"], strict=True)]
    return [*sample_columns(batch), ("prediction", "depth", list(prediction)), ("absolute error", "error", errors)]


@dataclass(frozen=True)
class Validation:
    """How the epochs of a run are compared.

    Attributes:
        criterion: the column whose lowest value is the best epoch's.
        scoring: how the student, and the networks that the task watches, are held against measured depth.
        measure: called with how many images go through a network at a time, and the epoch; returns the columns
            instead, where there is no measured depth.
        figure: the criterion in words, with a place for its value.
    """

    criterion: str = "val_rmse"
    scoring: Scoring = BATVISION
    measure: Callable[[MicroBatches, int], Row] | None = None
    figure: str = "validation RMSE {:.4f} m"


def distance_validation(fabric: Fabric, task: Task, loader: DataLoader, limit: int | None, unit: str) -> Validation:
    """Compare epochs by the student's distance from its teachers on the validation samples: no depth was measured.

    Args:
        fabric: device, precision and processes.
        task: has ``distance`` (see ``training.loop.validate_by_distance``).
        loader: the validation samples.
        limit: batches, or None for all.
        unit: of the distance, with a blank before it; empty if it has none.
    """
    measure = partial(loop.validate_by_distance, fabric, task, loader, limit)
    return Validation("val_distance", measure=measure, figure=f"val_distance {{:.4f}}{unit} from the teacher")


def run_training(
    args: argparse.Namespace,
    fabric: Fabric,
    task: Task,
    train_loader: DataLoader,
    val_loader: DataLoader,
    columns: Callable[[Batch, Tensor], list[Column]] = depth_columns,
    notes: Sequence[str] = (),
    picture: str = "epoch_{:04d}.png",
    validation: Validation | None = None,
    on_step: Callable[[int, Batch], None] = lambda step, batch: None,
    prepare: Callable[[], None] = lambda: None,
) -> None:
    """Train ``task`` as the flags say: begin or resume the experiment, fit, save, draw.

    Args:
        args: the flags of ``training.options``.
        fabric: from ``training.engine.create_fabric``.
        task: with its student, on the CPU, its weights drawn under ``--seed``.
        train_loader: of ``dataloaders.create_loader``, as is ``val_loader``.
        val_loader: the validation samples.
        columns: turns a batch and its prediction into the columns of an epoch's picture.
        notes: lines that the log begins with.
        picture: the file name of an epoch's picture.
        validation: how epochs are compared; None: by the RMSE against measured depth in metres.
        on_step: called with the number of each step, from 1 on, and its batch, after the update.
        prepare: called once, where flags, data and checkpoint fit each other, before the experiment's first file: for
            what takes long, or much of the disk.

    Raises:
        UserError: before anything is written, when flags, data and checkpoint do not fit each other.
    """
    commit()  # before it changes, for the checkpoints
    if args.use_wandb:
        check_wandb(args.wandb_project)
    student: Any = task.student
    student.check_image_size(args.image_size)
    validation = validation or Validation()
    criterion = validation.criterion
    train, val = (loader.dataset for loader in (train_loader, val_loader))
    if validation.measure is None:
        val.require_depth()  # type: ignore[attr-defined]
    if "depth" in task.needs and (train.labelled.any() or not task.uses_unlabelled):  # type: ignore[attr-defined]
        train.require_depth()  # type: ignore[attr-defined]
    experiment = Experiment(args.output_dir, args.experiment_name)
    start = experiment.find_start(args)
    if start.checkpoint is not None and start.path is not None:
        load_weights(student, start.checkpoint, start.path)
        before = start.checkpoint.get("args", {}).get("license")
        if before:
            args.license = join_licenses(*filter(None, (getattr(args, "license", None), before)))

    task.to(memory_format=torch.channels_last)
    if args.sync_bn:
        synchronize_batch_norm(task)
    optimizer = create_optimizer(task, args)
    steps = loop.steps_per_epoch(train_loader, args.limit_train_batches)
    if args.compile:
        task.compile()
    wrapped, wrapped_optimizer = fabric.setup(task, optimizer)
    progress = restore_training(start, args, fabric, task, optimizer)
    if start.checkpoint and start.checkpoint.get("best", {}).get("criterion", criterion) != criterion:
        progress.best, progress.best_epoch = math.inf, 0  # another measure: nothing to beat
    warmup = round(steps * args.warmup_epochs)
    if args.warmup_epochs and warmup < 2:  # which begins at the whole rate
        raise OptionError(
            f"--warmup_epochs {args.warmup_epochs:g} has no effect: of {steps} steps an epoch it is {warmup}; "
            f"give {2 / steps:.2g} at least"
        )
    factor = learning_rate_factor(args.scheduler, steps * args.nb_epochs, task.restarts, warmup)
    scheduler = LambdaLR(optimizer, factor, last_epoch=progress.epoch * steps - 1)
    last = args.stop_after_epoch or args.nb_epochs
    if progress.epoch >= last:
        raise OptionError(
            f"{start.path}: epoch {progress.epoch} of {last} is done already; ask for more epochs to go on"
        )

    prepare()
    moved = experiment.begin(args, start) if fabric.is_global_zero else []
    fabric.barrier()
    log = RunLog(
        experiment.results,
        experiment.logs,
        epoch=progress.epoch,
        enabled=fabric.is_global_zero,
    )
    if not (experiment.checkpoints / "best_model.pth").is_file():
        if progress.best_epoch:
            moved.append(
                f"warning: of epoch {progress.best_epoch}, the best until epoch {progress.epoch}, there is no "
                "checkpoint: the best of those from here on is kept as best_model.pth, be it worse"
            )
        progress.best, progress.best_epoch = math.inf, 0
    if args.use_wandb:
        log.start_wandb(args.wandb_project, args.experiment_name, args.output_dir, plain_arguments(args))
    introduce(args, fabric, student, train_loader, val_loader, log, [*notes, *moved, *changes(args, fabric, start)])

    def on_epoch_end(progress: Progress, is_best: bool) -> None:
        if not fabric.is_global_zero:
            return
        state = checkpoint_state(args, fabric, task, optimizer, train_loader, progress, criterion)
        saves = progress.epoch % args.save_frequency == 0 or progress.epoch == args.nb_epochs
        if is_best:  # before last.pth: a run that is killed between the two does this epoch again
            save_checkpoint(
                {k: v for k, v in state.items() if k != "training"}, experiment.checkpoints / "best_model.pth"
            )
        if saves:
            save_checkpoint(state, experiment.checkpoints / f"checkpoint_{progress.epoch:04d}.pth")
            path = experiment.results / picture.format(progress.epoch)
            batch = pictured_batch(val_loader)
            prediction = loop.predict(fabric, student.eval(), fabric.to_device(batch)).cpu()
            title = f"{args.experiment_name}, epoch {progress.epoch}"
            save_grid(path, columns(batch, prediction), batch["id"], title, train.preprocessing)  # type: ignore[attr-defined]
            log.picture("validation", path, progress.step)
        save_checkpoint(state, experiment.checkpoints / "last.pth")
        experiment.remove_replaced()

    networks = {"val": student, **{f"val_{name}": model for name, model in task.watched().items()}}
    scored: Any = (fabric, networks, val_loader, args.limit_val_batches, validation.scoring, {})
    micro = MicroBatches(fabric, args.micro_batch, log.warn)
    validate = partial(validation.measure or partial(loop.validate, *scored), micro)
    plan = Plan(
        epochs=args.nb_epochs,
        stop_after=last,
        seed=args.seed,
        limit_train=args.limit_train_batches,
        criterion=criterion,
        on_step=on_step,
        on_epoch_end=on_epoch_end,
    )
    begun = time.monotonic()
    try:
        loop.fit(
            fabric, wrapped, wrapped_optimizer, scheduler, train_loader, validate,
            progress=progress, plan=plan, log=log, micro=micro,
        )  # fmt: skip
        conclude(args, experiment, progress, validation, log)
        peak = peak_memory(fabric.device.type) / 2**30
        log.say(f"took {time.monotonic() - begun:.1f} s, at most {peak:.2f} GiB of memory ({fabric.device.type})")
    except KeyboardInterrupt:
        goes_on = f"{continuation(args)} goes on after {progress.epoch}"
        if progress.epoch == 0:
            goes_on = "nothing was saved yet, and the same command begins again"
        log.say(f"interrupted in epoch {progress.epoch + 1}; {goes_on}")
        raise
    finally:
        log.close()
        experiment.end()


def conclude(
    args: argparse.Namespace, experiment: Experiment, progress: Progress, validation: Validation, log: RunLog
) -> None:
    """Draw the curves and say where everything is."""
    if not log.enabled:
        return
    save_curves(experiment.results / "curves.png", log.rows())
    best = f"best epoch {progress.best_epoch}, {validation.figure.format(progress.best)}"
    log.say(f"done: {best if progress.best_epoch else 'no epoch had a valid metric'}")
    if progress.epoch < args.nb_epochs:
        log.say(
            f"stopped after epoch {progress.epoch} of {args.nb_epochs}: {continuation(args)} goes on, without "
            "--stop_after_epoch or with a later one"
        )
    log.say(f"model: {experiment.checkpoints / 'best_model.pth'}; pictures and curves: {experiment.results}/")


def continuation(args: argparse.Namespace) -> str:
    """Return the command that goes on with a run, in words: its own, but for the flag that said how it began."""
    begun = next((flag for flag in ("overwrite", "checkpoints", "init_from") if getattr(args, flag)), None)
    return f"the same command with --resume{f' in the place of --{begun}' if begun else ''}"


def create_optimizer(task: Task, args: argparse.Namespace) -> Optimizer:
    """Build the optimiser of ``--optimizer``, fused where it can be: one kernel per step, which a NaN can gate."""
    groups = [
        {"params": parameters, "lr": args.learning_rate * scale}
        for scale, parameters in task.trainable_groups().items()
    ]
    options = {"lr": args.learning_rate, "weight_decay": args.weight_decay}
    if args.optimizer == "Muon":
        return optimizers.muon(groups, **options)
    if args.optimizer == "SGD":
        return torch.optim.SGD(groups, momentum=0.9, fused=True, **options)
    return getattr(optimizers, args.optimizer)(groups, fused=True, **options)


def learning_rate_factor(
    kind: str, total: int, restarts: Sequence[float] = (), warmup: int = 0
) -> Callable[[int], float]:
    """Return the factor on the learning rate as a function of the step, over ``total`` steps.

    ``restarts`` are shares of the training at which the schedule begins anew, to end at the next. Over the first
    ``warmup`` steps it also grows linearly, from 1 / ``warmup`` of itself on.
    """
    bounds = [0, *(round(share * total) for share in restarts), total]

    def factor(step: int) -> float:
        begin, end = next((a, b) for a, b in itertools.pairwise(bounds) if step < b or b == total)
        share = min((step - begin) / (end - begin), 1)
        grown = min((step + 1) / warmup, 1.0) if warmup else 1.0
        if kind == "cosine":
            return grown * 0.5 * (1 + math.cos(math.pi * share))
        return grown * 0.1 ** sum(share >= limit for limit in (0.5, 0.75)) if kind == "step" else grown

    return factor


def restore_training(
    start: Start, args: argparse.Namespace, fabric: Fabric, task: Task, optimizer: Optimizer
) -> Progress:
    """Load all but the student's weights from the checkpoint to resume, and return how far it was.

    The learning rate and the weight decay are those of the flags, not of the checkpoint.

    Args:
        start: how the run begins.
        args: the flags.
        fabric: device, precision and processes.
        task: whose further state is loaded.
        optimizer: likewise.

    Raises:
        CheckpointError: it is of another task, or a flag differs with which no run goes on (``LASTING``).
    """
    if start.checkpoint is None or start.weights_only:
        return Progress()
    for flag, why in LASTING.items():
        now = getattr(args, flag, None)
        if (before := start.checkpoint["args"].get(flag, now)) != now:
            raise CheckpointError(
                f"{start.path}: its --{flag} was {before or 'none'} and is {now or 'none'} now: {why}; go on with the "
                f"same, or begin another experiment from its weights (--init_from {start.path})"
            )
    training, best = start.checkpoint["training"], best_value(start.checkpoint)
    if best is None:
        raise CheckpointError(f"{start.path}: not a whole checkpoint; its best does not say value; copy it again")
    asked_for = [{key: group[key] for key in ("lr", "weight_decay")} for group in optimizer.param_groups]
    try:
        task.load_extra_state(training["task_state_dict"])
        optimizer.load_state_dict(training["optimizer_state_dict"])
        fabric._precision.load_state_dict(training["precision_state_dict"])
    except Exception as error:  # what was not written by this task and this optimiser ends in any way
        why = textwrap.shorten(f"{error}", 160, placeholder=" ...")  # it may name all weights
        raise CheckpointError(
            f"{start.path}: its training state does not fit these flags ({why}); give those that it was trained under "
            "(args.json), or begin another experiment from its weights (--init_from)"
        ) from error
    for group, asked in zip(optimizer.param_groups, asked_for, strict=True):
        group.update(asked, initial_lr=asked["lr"])
    return Progress(start.checkpoint["epoch"], start.checkpoint["step"], best, start.checkpoint["best"]["epoch"])


def checkpoint_state(
    args: argparse.Namespace,
    fabric: Fabric,
    task: Task,
    optimizer: Optimizer,
    train_loader: DataLoader,
    progress: Progress,
    criterion: str,
) -> dict[str, Any]:
    """Return what a checkpoint holds (see ``training.checkpoint``)."""
    student: Any = task.student
    dataset: Any = train_loader.dataset
    return {
        "format": FORMAT,
        "model": {"name": student.name, "config": student.config},
        "model_state_dict": student.state_dict(),
        "preprocessing": dataset.preprocessing,
        "args": plain_arguments(args),
        "epoch": progress.epoch,
        "step": progress.step,
        "best": {"value": progress.best, "epoch": progress.best_epoch, "criterion": criterion},
        "versions": {
            "toolkit": VERSION,
            **({"commit": origin} if (origin := commit()) else {}),
            "python": platform.python_version(),
            "torch": str(torch.__version__),
        },
        **machine(args, fabric),
        "training": {
            "task_state_dict": task.extra_state(),
            "optimizer_state_dict": optimizer.state_dict(),
            "precision_state_dict": fabric._precision.state_dict(),
        },
    }


def machine(args: argparse.Namespace, fabric: Fabric) -> dict[str, Any]:
    """Return what else decides the last bits of a result."""
    return {
        "threads": torch.get_num_threads(),
        "processes": fabric.world_size,
        "precision": resolve_precision(args.precision, fabric.device.type),
    }


def changes(args: argparse.Namespace, fabric: Fabric, start: Start) -> list[str]:
    """Name what differs from the run that is resumed, since then the end cannot be the same to the bit."""
    if start.checkpoint is None or start.weights_only:
        return []
    before = {**start.checkpoint["args"], **{key: start.checkpoint.get(key) for key in machine(args, fabric)}}
    now = {**plain_arguments(args), **machine(args, fabric)}
    for settings in (before, now):  # where the cache lies changes nothing; whether there is one rounds spectrograms
        for folder in ("cache_dir", "cache_teacher", "pairs_dir"):
            settings[folder] = "given" if settings.get(folder) else None
    differing = [
        f"{key} {before[key]} -> {now[key]}"
        for key in sorted(now.keys() & before.keys())  # an older version did not have all flags
        if key not in HARMLESS and before[key] != now[key]
    ]
    return [f"warning: resumed with other settings: {', '.join(differing)}"] if differing else []


def introduce(
    args: argparse.Namespace,
    fabric: Fabric,
    student: Any,
    train_loader: DataLoader,
    val_loader: DataLoader,
    log: RunLog,
    notes: list[str],
) -> None:
    """Say what is about to happen."""
    train: Any = train_loader.dataset
    precision = resolve_precision(args.precision, fabric.device.type)
    where = f"{fabric.world_size} x {fabric.device.type}, precision {precision}"
    pairs = (
        f"{int(train.labelled.sum())} of {len(train)} training pairs have depth, {len(val_loader.dataset)} to validate"  # type: ignore[arg-type]
    )
    trained, parameters = (student.count_parameters(trainable=only) / 1e6 for only in (True, False))
    of_them = "" if trained == parameters else f" ({trained:.2f} M of them train)"
    log.say(f"{args.experiment_name}: {student.name}, {parameters:.2f} M parameters{of_them}, {where}")
    log.say(f"data: {args.dataset}, {pairs}, {args.image_size}x{args.image_size}, up to {train.max_depth:g} m")
    for note in notes:
        log.say(note)


def pictured_batch(loader: DataLoader) -> Batch:
    """Collate a few validation samples, evenly spread over the split, the same ones every time."""
    dataset: Any = loader.dataset
    count = min(PICTURED, len(dataset))
    return loader.collate_fn([dataset[i * len(dataset) // count] for i in range(count)])
