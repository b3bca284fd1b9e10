"""Depth Anything V2: a DINOv2 transformer that looks and a DPT head that draws; disparity from one picture.

After Yang et al., "Depth Anything V2", NeurIPS 2024. The parts bear the names of the published weights, which load as
they are; the transformer is timm's, which has the same names. Distill-Any-Depth's networks are of this kind too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from errors import CheckpointError, OptionError
from models.base import DepthModel, Features
from models.blocks import resize_by
from models.depth_anything_files import canonical_keys
from models.weights import load_strictly, read_weights

PATCH = 14  # side of the square that becomes one token, in pixels
HIDDEN = 32  # channels of the last map at the picture's size


@dataclass(frozen=True)
class Preset:
    """The sizes of a network.

    Attributes:
        width: of a token.
        depth: number of the transformer's blocks.
        heads: of its attention.
        taps: the blocks, from 0, whose tokens go to the head; the last of them is the last block.
        features: channels of the head's fusion path.
        channels: of the four taps on their way there.
        grid: side of the square of learned positions, in patches.
    """

    width: int
    depth: int
    heads: int
    taps: tuple[int, int, int, int]
    features: int
    channels: tuple[int, int, int, int]
    grid: int = 37  # 518 pixels


# tiny and mini have no published weights. They are for tests and for CPUs: all that the others have, positions of their
# own for 112 pixels, and a training step of 16 such pictures with tiny in well under a second on one core. A mini can
# teach a tiny.
PRESETS = {
    "tiny": Preset(64, 4, 4, (0, 1, 2, 3), 32, (16, 32, 64, 64), grid=8),
    "mini": Preset(128, 8, 4, (1, 3, 5, 7), 64, (32, 64, 128, 128), grid=8),
    "vits": Preset(384, 12, 6, (2, 5, 8, 11), 64, (48, 96, 192, 384)),
    "vitb": Preset(768, 12, 12, (2, 5, 8, 11), 128, (96, 192, 384, 768)),
    "vitl": Preset(1024, 24, 16, (4, 11, 17, 23), 256, (256, 512, 1024, 1024)),
}
ALIASES = {"depthanything-small": "vits", "depthanything-base": "vitb", "depthanything-large": "vitl"}


def find_preset(name: str) -> str:
    """Return the key in ``PRESETS`` of a preset or of an alias; :class:`errors.OptionError` lists the known ones."""
    preset = ALIASES.get(name, name)
    if preset not in PRESETS:
        raise OptionError(f"there is no Depth Anything {name!r}; known are {', '.join([*PRESETS, *ALIASES])}")
    return preset


class ResidualUnit(nn.Module):
    """x + two 3x3 convolutions of it, a ReLU before each: [B, F, H, W] -> [B, F, H, W]."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Fusion(nn.Module):
    """One step of the path from coarse to fine: [B, F, h, w], a level of that size -> [B, F, H, W]."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.resConfUnit1 = ResidualUnit(features)
        self.resConfUnit2 = ResidualUnit(features)
        self.out_conv = nn.Conv2d(features, features, 1)

    def forward(self, x: Tensor, level: Tensor | None, size: Sequence[int]) -> Tensor:
        """Add a level to the path, if there is one, and enlarge it to ``size``."""
        if level is not None:
            x = x + self.resConfUnit1(level)
        x = self.resConfUnit2(x)
        x = F.interpolate(x, tuple(size), mode="bilinear", align_corners=True)  # [B, F, H, W]
        return self.out_conv(x)


class DPTHead(nn.Module):
    """Four maps of tokens -> disparity. After Ranftl et al., "Vision Transformers for Dense Prediction", ICCV 2021.

    Args:
        width: channels of the maps.
        features: of the fusion path, F.
        channels: of the four maps, once projected.
    """

    scratch: Any  # by name: layer{i}_rn, refinenet{i}, output_conv{i}

    def __init__(self, width: int, features: int, channels: Sequence[int]) -> None:
        super().__init__()
        first, second, _, last = channels
        self.projects = nn.ModuleList(nn.Conv2d(width, number, 1) for number in channels)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(first, first, 4, stride=4),
                nn.ConvTranspose2d(second, second, 2, stride=2),
                nn.Identity(),
                nn.Conv2d(last, last, 3, stride=2, padding=1),
            ]
        )
        narrow = {f"layer{i}_rn": nn.Conv2d(n, features, 3, padding=1, bias=False) for i, n in enumerate(channels, 1)}
        fuse = {f"refinenet{i}": Fusion(features) for i in range(1, 5)}
        output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        output_conv2 = nn.Sequential(
            nn.Conv2d(features // 2, HIDDEN, 3, padding=1), nn.ReLU(), nn.Conv2d(HIDDEN, 1, 1), nn.ReLU()
        )
        nn.init.ones_(output_conv2[2].bias)  # type: ignore[arg-type]  # a ReLU that is 0 everywhere would never learn
        # The coarsest step has no level to add: this unit stands in the files and takes no part.
        fuse["refinenet4"].resConfUnit1.requires_grad_(False)
        self.scratch = nn.ModuleDict({**narrow, **fuse, "output_conv1": output_conv1, "output_conv2": output_conv2})

    def forward(self, taps: Sequence[Tensor], size: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """Return disparity [B, 1, H, W] and the four steps of the fusion path, the coarsest first.

        Args:
            taps: maps [B, C, h, w], h = H / 14 and w = W / 14.
            size: H and W.
        """
        parts = self.scratch
        one, two, three, four = (
            parts[f"layer{i}_rn"](resize(project(tap)))
            for i, (tap, project, resize) in enumerate(zip(taps, self.projects, self.resize_layers, strict=True), 1)
        )  # [B, F, 4h, 4w], [B, F, 2h, 2w], [B, F, h, w], [B, F, h/2, w/2] (rounded up)
        d1 = parts["refinenet4"](four, None, three.shape[-2:])  # [B, F, h, w]
        d2 = parts["refinenet3"](d1, three, two.shape[-2:])  # [B, F, 2h, 2w]
        d3 = parts["refinenet2"](d2, two, one.shape[-2:])  # [B, F, 4h, 4w]
        d4 = parts["refinenet1"](d3, one, [2 * side for side in one.shape[-2:]])  # [B, F, 8h, 8w]
        x = parts["output_conv1"](d4)  # [B, F/2, 8h, 8w]
        x = F.interpolate(x, tuple(size), mode="bilinear", align_corners=True)  # [B, F/2, H, W]
        x = parts["output_conv2"][:2](x)  # [B, 32, H, W]
        with torch.autocast(x.device.type, enabled=False):  # in bfloat16 neighbouring disparities would be 0.4 % apart
            return parts["output_conv2"][2:](x.float()), [d1, d2, d3, d4]  # [B, 1, H, W]


class DepthAnything(DepthModel):
    """Disparity >= 0 from one picture, of unknown scale and shift: large is near.

    24.8, 97.5 and 335.3 M parameters (``vits``, ``vitb``, ``vitl``), 0.5 M in ``tiny``. Two never get a
    gradient, since the output does not depend on them, and do not train: ``pretrained.mask_token`` and
    ``depth_head.scratch.refinenet4.resConfUnit1``.

    Args:
        preset: a key of ``PRESETS`` or of ``ALIASES``.

    The features are ``t1``..``t4`` [B, C, H/14, W/14], the normed tokens of the four tapped blocks, ``t4`` the last;
    and ``d1`` [B, F, H/14, W/14] to ``d4`` [B, F, 8H/14, 8W/14], the steps of the head's fusion path.

    Raises:
        OptionError: an unknown preset.
    """

    name = "depth_anything"
    inputs = ("rgb",)
    output = "disparity"
    size_multiple = PATCH
    imagenet_normalize = True

    def __init__(self, preset: str = "vits") -> None:
        from timm.models.vision_transformer import VisionTransformer  # here: it takes seconds to import

        preset = find_preset(preset)
        super().__init__(preset=preset)
        sizes = PRESETS[preset]
        self.taps = sizes.taps
        self.grid = sizes.grid
        self.checkpointed = False
        self.pretrained: Any = VisionTransformer(
            img_size=PATCH * sizes.grid,
            patch_size=PATCH,
            embed_dim=sizes.width,
            depth=sizes.depth,
            num_heads=sizes.heads,
            init_values=1.0,
            num_classes=0,
            dynamic_img_size=True,
        )
        self.pretrained.mask_token = nn.Parameter(torch.zeros(1, sizes.width), requires_grad=False)
        self.depth_head = DPTHead(sizes.width, sizes.features, sizes.channels)

    def checkpoint_gradients(self, on: bool = True) -> None:
        """Keep the blocks' inputs alone for the backward pass and compute the rest again: less memory, same result."""
        self.checkpointed = on

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Features]:
        """Map RGB [B, 3, H, W], normalised as ImageNet's, to disparity [B, 1, H, W] >= 0.

        With ``return_features`` the second value is the dict of ``t1``..``t4`` and ``d1``..``d4``.

        Raises:
            OptionError: H or W is not a multiple of 14, or below 28.
        """
        for side in x.shape[-2:]:
            self.check_image_size(side)
        taps = self.look(x)
        disparity, path = self.depth_head(taps, x.shape[-2:])  # [B, 1, H, W]
        if not return_features:
            return disparity
        named = {f"t{i}": tap for i, tap in enumerate(taps, start=1)}
        return disparity, named | {f"d{i}": step for i, step in enumerate(path, start=1)}

    def look(self, x: Tensor) -> list[Tensor]:
        """Return the normed patch tokens of the tapped blocks as maps [B, C, H/14, W/14]."""
        vit = self.pretrained
        patches = vit.patch_embed(x)  # [B, h, w, C]
        rows, columns = patches.shape[1:3]
        tokens = torch.cat([vit.cls_token.expand(x.shape[0], -1, -1), patches.flatten(1, 2)], dim=1)  # [B, 1 + hw, C]
        tokens = tokens + self.positions(rows, columns).to(tokens.dtype)
        taps = []
        for index, block in enumerate(vit.blocks):
            tokens = recompute(block, tokens, use_reentrant=False) if self.checkpointed else block(tokens)
            if index in self.taps:
                tap = vit.norm(tokens)[:, 1:]  # [B, hw, C], without the class token
                taps.append(tap.transpose(1, 2).unflatten(2, (rows, columns)))  # [B, C, h, w]
        return taps

    def positions(self, rows: int, columns: int) -> Tensor:
        """Return the embedding of the positions of a grid of patches, the class token's first: [1, 1 + hw, C].

        On another grid than the learned one they are interpolated, by :func:`position_weights`.
        """
        learned = self.pretrained.pos_embed  # [1, 1 + GG, C]
        if rows == columns == self.grid:
            return learned
        square = learned[:, 1:].float().transpose(1, 2).unflatten(2, (self.grid, self.grid))  # [1, C, G, G]
        with torch.autocast(square.device.type, enabled=False):
            resized = resize_by(position_weights, square, rows, columns)  # [1, C, h, w]
        return torch.cat([learned[:, :1].float(), resized.flatten(2).transpose(1, 2)], dim=1)


def position_weights(learned: int, wanted: int) -> Tensor:
    """Return [learned, wanted] weights that interpolate the positions of a row of patches to another number of them.

    As the published networks were trained: bicubically, without antialias, by the factor (wanted + 0.1) / learned. The
    0.1 is in the factor as well as in the size, so that neither the exact factor nor timm's own resize gives these
    positions.
    """
    each = torch.eye(learned)[None, :, :, None]  # the answer to each patch alone: [1, learned, learned, 1]
    return F.interpolate(each, scale_factor=((wanted + 0.1) / learned, 1.0), mode="bicubic")[0, :, :, 0]


def create_depth_anything_model(preset: str, checkpoint: str | Path | None = None) -> DepthAnything:
    """Build the network, with random weights or with those of a file in any of the published forms.

    Args:
        preset: a key of ``PRESETS`` or of ``ALIASES``.
        checkpoint: a file (see ``models.depth_anything_files``), loaded strictly.

    Raises:
        OptionError: an unknown preset.
        CheckpointError: the file is missing, damaged, or not of this network; it names the tensors.
    """
    if checkpoint is None:
        return DepthAnything(preset)
    path = Path(checkpoint)
    weights, _ = read_weights(path)
    return restore_depth_anything(canonical_keys(weights, path), path, preset)


def restore_depth_anything(weights: Mapping[str, Tensor], path: Path, preset: str | None = None) -> DepthAnything:
    """Build the network of a file's canonical weights, in eval mode; None takes the preset of their shapes.

    Raises:
        OptionError: an unknown preset.
        CheckpointError: the weights are of another network; it names the tensors.
    """
    with torch.device("meta"):  # no weights are drawn only to be replaced
        model = DepthAnything(preset or preset_of(weights, path))
    model.to_empty(device="cpu")
    load_strictly(model, weights, path)
    return model.eval()


def preset_of(weights: Mapping[str, Tensor], path: Path) -> str:
    """Return the preset that a file's canonical weights belong to, from their width and their number of blocks.

    Raises:
        CheckpointError: they are of no network of this kind.
    """
    key = "pretrained.patch_embed.proj.weight"
    blocks = {int(found[1]) for name in weights if (found := re.match(r"pretrained\.blocks\.(\d+)\.", name))}
    if key not in weights or not blocks:
        raise CheckpointError(
            f"{path}: holds no Depth Anything network: {key} or all blocks are missing; name a "
            "checkpoint of a training script, or a file in which Depth Anything is published"
        )
    width, depth = len(weights[key]), 1 + max(blocks)
    known = {(sizes.width, sizes.depth): preset for preset, sizes in PRESETS.items()}
    if (width, depth) not in known:
        sizes = ", ".join(f"{preset} {w} x {d}" for (w, d), preset in known.items())
        raise CheckpointError(f"{path}: holds a network of width {width} and depth {depth}; known are {sizes}")
    return known[width, depth]
