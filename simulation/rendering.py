"""What the camera sees: textures of physical size under one lamp, ambient light and sensor noise.

Nothing in the picture knows the depth map: scale is to be read from the camera's height above the floor and from things
whose size hardly varies (tiles, planks, doors, furniture).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulation.raycast import Hits, cast, occluded, pixel_directions
from simulation.rooms import ROOM_FACES, Array, Room, View

AMBIENT = 0.35
LAMP_REACH = 3.0  # metres at which the lamp's light has fallen to a half
CORNER_REACH = 0.35  # metres from an edge of the room within which ambient light fades
MEAN_LINEAR = 0.24  # the automatic exposure's aim
SENSOR_NOISE = 0.012  # standard deviation in units of the full range, after the gamma curve
GAMMA = 2.2


@dataclass(frozen=True)
class Picture:
    """What a view shows: rgb [S, S, 3] uint8, and what a depth camera meets there.

    That is depth [S, S] in metres, slant [S, S] (cosine between the ray and the normal) and reflectance [S, S].
    """

    rgb: NDArray[np.uint8]
    depth: Array
    slant: Array
    reflectance: Array


def _face_coordinates(room: Room, points: Array, hits: Hits) -> tuple[Array, Array]:
    """Metres along and up the face that each point [R, 3] lies on: two of the three coordinates of the room or box."""
    local = points.copy()
    on_box = np.flatnonzero(hits.surface >= ROOM_FACES)
    box = hits.surface[on_box] - ROOM_FACES
    relative = points[on_box] - room.centres[box]
    cos, sin = room.cosines[box], room.sines[box]
    local[on_box, 0] = cos * relative[:, 0] + sin * relative[:, 1] + room.half_sizes[box, 0]
    local[on_box, 1] = cos * relative[:, 1] - sin * relative[:, 0] + room.half_sizes[box, 1]
    local[on_box, 2] = relative[:, 2] + room.half_sizes[box, 2]
    along = np.where(hits.axis == 0, local[:, 1], local[:, 0])
    up = np.where(hits.axis == 2, local[:, 1], local[:, 2])
    return along, up


def _hash(x: Array, y: Array, z: NDArray[np.int64]) -> Array:
    """A number in [0, 1) for each cell, the same wherever the cell is seen."""
    mixed = x.astype(np.int64) * 73856093 ^ y.astype(np.int64) * 19349663 ^ z * 83492791
    mixed = (mixed ^ (mixed >> 13)) * 1274126177 & 0x7FFFFFFF
    return ((mixed ^ (mixed >> 16)) & 0xFFFF).astype(np.float32) / 0x10000


def _albedo(room: Room, along: Array, up: Array, hits: Hits, footprint: Array) -> tuple[Array, Array]:
    """Linear reflectance [R, 3] and shine [R]; details finer than a pixel's footprint [R], metres, fade to the mean."""
    table = np.array([(*m.colour, *m.cell, m.shift, m.jitter, m.joint) for m in room.materials], np.float32)
    rows = table[hits.surface]  # [R, 8]
    width, height, shift, jitter, joint = rows[:, 3:].T
    row = np.floor(up / height)
    column_position = along / width + shift * (row % 2)
    column = np.floor(column_position)
    fade = np.exp(-((footprint / np.minimum(width, height)) ** 2))
    tone = 1 + jitter * fade * (2 * _hash(column, row, hits.surface) - 1)
    to_edge = np.minimum(
        (0.5 - np.abs(column_position - column - 0.5)) * width, (0.5 - np.abs(up / height - row - 0.5)) * height
    )
    covered = np.clip((joint / 2 + footprint / 2 - to_edge) / footprint, 0, 1) * np.minimum(1, joint / footprint)
    albedo = rows[:, :3] * (tone * (1 - 0.6 * covered))[:, None]  # [R, 3]
    shine = np.zeros_like(along)
    for panel in room.panels:
        inside = (hits.surface == panel.surface) & (along > panel.along[0]) & (along < panel.along[1])
        inside &= (up > panel.up[0]) & (up < panel.up[1])
        albedo[inside] = panel.colour
        shine[inside] = panel.shine
    return albedo, shine


def _light(room: Room, points: Array, hits: Hits) -> Array:
    """Ambient light, darker in the room's corners, and the lamp's where no furniture stands before it: [R]."""
    to_lamp = room.lamp - points  # [R, 3]
    distance = np.linalg.norm(to_lamp, axis=1)
    facing = np.maximum((to_lamp * hits.normal).sum(1), 0) / distance
    start = points + hits.normal * np.float32(2e-3)
    lit = ~occluded(room, start, room.lamp[None])
    gaps = np.sort(np.minimum(points, room.size - points), axis=1)  # [R, 3], the first is ~0 on the room's own faces
    gap = np.where(hits.surface < ROOM_FACES, gaps[:, 1], gaps[:, 0])
    ambient = AMBIENT * (1 - 0.45 * np.exp(-np.maximum(gap, 0) / CORNER_REACH))
    return ambient + lit * facing / (1 + (distance / LAMP_REACH) ** 2)


def render(room: Room, view: View, image_size: int, rng: np.random.Generator) -> Picture:
    """See the room from a view through a level pinhole camera with 90 degrees of view.

    Args:
        room: the scene.
        view: place and heading of the camera.
        image_size: side S of the picture in pixels.
        rng: draws exposure and noise.
    """
    directions = pixel_directions(view.forward, view.right, image_size)  # [S * S, 3]
    hits = cast(room, view.position[None], directions)
    points = view.position + hits.distance[:, None] * directions
    lengths = np.linalg.norm(directions, axis=1)
    slant = np.maximum(-(hits.normal * directions).sum(1) / lengths, np.float32(1e-3))
    footprint = hits.distance * np.float32(2 / image_size) / slant
    along, up = _face_coordinates(room, points, hits)
    albedo, shine = _albedo(room, along, up, hits, footprint)

    linear = albedo * (_light(room, points, hits) + shine)[:, None]  # [S * S, 3]
    linear *= np.float32(MEAN_LINEAR * rng.uniform(0.8, 1.25) / linear.mean())
    levels = np.minimum(linear, 1) ** np.float32(1 / GAMMA)
    levels += rng.standard_normal(levels.shape, np.float32) * np.float32(SENSOR_NOISE)
    rgb = np.rint(np.clip(levels, 0, 1) * 255).astype(np.uint8)
    shape = (image_size, image_size)
    return Picture(
        rgb.reshape(*shape, 3), hits.distance.reshape(shape), slant.reshape(shape), albedo.mean(1).reshape(shape)
    )
