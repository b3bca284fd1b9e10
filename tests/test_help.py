"""What every script says of its flags: each has a text, a number has its default and its unit, many stand in groups."""

import argparse
import importlib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDERS = (REPOSITORY, REPOSITORY / "tools", REPOSITORY / "benchmarks")
FILES = sorted(path for folder in FOLDERS for path in folder.glob("*.py"))
SCRIPTS = [path for path in FILES if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")]
UNITS = {"image_size": "pixels", "max_depth": "[m]", "min_depth": "[m]", "field_of_view": "[degrees]"}
ANONYMOUS = 6  # flags that may stand under "options"


@pytest.fixture(params=SCRIPTS, ids=[path.name for path in SCRIPTS])
def parser(request):
    module = ".".join(request.param.relative_to(REPOSITORY).with_suffix("").parts)
    return importlib.import_module(module).create_parser()


def flags_of(parser):
    """Every flag, but --help and those that are another's name, which is their text."""
    return [action for action in parser._actions if not (action.help or "").startswith(("--", "show this help"))]


def text_of(parser, action):
    """What --help says of a flag, its default among it."""
    return parser._get_formatter()._expand_help(action) if action.help else ""


def is_number(action):
    """Whether a flag's value is a number, or some."""
    try:
        return isinstance(action.type("1"), (int, float))
    except (TypeError, ValueError, argparse.ArgumentTypeError):
        return False


def test_every_flag_has_a_text(parser):
    mute = [action.dest for action in flags_of(parser) if not text_of(parser, action).strip()]
    assert not mute


def test_a_number_says_its_default(parser):
    numbers = [action for action in flags_of(parser) if is_number(action) and not action.required]
    silent = [action.dest for action in numbers if "default: " not in text_of(parser, action)]
    assert not silent


def test_a_default_that_says_nothing_is_not_shown(parser):
    """Where None stands for something, the text says for what."""
    silent = [a.dest for a in flags_of(parser) if "default: None" in text_of(parser, a) and "None:" not in a.help]
    assert not silent


def test_a_length_says_its_unit(parser):
    for action in flags_of(parser):
        unit = UNITS.get(action.dest)
        assert unit is None or unit in f"{text_of(parser, action)} {action.metavar}".lower(), action.dest


def test_many_flags_stand_in_groups(parser):
    grouped = [action for group in parser._action_groups[2:] for action in group._group_actions]
    anonymous = [action.dest for action in flags_of(parser) if action.option_strings and action not in grouped]
    assert len(anonymous) <= ANONYMOUS


def test_the_scripts_are_found():
    names = {path.name for path in SCRIPTS}
    assert {"train_rgb_depth.py", "export.py", "convert_checkpoint.py", "bench_data.py", "snippet_faults.py"} <= names
    assert {"errors.py", "measure.py", "utils_distillation_loss.py"}.isdisjoint(names)
