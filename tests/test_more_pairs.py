"""More pairs of picture and echo behind a training split: what they are, and that their depth teaches nothing."""

import numpy as np
import pytest
import torch
from make_data import drop_column, write_batvision_v2

import train_distillation
import train_rgb_depth
from dataloaders import WithMorePairs, create_dataset, create_training_data, create_training_split
from errors import DataError, OptionError
from training.checkpoint import load_checkpoint

SMALL = ("--image_size", 32, "--base_channels", 4, "--batch_size", 4, "--num_workers", 0)


@pytest.fixture(scope="module")
def other_rooms(tmp_path_factory):
    import simulation

    folder = tmp_path_factory.mktemp("other") / "rooms"
    simulation.write_dataset(folder, train=5, val=2, test=0, image_size=32, seed=7, workers=1, progress=False)
    return folder


def split(folder, **options):
    return create_dataset("simulated", folder, "train", 32, augment=True, seed=3, **options)


def test_the_pairs_of_the_second_follow_those_of_the_first_and_have_lost_their_depth(rooms, other_rooms):
    first, more = split(rooms, label_fraction=0.5), split(other_rooms, modalities={"audio", "rgb"})
    both = WithMorePairs(first, more)
    assert len(both) == 17 and both.ids == first.ids + more.ids
    assert both.labelled.sum() == 6 and not both.labelled[12:].any()
    for index, part, inner in ((2, first, 2), (12, more, 0), (-1, more, 4)):
        sample, expected = both[(4, index)], part[(4, inner)]
        assert sample["index"] == index % 17
        assert all(torch.equal(sample[key], expected[key]) for key in ("audio", "rgb"))
        assert torch.equal(sample["depth"], expected["depth"] if part is first else torch.zeros(1, 32, 32))
    assert both[14]["depth"].abs().sum() == 0 < split(other_rooms)[2]["depth"].abs().sum()
    with pytest.raises(IndexError):
        both[17]


def test_loaders_draw_all_pairs_or_the_labelled_ones_and_each_part_has_its_cache(rooms, other_rooms, tmp_path):
    data = {"name": "simulated", "dataset_dir": rooms, "image_size": 32, "cache_dir": tmp_path}
    for only_labelled, drawn in ((False, 17), (True, 12)):
        splits, loaders = create_training_data(
            {"audio", "rgb", "depth"}, data, other_rooms, batch_size=1, num_workers=0, only_labelled=only_labelled
        )
        indices = torch.cat([batch["index"] for batch in loaders["train"]])
        assert sorted(indices.tolist()) == list(range(drawn))
        assert all(part.cache is not None for part in splits["train"].parts)
        assert len(splits["val"]) == 4, "the second folder's validation pairs are not looked at"


def test_pairs_that_are_prepared_otherwise_are_refused(rooms, other_rooms):
    first = split(rooms)
    wide = create_dataset("simulated", other_rooms, "train", 64)
    with pytest.raises(OptionError, match="--pairs_dir"):
        WithMorePairs(first, wide)


def test_a_folder_without_pairs_is_refused_and_not_simulated(rooms, tmp_path):
    data = {"name": "simulated", "dataset_dir": rooms, "image_size": 32}
    with pytest.raises(DataError, match=r"--pairs_dir .*/rroms is no folder with data in it"):
        create_training_data({"audio", "rgb"}, data, tmp_path / "rroms", batch_size=1, num_workers=0)
    assert not any(tmp_path.iterdir())


def test_a_student_is_taught_on_them_and_their_depth_changes_nothing(rooms, other_rooms, tmp_path, run_cli):
    code, _, err = run_cli(
        train_rgb_depth.main, "--dataset", "simulated", "--dataset_dir", rooms, *SMALL, "--nb_epochs", 1,
        "--output_dir", tmp_path, "--experiment_name", "eye",
    )  # fmt: skip
    assert code == 0, err
    maps = sorted(other_rooms.rglob("*/depth/*.npy"))
    assert maps

    def train(name, *more):
        code, out, err = run_cli(
            train_distillation.main, "--dataset", "simulated", "--dataset_dir", rooms, *SMALL, "--nb_epochs", 2,
            "--attention_levels", 5, "--output_dir", tmp_path, "--experiment_name", name,
            "--teacher_checkpoint", tmp_path / "checkpoints/eye/best_model.pth", *more,
        )  # fmt: skip
        assert code == 0, err
        return out, load_checkpoint(tmp_path / f"checkpoints/{name}/last.pth")

    out, with_pairs = train("more", "--pairs_dir", other_rooms)
    assert "12 of 17 training pairs have depth" in out
    _, without = train("fewer")
    assert (with_pairs["step"], without["step"]) == (8, 6)
    for path in maps:
        depth = np.load(path)
        np.save(path, (depth // 2).astype(depth.dtype))
    _, again = train("again", "--pairs_dir", other_rooms)
    first, second = (state["model_state_dict"] for state in (with_pairs, again))
    assert all(torch.equal(first[key], second[key]) for key in first)


def batvision(root, locations):
    return write_batvision_v2(root, locations=locations, rows={"train": 3, "val": 2, "test": 2})


def test_of_these_pairs_no_depth_is_looked_for(tmp_path):
    """Neither columns nor files: nobody has measured it."""
    root, more = (batvision(tmp_path / name, ("Attic",)) for name in ("data", "more"))
    (more / "Attic/depth/depth_1.npy").unlink()
    (more / "Attic/depth/depth_2.npy").write_bytes(b"")
    options = {"name": "batvisionv2", "dataset_dir": root, "image_size": 16, "cache_dir": tmp_path / "cache"}
    for columns in ((), ("depth path", "depth file name")):
        for column in columns:
            drop_column(more / "Attic/train.csv", column)
        splits, loaders = create_training_data(
            {"audio", "rgb", "depth"}, options, more, batch_size=6, num_workers=0, only_labelled=False
        )
        (batch,) = loaders["train"]
        order = batch["index"].argsort()
        assert batch["depth"][order].flatten(1).any(dim=1).tolist() == [True] * 3 + [False] * 3
        assert "depth" not in splits["train"].parts[1].modalities


def test_a_place_that_is_held_out_is_not_learnt_from_them_either(tmp_path):
    root = batvision(tmp_path / "data", ("Attic", "Hall"))
    more = batvision(tmp_path / "more", ("Cellar", "Hall"))
    options = {"name": "batvisionv2", "dataset_dir": root, "image_size": 16}
    for held, expected in ((None, "Attic Hall Cellar Hall"), ("Attic", "Hall Cellar Hall"), ("Hall", "Attic Cellar")):
        split = create_training_split({"audio", "rgb"}, {**options, "holdout_location": held}, more)
        places = list(dict.fromkeys((number, part.locations[row]) for number, part in enumerate(split.parts)
                                    for row in range(len(part))))  # fmt: skip
        assert [place for _, place in places] == expected.split()
    with pytest.raises(DataError, match="b: with Hall held out, the train split is empty"):
        create_training_split({"audio"}, {**options, "holdout_location": "Hall"}, batvision(tmp_path / "b", ("Hall",)))
