"""What a frozen teacher answers to pictures that never change, on the disk: asked once, read in every later epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from errors import TrainingError
from training.mapped_rows import MappedRows

COMPARED = 8  # samples of which a cache's key follows from every value


class TeacherCache:
    """One square map for each row of a split, in float16: ``<output>.npy`` [N, S, S] of a :class:`MappedRows`.

    Also a map that was just computed is handed out in float16, so that a run learns the same from a cache that is
    empty, half full or full.

    Args:
        folder: made if it is not there.
        key: of what the maps are: the teacher's fingerprint, the pictures, ...; plain values.
        rows: N.
        size: S.
        output: what the maps are: ``disparity``, or ``metres``.
        creates: whether this process may lay out the files; the others open what is there.

    Raises:
        OptionError: the folder holds something else, or the disk does not hold the maps.
        DataError: its files are damaged.
    """

    def __init__(
        self,
        folder: Path,
        key: Mapping[str, Any],
        rows: int,
        size: int,
        *,
        output: str = "disparity",
        creates: bool = True,
    ) -> None:
        key = {**key, "rows": rows, "size": size}
        self._maps = MappedRows(
            folder, key, (rows, size, size), np.float16, flag="--cache_teacher", name=f"{output}.npy", creates=creates
        )

    @torch.compiler.disable
    def answer(self, index: Tensor, ask: Callable[[], Tensor], device: str | torch.device = "cpu") -> Tensor:
        """Return the teacher's maps of some rows: read where all are done, else asked for and kept.

        Args:
            index: [B], the rows; on the CPU, or else reading them waits for the device.
            ask: returns their maps [B, 1, S, S].
            device: where they are wanted.

        Returns:
            [B, 1, S, S] float32, rounded to float16.

        Raises:
            TrainingError: a map that float16 does not hold.
        """
        rows = index.cpu().numpy()
        if not self._maps.done[rows].all():
            maps = ask()[:, 0].half().cpu().numpy()  # [B, S, S]
            if not np.isfinite(maps).all():
                raise TrainingError(
                    f"--cache_teacher {self._maps.folder}: the teacher answers with what float16 does not hold (up to "
                    f"{np.finfo(np.float16).max:g}); train without it"
                )
            self._maps.keep(rows, maps)
        return self.read(index, device)

    @torch.compiler.disable
    def read(self, index: Tensor, device: str | torch.device = "cpu") -> Tensor:
        """Return the maps of rows that are all done, as :meth:`answer` does."""
        maps = torch.from_numpy(self._maps.values[index.cpu().numpy()])  # [B, S, S]
        maps = maps.pin_memory() if torch.device(device).type == "cuda" else maps
        return maps.to(device, non_blocking=True).float()[:, None]

    @property
    def whole(self) -> bool:
        """Whether every row is done."""
        return bool(self._maps.done.all())


def open_cache(fabric: Fabric, folder: Path, teacher: Any, pictures: Any, size: int, **key: Any) -> TeacherCache:
    """Open the cache of a teacher's answers to the pictures of a split, or lay it out.

    Its key is what they follow from: the teacher's weights, and the pictures (and sounds): the names, sizes and times
    of all their files, and the values of a few, which show how they are prepared.

    Args:
        fabric: the processes, of one machine.
        folder: of the cache.
        teacher: who answers, a ``Guest``.
        pictures: the split, as it is without augmentation; with sounds, for a teacher that hears.
        size: of the maps' sides.
        key: what else the answers follow from; plain values.

    Raises:
        OptionError: as :class:`TeacherCache` does.
        DataError: likewise; a picture's file cannot be looked at.
    """
    digest = hashlib.sha256(" ".join(map(pictures.state_of_files, teacher.model.inputs)).encode())
    for index in range(0, len(pictures), -(-len(pictures) // COMPARED)):
        sample = pictures[index]
        for modality in teacher.model.inputs:
            digest.update(sample[modality].numpy().tobytes())
    key |= {"teacher": bytes(teacher.fingerprint.tolist()).hex(), "pictures": digest.hexdigest()}
    output = teacher.model.output
    for creates in (True, False):  # the first process lays it out, then the others open it
        if fabric.is_global_zero is creates:
            cache = TeacherCache(folder, key, len(pictures), size, output=output, creates=creates)
        fabric.barrier()
    return cache
