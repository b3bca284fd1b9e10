"""Depth maps from files that belong to no data set: a network's file, and recordings or pictures, are all it takes."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dataloaders import read_bare
from dataloaders.images import SUFFIXES
from dataloaders.readers import natural_order
from errors import DataError, OptionError, run_script
from models import onnx_file
from models.onnx_file import OnnxNetwork
from training import loop, options
from training.checkpoint import load_model, preprocessing_of, require_entries
from training.checkpoint_schema import check_values
from training.engine import create_fabric
from training.files import write_whole
from training.mirrored import Mirrored
from training.task import Batch
from training.visualization import Column, save_grid

SOURCES = {"waveform": "audio"}  # an ONNX file makes the spectrogram of a recording itself
SOUNDS = frozenset({".flac", ".ogg", ".mp3", ".aif", ".aiff", ".w64", ".caf", ".au"})  # one file at a time, or as WAV
NAMED = 5  # of what a line lists
FILES = {"audio": frozenset({".wav"}), "rgb": SUFFIXES}  # what is looked for in a folder
# What is written of each, by what the network gives. A disparity has no unit, so there are no millimetres to count.
WRITTEN = {"metres": ("{}.npy", "{}.png", "{}_depth.png"), "disparity": ("{}.npy", "{}_disparity.png")}


@dataclass(frozen=True)
class Job:
    """What becomes one map: the stem of its name, a file for each input of the network, and what the network gives."""

    stem: str
    files: dict[str, Path]
    output: str = "metres"

    def outputs(self, folder: Path) -> list[Path]:
        """Return the files to write: the array, millimetres where there are metres, and a picture."""
        return [folder / name.format(self.stem) for name in WRITTEN[self.output]]


def create_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag and its default."""
    parser = options.create_parser(__doc__)
    options.add_checkpoint_option(parser, f"an .onnx of export.py, {options.WEIGHTS}")
    group = parser.add_argument_group("what to predict")
    group.add_argument("--audio", type=Path, metavar="PATH", help="a stereo recording, or a folder of .wav files")
    group.add_argument(
        "--rgb",
        type=Path,
        metavar="PATH",
        help="a picture or a folder, for a network that sees; beside --audio: of its name, or of its last number",
    )
    group.add_argument("--resample", action="store_true", help="bring other sample rates to 44.1 kHz")
    group = parser.add_argument_group("what is written")
    group.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="gets NAME.npy (float32, metres), NAME.png (16 bit, millimetres) and NAME_depth.png (a picture) of each; "
        "of a network of disparity NAME.npy (large: near; no unit) and NAME_disparity.png",
    )
    group.add_argument(
        "--size", type=options.positive_int, nargs=2, metavar=("H", "W"), help="of the maps (default: the network's)"
    )
    group.add_argument("--overwrite", action="store_true", help="replace what an earlier prediction wrote")
    options.add_mirror_option(group)
    options.add_one_device_options(parser, exact=True)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, load, predict, write; a broken file among others is named, and the others are predicted."""
    args = create_parser().parse_args(argv)
    options.check_device(args, most=1)
    options.settle_precision(args)
    model, preprocessing = open_model(args)
    inputs = [SOURCES.get(key, key) for key in model.inputs]
    check_inputs(args, model.name, inputs)
    jobs = [replace(job, output=model.output) for job in find_jobs({key: getattr(args, key) for key in inputs})]
    check_outputs(jobs, args.output, overwrite=args.overwrite)
    fabric = create_fabric(args)
    fabric.to_device(model.to(memory_format=torch.channels_last))
    asked = Mirrored(model) if args.mirror else model
    if "audio" in inputs and preprocessing["audio_samples"] is None:
        print(
            f"warning: {args.checkpoint} hears recordings whole: in one that is longer or shorter than those of its "
            "training each echo comes from another distance"
        )

    failed = 0
    for job in tqdm(jobs, unit="file", disable=len(jobs) == 1 or not sys.stderr.isatty(), leave=False):
        try:
            batch = read_bare(job.files, preprocessing, resample=args.resample)
            answer = loop.predict(fabric, asked, fabric.to_device(batch)).cpu()  # [1, 1, S, S]
            if args.size:
                answer = torch.nn.functional.interpolate(answer, args.size, mode="bilinear", align_corners=False)
            write_map(job, args.output, batch, answer[0], preprocessing)
        except DataError as error:
            if len(jobs) == 1:
                raise
            failed += 1
            tqdm.write(f"predict.py: {error}", file=sys.stderr)
            continue
        if model.output == "metres":
            tqdm.write(f"{job.stem}: {answer.min():.2f} to {answer.max():.2f} m")
        else:
            tqdm.write(f"{job.stem}: disparity {answer.min():.4g} to {answer.max():.4g}, without a unit")
    if failed:
        raise DataError(f"{failed} of {len(jobs)} files could not be predicted, as named above; the others could")
    if model.output == "metres":
        print(f"{args.output}: NAME.npy in metres, NAME.png in millimetres, NAME_depth.png to look at")
    else:
        print(
            f"{args.output}: NAME.npy is relative disparity, large where near, of unknown scale and shift (no metres); "
            "NAME_disparity.png to look at"
        )


def open_model(args: argparse.Namespace) -> tuple[Any, Mapping[str, Any]]:
    """Return the network of ``--checkpoint``, in eval mode, and how its samples were made.

    Raises:
        CheckpointError: the file is missing, damaged or of another kind.
        OptionError: a flag that does nothing to an ONNX file, or onnxruntime is not installed.
    """
    if args.checkpoint.suffix != onnx_file.SUFFIX:
        model, checkpoint = load_model(args.checkpoint)
        return model, preprocessing_of(model, checkpoint, args.checkpoint)
    for flag, given in (("--gpu_ids", args.gpu_ids is not None), ("--precision", args.precision not in ("auto", "32"))):
        if given:
            raise OptionError(f"{flag} has no effect: {args.checkpoint} runs on the CPU, as exactly as it was exported")
    network = OnnxNetwork(args.checkpoint)
    said = {key: value for key, value in network.preprocessing.items() if value is not None}
    check_values({"preprocessing": said}, args.checkpoint)
    hearing = ("audio_samples", "resample") if "waveform" in network.inputs else ()
    require_entries({"preprocessing": said}, args.checkpoint, "preprocessing", "image_size", *hearing)
    return network.eval(), said


def check_inputs(args: argparse.Namespace, name: str, inputs: Sequence[str]) -> None:
    """Make sure that there is what the network takes, and nothing that it would ignore.

    Args:
        args: the flags.
        name: of the model.
        inputs: ``audio``, ``rgb`` or both.

    Raises:
        OptionError: naming the flag.
    """
    takes = " and ".join(f"--{key}" for key in inputs)
    for key in ("audio", "rgb"):  # first what is there, so that the error begins with a flag that was given
        if getattr(args, key) is not None and key not in inputs:
            raise OptionError(f"--{key} has no effect: {args.checkpoint} is a {name}, which takes {takes}")
    for key in inputs:
        if getattr(args, key) is None:
            raise OptionError(f"--{key} is missing: {args.checkpoint} is a {name}, which takes {takes}")
    if args.resample and "audio" not in inputs:
        raise OptionError(f"--resample has no effect: {args.checkpoint} is a {name}, which takes {takes}")


def find_jobs(paths: Mapping[str, Path]) -> list[Job]:
    """List what is to be predicted, in natural order, each recording with its picture where both are needed.

    Args:
        paths: a file or a folder for each input of the network.

    Raises:
        DataError: nothing is there, or a recording has no picture, or more than one.
    """
    found = {key: find_files(path, FILES[key]) for key, path in paths.items()}
    if len(found) == 1:
        ((key, files),) = found.items()
        return [Job(file.stem, {key: file}) for file in files]
    recordings, pictures = found["audio"], found["rgb"]
    if paths["audio"].is_file() and paths["rgb"].is_file():
        return [Job(recordings[0].stem, {"audio": recordings[0], "rgb": pictures[0]})]
    return [Job(file.stem, {"audio": file, "rgb": picture_of(file, pictures)}) for file in recordings]


def find_files(path: Path, suffixes: frozenset[str]) -> list[Path]:
    """Return the file, or the files of a folder that have one of the suffixes, in natural order.

    Raises:
        DataError: there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: there is no such file or folder")
    entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    names = [entry.name for entry in entries if entry.suffix.lower() in suffixes and entry.is_file()]
    wanted = " ".join(sorted(suffixes))
    if not names:
        raise DataError(f"{path} holds no file that ends in {wanted}")
    if suffixes == FILES["audio"] and (others := passed_over(entries)):
        shown = ", ".join(others[:NAMED]) + ", ..." * (len(others) > NAMED)
        tqdm.write(f"{path}: {len(names)} files are predicted, not {shown}: {wanted} directly in the folder alone")
    return [path / name for name in natural_order(names)]


def passed_over(entries: Sequence[Path]) -> list[str]:
    """Return what somebody may have meant to be heard too: sound of other formats, and folders that hold recordings."""
    folders = [entry for entry in entries if entry.is_dir()]
    deeper = [f"{folder.name}/" for folder in folders if next(folder.rglob("*.wav"), None)]
    return list(natural_order([*deeper, *(entry.name for entry in entries if entry.suffix.lower() in SOUNDS)]))


def picture_of(recording: Path, pictures: Sequence[Path]) -> Path:
    """Return the picture of the recording's stem, or else the one whose name ends in the same number.

    Raises:
        DataError: there is none, or more than one.
    """
    same = [picture for picture in pictures if picture.stem == recording.stem]
    number = last_number(recording)
    if not same and number is not None:  # BatVision: audio_1.wav, camera_1.jpeg
        same = [picture for picture in pictures if last_number(picture) == number]
    if len(same) != 1:
        has = ", ".join(picture.name for picture in same) or "none"
        raise DataError(f"{recording}: one picture must bear its name or end in its number; found {has}")
    return same[0]


def last_number(path: Path) -> int | None:
    """Return the number in which a file's stem ends."""
    digits = re.search(r"\d+$", path.stem)
    return int(digits.group()) if digits else None


def check_outputs(jobs: Sequence[Job], folder: Path, *, overwrite: bool) -> None:
    """Make sure that no file to be written is an input, another one's output or, unless so wanted, there already.

    Raises:
        OptionError: naming the file.
    """
    inputs = {path.resolve() for job in jobs for path in job.files.values()}
    owners: dict[Path, Job] = {}
    for job in jobs:
        name, *_ = job.files.values()
        for path in job.outputs(folder):
            if path in owners:
                other, *_ = owners[path].files.values()
                raise OptionError(f"{name.name} and {other.name} would both be written to {path}; rename one")
            owners[path] = job
            if path.resolve() in inputs:
                raise OptionError(f"--output {folder}: {path} is an input; choose another folder")
            if path.exists() and not overwrite:
                raise OptionError(f"{path} exists; --overwrite replaces it, or choose another --output")


def write_map(job: Job, folder: Path, batch: Batch, answer: Tensor, preprocessing: Mapping[str, Any]) -> None:
    """Write a map [1, H, W] as an array, in millimetres if it is in metres, and as a picture; each file whole or not.

    Raises:
        DataError: the network's answer is not a number.
        OptionError: the folder cannot be written to.
    """
    if not torch.isfinite(answer).all():
        raise DataError(f"{job.stem}: the network's answer is not a number")
    values = answer[0].numpy().astype(np.float32)  # [H, W]
    kind = "depth" if job.output == "metres" else "disparity"
    columns: list[Column] = [("echoes" if key == "audio" else "RGB", key, list(batch[key])) for key in job.files]
    arrays, *images, picture = job.outputs(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with write_whole(arrays) as file:
            np.save(file, values)
        for image in images:
            millimetres = np.rint(values.astype(np.float64) * 1000).clip(0, np.iinfo(np.uint16).max).astype(np.uint16)
            with write_whole(image) as file:
                Image.fromarray(millimetres).save(file, "PNG")
        save_grid(picture, [*columns, (kind, kind, [answer])], [""], job.stem, preprocessing)
    except OSError as error:
        raise OptionError(f"--output {folder} cannot be written to ({error})") from error


if __name__ == "__main__":
    run_script(main)
