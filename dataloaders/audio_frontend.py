"""The preprocessing of sound as a network, for files that carry it along: waveforms in, network inputs out.

What ``transforms.prepare_audio`` does through ``torch.stft`` and torchvision's antialiased resize is done here by a
convolution and by products with fixed matrices, which every runtime of exported networks has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from dataloaders.transforms import HOP_LENGTH, N_FFT, WIN_LENGTH, format_magnitude, size_pair
from errors import OptionError

FREQUENCIES = N_FFT // 2 + 1


class AudioFrontEnd(nn.Module):
    """Sound of two ears [B, 2, N] at 44.1 kHz -> network input [B, 2, H, W], as ``transforms.prepare_audio`` makes it.

    Outside of its window of 64 samples a frame of the transform is zero, so the convolution is 64 wide, not 512, and
    the reflected rim 32, not 256. Where the window lies in the frame turns phases alone, which magnitudes do not have.

    Args:
        preprocessing: as a data set exposes it and a checkpoint stores it: ``audio_samples`` (N), ``audio_format``,
            ``image_size``.

    Raises:
        OptionError: the length of the sound is not fixed, or the format is unknown.
    """

    waves: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, preprocessing: Mapping[str, Any]) -> None:
        super().__init__()
        samples = preprocessing["audio_samples"]
        if samples is None:
            raise OptionError("the sound has no fixed number of samples, which the resize of its spectrogram needs")
        self.audio_format = preprocessing["audio_format"]
        height, width = size_pair(preprocessing["image_size"])
        image = format_magnitude(torch.zeros(1, FREQUENCIES, 1 + samples // HOP_LENGTH), self.audio_format)  # [1, F, T]
        self.register_buffer("waves", windowed_waves())  # [514, 1, 64]
        self.register_buffer("rows", resize_matrix(image.shape[1], height))  # [H, F]
        self.register_buffer("columns", resize_matrix(image.shape[2], width).T.contiguous())  # [T, W]

    def forward(self, wave: Tensor) -> Tensor:
        """Return the network's input."""
        ears = wave.flatten(0, 1)[:, None]  # [2B, 1, N]
        padded = nn.functional.pad(ears, (WIN_LENGTH // 2, WIN_LENGTH // 2), mode="reflect")
        real, imaginary = nn.functional.conv1d(padded, self.waves, stride=HOP_LENGTH).chunk(2, dim=1)  # [2B, 257, T]
        image = format_magnitude((real.square() + imaginary.square()).sqrt(), self.audio_format)  # [2B, F, T]
        return (self.rows @ image @ self.columns).unflatten(0, (-1, 2))  # [B, 2, H, W]


def windowed_waves() -> Tensor:
    """Return [514, 1, 64]: the 257 cosines of the Fourier transform under the Hann window, then the 257 sines."""
    window = torch.hann_window(WIN_LENGTH, periodic=True, dtype=torch.float64)
    frequencies = torch.arange(FREQUENCIES, dtype=torch.float64)[:, None]
    angles = 2 * math.pi * frequencies * torch.arange(WIN_LENGTH, dtype=torch.float64) / N_FFT  # [257, 64]
    return torch.cat([window * angles.cos(), window * angles.sin()])[:, None].float()


def resize_matrix(old: int, new: int) -> Tensor:
    """Return [new, old]: the weights of torchvision's antialiased bilinear resize along one side.

    The resize is linear and treats the sides one after the other, so what it makes of the identity is its matrix.
    """
    return F.resize(torch.eye(old, dtype=torch.float64)[None], [new, old], antialias=True)[0].float()
