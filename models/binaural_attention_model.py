"""The binaural student: an encoder for each ear, which ask each other, and a decoder from echoes to metric depth.

Its levels have the shapes of the RGB teacher's, so that either's features can be held against the other's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from errors import OptionError
from models.base import DepthModel, Features
from models.blocks import (
    EARS,
    LEVEL_WIDTHS,
    Decoder,
    Encoder,
    Fuse,
    MetricDepthHead,
    PlaceMixer,
    SpectrogramInput,
    attend,
    heads_of,
    join,
    name_levels,
)

LEVELS = range(1, len(LEVEL_WIDTHS) + 1)
MIXED_LEVELS = (3, 4, 5)  # a grid of 16x16 cells is as fine as they are, or nearly so


class EarAttention(nn.Module):
    """One ear asks the other at the same frequency: own, other [B, C, H, W] -> own [B, C, H, W].

    Each row of the map, one frequency band, is a sequence over time of its own. An echo reaches the two ears within a
    millisecond and in the same band, so what an ear looks for in the other lies on the same row, at nearby times; and
    the cost is that of H sequences of W tokens, H W^2, not (H W)^2: a level of 256x256 has 65,536 positions. Times are
    told apart by rotary angles (Su et al., 2021), which turn queries and keys so that their product depends on the
    difference of their times, at any W.

    Args:
        channels: C, even.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = heads_of(channels)
        self.norm = nn.LayerNorm(channels)
        self.other_norm = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, channels, bias=False)
        self.key_value = nn.Linear(channels, 2 * channels, bias=False)
        self.project = nn.Linear(channels, channels, bias=False)
        # Small, not zero: the ears begin apart, and yet the first step's gradient reaches every weight.
        self.gate = nn.Parameter(torch.full((channels,), 0.1))

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        """Return the own ear's map with what it found in the other's."""
        batch, channels, height, width = own.shape
        # [B, C, H, W] -> [B H, W, C]: a view, where the memory is channels_last
        rows, other_rows = (x.permute(0, 2, 3, 1).reshape(batch * height, width, channels) for x in (own, other))
        query = self.query(self.norm(rows))
        key, value = self.key_value(self.other_norm(other_rows)).chunk(2, dim=-1)
        found = self.project(attend(turn(query, self.heads), turn(key, self.heads), value, self.heads))
        found = (self.gate * found).reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        return own + found


def turn(x: Tensor, heads: int) -> Tensor:
    """Turn the pairs of channels of each head by angles that grow with time: [N, T, C] -> [N, T, C]."""
    size = x.shape[-1] // heads // 2  # pairs in a head
    times = torch.arange(x.shape[1], device=x.device, dtype=torch.float32)
    speeds = 100.0 ** -(torch.arange(size, device=x.device, dtype=torch.float32) / size)
    angles = times[:, None] * speeds  # [T, pairs]
    cos, sin = angles.cos().to(x.dtype)[:, None], angles.sin().to(x.dtype)[:, None]  # [T, 1, pairs]
    a, b = x.unflatten(-1, (heads, 2, size)).unbind(-2)  # [N, T, heads, pairs]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-2).flatten(2)


class BinauralEncoder(nn.Module):
    """An encoder for each ear, which ask each other: what is heard [B, C, H, W] -> five fused levels.

    After each of ``attention_levels`` either ear asks the other (:class:`EarAttention`) and goes on with what it heard;
    a fusion layer joins the two at every level. At the three coarsest levels, learned maps between places turn
    frequency and time into y and x (:class:`~models.blocks.PlaceMixer`).

    With ``share_ears`` both ears have the same weights, as the two networks of Bromley et al. (NeurIPS 1993) have: what
    tells an echo from the chirp is the same at either, and so each learns from the echoes at both. Which of them it
    was, the fusion layers know.

    Maps of both ears, where C is above 2, go through a third encoder, which the fusion layers join to the ears: their
    axes are range and direction (``dataloaders.interaural``), a spectrogram's frequency and time.

    Args:
        base_channels: channels of the first level, b; the others are 2b, 4b, 8b, 8b wide.
        attention_levels: the levels, of 1 to 5, at which the ears ask each other; may be empty.
        compress_input: take the logarithm of the spectrograms first.
        channels: C, of what is heard: a spectrogram of each ear, then maps of both.
        share_ears: one set of weights for both ears, instead of one for each.

    Raises:
        OptionError: an attention level that there is not, ``base_channels`` odd, or ``channels`` below 2.
    """

    def __init__(
        self,
        base_channels: int,
        attention_levels: Sequence[int],
        compress_input: bool,
        channels: int = EARS,
        share_ears: bool = False,
    ) -> None:
        super().__init__()
        if channels < EARS:
            raise OptionError(f"audio_channels is {channels}; two ears need {EARS} at least")
        if base_channels % 2:
            raise OptionError(f"--base_channels {base_channels}: attention over time needs an even number")
        unknown = sorted(set(attention_levels) - set(LEVELS))
        if unknown:
            raise OptionError(f"--attention_levels: there is no level {unknown[0]}; known: 1 to {len(LEVELS)}")
        widths = [base_channels * width for width in LEVEL_WIDTHS]
        self.listen = SpectrogramInput(compress_input, channels)

        def ask() -> nn.ModuleDict:
            return nn.ModuleDict({f"x{i}": EarAttention(widths[i - 1]) for i in sorted(set(attention_levels))})

        self.share_ears = share_ears
        if share_ears:
            self.either = Encoder(1, base_channels)
        else:
            self.left, self.right = Encoder(1, base_channels), Encoder(1, base_channels)
        self.both = Encoder(channels - EARS, base_channels) if channels > EARS else None
        if share_ears:  # after the third encoder, so that a seed still draws the weights that it always drew
            self.either_asks = ask()
        else:
            self.left_asks, self.right_asks = ask(), ask()
        self.fuse = nn.ModuleList(Fuse((3 if self.both else 2) * width, width) for width in widths)
        self.mix = nn.ModuleDict({f"x{i}": PlaceMixer(widths[i - 1]) for i in MIXED_LEVELS})

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the five fused levels, the largest first; the last three are mixed."""
        heard = self.listen(x)
        left, right, maps = heard[:, :1], heard[:, 1:EARS], heard[:, EARS:]  # [B, 1, H, W] each ear
        encoded: list[Tensor] = []
        for index, fuse in enumerate(self.fuse):
            left, right = self.descend(left, right, index)
            found = [left, right]
            if self.both is not None:
                maps = self.both.descend(maps, index)
                found.append(maps)
            fused = fuse(join(*found))
            level = f"x{index + 1}"
            encoded.append(self.mix[level](fused) if level in self.mix else fused)
        return encoded

    def descend(self, left: Tensor, right: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """Return each ear's level ``index`` (from 0) of the one before it, where one has asked the other."""
        level = f"x{index + 1}"
        if self.share_ears:
            each = [left.shape[0], right.shape[0]]
            ears = self.either.descend(torch.cat([left, right]), index)  # [2 B, C, H, W]
            if level in self.either_asks:
                left, right = ears.split(each)
                ears = self.either_asks[level](ears, torch.cat([right, left]))
            left, right = ears.split(each)
            return left, right
        left, right = self.left.descend(left, index), self.right.descend(right, index)
        if level in self.left_asks:
            left, right = self.left_asks[level](left, right), self.right_asks[level](right, left)
        return left, right


class BinauralAttentionDepthNet(DepthModel):
    """Depth from the echoes at two ears; 38 M parameters at ``base_channels=64``, 48 M with maps of both ears.

    A :class:`BinauralEncoder`, from whose levels a decoder rises.

    Args:
        base_channels: channels of the first level, b; the others are 2b, 4b, 8b, 8b wide.
        bilinear: upsample bilinearly; otherwise by learned transposed convolutions.
        max_depth: the depth in metres that the output cannot exceed.
        attention_levels: the levels, of 1 to 5, at which the ears ask each other; may be empty.
        compress_input: take the logarithm of the input first: for magnitudes, not for spectrograms that are
            logarithmic already.
        audio_channels: of what is heard, C: 2, or more where maps of both ears follow their spectrograms.
        share_ears: one set of weights for both ears, instead of one for each.

    The fused encoder levels are ``x1`` [B, b, H, W] to ``x5`` [B, 8b, H/16, W/16]; the decoder's are ``d1``
    [B, 8b, H/8, W/8] to ``d4`` [B, b, H, W].

    Raises:
        OptionError: an attention level that there is not, ``base_channels`` odd, or ``audio_channels`` below 2.
    """

    name = "binaural_attention"
    inputs = ("audio",)
    size_multiple = 16

    def __init__(
        self,
        base_channels: int = 64,
        bilinear: bool = True,
        max_depth: float = 30.0,
        attention_levels: Sequence[int] = (2, 3, 4, 5),
        compress_input: bool = True,
        audio_channels: int = EARS,
        share_ears: bool = False,
    ) -> None:
        super().__init__(
            base_channels=base_channels,
            bilinear=bilinear,
            max_depth=max_depth,
            attention_levels=sorted(set(attention_levels)),
            compress_input=compress_input,
            audio_channels=audio_channels,
            share_ears=share_ears,
        )
        self.encoder = BinauralEncoder(base_channels, attention_levels, compress_input, audio_channels, share_ears)
        self.decoder = Decoder(base_channels, bilinear)
        self.head = MetricDepthHead(base_channels, max_depth)

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Features]:
        """Map what is heard [B, C, H, W] (left, right, maps; H frequency, W time) to depth [B, 1, H, W] in metres.

        H and W are multiples of 16. With ``return_features`` the second value is the dict of levels ``x1``..``x5``,
        ``d1``..``d4``.
        """
        encoded = self.encoder(x)
        decoded = self.decoder(encoded)
        depth = self.head(decoded[-1])  # [B, 1, H, W]
        return (depth, name_levels(encoded, decoded)) if return_features else depth


def create_binaural_attention_model(base_channels: int = 64, **config: Any) -> BinauralAttentionDepthNet:
    """Build the binaural student; ``config`` takes the other arguments of :class:`BinauralAttentionDepthNet`."""
    return BinauralAttentionDepthNet(base_channels=base_channels, **config)
