"""Kill the scripts again and again, at chosen points and at any, and see that nothing is lost.

    make faults                                        the table of docs/RELIABILITY.md
    python tests/faults/kill.py --kills 10 --only train_rgb_depth.py

A chain starts a script, kills it, looks at its files, starts it again with ``--resume`` and so on, until it comes to
its end. After each kill every checkpoint must load, and none that was there may be gone. At the end weights, optimiser,
metrics.csv and steps.csv must be those of a run that nobody disturbed, bit for bit.

The processes that die are forks of this one, which has imported the scripts already: a kill costs a second, not five.
At the end two processes train under torchrun and one of them dies: the other must end within a minute, and both go on
afterwards; and a run logs to Weights & Biases where no server answers.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from errors import CheckpointError, run_script
from training import files
from training.checkpoint import load_checkpoint
from training.micro_batches import MicroBatches
from training.run_log import RunLog
from training.teacher_cache import TeacherCache

REPOSITORY = Path(__file__).resolve().parents[2]
EPOCHS = 3
SIMULATE = "simulate_rooms.py"
TWO = "train_rgb_depth.py"
SCRIPTS = (
    SIMULATE,
    TWO,
    "train_binaural_attention.py",
    "train_baseline.py",
    "train_distillation.py",
    "train_adabins_distillation.py",
    "train_distill_any_depth.py",
)
MINUTE = 60
DEADLINE = 300  # seconds after which a process counts as hung

# What befalls a process. The first word is the signal, or the point at which it kills itself.
ANYWHERE = ("SIGKILL at any time", "SIGTERM at any time", "SIGINT at any time")
POINTS = (
    "in a step",
    "in the middle of a checkpoint",
    "before the flush",
    "before the rename",
    "before a row of the log",
    "in the teacher's cache",
    "disk full",
)


@dataclass
class Script:
    """A script, and the flags of a run of a few seconds.

    Attributes:
        name: its file.
        flags: but for where it writes.
        faults: what befalls it.
        seconds: that the unbroken run took.
        reference: the folder of the unbroken run.
    """

    name: str
    flags: tuple[str, ...]
    faults: tuple[str, ...]
    seconds: float = 0.0
    reference: Path = field(default_factory=Path)


@dataclass
class Tally:
    """What was tried of one fault on one script, and what came of it."""

    kills: int = 0
    ends: int = 0
    faults: list[str] = field(default_factory=list)


def create_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag and its default."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=5, metavar="N", help="of each fault on each script")
    parser.add_argument("--only", nargs="+", metavar="SCRIPT", help="these alone")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found here")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Make the data, the teachers and the unbroken runs; kill; print the table."""
    args = create_parser().parse_args(argv)
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        every = prepare(folder)
        scripts = [script for script in every if not args.only or script.name in args.only]
        found: dict[tuple[str, str], Tally] = {}
        for script in scripts:
            run_unbroken(script, folder)
            for fault in script.faults:
                tally = found[script.name, fault] = Tally()
                while tally.kills < args.kills and not tally.faults:
                    chain(script, fault, folder / "chain", tally, args.kills - tally.kills, rng)
                print(f"{script.name}, {fault}: {tally.kills} kills, {tally.ends} ends, {tally.faults}", flush=True)
        if not args.only:
            flags = next(script.flags for script in every if script.name == TWO)
            found[TWO, "one of two dies"] = one_of_two(flags, folder, max(1, args.kills // 3))
            found[TWO, "no W&B server"] = without_server(flags, folder)
    print("\n" + table(found))
    if args.json:
        rows = [{"script": s, "fault": f, **vars(tally)} for (s, f), tally in found.items()]
        files.write_json({"torch": str(torch.__version__), "rows": rows}, args.json)
    wrong = [fault for tally in found.values() for fault in tally.faults]
    if wrong:
        sys.exit("\n".join(wrong))


def table(found: dict[tuple[str, str], Tally]) -> str:
    """Return a Markdown table: one row per script, one column per fault, kills in each."""
    scripts = list(dict.fromkeys(script for script, _ in found))
    faults = list(dict.fromkeys(fault for _, fault in found))
    lines = ["| | " + " | ".join(faults) + " | lost |", "|---" * (len(faults) + 2) + "|"]
    for script in scripts:
        tallies = [found.get((script, fault)) for fault in faults]
        cells = [str(tally.kills) if tally else "" for tally in tallies]
        lost = sum(len(tally.faults) for tally in tallies if tally)
        lines.append(f"| `{script}` | " + " | ".join(cells) + f" | {lost} |")
    kills = sum(tally.kills for tally in found.values())
    ends = sum(tally.ends for tally in found.values())
    return "\n".join([*lines, "", f"{kills} kills in {ends} runs that came to their end."])


# ------------------------------------------------------------------------------------------------------------- scripts


def prepare(folder: Path) -> list[Script]:
    """Import the scripts, simulate rooms, train teachers, and return the scripts."""
    for name in SCRIPTS:
        importlib.import_module(Path(name).stem)
    rooms = folder / "rooms"
    call(SIMULATE, words(f"--output {rooms} --train 16 --val 4 --test 4 --image_size 32 --workers 1"), folder)
    common = words(f"--dataset simulated --dataset_dir {rooms} --nb_epochs {EPOCHS} --save_frequency {EPOCHS}")
    small = (*common, *words("--image_size 32 --base_channels 4 --batch_size 4 --num_workers 0 --augment"))
    views = (*common, *words("--image_size 28 --batch_size 4 --num_workers 0 --student_arch tiny"))
    measured = ("--teacher_models", "ground_truth")
    call("train_rgb_depth.py", (*small, *words(f"--output_dir {folder} --experiment_name eye")), folder)
    call(
        "train_distill_any_depth.py",
        (*views, *measured, "--output_dir", f"{folder}", "--experiment_name", "dav"),
        folder,
    )
    eye, dav = (str(folder / "checkpoints" / name / "best_model.pth") for name in ("eye", "dav"))
    attention = ("--attention_levels", "5")
    cached = ("--cache_teacher", "{output}/cache")
    by_eye = (*small, *attention, "--teacher_checkpoint", eye, *cached)
    by_dav = (*views, "--teacher_models", "tiny", "--teacher_checkpoints", dav, "--fixed_views", "--lambda_feat", "0")
    everywhere = tuple(point for point in POINTS if point != "in the teacher's cache")
    faults = (*ANYWHERE, *everywhere)
    return [
        Script(SIMULATE, words("--train 40 --val 4 --test 4 --image_size 32 --workers 1"), ANYWHERE),
        Script("train_rgb_depth.py", small, faults),
        Script("train_binaural_attention.py", (*small, *attention), faults),
        Script("train_baseline.py", (*small, "--model", "base_residual"), faults),
        Script("train_distillation.py", by_eye, (*ANYWHERE, *POINTS)),
        Script("train_adabins_distillation.py", (*small, *attention, "--n_bins", "8"), faults),
        Script("train_distill_any_depth.py", (*by_dav, *cached), (*ANYWHERE, *POINTS)),
    ]


def words(text: str) -> tuple[str, ...]:
    """Cut a command line at its blanks."""
    return tuple(text.split())


def where(script: Script, output: Path) -> tuple[str, ...]:
    """Return a script's flags, with where it writes."""
    if script.name == SIMULATE:
        return (*script.flags, "--output", f"{output}/rooms")
    flags = tuple(flag.replace("{output}", f"{output}") for flag in script.flags)
    return (*flags, "--output_dir", f"{output}", "--experiment_name", "e")


def run_unbroken(script: Script, folder: Path) -> None:
    """Run a script to its end, undisturbed."""
    script.reference = folder / f"unbroken_{Path(script.name).stem}"
    script.reference.mkdir()
    begun = time.monotonic()
    call(script.name, where(script, script.reference), folder)
    script.seconds = time.monotonic() - begun


# -------------------------------------------------------------------------------------------------------------- chains


def chain(script: Script, fault: str, output: Path, tally: Tally, most: int, rng: random.Random) -> None:
    """Kill one run up to ``most`` times, then let it come to its end; add what came of it to ``tally``."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    kept: dict[str, int] = {}
    kills = 0
    while True:
        flags = (*where(script, output), *goes_on(script, output))
        disturbed = kills < most
        code, said = start(script, flags, fault if disturbed else "", output, rng)
        if "Traceback" in said:
            tally.faults.append(f"{script.name}, {fault}: {said.strip().splitlines()[-1]}")
            return
        kept = look(script, fault, output, kept, tally)
        if code == 0:
            break
        if not disturbed and "is done already" in said:  # the kill came after the last epoch
            break
        if not disturbed or not is_expected(fault, code, said):
            tally.faults.append(f"{script.name}, {fault}: exit code {code}: {said.strip().splitlines()[-1:]}")
            return
        if "is done already" in said:
            break
        kills += 1
    tally.kills += kills
    tally.ends += 1
    different = compare(script, output)
    if different:
        tally.faults.append(f"{script.name}, {fault}: the end differs in {different}")


def goes_on(script: Script, output: Path) -> tuple[str, ...]:
    """Return the flag that goes on with what a killed run has left.

    One that was killed in its first epoch, after its best model was written and before ``last.pth``, begins anew.
    """
    if script.name == SIMULATE or not list(output.glob("checkpoints/e/*.pth")):
        return ()
    return ("--resume",) if (output / "checkpoints/e/last.pth").is_file() else ("--overwrite",)


def is_expected(fault: str, code: int, said: str) -> bool:
    """Tell whether a process ended as it should under a fault."""
    if "is done already" in said:
        return True
    if fault.startswith(("SIGTERM", "SIGINT")):
        return code == 130 or code in (-signal.SIGTERM, -signal.SIGINT)  # before it could listen
    if fault == "disk full":
        return code == 2 and "File too large" in said
    return code == -signal.SIGKILL


def look(script: Script, fault: str, output: Path, before: dict[str, int], tally: Tally) -> dict[str, int]:
    """Load every checkpoint; return the latest epoch of each by its name. None may be gone, nor be older than before.

    An epoch that was not complete is done again: what there was of it already is set aside, in ``superseded_<n>``;
    in ``replaced_<n>`` where the run begins anew, until it has saved an epoch.
    """
    found: dict[str, int] = {}
    folders = (".", "superseded_*", "replaced_*")
    for path in [path for folder in folders for path in output.glob(f"checkpoints/e/{folder}/*.pth")]:
        try:
            found[path.name] = max(load_checkpoint(path)["epoch"], found.get(path.name, 0))
        except CheckpointError as error:
            tally.faults.append(f"{script.name}, {fault}: {error}")
    for name, epoch in before.items():
        if found.get(name, -1) < epoch:
            tally.faults.append(f"{script.name}, {fault}: {name} of epoch {epoch} is lost")
    return found


def compare(script: Script, output: Path) -> list[str]:
    """Return what differs from the unbroken run."""
    ours, theirs = output, script.reference
    if script.name == SIMULATE:
        both = [{str(p.relative_to(d)): p.read_bytes() for p in d.rglob("*") if p.is_file()} for d in (ours, theirs)]
        return [name for name in both[0].keys() | both[1].keys() if both[0].get(name) != both[1].get(name)]
    different = [
        name
        for name in ("results/e/metrics.csv", "logs/e/steps.csv")
        if (ours / name).read_bytes() != (theirs / name).read_bytes()
    ]
    for name in ("last.pth", "best_model.pth"):
        states = [load_checkpoint(folder / "checkpoints/e" / name) for folder in (ours, theirs)]
        parts = ("model_state_dict", "training", "best", "epoch", "step")
        different += [f"{name}: {part}" for part in parts if not same(*(state.get(part) for state in states))]
    return different


def same(one: Any, other: Any) -> bool:
    """Compare nested values to the bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


# ------------------------------------------------------------------------------------------------------------ torchrun


def one_of_two(flags: tuple[str, ...], folder: Path, kills: int) -> Tally:
    """Kill one of two processes: the other must end within a minute, and both go on to the end of an unbroken run."""
    tally = Tally()
    script = Script(TWO, flags, (), reference=folder / "unbroken_two")
    if torchrun(script, script.reference)[0]:
        tally.faults.append("two processes do not train")
        return tally
    for number in range(kills):
        output = folder / f"two_{number}"
        code, seconds = torchrun(script, output, kills=True)
        tally.kills += 1
        print(f"one of two died: the other ended {seconds:.0f} s later, exit code {code}", flush=True)
        if code == 0 or seconds > MINUTE:
            tally.faults.append(f"one of two died: exit code {code} after {seconds:.0f} s")
        look(script, "one of two dies", output, {}, tally)
        torchrun(script, output, *goes_on(script, output))
        different = compare(script, output)
        tally.ends += 1
        if different:
            tally.faults.append(f"one of two died: the end differs in {different}")
    return tally


def torchrun(script: Script, output: Path, *more: str, kills: bool = False) -> tuple[int, float]:
    """Train in two processes, one of which may be killed once an epoch is saved; return exit code and seconds since."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script.name]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([*command, *where(script, output), *more], cwd=REPOSITORY, env=environment, **streams)
    if kills:
        deadline = time.monotonic() + DEADLINE
        while not (output / "checkpoints/e/last.pth").is_file() and time.monotonic() < deadline:
            time.sleep(0.01)
        children = subprocess.run(["pgrep", "-P", f"{process.pid}"], capture_output=True, text=True, check=False)
        os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    begun = time.monotonic()
    return process.wait(DEADLINE), time.monotonic() - begun


def without_server(flags: tuple[str, ...], folder: Path) -> Tally:
    """Log to a server of Weights & Biases that does not answer: training goes on, offline."""
    tally = Tally(kills=1)
    nowhere = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    os.environ.update(nowhere)
    log = folder / "said.txt"
    script = Script(TWO, (*flags, "--use_wandb"), ())
    code = wait(fork(TWO, where(script, folder / "offline"), log, lambda: None), DEADLINE)
    for key in nowhere:
        del os.environ[key]
    said = log.read_text(errors="replace")
    if code != 0 or "offline" not in said:
        tally.faults.append(f"no W&B server: exit code {code}: {said.strip().splitlines()[-1:]}")
    tally.ends += 1
    return tally


# ----------------------------------------------------------------------------------------------------------- processes


def start(script: Script, flags: Sequence[str], fault: str, output: Path, rng: random.Random) -> tuple[int, str]:
    """Run a script in a fork that the fault befalls, if there is one; return its exit code and what it said."""
    log = output.with_name("said.txt")
    lays: Callable[[], None] = lambda: None  # noqa: E731
    if fault in POINTS:
        at = 1 + rng.randrange(COUNTS[fault])
        lays = lambda: LAY[fault](at)  # noqa: E731
    child = fork(script.name, flags, log, lays)
    if fault in ANYWHERE:
        delay = rng.uniform(0, script.seconds)
        ended = wait(child, delay)
        if ended is None:
            os.kill(child, getattr(signal, fault.split()[0]))
        else:
            return ended, log.read_text(errors="replace")
    ended = wait(child, DEADLINE)
    if ended is None:
        os.kill(child, signal.SIGKILL)
        wait(child, DEADLINE)
        return -1, f"it hung for {DEADLINE} s"
    return ended, log.read_text(errors="replace")


def call(name: str, flags: Sequence[str], folder: Path) -> None:
    """Run a script in a fork, undisturbed, to its end."""
    log = folder / "said.txt"
    code = wait(fork(name, flags, log, lambda: None), DEADLINE)
    if code != 0:
        sys.exit(f"{name} {' '.join(flags)}: exit code {code}\n{log.read_text(errors='replace')}")


def fork(name: str, flags: Sequence[str], log: Path, lay: Callable[[], None]) -> int:
    """Start ``name`` in a fork; return its process number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.argv = [name, *flags]
        os.chdir(REPOSITORY)
        torch.set_num_threads(1)
        lay()
        run_script(importlib.import_module(Path(name).stem).main)
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)
    except KeyboardInterrupt:  # before the script could listen
        os._exit(130)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def wait(child: int, seconds: float) -> int | None:
    """Return the exit code of a process (negative: the signal that killed it), or None if it is still there then."""
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.002)


# --------------------------------------------------------------------------------------------------------------- faults


def die() -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def before_call(holder: Any, name: str, at: int) -> None:
    """Die before the ``at``-th call of ``holder.name``."""
    original, calls = getattr(holder, name), Counter[str]()

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[name] += 1
        if calls[name] == at:
            die()
        return original(*args, **kwargs)

    setattr(holder, name, counted)


def half_a_checkpoint(at: int) -> None:
    """Die when half of the bytes of the ``at``-th checkpoint are written."""
    original, calls = torch.save, Counter[str]()

    def counted(state: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        calls["save"] += 1
        if calls["save"] < at:
            return original(state, file, *args, **kwargs)
        whole = io.BytesIO()
        original(state, whole, *args, **kwargs)
        file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        file.flush()
        return die()

    torch.save = counted


def full_disk(at: int) -> None:
    """Let no file grow beyond so many times 4 kB, less than a checkpoint: the system refuses what goes further."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at * 4000, resource.RLIM_INFINITY))


LAY: dict[str, Callable[[int], None]] = {
    "in a step": lambda at: before_call(MicroBatches, "backward", at),
    "in the middle of a checkpoint": half_a_checkpoint,
    "before the flush": lambda at: before_call(os, "fsync", at),
    "before the rename": lambda at: before_call(files.Path, "replace", at),
    "before a row of the log": lambda at: before_call(RunLog, "epoch", at),
    "in the teacher's cache": lambda at: before_call(TeacherCache, "answer", at),
    "disk full": full_disk,
}
# How often each point comes by in a run at most, about.
COUNTS = {
    "in a step": 12,
    "in the middle of a checkpoint": 6,
    "before the flush": 12,
    "before the rename": 8,
    "before a row of the log": 3,
    "in the teacher's cache": 12,
    "disk full": 5,
}


if __name__ == "__main__":
    main()
