"""The preprocessing of sound as a network, against the preprocessing."""

import itertools

import pytest
import torch

from dataloaders import AUDIO_FORMATS, AudioFrontEnd, prepare_audio, prepare_wave, read_wav
from dataloaders.stft import resize_matrix, windowed_waves
from dataloaders.transforms import SPECTROGRAMS
from errors import OptionError

CASES = list(itertools.product(SPECTROGRAMS, (32, 256, (96, 160)), (257, 3112, 7782)))


def preprocessing(audio_format="spectrogram", size=32, samples=3112):
    return {"audio_format": audio_format, "image_size": size, "audio_samples": samples}


def relative(found, expected):
    return float((found.double() - expected.double()).abs().max() / expected.abs().max())


def check(wave, audio_format, size, samples):
    """In float64 ``prepare_audio`` says what is right; in float32 it rounds too, most in the logarithm of silence."""
    how = preprocessing(audio_format, size, samples)
    with torch.no_grad():
        found = AudioFrontEnd(how)(prepare_wave(wave, how)[None])[0]
    single, double = prepare_audio(wave, how), prepare_audio(wave.double(), how)
    assert found.shape == single.shape
    assert relative(found, double) < 1e-5
    assert relative(found, single) < 1e-5 + relative(single, double)


@pytest.mark.parametrize(("audio_format", "size", "samples"), CASES)
def test_it_is_the_preprocessing(audio_format, size, samples):
    wave = 0.1 * torch.randn(2, 5000, generator=torch.Generator().manual_seed(0))
    check(wave, audio_format, size, samples)


@pytest.mark.parametrize(("audio_format", "size", "samples"), CASES)
def test_it_is_the_preprocessing_of_a_real_recording(samples_dir, audio_format, size, samples):
    wave = read_wav(samples_dir / "BatvisionV2/Sample_Room/audio/audio_47.wav")
    check(wave, audio_format, size, samples)


@pytest.mark.parametrize(("size", "samples"), [*itertools.product((32, (96, 160)), (257, 3112))])
def test_what_both_ears_hear_has_one_preprocessing(samples_dir, size, samples):
    """A file carries the very module. Beside float64 it rounds more than a spectrogram: it divides by amplitudes."""
    wave = read_wav(samples_dir / "BatvisionV2/Sample_Room/audio/audio_47.wav")
    how = preprocessing("interaural", size, samples)
    with torch.no_grad():
        found = AudioFrontEnd(how)(prepare_wave(wave, how)[None])[0]
    assert torch.equal(found, prepare_audio(wave, how))
    assert relative(found, prepare_audio(wave.double(), how)) < 1e-3


def test_recordings_and_ears_keep_their_places():
    waves = torch.rand(3, 2, 400, generator=torch.Generator().manual_seed(0))
    front = AudioFrontEnd(preprocessing(samples=400))
    together = front(waves)
    for wave, image in zip(waves, together, strict=True):
        assert torch.allclose(image, front(wave[None])[0], atol=1e-6)
        assert torch.allclose(image[:1], front(wave[None].flip(1))[0, 1:], atol=1e-6), "the right ear, swapped"


def test_silence_is_silence():
    for audio_format in AUDIO_FORMATS:
        assert not AudioFrontEnd(preprocessing(audio_format))(torch.zeros(1, 2, 3112)).any()


def test_a_matrix_of_weights_adds_up():
    enlarge, shrink, keep = resize_matrix(4, 8), resize_matrix(487, 64), resize_matrix(257, 257)
    for matrix in (enlarge, shrink):
        assert torch.allclose(matrix.sum(dim=1), torch.ones(len(matrix)), atol=1e-6)
    assert torch.allclose(enlarge[1], torch.tensor([0.75, 0.25, 0, 0])), "a quarter of a pixel to the right"
    assert torch.equal(keep, torch.eye(257))


def test_the_waves_are_those_of_the_window():
    waves = windowed_waves()
    assert waves.shape == (514, 1, 64)
    assert torch.allclose(waves[0, 0], torch.hann_window(64)), "frequency 0: the window itself"
    assert not waves[257].any(), "and no sine"


def test_the_length_must_be_known():
    with pytest.raises(OptionError, match="number of samples"):
        AudioFrontEnd(preprocessing(samples=None))
