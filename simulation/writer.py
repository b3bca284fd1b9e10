"""Writes a data set of simulated rooms: in parallel, the same bytes each time, and resumable.

A folder that was begun holds ``simulation.json`` with everything that its bytes depend on. Samples are whole or absent,
so a run that was stopped, in whatever way, goes on where it ended; the CSV files come last.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from errors import DataError, OptionError
from simulation.layouts import LAYOUTS, PARTIAL, Settings, store
from training.files import locked
from training.machine import count_cores

VERSION = 1  # of the generator: raise it with every change that changes a byte of the data
MANIFEST = "simulation.json"
LOCK = ".simulation-lock"
IMAGE_SIZES = (16, 1024)

# One thread per process: the processes share the cores, and sums are then in the same order everywhere.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def _manifest(folder: Path) -> dict | None:
    """What `simulation.json` says, or None where there is none."""
    try:
        content = json.loads((folder / MANIFEST).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{folder / MANIFEST}: {error}.") from error
    except ValueError as error:
        raise DataError(f"{folder / MANIFEST} is damaged: delete the folder and simulate it again.") from error
    if not isinstance(content, dict):
        raise DataError(f"{folder / MANIFEST} is damaged: delete the folder and simulate it again.")
    return content


def is_simulated(folder: str | Path) -> bool:
    """Whether this folder was begun by :func:`write_dataset`."""
    return (Path(folder) / MANIFEST).is_file()


def is_complete(folder: str | Path) -> bool:
    """Whether this folder was written to its end by :func:`write_dataset`. DataError for a damaged manifest."""
    manifest = _manifest(Path(folder))
    return manifest is not None and manifest.get("complete") is True


def _checked(settings: Settings, workers: int | None) -> int:
    """The number of workers; OptionError for settings that make no data set."""
    if settings.layout not in LAYOUTS:
        raise OptionError(f"--format {settings.layout}: known are {', '.join(LAYOUTS)}.")
    counts = {name: getattr(settings, name) for name in ("train", "val", "test")}
    for name, count in counts.items():
        if count < 0:
            raise OptionError(f"--{name} {count}: a number of samples can't be negative.")
    if not any(counts.values()):
        raise OptionError("--train, --val and --test are all 0: there is nothing to simulate.")
    if not IMAGE_SIZES[0] <= settings.image_size <= IMAGE_SIZES[1]:
        raise OptionError(f"--image_size {settings.image_size}: use {IMAGE_SIZES[0]} to {IMAGE_SIZES[1]} pixels.")
    if settings.seed < 0:
        raise OptionError(f"--seed {settings.seed}: use 0 or more.")
    if workers is not None and workers < 1:
        raise OptionError(f"--workers {workers}: use 1 or more.")
    if workers is None:
        return count_cores()
    return workers


def _is_finished(root: Path, settings: Settings) -> bool:
    """Whether `root` holds this very data set. DataError where it holds anything else that must not be touched."""
    manifest = _manifest(root)
    if manifest is None:
        if root.exists() and not root.is_dir():
            raise DataError(f"{root} is a file: choose a folder for the simulated data.")
        if root.is_dir() and any(path.name not in (LOCK, PARTIAL) for path in root.iterdir()):
            raise DataError(f"{root} holds files that were not simulated: choose a new or empty folder.")
        return False
    wanted = {"version": VERSION, **asdict(settings)}
    found = {name: manifest.get(name) for name in wanted}
    other = [f"{name} {found[name]} (not {value})" for name, value in wanted.items() if found[name] != value]
    if other:
        raise DataError(f"{root} holds a simulated data set of {', '.join(other)}: choose another folder or delete it.")
    return manifest.get("complete") is True


def _is_written(path: Path) -> bool:
    # An empty file is what a power cut may leave of one that was whole.
    return path.is_file() and path.stat().st_size > 0


@contextmanager
def _locked(root: Path, progress: bool) -> Iterator[None]:
    """Have the folder to ourselves; the lock ends with the process."""
    root.mkdir(parents=True, exist_ok=True)

    def say() -> None:
        if progress:
            print(f"waiting for another process that simulates {root}", file=sys.stderr)

    with locked(root / LOCK, say):
        yield


def _start_worker(root: Path, settings: Settings) -> subprocess.Popen[str]:
    # Not by multiprocessing, whose start methods fork the caller's threads or import its script again.
    return subprocess.Popen(
        [sys.executable, "-m", "simulation.worker", str(root.resolve()), json.dumps(asdict(settings))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        cwd=Path(__file__).resolve().parent.parent,
        env={**os.environ, **ONE_THREAD},
    )


def _build_all(root: Path, settings: Settings, missing: list[tuple[str, int]], workers: int, progress: bool) -> None:
    """Hand the missing samples to worker processes, one at a time to each, until all are done."""
    jobs = iter(missing)
    processes = [_start_worker(root, settings) for _ in range(min(workers, len(missing)))]

    def hand_out(process: subprocess.Popen[str]) -> None:
        job = next(jobs, None)
        if job is not None and process.stdin is not None:
            with suppress(BrokenPipeError):  # a worker that died says so by the end of its output
                process.stdin.write(f"{job[0]} {job[1]}\n")
                process.stdin.flush()

    bar = tqdm(total=len(missing), desc=f"simulating {root.name}", unit="room", disable=None if progress else True)
    try:
        with bar, selectors.DefaultSelector() as answers:
            for process in processes:
                if process.stdout is not None:
                    answers.register(process.stdout, selectors.EVENT_READ, process)
                hand_out(process)
            done = 0
            while done < len(missing):
                for key, _ in answers.select():
                    answer = key.data.stdout.readline().strip()
                    if answer != "done":
                        reason = answer.removeprefix("failed ") or "a worker process ended early"
                        raise DataError(f"{root}: {reason}. What is finished is kept: run it again to go on.")
                    done += 1
                    bar.update()
                    hand_out(key.data)
    finally:
        for process in processes:
            with suppress(BrokenPipeError):
                process.communicate()  # closes its input, which ends it after the sample at hand


def write_dataset(
    output: str | Path,
    layout: str = "batvisionv2",
    train: int = 1500,
    val: int = 150,
    test: int = 300,
    image_size: int = 128,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Simulate rooms and write them as a data set; return at once where this very data set is complete.

    The bytes depend on (seed, split, index of the sample) and the image size alone, not on the number of workers, and a
    run that was stopped is continued. While another process writes the same folder, this one waits for it.

    Args:
        output: folder, new or empty, or begun with the same settings.
        layout: ``"batvisionv2"`` (image, depth and binaural echo) or ``"nyu"`` (image and depth); see
            :mod:`simulation.layouts`.
        train: number of rooms in the training split, over all locations.
        val: the same for validation. NYU's layout has no such split: they are further scenes of its training list.
        test: the same for testing.
        image_size: side of image and depth map in pixels, 16 to 1024.
        seed: 0 or more.
        workers: processes, None for one per core.
        progress: show a bar on a terminal.

    Raises:
        OptionError: settings that make no data set.
        DataError: the folder holds other data, or can't be written.
    """
    root = Path(output)
    settings = Settings(layout, train, val, test, image_size, seed)
    workers = _checked(settings, workers)
    try:
        if _is_finished(root, settings):
            return
        with _locked(root, progress):
            if _is_finished(root, settings):
                return
            manifest = {"version": VERSION, **asdict(settings)}
            store(root, MANIFEST, json.dumps({**manifest, "complete": False}, indent=2).encode())
            form = LAYOUTS[layout]()
            missing = [
                (split, index)
                for split, index in settings.samples()
                if not all(_is_written(root / name) for name in form.files(settings, split, index))
            ]
            if missing:
                _build_all(root, settings, missing, workers, progress)
            for name, content in form.tables(settings):
                store(root, name, content)
            store(root, MANIFEST, json.dumps({**manifest, "complete": True}, indent=2).encode())
            shutil.rmtree(root / PARTIAL, ignore_errors=True)
    except OSError as error:
        raise DataError(f"{root}: {error}. What is finished is kept: run it again to go on.") from error
