"""MUGAN: sizes, blocks against plain PyTorch, losses, and what keeps NaN away."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from method_checks import check_generator, count, pairs, pictures, sharpen, train
from test_ticcgan import check_losses_and_order
from torch import Tensor, nn

from cmmfnet.methods import build_network, method_class
from cmmfnet.methods.mugan import (
    MUGAN,
    FullScaleSkip,
    MixedAttention,
    MixedSkippingUNet,
    TwoPathBlock,
)

SMALL = {"method": "mugan", "widths": (4, 6, 8, 8, 12), "skip_width": 4}
LOSSES = {"adversarial": 0.03, "l1": 1.0, "tv": 1.25, "ssim": 1.25}
OPTIONS: dict = {}
SIZE = 32


def small(**options) -> MixedSkippingUNet:
    torch.manual_seed(0)
    return build_network(SMALL | options)


def test_sizes_are_the_papers():
    with torch.device("meta"):
        assert count(MixedSkippingUNet()) == 37_741_816
        method = MUGAN(MixedSkippingUNet(), LOSSES)
        assert count(method.networks["discriminator"]) == 695_777
        assert method.pools["pairs"].size == 50


@pytest.mark.parametrize("size", [(32, 32), (64, 32), (32, 96)])
@pytest.mark.parametrize("options", [{}, {"inputs": 1}], ids=str)
def test_generator(options, size):
    check_generator(sharpen(small(**options)), *size)


def test_other_shapes_raise():
    with pytest.raises(ValueError, match="multiples of 32"):
        small()(torch.zeros(1, 1, 48, 32))


def norm(x: Tensor) -> Tensor:
    return F.instance_norm(x)


def plain(network: nn.Module) -> nn.Module:
    """Affine norms that only normalise."""
    for m in network.modules():
        if hasattr(m, "weight") and m.weight is not None and m.weight.ndim == 1:
            nn.init.ones_(m.weight)
            nn.init.zeros_(m.bias)
    return network


@pytest.mark.parametrize("inputs", [3, 4])
def test_block(inputs):
    block, x = plain(sharpen(TwoPathBlock(inputs, 4))), torch.randn(2, inputs, 9, 10)
    first, wide = block.near[0].weight, block.far[0].weight
    second, third = block.shared[0][0].weight, block.shared[1][0].weight

    def path(y: Tensor) -> Tensor:
        for weight in (second, third):
            y = norm(F.conv2d(y, weight, padding=1)).relu()
        return y

    near = path(norm(F.conv2d(x, first, padding=1)).relu())
    far = path(norm(F.conv2d(x, wide, padding=2, dilation=2)).relu())
    both = norm(F.conv2d(near * far, block.both[0].weight, padding=1)).relu()
    y = F.conv2d(torch.cat([near, far, both], dim=1), block.join.weight)
    y = y + (norm(F.conv2d(x, block.shortcut[0].weight)) if inputs != 4 else x)
    assert torch.allclose(block(x), y.relu(), atol=1e-4)


def test_attention_is_the_sum_of_two():
    attention, x = sharpen(MixedAttention(16), 0.5), torch.randn(2, 16, 8, 6)

    def gate(layers: nn.Sequential, v: Tensor) -> Tensor:
        w1, w2 = layers[0].weight[:, :, 0, 0], layers[2].weight[:, :, 0, 0]
        assert w1.shape == (2, 16)  # ratio 8
        return (v @ w1.T).relu() @ w2.T

    mean, largest = x.mean(dim=(2, 3)), x.flatten(2).max(dim=2).values
    squeezed = x * torch.sigmoid(gate(attention.squeeze, mean))[:, :, None, None]
    y = (
        x
        * torch.sigmoid(gate(attention.channel, mean) + gate(attention.channel, largest))[
            :, :, None, None
        ]
    )
    places = torch.stack([y.mean(dim=1), y.max(dim=1).values], dim=1)
    y = y * torch.sigmoid(
        F.conv2d(places, attention.spatial.weight, attention.spatial.bias, padding=3)
    )
    assert torch.allclose(attention(x), squeezed + y, atol=1e-5)


def test_full_scale_skip_pools_every_finer_map():
    skip = plain(sharpen(FullScaleSkip((4, 6), 8, 5)))
    maps = [torch.randn(1, 4, 32, 32), torch.randn(1, 6, 16, 16)]
    x = torch.randn(1, 8, 8, 8)
    parts = []
    for layer, m, side in zip(skip.finer, maps, (4, 2), strict=True):
        m = m.unflatten(3, (8, side)).unflatten(2, (8, side)).amax(dim=(3, 5))
        parts.append(norm(F.conv2d(m, layer[0].weight, layer[0].bias, padding=1)).relu())
    want = norm(
        F.conv2d(torch.cat([*parts, x], dim=1), skip.join[0].weight, skip.join[0].bias)
    ).relu()
    assert torch.allclose(skip(x, maps), want, atol=1e-4)


def test_output_is_the_leaky_mean_of_four_answers_clipped_in_evaluation_only():
    network, x = sharpen(small(), 0.05), pictures(2, 1, 32, 32)
    for i, layer in enumerate(network.pictures):
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, float((-40.0, 8.0, 4.0, 8.0)[i]))
    assert len(network.pictures) == 4
    assert torch.allclose(network.train()(x), torch.full((2, 3, 32, 32), 0.2 * -5.0))
    nn.init.constant_(network.pictures[0].bias, -20.0)
    assert torch.allclose(network(x), torch.zeros(1))
    nn.init.constant_(network.pictures[0].bias, -12.0)
    assert torch.allclose(network(x), torch.full((2, 3, 32, 32), 2.0))
    assert torch.equal(network.eval()(x), torch.ones(2, 3, 32, 32))


@pytest.mark.parametrize("width", [256, 320])
def test_one_hot_pixel_makes_no_nan_in_half_precision(width):
    """Convolutions that hand their input on: the product of the two branches is H*W at that pixel,
    more than float16 has."""
    block = TwoPathBlock(1, 8)
    for m in block.modules():
        if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3):
            nn.init.zeros_(m.weight)
            with torch.no_grad():
                m.weight[:, 0, 1, 1] = 1
    frame = torch.zeros(1, 1, 256, width)
    frame[..., 100, 100] = 1
    products = []
    hook = block.both.register_forward_pre_hook(lambda _, inputs: products.append(inputs[0].max()))
    with torch.no_grad():
        want = block(frame)
        hook.remove()
        assert float(products[0]) > torch.finfo(torch.float16).max
        with torch.autocast("cpu", torch.float16):
            mixed = block(frame)
        assert (
            mixed.isfinite().all() and (mixed.float() - want).abs().max() < 0.01 * want.abs().max()
        )
        half = block.half()(frame.half())
    assert half.isfinite().all() and (half.float() - want).abs().max() < 0.01 * want.abs().max()


@pytest.mark.parametrize("value", [-1.0, 0.0, 0.7])
def test_a_flat_frame_has_finite_gradients(value):
    method, batch = MUGAN(sharpen(small()), LOSSES), pairs(1, SIZE)
    batch.thermal.fill_(value)
    train(method, batch, steps=3)


@pytest.mark.parametrize("faithful", [False, True])
def test_losses_and_order(random_vgg, faithful):
    weights = {"adversarial": 2.0, "l1": 3.0, "perceptual": 5.0, "tv": 7.0, "ssim": 11.0}
    method = MUGAN(sharpen(small(), 0.1), weights, faithful=faithful)
    sharpen(method.networks["discriminator"], 0.1)
    check_losses_and_order(method, weights, random_vgg, faithful, gan="bce")


@pytest.mark.parametrize("batch_size", [1, 3])
def test_step_gives_every_parameter_a_gradient(batch_size):
    train(MUGAN(small(), LOSSES), pairs(batch_size, SIZE))


def test_it_learns_a_batch():
    history = train(
        MUGAN(sharpen(small()), {"l1": 1.0, "adversarial": 0.03}), pairs(1, SIZE), 50, rate=5e-3
    )
    assert history[-1]["l1"] < 0.6 * history[0]["l1"]


def test_without_adversarial_there_is_no_discriminator():
    method = MUGAN(small(), {"l1": 1.0, "adversarial": 0.0})
    assert list(method.networks) == ["generator"] and not method.pools
    train(method, pairs(1, SIZE))


@pytest.mark.parametrize(
    ("name", "optimiser", "parameters", "rate"),
    [("mugan", "adam", 37_741_816, 2e-4), ("lkatgan", "adamw", 74_192_355, 5e-4)],
)
def test_configuration_is_the_papers(name, optimiser, parameters, rate):
    recipe = yaml.safe_load((Path(__file__).parents[2] / "configs" / f"{name}.yaml").read_text())
    with torch.device("meta"):
        assert count(build_network(recipe["model"])) == parameters
    assert recipe["losses"] == {k: v for k, v in method_class(name).LOSSES.items() if v}
    assert (recipe["epochs"], recipe["batch_size"], recipe["size"]) == (20, 1, 256)
    assert (recipe["optimiser"], recipe["learning_rate"], recipe["betas"]) == (
        optimiser,
        rate,
        [0.5, 0.999],
    )
    assert (recipe["schedule"], recipe["clip_norm"], recipe["ema"], recipe["precision"]) == (
        "linear",
        0,
        0.0,
        "no",
    )
