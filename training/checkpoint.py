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
``best``               ``{"value", "epoch", "criterion"}`` of the best validation so far; the criterion is a column of
                       ``metrics.csv`` (files from before it was kept do not say it)
``versions``           of Python, torch and this toolkit
``threads``            of torch, and ``processes`` of the run: bfloat16 repeats bit for bit at equal numbers only
``training``           what resuming needs besides: the task's own weights, the optimiser's and the precision's
                       state; absent from ``best_model.pth``
====================== =================================================================================

A bare file of weights is a safetensors file of :func:`save_model`, or one in which Depth Anything is published.

Random states and the scheduler's are not kept: the first follow from the seed, the epoch and the sample
(``training.engine.seed_epoch``), the learning rate from the step.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import torch as safetensors
from torch import Tensor

from dataloaders import DATASETS, DEFAULT_DIRS
from dataloaders.simulated import require_rooms
from dataloaders.transforms import audio_channels, size_pair
from errors import CheckpointError, DataError, OptionError, UserError
from models import DepthModel, create_model
from models.depth_anything import DepthAnything, restore_depth_anything
from models.depth_anything_files import LICENSES, canonical_keys
from models.weights import (
    SAFETENSORS,
    check_fit,
    load_strictly,
    read_metadata,
    read_pickle,
    read_safetensors,
    weights_in,
)
from training.checkpoint_schema import check_values
from training.files import write_whole
from training.version import VERSION

FORMAT = 1
KEPT = ("last.pth", "checkpoint_*.pth", "best_model.pth")  # what a run saves beside each other
OWN_LICENSE = "that of its training data"
REQUIRED = ("format", "model", "model_state_dict", "preprocessing", "epoch")


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write ``state`` to ``path``, flushed to the disk.

    At every moment ``path`` is absent, or a complete checkpoint.

    Raises:
        CheckpointError: the disk is full or not writable; what stood at ``path`` before still stands there.
    """
    try:
        with write_whole(path, durable=True) as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:
        stop = next((cause for cause in _causes(error) if isinstance(cause, KeyboardInterrupt)), None)
        if stop is not None:
            raise stop from None
        why = next((cause for cause in _causes(error) if isinstance(cause, OSError)), error)
        raise CheckpointError(f"{path}: could not be written ({why}); earlier checkpoints are untouched") from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised in the handling of: torch's zip writer ends on its own error, whatever it met."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__context__


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, with ``weights_only=True``: a pickle that would run code is refused.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, unsafe or not one of this toolkit's checkpoints.
    """
    if path.suffix == SAFETENSORS:
        raise CheckpointError(f"{path}: holds weights alone; this takes a checkpoint, a .pth of a training script")
    return check_checkpoint(read_saved(path), path)


def read_saved(path: Path) -> Any:
    """Read as :func:`models.weights.read_pickle`, and name what a run has saved beside a file that cannot be read.

    Raises:
        CheckpointError: the file is missing, truncated, damaged or unsafe.
    """
    try:
        return read_pickle(path)
    except CheckpointError as error:
        beside = [other for pattern in KEPT for other in path.parent.glob(pattern) if other.name != path.name]
        if not beside or not path.is_file():
            raise
        newest = sorted(beside, key=lambda other: other.stat().st_mtime, reverse=True)[:3]
        raise CheckpointError(f"{error}, or fall back to {', '.join(other.name for other in newest)}") from error


def check_checkpoint(state: Any, path: Path) -> dict[str, Any]:
    """Return what was read from a file, if it is a checkpoint that this version can read.

    Raises:
        CheckpointError: it is not.
    """
    missing = [key for key in REQUIRED if not isinstance(state, dict) or key not in state]
    if missing:
        raise CheckpointError(
            f"{path}: not a checkpoint of this toolkit; it has no {', '.join(missing)}; give one of a training script"
        )
    if type(state["format"]) is int and state["format"] > FORMAT:  # a later one may hold other kinds of values
        raise CheckpointError(
            f"{path}: has format {state['format']}, this version ({VERSION}) reads up to {FORMAT}; update the toolkit"
        )
    check_values(state, path)
    require_entries(state, path, "model", "name", "config")
    return state


def require_entries(checkpoint: Mapping[str, Any], path: Path, part: str, *names: str) -> None:
    """Make sure that a part of a checkpoint says what is asked of it.

    Raises:
        CheckpointError: naming what it does not say.
    """
    missing = [name for name in names if name not in checkpoint.get(part, {})]
    if missing:
        raise CheckpointError(
            f"{path}: not a whole checkpoint; its {part} does not say {', '.join(missing)}; copy it again"
        )


def restore_model(checkpoint: dict[str, Any], path: Path) -> DepthModel:
    """Build the model that a checkpoint names, with its weights, in eval mode.

    Raises:
        CheckpointError: the model is unknown, cannot be built, or the weights or the preprocessing are not its own.
    """
    with torch.device("meta"):  # without memory: a size that is wrong may be larger than this machine
        check_fit(_build(checkpoint["model"], path), weights_in(checkpoint["model_state_dict"], path), path)
    model = _build(checkpoint["model"], path)
    load_weights(model, checkpoint, path)
    check_preprocessing(model, checkpoint.get("preprocessing", {}), path)
    return model.eval()


def _build(named: Mapping[str, Any], path: Path) -> DepthModel:
    """Build the model that a file names.

    Raises:
        CheckpointError: there is no such model.
    """
    try:
        return create_model(named["name"], **named["config"])
    except UserError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # sizes that no network has end in any way
        raise CheckpointError(f"{path}: no model can be built as it says ({error})") from error


def check_preprocessing(model: DepthModel, preprocessing: Mapping[str, Any], path: Path) -> None:
    """Make sure that samples that are made as a checkpoint says can go into its network.

    Raises:
        CheckpointError: they cannot.
    """
    if "audio" in model.inputs and preprocessing.get("audio_format", "") is None:
        raise CheckpointError(
            f"{path}: its preprocessing.audio_format is None, and its {model.name} hears; take another"
        )
    if "audio" in model.inputs and "audio_format" in preprocessing:
        given, taken = audio_channels(preprocessing["audio_format"]), model.input_channels("audio")
        if given != taken:
            raise CheckpointError(
                f"{path}: its preprocessing.audio_format {preprocessing['audio_format']} gives {given} maps, and its "
                f"{model.name} takes {taken}; take another"
            )
    try:
        for side in size_pair(preprocessing.get("image_size", 2 * model.size_multiple)):
            model.check_image_size(side)
    except OptionError as error:
        raise CheckpointError(f"{path}: of its preprocessing.image_size: {error}") from error


def best_value(checkpoint: Mapping[str, Any]) -> float | None:
    """Return the validation figure of the best epoch so far, metres of RMSE mostly; None where it is not said.

    The first version called it ``rmse``, while it could be nothing else.
    """
    best = checkpoint.get("best", {})
    return best.get("value", best.get("rmse"))


def own_value(checkpoint: Mapping[str, Any]) -> float | None:
    """Return :func:`best_value` where the weights in the file are those of that epoch; None: they are of another."""
    of_these_weights = checkpoint.get("best", {}).get("epoch") == checkpoint.get("epoch")
    return best_value(checkpoint) if of_these_weights else None


def dataset_options_of(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the arguments of ``dataloaders.create_dataset`` under which a checkpoint's data set looks as in training.

    The split, the modalities and which pairs kept their labels are left to the caller.

    Raises:
        CheckpointError: it does not say.
    """
    require_entries(checkpoint, path, "args", "dataset", "dataset_dir")
    require_entries(checkpoint, path, "preprocessing", "image_size", "max_depth", "min_depth", "resample")
    trained, preprocessing = checkpoint["args"], checkpoint["preprocessing"]
    if trained["dataset"] not in DATASETS:
        raise CheckpointError(
            f"{path}: its args.dataset is {trained['dataset']}; known are {', '.join(sorted(DATASETS))}"
        )
    options = {
        "name": trained["dataset"],
        "dataset_dir": trained["dataset_dir"],
        "holdout_location": trained.get("holdout_location"),
        **{key: preprocessing[key] for key in ("image_size", "max_depth", "min_depth", "resample")},
    }
    if preprocessing.get("audio_format") is not None:
        options["audio_format"] = preprocessing["audio_format"]
    if preprocessing.get("audio_samples") is not None:  # the axis of time, also on another data set
        options["audio_samples"] = preprocessing["audio_samples"]
    if "rgb_filter" in preprocessing:
        options["rgb_filter"] = preprocessing["rgb_filter"]
    return options


def other_axis_of_time(checkpoint: Mapping[str, Any], dataset: str) -> str | None:
    """Say why recordings of a data set are not heard as those were that a network learnt from; None: they are.

    One that heard recordings whole has their length as its axis of time, and other data have another length.
    """
    learnt_from = checkpoint["args"]["dataset"]
    if dataset == learnt_from or checkpoint["preprocessing"].get("audio_samples") is not None:
        return None
    return (
        f"it hears recordings of {learnt_from} whole; those of {dataset} have another length, and to it another axis "
        "of time"
    )


def require_folder(data: dict[str, Any], path: Path) -> None:
    """Make sure that the data to test a checkpoint on are there: simulated rooms would be made anew, as others.

    Args:
        data: of :func:`dataset_options_of`; a folder that it does not name is the data set's own.
        path: the checkpoint's file.

    Raises:
        DataError: they are not.
    """
    simulated = data["name"] == "simulated"
    if data["dataset_dir"] is None and not simulated:
        return
    folder = Path(data["dataset_dir"] or DEFAULT_DIRS["simulated"])
    if not folder.is_dir():
        raise DataError(f"{path} is to be tested on {folder}, which is not here; say where it is (--dataset_dir)")
    if simulated:
        require_rooms(folder, "where a network is tested", f"those of {path} (--dataset_dir)")


def load_model(path: Path) -> tuple[DepthModel, dict[str, Any] | None]:
    """Open a network with its weights, in eval mode: from a checkpoint of this toolkit or from a bare file of weights.

    Bare files are those of :func:`save_model`, which name their network, and Depth Anything's: safetensors or .pth, in
    any layout of ``models.depth_anything_files``, known by their sizes.

    Returns:
        The network, and its checkpoint; None for a bare file, which says nothing about preprocessing or training.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, unsafe, or of no network that is known here.
    """
    if path.suffix == SAFETENSORS:
        weights, metadata = read_safetensors(path)
        named = named_model(metadata)
        if named is not None and named["name"] != DepthAnything.name:
            check_values({"model": named}, path)
            return restore_model({"model": named, "model_state_dict": weights}, path), None
    else:
        state = read_saved(path)
        if isinstance(state, dict) and "format" in state:
            checkpoint = check_checkpoint(state, path)
            return restore_model(checkpoint, path), checkpoint
        weights = weights_in(state, path)
    return restore_depth_anything(canonical_keys(weights, path), path), None


def preprocessing_of(model: DepthModel, checkpoint: Mapping[str, Any] | None, path: Path) -> dict[str, Any]:
    """Return how the samples of a network from :func:`load_model` are made: enough for ``dataloaders.read_bare``.

    Raises:
        CheckpointError: nobody says it.
    """
    preprocessing = checkpoint["preprocessing"] if checkpoint else published_preprocessing(model, path)
    hearing = ("audio_samples", "audio_format", "resample") if "audio" in model.inputs else ()
    require_entries({"preprocessing": preprocessing}, path, "preprocessing", "image_size", *hearing)
    return preprocessing


def published_preprocessing(model: DepthModel, path: Path) -> dict[str, Any]:
    """Return the preprocessing of a network from a bare file, which does not say it: that of Depth Anything.

    Cubic pictures, at the square whose positions the network has learnt (518 pixels of the published ones).

    Raises:
        CheckpointError: a network of another kind, whose preprocessing is anybody's guess.
    """
    if not isinstance(model, DepthAnything):
        raise CheckpointError(
            f"{path}: holds the weights of a {model.name} alone, and not how its samples were made; give a checkpoint, "
            "a .pth of its training script"
        )
    return {
        "image_size": model.size_multiple * model.grid,
        "max_depth": None,
        "min_depth": 1e-3,
        "resample": False,
        "audio_format": None,
        "rgb_filter": "bicubic",
    }


def join_licenses(*licenses: str) -> str:
    """Return the licence of weights that come of several: all of theirs, each once."""
    return ", ".join(dict.fromkeys(part for license in licenses for part in license.split(", ")))


def license_of(model: DepthModel, checkpoint: Mapping[str, Any] | None, path: Path) -> str:
    """Return the licence of weights that :func:`load_model` opened: what is said with them, or the published one."""
    if checkpoint is not None:
        return checkpoint.get("args", {}).get("license", OWN_LICENSE)
    return read_metadata(path).get("license") or LICENSES.get(model.config.get("preset", ""), "unknown")


def save_model(model: DepthModel, path: Path, license: str, **about: str) -> None:
    """Write a network as a bare safetensors file, under its own names, which says what it is.

    Its metadata, which ``models.weights.read_safetensors`` returns, are ``config`` (``{"name", "config"}`` for
    ``models.create_model``, as JSON), ``license`` and ``version``, which is this toolkit's.

    Args:
        model: the network.
        path: the file; it is replaced whole or not at all.
        license: under which the weights may be used; those of a student follow its teacher's.
        **about: further metadata.

    Raises:
        CheckpointError: the disk is full or not writable; what stood at ``path`` before still stands there.
    """
    config = json.dumps({"name": model.name, "config": model.config})
    save_safetensors(model.state_dict(), path, {"config": config, "license": license, "version": VERSION, **about})


def save_safetensors(weights: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write weights and metadata as a safetensors file, flushed to the disk.

    Raises:
        CheckpointError: the disk is full or not writable; what stood at ``path`` before still stands there.
    """
    plain = {name: value.detach().cpu().contiguous() for name, value in weights.items()}  # channels_last is not
    try:
        with write_whole(path, durable=True) as file:
            file.write(safetensors.save(plain, {"format": "pt", **metadata}))
    except OSError as error:
        raise CheckpointError(f"{path}: could not be written ({error})") from error


def named_model(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the ``{"name", "config"}`` in metadata of :func:`save_model`; None where another program wrote them."""
    try:
        named = json.loads(metadata.get("config", ""))
    except ValueError:
        return None
    return named if isinstance(named, dict) and {"name", "config"} <= named.keys() else None


def load_weights(model: DepthModel, checkpoint: dict[str, Any], path: Path) -> None:
    """Load a checkpoint's weights into ``model``, strictly.

    Raises:
        CheckpointError: the checkpoint is of another model, or of the same at another size.
    """
    saved = checkpoint["model"]
    if saved["name"] != model.name:
        raise CheckpointError(f"{path}: holds a {saved['name']} model, not {model.name}; use its own script")
    config = saved["config"]
    unknown = sorted(config.keys() - model.config.keys())
    if unknown:
        raise CheckpointError(f"{path}: its model.config says {', '.join(unknown)}, which no {model.name} has")
    if model.config.keys() - config.keys():  # it is older than these options, whose defaults are what there was
        with torch.device("meta"):
            config = _build(saved, path).config
    differing = [
        f"{key}={config[key]} (asked for: {value})" for key, value in model.config.items() if config[key] != value
    ]
    if differing:
        raise CheckpointError(f"{path}: was trained with {', '.join(differing)}; give the same flags")
    load_strictly(model, weights_in(checkpoint["model_state_dict"], path), path)
