"""The two formats in which simulated rooms are stored: BatVision V2's own, and the CSV layout of NYU Depth V2.

``batvisionv2``: ``<root>/<Location>/{audio/audio_<i>.wav, camera/camera_<i>.jpeg, depth/depth_<i>.npy}`` with
``train.csv``, ``val.csv`` and ``test.csv`` in each location: stereo WAV of 44.1 kHz with 24-bit samples in 32-bit
containers, and uint16 depth in millimetres, 0 = no measurement.

``nyu``: headerless ``nyu2_train.csv`` and ``nyu2_test.csv`` with lines ``rgb,depth``. Depth of training is an 8-bit PNG
without holes (metres = value / 255 * 10), of testing a 16-bit PNG in millimetres, 0 = no measurement. There is no file
for validation: its rooms are scenes of their own in ``nyu2_train``, since readers of this layout hold out whole scenes.
"""

from __future__ import annotations

import csv
import io
import os
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from simulation.echoes import SAMPLE_RATE
from simulation.rooms import KINDS, Array
from simulation.scenes import SPLITS, Sample, draw_sample, kind_of

PARTIAL = ".simulation-partial"  # folder of the files that are being written
BATVISION_COLUMNS = (
    "index", "time", "left audio time", "right audio time", "audio path", "audio file name",
    "camera time", "camera path", "camera file name", "depth time", "depth path", "depth file name",
)  # fmt: skip
NYU_MAX_DEPTH = 10.0
JPEG_QUALITY = 92


@dataclass(frozen=True)
class Settings:
    """What a data set consists of: everything that its bytes depend on, beside the version of this package."""

    layout: str
    train: int
    val: int
    test: int
    image_size: int
    seed: int

    def samples(self) -> Iterator[tuple[str, int]]:
        """(split, index) of every sample."""
        for split in SPLITS:
            for index in range(getattr(self, split)):
                yield split, index

    def number(self, split: str, index: int) -> int:
        """The number that a sample has within its kind of location, over all splits, from 0."""
        kinds = len(KINDS)
        earlier = SPLITS[: SPLITS.index(split)]
        return index // kinds + sum(len(range(index % kinds, getattr(self, name), kinds)) for name in earlier)


def store(root: Path, name: str, content: bytes) -> None:
    """Write `root/name` so that it is whole or absent, whenever the process ends."""
    target = root / name
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = root / PARTIAL / f"{name.replace('/', '_')}.{os.getpid()}"
    partial.parent.mkdir(exist_ok=True)
    partial.write_bytes(content)
    partial.replace(target)


def _encoded(image: NDArray, form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form, quality=JPEG_QUALITY)
    return buffer.getvalue()


def _wav(audio: Array) -> bytes:
    """Channels [2, T] in [-1, 1] as 24-bit samples in 32-bit containers (the low byte is 0)."""
    samples = np.rint(np.clip(audio, -1, 1).T.astype(np.float64) * (2**23 - 1)).astype("<i4") << 8  # [T, 2]
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(4)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


def _npy(array: NDArray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _millimetres(sample: Sample, max_depth: float) -> NDArray[np.uint16]:
    """Depth with the holes of a real depth camera: [S, S]."""
    millimetres = np.rint(np.clip(sample.depth, 1e-3, max_depth) * 1000).astype(np.uint16)
    return np.where(sample.lost, np.uint16(0), millimetres)


def _table(rows: list[list[object]]) -> bytes:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode()


class BatVision:
    """BatVision V2's folders; the locations are the kinds of room."""

    has_audio = True

    def files(self, settings: Settings, split: str, index: int) -> tuple[str, ...]:
        """Names of a sample's files below the root."""
        location, number = kind_of(index), settings.number(split, index)
        return (
            f"{location}/audio/audio_{number}.wav",
            f"{location}/camera/camera_{number}.jpeg",
            f"{location}/depth/depth_{number}.npy",
        )

    def contents(self, split: str, sample: Sample) -> Iterator[bytes]:
        """Bytes of those files."""
        assert sample.audio is not None
        yield _wav(sample.audio)
        yield _encoded(sample.rgb, "JPEG")
        yield _npy(_millimetres(sample, 65.0))

    def tables(self, settings: Settings) -> Iterator[tuple[str, bytes]]:
        """Names and bytes of the CSV files: three in each location that has a sample at all."""
        rows: dict[str, list[list[object]]] = {}
        for split, index in settings.samples():
            location = kind_of(index)
            for name in SPLITS:
                rows.setdefault(f"{location}/{name}.csv", [list(BATVISION_COLUMNS)])
            row: list[object] = [settings.number(split, index), 0.0, 0.0, 0.0]
            for file in self.files(settings, split, index):
                folder, name = file.rsplit("/", 1)
                row += [f"{folder}/", name, 0.0]
            rows[f"{location}/{split}.csv"].append(row[:-1])
        for name, table in rows.items():
            yield name, _table(table)


class Nyu:
    """The CSV layout of NYU Depth V2; each room is a scene of one frame."""

    has_audio = False

    def files(self, settings: Settings, split: str, index: int) -> tuple[str, ...]:
        """Names of a sample's files below the root."""
        if split == "test":
            return f"nyu2_test/{index:05d}_colors.png", f"nyu2_test/{index:05d}_depth.png"
        scene = f"nyu2_train/{kind_of(index).lower()}_{settings.number(split, index) + 1:04d}_out"
        return f"{scene}/1.jpg", f"{scene}/1.png"

    def contents(self, split: str, sample: Sample) -> Iterator[bytes]:
        """Bytes of those files."""
        if split == "test":
            yield _encoded(sample.rgb, "PNG")
            yield _encoded(_millimetres(sample, NYU_MAX_DEPTH), "PNG")
            return
        yield _encoded(sample.rgb, "JPEG")
        share = np.clip(sample.depth / NYU_MAX_DEPTH, 0, 1)
        yield _encoded(np.maximum(np.rint(share * 255), 1).astype(np.uint8), "PNG")

    def tables(self, settings: Settings) -> Iterator[tuple[str, bytes]]:
        """Names and bytes of the two CSV files."""
        rows: dict[str, list[list[object]]] = {"nyu2_train.csv": [], "nyu2_test.csv": []}
        for split, index in settings.samples():
            table = rows["nyu2_test.csv" if split == "test" else "nyu2_train.csv"]
            table.append([f"data/{name}" for name in self.files(settings, split, index)])
        for name, table in rows.items():
            yield name, _table(table)


LAYOUTS: dict[str, Callable[[], BatVision | Nyu]] = {"batvisionv2": BatVision, "nyu": Nyu}


def draw_files(seed: int, split: str, index: int, image_size: int) -> dict[str, bytes]:
    """Return what :func:`simulation.write_dataset` would write of a sample in BatVision V2's format, without writing.

    Returns:
        ``audio`` (WAV), ``rgb`` (JPEG) and ``depth`` (NPY, millimetres, 0 = no measurement).
    """
    contents = BatVision().contents(split, draw_sample(seed, split, index, image_size))
    return dict(zip(("audio", "rgb", "depth"), contents, strict=True))
