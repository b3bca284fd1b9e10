"""The blocks from which the U-Nets of this house are built."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVEL_WIDTHS = (1, 2, 4, 8, 8)  # channels of x1..x5, in units of base_channels


class DoubleConv(nn.Sequential):
    """Twice 3x3 convolution, batch norm and ReLU: [B, in, H, W] -> [B, out, H, W]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class Encoder(nn.Module):
    """Five levels, each but the first at half the size of the one before.

    [B, in, H, W] -> x1 [B, b, H, W], x2 [B, 2b, H/2, W/2], x3 [B, 4b, H/4, W/4], x4 [B, 8b, H/8, W/8] and
    x5 [B, 8b, H/16, W/16], with b the base channels.
    """

    def __init__(self, in_channels: int, base_channels: int) -> None:
        super().__init__()
        widths = [in_channels, *(base_channels * width for width in LEVEL_WIDTHS)]
        self.levels = nn.ModuleList(DoubleConv(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the five levels, the largest first."""
        features: list[Tensor] = []
        for level in self.levels:
            x = level(F.max_pool2d(x, 2) if features else x)
            features.append(x)
        return features


class UpBlock(nn.Module):
    """Double the size, join the encoder's level of that size, and convolve.

    [B, in, H/2, W/2], skip [B, skip, H, W] -> [B, out, H, W].
    """

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, bilinear: bool) -> None:
        super().__init__()
        self.upsample: nn.Module = (
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
            if bilinear
            else nn.ConvTranspose2d(in_channels, in_channels, 2, stride=2)
        )
        self.fuse = DoubleConv(in_channels + skip_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return the joined level at the size of ``skip``."""
        return self.fuse(torch.cat([skip, self.upsample(x)], dim=1))


class Decoder(nn.Module):
    """The way back up: x5..x1 -> d1 [B, 8b, H/8, W/8], d2 [B, 4b, H/4, W/4], d3 [B, 2b, H/2, W/2], d4 [B, b, H, W]."""

    def __init__(self, base_channels: int, bilinear: bool) -> None:
        super().__init__()
        widths = [base_channels * width for width in reversed(LEVEL_WIDTHS)]
        self.levels = nn.ModuleList(UpBlock(a, b, b, bilinear) for a, b in itertools.pairwise(widths))

    def forward(self, encoded: list[Tensor]) -> list[Tensor]:
        """Return the four levels, the smallest first."""
        *skips, x = encoded
        features = []
        for level, skip in zip(self.levels, reversed(skips), strict=True):
            x = level(x, skip)
            features.append(x)
        return features


class MetricDepthHead(nn.Module):
    """1x1 convolution and sigmoid, scaled to metres: [B, in, H, W] -> [B, 1, H, W] in (0, max_depth).

    Far below ``max_depth`` the sigmoid is an exponential, so that a step of the logit is a share of the depth, and the
    same weights learn at 12 m and at 30 m. It starts at ``START_DEPTH``, not at the middle of the range. It runs in
    float32: in bfloat16 neighbouring depths would be 0.4 % apart.
    """

    START_DEPTH = 3.0  # metres, the order of an indoor view

    def __init__(self, in_channels: int, max_depth: float) -> None:
        super().__init__()
        self.max_depth = max_depth
        self.project = nn.Conv2d(in_channels, 1, 1)
        share = min(self.START_DEPTH / max_depth, 0.5)
        nn.init.constant_(self.project.bias, math.log(share / (1 - share)))  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return depth in metres, float32."""
        with torch.autocast(x.device.type, enabled=False):
            return self.max_depth * torch.sigmoid(self.project(x.float()))  # [B, 1, H, W]
