"""The errors that a person can mend, and the one way in which every script ends on them.

Every room may import this module; it imports none of them. A :class:`UserError` carries one line that says what is
wrong, where (file, row), and what to do. :func:`run_script` prints that line without a traceback and exits with 2.
Anything else that is raised is a defect of this toolkit and keeps its traceback.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn


class UserError(Exception):
    """What is wrong, where, and what to do: one line, the only argument (so that it pickles between processes)."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class OptionError(UserError):
    """A flag, or a combination of flags, that cannot be honoured."""


class DataError(UserError):
    """A file, a row or a folder of a data set that is missing or broken."""


class CheckpointError(UserError):
    """A checkpoint that is missing, truncated, unsafe or of another model."""


class TrainingError(UserError):
    """A run that cannot go on, such as one whose loss is no longer a number."""


def from_worker(error: UserError) -> UserError:
    """Undo the wrapping of a data loader's worker, which puts its traceback into the message.

    PyTorch raises ``type(error)("Caught DataError in DataLoader worker process 0. Original Traceback ...")``. The
    original message is what follows the last ``DataError: `` of that text.
    """
    text = str(error)
    if not text.startswith("Caught "):
        return error
    return type(error)(text.rsplit(f"{type(error).__name__}: ", 1)[-1])


PARENT = "ENDS_WITH_PROCESS"  # in the environment: the process with whose end a script shall end too


def interrupt(number: int, frame: object) -> NoReturn:
    """Raise KeyboardInterrupt with the signal's number, once: what follows is the way out, and is not interrupted.

    A scheduler may send more than one notice. A second Ctrl-C ends the process at once.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt(number)


def end_with_parent() -> None:
    """Have the system (Linux) send SIGTERM when the process named in :data:`PARENT` is gone, however that ended."""
    parent = os.environ.pop(PARENT, "")  # it is not the parent of what this process starts in turn
    if not parent or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != int(parent):  # gone before it could be watched
        os.kill(os.getpid(), signal.SIGTERM)


class Printer(logging.StreamHandler):
    """Prints what is logged. Where nobody reads on, :func:`run_script` finds out, without a traceback a line."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Called by ``logging`` while an exception is handled."""
        if not isinstance(sys.exc_info()[1], BrokenPipeError):
            super().handleError(record)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether the machine could not give the memory that was asked for, as NumPy or PyTorch says it."""
    return isinstance(error, MemoryError) or any(
        said in f"{error}" for said in ("can't allocate memory", "out of memory")
    )


def run_script(main: Callable[[Sequence[str] | None], None]) -> NoReturn:
    """Run a script's ``main`` and exit.

    With 0 when it returns, with its own code where it exits itself, with 2 and one line on a :class:`UserError`, with
    130 on Ctrl-C, with 141 where nobody reads on what it prints (``| head``).
    """
    try:
        code = _outcome(main, Path(sys.argv[0]).name)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python's own flush at the end fails too
        code = 141  # as a shell says of what SIGPIPE ended
    sys.exit(code)


def _outcome(main: Callable[[Sequence[str] | None], None], script: str) -> Any:
    """Run ``main`` and return what to exit with."""
    logging.basicConfig(format="%(message)s", handlers=[Printer(sys.stdout)], force=True)
    for room in ("dataloaders", "simulation"):  # what a reader must know: which scenes validate, what is simulated
        logging.getLogger(room).setLevel(logging.INFO if os.environ.get("LOCAL_RANK", "0") == "0" else logging.WARNING)
    signal.signal(signal.SIGTERM, interrupt)  # a scheduler's notice ends a run as Ctrl-C does
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as a shell starts a job in the background
        signal.signal(signal.SIGINT, interrupt)
    try:
        end_with_parent()
        main(None)
    except UserError as error:
        print(f"{script}: error: {from_worker(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(f"{script}: error: {error.filename}: the system takes no name as long as that", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        said = (f"{error}".splitlines() or [type(error).__name__])[0]
        print(f"{script}: error: too little memory ({said}); ask for a smaller size or batch", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{script}: interrupted", file=sys.stderr)
        return 130
    except SystemExit as end:
        return end.code
    return 0
