"""check_dataset.py: every data set is recognised, read, summed up and left as it is; its problems are listed."""

import codecs
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from make_data import (
    depth_millimetres,
    save_png16,
    set_cell,
    truncate,
    write_batvision_v1,
    write_batvision_v2,
    write_images,
    write_nyu_a,
    write_nyu_b,
    write_nyu_c,
    write_nyu_d,
)

import check_dataset
from dataloaders import DATASETS, create_dataset, find_dataset
from dataloaders.sample_cache import SampleCache
from errors import DataError
from training.visualization import save_grid

REPOSITORY = Path(__file__).resolve().parent.parent
HERE = ("--num_workers", 0)
WRITERS = {
    "batvisionv1": write_batvision_v1,
    "batvisionv2": write_batvision_v2,
    "nyu a": write_nyu_a,
    "nyu b": write_nyu_b,
    "nyu c": write_nyu_c,
    "nyu d": write_nyu_d,
    "images": write_images,
}


def files_in(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("name", WRITERS)
def test_a_data_set_in_order_is_recognised_and_has_no_problem(name, tmp_path, run_cli):
    root = WRITERS[name](tmp_path / "data")
    before = files_in(root)
    code, out, errors = run_cli(check_dataset.main, root, *HERE)
    assert (code, errors) == (0, "")
    assert f"{root}: {name.split()[0]}\n" in out
    assert out.endswith("no problem\n")
    assert files_in(root) == before


def test_one_location_is_not_taken_for_another_data_set(tmp_path, run_cli):
    root = write_batvision_v2(tmp_path / "data")
    for flags in ((), ("--dataset", "batvisionv2")):
        code, _, errors = run_cli(check_dataset.main, root / "Hall", *flags, *HERE)
        assert code == 2
        assert f"{root}/Hall is one location of BatVision V2; give its parent folder, {root}\n" in errors


def test_rooms_are_recognised_and_none_is_simulated(rooms, tmp_path, run_cli):
    code, out, _ = run_cli(check_dataset.main, rooms, "--num_workers", 1)
    assert code == 0
    assert f"{rooms}: simulated\n" in out
    code, _, errors = run_cli(check_dataset.main, tmp_path / "none", "--dataset", "simulated")
    assert code == 2
    assert "none is no folder" in errors
    assert not (tmp_path / "none").exists()


def test_the_figures_by_hand(tmp_path, run_cli):
    root = write_batvision_v2(tmp_path / "data", locations=("Hall",), rows={"train": 2, "val": 1}, size=(4, 5))
    for number, depth in ((1, 1000), (2, 4000)):
        values = np.full((4, 5), depth, np.uint16)
        values[0] = 0  # a quarter are holes
        np.save(root / f"Hall/depth/depth_{number}.npy", values)
    set_cell(root / "Hall/val.csv", 2, "depth file name", "")
    file = tmp_path / "reports/check.json"
    code, out, _ = run_cli(check_dataset.main, root, *HERE, "--split", "train", "val", "--json", file)
    assert code == 0
    assert (
        "train: 2 pairs, 2 with depth; 1.00 to 4.00 m, mean 2.50 m, 25.0% holes; sound at 44100 Hz; pictures 4x5; "
        "depth maps 4x5\n"
    ) in out
    assert "val: 1 pairs, 0 with depth; sound at 44100 Hz; pictures 4x5\n" in out
    report = json.loads(file.read_text())
    assert report["dataset"] == "batvisionv2" and report["problems"] == [] and report["counts"] == {}
    train = report["splits"]["train"]
    assert train["depth"] == pytest.approx({"nearest": 1, "farthest": 4, "mean": 2.5, "holes": 0.25})
    assert train["sample_rates"] == {"44100": 2}
    assert report["splits"]["val"]["depth"] is None


def test_all_problems_are_listed_each_once_with_counts(tmp_path, run_cli):
    root = write_batvision_v2(tmp_path / "data", locations=("Attic", "Hall"))
    truncate(root / "Attic/audio/audio_1.wav")
    truncate(root / "Attic/camera/camera_1.jpeg")
    (root / "Attic/depth/depth_1.npy").unlink()
    (root / "Hall/audio/audio_8.wav").write_text("no sound")
    set_cell(root / "Hall/test.csv", 3, "depth path", "/etc/")
    code, out, errors = run_cli(check_dataset.main, root, *HERE, "--json", tmp_path / "check.json")
    assert (code, errors) == (1, "")
    lines = out.splitlines()
    assert [line.partition(": ")[0] for line in lines[:5]] == [
        "Attic/depth/depth_1.npy (Attic/train.csv, row 2)",
        "Hall/test.csv (row 3)",
        "Attic/audio/audio_1.wav (Attic/train.csv, row 2)",
        "Attic/camera/camera_1.jpeg (Attic/train.csv, row 2)",
        "Hall/audio/audio_8.wav (Hall/val.csv, row 3)",
    ]
    assert lines[0].endswith(": is missing; copy the file or drop the row")
    assert lines[1].endswith("the path '/etc/' leaves the data set; write it relative to the data set's folder")
    assert lines[2].endswith("copy the file again")
    assert lines[-1] == "5 problems: 2 audio, 1 rgb, 1 table, 1 missing file"
    report = json.loads((tmp_path / "check.json").read_text())
    assert report["counts"] == {"audio": 2, "rgb": 1, "table": 1, "missing file": 1}
    text = lines[1].partition(": ")[2]
    named = {"kind": "table", "file": "Hall/test.csv", "text": text, "table": None, "row": 3}
    assert report["problems"][1] == named


def test_one_row_of_nyu_that_train_and_val_share_is_listed_once(tmp_path, run_cli):
    root = write_nyu_a(tmp_path / "data")
    (root / "nyu2_train/study_0002_out/3.jpg").unlink()
    set_cell(root / "nyu2_train.csv", 2, 0, "../secret.jpg")
    truncate(root / "nyu2_test/00001_depth.png")
    code, out, _ = run_cli(check_dataset.main, root, *HERE)
    assert code == 1
    found = [line for line in out.splitlines() if "row " in line]
    assert sorted(line.partition(": ")[0] for line in found) == [
        "data/nyu2_train/study_0002_out/3.jpg (nyu2_train.csv, row 11)",
        "nyu2_test/00001_depth.png (nyu2_test.csv, row 2)",
        "nyu2_train.csv (row 2)",
    ]


def test_layouts_without_a_table(tmp_path, run_cli):
    root = write_nyu_b(tmp_path / "b")
    (root / "train/depth/3.png").unlink()
    save_png16(root / "test/depth/2.png", depth_millimetres(np.random.default_rng(0), (24, 32)) % 200)
    code, out, _ = run_cli(check_dataset.main, root, *HERE)
    lines = [line for line in out.splitlines() if line.startswith(("train/", "test/"))]
    assert code == 1
    assert lines[0] == "train/depth/3.png: is missing, the depth map of train/rgb/3.png; copy it or drop both"
    assert lines[1].startswith("test/depth/2.png: reaches 199: 16-bit maps hold millimetres")
    root = write_images(tmp_path / "images")
    truncate(root / "3.jpg")
    code, out, _ = run_cli(check_dataset.main, root, *HERE)
    assert code == 1
    assert out.startswith("3.jpg: cannot be read as a picture")


def test_a_split_that_cannot_be_opened_is_a_problem_and_all_of_them_are_an_error(tmp_path, run_cli):
    root = write_batvision_v1(tmp_path / "data")
    (root / "val.csv").unlink()
    code, out, _ = run_cli(check_dataset.main, root, *HERE)
    assert code == 1
    assert f"{root}: val.csv is missing; " in out
    assert out.endswith("1 problem: 1 split\n")
    code, _, errors = run_cli(check_dataset.main, root, *HERE, "--split", "val")
    assert code == 2
    assert "val.csv is missing" in errors and len(errors.strip().splitlines()) == 1


def test_what_is_no_data_set_is_an_error(tmp_path, run_cli):
    (tmp_path / "notes.txt").write_text("no data")
    code, _, errors = run_cli(check_dataset.main, tmp_path, *HERE)
    assert code == 2
    assert all(name in errors for name in DATASETS)
    write_images(tmp_path / "some/where")
    assert find_dataset(tmp_path) == "images"
    code, _, errors = run_cli(check_dataset.main, tmp_path, *HERE, "--dataset", "nyu")
    assert code == 2
    assert "holds no known layout" in errors


ENDS = {
    "print('line')": "",
    "print('line\\n' * 99_999)": "",
    "print('line'); sys.exit(1)": "",
    "logging.getLogger('dataloaders').info('line')": "",
    "print('line'); raise errors.DataError('a.wav is missing')": "-c: error: a.wav is missing\n",
}


@pytest.mark.parametrize("ends", ENDS)
def test_nobody_who_reads_on_is_no_traceback(ends):
    reader, writer = os.pipe()
    os.close(reader)  # as head does, sooner or later
    script = f"import errors, logging, sys\ndef main(_): {ends}\nerrors.run_script(main)"
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    done = subprocess.run(
        [sys.executable, "-c", script],
        stdout=writer, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, env=buffered,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, ENDS[ends])


def test_a_check_of_which_the_first_line_is_enough(tmp_path):
    root = write_batvision_v2(tmp_path / "data", locations=("Attic",), rows={"train": 2})
    truncate(root / "Attic/audio/audio_1.wav")
    flags = ["--num_workers", "0", "--split", "train"]
    with subprocess.Popen(
        [sys.executable, "check_dataset.py", root, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=REPOSITORY,
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.fixture
def somebody(monkeypatch):
    """A folder, and what to call to be nobody who has rights: root may read everything."""
    if sys.platform == "win32":
        pytest.skip("Windows has other rights")
    folder = Path(tempfile.mkdtemp())  # pytest's own is open to its user alone
    folder.chmod(0o755)
    codecs.lookup("utf-8-sig")  # read from a file that this nobody may not read either
    yield folder, lambda: os.getuid() or os.seteuid(65534)
    if os.getuid() == 0:
        os.seteuid(0)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", [*WRITERS, "simulated"])
def test_a_folder_that_may_not_be_read_is_one_line(name, somebody, run_cli):
    folder, become = somebody
    root = WRITERS.get(name, write_batvision_v2)(folder / "data")
    root.chmod(0)
    become()
    for flags in ((), ("--dataset", name.split()[0])):
        code, out, errors = run_cli(check_dataset.main, root, *HERE, *flags)
        assert (code, out) == (2, "")
        assert "Permission denied" in errors and len(errors.strip().splitlines()) == 1
    if name == "simulated":
        with pytest.raises(DataError, match="data cannot be read"):
            create_dataset(name, root, "train", 16)


def test_a_table_that_may_not_be_read_is_a_problem_among_others(somebody, run_cli):
    folder, become = somebody
    root = write_batvision_v1(folder / "data")
    (root / "train.csv").chmod(0)
    become()
    code, out, _ = run_cli(check_dataset.main, root, *HERE)
    assert code == 1
    assert f"{root}: train.csv cannot be read as CSV ([Errno 13] Permission denied" in out
    assert f"{root}: batvisionv1\n" in out and out.endswith("1 problem: 1 split\n")


def test_a_report_that_cannot_be_written_is_one_line(tmp_path, run_cli):
    root = write_images(tmp_path / "data")
    (tmp_path / "file").write_text("")
    code, _, errors = run_cli(check_dataset.main, root, *HERE, "--json", tmp_path / "file/check.json")
    assert code == 2
    assert "check.json cannot be written" in errors
    code, out, errors = run_cli(check_dataset.main, root, *HERE, "--json", tmp_path)
    assert (code, out) == (2, "") and "is a folder; name a file" in errors
    code, out, _ = run_cli(check_dataset.main, root, *HERE, "--dataset", "images", "--split", "train", "test")
    assert code == 0 and out.endswith("no problem\n"), "a folder without splits is each of them"


def test_frames_of_one_matlab_file_are_held_against_each_other(tmp_path, run_cli):
    import scipy.io

    root = write_nyu_c(tmp_path / "data")
    numbers = {"trainNdxs": np.arange(1, 12), "testNdxs": np.arange(9, 13)}
    assert run_cli(check_dataset.main, root, *HERE)[0] == 0
    scipy.io.savemat(root / "splits.mat", {name: values[:, None].astype(float) for name, values in numbers.items()})
    code, out, _ = run_cli(check_dataset.main, root, *HERE)
    assert code == 1
    assert out.count("is also of the ") == 3, "9, 10 and 11"


def test_a_text_beside_pictures_is_no_list(tmp_path, run_cli):
    root = write_images(tmp_path / "images")
    (root / "latest_notes.txt").write_text("taken on a Monday\n")
    code, out, _ = run_cli(check_dataset.main, root, *HERE)
    assert code == 0 and "5 pairs" in out


def test_names_that_are_no_utf8_are_read_and_written(tmp_path, run_cli):
    """What a zip file of another language unpacks to."""
    root = write_images(tmp_path / "images", count=2)
    (root / "1.jpg").rename(root / os.fsdecode(b"caf\xe9.jpg"))
    dataset = create_dataset("images", root, "train", 28, cache_dir=tmp_path / "cache")
    SampleCache(tmp_path / "cache", dataset)
    assert dataset[1]["rgb"].any()
    assert sorted(dataset.ids) == ["0.jpg", "caf\\udce9.jpg"]
    save_grid(tmp_path / "grid.png", [("picture", "rgb", [dataset[1]["rgb"]])], [dataset.ids[1]])
    assert run_cli(check_dataset.main, root, *HERE)[0] == 0
