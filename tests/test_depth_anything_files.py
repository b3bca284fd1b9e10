"""The files in which Depth Anything comes: layouts, containers, and what is refused by name."""

import copy
import os
import re

import pytest
import torch
from safetensors.torch import save_file

from errors import CheckpointError
from models.depth_anything import DepthAnything, create_depth_anything_model, preset_of
from models.depth_anything_files import LAYOUTS, canonical_keys, layout_of, to_layout
from models.rgb_depth_model import create_rgb_depth_model
from models.weights import read_safetensors, read_weights
from tools import convert_checkpoint
from training.checkpoint import load_model, save_checkpoint, save_model
from training.version import VERSION

SUFFIXES = (".pth", ".safetensors")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = DepthAnything("tiny").eval()
    for parameter in network.parameters():  # so that no two are alike, and a swap would show
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return network


@pytest.fixture
def weights(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def write(weights, path, inside=None):
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".pth":
        torch.save({inside: weights, "epoch": 3} if inside else weights, path)
    else:
        save_file(weights, path)
    return path


def answers(model):
    x = torch.randn(1, 3, 56, 84, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model(x)


def to_huggingface(weights):
    """The names of transformers' DepthAnythingForDepthEstimation."""
    names = {
        "pretrained.cls_token": "backbone.embeddings.cls_token",
        "pretrained.mask_token": "backbone.embeddings.mask_token",
        "pretrained.pos_embed": "backbone.embeddings.position_embeddings",
    }
    both = {
        "pretrained.patch_embed.proj": "backbone.embeddings.patch_embeddings.projection",
        "pretrained.norm": "backbone.layernorm",
        "depth_head.scratch.output_conv1": "head.conv1",
        "depth_head.scratch.output_conv2.0": "head.conv2",
        "depth_head.scratch.output_conv2.2": "head.conv3",
    }
    for i in range(4):
        ours, theirs = f"pretrained.blocks.{i}", f"backbone.encoder.layer.{i}"
        names |= {f"{ours}.ls{k}.gamma": f"{theirs}.layer_scale{k}.lambda1" for k in (1, 2)}
        both |= {f"{ours}.{part}": f"{theirs}.{part}" for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")}
        both[f"{ours}.attn.proj"] = f"{theirs}.attention.output.dense"
        both[f"depth_head.projects.{i}"] = f"neck.reassemble_stage.layers.{i}.projection"
        both[f"depth_head.resize_layers.{i}"] = f"neck.reassemble_stage.layers.{i}.resize"
        both[f"depth_head.scratch.layer{i + 1}_rn"] = f"neck.convs.{i}"
        ours, theirs = f"depth_head.scratch.refinenet{4 - i}", f"neck.fusion_stage.layers.{i}"
        both[f"{ours}.out_conv"] = f"{theirs}.projection"
        both |= {
            f"{ours}.resConfUnit{unit}.conv{k}": f"{theirs}.residual_layer{unit}.convolution{k}"
            for unit in (1, 2)
            for k in (1, 2)
        }
    names |= {f"{a}.{kind}": f"{b}.{kind}" for a, b in both.items() for kind in ("weight", "bias")}
    renamed = {}
    for name, value in weights.items():
        if found := re.fullmatch(r"pretrained\.blocks\.(\d)\.attn\.qkv\.(\w+)", name):
            for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[f"backbone.encoder.layer.{found[1]}.attention.attention.{part}.{found[2]}"] = third.clone()
        else:
            renamed[names[name]] = value
    return renamed


# ---------------------------------------------------------------------------------------------------------- the layouts


def test_the_layouts_differ_as_they_are_published(weights, tmp_path):
    norm = "blocks.2.norm1.weight"
    for layout, name in (
        ("original", f"pretrained.{norm}"),
        ("nested", f"backbone.blocks.0.{norm.removeprefix('blocks.')}"),
        ("flat", f"backbone.{norm}"),
    ):
        renamed = to_layout(weights, layout, tmp_path)
        assert layout_of(renamed) == layout
        assert torch.equal(renamed[name], weights[f"pretrained.{norm}"])
        assert len(renamed) == len(weights)
        assert sum(key.startswith("depth_head.") for key in renamed) == sum(
            k.startswith("depth_head.") for k in weights
        )


@pytest.mark.parametrize("layout", [*LAYOUTS, "huggingface"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_layout_is_read_from_every_container(model, weights, tmp_path, layout, suffix):
    renamed = to_huggingface(weights) if layout == "huggingface" else to_layout(weights, layout, tmp_path)
    assert layout_of(renamed) == layout
    path = write(renamed, tmp_path / f"published{suffix}")
    for opened in (create_depth_anything_model("tiny", path), load_model(path)[0]):
        assert not opened.training
        assert opened.state_dict().keys() == weights.keys()
        assert all(torch.equal(value, weights[key]) for key, value in opened.state_dict().items())
        assert torch.equal(answers(opened), answers(model))


def test_the_blocks_of_a_flat_file_are_no_chunk(weights, tmp_path):
    """backbone.blocks.0.* is the first block of the one layout and all blocks of the other."""
    flat = to_layout(weights, "flat", tmp_path)
    assert canonical_keys(flat, tmp_path).keys() == weights.keys()


@pytest.mark.parametrize("inside", ["model", "state_dict", "model_state_dict"])
@pytest.mark.parametrize("wrapped", ["module.", "module._orig_mod.", "_orig_mod.module."])
def test_weights_inside_a_checkpoint_are_found(model, weights, tmp_path, inside, wrapped):
    path = write({f"{wrapped}{key}": value for key, value in weights.items()}, tmp_path / "training.pth", inside)
    assert torch.equal(answers(create_depth_anything_model("tiny", path)), answers(model))


def test_half_precision_is_read_into_single(weights, tmp_path):
    path = write({key: value.half() for key, value in weights.items()}, tmp_path / "half.safetensors")
    opened = create_depth_anything_model("tiny", path)
    assert {value.dtype for value in opened.state_dict().values()} == {torch.float32}
    key = "pretrained.norm.weight"
    assert torch.equal(opened.state_dict()[key], weights[key].half().float())


def test_what_does_not_train_does_not_after_loading_either(weights, tmp_path):
    opened = create_depth_anything_model("tiny", write(weights, tmp_path / "a.pth"))
    assert opened.count_parameters() == DepthAnything("tiny").count_parameters()


@pytest.mark.parametrize("preset", ["vits", "vitb", "vitl"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_preset_is_known_by_its_sizes(preset, layout, tmp_path):
    with torch.device("meta"):
        state = DepthAnything(preset).state_dict()
    assert preset_of(canonical_keys(to_layout(state, layout, tmp_path), tmp_path), tmp_path) == preset


# -------------------------------------------------------------------------------------------------------------- refused


def convert(source, target, *flags):
    convert_checkpoint.main([str(x) for x in (source, target, "--layout", "original", *flags)])


def opened_by_conversion(path):
    convert(path, path.with_name("converted.pth"))


OPENERS = [
    pytest.param(lambda path: create_depth_anything_model("tiny", path), id="create"),
    pytest.param(load_model, id="load_model"),
    pytest.param(opened_by_conversion, id="convert"),
]


@pytest.mark.parametrize("open_it", OPENERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tensor_too_few_too_many_or_misshapen_is_named(weights, tmp_path, layout, open_it):
    gone, odd = "pretrained.blocks.1.mlp.fc2.bias", "depth_head.projects.0.weight"
    cases = {
        f"1 missing ({gone})": {key: value for key, value in weights.items() if key != gone},
        "1 unknown (depth_head.extra)": {**weights, "depth_head.extra": torch.zeros(2)},
        f"1 of another shape ({odd} [16, 65, 1, 1] for [16, 64, 1, 1])": {**weights, odd: torch.zeros(16, 65, 1, 1)},
    }
    for said, wrong in cases.items():
        path = write(to_layout(wrong, layout, tmp_path), tmp_path / "wrong.safetensors")
        with pytest.raises(CheckpointError, match=re.escape(said)) as error:
            open_it(path)
        assert str(path) in str(error.value)
    assert not (tmp_path / "converted.pth").exists()


def test_a_file_of_another_size_is_no_half_success(weights, tmp_path):
    path = write(weights, tmp_path / "tiny.pth")
    with pytest.raises(CheckpointError, match=r"239 tensors .* 112 missing \(pretrained.blocks.4.*and 109 more\), "):
        create_depth_anything_model("vits", path)
    one_block_more = {key.replace("blocks.3", "blocks.4"): value for key, value in weights.items()}
    with pytest.raises(CheckpointError, match=r"width 64 and depth 5; known are tiny 64 x 4, mini 128 x 8, vits"):
        load_model(write(one_block_more, tmp_path / "deeper.pth"))


def test_a_file_in_two_layouts_is_refused(weights, tmp_path):
    both = {**weights, **{key: value.clone() for key, value in to_layout(weights, "flat", tmp_path).items()}}
    with pytest.raises(CheckpointError, match=r"holds pretrained.* twice"):
        load_model(write(both, tmp_path / "both.pth"))


def test_a_third_of_an_attention_is_named(weights, tmp_path):
    renamed = to_huggingface(weights)
    key = "backbone.encoder.layer.2.attention.attention.key.weight"
    del renamed[key]
    with pytest.raises(CheckpointError, match=r"missing \(pretrained.blocks.2.attn.qkv.weight\), 2 unknown"):
        load_model(write(renamed, tmp_path / "hf.safetensors"))


@pytest.mark.parametrize("open_it", OPENERS)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_truncated_file_is_refused(weights, tmp_path, suffix, open_it):
    path = write(weights, tmp_path / f"torn{suffix}")
    whole = path.read_bytes()
    for size in (0, 7, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=f"torn{suffix}"):
            open_it(path)


class Shell:
    def __reduce__(self):
        return os.system, ("echo this must not run > $PWD/ran",)


@pytest.mark.parametrize("open_it", OPENERS)
def test_a_pickle_with_code_is_refused(weights, tmp_path, monkeypatch, open_it):
    monkeypatch.chdir(tmp_path)
    torch.save({**weights, "shell": Shell()}, tmp_path / "unsafe.pth")
    with pytest.raises(CheckpointError, match="refused"):
        open_it(tmp_path / "unsafe.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [{}, [1, 2], {"a": 1}, {"model": {"a": "b"}}, {3: torch.zeros(1)}])
def test_a_file_without_weights_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_model(tmp_path / "none.pth")


def test_weights_of_another_kind_are_refused(tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="no Depth Anything network"):
        load_model(tmp_path / "other.pth")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_is_not_there(tmp_path, suffix):
    with pytest.raises(CheckpointError, match="no such file"):
        load_model(tmp_path / f"gone{suffix}")


# ------------------------------------------------------------------------------------------------- safetensors, written


def test_a_network_is_saved_with_what_it_is(model, tmp_path):
    path = tmp_path / "student.safetensors"
    save_model(copy.deepcopy(model).to(memory_format=torch.channels_last), path, "CC-BY-NC-4.0", teacher="vitl")
    weights, metadata = read_safetensors(path)
    assert weights.keys() == model.state_dict().keys(), "the published names: other programs read it"
    assert metadata == {
        "format": "pt",
        "config": '{"name": "depth_anything", "config": {"preset": "tiny"}}',
        "license": "CC-BY-NC-4.0",
        "version": VERSION,
        "teacher": "vitl",
    }
    opened, checkpoint = load_model(path)
    assert checkpoint is None
    assert torch.equal(answers(opened), answers(model))


def test_any_network_is_saved_so(tmp_path):
    torch.manual_seed(0)
    network = create_rgb_depth_model(base_channels=4, max_depth=7.0).eval()
    save_model(network, tmp_path / "eye.safetensors", "MIT")
    opened, _ = load_model(tmp_path / "eye.safetensors")
    assert opened.config == network.config
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(opened(x), network(x))


@pytest.mark.parametrize("config", ["", "not JSON", "[1]", '{"encoder": "vitb"}'])
def test_metadata_of_other_programs_are_left_alone(model, weights, tmp_path, config):
    save_file(weights, tmp_path / "a.safetensors", {"config": config})
    assert torch.equal(answers(load_model(tmp_path / "a.safetensors")[0]), answers(model))


def test_a_file_that_cannot_be_written_leaves_the_old_one(model, tmp_path):
    path = tmp_path / "student.safetensors"
    path.mkdir()
    with pytest.raises(CheckpointError, match="could not be written"):
        save_model(model, path, "MIT")
    assert [entry.name for entry in tmp_path.iterdir()] == ["student.safetensors"]


def test_a_checkpoint_of_this_toolkit_comes_with_its_past(model, tmp_path):
    state = {
        "format": 1,
        "model": {"name": model.name, "config": model.config},
        "model_state_dict": model.state_dict(),
        "preprocessing": {"image_size": 112},
        "epoch": 4,
    }
    save_checkpoint(state, tmp_path / "last.pth")
    opened, checkpoint = load_model(tmp_path / "last.pth")
    assert checkpoint["epoch"] == 4
    assert torch.equal(answers(opened), answers(model))
    del state["preprocessing"]
    save_checkpoint(state, tmp_path / "less.pth")
    with pytest.raises(CheckpointError, match="it has no preprocessing"):
        load_model(tmp_path / "less.pth")


# ------------------------------------------------------------------------------------------------------------- the tool


def test_a_card_lies_beside_what_was_converted(weights, tmp_path, run_cli):
    path = write(weights, tmp_path / "a.safetensors")
    code, _, _ = run(run_cli, path, tmp_path / "b.pth", "--layout", "flat")
    card = (tmp_path / "b.md").read_text()
    assert code == 0
    assert card.startswith("# b.pth\n\nRelative disparity from a picture: `depth_anything`, ")
    assert "Weights alone (.pth), in the flat layout." in card
    assert "[B, 3, 112, 112]" in card
    (tmp_path / "b.pth").unlink()
    code, _, errors = run(run_cli, path, tmp_path / "b.pth", "--layout", "flat")
    assert code == 2 and "b.md exists" in errors


def test_the_licence_of_a_student_goes_with_its_weights(model, weights, tmp_path, run_cli):
    state = {
        "format": 1,
        "model": {"name": "depth_anything", "config": model.config},
        "model_state_dict": weights,
        "preprocessing": {"image_size": 112},
        "args": {"license": "CC-BY-NC-4.0", "dataset": "images"},
        "epoch": 4,
        "versions": {},
    }
    save_checkpoint(state, tmp_path / "last.pth")
    code, _, _ = run(run_cli, tmp_path / "last.pth", tmp_path / "b.safetensors", "--layout", "original")
    assert code == 0
    assert read_weights(tmp_path / "b.safetensors")[1]["license"] == "CC-BY-NC-4.0"
    assert "Of the weights: CC-BY-NC-4.0." in (tmp_path / "b.md").read_text()


def run(run_cli, *arguments):
    return run_cli(convert_checkpoint.main, *arguments)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("target", LAYOUTS)
def test_there_and_back_is_the_same_file(weights, tmp_path, run_cli, layout, target, suffix):
    source = to_layout(weights, layout, tmp_path)
    path = write(source, tmp_path / "a.safetensors")
    code, out, _ = run(run_cli, path, tmp_path / f"b{suffix}", "--layout", target)
    assert code == 0
    assert f"read     127 tensors (float32), {layout} layout" in out
    assert f"written  127 tensors (float32), {target} layout" in out
    found, _ = read_weights(tmp_path / f"b{suffix}")
    assert found.keys() == to_layout(weights, target, tmp_path).keys()
    code, _, _ = run(run_cli, tmp_path / f"b{suffix}", tmp_path / "c.safetensors", "--layout", layout)
    assert code == 0
    back, _ = read_weights(tmp_path / "c.safetensors")
    assert back.keys() == source.keys()
    assert all(torch.equal(value, source[key]) for key, value in back.items())


def test_metadata_travel_or_are_named(model, tmp_path, run_cli):
    save_model(model, tmp_path / "a.safetensors", "MIT")
    assert run(run_cli, tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--layout", "nested")[0] == 0
    assert read_safetensors(tmp_path / "b.safetensors")[1]["license"] == "MIT"
    assert torch.equal(answers(load_model(tmp_path / "b.safetensors")[0]), answers(model))
    _, out, _ = run(run_cli, tmp_path / "a.safetensors", tmp_path / "c.pth", "--layout", "nested")
    assert "dropped  the metadata config, license" in out


def test_an_output_is_not_replaced_unasked(weights, tmp_path, run_cli):
    path = write(weights, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(b"mine")
    for output, more, named in (
        ("b.pth", (), "--overwrite"),
        ("a.pth", ("--overwrite",), "is the input"),
        ("b.onnx", (), ".safetensors or .pth"),
        ("nowhere/b.pth", (), "there is no folder"),
    ):
        code, _, errors = run(run_cli, path, tmp_path / output, "--layout", "flat", *more)
        assert code == 2
        assert len(errors.strip().splitlines()) == 1
        assert named in errors
    assert (tmp_path / "b.pth").read_bytes() == b"mine"
    assert run(run_cli, path, tmp_path / "b.pth", "--layout", "flat", "--overwrite")[0] == 0
    assert layout_of(read_weights(tmp_path / "b.pth")[0]) == "flat"


def test_an_unsafe_input_ends_in_one_line(weights, tmp_path, monkeypatch, run_cli):
    monkeypatch.chdir(tmp_path)
    torch.save({**weights, "shell": Shell()}, tmp_path / "unsafe.pth")
    code, _, errors = run(run_cli, tmp_path / "unsafe.pth", tmp_path / "b.pth", "--layout", "flat")
    assert code == 2
    assert len(errors.strip().splitlines()) == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["unsafe.pth"]
