"""Operators for inference without gradient on CUDA: every kernel against float64 written out by
hand.

The Triton kernels run in Triton's interpreter on the CPU where Triton is installed, and as they are
on a CUDA device.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from test_ops import LAYOUTS, interpreted, norm_reference, relative

from cmmfnet.nn import fast as ops
from cmmfnet.nn.blocks import Downsample

triton = importlib.util.find_spec("triton") is not None
cuda = pytest.mark.skipif(
    not torch.cuda.is_available() or not triton, reason="needs a CUDA device and Triton"
)


def random(*sizes, dtype, device):
    """Of every (shape, deviation, mean): a tensor."""
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(s, generator=generator) * scale + mean).to(device, dtype)
        for s, scale, mean in sizes
    ]


def statistics_of(x):
    """Of planes, in float64 by their formula: what the kernels take."""
    flat = x.double().flatten(0, 1).flatten(1)
    deviation = (flat.var(dim=1, unbiased=False) + 1e-5).sqrt()
    return flat.mean(dim=1).float(), (1 / deviation).float()


def feed_forward_error(shape, dtype, device="cpu", function=ops.feed_forward):
    """For planes of mean 5 and deviation 3."""
    c = shape[1]
    sizes = [
        (shape, 3.0, 5.0),
        ((4 * c, c, 1, 1), 0.1, 0.0),
        ((c, 4 * c, 1, 1), 0.1, 0.0),
        ((c,), 1.0, 0.0),
    ]
    x, widen, narrow, bias = random(*sizes, dtype=dtype, device=device)
    y = function(x, widen, narrow, bias, statistics_of(x))
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    wide = norm_reference(F.conv2d(norm_reference(x, False), widen.double()), True)
    return relative(y, F.conv2d(wide, narrow.double(), bias.double()))


def enter_error(shape, outputs, dtype, device="cpu", first=True, function=ops.enter):
    """For planes of mean 5 and deviation 3, channels that go together; ``first``: with the first
    norm, else channels-last."""
    x, weight = random(
        (shape, 3.0, 5.0), ((outputs, shape[1], 1, 1), 0.1, 0.0), dtype=dtype, device=device
    )
    x[:, 1::2] += x[:, ::2]
    mean, scale = statistics_of(x)
    y = function(x, weight, (mean, scale if first else torch.ones_like(scale)), last=not first)
    assert (y.shape, y.dtype) == ((shape[0], outputs, *shape[2:]), x.dtype)
    assert y.is_contiguous(memory_format=torch.contiguous_format if first else torch.channels_last)
    return relative(
        y,
        norm_reference(
            F.conv2d(norm_reference(x, False) if first else x.double(), weight.double()), True
        ),
    )


def join_error(shape, outputs, dtype, device="cpu", layout="contiguous", function=ops.join):
    sizes = [
        (shape, 1.0, 0.5),
        (shape, 2.0, 0.0),
        ((outputs, 2 * shape[1], 1, 1), 0.1, 0.0),
        ((outputs,), 1.0, 0.0),
    ]
    x, skip, weight, bias, x_bias = random(
        *sizes, ((shape[1],), 1.0, 0.0), dtype=dtype, device=device
    )
    y = function(LAYOUTS[layout](x), skip, weight, bias, x_bias)
    assert (y.shape, y.dtype) == ((shape[0], outputs, *shape[2:]), x.dtype)
    both = torch.cat([x.double() + x_bias.double()[:, None, None], skip.double()], dim=1)
    return relative(y, F.conv2d(both, weight.double(), bias.double()))


def up_error(shape, outputs, gelu, dtype, device="cpu", function=None):
    """Of a 3x3 convolution of the doubled map; ``gelu``: with bias and GELU."""
    layer = torch.nn.Conv2d(shape[1], outputs, 3, padding=1).to(device, dtype).requires_grad_(False)
    (x,) = random((shape, 1.0, 0.5), dtype=dtype, device=device)
    if function is None:
        y = (ops.double_convolve_gelu if gelu else ops.double_convolve)(layer, x)
    else:
        y = function(x, layer.weight, layer.bias if gelu else None)
    large = x.double().repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    want = F.conv2d(large, layer.weight.double(), layer.bias.double() if gelu else None, padding=1)
    assert (y.shape, y.dtype) == (want.shape, dtype)
    return relative(y, F.gelu(want) if gelu else want)


def residual_errors(shape, gelu, dtype, device="cpu", function=ops.residual_norm):
    """Of the output, and of the mean and the scale of its planes."""
    x, residual = random((shape, 3.0, 5.0), (shape, 2.0, 4.0), dtype=dtype, device=device)
    y, statistics = function(x, residual, gelu)
    found = [relative(a, b) for a, b in zip(statistics, statistics_of(y), strict=True)]
    return [relative(y, residual.double() + norm_reference(x, gelu)), *found]


def enlarged_errors(shape, size, dtype, device="cpu", layout="contiguous", enlarge=None):
    """Doubled; bilinear; added to a map; added and modulated; in another order only."""
    x, base, scale, shift = random(
        (shape, 1.0, 0.0), ((*shape[:2], *size), 1.0, 0.0), (shape[:2], 1.0, 0.0),
        (shape[:2], 1.0, 0.0),
        dtype=dtype, device=device,
    )  # fmt: skip
    x = LAYOUTS[layout](x)
    if enlarge is None:
        found = [
            ops.double(x),
            ops.bilinear(x, size),
            ops.add_bilinear(base, x),
            ops.add_bilinear(base, x, scale, shift),
            ops.plain(x),
        ]
    else:
        found = [
            enlarge(x, [2 * side for side in shape[2:]], True, True, None, None, None),
            *(enlarge(x, list(size), False, False, *changes)
              for changes in ((None, None, None), (base, None, None), (base, scale, shift))),
            enlarge(x, list(shape[2:]), True, False, None, None, None),
        ]  # fmt: skip
    large = F.interpolate(x.double(), size, mode="bilinear", align_corners=False)
    factor, offset = (v.double()[:, :, None, None] for v in (scale, shift))
    doubled = x.double().repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    wanted = [
        doubled,
        large,
        base.double() + large,
        (base.double() + large) * (1 + factor) + offset,
        x,
    ]
    assert found[-1].is_contiguous()
    assert all((a.shape, a.dtype) == (b.shape, dtype) for a, b in zip(found, wanted, strict=True))
    return [relative(a, b) for a, b in zip(found, wanted, strict=True)]


def widen_error(shape, outputs, dtype, device="cpu", function=ops.widen):
    """For channels that go together, as a frame and its local contrast do."""
    x, weight = random(
        (shape, 0.3, -0.4), ((outputs, shape[1], 1, 1), 1.0, 0.0), dtype=dtype, device=device
    )
    x[:, -1] += x[:, 0]
    y = function(x, weight)
    assert (y.shape, y.dtype) == ((shape[0], outputs, *shape[2:]), x.dtype)
    return relative(y, norm_reference(F.conv2d(x.double(), weight.double()), True))


UP = [((2, 64, 9, 17), 32), ((1, 32, 3, 5), 128), ((1, 64, 1, 1), 64)]
SIZES = [
    ((2, 3, 5, 7), (9, 20)),
    ((1, 64, 4, 8), (8, 16)),
    ((2, 70, 6, 5), (3, 4)),
    ((1, 1, 1, 1), (3, 2)),
]
WIDENED = [((2, 1, 9, 7), 64), ((1, 2, 20, 33), 64), ((3, 2, 5, 5), 70)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "size"), SIZES, ids=str)
def test_maps_are_enlarged_by_pytorch_where_no_kernel_serves(shape, size, layout):
    assert max(enlarged_errors(shape, size, torch.float32, layout=layout)) < 1e-6


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize(("shape", "outputs"), UP, ids=str)
def test_a_doubled_map_is_convolved_by_pytorch_where_no_kernel_serves(shape, outputs, gelu):
    assert up_error(shape, outputs, gelu, torch.float32) < 1e-6


_INTERPRETED = """
import json, sys
import torch
sys.path.insert(0, {tests!r})
import test_inference_ops as t
import cmmfnet.nn.fast.enlarge, cmmfnet.nn.fast.ffn, cmmfnet.nn.fast.norm, cmmfnet.nn.fast.up, cmmfnet.nn.fast.widening

own = torch.ops.cmmfnet
torch.set_grad_enabled(False)
x, base = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 8, 9)
torch.library.opcheck(own.enlarge.default, (x, [8, 10], True, True, None, None, None))
torch.library.opcheck(own.enlarge.default, (x, [8, 9], False, False, base, base[:, :, 0, 0], base[:, :, 0, 1]))
torch.library.opcheck(own.plane_statistics.default, (x, 1e-5))
torch.library.opcheck(own.residual_norm.default, (x, x.clone(), True, 1e-5))
torch.library.opcheck(own.gelu_of_lines.default, (x[:, :2].contiguous(), torch.randn(2, 7, 2), torch.randn(2, 7)))
wide, weight = torch.randn(1, 64, 3, 5), torch.randn(64, 64, 1, 1)
mean, scale = t.statistics_of(wide)
torch.library.opcheck(own.enter.default, (wide, weight, mean, scale, 1e-5, True))
torch.library.opcheck(own.double_convolve.default, (wide, torch.randn(32, 64, 3, 3), torch.randn(32)))
joined = torch.randn(64, 128, 1, 1)
torch.library.opcheck(own.join.default, (wide, wide.clone(), joined, weight[:, 0, 0, 0], weight[:, 1, 0, 0]))
torch.library.opcheck(own.feed_forward.default, (wide, weight, weight, weight[:, 0, 0, 0], mean, scale, 1e-5))
print(json.dumps({{
    "statistics": [max(t.relative(a, b) for a, b in zip(own.plane_statistics(y, 1e-5), t.statistics_of(y)))
                   for y in (x + 3, torch.randn(1, 2, 130, 127) + 3)],
    "feed forward": [t.feed_forward_error((2, 64, 7, 20), d) for d in (torch.float32, torch.float16)]
    + [t.feed_forward_error(s, torch.float16) for s in [(1, 64, 129, 128), (1, 128, 3, 30)]],
    "enter": [t.enter_error(*s, torch.float32, first=f) for f in (True, False)
              for s in [((2, 64, 7, 20), 64), ((1, 128, 9, 40), 64), ((1, 128, 3, 30), 256)]],
    "join": [t.join_error((2, 64, 7, 20), o, torch.float32, layout=l) for o in (64, 128) for l in t.LAYOUTS],
    "residual": [t.residual_errors(s, g, torch.float32) for s in [(2, 2, 20, 21), (1, 1, 130, 127)] for g in (False, True)]
    + [t.residual_errors((2, 2, 20, 21), True, torch.float16)],
    "enlarged": [t.enlarged_errors(*s, torch.float32, layout=l, enlarge=own.enlarge) for s in t.SIZES for l in t.LAYOUTS],
    "up": [t.up_error(*s, g, torch.float32, function=own.double_convolve) for s in t.UP for g in (False, True)],
    "widened": [t.widen_error(*s, torch.float32) for s in t.WIDENED],
}}))
"""


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="the kernels run on the GPU itself in the tests below"
)
@pytest.mark.skipif(not triton, reason="Triton is not installed")
def test_triton_kernels_in_the_interpreter():
    """The kernels' arithmetic and masks, and their registration (torch.library.opcheck), without a
    GPU."""
    found = interpreted(_INTERPRETED)
    assert max(found["statistics"]) < 1e-5
    assert found["feed forward"][0] < 2e-5 and max(found["feed forward"][1:]) < 1e-3
    assert max(found["enter"]) < 2e-5 and max(found["join"]) < 1e-5
    assert max(map(max, found["residual"][:-1])) < 1e-5 and max(found["residual"][-1]) < 1e-3
    assert len(found["enlarged"]) == 16 and max(map(max, found["enlarged"])) < 1e-6
    assert max(found["widened"]) < 1e-5
    assert max(found["up"]) < 1e-5


@cuda
@torch.no_grad()
@pytest.mark.parametrize(
    "shape",
    [(2, 64, 20, 21), (1, 128, 40, 24), (2, 128, 17, 24), (3, 64, 1, 1), (1, 64, 130, 140)],
    ids=str,
)
def test_products_behind_a_norm_on_cuda(shape):
    for dtype, most in ((torch.bfloat16, 1e-2), (torch.float16, 1e-3)):
        assert feed_forward_error(shape, dtype, "cuda") < most
        assert enter_error(shape, shape[1], dtype, "cuda") < most
        assert enter_error(shape, 2 * shape[1], dtype, "cuda", first=False) < most
        for layout in LAYOUTS:
            assert join_error(shape, shape[1], dtype, "cuda", layout) < most


@cuda
@torch.no_grad()
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 20, 21), (1, 2, 128, 128), (1, 2, 130, 127)], ids=str)
def test_a_norm_hands_on_the_statistics_of_its_output_on_cuda(shape, gelu):
    y, *statistics = residual_errors(shape, gelu, torch.bfloat16, "cuda")
    assert y < 1e-2 and max(statistics) < 1e-5


@cuda
@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "size"), SIZES, ids=str)
def test_maps_are_enlarged_on_cuda(shape, size, layout):
    assert max(enlarged_errors(shape, size, torch.float32, "cuda", layout)) < 1e-5
    assert max(enlarged_errors(shape, size, torch.bfloat16, "cuda", layout)) < 1e-2
    assert ops.double(torch.zeros(1, 8, 4, 4, device="cuda")).is_contiguous(
        memory_format=torch.channels_last
    )


@cuda
@torch.no_grad()
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize(("shape", "outputs"), [*UP, ((1, 128, 30, 33), 64)], ids=str)
def test_a_doubled_map_is_convolved_on_cuda(shape, outputs, gelu):
    assert up_error(shape, outputs, gelu, torch.bfloat16, "cuda") < 1e-2
    assert up_error(shape, outputs, gelu, torch.float16, "cuda") < 1e-3


@cuda
@torch.no_grad()
@pytest.mark.parametrize(("shape", "outputs"), WIDENED, ids=str)
def test_the_first_layer_on_cuda(shape, outputs):
    assert widen_error(shape, outputs, torch.float32, "cuda") < 1e-5
    assert widen_error(shape, outputs, torch.bfloat16, "cuda") < 1e-2


@cuda
@torch.no_grad()
def test_the_first_layer_gives_nothing_for_a_flat_frame_on_cuda():
    for x in (torch.full((1, 2, 9, 7), 0.7, device="cuda"), torch.rand(2, 1, 1, 1, device="cuda")):
        assert ops.widen(x, torch.randn(64, x.shape[1], 1, 1, device="cuda")).abs().max() < 1e-3


@cuda
@pytest.mark.parametrize(
    ("channels", "first"), [(2, "cmmfnet::gelu_of_lines"), (64, "cmmfnet::enter")]
)
def test_a_downsampling_on_cuda_is_the_same_with_and_without_gradient(channels, first):
    layer = Downsample(channels, 64).cuda().bfloat16()
    x = torch.randn(2, channels, 40, 48, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad(), torch.profiler.profile() as profile:
        fused = layer(x)
    assert first in {event.key for event in profile.key_averages()}
    assert relative(fused, layer(x)) < 2e-2


@cuda
@torch.no_grad()
def test_what_is_beside_in_a_graph_is_done_when_it_is_joined():
    x = torch.rand(1024, 1024, device="cuda")

    def run():
        with ops.Beside(x) as other:
            y = x
            for _ in range(8):
                y = (y @ x).softmax(dim=1)
        z = x.square()
        other.join(y)
        return y + z

    expected, graph = run(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    for _ in range(5):
        found.zero_()
        graph.replay()
        torch.testing.assert_close(found, expected)
