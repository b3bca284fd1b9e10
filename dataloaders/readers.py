"""Files in, arrays out: WAV, NPY, pictures and CSV, each refused with one line that names a broken file."""

from __future__ import annotations

import csv
import io
import os
import re
import struct
import zipfile
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dataloaders.transforms import SAMPLE_RATE, resample
from errors import DataError


class HeldFile(io.BytesIO):
    """A file that is held in memory, such as one that a browser sent. Messages print its name."""

    def __init__(self, name: str, content: bytes) -> None:
        super().__init__(content)
        self.name = name

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return repr(self.name)


Source = str | Path | HeldFile


def read_wav(path: Source, *, resample_to_44100: bool = False) -> Tensor:
    """Read a stereo recording as [2, N] float32 (left, right), full scale at 1.

    Raises:
        DataError: missing, truncated or unreadable; not stereo; empty; NaN; not 44.1 kHz and not to be resampled.
    """
    try:
        _refuse_truncated_riff(path)
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)  # [N, channels]
    except (OSError, RuntimeError, TypeError) as error:  # TypeError: a name that ends in .raw
        raise DataError(f"{path} cannot be read as audio ({error}); copy the file again") from None
    if samples.shape[1] != 2:
        raise DataError(f"{path} has {samples.shape[1]} channel(s); a binaural recording has 2 (left, right)")
    if len(samples) == 0:
        raise DataError(f"{path} holds no samples; copy the file again")
    if not np.isfinite(samples).all():
        raise DataError(f"{path} holds NaN or infinity; record or export it again")
    wave = torch.from_numpy(samples.T.copy())  # [2, N]
    if rate == SAMPLE_RATE:
        return wave
    if not resample_to_44100:
        raise DataError(f"{path} is sampled at {rate} Hz, not {SAMPLE_RATE} Hz; say --resample to have it converted")
    return resample(wave, rate)


def _refuse_truncated_riff(path: Source) -> None:
    """Refuse what libsndfile reads without a word: a WAV file shorter than its header says."""
    with nullcontext(path) if isinstance(path, HeldFile) else Path(path).open("rb") as file:
        file.seek(0)
        header = file.read(8)
        length = file.seek(0, io.SEEK_END)
        file.seek(0)
    if len(header) < 8 or header[:4] != b"RIFF":
        return
    announced = 8 + struct.unpack("<I", header[4:])[0]
    # A stream of unknown length announces 2^32 - 1; a missing pad byte is no loss.
    if announced < 2**32 and announced > length + 1:
        raise OSError(f"truncated: {length} of {announced} bytes")


def read_npy(path: str | Path, *, dimensions: int) -> np.ndarray:
    """Read a numeric array with the given number of dimensions. Pickles, which can run code, are refused.

    Raises:
        DataError: missing, truncated, pickled, not numeric, or of another shape.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as a plain NumPy array ({error}); copy the file again") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf":
        raise DataError(f"{path} holds {getattr(array, 'dtype', 'an archive')}, not an array of numbers")
    if array.ndim != dimensions or array.size == 0:
        raise DataError(f"{path} has shape {list(array.shape)}; expected {dimensions} dimension(s), none of them empty")
    return array


def read_image(path: Source, *, upright: bool = False) -> Image.Image:
    """Read a picture into memory. ``upright`` turns it as its EXIF tag says: not for pictures with a depth map.

    Raises:
        DataError: missing, truncated or no picture.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image) if upright else image
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as a picture ({error}); copy the file again") from None


class Table:
    """A CSV file with a header: cells by column name, rows numbered as an editor shows them (the header is row 1).

    A byte order mark, blanks around names and cells, blank lines and columns nobody asked for do no harm.

    Raises:
        DataError: missing or unreadable file, no header, a row with too few cells.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        try:
            with Path(path).open(newline="", encoding="utf-8-sig") as file:
                reader = csv.reader(file)
                self.header = [name.strip() for name in next(reader, [])]
                self.rows = [(reader.line_num, cells) for cells in reader if "".join(cells).strip()]
        except FileNotFoundError:
            raise DataError(f"{path} is missing; copy it from the data set") from None
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path} cannot be read as CSV ({error}); copy it from the data set again") from None
        if not any(self.header):
            raise DataError(f"{path} has no header line; copy it from the data set again")

    def column(self, *spellings: str, without: str = "", required: bool = True) -> int | None:
        """Find a column: by its exact name, else the first name that holds all words of a spelling; case is ignored.

        Args:
            spellings: names in order of preference.
            without: a word that keeps a column from being taken for another one.
            required: raise a DataError that lists the columns found, rather than return None.
        """
        names = [" ".join(name.lower().replace("_", " ").split()) for name in self.header]
        for spelling in spellings:
            if spelling in names:
                return names.index(spelling)
        for spelling in spellings:
            for position, name in enumerate(names):
                if set(spelling.split()) <= set(name.split()) and not (without and without in name.split()):
                    return position
        if required:
            found = ", ".join(repr(name) for name in self.header)
            raise DataError(f"{self.path} has no column '{spellings[0]}'; found: {found}")
        return None

    def cell(self, row: int, column: int) -> str:
        """Return a cell without blanks around it; ``row`` 0 is the first below the header."""
        line, cells = self.rows[row]
        if column >= len(cells):
            raise DataError(f"{self.path}, row {line}: {len(cells)} cells, the header has {len(self.header)}")
        return cells[column].strip()


def safe_path(cell: str, where: str) -> str:
    """Return a path from a data file as it stands, refusing one that leaves the data set's folder.

    Raises:
        DataError: the path is absolute or climbs with ``..``.
    """
    absolute = cell.startswith(("/", "\\")) or cell[1:2] == ":"
    if absolute or (".." in cell and ".." in re.split(r"[/\\]", cell)):
        raise DataError(f"{where}: the path '{cell}' leaves the data set; write it relative to the data set's folder")
    return cell


class Listing:
    """Which files exist, from one listing per folder rather than one question per file, which 50,000 rows need."""

    def __init__(self) -> None:
        self._folders: dict[str, frozenset[str]] = {}

    def __contains__(self, path: str) -> bool:
        folder, _, name = path.rpartition("/")
        if folder not in self._folders:
            try:
                with os.scandir(folder or ".") as entries:
                    self._folders[folder] = frozenset(entry.name for entry in entries)
            except OSError:
                self._folders[folder] = frozenset()
        return name in self._folders[folder]

    def missing(self, paths: Iterable[str]) -> list[str]:
        """Return those of the paths that do not exist."""
        return [path for path in paths if path not in self]


def natural_order(names: Iterable[str]) -> Sequence[str]:
    """Sort names with their numbers as numbers: frame_2 before frame_10."""
    return sorted(
        names, key=lambda name: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
    )
