"""A training split with more pairs of picture and echo behind it, whose depth nobody has measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from dataloaders.base import DepthDataset
from dataloaders.transforms import size_pair
from errors import OptionError

FLAG = "--pairs_dir"


class WithMorePairs(Dataset):
    """A training split followed by another one that was made without depth, which is 0 in its samples.

    It has those attributes of a :class:`~dataloaders.base.DepthDataset` that a training asks for; what is said about
    the data as a whole is said by the first.

    Attributes:
        parts: the two.
        labelled: [N] bool over both; False for all of the second.

    Raises:
        OptionError: the two are prepared differently, or supply different things.
    """

    def __init__(self, first: DepthDataset, more: DepthDataset) -> None:
        self.parts = (first, more)
        for what, ours, theirs in (
            ("prepared", first.preprocessing, more.preprocessing),
            ("loaded", set(first.modalities) - {"depth"}, set(more.modalities)),
        ):
            if ours != theirs:
                raise OptionError(f"{FLAG} {more.dataset_dir}: its pairs are {what} as {theirs}, the others as {ours}")
        self.dataset_dir, self.split = first.dataset_dir, first.split
        self.preprocessing, self.max_depth = first.preprocessing, first.max_depth
        self.ids = [*first.ids, *more.ids]
        self.labelled = np.concatenate([first.labelled, np.zeros(len(more), dtype=bool)])
        self._no_depth = {"depth": torch.zeros(1, *size_pair(first.image_size))} if "depth" in first.modalities else {}

    def __len__(self) -> int:
        return len(self.labelled)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        index = range(len(self))[index]  # negative indices, and IndexError past the end
        first, more = self.parts
        if index < len(first):
            return first[(epoch, index)]
        return {**more[(epoch, index - len(first))], **self._no_depth, "index": index}

    def state_of_files(self, modality: str) -> str:
        """Return a digest of the rows and files of both parts."""
        return " ".join(part.state_of_files(modality) for part in self.parts)

    def require_depth(self) -> None:
        """Make sure that there is a depth to learn from, as the first part does."""
        self.parts[0].require_depth()
