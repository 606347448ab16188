"""The kernels of training's losses against losses.py and perceptual.py in float64, and what an
update ends with.

They run in Triton's interpreter on the CPU where Triton is installed, and as they are on a CUDA
device.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch
from test_ops import cuda, interpreted, relative
from torch import Tensor, nn

from cmmfnet.methods.matched import Against
from cmmfnet.nn import losses, perceptual
from cmmfnet.nn.fast.distance import Convolutions, FeatureDistance
from cmmfnet.nn.fast.graphed import Graphed
from cmmfnet.nn.perceptual import TAPS, feature_layers, tapped
from cmmfnet.training.averaging import EMA, Readings

# one window; less than a tile; several tiles, no whole number of them
PICTURES = [(1, 2, 11, 13), (2, 1, 54, 64), (1, 1, 120, 111)]
MAPS = [(2, 3, 16, 24), (1, 3, 21, 27)]  # sides that pools halve, and some that they do not
NAMES = ("l1", "perceptual", "tv", "ssim")


def pictures(shape, dtype=torch.float32, device="cpu"):
    """Two that resemble each other a little, in [-1,1]; the first is a leaf. A part of both is flat
    and equal, a part black."""
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(shape, generator=generator) * 2 - 1
    y = 0.6 * x + 0.4 * (torch.rand(shape, generator=generator) * 2 - 1)
    x[..., :4], y[..., :4] = 0.25, 0.25
    x[..., -4:] = -1
    return x.to(device, dtype).requires_grad_(), y.to(device)


def in_float64(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The formulas of losses.py, which are in float32, in float64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)
        line = losses._gaussian(11, 1.5, torch.device("cpu")).double()
        exact = torch.exp(-(torch.arange(11, dtype=torch.float64) - 5).square() / 4.5)
        assert relative(line, exact / exact.sum()) < 1e-6
        patch.setattr(losses, "_gaussian", lambda *_: exact / exact.sum())
        return losses.l1(x, y), losses.total_variation(x), losses.ssim(x, y)


def picture_errors(shape, dtype=torch.float32, device="cpu") -> list[float]:
    """Relative errors of the three values and of the gradient of their weighted sum."""
    from cmmfnet.nn.fast.pictures import picture_losses

    x, y = pictures(shape, dtype, device)
    found, exact = picture_losses(x, y), x.detach().cpu().double().requires_grad_()
    wanted = in_float64(exact, y.cpu().double())
    weights = 0.7, 0.3, -1.1
    of = [sum(w * v for w, v in zip(weights, values, strict=True)) for values in (found, wanted)]
    assert of[0].dtype == torch.float32
    (dx,), (want,) = torch.autograd.grad(of[0], x), torch.autograd.grad(of[1], exact)
    assert dx.dtype == dtype
    return [
        *(relative(a.cpu(), b) for a, b in zip(found, wanted, strict=True)),
        relative(dx.cpu(), want),
    ]


def narrow(name="vgg16", first=4) -> nn.Sequential:
    """VGG's convolutions with 1/16 of their channels, but ``first`` of the first one, and random
    weights."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            perceptual._VGG,
            name,
            [first, *(c if c == "M" else c // 16 for c in perceptual._VGG[name][1:])],
        )
        layers = feature_layers(name)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.normal_(layer.bias, std=0.1)
    return layers.requires_grad_(False).eval()


SHIFT, SCALE = (
    torch.tensor([-0.1, 0.2, 0.1]).view(3, 1, 1),
    torch.tensor([0.5, 0.4, 0.8]).view(3, 1, 1),
)


def distance_errors(name, shape, dtype=torch.float32, device="cpu", first=4) -> list[float]:
    """Relative errors of the distance and of the gradient of a weighted sum over pictures."""
    layers, taps = narrow(name, first), TAPS[name]["family"]
    x, y = (torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    exact, x = x.double().requires_grad_(), x.to(device).requires_grad_()
    weights = torch.rand(shape[0])
    network = Convolutions(layers.to(device), taps, SHIFT.to(device), SCALE.to(device), dtype)
    assert (network.entry is not None) == (dtype != torch.float32 and first == 64)
    found = FeatureDistance.apply(x, y.to(device), network)
    whole = layers.cpu().double()[: max(taps) + 1]
    maps = [
        tapped(whole, (p - SHIFT.double()) / SCALE.double(), taps)[1] for p in (exact, y.double())
    ]
    wanted = sum((a - b).abs().mean(dim=(1, 2, 3)) for a, b in zip(*maps, strict=True))
    (dx,) = torch.autograd.grad((found * weights.to(device)).sum(), x)
    (want,) = torch.autograd.grad((wanted * weights.double()).sum(), exact)
    return [relative(found.cpu(), wanted), relative(dx.cpu(), want)]


def entry_errors(shape, dtype, device="cpu") -> list[float]:
    """Relative errors of the first convolution's map and of its gradient."""
    from cmmfnet.nn.fast.entry import Entry

    layer = nn.Conv2d(3, 64, 3, padding=1).requires_grad_(False).to(device)
    entry = Entry(layer.weight, layer.bias, SHIFT.to(device), SCALE.to(device), dtype)
    x, _ = pictures(shape, device=device)
    y = torch.empty(
        (len(x), 64, *x.shape[2:]), dtype=dtype, device=device, memory_format=torch.channels_last
    )
    entry(x.detach(), y)
    dy = torch.randn(y.shape, dtype=dtype, device=device)
    layer, exact = (
        layer.cpu().double(),
        (x.detach().cpu().double() - SHIFT.double()) / SCALE.double(),
    )
    want = nn.functional.relu(layer(exact))
    through = (
        torch.where(y > 0, dy, 0).cpu().double()
    )  # in 16 bits a few results near zero are on its other side
    wanted = nn.functional.conv_transpose2d(through, layer.weight, padding=1) / SCALE.double()
    return [relative(y.cpu(), want), relative(entry.backward(dy, y).cpu(), wanted)]


_INTERPRETED = """
import json, sys
import torch
sys.path.insert(0, {tests!r})
import test_training_ops as t
import cmmfnet.nn.fast.pictures

x, y = t.pictures((1, 1, 12, 14))
torch.library.opcheck(torch.ops.cmmfnet.picture_losses.default, (x, y))
_, maps = torch.ops.cmmfnet.picture_losses(x.detach(), y)
torch.library.opcheck(torch.ops.cmmfnet.picture_losses_backward.default, (torch.rand(3), x.detach(), y, maps))
print(json.dumps({{
    "pictures": [t.picture_errors(s) for s in t.PICTURES],
    "16 bits": t.picture_errors(t.PICTURES[1], torch.float16),
    "entry": [e for s in [(1, 3, 11, 18), (2, 3, 7, 40)] for e in t.entry_errors(s, torch.float16)],
    "distance in 16 bits": t.distance_errors("vgg16", (1, 3, 16, 24), torch.float16, first=64),
    "distance": [t.distance_errors(n, s) for n in ("vgg16", "vgg19") for s in t.MAPS],
}}))
"""


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="the kernels run on the GPU itself in the tests below"
)
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_of_the_losses_in_the_interpreter():
    found = interpreted(_INTERPRETED)
    assert len(found["pictures"]) == 3 and max(map(max, found["pictures"])) < 1e-6
    assert max(found["16 bits"][:3]) < 1e-6 and found["16 bits"][3] < 5e-4
    assert len(found["entry"]) == 4 and max(found["entry"]) < 2e-3
    assert (
        found["distance in 16 bits"][0] < 2e-3 and found["distance in 16 bits"][1] < 0.2
    )  # signs and pools turn over
    assert len(found["distance"]) == 4 and max(map(max, found["distance"])) < 1e-6


@cuda
@pytest.mark.parametrize("shape", [*PICTURES, (2, 3, 256, 256)], ids=str)
def test_picture_losses_on_cuda(shape):
    assert max(picture_errors(shape, device="cuda")) < 1e-5
    errors = picture_errors(shape, torch.bfloat16, "cuda")
    assert max(errors[:3]) < 1e-5 and errors[3] < 5e-3


@cuda
@pytest.mark.parametrize("shape", MAPS, ids=str)
@pytest.mark.parametrize("name", ["vgg16", "vgg19"])
def test_distance_on_cuda(name, shape):
    with torch.backends.cudnn.flags(allow_tf32=False):
        assert max(distance_errors(name, shape, device="cuda")) < 1e-4
    for first in (4, 64):
        assert distance_errors(name, shape, torch.bfloat16, "cuda", first)[0] < 2e-2


@cuda
def test_first_convolution_on_cuda():
    for shape in [(1, 3, 11, 18), (2, 3, 64, 96)]:
        assert max(entry_errors(shape, torch.bfloat16, "cuda")) < 1e-2


@cuda
def test_losses_as_a_graph_on_cuda_are_the_same_and_equal_from_run_to_run(monkeypatch):
    monkeypatch.setattr(perceptual, "load_features", lambda name, folder: narrow(first=64))
    distance = perceptual.Perceptual("vgg16", "l1")
    against = Against(NAMES, distance.cuda())
    x, y = pictures((2, 3, 64, 80), torch.bfloat16, "cuda")
    graphed, results = Graphed(against), []
    for network in (against, against, graphed, graphed, graphed):
        with torch.autocast("cuda", torch.bfloat16):
            found = network(x, y)
        (dx,) = torch.autograd.grad(sum(found.values()) * 0.5, x)
        results.append([*(found[name].detach().clone() for name in NAMES), dx.clone()])
    assert graphed.captured
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    exact = in_float64(*(p.detach().cpu().double() for p in (x, y)))
    assert relative(results[0][3].cpu(), 1 - exact[2]) < 1e-5


def test_losses_against_the_truth_come_in_one_order_and_only_those_asked_for():
    x, y = pictures((1, 3, 16, 16))
    found = Against(
        {"ssim", "tv", "l1", "perceptual"}, lambda a, b: (a - b).square().mean(dim=(1, 2, 3))
    )(x, y)
    assert list(found) == list(NAMES)
    assert list(Against({"tv"}, None)(x, y)) == ["tv"] and Against((), None)(x, y) == {}
    part = Against({"perceptual"}, lambda a, b: (a - b).abs().mean(dim=(1, 2, 3)))(
        x, y, x[..., :2], y[..., :2]
    )
    assert torch.equal(part["perceptual"], (x - y)[..., :2].abs().mean())


def test_average_follows_parameters_and_buffers():
    network = nn.BatchNorm2d(3)
    average = EMA(network, 0.5)
    with torch.no_grad():
        network.weight.fill_(3)
        network.running_mean.fill_(7)
        network.num_batches_tracked.fill_(2)
    average.update(network, 1000)
    assert (
        average.network.weight.tolist() == [2] * 3
        and average.network.running_mean.tolist() == [7] * 3
    )
    assert average.network.num_batches_tracked == 2


def test_readings_find_the_first_that_is_not_finite():
    readings = Readings()
    for step, value in enumerate([1.0, float("nan"), float("inf"), 2.0]):
        readings.note(step, None, {"l1": torch.tensor(1.0), "tv": torch.tensor(value)})
        assert (readings.not_finite(2) is None) == (step < 3)  # the nan is the last but two of four
    assert readings.not_finite(0)[0] == 1 and readings.not_finite(0)[0] == 1  # it stays
    assert readings.last["tv"] == 2
