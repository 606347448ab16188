"""The pix2pix family's blocks against plain PyTorch, and what the tests of its methods share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from method_checks import count, pictures
from torch import Tensor, nn

from cmmfnet.methods import build_network, method_class
from cmmfnet.nn.patchgan import (
    InstanceNorm,
    PatchGAN,
    ResidualBlock,
    as_channels,
    gan_loss,
    init_normal,
)


def reference_discriminator(judge: PatchGAN, x: Tensor, norm) -> Tensor:
    convs = [layer for layer in judge.layers if isinstance(layer, nn.Conv2d)]
    for i, conv in enumerate(convs):
        x = F.conv2d(x, conv.weight, conv.bias, stride=2 if i < len(convs) - 2 else 1, padding=1)
        if 0 < i < len(convs) - 1:
            x = norm(x)
        if i < len(convs) - 1:
            x = torch.where(x > 0, x, 0.2 * x)
    return x


@pytest.mark.parametrize(
    ("inputs", "width", "norm", "parameters"),
    [
        (6, 64, "batch", 2_768_705),  # pix2pix
        (3, 64, "instance", 2_764_737),  # CycleGAN, I2V-GAN
        (6, 32, "instance", 695_777),  # TIC-CGAN, MUGAN
        (3, 64, "none", 2_764_737),
    ],
)
def test_discriminator_sizes_and_output(inputs, width, norm, parameters):
    judge = PatchGAN(inputs, width, norm=norm)
    assert count(judge) == parameters and not list(judge.buffers())
    x = pictures(2, inputs, 64, 48)
    logits = judge(x)
    assert logits.shape == (2, 1, 6, 4)
    dims = {"batch": (0, 2, 3), "instance": (2, 3)}.get(norm)

    def normalise(y: Tensor) -> Tensor:
        if dims is None:
            return y
        return (y - y.mean(dims, keepdim=True)) / (
            y.var(dims, correction=0, keepdim=True) + 1e-5
        ).sqrt()

    for layer in judge.layers:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)  # the reference has none
    assert torch.allclose(
        judge(x[:, :1], x[:, 1:]), reference_discriminator(judge, x, normalise), atol=1e-5
    )


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70), (4, 142)])
def test_a_patch_has_the_size_that_the_paper_names(layers, field):
    judge = PatchGAN(1, 4, layers, norm="none")
    x = torch.zeros(1, 1, 192, 192, requires_grad=True)
    logits = judge(x)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    seen = x.grad[0, 0].ne(0).any(dim=0).nonzero()
    assert seen.max() - seen.min() + 1 == field
    assert max(c.weight.shape[0] for c in judge.layers if isinstance(c, nn.Conv2d)) == 4 * min(
        2**layers, 8
    )


def test_discriminator_with_an_unknown_norm_raises():
    with pytest.raises(ValueError, match="norm is 'layer'; expected 'batch', 'instance' or 'none'"):
        PatchGAN(3, norm="layer")


def test_gan_loss_is_cross_entropy_or_squared_distance():
    logits = torch.tensor([[-3.0, 0.0, 2.0], [0.5, -40.0, 40.0]])
    for real in (True, False):
        target = torch.full_like(logits, float(real))
        assert torch.allclose(
            gan_loss(logits, real, "bce"), F.binary_cross_entropy_with_logits(logits, target)
        )
        assert torch.allclose(gan_loss(logits, real, "lsgan"), F.mse_loss(logits, target))
    p = torch.sigmoid(logits[:1].double())
    assert float(gan_loss(logits[:1], True, "bce")) == pytest.approx(
        float(-p.log().mean()), rel=1e-6
    )
    assert float(gan_loss(logits[:1], False, "bce")) == pytest.approx(
        float(-(1 - p).log().mean()), rel=1e-6
    )
    assert gan_loss(logits.bfloat16(), True, "lsgan").dtype == torch.float32
    with pytest.raises(ValueError, match="mode is 'hinge'; expected 'bce' or 'lsgan'"):
        gan_loss(logits, True, "hinge")


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d, InstanceNorm])
def test_initialisation_is_normal(norm):
    torch.manual_seed(0)
    affine = norm(20_000, affine=True)
    network = nn.Sequential(
        nn.Conv2d(50, 60, 4),
        nn.ConvTranspose2d(60, 50, 4),
        nn.Linear(200, 200),
        affine,
        norm(5, affine=False),
    )
    for layer in network:
        if layer.bias is not None:
            nn.init.ones_(layer.bias)
    init_normal(network, std=0.1)
    for layer, mean in zip(network, (0, 0, 0, 1), strict=False):
        assert abs(float(layer.weight.detach().mean()) - mean) < 3e-3
        assert abs(float(layer.weight.detach().std()) - 0.1) < 3e-3
        assert not layer.bias.any()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("affine", [False, True])
def test_instance_norm_of_one_picture_is_batch_norm(affine, layout):
    """In training mode, gradients included (PyTorch's own is wrong for channels-last gradients, see
    nn/fast/norm.py)."""
    ours, theirs = (
        InstanceNorm(4, affine),
        nn.BatchNorm2d(4, affine=affine, track_running_stats=False),
    )
    if affine:
        for parameter in ours.parameters():
            nn.init.normal_(parameter)
        theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 4, 5, 6)
    gradient = torch.randn(1, 4, 5, 6).contiguous(memory_format=layout)
    results = []
    for norm in (ours, theirs):
        y = x.clone().requires_grad_()
        out = norm(y)
        out.backward(gradient)
        results.append([out, y.grad, *(p.grad for p in norm.parameters())])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert torch.equal(ours.eval()(x), ours.train()(x))


def test_residual_block_adds_to_its_input():
    block = ResidualBlock(4)
    init_normal(block, std=0.3)
    x = torch.randn(2, 4, 6, 5)
    first, second = (layer for layer in block.layers if isinstance(layer, nn.Conv2d))
    y = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), first.weight, first.bias)
    y = F.instance_norm(y).relu()
    y = F.instance_norm(
        F.conv2d(F.pad(y, (1, 1, 1, 1), mode="reflect"), second.weight, second.bias)
    )
    assert torch.allclose(block(x), x + y, atol=1e-5)


def test_frames_are_repeated_and_other_shapes_raise():
    x = torch.randn(2, 1, 16, 8)
    assert torch.equal(as_channels(x, 3, 8), torch.cat([x, x, x], dim=1))
    colour = torch.randn(2, 3, 16, 8)
    assert torch.equal(as_channels(colour, 3, 8), colour)
    for shape in [(2, 2, 16, 8), (2, 1, 12, 8), (2, 1, 16, 4), (1, 16, 8)]:
        with pytest.raises(ValueError, match=r"expected \(B,1,H,W\) with H and W multiples of 8"):
            as_channels(torch.zeros(shape), 3, 8)


@pytest.mark.parametrize(
    ("name", "parameters", "epochs"),
    [("pix2pix", 54_413_955, 200), ("cyclegan", 11_378_179, 200), ("ticcgan", 45_851_907, 20)],
)
def test_configuration_is_the_papers(name, parameters, epochs):
    recipe = yaml.safe_load((Path(__file__).parents[2] / "configs" / f"{name}.yaml").read_text())
    with torch.device("meta"):
        network = build_network(recipe["model"])
    assert count(network) == parameters
    assert recipe["losses"] == method_class(name).LOSSES
    assert recipe["size"] % network.multiple_of == 0
    assert (recipe["epochs"], recipe["batch_size"], recipe["optimiser"]) == (epochs, 1, "adam")
    assert (recipe["learning_rate"], recipe["betas"], recipe["schedule"]) == (
        2e-4,
        [0.5, 0.999],
        "linear",
    )
    assert (recipe["weight_decay"], recipe["clip_norm"], recipe["ema"], recipe["precision"]) == (
        0.0,
        0,
        0.0,
        "no",
    )
