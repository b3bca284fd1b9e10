"""How fast a step of Distill-Any-Depth is, against the step that one writes first.

    python benchmarks/bench_distill_any_depth.py --teacher vitl --student vitb --image_size 392 --batch_size 1

Naive: a teacher in float32 whose gradients are tracked, so that backward goes through it too; one call of it for the
view and one for each closer view; attention that writes out its matrix; losses that loop over images, levels and
contexts. Ours is the step of ``train_distill_any_depth.py``. Both update the student with AdamW, on the same random
weights and pictures. A last column holds their losses in float32 against each other.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import measure
from errors import OptionError, run_script
from models.depth_anything import ALIASES, PRESETS, create_depth_anything_model
from training import options
from training.engine import create_fabric, resolve_precision
from training.micro_batches import MicroBatches
from training.session import create_optimizer
from training.task import model_inputs
from training.tasks import DisparityDistillationTask
from utils_distillation_loss import FLAT, RECIPES, SPREAD_EPS, DisparityDistillationLoss

LEVELS = 3  # of contexts
SCALES = 4  # of the gradient's loss
MULTIPLE = 14


def create_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag and its default."""
    parser = measure.create_parser(__doc__ or "", rounds=3)
    names = (*PRESETS, *ALIASES)
    group = parser.add_argument_group("networks and step")
    group.add_argument("--teacher", choices=names, default="vitb", metavar="NAME", help=", ".join(names))
    group.add_argument("--student", choices=names, default="vits", metavar="NAME", help="one of the same")
    group.add_argument(
        "--image_size", type=options.positive_int, default=224, metavar="PIXELS", help="side, a multiple of 14"
    )
    group.add_argument("--batch_size", type=options.positive_int, default=2, metavar="N", help="pictures of a step")
    group.add_argument("--local_crops", type=options.positive_int, default=2, metavar="N", help="closer views of each")
    group.add_argument("--recipe", choices=tuple(RECIPES), default="documents", help="weights of the loss")
    group.add_argument("--precision", choices=options.PRECISIONS, default="auto", help="of our student")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    args = measure.parse(create_parser(), argv)
    if args.image_size % MULTIPLE:
        raise OptionError(f"--image_size {args.image_size} is no multiple of {MULTIPLE}")
    device = measure.device()
    settings = vars(args)
    apart = losses_apart(settings)
    steps = {"naive": measure.Apart(naive_step, settings), "ours": measure.Apart(our_step, settings)}
    seconds = measure.take_turns(steps, args.rounds, device)
    for step in steps.values():
        step.end()
    row = {
        "teacher": args.teacher,
        "student": args.student,
        "naive [s]": statistics.median(seconds["naive"]),
        "ours [s]": statistics.median(seconds["ours"]),
        "ratio": measure.ratio(seconds["naive"], seconds["ours"]),
        "naive [GiB]": steps["naive"].memory / 2**30,
        "ours [GiB]": steps["ours"].memory / 2**30,
        "losses apart, float32": apart,
    }
    measure.report(args, [row], ratio=row["ratio"], losses_apart=apart)


def build_networks(settings: dict[str, Any]) -> tuple[Any, Any, DisparityDistillationLoss]:
    """Return student, teacher and loss, drawn under one seed."""
    torch.manual_seed(0)
    student, teacher = (create_depth_anything_model(settings[name]) for name in ("student", "teacher"))
    widths = (student.feature_shapes()["t4"][0], teacher.feature_shapes()["t4"][0])
    return student, teacher.eval(), DisparityDistillationLoss(**RECIPES[settings["recipe"]], widths=widths)


def build_batch(settings: dict[str, Any]) -> dict[str, Any]:
    """Return pictures [B, 3, S, S], closer views [B, N, 3, S, S] of them and where these lie [B, N, 4]."""
    torch.manual_seed(1)
    images, crops, side = (settings[key] for key in ("batch_size", "local_crops", "image_size"))
    low, high = 0.2 * side * torch.rand(images, crops, 2), side * (0.7 + 0.3 * torch.rand(images, crops, 2))
    coarse = torch.rand(images, 3, 8, 8)
    return {
        "rgb": F.interpolate(coarse, (side, side), mode="bilinear"),
        "local": torch.rand(images, crops, 3, side, side),
        "boxes": torch.cat([low, high], dim=2),
        "id": [str(number) for number in range(images)],
    }


def our_step(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Return a step of the script's, which returns its losses."""
    args = argparse.Namespace(
        precision=settings["precision"], gpu_ids=None, optimizer="AdamW", learning_rate=1e-5, weight_decay=0.01
    )
    fabric = create_fabric(args)
    student, teacher, loss = build_networks(settings)
    bf16 = settings["precision"] != "32" and resolve_precision("auto", fabric.device.type) == "bf16"
    task = DisparityDistillationTask(
        student, [teacher], [loss], [1.0], encoder=student.pretrained, bf16_teachers=bf16
    ).to(memory_format=torch.channels_last)
    optimizer = create_optimizer(task, args)
    wrapped, wrapped_optimizer = fabric.setup(task, optimizer)
    batch = fabric.to_device(build_batch(settings))
    micro = MicroBatches(fabric)

    def step() -> dict[str, Any]:
        losses = micro.backward(wrapped, batch, 0.5)
        wrapped_optimizer.step()
        wrapped_optimizer.zero_grad(set_to_none=True)
        return losses

    return step


def naive_step(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Return a step as one writes it first, which returns its losses."""
    device = measure.device()
    student, teacher, loss = build_networks(settings)
    align: Any = loss.align
    for network in (student, teacher, align):
        network.to(device)
        for module in network.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
    optimizer = torch.optim.AdamW([*student.parameters(), *align.parameters()], lr=1e-5)
    batch = {key: value.to(device) for key, value in build_batch(settings).items() if isinstance(value, Tensor)}

    def step() -> dict[str, Any]:
        optimizer.zero_grad()
        answer, features = student(*model_inputs(student, batch), return_features=True)
        taught, seen = teacher(*model_inputs(teacher, batch), return_features=True)
        closer = [teacher(*model_inputs(teacher, {"rgb": view})) for view in batch["local"].unbind(1)]
        terms: dict[str, list[Tensor]] = {term: [] for term, weight in loss.weights.items() if weight > 0}
        for i in range(len(answer)):
            views = [(cut(answer[i, 0], batch["boxes"][i, n]), closer[n][i, 0]) for n in range(len(closer))]
            found = {
                "sc": lambda i=i: normalized(answer[i, 0], taught[i, 0], loss.normalization),
                "lg": lambda views=views: torch.stack([normalized(s, t, loss.normalization) for s, t in views]).mean(),
                "feat": lambda i=i: align(features["t4"][i : i + 1], seen["t4"][i : i + 1]).mean(),
                "grad": lambda i=i: gradients(answer[i, 0], taught[i, 0]),
                "hdn": lambda i=i: in_contexts(answer[i, 0], taught[i, 0]),
            }
            for term, values in terms.items():
                values.append(found[term]())
        means = {term: torch.stack(values).mean() for term, values in terms.items()}
        total = sum(loss.weights[term] * value for term, value in means.items())
        assert isinstance(total, Tensor)
        total.backward()
        optimizer.step()
        return {"loss": total.detach(), **{term: value.detach() for term, value in means.items()}}

    return step


def losses_apart(settings: dict[str, Any]) -> float:
    """Return the largest difference of a term, as a share of it, between the two steps in float32."""
    settings = settings | {"precision": "32"}
    naive, ours = naive_step(settings)(), our_step(settings)()
    return max(abs(float(ours[term]) - float(value)) / max(abs(float(value)), 1e-6) for term, value in naive.items())


def normalize(d: Tensor, floor: Tensor | float = SPREAD_EPS) -> Tensor:
    """Take median and mean deviation out of some pixels."""
    centred = d - d.flatten().median()
    return centred / centred.abs().mean().clamp(min=floor)


def normalized(student: Tensor, teacher: Tensor, normalization: str) -> Tensor:
    """Compare two maps [H, W]."""
    if normalization == "hybrid":
        return in_contexts(student, teacher)
    return (normalize(student) - normalize(teacher)).abs().mean()


def in_contexts(student: Tensor, teacher: Tensor) -> Tensor:
    """HDN of level 3, one context after the other."""
    share = (teacher - teacher.min()) / (teacher.max() - teacher.min())
    flat = [FLAT * (d - d.flatten().median()).abs().mean().clamp(min=SPREAD_EPS).detach() for d in (student, teacher)]
    total = torch.zeros((), device=student.device)
    for level in range(LEVELS):
        number = 2**level
        for part in range(number):
            upper = share < (part + 1) / number if part + 1 < number else share <= 1
            inside = (share >= part / number) & upper
            if inside.any():
                floors: Sequence[Any] = flat if level else (SPREAD_EPS, SPREAD_EPS)
                s, t = (normalize(d[inside], floor) for d, floor in zip((student, teacher), floors, strict=True))
                total = total + (s - t).abs().sum()
    return total / student.numel() / LEVELS


def gradients(student: Tensor, teacher: Tensor) -> Tensor:
    """Differences of neighbours at four scales."""
    residual = normalize(student) - normalize(teacher)
    total = torch.zeros((), device=student.device)
    for scale in range(SCALES):
        coarse = residual[:: 2**scale, :: 2**scale]
        total = total + coarse.diff(dim=0).abs().sum() + coarse.diff(dim=1).abs().sum()
    return total / student.numel()


def cut(disparity: Tensor, box: Tensor) -> Tensor:
    """Cut a box out of a map [H, W] and resize it to the map's size, bilinearly."""
    height, width = disparity.shape
    x0, y0, x1, y1 = box
    x = x0 + (torch.arange(width, device=box.device) + 0.5) * (x1 - x0) / width
    y = y0 + (torch.arange(height, device=box.device) + 0.5) * (y1 - y0) / height
    grid = torch.stack(torch.meshgrid(2 * y / height - 1, 2 * x / width - 1, indexing="ij")[::-1], dim=-1)
    sampled = F.grid_sample(disparity[None, None], grid[None], padding_mode="border", align_corners=False)
    return sampled[0, 0]


if __name__ == "__main__":
    run_script(main)
