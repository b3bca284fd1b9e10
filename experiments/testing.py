"""The tests of a suite: the best epoch of every seed of every row, once."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dataloaders import DEFAULT_MAX_DEPTHS, create_dataset
from errors import DataError
from experiments.records import Record, load, read_depths, read_results, save, shortened
from experiments.report import versions
from experiments.runs import Run, Runner, last_line, outcome, words_in
from experiments.scores import Scores, gather_scores
from experiments.settings import parse, without_folders
from experiments.suites import Suite
from training.metrics import mean_depth, scored_samples, scoring_on

LOOKED_AT = 5  # test samples, from the first to the last, whose depth tells the data from others of these names
Records = dict[tuple[str, int], Record]  # by the name of a row, and a seed


@dataclass
class Evaluator:
    """Tests what is trained, and keeps its records.

    Attributes:
        runner: where it was trained.
        suite: its rows.
        seeds: of each.
        kept: folder of the records, which may have been made elsewhere; None keeps none.
    """

    runner: Runner
    suite: Suite
    seeds: Sequence[int]
    kept: Path | None = None

    def known(self) -> Records:
        """Return the records that are there.

        Raises:
            DataError: one of them is broken, or of another script, other settings or another test.
        """
        if self.kept is None:
            return {}
        found: Records = {}
        for run, seed in itertools.product(self.suite.rows, self.seeds):
            file = self.record(run, seed)
            if file.is_file():
                record = load(file, run.command[0], self.runner.settings(run, seed))
                if not self.is_of_this_test(dict(record.tested)):
                    raise DataError(f"{file} is of a test on other data; give another --scores_dir")
                found[run.name, seed] = record
        return found

    @cached_property
    def tested(self) -> tuple[list[str], dict[str, float | None]]:
        """Names of the samples on which all rows are tested, and the mean measured depth in metres of some of them."""
        asked = dict(zip(self.suite.evaluate[::2], self.suite.evaluate[1::2], strict=True))
        any_row = replace(self.suite.rows[0], data=None)  # which is tested on the data of the others
        trained = parse(self.runner.command(any_row, 0))
        elsewhere = "--dataset" in asked
        name = asked.get("--dataset", trained.dataset)
        capped = trained.max_depth or DEFAULT_MAX_DEPTHS[trained.dataset]
        bounds: dict[str, Any] = {"max_depth": capped, **scored_samples(name)}
        data = create_dataset(
            name,
            asked.get("--dataset_dir", trained.dataset_dir),
            asked.get("--split", "test"),
            trained.image_size,
            **bounds,
            holdout_location=None if elsewhere else trained.holdout_location,
            modalities={"depth"},
        )
        scoring = scoring_on(name, "metres", "metric", data.max_depth)
        first_mask = next(iter(scoring.masks.values()))
        depths: dict[str, float | None] = {}
        for index in {i * (len(data) - 1) // (LOOKED_AT - 1) for i in range(LOOKED_AT)}:
            depth = data[index]["depth"][None]
            valid = scoring.valid(depth, first_mask)
            depths[data.ids[index]] = shortened(mean_depth(depth, valid).item()) if valid.any() else None
        return data.ids, depths

    def is_of_this_test(self, tested: Mapping[str, float]) -> bool:
        """Return whether scores by the name of an image are of the data that are there, by names and some depths."""
        names, depths = self.tested
        return {*tested} <= {*names} and all(tested.get(name) == depth for name, depth in depths.items())

    def test_all(self, failed: dict[tuple[str, int], str], known: Records) -> Records:
        """Test what has not failed and is not known; return all records. A test that fails is added to ``failed``."""
        done, records = {*failed, *known}, dict(known)
        wanted = [(run, seed) for run in self.suite.rows for seed in self.seeds if (run.name, seed) not in done]
        with self.runner.pool() as pool:
            tests = [pool.submit(outcome, self.evaluate, run, seed) for run, seed in wanted]
            for (run, seed), test in zip(wanted, tests, strict=True):
                found = test.result()
                if isinstance(found, Record):
                    records[run.name, seed] = found
                else:
                    failed[run.name, seed] = found
        return records

    def evaluate(self, run: Run, seed: int) -> Record | str:
        """Test what is trained, unless it is tested, and keep the record; return it, or why the test failed.

        Raises:
            UserError: a file of the training or of the test is broken, or the record cannot be written.
            OSError: a file cannot be read.
        """
        if why := self.test(run, seed):
            return why
        what = self.command(run, seed), self.runner.trained_settings(run, seed)
        minutes = self.runner.minutes(run, seed)
        made_by = self.made_by | {"commit": self.runner.commit(run, seed) or self.made_by["commit"]}
        record = read_results(*self.files(run, seed), run.epochs, *what, minutes, made_by)
        if self.kept is not None:
            save(record, self.record(run, seed))
        return record

    @cached_property
    def made_by(self) -> dict[str, str]:
        """Commit, versions and machine of the test."""
        return versions()

    def scores(self, records: Records) -> dict[str, Scores]:
        """Return the scores of each row that has a record, by its name."""
        found: dict[str, Scores] = {}
        for run in self.suite.rows:
            by_seed = {seed: records[run.name, seed] for seed in self.seeds if (run.name, seed) in records}
            if by_seed:
                found[run.name] = gather_scores(run, by_seed)
        return found

    def draw_rooms(self, scores: Mapping[str, Scores], path: Path) -> tuple[Path | None, str]:
        """Draw the same test samples as the first seed of every row predicts them whose network is here.

        Returns:
            The picture and its caption; or None, and why there is none.
        """
        runner, rows = self.runner, [(run, scores[run.name].seeds[0]) for run in self.trained if run.name in scores]
        here = [(run, seed) for run, seed in rows if runner.look_up(run, seed) == (run.epochs, None)]
        if not here:
            return None, f"No picture of the test samples: no row's network is in {runner.output_dir}."
        path.parent.mkdir(parents=True, exist_ok=True)
        files = [f"{runner.best(*row)}" for row in here]
        data = next(filter(None, (self.data(run) for run, _ in here)), ())
        ended = runner.call([*self.evaluation_command(*files), *self.suite.evaluate, *data, "--cases", f"{path}"])
        if ended.returncode:
            return None, f"No picture of the test samples: {last_line(ended.stderr)}"
        others = f" The networks of the other rows are not in {runner.output_dir}." if len(here) < len(rows) else ""
        names = "; ".join(run.name for run, _ in here)
        order = "its best and its worst" if len(here) == 1 else "from the easiest to the hardest for the first of these"
        return path, f"The same test samples as predicted by {names}: {order}.{others}"

    def warnings(self, scores: Mapping[str, Scores]) -> list[str]:
        """Return what the trainings of rows with scores warned of, where their logs are here.

        Of lines of one row that differ by their numbers alone, the first.
        """
        kinds: dict[tuple[str, str], str] = {}
        for run in self.trained:
            for seed in scores[run.name].seeds if run.name in scores else ():
                for warning in self.runner.warnings(run, seed):
                    kinds.setdefault((run.name, re.sub(r"\d+", "", warning)), f"{run.name}: {warning}")
        return list(kinds.values())

    def test(self, run: Run, seed: int) -> str | None:
        """Test the best epoch of a run, unless it is tested; return why that failed, if it did."""
        best, (figures, images) = self.runner.best(run, seed), self.files(run, seed)
        if not best.is_file():
            return f"its test failed: {best} is not there"
        done = all(file.is_file() and file.stat().st_mtime >= best.stat().st_mtime for file in (figures, images))
        if done and self.is_of_this_test(read_depths(images)):
            return None
        outputs = ("--json", f"{figures}", "--per_image", f"{images}")
        ended = self.runner.call([*self.evaluation_command(f"{best}"), *self.flags(run), *outputs])
        return None if ended.returncode == 0 else f"its test failed: {last_line(ended.stderr)}"

    def evaluation_command(self, *files: str) -> list[str]:
        """Return the command that evaluates checkpoints, but for the flags of the test."""
        command = ["evaluate.py", "--checkpoint", *files, "--num_workers", "0"]
        return [*command, "--output_dir", f"{self.runner.output_dir}"]

    def flags(self, run: Run) -> tuple[str, ...]:
        """Return the flags of a run's test: the suite's, its own, and those of its data."""
        return (*self.suite.evaluate, *run.test, *self.data(run))

    def data(self, run: Run) -> tuple[str, ...]:
        """Return the flags of the data that a run is tested on where these are not its own: all rows share a test."""
        return self.runner.data if run.data and not self.suite.evaluate else ()

    def files(self, run: Run, seed: int) -> tuple[Path, Path]:
        """Return the files of a run's figures and of each image's."""
        folder, name = self.runner.results(run, seed), f"test{self.otherwise(run)}"
        return folder / f"{name}.json", folder / f"{name}_images.csv"

    @property
    def trained(self) -> list[Run]:
        """The rows with a network of their own."""
        return [run for run in self.suite.rows if run.network is None]

    def otherwise(self, run: Run) -> str:
        """Return what tells the files of a test from those of other tests of the same network."""
        words = words_in(without_folders([*self.suite.evaluate, *run.test], self.runner.output_dir))
        return "".join(f"_{word}" for word in words)

    def command(self, run: Run, seed: int) -> str:
        """Return what trains a run, and the flags of its test: what its record is of."""
        return without_folders([*self.runner.command(run, seed), *self.flags(run)], self.runner.output_dir)

    def record(self, run: Run, seed: int) -> Path:
        """Return the file of a record."""
        assert self.kept is not None
        return self.kept / f"{run.folder(seed)}{self.otherwise(run)}.json"
