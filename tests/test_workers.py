"""The processes that read for a loader."""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing.connection import Client, Connection
from multiprocessing.resource_sharer import DupFd, stop

from dataloaders.workers import start_worker


def hand_over(to: Connection) -> None:
    """Offer an open file, as a worker offers a batch's memory, and wait until told to end."""
    start_worker(0)
    to.send(DupFd(1)._id)
    to.recv()
    stop(timeout=5)


def fail(to: Connection) -> None:
    """Meet an error that nobody catches."""
    start_worker(0)
    sys.excepthook(ValueError, ValueError("of the file's own"), None)


def start(what):
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(target=what, args=(theirs,))
    process.start()
    return process, ours


def test_a_worker_whose_batch_is_not_taken_ends_without_a_word(capfd):
    process, pipe = start(hand_over)
    address, _key = pipe.recv()
    Client(address).close()  # hangs up before it has said who it is, as one that is interrupted there does
    pipe.send("end")
    process.join(timeout=30)
    assert process.exitcode == 0
    assert capfd.readouterr().err == ""


def test_other_errors_of_a_worker_are_told(capfd):
    process, _ = start(fail)
    process.join(timeout=30)
    assert "ValueError: of the file's own" in capfd.readouterr().err
