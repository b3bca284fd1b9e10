"""Every distillation loss: pure functions, then thin modules around them.

Response losses hold a student's depth map against a teacher's and return one value per image, [B]. Feature losses hold
one level of a student's features against the same level of a teacher's; they too return [B], except that of the Gram
matrices, which compares the images of a batch with each other and returns one scalar. ``training.task`` averages.

All run in float32, whatever the precision of the networks. Identical inputs give 0. The teacher's side is detached, so
gradients reach the student and the adapters alone. An image without a valid pixel gives 0 with a gradient of 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errors import OptionError
from training.depth_losses import l1_loss, masked_mean, masked_median, silog_loss

TEMPERATURE = 4.0  # of channel-wise distillation, as in its paper
UNIT_EPS = 1e-6  # the shortest vector that is brought to unit length
SPREAD_EPS = 1e-4  # the smallest mean deviation that a disparity map is divided by
SUPPORT = 32  # depths on which two choices among different bins are compared
NEAREST = 0.1  # metres; what is nearer counts as this near, so that a disparity and its slope stay bounded

# ------------------------------------------------------------------------------------------------------------ responses


def mse_loss(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean squared error in square metres over the valid pixels of [B, 1, H, W] maps: [B]."""
    return masked_mean((prediction.float() - target.float()).square(), valid)


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


# ------------------------------------------------------------------------------------------------------------- features


def feature_mse_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of [B, C, H, W] features: [B]. Hints (Romero et al., FitNets, ICLR 2015)."""
    return (student.float() - teacher.detach().float()).square().mean(dim=(1, 2, 3))


def feature_cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over the positions of 1 - cos(s, t), along the channels of [B, C, H, W] features: [B].

    Written as half the squared distance of the unit vectors, which is the same, and 0 where both are zero.
    """
    s = F.normalize(student.float(), dim=1, eps=UNIT_EPS)
    t = F.normalize(teacher.detach().float(), dim=1, eps=UNIT_EPS)
    return (s - t).square().sum(dim=1).mean(dim=(1, 2)) / 2


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
    t = _on_support(teacher.detach(), teacher_centres.detach(), between)
    return tempered_kl(s, t, temperature, dim=1).mean(dim=1)


def _on_support(choice: Tensor, centres: Tensor, between: tuple[float | Tensor, float | Tensor]) -> Tensor:
    """Logits [B, N, H, W] over bins at [B, N] metres -> log-probabilities on the support, [B, S, H * W]."""
    low, high = between
    with torch.autocast(choice.device.type, enabled=False):
        support = torch.arange(SUPPORT, device=choice.device, dtype=torch.float32)
        share = ((centres.float() - low) / (high - low)).clamp(1e-6, 1)  # [B, N], of the range; the root of 0 is steep
        place = share.sqrt() * (SUPPORT - 1)  # in steps
        split = (1 - (place[:, None] - support[:, None]).abs()).clamp(min=0)  # [B, S, N], of which two are above 0
        kernel = torch.exp(-(support[:, None] - support).abs() / 2)  # [S, S]
        spread = (kernel / kernel.sum(dim=0)) @ split  # [B, S, N]; a column sums up to 1
        return (spread @ choice.float().softmax(dim=1).flatten(2)).log()


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
    "l1": l1_loss,
    "mse": mse_loss,
    "silog": silog_loss,
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
        kind: str = "cwd",
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
        teacher = teacher.detach()
        if teacher.shape[-2:] != student.shape[-2:]:  # the teacher's: a resize without a gradient repeats on any device
            size = student.shape[-2:]
            teacher = F.interpolate(teacher.float(), size, mode="bilinear", align_corners=False, antialias=True)
        if level in self.adapters:
            student = self.adapters[level](student)
        if self.kind == "cwd":
            return channel_wise_loss(student, teacher, self.temperature)
        return FEATURE_LOSSES[self.kind](student, teacher)


BIN_LOSSES = ("widths", "shared_support", "wasserstein")
TASK_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"l1": l1_loss, "silog": silog_loss}
Answer = tuple[Tensor, Mapping[str, Tensor]]  # depth [B, 1, H, W] in metres, and the features of models.adabins_...


class DistillationLoss(nn.Module):
    """What teaches an AdaBins student: five terms, one value per image, [B] each, and their weights.

    ``task``: ``task_loss`` between the student's depth and the measured one. ``response``: mean squared difference of
    the two depths in square metres. ``feature``: the sum over ``levels`` of the mean cosine distance. ``bin``: as
    ``bin_loss`` says. ``sparse``: mean |residual| in metres. And, with a weight, ``chamfer``. The teacher's side is
    detached.

    Args:
        lambda_task, lambda_response, lambda_feature, lambda_bin, lambda_sparse, lambda_chamfer: weights.
        temperature: of the bin loss.
        bin_loss: ``widths``, ``shared_support`` or ``wasserstein``.
        task_loss: ``l1`` or ``silog``.
        levels: whose features are compared.

    Raises:
        OptionError: an unknown kind of loss.
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
        bin_loss: str = "widths",
        task_loss: str = "l1",
        levels: Sequence[str] = ("x1", "x2", "x3", "x4", "x5"),
    ) -> None:
        super().__init__()
        for kind, known in ((bin_loss, BIN_LOSSES), (task_loss, TASK_LOSSES)):
            if kind not in known:
                raise OptionError(f"there is no loss {kind!r}; known are {', '.join(known)}")
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
        terms["response"] = mse_loss(depth, taught.detach(), torch.ones_like(valid))
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
    """

    ROWS = (  # begin and end; weights of task, response, feature (at both ends) and bin
        ((0.0, 0.2), 0.5, 1.0, (0.5, 1.0), 0.5),
        ((0.2, 0.6), 0.75, 0.65, (1.0, 0.75), 0.35),
        ((0.6, 1.0), 1.0, 0.3, (0.5, 0.5), 0.2),
    )

    def __init__(self, lambda_sparse: float = 0.1, lambda_chamfer: float = 0.0, **options: Any) -> None:
        super().__init__(lambda_sparse=lambda_sparse, lambda_chamfer=lambda_chamfer, **options)

    def weights_at(self, progress: float) -> dict[str, float]:
        """Return the weight of each term after a share of the training in [0, 1]."""
        row = next((row for row in self.ROWS if progress < row[0][1]), self.ROWS[-1])
        (begin, end), task, response, (first, last), bins = row
        feature = first + (last - first) * (progress - begin) / (end - begin)
        return {**self.weights, "task": task, "response": response, "feature": feature, "bin": bins}
