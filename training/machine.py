"""What a run is computed on, and how much of its memory it takes."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import sys
from functools import cache
from pathlib import Path

import torch

# Parameters of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
NEVER = -1
MAPPED_FROM = 2**30  # bytes
HUGE_PAGE = 2**21  # bytes, of most processors
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")


@cache
def keep_freed_memory() -> bool:
    """Let this process keep the memory of the tensors that it frees for those that come next, up to 1 GiB of each.

    glibc gives blocks from 32 MiB on, and the free end of its heap, back to the system at once. Each step of a training
    then has the same pages mapped and zeroed again, thousands of them: a tenth of the time of a wide network, a third
    of a narrow one's. What is kept lies in huge pages, where the system gives them to those who ask: a step goes
    through hundreds of MiB, and finding its pages of 4 KiB takes another twentieth of its time. Results are the same to
    the bit.

    Returns:
        Whether that was done: the C library may be another one.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    mallopt = getattr(libc, "mallopt", None)
    if mallopt is None:
        return False
    # Older versions refuse thresholds beyond 32 MiB; there no block at all is mapped by itself.
    ours = mallopt(M_MMAP_THRESHOLD, MAPPED_FROM) or mallopt(M_MMAP_MAX, 0)
    kept = bool(ours and mallopt(M_TRIM_THRESHOLD, NEVER))
    if kept and _gives_huge_pages():
        _ask_for_huge_pages(libc)
    return kept


def _gives_huge_pages() -> bool:
    """Return whether Linux gives huge pages to those who ask, and addresses are not counted as memory."""
    import resource  # not on Windows

    said = [path.read_text(encoding="ascii") if path.is_file() else "" for path in (HUGE_PAGES, OVERCOMMIT)]
    counted = said[1].strip() == "2" or resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    return "[madvise]" in said[0] and not counted


def _ask_for_huge_pages(libc: ctypes.CDLL) -> None:
    """Let the heap grow by 4 GiB of addresses, which take memory as they are used, in huge pages."""
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = MAPPED_FROM - HUGE_PAGE  # larger ones would not be the heap's
    blocks = [block for block in (libc.malloc(size) for _ in range(4)) if block is not None]
    for block in blocks:
        first = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE
        libc.madvise(first, (block + size - first) // mmap.PAGESIZE * mmap.PAGESIZE, mmap.MADV_HUGEPAGE)
    for block in blocks:
        libc.free(block)


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
