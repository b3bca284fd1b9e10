"""How hard are the simulated rooms, and what do two ears know that one does not?

Trains one small U-Net per input (picture, both ears, both ears mixed to mono) and seed on the same rooms, and prints a
Markdown table of the RMSE on the test rooms (per image over valid pixels, then the mean over images) beside the mean
depth map's.

    python benchmarks/room_difficulty.py --dataset_dir data/SimulatedRooms --json benchmarks/room_difficulty.json
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import on_rooms
from dataloaders import create_dataset, create_loader
from dataloaders.base import Row
from errors import run_script
from models.rgb_depth_model import RGBDepthNet
from training import loop, options
from training.baselines import fit_baselines
from training.depth_losses import l1_loss
from training.engine import create_fabric, seed_weights
from training.files import write_json
from training.metrics import images_with, valid_pixels
from training.run_log import RunLog
from training.session import learning_rate_factor
from training.task import Batch, Task, mean_over_images, model_inputs

INPUTS = {"picture": "rgb", "both ears": "audio", "mono": "audio"}


class AudioUNet(RGBDepthNet):
    """The picture's U-Net with two spectrograms in place of three colours."""

    inputs = ("audio",)


class InBothEars:
    """Reads a recording as the mean of its two ears, in each of them; picklable, for loader processes."""

    def __init__(self, read: Callable[[Row], Tensor]) -> None:
        self.read = read

    def __call__(self, row: Row) -> Tensor:
        """Return the sound [2, N]."""
        return self.read(row).mean(0, keepdim=True).expand(2, -1)


class L1Task(Task):
    """Masked L1 in metres, and nothing else."""

    needs: ClassVar[frozenset[str]] = frozenset({"depth"})

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the loss and the depth [B, 1, H, W] in metres."""
        depth = self.student(*model_inputs(self.student, batch))
        valid = valid_pixels(batch["depth"])
        loss = mean_over_images(l1_loss(depth, batch["depth"], valid), images_with(valid))
        return {"loss": loss, "depth": depth}


def create_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag and its default."""
    parser = options.create_parser(__doc__.splitlines()[0])
    group = parser.add_argument_group("data")
    group.add_argument("--dataset_dir", type=Path, metavar="DIR", help="rooms (default: data/SimulatedRooms)")
    group.add_argument("--image_size", type=options.positive_int, default=64, metavar="N", help="side [pixels]")
    group.add_argument("--num_workers", type=options.non_negative_int, default=2, metavar="N", help="loader processes")
    group = parser.add_argument_group("training")
    group.add_argument("--base_channels", type=options.positive_int, default=16, metavar="N", help="of the U-Net")
    group.add_argument("--nb_epochs", type=options.positive_int, default=12, metavar="N", help="per training")
    group.add_argument("--batch_size", type=options.positive_int, default=32, metavar="N", help="per step")
    group.add_argument("--learning_rate", type=options.positive_float, default=0.002, metavar="LR", help="at the start")
    group.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="one training each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.set_defaults(precision="auto", gpu_ids=None)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train, score, print."""
    args = create_parser().parse_args(argv)
    fabric = create_fabric(args)
    figures: dict[str, Any] = {"mean depth map": [mean_map_rmse(args, fabric)]}
    for name in INPUTS:
        figures[name] = []
        for seed in args.seeds:
            started = time.perf_counter()
            figures[name].append(train(args, fabric, name, seed))
            print(f"{name}, seed {seed}: {figures[name][-1]:.3f} m, {time.perf_counter() - started:.0f} s", flush=True)
    print(on_rooms.table(figures))
    if args.json:
        write_json({"settings": options.plain_arguments(args), "rmse": figures}, args.json)


def loaders(args: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """Return the loaders of one input, ``mono`` with the mean of both ears in each."""
    made = {}
    for split in ("train", "test"):
        dataset = create_dataset(
            "simulated", args.dataset_dir, split, args.image_size, audio_format="log_spectrogram",
            modalities={INPUTS[name], "depth"}, augment=True, seed=seed,
        )  # fmt: skip
        if name == "mono":
            dataset.read_audio = InBothEars(dataset.read_audio)  # type: ignore[method-assign]
        made[split] = create_loader(
            dataset, args.batch_size, shuffle=split == "train", seed=seed, num_workers=args.num_workers
        )
    return made


def train(args: argparse.Namespace, fabric: Fabric, name: str, seed: int) -> float:
    """Train one U-Net for a fixed number of epochs and return its RMSE on the test rooms in metres."""
    data = loaders(args, name, seed)
    seed_weights(seed)
    network = RGBDepthNet if name == "picture" else AudioUNet
    model = network(args.base_channels, max_depth=12.0, in_channels=3 if name == "picture" else 2)
    task = L1Task(model).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(task.trainable(), lr=args.learning_rate, fused=True)
    steps = len(data["train"]) * args.nb_epochs
    scheduler = LambdaLR(optimizer, learning_rate_factor("cosine", steps))
    wrapped, wrapped_optimizer = fabric.setup(task, optimizer)
    with tempfile.TemporaryDirectory() as folder:
        log = RunLog(Path(folder), Path(folder), enabled=False)
        # The test rooms are looked at once, after the last epoch: nothing is chosen by them.
        for epoch in range(1, args.nb_epochs + 1):
            data["train"].batch_sampler.start_epoch(epoch)
            loop.train_epoch(
                fabric, wrapped, wrapped_optimizer, scheduler, data["train"],
                epoch=epoch, steps=len(data["train"]), total=steps, log=log,
            )  # fmt: skip
    return loop.evaluate(fabric, model, data["test"]).mean()["rmse"]


def mean_map_rmse(args: argparse.Namespace, fabric: Fabric) -> float:
    """Return the RMSE of the training rooms' mean depth map on the test rooms in metres."""
    train_set = create_dataset("simulated", args.dataset_dir, "train", args.image_size, modalities={"depth"})
    test_set = create_dataset("simulated", args.dataset_dir, "test", args.image_size, modalities={"depth"})
    mean_map = fit_baselines(create_loader(train_set, 64, shuffle=False, num_workers=args.num_workers))["mean_map"]
    test = create_loader(test_set, 64, shuffle=False, num_workers=0)
    return loop.evaluate(fabric, fabric.to_device(mean_map), test).mean()["rmse"]


if __name__ == "__main__":
    run_script(main)
