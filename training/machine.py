"""What a run is computed on, and how much of its memory it takes."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import torch


def peak_memory(device: str) -> int:
    """Return the largest number of bytes so far: tensors on ``cuda``, or on ``cpu`` all that this process held.

    0 where the system does not tell (Windows).
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would begin with what the parent held
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def count_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """Return the processor's name, where the system tells it."""
    otherwise = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return otherwise
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), otherwise)
