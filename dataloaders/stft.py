"""The short-time Fourier transform as a convolution, and resizing as products with fixed matrices.

Both are linear, so that every runtime of exported networks has what they take.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

SAMPLE_RATE = 44_100  # Hz, of every BatVision recording
SPEED_OF_SOUND = 340.0  # m/s, as the official baseline rounds it

# The official baseline's short-time Fourier transform.
N_FFT, WIN_LENGTH, HOP_LENGTH = 512, 64, 16
FREQUENCIES = N_FFT // 2 + 1


def windowed_waves() -> Tensor:
    """Return [514, 1, 64]: the 257 cosines of the Fourier transform under the Hann window, then the 257 sines."""
    window = torch.hann_window(WIN_LENGTH, periodic=True, dtype=torch.float64)
    frequencies = torch.arange(FREQUENCIES, dtype=torch.float64)[:, None]
    angles = 2 * math.pi * frequencies * torch.arange(WIN_LENGTH, dtype=torch.float64) / N_FFT  # [257, 64]
    return torch.cat([window * angles.cos(), window * angles.sin()])[:, None].float()


def transform(wave: Tensor, waves: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosine and the sine parts [B, 257, T] of sound [B, N], T = 1 + N // 16, reflected at its ends.

    Outside of its window of 64 samples a frame is zero, so the convolution is 64 wide, not 512, and the reflected rim
    32, not 256. Where the window lies in the frame turns the phases alone, those of both ears alike.

    Args:
        wave: [B, N].
        waves: of :func:`windowed_waves`.
    """
    padded = nn.functional.pad(wave[:, None], (WIN_LENGTH // 2, WIN_LENGTH // 2), mode="reflect")
    cosines, sines = nn.functional.conv1d(padded, waves, stride=HOP_LENGTH).chunk(2, dim=1)
    return cosines, sines


def resize_matrix(old: int, new: int) -> Tensor:
    """Return [new, old]: the weights of torchvision's antialiased bilinear resize along one side.

    The resize is linear and treats the sides one after the other, so what it makes of the identity is its matrix.
    """
    return F.resize(torch.eye(old, dtype=torch.float64)[None], [new, old], antialias=True)[0].float()
