"""Does a training on eight times the data take eight times as long, in the same memory?

    python benchmarks/bench_scaling.py

Trains a small RGB network for two epochs on N simulated rooms and on 8 N, each as a process of its own, one after the
other, round after round. "epoch" is the time between the two lines that the run prints at the end of its epochs: all
steps, the validation (of 16 rooms), pictures and checkpoints. "run" is that of the process, from the start of Python to
its end; what does not grow with the data has a larger part in it. The peak memory is what the run says at its end.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import measure
from errors import TrainingError, run_script
from training import options

TIMES = 8
EPOCHS = 2


class Taken(NamedTuple):
    """What a training took: seconds of an epoch and of the whole process, peak memory in GiB."""

    epoch: float
    run: float
    peak: float


def create_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag and its default."""
    parser = measure.create_parser(__doc__ or "", rounds=2)
    parser.add_argument("--rooms", type=options.positive_int, default=1600, metavar="N", help="of the small data set")
    parser.add_argument("--image_size", type=options.positive_int, default=64, metavar="PIXELS", help="side")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    args = measure.parse(create_parser(), argv)
    sizes = (args.rooms, TIMES * args.rooms)
    found: dict[int, list[Taken]] = {rooms: [] for rooms in sizes}
    with tempfile.TemporaryDirectory(prefix="bench_scaling_") as folder:
        for rooms in sizes:
            shape = ("--train", rooms, "--val", 16, "--test", 0, "--image_size", args.image_size)
            measure.call("simulate_rooms.py", "--output", f"{folder}/{rooms}", *shape)
        for _ in range(args.rounds):
            for rooms in sizes:
                found[rooms].append(train(Path(folder), rooms, args.image_size))
    rows = [
        {
            "rooms": rooms,
            "epoch [s]": statistics.median(one.epoch for one in taken),
            "run [s]": statistics.median(one.run for one in taken),
            "peak [GiB]": statistics.median(one.peak for one in taken),
        }
        for rooms, taken in found.items()
    ]
    small, large = (list(zip(*taken, strict=True)) for taken in found.values())
    longer, longer_run, more_memory = map(measure.ratio, large, small)
    measure.report(args, rows, longer=longer, longer_run=longer_run, more_memory=more_memory)
    print(
        f"\nan epoch takes {longer:.2f} times as long, a run {longer_run:.2f} times, in {more_memory:.2f} of the memory"
    )


def train(folder: Path, rooms: int, side: int) -> Taken:
    """Train on one of the data sets and return what that took."""
    flags = ("--base_channels", 8, "--batch_size", 16, "--image_size", side, "--num_workers", 0, "--nb_epochs", EPOCHS)
    where = ("--dataset", "simulated", "--dataset_dir", folder / f"{rooms}", "--output_dir", folder, "--overwrite")
    return read(measure.call("train_rgb_depth.py", *flags, *where, "--experiment_name", "scaling"))


def read(said: Sequence[tuple[float, str]]) -> Taken:
    """Return what a training took, from the lines that it printed and when.

    Raises:
        TrainingError: the lines of its epochs, or its last, are not there.
    """
    ends = [seconds for seconds, line in said if line.startswith("epoch ")]
    peaks = [float(found.group(1)) for _, line in said if (found := re.search(r"at most ([\d.]+) GiB", line))]
    if len(ends) < EPOCHS or not peaks:
        raise TrainingError("a training did not say when its epochs ended: " + "".join(line for _, line in said))
    return Taken(ends[-1] - ends[-2], said[-1][0], peaks[-1])


if __name__ == "__main__":
    run_script(main)
