"""Imports point only downwards; no script imports a script; nothing imports what it must not know."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
ROOMS = ("models", "dataloaders", "simulation", "training", "experiments", "page")

# Floors from the top: a module may import from its own floor only where it is named here, and from floors below.
FLOORS = [
    {"experiments", "page"},
    {"training.session"},
    {"training.loop", "training.tasks"},
    {"training.task", "training.checkpoint", "training.run_log", "training.visualization", "training.options",
     "training.engine", "training.experiment", "training.baselines", "training.micro_batches",
     "training.teacher_cache", "training.model_card", "training.checkpoint_schema", "training.mirrored"},
    {"models", "dataloaders", "simulation", "utils_distillation_loss", "training.depth_losses", "training.metrics",
     "training.alignment"},
    {"training.mapped_rows"},
    {"training.files", "training.machine", "training.optimizers", "training.plots", "training.version"},
    {"errors"},
]  # fmt: skip
SAME_FLOOR = {
    ("training.experiment", "training.checkpoint"),
    ("training.checkpoint", "training.checkpoint_schema"),
    ("training.model_card", "training.checkpoint"),
    ("training.micro_batches", "training.task"),
    ("training.experiment", "training.options"),
    ("training.options", "training.checkpoint_schema"),  # how large a number a checkpoint keeps
    ("dataloaders", "simulation"),
    ("utils_distillation_loss", "training.depth_losses"),
    ("training.metrics", "training.alignment"),
    ("training.alignment", "training.depth_losses"),
}
FORBIDDEN = {"training.loop": {"models", "dataloaders", "argparse", "training.options"}}


def modules():
    files = [*REPOSITORY.glob("*.py"), *(path for room in ROOMS for path in (REPOSITORY / room).rglob("*.py"))]
    return {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path for path in files
    }


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor_name(module):
    """``models.blocks`` stands on the floor of ``models``; ``training.loop`` on its own."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "training" else parts[0]


def level(name):
    return next((i for i, floor in enumerate(FLOORS) if name in floor), None)


def own_imports(module, path):
    known = modules()
    names = {floor_name(name) for name in imports_of(path) if name.split(".")[0] in {*ROOMS, "errors"} or name in known}
    return {name for name in names if name != "training"} - {floor_name(module)}


def scripts():
    return [name for name in modules() if "." not in name and name not in {*ROOMS, "errors", "utils_distillation_loss"}]


@pytest.mark.parametrize("module", sorted(name for name in modules() if name != "training"))
def test_imports_point_downwards(module):
    imported = own_imports(module, modules()[module])
    if module in scripts():
        assert not imported & set(scripts()), "no script imports a script"
        return
    here = level(floor_name(module))
    assert here is not None, f"{module} stands on no floor: name it in FLOORS"
    for name in imported:
        there = level(name)
        assert there is not None, f"{module} imports {name}, which stands on no floor"
        assert there > here or (floor_name(module), name) in SAME_FLOOR, f"{module} must not import {name}"


@pytest.mark.parametrize("module", sorted(FORBIDDEN))
def test_the_loop_knows_no_model_no_data_set_and_no_flag(module):
    imported = {name for full in imports_of(modules()[module]) for name in (full, floor_name(full))}
    assert not imported & FORBIDDEN[module]


def test_every_room_documents_its_modules():
    undocumented = [name for name, path in modules().items() if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not undocumented
