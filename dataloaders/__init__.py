"""Data sets of echoes, pictures and depth in metres: BatVision, NYU Depth V2, simulated rooms, bare pictures.

``create_dataset`` makes one split, ``create_loader`` and ``create_loaders`` batch it, and ``create_training_data`` does
both for a training. Samples and attributes are described at :class:`~dataloaders.base.DepthDataset`; what is done to a
file, in :mod:`dataloaders.transforms`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from dataloaders.audio_frontend import AudioFrontEnd
from dataloaders.bare import read_bare
from dataloaders.base import MODALITIES, SPLITS, DepthDataset, location_names
from dataloaders.batvision import BatVisionV1, BatVisionV2, refuse_location
from dataloaders.crops import CropRule
from dataloaders.images import Images
from dataloaders.loaders import EpochBatchSampler, collate, create_loader, create_loaders
from dataloaders.more_pairs import FLAG as PAIRS_FLAG
from dataloaders.more_pairs import WithMorePairs
from dataloaders.nyu import NYU
from dataloaders.problems import KINDS, Problem
from dataloaders.readers import HeldFile, Source, looking_into, read_image, read_wav, require_data
from dataloaders.simulated import Simulated
from dataloaders.transforms import (
    AUDIO_FORMATS,
    Size,
    audio_channels,
    check_length,
    clean_depth,
    is_silent,
    prepare_audio,
    prepare_rgb,
    prepare_wave,
    swap_ears,
    valid_depth,
)
from dataloaders.workers import start_worker, usable_workers
from errors import DataError, OptionError

__all__ = [
    "AUDIO_FORMATS",
    "DATASETS",
    "DEFAULT_DIRS",
    "DEFAULT_MAX_DEPTHS",
    "KINDS",
    "MODALITIES",
    "SPLITS",
    "AudioFrontEnd",
    "CropRule",
    "DepthDataset",
    "EpochBatchSampler",
    "HeldFile",
    "Problem",
    "Source",
    "WithMorePairs",
    "audio_channels",
    "check_length",
    "clean_depth",
    "collate",
    "create_dataset",
    "create_loader",
    "create_loaders",
    "create_training_data",
    "create_training_split",
    "find_dataset",
    "is_silent",
    "prepare_audio",
    "prepare_rgb",
    "prepare_wave",
    "read_bare",
    "read_image",
    "read_wav",
    "require_data",
    "start_worker",
    "swap_ears",
    "usable_workers",
    "valid_depth",
]

DATASETS: dict[str, type[DepthDataset]] = {
    data_set.name: data_set for data_set in (BatVisionV1, BatVisionV2, NYU, Simulated, Images)
}
DEFAULT_DIRS = {name: data_set.default_dir for name, data_set in DATASETS.items()}
DEFAULT_MAX_DEPTHS = {name: data_set.default_max_depth for name, data_set in DATASETS.items()}


def create_dataset(
    name: str,
    dataset_dir: str | Path | None = None,
    split: str = "train",
    image_size: Size = 256,
    max_depth: float | None = None,
    audio_format: str = "spectrogram",
    **options: Any,
) -> DepthDataset:
    """Make one split of a data set.

    Args:
        name: a key of ``DATASETS``.
        dataset_dir: its folder; None takes ``DEFAULT_DIRS[name]``.
        split: ``train``, ``val`` or ``test``.
        image_size: side of every tensor in pixels, or (height, width).
        max_depth: metres; None takes ``DEFAULT_MAX_DEPTHS[name]``. BatVision's sound is cut by it.
        audio_format: one of ``AUDIO_FORMATS``.
        options: ``min_depth`` (1e-3 m: nearer is invalid), ``modalities`` (load only these; None loads all there are),
            ``holdout_location`` (names with commas: train and val drop them, test keeps only them), ``label_fraction``
            and ``label_seed`` (the share of training pairs that keep their depth), ``resample`` (convert other sample
            rates to 44.1 kHz), ``augment`` and ``augment_scale`` (training only: mirrored scenes, and scenes up to that
            much larger or smaller), ``seed`` (of both), ``native_depth`` (leave the depth at its own size, for
            evaluation), ``crops`` (training only: views of a :class:`CropRule`),
            ``rgb_filter`` (``bilinear``, or ``bicubic`` for Depth Anything's networks: how pictures are resized),
            ``audio_samples`` (that a recording is cut or filled up to, of a network trained on other data; None
            takes the data set's own number),
            ``cache_dir`` (keep prepared samples there, see :mod:`dataloaders.sample_cache`), ``problems`` (a list of
            :class:`Problem` that gets all that is wrong; else the first ends it).

    Raises:
        OptionError: an unknown name, or an option that this data set cannot honour.
        DataError: a folder, table or file is missing or broken.
    """
    if name not in DATASETS:
        raise OptionError(f"unknown data set {name}; known: {', '.join(sorted(DATASETS))}")
    return DATASETS[name](dataset_dir, split, image_size, max_depth, audio_format, **options)


def find_dataset(folder: str | Path) -> str:
    """Return the name of the data set that a folder looks like, from a few names in it.

    Raises:
        DataError: it looks like none, or may not be read.
    """
    folder = Path(folder)
    known = (Simulated, BatVisionV1, BatVisionV2, NYU, Images)  # rooms before the format that they are in
    with looking_into(folder):
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder; name that of a data set")
        refuse_location(folder)
        for data_set in known:
            if data_set.is_in(folder):
                return data_set.name
    raise DataError(f"{folder} looks like none of {', '.join(sorted(DATASETS))} (docs/DATA.md says how these look)")


def create_training_data(
    modalities: Collection[str],
    dataset: Mapping[str, Any],
    pairs_dir: str | Path | None = None,
    *,
    val_only: Collection[str] = (),
    **loading: Any,
) -> tuple[dict[str, Any], dict[str, DataLoader]]:
    """Make the splits ``train`` and ``val`` of a data set, and their loaders.

    Args:
        modalities: what is loaded of each sample.
        dataset: the other arguments of :func:`create_dataset`.
        pairs_dir: a folder like the data set's, whose training pairs are added to ``train`` without their depth.
        val_only: those of the modalities that ``train`` does without.
        loading: the arguments of :func:`create_loaders`.

    Returns:
        The data sets by split, and the loaders.

    Raises:
        OptionError: as :func:`create_dataset` and :func:`create_loader` do.
        DataError: likewise.
    """
    splits: dict[str, Any] = {
        "train": create_training_split(set(modalities) - set(val_only), dataset, pairs_dir),
        "val": create_dataset(**dataset, split="val", modalities=modalities),
    }
    return splits, create_loaders(splits, **loading)


def create_training_split(
    modalities: Collection[str], dataset: Mapping[str, Any], pairs_dir: str | Path | None = None
) -> DepthDataset | WithMorePairs:
    """Make the split ``train`` of a data set, with more pairs behind it where there is a ``pairs_dir``.

    Arguments and errors are those of :func:`create_training_data`.
    """
    train = create_dataset(**dataset, split="train", modalities=modalities)
    if pairs_dir is None:
        return train
    require_data(pairs_dir, PAIRS_FLAG)
    others = {**dataset, "dataset_dir": pairs_dir, "holdout_location": None, "label_fraction": 0.0, "split": "train"}
    others["modalities"] = set(modalities) - {"depth"}  # neither its files nor its columns are looked for
    more = create_dataset(**others)
    held = location_names(dataset.get("holdout_location") or "") & set(more.known_locations())
    if held:  # a place that is held out is not learnt from these pairs either
        more = create_dataset(**{**others, "holdout_location": ",".join(sorted(held))})
    return WithMorePairs(train, more)
