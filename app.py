"""A page to try a network that hears: drop an echo, see depth in metres, spectrograms and a point cloud.

It runs on this machine alone, needs nothing from the Internet, and writes nothing to disk.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from errors import run_script
from page import Example, Network, Viewer, create_server, draw_examples, find_examples, open_network
from training import options
from training.engine import create_fabric

REAL_SAMPLES = Path(__file__).resolve().parent.parent / "shared" / "samples" / "BatvisionV2"


def create_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag and its default."""
    parser = options.create_parser(__doc__)
    options.add_checkpoint_option(parser, "of a network that hears: any .pth of a training script")
    parser.add_argument(
        "--teacher",
        type=Path,
        metavar="FILE",
        help="of a network that sees: any .pth, or Depth Anything's weights; it answers where a picture is given",
    )
    group = parser.add_argument_group("page")
    group.add_argument(
        "--examples",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="data sets in BatVision V2's folders: rows of their test split to try (default: rooms that are simulated "
        "at start)",
    )
    group.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="of this machine; 0.0.0.0: of all its networks"
    )
    group.add_argument("--port", type=port, default=7860, metavar="N", help="0: any that is free")
    group.add_argument(
        "--field_of_view",
        type=degrees,
        nargs=2,
        metavar=("ACROSS", "DOWN"),
        help="of the camera, for the point cloud [degrees] (default: that of the network's data set, if it is known)",
    )
    options.add_one_device_options(parser, exact=True)
    return parser


def port(text: str) -> int:
    """Parse a port's number."""
    value = int(text)
    if not 0 <= value < 2**16:
        raise argparse.ArgumentTypeError(f"{text} is not in 0 to 65535")
    return value


def degrees(text: str) -> float:
    """Parse an angle that a pinhole camera may see."""
    value = float(text)
    if not 1 <= value <= 170:
        raise argparse.ArgumentTypeError(f"{text} is not in 1 to 170 degrees")
    return value


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, load, serve until Ctrl-C."""
    args = create_parser().parse_args(argv)
    options.check_device(args, most=1)
    options.settle_precision(args)
    student = open_network(args.checkpoint)
    teacher = open_network(args.teacher) if args.teacher else None
    view = tuple(args.field_of_view) if args.field_of_view else None
    viewer = Viewer(student, teacher, create_fabric(args), field_of_view=view)
    viewer.examples = choose_examples(args.examples, student)
    with create_server(viewer, args.host, args.port) as server:
        print(f"{server.url} shows {args.checkpoint}; Ctrl-C ends it", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("app.py: ended")


def choose_examples(folders: Sequence[Path] | None, student: Network) -> list[Example]:
    """Return the recordings to try: of the folders, else simulated ones, and a real one where it lies beside the clone.

    Raises:
        DataError: a folder holds no such data set, or a file of it is broken.
    """
    if folders:
        return [example for folder in folders for example in find_examples(folder, student.preprocessing)]
    real = find_examples(REAL_SAMPLES, student.preprocessing) if REAL_SAMPLES.is_dir() else []
    return [*draw_examples(student.preprocessing), *real]


if __name__ == "__main__":
    run_script(main)
