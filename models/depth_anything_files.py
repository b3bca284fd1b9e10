"""The names under which Depth Anything's weights are published, and the way from each to each.

=============== =================================================== ===============================================
layout          names                                               found in
=============== =================================================== ===============================================
``original``    ``pretrained.blocks.{i}.*``, ``depth_head.*``       Depth Anything V2; Distill-Any-Depth small, base
``nested``      ``backbone.blocks.0.{i}.*``, ``depth_head.*``       Distill-Any-Depth large and its teacher
``flat``        ``backbone.blocks.{i}.*``, ``depth_head.*``         files that were renamed by their prefix alone
``huggingface`` ``backbone.encoder.layer.{i}.*``, ``neck.*``, ...   the ``-hf`` files of transformers; read only
=============== =================================================== ===============================================

``original`` is what ``models.depth_anything`` calls its own parts: the canonical names.

A file does not say everything. Those of Depth Anything V1 and of V2's metric models have the same names and the same
shapes, but V1 taps other blocks and the metric ones end in a sigmoid: here, they answer wrongly.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from errors import CheckpointError
from models.weights import Weights

LAYOUTS = ("original", "nested", "flat")  # those that can be written

# Under which the published weights may be used, by preset, and so those that are distilled from them.
LICENSES = {"vits": "Apache-2.0", "vitb": "CC-BY-NC-4.0", "vitl": "CC-BY-NC-4.0"}

# Where Depth Anything V2's weights are published, by preset.
PUBLISHED = {
    preset: f"https://huggingface.co/depth-anything/Depth-Anything-V2-{size}/resolve/main/depth_anything_v2_{preset}.pth"
    for preset, size in (("vits", "Small"), ("vitb", "Base"), ("vitl", "Large"))
}

# From each layout to the canonical names; the first rule that fits a name is the one that counts.
TO_CANONICAL: dict[str, tuple[tuple[str, str], ...]] = {
    "original": (),
    "nested": ((r"^backbone\.blocks\.0\.(\d+)\.", r"pretrained.blocks.\1."), (r"^backbone\.", "pretrained.")),
    "flat": ((r"^backbone\.", "pretrained."),),
    "huggingface": (
        (r"^backbone\.embeddings\.(cls_token|mask_token)$", r"pretrained.\1"),
        (r"^backbone\.embeddings\.position_embeddings$", "pretrained.pos_embed"),
        (r"^backbone\.embeddings\.patch_embeddings\.projection\.", "pretrained.patch_embed.proj."),
        (r"^backbone\.encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"pretrained.blocks.\1.attn.proj."),
        (r"^backbone\.encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1$", r"pretrained.blocks.\1.ls\2.gamma"),
        (r"^backbone\.encoder\.layer\.(\d+)\.", r"pretrained.blocks.\1."),
        (r"^backbone\.layernorm\.", "pretrained.norm."),
        (r"^neck\.reassemble_stage\.layers\.(\d)\.projection\.", r"depth_head.projects.\1."),
        (r"^neck\.reassemble_stage\.layers\.(\d)\.resize\.", r"depth_head.resize_layers.\1."),
        *((rf"^neck\.convs\.{i}\.", f"depth_head.scratch.layer{i + 1}_rn.") for i in range(4)),
        *(  # the first step of its fusion is refinenet4
            rule
            for i in range(4)
            for rule in (
                (rf"^neck\.fusion_stage\.layers\.{i}\.projection\.", f"depth_head.scratch.refinenet{4 - i}.out_conv."),
                (
                    rf"^neck\.fusion_stage\.layers\.{i}\.residual_layer(\d)\.convolution(\d)\.",
                    rf"depth_head.scratch.refinenet{4 - i}.resConfUnit\1.conv\2.",
                ),
            )
        ),
        (r"^head\.conv1\.", "depth_head.scratch.output_conv1."),
        (r"^head\.conv2\.", "depth_head.scratch.output_conv2.0."),
        (r"^head\.conv3\.", "depth_head.scratch.output_conv2.2."),
    ),
}
FROM_CANONICAL: dict[str, tuple[tuple[str, str], ...]] = {
    "original": (),
    "nested": ((r"^pretrained\.blocks\.", "backbone.blocks.0."), (r"^pretrained\.", "backbone.")),
    "flat": ((r"^pretrained\.", "backbone."),),
}


def layout_of(names: Iterable[str]) -> str:
    """Return the layout of a file's names; ``original`` where none of the others is recognised."""
    names = list(names)
    if any(name.startswith("backbone.embeddings.") for name in names):
        return "huggingface"
    if any(re.match(r"backbone\.blocks\.0\.\d+\.", name) for name in names):
        return "nested"
    return "flat" if any(name.startswith("backbone.") for name in names) else "original"


def canonical_keys(weights: Mapping[str, torch.Tensor], path: Path) -> Weights:
    """Return the weights of a file in any layout under their canonical names; what is no such name stays as it is.

    Raises:
        CheckpointError: two tensors of the file would have one name.
    """
    layout = layout_of(weights)
    if layout == "huggingface":
        weights = join_attention(weights)
    return rename(weights, TO_CANONICAL[layout], path)


def to_layout(weights: Mapping[str, torch.Tensor], layout: str, path: Path) -> Weights:
    """Return weights with canonical names under those of one of ``LAYOUTS``."""
    return rename(weights, FROM_CANONICAL[layout], path)


def rename(weights: Mapping[str, torch.Tensor], rules: Iterable[tuple[str, str]], path: Path) -> Weights:
    """Return the weights, each under the name that the first fitting rule (a pattern, its replacement) gives it.

    Raises:
        CheckpointError: two would have one name.
    """
    rules = list(rules)
    renamed: Weights = {}
    for name, value in weights.items():
        new = next((re.sub(pattern, to, name) for pattern, to in rules if re.match(pattern, name)), name)
        if new in renamed:
            raise CheckpointError(f"{path}: holds {new} twice, in two layouts")
        renamed[new] = value
    return renamed


def join_attention(weights: Mapping[str, torch.Tensor]) -> Weights:
    """Join the query, key and value of each block of the ``huggingface`` layout into one ``attn.qkv``.

    Where one of the three is missing, the others stay: it is the loading that names what does not fit.
    """
    joined = dict(weights)
    for name in weights:
        found = re.fullmatch(r"(backbone\.encoder\.layer\.\d+\.)attention\.attention\.query\.(weight|bias)", name)
        if found:
            block, kind = found.groups()
            parts = [f"{block}attention.attention.{part}.{kind}" for part in ("query", "key", "value")]
            if all(part in joined for part in parts):
                joined[f"{block}attn.qkv.{kind}"] = torch.cat([joined.pop(part) for part in parts])
    return joined
