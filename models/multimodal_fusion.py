"""Seeing and hearing together: what a network reaches that has the picture in use, and not only in training."""

from __future__ import annotations

from torch import Tensor

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
    join,
    name_levels,
)


class MultiModalFusionNet(DepthModel):
    """The RGB teacher's U-Net, whose last level also hears; 30.7 M parameters at ``base_channels=64``.

    The picture's levels lie on the depth map pixel by pixel, the spectrogram's do not: the echoes join at the last
    level alone, after a learned map from the spectrogram's places to the picture's.

    Args:
        base_channels: channels of the first level, b; the others are 2b, 4b, 8b, 8b wide.
        bilinear: upsample bilinearly; otherwise by learned transposed convolutions.
        max_depth: the depth in metres that the output cannot exceed.
        compress_input: take the logarithm of the spectrograms first: for magnitudes, not for spectrograms that are
            logarithmic already.
        audio_channels: of what is heard: 2, or more where maps of both ears follow their spectrograms.

    The features are the picture's ``x1``..``x4``, the joined ``x5``, and ``d1``..``d4``, in the RGB teacher's shapes.
    """

    name = "multimodal_fusion"
    inputs = ("audio", "rgb")
    size_multiple = 16

    def __init__(
        self,
        base_channels: int = 64,
        bilinear: bool = True,
        max_depth: float = 30.0,
        compress_input: bool = True,
        audio_channels: int = EARS,
    ) -> None:
        super().__init__(
            base_channels=base_channels,
            bilinear=bilinear,
            max_depth=max_depth,
            compress_input=compress_input,
            audio_channels=audio_channels,
        )
        width = base_channels * LEVEL_WIDTHS[-1]
        self.listen = SpectrogramInput(compress_input, audio_channels)
        self.ears = Encoder(audio_channels, base_channels)
        self.eye = Encoder(3, base_channels)
        self.mix = PlaceMixer(width)
        self.fuse = Fuse(2 * width, width)
        self.decoder = Decoder(base_channels, bilinear)
        self.head = MetricDepthHead(base_channels, max_depth)

    def forward(self, audio: Tensor, rgb: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Features]:
        """Map what is heard [B, C, H, W] and RGB [B, 3, H, W] in [0, 1] to depth [B, 1, H, W] in metres.

        C is ``audio_channels``; H and W are multiples of 16. With ``return_features`` the second value is the dict of
        levels ``x1``..``x5``, ``d1``..``d4``.
        """
        heard = self.mix(self.ears(self.listen(audio))[-1])  # [B, 8b, H/16, W/16]
        encoded = self.eye(rgb)
        encoded[-1] = self.fuse(join(encoded[-1], heard))
        decoded = self.decoder(encoded)
        depth = self.head(decoded[-1])  # [B, 1, H, W]
        return (depth, name_levels(encoded, decoded)) if return_features else depth
