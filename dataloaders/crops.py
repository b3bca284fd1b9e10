"""Square crops of a picture: one global view, and local views inside it that show parts of it more closely."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from errors import OptionError

Range = tuple[float, float]


@dataclass(frozen=True)
class CropRule:
    """Which crops are drawn of a training picture.

    Attributes:
        local_crops: number of local views, N.
        global_scale: least and largest side of the global view, as shares of the picture's shorter side.
        local_scale: those of a local view, as shares of the global view's side.

    Raises:
        OptionError: a range that is empty or not within (0, 1].
    """

    local_crops: int = 2
    global_scale: Range = (0.7, 1.0)
    local_scale: Range = (0.4, 0.8)

    def __post_init__(self) -> None:
        for flag, (least, most) in (("global_scale", self.global_scale), ("local_scale", self.local_scale)):
            if not 0 < least <= most <= 1:
                raise OptionError(f"--{flag} {least:g} {most:g}: two shares, 0 < least <= largest <= 1")


def draw_crops(height: int, width: int, rule: CropRule, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw the global view of a picture, and local views inside it.

    Returns:
        The global box [4] and the local ones [N, 4], as (left, top, right, bottom) in pixels of the picture, edges not
        centres: (0, 0, width, height) is all of it.
    """
    whole = np.array([0.0, 0.0, width, height])
    view = _draw_square(whole, min(height, width) * rng.uniform(*rule.global_scale), rng)
    side = view[2] - view[0]
    parts = [_draw_square(view, side * rng.uniform(*rule.local_scale), rng) for _ in range(rule.local_crops)]
    return view, np.array(parts).reshape(-1, 4)


def _draw_square(inside: np.ndarray, side: float, rng: np.random.Generator) -> np.ndarray:
    """Place a square of a side anywhere inside a box."""
    left, top = rng.uniform(inside[:2], np.maximum(inside[2:] - side, inside[:2]))
    return np.array([left, top, left + side, top + side])


def boxes_within(view: np.ndarray, parts: np.ndarray, side: int) -> np.ndarray:
    """Return the local boxes [N, 4] in pixels of the global view once this is resized to ``side``: float32."""
    scale = side / (view[2] - view[0])
    return ((parts - np.tile(view[:2], 2)) * scale).astype(np.float32)
