"""The tasks: what is trained against what."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from training.depth_losses import edge_aware_smoothness, l1_loss
from training.metrics import valid_pixels
from training.task import Batch, Task, mean_over_images, model_inputs


class RGBDepthTask(Task):
    """Metric depth from a picture: masked L1 against the measured depth, and edge-aware smoothness.

    Args:
        student: a depth model that takes ``rgb``.
        lambda_l1: weight of the L1 distance in metres.
        lambda_smooth: weight of the smoothness term.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"rgb", "depth"})

    def __init__(self, student: nn.Module, lambda_l1: float = 1.0, lambda_smooth: float = 0.1) -> None:
        super().__init__(student)
        self.lambda_l1 = lambda_l1
        self.lambda_smooth = lambda_smooth

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the loss, its parts ``l1`` and ``smooth`` (unweighted), and the depth [B, 1, H, W] in metres."""
        depth = self.student(*model_inputs(self.student, batch))  # [B, 1, H, W]
        valid = valid_pixels(batch["depth"])
        labelled = valid.flatten(1).any(dim=1)  # [B]
        parts: dict[str, Any] = {
            "l1": mean_over_images(l1_loss(depth, batch["depth"], valid), labelled),
            "smooth": mean_over_images(edge_aware_smoothness(depth, batch["rgb"]), labelled),
        }
        loss = self.lambda_l1 * parts["l1"] + self.lambda_smooth * parts["smooth"]
        return {"loss": loss, "depth": depth, **parts}
