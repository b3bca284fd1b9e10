"""A batch in parts that the device's memory holds: their gradients add up to those of the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from errors import TrainingError
from training.metrics import images_with, valid_pixels
from training.task import Batch, count_images


class MicroBatches:
    """Forward and backward, or forward alone, a part of the batch at a time.

    Each part's loss counts by its share of the images, so that losses which are means over images add up to the whole
    batch's; each part knows how often a mean over its labelled images counts (``training.task.label_weight``). What
    looks at a batch at once sees the parts instead: batch norm, and losses between the images of a batch.

    When the device runs out of memory the parts are halved and the batch begins again; they stay that size. Of several
    processes one alone may run out, while the others already wait for its gradients: there the run ends.

    Args:
        fabric: device, precision and processes.
        size: images of a part on one process; None takes the batch whole.
        warn: is told when the parts are halved.
    """

    def __init__(self, fabric: Fabric, size: int | None = None, warn: Callable[[str], None] = print) -> None:
        self._fabric = fabric
        self._warn = warn
        self.size = size

    def backward(self, task: nn.Module, batch: Batch, progress: float) -> dict[str, Any]:
        """Add the gradients of a batch to those of ``task``; return its scalar losses, detached, and their counts.

        Raises:
            TrainingError: a single image is more than the memory holds, or one of several processes ran out.
        """
        return self._fitting(lambda: self._pass(task, batch, progress), batch, task)

    def answers(self, ask: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
        """Return what ``ask`` says of a batch, [B, ...], asked of a part at a time, without gradients.

        Raises:
            TrainingError: as :meth:`backward` does.
        """

        def ask_all() -> Tensor:
            with torch.no_grad():
                return torch.cat([ask(part) for _, part in split_batch(batch, self.size or len(batch["id"]))])

        return self._fitting(ask_all, batch)

    def _fitting(self, work: Callable[[], Any], batch: Batch, task: nn.Module | None = None) -> Any:
        """Return what ``work`` does to a batch, begun again in halved parts as long as the memory does not hold it."""
        while True:
            try:
                return work()
            except torch.OutOfMemoryError:
                images = len(batch["id"])
                size = min(self.size or images, images)
                if size == 1 or self._fabric.world_size > 1:
                    raise TrainingError(
                        f"the device's memory does not hold {size} image(s) at a time: lower --micro_batch, "
                        "--image_size or the network's width, or use --precision bf16"
                    ) from None
            # Out of the handler: the error kept the failed pass and its tensors alive.
            self.size = (size + 1) // 2
            self._warn(f"out of memory with {size} images at a time; from now on {self.size}, as often as it takes")
            if task is not None:
                task.zero_grad(set_to_none=True)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _pass(self, task: nn.Module, batch: Batch, progress: float) -> dict[str, Any]:
        images = len(batch["id"])
        in_parts = self.size is not None and self.size < images
        labels = count_labels(batch) if in_parts and "depth" in batch else None
        sums: dict[str, Tensor] = {}
        weights: dict[str, Any] = {}
        counts: dict[str, Any] = {}
        for done, part in split_batch(batch, self.size or images):
            share = len(part["id"]) / images
            if labels is not None:
                part["label_weight"] = count_labels(part) / labels.clamp(min=1) / share
            syncs = done == images or self._fabric.world_size == 1
            with nullcontext() if syncs else self._fabric.no_backward_sync(task):  # type: ignore[arg-type]
                losses = task(part, progress)
                self._fabric.backward(losses["loss"] * share)
            counted = losses.pop("counts", {})
            for key, value in losses.items():
                if value.ndim == 0:
                    weight = counted.get(key, share)
                    sums[key] = sums.get(key, 0) + value.detach() * weight
                    weights[key] = weights.get(key, 0) + weight
                    if key in counted:
                        counts[key] = counts.get(key, 0) + weight
        means = {
            key: value / (weights[key].clamp(min=1) if key in counts else weights[key]) for key, value in sums.items()
        }
        return {**means, "counts": counts}


def count_labels(batch: Batch) -> Tensor:
    """Return how many images of all processes have a measured pixel: a float32 scalar."""
    return count_images(images_with(valid_pixels(batch["depth"])))


def split_batch(batch: Batch, size: int) -> Iterator[tuple[int, Batch]]:
    """Cut a batch into parts of ``size`` images, the last may be smaller; with each, how many images are done then."""
    images = len(batch["id"])
    for start in range(0, images, size):
        end = min(start + size, images)
        yield end, {key: value[start:end] for key, value in batch.items()}
