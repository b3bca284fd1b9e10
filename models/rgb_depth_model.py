"""The RGB teacher: a U-Net from one picture to metric depth.

Its levels have the shapes of the binaural student's, so that either's features can be held against the other's.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from models.base import DepthModel, Features
from models.blocks import Decoder, Encoder, MetricDepthHead, name_levels


class RGBDepthNet(DepthModel):
    """U-Net with five encoder and four decoder levels; 19.6 M parameters at ``base_channels=64``, 4.9 M at 32.

    Args:
        base_channels: channels of the first level, b; the others are 2b, 4b, 8b, 8b wide.
        bilinear: upsample bilinearly; otherwise by learned transposed convolutions.
        max_depth: the depth in metres that the output cannot exceed.
        in_channels: channels of the input, 3 for RGB.

    The encoder's levels are ``x1`` [B, b, H, W] to ``x5`` [B, 8b, H/16, W/16]; the decoder's are ``d1``
    [B, 8b, H/8, W/8] to ``d4`` [B, b, H, W].
    """

    name = "rgb_depth"
    inputs = ("rgb",)
    size_multiple = 16

    def __init__(
        self, base_channels: int = 64, bilinear: bool = True, max_depth: float = 30.0, in_channels: int = 3
    ) -> None:
        super().__init__(base_channels=base_channels, bilinear=bilinear, max_depth=max_depth, in_channels=in_channels)
        self.encoder = Encoder(in_channels, base_channels)
        self.decoder = Decoder(base_channels, bilinear)
        self.head = MetricDepthHead(base_channels, max_depth)

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Features]:
        """Map RGB [B, 3, H, W] in [0, 1] to depth [B, 1, H, W] in metres.

        H and W are multiples of 16. With ``return_features`` the second value is the dict of levels ``x1``..``x5``,
        ``d1``..``d4``.
        """
        encoded = self.encoder(x)
        decoded = self.decoder(encoded)
        depth = self.head(decoded[-1])  # [B, 1, H, W]
        if not return_features:
            return depth
        return depth, name_levels(encoded, decoded)


def create_rgb_depth_model(base_channels: int = 64, bilinear: bool = True, **config: Any) -> RGBDepthNet:
    """Build the RGB teacher; ``config`` takes the other arguments of :class:`RGBDepthNet`."""
    return RGBDepthNet(base_channels=base_channels, bilinear=bilinear, **config)
