import math

import pytest
import torch

from training.depth_losses import (
    TASK_LOSSES,
    edge_aware_smoothness,
    edge_loss,
    l1_loss,
    low_pass,
    rmse_loss,
    silog_loss,
)
from training.task import mean_over_images
from utils_distillation_loss import mse_loss


def maps(*values, grad=False):
    return torch.tensor(values)[:, None, None, :].requires_grad_(grad)


def test_l1_by_hand():
    target = maps([1.0, 0.0, 3.0], [2.0, 2.0, 2.0])
    loss = l1_loss(maps([2.0, 9.0, 3.0], [2.0, 2.0, 5.0]), target, target > 0)
    assert loss.tolist() == [0.5, 1.0]


def test_silog_by_hand():
    # g = log 2 and 0: mean log(2)/2, variance (log(2)/2)^2
    target = maps([1.0, 1.0])
    half = math.log(2) / 2
    expected = 10 * (math.sqrt(half**2 + 0.15 * half**2 + 1e-6) - 1e-3)
    assert silog_loss(maps([2.0, 1.0]), target, target > 0).item() == pytest.approx(expected, rel=1e-6)


def test_silog_forgives_scale_but_for_its_share():
    target = maps([1.0, 2.0, 4.0])
    scaled = silog_loss(2 * target, target, target > 0).item()
    assert scaled == pytest.approx(10 * (math.sqrt(0.15 * math.log(2) ** 2 + 1e-6) - 1e-3), rel=1e-4)
    assert silog_loss(target, target, target > 0).item() == 0


def test_smoothness_by_hand():
    # depth 1, 3 over their mean 2: a step of 1. The picture steps by 1 as well: weight 1/e.
    depth = maps([1.0, 3.0])
    flat, edge = maps([0.5, 0.5]).expand(1, 3, 1, 2), maps([0.0, 1.0]).expand(1, 3, 1, 2)
    two_rows = lambda x: x.expand(-1, -1, 2, -1)  # noqa: E731 - no vertical gradient, but one row has none to average
    assert edge_aware_smoothness(two_rows(depth), two_rows(flat)).item() == pytest.approx(1.0)
    assert edge_aware_smoothness(two_rows(depth), two_rows(edge)).item() == pytest.approx(math.exp(-1))
    assert edge_aware_smoothness(two_rows(5 * depth), two_rows(flat)).item() == pytest.approx(1.0), "scale-free"


def test_smoothness_without_a_picture_weighs_all_alike():
    depth = maps([1.0, 3.0]).expand(-1, -1, 2, -1)
    assert edge_aware_smoothness(depth).item() == pytest.approx(1.0)


def test_edges_by_hand():
    # prediction steps by 3 and 0 where the target steps by 1 and 2; the next step ends in a hole
    prediction = torch.tensor([[1.0, 4.0, 4.0, 9.0], [2.0, 5.0, 5.0, 9.0]])[None, None]
    target = torch.tensor([[1.0, 2.0, 4.0, 0.0], [1.0, 2.0, 4.0, 0.0]])[None, None]
    along_x, along_y = (2 + 2) / 2, 1.0
    assert edge_loss(prediction, target, target > 0).item() == pytest.approx(along_x + along_y)
    assert edge_loss(prediction + 7, target, target > 0).item() == pytest.approx(along_x + along_y), "shift-free"


def test_low_pass_by_hand():
    depth = torch.zeros(1, 1, 1, 7)
    depth[0, 0, 0, 2], depth[0, 0, 0, 4] = 2.0, 6.0
    blurred = low_pass(depth, depth > 0, sigma=1.0)[0, 0, 0]
    near, far = math.exp(-0.5), math.exp(-4.5)
    assert blurred[3].item() == pytest.approx(4.0), "as near to either"
    assert blurred[1].item() == pytest.approx((2 * near + 6 * far) / (near + far), rel=1e-5)
    flat = torch.full((1, 1, 9, 9), 3.0)
    assert torch.allclose(low_pass(flat, flat > 0, sigma=2.0), flat), "no darkening at the border"
    assert low_pass(depth, torch.zeros_like(depth, dtype=torch.bool), sigma=1.0).abs().sum() == 0


def test_rmse_is_that_of_each_image_over_its_valid_pixels():
    target = torch.tensor([[2.0, 2.0, 0.0], [1.0, 1.0, 1.0]]).reshape(2, 1, 1, 3)
    prediction = torch.tensor([[5.0, 6.0, 9.0], [1.0, 1.0, 1.0]]).reshape(2, 1, 1, 3)
    found = rmse_loss(prediction, target, target > 0)
    assert found[0].item() == pytest.approx(math.sqrt((9 + 16) / 2), abs=0.011), "an epsilon of 1 cm, no more"
    assert found[1].item() == 0
    both = TASK_LOSSES["l1_rmse"](prediction, target, target > 0)
    assert both[0].item() == pytest.approx((3.5 + math.sqrt(12.5)) / 2, abs=0.011)


def test_between_two_answers_rmse_takes_the_mean_where_l1_takes_the_median():
    target = torch.tensor([1.0, 1.0, 4.0]).reshape(1, 1, 1, 3)
    guesses = torch.arange(0.5, 4.5, 0.01)
    best = {}
    for name in ("l1", "rmse"):
        losses = torch.stack([TASK_LOSSES[name](guess.expand_as(target), target, target > 0) for guess in guesses])
        best[name] = guesses[losses.argmin()].item()
    assert best == pytest.approx({"l1": 1.0, "rmse": 2.0}, abs=0.011)


@pytest.mark.parametrize("loss", [*TASK_LOSSES.values(), edge_loss])
def test_an_empty_mask_gives_a_finite_zero_with_a_gradient(loss):
    prediction = maps([1.0, 2.0], grad=True)
    target = torch.zeros(1, 1, 1, 2)
    value = loss(prediction, target, target > 0)
    value.sum().backward()
    assert value.item() == 0
    assert prediction.grad is not None
    assert prediction.grad.abs().sum() == 0


@pytest.mark.parametrize("loss", TASK_LOSSES.values())
def test_a_perfect_map_has_a_finite_gradient(loss):
    prediction = maps([1.0, 2.0], grad=True)
    loss(prediction, prediction.detach(), torch.ones(1, 1, 1, 2, dtype=torch.bool)).sum().backward()
    assert torch.isfinite(prediction.grad).all()


@pytest.mark.parametrize("loss", [*TASK_LOSSES.values(), edge_loss, mse_loss])
@pytest.mark.parametrize("junk", [torch.nan, torch.inf])
def test_what_a_map_holds_where_it_is_not_valid_makes_no_difference(loss, junk):
    valid = torch.tensor([True, True, True, False])[None, None, None]
    slopes = []
    for hole in (1.0, junk):
        prediction = maps([1.0, 2.0, 5.0, 4.0], grad=True)
        value = loss(prediction, maps([1.5, 2.0, 3.0, hole]), valid)
        value.sum().backward()
        slopes.append((value, prediction.grad))
    assert torch.equal(slopes[0][0], slopes[1][0]) and torch.equal(slopes[0][1], slopes[1][1])
    assert slopes[0][1].any()


def test_smoothness_of_a_single_row_is_that_along_it():
    row = torch.rand(1, 1, 1, 6) + 1
    assert edge_aware_smoothness(row).isfinite().all() and edge_aware_smoothness(row).item() > 0
    assert torch.equal(edge_aware_smoothness(row), edge_aware_smoothness(row.mT))
    assert edge_aware_smoothness(row[..., :1]).item() == 0


def test_holes_teach_nothing():
    prediction = maps([1.0, 2.0], grad=True)
    target = maps([3.0, 0.0])
    l1_loss(prediction, target, target > 0).sum().backward()
    assert prediction.grad.flatten().tolist() == [-1.0, 0.0]


def test_half_precision_is_lifted():
    target = maps([1.0, 4.0])
    value = silog_loss(target.bfloat16() * 1.01, target, target > 0)
    assert value.dtype == torch.float32


def test_images_count_alike_whatever_their_pixels():
    values, labelled = torch.tensor([2.0, 4.0, 100.0]), torch.tensor([True, True, False])
    assert mean_over_images(values, labelled).item() == 3.0
    assert mean_over_images(values).item() == pytest.approx(106 / 3)
    assert mean_over_images(values, torch.zeros(3, dtype=torch.bool)).item() == 0
