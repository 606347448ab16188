"""The joined 1x1 convolution in training (ops/join_gradient.py) against float64 autograd of the two
maps put together.

Products by PyTorch are tested on the CPU; ffn.py's kernel, which makes the map of 64 or 128
channels, on a CUDA device.
"""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
import torch.nn.functional as F
from test_graphed import LEARNED
from test_ops import LAYOUTS, relative
from torch import nn

from cmmfnet.methods import build_network
from cmmfnet.nn.fast import join_gradient

cuda = pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("triton") is None,
    reason="needs a CUDA device and Triton",
)
SHAPES = [
    ((2, 8, 5, 7), 8),
    ((3, 16, 12, 10), 24),
    ((1, 4, 1, 1), 6),
    ((2, 1, 3, 4), 2),
]  # of a map; outputs


def operands(shape, outputs, dtype, device="cpu"):
    """Two maps, and in float32 weight, bias and the first map's bias; the gradient of the
    output."""
    generator = torch.Generator().manual_seed(11)
    channels = shape[1]
    sizes = [
        shape,
        shape,
        (outputs, 2 * channels, 1, 1),
        (outputs,),
        (channels,),
        (shape[0], outputs, *shape[2:]),
    ]
    x, skip, weight, bias, x_bias, dy = (
        torch.randn(s, generator=generator).to(device) for s in sizes
    )
    parameters = [weight / (2 * channels) ** 0.5, bias, x_bias]
    if dtype == torch.float64:
        parameters = [p.double() for p in parameters]
    return [x.to(dtype), skip.to(dtype), *parameters], dy.to(dtype)


def reference(leaves, with_bias):
    x, skip, weight, bias, x_bias = leaves
    x = x + x_bias[:, None, None] if with_bias else x
    return F.conv2d(torch.cat([x, skip], dim=1), weight, bias)


def errors(
    shape,
    outputs,
    dtype,
    device="cpu",
    layouts=("channels last", "contiguous", "contiguous"),
    with_bias=True,
):
    """Relative errors of the map and of the gradients of maps, weight, bias and, ``with_bias``, the
    first map's; and those of PyTorch's operators."""
    given, dy = operands(shape, outputs, dtype, device)
    given[:2] = [LAYOUTS[layout](t) for t, layout in zip(given[:2], layouts, strict=False)]
    given = given if with_bias else given[:4]
    dy = LAYOUTS[layouts[2]](dy)

    def run(function, operands, dy):
        leaves = [t.detach().requires_grad_() for t in operands]
        y = function(*leaves)
        return leaves, [y, *torch.autograd.grad(y, leaves, dy)]

    leaves, found = run(join_gradient.join_with_gradient, given, dy)
    assert found[0].is_contiguous() and found[0].dtype == dtype
    for leaf, d in zip(leaves, found[1:], strict=True):
        assert (d.shape, d.dtype) == (leaf.shape, leaf.dtype)
    for leaf, d in zip(leaves[:2], found[1:3], strict=True):  # in the order of its map
        assert not leaf.is_contiguous() or d.is_contiguous()
        last = leaf.is_contiguous(memory_format=torch.channels_last)
        assert not last or d.is_contiguous(memory_format=torch.channels_last)

    def exactly(*leaves):
        return reference((*leaves, None)[:5], with_bias)

    _, want = run(exactly, [t.double() for t in given], dy.double())
    _, theirs = run(lambda *given: exactly(*(t.to(dtype) for t in given)), given, dy)
    return [[relative(a, b) for a, b in zip(of, want, strict=True)] for of in (found, theirs)]


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "outputs"), SHAPES, ids=str)
def test_values_and_gradients_in_float64(shape, outputs, layout, with_bias):
    for layouts in ((layout, "contiguous", "sliced"), ("contiguous", layout, layout)):
        # sums for the biases are in float32
        assert (
            max(errors(shape, outputs, torch.float64, layouts=layouts, with_bias=with_bias)[0])
            < 1e-6
        )


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_values_and_gradients_in_16_bits_are_no_worse_than_of_separate_operators(dtype, with_bias):
    ours, theirs = errors((6, 64, 16, 24), 64, dtype, with_bias=with_bias)
    assert all(a < 1.2 * b + 1e-5 for a, b in zip(ours, theirs, strict=True)), (ours, theirs)


def test_gradients_that_nobody_wants_are_not_made():
    (x, skip, weight, bias, x_bias), dy = operands((2, 8, 5, 7), 8, torch.float32)
    y = join_gradient.join_with_gradient(x, skip, weight.requires_grad_(), bias, x_bias)
    (dw,) = torch.autograd.grad(y, weight, dy)
    exact = weight.detach().requires_grad_()
    (want,) = torch.autograd.grad(reference((x, skip, exact, bias, x_bias), True), exact, dy)
    assert relative(dw, want) < 1e-6


def test_it_does_not_serve_the_cpu():
    x, layer = torch.zeros(1, 64, 8, 8, dtype=torch.bfloat16), nn.Conv2d(128, 64, 1)
    assert not join_gradient.serves_join_with_gradient(x, x, layer)


@cuda
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("shape", "outputs"),
    [
        *SHAPES,
        ((3, 64, 40, 24), 64),
        ((2, 128, 9, 7), 128),
        ((2, 256, 16, 16), 256),
        ((1, 64, 8, 8), 100),
    ],
    ids=str,
)
def test_values_and_gradients_on_cuda(shape, outputs, layout):
    for dtype in (torch.bfloat16, torch.float16):
        for with_bias in (True, False):
            ours, theirs = errors(
                shape, outputs, dtype, "cuda", (layout, "contiguous", layout), with_bias
            )
            assert all(a < 1.5 * b + 3e-3 for a, b in zip(ours, theirs, strict=True)), (
                ours,
                theirs,
            )


@cuda
def test_the_same_from_run_to_run_on_cuda():
    given, dy = operands((4, 64, 96, 80), 64, torch.bfloat16, "cuda")
    given[0] = given[0].contiguous(memory_format=torch.channels_last)
    leaves = [t.requires_grad_() for t in given]

    def run():
        y = join_gradient.join_with_gradient(*leaves)
        return [y, *torch.autograd.grad(y, leaves, dy)]

    first = run()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def gradients(network, x, dtype):
    """Colours and the gradients of all parameters, and whether maps were joined on the way."""
    other = copy.deepcopy(network)
    with (
        torch.autocast("cuda", dtype, enabled=dtype != torch.float32),
        torch.profiler.profile() as profile,
    ):
        y = other(x)
    named = [(n, p) for n, p in other.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(y.float().square().mean(), [p for _, p in named], allow_unused=True)
    joined = sum(event.count for event in profile.key_averages() if event.key == "_Join")
    return y.detach(), {n: d for (n, _), d in zip(named, found, strict=True)}, joined


def assert_no_less_exact(network, monkeypatch, switch_off):
    x = torch.rand(2, 1, 96, 64, device="cuda") * 2 - 1
    y, ours, joined = gradients(network, x, torch.bfloat16)
    want, exact, _ = gradients(network, x, torch.float32)
    switch_off(monkeypatch)
    before, theirs, not_joined = gradients(network, x, torch.bfloat16)
    assert relative(y, want) < 1.5 * relative(before, want) + 1e-3
    for name, d in exact.items():
        error = 1.0 if d is None else relative(theirs[name], d)
        if error < 0.2:  # some, of keys' biases for one, are nothing but rounding
            assert relative(ours[name], d) < 1.5 * error + 1e-2, name
    return joined, not_joined


@cuda
def test_a_network_trains_no_less_exactly_than_with_maps_put_together_on_cuda(monkeypatch):
    network = build_network(LEARNED | dict(channels=(64, 128, 256))).cuda().train()
    joined, not_joined = assert_no_less_exact(
        network, monkeypatch, lambda patch: patch.setattr(join_gradient, "triton", None)
    )
    assert (joined, not_joined) == (3, 0)
