"""What a frozen teacher answers to views that never change, on the disk: asked once, read in every later epoch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from errors import DataError, OptionError, TrainingError
from training.files import write_whole

KEY, ROWS, DONE = "cache.json", "disparity.npy", "done.npy"  # the files of the folder


class TeacherCache:
    """One square map for each row of a split, in float16.

    ``disparity.npy`` is [N, S, S] float16, ``done.npy`` [N] uint8. A row is flushed to the disk before its flag is set,
    and the flag after it: what counts as done is whole, whenever the run is killed. ``cache.json`` says of what all
    this is, and a cache of something else is refused. Several processes of one machine, and several runs, may share a
    folder: they write different rows, or the same values.

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
        self.folder = folder
        key = {**key, "rows": rows, "size": size}
        if creates:
            self._lay_out(key)
        try:
            self._rows = np.lib.format.open_memmap(folder / ROWS, mode="r+")
            self._done = np.lib.format.open_memmap(folder / DONE, mode="r+")
        except (OSError, ValueError) as error:
            raise DataError(f"{folder}: the teacher's answers are damaged ({error}); delete the folder") from error
        layout = [(self._rows, (rows, size, size), np.float16), (self._done, (rows,), np.uint8)]
        if any(array.shape != shape or array.dtype != dtype for array, shape, dtype in layout):
            raise DataError(f"{folder}: {ROWS} and {DONE} are not what {KEY} says; delete the folder")

    def _lay_out(self, key: dict[str, Any]) -> None:
        """Make the files that are not there yet. ``done.npy`` is the last: where it is, the others are whole."""
        folder = self.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / KEY).is_file():
                self._check(key)
            elif any(folder.iterdir()):
                raise OptionError(f"--cache_teacher {folder} holds other files; name an empty folder, or a new one")
            else:
                with write_whole(folder / KEY, durable=True) as file:
                    file.write((json.dumps(key, indent=2) + "\n").encode())
            if not (folder / DONE).is_file():
                shape = (key["rows"], key["size"], key["size"])
                np.lib.format.open_memmap(folder / ROWS, mode="w+", dtype=np.float16, shape=shape).flush()
                _reserve(folder / ROWS)
                with write_whole(folder / DONE, durable=True) as file:
                    np.save(file, np.zeros(key["rows"], dtype=np.uint8))
        except OSError as error:
            need = 2 * key["rows"] * key["size"] ** 2 / 1e9
            raise OptionError(f"--cache_teacher {folder}: {need:.2g} GB cannot be written there ({error})") from error

    def _check(self, key: Mapping[str, Any]) -> None:
        try:
            found = dict(json.loads((self.folder / KEY).read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise DataError(f"{self.folder / KEY} is damaged ({error}); delete the folder") from error
        differing = [f"{name} {found.get(name)} (now {key[name]})" for name in key if found.get(name) != key[name]]
        if differing:
            raise OptionError(
                f"--cache_teacher {self.folder} is of something else: {', '.join(differing)}; name another folder, or "
                "delete this one"
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
        if not self._done[rows].all():
            maps = ask()[:, 0].half().cpu().numpy()  # [B, S, S]
            if not np.isfinite(maps).all():
                raise TrainingError(
                    f"--cache_teacher {self.folder}: the teacher answers with what float16 does not hold (up to "
                    f"{np.finfo(np.float16).max:g}); train without it"
                )
            self.keep(rows, maps)
        return torch.from_numpy(self._rows[rows]).to(index.device).float()[:, None]

    def keep(self, rows: np.ndarray, maps: np.ndarray) -> None:
        """Write maps [B, S, S] (float16) for some rows, and then that they are done."""
        self._rows[rows] = maps
        self._rows.flush()
        self._done[rows] = 1
        self._done.flush()


def _reserve(path: Path) -> None:
    """Take a file's space now: a mapped file that finds the disk full while it is written kills its process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
