"""How long an answer takes: a network of this house beside BatVision's unet_256, on the same threads.

    python benchmarks/bench_inference.py --checkpoint checkpoints/student/best_model.pth
    python benchmarks/bench_inference.py --model binaural_attention --base_channels 16 --attention_levels 4 5

Each as plain PyTorch runs it (float32, NCHW), channels last under ``--precision auto``, and compiled (``--compile``),
at batch 1 and 32. "times as fast": the time of plain unet_256 (64 channels, as published) over the row's, at the same
batch. Preprocessing is not in it: it is the same for both.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import measure
from errors import OptionError, run_script
from models import MODELS, DepthModel, create_model
from models.base import INPUT_CHANNELS
from training import options
from training.checkpoint import load_model
from training.engine import resolve_precision

REFERENCE = "unet_256, plain"
BATCHES = (1, 32)


def create_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag and its default."""
    parser = measure.create_parser(__doc__ or "", rounds=15)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--checkpoint", type=Path, metavar="FILE", help="a network that has learnt")
    what.add_argument(
        "--model", choices=tuple(MODELS), default="binaural_attention", metavar="NAME", help="of random weights"
    )
    parser.add_argument("--base_channels", type=options.positive_int, default=16, metavar="N", help="width of --model")
    parser.add_argument(
        "--attention_levels", type=int, nargs="*", metavar="N", help="of --model binaural_attention (default: its own)"
    )
    parser.add_argument("--image_size", type=options.positive_int, default=256, metavar="PIXELS", help="side")
    parser.add_argument("--compile", action="store_true", help="a row with torch.compile")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    args = measure.parse(create_parser(), argv)
    device = measure.device()
    name, model = open_model(args)
    rows: list[dict[str, object]] = []
    for images in BATCHES:
        reference = create_model("unet_baseline", image_size=args.image_size)
        variants = {REFERENCE: answer(reference, images, args.image_size, device)}
        variants |= {
            f"{name}, {how}": answer(model, images, args.image_size, device, how) for how in ways(args.compile, device)
        }
        seconds = measure.take_turns(variants, args.rounds, device)
        for variant, times in seconds.items():
            median = statistics.median(times)
            rows.append(
                {
                    "network": variant,
                    "batch": images,
                    "ms": 1000 * median,
                    "images/s": images / median,
                    "times as fast": measure.ratio(seconds[REFERENCE], times),
                }
            )
    fastest = max(float(str(row["times as fast"])) for row in rows if row["batch"] == 1 and row["network"] != REFERENCE)
    measure.report(args, rows, ratio=fastest)


def open_model(args: argparse.Namespace) -> tuple[str, DepthModel]:
    """Return the network to be measured, and what the table calls it.

    Raises:
        OptionError: flags that do not fit it.
    """
    if args.checkpoint:
        model, _ = load_model(args.checkpoint)
        model.check_image_size(args.image_size)
        return model.name, model
    config: dict[str, Any] = {} if args.model == "depth_anything" else {"base_channels": args.base_channels}
    if args.attention_levels is not None:
        if args.model != "binaural_attention":
            raise OptionError(f"--attention_levels has no effect on {args.model}")
        config["attention_levels"] = args.attention_levels
    if args.model == "unet_baseline":
        config["image_size"] = args.image_size
    return f"{args.model} {args.base_channels}", create_model(args.model, **config)


def ways(compiled: bool, device: str) -> list[str]:
    """Return how the network is run."""
    precision = resolve_precision("auto", device)
    return ["plain", f"channels last, {precision}", *(["compiled"] if compiled else [])]


def answer(model: DepthModel, images: int, side: int, device: str, how: str = "plain") -> Callable[[], Tensor]:
    """Return a call that answers to one batch of noise, run as ``how`` says."""
    torch.manual_seed(0)
    inputs = [torch.rand(images, INPUT_CHANNELS[key], side, side, device=device) for key in model.inputs]
    layout = torch.contiguous_format if how == "plain" else torch.channels_last
    # A copy: the layouts of the others must not become this one's.
    network: Any = create_model(model.name, **model.config)
    network.load_state_dict(model.state_dict())
    network.to(device).eval().to(memory_format=layout)
    inputs = [x.to(memory_format=layout) for x in inputs]
    if how == "compiled":
        network = torch.compile(network)
    half = how != "plain" and resolve_precision("auto", device) == "bf16"

    @torch.inference_mode()
    def run() -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=half):
            return network(*inputs)

    return run


if __name__ == "__main__":
    run_script(main)
