"""Checkpoints of untrained networks, and one that answers with disparities."""

import torch

from models import create_model
from models.rgb_depth_model import RGBDepthNet
from training.checkpoint import save_checkpoint


class RelativeEye(RGBDepthNet):
    """Answers with disparities. Tests put it among ``models.MODELS``."""

    name = "relative_eye"
    output = "disparity"

    def forward(self, x, return_features=False):
        return 7 / super().forward(x) + 3


def write_network(path, name, preprocessing, **more):
    """Write a checkpoint with weights of seed 0; returns the model."""
    torch.manual_seed(0)
    model = create_model(name, base_channels=4, max_depth=12.0).eval()
    checkpoint = {
        "format": 1,
        "model": {"name": name, "config": model.config},
        "model_state_dict": model.state_dict(),
        "preprocessing": preprocessing,
        "args": {"experiment_name": "e"},
        "epoch": 1,
        **more,
    }
    save_checkpoint(checkpoint, path)
    return model
