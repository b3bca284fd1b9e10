"""The losses between disparity maps and between tokens: values worked out by hand, loops as an oracle, properties."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from errors import OptionError
from utils_distillation_loss import (
    FLAT,
    HDN_VARIANTS,
    NORMALIZATIONS,
    RECIPES,
    DisparityDistillationLoss,
    TokenAlignment,
    crop_and_resize,
    disparity_contexts,
    gradient_preservation_loss,
    hdn_loss,
    local_global_loss,
    normalize_disparity,
    normalize_in_contexts,
    normalized_loss,
    scale_shift_invariant_loss,
    token_alignment_loss,
    trimmed_mean,
)

INVARIANT = [name for name in NORMALIZATIONS if name != "none"]


def maps(*values):
    """Images of one row of pixels: [B, 1, 1, W]."""
    return torch.tensor(values)[:, None, None, :]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def holed(*shape, seed=0, share=0.2):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) >= share


def everywhere(x):
    return torch.ones_like(x, dtype=torch.bool)


def two_maps(*shape):
    """A student that is somewhat like its teacher, and a mask with holes."""
    teacher = random(*shape, seed=1)
    return teacher + 0.5 * random(*shape), teacher, holed(*shape, seed=2)


# ------------------------------------------------------------------------------------------------------------- contexts


def test_contexts_of_equal_ranges_by_hand():
    contexts = disparity_contexts(maps([0.0, 1.0, 2.0, 3.0, 4.0, 9.0]), maps([True] * 5 + [False]))
    assert contexts[0, :, 0].tolist() == [[0] * 5 + [-1], [0, 0, 1, 1, 1, -1], [0, 1, 2, 3, 3, -1]]


def test_contexts_of_equal_numbers_by_hand():
    contexts = disparity_contexts(maps([100.0, 1.0, 2.0, 3.0, 0.0, 5.0, 6.0, 7.0]), maps([True] * 8), "dp")
    assert contexts[0, :, 0].tolist() == [[0] * 8, [1, 0, 0, 0, 0, 1, 1, 1], [3, 0, 1, 1, 0, 2, 2, 3]]


def test_equal_values_share_their_context():
    contexts = disparity_contexts(maps([1.0, 1.0, 1.0, 2.0]), maps([True] * 4), "dp", level=2)
    assert contexts[0, 1, 0].tolist() == [1, 1, 1, 1], "the second half begins at rank 2, and so with the value 1"


def test_contexts_in_space_by_hand():
    contexts = disparity_contexts(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4, dtype=torch.bool), "ds")
    assert contexts[0, 1].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    assert contexts[0, 2].flatten().tolist() == list(range(16))


@pytest.mark.parametrize(("variant", "number"), [("dr", 7), ("dp", 7), ("ds", 21)])
def test_three_levels_have_as_many_contexts_as_published(variant, number):
    disparity = random(1, 1, 32, 32)
    levels = disparity_contexts(disparity, everywhere(disparity), variant)[0]
    assert sum(len(level.unique()) for level in levels) == number


@given(
    seed=st.integers(0, 10_000),
    variant=st.sampled_from(HDN_VARIANTS),
    level=st.integers(1, 4),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    values=st.integers(1, 20),
    share=st.sampled_from([0.0, 0.5, 0.95]),
)
@settings(max_examples=60, deadline=None)
def test_each_valid_pixel_lies_in_one_context_of_each_level(seed, variant, level, height, width, values, share):
    generator = torch.Generator().manual_seed(seed)
    disparity = torch.randint(values, (2, 1, height, width), generator=generator).float()
    valid = holed(2, 1, height, width, seed=seed, share=share)
    contexts = disparity_contexts(disparity.masked_fill(~valid, math.nan), valid, variant, level)
    assert contexts.shape == (2, level, height, width)
    assert torch.equal(contexts >= 0, valid.expand_as(contexts))
    ways = 4 if variant == "ds" else 2
    assert all(contexts[:, k].max() < ways**k for k in range(level))
    if variant != "ds":  # nested
        assert torch.equal(contexts[:, 0].clamp(max=0), contexts[:, 0])
        assert all(
            torch.equal(contexts[:, k][valid[:, 0]] // 2, contexts[:, k - 1][valid[:, 0]]) for k in range(1, level)
        )


@pytest.mark.parametrize("variant", HDN_VARIANTS)
@pytest.mark.parametrize("value", [0.0, -3.0, 1e4])
def test_constant_maps_belong_to_every_level(variant, value):
    disparity = torch.full((1, 1, 6, 6), value)
    assert (disparity_contexts(disparity, everywhere(disparity), variant) >= 0).all()


def test_the_nearest_and_the_farthest_belong_to_every_level():
    disparity = random(1, 1, 20, 20)
    contexts = disparity_contexts(disparity, everywhere(disparity))
    assert contexts[0, :, disparity[0, 0] == disparity.max()].flatten().tolist() == [0, 1, 3]
    assert contexts[0, :, disparity[0, 0] == disparity.min()].flatten().tolist() == [0, 0, 0]


# -------------------------------------------------------------------------------------------------------- normalisation


@pytest.mark.parametrize("variant", HDN_VARIANTS)
def test_contexts_that_halve_need_fewer_places_and_give_the_same(variant):
    disparity = random(2, 1, 16, 24)
    contexts = disparity_contexts(disparity, holed(2, 1, 16, 24, seed=3, share=0.5), variant, level=5)
    assert torch.equal(normalize_in_contexts(disparity, contexts, variant), normalize_in_contexts(disparity, contexts))


def test_many_levels_of_contexts_that_halve_fit_into_memory():
    student, teacher = random(1, 1, 32, 32), random(1, 1, 32, 32) ** 2
    loss = normalized_loss(student, teacher, everywhere(teacher), "hybrid", variant="dp", level=14)
    assert 0 < loss.item() < 10


def test_normalised_in_contexts_by_hand():
    # level 0: median 1, deviations 1 0 1 9 of mean 11/4; level 1: {0, 1, 2} by its 1 and 2/3, and {10} on its own
    disparity, valid = maps([0.0, 1.0, 2.0, 10.0, math.nan]), maps([True] * 4 + [False])
    normalized = normalize_in_contexts(disparity, disparity_contexts(disparity, valid, level=2))
    assert normalized[0, 0, 0].tolist() == pytest.approx([-4 / 11, 0, 4 / 11, 36 / 11, 0])
    assert normalized[0, 1, 0].tolist() == pytest.approx([-1.5, 0, 1.5, 0, 0])


def test_the_first_level_is_the_whole_map():
    disparity, _, valid = two_maps(3, 1, 13, 11)
    normalized = normalize_in_contexts(disparity, disparity_contexts(disparity, valid, level=1))
    assert torch.allclose(normalized, normalize_disparity(disparity, valid), atol=1e-6)
    flat = 5 + 1e-5 * disparity
    normalized = normalize_in_contexts(flat, disparity_contexts(flat, valid, level=1))
    assert torch.allclose(normalized, normalize_disparity(flat, valid), atol=1e-6)


def test_noise_on_a_wall_does_not_become_a_shape():
    wall = 10 + 1e-6 * random(1, 1, 1, 32)
    disparity = torch.cat([random(1, 1, 1, 32), wall], dim=3)
    normalized = normalize_in_contexts(disparity, disparity_contexts(disparity, everywhere(disparity)))
    assert normalized[0, 2, 0, 32:].abs().max() < 1e-2
    assert normalized[0, 2, 0, :32].abs().max() > 1


def test_each_normalisation_by_hand():
    teacher, student = maps([0.0, 1.0, 2.0, 10.0]), maps([1.0, 0.0, 2.0, 10.0])
    valid = everywhere(teacher)
    whole, halves = [4 / 11, 4 / 11, 0, 0], [1.5, 1.5, 0, 0]
    expected = {"global": sum(whole) / 4, "local": sum(halves) / 4, "hybrid": sum(whole + halves) / 8, "none": 2 / 4}
    for normalization, value in expected.items():
        loss = normalized_loss(student, teacher, valid, normalization, level=2)
        assert loss.item() == pytest.approx(value), normalization


def test_global_is_the_scale_and_shift_invariant_loss():
    student, teacher, valid = two_maps(2, 1, 9, 9)
    assert torch.equal(normalized_loss(student, teacher, valid), scale_shift_invariant_loss(student, teacher, valid))


def test_local_shapes_stand_on_their_own():
    # both steps have the teacher's shape, but stand side by side instead of one above the other
    teacher, student = maps([0.0, 1.0, 2.0, 10.0, 11.0, 12.0]), maps([0.0, 1.0, 2.0, 0.0, 1.0, 2.0])
    valid = everywhere(teacher)
    assert normalized_loss(student, teacher, valid, "local", level=2).item() == 0
    assert normalized_loss(student, teacher, valid, "hybrid", level=2).item() > 0.2


@pytest.mark.parametrize("normalization", INVARIANT)
@pytest.mark.parametrize("variant", HDN_VARIANTS)
def test_scale_and_shift_of_either_map_do_not_matter(normalization, variant):
    student, teacher, valid = two_maps(2, 1, 16, 16)
    before = normalized_loss(student, teacher, valid, normalization, variant=variant)
    after = normalized_loss(7 * student + 3, 0.1 * teacher - 2, valid, normalization, variant=variant)
    assert torch.allclose(before, after, rtol=1e-4)
    assert (normalized_loss(-student, teacher, valid, normalization, variant=variant) > 1.1 * before).all()


def test_without_normalisation_they_do():
    _, teacher, valid = two_maps(2, 1, 8, 8)
    assert normalized_loss(teacher + 1, teacher, valid, "none").tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("variant", HDN_VARIANTS)
def test_identical_maps_give_0(normalization, variant):
    student, _, valid = two_maps(2, 1, 9, 7)
    assert normalized_loss(student, student, valid, normalization, variant=variant).tolist() == [0, 0]
    assert gradient_preservation_loss(student, student, valid).tolist() == [0, 0]


def looped_hdn(student, teacher, valid, variant, level):
    """The definition, context by context and image by image."""
    result = []
    for s, t, inside in zip(student[:, 0], teacher[:, 0], valid[:, 0], strict=True):
        whole_s, whole_t = ((d[inside] - d[inside].median()).abs().mean().clamp(min=1e-4) for d in (s, t))
        total = torch.zeros_like(s)
        low, high = t[inside].min(), t[inside].max()
        ranked = t[inside].sort().values
        for k in range(level):
            n, masks = 2**k, []
            if variant == "ds":
                h, w = s.shape
                masks = [
                    (torch.arange(h)[:, None] * n // h == i) & (torch.arange(w) * n // w == j)
                    for i in range(n)
                    for j in range(n)
                ]
            elif variant == "dr":
                share = (t - low) / (high - low)
                masks = [(share >= i / n) & ((share < (i + 1) / n) | (i == n - 1)) for i in range(n)]
            else:
                least = [-math.inf, *(ranked[i * len(ranked) // n] for i in range(1, n)), math.inf]
                masks = [(t >= least[i]) & (t < least[i + 1]) for i in range(n)]
            for mask in masks:
                u = mask & inside
                if u.any():
                    normalized = []
                    for d, whole in ((s, whole_s), (t, whole_t)):
                        centred = d[u] - d[u].median()
                        normalized.append(centred / centred.abs().mean().clamp(min=FLAT * whole if k else 1e-4))
                    total[u] += (normalized[0] - normalized[1]).abs()
        result.append((total[inside] / level).mean())
    return torch.stack(result)


@pytest.mark.parametrize("variant", HDN_VARIANTS)
@pytest.mark.parametrize("level", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(3, 1, 24, 31), (2, 1, 5, 3)])
def test_hdn_agrees_with_its_definition(variant, level, shape):
    student, teacher, valid = two_maps(*shape)
    value = hdn_loss(student, teacher, valid, variant, level)
    assert torch.allclose(value, looped_hdn(student, teacher, valid, variant, level), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", HDN_VARIANTS)
def test_hdn_of_equal_values_agrees_with_its_definition(variant):
    student, teacher, valid = two_maps(2, 1, 16, 16)
    student, teacher = (2 * student).round(), (2 * teacher).round()
    assert torch.allclose(
        hdn_loss(student, teacher, valid, variant), looped_hdn(student, teacher, valid, variant, 3), atol=1e-5
    )


def test_the_largest_residuals_are_left_out():
    teacher = maps([1.0, 2.0, 3.0, 4.0, 100.0, math.nan])
    student, valid = torch.zeros_like(teacher), torch.isfinite(teacher)
    assert normalized_loss(student, teacher, valid, "none").item() == 22
    assert normalized_loss(student, teacher, valid, "none", trim=0.2).item() == 2.5
    assert normalized_loss(student, teacher, valid, "none", trim=0.39).item() == 2.5, "the number is rounded down"
    assert normalized_loss(student, teacher, valid, "none", trim=0.4).item() == 2
    assert trimmed_mean(student, everywhere(student) & False, 0.2).item() == 0


# ----------------------------------------------------------------------------------------------------- local and global


def test_a_box_of_integers_is_the_slice():
    x = random(2, 3, 12, 10)
    boxes = torch.tensor([[[1, 2, 6, 9], [0, 0, 5, 7]], [[5, 5, 10, 12], [4, 1, 9, 8]]])
    crops = crop_and_resize(x, boxes, (7, 5))
    for image in range(2):
        for n, (x0, y0, x1, y1) in enumerate(boxes[image].tolist()):
            assert torch.equal(crops[image, n], x[image, :, y0:y1, x0:x1])


@pytest.mark.parametrize("size", [(24, 20), (9, 7), (12, 10)])
def test_the_whole_map_is_resized_as_usual(size):
    x = random(2, 1, 12, 10)
    crops = crop_and_resize(x, torch.tensor([[[0.0, 0.0, 10.0, 12.0]]] * 2), size)
    assert torch.allclose(crops[:, 0], F.interpolate(x, size, mode="bilinear", align_corners=False), atol=1e-6)


def test_a_box_between_the_pixels_by_hand():
    # half a pixel to the right: each sample lies between two columns; the last one is past the centre of the last
    x = maps([0.0, 2.0, 4.0])
    crop = crop_and_resize(x, torch.tensor([[[0.5, 0.0, 3.5, 1.0]]]), (1, 3))
    assert crop.flatten().tolist() == [1, 3, 4]


def test_the_global_map_is_held_against_the_local_ones():
    student = random(2, 1, 12, 12)
    boxes = torch.tensor([[[0, 0, 6, 6], [4, 5, 10, 11]]]).expand(2, -1, -1)
    local = torch.stack([student[..., 0:6, 0:6], student[..., 5:11, 4:10]], dim=1)
    assert local_global_loss(student, 3 * local + 1, boxes).max() < 1e-5, "each view has a scale of its own"
    assert local_global_loss(student, local.flip(1), boxes).min() > 0.1
    one_wrong = torch.stack([local[:, 0], random(2, 1, 6, 6, seed=5)], dim=1)
    for settings_ in ({}, {"normalization": "none"}, {"normalization": "local", "variant": "ds"}, {"trim": 0.2}):
        value = local_global_loss(student, one_wrong, boxes, **settings_)
        alone = normalized_loss(
            local[:, 1], one_wrong[:, 1], everywhere(local[:, 1]), **{"normalization": "hybrid", **settings_}
        )
        assert torch.allclose(value, alone / 2), "the mean over the views"


def test_the_local_loss_follows_the_teacher():
    student, boxes = random(1, 1, 12, 12), torch.tensor([[[2.0, 3.0, 9.0, 10.0]]])
    teachers = [random(1, 1, 1, 14, 14, seed=seed) for seed in (1, 2)]
    first, second = (local_global_loss(student, teacher, boxes).item() for teacher in teachers)
    assert abs(first - second) > 1e-3


def test_the_local_loss_leaves_out_what_the_teacher_does():
    student, boxes = random(1, 1, 8, 8), torch.tensor([[[0.0, 0.0, 8.0, 8.0]]])
    teacher = random(1, 1, 1, 8, 8, seed=1)
    valid = holed(1, 1, 1, 8, 8)
    expected = normalized_loss(student, teacher[:, 0], valid[:, 0], "hybrid")
    assert torch.equal(local_global_loss(student, teacher, boxes, valid), expected)
    assert torch.equal(local_global_loss(student, teacher.masked_fill(~valid, math.nan), boxes), expected)


# ------------------------------------------------------------------------------------------------------------ gradients


def test_gradient_preservation_by_hand():
    # N of the teacher -1 0 2 1, of the student 0 0 4 0: R = 1 0 2 -1; steps 1 2 3, then |1 - 2| of every second pixel
    student, teacher = maps([0.0, 0.0, 4.0, 0.0]), maps([1.0, 3.0, 7.0, 5.0])
    valid = everywhere(teacher)
    assert gradient_preservation_loss(student, teacher, valid).item() == pytest.approx((6 + 1) / 4)
    assert gradient_preservation_loss(student, teacher, valid, scales=1).item() == pytest.approx(6 / 4)
    upright = [d.transpose(2, 3) for d in (student, teacher, valid)]
    assert gradient_preservation_loss(*upright).item() == pytest.approx((6 + 1) / 4)


def test_a_step_into_a_hole_does_not_count():
    # as above with a hole in the middle, R = 1 0 x 2 -1: steps 1 and 3; of every fourth pixel 1 and -1
    student, teacher = maps([0.0, 0.0, 9.0, 4.0, 0.0]), maps([1.0, 3.0, math.nan, 7.0, 5.0])
    assert gradient_preservation_loss(student, teacher, torch.isfinite(teacher)).item() == pytest.approx((4 + 2) / 4)


def test_blurred_edges_cost():
    teacher = torch.zeros(1, 1, 16, 16)
    teacher[..., 8:] = 1
    blurred = F.avg_pool2d(F.pad(teacher, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    assert gradient_preservation_loss(blurred, teacher, everywhere(teacher)).item() > 0.05


# --------------------------------------------------------------------------------------------------------------- tokens


def test_token_alignment_by_hand():
    # cosines 1 (above the margin, left out), 0 and -1
    student, teacher = (
        torch.tensor([[[[2.0, 1.0, 1.0]], [[0.0, 0.0, 1.0]]]]),
        torch.tensor([[[[5.0, 0, -1]], [[0.0, 3, -1]]]]),
    )
    assert token_alignment_loss(student, teacher).item() == pytest.approx((1 + 2) / 2)
    assert token_alignment_loss(student, teacher, margin=1.0).item() == pytest.approx((0 + 1 + 2) / 3)
    assert token_alignment_loss(student, teacher, margin=-0.5).item() == pytest.approx(2)


def test_tokens_that_are_permuted_or_foreign_cost():
    align = TokenAlignment(8, 8)
    torch.nn.init.eye_(align.project.weight.data[:, :, 0, 0])
    tokens = random(2, 8, 4, 4)
    permuted = tokens.flatten(2)[:, :, torch.randperm(16, generator=torch.Generator().manual_seed(0))].view_as(tokens)
    assert align(tokens, tokens).tolist() == [0, 0]
    assert align(permuted, tokens).min() > 0.5
    assert align(random(2, 8, 4, 4, seed=9), tokens).min() > 0.5


def test_tokens_above_the_margin_give_a_zero_with_a_gradient():
    align = TokenAlignment(4, 4)
    torch.nn.init.eye_(align.project.weight.data[:, :, 0, 0])
    tokens = random(2, 4, 3, 3).requires_grad_()
    value = align(tokens, tokens.detach())
    value.sum().backward()
    assert value.tolist() == [0, 0]
    assert not tokens.grad.any()


def test_widths_and_grids_may_differ():
    align = TokenAlignment(6, 10)
    student, teacher = random(2, 6, 4, 5).requires_grad_(), random(2, 10, 8, 9, seed=1).requires_grad_()
    value = align(student, teacher)
    assert value.shape == (2,)
    value.sum().backward()
    assert student.grad.any()
    assert teacher.grad is None
    assert all(parameter.grad.any() for parameter in align.parameters())
    wide = F.interpolate(teacher[:, :, :1, :1], (4, 5))
    assert torch.equal(align(student, teacher[:, :, :1, :1]), align(student, wide)), "the teacher's is resized"


# ---------------------------------------------------------------------------------------------------------- all of them

MAP_LOSSES = {
    **{
        f"{normalization} {variant}": lambda s, t, v, n=normalization, u=variant: normalized_loss(s, t, v, n, variant=u)
        for normalization, variant in [("global", "dr"), ("none", "dr"), ("local", "dr"), ("local", "dp")]
    },
    **{f"hdn {variant}": lambda s, t, v, u=variant: hdn_loss(s, t, v, u) for variant in HDN_VARIANTS},
    "trimmed": lambda s, t, v: normalized_loss(s, t, v, "hybrid", trim=0.2),
    "gradients": gradient_preservation_loss,
    "local-global": lambda s, t, v: local_global_loss(
        torch.where(v, s, 0.0), t[:, None], torch.tensor([[[0.0, 0.0, s.shape[3], s.shape[2]]]] * len(s)), v[:, None]
    ),
}
each_map_loss = pytest.mark.parametrize("loss", MAP_LOSSES.values(), ids=MAP_LOSSES)


@each_map_loss
def test_gradients_reach_the_student_alone(loss):
    student, teacher, valid = two_maps(2, 1, 10, 9)
    student.requires_grad_(), teacher.requires_grad_()
    value = loss(student, teacher, valid)
    assert value.shape == (2,)
    value.sum().backward()
    assert student.grad[0].any()
    assert student.grad[1].any()
    assert not student.grad[~valid].any()
    assert teacher.grad is None


@each_map_loss
def test_the_slope_is_that_of_the_value(loss):
    student, teacher, valid = two_maps(1, 1, 6, 6)
    student.requires_grad_()
    loss(student, teacher, valid).sum().backward()
    for seed in range(3):
        way = random(1, 1, 6, 6, seed=20 + seed)
        with torch.no_grad():
            rise = loss(student + 1e-4 * way, teacher, valid) - loss(student - 1e-4 * way, teacher, valid)
        assert rise.item() / 2e-4 == pytest.approx((student.grad * way).sum().item(), rel=0.02, abs=4e-3)


@each_map_loss
def test_what_stands_where_nothing_is_valid_does_not_matter(loss):
    student, teacher, valid = two_maps(2, 1, 10, 9)
    values, slopes = [], []
    for junk in (0.0, 1e6, math.nan, math.inf):
        s = student.masked_fill(~valid, junk).requires_grad_()
        values.append(loss(s, teacher.masked_fill(~valid, junk), valid))
        values[-1].sum().backward()
        slopes.append(s.grad)
    assert all(torch.equal(value, values[0]) for value in values)
    assert all(torch.equal(slope, slopes[0]) for slope in slopes)
    assert torch.isfinite(slopes[0]).all()


@each_map_loss
def test_an_empty_mask_gives_a_finite_zero_with_a_gradient(loss):
    student, teacher, valid = two_maps(2, 1, 10, 9)
    valid[1] = False
    student.requires_grad_()
    value = loss(student, teacher.masked_fill(~valid, math.nan), valid)
    value.sum().backward()
    assert value[0] > 0
    assert value[1] == 0
    assert torch.isfinite(student.grad).all()
    assert not student.grad[1].any()


@each_map_loss
@pytest.mark.parametrize("flat", ["student", "teacher", "both"])
def test_constant_maps_are_finite(loss, flat):
    student, teacher, valid = two_maps(1, 1, 10, 9)
    if flat != "teacher":
        student = torch.full_like(student, 2.0)
    if flat != "student":
        teacher = torch.full_like(teacher, 5.0)
    student.requires_grad_()
    value = loss(student, teacher, valid)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(student.grad).all()


@each_map_loss
def test_a_batch_is_its_images(loss):
    student, teacher, valid = two_maps(3, 1, 10, 9)
    alone = [loss(student[i : i + 1], teacher[i : i + 1], valid[i : i + 1]) for i in range(3)]
    assert torch.allclose(loss(student, teacher, valid), torch.cat(alone))


@each_map_loss
def test_float32_inside(loss):
    student, teacher, valid = two_maps(2, 1, 10, 9)
    student, teacher = student.bfloat16(), teacher.bfloat16()
    expected = loss(student.float(), teacher.float(), valid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student, teacher, valid)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)


def test_tokens_in_float32():
    align = TokenAlignment(6, 10)
    student, teacher = random(2, 6, 4, 4).bfloat16(), random(2, 10, 4, 4, seed=1).bfloat16()
    expected = token_alignment_loss(F.conv2d(student.float(), align.project.weight), teacher.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(align(student, teacher), expected)


# ----------------------------------------------------------------------------------------------------------- the module


def test_the_terms_are_those_with_a_weight():
    student, teacher, valid = two_maps(2, 1, 16, 16)
    local = (random(2, 1, 16, 16, seed=3), random(2, 3, 1, 8, 8, seed=4), torch.tensor([[[1.0, 2, 9, 10]] * 3] * 2))
    tokens = (random(2, 4, 3, 3), random(2, 6, 3, 3, seed=1))
    loss = DisparityDistillationLoss(**RECIPES["documents"], hdn_variant="dp", hdn_level=2, trim=0.2, widths=(4, 6))
    terms = loss(student, teacher, valid, local=local, tokens=tokens)
    assert list(terms) == ["sc", "lg", "feat", "grad", "hdn"]
    assert torch.equal(terms["sc"], normalized_loss(student, teacher, valid, "global", trim=0.2))
    assert torch.equal(terms["lg"], local_global_loss(*local, normalization="global", trim=0.2))
    assert torch.equal(terms["feat"], loss.align(*tokens))
    assert torch.equal(terms["grad"], gradient_preservation_loss(student, teacher, valid))
    assert torch.equal(terms["hdn"], hdn_loss(student, teacher, valid, "dp", 2))
    alone = DisparityDistillationLoss(1.0, 0.0, 0.0, 0.0)(student, teacher.masked_fill(~valid, math.nan))
    assert list(alone) == ["sc"]
    assert torch.equal(alone["sc"], hdn_loss(student, teacher, valid)), "hybrid, where the teacher is finite"


def test_the_recipes_are_those_of_the_paper_and_of_the_documents():
    paper, documents = (DisparityDistillationLoss(**RECIPES[name], widths=(4, 6)) for name in ("paper", "documents"))
    assert paper.weights == {"sc": 1.0, "lg": 0.5, "feat": 1.0, "grad": 2.0, "hdn": 0.0}
    assert documents.weights == {"sc": 0.5, "lg": 0.5, "feat": 1.0, "grad": 0.2, "hdn": 0.8}
    assert DisparityDistillationLoss(widths=(4, 6)).weights == paper.weights


@pytest.mark.parametrize(
    ("options", "named"),
    [({"normalization": "median"}, "hybrid"), ({"hdn_variant": "dd"}, "dr, dp, ds"), ({"hdn_level": 0}, "level"),
     ({"trim": 1.0}, "trim"), ({}, "widths")],
)  # fmt: skip
def test_what_there_is_not(options, named):
    with pytest.raises(OptionError, match=named):
        DisparityDistillationLoss(**options)


def test_a_term_without_its_input_is_refused():
    student, teacher, valid = two_maps(1, 1, 4, 4)
    with pytest.raises(OptionError, match="lambda_lg"):
        DisparityDistillationLoss(lambda_feat=0.0)(student, teacher, valid)
    with pytest.raises(OptionError, match="lambda_feat"):
        DisparityDistillationLoss(lambda_lg=0.0, widths=(4, 6))(student, teacher, valid)
    with pytest.raises(OptionError, match="normalisation"):
        normalized_loss(student, teacher, valid, "median")
    with pytest.raises(OptionError, match="HDN"):
        hdn_loss(student, teacher, valid, "dd")
