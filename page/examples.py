"""Recordings to try the page with: rooms that are simulated in memory, and the test rows of a data set."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import simulation
from dataloaders import HeldFile, Source, create_dataset
from dataloaders.base import depth_from_millimetres
from dataloaders.transforms import clean_depth, resize_depth

PER_FOLDER = 6
ROOMS, ROOM_SEED, ROOM_SIZE = 5, 20_000, 256  # rooms of a seed that no training is likely to have used; pixels


@dataclass(frozen=True)
class Example:
    """A recording to try.

    Attributes:
        title: what it is called on the page.
        files: ``audio``, and ``rgb`` where there is a picture.
        depth: measured metres [1, S, S] at the network's size, 0 = no measurement; None where nothing was measured.
    """

    title: str
    files: dict[str, Source]
    depth: Tensor | None

    def open(self) -> dict[str, Source]:
        """Return the files to be read: those in memory anew, so that several requests may read them at once."""
        return {
            key: HeldFile(file.name, file.getvalue()) if isinstance(file, HeldFile) else file
            for key, file in self.files.items()
        }


def draw_examples(preprocessing: Mapping[str, Any], count: int = ROOMS) -> list[Example]:
    """Simulate rooms, one of each kind in turn, without writing a file.

    Args:
        preprocessing: of the network that hears; it says how the measured depth is cut and resized.
        count: how many.
    """
    examples = []
    for index in range(count):
        kind = simulation.kind_of(index)
        files = simulation.draw_files(ROOM_SEED, "test", index, ROOM_SIZE)
        depth = depth_from_millimetres(np.load(io.BytesIO(files["depth"])))  # [1, 256, 256]
        depth = clean_depth(depth, preprocessing["max_depth"], preprocessing["min_depth"])
        held: dict[str, Source] = {
            "audio": HeldFile(f"{kind}.wav", files["audio"]),
            "rgb": HeldFile(f"{kind}.jpeg", files["rgb"]),
        }
        examples.append(Example(f"{_spaced(kind)}, simulated", held, resize_depth(depth, preprocessing["image_size"])))
    return examples


def find_examples(folder: Path, preprocessing: Mapping[str, Any], most: int = PER_FOLDER) -> list[Example]:
    """Take test rows, evenly spread, of a data set in BatVision V2's folders.

    Args:
        folder: of the data set.
        preprocessing: of the network that hears.
        most: how many.

    Raises:
        DataError: the folder holds no such data set, or a file of it is missing or broken.
    """
    dataset = create_dataset(
        "batvisionv2",
        folder,
        "test",
        image_size=preprocessing["image_size"],
        max_depth=preprocessing["max_depth"],
        min_depth=preprocessing["min_depth"],
        resample=preprocessing["resample"],
    )
    chosen = torch.linspace(0, len(dataset) - 1, min(most, len(dataset))).round().int().tolist()
    examples = []
    for index in chosen:
        row, depth = dataset.rows[index], dataset[index].get("depth")
        files: dict[str, Source] = {key: row.files[key][0] for key in ("audio", "rgb") if key in dataset.modalities}
        measured = depth if depth is not None and dataset.labelled[index] else None
        examples.append(Example(_spaced(row.id.replace("/", " ")), files, measured))
    return examples


def _spaced(name: str) -> str:
    return name.replace("_", " ")
