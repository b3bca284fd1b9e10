"""The tests of a suite: the best epoch of every seed of every row, once."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from errors import DataError
from experiments.records import Record, load, read_results, save
from experiments.report import Scores, gather_scores, versions
from experiments.runs import Laboratory, Run, last_line
from experiments.settings import without_folders
from experiments.suites import Suite

Records = dict[tuple[str, int], Record]  # by the name of a row, and a seed


@dataclass
class Examination:
    """Tests what is trained, and keeps what came out.

    Attributes:
        laboratory: where it was trained.
        suite: its rows.
        seeds: of each.
        kept: folder of the records, which may have been made elsewhere; None keeps none.
    """

    laboratory: Laboratory
    suite: Suite
    seeds: Sequence[int]
    kept: Path | None = None

    def known(self) -> Records:
        """Return the records that are there.

        Raises:
            DataError: one of them is broken, or of another command, or of other defaults.
        """
        if self.kept is None:
            return {}
        found: Records = {}
        for run, seed in itertools.product(self.suite.rows, self.seeds):
            file = self.record(run, seed)
            if file.is_file():
                found[run.name, seed] = load(file, self.command(run, seed), self.laboratory.settings(run, seed))
        return found

    def test_all(self, failed: dict[tuple[str, int], str], known: Records) -> Records:
        """Test what has not failed and is not known; return all records. A test that fails is added to ``failed``."""
        done, records = {*failed, *known}, dict(known)
        wanted = [(run, seed) for run in self.suite.rows for seed in self.seeds if (run.name, seed) not in done]
        with self.laboratory.pool() as pool:
            tests = [pool.submit(self.examine, run, seed) for run, seed in wanted]
            for (run, seed), test in zip(wanted, tests, strict=True):
                found = test.result()
                if isinstance(found, Record):
                    records[run.name, seed] = found
                else:
                    failed[run.name, seed] = found
        return records

    def examine(self, run: Run, seed: int) -> Record | str:
        """Test what is trained, unless it is tested, and keep the record; return it, or why the test failed."""
        if why := self.test(run, seed):
            return why
        what = self.command(run, seed), self.laboratory.trained_settings(run, seed)
        minutes = self.laboratory.minutes(run, seed)
        try:
            record = read_results(*self.files(run, seed), run.epochs, *what, minutes, self.made_by)
        except DataError as error:
            return f"{error}"
        if self.kept is not None:
            save(record, self.record(run, seed))
        return record

    @cached_property
    def made_by(self) -> dict[str, str]:
        """Commit, versions and machine."""
        return versions()

    def scores(self, records: Records) -> dict[str, Scores]:
        """Return the scores of each row that has a record, by its name."""
        found: dict[str, Scores] = {}
        for run in self.suite.rows:
            by_seed = {seed: records[run.name, seed] for seed in self.seeds if (run.name, seed) in records}
            if by_seed:
                found[run.name] = gather_scores(run, by_seed)
        return found

    def draw_rooms(self, scores: Mapping[str, Scores], path: Path) -> Path | None:
        """Draw the same test samples as the first seed of every row predicts them whose network is here."""
        best = [self.laboratory.best(run, scores[run.name].seeds[0]) for run in self.suite.rows if run.name in scores]
        files = [f"{file}" for file in best if file.is_file()]
        if not files:
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        ended = self.laboratory.call([*self.evaluate(*files), "--cases", f"{path}"])
        return path if ended.returncode == 0 else None

    def test(self, run: Run, seed: int) -> str | None:
        """Test the best epoch of a run, unless it is tested; return why that failed, if it did."""
        best, (figures, images) = self.laboratory.best(run, seed), self.files(run, seed)
        if all(file.is_file() and file.stat().st_mtime >= best.stat().st_mtime for file in (figures, images)):
            return None
        command = [*self.evaluate(f"{best}"), *self.data(run), "--json", f"{figures}", "--per_image", f"{images}"]
        ended = self.laboratory.call(command)
        return None if ended.returncode == 0 else f"its test failed: {last_line(ended.stderr)}"

    def evaluate(self, *files: str) -> list[str]:
        """Return the command that evaluates checkpoints as the suite asks."""
        command = ["evaluate.py", "--checkpoint", *files, "--num_workers", "0"]
        return [*command, "--output_dir", f"{self.laboratory.output_dir}", *self.suite.evaluate]

    def data(self, run: Run) -> tuple[str, ...]:
        """Return the flags of the data that a run is tested on where these are not its own: all rows share a test."""
        return self.laboratory.data if run.data and not self.suite.evaluate else ()

    def files(self, run: Run, seed: int) -> tuple[Path, Path]:
        """Return the files of a run's figures and of each image's."""
        folder, name = self.laboratory.results(run, seed), f"test{self.elsewhere}"
        return folder / f"{name}.json", folder / f"{name}_images.csv"

    @property
    def elsewhere(self) -> str:
        """What tells the files of this suite's tests from those of another suite that has the same trainings."""
        words = without_folders(self.suite.evaluate, self.laboratory.output_dir).lower()
        return "".join(f"_{word}" for word in re.findall(r"[a-z0-9.]+", words))

    def command(self, run: Run, seed: int) -> str:
        """Return what trains a run, and the flags of its test: what its record is of."""
        flags = (*self.suite.evaluate, *self.data(run))
        return without_folders([*self.laboratory.command(run, seed), *flags], self.laboratory.output_dir)

    def record(self, run: Run, seed: int) -> Path:
        """Return the file of a record."""
        assert self.kept is not None
        return self.kept / f"{run.folder(seed)}{self.elsewhere}.json"
