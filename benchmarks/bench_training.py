"""How fast a training step is: this house's loop against the same network in plain PyTorch, and against the machine.

    python benchmarks/bench_training.py --model rgb_depth --base_channels 64 --image_size 128 --batch_size 4

Ours is the real epoch (``training.loop``): channels last, ``--precision auto``, fused optimiser, the guard against NaN,
the step's row for the log. Plain is float32, NCHW, eager, with the default AdamW, a masked L1 and nothing else. Both
take the same batch from memory, so that no disk has a part in it. GFLOP are those of convolutions and products, forward
and backward, as PyTorch counts them; the peak is what a 3x3 convolution 128 -> 128 at 4x128x128 reaches, channels last.
Plain and ours are processes of their own, since ours keeps the memory that it frees (``training.machine``) and plain
does not. Memory is what each needs beyond what it holds before the network is built.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import measure
from errors import run_script
from models import MODELS, create_model
from training import loop, options
from training.engine import create_fabric, resolve_precision
from training.machine import keep_freed_memory
from training.run_log import RunLog
from training.session import create_optimizer
from training.tasks import SupervisedDepthTask

NETWORKS = tuple(name for name, model in MODELS.items() if model.output == "metres")
MAX_DEPTH = 12.0


def create_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag and its default."""
    parser = measure.create_parser(__doc__ or "", rounds=7)
    group = parser.add_argument_group("networks and step")
    group.add_argument("--model", choices=NETWORKS, nargs="+", default=list(NETWORKS), metavar="NAME", help="networks")
    group.add_argument("--base_channels", type=options.positive_int, default=64, metavar="N", help="width")
    group.add_argument("--image_size", type=options.positive_int, default=128, metavar="PIXELS", help="side")
    group.add_argument("--batch_size", type=options.positive_int, default=4, metavar="N", help="images of a step")
    group.add_argument("--steps", type=options.positive_int, default=2, metavar="N", help="steps of a turn")
    group.add_argument(
        "--precision", choices=options.PRECISIONS, nargs="+", default=["auto"], metavar="P", help="ours, a row for each"
    )
    group.add_argument("--compile", action="store_true", help="ours, with torch.compile too: a row more for each")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    args = measure.parse(create_parser(), argv)
    for name in args.model:
        build_model(vars(args) | {"model": name}).check_image_size(args.image_size)
    keep_freed_memory()  # the peak is the arithmetic's
    device = measure.device()
    peaks = measure_peaks(device, args.rounds)
    rows = [row for name in args.model for row in measure_model(args, name, device, peaks)]
    first = {key: rows[0][key] for key in ("ratio", "gflops")}
    measure.report(args, rows, **first, **peaks)


def measure_peaks(device: str, rounds: int) -> dict[str, float]:
    """Return what the machine reaches in GFLOP/s, in bf16 and in float32."""
    found = {}
    often = 1 if device == "cpu" else 100  # one alone is over before a GPU's launch and wait are
    for name, build in (("conv", measure.convolution), ("matmul", measure.product)):
        for suffix, dtype in (("", torch.bfloat16), ("_fp32", torch.float32)):
            run, work = build(dtype, device)
            seconds = measure.take_turns({name: repeated(run, often)}, 2 * rounds, device)[name]
            found[f"{name}_peak_gflops{suffix}"] = often * work / statistics.median(seconds)
    return found


def repeated(run: Callable[[], object], often: int) -> Callable[[], object]:
    """Return what calls ``run`` so many times."""

    def run_often() -> None:
        for _ in range(often):
            run()

    return run_often


def measure_model(args: argparse.Namespace, name: str, device: str, peaks: dict[str, float]) -> list[dict[str, object]]:
    """Return the rows of a network: one for each precision, and compiled, which take turns with the plain steps."""
    settings = [
        vars(args) | {"model": name, "precision": precision, "compile": compiled}
        for precision in args.precision
        for compiled in ([False, True] if args.compile else [False])
    ]
    variants = {"plain": measure.Apart(plain_step, settings[0])}
    variants |= {f"{number}": measure.Apart(our_step, one) for number, one in enumerate(settings)}
    seconds = measure.take_turns(variants, args.rounds, device)
    for variant in variants.values():
        variant.end()
    work = work_of(settings[0])
    rows = []
    for number, one in enumerate(settings):
        times = seconds[f"{number}"]
        step = statistics.median(times) / args.steps
        precision = resolve_precision(one["precision"], device)
        peak = peaks["conv_peak_gflops" if precision != "32" else "conv_peak_gflops_fp32"]
        rows.append(
            {
                "model": name,
                "plain [s]": statistics.median(seconds["plain"]) / args.steps,
                "ours [s]": step,
                "in": f"{precision}, compiled" if one["compile"] else precision,
                "ratio": measure.ratio(seconds["plain"], times),
                "samples/s": args.batch_size / step,
                "gflops": work / step,
                "of the bf16 peak": work / step / peaks["conv_peak_gflops"],
                "of its own peak": work / step / peak,
                "plain [GiB]": variants["plain"].memory / 2**30,
                "ours [GiB]": variants[f"{number}"].memory / 2**30,
            }
        )
    return rows


def build_model(settings: dict[str, Any]) -> Any:
    """Return the network, drawn under one seed."""
    torch.manual_seed(0)
    config = {"base_channels": settings["base_channels"], "max_depth": MAX_DEPTH}
    if settings["model"] == "unet_baseline":
        config["image_size"] = settings["image_size"]
    return create_model(settings["model"], **config)


def build_batch(settings: dict[str, Any], model: Any) -> dict[str, Any]:
    """Return a batch of noise: what the network takes, and depth in metres [B, 1, S, S] with a hole."""
    torch.manual_seed(1)
    images, side = settings["batch_size"], settings["image_size"]
    batch: dict[str, Any] = {key: torch.rand(images, model.input_channels(key), side, side) for key in model.inputs}
    batch["depth"] = 1 + 9 * torch.rand(images, 1, side, side)
    batch["depth"][..., 0] = 0
    return {**batch, "id": [str(number) for number in range(images)]}


def work_of(settings: dict[str, Any]) -> float:
    """Return the GFLOP of a step, forward and backward."""
    model = build_model(settings)
    batch = build_batch(settings, model)
    with FlopCounterMode(display=False) as counter:
        model(*(batch[key] for key in model.inputs)).mean().backward()
    return counter.get_total_flops() / 1e9


def plain_step(settings: dict[str, Any]) -> Callable[[], object]:
    """Return some training steps as a first script has them."""
    device = measure.device()
    model = build_model(settings).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    on_host = build_batch(settings, model)

    def steps() -> None:
        for _ in range(settings["steps"]):
            batch = {key: value.to(device) for key, value in on_host.items() if isinstance(value, Tensor)}
            valid = batch["depth"] > 0
            optimizer.zero_grad()
            depth = model(*(batch[key] for key in model.inputs))
            loss = (depth[valid] - batch["depth"][valid]).abs().mean()
            loss.backward()
            optimizer.step()

    return steps


class Repeated:
    """Stands where a loader of data stands: one batch, again and again."""

    def __init__(self, batch: dict[str, Any], steps: int) -> None:
        self._batch, self._steps = batch, steps

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Any:
        return iter([dict(self._batch) for _ in range(self._steps)])


def our_step(settings: dict[str, Any]) -> Callable[[], object]:
    """Return some training steps of the scripts' loop."""
    flags = {"gpu_ids": None, "optimizer": "AdamW", "learning_rate": 1e-4, "weight_decay": 0.01}
    args = argparse.Namespace(precision=settings["precision"], **flags)
    fabric = create_fabric(args)
    model = build_model(settings)
    loader: Any = Repeated(build_batch(settings, model), settings["steps"])
    task = SupervisedDepthTask(model, {"l1": 1.0}).to(memory_format=torch.channels_last)
    optimizer = create_optimizer(task, args)
    if settings["compile"]:
        task.compile()
    wrapped, wrapped_optimizer = fabric.setup(task, optimizer)
    scheduler = LambdaLR(optimizer, lambda step: 1.0)
    log = RunLog(Path(), Path(), enabled=False)

    def steps() -> None:
        number = settings["steps"]
        loop.train_epoch(
            fabric, wrapped, wrapped_optimizer, scheduler, loader, epoch=1, steps=number, total=number, log=log
        )

    return steps


if __name__ == "__main__":
    run_script(main)
