"""The residual blocks' own gradients (ops/block.py) against float64 autograd of the separate
operators.

The Triton kernels run in Triton's interpreter on the CPU where Triton is installed, and as they are
on a CUDA device.
"""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
import torch.nn.functional as F
from test_inference_ops import statistics_of
from test_ops import LAYOUTS, interpreted, relative

from cmmfnet.nn import blocks as layers
from cmmfnet.nn import fast as ops
from cmmfnet.nn.blocks import ConvFFN, Downsample, LargeKernelBlock, large_kernel_stage
from cmmfnet.nn.fast import enlarge

triton = importlib.util.find_spec("triton") is not None
cuda = pytest.mark.skipif(
    not torch.cuda.is_available() or not triton, reason="needs a CUDA device and Triton"
)
KINDS = {"large kernel": lambda channels: LargeKernelBlock(channels, 5), "feed-forward": ConvFFN}


def operands(kind, shape, dtype, device):
    """A block, and for planes of mean 3 and deviation 2 its input and its output's gradient."""
    torch.manual_seed(4)
    block = KINDS[kind](shape[1]).to(device)
    x, dy = (torch.randn(shape) * 2 + 3).to(device, dtype), torch.randn(shape).to(device, dtype)
    return block, x, dy


def block_errors(kind, shape, dtype, device="cpu", layout="contiguous"):
    """Relative errors: of the output, of its planes' mean and scale, of x's gradient less that of
    the residual, of all weights' gradients; the gradients of biases before norms are zero."""
    block, x, dy = operands(kind, shape, dtype, device)
    x, dy = LAYOUTS[layout](x), LAYOUTS[layout](dy)
    exact, exact_x = copy.deepcopy(block).cpu().double(), x.double().cpu().requires_grad_()
    want = exact(exact_x)
    want.backward(dy.double().cpu())
    x.requires_grad_()
    y, after = block.with_statistics(x, statistics_of(x.detach()))
    assert (y.shape, y.dtype) == (x.shape, dtype)
    y.backward(dy)
    found = [
        relative(y.cpu(), want),
        *(relative(a, b) for a, b in zip(after, statistics_of(y.detach()), strict=True)),
    ]
    found.append(relative((x.grad - dy).cpu(), exact_x.grad - dy.double().cpu()))
    for (name, p), q in zip(block.named_parameters(), exact.parameters(), strict=True):
        assert p.grad.dtype == torch.float32 and p.grad.is_contiguous()
        if name.endswith("bias") and "depthwise" not in name:
            assert not p.grad.any()
        else:
            found.append(relative(p.grad.cpu(), q.grad))
    return found


def doubled_errors(shape, dtype, device="cpu", layout="contiguous", function=ops.double):
    """Of the doubled map and the gradient, which has the input's order."""
    torch.manual_seed(6)
    x = LAYOUTS[layout](torch.randn(shape).to(device, dtype)).detach().requires_grad_()
    exact = x.detach().double().requires_grad_()
    y, want = function(x), F.interpolate(exact, scale_factor=2, mode="nearest")
    assert y.is_contiguous(memory_format=torch.channels_last) and y.dtype == dtype
    found = []
    for order in LAYOUTS.values():
        dy = order(torch.randn(y.shape).to(device, dtype))
        (dx,) = torch.autograd.grad(y, x, dy, retain_graph=True)
        assert dx.is_contiguous() == x.is_contiguous() or layout in ("transposed", "sliced")
        found.append(
            relative(dx, torch.autograd.grad(want, exact, dy.double(), retain_graph=True)[0])
        )
    return [relative(y, want), *found]


DOUBLED = [(2, 3, 5, 7), (1, 64, 4, 8), (2, 70, 3, 4)]


def stage_error():
    """Of the gradients by a whole stage, whose blocks hand their statistics on, as if its input
    were on a GPU."""
    torch.manual_seed(5)
    stage = large_kernel_stage(64, 1, 5)
    exact = copy.deepcopy(stage).double()
    x, dy = torch.randn(1, 64, 6, 8, requires_grad=True), torch.randn(1, 64, 6, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "serves_training", lambda x: True)
        found = torch.autograd.grad(stage(x.exp()), [x, *stage.parameters()], dy)
    x = x.detach().double().requires_grad_()
    wanted = torch.autograd.grad(exact(x.exp()), [x, *exact.parameters()], dy.double())
    return max(relative(a, b) for a, b in zip(found, wanted, strict=True) if a.any())


_INTERPRETED = """
import json, sys
import torch
sys.path.insert(0, {tests!r})
import test_block_ops as t
import cmmfnet.nn.fast.enlarge

torch.library.opcheck(torch.ops.cmmfnet.doubled.default, (torch.randn(2, 3, 4, 5, requires_grad=True),))
last = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
torch.library.opcheck(torch.ops.cmmfnet.reordered.default, (last, False))
assert torch.equal(torch.ops.cmmfnet.reordered(last, False), last)
flat = torch.randn(2, 70, 6, 5).requires_grad_()
torch.library.opcheck(torch.ops.cmmfnet.reordered.default, (flat, True))
turned = torch.ops.cmmfnet.reordered(flat, True)
assert torch.equal(turned, flat) and turned.is_contiguous(memory_format=torch.channels_last)
(back,) = torch.autograd.grad(turned, flat, turned.detach() + 1)
assert back.is_contiguous() and torch.equal(back, flat + 1)
torch.library.opcheck(torch.ops.cmmfnet.doubled_backward.default, (torch.randn(2, 3, 4, 6), True))

print(json.dumps({{
    "32 bits": [t.block_errors(kind, (2, 64, 5, 14), torch.float32) for kind in t.KINDS],
    "16 bits": [t.block_errors(kind, (1, 64, 8, 16), torch.float16, layout="channels last") for kind in t.KINDS]
    + [t.block_errors("feed-forward", (1, 128, 4, 9), torch.float16)],
    "stage": t.stage_error(),
    "doubled": [t.doubled_errors(s, torch.float32, layout=l, function=torch.ops.cmmfnet.doubled)
                for s in t.DOUBLED for l in t.LAYOUTS],
}}))
"""


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="the kernels run on the GPU itself in the tests below"
)
@pytest.mark.skipif(not triton, reason="Triton is not installed")
def test_gradients_of_blocks_in_the_interpreter():
    found = interpreted(_INTERPRETED)
    assert max(map(max, found["32 bits"])) < 2e-5  # in the feed-forward GELU is that for 16 bits
    assert max(map(max, found["16 bits"])) < 3e-3
    assert found["stage"] < 2e-5
    assert max(map(max, found["doubled"])) < 1e-6


@cuda
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape",
                         [(2, 64, 20, 21), (1, 128, 40, 24), (3, 64, 1, 9), (2, 64, 128, 128), (1, 64, 130, 140)],
                         ids=str)  # fmt: skip
def test_gradients_of_blocks_on_cuda(kind, shape):
    assert max(block_errors(kind, shape, torch.float16, "cuda")) < 5e-3
    assert max(block_errors(kind, shape, torch.bfloat16, "cuda")) < 3e-2


@cuda
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_blocks_on_cuda_in_any_order(kind, layout):
    assert max(block_errors(kind, (2, 64, 24, 16), torch.bfloat16, "cuda", layout)) < 3e-2


@cuda
def test_a_stage_trains_by_its_own_gradients_on_cuda():
    """They are what runs, give what autograd of the separate operators gives, and the same from run
    to run."""
    stage = large_kernel_stage(64, 2, 13).cuda()
    x, dy = (torch.randn(2, 64, 40, 48, device="cuda", dtype=torch.bfloat16) for _ in range(2))

    def run(dtype, enabled):
        given = x.to(dtype).requires_grad_()
        with torch.autocast("cuda", torch.bfloat16, enabled=enabled):
            y = stage(given)
        return [y, *torch.autograd.grad(y, [given, *stage.parameters()], dy.to(dtype))]

    first = run(torch.bfloat16, True)
    assert "FeedForward" in first[0].grad_fn.name()
    assert all(torch.equal(a, b) for a, b in zip(first, run(torch.bfloat16, True), strict=True))
    for a, b in zip(first, run(torch.float32, False), strict=True):
        assert a.shape == b.shape and (relative(a, b) < 4e-2 or not a.any())


@cuda
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", DOUBLED, ids=str)
def test_doubled_maps_on_cuda(shape, layout):
    assert max(doubled_errors(shape, torch.bfloat16, "cuda", layout)) < 1e-2


@cuda
def test_a_map_put_in_order_on_cuda():
    x = torch.randn(2, 70, 9, 5, device="cuda", dtype=torch.bfloat16).contiguous(
        memory_format=torch.channels_last
    )
    y, dy = (
        ops.plain(x.requires_grad_()),
        torch.randn(2, 70, 9, 5, device="cuda", dtype=torch.bfloat16),
    )
    (dx,) = torch.autograd.grad(y, x, dy)
    assert y.is_contiguous() and torch.equal(y, x)
    assert dx.is_contiguous(memory_format=torch.channels_last) and torch.equal(dx, dy)
    turned = ops.for_convolution(x.detach().contiguous().requires_grad_())
    assert turned.is_contiguous(memory_format=torch.channels_last) and torch.equal(turned, x)
    with torch.no_grad():
        assert ops.for_convolution(y) is y


@cuda
def test_a_downsampling_trains_as_by_separate_operators_on_cuda(monkeypatch):
    layer, x = Downsample(64, 128).cuda(), torch.randn(2, 64, 48, 40, device="cuda")
    dy = torch.randn(2, 128, 24, 20, device="cuda")

    def run(dtype):
        given = x.to(dtype).requires_grad_()
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype != torch.float32):
            y = layer(given)
        return [y, *torch.autograd.grad(y, [given, *layer.parameters()], dy.to(y.dtype))]

    found, exact = run(torch.bfloat16), run(torch.float32)
    monkeypatch.setattr(enlarge, "triton", None)
    for a, b, c in zip(found, run(torch.bfloat16), exact, strict=True):
        assert a.shape == c.shape and (relative(a, c) < 1.5 * relative(b, c) + 2e-3 or not a.any())
