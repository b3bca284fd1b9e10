"""NYU Depth V2 in the four forms in which it is passed around, always in metres.

Silberman, Hoiem, Kohli, Fergus, "Indoor Segmentation and Support Inference from RGBD Images", ECCV 2012.

Valid is ``min_depth < d < max_depth``. Validation never touches the official test split: it takes whole scenes out of
the training frames where these name two or more scenes, and else their last contiguous tenth.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from dataloaders.base import DepthDataset, Row, ToMetres, depth_from_metres, depth_from_millimetres, log
from dataloaders.matlab import LabelledFile, read_splits
from dataloaders.readers import natural_order, read_image, safe_path
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
    default_dir = "data/NYU"
    default_max_depth = 10.0
    can_supply = ("rgb", "depth")
    beyond_max_depth = "drop"
    where_to_get_it = (
        f"NYU Depth V2 is at cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html; it is read as {MATLAB_NAME} with "
        f"{SPLITS_NAME}, nyu2_train.csv with nyu2_test.csv, train/rgb, train/depth, test/rgb, test/depth, or lists of "
        "'rgb depth focal'; --dataset simulated needs no download"
    )

    def find_rows(self) -> list[Row]:
        self.layout = self._find_layout()
        log.info("%s: NYU Depth V2 in the layout '%s'", self.dataset_dir, self.layout)
        if self.split == "test":
            return self._official("test")
        frames = self._official("train")
        return self._keep_split(frames) if frames else frames

    def _find_layout(self) -> str:
        root = Path(self.dataset_dir)
        if (root / MATLAB_NAME).is_file():
            return "matlab"
        if any(self._csv_folder(name) for name in CSV_NAMES.values()):
            return "csv"
        if any((root / part / "rgb").is_dir() for part in ("train", "test")):
            return "folders"
        if self._list_file("train") or self._list_file("test"):
            return "lists"
        raise DataError(f"{root} holds no known layout; {self.where_to_get_it}")

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

    def _csv_folder(self, name: str) -> Path | None:
        folders = (Path(self.dataset_dir), Path(self.dataset_dir, "data"))
        return next((folder for folder in folders if (folder / name).is_file()), None)

    def _from_csv(self, part: str) -> list[Row]:
        folder = self._csv_folder(CSV_NAMES[part])
        if folder is None:
            raise DataError(f"{Path(self.dataset_dir, CSV_NAMES[part])} is missing; copy it from the data set")
        table = folder / CSV_NAMES[part]
        rows = []
        for number, cells in _read_lines(table, csv.reader):
            rgb, depth = (self._resolve(cell.strip(), folder, f"{table}, row {number}") for cell in cells[:2])
            rows.append(_row(str(table), number, rgb, depth, _scene(rgb, ("nyu2_train", "nyu2_test"))))
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
        raise DataError(f"{where}: {cell} is missing; tried {', '.join(dict.fromkeys(roots))}; check --dataset_dir")

    def _list_file(self, part: str) -> Path | None:
        for folder in (Path(self.dataset_dir), Path(self.dataset_dir, "train_test_inputs")):
            found = sorted(path for path in folder.glob(f"*{part}*.txt") if path.is_file()) if folder.is_dir() else []
            named = [path for path in found if "nyu" in path.name.lower()] or found
            if named:
                return named[0]
        return None

    def _from_lists(self, part: str) -> list[Row]:
        table = self._list_file(part)
        if table is None:
            raise DataError(f"{self.dataset_dir} holds no list *{part}*.txt; copy it from BTS or AdaBins")
        root = Path(self.dataset_dir, "sync" if part == "train" else "official_splits/test")
        root = root if root.is_dir() else Path(self.dataset_dir)
        rows = []
        for number, cells in _read_lines(table, lambda lines: (line.split() for line in lines)):
            # A leading / is the lists' own habit: it stands for the root.
            rgb, depth = (f"{root}/{safe_path(cell.lstrip('/'), f'{table}, row {number}')}" for cell in cells[:2])
            rows.append(_row(str(table), number, rgb, depth, _scene(rgb, (root.name,))))
        return rows

    def _from_folders(self, part: str) -> list[Row]:
        pictures, maps = (Path(self.dataset_dir, part, name) for name in ("rgb", "depth"))
        for folder in (pictures, maps):
            if not folder.is_dir():
                raise DataError(f"{folder} is missing; this layout has rgb and depth below train and test")
        by_stem = {path.stem: str(path) for path in sorted(maps.iterdir()) if path.suffix.lower() == ".png"}
        names = natural_order(path.name for path in pictures.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
        rows = []
        for number, name in enumerate(names, 1):
            stem = Path(name).stem
            if stem not in by_stem:
                raise DataError(
                    f"{maps / stem}.png is missing, the depth map of {pictures / name}; copy it or drop both"
                )
            rows.append(_row(str(pictures), number, str(pictures / name), by_stem[stem], None))
        return rows

    def _from_matlab(self, part: str) -> list[Row]:
        path = Path(self.dataset_dir, MATLAB_NAME)
        self._matlab = LabelledFile(path)
        numbers = read_splits(path.with_name(SPLITS_NAME), f"{part}Ndxs")
        outside = [number for number in numbers if not 1 <= number <= len(self._matlab)]
        if outside:
            raise DataError(f"{path.with_name(SPLITS_NAME)} names frame {outside[0]}; {path} holds {len(self._matlab)}")
        return [_row(str(path), number, str(path), str(path), None, f"{part}/{number:05d}") for number in numbers]

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
        values = np.asarray(read_image(path))
        if values.ndim != 2 or values.dtype.kind not in "iu":
            raise DataError(
                f"{path} is no single-channel 8-bit or 16-bit PNG (shape {list(values.shape)}, {values.dtype})"
            )
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


def _row(source: str, number: int, rgb: str, depth: str, scene: str | None, name: str = "") -> Row:
    if not rgb:
        raise DataError(f"{source}, row {number}: no picture is named; fill the cell or drop the row")
    files: dict[str, tuple[str, ...]] = {"rgb": (rgb,), "depth": (depth,) if depth else ()}
    return Row(name or "/".join(Path(rgb).with_suffix("").parts[-2:]), source, number, scene, files)


def _read_lines(path: Path, split: Any) -> list[tuple[int, Sequence[str]]]:
    """Numbered, split lines of a table without a header, blank ones left out; each has two cells at least."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); copy it from the data set again") from None
    lines = [(number, cells) for number, cells in enumerate(split(text.splitlines()), 1) if any(cells)]
    for number, cells in lines:
        if len(cells) < 2:
            raise DataError(f"{path}, row {number}: expected a picture and a depth map, found {cells}")
    return lines


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
