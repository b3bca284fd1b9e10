"""Every broken file of the corpus ends the script that meets it with one line and exit code 2, and nothing is lost."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_files import (
    CHECKPOINTS,
    DEPTHS,
    HOLES,
    ODD_PICTURES,
    ODD_TABLES,
    PICTURES,
    SUSPICIOUS_WAVS,
    TABLES,
    WAVS,
    sound,
)
from make_data import read_csv, write_batvision_v1, write_batvision_v2, write_csv

import app
import check_dataset
import evaluate
import export
import predict
import train_adabins_distillation
import train_binaural_attention
import train_distillation
import train_rgb_depth
from dataloaders import create_dataset
from errors import DataError
from models import create_model
from training.checkpoint import save_checkpoint
from training.version import VERSION

REPOSITORY = Path(__file__).resolve().parent.parent

SMALL = ("--image_size", 32, "--base_channels", 4, "--batch_size", 2, "--num_workers", 0, "--nb_epochs", 1)
TRAIN = {
    "audio": (train_binaural_attention.main, ("--attention_levels", 5)),
    "rgb": (train_rgb_depth.main, ()),
    "depth": (train_rgb_depth.main, ()),
}
FILES = {"audio": "Hall/audio/audio_2.wav", "rgb": "Hall/camera/camera_2.jpeg", "depth": "Hall/depth/depth_2.npy"}
BROKEN = [(kind, name) for kind, corpus in (("audio", WAVS), ("rgb", PICTURES), ("depth", DEPTHS)) for name in corpus]
CORPUS = {"audio": WAVS, "rgb": PICTURES, "depth": DEPTHS}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good") / "data"
    return write_batvision_v2(folder, locations=("Hall",), rows={"train": 2, "val": 1, "test": 1}, size=(8, 12),
                              frames=4000)  # fmt: skip


@pytest.fixture
def data(good, tmp_path):
    return Path(shutil.copytree(good, tmp_path / "data"))


@pytest.fixture(scope="module")
def networks(good, tmp_path_factory):
    """Checkpoints of untrained networks, by what they take."""
    folder = tmp_path_factory.mktemp("networks")
    dataset = create_dataset("batvisionv2", good, "test", image_size=32)
    made = {}
    for key, name in (("audio", "binaural_attention"), ("rgb", "rgb_depth")):
        torch.manual_seed(0)
        model = create_model(name, base_channels=4, max_depth=30.0)
        made[key] = folder / f"{key}.pth"
        state = {
            "format": 1,
            "model": {"name": name, "config": model.config},
            "model_state_dict": model.state_dict(),
            "preprocessing": dataset.preprocessing,
            "args": {"experiment_name": "e", "dataset": "batvisionv2", "dataset_dir": str(good), "label_fraction": 1.0,
                     "label_seed": 0},
            "epoch": 1,
            "versions": {"toolkit": VERSION},
        }  # fmt: skip
        save_checkpoint(state, made[key])
    return made


def refused(run_cli, main, *flags):
    """The one line with which a script ends, after its name."""
    code, _, errors = run_cli(main, *flags)
    assert code == 2
    (line,) = errors.strip().splitlines()
    name, said, what = line.partition(": error: ")
    assert said and name == f"{main.__module__}.py"
    return what


def train(run_cli, kind, data, output, *more):
    """Train where an earlier run is to be overwritten; return the line with which that ends, and the earlier files."""
    main, flags = TRAIN[kind]
    folder = output / "checkpoints/e"
    folder.mkdir(parents=True)
    (folder / "last.pth").write_bytes(b"weeks of work")
    where = ("--dataset_dir", data, "--output_dir", output, "--experiment_name", "e", "--overwrite")
    line = refused(run_cli, main, *where, *SMALL, *flags, *more)
    kept = [path for path in folder.rglob("last.pth") if path.read_bytes() == b"weeks of work"]
    assert len(kept) == 1, "nothing is lost"
    assert not list(folder.glob("best_model.pth"))
    return line


def problems(run_cli, data, code=1):
    """The lines of a check before its summary."""
    found, out, errors = run_cli(check_dataset.main, data, "--num_workers", 0)
    assert (found, errors) == (code, "")
    lines = out.strip().splitlines()
    return lines[: lines.index(f"{data}: batvisionv2")]


# --------------------------------------------------------------------------------------------------- files of a sample


@pytest.mark.parametrize(("kind", "name"), BROKEN)
def test_a_broken_file_ends_a_training_with_one_line(kind, name, data, tmp_path, run_cli):
    write, says = CORPUS[kind][name]
    write(data / FILES[kind])
    line = train(run_cli, kind, data, tmp_path)
    assert FILES[kind] in line
    assert says in line
    assert f"({data}/Hall/train.csv, row 3)" in line


@pytest.mark.parametrize(("kind", "name"), [*BROKEN, *(("audio", name) for name in SUSPICIOUS_WAVS)])
def test_a_check_names_the_broken_file_and_no_other(kind, name, data, run_cli):
    write, says = {**CORPUS[kind], **SUSPICIOUS_WAVS}[name]
    write(data / FILES[kind])
    (line,) = problems(run_cli, data)
    assert line.startswith(f"{FILES[kind]} (Hall/train.csv, row 3): ")
    assert says in line


@pytest.mark.parametrize("name", HOLES)
def test_a_map_that_is_one_hole_is_no_label_and_a_check_names_it(name, data, tmp_path, run_cli):
    HOLES[name](data / FILES["depth"])
    (line,) = problems(run_cli, data)
    assert line.startswith(f"{FILES['depth']} (Hall/train.csv, row 3): the map has no valid pixel")
    dataset = create_dataset("batvisionv2", data, "train", 16)
    assert not dataset[1]["depth"].any()
    for number in (1, 2):
        HOLES[name](data / f"Hall/depth/depth_{number}.npy")
    assert "not one of the 2 train pairs has a valid depth pixel" in train(run_cli, "rgb", data, tmp_path)


@pytest.mark.parametrize("name", WAVS)
def test_a_broken_recording_ends_a_prediction_with_one_line(name, networks, data, tmp_path, run_cli):
    write, says = WAVS[name]
    write(data / FILES["audio"])
    alone = ("--checkpoint", networks["audio"], "--output", tmp_path / "out")
    line = refused(run_cli, predict.main, *alone, "--audio", data / FILES["audio"])
    assert (says if name != "folder" else "no file that ends in .wav") in line
    assert FILES["audio"] in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", PICTURES)
def test_a_broken_picture_ends_a_prediction_with_one_line(name, networks, data, tmp_path, run_cli):
    write, says = PICTURES[name]
    write(data / FILES["rgb"])
    flags = ("--checkpoint", networks["rgb"], "--rgb", data / FILES["rgb"], "--output", tmp_path / "out")
    line = refused(run_cli, predict.main, *flags)
    assert says in line or name == "folder"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "name"), [("audio", "NaN"), ("rgb", "truncated"), ("depth", "metres")])
def test_a_broken_test_file_ends_an_evaluation_and_the_earlier_report_stays(
    kind, name, networks, data, tmp_path, run_cli
):
    write, says = CORPUS[kind][name]
    path = data / FILES[kind].replace("2.", "4.")
    write(path)
    (tmp_path / "report.json").write_text("earlier")
    flags = ("--dataset_dir", data, "--output_dir", tmp_path, "--json", tmp_path / "report.json", "--num_workers", 0)
    line = refused(run_cli, evaluate.main, "--checkpoint", networks["rgb" if kind == "depth" else kind], *flags)
    assert says in line
    assert f"({data}/Hall/test.csv, row 2)" in line
    assert (tmp_path / "report.json").read_text() == "earlier"


# -------------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("name", TABLES)
def test_a_broken_table_ends_a_training_with_one_line_and_a_check_names_it(name, data, tmp_path, run_cli):
    write, says = TABLES[name]
    write(data / "Hall/train.csv")
    line = train(run_cli, "audio", data, tmp_path)
    assert says in line
    assert not (tmp_path / "logs").exists(), "known before anything is written"
    lines = problems(run_cli, data)
    assert any("train.csv" in line or line.startswith(f"{data}: the train split is empty") for line in lines)


@pytest.mark.parametrize("name", ODD_TABLES)
def test_an_odd_table_is_read(name, data, run_cli):
    expected = create_dataset("batvisionv2", data, "train", 16)
    ODD_TABLES[name](data / "Hall/train.csv")
    dataset = create_dataset("batvisionv2", data, "train", 16)
    assert dataset.ids == expected.ids
    assert torch.equal(dataset[1]["audio"], expected[1]["audio"])
    assert dataset.labelled.tolist() == [True, name != "empty depth cells"]
    assert problems(run_cli, data, code=0) == []


def test_a_repeated_row_is_named(data, run_cli):
    table = read_csv(data / "Hall/train.csv")
    write_csv(data / "Hall/train.csv", [*table, table[1]])
    assert problems(run_cli, data) == [
        "Hall/train.csv (row 4): names the files of Hall/train.csv, row 2 again; drop one of the two"
    ]


def test_a_copy_of_a_locations_table_is_named_and_a_hidden_one_is_no_location(data, run_cli):
    """Its rows would count twice, and be learnt where that location is held out."""
    for name in (".ipynb_checkpoints", "Hall_old"):
        (data / name).mkdir()
        shutil.copy(data / "Hall/train.csv", data / name)
    assert "Hall_old" in create_dataset("batvisionv2", data, "test", 16).known_locations()
    with pytest.raises(
        DataError, match=r"Hall_old/train.csv, row 2, in the folder Hall_old, names files of Hall; move"
    ):
        create_dataset("batvisionv2", data, "train", 16)
    (line,) = problems(run_cli, data)
    assert "Hall_old" in line and "names files of Hall" in line
    shutil.rmtree(data / "Hall_old")
    assert problems(run_cli, data, code=0) == []


def test_a_repeated_row_is_said_to_a_training(tmp_path, caplog):
    root = write_batvision_v1(tmp_path)
    table = read_csv(root / "train.csv")
    write_csv(root / "train.csv", [*table, table[1]])
    create_dataset("batvisionv1", root, "train", 16)
    assert "name the files of an earlier row" in caplog.text


def test_a_pair_of_two_splits_is_named(data, run_cli):
    train, test = (read_csv(data / f"Hall/{split}.csv") for split in ("train", "test"))
    write_csv(data / "Hall/test.csv", [*test, train[1]])
    (line,) = problems(run_cli, data)
    assert line.startswith("Hall/audio/audio_1.wav (Hall/test.csv, row 3): is also of the train split (Hall/train.csv")


# ------------------------------------------------------------------------------------------------------ odd, and right


@pytest.mark.parametrize("name", ODD_PICTURES)
def test_an_odd_picture_is_converted(name, data, networks, tmp_path, run_cli):
    ODD_PICTURES[name](data / FILES["rgb"])
    rgb = create_dataset("batvisionv2", data, "train", 32, modalities=("rgb",))[1]["rgb"]
    assert rgb.shape == (3, 32, 32)
    assert 0.1 < rgb.mean() < 0.9
    greyish = name in ("grey", "grey with alpha", "black and white")
    assert torch.equal(rgb[0], rgb[1]) == greyish
    assert problems(run_cli, data, code=0) == []
    flags = ("--checkpoint", networks["rgb"], "--rgb", data / FILES["rgb"], "--output", tmp_path / "out")
    assert run_cli(predict.main, *flags)[0] == 0


def test_another_rate_is_converted_on_request(data, run_cli):
    sound(rate=8000)(data / FILES["audio"])
    audio = create_dataset("batvisionv2", data, "train", 32, modalities=("audio",), resample=True)[1]["audio"]
    assert np.isfinite(audio.numpy()).all()
    code, out, _ = run_cli(check_dataset.main, data, "--num_workers", 0, "--resample")
    assert code == 0
    assert "sound at 44100 Hz (1), 8000 Hz (1)" in out


# --------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_broken_checkpoint_ends_every_script_with_one_line(name, networks, data, tmp_path, run_cli):
    path = tmp_path / "network.pth"
    shutil.copy(networks["rgb"], path)
    write, says = CHECKPOINTS[name]
    write(path)
    output = ("--output_dir", tmp_path)
    lines = [
        refused(run_cli, predict.main, "--checkpoint", path, "--rgb", data / FILES["rgb"], "--output", tmp_path / "o"),
        refused(run_cli, evaluate.main, "--checkpoint", path, "--dataset_dir", data, *output, "--num_workers", 0),
    ]
    lines.append(refused(run_cli, export.main, "--checkpoint", path, "--output", tmp_path / "o.pt2"))
    lines.append(refused(run_cli, app.main, "--checkpoint", networks["audio"], "--teacher", path))
    given = ("--dataset_dir", data, *output, *SMALL)
    if name != "no preprocessing":  # which a training gets from its own flags
        lines.append(refused(run_cli, train_distillation.main, *given, "--teacher_checkpoint", path))
        lines.append(refused(run_cli, train_adabins_distillation.main, *given, "--teacher_checkpoint", path))
    if name not in ("no preprocessing", "side of no network"):
        lines.append(refused(run_cli, train_rgb_depth.main, *given, "--init_from", path))
    for line in lines:
        assert "network.pth" in line
    assert says in lines[0]
    assert not (tmp_path / "results").exists()
    assert not list(tmp_path.glob("o*"))


@pytest.mark.parametrize(
    "asks", ["numpy.empty((10**6, 10**6, 2))", "torch.empty(10**15)", "raise MemoryError", "raise RuntimeError('odd')"]
)
def test_a_size_that_no_machine_has_memory_for_is_an_error_of_one_line(asks):
    script = f"import errors, numpy, torch\ndef main(_): {asks}\nerrors.run_script(main)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY)
    if "odd" in asks:  # a defect keeps its traceback
        assert done.returncode == 1 and "Traceback" in done.stderr
        return
    assert done.returncode == 2
    assert done.stderr.startswith("-c: error: too little memory (") and done.stderr.count("\n") == 1
