"""The tasks: what is trained against what."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from training.depth_losses import edge_aware_smoothness, edge_loss, l1_loss, low_pass
from training.metrics import valid_pixels
from training.task import Batch, Task, mean_over_images, model_inputs

RAMP = 0.2  # of the training: until then, ramped terms grow from 0 to their weights


class SupervisedDepthTask(Task):
    """Metric depth from what the student takes, against measured depth.

    The terms, each a mean over the labelled images: ``l1`` is the masked L1 distance in metres, ``smooth`` the
    edge-aware smoothness (under the picture's edges, where the batch has a picture), ``edge`` the distance between the
    depth gradients.

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

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the loss, its parts (unweighted), and the depth [B, 1, H, W] in metres."""
        valid = valid_pixels(batch["depth"])
        labelled = valid.flatten(1).any(dim=1)  # [B]
        depth, terms = self.compare(batch, valid)
        parts = {term: mean_over_images(value, labelled) for term, value in terms.items()}
        loss = torch.stack([weight * parts[term] for term, weight in self.weights_at(progress).items()]).sum()
        return {"loss": loss, "depth": depth, **parts}

    def compare(self, batch: Batch, valid: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the student's depth [B, 1, H, W] and its terms, [B] each."""
        depth = self.student(*model_inputs(self.student, batch))
        return depth, self.depth_terms(depth, batch, valid)

    def depth_terms(self, depth: Tensor, batch: Batch, valid: Tensor) -> dict[str, Tensor]:
        """Return those terms that look at the depth alone, [B] each."""
        terms = {
            "l1": lambda: l1_loss(depth, batch["depth"], valid),
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
