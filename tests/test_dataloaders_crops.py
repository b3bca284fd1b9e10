"""Global and local crops: where they lie, and that picture, depth and boxes agree about it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from make_data import save_png16, write_images, write_nyu_b
from PIL import Image

from dataloaders import CropRule, create_dataset, create_loader
from dataloaders.crops import boxes_within, draw_crops
from dataloaders.transforms import crop_depth
from errors import OptionError

shares = st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)).map(sorted).map(tuple)


@settings(deadline=None, max_examples=100)
@given(st.integers(8, 900), st.integers(8, 900), shares, shares, st.integers(0, 5), st.integers(0, 10**6))
def test_local_crops_are_squares_inside_the_global_one_inside_the_picture(height, width, whole, parts, count, seed):
    rule = CropRule(count, whole, parts)
    view, boxes = draw_crops(height, width, rule, np.random.default_rng(seed))
    side = view[2] - view[0]
    assert view[3] - view[1] == pytest.approx(side)
    assert whole[0] - 1e-9 <= side / min(height, width) <= whole[1] + 1e-9
    assert (view >= -1e-6).all() and view[2] <= width + 1e-6 and view[3] <= height + 1e-6
    assert boxes.shape == (count, 4)
    for box in boxes:
        assert box[2] - box[0] == pytest.approx(box[3] - box[1])
        assert parts[0] - 1e-9 <= (box[2] - box[0]) / side <= parts[1] + 1e-9
        assert (box[:2] >= view[:2] - 1e-6).all() and (box[2:] <= view[2:] + 1e-6).all()
    inside = boxes_within(view, boxes, 98)
    assert inside.dtype == np.float32
    assert (inside >= -1e-2).all() and (inside <= 98 + 1e-2).all()


def test_a_box_in_pixels_of_the_view_by_hand():
    view = np.array([100.0, 40.0, 300.0, 240.0])
    assert boxes_within(view, np.array([[150.0, 40.0, 250.0, 140.0]]), 50).tolist() == [[12.5, 0.0, 37.5, 25.0]]


def test_depth_is_cut_in_whole_pixels_of_its_own_size():
    depth = torch.arange(24.0).reshape(1, 4, 6)  # of a picture of 40 x 60
    assert crop_depth(depth, [10, 10, 30, 30], 40, 60).tolist() == [[[7, 8], [13, 14]]]
    assert crop_depth(depth, [0, 0, 60, 40], 40, 60).equal(depth)
    assert crop_depth(depth, [59, 39, 60, 40], 40, 60).tolist() == [[[23]]]


@pytest.fixture(scope="module")
def ramps(tmp_path_factory):
    """NYU folders whose red says x, whose green says y, and whose depth says x too."""
    root = write_nyu_b(tmp_path_factory.mktemp("ramps"), size=(96, 128))
    y, x = np.mgrid[:96, :128]
    for path in sorted((root / "train" / "rgb").iterdir()):
        Image.fromarray(np.stack([2 * x, 2 * y, 0 * x], axis=-1).astype(np.uint8)).save(path)
    for path in sorted((root / "train" / "depth").iterdir()):
        save_png16(path, 1000 + 10 * x)
    return root


def place(channel, scale):
    """Where the middle pixels of a view were in the picture, from its ramp."""
    return channel[16:48, 16:48].mean() * scale


@pytest.mark.parametrize("augment", [False, True])
def test_local_views_global_view_and_depth_show_the_same_places(ramps, augment):
    rule = CropRule(3, (0.6, 1.0), (0.4, 0.8))
    dataset = create_dataset("nyu", ramps, "train", 64, modalities=("rgb", "depth"), crops=rule)
    dataset.augment = augment
    mirrored = 0
    for epoch in range(8):
        sample = dataset[(epoch, 0)]
        assert sample["rgb"].shape == (3, 64, 64) and sample["local"].shape == (3, 3, 64, 64)
        assert sample["depth"].shape == (1, 64, 64) and sample["boxes"].shape == (3, 4)
        red = sample["rgb"][0]
        mirrored += bool(red[:, 0].mean() > red[:, -1].mean())
        if not augment:  # colours mean places only where they are not jittered
            assert (100 * (sample["depth"] - 1)).mean() == pytest.approx(red.mean() * 255 / 2, abs=1.5)
        for local, (left, top, right, bottom) in zip(sample["local"], sample["boxes"].tolist(), strict=True):
            part = sample["rgb"][:, round(top) : round(bottom), round(left) : round(right)]
            assert torch.allclose(local[:2].mean(dim=(1, 2)), part[:2].mean(dim=(1, 2)), atol=0.02)
    assert (0 < mirrored < 8) if augment else mirrored == 0


def test_crops_depend_on_seed_epoch_and_index_alone_and_only_in_training(ramps):
    options = {"image_size": 32, "modalities": ("rgb", "depth"), "crops": CropRule()}
    first, again = (create_dataset("nyu", ramps, "train", **options) for _ in range(2))
    assert torch.equal(first[(3, 1)]["local"], again[(3, 1)]["local"])
    assert not torch.equal(first[(3, 1)]["local"], again[(4, 1)]["local"])
    assert not torch.equal(
        first[(3, 1)]["boxes"], create_dataset("nyu", ramps, "train", seed=1, **options)[(3, 1)]["boxes"]
    )
    assert set(create_dataset("nyu", ramps, "val", **options)[0]) == {"id", "index", "rgb", "depth"}


def test_pictures_without_depth_are_cropped_too(tmp_path):
    dataset = create_dataset("images", write_images(tmp_path), "train", 28, modalities=("rgb",), crops=CropRule(2))
    batch = next(iter(create_loader(dataset, 2, shuffle=True, only_labelled=False, num_workers=0)))
    assert batch["local"].shape == (2, 2, 3, 28, 28)
    assert batch["boxes"].shape == (2, 2, 4)
    assert "depth" not in batch
    alone = create_dataset("images", tmp_path, "train", 28, modalities=("rgb",), crops=CropRule(0))[0]
    assert alone["local"].shape == (0, 3, 28, 28) and alone["boxes"].shape == (0, 4)


def test_impossible_crops_are_refused(ramps):
    with pytest.raises(OptionError, match="global_scale"):
        CropRule(global_scale=(0.9, 0.5))
    with pytest.raises(OptionError, match="local_scale"):
        CropRule(local_scale=(0.0, 0.5))
    with pytest.raises(OptionError, match="whole scene"):
        create_dataset("simulated", ramps, "train", 32, modalities=("rgb", "audio"), crops=CropRule())
