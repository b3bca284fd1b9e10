"""Depth metrics: masked, per image, then the mean over the images.

The rows of all images are kept until the end, so that the means do not depend on the batch size or on the number of
processes. A prediction that is not a number stays not a number: it never becomes 0, and never wins.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

METRICS = ("rmse", "abs_rel", "log10", "mae", "delta1", "delta2", "delta3")
LOWER_IS_BETTER = ("rmse", "abs_rel", "log10", "mae")

Range = tuple[float, float]  # metres: from the first on, below the second

# The two masks in use on BatVision: the official code takes all measured pixels, HTF-EchoDepth those from 0.5 m on.
# Figures under one are not comparable with figures under the other.
PROTOCOLS: dict[str, Range] = {"gt_0": (0.0, math.inf), "gt_0.5": (0.5, math.inf)}

_EDGES = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 20.0, math.inf)
DEPTH_BINS: dict[str, Range] = {f"{a:g}-{b:g} m": (a, b) for a, b in itertools.pairwise(_EDGES)}


def valid_pixels(target: Tensor, between: Range = PROTOCOLS["gt_0"]) -> Tensor:
    """Return the pixels [B, 1, H, W] (bool) that count: measured (> 0), and ``between`` two depths in metres."""
    return (target > 0) & (target >= between[0]) & (target < between[1])


def image_metrics(prediction: Tensor, target: Tensor, valid: Tensor, min_depth: float = 1e-3) -> Tensor:
    """Return one row of :data:`METRICS` per image, [B, 7] float64.

    Args:
        prediction: depth [B, 1, H, W] in metres; raised to ``min_depth``, so that its logarithm is finite.
        target: depth [B, 1, H, W] in metres.
        valid: bool [B, 1, H, W], the pixels that count. An image without any has a row of NaN.
        min_depth: metres.

    With p and t the prediction and the target over an image's N valid pixels: rmse sqrt(mean (p - t)^2), abs_rel
    mean |p - t| / t, log10 mean |log10 p - log10 t|, mae mean |p - t|, delta_k the share of max(p/t, t/p) < 1.25^k
    (Eigen et al., NeurIPS 2014; the set of the BatVision baseline).
    """
    count = valid.sum(dim=(1, 2, 3)).double()  # [B]
    t = torch.where(valid, target, 1.0).double()
    p = torch.where(valid, prediction, 1.0).double().clamp(min=min_depth)  # 1 = 1: no error where nothing counts

    def mean(x: Tensor) -> Tensor:
        return torch.where(valid, x, 0.0).sum(dim=(1, 2, 3)) / count  # [B]; 0 / 0 is NaN

    error = p - t
    ratio = torch.maximum(p / t, t / p)
    not_a_number = 0 * ratio  # a comparison would turn NaN into False, that is into a score of 0
    deltas = [mean((ratio < 1.25**k) + not_a_number) for k in (1, 2, 3)]
    log10 = (p.log10() - t.log10()).abs()
    columns = [mean(error**2).sqrt(), mean(error.abs() / t), mean(log10), mean(error.abs()), *deltas]
    return torch.stack(columns, dim=1)  # [B, 7]


def mean_metrics(rows: Tensor) -> dict[str, float]:
    """Average rows [N, 7] of images that have valid pixels; an empty table gives NaN. ``n_images`` is N."""
    means = rows.mean(dim=0).tolist() if len(rows) else [math.nan] * len(METRICS)
    return {**dict(zip(METRICS, means, strict=True)), "n_images": len(rows)}


class MetricTable:
    """The metrics of every image of a split, under each of several masks, in the order of the split.

    ``add`` keeps its tensors on their device: nothing is read back before the end. ``gather`` then brings the rows of
    all processes together; the means come after it.

    Args:
        bins: further ranges of measured depth by name, as :data:`DEPTH_BINS`, beside those of :data:`PROTOCOLS`.
        min_depth: metres; predictions are raised to it.
    """

    def __init__(self, bins: Mapping[str, Range] | None = None, min_depth: float = 1e-3) -> None:
        self.masks = {**PROTOCOLS, **(bins or {})}
        self.min_depth = min_depth
        self._batches: list[tuple[Tensor, Tensor]] = []
        self._indices = torch.zeros(0, dtype=torch.long)
        self._rows = torch.zeros(0, len(self.masks), 1 + len(METRICS), dtype=torch.float64)

    def add(self, indices: Tensor, prediction: Tensor, target: Tensor) -> None:
        """Take a batch: indices [B] in the split, prediction and target [B, 1, H, W] in metres."""
        blocks = []
        for between in self.masks.values():
            valid = valid_pixels(target, between)
            rows = image_metrics(prediction, target, valid, self.min_depth)  # [B, 7]
            blocks.append(torch.cat([valid.flatten(1).any(dim=1, keepdim=True), rows], dim=1))  # [B, 1 + 7]
        self._batches.append((indices, torch.stack(blocks, dim=1)))  # [B], [B, masks, 1 + 7]

    def gather(self) -> MetricTable:
        """Bring together what all processes have seen, in the order of the split, on the CPU; return itself."""
        seen = [(indices.cpu(), rows.cpu()) for indices, rows in self._batches]
        if dist.is_available() and dist.is_initialized():
            parts: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(parts, seen)
            seen = [batch for part in parts for batch in part]
        self._batches = []
        if seen:
            indices = torch.cat([indices for indices, _ in seen])
            order = indices.argsort()  # one order of summation, whatever the batches and processes
            self._indices, self._rows = indices[order], torch.cat([rows for _, rows in seen])[order]
        return self

    def mean(self, mask: str = "gt_0", among: Sequence[int] | None = None) -> dict[str, float]:
        """Average the metrics under one mask over the images, or over those of the split indices in ``among``.

        Images without a pixel that counts are left out; ``n_images`` says how many were in.
        """
        block = self._rows[:, list(self.masks).index(mask)]  # [N, 1 + 7]
        counts = block[:, 0] > 0
        if among is not None:
            counts &= torch.isin(self._indices, torch.as_tensor(among))
        return mean_metrics(block[counts, 1:])

    def means(self) -> dict[str, Any]:
        """Return the means under the first protocol, with those under each other one as a dict under its name."""
        first, *others = PROTOCOLS
        return {**self.mean(first), **{mask: self.mean(mask) for mask in others}}

    def per_image(self, metric: str = "rmse") -> dict[int, float]:
        """Return ``{split index: value}`` under the first protocol for the images that have pixels that count."""
        block = self._rows[:, 0]
        counts = block[:, 0] > 0
        values = block[counts, 1 + METRICS.index(metric)]
        return dict(zip(self._indices[counts].tolist(), values.tolist(), strict=True))
