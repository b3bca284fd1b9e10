"""The preprocessing of sound as a network, for files that carry it along: waveforms in, network inputs out.

What ``transforms.prepare_audio`` does through ``torch.stft`` and torchvision's antialiased resize is done here by a
convolution and by products with fixed matrices, which every runtime of exported networks has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dataloaders.interaural import InterauralImage
from dataloaders.stft import FREQUENCIES, HOP_LENGTH, resize_matrix, transform, windowed_waves
from dataloaders.transforms import format_magnitude, size_pair
from errors import OptionError


class AudioFrontEnd(nn.Module):
    """Sound of two ears [B, 2, N] at 44.1 kHz -> network input [B, C, H, W], as ``transforms.prepare_audio`` makes it.

    Args:
        preprocessing: as a data set exposes it and a checkpoint stores it: ``audio_samples`` (N), ``audio_format``,
            ``image_size``.

    Raises:
        OptionError: the length of the sound is not fixed, or the format is unknown.
    """

    def __init__(self, preprocessing: Mapping[str, Any]) -> None:
        super().__init__()
        samples, audio_format = preprocessing["audio_samples"], preprocessing["audio_format"]
        if samples is None:
            raise OptionError("the sound has no fixed number of samples, which the resize of its spectrogram needs")
        height, width = size_pair(preprocessing["image_size"])
        self.image: nn.Module = (
            InterauralImage(samples, height, width)
            if audio_format == "interaural"
            else Spectrograms(samples, audio_format, height, width)
        )

    def forward(self, wave: Tensor) -> Tensor:
        """Return the network's input."""
        return self.image(wave)


class Spectrograms(nn.Module):
    """Sound of two ears [B, 2, N] at 44.1 kHz -> a spectrogram of each ear [B, 2, H, W].

    Args:
        samples: N.
        audio_format: one of ``transforms.SPECTROGRAMS``.
        height: H.
        width: W.
    """

    waves: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, samples: int, audio_format: str, height: int, width: int) -> None:
        super().__init__()
        self.audio_format = audio_format
        image = format_magnitude(torch.zeros(1, FREQUENCIES, 1 + samples // HOP_LENGTH), audio_format)  # [1, F, T]
        self.register_buffer("waves", windowed_waves())  # [514, 1, 64]
        self.register_buffer("rows", resize_matrix(image.shape[1], height))  # [H, F]
        self.register_buffer("columns", resize_matrix(image.shape[2], width).T.contiguous())  # [T, W]

    def forward(self, wave: Tensor) -> Tensor:
        """Return the network's input."""
        cosines, sines = transform(wave.flatten(0, 1), self.waves)  # [2B, 257, T] each
        image = format_magnitude((cosines.square() + sines.square()).sqrt(), self.audio_format)  # [2B, F, T]
        return (self.rows @ image @ self.columns).unflatten(0, (-1, 2))  # [B, 2, H, W]
