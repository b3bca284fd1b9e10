"""What each value of a checkpoint must be: said in one table, and looked up when a file is read.

A file that was edited, or written by another program, may hold anything. Whatever passes here, every script can use:
numbers are finite and of a size that a machine can hold, texts can be printed and written.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataloaders.transforms import AUDIO_FORMATS, MAX_SAMPLES, MIN_SAMPLES, RGB_FILTERS
from errors import CheckpointError

LARGEST = 2**63 - 1  # of whole numbers
LARGEST_SIDE = 2**12  # of a picture or a map [pixels]
FARTHEST = 10_000.0  # metres: sound is on its way for the longest recording that is read
LONGEST = 4096  # of texts [characters]
DEEPEST = 3  # lists in lists, of a flag's values


@dataclass(frozen=True)
class Kind:
    """What a value must be: in words that follow "not", and as a question."""

    words: str
    holds: Callable[[Any], bool]


def whole(low: int, high: int = LARGEST) -> Kind:
    """Return the kind of the whole numbers from ``low`` to ``high``."""
    words = f"a whole number from {low} " + ("on" if high == LARGEST else f"to {high}")
    return Kind(words, lambda value: type(value) is int and low <= value <= high)


def number(words: str, holds: Callable[[float], bool]) -> Kind:
    """Return the kind of the numbers of which ``holds`` is true, whole or not."""

    def is_one(value: Any) -> bool:
        return type(value) is float or (type(value) is int and abs(value) <= LARGEST)

    return Kind(words, lambda value: is_one(value) and holds(value))


def text(words: str, encode: Callable[[str], bytes]) -> Kind:
    """Return the kind of the texts that can be encoded."""

    def holds(value: Any) -> bool:
        try:
            return isinstance(value, str) and len(value) <= LONGEST and b"\0" not in encode(value)
        except UnicodeEncodeError:
            return False

    return Kind(words, holds)


def one_of(*known: str) -> Kind:
    """Return the kind of some texts."""
    return Kind(f"one of {', '.join(known)}", lambda value: isinstance(value, str) and value in known)


def optional(kind: Kind) -> Kind:
    """Return a kind that may be None as well."""
    return Kind(f"{kind.words}, or None", lambda value: value is None or kind.holds(value))


def is_plain(value: Any, depth: int = DEEPEST) -> bool:
    """Return whether a value is as a flag's: None, a truth value, a number, a text, or a list of these."""
    if isinstance(value, (list, tuple)):
        return depth > 0 and all(is_plain(item, depth - 1) for item in value)
    if type(value) is int:
        return -LARGEST <= value <= LARGEST
    return value is None or type(value) in (bool, float) or PATH.holds(value)


def is_size(value: Any) -> bool:
    """Return whether a value is the side of a square, or [height, width]."""
    sides = value if isinstance(value, (list, tuple)) and len(value) == 2 else [value]
    return all(SIDE.holds(side) for side in sides)


DICT = Kind("a dict", lambda value: isinstance(value, dict))
FLAG = Kind("True or False", lambda value: isinstance(value, bool))
SIDE = whole(1, LARGEST_SIDE)
SIZE = Kind(f"{SIDE.words}, or [height, width] of such", is_size)
METRES = number(f"a number of metres above 0, at most {FARTHEST:g}", lambda value: 0 < value <= FARTHEST)
SHARE = number("a number in [0, 1]", lambda value: 0 <= value <= 1)
NUMBER = number("a number", lambda value: True)  # NaN and infinity among them
TEXT = text("a text", lambda value: value.encode())
PATH = text("a path", os.fsencode)  # of any bytes, which a text may not have
PLAIN = Kind("a plain value: None, a truth value, a number, a text, or a list of these", is_plain)
LEVELS = Kind(
    "a list of levels", lambda value: isinstance(value, (list, tuple)) and all(whole(1, 99).holds(x) for x in value)
)

# By its place; * is every value of a part, whatever its name. What is absent is missed where it counts.
SCHEMA: dict[str, Kind] = {
    "format": whole(1),
    "model": DICT,
    "model.name": TEXT,
    "model.config": DICT,
    "model.config.base_channels": whole(1),
    "model.config.n_bins": whole(2),
    "model.config.max_depth": METRES,
    "model.config.min_depth": METRES,
    "model.config.residual_limit": SHARE,
    "model.config.attention_levels": LEVELS,
    "model.config.bilinear": FLAG,
    "model.config.compress_input": FLAG,
    "model.config.share_ears": FLAG,
    "model.config.fixed_bins": FLAG,
    "model.config.rgb_encoder": TEXT,
    "model.config.preset": TEXT,
    "model.config.*": PLAIN,
    "model_state_dict": DICT,
    "preprocessing": DICT,
    "preprocessing.dataset": TEXT,
    "preprocessing.image_size": SIZE,
    "preprocessing.max_depth": METRES,
    "preprocessing.min_depth": number("a number of metres from 0 on", lambda value: 0 <= value < FARTHEST),
    "preprocessing.audio_format": optional(one_of(*AUDIO_FORMATS)),
    "preprocessing.audio_samples": optional(whole(MIN_SAMPLES, MAX_SAMPLES)),
    "preprocessing.sample_rate": optional(whole(1)),
    "preprocessing.resample": FLAG,
    "preprocessing.rgb_filter": one_of(*RGB_FILTERS),
    "preprocessing.*": PLAIN,
    "args": DICT,
    "args.dataset": TEXT,
    "args.dataset_dir": optional(PATH),
    "args.holdout_location": optional(TEXT),
    "args.label_fraction": SHARE,
    "args.label_seed": whole(0),
    "args.experiment_name": TEXT,
    "args.license": TEXT,
    "args.teacher_checkpoint": optional(PATH),
    "args.*": PLAIN,
    "epoch": whole(0),
    "step": whole(0),
    "best": DICT,
    "best.value": NUMBER,
    "best.rmse": NUMBER,  # as the first version called the value
    "best.epoch": whole(0),
    "versions": DICT,
    "versions.*": TEXT,
    "threads": whole(1),
    "processes": whole(1),
    "precision": TEXT,
    "training": DICT,
}


def check_values(state: Mapping[str, Any], path: Path) -> None:
    """Make sure that every value that a checkpoint has is what it must be.

    Args:
        state: a checkpoint, or some parts of one.
        path: its file, for the message.

    Raises:
        CheckpointError: naming the first value that is not.
    """
    for name, value, kind in values_of(state):
        if not kind.holds(value):
            raise CheckpointError(f"{path}: its {name} is {shown(value)}, not {kind.words}; take another checkpoint")
    preprocessing = state.get("preprocessing", {})
    nearest, farthest = preprocessing.get("min_depth", 0), preprocessing.get("max_depth", math.inf)
    if nearest >= farthest:
        raise CheckpointError(
            f"{path}: its preprocessing.min_depth is {nearest:g}, not below its preprocessing.max_depth, "
            f"{farthest:g}; take another checkpoint"
        )


def values_of(state: Mapping[str, Any]) -> Iterator[tuple[str, Any, Kind]]:
    """Yield the place, the value and the kind of every value that is there, parts before what is in them."""
    for name, kind in SCHEMA.items():
        *above, last = name.split(".")
        part: Any = state
        for key in above:
            part = part.get(key, {})
        if last != "*":
            if last in part:
                yield name, part[last], kind
            continue
        for key, value in part.items():
            yield f"{'.'.join(above)} has a name that", key, TEXT
            yield f"{'.'.join(above)}.{key}", value, kind


def shown(value: Any) -> str:
    """Return a value as a short text; of what is not plain, what it is."""
    whole_text = repr(value) if is_plain(value) or isinstance(value, str) else f"of the type {type(value).__name__}"
    return whole_text if len(whole_text) <= 60 else f"{whole_text[:57]}..."
