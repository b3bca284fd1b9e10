"""AdaBins: the bins by their properties, their losses against values worked out by hand, the curriculum row by row."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models import resnet50

from errors import CheckpointError, OptionError
from models import create_model
from models.adabins_distillation_model import (
    AdaBinsBinPredictor,
    AdaBinsRGBNet,
    bin_centres,
    create_adabins_distillation_model,
    keep_between,
)
from models.rgb_depth_model import create_rgb_depth_model
from utils_distillation_loss import (
    RESPONSE_AT,
    AdaptiveDistillationLoss,
    DistillationLoss,
    bin_width_loss,
    chamfer_loss,
    nearest,
    shared_support_loss,
    wasserstein_loss,
)

SMALL = {"base_channels": 4, "n_bins": 16, "max_depth": 12.0}

# ---------------------------------------------------------------------------------------------------------------- bins


@settings(deadline=None, max_examples=40)
@given(
    n_bins=st.integers(2, 300),
    bounds=st.sampled_from([(1e-3, 10.0), (1e-3, 12.0), (1e-3, 30.0), (0.5, 0.6)]),
    scale=st.sampled_from([0.0, 1.0, 30.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_bins_partition_the_range_whatever_the_logits(n_bins, bounds, scale, seed):
    low, high = bounds
    predictor = AdaBinsBinPredictor(8, n_bins, low, high)
    logits = scale * torch.randn(3, n_bins, generator=torch.Generator().manual_seed(seed))
    widths, edges = predictor.widths(logits), predictor.edges(logits)
    assert (widths > 0).all()
    assert torch.allclose(widths.sum(dim=1), torch.tensor(high - low), rtol=1e-5)
    assert edges.shape == (3, n_bins + 1)
    assert (edges[:, 0] == predictor.min_depth).all() and (edges[:, -1] == predictor.max_depth).all()
    assert (edges.diff(dim=1) > 0).all()
    assert (bin_centres(edges).diff(dim=1) > 0).all()


def test_each_scene_has_its_own_bins():
    predictor = AdaBinsBinPredictor(8, 5, 0.1, 10.0)
    x = torch.rand(2, 8, 4, 4, requires_grad=True)
    logits = predictor(x)
    assert not torch.equal(logits[0], logits[1])
    logits[0, 0].backward()
    assert x.grad[0].any() and not x.grad[1].any()


def test_fixed_bins_are_even_and_learn_nothing():
    predictor = AdaBinsBinPredictor(8, 4, 2.0, 10.0, fixed=True)
    edges = predictor.edges(predictor(torch.rand(2, 8, 4, 4)))
    assert torch.allclose(edges, torch.tensor([[2.0, 4.0, 6.0, 8.0, 10.0]] * 2))
    assert not list(predictor.parameters())


@pytest.mark.parametrize("name", ["adabins_audio", "adabins_rgb"])
@pytest.mark.parametrize("fixed", [False, True])
def test_depth_is_the_choice_among_the_bins_and_a_bounded_residual(name, fixed):
    torch.manual_seed(0)
    model = create_model(name, **SMALL, fixed_bins=fixed, residual_limit=0.05).eval()
    with torch.no_grad():
        model.decoder.choose.weight.mul_(100)
        model.decoder.correct.weight.mul_(100)
        depth, f = model(torch.rand(2, 2 if name == "adabins_audio" else 3, 32, 32), return_features=True)
    edges = f["edges"].flatten(1)
    base = (f["choice"].softmax(1) * bin_centres(edges)[:, :, None, None]).sum(1, keepdim=True)
    assert torch.allclose(f["base"], base)
    assert (f["base"] >= edges[:, :1, None, None]).all() and (f["base"] <= edges[:, -1:, None, None]).all()
    assert f["residual"].abs().max() <= 0.05 * 12
    assert torch.allclose(depth, (f["base"] + f["residual"]).clamp(1e-3, 12))


def test_a_pixel_beyond_the_range_finds_its_way_back():
    x = torch.tensor([-1.0, 2.0, 20.0], requires_grad=True)
    kept = keep_between(x, torch.tensor(0.5), torch.tensor(12.0))
    assert kept.tolist() == pytest.approx([0.5, 2, 12])
    (kept - 3).abs().sum().backward()
    assert x.grad.tolist() == [-1, -1, 1]
    assert keep_between(x.detach(), torch.tensor(0.5), torch.tensor(12.0)).tolist() == [0.5, 2, 12]


@pytest.mark.parametrize("config", [{"n_bins": 1}, {"min_depth": 5.0, "max_depth": 4.0}])
def test_impossible_bins_are_refused(config):
    with pytest.raises(OptionError):
        create_model("adabins_rgb", **{**SMALL, **config})


# -------------------------------------------------------------------------------------------------------- both networks


def test_both_networks_have_the_same_levels():
    model = create_adabins_distillation_model(**SMALL).eval()
    assert model.audio.feature_shapes(32) == model.rgb.feature_shapes(32)


def test_the_ear_needs_no_eye():
    torch.manual_seed(0)
    model = create_adabins_distillation_model(**SMALL).eval()
    audio, rgb = torch.rand(2, 2, 32, 32), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        both = model(audio, rgb)
        alone = model(audio)
        assert torch.equal(both["audio"][0], alone)
        assert both["rgb"][0].shape == alone.shape == (2, 1, 32, 32)
        del model.rgb
        assert torch.equal(model(audio), alone)
        model.rgb = None
        assert torch.equal(model(audio), alone)
        with pytest.raises(OptionError, match="audio alone"):
            model(audio, rgb)


def test_a_pretrained_backbone_from_a_file(tmp_path):
    torch.manual_seed(0)
    backbone = resnet50(weights=None)
    torch.save(backbone.state_dict(), tmp_path / "resnet50.pth")
    model = create_adabins_distillation_model(**SMALL, use_pretrained_rgb=tmp_path / "resnet50.pth")
    assert torch.equal(model.rgb.encoder.levels.backbone.layer3[0].conv1.weight, backbone.layer3[0].conv1.weight)
    assert model.audio.feature_shapes(32) == model.rgb.feature_shapes(32)
    again = create_model("adabins_rgb", **model.rgb.config)
    again.load_state_dict(model.rgb.state_dict())


def test_the_rgb_teachers_encoder_from_its_checkpoint(tmp_path):
    teacher = create_rgb_depth_model(base_channels=4)
    torch.save({"model_state_dict": teacher.state_dict()}, tmp_path / "best_model.pth")
    model = create_adabins_distillation_model(**SMALL, use_pretrained_rgb=tmp_path / "best_model.pth")
    assert torch.equal(model.rgb.encoder.levels.levels[2][0].weight, teacher.encoder.levels[2][0].weight)
    with pytest.raises(CheckpointError) as caught:
        create_adabins_distillation_model(
            **{**SMALL, "base_channels": 8}, use_pretrained_rgb=tmp_path / "best_model.pth"
        )
    text = str(caught.value)
    assert text.startswith(f"--use_pretrained_rgb {tmp_path / 'best_model.pth'}: of the ")
    assert "levels.0.0.weight [4, 3, 3, 3] for [8, 3, 3, 3]" in text and text.endswith("; give --base_channels 4")
    assert len(text) < 400 + len(str(tmp_path))
    torch.save({"model_state_dict": {"encoder.a": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"missing .*1 unknown") as caught:
        create_adabins_distillation_model(**SMALL, use_pretrained_rgb=tmp_path / "other.pth")
    assert "--base_channels" not in str(caught.value)


def test_pretrained_weights_out_of_reach(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: (_ for _ in ()).throw(OSError("no route")))
    with pytest.raises(CheckpointError, match=r"out of reach.*no route.*checkpoints"):
        create_adabins_distillation_model(**SMALL, use_pretrained_rgb="imagenet")
    with pytest.raises(CheckpointError, match="no such file"):
        create_adabins_distillation_model(**SMALL, use_pretrained_rgb=tmp_path / "none.pth")
    (tmp_path / "torn.pth").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"--use_pretrained_rgb .*torn.pth.* damaged"):
        create_adabins_distillation_model(**SMALL, use_pretrained_rgb=tmp_path / "torn.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="neither"):
        create_adabins_distillation_model(**SMALL, use_pretrained_rgb=tmp_path / "other.pth")


def test_an_unknown_encoder_of_pictures():
    with pytest.raises(OptionError, match="resnet50"):
        AdaBinsRGBNet(**SMALL, rgb_encoder="vgg")


# ----------------------------------------------------------------------------------------------------------- bin losses


def test_width_loss_by_hand():
    # T = 2; student even, teacher (3/4, 1/4) at T: KL = 3/4 ln(3/2) + 1/4 ln(1/2), and not KL the other way round
    student, teacher = torch.zeros(1, 2), torch.tensor([[2 * math.log(3), 0.0]])
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert bin_width_loss(student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-5)
    assert bin_width_loss(teacher, teacher, 2.0).item() == pytest.approx(0, abs=1e-7)


def normal(edges, mean, deviation):
    """Logits [1, N, 1, 1] of a normal distribution of depths over the bins with these edges [N + 1]."""
    function = torch.distributions.Normal(mean, deviation).cdf(edges.double())
    return function.diff().clamp(min=1e-12).log().float()[None, :, None, None]


def even(n):
    return torch.linspace(0, 12, n + 1)


def growing(n):
    return 12 * (torch.arange(n + 1) / n) ** 2


def ragged(n):
    widths = (0.5 * torch.randn(n, generator=torch.Generator().manual_seed(n))).softmax(0) + 1e-3
    return 12 * torch.cat([torch.zeros(1), widths.cumsum(0)]) / widths.sum()


def middles(edges):
    return bin_centres(edges[None])


@pytest.mark.parametrize("n", [64, 128])
@pytest.mark.parametrize(("mean", "deviation"), [(2.0, 0.15), (4.0, 0.4), (7.0, 1.0), (4.0, 3.0)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_one_distribution_on_other_bins_costs_nothing_on_a_shared_support(n, mean, deviation, temperature):
    for mine in (even(n), growing(n), ragged(n)):
        for other in (even(128), growing(n), ragged(200)):
            student = (normal(mine, mean, deviation), middles(mine))
            teacher = (normal(other, mean, deviation), middles(other))
            loss = shared_support_loss(*student, *teacher, (0.0, 12.0), temperature)
            assert -1e-4 <= loss.item() <= 0.05


def test_one_distribution_on_other_bins_is_no_distance():
    masses = torch.tensor([0.2, 0.5, 0.3])
    places = torch.tensor([1.0, 4.0, 7.5])
    # the same masses at the same depths: in other slots, cut in two, and among bins that hold nothing
    other = torch.tensor([[0.5, 1.0, 1.0, 4.0, 6.0, 7.5, 11.0]])
    held = torch.tensor([1e-30, 0.1, 0.1, 0.5, 1e-30, 0.3, 1e-30])
    loss = wasserstein_loss(held.log()[None, :, None, None], other, masses.log()[None, :, None, None], places[None])
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_wasserstein_by_hand():
    student = torch.tensor([0.5, 0.5]).log()[None, :, None, None].expand(1, 2, 3, 3)
    teacher = torch.tensor([0.25, 0.75]).log()[None, :, None, None].expand(1, 2, 3, 3)
    # a half at 1 m and a half at 3 m; a quarter at 2 m and three quarters at 5 m: 0.25 * 1 + 0.25 * 4 + 0.5 * 2
    loss = wasserstein_loss(student, torch.tensor([[1.0, 3.0]]), teacher, torch.tensor([[2.0, 5.0]]))
    assert loss.item() == pytest.approx(2.25, rel=1e-6)


@pytest.mark.parametrize("deviation", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_mass_that_is_farther_off_costs_more(deviation, temperature):
    mine, other = growing(96), even(128)
    teacher = (normal(other, 3.0, deviation), middles(other))
    support, moved = [], []
    for shift in (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 6.0, 8.0):
        student = (normal(mine, 3.0 + shift, deviation), middles(mine))
        support.append(shared_support_loss(*student, *teacher, (0.0, 12.0), temperature).item())
        moved.append(wasserstein_loss(*student, *teacher).item())
    assert support == sorted(support) and len(set(support)) == len(support)
    assert moved == sorted(moved) and moved[-1] == pytest.approx(8, rel=0.1)


@pytest.mark.parametrize("kind", ["widths", "shared_support", "wasserstein"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_reaches_the_student_alone_in_float32(kind, dtype):
    generator = torch.Generator().manual_seed(0)

    def bins():
        predictor = AdaBinsBinPredictor(8, 16, 1e-3, 12.0)
        leaves = {
            "widths": torch.randn(2, 16, generator=generator),
            "choice": torch.randn(2, 16, 4, 4, generator=generator),
        }
        leaves = {key: value.to(dtype).requires_grad_() for key, value in leaves.items()}
        edges = predictor.edges(leaves["widths"])
        return leaves, {**leaves, "edges": edges[:, :, None, None], "centres": bin_centres(edges)[:, :, None, None]}

    (mine, heard), (others, seen) = bins(), bins()
    loss = DistillationLoss(bin_loss=kind).bin_term(heard, seen)
    assert loss.dtype == torch.float32 and loss.shape == (2,)
    loss.sum().backward()
    assert mine["widths"].grad.any() and torch.isfinite(mine["widths"].grad).all()
    assert all(value.grad is None for value in others.values())
    if kind != "widths":
        assert mine["choice"].grad.any() and torch.isfinite(mine["choice"].grad).all()
    same = DistillationLoss(bin_loss=kind).bin_term(seen, seen)
    assert same.abs().max() < 1e-5


def test_chamfer_by_hand():
    centres = torch.tensor([[1.0, 3.0, 7.0], [1.0, 3.0, 7.0]])
    depth = torch.tensor([[[[1.5, 4.0], [0.0, 6.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    # depths to centres (0.25 + 1 + 1) / 3, centres to depths (0.25 + 1 + 1) / 3; the second image measured nothing
    loss = chamfer_loss(centres, depth, depth > 0)
    assert loss.tolist() == pytest.approx([1.5, 0.0], rel=1e-5)


@pytest.mark.parametrize("hole", [math.nan, math.inf, 1e6])
def test_bins_do_not_go_where_a_map_is_not_valid(hole):
    slopes = []
    for value in (0.0, hole):
        centres = torch.tensor([[1.0, 2.0, 4.0]], requires_grad=True)
        depth = torch.tensor([1.5, value, 3.0])[None, None, None]
        loss = chamfer_loss(centres, depth, torch.tensor([True, False, True])[None, None, None])
        loss.sum().backward()
        slopes.append((loss, centres.grad))
    assert torch.equal(slopes[0][0], slopes[1][0]) and torch.equal(slopes[0][1], slopes[1][1])


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 9), k=st.integers(1, 9), seed=st.integers(0, 999))
def test_nearest_is_the_nearest(n, k, seed):
    generator = torch.Generator().manual_seed(seed)
    row, x = torch.randn(2, n, generator=generator).sort(dim=1).values, torch.randn(2, k, generator=generator)
    expected = (x[:, :, None] - row[:, None]).abs().amin(dim=2)
    assert torch.equal((nearest(x, row) - x).abs(), expected)


# ------------------------------------------------------------------------------------------------------- the whole loss


def answers(model, size=32):
    both = model(torch.rand(2, 2, size, size), torch.rand(2, 3, size, size))
    return both["audio"], both["rgb"]


def test_the_terms_of_two_equal_networks():
    model = create_adabins_distillation_model(**SMALL).eval()
    student, _ = answers(model)
    target = torch.rand(2, 1, 32, 32) * 5
    terms = DistillationLoss(lambda_chamfer=0.1)(student, student, target, target > 1)
    assert set(terms) == {"task", "response", "feature", "bin", "sparse", "chamfer"}
    assert all(value.shape == (2,) for value in terms.values())
    assert all(terms[key].abs().max() < 1e-5 for key in ("response", "feature", "bin"))
    assert terms["task"][0].item() == pytest.approx(
        (student[0][0] - target[0]).abs()[target[0] > 1].mean().item(), rel=1e-5
    )
    assert torch.allclose(terms["sparse"], student[1]["residual"].abs().mean((1, 2, 3)))


def test_the_teacher_answers_where_nobody_measured():
    torch.manual_seed(0)
    model = create_adabins_distillation_model(**SMALL).eval()
    with torch.no_grad():
        student, teacher = answers(model)
    target = torch.ones(2, 1, 32, 32)
    target[0, :, :, 16:] = 0  # half of the first image is a hole, the second is measured throughout
    at = {
        place: DistillationLoss(response_at=place)(student, teacher, target, target > 0)["response"]
        for place in RESPONSE_AT
    }
    squared = (student[0] - teacher[0]).square()
    assert at["unmeasured"].tolist() == pytest.approx([squared[0, :, :, 16:].sum().item() / 32**2, 0.0])
    assert torch.allclose(at["everywhere"], squared.mean((1, 2, 3)))
    nothing = DistillationLoss()(student, teacher, target, torch.zeros_like(target, dtype=torch.bool))["response"]
    assert torch.allclose(nothing, at["everywhere"])  # images without a label


def test_without_an_eye_there_are_the_ears_own_terms():
    model = create_adabins_distillation_model(**SMALL).eval()
    student, _ = answers(model)
    target = torch.rand(2, 1, 32, 32)
    assert set(DistillationLoss()(student, None, target, target > 0)) == {"task", "sparse"}


@pytest.mark.parametrize("kind", ["widths", "shared_support", "wasserstein"])
def test_the_teacher_is_not_pulled(kind):
    torch.manual_seed(0)
    model = create_adabins_distillation_model(**SMALL)
    student, teacher = answers(model)
    target = torch.rand(2, 1, 32, 32) * 5
    terms = DistillationLoss(bin_loss=kind, lambda_chamfer=0.1, task_loss="silog")(student, teacher, target, target > 0)
    torch.stack([value.mean() for value in terms.values()]).sum().backward()
    assert all(parameter.grad is None for parameter in model.rgb.parameters())
    assert all(parameter.grad is not None for parameter in model.audio.parameters())


def test_the_curriculum_takes_no_weight_that_it_sets():
    with pytest.raises(OptionError, match="lambda_bin, lambda_task: the curriculum sets these"):
        AdaptiveDistillationLoss(lambda_task=7.0, lambda_bin=0.0)


@pytest.mark.parametrize("epochs", [200, 20])
def test_the_curriculum(epochs):
    loss = AdaptiveDistillationLoss(lambda_sparse=0.1)
    rows = {  # epochs of 200: task, response, feature, bin
        0: (0.5, 1.0, 0.5, 0.5),
        20: (0.5, 1.0, 0.75, 0.5),
        39: (0.5, 1.0, 0.5 + 0.5 * 39 / 40, 0.5),
        40: (0.75, 0.65, 1.0, 0.35),
        80: (0.75, 0.65, 0.875, 0.35),
        119: (0.75, 0.65, 1 - 0.25 * 79 / 80, 0.35),
        120: (1.0, 0.3, 0.5, 0.2),
        160: (1.0, 0.3, 0.5, 0.2),
        200: (1.0, 0.3, 0.5, 0.2),
    }
    for epoch, expected in rows.items():
        weights = loss.weights_at(epoch * epochs / 200 / epochs)
        assert [weights[key] for key in ("task", "response", "feature", "bin")] == pytest.approx(expected)
        assert weights["sparse"] == 0.1


def test_the_standard_weights_stay():
    loss = DistillationLoss()
    assert loss.weights_at(0.0) == loss.weights_at(1.0) == {
        "task": 1.0, "response": 0.5, "feature": 0.3, "bin": 0.2, "sparse": 0.1, "chamfer": 0.0
    }  # fmt: skip


def test_an_unknown_loss_lists_the_known():
    with pytest.raises(OptionError, match="shared_support"):
        DistillationLoss(bin_loss="kl")
    with pytest.raises(OptionError, match="silog"):
        DistillationLoss(task_loss="l2")
    with pytest.raises(OptionError, match="everywhere"):
        DistillationLoss(response_at="holes")
