"""What a depth camera makes of a depth map: noise that grows with distance, and holes of value 0.

Real recordings lack about a fifth of their pixels, on far, slanted and dark surfaces and beside depth edges. A network
that never met a hole in training learns nothing about masks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from simulation.rooms import Array

BLOBS = 10  # holes come in patches of about a tenth of the picture's side
THRESHOLD = 0.65
EDGE_STEP = 0.1  # relative step of depth that counts as an edge


def _blobs(image_size: int, rng: np.random.Generator) -> Array:
    """A smooth random field [S, S] of zero mean and roughly unit variance."""
    coarse = Image.fromarray(rng.standard_normal((BLOBS, BLOBS), np.float32))
    return np.asarray(coarse.resize((image_size, image_size), Image.Resampling.BICUBIC), np.float32)


def _beside_edges(depth: Array) -> NDArray[np.bool_]:
    """Pixels [S, S] within about a hundredth of the picture's side of a depth edge.

    The inverse depth of a plane is linear over the picture, so its second difference shows edges and leaves floors and
    walls alone, however steeply they run away from the camera.
    """
    inverse = 1 / depth
    edges = np.zeros(depth.shape, bool)
    for axis, inner in ((0, np.s_[1:-1, :]), (1, np.s_[:, 1:-1])):
        edges[inner] |= np.abs(np.diff(inverse, n=2, axis=axis)) * depth[inner] > EDGE_STEP
    for axis in (0, 1):
        edges = _widen(edges, round(len(depth) / 100), axis)
    return edges


def _widen(mask: NDArray[np.bool_], reach: int, axis: int) -> NDArray[np.bool_]:
    """Pixels [S, S] that have a set one within `reach` pixels along an axis."""
    mask = np.moveaxis(mask, axis, 0)
    wide = mask.copy()
    for shift in range(1, reach + 1):
        wide[shift:] |= mask[:-shift]
        wide[:-shift] |= mask[shift:]
    return np.moveaxis(wide, 0, axis)


def measure(
    depth: Array, slant: Array, reflectance: Array, rng: np.random.Generator
) -> tuple[Array, NDArray[np.bool_]]:
    """Measured depth [S, S] in metres without holes, and the mask [S, S] of the pixels that a real camera would lose.

    Args:
        depth: true z-depth [S, S], metres.
        slant: cosine [S, S] between the ray and the surface's normal.
        reflectance: [S, S], linear.
        rng: draws the noise and the patches.
    """
    noisy = depth + (0.002 + 0.0015 * depth**2) * rng.standard_normal(depth.shape, np.float32)
    far = np.clip((depth - 3.5) / 6.0, 0, 1)
    grazing = np.clip((0.5 - slant) / 0.5, 0, 1)
    dark = np.clip((0.24 - reflectance) / 0.2, 0, 1)
    doubt = 0.8 * far + 1.2 * grazing + 1.3 * dark + 0.6 * _blobs(len(depth), rng)
    lost = doubt > THRESHOLD
    lost |= _beside_edges(depth) & (rng.random(depth.shape, np.float32) < 0.7)
    return noisy.astype(np.float32), lost
