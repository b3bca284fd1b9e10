"""How long it takes to make network inputs of recordings: one at a time, as a loader does, or a batch on the device.

    python benchmarks/bench_front_end.py

One at a time is ``transforms.prepare_audio`` on one core, which a worker process of a loader has; a batch is the same
as a network (``dataloaders.AudioFrontEnd``), on the GPU where there is one, with the way of the sound to it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import measure
from dataloaders import AUDIO_FORMATS, AudioFrontEnd, prepare_audio
from dataloaders.transforms import cut_samples
from errors import run_script
from training import options


def create_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag and its default."""
    parser = measure.create_parser(__doc__ or "", rounds=7)
    parser.add_argument("--batch_size", type=options.positive_int, default=16, metavar="N", help="recordings")
    parser.add_argument("--image_size", type=options.positive_int, default=256, metavar="N", help="side [pixels]")
    parser.add_argument("--max_depth", type=options.positive_float, default=30.0, metavar="M", help="cuts them [m]")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    args = measure.parse(create_parser(), argv)
    device = measure.device()
    rows = []
    for audio_format in AUDIO_FORMATS:
        ways = {"one at a time": one_at_a_time(args, audio_format), "a batch": a_batch(args, audio_format, device)}
        seconds = measure.take_turns(ways, args.rounds, device)
        rows.append(
            {
                "format": audio_format,
                **{f"{way} [ms]": 1000 * statistics.median(taken) for way, taken in seconds.items()},
                "ratio": measure.ratio(seconds["one at a time"], seconds["a batch"]),
            }
        )
    measure.report(args, rows)


def recordings(args: argparse.Namespace) -> torch.Tensor:
    """Return noise in the place of echoes, [N, 2, samples]."""
    torch.manual_seed(0)
    return 0.1 * torch.randn(args.batch_size, 2, cut_samples(args.max_depth))


def preprocessing(args: argparse.Namespace, audio_format: str) -> dict[str, object]:
    """Return what shapes an input."""
    samples = cut_samples(args.max_depth)
    return {"audio_format": audio_format, "audio_samples": samples, "image_size": args.image_size}


def one_at_a_time(args: argparse.Namespace, audio_format: str) -> Callable[[], object]:
    """Return what prepares each recording for itself on one thread, and puts them together."""
    waves, how, threads = recordings(args), preprocessing(args, audio_format), torch.get_num_threads()

    def run() -> torch.Tensor:
        torch.set_num_threads(1)
        try:
            return torch.stack([prepare_audio(wave, how) for wave in waves])  # [N, C, S, S]
        finally:
            torch.set_num_threads(threads)

    return run


def a_batch(args: argparse.Namespace, audio_format: str, device: str) -> Callable[[], object]:
    """Return what prepares all of them in one call on the device."""
    waves = recordings(args)
    if device == "cuda":
        waves = waves.pin_memory()
    image = AudioFrontEnd(preprocessing(args, audio_format)).to(device)
    return measure.without_gradient(lambda: image(waves.to(device, non_blocking=True)))  # [N, C, S, S]


if __name__ == "__main__":
    run_script(main)
