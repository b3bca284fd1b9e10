"""Losses between a depth map and what it should be: pure functions, one value per image.

Each returns [B] float32; ``training.task.mean_over_images`` turns that into the scalar of a step. An image without a
valid pixel gives 0 with a gradient of 0, never NaN. All run in float32, whatever the precision of the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SILOG_SCALE, SILOG_MEAN_WEIGHT, SILOG_EPS = 10.0, 0.15, 1e-6
RMSE_EPS = 1e-4  # square metres: the slope of the root is that of an error of 1 cm at the steepest


def masked_mean(x: Tensor, valid: Tensor) -> Tensor:
    """Average x [B, 1, H, W] over each image's valid pixels: [B]. 0 where an image has none."""
    total = torch.where(valid, x, 0.0).sum(dim=(1, 2, 3))
    return total / valid.sum(dim=(1, 2, 3)).clamp(min=1)


def masked_median(x: Tensor, valid: Tensor) -> Tensor:
    """Lower median of each image's valid pixels: [B, 1, H, W] -> [B, 1, 1, 1]; 0 where an image has none."""
    ranked = x.masked_fill(~valid, torch.inf).flatten(1).sort(dim=1).values  # [B, H * W], the valid ones first
    count = valid.flatten(1).sum(dim=1, keepdim=True)  # [B, 1]
    median = ranked.gather(1, (count - 1).clamp(min=0) // 2)  # [B, 1]
    return torch.where(count > 0, median, 0.0)[:, :, None, None]


def masked_difference(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return prediction - target in float32, 0 where not valid: there either may be NaN, as may its slope."""
    return torch.where(valid, prediction.float() - target.float(), 0.0)


def l1_loss(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute error in metres over the valid pixels of [B, 1, H, W] maps: [B]."""
    return masked_mean(masked_difference(prediction, target, valid).abs(), valid)


def rmse_loss(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Root of the mean squared error in metres over the valid pixels of [B, 1, H, W] maps: [B].

    The metric itself, image by image. Where it is not known which of two depths is right, L1 answers with one of them,
    the median, and this one with what lies between, the mean. An epsilon inside the root keeps the gradient finite; its
    root is subtracted, so that identical maps give 0.
    """
    squared = masked_mean(masked_difference(prediction, target, valid).square(), valid)
    return (squared + RMSE_EPS).sqrt() - RMSE_EPS**0.5


def l1_rmse_loss(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Half of :func:`l1_loss` and half of :func:`rmse_loss`: few gross errors, and most places near the median: [B]."""
    return 0.5 * (l1_loss(prediction, target, valid) + rmse_loss(prediction, target, valid))


def silog_loss(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Scale-invariant log loss, 10 sqrt(Var(g) + 0.15 mean(g)^2) with g = log p - log t: [B].

    Eigen et al., NeurIPS 2014, in the form of AdaBins (Bhat et al., CVPR 2021). An epsilon inside the root keeps the
    gradient finite at zero variance; the value at g = 0 is subtracted, so that identical maps give 0.

    Args:
        prediction: depth [B, 1, H, W], positive.
        target: depth [B, 1, H, W], positive where valid.
        valid: bool [B, 1, H, W].
    """
    p = torch.where(valid, prediction, 1.0).float().clamp(min=1e-6)
    t = torch.where(valid, target, 1.0).float()
    g = p.log() - t.log()
    mean = masked_mean(g, valid)  # [B]
    variance = masked_mean((g - mean[:, None, None, None]) ** 2, valid)  # [B]
    root = (variance + SILOG_MEAN_WEIGHT * mean**2 + SILOG_EPS).sqrt()
    return SILOG_SCALE * (root - SILOG_EPS**0.5)


def edge_loss(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """L1 between the depth gradients, mean |dx p - dx t| + mean |dy p - dy t| in metres per pixel: [B].

    A gradient counts where both of its pixels are valid.

    Args:
        prediction: depth [B, 1, H, W] in metres.
        target: depth [B, 1, H, W] in metres.
        valid: bool [B, 1, H, W].
    """
    error = masked_difference(prediction, target, valid)
    total = torch.zeros(len(error), device=error.device)
    for axis in (2, 3):
        step, both = steps_along(error, valid, axis)
        total = total + masked_mean(step.abs(), both)
    return total


def steps_along(x: Tensor, valid: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return the differences of neighbours along an axis of [B, 1, H, W], and where both of them are valid."""
    length = x.shape[axis] - 1
    return x.diff(dim=axis), valid.narrow(axis, 0, length) & valid.narrow(axis, 1, length)


def low_pass(depth: Tensor, valid: Tensor, sigma: float) -> Tensor:
    """Blur depth [B, 1, H, W] over its valid pixels alone: [B, 1, H, W] float32, 0 where none is near.

    A Gaussian of the depth over the same Gaussian of the mask (normalised convolution, Knutsson and Westin, CVPR 1993),
    cut off at 3 sigma.

    Args:
        depth: [B, 1, H, W] in metres.
        valid: bool [B, 1, H, W].
        sigma: in pixels.
    """
    reach = math.ceil(3 * sigma)
    offsets = torch.arange(-reach, reach + 1, device=depth.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    maps = torch.cat([torch.where(valid, depth.float(), 0.0), valid.float()], dim=1)  # [B, 2, H, W]
    with torch.autocast(depth.device.type, enabled=False):
        for shape, padding in (((-1, 1), (reach, 0)), ((1, -1), (0, reach))):
            maps = F.conv2d(maps, kernel.reshape(1, 1, *shape).expand(2, -1, -1, -1), padding=padding, groups=2)
    total, weight = maps.split(1, dim=1)
    return torch.where(weight > 0, total / weight.clamp(min=1e-12), 0.0)


def edge_aware_smoothness(depth: Tensor, image: Tensor | None = None) -> Tensor:
    """Penalise depth gradients where the picture has none: mean |dx d| e^-|dx I| + mean |dy d| e^-|dy I|: [B].

    Godard et al., CVPR 2017; d is the depth over its own mean (Wang et al., CVPR 2018), so that the weight means the
    same in a cupboard and in a hall, and shrinking the map does not help.

    Args:
        depth: [B, 1, H, W], positive.
        image: [B, C, H, W] in [0, 1]; its gradients are averaged over the channels. None, where there is no picture,
            penalises all depth gradients alike.
    """
    depth = depth.float()
    relative = depth / depth.mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)
    total = torch.zeros(len(depth), device=depth.device)
    for axis in (axis for axis in (2, 3) if depth.shape[axis] > 1):
        step = relative.diff(dim=axis).abs()  # [B, 1, H-1, W] or [B, 1, H, W-1]
        if image is not None:
            step = step * torch.exp(-image.float().diff(dim=axis).abs().mean(dim=1, keepdim=True))
        total = total + step.mean(dim=(1, 2, 3))
    return total


# Distances between a depth map in metres and a measured one, by the names of --task_loss.
TASK_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "l1": l1_loss,
    "rmse": rmse_loss,
    "l1_rmse": l1_rmse_loss,
    "silog": silog_loss,
}
