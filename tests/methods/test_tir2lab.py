"""TIR2Lab: sizes, Lab against scikit-image, losses against their formulas, ordinary and row-wise
batch norm."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from method_checks import check_generator, count, pairs, pictures, train
from skimage import color
from torch import Tensor, nn

from cmmfnet.methods import build_network
from cmmfnet.methods.method import StepContext
from cmmfnet.methods.tir2lab import (
    LabUNet,
    RowNorm,
    SameConv2d,
    TIR2Lab,
    lab_to_rgb,
    patch_dssim,
    rgb_to_lab,
    scaled_lab,
)  # fmt: skip

SMALL = {"method": "tir2lab", "widths": (4, 6, 8, 8)}
LOSSES = {"ab": 0.5, "dssim": 0.5}
OPTIONS: dict = {}
SIZE = 32


def small(**options) -> LabUNet:
    torch.manual_seed(0)
    return build_network(SMALL | options)


def used(network: nn.Module, height: int = 32) -> nn.Module:
    """With running statistics that are neither 0 nor 1, as after training."""
    for _ in range(3):
        network.train()(pictures(2, 1, height, 32))
    return network.eval()


def test_sizes():
    with torch.device("meta"):
        assert count(LabUNet(faithful=True)) == 1_462_339  # the original's
        # a norm has two parameters a channel in place of two a row
        channels, rows = 64 + 128 + 128 + 128 + 128 + 64 + 32, 64 + 64 + 64 + 64 + 64 + 128 + 256
        assert count(LabUNet()) == 1_462_275 == 1_462_339 + 2 * (channels - rows)
        assert list(TIR2Lab(LabUNet(), LOSSES).networks) == ["generator"]


@pytest.mark.parametrize("size", [(32, 32), (64, 36), (28, 96)])
def test_generator(size):
    check_generator(used(small()), *size, buffers=True)


def test_faithful_takes_one_height_and_any_width():
    network = used(small(faithful=True, rows=64), 64)
    check_generator(network, 64, 40, buffers=True)
    assert network.fixed_size == 64 and LabUNet.fixed_size is None
    with pytest.raises(ValueError, match="this network normalises 64 rows, so H is that"):
        network(torch.zeros(1, 1, 32, 64))


@pytest.mark.parametrize("shape", [(1, 1, 30, 32), (1, 1, 32, 34), (1, 3, 32, 32), (1, 32, 32)])
def test_other_shapes_raise(shape):
    with pytest.raises(ValueError, match=r"expected \(B,1,H,W\) with H and W multiples of 4"):
        small()(torch.zeros(shape))


def test_row_norm_normalises_rows():
    norm, x = RowNorm(5), torch.randn(3, 4, 5, 6) * torch.arange(1.0, 6.0)[:, None] + 3
    y = norm(x)
    assert (
        y.mean(dim=(0, 1, 3)).abs().max() < 1e-5
        and (y.std(dim=(0, 1, 3), correction=0) - 1).abs().max() < 1e-4
    )
    assert torch.allclose(norm.running_mean, 0.1 * x.mean(dim=(0, 1, 3)), atol=1e-5)


def test_same_convolution_pads_as_tensorflow_does():
    conv, x = SameConv2d(2, 3), torch.randn(1, 2, 6, 7)
    y = conv(x)
    assert y.shape == (1, 3, 6, 7)
    padded = torch.zeros(1, 2, 9, 10)
    padded[:, :, 1:7, 1:8] = x  # three in all: one before, two after
    for i, j in [(0, 0), (5, 6), (3, 2)]:
        want = (padded[0, :, i : i + 4, j : j + 4] * conv.weight).sum(dim=(1, 2, 3)) + conv.bias
        assert torch.allclose(y[0, :, i, j], want, atol=1e-5)


def test_network_is_what_it_is_said_to_be():
    network, x = used(small()), pictures(2, 1, 32, 40)

    def conv(y: Tensor, part: nn.Sequential | nn.Module, stride: int = 1) -> Tensor:
        layer = next(m for m in part.modules() if isinstance(m, nn.Conv2d))
        y = F.pad(y, (1, 1, 1, 1) if stride == 2 else (1, 2, 1, 2))
        return F.conv2d(y, layer.weight, layer.bias, stride=stride)

    def norm(y: Tensor, part: nn.Sequential) -> Tensor:
        layer = next(m for m in part if isinstance(m, nn.BatchNorm2d))
        y = (y - layer.running_mean.view(-1, 1, 1)) / (
            layer.running_var.view(-1, 1, 1) + 1e-5
        ).sqrt()
        return y * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)

    def leaky(y: Tensor) -> Tensor:
        return torch.where(y > 0, y, 0.2 * y)

    def double(y: Tensor) -> Tensor:
        return y.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    d1 = leaky(conv((x + 1) / 2, network.down1, 2))
    d2 = norm(leaky(conv(d1, network.down2, 2)), network.down2)
    d3 = norm(leaky(conv(d2, network.down3)), network.down3)
    y = norm(leaky(conv(d3, network.down4)), network.down4)
    y = torch.cat([norm(conv(y, network.up4).relu(), network.up4), d3], dim=1)
    y = torch.cat([norm(conv(y, network.up3).relu(), network.up3), d2], dim=1)
    y = torch.cat([norm(conv(double(y), network.up2).relu(), network.up2), d1], dim=1)
    y = torch.sigmoid(conv(norm(conv(double(y), network.up1).relu(), network.up1), network.last))
    assert torch.allclose(network(x, lab=True), y, atol=1e-5)
    lab = torch.stack([100 * y[:, 0], 185 * y[:, 1] - 87, 203 * y[:, 2] - 108], dim=1)
    want = color.lab2rgb(lab.detach().double().numpy(), channel_axis=1)
    assert torch.allclose(network(x), torch.tensor(want, dtype=torch.float32) * 2 - 1, atol=1e-3)


def test_dropout_and_batch_statistics_act_in_training_only():
    network, x = small(), pictures(2, 1, 32, 32)
    assert sum(isinstance(m, nn.Dropout) and m.p == 0.5 for m in network.modules()) == 3
    assert not torch.equal(network.train()(x), network(x))
    network.eval()
    before = copy.deepcopy(network.state_dict())
    assert torch.equal(network(x), network(x))
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def cube(steps: int) -> Tensor:
    """All combinations of evenly spaced components in [-1,1]: (1,3,steps^2,steps)."""
    axis = torch.linspace(-1, 1, steps)
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).reshape(
        1, 3, steps * steps, steps
    )


def test_lab_is_scikit_images():
    rgb = cube(18)  # 18 levels are multiples of 15 in 0 to 255, dark ones among them
    want = color.rgb2lab(rgb.double().numpy() / 2 + 0.5, channel_axis=1)
    assert torch.allclose(rgb_to_lab(rgb), torch.tensor(want, dtype=torch.float32), atol=0.01)
    scaled = scaled_lab(rgb)
    assert scaled.min() >= 0 and scaled.max() <= 1.002  # a reaches 98.2
    want = torch.tensor(want, dtype=torch.float32)
    assert torch.allclose(scaled[:, 0], want[:, 0] / 100, atol=1e-4)
    assert torch.allclose(scaled[:, 1], (want[:, 1] + 87) / 185, atol=1e-4)
    assert torch.allclose(scaled[:, 2], (want[:, 2] + 108) / 203, atol=1e-4)


def test_lab_and_back():
    rgb = cube(18)
    assert (lab_to_rgb(rgb_to_lab(rgb)) - rgb).abs().max() < 2e-3
    assert (
        rgb_to_lab(rgb.bfloat16()).dtype
        == lab_to_rgb(rgb_to_lab(rgb).half()).dtype
        == torch.float32
    )


@pytest.mark.filterwarnings("ignore:.*negative Z values")
def test_colours_that_there_are_not_are_clipped_with_finite_gradients():
    lab = cube(9) * torch.tensor([50.0, 92.5, 101.5]).view(3, 1, 1) + torch.tensor(
        [50.0, 5.5, -6.5]
    ).view(3, 1, 1)
    lab.requires_grad_()
    rgb = lab_to_rgb(lab)
    assert rgb.min() == -1 and rgb.max() == 1
    (gradient,) = torch.autograd.grad(rgb.sum(), lab)
    assert gradient.isfinite().all() and (gradient != 0).any(dim=1).float().mean() > 0.4


def test_gradient_of_the_conversion():
    lab = rgb_to_lab(torch.rand(1, 3, 3, 3, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8)
    lab.requires_grad_()
    (gradient,) = torch.autograd.grad(lab_to_rgb(lab)[0, 0, 1, 1], lab)
    for channel in range(3):
        shifted = lab.detach().repeat(2, 1, 1, 1)
        shifted[:, channel, 1, 1] += torch.tensor([0.5, -0.5])
        a, b = lab_to_rgb(shifted)[:, 0, 1, 1]
        assert float(gradient[0, channel, 1, 1]) == pytest.approx(float(a - b), rel=0.02, abs=1e-4)


def dssim_of(x: Tensor, y: Tensor) -> float:
    """One patch of one channel, in [0,1]."""
    mx, my = x.mean(), y.mean()
    xx, yy, xy = ((x - mx) ** 2).mean(), ((y - my) ** 2).mean(), ((x - mx) * (y - my)).mean()
    c1, c2 = 0.01**2, 0.03**2
    ssim = (2 * mx * my + c1) * (2 * xy + c2) / ((mx**2 + my**2 + c1) * (xx + yy + c2))
    return float(1 - ssim) / 2


def test_dssim_is_over_patches_that_do_not_overlap():
    x, y = (pictures(2, 1, 12, 40, seed).double() / 2 + 0.5 for seed in (0, 1))
    each = [
        dssim_of(
            *(z[b, 0, 4 * i : 4 * i + 4, 16 * j : 16 * j + 16] for z in (x, y))
        )
        for b in range(2) for i in range(3) for j in range(2)
    ]  # fmt: skip
    assert float(patch_dssim(x.float(), y.float())) == pytest.approx(
        sum(each) / len(each), rel=1e-4
    )
    assert float(patch_dssim(x, x)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="patches of 4 x 16"):
        patch_dssim(x[..., :15], y[..., :15])


def test_losses():
    method, batch = TIR2Lab(small(dropout=0.0), {"ab": 3.0, "dssim": 5.0}), pairs(2, SIZE)
    found = method.networks["generator"](batch.thermal, lab=True).detach()
    ((optimiser, losses),) = method.training_step(batch, StepContext(0, 0, 1))
    assert optimiser == "generator" and set(losses) == {"ab", "dssim"}
    truth = torch.tensor(color.rgb2lab(batch.visible.double().numpy() / 2 + 0.5, channel_axis=1))
    a, b = (truth[:, 1] + 87) / 185, (truth[:, 2] + 108) / 203
    want = ((found[:, 1] - a).abs().mean() + (found[:, 2] - b).abs().mean()) / 2
    losses = {name: float(loss.detach()) for name, loss in losses.items()}
    assert losses["ab"] == pytest.approx(3 * float(want), rel=1e-3)
    want = float(patch_dssim(found[:, :1], truth[:, :1].float() / 100))
    assert losses["dssim"] == pytest.approx(5 * want, rel=1e-3)


@pytest.mark.parametrize("options", [{}, {"faithful": True, "rows": SIZE}], ids=str)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_step_gives_every_parameter_a_gradient(options, batch_size):
    train(TIR2Lab(small(**options), LOSSES), pairs(batch_size, SIZE))


def test_gradients_reach_the_network_through_rgb():
    network = small()
    (network(pictures(2, 1, 32, 32)) - 0.5).abs().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert network.last.weight.grad.flatten(1).abs().sum(dim=1).min() > 0


def test_it_learns_a_batch():
    history = train(TIR2Lab(small(dropout=0.0), LOSSES), pairs(2, SIZE), 60, rate=1e-2)
    assert (
        history[-1]["ab"] < 0.5 * history[0]["ab"]
        and history[-1]["dssim"] < 0.6 * history[0]["dssim"]
    )


def test_unknown_loss_raises():
    with pytest.raises(ValueError, match="unknown loss l1; expected some of ab, dssim"):
        TIR2Lab(small(), {"l1": 1.0})


def test_configuration_is_the_papers():
    recipe = yaml.safe_load((Path(__file__).parents[2] / "configs" / "tir2lab.yaml").read_text())
    with torch.device("meta"):
        assert count(build_network(recipe["model"])) == 1_462_275
    assert recipe["losses"] == TIR2Lab.LOSSES == {"ab": 0.5, "dssim": 0.5}
    assert (recipe["epochs"], recipe["batch_size"], recipe["optimiser"]) == (100, 8, "adam")
    assert (recipe["learning_rate"], recipe["schedule"], recipe["ema"]) == (1e-3, "constant", 0.0)
