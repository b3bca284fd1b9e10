"""Trainings as rows of an experiment: run once, resumed after a kill, reported when they fail."""

from __future__ import annotations

import itertools
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import TextIO, TypeVar

from errors import PARENT, CheckpointError, UserError
from experiments.settings import Settings, differences, placed, settings_in, settings_of
from training.checkpoint import load_checkpoint
from training.files import claim, write_whole
from training.machine import count_cores

ANEW, BEGUN = "anew", "begun"  # in the place of the seconds: from nothing, or of a training that goes on
TIME = re.compile(rf".+,({ANEW}|{BEGUN}|\d+\.\d)")  # a line of times.csv, unless a kill or a full disk has cut it off
REPOSITORY = Path(__file__).resolve().parent.parent
Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class Run:
    """One way to train, whatever the seed.

    Attributes:
        name: what a table calls it. Two runs of one name are the same, also in different suites.
        command: script and flags, but for data, length, seed, and where it is written.
        epochs: its length.
        data: flags that name its data, where these are not the experiment's.
        teacher: whose best model it is given.
        teacher_flag: the flag under which it is given that.
        asks_once: whether the teacher is asked before the training (``--cache_teacher``).
        cached: whether its samples are prepared once (``--cache_dir``); not those that are cut anew in each epoch.
        network: the run whose network it is, which is only tested in another way; None: it trains its own.
        test: flags of its test, beside the suite's.
    """

    name: str
    command: tuple[str, ...]
    epochs: int
    data: tuple[str, ...] | None = None
    teacher: Run | None = None
    teacher_flag: str = "--teacher_checkpoint"
    asks_once: bool = False
    cached: bool = True
    network: Run | None = None
    test: tuple[str, ...] = ()

    def folder(self, seed: int) -> str:
        """Return the name of the experiment under which one seed is kept."""
        return "_".join([*words_in(self.trained.name), f"seed{seed}"])

    @property
    def trained(self) -> Run:
        """The run that trains its network: itself, but for one that only tests another's."""
        return self.network or self

    @property
    def after(self) -> Run | None:
        """The run that has to be trained before: its network's, or its teacher."""
        return self.network or self.teacher


@dataclass
class Runner:
    """Trains the runs of an experiment, and keeps where all of theirs is.

    Attributes:
        output_dir: holds ``checkpoints``, ``results`` and ``logs`` of all runs, ``cache``, the prepared samples that
            they share (to prepare them anew would take a third of a small run), and ``answers`` of teachers that are
            asked once.
        data: flags that name the data of a run that has none of its own.
        shared: flags of all runs: sizes, workers, precision.
        jobs: runs at a time; each gets its share of the cores.
        say: is told what happens.
        gpus: numbers of GPUs, one for each script that runs, more scripts than GPUs in turn; none: the scripts choose.
    """

    output_dir: Path
    data: tuple[str, ...]
    shared: tuple[str, ...] = ()
    jobs: int = 1
    say: Callable[[str], None] = field(default=print)
    gpus: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self._free_gpus: SimpleQueue[int] = SimpleQueue()
        for gpu in itertools.islice(itertools.cycle(self.gpus), self.jobs):
            self._free_gpus.put(gpu)
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def best(self, run: Run, seed: int) -> Path:
        """Return the file of a run's best epoch on the validation samples."""
        return self.output_dir / "checkpoints" / run.folder(seed) / "best_model.pth"

    def results(self, run: Run, seed: int) -> Path:
        """Return the folder of a run's curves and scores."""
        return self.output_dir / "results" / run.folder(seed)

    @property
    def times(self) -> Path:
        """The file that says that each training was begun, from nothing or not, and how many seconds until its end."""
        return self.output_dir / "logs" / "times.csv"

    def minutes(self, run: Run, seed: int) -> float:
        """Return how long a run trained, over all of its starts; NaN where nobody wrote down the end of one.

        What was trained before it was begun anew is not in it.
        """
        if not self.times.is_file():
            return math.nan
        lines = self.times.read_text(encoding="utf-8", errors="replace").splitlines()
        rows = [line.rsplit(",", 1) for line in lines if TIME.fullmatch(line)]
        said: list[str] = []
        for folder, what in rows:
            if folder == run.folder(seed):
                said = [BEGUN] if what == ANEW else [*said, what]
        if any(one == BEGUN and then == BEGUN for one, then in itertools.pairwise([*said, BEGUN])):
            return math.nan
        return sum(float(seconds) for seconds in said if seconds != BEGUN) / 60 or math.nan

    def commit(self, run: Run, seed: int) -> str | None:
        """Return the commit that trained the best epoch of a run; None where nobody wrote it down."""
        return load_checkpoint(self.best(run, seed)).get("versions", {}).get("commit")

    def warnings(self, run: Run, seed: int) -> list[str]:
        """Return the lines in which a run warned of something."""
        log = self.output_dir / "logs" / f"{run.folder(seed)}.txt"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
        return [line.strip() for line in lines if line.startswith("warning:")]

    def epochs_done(self, run: Run, seed: int) -> int:
        """Return how many epochs of a run are done, 0 where it has no last checkpoint.

        Raises:
            CheckpointError: its last checkpoint cannot be read; another version, or another user, may read it.
        """
        last = self.best(run, seed).with_name("last.pth")
        return load_checkpoint(last)["epoch"] if last.exists() else 0

    def look_up(self, run: Run, seed: int) -> tuple[int, str | None]:
        """Return how many epochs of a run are done, and why what is there is not taken for it, where that is so."""
        best = self.best(run, seed)
        try:
            there = best.exists() or best.with_name("last.pth").exists()
            return self.epochs_done(run, seed), self.not_of_this_command(run, seed) if there else None
        except (CheckpointError, OSError) as error:
            return 0, f"{error}"

    def command(self, run: Run, seed: int, done: int = 0) -> list[str]:
        """Return the command that trains one seed of a run, or goes on with it after ``done`` epochs."""
        command = [*run.command, *self.shared, *(run.data or self.data), "--nb_epochs", f"{run.epochs}"]
        command += ["--seed", f"{seed}", "--output_dir", f"{self.output_dir}", "--experiment_name", run.folder(seed)]
        command += ["--save_frequency", f"{run.epochs}"]
        if run.cached:
            command += ["--cache_dir", f"{self.output_dir / 'cache'}"]
        if run.teacher:
            command += [run.teacher_flag, f"{self.best(run.teacher, seed)}"]
            if run.asks_once:
                pictures = "_more_pairs" if "--pairs_dir" in run.command else ""
                answers = self.output_dir / "answers" / f"{run.teacher.folder(seed)}{pictures}"
                command += ["--cache_teacher", f"{answers}"]
        return [*command, "--resume" if done else "--overwrite"]

    def settings(self, run: Run, seed: int) -> list[Settings]:
        """Return the settings that a run has today, after those of its teacher."""
        return [settings_of(self.command(needed, seed)) for needed in with_teachers([run.trained])]

    def trained_settings(self, run: Run, seed: int) -> list[Settings]:
        """Return the settings under which a run was trained, after those of its teacher."""
        return [settings_in(self.best(needed, seed).parent) or {} for needed in with_teachers([run.trained])]

    def find_untrained(
        self, runs: Sequence[Run], seeds: Sequence[int], known: Container[tuple[str, int]] = ()
    ) -> dict[tuple[str, int], str]:
        """Return of each (name, seed) that is not known nor trained to its end why it is not; train nothing."""
        wanted = [(run, seed) for run in runs for seed in seeds if (run.name, seed) not in known]
        untrained: dict[tuple[str, int], str] = {}
        for run, seed in wanted:
            done, why = self.look_up(run, seed)
            if why:
                untrained[run.name, seed] = why
            elif done < run.epochs:
                untrained[run.name, seed] = f"{done} of its {run.epochs} epochs are trained"
        return untrained

    def train_all(
        self,
        runs: Sequence[Run],
        seeds: Sequence[int],
        known: Container[tuple[str, int]] = (),
        then: Callable[[Run, int], object] | None = None,
    ) -> dict[tuple[str, int], str]:
        """Train all seeds of all runs, each as soon as its teacher is done and a job is free; skip what is done.

        Args:
            runs: the rows.
            seeds: of each.
            known: (name, seed) of those that need no training, nor a teacher.
            then: is called with each run and seed at its end, but for a teacher that is no row, or is known; a text
                that it returns says what went wrong there.

        Returns:
            Of each (name, seed) that failed, why.
        """
        failed: dict[tuple[str, int], str] = {}
        wanted = {seed: [run for run in runs if (run.name, seed) not in known] for seed in seeds}
        waiting = [(run, seed) for seed in seeds for run in with_teachers(wanted[seed])]
        total, numbers, lock = len(waiting), iter(range(1, len(waiting) + 1)), threading.Lock()

        def train(run: Run, seed: int) -> None:
            if self._stopped:
                return
            if run.after and (run.after.name, seed) in failed:
                reason: str | None = f"its {'network' if run.network else 'teacher'}, {run.after.name}, failed"
                found: object = None
            else:
                reason = outcome(self.train, run, seed)
                found = outcome(then, run, seed) if then and not reason and run in wanted[seed] else None
            if self._stopped and (reason or isinstance(found, str)):
                return  # it did not fail, it was told to end
            with lock:
                if reason:
                    failed[run.name, seed] = reason
                state = f"FAILED: {reason}" if reason else f"trained, but {found}" if isinstance(found, str) else "done"
                self.say(f"[{next(numbers)}/{total}] {run.name}, seed {seed}: {state}")

        running: dict[Future[None], tuple[Run, int]] = {}
        with self.pool() as pool:
            while waiting or running:
                unfinished = {(run.name, seed) for run, seed in [*waiting, *running.values()]}
                ready = [(r, s) for r, s in waiting if not r.after or (r.after.name, s) not in unfinished]
                for job in ready[: self.jobs - len(running)]:
                    waiting.remove(job)
                    running[pool.submit(train, *job)] = job
                for ended in wait(running, return_when=FIRST_COMPLETED).done:
                    del running[ended]
                    ended.result()
        return failed

    @contextmanager
    def pool(self) -> Iterator[ThreadPoolExecutor]:
        """Around what runs scripts in as many threads as there are jobs: Ctrl-C ends all of them, and is passed on."""
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                yield pool
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                self.stop()
                raise  # after all of them have ended

    def stop(self) -> None:
        """Tell the scripts that run to end, which they do after saving, and start no further one."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()
        if self._running:
            self.say(f"interrupted: {len(self._running)} running scripts are told to end")

    def train(self, run: Run, seed: int) -> str | None:
        """Train one seed of a run to its end, unless it is there; return why it failed, if it did.

        What it prints is kept in ``logs/<folder>.txt``, how long it took in ``logs/times.csv``, both since it began
        from nothing, and the command in ``logs/<folder>.command``: what is there of another one, on other data for
        example, is not taken for it, nor what was trained under other defaults.
        """
        logs = self.output_dir / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        claimed = claim(logs / f".{run.folder(seed)}.lock")
        if claimed is None:  # whose command and log these are
            return "another process trains it"
        with claimed:
            return self._train(run, seed)

    def _train(self, run: Run, seed: int) -> str | None:
        done, why = self.look_up(run, seed)
        if why:
            return why
        if done >= run.epochs:
            return None
        command = self.command(run, seed, done)
        kept, asked = self.kept_command(run, seed)
        log = kept.with_suffix(".txt")
        with write_whole(kept) as file:
            file.write(shlex.join(asked).encode())
        self.say(f"python {shlex.join(command)}")
        self._note_time(run, seed, BEGUN if done else ANEW)
        begun = time.monotonic()
        with log.open("a" if done else "w", encoding="utf-8") as file:
            ended = self.call(command, file)
        seconds = time.monotonic() - begun
        self._note_time(run, seed, f"{seconds:.1f}")
        if ended.returncode == 0:
            self.say(f"{run.name}, seed {seed}: {seconds / 60:.1f} minutes")
            return None
        return f"exit code {ended.returncode}: {last_line(log.read_text(encoding='utf-8', errors='replace'))} ({log})"

    def _note_time(self, run: Run, seed: int, what: str) -> None:
        with self._lock, self.times.open("a+b") as file:
            file.seek(max(0, file.tell() - 1))
            after = b"\n" if file.read() not in (b"", b"\n") else b""  # a line that was cut off
            file.write(after + f"{run.folder(seed)},{what}\n".encode())

    def kept_command(self, run: Run, seed: int) -> tuple[Path, list[str]]:
        """Return the file that says what trained a run, and the words that it has for the one that is asked for."""
        file = self.output_dir / "logs" / f"{run.folder(seed)}.command"
        return file, [placed(word, self.output_dir) for word in self.command(run, seed)]

    def not_of_this_command(self, run: Run, seed: int) -> str | None:
        """Return why what is there of a run is not what is asked for: another command trained it, or its teacher."""
        kept, asked = self.kept_command(run, seed)
        # Earlier versions put a dot for the folder wherever the line said its name, be it a part of another's.
        earlier = shlex.join(self.command(run, seed)).replace(f"{self.output_dir}", ".")
        if kept.is_file() and words_of(kept.read_text(encoding="utf-8")) not in (asked, words_of(earlier)):
            return f"what is there was trained by another command ({kept}); give another --output_dir"
        before = settings_in(self.best(run, seed).parent)
        if before and (differing := differences(before, settings_of(self.command(run, seed)))):
            return f"what is there was trained under other defaults ({differing}); give another --output_dir"
        return self.not_of_this_command(run.teacher, seed) if run.teacher else None

    def call(self, command: Sequence[str], log: TextIO | None = None) -> subprocess.CompletedProcess[str]:
        """Run a script of this toolkit on this job's share of the cores; what it prints goes to a log, or is returned.

        It gets a session of its own, so that Ctrl-C in a terminal reaches it once: through :meth:`stop`. Where this
        process dies of a signal that nobody can hear, the system ends the script (Linux).

        One that was never begun, since all shall end, has the exit code of one that was told to.
        """
        arguments = [sys.executable, *command]
        with self._environment() as environment:
            with self._lock:
                if self._stopped:
                    return subprocess.CompletedProcess(arguments, 128 + signal.SIGTERM, "", "")
                process = subprocess.Popen(
                    arguments,
                    cwd=REPOSITORY,
                    env=environment,
                    start_new_session=True,
                    stdout=log or subprocess.PIPE,
                    stderr=subprocess.STDOUT if log else subprocess.PIPE,
                    text=True,
                )
                self._running.add(process)
            try:
                out, errors = process.communicate()
            except KeyboardInterrupt:  # of the main thread; those of a pool hear nothing
                self.stop()
                process.communicate()
                raise
            finally:
                with self._lock:
                    self._running.discard(process)
        return subprocess.CompletedProcess(arguments, process.returncode, out, errors)

    @contextmanager
    def _environment(self) -> Iterator[dict[str, str]]:
        """Around a script that runs: its environment, with its share of the cores and, if GPUs are shared, one."""
        environment = os.environ | {
            "OMP_NUM_THREADS": f"{max(1, count_cores() // self.jobs)}",
            PARENT: f"{os.getpid()}",
        }
        if not self.gpus:
            yield environment
            return
        gpu = self._free_gpus.get()
        try:
            yield environment | {"CUDA_VISIBLE_DEVICES": visible_gpu(gpu)}
        finally:
            self._free_gpus.put(gpu)


def outcome(step: Callable[[Run, int], Outcome], run: Run, seed: int) -> Outcome | str:
    """Return what a step of a run comes to, or what kept it from that: the other runs go on."""
    try:
        return step(run, seed)
    except (UserError, OSError) as error:
        return f"{error}"


def words_in(text: str) -> list[str]:
    """Return the words and numbers of a text, of any script, in lower case: what the name of a file is made of."""
    return re.findall(r"(?:[^\W_]|\.)+", text.lower())


def words_of(line: str) -> list[str]:
    """Return the words of a command's line; none of one that is broken."""
    try:
        return shlex.split(line)
    except ValueError:  # a quote without its end
        return []


def data_flags(name: str, folder: Path) -> tuple[str, ...]:
    """Return the flags under which a script of this toolkit reads a data set."""
    return "--dataset", name, "--dataset_dir", f"{folder.resolve()}"


def visible_gpu(number: int) -> str:
    """Return what CUDA calls the GPU of that number among those that this process may see."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[number].strip() if visible else f"{number}"


def last_line(said: str) -> str:
    """Return the last line of what a script said: of one that failed, why."""
    return (said.strip().splitlines() or ["it said nothing"])[-1]


def with_teachers(runs: Sequence[Run]) -> list[Run]:
    """Return the runs and all that has to be trained before, each once, a teacher before those whom it teaches."""
    ordered: list[Run] = []
    for run in runs:
        for needed in [*with_teachers([run.after]), run] if run.after else [run]:
            if needed not in ordered:
                ordered.append(needed)
    return ordered
