"""What is wrong with the snippets by which Distill Any Depth is often rebuilt: a number for each.

    python benchmarks/snippet_faults.py

The paper came without its training code, and what circulates in its place has faults that no error message shows. Each
is restated here, as small as it can be, and held against what this toolkit does. Nothing is downloaded; a few seconds.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from errors import run_script
from training.depth_losses import masked_mean
from utils_distillation_loss import (
    disparity_contexts,
    gradient_preservation_loss,
    normalized_loss,
    token_alignment_loss,
)

# ------------------------------------------------------------------------------------------------------- the snippets


def align_by_ratio(student: Tensor, teacher: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """``masked_shift_and_scale``: a scale without a shift, then a shift; both stand at every pixel of the image."""
    scale, shift = torch.zeros_like(student), torch.zeros_like(student)
    for i in range(len(student)):
        s, t = student[i][valid[i]], teacher[i][valid[i]]
        ratio = (t * s).sum() / (s * s).sum()
        scale[i], shift[i] = ratio, (t - ratio * s).mean()
    return scale, shift


def all_pairs_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """``feature_distillation_loss``: 1 - the mean over all pairs of tokens of [B, N, C], not place by place."""
    s, t = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    return 1 - (s @ t.transpose(1, 2)).mean()


def edge_strength(student: Tensor) -> Tensor:
    """``gradient_preservation_loss``: Sobel's magnitude of the prediction, [B, 1, H, W]. There is no teacher in it."""
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    steps = F.conv2d(student, torch.stack([across, across.T])[:, None], padding=1)
    return (steps.square().sum(dim=1, keepdim=True) + 1e-8).sqrt()


def half_open_contexts(disparity: Tensor, parts: int = 3) -> list[Tensor]:
    """``get_contexts_dr``: ``level`` equal segments, once, without their upper bounds; here of one image's pixels."""
    low, extent = disparity.min(), disparity.max() - disparity.min()
    return [
        (disparity >= low + k / parts * extent) & (disparity < low + (k + 1) / parts * extent) for k in range(parts)
    ]


def mean_over_contexts(error: Tensor, contexts: Sequence[Tensor]) -> Tensor:
    """``compute_hdn_loss``: the mean of the contexts' means, however few pixels a context has."""
    return torch.stack([masked_mean(error, context) for context in contexts]).mean()


def load_what_fits(network: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """``load_teacher_model``: strictly, and if that fails, as far as the names agree. Returns what was not loaded."""
    try:
        network.load_state_dict(state)
    except RuntimeError:
        return network.load_state_dict(state, strict=False).missing_keys
    return []


class AnotherInstead:
    """``__getitem__`` that answers a broken file with a sample drawn at random.

    Args:
        broken: by row, whether its file cannot be read.
        seed: of the draws.
    """

    def __init__(self, broken: Sequence[bool], seed: int = 0) -> None:
        self.broken = broken
        self.random = random.Random(seed)

    def __getitem__(self, row: int) -> int:
        try:
            if self.broken[row]:
                raise OSError(f"row {row} cannot be read")
            return row
        except OSError:
            return self[self.random.randrange(len(self.broken))]


# --------------------------------------------------------------------------------------------------------- the numbers


def scene(size: int = 64) -> Tensor:
    """Return a disparity map [1, 1, S, S]: a wall that recedes, and something in front of it."""
    ramp = torch.linspace(1, 2, size)
    disparity = ramp.expand(1, 1, size, size).clone()
    disparity[..., size // 4 : size // 2, size // 4 : size // 2] += 2
    return disparity


def of_alignment() -> str:
    """Align a student whose map is the teacher's but for scale and shift."""
    student = scene()
    teacher, valid = 2 * student + 3, torch.ones_like(student, dtype=torch.bool)
    scale, shift = (value.flatten()[0] for value in align_by_ratio(student, teacher, valid))
    left = (scale * student + shift - teacher).abs().mean()
    ours = normalized_loss(student, teacher, valid)
    copies = align_by_ratio(student, teacher, valid)[0].view(-1, 1, 1, 1) * student
    try:
        both = student.expand(2, -1, -1, -1)
        align_by_ratio(both, both, valid.expand_as(both))[0].view(-1, 1, 1, 1) * both
        raised = "passes"
    except RuntimeError:
        raised = "raises"
    return (
        f"for teacher = 2 student + 3 the scale is {scale:.2f} and an error of {left:.2f} is left; ours leaves "
        f"{ours.item():.2f}. One image of 64 x 64 pixels turns into {len(copies)} images, a batch of two {raised}"
    )


def of_features() -> str:
    """Compare tokens with themselves, with themselves in another order, and with noise; and two widths."""
    torch.manual_seed(0)
    tokens = torch.randn(1, 256, 768)
    others = {"identical": tokens, "permuted": tokens[:, torch.randperm(256)], "random": torch.randn(1, 256, 768)}
    theirs = ", ".join(f"{name} {all_pairs_cosine(other, tokens):.3f}" for name, other in others.items())
    grids = {name: other.transpose(1, 2).unflatten(2, (16, 16)) for name, other in others.items()}
    ours = ", ".join(
        f"{name} {token_alignment_loss(grid, grids['identical']).item():.3f}" for name, grid in grids.items()
    )
    try:
        all_pairs_cosine(tokens, torch.randn(1, 256, 1024))
        raised = "pass"
    except RuntimeError:
        raised = "raise"
    return f"{theirs}; place by place: {ours}. Widths 768 and 1024 {raised}"


def of_gradients() -> str:
    """Score the teacher's own map, and a flat one."""
    teacher = scene()
    valid, flat = torch.ones_like(teacher, dtype=torch.bool), torch.zeros_like(teacher)
    theirs = (edge_strength(teacher).mean(), edge_strength(flat).mean())
    ours = (gradient_preservation_loss(d, teacher, valid).item() for d in (teacher, flat))
    return "the teacher's own map scores {:.3f}, a flat map {:.4f}; against the teacher: {:.0f} and {:.2f}".format(
        *theirs, *ours
    )


def of_contexts() -> str:
    """Count the pixels without a context, of a constant map and of one whose nearest fifth has one value."""
    flat, near = torch.ones(1, 1, 20, 20), torch.linspace(0, 1.25, 400).clamp(max=1).view(1, 1, 20, 20)
    theirs, ours = [], []
    for disparity in (flat, near):
        theirs.append(1 - torch.stack(half_open_contexts(disparity)).any(dim=0).float().mean())
        contexts = disparity_contexts(disparity, torch.ones_like(disparity, dtype=torch.bool))
        ours.append((contexts < 0).float().mean())
    number = sum(len(level.unique()) for level in disparity_contexts(near, near >= 0)[0])
    return (
        f"without a context: {theirs[0]:.0%} of a constant map, {theirs[1]:.0%} of one whose nearest fifth is at one "
        f"distance; ours: {ours[0]:.0%} and {ours[1]:.0%}. {len(half_open_contexts(near))} contexts instead of {number}"
    )


def of_means() -> str:
    """Put the same error at a pixel of a large and of a small context."""
    disparity = torch.zeros(1, 1, 64, 64)
    disparity.flatten()[-40:] = 2.5  # one percent of the pixels; one more, the largest, lies in no context
    disparity.flatten()[-1] = 3
    contexts = half_open_contexts(disparity)
    large, small = torch.zeros_like(disparity), torch.zeros_like(disparity)
    large.flatten()[0], small.flatten()[-2] = 1, 1
    ratio = mean_over_contexts(small, contexts) / mean_over_contexts(large, contexts)
    return f"a pixel of a context with 1 % of the image weighs {ratio:.0f} times what another does; per pixel: 1"


def of_loading() -> str:
    """Load the encoder of a ViT-L by names that a change of prefix alone has made."""
    with torch.device("meta"):
        encoder = timm.create_model("vit_large_patch14_dinov2.lvd142m", num_classes=0, dynamic_img_size=True)
    network = nn.Module()
    for name, value in encoder.state_dict().items():  # as the teacher's own network has it: all blocks in one chunk
        path = name.replace("blocks.", "blocks.0.", 1).replace(".", "/")
        network.register_parameter(path, nn.Parameter(value, requires_grad=False))
    missing = load_what_fits(network, {key.replace(".", "/"): value for key, value in encoder.state_dict().items()})
    weights = dict(network.named_parameters())
    share = sum(weights[key].numel() for key in missing) / sum(value.numel() for value in weights.values())
    return (
        f"{len(missing)} of the encoder's {len(weights)} tensors, {share:.1%} of its weights, stay random; one warning"
    )


def of_reading() -> str:
    """Read a data set of which a tenth is broken."""
    broken = [row % 10 == 0 for row in range(1000)]
    dataset = AnotherInstead(broken)
    rows = [dataset[row] for row in range(len(broken))]
    return (
        f"of 1000 samples, 100 of them broken, an epoch returns {len(rows)} without an error: {len(set(rows))} are "
        f"distinct, {sum(row != asked for asked, row in enumerate(rows))} are not what was asked for"
    )


def of_units() -> str:
    """Write a wall 5 m away as the training and the test files of NYU Depth V2 hold it."""
    train, test = round(5 / 10 * 255), 5000  # 8 bits over 10 m; 16 bits in millimetres
    return f"a wall at 5 m is {train / 255:.3f} in training and {test / 65535:.3f} in the test"


def of_choosing() -> str:
    """Choose among equally good checkpoints by the score that is then reported."""
    torch.manual_seed(0)
    test, held_out = torch.randn(2, 2000, 100)  # the noise of a score, of 100 checkpoints, 2000 times over
    biased = test.amin(dim=1).mean()
    honest = test.gather(1, held_out.argmin(dim=1, keepdim=True)).mean()
    return (
        f"of 100 equally good checkpoints the chosen one looks {-biased:.1f} standard deviations better than it is; "
        f"chosen on held-out scenes: {abs(honest):.1f}"
    )


ROWS: dict[str, tuple[str, Callable[[], str]]] = {
    "`masked_shift_and_scale`": ("neither least squares nor median and deviation", of_alignment),
    "`feature_distillation_loss`": ("the mean over all pairs of tokens is blind", of_features),
    "`gradient_preservation_loss`": ("a map of the prediction alone, which rewards blur", of_gradients),
    "`get_contexts_dr`": ("one level, and the upper bound belongs to nobody", of_contexts),
    "`compute_hdn_loss`": ("a mean over contexts instead of pixels", of_means),
    "`strict=False` as a fallback": ("hides a teacher that is mostly random", of_loading),
    "`__getitem__` that catches everything": ("hides broken data", of_reading),
    "depth / 255 and depth / 65535": ("two units, one for training and one for the test", of_units),
    "the best checkpoint by the test split": ("the winner's luck is reported as its skill", of_choosing),
}


def create_parser() -> argparse.ArgumentParser:
    """Return the parser; there is nothing to choose."""
    return argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a Markdown table."""
    create_parser().parse_args(argv)
    print("| snippet | fault | shown by |\n|---|---|---|")
    for snippet, (fault, measure) in ROWS.items():
        print(f"| {snippet} | {fault} | {measure()} |", flush=True)


if __name__ == "__main__":
    run_script(main)
