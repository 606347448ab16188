"""A U-Net's first and last layer in training (ops/widening_gradient.py, ops/last.py) against
float64 autograd.

The Triton kernels run in Triton's interpreter on the CPU where Triton is installed, and as they are
on a CUDA device.
"""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
import torch.nn.functional as F
from test_graphed import LEARNED
from test_ops import LAYOUTS, interpreted, norm_reference, relative

from cmmfnet.methods import build_network
from cmmfnet.nn.blocks import Downsample
from cmmfnet.nn.fast import last, widening_gradient

triton = importlib.util.find_spec("triton") is not None
cuda = pytest.mark.skipif(
    not torch.cuda.is_available() or not triton, reason="needs a CUDA device and Triton"
)

# input, outputs: one pixel a program less or more, several parts of a picture, channels that are no
# whole number of columns
WIDENED = [
    ((2, 1, 9, 7), 64),
    ((1, 2, 20, 33), 64),
    ((3, 2, 5, 5), 70),
    ((1, 1, 130, 127), 16),
    ((2, 2, 80, 90), 128),
]
# map, colours: one row or column; no whole number of tiles; more columns than a program has, more
# rows
LAST = [
    ((2, 64, 9, 17), 3),
    ((1, 32, 35, 130), 3),
    ((1, 64, 1, 1), 1),
    ((1, 32, 3, 150), 2),
    ((3, 128, 40, 5), 3),
]


def widened(shape, outputs, dtype=torch.float32, device="cpu"):
    """A frame whose channels go together, as with local contrast; a float32 weight and bias, as
    leaves; the output's gradient."""
    generator = torch.Generator().manual_seed(8)
    x = torch.randn(shape, generator=generator) * 0.3 - 0.4
    x[:, -1] += x[:, 0]
    weight, bias = (
        torch.randn(s, generator=generator) for s in ((outputs, shape[1], 1, 1), (outputs,))
    )
    dy = torch.randn((shape[0], outputs, *shape[2:]), generator=generator)
    return (
        x.to(device, dtype),
        weight.to(device).requires_grad_(),
        bias.to(device).requires_grad_(),
        dy.to(device, dtype),
    )


def widened_errors(shape, outputs, dtype=torch.float32, device="cpu", layout="channels last"):
    """Relative errors of the map and of the weight's gradient; the bias's is zero."""
    x, weight, bias, dy = widened(shape, outputs, dtype, device)
    y = widening_gradient.widen_with_gradient(x, weight, bias)
    assert (y.shape, y.dtype) == (dy.shape, dtype) and y.is_contiguous(
        memory_format=torch.channels_last
    )
    dw, zero = torch.autograd.grad(y, (weight, bias), LAYOUTS[layout](dy))
    assert (dw.shape, dw.dtype) == (weight.shape, weight.dtype) and not zero.any()
    exact = weight.detach().double().requires_grad_()
    want = norm_reference(F.conv2d(x.double(), exact), True)
    return [relative(y, want), relative(dw, torch.autograd.grad(want, exact, dy.double())[0])]


def last_operands(shape, colours, dtype=torch.float32, device="cpu"):
    """Map, bias, and the convolution's weight and bias, as leaves, the last three in float32; the
    colours' gradient."""
    generator = torch.Generator().manual_seed(9)
    sizes = [
        shape,
        (shape[1],),
        (colours, shape[1], 3, 3),
        (colours,),
        (shape[0], colours, *shape[2:]),
    ]
    u, bias, weight, last_bias, dy = (torch.randn(s, generator=generator).to(device) for s in sizes)
    leaves = [t.requires_grad_() for t in (u.to(dtype), bias, weight / shape[1] ** 0.5, last_bias)]
    return leaves, dy.to(dtype)


def last_errors(shape, colours, dtype=torch.float32, device="cpu", layout="channels last"):
    """Relative errors of the colours and of the gradients of map, bias, weight, and last bias."""
    leaves, dy = last_operands(shape, colours, dtype, device)
    u = LAYOUTS[layout](leaves[0].detach()).requires_grad_()
    leaves = [u, *(t.detach().requires_grad_() for t in leaves[1:])]
    y = last.gelu_convolve(*leaves)
    assert (y.shape, y.dtype) == (dy.shape, dtype) and y.is_contiguous()
    found = torch.autograd.grad(y, leaves, LAYOUTS[layout](dy))
    assert all((a.shape, a.dtype) == (b.shape, b.dtype) for a, b in zip(found, leaves, strict=True))
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    exact = [t.detach().double().requires_grad_() for t in leaves]
    want = F.conv2d(F.gelu(exact[0] + exact[1][:, None, None]), exact[2], exact[3], padding=1)
    wanted = torch.autograd.grad(want, exact, dy.double())
    return [relative(a, b) for a, b in zip((y, *found), (want, *wanted), strict=True)]


_INTERPRETED = """
import json, sys
import torch
sys.path.insert(0, {tests!r})
import test_end_ops as t

flat = torch.full((1, 2, 9, 7), 0.7)
print(json.dumps({{
    "widened": [t.widened_errors(*s, d) for d in (torch.float32, torch.float16) for s in t.WIDENED[:4]]
    + [t.widened_errors(*t.WIDENED[0], layout=l) for l in t.LAYOUTS],
    "flat": float(t.widening_gradient.widen_with_gradient(flat, torch.randn(64, 2, 1, 1), torch.zeros(64)).abs().max()),
    "last": [t.last_errors(*s) for s in t.LAST] + [t.last_errors(*t.LAST[0], layout=l) for l in t.LAYOUTS],
    "16 bits": [t.last_errors(*s, torch.float16) for s in t.LAST[:2]],
}}))
"""


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="the kernels run on the GPU itself in the tests below"
)
@pytest.mark.skipif(not triton, reason="Triton is not installed")
def test_both_ends_in_the_interpreter():
    found = interpreted(_INTERPRETED)
    assert (
        max(y for y, _ in found["widened"]) < 5e-4 and max(dw for _, dw in found["widened"]) < 2e-4
    )  # GELU for 16 bits
    assert found["flat"] < 1e-3
    assert max(map(max, found["last"])) < 1e-5
    assert max(map(max, found["16 bits"])) < 1e-3


def test_no_kernel_serves_the_cpu():
    inner, outer = torch.nn.Conv2d(64, 64, 3, padding=1), torch.nn.Conv2d(64, 3, 3, padding=1)
    assert not widening_gradient.serves_widen_with_gradient(
        torch.zeros(1, 1, 8, 8, dtype=torch.bfloat16)
    )
    assert not last.serves_last(torch.zeros(1, 64, 8, 8, dtype=torch.bfloat16), inner, outer)


@cuda
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "outputs"), [*WIDENED, ((2, 1, 256, 256), 64)], ids=str)
def test_the_first_layer_and_its_gradient_on_cuda(shape, outputs, layout):
    assert max(widened_errors(shape, outputs, torch.bfloat16, "cuda", layout)) < 1e-2
    assert max(widened_errors(shape, outputs, torch.float16, "cuda", layout)) < 2e-3


@cuda
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "colours"), [*LAST, ((2, 64, 130, 256), 3)], ids=str)
def test_the_last_layer_and_its_gradients_on_cuda(shape, colours, layout):
    assert max(last_errors(shape, colours, torch.bfloat16, "cuda", layout)) < 1e-2
    assert max(last_errors(shape, colours, torch.float16, "cuda", layout)) < 2e-3


@cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_float32_frame_under_autocast_gives_a_map_of_its_dtype(dtype):
    x, weight, bias, _ = widened((2, 2, 24, 40), 64, device="cuda")
    with torch.autocast("cuda", dtype):
        assert widening_gradient.serves_widen_with_gradient(x)
        y = widening_gradient.widen_with_gradient(x, weight.to(dtype), bias)
    assert (
        y.dtype == dtype
        and relative(y, norm_reference(F.conv2d(x.double(), weight.to(dtype).double()), True))
        < 1e-2
    )
    assert not widening_gradient.serves_widen_with_gradient(x)
    with torch.autocast("cuda", dtype):
        assert not widening_gradient.serves_widen_with_gradient(x.requires_grad_())


@cuda
def test_a_downsampling_of_two_channels_trains_as_by_separate_operators_on_cuda(monkeypatch):
    layer, x = Downsample(2, 64).cuda(), torch.randn(2, 2, 48, 40, device="cuda")
    dy = torch.randn(2, 64, 24, 20, device="cuda")

    def run(dtype):
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            y = layer(x)
        return [y, *torch.autograd.grad(y, list(layer.parameters()), dy.to(y.dtype))]

    found, exact = run(torch.bfloat16), run(torch.float32)
    for a, b in zip(found, exact, strict=True):
        assert a.shape == b.shape and (relative(a, b) < 2e-2 or not a.any())
    monkeypatch.setattr(widening_gradient, "triton", None)
    assert relative(found[0], run(torch.bfloat16)[0]) < 2e-2


@cuda
def test_both_ends_are_equal_from_run_to_run_on_cuda():
    x, weight, bias, dy = widened((3, 1, 120, 136), 64, torch.bfloat16, "cuda")
    leaves, d_colours = last_operands((3, 64, 120, 136), 3, torch.bfloat16, "cuda")

    def run():
        y, z = widening_gradient.widen_with_gradient(x, weight, bias), last.gelu_convolve(*leaves)
        return [
            y,
            z,
            *torch.autograd.grad(y, weight, dy),
            *torch.autograd.grad(z, leaves, d_colours),
        ]

    first = run()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


@cuda
@pytest.mark.parametrize("contrast", [False, True])
def test_a_network_trains_by_both_ends_no_less_exactly_than_by_separate_operators_on_cuda(
    contrast, monkeypatch
):
    network = (
        build_network(LEARNED | dict(channels=(64, 128, 128), local_contrast=contrast))
        .cuda()
        .train()
    )
    x, names = (
        torch.rand(2, 1, 96, 64, device="cuda") * 2 - 1,
        [n for n, p in network.named_parameters() if p.requires_grad],
    )

    def run(dtype):
        other = copy.deepcopy(network)
        with (
            torch.autocast("cuda", dtype, enabled=dtype != torch.float32),
            torch.profiler.profile() as profile,
        ):
            y = other(x)
        of = [p for p in other.parameters() if p.requires_grad]
        found = torch.autograd.grad(y.float().square().mean(), of, allow_unused=True)
        ours = {"_Widen", "_GeluConvolve"} <= {event.key for event in profile.key_averages()}
        return y.detach(), dict(zip(names, found, strict=True)), ours

    y, ours, by_kernels = run(torch.bfloat16)
    want, exact, _ = run(torch.float32)
    for module in (last, widening_gradient):
        monkeypatch.setattr(module, "triton", None)
    before, theirs, neither = run(torch.bfloat16)
    assert by_kernels and not neither
    assert relative(y, want) < 1.5 * relative(before, want) + 1e-3
    for name, d in exact.items():
        error = 1.0 if d is None else relative(theirs[name], d)
        if (
            error < 0.2
        ):  # some, of keys' biases and of one channel's scale, are nothing but rounding
            assert relative(ours[name], d) < 1.5 * error + 1e-2, name
