"""Does a network hear left and right, or does it draw the mean room?

    python benchmarks/left_and_right.py --checkpoint checkpoints/NAME/best_model.pth

Of a depth map d, d - flip d is what changes sign when the view is mirrored: all that tells left from right. Two Pearson
correlations over the pixels of a split:

* with the truth: (p - flip p) with (t - flip t), where both t and flip t are measured. A network that knows nothing of
  the sides has 0.
* with swapped ears: (p - flip p) with (q - flip q), where q is the answer to the same echoes with the left ear's in the
  right one. A network whose two sides are alike has -1, one that does not listen to the difference of its ears has 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataloaders import create_dataset, create_loader, require_data, swap_ears
from errors import OptionError, run_script
from training import loop, options
from training.checkpoint import dataset_options_of, load_checkpoint, require_folder, restore_model
from training.engine import create_fabric


def create_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag and its default."""
    parser = options.create_parser((__doc__ or "").splitlines()[0])
    options.add_checkpoint_option(parser, "of networks that hear", several=True)
    parser.add_argument("--dataset_dir", type=Path, metavar="DIR", help="samples (default: where each was trained)")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test", help="which samples")
    parser.add_argument("--num_workers", type=options.non_negative_int, default=2, metavar="N", help="loader processes")
    options.add_one_device_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Predict with the ears as they are and swapped, correlate, print a Markdown table."""
    args = create_parser().parse_args(argv)
    options.check_device(args, most=1)
    print("| network | with the truth | with swapped ears |\n|---|---|---|")
    for path in args.checkpoint:
        maps = predict_both_ways(args, path)
        truth, ears = sides_correlation(maps["truth"], maps["depth"]), ears_correlation(maps["depth"], maps["swapped"])
        print(f"| {path.parent.name} | {truth:+.3f} | {ears:+.3f} |", flush=True)


def predict_both_ways(args: argparse.Namespace, path: Path) -> dict[str, Tensor]:
    """Return the truth of a split and a checkpoint's depth for its echoes, as they are and swapped: [N, 1, H, W] each.

    Raises:
        OptionError: the checkpoint is of a network that does not hear.
    """
    checkpoint = load_checkpoint(path)
    model = restore_model(checkpoint, path)
    if "audio" not in model.inputs:
        raise OptionError(f"--checkpoint {path}: {model.name} takes {' and '.join(model.inputs)}; it has no ears")
    data = dataset_options_of(checkpoint, path)
    if args.dataset_dir:
        require_data(args.dataset_dir, "--dataset_dir")
        data["dataset_dir"] = args.dataset_dir
    else:
        require_folder(data, path)
    dataset = create_dataset(**data, split=args.split, modalities={*model.inputs, "depth"})
    dataset.require_depth()
    fabric = create_fabric(args)
    fabric.to_device(model.to(memory_format=torch.channels_last))
    rows: dict[str, list[Tensor]] = {"truth": [], "depth": [], "swapped": []}
    loader = create_loader(dataset, 32, shuffle=False, num_workers=args.num_workers)
    with loop.Batches(fabric, loader, len(loader), path.parent.name) as batches:
        for batch in batches:
            swapped = {**batch, "audio": swap_ears(batch["audio"])}  # [B, C, H, W]: left and right change places
            if "rgb" in batch:
                swapped["rgb"] = batch["rgb"].flip(-1)  # a network that also sees is shown the mirrored world
            rows["truth"].append(batch["depth"].cpu())
            rows["depth"].append(loop.predict(fabric, model.eval(), batch).cpu())
            rows["swapped"].append(loop.predict(fabric, model, swapped).cpu())
    return {key: torch.cat(maps) for key, maps in rows.items()}


def odd_part(depth: Tensor) -> Tensor:
    """Return what changes sign under mirroring: d - flip d, of [N, 1, H, W] maps."""
    return depth - depth.flip(-1)


def sides_correlation(truth: Tensor, depth: Tensor) -> float:
    """Correlate the odd parts of truth and depth [N, 1, H, W] where the truth (0 = not measured) has both sides."""
    measured = (truth > 0) & (truth.flip(-1) > 0)
    return pearson(odd_part(truth)[measured], odd_part(depth)[measured])


def ears_correlation(depth: Tensor, swapped: Tensor) -> float:
    """Correlate the odd parts of the depths [N, 1, H, W] that the ears give as they are and swapped."""
    return pearson(odd_part(depth), odd_part(swapped))


def pearson(x: Tensor, y: Tensor) -> float:
    """Return Pearson's correlation of two equally long tensors; NaN where one of them is constant."""
    return float(torch.corrcoef(torch.stack([x.flatten(), y.flatten()]).double())[0, 1])


if __name__ == "__main__":
    run_script(main)
