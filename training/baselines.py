"""Predictors that look at nothing: what a number has to be held against."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from errors import UserError, from_worker


class FixedPrediction(nn.Module):
    """Answers with the same depth map [1, 1, H, W], whatever the sample."""

    inputs = ("depth",)  # for its batch size and device alone

    def __init__(self, depth: Tensor) -> None:
        super().__init__()
        self.register_buffer("depth", depth)

    def forward(self, like: Tensor) -> Tensor:
        """Return the map once per image of ``like`` [B, 1, H, W]: [B, 1, H, W] in metres."""
        depth: Tensor = self.depth  # type: ignore[assignment]
        return depth.expand(len(like), -1, -1, -1)


def fit_baselines(loader: DataLoader) -> dict[str, FixedPrediction]:
    """Return the constant and the mean-depth-map predictors of a training set.

    Both are means over the valid pixels of its labelled pairs: over all of them, and pixel by pixel. A pixel that was
    never measured takes the constant. Where no pixel was measured there is none: the dict is empty.

    Args:
        loader: yields ``depth`` [B, 1, S, S] in metres, 0 = invalid.

    Raises:
        DataError: of a file that cannot be read.
    """
    total: Tensor | float = 0.0
    count: Tensor | float = 0.0
    try:
        for batch in loader:
            depth = batch["depth"].double()  # [B, 1, S, S]
            total = total + depth.sum(dim=0, keepdim=True)  # invalid pixels are 0
            count = count + (depth > 0).sum(dim=0, keepdim=True)
    except UserError as error:
        raise from_worker(error) from None
    sums, counts = torch.as_tensor(total), torch.as_tensor(count)  # [1, 1, S, S]
    if counts.sum() == 0:
        return {}
    constant = sums.sum() / counts.sum()
    mean_map = torch.where(counts > 0, sums / counts.clamp(min=1), constant)
    return {
        "constant": FixedPrediction(constant.float().expand_as(mean_map).clone()),
        "mean_map": FixedPrediction(mean_map.float()),
    }
