"""Rewrite Depth Anything's weights from any layout and container into any other, tensor by tensor or not at all.

    python tools/convert_checkpoint.py depth_anything_v2_vitl.pth vitl.safetensors --layout original
    python tools/convert_checkpoint.py distill_any_depth_large.safetensors large.pth --layout flat

The network is recognised by its sizes. A file with a tensor too many, too few or of another shape is refused by name.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from errors import OptionError, run_script
from models.depth_anything import DepthAnything, preset_of
from models.depth_anything_files import LAYOUTS, canonical_keys, layout_of, to_layout
from models.weights import SAFETENSORS, Weights, check_fit, read_pickle, read_safetensors, weights_in
from training import options
from training.checkpoint import (
    check_checkpoint,
    license_of,
    published_preprocessing,
    save_checkpoint,
    save_safetensors,
)
from training.model_card import SUFFIX as CARD
from training.model_card import model_card, write_card
from training.version import VERSION

CONTAINERS = (SAFETENSORS, ".pth")  # of the output


def create_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag and its default."""
    summary, *_ = __doc__.splitlines()
    parser = options.create_parser(summary)
    parser.add_argument("input", type=Path, metavar="INPUT", help=".safetensors or .pth, published or of a training")
    parser.add_argument(
        "output",
        type=Path,
        metavar="OUTPUT",
        help="the file to write, .safetensors or .pth; a model card is written beside it, with the suffix .md",
    )
    parser.add_argument("--layout", choices=LAYOUTS, required=True, help="the names of the tensors in OUTPUT")
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT and its card if they exist")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Read, recognise, check, rename, write, report."""
    args = create_parser().parse_args(argv)
    check_output(args.input, args.output, overwrite=args.overwrite)
    weights, metadata, checkpoint = read_input(args.input)
    canonical = canonical_keys(weights, args.input)
    preset = preset_of(canonical, args.input)
    with torch.device("meta"):
        network = DepthAnything(preset)
    check_fit(network, canonical, args.input)
    license = license_of(network, checkpoint, args.input)
    if checkpoint is not None:
        metadata["license"] = license  # which follows its teachers', and not from its size
    converted = to_layout(canonical, args.layout, args.input)
    if args.output.suffix == SAFETENSORS:
        save_safetensors(converted, args.output, metadata)
    else:
        save_checkpoint(converted, args.output)
    preprocessing = checkpoint["preprocessing"] if checkpoint else published_preprocessing(network, args.input)
    versions = {"toolkit": VERSION, "torch": str(torch.__version__)}
    card = model_card(
        args.output.name, f"Weights alone ({args.output.suffix}), in the {args.layout} layout", network, preprocessing,
        checkpoint, takes=network.inputs, license=license, versions=versions,
    )  # fmt: skip
    write_card(args.output, card)
    print(f"{preset}, {sum(value.numel() for value in converted.values()) / 1e6:.1f} M parameters")
    print(f"read     {report(weights, layout_of(weights))} from {args.input}")
    print(f"written  {report(converted, args.layout)} to {args.output}")
    print(f"renamed  {len(converted.keys() - weights.keys())}")
    left = sorted(metadata.keys() - {"format"})
    if left and args.output.suffix != SAFETENSORS:
        print(f"dropped  the metadata {', '.join(left)}: {args.output.suffix} holds tensors alone")


def read_input(path: Path) -> tuple[Weights, dict[str, str], dict[str, Any] | None]:
    """Return the weights in a file, its metadata, and its checkpoint where it is one of a training.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe, or holds no weights.
    """
    if path.suffix == SAFETENSORS:
        return *read_safetensors(path), None
    state = read_pickle(path)
    of_a_training = isinstance(state, dict) and "format" in state
    return weights_in(state, path), {}, check_checkpoint(state, path) if of_a_training else None


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
    for path in (output, output.with_suffix(CARD)):
        if path.exists() and not overwrite:
            raise OptionError(f"OUTPUT: {path} exists; --overwrite replaces it")


def report(weights: Weights, layout: str) -> str:
    """Return how many tensors there are, of which types, in which layout."""
    types = sorted({str(value.dtype).removeprefix("torch.") for value in weights.values()})
    return f"{len(weights)} tensors ({', '.join(types)}), {layout} layout,"


if __name__ == "__main__":
    run_script(main)
