"""The one loop. It knows no model, no data set and no flag: a task turns batches into losses, and it does the rest."""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from tqdm import tqdm

from errors import TrainingError, UserError, from_worker
from training.engine import seed_epoch
from training.metrics import MetricTable, Scoring, images_with, valid_pixels
from training.micro_batches import MicroBatches
from training.run_log import Row, RunLog
from training.task import Batch, model_inputs

NOT_A_NUMBER = (
    "epoch {}: the network answers the validation samples with what is not a number; the checkpoints are those from "
    "before. Lower --learning_rate"
)
READ_EVERY = 20  # steps between two looks at the device: reading a loss waits for all that the device has queued


@dataclass
class Progress:
    """How far a run is. ``best`` is the lowest value of the criterion so far, reached in ``best_epoch``."""

    epoch: int = 0
    step: int = 0
    best: float = float("inf")
    best_epoch: int = 0


@dataclass
class Plan:
    """How long a run is, and who is told when an epoch ends.

    Attributes:
        epochs: the length that schedules and curricula refer to.
        stop_after: the last epoch of this session.
        seed: of the random state of each epoch.
        limit_train: batches per epoch, or None for all.
        criterion: the metric whose lowest value is the best epoch's.
        on_step: called with the number of the step, from 1 on, and its batch, after the update.
        on_epoch_end: called with the progress and whether it is the best so far; it saves and draws.
    """

    epochs: int
    stop_after: int
    seed: int
    limit_train: int | None = None
    criterion: str = "val_rmse"
    on_step: Callable[[int, Batch], None] = field(default=lambda step, batch: None)
    on_epoch_end: Callable[[Progress, bool], None] = field(default=lambda progress, is_best: None)


def fit(
    fabric: Fabric,
    task: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    train_loader: DataLoader,
    validate: Callable[[int], Row],
    *,
    progress: Progress,
    plan: Plan,
    log: RunLog,
    micro: MicroBatches,
) -> None:
    """Train from ``progress`` on to the end of the plan, validating after each epoch.

    Args:
        fabric: device, precision and processes.
        task: a :class:`training.task.Task`, set up by ``fabric``.
        optimizer: set up by ``fabric``.
        scheduler: steps once per batch.
        train_loader: its batch sampler has ``start_epoch``.
        validate: called with the epoch, returns the columns that its row in the log gets beside the losses, the
            criterion among them. See :func:`validate`.
        progress: moved on in place.
        plan: lengths and callbacks.
        log: is told every step and every epoch.
        micro: how many images of a batch go through the network at a time.

    Raises:
        TrainingError: the loss, or a gradient, is not a number: nothing of that step reached the weights. Or the last
            steps left weights that answer with NaN: nothing of that epoch reached a checkpoint.
    """
    steps = steps_per_epoch(train_loader, plan.limit_train)
    while progress.epoch < plan.stop_after:
        epoch = progress.epoch + 1
        seed_epoch(plan.seed, epoch, fabric.global_rank)
        train_loader.batch_sampler.start_epoch(epoch)  # type: ignore[union-attr]
        learning_rate = scheduler.get_last_lr()[0]
        parts = train_epoch(
            fabric,
            task,
            optimizer,
            scheduler,
            train_loader,
            epoch=epoch,
            steps=steps,
            total=steps * plan.epochs,
            log=log,
            micro=micro,
            on_step=plan.on_step,
        )
        share_statistics(fabric, task)
        metrics = validate(epoch)
        progress.epoch, progress.step = epoch, epoch * steps
        is_best = metrics[plan.criterion] < progress.best  # NaN is never less
        if is_best:
            progress.best, progress.best_epoch = metrics[plan.criterion], epoch
        log.epoch({"epoch": epoch, "lr": learning_rate, **parts, **metrics}, progress.step)
        plan.on_epoch_end(progress, is_best)


def train_epoch(
    fabric: Fabric,
    task: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    loader: DataLoader,
    *,
    epoch: int,
    steps: int,
    total: int,
    log: RunLog,
    micro: MicroBatches | None = None,
    on_step: Callable[[int, Batch], None] = lambda step, batch: None,
) -> Row:
    """Train for one epoch of ``steps`` batches, of ``total`` in the run; return the mean of each part of the loss.

    The mean is over the steps, weighted by the images where the task counts them; a part that had none is 0.
    """
    task.train()
    micro = micro or MicroBatches(fabric)
    guard = NotANumberGuard(fabric, optimizer)
    window: list[Row] = []
    sums: dict[str, Tensor] = {}
    weights: dict[str, Tensor | int] = {}
    blank = torch.zeros((), device=fabric.device)  # images without one valid depth pixel
    with Batches(fabric, loader, steps, f"epoch {epoch}") as batches:
        for step, batch in enumerate(batches, start=(epoch - 1) * steps):
            losses = micro.backward(task, batch, step / total)
            guard.watch(step, losses["loss"], batch["id"])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            counts, parts = losses.pop("counts"), losses
            for key, value in parts.items():
                sums[key] = sums.get(key, 0) + value * counts.get(key, 1)
                weights[key] = weights.get(key, 0) + counts.get(key, 1)
            blank += (~images_with(valid_pixels(batch["depth"]))).sum() if "depth" in batch else 0
            window.append({"step": step + 1, "epoch": epoch, "lr": scheduler.get_last_lr()[0], **parts})
            scheduler.step()
            if len(window) == READ_EVERY or (step + 1) % steps == 0:
                guard.raise_if_tripped()
                rows = read_rows(fabric, window)
                log.steps(rows)
                batches.show(loss=f"{rows[-1]['loss']:.4f}", lr=f"{rows[-1]['lr']:.2g}")
                window = []
            on_step(step + 1, batch)
    holes = int(reduce(fabric, blank, "sum"))
    if holes and not getattr(task, "uses_unlabelled", False):
        log.warn(f"epoch {epoch}: {holes} training images have no valid depth pixel and taught nothing")
    means = {key: value / torch.as_tensor(weights[key]).clamp(min=1) for key, value in sums.items()}
    return {f"train_{key}": float(reduce(fabric, value, "mean")) for key, value in means.items()}


def validate(
    fabric: Fabric,
    networks: Mapping[str, nn.Module],
    loader: DataLoader,
    limit: int | None,
    scoring: Scoring,
    known: dict[str, Row],
    micro: MicroBatches,
    epoch: int,
) -> Row:
    """Score networks on the validation samples; return their metrics as columns.

    One without a parameter that trains, a frozen teacher, is scored in the first epoch alone.

    Args:
        fabric: device, precision and processes.
        networks: by the prefix of their columns, the one that is trained first.
        loader: yields every validation sample once, over all processes together.
        limit: batches, or None for all.
        scoring: how they are held against measured depth.
        known: keeps what does not change from one epoch to the next.
        micro: how many images of a batch go through a network at a time.
        epoch: for progress bar and messages.

    Raises:
        TrainingError: the first network answers with NaN.
    """
    metrics: Row = {}
    for number, (prefix, network) in enumerate(networks.items()):
        if prefix in known:
            metrics |= known[prefix]
            continue
        title = f"epoch {epoch} validation, {prefix}"
        columns = epoch_metrics(
            evaluate(fabric, network, loader, limit, table=MetricTable(scoring=scoring), title=title, micro=micro),
            prefix,
        )
        if not any(parameter.requires_grad for parameter in network.parameters()):
            known[prefix] = columns
        metrics |= columns
        if number == 0 and not metrics[f"{prefix}_n_images"]:
            raise TrainingError(
                f"epoch {epoch}: not one of the validation images has measured depth that counts; check the data, and "
                "--limit_val_batches if it was given"
            )
        if number == 0 and math.isnan(metrics[f"{prefix}_rmse"]):
            raise TrainingError(NOT_A_NUMBER.format(epoch))
    return metrics


@torch.no_grad()
def validate_by_distance(
    fabric: Fabric, task: Any, loader: DataLoader, limit: int | None, micro: MicroBatches, epoch: int
) -> Row:
    """Average over the validation samples how far the student is from its teachers, without measured depth.

    Args:
        fabric: device, precision and processes.
        task: its ``distance(batch)`` returns that of each sample, [B].
        loader: yields every validation sample once, over all processes together.
        limit: batches, or None for all.
        micro: how many images of a batch go through the networks at a time.
        epoch: for progress bar and messages.

    Returns:
        ``val_distance`` and ``val_n_images``.

    Raises:
        TrainingError: a distance is not a number.
    """
    task.eval()
    sums = torch.zeros(2, device=fabric.device)
    with Batches(fabric, loader, steps_per_epoch(loader, limit), f"epoch {epoch} validation") as batches:
        for batch in batches:
            with fabric.autocast():
                distance = micro.answers(task.distance, batch).float()  # [B]
            sums += torch.stack([distance.sum(), torch.tensor(float(len(distance)), device=fabric.device)])
    total, number = (float(reduce(fabric, value, "sum")) for value in sums)
    if math.isnan(total):
        raise TrainingError(NOT_A_NUMBER.format(epoch))
    return {"val_distance": total / number, "val_n_images": int(number)}


@torch.no_grad()
def evaluate(
    fabric: Fabric,
    model: nn.Module,
    loader: DataLoader,
    limit: int | None = None,
    *,
    table: MetricTable | None = None,
    title: str = "evaluation",
    micro: MicroBatches | None = None,
) -> MetricTable:
    """Predict every sample of ``loader`` and return the table of its metrics, gathered from all processes.

    Args:
        fabric: device, precision and processes.
        model: takes what its ``inputs`` name; gives what the table's scoring expects, by default depth in metres.
        loader: yields every sample once, over all processes together.
        limit: batches, or None for all.
        table: how to score; by default depth in metres under both of BatVision's masks.
        title: of the progress bar.
        micro: how many images of a batch go through the model at a time; by default all, or as many as fit.
    """
    micro = micro or MicroBatches(fabric)
    was_training = model.training
    model.eval()
    table = MetricTable() if table is None else table
    with Batches(fabric, loader, steps_per_epoch(loader, limit), title) as batches:
        for batch in batches:
            prediction = micro.answers(partial(predict, fabric, model), batch)  # [B, 1, H, W]
            table.add(batch["index"], prediction, batch["depth"])
    model.train(was_training)
    return table.gather()


def predict(fabric: Fabric, model: nn.Module, batch: Batch) -> Tensor:
    """Return what ``model`` gives for a batch: depth in metres, or disparity, [B, 1, H, W] float32.

    It has the ground truth's size, if there is one, brought there bilinearly.
    """
    with torch.no_grad(), fabric.autocast():
        depth = model(*model_inputs(model, batch)).float()  # [B, 1, h, w]
    size = batch["depth"].shape[-2:] if "depth" in batch else depth.shape[-2:]
    if depth.shape[-2:] == size:
        return depth
    return nn.functional.interpolate(depth, size, mode="bilinear", align_corners=False)  # [B, 1, H, W]


def epoch_metrics(table: MetricTable, prefix: str) -> Row:
    """Return a table's means as flat columns: ``val_rmse``, ..., ``val_gt_0.5_rmse``, ..."""
    columns: Row = {}
    for key, value in table.means().items():
        nested = value if isinstance(value, dict) else {"": value}
        columns |= {"_".join(filter(None, (prefix, key, name))): number for name, number in nested.items()}
    return columns


class NotANumberGuard:
    """Stops a run whose loss is not a number before that reaches the weights, without waiting for the device.

    A flag on the device gates the update: fused optimisers skip the step where ``found_inf`` is set. It is read back
    every few steps only; of an optimiser that knows no such flag, before each update. With ``--precision 16`` the
    gradient scaler gates the update by the same means, and gradients that overflow are its daily work: there the loss
    alone is looked at, each process at its own.
    """

    def __init__(self, fabric: Fabric, optimizer: Optimizer) -> None:
        self._inner: Any = getattr(optimizer, "optimizer", optimizer)
        self._scaled = getattr(fabric._precision, "scaler", None) is not None
        self._gated = getattr(self._inner, "_step_supports_amp_scaling", False)  # PyTorch's mark of ``found_inf``
        self._fabric, self._shared = fabric, fabric.world_size > 1
        self._tripped = torch.zeros((), device=fabric.device)
        self._here = torch.zeros((), dtype=torch.bool, device=fabric.device)  # whether a loss of this process did
        self._first = torch.full((), math.inf, device=fabric.device)  # the step that tripped it
        self._recent: deque[tuple[int, list[str]]] = deque(maxlen=READ_EVERY)

    def watch(self, step: int, loss: Tensor, ids: Any) -> None:
        """Look at a loss and its gradients, between backward and the optimiser's step."""
        bad = ~torch.isfinite(loss.detach())
        self._here = torch.where(self._tripped > 0, self._here, bad)
        if not self._scaled:
            groups = self._inner.param_groups
            gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
            bad = bad | ~torch.isfinite(torch.nn.utils.get_total_norm(gradients))
        self._first = torch.minimum(self._first, torch.where(bad, float(step), math.inf))
        self._tripped = torch.maximum(self._tripped, bad.float())
        if not self._scaled:
            self._inner.grad_scale = None
            self._inner.found_inf = self._tripped
        self._recent.append((step, list(ids)))
        if not self._gated:
            self.raise_if_tripped()

    def raise_if_tripped(self) -> None:
        """Raise :class:`errors.TrainingError` with the ids of the batch that was first not a number.

        All processes raise, or none: called by all of them after the same step.
        """
        if self._scaled and self._shared:
            self._tripped = reduce(self._fabric, self._tripped, "max")
            self._first = reduce(self._fabric, self._first, "min")
        if not self._tripped:
            return
        first = int(self._first)
        ids = next((ids for step, ids in self._recent if step == first), ["?"])
        batch, advice = f"the batch of {', '.join(ids)}", "Look at these samples, or lower"
        if self._shared and not self._here:  # the gradient is the mean over all processes
            batch, advice = f"{batch}, or in that of another process", "Unless another one names its samples, lower"
        raise TrainingError(
            f"the loss or its gradient is not a number at step {first + 1}, in {batch}; "
            f"the weights and checkpoints are those from before. {advice} --learning_rate"
        )


def steps_per_epoch(loader: DataLoader, limit: int | None) -> int:
    """Return the number of batches of an epoch under a limit."""
    return min(len(loader), limit) if limit else len(loader)


def share_statistics(fabric: Fabric, task: nn.Module) -> None:
    """Give all processes the first one's buffers, which a checkpoint holds: all score their samples with one network.

    Else each would use the running statistics of batch norm over its own share of the last batches.
    """
    if fabric.world_size > 1:
        for buffer in task.buffers():
            dist.broadcast(buffer, 0)


def reduce(fabric: Fabric, value: Tensor, by: str) -> Tensor:
    """Reduce a tensor, value by value, over the processes: by their sum, mean, max or min."""
    reduced = fabric.all_reduce(value, reduce_op=by)
    assert isinstance(reduced, Tensor)
    return reduced


class Batches:
    """The first ``steps`` batches of a loader, on the device, under a progress bar that is quiet where nobody looks.

    ``index`` alone stays on the CPU, for those who read or keep rows by it: they need not wait for the device.
    An error that a loader's worker met comes out as it was raised there.
    """

    def __init__(self, fabric: Fabric, loader: DataLoader, steps: int, title: str) -> None:
        self._fabric, self._loader, self._steps = fabric, loader, steps
        hidden = not fabric.is_global_zero or not sys.stderr.isatty()
        self._bar = tqdm(total=steps, desc=title, unit="batch", disable=hidden, leave=False, dynamic_ncols=True)

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __iter__(self) -> Iterator[Batch]:
        try:
            for _, batch in zip(range(self._steps), self._loader, strict=False):
                moved = self._fabric.to_device(batch)
                yield {**moved, "index": batch["index"]} if "index" in batch else moved
                self._bar.update()
        except UserError as error:
            raise from_worker(error) from None

    def show(self, **values: str) -> None:
        """Show values beside the bar."""
        self._bar.set_postfix(values, refresh=False)


def read_rows(fabric: Fabric, window: list[Row]) -> list[Row]:
    """Read the tensors of step rows back from the device, all at once: of several processes, the mean of theirs.

    A part is a process's share of what all have (``training.task.mean_over_images``). All processes call this together.
    """
    keys = [key for key, value in window[0].items() if isinstance(value, Tensor)]
    values = torch.stack([torch.stack([row[key].float() for key in keys]) for row in window])  # [steps, parts]
    read = reduce(fabric, values, "mean").tolist()
    return [{**row, **dict(zip(keys, cells, strict=True))} for row, cells in zip(window, read, strict=True)]
