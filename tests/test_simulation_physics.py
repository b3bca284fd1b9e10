"""Simulated rooms against geometry worked out by hand, closed formulas and pyroomacoustics."""

from __future__ import annotations

import numpy as np
import pytest

from simulation import echoes
from simulation.echoes import SAMPLE_RATE, SPEED_OF_SOUND
from simulation.raycast import cast, occluded, pixel_directions
from simulation.rendering import render
from simulation.rooms import CAMERA_HEIGHT, KINDS, Material, Room, View
from simulation.scenes import SPLITS, draw_sample, draw_scene, kind_of

BIN = 1 / (SAMPLE_RATE * echoes.OVERSAMPLING)  # seconds
HARD = (0.0, 0.0)
DEAD = (1.0, 1.0)


def material(absorption=HARD, scattering=0.0):
    return Material((0.5, 0.5, 0.5), (9.0, 9.0), 0.0, 0.0, 0.0, absorption, scattering)


def make_room(size, boxes=(), absorption=None, scattering=0.0, box_material=None):
    """A room with boxes (centre, half size, yaw); `absorption` of faces that differ from fully absorbing."""
    faces = tuple(material((absorption or {}).get(face, DEAD), scattering) for face in range(6))
    return Room(
        kind="Office",
        size=np.array(size, np.float32),
        centres=np.array([box[0] for box in boxes], np.float32).reshape(-1, 3),
        half_sizes=np.array([box[1] for box in boxes], np.float32).reshape(-1, 3),
        yaws=np.array([box[2] for box in boxes], np.float32),
        materials=(*faces, *(box_material or material(DEAD) for _ in boxes)),
        panels=(),
        lamp=np.array([size[0] / 2, size[1] / 2, size[2] - 0.2], np.float32),
    )


def look(position, heading=0.0):
    return View(np.array(position, np.float32), heading)


def first_arrivals(response):
    """Bin of each ear's first arrival behind the direct pulse, over both bands."""
    direct = round(echoes.EAR_DISTANCE / 2 / SPEED_OF_SOUND / BIN)
    energy = np.abs(response).sum(1)
    energy[:, direct] = 0
    return [int(np.flatnonzero(ear)[0]) for ear in energy]


# ---- depth


@pytest.mark.parametrize("image_size", [16, 33])
def test_depth_of_an_empty_room_is_the_distance_to_its_planes(image_size):
    picture = render(make_room((6, 8, 3)), look((1.5, 3.0, 1.2)), image_size, np.random.default_rng(0))
    tangent = (np.arange(image_size) + 0.5) / image_size * 2 - 1
    with np.errstate(divide="ignore"):
        down, up = (np.where(sign * tangent > 0, h / (sign * tangent), np.inf) for sign, h in ((1, 1.2), (-1, 1.8)))
        right, left = (np.where(sign * tangent > 0, w / (sign * tangent), np.inf) for sign, w in ((1, 3.0), (-1, 5.0)))
    expected = np.minimum(np.minimum(down, up)[:, None], np.minimum(right, left)[None, :])
    np.testing.assert_allclose(picture.depth, np.minimum(expected, 4.5), rtol=1e-5)
    assert np.isclose(picture.depth, 4.5).any(), "the wall in front is in view"


def test_depth_does_not_depend_on_the_heading_of_a_symmetric_room():
    room = make_room((6, 6, 3))
    pictures = [
        render(room, look((3, 3, 1.1), quarter * np.pi / 2), 16, np.random.default_rng(0)) for quarter in range(4)
    ]
    for picture in pictures[1:]:
        np.testing.assert_allclose(picture.depth, pictures[0].depth, atol=1e-4)


def test_ray_meets_the_corner_of_a_turned_box():
    room = make_room((8, 6, 3), [((4, 3, 1), (0.5, 0.5, 1), np.pi / 4)])
    rays = np.array([[1, 0, 0], [1, 0.3 / 2.5, 0], [0, 1, 0]], np.float32)
    hits = cast(room, np.array([[1, 3 - 1e-4, 1]], np.float32), rays)
    assert hits.distance[0] == pytest.approx(3 - np.sqrt(0.5), abs=1e-3)
    # The second ray meets the face x - y = 4 - sqrt(1/2) - 3: x = 1 + t, y = 3 + 0.12 t.
    assert hits.distance[1] == pytest.approx((3 - np.sqrt(0.5)) / (1 - 0.12), abs=1e-3)
    assert hits.surface.tolist() == [6, 6, 3]
    np.testing.assert_allclose(hits.normal[1], [-np.sqrt(0.5), np.sqrt(0.5), 0], atol=1e-6)
    np.testing.assert_allclose(hits.normal[2], [0, -1, 0], atol=1e-6)


def test_normals_are_unit_vectors_against_the_ray():
    room = make_room((7, 6, 3), [((4, 3.5, 0.4), (0.5, 0.3, 0.4), 0.4), ((5, 2, 1.5), (0.3, 0.8, 0.4), -1.2)])
    view = look((1, 2.5, 1.2), 0.1)
    directions = pixel_directions(view.forward, view.right, 32)
    hits = cast(room, view.position[None], directions)
    assert set(hits.surface) >= {6, 7}
    np.testing.assert_allclose(np.linalg.norm(hits.normal, axis=1), 1, atol=1e-5)
    assert ((hits.normal * directions).sum(1) < 0).all()


def test_occlusion_is_by_furniture_between_two_points():
    room = make_room((6, 6, 3), [((3, 3, 1), (0.5, 0.5, 1), 0.3)])
    points = np.array([[5, 3, 1], [2, 3, 2.9], [1.5, 3, 1], [3, 5, 1]], np.float32)
    assert occluded(room, np.array([[1, 3, 1]], np.float32), points).tolist() == [True, False, False, False]


def test_shadow_falls_below_a_box_under_the_lamp():
    view = look((1, 3, 1.2))
    bare = make_room((6, 6, 3))
    shaded = make_room((6, 6, 3), [((3, 3, 2.3), (0.08, 0.08, 0.1), 0.0)])
    images = [render(room, view, 64, np.random.default_rng(0)).rgb.astype(float) for room in (bare, shaded)]
    # The floor straight below the lamp, 2 m ahead, against the floor near the camera, where the lamp is free.
    row = int((1.2 / 2 + 1) / 2 * 64)
    ratios = [image[row, 31:33].mean() / image[60, 31:33].mean() for image in images]
    assert ratios[1] < 0.75 * ratios[0]


# ---- echoes


def test_image_sources_of_an_empty_room_are_those_of_pyroomacoustics():
    pra = pytest.importorskip("pyroomacoustics")
    size, source = [5.2, 3.7, 2.6], [1.3, 2.2, 1.1]
    oracle = pra.ShoeBox(size, fs=SAMPLE_RATE, max_order=3, materials=pra.Material(0.1))
    oracle.add_source(source)
    oracle.add_microphone([2.0, 1.5, 1.2])
    oracle.image_source_model()
    images, _, crossings = echoes.room_images(np.array(size), np.array(source), 3)
    assert len(images) == 63
    order = np.lexsort(np.round(images, 4).T)
    theirs = oracle.sources[0].images.T
    their_order = np.lexsort(np.round(theirs, 4).T)
    np.testing.assert_allclose(images[order], theirs[their_order], atol=1e-4)
    np.testing.assert_array_equal(crossings.sum(1)[order], oracle.sources[0].orders[their_order])
    # Each reflection costs the share that its own face absorbs: west, east, south, north, floor, ceiling.
    names = ("west", "east", "south", "north", "floor", "ceiling")
    for face, name in enumerate(names):
        lossy = pra.ShoeBox(
            size,
            fs=SAMPLE_RATE,
            max_order=3,
            materials={other: pra.Material(0.75 if other == name else 0.0) for other in names},
        )
        lossy.add_source(source)
        lossy.add_microphone([2.0, 1.5, 1.2])
        lossy.image_source_model()
        damping = lossy.sources[0].damping
        found = damping[0] if damping.ndim == 2 else damping
        np.testing.assert_allclose(0.5 ** crossings[order, face], found[their_order], atol=1e-6)


@pytest.mark.parametrize("distance", [1.0, 2.75, 5.5])
def test_single_wall_answers_after_twice_its_distance(distance):
    room = make_room((9, 6, 3), absorption={1: HARD})
    response = echoes.impulse_response(room, look((9 - distance, 3, 1.2)), np.random.default_rng(0))
    path = np.hypot(2 * distance, echoes.EAR_DISTANCE / 2)
    assert path / SPEED_OF_SOUND == pytest.approx(2 * distance / SPEED_OF_SOUND, rel=2e-3)
    assert first_arrivals(response) == [pytest.approx(path / SPEED_OF_SOUND / BIN, abs=0.51)] * 2


def test_wall_at_the_left_reaches_the_left_ear_earlier_by_the_distance_of_the_ears():
    room = make_room((6, 9, 3), absorption={3: HARD})  # y = length: left of a robot that looks along x
    response = echoes.impulse_response(room, look((3, 5, 1.2)), np.random.default_rng(0))
    left, right = first_arrivals(response)
    assert left * BIN == pytest.approx((8 - 0.1) / SPEED_OF_SOUND, abs=0.51 * BIN)
    assert right * BIN == pytest.approx((8 + 0.1) / SPEED_OF_SOUND, abs=0.51 * BIN)
    loudest = np.abs(response[:, :, [left, right]]).max(2)  # [ear, band]
    assert loudest[0, 0] > 1.2 * loudest[1, 0]
    assert loudest[0, 1] > 4 * loudest[1, 1], "the head's shadow is deeper in the high band"


@pytest.mark.parametrize("azimuth", [-70, -30, 0, 45, 90])
def test_interaural_delay_is_that_of_the_exact_paths(azimuth):
    heading = 0.7
    angle = heading + np.radians(azimuth)  # positive to the left
    offset = 3.0 * np.array([np.cos(angle), np.sin(angle), 0.2])
    view = look((2, 2, 1.2), heading)
    seconds, _ = echoes.arrivals(view, (view.position + offset)[None].astype(np.float32), np.zeros(1, np.float32))
    ear = 0.1 * np.array([-np.sin(heading), np.cos(heading), 0])
    expected = (np.linalg.norm(offset - ear) - np.linalg.norm(offset + ear)) / 340
    assert seconds[0, 0] - seconds[1, 0] == pytest.approx(expected, abs=1e-8)
    assert np.sign(np.round(expected, 9)) == -np.sign(azimuth)


def test_furniture_hides_a_wall_and_answers_itself():
    screen = ((6, 3, 1.2), (0.1, 1.0, 1.2), 0.0)
    rng = np.random.default_rng(0)
    view = look((3, 3, 1.2))
    bare = echoes.impulse_response(make_room((9, 6, 3), absorption={1: HARD}), view, rng)
    room = make_room((9, 6, 3), [screen], absorption={1: HARD})
    assert np.count_nonzero(bare) > np.count_nonzero(echoes.impulse_response(room, view, rng))
    hidden = echoes.impulse_response(room, view, rng)
    assert np.count_nonzero(hidden[:, 0]) == 2, "an absorbing screen leaves nothing but the direct pulse"
    shiny = make_room((9, 6, 3), [screen], absorption={1: HARD}, box_material=material(HARD))
    path = np.hypot(2 * 2.9, 0.1)
    response = echoes.impulse_response(shiny, view, rng)
    assert first_arrivals(response) == [pytest.approx(path / SPEED_OF_SOUND / BIN, abs=0.51)] * 2


def test_low_box_answers_from_its_edge_with_the_floor():
    box = ((5, 3, 0.3), (0.5, 1.0, 0.3), 0.0)
    room = make_room((9, 6, 3), [box], absorption={4: HARD}, box_material=material(HARD))
    positions, amplitudes = echoes.furniture_reflections(room, look((3, 3, 1.2)))
    assert len(positions) == 1
    # The edge is 1.5 m ahead and 1.2 m below: its image lies as far behind it.
    np.testing.assert_allclose(positions[0], [6, 3, -1.2], atol=1e-5)
    assert (amplitudes > 0.5).all()


def test_diffuse_energy_of_a_wall_is_that_of_lamberts_law():
    room = make_room((40, 40, 40), absorption={1: HARD}, scattering=1.0)
    view = look((37, 20, 20))  # 3 m before a rough wall; the others absorb
    points, travelled, amplitudes = echoes.diffuse_returns(room, view, np.random.default_rng(0))
    back = np.linalg.norm(points - view.position, axis=1)
    heard = amplitudes.any(1)
    np.testing.assert_allclose(travelled[heard], back[heard], atol=5e-3)
    energy = ((amplitudes / back[:, None]) ** 2).sum(0)
    # A unit of intensity at 1 m, over the hemisphere of the wall: integral of D^2 cos / (pi r^2) with r = 3 / cos.
    cosine = (np.arange(20_000) + 0.5) / 20_000
    expected = (2 * np.pi * echoes.radiation(cosine) ** 2 * (cosine**3 / (np.pi * 9))[:, None]).mean(0)
    np.testing.assert_allclose(energy, expected, rtol=0.03)


def test_source_radiates_forward():
    ahead, aside, behind = echoes.radiation(np.array([1.0, 0.0, -1.0]))
    np.testing.assert_allclose(ahead, 1)
    assert (ahead > aside).all() and (aside > behind).all()
    assert behind[1] < behind[0], "the high band is bundled more"


def test_pinna_delays_its_reflection_less_for_sounds_from_above():
    def delay(elevation):
        response = echoes.histogram(np.full((2, 1), 0.01), np.ones((2, 1, 2)), np.array([elevation]))
        first, second = np.flatnonzero(response[0, 0])[-2:]
        assert response[0, 0, second] == pytest.approx(echoes.PINNA_AMPLITUDE)
        return second - first

    assert delay(0.9) < delay(0.0) < delay(-0.9)


def test_reverberation_decays_by_sixty_decibels_in_sabines_time():
    room = make_room((4, 5, 3), absorption=dict.fromkeys(range(6), (0.3, 0.6)))
    tail = np.mean([echoes.reverberation(room, np.random.default_rng(seed)) ** 2 for seed in range(40)], (0, 1))
    absorbing = (2 * (4 * 5 + 4 * 3 + 5 * 3)) * np.array([0.3, 0.6])
    for band in range(2):
        seconds = 24 * np.log(10) * 60 / (SPEED_OF_SOUND * absorbing[band])
        start, span = 2200, min(round(0.5 * seconds * SAMPLE_RATE), echoes.FRAMES - 2200)
        blocks = tail[band, start : start + span // 50 * 50].reshape(-1, 50).mean(1)
        slope = np.polyfit(np.arange(len(blocks)) * 50 / SAMPLE_RATE, 10 * np.log10(blocks), 1)[0]
        assert slope * seconds == pytest.approx(-60, rel=0.06)


@pytest.fixture(scope="module")
def samples():
    return [draw_sample(0, "test", index, 32) for index in range(40)]


def test_recording_begins_with_the_direct_pulse(samples):
    for sample in samples:
        assert np.abs(sample.audio[:, : echoes.ONSET - 12]).max() < 0.03
        assert np.abs(sample.audio[:, echoes.ONSET - 12 : echoes.ONSET + 60]).max() > 0.2
        assert np.abs(sample.audio).max() < 1, "nothing clips"


def test_echoes_have_a_real_echos_energy_over_frequency(samples):
    echo = np.array([sample.audio[:, 450:3112] for sample in samples]) * np.hanning(3112 - 450)
    power = (np.abs(np.fft.rfft(echo)) ** 2).mean((0, 1))
    band = (np.fft.rfftfreq(3112 - 450, 1 / SAMPLE_RATE) // 2000).astype(int)
    decibels = 10 * np.log10(np.bincount(band, power)[:10])
    real = [-8, -4, 0, -10, -16, -23, -21, -18, -17, -23]
    np.testing.assert_allclose(decibels - decibels[2], real, atol=4)


def test_ears_hear_different_things(samples):
    for sample in samples:
        left, right = sample.audio[:, 600:3000]
        assert np.corrcoef(left, right)[0, 1] < 0.95


# ---- scenes


def test_kinds_of_location_differ_in_size():
    rooms = {kind: [draw_scene(kind, np.random.default_rng(seed))[0] for seed in range(12)] for kind in KINDS}
    areas = {kind: np.mean([room.size[0] * room.size[1] for room in group]) for kind, group in rooms.items()}
    assert len(KINDS) >= 4
    assert max(areas.values()) > 2 * min(areas.values())
    for room in (room for group in rooms.values() for room in group):
        assert ((room.size[:2] >= 2.5) & (room.size[:2] <= 10)).all() and 2.3 <= room.size[2] <= 3.6
        assert 2 <= len(room.centres) <= 6


def test_views_are_open_and_at_the_height_of_the_robot():
    for index in range(60):
        room, view = draw_scene(kind_of(index), np.random.default_rng(index))
        assert CAMERA_HEIGHT[0] <= view.position[2] <= CAMERA_HEIGHT[1]
        depth = render(room, view, 64, np.random.default_rng(0)).depth
        assert np.median(depth) > 1.15  # judged at 16 pixels: 1.2
        assert depth[31:33, 31:33].min() >= 0.8
        assert (depth < 0.6).mean() < 0.12


def test_no_two_samples_share_a_room():
    sizes = {
        tuple(draw_scene(kind_of(index), np.random.default_rng(np.random.SeedSequence([0, split, index])))[0].size)
        for split in range(len(SPLITS))
        for index in range(20)
    }
    assert len(sizes) == 60
    depths = {draw_sample(0, split, index, 16, False).depth.tobytes() for split in SPLITS for index in range(10)}
    assert len(depths) == 30


def test_scene_does_not_depend_on_the_image_size():
    small, large = (draw_sample(5, "val", 2, size) for size in (16, 48))
    np.testing.assert_array_equal(small.audio, large.audio)
    # Pixel j of 16 and pixel 3 j + 1 of 48 look along the same ray; their noise differs.
    np.testing.assert_allclose(small.depth, large.depth[1::3, 1::3], rtol=0.1)
