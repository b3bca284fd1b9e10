"""Furnished rooms of several kinds, and places in them from which a robot looks and listens.

Axes: x and y along the walls, z up, the origin in a lower corner; metres and radians. The kinds of location differ in
size, in furniture and in what their surfaces are made of, so that a kind that was held out is news to a network.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Range = tuple[float, float]

ROOM_FACES = 6
FLOOR, CEILING = 4, 5


@dataclass(frozen=True)
class Material:
    """What a surface looks like and how it answers sound.

    colour: linear RGB reflectance. cell: width and height in metres of tiles, planks, bricks or drawers.
    shift: share of a cell by which every other row is moved. jitter: spread of the cells' brightness.
    joint: width in metres of the lines between cells. absorption: share of sound energy lost below and above the
    crossover. scattering: share of what is left that is reflected in all directions.
    """

    colour: tuple[float, float, float]
    cell: tuple[float, float]
    shift: float
    jitter: float
    joint: float
    absorption: tuple[float, float]
    scattering: float


@dataclass(frozen=True)
class Panel:
    """A door or a window: a rectangle on wall `surface`, along the wall and up, in metres; a window shines."""

    surface: int
    along: Range
    up: Range
    colour: tuple[float, float, float]
    shine: float


@dataclass(frozen=True)
class Room:
    """A scene: size [3], and B boxes with centres [B, 3], half_sizes [B, 3] and yaws [B].

    The materials are those of the room's six faces, then those of the boxes.
    """

    kind: str
    size: Array
    centres: Array
    half_sizes: Array
    yaws: Array
    materials: tuple[Material, ...]
    panels: tuple[Panel, ...]
    lamp: Array

    @cached_property
    def cosines(self) -> Array:
        """[B], of the yaws."""
        return np.cos(self.yaws)

    @cached_property
    def sines(self) -> Array:
        """[B], of the yaws."""
        return np.sin(self.yaws)


@dataclass(frozen=True)
class View:
    """Where the camera and the midpoint between the ears are, position [3], and the heading from the x axis."""

    position: Array
    heading: float

    @cached_property
    def forward(self) -> Array:
        """[3], unit length, level."""
        return np.array([np.cos(self.heading), np.sin(self.heading), 0], np.float32)

    @cached_property
    def right(self) -> Array:
        """[3], unit length, level: from the left ear to the right one."""
        return np.array([np.sin(self.heading), -np.cos(self.heading), 0], np.float32)


@dataclass(frozen=True)
class Piece:
    """A piece of furniture: ranges in metres, its finish, its underside's height, and how often it is at a wall."""

    width: Range
    depth: Range
    height: Range
    finish: str
    underside: Range = (0.0, 0.0)
    at_wall: float = 0.85


@dataclass(frozen=True)
class Kind:
    """A kind of location: ranges of the room's size in metres, its furniture, and its surfaces."""

    width: Range
    length: Range
    height: Range
    pieces: tuple[str, ...]
    count: tuple[int, int]
    walls: tuple[str, ...]
    floors: tuple[str, ...]
    ceilings: tuple[str, ...]


@dataclass(frozen=True)
class Finish:
    """What materials are drawn from: colours to choose from and their spread of brightness, and a material's traits."""

    colours: tuple[tuple[float, float, float], ...]
    cell: tuple[float, float]
    shift: float
    jitter: float
    joint: float
    absorption: tuple[float, float]
    scattering: float
    spread: float = 0.25


# Absorption, below and above the crossover, is such that most rooms reverberate for 0.5 to 1.5 seconds.
FINISHES = {
    # Walls
    "plaster": Finish(((0.72, 0.7, 0.64), (0.62, 0.68, 0.7), (0.7, 0.6, 0.45), (0.5, 0.62, 0.5)), (1.2, 4.0), 0.0, 0.04,
                      0.006, (0.14, 0.2), 0.25),
    "wallpaper": Finish(((0.6, 0.5, 0.42), (0.42, 0.5, 0.58), (0.58, 0.56, 0.4)), (0.26, 9.0), 0.0, 0.22, 0.0,
                        (0.15, 0.28), 0.2),
    "brick": Finish(((0.5, 0.24, 0.17),), (0.24, 0.08), 0.5, 0.2, 0.012, (0.08, 0.14), 0.5),
    "concrete": Finish(((0.42, 0.42, 0.41),), (1.0, 1.0), 0.0, 0.08, 0.012, (0.07, 0.1), 0.3),
    # Floors
    "planks": Finish(((0.42, 0.26, 0.14),), (1.2, 0.15), 0.4, 0.28, 0.006, (0.16, 0.18), 0.2),
    "tiles": Finish(((0.6, 0.58, 0.55), (0.35, 0.36, 0.38), (0.55, 0.42, 0.32)), (0.4, 0.4), 0.0, 0.14, 0.012,
                    (0.05, 0.08), 0.2),
    "carpet": Finish(((0.24, 0.26, 0.34), (0.36, 0.2, 0.18), (0.32, 0.31, 0.28)), (0.5, 0.5), 0.0, 0.1, 0.0,
                     (0.25, 0.55), 0.4),
    # Ceilings
    "panels": Finish(((0.74, 0.74, 0.72),), (0.6, 0.6), 0.0, 0.03, 0.015, (0.4, 0.55), 0.3, spread=0.1),
    "painted": Finish(((0.78, 0.77, 0.74),), (9.0, 9.0), 0.0, 0.0, 0.0, (0.14, 0.16), 0.2, spread=0.1),
    # Furniture
    "wood": Finish(((0.45, 0.3, 0.16), (0.25, 0.14, 0.08), (0.6, 0.48, 0.32), (0.68, 0.68, 0.66)), (0.45, 0.36), 0.0,
                   0.1, 0.01, (0.14, 0.14), 0.3),
    "books": Finish(((0.36, 0.24, 0.18),), (0.06, 0.32), 0.0, 0.6, 0.01, (0.3, 0.4), 0.8),
    "fabric": Finish(((0.16, 0.2, 0.32), (0.36, 0.12, 0.1), (0.3, 0.3, 0.27), (0.1, 0.1, 0.1)), (0.6, 0.42), 0.0, 0.05,
                     0.012, (0.4, 0.7), 0.5),
    "metal": Finish(((0.3, 0.34, 0.38), (0.14, 0.26, 0.2), (0.06, 0.06, 0.07)), (0.4, 0.9), 0.0, 0.06, 0.012,
                    (0.06, 0.08), 0.2),
    "cardboard": Finish(((0.46, 0.33, 0.2),), (0.4, 0.3), 0.5, 0.25, 0.012, (0.25, 0.35), 0.5),
}  # fmt: skip

PIECES = {
    "desk": Piece((1.2, 1.8), (0.6, 0.8), (0.72, 0.78), "wood", at_wall=0.6),
    "cabinet": Piece((0.8, 1.2), (0.4, 0.5), (0.9, 2.0), "wood"),
    "bookshelf": Piece((0.8, 1.8), (0.3, 0.4), (1.6, 2.1), "books"),
    "sofa": Piece((1.5, 2.3), (0.8, 1.0), (0.6, 0.85), "fabric", at_wall=0.7),
    "table": Piece((0.9, 1.8), (0.7, 1.0), (0.45, 0.76), "wood", at_wall=0.1),
    "wardrobe": Piece((1.0, 2.0), (0.55, 0.65), (1.9, 2.2), "wood"),
    "wall_cabinet": Piece((0.8, 1.6), (0.3, 0.4), (0.6, 0.75), "wood", underside=(1.35, 1.5), at_wall=1.0),
    "locker": Piece((0.4, 1.2), (0.45, 0.55), (1.7, 2.0), "metal"),
    "bench": Piece((1.2, 2.0), (0.35, 0.5), (0.42, 0.5), "wood"),
    "counter": Piece((2.0, 3.4), (0.6, 0.9), (0.95, 1.15), "wood", at_wall=0.4),
    "pillar": Piece((0.4, 0.7), (0.4, 0.7), (3.6, 3.6), "concrete", at_wall=0.0),
    "crates": Piece((0.6, 1.4), (0.6, 1.2), (0.5, 1.8), "cardboard", at_wall=0.5),
    "rack": Piece((1.0, 2.4), (0.45, 0.6), (1.8, 2.3), "metal", at_wall=0.7),
}

KINDS = {
    "Corridor": Kind((2.5, 4.0), (8.0, 10.0), (2.3, 3.0), ("locker", "cabinet", "bench", "crates"), (2, 4),
                     ("plaster", "concrete"), ("tiles", "carpet"), ("panels", "painted")),
    "Hall": Kind((7.0, 10.0), (8.0, 10.0), (3.0, 3.6), ("pillar", "counter", "bench", "locker", "sofa"), (3, 6),
                 ("concrete", "brick", "plaster"), ("tiles", "planks"), ("painted", "panels")),
    "Living_Room": Kind((4.0, 9.5), (5.0, 10.0), (2.4, 3.2), ("sofa", "table", "bookshelf", "wardrobe", "cabinet"),
                        (3, 6), ("wallpaper", "plaster"), ("planks", "carpet"), ("painted",)),
    "Office": Kind((3.0, 10.0), (4.0, 10.0), (2.4, 3.5), ("desk", "desk", "cabinet", "bookshelf", "wall_cabinet"),
                   (3, 6), ("plaster",), ("carpet", "tiles"), ("panels",)),
    "Storage": Kind((3.0, 10.0), (4.0, 10.0), (2.4, 3.6), ("rack", "crates", "crates", "locker"), (3, 6),
                    ("brick", "concrete"), ("tiles", "planks"), ("painted",)),
}  # fmt: skip

CAMERA_HEIGHT: Range = (1.0, 1.3)
WALL_CLEARANCE = 0.3
BOX_CLEARANCE = 0.3
MIN_PIECES = 2


def _tinted(
    rng: np.random.Generator, base: tuple[float, float, float], spread: float = 0.25
) -> tuple[float, float, float]:
    """A colour near `base`: brightness within +-spread, each channel within +-10 %."""
    tint = rng.uniform(1 - spread, 1 + spread) * rng.uniform(0.9, 1.1, 3)
    red, green, blue = np.clip(np.array(base) * tint, 0.02, 0.9)
    return float(red), float(green), float(blue)


def _draw_material(name: str, rng: np.random.Generator) -> Material:
    finish = FINISHES[name]
    base = finish.colours[rng.integers(len(finish.colours))]
    colour = _tinted(rng, base, finish.spread)
    return Material(
        colour, finish.cell, finish.shift, finish.jitter, finish.joint, finish.absorption, finish.scattering
    )


def _footprint(centre: Array, half: Array, yaw: float) -> tuple[float, float, float, float]:
    """Axis-aligned rectangle around a turned box: x from, x to, y from, y to."""
    cos, sin = abs(np.cos(yaw)), abs(np.sin(yaw))
    x, y = cos * half[0] + sin * half[1], sin * half[0] + cos * half[1]
    return centre[0] - x, centre[0] + x, centre[1] - y, centre[1] + y


def _place(piece: Piece, size: Array, rng: np.random.Generator) -> tuple[Array, Array, float]:
    """Centre, half size and yaw of a piece: with its back to a wall, or free-standing and turned at random."""
    half = np.array([rng.uniform(*piece.width), rng.uniform(*piece.depth), rng.uniform(*piece.height)]) / 2
    underside = rng.uniform(*piece.underside)
    half[2] = min(half[2], (size[2] - underside) / 2 - 0.01)
    quarter = int(rng.integers(4))  # the wall behind it: y = 0, x = width, y = length, x = 0
    at_wall = rng.random() < piece.at_wall
    yaw = quarter * np.pi / 2 + rng.uniform(-0.05, 0.05) if at_wall else rng.uniform(0, 2 * np.pi)
    x_from, x_to, y_from, y_to = _footprint(np.zeros(3), half, yaw)
    x = rng.uniform(0.02, 0.98) * (size[0] - (x_to - x_from)) - x_from
    y = rng.uniform(0.02, 0.98) * (size[1] - (y_to - y_from)) - y_from
    if at_wall:
        gap = rng.uniform(0.01, 0.05)
        x = (x, size[0] - gap - x_to, x, gap - x_from)[quarter]
        y = (gap - y_from, y, size[1] - gap - y_to, y)[quarter]
    return np.array([x, y, underside + half[2]]), half, yaw


def _furnish(kind: Kind, size: Array, rng: np.random.Generator) -> list[tuple[Array, Array, float, Material]]:
    """Pieces that fit into the room and keep clear of each other."""
    placed: list[tuple[Array, Array, float, Material]] = []
    taken: list[tuple[float, float, float, float]] = []
    wanted = int(rng.integers(kind.count[0], kind.count[1] + 1))
    for _ in range(6 * wanted):
        if len(placed) == wanted:
            break
        piece = PIECES[kind.pieces[rng.integers(len(kind.pieces))]]
        centre, half, yaw = _place(piece, size, rng)
        x_from, x_to, y_from, y_to = _footprint(centre, half, yaw)
        inside = x_from > 0 and y_from > 0 and x_to < size[0] and y_to < size[1]
        free = all(x_to < a or x_from > b or y_to < c or y_from > d for a, b, c, d in taken)
        if inside and free:
            placed.append((centre, half, yaw, _draw_material(piece.finish, rng)))
            taken.append((x_from, x_to, y_from, y_to))
    return placed


def _panels_of(size: Array, rng: np.random.Generator) -> tuple[Panel, ...]:
    """One door, and a window or two in the other walls; their sizes hardly vary, as in buildings."""
    walls = rng.permutation(4)
    panels = []
    for number, surface in enumerate(walls[: int(rng.integers(2, 4))]):
        extent = size[1] if surface < 2 else size[0]
        width = rng.uniform(0.8, 0.95) if number == 0 else rng.uniform(1.0, 1.6)
        start = rng.uniform(0.15, max(extent - width - 0.15, 0.16))
        up = (0.0, 2.03) if number == 0 else (0.9, 2.05)
        colour = _tinted(rng, (0.4, 0.28, 0.18) if number == 0 else (0.72, 0.8, 0.9), 0.2)
        panels.append(
            Panel(int(surface), (start, start + width), up, colour, 0.0 if number == 0 else rng.uniform(0.3, 1.0))
        )
    return tuple(panels)


def draw_room(kind: str, rng: np.random.Generator) -> Room:
    """A furnished room of a kind of :data:`KINDS` (KeyError for another); which of its sides is the long one varies."""
    features = KINDS[kind]
    while True:
        sides = [rng.uniform(*features.width), rng.uniform(*features.length)]
        size = np.array([*(sides[:: rng.choice([1, -1])]), rng.uniform(*features.height)])
        placed = _furnish(features, size, rng)
        if len(placed) >= MIN_PIECES:
            break
    wall, floor, ceiling = (
        _draw_material(names[rng.integers(len(names))], rng)
        for names in (features.walls, features.floors, features.ceilings)
    )
    lamp = np.array([*(size[:2] * rng.uniform(0.3, 0.7, 2)), size[2] - 0.25])
    return Room(
        kind=kind,
        size=size.astype(np.float32),
        centres=np.array([centre for centre, *_ in placed], np.float32),  # [B, 3]
        half_sizes=np.array([half for _, half, *_ in placed], np.float32),
        yaws=np.array([yaw for *_, yaw, _ in placed], np.float32),
        materials=(wall, wall, wall, wall, floor, ceiling, *(material for *_, material in placed)),
        panels=_panels_of(size, rng),
        lamp=lamp.astype(np.float32),
    )


def draw_position(room: Room, rng: np.random.Generator) -> View | None:
    """A place away from walls and furniture with a random heading, or None where the draw fell on furniture."""
    x, y = (rng.uniform(WALL_CLEARANCE, float(side) - WALL_CLEARANCE) for side in room.size[:2])
    view = View(np.array([x, y, rng.uniform(*CAMERA_HEIGHT)], np.float32), rng.uniform(0, 2 * np.pi))
    for centre, half, yaw in zip(room.centres, room.half_sizes, room.yaws, strict=True):
        x_from, x_to, y_from, y_to = _footprint(centre, half, float(yaw))
        if x_from - BOX_CLEARANCE < x < x_to + BOX_CLEARANCE and y_from - BOX_CLEARANCE < y < y_to + BOX_CLEARANCE:
            return None
    return view
