"""Simulate furnished rooms and write them as a data set with images, depth maps and binaural echoes.

    python simulate_rooms.py --output data/simulated
    python simulate_rooms.py --output data/simulated_nyu --format nyu --image_size 256

A run that was stopped goes on when it is started again; the same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from errors import run_script
from simulation import is_complete, write_dataset
from training import options


def create_parser() -> argparse.ArgumentParser:
    """The script's options."""
    parser = options.create_parser(
        "Simulate furnished rooms: RGB image, depth map and binaural echo from one geometry. A run that was stopped "
        "goes on when it is started again; the same seed gives the same bytes."
    )
    parser.epilog = (
        "Rooms differ between train, val and test. In the nyu format, which has no list for validation, the rooms of "
        "--val are further scenes of nyu2_train.csv: readers of that format hold out whole scenes."
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write: new, empty, or begun before")
    parser.add_argument(
        "--format",
        choices=("batvisionv2", "nyu"),
        default="batvisionv2",
        help="batvisionv2: image, depth and echo; nyu: image and depth as in the CSV layout of NYU Depth V2",
    )
    group = parser.add_argument_group("rooms")
    group.add_argument("--train", type=int, default=1500, metavar="N", help="rooms to train on, over all locations")
    group.add_argument("--val", type=int, default=150, metavar="N", help="rooms to validate on, over all locations")
    group.add_argument("--test", type=int, default=300, metavar="N", help="rooms to test on, over all locations")
    group.add_argument("--image_size", type=int, default=128, metavar="S", help="side of image and depth, pixels")
    group.add_argument("--seed", type=int, default=0, metavar="K", help="of the rooms and all noise, 0 or more")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="W",
        help="processes (default: one per core); they change nothing in the data",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Simulate what the command line asks for."""
    args = create_parser().parse_args(argv)
    begun_complete = is_complete(args.output)
    write_dataset(args.output, args.format, args.train, args.val, args.test, args.image_size, args.seed, args.workers)
    rooms = args.train + args.val + args.test
    print(f"{args.output} {'was already complete' if begun_complete else 'is complete'}: {rooms} rooms")


if __name__ == "__main__":
    run_script(main)
