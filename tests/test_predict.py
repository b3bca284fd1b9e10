"""predict.py: the depth of an evaluation from bare files, and one line for each file that is broken."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from make_data import broken_recording, recording, truncate
from make_networks import RelativeEye, write_network
from PIL import Image

import predict
from dataloaders import create_dataset
from dataloaders.transforms import check_recording
from models import MODELS, create_model
from models.base import normalize_imagenet
from training import loop, options
from training.checkpoint import load_checkpoint, save_checkpoint, save_model
from training.mirrored import Mirrored

SIZE = 32
NETWORKS = {"binaural_attention": "ears", "rgb_depth": "eyes", "multimodal_fusion": "both", "relative_eye": "relative"}


@pytest.fixture(scope="module", autouse=True)
def stand_ins():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, RelativeEye.name, RelativeEye)
        yield


@pytest.fixture(scope="module")
def networks(rooms, tmp_path_factory, stand_ins):
    """Checkpoints of untrained networks, by what they take: (file, model)."""
    folder = tmp_path_factory.mktemp("networks")
    preprocessing = create_dataset("simulated", rooms, "test", image_size=SIZE).preprocessing
    made = {}
    for name, key in NETWORKS.items():
        model = write_network(folder / f"{key}.pth", name, preprocessing)
        made[key] = folder / f"{key}.pth", model
    return made


@pytest.fixture
def ears(networks):
    return networks["ears"][0]


@pytest.fixture
def recordings(tmp_path):
    folder = tmp_path / "recordings"
    folder.mkdir()
    for number in (1, 2, 10):
        recording(folder / f"audio_{number}.wav", seed=number)
    return folder


def refused(run_cli, *flags):
    code, _, errors = run_cli(predict.main, *flags)
    assert code == 2
    assert len(errors.strip().splitlines()) == 1, errors
    assert "Traceback" not in errors
    return errors


# ----------------------------------------------------------------------------------------------------------- what it is


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("key", sorted(NETWORKS.values()))
def test_it_is_the_prediction_of_an_evaluation(rooms, networks, tmp_path, run_cli, key, mirror):
    checkpoint, model = networks[key]
    dataset = create_dataset("simulated", rooms, "test", image_size=SIZE)
    sample, files = dataset[0], dataset.rows[0].files
    flags = [x for name in model.inputs for x in (f"--{name}", files[name][0])] + ["--mirror"] * mirror
    code, _, errors = run_cli(predict.main, "--checkpoint", checkpoint, *flags, "--output", tmp_path, "--precision", 32)
    assert (code, errors) == (0, "")
    fabric = Fabric(accelerator="cpu", devices=1)
    batch = {name: value[None] for name, value in sample.items() if isinstance(value, torch.Tensor)}
    expected = loop.predict(fabric, Mirrored(model) if mirror else model, batch)[0, 0].numpy()
    (array,) = tmp_path.glob("*.npy")
    depth = np.load(array)
    assert depth.dtype == np.float32
    assert depth.shape == (SIZE, SIZE)
    assert np.allclose(depth, expected, rtol=1e-5)


def test_the_three_files_of_a_recording(ears, recordings, tmp_path, run_cli):
    out = tmp_path / "out"
    code, printed, errors = run_cli(predict.main, "--checkpoint", ears, "--audio", recordings, "--output", out)
    assert (code, errors) == (0, "")
    stems = ("audio_1", "audio_2", "audio_10")
    assert sorted(path.name for path in out.iterdir()) == sorted(
        f"{stem}{end}" for stem in stems for end in (".npy", ".png", "_depth.png")
    )
    assert [line.split(":")[0] for line in printed.splitlines()[:3]] == list(stems), "in natural order"
    for stem in stems:
        metres = np.load(out / f"{stem}.npy")
        with Image.open(out / f"{stem}.png") as image:
            assert image.mode.startswith("I;16")
            millimetres = np.array(image)
        assert np.abs(millimetres / 1000 - metres).max() <= 0.0005 + 1e-6
        with Image.open(out / f"{stem}_depth.png") as picture:
            assert picture.size[0] > 200


def test_a_disparity_claims_no_metres(networks, samples_dir, tmp_path, run_cli):
    picture = samples_dir / "livingroom/image/00000.jpg"
    flags = ("--rgb", picture, "--output", tmp_path, "--size", 48, 64)
    code, printed, errors = run_cli(predict.main, "--checkpoint", networks["relative"][0], *flags)
    assert (code, errors) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.npy", "00000_disparity.png"]
    disparity = np.load(tmp_path / "00000.npy")
    assert (disparity.dtype, disparity.shape) == (np.float32, (48, 64))
    assert (disparity > 3).all(), "as the network gives it"
    first, last = printed.splitlines()
    assert first == f"00000: disparity {disparity.min():.4g} to {disparity.max():.4g}, without a unit"
    assert "relative disparity" in last
    assert "millimetres" not in printed


def test_published_weights_see_as_they_are(tmp_path, run_cli):
    torch.manual_seed(0)
    model = create_model("depth_anything", preset="tiny").eval()
    save_model(model, tmp_path / "published.safetensors", "MIT")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    picture.save(tmp_path / "view.png")
    flags = ("--checkpoint", tmp_path / "published.safetensors", "--rgb", tmp_path / "view.png", "--precision", "32")
    code, _, errors = run_cli(predict.main, *flags, "--output", tmp_path / "out", "--size", 30, 40)
    assert (code, errors) == (0, "")
    square = np.asarray(picture.resize((112, 112), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    with torch.no_grad():
        answer = model(normalize_imagenet(torch.from_numpy(square).permute(2, 0, 1)[None]))
    expected = torch.nn.functional.interpolate(answer, (30, 40), mode="bilinear", align_corners=False)
    assert np.allclose(np.load(tmp_path / "out/view.npy"), expected[0, 0].numpy(), atol=1e-5)


def test_weights_whose_preprocessing_nobody_knows(networks, tmp_path, run_cli):
    save_model(networks["eyes"][1], tmp_path / "eyes.safetensors", "MIT")
    flags = ("--checkpoint", tmp_path / "eyes.safetensors", "--rgb", tmp_path, "--output", tmp_path / "out")
    assert "rgb_depth alone" in refused(run_cli, *flags)


def test_the_real_recording(ears, samples_dir, tmp_path, run_cli):
    wav = samples_dir / "BatvisionV2/Sample_Room/audio/audio_47.wav"
    code, _, errors = run_cli(predict.main, "--checkpoint", ears, "--audio", wav, "--output", tmp_path)
    assert (code, errors) == (0, "")
    depth = np.load(tmp_path / "audio_47.npy")
    assert depth.shape == (SIZE, SIZE)
    assert ((depth > 0) & (depth < 12)).all()


@pytest.mark.parametrize("whole", [False, True])
def test_who_hears_recordings_whole_is_said_to(whole, networks, samples_dir, tmp_path, run_cli):
    checkpoint = load_checkpoint(networks["ears"][0])
    if whole:  # as of BatVision V1
        checkpoint["preprocessing"]["audio_samples"] = None
    save_checkpoint(checkpoint, tmp_path / "e.pth")
    wav = samples_dir / "BatvisionV2/Sample_Room/audio/audio_47.wav"
    code, out, _ = run_cli(predict.main, "--checkpoint", tmp_path / "e.pth", "--audio", wav, "--output", tmp_path / "o")
    assert code == 0 and ("hears recordings whole" in out) is whole


def test_a_recording_finds_its_picture_by_number(networks, samples_dir, tmp_path, run_cli):
    room = samples_dir / "BatvisionV2/Sample_Room"
    flags = ("--audio", room / "audio", "--rgb", room / "camera", "--output", tmp_path)
    code, _, errors = run_cli(predict.main, "--checkpoint", networks["both"][0], *flags)
    assert (code, errors) == (0, "")
    assert (tmp_path / "audio_47.npy").is_file()


def test_names_come_before_numbers(tmp_path):
    paths = [Path(name) for name in ("a_1.jpg", "b_1.jpg", "c_02.jpg", "hall.png")]
    assert predict.picture_of(Path("a_1.wav"), paths).name == "a_1.jpg"
    assert predict.picture_of(Path("audio_2.wav"), paths).name == "c_02.jpg"
    assert predict.picture_of(Path("hall.wav"), paths).name == "hall.png"
    for name in ("x_1.wav", "x_3.wav", "attic.wav"):
        with pytest.raises(predict.DataError, match=name):
            predict.picture_of(Path(name), paths)


def test_another_size(ears, recordings, tmp_path, run_cli):
    flags = ("--audio", recordings / "audio_1.wav", "--output", tmp_path, "--size", 20, 48)
    assert run_cli(predict.main, "--checkpoint", ears, *flags)[0] == 0
    assert np.load(tmp_path / "audio_1.npy").shape == (20, 48)
    with Image.open(tmp_path / "audio_1.png") as image:
        assert image.size == (48, 20)


def test_resampling_is_asked_for(ears, tmp_path, run_cli):
    slow = recording(tmp_path / "slow.wav", rate=48_000)
    flags = ("--checkpoint", ears, "--audio", slow, "--output", tmp_path / "out")
    assert "--resample" in refused(run_cli, *flags)
    assert run_cli(predict.main, *flags, "--resample")[0] == 0


# ------------------------------------------------------------------------------------------------------------ bad input


def test_a_broken_file_does_not_stop_the_others(ears, recordings, tmp_path, run_cli):
    recording(recordings / "audio_3.wav", channels=1)
    truncate(recordings / "audio_2.wav")
    out = tmp_path / "out"
    code, _, errors = run_cli(predict.main, "--checkpoint", ears, "--audio", recordings, "--output", out)
    assert code == 2
    lines = errors.strip().splitlines()
    assert len(lines) == 3
    assert "audio_2.wav" in lines[0]
    assert "audio_3.wav has 1 channel" in lines[1]
    assert "2 of 4" in lines[2]
    assert sorted(path.stem for path in out.glob("*.npy")) == ["audio_1", "audio_10"]


def test_what_a_folder_holds_beside_its_recordings_is_named(ears, recordings, tmp_path, run_cli):
    recording(recordings / "more.flac")
    (recordings / "monday").mkdir()
    recording(recordings / "monday/audio_3.wav")
    (recordings / "notes.txt").write_text("nothing to hear")
    code, out, _ = run_cli(predict.main, "--checkpoint", ears, "--audio", recordings, "--output", tmp_path / "out")
    assert code == 0
    assert "3 files are predicted, not monday/, more.flac: .wav directly in the folder alone" in out
    assert "notes" not in out


@pytest.mark.parametrize(("samples", "fails"), [(1500, True), (1556, False)])
def test_a_recording_must_last_for_half_of_what_is_heard(ears, tmp_path, run_cli, samples, fails):
    path = recording(tmp_path / "a.wav", seconds=samples / 44_100)  # of 3112, the echoes of 12 m
    code, _, errors = run_cli(predict.main, "--checkpoint", ears, "--audio", path, "--output", tmp_path / "out")
    assert code == (2 if fails else 0)
    assert ("a.wav: the sound lasts 34.0 ms, less than half of the 70.6 ms" in errors) is fails


def test_nothing_that_sounds_has_no_depth():
    hum = torch.full((2, 4000), 0.25)  # an offset of the converter is no sound either
    preprocessing = {"audio_samples": 3112, "max_depth": 12.0}
    for wave in (0 * hum, hum):
        with pytest.raises(predict.DataError, match="silent"):
            check_recording(wave, preprocessing)
    hum[1, 17] += 1e-4
    check_recording(hum, preprocessing)


def test_an_answer_on_a_cpu_is_in_float32_unless_it_is_asked_otherwise(monkeypatch):
    args = predict.create_parser().parse_args(["--checkpoint", "a.pth", "--output", "out"])
    options.settle_precision(args)
    assert args.precision == ("auto" if torch.cuda.is_available() else "32")
    args.precision = "bf16"
    options.settle_precision(args)
    assert args.precision == "bf16"


@pytest.mark.parametrize("kind", ["mono", "truncated", "empty", "text", "missing"])
def test_a_single_broken_file(ears, tmp_path, run_cli, kind):
    out = tmp_path / "out"
    assert "broken.wav" in refused(
        run_cli, "--checkpoint", ears, "--audio", broken_recording(tmp_path, kind), "--output", out
    )
    assert not out.exists()


def test_an_error_of_the_preprocessing_names_the_file(tmp_path):
    files = {"audio": broken_recording(tmp_path, "short")}
    preprocessing = {"audio_samples": None, "audio_format": "spectrogram", "image_size": SIZE, "resample": False}
    with pytest.raises(predict.DataError, match=r"broken\.wav: the sound has 44 samples"):
        predict.read_bare(files, preprocessing, resample=False)


def test_an_empty_folder(ears, tmp_path, run_cli):
    (tmp_path / "empty").mkdir()
    flags = ("--checkpoint", ears, "--audio", tmp_path / "empty", "--output", tmp_path)
    assert ".wav" in refused(run_cli, *flags)


@pytest.mark.parametrize(
    ("network", "given", "named"),
    [
        ("eyes", ["audio"], "--audio has no effect"),
        ("eyes", [], "--rgb"),
        ("ears", [], "--audio"),
        ("ears", ["audio", "rgb"], "--rgb"),
        ("ears", ["rgb"], "--rgb"),
        ("both", ["audio"], "--rgb"),
        ("eyes", ["rgb", "resample"], "--resample"),
    ],
)
def test_what_the_network_does_not_take(networks, recordings, tmp_path, run_cli, network, given, named):
    paths = {"audio": ["--audio", recordings], "rgb": ["--rgb", tmp_path], "resample": ["--resample"]}
    flags = [flag for name in given for flag in paths[name]]
    errors = refused(run_cli, "--checkpoint", networks[network][0], *flags, "--output", tmp_path / "out")
    assert f"error: {named}" in errors
    assert "which takes" in errors


def test_inputs_are_never_overwritten(networks, tmp_path, run_cli):
    picture = tmp_path / "hall.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(picture)
    before = picture.read_bytes()
    flags = ("--checkpoint", networks["eyes"][0], "--rgb", picture, "--output", tmp_path, "--overwrite")
    assert "hall.png is an input" in refused(run_cli, *flags)
    assert picture.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["hall.png"]


def test_what_is_there_stays_unless_it_is_to_be_replaced(ears, recordings, tmp_path, run_cli):
    mine = recordings / "audio_2.png"
    mine.write_text("a picture of mine")
    flags = ("--checkpoint", ears, "--audio", recordings, "--output", recordings)
    assert "--overwrite" in refused(run_cli, *flags)
    assert mine.read_text() == "a picture of mine"
    assert not list(recordings.glob("*.npy"))
    assert run_cli(predict.main, *flags, "--overwrite")[0] == 0


@pytest.mark.parametrize("other", ["audio_1.WAV", "audio_1_depth.wav"])
def test_two_recordings_for_one_name(ears, recordings, tmp_path, run_cli, other):
    shutil.copy(recordings / "audio_1.wav", recordings / other)
    errors = refused(run_cli, "--checkpoint", ears, "--audio", recordings, "--output", tmp_path / "out")
    assert "audio_1.wav" in errors
    assert other in errors
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be(ears, recordings, tmp_path, run_cli):
    (tmp_path / "file").write_text("")
    flags = ("--checkpoint", ears, "--audio", recordings / "audio_1.wav", "--output", tmp_path / "file")
    assert "--output" in refused(run_cli, *flags)
