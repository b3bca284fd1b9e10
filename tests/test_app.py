"""app.py: the page's answers are those of the command line; it writes nothing, and talks to this machine alone."""

import base64
import http.client
import json
import math
import re
import socket
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lightning_fabric import Fabric
from make_data import broken_recording, recording, write_batvision_v2
from make_networks import RelativeEye, write_network

import app
import page
import predict
import simulation
from dataloaders import HeldFile, create_dataset
from errors import DataError, OptionError
from models import MODELS
from page import server as page_server
from page import viewer as page_viewer
from training.checkpoint import load_checkpoint, save_checkpoint

SIZE = 32
ROOT = Path(app.__file__).parent


@pytest.fixture(scope="module")
def networks(rooms, tmp_path_factory):
    """Files of untrained networks, by what they take."""
    folder = tmp_path_factory.mktemp("networks")
    preprocessing = create_dataset("simulated", rooms, "test", image_size=SIZE).preprocessing
    names = {
        "ears": "binaural_attention",
        "eyes": "rgb_depth",
        "both": "multimodal_fusion",
        "relative": RelativeEye.name,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, RelativeEye.name, RelativeEye)
        for key, name in names.items():
            write_network(folder / f"{key}.pth", name, preprocessing, best={"value": 0.4786, "epoch": 1})
        yield {key: folder / f"{key}.pth" for key in names}


@pytest.fixture(scope="module")
def fabric():
    return Fabric(accelerator="cpu", devices=1, precision="32-true")


@pytest.fixture(scope="module")
def make_viewer(networks, rooms, fabric):
    def make(student="ears", teacher="eyes", **options):
        opened = page.open_network(networks[student])
        seeing = page.open_network(networks[teacher]) if teacher else None
        examples = page.find_examples(rooms, opened.preprocessing, most=3)
        return page.Viewer(opened, seeing, fabric, examples, **options)

    return make


@contextmanager
def serving(viewer):
    with page.create_server(viewer, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def server(make_viewer):
    with serving(make_viewer()) as running:
        yield running


def send(server, path, body=None, **headers):
    """(status, headers, content) of a request; a body that is no bytes is sent as JSON."""
    connection = http.client.HTTPConnection(*server.server_address, timeout=30)
    try:
        if body is None:
            connection.request("GET", path, headers=headers)
        else:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            connection.request("POST", path, content, {"Content-Type": "application/json"} | headers)
        response = connection.getresponse()
        content = response.read()
        is_json = response.headers.get_content_type() == "application/json"
        return response.status, response.headers, json.loads(content) if is_json else content
    finally:
        connection.close()


def sent(path, name=None):
    return {"name": name or Path(path).name, "data": base64.b64encode(Path(path).read_bytes()).decode()}


def values_of(map_):
    return np.frombuffer(base64.b64decode(map_["values"]), "<f4").reshape(map_["height"], map_["width"])


# --------------------------------------------------------------------------------------------------------- what it says


def test_the_maps_are_those_of_the_command_line(server, networks, rooms, tmp_path, run_cli):
    files = create_dataset("simulated", rooms, "test", image_size=SIZE).rows[0].files
    status, _, answer = send(server, "/look", {key: sent(files[key][0]) for key in ("audio", "rgb")})
    assert status == 200
    assert [map_["key"] for map_ in answer["maps"]] == ["student", "teacher"]
    for map_, network, key in zip(answer["maps"], ("ears", "eyes"), ("audio", "rgb"), strict=True):
        flags = ("--checkpoint", networks[network], f"--{key}", files[key][0], "--precision", 32)
        assert run_cli(predict.main, *flags, "--output", tmp_path / key)[0] == 0
        (array,) = (tmp_path / key).glob("*.npy")
        depth = np.load(array)
        assert np.allclose(values_of(map_), depth, rtol=1e-6)
        assert map_["low"] == pytest.approx(depth.min(), rel=1e-6)
        assert map_["high"] == pytest.approx(depth.max(), rel=1e-6)
    assert answer["picture"].startswith("data:image/jpeg;base64,")


@pytest.mark.parametrize("kind", ["mono", "rate", "truncated", "text", "empty", "no samples", "silent", "short", "raw"])
def test_a_bad_recording_is_refused_with_the_line_of_the_command(
    server, networks, tmp_path, monkeypatch, run_cli, kind
):
    monkeypatch.chdir(tmp_path)
    name = broken_recording(Path(), kind)
    code, _, errors = run_cli(predict.main, "--checkpoint", networks["ears"], "--audio", name, "--output", "out")
    assert code == 2
    status, _, answer = send(server, "/look", {"audio": sent(name)})
    assert status == 422
    assert f"predict.py: error: {answer['error']}\n" == errors


def test_a_file_for_predict_is_not_for_the_page(tmp_path, networks, run_cli):
    (tmp_path / "student.onnx").write_bytes(b"")
    code, _, errors = run_cli(app.main, "--checkpoint", tmp_path / "student.onnx")
    assert code == 2
    assert "student.onnx: an ONNX file goes to predict.py" in errors


def test_a_bad_picture_is_refused_by_name(server, rooms, tmp_path):
    audio = create_dataset("simulated", rooms, "test").rows[0].files["audio"][0]
    (tmp_path / "view.jpg").write_bytes(b"no picture")
    status, _, answer = send(server, "/look", {"audio": sent(audio), "rgb": sent(tmp_path / "view.jpg")})
    assert status == 422
    assert answer["error"].startswith("view.jpg cannot be read as a picture")


def test_another_rate_is_converted_where_it_is_asked_for(server, tmp_path):
    slow = recording(tmp_path / "slow.wav", rate=48_000)
    assert send(server, "/look", {"audio": sent(slow)})[0] == 422
    assert send(server, "/look", {"audio": sent(slow), "resample": True})[0] == 200


def test_a_recording_that_lasts_too_long(server, tmp_path):
    soundfile.write(tmp_path / "long.flac", np.zeros((61 * 8000, 2)), 8000)
    assert (tmp_path / "long.flac").stat().st_size < 20_000, "small as a file"
    status, _, answer = send(server, "/look", {"audio": sent(tmp_path / "long.flac")})
    assert status == 422
    assert answer["error"] == "long.flac lasts 61 s; the page takes up to 60 s"


def test_the_error_of_an_example_is_over_the_measured_pixels(make_viewer):
    viewer = make_viewer()
    example = viewer.examples[0]
    answer = viewer.look(example.open(), example.depth, resample=False)
    student, teacher, measured = answer["maps"]
    target = values_of(measured).astype(float)
    assert (target == 0).any(), "there are holes"
    for map_ in (student, teacher):
        error = (values_of(map_) - target)[target > 0]
        assert map_["rmse"] == pytest.approx(math.sqrt((error**2).mean()), rel=1e-6)
    assert measured["rmse"] is None
    assert measured["low"] == pytest.approx(target[target > 0].min())


def test_a_lone_far_pixel_does_not_stretch_the_colours(make_viewer):
    viewer = make_viewer()
    measured = torch.full((1, 20, 20), 2.0)
    measured[0, 0, 0], measured[0, 0, 1] = 12.0, 0.0
    answer = viewer.look(viewer.examples[0].open(), measured, resample=False)
    assert (answer["maps"][-1]["high"], answer["maps"][-1]["far"]) == (12, 2)
    nothing = viewer.look(viewer.examples[0].open(), torch.zeros(1, 20, 20), resample=False)
    assert (nothing["maps"][0]["rmse"], nothing["maps"][-1]["high"]) == (None, 0)


def test_the_ears_are_what_the_network_gets(make_viewer):
    viewer = make_viewer()
    files = viewer.examples[0].open()
    ears = viewer.look(files, resample=False)["ears"]
    batch = page_viewer.read_bare({"audio": files["audio"]}, viewer.student.preprocessing, resample=False)
    left = np.log1p(10 * batch["audio"][0, 0].numpy())
    shades = np.frombuffer(base64.b64decode(ears["left"]), np.uint8).reshape(SIZE, SIZE)
    assert np.corrcoef(left.clip(max=np.percentile(left, 98)).ravel(), shades.ravel())[0, 1] > 0.99
    assert ears["seconds"] == pytest.approx(2 * 12 / 340, abs=1e-4), "there and back from 12 m"


def test_a_relative_teacher_claims_no_metres(make_viewer):
    viewer = make_viewer(teacher="relative")
    example = viewer.examples[0]
    answer = viewer.look(example.open(), example.depth, resample=False)
    assert [map_["output"] for map_ in answer["maps"]] == ["metres", "disparity", "metres"]
    assert answer["maps"][1]["rmse"] is None
    assert dict(viewer.about()["teacher"])["gives"] == "relative disparity, without a unit"


def test_without_a_teacher_a_picture_is_shown_alone(make_viewer):
    viewer = make_viewer(teacher=None)
    answer = viewer.look(viewer.examples[0].open(), resample=False)
    assert [map_["key"] for map_ in answer["maps"]] == ["student"]
    assert answer["picture"] is not None
    assert viewer.about()["teacher"] is None


def test_a_network_that_also_sees_asks_for_a_picture(make_viewer):
    viewer = make_viewer("both", None)
    files = viewer.examples[0].open()
    assert viewer.look(files, resample=False)["maps"][0]["key"] == "student"
    with pytest.raises(DataError, match="give a picture beside the recording"):
        viewer.look({"audio": files["audio"]}, resample=False)
    with pytest.raises(DataError, match="no recording"):
        viewer.look({"rgb": files["rgb"]}, resample=False)


def test_an_answer_that_is_not_a_number(make_viewer):
    viewer = make_viewer(teacher=None)
    with torch.no_grad():
        for weight in viewer.student.model.parameters():
            weight.fill_(math.nan)
    with pytest.raises(DataError, match="not a number"):
        viewer.look(viewer.examples[0].open(), resample=False)


def test_what_is_said_of_the_checkpoint(make_viewer, networks):
    facts = dict(make_viewer().about()["student"])
    assert facts["file"] == str(networks["ears"])
    assert facts["trained on"] == f"simulated, {SIZE} x {SIZE}, epoch 1"
    assert facts["validation RMSE"] == "0.479 m"
    assert facts["range"] == "up to 12 m"
    assert facts["echo"] == "spectrogram of the first 71 ms"


def test_the_best_epoch_does_not_speak_for_the_weights_of_another(make_viewer, networks, tmp_path):
    state = load_checkpoint(networks["ears"])
    save_checkpoint({**state, "epoch": state["best"]["epoch"] + 1}, tmp_path / "last.pth")
    assert "validation RMSE" not in dict(page_viewer.open_network(tmp_path / "last.pth").facts)


@pytest.mark.parametrize(
    ("dataset", "view", "picture", "across", "down", "source"),
    [
        ("simulated", None, None, 90, 90, "that of the data set simulated"),
        ("simulated", None, (256, 256), 90, 90, "that of the data set simulated"),
        ("simulated", None, (1280, 720), 90, 58.7155, "in the shape of the picture"),
        ("batvisionv2", None, (1280, 720), 90, 58.7155, "assumed"),
        ("batvisionv2", None, None, 90, 58.7155, "assumed"),
        ("batvisionv2", (70.0, 43.0), (1280, 720), 70, 43, "--field_of_view"),
    ],
)
def test_the_camera_of_the_point_cloud(dataset, view, picture, across, down, source):
    camera = page_viewer.camera_of({"dataset": dataset}, view, picture)
    assert (camera["across"], camera["down"]) == pytest.approx((across, down), abs=1e-3)
    assert source in camera["source"]


def test_the_roles_of_the_networks(make_viewer):
    with pytest.raises(OptionError, match="rgb_depth does not hear; give it as --teacher"):
        make_viewer("eyes", None)
    for teacher in ("ears", "both"):
        with pytest.raises(OptionError, match=r"--teacher: a .* hears"):
            make_viewer("ears", teacher)


# ------------------------------------------------------------------------------------------------------------ examples


def test_rooms_in_memory_are_those_of_the_simulator(tmp_path):
    simulation.write_dataset(tmp_path / "r", train=0, val=0, test=2, image_size=24, seed=5, workers=1, progress=False)
    for index in range(2):
        files = simulation.draw_files(5, "test", index, 24)
        room = tmp_path / "r" / simulation.kind_of(index)
        assert files["audio"] == (room / "audio/audio_0.wav").read_bytes()
        assert files["rgb"] == (room / "camera/camera_0.jpeg").read_bytes()
        assert files["depth"] == (room / "depth/depth_0.npy").read_bytes()


def test_drawn_examples_have_all_that_there_is_to_show(networks):
    preprocessing = page.open_network(networks["ears"]).preprocessing
    first, second = page.draw_examples(preprocessing, 2)
    assert first.title != second.title
    for example in (first, second):
        assert sorted(example.files) == ["audio", "rgb"]
        assert example.depth.shape == (1, SIZE, SIZE)
        assert 0 < example.depth.max() <= 12


def test_found_examples_are_spread_over_the_test_rows(rooms, networks):
    preprocessing = page.open_network(networks["ears"]).preprocessing
    dataset = create_dataset("simulated", rooms, "test", image_size=SIZE)
    examples = page.find_examples(rooms, preprocessing, most=3)
    chosen = [0, 2, 5]  # of six: 0, 2.5 to the even, 5
    assert [example.files["audio"] for example in examples] == [dataset.rows[i].files["audio"][0] for i in chosen]
    for example, index in zip(examples, chosen, strict=True):
        assert torch.equal(example.depth, dataset[index]["depth"])
    assert len(page.find_examples(rooms, preprocessing)) == 6, "no more than there are"


def test_examples_without_pictures_or_labels(tmp_path, networks):
    root = write_batvision_v2(tmp_path, locations=("Attic",), rows={"test": 2})
    for picture in root.glob("*/camera/*"):
        picture.unlink()
    (example, _) = page.find_examples(root, page.open_network(networks["ears"]).preprocessing)
    assert sorted(example.files) == ["audio"]
    assert "rgb" not in example.open()


def test_a_folder_without_a_data_set(tmp_path, networks):
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        page.find_examples(tmp_path, page.open_network(networks["ears"]).preprocessing)


def test_a_file_in_memory_is_read_at_once_by_many():
    example = page.Example("one", {"audio": HeldFile("a.wav", b"1234")}, None)
    one, other = example.open()["audio"], example.open()["audio"]
    one.read()
    assert other.read() == b"1234"
    assert (str(other), repr(other)) == ("a.wav", "'a.wav'")


# -------------------------------------------------------------------------------------------------------------- server


def test_the_page_and_its_examples(server, rooms):
    status, headers, content = send(server, "/")
    assert (status, headers.get_content_type()) == (200, "text/html")
    for name in re.findall(rb'(?:src|href)="([^":]+)"', content):
        assert send(server, f"/{name.decode()}")[0] == 200
    _, _, about = send(server, "/about")
    assert len(about["examples"]) == 3
    for number, example in enumerate(about["examples"]):
        assert example["thumbnail"].startswith("data:image/jpeg;base64,")
        status, headers, content = send(server, f"/examples/{number}.wav")
        assert (status, headers["Content-Type"], content[:4]) == (200, "audio/wav", b"RIFF")
        assert [map_["key"] for map_ in send(server, "/look", {"example": number})[2]["maps"]][-1] == "measured"
    assert len(base64.b64decode(about["colors"]["depth"])) == 3 * 256


def test_the_page_names_no_other_place():
    files = [ROOT / "page" / name for name, _ in page_server.FILES.values()]
    assert len(files) == 4
    for path in files:
        named = re.findall(r"https?://[^'\" ]+|[\"']//", path.read_text(encoding="utf-8"))
        assert set(named) <= {"http://www.w3.org/2000/svg"}, "a name of SVG, which nobody fetches"


def test_no_name_server_is_asked(make_viewer, monkeypatch):
    def ask(*_):
        raise AssertionError("a name server was asked")

    for name in ("getfqdn", "gethostbyaddr", "gethostbyname", "getaddrinfo"):
        monkeypatch.setattr(socket, name, ask)
    with page.create_server(make_viewer(), "127.0.0.1", 0) as opened:
        assert opened.url == f"http://127.0.0.1:{opened.server_address[1]}/"


def test_the_browser_is_told_to_reach_nothing_else(server):
    for path in ("/", "/about", "/no"):
        policy = send(server, path)[1]["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'")
        assert "http" not in policy


@pytest.mark.parametrize(
    "path", ["/no", "/../app.py", "/page/../app.py", "/examples/3.wav", "/examples/-1.wav", "/server.py"]
)
def test_there_is_nothing_else(server, path):
    status, _, answer = send(server, path)
    assert status == 404
    assert answer["error"].startswith("there is no ")


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        ([1], 400, "not a JSON object"),
        ({"audio": "x"}, 400, "audio is not"),
        ({"audio": {"name": "x", "data": "&"}}, 400, "not base64"),
        ({"example": "0x"}, 404, "no example 0x"),
        ({}, 422, "no recording"),
    ],
)
def test_a_request_that_makes_no_sense(server, body, status, says):
    found, _, answer = send(server, "/look", body)
    assert found == status
    assert says in answer["error"]


def test_a_form_of_another_site_is_refused(server):
    assert send(server, "/look", {"example": 0}, **{"Content-Type": "text/plain"})[0] == 415


def test_another_name_for_this_machine_is_refused(server):
    for name in ("evil.example", "evil.example:7860", ""):
        assert send(server, "/about", Host=name)[0] == 403
    for name in ("localhost:7860", "127.0.0.1"):
        assert send(server, "/about", Host=name)[0] == 200
    assert page_server.names_of("0.0.0.0") is None
    assert page_server.names_of("127.0.0.2") >= {"127.0.0.2", "localhost"}


def test_too_large_a_request_is_not_read(server):
    connection = http.client.HTTPConnection(*server.server_address, timeout=30)
    connection.putrequest("POST", "/look")
    connection.putheader("Content-Length", str(page_server.MOST_BYTES + 1))
    connection.endheaders()
    response = connection.getresponse()  # although nothing was sent yet
    assert response.status == 413
    assert "36 MiB" in json.loads(response.read())["error"]
    assert response.headers["Connection"] == "close"
    connection.close()


def test_a_defect_is_told_as_one(server, monkeypatch, capsys):
    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(page.Viewer, "look", fail)
    status, _, answer = send(server, "/look", {"example": 0})
    assert status == 500
    assert "defect" in answer["error"]
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_who_leaves_before_the_answer_is_no_defect(make_viewer, monkeypatch, capsys):
    asked, left = threading.Event(), threading.Event()

    def look(*_, **__):
        asked.set()
        left.wait(30)
        return {"padding": "x" * 10**7}  # more than a socket holds

    monkeypatch.setattr(page.Viewer, "look", look)
    with serving(make_viewer()) as server:
        client = socket.create_connection(server.server_address)
        body = b'{"example": 0}'
        host = f"{server.server_address[0]}:{server.server_address[1]}"
        head = f"POST /look HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        client.sendall(f"{head}\r\n\r\n".encode() + body)
        assert asked.wait(30)
        client.close()
        left.set()
        assert send(server, "/about")[0] == 200
    assert "Traceback" not in capsys.readouterr().err


WRITTEN = []
WATCHING = threading.Event()


def watch(event, arguments):
    """An audit hook, which cannot be taken away again: so it looks only while it is asked to."""
    if event == "open" and WATCHING.is_set() and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        WRITTEN.append(arguments[0])


def test_nothing_is_written_to_disk(server, rooms, tmp_path):
    files = create_dataset("simulated", rooms, "test", image_size=SIZE).rows[0].files
    body = {key: sent(files[key][0]) for key in ("audio", "rgb")}
    sys.addaudithook(watch)
    WATCHING.set()
    try:
        assert send(server, "/look", body)[0] == 200
        assert WRITTEN == []
        (tmp_path / "x").write_text("")
        assert len(WRITTEN) == 1, "the watch sees what is written"
    finally:
        WATCHING.clear()


# ---------------------------------------------------------------------------------------------------------------- door


def test_a_port_that_is_taken(server, networks, rooms, run_cli):
    flags = ("--checkpoint", networks["ears"], "--examples", rooms, "--port", server.server_address[1])
    code, _, errors = run_cli(app.main, *flags)
    assert code == 2
    assert errors.startswith(f"app.py: error: --host 127.0.0.1 --port {server.server_address[1]} cannot be opened")


def test_it_serves_until_it_is_interrupted(networks, rooms, monkeypatch, run_cli):
    served = []

    def serve(server):
        thread = threading.Thread(target=real, args=(server, 0.05))
        thread.start()
        served.append(send(server, "/about")[2])
        server.shutdown()
        thread.join()
        raise KeyboardInterrupt

    real = page_server.PageServer.serve_forever
    monkeypatch.setattr(page_server.PageServer, "serve_forever", serve)
    flags = ("--checkpoint", networks["ears"], "--teacher", networks["eyes"], "--examples", rooms, "--port", 0)
    code, printed, errors = run_cli(app.main, *flags)
    assert (code, errors) == (0, "")
    assert re.match(rf"http://127\.0\.0\.1:\d+/ shows {networks['ears']}; .*\napp\.py: ended\n$", printed)
    assert len(served[0]["examples"]) == 6
    assert dict(served[0]["teacher"])["file"] == str(networks["eyes"])


@pytest.mark.parametrize(("flag", "value"), [("--port", "65536"), ("--port", "-1"), ("--field_of_view", "180")])
def test_flags_that_cannot_be(capsys, flag, value):
    values = [value, "60"] if flag == "--field_of_view" else [value]
    with pytest.raises(SystemExit):
        app.create_parser().parse_args(["--checkpoint", "x.pth", flag, *values])
    assert value in capsys.readouterr().err
