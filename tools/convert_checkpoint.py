"""Rewrite Depth Anything's weights from any layout and container into any other, tensor by tensor or not at all.

    python tools/convert_checkpoint.py depth_anything_v2_vitl.pth vitl.safetensors --layout original
    python tools/convert_checkpoint.py distill_any_depth_large.safetensors large.pth --layout flat

The network is recognised by its sizes. A file with a tensor too many, too few or of another shape is refused by name.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from errors import OptionError, run_script
from models.depth_anything import DepthAnything, preset_of
from models.depth_anything_files import LAYOUTS, canonical_keys, layout_of, to_layout
from models.weights import SAFETENSORS, Weights, check_fit, read_weights
from training import options
from training.checkpoint import save_checkpoint, save_safetensors

CONTAINERS = (SAFETENSORS, ".pth")  # of the output


def create_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag and its default."""
    summary, *_ = __doc__.splitlines()
    parser = options.create_parser(summary)
    parser.add_argument("input", type=Path, metavar="INPUT", help=".safetensors or .pth, published or of a training")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the file to write, .safetensors or .pth")
    parser.add_argument("--layout", choices=LAYOUTS, required=True, help="the names of the tensors in OUTPUT")
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT if it exists")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Read, recognise, check, rename, write, report."""
    args = create_parser().parse_args(argv)
    check_output(args.input, args.output, overwrite=args.overwrite)
    weights, metadata = read_weights(args.input)
    canonical = canonical_keys(weights, args.input)
    preset = preset_of(canonical, args.input)
    with torch.device("meta"):
        check_fit(DepthAnything(preset), canonical, args.input)
    converted = to_layout(canonical, args.layout, args.input)
    if args.output.suffix == SAFETENSORS:
        save_safetensors(converted, args.output, metadata)
    else:
        save_checkpoint(converted, args.output)
    print(f"{preset}, {sum(value.numel() for value in converted.values()) / 1e6:.1f} M parameters")
    print(f"read     {report(weights, layout_of(weights))} from {args.input}")
    print(f"written  {report(converted, args.layout)} to {args.output}")
    print(f"renamed  {len(converted.keys() - weights.keys())}")
    left = sorted(metadata.keys() - {"format"})
    if left and args.output.suffix != SAFETENSORS:
        print(f"dropped  the metadata {', '.join(left)}: {args.output.suffix} holds tensors alone")


def check_output(source: Path, output: Path, *, overwrite: bool) -> None:
    """Make sure that the output can be written, and that nothing is lost by it.

    Raises:
        OptionError: naming the file.
    """
    if output.suffix not in CONTAINERS:
        raise OptionError(f"OUTPUT {output} must end in {' or '.join(CONTAINERS)}")
    if not output.parent.is_dir():
        raise OptionError(f"OUTPUT {output}: there is no folder {output.parent}")
    if output.resolve() == source.resolve():
        raise OptionError(f"OUTPUT {output} is the input; choose another file")
    if output.exists() and not overwrite:
        raise OptionError(f"OUTPUT {output} exists; --overwrite replaces it")


def report(weights: Weights, layout: str) -> str:
    """Return how many tensors there are, of which types, in which layout."""
    types = sorted({str(value.dtype).removeprefix("torch.") for value in weights.values()})
    return f"{len(weights)} tensors ({', '.join(types)}), {layout} layout,"


if __name__ == "__main__":
    run_script(main)
