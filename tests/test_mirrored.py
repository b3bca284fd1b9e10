"""A network that is asked about a scene and about its mirror image."""

import pytest
import torch
from lightning_fabric import Fabric

from dataloaders import create_dataset, create_loader
from dataloaders.transforms import augment_sample
from models import create_model
from training import loop
from training.mirrored import MIRRORS, Mirrored


@pytest.mark.parametrize("name", ["rgb_depth", "binaural_attention", "multimodal_fusion", "unet_baseline"])
def test_the_mirror_image_of_a_scene_has_the_mirror_image_of_its_depth(rooms, name):
    torch.manual_seed(0)
    hearing = {"audio_channels": 4} if name == "binaural_attention" else {}
    size = {"image_size": 32} if name == "unet_baseline" else {}
    model = create_model(name, base_channels=4, max_depth=12.0, **hearing, **size).eval()
    audio_format = "interaural" if hearing else "spectrogram"
    sample = create_dataset("simulated", rooms, "test", 32, audio_format=audio_format)[0]
    inputs = [sample[key][None] for key in model.inputs]
    left_is_right = [MIRRORS[key](x) for key, x in zip(model.inputs, inputs, strict=True)]
    with torch.no_grad():
        plain, twice = model(*inputs), Mirrored(model)(*inputs)
        assert not torch.allclose(model(*left_is_right).flip(-1), plain, rtol=1e-4), "the network alone has no symmetry"
        assert torch.allclose(Mirrored(model)(*left_is_right).flip(-1), twice, rtol=1e-5)
        assert torch.allclose(twice, (plain + model(*left_is_right).flip(-1)) / 2, rtol=1e-5)


def test_an_evaluation_leaves_a_network_in_eval_mode(rooms):
    """The pictures of its cases are drawn afterwards: in training mode batch norm would answer otherwise."""
    model = create_model("rgb_depth", base_channels=4).eval()
    loader = create_loader(create_dataset("simulated", rooms, "test", 32), 4, shuffle=False)
    asked = Mirrored(model)
    loop.evaluate(Fabric(accelerator="cpu", devices=1), asked, loader)
    assert not asked.training and not any(module.training for module in model.modules())


class Always:
    """Draws that mirror, and leave colours as they are."""

    def random(self):
        return 0.0

    def uniform(self, low, high, size):
        return torch.ones(size).numpy()


def test_a_mirrored_scene_is_the_one_of_the_training(rooms):
    sample = create_dataset("simulated", rooms, "test", 32, audio_format="interaural")[0]
    seen = augment_sample(sample, Always())
    for key in ("audio", "rgb"):
        assert torch.allclose(MIRRORS[key](sample[key][None])[0], seen[key], atol=1e-6)


def test_a_waveform_has_its_ears_changed():
    sound = torch.arange(6.0).reshape(1, 2, 3)
    assert MIRRORS["waveform"](sound).tolist() == [[[3.0, 4.0, 5.0], [0.0, 1.0, 2.0]]]
