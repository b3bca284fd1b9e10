"""The blocks from which the U-Nets of this house are built."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EARS = 2
Weights = Callable[[int, int], Tensor]  # of an old and a new number of cells
LEVEL_WIDTHS = (1, 2, 4, 8, 8)  # channels of x1..x5, in units of base_channels


class _Joined(torch.autograd.Function):
    """``torch.cat`` along the channels whose gradients are dense, each in the layout of the whole.

    Those of ``torch.cat`` are slices. The backward pass of bilinear resizing takes five times as long over a slice as
    over a dense map of its size.
    """

    @staticmethod
    def forward(ctx: Any, *maps: Tensor) -> Tensor:
        ctx.channels = [x.shape[1] for x in maps]
        return torch.cat(maps, dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        (gradient,) = gradients
        dense = gradient.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if dense else torch.contiguous_format
        return tuple(part.contiguous(memory_format=layout) for part in gradient.split(ctx.channels, dim=1))


def join(*maps: Tensor) -> Tensor:
    """Join maps [B, C_i, H, W] along their channels: [B, sum C_i, H, W]."""
    if torch.compiler.is_compiling():  # compilers and exporters lay out gradients themselves
        return torch.cat(maps, dim=1)
    return _Joined.apply(*maps)


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
        return self.fuse(join(skip, self.upsample(x)))


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
    """Bring what is heard into a range in which a network learns: [B, C, H, W], any scale -> [B, C, H, W] of order 1.

    Most magnitudes of an echo lie below 0.05 and its peaks at 3 to 7: as they are, a convolution sees little but the
    direct chirp. Their logarithm opens up the echoes, but for what lies under the noise, which stays as small as it is.
    The mean and deviation of the training set follow, in float32; both ears share them, for the difference between the
    ears says where a thing is. Maps that follow the two spectrograms (``dataloaders.interaural``) have their own.

    Args:
        compress: take log(1 + x / 0.03) of the spectrograms first; if they are compressed already, do not.
        channels: C, 2 or more.
    """

    FLOOR = 0.03  # three times the median magnitude of a recording of BatVision

    def __init__(self, compress: bool, channels: int = EARS) -> None:
        super().__init__()
        self.compress = compress
        self.norm = nn.BatchNorm2d(1)
        self.map_norm = nn.BatchNorm2d(channels - EARS) if channels > EARS else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the spectrograms, and the maps, normalised."""
        x = x.float()
        ears = x[:, :EARS]
        if self.compress:
            ears = torch.log1p(ears.clamp(min=0) / self.FLOOR)
        ears = self.norm(ears.flatten(0, 1)[:, None]).reshape(ears.shape)  # [B, 2, H, W]
        return ears if self.map_norm is None else join(ears, self.map_norm(x[:, EARS:]))


def heads_of(channels: int) -> int:
    """Return a number of attention heads for ``channels`` (even): heads of 32 where this is possible, always even."""
    return math.gcd(channels // 2, max(channels // 32, 1))


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Multi-head attention of tokens to tokens: [N, T, C], [N, S, C], [N, S, C] -> [N, T, C].

    On a CPU in float32: there the backward pass of rows of 16 to 64 tokens takes five times as long in bfloat16.
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))  # [N, heads, T, C / heads]
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # [N, T, C]
    with torch.autocast("cpu", enabled=False):
        found = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    return found.transpose(1, 2).flatten(2).to(query.dtype)  # [N, T, C]


class PlaceMixer(nn.Module):
    """Let every position hear of all others, each from its own place: [B, C, H, W] -> [B, C, H, W].

    A spectrogram's axes are frequency and time, a depth map's are y and x: what a pixel needs may lie anywhere, but
    always in the same places. So the map between places is learned as such. On a grid of 16x16 cells, a perceptron from
    cells to cells that all channels share, then one from channels to channels at each position, each with a residual:
    MLP-Mixer (Tolstikhin et al., NeurIPS 2021). Larger maps are averaged over the cells, smaller ones repeated; the
    grid is the same at any size, and so are the weights.

    Args:
        channels: C.
    """

    GRID = 16
    HIDDEN = 256

    def __init__(self, channels: int) -> None:
        super().__init__()
        cells = self.GRID**2
        self.norm = nn.BatchNorm2d(channels)
        self.places = nn.Sequential(nn.Linear(cells, self.HIDDEN), nn.GELU(), nn.Linear(self.HIDDEN, cells))
        self.channels = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 1), nn.GELU(), nn.Conv2d(2 * channels, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the map, mixed."""
        grid = resize_cells(self.norm(x), self.GRID, self.GRID)  # [B, C, 16, 16]
        mixed = self.places(grid.flatten(2)).unflatten(2, (self.GRID, self.GRID))
        x = x + resize_cells(mixed, x.shape[-2], x.shape[-1])  # [B, C, H, W]
        return x + self.channels(x)


def resize_cells(x: Tensor, height: int, width: int) -> Tensor:
    """Average [B, C, h, w] over the cells of a smaller grid, or interpolate to a larger one: [B, C, height, width]."""
    return resize_by(cell_weights, x, height, width)


def resize_by(weights: Weights, x: Tensor, height: int, width: int) -> Tensor:
    """Resize [..., h, w] to [..., height, width] by products with two matrices, of ``weights`` [old, new] each.

    These repeat bit for bit also on a GPU, where the gradients of pooling and of bicubic interpolation do not.
    """
    if (height, width) == x.shape[-2:]:
        return x
    # Kept on the device, unless somebody traces the network: what is a tensor to a tracer is none to others.
    matrix = _kept_matrix if type(x) is Tensor and not torch.compiler.is_compiling() else _matrix_on
    sides = ((x.shape[-2], height), (x.shape[-1], width))
    along_y, along_x = (matrix(weights, old, new, x.device, x.dtype) for old, new in sides)
    return along_y.T @ x @ along_x


def _matrix_on(weights: Weights, old: int, new: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return weights(old, new).to(device, dtype)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # the first who asks may only predict, the next one trains
def _kept_matrix(weights: Weights, old: int, new: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return _matrix_on(weights, old, new, device, dtype)


def cell_weights(old: int, new: int) -> Tensor:
    """Return [old, new] weights that average neighbours to fewer cells, or interpolate linearly to more."""
    each = torch.eye(old)[None]  # the answer to each cell alone
    return (F.adaptive_avg_pool1d(each, new) if new < old else F.interpolate(each, new, mode="linear"))[0]


def to_metres(logit: Tensor, max_depth: Tensor) -> Tensor:
    """Map a float32 logit of any shape to a depth in metres, in (0, max_depth)."""
    return max_depth * torch.sigmoid(logit)


class MetricDepthHead(nn.Module):
    """1x1 convolution and sigmoid, scaled to metres: [B, in, H, W] -> [B, 1, H, W] in (0, max_depth).

    Far below ``max_depth`` the sigmoid is an exponential, so that a step of the logit is a share of the depth, and the
    same weights learn at 12 m and at 30 m. It starts at ``START_DEPTH``, not at the middle of the range. It runs in
    float32: in bfloat16 neighbouring depths would be 0.4 % apart. ``max_depth`` is kept with the weights, which in a
    model built for another range would otherwise give other metres without a word.
    """

    START_DEPTH = 3.0  # metres, the order of an indoor view
    max_depth: Tensor

    def __init__(self, in_channels: int, max_depth: float) -> None:
        super().__init__()
        self.register_buffer("max_depth", torch.tensor(float(max_depth)))
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
