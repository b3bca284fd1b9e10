"""What a frozen teacher answers to views that never change, on the disk: asked once, read in every later epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from errors import TrainingError
from training.mapped_rows import MappedRows


class TeacherCache:
    """One square map for each row of a split, in float16: ``disparity.npy`` [N, S, S] of a :class:`MappedRows`.

    Also a map that was just computed is handed out in float16, so that a run learns the same from a cache that is
    empty, half full or full.

    Args:
        folder: made if it is not there.
        key: of what the maps are: the teacher's fingerprint, the pictures, ...; plain values.
        rows: N.
        size: S.
        creates: whether this process may lay out the files; the others open what is there.

    Raises:
        OptionError: the folder holds something else, or the disk does not hold the maps.
        DataError: its files are damaged.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], rows: int, size: int, *, creates: bool = True) -> None:
        key = {**key, "rows": rows, "size": size}
        self._maps = MappedRows(
            folder, key, (rows, size, size), np.float16, flag="--cache_teacher", name="disparity.npy", creates=creates
        )

    @torch.compiler.disable
    def answer(self, index: Tensor, ask: Callable[[], Tensor]) -> Tensor:
        """Return the teacher's maps of some rows: read where all are done, else asked for and kept.

        Args:
            index: [B], the rows.
            ask: returns their maps [B, 1, S, S].

        Returns:
            [B, 1, S, S] float32, rounded to float16, on the device of ``index``.

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
        return torch.from_numpy(self._maps.values[rows]).to(index.device).float()[:, None]
