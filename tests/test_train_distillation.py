"""Distillation: what the task learns from whom, and the script from end to end, on networks of a few pixels."""

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from make_data import write_batvision_v1, write_batvision_v2, write_csv, write_nyu_b

import evaluate
import train_distillation
import train_rgb_depth
from dataloaders import create_dataset
from models import MODELS, create_model
from models.rgb_depth_model import RGBDepthNet
from page import open_network
from training.checkpoint import license_of, load_checkpoint, load_model, restore_model, save_checkpoint, save_model
from training.model_card import model_card
from training.task import Guest
from training.tasks import DistillationTask
from utils_distillation_loss import FEATURE_LOSSES, FeatureDistillation, ResponseDistillation

SMALL = ("--image_size", 32, "--base_channels", 4, "--batch_size", 4, "--num_workers", 0, "--learning_rate", 0.003)
SPECTROGRAMS = ("--audio_format", "spectrogram")  # which the stand-ins take


class Ear(RGBDepthNet):
    """The smallest network that hears."""

    name = "ear"
    inputs = ("audio",)

    def __init__(self, base_channels=4, bilinear=True, max_depth=12.0, in_channels=2):
        super().__init__(base_channels, bilinear, max_depth, in_channels)


class RelativeEye(RGBDepthNet):
    """Answers with disparities."""

    name = "relative_eye"
    output = "disparity"

    def forward(self, x, return_features=False):
        depth, features = super().forward(x, return_features=True)
        disparity = 7 / depth + 3
        return (disparity, features) if return_features else disparity


class EyeAndEar(Ear):
    """Looks, and is given the sound too."""

    name = "eye_and_ear"
    inputs = ("rgb", "audio")

    def forward(self, rgb, audio, return_features=False):
        return super().forward(audio + rgb[:, :2], return_features)


@pytest.fixture(scope="module", autouse=True)
def stand_ins():
    with pytest.MonkeyPatch.context() as patch:
        for model in (Ear, RelativeEye, EyeAndEar):
            patch.setitem(MODELS, model.name, model)
        yield


# ------------------------------------------------------------------------------------------------------------- the task


def models(teacher="rgb_depth", width=4):
    torch.manual_seed(0)
    return create_model("ear", base_channels=4), create_model(teacher, base_channels=width).eval()


def a_batch(labels=(True, True)):
    generator = torch.Generator().manual_seed(1)
    rand = lambda channels: torch.rand(len(labels), channels, 32, 32, generator=generator)  # noqa: E731
    depth = (1 + 5 * rand(1)) * torch.tensor(labels)[:, None, None, None]
    return {"audio": rand(2), "rgb": rand(3), "depth": depth, "id": [str(i) for i in range(len(labels))]}


def matching(student, teacher, kind="mse", levels=("d1", "d2")):
    widths = [{level: shape[0] for level, shape in model.feature_shapes().items()} for model in (student, teacher)]
    return FeatureDistillation(*widths, levels, kind)


def test_the_loss_is_the_weighted_sum_of_its_parts():
    student, teacher = models()
    task = DistillationTask(student, teacher, ResponseDistillation("mse"), matching(student, teacher),
                            lambda_task=2.0, lambda_kd=3.0, lambda_feat=5.0)  # fmt: skip
    batch = a_batch()
    out = task(batch, 0.0)
    assert out["loss"].item() == pytest.approx((2 * out["task"] + 3 * out["response"] + 5 * out["feature"]).item())
    assert out["counts"] == {"task": 2}, "the other parts are over all images"
    assert out["feature"].item() == pytest.approx((out["feature_d1"] + out["feature_d2"]).item())
    taught = teacher(batch["rgb"])
    assert out["task"].item() == pytest.approx((out["depth"] - batch["depth"]).abs().mean().item(), rel=1e-5)
    assert out["response"].item() == pytest.approx((out["depth"] - taught).square().mean().item(), rel=1e-5)


def test_a_teacher_answers_in_the_metres_of_a_scaled_scene():
    student, teacher = models()
    batch = a_batch()
    batch["scale"] = torch.tensor([0.5, 2.0])
    out = DistillationTask(student, teacher, ResponseDistillation())(batch, 0.0)
    taught = teacher(batch["rgb"]) * batch["scale"][:, None, None, None]
    assert out["response"].item() == pytest.approx((out["depth"] - taught).abs().mean().item(), rel=1e-5)
    relative = create_model("relative_eye", base_channels=4).eval()
    task = DistillationTask(student, relative, ResponseDistillation("ssi", "disparity"))
    unscaled = {key: value for key, value in batch.items() if key != "scale"}
    student.eval()
    assert torch.equal(task(batch, 0.0)["response"], task(unscaled, 0.0)["response"]), "disparity has no metres"


def test_the_schedules():
    student, teacher = models()
    weights = {"lambda_task": 2.0, "lambda_kd": 3.0, "lambda_feat": 10.0}
    adaptive = DistillationTask(student, teacher, ResponseDistillation(), schedule="adaptive", **weights)
    assert adaptive.weights(0.0) == pytest.approx((1.0, 3.0, 10.0))
    assert adaptive.weights(0.5) == pytest.approx((1.5, 1.95, 6.5))
    assert adaptive.weights(1.0) == pytest.approx((2.0, 0.9, 3.0))
    constant = DistillationTask(student, teacher, ResponseDistillation(), **weights)
    assert constant.weights(0.0) == constant.weights(1.0) == (2.0, 3.0, 10.0)
    batch = a_batch()
    out = adaptive(batch, 0.5)
    assert out["loss"].item() == pytest.approx((1.5 * out["task"] + 1.95 * out["response"]).item())


def step(task, batch):
    optimizer = torch.optim.AdamW(task.trainable(), lr=0.1)
    task.train()
    loss = task(batch, 0.3)["loss"]
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("kind", sorted(FEATURE_LOSSES))
def test_the_teacher_stays_as_it_is_to_the_bit(kind):
    student, teacher = models(width=6)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    task = DistillationTask(student, teacher, ResponseDistillation(), matching(student, teacher, kind), lambda_feat=1.0)
    at_first = {key: value.clone() for key, value in task.state_dict().items()}
    step(task, a_batch())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any(module.training for module in task.teacher.modules())
    moved = {key for key, value in task.state_dict().items() if not torch.equal(value, at_first[key])}
    constant = {"student.head.max_depth"}
    learning = {key for key in at_first if not key.startswith("teacher.")} - constant
    assert moved == learning, "everything else learns"
    task.eval().train()
    assert not teacher.training


def test_the_teacher_is_nobodys_to_keep():
    student, teacher = models()
    task = DistillationTask(student, teacher, ResponseDistillation(), matching(student, teacher), lambda_feat=1.0)
    assert set(task.extra_state()) == {
        "teacher.fingerprint",
        "features.adapters.d1.weight",
        "features.adapters.d2.weight",
    }
    owned = {id(parameter) for parameter in task.trainable()}
    assert not owned & {id(parameter) for parameter in teacher.parameters()}
    assert not [key for key in task.student.state_dict() if "teacher" in key]


def test_another_teacher_is_noticed():
    student, teacher = models()
    task = DistillationTask(student, teacher, ResponseDistillation())
    state = task.extra_state()
    again = DistillationTask(student, models()[1], ResponseDistillation())
    again.load_extra_state(state)
    with torch.no_grad():
        models_teacher = models()[1]
        models_teacher.head.project.bias.add_(1e-6)
    other = DistillationTask(student, models_teacher, ResponseDistillation())
    with pytest.raises(RuntimeError, match="teacher"):
        other.load_extra_state(state)
    with pytest.raises(RuntimeError, match="teacher"):
        other.load_extra_state({})


def test_fingerprints_know_names_values_and_statistics():
    def of(model):
        return Guest(model).fingerprint.tolist()

    assert of(models()[1]) == of(models()[1].to(memory_format=torch.channels_last))
    later = models()[1]
    later.encoder.levels[0][1].running_mean[0] += 1e-3
    assert of(later) != of(models()[1])


def test_holes_and_unlabelled_images_learn_from_the_teacher_alone():
    student, teacher = models()
    task = DistillationTask(student, teacher, ResponseDistillation())
    batch = a_batch((True, False))
    batch["depth"][0, :, :16] = 0
    out = task(batch, 0.0)
    taught = teacher(batch["rgb"])
    (gradient,) = torch.autograd.grad(out["loss"], out["depth"], retain_graph=True)
    pixels = 32 * 32
    to_teacher = (out["depth"] - taught).sign() / pixels / 2
    assert torch.allclose(gradient[1], to_teacher[1]), "no label: the teacher at each pixel"
    assert torch.allclose(gradient[0, :, :16], to_teacher[0, :, :16]), "a hole: the teacher"
    to_label = (out["depth"] - batch["depth"]).sign() / (pixels / 2) / 2  # the mean over valid pixels, one of 2 images
    assert torch.allclose(gradient[0, :, 16:], (to_teacher + to_label)[0, :, 16:])


def gradient_of_a_process(rank, world, port, labels, path):
    """Save the gradient of one process's share of a batch, averaged over the processes as DDP does."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    torch.manual_seed(0)
    student, teacher = Ear(), RGBDepthNet(base_channels=4)
    task = DistillationTask(student, teacher, ResponseDistillation()).eval()
    batch = a_batch(labels)
    task({key: value[rank::world] for key, value in batch.items()}, 0.0)["loss"].backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in student.parameters()])
    torch.distributed.all_reduce(gradient)
    if rank == 0:
        torch.save(gradient / world, path)
    torch.distributed.destroy_process_group()


def test_two_processes_learn_what_one_does_wherever_the_labels_are(tmp_path):
    labels = (True, False, True, False)  # the first process has them all
    gradients = []
    for world in (1, 2):
        path = tmp_path / f"{world}.pt"
        torch.multiprocessing.spawn(gradient_of_a_process, (world, 29500 + os.getpid() % 2000, labels, path), world)
        gradients.append(torch.load(path))
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-6)


def test_no_label_at_all_is_no_reason_to_stop():
    student, teacher = models()
    out = DistillationTask(student, teacher, ResponseDistillation())(a_batch((False, False)), 0.0)
    assert out["task"].item() == 0
    assert out["counts"] == {"task": 0}
    assert out["loss"].item() == out["response"].item() > 0


def test_the_teacher_is_shown_what_it_was_trained_on():
    class Normalised(RGBDepthNet):
        imagenet_normalize = True

        def forward(self, x, return_features=False):
            self.seen = x
            return super().forward(x, return_features)

    student, _ = models()
    teacher = Normalised(base_channels=4)
    batch = a_batch()
    DistillationTask(student, teacher, ResponseDistillation())(batch, 0.0)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    assert torch.allclose(teacher.seen, (batch["rgb"] - mean) / std, atol=1e-6)


# ----------------------------------------------------------------------------------------------------------- the script


@pytest.fixture(scope="module")
def teacher(rooms, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    flags = ("--dataset", "simulated", "--dataset_dir", rooms, "--output_dir", folder, "--experiment_name", "e", *SMALL)
    train_rgb_depth.main([str(x) for x in (*flags, "--nb_epochs", 2)])
    return folder / "checkpoints/e/best_model.pth"


def other_teacher(folder, name="rgb_depth", **changed):
    """A checkpoint of an untrained network."""
    torch.manual_seed(7)
    model = create_model(name, base_channels=4)
    preprocessing = {"image_size": 32, "audio_format": "spectrogram", "audio_samples": 3112, **changed}
    checkpoint = {
        "format": 1,
        "model": {"name": name, "config": model.config},
        "model_state_dict": model.state_dict(),
        "preprocessing": preprocessing,
        "epoch": 1,
    }
    save_checkpoint(checkpoint, Path(folder) / f"{name}.pth")
    return Path(folder) / f"{name}.pth"


def arguments(rooms, output, teacher, *more):
    return [
        "--dataset", "simulated", "--dataset_dir", rooms, "--output_dir", output, "--experiment_name", "e",
        "--teacher_checkpoint", teacher, "--student_model", "ear", *SPECTROGRAMS, *SMALL, *more,
    ]  # fmt: skip


FULL = ("--nb_epochs", 4, "--augment", "--label_fraction", 0.25, "--lambda_feat", 0.1, "--schedule", "adaptive")


def weights(folder, name="last.pth"):
    return load_checkpoint(Path(folder) / "checkpoints" / "e" / name)["model_state_dict"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def rows_of(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def unbroken(rooms, teacher, tmp_path_factory):
    """Four epochs in one go, with everything on."""
    folder = tmp_path_factory.mktemp("unbroken")
    train_distillation.main([str(x) for x in arguments(rooms, folder, teacher, *FULL)])
    return folder


def test_every_part_stands_in_the_csv(unbroken):
    rows = rows_of(unbroken / "results/e/metrics.csv")
    assert len(rows) == 4
    parts = {
        f"train_{part}"
        for part in ("loss", "task", "labelled", "response", "feature", "feature_d1", "feature_d2", "feature_d3")
    }
    assert {key for key in rows[0] if key.startswith("train_")} == parts
    assert all(cell for row in rows for cell in row.values())
    steps = rows_of(unbroken / "logs/e/steps.csv")
    for number, row in enumerate(steps):
        progress = number / len(steps)
        task, taught = 0.5 + 0.5 * progress, 1 - 0.7 * progress
        total = task * float(row["labelled"]) * float(row["task"]) + taught * (
            float(row["response"]) + 0.1 * float(row["feature"])
        )
        assert float(row["loss"]) == pytest.approx(total, rel=1e-4)


def test_an_epoch_is_all_pairs_with_a_label_or_without(unbroken):
    assert len(rows_of(unbroken / "logs/e/steps.csv")) == 4 * 12 // 4
    log = (unbroken / "logs/e/console.log").read_text()
    assert "3 of 12 training pairs have depth" in log
    assert "taught nothing" not in log
    assert "teacher: rgb_depth" in log


def test_pictures_are_drawn(unbroken):
    assert (unbroken / "results/e/epoch_0004.png").stat().st_size > 10_000


def test_the_checkpoint_holds_the_student_and_no_teacher(unbroken):
    checkpoint = load_checkpoint(unbroken / "checkpoints/e/last.pth")
    assert checkpoint["model"]["name"] == "ear"
    assert checkpoint["model_state_dict"].keys() == create_model("ear", base_channels=4).state_dict().keys()
    assert set(checkpoint["training"]["task_state_dict"]) == {
        "teacher.fingerprint",
        *(f"features.adapters.{level}.weight" for level in ("d1", "d2", "d3")),
    }
    assert checkpoint["args"]["feature_loss"] == "mse"
    assert checkpoint["args"]["response_loss"] == "l1"


def test_a_stopped_run_ends_as_the_unbroken_one(rooms, teacher, unbroken, tmp_path):
    begin = [str(x) for x in arguments(rooms, tmp_path, teacher, *FULL)]
    train_distillation.main([*begin, "--stop_after_epoch", "1"])
    assert not same(weights(tmp_path), weights(unbroken))
    train_distillation.main([*begin, "--resume"])
    assert same(weights(tmp_path), weights(unbroken))
    states = [
        load_checkpoint(f / "checkpoints/e/last.pth")["training"]["task_state_dict"] for f in (tmp_path, unbroken)
    ]
    assert same(*states)
    for table in ("results/e/metrics.csv", "logs/e/steps.csv"):
        assert (tmp_path / table).read_bytes() == (unbroken / table).read_bytes()


def test_a_resume_with_another_teacher_is_refused(rooms, unbroken, tmp_path, run_cli):
    other = other_teacher(tmp_path)
    before = (unbroken / "checkpoints/e/last.pth").read_bytes()
    flags = arguments(rooms, unbroken, other, *FULL, "--nb_epochs", 6, "--resume")
    code, _, errors = run_cli(train_distillation.main, *flags)
    assert code == 2
    assert len(errors.strip().splitlines()) == 1
    assert "the teacher is not the one that the run began with" in errors
    assert (unbroken / "checkpoints/e/last.pth").read_bytes() == before


def test_a_teacher_that_moved_is_the_same_teacher(rooms, teacher, tmp_path, run_cli):
    begin = (*SMALL, "--nb_epochs", 2)
    assert (
        run_cli(train_distillation.main, *arguments(rooms, tmp_path, teacher, *begin, "--stop_after_epoch", 1))[0] == 0
    )
    moved = tmp_path / "moved.pth"
    moved.write_bytes(teacher.read_bytes())
    code, out, _ = run_cli(train_distillation.main, *arguments(rooms, tmp_path, moved, *begin, "--resume"))
    assert code == 0
    assert "other settings" not in out


def test_depth_is_not_needed_to_be_taught(tmp_path, teacher, run_cli):
    """No label at all: the depth files of the training split are not even there."""
    write_batvision_v2(tmp_path / "data", locations=["Hall"])
    for row in rows_of(tmp_path / "data/Hall/train.csv"):
        (tmp_path / "data/Hall/depth" / row["depth file name"]).write_bytes(b"broken")
    flags = ("--dataset", "batvisionv2", "--dataset_dir", tmp_path / "data", "--nb_epochs", 1, "--label_fraction", 0)
    code, out, errors = run_cli(train_distillation.main, *arguments("", tmp_path, teacher), *flags)
    assert (code, errors) == (0, "")
    assert "0 of 6 training pairs have depth" in out
    (row,) = rows_of(tmp_path / "results/e/metrics.csv")
    assert float(row["train_task"]) == 0
    assert float(row["train_loss"]) == float(row["train_response"]) > 0


def test_it_learns_from_the_teacher_alone(rooms, teacher, tmp_path, run_cli):
    flags = ("--nb_epochs", 15, "--label_fraction", 0, "--save_frequency", 15)
    assert run_cli(train_distillation.main, *arguments(rooms, tmp_path, teacher, *flags))[0] == 0
    responses = [float(row["train_response"]) for row in rows_of(tmp_path / "results/e/metrics.csv")]
    assert responses[-1] < 0.7 * responses[0]


def test_the_student_begins_as_it_would_without_a_teacher(rooms, teacher, tmp_path, run_cli):
    """Whatever the teacher and the adapters draw: two runs that teach differently share their first weights."""
    frozen = ("--nb_epochs", 1, "--learning_rate", 1e-12, "--weight_decay", 0, "--precision", "32")
    other = other_teacher(tmp_path)
    for folder, flags in (("a", (teacher, *frozen)), ("b", (other, *frozen, "--lambda_feat", 1))):
        assert run_cli(train_distillation.main, *arguments(rooms, tmp_path / folder, *flags))[0] == 0
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.allclose(a[key], b[key]) for key in a if key.endswith("weight"))


def test_the_students_licence_is_its_teachers(rooms, tmp_path, run_cli):
    torch.manual_seed(0)
    save_model(create_model("depth_anything", preset="mini"), tmp_path / "eye.safetensors", "CC-BY-NC-4.0")
    limits = ("--nb_epochs", 1, "--limit_train_batches", 1, "--limit_val_batches", 1)
    flags = arguments(rooms, tmp_path, tmp_path / "eye.safetensors", *limits)
    assert run_cli(train_distillation.main, *flags)[0] == 0
    path = tmp_path / "checkpoints/e/best_model.pth"
    model, checkpoint = load_model(path)
    assert license_of(model, checkpoint, path) == "CC-BY-NC-4.0"
    tuned = ("--init_from", path, "--experiment_name", "tuned", *limits)
    assert run_cli(train_distillation.main, *arguments(rooms, tmp_path, other_teacher(tmp_path), *tuned))[0] == 0
    path = tmp_path / "checkpoints/tuned/best_model.pth"
    assert "CC-BY-NC-4.0" in license_of(*load_model(path), path), "that of the weights with which it began"


def test_a_teacher_of_disparities_takes_the_loss_that_fits(rooms, tmp_path, run_cli):
    flags = arguments(rooms, tmp_path, other_teacher(tmp_path, "relative_eye"), "--nb_epochs", 1)
    code, _, errors = run_cli(train_distillation.main, *flags)
    assert (code, errors) == (0, "")
    assert load_checkpoint(tmp_path / "checkpoints/e/last.pth")["args"]["response_loss"] == "ssi"


def test_a_teacher_of_another_size_is_warned_about(rooms, tmp_path, run_cli):
    flags = arguments(rooms, tmp_path, other_teacher(tmp_path, image_size=64), "--nb_epochs", 1)
    code, out, _ = run_cli(train_distillation.main, *flags)
    assert code == 0
    assert "warning: the teacher was trained at image size 64 and is shown 32" in out


HEARING = sorted(name for name, model in MODELS.items() if "audio" in model.inputs)


@pytest.mark.parametrize("student", HEARING)
def test_every_network_that_hears_is_taught(rooms, teacher, tmp_path, run_cli, student):
    flags = ("--nb_epochs", 1, "--limit_train_batches", 2, "--limit_val_batches", 1, "--student_model", student)
    flags += ("--audio_format", "log_spectrogram", "--label_fraction", 0.5)
    code, _, errors = run_cli(train_distillation.main, *arguments(rooms, tmp_path, teacher, *flags))
    assert (code, errors) == (0, "")
    model = load_checkpoint(tmp_path / "checkpoints/e/last.pth")["model"]
    assert model["name"] == student
    assert model["config"]["max_depth"] == 12
    assert model["config"].get("compress_input", False) is False, "the spectrogram is logarithmic already"


def test_the_flags_of_the_student_arrive(rooms, teacher, tmp_path, run_cli):
    flags = ("--nb_epochs", 1, "--limit_train_batches", 1, "--student_model", "binaural_attention", "--no-bilinear")
    flags += ("--attention_levels", 4, 5, "--share_ears", "--lambda_feat", 0.1, "--limit_val_batches", 1)
    code, _, errors = run_cli(train_distillation.main, *arguments(rooms, tmp_path, teacher, *flags))
    assert (code, errors) == (0, "")
    config = load_checkpoint(tmp_path / "checkpoints/e/last.pth")["model"]["config"]
    assert config["attention_levels"] == [4, 5]
    assert config["share_ears"] is True
    assert config["bilinear"] is False


def test_the_flags_of_a_student_with_bins_arrive(rooms, teacher, tmp_path, run_cli):
    flags = ("--nb_epochs", 1, "--limit_train_batches", 1, "--student_model", "adabins_audio", "--no-bilinear")
    flags += ("--min_depth", 0.5, "--attention_levels", 5, "--limit_val_batches", 1)
    code, _, errors = run_cli(train_distillation.main, *arguments(rooms, tmp_path, teacher, *flags))
    assert (code, errors) == (0, "")
    config = load_checkpoint(tmp_path / "checkpoints/e/last.pth")["model"]["config"]
    assert (config["min_depth"], config["bilinear"], config["attention_levels"]) == (0.5, False, [5])


def test_what_was_taught_without_a_label_is_scored(rooms, teacher, tmp_path, run_cli):
    flags = ("--nb_epochs", 1, "--limit_train_batches", 1, "--label_fraction", 0)
    assert run_cli(train_distillation.main, *arguments(rooms, tmp_path, teacher, *flags))[0] == 0
    best = tmp_path / "checkpoints/e/best_model.pth"
    code, out, errors = run_cli(evaluate.main, "--checkpoint", best, "--output_dir", tmp_path, "--num_workers", 0)
    assert (code, errors) == (0, "")
    assert "no baselines: no training pair has depth" in out


@pytest.mark.parametrize("kind", sorted(FEATURE_LOSSES))
def test_every_feature_loss_trains(rooms, teacher, tmp_path, run_cli, kind):
    flags = ("--nb_epochs", 1, "--lambda_feat", 0.1, "--feature_loss", kind, "--feature_levels", "x5", "d1")
    flags += ("--limit_train_batches", 2, "--limit_val_batches", 1, "--response_loss", "silog")
    code, _, errors = run_cli(train_distillation.main, *arguments(rooms, tmp_path, teacher, *flags, "--lambda_kd", 0.5))
    assert (code, errors) == (0, "")


# ------------------------------------------------------------------------------------------------------------ bad input


def refused(run_cli, folder, *flags):
    code, _, errors = run_cli(train_distillation.main, *flags)
    assert code == 2
    assert len(errors.strip().splitlines()) == 1, errors
    assert "Traceback" not in errors
    assert not (Path(folder) / "checkpoints").exists(), "nothing is written before all is in order"
    return errors


SEES = ("--student_model", "multimodal_fusion")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--lambda_kd", 0), "train_binaural_attention.py"),
        (("--feature_loss", "cwd"), "--feature_loss"),
        (("--feature_levels", "d1"), "--feature_levels"),
        (("--feature_adapters", "all"), "--feature_adapters"),
        (("--temperature", 2), "--temperature"),
        (("--lambda_feat", 1, "--feature_loss", "mse", "--temperature", 2), "--temperature"),
        (("--lambda_feat", 1, "--feature_loss", "attention", "--feature_adapters", "all"), "--feature_adapters"),
        (("--lambda_feat", 1, "--feature_levels", "d1", "d7"), "d7"),
        (("--lambda_feat", 1, "--feature_loss", "similarity", "--batch_size", 1), "--batch_size 2"),
        (("--lambda_feat", 1, "--feature_loss", "similarity", "--micro_batch", 1), "--micro_batch 1"),
        ((*SEES, "--cache_teacher", "answers"), "--cache_teacher: --student_model multimodal_fusion looks"),
        ((*SEES, "--augment_scale", 0.2, "--audio_format", "interaural"), "does not show the scale"),
        (("--lambda_feat", 1, "--lambda_kd", 0, "--response_loss", "l1"), "--response_loss"),
        (("--label_fraction", 0, "--lambda_task", 1), "--lambda_task"),
        (("--label_fraction", 0, "--response_loss", "ssi"), "metres"),
        (("--label_fraction", 0, "--lambda_kd", 0, "--lambda_feat", 1), "metres"),
        (("--lambda_task", 0, "--response_loss", "ssi"), "metres"),
        (("--attention_levels", 2, 3), "--attention_levels"),
        (("--student_model", "unet_baseline", "--bilinear"), "--bilinear"),
        (("--student_model", "unet_baseline", "--share_ears"), "--share_ears"),
        (("--student_model", "unet_baseline", "--lambda_feat", 1), "e1 e2"),
        (("--image_size", 40), "32 or 48"),
    ],
)
def test_flags_that_cannot_be_honoured(rooms, teacher, tmp_path, run_cli, flags, named):
    assert named in refused(run_cli, tmp_path, *arguments(rooms, tmp_path, teacher, *flags))


def test_a_teacher_of_disparities_teaches_no_metres(rooms, tmp_path, run_cli):
    other = other_teacher(tmp_path, "relative_eye")
    assert "ssi" in refused(run_cli, tmp_path, *arguments(rooms, tmp_path, other, "--response_loss", "l1"))
    assert "metres" in refused(run_cli, tmp_path, *arguments(rooms, tmp_path, other, "--label_fraction", 0))


def test_a_teacher_must_see(rooms, tmp_path, run_cli):
    errors = refused(run_cli, tmp_path, *arguments(rooms, tmp_path, other_teacher(tmp_path, "ear")))
    assert "ear takes audio" in errors


def test_a_teacher_that_hears_too_must_hear_the_same(rooms, tmp_path, run_cli):
    other = other_teacher(tmp_path, "eye_and_ear", audio_format="mel")
    assert "audio_format mel" in refused(run_cli, tmp_path, *arguments(rooms, tmp_path, other))
    same_ears = other_teacher(tmp_path, "eye_and_ear")
    code, _, errors = run_cli(train_distillation.main, *arguments(rooms, tmp_path, same_ears, "--nb_epochs", 1))
    assert (code, errors) == (0, "")


def test_what_would_not_fit_the_ears_is_refused(rooms, tmp_path, teacher, run_cli):
    flags = arguments(rooms, tmp_path, teacher)
    assert "takes spectrograms" in refused(run_cli, tmp_path, *flags, "--audio_format", "interaural")
    assert "needs --audio_format interaural" in refused(run_cli, tmp_path, *flags, "--augment_scale", 0.2)
    both = other_teacher(tmp_path, "eye_and_ear")
    heard = (*arguments(rooms, tmp_path, both), "--augment_scale", 0.2)
    assert "the teacher hears and sees" in refused(run_cli, tmp_path, *heard, "--student_model", "binaural_attention",
                                                   "--audio_format", "interaural")  # fmt: skip


def test_a_teacher_that_is_not_there(rooms, tmp_path, run_cli):
    assert "gone.pth" in refused(run_cli, tmp_path, *arguments(rooms, tmp_path, tmp_path / "gone.pth"))


@pytest.mark.parametrize(("write", "name"), [(write_batvision_v1, "batvisionv1"), (write_nyu_b, "nyu")])
def test_data_without_pictures_or_sound(tmp_path, teacher, run_cli, write, name):
    options = {"camera": False} if name == "batvisionv1" else {}
    write(tmp_path / "data", **options)
    flags = ("--dataset", name, "--dataset_dir", tmp_path / "data")
    errors = refused(run_cli, tmp_path, *arguments("", tmp_path, teacher), *flags)
    assert ("no camera" in errors) if name == "batvisionv1" else ("no audio" in errors)


def without_depth(folder):
    """Pairs of picture and echo: no depth map, and not one named."""
    write_batvision_v2(folder, locations=["Hall"])
    shutil.rmtree(folder / "Hall/depth")
    for split in ("train", "val", "test"):
        rows = rows_of(folder / f"Hall/{split}.csv")
        empty = [{**row, "depth path": "", "depth file name": ""} for row in rows]
        write_csv(folder / f"Hall/{split}.csv", [list(rows[0]), *(list(row.values()) for row in empty)])
    return ("--dataset", "batvisionv2", "--dataset_dir", folder)


def test_pairs_of_picture_and_echo_are_enough(tmp_path, teacher, run_cli):
    data = without_depth(tmp_path / "data")
    flags = (*arguments("", tmp_path, teacher, "--label_fraction", 0, "--nb_epochs", 3), *data)
    assert run_cli(train_distillation.main, *flags, "--stop_after_epoch", 1)[0] == 0
    code, out, errors = run_cli(train_distillation.main, *flags, "--resume")
    assert (code, errors) == (0, "")
    assert "epochs are compared by the distance from the teacher" in (tmp_path / "logs/e/console.log").read_text()
    rows = rows_of(tmp_path / "results/e/metrics.csv")
    distances = [float(row["val_distance"]) for row in rows]
    assert "val_rmse" not in rows[0]
    best = load_checkpoint(tmp_path / "checkpoints/e/best_model.pth")
    assert best["best"] == {"value": min(distances), "epoch": best["epoch"], "criterion": "val_distance"}
    assert f"val_distance {min(distances):.4f} m from the teacher" in out

    student = restore_model(best, tmp_path)
    val = create_dataset("batvisionv2", data[-1], "val", image_size=32, modalities={"audio", "rgb"})
    eye = load_model(teacher)[0]
    with torch.no_grad():
        gaps = [(student(pair["audio"][None]) - eye(pair["rgb"][None])).abs().mean().item() for pair in val]
    assert min(distances) == pytest.approx(np.mean(gaps), rel=2e-2), "the mean of |student - teacher|, bf16 or not"

    path = tmp_path / "checkpoints/e/best_model.pth"
    card = model_card(
        "student", "", student, best["preprocessing"], best, takes=("audio",), license="MIT", versions=best["versions"]
    )
    assert f"distance from the teachers' answers {min(distances):.4f} m" in card and "RMSE" not in card
    assert "not from measured depth" in card
    assert ("validation distance from the teacher", f"{min(distances):.3f} m") in open_network(path).facts
    code, _, errors = run_cli(evaluate.main, "--checkpoint", path, "--num_workers", 0, "--output_dir", tmp_path)
    assert code == 2 and "not one of the 3 test pairs has a valid depth pixel" in errors


@pytest.mark.parametrize("labels", [True, False])
def test_a_teacher_that_answers_no_number_ends_the_run(rooms, teacher, tmp_path, run_cli, labels):
    """A student would be at no distance from it, and the best there is."""
    broken = torch.load(teacher, weights_only=True)
    broken["model_state_dict"]["head.project.weight"].fill_(torch.nan)
    torch.save(broken, tmp_path / "broken.pth")
    data = () if labels else ("--label_fraction", 0, *without_depth(tmp_path / "data"))
    flags = (*arguments(rooms, tmp_path, tmp_path / "broken.pth", "--nb_epochs", 1), *data)
    code, _, errors = run_cli(train_distillation.main, *flags)
    assert code == 2 and "not a number at step 1" in errors
    assert not list((tmp_path / "checkpoints").rglob("*.pth"))


def test_the_distance_from_no_number_is_none():
    student, eye = models()
    task = DistillationTask(student, eye, ResponseDistillation("l1"))
    batch = {"audio": torch.rand(2, 2, 32, 32), "rgb": torch.rand(2, 3, 32, 32)}
    assert task.distance(batch).isfinite().all()
    torch.nn.init.constant_(eye.head.project.weight, torch.nan)
    assert task.distance(batch).isnan().all()


def test_a_teacher_of_disparities_cannot_compare_epochs_in_metres(tmp_path, run_cli):
    data = without_depth(tmp_path / "data")
    train = rows_of(data[-1] / "Hall/train.csv")
    (data[-1] / "Hall/depth").mkdir()
    np.save(data[-1] / "Hall/depth/1.npy", np.full((24, 40), 2000, np.uint16))
    labelled = [{**row, "depth path": "Hall/depth/", "depth file name": "1.npy"} for row in train]
    write_csv(data[-1] / "Hall/train.csv", [list(train[0]), *(list(row.values()) for row in labelled)])
    other = other_teacher(tmp_path, "relative_eye")
    assert "val pairs has a valid depth" in refused(run_cli, tmp_path, *arguments("", tmp_path, other), *data)


def test_a_validation_whose_depth_maps_are_all_hole_is_refused_even_so(tmp_path, teacher, run_cli):
    write_batvision_v2(tmp_path / "data", locations=["Hall"])
    for row in rows_of(tmp_path / "data/Hall/val.csv"):
        np.save(tmp_path / "data/Hall/depth" / row["depth file name"], np.zeros((24, 40), np.uint16))
    flags = ("--dataset", "batvisionv2", "--dataset_dir", tmp_path / "data", "--label_fraction", 0)
    assert "val" in refused(run_cli, tmp_path, *arguments("", tmp_path, teacher), *flags)


def test_simulated_samples_are_cut_as_the_stand_in_says(rooms):
    """The figure in ``other_teacher``."""
    assert create_dataset("simulated", rooms, "test", image_size=32).preprocessing["audio_samples"] == 3112
