"""The validity rule, resizing, resampling and spectrograms."""

import math

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from make_data import write_batvision_v2
from PIL import Image

from dataloaders import create_dataset, transforms
from dataloaders.transforms import (
    HOP_LENGTH,
    LOG_FLOOR,
    N_FFT,
    WIN_LENGTH,
    clean_depth,
    cut_samples,
    mel_filters,
    prepare_rgb,
    resample,
    resize_depth,
    spectrogram,
    valid_depth,
)
from errors import DataError, OptionError

DEPTHS = arrays.arrays(
    np.float32,
    st.tuples(st.just(1), st.integers(1, 12), st.integers(1, 12)),
    elements=st.one_of(
        st.floats(width=32), st.floats(0, 64, width=32), st.sampled_from([0.0, -0.0, math.nan, math.inf])
    ),
)


def test_validity_by_hand():
    depth = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, -2.0, 5e-4, 1e-3, 3.0, 50.0])
    assert valid_depth(depth).tolist() == [False] * 6 + [True] * 4
    assert valid_depth(depth, 1e-3).tolist() == [False] * 7 + [True] * 3
    assert clean_depth(depth, 30.0, 1e-3).tolist() == [0] * 7 + [pytest.approx(1e-3), 3.0, 30.0]
    assert clean_depth(depth, 30.0, 1e-3, beyond="drop").tolist() == [0] * 8 + [3.0, 0]


@settings(deadline=None, max_examples=100)
@given(DEPTHS, st.floats(0.5, 40), st.sampled_from(["clip", "drop"]))
def test_clean_depth_keeps_valid_values_and_nothing_else(depth, max_depth, beyond):
    cleaned = clean_depth(torch.from_numpy(depth), max_depth, 1e-3, beyond=beyond).numpy()
    assert np.isfinite(cleaned).all() and (cleaned >= 0).all() and (cleaned <= np.float32(max_depth)).all()
    with np.errstate(invalid="ignore"):
        inside = np.isfinite(depth) & (depth > 1e-3) & (depth < max_depth)
        hole = ~(depth > 0) | ~np.isfinite(depth)
    assert (cleaned[inside] == depth[inside]).all()
    assert (cleaned[hole] == 0).all()


@settings(deadline=None, max_examples=100)
@given(DEPTHS, st.integers(1, 20), st.integers(1, 20))
def test_resizing_never_makes_a_value(depth, height, width):
    cleaned = clean_depth(torch.from_numpy(depth), 30.0)
    resized = resize_depth(cleaned, (height, width))
    assert resized.shape == (1, height, width)
    assert set(resized.unique().tolist()) <= set(cleaned.unique().tolist())


def test_resizing_keeps_places():
    depth = torch.arange(64.0).reshape(1, 8, 8)
    assert torch.equal(resize_depth(depth, 4), depth[:, 1::2, 1::2])
    assert torch.equal(resize_depth(depth, 16)[:, ::2, ::2], depth)


def test_cut_is_the_official_one():
    assert cut_samples(30) == 7782
    assert cut_samples(12) == 3112
    with pytest.raises(OptionError, match="leaves 129 audio samples, and a spectrogram needs 257; give 1 or more"):
        cut_samples(0.5)


def test_a_cap_in_millimetres_is_refused(tmp_path):
    root = write_batvision_v2(tmp_path, locations=("Attic",), rows={"train": 1})
    for millimetres in (10_000, 12_000.0):
        says = f"--max_depth {millimetres:g}: metres, not millimetres"
        with pytest.raises(OptionError, match=says):
            cut_samples(millimetres)
        for audio_format in ("interaural", "spectrogram"):
            with pytest.raises(OptionError, match=says):
                create_dataset("batvisionv2", root, "train", 16, millimetres, audio_format)
    with pytest.raises(OptionError, match="not millimetres"):
        create_dataset("images", root, "train", 16, 10_000)
    assert cut_samples(1000) == 259_411


def test_spectrogram_of_a_steady_tone():
    rate, k = 44_100, 93  # 93 * 44100 / 512 = 8010 Hz, in the middle of a bin
    wave = torch.sin(2 * math.pi * k / N_FFT * torch.arange(4000)).expand(2, -1)
    image = spectrogram(wave)
    assert image.shape == (2, N_FFT // 2 + 1, 1 + 4000 // HOP_LENGTH)
    middle = image[0, :, 100]
    assert middle.argmax() == k
    assert middle[k].item() == pytest.approx(WIN_LENGTH / 4, rel=1e-3)  # half the window's sum, halved by the sine
    filters = mel_filters()
    top = int(spectrogram(wave, "mel")[0, :, 100].argmax())
    corners = 700 * (10 ** (np.linspace(0, 2595 * math.log10(1 + rate / 2 / 700), 34) / 2595) - 1)
    assert abs(corners[1:-1][top] - 8010) < corners[top + 2] - corners[top + 1]
    assert (filters.sum(1) > 0.5).all() and filters.max() <= 1


def test_only_a_cubic_filter_overshoots_at_an_edge():
    edge = Image.fromarray(np.repeat(np.uint8([[50, 50, 50, 200, 200, 200]]), 6, axis=0))
    bilinear, also, bicubic = (
        255 * prepare_rgb(edge, {"image_size": 18, **named})
        for named in ({}, {"rgb_filter": "bilinear"}, {"rgb_filter": "bicubic"})
    )
    assert torch.equal(bilinear, also)
    assert (bilinear.min().item(), bilinear.max().item()) == pytest.approx((50, 200))
    assert bicubic.min() < 49 and bicubic.max() > 201


def test_log_formats_on_known_values():
    silence = torch.zeros(2, 1000)
    assert not spectrogram(silence, "log_spectrogram").any() and not spectrogram(silence, "mel").any()
    wave = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    magnitude = spectrogram(wave)
    expected = torch.log(1 + magnitude / LOG_FLOOR) / math.log(1001)
    torch.testing.assert_close(spectrogram(wave, "log_spectrogram"), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rate", "frequency"), [(48_000, 1000), (96_000, 9000), (22_050, 5000), (44_099, 15_000)])
def test_resampled_sine_is_the_sine(rate, frequency):
    seconds = 0.1
    wave = torch.sin(2 * math.pi * frequency * torch.arange(round(rate * seconds), dtype=torch.float64) / rate)
    result = resample(wave.float().expand(2, -1), rate)
    assert result.shape == (2, round(round(rate * seconds) * 44_100 / rate)) and result.dtype == torch.float32
    expected = torch.sin(2 * math.pi * frequency * torch.arange(result.shape[1], dtype=torch.float64) / 44_100)
    error = (result[0].double() - expected)[200:-200].abs().max()
    assert error < 1e-3


def test_resampling_leaves_no_alias():
    tone = torch.sin(2 * math.pi * 30_000 * torch.arange(9600, dtype=torch.float64) / 96_000).float().expand(2, -1)
    assert resample(tone, 96_000)[:, 200:-200].abs().max() < 1e-3  # 30 kHz would come back at 14.1 kHz


def test_a_recording_is_resampled_in_parts_as_in_one(monkeypatch):
    wave = torch.randn(2, 3000, generator=torch.Generator().manual_seed(0))
    in_one = transforms.resample(wave, 48_000)
    monkeypatch.setattr(transforms, "RESAMPLED_AT_ONCE", 500)
    assert torch.equal(transforms.resample(wave, 48_000), in_one)
    assert transforms.resample(wave[:, :0], 48_000).shape == (2, 0)


def test_a_recording_of_minutes_is_refused():
    preprocessing = {"audio_samples": None, "audio_format": "spectrogram"}
    with pytest.raises(DataError, match="lasts 61 s; cut it"):
        transforms.prepare_wave(torch.zeros(1, 61 * 44_100).expand(2, -1), preprocessing)
    cut = {**preprocessing, "audio_samples": 3112}
    assert transforms.prepare_wave(torch.zeros(1, 61 * 44_100).expand(2, -1), cut).shape == (2, 3112)
    filled = {**preprocessing, "audio_samples": transforms.MAX_SAMPLES + 1}
    assert transforms.prepare_wave(torch.zeros(2, 4000), filled).shape == (2, transforms.MAX_SAMPLES + 1)


def test_resampled_recording_gives_nearly_the_same_spectrogram(tmp_path):
    root = write_batvision_v2(tmp_path, locations=("Attic",), rows={"train": 2})
    t = np.arange(48_000 // 4)

    def sound(rate):
        return np.stack([np.sin(2 * np.pi * hertz * t[: rate // 4] / rate) * 0.5 for hertz in (3000, 7000)], axis=1)

    soundfile.write(root / "Attic/audio/audio_1.wav", sound(44_100), 44_100, "PCM_32")
    soundfile.write(root / "Attic/audio/audio_2.wav", sound(48_000), 48_000, "PCM_32")
    dataset = create_dataset("batvisionv2", root, "train", 64, resample=True)
    assert dataset.preprocessing["resample"] is True
    first, second = dataset[0]["audio"], dataset[1]["audio"]
    assert (first - second)[:, :, 4:-4].abs().max() < 0.01 * first.max()
