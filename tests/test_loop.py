"""The loop's promises: a NaN reaches nothing, a full disk loses nothing, random state belongs to the epoch."""

import argparse
import itertools
import math
import os
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from dataloaders import create_dataset, create_loader
from errors import CheckpointError, DataError, OptionError, TrainingError, UserError, from_worker
from models import create_model
from training import checkpoint, loop, optimizers
from training.engine import create_fabric, find_devices, resolve_precision, seed_epoch
from training.files import write_whole
from training.micro_batches import MicroBatches
from training.run_log import RunLog, Table, read_csv
from training.session import learning_rate_factor
from training.task import Task, count_images, mean_over_images
from training.tasks import SupervisedDepthTask

OPTIMIZERS = {
    "AdamW": partial(torch.optim.AdamW, fused=True),
    "Adam": partial(torch.optim.Adam, fused=True),
    "SGD": partial(torch.optim.SGD, fused=True),
    "Muon": optimizers.muon,
}


class PoisonedTask(SupervisedDepthTask):
    """Loses its mind at one step: in the loss, or in the gradient alone."""

    def __init__(self, student, step, where):
        super().__init__(student, {"l1": 1.0, "smooth": 0.1})
        self.countdown, self.where = step, where

    def forward(self, batch, progress):
        losses = super().forward(batch, progress)
        if self.countdown == 0 and self.where == "loss":
            losses["loss"] = losses["loss"] * math.nan
        elif self.countdown == 0:
            weight = self.student.head.project.weight
            losses["loss"] = (
                losses["loss"] + torch.sqrt((weight - weight.detach()) ** 2).sum()
            )  # 0, but its slope is NaN
        self.countdown -= 1
        return losses


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_nan_stops_the_run_before_it_reaches_the_weights(rooms, tmp_path, optimizer, where):
    torch.manual_seed(0)
    dataset = create_dataset("simulated", rooms, "train", image_size=32, modalities={"rgb", "depth"})
    loader = create_loader(dataset, 3, shuffle=True, num_workers=0)
    fabric = Fabric(accelerator="cpu", devices=1)
    task = PoisonedTask(create_model("rgb_depth", base_channels=4), 2, where)
    wrapped, optimizer = fabric.setup(task, OPTIMIZERS[optimizer](task.parameters(), lr=1e-2))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer.optimizer, lambda step: 1.0)
    log = RunLog(tmp_path, tmp_path)

    seen = []
    step = optimizer.step
    optimizer.step = lambda *a, **k: (step(*a, **k), seen.append([p.detach().clone() for p in task.parameters()]))
    with pytest.raises(TrainingError, match="step 3") as stopped:
        loop.train_epoch(fabric, wrapped, optimizer, scheduler, loader, epoch=1, steps=4, total=4, log=log)
    loader.batch_sampler.start_epoch(0)
    third = [index for _, index in list(loader.batch_sampler)[2]]
    assert all(dataset.ids[index] in str(stopped.value) for index in third)
    assert any(not torch.equal(a, b) for a, b in zip(seen[0], seen[1], strict=True)), "it was learning"
    for later in seen[2:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[1], later, strict=True))


def test_blank_maps_are_counted(rooms, tmp_path, capsys):
    dataset = create_dataset("simulated", rooms, "train", image_size=32, modalities={"rgb", "depth"})
    dataset._clean_depth = lambda row, pick: torch.zeros(1, 32, 32)
    loader = create_loader(dataset, 4, shuffle=True, num_workers=0)
    fabric = Fabric(accelerator="cpu", devices=1)
    task = SupervisedDepthTask(create_model("rgb_depth", base_channels=4), {"l1": 1.0, "smooth": 0.1})
    wrapped, optimizer = fabric.setup(task, torch.optim.AdamW(task.parameters(), fused=True))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer.optimizer, lambda step: 1.0)
    with RunLogIn(tmp_path) as log:
        means = loop.train_epoch(fabric, wrapped, optimizer, scheduler, loader, epoch=1, steps=3, total=3, log=log)
    assert "12 training images have no valid depth pixel" in capsys.readouterr().out
    assert means["train_l1"] == 0


class CountedTask(Task):
    """Its parts are the depths themselves: over the labelled images, and over all."""

    uses_unlabelled = True

    def forward(self, batch, progress):
        values = self.student(batch["depth"].mean(dim=(2, 3)))[:, 0]  # [B]; the student multiplies by 1
        labelled = (batch["depth"] > 0).flatten(1).any(dim=1)
        parts = {"task": mean_over_images(values, labelled), "all": mean_over_images(values)}
        return {"loss": parts["all"], "depth": batch["depth"], **parts, "counts": {"task": count_images(labelled)}}


DEPTHS = ([2.0, 4.0], [0.0, 0.0], [6.0, 0.0])  # of each image of three steps; 0: no label


def means_of_an_epoch(fabric, folder, share=slice(None)):
    student = nn.Linear(1, 1, bias=False)
    nn.init.ones_(student.weight)
    task = CountedTask(student)
    task, optimizer = fabric.setup(task, torch.optim.SGD(task.parameters(), lr=0.0, fused=True))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer.optimizer, lambda step: 1.0)
    maps = [torch.tensor(depths[share])[:, None, None, None].expand(-1, 1, 2, 2) for depths in DEPTHS]
    loader = [{"depth": depth, "id": ["?"] * len(depth)} for depth in maps]
    log = RunLog(folder, folder, enabled=fabric.is_global_zero)
    return loop.train_epoch(fabric, task, optimizer, scheduler, loader, epoch=1, steps=3, total=3, log=log)


def save_means_of_a_process(rank, port, folder):
    torchrun = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    torchrun |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({key: str(value) for key, value in torchrun.items()})
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    torch.save(means_of_an_epoch(fabric, folder, slice(rank, None, 2)), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_the_mean_of_what_labels_teach_is_over_the_labelled_images(tmp_path):
    means = means_of_an_epoch(Fabric(accelerator="cpu", devices=1), tmp_path)
    assert means["train_task"] == pytest.approx((2 + 4 + 6) / 3)
    assert means["train_all"] == pytest.approx((3 + 0 + 3) / 3)
    steps = read_csv(tmp_path / "steps.csv")
    assert [(row["task"], row["all"]) for row in steps] == [(3, 3), (0, 0), (6, 3)]
    port = 27500 + os.getpid() % 2000
    torch.multiprocessing.spawn(save_means_of_a_process, (port, tmp_path), 2)
    for rank in (0, 1):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(means)
    both = read_csv(tmp_path / "steps.csv")
    assert [pytest.approx(row) for row in steps] == both, "of both, not the first one's share"


class RunLogIn:
    def __init__(self, folder):
        self.log = RunLog(folder, folder)

    def __enter__(self):
        return self.log

    def __exit__(self, *_):
        self.log.close()


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.pth"
    checkpoint.save_checkpoint({"epoch": 1}, path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoint.save_checkpoint({"epoch": 2}, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pth"]


@pytest.mark.parametrize(
    ("error", "told", "says"),
    [
        (KeyboardInterrupt(15), KeyboardInterrupt, "15"),
        (OSError(28, "No space left on device"), CheckpointError, "No space left"),
    ],
)
def test_a_save_that_is_broken_anywhere_is_told_by_its_cause(error, told, says, tmp_path, monkeypatch):
    """torch's writer meets errors where it calls ``write``, and ends on its own: that it stands at another place."""
    path, state = tmp_path / "last.pth", {"epoch": 1, "weights": torch.zeros(300, 30)}
    checkpoint.save_checkpoint(state, path)
    before = path.read_bytes()
    left = None  # writes until the error

    @contextmanager
    def write_badly(path, **options):
        with write_whole(path, **options) as file:

            def write(data):
                nonlocal left
                left -= 1
                if left == 0:
                    raise error
                return file.write(data)

            yield SimpleNamespace(write=write, flush=file.flush)

    monkeypatch.setattr(checkpoint, "write_whole", write_badly)
    for number in itertools.count(1):
        left, error.__context__ = number, None
        try:
            checkpoint.save_checkpoint(state, path)
        except told as met:
            assert says in str(met)
            assert path.read_bytes() == before
        else:
            break
    assert left > 0, "a broken write ended well"
    assert number > 20


def test_random_state_belongs_to_seed_epoch_and_process():
    def draw(*state):
        seed_epoch(*state)
        return torch.rand(1).item()

    assert draw(3, 5, 0) == draw(3, 5, 0)
    assert len({draw(3, 5, 0), draw(3, 6, 0), draw(4, 5, 0), draw(3, 5, 1)}) == 4


def test_learning_rates():
    cosine, step, none = (learning_rate_factor(kind, 100) for kind in ("cosine", "step", "none"))
    assert [cosine(0), cosine(50), cosine(100)] == pytest.approx([1, 0.5, 0], abs=1e-12)
    assert [step(0), step(49), step(50), step(75)] == pytest.approx([1, 1, 0.1, 0.01])
    assert none(99) == 1
    again = learning_rate_factor("cosine", 100, restarts=(0.25, 0.75))
    assert [again(step) for step in (0, 24, 25, 50, 75, 100)] == pytest.approx([1, cosine(96), 1, 0.5, 1, 0], abs=1e-12)
    warm = learning_rate_factor("cosine", 100, warmup=10)
    assert [warm(step) for step in (0, 4, 9, 50)] == pytest.approx([0.1, 0.5 * cosine(4), cosine(9), 0.5])


def test_precision():
    assert resolve_precision("32") == "32"
    assert resolve_precision("auto") in ("32", "bf16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU decides there")
def test_a_cpu_computes_in_bf16_where_it_multiplies_it(monkeypatch):
    for has, expected in (({"avx512_f": True}, "32"), ({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: has)
        assert resolve_precision("auto") == expected


class Recording(CountedTask):
    """Remembers the measured depth that it was given."""

    def forward(self, batch, progress):
        self.seen = batch["depth"].clone()
        return super().forward(batch, progress)


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_measured_depth_is_not_rounded(precision):
    fabric = create_fabric(argparse.Namespace(precision=precision, gpu_ids=None))
    task = Recording(nn.Linear(1, 1))
    depth = torch.tensor([4.9876, 1.2345])[:, None, None, None].expand(-1, 1, 2, 2)
    fabric.setup(task)({"depth": depth.to(fabric.device), "id": ["a", "b"]}, 0.0)
    assert torch.equal(task.seen.cpu(), depth)
    with fabric.autocast():
        dtype = task.student(torch.ones(1, 1, device=fabric.device)).dtype
    assert dtype == (torch.float32 if precision == "32" else torch.bfloat16)


def test_tables_drop_later_rows_and_grow_columns(tmp_path):
    table = Table(tmp_path / "t.csv", "epoch", 0)
    table.append([{"epoch": 1, "loss": 0.1}])
    table.append([{"epoch": 2, "loss": 1 / 3}])
    with (tmp_path / "t.csv").open("a") as file:
        file.write("3")  # a kill in the middle of a row
    again = Table(tmp_path / "t.csv", "epoch", 1)
    again.append([{"epoch": 2, "loss": 1 / 3, "more": 7}])
    rows = read_csv(tmp_path / "t.csv")
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[1]["loss"] == 1 / 3
    assert "more" not in rows[0]


@pytest.mark.parametrize("cut", ["3,6.1e-", "3,6.1", "3,", "3"])
def test_a_row_that_is_cut_off_is_no_row(tmp_path, cut):
    Table(tmp_path / "t.csv", "epoch", 0).append([{"epoch": 1, "loss": 0.1}, {"epoch": 2, "loss": 6.1e-5}])
    with (tmp_path / "t.csv").open("a") as file:
        file.write(cut)
    assert read_csv(tmp_path / "t.csv") == [{"epoch": 1, "loss": 0.1}, {"epoch": 2, "loss": 6.1e-5}]
    Table(tmp_path / "t.csv", "epoch", 2)
    assert (tmp_path / "t.csv").read_bytes() == b"epoch,loss\r\n1,0.1\r\n2,6.1e-05\r\n"


def test_a_row_that_holds_no_number_is_named(tmp_path):
    (tmp_path / "t.csv").write_text("epoch,loss\n1,0.5\n2,low\n")
    with pytest.raises(DataError, match=r"t.csv, row 2: .*'low'"):
        read_csv(tmp_path / "t.csv")


needs_full_disk = pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full is Linux's")
FULL_DISK = r"cannot be written \(.*No space left on device"


@needs_full_disk
def test_a_log_names_the_file_for_which_the_disk_is_full(tmp_path):
    log = RunLog(tmp_path, tmp_path)
    log.steps([{"step": 1, "loss": 0.5}])
    log.epoch({"epoch": 1, "train_loss": 0.5}, 1)
    for name, keep in (
        ("steps.csv", lambda: log.steps([{"step": 2, "loss": 0.5}])),
        ("metrics.csv", lambda: log.epoch({"epoch": 2, "train_loss": 0.5}, 2)),
    ):
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to("/dev/full")
        with pytest.raises(OptionError, match=f"{name} {FULL_DISK}"):
            keep()
    log.close()


@needs_full_disk
def test_a_line_for_which_the_disk_is_full_ends_in_no_traceback(tmp_path, capsys):
    (tmp_path / "console.log").symlink_to("/dev/full")
    log = RunLog(tmp_path, tmp_path)
    for keep in (lambda: log.say("hello"), log.close):  # what could not be written is tried again at the end
        with pytest.raises(OptionError, match=f"console.log {FULL_DISK}"):
            keep()
    assert capsys.readouterr().out == "hello\n"


def test_a_workers_error_comes_as_it_was_raised():
    wrapped = DataError(
        'Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File "x"\n'
        "errors.DataError: a.wav: mono (train.csv, row 3)\n"
    )
    assert str(from_worker(wrapped)) == "a.wav: mono (train.csv, row 3)"
    assert str(from_worker(UserError("plain"))) == "plain"


def test_a_task_saves_what_trains_beside_its_student():
    class WithAdapter(Task):
        def __init__(self):
            super().__init__(nn.Linear(2, 2))
            self.adapter = nn.Linear(2, 3)

    task, other = WithAdapter(), WithAdapter()
    assert set(task.extra_state()) == {"adapter.weight", "adapter.bias"}
    other.load_extra_state(task.extra_state())
    assert torch.equal(other.adapter.weight, task.adapter.weight)
    with pytest.raises(RuntimeError):
        other.load_extra_state({"adapter.weight": torch.zeros(3, 2)} | {"gone": torch.zeros(1)})


# ----------------------------------------------------------------------------------------------------------- validation


class Eye(nn.Module):
    """Answers with the green of each pixel; the memory holds so many pictures at a time."""

    inputs, imagenet_normalize, output = ("rgb",), False, "metres"

    def __init__(self, holds):
        super().__init__()
        self.holds, self.seen = holds, []

    def forward(self, rgb, return_features=False):
        self.seen.append(len(rgb))
        if len(rgb) > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1 + 9 * rgb[:, 1:2]


def test_validation_takes_as_many_images_at_a_time_as_fit(rooms):
    dataset = create_dataset("simulated", rooms, "train", image_size=32, modalities={"rgb", "depth"})
    loader = create_loader(dataset, 6, shuffle=False, num_workers=0)
    fabric, said = Fabric(accelerator="cpu", devices=1), []
    whole = loop.evaluate(fabric, Eye(6), loader)
    eye, micro = Eye(2), MicroBatches(fabric, 4, said.append)
    in_parts = loop.evaluate(fabric, eye, loader, micro=micro)
    assert eye.seen == [4, 2, 2, 2, 2, 2, 2] and micro.size == 2 and len(said) == 1
    assert in_parts.mean() == pytest.approx(whole.mean())


@pytest.mark.parametrize(("processes", "here"), [(1, True), (1, False), (2, True), (2, False)])
def test_a_nan_of_another_process_accuses_no_sample_of_this_one(processes, here):
    fabric = SimpleNamespace(device="cpu", _precision=None, world_size=processes)
    weight = nn.Parameter(torch.ones(1))
    guard = loop.NotANumberGuard(fabric, torch.optim.SGD([weight], lr=0.1, fused=True))
    for step, bad in enumerate((False, True, True)):
        weight.grad = torch.full((1,), math.nan if bad else 1.0)  # averaged over the processes
        guard.watch(step, torch.tensor(math.nan if bad and (here or step == 2) else 1.0), [f"room{step}"])
    with pytest.raises(TrainingError, match="step 2, in the batch of room1") as stopped:
        guard.raise_if_tripped()
    assert ("another process" in str(stopped.value)) is (processes == 2 and not here)


# ------------------------------------------------------------------------------------------------------------ processes


@pytest.mark.parametrize(
    ("gpus", "nodes", "started", "expected"),
    [
        (None, 1, {}, [0]),
        (None, None, {"LOCAL_WORLD_SIZE": 1, "WORLD_SIZE": 1}, 1),
        ([2, 3], 1, {}, [2, 3]),
        (None, 2, {"LOCAL_WORLD_SIZE": 4, "WORLD_SIZE": 8}, 4),
        ([2, 3], 1, {"LOCAL_WORLD_SIZE": 2, "WORLD_SIZE": 2}, [2, 3]),
        ([0, 1], 2, {"SLURM_STEP_NUM_TASKS": 4}, [0, 1]),
        ([0, 1], 1, {"SLURM_STEP_NUM_TASKS": 1}, [0, 1]),
    ],
)
def test_processes_are_those_that_were_started(monkeypatch, gpus, nodes, started, expected):
    for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in started.items():
        monkeypatch.setenv(name, str(value))
    assert find_devices(gpus, nodes, use_cuda=True) == expected


@pytest.mark.parametrize(
    ("gpus", "nodes", "started", "named"),
    [
        (None, 1, {"LOCAL_WORLD_SIZE": 1, "WORLD_SIZE": 2}, "give --num_nodes 2"),
        (None, 1, {"LOCAL_WORLD_SIZE": 2, "WORLD_SIZE": 3}, "as many"),
        ([0], 1, {"LOCAL_WORLD_SIZE": 2, "WORLD_SIZE": 2}, "--gpu_ids 0: torchrun started 2"),
        (None, 1, {"SLURM_STEP_NUM_TASKS": 2}, r"2 tasks.*1 process\(es\)"),
        (None, None, {"SLURM_STEP_NUM_TASKS": 2}, "one process"),
        ([0], None, {"LOCAL_WORLD_SIZE": 2, "WORLD_SIZE": 2}, "one process"),
        ([0, 1], 1, {"SLURM_STEP_NUM_TASKS": 4}, "--num_nodes"),
    ],
)
def test_processes_that_would_train_alone_are_refused(monkeypatch, gpus, nodes, started, named):
    for name, value in started.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(OptionError, match=named):
        find_devices(gpus, nodes, use_cuda=True)


SLURM = {"SLURM_JOB_NAME": "train", "SLURM_JOB_ID": 12345, "SLURM_NNODES": 2, "SLURM_NTASKS_PER_NODE": 1}
SLURM |= {"SLURM_PROCID": 0, "SLURM_LOCALID": 0, "SLURM_NODEID": 0, "SLURM_NODELIST": "localhost"}


@pytest.mark.parametrize(
    ("job", "named"),
    [
        ({"SLURM_NTASKS": 2}, "SLURM has started 1: .* start the script by srun"),  # python, where srun was meant
        ({"SLURM_NTASKS": 1, "SLURM_STEP_NUM_TASKS": 1}, "SLURM has started 1"),
        ({"SLURM_NTASKS": 2, "SLURM_NNODES": 1}, "--num_nodes 2, .*Set `num_nodes=1`"),
    ],
)
def test_a_slurm_job_that_would_wait_for_ever_is_refused(monkeypatch, job, named):
    for name, value in (SLURM | job).items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(OptionError, match=named):
        create_fabric(argparse.Namespace(gpu_ids=None, num_nodes=2, precision="32", device="cpu"))
