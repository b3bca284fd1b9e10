"""The labelled MATLAB file of NYU Depth V2 (HDF5, read with h5py) and its ``splits.mat`` (MATLAB 5 or HDF5)."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from dataloaders.readers import parsing
from errors import DataError

LARGEST_METRES = 100  # the sensor sees 10 m; a file that reaches 100 is in another unit


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise DataError("NYU's MATLAB file needs h5py: pip install h5py") from None
    return h5py


class LabelledFile:
    """``images`` (N, 3, W, H) uint8 and ``rawDepths`` or ``depths`` (N, W, H) in metres; frames count from 1.

    MATLAB stores columns first, so every frame is transposed. HDF5 handles survive neither pickling nor forking: each
    process opens its own.

    Raises:
        DataError: h5py is not installed; the file is broken, or lacks the images or the depths.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: Any = None
        self._process = -1
        file = self._open()
        with parsing(path, "HDF5"):
            self.depth_name = "rawDepths" if "rawDepths" in file else "depths"
            for name, dimensions in (("images", 4), (self.depth_name, 3)):
                if name not in file or getattr(file[name], "ndim", 0) != dimensions:
                    raise DataError(f"{path} has no '{name}' with {dimensions} dimensions; found: {', '.join(file)}")
            self._frames = len(file["images"])
            if len(file[self.depth_name]) != self._frames:
                raise DataError(f"{path} has {self._frames} images but {len(file[self.depth_name])} depth maps")
        self._close()

    def __len__(self) -> int:
        return self._frames

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handle": None, "_process": -1}

    def picture(self, number: int) -> np.ndarray:
        """[H, W, 3] uint8."""
        frame = self._read("images", number)
        if frame.shape[0] != 3 or frame.dtype != np.uint8:
            raise DataError(f"{self.path}: image {number} has shape {list(frame.shape)}, {frame.dtype}")
        return np.ascontiguousarray(frame.transpose(2, 1, 0))  # [H, W, 3]

    def depth(self, number: int) -> np.ndarray:
        """[H, W] float32 metres, 0 where the sensor saw nothing."""
        frame = self._read(self.depth_name, number)
        if frame.dtype.kind != "f" or np.nanmax(frame, initial=0) > LARGEST_METRES:
            raise DataError(f"{self.path}: {self.depth_name} {number} is not in metres as floating point numbers")
        return np.ascontiguousarray(frame.T, dtype=np.float32)  # [H, W]

    def _read(self, name: str, number: int) -> np.ndarray:
        with parsing(f"{self.path}: {name} {number}", "HDF5"):
            return self._open()[name][number - 1]

    def _close(self) -> None:
        self._handle.close()
        self._process = -1

    def _open(self) -> Any:
        if self._process != os.getpid():
            with parsing(self.path, "HDF5"):
                self._handle = _h5py().File(self.path, "r")
            self._process = os.getpid()
        return self._handle


def read_splits(path: Path, name: str) -> list[int]:
    """Frame numbers, counted from 1, that a variable of ``splits.mat`` holds.

    Raises:
        DataError: missing or broken file, or no such variable.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing; it stands beside the labelled file on NYU Depth V2's page")
    with parsing(path, "a MATLAB file"):
        with path.open("rb") as file:
            is_hdf5 = file.read(8) == b"\x89HDF\r\n\x1a\n"
        variables = _hdf5_variables(path) if is_hdf5 else _matlab5_variables(path.read_bytes())
        if name not in variables:
            raise DataError(f"{path} has no '{name}'; found: {', '.join(variables) or 'nothing'}")
        numbers = variables[name].ravel()
        if not np.array_equal(numbers, np.floor(numbers)):
            raise DataError(f"{path}: '{name}' holds numbers of frames that are not whole")
        return [int(number) for number in numbers]


def _hdf5_variables(path: Path) -> dict[str, np.ndarray]:
    h5py = _h5py()
    with h5py.File(path, "r") as file:
        return {name: np.asarray(value) for name, value in file.items() if isinstance(value, h5py.Dataset)}


# Element types of MATLAB's level 5 format: "MAT-File Format", The MathWorks, table 1-1.
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MATRIX, _COMPRESSED = 14, 15


def _matlab5_variables(data: bytes) -> dict[str, np.ndarray]:
    """Read the numeric arrays of a level 5 file, each flat in MATLAB's order; others are passed over."""
    if len(data) < 128 or data[126:128] not in (b"IM", b"MI"):
        raise ValueError("no MATLAB 5 header")
    order = "<" if data[126:128] == b"IM" else ">"
    variables = {}
    for kind, content in _elements(data[128:], order, padded=False):
        if kind == _COMPRESSED:
            kind, content = next(_elements(zlib.decompress(content), order))
        if kind != _MATRIX:
            continue
        # A numeric array: flags, dimensions, name, real part.
        parts = list(_elements(content, order))
        if len(parts) >= 4 and parts[3][0] in _NUMBERS:
            values = np.frombuffer(parts[3][1], dtype=order + _NUMBERS[parts[3][0]])
            variables[parts[2][1].decode("ascii")] = values
    return variables


def _elements(data: bytes, order: str, *, padded: bool = True) -> Any:
    """Yield (type, content). Up to four bytes share the tag's own eight; longer ones fill up to a multiple of eight."""
    start = 0
    while start + 8 <= len(data):
        kind, size = struct.unpack_from(order + "II", data, start)
        if kind >> 16:
            kind, size, begin, step = kind & 0xFFFF, kind >> 16, start + 4, 8
        else:
            begin = start + 8
            # Compressed elements follow each other without filling.
            step = 8 + (size if kind == _COMPRESSED and not padded else -(-size // 8) * 8)
        if begin + size > len(data):
            raise ValueError("truncated")
        yield kind, data[begin : begin + size]
        start += step
