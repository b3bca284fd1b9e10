"""What every depth network of this house states about itself."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from errors import OptionError
from models.blocks import EARS

# ImageNet's channel statistics, for networks that want them taken out.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class DepthModel(nn.Module):
    """A network from what it takes to a dense map: ``forward(x, return_features=False) -> depth [B, 1, H, W]``.

    With ``return_features=True`` it returns ``(depth, features)``; the features are a dict of tensors, keyed by level.
    Scripts and checkpoints ask a model nothing but the following.

    Attributes:
        name: the key under which :func:`models.create_model` knows it.
        inputs: the sample keys that it takes, in the order of ``forward``'s arguments: ``rgb``, ``audio`` or both.
        output: ``metres``, or ``disparity`` where large means near and neither scale nor shift is known.
        size_multiple: the side of its input must be a multiple of it, and at least twice as long.
        imagenet_normalize: whether ``rgb`` in [0, 1] must be normalised with ImageNet's mean and deviation first.
        config: the arguments that build it again, plain values only.
    """

    name: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]]
    output: ClassVar[str] = "metres"
    size_multiple: ClassVar[int] = 1
    imagenet_normalize: ClassVar[bool] = False

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = config

    def check_image_size(self, image_size: int) -> None:
        """Raise :class:`errors.OptionError` that names the nearest sizes, if ``image_size`` [pixels] does not fit."""
        multiple, smallest = self.size_multiple, 2 * self.size_multiple
        if image_size >= smallest and image_size % multiple == 0:
            return
        below = max(smallest, image_size // multiple * multiple)
        above = max(smallest, -(-image_size // multiple) * multiple)
        nearest = f"{below}" if below == above else f"{below} or {above}"
        raise OptionError(
            f"--image_size {image_size}: {self.name} takes multiples of {multiple} from {smallest} on; use {nearest}"
        )

    def input_channels(self, key: str) -> int:
        """Return the channels of one of its ``inputs``: a spectrogram of each ear, unless it was built for more."""
        return 3 if key == "rgb" else self.config.get("audio_channels", EARS)

    def feature_shapes(self, image_size: int | None = None) -> dict[str, tuple[int, int, int]]:
        """Return (channels, height, width) of each level, for an input of ``image_size`` pixels (None: the smallest).

        Runs the network once, in eval mode and without gradients; its weights and statistics stay as they are.
        """
        side = 2 * self.size_multiple if image_size is None else image_size
        device = next(self.parameters()).device
        inputs = (torch.zeros(1, self.input_channels(key), side, side, device=device) for key in self.inputs)
        was_training = self.training
        self.eval()
        with torch.no_grad():
            _, features = self(*inputs, return_features=True)
        self.train(was_training)
        return {level: (value.shape[1], value.shape[2], value.shape[3]) for level, value in features.items()}

    def count_parameters(self, *, trainable: bool = True) -> int:
        """Return the number of parameters, of those that train or of all."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad or not trainable)


Features = dict[str, Tensor]


def normalize_imagenet(rgb: Tensor) -> Tensor:
    """Shift and scale RGB [B, 3, H, W] in [0, 1] to ImageNet's zero mean and unit deviation."""
    # Filled on the device: a tensor of Python's numbers would be copied there, and the step would wait for it.
    mean, std = (
        torch.stack([rgb.new_full((1, 1), value) for value in values]) for values in (IMAGENET_MEAN, IMAGENET_STD)
    )  # [3, 1, 1]
    return (rgb - mean) / std
