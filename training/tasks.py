"""The tasks: what is trained against what."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter

from training.depth_losses import TASK_LOSSES, edge_aware_smoothness, edge_loss, l1_loss, low_pass
from training.metrics import images_with, valid_pixels
from training.task import Batch, Guest, Task, count_images, in_scene, label_weight, mean_over_images, model_inputs
from training.teacher_cache import TeacherCache
from utils_distillation_loss import (
    DisparityDistillationLoss,
    DistillationLoss,
    FeatureDistillation,
    ResponseDistillation,
)

RAMP = 0.2  # of the training: until then, ramped terms grow from 0 to their weights


def unanswered(taught: Tensor) -> Tensor:
    """Return NaN for each image of which a network's map [B, 1, H, W] holds no number at all, else 0: [B].

    Single pixels may be without an answer. A teacher that answers nothing is broken, and a student would be at no
    distance from it: the NaN stops the run (``training.loop.NotANumberGuard``).
    """
    return torch.where(taught.isfinite().flatten(1).any(dim=1), 0.0, torch.nan)


class SupervisedDepthTask(Task):
    """Metric depth from what the student takes, against measured depth.

    The terms, each a mean over the labelled images: a key of ``TASK_LOSSES`` is that distance (``l1``: the masked L1
    distance in metres), ``smooth`` the edge-aware smoothness (under the picture's edges, where the batch has a
    picture), ``edge`` the distance between the depth gradients.

    Args:
        student: a depth model.
        weights: by term; a term that is not named is not computed.
        ramped: the terms whose weight grows linearly from 0 over the first fifth of the training.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"depth"})  # beside what the student takes

    def __init__(self, student: nn.Module, weights: Mapping[str, float], ramped: Collection[str] = ()) -> None:
        super().__init__(student)
        self.weights = dict(weights)
        self.ramped = frozenset(ramped)

    def weights_at(self, progress: float) -> dict[str, float]:
        """Return the weight of each term after a share of the training in [0, 1]."""
        grown = min(progress / RAMP, 1.0)
        return {term: weight * (grown if term in self.ramped else 1.0) for term, weight in self.weights.items()}

    def forward(self, batch: Batch, progress: float) -> dict[str, Any]:
        """Return the loss, its parts (unweighted), their counts, and the depth [B, 1, H, W] in metres."""
        valid = valid_pixels(batch["depth"])
        labelled = images_with(valid)  # [B]
        depth, terms = self.compare(batch, valid)
        parts = {term: mean_over_images(value, labelled) for term, value in terms.items()}
        loss = torch.stack([weight * parts[term] for term, weight in self.weights_at(progress).items()]).sum()
        loss = loss * label_weight(batch)
        counts = dict.fromkeys(parts, count_images(labelled))
        return {"loss": loss, "depth": depth, **parts, "counts": counts}

    def compare(self, batch: Batch, valid: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the student's depth [B, 1, H, W] and its terms, [B] each."""
        depth = self.student(*model_inputs(self.student, batch))
        return depth, self.depth_terms(depth, batch, valid)

    def depth_terms(self, depth: Tensor, batch: Batch, valid: Tensor) -> dict[str, Tensor]:
        """Return those terms that look at the depth alone, [B] each."""
        terms: dict[str, Callable[[], Tensor]] = {
            **{name: partial(loss, depth, batch["depth"], valid) for name, loss in TASK_LOSSES.items()},
            "smooth": lambda: edge_aware_smoothness(depth, batch.get("rgb")),
            "edge": lambda: edge_loss(depth, batch["depth"], valid),
        }
        return {term: term_of() for term, term_of in terms.items() if term in self.weights}


class BaseResidualTask(SupervisedDepthTask):
    """Two more terms for a student that answers with a base and a residual (``models.base_residual``).

    ``base`` is the L1 distance in metres between the base and the measured depth behind a low-pass filter, ``sparse``
    the mean of |residual| in metres: what stands in a room is little beside its walls.
    """

    LOW_PASS = 1 / 16  # the Gaussian's sigma, as a share of the image's side

    def compare(self, batch: Batch, valid: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the student's depth [B, 1, H, W] and its terms, [B] each."""
        depth, features = self.student(*model_inputs(self.student, batch), return_features=True)
        coarse = low_pass(batch["depth"], valid, self.LOW_PASS * depth.shape[-1])  # [B, 1, H, W]
        terms = {
            **self.depth_terms(depth, batch, valid),
            "base": l1_loss(features["base"], coarse, valid),
            "sparse": features["residual"].abs().mean(dim=(1, 2, 3)),
        }
        return depth, terms


class DistillationTask(Task):
    """Metric depth from echoes, from measured depth where there is some and from a frozen teacher everywhere.

    loss = lambda_task * labelled * task + lambda_kd * response + lambda_feat * feature: the distance of the labelled
    images from measured depth, the teacher's answer at every pixel of every image (also at the holes of a label), and
    the sum of the feature losses over the levels. The teacher is given the student's view; of a scene that was scaled
    (``scale`` [B] in the batch), it sees the same picture, and its metres are scaled with it.

    ``labelled`` is the share of the batch that has a label, so that an image's label weighs as much as the teacher's
    answer to an image does, however few the labels are. Without it, two labelled images of a batch of 16 would pull as
    hard as all 16 answers: noise that slows the student down.

    Args:
        student: a depth model that takes ``audio``.
        teacher: a depth model that takes ``rgb``, with its weights; it stays as it is.
        response: holds the student's depth against the teacher's answer.
        features: holds the levels against each other; None computes no features.
        lambda_task: weight of the distance from the measured depth.
        lambda_kd: weight of the response.
        lambda_feat: weight of the sum over the levels.
        task_loss: that distance, a key of ``TASK_LOSSES``.
        schedule: a key of ``SCHEDULES``. ``adaptive`` goes linearly, over the training, from half of ``lambda_task``
            to the whole, and from the whole of the other two to 0.3 of them.

    Attributes:
        cache: None, or where the answers to the pictures of training are, before their augmentation; there are no
            features then, and training looks at no picture.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"audio", "rgb", "depth"})
    uses_unlabelled: ClassVar[bool] = True
    # Shares of lambda_task, and of lambda_kd and lambda_feat, at the beginning and at the end.
    SCHEDULES: ClassVar[dict[str, tuple[tuple[float, float], tuple[float, float]]]] = {
        "constant": ((1.0, 1.0), (1.0, 1.0)),
        "adaptive": ((0.5, 1.0), (1.0, 0.3)),
    }

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        response: ResponseDistillation,
        features: FeatureDistillation | None = None,
        *,
        lambda_task: float = 1.0,
        lambda_kd: float = 1.0,
        lambda_feat: float = 0.0,
        task_loss: str = "l1",
        schedule: str = "constant",
    ) -> None:
        super().__init__(student)
        self.teacher = Guest(teacher)
        self.response = response
        self.features = features
        self.lambda_task = lambda_task
        self.lambda_kd = lambda_kd
        self.lambda_feat = lambda_feat
        self.task_loss = TASK_LOSSES[task_loss]
        self.schedule = schedule
        self.cache: TeacherCache | None = None

    def weights(self, progress: float) -> tuple[float, float, float]:
        """Return the weights of task, response and feature after a share of the training in [0, 1]."""
        task, taught = (start + (end - start) * progress for start, end in self.SCHEDULES[self.schedule])
        return self.lambda_task * task, self.lambda_kd * taught, self.lambda_feat * taught

    def forward(self, batch: Batch, progress: float) -> dict[str, Any]:
        """Return the loss, the depth [B, 1, H, W] in metres, and the parts, unweighted, with the count of ``task``.

        These are ``task``, ``labelled``, ``response`` and, with features, ``feature`` and ``feature_<level>`` of each.
        """
        inputs = model_inputs(self.student, batch)
        matched: dict[str, Tensor] = {}
        if self.features is None:
            depth, taught = self.student(*inputs), self.taught(batch)  # both [B, 1, H, W]
        else:
            depth, heard = self.student(*inputs, return_features=True)
            taught, seen = self.teacher(batch, return_features=True)
            matched = {
                f"feature_{level}": mean_over_images(value) if value.ndim else value
                for level, value in self.features(heard, seen).items()
            }
        if self.teacher.model.output == "metres":  # a disparity has none to scale
            taught = in_scene(taught, batch)
        valid = valid_pixels(batch["depth"])
        labelled = images_with(valid)  # [B]
        measured = self.task_loss(depth, batch["depth"], valid)  # [B], 0 without a label
        parts = {
            "task": mean_over_images(measured, labelled),
            "labelled": mean_over_images(labelled.float()),
            "response": mean_over_images(self.response(depth, taught) + unanswered(taught)),
        }
        if matched:
            parts |= {"feature": torch.stack(list(matched.values())).sum(), **matched}
        task, kd, feat = self.weights(progress)
        # Over all images at once: of several processes, each may have another share of the labels.
        loss = task * mean_over_images(measured) + kd * parts["response"] + feat * parts.get("feature", 0.0)
        return {"loss": loss, "depth": depth, **parts, "counts": {"task": count_images(labelled)}}

    def taught(self, batch: Batch) -> Tensor:
        """Return the teacher's answer [B, 1, H, W] to a batch of training, asked for now or long ago."""
        if self.cache is None:
            return self.teacher(batch)
        answer = self.cache.read(batch["index"], batch["depth"].device)
        if "mirrored" not in batch:
            return answer
        return torch.where(batch["mirrored"][:, None, None, None], answer.flip(-1), answer)

    def distance(self, batch: Batch) -> Tensor:
        """Return how far the student is from a teacher that gives metres, the mean over the pixels in metres: [B]."""
        metres = ResponseDistillation("l1", max_depth=self.response.max_depth)
        taught = self.teacher(batch)
        return metres(self.student(*model_inputs(self.student, batch)), taught) + unanswered(taught)


class AdaBinsDistillationTask(Task):
    """AdaBins: an ear learns from measured depth and from an eye that learns along, or has learnt before.

    loss = sum of weight * term over the terms of ``utils_distillation_loss.DistillationLoss``. As in
    :class:`DistillationTask`, a label weighs as much as the teacher's answer to one image: under a teacher, the terms
    that compare with measured depth count ``labelled`` times, the share of the batch that has a label. Where measured
    depth alone teaches, images without a label do not count: for the student in ``finetune``, and for a teacher that
    trains, with ``teacher_task`` (of weight 1), ``teacher_sparse`` and ``teacher_chamfer``.

    The phases follow each other: ``teacher`` trains the teacher alone, ``distill`` the student under it, ``finetune``
    the student by measured depth alone, without a look at the picture. The schedule of the learning rate begins anew
    with each, and a curriculum runs over ``distill`` alone.

    Of a scene that was scaled (``scale`` [B] in the batch) a teacher sees the same picture: its answer is scaled for
    the student, and what it learns from is scaled back.

    Args:
        student: a network that takes ``audio`` and answers with bins (``models.adabins_distillation_model``).
        teacher: likewise of ``rgb``; None where there are no pictures, or where nobody looks at them.
        loss: the terms and their weights.
        frozen: the teacher does not train, but in a phase of its own.
        phases: names and lengths, in any unit.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"audio", "depth"})  # and the pictures, where there is a teacher
    uses_unlabelled: ClassVar[bool] = True
    MEASURED = frozenset({"task", "chamfer"})  # the terms that compare with measured depth

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        loss: DistillationLoss,
        *,
        frozen: bool = False,
        phases: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(student)
        phases = phases or {"distill": 1.0}
        guest = teacher is not None and frozen and "teacher" not in phases
        self.teacher = Guest(teacher) if guest else teacher  # type: ignore[arg-type]
        self.loss = loss
        self.frozen = frozen
        total = sum(phases.values())
        ends = [end / total for end in itertools.accumulate(phases.values())]
        self.phases = list(
            zip(phases, [0.0, *ends[:-1]], ends, strict=True)
        )  # name, begin, end: shares of the training
        self.restarts = tuple(ends[:-1])

    def phase_at(self, progress: float) -> tuple[str, float]:
        """Return the phase after a share of the training in [0, 1], and the share of the phase."""
        name, begin, end = next((phase for phase in self.phases if progress < phase[2]), self.phases[-1])
        return name, (progress - begin) / (end - begin)

    def watched(self) -> dict[str, nn.Module]:
        """Return the teacher, whose metrics stand beside the student's."""
        if self.teacher is None:
            return {}
        return {"teacher": self.teacher.model if isinstance(self.teacher, Guest) else self.teacher}

    def forward(self, batch: Batch, progress: float) -> dict[str, Any]:
        """Return the loss, the depth [B, 1, H, W] in metres of the network that learns, and the parts, unweighted.

        The parts over the labelled images come with their counts.
        """
        phase, share = self.phase_at(progress)
        valid = valid_pixels(batch["depth"])
        weights = self.loss.weights_at(1.0 if phase == "finetune" else share)
        looks = self.teacher is not None and phase != "finetune"
        learns = looks and (phase == "teacher" or not self.frozen)
        seen = self.ask_teacher(batch, learns) if looks else None
        taught = self.in_scene(seen, batch) if seen else None
        heard = None if phase == "teacher" else self.student(*model_inputs(self.student, batch), return_features=True)

        terms: dict[str, Tensor] = {}
        if heard is not None:
            terms = self.loss(heard, taught, batch["depth"], valid)
        if learns and seen is not None:
            depth = self.as_seen(batch)
            own = self.loss.own_terms(seen, depth, valid_pixels(depth))
            terms |= {f"teacher_{term}": value for term, value in own.items()}
            weights |= {f"teacher_{term}": self.loss.weights[term] for term in own} | {"teacher_task": 1.0}
        labelled = images_with(valid)  # [B]
        alone = phase != "distill" or taught is None  # nothing but measured depth teaches: the labelled images count
        parts, counts, total = {}, {}, []
        number = count_images(labelled)
        for term, value in terms.items():
            untaught = alone or term.startswith("teacher_")
            measured = untaught or term in self.MEASURED
            parts[term] = mean_over_images(value, labelled if measured else None)
            if measured:
                counts[term] = number
            # Over all images at once: of several processes, each may have another share of the labels.
            over_all = mean_over_images(torch.where(labelled, value, 0.0)) if measured and not untaught else parts[term]
            total.append(weights[term] * over_all * (label_weight(batch) if untaught else 1.0))
        answer = heard if heard is not None else taught
        assert answer is not None
        parts["labelled"] = mean_over_images(labelled.float())
        return {"loss": torch.stack(total).sum(), "depth": answer[0], **parts, "counts": counts}

    def in_scene(self, seen: Any, batch: Batch) -> Any:
        """Return a teacher's answer in the metres of scaled scenes: its depth, and the centres of its bins.

        What the scaling brings beyond the cap counts as the cap, as measured depth does: the student says no more.
        """
        if "scale" not in batch:
            return seen
        student: Any = self.student
        cap = student.config["max_depth"]
        depth, features = seen
        bins = {"centres": in_scene(features["centres"], batch).clamp(max=cap)} if "centres" in features else {}
        return in_scene(depth, batch).clamp(max=cap), {**features, **bins}

    def as_seen(self, batch: Batch) -> Tensor:
        """Return the measured depth [B, 1, H, W] of the scenes in the size that their pictures show.

        What the scaling brought to the cap is not known any more: 0, as without a measurement.
        """
        depth: Tensor = batch["depth"]
        if "scale" not in batch:
            return depth
        student: Any = self.student
        scale = batch["scale"][:, None, None, None]
        capped = (depth >= student.config["max_depth"]) & (scale > 1)
        return torch.where(capped, 0.0, depth / scale)

    def ask_teacher(self, batch: Batch, learns: bool) -> Any:
        """Return the teacher's depth and features; without a gradient, and in eval mode, unless it learns."""
        if isinstance(self.teacher, Guest):
            return self.teacher(batch, return_features=True)
        assert self.teacher is not None
        self.teacher.train(self.training and learns)
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            return self.teacher(*model_inputs(self.teacher, batch), return_features=True)


class MeasuredDisparity(nn.Module):
    """Measured depth in the place of a teacher: what is known is its inverse; pixels without a measurement are NaN."""

    def forward(self, batch: Batch) -> Tensor:
        """Return 1 / depth [B, 1, H, W] in 1/m, NaN where there is none."""
        depth = batch["depth"]
        return torch.where(valid_pixels(depth), 1 / depth.clamp(min=1e-6), torch.nan)


class DisparityDistillationTask(Task):
    """Disparity from pictures, from the answers of frozen teachers: no measured depth is needed.

    A batch has a view, ``rgb``, and closer ``local`` views of its parts (``dataloaders.crops``). At each step one of
    the teachers answers to all of them in one call, and the student to the view; the terms are those of
    ``utils_distillation_loss.DisparityDistillationLoss``. Which teacher it is, is drawn: choosing one beats averaging
    all (Distill Any Depth, arXiv 2502.19204). The draw follows from the seed and the step, so that all parts of a batch
    and all processes ask the same one.

    One of the teachers may be measured depth (:class:`MeasuredDisparity`). It has neither tokens nor closer views: in
    its steps ``lg`` and ``feat`` count no image, and the other terms those that have measured depth.

    Args:
        student: a network of disparities.
        teachers: likewise, each with the tokens ``t4`` among its features; or :class:`MeasuredDisparity`.
        losses: one for each, equal but for the teachers' widths.
        shares: how often each is drawn; they need not sum up to 1.
        encoder: the part of the student that learns at another rate.
        encoder_rate: that rate, as a factor on ``--learning_rate``.
        bf16_teachers: whether they compute in bfloat16; else in float32.
        seed: of the draw.

    Attributes:
        cache: None, or where the answers of a single teacher are kept, whose views never change; ``lg`` and ``feat``
            then have no weight.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"rgb"})  # and depth, where measured depth teaches
    uses_unlabelled: ClassVar[bool] = True

    def __init__(
        self,
        student: nn.Module,
        teachers: Sequence[nn.Module],
        losses: Sequence[DisparityDistillationLoss],
        shares: Sequence[float],
        *,
        encoder: nn.Module,
        encoder_rate: float = 1.0,
        bf16_teachers: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(student)
        for number, teacher in enumerate(teachers):
            guest = teacher if isinstance(teacher, MeasuredDisparity) else Guest(teacher)
            self.add_module(f"teacher{number}", guest)
        self.losses = nn.ModuleList(losses)
        self.terms = [term for term in losses[0].weights if any(loss.weights[term] > 0 for loss in losses)]
        self.shares = [share / sum(shares) for share in shares]
        self.encoder_parameters = {id(parameter) for parameter in encoder.parameters()}
        self.encoder_rate = encoder_rate
        self.bf16_teachers = bf16_teachers
        self.seed = seed
        self.cache: TeacherCache | None = None

    def trainable_groups(self) -> dict[float, list[Parameter]]:
        """Return the trainable parameters by their factor on ``--learning_rate``."""
        groups: dict[float, list[Parameter]] = {1.0: []}  # first: the rate that the log shows
        for parameter in self.trainable():
            rate = self.encoder_rate if id(parameter) in self.encoder_parameters else 1.0
            groups.setdefault(rate, []).append(parameter)
        return groups

    def forward(self, batch: Batch, progress: float) -> dict[str, Any]:
        """Return the loss, its parts (unweighted) with the images that they count, and the disparity [B, 1, H, W]."""
        number = self.draw(progress)
        teacher: Any = getattr(self, f"teacher{number}")
        loss: Any = self.losses[number]
        disparity, features = self.student(*model_inputs(self.student, batch), return_features=True)
        counted = torch.ones(len(disparity), dtype=torch.bool, device=disparity.device)
        weight: Tensor | float = 1.0
        broken: Tensor | float = 0.0
        if isinstance(teacher, MeasuredDisparity):
            counted, weight = images_with(valid_pixels(batch["depth"])), label_weight(batch)  # [B]
            terms = loss(disparity, teacher(batch))
        elif self.cache is not None:
            taught = self.cache.answer(batch["index"], lambda: self.ask(teacher, batch)[0], disparity.device)
            terms = loss(disparity, taught)
        else:
            taught, closer, seen = self.ask(teacher, batch)
            local = (disparity, closer, batch["boxes"]) if closer.shape[1] else None
            broken = unanswered(taught).mean()
            terms = loss(disparity, taught, local=local, tokens=(features["t4"], seen))
        means = {term: mean_over_images(value, counted) for term, value in terms.items()}
        total = torch.stack([loss.weights[term] * mean for term, mean in means.items()]).sum() * weight + broken
        # Every term in every step, since the log has a column for each; one that this teacher lacks counts no image.
        images = count_images(counted)
        parts = {term: means.get(term, torch.zeros_like(total)) for term in self.terms}
        counts = {term: images if term in means else torch.zeros_like(images) for term in self.terms}
        return {"loss": total, "depth": disparity, **parts, "counts": counts}

    @torch.compiler.disable
    def draw(self, progress: float) -> int:
        """Return the number of the teacher of the step before which a share of the training in [0, 1] is done."""
        rng = np.random.default_rng((self.seed, int(progress * 2**53)))  # a float64 in [0, 1), to its last bit
        return int(rng.choice(len(self.shares), p=self.shares))

    def distance(self, batch: Batch) -> Tensor:
        """Return how far the student is, in ``sc``, from the networks that teach it, by their shares: [B]."""
        disparity = self.student(*model_inputs(self.student, batch))
        total, weight = torch.zeros(len(disparity), device=disparity.device), 0.0
        for number, share in enumerate(self.shares):
            teacher: Any = getattr(self, f"teacher{number}")
            loss: Any = self.losses[number]
            if not isinstance(teacher, MeasuredDisparity):
                taught, _, _ = self.ask(teacher, {"rgb": batch["rgb"]})
                apart = loss.shared_view(disparity, taught) + unanswered(taught)
                total, weight = total + share * apart, weight + share
        return total / weight

    def ask(self, teacher: Guest, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return a teacher's answers to the view [B, 1, H, W] and to its parts [B, N, 1, H, W], and its tokens."""
        views = batch["rgb"][:, None]
        if "local" in batch:
            views = torch.cat([views, batch["local"]], dim=1)  # [B, 1 + N, 3, H, W]
        shape = views.shape[:2]
        with torch.autocast(views.device.type, torch.bfloat16, enabled=self.bf16_teachers):
            answer, features = teacher({"rgb": views.flatten(0, 1)}, return_features=True)
        answer = answer.float().unflatten(0, shape)
        return answer[:, 0], answer[:, 1:], features["t4"].unflatten(0, shape)[:, 0]
