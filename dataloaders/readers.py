"""Files in, arrays out: WAV, NPY, pictures and CSV, each refused with one line that names a broken file."""

from __future__ import annotations

import csv
import io
import os
import re
import struct
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dataloaders.transforms import SAMPLE_RATE, resample
from errors import DataError

# Below, a chirp is not in the recording any more; above, no recorder works.
LEAST_RATE, MOST_RATE = 8_000, 384_000  # Hz
# What Pillow may take a picture for. It knows more, among them PostScript, for which it would start a program.
PICTURE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM", "GIF")
NAMED, LETTERS = 20, 40  # cells that an error lists, and characters of each


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


@contextmanager
def parsing(path: Source, kind: str) -> Iterator[None]:
    """Turn whatever a parser raises into a DataError that names the file and what it was read as.

    On broken bytes parsers raise far more than they document: IndexError, TokenError, MemoryError. What they warn of
    is part of that error, or of no concern.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DataError:
        raise
    except Exception as error:
        what = str(error) or type(error).__name__
        raise DataError(f"{path} cannot be read as {kind} ({what}); copy the file again") from None


@contextmanager
def looking_into(folder: str | Path) -> Iterator[None]:
    """Turn what the system says of a folder that may not be read into a DataError that names it."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error}); check its permissions") from None


def require_data(folder: str | Path, flag: str) -> None:
    """Make sure that a folder that a flag names is there, and something in it.

    Raises:
        DataError: it is not; where rooms may be simulated, others than those that were meant would be.
    """
    with looking_into(folder):
        if not Path(folder).is_dir() or next(Path(folder).iterdir(), None) is None:
            raise DataError(f"{flag} {folder} is no folder with data in it; name one")


def read_wav(path: Source, *, resample_to_44100: bool = False) -> Tensor:
    """Read a stereo recording as [2, N] float32 (left, right), full scale at 1.

    Raises:
        DataError: missing, truncated or unreadable; not stereo; empty; NaN; not 44.1 kHz and not to be resampled, or
            at a rate from which nothing can be.
    """
    with parsing(path, "audio"):
        _refuse_truncated(path)
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)  # [N, channels]
    if samples.shape[1] != 2:
        raise DataError(f"{path} has {samples.shape[1]} channel(s); a binaural recording has 2 (left, right)")
    if len(samples) == 0:
        raise DataError(f"{path} holds no samples; copy the file again")
    if not np.isfinite(samples).all():
        raise DataError(f"{path} holds NaN or infinity; record or export it again")
    wave = torch.from_numpy(samples.T.copy())  # [2, N]
    if rate == SAMPLE_RATE:
        return wave
    if not LEAST_RATE <= rate <= MOST_RATE:
        raise DataError(f"{path} is sampled at {rate} Hz, which is no rate to record echoes at; record it again")
    if not resample_to_44100:
        raise DataError(f"{path} is sampled at {rate} Hz, not {SAMPLE_RATE} Hz; say --resample to have it converted")
    return resample(wave, rate)


def wav_rate(path: str | Path) -> int:
    """Return the sample rate in Hz that a recording's header states.

    Raises:
        DataError: missing or unreadable.
    """
    with parsing(path, "audio"):
        return soundfile.info(path).samplerate


def _refuse_truncated(path: Source) -> None:
    """Refuse what libsndfile reads without a word: a file shorter than its header says."""
    with nullcontext(path) if isinstance(path, HeldFile) else Path(path).open("rb") as file:
        file.seek(0)
        header = file.read(28)
        length = file.seek(0, io.SEEK_END)
        file.seek(0)
    announced = _announced_bytes(header.ljust(28, b"\0"))
    streamed = announced >= 2**31 - 1 and length < 2**31  # whose length nobody knew: one of the largest numbers
    if announced > length + 1 and not streamed:  # a missing pad byte is no loss
        raise OSError(f"truncated: {length} of {announced} bytes")


def _announced_bytes(header: bytes) -> int:
    """Return how long a file of sound is by its first 28 bytes; 0 where they do not say."""
    if header.startswith(b".snd"):  # AU: where the sound begins, and how long it is
        return sum(struct.unpack_from(">II", header, 4))
    # How the length is written and where, and how many bytes before it are not counted; the last is W64.
    layouts = {b"RIFF": ("<I", 4, 8), b"RIFX": (">I", 4, 8), b"FORM": (">I", 4, 8), b"RF64": ("<Q", 20, 8)}
    layouts[b"riff"] = ("<Q", 16, 0)
    if header[:4] not in layouts:
        return 0
    number, place, uncounted = layouts[header[:4]]
    return uncounted + int(struct.unpack_from(number, header, place)[0])


def read_npy(path: str | Path, *, dimensions: int) -> np.ndarray:
    """Read an array of numbers, of 16 bits or more, with the given number of dimensions.

    Pickles, which can run code, are refused.

    Raises:
        DataError: missing, truncated, pickled, not numeric, of 8 bits, or of another shape.
    """
    with parsing(path, "a plain NumPy array"), Path(path).open("rb") as file:
        array = np.load(file, allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf":
        raise DataError(f"{path} holds {getattr(array, 'dtype', 'an archive')}, not an array of numbers")
    if array.dtype.itemsize < 2:
        raise DataError(f"{path} holds {array.dtype}: neither millimetres nor sound fit into 8 bits; export it again")
    if array.ndim != dimensions or array.size == 0:
        raise DataError(f"{path} has shape {list(array.shape)}; expected {dimensions} dimension(s), none of them empty")
    return array


def read_image(path: Source, *, upright: bool = False) -> Image.Image:
    """Read a picture into memory. ``upright`` turns it as its EXIF tag says: not for pictures with a depth map.

    Raises:
        DataError: missing, truncated, empty or no picture.
    """
    with parsing(path, "a picture"), Image.open(path, formats=PICTURE_FORMATS) as image:
        image.load()
        picture = ImageOps.exif_transpose(image) if upright else image
    if min(picture.size) == 0:
        raise DataError(f"{path} has {picture.width}x{picture.height} pixels; copy the file again")
    return picture


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
                reader = csv.reader(file, skipinitialspace=True)
                self.header = [name.strip() for name in next(reader, [])]
                self.rows = [(reader.line_num, cells) for cells in reader if "".join(cells).strip()]
        except FileNotFoundError:
            raise DataError(f"{path} is missing; copy it from the data set") from None
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 text ({error}); save it as CSV in UTF-8") from None
        except (OSError, csv.Error) as error:
            raise DataError(f"{path} cannot be read as CSV ({error}); copy it from the data set again") from None
        if not any(self.header):
            raise DataError(f"{path} has no header line; copy it from the data set again")
        if len(self.header) == 1:
            refuse_other_separator(path, self.header[0])

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
            found = ", ".join(repr(name[:LETTERS]) for name in self.header[:NAMED])
            raise DataError(f"{self.path} has no column '{spellings[0]}'; found: {found}")
        return None

    def cell(self, row: int, column: int) -> str:
        """Return a cell without blanks around it; ``row`` 0 is the first below the header."""
        cells = self.rows[row][1]
        if column >= len(cells):
            raise DataError(f"{self.row_name(row)}: {len(cells)} cells, the header has {len(self.header)}")
        return cells[column].strip()

    def row_name(self, row: int) -> str:
        """Return where a row stands, for messages."""
        return f"{self.path}, row {self.rows[row][0]}"


def refuse_other_separator(path: str | Path, line: str) -> None:
    """Raise a DataError if the cells of a CSV file's line are separated by something else than commas."""
    for mark in ";\t|":
        if mark in line:
            raise DataError(f"{path} has its cells separated by {mark!r}; save it with commas")


def safe_path(cell: str, where: str) -> str:
    """Return a path from a data file, refusing one that leaves the data set's folder; Windows' separators become ``/``.

    Raises:
        DataError: the path is absolute or climbs with ``..``.
    """
    path = cell.replace("\\", "/")
    if path.startswith("/") or path[1:2] == ":" or ".." in path.split("/"):
        raise DataError(f"{where}: the path '{cell}' leaves the data set; write it relative to the data set's folder")
    return path


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
            except (OSError, ValueError):  # ValueError: the name holds a NUL
                self._folders[folder] = frozenset()
        return name in self._folders[folder]

    def missing(self, paths: Iterable[str]) -> list[str]:
        """Return those of the paths that do not exist."""
        return [path for path in paths if path not in self]


def is_hidden(path: Path) -> bool:
    """Return whether a part of a path begins with a dot.

    Archives of macOS hold a ``._name.jpg`` beside each ``name.jpg``, which is no picture; viewers keep ``.thumbnails``.
    """
    return any(part.startswith(".") for part in path.parts)


def natural_order(names: Iterable[str]) -> Sequence[str]:
    """Sort names with their numbers as numbers: frame_2 before frame_10."""
    return sorted(
        names, key=lambda name: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
    )
