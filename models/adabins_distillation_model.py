"""AdaBins for eye and ear: depth as a choice among bins that each scene cuts for itself.

Two networks of the same shape, one that sees and one that hears. The first teaches the second, through its depth, its
features and its bins; in use there is the second alone. After Bhat, Alhashim and Wonka, "AdaBins: Depth Estimation
using Adaptive Bins", CVPR 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from errors import CheckpointError, OptionError
from models.base import DepthModel, Features, normalize_imagenet
from models.binaural_attention_model import BinauralEncoder
from models.blocks import EARS, LEVEL_WIDTHS, Decoder, DoubleConv, Encoder, name_levels
from models.weights import load_strictly, read_pickle, weights_in

FIRST_WEIGHT = "levels.0.0.weight"  # of an Encoder: as many rows as it has base channels

RGB_ENCODERS = ("unet", "resnet50")


class AdaBinsEncoder(nn.Module):
    """Five levels of a picture or of an echo, in the same shapes: [B, C, H, W] -> x1 [B, b, H, W] to x5.

    Echoes go through the binaural student's two ears, at whose coarse levels places of frequency and time have become
    places of y and x. Pictures go through the U-Net teacher's encoder, or through a pretrained ResNet-50.

    Args:
        modality: ``audio`` or ``rgb``.
        base_channels: b; the levels are b, 2b, 4b, 8b, 8b wide.
        rgb_encoder: ``unet`` or ``resnet50``, for pictures.
        attention_levels: of the ears (see ``models.binaural_attention_model``).
        compress_input: take the logarithm of the echoes first.
        audio_channels: of what is heard.
        share_ears: one set of weights for both ears, instead of one for each.
    """

    def __init__(
        self,
        modality: str,
        base_channels: int,
        *,
        rgb_encoder: str = "unet",
        attention_levels: Sequence[int] = (2, 3, 4, 5),
        compress_input: bool = True,
        audio_channels: int = EARS,
        share_ears: bool = False,
    ) -> None:
        super().__init__()
        if modality == "audio":
            hearing = (attention_levels, compress_input, audio_channels, share_ears)
            self.levels: nn.Module = BinauralEncoder(base_channels, *hearing)
        elif rgb_encoder == "unet":
            self.levels = Encoder(3, base_channels)
        else:
            self.levels = PretrainedEncoder(base_channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the five levels, the largest first."""
        return self.levels(x)


class PretrainedEncoder(nn.Module):
    """A ResNet-50 (He et al., CVPR 2016) behind 1x1 convolutions: RGB [B, 3, H, W] in [0, 1] -> x1 to x5.

    Its stem and its first three stages have the sizes of x2 to x5; x1, at the picture's size, is a pair of convolutions
    of its own. ImageNet's normalisation is done here.
    """

    WIDTHS = (64, 256, 512, 1024)  # of the stem and the stages 1 to 3

    def __init__(self, base_channels: int) -> None:
        from torchvision.models import resnet50

        super().__init__()
        widths = [base_channels * width for width in LEVEL_WIDTHS]
        self.fine = DoubleConv(3, widths[0])
        self.backbone = resnet50(weights=None)
        del self.backbone.layer4, self.backbone.fc  # x5 is at a sixteenth of the size
        self.adapters = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(self.WIDTHS, widths[1:], strict=True))

    def forward(self, rgb: Tensor) -> list[Tensor]:
        """Return the five levels, the largest first."""
        x = normalize_imagenet(rgb)
        net = self.backbone
        x = net.relu(net.bn1(net.conv1(x)))  # [B, 64, H/2, W/2]
        found = [x]
        x = net.maxpool(x)
        for stage in (net.layer1, net.layer2, net.layer3):  # to [B, 1024, H/16, W/16]
            x = stage(x)
            found.append(x)
        return [self.fine(rgb), *(adapt(level) for adapt, level in zip(self.adapters, found, strict=True))]


class AdaBinsBinPredictor(nn.Module):
    """Cut the range of depths into bins for a scene: its last level [B, C, h, w] -> logits [B, N].

    The mean over the places is the scene's code; a perceptron turns it into one logit per bin. A bin's width is its
    share of the range, (p_i + eps) / sum_j (p_j + eps) with p the softmax of the logits and eps 0.001 (AdaBins, eq. 1):
    all widths are positive and sum up to ``max_depth - min_depth``, so that the edges ascend from the one to the other.
    They begin with widths that grow from bin to bin, the finest ones near: most of what a room holds is near.

    Args:
        channels: C.
        n_bins: N, 2 or more.
        min_depth: the first edge, in metres.
        max_depth: the last one.
        fixed: cut the range evenly instead, for all scenes; nothing is learned.

    Raises:
        OptionError: fewer than 2 bins, or an empty range.
    """

    EPS = 1e-3
    min_depth: Tensor
    max_depth: Tensor

    def __init__(self, channels: int, n_bins: int, min_depth: float, max_depth: float, fixed: bool = False) -> None:
        super().__init__()
        if n_bins < 2:
            raise OptionError(f"--n_bins {n_bins}: depth is a choice among two bins or more")
        if not 0 < min_depth < max_depth:
            raise OptionError(f"--min_depth {min_depth} must be above 0 and below --max_depth {max_depth}")
        self.n_bins = n_bins
        # Kept with the weights: the same weights over another range would be other metres without a word.
        self.register_buffer("min_depth", torch.tensor(float(min_depth)))
        self.register_buffer("max_depth", torch.tensor(float(max_depth)))
        hidden = max(channels, 32)
        self.code = None
        if not fixed:
            last = nn.Linear(hidden, n_bins)
            nn.init.normal_(last.weight, std=0.01)
            with torch.no_grad():
                last.bias.copy_((2 * torch.arange(n_bins) + 1).log())  # edges at (i / N)^2 of the range
            self.code = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), last)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the widths, float32; zeros where the bins are fixed."""
        with torch.autocast(x.device.type, enabled=False):
            code = x.float().mean(dim=(2, 3))  # [B, C]
            return code.new_zeros(code.shape[0], self.n_bins) if self.code is None else self.code(code)

    def widths(self, logits: Tensor) -> Tensor:
        """Return the bins' widths [B, N] in metres."""
        shares = (logits.float().softmax(dim=1) + self.EPS) / (1 + self.n_bins * self.EPS)
        return (self.max_depth - self.min_depth) * shares

    def edges(self, logits: Tensor) -> Tensor:
        """Return the bins' edges [B, N + 1] in metres, ascending from ``min_depth`` to ``max_depth``."""
        inner = self.min_depth + self.widths(logits)[:, :-1].cumsum(dim=1)  # [B, N - 1]
        first, last = (bound.expand(logits.shape[0], 1) for bound in (self.min_depth, self.max_depth))
        return torch.cat([first, inner, last], dim=1)


def bin_centres(edges: Tensor) -> Tensor:
    """Return the middles of the bins: edges [B, N + 1] -> [B, N], in metres."""
    return (edges[:, :-1] + edges[:, 1:]) / 2


def keep_between(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Clamp a map of any shape, but let its gradient pass: a pixel that left the range must find its way back."""
    return x + (x.clamp(low, high) - x).detach() if x.requires_grad else x.clamp(low, high)


class AdaBinsDecoder(nn.Module):
    """From five levels to a choice among the bins at each pixel, and a correction.

    Args:
        base_channels: b.
        n_bins: N.
        bilinear: upsample bilinearly; otherwise by learned transposed convolutions.
    """

    def __init__(self, base_channels: int, n_bins: int, bilinear: bool) -> None:
        super().__init__()
        self.up = Decoder(base_channels, bilinear)
        self.choose = nn.Conv2d(base_channels, n_bins, 1)
        self.correct = nn.Conv2d(base_channels, 1, 1)

    def forward(self, encoded: list[Tensor]) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return d1..d4, the logits of the choice [B, N, H, W] and the correction [B, 1, H, W] in (-1, 1), float32."""
        decoded = self.up(encoded)
        with torch.autocast(decoded[-1].device.type, enabled=False):
            last = decoded[-1].float()
            return decoded, self.choose(last), self.correct(last).tanh()


class AdaBinsNet(DepthModel):
    """One of the two networks: encoder, bins, decoder. depth = sum_k p_k c_k + residual, kept between the bounds.

    p is the softmax over the bins at a pixel, c the centres of the scene's bins.

    Args:
        base_channels: channels of the first level, b.
        n_bins: number of bins, 2 or more.
        min_depth: metres; the bins begin there.
        max_depth: metres; the bins end there.
        bilinear: upsample bilinearly; otherwise by learned transposed convolutions.
        residual_limit: the residual's largest size, as a share of the range.
        fixed_bins: equal bins for all scenes.
        encoder: further arguments of :class:`AdaBinsEncoder`.

    The features are ``x1``..``x5`` and ``d1``..``d4`` in the shapes of the RGB teacher, ``widths`` [B, N, 1, 1] (the
    logits of the widths), ``edges`` [B, N + 1, 1, 1] and ``centres`` [B, N, 1, 1] in metres, ``choice`` [B, N, H, W]
    (the logits of the choice), ``base`` and ``residual`` [B, 1, H, W] in metres.

    Raises:
        OptionError: fewer than 2 bins, or an empty range.
    """

    size_multiple = 16

    def __init__(
        self,
        base_channels: int = 64,
        n_bins: int = 128,
        min_depth: float = 1e-3,
        max_depth: float = 30.0,
        bilinear: bool = True,
        residual_limit: float = 0.1,
        fixed_bins: bool = False,
        **encoder: Any,
    ) -> None:
        super().__init__(
            base_channels=base_channels,
            n_bins=n_bins,
            min_depth=min_depth,
            max_depth=max_depth,
            bilinear=bilinear,
            residual_limit=residual_limit,
            fixed_bins=fixed_bins,
            **encoder,
        )
        width = base_channels * LEVEL_WIDTHS[-1]
        self.encoder = AdaBinsEncoder(self.inputs[0], base_channels, **encoder)
        self.bins = AdaBinsBinPredictor(width, n_bins, min_depth, max_depth, fixed_bins)
        self.decoder = AdaBinsDecoder(base_channels, n_bins, bilinear)

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Features]:
        """Map what is heard [B, C, H, W] or RGB [B, 3, H, W] in [0, 1] to depth [B, 1, H, W] in metres.

        C is ``audio_channels``; H and W are multiples of 16. With ``return_features`` the second value is the dict of
        levels and bins.
        """
        encoded = self.encoder(x)
        widths = self.bins(encoded[-1])  # [B, N]
        edges = self.bins.edges(widths)  # [B, N + 1]
        centres = bin_centres(edges)  # [B, N]
        decoded, choice, correction = self.decoder(encoded)
        # A pixel's bins side by side, as in channels_last: over the channels of maps it takes twice the time on a CPU.
        chosen = choice.permute(0, 2, 3, 1).softmax(dim=3)  # [B, H, W, N]
        base = (chosen * centres[:, None, None]).sum(dim=3)[:, None]  # [B, 1, H, W]
        residual = self.config["residual_limit"] * (self.bins.max_depth - self.bins.min_depth) * correction
        depth = keep_between(base + residual, self.bins.min_depth, self.bins.max_depth)
        if not return_features:
            return depth
        features = name_levels(encoded, decoded) | {"choice": choice, "base": base, "residual": residual}
        bins = {"widths": widths, "edges": edges, "centres": centres}
        return depth, features | {name: values[:, :, None, None] for name, values in bins.items()}


class AdaBinsAudioNet(AdaBinsNet):
    """The student: depth from echoes. See :class:`AdaBinsNet`; 38.2 M parameters at ``base_channels=64``."""

    name = "adabins_audio"
    inputs = ("audio",)

    def __init__(
        self,
        base_channels: int = 64,
        *,
        attention_levels: Sequence[int] = (2, 3, 4, 5),
        compress_input: bool = True,
        audio_channels: int = EARS,
        share_ears: bool = False,
        **config: Any,
    ) -> None:
        super().__init__(
            base_channels,
            attention_levels=sorted(set(attention_levels)),
            compress_input=compress_input,
            audio_channels=audio_channels,
            share_ears=share_ears,
            **config,
        )


class AdaBinsRGBNet(AdaBinsNet):
    """The teacher: depth from a picture. See :class:`AdaBinsNet`."""

    name = "adabins_rgb"
    inputs = ("rgb",)

    def __init__(self, base_channels: int = 64, *, rgb_encoder: str = "unet", **config: Any) -> None:
        if rgb_encoder not in RGB_ENCODERS:
            raise OptionError(f"there is no encoder of pictures {rgb_encoder!r}; known are {', '.join(RGB_ENCODERS)}")
        super().__init__(base_channels, rgb_encoder=rgb_encoder, **config)


class AdaBinsDistillationModel(nn.Module):
    """Both networks, as they are in training; in use, ``model(audio)`` needs the audio one alone.

    Args:
        audio: the student.
        rgb: the teacher; None where nobody sees any more.
    """

    def __init__(self, audio: AdaBinsAudioNet, rgb: AdaBinsRGBNet | None) -> None:
        super().__init__()
        self.audio = audio
        self.rgb = rgb

    def forward(self, audio: Tensor, rgb: Tensor | None = None) -> Any:
        """Map what is heard [B, C, H, W], C the student's ``audio_channels``, to depth [B, 1, H, W] in metres.

        With RGB [B, 3, H, W] in [0, 1] beside them: ``{"audio": (depth, features), "rgb": (depth, features)}``.
        """
        if rgb is None:
            return self.audio(audio)
        if self.rgb is None:
            raise OptionError("this model has no RGB network any more; call it with audio alone")
        return {"audio": self.audio(audio, return_features=True), "rgb": self.rgb(rgb, return_features=True)}


def create_adabins_distillation_model(
    base_channels: int = 64,
    n_bins: int = 128,
    use_pretrained_rgb: bool | str | Path = False,
    *,
    attention_levels: Sequence[int] = (2, 3, 4, 5),
    compress_input: bool = True,
    audio_channels: int = EARS,
    share_ears: bool = False,
    **config: Any,
) -> AdaBinsDistillationModel:
    """Build student and teacher.

    Args:
        base_channels: of both.
        n_bins: of both.
        use_pretrained_rgb: what the teacher's encoder begins with: False, from scratch; ``imagenet`` or True, a
            ResNet-50 with ImageNet's weights; a path, see :func:`read_pretrained`.
        attention_levels: of the student's ears.
        compress_input: the student takes the logarithm of the echoes first.
        audio_channels: of what the student hears.
        share_ears: one set of weights for both of its ears, instead of one for each.
        **config: the other arguments of :class:`AdaBinsNet`, of both.

    Raises:
        OptionError: an impossible size.
        CheckpointError: the pretrained weights are not there, or do not fit.
    """
    source = "imagenet" if use_pretrained_rgb is True else use_pretrained_rgb
    config |= {"base_channels": base_channels, "n_bins": n_bins}
    audio = AdaBinsAudioNet(
        attention_levels=attention_levels,
        compress_input=compress_input,
        audio_channels=audio_channels,
        share_ears=share_ears,
        **config,
    )
    if not source:
        return AdaBinsDistillationModel(audio, AdaBinsRGBNet(**config))
    rgb_encoder, weights = read_pretrained(source)
    rgb = AdaBinsRGBNet(rgb_encoder=rgb_encoder, **config)
    load_pretrained(rgb, weights, source)
    return AdaBinsDistillationModel(audio, rgb)


def read_pretrained(source: str | Path) -> tuple[str, dict[str, Tensor]]:
    """Read the weights that an encoder of pictures begins with; return its kind and them.

    Args:
        source: ``imagenet``: torchvision's ResNet-50, from the cache of ``torch.hub`` or the net. Or a file: a
            ResNet-50's state dict in torchvision's names, or a checkpoint of ``train_rgb_depth.py``.

    Raises:
        CheckpointError: out of reach, damaged, or of another kind.
    """
    if str(source) == "imagenet":
        from torchvision.models import ResNet50_Weights

        published = ResNet50_Weights.IMAGENET1K_V2
        try:
            return "resnet50", dict(published.get_state_dict(progress=False, check_hash=True))
        except (OSError, RuntimeError) as error:
            folder = Path(torch.hub.get_dir()) / "checkpoints"
            raise CheckpointError(
                f"--use_pretrained_rgb imagenet: {published.url} is out of reach ({error}); download it elsewhere and "
                f"put it into {folder}, or give the file's path"
            ) from error
    path = Path(source)
    try:
        state = read_pickle(path)
    except CheckpointError as error:
        raise CheckpointError(f"--use_pretrained_rgb {error}") from error
    if isinstance(state, dict) and "model_state_dict" in state:
        weights = weights_in(state, path)
        return "unet", {key: value for key, value in weights.items() if key.startswith("encoder.")}
    if isinstance(state, dict) and "conv1.weight" in state:
        return "resnet50", state
    raise CheckpointError(
        f"--use_pretrained_rgb {path}: neither a ResNet-50's state dict nor a checkpoint of train_rgb_depth.py"
    )


def load_pretrained(model: AdaBinsRGBNet, weights: dict[str, Tensor], source: str | Path) -> None:
    """Load into the encoder what :func:`read_pretrained` returned, strictly.

    Raises:
        CheckpointError: the weights do not fit; the shapes say why, and which width would fit.
    """
    levels: Any = model.encoder.levels
    if isinstance(levels, PretrainedEncoder):
        target: nn.Module = levels.backbone
        weights = {key: value for key, value in weights.items() if not key.startswith(("layer4.", "fc."))}
    else:
        target = levels
        weights = {key.removeprefix("encoder."): value for key, value in weights.items()}
    try:
        load_strictly(target, weights, Path(source))
    except CheckpointError as error:
        widths = [len(state[FIRST_WEIGHT]) for state in (weights, target.state_dict()) if FIRST_WEIGHT in state]
        hint = f"; give --base_channels {widths[0]}" if len(set(widths)) > 1 else ""
        raise CheckpointError(f"--use_pretrained_rgb {error}{hint}") from error
