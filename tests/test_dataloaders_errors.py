"""Whatever is wrong with a data set is said in one line that names the file and the row."""

import io
import pickle

import numpy as np
import pytest
import soundfile
from make_data import (
    SAMPLE_RATE,
    drop_column,
    read_csv,
    save_png16,
    set_cell,
    truncate,
    write_batvision_v1,
    write_batvision_v2,
    write_csv,
    write_images,
    write_nyu_a,
    write_nyu_b,
    write_nyu_c,
    write_nyu_d,
)

from dataloaders import create_dataset, read_wav
from errors import DataError


@pytest.fixture
def v2(tmp_path):
    return write_batvision_v2(tmp_path, locations=("Attic",), rows={"train": 3})


@pytest.fixture
def v1(tmp_path):
    return write_batvision_v1(tmp_path, rows={"train": 3})


def message(name, root, *, split="train", index=None, **options):
    """The line that making the data set, or reading one of its samples, ends with."""
    with pytest.raises(DataError) as caught:
        dataset = create_dataset(name, root, split, 16, **options)
        if index is not None:
            dataset[index]
    text = str(caught.value)
    assert "\n" not in text
    assert str(pickle.loads(pickle.dumps(caught.value))) == text
    return text


# -------------------------------------------------------------------------------------------------- found at the start


@pytest.mark.parametrize("name", ["batvisionv1", "batvisionv2"])
def test_missing_folder_says_where_the_data_comes_from(tmp_path, name):
    text = message(name, tmp_path / "nowhere")
    assert all(
        part in text for part in ("nowhere", "AmandineBtto/Batvision-Dataset", "10.57745/HYLZNL", "--dataset simulated")
    )


def test_missing_folders_of_the_others(tmp_path):
    assert "nyu_depth_v2_labeled.mat" in message("nyu", tmp_path / "nowhere")
    assert "nowhere" in message("images", tmp_path / "nowhere")


def test_missing_csv(v1, tmp_path):
    assert "test.csv is missing" in message("batvisionv1", v1, split="test")
    root = write_batvision_v2(tmp_path / "v2", rows={"train": 1})
    assert "no folder in it holds a test.csv" in message("batvisionv2", root, split="test")


@pytest.mark.parametrize("column", ["audio path", "audio file name", "depth path", "depth file name"])
def test_missing_column_lists_those_found(v2, column):
    drop_column(v2 / "Attic/train.csv", column)
    text = message("batvisionv2", v2)
    assert "Attic/train.csv" in text and f"no column '{column}'" in text and "'camera path'" in text


def test_missing_v1_column(v1):
    drop_column(v1 / "train.csv", "audio path right")
    text = message("batvisionv1", v1)
    assert "train.csv has no column 'audio path right'; found: 'index', 'audio path left'" in text


def test_other_spellings_and_columns_do_no_harm(v1, v2):
    rows = read_csv(v2 / "Attic/train.csv")
    place = rows[0].index("audio path")  # first, so that the byte order mark stands before a name that counts
    rows = [[row[place], *row[:place], *row[place + 1 :], "extra"] for row in rows]
    rows[0] = [f"{name} " for name in rows[0]]
    write_csv(v2 / "Attic/train.csv", [*rows[:2], [], *rows[2:]])
    content = (v2 / "Attic/train.csv").read_bytes()
    (v2 / "Attic/train.csv").write_bytes(b"\xef\xbb\xbf" + content)
    dataset = create_dataset("batvisionv2", v2, "train", 16)
    assert len(dataset) == 3 and dataset.row_name(1).endswith("train.csv, row 4")

    for old, new in {"audio path left": "Audio_Path_Left", "depth path": " Depth path file"}.items():
        set_cell(v1 / "train.csv", 1, old, new)
    assert set(create_dataset("batvisionv1", v1, "train", 16)[0]) == {"audio", "rgb", "depth", "id", "index"}


def test_empty_split(v2):
    write_csv(v2 / "Attic/train.csv", read_csv(v2 / "Attic/train.csv")[:1])
    assert "the train split is empty" in message("batvisionv2", v2)
    (v2 / "Attic/train.csv").write_text("")
    assert "Attic/train.csv has no header line" in message("batvisionv2", v2)


@pytest.mark.parametrize("name", ["audio/audio_2.wav", "camera/camera_2.jpeg", "depth/depth_2.npy"])
def test_absent_file_is_found_before_training(v2, name):
    (v2 / "Attic" / name).unlink()
    text = message("batvisionv2", v2)
    assert f"Attic/{name} is missing" in text and "Attic/train.csv, row 3" in text


@pytest.mark.parametrize("cell", ["../../etc/", "/etc/", "C:/", "Attic/../../"])
def test_path_that_leaves_the_data_set(v1, v2, cell):
    set_cell(v2 / "Attic/train.csv", 3, "depth path", cell)
    text = message("batvisionv2", v2)
    assert "Attic/train.csv, row 3" in text and "leaves the data set" in text
    set_cell(v1 / "train.csv", 3, "depth path", f"{cell}1.npy")
    assert "leaves the data set" in message("batvisionv1", v1)


def test_row_with_too_few_cells(v2):
    rows = read_csv(v2 / "Attic/train.csv")
    rows[2] = rows[2][:4]
    write_csv(v2 / "Attic/train.csv", rows)
    assert "Attic/train.csv, row 3: 4 cells" in message("batvisionv2", v2)


@pytest.mark.parametrize("column", ["audio file name", "camera file name"])
def test_empty_cell_other_than_depth(v2, column):
    set_cell(v2 / "Attic/train.csv", 3, column, "")
    assert "Attic/train.csv, row 3: no " in message("batvisionv2", v2)


def test_a_repeated_row_is_warned_of(v2, caplog):
    rows = read_csv(v2 / "Attic/train.csv")
    write_csv(v2 / "Attic/train.csv", [*rows, rows[1]])
    assert len(create_dataset("batvisionv2", v2, "train", 16)) == 4
    assert "1 of the 4 train rows name the files of an earlier row" in caplog.text
    assert "train.csv, row 5" in caplog.text


def test_with_a_list_for_problems_the_rest_makes_the_data_set(v1, v2):
    set_cell(v2 / "Attic/train.csv", 2, "audio path", "/etc/")
    set_cell(v2 / "Attic/train.csv", 3, "camera file name", "")
    (v2 / "Attic/depth/depth_3.npy").unlink()
    problems = []
    dataset = create_dataset("batvisionv2", v2, "train", 16, problems=problems)
    assert [str(problem).partition(": ")[0] for problem in problems] == [
        "Attic/train.csv (row 2)",
        "Attic/train.csv (row 3)",
        "Attic/depth/depth_3.npy (Attic/train.csv, row 4)",
    ]
    assert [problem.kind for problem in problems] == ["table", "table", "missing file"]
    held = [[row.has(modality) for modality in ("audio", "rgb", "depth")] for row in dataset.rows]
    assert held == [[False, True, True], [True, False, True], [True, True, False]]
    drop_column(v1 / "train.csv", "audio path right")
    problems.clear()
    dataset = create_dataset("batvisionv1", v1, "train", 16, problems=problems)
    assert dataset.modalities == ("rgb", "depth")
    assert ["has no column 'audio path right'" in str(problem) for problem in problems] == [True]


# ----------------------------------------------------------------------------------------------------- found when read


def broken(root, name):
    """The line that reading row 3 ends with, after making sure that row 2 is whole."""
    dataset = create_dataset(name, root, "train", 16)
    dataset[0]
    with pytest.raises(DataError) as caught:
        dataset[1]
    text = str(caught.value)
    assert "\n" not in text and "train.csv, row 3)" in text
    return text


@pytest.mark.parametrize("name", ["audio/audio_2.wav", "camera/camera_2.jpeg", "depth/depth_2.npy"])
@pytest.mark.parametrize("share", [0, 0.5, 0.9])
def test_truncated_file(v2, name, share):
    truncate(v2 / "Attic" / name, share)
    assert name in broken(v2, "batvisionv2")


@pytest.mark.parametrize("name", ["audio/audio_2.wav", "camera/camera_2.jpeg", "depth/depth_2.npy"])
def test_file_of_another_kind(v2, name):
    (v2 / "Attic" / name).write_bytes(b"Not Found. The file that you asked for is somewhere else." * 9)
    assert name in broken(v2, "batvisionv2")


class Harm:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle ran')",))


@pytest.mark.parametrize("raw", [False, True])
def test_pickles_are_refused(v1, v2, raw):
    buffer = io.BytesIO()
    if raw:
        pickle.dump(Harm(), buffer)
    else:
        np.save(buffer, np.array([Harm()], dtype=object), allow_pickle=True)
    (v2 / "Attic/depth/depth_2.npy").write_bytes(buffer.getvalue())
    assert "depth_2.npy cannot be read as a plain NumPy array" in broken(v2, "batvisionv2")
    (v1 / "audio_right/2.npy").write_bytes(buffer.getvalue())
    assert "audio_right/2.npy cannot be read" in broken(v1, "batvisionv1")


@pytest.mark.parametrize(
    ("array", "part"),
    [
        (np.zeros((4, 4, 3), np.uint16), "shape [4, 4, 3]"),
        (np.zeros((0, 4), np.uint16), "shape [0, 4]"),
        (np.zeros((4, 4), bool), "bool"),
        (np.full((4, 4), 1 + 1j), "complex"),
        (np.full((4, 4), 2.5, np.float32), "that is metres"),
    ],
    ids=str,
)
def test_wrong_depth_array(v1, v2, array, part):
    np.save(v2 / "Attic/depth/depth_2.npy", array)
    np.save(v1 / "depth/2.npy", array)
    assert part in broken(v2, "batvisionv2")
    assert part in broken(v1, "batvisionv1")


def test_npz_under_the_name_of_npy(v2):
    with (v2 / "Attic/depth/depth_2.npy").open("wb") as file:
        np.savez(file, np.ones((4, 4)))
    assert "not an array of numbers" in broken(v2, "batvisionv2")


def write_wav(root, sound, rate=SAMPLE_RATE, subtype="FLOAT"):
    soundfile.write(root / "Attic/audio/audio_2.wav", sound, rate, subtype, format="WAV")
    return broken(root, "batvisionv2")


def test_wrong_sound(v2):
    sound = np.full((9000, 2), 0.1)
    assert "audio_2.wav has 1 channel(s)" in write_wav(v2, sound[:, :1])
    assert "audio_2.wav is sampled at 48000 Hz, not 44100 Hz; say --resample" in write_wav(v2, sound, 48_000)
    assert "audio_2.wav holds no samples" in write_wav(v2, sound[:0])
    sound[8999, 1] = np.nan
    assert "audio_2.wav holds NaN or infinity" in write_wav(v2, sound)


def test_wrong_v1_sound(v1):
    ear = np.load(v1 / "audio_left/2.npy")
    np.save(v1 / "audio_left/2.npy", ear[:-1])
    assert "audio_left/2.npy has 4409 samples, the right ear 4410" in broken(v1, "batvisionv1")
    np.save(v1 / "audio_left/2.npy", np.full_like(ear, np.nan))
    assert "holds NaN or infinity" in broken(v1, "batvisionv1")
    for side in ("left", "right"):
        np.save(v1 / f"audio_{side}/2.npy", ear[:100])
    assert "100 samples" in broken(v1, "batvisionv1")


def test_depth_map_in_place_of_a_picture(v2):
    (v2 / "Attic/camera/camera_2.jpeg").unlink()
    path = v2 / "Attic/camera/camera_2.png"
    save_png16(path, np.full((8, 8), 3000))
    set_cell(v2 / "Attic/train.csv", 3, "camera file name", path.name)
    assert "is it a depth map?" in broken(v2, "batvisionv2")


# ----------------------------------------------------------------------------------------------------- other data sets


def test_modalities_that_cannot_be_supplied(tmp_path):
    assert "--dataset nyu has no audio" in message("nyu", write_nyu_b(tmp_path / "b"), modalities=("audio", "depth"))
    assert "--dataset images has no depth" in message(
        "images", write_images(tmp_path / "i"), modalities=("rgb", "depth")
    )


def test_images_without_a_picture_or_a_split(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    assert "the train split is empty" in message("images", tmp_path)
    write_images(tmp_path / "train")
    assert "val is missing" in message("images", tmp_path, split="val")


def test_nyu_names_file_and_row(tmp_path):
    root = write_nyu_a(tmp_path / "a")
    truncate(root / "nyu2_test/00001_depth.png")
    text = message("nyu", root, split="test", index=1)
    assert "nyu2_test/00001_depth.png" in text and "nyu2_test.csv, row 2" in text
    (root / "nyu2_test/00001_colors.png").unlink()
    text = message("nyu", root, split="test")
    assert "nyu2_test.csv, row 2: data/nyu2_test/00001_colors.png is missing; tried" in text
    assert str(root / "data/nyu2_test") in text and str(root / "nyu2_test") in text
    assert str(root.parent / "data/nyu2_test") in text

    root = write_nyu_d(tmp_path / "d")
    (root / "sync/study_0002/rgb_00003.jpg").unlink()
    text = message("nyu", root)
    assert "sync/study_0002/rgb_00003.jpg is missing" in text and "nyudepthv2_train_files_with_gt.txt, row 12" in text

    root = write_nyu_b(tmp_path / "b")
    (root / "train/depth/3.png").unlink()
    assert "train/depth/3.png is missing" in message("nyu", root)


def test_nyu_paths_must_stay_inside(tmp_path):
    for cell, part in (("../secret.jpg", "leaves"), ("/etc/passwd.jpg", "leaves")):
        root = write_nyu_a(tmp_path)
        set_cell(root / "nyu2_train.csv", 2, 0, cell)
        assert part in message("nyu", root)


def test_nyu_folder_without_a_known_layout(tmp_path):
    (tmp_path / "somewhere").mkdir()
    assert "holds no known layout" in message("nyu", tmp_path)


@pytest.mark.parametrize("form", ["AIFF", "AU", "RF64", "W64", "WAV"])
@pytest.mark.parametrize("endian", ["LITTLE", "BIG"])
def test_sound_that_was_cut_off_is_refused_in_every_container_that_says_its_length(tmp_path, form, endian):
    if not soundfile.check_format(form, "PCM_16", endian):
        pytest.skip(f"libsndfile writes no {form} of this order")
    path = tmp_path / "sound"
    with soundfile.SoundFile(path, "w", 44_100, 2, "PCM_16", endian, form) as file:
        file.write(np.random.default_rng(0).uniform(-0.5, 0.5, (9000, 2)))
    if path.read_bytes()[:4] in (b"dns.",):
        pytest.skip("an AU file of the order that nobody writes")
    assert read_wav(path).shape == (2, 9000)
    truncate(path)
    with pytest.raises(DataError, match="truncated"):
        read_wav(path)


def test_a_stream_of_unknown_length_is_read(tmp_path):
    path = tmp_path / "sound.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, (900, 2)), 44_100, "PCM_16")
    content = bytearray(path.read_bytes())
    for announced in (0x7FFFFFFF, 0xFFFFFFFF):
        content[4:8] = content[40:44] = announced.to_bytes(4, "little")
        path.write_bytes(content)
        assert read_wav(path).shape == (2, 900)


def test_metres_are_told_from_millimetres_by_most_pixels(v2):
    """Neither by one that is far off, nor in a map that is one hole."""
    path = v2 / "Attic/depth/depth_1.npy"
    metres = np.random.default_rng(0).uniform(0.5, 12, (24, 40)).astype(np.float32)
    metres[3, 4] = 655.35
    np.save(path, metres)
    assert "that is metres" in message("batvisionv2", v2, index=0, modalities={"depth"})
    hole = np.zeros((24, 40), np.uint16)
    hole[5, 5] = 80
    np.save(path, hole)
    assert create_dataset("batvisionv2", v2, "train", (24, 40), modalities={"depth"})[0]["depth"].count_nonzero() == 1


def test_splits_of_matlab_name_whole_frames(tmp_path):
    import scipy.io

    root = write_nyu_c(tmp_path)
    scipy.io.savemat(root / "splits.mat", {"trainNdxs": [[1.0], [2.5]], "testNdxs": [[3.0]]})
    assert "'trainNdxs' holds numbers of frames that are not whole" in message("nyu", root)
