"""NYU Depth V2 in the four forms in which it is passed around, always in metres.

Silberman, Hoiem, Kohli, Fergus, "Indoor Segmentation and Support Inference from RGBD Images", ECCV 2012.

Valid is ``min_depth < d < max_depth``. Validation never touches the official test split: it takes whole scenes out of
the training frames where these name two or more scenes, and else their last contiguous tenth.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from dataloaders.base import (
    DepthDataset,
    Row,
    ToMetres,
    depth_from_metres,
    depth_from_millimetres,
    log,
    printable,
)
from dataloaders.matlab import LabelledFile, read_splits
from dataloaders.readers import LETTERS, is_hidden, natural_order, read_image, refuse_other_separator, safe_path
from errors import DataError

VALIDATION_SHARE = 0.1
# An 8-bit map counts 0..255 over 10 m. A 16-bit map counts millimetres: the sensor sees up to 10 m, and never less than
# 255 mm as its farthest point; a map stretched to 65,535 or one of 8-bit values in 16 bits would pass unnoticed.
METRES_AT_255 = 10.0
LEAST_MILLIMETRES, MOST_MILLIMETRES = 255, 11_000

CSV_NAMES = {"train": "nyu2_train.csv", "test": "nyu2_test.csv"}
MATLAB_NAME, SPLITS_NAME = "nyu_depth_v2_labeled.mat", "splits.mat"
PICTURE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg"))


class NYU(DepthDataset):
    """NYU Depth V2; the layout is found by what the folder holds, in this order.

    - ``matlab``: ``nyu_depth_v2_labeled.mat`` with ``splits.mat`` (795 / 654). Depth as the sensor measured it
      (``rawDepths``); the filled ``depths`` serve where a file has no other.
    - ``csv``: ``nyu2_train.csv``, ``nyu2_test.csv`` without a header (DenseDepth, Kaggle; 50,688 / 654). 8-bit training
      maps are value / 255 * 10 m, 16-bit maps are millimetres. Paths are looked for under the folder, without a leading
      ``data/``, and under its parent.
    - ``folders``: ``train/rgb``, ``train/depth``, ``test/rgb``, ``test/depth`` with the same stems, 16-bit millimetres.
    - ``lists``: ``*train*.txt``, ``*test*.txt`` with lines ``rgb depth focal`` (BTS, AdaBins; 24,231 / 654), here or in
      ``train_test_inputs/``; paths count from ``sync/`` and ``official_splits/test/``, also with a leading ``/``.
    """

    name = "nyu"
    default_dir = "data/nyu"
    default_max_depth = 10.0
    can_supply = ("rgb", "depth")
    beyond_max_depth = "drop"
    where_to_get_it = (
        f"NYU Depth V2 is at cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html; it is read as {MATLAB_NAME} with "
        f"{SPLITS_NAME}, nyu2_train.csv with nyu2_test.csv, train/rgb, train/depth, test/rgb, test/depth, or lists of "
        "'rgb depth focal'; --dataset simulated needs no download"
    )

    @classmethod
    def is_in(cls, folder: Path) -> bool:
        return _find_layout(folder) is not None

    def find_rows(self) -> list[Row]:
        layout = _find_layout(Path(self.dataset_dir))
        if layout is None:
            raise DataError(f"{self.dataset_dir} holds no known layout; {self.where_to_get_it}")
        self.layout = layout
        log.info("%s: NYU Depth V2 in the layout '%s'", self.dataset_dir, self.layout)
        if self.split == "test":
            return self._official("test")
        frames = self._official("train")
        return self._keep_split(frames) if frames else frames

    def _official(self, part: str) -> list[Row]:
        """Rows of the official ``train`` or ``test`` part."""
        readers = {
            "matlab": self._from_matlab,
            "csv": self._from_csv,
            "folders": self._from_folders,
            "lists": self._from_lists,
        }
        return readers[self.layout](part)

    def _keep_split(self, frames: list[Row]) -> list[Row]:
        """Part the official training frames into ``train`` and ``val``, the same way every time."""
        if len(frames) < 2:
            raise DataError(f"{self.dataset_dir}: {len(frames)} training frame cannot be parted into train and val")
        scenes = Counter(_physical_scene(row.location) for row in frames if row.location)
        if len(scenes) >= 2:
            held = _choose_scenes(scenes, VALIDATION_SHARE * len(frames))
            validates = [row.location is not None and _physical_scene(row.location) in held for row in frames]
            log.info(
                "%s: validation holds out %d of %d scenes: %s", self.dataset_dir, len(held), len(scenes), sorted(held)
            )
        else:
            first = len(frames) - max(1, round(VALIDATION_SHARE * len(frames)))
            validates = [position >= first for position in range(len(frames))]
            log.info("%s: validation holds out the last %d of %d training frames", self.dataset_dir,
                     len(frames) - first, len(frames))  # fmt: skip
        return [row for row, validate in zip(frames, validates, strict=True) if validate == (self.split == "val")]

    # ------------------------------------------------------------------------------------------------------- layouts

    def _from_csv(self, part: str) -> list[Row]:
        folder = _csv_folder(Path(self.dataset_dir), CSV_NAMES[part])
        if folder is None:
            raise DataError(f"{Path(self.dataset_dir, CSV_NAMES[part])} is missing; copy it from the data set")
        table = folder / CSV_NAMES[part]
        lines = _read_lines(table, csv.reader)
        if lines and len(lines[0][1]) == 1:
            refuse_other_separator(table, lines[0][1][0])
        return self._pairs(
            table,
            lines,
            lambda cell, where: self._resolve(cell.strip(), folder, where),
            ("nyu2_train", "nyu2_test"),
        )

    def _pairs(
        self,
        table: Path,
        lines: Sequence[tuple[int, Sequence[str]]],
        resolve: Callable[[str, str], str],
        roots: Sequence[str],
    ) -> list[Row]:
        """Rows of a table without a header whose first two cells are a picture and a depth map.

        Args:
            table: the file.
            lines: its numbered rows, as cells.
            resolve: turns a cell into a path; it is told which row that is.
            roots: names of folders that are no scenes.
        """
        rows = []
        for number, cells in lines:
            where = f"{table}, row {number}"
            files: dict[str, tuple[str, ...]] = {}
            with self.noting("table", str(table), number):
                if len(cells) < 2:
                    raise DataError(f"{where}: expected a picture and a depth map, found '{cells[0][:LETTERS]}'")
            for modality, cell in zip(("rgb", "depth"), cells, strict=False):
                with self.noting("table", str(table), number):
                    path = resolve(cell, where)
                    if not path and modality == "rgb":
                        raise DataError(f"{where}: no picture is named; fill the cell or drop the row")
                    files[modality] = (path,) if path else ()
            if any(files.values()):
                rows.append(_row(str(table), number, files, roots))
        return rows

    def _resolve(self, cell: str, folder: Path, where: str) -> str:
        """Find a path of the CSV under the folder, without its leading ``data/``, or under the folder's parent."""
        if not cell:
            return ""
        inside = safe_path(cell, where)
        roots = (f"{folder}/{inside}", f"{folder}/{inside.removeprefix('data/')}", f"{folder.parent}/{inside}")
        for path in roots:
            if path in self._listing:
                return path
        if self._problems is not None:
            return roots[0]  # it is noted with what else is missing
        raise DataError(f"{where}: {cell} is missing; tried {', '.join(dict.fromkeys(roots))}; check --dataset_dir")

    def _from_lists(self, part: str) -> list[Row]:
        table = _list_file(Path(self.dataset_dir), part)
        if table is None:
            raise DataError(f"{self.dataset_dir} holds no list *{part}*.txt; copy it from BTS or AdaBins")
        root = Path(self.dataset_dir, "sync" if part == "train" else "official_splits/test")
        root = root if root.is_dir() else Path(self.dataset_dir)
        return self._pairs(
            table,
            _read_lines(table, lambda lines: (line.split() for line in lines)),
            # A leading / is the lists' own habit: it stands for the root.
            lambda cell, where: f"{root}/{safe_path(cell.lstrip('/'), where)}",
            (root.name,),
        )

    def _from_folders(self, part: str) -> list[Row]:
        pictures, maps = (Path(self.dataset_dir, part, name) for name in ("rgb", "depth"))
        for folder in (pictures, maps):
            if not folder.is_dir():
                raise DataError(f"{folder} is missing; this layout has rgb and depth below train and test")
        by_stem = {path.stem: str(path) for path in sorted(maps.iterdir()) if path.suffix.lower() == ".png"}
        found = (path for path in pictures.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
        names = natural_order(path.name for path in found if not is_hidden(path))
        rows = []
        for number, name in enumerate(names, 1):
            stem = Path(name).stem
            files: dict[str, tuple[str, ...]] = {"rgb": (str(pictures / name),)}
            with self.noting("missing file", f"{maps / stem}.png"):
                if stem not in by_stem:
                    raise DataError(
                        f"{maps / stem}.png is missing, the depth map of {pictures / name}; copy it or drop both"
                    )
                files["depth"] = (by_stem[stem],)
            rows.append(_row(str(pictures), number, files))
        return rows

    def _from_matlab(self, part: str) -> list[Row]:
        path = Path(self.dataset_dir, MATLAB_NAME)
        self._matlab = LabelledFile(path)
        numbers = read_splits(path.with_name(SPLITS_NAME), f"{part}Ndxs")
        rows = []
        for number in numbers:
            with self.noting("table", str(path.with_name(SPLITS_NAME))):
                if not 1 <= number <= len(self._matlab):
                    splits = path.with_name(SPLITS_NAME)
                    raise DataError(f"{splits} names frame {number}; {path} holds {len(self._matlab)}")
                files: dict[str, tuple[str, ...]] = {"rgb": (str(path),), "depth": (str(path),)}
                rows.append(Row(f"{part}/{number:05d}", str(path), number, None, files))
        return rows

    # ------------------------------------------------------------------------------------------------------- reading

    def read_rgb(self, row: Row) -> Any:
        if self.layout == "matlab":
            return Image.fromarray(self._matlab.picture(row.number))
        return read_image(row.files["rgb"][0])

    def read_depth(self, row: Row) -> tuple[np.ndarray, ToMetres]:
        """Map [H, W], its unit told by split and type.

        Raises:
            DataError: the map is not single-channel, of another type, or out of its unit's range.
        """
        if self.layout == "matlab":
            return self._matlab.depth(row.number), depth_from_metres
        path = row.files["depth"][0]
        picture = read_image(path)
        if picture.mode != "L" and not picture.mode.startswith("I"):  # the colours of a palette are no depths
            raise DataError(f"{path} is no single-channel 8-bit or 16-bit PNG (Pillow's mode {picture.mode})")
        values = np.asarray(picture)
        if values.dtype == np.uint8:
            if self.layout != "csv" or self.split == "test":
                raise DataError(
                    f"{path} has 8 bits; only nyu2_train.csv has 8-bit maps, this one must hold millimetres"
                )
            return values, depth_from_8_bits
        largest = int(values.max())
        if largest and not LEAST_MILLIMETRES < largest <= MOST_MILLIMETRES:
            raise DataError(f"{path} reaches {largest}: 16-bit maps hold millimetres, {LEAST_MILLIMETRES} to 10,000")
        return values, depth_from_millimetres


def depth_from_8_bits(values: np.ndarray) -> Tensor:
    """[H, W] uint8, 255 at 10 m -> [1, H, W] float32 metres."""
    return depth_from_metres(values) * (METRES_AT_255 / 255)


def _find_layout(root: Path) -> str | None:
    if (root / MATLAB_NAME).is_file():
        return "matlab"
    if any(_csv_folder(root, name) for name in CSV_NAMES.values()):
        return "csv"
    if any((root / part / "rgb").is_dir() for part in ("train", "test")):
        return "folders"
    return "lists" if _list_file(root, "train") or _list_file(root, "test") else None


def _csv_folder(root: Path, name: str) -> Path | None:
    return next((folder for folder in (root, root / "data") if (folder / name).is_file()), None)


def _list_file(root: Path, part: str) -> Path | None:
    for folder in (root, root / "train_test_inputs"):
        paths = folder.glob(f"*{part}*.txt") if folder.is_dir() else ()
        found = sorted(path for path in paths if path.is_file() and not is_hidden(path) and _lists_pictures(path))
        named = [path for path in found if "nyu" in path.name.lower()] or found
        if named:
            return named[0]
    return None


def _lists_pictures(path: Path) -> bool:
    """Return whether a text begins with a line that names a picture and a depth map."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        cells = next((line.split() for line in file if line.strip()), [])
    return len(cells) > 1 and Path(cells[0]).suffix.lower() in PICTURE_SUFFIXES


def _row(source: str, number: int, files: dict[str, tuple[str, ...]], roots: Sequence[str] | None = None) -> Row:
    """A row named after its picture, with the picture's scene; no ``roots``: there are no scenes."""
    first = next(paths[0] for paths in files.values() if paths)
    name = "/".join(Path(first).with_suffix("").parts[-2:])
    return Row(printable(name), source, number, None if roots is None else _scene(first, roots), files)


def _read_lines(path: Path, split: Any) -> list[tuple[int, Sequence[str]]]:
    """Numbered, split lines of a table without a header, blank ones left out."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        return [(number, cells) for number, cells in enumerate(split(lines), 1) if any(cells)]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}); save it in UTF-8") from None
    except (OSError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error}); copy it from the data set again") from None


def _scene(rgb: str, roots: Sequence[str]) -> str | None:
    """``.../kitchen_0028b_out/37.jpg`` -> ``kitchen_0028b``; None where pictures lie in a split's own folder."""
    folder = Path(rgb).parent.name
    return None if folder in roots else folder.removesuffix("_out")


def _physical_scene(location: str) -> str:
    """``kitchen_0028a`` and ``kitchen_0028b`` are two takes of one room: held out together or not at all."""
    return re.sub(r"(_\d+)[a-z]$", r"\1", location)


def _choose_scenes(scenes: Counter[str], target: float) -> set[str]:
    """Whole scenes with about ``target`` frames: in a fixed shuffled order each that still fits, else the smallest."""
    names = sorted(scenes)
    held: set[str] = set()
    frames = 0
    for position in np.random.default_rng(0).permutation(len(names)):
        if frames + scenes[names[position]] <= target:
            held.add(names[position])
            frames += scenes[names[position]]
    return held or {min(names, key=lambda name: (scenes[name], name))}
