"""Train the binaural student on its own: metric depth from the echoes that two ears hear."""

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
    options.add_data_options(parser, hears="interaural", only_hears=True)
    model = parser.add_argument_group("model and loss")
    options.add_width_option(model, "64: 47.9 M parameters; 32: 12.3 M (of spectrograms: 37.8 M, 9.8 M)")
    options.add_upsampling_option(model)
    options.add_attention_option(model, "of 1 to 5: where the ears ask each other", default=[2, 3, 4, 5])
    options.add_ears_option(model)
    options.add_compression_option(model)
    options.add_depth_loss_options(model, smoothness="of smoothness", l1_alias="--lambda_recon")
    model.add_argument(
        "--lambda_edge", type=options.non_negative_float, default=0.2, help="of L1 between the depth gradients"
    )
    model.add_argument(
        "--use_adaptive_loss",
        action="store_true",
        help="let smoothness and edges grow to their weights over the first fifth of the training",
    )
    options.add_training_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, build, fit."""
    args = options.parse_training_options(create_parser(), "binaural_attn", argv)
    fabric = create_fabric(args)
    datasets, loaders = create_training_data(
        {"audio", "depth"}, options.dataset_options(args), **options.loader_options(args, fabric)
    )
    seed_weights(args.seed)
    model = create_model(
        "binaural_attention",
        base_channels=args.base_channels,
        bilinear=args.bilinear,
        max_depth=datasets["train"].max_depth,
        attention_levels=args.attention_levels,
        share_ears=args.share_ears,
        **options.hearing_config(args),
    )
    task = SupervisedDepthTask(
        model,
        {args.task_loss: args.lambda_l1, "smooth": args.lambda_smooth, "edge": args.lambda_edge},
        ramped=("smooth", "edge") if args.use_adaptive_loss else (),
    )
    run_training(args, fabric, task, loaders["train"], loaders["val"])


if __name__ == "__main__":
    run_script(main)
