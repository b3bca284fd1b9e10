"""Files of weights: read without running code, and loaded whole or not at all."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from errors import CheckpointError

Weights = dict[str, Tensor]

SAFETENSORS = ".safetensors"  # the suffix; every other file is read as what torch.save wrote
ZIP = b"PK\x03\x04"  # how a file of torch.save begins since torch 1.6
FOLDER = 0x10  # the bit of a record's attributes that says so
INSIDE = ("model_state_dict", "state_dict", "model")  # where the weights are, in a file that holds more than them
WRAPPERS = ("module.", "_orig_mod.")  # what DDP and torch.compile put before every name
NAMED = 3  # tensors that an error names


def require_file(path: Path) -> None:
    """Raise :class:`errors.CheckpointError` where there is no file to read."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; name a file in it, such as best_model.pth")
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")


def read_pickle(path: Path) -> Any:
    """Read what ``torch.save`` wrote onto the CPU, with ``weights_only=True``: a pickle that would run code is refused.

    Raises:
        CheckpointError: the file is missing, truncated, damaged or unsafe.
    """
    require_file(path)
    if path.suffix == ".onnx":
        raise CheckpointError(f"{path} is ONNX, which predict.py runs; name the .pth that it was exported from")
    check_records(path)
    try:
        with warnings.catch_warnings():  # what torch warns of is part of the error, or of no concern
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused, since it is no checkpoint, is damaged, or holds more than tensors and plain values; "
            "take another, or convert it to a dict of tensors first"
        ) from error
    except Exception as error:  # on broken bytes: IndexError, AssertionError, struct.error, MemoryError ...
        raise CheckpointError(
            f"{path}: not a readable file of weights (truncated or damaged); copy it again"
        ) from error


def check_records(path: Path) -> None:
    """Make sure that what ``torch.save`` wrote is what is read: ``torch.load`` does not look at the checksums.

    A bit that flipped on a disk would else be another weight, and no error. It costs a fifth of a second per GB. Files
    of before torch 1.6, and those written without checksums, have none to look at.

    Raises:
        CheckpointError: the checksum of a record is wrong, or the records are not where the file says.
    """
    try:
        with path.open("rb") as content:
            if content.read(len(ZIP)) != ZIP:
                return
            with zipfile.ZipFile(content) as file:
                records = file.infolist()
                damaged = file.testzip() if any(record.CRC for record in records) else None
                # torch reads nothing where a folder is said to be, and takes what the memory held before.
                folder = next((record.filename for record in records if record.external_attr & FOLDER), None)
    except Exception as error:  # on broken bytes: BadZipFile, NotImplementedError, OSError, UnicodeDecodeError ...
        raise CheckpointError(
            f"{path}: not a readable file of weights (truncated or damaged); copy it again"
        ) from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: the checksum of its record {damaged} is wrong; copy it again")
    if folder is not None:
        raise CheckpointError(f"{path} is damaged: its record {folder} is said to be a folder; copy it again")


def read_safetensors(path: Path) -> tuple[Weights, dict[str, str]]:
    """Read the tensors of a safetensors file onto the CPU, and its metadata: texts by name.

    Raises:
        CheckpointError: the file is missing, truncated or of another kind.
    """
    with open_safetensors(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file to read from.

    Raises:
        CheckpointError: the file is missing, truncated or of another kind.
    """
    require_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file (truncated or damaged)") from error


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file without reading its tensors; of any other file, none.

    Raises:
        CheckpointError: the file is missing, truncated or of another kind.
    """
    if path.suffix != SAFETENSORS:
        return {}
    with open_safetensors(path) as file:
        return file.metadata() or {}


def read_weights(path: Path) -> tuple[Weights, dict[str, str]]:
    """Read the weights in a file of either kind, and its metadata, of which a pickle has none.

    Raises:
        CheckpointError: the file is missing, truncated, unsafe, or holds no weights.
    """
    return read_safetensors(path) if path.suffix == SAFETENSORS else (weights_in(read_pickle(path), path), {})


def weights_in(state: Any, path: Path) -> Weights:
    """Return the weights in what :func:`read_pickle` returned, under the names that the network gave them.

    Where it holds more than weights, they are what stands under a name of ``INSIDE``.

    Raises:
        CheckpointError: there are none.
    """
    if isinstance(state, dict):
        state = next((state[key] for key in INSIDE if isinstance(state.get(key), dict)), state)
    named = isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    if not named or not state:
        raise CheckpointError(f"{path}: holds no weights: a dict of tensors, bare or as one of {', '.join(INSIDE)}")
    while prefix := next((p for p in WRAPPERS if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return dict(state)


def load_strictly(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Load weights that have every name and every shape of the model, and nothing else.

    Raises:
        CheckpointError: naming what is missing, unknown or of another shape.
    """
    check_fit(model, weights, path)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:  # tensors that are no numbers in memory, such as sparse ones
        raise CheckpointError(f"{path}: its tensors cannot be copied ({error})") from error


def check_fit(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Raise :class:`errors.CheckpointError` that names what is missing, unknown or of another shape, if any is."""
    expected = model.state_dict()
    missing = [key for key in expected if key not in weights]
    unknown = [key for key in weights if key not in expected]
    misshapen = [
        f"{key} {list(weights[key].shape)} for {list(value.shape)}"
        for key, value in expected.items()
        if key in weights and weights[key].shape != value.shape
    ]
    found = (("missing", missing), ("unknown", unknown), ("of another shape", misshapen))
    if wrong := [f"{len(names)} {what} ({first_of(names)})" for what, names in found if names]:
        raise CheckpointError(f"{path}: of the {len(expected)} tensors that it should hold, {', '.join(wrong)}")


def first_of(names: Sequence[str]) -> str:
    """Return the first few names as a text, and how many more there are."""
    more = [f"and {len(names) - NAMED} more"] if len(names) > NAMED else []
    return ", ".join([*names[:NAMED], *more])
