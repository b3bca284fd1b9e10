"""What two ears hear after a chirp: direct pulse, reflections and reverberation of the same geometry that is seen.

The impulse response of each ear is a histogram of arrivals over time, in two bands of frequency and four times
oversampled, so that differences of a few microseconds between the ears survive. It holds

- specular reflections of the room as image sources (Allen and Berkley, "Image method for efficiently simulating
  small-room acoustics", JASA 1979), with occlusion by furniture, and those in the furniture's own faces;
- diffuse returns of rays over a Fibonacci sphere, with Lambert's law (Kuttruff, "Room Acoustics", chapter 4);
- a tail of noise that decays as Sabine's formula says.

Amplitudes are those of a source that would be heard with amplitude 1 at a distance of 1 m straight ahead.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from simulation.raycast import cast, occluded
from simulation.rooms import FLOOR, ROOM_FACES, Array, Room, View

SPEED_OF_SOUND = 340.0  # m/s, the value with which recordings are cut to a maximal depth
SAMPLE_RATE = 44100
FRAMES = 8192  # 0.186 s: as long as the cut at 30 m (7782 samples) asks for
OVERSAMPLING = 4
BINS = FRAMES * OVERSAMPLING
ONSET = 287  # sample at which the direct pulse arrives (6.5 ms), as in real recordings

# BatVision's chirp, and a head. What takes it out of a recording (``dataloaders.interaural``) has numbers of its own,
# since prepared samples are kept for as long as the code of that room is the same; a test compares the two.
EAR_DISTANCE = 0.2  # metres
CHIRP_SECONDS = 0.003
CHIRP_BAND = (20.0, 20_000.0)  # Hz
CHIRP_FADE = 0.0002  # seconds, in and out
CROSSOVER = 4000.0  # Hz, between the two bands
# What loudspeaker and microphones let pass around 1, 3, ... 19 kHz (dB), so that the echoes, which rooms and ears
# colour too, have a real echo's energy in bands of 2 kHz: -8, -4, 0, -10, -16, -23, -21, -18, -17, -23 dB.
BAND_CENTRES = np.arange(1000.0, 20_000.0, 2000.0)
BAND_RESPONSE = np.array([-13, -9.5, 0, -12.5, -19, -28.5, -25.5, -21.5, -20, -29.0])

RAYS = 1200
BOUNCES = 3
IMAGE_ORDER = 3
DIRECT_AMPLITUDE = 0.6  # the loudspeaker faces away from the ears
SHADOW_LOW, SHADOW_HIGH = 1.5, 8.0  # dB that an ear gains or loses by a sound exactly from its side, per band
PINNA_AMPLITUDE = 0.5
PINNA_DELAY = 90e-6  # seconds between a sound from ahead and its reflection in the outer ear
PINNA_TRAVEL = 60e-6  # by how much that delay shrinks for sounds from above and grows for those from below
DIRECT_PEAK = 0.45  # of full scale, before the gain
GAIN_DB = 2.0
NOISE = 0.01  # standard deviation relative to the direct pulse

_PAD = 1024  # keeps the circular convolution from wrapping around


def radiation(cosine: Array) -> Array:
    """Amplitude [..., 2] per band of a source that radiates forward, for the cosine to its axis [...]."""
    low = 0.7 + 0.3 * cosine
    high = 0.1 + 0.9 * np.maximum((1 + cosine) / 2, 0) ** 1.5
    return np.stack([low, high], -1)


def ear_positions(view: View) -> Array:
    """Left and right ear: [2, 3], metres."""
    return view.position + np.array([[-0.5], [0.5]], np.float32) * EAR_DISTANCE * view.right


def room_images(size: Array, source: Array, order: int = IMAGE_ORDER) -> tuple[NDArray, NDArray, NDArray]:
    """Image sources of an empty box room.

    Args:
        size: [3], metres.
        source: [3], metres, inside.
        order: greatest number of reflections.

    Returns:
        positions [K, 3]; whether each axis is mirrored [K, 3] bool; reflections at each of the six faces [K, 6]. The
        first row is the source itself.
    """
    cells = np.stack(np.meshgrid(*3 * [np.arange(-order, order + 1)], indexing="ij"), -1).reshape(-1, 3)
    cells = cells[np.abs(cells).sum(1) <= order]
    cells = cells[np.argsort(np.abs(cells).sum(1), kind="stable")]  # [K, 3], images of the room by reflections per axis
    mirrored = cells % 2 == 1
    size, source = np.asarray(size, np.float64), np.asarray(source, np.float64)
    positions = cells * size + np.where(mirrored, size - source, source)
    # Walking n cells in the positive direction crosses the far face first, then the near one, and so on.
    count = np.abs(cells)
    first, second = (count + 1) // 2, count // 2
    near, far = np.where(cells < 0, first, second), np.where(cells < 0, second, first)
    return positions, mirrored, np.stack([near, far], -1).reshape(-1, ROOM_FACES)


def _unobstructed(room: Room, origin: Array, images: NDArray, order: int) -> NDArray[np.bool_]:
    """Whether the path from `origin` [3] to each image [K, 3], folded back into the room, passes all furniture: [K]."""
    offsets = images - origin
    left = np.linalg.norm(offsets, axis=1).astype(np.float32)  # metres still to go
    directions = (offsets / left[:, None]).astype(np.float32)
    points = np.broadcast_to(origin, directions.shape).astype(np.float32)
    clear = np.ones(len(images), bool)
    for _ in range(order + 1):
        hits = cast(room, points, directions)
        step = np.minimum(hits.distance, left)
        clear &= ~((hits.surface >= ROOM_FACES) & (hits.distance < left))
        points = points + step[:, None] * directions + hits.normal * np.float32(1e-4)
        left = left - step
        directions = directions - 2 * (directions * hits.normal).sum(1, keepdims=True) * hits.normal
    return clear


def _reflectances(room: Room) -> tuple[Array, Array]:
    """Share of sound energy that each surface reflects per band [N, 2], and the scattered share of it [N]."""
    absorption = np.array([material.absorption for material in room.materials], np.float32)
    return 1 - absorption, np.array([material.scattering for material in room.materials], np.float32)


def room_reflections(room: Room, view: View) -> tuple[Array, Array]:
    """Image sources of the room's faces without the source itself: positions [K, 3], amplitudes [K, 2] at 1 m."""
    images, mirrored, crossings = (rows[1:] for rows in room_images(room.size, view.position))
    kept = _unobstructed(room, view.position, images, IMAGE_ORDER)
    images, mirrored, crossings = images[kept], mirrored[kept], crossings[kept]
    reflected, scattered = _reflectances(room)
    per_face = np.sqrt(reflected * (1 - scattered)[:, None])[:ROOM_FACES]  # [6, 2]
    amplitudes = (per_face ** crossings[:, :, None]).prod(1)  # [K, 2]
    leaving = np.where(mirrored, -1, 1) * (view.position - images)  # the direction in which the source let it go
    cosines = leaving @ view.forward / np.linalg.norm(leaving, axis=1)
    return images.astype(np.float32), (amplitudes * radiation(cosines)).astype(np.float32)


def furniture_reflections(room: Room, view: View) -> tuple[Array, Array]:
    """Images in the furniture's faces, and in the edges where upright faces meet the floor: [K, 3], [K, 2].

    Source and ears are so close to each other that a face answers where the perpendicular from the robot meets it, and
    a face with the floor (a corner reflector) where the perpendicular to their common edge does.
    """
    reflected, scattered = _reflectances(room)
    feet, amplitudes = [], []
    for box, (centre, half) in enumerate(zip(room.centres, room.half_sizes, strict=True)):
        offset = view.position - centre
        cos, sin = room.cosines[box], room.sines[box]
        local = np.array([cos * offset[0] + sin * offset[1], cos * offset[1] - sin * offset[0], offset[2]])
        surface = ROOM_FACES + box
        face = np.sqrt(reflected[surface] * (1 - scattered[surface]))  # [2]
        edge = face * np.sqrt(reflected[FLOOR] * (1 - scattered[FLOOR]))
        for axis in range(3):
            if abs(local[axis]) <= half[axis]:
                continue
            others = [other for other in range(3) if other != axis]
            foot = local.copy()
            foot[axis] = np.copysign(half[axis], local[axis])
            if np.all(np.abs(local[others]) < half[others]):
                feet.append((foot, box))
                amplitudes.append(face)
            on_floor = centre[2] - half[2] < 1e-3
            if axis < 2 and on_floor and abs(local[others[0]]) < half[others[0]]:
                foot = foot.copy()
                foot[2] = -half[2]
                feet.append((foot, box))
                amplitudes.append(edge)
    if not feet:
        return np.zeros((0, 3), np.float32), np.zeros((0, 2), np.float32)
    local = np.array([foot for foot, _ in feet])
    boxes = np.array([box for _, box in feet])
    cos, sin = room.cosines[boxes], room.sines[boxes]
    turned = np.stack([cos * local[:, 0] - sin * local[:, 1], sin * local[:, 0] + cos * local[:, 1], local[:, 2]], 1)
    points = (turned + room.centres[boxes]).astype(np.float32)  # [K, 3]
    back = view.position - points
    seen = ~occluded(room, view.position[None], points + 0.01 * back / np.linalg.norm(back, axis=1, keepdims=True))
    points, back = points[seen], back[seen]
    cosines = -(back @ view.forward) / np.linalg.norm(back, axis=1)
    return points - back, (np.array(amplitudes)[seen] * radiation(cosines)).astype(np.float32)


@cache
def _fibonacci_sphere(count: int) -> Array:
    """Directions [count, 3] of unit length, spread evenly."""
    number = np.arange(count) + 0.5
    z = 1 - 2 * number / count
    angle = np.pi * (1 + 5**0.5) * number
    radius = np.sqrt(1 - z**2)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), z], 1).astype(np.float32)


def diffuse_returns(room: Room, view: View, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Scattered returns: points [K, 3], metres travelled up to them [K], amplitudes [K, 2] at 1 m from the point.

    A ray carries 4 pi / RAYS of the source's energy; a surface of Lambert's kind sends cos(theta) / pi of what it
    scatters to a unit of solid angle. Signs are random: a rough surface answers without a definite phase.
    """
    reflected, scattered = _reflectances(room)
    turn = rng.uniform(0, 2 * np.pi)
    sphere = _fibonacci_sphere(RAYS)
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    x, y, z = sphere.T
    directions = np.stack([cos * x - sin * y, sin * x + cos * y, z], 1)  # [R, 3]
    energy = radiation(directions @ view.forward) ** 2 * np.float32(4 / RAYS)  # [R, 2]
    travelled: Array = np.zeros(RAYS, np.float32)
    points = np.broadcast_to(view.position, (RAYS, 3))
    found = []
    for bounce in range(BOUNCES):
        hits = cast(room, points, directions)
        points = points + hits.distance[:, None] * directions + hits.normal * np.float32(2e-3)
        travelled = travelled + hits.distance
        energy = energy * reflected[hits.surface]
        back = view.position - points
        cosines = np.maximum((back * hits.normal).sum(1) / np.linalg.norm(back, axis=1), 0)
        returned = np.sqrt(energy * (scattered[hits.surface] * cosines)[:, None])
        returned *= rng.choice(np.array([-1, 1], np.float32), RAYS)[:, None]
        if bounce:
            returned *= ~occluded(room, points, view.position[None])[:, None]
        found.append((points, travelled, returned))
        mirror = directions - 2 * (directions * hits.normal).sum(1, keepdims=True) * hits.normal
        lambert = hits.normal * np.float32(1.001) + _unit(rng.standard_normal((RAYS, 3), np.float32))
        rough = rng.random(RAYS, np.float32) < scattered[hits.surface]
        directions = np.where(rough[:, None], _unit(lambert), mirror)
    all_points, all_travelled, all_returned = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return all_points, all_travelled, all_returned


def _unit(vectors: Array) -> Array:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def arrivals(view: View, positions: Array, travelled: Array) -> tuple[Array, Array]:
    """How sounds that spread from `positions` reach the two ears.

    Args:
        view: place and heading of the head.
        positions: [K, 3], metres: image sources, or the points of a surface that scatter.
        travelled: [K], metres from the source to there (0 for image sources).

    Returns:
        seconds since emission [2, K], exact for each ear, and gains [2, K, 2] per band: spreading by 1 / distance, the
        head's shadow and the ears' preference for sounds from ahead.
    """
    offsets = positions - ear_positions(view)[:, None]  # [2, K, 3]
    distance = np.linalg.norm(offsets, axis=2)
    seconds = (travelled + distance) / np.float32(SPEED_OF_SOUND)
    from_head = _unit(positions - view.position)  # [K, 3]
    side = (from_head @ view.right) * np.array([[-1], [1]], np.float32)  # [2, K], 1 exactly on the ear's own side
    ahead = from_head @ view.forward
    decibels = side[..., None] * np.array([SHADOW_LOW, SHADOW_HIGH], np.float32)  # [2, K, 2]
    decibels += ahead[:, None] * np.array([0, 3], np.float32)
    gains = 10 ** (decibels / 20) / distance[..., None]
    return seconds, gains.astype(np.float32)


def impulse_response(room: Room, view: View, rng: np.random.Generator) -> Array:
    """Arrivals at each ear and band, oversampled, from the emission on: [2 ears, 2 bands, BINS]."""
    room_positions, room_amplitudes = room_reflections(room, view)
    box_positions, box_amplitudes = furniture_reflections(room, view)
    ray_points, ray_travelled, ray_amplitudes = diffuse_returns(room, view, rng)
    positions = np.concatenate([room_positions, box_positions, ray_points])  # [K, 3]
    travelled = np.concatenate([np.zeros(len(room_positions) + len(box_positions), np.float32), ray_travelled])
    amplitudes = np.concatenate([room_amplitudes, box_amplitudes, ray_amplitudes])  # [K, 2]
    seconds, gains = arrivals(view, positions, travelled)
    return histogram(seconds, gains * amplitudes, _unit(positions - view.position)[:, 2])


def histogram(seconds: Array, amplitudes: Array, elevation: Array) -> Array:
    """Arrivals over time with each one's echo in the outer ear, and the direct pulse: [2, 2, BINS].

    Args:
        seconds: [2, K], since emission.
        amplitudes: [2, K, 2], per ear and band.
        elevation: [K], sine of the angle above the horizon, which sets the delay of the outer ear's reflection: the
            notch that it leaves in the spectrum rises with the elevation.
    """
    rate = SAMPLE_RATE * OVERSAMPLING
    pinna = seconds + np.float32(PINNA_DELAY) - np.float32(PINNA_TRAVEL) * elevation
    bins = np.rint(np.concatenate([seconds, pinna], 1) * np.float32(rate)).astype(np.int64)  # [2, 2 K]
    weights = np.concatenate([amplitudes, PINNA_AMPLITUDE * amplitudes], 1)  # [2, 2 K, 2]
    bins = np.minimum(bins, BINS)  # too late: dropped with the last bin
    response = np.array(
        [[np.bincount(bins[ear], weights[ear, :, band], BINS + 1)[:BINS] for band in range(2)] for ear in range(2)]
    )
    response[:, :, round(EAR_DISTANCE / 2 / SPEED_OF_SOUND * rate)] += DIRECT_AMPLITUDE
    return response.astype(np.float32)


def reverberation(room: Room, rng: np.random.Generator) -> Array:
    """The tail that follows the traced reflections: noise [2 ears, 2 bands, FRAMES] at the sample rate.

    An impulse of energy 4 pi in a volume V makes a diffuse field of intensity 4 pi c / V, which decays by 60 dB in
    Sabine's 24 ln(10) V / (c A) seconds, A being the absorbing area (Kuttruff, "Room Acoustics", chapter 5).
    """
    reflected, _ = _reflectances(room)
    width, length, height = room.size.astype(np.float64)
    faces = np.array([length * height] * 2 + [width * height] * 2 + [width * length] * 2)
    half = room.half_sizes.astype(np.float64)
    boxes = 8 * (half[:, 0] + half[:, 1]) * half[:, 2] + 4 * half[:, 0] * half[:, 1]
    absorbing = np.concatenate([faces, boxes]) @ (1 - reflected)  # [2], square metres
    volume = width * length * height - 8 * half.prod(1).sum()
    time = np.arange(FRAMES) / SAMPLE_RATE
    decay = np.exp(-SPEED_OF_SOUND * absorbing[:, None] * time / (8 * volume))  # [2, FRAMES], of the amplitude
    start = BOUNCES * 4 * volume / faces.sum() / SPEED_OF_SOUND  # seconds for as many mean free paths
    rise = np.clip(time / start - 0.5, 0, 1)
    level = np.sqrt(4 * np.pi * SPEED_OF_SOUND / volume / SAMPLE_RATE)
    forward = np.array([0.7, 0.5])[:, None]  # root mean square of `radiation` over the sphere
    noise = rng.standard_normal((2, 1, FRAMES), np.float32)
    return (noise * (forward * level * rise * decay)).astype(np.float32)


def chirp() -> NDArray[np.float64]:
    """The linear sweep that the loudspeaker is given, at SAMPLE_RATE: [132]."""
    time = np.arange(round(CHIRP_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    low, high = CHIRP_BAND
    sweep = np.sin(2 * np.pi * (low + (high - low) * time / (2 * CHIRP_SECONDS)) * time)
    return sweep * np.minimum(np.minimum(time, time[::-1]) / CHIRP_FADE, 1)


@cache
def _pulse_spectrum() -> NDArray[np.complex128]:
    """The chirp through loudspeaker and microphone, per band: [2, F], with the direct pulse put at ONSET."""
    count = FRAMES + _PAD
    frequency = np.fft.rfftfreq(count, 1 / SAMPLE_RATE)
    colour = 10 ** (np.interp(frequency, BAND_CENTRES, BAND_RESPONSE) / 20)
    shift = (ONSET - EAR_DISTANCE / 2 / SPEED_OF_SOUND * SAMPLE_RATE) / SAMPLE_RATE
    pulse = np.fft.rfft(chirp(), count) * colour * np.exp(-2j * np.pi * frequency * shift)
    pulse *= DIRECT_PEAK / np.abs(np.fft.irfft(pulse, count)).max() / DIRECT_AMPLITUDE
    below = 1 / (1 + (frequency / CROSSOVER) ** 4)
    return np.stack([below, 1 - below]) * pulse


def record(room: Room, view: View, rng: np.random.Generator) -> Array:
    """Emit one chirp and listen: left and right channel [2, FRAMES] of a recording at SAMPLE_RATE, in [-1, 1].

    Args:
        room: the scene.
        view: place and heading of the head; its loudspeaker radiates forward.
        rng: draws surface phases, tail, gain and noise.
    """
    count = FRAMES + _PAD
    spectrum = np.fft.rfft(impulse_response(room, view, rng), count * OVERSAMPLING)  # [2, 2, ...]
    spectrum = spectrum[..., : count // 2 + 1] + np.fft.rfft(reverberation(room, rng), count)
    signal = np.fft.irfft((spectrum * _pulse_spectrum()).sum(1), count)[:, :FRAMES]  # [2, FRAMES]
    gain = 10 ** (rng.uniform(-GAIN_DB, GAIN_DB) / 20)
    signal = gain * signal + NOISE * DIRECT_PEAK * rng.standard_normal(signal.shape)
    return np.clip(signal, -1, 1).astype(np.float32)
