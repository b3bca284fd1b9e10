"""The page in a browser without a screen. `make test-app` runs this; it needs chromium, chromedriver and selenium."""

import base64
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from make_networks import write_network

import app
from dataloaders import create_dataset

pytestmark = pytest.mark.browser

ROOT = Path(app.__file__).parent
SIZE = 32
DESKTOP, PHONE = (1280, 900), (390, 844)
# At (u, v) of a map: the colour on the canvas.
COLOR_AT = """
const [canvas, u, v] = arguments
const {width, height} = canvas
return [...canvas.getContext('2d').getImageData(Math.floor(u * width), Math.floor(v * height), 1, 1).data]
"""
SET = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"


@pytest.fixture(scope="module")
def url(rooms, tmp_path_factory):
    """Where the real script serves untrained networks."""
    folder = tmp_path_factory.mktemp("networks")
    preprocessing = create_dataset("simulated", rooms, "test", image_size=SIZE).preprocessing
    write_network(folder / "ears.pth", "binaural_attention", preprocessing, best={"value": 0.5, "epoch": 1})
    write_network(folder / "eyes.pth", "rgb_depth", preprocessing)
    flags = ["--checkpoint", folder / "ears.pth", "--teacher", folder / "eyes.pth", "--examples", rooms, "--port", "0"]
    process = subprocess.Popen([sys.executable, ROOT / "app.py", *flags], stdout=subprocess.PIPE, text=True)
    try:
        yield re.match(r"(http://\S+) shows ", process.stdout.readline())[1]
    finally:
        process.terminate()
        process.communicate(timeout=120)


@pytest.fixture(scope="module")
def driver():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert chromium and shutil.which("chromedriver"), "install chromium and chromedriver (Debian: chromium-driver)"
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield browser
    browser.quit()


def find(driver, selector):
    return driver.find_elements("css selector", selector)


def wait(driver, until, seconds=90):
    """Wait until a JavaScript expression holds."""
    end = time.monotonic() + seconds
    while not driver.execute_script(f"return Boolean({until})"):
        assert time.monotonic() < end, (
            f"never: {until}; the page says {driver.execute_script('return document.body.innerText')}"
        )
        time.sleep(0.1)


def settled(name):
    return f"document.querySelector('#name').textContent === {name!r} && !document.querySelector('.busy')"


@pytest.fixture
def open_page(driver, url):
    """Open the page at a size, with its first example shown and its cloud unfolded."""

    def open_at(size=DESKTOP):
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        driver.get(url)
        wait(
            driver,
            "document.querySelectorAll('#maps figure').length === 4 && document.querySelector('#fold').value == 100",
        )
        return driver

    return open_at


def test_it_reaches_nothing_but_its_own_server(open_page, url):
    driver = open_page()
    driver.get_log("performance")
    driver.get_log("browser")
    driver.refresh()
    wait(driver, "document.querySelectorAll('#maps figure').length === 4")
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert f"{url}look" in asked
    assert [address for address in asked if not address.startswith((url, "data:", "blob:"))] == []
    assert [entry for entry in driver.get_log("browser") if entry["level"] != "INFO"] == []


def test_what_is_shown_of_an_example(open_page, rooms):
    driver = open_page()
    titles = [caption.text for caption in find(driver, "#maps figcaption")]
    assert titles == ["The ear", "The teacher", "Measured", "Picture"]
    notes = [note.text for note in find(driver, "#maps .note")]
    assert all(re.fullmatch(r"\d+\.\d\d to \d+\.\d\d m\nRMSE \d+\.\d\d m", note) for note in notes[:2])
    assert re.fullmatch(r"\d+\.\d\d to \d+\.\d\d m", notes[2])
    (summary,) = find(driver, "#summary")
    assert summary.text.endswith("ears.pth · simulated, 32 x 32, epoch 1 · up to 12 m · validation RMSE 0.500 m")
    (player,) = find(driver, "#player")
    wait(driver, "document.querySelector('#player').duration > 0")
    recording = create_dataset("simulated", rooms, "test").rows[0].files["audio"][0]
    duration = driver.execute_script("return arguments[0].duration", player)
    assert duration == pytest.approx(soundfile.info(recording).duration, abs=1e-3)


def test_pointing_at_a_map_reads_metres(open_page):
    from selenium.webdriver import ActionChains

    driver = open_page()
    frame = find(driver, "#maps .frame")[2]
    ActionChains(driver).move_to_element(frame).perform()
    read = [label.text for label in find(driver, "#maps .metres")]
    assert len(read) == 3
    assert all(re.fullmatch(r"\d+\.\d\d m|not measured", text) for text in read)
    assert find(driver, "#readout")[0].text == f"ear {read[0]} · teacher {read[1]} · measured {read[2]}"
    values = driver.execute_async_script("""
        const done = arguments[0]
        fetch('look', {method: 'POST', headers: {'Content-Type': 'application/json'}, body: '{"example": 0}'})
          .then((response) => response.json()).then((answer) => done(answer.maps.map((map) => map.values)))""")
    for text, encoded in zip(read, values, strict=True):
        around = np.frombuffer(base64.b64decode(encoded), "<f4").reshape(SIZE, SIZE)[15:17, 15:17]
        assert text in {f"{value:.2f} m" if value > 0 else "not measured" for value in around.ravel().tolist()}


def test_files_of_ones_own(open_page, rooms, tmp_path):
    driver = open_page()
    files, other = (create_dataset("simulated", rooms, "test", image_size=SIZE).rows[i].files for i in (1, 2))
    (audio,) = find(driver, "#audio")
    audio.send_keys(str(Path(files["audio"][0]).resolve()))
    wait(driver, settled(Path(files["audio"][0]).name))
    assert len(find(driver, "#maps figure")) == 1, "no picture was given"
    (rgb,) = find(driver, "#rgb")
    rgb.send_keys(str(Path(files["rgb"][0]).resolve()))
    wait(driver, "document.querySelectorAll('#maps figure').length === 3")
    assert find(driver, "#rgb-name")[0].text == Path(files["rgb"][0]).name

    audio.send_keys(str(Path(other["audio"][0]).resolve()))
    wait(driver, settled(Path(other["audio"][0]).name))
    assert len(find(driver, "#maps figure")) == 1, "another recording is of another place"
    assert find(driver, "#rgb-name")[0].text == "none" and not rgb.get_property("value")

    soundfile.write(tmp_path / "mono.wav", np.zeros(4410), 44_100)
    audio.send_keys(str(tmp_path / "mono.wav"))
    wait(driver, "!document.querySelector('#error').hidden")
    assert find(driver, "#error")[0].text == "mono.wav has 1 channel(s); a binaural recording has 2 (left, right)"
    assert not find(driver, "#answer")[0].is_displayed()
    find(driver, "#examples button")[1].click()
    wait(driver, "document.querySelectorAll('#maps figure').length === 4 && document.querySelector('#error').hidden")


DROP = """
const done = arguments[0]
const canvas = document.createElement('canvas')
canvas.width = canvas.height = 8
const picture = new Promise((drawn) => canvas.toBlob(drawn, 'image/jpeg'))
const sound = fetch('examples/1.wav').then((response) => response.blob())
Promise.all([picture, sound]).then(([picture, sound]) => {
  const dataTransfer = new DataTransfer()
  dataTransfer.items.add(new File([picture], 'view.jpeg', {type: 'image/jpeg'}))
  dataTransfer.items.add(new File([sound], 'dropped.wav', {type: 'audio/wav'}))
  document.body.dispatchEvent(new DragEvent('drop', {dataTransfer, bubbles: true, cancelable: true}))
  done()
})
"""


def test_files_that_are_dropped(open_page):
    driver = open_page()
    driver.execute_async_script(DROP)
    wait(driver, settled("dropped.wav"))
    assert len(find(driver, "#maps figure")) == 3
    assert [find(driver, f"#{key}-name")[0].text for key in ("audio", "rgb")] == ["dropped.wav", "view.jpeg"]


def test_a_picture_that_comes_before_its_recording(open_page, rooms):
    driver = open_page()
    files = create_dataset("simulated", rooms, "test", image_size=SIZE).rows[1].files
    find(driver, "#rgb")[0].send_keys(str(Path(files["rgb"][0]).resolve()))
    driver.execute_async_script(re.sub(r".*\[picture\], 'view.*", "", DROP))
    wait(driver, settled("dropped.wav"))
    assert find(driver, "#rgb-name")[0].text == Path(files["rgb"][0]).name
    assert len(find(driver, "#maps figure")) == 3


def test_the_slider_turns_the_map_into_a_cloud(open_page):
    driver = open_page()
    fold, turn, canvas, student = (
        find(driver, selector)[0] for selector in ("#fold", "#turn", "#cloud", "#maps [data-key=student] canvas")
    )
    unfolded = driver.execute_script("return arguments[0].toDataURL()", canvas)
    driver.execute_script(SET, fold, 0)
    wait(driver, f"document.querySelector('#cloud').toDataURL() !== {unfolded!r}")
    # Flat, the cloud is the map: of a square in the middle of the canvas, 92 % as high.
    box = driver.execute_script("return [arguments[0].width, arguments[0].height]", canvas)
    for u, v in ((0.26, 0.27), (0.5, 0.8), (0.86, 0.45)):
        square = 0.92 * box[1] / box[0]
        drawn = driver.execute_script(COLOR_AT, canvas, 0.5 + (u - 0.5) * square, 0.5 + (v - 0.5) * 0.92)
        shown = driver.execute_script(COLOR_AT, student, u, v)
        assert np.abs(np.subtract(drawn, shown)).max() < 30, (u, v)
    flat = driver.execute_script("return arguments[0].toDataURL()", canvas)
    driver.execute_script(SET, turn, 60)
    time.sleep(0.3)
    assert driver.execute_script("return arguments[0].toDataURL()", canvas) == flat, "what is flat does not turn"
    driver.execute_script(SET, fold, 100)
    wait(driver, f"document.querySelector('#cloud').toDataURL() !== {flat!r}")
    assert driver.execute_script("return arguments[0].toDataURL()", canvas) != unfolded


def test_points_are_where_a_pinhole_camera_saw_them(open_page):
    """Two by two pixels of a camera with 90 degrees: rays at half of tan 45 degrees to each side."""
    cloud = open_page().execute_async_script("""
        const done = arguments[0]
        import('/cloud.js').then(({unproject}) => done(unproject(
          {width: 2, height: 2, values: Float32Array.of(2, 0, 3, 4)}, {across: 90, down: 90})))""")
    rays = [(point["x"], point["y"], point["depth"], point["index"]) for point in cloud["points"]]
    assert np.allclose(rays, [(-0.5, -0.5, 2, 0), (-0.5, 0.5, 3, 2), (0.5, 0.5, 4, 3)])
    assert cloud["pivot"] == 3
    assert cloud["cell"] == pytest.approx([1, 1])


def test_a_wall_shows_the_camera_its_front(open_page):
    """Of a wall that faces the camera the normal points back along the axis."""
    cloud = open_page().execute_async_script("""
        const done = arguments[0]
        import('/cloud.js').then(({unproject}) => done(unproject(
          {width: 4, height: 4, values: new Float32Array(16).fill(2)}, {across: 90, down: 60})))""")
    for point in cloud["points"]:
        x, y, z = point["normal"]
        assert (x, y) == pytest.approx((0, 0), abs=1e-9)
        assert z < 0


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_nothing_is_wider_than_the_window(open_page, size):
    driver = open_page(size)
    assert driver.execute_script("return document.documentElement.scrollWidth") == size[0]
    for canvas in find(driver, "canvas"):
        assert canvas.size["width"] > 100
