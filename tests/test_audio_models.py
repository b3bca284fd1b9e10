"""What is particular to the networks that hear."""

import math

import pytest
import torch
import torch.nn.functional as F

from benchmarks.activation_memory import saved_bytes
from errors import OptionError
from models import create_model
from models.binaural_attention_model import create_binaural_attention_model, turn
from models.blocks import PlaceMixer, SpectrogramInput, resize_cells
from models.rgb_depth_model import create_rgb_depth_model


def heard(size=64, batch=2):
    return torch.rand(batch, 2, size, size, generator=torch.Generator().manual_seed(2))


def binaural(**config):
    torch.manual_seed(0)
    return create_binaural_attention_model(**{"base_channels": 4, **config})


@pytest.mark.parametrize(("base", "millions"), [(64, 40), (32, 10)])
def test_the_students_parameters(base, millions):
    count = create_binaural_attention_model(base_channels=base).count_parameters() / 1e6
    assert abs(count - millions) / millions < 0.15


def test_the_official_unets_parameters():
    assert create_model("unet_baseline").count_parameters() / 1e6 == pytest.approx(54.4, rel=0.01)


def test_the_students_levels_have_the_teachers_shapes():
    _, student = binaural().eval()(heard(), return_features=True)
    _, teacher = create_rgb_depth_model(base_channels=4).eval()(torch.rand(2, 3, 64, 64), return_features=True)
    assert list(student) == list(teacher)
    assert all(student[level].shape == teacher[level].shape for level in teacher)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("binaural_attention", {}),
        ("binaural_attention", {"share_ears": True}),
        ("base_residual", {}),
        ("multimodal_fusion", {}),
    ],
)
def test_the_ears_are_told_apart(name, config):
    torch.manual_seed(0)
    # In training mode: the norms lift what fades in untrained weights.
    model = create_model(name, base_channels=4, **config)
    audio, rest = heard(), [torch.rand(2, 3, 64, 64)] if name == "multimodal_fusion" else []
    with torch.no_grad():
        depth, swapped = model(audio, *rest), model(audio.flip(1), *rest)
    assert (depth - swapped).abs().max() > 1e-4


def test_shared_ears_hear_alike_and_ask_each_other():
    encoder = binaural(share_ears=True).encoder
    left, right = (torch.rand(2, 1, 32, 32, requires_grad=True) for _ in range(2))
    levels = [(left, right)]
    swapped = [(right, left)]
    for index in range(5):
        levels.append(encoder.descend(*levels[-1], index))
        swapped.append(encoder.descend(*swapped[-1], index))
    for (one, other), (other_again, one_again) in zip(levels, swapped, strict=True):
        assert torch.allclose(one, one_again, atol=1e-4)
        assert torch.allclose(other, other_again, atol=1e-4)
    (gradient,) = torch.autograd.grad(levels[-1][0].square().sum(), right)
    assert gradient.abs().sum() > 0, "the left ear asked the right one"


def test_shared_ears_have_the_weights_of_one():
    separate, shared = ({*binaural(share_ears=share).encoder.state_dict()} for share in (False, True))
    left, right, both = (
        {key.partition(".")[2] for key in keys if key.startswith(ear)}
        for keys, ear in ((separate, "left."), (separate, "right."), (shared, "either."))
    )
    assert left == right == both
    assert binaural(share_ears=True)(heard()).shape == (2, 1, 64, 64)


def test_attention_is_not_quadratic_in_the_pixels(monkeypatch):
    calls = []
    original = F.scaled_dot_product_attention

    def counting(query, key, value):
        calls.append((query.shape[-2], key.shape[-2]))
        return original(query, key, value)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counting)
    with torch.no_grad():
        binaural(attention_levels=[1, 2, 3, 4, 5]).eval()(heard(256, batch=1))
    assert calls == [(side, side) for side in (256, 128, 64, 32, 16) for _ in range(2)], "a row at a time"


def test_batch_64_of_the_full_student_fits_80_gb():
    config = {"base_channels": 64, "image_size": 256}
    assert 64 * sum(saved_bytes("binaural_attention", **config).values()) < 60 * 2**30


def test_memory_grows_with_the_pixels_not_with_their_square():
    small, large = (sum(saved_bytes("binaural_attention", size, base_channels=4).values()) for size in (128, 256))
    assert large / small < 4.5


def test_the_ears_ask_each_other_along_time_in_one_band():
    model = binaural().eval()
    asks = model.encoder.left_asks["x2"]
    own, other = torch.rand(1, 8, 4, 6), torch.rand(1, 8, 4, 6)
    changed = other.clone()
    changed[:, 0, 2, 5] += 1
    difference = (asks(own, changed) - asks(own, other)).abs().sum(dim=1)[0]  # [H, W]
    assert (difference[2] > 0).all(), "every time of that band hears of it"
    assert difference[[0, 1, 3]].sum() == 0, "no other band does"


def test_turned_queries_and_keys_know_the_difference_of_their_times():
    q, k = torch.rand(8), torch.rand(8)
    queries, keys = (turn(x.expand(1, 10, 8).contiguous(), heads=2)[0] for x in (q, k))
    products = queries @ keys.T
    assert torch.allclose(products[0, 3], products[5, 8], atol=1e-6)
    assert not torch.allclose(products[0, 3], products[3, 0], atol=1e-3)


@pytest.mark.parametrize("size", [64, 256])
def test_every_pixel_hears_the_whole_spectrogram(size):
    model = binaural().eval()
    audio = heard(size, batch=1).requires_grad_()
    model(audio)[0, 0, 0, 0].backward()
    assert audio.grad[0, :, -8:, -8:].abs().sum() > 0, "the far corner"


@pytest.mark.parametrize("size", [4, 16, 24, 64])
def test_places_are_mixed_at_any_size(size):
    mixer = PlaceMixer(4).eval()
    x = torch.rand(1, 4, size, size, requires_grad=True)
    mixer(x)[0, :, 0, 0].sum().backward()
    assert (x.grad.abs().sum(dim=(0, 1)) > 0).all(), "the first place hears of all others"


def test_who_predicts_first_can_train_after():
    x = torch.rand(1, 1, 23, 23, requires_grad=True)  # a size that no other test has
    with torch.inference_mode():
        resize_cells(torch.rand(1, 1, 23, 23), 7, 7)
    resize_cells(x, 7, 7).sum().backward()
    assert torch.allclose(x.grad.sum(), torch.tensor(49.0)), "each cell is the mean of its pixels"


def test_cells_by_hand():
    x = torch.tensor([[1.0, 3.0], [5.0, 7.0]])[None, None]
    assert resize_cells(x, 1, 2)[0, 0].tolist() == [[3.0, 5.0]]
    assert resize_cells(x, 2, 1)[0, 0].tolist() == [[2.0], [6.0]]
    assert resize_cells(x, 2, 4)[0, 0, 0].tolist() == [1.0, 1.5, 2.5, 3.0]
    flat = torch.full((1, 1, 24, 24), 3.0)
    assert torch.allclose(resize_cells(flat, 16, 16), torch.tensor(3.0))


def test_without_attention_it_still_hears():
    model = binaural(attention_levels=[])
    assert not len(model.encoder.left_asks)
    assert model(heard()).shape == (2, 1, 64, 64)


def test_attention_levels_are_kept_in_the_config():
    assert binaural(attention_levels=(5, 4, 4)).config["attention_levels"] == [4, 5]


@pytest.mark.parametrize(("config", "named"), [({"attention_levels": [6]}, "level 6"), ({"base_channels": 3}, "even")])
def test_what_the_student_refuses(config, named):
    with pytest.raises(OptionError, match=named):
        binaural(**config)


def test_faint_echoes_are_opened_up():
    quiet = torch.tensor([0.0, 1e-3, 0.03, 7.0]).reshape(1, 1, 1, 4).repeat(1, 2, 1, 1)
    listen = SpectrogramInput(compress=True)
    silence, _, faint, loud = listen(quiet)[0, 0, 0].tolist()
    assert (faint - silence) / (loud - silence) == pytest.approx(math.log(2) / math.log1p(7 / 0.03), rel=1e-4)
    silence, _, faint, loud = SpectrogramInput(compress=False)(quiet)[0, 0, 0].tolist()
    assert (faint - silence) / (loud - silence) == pytest.approx(0.03 / 7, rel=1e-4)


def test_the_difference_between_the_ears_survives_the_norm():
    audio = heard()
    audio[:, 1] *= 0.5
    values = SpectrogramInput(compress=True)(audio)
    assert (values[:, 0].mean() - values[:, 1].mean()) > 0.3


@pytest.mark.parametrize("size", [32, 64, 128, 512])
def test_the_unet_has_a_level_per_power_of_two(size):
    model = create_model("unet_baseline", base_channels=2, image_size=size).eval()
    with torch.no_grad():
        depth, features = model(heard(size), return_features=True)
    assert depth.shape == (2, 1, size, size)
    assert features[f"e{size.bit_length() - 1}"].shape[-2:] == (1, 1)


@pytest.mark.parametrize(("size", "nearest"), [(48, "32 or 64"), (100, "64 or 128"), (16, "32"), (1, "32")])
def test_the_unet_names_the_nearest_sizes(size, nearest):
    with pytest.raises(OptionError, match=f"use {nearest}$"):
        create_model("unet_baseline", image_size=size)


def test_the_unet_takes_the_size_that_it_was_built_for():
    with pytest.raises(OptionError, match="built for 64"):
        create_model("unet_baseline", base_channels=2, image_size=64).check_image_size(128)


def test_base_and_residual_add_up():
    torch.manual_seed(0)
    model = create_model("base_residual", base_channels=4, max_depth=12.0).eval()
    with torch.no_grad():
        depth, features = model(heard(), return_features=True)
    assert torch.allclose(features["base"] + features["residual"], depth, atol=1e-5)
    assert features["residual"].abs().max() > 0
    assert depth.max() < 12


@pytest.mark.parametrize("changed", [0, 1])
def test_fusion_looks_at_both(changed):
    torch.manual_seed(0)
    model = create_model("multimodal_fusion", base_channels=4)
    inputs = [heard(), torch.rand(2, 3, 64, 64)]
    others = [x if i != changed else x.flip(-1) for i, x in enumerate(inputs)]
    with torch.no_grad():
        assert (model(*inputs) - model(*others)).abs().max() > 1e-3
