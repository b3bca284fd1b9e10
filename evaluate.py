"""Score checkpoints on a split, beside predictors that look at nothing; with pictures of good and bad cases."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader

from dataloaders import DATASETS, DEFAULT_MAX_DEPTHS, DepthDataset, create_dataset, create_loader, require_data
from dataloaders.base import location_names
from dataloaders.transforms import size_pair
from errors import CheckpointError, DataError, OptionError, from_worker, run_script
from models import DepthModel
from training import loop, options
from training.alignment import PROTOCOLS
from training.baselines import FixedPrediction, fit_baselines
from training.checkpoint import (
    dataset_options_of,
    load_model,
    other_axis_of_time,
    published_preprocessing,
    require_entries,
    require_folder,
)
from training.engine import create_fabric
from training.files import refuse_folders, write_json, write_whole, writing
from training.metrics import (
    DEPTH_BINS,
    EIGEN_CROP,
    EIGEN_FRAME,
    NYU_RANGE,
    MetricTable,
    Scoring,
    scored_samples,
    scoring_on,
)
from training.mirrored import Mirrored
from training.session import depth_columns, sample_columns
from training.visualization import save_grid

CASES = 3  # best and worst samples in the picture, of each
MASK_TITLES = {"gt_0": "gt > 0", "gt_0.5": "gt >= 0.5 m", "nyu": f"{NYU_RANGE[0]:g} < gt < {NYU_RANGE[1]:g} m"}


@dataclass
class Candidate:
    """A checkpoint to score, with the split as its preprocessing makes it; a bare file's is filled in."""

    label: str
    checkpoint: dict[str, Any]
    model: DepthModel | Mirrored
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
    options.add_checkpoint_option(parser, f"{options.WEIGHTS}; several are compared", several=True)
    group = parser.add_argument_group("data (default: what the first checkpoint was trained on)")
    group.add_argument("--dataset", choices=sorted(DATASETS), help="any data set that has what the model takes")
    group.add_argument("--dataset_dir", type=Path, metavar="DIR", help="its folder")
    group.add_argument("--split", choices=("train", "val", "test"), default="test", help="which samples")
    group.add_argument(
        "--holdout_location", metavar="NAME[,NAME]", help="as in training: test is these locations alone"
    )
    group.add_argument(
        "--image_size",
        type=options.positive_int,
        nargs="+",
        metavar="N",
        help="what the network is shown [pixels]: a square's side, or height and width (default: the checkpoint's); "
        "the measured depth has this size too, but on nyu, where it keeps its own",
    )
    group.add_argument("--batch_size", type=options.positive_int, default=32, metavar="N", help="changes no figure")
    group.add_argument(
        "--num_workers",
        type=options.non_negative_int,
        default=4,
        metavar="N",
        help="loader processes, at most one for each core",
    )
    group = parser.add_argument_group("scoring (docs/EVALUATION.md)")
    options.add_mirror_option(group)
    group.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        help="what is fitted to each image first: metric: nothing; disparity_lsq: scale and shift, in disparity space; "
        "depth_lsq: the same in depth space; median: scale (default: metric; of disparity networks, disparity_lsq)",
    )
    group.add_argument(
        "--eigen_crop", action=argparse.BooleanOptionalAction, help="score nyu within Eigen's crop (default: on nyu)"
    )
    group = parser.add_argument_group("report")
    group.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    group.add_argument(
        "--per_image",
        type=Path,
        metavar="FILE",
        help="write a CSV with each image's mean measured depth and the first one's metrics",
    )
    group.add_argument("--per_location", action="store_true", help="a table by location")
    group.add_argument("--depth_bins", action="store_true", help="a table by the distance of the measured depth")
    group.add_argument(
        "--cases",
        type=Path,
        metavar="PNG",
        help="their picture (default: results/<experiment>/<data>_<split>_cases.png)",
    )
    group.add_argument("--output_dir", type=Path, default=Path(), metavar="DIR", help="holds results/")
    options.add_one_device_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, load, score, report."""
    args = create_parser().parse_args(argv)
    options.check_device(args, most=1)
    refuse_folders(json=args.json, per_image=args.per_image, cases=args.cases)
    candidates = load_candidates(args)
    first = candidates[0]
    first.dataset.require_depth()
    if args.per_location and None in first.dataset.locations:
        raise OptionError(f"--per_location: --dataset {first.data['name']} does not name its samples' locations")
    fabric = create_fabric(args)
    for candidate in candidates:
        fabric.to_device(candidate.model.to(memory_format=torch.channels_last))
        loop.evaluate(fabric, candidate.model, candidate.loader, table=candidate.table, title=candidate.label)

    report: dict[str, Any] = first.table.means()
    if not report["n_images"]:
        raise DataError(
            f"{first.dataset.dataset_dir}: not one of its {args.split} images has measured depth that counts"
        )
    report["baselines"] = {}
    for name, baseline in fit_baselines_of(args, first.data).items():
        table = MetricTable(scoring=dataclasses.replace(first.table.scoring, output="metres"))
        loop.evaluate(fabric, fabric.to_device(baseline), first.loader, table=table, title=name)
        report["baselines"][name] = table.means()
    rows = {candidate.label: candidate.table.means() for candidate in candidates}
    if len(candidates) > 1:
        report["checkpoints"] = rows
    rows = {**rows, **report["baselines"]}
    scoring = first.table.scoring
    main_mask, *masks = scoring.masks
    held = f", {first.data['holdout_location']} held out" if first.data["holdout_location"] else ""
    where = f"{first.data['name']} {args.split}{held}, up to {first.data['max_depth']:g} m"
    how = ("" if scoring.protocol == "metric" else f", {scoring.protocol}") + ", Eigen crop" * scoring.eigen_crop
    how += ", mirrored too" * args.mirror
    tables = {mask: {name: row[mask] for name, row in rows.items()} for mask in masks}
    same = [mask for mask in masks if all(row.items() <= rows[name].items() for name, row in tables[mask].items())]
    titles = " and ".join(MASK_TITLES[mask] for mask in (main_mask, *same))
    print_table(f"{where}, {titles}{how}", rows, scoring.metrics)
    for mask in masks:
        if mask not in same:
            print_table(f"{where}, {MASK_TITLES[mask]}{how}", tables[mask], scoring.metrics)
    if args.per_location:
        report["per_location"] = by_location(first)
        title = f"{first.label} by location, {MASK_TITLES[main_mask]}"
        print_table(title, report["per_location"], scoring.metrics)
    if args.depth_bins:
        report["depth_bins"] = {name: row for name in DEPTH_BINS if (row := first.table.mean(name))["n_images"]}
        print_table(f"{first.label} by measured depth", report["depth_bins"], scoring.metrics)
    unlabelled = len(first.dataset) - report["n_images"]
    if unlabelled:
        print(f"{unlabelled} of {len(first.dataset)} images have no valid depth pixel and are not scored")

    experiment = args.output_dir / "results" / first.checkpoint["args"]["experiment_name"]
    if args.per_image:
        with writing(args.per_image):
            write_per_image(args.per_image, first)
        print(f"metrics of each image: {args.per_image}")
    if args.json:
        report |= {
            "checkpoint": str(args.checkpoint[0]),
            "epoch": first.checkpoint["epoch"],
            "data": {key: str(value) if isinstance(value, Path) else value for key, value in first.data.items()},
            "split": args.split,
            "scoring": describe(scoring),
            "mirror": args.mirror,
        }
        write_json(report, args.json)
        print(f"figures: {args.json}")
    cases = args.cases or experiment / f"{first.data['name']}_{args.split}_cases.png"
    with writing(cases):
        save_cases(cases, fabric, candidates)
    print(f"cases from the best to the worst: {cases}")


def load_candidates(args: argparse.Namespace) -> list[Candidate]:
    """Load every checkpoint with its own view of the same samples.

    Raises:
        OptionError: the checkpoints do not see the same samples, cannot be scored as asked for, or take no such size.
        DataError: the data are not there.
    """
    if args.dataset_dir:
        require_data(args.dataset_dir, "--dataset_dir")
    candidates: list[Candidate] = []
    protocol = args.protocol
    for path in args.checkpoint:
        model, checkpoint = load_model(path)
        checkpoint = checkpoint or stand_in(candidates[0].data["name"] if candidates else args.dataset, model, path)
        require_entries(checkpoint, path, "args", "experiment_name", "label_fraction", "label_seed")
        if not options.is_folder_name(f"{checkpoint['args']['experiment_name']}"):
            raise CheckpointError(f"{path}: its experiment_name is a path; results are written by name only")
        protocol = protocol or ("metric" if PROTOCOLS["metric"].accepts(model.output) else "disparity_lsq")
        if not PROTOCOLS[protocol].accepts(model.output):
            raise OptionError(
                f"--protocol {protocol} is of networks that give depth; {path} is a {model.name}, which gives "
                f"{model.output} without scale and shift: use --protocol disparity_lsq"
            )
        data = data_options(args, checkpoint, path)
        if candidates:  # the samples are the first one's, the preprocessing is its own
            data |= {key: candidates[0].data[key] for key in ("name", "dataset_dir", "holdout_location")}
        if "audio" in model.inputs and (why := other_axis_of_time(checkpoint, data["name"])):
            print(f"warning: {path}: {why}")
        data |= scored_samples(data["name"])  # whatever was learnt from
        if args.image_size:
            data["image_size"] = options.image_size(args.image_size)
            for side in size_pair(data["image_size"]):
                model.check_image_size(side)
        scoring = choose_scoring(args, data, protocol, model.output)
        if not candidates:
            require_folder(data, path)
        dataset = create_dataset(**data, split=args.split, modalities={*model.inputs, "depth"})
        if candidates and dataset.ids != candidates[0].dataset.ids:
            raise OptionError(f"{path} does not see the samples of {args.checkpoint[0]}; score them one at a time")
        cap = candidates[0].data["max_depth"] if candidates else data["max_depth"]
        if data["max_depth"] != cap:  # what is farther counts as that: one table would hold them against two truths
            raise OptionError(
                f"{path} was trained up to --max_depth {data['max_depth']:g} m and {args.checkpoint[0]} up to {cap:g} "
                "m, at which measured depth ends for each; score them one at a time"
            )
        epoch = "" if checkpoint["epoch"] is None else f", epoch {checkpoint['epoch']}"
        label = f"{checkpoint['args']['experiment_name']}{epoch}"
        if label in [candidate.label for candidate in candidates]:
            label = str(path)
        loader = create_loader(dataset, args.batch_size, shuffle=False, num_workers=args.num_workers)
        bins = DEPTH_BINS if args.depth_bins and not candidates else None  # the first one's are reported
        table = MetricTable(bins, scoring)
        asked = Mirrored(model) if args.mirror else model
        candidates.append(Candidate(label, checkpoint, asked, data, loader, table))
    return candidates


def stand_in(name: str | None, model: DepthModel, path: Path) -> dict[str, Any]:
    """Return what a checkpoint would say of a network from a bare file of weights, of which only the name is known.

    Args:
        name: of the data set to score on.
        model: the network.
        path: its file.

    Raises:
        OptionError: nobody says what it is scored on.
        CheckpointError: how its samples are made is not known.
    """
    preprocessing = published_preprocessing(model, path)
    if name is None:
        raise OptionError(f"--dataset: {path} holds weights alone and names no data set to score on; name one")
    trained = {"dataset": name, "dataset_dir": None, "label_fraction": 1.0, "label_seed": 0}
    return {
        "args": {**trained, "experiment_name": path.stem},
        "preprocessing": {**preprocessing, "max_depth": DEFAULT_MAX_DEPTHS[name]},
        "epoch": None,
    }


def choose_scoring(args: argparse.Namespace, data: dict[str, Any], protocol: str, output: str) -> Scoring:
    """Return how a network's ``output`` is scored on a data set.

    Raises:
        OptionError: a crop where there is none.
    """
    if data["name"] != "nyu" and args.eigen_crop is not None:
        flag = "--eigen_crop" if args.eigen_crop else "--no-eigen_crop"
        raise OptionError(f"{flag} is of nyu's frames; those of {data['name']} are scored whole")
    return scoring_on(data["name"], output, protocol, data["max_depth"], eigen_crop=args.eigen_crop is not False)


def describe(scoring: Scoring) -> dict[str, Any]:
    """Return a scoring as plain values, for the report; no bound and no crop are None."""

    def bounds(between: tuple[float, float]) -> list[float | None]:
        return [bound if math.isfinite(bound) else None for bound in between]

    crop = {"rows": EIGEN_CROP[0], "columns": EIGEN_CROP[1], "of": EIGEN_FRAME}
    return {
        "protocol": scoring.protocol,
        "output": scoring.output,
        "masks": {name: bounds(between) for name, between in scoring.masks.items()},
        "eigen_crop": crop if scoring.eigen_crop else None,
        "clip": bounds(scoring.clip),
    }


def data_options(args: argparse.Namespace, checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the arguments of ``create_dataset``: the checkpoint's preprocessing, on the data set that is asked for.

    Which pairs had labels, and which locations were held out, is taken from the checkpoint where the data set is the
    one that it was trained on, in whatever folder that lies now.
    """
    trained: dict[str, Any] = checkpoint["args"]
    data = dataset_options_of(checkpoint, path)
    if args.dataset in (None, trained["dataset"]):
        data |= {key: trained[key] for key in ("label_fraction", "label_seed")}
        data["dataset_dir"] = args.dataset_dir or data["dataset_dir"]
    else:
        data |= {"name": args.dataset, "dataset_dir": args.dataset_dir, "holdout_location": None}
    if args.holdout_location:
        data["holdout_location"] = args.holdout_location
    elif data["holdout_location"] and args.dataset_dir is not None:
        whole = create_dataset(**{**data, "holdout_location": None}, split=args.split, modalities={"depth"})
        if not location_names(data["holdout_location"]) <= set(whole.known_locations()):
            print(f"{whole.dataset_dir} has no {data['holdout_location']}, which the training held out")
            data["holdout_location"] = None
    return data


def fit_baselines_of(args: argparse.Namespace, data: dict[str, Any]) -> dict[str, FixedPrediction]:
    """Return the predictors that look at nothing, from the labelled pairs of the data set's training split."""
    try:
        train = create_dataset(**{**data, "native_depth": False}, split="train", modalities={"depth"})
        loader = create_loader(train, args.batch_size, shuffle=False, num_workers=args.num_workers)
        if baselines := fit_baselines(loader):
            return baselines
        print("no baselines: no training pair has depth")
    except DataError as error:
        print(f"no baselines: {from_worker(error)}")
    return {}


def write_per_image(path: Path, candidate: Candidate) -> None:
    """Write one row per scored image, whole or not at all: its id, mean measured depth, and metrics (first mask)."""
    columns = {name: candidate.table.per_image(name) for name in ("depth", *candidate.table.scoring.metrics)}
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["id", *columns])
    for index in columns["depth"]:
        writer.writerow([candidate.dataset.ids[index], *(column[index] for column in columns.values())])
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(path) as file:
        file.write(text.getvalue().encode())


def by_location(candidate: Candidate) -> dict[str, dict[str, float]]:
    """Return the means of each location of a data set that names them."""
    locations = candidate.dataset.locations
    names = sorted(name for name in set(locations) if name)
    return {name: candidate.table.mean(among=[i for i, at in enumerate(locations) if at == name]) for name in names}


def save_cases(path: Path, fabric: Fabric, candidates: list[Candidate]) -> None:
    """Save a picture of the samples from the lowest to the highest RMSE of the first candidate, in metres as scored.

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
    predictions = [[predict_one(fabric, candidate, index) for index in chosen] for candidate in candidates]
    samples = shown_samples(first, chosen)
    batch = {key: [sample[key] for sample in samples] for key in samples[0]}
    if len(candidates) == 1:
        columns = depth_columns(batch, predictions[0])
    else:
        columns = sample_columns(batch)
        columns += [(c.label, "depth", depths) for c, depths in zip(candidates, predictions, strict=True)]
    titles = [f"{name}\nRMSE {errors[index]:.2f} m" for index, name in zip(chosen, batch["id"], strict=True)]
    title = f"from the best to the worst case of {first.label}"
    save_grid(path, columns, titles, title, first.dataset.preprocessing)


def shown_samples(candidate: Candidate, chosen: Sequence[int]) -> list[dict[str, Any]]:
    """Return samples with all that the data set can supply, to look at; where that is broken, with what was scored."""
    try:
        shown = create_dataset(**candidate.data, split=candidate.dataset.split)
        return [shown[index] for index in chosen]
    except DataError as error:
        print(f"the cases are shown without what the network does not take: {error}")
        return [candidate.dataset[index] for index in chosen]


def predict_one(fabric: Fabric, candidate: Candidate, index: int) -> Tensor:
    """Return what is scored of a sample, in metres: [1, H, W]. One by one: their depth maps may differ in size."""
    batch = fabric.to_device(candidate.loader.collate_fn([candidate.dataset[index]]))
    prediction = loop.predict(fabric, candidate.model, batch)  # [1, 1, H, W]
    return candidate.table.scoring.in_metres(prediction, batch["depth"])[0].float().cpu()


def print_table(title: str, rows: dict[str, dict[str, Any]], metrics: Sequence[str]) -> None:
    """Print one row of metrics per name."""
    width = max(len(title), *(len(name) for name in rows))
    print("\n" + title.ljust(width) + "".join(f"{metric:>9}" for metric in metrics) + f"{'images':>9}")
    for name, row in rows.items():
        print(name.ljust(width) + "".join(f"{row[metric]:9.4f}" for metric in metrics) + f"{row['n_images']:9d}")


if __name__ == "__main__":
    run_script(main)
