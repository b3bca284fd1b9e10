"""Files that are whole or not there: written under another name, then renamed; and folders that have one writer."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from errors import OptionError


@contextmanager
def write_whole(path: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """Open a file to be written to; where the block ends, it takes the place of ``path``.

    At every moment ``path`` is what it was before, or complete. A block that fails leaves no temporary file.

    Args:
        path: the file, in a folder that exists.
        durable: flush it and its folder to the disk, so that it lasts through a power cut.

    Raises:
        OSError: the disk is full or not writable; what stood at ``path`` before still stands there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # hidden, and no other process writes it
    try:
        with temporary.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            _flush_folder(path.parent)
    except BaseException:
        with suppress(OSError):  # the first error is the one to hear of
            temporary.unlink()
        raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes a file that a flag names: the refusal of a disk or a folder becomes an OptionError."""
    try:
        yield
    except OSError as error:
        raise OptionError(f"{path} cannot be written ({error})") from error


def refuse_folders(**files: Path | None) -> None:
    """Raise :class:`errors.OptionError` where a flag of that name is to be a file, and is a folder: before the work."""
    for flag, path in files.items():
        if path is not None and path.is_dir():
            raise OptionError(f"--{flag} {path} is a folder; name a file")


def write_json(report: Any, path: Path) -> None:
    """Write a report, whole or not at all, in a folder that is made; a figure that is not a number is null.

    Raises:
        OptionError: the disk is full or not writable.
    """
    plain = json.loads(json.dumps(report), parse_constant=lambda name: None)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(path) as file:
            file.write(f"{json.dumps(plain, indent=2, allow_nan=False)}\n".encode())


def _flush_folder(folder: Path) -> None:
    """Make a rename in ``folder`` last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Keep other processes out of the block until it ends, or this process does, in whatever way.

    Args:
        path: a file that stands for what is locked, made if it is not there; it stays.
        waiting: called where another process is in the block, before it is waited for.

    Raises:
        OSError: the file cannot be made.
    """
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def claim(path: Path) -> TextIO | None:
    """Return a file that no other process can claim until it is closed, or this process ends; None if one has it.

    Worker processes do not inherit the claim, as they do that of :func:`locked`: of a run that is killed they live on
    for some seconds. Where a file system knows no locks, everybody gets the file.

    Args:
        path: stands for what is claimed, made if it is not there; it stays.

    Raises:
        OSError: the file cannot be made.
    """
    file = path.open("a")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows either
        file.close()
        return None
    except OSError:  # no locks here
        pass
    return file
