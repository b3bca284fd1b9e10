"""A batch in parts: the same gradients, and a way on when the memory runs out."""

from types import SimpleNamespace

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from errors import TrainingError
from training.micro_batches import MicroBatches, split_batch
from training.task import Task, count_images, mean_over_images


class Narrow(Task):
    """A line through points, some of them without a label, on a device that holds so many of them at a time."""

    def __init__(self, holds=100):
        super().__init__(nn.Linear(1, 1))
        self.holds, self.seen = holds, []

    def forward(self, batch, progress):
        self.seen.append(len(batch["id"]))
        if len(batch["id"]) > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        errors = (self.student(batch["x"]) - batch["y"]).square().flatten()  # [B]
        loss = mean_over_images(errors)
        labelled = batch["labelled"]
        counts = {"task": count_images(labelled)}
        return {"loss": loss, "task": mean_over_images(errors, labelled), "depth": batch["x"], "counts": counts}


@pytest.fixture
def batch():
    torch.manual_seed(0)
    labelled = torch.tensor([True, False, False, False, True, True, False])
    return {"id": list("abcdefg"), "x": torch.randn(7, 1), "y": torch.randn(7, 1), "labelled": labelled}


def backward(task, batch, size=None, said=None):
    micro = MicroBatches(Fabric(accelerator="cpu", devices=1), size, (said if said is not None else []).append)
    torch.nn.init.ones_(task.student.weight)
    torch.nn.init.zeros_(task.student.bias)
    losses = micro.backward(task, batch, 0.0)
    return losses, [parameter.grad.clone() for parameter in task.parameters()], micro.size


def test_parts_cover_the_batch_once(batch):
    parts = list(split_batch(batch, 3))
    assert [done for done, _ in parts] == [3, 6, 7]
    assert "".join("".join(part["id"]) for _, part in parts) == "abcdefg"
    assert torch.equal(torch.cat([part["x"] for _, part in parts]), batch["x"])


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, 50])
def test_parts_have_the_gradients_and_losses_of_the_whole(batch, size):
    whole, expected, _ = backward(Narrow(), batch)
    task = Narrow()
    losses, gradients, _ = backward(task, batch, size)
    assert max(task.seen) <= size
    for ours, theirs in zip(gradients, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
    assert losses["loss"] == pytest.approx(float(whole["loss"]), abs=1e-6)
    assert losses["task"] == pytest.approx(float(whole["task"]), abs=1e-6)  # over the three that have a label
    assert float(losses["counts"]["task"]) == 3


def test_parts_are_halved_until_they_fit_and_leave_nothing_behind(batch):
    _, expected, _ = backward(Narrow(), batch)
    task, said = Narrow(holds=2), []
    _, gradients, size = backward(task, batch, said=said)
    assert task.seen == [7, 4, 2, 2, 2, 1]
    assert size == 2
    assert len(said) == 2 and "7 images" in said[0] and "from now on 4" in said[0]
    for ours, theirs in zip(gradients, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_memory_that_runs_out_in_the_middle_of_a_batch_begins_it_again(batch):
    class Late(Narrow):
        def forward(self, batch, progress):
            self.holds = 1 if len(self.seen) == 1 else 100  # the second part of the first attempt
            return super().forward(batch, progress)

    _, expected, _ = backward(Narrow(), batch)
    _, gradients, size = backward(Late(), batch, size=4)
    assert size == 2
    for ours, theirs in zip(gradients, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_one_image_too_many_ends_the_run_with_advice(batch):
    with pytest.raises(TrainingError, match=r"does not hold 1 image\(s\).*--image_size"):
        backward(Narrow(holds=0), batch)


def test_answers_are_asked_for_in_parts_that_fit(batch):
    asked, said = [], []

    def double(part):
        asked.append(len(part["id"]))
        if len(part["id"]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 2 * weight * part["x"]

    weight = torch.ones(1, requires_grad=True)
    micro = MicroBatches(Fabric(accelerator="cpu", devices=1), 5, said.append)
    answers = micro.answers(double, batch)
    assert torch.equal(answers, 2 * batch["x"]) and not answers.requires_grad
    assert asked == [5, 3, 3, 1] and len(said) == 1
    assert torch.equal(micro.answers(double, batch), 2 * batch["x"])
    assert asked[4:] == [3, 3, 1], "it stays that size"


def test_one_of_several_processes_does_not_take_other_parts_than_the_rest(batch):
    fabric = SimpleNamespace(world_size=2)

    def never(part):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(TrainingError, match=r"does not hold 7 image\(s\).*--micro_batch"):
        MicroBatches(fabric).answers(never, batch)
