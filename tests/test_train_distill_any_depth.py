"""Distillation of disparities: what the task asks of whom, and the script from end to end, on pictures of 56 pixels."""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from make_data import write_images, write_nyu_of_livingroom
from torch import nn

import evaluate
import train_distill_any_depth
from errors import OptionError
from models import create_model
from models.weights import read_metadata, read_safetensors
from training.checkpoint import load_checkpoint, load_model, save_model
from training.micro_batches import MicroBatches
from training.session import create_optimizer
from training.task import Guest
from training.tasks import DisparityDistillationTask, MeasuredDisparity
from utils_distillation_loss import RECIPES, DisparityDistillationLoss, normalized_loss

REPOSITORY = Path(__file__).resolve().parent.parent
SIDE = 56
SMALL = ("--image_size", SIDE, "--batch_size", 4, "--num_workers", 0, "--learning_rate", 0.001)
TERMS = ("sc", "lg", "feat", "grad", "hdn")
main = train_distill_any_depth.main


def arguments(data, output, *more):
    given = ("--dataset", "simulated", "--dataset_dir", data, "--output_dir", output, *SMALL)
    return [str(x) for x in (*given, "--experiment_name", "e", *more)]


def taught_by(teacher, *more):
    return ("--teacher_models", "mini", "--teacher_checkpoints", teacher, "--student_arch", "tiny", *more)


def rows(path):
    with Path(path).open(newline="") as file:
        return [{key: float(cell) for key, cell in row.items()} for row in csv.DictReader(file)]


def metrics(folder):
    return rows(folder / "results/e/metrics.csv")


def steps(folder):
    return rows(folder / "logs/e/steps.csv")


def console(folder):
    return (folder / "logs/e/console.log").read_text()


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in ours.items())


# ----------------------------------------------------------------------------------------------------------------- task


class Stub(nn.Module):
    """A network of two convolutions that remembers how it was asked."""

    inputs, output, size_multiple, imagenet_normalize = ("rgb",), "disparity", 1, False

    def __init__(self, width=6):
        super().__init__()
        self.encoder = nn.Conv2d(3, width, 2, stride=2)
        self.head = nn.Conv2d(3, 1, 3, padding=1)
        self.asked, self.autocast = [], []

    def forward(self, rgb, return_features=False):
        self.asked.append(len(rgb))
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        tokens = self.encoder(rgb)
        disparity = self.head(rgb).square() + tokens.mean()
        return (disparity, {"t4": tokens}) if return_features else disparity


def a_task(teachers=1, shares=None, measured=False, weights=None, **options):
    """A student and teachers of their own weights, the last of them measured depth on request."""
    torch.manual_seed(0)
    student = Stub(4)
    networks = [Stub() for _ in range(teachers)]
    weights = {f"lambda_{term}": 1.0 for term in TERMS} if weights is None else weights
    losses = [DisparityDistillationLoss(**weights, normalization="global", widths=(4, 6)) for _ in networks]
    if measured:
        networks.append(MeasuredDisparity())
        losses.append(DisparityDistillationLoss(**{**weights, "lambda_lg": 0.0, "lambda_feat": 0.0}))
    shares = [1.0] * len(networks) if shares is None else shares
    return DisparityDistillationTask(student, networks, losses, shares, encoder=student.encoder, **options)


def a_batch(images=2, locals_=3, side=16, depth=()):
    generator = torch.Generator().manual_seed(1)
    rand = lambda *shape: torch.rand(images, *shape, side, side, generator=generator)  # noqa: E731
    boxes = torch.tensor([[0.0, 0, 8, 8], [4, 6, 14, 16], [8, 8, 16, 16]])[:locals_].expand(images, -1, -1)
    batch = {"rgb": rand(3), "local": rand(locals_, 3), "boxes": boxes, "id": [str(i) for i in range(images)]}
    if depth:
        batch["depth"] = (1 + 5 * rand(1)) * torch.tensor(depth)[:, None, None, None]
    return batch


def steps_of(task, teacher):
    """Shares of the training after which a teacher is drawn."""
    return (step / 500 for step in range(500) if task.draw(step / 500) == teacher)


def test_the_loss_is_the_weighted_sum_of_its_parts():
    weights = {"lambda_sc": 2.0, "lambda_lg": 3.0, "lambda_feat": 5.0, "lambda_grad": 7.0, "lambda_hdn": 11.0}
    out = a_task(weights=weights)(a_batch(), 0.0)
    assert set(out) == {"loss", "depth", "counts", *TERMS}
    assert out["counts"] == dict.fromkeys(TERMS, 2)
    total = sum(weights[f"lambda_{term}"] * out[term].item() for term in TERMS)
    assert out["loss"].item() == pytest.approx(total, rel=1e-5)


def test_the_teacher_is_asked_once_for_all_views():
    task = a_task()
    task(a_batch(images=2, locals_=3), 0.0)
    assert task.teacher0.model.asked == [2 * (1 + 3)]
    assert task.student.asked == [2]


def test_each_local_view_is_held_against_its_box():
    """A student that answers as its teacher does is right where the view is what lies in the box, and only there."""
    task = a_task(weights={"lambda_sc": 0.0, "lambda_lg": 1.0, "lambda_feat": 0.0, "lambda_grad": 0.0})
    task.teacher0.model.load_state_dict({**task.teacher0.model.state_dict(), **head_of(task.student)})
    task.student.encoder.requires_grad_(False).weight.zero_()
    task.teacher0.model.encoder.weight.zero_()
    batch = a_batch(locals_=1)
    batch["local"] = batch["rgb"][:, None]
    batch["boxes"] = torch.tensor([0.0, 0, 16, 16]).expand(2, 1, 4)
    assert task(batch, 0.0)["lg"].item() == pytest.approx(0, abs=1e-5)
    batch["boxes"] = torch.tensor([0.0, 0, 8, 16]).expand(2, 1, 4)
    assert task(batch, 0.0)["lg"].item() > 0.1


def head_of(student):
    return {f"head.{key}": value.clone() for key, value in student.head.state_dict().items()}


def test_the_teacher_stays_as_it_is_to_the_bit():
    task = a_task()
    before = {key: value.clone() for key, value in task.teacher0.state_dict().items()}
    optimizer = torch.optim.AdamW(task.trainable(), lr=0.1)
    task.train()
    task(a_batch(), 0.0)["loss"].backward()
    optimizer.step()
    assert same(before, task.teacher0.state_dict())
    assert not task.teacher0.model.training
    assert {name.split(".")[0] for name, p in task.named_parameters() if p.grad is not None} == {"student", "losses"}


def test_teachers_are_drawn_as_often_as_they_should():
    draws = lambda task: [task.draw(step / 2000) for step in range(2000)]  # noqa: E731
    seldom = draws(a_task(2, [7, 3]))
    assert sum(seldom) / len(seldom) == pytest.approx(0.3, abs=0.03)  # three standard deviations
    assert draws(a_task(2, [7, 3])) == seldom, "whichever process draws"
    assert draws(a_task(2, [7, 3], seed=1)) != seldom


def test_the_teacher_that_is_drawn_is_the_one_that_is_asked():
    task = a_task(2, [7, 3])
    for number in (0, 1):
        task(a_batch(), next(steps_of(task, number)))
        assert [len(guest.model.asked) for guest in task.guests().values()] == [1, number]


def test_measured_depth_has_neither_tokens_nor_closer_views():
    task = a_task(1, measured=True)
    batch = a_batch(images=3, depth=(True, False, True))
    out = task(batch, next(steps_of(task, 1)))
    assert not task.teacher0.model.asked
    assert out["counts"] == {"sc": 2, "lg": 0, "feat": 0, "grad": 2, "hdn": 2}
    assert out["loss"].item() == pytest.approx(sum(out[term].item() for term in ("sc", "grad", "hdn")), rel=1e-5)
    labelled = {key: [value[0], value[2]] for key, value in batch.items()}
    labelled = {key: value if key == "id" else torch.stack(value) for key, value in labelled.items()}
    alone = task(labelled, next(steps_of(task, 1)))
    assert out["sc"].item() == pytest.approx(alone["sc"].item(), rel=1e-5), "images without a label do not dilute it"
    disparity = MeasuredDisparity()({"depth": torch.tensor([[[[2.0, 0.0]]]])})
    assert disparity[0, 0, 0, 0] == 0.5 and disparity.isnan().tolist() == [[[[False, True]]]]


@pytest.mark.parametrize("measured", [False, True])
def test_a_batch_in_parts_has_the_gradients_of_the_whole(measured):
    batch = a_batch(images=4, depth=(True, False, True, True))
    found = []
    for size in (None, 1):
        task = a_task(2, measured=measured)
        for progress in (0.0, 0.25, 0.5, 0.75):
            MicroBatches(Fabric(accelerator="cpu", devices=1), size).backward(task, batch, progress)
        found.append([p.grad for p in task.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 4
    assert all(torch.allclose(whole, parts, atol=1e-5) for whole, parts in zip(*found, strict=True))


def test_encoder_and_decoder_have_rates_of_their_own():
    task = a_task(encoder_rate=0.1)
    args = train_distill_any_depth.create_parser().parse_args([])
    groups = create_optimizer(task, args).param_groups
    assert [group["lr"] for group in groups] == pytest.approx([1e-4, 1e-5]), "the decoder's is the one that is logged"
    assert {id(p) for p in groups[1]["params"]} == {id(p) for p in task.student.encoder.parameters()}
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in task.trainable()}


def test_teachers_have_a_precision_of_their_own():
    for bf16 in (False, True):
        task = a_task(bf16_teachers=bf16)
        for outer in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=outer):
                out = task(a_batch(), 0.0)
            assert (task.student.autocast[-1], task.teacher0.model.autocast[-1]) == (outer, bf16)
            assert torch.isfinite(out["loss"]) and out["loss"].dtype == torch.float32


def test_the_distance_is_from_the_networks_by_their_shares():
    task = a_task(2, [7, 3, 5], measured=True)
    batch = a_batch()
    with torch.no_grad():
        student, *taught = (net(batch["rgb"]) for net in (task.student, task.teacher0.model, task.teacher1.model))
        one, two = (normalized_loss(student, answer, torch.ones_like(answer, dtype=torch.bool)) for answer in taught)
        distance = task.distance(batch)
    assert distance.shape == (2,)
    assert torch.allclose(distance, 0.7 * one + 0.3 * two, rtol=1e-5)


def test_a_teacher_that_answers_no_number_is_at_no_distance_and_stops_a_step():
    """Of measured depth an image without one teaches nothing; a network has to answer."""
    task = a_task(1, [1], measured=False)
    assert task.distance(a_batch()).isfinite().all()
    for parameter in task.teacher0.model.parameters():
        parameter.data.fill_(torch.nan)
    assert task.distance(a_batch()).isnan().all()
    assert task(a_batch(), 0.0)["loss"].isnan()


# --------------------------------------------------------------------------------------------------------------- script


@pytest.fixture(scope="module")
def mini(rooms, tmp_path_factory):
    """A network that measured depth has taught."""
    folder = tmp_path_factory.mktemp("mini")
    flags = ("--teacher_models", "ground_truth", "--student_arch", "mini", "--nb_epochs", 1)
    main(arguments(rooms, folder, *flags, "--recipe", "paper"))
    (row,) = metrics(folder)
    assert {key for key in row if key.startswith("train_")} == {"train_loss", "train_sc", "train_grad"}
    return folder / "student_best.safetensors"


FULL = ("--nb_epochs", 3, "--save_frequency", 3, "--augment", "--visualize_every", 4)


@pytest.fixture(scope="module")
def unbroken(rooms, mini, tmp_path_factory):
    """A run of three epochs of three steps."""
    folder = tmp_path_factory.mktemp("unbroken")
    before = mini.read_bytes()
    main(arguments(rooms, folder, *taught_by(mini), *FULL))
    assert mini.read_bytes() == before
    return folder


def test_every_part_stands_in_both_tables(unbroken):
    assert {"train_loss", *(f"train_{term}" for term in TERMS)} <= set(metrics(unbroken)[0])
    assert {"val_abs_rel", "val_rmse", "val_delta1", "val_delta2", "val_delta3"} <= set(metrics(unbroken)[0])
    recipe = RECIPES["documents"]
    assert len(steps(unbroken)) == 9
    for row in steps(unbroken):
        assert row["loss"] == pytest.approx(sum(recipe[f"lambda_{term}"] * row[term] for term in TERMS), rel=1e-4)


def test_a_picture_is_saved_every_few_steps(unbroken):
    pictures = sorted((unbroken / "visualizations/e").iterdir())
    assert [path.name for path in pictures] == ["step_000004.png", "step_000008.png"]
    assert all(path.stat().st_size > 10_000 for path in pictures)
    assert (unbroken / "results/e/epoch_0003.png").stat().st_size > 10_000
    assert (unbroken / "results/e/curves.png").is_file()


def test_the_best_epoch_has_the_least_abs_rel(unbroken):
    found = [row["val_abs_rel"] for row in metrics(unbroken)]
    best = load_checkpoint(unbroken / "checkpoints/e/best_model.pth")
    assert (best["best"]["value"], best["epoch"]) == (min(found), 1 + found.index(min(found)))


def test_the_students_are_files_that_say_what_they_are(unbroken):
    for name, kept in (("student_best", "best_model"), ("student_final", "last")):
        path = unbroken / f"{name}.safetensors"
        model, checkpoint = load_model(path)
        source = load_checkpoint(unbroken / f"checkpoints/e/{kept}.pth")
        assert checkpoint is None and model.config == {"preset": "tiny"}
        assert same(model.state_dict(), source["model_state_dict"])
        said = read_metadata(path)
        assert json.loads(said["config"]) == {"name": "depth_anything", "config": {"preset": "tiny"}}
        assert (said["experiment"], said["teachers"], said["epoch"]) == ("e", "mini", str(source["epoch"]))
        assert said["license"] == "that of its training data"
        card = path.with_suffix(".md").read_text()
        assert card.startswith(f"# {name}.safetensors\n\nRelative disparity from a picture: `depth_anything`")
        assert ("AbsRel" in card) is (source["best"]["epoch"] == source["epoch"])


def test_the_checkpoint_holds_no_teacher(unbroken, mini):
    state = load_checkpoint(unbroken / "checkpoints/e/last.pth")["training"]["task_state_dict"]
    assert set(state) == {"teacher0.fingerprint", "losses.0.align.project.weight"}
    assert torch.equal(state["teacher0.fingerprint"], Guest(load_model(mini)[0]).fingerprint)


def test_a_stopped_run_ends_as_the_unbroken_one(rooms, mini, unbroken, tmp_path):
    for more in (("--stop_after_epoch", 1), ("--resume",)):
        main(arguments(rooms, tmp_path, *taught_by(mini), *FULL, *more))
    ours, theirs = (load_checkpoint(folder / "checkpoints/e/last.pth") for folder in (tmp_path, unbroken))
    assert same(ours["model_state_dict"], theirs["model_state_dict"])
    assert same(ours["training"]["task_state_dict"], theirs["training"]["task_state_dict"])
    for name in ("results/e/metrics.csv", "logs/e/steps.csv"):
        assert (tmp_path / name).read_bytes() == (unbroken / name).read_bytes()
    for name in ("student_best.safetensors", "student_final.safetensors"):
        (ours, about), (theirs, said) = (read_safetensors(folder / name) for folder in (tmp_path, unbroken))
        assert same(ours, theirs) and about == said


def test_students_of_another_experiment_are_not_replaced(rooms, mini, unbroken, capsys):
    before = (unbroken / "student_best.safetensors").read_bytes()
    flags = (*taught_by(mini), "--nb_epochs", 1, "--experiment_name", "other", "--overwrite")
    main(arguments(rooms, unbroken, *flags))
    assert "is of another experiment (e) and stays" in capsys.readouterr().out
    assert (unbroken / "student_best.safetensors").read_bytes() == before
    for name in ("student_best.safetensors", "student_final.safetensors"):
        assert read_metadata(unbroken / "checkpoints/other" / name)["experiment"] == "other"


def test_several_teachers_take_turns(rooms, mini, tmp_path):
    flags = ("--teacher_models", "mini", "ground_truth", "--teacher_checkpoints", mini, "--teacher_weights", "1,1")
    main(arguments(rooms, tmp_path, *flags, "--student_arch", "tiny", "--nb_epochs", 4, "--save_frequency", 4))
    every = steps(tmp_path)
    assert {row["lg"] > 0 for row in every} == {True, False}
    assert all((row["lg"] > 0) == (row["feat"] > 0) and row["sc"] > 0 for row in every)
    for number, row in enumerate(metrics(tmp_path)):
        here = every[3 * number : 3 * number + 3]
        looked = [step["lg"] for step in here if step["lg"] > 0]
        assert row["train_lg"] == pytest.approx(sum(looked) / max(1, len(looked)), rel=1e-4)
        assert row["train_sc"] == pytest.approx(sum(step["sc"] for step in here) / 3, rel=1e-4)


def test_published_weights_begin_at_a_tenth_of_the_rate_and_keep_their_licence(rooms, mini, unbroken, tmp_path):
    student, _ = load_model(unbroken / "student_best.safetensors")
    save_model(student, tmp_path / "published.safetensors", "CC-BY-NC-4.0")
    flags = ("--student_checkpoint", tmp_path / "published.safetensors", "--warmup_epochs", 1, "--scheduler", "none")
    main(arguments(rooms, tmp_path, *taught_by(mini, *flags), "--nb_epochs", 2, "--save_frequency", 3))
    assert [row["lr"] for row in steps(tmp_path)] == pytest.approx([0.001 / 3, 0.002 / 3, 0.001, 0.001, 0.001, 0.001])
    checkpoint = load_checkpoint(tmp_path / "checkpoints/e/last.pth")
    groups = checkpoint["training"]["optimizer_state_dict"]["param_groups"]
    assert [group["initial_lr"] for group in groups] == pytest.approx([1e-3, 1e-4])
    assert "random weights" not in console(tmp_path)
    licence = "that of its training data, CC-BY-NC-4.0"
    assert read_metadata(tmp_path / "student_final.safetensors")["license"] == licence
    assert train_distill_any_depth.open_network("x", tmp_path / "checkpoints/e/last.pth", "tiny")[1] == licence
    main(arguments(rooms, tmp_path, *taught_by(mini, *flags[2:]), "--nb_epochs", 3, "--save_frequency", 3, "--resume"))
    checkpoint = load_checkpoint(tmp_path / "checkpoints/e/last.pth")
    groups = checkpoint["training"]["optimizer_state_dict"]["param_groups"]
    assert [group["initial_lr"] for group in groups] == pytest.approx([1e-3, 1e-4]), "without the file, too"
    assert set(checkpoint["args"]["license"].split(", ")) == set(licence.split(", "))


def test_pictures_alone_are_enough(mini, tmp_path):
    write_images(tmp_path / "pictures", count=8, size=(60, 80))
    flags = ("--dataset", "images", "--dataset_dir", tmp_path / "pictures", "--nb_epochs", 6, "--save_frequency", 6)
    main(arguments("", tmp_path, *taught_by(mini), *flags, "--micro_batch", 3))
    found = [row["val_distance"] for row in metrics(tmp_path)]
    assert [row["val_n_images"] for row in metrics(tmp_path)] == [8] * 6
    assert found[-1] < found[0], "it comes closer to its teacher"
    assert "val_abs_rel" not in metrics(tmp_path)[0]
    assert load_checkpoint(tmp_path / "checkpoints/e/best_model.pth")["best"]["value"] == min(found)
    log = console(tmp_path)
    assert any(line.startswith("done: ") and "val_distance" in line for line in log.splitlines())
    assert "its 8 pictures teach, and compare the epochs too" in log
    card = (tmp_path / "student_best.md").read_text()
    assert "without splits: none was held out" in card and "`val`" not in card and "`test`" not in card
    assert "on the pictures that it learnt from" in card
    (parameters,) = re.findall(r"depth_anything`, ([\d.]+ M parameters)", card)
    assert f"depth_anything, {parameters} (" in log


ALIASES = ("--use_nyu_dataset", "--lr", 0.001, "--num_epochs", 1, "--global_crop_size", 100, "--device", "cpu")


@pytest.mark.parametrize("layout", ["a", "b"])
def test_real_frames_in_the_layouts_of_nyu(mini, samples_dir, tmp_path, run_cli, layout):
    data = write_nyu_of_livingroom(tmp_path / "nyu", samples_dir, train=10, test=2, layout=layout)
    given = ("--dataset_dir", data, "--output_dir", tmp_path, "--experiment_name", "e", "--batch_size", 4)
    main([str(x) for x in (*given, *ALIASES, *taught_by(mini), "--num_workers", 0, "--limit_train_batches", 1)])
    assert "--image_size 100 is no multiple of 14: 112 is used" in console(tmp_path)
    assert "of 9 training pairs have depth, 1 to validate" in console(tmp_path)
    best = tmp_path / "checkpoints/e/best_model.pth"
    flags = ("--checkpoint", best, "--image_size", 84, 112, "--json", tmp_path / "test.json", "--num_workers", 0)
    code, out, errors = run_cli(evaluate.main, *flags, "--output_dir", tmp_path)
    assert (code, errors) == (0, "") and "disparity_lsq, Eigen crop" in out
    report = json.loads((tmp_path / "test.json").read_text())
    assert report["scoring"]["protocol"] == "disparity_lsq" and report["n_images"] == 2
    assert report["data"]["rgb_filter"] == "bicubic" and report["data"]["max_depth"] == 10
    assert 0 < report["abs_rel"] < 1 and 0 < report["delta1"] <= 1, "in metres, so the fit is not in other units"


# -------------------------------------------------------------------------------------------------------------- options


def options_of(*flags):
    args = train_distill_any_depth.create_parser().parse_args([str(x) for x in flags])
    return args, train_distill_any_depth.check_options(args)


GIVEN = ("--teacher_checkpoints", "x.pth")


def test_a_recipe_sets_the_weights_and_a_weight_of_its_own_wins():
    for recipe in RECIPES:
        args, _ = options_of(*GIVEN, "--recipe", recipe)
        assert {key: getattr(args, key) for key in RECIPES[recipe]} == RECIPES[recipe]
    args, _ = options_of(*GIVEN, "--recipe", "paper", "--lambda_grad", 0.5, "--normalization", "global")
    assert (args.lambda_grad, args.normalization) == (0.5, "global")
    assert (args.lambda_sc, args.lambda_hdn) == (RECIPES["paper"]["lambda_sc"], 0.0)


def test_the_defaults_of_the_documents():
    args, notes = options_of(*GIVEN)
    expected = {"dataset": "nyu", "image_size": 392, "batch_size": 8, "learning_rate": 1e-4, "weight_decay": 1e-5,
                "scheduler": "cosine", "visualize_every": 100, "hdn_variant": "dr", "hdn_level": 3, "lambda_sc": 0.5,
                "lambda_lg": 0.5, "lambda_feat": 1.0, "lambda_grad": 0.2, "lambda_hdn": 0.8, "local_crops": 2,
                "teacher_models": ["depthanything-large"], "student_arch": "depthanything-base"}  # fmt: skip
    assert {key: getattr(args, key) for key in expected} == expected
    assert not notes


def test_the_documents_names_of_flags():
    args, notes = options_of(*GIVEN, "--lr", 0.5, "--num_epochs", 7, "--global_crop_size", 384, "--use_nyu_dataset")
    assert (args.learning_rate, args.nb_epochs, args.image_size, args.dataset) == (0.5, 7, 392, "nyu")
    assert notes == ["--image_size 384 is no multiple of 14: 392 is used"]


def test_no_closer_views_are_cut_where_nobody_looks_at_them():
    assert options_of(*GIVEN, "--lambda_lg", 0)[0].local_crops == 0
    assert options_of("--teacher_models", "ground_truth")[0].local_crops == 0
    args, _ = options_of(*GIVEN, "--fixed_views")
    assert (args.local_crops, args.lambda_lg, args.lambda_sc) == (0, 0.0, 0.5)


TRUTH = ("--teacher_models", "ground_truth")
BOTH = ("--teacher_models", "vitl", "ground_truth", *GIVEN)
UNCOMPARED = ("--lambda_sc", 0, "--lambda_lg", 0)
CACHED = (*GIVEN, "--cache_teacher", "x", "--lambda_feat", 0)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ((), "0 files for 1 networks"),
        ((*GIVEN, "y.pth"), "2 files for 1 networks"),
        ((*TRUTH, *GIVEN), "1 files for 0 networks"),
        ((*BOTH, "--teacher_weights", "1,2,3"), "3 for 2 teachers"),
        ((*GIVEN, "--teacher_weights", 1), "--teacher_weights has no effect"),
        ((*TRUTH, "--lambda_lg", 1), "--lambda_lg has no effect"),
        ((*TRUTH, "--lambda_feat", 1), "--lambda_feat has no effect"),
        ((*TRUTH, "--local_crops", 1), "--local_crops has no effect"),
        ((*TRUTH, "--local_scale", 0.1, 0.2), "--local_scale has no effect"),
        ((*TRUTH, "--teacher_precision", 32), "--teacher_precision has no effect"),
        ((*TRUTH, "--feature_margin", 0.5), "--feature_margin has no effect"),
        ((*TRUTH, "--dataset", "images"), "images has no depth"),
        ((*TRUTH, "--label_fraction", 0), "--label_fraction 0"),
        ((*GIVEN, "--label_fraction", 0.5), "--label_fraction has no effect"),
        ((*GIVEN, *UNCOMPARED, "--lambda_grad", 0, "--lambda_hdn", 0), "--lambda_feat alone teaches an encoder"),
        ((*BOTH, "--lambda_sc", 0, "--lambda_grad", 0, "--lambda_hdn", 0), "ground_truth teaches nothing"),
        ((*GIVEN, "--local_crops", 0), "--lambda_lg"),
        ((*GIVEN, "--lambda_lg", 0, "--local_crops", 2), "--local_crops has no effect"),
        ((*GIVEN, "--lambda_lg", 0, "--local_scale", 0.1, 0.2), "--local_scale has no effect"),
        ((*GIVEN, "--lambda_feat", 0, "--feature_margin", 0.5), "--feature_margin has no effect"),
        ((*GIVEN, "--lambda_hdn", 0, "--hdn_level", 2), "--hdn_level has no effect"),
        ((*GIVEN, "--lambda_hdn", 0, "--hdn_variant", "ds"), "--hdn_variant has no effect"),
        ((*TRUTH, "--lambda_sc", 0, "--lambda_grad", 0, "--lambda_hdn", 0), "nothing would be learnt"),
        ((*GIVEN, *UNCOMPARED, "--trim", 0.1), "--trim has no effect with --lambda_sc 0 and --lambda_lg 0"),
        ((*GIVEN, *UNCOMPARED, "--normalization", "hybrid"), "--normalization has no effect"),
        ((*GIVEN, *UNCOMPARED, "--recipe", "paper", "--hdn_variant", "ds"), "--hdn_variant has no effect"),
        ((*GIVEN, "--fixed_views", "--local_crops", 1), "--local_crops has no effect with --fixed_views"),
        ((*GIVEN, "--fixed_views", "--global_scale", 1, 1), "--global_scale has no effect with --fixed_views"),
        ((*GIVEN, "--fixed_views", "--lambda_lg", 1), "--lambda_lg has no effect with --fixed_views"),
        (CACHED, "--fixed_views"),
        ((*CACHED, "--fixed_views", "--augment"), "no --augment"),
        ((*CACHED, "--fixed_views", "--lambda_feat", 1), "--lambda_feat 0"),
        ((*CACHED, "--fixed_views", "--teacher_models", "vitl", "ground_truth"), "one network"),
        ((*CACHED, "--fixed_views", "--num_nodes", 2), "--num_nodes 1"),
        ((*GIVEN, "--device", "cpu", "--gpu_ids", 0), "beside --gpu_ids"),
    ],
)
def test_flags_that_are_refused(flags, named):
    with pytest.raises(OptionError, match=named):
        options_of(*flags)


def test_a_warm_up_as_long_as_the_run_is_refused_before_anything_is_opened(tmp_path, run_cli):
    flags = (*GIVEN, "--nb_epochs", 30, "--warmup_epochs", 30, "--output_dir", tmp_path)
    code, _, errors = run_cli(main, *flags)
    assert code == 2 and "--warmup_epochs 30 must be below --nb_epochs 30" in errors


def test_pictures_alone_are_validated_by_what_is_not_learnt():
    flags = (*GIVEN, *UNCOMPARED, "--dataset", "images", "--trim", 0.1, "--normalization", "local", "--hdn_level", 2)
    args, _ = options_of(*flags, "--lambda_hdn", 0)
    assert (args.trim, args.normalization, args.hdn_level, args.hdn_variant) == (0.1, "local", 2, "dr")
    assert options_of(*GIVEN, *UNCOMPARED)[0].trim == 0


@pytest.mark.parametrize("flags", [("--trim", 1), ("--trim", 1.5), ("--hdn_level", 9), ("--hdn_level", 0)])
def test_what_no_map_has_is_refused_by_the_parser(flags, run_cli):
    code, _, errors = run_cli(main, *GIVEN, *flags)
    assert code == 2 and f"argument {flags[0]}" in errors


def test_a_normalisation_in_contexts_needs_their_flags():
    args, _ = options_of(*GIVEN, "--recipe", "paper", "--hdn_level", 2)
    assert (args.hdn_level, args.lambda_hdn) == (2, 0)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--teacher_models", "tiny"), "holds depth_anything mini, not tiny"),
        (("--student_arch", "tiny", "--student_checkpoint", "MINI"), "holds depth_anything mini, not tiny"),
        (("--student_checkpoint", "nowhere.pth"), "nowhere.pth: there is no such file"),
        (
            ("--student_arch", "vitb", "--student_checkpoint", "no.pth"),
            "published as https://huggingface.co/depth-anything",
        ),
        (("--local_crops", 0), "--lambda_lg"),
        (("--global_scale", 0.9, 0.5), "--global_scale 0.9 0.5"),
        (("--device", "cpu", "--precision", 16), "--precision 16"),
        (("--image_size", 14), "--image_size 14"),
    ],
)
def test_what_is_refused_is_one_line_and_writes_nothing(rooms, mini, tmp_path, run_cli, flags, named):
    flags = [mini if flag == "MINI" else flag for flag in flags]
    code, _, errors = run_cli(main, *arguments(rooms, tmp_path, *taught_by(mini), *flags))
    assert code == 2
    assert named in errors and len(errors.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_network_of_another_kind_does_not_teach(rooms, tmp_path, run_cli):
    save_model(create_model("rgb_depth", base_channels=4), tmp_path / "eye.safetensors", "MIT")
    code, _, errors = run_cli(main, *arguments(rooms, tmp_path, *taught_by(tmp_path / "eye.safetensors")))
    assert code == 2 and "holds rgb_depth, not mini" in errors


# ------------------------------------------------------------------------------------------------------------- the menu


def example(number, *more):
    """The command that the menu would run, as arguments of ``main``."""
    printed = subprocess.run(
        ["bash", REPOSITORY / "run_distill_any_depth_examples.sh", str(number), *map(str, more)],
        capture_output=True, text=True, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHON": sys.executable, "DRY_RUN": "1"},
    )  # fmt: skip
    assert printed.returncode == 0, printed.stderr
    command = shlex.split(printed.stdout)
    assert command[1].endswith("train_distill_any_depth.py")
    return command[2:]


LARGE_TO_BASE = {"dataset": "nyu", "image_size": 392, "teacher_models": ["depthanything-large"],
                 "student_arch": "depthanything-base", "learning_rate": 1e-4, "weight_decay": 1e-5}  # fmt: skip
EXPECTED = {
    1: {**LARGE_TO_BASE, "batch_size": 8, "nb_epochs": 30, "warmup_epochs": 2, "dataset_dir": Path("data/nyu"),
        "teacher_checkpoints": [Path("checkpoints/large/teacher_model_converted.safetensors")]},
    2: {**LARGE_TO_BASE, "batch_size": 16, "nb_epochs": 100, "warmup_epochs": 0,
        "teacher_checkpoints": [Path("checkpoints/depth_anything_v2_vitl.pth")]},
    3: {"recipe": "paper", "image_size": 560, "learning_rate": 5e-5, "encoder_learning_rate": 5e-6},
    4: {"dataset": "images", "student_arch": "depthanything-small"},
    5: {"teacher_weights": [7, 3], "teacher_models": ["depthanything-large"] * 2},
    6: {"dataset": "simulated", "teacher_models": ["ground_truth"], "student_arch": "mini"},
    7: {"dataset": "simulated", "teacher_models": ["mini"], "student_arch": "tiny"},
    8: {**LARGE_TO_BASE, "experiment_name": "before", "checkpoints": "7"},
}  # fmt: skip


@pytest.mark.parametrize("number", range(1, 9))
def test_every_example_is_a_promise_that_is_kept(number):
    args, notes = options_of(*example(number, *(("before", "7") if number == 8 else ()), "--seed", 3))
    assert args.seed == 3
    assert {key: getattr(args, key) for key in EXPECTED[number]} == EXPECTED[number]
    assert not notes


def test_the_small_examples_follow_each_other(rooms, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = ("--dataset_dir", rooms, *SMALL, "--save_frequency", 2)
    for number in (6, 7):
        main(example(number, *quick, "--nb_epochs", 1))
        assert Path(f"output/small_{'teacher' if number == 6 else 'student'}/student_final.safetensors").is_file()
    name = "distill_any_depth_simulated_BS4_Lr0.001"
    resumed = example(8, name, 1, *quick, "--nb_epochs", 2, "--warmup_epochs", 0, "--dataset", "simulated", "--augment")
    teacher = "output/small_teacher/student_best.safetensors"
    main([*resumed, *map(str, taught_by(teacher, "--output_dir", "output/small_student"))])
    assert load_checkpoint(Path(f"output/small_student/checkpoints/{name}/last.pth"))["epoch"] == 2


def test_the_menu_refuses_what_it_has_not():
    done = subprocess.run(
        ["bash", REPOSITORY / "run_distill_any_depth_examples.sh", "9"], capture_output=True, text=True, input=""
    )
    assert done.returncode == 2
    assert done.stderr == "run_distill_any_depth_examples.sh: error: there is no example '9'; choose 1 to 8\n"
