"""Echoes as two ears hear them together: how far, at which pitch, and from which side.

A spectrogram has no phase, and with it goes most of what tells left from right: a sound from the side reaches the far
ear at most 0.6 ms, 26 samples, later. Here the chirp is taken out of the recording first, so that an echo is a click
and not 3 ms long, and then each frame of the two ears is correlated. What comes out is a picture with the range
downwards and the direction across: a surface stands in the column in which the camera sees it, near enough.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from dataloaders.stft import (
    FREQUENCIES,
    HOP_LENGTH,
    SAMPLE_RATE,
    SPEED_OF_SOUND,
    resize_matrix,
    transform,
    windowed_waves,
)

# BatVision's chirp (Brunetto et al., IROS 2023), and the simulator's: a linear sweep, faded in and out.
CHIRP_SECONDS, CHIRP_LOW, CHIRP_HIGH, CHIRP_FADE = 0.003, 20.0, 20_000.0, 0.0002
# Between the ears. A sound from exactly one side is that much earlier at that ear; lags beyond hold nothing.
EAR_DISTANCE = 0.2  # metres
# Below, a wave is far longer than a head is wide and says little of sides; above, there is no chirp. Divided where the
# head begins to cast a shadow.
BANDS = ((200.0, 4000.0), (4000.0, 20_000.0))  # Hz
LEAD = 32  # samples that are kept before the direct pulse, with which time begins
FAINT = 0.001  # -30 dB
# Of the direct pulse, whose amplitude is 1: about where echoes drown in noise. Logarithms open up what is above.
EAR_FLOOR, MAP_FLOOR = 0.03, 0.09
MAPS = len(BANDS)


class InterauralImage(nn.Module):
    """Sound of two ears [B, 2, N] at 44.1 kHz -> [B, 4, H, W]: what each ear hears, and from where it comes.

    1. Pulse compression: the recording is correlated with the chirp that was sent (Klauder et al., "The theory and
       design of chirp radars", 1960).
    2. Time begins with the direct pulse, the first to reach half of the loudest amplitude, whenever within the N
       samples it comes. What it comes late by is missing at the far end, where silence follows: 287 samples, as
       BatVision's, are the last 1.1 m of the range.
    3. Each frequency is divided by what the direct pulse has of it, whatever loudspeaker, microphones and volume make
       of a chirp: the direct pulse is 1 at all frequencies, but for those of which it has next to nothing.
    4. Channels 0 and 1: log(1 + m / 0.03) of the spectrogram of the left and the right ear, frequency by time.
    5. Channels 2 and 3: the cross-correlation of the two ears within each frame (Knapp and Carter, "The generalized
       correlation method for estimation of time delay", 1976), range by lag, below and above 4 kHz. Time goes down,
       the lag from where the left ear is 0.59 ms ahead to where the right one is. Values keep their sign:
       sign(c) log(1 + |c| / 0.09).

    All of it are convolutions and products with fixed matrices, which exported networks have too.

    Args:
        samples: N.
        height: H.
        width: W.
    """

    chirp: Tensor
    waves: Tensor
    frequencies: Tensor
    frames: Tensor
    ranges: Tensor
    lags: Tensor

    def __init__(self, samples: int, height: int, width: int) -> None:
        super().__init__()
        count = 1 + samples // HOP_LENGTH
        self.register_buffer("chirp", chirp()[None, None])  # [1, 1, 132]
        self.register_buffer("waves", windowed_waves())  # [514, 1, 64]
        self.register_buffer("frequencies", resize_matrix(FREQUENCIES, height))  # [H, F]
        self.register_buffer("frames", resize_matrix(count, width).T.contiguous())  # [T, W]
        self.register_buffer("ranges", resize_matrix(count, height))  # [H, T]
        self.register_buffer("lags", lag_waves(width))  # [K W, 2 F]

    def forward(self, wave: Tensor) -> Tensor:
        """Return the image."""
        echoes = begin_with_direct_pulse(self.compress(wave))  # [B, 2, N]
        cosines, sines = (part.unflatten(0, (-1, 2)) for part in transform(echoes.flatten(0, 1), self.waves))
        cosines, sines = whiten(cosines, sines)  # [B, 2, F, T] each
        magnitude = (cosines.square() + sines.square()).sqrt()  # [B, 2, F, T]
        ears = open_up(self.frequencies @ magnitude @ self.frames / EAR_FLOOR)  # [B, 2, H, W]

        (left_cos, right_cos), (left_sin, right_sin) = cosines.unbind(1), sines.unbind(1)  # [B, F, T] each
        real = left_cos * right_cos + left_sin * right_sin
        imaginary = left_cos * right_sin - left_sin * right_cos  # of left times the conjugate of right
        correlation = self.lags @ torch.cat([real, imaginary], dim=1)  # [B, K W, T]
        correlation = correlation.unflatten(1, (MAPS, -1)).transpose(2, 3)  # [B, K, T, W]
        maps = self.ranges @ (correlation.sign() * open_up(correlation.abs() / MAP_FLOOR))  # [B, K, H, W]
        return torch.cat([ears, maps], dim=1)

    def compress(self, wave: Tensor) -> Tensor:
        """Correlate with the chirp: [B, 2, N] -> [B, 2, N], where an echo is a click at which it begins."""
        return compress(wave, self.chirp)


def chirp() -> Tensor:
    """Return the chirp that BatVision's robot sends, at 44.1 kHz: [132], of energy 1."""
    time = torch.arange(round(CHIRP_SECONDS * SAMPLE_RATE), dtype=torch.float64) / SAMPLE_RATE
    sweep = CHIRP_LOW + (CHIRP_HIGH - CHIRP_LOW) * time / (2 * CHIRP_SECONDS)
    sound = torch.sin(2 * math.pi * sweep * time) * (torch.minimum(time, time.flip(0)) / CHIRP_FADE).clamp(max=1)
    return (sound / sound.square().sum().sqrt()).float()


def compress(wave: Tensor, pulse: Tensor) -> Tensor:
    """Correlate sound [B, 2, N] with a pulse [1, 1, K]: [B, 2, N], where an echo of it is a click where it begins."""
    padded = nn.functional.pad(wave.flatten(0, 1)[:, None], (0, pulse.shape[-1] - 1))
    return nn.functional.conv1d(padded, pulse)[:, 0].unflatten(0, (-1, 2))


def find_direct_pulse(echoes: Tensor) -> Tensor:
    """Return [B, 1] int64: the first sample of [B, 2, N] whose energy, of both ears, is a quarter of the highest.

    From a loudspeaker between the ears, sound comes first and loudest on the direct way.
    """
    energy = echoes.square().sum(dim=1)  # [B, N]
    return (energy >= energy.amax(dim=1, keepdim=True) / 4).float().argmax(dim=1, keepdim=True)


def begin_with_direct_pulse(echoes: Tensor) -> Tensor:
    """Shift [B, 2, N] until the direct pulse is at sample 32, in the middle of the third frame.

    What comes earlier is dropped, zeros follow the end.
    """
    count = echoes.shape[-1]
    places = find_direct_pulse(echoes) - LEAD + torch.arange(count, device=echoes.device)  # [B, N]
    there = (places >= 0) & (places < count)
    places = places.clamp(0, count - 1)[:, None].expand(-1, 2, -1)  # [B, 2, N]
    return torch.where(there[:, None], echoes.gather(2, places), 0.0)


def whiten(cosines: Tensor, sines: Tensor) -> tuple[Tensor, Tensor]:
    """Divide the parts of a transform [B, 2, F, T] by the direct pulse's amplitude at each frequency, of both ears.

    Under ``FAINT`` of its mean power, a frequency is hardly in it and would be noise: there less is divided. Silence
    stays silence.
    """
    frame = LEAD // HOP_LENGTH
    power = (cosines[..., frame].square() + sines[..., frame].square()).mean(dim=1)  # [B, F]
    power = power + FAINT * power.mean(dim=1, keepdim=True)
    gain = power.clamp(min=1e-20).rsqrt()[:, None, :, None]
    return cosines * gain, sines * gain


def open_up(level: Tensor) -> Tensor:
    """log(1 + level) of levels from 0 on. On a CPU ``log1p`` takes ten times as long, for digits beyond the noise's."""
    return torch.log(1 + level)


def lag_waves(width: int) -> Tensor:
    """Return [2 W, 514]: what turns the cross-spectrum (real parts, then imaginary ones) into correlations by lag.

    Row k W + j is the correlation in band k at the j-th of W lags, the mean over the band's frequencies: the inverse
    Fourier transform at lags between samples. Of a sound from the left the left ear is ahead, and j is small.
    """
    frequencies = torch.arange(FREQUENCIES, dtype=torch.float64) * SAMPLE_RATE / 2 / (FREQUENCIES - 1)  # Hz
    lags = torch.linspace(-1, 1, width, dtype=torch.float64) * EAR_DISTANCE / SPEED_OF_SOUND  # seconds, [W]
    angles = 2 * math.pi * lags[:, None] * frequencies  # [W, F]
    rows = []
    for low, high in BANDS:
        inside = ((frequencies >= low) & (frequencies < high)).double()
        rows.append(torch.cat([angles.cos(), -angles.sin()], dim=1) * inside.repeat(2) / inside.sum())
    return torch.cat(rows).float()


@lru_cache(maxsize=8)
def interaural_image(samples: int, height: int, width: int, dtype: torch.dtype) -> InterauralImage:
    """Return :class:`InterauralImage` of a size, kept for the next recording of that length."""
    return InterauralImage(samples, height, width).to(dtype)


# ----------------------------------------------------------------------------------------------- scenes of another size


def scale_echoes(image: Tensor, scale: float, samples: int) -> Tensor:
    """Return what :class:`InterauralImage` gives of the same scene, ``scale`` times as large: [4, H, W] -> [4, H, W].

    Every way is ``scale`` times as long: echoes come that much later, and, as 1 / distance, weaker. From where they
    come stays as it is. What lies beyond the end of the recording cannot be known: its last frame is repeated.

    Args:
        image: of :class:`InterauralImage`.
        scale: above 0.
        samples: of the recording, N.
    """
    ears = stretch(image[:2], scale, samples, dim=-1)
    maps = stretch(image[2:], scale, samples, dim=-2)
    return torch.cat([_weaken(ears, scale), maps.sign() * _weaken(maps.abs(), scale**2)])


def _weaken(image: Tensor, divisor: float) -> Tensor:
    """Divide what :func:`open_up` was given."""
    return open_up((torch.exp(image) - 1) / divisor)


def stretch(image: Tensor, scale: float, samples: int, dim: int) -> Tensor:
    """Stretch time, which runs along ``dim`` of an image of a recording of N ``samples``, from the direct pulse on."""
    size = image.shape[dim]
    start = (LEAD / HOP_LENGTH + 0.5) * size / (1 + samples // HOP_LENGTH) - 0.5  # the place of the direct pulse
    source = (start + (torch.arange(size) - start) / scale).clamp(0, size - 1)
    before = source.floor().long().clamp(max=size - 2)
    share = (source - before).to(image)
    if dim == -2:
        share = share[:, None]
    return image.index_select(dim, before) * (1 - share) + image.index_select(dim, before + 1) * share
