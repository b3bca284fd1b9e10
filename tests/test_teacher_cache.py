"""A teacher's answers on the disk: asked once, whole under a kill, and never those of something else."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from make_data import write_batvision_v1, write_batvision_v2, write_images

import train_baseline
import train_distill_any_depth
import train_distillation
from dataloaders import create_dataset, create_loader
from errors import DataError, OptionError, TrainingError
from models import create_model
from models.rgb_depth_model import RGBDepthNet
from training.checkpoint import load_checkpoint, save_model
from training.run_log import read_csv
from training.task import Guest
from training.tasks import DistillationTask
from training.teacher_cache import TeacherCache, open_cache
from utils_distillation_loss import ResponseDistillation

KEY = {"teacher": "abc", "pictures": "def"}


class Teacher:
    """Answers to row i with i + 1/3 everywhere, and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def of(self, rows):
        def ask():
            self.asked.append(list(rows))
            return (torch.tensor(rows) + 1 / 3)[:, None, None, None].expand(-1, 1, 4, 4)

        return torch.tensor(rows), ask


def test_what_was_answered_once_is_read(tmp_path):
    teacher, cache = Teacher(), TeacherCache(tmp_path / "c", KEY, 5, 4)
    first = cache.answer(*teacher.of([3, 1]))
    assert first.dtype == torch.float32 and first.shape == (2, 1, 4, 4)
    assert torch.equal(first[:, 0, 0, 0], torch.tensor([3 + 1 / 3, 1 + 1 / 3]).half().float())
    again = TeacherCache(tmp_path / "c", KEY, 5, 4)
    assert torch.equal(again.answer(*teacher.of([1, 3])), first.flip(0))
    assert teacher.asked == [[3, 1]]
    again.answer(*teacher.of([1, 2]))
    assert teacher.asked == [[3, 1], [1, 2]], "one of the two is missing"
    size = (tmp_path / "c/disparity.npy").stat().st_size
    assert size == 128 + 5 * 4 * 4 * 2, "a header of 128 bytes, and float16"


def test_a_second_process_opens_what_the_first_laid_out(tmp_path):
    first = TeacherCache(tmp_path / "c", KEY, 5, 4)
    second = TeacherCache(tmp_path / "c", KEY, 5, 4, creates=False)
    teacher = Teacher()
    first.answer(*teacher.of([0]))
    second.answer(*teacher.of([0]))
    assert teacher.asked == [[0]], "they share the files"


@pytest.fixture
def asked(monkeypatch):
    """How many pictures each call of a guest had."""
    calls = []
    forward = Guest.forward

    def counting(self, batch, *args, **kwargs):
        calls.append(len(batch["rgb"]))
        return forward(self, batch, *args, **kwargs)

    monkeypatch.setattr(Guest, "forward", counting)
    return calls


class KilledError(Exception):
    pass


@pytest.mark.parametrize("at", ["rows", "done"])
def test_a_row_counts_only_once_its_flag_is_on_the_disk(tmp_path, monkeypatch, at):
    """A kill while the row is flushed leaves no flag; one while the flag is flushed leaves a whole row."""
    teacher, cache = Teacher(), TeacherCache(tmp_path / "c", KEY, 5, 4)

    def kill():
        raise KilledError

    monkeypatch.setattr(cache._maps.values if at == "rows" else cache._maps.done, "flush", kill)
    with pytest.raises(KilledError):
        cache.answer(*teacher.of([2]))
    del cache
    again = TeacherCache(tmp_path / "c", KEY, 5, 4)
    assert (again.answer(*teacher.of([2])) == torch.tensor(7 / 3).half()).all()
    assert len(teacher.asked) == (2 if at == "rows" else 1)


def test_a_kill_while_the_files_are_made_is_made_good(tmp_path):
    TeacherCache(tmp_path / "c", KEY, 5, 4)
    (tmp_path / "c/done.npy").unlink()
    (tmp_path / "c/disparity.npy").write_bytes(b"torn")
    teacher = Teacher()
    TeacherCache(tmp_path / "c", KEY, 5, 4).answer(*teacher.of([0]))
    assert teacher.asked == [[0]]


@pytest.mark.parametrize(
    ("key", "rows", "size", "named"),
    [
        ({**KEY, "teacher": "other"}, 5, 4, r"teacher abc \(now other\)"),
        (KEY, 6, 4, r"rows 5 \(now 6\)"),
        (KEY, 5, 8, r"size 4 \(now 8\)"),
    ],
)
def test_the_answers_of_something_else_are_refused(tmp_path, key, rows, size, named):
    TeacherCache(tmp_path, KEY, 5, 4)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(OptionError, match=named):
        TeacherCache(tmp_path, key, rows, size)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "disparity.npy").write_bytes(b"mine")
    with pytest.raises(OptionError, match="holds other files"):
        TeacherCache(tmp_path, KEY, 5, 4)
    assert (tmp_path / "disparity.npy").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("name", "content"), [("disparity.npy", b"torn"), ("done.npy", b""), ("cache.json", b"{"), ("cache.json", b"[1]")]
)
def test_damaged_files_are_named(tmp_path, name, content):
    TeacherCache(tmp_path, KEY, 5, 4)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        TeacherCache(tmp_path, KEY, 5, 4)


def test_files_of_another_shape_are_refused(tmp_path):
    TeacherCache(tmp_path, KEY, 5, 4)
    np.save(tmp_path / "done.npy", np.ones(4, np.uint8))
    with pytest.raises(DataError, match="delete the folder"):
        TeacherCache(tmp_path, KEY, 5, 4)


def test_a_disk_that_does_not_hold_it(tmp_path, monkeypatch):
    import os

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OptionError, match="No space left"):
        TeacherCache(tmp_path / "c", KEY, 5, 4)
    assert not (tmp_path / "c/done.npy").exists()


def test_what_float16_does_not_hold_is_not_kept(tmp_path):
    cache = TeacherCache(tmp_path, KEY, 5, 4)
    with pytest.raises(TrainingError, match="65504"):
        cache.answer(torch.tensor([0]), lambda: torch.full((1, 1, 4, 4), 1e5))
    teacher = Teacher()
    cache.answer(*teacher.of([0]))
    assert teacher.asked == [[0]]


# ------------------------------------------------------------------------------------------- pictures and mirror images


class LeftEye(RGBDepthNet):
    """Answers with the green of each pixel, and a metre more in the left half: its mirrored answer is another one."""

    def forward(self, x, return_features=False):
        metre = torch.ones_like(x[:, :1])
        metre[..., x.shape[-1] // 2 :] = 0
        return x[:, 1:2] + metre


def test_the_answer_is_the_mean_over_picture_and_mirror_image(tmp_path, rooms, asked):
    pictures = create_dataset("simulated", rooms, "train", 32, modalities={"rgb"})
    fabric, teacher = Fabric(accelerator="cpu", devices=1), Guest(LeftEye(4))

    def fill():
        cache = open_cache(fabric, tmp_path / "c", teacher, pictures, 32)
        loader = create_loader(pictures, 4, shuffle=False, num_workers=0)
        train_distillation.ask_once(fabric, teacher, cache, loader)
        return cache

    answer = fill().read(torch.tensor([7, 2]))
    assert asked == [4] * 6, "twelve pictures, each of them twice"
    fill()
    assert asked == [4] * 6, "what is whole is not asked for again"
    green = torch.stack([pictures[index]["rgb"][1:2] for index in (7, 2)])
    assert torch.allclose(answer, green + 0.5, atol=1e-3)  # the rounding to float16
    with pytest.raises(OptionError, match="something else: pictures"):
        open_cache(fabric, tmp_path / "c", teacher, create_dataset("simulated", rooms, "val", 32), 32)


class EyeAndEar(RGBDepthNet):
    """Answers with the green of each pixel, and a metre more where the left ear hears more than the right one."""

    name, inputs = "eye_and_ear", ("audio", "rgb")

    def forward(self, audio, rgb, return_features=False):
        side = (audio[:, 0] - audio[:, 1]).mean(dim=(1, 2))[:, None, None, None]  # [B, 1, 1, 1]
        half = torch.linspace(1, -1, rgb.shape[-1])  # [W], the left half is positive
        return rgb[:, 1:2] + 0.5 + 0.5 * (side * half).sign()


def test_a_teacher_that_hears_is_asked_about_the_mirrored_scene_with_its_ears_changed(tmp_path, rooms):
    scenes = create_dataset("simulated", rooms, "train", 32, audio_format="mel", modalities={"rgb", "audio"})
    fabric, teacher = Fabric(accelerator="cpu", devices=1), Guest(EyeAndEar(4))
    cache = open_cache(fabric, tmp_path / "c", teacher, scenes, 32)
    loader = create_loader(scenes, 4, shuffle=False, num_workers=0)
    train_distillation.ask_once(fabric, teacher, cache, loader)
    sample = scenes[3]
    expected = teacher({"audio": sample["audio"][None], "rgb": sample["rgb"][None]})
    assert torch.allclose(cache.read(torch.tensor([3])), expected, atol=1e-3), "the mirrored scene has the same answer"
    other = create_dataset("simulated", rooms, "train", 32, audio_format="spectrogram", modalities={"rgb", "audio"})
    with pytest.raises(OptionError, match="something else: pictures"):
        open_cache(fabric, tmp_path / "c", teacher, other, 32)


def test_any_picture_that_changed_is_noticed(tmp_path):
    root = tmp_path / "pictures"
    write_images(root / "train", count=30, size=(32, 32))
    pictures = create_dataset("images", root, "train", 32, modalities={"rgb"})
    fabric, teacher = Fabric(accelerator="cpu", devices=1), Guest(LeftEye(4))
    for _ in range(2):
        open_cache(fabric, tmp_path / "c", teacher, pictures, 32)
    write_images(tmp_path / "other", count=6, size=(32, 32), seed=1)
    (tmp_path / "other" / Path(pictures.ids[5]).name).replace(Path(pictures.rows[5].files["rgb"][0]))
    with pytest.raises(OptionError, match="something else: pictures"):
        open_cache(fabric, tmp_path / "c", teacher, pictures, 32)


def test_a_task_turns_and_scales_what_it_reads(tmp_path):
    cache = TeacherCache(tmp_path / "c", KEY, 3, 32, output="metres")
    kept = torch.linspace(1, 5, 32).expand(3, 1, 32, 32) + torch.arange(3.0)[:, None, None, None]
    cache.answer(torch.arange(3), lambda: kept)
    student = create_model("unet_baseline", base_channels=4, image_size=32, max_depth=12.0).eval()
    task = DistillationTask(student, RGBDepthNet(4), ResponseDistillation())
    task.cache = cache
    batch = {"audio": torch.rand(2, 2, 32, 32), "depth": torch.zeros(2, 1, 32, 32), "index": torch.tensor([2, 0])}
    plain = task(batch, 0.0)
    assert plain["response"].item() == pytest.approx((plain["depth"] - kept[[2, 0]]).abs().mean().item(), abs=2e-3)
    batch |= {"mirrored": torch.tensor([True, False]), "scale": torch.tensor([2.0, 0.5])}
    out = task(batch, 0.0)
    taught = torch.stack([kept[2].flip(-1) * 2, kept[0] * 0.5])
    assert out["response"].item() == pytest.approx((out["depth"] - taught).abs().mean().item(), abs=2e-3)


# -------------------------------------------------------------------------------------------------------------- scripts


def test_the_second_epoch_does_not_ask_the_teacher(tmp_path, asked, run_cli):
    torch.manual_seed(0)
    for name in ("one", "two"):
        model = create_model("depth_anything", preset="mini")
        model.depth_head.scratch["output_conv2"][2].weight.data.mul_(50)  # a random one says 1 almost everywhere
        save_model(model, tmp_path / f"{name}.safetensors", "MIT")
    write_images(tmp_path / "pictures/train", count=8, size=(60, 80))
    write_images(tmp_path / "pictures/val", count=1, size=(60, 80))

    def run(name, *more, teacher="one"):
        flags = ("--dataset", "images", "--dataset_dir", tmp_path / "pictures", "--output_dir", tmp_path / name)
        flags += ("--teacher_models", "mini", "--teacher_checkpoints", tmp_path / f"{teacher}.safetensors")
        flags += ("--student_arch", "tiny", "--fixed_views", "--lambda_feat", 0, "--image_size", 56, "--num_workers", 0)
        flags += ("--batch_size", 4, "--nb_epochs", 3, "--save_frequency", 9, "--experiment_name", "e")
        asked.clear()
        return run_cli(train_distill_any_depth.main, *flags, *more)

    cached = ("--cache_teacher", tmp_path / "answers")
    assert run("plain")[0] == 0
    without = list(asked)
    assert run("first", *cached)[0] == 0
    validation_and_picture = [1] * 3 + [1]
    assert sorted(without) == sorted([*validation_and_picture, *[4] * 6])
    assert sorted(asked) == sorted([*validation_and_picture, *[4] * 2])
    assert run("second", *cached)[0] == 0
    assert sorted(asked) == validation_and_picture, "nor does the first, of a later run"
    ends = {
        name: load_checkpoint(tmp_path / f"{name}/checkpoints/e/last.pth")["model_state_dict"]
        for name in ("first", "second")
    }
    assert all(torch.equal(value, ends["second"][key]) for key, value in ends["first"].items())
    plain, first = (read_csv(tmp_path / f"{name}/logs/e/steps.csv") for name in ("plain", "first"))
    assert plain[0] == pytest.approx(first[0], rel=2e-3), "but for the rounding to float16"
    assert [row["loss"] for row in plain] == pytest.approx([row["loss"] for row in first], rel=5e-2), "which adds up"

    code, _, errors = run("first", "--cache_teacher", tmp_path / "fresh")
    assert code == 2 and "holds an experiment" in errors and not (tmp_path / "fresh").exists()
    code, _, errors = run("third", *cached, teacher="two")
    assert code == 2 and "is of something else: teacher" in errors and len(errors.splitlines()) == 1
    write_images(tmp_path / "pictures/train", count=8, size=(60, 80), seed=1)
    code, _, errors = run("third", *cached)
    assert code == 2 and "is of something else: pictures" in errors
    assert json.loads((tmp_path / "answers/cache.json").read_text())["rows"] == 8
    assert not (tmp_path / "third").exists()


def test_an_ear_learns_from_answers_that_were_kept(tmp_path, rooms, asked, run_cli):
    """Augmented, with more pairs than have depth, in two sessions: the teacher is asked before the first one alone."""
    torch.manual_seed(0)
    save_model(create_model("depth_anything", preset="mini"), tmp_path / "eye.safetensors", "MIT")

    def run(*more):
        flags = ("--dataset", "simulated", "--dataset_dir", rooms, "--output_dir", tmp_path, "--experiment_name", "e")
        flags += ("--teacher_checkpoint", tmp_path / "eye.safetensors", "--attention_levels", 5, "--base_channels", 4)
        flags += ("--image_size", 32, "--batch_size", 4, "--num_workers", 0, "--augment", "--augment_scale", 0.2)
        flags += ("--pairs_dir", rooms, "--nb_epochs", 2, "--save_frequency", 9)
        asked.clear()
        return run_cli(train_distillation.main, *flags, *more)

    cached = ("--cache_teacher", tmp_path / "answers")
    code, _, errors = run(*cached, "--stop_after_epoch", 1)
    assert (code, errors) == (0, "")
    assert asked == [4] * 12, "24 pictures, each of them twice"
    code, out, errors = run(*cached, "--resume")
    assert (code, errors) == (0, "")
    assert "other settings" not in out
    assert asked == [4], "the picture of the last epoch"
    code, out, _ = run("--resume", "--nb_epochs", 3)
    assert code == 0 and "cache_teacher given -> None" in out
    assert len(asked) > 6, "without the cache, each batch"

    fresh = ("--cache_teacher", tmp_path / "fresh")
    for more, named in (
        ((), "holds an experiment"),
        (("--experiment_name", "other", "--image_size", 40), "32 or 48"),
    ):
        code, _, errors = run(*fresh, *more)
        assert code == 2 and named in errors and not asked and not (tmp_path / "fresh").exists()
    for more, named in (
        (("--lambda_feat", 1), "no features"),
        (("--num_nodes", 2), "one machine"),
        (("--image_size", 64), "something else"),
    ):
        code, _, errors = run(*cached, *more, "--experiment_name", "other")
        assert code == 2 and named in errors and len(errors.splitlines()) == 1


def test_a_teacher_that_hears_hears_what_it_learnt_to_hear(tmp_path, rooms, run_cli):
    """It learnt from spectrograms, the student hears both ears together, of scenes that are scaled and mirrored."""
    data = ("--dataset", "simulated", "--dataset_dir", rooms, "--output_dir", tmp_path, "--image_size", 32)
    data += ("--base_channels", 4, "--batch_size", 4, "--num_workers", 0, "--nb_epochs", 1)
    fusion = ("--model", "multimodal_fusion", "--experiment_name", "fusion")
    assert run_cli(train_baseline.main, *fusion, *data)[0] == 0
    teacher = ("--teacher_checkpoint", tmp_path / "checkpoints/fusion/best_model.pth")
    ear = (*teacher, "--attention_levels", 5, "--label_fraction", 0, *data)
    changed = ("--augment", "--augment_scale", 0.2)
    code, _, errors = run_cli(train_distillation.main, *ear, *changed)
    assert code == 2 and "give --cache_teacher" in errors
    code, _, errors = run_cli(train_distillation.main, *ear)
    assert code == 2 and "audio_format spectrogram, not interaural" in errors
    cached = (*ear, *changed, "--cache_teacher", tmp_path / "answers")
    code, out, errors = run_cli(train_distillation.main, *cached, "--experiment_name", "ear")
    assert (code, errors) == (0, "") and "multimodal_fusion" in out
    assert load_checkpoint(tmp_path / "checkpoints/ear/last.pth")["preprocessing"]["audio_format"] == "interaural"

    unmeasured = tmp_path / "unmeasured"
    shutil.copytree(rooms, unmeasured)
    for table in unmeasured.glob("*/*.csv"):
        lines = [line.rsplit(",", 2)[0] + ",," for line in table.read_text().splitlines()[1:]]
        table.write_text("\n".join([table.read_text().splitlines()[0], *lines, ""]))
    fresh = ("--cache_teacher", tmp_path / "fresh")
    code, _, errors = run_cli(train_distillation.main, *cached, *fresh, "--dataset_dir", unmeasured)
    assert code == 2 and "no validation pair has measured depth" in errors and not (tmp_path / "fresh").exists()

    v1, v2 = write_batvision_v1(tmp_path / "v1"), write_batvision_v2(tmp_path / "v2")
    there = ("--dataset", "batvisionv1", "--dataset_dir", v1)
    assert run_cli(train_baseline.main, *fusion, *data, *there, "--overwrite")[0] == 0
    code, _, errors = run_cli(train_distillation.main, *cached, *fresh, "--dataset", "batvisionv2", "--dataset_dir", v2)
    assert code == 2 and "another axis of time" in errors and not (tmp_path / "fresh").exists()


def test_answers_that_were_cut_off_are_named_and_not_filled_up(tmp_path):
    teacher, cache = Teacher(), TeacherCache(tmp_path / "c", KEY, 5, 4)
    cache.answer(*teacher.of([0, 1, 2, 3, 4]))
    path = tmp_path / "c/disparity.npy"
    os.truncate(path, 200)
    with pytest.raises(DataError, match="damaged"):
        TeacherCache(tmp_path / "c", KEY, 5, 4)
    assert path.stat().st_size == 200
