"""How many rooms a second are simulated: picture, depth and echo, written to the disk.

    python benchmarks/bench_simulation.py

Runs ``simulate_rooms.py`` as a user does, from start to end, into a temporary folder.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import measure
from errors import run_script
from training import options


def create_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag and its default."""
    parser = measure.create_parser(__doc__ or "", rounds=3, threads=False)
    parser.add_argument("--rooms", type=options.positive_int, default=400, metavar="N", help="of each run")
    parser.add_argument(
        "--image_size", type=options.positive_int, nargs="+", default=[64, 128], metavar="S", help="sides in pixels"
    )
    parser.add_argument("--workers", type=options.positive_int, metavar="W", help="processes (default: one per core)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    args = measure.parse(create_parser(), argv)
    workers = args.workers or os.cpu_count() or 1
    rows = []
    for side in args.image_size:
        seconds = [simulate(args.rooms, side, workers) for _ in range(args.rounds)]
        median = statistics.median(seconds)
        rows.append(
            {
                "side": side,
                "rooms": args.rooms,
                "processes": workers,
                "s": median,
                "rooms/s": args.rooms / median,
            }
        )
    measure.report(args, rows, rooms_per_second=rows[0]["rooms/s"])


def simulate(rooms: int, side: int, workers: int) -> float:
    """Return the seconds that a data set of ``rooms`` takes, the start of Python included."""
    with tempfile.TemporaryDirectory() as folder:
        size = ("--train", rooms, "--val", 0, "--test", 0, "--image_size", side)
        begun = time.perf_counter()
        measure.call("simulate_rooms.py", "--output", f"{folder}/rooms", *size, "--workers", workers)
        return time.perf_counter() - begun


if __name__ == "__main__":
    run_script(main)
