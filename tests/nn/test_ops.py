"""Large-kernel depthwise convolution and instance normalisation: every path against float64 written
out by hand.

The Triton kernels run in Triton's interpreter on the CPU where Triton is installed, and as they are
on a CUDA device.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from cmmfnet.nn.blocks import before_norm, large_kernel_stage
from cmmfnet.nn.fast import depthwise_conv2d, instance_norm

cuda = pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("triton") is None,
    reason="needs a CUDA device and Triton",
)
# batch, channels, height, width, kernel: odd sizes, planes smaller than the kernel, more than one
# tile of 16 columns
SHAPES = [(2, 3, 20, 21, 13), (1, 2, 8, 40, 5), (2, 2, 33, 17, 31), (3, 1, 16, 16, 7),
          (1, 4, 1, 1, 9), (1, 1, 5, 3, 3),
          (1, 2, 6, 24, 17), (1, 2, 7, 48, 19)]  # fmt: skip
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "sliced": lambda x: F.pad(x, (1, 2, 3, 0))[:, :, 3:, 1:-2],
}


def depthwise_reference(x, weight, bias):
    """One shifted, zero-padded copy of the input for each weight, in float64."""
    x, weight = x.double(), weight.double()
    k, (height, width) = weight.shape[-1], x.shape[-2:]
    padded = F.pad(x, [k // 2] * 4)
    y = (
        torch.zeros_like(x)
        if bias is None
        else torch.zeros_like(x) + bias.double().view(1, -1, 1, 1)
    )
    for i in range(k):
        for j in range(k):
            y = (
                y
                + weight[:, 0, i, j].view(1, -1, 1, 1) * padded[:, :, i : i + height, j : j + width]
            )
    return y


def norm_reference(x, gelu, eps=1e-5):
    """The formula over each plane in float64; GELU is x times the normal distribution function."""
    x = x.double()
    centred = x - x.mean(dim=(2, 3), keepdim=True)
    y = centred / (centred.square().mean(dim=(2, 3), keepdim=True) + eps).sqrt()
    return y * 0.5 * (1 + torch.erf(y / math.sqrt(2))) if gelu else y


def relative(x, y):
    """Norm of the difference over the norm of the reference ``y``."""
    x, y = x.detach().double(), y.detach().double()
    return float((x - y).norm() / y.norm().clamp_min(1e-30))


def operands(shape, dtype=torch.float32, device="cpu", layout="contiguous"):
    """Input, weight, bias and output gradient, the first three as leaves."""
    b, c, h, w, k = shape
    generator = torch.Generator().manual_seed(k)
    x, weight, bias, dy = (
        torch.randn(s, generator=generator).to(device, dtype)
        for s in [(b, c, h, w), (c, 1, k, k), (c,), (b, c, h, w)]
    )
    x, dy = LAYOUTS[layout](x), LAYOUTS[layout](dy)
    return x.detach().requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), dy


def depthwise_errors(
    shape, dtype=torch.float32, device="cpu", layout="contiguous", function=depthwise_conv2d
):
    """Relative errors of the value and of the gradients to input, weight and bias."""
    x, weight, bias, dy = operands(shape, dtype, device, layout)
    y = function(x, weight, bias)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    want = depthwise_reference(x, weight, bias)
    given = (y, *torch.autograd.grad(y, (x, weight, bias), dy))
    wanted = (want, *torch.autograd.grad(want, (x, weight, bias), dy.double()))
    return [relative(a, b) for a, b in zip(given, wanted, strict=True)]


def tall_error(shape, dtype=torch.float32, device="cpu"):
    """Of the forward kernel by patches of 8 rows, as where there are many of them."""
    from cmmfnet.nn.fast import depthwise

    original = depthwise._forward_tiles
    x, weight, bias, _ = (t.detach() for t in operands(shape, dtype, device))
    try:
        depthwise._forward_tiles = lambda *_: depthwise.Tiles(8, 128, 1, 4, 3, values=4)
        return relative(depthwise._depthwise(x, weight, bias), depthwise_reference(x, weight, bias))
    finally:
        depthwise._forward_tiles = original


def norm_errors(
    shape, gelu, dtype=torch.float32, device="cpu", layout="contiguous", function=instance_norm
):
    """Largest absolute errors of the value and of the gradient, for planes of mean 5 and deviation
    3."""
    generator = torch.Generator().manual_seed(1)
    x = (
        LAYOUTS[layout]((torch.randn(shape, generator=generator) * 3 + 5).to(device, dtype))
        .detach()
        .requires_grad_()
    )
    dy = LAYOUTS[layout](torch.randn(shape, generator=generator).to(device, dtype))
    y = function(x, gelu)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    want = norm_reference(x, gelu)
    (dx,), (want_dx,) = torch.autograd.grad(y, x, dy), torch.autograd.grad(want, x, dy.double())
    return [
        float((a.detach().double() - b.detach()).abs().max()) for a, b in ((y, want), (dx, want_dx))
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_depthwise_values_and_gradients_on_the_cpu(shape, layout):
    assert max(depthwise_errors(shape, layout=layout)) < 1e-5


@pytest.mark.parametrize("kernel", range(1, 33, 2))
def test_depthwise_keeps_the_size_for_every_odd_kernel(kernel):
    x, weight, bias, _ = operands((2, 3, 7, 9, kernel))
    y = depthwise_conv2d(x, weight, bias)
    assert y.shape == x.shape
    assert relative(y, depthwise_reference(x, weight, bias)) < 1e-6


def test_depthwise_without_bias():
    x, weight, _, _ = operands((2, 3, 9, 8, 5))
    assert relative(depthwise_conv2d(x, weight), depthwise_reference(x, weight, None)) < 1e-6


def test_depthwise_with_gelu():
    x, weight, bias, _ = operands((2, 3, 9, 8, 5))
    want = F.gelu(depthwise_reference(x, weight, bias))
    assert relative(depthwise_conv2d(x, weight, bias, gelu=True), want) < 1e-6
    with torch.no_grad():
        assert relative(depthwise_conv2d(x, weight, bias, gelu=True), want) < 1e-6


def test_depthwise_of_one_lit_pixel_is_the_kernel_turned_round():
    """Correlation, not convolution: what separates a kernel from its mirror image."""
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 4] = 1
    weight = torch.arange(25.0).view(1, 1, 5, 5)
    assert torch.equal(depthwise_conv2d(x, weight)[0, 0, 2:7, 2:7], weight[0, 0].flip(0, 1))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=cuda)])
def test_a_bias_that_a_norm_takes_away_is_left_out(device):
    layer = torch.nn.Conv2d(4, 8, 3, stride=2, padding=1).to(device)
    x = torch.randn(2, 4, 6, 5, device=device, requires_grad=True)
    y = before_norm(layer, x)
    whole = layer(x)
    assert relative(y + layer.bias[:, None, None], whole) < 1e-6
    parts = x, layer.weight, layer.bias
    found = torch.autograd.grad(y.square().sum(), parts)
    expected = torch.autograd.grad(
        (whole - layer.bias.detach()[:, None, None]).square().sum(), parts
    )
    assert all(relative(a, b) < 1e-6 for a, b in zip(found[:2], expected[:2], strict=True))
    assert torch.equal(
        found[2], torch.zeros(8, device=device)
    )  # its effect is gone with the norm, for DDP it has one
    if device == "cuda":
        with torch.no_grad():
            assert torch.equal(before_norm(layer, x), y)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize(
    "shape", [(2, 3, 20, 21), (1, 2, 80, 90), (2, 1, 1, 5), (2, 2, 64, 64)], ids=str
)
def test_instance_norm_values_and_gradients_on_the_cpu(shape, gelu, layout):
    assert max(norm_errors(shape, gelu, layout=layout)) < 2e-6


@pytest.mark.parametrize("shape", [(2, 3, 6, 5), (2, 3, 1, 1)])
def test_instance_norm_adds_a_residual_and_hands_its_gradient_on(shape):
    x, residual = (torch.randn(shape, requires_grad=True) for _ in range(2))
    y = instance_norm(x, gelu=True, residual=residual)
    assert torch.equal(y, residual + instance_norm(x, gelu=True))
    dy = torch.randn(shape)
    assert torch.equal(torch.autograd.grad(y, residual, dy)[0], dy)


@pytest.mark.parametrize("gelu", [False, True])
def test_instance_norm_of_one_value_is_zero(gelu):
    y = instance_norm(torch.randn(2, 3, 1, 1) * 100, gelu)
    assert torch.equal(y, torch.zeros(2, 3, 1, 1))


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("value", [0.0, -1.0, 1.0, 300.0])
def test_instance_norm_of_a_flat_plane_is_about_zero_with_a_finite_gradient(value, gelu):
    x = torch.full((1, 2, 17, 19), value, requires_grad=True)
    y = instance_norm(x, gelu)
    (dx,) = torch.autograd.grad(y, x, torch.randn(y.shape))
    assert y.abs().max() < 0.05  # rounding of the mean, times 1 / sqrt(eps)
    assert dx.isfinite().all()


def test_instance_norm_planes_do_not_know_each_other():
    x = torch.randn(2, 3, 8, 8)
    changed = x.clone()
    changed[1, 2] = 50 * torch.rand(8, 8)
    same = instance_norm(changed) == instance_norm(x)
    assert same[0].all() and same[1, :2].all() and not same[1, 2].any()


def activation_errors(
    shape, gelu, dtype=torch.float32, device="cpu", layout="contiguous", function=None
):
    """Relative errors of activation(x + bias), and of its gradients for x and the bias, which stays
    in float32."""
    generator = torch.Generator().manual_seed(3)
    x, dy = (
        LAYOUTS[layout](torch.randn(shape, generator=generator).to(device, dtype)) for _ in range(2)
    )
    bias = torch.randn(shape[1], generator=generator).to(device).requires_grad_()
    x.requires_grad_()
    if function is None:
        from cmmfnet.nn.fast import convolve

        layer = torch.nn.Conv2d(shape[1], shape[1], 1, groups=shape[1]).to(device)
        layer.weight.data.fill_(1)
        layer.bias = torch.nn.Parameter(bias.detach().clone())
        with torch.autocast(torch.device(device).type, dtype, enabled=dtype == torch.bfloat16):
            y = convolve(layer, x, "gelu" if gelu else "relu")
        bias = layer.bias
    else:
        y = function(x, bias, gelu)
    assert (y.shape, y.dtype) == (x.shape, dtype)
    found = (y, *torch.autograd.grad(y, (x, bias), dy))
    whole = x.detach().double().requires_grad_(), bias.detach().double().requires_grad_()
    v = whole[0] + whole[1][:, None, None]
    expected = F.gelu(v) if gelu else F.relu(v)
    expected = (expected, *torch.autograd.grad(expected, whole, dy.double()))
    return [relative(a, b) for a, b in zip(found, expected, strict=True)]


ACTIVATED = [(2, 3, 20, 21), (1, 64, 9, 40), (2, 300, 5, 3), (3, 1, 7, 1), (1, 2, 40, 60)]


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("shape", ACTIVATED, ids=str)
def test_bias_and_activation_on_the_cpu(shape, gelu):
    assert max(activation_errors(shape, gelu)) < 1e-5


def interpreted(script):
    """What ``script`` prints last, JSON. Triton's interpreter has to be asked for before Triton is
    imported: another process."""
    script = script.format(tests=str(Path(__file__).parents[1]))
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


_INTERPRETED = """
import json, sys
import torch
sys.path.insert(0, {tests!r})
import test_ops as t
import cmmfnet.nn.fast.bias, cmmfnet.nn.fast.depthwise, cmmfnet.nn.fast.norm

depthwise = torch.ops.cmmfnet.depthwise
norm = lambda x, gelu: torch.ops.cmmfnet.instance_norm(x, None, gelu, 1e-5)[0]
shapes = [s for s in t.SHAPES if s[-1] >= 5]
flat = torch.full((1, 2, 9, 9), 300.0, requires_grad=True)
flat_y = norm(flat, True)
grid = torch.linspace(-14, 14, 2801, dtype=torch.float16).view(1, 1, 1, -1).requires_grad_()
half = torch.ops.cmmfnet.bias_activation(grid, torch.zeros(1), True)
exact = grid.detach().double().requires_grad_()
exact_half = torch.nn.functional.gelu(exact)
slope = (torch.autograd.grad(half.sum(), grid)[0], torch.autograd.grad(exact_half.sum(), exact)[0])
x, weight, bias, dy = t.operands((2, 2, 9, 20, 5))
y, mean, scale = torch.ops.cmmfnet.instance_norm(x, x.detach(), True, 1e-5)
torch.library.opcheck(depthwise.default, (x, weight, bias))
torch.library.opcheck(torch.ops.cmmfnet.depthwise_gelu.default, (x.detach(), weight.detach(), bias.detach()))
torch.library.opcheck(torch.ops.cmmfnet.depthwise_backward.default, (dy, x.detach(), weight.detach()))
torch.library.opcheck(torch.ops.cmmfnet.instance_norm.default, (x, x.detach().clone().requires_grad_(), True, 1e-5))
torch.library.opcheck(
    torch.ops.cmmfnet.instance_norm_backward.default, (dy, x.detach(), mean.detach(), scale.detach(), True)
)
activate = torch.ops.cmmfnet.bias_activation
for gelu in (False, True):
    torch.library.opcheck(activate.default, (x, bias, gelu))
    torch.library.opcheck(activate.default, (x.detach().contiguous(memory_format=torch.channels_last), bias, gelu))
torch.library.opcheck(torch.ops.cmmfnet.bias_gelu_backward.default, (dy, x.detach(), bias.detach()))
print(json.dumps({{
    "activation": [t.activation_errors(s, g, layout=l, function=activate) for s in t.ACTIVATED for g in (False, True)
                   for l in t.LAYOUTS],
    "depthwise": [t.depthwise_errors(s, function=depthwise) for s in shapes]
    + [t.depthwise_errors(shapes[1], function=depthwise, layout=l) for l in t.LAYOUTS],
    "tall": [t.tall_error(s) for s in shapes],
    "norm": [t.norm_errors(s, g, function=norm) for s in [(2, 2, 20, 21), (1, 2, 16, 16), (1, 2, 70, 66), (1, 1, 130, 127)]
             for g in (False, True)]
    + [t.norm_errors((2, 1, 5, 9), True, function=norm, layout=l) for l in t.LAYOUTS],
    "gelu": t.relative(torch.ops.cmmfnet.depthwise_gelu(x.detach(), weight.detach(), bias.detach()),
                       torch.nn.functional.gelu(t.depthwise_reference(x, weight, bias))),
    "16 bits": [t.norm_errors(s, g, torch.float16, function=norm) for s in [(1, 2, 16, 16), (2, 1, 20, 21)] for g in (False, True)],
    "gelu in 16 bits": [float((a - b).abs().sub(b.abs() * 2**-11).max()) for a, b in ((half, exact_half), slope)],
    "one value": norm(torch.randn(2, 3, 1, 1) * 100, False).abs().max().item(),
    "flat": [flat_y.abs().max().item(), torch.autograd.grad(flat_y.sum(), flat)[0].abs().max().item()],
}}))
"""


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="the kernels run on the GPU itself in the tests below"
)
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_triton_kernels_in_the_interpreter():
    """The kernels' arithmetic and masks, and their registration (torch.library.opcheck), without a
    GPU."""
    found = interpreted(_INTERPRETED)
    assert len(found["depthwise"]) == 11 and max(map(max, found["depthwise"])) < 1e-6
    assert max(found["tall"]) < 1e-6
    assert len(found["norm"]) == 12 and max(map(max, found["norm"])) < 2e-6
    assert len(found["activation"]) == 40 and max(map(max, found["activation"])) < 1e-5
    assert found["gelu"] < 1e-6
    assert len(found["16 bits"]) == 4 and max(map(max, found["16 bits"])) < 2e-3
    assert max(found["gelu in 16 bits"]) < 1.3e-4  # beyond the rounding of the result
    assert found["one value"] == 0
    assert found["flat"][0] < 0.05 and math.isfinite(found["flat"][1])


@cuda
@pytest.mark.parametrize("shape", [(2, 3, 20, 21, 13), (3, 2, 40, 48, 13)], ids=str)
def test_depthwise_of_tall_patches_on_cuda(shape):
    assert tall_error(shape, torch.bfloat16, "cuda") < 1e-2


@cuda
@torch.no_grad()
def test_gelu_in_bfloat16_is_within_its_rounding_on_cuda():
    """By a kernel that leaves its input as it is."""
    x = torch.linspace(-20, 20, 4096, device="cuda").bfloat16().view(1, 1, 64, 64)
    weight = torch.zeros(1, 1, 5, 5, device="cuda", dtype=torch.bfloat16)
    weight[..., 2, 2] = 1
    exact = F.gelu(x.double())
    excess = (depthwise_conv2d(x, weight, gelu=True).double() - exact).abs() - exact.abs() * 2**-8
    assert excess.max() < 2e-3


@cuda
@pytest.mark.parametrize("kernel", range(5, 33, 2))
def test_depthwise_on_cuda_in_bfloat16(kernel):
    assert max(depthwise_errors((3, 4, 37, 45, kernel), torch.bfloat16, "cuda")) < 1e-2


@cuda
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_depthwise_on_cuda_in_float32(shape, layout):
    assert max(depthwise_errors(shape, device="cuda", layout=layout)) < 1e-5


@cuda
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize(
    "shape", [(2, 3, 20, 21), (1, 2, 80, 90), (2, 1, 1, 5), (1, 2, 140, 130)], ids=str
)
def test_instance_norm_on_cuda(shape, gelu):
    assert max(norm_errors(shape, gelu, device="cuda")) < 5e-6
    assert (
        max(norm_errors(shape, gelu, torch.bfloat16, "cuda")) < 3e-2
    )  # half a step of bfloat16 at 4 is 0.016


@cuda
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("shape", ACTIVATED, ids=str)
def test_bias_and_activation_on_cuda(shape, gelu, layout):
    operator = torch.ops.cmmfnet.bias_activation
    assert (
        max(activation_errors(shape, gelu, device="cuda", layout=layout, function=operator)) < 1e-5
    )
    assert max(activation_errors(shape, gelu, torch.bfloat16, "cuda", layout, operator)) < 1e-2
    assert max(activation_errors(shape, gelu, torch.bfloat16, "cuda", layout)) < 1e-2


@cuda
@pytest.mark.parametrize("channels", [64, 128])
def test_a_stage_on_cuda_is_the_same_with_and_without_gradient(channels):
    """Without one, the feed-forward and GELU are fused; the two paths differ by bfloat16's rounding
    only."""
    stage = large_kernel_stage(channels, 2, 13).cuda().bfloat16()
    x = torch.randn(2, channels, 40, 48, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad(), torch.profiler.profile() as profile:
        fused = stage(x)
    assert {"cmmfnet::feed_forward", "cmmfnet::enter", "cmmfnet::depthwise_gelu"} <= {
        event.key for event in profile.key_averages()
    }
    assert relative(fused, stage(x)) < 2e-2


@cuda
def test_cuda_kernels_are_what_runs():
    """Otherwise the tests above would compare PyTorch with itself."""
    x, weight, bias, _ = operands((1, 2, 16, 16, 7), device="cuda")
    assert "depthwise" in depthwise_conv2d(x, weight, bias).grad_fn.name()
    with torch.profiler.profile() as profile:
        instance_norm(depthwise_conv2d(x, weight, bias))
    assert {"cmmfnet::depthwise", "cmmfnet::instance_norm"} <= {
        event.key for event in profile.key_averages()
    }


@cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_on_cuda_are_equal_from_run_to_run(dtype):
    x, weight, bias, dy = operands((4, 8, 64, 72, 13), dtype, "cuda")

    def run():
        y = instance_norm(depthwise_conv2d(x, weight, bias), gelu=True)
        return (y, *torch.autograd.grad(y, (x, weight, bias), dy))

    first = run()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


@cuda
def test_compiled_on_cuda():
    x, weight, bias, dy = operands((2, 4, 24, 40, 13), device="cuda")

    def block(x, weight, bias):
        return instance_norm(depthwise_conv2d(x, weight, bias), gelu=True)

    results = []
    for function in (block, torch.compile(block, fullgraph=True)):
        y = function(x, weight, bias)
        results.append((y, *torch.autograd.grad(y, (x, weight), dy)))
    assert all(relative(a, b) < 1e-5 for a, b in zip(*results, strict=True))


@cuda
def test_registration_of_the_operators_on_cuda():
    x, weight, bias, dy = operands((2, 3, 12, 20, 7), device="cuda")
    y, mean, scale = (
        t.detach() for t in torch.ops.cmmfnet.instance_norm(x, x.detach(), True, 1e-5)
    )
    torch.library.opcheck(torch.ops.cmmfnet.depthwise.default, (x, weight, bias))
    torch.library.opcheck(
        torch.ops.cmmfnet.depthwise_backward.default, (dy, x.detach(), weight.detach())
    )
    torch.library.opcheck(
        torch.ops.cmmfnet.instance_norm.default,
        (x, x.detach().clone().requires_grad_(), True, 1e-5),
    )
    torch.library.opcheck(
        torch.ops.cmmfnet.instance_norm_backward.default, (dy, x.detach(), mean, scale, True)
    )
    assert y.shape == x.shape
