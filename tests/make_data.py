"""Tiny data sets in the real formats, and ways to break them.

Each writer returns the folder that ``--dataset_dir`` names. Depth maps hold about a fifth of holes, as real ones do.
"""

import csv
import shutil
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

SAMPLE_RATE = 44_100
V2_COLUMNS = ["index", "time", "left audio time", "right audio time"]
V2_COLUMNS += ["audio path", "audio file name", "camera time", "camera path", "camera file name"]
V2_COLUMNS += ["depth time", "depth path", "depth file name"]
V1_COLUMNS = ["index", "audio path left", "audio path right", "camera path left", "camera path right", "depth path"]
ROWS = {"train": 6, "val": 2, "test": 3}


def write_batvision_v2(root, locations=("Attic", "Hall"), rows=ROWS, size=(24, 40), frames=9000, seed=0):
    """``rows`` counts per location and split; ``size`` is the height and width of pictures and maps."""
    rng = np.random.default_rng(seed)
    root = Path(root)
    for location in locations:
        for kind in ("audio", "camera", "depth"):
            (root / location / kind).mkdir(parents=True, exist_ok=True)
        number = 0
        for split, count in rows.items():
            lines = []
            for _ in range(count):
                number += 1
                names = {
                    "audio": f"audio_{number}.wav",
                    "camera": f"camera_{number}.jpeg",
                    "depth": f"depth_{number}.npy",
                }
                soundfile.write(root / location / "audio" / names["audio"], echo(rng, frames), SAMPLE_RATE, "PCM_32")
                picture(rng, size).save(root / location / "camera" / names["camera"])
                np.save(root / location / "depth" / names["depth"], depth_millimetres(rng, size))
                cells = [(f"{location}/{kind}/", names[kind]) for kind in ("audio", "camera", "depth")]
                lines.append([number, 0.0, 0.0, 0.0, *cells[0], 0.0, *cells[1], 0.0, *cells[2]])
            write_csv(root / location / f"{split}.csv", [V2_COLUMNS, *lines])
    return root


def write_batvision_v1(root, rows=ROWS, size=(24, 40), frames=4410, seed=0, camera=True):
    """``camera=False`` leaves out the pictures and their columns."""
    rng = np.random.default_rng(seed)
    root = Path(root)
    for kind in ("audio_left", "audio_right", "camera_left", "depth"):
        (root / kind).mkdir(parents=True, exist_ok=True)
    number = 0
    for split, count in rows.items():
        lines = []
        for _ in range(count):
            number += 1
            names = [f"{kind}/{number}.npy" for kind in ("audio_left", "audio_right", "depth")]
            for name, ear in zip(names, echo(rng, frames).T, strict=False):
                np.save(root / name, ear.astype(np.float32))
            depth = depth_millimetres(rng, size, largest=12_000).astype(np.float32)
            depth.flat[:3] = np.nan, np.inf, -np.inf
            np.save(root / names[2], depth)
            photo = f"camera_left/{number}.jpg"
            if camera:
                picture(rng, size).save(root / photo)
            lines.append([number, names[0], names[1], photo, photo, names[2]])
        write_csv(root / f"{split}.csv", [V1_COLUMNS, *lines])
        if not camera:
            for column in ("camera path left", "camera path right"):
                drop_column(root / f"{split}.csv", column)
    return root


def write_nyu_a(root, scenes=None, tests=3, size=(24, 32), seed=0):
    """Layout (a): the two CSV files and ``nyu2_train``, ``nyu2_test``; ``scenes`` maps a name to its frames.

    Returns the folder that holds the CSV files. 8-bit training maps, 16-bit test maps.
    """
    rng = np.random.default_rng(seed)
    root = Path(root)
    scenes = {"kitchen_0001a": 4, "kitchen_0001b": 4, "study_0002": 12} if scenes is None else scenes
    lines = []
    for scene, frames in scenes.items():
        folder = root / "nyu2_train" / f"{scene}_out"
        folder.mkdir(parents=True, exist_ok=True)
        for frame in range(1, frames + 1):
            picture(rng, size).save(folder / f"{frame}.jpg")
            Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{frame}.png")
            lines.append([f"data/nyu2_train/{scene}_out/{frame}.{suffix}" for suffix in ("jpg", "png")])
    write_csv(root / "nyu2_train.csv", lines)
    (root / "nyu2_test").mkdir(parents=True, exist_ok=True)
    lines = []
    for frame in range(tests):
        names = [f"nyu2_test/{frame:05d}_{kind}.png" for kind in ("colors", "depth")]
        picture(rng, size).save(root / names[0])
        save_png16(root / names[1], depth_millimetres(rng, size, largest=9_900))
        lines.append([f"data/{name}" for name in names])
    write_csv(root / "nyu2_test.csv", lines)
    return root


def write_nyu_b(root, rows=None, size=(24, 32), seed=0):
    """Layout (b): ``train/rgb``, ``train/depth``, ``test/rgb``, ``test/depth``."""
    rng = np.random.default_rng(seed)
    root = Path(root)
    for split, count in ({"train": 20, "test": 3} if rows is None else rows).items():
        for kind in ("rgb", "depth"):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
        for frame in range(1, count + 1):
            picture(rng, size).save(root / split / "rgb" / f"{frame}.png")
            save_png16(root / split / "depth" / f"{frame}.png", depth_millimetres(rng, size, largest=9_900))
    return root


def write_nyu_of_livingroom(root, samples_dir, train=15, test=5, layout="b"):
    """Layout (a), with 8-bit training maps, or (b) of real frames, 480x640."""
    root = Path(root)
    stems = sorted(path.stem for path in (samples_dir / "livingroom/image").iterdir())
    for split, chosen in (("train", stems[:train]), ("test", stems[train : train + test])):
        lines = []
        for stem in chosen:
            if layout == "a":
                folder = f"nyu2_train/livingroom_out/{stem}" if split == "train" else f"nyu2_test/{stem}"
                names = (f"{folder}.jpg", f"{folder}.png")
            else:
                names = (f"{split}/rgb/{stem}.jpg", f"{split}/depth/{stem}.png")
            sources = (samples_dir / f"livingroom/{kind}" for kind in (f"image/{stem}.jpg", f"depth/{stem}.png"))
            for name, source in zip(names, sources, strict=True):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, root / name)
            if layout == "a" and split == "train":
                metres = np.asarray(Image.open(root / names[1])) / 1000
                Image.fromarray((metres / 10 * 255).round().astype(np.uint8)).save(root / names[1])
            lines.append([f"data/{name}" for name in names])
        if layout == "a":
            write_csv(root / f"nyu2_{split}.csv", lines)
    return root


def write_nyu_c(root, frames=12, tests=3, size=(24, 32), seed=0, matlab5=False):
    """Layout (c): the labelled file and ``splits.mat``; ``matlab5`` writes the latter as NYU does (needs SciPy)."""
    import h5py

    rng = np.random.default_rng(seed)
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    raw = np.stack([depth_millimetres(rng, size, largest=9_900) for _ in range(frames)]).astype(np.float32) / 1000
    pictures = rng.integers(0, 256, (frames, *size, 3), dtype=np.uint8)
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = pictures.transpose(0, 3, 2, 1)
        file["rawDepths"] = raw.transpose(0, 2, 1)
        file["depths"] = np.maximum(raw, 0.5).transpose(0, 2, 1)
    numbers = np.arange(1, frames + 1, dtype=np.uint16)[:, None]
    splits = {"trainNdxs": numbers[:-tests], "testNdxs": numbers[-tests:]}
    if matlab5:
        from scipy.io import savemat

        savemat(root / "splits.mat", splits, do_compression=True)
    else:
        with h5py.File(root / "splits.mat", "w") as file:
            for name, value in splits.items():
                file[name] = value.T.astype(np.float64)
    return root


def write_nyu_d(root, scenes=None, tests=3, size=(24, 32), seed=0):
    """Layout (d): lists of ``rgb depth focal``, ``sync/``, ``official_splits/test/``; half the paths begin with /."""
    rng = np.random.default_rng(seed)
    root = Path(root)
    scenes = {"kitchen_0001a": 4, "kitchen_0001b": 4, "study_0002": 12} if scenes is None else scenes
    parts = {"train": ("sync", scenes), "test": ("official_splits/test", {"bathroom": tests})}
    for part, (folder, folders) in parts.items():
        lines = []
        for scene, frames in folders.items():
            (root / folder / scene).mkdir(parents=True, exist_ok=True)
            for frame in range(frames):
                names = [f"{scene}/rgb_{frame:05d}.jpg", f"{scene}/sync_depth_{frame:05d}.png"]
                picture(rng, size).save(root / folder / names[0])
                save_png16(root / folder / names[1], depth_millimetres(rng, size, largest=9_900))
                slash = "/" if frame % 2 else ""
                lines.append(f"{slash}{names[0]} {slash}{names[1]} 518.8579")
        (root / f"nyudepthv2_{part}_files_with_gt.txt").write_text("\n".join(lines) + "\n")
    return root


def write_images(root, count=5, size=(24, 40), seed=0):
    rng = np.random.default_rng(seed)
    Path(root).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture(rng, size).save(Path(root) / f"{number}.jpg")
    return Path(root)


# ------------------------------------------------------------------------------------------------------------ contents


def echo(rng, frames):
    """[frames, 2] in [-1, 1]: a click and its decay, another one for each ear."""
    decay = np.exp(-np.arange(frames) / 800)[:, None]
    return np.clip(rng.normal(0, 0.2, (frames, 2)) * decay, -1, 1)


def picture(rng, size):
    """A smooth random colour picture, so that JPEG keeps it."""
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return coarse.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def depth_millimetres(rng, size, largest=15_000):
    """[H, W] uint16 with a fifth of holes, reaching at least half of ``largest``."""
    depth = rng.integers(500, largest, size).astype(np.uint16)
    depth.flat[-1] = largest // 2 + 1
    depth[rng.random(size) < 0.2] = 0
    return depth


def save_png16(path, values):
    Image.fromarray(np.asarray(values, dtype=np.uint16)).save(path)


# ------------------------------------------------------------------------------------------------------------- breaking


def read_csv(path):
    with Path(path).open(newline="", encoding="utf-8-sig") as file:
        return list(csv.reader(file))


def write_csv(path, rows):
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def set_cell(path, row, column, value):
    """Change a cell; ``row`` counts as messages do, the header being row 1; ``column`` is a name or a position."""
    rows = read_csv(path)
    rows[row - 1][rows[0].index(column) if isinstance(column, str) else column] = value
    write_csv(path, rows)


def drop_column(path, column):
    rows = read_csv(path)
    place = rows[0].index(column)
    write_csv(path, [row[:place] + row[place + 1 :] for row in rows])


def truncate(path, share=0.5):
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: int(len(content) * share)])


def recording(path, seconds=0.1, rate=SAMPLE_RATE, channels=2, seed=0):
    """Write noise, and return its path."""
    rng = np.random.default_rng(seed)
    soundfile.write(path, rng.normal(0, 0.1, (int(seconds * rate), channels)), rate)
    return path


def broken_recording(folder, kind):
    """Write a recording that no network takes, and return its path."""
    path = folder / "broken.wav"
    if kind == "mono":
        recording(path, channels=1)
    elif kind == "rate":
        recording(path, rate=48_000)
    elif kind == "short":
        recording(path, seconds=0.001)
    elif kind == "truncated":
        truncate(recording(path))
    elif kind == "text":
        path.write_text("no sound")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "no samples":
        recording(path, seconds=0)
    elif kind == "silent":
        soundfile.write(path, np.zeros((SAMPLE_RATE // 10, 2)), SAMPLE_RATE)
    elif kind == "raw":
        path = folder / "broken.raw"
        path.write_bytes(bytes(4000))
    return path
