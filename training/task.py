"""What the loop knows of a training: a task that turns a batch into a dict of losses."""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import Parameter

from models.base import normalize_imagenet

Batch = dict[str, Any]  # tensors with B in front, and `id`, a list of names


class Task(nn.Module):
    """One way to train: the models that take part, and the loss between them.

    ``forward(batch, progress)`` returns ``{"loss": scalar, "depth": [B, 1, H, W], part: scalar, ...}``. ``progress`` in
    [0, 1] is the share of the training that is done; it drives curricula. Every part stands in the console, in the CSV
    and in W&B under its key.

    A part that is a mean over some of the batch's images alone, such as the labelled ones, is named in a further entry,
    ``"counts": {part: scalar}``, with how many these were in all processes (:func:`count_images`): its mean over an
    epoch is the one over these images. Every other part weighs each step the same. What of the loss is a mean over the
    labelled images counts :func:`label_weight` times, or else a batch in parts would have other gradients.

    Attributes:
        student: the network that is trained, saved and evaluated.
        needs: the sample keys that ``forward`` reads.
        uses_unlabelled: whether pairs without a depth label add to the loss; if not, an epoch leaves them out.
        restarts: shares of the training at which the schedule of the learning rate begins anew.
    """

    needs: ClassVar[frozenset[str]]
    uses_unlabelled: ClassVar[bool] = False
    restarts: tuple[float, ...] = ()

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def trainable(self) -> list[Parameter]:
        """Return the parameters that the optimiser gets."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def trainable_groups(self) -> dict[float, list[Parameter]]:
        """Return the trainable parameters by their factor on ``--learning_rate``."""
        return {1.0: self.trainable()}

    def watched(self) -> dict[str, nn.Module]:
        """Return the networks beside the student whose metrics stand in the CSV, by the name of their columns."""
        return {}

    def guests(self) -> dict[str, Guest]:
        """Return the networks that take part without training, by attribute."""
        return {name: module for name, module in self.named_children() if isinstance(module, Guest)}

    def extra_state(self) -> dict[str, Tensor]:
        """Return all that trains beside the student (adapters, a teacher that trains along), for exact resuming.

        Of a guest there is the fingerprint alone.
        """
        elsewhere = self._kept_elsewhere()
        return {key: value for key, value in self.state_dict().items() if not key.startswith(elsewhere)}

    def load_extra_state(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`extra_state` returned.

        Raises:
            RuntimeError: a key too many or too few, or a guest that is not the one of that time.
        """
        for name, guest in self.guests().items():
            before = state.get(f"{name}.fingerprint")
            if before is None or not torch.equal(before.cpu(), guest.fingerprint.cpu()):
                raise RuntimeError(f"the {name} is not the one that the run began with")
        elsewhere = self._kept_elsewhere()
        kept = {key: value for key, value in self.state_dict().items() if key.startswith(elsewhere)}
        self.load_state_dict({**kept, **state})

    def _kept_elsewhere(self) -> tuple[str, ...]:
        """Key prefixes: the student has its own place in a checkpoint, a guest a file of its own."""
        return ("student.", *(f"{name}.model." for name in self.guests()))


class Guest(nn.Module):
    """A network that takes part but does not train: eval mode always, no gradient, nothing for the optimiser.

    It is rebuilt from its own file; a checkpoint of the task keeps its fingerprint, so that a run does not go on with
    another one.

    It is given the student's view. Where a network that takes pictures alone does not take that size (Depth Anything
    and multiples of 14), it is shown them at the nearest that it takes, and its map comes back at the student's size;
    its features stay as they are.

    Args:
        model: a depth model with its weights; its parameters stop to require gradients.

    Attributes:
        model: the network.
        fingerprint: uint8 [32], SHA-256 over the names and the bytes of its weights and statistics.
    """

    fingerprint: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model.requires_grad_(False)
        digest = hashlib.sha256()
        for key, value in model.state_dict().items():
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        self.register_buffer("fingerprint", torch.tensor(list(digest.digest()), dtype=torch.uint8))
        self.train(False)

    def train(self, mode: bool = True) -> Guest:
        """Stay in eval mode, whatever is asked for."""
        return super().train(False)

    @torch.no_grad()  # not inference_mode: its tensors cannot be saved for the student's backward
    def forward(self, batch: Batch, return_features: bool = False) -> Any:
        """Return the model's map [B, 1, H, W] for a batch of that size, and its features where these are asked for."""
        answer = self.model(*model_inputs(self.model, self.view(batch)), return_features=return_features)
        depth, *features = answer if return_features else [answer]
        size = batch[self.model.inputs[0]].shape[-2:]
        if depth.shape[-2:] != size:
            depth = F.interpolate(depth.float(), size, mode="bilinear", align_corners=False)
        return (depth, *features) if return_features else depth

    def view(self, batch: Batch) -> Batch:
        """Return the batch as the model is shown it: with its pictures at a size that it takes."""
        if self.model.inputs != ("rgb",):
            return batch
        rgb = batch["rgb"]
        size = tuple(nearest_size(self.model, side) for side in rgb.shape[-2:])
        if size == rgb.shape[-2:]:
            return batch
        resized = F.interpolate(rgb, size, mode="bicubic", align_corners=False, antialias=True)
        return {**batch, "rgb": resized.clamp(0, 1)}  # bicubic weights go beyond what they weigh


def nearest_size(model: Any, side: int) -> int:
    """Return the side closest to ``side`` [pixels] that fits a model's ``size_multiple``; of two, the larger."""
    multiple = model.size_multiple
    return max(2 * multiple, (2 * side + multiple) // (2 * multiple) * multiple)


def model_inputs(model: Any, batch: Batch) -> tuple[Tensor, ...]:
    """Return what ``model`` takes from a batch, in the order of its ``inputs``, normalised as it says."""
    return tuple(normalize_imagenet(batch[key]) if key == "rgb" and model.imagenet_normalize else batch[key]
                 for key in model.inputs)  # fmt: skip


def in_scene(metres: Tensor, batch: Batch) -> Tensor:
    """Return what a picture's viewer says in metres, [B, C, H, W], in those of the scenes as they were scaled.

    A scaled scene has a ``scale`` [B] in the batch: its echoes and its depth were scaled, its picture is the same.
    """
    if "scale" not in batch:
        return metres
    return metres.float() * batch["scale"][:, None, None, None]


def label_weight(batch: Batch) -> Tensor | float:
    """Return how often a mean over the labelled images of this part of a batch counts: 1, where the batch is whole.

    A part counts by its share of the images (``training.micro_batches``), such a mean by its share of the labels.
    """
    return batch.get("label_weight", 1.0)


def count_images(counts: Tensor) -> Tensor:
    """Return how many images of all processes count, of bool [B] in each: a float32 scalar."""
    number = counts.sum().float()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(number)
    return number


def mean_over_images(values: Tensor, counts: Tensor | None = None) -> Tensor:
    """Average per-image losses [B] over the images that count, of all processes: a scalar.

    Pooling over a batch's pixels, or averaging per process, would weigh an image by its neighbours. DDP averages the
    gradients of the processes, so each contributes its sum times the number of processes over the count of all.

    Args:
        values: [B]; finite also where an image does not count.
        counts: bool [B], the images that count (those with a depth label); None takes all.
    """
    counts = torch.ones_like(values, dtype=torch.bool) if counts is None else counts
    number = count_images(counts).to(values.dtype)
    processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    return torch.where(counts, values, 0.0).sum() * processes / number.clamp(min=1)
