"""export.py: files that answer as PyTorch does, in 8 bits too, without this toolkit; and their cards."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
import torch
from make_data import truncate
from onnx import TensorProto, helper

import export
import predict
from dataloaders import create_dataset
from models import DepthModel, create_model
from models.onnx_file import METADATA, OnnxNetwork
from models.weights import read_pickle
from training.checkpoint import save_checkpoint, save_model
from training.model_card import model_card

SIZE = 32
NETWORKS = {
    "ears": ("binaural_attention", {"base_channels": 4, "attention_levels": [5], "max_depth": 12.0}),
    "both": (
        "binaural_attention",
        {
            "base_channels": 4,
            "attention_levels": [5],
            "max_depth": 12.0,
            "compress_input": False,
            "audio_channels": 4,
            "share_ears": True,
        },
    ),
    "eyes": ("rgb_depth", {"base_channels": 4, "max_depth": 12.0}),
    "bins": ("adabins_rgb", {"base_channels": 4, "n_bins": 8, "max_depth": 12.0}),
    "relative": ("depth_anything", {"preset": "tiny"}),
}
SIDES = {"relative": 28}  # a multiple of 14
HEARD = {"both": "interaural"}
LAST = {"ears": "head.project", "both": "head.project", "eyes": "head.project", "bins": "decoder.choose"}
LAST["relative"] = "depth_head.scratch.output_conv2.2"


def untrained(key, rooms):
    """A network whose answers depend on its inputs: its norms know the data, and its last layer is loud."""
    torch.manual_seed(0)
    name, config = NETWORKS[key]
    model = create_model(name, **config)
    heard = HEARD.get(key, "spectrogram")
    dataset = create_dataset("simulated", rooms, "train", image_size=SIDES.get(key, SIZE), audio_format=heard)
    inputs = [torch.stack([sample[key] for sample in dataset]) for key in model.inputs]
    with torch.no_grad():
        for _ in range(30):
            model(*inputs)
        model.get_submodule(LAST[key]).weight.mul_(30 if key == "relative" else 3)
    return model.eval(), dataset.preprocessing


@pytest.fixture(scope="module")
def networks(rooms, tmp_path_factory):
    """A folder of checkpoints, ``<key>.pth``, and of what export.py makes of them, ``<key>.onnx``; the models."""
    folder = tmp_path_factory.mktemp("networks")
    models = {}
    for key in NETWORKS:
        models[key], preprocessing = untrained(key, rooms)
        checkpoint = {
            "format": 1,
            "model": {"name": models[key].name, "config": models[key].config},
            "model_state_dict": models[key].state_dict(),
            "preprocessing": preprocessing,
            "args": {"experiment_name": "e", "dataset": "simulated", "dataset_dir": str(rooms)},
            "epoch": 2,
            "best": {"value": 0.5, "epoch": 2},
            "versions": {"torch": "2.0"},
        }
        save_checkpoint(checkpoint, folder / f"{key}.pth")
        export.main(["--checkpoint", str(folder / f"{key}.pth"), "--output", str(folder / f"{key}.onnx")])
    return SimpleNamespace(folder=folder, models=models)


@pytest.fixture
def eyes(networks):
    return networks.folder / "eyes.pth"


def refused(run_cli, main, *flags):
    code, _, errors = run_cli(main, *flags)
    assert code == 2
    assert len(errors.strip().splitlines()) == 1, errors
    assert "Traceback" not in errors
    return errors


def room_inputs(dataset, index):
    """What a file takes of a room, and what the network takes of it."""
    sample = dataset[index]
    return {"waveform": dataset.read_wave(index, dataset.preprocessing), "rgb": sample.get("rgb")}, sample


def recording(path, rate=44_100, channels=2, frames=4_000):
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, (frames, channels)), rate)
    return path


# ---------------------------------------------------------------------------------------------------------- the answers


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("key", NETWORKS)
def test_the_file_answers_as_pytorch_does(networks, rooms, key, count):
    model = networks.models[key]
    heard = HEARD.get(key, "spectrogram")
    dataset = create_dataset("simulated", rooms, "test", image_size=SIDES.get(key, SIZE), audio_format=heard)
    pairs = [room_inputs(dataset, index) for index in range(count)]
    session = onnxruntime.InferenceSession(networks.folder / f"{key}.onnx")
    feed = {i.name: torch.stack([inputs[i.name] for inputs, _ in pairs]).numpy() for i in session.get_inputs()}
    (found,) = session.run(None, feed)
    (name,) = model.inputs
    x = torch.stack([sample[name] for _, sample in pairs])
    with torch.no_grad():
        expected = model(export.model_inputs(model, {name: x})[0]).numpy()
    assert expected.std() > 0.02 * expected.mean(), "an answer that is the same everywhere would compare nothing"
    assert np.abs(found - expected).max() <= 1e-3 * (expected.max() if key == "relative" else 1)


def test_the_answer_of_a_disparity_network_is_called_so(networks):
    names = {
        key: onnxruntime.InferenceSession(networks.folder / f"{key}.onnx").get_outputs()[0].name for key in NETWORKS
    }
    assert names == {"ears": "depth", "both": "depth", "eyes": "depth", "bins": "depth", "relative": "disparity"}


def test_a_file_keeps_no_paths_of_the_machine(networks):
    for key in NETWORKS:
        content = (networks.folder / f"{key}.onnx").read_bytes()
        assert str(Path(export.__file__).parent).encode() not in content
        assert b"site-packages" not in content


def test_a_program_of_torch_needs_no_class_of_this_toolkit(networks, eyes, rooms, tmp_path, run_cli):
    code, printed, errors = run_cli(export.main, "--checkpoint", eyes, "--output", tmp_path / "eyes.pt2")
    assert (code, errors) == (0, "")
    assert "eyes.pt2: rgb_depth, float32; rgb [B, 3, 32, 32] -> depth in metres" in printed
    extra = {METADATA: ""}
    program = torch.export.load(tmp_path / "eyes.pt2", extra_files=extra)
    assert json.loads(extra[METADATA])["model"]["name"] == "rgb_depth"
    x = torch.stack([sample["rgb"] for sample in create_dataset("simulated", rooms, "test", image_size=SIZE)])
    with torch.no_grad():
        assert torch.allclose(program.module()(x), networks.models["eyes"](x), atol=1e-3)


def test_another_size(networks, eyes, tmp_path, run_cli):
    flags = ("--checkpoint", eyes, "--output", tmp_path / "wide.onnx", "--image_size", 16 * 2, 16 * 3)
    code, printed, errors = run_cli(export.main, *flags)
    assert (code, errors) == (0, "")
    assert "rgb [B, 3, 32, 48]" in printed
    assert OnnxNetwork(tmp_path / "wide.onnx").preprocessing["image_size"] == [32, 48]


def test_a_file_that_answers_otherwise_is_not_written(eyes, tmp_path, run_cli, monkeypatch):
    true = export.EndToEnd.expected
    monkeypatch.setattr(export.EndToEnd, "expected", lambda network, batch: true(network, batch) + 0.0015)
    errors = refused(run_cli, export.main, "--checkpoint", eyes, "--output", tmp_path / "eyes.onnx")
    assert "eyes.onnx was not written: it would be 0.0015 m" in errors
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------------------- 8 bits


def rmse_of(path, dataset):
    """As the metric is defined, by hand: over the measured pixels of an image, then the mean over the images."""
    session = onnxruntime.InferenceSession(path)
    (key,) = (value.name for value in session.get_inputs())
    errors = []
    for index in range(len(dataset)):
        inputs, sample = room_inputs(dataset, index)
        (answer,) = session.run(None, {key: inputs[key][None].numpy()})
        truth = sample["depth"].numpy()
        errors.append(np.sqrt(np.mean((answer[0] - truth)[truth > 0] ** 2)))
    return np.mean(errors)


def test_a_recording_is_read_once_and_its_spectrogram_is_left_to_the_file(networks, rooms, monkeypatch):
    preprocessing = create_dataset("simulated", rooms, "train", image_size=SIZE).preprocessing
    dataset = create_dataset("simulated", rooms, "val", image_size=SIZE, modalities={"audio", "depth"})
    expected = dataset[1]
    network = export.EndToEnd(networks.models["ears"], preprocessing)
    wave = room_inputs(dataset, 1)[0]["waveform"]
    read = []
    monkeypatch.setattr(
        dataset, "read_audio", lambda row, reader=dataset.read_audio: (read.append(row), reader(row))[1]
    )
    monkeypatch.setattr("dataloaders.transforms.spectrogram", None)
    sample = export.EndToEndSamples(dataset, network)[1]
    assert read == [dataset.rows[1]]
    assert sample.keys() == {"id", "index", "waveform", "depth"}
    assert torch.equal(sample["waveform"], wave)
    assert torch.equal(sample["depth"], expected["depth"])
    assert (sample["id"], sample["index"]) == (expected["id"], expected["index"])


def test_what_8_bits_cost_is_said_truly(networks, eyes, rooms, tmp_path, run_cli):
    code, printed, errors = run_cli(export.main, "--checkpoint", eyes, "--output", tmp_path / "eyes.onnx", "--quantize")
    assert (code, errors) == (0, "")
    found = re.search(r"RMSE ([\d.]+) -> ([\d.]+) m \(\S+%\) over (\d+) images, ([\d.]+) -> ([\d.]+) MB", printed)
    before, after, images, large, small = map(float, found.groups())
    validation = create_dataset("simulated", rooms, "val", image_size=SIZE)
    assert images == len(validation)
    assert before == pytest.approx(rmse_of(networks.folder / "eyes.onnx", validation), abs=1e-4)
    assert after == pytest.approx(rmse_of(tmp_path / "eyes.onnx", validation), abs=1e-4)
    assert (tmp_path / "eyes.onnx").stat().st_size / 1e6 == pytest.approx(small, abs=0.01)
    assert small < large
    assert OnnxNetwork(tmp_path / "eyes.onnx").about["precision"] == "int8"
    assert f"RMSE {before:.4f} -> {after:.4f} m" in (tmp_path / "eyes.md").read_text()


def test_sound_and_metres_stay_in_float(networks, rooms, tmp_path):
    args = export.create_parser().parse_args(
        ["--checkpoint", str(networks.folder / "ears.pth"), "--output", str(tmp_path / "ears.onnx"), "--quantize"]
    )
    network, checkpoint = export.open_network(args)
    samples = export.open_samples(args, network, checkpoint)
    (tmp_path / "ears.onnx").write_bytes((networks.folder / "ears.onnx").read_bytes())
    path = export.quantize(tmp_path / "ears.onnx", samples.train, export.describe(network, checkpoint))
    assert path.stat().st_size < 0.5 * (tmp_path / "ears.onnx").stat().st_size
    before, after = (export.measure(file, samples) for file in (tmp_path / "ears.onnx", path))
    assert after.rmse == pytest.approx(before.rmse, rel=0.02)
    proto = onnx.load(path)
    kinds = {node.name: node.op_type for node in proto.graph.node}
    assert "DequantizeLinear" in kinds.values()
    spectrogram = export.front_end(proto)
    assert "Conv" in {kinds[name] for name in spectrogram}
    assert "DequantizeLinear" not in {kinds[name] for name in spectrogram}
    (last,) = (node for node in proto.graph.node if node.name in export.last_layers(proto))
    assert "model.head.project.weight" in last.input


def test_the_last_layers_of_bins_are_three(networks):
    proto = onnx.load(networks.folder / "bins.onnx")
    weights = {name for node in proto.graph.node if node.name in export.last_layers(proto) for name in node.input}
    asked = ("model.decoder.choose.weight", "model.decoder.correct.weight", "model.bins.code.2.bias")
    assert set(asked) <= weights


# -------------------------------------------------------------------------------------------------- without the toolkit


@pytest.mark.parametrize("key", ["ears", "eyes", "relative"])
def test_predict_answers_from_either_file_alike(networks, rooms, tmp_path, run_cli, monkeypatch, key):
    row = create_dataset("simulated", rooms, "test", image_size=SIZE).rows[0]
    (name,) = networks.models[key].inputs
    flags = (f"--{name}", row.files[name][0], "--precision", "32", "--output")
    assert run_cli(predict.main, "--checkpoint", networks.folder / f"{key}.pth", *flags, tmp_path / "torch")[0] == 0

    def never(*_):
        raise AssertionError("an ONNX file needs no network of torch")

    monkeypatch.setattr(DepthModel, "__init__", never)
    code, _, errors = run_cli(predict.main, "--checkpoint", networks.folder / f"{key}.onnx", *flags, tmp_path / "onnx")
    assert (code, errors) == (0, "")
    names = {path.name for path in (tmp_path / "torch").iterdir()}
    assert names == {path.name for path in (tmp_path / "onnx").iterdir()}
    (array,) = (name for name in names if name.endswith(".npy"))
    expected = np.load(tmp_path / "torch" / array)
    assert np.allclose(np.load(tmp_path / "onnx" / array), expected, rtol=0, atol=1e-3 * max(1, expected.max()))


def test_the_documents_example_runs_without_torch(networks, rooms, tmp_path):
    page = Path(export.__file__).with_name("docs") / "EXPORT.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    (tmp_path / "student.onnx").write_bytes((networks.folder / "ears.onnx").read_bytes())
    dataset = create_dataset("simulated", rooms, "test", image_size=SIZE)
    (tmp_path / "recording.wav").write_bytes(Path(dataset.rows[0].files["audio"][0]).read_bytes())
    end = 'import sys; assert "torch" not in sys.modules; np.save("depth.npy", depth)'
    subprocess.run([sys.executable, "-c", f"{example}\n{end}"], cwd=tmp_path, check=True)
    with torch.no_grad():
        expected = networks.models["ears"](dataset[0]["audio"][None]).numpy()
    assert np.abs(np.load(tmp_path / "depth.npy") - expected).max() <= 1e-3


# ------------------------------------------------------------------------------------------------------------- refusals


def broken_onnx(kind, folder, ears):
    path = folder / "broken.onnx"
    if kind in ("truncated", "empty"):
        path.write_bytes(ears.read_bytes())
        truncate(path, 0.5 if kind == "truncated" else 0)
    elif kind == "foreign":
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
        same = helper.make_node("Identity", ["x"], ["y"])
        graph = helper.make_graph([same], "g", [value], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])])
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    elif kind == "newer":
        proto = onnx.load(ears)
        export.write_onnx(path, proto, {"format": 2})
    elif kind in CHANGED:
        about = OnnxNetwork(ears).about
        export.write_onnx(path, onnx.load(ears), {**about, **CHANGED[kind](about)})
    return path


CHANGED = {  # what a file says otherwise of itself
    "versionless": lambda about: {"format": "new"},
    "mute": lambda about: {"inputs": ["sound"], "output": 3},
    "unprepared": lambda about: {"preprocessing": {}},
    "sideless": lambda about: {"preprocessing": {**about["preprocessing"], "image_size": "32"}},
    "endless": lambda about: {"preprocessing": {**about["preprocessing"], "audio_samples": -1}},
}


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("truncated", "not a readable ONNX file"),
        ("empty", "not a readable ONNX file"),
        ("foreign", "not an export of this toolkit"),
        ("newer", "has format 2"),
        ("missing", "no such file"),
        ("versionless", "its metadata echo_depth are not those of an export"),
        ("mute", "its metadata echo_depth do not say inputs, output"),
        ("unprepared", "its preprocessing does not say image_size, audio_samples, resample"),
        ("sideless", "its preprocessing.image_size is '32', not a whole number"),
        ("endless", "its preprocessing.audio_samples is -1, not a whole number"),
    ],
)
def test_an_onnx_file_that_is_none_of_ours(networks, tmp_path, run_cli, kind, named):
    path = broken_onnx(kind, tmp_path, networks.folder / "ears.onnx")
    flags = ("--checkpoint", path, "--audio", recording(tmp_path / "a.wav"), "--output", tmp_path / "out")
    errors = refused(run_cli, predict.main, *flags)
    assert "broken.onnx" in errors
    assert named in errors


@pytest.mark.parametrize(
    ("key", "sound", "flags", "named"),
    [
        ("ears", {"rate": 48_000}, [], "--resample"),
        ("ears", {"channels": 1}, [], "has 1 channel"),
        ("ears", {}, ["--precision", "bf16"], "--precision has no effect"),
        ("eyes", {}, [], "is a rgb_depth, which takes --rgb"),
    ],
)
def test_what_an_onnx_file_does_not_take(networks, tmp_path, run_cli, key, sound, flags, named):
    path = networks.folder / f"{key}.onnx"
    audio = recording(tmp_path / "a.wav", **sound)
    errors = refused(
        run_cli, predict.main, "--checkpoint", path, "--audio", audio, "--output", tmp_path / "out", *flags
    )
    assert named in errors


def test_predict_without_onnxruntime_says_what_to_install(networks, tmp_path, run_cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    flags = ("--checkpoint", networks.folder / "ears.onnx", "--audio", tmp_path, "--output", tmp_path)
    assert "pip install onnxruntime" in refused(run_cli, predict.main, *flags)


def test_export_without_its_libraries_says_what_to_install(eyes, tmp_path, run_cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    errors = refused(run_cli, export.main, "--checkpoint", eyes, "--output", tmp_path / "eyes.onnx")
    assert "pip install onnx onnxscript" in errors


@pytest.mark.parametrize(
    ("key", "output", "flags", "named"),
    [
        ("eyes", "a.tflite", [], "known are .onnx .pt2"),
        ("eyes", "a.pt2", ["--quantize"], "--quantize"),
        ("eyes", "a.onnx", ["--dataset_dir", "."], "--dataset_dir"),
        ("eyes", "a.onnx", ["--image_size", "33"], "use 32 or 48"),
        ("eyes", "a.onnx", ["--audio_samples", "999"], "--audio_samples has no effect: rgb_depth"),
        ("ears", "a.onnx", ["--audio_samples", "999"], "--audio_samples has no effect: the sound"),
        ("eyes", "a.onnx", ["--quantize", "--dataset_dir", "eyes.pth"], "eyes.pth"),
        ("eyes", "eyes.pth/a.onnx", [], "cannot be written"),
        ("eyes", "eyes.onnx", [], "eyes.onnx exists; --overwrite"),
        ("eyes", "eyes.pt2", [], "eyes.md exists; --overwrite"),
    ],
)
def test_what_cannot_be_exported(networks, run_cli, monkeypatch, key, output, flags, named):
    monkeypatch.chdir(networks.folder)
    before = sorted(networks.folder.iterdir())
    assert named in refused(run_cli, export.main, "--checkpoint", f"{key}.pth", "--output", output, *flags)
    assert sorted(networks.folder.iterdir()) == before


@pytest.mark.parametrize(
    ("samples", "flags", "named"),
    [(None, [], "--audio_samples is missing"), (None, ["--audio_samples", 30], "needs 257 at least"), (999, [], None)],
)
def test_the_length_of_the_sound_is_known(networks, tmp_path, samples, flags, named):
    checkpoint = read_pickle(networks.folder / "ears.pth")
    checkpoint["preprocessing"] |= {"audio_samples": samples}
    save_checkpoint(checkpoint, tmp_path / "v1.pth")
    flags = ["--checkpoint", tmp_path / "v1.pth", "--output", tmp_path / "v1.onnx", *flags]
    args = export.create_parser().parse_args([str(flag) for flag in flags])
    if named is None:
        assert export.open_network(args)[0].preprocessing["audio_samples"] == samples
    else:
        with pytest.raises(export.OptionError, match=named):
            export.open_network(args)


def test_weights_alone_have_no_data_to_calibrate_on(networks, tmp_path, run_cli):
    save_model(networks.models["relative"], tmp_path / "w.safetensors", "MIT")
    flags = ("--checkpoint", tmp_path / "w.safetensors", "--output", tmp_path / "w.onnx", "--quantize")
    assert "names no data to calibrate on" in refused(run_cli, export.main, *flags)


# ------------------------------------------------------------------------------------------------------------- the card


def card(networks, key, checkpoint, license="L"):
    model = networks.models[key]
    preprocessing = {"image_size": SIZE, "audio_samples": 441, "audio_format": "spectrogram", "max_depth": 12.0}
    takes = ["waveform" if name == "audio" else name for name in model.inputs]
    return model_card("a.onnx", "ONNX", model, preprocessing, checkpoint, takes=takes, license=license, versions={})


def test_the_card_lies_beside_the_file(networks):
    text = (networks.folder / "ears.md").read_text()
    assert text.startswith("# ears.onnx\n\nDepth in metres from the echo of a chirp at two ears: `binaural_attention`")
    assert "RMSE 0.5000 m" in text
    assert f"torch {torch.__version__}" in text


def test_the_card_says_what_goes_in_and_out(networks):
    text = card(networks, "ears", None)
    assert "| `waveform` | [B, 2, 441] | left and right ear at 44100 Hz, in [-1, 1], the first 10.0 ms" in text
    assert "| `depth` | [B, 1, 32, 32] | metres along the camera's axis, at most 12 |" in text


def test_the_card_of_a_disparity_network_claims_no_metres(networks):
    text = card(networks, "relative", None, license="Apache-2.0")
    assert "Relative disparity from a picture" in text
    assert "It knows no metres" in text
    assert "Of the weights: Apache-2.0." in text
    assert "None are known" in text


def test_the_card_has_the_figure_of_the_epoch_in_the_file_alone(networks):
    best = {"value": 0.4321, "epoch": 4}
    trained = {"dataset": "batvisionv2", "label_fraction": 0.1, "label_seed": 3, "teacher_checkpoint": "t.pth"}
    text = card(networks, "ears", {"args": trained, "epoch": 4, "best": best})
    for part in ("epoch 4: RMSE 0.4321 m", "0.1 of the training pairs", "CC-BY-SA-4.0", "taught by `t.pth`"):
        assert part in text
    assert "RMSE" not in card(networks, "ears", {"args": trained, "epoch": 5, "best": best})
