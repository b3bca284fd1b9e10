"""Read a whole data set and list every problem; say what is in it. Nothing in it is changed.

    python check_dataset.py data/BatvisionV2

Exit code 0: no problem; 1: problems, each on a line; 2: not a data set that can be read at all.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dataloaders import (
    DATASETS,
    KINDS,
    SPLITS,
    DepthDataset,
    Problem,
    check_length,
    create_dataset,
    find_dataset,
    is_silent,
    prepare_rgb,
    prepare_wave,
    start_worker,
    usable_workers,
    valid_depth,
)
from errors import DataError, run_script
from training import options
from training.files import refuse_folders, write_json

SHOWN_SIZE = 16  # pixels; every file is prepared as for a network, and this is the fastest
SIZES = 3  # rates and sizes that a line of the summary names, the most frequent first


@dataclass
class Reading:
    """What the files of one row hold.

    Attributes:
        problems: what is wrong with them.
        rate: of the sound, in Hz; None where no file says it.
        picture: height and width in pixels.
        depth: height and width, measured pixels, nearest, farthest and sum of them in metres.
    """

    problems: list[Problem] = field(default_factory=list)
    rate: int | None = None
    picture: tuple[int, int] | None = None
    depth: tuple[tuple[int, int], int, float, float, float] | None = None


class Readings(Dataset):
    """Reads the rows of a data set file by file, so that one broken file hides no other."""

    def __init__(self, dataset: DepthDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Reading:
        row = self.dataset.rows[index]
        reading = Reading()
        for modality, read in (("audio", self._audio), ("rgb", self._picture), ("depth", self._depth)):
            if not row.has(modality):
                continue
            try:
                read(row, reading)
            except DataError as error:
                paths = row.files[modality]
                path = next((path for path in paths if f"{error}".startswith(path)), paths[0])
                reading.problems.append(
                    Problem.of(error, modality, self.dataset.dataset_dir, path, row.number, row.source)
                )
        return reading

    def _audio(self, row: Any, reading: Reading) -> None:
        reading.rate = self.dataset.sample_rate(row)
        recorded = self.dataset.read_audio(row)  # [2, N]
        wave = prepare_wave(recorded, self.dataset.preprocessing)
        if is_silent(wave):
            raise DataError("the sound is silent; record it again, or drop the row")
        if torch.equal(wave[0], wave[1]):
            raise DataError("both ears hear the same; record it in stereo, or drop the row")
        check_length(recorded, self.dataset.preprocessing)

    def _picture(self, row: Any, reading: Reading) -> None:
        picture = self.dataset.read_rgb(row)
        reading.picture = (picture.height, picture.width)
        prepare_rgb(picture, self.dataset.preprocessing)

    def _depth(self, row: Any, reading: Reading) -> None:
        stored, to_metres = self.dataset.read_depth(row)
        depth = to_metres(stored)[0]  # [H, W]
        measured = depth[valid_depth(depth, self.dataset.min_depth)].double()
        if not len(measured):
            raise DataError("the map has no valid pixel; measure it again, or leave its cell empty")
        least, most = (value.item() for value in measured.aminmax())
        reading.depth = ((depth.shape[0], depth.shape[1]), len(measured), least, most, measured.sum().item())


@dataclass
class Figures:
    """What a split holds; depths in metres, over its measured pixels."""

    pairs: int
    with_depth: int = 0
    pixels: int = 0
    measured: int = 0
    nearest: float = math.inf
    farthest: float = -math.inf
    total: float = 0.0
    rates: Counter[int] = field(default_factory=Counter)
    pictures: Counter[tuple[int, int]] = field(default_factory=Counter)
    maps: Counter[tuple[int, int]] = field(default_factory=Counter)

    def add(self, reading: Reading) -> None:
        """Count a row."""
        if reading.rate is not None:
            self.rates[reading.rate] += 1
        if reading.picture is not None:
            self.pictures[reading.picture] += 1
        if reading.depth is not None:
            (height, width), measured, nearest, farthest, total = reading.depth
            self.maps[height, width] += 1
            self.with_depth += 1
            self.pixels += height * width
            self.measured += measured
            self.nearest, self.farthest = min(self.nearest, nearest), max(self.farthest, farthest)
            self.total += total

    def report(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        depth = None
        if self.measured:
            depth = {"nearest": self.nearest, "farthest": self.farthest, "mean": self.total / self.measured}
            depth["holes"] = 1 - self.measured / self.pixels
        return {
            "pairs": self.pairs,
            "with_depth": self.with_depth,
            "depth": depth,
            "sample_rates": {str(rate): count for rate, count in self.rates.most_common()},
            "picture_sizes": {f"{h}x{w}": count for (h, w), count in self.pictures.most_common()},
            "map_sizes": {f"{h}x{w}": count for (h, w), count in self.maps.most_common()},
        }


def create_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag and its default."""
    parser = options.create_parser("Read a whole data set and list every problem; say what is in it.")
    parser.epilog = "exit code: 0 no problem; 1 problems, each on a line; 2 no data set that can be read at all"
    parser.add_argument("dataset_dir", type=Path, metavar="DIR", help="the data set's folder")
    parser.add_argument("--dataset", choices=sorted(DATASETS), help="its kind (default: what it looks like)")
    parser.add_argument("--split", choices=SPLITS, nargs="+", help="read these alone (default: all)")
    parser.add_argument("--resample", action="store_true", help="allow other sample rates, as in training")
    parser.add_argument(
        "--num_workers",
        type=options.non_negative_int,
        default=4,
        metavar="N",
        help="reading processes, at most one for each core",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the problems and the figures here")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, read, list, sum up; exit with 1 if there is a problem."""
    args = create_parser().parse_args(argv)
    refuse_folders(json=args.json)
    name = args.dataset or find_dataset(args.dataset_dir)
    found: dict[Problem, None] = {}  # each once: train and val of NYU stand in one table

    def tell(problems: Sequence[Problem]) -> None:
        for problem in problems:
            if problem not in found:
                found[problem] = None
                tqdm.write(f"{problem}", file=sys.stdout)

    splits = DATASETS[name].splits_in(args.dataset_dir)  # a folder of pictures may have one, which stands for all
    datasets = open_splits(name, args, tell)
    tell(shared_files({split: dataset for split, dataset in datasets.items() if split in splits}))
    figures = {split: Figures(len(dataset)) for split, dataset in datasets.items()}
    for split, dataset in datasets.items():
        workers = usable_workers(args.num_workers)
        loader = DataLoader(Readings(dataset), batch_size=None, num_workers=workers, worker_init_fn=start_worker)
        for reading in tqdm(loader, split, unit="row", disable=not sys.stderr.isatty(), leave=False):
            tell(reading.problems)
            figures[split].add(reading)

    counts = {kind: count for kind in KINDS if (count := sum(problem.kind == kind for problem in found))}
    reports = {split: figure.report() for split, figure in figures.items()}
    print(f"{args.dataset_dir}: {name}")
    for split, report in reports.items():
        print(f"{split}: {'; '.join(sentences(report))}")
    many = f"{len(found)} problem{'s' * (len(found) > 1)}: {', '.join(f'{n} {kind}' for kind, n in counts.items())}"
    print(many if found else "no problem")
    if args.json:
        problems = [asdict(problem) for problem in found]
        about = {"dataset": name, "dataset_dir": str(args.dataset_dir), "splits": reports}
        write_json({**about, "counts": counts, "problems": problems}, args.json)
    if found:
        sys.exit(1)


def open_splits(name: str, args: argparse.Namespace, tell: Any) -> dict[str, DepthDataset]:
    """Return the splits that can be opened; ``tell`` is called with lists of what is wrong with their tables.

    Raises:
        DataError: there is none.
    """
    datasets: dict[str, DepthDataset] = {}
    refused: list[DataError] = []
    for split in args.split or DATASETS[name].splits_in(args.dataset_dir):
        problems: list[Problem] = []
        try:
            datasets[split] = create_dataset(
                name, args.dataset_dir, split, SHOWN_SIZE, resample=args.resample, problems=problems
            )
        except DataError as error:
            refused.append(error)
        tell(problems)
    if not datasets:
        raise refused[0]
    root = str(args.dataset_dir)
    tell([Problem.of(error, "split", root, root) for error in refused])
    return datasets


def shared_files(datasets: dict[str, DepthDataset]) -> list[Problem]:
    """Return a problem for each row that names a file of another split: on it, a score is none."""
    owners: dict[tuple[str, int], tuple[str, str]] = {}
    problems = []
    for split, dataset in datasets.items():
        for index, row in enumerate(dataset.rows):
            places = row.places()
            other = next((place for place in places if place in owners and owners[place][0] != split), None)
            if other is not None:
                path, (owner, where) = other[0], owners[other]
                error = DataError(f"is also of the {owner} split ({where}); drop one of the rows, or scores mean less")
                problems.append(Problem.of(error, "shared file", dataset.dataset_dir, path, row.number, row.source))
            for place in places:
                owners.setdefault(place, (split, dataset.row_name(index)))
    return problems


def sentences(report: dict[str, Any]) -> Iterator[str]:
    """Return a split's figures in words."""
    yield f"{report['pairs']} pairs, {report['with_depth']} with depth"
    if depth := report["depth"]:
        between = f"{depth['nearest']:.2f} to {depth['farthest']:.2f} m, mean {depth['mean']:.2f} m"
        yield f"{between}, {depth['holes']:.1%} holes"
    for key, title, unit in (
        ("sample_rates", "sound at", " Hz"),
        ("picture_sizes", "pictures", ""),
        ("map_sizes", "depth maps", ""),
    ):
        counts = report[key]
        if counts:
            shown = [
                f"{value}{unit}{f' ({n})' if len(counts) > 1 else ''}" for value, n in list(counts.items())[:SIZES]
            ]
            more = [f"{len(counts) - SIZES} others"] if len(counts) > SIZES else []
            yield f"{title} {', '.join([*shown, *more])}"


if __name__ == "__main__":
    run_script(main)
