"""Checkpoints say their version; those of earlier ones load; a damaged one ends a resumed run with one line."""

import os
import random
import shutil
from pathlib import Path

import pytest
import torch

import evaluate
import predict
import train_rgb_depth
from errors import CheckpointError
from models import MODELS, create_model
from models.weights import read_safetensors
from training.checkpoint import (
    FORMAT,
    load_checkpoint,
    load_model,
    load_weights,
    restore_model,
    save_checkpoint,
    save_model,
)
from training.version import VERSION

SMALL = ("--image_size", 32, "--base_channels", 4, "--batch_size", 4, "--num_workers", 0, "--nb_epochs", 2)


def train(rooms, output, *more):
    flags = ("--dataset", "simulated", "--dataset_dir", rooms, "--output_dir", output, "--experiment_name", "e")
    return [str(x) for x in (*flags, *SMALL, *more)]


@pytest.fixture(scope="module")
def begun(rooms, tmp_path_factory):
    """A run that was stopped after the first of two epochs."""
    folder = tmp_path_factory.mktemp("begun")
    train_rgb_depth.main(train(rooms, folder, "--stop_after_epoch", 1))
    return folder


@pytest.fixture
def stopped(begun, tmp_path):
    return Path(shutil.copytree(begun, tmp_path / "run"))


def test_a_version_stands_in_each(begun, tmp_path):
    for name in ("last.pth", "best_model.pth"):
        checkpoint = load_checkpoint(begun / "checkpoints/e" / name)
        assert checkpoint["format"] == FORMAT
        assert checkpoint["versions"] == {"toolkit": VERSION, **checkpoint["versions"]}
    save_model(create_model("rgb_depth", base_channels=1), tmp_path / "eye.safetensors", "MIT")
    assert read_safetensors(tmp_path / "eye.safetensors")[1]["version"] == VERSION


def as_the_first_version_wrote_it(path):
    """Rewrite a checkpoint: the best was known by its RMSE, and neither cubic filters nor precisions were kept."""
    state = load_checkpoint(path)
    state["best"] = {"rmse": state["best"]["value"], "epoch": state["best"]["epoch"]}
    state["versions"] = {key: value for key, value in state["versions"].items() if key != "toolkit"}
    for part, later in (("preprocessing", "rgb_filter"), ("args", "steps_per_epoch"), ("args", "micro_batch")):
        del state[part][later]
    if "training" in state:
        state["training"]["scheduler_state_dict"] = {"last_epoch": 3}
    save_checkpoint(state, path)


def test_the_first_versions_checkpoints_resume_and_are_scored_and_predict(rooms, stopped, tmp_path, run_cli):
    now = Path(shutil.copytree(stopped, tmp_path / "now"))
    for name in ("last.pth", "best_model.pth"):
        as_the_first_version_wrote_it(stopped / "checkpoints/e" / name)
    for folder in (now, stopped):
        assert run_cli(train_rgb_depth.main, *train(rooms, folder, "--resume"))[0] == 0
    ends = [load_checkpoint(folder / "checkpoints/e/last.pth") for folder in (now, stopped)]
    assert ends[0]["best"] == ends[1]["best"]
    assert all(
        torch.equal(ends[1]["model_state_dict"][key], value) for key, value in ends[0]["model_state_dict"].items()
    )
    path = stopped / "checkpoints/e/best_model.pth"
    as_the_first_version_wrote_it(path)
    flags = ("--checkpoint", path, "--output_dir", tmp_path, "--num_workers", 0)
    assert run_cli(evaluate.main, *flags)[0] == 0
    picture = next(rooms.glob("*/camera/*.jpeg"))
    assert run_cli(predict.main, "--checkpoint", path, "--rgb", picture, "--output", tmp_path / "maps")[0] == 0


@pytest.mark.parametrize("name", sorted(name for name, model in MODELS.items() if "audio" in model.inputs))
def test_a_network_that_is_older_than_an_option_has_its_default(name, tmp_path):
    sizes = {"base_channels": 2} | ({"image_size": 32} if name == "unet_baseline" else {})
    model = create_model(name, **sizes)
    config = {key: value for key, value in model.config.items() if key not in ("audio_channels", "share_ears")}
    old = {"model": {"name": name, "config": config}, "model_state_dict": model.state_dict()}
    assert config.keys() < model.config.keys()
    restored = restore_model(old, tmp_path / "old.pth")
    assert restored.config == model.config
    assert all(torch.equal(value, restored.state_dict()[key]) for key, value in model.state_dict().items())
    with pytest.raises(CheckpointError, match=r"trained with audio_channels=2 \(asked for: 4\); give the same flags"):
        load_weights(create_model(name, audio_channels=4, **sizes), old, tmp_path / "old.pth")


def without(*keys):
    """A change that leaves an entry out, which is found by its keys."""

    def change(state):
        for key in keys[:-1]:
            state = state[key]
        del state[keys[-1]]

    return change


def of_another_optimizer(state):
    state["training"]["optimizer_state_dict"]["param_groups"][0]["params"].pop()


def of_no_optimizer(state):
    state["training"]["optimizer_state_dict"] = 3


def with_value(part, key, value):
    """A change that says something else."""
    return lambda state: state[part].update({key: value})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("training"), "--init_from"),
        (without("training", "optimizer_state_dict"), "its training state does not fit"),
        (without("training", "task_state_dict"), "its training state does not fit"),
        (of_another_optimizer, "its training state does not fit"),
        (of_no_optimizer, "its training state does not fit"),
        (without("best"), "does not say epoch"),
        (without("best", "value"), "does not say value"),
        (without("step"), "does not say step"),
        (without("args"), "does not say args"),
        (with_value("args", "batch_size", torch.ones(2)), "its args.batch_size is of the type Tensor"),
        (with_value("preprocessing", "max_depth", "far"), "its preprocessing.max_depth is 'far', not a number"),
        (with_value("best", "epoch", -1), "its best.epoch is -1, not a whole number from 0 on"),
        (with_value("best", "value", [3]), "its best.value is [3], not a number"),
    ],
)
def test_a_checkpoint_that_lacks_something_does_not_resume_and_stays(change, says, rooms, stopped, run_cli):
    path = stopped / "checkpoints/e/last.pth"
    state = load_checkpoint(path)
    change(state)
    save_checkpoint(state, path)
    before = {file: file.read_bytes() for file in stopped.rglob("*") if file.is_file()}
    code, _, errors = run_cli(train_rgb_depth.main, *train(rooms, stopped, "--resume"))
    (line,) = errors.strip().splitlines()
    assert code == 2
    assert "last.pth" in line
    assert says in line
    assert {file: file.read_bytes() for file in stopped.rglob("*") if file.is_file()} == before


def same(one, other):
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("where", ["anywhere", "where the records are listed"])
def test_a_bit_that_flipped_is_seen_or_changes_nothing(where, begun, tmp_path):
    content = (begun / "checkpoints/e/last.pth").read_bytes()
    expected = load_checkpoint(begun / "checkpoints/e/last.pth")
    path, draw = tmp_path / "last.pth", random.Random(where)
    first = 0 if where == "anywhere" else content.index(b"PK\x01\x02")
    refusals = []
    for _ in range(60):
        flipped = bytearray(content)
        flipped[draw.randrange(first, len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        try:
            assert same(load_checkpoint(path), expected)
        except CheckpointError as error:
            refusals.append(str(error))
    assert len(refusals) > 20
    assert all(f"{path}" in line and "damaged" in line for line in refusals)


def test_a_record_that_is_said_to_be_a_folder_is_refused(begun, tmp_path):
    """As torch.load takes it, the tensor is what the memory held before."""
    content = bytearray((begun / "checkpoints/e/last.pth").read_bytes())
    entry = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1)
    content[entry + 38] |= 0x10  # the first byte of its external attributes
    (tmp_path / "last.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last.pth is damaged: its record archive/\S+ is said to be a folder"):
        load_checkpoint(tmp_path / "last.pth")


def test_a_damaged_checkpoint_names_what_is_beside_it(rooms, stopped, run_cli):
    path = stopped / "checkpoints/e/last.pth"
    shutil.copy(path, path.with_name("checkpoint_0001.pth"))
    os.utime(path.with_name("best_model.pth"), (0, 0))
    weight = load_checkpoint(path)["model_state_dict"]["encoder.levels.0.1.running_var"].numpy().tobytes()
    content = path.read_bytes()
    assert content.count(weight) == 1
    at = content.index(weight)
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    code, _, errors = run_cli(train_rgb_depth.main, *train(rooms, stopped, "--resume"))
    assert code == 2
    assert f"{path} is damaged: the checksum of its record archive/data/" in errors
    assert errors.endswith("is wrong; copy it again, or fall back to checkpoint_0001.pth, best_model.pth\n")
    assert run_cli(train_rgb_depth.main, *train(rooms, stopped, "--checkpoints", 1))[0] == 0


def test_a_file_that_was_written_without_checksums_is_read(begun, tmp_path):
    state = load_checkpoint(begun / "checkpoints/e/last.pth")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "without.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    torch.save(state, tmp_path / "of_old_torch.pth", _use_new_zipfile_serialization=False)
    for path in tmp_path.glob("*.pth"):
        assert same(load_checkpoint(path), state)


def test_a_network_is_opened_without_what_only_a_training_needs(stopped):
    path = stopped / "checkpoints/e/last.pth"
    state = load_checkpoint(path)
    kept = ("format", "model", "model_state_dict", "preprocessing", "epoch")
    save_checkpoint({key: state[key] for key in kept}, path)
    assert load_model(path)[0].name == "rgb_depth"
