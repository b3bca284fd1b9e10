"""One sample: a room, a view of it that shows something, and what camera, depth camera and ears make of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulation.echoes import record
from simulation.raycast import cast, pixel_directions
from simulation.rendering import render
from simulation.rooms import KINDS, Array, Room, View, draw_position, draw_room
from simulation.sensors import measure

SPLITS = ("train", "val", "test")

PREVIEW = 16  # pixels: views are judged at this size, so that rooms do not depend on the image size
VIEWS_PER_ROOM = 30
MIN_MEDIAN_DEPTH = 1.2
MIN_CENTRE_DEPTH = 0.8
NEAR_DEPTH, MAX_NEAR_SHARE = 0.6, 0.1


@dataclass(frozen=True)
class Sample:
    """rgb [S, S, 3] uint8; depth [S, S] metres, measured, without holes; lost [S, S] bool, a real depth camera's holes.

    audio [2, T] lies in [-1, 1]; it is None where no echo was asked for.
    """

    rgb: NDArray[np.uint8]
    depth: Array
    lost: NDArray[np.bool_]
    audio: Array | None


def is_open(room: Room, view: View) -> bool:
    """Whether a view has something to show: no wall before the nose, no piece of furniture that fills it."""
    depth = cast(room, view.position[None], pixel_directions(view.forward, view.right, PREVIEW)).distance
    middle = slice(PREVIEW // 2 - 2, PREVIEW // 2 + 2)
    centre = depth.reshape(PREVIEW, PREVIEW)[middle, middle]
    return bool(
        np.median(depth) > MIN_MEDIAN_DEPTH
        and centre.min() >= MIN_CENTRE_DEPTH
        and (depth < NEAR_DEPTH).mean() < MAX_NEAR_SHARE
    )


def draw_scene(kind: str, rng: np.random.Generator) -> tuple[Room, View]:
    """A room of this kind and an open view of it; a room that offers none in thirty draws is replaced."""
    while True:
        room = draw_room(kind, rng)
        for _ in range(VIEWS_PER_ROOM):
            view = draw_position(room, rng)
            if view is not None and is_open(room, view):
                return room, view


def kind_of(index: int) -> str:
    """The kind of location of a split's sample `index`: they take turns."""
    return tuple(KINDS)[index % len(KINDS)]


def draw_sample(seed: int, split: str, index: int, image_size: int, with_audio: bool = True) -> Sample:
    """The sample that (seed, split, index) stands for: always the same bits; no two share a room.

    Args:
        seed: of the data set, >= 0.
        split: one of :data:`SPLITS`.
        index: within the split, from 0.
        image_size: side S in pixels; room, view and echo do not depend on it.
        with_audio: also listen.
    """
    streams = np.random.SeedSequence([seed, SPLITS.index(split), index]).spawn(4)
    scene, picture_noise, depth_noise, echo = (np.random.default_rng(stream) for stream in streams)
    room, view = draw_scene(kind_of(index), scene)
    picture = render(room, view, image_size, picture_noise)
    depth, lost = measure(picture.depth, picture.slant, picture.reflectance, depth_noise)
    return Sample(picture.rgb, depth, lost, record(room, view, echo) if with_audio else None)
