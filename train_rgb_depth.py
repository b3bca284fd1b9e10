"""Train the RGB teacher: metric depth from a picture, the first stage of teaching an ear what an eye sees."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from dataloaders import create_training_data
from errors import run_script
from models import create_model
from training import options
from training.engine import create_fabric, seed_weights
from training.session import run_training
from training.tasks import SupervisedDepthTask


def create_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag and its default."""
    parser = options.create_parser(__doc__)
    options.add_data_options(parser)
    model = parser.add_argument_group("model and loss")
    options.add_width_option(model, "64: 19.6 M parameters; 32: 4.9 M")
    options.add_upsampling_option(model)
    options.add_depth_loss_options(model, smoothness="of edge-aware smoothness")
    options.add_training_options(parser, learning_rate=1e-4, wandb_project="batvision-rgb-depth")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, build, fit."""
    args = options.parse_training_options(create_parser(), "rgb_depth", argv)
    fabric = create_fabric(args)
    datasets, loaders = create_training_data(
        {"rgb", "depth"}, options.dataset_options(args), **options.loader_options(args, fabric)
    )
    seed_weights(args.seed)
    model = create_model(
        "rgb_depth", base_channels=args.base_channels, bilinear=args.bilinear, max_depth=datasets["train"].max_depth
    )
    task = SupervisedDepthTask(model, {args.task_loss: args.lambda_l1, "smooth": args.lambda_smooth})
    run_training(args, fabric, task, loaders["train"], loaders["val"])


if __name__ == "__main__":
    run_script(main)
