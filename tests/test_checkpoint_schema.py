"""Whatever value stands in a checkpoint, what a script makes of it is an answer, or one line that names the file."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import export
from dataloaders import create_dataset
from dataloaders.transforms import size_pair
from errors import CheckpointError, UserError
from models import create_model
from page import open_network
from training.checkpoint import (
    best_value,
    dataset_options_of,
    license_of,
    load_checkpoint,
    load_model,
    preprocessing_of,
)
from training.checkpoint_schema import SCHEMA, check_values
from training.model_card import model_card


def checkpoint_of(name, **config):
    torch.manual_seed(0)
    model = create_model(name, max_depth=12.0, **config)
    return {
        "format": 1,
        "model": {"name": name, "config": model.config},
        "model_state_dict": model.state_dict(),
        "preprocessing": {"dataset": "batvisionv2", "image_size": 32, "max_depth": 12.0, "min_depth": 1e-3,
                          "audio_format": "spectrogram", "audio_samples": 3112, "sample_rate": 44100,
                          "resample": False, "rgb_filter": "bilinear"},
        "args": {"experiment_name": "e", "dataset": "batvisionv2", "dataset_dir": "nowhere", "holdout_location": None,
                 "label_fraction": 0.5, "label_seed": 0, "license": "MIT", "teacher_checkpoint": "a.pth", "lr": 0.1},
        "epoch": 3,
        "step": 9,
        "best": {"value": 1.5, "epoch": 3},
        "versions": {"toolkit": "0.1.0"},
        "threads": 1,
        "processes": 1,
        "precision": "32",
    }  # fmt: skip


STATES = [
    checkpoint_of("rgb_depth", base_channels=1),
    checkpoint_of("binaural_attention", base_channels=2),
    checkpoint_of("multimodal_fusion", base_channels=2),
    checkpoint_of("adabins_audio", base_channels=2, n_bins=4),
]
plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 31, 33, 2**16, 2**40, 2**63, 10**500]),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["a\0b", "\ud800", "x" * 9999, "../..", "mel", "nyu", "inf"]),
)
values = st.one_of(
    plain,
    st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain, inner, max_size=3)),
    st.sampled_from([torch.ones(2), torch.tensor(float("nan")), b"bytes", (1, 2), {1}, range(3), 1j]),
)


def places_of(state):
    """Every key with those above it, such as ("args", "license")."""
    for key, value in state.items():
        yield (key,)
        if isinstance(value, dict) and key != "model_state_dict":
            yield from ((key, *below) for below in places_of(value))


def replaced(state, place, value):
    key, *below = place
    return {**state, key: replaced(state[key], below, value) if below else value}


def use(path):
    """Do with a file what the scripts do, as far as no data set is there."""
    checkpoint = load_checkpoint(path)
    model, _ = load_model(path)
    preprocessing = preprocessing_of(model, checkpoint, path)
    best_value(checkpoint)
    open_network(path)
    args = export.create_parser().parse_args(["--checkpoint", str(path), "--output", "a.onnx"])
    network, _ = export.open_network(args)
    size = size_pair(preprocessing["image_size"])
    taken = {"rgb": torch.zeros(1, 3, *size), "waveform": torch.zeros(1, 2, preprocessing["audio_samples"] or 1)}
    assert network(*(taken[key] for key in network.inputs)).shape == (1, 1, *size)
    card = model_card("t", "f", model, preprocessing, checkpoint, takes=model.inputs, license="MIT", versions={})
    card.encode()
    license_of(model, checkpoint, path).encode()
    with pytest.raises(UserError):  # none of the data sets is there
        create_dataset(**dataset_options_of(checkpoint, path), split="val", modalities=model.inputs)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("schema") / "network.pth"


@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(data=st.data(), number=st.integers(0, 3), value=values)
def test_a_value_of_any_kind_at_any_place_is_used_or_named(path, data, number, value):
    state = STATES[number]
    place = data.draw(st.sampled_from(list(places_of(state))))
    torch.save(replaced(state, place, value), path)
    try:
        use(path)
    except UserError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(part=st.sampled_from(["model", "preprocessing", "args", "best", "versions"]), name=st.text(max_size=3) | plain,
       value=values)  # fmt: skip
@example(part="args", name="a", value=[[[[[]]]]])
def test_a_value_under_any_name_is_plain_or_named(path, part, name, value):
    state = STATES[0]
    torch.save(replaced(state, (part,), {**state[part], name: value}), path)
    try:
        use(path)
    except UserError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("state", STATES, ids=[state["model"]["name"] for state in STATES])
def test_what_a_training_writes_is_used(path, state):
    torch.save(state, path)
    use(path)


def test_every_place_of_the_table_is_one_that_is_there(path):
    known = {".".join(place) for state in STATES for place in places_of(state)}
    elsewhere = {"best.rmse", "training", "model.config.rgb_encoder", "model.config.preset"}
    assert {place for place in SCHEMA if "*" not in place} <= known | elsewhere


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("model", "config", "attention_levels"), [1, "2"]),
        (("preprocessing", "image_size"), True),
        (("preprocessing", "image_size"), 32.0),
        (("preprocessing", "max_depth"), float("inf")),
        (("preprocessing", "audio_samples"), 256),
        (("args", "label_fraction"), float("nan")),
        (("args", "label_seed"), -1),
        (("best", "value"), True),
        (("versions", "torch"), 2.15),
    ],
)
def test_a_value_of_another_kind_is_refused_by_its_place(path, place, value):
    *above, last = place
    state = {"best": {}, "versions": {}} | STATES[1]
    parts = state
    for key in above:
        parts = parts[key]
    with pytest.raises(CheckpointError, match=rf"network.pth: its {'.'.join(place)} is .*; take another checkpoint$"):
        check_values(replaced({**state}, above, {**parts, last: value}), path)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 3])
def test_the_best_figure_of_a_run_may_be_no_figure_yet(path, value):
    check_values({"best": {"value": value, "epoch": 0}}, path)


def test_the_best_figure_has_two_names():
    assert best_value({"best": {"value": 2.0, "epoch": 1}}) == 2.0
    assert best_value({"best": {"rmse": 3.0, "epoch": 1}}) == 3.0
    assert best_value({"best": {}}) is None
    assert best_value({}) is None
