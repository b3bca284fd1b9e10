"""BatVision's baseline: the U-Net of pix2pix from the spectrograms of two ears to metric depth."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errors import OptionError
from models.base import DepthModel, Features
from models.blocks import EARS, join, to_metres

SMALLEST = 32


class UNetBaseline(DepthModel):
    """``unet_256`` of pix2pix (Isola et al., CVPR 2017), as BatVision trains it; 54.4 M parameters at 64 and 256x256.

    Each level halves the size by a 4x4 convolution of stride 2, down to 1x1, and a transposed one doubles it again; the
    levels of equal size are joined. Batch norm, no dropout, weights drawn from N(0, 0.02). The sigmoid's output is a
    share of ``max_depth``. Brunetto et al., IROS 2023, take 64 channels and magnitudes as they are. The first and the
    last level down have a bias each, which pix2pix's lack: 576 parameters more, at 64 channels.

    Args:
        base_channels: channels of the first level, b; the others are 2b, 4b and then 8b wide.
        image_size: side of the input, a power of two from 32 on; it decides the number of levels, 8 for 256.
        max_depth: the depth in metres that the output cannot exceed.
        audio_channels: of what is heard: 2 spectrograms, as published, or more where maps of both ears follow.

    The features are ``e1`` [B, b, H/2, W/2] to the last ``e`` [B, 8b, 1, 1] on the way down, and ``u1`` [B, 8b, 2, 2]
    upwards.

    Raises:
        OptionError: ``image_size`` is not a power of two from 32 on.
    """

    name = "unet_baseline"
    inputs = ("audio",)

    def __init__(
        self, base_channels: int = 64, image_size: int = 256, max_depth: float = 30.0, audio_channels: int = EARS
    ) -> None:
        super().__init__(
            base_channels=base_channels, image_size=image_size, max_depth=max_depth, audio_channels=audio_channels
        )
        self.check_image_size(image_size)
        self.size_multiple = image_size // 2  # type: ignore[misc]  # twice that is the one size it takes
        self.max_depth: Tensor
        self.register_buffer("max_depth", torch.tensor(float(max_depth)))
        levels = image_size.bit_length() - 1
        widths = [audio_channels, *(base_channels * min(2**i, 8) for i in range(levels))]  # of the input, e1, e2, ...
        self.down = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], 4, stride=2, padding=1, bias=i in (0, levels - 1))
            for i in range(levels)
        )
        # Neither the first level nor the last has a norm: of one value at 1x1 there is no deviation.
        self.down_norms = nn.ModuleList(
            nn.BatchNorm2d(widths[i + 1]) if 0 < i < levels - 1 else nn.Identity() for i in range(levels)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(
                widths[i + 1] * (1 if i == levels - 1 else 2), widths[i], 4, stride=2, padding=1, bias=False
            )
            for i in reversed(range(1, levels))
        )
        self.up_norms = nn.ModuleList(nn.BatchNorm2d(widths[i]) for i in reversed(range(1, levels)))
        self.project = nn.ConvTranspose2d(2 * base_channels, 1, 4, stride=2, padding=1)
        self.apply(_draw_weights)

    def check_image_size(self, image_size: int) -> None:
        """Raise :class:`errors.OptionError` unless ``image_size`` [pixels] is the one that it was built for."""
        built_for = self.config["image_size"]
        if image_size < SMALLEST or image_size & (image_size - 1):
            below = max(SMALLEST, 2 ** (max(image_size, 1).bit_length() - 1))
            nearest = f"{below} or {2 * below}" if image_size > SMALLEST else f"{SMALLEST}"
            raise OptionError(
                f"--image_size {image_size}: {self.name} takes powers of two from {SMALLEST} on; use {nearest}"
            )
        if image_size != built_for:
            raise OptionError(f"--image_size {image_size}: this {self.name} was built for {built_for}; use {built_for}")

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Features]:
        """Map what is heard [B, C, S, S] (left, right, maps) to depth [B, 1, S, S] in metres.

        C is ``audio_channels``, S ``image_size``. With ``return_features`` the second value is the dict of levels
        ``e1``, ``e2``, ... and ``u1``, ``u2``, ...
        """
        encoded: list[Tensor] = []
        for index, (down, norm) in enumerate(zip(self.down, self.down_norms, strict=True)):
            x = norm(down(F.leaky_relu(x, 0.2) if index else x))
            encoded.append(x)
        decoded: list[Tensor] = []
        for up, norm, skip in zip(self.up, self.up_norms, reversed(encoded[:-1]), strict=True):
            x = norm(up(F.relu(x)))
            decoded.append(x)
            x = join(skip, x)
        with torch.autocast(x.device.type, enabled=False):  # in bfloat16 neighbouring depths would be 0.4 % apart
            depth = to_metres(self.project(F.relu(x.float())), self.max_depth)  # [B, 1, S, S]
        if not return_features:
            return depth
        features = {f"e{i}": level for i, level in enumerate(encoded, start=1)}
        return depth, features | {f"u{i}": level for i, level in enumerate(decoded, start=1)}


def _draw_weights(module: nn.Module) -> None:
    """Draw a module's weights as pix2pix does."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
