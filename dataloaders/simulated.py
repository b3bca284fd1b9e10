"""Simulated rooms: the format of BatVision V2, made on this machine when the folder is not there yet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import simulation
from dataloaders.base import log
from dataloaders.batvision import BatVisionV2
from errors import DataError

# What `--dataset simulated` means when nothing else was simulated before.
DEFAULT_SIMULATION: dict[str, Any] = {
    "layout": "batvisionv2",
    "train": 1500,
    "val": 150,
    "test": 300,
    "image_size": 128,
    "seed": 0,
}


class Simulated(BatVisionV2):
    """Rooms written by ``simulation``, or any other simulator's data in the folders and columns of BatVision V2."""

    name = "simulated"
    default_dir = "data/SimulatedRooms"
    default_max_depth = 12.0
    where_to_get_it = "run simulate_rooms.py, or name a folder that does not exist yet to have it written"
    field_of_view = (90.0, 90.0)  # simulation.raycast.pixel_directions

    @classmethod
    def is_in(cls, folder: Path) -> bool:
        return simulation.is_simulated(folder) and super().is_in(folder)

    def prepare_folder(self) -> None:
        """Write the default simulation where there is none, or finish an interrupted one with its own settings.

        Several processes of one run may come here together: the writer lets one work while the others wait.
        """
        folder = Path(self.dataset_dir)
        settings = planned_simulation(folder)
        if settings is not None:
            log.info("%s: simulating rooms with %s", folder, settings)
            simulation.write_dataset(folder, **settings, progress=True)


def planned_simulation(folder: Path) -> dict[str, Any] | None:
    """Return the settings under which rooms are simulated where a folder is opened; None where all of them are there.

    Raises:
        DataError: it was begun, and does not say under which.
    """
    if simulation.is_simulated(folder):
        return None if simulation.is_complete(folder) else simulation_settings(folder)
    return None if BatVisionV2.is_in(folder) else DEFAULT_SIMULATION


def require_rooms(folder: Path, where: str, others: str) -> None:
    """Make sure that all rooms of a folder are there, where none are to be simulated: ``where``, and what to name then.

    Raises:
        DataError: they are not.
    """
    if planned_simulation(folder) is not None:
        raise DataError(
            f"{folder} does not hold all rooms of a simulation, and none are simulated {where}; name {others}, or "
            "simulate them first (simulate_rooms.py)"
        )


def simulation_settings(folder: Path) -> dict[str, Any]:
    """Return the settings under which the rooms of a folder were simulated.

    Raises:
        DataError: its ``simulation.json`` does not say them.
    """
    manifest = folder / "simulation.json"
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        settings = {name: content[name] for name in DEFAULT_SIMULATION}
        if wrong := [name for name, value in DEFAULT_SIMULATION.items() if type(settings[name]) is not type(value)]:
            raise ValueError(f"{wrong[0]}: {settings[wrong[0]]!r}")
        return settings
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{manifest} is broken ({error!r}); delete the folder to have it simulated again") from None
