"""Checkpoint files: written whole or not at all, and read without running code.

A checkpoint is a dict of tensors and plain Python values:

====================== =================================================================================
``format``             the version of this layout
``model``              ``{"name", "config"}`` for ``models.create_model``
``model_state_dict``   the student's weights, under their own names
``preprocessing``      how its samples were made: data set, sizes (``image_size`` is one number or [height, width]),
                       audio format, cut, max_depth
``args``               the flags of the run
``epoch``, ``step``    how far it was; epochs count from 1
``best``               ``{"value", "epoch"}`` of the best validation so far
``versions``           of Python, torch and this toolkit
``threads``            of torch, and ``processes`` of the run: bfloat16 repeats bit for bit at equal numbers only
``training``           what resuming needs besides: the task's own weights, the optimiser's and the precision's
                       state; absent from ``best_model.pth``
====================== =================================================================================

Random states and the scheduler's are not kept: the first follow from the seed, the epoch and the sample
(``training.engine.seed_epoch``), the learning rate from the step.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from errors import CheckpointError, UserError
from models import DepthModel, create_model
from training.files import write_whole

FORMAT = 1


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write ``state`` to ``path``, flushed to the disk.

    At every moment ``path`` is absent, or a complete checkpoint.

    Raises:
        CheckpointError: the disk is full or not writable; what stood at ``path`` before still stands there.
    """
    try:
        with write_whole(path, durable=True) as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        raise CheckpointError(f"{path}: could not be written ({error}); earlier checkpoints are untouched") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, with ``weights_only=True``: a pickle that would run code is refused.

    Raises:
        CheckpointError: the file is missing, truncated, unsafe or not one of this toolkit's checkpoints.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused, since it is damaged or holds more than tensors and plain values; "
            "convert it to a dict of tensors first"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint (truncated or damaged)") from error
    missing = {"format", "model", "model_state_dict", "preprocessing", "epoch"} - set(
        state if isinstance(state, dict) else ()
    )
    if missing:
        raise CheckpointError(f"{path}: not a checkpoint of this toolkit; it has no {', '.join(sorted(missing))}")
    if state["format"] > FORMAT:
        raise CheckpointError(
            f"{path}: has format {state['format']}, this version reads up to {FORMAT}; update the toolkit"
        )
    return state


def restore_model(checkpoint: dict[str, Any], path: Path) -> DepthModel:
    """Build the model that a checkpoint names, with its weights, in eval mode.

    Raises:
        CheckpointError: the model is unknown, or the weights are not its own.
    """
    try:
        model = create_model(checkpoint["model"]["name"], **checkpoint["model"]["config"])
    except (UserError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    load_weights(model, checkpoint, path)
    return model.eval()


def dataset_options_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``dataloaders.create_dataset`` under which a checkpoint's data set looks as in training.

    The split, the modalities and which pairs kept their labels are left to the caller.
    """
    trained, preprocessing = checkpoint["args"], checkpoint["preprocessing"]
    options = {
        "name": trained["dataset"],
        "dataset_dir": trained["dataset_dir"],
        "holdout_location": trained.get("holdout_location"),
        **{key: preprocessing[key] for key in ("image_size", "max_depth", "min_depth", "resample")},
    }
    if preprocessing["audio_format"] is not None:
        options["audio_format"] = preprocessing["audio_format"]
    if "rgb_filter" in preprocessing:
        options["rgb_filter"] = preprocessing["rgb_filter"]
    return options


def load_weights(model: DepthModel, checkpoint: dict[str, Any], path: Path) -> None:
    """Load a checkpoint's weights into ``model``, strictly.

    Raises:
        CheckpointError: the checkpoint is of another model, or of the same at another size.
    """
    saved = checkpoint["model"]
    if saved["name"] != model.name:
        raise CheckpointError(f"{path}: holds a {saved['name']} model, not {model.name}; use its own script")
    differing = [
        f"{key}={saved['config'].get(key)} (asked for: {value})"
        for key, value in model.config.items()
        if saved["config"].get(key) != value
    ]
    if differing:
        raise CheckpointError(f"{path}: was trained with {', '.join(differing)}; give the same flags")
    try:
        model.load_state_dict(checkpoint["model_state_dict"])
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its weights do not fit {model.name}: {error}") from error
