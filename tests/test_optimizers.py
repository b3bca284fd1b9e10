"""The optimisers: what they make of weights, whatever the layout of these in memory."""

import pytest
import torch
from torch import nn

from training import optimizers


def trained(kind, layout, steps=3):
    """A network with weights of two, three and four dimensions after some steps, and the optimiser's state."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 1, 1), nn.Flatten(), nn.Linear(36, 2))
    network.to(memory_format=layout)
    optimizer = kind(network.parameters(), lr=0.01, weight_decay=0.1, fused=True)
    for _ in range(steps):
        optimizer.zero_grad()
        for parameter in network.parameters():
            parameter.grad = torch.empty_like(parameter)  # in the parameter's layout
            parameter.grad.copy_(torch.randn(parameter.shape))
        optimizer.step()
    return network, optimizer


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_the_update_is_that_of_pytorch_to_the_bit(name, layout):
    (ours, with_ours), (theirs, with_theirs) = (
        trained(getattr(module, name), layout) for module in (optimizers, torch.optim)
    )
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b) and a.stride() == b.stride()
    states = (with_ours.state_dict()["state"], with_theirs.state_dict()["state"])
    for number, state in states[1].items():
        for key, value in state.items():
            assert torch.equal(states[0][number][key], value), "so that either resumes from the other's checkpoint"


def test_no_weight_is_copied():
    network, optimizer = trained(optimizers.AdamW, torch.channels_last)
    with torch.profiler.profile(record_shapes=True) as profile:
        optimizer.step()
    events = profile.key_averages(group_by_input_shape=True)
    copied = [event.input_shapes[0] for event in events if event.key == "aten::copy_"]
    assert [5, 3, 3, 3] not in copied, "numbers of steps are, which have no size"
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_muon_moves_a_matrix_equally_far_in_all_its_directions():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(8, 16, 3, bias=False), nn.BatchNorm2d(16))
    before = [parameter.detach().clone() for parameter in network.parameters()]
    optimizer = optimizers.muon(network.parameters(), lr=0.01)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.grad = torch.randn_like(parameter)
        network[0].weight.grad[0] *= 100  # of which plain momentum would take no other direction
    optimizer.step()
    moved = [(now - then).detach() for now, then in zip(network.parameters(), before, strict=True)]
    lengths = torch.linalg.svdvals(moved[0].flatten(1))
    assert lengths.max() / lengths.min() < 2, "but for what five steps leave"
    assert torch.allclose(moved[1].abs(), torch.tensor(0.019), rtol=1e-3), "a norm's, as NAdamW moves it first"
    assert moved[0].square().mean().sqrt() == pytest.approx(0.2 * 0.01, rel=0.3), "AdamW's usual size"
