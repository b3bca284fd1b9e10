"""What training keeps in memory for the backward pass, level by level.

    python benchmarks/activation_memory.py                     the binaural student at base 64, 256x256, in bf16
    python benchmarks/activation_memory.py --model rgb_depth   another network

Nothing is computed: the networks run on tensors of a shape, but without memory. What autograd saves is counted, each
storage once, in the type it has under autocast. Weights, gradients and the optimiser's state (16 bytes per parameter
with AdamW) and the largest temporary buffers come on top.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from errors import run_script
from models import create_model, options_of
from training import options


def saved_bytes(name: str, image_size: int = 256, batch_size: int = 1, **config: Any) -> dict[str, int]:
    """Return the bytes that a training step in bf16 saves for its backward pass, by the module that saves them.

    Args:
        name: of a model.
        image_size: side of its inputs in pixels.
        batch_size: images in a step.
        **config: the model's arguments.
    """
    if "image_size" in options_of(name):
        config["image_size"] = image_size
    saved: Counter[str] = Counter()
    model = create_model(name, **config).to(memory_format=torch.channels_last)
    model.check_image_size(image_size)
    with FakeTensorMode(allow_non_fake_inputs=True):
        weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        seen: set[int] = set()
        alive: list[Tensor] = []  # a storage that is freed could lend its address to the next
        inside: list[str] = [""]

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in seen | weights:
                seen.add(storage._cdata)
                alive.append(tensor)
                saved[inside[-1]] += storage.nbytes()
            return tensor

        for path, module in model.named_modules():
            if path and not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
                module.register_forward_pre_hook(lambda *_, path=path: inside.append(path))
                module.register_forward_hook(lambda *_: inside.pop() and None)
        inputs = [torch.zeros(batch_size, model.input_channels(key), image_size, image_size) for key in model.inputs]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                depth = model(*inputs)
            del depth
    return dict(saved)


def level_of(path: str) -> str:
    """Return the row of the table to which a module belongs: ``encoder.left.levels.3.1`` is of ``x4``."""
    first, *rest = path.removeprefix("encoder.").split(".")
    if first == "decoder":
        return f"d{int(rest[1]) + 1}"
    if first in ("listen", "head", "encoder", ""):
        return "pooling" if first in ("encoder", "") else first
    named = next((part for part in rest if part.startswith("x")), None)
    return named or f"x{int(next(part for part in rest if part.isdecimal())) + 1}"


def create_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag and its default."""
    parser = options.create_parser((__doc__ or "").splitlines()[0])
    models = ("binaural_attention", "rgb_depth")
    parser.add_argument("--model", choices=models, default="binaural_attention", help="the network")
    parser.add_argument("--base_channels", type=options.positive_int, default=64, metavar="N", help="its width")
    parser.add_argument("--image_size", type=options.positive_int, default=256, metavar="PIXELS", help="side")
    parser.add_argument("--batch_size", type=options.positive_int, default=64, metavar="N", help="for the last line")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a Markdown table."""
    args = create_parser().parse_args(argv)
    one, two = (
        saved_bytes(args.model, args.image_size, batch_size, base_channels=args.base_channels) for batch_size in (1, 2)
    )
    rows: Counter[str] = Counter()
    for path, saved in two.items():
        rows[level_of(path)] += saved - one.get(path, 0)  # weights cast to bf16 are saved once, not once per image
    print("| level | MiB per image |\n|---|---|")
    for level, saved in rows.items():
        print(f"| {level} | {saved / 2**20:.1f} |")
    per_image = rows.total()
    print(f"| all | {per_image / 2**20:.1f} |")
    total = sum(one.values()) + per_image * (args.batch_size - 1)
    print(f"\nbatch {args.batch_size}: {total / 2**30:.1f} GiB")


if __name__ == "__main__":
    run_script(main)
