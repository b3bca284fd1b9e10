"""From what is on disk to what a network takes: sound to spectrograms, depth to metres, pictures to tensors.

Everything here is a pure function. ``prepare_audio`` and ``prepare_rgb`` take the ``preprocessing`` dict that a data
set exposes and a checkpoint stores, so a prediction repeats to the letter what training did.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from dataloaders.interaural import (
    LEAD,
    MAPS,
    chirp,
    compress,
    find_direct_pulse,
    interaural_image,
    scale_echoes,
)
from dataloaders.stft import HOP_LENGTH, N_FFT, SAMPLE_RATE, SPEED_OF_SOUND, WIN_LENGTH
from errors import DataError, OptionError

SPECTROGRAMS = ("spectrogram", "log_spectrogram", "mel")
AUDIO_FORMATS = (*SPECTROGRAMS, "interaural")
EARS = 2

# Samples that a centred transform with reflect padding needs at least.
MIN_SAMPLES = N_FFT // 2 + 1
# The transform of a minute takes a gigabyte; an echo has died away within a second.
MAX_SAMPLES = 60 * SAMPLE_RATE
# No camera of depth sees further: a number above is in millimetres.
MOST_DEPTH = 1000.0  # metres
# Output samples that are resampled at a time: their taps take 20 MB from 48 kHz, and a long recording takes no more.
RESAMPLED_AT_ONCE = 16_384

# A genuine BatVision echo has magnitudes of 1e-3 and less where nothing sounds (its lower quartile), a median of 0.01
# and a peak of 3 to 7. With the floor at 1e-3 the logarithm opens up faint late echoes, not the noise under them.
LOG_FLOOR = 1e-3
# A window of 64 samples resolves 44,100 / 64 = 689 Hz, so the 22 kHz band holds about 32 independent bands.
N_MELS = 32

# How a picture is resized. Depth Anything's networks learnt from cubic ones, those of this house from bilinear ones.
RGB_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

Size = int | tuple[int, int]
Map = TypeVar("Map", np.ndarray, Tensor)


def size_pair(image_size: Size | list[int]) -> tuple[int, int]:
    """Return (height, width) of an image size that is one number (a square) or two."""
    if isinstance(image_size, int):
        return image_size, image_size
    height, width = image_size
    return int(height), int(width)


# ---------------------------------------------------------------------------------------------------------------- depth


def valid_depth(depth: Tensor, min_depth: float = 0.0) -> Tensor:
    """The one rule of validity. Depth of any shape in metres -> bool mask of the same shape.

    A hole is NaN, +inf, -inf, zero, negative, or nearer than ``min_depth``.
    """
    return torch.isfinite(depth) & (depth > 0) & (depth >= min_depth)


def clean_depth(depth: Tensor, max_depth: float, min_depth: float = 0.0, *, beyond: str = "clip") -> Tensor:
    """Set every hole to 0 and deal with what lies beyond ``max_depth``. Metres in, metres out, same shape.

    ``beyond="clip"`` is BatVision's protocol: a far wall counts as ``max_depth``. ``beyond="drop"`` is NYU's, where
    only ``min_depth < d < max_depth`` is valid (8-bit maps saturate at 10 m, so 10 m says "10 or more").
    """
    valid = valid_depth(depth, min_depth)
    if beyond == "drop":
        valid &= (depth < max_depth) & (depth > min_depth)
    return torch.where(valid, depth, torch.zeros_like(depth)).clamp(max=max_depth)


def crop_depth(depth: Map, box: Sequence[float], height: int, width: int) -> Map:
    """Cut out the part of a map [..., H, W] under a box of a picture of ``height`` and ``width``: [..., h, w].

    Whole pixels, at least one: of what lies at the rim, those whose larger part is inside.
    """
    down, across = depth.shape[-2] / height, depth.shape[-1] / width
    left, top, right, bottom = (round(edge * by) for edge, by in zip(box, (across, down, across, down), strict=True))
    left, top = min(left, depth.shape[-1] - 1), min(top, depth.shape[-2] - 1)
    return depth[..., top : max(bottom, top + 1), left : max(right, left + 1)]


def resize_depth(depth: Map, image_size: Size) -> Map:
    """[..., H, W] -> [..., S, S] by nearest-exact: every value was measured, none is blended with a hole.

    A map may be of any type and in any unit: to pick its pixels first and to convert them then is the same, and less.
    """
    height, width = size_pair(image_size)
    if tuple(depth.shape[-2:]) == (height, width):
        return depth
    rows, columns = nearest_pixels(depth.shape[-2], height), nearest_pixels(depth.shape[-1], width)
    return depth[..., rows, :][..., columns]  # [..., S, S]


@lru_cache(maxsize=64)
def nearest_pixels(old: int, new: int) -> np.ndarray:
    """[new] int64: which pixels of a side of ``old`` are taken. What the resize makes of 0, 1, 2, ... says it."""
    places = torch.arange(old, dtype=torch.float32)[None, None]
    return torch.nn.functional.interpolate(places, size=new, mode="nearest-exact")[0, 0].long().numpy()


# ------------------------------------------------------------------------------------------------------------- pictures


def prepare_rgb(
    image: Image.Image, preprocessing: Mapping[str, Any], box: tuple[float, float, float, float] | None = None
) -> Tensor:
    """A picture, of any mode but one channel of more than 8 bits -> [3, S, S] float32 in [0, 1].

    Grey, palette, RGBA and CMYK turn into RGB (alpha is dropped). Resized with antialiasing, bilinearly unless
    ``rgb_filter`` says otherwise; of a ``box`` (left, top, right, bottom; pixels), where one is given.

    Raises:
        DataError: pictures of one channel of more than 8 bits, such as depth maps, which Pillow would cut off at 255
            rather than scale.
    """
    if image.mode.startswith(("I", "F")):
        raise DataError(
            f"a picture in mode {image.mode} (is it a depth map?) is not RGB; convert it to 8 bits a channel"
        )
    height, width = size_pair(preprocessing["image_size"])
    image = image.convert("RGB")
    if box is not None or image.size != (width, height):
        image = image.resize((width, height), RGB_FILTERS[preprocessing.get("rgb_filter", "bilinear")], box=box)
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))  # [S, S, 3]
    return pixels.permute(2, 0, 1).float().div_(255).contiguous()  # [3, S, S]


# ---------------------------------------------------------------------------------------------------------------- audio


def refuse_millimetres(max_depth: float) -> None:
    """Raise an OptionError if a cap is further than anything is measured: it would cut sound to minutes of it."""
    if max_depth > MOST_DEPTH:
        raise OptionError(f"--max_depth {max_depth:g}: metres, not millimetres ({MOST_DEPTH:g} m at most)")


def cut_samples(max_depth: float, sample_rate: int = SAMPLE_RATE) -> int:
    """Samples until the echo of a surface at ``max_depth`` metres is back: int(2 d / 340 * rate), 7782 for 30 m.

    Raises:
        OptionError: so few samples are left that there is no spectrogram of them, or ``max_depth`` is in millimetres.
    """
    refuse_millimetres(max_depth)
    samples = int(2 * max_depth / SPEED_OF_SOUND * sample_rate)
    if samples < MIN_SAMPLES:
        raise OptionError(
            f"--max_depth {max_depth:g} leaves {samples} audio samples, and a spectrogram needs {MIN_SAMPLES}; give "
            f"{math.ceil(MIN_SAMPLES * SPEED_OF_SOUND / 2 / sample_rate)} or more"
        )
    return samples


def prepare_wave(wave: Tensor, preprocessing: Mapping[str, Any]) -> Tensor:
    """Sound of two ears [2, N] at 44.1 kHz -> [2, audio_samples], cut, or filled up with silence; None keeps it whole.

    Raises:
        DataError: the sound holds NaN or infinity, or is too short or too long for a spectrogram.
    """
    if not torch.isfinite(wave).all():
        raise DataError("the sound holds NaN or infinity; record or export it again")
    samples = preprocessing["audio_samples"]
    wave = wave[:, :samples]
    if wave.shape[1] > MAX_SAMPLES:
        raise DataError(f"the sound lasts {wave.shape[1] / SAMPLE_RATE:.0f} s; cut it to the chirp and its echoes")
    if samples is not None:
        wave = torch.nn.functional.pad(wave, (0, max(0, samples - wave.shape[1])))  # [2, samples]
    if wave.shape[1] < MIN_SAMPLES:
        raise DataError(f"the sound has {wave.shape[1]} samples; a spectrogram needs {MIN_SAMPLES} at least")
    return wave


def is_silent(wave: Tensor) -> bool:
    """Return whether nothing sounds in a recording [2, N]: neither ear's pressure ever changes."""
    return bool((wave == wave[:, :1]).all())


def check_recording(wave: Tensor, preprocessing: Mapping[str, Any]) -> None:
    """Make sure that a recording [2, N] at 44.1 kHz, as it was read, has echoes from which to tell depth.

    A network answers to anything. A training takes what its data set holds, and ``check_dataset.py`` lists it; where a
    single recording is asked for its depth, no answer is better than one made of nothing.

    Raises:
        DataError: it is silent, or of what the network hears less than half is there, from the direct pulse on: the
            recording ends too early, or begins too long before the chirp.
    """
    if is_silent(wave):
        raise DataError("the sound is silent; there is no echo to tell depth from")
    heard = check_length(wave, preprocessing)
    count, kept = wave.shape[1], preprocessing["audio_samples"]
    pulse = direct_pulse_of(wave, preprocessing.get("audio_format"))
    begins = max(0, pulse - LEAD)
    if min(count, kept or count) - begins >= heard / 2:
        return
    came, hears, left = (1000 * samples / SAMPLE_RATE for samples in (pulse, heard, count - pulse))
    if count - begins < heard / 2:
        raise DataError(
            f"the sound ends {left:.1f} ms after the chirp (the loudest sound) begins, less than half of the "
            f"{hears:.1f} ms that the network hears; record longer"
        )
    raise DataError(
        f"the chirp (the loudest sound) begins at {came:.1f} ms, and the network hears the first {hears:.1f} ms of a "
        "recording; cut the recording to begin just before it"
    )


def check_length(wave: Tensor, preprocessing: Mapping[str, Any]) -> int:
    """Return how many samples a network hears, of which a recording [2, N] at 44.1 kHz must have half.

    Raises:
        DataError: it has not.
    """
    heard, deepest = preprocessing["audio_samples"], preprocessing.get("max_depth")
    if heard is None:  # the whole recording: then at least what the echoes from there take
        heard = cut_samples(deepest) if deepest else 0
    if wave.shape[1] < heard / 2:
        lasts, hears = (1000 * samples / SAMPLE_RATE for samples in (wave.shape[1], heard))
        raise DataError(
            f"the sound lasts {lasts:.1f} ms, less than half of the {hears:.1f} ms that the network hears "
            f"(echoes from up to {hears / 2000 * SPEED_OF_SOUND:.1f} m); record longer"
        )
    return heard


def direct_pulse_of(wave: Tensor, audio_format: str | None) -> int:
    """Return the sample at which the chirp reaches the ears, in a whole recording [2, N] at 44.1 kHz.

    For ``interaural`` it is the first click that reaches half of the loudest amplitude, once the recording is
    correlated with the chirp. Networks of the other formats may have learnt from another chirp: the first sample that
    does so as it was recorded.
    """
    sound = (wave - wave.mean(dim=1, keepdim=True))[None]  # a converter's offset is no sound
    if audio_format == "interaural":
        sound = compress(sound, chirp()[None, None].to(sound))
    return int(find_direct_pulse(sound))


def prepare_audio(wave: Tensor, preprocessing: Mapping[str, Any]) -> Tensor:
    """Sound of two ears [2, N] at 44.1 kHz -> network input [C, S, S] float32, C of :func:`audio_channels`.

    Where ``audio_samples`` is a number, the sound is first cut to it or filled up to it with silence; None keeps it.

    Raises:
        DataError: the sound holds NaN or infinity, or is too short for a spectrogram.
    """
    wave, (height, width) = prepare_wave(wave, preprocessing), size_pair(preprocessing["image_size"])
    if preprocessing["audio_format"] == "interaural":
        with torch.no_grad():
            return interaural_image(wave.shape[1], height, width, wave.dtype)(wave[None])[0]  # [4, S, S]
    image = spectrogram(wave, preprocessing["audio_format"])  # [2, F, T]
    return F.resize(image, [height, width], antialias=True)  # [2, S, S]


def audio_channels(audio_format: str) -> int:
    """Return the channels of what is heard: a spectrogram of each ear, and of ``interaural`` the maps of both."""
    return EARS + (MAPS if audio_format == "interaural" else 0)


def spectrogram(wave: Tensor, audio_format: str = "spectrogram") -> Tensor:
    """Sound of each ear [2, N] -> time-frequency image [2, F, T], low frequencies first, T = 1 + N // 16.

    The official BatVision baseline's transform: n_fft 512, Hann window of 64, hop 16, centred with reflect padding.
    What is made of its magnitudes, :func:`format_magnitude` says.
    """
    window = torch.hann_window(WIN_LENGTH, periodic=True, dtype=wave.dtype)
    transform = torch.stft(
        wave, N_FFT, HOP_LENGTH, WIN_LENGTH, window, center=True, pad_mode="reflect", return_complex=True
    )
    return format_magnitude(transform.abs(), audio_format)  # [2, F, T]


def format_magnitude(magnitude: Tensor, audio_format: str) -> Tensor:
    """Magnitudes of the short-time Fourier transform [..., 257, T] -> time-frequency image [..., F, T].

    ``spectrogram``: the magnitudes, no decibels, no normalisation, as the official BatVision baseline, F = 257.
    ``log_spectrogram``: log(1 + m / 0.001) / log(1 + 1000): silence is 0, a magnitude of 1 is 1, one of 0.03 is half.
    ``mel``: 32 triangular HTK bands of the power spectrogram, F = 32, compressed likewise with a floor of 1e-6.
    """
    if audio_format == "spectrogram":
        return magnitude
    if audio_format == "log_spectrogram":
        return _log_compress(magnitude, LOG_FLOOR)
    if audio_format == "mel":
        return _log_compress(mel_filters().to(magnitude) @ magnitude.square(), LOG_FLOOR**2)  # [..., 32, T]
    raise OptionError(f"--audio_format {audio_format} is no spectrogram; known: {', '.join(SPECTROGRAMS)}")


def _log_compress(value: Tensor, floor: float) -> Tensor:
    return torch.log1p(value / floor) / math.log1p(1 / floor)


@lru_cache(maxsize=1)
def mel_filters() -> Tensor:
    """[32, 257] triangles of height 1, spaced evenly from 0 Hz to 22,050 Hz on HTK's scale.

    mel(f) = 2595 log10(1 + f / 700), from the HTK Book (Young et al., 2006), section 5.4.
    """
    top = 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700)
    mels = torch.linspace(0, top, N_MELS + 2, dtype=torch.float64)
    corners = 700 * (10 ** (mels / 2595) - 1)  # Hz, [34]
    frequencies = torch.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1, dtype=torch.float64)  # [257]
    left, centre, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising = (frequencies - left) / (centre - left)  # [32, 257]
    falling = (right - frequencies) / (right - centre)
    return torch.minimum(rising, falling).clamp(min=0).float()


def resample(wave: Tensor, rate: int, new_rate: int = SAMPLE_RATE) -> Tensor:
    """Sound [C, N] at ``rate`` -> [C, round(N * new_rate / rate)], band-limited below both Nyquist frequencies.

    Each output sample is a sum over its neighbours under a sinc with a Kaiser window (beta 8.6, 32 zero crossings to a
    side, cut-off at 95 % of the lower Nyquist frequency): Smith, "Digital Audio Resampling", CCRMA.
    """
    if rate == new_rate:
        return wave
    total = round(wave.shape[1] * new_rate / rate)
    starts = range(0, total, RESAMPLED_AT_ONCE)
    parts = [_resample_part(wave, start, min(start + RESAMPLED_AT_ONCE, total), rate, new_rate) for start in starts]
    return torch.cat([wave[:, :0], *parts], dim=1)  # [C, N']


def _resample_part(wave: Tensor, start: int, stop: int, rate: int, new_rate: int) -> Tensor:
    """The output samples from ``start`` to ``stop``: [C, stop - start]."""
    places, weights = _sinc_taps(start, stop, rate, new_rate)  # both [stop - start, taps]
    first, last = int(places[0, 0]), int(places[-1, -1]) + 1
    heard = wave[:, max(first, 0) : last]  # silence before and after
    heard = torch.nn.functional.pad(heard, (max(-first, 0), max(last - wave.shape[1], 0))).double()
    return torch.stack([(ear[places - first] * weights).sum(1) for ear in heard]).to(wave.dtype)


@lru_cache(maxsize=4)
def _sinc_taps(start: int, stop: int, rate: int, new_rate: int) -> tuple[Tensor, Tensor]:
    crossings, beta = 32, 8.6
    cutoff = 0.95 * min(1.0, new_rate / rate)  # of the input's Nyquist frequency
    reach = math.ceil(crossings / cutoff)
    moments = torch.arange(start, stop, dtype=torch.float64) * rate / new_rate  # in input samples
    places = moments.floor().long()[:, None] + torch.arange(-reach + 1, reach + 1)  # [N', taps]
    distance = moments[:, None] - places
    window = torch.special.i0(beta * (1 - (distance / reach).square()).clamp(min=0).sqrt())
    window = window / torch.special.i0(torch.tensor(beta, dtype=torch.float64))
    return places, cutoff * torch.sinc(cutoff * distance) * window


# --------------------------------------------------------------------------------------------------------- augmentation


def augment_sample(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Mirror the scene with probability 1/2 and vary the picture's brightness, contrast and saturation by up to 20 %.

    In a mirrored scene left is right: the picture and the depth map are flipped and the ears change places, together.
    All draws are made whatever modalities are present, so a teacher and a student that load different ones see the
    same view. Local views of the picture (``dataloaders.crops``) go with it. ``mirrored``, a bool, joins the sample.
    """
    mirrored = rng.random() < 0.5
    brightness, contrast, saturation = rng.uniform(0.8, 1.2, size=3).tolist()
    sample = {**sample, "mirrored": torch.tensor(mirrored)}
    for key in {"rgb", "local"} & set(sample):
        rgb = F.adjust_saturation(sample[key], saturation)
        rgb = F.adjust_contrast(rgb, contrast)
        sample[key] = F.adjust_brightness(rgb, brightness)
    if mirrored:
        for key in {"rgb", "local", "depth"} & set(sample):
            sample[key] = sample[key].flip(-1)
        if "audio" in sample:
            sample["audio"] = swap_ears(sample["audio"])
        if "boxes" in sample:
            left, top, right, bottom = sample["boxes"].unbind(dim=-1)  # [N] each
            width = sample["rgb"].shape[-1]
            sample["boxes"] = torch.stack([width - right, top, width - left, bottom], dim=-1)
    return sample


def swap_ears(audio: Tensor) -> Tensor:
    """Return what is heard [..., C, H, W] where left is right: the ears change places, maps of both are mirrored."""
    ears, maps = audio[..., :EARS, :, :], audio[..., EARS:, :, :]
    return torch.cat([ears.flip(-3), maps.flip(-1)], dim=-3)


def scale_scene(sample: dict[str, Any], scale: float, samples: int, max_depth: float) -> dict[str, Any]:
    """Make the scene ``scale`` times as large: echoes come later and weaker, depth grows, a picture stays as it is.

    A camera with a pinhole sees the same. ``scale`` joins the sample, for a teacher that sees to answer in metres of
    the scaled scene. What then lies beyond the cap counts as the cap. Of what was at the cap already, nobody knows how
    far it is: in a larger scene it is beyond the cap all the more, in a smaller one it is a hole, 0.

    Args:
        sample: with ``audio`` in the format ``interaural``.
        scale: above 0.
        samples: of the recording.
        max_depth: the cap, in metres.
    """
    sample = {**sample, "scale": torch.tensor(scale, dtype=torch.float32)}
    sample["audio"] = scale_echoes(sample["audio"], scale, samples)
    if "depth" in sample:
        depth = sample["depth"]
        scaled = (depth * scale).clamp(max=max_depth)
        sample["depth"] = scaled if scale >= 1 else torch.where(depth < max_depth, scaled, 0.0)
    return sample
