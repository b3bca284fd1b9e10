"""The networks, one file each, and the one way to build them by name."""

from __future__ import annotations

import inspect
from typing import Any

from errors import OptionError
from models.adabins_distillation_model import AdaBinsAudioNet, AdaBinsRGBNet
from models.base import DepthModel
from models.base_residual import BaseResidualNet
from models.binaural_attention_model import BinauralAttentionDepthNet
from models.depth_anything import DepthAnything
from models.multimodal_fusion import MultiModalFusionNet
from models.rgb_depth_model import RGBDepthNet
from models.unet_baseline import UNetBaseline

MODELS: dict[str, type[DepthModel]] = {
    model.name: model
    for model in (
        RGBDepthNet,
        BinauralAttentionDepthNet,
        UNetBaseline,
        BaseResidualNet,
        MultiModalFusionNet,
        AdaBinsAudioNet,
        AdaBinsRGBNet,
        DepthAnything,
    )
}


def create_model(name: str, **config: Any) -> DepthModel:
    """Build the model ``name`` with its own arguments; :class:`errors.OptionError` lists the known names."""
    if name not in MODELS:
        raise OptionError(f"there is no model {name!r}; known are {', '.join(sorted(MODELS))}")
    return MODELS[name](**config)


def options_of(name: str) -> set[str]:
    """Return the names of the arguments that :func:`create_model` takes for a model, and those that it hands on."""
    taken: set[str] = set()
    for part in MODELS[name].__mro__:
        if part is DepthModel:
            break
        parameters = inspect.signature(vars(part)["__init__"]).parameters.values()
        handed_on = {parameter.name for parameter in parameters if parameter.kind is parameter.VAR_KEYWORD}
        taken |= {parameter.name for parameter in parameters} - handed_on - {"self"}
        if not handed_on:
            break
    return taken


__all__ = ["MODELS", "DepthModel", "create_model", "options_of"]
