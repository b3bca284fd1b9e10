"""A folder of pictures without depth, for teachers that label them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataloaders.base import SPLITS, DepthDataset, Row, printable
from dataloaders.readers import is_hidden, looking_into, natural_order, read_image
from errors import DataError

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"))


class Images(DepthDataset):
    """Every picture below ``<root>/<split>``, or below the root where it has no folder of a split's name.

    Hidden files and folders, whose names begin with a dot, are passed over; links to folders are followed.

    A sample has ``rgb``, ``id`` (the path inside the folder) and ``index``. Pictures are turned upright as their EXIF
    tags say. Without split folders each split is the whole folder: there is no label that could leak.
    """

    name = "images"
    default_dir = "data/images"
    default_max_depth = 10.0
    can_supply = ("rgb",)
    where_to_get_it = f"name a folder with pictures ({' '.join(sorted(SUFFIXES))})"

    @classmethod
    def is_in(cls, folder: Path) -> bool:
        return next(pictures_in(folder), None) is not None

    @classmethod
    def splits_in(cls, folder: Path) -> tuple[str, ...]:
        with looking_into(folder):
            return tuple(split for split in SPLITS if (folder / split).is_dir()) or SPLITS[:1]

    def find_rows(self) -> list[Row]:
        root = Path(self.dataset_dir)
        folder = root / self.split
        if not folder.is_dir():
            if any((root / split).is_dir() for split in SPLITS):
                raise DataError(
                    f"{folder} is missing, although {root} is divided into splits; make it, or use one folder"
                )
            folder = root
        names = natural_order(path.relative_to(root).as_posix() for path in pictures_in(folder))
        return [
            Row(printable(name), str(folder), number, files={"rgb": (f"{self.dataset_dir}/{name}",)})
            for number, name in enumerate(names, 1)
        ]

    def read_rgb(self, row: Row) -> Any:
        return read_image(row.files["rgb"][0], upright=True)


def pictures_in(folder: Path) -> Iterator[Path]:
    """Find the pictures below a folder, in no order, but for hidden ones; also in linked folders, each once."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not is_hidden(Path(name)))
        if (real := os.path.realpath(place)) in seen:  # a link may lead back to where it stands
            folders.clear()
            continue
        seen.add(real)
        for path in (Path(place, name) for name in names if not is_hidden(Path(name))):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                yield path
