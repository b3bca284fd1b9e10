"""The processes that read for a loader: how many, and how they end."""

from __future__ import annotations

import os
import signal
import sys
from types import TracebackType

import torch

from training.machine import count_cores


def usable_workers(wanted: int) -> int:
    """Return how many of the wanted processes are started: more than there are cores only wait for each other."""
    return min(wanted, count_cores())


def start_worker(worker: int) -> None:
    """Set up one of a loader's processes.

    What is sent to the whole group of processes (Ctrl-C in a terminal, a scheduler's notice) is for the one that
    trains, which then lets its workers go. A worker that died of it would be reported, as an error, in the middle of
    that. PyTorch asks a worker to end by SIGTERM if it does not end by itself.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    sys.excepthook = report_unless_hung_up


def report_unless_hung_up(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Report what nobody caught in a worker, but not that the one that trains was gone before it had taken a batch.

    A thread of :mod:`multiprocessing.resource_sharer` hands the batches over. Whoever is interrupted while it takes one
    hangs up, and says itself why it ends.
    """
    if not isinstance(error, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, trace)
