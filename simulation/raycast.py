"""Rays in a box room with furniture: the one geometry behind the image, the depth map and the echo.

A room is an axis-aligned box seen from inside; furniture are boxes turned about the vertical axis and seen from
outside. Both are met by the slab method (Kay and Kajiya, "Ray Tracing Complex Scenes", SIGGRAPH 1986): along each axis
a ray is between the two faces for an interval of distances, and it is inside the box where the three intervals overlap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulation.rooms import ROOM_FACES, Array, Room

# Nearer hits belong to the surface that the ray leaves (metres).
SELF_DISTANCE = 1e-3
# Keeps the slab method's divisions finite for rays that are parallel to a face.
PARALLEL = 1e-7


@dataclass(frozen=True)
class Hits:
    """Where R rays end.

    distance: [R], in lengths of the direction vector: metres for unit directions, and z-depth in metres for directions
    whose component along the optical axis is 1.
    surface: [R] int, 0 to 5 for the room's faces (x = 0, x = width, y = 0, y = length, floor, ceiling), 6 + b for
    box b.
    axis: [R] int, the axis (0, 1, 2) of the room or of the box's own frame that the face stands on.
    normal: [R, 3], of unit length, against the ray.
    """

    distance: Array
    surface: NDArray[np.int64]
    axis: NDArray[np.int64]
    normal: Array


def _inverse(directions: Array) -> Array:
    return 1 / np.where(np.abs(directions) < PARALLEL, np.float32(PARALLEL), directions)


def _turn(room: Room, x: Array, y: Array) -> tuple[Array, Array]:
    """Horizontal components [B or 1, R] in each box's own frame: [B, R] each."""
    cos, sin = room.cosines[:, None], room.sines[:, None]  # [B, 1]
    return cos * x + sin * y, cos * y - sin * x


def _box_slabs(room: Room, origins: Array, directions: Array) -> tuple[Array, Array, Array]:
    """Intervals of R rays between the faces of B boxes: entries and exits [3, B, R], local directions [3, B, R]."""
    relative = origins.T[:, None] - room.centres.T[:, :, None]  # [3, B, R]
    local_origins = np.stack([*_turn(room, relative[0], relative[1]), relative[2]])
    shape = (len(room.centres), len(directions))
    along, across = _turn(room, directions[None, :, 0], directions[None, :, 1])
    local = np.stack([along, across, np.broadcast_to(directions[:, 2], shape)])  # [3, B, R]
    inverse = _inverse(local)
    middle = -local_origins * inverse
    reach = room.half_sizes.T[:, :, None] * np.abs(inverse)
    return middle - reach, middle + reach, local


def cast(room: Room, origins: Array, directions: Array) -> Hits:
    """First surface along each ray.

    Args:
        room: the scene.
        origins: [R, 3] or [1, 3] float32, metres, inside the room and outside its boxes.
        directions: [R, 3] float32, of any length (see :class:`Hits`).
    """
    rays = np.arange(len(directions))
    inverse = _inverse(directions)
    half = room.size / 2
    exits = (half - origins) * inverse + half * np.abs(inverse)  # [R, 3]
    axis = exits.argmin(1)
    distance = exits[rays, axis]  # [R]
    inward = -np.sign(directions[rays, axis])
    surface = 2 * axis + (inward < 0)
    normal = np.zeros_like(directions)
    normal[rays, axis] = inward
    if not len(room.centres):
        return Hits(distance, surface, axis, normal)

    entries, leaves, local = _box_slabs(room, origins, directions)
    entry, leave = entries.max(0), leaves.min(0)  # [B, R]
    entry = np.where((entry < leave) & (entry > SELF_DISTANCE), entry, np.float32(np.inf))
    box = entry.argmin(0)  # [R]
    hit = np.flatnonzero(entry[box, rays] < distance)
    box = box[hit]
    box_axis = entries[:, box, hit].argmax(0)
    outward = -np.sign(local[box_axis, box, hit])
    x, y = outward * (box_axis == 0), outward * (box_axis == 1)
    cos, sin = room.cosines[box], room.sines[box]
    distance[hit], surface[hit], axis[hit] = entry[box, hit], ROOM_FACES + box, box_axis
    normal[hit] = np.stack([cos * x - sin * y, sin * x + cos * y, outward * (box_axis == 2)], 1)
    return Hits(distance, surface, axis, normal)


def occluded(room: Room, origins: Array, targets: Array) -> NDArray[np.bool_]:
    """Whether furniture stands between origins [R, 3] or [1, 3] and targets [R, 3] or [1, 3] (metres): [R].

    The walls are convex, so they never do. Boxes that only touch an end are not in the way.
    """
    directions = targets - origins  # [R, 3]
    if not len(room.centres):
        return np.zeros(len(directions), bool)
    margin = SELF_DISTANCE / np.maximum(np.linalg.norm(directions, axis=1), SELF_DISTANCE)  # [R]
    entries, leaves, _ = _box_slabs(room, origins, directions)
    entry = np.maximum(entries.max(0), margin)  # [B, R]
    leave = np.minimum(leaves.min(0), 1 - margin)
    return (entry < leave).any(0)


def pixel_directions(forward: Array, right: Array, image_size: int) -> Array:
    """Directions [S * S, 3] through the pixels' centres, row by row, of a level pinhole camera with 90 degrees of view.

    Their component along the optical axis is 1, so that the distances of :func:`cast` are z-depths.
    """
    offsets = ((np.arange(image_size) + 0.5) / image_size * 2 - 1).astype(np.float32)  # tan(45 degrees) = 1
    up = np.array([0, 0, 1], np.float32)
    grid = forward + offsets[None, :, None] * right - offsets[:, None, None] * up  # [S, S, 3]
    return grid.reshape(-1, 3)
