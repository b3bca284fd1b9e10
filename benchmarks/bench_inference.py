"""How long an answer takes: a network of this house beside BatVision's unet_256, on the same threads.

    python benchmarks/bench_inference.py --checkpoint checkpoints/student/best_model.pth
    python benchmarks/bench_inference.py --model binaural_attention --base_channels 16 --attention_levels 4 5

Both as plain PyTorch runs them (float32, NCHW), channels last under ``--precision auto``, compiled (``--compile``),
and in ONNX Runtime as ``export.py`` writes them, in float32 and in 8 bits, at batch 1 and 32. "of unet_256's": the time
over that of unet_256 (64 channels, as published) run in the same way; the last lines are of the fastest way of each.
What makes a network's input of a recording is not in it; the first lines say how long that takes. The ranges of 8 bits
are taken from noise: the answers are worth nothing, the time is that of any weights. All ways keep the memory that they
free, as the scripts of this toolkit do. At batch 1 a turn is one answer that is not counted and the median of seven.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import export
from benchmarks import measure
from dataloaders import AUDIO_FORMATS, AudioFrontEnd
from dataloaders.transforms import cut_samples
from errors import OptionError, run_script
from models import MODELS, DepthModel, create_model, onnx_file
from models.blocks import EARS
from models.onnx_file import OnnxNetwork
from training import options
from training.checkpoint import load_model
from training.engine import resolve_precision
from training.machine import keep_freed_memory

REFERENCE = "unet_256"
CALLS = {1: 7, 32: 1}  # of a turn, by the batch
PLAIN, COMPILED = "PyTorch, float32", "PyTorch, compiled"
ONNX = {"ONNX Runtime, float32": "float32", "ONNX Runtime, int8": "int8"}
MISSING = "not installed"
MAX_DEPTH = 30.0  # metres, of BatVision V2
CALIBRATION = 2  # inputs from which 8 bits get their ranges

Answer = Callable[[], Tensor]


def create_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag and its default."""
    parser = measure.create_parser(__doc__ or "", rounds=15)
    group = parser.add_argument_group("network")
    what = group.add_mutually_exclusive_group()
    what.add_argument("--checkpoint", type=Path, metavar="FILE", help="a network that has learnt")
    what.add_argument(
        "--model", choices=tuple(MODELS), metavar="NAME", help="of random weights (default: binaural_attention)"
    )
    group.add_argument("--base_channels", type=options.positive_int, metavar="N", help="width of --model (default: 16)")
    group.add_argument(
        "--attention_levels", type=int, nargs="*", metavar="N", help="of --model binaural_attention (default: its own)"
    )
    group.add_argument(
        "--audio_format",
        choices=AUDIO_FORMATS,
        help="what --model hears (default: spectrogram, as unet_256)",
    )
    group.add_argument("--image_size", type=options.positive_int, default=256, metavar="PIXELS", help="side")
    group.add_argument("--compile", action="store_true", help="a row with torch.compile")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    args = measure.parse(create_parser(), argv)
    keep_freed_memory()
    device = measure.device()
    name, model, heard = open_model(args)
    networks = {REFERENCE: create_model("unet_baseline", image_size=args.image_size), name: model}
    how = ways(args.compile, device)
    rows: list[dict[str, object]] = []
    ratios: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="bench_inference_") as folder:
        files = {
            (network, way): file
            for network, one in networks.items()
            for way, file in write_files(one, args.image_size, Path(folder, network), how).items()
        }
        for images, calls in CALLS.items():
            variants = {
                (network, way): answer(one, images, args.image_size, device, way, files.get((network, way)))
                for network, one in networks.items()
                for way in how
                if way not in ONNX or (network, way) in files
            }
            seconds = measure.take_turns(variants, args.rounds, device, calls)
            rows += [row_of(network, way, images, seconds) for network in networks for way in how]
            ratios[f"{images}"] = ratios_of(name, how, seconds)
    sounds = {key: 1000 * statistics.median(times) for key, times in front_ends(args, heard, device).items()}
    for audio_format, milliseconds in sounds.items():
        print(f"{audio_format} of one recording: {milliseconds:.1f} ms")
    measure.report(args, rows, ratio=ratios["1"]["best"], ratios=ratios, front_end_ms=sounds)
    for batch, found in ratios.items():
        print(f"\nbatch {batch}: {name} takes {found['best']:.2f} of the time of {REFERENCE}, each in its fastest way")


def open_model(args: argparse.Namespace) -> tuple[str, DepthModel, str | None]:
    """Return what the table calls the network to be measured, it itself, and the format of what it hears, if it does.

    Raises:
        OptionError: flags that do not fit it.
    """
    given = [flag for flag in ("base_channels", "attention_levels", "audio_format") if getattr(args, flag) is not None]
    if args.checkpoint:
        for flag in given:
            raise OptionError(f"--{flag} has no effect beside --checkpoint, whose network has its own")
        model, checkpoint = load_model(args.checkpoint)
        model.check_image_size(args.image_size)
        if checkpoint is None or "audio" not in model.inputs:
            return model.name, model, audio_format_of(model)
        return model.name, model, checkpoint["preprocessing"]["audio_format"]
    name = args.model or "binaural_attention"
    sized, hears = name != "depth_anything", "audio" in MODELS[name].inputs
    has = {"base_channels": sized, "attention_levels": name == "binaural_attention", "audio_format": hears}
    for flag in given:
        if not has[flag]:
            raise OptionError(f"--{flag} has no effect on {name}")
    config: dict[str, Any] = {"base_channels": args.base_channels or 16} if sized else {}
    if args.attention_levels is not None:
        config["attention_levels"] = args.attention_levels
    if hears:
        hearing = options.hearing_config(argparse.Namespace(audio_format=args.audio_format or "spectrogram"))
        if name == "unet_baseline":  # which takes what it hears as it is
            del hearing["compress_input"]
            config["image_size"] = args.image_size
        config |= hearing
    model = create_model(name, **config)
    model.check_image_size(args.image_size)
    heard = args.audio_format or ("spectrogram" if hears else None)
    return f"{name} {config['base_channels']}" if sized else name, model, heard


def ways(compiled: bool, device: str) -> list[str]:
    """Return how the networks are run; ONNX Runtime computes on a CPU alone."""
    precision = resolve_precision("auto", device)
    found = [PLAIN, f"PyTorch, channels last, {precision}"]
    return [*found, *([COMPILED] if compiled else []), *(ONNX if device == "cpu" else [])]


def audio_format_of(model: DepthModel) -> str | None:
    """Return what a network that nobody describes hears, by the number of its channels; None where it does not."""
    if "audio" not in model.inputs:
        return None
    return "interaural" if model.input_channels("audio") > EARS else "spectrogram"


def front_ends(args: argparse.Namespace, heard: str | None, device: str) -> dict[str, list[float]]:
    """Return seconds of making a network's input of one recording, as the U-Net hears it and in the format given."""
    wave = torch.rand(1, 2, cut_samples(MAX_DEPTH), device=device) - 0.5
    how = {"image_size": args.image_size, "audio_samples": wave.shape[-1]}
    formats = dict.fromkeys(["spectrogram", *([heard] if heard else [])])
    fronts = {name: AudioFrontEnd({**how, "audio_format": name}).to(device) for name in formats}

    def run(front: AudioFrontEnd) -> Answer:
        return torch.inference_mode()(lambda: front(wave))

    return measure.take_turns({name: run(front) for name, front in fronts.items()}, args.rounds, device)


def inputs_of(model: DepthModel, images: int, side: int) -> list[Tensor]:
    """Return one batch of noise [B, C, S, S] for each input of a network."""
    torch.manual_seed(0)
    return [torch.rand(images, model.input_channels(key), side, side) for key in model.inputs]


def copy_of(model: DepthModel) -> DepthModel:
    """Return a network of its own with the same weights: the layouts of one must not become the other's."""
    network = create_model(model.name, **model.config)
    network.load_state_dict(model.state_dict())
    return network.eval()


def answer(
    model: DepthModel, images: int, side: int, device: str, way: str = PLAIN, file: Path | None = None
) -> Answer:
    """Return a call that answers to one batch of noise, run in one way, or from an ONNX file."""
    inputs = [x.to(device) for x in inputs_of(model, images, side)]
    network: Any = OnnxNetwork(file) if file else copy_of(model).to(device)
    if not file and way != PLAIN:
        network.to(memory_format=torch.channels_last)
        inputs = [x.to(memory_format=torch.channels_last) for x in inputs]
    if way == COMPILED:
        network = torch.compile(network)
    half = not file and way != PLAIN and resolve_precision("auto", device) == "bf16"

    @torch.inference_mode()
    def run() -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=half):
            return network(*inputs)

    return run


def write_files(model: DepthModel, side: int, folder: Path, how: Sequence[str]) -> dict[str, Path]:
    """Write a network as ONNX files, by the way that runs each; none where a library is missing."""
    wanted = [way for way in how if way in ONNX]
    if not wanted or any(importlib.util.find_spec(module) is None for module in export.EXTRAS):
        return {}
    folder.mkdir()
    preprocessing = {"image_size": side, "audio_format": "spectrogram", "audio_samples": cut_samples(MAX_DEPTH)}
    network = export.EndToEnd(copy_of(model), preprocessing).eval()
    if network.front_end is not None:
        network.front_end = nn.Identity()  # type: ignore[assignment]  # a spectrogram stands where the waveform would
    batch = dict(zip(network.inputs, inputs_of(model, CALIBRATION, side), strict=True))
    about = export.describe(network, None)
    plain = folder / f"network{onnx_file.SUFFIX}"
    samples = [{key: values[i] for key, values in batch.items()} for i in range(CALIBRATION)]
    with export.quiet():
        export.save_onnx(plain, network, batch, about)
        files = {"float32": plain, "int8": export.quantize(plain, samples, about)}
    return {way: files[ONNX[way]] for way in wanted}


def row_of(
    network: str, way: str, images: int, seconds: Mapping[tuple[str, str], Sequence[float]]
) -> dict[str, object]:
    """Return a row of the table: one network, run in one way."""
    times = seconds.get((network, way))
    row: dict[str, object] = {"network": network, "run by": way, "batch": images}
    if times is None:
        return row | {"ms": MISSING, "images/s": "", "of unet_256's": "", "of plain unet_256's": ""}
    median = statistics.median(times)
    return row | {
        "ms": 1000 * median,
        "images/s": images / median,
        "of unet_256's": measure.ratio(times, seconds[REFERENCE, way]),
        "of plain unet_256's": measure.ratio(times, seconds[REFERENCE, PLAIN]),
    }


def ratios_of(name: str, how: Sequence[str], seconds: Mapping[tuple[str, str], Sequence[float]]) -> dict[str, float]:
    """Return the network's time over that of unet_256: in each way, and of the fastest way of each."""
    measured = [way for way in how if (name, way) in seconds]
    best = {
        network: min((seconds[network, way] for way in measured), key=statistics.median)
        for network in (name, REFERENCE)
    }
    found = {way: measure.ratio(seconds[name, way], seconds[REFERENCE, way]) for way in measured}
    return {**found, "best": measure.ratio(best[name], best[REFERENCE])}


if __name__ == "__main__":
    run_script(main)
