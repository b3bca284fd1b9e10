"""Does a training on eight times the data take eight times as long, in the same memory?

    python benchmarks/bench_scaling.py

Trains a small RGB network for one epoch on N simulated rooms and on 8 N, each as a process of its own, and compares the
seconds and the peak memory that the script itself reports at its end: the epoch, its validation and its pictures.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import measure
from errors import run_script
from training import options

TIMES = 8


def create_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag and its default."""
    parser = measure.create_parser(__doc__ or "", rounds=3)
    parser.add_argument("--rooms", type=options.positive_int, default=200, metavar="N", help="of the small data set")
    parser.add_argument("--image_size", type=options.positive_int, default=64, metavar="PIXELS", help="side")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    args = measure.parse(create_parser(), argv)
    sizes = {"N": args.rooms, f"{TIMES} N": TIMES * args.rooms}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sizes}
    with tempfile.TemporaryDirectory() as folder:
        for rooms in sizes.values():
            shape = ("--train", rooms, "--val", 16, "--test", 0, "--image_size", args.image_size)
            measure.call("simulate_rooms.py", "--output", f"{folder}/{rooms}", *shape)
        for _ in range(args.rounds):
            for name, rooms in sizes.items():
                found[name].append(train(Path(folder), rooms, args.image_size))
    rows = [
        {
            "rooms": sizes[name],
            "s": statistics.median(seconds for seconds, _ in values),
            "peak [GiB]": statistics.median(peak for _, peak in values),
        }
        for name, values in found.items()
    ]
    small, large = found.values()
    longer = measure.ratio([seconds for seconds, _ in large], [seconds for seconds, _ in small])
    more = measure.ratio([peak for _, peak in large], [peak for _, peak in small])
    measure.report(args, rows, longer=longer, more_memory=more)
    print(f"\n{longer:.2f} times as long, {more:.2f} times the memory")


def train(folder: Path, rooms: int, side: int) -> tuple[float, float]:
    """Return the seconds of an epoch's steps, and the peak memory in GiB."""
    flags = ("--base_channels", 8, "--batch_size", 16, "--image_size", side, "--num_workers", 0, "--nb_epochs", 1)
    where = ("--dataset", "simulated", "--dataset_dir", folder / f"{rooms}", "--output_dir", folder, "--overwrite")
    said = measure.call("train_rgb_depth.py", *flags, *where, "--experiment_name", "scaling")
    found = re.search(r"took ([\d.]+) s, at most ([\d.]+) GiB", said)
    assert found, said
    return float(found.group(1)), float(found.group(2))


if __name__ == "__main__":
    run_script(main)
