"""What the benchmarks share: turns side by side, the machine's name and its peak, memory, tables and JSON.

Machines are shared and noisy, so what is compared takes turns, round after round, and a ratio is the median of the
rounds' ratios. Where memory counts as well, each variant has a process of its own (:class:`Apart`). Seconds say little
without the hardware, which every result names.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

from errors import TrainingError
from training import options
from training.files import write_json
from training.machine import cpu_name, peak_memory

REPOSITORY = Path(__file__).resolve().parent.parent
CONV = {"batch": 4, "channels": 128, "side": 128}  # the 3x3 convolution that stands for a machine's peak
MATMUL = 2048
UNITS = ("amx_bf16", "avx512_bf16", "avx512_f", "avx2", "sve_bf16", "neon")

Name = TypeVar("Name")  # of a variant


def create_parser(description: str, *, rounds: int, threads: bool = True) -> argparse.ArgumentParser:
    """Return a parser with the flags of every benchmark; without ``--threads`` where they have no part in it."""
    parser = options.create_parser(description.splitlines()[0])
    group = parser.add_argument_group("measurement")
    group.add_argument(
        "--rounds", type=options.positive_int, default=rounds, metavar="N", help="turns of each, of which the median"
    )
    if threads:
        group.add_argument("--threads", type=options.positive_int, metavar="N", help="CPU threads (default: PyTorch's)")
    group.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse, and take as many threads as are asked for."""
    args = parser.parse_args(argv)
    if getattr(args, "threads", None):
        torch.set_num_threads(args.threads)
    return args


def device() -> str:
    """Return what is measured: ``cuda`` where there is a GPU, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def call(script: str, *flags: object) -> list[tuple[float, str]]:
    """Run a script of this toolkit, on as many threads as this process has.

    Returns:
        What it printed, line by line, each with the seconds from the start of its process on.

    Raises:
        TrainingError: it failed.
    """
    command = [sys.executable, script, *(str(flag) for flag in flags)]
    environment = {**os.environ, "OMP_NUM_THREADS": f"{torch.get_num_threads()}"}
    begun = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process:
            assert process.stdout is not None
            said = [(time.perf_counter() - begun, line) for line in process.stdout]
        if process.returncode:
            errors.seek(0)
            raise TrainingError(f"{' '.join(command[1:])}: {errors.read().strip()}")
    return said


def take_turns(
    variants: Mapping[Name, Callable[[], object]], rounds: int, device: str = "cpu", calls: int = 1
) -> dict[Name, list[float]]:
    """Call each variant once per round, one after the other, and return the seconds of each by its name.

    A round before the first is not counted: it compiles, and takes memory. Where a turn has several ``calls``, its
    time is their median, after one that is not counted: what is short would be measured with what the one before left
    behind, threads that still spin and weights that have left the caches.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            if calls > 1:
                run()
            taken = []
            for _ in range(calls):
                wait_for(device)
                begun = time.perf_counter()
                run()
                wait_for(device)
                taken.append(time.perf_counter() - begun)
            if number:
                seconds[name].append(statistics.median(taken))
    return seconds


def wait_for(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Return how many times as long the first took: the median over the rounds."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def hardware() -> dict[str, Any]:
    """Return what a figure in seconds depends on; ``load`` is how many processes wanted a core in the last minute."""
    able = torch.cpu.get_capabilities()
    found = {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "units": ", ".join(name for name in UNITS if able.get(name)) or "none of " + ", ".join(UNITS),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def convolution(dtype: torch.dtype, device: str) -> tuple[Callable[[], object], float]:
    """Return a 3x3 convolution, channels last, and its GFLOP."""
    batch, channels, side = CONV["batch"], CONV["channels"], CONV["side"]
    x = torch.randn(batch, channels, side, side, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    return without_gradient(lambda: F.conv2d(x, weight, padding=1)), 2 * batch * side**2 * channels**2 * 9 / 1e9


def product(dtype: torch.dtype, device: str) -> tuple[Callable[[], object], float]:
    """Return a product of two square matrices, and its GFLOP."""
    a, b = (torch.randn(MATMUL, MATMUL, device=device, dtype=dtype) for _ in range(2))
    return without_gradient(lambda: a @ b), 2 * MATMUL**3 / 1e9


def without_gradient(run: Callable[[], object]) -> Callable[[], object]:
    """Return ``run``, recording nothing for a backward pass."""

    def quiet() -> object:
        with torch.no_grad():
            return run()

    return quiet


class Apart:
    """A call of ``build(*args)()`` in a process of its own, which has built it once and keeps its memory to itself.

    Attributes:
        memory: bytes that the calls so far have added at their peak to what the process held before it built.
    """

    def __init__(self, build: Callable[..., Callable[[], object]], *args: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, torch.get_num_threads(), build, args), daemon=True)
        self._process.start()
        theirs.close()
        self.memory = 0

    def __call__(self) -> None:
        """Call, and wait until it has returned.

        Raises:
            TrainingError: the process has ended, and said why.
        """
        try:
            self._pipe.send(None)
            self.memory = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise TrainingError("what was to be measured has failed; its own message stands above") from error

    def end(self) -> None:
        """Let the process end."""
        self._pipe.close()
        self._process.join()


def _serve(
    pipe: Connection, threads: int, build: Callable[..., Callable[[], object]], args: tuple[object, ...]
) -> None:
    torch.set_num_threads(threads)
    before = peak_memory(device())
    run = build(*args)
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        run()
        wait_for(device())
        pipe.send(peak_memory(device()) - before)


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return a Markdown table; floats with three digits that count."""
    header = list(rows[0])
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for row in rows:
        cells = (f"{value:.3g}" if isinstance(value, float) else f"{value}" for value in row.values())
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report(args: argparse.Namespace, rows: Sequence[Mapping[str, object]], **figures: object) -> None:
    """Print the table under the hardware's name, and write ``--json``: figures, flags, rows, hardware."""
    machine = hardware()
    print(", ".join(f"{key} {value}" for key, value in machine.items()), end="\n\n")
    print(table(rows))
    if args.json:
        settings = options.plain_arguments(args)
        write_json({**figures, "settings": settings, "rows": list(rows), "hardware": machine}, args.json)
