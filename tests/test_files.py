"""A file is whole or not there: training/files.py."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from training.files import claim, locked, write_whole

REPOSITORY = Path(__file__).resolve().parent.parent


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_takes_its_place_at_the_end(tmp_path, durable):
    path = tmp_path / "table.csv"
    path.write_bytes(b"old")
    with write_whole(path, durable=durable) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["table.csv"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_half_way_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "table.csv"
    path.write_bytes(b"old")
    with pytest.raises(error), write_whole(path) as file:
        file.write(b"half of the n")
        raise error
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["table.csv"]


def test_a_name_that_cannot_be_taken_leaves_nothing_either(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    with pytest.raises(IsADirectoryError), write_whole(path) as file:
        file.write(b"new")
    assert names(tmp_path) == ["folder"]


def test_a_folder_that_is_none_is_the_error_heard_of(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError), write_whole(tmp_path / "file" / "table.csv"):
        pass


def test_a_durable_file_is_on_the_disk_before_its_name_is_and_the_name_after(tmp_path, monkeypatch):
    path, flushed = tmp_path / "last.pth", []

    def fsync(descriptor):
        flushed.append((os.fstat(descriptor).st_ino, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with write_whole(path, durable=True) as file:
        file.write(b"new")
    assert flushed == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


def test_a_lock_is_waited_for_and_ends_with_its_process(tmp_path):
    """Another process takes the lock and is killed."""
    code = "import sys, time; from pathlib import Path; from training.files import locked\n"
    code += "with locked(Path(sys.argv[1])): print('taken', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, tmp_path / "lock"], stdout=subprocess.PIPE, cwd=REPOSITORY)
    assert holder.stdout.readline() == b"taken\n"
    waited = []

    def waiting():
        waited.append(holder.poll())
        holder.kill()

    with locked(tmp_path / "lock", waiting):
        assert holder.wait() != 0
    assert waited == [None], "it was alive when we came"
    holder.stdout.close()
    with locked(tmp_path / "lock", lambda: pytest.fail("nobody is there")):
        pass


def test_a_claim_ends_with_its_process_though_its_workers_live_on(tmp_path):
    code = "import os, sys, time; from pathlib import Path; from training.files import claim\n"
    code += "file = claim(Path(sys.argv[1])); os.fork() or time.sleep(60); print('claimed', flush=True); time.sleep(60)"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "lock"], stdout=subprocess.PIPE, cwd=REPOSITORY, start_new_session=True
    )
    try:
        assert holder.stdout.readline() == b"claimed\n"
        assert claim(tmp_path / "lock") is None
        holder.kill()
        holder.wait()
        found = claim(tmp_path / "lock")
        assert found is not None, "the child that was forked has no part in it"
        found.close()
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.stdout.close()


def test_where_there_are_no_locks_everybody_gets_the_file(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("training.files.fcntl.lockf", no_locks)
    files = [claim(tmp_path / "lock") for _ in range(2)]
    assert None not in files
    for file in files:
        file.close()
