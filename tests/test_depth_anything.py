"""Depth Anything: its parts, its positions, and how it teaches an ear."""

import csv
import math

import numpy as np
import pytest
import torch

import evaluate
import train_distillation
import verify_feature_compatibility
from errors import OptionError
from models.base import normalize_imagenet
from models.depth_anything import ALIASES, PRESETS, DepthAnything, create_depth_anything_model
from training.checkpoint import load_checkpoint, save_checkpoint, save_model
from training.task import Guest, nearest_size

# ---------------------------------------------------------------------------------------------------------- the network


def tiny(seed=0):
    torch.manual_seed(seed)
    return DepthAnything("tiny")


def picture(height=112, width=112, batch=2):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height + width))


@pytest.mark.parametrize(
    ("preset", "tensors", "millions"), [("vits", 239, 24.8), ("vitb", 239, 97.5), ("vitl", 407, 335.3)]
)
def test_it_has_the_published_sizes(preset, tensors, millions):
    with torch.device("meta"):
        model = DepthAnything(preset)
    assert len(model.state_dict()) == tensors
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == millions


def test_its_parts_bear_the_published_names():
    shapes = {key: tuple(value.shape) for key, value in tiny().state_dict().items()}
    assert shapes["pretrained.pos_embed"] == (1, 1 + 8 * 8, 64)
    assert shapes["pretrained.mask_token"] == (1, 64)
    assert shapes["pretrained.blocks.3.attn.qkv.weight"] == (192, 64)
    assert shapes["pretrained.blocks.0.ls2.gamma"] == (64,)
    assert shapes["pretrained.norm.bias"] == (64,)
    assert shapes["depth_head.projects.3.weight"] == (64, 64, 1, 1)
    assert [key for key in shapes if "resize_layers" in key and "weight" in key] == [
        f"depth_head.resize_layers.{i}.weight" for i in (0, 1, 3)
    ]
    assert shapes["depth_head.scratch.layer4_rn.weight"] == (32, 64, 3, 3)
    assert "depth_head.scratch.layer4_rn.bias" not in shapes
    assert shapes["depth_head.scratch.refinenet4.resConfUnit1.conv2.bias"] == (32,)
    assert shapes["depth_head.scratch.refinenet1.out_conv.weight"] == (32, 32, 1, 1)
    assert shapes["depth_head.scratch.output_conv1.weight"] == (16, 32, 3, 3)
    assert shapes["depth_head.scratch.output_conv2.0.weight"] == (32, 16, 3, 3)
    assert shapes["depth_head.scratch.output_conv2.2.weight"] == (1, 32, 1, 1)


def test_an_alias_is_a_preset():
    with torch.device("meta"):
        assert DepthAnything("depthanything-base").config == {"preset": "vitb"}
    assert set(ALIASES.values()) < set(PRESETS)
    with pytest.raises(OptionError, match=r"vitb.*depthanything-small"):
        DepthAnything("vith")


def test_what_does_not_train_has_no_say():
    model = tiny().eval()
    frozen = {key: value for key, value in model.named_parameters() if not value.requires_grad}
    unit = "depth_head.scratch.refinenet4.resConfUnit1.conv"
    assert set(frozen) == {"pretrained.mask_token", *(f"{unit}{i}.{kind}" for i in "12" for kind in ("weight", "bias"))}
    with torch.no_grad():
        before = model(picture())
        for parameter in frozen.values():
            parameter.normal_()
        assert torch.equal(model(picture()), before)


def test_the_taps_are_normed_patch_tokens():
    model = tiny().eval()
    model.pretrained.pos_embed.data.normal_()
    with torch.no_grad():
        _, features = model(picture(), return_features=True)
        tokens = model.pretrained.forward_features(picture())  # timm's own way, at the size that needs no resize
    assert torch.allclose(features["t4"].flatten(2).transpose(1, 2), tokens[:, 1:], atol=1e-5)
    shapes = {key: tuple(value.shape[1:]) for key, value in features.items()}
    assert shapes == {
        **{f"t{i}": (64, 8, 8) for i in (1, 2, 3, 4)},
        "d1": (32, 8, 8), "d2": (32, 16, 16), "d3": (32, 32, 32), "d4": (32, 64, 64),
    }  # fmt: skip
    assert model.feature_shapes()["t1"] == (64, 2, 2)


def test_the_tapped_blocks_are_those_of_the_preset():
    """Each tap reads the tokens behind its own block: what a later block does is not in it."""
    model = tiny().eval()
    with torch.no_grad():
        before = model.look(picture())
        model.pretrained.blocks[2].mlp.fc1.weight.add_(0.1)
        after = model.look(picture())
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, True, False, False]
    assert all(PRESETS[preset].taps[-1] == PRESETS[preset].depth - 1 for preset in PRESETS)


def test_attention_keeps_no_maps():
    model = tiny()
    assert all(block.attn.fused_attn for block in model.pretrained.blocks)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(tuple(t.shape)) or t, lambda t: t):
        model(picture(batch=1))
    assert not [shape for shape in saved if shape[-2:] == (65, 65)]


def test_a_disparity_is_never_below_zero():
    model = tiny().eval()
    last = model.depth_head.scratch["output_conv2"][2]
    with torch.no_grad():
        assert (model(picture()) > 0).any()
        last.bias.fill_(-100)
        assert (model(picture()) == 0).all()


@pytest.mark.parametrize(("height", "width"), [(56, 112), (112, 56), (28, 126), (98, 98)])
def test_sides_of_other_lengths(height, width):
    model = tiny().eval()
    with torch.no_grad():
        disparity, features = model(picture(height, width), return_features=True)
    assert disparity.shape == (2, 1, height, width)
    assert features["t1"].shape[-2:] == (height // 14, width // 14)
    assert torch.isfinite(disparity).all()


@pytest.mark.parametrize(
    ("height", "width", "nearest"), [(384, 112, "378 or 392"), (112, 100, "98 or 112"), (14, 28, "use 28")]
)
def test_a_side_that_does_not_fit_names_the_nearest(height, width, nearest):
    with pytest.raises(OptionError, match=nearest):
        tiny()(picture(height, width))


def test_gradients_are_the_same_when_the_blocks_are_computed_again():
    results = []
    for on in (False, True):
        model = tiny().train()
        model.checkpoint_gradients(on)
        calls = []
        model.pretrained.blocks[1].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        loss = model(picture()).square().mean()
        loss.backward()
        results.append((len(calls), loss, [p.grad for p in model.parameters() if p.requires_grad]))
    (once, loss, plain), (twice, again, computed_again) = results
    assert (once, twice) == (1, 2)
    assert torch.equal(loss, again)
    assert all(torch.equal(a, b) for a, b in zip(plain, computed_again, strict=True))


def test_half_precision_stays_finite():
    model = tiny().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        disparity, features = model(100 * picture(), return_features=True)
        disparity.mean().backward()
    assert disparity.dtype == torch.float32
    assert all(torch.isfinite(value).all() for value in (disparity, *features.values()))
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


# -------------------------------------------------------------------------------------------------------- the positions


def cubic(distance):
    """The weight of a sample at that distance (Keys, 1981, with a = -0.75)."""
    a, d = -0.75, abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def resize_matrix(size, grid):
    """[size, grid]: how much each learned position counts in each wanted one; those beyond the edge are the edge's."""
    matrix = np.zeros((size, grid))
    for wanted in range(size):
        place = (wanted + 0.5) * grid / (size + 0.1) - 0.5
        for learned in range(math.floor(place) - 1, math.floor(place) + 3):
            matrix[wanted, min(max(learned, 0), grid - 1)] += cubic(place - learned)
    return matrix


@pytest.mark.parametrize(("rows", "columns"), [(5, 5), (3, 11), (8, 9), (20, 20), (4, 16)])
def test_positions_are_resized_by_the_published_rule(rows, columns):
    model = tiny()
    model.pretrained.pos_embed.data.normal_()
    learned = model.pretrained.pos_embed[0].detach().double().numpy()  # [1 + 64, C]
    square = learned[1:].reshape(8, 8, -1)
    wanted = np.einsum("yi,xj,ijc->yxc", resize_matrix(rows, 8), resize_matrix(columns, 8), square)
    found = model.positions(rows, columns)[0].detach().double().numpy()
    assert np.allclose(found[0], learned[0])
    assert np.allclose(found[1:], wanted.reshape(rows * columns, -1), atol=1e-5)


def test_the_learned_positions_are_taken_as_they_are():
    model = tiny()
    assert model.positions(8, 8) is model.pretrained.pos_embed
    same_number = model.positions(4, 16)
    assert same_number.shape == model.pretrained.pos_embed.shape
    assert not torch.equal(same_number, model.pretrained.pos_embed)


# ------------------------------------------------------------------------------------------------------------ the guest


@pytest.mark.parametrize(
    ("side", "fits"), [(64, 70), (256, 252), (63, 70), (62, 56), (32, 28), (8, 28), (392, 392), (28, 28)]
)
def test_the_nearest_size_that_fits(side, fits):
    model = tiny()
    assert nearest_size(model, side) == fits
    model.check_image_size(fits)


def test_a_guest_looks_at_its_own_size_and_answers_at_the_students():
    seen = []
    model = tiny()
    model.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    guest = Guest(model)
    batch = {"rgb": torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0)).round(), "id": ["a", "b"]}
    answer, features = guest(batch, return_features=True)
    assert answer.shape == (2, 1, 64, 48)
    assert seen[0].shape == (2, 3, 70, 42)
    assert features["t1"].shape[-2:] == (5, 3)
    assert torch.equal(guest(batch), answer)
    low, high = (normalize_imagenet(torch.full((1, 3, 1, 1), value)) for value in (0.0, 1.0))
    assert ((seen[0] >= low) & (seen[0] <= high)).all(), "black and white stay the extremes"
    even = guest({"rgb": torch.full((1, 3, 64, 64), 0.3)})
    own = model(normalize_imagenet(torch.full((1, 3, 70, 70), 0.3)))
    assert even.mean().item() == pytest.approx(own.mean().item(), rel=1e-3)


def test_a_guest_that_takes_the_students_size_is_shown_the_view_itself():
    guest = Guest(tiny())
    batch = {"rgb": torch.rand(2, 3, 112, 112)}
    assert guest.view(batch) is batch
    assert torch.equal(guest(batch), guest.model(normalize_imagenet(batch["rgb"])))


# ---------------------------------------------------------------------------------------------------------- the scripts

SMALL = ("--image_size", 32, "--base_channels", 4, "--batch_size", 4, "--num_workers", 0, "--attention_levels", 5)


def taught(rooms, folder, teacher, *more):
    return (
        "--dataset", "simulated", "--dataset_dir", rooms, "--output_dir", folder, "--experiment_name", "e", *SMALL,
        "--teacher_checkpoint", teacher, "--nb_epochs", 2, *more,
    )  # fmt: skip


def test_a_published_network_teaches_an_ear(rooms, tmp_path, run_cli):
    torch.save(tiny().state_dict(), tmp_path / "published.pth")
    flags = taught(rooms, tmp_path, tmp_path / "published.pth", "--label_fraction", 0.5, "--lambda_feat", 0.1)
    assert run_cli(train_distillation.main, *flags, "--stop_after_epoch", 1)[0] == 0
    code, _, errors = run_cli(train_distillation.main, *flags, "--resume")
    assert (code, errors) == (0, "")
    log = (tmp_path / "logs/e/console.log").read_text()
    assert f"teacher: depth_anything, 0.51 M parameters, frozen, {tmp_path}/published.pth" in log
    assert "the teacher is shown 28x28 pixels: it takes multiples of 14" in log
    checkpoint = load_checkpoint(tmp_path / "checkpoints/e/last.pth")
    assert checkpoint["args"]["response_loss"] == "ssi"
    assert not [key for key in checkpoint["model_state_dict"] if "pretrained" in key]
    with (tmp_path / "results/e/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["train_response"]) > 0 for row in rows] == [True, True]
    assert (tmp_path / "results/e/epoch_0002.png").stat().st_size > 10_000


def test_a_published_network_teaches_no_metres(rooms, tmp_path, run_cli):
    save_model(tiny(), tmp_path / "teacher.safetensors", "MIT")
    for more, named in ((("--response_loss", "l1"), "ssi"), (("--label_fraction", 0), "metres")):
        code, _, errors = run_cli(
            train_distillation.main, *taught(rooms, tmp_path, tmp_path / "teacher.safetensors", *more)
        )
        assert code == 2
        assert named in errors


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of this toolkit that holds the network."""
    model = tiny()
    state = {
        "format": 1,
        "model": {"name": model.name, "config": model.config},
        "model_state_dict": model.state_dict(),
        "preprocessing": {"image_size": 28, "audio_format": None},
        "args": {"experiment_name": "e", "label_fraction": 1.0, "label_seed": 0},
        "epoch": 1,
    }
    save_checkpoint(state, tmp_path / "student.pth")
    return tmp_path / "student.pth"


def test_a_checkpoint_of_it_teaches_too(rooms, checkpoint, tmp_path, run_cli):
    code, out, errors = run_cli(train_distillation.main, *taught(rooms, tmp_path, checkpoint, "--nb_epochs", 1))
    assert (code, errors) == (0, "")
    assert f"frozen, epoch 1 of {checkpoint}" in out
    assert "warning: the teacher was trained" not in out


def test_disparities_are_not_scored_as_metres(checkpoint, run_cli):
    code, _, errors = run_cli(evaluate.main, "--checkpoint", checkpoint, "--protocol", "metric")
    assert code == 2
    assert "use --protocol disparity_lsq" in errors


def test_bare_weights_name_no_data_set(tmp_path, run_cli):
    save_model(create_depth_anything_model("tiny"), tmp_path / "bare.safetensors", "MIT")
    code, _, errors = run_cli(evaluate.main, "--checkpoint", tmp_path / "bare.safetensors")
    assert code == 2
    assert "names no data set to score on" in errors


def test_every_parameter_that_trains_belongs_to_one_level():
    levels = verify_feature_compatibility.measure("depth_anything", image_size=56, preset="tiny")
    assert sum(number for _, number in levels.values()) == tiny().count_parameters()


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (("--teacher", "depth_anything", "--student", "depth_anything", "--student_preset", "tiny"), 1, "t1, t2, t3"),
        (("--teacher", "depth_anything", "--student", "depth_anything"), 0, "distillation can start"),
        (("--teacher", "depth_anything", "--image_size", 64), 2, "56 or 70"),
        (("--teacher_preset", "vits"), 2, "--teacher_preset"),
        (("--teacher", "depth_anything", "--student", "depth_anything", "--base_channels", 8), 2, "--base_channels"),
        (("--student", "depth_anything", "--student_base_channels", 8), 2, "--student_base_channels"),
    ],
)
def test_its_levels_are_held_against_others(flags, code, said, run_cli):
    sized = flags if "--image_size" in flags else (*flags, "--image_size", 112)
    result, out, errors = run_cli(verify_feature_compatibility.main, *sized)
    assert result == code
    assert said in out + errors
