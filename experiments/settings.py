"""What a training is asked for, all of it: the flags of its command, and the defaults behind those that it leaves out.

A command alone does not say what it trains: a default may change from one version of the toolkit to the next.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from training.options import plain_arguments

Settings = dict[str, Any]  # by the name of a flag

# Where a training is written and how it was begun: the same network comes out.
INCIDENTAL = frozenset(
    {"cache_dir", "checkpoints", "experiment_name", "output_dir", "overwrite", "resume", "save_frequency", "stage"}
)


OWN_FOLDERS = ("checkpoints", "cache", "answers")  # in an ``output_dir``, of those that commands name


def settings_of(command: Sequence[str]) -> Settings:
    """Return the settings of a command of this toolkit.

    Args:
        command: a training script and its flags, ``--output_dir`` among them.

    Raises:
        OptionError: flags that the script refuses.
    """
    return identifying(plain_arguments(parse(command)))


def parse(command: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of a command of this toolkit, as its script has them.

    Raises:
        OptionError: flags that the script refuses.
    """
    script, *flags = command
    module: Any = importlib.import_module(Path(script).stem)
    model = [module.chosen_model(flags)] if hasattr(module, "chosen_model") else []  # its defaults are the model's
    args = module.create_parser(*model).parse_args(flags)
    if hasattr(module, "check_options"):
        module.check_options(args)
    return args


def settings_in(checkpoints: Path) -> Settings | None:
    """Return the settings that a training wrote into its folder of checkpoints, or None where it did not."""
    with suppress(OSError, ValueError, KeyError):
        return identifying(json.loads((checkpoints / "args.json").read_text(encoding="utf-8")))
    return None


def identifying(arguments: dict[str, Any]) -> Settings:
    """Return of a training's arguments those that tell it from another, without the folders of a machine."""
    output_dir = Path(arguments["output_dir"])

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        return portable(value, output_dir) if isinstance(value, str) else value

    return {flag: plain(value) for flag, value in arguments.items() if flag not in INCIDENTAL}


def differences(before: Settings, now: Settings) -> str:
    """Say which settings differ, of the flags that both know; empty where none does.

    A flag that is None ``now`` is decided when the training has seen its teacher or its data: it says nothing.
    """
    known = (flag for flag in sorted(now) if flag in before and now[flag] is not None)
    return ", ".join(f"--{flag} was {before[flag]}, is {now[flag]}" for flag in known if before[flag] != now[flag])


def placed(word: str, output_dir: Path) -> str:
    """Return a path in ``output_dir`` as its place there, the same wherever that is moved; any other word as is."""
    path = Path(word)
    inside = path.is_absolute() and path.is_relative_to(output_dir)
    return "/".join((".", *path.relative_to(output_dir).parts)) if inside else word


def portable(word: str, output_dir: Path) -> str:
    """Return a path as a word that is the same on every machine; any other word as is.

    What a suite keeps in its ``output_dir`` is named by its place there, anything else, as data, by its name alone.
    """
    path = Path(word)
    if not path.is_absolute():
        return word
    own = any(path.is_relative_to(output_dir / folder) for folder in OWN_FOLDERS)
    return placed(word, output_dir) if own or path == output_dir else path.name


def without_folders(command: Sequence[str], output_dir: Path) -> str:
    """Return a command as a line that is the same on every machine (see :func:`portable`)."""
    return shlex.join(portable(word, output_dir) for word in command)
