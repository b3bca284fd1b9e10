"""Depth metrics: masked, per image, then the mean over the images.

The rows of all images are kept until the end, so that the means do not depend on the batch size or on the number of
processes. A prediction that is not a number stays not a number: it never becomes 0, and never wins.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from training.alignment import PROTOCOLS

METRICS = ("rmse", "abs_rel", "log10", "mae", "delta1", "delta2", "delta3")  # the set of the BatVision baseline
NYU_METRICS = ("abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog", "delta1", "delta2", "delta3")

Range = tuple[float, float]  # metres: from the first on, below the second

# The two masks in use on BatVision: the official code takes all measured pixels, HTF-EchoDepth those from 0.5 m on.
# Figures under one are not comparable with figures under the other.
MASKS: dict[str, Range] = {"gt_0": (0.0, math.inf), "gt_0.5": (0.5, math.inf)}
NYU_RANGE: Range = (1e-3, 10.0)

# Rows and columns of a 480x640 frame of NYU Depth V2 onto which every Kinect depth map could be projected.
EIGEN_CROP = ((45, 471), (41, 601))
EIGEN_FRAME = (480, 640)

_EDGES = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 20.0, math.inf)
DEPTH_BINS: dict[str, Range] = {f"{a:g}-{b:g} m": (a, b) for a, b in itertools.pairwise(_EDGES)}


def valid_pixels(target: Tensor, between: Range = MASKS["gt_0"]) -> Tensor:
    """Return the pixels [B, 1, H, W] (bool) that count: measured (> 0), and ``between`` two depths in metres."""
    return (target > 0) & (target >= between[0]) & (target < between[1])


def images_with(valid: Tensor) -> Tensor:
    """Return which images have a pixel that counts, of bool [B, 1, H, W]: bool [B]."""
    return valid.flatten(1).any(dim=1)


def mean_depth(target: Tensor, valid: Tensor) -> Tensor:
    """Return the mean depth of each image over its pixels that count, [B] float64 in metres; 0 where none does.

    Args:
        target: depth [B, 1, H, W] in metres.
        valid: bool [B, 1, H, W].
    """
    total = torch.where(valid, target, 0.0).double().sum(dim=(1, 2, 3))  # [B]
    return total / valid.sum(dim=(1, 2, 3)).clamp(min=1)


def inside_eigen_crop(target: Tensor) -> Tensor:
    """Return the pixels [1, 1, H, W] (bool) of a map [B, 1, H, W] that lie in Eigen's crop.

    Rows 45:471, columns 41:601 of a 480x640 frame (Eigen et al., NeurIPS 2014); of other sizes, the same shares.
    """
    inside = torch.zeros(1, 1, *target.shape[-2:], dtype=torch.bool, device=target.device)
    (top, bottom), (left, right) = (
        [round(edge * side / of) for edge in edges]
        for edges, side, of in zip(EIGEN_CROP, target.shape[-2:], EIGEN_FRAME, strict=True)
    )
    inside[..., top:bottom, left:right] = True
    return inside


def image_metrics(
    prediction: Tensor, target: Tensor, valid: Tensor, min_depth: float = 1e-3, metrics: Sequence[str] = METRICS
) -> Tensor:
    """Return one row of ``metrics`` per image, [B, M] float64.

    Args:
        prediction: depth [B, 1, H, W] in metres; raised to ``min_depth``, so that its logarithm is finite.
        target: depth [B, 1, H, W] in metres.
        valid: bool [B, 1, H, W], the pixels that count. An image without any has a row of NaN.
        min_depth: metres.
        metrics: names out of :data:`METRICS` and :data:`NYU_METRICS`.

    With p and t the prediction and the target over an image's N valid pixels: rmse sqrt(mean (p - t)^2), abs_rel
    mean |p - t| / t, sq_rel mean (p - t)^2 / t, log10 mean |log10 p - log10 t|, rmse_log sqrt(mean e^2) with e = ln p -
    ln t, mae mean |p - t|, delta_k the share of max(p/t, t/p) < 1.25^k (Eigen et al., NeurIPS 2014), silog
    100 sqrt(mean e^2 - (mean e)^2) (KITTI's, its weight of the second term being 1).
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
    log_error = p.log() - t.log()
    centred = log_error - mean(log_error)[:, None, None, None]
    columns = {
        "rmse": mean(error**2).sqrt(),
        "abs_rel": mean(error.abs() / t),
        "sq_rel": mean(error**2 / t),
        "rmse_log": mean(log_error**2).sqrt(),
        "log10": mean((p.log10() - t.log10()).abs()),
        "silog": 100 * mean(centred**2).sqrt(),  # the variance; as a difference of two means it could be negative
        "mae": mean(error.abs()),
        "delta1": deltas[0],
        "delta2": deltas[1],
        "delta3": deltas[2],
    }
    return torch.stack([columns[name] for name in metrics], dim=1)  # [B, M]


def mean_metrics(rows: Tensor, metrics: Sequence[str] = METRICS) -> dict[str, float]:
    """Average rows [N, M] of images that have valid pixels; an empty table gives NaN. ``n_images`` is N."""
    means = rows.mean(dim=0).tolist() if len(rows) else [math.nan] * len(metrics)
    return {**dict(zip(metrics, means, strict=True)), "n_images": len(rows)}


@dataclass(frozen=True)
class Scoring:
    """How predictions are held against measured depth.

    Attributes:
        protocol: a key of ``training.alignment.PROTOCOLS``: what is fitted to each image first. It is fitted over the
            pixels of the first mask, once, also where others are scored beside it.
        output: what the network gives, ``metres`` or ``disparity``.
        masks: ranges of measured depth by name; the first is the main one.
        metrics: what is computed.
        clip: metres; predictions are brought between the two.
        eigen_crop: whether only the pixels of :func:`inside_eigen_crop` count.
    """

    protocol: str = "metric"
    output: str = "metres"
    masks: Mapping[str, Range] = field(default_factory=lambda: MASKS)
    metrics: tuple[str, ...] = METRICS
    clip: Range = (1e-3, math.inf)
    eigen_crop: bool = False

    def valid(self, target: Tensor, between: Range) -> Tensor:
        """Return the pixels [B, 1, H, W] (bool) of a measured depth that count."""
        valid = valid_pixels(target, between)
        return valid & inside_eigen_crop(target) if self.eigen_crop else valid

    def in_metres(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return what is scored: the prediction [B, 1, H, W], aligned to the target in metres, clipped; float64."""
        valid = self.valid(target, next(iter(self.masks.values())))
        depth = PROTOCOLS[self.protocol].in_metres(prediction, self.output, target, valid)
        return depth.clamp(*self.clip)


BATVISION = Scoring()
NYU = Scoring(masks={"nyu": NYU_RANGE}, metrics=NYU_METRICS, clip=NYU_RANGE, eigen_crop=True)


def scored_samples(dataset: str) -> dict[str, Any]:
    """Return the arguments of ``create_dataset`` that scoring asks for, whatever range of depth was learnt from.

    NYU's maps are at their own size and range; of the others every measured pixel counts.
    """
    if dataset == "nyu":
        return {"native_depth": True, "min_depth": NYU_RANGE[0], "max_depth": NYU_RANGE[1]}
    return {"min_depth": BATVISION.clip[0]}


def scoring_on(dataset: str, output: str, protocol: str, max_depth: float, *, eigen_crop: bool = True) -> Scoring:
    """Return how a network's ``output`` is scored on a data set: NYU's protocol there, BatVision's elsewhere.

    Args:
        dataset: its name.
        output: what the network gives, ``metres`` or ``disparity``.
        protocol: a key of ``training.alignment.PROTOCOLS``.
        max_depth: metres; what was fitted to an image counts as no more.
        eigen_crop: on NYU.
    """
    if dataset == "nyu":
        return dataclasses.replace(NYU, protocol=protocol, output=output, eigen_crop=eigen_crop)
    clip = BATVISION.clip if protocol == "metric" else (BATVISION.clip[0], max_depth)
    return dataclasses.replace(BATVISION, protocol=protocol, output=output, clip=clip)


class MetricTable:
    """The metrics of every image of a split, under each of several masks, in the order of the split.

    ``add`` keeps its tensors on their device: nothing is read back before the end. ``gather`` then brings the rows of
    all processes together; the means come after it.

    Args:
        bins: further ranges of measured depth by name, as :data:`DEPTH_BINS`, beside the masks of ``scoring``.
        scoring: which pixels count, and what is done to a prediction first.
    """

    def __init__(self, bins: Mapping[str, Range] | None = None, scoring: Scoring = BATVISION) -> None:
        self.masks = {**scoring.masks, **(bins or {})}
        self.scoring = scoring
        self._batches: list[tuple[Tensor, Tensor]] = []
        self._indices = torch.zeros(0, dtype=torch.long)
        self._rows = torch.zeros(0, len(self.masks), 1 + len(scoring.metrics), dtype=torch.float64)

    def add(self, indices: Tensor, prediction: Tensor, target: Tensor) -> None:
        """Take a batch: indices [B] in the split, prediction [B, 1, H, W] as the network gives it, target in metres."""
        depth = self.scoring.in_metres(prediction, target)
        blocks = []
        for between in self.masks.values():
            valid = self.scoring.valid(target, between)
            rows = image_metrics(depth, target, valid, self.scoring.clip[0], self.scoring.metrics)  # [B, M]
            blocks.append(torch.cat([mean_depth(target, valid)[:, None], rows], dim=1))  # [B, 1 + M]
        self._batches.append((indices, torch.stack(blocks, dim=1)))  # [B], [B, masks, 1 + M]

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

    def mean(self, mask: str | None = None, among: Sequence[int] | None = None) -> dict[str, float]:
        """Average the metrics under one mask over the images, or over those of the split indices in ``among``.

        Without a name the mask is the first. Images without a pixel that counts are left out; ``n_images`` says how
        many were in.
        """
        block = self._rows[:, list(self.masks).index(mask) if mask else 0]  # [N, 1 + M]
        counts = block[:, 0] > 0
        if among is not None:
            counts &= torch.isin(self._indices, torch.as_tensor(among))
        return mean_metrics(block[counts, 1:], self.scoring.metrics)

    def means(self) -> dict[str, Any]:
        """Return the means under the first mask, with those under each other one, but the bins, under its name."""
        first, *others = self.scoring.masks
        return {**self.mean(first), **{mask: self.mean(mask) for mask in others}}

    def per_image(self, metric: str = "rmse") -> dict[int, float]:
        """Return ``{split index: value}`` under the first mask for the images that have pixels that count.

        Beside the metrics there is ``depth``, their mean measured depth in metres.
        """
        block = self._rows[:, 0]
        counts = block[:, 0] > 0
        values = block[counts, ("depth", *self.scoring.metrics).index(metric)]
        return dict(zip(self._indices[counts].tolist(), values.tolist(), strict=True))
