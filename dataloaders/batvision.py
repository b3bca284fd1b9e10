"""BatVision V1 and V2: binaural echoes of a chirp with the picture and the depth map seen from the same place.

Brunetto, Hornauer, Yu, Moutarde, "The Audio-Visual BatVision Dataset for Research on Sight and Sound", IROS 2023.
Units, columns and preprocessing are those of the official repository, AmandineBtto/Batvision-Dataset.
"""

from __future__ import annotations

import itertools
import re
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from dataloaders.base import (
    SCRIPTS_WITHOUT_RGB,
    SPLITS,
    DepthDataset,
    Row,
    ToMetres,
    as_float32,
    depth_from_millimetres,
)
from dataloaders.readers import Table, is_hidden, read_npy, read_wav, safe_path, wav_rate
from dataloaders.transforms import cut_samples
from errors import DataError

# A map in millimetres reaches metres, that is thousands; one of which most is below this was stored in metres. Of a map
# that is one hole, but for some noise, nothing is said.
LARGEST_METRES = 100
LEAST_MEASURED = 0.01  # of the pixels


class BatVision(DepthDataset):
    """What the two versions share: depth maps as ``.npy`` in millimetres, and where the data comes from."""

    where_to_get_it = (
        "BatVision is described at github.com/AmandineBtto/Batvision-Dataset and mirrored at doi.org/10.57745/HYLZNL; "
        "--dataset simulated needs no download"
    )

    def read_depth(self, row: Row) -> tuple[np.ndarray, ToMetres]:
        """Millimetres [H, W], integer or float.

        Raises:
            DataError: the array is not two-dimensional, or is in metres.
        """
        path = row.files["depth"][0]
        values = read_npy(path, dimensions=2)
        measured = np.count_nonzero(values > 0)
        small = measured - np.count_nonzero(values >= LARGEST_METRES)
        if small > max(measured / 2, LEAST_MEASURED * values.size):
            raise DataError(
                f"{path} has {small} of its {measured} measured pixels below {LARGEST_METRES}: that is metres; "
                "BatVision stores millimetres"
            )
        return values, depth_from_millimetres

    def why_not(self, modality: str) -> str:
        """Name the scripts that need no picture where there is none."""
        if modality == "rgb":
            return (
                f"this copy has no camera images for the {self.split} split (no camera column, or none of its files); "
                f"networks that only hear need none ({SCRIPTS_WITHOUT_RGB})"
            )
        return f"no row of the {self.split} split names a file for {modality}"


class BatVisionV2(BatVision):
    """``<root>/<Location>/{train.csv, val.csv, test.csv, audio/*.wav, camera/*.jpeg, depth/*.npy}``.

    The path columns hold the location (``Attic/audio/``) and count from the root. Stereo WAV at 44.1 kHz, cut where the
    echo of a surface at ``max_depth`` has returned, filled up with silence where it is shorter.
    """

    name = "batvisionv2"
    default_dir = "data/BatvisionV2"
    default_max_depth = 30.0

    def known_locations(self) -> list[str]:
        """Sorted names of the folders that hold a CSV of any split, but for hidden ones."""
        entries = (entry for entry in Path(self.dataset_dir).iterdir() if not is_hidden(Path(entry.name)))
        folders = (entry for entry in entries if entry.is_dir())
        return sorted(folder.name for folder in folders if any((folder / f"{split}.csv").is_file() for split in SPLITS))

    def audio_samples(self) -> int | None:
        return cut_samples(self.max_depth)

    @classmethod
    def is_in(cls, folder: Path) -> bool:
        return any(next(folder.glob(f"*/{split}.csv"), None) for split in SPLITS)

    @staticmethod
    def is_location(folder: Path) -> bool:
        """Return whether a folder is one of the locations: its tables have a column that V1's have not."""
        heads = []
        for split in SPLITS:
            with suppress(OSError), (folder / f"{split}.csv").open(encoding="utf-8", errors="replace") as file:
                heads.append(file.readline())
        return any("audio file name" in head.lower().replace("_", " ") for head in heads)

    def find_rows(self) -> list[Row]:
        self._locations = self.known_locations()
        tables = [Path(self.dataset_dir, location, f"{self.split}.csv") for location in self._locations]
        tables = [path for path in tables if path.is_file()]
        if not tables:
            refuse_location(Path(self.dataset_dir))
            raise DataError(f"{self.dataset_dir}: no folder in it holds a {self.split}.csv; {self.where_to_get_it}")
        rows = []
        for path in tables:
            with self.noting("table", str(path)):
                rows += self._read_table(path)
        return rows

    def _read_table(self, path: Path) -> list[Row]:
        table = Table(path)
        columns: dict[str, tuple[int, int] | None] = {}
        for modality, name in (("audio", "audio"), ("rgb", "camera"), ("depth", "depth")):
            required = modality != "rgb" and modality in self._wanted
            with self.noting("table", table.path):
                folder_column = table.column(f"{name} path", required=required)
                name_column = table.column(f"{name} file name", required=required)
                columns[modality] = None
                if folder_column is not None and name_column is not None:
                    columns[modality] = (folder_column, name_column)
        rows, location = [], path.parent.name
        for position, (number, _) in enumerate(table.rows):
            files: dict[str, tuple[str, ...]] = {}
            for modality, places in columns.items():
                with self.noting("table", table.path, number):
                    files[modality] = self._file(table, position, *places) if places else ()
            self._refuse_stray(location, files, table.row_name(position))
            rows.append(Row(f"{location}/{_instance(files, number)}", table.path, number, location, files))
        return rows

    def _refuse_stray(self, location: str, files: dict[str, tuple[str, ...]], where: str) -> None:
        """Refuse a copy of another location's table: its rows would count twice, and be no part of what is held out."""
        for path in itertools.chain.from_iterable(files.values()):
            named = path.removeprefix(f"{self.dataset_dir}/").split("/", 1)[0]
            if named != location and named in self._locations:
                raise DataError(
                    f"{where}, in the folder {location}, names files of {named}; move the folder away, or write the "
                    "paths of its own files"
                )

    def _file(self, table: Table, position: int, folder_column: int, name_column: int) -> tuple[str, ...]:
        """The file that a row names in two columns; none where it names none."""
        name = table.cell(position, name_column)
        if not name:
            return ()
        where = table.row_name(position)
        folder = safe_path(table.cell(position, folder_column), where).rstrip("/")
        inside = safe_path(f"{folder}/{name}" if folder else name, where)
        return (f"{self.dataset_dir}/{inside}",)

    def read_audio(self, row: Row) -> Tensor:
        return read_wav(row.files["audio"][0], resample_to_44100=self.preprocessing["resample"])

    def sample_rate(self, row: Row) -> int | None:
        return wav_rate(row.files["audio"][0])


def refuse_location(folder: Path) -> None:
    """Raise a DataError if a folder is one location of BatVision V2, and not the whole."""
    if BatVisionV2.is_location(folder):
        raise DataError(f"{folder} is one location of BatVision V2; give its parent folder, {folder.absolute().parent}")


def _first_file(files: dict[str, tuple[str, ...]]) -> str | None:
    """The first file that a row names, if it names any."""
    return next((paths[0] for paths in files.values() if paths), None)


def _instance(files: dict[str, tuple[str, ...]], number: int) -> str:
    """Return the instance's number, taken from its first file: ``audio_47.wav`` -> ``47``."""
    first = _first_file(files)
    if first is None:
        return f"row{number}"
    stem = Path(first).stem
    digits = re.search(r"\d+$", stem)
    return digits.group() if digits else stem


class BatVisionV1(BatVision):
    """``<root>/{train,val,test}.csv`` with paths that count from the root; one ``.npy`` per ear at 44.1 kHz.

    The sound, about 100 ms, is not cut. Copies differ in their columns, so these are found by the words in their names,
    and copies without pictures load without ``rgb``.
    """

    name = "batvisionv1"
    default_dir = "data/BatvisionV1"
    default_max_depth = 12.0
    # The columns of each modality: spellings in order of preference.
    COLUMNS: ClassVar[dict[str, tuple[tuple[str, ...], ...]]] = {
        "audio": (("audio path left", "audio left"), ("audio path right", "audio right")),
        "rgb": (("camera path left", "camera path", "camera left"),),
        "depth": (("depth path", "depth"),),
    }

    @classmethod
    def is_in(cls, folder: Path) -> bool:
        return any((folder / f"{split}.csv").is_file() for split in SPLITS)

    def find_rows(self) -> list[Row]:
        path = Path(self.dataset_dir, f"{self.split}.csv")
        if not path.is_file():
            raise DataError(f"{path} is missing; {self.where_to_get_it}")
        table = Table(path)
        columns: dict[str, list[int]] = {}
        for modality, names in self.COLUMNS.items():
            required = modality != "rgb" and modality in self._wanted
            with self.noting("table", table.path):
                places = [table.column(*spellings, without="time", required=required) for spellings in names]
                columns[modality] = [place for place in places if place is not None] if None not in places else []
        rows = []
        for position, (number, _) in enumerate(table.rows):
            files: dict[str, tuple[str, ...]] = {}
            for modality, found in columns.items():
                with self.noting("table", table.path, number):
                    cells = [table.cell(position, place) for place in found]
                    inside = [safe_path(cell, table.row_name(position)) for cell in cells] if all(cells) else []
                    files[modality] = tuple(f"{self.dataset_dir}/{cell}" for cell in inside)
            first = _first_file(files) or f"{self.dataset_dir}/row{number}"
            name = first[len(self.dataset_dir) + 1 :].rsplit(".", 1)[0]
            rows.append(Row(name, table.path, number, None, files))
        return rows

    def read_audio(self, row: Row) -> Tensor:
        left, right = (as_float32(read_npy(path, dimensions=1)) for path in row.files["audio"])
        if left.shape != right.shape:
            raise DataError(f"{row.files['audio'][0]} has {left.size} samples, the right ear {right.size}")
        return torch.from_numpy(np.stack([left, right]))  # [2, N]
