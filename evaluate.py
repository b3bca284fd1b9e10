"""Score checkpoints on a split, beside predictors that look at nothing; with pictures of good and bad cases."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch.utils.data import DataLoader

from dataloaders import DATASETS, DepthDataset, create_dataset, create_loader
from errors import DataError, OptionError, run_script
from models import DepthModel
from training import loop, options
from training.baselines import FixedPrediction, fit_baselines
from training.checkpoint import load_checkpoint, restore_model
from training.engine import create_fabric
from training.files import write_whole
from training.metrics import DEPTH_BINS, METRICS, MetricTable
from training.session import depth_columns, sample_columns
from training.visualization import save_grid

CASES = 3  # best and worst samples in the picture, of each


@dataclass
class Candidate:
    """A checkpoint to score, with the split as its preprocessing makes it."""

    label: str
    checkpoint: dict[str, Any]
    model: DepthModel
    data: dict[str, Any]
    loader: DataLoader
    table: MetricTable

    @property
    def dataset(self) -> DepthDataset:
        """The samples that it is scored on."""
        return cast(DepthDataset, self.loader.dataset)


def create_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag and its default."""
    parser = options.create_parser(__doc__)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, nargs="+", metavar="FILE",
        help="any .pth of a training script; more than one are compared",
    )  # fmt: skip
    group = parser.add_argument_group("data (default: what the first checkpoint was trained on)")
    group.add_argument("--dataset", choices=sorted(DATASETS), help="any data set that has what the model takes")
    group.add_argument("--dataset_dir", type=Path, metavar="DIR", help="its folder")
    group.add_argument("--split", choices=("train", "val", "test"), default="test", help="which samples")
    group.add_argument(
        "--holdout_location", metavar="NAME[,NAME]", help="as in training: test is these locations alone"
    )
    group.add_argument("--batch_size", type=options.positive_int, default=32, metavar="N", help="changes no figure")
    group.add_argument("--num_workers", type=options.non_negative_int, default=4, metavar="N", help="loader processes")
    group = parser.add_argument_group("report")
    group.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    group.add_argument("--per_location", action="store_true", help="a table by location")
    group.add_argument("--depth_bins", action="store_true", help="a table by the distance of the measured depth")
    group.add_argument(
        "--cases", type=Path, metavar="PNG", help="(default: results/<experiment>/<data>_<split>_cases.png)"
    )
    group.add_argument("--output_dir", type=Path, default=Path(), metavar="DIR", help="holds results/")
    options.add_one_device_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, load, score, report."""
    args = create_parser().parse_args(argv)
    options.check_device(args, most=1)
    candidates = load_candidates(args)
    first = candidates[0]
    first.dataset.require_depth()
    fabric = create_fabric(args)
    for candidate in candidates:
        fabric.to_device(candidate.model.to(memory_format=torch.channels_last))
        loop.evaluate(fabric, candidate.model, candidate.loader, table=candidate.table, title=candidate.label)

    report: dict[str, Any] = first.table.means()
    report["baselines"] = {
        name: loop.evaluate(fabric, fabric.to_device(baseline), first.loader, title=name).means()
        for name, baseline in fit_baselines_of(args, first.data).items()
    }
    rows = {candidate.label: candidate.table.means() for candidate in candidates}
    if len(candidates) > 1:
        report["checkpoints"] = rows
    rows = {**rows, **report["baselines"]}
    where = f"{first.data['name']} {args.split}"
    print_table(f"{where}, gt > 0", rows)
    print_table(f"{where}, gt >= 0.5 m", {name: row["gt_0.5"] for name, row in rows.items()})
    if args.per_location:
        report["per_location"] = by_location(first)
        print_table(f"{first.label} by location, gt > 0", report["per_location"])
    if args.depth_bins:
        report["depth_bins"] = {name: row for name in DEPTH_BINS if (row := first.table.mean(name))["n_images"]}
        print_table(f"{first.label} by measured depth", report["depth_bins"])
    unlabelled = len(first.dataset) - report["n_images"]
    if unlabelled:
        print(f"{unlabelled} of {len(first.dataset)} images have no valid depth pixel and are not scored")

    experiment = args.output_dir / "results" / first.checkpoint["args"]["experiment_name"]
    cases = args.cases or experiment / f"{first.data['name']}_{args.split}_cases.png"
    save_cases(cases, fabric, candidates)
    print(f"cases from the best to the worst: {cases}")
    if args.json:
        report |= {
            "checkpoint": str(args.checkpoint[0]),
            "epoch": first.checkpoint["epoch"],
            "data": {key: str(value) if isinstance(value, Path) else value for key, value in first.data.items()},
            "split": args.split,
        }
        write_json(args.json, report)
        print(f"figures: {args.json}")


def load_candidates(args: argparse.Namespace) -> list[Candidate]:
    """Load every checkpoint with its own view of the same samples.

    Raises:
        OptionError: the checkpoints do not see the same samples, or one does not answer in metres.
    """
    candidates: list[Candidate] = []
    for path in args.checkpoint:
        checkpoint = load_checkpoint(path)
        model = restore_model(checkpoint, path)
        if model.output != "metres":
            raise OptionError(f"{path} is a {model.name}, which gives {model.output}; evaluate.py scores metres")
        data = data_options(args, checkpoint)
        if candidates:  # the samples are the first one's, the preprocessing is its own
            data |= {key: candidates[0].data[key] for key in ("name", "dataset_dir", "holdout_location")}
        dataset = create_dataset(**data, split=args.split, modalities={*model.inputs, "depth"})
        if candidates and dataset.ids != candidates[0].dataset.ids:
            raise OptionError(f"{path} does not see the samples of {args.checkpoint[0]}; score them one at a time")
        label = f"{checkpoint['args']['experiment_name']}, epoch {checkpoint['epoch']}"
        if label in [candidate.label for candidate in candidates]:
            label = str(path)
        loader = create_loader(dataset, args.batch_size, shuffle=False, num_workers=args.num_workers)
        table = MetricTable(DEPTH_BINS if args.depth_bins and not candidates else None)  # the first one's are reported
        candidates.append(Candidate(label, checkpoint, model, data, loader, table))
    return candidates


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
    if not train.labelled.any():
        print("no baselines: no training pair has depth")
        return {}
    return fit_baselines(loader)


def by_location(candidate: Candidate) -> dict[str, dict[str, float]]:
    """Return the means of each location of a data set that names them."""
    locations = candidate.dataset.locations
    if None in locations:
        raise OptionError(f"--per_location: --dataset {candidate.data['name']} does not name its samples' locations")
    names = sorted(name for name in set(locations) if name)
    return {name: candidate.table.mean(among=[i for i, at in enumerate(locations) if at == name]) for name in names}


def save_cases(path: Path, fabric: Fabric, candidates: list[Candidate]) -> None:
    """Save a picture of the samples from the lowest to the highest RMSE of the first candidate.

    One candidate: its best and its worst cases, with its error. Several: cases spread over the ranking, with the
    prediction of each.
    """
    first = candidates[0]
    errors = first.table.per_image("rmse")
    ranked = sorted(errors, key=lambda index: (not math.isnan(errors[index]), errors[index]))
    count = min(2 * CASES, len(ranked))
    if len(candidates) == 1:
        chosen = [*ranked[: count - count // 2], *ranked[len(ranked) - count // 2 :]]
    else:
        chosen = [ranked[i * (len(ranked) - 1) // max(1, count - 1)] for i in range(count)]
    predictions = []
    for candidate in candidates:
        batch = candidate.loader.collate_fn([candidate.dataset[index] for index in chosen])
        predictions.append(loop.predict(fabric, candidate.model, fabric.to_device(batch)).cpu())
    shown = create_dataset(**first.data, split=first.dataset.split)  # all that it can supply, to look at
    batch = first.loader.collate_fn([shown[index] for index in chosen])
    if len(candidates) == 1:
        columns = depth_columns(batch, predictions[0])
    else:
        columns = sample_columns(batch)
        columns += [(c.label, "depth", list(p)) for c, p in zip(candidates, predictions, strict=True)]
    titles = [f"{name}\nRMSE {errors[index]:.2f} m" for index, name in zip(chosen, batch["id"], strict=True)]
    save_grid(path, columns, titles, f"from the best to the worst case of {first.label}")


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
    with write_whole(path) as file:
        file.write(f"{json.dumps(plain, indent=2, allow_nan=False)}\n".encode())


if __name__ == "__main__":
    run_script(main)
