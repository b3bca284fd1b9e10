"""What two ears hear together, against recordings whose echoes are known."""

import math
import re
from pathlib import Path

import pytest
import torch
from make_data import write_batvision_v1, write_batvision_v2

from dataloaders import create_dataset, prepare_audio, read_wav, swap_ears
from dataloaders.interaural import (
    EAR_DISTANCE,
    LEAD,
    MAPS,
    InterauralImage,
    begin_with_direct_pulse,
    chirp,
    scale_echoes,
    whiten,
)
from dataloaders.stft import HOP_LENGTH, SAMPLE_RATE, SPEED_OF_SOUND
from dataloaders.transforms import AUDIO_FORMATS, audio_channels, check_recording, scale_scene
from errors import CheckpointError, DataError, OptionError
from models import create_model
from simulation import echoes
from training.checkpoint import check_preprocessing

SAMPLES, SIZE = 3112, 64
FRAMES = 1 + SAMPLES // HOP_LENGTH
HOW = {"audio_format": "interaural", "image_size": SIZE, "audio_samples": SAMPLES}


def recording(*echoes, onset=287, samples=SAMPLES):
    """A chirp at both ears at ``onset``, then echoes (delay in samples, lead of the left ear in samples, amplitude)."""
    wave = torch.zeros(2, samples + 500)
    for delay, lead, amplitude in ((0, 0, 1.0), *echoes):
        for ear, shift in ((0, -lead / 2), (1, lead / 2)):
            start = round(onset + delay + shift)
            wave[ear, start : start + 132] += amplitude * chirp()
    return wave[:, :samples]


def row_of(delay):
    """The row, or column, of an image at which an echo of that delay is."""
    return ((LEAD + delay) / HOP_LENGTH + 0.5) * SIZE / FRAMES - 0.5


def column_of(lead):
    """The column of a map at which a sound is of which the left ear is ahead by so many samples."""
    most = EAR_DISTANCE / SPEED_OF_SOUND * SAMPLE_RATE
    return (1 - lead / most) / 2 * (SIZE - 1)


def peak(image, low=8):
    """Row and column of the highest value below the direct pulse."""
    place = int(image[low:].argmax())
    return low + place // image.shape[1], place % image.shape[1]


@pytest.mark.parametrize("lead", [-20, -6, 0, 6, 20])
def test_an_echo_stands_at_its_range_and_on_its_side(lead):
    image = prepare_audio(recording((1000, lead, 0.3)), HOW)
    assert image.shape == (2 + MAPS, SIZE, SIZE)
    for sides in image[2:]:
        row, column = peak(sides)
        assert abs(row - row_of(1000)) < 1
        assert abs(column - column_of(lead)) < 1.5
    for ear in image[:2]:
        assert abs(int(ear.mean(dim=0)[8:].argmax()) + 8 - row_of(1000)) < 1


def test_echoes_of_either_side_keep_apart():
    sides = prepare_audio(recording((1000, -18, 0.3), (1400, 18, 0.3)), HOW)[3]
    for delay, lead in ((1000, -18), (1400, 18)):
        row = round(row_of(delay))
        assert abs(peak(sides[row - 1 : row + 2], low=0)[1] - column_of(lead)) < 1.5


def test_neither_the_start_of_the_recorder_nor_its_volume_matter():
    usual = prepare_audio(recording((1000, 6, 0.3)), HOW)
    late = prepare_audio(recording((1000, 6, 0.3), onset=487), HOW)
    quiet = prepare_audio(0.01 * recording((1000, 6, 0.3)), HOW)
    assert torch.allclose(usual, late, atol=1e-3)
    assert torch.allclose(usual, quiet, atol=1e-3)


def test_nor_does_the_colour_of_the_loudspeaker():
    wave = recording((1000, 6, 0.3))
    resonance = torch.tensor([0.2, -0.5, 1.0, -0.5, 0.2])  # quiet below, loud above
    coloured = torch.nn.functional.conv1d(wave[:, None], resonance.expand(1, 1, -1), padding=2)[:, 0]
    usual, found = prepare_audio(wave, HOW), prepare_audio(coloured, HOW)
    assert peak(found[3]) == peak(usual[3])
    heard = usual[:, 8:]  # below the direct pulse
    assert (found[:, 8:] - heard).abs().mean() < 0.1 * heard.abs().mean()


def test_the_direct_pulse_is_one_at_every_frequency_that_it_has():
    cosines = torch.rand(1, 2, 257, 5, generator=torch.Generator().manual_seed(0)) + 0.5
    cosines[..., 200:, :] *= 1e-4
    whitened, sines = whiten(cosines, torch.zeros_like(cosines))
    power = whitened[..., LEAD // HOP_LENGTH].square().mean(dim=1)[0]
    assert torch.allclose(power[:200], torch.ones(200), atol=0.01)
    assert power[200:].max() < 1e-3, "what is hardly in it is not made loud"
    assert not sines.any()


def test_swapped_ears_hear_the_mirrored_scene():
    wave = recording((600, 12, 0.5), (1200, -7, 0.2)) + 0.001 * torch.randn(2, SAMPLES)
    assert torch.allclose(swap_ears(prepare_audio(wave, HOW)), prepare_audio(wave.flip(0), HOW), atol=1e-4)
    image = torch.rand(3, 4, 8, 8)
    assert torch.equal(swap_ears(swap_ears(image)), image)
    assert torch.equal(swap_ears(image[:, :2]), image[:, :2].flip(1)), "spectrograms alone change places"


@pytest.mark.parametrize("scale", [0.8, 1.0, 1.25])
def test_a_larger_scene_answers_later_and_weaker(scale):
    image = scale_echoes(prepare_audio(recording((1000, 12, 0.3)), HOW), scale, SAMPLES)
    wanted = prepare_audio(recording((round(1000 * scale), 12, 0.3 / scale)), HOW)
    for found, true in zip(image[2:], wanted[2:], strict=True):
        row, column = peak(found)
        true_row, true_column = peak(true)
        assert abs(row - true_row) <= 1
        assert column == true_column
        assert found[row, column] == pytest.approx(true[true_row, true_column], rel=0.25)
    for found, true in zip(image[:2], wanted[:2], strict=True):
        assert abs(int(found.mean(0)[8:].argmax()) - int(true.mean(0)[8:].argmax())) <= 1
    if scale == 1.0:
        assert torch.allclose(image, wanted, atol=1e-4)


def test_the_direct_pulse_is_where_time_begins():
    wave = recording(onset=700)
    clicks = InterauralImage(SAMPLES, SIZE, SIZE).compress(wave[None])
    assert int(begin_with_direct_pulse(clicks)[0].square().sum(dim=0).argmax()) in (LEAD, LEAD + 1)


@pytest.mark.parametrize("audio_format", AUDIO_FORMATS)
@pytest.mark.parametrize(("onset", "fails"), [(287, False), (1500, False), (1700, True), (3600, True), (40_000, True)])
def test_a_recording_that_begins_long_before_its_chirp_has_no_depth(audio_format, onset, fails):
    noise = 0.001 * torch.randn(2, 60_000, generator=torch.Generator().manual_seed(0))
    wave = noise + recording((600, 6, 0.3), onset=onset, samples=60_000) + 0.1  # an offset is no sound
    how = {**HOW, "audio_format": audio_format, "max_depth": 12.0}
    if not fails:
        check_recording(wave, how)
        return
    says = r"begins at ([\d.]+) ms, and the network hears the first 70\.6 ms .* cut the recording to begin just before"
    with pytest.raises(DataError, match=says) as caught:
        check_recording(wave, how)
    found = re.search(says, str(caught.value))
    assert found is not None and float(found[1]) == pytest.approx(1000 * onset / SAMPLE_RATE, abs=1.0)


@pytest.mark.parametrize("cut", [SAMPLES, None])
def test_a_recording_that_ends_soon_after_its_chirp_has_no_depth(cut):
    how = {**HOW, "audio_samples": cut, "max_depth": 12.0}
    check_recording(recording(onset=287, samples=1900), how)
    with pytest.raises(DataError, match=r"ends 20\.\d ms after the chirp .* of the 70\.6 ms .* record longer"):
        check_recording(recording(onset=1000, samples=1900), how)


def test_a_real_recording_is_refused_behind_silence_and_not_as_it_is(samples_dir):
    wave = read_wav(samples_dir / "BatvisionV2/Sample_Room/audio/audio_47.wav")
    late = torch.cat([torch.zeros(2, 3528), wave], dim=1)  # 80 ms
    for audio_format in AUDIO_FORMATS:
        for deepest, samples in ((12.0, 3112), (30.0, 7782)):
            how = {"audio_format": audio_format, "audio_samples": samples, "max_depth": deepest}
            check_recording(wave, how)
        with pytest.raises(DataError, match=r"begins at 8\d\.\d ms"):
            check_recording(late, {**how, "audio_samples": 3112, "max_depth": 12.0})


def test_the_simulator_sends_the_chirp_that_is_taken_out_to_the_same_head():
    assert echoes.EAR_DISTANCE == EAR_DISTANCE
    assert (echoes.SAMPLE_RATE, echoes.SPEED_OF_SOUND) == (SAMPLE_RATE, SPEED_OF_SOUND)
    sent = torch.from_numpy(echoes.chirp()).float()
    assert torch.allclose(sent / sent.norm(), chirp(), atol=1e-6)


def test_silence_stays_silence():
    assert not prepare_audio(torch.zeros(2, SAMPLES), HOW).any()


def test_a_real_recording_has_its_direct_pulse_first_and_ahead(samples_dir):
    wave = read_wav(samples_dir / "BatvisionV2/Sample_Room/audio/audio_47.wav")
    image = prepare_audio(wave, {**HOW, "audio_samples": 7782})
    assert torch.isfinite(image).all()
    row, column = divmod(int(image[2].argmax()), SIZE)  # of the pitches that its loudspeaker sends backwards
    assert row <= 1
    assert abs(column - (SIZE - 1) / 2) < 2, "it comes from between the ears"


def test_a_data_set_gives_it_and_scales_its_scenes(tmp_path):
    v2 = write_batvision_v2(tmp_path / "v2")
    assert [audio_channels(name) for name in ("spectrogram", "mel", "interaural")] == [2, 2, 4]
    options = {"audio_format": "interaural", "cache_dir": tmp_path / "cache"}
    plain = create_dataset("batvisionv2", v2, "train", 32, **options)
    scaled = create_dataset("batvisionv2", v2, "train", 32, **options, augment_scale=0.5, seed=3)
    factors = set()
    for epoch in range(4):
        before, after = plain[0], scaled[(epoch, 0)]
        scale = float(after["scale"])
        factors.add(scale)
        assert 1 / 1.5 <= scale <= 1.5
        assert torch.equal(after["rgb"], before["rgb"])
        known = before["depth"] if scale >= 1 else before["depth"] * (before["depth"] < 30)
        assert torch.allclose(after["depth"], (known * scale).clamp(max=30))
        assert torch.allclose(after["audio"], scale_echoes(before["audio"], scale, 7782), atol=1e-5)
    assert len(factors) == 4
    assert "scale" not in create_dataset("batvisionv2", v2, "val", 32, **options, augment_scale=0.5)[0]
    with pytest.raises(OptionError, match="interaural"):
        create_dataset("batvisionv2", v2, "train", 32, augment_scale=0.5)
    with pytest.raises(OptionError, match="negative"):
        create_dataset("batvisionv2", v2, "train", 32, **options, augment_scale=-0.5)


@pytest.mark.parametrize("cap", [12.0, 9.7])  # 9.7 is another number in float32
def test_how_far_it_is_beyond_the_cap_is_not_known_of_a_smaller_scene(cap):
    depth = torch.tensor([0.0, 2.0, 9.0, cap, 20.0])[None, None].clamp(max=cap)
    sample = {"audio": torch.zeros(4, 8, 8), "depth": depth}
    smaller, same, larger = (scale_scene(sample, scale, SAMPLES, cap)["depth"][0, 0] for scale in (0.5, 1.0, 1.2))
    assert smaller.tolist() == [0.0, 1.0, 4.5, 0.0, 0.0]
    assert same.tolist() == depth[0, 0].tolist()
    assert larger.tolist() == pytest.approx([0.0, 2.4, min(10.8, cap), cap, cap])


def test_recordings_that_are_not_cut_are_cut_where_time_has_a_beginning(tmp_path):
    dataset = create_dataset("batvisionv1", write_batvision_v1(tmp_path), "train", 32, audio_format="interaural")
    assert dataset.preprocessing["audio_samples"] == math.floor(2 * 12 / 340 * 44_100)
    assert dataset[0]["audio"].shape == (4, 32, 32)


def test_a_network_is_not_given_what_it_was_not_built_for():
    both = create_model("binaural_attention", base_channels=4, audio_channels=4)
    assert both(torch.rand(2, 4, 32, 32)).shape == (2, 1, 32, 32)
    check_preprocessing(both, HOW, Path("both.pth"))
    with pytest.raises(CheckpointError, match="gives 2 maps, and its binaural_attention takes 4"):
        check_preprocessing(both, {**HOW, "audio_format": "mel"}, Path("both.pth"))
    with pytest.raises(OptionError, match="two ears"):
        create_model("binaural_attention", base_channels=4, audio_channels=1)


@pytest.mark.parametrize("name", ["adabins_audio", "base_residual", "unet_baseline"])
def test_every_network_that_hears_can_hear_both_ears(name):
    config = {"image_size": 32} if name == "unet_baseline" else {}
    model = create_model(name, base_channels=4, audio_channels=4, **config).train()
    model(torch.rand(2, 4, 32, 32)).mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.input_channels("audio") == 4
