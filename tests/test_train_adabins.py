"""AdaBins distillation from end to end, phase by phase, on networks of a few pixels."""

import csv
import math
import shutil

import pytest
import torch
from make_data import write_batvision_v1

import evaluate
import predict
import train_adabins_distillation
import train_rgb_depth
from models import create_model
from training.checkpoint import load_checkpoint
from training.task import Guest
from training.tasks import AdaBinsDistillationTask
from utils_distillation_loss import BIN_LOSSES, AdaptiveDistillationLoss, DistillationLoss, shared_support_loss

SMALL = ("--image_size", 32, "--base_channels", 4, "--batch_size", 4, "--num_workers", 0, "--learning_rate", 0.003)
BINS = ("--n_bins", 8, "--attention_levels", 5)
TASKS = {"bins": 8, "small": {"base_channels": 4, "n_bins": 8, "max_depth": 12.0}}
NOTHING = ("--lambda_task", 0, "--lambda_response", 0, "--lambda_bin", 0)
main = train_adabins_distillation.main


def arguments(rooms, output, *more):
    given = ("--dataset", "simulated", "--dataset_dir", rooms, "--output_dir", output, *SMALL, *BINS)
    return [str(x) for x in (*given, "--experiment_name", "e", *more)]


def rows(folder, name="e"):
    with (folder / f"results/{name}/metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def networks():
    torch.manual_seed(0)
    return tuple(create_model(name, **TASKS["small"]) for name in ("adabins_audio", "adabins_rgb"))


def a_batch(labels=(True, True)):
    generator = torch.Generator().manual_seed(1)
    rand = lambda channels: torch.rand(len(labels), channels, 32, 32, generator=generator)  # noqa: E731
    depth = (1 + 5 * rand(1)) * torch.tensor(labels)[:, None, None, None]
    return {"audio": rand(2), "rgb": rand(3), "depth": depth, "id": [str(i) for i in range(len(labels))]}


# ----------------------------------------------------------------------------------------------------------------- task


def test_the_loss_is_the_weighted_sum_of_its_parts():
    student, teacher = networks()
    loss = DistillationLoss(2.0, 3.0, 5.0, 7.0, 11.0, 13.0)
    out = AdaBinsDistillationTask(student, teacher, loss)(a_batch((True, False)), 0.0)
    weights = {"task": 2 / 2, "response": 3, "feature": 5, "bin": 7, "sparse": 11, "chamfer": 13 / 2,
               "teacher_task": 1, "teacher_sparse": 11, "teacher_chamfer": 13}  # fmt: skip
    assert set(out) == {"loss", "depth", "labelled", "counts", *weights}
    assert out["counts"] == dict.fromkeys([key for key in weights if key in ("task", "chamfer") or "_" in key], 1)
    assert out["labelled"].item() == 0.5
    assert out["loss"].item() == pytest.approx(sum(w * out[key].item() for key, w in weights.items()), rel=1e-5)


def test_a_teacher_answers_in_the_metres_of_a_scaled_scene_and_learns_in_those_of_its_picture():
    student, teacher = networks()
    batch = a_batch()
    cap, scale = student.config["max_depth"], torch.tensor([0.5, 2.0])[:, None, None, None]
    batch["depth"][:, :, 0, 0] = cap
    for frozen in (False, True):
        task = AdaBinsDistillationTask(
            student, teacher, DistillationLoss(response_at="everywhere"), frozen=frozen
        ).eval()
        out = task(batch | {"scale": scale.flatten()}, 0.0)
        (heard, bins), (seen, theirs) = (net(batch[key], return_features=True) for net, key in
                                         ((student, "audio"), (teacher, "rgb")))  # fmt: skip
        assert out["response"].item() == pytest.approx(((heard - scale * seen) ** 2).mean().item(), rel=1e-5)
        moved = [bins["choice"], bins["centres"].flatten(1), theirs["choice"], (scale * theirs["centres"]).flatten(1)]
        assert out["bin"].item() == pytest.approx(shared_support_loss(*moved, (1e-3, cap)).mean().item(), rel=1e-4)
        assert torch.equal(out["depth"], heard)
    out = AdaBinsDistillationTask(student, teacher, DistillationLoss()).eval()(batch | {"scale": scale.flatten()}, 0.0)
    errors = (seen - batch["depth"] / scale).abs()
    known = [errors[0].mean(), errors[1].flatten()[1:].mean()]  # what grew to the cap may have grown past it
    assert out["teacher_task"].item() == pytest.approx((sum(known) / 2).item(), rel=1e-5)


def test_what_a_teacher_says_of_a_scaled_scene_ends_at_the_cap():
    student, teacher = networks()
    cap = student.config["max_depth"]
    batch = a_batch() | {"scale": torch.tensor([4.0, 0.25])}
    task = AdaBinsDistillationTask(student, teacher, DistillationLoss(response_at="everywhere"), frozen=True).eval()
    seen = teacher.eval()(batch["rgb"], return_features=True)
    depth, features = task.in_scene(seen, batch)
    assert (seen[0][0] > cap / 4).all() and (depth[0] == cap).all() and (depth[1] < cap / 4).all()
    centres = features["centres"].flatten(1)
    assert centres.max() == cap and (centres[0] == cap).sum() == (seen[1]["centres"][0] > cap / 4).sum() > 0
    heard = student(batch["audio"])
    taught = (seen[0] * batch["scale"][:, None, None, None]).clamp(max=cap)
    assert task(batch, 0.0)["response"].item() == pytest.approx(((heard - taught) ** 2).mean().item(), rel=1e-5)


@pytest.mark.parametrize("kind", BIN_LOSSES)
def test_it_runs_in_bf16(kind):
    task = AdaBinsDistillationTask(*networks(), DistillationLoss(bin_loss=kind, lambda_chamfer=0.1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = task(a_batch(), 0.0)
    values = [*out.pop("counts").values(), *out.values()]
    assert all(value.dtype == torch.float32 and torch.isfinite(value).all() for value in values)
    out["loss"].backward()


def test_the_teacher_learns_whatever_the_student_is_taught():
    task = AdaBinsDistillationTask(*networks(), DistillationLoss(lambda_task=0.0, lambda_sparse=0.0))
    assert gradients(task, 0.0) == (True, True)


def test_images_without_a_label_do_not_dilute_what_measured_depth_alone_teaches():
    student, teacher = networks()
    task = AdaBinsDistillationTask(student, teacher, DistillationLoss(), phases={"teacher": 1, "finetune": 1}).eval()
    both, half = a_batch((True, True)), a_batch((True, False))
    alone = {key: value[:1] for key, value in both.items()}
    for progress in (0.0, 0.9):
        assert task(half, progress)["loss"].item() == pytest.approx(task(alone, progress)["loss"].item(), rel=1e-5)


def gradients(task, progress):
    task.train()
    task.zero_grad()
    task(a_batch(), progress)["loss"].backward()
    teacher = task.teacher.model if isinstance(task.teacher, Guest) else task.teacher
    return tuple(any(p.grad is not None and p.grad.any() for p in net.parameters()) for net in (task.student, teacher))


def test_who_learns_in_which_phase():
    for frozen in (False, True):
        phases = {"teacher": 1, "distill": 2, "finetune": 1}
        task = AdaBinsDistillationTask(*networks(), DistillationLoss(), frozen=frozen, phases=phases)
        assert task.restarts == (0.25, 0.75)
        assert [task.phase_at(p)[0] for p in (0, 0.24, 0.25, 0.74, 0.75, 1)] == [
            "teacher", "teacher", "distill", "distill", "finetune", "finetune"
        ]  # fmt: skip
        assert gradients(task, 0.1) == (False, True)
        assert gradients(task, 0.5) == (True, not frozen)
        assert task.teacher.training is not frozen
        assert gradients(task, 0.9) == (True, False)
    frozen = AdaBinsDistillationTask(*networks(), DistillationLoss(), frozen=True)
    assert isinstance(frozen.teacher, Guest)
    assert gradients(frozen, 0.0) == (True, False)


def test_the_curriculum_runs_over_the_distillation_alone():
    task = AdaBinsDistillationTask(
        *networks(), AdaptiveDistillationLoss(), phases={"teacher": 1, "distill": 2, "finetune": 1}
    )
    task.eval()
    for progress, weights in ((0.25, (0.5, 1.0, 0.5, 0.5)), (0.5, (0.75, 0.65, 1 - 0.25 * 0.3 / 0.4, 0.35))):
        out = task(a_batch(), progress)
        own = out["teacher_task"] + 0.1 * (out["sparse"] + out["teacher_sparse"])
        parts = zip(("task", "response", "feature", "bin"), weights, strict=True)
        assert out["loss"].item() == pytest.approx(sum(w * out[k].item() for k, w in parts) + own.item(), rel=1e-4)
    out = task(a_batch(), 0.9)
    assert out["loss"].item() == pytest.approx((out["task"] + 0.1 * out["sparse"]).item(), rel=1e-5)


# --------------------------------------------------------------------------------------------------------------- script


@pytest.fixture(scope="module")
def eye(rooms, tmp_path_factory):
    """A teacher that has learnt in a phase of its own."""
    folder = tmp_path_factory.mktemp("eye")
    flags = ("--phase", "teacher", "--nb_epochs", 2, "--attention_levels", 2, 3, 4, 5)
    main(arguments(rooms, folder, *flags))
    return folder / "checkpoints/e/best_model.pth"


@pytest.mark.parametrize(
    "flags",
    [
        ("--nb_epochs", 3, "--use_adaptive_loss", "--bin_loss", "widths", "--share_ears"),
        ("--phase", "all", "--phase_epochs", "1,1,1", "--freeze_rgb", "--bin_loss", "wasserstein"),
    ],
)
def test_a_stopped_run_ends_as_the_unbroken_one(flags, rooms, tmp_path):
    ends = []
    for folder, sessions in (("unbroken", [()]), ("stopped", [("--stop_after_epoch", 2), ("--resume",)])):
        for more in sessions:
            main(arguments(rooms, tmp_path / folder, "--save_frequency", 3, "--augment", *flags, *more))
        ends.append(load_checkpoint(tmp_path / folder / "checkpoints/e/last.pth"))
    unbroken = ends[0]
    assert unbroken["model"]["name"] == "adabins_audio"
    assert not [key for key in unbroken["model_state_dict"] if key.startswith(("rgb.", "teacher."))]
    for part in ("model_state_dict", ("training", "task_state_dict")):
        one, two = (end[part] if isinstance(part, str) else end[part[0]][part[1]] for end in ends)
        assert one and all(torch.equal(two[key], value) for key, value in one.items())
    assert rows(tmp_path / "unbroken") == rows(tmp_path / "stopped")
    assert (tmp_path / "stopped/results/e/epoch_0003_distill.png").stat().st_size > 10_000
    assert (tmp_path / "stopped/results/e/curves.png").is_file()


def test_both_networks_metrics_stand_in_the_csv(rooms, tmp_path):
    main(arguments(rooms, tmp_path, "--nb_epochs", 2, "--lambda_chamfer", 0.1, "--export_student"))
    row = rows(tmp_path)[-1]
    for key in ("train_task", "train_response", "train_feature", "train_bin", "train_sparse", "train_chamfer",
                "train_teacher_task", "val_rmse", "val_delta1", "val_teacher_rmse", "val_teacher_delta1"):  # fmt: skip
        assert float(row[key]) >= 0
    student = torch.load(tmp_path / "checkpoints/e/student.pth", weights_only=True)
    assert "training" not in student
    ear = create_model("adabins_audio", **student["model"]["config"])
    ear.load_state_dict(student["model_state_dict"])
    hears, sees = ((tmp_path / f"checkpoints/e/{name}.md").read_text() for name in ("student", "teacher"))
    assert hears.startswith("# student.pth\n\nDepth in metres from the echo of a chirp at two ears: `adabins_audio`")
    assert f"RMSE {student['best']['value']:.4f} m" in hears
    assert "| `audio` | [B, 4, 32, 32] | interaural" in hears
    assert sees.startswith("# teacher.pth\n\nDepth in metres from a picture: `adabins_rgb`")
    assert "None are known." in sees


def test_the_student_needs_no_teacher_in_use(rooms, tmp_path, run_cli):
    main(arguments(rooms, tmp_path, "--nb_epochs", 1))
    best = tmp_path / "checkpoints/e/best_model.pth"
    code, out, _ = run_cli(evaluate.main, "--checkpoint", best, "--output_dir", tmp_path, "--num_workers", 0)
    assert code == 0 and "mean_map" in out
    recordings = next(rooms.rglob("audio"))
    code, out, _ = run_cli(predict.main, "--checkpoint", best, "--audio", recordings, "--output", tmp_path / "depth")
    assert code == 0 and list((tmp_path / "depth").glob("*.npy"))


def test_a_frozen_teacher_stays_as_it_is_to_the_bit(rooms, eye, tmp_path):
    before = eye.read_bytes()
    main(arguments(rooms, tmp_path, "--nb_epochs", 2, "--freeze_rgb", "--teacher_checkpoint", eye))
    assert eye.read_bytes() == before
    assert len({row["val_teacher_rmse"] for row in rows(tmp_path)}) == 1
    state = load_checkpoint(tmp_path / "checkpoints/e/last.pth")["training"]["task_state_dict"]
    assert set(state) == {"teacher.fingerprint"}
    teacher = load_checkpoint(eye)
    model = create_model("adabins_rgb", **teacher["model"]["config"])
    model.load_state_dict(teacher["model_state_dict"])
    assert torch.equal(Guest(model).fingerprint, state["teacher.fingerprint"])


def test_a_teacher_that_goes_on_learning(rooms, eye, tmp_path):
    main(arguments(rooms, tmp_path, "--nb_epochs", 1, "--teacher_checkpoint", eye))
    assert "adabins_rgb, epoch" in (tmp_path / "logs/e/console.log").read_text()
    first = load_checkpoint(eye)["model_state_dict"]
    state = load_checkpoint(tmp_path / "checkpoints/e/last.pth")["training"]["task_state_dict"]
    assert any(not torch.equal(state[f"teacher.{key}"], value) for key, value in first.items())
    kept = load_checkpoint(tmp_path / "checkpoints/e/teacher.pth")
    assert all(torch.equal(state[f"teacher.{key}"], value) for key, value in kept["model_state_dict"].items())
    flags = ("--experiment_name", "f", "--nb_epochs", 1, "--freeze_rgb", "--label_fraction", 0, "--teacher_checkpoint")
    main(arguments(rooms, tmp_path, *flags, tmp_path / "checkpoints/e/teacher.pth"))
    assert float(rows(tmp_path, "f")[0]["train_task"]) == 0 < float(rows(tmp_path, "f")[0]["train_response"])


def test_phases_without_any_label_are_refused(rooms, eye, tmp_path, run_cli):
    flags = ("--phase", "all", "--nb_epochs", 4, "--freeze_rgb", "--teacher_checkpoint", eye, "--label_fraction", 0)
    code, _, errors = run_cli(main, *arguments(rooms, tmp_path, *flags))
    assert code == 2 and "--phase distill" in errors and not (tmp_path / "checkpoints").exists()


def test_scenes_of_other_sizes(rooms, tmp_path, run_cli):
    flags = ("--augment_scale", 0.2, "--nb_epochs", 1, "--label_fraction", 0.75)
    for phase in ("distill", "finetune"):
        main(arguments(rooms, tmp_path, *flags, "--phase", phase, "--experiment_name", phase))
        assert math.isfinite(float(rows(tmp_path, phase)[0]["val_rmse"]))
    flags += ("--phase", "teacher", "--attention_levels", 2, 3, 4, 5)
    code, _, errors = run_cli(main, *arguments(rooms, tmp_path, *flags))
    assert code == 2 and "--augment_scale has no effect in --phase teacher" in errors


def test_with_few_labels_a_teacher_that_has_learnt_is_advised(rooms, eye, tmp_path):
    advised = "a teacher that has learnt from these "
    for name, flags, expected in (
        ("few", ("--label_fraction", 0.25), True),
        ("all", (), False),
        ("frozen", ("--label_fraction", 0.25, "--freeze_rgb", "--teacher_checkpoint", eye), False),
        ("phases", ("--label_fraction", 0.25, "--phase", "all", "--phase_epochs", "1,1,1"), True),
    ):
        main(arguments(rooms, tmp_path, "--experiment_name", name, "--nb_epochs", 3 if name == "phases" else 1, *flags))
        assert (advised in (tmp_path / f"logs/{name}/console.log").read_text()) is expected, name


def test_the_rgb_teacher_may_teach_without_bins(rooms, tmp_path, run_cli):
    small = [str(x) for x in ("--dataset", "simulated", "--dataset_dir", rooms, "--output_dir", tmp_path, *SMALL)]
    train_rgb_depth.main([*small, "--experiment_name", "unet", "--nb_epochs", "1"])
    unet = tmp_path / "checkpoints/unet/best_model.pth"
    main(arguments(rooms, tmp_path, "--nb_epochs", 1, "--freeze_rgb", "--teacher_checkpoint", unet))
    assert "train_bin" not in rows(tmp_path)[0] and float(rows(tmp_path)[0]["train_response"]) > 0
    assert "no bins" in (tmp_path / "logs/e/console.log").read_text()
    flags = ("--nb_epochs", 1, "--freeze_rgb", "--teacher_checkpoint", unet, "--lambda_bin", 1, "--overwrite")
    code, _, errors = run_cli(main, *arguments(rooms, tmp_path, *flags))
    assert code == 2 and "--lambda_bin" in errors
    main(arguments(rooms, tmp_path, "--nb_epochs", 1, "--teacher_checkpoint", unet, "--overwrite"))
    assert "bins begin anew" in (tmp_path / "logs/e/console.log").read_text()
    flags = ("--phase", "all", "--phase_epochs", "1,1,1", "--freeze_rgb", "--teacher_checkpoint", unet, "--overwrite")
    main(arguments(rooms, tmp_path, *flags))
    assert float(rows(tmp_path)[1]["train_bin"]) >= 0
    main(arguments(rooms, tmp_path, "--nb_epochs", 1, "--use_pretrained_rgb", unet, "--overwrite"))
    assert "unet encoder begins with" in (tmp_path / "logs/e/console.log").read_text()


def test_fine_tuning_goes_on_without_pictures(rooms, tmp_path):
    shutil.copytree(rooms, tmp_path / "rooms")
    main(arguments(rooms, tmp_path, "--nb_epochs", 1))
    next((tmp_path / "rooms").rglob("camera*.*")).unlink()
    flags = ("--nb_epochs", 1, "--phase", "finetune", "--init_from", "e", "--experiment_name", "f")
    main(arguments(tmp_path / "rooms", tmp_path, *flags))
    row = rows(tmp_path, "f")[0]
    assert {key for key in row if key.startswith("train_")} == {
        "train_loss", "train_labelled", "train_task", "train_sparse"
    }  # fmt: skip


def test_a_data_set_without_pictures(tmp_path, run_cli):
    write_batvision_v1(tmp_path / "v1", camera=False)
    flags = ("--dataset", "batvisionv1", "--nb_epochs", 1)
    main(arguments(tmp_path / "v1", tmp_path, *flags))
    assert "warning: batvisionv1 has no pictures here" in (tmp_path / "logs/e/console.log").read_text()
    assert "train_response" not in rows(tmp_path)[0]
    for more in (
        ("--use_pretrained_rgb", "imagenet"), ("--teacher_checkpoint", "x.pth"), ("--lambda_response", 0),
        ("--bin_loss", "wasserstein"), ("--feature_levels", "x1"), ("--use_adaptive_loss",),
        ("--phase", "all", "--phase_epochs", "1,1,1", "--nb_epochs", 3), ("--lambda_task", 0),
    ):  # fmt: skip
        code, _, errors = run_cli(main, *arguments(tmp_path / "v1", tmp_path, *flags, *more, "--overwrite"))
        assert code == 2 and more[0] in errors and "no pictures" in errors and len(errors.splitlines()) == 1
    main(arguments(tmp_path / "v1", tmp_path, *flags, "--phase", "finetune", "--overwrite"))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--freeze_rgb",), "--phase teacher"),
        (("--use_adaptive_loss", "--lambda_task", 1), "--lambda_task"),
        (("--use_adaptive_loss", "--lambda_bin", 1), "--lambda_bin"),
        (("--bin_loss", "wasserstein", "--temperature", 2), "--temperature"),
        (("--lambda_bin", 0, "--temperature", 2), "--temperature"),
        (("--lambda_bin", 0, "--bin_loss", "widths"), "--bin_loss"),
        (("--fixed_bins", "--bin_loss", "widths"), "--bin_loss"),
        (("--augment_scale", 0.2, "--bin_loss", "widths"), "--bin_loss widths"),
        (("--fixed_bins", "--lambda_chamfer", 1), "--lambda_chamfer"),
        (("--lambda_feature", 0, "--feature_levels", "x1"), "--feature_levels"),
        (("--lambda_response", 0, "--response_at", "everywhere"), "--response_at"),
        (("--feature_levels", "x6"), "x1 x2"),
        (("--phase_epochs", "1,2,3"), "--phase all"),
        (("--phase", "all", "--phase_epochs", "1,2,3", "--nb_epochs", 7), "--phase_epochs"),
        (("--phase", "all", "--nb_epochs", 2), "--nb_epochs"),
        (("--phase", "all", "--phase_epochs", "1,1,1", "--stop_after_epoch", 10), "--stop_after_epoch"),
        (("--label_fraction", 0), "--freeze_rgb"),
        (("--phase", "finetune", "--lambda_task", 0), "--lambda_task"),
        (("--phase", "all", "--nb_epochs", 4, "--lambda_task", 0), "the phase finetune of --phase all"),
        (("--phase", "teacher"), "--attention_levels"),
        (("--phase", "teacher", "--attention_levels", 2, 3, 4, 5, "--share_ears"), "--share_ears"),
        (("--phase", "finetune", "--lambda_response", 1), "--lambda_response"),
        (("--phase", "finetune", "--response_at", "everywhere"), "--response_at"),
        (("--phase", "finetune", "--teacher_checkpoint", "x.pth"), "--teacher_checkpoint"),
        (("--phase", "finetune", "--use_pretrained_rgb", "imagenet"), "--use_pretrained_rgb"),
        (("--phase", "finetune", "--freeze_rgb"), "--freeze_rgb"),
        (("--phase", "teacher", "--attention_levels", 2, 3, 4, 5, "--export_student"), "--export_student"),
        (("--teacher_checkpoint", "x.pth", "--use_pretrained_rgb", "imagenet"), "--use_pretrained_rgb"),
        (("--teacher_checkpoint", "nowhere.pth"), "nowhere.pth"),
        (("--use_pretrained_rgb", "nowhere.pth"), "nowhere.pth"),
        (("--n_bins", 1), "--n_bins"),
        (("--label_fraction", 0, "--lambda_task", 3), "--lambda_task has no effect"),
        (("--label_fraction", 0, "--task_loss", "silog"), "--task_loss has no effect"),
        (("--label_fraction", 0, "--lambda_chamfer", 1), "--lambda_chamfer has no effect"),
        ((*NOTHING, "--lambda_feature", 0, "--lambda_sparse", 0), "nothing would teach the student metres"),
        (NOTHING, "nothing would teach the student metres"),
        (("--use_pretrained_rgb", ""), "--use_pretrained_rgb: is empty"),
        (("--phase", "all", "--phase_epochs", "1,2"), "--phase_epochs"),
    ],
)
def test_flags_that_are_refused(flags, named, rooms, tmp_path, run_cli):
    code, _, errors = run_cli(main, *arguments(rooms, tmp_path, *flags))
    assert code == 2
    assert named in errors
    assert not (tmp_path / "checkpoints").exists()


def test_a_frozen_teacher_that_says_no_depth_is_refused_without_labels(rooms, eye, tmp_path, run_cli):
    flags = ("--label_fraction", 0, "--freeze_rgb", "--teacher_checkpoint", eye, "--nb_epochs", 1)
    code, _, errors = run_cli(main, *arguments(rooms, tmp_path, *flags, "--lambda_response", 0, "--lambda_bin", 0))
    assert code == 2 and "nothing would teach the student metres" in errors
    assert run_cli(main, *arguments(rooms, tmp_path, *flags, "--lambda_response", 0))[0] == 0, "its bins do"


def test_a_teacher_of_other_bins_is_refused_where_bins_are_compared_slot_by_slot(rooms, eye, tmp_path, run_cli):
    flags = ("--nb_epochs", 1, "--freeze_rgb", "--teacher_checkpoint", eye, "--n_bins", 12)
    code, _, errors = run_cli(main, *arguments(rooms, tmp_path, *flags, "--bin_loss", "widths"))
    assert code == 2 and "n_bins=8 (asked for: 12)" in errors
    main(arguments(rooms, tmp_path, *flags, "--save_frequency", 1))
    assert load_checkpoint(tmp_path / "checkpoints/e/best_model.pth")["model"]["config"]["n_bins"] == 12
    assert float(rows(tmp_path)[0]["train_bin"]) > 0
    assert (tmp_path / "results/e/epoch_0001_distill.png").stat().st_size > 10_000


def test_the_defaults_of_the_documents():
    args = vars(train_adabins_distillation.create_parser().parse_args([]))
    expected = {"batch_size": 64, "learning_rate": 1e-3, "n_bins": 128, "base_channels": 64, "lambda_sparse": 0.1,
                "phase": "distill", "dataset": "batvisionv2"}  # fmt: skip
    assert {key: args[key] for key in expected} == expected
    taught = {"lambda_response": 0.5, "lambda_feature": 0.3, "lambda_bin": 0.2, "temperature": 4.0}
    assert {key: train_adabins_distillation.TEACHING[key] for key in taught} == taught
    loss = DistillationLoss()
    assert train_adabins_distillation.TEACHING["bin_loss"] == loss.bin_loss
    assert train_adabins_distillation.TEACHING["response_at"] == loss.response_at == "unmeasured"
    assert train_adabins_distillation.NB_EPOCHS == 200
