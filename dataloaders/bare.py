"""What a network takes, from files that belong to no data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dataloaders.readers import Source, read_image, read_wav
from dataloaders.transforms import check_recording, prepare_audio, prepare_rgb, prepare_wave
from errors import DataError


def read_bare(files: Mapping[str, Source], preprocessing: Mapping[str, Any], *, resample: bool) -> dict[str, Tensor]:
    """Read files as a network's training read its own: a batch of one.

    Args:
        files: of ``audio`` and ``rgb``, those that the network takes.
        preprocessing: as its checkpoint keeps it.
        resample: bring other sample rates to 44.1 kHz.

    Returns:
        ``audio`` [1, C, S, S], C of :func:`~dataloaders.transforms.audio_channels`, with the ``waveform`` [1, 2, N]
        that it is made of, and ``rgb`` [1, 3, S, S], turned upright as its EXIF tag says; those that there are.

    Raises:
        DataError: of a file that is broken, or not what it should be, or of a recording that :func:`check_recording`
            refuses; the message names it.
    """
    batch: dict[str, Tensor] = {}
    for key, file in files.items():
        try:
            if key == "audio":
                wave = read_wav(file, resample_to_44100=resample or preprocessing["resample"])
                check_recording(wave, preprocessing)
                wave = prepare_wave(wave, preprocessing)  # [2, N]
                batch["waveform"] = wave[None]
                batch[key] = prepare_audio(wave, preprocessing)[None]  # [1, C, S, S]
            else:
                batch[key] = prepare_rgb(read_image(file, upright=True), preprocessing)[None]  # [1, 3, S, S]
        except DataError as error:
            raise DataError(f"{error}" if str(file) in str(error) else f"{file}: {error}") from None
    return batch
