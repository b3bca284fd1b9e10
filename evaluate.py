"""Score a checkpoint on a split, beside predictors that look at nothing; with its best and its worst cases."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch.utils.data import DataLoader

from dataloaders import DATASETS, create_dataset, create_loader
from errors import DataError, OptionError, run_script
from models import DepthModel
from training import loop, options
from training.baselines import FixedPrediction, fit_baselines
from training.checkpoint import load_checkpoint, restore_model
from training.engine import create_fabric
from training.metrics import DEPTH_BINS, METRICS, MetricTable
from training.session import depth_columns
from training.visualization import save_grid

CASES = 3  # best and worst samples in the picture, of each


def create_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag and its default."""
    parser = options.create_parser(__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="any .pth of a training script")
    group = parser.add_argument_group("data (default: what the checkpoint was trained on)")
    group.add_argument("--dataset", choices=sorted(DATASETS), help="any data set that has what the model takes")
    group.add_argument("--dataset_dir", type=Path, metavar="DIR", help="its folder")
    group.add_argument("--split", choices=("train", "val", "test"), default="test", help="which samples")
    group.add_argument(
        "--holdout_location", metavar="NAME[,NAME]", help="as in training: test is these locations alone"
    )
    group.add_argument(
        "--batch_size", type=options.positive_int, default=32, metavar="N", help="per step; does not change a figure"
    )
    group.add_argument("--num_workers", type=options.non_negative_int, default=4, metavar="N", help="loader processes")
    group = parser.add_argument_group("report")
    group.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    group.add_argument("--per_location", action="store_true", help="a table by location")
    group.add_argument("--depth_bins", action="store_true", help="a table by the distance of the measured depth")
    group.add_argument(
        "--cases", type=Path, metavar="PNG", help="(default: results/<experiment>/<data>_<split>_cases.png)"
    )
    group.add_argument("--output_dir", type=Path, default=Path(), metavar="DIR", help="holds results/")
    group = parser.add_argument_group("device")
    group.add_argument("--gpu_ids", type=options.gpu_list, metavar="N", help="the GPU to use (default: the first)")
    options.add_precision_option(group)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, load, score, report."""
    args = create_parser().parse_args(argv)
    options.check_device(args)
    if len(args.gpu_ids or []) > 1:
        raise OptionError("--gpu_ids: evaluate.py runs on one GPU; name one")
    checkpoint = load_checkpoint(args.checkpoint)
    model = restore_model(checkpoint, args.checkpoint)
    data = data_options(args, checkpoint)
    dataset = create_dataset(**data, split=args.split, modalities={*model.inputs, "depth"})
    dataset.require_depth()
    loader = create_loader(dataset, args.batch_size, shuffle=False, num_workers=args.num_workers)
    fabric = create_fabric(args)
    fabric.to_device(model.to(memory_format=torch.channels_last))

    table = loop.evaluate(fabric, model, loader)
    report: dict[str, Any] = table.means()
    report["baselines"] = {
        name: loop.evaluate(fabric, fabric.to_device(baseline), loader, title=name).means()
        for name, baseline in fit_baselines_of(args, data).items()
    }
    rows = {f"{model.name}, epoch {checkpoint['epoch']}": report, **report["baselines"]}
    print_table(f"{data['name']} {args.split}, gt > 0", rows)
    print_table(f"{data['name']} {args.split}, gt >= 0.5 m", {name: row["gt_0.5"] for name, row in rows.items()})
    if args.per_location:
        report["per_location"] = by_location(table, dataset)
        print_table("by location, gt > 0", report["per_location"])
    if args.depth_bins:
        bins = loop.evaluate(fabric, model, loader, table=MetricTable(DEPTH_BINS), title="by depth")
        report["depth_bins"] = {name: row for name in DEPTH_BINS if (row := bins.mean(name))["n_images"]}
        print_table("by measured depth", report["depth_bins"])
    unlabelled = len(dataset) - report["n_images"]
    if unlabelled:
        print(f"{unlabelled} of {len(dataset)} images have no valid depth pixel and are not scored")

    experiment = Path(checkpoint["args"]["experiment_name"])
    cases = args.cases or args.output_dir / "results" / experiment / f"{data['name']}_{args.split}_cases.png"
    save_cases(cases, fabric, model, loader, table)
    print(f"best and worst cases: {cases}")
    if args.json:
        report |= {
            "checkpoint": str(args.checkpoint),
            "epoch": checkpoint["epoch"],
            "data": {key: str(value) if isinstance(value, Path) else value for key, value in data.items()},
            "split": args.split,
        }
        write_json(args.json, report)
        print(f"figures: {args.json}")


def data_options(args: argparse.Namespace, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``create_dataset``: the checkpoint's preprocessing, on the data set that is asked for.

    Which pairs had labels, and which locations were held out, is taken from the checkpoint where the data set is the
    one that it was trained on.
    """
    trained: dict[str, Any] = checkpoint["args"]
    preprocessing: dict[str, Any] = checkpoint["preprocessing"]
    same = args.dataset in (None, trained["dataset"]) and (
        args.dataset_dir is None or str(args.dataset_dir) == trained["dataset_dir"]
    )
    data = {
        "name": args.dataset or trained["dataset"],
        "dataset_dir": args.dataset_dir or (trained["dataset_dir"] if same else None),
        "holdout_location": args.holdout_location or (trained["holdout_location"] if same else None),
        **{key: preprocessing[key] for key in ("image_size", "max_depth", "min_depth", "resample")},
    }
    if preprocessing["audio_format"] is not None:
        data["audio_format"] = preprocessing["audio_format"]
    if same:
        data |= {key: trained[key] for key in ("label_fraction", "label_seed")}
    return data


def fit_baselines_of(args: argparse.Namespace, data: dict[str, Any]) -> dict[str, FixedPrediction]:
    """Return the predictors that look at nothing, from the labelled pairs of the data set's training split."""
    try:
        train = create_dataset(**data, split="train", modalities={"depth"})
        loader = create_loader(train, args.batch_size, shuffle=False, num_workers=args.num_workers)
    except DataError as error:
        print(f"no baselines: {error}")
        return {}
    return fit_baselines(loader)


def by_location(table: MetricTable, dataset: Any) -> dict[str, dict[str, float]]:
    """Return the means of each location of a data set that names them."""
    if None in dataset.locations:
        raise DataError(f"--per_location: {dataset.name} does not name its samples' locations")
    names = sorted(set(dataset.locations))
    return {name: table.mean(among=[i for i, at in enumerate(dataset.locations) if at == name]) for name in names}


def save_cases(path: Path, fabric: Fabric, model: DepthModel, loader: DataLoader, table: MetricTable) -> None:
    """Save a picture of the samples with the lowest and the highest RMSE."""
    errors = table.per_image("rmse")
    ranked = sorted(errors, key=lambda index: (not math.isnan(errors[index]), errors[index]))
    chosen = [*ranked[:CASES], *ranked[-CASES:]] if len(ranked) >= 2 * CASES else ranked
    batch = loader.collate_fn([loader.dataset[index] for index in chosen])
    prediction = loop.predict(fabric, model, fabric.to_device(batch)).cpu()
    titles = [f"{name}\nRMSE {errors[index]:.2f} m" for index, name in zip(chosen, batch["id"], strict=True)]
    save_grid(path, depth_columns(batch, prediction), titles, "best cases first, worst last")


def print_table(title: str, rows: dict[str, dict[str, Any]]) -> None:
    """Print one row of metrics per name."""
    width = max(len(title), *(len(name) for name in rows))
    print("\n" + title.ljust(width) + "".join(f"{metric:>9}" for metric in METRICS) + f"{'images':>9}")
    for name, row in rows.items():
        print(name.ljust(width) + "".join(f"{row[metric]:9.4f}" for metric in METRICS) + f"{row['n_images']:9d}")


def write_json(path: Path, report: dict[str, Any]) -> None:
    """Write a report, whole or not at all; a figure that is not a number is written as null."""
    plain = json.loads(json.dumps(report), parse_constant=lambda name: None)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(plain, indent=2, allow_nan=False) + "\n")
    temporary.replace(path)


if __name__ == "__main__":
    run_script(main)
