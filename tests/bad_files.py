"""A corpus of broken files, and of odd ones that are in order.

Each entry is written over a good file of its kind, which lies in a data set of ``make_data``, and names what the line
about it must say.
"""

import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import soundfile
import torch
from make_data import SAMPLE_RATE, drop_column, picture, read_csv, set_cell, truncate, write_csv
from PIL import Image

from training.checkpoint import load_checkpoint, save_checkpoint


class Harm:
    """What a pickle runs when it is opened by one who trusts it."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle ran')",))


def text(path):
    path.write_text("Not Found. The file that you asked for is somewhere else.\n" * 9)


def emptied(path):
    path.write_bytes(b"")


def in_place_of_it_a_folder(path):
    path.unlink()
    path.mkdir()


# -------------------------------------------------------------------------------------------------------------- sound


def sound(frames=2000, channels=2, rate=SAMPLE_RATE, spoil=lambda samples: samples):
    """A writer of a WAV file in 32-bit floats: noise, spoilt."""

    def write(path):
        samples = np.random.default_rng(0).normal(0, 0.1, (frames, channels)).astype(np.float32)
        soundfile.write(path, spoil(samples), rate, "FLOAT", format="WAV")

    return write


def with_first(value):
    def spoil(samples):
        samples[0, 0] = value
        return samples

    return spoil


WAVS = {
    "0 frames": (sound(frames=0), "holds no samples"),
    "mono": (sound(channels=1), "has 1 channel(s)"),
    "8 channels": (sound(channels=8), "has 8 channel(s)"),
    "NaN": (sound(spoil=with_first(np.nan)), "NaN or infinity"),
    "infinite": (sound(spoil=with_first(np.inf)), "NaN or infinity"),
    "8 kHz": (sound(rate=8000), "8000 Hz, not 44100 Hz; say --resample"),
    "1 Hz": (sound(rate=1), "1 Hz, which is no rate"),
    "truncated": (truncate, "truncated"),
    "empty": (emptied, "cannot be read as audio"),
    "text": (text, "cannot be read as audio"),
    "folder": (in_place_of_it_a_folder, "cannot be read as audio"),
}
# In order for a training, which cannot know better; worth a line all the same.
SUSPICIOUS_WAVS = {
    "silent": (sound(spoil=np.zeros_like), "silent"),
    "2 ms": (sound(frames=100), "the sound lasts 2.3 ms, less than half"),
    "the same in both ears": (sound(spoil=lambda samples: samples[:, :1].repeat(2, axis=1)), "both ears hear the same"),
}

# -------------------------------------------------------------------------------------------------------------- depth


def array(values, **options):
    return lambda path: np.save(path, np.asarray(values), **options)


def npz(path):
    with path.open("wb") as file:
        np.savez(file, np.ones((8, 12)))


def npy_header(header):
    """A writer of a .npy file with any header, and of no data."""
    content = header.encode("latin1") + b"\n"
    return lambda path: path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(content)) + content)


FLAT = np.full((8, 12), 3000.0, np.float32)
DEPTHS = {
    "metres": (array(FLAT / 1000), "that is metres"),
    "whole metres": (array((FLAT / 1000).astype(np.int64)), "that is metres"),
    "bool": (array(FLAT > 0), "holds bool"),
    "complex": (array(FLAT * 1j), "complex64"),
    "text in cells": (array(FLAT.astype(str)), "not an array of numbers"),
    "8 bits": (array(np.full((8, 12), 200, np.uint8)), "8 bits"),
    "three dimensions": (array(FLAT[..., None]), "shape [8, 12, 1]"),
    "one number": (array(3000.0), "shape []"),
    "no pixel": (array(FLAT[:0]), "shape [0, 12]"),
    "pickle with code": (array([Harm()], allow_pickle=True), "plain NumPy array"),
    "bare pickle with code": (lambda path: path.write_bytes(pickle.dumps(Harm())), "plain NumPy array"),
    "truncated": (truncate, "plain NumPy array"),
    "archive": (npz, "an archive"),
    "a petabyte": (npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (9999999, 9999999)}"), "plain NumPy"),
    "a header that is none": (npy_header("{'descr': (((("), "plain NumPy array"),
    "empty": (emptied, "plain NumPy array"),
    "text": (text, "plain NumPy array"),
    "folder": (in_place_of_it_a_folder, "plain NumPy array"),
}
# Maps that are one hole: a pair without a label.
HOLES = {
    "all zero": array(np.zeros((8, 12), np.uint16)),
    "NaN": array(FLAT * np.nan),
    "infinite": array(FLAT * np.inf),
    "negative": array(-FLAT),
    "beyond float32": array(np.full((8, 12), 1e300)),
}

# ------------------------------------------------------------------------------------------------------------ pictures


def image(mode, suffix, **options):
    """A writer of a picture in a mode of Pillow, whatever the name of its file ends in."""

    def write(path):
        picture(np.random.default_rng(0), (8, 12)).convert(mode).save(path, suffix, **options)

    return write


def png(width, height):
    """A writer of a PNG whose header claims a size."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\x00" * 37))
    return lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b""))


def gif_of_no_pixels(path):
    path.write_bytes(b"GIF89a" + struct.pack("<HHBBB", 0, 0, 0, 0, 0) + b",\0\0\0\0\0\0\0\0\0\x02\x02L\x01\0;")


def depth_map(path):
    Image.fromarray(np.full((8, 12), 3000, np.uint16)).save(path, "PNG")


PICTURES = {
    "truncated": (truncate, "cannot be read as a picture"),
    "zero-sized": (png(0, 0), "cannot be read as a picture"),
    "zero-sized GIF": (gif_of_no_pixels, "camera_2.jpeg"),
    "40 gigapixels": (png(200_000, 200_000), "cannot be read as a picture"),
    "without its pixels": (png(4000, 4000), "cannot be read as a picture"),
    "PostScript, which Pillow would run": (image("RGB", "EPS"), "cannot be read as a picture"),
    "depth map": (depth_map, "is it a depth map?"),
    "empty": (emptied, "cannot be read as a picture"),
    "text": (text, "cannot be read as a picture"),
    "folder": (in_place_of_it_a_folder, "cannot be read as a picture"),
}
ODD_PICTURES = {
    "grey": image("L", "PNG"),
    "black and white": image("1", "PNG"),
    "palette": image("P", "GIF"),
    "RGBA": image("RGBA", "PNG"),
    "grey with alpha": image("LA", "PNG"),
    "CMYK": image("CMYK", "JPEG"),
    "YCbCr": image("YCbCr", "JPEG"),
    "BMP under another name": image("RGB", "BMP"),
}

# -------------------------------------------------------------------------------------------------------------- tables


def cell(row, column, value):
    return lambda path: set_cell(path, row, column, value)


def rows(change):
    """A writer that changes the rows of a table, the header among them."""
    return lambda path: write_csv(path, change(read_csv(path)))


def encoded(encoding, separator=","):
    def write(path):
        path.write_bytes(path.read_text().replace(",", separator).encode(encoding))

    return write


TABLES = {
    "wrong columns": (lambda path: drop_column(path, "audio file name"), "no column 'audio file name'; found: "),
    "semicolons": (encoded("utf-8", ";"), "separated by ';'"),
    "UTF-16": (encoded("utf-16"), "is not UTF-8 text"),
    "bytes": (lambda path: path.write_bytes(bytes(range(256))), "train.csv"),
    "0 rows": (rows(lambda table: table[:1]), "train split is empty"),
    "empty": (emptied, "has no header line"),
    "too few cells": (rows(lambda table: [*table[:2], table[2][:4], *table[3:]]), "row 3: 4 cells"),
    "empty sound cell": (cell(3, "audio file name", ""), "row 3: no audio file is named"),
    "absent file": (cell(3, "audio file name", "gone.wav"), "Hall/audio/gone.wav is missing"),
    "absolute path": (cell(3, "depth path", "/etc/"), "row 3: the path '/etc/' leaves the data set"),
    "path of Windows": (cell(3, "depth path", "C:\\data\\"), "row 3: the path 'C:\\data\\' leaves the data set"),
    "path that climbs": (cell(3, "depth file name", "../../../etc/passwd"), "row 3: the path "),
    "path with a NUL": (cell(3, "audio file name", "a\0.wav"), "train.csv"),
    "folder": (in_place_of_it_a_folder, "no folder in it holds a train.csv"),
}
ODD_TABLES = {
    "BOM": encoded("utf-8-sig"),
    "CRLF": lambda path: path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")),
    "blank lines": rows(lambda table: [*table[:2], [], *table[2:], [""] * 12]),
    "empty depth cells": cell(3, "depth file name", ""),
    "another column": rows(lambda table: [[*row, "more"] for row in table]),
}

# --------------------------------------------------------------------------------------------------------- checkpoints


def with_part(**parts):
    """A writer that replaces parts of a checkpoint; None leaves one out."""

    def write(path):
        state = {**load_checkpoint(path), **parts}
        save_checkpoint({key: value for key, value in state.items() if value is not None}, path)

    return write


def with_model(**about):
    def write(path):
        state = load_checkpoint(path)
        state["model"] = {key: value for key, value in {**state["model"], **about}.items() if value is not None}
        save_checkpoint(state, path)

    return write


def with_value(place, value):
    """A writer that puts a value at its place, such as ``args.license``."""

    def write(path):
        state = load_checkpoint(path)
        *above, last = place.split(".")
        part = state
        for key in above:
            part = part[key]
        part[last] = value
        save_checkpoint(state, path)

    return write


def with_weight(change):
    """A writer that changes the dict of weights."""

    def write(path):
        state = load_checkpoint(path)
        change(state["model_state_dict"])
        save_checkpoint(state, path)

    return write


def legacy_pickle(path):
    torch.save({"model_state_dict": Harm()}, path, _use_new_zipfile_serialization=False)


def pickle_with_code(path):
    torch.save({**load_checkpoint(path), "args": Harm()}, path)


def bare_weights(path):
    torch.save(load_checkpoint(path)["model_state_dict"], path)


ENDLESS: list = []
ENDLESS.append(ENDLESS)

CHECKPOINTS = {
    "missing": (Path.unlink, "there is no such file"),
    "truncated": (truncate, "truncated or damaged"),
    "without its end": (lambda path: truncate(path, 0.99), "truncated or damaged"),
    "empty": (emptied, "truncated or damaged"),
    "text": (text, "damaged"),
    "folder": (in_place_of_it_a_folder, "is a folder; name a file in it"),
    "pickle with code": (pickle_with_code, "refused"),
    "pickle with code, of old torch": (legacy_pickle, "refused"),
    "bare pickle with code": (lambda path: path.write_bytes(pickle.dumps(Harm())), "damaged"),
    "bare weights": (bare_weights, "network.pth"),
    "list": (lambda path: torch.save([1, 2], path), "network.pth"),
    "tensor": (lambda path: torch.save(torch.zeros(3), path), "holds no weights"),
    "later version": (with_part(format=2), "has format 2, this version (0.1.0) reads up to 1; update the toolkit"),
    "version that is none": (with_part(format="new"), "its format is 'new', not a whole number from 1 on"),
    "no model": (with_part(model=None), "it has no model"),
    "weights that are none": (with_part(model_state_dict=3), "its model_state_dict is 3, not a dict"),
    "no weight": (with_part(model_state_dict={}), "holds no weights"),
    "unknown model": (with_model(name="rgb_deep"), "rgb_deep"),
    "other model": (with_model(name="unet_baseline"), "network.pth"),
    "no config": (with_model(config=None), "its model does not say config"),
    "config that is none": (with_model(config=[4]), "its model.config is [4], not a dict"),
    "channels below 1": (with_value("model.config.base_channels", -4), "base_channels is -4, not a whole number"),
    "channels as text": (with_value("model.config.base_channels", "4"), "base_channels is '4', not a whole number"),
    "channels as tensor": (with_value("model.config.base_channels", torch.ones(1)), "is of the type Tensor, not"),
    "more channels than memory": (with_value("model.config.base_channels", 2**17), "of another shape"),
    "more channels than numbers": (with_value("model.config.base_channels", 2**62), "no model can be built"),
    "argument that is none": (with_value("model.config.depth_of_field", 3), "depth_of_field"),
    "choice that is none": (with_value("model.config.bilinear", "no"), "bilinear is 'no', not True or False"),
    "range that is none": (with_value("model.config.max_depth", float("nan")), "max_depth is nan, not a number of met"),
    "weight missing": (with_weight(lambda weights: weights.popitem()), "1 missing"),
    "weight too many": (with_weight(lambda weights: weights.update(more=torch.ones(1))), "1 unknown (more)"),
    "no preprocessing": (with_part(preprocessing={}), "its preprocessing does not say"),
    "preprocessing that is none": (with_part(preprocessing=["spectrogram"]), "its preprocessing is ['spect"),
    "side as text": (with_value("preprocessing.image_size", "32"), "image_size is '32', not a whole number from 1"),
    "side below 1": (with_value("preprocessing.image_size", -32), "image_size is -32, not a whole number from 1"),
    "sides below 1": (with_value("preprocessing.image_size", [32, -1]), "image_size is [32, -1], not a whole"),
    "three sides": (with_value("preprocessing.image_size", [32, 32, 3]), "image_size is [32, 32, 3], not a whole"),
    "side of no network": (with_value("preprocessing.image_size", 33), "preprocessing.image_size: --image_size 33"),
    "no depth": (with_value("preprocessing.max_depth", 0), "max_depth is 0, not a number of metres above 0"),
    "depth as a list": (with_value("preprocessing.max_depth", [30.0]), "max_depth is [30.0], not a number of metres"),
    "near is far": (with_value("preprocessing.min_depth", 40.0), "min_depth is 40, not below its preprocessing.max_d"),
    "sound of no format": (with_value("preprocessing.audio_format", "mp3"), "audio_format is 'mp3', not one of spec"),
    "sound of no length": (with_value("preprocessing.audio_samples", -1), "audio_samples is -1, not a whole number"),
    "filter that is none": (with_value("preprocessing.rgb_filter", "soft"), "rgb_filter is 'soft', not one of bilin"),
    "flags that are none": (with_part(args="--lr 3"), "its args is '--lr 3', not a dict"),
    "flag that is no value": (with_value("args.seed", {"a": 1}), "its args.seed is of the type dict, not a plain va"),
    "flag of no end": (with_value("args.more", ENDLESS), "its args.more is of the type list, not a plain value"),
    "flag of no name": (with_part(args={3: 4}), "its args has a name that is 3, not a text"),
    "share above 1": (with_value("args.label_fraction", 2), "its args.label_fraction is 2, not a number in [0, 1]"),
    "folder that is none": (with_value("args.dataset_dir", "a\0b"), "its args.dataset_dir is 'a\\x00b', not a path"),
    "licence that is none": (with_value("args.license", 3), "its args.license is 3, not a text"),
    "epoch as text": (with_part(epoch="last"), "its epoch is 'last', not a whole number from 0 on"),
    "epoch beyond count": (with_part(epoch=10**600), "its epoch is of the type int, not a whole number from 0 on"),
}
