"""An experiment's folders, and how a run begins in them: anew, resumed, or from another's weights."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from errors import CheckpointError, OptionError
from training.checkpoint import load_checkpoint, require_entries, save_checkpoint
from training.files import claim, write_whole
from training.options import plain_arguments

SUPERSEDED, REPLACED = "superseded", "replaced"  # folders of what is set aside: for good, or until an epoch is saved
# What a run writes, folder by folder: nothing else is ever moved or removed.
WRITTEN = {
    "checkpoints": (
        "checkpoint_*.pth",
        "last.pth",
        "best_model.pth",
        "student.pth",
        "teacher.pth",
        "student.md",
        "teacher.md",
        "args.json",
    ),
    "results": ("epoch_*.png", "metrics.csv", "curves.png"),
    "logs": ("console.log", "steps.csv"),
}


@dataclass
class Start:
    """How a run begins.

    Attributes:
        checkpoint: what it begins from, or None.
        path: where that was read.
        weights_only: whether it takes the weights alone and starts at epoch 0.
    """

    checkpoint: dict[str, Any] | None = None
    path: Path | None = None
    weights_only: bool = False

    @property
    def epoch(self) -> int:
        """The last epoch that is done."""
        return 0 if self.checkpoint is None or self.weights_only else self.checkpoint["epoch"]


class Experiment:
    """``checkpoints/<name>``, ``results/<name>`` and ``logs/<name>`` under one output folder."""

    def __init__(self, output_dir: Path, name: str) -> None:
        self.output_dir = output_dir
        self.name = name
        self.checkpoints = output_dir / "checkpoints" / name
        self.results = output_dir / "results" / name
        self.logs = output_dir / "logs" / name
        self._claim: TextIO | None = None

    def find_start(self, args: argparse.Namespace) -> Start:
        """Read what the run begins from; writes nothing.

        Raises:
            OptionError: the folder holds an experiment, and no flag says what to do with it.
            CheckpointError: the checkpoint to begin from is missing or broken, or holds no training state.
        """
        if args.resume:
            return self._resume(self.checkpoints / "last.pth")
        if args.checkpoints:
            return self._resume(self._checkpoint_path(args.checkpoints))
        if args.init_from:
            path = self._weights_path(args.init_from)
            return Start(load_checkpoint(path), path, weights_only=True)
        if not args.overwrite and self.holds_results():
            raise OptionError(
                f"{self.checkpoints} holds an experiment: --resume or --checkpoints EPOCH goes on with it, --init_from "
                "NAME starts anew from weights (the old files are set aside), --overwrite replaces it; "
                "or choose another --experiment_name"
            )
        return Start()

    def _checkpoint_path(self, epoch_or_file: str) -> Path:
        if epoch_or_file.isdecimal():
            path = self.checkpoints / f"checkpoint_{int(epoch_or_file):04d}.pth"
            last = self.checkpoints / "last.pth"  # every epoch has been there, not every one was kept
            at_last = not path.is_file() and last.is_file() and load_checkpoint(last)["epoch"] == int(epoch_or_file)
            return last if at_last else path
        path = Path(epoch_or_file)
        if path.is_dir():
            raise OptionError(f"--checkpoints {path} is a folder; name one of its files, or an epoch")
        if self.holds_results() and path.resolve().parent != self.checkpoints.resolve():
            raise OptionError(
                f"--checkpoints {path} is not of the experiment in {self.checkpoints}; choose another --experiment_name"
            )
        return path

    def _weights_path(self, name_or_file: str) -> Path:
        if Path(name_or_file).is_file():
            return Path(name_or_file)
        folder = self.output_dir / "checkpoints" / name_or_file
        for path in (folder / "best_model.pth", folder / "last.pth"):
            if path.is_file():
                return path
        raise CheckpointError(f"--init_from {name_or_file}: neither a file nor an experiment with weights in {folder}")

    def _resume(self, path: Path) -> Start:
        if not path.is_file():
            saved = ", ".join(p.name for p in sorted(self.checkpoints.glob("*.pth"))) or "no checkpoint"
            raise CheckpointError(f"{path}: there is no such checkpoint to resume; {self.checkpoints} holds {saved}")
        checkpoint = load_checkpoint(path)
        if "training" not in checkpoint:
            raise CheckpointError(f"{path}: holds weights but no training state to resume; use --init_from {path}")
        require_entries(checkpoint, path, "best", "epoch")
        require_entries({"checkpoint": checkpoint}, path, "checkpoint", "args", "step")
        return Start(checkpoint, path)

    def begin(self, args: argparse.Namespace, start: Start) -> list[str]:
        """Make the folders ready and write ``args.json``; return what was set aside, as lines for the log.

        Called when all else is known to be in order, so that a mistake in a flag or a data set overwrites nothing. What
        ``--overwrite`` replaces is set aside too, until :meth:`remove_replaced`: the first epoch may yet meet a broken
        file.

        From here to :meth:`end` this process alone writes to them.

        Raises:
            OptionError: the folders cannot be written to, or another process trains this experiment.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._claim = claim(self.checkpoints / ".lock")
            if self._claim is None:
                raise OptionError(
                    f"{self.checkpoints}: another process trains this experiment; wait for its end, or choose another "
                    "--experiment_name"
                )
            name = REPLACED if args.overwrite else SUPERSEDED
            aside = self._set_aside(self.written(), name) if start.epoch == 0 else self._rewind(start)
            for folder in (self.checkpoints, self.results, self.logs):
                folder.mkdir(parents=True, exist_ok=True)
                for left in folder.glob(".*.tmp"):  # by a run that was killed while it wrote
                    left.unlink()
            with write_whole(self.checkpoints / "args.json") as file:
                file.write(f"{json.dumps(plain_arguments(args), indent=2)}\n".encode())
        except OSError as error:
            raise OptionError(f"--output_dir {self.output_dir} cannot be written to ({error})") from error
        until = " until an epoch is saved" if args.overwrite else ""
        return [f"earlier files were set aside in {aside[0].name}/ folders{until}"] if aside else []

    def end(self) -> None:
        """Let other processes begin."""
        if self._claim is not None:
            self._claim.close()

    def remove_replaced(self) -> None:
        """Remove what ``--overwrite`` replaces, also that of runs that failed before. Called when an epoch is saved."""
        for folder in (self.checkpoints, self.results, self.logs):
            for replaced in folder.glob(f"{REPLACED}_*"):
                shutil.rmtree(replaced, ignore_errors=True)

    def holds_results(self) -> bool:
        """Return whether a run of this name has finished an epoch: one that failed before left nothing to lose."""
        return any(path.suffix == ".pth" for path in self.written())

    def written(self) -> list[Path]:
        """Return the files that a run of this name has left."""
        folders = {"checkpoints": self.checkpoints, "results": self.results, "logs": self.logs}
        return [path for key, folder in folders.items() for pattern in WRITTEN[key] for path in folder.glob(pattern)]

    def _rewind(self, start: Start) -> list[Path]:
        """Set aside what is later than the epoch to resume, and bring back the best model of that time.

        One that cannot be read is set aside too: it must not keep a run from going on that does not need it. Where the
        run goes back from a later ``last.pth``, the tables, whose later rows are dropped, are kept there as they were.
        """
        assert start.checkpoint is not None
        best, last = self.checkpoints / "best_model.pth", self.checkpoints / "last.pth"
        later = [
            path
            for pattern, folder in (("checkpoint_*.pth", self.checkpoints), ("epoch_*.png", self.results))
            for path in folder.glob(pattern)
            if _epoch_of(path) > start.epoch
        ]
        tables = []
        for path in filter(Path.is_file, (best, last)):
            found = start.checkpoint if path == start.path else _load_readable(path)
            if found is None or found["epoch"] > start.epoch:
                later.append(path)
                if path == last:
                    tables = [*filter(Path.is_file, (self.results / "metrics.csv", self.logs / "steps.csv"))]
        aside = self._set_aside(later, SUPERSEDED, copied=tables)
        if not best.is_file():
            at_best = start.checkpoint["best"]["epoch"]
            kept = self.checkpoints / f"checkpoint_{at_best:04d}.pth"
            state = start.checkpoint if at_best == start.epoch else _load_readable(kept)
            if state is not None:
                save_checkpoint({key: value for key, value in state.items() if key != "training"}, best)
        return aside

    def _set_aside(self, paths: list[Path], name: str, copied: Sequence[Path] = ()) -> list[Path]:
        """Move files, and copy others, into a new folder ``<name>_<n>`` beside them; return these folders."""
        places, number = sorted({path.parent for path in (*paths, *copied)}), 1
        while any((place / f"{name}_{number}").exists() for place in places):
            number += 1
        folders = [place / f"{name}_{number}" for place in places]
        for folder in folders:
            folder.mkdir()
        for path in copied:
            shutil.copy2(path, path.parent / f"{name}_{number}")
        for path in paths:
            path.rename(path.parent / f"{name}_{number}" / path.name)
        return folders


def _load_readable(path: Path) -> dict[str, Any] | None:
    """Return a checkpoint, or None where there is none that can be read."""
    try:
        return load_checkpoint(path)
    except CheckpointError:
        return None


def _epoch_of(path: Path) -> int:
    digits = "".join(character for character in path.stem.split("_")[1] if character.isdecimal())
    return int(digits or 0)
