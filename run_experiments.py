"""Run a suite of trainings with seeds and controls, and report what came out.

    python run_experiments.py smoke --seeds 0         a few rooms, a minute or two: does it all work?
    python run_experiments.py ladder --preset cpu     what each part of the teaching adds
    python run_experiments.py labels                  how many labels the teaching replaces
    python run_experiments.py pairs                   more pairs of picture and echo than have depth
    python run_experiments.py ablation                each part of the teaching off in turn
    python run_experiments.py transfer                tested where it was not trained
    python run_experiments.py tune --seeds 0          width and rate of the U-Net baseline, by the validation samples
    python run_experiments.py budget                  the student alone and the U-Net: for longer, wider, by Muon
    python run_experiments.py mirror                  the two, asked about mirror images too

What is done is not done again, what was killed goes on, what failed is reported and does not stop the others. With
--report_only what is trained so far is tested and reported.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataloaders import DATASETS, DEFAULT_DIRS, SPLITS, create_dataset
from dataloaders.base import DepthDataset
from dataloaders.readers import require_data
from dataloaders.simulated import planned_simulation, require_rooms, simulation_settings
from errors import DataError, OptionError, TrainingError, run_script
from experiments.report import write_report
from experiments.runs import Run, Runner, data_flags, with_teachers
from experiments.suites import OPTIMIZERS, PRESETS, SMOKE, SUITES, Setting, Suite
from experiments.testing import Evaluator
from models.weights import first_of
from simulation import is_simulated
from simulation.rooms import KINDS
from training import options
from training.files import writing

SMOKE_ROOMS = {"train": 24, "val": 8, "test": 8, "image_size": 32, "seed": 0}
NEEDED = {"audio", "depth"}  # without pictures the rows that learn from them fail at their start, the others do not
# Rooms beside the simulated ones: what their folder's name ends in, how many times as many, and how far on their seed.
# A teacher has all labels of the first, nobody has one of the second.
FURTHER_ROOMS = (("Other", 1, 1), ("Pairs", 3, 2))


def create_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag and its default."""
    parser = options.create_parser((__doc__ or "").splitlines()[0])
    parser.add_argument(
        "suite", choices=tuple(SUITES), help="which trainings stand beside each other (docs/EXPERIMENTS.md)"
    )
    parser.add_argument("--preset", choices=tuple(PRESETS), help="how large, and how long (default: cpu)")
    parser.add_argument(
        "--seeds", type=options.non_negative_int, nargs="+", default=[0, 1, 2], metavar="N", help="of each training"
    )
    parser.add_argument(
        "--optimizer",
        choices=OPTIMIZERS,
        help="of all rows but the U-Net's (default: that of the suite and the preset)",
    )
    parser.add_argument(
        "--epochs",
        type=options.positive_int,
        metavar="N",
        help="of each row; teachers, and ladder's U-Nets, have those of the preset at least "
        "(default: that of the suite and the preset)",
    )
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="rows whose name contains one of these, and controls")
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", choices=sorted(DATASETS), default="simulated", help="simulated needs no download")
    group.add_argument("--dataset_dir", type=Path, metavar="DIR", help="its folder (default: data/...)")
    group.add_argument(
        "--other_dataset_dir", type=Path, metavar="DIR",
        help="rooms on which a teacher has all labels (default: of simulated, simulated beside it under another seed)",
    )  # fmt: skip
    group.add_argument(
        "--pairs_dataset_dir", type=Path, metavar="DIR",
        help="more pairs of picture and echo, without depth (default: of simulated, three times as many, likewise)",
    )  # fmt: skip
    group.add_argument(
        "--holdout_location", metavar="NAME", help="of transfer (default: the last location that the data set names)"
    )
    group.add_argument(
        "--transfer_to", choices=sorted(DATASETS), metavar="NAME",
        help="of transfer: test on another data set instead (default: batvisionv1 for batvisionv2, if it is there)",
    )  # fmt: skip
    group.add_argument("--transfer_dir", type=Path, metavar="DIR", help="its folder")
    group = parser.add_argument_group("run")
    group.add_argument("--output_dir", type=Path, metavar="DIR", help="(default: runs/<preset>)")
    group.add_argument(
        "--scores_dir",
        type=Path,
        metavar="DIR",
        help="keep the scores of each training here, image by image: what is here is reported, not trained again",
    )
    group.add_argument("--report", metavar="NAME", help="its folder in reports/ (default: that of the suite)")
    group.add_argument(
        "--jobs",
        type=options.positive_int,
        default=1,
        metavar="N",
        help="trainings at a time, each on 1/N of the cores",
    )
    group.add_argument(
        "--gpu_ids", type=options.gpu_list, metavar="0,1,...",
        help="GPUs that the trainings share out among them, one for each (default: all on the first)",
    )  # fmt: skip
    end = group.add_mutually_exclusive_group()
    end.add_argument("--dry_run", action="store_true", help="print the commands and run none")
    end.add_argument("--report_only", action="store_true", help="train nothing; test and report what is trained")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is not trained, test, report."""
    args = create_parser().parse_args(argv)
    if args.report is not None and not options.is_folder_name(args.report):
        raise OptionError(f"--report {args.report!r} must be the name of a folder, not a path")
    refuse_idle(args)
    smoke = args.suite == "smoke"
    args.seeds = list(dict.fromkeys(args.seeds))
    name = "smoke" if smoke else args.preset or "cpu"
    preset = SMOKE if smoke else PRESETS[name]
    args.output_dir = (args.output_dir or Path("runs") / name).resolve()
    few_rooms = smoke and args.dataset == "simulated" and args.dataset_dir is None
    args.dataset_dir = Path(args.dataset_dir or DEFAULT_DIRS[args.dataset]).resolve()
    if few_rooms:
        args.dataset_dir = args.dataset_dir.with_name(f"{args.dataset_dir.name}Smoke")
        if not args.report_only:
            simulate(simulation_command(args.dataset_dir, **SMOKE_ROOMS), planned=args.dry_run)
    setting = create_setting(args, preset)
    further = plan_further_rooms(args)
    if further:
        (other, _), (pairs, _) = further
        other_data = setting.other_data or data_flags(args.dataset, other)
        setting = replace(setting, other_data=other_data, more_pairs=setting.more_pairs or f"{pairs}")
    if args.suite == "pairs" and setting.more_pairs is None:
        raise OptionError("pairs needs --pairs_dataset_dir: pairs of picture and echo beside those of the data set")
    suite = choose_rows(SUITES[args.suite](setting), args.only)
    runner = Runner(
        args.output_dir,
        data_flags(args.dataset, args.dataset_dir),
        preset.size,
        args.jobs,
        gpus=tuple(args.gpu_ids or ()),
    )
    if not args.report_only:
        simulate_further_rooms(further, with_teachers(suite.rows), planned=args.dry_run)
    trained = [run for run in with_teachers(suite.rows) if run.network is None]
    commands = [f"python {shlex.join(runner.command(run, seed))}" for run in trained for seed in args.seeds]
    if args.dry_run:
        print("\n".join(commands))
        print(f"{len(commands)} trainings, {args.jobs} at a time; what is done is not done again", file=sys.stderr)
        return
    report = args.output_dir / "reports" / (args.report or args.suite)
    evaluator = Evaluator(runner, suite, args.seeds, args.scores_dir)
    try:
        known = evaluator.known()
        failed = runner.find_untrained(suite.rows, args.seeds, known) if args.report_only else {}
        tests = len(known) + len(failed) < len(suite.rows) * len(args.seeds)
        # Not after the first training: what cannot be written is said now.
        for folder in filter(None, (args.output_dir / "logs", args.scores_dir if tests else None, report)):
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    pass
        if not args.report_only:  # each is tested when trained: whoever is stopped has the scores of what is done
            failed = runner.train_all(suite.rows, args.seeds, known, then=evaluator.evaluate)
        records = evaluator.test_all(failed, known)
    except KeyboardInterrupt as stopped:
        print("run_experiments.py: interrupted; the same command goes on where each training was", file=sys.stderr)
        sys.exit(128 + (stopped.args[0] if stopped.args else signal.SIGINT))
    if not records:
        each = [f"{name}, seed {seed}: {why}" for (name, seed), why in failed.items()]
        raise TrainingError(f"there is nothing to report in {args.output_dir}: {first_of(each)}")
    scores = evaluator.scores(records)
    rooms = evaluator.draw_rooms(scores, report / "rooms.png")
    repeated = ["run_experiments.py", *(sys.argv[1:] if argv is None else map(str, argv))]
    missing = "not there" if args.report_only else "failed"
    for path in write_report(
        report, suite, scores, list(records.values()), command=repeated, commands=commands, failed=failed, rooms=rooms,
        warnings=evaluator.warnings(scores), missing=missing,
    ):  # fmt: skip
        print(f"report: {path}", flush=True)
    if failed:
        what = f"are {missing}" if args.report_only else missing
        raise TrainingError(f"{len(failed)} of the trainings {what}; the report names them and why")


def refuse_idle(args: argparse.Namespace) -> None:
    """Refuse flags that would have no effect.

    Raises:
        OptionError: naming the flag.
    """
    of_suites = {
        "other_dataset_dir": ("labels", "pairs"),
        "pairs_dataset_dir": ("pairs",),
        "holdout_location": ("transfer",),
        "transfer_to": ("transfer",),
        "transfer_dir": ("transfer",),
    }
    for flag, suites in of_suites.items():
        if args.suite not in suites and getattr(args, flag) is not None:
            raise OptionError(f"--{flag} has no effect in {args.suite}; it is of {' and '.join(suites)}")
    for flag, suites in {"optimizer": ("tune", "budget", "smoke"), "epochs": ("budget", "smoke")}.items():
        if args.suite in suites and getattr(args, flag) is not None:
            raise OptionError(f"--{flag} has no effect in {args.suite}, whose rows have their own")
    if args.suite == "smoke" and args.preset is not None:
        raise OptionError("--preset has no effect in smoke, which has a size of its own")
    options.check_device(argparse.Namespace(gpu_ids=args.gpu_ids, precision="auto"))
    if args.holdout_location and (args.transfer_to or args.transfer_dir):
        raise OptionError("--holdout_location and --transfer_to are two tests; give one of them")
    if args.transfer_dir is not None and other_test(args) is None:
        raise OptionError("--transfer_dir has no effect without --transfer_to, which says what it holds")


def create_setting(args: argparse.Namespace, preset: Any) -> Setting:
    """Return what the rows are made for, from what the data sets have.

    Raises:
        OptionError: the data set has nothing to transfer to.
        DataError: a data set is not there, lacks what the rows need, or holds too little without the location that is
            held out.
    """

    def split_of(folder: Path, split: str = "train", has: Collection[str] = NEEDED, **choice: Any) -> DepthDataset:
        return open_data(args, args.dataset, folder, split, modalities=has, **choice)

    for flag in ("other_dataset_dir", "pairs_dataset_dir", "transfer_dir"):
        if (named := getattr(args, flag)) is not None:
            require_data(named, f"--{flag}")
    planned = rooms_to_come(args)
    unwritten = planned is not None
    if planned is not None:
        pairs_there, locations = planned["train"], sorted(KINDS)
    else:
        train = split_of(args.dataset_dir)
        pairs_there, locations = len(train), train.known_locations()
    batch = int(preset.size[preset.size.index("--batch_size") + 1])
    other, pairs = args.other_dataset_dir, args.pairs_dataset_dir
    for folder, has in ((other, {*NEEDED, "rgb"}), (pairs, {"audio", "rgb"})):
        if folder:
            split_of(folder, has=has)
    location, test = None, None
    if args.suite == "transfer":
        test = other_test(args)
        if test is None:
            location = args.holdout_location or last_location(args, locations, unwritten)
            for split in () if unwritten else SPLITS:  # were one of them empty, all trainings would be in vain
                split_of(args.dataset_dir, split, {"depth"}, holdout_location=location)
        else:
            open_data(args, *test, "test", modalities=NEEDED)
    return Setting(
        preset,
        steps=min(max(1, pairs_there // batch), preset.most_steps),
        other_data=data_flags(args.dataset, other) if other else None,
        more_pairs=f"{pairs.resolve()}" if pairs else None,
        other_location=location,
        other_test=data_flags(*test) if test else None,
        epochs=args.epochs,
        optimizer=args.optimizer,
    )


def rooms_to_come(args: argparse.Namespace) -> dict[str, Any] | None:
    """Return the settings of the rooms that the first training of a dry run would have simulated; None if none.

    What is no room at all is not taken for a folder in which some are to come.
    """
    rooms = args.dataset_dir
    blank = not rooms.exists() or (rooms.is_dir() and next(rooms.iterdir(), None) is None)
    if not args.dry_run or args.dataset != "simulated" or not (blank or is_simulated(rooms)):
        return None
    return planned_simulation(rooms)


def open_data(args: argparse.Namespace, name: str, folder: Path, split: str, **choice: Any) -> DepthDataset:
    """Open a data set, to see what it holds; where nothing is trained, no rooms are simulated for it.

    Raises:
        DataError: it is not there, or lacks what is asked of it.
    """
    trains = not (args.dry_run or args.report_only)
    if name == "simulated" and not trains:
        require_rooms(folder, "under --dry_run and --report_only", "another folder")
    return create_dataset(name, folder, split, 32, **choice)


def plan_further_rooms(args: argparse.Namespace) -> list[tuple[Path, list[str]]]:
    """Return the folders of other rooms and of more pairs that a suite has simulated, each with its command.

    They lie beside the simulated rooms, of the same size and under seeds of their own. Rooms of another simulator have
    nothing like them: the list is empty.

    Raises:
        DataError: the rooms are simulated, and do not say how.
    """
    if args.dataset != "simulated" or args.suite not in ("labels", "pairs"):
        return []
    rooms = args.dataset_dir
    settings = simulation_settings(rooms) if is_simulated(rooms) else planned_simulation(rooms)
    if settings is None:
        if args.other_dataset_dir is None and (args.suite == "labels" or args.pairs_dataset_dir is not None):
            print(
                f"{rooms} has no simulation.json: no other rooms are simulated like these; rows of such are left out",
                file=sys.stderr,
            )
        return []
    planned = []
    for name, times, seeds_on in FURTHER_ROOMS:
        folder = rooms.with_name(rooms.name + name)
        like = {"train": times * settings["train"], "val": settings["val"], "test": 0}
        like |= {"image_size": settings["image_size"], "seed": settings["seed"] + seeds_on}
        planned.append((folder, simulation_command(folder, **like)))
    return planned


def simulate_further_rooms(further: Sequence[tuple[Path, list[str]]], runs: Sequence[Run], *, planned: bool) -> None:
    """Simulate those further rooms that a training needs, unless they are there; or only say how, if that is planned.

    Raises:
        DataError: they cannot be simulated.
    """
    named = {flag for run in runs for flag in (*run.command, *(run.data or ()))}
    for folder, command in further:
        if f"{folder}" in named:
            simulate(command, planned=planned)


def simulation_command(folder: Path, **settings: int) -> list[str]:
    """Return the command that simulates rooms of some settings."""
    flags = [word for name, value in settings.items() for word in (f"--{name}", f"{value}")]
    return ["simulate_rooms.py", "--output", f"{folder}", *flags]


def simulate(command: Sequence[str], *, planned: bool) -> None:
    """Simulate rooms, unless they are there; or only say how, if that is planned.

    Raises:
        DataError: they cannot be simulated.
    """
    print(f"python {shlex.join(command)}", flush=True)
    if not planned and subprocess.run([sys.executable, *command], cwd=Path(__file__).parent, check=False).returncode:
        raise DataError(f"rooms could not be simulated (see above: {shlex.join(command)}); move away what is there")


def last_location(args: argparse.Namespace, locations: Sequence[str], unwritten: bool) -> str:
    """Return the last of a data set's locations that has test samples; all of rooms that are not simulated yet.

    Raises:
        OptionError: there is none.
    """
    tested = {*locations}
    if locations and not unwritten:
        tested &= {*create_dataset(args.dataset, args.dataset_dir, "test", 32, modalities={"depth"}).locations}
    if not tested:
        raise OptionError(f"--dataset {args.dataset} names no locations to hold out; give --transfer_to")
    return max(tested)


def other_test(args: argparse.Namespace) -> tuple[str, Path] | None:
    """Return name and folder of the data set to test a transfer on, or None where locations are held out instead."""
    if args.holdout_location:
        return None
    name = args.transfer_to
    if name is None and args.dataset == "batvisionv2" and Path(DEFAULT_DIRS["batvisionv1"]).is_dir():
        name = "batvisionv1"
    if name is None:
        return None
    return name, Path(args.transfer_dir or DEFAULT_DIRS[name])


def choose_rows(suite: Suite, only: Sequence[str] | None) -> Suite:
    """Return the rows whose names contain one of some texts, with their controls.

    Raises:
        OptionError: a text that no name contains.
    """
    if not only:
        return suite
    names: set[str] = set()
    for text in only:
        named = {row.name for row in suite.rows if text in row.name}
        if not named:
            raise OptionError(f"--only {shlex.quote(text)}: the rows are {'; '.join(row.name for row in suite.rows)}")
        names |= named
    names |= {suite.control[name] for name in names if name in suite.control}
    rows = [row for row in suite.rows if row.name in names]
    control = {name: of for name, of in suite.control.items() if name in names}
    return replace(suite, rows=rows, control=control)


if __name__ == "__main__":
    run_script(main)
