"""What a depth camera makes of a depth map: noise that grows with distance, and holes of value 0.

Real recordings lack about a fifth of their pixels, on far, slanted and dark surfaces and beside depth edges. A network
that never met a hole in training learns nothing about masks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from simulation.rooms import Array

BLOBS = 10  # holes come in patches of about a tenth of the picture's side
THRESHOLD = 0.7
EDGE_STEP = 0.08  # relative step of depth that counts as an edge


def _blobs(image_size: int, rng: np.random.Generator) -> Array:
    """A smooth random field [S, S] of zero mean and roughly unit variance."""
    coarse = Image.fromarray(rng.standard_normal((BLOBS, BLOBS), np.float32))
    return np.asarray(coarse.resize((image_size, image_size), Image.Resampling.BICUBIC), np.float32)


def _beside_edges(depth: Array) -> NDArray[np.bool_]:
    """Pixels [S, S] within about a sixtieth of the picture's side of a depth edge."""
    edges = np.zeros(depth.shape, bool)
    for ahead, behind in ((depth[:, 1:], depth[:, :-1]), (depth[1:], depth[:-1])):
        steps = np.abs(ahead - behind) > EDGE_STEP * np.minimum(ahead, behind)
        edges[: steps.shape[0], : steps.shape[1]] |= steps
    reach = 2 * max(1, round(len(depth) / 120)) + 1
    return np.asarray(Image.fromarray(edges.astype(np.uint8)).filter(ImageFilter.MaxFilter(reach)), bool)


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
    far = np.clip((depth - 3.0) / 6.0, 0, 1)
    grazing = np.clip((0.45 - slant) / 0.45, 0, 1)
    dark = np.clip((0.22 - reflectance) / 0.2, 0, 1)
    doubt = 1.2 * far + 1.5 * grazing + 1.1 * dark + 0.6 * _blobs(len(depth), rng)
    lost = doubt > THRESHOLD
    lost |= _beside_edges(depth) & (rng.random(depth.shape, np.float32) < 0.7)
    return noisy.astype(np.float32), lost
