"""A network that is asked about a scene and about its mirror image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dataloaders.transforms import swap_ears

# What becomes of each input where left is right. A waveform is [B, 2, N], all others are [B, C, H, W].
MIRRORS = {"audio": swap_ears, "rgb": lambda picture: picture.flip(-1), "waveform": lambda sound: sound.flip(1)}


class Mirrored(nn.Module):
    """The mean of a network's two answers, to a scene and, mirrored back, to the scene in which left is right.

    What it says of a mirrored scene is the mirror image of what it says of the scene, which training with ``--augment``
    brings about only nearly. AdaBins is evaluated so (Bhat et al., CVPR 2021). It takes twice the time.

    Args:
        model: maps its ``inputs`` to [B, 1, H, W]; as ``training.loop`` knows it otherwise.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.inputs, self.imagenet_normalize = model.inputs, model.imagenet_normalize
        self.train(model.training)  # the mode that an evaluation comes back to

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map what ``inputs`` names, in this order, to depth in metres, or disparity, [B, 1, H, W]."""
        mirrored = (MIRRORS[key](x) for key, x in zip(self.inputs, inputs, strict=True))
        answers = self.model(*inputs), self.model(*mirrored).flip(-1)
        return torch.stack(answers).float().mean(dim=0)
