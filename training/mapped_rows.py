"""An array on the disk of which each row is whole or not there, whenever the process that writes it is killed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from errors import DataError, OptionError
from training.files import locked, write_whole

KEY, DONE, LOCK = "cache.json", "done.npy", ".lock"


class MappedRows:
    """Rows of one shape and type in a folder of their own, mapped into memory.

    ``name`` is [N, ...], ``done.npy`` [N] uint8. A row is flushed to the disk before its flag is set, and the flag
    after it: what counts as done is whole, whenever the run is killed. ``cache.json`` says of what all this is, and a
    folder of something else is refused. Several processes of one machine, and several runs, may share a folder, if
    they write different rows, or the same values.

    Args:
        folder: made if it is not there.
        key: what the rows follow from; plain values.
        shape: [N, ...].
        dtype: of the rows.
        flag: that named the folder, for messages.
        name: the file of the rows.
        creates: whether this process may lay out the files; the others open what is there.

    Attributes:
        values: [N, ...], the rows; those that are not done are zeros, or torn.
        done: [N] uint8, which are done.

    Raises:
        OptionError: the folder holds something else, or the disk does not hold the rows.
        DataError: its files are damaged.
    """

    def __init__(
        self,
        folder: Path,
        key: Mapping[str, Any],
        shape: tuple[int, ...],
        dtype: type[np.generic],
        *,
        flag: str,
        name: str = "rows.npy",
        creates: bool = True,
    ) -> None:
        self.folder, self._flag, self._file = folder, flag, folder / name
        if creates:
            self._lay_out(dict(key), shape, dtype, name)
        try:
            self.values = _map(folder / name, shape, dtype, writes=True)
            self.done = _map(folder / DONE, shape[:1], np.uint8, writes=True)
        except (OSError, ValueError) as error:
            raise damaged(folder, error) from error

    def keep(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Write some rows, and then that they are done."""
        self.write(rows, values)
        self.mark(rows)

    def write(self, rows: Iterable[int], values: Iterable[np.ndarray]) -> None:
        """Write some rows; they are done only when :meth:`mark` says so.

        Not into the mapping, which shows them all the same: there each page of a new file would first be faulted in.
        """
        with self._file.open("r+b") as file:
            for row, value in zip(rows, values, strict=True):
                file.seek(self.values.offset + int(row) * self.values.strides[0])
                file.write(np.ascontiguousarray(value, self.values.dtype).data)

    def mark(self, rows: np.ndarray) -> None:
        """Flush what was written, and then that these rows are done."""
        self.values.flush()
        self.done[rows] = 1
        self.done.flush()

    def _lay_out(self, key: dict[str, Any], shape: tuple[int, ...], dtype: type[np.generic], name: str) -> None:
        """Make the files that are not there yet. ``done.npy`` is the last: where it is, the others are whole."""
        folder = self.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Listed before the key is looked for, which another process writes before the rest.
            holds_files = any(not path.name.startswith(".") for path in folder.iterdir())
            if holds_files and not (folder / KEY).is_file():
                raise OptionError(f"{self._flag} {folder} holds other files; name an empty folder, or a new one")
            with locked(folder / LOCK):
                if (folder / KEY).is_file():
                    self._check(key)
                else:
                    with write_whole(folder / KEY, durable=True) as file:
                        file.write((json.dumps(key, indent=2) + "\n").encode())
                if not (folder / DONE).is_file():
                    np.lib.format.open_memmap(folder / name, mode="w+", dtype=dtype, shape=shape).flush()
                    _reserve(folder / name)
                    with write_whole(folder / DONE, durable=True) as file:
                        np.save(file, np.zeros(shape[0], dtype=np.uint8))
        except OSError as error:
            need = np.dtype(dtype).itemsize * np.prod(shape, dtype=float) / 1e9
            raise OptionError(f"{self._flag} {folder}: {need:.2g} GB cannot be written there ({error})") from error

    def _check(self, key: Mapping[str, Any]) -> None:
        found = read_key(self.folder)
        differing = [f"{name} {found.get(name)} (now {key[name]})" for name in key if found.get(name) != key[name]]
        if differing:
            raise OptionError(
                f"{self._flag} {self.folder} is of something else: {', '.join(differing)}; name another folder, or "
                "delete this one"
            )


def open_whole(
    folder: Path, shape: tuple[int, ...], dtype: type[np.generic], name: str = "rows.npy"
) -> np.ndarray | None:
    """Open the rows of a folder to be read, if all are there and done: an array of that shape and type; None if not.

    Nothing is written, and the array cannot be: a private mapping that could would be held against the memory of the
    machine, which may be smaller than the file.

    Raises:
        DataError: its files are damaged.
    """
    if not (folder / DONE).is_file():
        return None
    try:
        done = _map(folder / DONE, shape[:1], np.uint8)
        return _map(folder / name, shape, dtype) if done.all() else None
    except (OSError, ValueError) as error:
        raise damaged(folder, error) from error


def _map(path: Path, shape: tuple[int, ...], dtype: type[np.generic], *, writes: bool = False) -> np.memmap:
    """Map a file's array into memory.

    Raises:
        OSError: there is no such file.
        ValueError: it holds no array, or another one, or is shorter than that.
    """
    array = np.lib.format.open_memmap(path, mode="r")  # opened to be written, a short file is filled up with zeros
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(f"{path.name} holds {array.dtype} {list(array.shape)}, not {np.dtype(dtype)} {list(shape)}")
    return np.lib.format.open_memmap(path, mode="r+") if writes else array


def read_key(folder: Path) -> dict[str, Any]:
    """Return of what the rows of a folder are.

    Raises:
        DataError: ``cache.json`` is missing or damaged.
    """
    try:
        return dict(json.loads((folder / KEY).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise damaged(folder / KEY, error) from error


def damaged(what: Path, error: Exception) -> DataError:
    """Return the error that says so, and what to do."""
    return DataError(f"{what} is damaged ({error}); delete the folder, to have it written again")


def _reserve(path: Path) -> None:
    """Take a file's space now: a mapped file that finds the disk full while it is written kills its process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
