"""Adam and AdamW whose fused kernel goes through weights of convolutions without copying them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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
