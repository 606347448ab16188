"""What tests of several methods share: tiny batches, a short training, checks of a generator."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmmfnet.methods.method import Method, StepContext


def pictures(batch: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth in [-1,1]: coarse noise, enlarged."""
    size = max(2, height // 8), max(2, width // 8)
    small = (
        torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    )
    return F.interpolate(small, (height, width), mode="bilinear")


def pairs(batch: int, size: int, seed: int = 0) -> SimpleNamespace:
    """What a method's step reads of a Batch."""
    thermal, visible = (
        pictures(batch, 1, size, size, seed),
        pictures(batch, 3, size, size, seed + 1),
    )
    return SimpleNamespace(thermal=thermal, visible=visible, positions=list(range(batch)))


def sharpen(network: nn.Module, std: float = 0.2) -> nn.Module:
    """Weights large enough that every layer can be seen in the output."""
    for p in network.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=std)
    return network


def train(
    method: Method, batch: SimpleNamespace, steps: int = 1, rate: float = 2e-4
) -> list[dict[str, float]]:
    """Steps by hand; every loss is finite, every optimiser's phase gives gradients to all of its
    networks and no other."""
    adam = {
        name: torch.optim.Adam(method.parameter_groups(name, None), rate, betas=(0.5, 0.999))
        for name in method.optimisers
    }
    history = []
    for step in range(steps):
        values: dict[str, float] = {}
        order = []
        for optimiser, losses in method.training_step(batch, StepContext(0, step, steps)):
            for network in method.networks.values():
                network.zero_grad(set_to_none=True)
            sum(losses.values()).backward()
            for name, network in method.networks.items():
                for key, p in network.named_parameters():
                    mine = name in method.optimisers[optimiser]
                    assert p.requires_grad and (p.grad is not None) == mine, (optimiser, name, key)
                    assert not mine or p.grad.isfinite().all(), (optimiser, name, key)
            adam[optimiser].step()
            order.append(optimiser)
            values |= {k: float(v.detach()) for k, v in losses.items()}
        assert order == list(method.optimisers)
        assert all(torch.tensor(list(values.values())).isfinite()), values
        history.append(values)
    return history


def check_generator(network: nn.Module, height: int, width: int, buffers: bool = False) -> None:
    """Contract of a method's Network: shape, range, one answer per picture whatever is beside it,
    every time the same, after deepcopy and a state_dict round trip too (buffers included, where it
    has them), and in bfloat16."""
    network = network.eval()
    x = pictures(3, 1, height, width)
    with torch.inference_mode():
        colour = network(x, None, None)
        assert (colour.shape, colour.dtype) == ((3, 3, height, width), torch.float32)
        assert colour.abs().max() <= 1 and colour.std() > 1e-3
        assert torch.equal(colour, network(x))
        for i in range(3):
            assert (network(x[i : i + 1])[0] - colour[i]).abs().max() < 1e-4
        twin = copy.deepcopy(network)
        for value in twin.state_dict().values():
            value.fill_(0.01 if value.is_floating_point() else 0)
        assert not torch.equal(colour, twin(x))
        twin.load_state_dict(network.state_dict())
        assert (
            twin(x) - colour
        ).abs().max() < 1e-5  # equal weights at other addresses: sums in another order
        with torch.autocast("cpu", torch.bfloat16):
            assert (network(x).float() - colour).abs().mean() < 0.05
    assert buffers or not list(network.buffers())


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
