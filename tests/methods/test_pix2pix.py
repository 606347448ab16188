"""pix2pix: sizes, the U-Net against a recursive one, norms that know one picture only, losses and
the order of the step."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from method_checks import check_generator, count, pairs, pictures, sharpen, train
from torch import Tensor, nn

from cmmfnet.methods import build_network
from cmmfnet.methods.method import StepContext
from cmmfnet.methods.pix2pix import Pix2Pix, UNetGenerator
from cmmfnet.nn.patchgan import InstanceNorm

SMALL = {"method": "pix2pix", "levels": 6, "width": 4}
LOSSES = {"adversarial": 1.0, "l1": 100.0}
OPTIONS: dict = {}
SIZE = 64


def small(**options) -> UNetGenerator:
    torch.manual_seed(0)
    return build_network(SMALL | options)


def test_sizes_are_the_papers():
    with torch.device("meta"):
        assert count(UNetGenerator()) == 54_413_955
        assert count(UNetGenerator(inputs=1)) == 54_411_907
        assert (
            count(UNetGenerator(inputs=6, levels=7, affine=False)) == 41_828_739
        )  # I2V-GAN's predictor
        method = Pix2Pix(UNetGenerator(), LOSSES)
        assert count(method.networks["discriminator"]) == 2_768_705
        assert UNetGenerator.multiple_of == method.networks["generator"].multiple_of == 256


@pytest.mark.parametrize("size", [(64, 64), (64, 128), (192, 64)])
@pytest.mark.parametrize("options", [{}, {"inputs": 1}, {"affine": False, "dropout": 0.0}], ids=str)
def test_generator(options, size):
    check_generator(sharpen(small(**options), 0.1), *size)


def test_levels_say_which_sizes_fit():
    assert small().multiple_of == 64
    with pytest.raises(ValueError, match="multiples of 64"):
        small()(torch.zeros(1, 1, 96, 64))


def recursive(network: UNetGenerator, x: Tensor, level: int = 0) -> Tensor:
    """A level is: down, what is inside it, up; and its input is handed on beside what it makes."""
    down, up = network.downs[level], network.ups[-1 - level]
    conv, back = (
        next(m for m in part if isinstance(m, nn.Conv2d | nn.ConvTranspose2d))
        for part in (down, up)
    )
    last = len(network.downs) - 1

    def norm(y: Tensor, part: nn.Sequential) -> Tensor:
        (layer,) = (m for m in part if isinstance(m, InstanceNorm))
        return F.instance_norm(y, weight=layer.weight, bias=layer.bias)

    y = F.conv2d(F.leaky_relu(x, 0.2) if level else x, conv.weight, conv.bias, stride=2, padding=1)
    if 0 < level < last:
        y = norm(y, down)
    if level < last:
        y = torch.cat([y, recursive(network, y, level + 1)], dim=1)
    y = F.conv_transpose2d(y.relu(), back.weight, back.bias, stride=2, padding=1)
    return norm(y, up) if level else torch.tanh(y)


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"levels": 3}], ids=str)
def test_unet_is_what_it_is_said_to_be(options):
    network, x = sharpen(small(**options), 0.1).eval(), pictures(2, 1, 64, 64)
    assert torch.allclose(network(x), recursive(network, x.expand(-1, 3, -1, -1)), atol=1e-4)
    biased = [
        m.bias is not None
        for m in network.modules()
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)
    ]
    assert all(biased) if "affine" in options else biased == [False] * (len(biased) - 1) + [True]


def test_dropout_is_where_the_original_has_it():
    with torch.device("meta"):
        network = UNetGenerator()
    assert [any(isinstance(m, nn.Dropout) for m in up) for up in network.ups] == [
        False,
        True,
        True,
        True,
    ] + [False] * 4
    assert [up[1].out_channels for up in network.ups] == [512, 512, 512, 512, 256, 128, 64, 3]
    assert [down[-1].weight.shape[0] for down in network.downs[1:-1]] == [
        128,
        256,
        512,
        512,
        512,
        512,
    ]
    drops = small()
    x = pictures(1, 1, 64, 64)
    assert not torch.equal(sharpen(drops).train()(x), drops(x))
    assert torch.equal(drops.eval()(x), drops(x))


def test_evaluation_is_what_training_with_a_batch_of_one_is():
    """The original's batch norm at batch one, dropout aside; whereas its evaluation mode gives
    another picture."""
    network = sharpen(small(dropout=0.0), 0.1)
    twin = sharpen(small(dropout=0.0), 0.1)
    twin.load_state_dict(network.state_dict())
    for part in (*twin.downs, *twin.ups):
        for i, layer in enumerate(part):
            if isinstance(layer, InstanceNorm):
                part[i] = nn.BatchNorm2d(len(layer.weight))
                part[i].load_state_dict(layer.state_dict(), strict=False)
    x = pictures(1, 1, 64, 64)
    with torch.no_grad():
        want = twin.train()(x.expand(-1, 3, -1, -1))
        assert torch.allclose(network.eval()(x), want, atol=1e-4)
        assert torch.allclose(network.train()(x), want, atol=1e-4)
        assert (twin.eval()(x.expand(-1, 3, -1, -1)) - want).abs().max() > 0.05


@pytest.mark.parametrize("inputs", [1, 3])
def test_losses_and_order(inputs):
    method = Pix2Pix(small(inputs=inputs, dropout=0.0), {"adversarial": 2.0, "l1": 7.0})
    batch = pairs(2, SIZE)
    generator, judge = method.networks["generator"], method.networks["discriminator"]
    condition = torch.cat([batch.thermal] * inputs, dim=1)

    def entropy(colour: Tensor, target: float) -> Tensor:
        p = torch.sigmoid(judge(torch.cat([condition, colour], dim=1)))
        return F.binary_cross_entropy(p, torch.full_like(p, target))

    step = method.training_step(batch, StepContext(0, 0, 1))
    optimiser, losses = next(step)
    assert optimiser == "discriminator" and list(losses) == ["discriminator"]
    with torch.no_grad():
        colour = generator(batch.thermal)
        want = (entropy(batch.visible, 1.0) + entropy(colour, 0.0)) / 2
    assert torch.allclose(losses["discriminator"], want, atol=1e-5)
    with torch.no_grad():
        for p in judge.parameters():  # what its optimiser would do: the generator meets the new one
            p.mul_(1.3)
    optimiser, losses = next(step)
    assert optimiser == "generator" and set(losses) == {"adversarial", "l1"}
    assert torch.allclose(losses["adversarial"], 2 * entropy(colour, 1.0), atol=1e-5)
    assert torch.allclose(losses["l1"], 7 * (colour - batch.visible).abs().mean(), atol=1e-5)
    with pytest.raises(StopIteration):
        next(step)


def test_training_learns():
    history = train(Pix2Pix(small(), LOSSES), pairs(2, SIZE), steps=20, rate=4e-3)
    assert history[-1]["l1"] < 0.8 * history[0]["l1"]
    assert set(history[0]) == {"discriminator", "adversarial", "l1"}


def test_one_picture_is_a_batch():
    assert set(train(Pix2Pix(small(), LOSSES), pairs(1, SIZE))[0]) == {
        "discriminator",
        "adversarial",
        "l1",
    }


def test_without_adversarial_there_is_no_discriminator():
    method = Pix2Pix(small(), {"adversarial": 0.0, "l1": 1.0})
    assert list(method.networks) == ["generator"]
    assert set(train(method, pairs(1, SIZE))[0]) == {"l1"}
    only = Pix2Pix(small(), {"adversarial": 1.0})
    assert set(train(only, pairs(1, SIZE))[0]) == {"discriminator", "adversarial"}
