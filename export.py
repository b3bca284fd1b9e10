"""A network in a file that runs without this toolkit, its preprocessing inside: ONNX, or a program of torch.export."""

from __future__ import annotations

import argparse
import io
import json
import logging
import platform
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from dataloaders import AudioFrontEnd, DepthDataset, create_dataset, create_loader, prepare_audio, prepare_wave
from dataloaders.transforms import MIN_SAMPLES, SAMPLE_RATE, size_pair
from errors import CheckpointError, OptionError, run_script
from models import DepthModel, onnx_file
from models.base import INPUT_CHANNELS
from models.depth_anything import DepthAnything
from models.onnx_file import OnnxNetwork, import_extra
from simulation.scenes import draw_sample
from training import loop, options
from training.checkpoint import dataset_options_of, load_model
from training.engine import create_fabric
from training.files import write_whole
from training.metrics import MetricTable, scoring_on
from training.task import Batch, model_inputs

PROGRAM = ".pt2"
SUFFIXES = (onnx_file.SUFFIX, PROGRAM)
EXTRAS = ("onnx", "onnxruntime", "onnxscript")  # what an ONNX file needs to be written and checked
OPSET = 20
TOLERANCE = 1e-3  # of the file's answer: in metres, or as a share of the largest disparity
CALIBRATION = 64  # training samples from which the ranges of 8-bit numbers are taken
LATENCY_RUNS = 30

Run = Callable[..., Tensor]  # a file that was opened: its inputs in order -> [B, 1, H, W]


class EndToEnd(nn.Module):
    """A network with its preprocessing: what a microphone and a camera give -> what the network gives.

    Args:
        model: in eval mode; it keeps its weights, without gradients.
        preprocessing: of its training, with the length of the sound fixed.

    Attributes:
        inputs: in the order of ``forward``'s arguments: ``waveform`` [B, 2, N] at 44.1 kHz, ``rgb`` [B, 3, H, W] in
            [0, 1].
    """

    def __init__(self, model: DepthModel, preprocessing: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.preprocessing = dict(preprocessing)
        self.inputs = tuple("waveform" if key == "audio" else key for key in model.inputs)
        self.front_end = AudioFrontEnd(preprocessing) if "audio" in model.inputs else None

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return depth in metres, or disparity, [B, 1, H, W]."""
        batch: Batch = dict(zip(self.inputs, inputs, strict=True))
        if self.front_end is not None:
            batch["audio"] = self.front_end(batch["waveform"])  # [B, 2, H, W]
        return self.model(*model_inputs(self.model, batch))

    @torch.no_grad()
    def expected(self, batch: Batch) -> Tensor:
        """Return PyTorch's answer to a batch of this network's inputs, the sound prepared as in training."""
        if "waveform" in batch:
            batch = {**batch, "audio": torch.stack([prepare_audio(w, self.preprocessing) for w in batch["waveform"]])}
        return self.model(*model_inputs(self.model, batch))


def create_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag and its default."""
    parser = options.create_parser(__doc__)
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="FILE",
        help="any .pth of a training script, or bare weights of a network that sees",
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="its suffix is the format: .onnx or .pt2"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file")
    parser.add_argument(
        "--image_size",
        type=options.positive_int,
        nargs="+",
        metavar="N",
        help="what the network is shown [pixels]: a square's side, or height and width (default: the checkpoint's)",
    )
    parser.add_argument(
        "--audio_samples",
        type=options.positive_int,
        metavar="N",
        help="of the sound, where the checkpoint does not fix them (BatVision V1)",
    )
    group = parser.add_argument_group("8 bits (.onnx; docs/EXPORT.md)")
    group.add_argument(
        "--quantize", action="store_true", help="compute in int8, and print what that gains and what it costs"
    )
    group.add_argument(
        "--dataset_dir", type=Path, metavar="DIR", help="folder of its training data (default: where it was)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, load, export, check what was written against PyTorch, report."""
    args = create_parser().parse_args(argv)
    check_options(args)
    network, checkpoint = open_network(args)
    about = describe(network, checkpoint)
    batches = trial_batches(network)
    with quiet():
        program = trace(network, batches[0])
        content = save_program(program, about) if args.output.suffix == PROGRAM else save_onnx(program, about)
    if args.quantize:
        assert checkpoint is not None
        content = quantize(args, network, checkpoint, content, batches)
    difference = write_checked(args.output, content, network, batches, limited=not args.quantize)

    metric = network.model.output == "metres"
    unit = "m" if metric else "of the largest disparity"
    allowed = "" if args.quantize else f" (allowed: {TOLERANCE:g})"
    print(
        f"largest difference to PyTorch over {sum(map(batch_size, batches))} inputs: {difference:.2g} {unit}{allowed}"
    )
    shapes = ", ".join(f"{key} {shape_text(value)}" for key, value in batches[0].items())
    answer = "depth in metres" if metric else "relative disparity, large where near"
    size = args.output.stat().st_size / 1e6
    print(f"{args.output}: {network.model.name}, {size:.2f} MB; {shapes} -> {answer}")


def check_options(args: argparse.Namespace) -> None:
    """Refuse what cannot be honoured before anything is read.

    Raises:
        OptionError: naming the flag.
    """
    if args.output.suffix not in SUFFIXES:
        raise OptionError(f"--output {args.output}: the suffix is the format; known are {' '.join(SUFFIXES)}")
    if args.output.exists() and not args.overwrite:
        raise OptionError(f"--output {args.output} exists; --overwrite replaces it")
    if args.output.suffix == onnx_file.SUFFIX:
        for module in EXTRAS:
            import_extra(module, f"--output {args.output}")
    elif args.quantize:
        raise OptionError(f"--quantize is of {onnx_file.SUFFIX} files, not of {PROGRAM}")
    if args.dataset_dir and not args.quantize:
        raise OptionError("--dataset_dir has no effect without --quantize: no data are read")


# ------------------------------------------------------------------------------------------------- what is exported


def open_network(args: argparse.Namespace) -> tuple[EndToEnd, dict[str, Any] | None]:
    """Return the network of ``--checkpoint`` with its preprocessing, and its checkpoint; None of a bare file.

    Raises:
        CheckpointError: the file is missing, damaged or of another kind.
        OptionError: sizes that the network does not take, or that neither the file nor a flag says.
    """
    model, checkpoint = load_model(args.checkpoint)
    if checkpoint is not None:
        preprocessing = dict(checkpoint["preprocessing"])
    elif "audio" in model.inputs:
        raise OptionError(
            f"--checkpoint {args.checkpoint}: bare weights do not say what {model.name} heard; give its .pth"
        )
    elif args.quantize:
        raise OptionError(f"--quantize: bare weights do not say what {model.name} was trained on; give its .pth")
    else:
        cubic = isinstance(model, DepthAnything)  # as it was trained
        preprocessing = {"image_size": None, "rgb_filter": "bicubic" if cubic else "bilinear"}
    if args.image_size:
        preprocessing["image_size"] = options.image_size(args.image_size)
    if preprocessing["image_size"] is None:
        raise OptionError(f"--image_size is missing: bare weights do not say what {model.name} is to be shown")
    for side in size_pair(preprocessing["image_size"]):
        model.check_image_size(side)
    if "audio" in model.inputs:
        preprocessing["audio_samples"] = sound_length(args, preprocessing["audio_samples"])
    elif args.audio_samples:
        raise OptionError(f"--audio_samples has no effect: {model.name} does not hear")
    return EndToEnd(model, preprocessing).eval(), checkpoint


def sound_length(args: argparse.Namespace, samples: int | None) -> int:
    """Return the number of samples of a file's sound, from a checkpoint's or from the flag.

    Raises:
        OptionError: neither says it, or both, or there are too few for a spectrogram.
    """
    if samples is not None and args.audio_samples:
        raise OptionError(f"--audio_samples has no effect: the sound of {args.checkpoint} has {samples}")
    if samples is None and args.audio_samples is None:
        raise OptionError(
            f"--audio_samples is missing: the sound of {args.checkpoint} may have any length, a file's not"
        )
    samples = samples or args.audio_samples
    if samples < MIN_SAMPLES:
        raise OptionError(f"--audio_samples {samples}: a spectrogram needs {MIN_SAMPLES} at least")
    return samples


def describe(network: EndToEnd, checkpoint: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a file says about itself: plain values (docs/EXPORT.md)."""
    model, preprocessing = network.model, network.preprocessing
    toolkit = re.search(r'^version = "(.+)"$', Path(__file__).with_name("pyproject.toml").read_text(), re.MULTILINE)
    return {
        "format": onnx_file.FORMAT,
        "model": {"name": model.name, "config": model.config},
        "inputs": list(network.inputs),
        "output": model.output,
        "precision": "fp32",
        "preprocessing": preprocessing,
        "image_size": list(size_pair(preprocessing["image_size"])),
        "max_depth": preprocessing.get("max_depth"),
        "sample_rate": SAMPLE_RATE if "waveform" in network.inputs else None,
        "audio_samples": preprocessing["audio_samples"] if "waveform" in network.inputs else None,
        "epoch": checkpoint["epoch"] if checkpoint else None,
        "versions": {
            "toolkit": toolkit[1] if toolkit else None,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
        },
    }


def trial_batches(network: EndToEnd) -> list[Batch]:
    """Return what a file is checked on: one batch of three inputs and two of one, random and as they really are.

    A random input is noise, a real one the echo and the picture of a simulated room; the third is silence and darkness.
    """
    height, width = size_pair(network.preprocessing["image_size"])
    generator = torch.Generator().manual_seed(0)
    noise = {"rgb": torch.rand(INPUT_CHANNELS["rgb"], height, width, generator=generator)}
    if "waveform" in network.inputs:
        samples = network.preprocessing["audio_samples"]
        noise["waveform"] = 0.1 * torch.randn(INPUT_CHANNELS["audio"], samples, generator=generator)
    rooms = [real_input(network, index) for index in range(2)]
    black = {key: torch.zeros_like(value) for key, value in noise.items()}

    def batch(*samples: Mapping[str, Tensor]) -> Batch:
        return {key: torch.stack([sample[key] for sample in samples]) for key in network.inputs}

    return [batch(noise, rooms[0], black), batch(rooms[1]), batch(noise)]


def real_input(network: EndToEnd, index: int) -> dict[str, Tensor]:
    """Return the echo [2, N] and the picture [3, H, W] of a simulated room."""
    room = draw_sample(0, "test", index, image_size=128, with_audio="waveform" in network.inputs)
    picture = torch.from_numpy(room.rgb).permute(2, 0, 1)[None].float() / 255  # [1, 3, 128, 128]
    size = size_pair(network.preprocessing["image_size"])
    sample = {"rgb": nn.functional.interpolate(picture, size, mode="bilinear", align_corners=False)[0]}
    if room.audio is not None:
        wave = torch.from_numpy(np.asarray(room.audio, np.float32))
        sample["waveform"] = prepare_wave(wave, network.preprocessing)
    return sample


def batch_size(batch: Batch) -> int:
    """Return the number of inputs in a batch."""
    return len(next(iter(batch.values())))


def shape_text(value: Tensor) -> str:
    """Return the shape of a batch's tensor as a text: [B, 2, 7782]."""
    return f"[{', '.join(['B', *map(str, value.shape[1:])])}]"


# ----------------------------------------------------------------------------------------------------------- the files


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' own progress and advice from the reader; their errors are raised."""
    exporters = [logging.getLogger(name) for name in ("torch.export", "torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in exporters]
    for logger in exporters:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(exporters, before, strict=True):
            logger.setLevel(level)


@torch.no_grad()
def trace(network: EndToEnd, batch: Batch) -> ExportedProgram:
    """Return the network as a program that takes batches of any size."""
    sizes = tuple({0: Dim("batch", min=1)} for _ in network.inputs)
    return torch.export.export(network, tuple(batch[key] for key in network.inputs), dynamic_shapes=(sizes,))


def save_program(program: ExportedProgram, about: Mapping[str, Any]) -> bytes:
    """Return the content of a .pt2 file; the metadata are in its extra file ``echo_depth``."""
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={onnx_file.METADATA: json.dumps(about)})
    return file.getvalue()


def save_onnx(program: ExportedProgram, about: Mapping[str, Any]) -> bytes:
    """Return the content of an .onnx file; the metadata are in its ``metadata_props``."""
    answer = "depth" if about["output"] == "metres" else "disparity"
    converted = torch.onnx.export(
        program, input_names=about["inputs"], output_names=[answer], opset_version=OPSET, verbose=False
    )
    assert converted is not None
    proto = converted.model_proto
    for node in proto.graph.node:  # where each came from: the paths of this machine's Python files
        del node.metadata_props[:]
    set_about(proto, about)
    return proto.SerializeToString()


def set_about(proto: Any, about: Mapping[str, Any]) -> None:
    """Let an ONNX model say what it is, and nothing else."""
    del proto.metadata_props[:]
    proto.metadata_props.add(key=onnx_file.METADATA, value=json.dumps(about))


def open_file(path: Path, suffix: str) -> Run:
    """Open what was written as its user would: in onnxruntime, or in torch without the classes of this toolkit."""
    if suffix == onnx_file.SUFFIX:
        return OnnxNetwork(path)
    with path.open("rb") as file:
        return torch.export.load(io.BytesIO(file.read())).module()


def write_checked(
    path: Path, content: bytes, network: EndToEnd, batches: Sequence[Batch], *, limited: bool = True
) -> float:
    """Write a file that answers as PyTorch does, or none.

    Args:
        path: the file; its suffix is the format.
        content: what it is to hold.
        network: what it must agree with.
        batches: of inputs on which it must.
        limited: whether a difference above ``TOLERANCE`` is refused.

    Returns:
        The largest difference, in metres or as a share of the largest disparity.

    Raises:
        CheckpointError: the file answers otherwise than PyTorch.
        OptionError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(path, durable=True) as file:
            file.write(content)
            file.flush()
            difference = largest_difference(open_file(Path(file.name), path.suffix), network, batches)
            if not (difference <= TOLERANCE if limited else difference < float("inf")):  # NaN is neither
                raise CheckpointError(
                    f"{path} was not written: it would answer up to {difference:.3g} otherwise than PyTorch"
                )
    except OSError as error:
        raise OptionError(f"--output {path} cannot be written ({error})") from error
    return difference


@torch.no_grad()
def largest_difference(run: Run, network: EndToEnd, batches: Sequence[Batch]) -> float:
    """Return the largest difference to PyTorch's answers, in metres, or as a share of the largest disparity."""
    expected = [network.expected(batch) for batch in batches]
    found = [run(*(batch[key] for key in network.inputs)) for batch in batches]
    assert [answer.shape for answer in found] == [answer.shape for answer in expected]
    differences = torch.stack([(a - b).abs().max() for a, b in zip(found, expected, strict=True)])
    largest = torch.stack([answer.abs().max() for answer in expected]).max()
    return float(differences.max() / (1.0 if network.model.output == "metres" else largest))  # NaN stays NaN


if __name__ == "__main__":
    run_script(main)
