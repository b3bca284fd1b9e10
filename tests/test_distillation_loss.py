"""Each distillation loss against values worked out by hand, and what holds for all of them."""

import math

import pytest
import torch

from errors import OptionError
from utils_distillation_loss import (
    CHANNEL_BY_CHANNEL,
    FEATURE_LOSSES,
    RESPONSE_LOSSES,
    FeatureDistillation,
    ResponseDistillation,
    attention_loss,
    channel_wise_loss,
    feature_cosine_loss,
    feature_mse_loss,
    masked_median,
    mse_loss,
    normalize_disparity,
    scale_shift_invariant_loss,
    similarity_loss,
)

WIDTHS = {"x5": 6, "d1": 6, "d4": 4}


def maps(*values):
    """Images of one row of pixels: [B, 1, 1, W]."""
    return torch.tensor(values)[:, None, None, :]


def features(*channels):
    """One image of one row of positions: [1, C, 1, W]."""
    return torch.tensor(channels)[None, :, None, :]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------------------ responses


def test_mse_by_hand():
    target = maps([1.0, 0.0, 3.0], [2.0, 2.0, 2.0])
    assert mse_loss(maps([3.0, 9.0, 3.0], [2.0, 2.0, 5.0]), target, target > 0).tolist() == [2.0, 3.0]


def test_medians_by_hand():
    x = maps([5.0, 1.0, 9.0, 3.0], [7.0, 8.0, 9.0, 6.0], [1.0, 2.0, 3.0, 4.0])
    valid = maps([True, True, False, True], [True] * 4, [False] * 4)
    assert masked_median(x, valid).flatten().tolist() == [3.0, 7.0, 0.0], "the lower one of an even number; 0 of none"


def test_normalized_disparities_by_hand():
    # median 3, deviations 2, 0, 4, 2: their mean is 2
    disparity, valid = maps([1.0, 3.0, 7.0, 5.0, math.nan]), maps([True] * 4 + [False])
    assert normalize_disparity(disparity, valid).flatten().tolist() == [-1.0, 0.0, 2.0, 1.0, 0.0]


def test_ssi_by_hand():
    # the student is flat but for one pixel: median 0, mean deviation 1, so 0 0 4 0; the teacher as above
    valid = maps([True] * 4)
    student, teacher = maps([0.0, 0.0, 4.0, 0.0]), maps([1.0, 3.0, 7.0, 5.0])
    assert scale_shift_invariant_loss(student, teacher, valid).item() == pytest.approx((1 + 0 + 2 + 1) / 4)


def test_ssi_forgives_scale_and_shift_and_nothing_else():
    teacher = random(2, 1, 8, 8).abs()
    valid = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    assert scale_shift_invariant_loss(3 * teacher + 2, teacher, valid).max() < 1e-5
    assert scale_shift_invariant_loss(-teacher, teacher, valid).min() > 0.5, "near is not far"


def test_a_teacher_of_disparities_teaches_shape():
    depth = 1 + random(2, 1, 8, 8).abs()
    response = ResponseDistillation("ssi", "disparity")
    assert response(depth, 40 / depth - 5).max() < 1e-4
    assert response(depth, depth).min() > 0.5
    with pytest.raises(OptionError, match="ssi"):
        ResponseDistillation("l1", "disparity")


def test_ssi_compares_disparities_of_a_metric_teacher():
    # disparities 1, 1/2, 1/4 normalise to 2, 0, -1 times 1/4 over the mean deviation 1/4
    response = ResponseDistillation("ssi")
    assert response(maps([1.0, 2.0, 4.0]), maps([2.0, 4.0, 8.0])).item() == pytest.approx(0, abs=1e-6)
    assert response(maps([1.0, 2.0, 4.0]), maps([1.0, 1.0, 1.0])).item() == pytest.approx((2 + 0 + 1) / 3)


def test_a_teachers_depth_counts_up_to_the_cap():
    response = ResponseDistillation("l1", max_depth=12.0)
    assert response(maps([10.0, 5.0]), maps([30.0, 4.0])).item() == pytest.approx((2 + 1) / 2)


def test_pixels_that_the_teacher_leaves_out():
    depth = maps([1.0, 2.0, 3.0]).requires_grad_()
    value = ResponseDistillation("l1")(depth, maps([2.0, math.nan, 0.0]))
    value.sum().backward()
    assert value.item() == 1.0
    assert depth.grad.flatten().tolist() == [-1.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", sorted(RESPONSE_LOSSES))
def test_responses_of_identical_maps(kind):
    depth = (1 + random(3, 1, 4, 4).abs()).requires_grad_()
    value = ResponseDistillation(kind)(depth, depth)
    assert value.shape == (3,)
    assert value.tolist() == [0, 0, 0]
    value.sum().backward()
    assert torch.isfinite(depth.grad).all()


@pytest.mark.parametrize("kind", sorted(RESPONSE_LOSSES))
@pytest.mark.parametrize("taught", [0.0, math.nan])
def test_an_empty_mask_gives_a_finite_zero_with_a_gradient(kind, taught):
    depth = maps([1.0, 2.0]).requires_grad_()
    value = ResponseDistillation(kind)(depth, torch.full_like(depth, taught))
    value.sum().backward()
    assert value.item() == 0
    assert depth.grad.flatten().tolist() == [0, 0]


@pytest.mark.parametrize("kind", sorted(RESPONSE_LOSSES))
def test_flat_maps_have_finite_gradients(kind):
    depth = torch.full((1, 1, 3, 3), 2.0, requires_grad=True)
    ResponseDistillation(kind)(depth, torch.full((1, 1, 3, 3), 3.0)).sum().backward()
    assert torch.isfinite(depth.grad).all()


# ------------------------------------------------------------------------------------------------------------- features


def test_feature_mse_by_hand():
    assert feature_mse_loss(features([1.0, 2.0], [0.0, 0.0]), features([3.0, 2.0], [0.0, 4.0])).item() == (4 + 16) / 4


def test_cosines_by_hand():
    # positions: parallel (0), at right angles (1), opposite (2), both zero (0)
    student, teacher = features([2.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0]), features([5, 0, -1.0, 0], [0, 3, -1.0, 0])
    assert feature_cosine_loss(student, teacher).item() == pytest.approx((0 + 1 + 2 + 0) / 4)


def test_channel_wise_divergence_by_hand():
    # softmax over two positions at temperature 2: teacher 3/4 1/4, student 1/2 1/2; KL of the first from the second
    student, teacher = features([0.0, 0.0]), features([2 * math.log(3), 0.0])
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert channel_wise_loss(student, teacher, 2.0).item() == pytest.approx(4 * divergence, rel=1e-6)
    other_way = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert channel_wise_loss(teacher, student, 2.0).item() == pytest.approx(4 * other_way, rel=1e-6)
    two = channel_wise_loss(torch.cat([student, student], 1), torch.cat([teacher, student], 1), 2.0)
    assert two.item() == pytest.approx(4 * divergence / 2, rel=1e-6), "the mean over the channels"


def test_similarities_by_hand():
    # two images, alike to the student (Gram all ones, rows 1/sqrt 2), at right angles to the teacher (identity)
    student, teacher = torch.ones(2, 1, 1, 1), torch.eye(2)[:, :, None, None]
    root = math.sqrt(0.5)
    assert similarity_loss(student, teacher).item() == pytest.approx((2 * (1 - root) ** 2 + 2 * root**2) / 4)
    assert similarity_loss(student[:1], teacher[:1]).item() == 0


def test_attention_by_hand():
    # energies 25, 0 and 0, 4: unit vectors at right angles. The numbers of channels differ.
    student, teacher = features([3.0, 0.0], [4.0, 0.0]), features([0.0, 2.0])
    assert attention_loss(student, teacher).item() == pytest.approx(2)
    assert attention_loss(student, features([7.0, 0.0])).item() == pytest.approx(0)


@pytest.mark.parametrize("kind", sorted(FEATURE_LOSSES))
def test_features_that_are_identical(kind):
    same = random(3, 4, 5, 5).relu()
    value = FEATURE_LOSSES[kind](same, same)
    assert value.shape == (() if kind == "similarity" else (3,))
    assert not value.any()


@pytest.mark.parametrize("kind", sorted(FEATURE_LOSSES))
def test_features_that_are_not(kind):
    student, teacher = random(3, 4, 5, 5), random(3, 4, 5, 5, seed=1)
    assert FEATURE_LOSSES[kind](student, teacher).min() > 1e-3


@pytest.mark.parametrize("kind", sorted(FEATURE_LOSSES))
def test_features_of_zero_have_finite_gradients(kind):
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    FEATURE_LOSSES[kind](student, random(2, 3, 4, 4)).sum().backward()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("kind", sorted(FEATURE_LOSSES))
def test_float32_inside(kind):
    student, teacher = random(2, 3, 4, 4).bfloat16(), random(2, 3, 4, 4, seed=1).bfloat16()
    expected = FEATURE_LOSSES[kind](student.float(), teacher.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = FEATURE_LOSSES[kind](student, teacher)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)


def levels(widths, size, seed):
    return {
        level: random(2, width, *size, seed=seed + i).requires_grad_()
        for i, (level, width) in enumerate(widths.items())
    }


@pytest.mark.parametrize("kind", sorted(FEATURE_LOSSES))
def test_gradients_reach_the_student_and_the_adapters_alone(kind):
    wide = {"x5": 5, "d1": 6, "d4": 7}
    distillation = FeatureDistillation(WIDTHS, wide, ["d1", "d4"], kind)
    student, teacher = levels(WIDTHS, (4, 6), 0), levels(wide, (4, 6), 9)
    values = distillation(student, teacher)
    assert list(values) == ["d1", "d4"]
    sum(value.sum() for value in values.values()).backward()
    assert all(student[level].grad.any() for level in ("d1", "d4"))
    assert student["x5"].grad is None
    assert all(value.grad is None for value in teacher.values())
    assert len(list(distillation.parameters())) == (2 if kind in CHANNEL_BY_CHANNEL else 0)
    assert all(parameter.grad.any() for parameter in distillation.parameters())


@pytest.mark.parametrize("kind", sorted(FEATURE_LOSSES))
def test_another_size_is_resized(kind):
    student, teacher = levels(WIDTHS, (4, 6), 0), levels(WIDTHS, (8, 12), 9)
    distillation = FeatureDistillation(WIDTHS, WIDTHS, ["d1"], kind)
    assert torch.isfinite(distillation(student, teacher)["d1"]).all()


def test_adapters_where_they_are_asked_for():
    wide = {**WIDTHS, "d4": 9}
    assert set(FeatureDistillation(WIDTHS, wide, ["d1", "d4"], "mse", "all").adapters) == {"d1", "d4"}
    assert set(FeatureDistillation(WIDTHS, wide, ["d1", "d4"], "mse", "differing").adapters) == {"d4"}
    assert not FeatureDistillation(WIDTHS, wide, ["d1", "d4"], "attention", "all").adapters
    same = levels(WIDTHS, (4, 4), 0)
    assert not FeatureDistillation(WIDTHS, WIDTHS, ["d1"], "mse", "differing")(same, same)["d1"].any()


def test_the_temperature_arrives():
    student, teacher = levels(WIDTHS, (4, 4), 0), levels(WIDTHS, (4, 4), 9)
    at = {}
    for t in (1.0, 4.0):
        at[t] = FeatureDistillation(WIDTHS, WIDTHS, ["d1"], "cwd", "differing", t)(student, teacher)["d1"]
    assert torch.equal(at[1.0], channel_wise_loss(student["d1"], teacher["d1"], 1.0))
    assert not torch.allclose(at[1.0], at[4.0])


@pytest.mark.parametrize(
    ("levels", "kind", "adapt", "named"),
    [(["d9"], "mse", "all", "x5 d1 d4"), ([], "mse", "all", "none"), (["d1"], "kl", "all", "cwd"),
     (["d1"], "mse", "some", "differing")],
)  # fmt: skip
def test_what_there_is_not(levels, kind, adapt, named):
    with pytest.raises(OptionError, match=named):
        FeatureDistillation(WIDTHS, WIDTHS, levels, kind, adapt)
