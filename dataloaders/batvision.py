"""BatVision V1 and V2: binaural echoes of a chirp with the picture and the depth map seen from the same place.

Brunetto, Hornauer, Yu, Moutarde, "The Audio-Visual BatVision Dataset for Research on Sight and Sound", IROS 2023.
Units, columns and preprocessing are those of the official repository, AmandineBtto/Batvision-Dataset.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataloaders.base import SCRIPTS_WITHOUT_RGB, SPLITS, DepthDataset, Row, ToMetres, depth_from_millimetres
from dataloaders.readers import Table, read_npy, read_wav, safe_path
from dataloaders.transforms import cut_samples
from errors import DataError

# A map in millimetres reaches metres, that is thousands; one whose largest value is below this was stored in metres.
LARGEST_METRES = 100


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
        if values.dtype.kind == "f":
            measured = values[np.isfinite(values) & (values > 0)]
            if measured.size and measured.max() < LARGEST_METRES:
                raise DataError(f"{path} reaches {measured.max():g}: that is metres; BatVision stores millimetres")
        return values, depth_from_millimetres

    def why_not(self, modality: str) -> str:
        """Name the scripts that need no picture where there is none."""
        if modality == "rgb":
            return (
                f"this copy has no camera images for the {self.split} split (no camera column, or none of its files); "
                f"{SCRIPTS_WITHOUT_RGB} need no RGB"
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
        """Sorted names of the folders that hold a CSV of any split."""
        folders = (entry for entry in Path(self.dataset_dir).iterdir() if entry.is_dir())
        return sorted(folder.name for folder in folders if any((folder / f"{split}.csv").is_file() for split in SPLITS))

    def audio_samples(self) -> int | None:
        return cut_samples(self.max_depth)

    def find_rows(self) -> list[Row]:
        tables = [Path(self.dataset_dir, location, f"{self.split}.csv") for location in self.known_locations()]
        tables = [path for path in tables if path.is_file()]
        if not tables:
            raise DataError(f"{self.dataset_dir}: no folder in it holds a {self.split}.csv; {self.where_to_get_it}")
        return [row for path in tables for row in self._read_table(path)]

    def _read_table(self, path: Path) -> list[Row]:
        table = Table(path)
        columns = {}
        for modality, name in (("audio", "audio"), ("rgb", "camera"), ("depth", "depth")):
            required = modality != "rgb" and modality in self._wanted
            folder_column = table.column(f"{name} path", required=required)
            name_column = table.column(f"{name} file name", required=required)
            if folder_column is not None and name_column is not None:
                columns[modality] = (folder_column, name_column)
        rows = []
        for position, (number, _) in enumerate(table.rows):
            files: dict[str, tuple[str, ...]] = {}
            for modality, (folder_column, name_column) in columns.items():
                name = table.cell(position, name_column)
                if name:
                    folder = safe_path(table.cell(position, folder_column), f"{table.path}, row {number}").rstrip("/")
                    inside = safe_path(f"{folder}/{name}" if folder else name, f"{table.path}, row {number}")
                    files[modality] = (f"{self.dataset_dir}/{inside}",)
            location = path.parent.name
            rows.append(Row(f"{location}/{_instance(files, number)}", table.path, number, location, files))
        return rows

    def read_audio(self, row: Row) -> Tensor:
        return read_wav(row.files["audio"][0], resample_to_44100=self.preprocessing["resample"])


def _instance(files: dict[str, tuple[str, ...]], number: int) -> str:
    """Return the instance's number, taken from its first file: ``audio_47.wav`` -> ``47``."""
    if not files:
        return f"row{number}"
    stem = Path(next(iter(files.values()))[0]).stem
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

    def find_rows(self) -> list[Row]:
        path = Path(self.dataset_dir, f"{self.split}.csv")
        if not path.is_file():
            raise DataError(f"{path} is missing; {self.where_to_get_it}")
        table = Table(path)
        sound, label = "audio" in self._wanted, "depth" in self._wanted
        found = {
            "audio": (
                table.column("audio path left", "audio left", without="time", required=sound),
                table.column("audio path right", "audio right", without="time", required=sound),
            ),
            "rgb": (table.column("camera path left", "camera path", "camera left", without="time", required=False),),
            "depth": (table.column("depth path", "depth", without="time", required=label),),
        }
        columns = {modality: places for modality, places in found.items() if None not in places}
        rows = []
        for position, (number, _) in enumerate(table.rows):
            files: dict[str, tuple[str, ...]] = {}
            for modality, places in columns.items():
                cells = [table.cell(position, place) for place in places if place is not None]
                if all(cells):
                    inside = [safe_path(cell, f"{table.path}, row {number}") for cell in cells]
                    files[modality] = tuple(f"{self.dataset_dir}/{cell}" for cell in inside)
            first = next(iter(files.values()), (f"{self.dataset_dir}/row{number}",))[0]
            name = first[len(self.dataset_dir) + 1 :].rsplit(".", 1)[0]
            rows.append(Row(name, table.path, number, None, files))
        return rows

    def read_audio(self, row: Row) -> Tensor:
        left, right = (read_npy(path, dimensions=1).astype(np.float32) for path in row.files["audio"])
        if left.shape != right.shape:
            raise DataError(f"{row.files['audio'][0]} has {left.size} samples, the right ear {right.size}")
        return torch.from_numpy(np.stack([left, right]))  # [2, N]
