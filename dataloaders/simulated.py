"""Simulated rooms: the format of BatVision V2, made on this machine when the folder is not there yet."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import simulation
from dataloaders.base import log
from dataloaders.batvision import BatVisionV2
from errors import DataError

# What `--dataset simulated` means when nothing else was simulated before.
DEFAULT_SIMULATION: dict[str, Any] = {"train": 1500, "val": 150, "test": 300, "image_size": 128, "seed": 0}


class Simulated(BatVisionV2):
    """Rooms written by ``simulation``, or any other simulator's data in the folders and columns of BatVision V2."""

    name = "simulated"
    default_dir = "data/SimulatedRooms"
    default_max_depth = 12.0
    where_to_get_it = "run simulate_rooms.py, or name a folder that does not exist yet to have it written"

    def prepare_folder(self) -> None:
        """Write the default simulation where there is none, or finish an interrupted one with its own settings."""
        folder = Path(self.dataset_dir)
        if _is_whole(folder):
            return
        with _one_process_at_a_time(folder):
            if _is_whole(folder):  # another process wrote it meanwhile
                return
            settings = _settings_of(folder)
            log.info("%s: simulating rooms with %s", folder, settings)
            simulation.write_dataset(folder, **settings)


def _is_whole(folder: Path) -> bool:
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    return not simulation.is_simulated(folder) or simulation.is_complete(folder)


def _settings_of(folder: Path) -> dict[str, Any]:
    manifest = folder / "simulation.json"
    if not manifest.is_file():
        return {"layout": "batvisionv2", **DEFAULT_SIMULATION}
    try:
        settings = json.loads(manifest.read_text(encoding="utf-8"))
        return {name: settings[name] for name in ("layout", *DEFAULT_SIMULATION)}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{manifest} is broken ({error!r}); delete the folder to have it simulated again") from None


@contextlib.contextmanager
def _one_process_at_a_time(folder: Path) -> Iterator[None]:
    """Several processes of one training run start together; one of them simulates, the others wait."""
    try:
        import fcntl
    except ImportError:  # Windows has no such lock, and one process per run
        yield
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
