"""Losses between a depth map and what it should be: pure functions, one value per image.

Each returns [B] float32; ``training.task.mean_over_images`` turns that into the scalar of a step. An image without a
valid pixel gives 0 with a gradient of 0, never NaN. All run in float32, whatever the precision of the network.
"""

from __future__ import annotations

import torch
from torch import Tensor

SILOG_SCALE, SILOG_MEAN_WEIGHT, SILOG_EPS = 10.0, 0.15, 1e-6


def masked_mean(x: Tensor, valid: Tensor) -> Tensor:
    """Average x [B, 1, H, W] over each image's valid pixels: [B]. 0 where an image has none."""
    total = torch.where(valid, x, 0.0).sum(dim=(1, 2, 3))
    return total / valid.sum(dim=(1, 2, 3)).clamp(min=1)


def l1_loss(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute error in metres over the valid pixels of [B, 1, H, W] maps: [B]."""
    return masked_mean((prediction.float() - target.float()).abs(), valid)


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


def edge_aware_smoothness(depth: Tensor, image: Tensor) -> Tensor:
    """Penalise depth gradients where the picture has none: mean |dx d| e^-|dx I| + mean |dy d| e^-|dy I|: [B].

    Godard et al., CVPR 2017; d is the depth over its own mean (Wang et al., CVPR 2018), so that the weight means the
    same in a cupboard and in a hall, and shrinking the map does not help.

    Args:
        depth: [B, 1, H, W], positive.
        image: [B, C, H, W] in [0, 1]; its gradients are averaged over the channels.
    """
    depth, image = depth.float(), image.float()
    relative = depth / depth.mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)
    total = torch.zeros(len(depth), device=depth.device)
    for axis in (2, 3):
        edge = image.diff(dim=axis).abs().mean(dim=1, keepdim=True)  # [B, 1, H-1, W] or [B, 1, H, W-1]
        total = total + (relative.diff(dim=axis).abs() * torch.exp(-edge)).mean(dim=(1, 2, 3))
    return total
