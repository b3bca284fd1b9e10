"""Prepared samples on the disk: what preparation makes of a file is kept, and read in every later epoch and run.

Each modality has a folder of its own below ``--cache_dir``, named after a digest of all that shapes it, so that a
teacher that sees, a student that hears and the distillation from one to the other share what they have in common. What
is out of date has another digest: it is never read, and a line says which folder may be deleted.

=========  ====================================================  =========================================
modality   kept as                                               exact
=========  ====================================================  =========================================
``rgb``    uint8, as Pillow's resize gives it                    yes
``depth``  uint16 millimetres where that gives back each metre   yes
           to the bit, else float32 metres
``audio``  float16, or float32 where a value is above 65504      within 2^-11, 0.05 % (float16 of numbers
                                                                 above 6e-5, else within 3e-8)
=========  ====================================================  =========================================

0.05 % of a magnitude is 0.004 dB. Behind the logarithm that networks take of it, log(1 + m / 0.001) / log(1001), that
is 7e-5 at most, on a scale on which silence is 0 and a magnitude of 1 is 1.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
import soundfile
import torch
import torchvision
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dataloaders.transforms import audio_channels, size_pair
from dataloaders.workers import start_worker
from errors import DataError, OptionError
from training.files import locked
from training.mapped_rows import MappedRows, open_whole, read_key

if TYPE_CHECKING:
    from dataloaders.base import DepthDataset

log = logging.getLogger("dataloaders")

FLAG = "--cache_dir"
# Which entries of a data set's preprocessing shape which modality.
SHAPING = {
    "audio": ("image_size", "audio_format", "audio_samples", "sample_rate", "resample"),
    "rgb": ("image_size", "rgb_filter"),
    "depth": ("image_size", "max_depth", "min_depth"),
}
CHANNELS = {"rgb": 3, "depth": 1}  # those of audio are as many as its format has
# Entries of a key that change when the same samples have to be prepared anew.
AGEING = ("files", "code", "versions")
BATCH = 8  # samples that a worker hands over at a time
COMMIT_EVERY = 10.0  # seconds of work that a kill can cost


@dataclass(frozen=True)
class Form:
    """How a modality is kept.

    Attributes:
        name: in the folder's name.
        dtype: on the disk.
        encode: a prepared float32 tensor -> what is kept.
        decode: the way back; the result shares no memory with what is kept.
        exact: a tensor is kept so only if it comes back to the bit; else, if none of it lies beyond the type's range.
    """

    name: str
    dtype: type[np.generic]
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    exact: bool = True

    def kept(self, prepared: Tensor) -> Tensor | None:
        """Return what is kept of a prepared tensor; None if this form does not hold it."""
        kept = self.encode(prepared)
        if self.exact:
            return kept if torch.equal(self.decode(kept), prepared) else None
        low, high = prepared.aminmax()
        return kept if max(-low, high) <= torch.finfo(kept.dtype).max else None


def _to_float(kept: Tensor) -> Tensor:
    return kept.to(torch.float32, copy=True)


FLOAT32 = Form("float32", np.float32, lambda prepared: prepared, _to_float)
# By modality, the one that takes the least room first.
FORMS = {
    "audio": (Form("float16", np.float16, lambda prepared: prepared.half(), _to_float, exact=False), FLOAT32),
    "rgb": (
        Form("uint8", np.uint8, lambda prepared: (prepared * 255).round().byte(), lambda k: _to_float(k).div_(255)),
    ),
    "depth": (
        Form(
            "uint16",
            np.uint16,
            lambda prepared: (prepared * 1000).round().clamp(max=65_535).to(torch.uint16),
            lambda kept: _to_float(kept).div_(1000),
        ),
        FLOAT32,
    ),
}


class SampleCache:
    """The samples of one split as they are before augmentation, whoever is labelled.

    What is not there yet is prepared first, with a progress bar on a terminal. One process does so while others that
    want the same wait for it; one that is killed has lost the work of some seconds.

    Args:
        root: ``--cache_dir``, made if it is not there.
        dataset: whose rows are prepared, each file of them once; a file that is broken is an error also where its row
            has lost its label to ``--label_fraction``.
        num_workers: processes that prepare; 0 does it in this one, on as many threads as it computes on.

    Raises:
        OptionError: the folder cannot be written to.
        DataError: a sample cannot be prepared, or the cache's own files are damaged.
    """

    def __init__(self, root: Path, dataset: DepthDataset, num_workers: int = 0) -> None:
        self._found: dict[str, tuple[Path, int]] = {}  # folder, and place of its form among those of the modality
        self._shapes = {modality: shape_of(dataset, modality) for modality in dataset.modalities}
        self._opened: dict[str, Tensor] = {}
        for modality in dataset.modalities:
            key = key_of(dataset, modality)
            folders = [folder_of(root, key, form) for form in FORMS[modality]]
            if not self._find(modality, folders):
                with _written(root, key) as say:
                    if not self._find(modality, folders):  # nor has the process that was waited for made it
                        say()
                        _build(dataset, modality, key, folders, num_workers)
                        self._find(modality, folders)

    def read(self, modality: str, index: int) -> Tensor:
        """Return one row of a modality: float32, as ``DepthDataset.prepare`` gives it, up to the form's rounding."""
        folder, form = self._found[modality]
        if modality not in self._opened:
            rows = self._open(modality, folder, form)
            if rows is None:
                raise DataError(f"{folder} has disappeared or is no longer whole; start again")
            self._opened[modality] = rows
        return FORMS[modality][form].decode(self._opened[modality][index])

    def __getstate__(self) -> dict[str, Any]:
        """Leave the mapped files out: a process that is sent the cache opens its own."""
        return self.__dict__ | {"_opened": {}}

    def _find(self, modality: str, folders: Sequence[Path]) -> bool:
        for form, folder in enumerate(folders):
            rows = self._open(modality, folder, form)
            if rows is not None:
                self._found[modality], self._opened[modality] = (folder, form), rows
                return True
        return False

    def _open(self, modality: str, folder: Path, form: int) -> Tensor | None:
        rows = open_whole(folder, self._shapes[modality], FORMS[modality][form].dtype)
        if rows is None:
            return None
        with warnings.catch_warnings():  # PyTorch would warn that they cannot be written to, and nobody does
            warnings.simplefilter("ignore", UserWarning)
            return torch.from_numpy(rows)


def shape_of(dataset: DepthDataset, modality: str) -> tuple[int, ...]:
    """Return [N, C, H, W] of what is kept of a modality."""
    channels = CHANNELS.get(modality) or audio_channels(dataset.preprocessing["audio_format"])
    return len(dataset), channels, *size_pair(dataset.image_size)


# ----------------------------------------------------------------------------------------------------------------- key


def key_of(dataset: DepthDataset, modality: str) -> dict[str, Any]:
    """Return all that shapes what a data set prepares of a modality; labels and augmentation come after it.

    Raises:
        DataError: a file of a row cannot be looked at.
    """
    rows, files = digests(dataset, modality)
    return {
        "modality": modality,
        "dataset": dataset.name,
        "dataset_dir": os.path.realpath(dataset.dataset_dir),
        **{option: dataset.preprocessing[option] for option in SHAPING[modality]},
        "rows": rows,
        "files": files,
        "code": _code(),
        "versions": {
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
            "numpy": np.__version__,
            "pillow": PIL.__version__,
            "soundfile": f"{soundfile.__version__} {soundfile.__libsndfile_version__}",
        },
    }


def folder_of(root: Path, key: dict[str, Any], form: Form) -> Path:
    """Return the folder of what a key describes: ``batvisionv2-depth-uint16-0123456789abcdef``."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return root / f"{key['dataset']}-{key['modality']}-{form.name}-{digest}"


def digests(dataset: DepthDataset, modality: str) -> tuple[str, str]:
    """Return digests of which rows there are, and of the sizes and times of their files."""
    rows, files = hashlib.sha256(), hashlib.sha256()
    looks: dict[str, str] = {}  # many rows may stand in one file
    for row in dataset.rows:
        paths = row.files.get(modality, ())
        inside = [path.removeprefix(dataset.dataset_dir).lstrip("/") for path in (row.source, *paths)]
        rows.update(os.fsencode(f"{row.number}\0{chr(0).join(inside)}\n"))
        for path in paths:
            if path not in looks:
                try:
                    state = Path(path).stat()
                except OSError as error:
                    raise DataError(f"{path} cannot be read ({error}); copy the file again") from None
                looks[path] = f"{state.st_size} {state.st_mtime_ns}\n"
            files.update(looks[path].encode())
    return rows.hexdigest(), files.hexdigest()


def _code() -> str:
    """Return a digest of the code that prepares samples: this room. Nobody can forget to count it up."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------------------------- build


@contextmanager
def _written(root: Path, key: dict[str, Any]) -> Iterator[Callable[[], None]]:
    """Be the only process that writes what a key describes; what is yielded says that it begins.

    Raises:
        OptionError: the folder cannot be written to.
    """
    what = f"{key['dataset']} {key['modality']}"
    name = folder_of(root, key, FLOAT32).name

    def say() -> None:
        log.info("%s: preparing %s", root, what)
        for folder in _outdated(root, key):
            log.info("%s is out of date and no longer read: delete it", folder)

    def wait() -> None:
        log.info("%s: waiting for another process that prepares %s", root, what)

    with ExitStack() as stack:
        try:
            root.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(root / f".{name}.lock", wait))
        except OSError as error:
            raise OptionError(f"{FLAG} {root}: cannot be written to ({error})") from error
        yield say


def _outdated(root: Path, key: dict[str, Any]) -> list[Path]:
    """Return the folders of the same samples, of files or code that have changed since."""
    found = []
    for folder in sorted(root.glob(f"{key['dataset']}-{key['modality']}-*")):
        try:
            other = read_key(folder)
        except DataError:
            continue
        if other != key and all(other.get(entry) == key[entry] for entry in key if entry not in AGEING):
            found.append(folder)
    return found


class _Preparation(Dataset):
    """Rows -> (row, what is kept of it), for the processes or threads that build a cache."""

    def __init__(self, dataset: DepthDataset, modality: str, form: int, rows: np.ndarray) -> None:
        self.dataset, self.modality, self.form, self.rows = dataset, modality, form, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> tuple[int, Tensor | None]:
        row = int(self.rows[place])
        return row, FORMS[self.modality][self.form].kept(self.dataset.prepare(row, self.modality))


def _build(
    dataset: DepthDataset, modality: str, key: dict[str, Any], folders: Sequence[Path], num_workers: int
) -> None:
    """Prepare what is missing, in the first form that holds all rows, or go on with that which was begun last."""
    begun = max((form for form, folder in enumerate(folders) if folder.is_dir()), default=0)
    for form in range(begun, len(folders)):
        kept = MappedRows(folders[form], key, shape_of(dataset, modality), FORMS[modality][form].dtype, flag=FLAG)
        if _fill(kept, dataset, modality, form, num_workers):
            return
        given_up = folders[form].with_name(f".{folders[form].name}")
        if given_up.is_dir():  # of a run that was killed here
            shutil.rmtree(given_up)
        folders[form].rename(given_up)  # at once: no kill leaves a folder of this name that lacks some of its files
        shutil.rmtree(given_up)
    raise DataError(f"{dataset.dataset_dir}: {modality} holds what no form of {FLAG} does; train without it")


def _fill(kept: MappedRows, dataset: DepthDataset, modality: str, form: int, num_workers: int) -> bool:
    """Prepare the rows that are not done; return False at the first that the form does not hold."""
    missing = np.flatnonzero(kept.done == 0)
    written: list[int] = []
    committed = time.monotonic()
    bar = tqdm(total=len(missing), desc=f"preparing {dataset.split} {modality}", unit="sample", disable=None)
    try:
        with bar, _prepared(_Preparation(dataset, modality, form, missing), num_workers) as batches:
            for batch in batches:
                rows, values = zip(*batch, strict=True)
                if any(value is None for value in values):
                    return False
                kept.write(rows, (value.numpy() for value in values))
                written += rows
                bar.update(len(batch))
                if time.monotonic() - committed > COMMIT_EVERY:
                    kept.mark(np.array(written))
                    written, committed = [], time.monotonic()
    finally:
        if written:
            kept.mark(np.array(written))
    return True


@contextmanager
def _prepared(work: _Preparation, num_workers: int) -> Iterator[Iterable[list[tuple[int, Tensor | None]]]]:
    """Yield the items of ``work`` in lists, in order; an error of the first that is broken is raised among them."""
    if num_workers:
        yield DataLoader(
            work,
            batch_size=BATCH,
            num_workers=min(num_workers, -(-len(work) // BATCH)),
            collate_fn=list,
            worker_init_fn=start_worker,
            generator=torch.Generator(),  # one of its own: the run's random numbers stay the same
        )
        return
    # A sample on each thread, not each step of one sample on all: many of its steps run on one thread anyway.
    threads = torch.get_num_threads()
    starts = range(0, len(work), BATCH * threads)
    try:
        # Readers silence warnings, which threads of one process share: in the end they are as they were.
        with warnings.catch_warnings(), ThreadPoolExecutor(threads, "prepare", torch.set_num_threads, (1,)) as pool:
            yield (list(pool.map(work.__getitem__, range(len(work))[start:][: starts.step])) for start in starts)
    finally:
        torch.set_num_threads(threads)  # also for threads to come
