"""Adam and AdamW whose fused kernel goes through weights of convolutions without copying them, and Muon."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def in_memory_order(x: Tensor) -> Tensor:
    """Return a tensor that is dense in channels_last as a contiguous view of itself, any other as it is."""
    if x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1)
    return x


class _InMemoryOrder:
    """Before :class:`torch.optim.Adam`: its kernel is shown weights, gradients and moments in the order of memory.

    On a CPU the fused kernel makes contiguous copies of what is channels_last and copies the results back, which takes
    longer than the update. An update is of each number by itself, so that it is the same to the bit.
    """

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:
        has_complex = super()._init_group(group, *lists)  # type: ignore[misc]
        for tensors in lists:
            tensors[:] = map(in_memory_order, tensors)
        return has_complex


class Adam(_InMemoryOrder, torch.optim.Adam):
    """:class:`torch.optim.Adam`."""


class AdamW(_InMemoryOrder, torch.optim.AdamW):
    """:class:`torch.optim.AdamW`."""


def muon(groups: Any, lr: float, weight_decay: float = 0.0) -> Optimizer:
    """Return timm's Muon: momentum made orthogonal (Jordan et al., 2024).

    Each weight matrix moves equally far in all its directions. The weights [out, in, k, k] of a convolution are a
    matrix [out, in k k]; five steps of Newton and Schulz make the momentum of each orthogonal. The update is scaled to
    the size of AdamW's (Liu et al., 2025). What is no matrix, or too small a one, NAdamW updates at the same rate:
    norms, biases, gates, the first and the last convolution.

    Args:
        groups: of parameters.
        lr: learning rate.
        weight_decay: decoupled, as AdamW's.
    """
    from timm.optim.muon import Muon  # here: it takes seconds to import

    return Muon(groups, lr=lr, weight_decay=weight_decay, momentum=0.95, nesterov=True, betas=(0.9, 0.999))
