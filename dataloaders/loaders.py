"""Loaders that draw the same samples for any number of workers and processes, and after a resume."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from dataloaders.base import DepthDataset
from dataloaders.more_pairs import WithMorePairs
from dataloaders.sample_cache import SampleCache
from dataloaders.workers import start_worker, usable_workers
from errors import DataError, OptionError


class EpochBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) pairs for one of several processes; the order comes from (seed, epoch) alone.

    Training (``shuffle``): every process draws the same order and takes its share of each global batch, so that one
    global batch holds the same pairs under any number of processes. Evaluation: process r takes rows r, r + world, ...
    in order, without padding or repetition, so processes may differ by one pair and by one batch; gather after the last
    batch, not in each.

    ``start_epoch`` is to be called before each epoch. (It is not named ``set_epoch`` because Lightning Fabric calls
    that with a counter of its own, which starts at 0 again after a resume.)

    Args:
        indices: rows to draw from.
        batch_size: the global one, over all processes.
        drop_last: leave out the last incomplete batch; a set smaller than one batch is kept as one.
        steps: batches of an epoch of training; None goes once through the rows. Otherwise the epochs cut an endless
            row of permutations into pieces of that length, all batches full: however few the rows are, each is drawn
            as often as any other, and augmented anew each time.

    Raises:
        OptionError: ``batch_size`` cannot be divided over the processes.
        DataError: nothing to draw from, or fewer pairs than processes in training.
    """

    def __init__(
        self,
        indices: Sequence[int],
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        steps: int | None = None,
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise OptionError(f"--batch_size {batch_size} cannot be divided evenly over {world_size} process(es)")
        if len(indices) == 0:
            raise DataError("there is no pair to draw a batch from")
        if shuffle and len(indices) < world_size:
            raise DataError(f"{len(indices)} training pair(s) cannot be shared by {world_size} processes")
        self.indices = np.asarray(indices, dtype=np.int64)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.drop_last = drop_last and len(indices) >= batch_size
        self.steps = steps if shuffle else None
        self.epoch = 0

    def start_epoch(self, epoch: int) -> None:
        """Draw this epoch's order, and this epoch's augmentation, from now on."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        drawn = self._draw()
        for start in range(0, len(drawn), self.batch_size):
            share = drawn[start : start + self.batch_size][self.rank :: self.world_size]
            if share:
                yield share

    def __len__(self) -> int:
        if self.steps:
            return self.steps
        whole, rest = divmod(self._end(), self.batch_size)
        return whole + (rest > self.rank)

    def _draw(self) -> list[tuple[int, int]]:
        """Return this epoch's pairs for all processes, in order."""
        if not self.steps:
            return self._pass(self.epoch)[: self._end()]
        length, rows = self.steps * self.batch_size, len(self.indices)
        first = max(self.epoch - 1, 0) * length  # of all that the run draws
        passes = range(first // rows, (first + length - 1) // rows + 1)
        skipped = first - passes[0] * rows
        return [pair for number in passes for pair in self._pass(number + 1)][skipped : skipped + length]

    def _pass(self, number: int) -> list[tuple[int, int]]:
        """Return all rows once, in an order that follows from the number; so does their augmentation."""
        order = self.indices
        if self.shuffle:
            order = np.random.default_rng((self.seed, number)).permutation(order)
        return [(number, index) for index in order.tolist()]

    def _end(self) -> int:
        """One past the last row of the order that is used."""
        total = len(self.indices)
        rest = total % self.batch_size
        if self.drop_last:
            return total - rest
        # In training all processes take as many steps, and of each as many pairs: they wait for each other in every
        # part of a batch (``training.micro_batches``).
        return total - rest % self.world_size if self.shuffle else total


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Samples -> batch: tensors stacked with B in front, ``id`` a list, ``index`` an int64 tensor [B].

    Raises:
        DataError: depth maps of different native sizes in one batch.
    """
    batch: dict[str, Any] = {}
    for key, first in samples[0].items():
        values = [sample[key] for sample in samples]
        if isinstance(first, Tensor):
            if any(value.shape != first.shape for value in values):
                raise DataError(f"{key} has different sizes in one batch ({samples[0]['id']} ...); use --batch_size 1")
            batch[key] = torch.stack(values)  # [B, C, H, W]
        elif key == "index":
            batch[key] = torch.tensor(values, dtype=torch.int64)  # [B]
        else:
            batch[key] = values
    return batch


def create_loader(
    dataset: DepthDataset | WithMorePairs,
    batch_size: int,
    *,
    shuffle: bool,
    seed: int = 0,
    num_workers: int = 4,
    rank: int = 0,
    world_size: int = 1,
    drop_last: bool | None = None,
    only_labelled: bool = True,
    steps: int | None = None,
) -> DataLoader:
    """Make the loader of one data set for one process. ``loader.batch_sampler.start_epoch(epoch)`` begins an epoch.

    Where the data set has a ``cache_dir``, what its cache lacks is prepared here.

    Args:
        dataset: the split to draw from.
        batch_size: the global one, divided over ``world_size`` processes.
        shuffle: True for training, False for evaluation (all rows, in order).
        seed: of the order; augmentation has the data set's own.
        num_workers: processes that read, and fill the cache, at most one for each core; they change the speed, never a
            sample.
        rank: which of the training processes this one is.
        world_size: how many of them there are.
        drop_last: leave out the last incomplete batch; None does so in training.
        only_labelled: in training, draw only pairs with a depth label, so an epoch holds just those.
        steps: batches of an epoch of training, however many pairs there are; None goes once through them.

    Raises:
        OptionError: ``batch_size`` cannot be divided over the processes.
        DataError: no pair has a label and ``only_labelled`` is set; a sample for the cache cannot be prepared.
    """
    indices: np.ndarray = np.arange(len(dataset))
    if shuffle and only_labelled:
        indices = np.flatnonzero(dataset.labelled)
        if len(indices) == 0:
            raise DataError(
                f"{dataset.dataset_dir}: no {dataset.split} pair has a depth label to learn from; "
                "check the depth columns and --label_fraction"
            )
    sampler = EpochBatchSampler(
        indices.tolist(),
        batch_size,
        shuffle=shuffle,
        seed=seed,
        rank=rank,
        world_size=world_size,
        drop_last=shuffle if drop_last is None else drop_last,
        steps=steps,
    )
    num_workers = usable_workers(num_workers)
    for part in dataset.parts if isinstance(dataset, WithMorePairs) else (dataset,):
        if part.cache_dir is not None and part.cache is None:
            part.cache = SampleCache(part.cache_dir, part, num_workers)
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        persistent_workers=num_workers > 0,
        prefetch_factor=4 if num_workers > 0 else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=start_worker,
        # The loader draws a number at each epoch; from a generator of its own it leaves the global state alone.
        generator=torch.Generator().manual_seed(seed),
    )


def create_loaders(
    datasets: Mapping[str, DepthDataset | WithMorePairs],
    batch_size: int,
    *,
    seed: int = 0,
    num_workers: int = 4,
    rank: int = 0,
    world_size: int = 1,
    only_labelled: bool = True,
    steps: int | None = None,
) -> dict[str, DataLoader]:
    """Make one loader per split: ``train`` shuffles and drops the incomplete batch, others keep every row in order."""
    return {
        split: create_loader(
            dataset,
            batch_size,
            shuffle=split == "train",
            seed=seed,
            num_workers=num_workers,
            rank=rank,
            world_size=world_size,
            only_labelled=only_labelled,
            steps=steps,
        )
        for split, dataset in datasets.items()
    }
