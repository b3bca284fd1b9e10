"""A network in an ONNX file, as ``export.py`` writes it: onnxruntime runs it, and no network is built in torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from errors import CheckpointError, OptionError
from models.weights import require_file

SUFFIX = ".onnx"
METADATA = "echo_depth"  # the key in the file's metadata_props under which a JSON text says what it is
FORMAT = 1  # of that text
INPUTS = (["waveform"], ["rgb"], ["waveform", "rgb"])  # what a file may take


class OnnxNetwork(nn.Module):
    """What ``training.loop`` and ``predict.py`` ask of a network, from an ONNX file alone. It computes on the CPU.

    Attributes:
        about: what the file says about itself (docs/EXPORT.md).
        name: of the model.
        inputs: the keys of a batch that it takes: ``waveform`` [B, 2, N] at 44.1 kHz, ``rgb`` [B, 3, H, W] in [0, 1].
        output: ``metres`` or ``disparity``, as a :class:`~models.base.DepthModel` says it.
        preprocessing: of the checkpoint; what it says of spectrograms is done inside.

    Args:
        path: the file.

    Raises:
        OptionError: onnxruntime is not installed.
        CheckpointError: the file is missing, damaged, or was not written by ``export.py``.
    """

    imagenet_normalize = False  # done inside, where the model wants it

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError:
            raise OptionError(f"{path}: an ONNX file needs onnxruntime: pip install onnxruntime") from None
        require_file(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors, which are raised anyway
        # Its threads would spin on for a second after an answer, on cores that others want by then.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own have no base of their own
            raise CheckpointError(f"{path}: not a readable ONNX file (truncated or damaged)") from error
        self.about = read_about(self.session.get_modelmeta().custom_metadata_map, path)
        self.name: str = self.about["model"]["name"]
        self.inputs: tuple[str, ...] = tuple(self.about["inputs"])
        self.output: str = self.about["output"]
        self.preprocessing: dict[str, Any] = self.about["preprocessing"]

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map what ``inputs`` names, in this order, to depth in metres, or disparity, [B, 1, H, W]."""
        feed = {key: value.float().cpu().numpy() for key, value in zip(self.inputs, inputs, strict=True)}
        (answer,) = self.session.run(None, feed)
        return torch.from_numpy(answer).to(inputs[0].device)


def read_about(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """Return what the metadata of a file say about its network.

    Raises:
        CheckpointError: another program wrote it, or a later version of this one.
    """
    if METADATA not in metadata:
        raise CheckpointError(f"{path}: not an export of this toolkit; its metadata have no {METADATA}")
    try:
        about = json.loads(metadata[METADATA])
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict) or not isinstance(about.get("format"), int):
        raise CheckpointError(f"{path}: its metadata {METADATA} are not those of an export; export it again")
    if about["format"] > FORMAT:
        raise CheckpointError(
            f"{path}: has format {about['format']}, this version reads up to {FORMAT}; update the toolkit"
        )
    model = about.get("model")
    wrong = {
        "model": not (isinstance(model, dict) and isinstance(model.get("name"), str)),
        "inputs": about.get("inputs") not in INPUTS,
        "output": about.get("output") not in ("metres", "disparity"),
        "preprocessing": not isinstance(about.get("preprocessing"), dict),
    }
    if any(wrong.values()):
        names = ", ".join(name for name, is_wrong in wrong.items() if is_wrong)
        raise CheckpointError(f"{path}: its metadata {METADATA} do not say {names}; export it again")
    return about
