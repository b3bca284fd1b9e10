"""A network in a file that runs without this toolkit, waveform in, metres out: ONNX, or a program of torch.export."""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import math
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.export import Dim
from torch.utils.data import DataLoader, Dataset

from dataloaders import AudioFrontEnd, DepthDataset, collate, create_dataset, prepare_audio, prepare_wave, require_data
from dataloaders.transforms import MIN_SAMPLES, size_pair
from errors import CheckpointError, OptionError, run_script
from models import DepthModel, onnx_file
from models.blocks import EARS
from models.onnx_file import OnnxNetwork
from simulation.scenes import draw_sample
from training import loop, options
from training.checkpoint import (
    dataset_options_of,
    license_of,
    load_model,
    preprocessing_of,
    require_entries,
    require_folder,
)
from training.metrics import MetricTable, Scoring, scoring_on
from training.model_card import SUFFIX as CARD
from training.model_card import model_card, write_card
from training.task import Batch, model_inputs
from training.version import VERSION

PROGRAM = ".pt2"
SUFFIXES = (onnx_file.SUFFIX, PROGRAM)
EXTRAS = ("onnx", "onnxruntime", "onnxscript")  # what writing and checking an ONNX file needs besides
OPSET = 20
TOLERANCE = 1e-3  # of the file's answer: in metres, or as a share of the largest disparity
LAYERS = ("Conv", "ConvTranspose", "MatMul", "Gemm")  # what is computed in 8 bits
CALIBRATION = 64  # training samples from which the ranges of 8-bit numbers are taken
BATCH = 16  # of the samples on which a file is scored
TIMED_RUNS = 30

Run = Callable[..., Tensor]  # a file that was opened: its inputs in order -> [B, 1, H, W]


class EndToEnd(nn.Module):
    """A network with its preprocessing: what a microphone and a camera give -> what the network gives.

    The spectrogram and ImageNet's normalisation are inside; a picture comes in at the network's size.

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
            batch["audio"] = self.front_end(batch["waveform"])  # [B, C, H, W]
        return self.model(*model_inputs(self.model, batch))

    @torch.no_grad()
    def expected(self, batch: Batch) -> Tensor:
        """Return PyTorch's answer to a batch of this network's inputs, the sound prepared as in training."""
        if "waveform" in batch:
            batch = {**batch, "audio": torch.stack([prepare_audio(w, self.preprocessing) for w in batch["waveform"]])}
        return self.model(*model_inputs(self.model, batch))


class EndToEndSamples(Dataset):
    """The samples of a data set, with the ``waveform`` [2, N] in place of the spectrogram."""

    def __init__(self, dataset: DepthDataset, network: EndToEnd) -> None:
        self.dataset, self.network = dataset, network

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample: dict[str, Any] = {"id": self.dataset.ids[index], "index": index}
        for modality in self.dataset.modalities:
            if modality == "audio":  # its spectrogram is made by the file
                sample["waveform"] = self.dataset.read_wave(index, self.network.preprocessing)
            else:
                sample[modality] = self.dataset.prepare(index, modality)
        return sample


@dataclass(frozen=True)
class Samples:
    """What an 8-bit file is made and judged by: samples of the training split, and the validation split."""

    train: list[dict[str, Any]]
    validation: DataLoader
    scoring: Scoring


@dataclass(frozen=True)
class Measured:
    """What a file reaches: RMSE in metres over the validation images, megabytes, milliseconds an input."""

    rmse: float
    images: int
    size: float
    time: float


def create_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag and its default."""
    parser = options.create_parser(__doc__)
    options.add_checkpoint_option(parser)
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="its suffix is the format, .onnx or .pt2; a model card is written beside it, with the suffix .md",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace both files")
    group = parser.add_argument_group("inputs")
    group.add_argument(
        "--image_size",
        type=options.positive_int,
        nargs="+",
        metavar="N",
        help="what the network is shown [pixels]: a square's side, or height and width (default: the checkpoint's)",
    )
    group.add_argument(
        "--audio_samples",
        type=options.positive_int,
        metavar="N",
        help="length of the sound, where it is not fixed, as of BatVision V1 (default: the checkpoint's)",
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
    samples = open_samples(args, network, checkpoint) if args.quantize and checkpoint else None
    about = describe(network, checkpoint)
    batches = trial_batches(network)
    with folder_beside(args.output) as folder:  # what is checked there takes its place only then
        file = folder / args.output.name
        with quiet():
            save = save_program if file.suffix == PROGRAM else save_onnx
            save(file, network, batches[0], about)
        agreement = check_answers(file, network, batches)
        print(agreement)
        figures = [f"The file in float32: {agreement}."]
        if samples is not None:
            about["precision"] = "int8"
            with quiet():
                quantized = quantize(file, samples.train, about)
            cost = compare(measure(file, samples), measure(quantized, samples), samples.scoring)
            print(cost)
            figures.append(f"{cost}.")
            file = quantized
        card = model_card(
            args.output.name,
            f"{'ONNX' if file.suffix == onnx_file.SUFFIX else 'A program of torch.export'}, {about['precision']}",
            network.model,
            network.preprocessing,
            checkpoint,
            takes=network.inputs,
            license=license_of(network.model, checkpoint, args.checkpoint),
            versions=about["versions"],
            figures=figures,
        )
        write_card(args.output, card)
        file.replace(args.output)
    shapes = ", ".join(f"{key} {shape_text(value)}" for key, value in batches[0].items())
    answer = "depth in metres" if network.model.output == "metres" else "relative disparity, large where near"
    print(f"{args.output}: {network.model.name}, {about['precision']}; {shapes} -> {answer}")
    print(f"model card: {args.output.with_suffix('.md')}")


def check_options(args: argparse.Namespace) -> None:
    """Refuse what cannot be honoured before anything is read.

    Raises:
        OptionError: naming the flag.
    """
    if args.output.suffix not in SUFFIXES:
        raise OptionError(f"--output {args.output}: the suffix is the format; known are {' '.join(SUFFIXES)}")
    for path in (args.output, args.output.with_suffix(CARD)):
        if path.exists() and not args.overwrite:
            raise OptionError(f"--output: {path} exists; --overwrite replaces it")
    if args.output.suffix == onnx_file.SUFFIX:
        missing = [module for module in EXTRAS if importlib.util.find_spec(module) is None]
        if missing:
            raise OptionError(f"--output {args.output}: ONNX needs more libraries: pip install {' '.join(missing)}")
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
    preprocessing = preprocessing_of(model, checkpoint, args.checkpoint)
    require_entries({"preprocessing": preprocessing}, args.checkpoint, "preprocessing", "max_depth")
    if args.quantize and checkpoint is None:
        raise OptionError(f"--quantize: {args.checkpoint} holds weights alone and names no data to calibrate on")
    if args.image_size:
        preprocessing = {**preprocessing, "image_size": options.image_size(args.image_size)}
    for side in size_pair(preprocessing["image_size"]):
        model.check_image_size(side)
    if "audio" in model.inputs:
        preprocessing = {**preprocessing, "audio_samples": sound_length(args, preprocessing["audio_samples"])}
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
    samples = samples or args.audio_samples
    if samples is None:
        raise OptionError(
            f"--audio_samples is missing: the sound of {args.checkpoint} may have any length, a file's not"
        )
    if samples < MIN_SAMPLES:
        raise OptionError(f"--audio_samples {samples}: a spectrogram needs {MIN_SAMPLES} at least")
    return samples


def open_samples(args: argparse.Namespace, network: EndToEnd, checkpoint: dict[str, Any]) -> Samples:
    """Return what ``--quantize`` needs of the data that the network learnt from; the test split stays closed.

    Raises:
        DataError: the data are not there, or have no measured depth.
    """
    model = network.model
    data = dataset_options_of(checkpoint, args.checkpoint) | {"image_size": network.preprocessing["image_size"]}
    if args.dataset_dir:
        require_data(args.dataset_dir, "--dataset_dir")
        data["dataset_dir"] = args.dataset_dir
    else:
        require_folder(data, args.checkpoint)
    train = create_dataset(**data, split="train", modalities=model.inputs)
    validation = create_dataset(**data, split="val", modalities={*model.inputs, "depth"})
    validation.require_depth()
    count = min(CALIBRATION, len(train))
    found = EndToEndSamples(train, network)
    return Samples(
        train=[found[index * len(train) // count] for index in range(count)],  # from every location
        validation=DataLoader(EndToEndSamples(validation, network), BATCH, collate_fn=collate),
        scoring=scoring_on(
            data["name"],
            model.output,
            "metric" if model.output == "metres" else "disparity_lsq",
            data["max_depth"],
        ),
    )


def describe(network: EndToEnd, checkpoint: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a file says about itself: plain values (docs/EXPORT.md)."""
    return {
        "format": onnx_file.FORMAT,
        "model": {"name": network.model.name, "config": network.model.config},
        "inputs": list(network.inputs),
        "output": network.model.output,
        "precision": "float32",
        "preprocessing": network.preprocessing,
        "epoch": checkpoint["epoch"] if checkpoint else None,
        "versions": {
            "toolkit": VERSION,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            **{name: metadata.version(name) for name in EXTRAS if importlib.util.find_spec(name)},
        },
    }


def trial_batches(network: EndToEnd) -> list[Batch]:
    """Return what a file is checked on: a batch of three inputs and one of one.

    They are noise, silence and darkness, and the echoes and pictures of two simulated rooms.
    """
    height, width = size_pair(network.preprocessing["image_size"])
    generator = torch.Generator().manual_seed(0)
    noise = {"rgb": torch.rand(3, height, width, generator=generator)}
    if "waveform" in network.inputs:
        samples = network.preprocessing["audio_samples"]
        noise["waveform"] = 0.1 * torch.randn(EARS, samples, generator=generator)
    nothing = {key: torch.zeros_like(value) for key, value in noise.items()}
    room, other = (simulated_input(network, index) for index in range(2))
    return [
        {key: torch.stack([sample[key] for sample in samples]) for key in network.inputs}
        for samples in ([noise, nothing, room], [other])
    ]


def simulated_input(network: EndToEnd, index: int) -> dict[str, Tensor]:
    """Return the echo [2, N] and the picture [3, H, W] of a simulated room."""
    room = draw_sample(0, "test", index, image_size=128, with_audio="waveform" in network.inputs)
    picture = torch.from_numpy(room.rgb).permute(2, 0, 1)[None].float() / 255  # [1, 3, 128, 128]
    size = size_pair(network.preprocessing["image_size"])
    sample = {"rgb": nn.functional.interpolate(picture, size, mode="bilinear", align_corners=False)[0]}
    if room.audio is not None:
        wave = torch.from_numpy(np.asarray(room.audio, np.float32))
        sample["waveform"] = prepare_wave(wave, network.preprocessing)
    return sample


def shape_text(value: Tensor) -> str:
    """Return the shape of a batch's tensor as a text: [B, 2, 7782]."""
    return f"[{', '.join(['B', *map(str, value.shape[1:])])}]"


# ------------------------------------------------------------------------------------------------------------ float32


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """Make a folder beside a file that is to be written, and remove it.

    Raises:
        OptionError: nothing can be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
            yield Path(folder)
    except OSError as error:
        raise OptionError(f"--output {path} cannot be written ({error})") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' advice to programmers from the reader; their errors are raised."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def save_program(path: Path, network: EndToEnd, batch: Batch, about: Mapping[str, Any]) -> None:
    """Write a .pt2 file that takes batches of any size; the metadata are in its extra file ``echo_depth``."""
    sizes = (tuple({0: Dim.DYNAMIC} for _ in network.inputs),)
    program = torch.export.export(network, tuple(batch.values()), dynamic_shapes=sizes)
    torch.export.save(program, path, extra_files={onnx_file.METADATA: json.dumps(about)})


def save_onnx(path: Path, network: EndToEnd, batch: Batch, about: Mapping[str, Any]) -> None:
    """Write an .onnx file that takes batches of any size; the metadata are in its ``metadata_props``."""
    exported = torch.onnx.export(
        network,
        tuple(batch.values()),
        input_names=network.inputs,
        output_names=["depth" if network.model.output == "metres" else "disparity"],
        dynamic_shapes=(tuple({0: "batch"} for _ in network.inputs),),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert exported is not None
    proto = exported.model_proto
    for node in proto.graph.node:  # where each came from: the paths of this machine's Python files
        del node.metadata_props[:]
    write_onnx(path, proto, about)


def write_onnx(path: Path, proto: Any, about: Mapping[str, Any]) -> None:
    """Write an ONNX model that says what it is."""
    del proto.metadata_props[:]
    proto.metadata_props.add(key=onnx_file.METADATA, value=json.dumps(about))
    path.write_bytes(proto.SerializeToString())


def open_file(path: Path) -> Run:
    """Open what was written as its user would: in onnxruntime, or in torch without the classes of this toolkit."""
    return OnnxNetwork(path) if path.suffix == onnx_file.SUFFIX else torch.export.load(path).module()


@torch.no_grad()
def check_answers(path: Path, network: EndToEnd, batches: Sequence[Batch]) -> str:
    """Make sure that a file answers as PyTorch does, and say how closely.

    Raises:
        CheckpointError: it does not.
    """
    run = open_file(path)
    differences, largest = [], 0.0
    for batch in batches:
        expected, found = network.expected(batch), run(*batch.values())
        assert found.shape == expected.shape
        differences.append((found - expected).abs().max())
        largest = max(largest, float(expected.abs().max()))
    metric = network.model.output == "metres"
    difference = float(torch.stack(differences).max()) / (1 if metric else largest)  # NaN stays NaN
    unit = "m" if metric else "of the largest disparity"
    text = f"{difference:.2g} {unit} at most from PyTorch's answers to {sum(map(batch_size, batches))} inputs"
    if not difference <= TOLERANCE:
        raise CheckpointError(f"{path.name} was not written: it would be {text}, and {TOLERANCE:g} is allowed")
    return text


def batch_size(batch: Batch) -> int:
    """Return the number of inputs in a batch."""
    return next(iter(batch.values())).shape[0]


# ------------------------------------------------------------------------------------------------------------- 8 bits


class Calibration:
    """Samples as onnxruntime asks for them: one after the other, then None."""

    def __init__(self, inputs: Sequence[str], samples: Sequence[Mapping[str, Any]]) -> None:
        self.rest = iter({key: sample[key][None].numpy() for key in inputs} for sample in samples)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next sample."""
        return next(self.rest, None)


def quantize(plain: Path, samples: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> Path:
    """Write an .onnx file's network in 8 bits, beside it, and return the path.

    Weights have a scale for each channel, activations one for each tensor, from the extremes that the samples reach;
    both are signed, so that products do not overflow on processors without VNNI. What makes the spectrogram and what
    makes metres of the last features stays in float32: there 8 bits are too few.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    proto = onnx.load(plain)
    path = plain.with_name(f"int8-{plain.name}")
    quantize_static(
        plain,
        path,
        Calibration(about["inputs"], samples),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(LAYERS),
        nodes_to_exclude=sorted({*last_layers(proto), *front_end(proto)}),
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},  # attention's products of activations gain nothing
    )
    write_onnx(path, onnx.load(path), about)
    return path


def last_layers(proto: Any) -> set[str]:
    """Return the names of the layers from which the output follows without a further layer."""
    ways = upstream(proto, [output.name for output in proto.graph.output], stop=LAYERS)
    return {node.name for node in ways if node.op_type in LAYERS}


def front_end(proto: Any) -> set[str]:
    """Return the names of the nodes that turn a waveform into what the network hears; empty where there are none."""
    own = [node for node in proto.graph.node if any(name.startswith("front_end.") for name in node.input)]
    return {node.name for node in upstream(proto, [name for node in own for name in node.output])}


def upstream(proto: Any, tensors: Sequence[str], stop: Sequence[str] = ()) -> list[Any]:
    """Return the nodes from which tensors follow; of operations in ``stop``, not what they follow from."""
    makers = {name: node for node in proto.graph.node for name in node.output}
    found: dict[str, Any] = {}
    ahead = list(tensors)
    while ahead:
        node = makers.get(ahead.pop())
        if node is not None and node.name not in found:
            found[node.name] = node
            ahead += [] if node.op_type in stop else node.input
    return list(found.values())


def measure(path: Path, samples: Samples) -> Measured:
    """Score a file on the validation split, and take the shortest of some times at batch 1.

    Raises:
        CheckpointError: its answers are not numbers.
    """
    network = OnnxNetwork(path)
    fabric = Fabric(accelerator="cpu", devices=1)
    table = MetricTable(scoring=samples.scoring)
    row = loop.evaluate(fabric, network, samples.validation, table=table, title=path.name).mean()
    if not math.isfinite(row["rmse"]):
        raise CheckpointError(f"{path.name} was not written: its answers are not numbers")
    inputs = [samples.train[0][key][None] for key in network.inputs]
    times = []
    for _ in range(TIMED_RUNS):
        before = time.perf_counter()
        network(*inputs)
        times.append(time.perf_counter() - before)
    return Measured(row["rmse"], int(row["n_images"]), path.stat().st_size / 1e6, 1000 * min(times))


def compare(before: Measured, after: Measured, scoring: Scoring) -> str:
    """Say what 8 bits cost and gain."""
    fitted = "" if scoring.protocol == "metric" else ", scale and shift fitted to each"
    return (
        f"float32 -> int8: validation RMSE {before.rmse:.4f} -> {after.rmse:.4f} m "
        f"({after.rmse / before.rmse - 1:+.1%}) over {after.images} images{fitted}, "
        f"{before.size:.2f} -> {after.size:.2f} MB, "
        f"{before.time:.1f} -> {after.time:.1f} ms an input on this machine ({torch.get_num_threads()} threads)"
    )


if __name__ == "__main__":
    run_script(main)
