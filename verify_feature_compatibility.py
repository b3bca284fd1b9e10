"""Hold the levels of a teacher and of a student against each other: can features be distilled, position by position?

Nothing is computed or downloaded: the networks run without data, so this takes seconds at any size.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dataloaders import AUDIO_FORMATS, audio_channels
from errors import OptionError, run_script
from models import MODELS, create_model, options_of
from models.depth_anything import ALIASES, PRESETS
from training import options

Levels = dict[str, tuple[tuple[int, ...], int]]  # name: ([C, H, W], parameters)


def create_parser() -> argparse.ArgumentParser:
    """Return the parser with every flag and its default."""
    parser = options.create_parser(__doc__)
    group = parser.add_argument_group("networks")
    group.add_argument("--teacher", choices=sorted(MODELS), default="rgb_depth", help="the network that sees")
    group.add_argument("--student", choices=sorted(MODELS), default="binaural_attention", help="the one that hears")
    group.add_argument("--base_channels", type=options.positive_int, metavar="N", help="of both (default: 64)")
    group.add_argument(
        "--student_base_channels", type=options.positive_int, metavar="N", help="of the student (default: the same)"
    )
    for side in ("teacher", "student"):
        group.add_argument(
            f"--{side}_preset", choices=(*PRESETS, *ALIASES), help=f"of a {side} that is depth_anything (default: vits)"
        )
    group.add_argument(
        "--audio_format", choices=AUDIO_FORMATS, help="what is heard (default: interaural, as in train_distillation.py)"
    )
    group.add_argument("--image_size", type=options.positive_int, default=256, metavar="N", help="side [pixels]")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Build both, compare, print; exit with 1 if the teacher's features cannot be matched as they are."""
    args = create_parser().parse_args(argv)
    teacher = measure(args.teacher, args.image_size, **config_of(args, "teacher"))
    student = measure(args.student, args.image_size, **config_of(args, "student"))
    print_table(args, teacher, student)
    differing = [level for level in teacher if not same_shape(teacher, student, level)]
    if differing:
        print(f"distillation of features cannot start: the shapes differ at {', '.join(differing)}")
        sys.exit(1)
    print("distillation can start: the student has all of the teacher's levels, in equal shapes")


def config_of(args: argparse.Namespace, side: str) -> dict[str, Any]:
    """Return the arguments that the flags set of the ``teacher`` or the ``student``.

    Raises:
        OptionError: a flag that this network, or for ``--base_channels`` and ``--audio_format`` neither, has no use
            for.
    """
    taken = [options_of(name) for name in (args.teacher, args.student)]
    own = taken[side == "student"]
    if args.base_channels is not None and not any("base_channels" in parameters for parameters in taken):
        raise OptionError(f"--base_channels has no effect on {args.teacher} and {args.student}")
    if args.audio_format is not None and not any("audio_channels" in parameters for parameters in taken):
        raise OptionError(f"--audio_format has no effect on {args.teacher} and {args.student}")
    if args.student_base_channels is not None and "base_channels" not in taken[1]:
        raise OptionError(f"--student_base_channels has no effect on --student {args.student}")
    preset = getattr(args, f"{side}_preset")
    if preset is not None and "preset" not in own:
        raise OptionError(f"--{side}_preset has no effect on --{side} {getattr(args, side)}")
    width = (args.student_base_channels if side == "student" else None) or args.base_channels or 64
    channels = audio_channels(args.audio_format or "interaural")
    config = {"base_channels": width, "preset": preset, "audio_channels": channels}
    return {key: value for key, value in config.items() if key in own and value is not None}


def measure(name: str, image_size: int, **config: Any) -> Levels:
    """Return the shape of each level, and the number of parameters that it needs beyond the levels before it.

    Which parameters a level needs is read off the graph of its gradients. The last entry, ``depth``, is the output.

    Args:
        name: of a model.
        image_size: side of its inputs in pixels.
        **config: the model's arguments.

    Raises:
        OptionError: the model does not take this size.
    """
    if "image_size" in options_of(name):
        config["image_size"] = image_size
    with torch.device("meta"):  # not in the mode below, since timm reads values of what it builds
        model = create_model(name, **config).eval()
    model.check_image_size(image_size)
    with FakeTensorMode(allow_non_fake_inputs=True):  # tensors of a shape, but without memory
        model.to_empty(device="cpu")
        inputs = [torch.zeros(1, model.input_channels(key), image_size, image_size) for key in model.inputs]
        depth, features = model(*inputs, return_features=True)
        counted: set[nn.Parameter] = set()
        levels: Levels = {}
        for level, value in {**features, "depth": depth}.items():
            needed = needed_by(value, model) - counted
            counted |= needed
            levels[level] = (tuple(value.shape[1:]), sum(parameter.numel() for parameter in needed))
    return levels


def needed_by(value: Tensor, model: nn.Module) -> set[nn.Parameter]:
    """Return the parameters on which a tensor depends."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(value.sum(), parameters, retain_graph=True, allow_unused=True)
    return {parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is not None}


def same_shape(teacher: Levels, student: Levels, level: str) -> bool:
    """Return whether both have the level, in one shape."""
    return level in teacher and level in student and teacher[level][0] == student[level][0]


def print_table(args: argparse.Namespace, teacher: Levels, student: Levels) -> None:
    """Print one row per level: the shapes, and the parameters that each adds."""
    print(f"input {args.image_size}x{args.image_size}; parameters of a level: those that no earlier one needs")
    print(f"{'level':<10}{'teacher: ' + args.teacher:<36}{'student: ' + args.student:<36}")
    for level in {**teacher, **student}:
        cells = "".join(f"{cell(levels, level):<36}" for levels in (teacher, student))
        differs = level in teacher and not same_shape(teacher, student, level)
        print(f"{level:<10}{cells}{'differs' if differs else ''}".rstrip())
    totals = (sum(number for _, number in levels.values()) / 1e6 for levels in (teacher, student))
    print(f"{'total':<10}" + "".join(f"{f'{total:.2f} M parameters':<36}" for total in totals).rstrip())


def cell(levels: Levels, level: str) -> str:
    """Return the text of a level: its shape and its parameters."""
    if level not in levels:
        return "-"
    shape, parameters = levels[level]
    return f"{list(shape)!s:<18}{parameters:>11,}"


if __name__ == "__main__":
    run_script(main)
