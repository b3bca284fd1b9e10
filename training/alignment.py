"""What is taken out of a prediction, image by image, before it is scored: a scale, and a shift.

A network that was never told metres cannot be held against them. Each protocol says what a prediction is known up to,
and gives it the scale and the shift that suit the measured depth best; figures under one protocol are not comparable
with figures under another. All is computed in float64, for a batch at once. Where a valid pixel of an image is NaN or
infinite, what is fitted to the image becomes NaN: it is never repaired into a good score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from training.depth_losses import masked_mean, masked_median

LEAST_DISPARITY = 1e-3  # 1/m; what is aligned to less counts as this, that is as 1 km away
NEAREST = 1e-3  # metres; what is nearer counts as this near where depth is turned into disparity
# A map whose standard deviation is less than this share of its largest value is constant: float32 resolves no less.
FLAT = torch.finfo(torch.float32).eps


def fit_affine(x: Tensor, y: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scale s and the shift t that minimise sum (s x + t - y)^2 over each image's valid pixels.

    In closed form, s = cov(x, y) / var(x), t = mean y - s mean x. The sign of s is not constrained. A constant x fits
    with any s: it gets s = 0 and t = mean y. An image without a valid pixel gets 0 and 0.

    Args:
        x: [B, 1, H, W]; may be NaN or infinite where not valid.
        y: [B, 1, H, W]; likewise.
        valid: bool [B, 1, H, W].

    Returns:
        s and t, float64 [B, 1, 1, 1] each.
    """
    x, y = (torch.where(valid, z, 0.0).double() for z in (x, y))
    mean_x, mean_y = (masked_mean(z, valid)[:, None, None, None] for z in (x, y))
    variance = masked_mean((x - mean_x) ** 2, valid)[:, None, None, None]
    covariance = masked_mean((x - mean_x) * (y - mean_y), valid)[:, None, None, None]
    flat = variance.sqrt() <= FLAT * x.abs().amax(dim=(1, 2, 3), keepdim=True)  # False where NaN
    scale = torch.where(flat, 0.0, covariance / variance)
    return scale, mean_y - scale * mean_x


def keep_metres(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Take depth [B, 1, H, W] in metres at its word: the same in float64."""
    return prediction.double()


def align_disparity(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Turn a disparity of unknown scale and shift into metres: 1 / max(s p + t, 1e-3), with s, t fitted to 1 / target.

    The protocol of MiDaS (Ranftl et al., TPAMI 2020) and Depth Anything (Yang et al., CVPR 2024): least squares in
    disparity space, in which such networks are affine to the truth. The fit of the same map in depth space would bend
    a perfect answer.

    Args:
        prediction: disparity [B, 1, H, W], large = near, without a unit.
        target: depth [B, 1, H, W] in metres.
        valid: bool [B, 1, H, W].

    Returns:
        Depth [B, 1, H, W] in metres, float64, in (0, 1000].
    """
    scale, shift = fit_affine(prediction, torch.where(valid, target, 1.0).double().reciprocal(), valid)
    return (scale * prediction.double() + shift).clamp(min=LEAST_DISPARITY).reciprocal()


def align_depth(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Give depth of unknown scale and shift those of the target: s p + t, by least squares in depth space.

    The protocol of Marigold (Ke et al., CVPR 2024), of networks whose depth, not disparity, is affine to the truth.

    Args:
        prediction: depth [B, 1, H, W], large = far.
        target: depth [B, 1, H, W] in metres.
        valid: bool [B, 1, H, W].

    Returns:
        Depth [B, 1, H, W] in metres, float64; may be negative where the fit is poor.
    """
    scale, shift = fit_affine(prediction, target, valid)
    return scale * prediction.double() + shift


def scale_by_median(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Give depth of unknown scale the target's: p median(target) / median(p), with the lower median of an even number.

    The protocol of self-supervised depth (Zhou et al., CVPR 2017).

    Args:
        prediction: depth [B, 1, H, W], positive, large = far.
        target: depth [B, 1, H, W] in metres.
        valid: bool [B, 1, H, W].

    Returns:
        Depth [B, 1, H, W] in metres, float64; all of an image is NaN where a valid pixel is.
    """
    ratio = masked_median(target.double(), valid) / masked_median(prediction.double(), valid)
    broken = ~torch.isfinite(torch.where(valid, prediction, 0.0)).all(dim=(1, 2, 3), keepdim=True)
    return torch.where(broken, torch.nan, ratio * prediction.double())  # a median alone would pass over a NaN


@dataclass(frozen=True)
class Protocol:
    """What a prediction is known up to.

    Attributes:
        align: from prediction, target and valid pixels [B, 1, H, W] to depth in metres.
        takes: what ``align`` is given, ``metres`` (depth) or ``disparity``.
    """

    align: Callable[[Tensor, Tensor, Tensor], Tensor]
    takes: str

    def accepts(self, output: str) -> bool:
        """Return whether a network's ``output`` can be scored: a disparity of unknown shift has no inverse."""
        return output in ("metres", self.takes)

    def in_metres(self, prediction: Tensor, output: str, target: Tensor, valid: Tensor) -> Tensor:
        """Align what a network gives, [B, 1, H, W] in its own ``output``, to the target: metres, float64."""
        assert self.accepts(output), f"{output} cannot be aligned as {self.takes}"
        if output != self.takes:
            prediction = prediction.double().clamp(min=NEAREST).reciprocal()
        return self.align(prediction, target, valid)


PROTOCOLS = {
    "metric": Protocol(keep_metres, "metres"),
    "disparity_lsq": Protocol(align_disparity, "disparity"),
    "depth_lsq": Protocol(align_depth, "metres"),
    "median": Protocol(scale_by_median, "metres"),
}
