"""A page beside a network's file: what it takes and gives, what it learnt from, how well, and what it cannot do.

After Mitchell et al., "Model Cards for Model Reporting", FAT* 2019. All that it says comes from the checkpoint and from
the command that wrote the file; what these do not know, it does not say.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataloaders.transforms import SAMPLE_RATE, audio_channels, size_pair
from models import DepthModel
from training.checkpoint import own_value
from training.files import write_whole, writing

SUFFIX = ".md"
SENSES = {"audio": "the echo of a chirp at two ears", "rgb": "a picture"}
DATA_LICENSES = {
    "batvisionv1": "CC-BY-SA-4.0",
    "batvisionv2": "CC-BY-SA-4.0",
    "nyu": "that of NYU Depth V2's authors",
    "simulated": "none, they are computed",
    "images": "that of the pictures",
}


def model_card(
    title: str,
    form: str,
    model: DepthModel,
    preprocessing: Mapping[str, Any],
    checkpoint: Mapping[str, Any] | None,
    *,
    takes: Sequence[str],
    license: str,
    versions: Mapping[str, str],
    figures: Sequence[str] = (),
) -> str:
    """Return the page, in Markdown.

    Args:
        title: the file's name.
        form: what kind of file it is, in words.
        model: the network in it.
        preprocessing: how its samples were made.
        checkpoint: where the weights come from; None for a bare file of weights.
        takes: its inputs: ``waveform``, ``audio`` (spectrograms), ``rgb``.
        license: of the weights.
        versions: of the programs that wrote it.
        figures: what was measured on this file, in sentences, beside what the checkpoint knows.
    """
    gives = "depth in metres" if model.output == "metres" else "relative disparity"
    senses = " and ".join(SENSES[key] for key in model.inputs)
    parameters = model.count_parameters(trainable=False) / 1e6
    sections = {
        "In and out": table([*(input_row(key, preprocessing) for key in takes), output_row(model, preprocessing)]),
        "Data": "\n".join(data_lines(model, checkpoint)),
        "Figures": "\n".join(f"- {line}" for line in [*figure_lines(model, checkpoint), *figures]) or "None are known.",
        "Limits": "\n".join(f"- {line}" for line in limit_lines(model, preprocessing, checkpoint)),
        "Licence": "\n".join(license_lines(license, checkpoint)),
        "How it was made": "\n".join(origin_lines(checkpoint, versions)),
    }
    head = f"# {title}\n\n{gives.capitalize()} from {senses}: `{model.name}`, {parameters:.2f} M parameters. {form}.\n"
    return head + "".join(f"\n## {name}\n\n{text}\n" for name, text in sections.items())


def write_card(path: Path, card: str) -> None:
    """Write the card of a file beside it, under its name with the suffix .md.

    Raises:
        OptionError: the disk is full or not writable.
    """
    beside = path.with_suffix(SUFFIX)
    with writing(beside), write_whole(beside) as file:
        file.write(card.encode(errors="backslashreplace"))  # paths in it may have any bytes


def table(rows: Sequence[tuple[str, str, str]]) -> str:
    """Return a Markdown table of name, shape and meaning."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [("", "shape, float32", ""), ("---", "---", "---"), *rows])


def input_row(key: str, preprocessing: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return name, shape and meaning of an input."""
    height, width = size_pair(preprocessing["image_size"])
    if key == "rgb":
        how = preprocessing.get("rgb_filter", "bilinear")
        return "`rgb`", f"[B, 3, {height}, {width}]", f"the picture, resized ({how}, antialiased), in [0, 1]"
    samples = preprocessing["audio_samples"]
    sound = f"left and right ear at {SAMPLE_RATE} Hz, in [-1, 1]"
    if samples is not None:
        sound += f", the first {1000 * samples / SAMPLE_RATE:.1f} ms of the recording; a shorter one ends in zeros"
    if key == "waveform":
        return "`waveform`", f"[B, 2, {samples}]", sound
    heard = preprocessing["audio_format"]
    return "`audio`", f"[B, {audio_channels(heard)}, {height}, {width}]", f"{heard} (docs/DATA.md) of: {sound}"


def output_row(model: DepthModel, preprocessing: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return name, shape and meaning of the output."""
    height, width = size_pair(preprocessing["image_size"])
    shape = f"[B, 1, {height}, {width}]"
    if model.output == "metres":
        return "`depth`", shape, f"metres along the camera's axis, at most {preprocessing['max_depth']:g}"
    return "`disparity`", shape, "large where near; scale and shift differ from picture to picture and are unknown"


def data_lines(model: DepthModel, checkpoint: Mapping[str, Any] | None) -> list[str]:
    """Say what the network learnt from, and what it was held against."""
    if checkpoint is None or "dataset" not in checkpoint.get("args", {}):
        return ["The file that this one was made from does not say."]
    trained = checkpoint["args"]
    labels = trained.get("label_fraction", 1.0)
    if trained.get("held_out") is False:
        return [
            f"Learnt from all pictures of one folder (`{trained['dataset']}`) without splits: none was held out. The "
            "epochs were compared on the same pictures, by the distance from the teachers' answers."
        ]
    by = ""
    if criterion_of(model, checkpoint) == "val_distance":
        by = ", by the distance from the teacher's answers, not from measured depth"
    lines = [f"Learnt from the split `train` of `{trained['dataset']}`, epochs compared on its split `val`{by}."]
    if labels < 1:
        lines.append(f"{labels:.4g} of the training pairs had measured depth (label_seed {trained.get('label_seed')}).")
    if trained.get("holdout_location"):
        lines.append(f"Neither split has the locations {trained['holdout_location']}.")
    return [*lines, "The split `test` took no part."]


def figure_lines(model: DepthModel, checkpoint: Mapping[str, Any] | None) -> list[str]:
    """Say how good the epoch was by which the run compared its epochs, where it is the one in the file."""
    if checkpoint is None or (value := own_value(checkpoint)) is None:
        return []
    criterion = criterion_of(model, checkpoint)
    unit = " m" if model.output == "metres" else ""
    if criterion == "val_distance":
        figure = f"distance from the teachers' answers {value:.4f}{unit}"
    elif criterion == "val_rmse":
        figure = f"RMSE {value:.4f} m, the mean over the images"
    else:
        figure = f"AbsRel {value:.4f}, scale and shift fitted to each image"
    held_out = checkpoint["args"].get("held_out") is not False
    where = "on the validation split" if held_out else "on the pictures that it learnt from"
    return [f"In training, {where}, epoch {checkpoint['epoch']}: {figure}."]


def criterion_of(model: DepthModel, checkpoint: Mapping[str, Any]) -> str:
    """Return the column of ``metrics.csv`` by which a run compared its epochs."""
    best = checkpoint.get("best", {})
    if "criterion" in best:
        return best["criterion"]
    if model.output == "metres":  # files from before it was kept
        return "val_rmse"
    return "val_distance" if checkpoint["args"]["dataset"] == "images" else "val_abs_rel"


def limit_lines(model: DepthModel, preprocessing: Mapping[str, Any], checkpoint: Mapping[str, Any] | None) -> list[str]:
    """Say what the network cannot do."""
    dataset = (checkpoint or {}).get("args", {}).get("dataset")
    lines = ["A mean error hides large ones: nothing here shows that a robot may drive by this alone."]
    if dataset == "simulated":
        lines.append("It learnt from simulated rooms; how it does on real recordings or pictures was not measured.")
    if "audio" in model.inputs:
        lines.append("It knows one chirp, one loudspeaker and one pair of ears, those of its data, and no others.")
    if model.output == "metres":
        lines.append(f"What is farther than {preprocessing['max_depth']:g} m is told as nearer.")
    else:
        lines.append("It knows no metres: they come from a fit to measured depth (docs/EVALUATION.md).")
    return lines


def license_lines(license: str, checkpoint: Mapping[str, Any] | None) -> list[str]:
    """Say under which terms the weights and what they come from are."""
    trained = (checkpoint or {}).get("args", {})
    lines = [f"Of the weights: {license}. Of the toolkit: MIT."]
    if trained.get("dataset") in DATA_LICENSES:
        lines.append(f"Of the data ({trained['dataset']}): {DATA_LICENSES[trained['dataset']]}.")
    teacher = trained.get("teacher_checkpoint")
    if teacher:
        lines.append(f"They were taught by `{teacher}`, whose licence may bind them too.")
    return lines


def origin_lines(checkpoint: Mapping[str, Any] | None, versions: Mapping[str, str]) -> list[str]:
    """Give the command that wrote the file, the programs, and the flags of the training."""
    command = shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])
    lines = ["```", command, "```", "", f"With {listed(versions)}."]
    if checkpoint is not None:
        flags = {key: value for key, value in checkpoint.get("args", {}).items() if value is not None}
        lines += ["", f"Trained with {listed(checkpoint.get('versions', {}))}: {listed(flags)}."]
    return lines


def listed(values: Mapping[str, Any]) -> str:
    """Return names and values as one phrase of code: `a 1`, `b x`."""
    return ", ".join(f"`{key} {value}`" for key, value in values.items()) or "what nobody wrote down"
