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

    def descend(self, x: Tensor, index: int) -> Tensor:
        """Return level ``index`` (from 0) of the one before it, or of the input."""
        return self.levels[index](F.max_pool2d(x, 2) if index else x)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the five levels, the largest first."""
        features: list[Tensor] = []
        for index in range(len(self.levels)):
            x = self.descend(x, index)
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


def name_levels(encoded: list[Tensor], decoded: list[Tensor]) -> dict[str, Tensor]:
    """Name the levels of an encoder ``x1``..``x5`` and those of a decoder ``d1``..``d4``, in this order."""
    levels = {f"x{i}": level for i, level in enumerate(encoded, start=1)}
    return levels | {f"d{i}": level for i, level in enumerate(decoded, start=1)}


class Fuse(nn.Sequential):
    """1x1 convolution, batch norm and ReLU over several maps side by side: [B, in, H, W] -> [B, out, H, W]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class SpectrogramInput(nn.Module):
    """Bring spectrograms into a range in which a network learns: [B, C, H, W], any scale -> [B, C, H, W] of order 1.

    Magnitudes go from 1e-3 where nothing sounds to 7, and most lie below 0.05: as they are, a convolution sees little
    but the direct chirp. Their logarithm opens up the echoes. The mean and deviation of the training set follow, in
    float32; both ears share them, for the difference between the ears says where a thing is.

    Args:
        compress: take log(1 + x / 0.001) first; for spectrograms that are compressed already, do not.
    """

    FLOOR = 1e-3  # the magnitude where nothing sounds in a recording of BatVision

    def __init__(self, compress: bool) -> None:
        super().__init__()
        self.compress = compress
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the spectrograms, normalised."""
        x = x.float()
        if self.compress:
            x = torch.log1p(x.clamp(min=0) / self.FLOOR)
        batch, channels, height, width = x.shape
        return self.norm(x.reshape(batch * channels, 1, height, width)).reshape(x.shape)


def heads_of(channels: int) -> int:
    """Return a number of attention heads for ``channels`` (even): heads of 32 where this is possible, always even."""
    return math.gcd(channels // 2, max(channels // 32, 1))


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Multi-head attention of tokens to tokens: [N, T, C], [N, S, C], [N, S, C] -> [N, T, C]."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))  # [N, heads, T, C / heads]
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # [N, T, C]


class TransformerBlock(nn.Module):
    """Self-attention and a two-layer perceptron, each with a residual, normalised before: [B, T, C] -> [B, T, C].

    Vaswani et al., NeurIPS 2017, with the norms where Dosovitskiy et al., ICLR 2021, have them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = heads_of(channels)
        self.attention_norm = nn.LayerNorm(channels)
        self.query_key_value = nn.Linear(channels, 3 * channels, bias=False)
        self.project = nn.Linear(channels, channels)
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens, each informed by all."""
        query, key, value = self.query_key_value(self.attention_norm(x)).chunk(3, dim=-1)
        x = x + self.project(attend(query, key, value, self.heads))
        return x + self.mlp(x)


class GlobalMixer(nn.Module):
    """Let every position look at the whole map: [B, C, H, W] -> [B, C, H, W].

    A spectrogram's axes are frequency and time, a depth map's are y and x: what a pixel needs may lie anywhere. The
    positions are learned on a grid of 16x16, the last level of a 256x256 input, and interpolated to other sizes. The
    tokens' number is that of a last level (256 at 256x256), so attention over all of them is cheap.

    Args:
        channels: C.
        depth: the number of transformer blocks.
    """

    GRID = 16

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.position = nn.Parameter(0.02 * torch.randn(1, channels, self.GRID, self.GRID))
        self.blocks = nn.Sequential(*(TransformerBlock(channels) for _ in range(depth)))
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map, mixed."""
        position = F.interpolate(self.position, x.shape[-2:], mode="bilinear", align_corners=False)
        tokens = (x + position).flatten(2).transpose(1, 2)  # [B, H W, C]
        tokens = self.norm(self.blocks(tokens))
        return tokens.transpose(1, 2).reshape(x.shape)  # [B, C, H, W]


def to_metres(logit: Tensor, max_depth: float) -> Tensor:
    """Map a float32 logit of any shape to a depth in metres, in (0, max_depth)."""
    return max_depth * torch.sigmoid(logit)


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

    def logit(self, x: Tensor) -> Tensor:
        """Return the depth before the sigmoid, float32."""
        with torch.autocast(x.device.type, enabled=False):
            return self.project(x.float())  # [B, 1, H, W]

    def forward(self, x: Tensor) -> Tensor:
        """Return depth in metres, float32."""
        return to_metres(self.logit(x), self.max_depth)  # [B, 1, H, W]
