"""Samples per second of a training's input: a plain loader, this toolkit's, and its cache of prepared samples.

    python benchmarks/bench_data.py --json data.json

Files of the real size are made in a temporary folder, in BatVision V2's layout: WAV with 20,000 frames of two ears,
depth maps of 720x1280 pixels in uint16 millimetres, JPEG of 1280x720 pixels. Each round measures, one after the other,

* plain: per item what the official BatVision loader does: ``np.load``, metres, the whole WAV, its cut, short-time
  Fourier transform, both resized bilinearly; no check, no holes kept apart. Pictures likewise, where asked for;
* no cache: this toolkit's loader;
* cold: ``--cache_dir`` in an empty folder, until all samples are prepared and on the disk;
* warm: the same loader, which reads them.

A ratio is one of two neighbours of the same round, so that what else the machine does bears on both; the table shows
medians over the rounds. Files and cache come out of the page cache: what a disk adds is not in it.
"""

from __future__ import annotations

import argparse
import csv
import logging
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import measure
from dataloaders import create_dataset, create_loader
from dataloaders.workers import usable_workers
from errors import run_script
from training import options

RATE, FRAMES = 44_100, 20_000
HEIGHT, WIDTH = 720, 1280
MAX_DEPTH = 30.0
CASES = {"echo, depth": ("audio", "depth"), "echo, picture, depth": ("audio", "depth", "rgb")}
WAYS = ("plain", "no cache", "cold", "warm")


def create_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag and its default."""
    parser = measure.create_parser(__doc__ or "", rounds=5)
    parser.add_argument("--samples", type=options.positive_int, default=128, metavar="N", help="of each pass")
    parser.add_argument("--image_size", type=options.positive_int, default=256, metavar="N", help="side [pixels]")
    parser.add_argument("--batch_size", type=options.positive_int, default=16, metavar="N", help="samples of a batch")
    parser.add_argument("--num_workers", type=options.non_negative_int, default=0, metavar="N", help="loader processes")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Make the files, measure, print a Markdown table."""
    args = measure.parse(create_parser(), argv)
    logging.getLogger("dataloaders").setLevel(logging.WARNING)
    results = {}
    with tempfile.TemporaryDirectory(prefix="bench_data_") as folder:
        root = Path(folder, "data")
        write_files(root, args.samples)
        for case, modalities in CASES.items():
            rounds = [
                pass_through(args, root, Path(folder, f"{case} {number}"), modalities) for number in range(args.rounds)
            ]
            results[case] = {way: [rates[way] for rates in rounds] for way in WAYS}
    measure.report(args, rows_of(results), samples_per_second=results)


def write_files(root: Path, samples: int) -> None:
    """Write one location of BatVision V2's layout, all of it for training."""
    rng = np.random.default_rng(0)
    for kind in ("audio", "camera", "depth"):
        (root / "Hall" / kind).mkdir(parents=True)
    decay = np.exp(-np.arange(FRAMES) / 1500)[:, None]
    lines = [[f"{kind} {column}" for kind in ("audio", "camera", "depth") for column in ("path", "file name")]]
    for number in range(samples):
        names = {"audio": f"audio_{number}.wav", "camera": f"camera_{number}.jpeg", "depth": f"depth_{number}.npy"}
        echo = np.clip(rng.normal(0, 0.2, (FRAMES, 2)) * decay, -1, 1)
        soundfile.write(root / "Hall/audio" / names["audio"], echo, RATE, "PCM_32")
        coarse = Image.fromarray(rng.integers(0, 256, (90, 160, 3), dtype=np.uint8))
        coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(root / "Hall/camera" / names["camera"])
        depth = rng.integers(500, 20_000, (HEIGHT, WIDTH)).astype(np.uint16)
        depth[: HEIGHT // 5] = 0  # a fifth is holes
        np.save(root / "Hall/depth" / names["depth"], depth)
        lines.append([cell for kind, name in names.items() for cell in (f"Hall/{kind}/", name)])
    with (root / "Hall/train.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)


class PlainDataset(Dataset):
    """What the official BatVision loader does to an item, with soundfile in torchaudio's place."""

    def __init__(self, root: Path, samples: int, modalities: Sequence[str], image_size: int) -> None:
        self.root, self.samples, self.modalities = root / "Hall", samples, modalities
        self.size = [image_size, image_size]

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        depth = np.load(self.root / f"depth/depth_{index}.npy").astype(np.float32) / 1000
        depth[depth > MAX_DEPTH] = MAX_DEPTH
        wave = torch.from_numpy(soundfile.read(self.root / f"audio/audio_{index}.wav", dtype="float32")[0].T)
        wave = wave[:, : int(2 * MAX_DEPTH / 340 * RATE)]
        spectrum = torch.stft(wave, 512, 16, 64, torch.hann_window(64), return_complex=True).abs()  # [2, 257, T]
        sample = {
            "depth": F.resize(torch.from_numpy(depth)[None], self.size, antialias=True),
            "audio": F.resize(spectrum, self.size, antialias=True),
        }
        if "rgb" in self.modalities:
            image = Image.open(self.root / f"camera/camera_{index}.jpeg").resize((self.size[1], self.size[0]))
            sample["rgb"] = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return sample


def pass_through(args: argparse.Namespace, root: Path, cache: Path, modalities: Sequence[str]) -> dict[str, float]:
    """Return the samples per second of each way, once."""
    workers = usable_workers(args.num_workers)
    # as create_loader has it
    kept: dict[str, Any] = {"persistent_workers": True, "prefetch_factor": 4} if workers else {}

    def dataset(**more: Any) -> Any:
        return create_dataset("batvisionv2", root, "train", args.image_size, MAX_DEPTH, modalities=modalities, **more)

    items = PlainDataset(root, args.samples, modalities, args.image_size)
    plain = DataLoader(items, args.batch_size, num_workers=workers, **kept)
    uncached = create_loader(dataset(), args.batch_size, shuffle=False, num_workers=workers)
    cached = dataset(cache_dir=cache)
    seconds = {"plain": passing(plain), "no cache": passing(uncached)}
    start = time.perf_counter()
    warm = create_loader(cached, args.batch_size, shuffle=False, num_workers=workers)
    seconds["cold"] = time.perf_counter() - start
    seconds["warm"] = passing(warm, 5)
    return {way: args.samples / taken for way, taken in seconds.items()}


def passing(loader: DataLoader, passes: int = 1) -> float:
    """Return the seconds of a pass through a loader, the median of some; its workers, if it has any, run already."""
    if loader.num_workers:
        deque(loader, maxlen=0)
    seconds = []
    for _ in range(passes):
        start = time.perf_counter()
        deque(loader, maxlen=0)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def rows_of(results: dict[str, dict[str, list[float]]]) -> list[dict[str, object]]:
    """Return the table's rows: samples per second, and how many times those of the plain loader that is."""
    rows: list[dict[str, object]] = []
    for case, rates in results.items():
        row: dict[str, object] = {"": case, "plain": f"{statistics.median(rates['plain']):.0f}"}
        for way in WAYS[1:]:
            times = measure.ratio(rates[way], rates["plain"])
            row[way] = f"{statistics.median(rates[way]):.0f} ({times:.1f} x)"
        rows.append(row)
    return rows


if __name__ == "__main__":
    run_script(main)
