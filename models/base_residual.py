"""Base and residual: one encoder hears, one decoder draws the room's coarse depth, the other what stands in it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.base import DepthModel, Features
from models.blocks import EARS, Decoder, Encoder, MetricDepthHead, SpectrogramInput, name_levels, to_metres


class BaseResidualNet(DepthModel):
    """Shared encoder, two decoders; depth is their sum. 29.8 M parameters at ``base_channels=64``.

    The residual is added before the sigmoid, where any number is a depth: the sum stays between 0 and ``max_depth``,
    and a wrong sign still has a gradient. In metres it is the difference that it makes.

    Args:
        base_channels: channels of the first level, b; the others are 2b, 4b, 8b, 8b wide.
        bilinear: upsample bilinearly; otherwise by learned transposed convolutions.
        max_depth: the depth in metres that the output cannot exceed.
        compress_input: take the logarithm of the input first: for magnitudes, not for spectrograms that are
            logarithmic already.
        audio_channels: of what is heard: 2, or more where maps of both ears follow their spectrograms.

    The features are ``x1``..``x5`` and ``d1``..``d4`` (of the base) in the shapes of the RGB teacher, and ``base`` and
    ``residual`` [B, 1, H, W] in metres.
    """

    name = "base_residual"
    inputs = ("audio",)
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
        self.max_depth: Tensor
        self.register_buffer("max_depth", torch.tensor(float(max_depth)))
        self.listen = SpectrogramInput(compress_input, audio_channels)
        self.encoder = Encoder(audio_channels, base_channels)
        self.base_decoder = Decoder(base_channels, bilinear)
        self.residual_decoder = Decoder(base_channels, bilinear)
        self.base_head = MetricDepthHead(base_channels, max_depth)
        self.residual_head = MetricDepthHead(base_channels, max_depth)
        nn.init.zeros_(self.residual_head.project.bias)  # type: ignore[arg-type]  # no residual to begin with

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Features]:
        """Map what is heard [B, C, H, W] (left, right, maps) to depth [B, 1, H, W] in metres.

        C is ``audio_channels``; H and W are multiples of 16. With ``return_features`` the second value is the dict of
        the levels and of the two parts of the depth.
        """
        encoded = self.encoder(self.listen(x))
        decoded = self.base_decoder(encoded)
        base_logit = self.base_head.logit(decoded[-1])
        residual_logit = self.residual_head.logit(self.residual_decoder(encoded)[-1])
        depth = to_metres(base_logit + residual_logit, self.max_depth)  # [B, 1, H, W]
        if not return_features:
            return depth
        base = to_metres(base_logit, self.max_depth)
        return depth, {**name_levels(encoded, decoded), "base": base, "residual": depth - base}
