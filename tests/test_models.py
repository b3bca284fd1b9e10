"""One contract for every model in the registry."""

import pytest
import torch

from errors import OptionError
from models import MODELS, create_model
from models.rgb_depth_model import create_rgb_depth_model
from training.task import model_inputs

CHANNELS = {"rgb": 3, "audio": 2}
SMALL = {name: {"base_channels": 4} for name in ("rgb_depth", "binaural_attention", "base_residual",
                                                 "multimodal_fusion", "unet_baseline")}  # fmt: skip
SMALL |= {name: {"base_channels": 4, "n_bins": 16} for name in ("adabins_audio", "adabins_rgb")}
SMALL |= {"depth_anything": {"preset": "tiny"}}
SIZES = {name: (56, 112, 252) if name == "depth_anything" else (64, 128, 256) for name in MODELS}
METRIC = sorted(name for name in MODELS if MODELS[name].output == "metres")


def small(name, size=64):
    torch.manual_seed(0)
    return create_model(name, **SMALL[name], **({"image_size": size} if name == "unet_baseline" else {}))


def inputs(model, size=None, batch=2):
    size = size or SIZES[model.name][0]
    generator = torch.Generator().manual_seed(1)
    samples = {key: torch.rand(batch, CHANNELS[key], size, size, generator=generator) for key in model.inputs}
    return model_inputs(model, samples)


def test_every_model_has_a_small_form():
    assert set(SMALL) == set(MODELS)


@pytest.mark.parametrize(("name", "size"), [(name, size) for name in sorted(MODELS) for size in SIZES[name]])
def test_shape_and_range(name, size):
    model = small(name, size).eval()
    model.check_image_size(size)
    with torch.no_grad():
        depth = model(*inputs(model, size))
    assert depth.shape == (2, 1, size, size)
    assert depth.dtype == torch.float32
    assert torch.isfinite(depth).all()
    assert (depth > 0).all()


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_trainable_parameter_gets_a_gradient(name):
    model = small(name).train()
    model(*inputs(model)).mean().backward()
    without = [key for key, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not without


@pytest.mark.parametrize("name", sorted(MODELS))
def test_bf16_agrees_with_fp32(name):
    model = small(name).eval()
    x = inputs(model)
    with torch.no_grad():
        full = model(*x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(*x)
    assert half.dtype == torch.float32, "the head runs in float32"
    assert ((half - full).abs() / full).max() < 0.03


@pytest.mark.parametrize("name", sorted(MODELS))
def test_config_and_weights_build_it_again(name):
    model = small(name).eval()
    other = create_model(name, **model.config).eval()
    other.load_state_dict(model.state_dict())
    x = inputs(model)
    assert torch.equal(model(*x), other(*x))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_keys_carry_no_wrapper(name):
    assert not [key for key in small(name).state_dict() if key.startswith(("module.", "_orig_mod."))]


def test_an_unknown_name_lists_the_known():
    with pytest.raises(OptionError, match="rgb_depth"):
        create_model("rgb_deep")


def test_feature_levels_at_base_64():
    model = create_rgb_depth_model(base_channels=64).eval()
    with torch.no_grad():
        depth, features = model(torch.rand(1, 3, 64, 64), return_features=True)
    shapes = {key: tuple(value.shape[1:]) for key, value in features.items()}
    assert depth.shape == (1, 1, 64, 64)
    assert list(shapes) == ["x1", "x2", "x3", "x4", "x5", "d1", "d2", "d3", "d4"]
    assert shapes["x1"] == (64, 64, 64)
    assert shapes["x2"] == (128, 32, 32)
    assert shapes["x3"] == (256, 16, 16)
    assert shapes["x4"] == (512, 8, 8)
    assert shapes["x5"] == (512, 4, 4)
    assert shapes["d1"][1:] == (8, 8)
    assert shapes["d4"] == (64, 64, 64)


@pytest.mark.parametrize(("base", "millions"), [(64, 20), (32, 5)])
@pytest.mark.parametrize("bilinear", [True, False])
def test_parameter_counts(base, millions, bilinear):
    count = create_rgb_depth_model(base_channels=base, bilinear=bilinear).count_parameters() / 1e6
    assert abs(count - millions) / millions < 0.15


@pytest.mark.parametrize(("size", "nearest"), [(100, "96 or 112"), (16, "32"), (8, "32"), (47, "32 or 48")])
def test_a_size_that_does_not_fit_names_the_nearest(size, nearest):
    with pytest.raises(OptionError, match=nearest):
        small("rgb_depth").check_image_size(size)


def test_it_starts_at_an_indoor_depth():
    for max_depth in (10.0, 12.0, 30.0):
        model = create_rgb_depth_model(base_channels=4, max_depth=max_depth).eval()
        with torch.no_grad():
            depth = model(torch.rand(2, 3, 64, 64))
        assert 1 < depth.mean() < 6


@pytest.mark.parametrize("name", METRIC)
def test_weights_bring_their_range_of_metres(name):
    model = small(name).eval()
    other = create_model(name, **{**model.config, "max_depth": 12.0}).eval()
    other.load_state_dict(model.state_dict())
    x = inputs(model)
    assert torch.equal(model(*x), other(*x))
