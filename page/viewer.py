"""From a recording and a picture to everything that the page draws, as plain values for JSON."""

from __future__ import annotations

import base64
import io
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import soundfile
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor, nn

from dataloaders import DATASETS, Source, read_bare, read_image
from dataloaders.transforms import SAMPLE_RATE, size_pair
from errors import CheckpointError, DataError, OptionError
from models import DepthModel, onnx_file
from page.examples import Example
from training import loop
from training.checkpoint import load_model, own_value, preprocessing_of, require_entries
from training.metrics import image_metrics, valid_pixels
from training.visualization import DEPTH_COLORS, ECHO_COLORS, lift_echoes

MOST_SECONDS = 60.0  # of sound: a small file can unpack into more memory than there is
PICTURE_SIDE, THUMBNAIL_SIDE = 640, 160  # pixels at most, of what is sent back
# Taken where nobody has said what a data set's camera sees: 90 degrees across at BatVision V2's 16 to 9.
ASSUMED_VIEW = (90.0, math.degrees(2 * math.atan(9 / 16)))
FAR_SHARE = 98  # percent of the measured pixels that the colours span: a lone far one would leave the rest one colour


@dataclass(frozen=True)
class Network:
    """A network with what its file says about it.

    Attributes:
        model: in eval mode.
        preprocessing: how its samples are made.
        facts: (what, value) pairs to read.
    """

    model: DepthModel
    preprocessing: dict[str, Any]
    facts: list[tuple[str, str]]


def open_network(path: Path) -> Network:
    """Open any file of weights that predict.py takes.

    Raises:
        CheckpointError: the file is missing, broken, or of no network that is known here.
    """
    if path.suffix == onnx_file.SUFFIX:
        raise CheckpointError(f"{path}: an ONNX file goes to predict.py; the page takes the .pth that it was made from")
    model, checkpoint = load_model(path)
    preprocessing = preprocessing_of(model, checkpoint, path)
    shown = ("max_depth", "min_depth", "resample", *(("dataset",) if checkpoint else ()))
    require_entries({"preprocessing": preprocessing}, path, "preprocessing", *shown)
    return Network(model, preprocessing, facts_of(path, model, preprocessing, checkpoint or {}))


def facts_of(
    path: Path, model: DepthModel, preprocessing: Mapping[str, Any], checkpoint: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Return what there is to know of a network, as (what, value) pairs."""
    height, width = size_pair(preprocessing["image_size"])
    parameters = model.count_parameters(trainable=False) / 1e6
    facts = [("file", str(path)), ("network", f"{model.name}, {parameters:.2f} M parameters")]
    if checkpoint:
        facts.append(("trained on", f"{preprocessing['dataset']}, {width} x {height}, epoch {checkpoint['epoch']}"))
    value, criterion = own_value(checkpoint), checkpoint.get("best", {}).get("criterion", "val_rmse")
    if model.output == "metres" and value is not None and math.isfinite(value):
        title = "validation RMSE" if criterion == "val_rmse" else "validation distance from the teacher"
        facts.append((title, f"{value:.3f} m"))
    if model.output == "metres":
        facts.append(("range", f"up to {preprocessing['max_depth']:g} m"))
    else:
        facts.append(("gives", "relative disparity, without a unit"))
    if "audio" in model.inputs:
        samples = preprocessing["audio_samples"]
        cut = (
            "whole recording, as long as in training"
            if samples is None
            else f"first {1000 * samples / SAMPLE_RATE:.0f} ms"
        )
        facts.append(("echo", f"{preprocessing['audio_format'].replace('_', ' ')} of the {cut}"))
    return facts


class Viewer:
    """Answers the page.

    Args:
        student: a network that hears; it may see as well.
        teacher: one that sees, or None.
        fabric: device and precision.
        examples: recordings to try.
        field_of_view: of the camera whose view the depth maps are, (horizontal, vertical) in degrees; None takes that
            of the student's data set, where it is known, or an assumption.

    Raises:
        OptionError: the student does not hear, or the teacher does not see alone.
    """

    def __init__(
        self,
        student: Network,
        teacher: Network | None,
        fabric: Fabric,
        examples: Sequence[Example] = (),
        field_of_view: tuple[float, float] | None = None,
    ) -> None:
        if "audio" not in student.model.inputs:
            raise OptionError(f"--checkpoint: a {student.model.name} does not hear; give it as --teacher")
        if teacher is not None and teacher.model.inputs != ("rgb",):
            raise OptionError(f"--teacher: a {teacher.model.name} hears; give a network of pictures")
        self.student, self.teacher, self.fabric, self.examples = student, teacher, fabric, list(examples)
        self.field_of_view = field_of_view
        self._one_at_a_time = threading.Lock()  # pages of several windows share the networks
        for network in filter(None, (student, teacher)):
            fabric.to_device(network.model)

    def about(self) -> dict[str, Any]:
        """Return what the page shows before it is given a recording."""
        return {
            "student": self.student.facts,
            "teacher": self.teacher.facts if self.teacher else None,
            "inputs": self.student.model.inputs,
            "colors": {"depth": _colors(DEPTH_COLORS), "echo": _colors(ECHO_COLORS)},
            "examples": [
                {"title": example.title, "thumbnail": _thumbnail(example), "picture": "rgb" in example.files}
                for example in self.examples
            ],
        }

    def look(self, files: Mapping[str, Source], measured: Tensor | None = None, *, resample: bool) -> dict[str, Any]:
        """Predict, and return all that is drawn of it.

        Args:
            files: ``audio``, and ``rgb`` if there is a picture.
            measured: depth [1, S, S] in metres, 0 = no measurement.
            resample: bring other sample rates to 44.1 kHz.

        Returns:
            ``maps``, of each network and of what was measured; ``ears``, the spectrograms as the network gets them;
            ``picture``, a data URL or None; ``camera``, for the point cloud.

        Raises:
            DataError: of a file that is broken, or not what it should be: the line that predict.py prints.
        """
        if "audio" not in files:
            raise DataError("there is no recording; give a stereo WAV")
        if "rgb" in self.student.model.inputs and "rgb" not in files:
            raise DataError(f"a {self.student.model.name} hears and sees; give a picture beside the recording")
        seconds = _seconds(files["audio"])
        batch, depth = self._predict(self.student, files, resample=resample)
        maps = [_map("student", "The ear", depth, self.student.model.output, measured)]
        picture = read_image(files["rgb"], upright=True) if "rgb" in files else None
        if picture is not None and self.teacher is not None:
            _, seen = self._predict(self.teacher, {"rgb": files["rgb"]}, resample=False)
            maps.append(_map("teacher", "The teacher", seen, self.teacher.model.output, measured))
        if measured is not None:
            maps.append(_map("measured", "Measured", measured, "metres"))
        return {
            "name": str(files["audio"]).rsplit("/", 1)[-1],
            "maps": maps,
            "ears": _ears(batch["audio"][0], self.student.preprocessing, seconds),
            "picture": None if picture is None else _picture(picture, PICTURE_SIDE),
            "camera": camera_of(
                self.student.preprocessing, self.field_of_view, None if picture is None else picture.size
            ),
        }

    def _predict(
        self, network: Network, files: Mapping[str, Source], *, resample: bool
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return what a network got, and what it gives [1, H, W]."""
        taken = {key: files[key] for key in network.model.inputs}
        batch = read_bare(taken, network.preprocessing, resample=resample)
        with self._one_at_a_time:
            answer = loop.predict(self.fabric, network.model, self.fabric.to_device(batch)).cpu()[0]  # [1, H, W]
        if not answer.isfinite().all():
            raise DataError(f"{next(iter(taken.values()))}: the network's answer is not a number")
        return batch, answer


def camera_of(
    preprocessing: Mapping[str, Any],
    field_of_view: tuple[float, float] | None,
    picture_size: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Return the camera whose view the depth maps are.

    Args:
        preprocessing: of the network; it names the data set.
        field_of_view: what the user says, degrees across and down.
        picture_size: (width, height) of a picture of this view: it says how far down the camera sees.

    Returns:
        ``across`` and ``down`` in degrees, and ``source``, how they are known.
    """
    dataset = preprocessing["dataset"]
    known = DATASETS[dataset].field_of_view if dataset in DATASETS else None
    if field_of_view is not None:
        return {"across": field_of_view[0], "down": field_of_view[1], "source": "as --field_of_view says"}
    across, down = known or ASSUMED_VIEW
    source = f"that of the data set {dataset}" if known else f"assumed, as the data set {dataset} does not say"
    if picture_size is not None:
        width, height = picture_size
        shaped = math.degrees(2 * math.atan(math.tan(math.radians(across / 2)) * height / width))
        if abs(shaped - down) > 1:
            down, source = shaped, f"{source}, in the shape of the picture"
    return {"across": across, "down": down, "source": source}


def _seconds(recording: Source) -> float | None:
    """Return how long a recording lasts; None where it cannot be read, which its reader says better.

    Raises:
        DataError: it is too long.
    """
    try:
        seconds = soundfile.info(recording).duration
    except (OSError, RuntimeError, TypeError):
        return None
    if seconds > MOST_SECONDS:
        raise DataError(f"{recording} lasts {seconds:.0f} s; the page takes up to {MOST_SECONDS:.0f} s")
    return seconds


def _map(key: str, title: str, values: Tensor, output: str, measured: Tensor | None = None) -> dict[str, Any]:
    """Return a map [1, H, W] with its range, up to where its colours go, and, in metres, its error.

    Metres that are not positive are holes.
    """
    array = values[0].numpy().astype("<f4")  # [H, W]
    there = array[array > 0] if output == "metres" else array
    return {
        "key": key,
        "title": title,
        "output": output,
        "height": array.shape[0],
        "width": array.shape[1],
        "values": _encoded(array.tobytes()),
        "low": float(there.min()) if there.size else 0.0,
        "high": float(there.max()) if there.size else 0.0,
        "far": float(np.percentile(there, FAR_SHARE if key == "measured" else 100)) if there.size else 0.0,
        "rmse": None if measured is None or output != "metres" else _rmse(values, measured),
    }


def _rmse(depth: Tensor, measured: Tensor) -> float | None:
    """Return evaluate.py's RMSE of [1, H, W] in metres over the measured pixels [1, S, S]; None where there is none."""
    valid = valid_pixels(measured[None])
    if not valid.any():
        return None
    depth = nn.functional.interpolate(depth[None], measured.shape[-2:], mode="bilinear", align_corners=False)
    return image_metrics(depth, measured[None], valid, metrics=("rmse",)).item()


def _ears(ears: Tensor, preprocessing: Mapping[str, Any], seconds: float | None) -> dict[str, Any]:
    """Return the spectrograms, the first two of [C, H, W], to draw, low frequencies first, and what their axes are."""
    lifted, top = lift_echoes(ears[:2].numpy())
    shades = np.rint(np.clip(lifted / top, 0, 1) * 255).astype(np.uint8)  # [2, H, W]
    samples = preprocessing["audio_samples"]
    return {
        "height": shades.shape[1],
        "width": shades.shape[2],
        "left": _encoded(shades[0].tobytes()),
        "right": _encoded(shades[1].tobytes()),
        "seconds": seconds if samples is None else samples / SAMPLE_RATE,
        "kilohertz": SAMPLE_RATE / 2000,
        "scale": "mel" if preprocessing["audio_format"] == "mel" else "linear",
    }


def _picture(image: Image.Image, side: int) -> str:
    """Return a picture as a data URL, made smaller where a side is longer than ``side`` pixels."""
    image = image.convert("RGB")
    image.thumbnail((side, side))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{_encoded(stream.getvalue())}"


def _thumbnail(example: Example) -> str | None:
    return _picture(read_image(example.files["rgb"]), THUMBNAIL_SIDE) if "rgb" in example.files else None


def _colors(colors: matplotlib.colors.Colormap) -> str:
    """Return the 256 colours of a colour map, three bytes each."""
    return _encoded((colors(np.arange(256), bytes=True)[:, :3]).tobytes())


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
