"""Where a run says what it does: console, ``console.log``, ``steps.csv``, ``metrics.csv`` and Weights & Biases."""

from __future__ import annotations

import csv
import io
import os
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from errors import DataError, OptionError
from training.files import write_whole, writing

Row = dict[str, Any]


class RunLog:
    """The log of one run; silent on all processes but the first.

    Args:
        results: folder of ``metrics.csv``, one row per epoch.
        logs: folder of ``console.log`` and ``steps.csv``, one row per step.
        epoch: the last epoch that is done; later rows, left by a run that was stopped, are dropped.
        enabled: False on all processes but the first.

    Raises:
        OptionError: here, and wherever something is kept: the disk is full or not writable.
        DataError: a table holds what is no number.
    """

    def __init__(self, results: Path, logs: Path, *, epoch: int = 0, enabled: bool = True) -> None:
        self.enabled = enabled
        self._wandb: Any = None
        if not enabled:
            return
        self._metrics = Table(results / "metrics.csv", "epoch", epoch)
        self._steps = Table(logs / "steps.csv", "epoch", epoch)  # epochs may have had other numbers of steps before
        self._said = logs / "console.log"
        with writing(self._said):
            self._console = self._said.open("a", encoding="utf-8", buffering=1)

    def say(self, line: str) -> None:
        """Print a line, above a progress bar if there is one, and keep it in ``console.log``."""
        if not self.enabled:
            return
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
        with writing(self._said):
            self._console.write(line + "\n")

    def warn(self, line: str) -> None:
        """Say a line that a reader must not miss."""
        self.say(f"warning: {line}")

    def steps(self, rows: list[Row]) -> None:
        """Keep rows with ``step``, ``epoch`` and the step's values."""
        if not self.enabled or not rows:
            return
        self._steps.append(rows)
        if self._wandb:
            for row in rows:
                self._wandb.log({f"step/{key}": value for key, value in row.items()}, step=row["step"])

    def epoch(self, row: Row, step: int) -> None:
        """Keep the row of an epoch, and say it."""
        if not self.enabled:
            return
        self._metrics.append([row])
        if self._wandb:
            self._wandb.log(row, step=step)
        shown = ("epoch", "lr", "train_", "val_rmse", "val_abs_rel", "val_delta1", "val_distance")
        parts = [f"{key} {value:.4g}" for key, value in row.items() if key.startswith(shown) and key != "epoch"]
        self.say(f"epoch {row['epoch']}: " + ", ".join(parts))

    def rows(self) -> list[Row]:
        """Return the rows of ``metrics.csv`` so far."""
        return self._metrics.read() if self.enabled else []

    def start_wandb(self, project: str, name: str, folder: Path, config: Row) -> None:
        """Log to Weights & Biases too; offline, with a warning, where no key is known or it is out of reach.

        Raises:
            OptionError: it is reached, and refuses.
        """
        if not self.enabled:
            return
        import wandb

        offline = os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun")
        if not offline and not _has_wandb_key():
            self.warn("W&B: no API key (wandb login), so this run is logged offline; wandb sync uploads it later")
            os.environ["WANDB_MODE"] = "offline"
        options: Row = {"project": project, "name": name, "dir": str(folder), "config": config, "id": None}
        settings = wandb.Settings(init_timeout=30, silent=True)
        try:
            self._wandb = wandb.init(settings=settings, **options)
        except wandb.errors.CommError as error:
            self.warn(f"W&B cannot be reached ({error}), so this run is logged offline; wandb sync uploads it later")
            self._wandb = wandb.init(settings=settings, mode="offline", **options)
        except wandb.errors.Error as error:
            raise OptionError(f"--use_wandb: W&B refuses this run ({error})") from error

    def picture(self, key: str, path: Path, step: int) -> None:
        """Send a picture that was saved to W&B."""
        if self._wandb:
            import wandb

            self._wandb.log({key: wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        """Finish the files and the W&B run."""
        if self.enabled:
            if self._wandb:
                self._wandb.finish()
            with writing(self._said):  # a line that found the disk full is tried once more
                self._console.close()


def check_wandb(project: str) -> None:
    """Make sure that Weights & Biases takes a project of this name; nothing is written, and nobody asked.

    Raises:
        OptionError: it does not.
    """
    import wandb

    try:
        wandb.Settings(project=project)
    except wandb.errors.Error as error:
        raise OptionError(f"--wandb_project {project}: {error}") from error


class Table:
    """A CSV file that grows, and whose columns may too; its header and its rows are always whole.

    Args:
        path: the file.
        key: a column that counts up.
        last: rows beyond this count are dropped, all of them at 0.

    Raises:
        OptionError: here, and where rows are added: the disk is full or not writable.
        DataError: it holds what is no number.
    """

    def __init__(self, path: Path, key: str, last: int) -> None:
        self.path = path
        kept = self.read()
        if any(key not in row for row in kept):
            raise DataError(f"{path} has rows without {key}; mend it, or delete it")
        rows = [row for row in kept if row[key] <= last]
        self._columns = list(dict.fromkeys(key for row in rows for key in row))
        self._rewrite(rows)

    def read(self) -> list[Row]:
        """Return all rows."""
        return read_csv(self.path) if self.path.is_file() else []

    def append(self, rows: list[Row]) -> None:
        """Add rows; they are in the file when this returns."""
        columns = list(dict.fromkeys([*self._columns, *(key for row in rows for key in row)]))
        if columns != self._columns:
            self._columns = columns
            self._rewrite([*self.read(), *rows])
            return
        with writing(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, columns, restval="").writerows(rows)

    def _rewrite(self, rows: list[Row]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns, restval="")
        if self._columns:
            writer.writeheader()
        writer.writerows(rows)
        with writing(self.path), write_whole(self.path) as file:
            file.write(text.getvalue().encode())


def read_csv(path: Path) -> list[Row]:
    """Read a table of numbers back: whole numbers as int, the others as float; an empty cell is not in its row.

    A last row that a kill or a full disk has cut off, be it within its last number, is no row.

    Raises:
        DataError: a cell of another row is no number.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            whole = [line for line in file if line.endswith("\n")]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text ({error}); mend it, or delete it") from error
    rows = []
    for number, row in enumerate(csv.DictReader(whole), start=1):
        try:
            rows.append({key: _number(cell) for key, cell in row.items() if cell})
        except (TypeError, ValueError) as error:  # TypeError: more cells than columns
            raise DataError(f"{path}, row {number}: not a row of numbers ({error}); mend it, or delete it") from error
    return rows


def _number(cell: str) -> float | int:
    try:
        return int(cell)
    except ValueError:
        return float(cell)


def _has_wandb_key() -> bool:
    import wandb

    return bool(os.environ.get("WANDB_API_KEY") or wandb.api.api_key)
