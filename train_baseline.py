"""Train one of the systems that the student is compared with.

unet_baseline is BatVision's U-Net as its authors train it (pictures of 2^k pixels), base_residual adds a decoder for
what stands in a room, and multimodal_fusion also sees, in training and in use.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from dataloaders import create_training_data
from errors import run_script
from models import MODELS, DepthModel, create_model
from training import options
from training.engine import create_fabric, seed_weights
from training.session import run_training
from training.tasks import BaseResidualTask, SupervisedDepthTask

# unet_baseline: Brunetto et al., IROS 2023, and their code: L1 alone, AdamW, batch 128, 80 epochs, a constant rate.
DEFAULTS: dict[str, dict[str, Any]] = {
    "unet_baseline": {"batch_size": 128, "nb_epochs": 80, "scheduler": "none", "lambda_smooth": 0.0},
    "base_residual": {"batch_size": 64, "nb_epochs": 200, "scheduler": "cosine", "lambda_smooth": 0.1},
    "multimodal_fusion": {"batch_size": 64, "nb_epochs": 200, "scheduler": "cosine", "lambda_smooth": 0.1},
}


def create_parser(model: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of one model, with its defaults and without the flags that it has no use for.

    Without a model it knows every flag.
    """
    parser = options.create_parser(__doc__)
    parser.add_argument("--model", choices=tuple(DEFAULTS), required=True, help="--model NAME --help: its defaults")
    options.add_data_options(parser, hears="spectrogram", only_hears=model != "multimodal_fusion")
    group = parser.add_argument_group("model and loss")
    options.add_width_option(group, "width of the first level")
    if model != "unet_baseline":
        options.add_upsampling_option(group)
        options.add_compression_option(group)
    smoothness = "of (edge-aware) smoothness"
    if model is None:
        known = ", ".join(f"{given['lambda_smooth']} of {name}" for name, given in DEFAULTS.items())
        smoothness += f" (default: {known})"
    options.add_depth_loss_options(group, smoothness=smoothness, lambda_smooth=None)
    if model in (None, "base_residual"):
        group.add_argument(
            "--lambda_base", type=options.non_negative_float, default=0.5, help="of the base's L1 to low-passed depth"
        )
        group.add_argument(
            "--lambda_sparse", type=options.non_negative_float, default=0.1, help="of the residual's size in metres"
        )
    options.add_training_options(parser)
    parser.set_defaults(**DEFAULTS.get(model or "", {}))
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, build, fit."""
    name = chosen_model(argv)
    args = options.parse_training_options(create_parser(name), name or "", argv)
    fabric = create_fabric(args)
    datasets, loaders = create_training_data(
        {*MODELS[args.model].inputs, "depth"}, options.dataset_options(args), **options.loader_options(args, fabric)
    )
    seed_weights(args.seed)
    model = create_model(args.model, **model_config(args), max_depth=datasets["train"].max_depth)
    run_training(args, fabric, create_task(args, model), loaders["train"], loaders["val"])


def chosen_model(argv: Sequence[str] | None) -> str | None:
    """Return the model that the flags name, since its defaults are to be known before all else is parsed."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model")
    return parser.parse_known_args(argv)[0].model


def model_config(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of the model that the flags set."""
    hearing = options.hearing_config(args)
    if args.model == "unet_baseline":  # which takes what it hears as it is
        shape = {"image_size": args.image_size, "audio_channels": hearing["audio_channels"]}
        return {"base_channels": args.base_channels, **shape}
    return {"base_channels": args.base_channels, "bilinear": args.bilinear, **hearing}


def create_task(args: argparse.Namespace, model: DepthModel) -> SupervisedDepthTask:
    """Return the loss that trains the model."""
    weights = {args.task_loss: args.lambda_l1, "smooth": args.lambda_smooth}
    if args.model == "base_residual":
        return BaseResidualTask(model, {**weights, "base": args.lambda_base, "sparse": args.lambda_sparse})
    return SupervisedDepthTask(model, weights)


if __name__ == "__main__":
    run_script(main)
