"""CycleGAN: sizes, the residual generator layer by layer, both directions of every loss, pools."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from method_checks import check_generator, count, pairs, pictures, sharpen, train
from torch import Tensor, nn

from cmmfnet.methods import build_network
from cmmfnet.methods.cyclegan import CycleGAN, ResnetGenerator
from cmmfnet.methods.method import ImagePool, StepContext

SMALL = {"method": "cyclegan", "width": 4, "blocks": 1}
LOSSES = {"adversarial": 1.0, "cycle": 10.0, "identity": 5.0}
OPTIONS: dict = {}
SIZE = 32


def small(**options) -> ResnetGenerator:
    torch.manual_seed(0)
    return build_network(SMALL | options)


def test_sizes_are_the_papers():
    with torch.device("meta"):
        method = CycleGAN(ResnetGenerator(), LOSSES)
        assert {name: count(network) for name, network in method.networks.items()} == {
            "generator": 11_378_179, "inverse": 11_378_179,
            "discriminator_visible": 2_764_737, "discriminator_thermal": 2_764_737,
        }  # fmt: skip
        assert count(ResnetGenerator(blocks=6)) == 7_837_699
    assert not CycleGAN.paired


@pytest.mark.parametrize("size", [(8, 8), (16, 40), (64, 32)])
@pytest.mark.parametrize("options", [{}, {"inputs": 1, "blocks": 2}], ids=str)
def test_generator(options, size):
    check_generator(sharpen(small(**options)), *size)


def test_other_shapes_raise():
    with pytest.raises(
        ValueError, match=r"\(1, 1, 12, 16\); expected \(B,1,H,W\) with H and W multiples of 8"
    ):
        small()(torch.zeros(1, 1, 12, 16))


def test_generator_is_what_it_is_said_to_be():
    network = sharpen(small(blocks=2))
    x = pictures(2, 3, 32, 24)
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]

    def reflect(y: Tensor, conv: nn.Conv2d) -> Tensor:
        return F.conv2d(
            F.pad(y, (conv.kernel_size[0] // 2,) * 4, mode="reflect"), conv.weight, conv.bias
        )

    y = F.instance_norm(reflect(x, convs[0])).relu()
    for conv in convs[1:3]:
        y = F.instance_norm(F.conv2d(y, conv.weight, conv.bias, stride=2, padding=1)).relu()
    for first, second in (convs[3:5], convs[5:7]):
        y = y + F.instance_norm(reflect(F.instance_norm(reflect(y, first)).relu(), second))
    for conv in convs[7:9]:
        y = F.conv_transpose2d(y, conv.weight, conv.bias, stride=2, padding=1, output_padding=1)
        y = F.instance_norm(y).relu()
    assert torch.allclose(network(x), torch.tanh(reflect(y, convs[9])), atol=1e-4)
    # the numbers that contrastive losses choose their layers by
    assert isinstance(network.layers[0], nn.ReflectionPad2d)
    assert [network.layers[i].stride[0] for i in (1, 4, 7)] == [1, 2, 2]
    assert [type(network.layers[i]).__name__ for i in (10, 11, 12)] == [
        "ResidualBlock",
        "ResidualBlock",
        "ConvTranspose2d",
    ]


@pytest.mark.parametrize(("inputs", "identity"), [(3, 7.0), (1, 0.0)])
def test_losses(inputs, identity):
    weights = {"adversarial": 2.0, "cycle": 3.0, "identity": identity}
    method = CycleGAN(small(inputs=inputs), weights)
    for network in method.networks.values():
        sharpen(network, 0.1)
    batch = pairs(2, SIZE)
    forth, back = method.networks["generator"], method.networks["inverse"]
    a, b = torch.cat([batch.thermal] * inputs, dim=1), batch.visible
    judge_a, judge_b = (
        method.networks["discriminator_thermal"],
        method.networks["discriminator_visible"],
    )
    with torch.no_grad():
        fake_b, fake_a = forth(a), back(b)
        assert fake_a.shape == a.shape and fake_b.shape == b.shape
        step = method.training_step(batch, StepContext(0, 0, 1))
        with torch.enable_grad():
            optimiser, losses = next(step)
        assert optimiser == "generator" and set(losses) == {k for k, w in weights.items() if w}
        want = (judge_b(fake_b) - 1).square().mean() + (judge_a(fake_a) - 1).square().mean()
        assert torch.allclose(losses["adversarial"], 2 * want, rtol=1e-4)
        want = (back(fake_b) - a).abs().mean() + (forth(fake_a) - b).abs().mean()
        assert torch.allclose(losses["cycle"], 3 * want, rtol=1e-4)
        if identity:
            want = (forth(b) - b).abs().mean() + (back(a) - a).abs().mean()
            assert torch.allclose(losses["identity"], 7 * want, rtol=1e-4)
        with torch.enable_grad():
            optimiser, losses = next(step)
        assert optimiser == "discriminator" and set(losses) == {
            "discriminator_visible",
            "discriminator_thermal",
        }
        for kind, judge, real, fake in (
            ("visible", judge_b, b, fake_b),
            ("thermal", judge_a, a, fake_a),
        ):
            want = ((judge(real) - 1).square().mean() + judge(fake).square().mean()) / 2
            assert torch.allclose(losses[f"discriminator_{kind}"], want, rtol=1e-4)


def test_identity_loss_needs_pictures_of_one_kind():
    with pytest.raises(ValueError, match="inputs is 1, outputs is 3; the identity loss"):
        CycleGAN(small(inputs=1), LOSSES)


def test_pools_hold_what_was_made_and_change_what_the_discriminators_see():
    method = CycleGAN(small(), LOSSES)
    assert {k: p.size for k, p in method.pools.items()} == {"visible": 50, "thermal": 50}
    method.pools = {"visible": ImagePool(2), "thermal": ImagePool(2)}
    batch = pairs(2, SIZE)
    train(method, batch)
    assert [p.shape for p in method.pools["visible"].pictures] == [(3, SIZE, SIZE)] * 2
    assert not any(p.requires_grad for pool in method.pools.values() for p in pool.pictures)
    marker = [torch.full((3, SIZE, SIZE), 0.5) for _ in range(2)]
    seen = []
    method.networks["discriminator_visible"].register_forward_pre_hook(
        lambda _, args: seen.append(args[0].detach())
    )
    method.pools["visible"].pictures = list(marker)
    for step in range(12):
        for _ in method.training_step(batch, StepContext(3, step, 12)):
            pass
        if any(torch.equal(p, marker[0]) for p in seen[-1]):
            break
    assert any(torch.equal(p, marker[0]) for p in seen[-1])
    assert any(not torch.equal(p, marker[0]) for p in method.pools["visible"].pictures)


def test_training_learns():
    history = train(CycleGAN(small(width=8), LOSSES), pairs(2, SIZE), steps=20, rate=1e-3)
    assert history[-1]["cycle"] < 0.93 * history[0]["cycle"]
    assert set(history[0]) == {*LOSSES, "discriminator_visible", "discriminator_thermal"}


@pytest.mark.parametrize("loss", list(LOSSES))
def test_any_loss_alone_trains_both_generators(loss):
    method = CycleGAN(small(), {loss: 1.0})
    values = train(method, pairs(1, SIZE))[0]
    assert loss in values
    assert (
        ("discriminator_visible" in method.networks)
        == (loss == "adversarial")
        == bool(method.pools)
    )
