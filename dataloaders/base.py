"""What every data set shares: rows, options, labels, hold-outs, errors that name file and row.

A data set says where its rows are (``find_rows``) and how it reads one (``read_audio``, ``read_rgb``, ``read_depth``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dataloaders import transforms
from dataloaders.crops import CropRule, boxes_within, draw_crops
from dataloaders.problems import Problem
from dataloaders.readers import Listing, looking_into, read_image
from dataloaders.sample_cache import SampleCache, digests
from dataloaders.transforms import Size, size_pair
from errors import DataError, OptionError

log = logging.getLogger("dataloaders")

SPLITS = ("train", "val", "test")
MODALITIES = ("audio", "rgb", "depth")

ToMetres = Callable[[np.ndarray], Tensor]  # [H, W] as stored -> [1, H, W] float32

# The scripts that a data set without pictures is still good for.
SCRIPTS_WITHOUT_RGB = "train_binaural_attention.py, train_baseline.py"


@dataclass(frozen=True, slots=True)
class Row:
    """One instance: its name, where the data set names it, and its files by modality.

    (): no such file is named; a modality that is absent: what is named was noted as a problem. A ``source`` that is
    among the files holds many instances, of which this is the ``number``-th.
    """

    id: str
    source: str
    number: int
    location: str | None = None
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def has(self, modality: str) -> bool:
        return bool(self.files.get(modality))

    def places(self) -> tuple[tuple[str, int], ...]:
        """Return where all that it names lies: each file, and which instance in it."""
        paths = [path for paths in self.files.values() for path in paths]
        return tuple((path, self.number if path == self.source else 0) for path in paths)


class DepthDataset(Dataset):
    """Pairs of echoes, pictures and depth maps.

    ``dataset[i]`` and ``dataset[(epoch, i)]`` give a dict; plain ``i`` is epoch 0:

    - ``audio`` [C, S, S] float32: time-frequency image of the left and the right ear, and of ``interaural`` maps of
      both; C of :func:`~dataloaders.transforms.audio_channels`.
    - ``rgb`` [3, S, S] float32 in [0, 1].
    - ``depth`` [1, S, S] float32 in metres, 0 = invalid (all 0 for a pair without a label); native size on request.
    - ``id`` str, ``index`` int: the instance's name and its row.
    - ``mirrored`` bool and ``scale`` float, scalar tensors, where training augments by them.

    In training under a rule of ``crops``, ``rgb`` and ``depth`` are a square crop, drawn anew each epoch, and beside it
    stand ``local`` [N, 3, S, S], closer views of parts of it, and ``boxes`` [N, 4]: left, top, right and bottom of each
    in pixels of ``rgb``.

    A modality that the data set cannot supply, or that was not asked for, is absent. What is random in a sample comes
    from (seed, epoch, i) alone, whichever process reads it.

    The first thing that is wrong with the folder ends it. Where a list of ``problems`` is given, each :class:`Problem`
    is added to that instead, and the rows and files that are in order make the data set; nothing is written.

    Attributes:
        ids: name of each row.
        locations: where each row was recorded, or None.
        labelled: [N] bool, whether the row has a depth label.
        cache_dir: where prepared samples are to be kept; the first loader of the data set opens the cache there.
        cache: from then on, where samples come from.
        supplied: modalities that the data set can supply, loaded or not.
        modalities: those that are loaded.
        preprocessing: plain values with which evaluation and prediction repeat the preprocessing.
        field_of_view: of its camera, (horizontal, vertical) in degrees; None where nobody has said it.

    Raises:
        OptionError: an option that this data set cannot honour.
        DataError: a folder, table or file is missing or broken; the message names file and row.
    """

    name: ClassVar[str]
    default_dir: ClassVar[str]
    default_max_depth: ClassVar[float]
    can_supply: ClassVar[tuple[str, ...]] = MODALITIES
    beyond_max_depth: ClassVar[str] = "clip"
    where_to_get_it: ClassVar[str]
    field_of_view: ClassVar[tuple[float, float] | None] = None

    def __init__(
        self,
        dataset_dir: str | Path | None = None,
        split: str = "train",
        image_size: Size = 256,
        max_depth: float | None = None,
        audio_format: str = "spectrogram",
        *,
        min_depth: float = 1e-3,
        modalities: Collection[str] | None = None,
        holdout_location: str | None = None,
        label_fraction: float = 1.0,
        label_seed: int = 0,
        resample: bool | None = None,
        augment: bool = False,
        augment_scale: float = 0.0,
        seed: int = 0,
        native_depth: bool = False,
        crops: CropRule | None = None,
        rgb_filter: str = "bilinear",
        audio_samples: int | None = None,
        cache_dir: str | Path | None = None,
        problems: list[Problem] | None = None,
    ) -> None:
        self.dataset_dir = str(Path(dataset_dir if dataset_dir is not None else self.default_dir))
        self.split = split
        self.image_size = image_size
        self.max_depth = float(self.default_max_depth if max_depth is None else max_depth)
        self.min_depth = float(min_depth)
        self.augment = augment and split == "train"
        self.augment_scale = augment_scale if split == "train" else 0.0
        self.seed = seed
        self.native_depth = native_depth
        self.crops = crops if split == "train" else None
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.cache: SampleCache | None = None
        self._check_options(audio_format, rgb_filter, modalities, label_fraction, (seed, label_seed))
        self.preprocessing: dict[str, Any] = {
            "dataset": self.name,
            "image_size": image_size if isinstance(image_size, int) else list(image_size),
            "max_depth": self.max_depth,
            "min_depth": self.min_depth,
            "audio_format": audio_format if "audio" in self.can_supply else None,
            "audio_samples": self._heard_samples(audio_format, audio_samples),
            "sample_rate": transforms.SAMPLE_RATE if "audio" in self.can_supply else None,
            "resample": bool(resample),
            "rgb_filter": rgb_filter,
        }

        self._wanted = frozenset(MODALITIES if modalities is None else modalities)
        self._listing = Listing()
        self._problems = problems
        with looking_into(self.dataset_dir):
            if problems is None:
                self.prepare_folder()
            if not Path(self.dataset_dir).is_dir():
                raise DataError(f"{self.dataset_dir} is no folder; {self.where_to_get_it}")
            self.rows = self._held_out(self.find_rows(), holdout_location)
        if not self.rows and holdout_location:
            raise DataError(f"{self.dataset_dir}: with {holdout_location} held out, the {split} split is empty")
        if not self.rows:
            raise DataError(f"{self.dataset_dir}: the {split} split is empty; {self.where_to_get_it}")
        self.supplied = self._find_supplied()
        self.modalities = self._choose_modalities(modalities)
        self._check_files()
        self._tell_repeated_rows()
        self.ids = [row.id for row in self.rows]
        self.locations = [row.location for row in self.rows]
        self.labelled = self._draw_labelled(label_fraction if split == "train" else 1.0, label_seed)

    # ------------------------------------------------------------------------------------ what a data set fills in

    @classmethod
    def is_in(cls, folder: Path) -> bool:
        """Return whether a folder looks like this data set, from a few names in it."""
        return False

    @classmethod
    def splits_in(cls, folder: Path) -> tuple[str, ...]:
        """Return the splits that there should be in a folder."""
        return SPLITS

    def prepare_folder(self) -> None:
        """Called first of all, for a data set that can make its own files."""

    def find_rows(self) -> list[Row]:
        """List the rows of ``self.split`` with the files of the modalities in ``self.can_supply``."""
        raise NotImplementedError

    def known_locations(self) -> list[str]:
        """List every location that ``holdout_location`` may name; none means that the data set has no locations."""
        return []

    def audio_samples(self) -> int | None:
        """Samples that the sound is cut or filled up to; None keeps it whole."""
        return None

    def read_audio(self, row: Row) -> Tensor:
        """Sound of the two ears [2, N] at 44.1 kHz."""
        raise NotImplementedError

    def sample_rate(self, row: Row) -> int | None:
        """Hz at which a row's sound was recorded; None where its files do not say."""
        return None

    def read_depth(self, row: Row) -> tuple[np.ndarray, ToMetres]:
        """Depth map [H, W] as it is stored, and what turns all or some of its pixels into metres.

        In metres, holes may still be NaN, infinite, zero or negative.
        """
        raise NotImplementedError

    def read_rgb(self, row: Row) -> Any:
        """Picture, as Pillow reads it."""
        return read_image(row.files["rgb"][0])

    def why_not(self, modality: str) -> str:
        """Why this data set cannot supply a modality, and what to do."""
        return f"--dataset {self.name} has no {modality}"

    # ------------------------------------------------------------------------------------------------- what users call

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        index = range(len(self.rows))[index]  # negative indices, and IndexError past the end
        sample: dict[str, Any] = {"id": self.rows[index].id, "index": index}
        if self.crops is not None:
            with self._naming(index, "rgb"):
                sample |= self._cropped(index, self.crops, np.random.default_rng((self.seed, epoch, index, 1)))
        else:
            sample |= {modality: self._prepared(index, modality) for modality in self.modalities}  # [C, S, S]
        if self.augment:
            sample = transforms.augment_sample(sample, np.random.default_rng((self.seed, epoch, index)))
        if self.augment_scale:
            sample = self._scaled(sample, np.random.default_rng((self.seed, epoch, index, 2)))
        return sample

    def prepare(self, index: int, modality: str) -> Tensor:
        """Read what a row has of a modality and make it ready, as it is before augmentation: [C, S, S] float32.

        Depth is that of the file, labelled or not; all 0 where no file is named.
        """
        row = self.rows[index]
        with self._naming(index, modality):
            if modality == "audio":
                return transforms.prepare_audio(self.read_audio(row), self.preprocessing)  # [C, S, S]
            if modality == "rgb":
                return transforms.prepare_rgb(self.read_rgb(row), self.preprocessing)  # [3, S, S]
            return self._depth(index) if row.has("depth") else self._no_depth()  # [1, S, S]

    def read_wave(self, index: int, preprocessing: Mapping[str, Any]) -> Tensor:
        """Read a row's sound, cut as a network's preprocessing says: [2, N] at 44.1 kHz, of which ``audio`` is made."""
        with self._naming(index, "audio"):
            return transforms.prepare_wave(self.read_audio(self.rows[index]), preprocessing)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def row_name(self, index: int) -> str:
        """Where the row stands, for messages: file and row, the header being row 1."""
        row = self.rows[index]
        return f"{row.source}, row {row.number}"

    def state_of_files(self, modality: str) -> str:
        """Return a digest of which rows there are, and of the sizes and times of a modality's files.

        Raises:
            DataError: one of them cannot be looked at.
        """
        return " ".join(digests(self, modality))

    def require_depth(self) -> None:
        """Make sure that there is a depth to learn from. Reads maps in order until the first valid pixel, mostly one.

        Raises:
            DataError: no row has a label, or no label has one valid pixel at the size of the samples.
        """
        for index in np.flatnonzero(self.labelled).tolist():
            with self._naming(index, "depth"):
                if self._depth(index).any():
                    return
        raise DataError(
            f"{self.dataset_dir}: not one of the {len(self)} {self.split} pairs has a valid depth pixel "
            f"({int(self.labelled.sum())} name a depth map); check the depth files and --label_fraction"
        )

    # ------------------------------------------------------------------------------------------------------ inner parts

    @contextmanager
    def noting(self, kind: str, file: str, row: int | None = None, table: str | None = None) -> Iterator[None]:
        """Around what concerns one row or file alone: with a list of problems, a DataError is noted, not the end.

        The arguments are those of :class:`Problem`, the names as they are in errors.
        """
        try:
            yield
        except DataError as error:
            if self._problems is None:
                raise
            self._problems.append(Problem.of(error, kind, self.dataset_dir, file, row, table))

    @contextmanager
    def _naming(self, index: int, modality: str) -> Iterator[None]:
        """Around the reading of a row: a DataError names the file, of ``modality`` if it names none, and the row."""
        try:
            yield
        except DataError as error:
            files = self.rows[index].files
            named = any(path in str(error) for paths in files.values() for path in paths)
            file = "" if named else f"{files[modality][0]}: "
            raise DataError(f"{file}{error} ({self.row_name(index)})") from None

    def _scaled(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Return the sample with its scene made larger or smaller, by factors that are evenly spread as logarithms."""
        scale = (1 + self.augment_scale) ** rng.uniform(-1, 1)
        samples = self.preprocessing["audio_samples"]
        return transforms.scale_scene(sample, scale, samples, self.max_depth)

    def _prepared(self, index: int, modality: str) -> Tensor:
        if modality == "depth" and not self.labelled[index]:
            return self._no_depth()
        return self.prepare(index, modality) if self.cache is None else self.cache.read(modality, index)

    def _cropped(self, index: int, rule: CropRule, rng: np.random.Generator) -> dict[str, Tensor]:
        """Read a picture, and its depth, and cut the views of a rule out of them."""
        picture = self.read_rgb(self.rows[index])
        view, parts = draw_crops(picture.height, picture.width, rule, rng)
        side = size_pair(self.image_size)[1]
        views = [transforms.prepare_rgb(picture, self.preprocessing, tuple(box.tolist())) for box in (view, *parts)]
        sample = {"rgb": views[0], "boxes": torch.from_numpy(boxes_within(view, parts, side))}
        sample["local"] = torch.stack(views[1:]) if len(parts) else views[0].new_zeros(0, *views[0].shape)
        if "depth" in self.modalities:
            crop = partial(transforms.crop_depth, box=view.tolist(), height=picture.height, width=picture.width)
            sample["depth"] = self._depth(index, crop) if self.labelled[index] else self._no_depth()  # [1, S, S]
        return sample

    def _no_depth(self) -> Tensor:
        return torch.zeros(1, *size_pair(self.image_size))

    def _depth(self, index: int, crop: Callable[[np.ndarray], np.ndarray] = lambda depth: depth) -> Tensor:
        if self.native_depth:
            return self._clean_depth(self.rows[index])
        return self._clean_depth(self.rows[index], lambda depth: transforms.resize_depth(crop(depth), self.image_size))

    def _clean_depth(self, row: Row, pick: Callable[[np.ndarray], np.ndarray] = lambda depth: depth) -> Tensor:
        """Return the pixels that ``pick`` takes out of a map, in metres, holes 0: [1, h, w]."""
        depth, to_metres = self.read_depth(row)  # [H, W]
        metres = to_metres(pick(depth))  # [1, h, w]
        return transforms.clean_depth(metres, self.max_depth, self.min_depth, beyond=self.beyond_max_depth)

    def _check_options(
        self,
        audio_format: str,
        rgb_filter: str,
        modalities: Collection[str] | None,
        label_fraction: float,
        seeds: Iterable[int],
    ) -> None:
        if self.split not in SPLITS:
            raise OptionError(f"unknown split {self.split}; known: {', '.join(SPLITS)}")
        if min(size_pair(self.image_size)) < 1:
            raise OptionError(f"--image_size {self.image_size} is not positive")
        if not 0 <= self.min_depth < self.max_depth < float("inf"):
            raise OptionError(
                f"--min_depth {self.min_depth:g} and --max_depth {self.max_depth:g} span no range of depth"
            )
        transforms.refuse_millimetres(self.max_depth)
        if audio_format not in transforms.AUDIO_FORMATS:
            known = ", ".join(transforms.AUDIO_FORMATS)
            raise OptionError(f"unknown --audio_format {audio_format}; known: {known}")
        if rgb_filter not in transforms.RGB_FILTERS:
            raise OptionError(f"unknown rgb_filter {rgb_filter}; known: {', '.join(transforms.RGB_FILTERS)}")
        unknown = sorted(set(modalities or ()) - set(MODALITIES))
        if unknown:
            raise OptionError(f"unknown modalities {', '.join(unknown)}; known: {', '.join(MODALITIES)}")
        if not 0 <= label_fraction <= 1:
            raise OptionError(f"--label_fraction {label_fraction:g} is not between 0 and 1")
        if min(seeds) < 0:
            raise OptionError("a seed must not be negative")
        if self.augment_scale < 0:
            raise OptionError(f"--augment_scale {self.augment_scale:g} must not be negative")
        if self.augment_scale and audio_format != "interaural":
            raise OptionError("--augment_scale needs --audio_format interaural: its time begins with the direct pulse")
        if self.crops is not None and (modalities is None or set(modalities) - {"rgb", "depth"}):
            raise OptionError("crops are of pictures: a sample of echoes shows the whole scene")
        if self.cache_dir is not None and self.crops is not None:
            raise OptionError("--cache_dir keeps whole views; crops are drawn anew each epoch: say --fixed_views")
        if self.cache_dir is not None and self.native_depth:
            raise OptionError("--cache_dir keeps maps of one size, not of their own")

    def _heard_samples(self, audio_format: str, wanted: int | None) -> int | None:
        """Return how many samples of a recording are heard: all that the cap asks for, where time has a zero."""
        if "audio" not in self.can_supply:
            return None
        samples = self.audio_samples() if wanted is None else wanted
        return transforms.cut_samples(self.max_depth) if samples is None and audio_format == "interaural" else samples

    def _held_out(self, rows: list[Row], holdout: str | None) -> list[Row]:
        """Train and val drop the locations held out, test keeps only them."""
        if not holdout:
            return rows
        known = self.known_locations()
        if not known:
            raise OptionError(f"--holdout_location: --dataset {self.name} names no locations; batvisionv2 does")
        held = location_names(holdout)
        if not held <= set(known):
            unknown = ", ".join(sorted(held - set(known))) or "(none named)"
            raise OptionError(f"--holdout_location: unknown {unknown}; {self.dataset_dir} has {', '.join(known)}")
        return [row for row in rows if (row.location in held) == (self.split == "test")]

    def _find_supplied(self) -> set[str]:
        """A modality is supplied when a row names a file of it, and, for pictures, when one of those exists.

        BatVision copies without the camera folders keep their camera columns; they are whole but for the pictures.
        """
        supplied = {name for name in self.can_supply if any(row.has(name) for row in self.rows)}
        if "rgb" in supplied and "audio" in self.can_supply:
            pictures = (path for row in self.rows for path in row.files.get("rgb", ()))
            if not any(path in self._listing for path in pictures):
                supplied.discard("rgb")
        return supplied

    def _choose_modalities(self, wanted: Collection[str] | None) -> tuple[str, ...]:
        if wanted is None:
            for missing in sorted(set(self.can_supply) - self.supplied):
                log.info("%s: no %s in the %s split; it is left out", self.dataset_dir, missing, self.split)
            return tuple(name for name in MODALITIES if name in self.supplied)
        for name in wanted:
            # A split without one depth label still loads: every pair of it is unlabelled.
            if name not in self.supplied and not (name == "depth" and name in self.can_supply):
                raise DataError(f"{self.dataset_dir}: {self.why_not(name)}")
        return tuple(name for name in MODALITIES if name in wanted)

    def _check_files(self) -> None:
        """Every file that a row names exists, and every row has its sound and its picture: known before training."""
        for index, row in enumerate(self.rows):
            for modality in self.modalities:
                paths = row.files.get(modality)
                if paths is None:
                    continue
                with self.noting("table", row.source, row.number):
                    if not paths and modality != "depth":
                        raise DataError(
                            f"{self.row_name(index)}: no {modality} file is named; fill the cell or drop the row"
                        )
                for path in self._listing.missing(paths):
                    row.files.pop(modality, None)
                    with self.noting("missing file", path, row.number, row.source):
                        raise DataError(f"{path} is missing ({self.row_name(index)}); copy the file or drop the row")

    def _tell_repeated_rows(self) -> None:
        """A row that stands twice in a table counts twice, in training as in a score."""
        first: dict[Any, int] = {}
        repeated = []
        for index, row in enumerate(self.rows):
            earlier = first.setdefault(row.places() or row.id, index)
            if earlier != index:
                repeated.append(index)
                if self._problems is not None:
                    error = DataError(f"names the files of {self.row_name(earlier)} again; drop one of the two")
                    self._problems.append(Problem.of(error, "repeated row", self.dataset_dir, row.source, row.number))
        if repeated and self._problems is None:
            log.warning(
                "%s: %d of the %d %s rows name the files of an earlier row and count again, the first in %s",
                self.dataset_dir, len(repeated), len(self), self.split, self.row_name(repeated[0]),
            )  # fmt: skip

    def _draw_labelled(self, fraction: float, seed: int) -> np.ndarray:
        """[N] bool. The first round(F n) pairs of one permutation: a smaller share is part of a larger one."""
        candidates = np.flatnonzero([row.has("depth") for row in self.rows])
        count = round(fraction * len(candidates))
        if fraction > 0 and len(candidates) > 0:
            count = max(1, count)
        labelled = np.zeros(len(self.rows), dtype=bool)
        labelled[np.random.default_rng(seed).permutation(candidates)[:count]] = True
        return labelled


def depth_from_metres(values: np.ndarray) -> Tensor:
    """[H, W] metres of any numeric type -> [1, H, W] float32 metres; NaN and infinity pass through."""
    return torch.from_numpy(as_float32(values))[None]


def depth_from_millimetres(values: np.ndarray) -> Tensor:
    """[H, W] millimetres of any numeric type -> [1, H, W] float32 metres; NaN and infinity pass through."""
    return depth_from_metres(values) / 1000


def as_float32(values: np.ndarray) -> np.ndarray:
    """Return numbers of any type as float32; what that cannot hold is infinite, and judged as such."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def printable(name: str) -> str:
    """Return a file's name as text that can be kept and drawn: what is no UTF-8 in it is spelled out."""
    return name.encode(errors="backslashreplace").decode()


def location_names(holdout: str) -> set[str]:
    """Return the locations that a ``holdout_location`` names, with commas between them."""
    return {name.strip() for name in holdout.split(",") if name.strip()}
