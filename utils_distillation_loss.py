"""Every distillation loss: pure functions, then thin modules around them.

Response losses hold a student's depth map against a teacher's and return one value per image, [B]; so do disparity
losses, for maps (large = near) whose scale and shift nobody knows. Feature losses hold one level of a student's
features against the same level of a teacher's; they too return [B], except that of the Gram matrices, which compares
the images of a batch with each other and returns one scalar. ``training.task`` averages.

All run in float32, whatever the precision of the networks. Identical inputs give 0. The teacher's side is detached, so
gradients reach the student and the adapters alone. An image without a valid pixel gives 0 with a gradient of 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from errors import OptionError
from training.depth_losses import TASK_LOSSES, masked_difference, masked_mean, masked_median, steps_along

TEMPERATURE = 4.0  # of channel-wise distillation, as in its paper
UNIT_EPS = 1e-6  # the shortest vector that is brought to unit length
SPREAD_EPS = 1e-4  # the smallest mean deviation that a disparity map is divided by
SUPPORT = 32  # depths on which two choices among different bins are compared
NEAREST = 0.1  # metres; what is nearer counts as this near, so that a disparity and its slope stay bounded

# ------------------------------------------------------------------------------------------------------------ responses


def mse_loss(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean squared error in square metres over the valid pixels of [B, 1, H, W] maps: [B]."""
    return masked_mean(masked_difference(prediction, target, valid).square(), valid)


def normalize_disparity(disparity: Tensor, valid: Tensor) -> Tensor:
    """Take scale and shift out of each image: (d - median d) / mean |d - median d|, 0 where not valid: [B, 1, H, W].

    The robust alignment of MiDaS (Ranftl et al., TPAMI 2020, eq. 6), with median and mean over the valid pixels.

    Args:
        disparity: [B, 1, H, W], large = near; may be NaN or infinite where not valid.
        valid: bool [B, 1, H, W].
    """
    d = torch.where(valid, disparity, 0.0).float()
    centred = torch.where(valid, d - masked_median(d, valid), 0.0)
    spread = masked_mean(centred.abs(), valid)  # [B]
    return centred / spread.clamp(min=SPREAD_EPS)[:, None, None, None]


def scale_shift_invariant_loss(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Mean |N(s) - N(t)| over the valid pixels, with N of :func:`normalize_disparity`: [B].

    The same for a s + b as for s, with any a > 0: a teacher whose scale is unknown teaches shape alone.

    Args:
        student: disparity [B, 1, H, W].
        teacher: disparity [B, 1, H, W].
        valid: bool [B, 1, H, W].
    """
    difference = normalize_disparity(student, valid) - normalize_disparity(teacher.detach(), valid)
    return masked_mean(difference.abs(), valid)


def depth_to_disparity(depth: Tensor) -> Tensor:
    """Depth in metres -> 1 / depth in 1/m, of the same shape; nearer than ``NEAREST`` counts as ``NEAREST``."""
    return depth.float().clamp(min=NEAREST).reciprocal()


# ---------------------------------------------------------------------------------------------------------- disparities

NORMALIZATIONS = ("global", "hybrid", "local", "none")
HDN_VARIANTS = ("dr", "dp", "ds")
FLAT = 1e-3  # a context's mean deviation, as a share of its whole map's, below which the context counts as flat


def disparity_contexts(disparity: Tensor, valid: Tensor, variant: str = "dr", level: int = 3) -> Tensor:
    """Number the contexts of hierarchical depth normalisation: int64 [B, level, H, W], -1 where not valid.

    HDN (Zhang et al., Hierarchical Normalization for Robust Monocular Depth Estimation, NeurIPS 2022). Level k, from 0,
    cuts the map's range into 2^k segments, equally long (``dr``) or of equally many pixels as far as values differ
    (``dp``), or the picture into 2^k x 2^k cells (``ds``): 7, 7 and 21 contexts in three levels. A segment holds its
    lower bound and the last one its upper bound too, so that each valid pixel lies in exactly one context of each
    level, also the one of the largest value and those of a constant map.

    Args:
        disparity: [B, 1, H, W]; may be NaN or infinite where not valid.
        valid: bool [B, 1, H, W].
        variant: one of ``HDN_VARIANTS``.
        level: how many levels; the first is the whole map.

    Raises:
        OptionError: an unknown variant, or no level.
    """
    if variant not in HDN_VARIANTS or level < 1:
        raise OptionError(f"there is no HDN {variant!r} of level {level}; known are {', '.join(HDN_VARIANTS)}, from 1")
    d = torch.where(valid, disparity.detach(), 0.0).float()
    parts = 2 ** (level - 1)
    height, width = d.shape[-2:]
    if variant == "ds":
        row = torch.arange(height, device=d.device)[:, None] * parts // height  # [H, 1]
        column = torch.arange(width, device=d.device) * parts // width  # [W]
    elif variant == "dr":
        low = torch.where(valid, d, torch.inf).amin(dim=(1, 2, 3), keepdim=True)
        extent = torch.where(valid, d, -torch.inf).amax(dim=(1, 2, 3), keepdim=True) - low  # [B, 1, 1, 1]
        share = torch.where(valid & (extent > 0), (d - low) / extent, 0.0)
        segment = (share * parts).long().clamp(max=parts - 1)
    else:
        ranked = d.masked_fill(~valid, torch.inf).flatten(1).sort(dim=1).values  # [B, H * W], the valid ones first
        count = valid.flatten(1).sum(dim=1, keepdim=True)  # [B, 1]
        first = torch.arange(1, parts, device=d.device) * count // parts  # [B, parts - 1], ranks of lower bounds
        bounds = ranked.gather(1, first.clamp(max=ranked.shape[1] - 1))
        segment = torch.searchsorted(bounds, d.flatten(1), right=True).view_as(valid)
    levels = []
    for k in range(level):
        finer = level - 1 - k  # each context is two, or four, of the next level
        levels.append((row >> finer << k) + (column >> finer) if variant == "ds" else segment >> finer)
    return torch.where(valid, torch.cat([ids.expand_as(valid) for ids in levels], dim=1), -1)


def normalize_in_contexts(disparity: Tensor, contexts: Tensor, variant: str = "ds") -> Tensor:
    """Normalise each pixel within each context that holds it: (d - median_u d) / mean_u |d - median_u d|: [B, L, H, W].

    The median of an even number is the lower one, as in :func:`normalize_disparity`, which the first level repeats. A
    context that is flatter than ``FLAT`` of its whole map is divided by that much instead, so that noise on a wall does
    not grow into a shape: what is constant becomes 0, and so does a context of one pixel.

    Args:
        disparity: [B, 1, H, W]; may be NaN or infinite where not valid.
        contexts: int64 [B, L, H, W] as from :func:`disparity_contexts`, the whole map first; -1 where not valid.
        variant: of these contexts. Of ``dr`` and ``dp`` there are fewer, for which less memory is needed; the result
            is the same.

    Returns:
        The normalised maps, one per level; 0 where not valid.
    """
    batch, levels, height, width = contexts.shape
    pixels = height * width
    valid = contexts.flatten(2) >= 0  # [B, L, P], P pixels
    count = (4 if variant == "ds" else 2) ** (levels - 1)  # no level has more contexts
    x = torch.where(valid[:, 0], disparity.flatten(1), 0.0).float()  # [B, P]

    # By context, and ascending within each: one sort by value, then a stable one by context. Those that are not valid
    # make up a context of their own behind the others.
    ids = torch.where(valid, contexts.flatten(2), count)
    order = x.detach().argsort(dim=1)[:, None].expand(-1, levels, -1)  # [B, L, P]
    grouped, by_context = ids.gather(2, order).int().sort(dim=2, stable=True)
    places = torch.arange(count + 1, device=x.device, dtype=torch.int32).expand(batch, levels, -1).contiguous()
    begin = torch.searchsorted(grouped, places)  # [B, L, count + 1]
    number = begin.diff(dim=2)  # [B, L, count], of pixels
    middle = begin[:, :, :-1] + (number - 1).clamp(min=0) // 2  # of an empty context somebody else's, never read
    source = order.gather(2, by_context.gather(2, middle.clamp(max=pixels - 1)))
    median = x.gather(1, source.flatten(1)).view_as(source)

    # Sums go over the rows of a context first: fewer additions to one place, so less rounding and less waiting.
    slot = ids.clamp(max=count - 1) * height + torch.arange(pixels, device=x.device) // width  # [B, L, P]
    deviation = torch.where(valid, x[:, None] - _of_context(median, slot, height), 0.0)
    rows = torch.zeros(batch, levels, count * height, device=x.device).scatter_add(2, slot, deviation.abs())
    spread = rows.unflatten(2, (count, height)).sum(dim=3) / number.clamp(min=1)  # [B, L, count]
    whole = spread[:, :1, :1].clamp(min=SPREAD_EPS)
    spread = torch.cat([spread[:, :1].clamp(min=SPREAD_EPS), torch.maximum(spread[:, 1:], FLAT * whole)], dim=1)
    return (deviation / _of_context(spread, slot, height)).unflatten(2, (height, width))


def _of_context(value: Tensor, slot: Tensor, height: int) -> Tensor:
    """Give each pixel its context's value: [B, L, count] -> [B, L, P], with slot = context * height + row."""
    return value[..., None].expand(-1, -1, -1, height).flatten(2).gather(2, slot)


def disparity_residual(
    student: Tensor, teacher: Tensor, valid: Tensor, normalization: str = "global", variant: str = "dr", level: int = 3
) -> Tensor:
    """How far two disparity maps are apart at each pixel, once both are normalised: [B, 1, H, W], 0 where not valid.

    The four strategies that Distill Any Depth compares (He et al., arXiv 2502.19204, section 3.1). ``global``: |N(s) -
    N(t)| with N of :func:`normalize_disparity`. ``hybrid``: the mean over the contexts u that hold the pixel of |N_u(s)
    - N_u(t)|, that is HDN; the paper's is ``dr`` of level 3. ``local``: the contexts of the finest level alone.
    ``none``: |s - t|. The contexts are the teacher's, for both maps.

    Args:
        student: disparity [B, 1, H, W].
        teacher: disparity [B, 1, H, W]; is detached.
        valid: bool [B, 1, H, W]; elsewhere both may be NaN or infinite.
        normalization: one of ``NORMALIZATIONS``.
        variant: of the contexts, see :func:`disparity_contexts`.
        level: likewise.

    Raises:
        OptionError: an unknown normalisation or variant, or no level.
    """
    if normalization not in NORMALIZATIONS:
        raise OptionError(f"there is no normalisation {normalization!r}; known are {', '.join(NORMALIZATIONS)}")
    teacher = teacher.detach()
    if normalization == "none":
        s, t = (torch.where(valid, d, 0.0).float() for d in (student, teacher))
    elif normalization == "global":
        s, t = (normalize_disparity(d, valid) for d in (student, teacher))
    else:
        contexts = disparity_contexts(teacher, valid, variant, level)
        s, t = (normalize_in_contexts(d, contexts, variant) for d in (student, teacher))  # [B, L, H, W]
        if normalization == "local":
            s, t = s[:, -1:], t[:, -1:]
    return (s - t).abs().mean(dim=1, keepdim=True)


def trimmed_mean(x: Tensor, valid: Tensor, trim: float) -> Tensor:
    """Average x [B, 1, H, W] over each image's valid pixels without the largest share ``trim`` of them: [B].

    Their number is rounded down. 0 where an image has no valid pixel.
    """
    ranked = x.masked_fill(~valid, torch.inf).flatten(1).sort(dim=1).values  # [B, H * W], the valid ones first
    count = valid.flatten(1).sum(dim=1, keepdim=True)  # [B, 1]
    kept = torch.arange(ranked.shape[1], device=x.device) < count - (trim * count).floor()
    return torch.where(kept, ranked, 0.0).sum(dim=1) / kept.sum(dim=1).clamp(min=1)


def normalized_loss(
    student: Tensor,
    teacher: Tensor,
    valid: Tensor,
    normalization: str = "global",
    *,
    variant: str = "dr",
    level: int = 3,
    trim: float = 0.0,
) -> Tensor:
    """Mean over the valid pixels of :func:`disparity_residual`: [B]. Distill Any Depth's L_dis; L_sc on a shared crop.

    Args:
        student: disparity [B, 1, H, W].
        teacher: disparity [B, 1, H, W]; is detached.
        valid: bool [B, 1, H, W].
        normalization: one of ``NORMALIZATIONS``.
        variant: of the contexts, see :func:`disparity_contexts`.
        level: likewise.
        trim: the share of an image's pixels with the largest residuals that does not count, in [0, 1); MiDaS (Ranftl et
            al., TPAMI 2020) drops 0.2. The mean is over those that do count.

    Raises:
        OptionError: an unknown normalisation or variant, or no level.
    """
    residual = disparity_residual(student, teacher, valid, normalization, variant, level)
    return trimmed_mean(residual, valid, trim) if trim > 0 else masked_mean(residual, valid)


def hdn_loss(student: Tensor, teacher: Tensor, valid: Tensor, variant: str = "dr", level: int = 3) -> Tensor:
    """Hierarchical depth normalisation, :func:`normalized_loss` with ``hybrid``: [B]."""
    return normalized_loss(student, teacher, valid, "hybrid", variant=variant, level=level)


def crop_and_resize(x: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut boxes out of maps and resize them bilinearly: [B, C, H, W], [B, N, 4] -> [B, N, C, h, w] float32.

    A box is x0, y0, x1, y1 in pixels of the map, its edges: row i and column j cover [i, i + 1) and [j, j + 1), and 0,
    0, W, H is the whole map. Sample k of w lies at x0 + (k + 1/2) (x1 - x0) / w, and the centre of column j at j + 1/2.
    So a box of integers in its own size is the slice [y0:y1, x0:x1], to the bit. Beyond its edge a map goes on as it
    ends. Nothing is averaged: a crop that is made much smaller keeps single pixels.
    """
    image = torch.arange(len(x), device=x.device, dtype=torch.float32).repeat_interleave(boxes.shape[1])
    rois = torch.cat([image[:, None], boxes.flatten(0, 1).float()], dim=1)  # [B * N, 5]
    with torch.autocast(x.device.type, enabled=False):
        crops = roi_align(x.float(), rois, size, sampling_ratio=1, aligned=True)
    return crops.unflatten(0, boxes.shape[:2])


def local_global_loss(
    student_global: Tensor,
    teacher_local: Tensor,
    boxes: Tensor,
    valid: Tensor | None = None,
    normalization: str = "hybrid",
    *,
    variant: str = "dr",
    level: int = 3,
    trim: float = 0.0,
) -> Tensor:
    """1/N sum_n L_dis(crop_n(student's map of the whole view), teacher's map of view n alone): [B].

    Distill Any Depth's L_lg (arXiv 2502.19204, eq. 8): a teacher that looks closer sees finer.

    Args:
        student_global: disparity [B, 1, H, W].
        teacher_local: disparity [B, N, 1, h, w] of N views; the student's crops are brought to this size.
        boxes: where the views lie in the student's map, [B, N, 4] as in :func:`crop_and_resize`.
        valid: bool [B, N, 1, h, w]; None is where the teacher's maps are finite. A view without a valid pixel adds 0.
        normalization: see :func:`normalized_loss`.
        variant: likewise.
        level: likewise.
        trim: likewise.
    """
    if valid is None:
        valid = torch.isfinite(teacher_local)
    height, width = teacher_local.shape[-2:]
    crops = crop_and_resize(student_global, boxes, (height, width))
    views = (crops.flatten(0, 1), teacher_local.flatten(0, 1), valid.flatten(0, 1))  # [B * N, 1, h, w]
    losses = normalized_loss(*views, normalization, variant=variant, level=level, trim=trim)
    return losses.unflatten(0, boxes.shape[:2]).mean(dim=1)


def gradient_preservation_loss(student: Tensor, teacher: Tensor, valid: Tensor, scales: int = 4) -> Tensor:
    """1/M sum_k sum |dx R^k| + |dy R^k| with R = N(s) - N(t) and R^k = R[::2^k, ::2^k], k from 0: [B].

    The multi-scale gradient matching of MiDaS (Ranftl et al., TPAMI 2020, eq. 11), N of :func:`normalize_disparity`. A
    difference counts where both of its pixels are valid; M is the number of valid pixels of the whole map.
    """
    residual = normalize_disparity(student, valid) - normalize_disparity(teacher.detach(), valid)
    total = torch.zeros(len(residual), device=residual.device)
    for k in range(scales):
        coarse, measured = residual[..., :: 2**k, :: 2**k], valid[..., :: 2**k, :: 2**k]
        for axis in (2, 3):
            step, both = steps_along(coarse, measured, axis)
            total = total + torch.where(both, step.abs(), 0.0).sum(dim=(1, 2, 3))
    return total / valid.sum(dim=(1, 2, 3)).clamp(min=1)


# ------------------------------------------------------------------------------------------------------------- features


def feature_mse_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of [B, C, H, W] features: [B]. Hints (Romero et al., FitNets, ICLR 2015)."""
    return (student.float() - teacher.detach().float()).square().mean(dim=(1, 2, 3))


def feature_cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over the positions of 1 - cos(s, t), along the channels of [B, C, H, W] features: [B].

    Written as half the squared distance of the unit vectors, which is the same, and 0 where both are zero.
    """
    return _cosine_distance(student, teacher).mean(dim=(1, 2))


def _cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    s = F.normalize(student.float(), dim=1, eps=UNIT_EPS)
    t = F.normalize(teacher.detach().float(), dim=1, eps=UNIT_EPS)
    return (s - t).square().sum(dim=1) / 2  # [B, H, W]


def token_alignment_loss(student: Tensor, teacher: Tensor, margin: float = 0.85) -> Tensor:
    """Mean of 1 - cos(s, t) over the tokens whose cosine is not above the margin, of [B, C, h, w] features: [B].

    Depth Anything (Yang et al., CVPR 2024, section 3.3): tokens that are alike enough are left in peace, so that what
    the student knows of parts of an object is not pressed into one. 0 where all are above the margin.
    """
    distance = _cosine_distance(student, teacher)  # [B, h, w]
    apart = distance >= 1 - margin
    return torch.where(apart, distance, 0.0).sum(dim=(1, 2)) / apart.sum(dim=(1, 2)).clamp(min=1)


def channel_wise_loss(student: Tensor, teacher: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """KL divergence between where student and teacher look, channel by channel, of [B, C, H, W] features: [B].

    T^2 / C sum_c KL(softmax(t_c / T) || softmax(s_c / T)), each softmax over the H * W positions of a channel (Shu et
    al., Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021). A channel's size does not matter, only
    where it is large.
    """
    return tempered_kl(student.flatten(2), teacher.detach().flatten(2), temperature, dim=2).mean(dim=1)  # of [B, C]


def tempered_kl(student: Tensor, teacher: Tensor, temperature: float, dim: int) -> Tensor:
    """T^2 KL(softmax(t / T) || softmax(s / T)) along ``dim`` of two tensors of logits, which the result has no more.

    ``F.kl_div`` takes the student's log-probabilities first.
    """
    s = F.log_softmax(student.float() / temperature, dim)
    t = F.log_softmax(teacher.float() / temperature, dim)
    return temperature**2 * F.kl_div(s, t, reduction="none", log_target=True).sum(dim)


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1 / B^2 ||G_s - G_t||^2: which images of a batch are alike, to the student and to the teacher: a scalar.

    G is A A^T with A the features [B, C * H * W], its rows brought to unit length (Tung and Mori, Similarity-Preserving
    Knowledge Distillation, ICCV 2019). Channels and sizes may differ. One image has nothing to be alike: it gives 0.
    """
    return (_similarities(student) - _similarities(teacher.detach())).square().mean()


def _similarities(features: Tensor) -> Tensor:
    flat = features.float().flatten(1)  # [B, C * H * W]
    with torch.autocast(features.device.type, enabled=False):
        return F.normalize(flat @ flat.T, dim=1, eps=UNIT_EPS)  # [B, B]


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """||Q_s / |Q_s| - Q_t / |Q_t|||^2 with Q = sum_c A_c^2, of [B, C, H, W] features: [B], from 0 to 2.

    Activation-based attention transfer (Zagoruyko and Komodakis, ICLR 2017), with the norm squared, so that its slope
    at equality is finite. The numbers of channels may differ.
    """
    return (_attention(student) - _attention(teacher.detach())).square().sum(dim=1)


def _attention(features: Tensor) -> Tensor:
    return F.normalize(features.float().square().sum(dim=1).flatten(1), dim=1, eps=UNIT_EPS)  # [B, H * W]


# ----------------------------------------------------------------------------------------------------------------- bins


def bin_width_loss(student: Tensor, teacher: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """KL between the teacher's and the student's division of the range, from logits of the widths [B, N]: [B].

    T^2 KL(softmax(t / T) || softmax(s / T)): slot k is the k-th share of the range in both.
    """
    return tempered_kl(student, teacher.detach(), temperature, dim=1)


def shared_support_loss(
    student: Tensor,
    student_centres: Tensor,
    teacher: Tensor,
    teacher_centres: Tensor,
    between: tuple[float | Tensor, float | Tensor],
    temperature: float = TEMPERATURE,
) -> Tensor:
    """KL between two choices among different bins, pixel by pixel, once both are written on the same depths: [B].

    Bin k of the one is not the depth of bin k of the other. So each bin's mass is split linearly between its two
    neighbours among ``SUPPORT`` depths, which lie at (i / S)^2 of the range, closest where rooms are; there a kernel
    exp(-|steps| / 2) lets a mass be felt from afar, and closes the gaps that coarse bins leave. The temperature belongs
    to the distributions on the support: tempered over the bins, a region would gain by being cut finer. The mean over
    the pixels of T^2 KL(t^(1/T) || s^(1/T)).

    Args:
        student: logits of the choice [B, N, H, W].
        student_centres: metres [B, N].
        teacher: logits [B, M, H, W].
        teacher_centres: metres [B, M].
        between: the range of depths in metres, two numbers.
        temperature: T.
    """
    s = _on_support(student, student_centres, between)
    with torch.no_grad():
        t = _on_support(teacher, teacher_centres, between)
    return tempered_kl(s, t, temperature, dim=2).mean(dim=1)


def _on_support(choice: Tensor, centres: Tensor, between: tuple[float | Tensor, float | Tensor]) -> Tensor:
    """Logits [B, N, H, W] over bins at [B, N] metres -> log-probabilities on the support, [B, H * W, S].

    What belongs to a pixel lies side by side, as it does in channels_last: a softmax over the channels of maps takes
    twice the time on a CPU.
    """
    low, high = between
    with torch.autocast(choice.device.type, enabled=False):
        support = torch.arange(SUPPORT, device=choice.device, dtype=torch.float32)
        share = ((centres.float() - low) / (high - low)).clamp(1e-6, 1)  # [B, N], of the range; the root of 0 is steep
        place = share.sqrt() * (SUPPORT - 1)  # in steps
        split = (1 - (place[:, :, None] - support).abs()).clamp(min=0)  # [B, N, S], of which two are above 0
        kernel = torch.exp(-(support[:, None] - support).abs() / 2)  # [S, S]
        spread = split @ (kernel / kernel.sum(dim=0)).T  # [B, N, S]; a row sums up to 1
        chosen = choice.permute(0, 2, 3, 1).flatten(1, 2).float().softmax(dim=2)  # [B, H * W, N]
        return (chosen @ spread).log()


def wasserstein_loss(student: Tensor, student_centres: Tensor, teacher: Tensor, teacher_centres: Tensor) -> Tensor:
    """How far mass has to be moved, in metres, to turn one choice among bins into the other; mean over the pixels: [B].

    In one dimension this is the area between the two distribution functions, and exact for masses at the bins' centres,
    wherever these lie: no support is needed, and no temperature.

    Args:
        student: logits of the choice [B, N, H, W].
        student_centres: metres [B, N].
        teacher: logits [B, M, H, W].
        teacher_centres: metres [B, M].
    """
    s, t = student.float().softmax(dim=1).flatten(2), teacher.detach().float().softmax(dim=1).flatten(2)
    both = torch.cat([student_centres.float(), teacher_centres.detach().float()], dim=1)
    places, order = both.sort(dim=1)  # [B, N + M]
    signed = torch.cat([s, -t], dim=1).gather(1, order[:, :, None].expand(-1, -1, s.shape[2]))  # [B, N + M, H * W]
    apart = signed.cumsum(dim=1)[:, :-1].abs()  # between a place and the next
    return (apart * places.diff(dim=1)[:, :, None]).sum(dim=1).mean(dim=1)


def chamfer_loss(centres: Tensor, depth: Tensor, valid: Tensor) -> Tensor:
    """Mean squared distance from each measured depth to the nearest bin's centre, and from each centre back: [B].

    AdaBins' loss of the bins, in square metres: they should lie where the scene has something. Both sets lie on a line,
    so that the nearest is one of two neighbours in a sorted row.

    Args:
        centres: metres, ascending [B, N].
        depth: metres [B, 1, H, W].
        valid: bool [B, 1, H, W]; an image without a valid pixel gives 0.
    """
    measured = valid.flatten(1)  # [B, H * W]
    depth = torch.where(valid, depth, 0.0)  # where not valid it may be NaN
    far = 2 * depth.detach().float().amax() + 2 * centres.detach().float().amax() + 1  # beyond all that is measured
    d = torch.where(measured, depth.float().flatten(1), far)
    ranked = d.sort(dim=1).values
    to_centre = (nearest(d, centres.float()) - d).square()  # [B, H * W]
    to_centre = torch.where(measured, to_centre, 0.0).sum(dim=1) / measured.sum(dim=1).clamp(min=1)
    to_depth = (nearest(centres.float(), ranked) - centres.float()).square().mean(dim=1)
    return torch.where(measured.any(dim=1), to_centre + to_depth, 0.0 * to_centre)


def nearest(x: Tensor, row: Tensor) -> Tensor:
    """Return for each of x [B, K] the nearest value of an ascending row [B, N]: [B, K]."""
    right = torch.searchsorted(row.detach().contiguous(), x.detach().contiguous()).clamp(max=row.shape[1] - 1)
    left = (right - 1).clamp(min=0)
    above, below = row.gather(1, right), row.gather(1, left)
    return torch.where((above - x).abs() < (x - below).abs(), above, below)


# -------------------------------------------------------------------------------------------------------------- modules

RESPONSE_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    **TASK_LOSSES,
    "mse": mse_loss,
    "ssi": scale_shift_invariant_loss,
}
FEATURE_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": feature_mse_loss,
    "cosine": feature_cosine_loss,
    "cwd": channel_wise_loss,
    "similarity": similarity_loss,
    "attention": attention_loss,
}
CHANNEL_BY_CHANNEL = frozenset({"mse", "cosine", "cwd"})  # these need equal widths, and so adapters where they differ
ADAPTERS = ("all", "differing")


class ResponseDistillation(nn.Module):
    """A student's depth in metres against a teacher's answer: [B].

    Args:
        kind: a key of ``RESPONSE_LOSSES``. ``ssi`` turns depths into disparities first; the others compare metres.
        teacher_output: ``metres`` or ``disparity``; the latter can be held against depth by ``ssi`` alone.
        max_depth: metres; a teacher's depth beyond it counts as it, as a measured one does.

    Raises:
        OptionError: an unknown kind, or one that a teacher of disparities does not admit.
    """

    def __init__(self, kind: str = "l1", teacher_output: str = "metres", max_depth: float = torch.inf) -> None:
        super().__init__()
        if kind not in RESPONSE_LOSSES:
            raise OptionError(f"there is no response loss {kind!r}; known are {', '.join(RESPONSE_LOSSES)}")
        if teacher_output == "disparity" and kind != "ssi":
            raise OptionError(
                f"--response_loss {kind} compares metres, but the teacher answers with disparities of unknown scale; "
                "use ssi"
            )
        self.kind = kind
        self.teacher_output = teacher_output
        self.max_depth = max_depth

    def forward(self, depth: Tensor, taught: Tensor) -> Tensor:
        """Compare depth [B, 1, H, W] in metres with the teacher's map [B, 1, H, W], at each pixel that it answers."""
        taught = taught.detach().float()
        valid = torch.isfinite(taught)
        if self.teacher_output == "metres":
            valid = valid & (taught > 0)
            taught = taught.clamp(max=self.max_depth)
        taught = torch.where(valid, taught, 1.0)  # NaN would come back through the slope of |x|
        if self.kind == "ssi":
            depth = depth_to_disparity(depth)
            taught = taught if self.teacher_output == "disparity" else depth_to_disparity(taught)
        return RESPONSE_LOSSES[self.kind](depth, taught, valid)


class FeatureDistillation(nn.Module):
    """A student's features against a teacher's, level by level.

    Where channels are compared one by one (``CHANNEL_BY_CHANNEL``), a learned 1x1 convolution turns the student's into
    the teacher's: two networks have no reason to number their channels alike. The teacher's levels are resized to the
    student's size where these differ.

    Args:
        student_widths: channels of each level of the student.
        teacher_widths: likewise of the teacher.
        levels: those to compare.
        kind: a key of ``FEATURE_LOSSES``.
        adapt: ``all`` gives every level an adapter, ``differing`` those whose widths differ.
        temperature: of ``cwd``.

    Raises:
        OptionError: an unknown kind or ``adapt``, no level, or one that either network does not have.
    """

    def __init__(
        self,
        student_widths: Mapping[str, int],
        teacher_widths: Mapping[str, int],
        levels: Sequence[str],
        kind: str = "mse",
        adapt: str = "all",
        temperature: float = TEMPERATURE,
    ) -> None:
        super().__init__()
        if kind not in FEATURE_LOSSES:
            raise OptionError(f"there is no feature loss {kind!r}; known are {', '.join(FEATURE_LOSSES)}")
        if adapt not in ADAPTERS:
            raise OptionError(f"there is no choice of adapters {adapt!r}; known are {', '.join(ADAPTERS)}")
        for name, widths in (("student", student_widths), ("teacher", teacher_widths)):
            missing = [level for level in levels if level not in widths]
            if missing or not levels:
                asked = " ".join(missing) or "(none)"
                raise OptionError(f"--feature_levels {asked}: the levels of the {name} are {' '.join(widths)}")
        self.levels = tuple(dict.fromkeys(levels))
        self.kind = kind
        self.temperature = temperature
        self.adapters = nn.ModuleDict(
            {
                level: nn.Conv2d(student_widths[level], teacher_widths[level], 1, bias=False)
                for level in self.levels
                if kind in CHANNEL_BY_CHANNEL and (adapt == "all" or student_widths[level] != teacher_widths[level])
            }
        )

    def forward(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compare the levels [B, C, H, W] of two networks; each gives [B], or one scalar for ``similarity``."""
        return {level: self._compare(level, student[level], teacher[level]) for level in self.levels}

    def _compare(self, level: str, student: Tensor, teacher: Tensor) -> Tensor:
        teacher = _resize_to(student, teacher.detach())
        if level in self.adapters:
            student = self.adapters[level](student)
        if self.kind == "cwd":
            return channel_wise_loss(student, teacher, self.temperature)
        return FEATURE_LOSSES[self.kind](student, teacher)


def _resize_to(student: Tensor, teacher: Tensor) -> Tensor:
    """Resize the teacher's features to the student's size: a resize without a gradient repeats on any device."""
    size = student.shape[-2:]
    if teacher.shape[-2:] == size:
        return teacher
    return F.interpolate(teacher.float(), size, mode="bilinear", align_corners=False, antialias=True)


BIN_LOSSES = ("widths", "shared_support", "wasserstein")
RESPONSE_AT = ("unmeasured", "everywhere")
Answer = tuple[Tensor, Mapping[str, Tensor]]  # depth [B, 1, H, W] in metres, and the features of models.adabins_...


class DistillationLoss(nn.Module):
    """What teaches an AdaBins student: five terms, one value per image, [B] each, and their weights.

    ``task``: ``task_loss`` between the student's depth and the measured one. ``response``: mean squared difference of
    the two depths in square metres, 0 at pixels that ``response_at`` leaves out. ``feature``: the sum over ``levels``
    of the mean cosine distance. ``bin``: as ``bin_loss`` says. ``sparse``: mean |residual| in metres. And, with a
    weight, ``chamfer``. The teacher's side is detached.

    Args:
        lambda_task, lambda_response, lambda_feature, lambda_bin, lambda_sparse, lambda_chamfer: weights.
        temperature: of the bin loss.
        bin_loss: ``widths``, ``shared_support`` or ``wasserstein``.
        task_loss: a key of ``training.depth_losses.TASK_LOSSES``.
        response_at: ``everywhere``, or where depth is ``unmeasured``: in images without a label and in the holes of
            one. At a measured pixel the teacher's answer is the label, and the teacher's error with it.
        levels: whose features are compared.

    Raises:
        OptionError: an unknown kind of loss, or place of the response.
    """

    def __init__(
        self,
        lambda_task: float = 1.0,
        lambda_response: float = 0.5,
        lambda_feature: float = 0.3,
        lambda_bin: float = 0.2,
        lambda_sparse: float = 0.1,
        lambda_chamfer: float = 0.0,
        *,
        temperature: float = TEMPERATURE,
        bin_loss: str = "shared_support",
        task_loss: str = "l1",
        response_at: str = "unmeasured",
        levels: Sequence[str] = ("d1", "d2", "d3"),
    ) -> None:
        super().__init__()
        for kind, known in ((bin_loss, BIN_LOSSES), (task_loss, TASK_LOSSES), (response_at, RESPONSE_AT)):
            if kind not in known:
                raise OptionError(f"there is no {kind!r}; known are {', '.join(known)}")
        self.weights = {
            "task": lambda_task,
            "response": lambda_response,
            "feature": lambda_feature,
            "bin": lambda_bin,
            "sparse": lambda_sparse,
            "chamfer": lambda_chamfer,
        }
        self.temperature = temperature
        self.bin_loss = bin_loss
        self.task_loss = task_loss
        self.response_at = response_at
        self.levels = tuple(dict.fromkeys(levels))

    def weights_at(self, progress: float) -> dict[str, float]:
        """Return the weight of each term after a share of the training in [0, 1]."""
        return dict(self.weights)

    def forward(self, student: Answer, teacher: Answer | None, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Return the terms, unweighted, [B] each; without a teacher those that need none, ``bin`` of one that has bins.

        Args:
            student: depth and features.
            teacher: likewise; None where nobody sees.
            target: depth [B, 1, H, W] in metres.
            valid: bool [B, 1, H, W].
        """
        terms = self.own_terms(student, target, valid)
        if teacher is None:
            return terms
        (depth, heard), (taught, seen) = student, teacher
        levels = [feature_cosine_loss(heard[level], seen[level]) for level in self.levels]
        asked = ~valid if self.response_at == "unmeasured" else torch.ones_like(valid)
        share = asked.float().mean(dim=(1, 2, 3))  # a hole weighs what its pixels weigh, not as much as a whole image
        terms["response"] = share * mse_loss(depth, taught.detach(), asked)
        terms["feature"] = torch.stack(levels).sum(dim=0)
        return terms | {"bin": self.bin_term(heard, seen)} if "edges" in seen else terms

    def own_terms(self, answer: Answer, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Return the terms of one network alone, [B] each: the student's, or those of a teacher that trains along."""
        depth, features = answer
        terms = {
            "task": TASK_LOSSES[self.task_loss](depth, target, valid),
            "sparse": features["residual"].abs().mean(dim=(1, 2, 3)),
        }
        if self.weights["chamfer"] > 0:
            terms["chamfer"] = chamfer_loss(features["centres"].flatten(1), target, valid)
        return terms

    def bin_term(self, heard: Mapping[str, Tensor], seen: Mapping[str, Tensor]) -> Tensor:
        """Compare the bins of two networks: [B]."""
        if self.bin_loss == "widths":
            return bin_width_loss(heard["widths"].flatten(1), seen["widths"].flatten(1), self.temperature)
        bins = (heard["choice"], heard["centres"].flatten(1), seen["choice"], seen["centres"].flatten(1))
        if self.bin_loss == "wasserstein":
            return wasserstein_loss(*bins)
        edges = seen["edges"].detach().flatten(1)  # [B, N + 1]
        return shared_support_loss(*bins, (edges[0, 0], edges[0, -1]), self.temperature)


class AdaptiveDistillationLoss(DistillationLoss):
    """:class:`DistillationLoss` whose weights follow a curriculum: first the teacher, then the measured depth.

    The rows cover the shares 0 to 0.2, 0.2 to 0.6 and 0.6 to 1 of the training (epochs 40 and 120 of 200); the weight
    of the features is linear inside a row. ``lambda_sparse`` and ``lambda_chamfer`` stay as given; the others follow.

    Raises:
        OptionError: a weight of the others is given.
    """

    ROWS = (  # begin and end; weights of task, response, feature (at both ends) and bin
        ((0.0, 0.2), 0.5, 1.0, (0.5, 1.0), 0.5),
        ((0.2, 0.6), 0.75, 0.65, (1.0, 0.75), 0.35),
        ((0.6, 1.0), 1.0, 0.3, (0.5, 0.5), 0.2),
    )

    def __init__(self, lambda_sparse: float = 0.1, lambda_chamfer: float = 0.0, **options: Any) -> None:
        super().__init__(lambda_sparse=lambda_sparse, lambda_chamfer=lambda_chamfer, **options)
        followed = sorted(options.keys() & {"lambda_task", "lambda_response", "lambda_feature", "lambda_bin"})
        if followed:
            raise OptionError(f"{', '.join(followed)}: the curriculum sets these weights; leave them out")

    def weights_at(self, progress: float) -> dict[str, float]:
        """Return the weight of each term after a share of the training in [0, 1]."""
        row = next((row for row in self.ROWS if progress < row[0][1]), self.ROWS[-1])
        (begin, end), task, response, (first, last), bins = row
        feature = first + (last - first) * (progress - begin) / (end - begin)
        return {**self.weights, "task": task, "response": response, "feature": feature, "bin": bins}


class TokenAlignment(nn.Module):
    """A student's tokens against a teacher's, behind a learned linear map from width to width: [B].

    Args:
        student_width: channels of the student's tokens.
        teacher_width: of the teacher's.
        margin: tokens with a cosine above it do not count, see :func:`token_alignment_loss`.
    """

    def __init__(self, student_width: int, teacher_width: int, margin: float = 0.85) -> None:
        super().__init__()
        self.project = nn.Conv2d(student_width, teacher_width, 1, bias=False)
        self.margin = margin

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare tokens as maps, [B, C, h, w] and [B, C', h', w']; the teacher's are resized where grids differ."""
        teacher = _resize_to(student, teacher.detach())
        with torch.autocast(student.device.type, enabled=False):
            return token_alignment_loss(self.project(student.float()), teacher, self.margin)


# Arguments of DisparityDistillationLoss. "paper": Distill Any Depth (arXiv 2502.19204), eq. 9, section 4.1 and, for the
# normalisation, table 1; its hybrid L_dis is HDN, so that a term of its own has no weight. "documents": the weights of
# the documents that this toolkit grew from, where the scale-invariant and the HDN loss are two terms.
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {
        "lambda_sc": 1.0, "lambda_lg": 0.5, "lambda_feat": 1.0, "lambda_grad": 2.0, "lambda_hdn": 0.0,
        "normalization": "hybrid",
    },
    "documents": {
        "lambda_sc": 0.5, "lambda_lg": 0.5, "lambda_feat": 1.0, "lambda_grad": 0.2, "lambda_hdn": 0.8,
        "normalization": "global",
    },
}  # fmt: skip


class DisparityDistillationLoss(nn.Module):
    """What teaches a network of disparities: five terms, one value per image, [B] each, and their weights.

    ``sc``: :func:`normalized_loss` between the two answers to one view. ``lg``: :func:`local_global_loss`. ``feat``:
    :class:`TokenAlignment`. ``grad``: :func:`gradient_preservation_loss`. ``hdn``: :func:`hdn_loss`. A term without a
    weight is not computed. The teacher's side is detached.

    Args:
        lambda_sc, lambda_lg, lambda_feat, lambda_grad, lambda_hdn: weights; the defaults are the paper's recipe.
        normalization: of ``sc`` and ``lg``, one of ``NORMALIZATIONS``.
        hdn_variant, hdn_level: of the contexts, see :func:`disparity_contexts`.
        trim: of ``sc`` and ``lg``, see :func:`normalized_loss`.
        widths: channels of the student's and of the teacher's tokens; ``feat`` needs them.
        margin: of ``feat``.

    Raises:
        OptionError: an unknown normalisation or variant, no level, a trim outside [0, 1), or ``feat`` without widths.
    """

    def __init__(
        self,
        lambda_sc: float = 1.0,
        lambda_lg: float = 0.5,
        lambda_feat: float = 1.0,
        lambda_grad: float = 2.0,
        lambda_hdn: float = 0.0,
        *,
        normalization: str = "hybrid",
        hdn_variant: str = "dr",
        hdn_level: int = 3,
        trim: float = 0.0,
        widths: tuple[int, int] | None = None,
        margin: float = 0.85,
    ) -> None:
        super().__init__()
        for kind, known in ((normalization, NORMALIZATIONS), (hdn_variant, HDN_VARIANTS)):
            if kind not in known:
                raise OptionError(f"there is no {kind!r}; known are {', '.join(known)}")
        if hdn_level < 1 or not 0 <= trim < 1:
            raise OptionError(f"an HDN level of {hdn_level} and a trim of {trim}: these are at least 1, and in [0, 1)")
        if lambda_feat > 0 and widths is None:
            raise OptionError("lambda_feat needs the widths of the student's and the teacher's tokens")
        self.weights = {"sc": lambda_sc, "lg": lambda_lg, "feat": lambda_feat, "grad": lambda_grad, "hdn": lambda_hdn}
        self.normalization = normalization
        self.contexts: dict[str, Any] = {"variant": hdn_variant, "level": hdn_level}
        self.trim = trim
        self.align = TokenAlignment(*widths, margin) if lambda_feat > 0 and widths else None

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        valid: Tensor | None = None,
        *,
        local: tuple[Tensor, Tensor, Tensor] | None = None,
        tokens: tuple[Tensor, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return the terms that have a weight, unweighted, [B] each.

        Args:
            student: disparity [B, 1, H, W] of a view.
            teacher: disparity [B, 1, H, W] of the same view.
            valid: bool [B, 1, H, W]; None is where the teacher's map is finite.
            local: for ``lg``: the student's map of a whole view [B, 1, H, W], the teacher's of N parts of it
                [B, N, 1, h, w], and their boxes [B, N, 4] in the student's map.
            tokens: for ``feat``: the student's and the teacher's, as maps [B, C, h, w].

        Raises:
            OptionError: a term has a weight, but not what it compares.
        """
        for term, given in (("lg", local), ("feat", tokens)):
            if self.weights[term] > 0 and given is None:
                raise OptionError(f"lambda_{term} is {self.weights[term]:g}, but there is nothing to compare for it")
        if valid is None:
            valid = torch.isfinite(teacher)
        terms = {}
        if self.weights["sc"] > 0:
            terms["sc"] = self.shared_view(student, teacher, valid)
        if self.weights["lg"] > 0 and local is not None:
            terms["lg"] = local_global_loss(*local, normalization=self.normalization, **self.contexts, trim=self.trim)
        if self.align is not None and tokens is not None:
            terms["feat"] = self.align(*tokens)
        if self.weights["grad"] > 0:
            terms["grad"] = gradient_preservation_loss(student, teacher, valid)
        if self.weights["hdn"] > 0:
            terms["hdn"] = hdn_loss(student, teacher, valid, **self.contexts)
        return terms

    def shared_view(self, student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
        """Compare the two answers [B, 1, H, W] to one view: ``sc``, [B]."""
        valid = torch.isfinite(teacher) if valid is None else valid
        return normalized_loss(student, teacher, valid, self.normalization, **self.contexts, trim=self.trim)
