"""The "l1" distance of perceptual.py, with a gradient written by hand.

Both pictures go through the frozen network as one batch. The network's weights are cast once, and
cuDNN computes the convolutions. One kernel reads each compared map once: it adds the bias, applies
the ReLU, sums the absolute differences to the other picture's map, and pools. For the gradient it
keeps one byte an element: the difference's sign where the ReLU is positive, and whether the pool
took the element. Autograd would keep every intermediate map and read or write each six times more.
Maps are channels-last, as cuDNN writes them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_CELLS, _CHANNELS = 16, 64
"""Cells of 2x2 pixels, and channels, of a program."""


class Convolutions:
    """The frozen 3x3 convolutions of a VGG up to its last tap, in ``dtype``, each followed by a
    ReLU, for pictures less ``shift`` over ``scale``.

    ``steps``: for each convolution its weight (channels last), its bias (float32), whether it is a
    tap, and whether a pool follows. A pool follows taps only.
    """

    def __init__(
        self,
        layers: nn.Sequential,
        taps: Sequence[int],
        shift: Tensor,
        scale: Tensor,
        dtype: torch.dtype,
    ):
        layers = layers[: max(taps) + 2]
        self.dtype, self.shift, self.scale = dtype, shift, scale
        self.steps: list[tuple[Tensor, Tensor, bool, bool]] = []
        for i, layer in enumerate(layers):
            if isinstance(layer, nn.Conv2d):
                weight = layer.weight.to(dtype, memory_format=torch.channels_last)
                pools = i + 2 < len(layers) - 1 and isinstance(layers[i + 2], nn.MaxPool2d)
                self.steps.append((weight, layer.bias.float(), i + 1 in taps, pools))


class FeatureDistance(torch.autograd.Function):
    """``apply(x, y, convolutions)`` of pictures (B,3,H,W) in [-1,1]: mean absolute difference of
    their maps, summed over the taps, (B,) float32. Gradients are of x alone."""

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, network: Convolutions) -> Tensor:
        total, kept, count = 0, [], len(x)
        ctx.network, ctx.like = network, x.dtype
        with torch.autocast(x.device.type, enabled=False):
            z = (torch.cat([x, y]) - network.shift) / network.scale
            z = z.to(network.dtype, memory_format=torch.channels_last)
            for weight, bias, tap, pools in network.steps:
                given, raw = z[:count], F.conv2d(z, weight, None, padding=1)
                if tap:
                    found, z, codes = compare(raw, bias, pools)
                    total = total + found
                    kept += [given, codes]
                else:
                    z = F.relu_(raw.add_(bias.to(raw.dtype)[:, None, None]))
                    kept += [given, z[:count]]
        ctx.save_for_backward(*kept)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, gradients: Tensor) -> tuple[Tensor, None, None]:
        kept, dz, network = list(ctx.saved_tensors), None, ctx.network
        for weight, _, tap, _ in reversed(network.steps):
            passed, given = kept.pop(), kept.pop()
            if tap:
                dz = compare_backward(passed, gradients, dz, network.dtype)
            else:
                dz = torch.ops.aten.threshold_backward(dz, passed, 0)
            dz = torch.ops.aten.convolution_backward(
                dz, given, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1,
                (True, False, False),
            )[0]  # fmt: skip
        return (dz.float() / network.scale).to(ctx.like), None, None


@triton.jit
def _one(raw, half, bias, base, row, column, channel, ok, H, W, C):
    """For pixels (row, column): the activations of both pictures, and the offset of the first
    picture's."""
    ok = ok & ((row < H) & (column < W))[:, None]
    at = base + (row * W + column)[:, None].to(tl.int64) * C + channel[None, :]
    a = tl.load(raw + at, mask=ok, other=0.0).to(tl.float32) + bias
    b = tl.load(raw + half + at, mask=ok, other=0.0).to(tl.float32) + bias
    a, b = tl.where(a < 0, 0.0, a), tl.where(b < 0, 0.0, b)  # NaN stays NaN
    return a, b, at, ok, tl.where(ok, tl.abs(a - b), 0.0)


@triton.jit
def _code(codes, at, ok, a, b, taken):
    sign = (a > b).to(tl.int32) - (a < b).to(tl.int32)
    tl.store(
        codes + at, tl.where(a > 0, sign + 1 + 4 * taken.to(tl.int32), 1).to(tl.uint8), mask=ok
    )


@triton.jit
def _forward(raw, biases, pooled, codes, sums, H, W, C, half, quarter, POOL: tl.constexpr,
             CELLS: tl.constexpr, CHANNELS: tl.constexpr):  # fmt: skip
    """Cells of 2x2 pixels of a pair of pictures, for each program. half, quarter: elements of the
    maps of one side's batch, and of its pooled maps. sums (B, programs)."""
    picture = tl.program_id(2).to(tl.int64)
    across = (W + 1) // 2
    cell = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    i, j = cell // across, cell % across
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    ok = (channel < C)[None, :]
    bias = tl.load(biases + channel, mask=channel < C, other=0.0).to(tl.float32)[None, :]
    base = picture * H * W * C
    a0, b0, at0, ok0, d0 = _one(raw, half, bias, base, 2 * i, 2 * j, channel, ok, H, W, C)
    a1, b1, at1, ok1, d1 = _one(raw, half, bias, base, 2 * i, 2 * j + 1, channel, ok, H, W, C)
    a2, b2, at2, ok2, d2 = _one(raw, half, bias, base, 2 * i + 1, 2 * j, channel, ok, H, W, C)
    a3, b3, at3, ok3, d3 = _one(raw, half, bias, base, 2 * i + 1, 2 * j + 1, channel, ok, H, W, C)
    programs = tl.num_programs(0) * tl.num_programs(1)
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(sums + picture * programs + program, tl.sum(d0 + d1 + d2 + d3))
    if POOL:
        most = tl.maximum(tl.maximum(a0, a1), tl.maximum(a2, a3))
        whole = ok & ((i < H // 2) & (j < W // 2))[:, None]
        to = ((picture * (H // 2) + i) * (W // 2) + j)[:, None] * C + channel[None, :]
        tl.store(pooled + to, most.to(pooled.dtype.element_ty), mask=whole)
        of_other = tl.maximum(tl.maximum(b0, b1), tl.maximum(b2, b3))
        tl.store(pooled + quarter + to, of_other.to(pooled.dtype.element_ty), mask=whole)
        t0 = whole & (a0 == most)  # the first of equal values, as in PyTorch
        t1 = whole & (a1 == most) & ~t0
        t2 = whole & (a2 == most) & ~t0 & ~t1
        t3 = whole & (a3 == most) & ~t0 & ~t1 & ~t2
    else:
        t0 = ok0 & False
        t1, t2, t3 = t0, t0, t0
    _code(codes, at0, ok0, a0, b0, t0)
    _code(codes, at1, ok1, a1, b1, t1)
    _code(codes, at2, ok2, a2, b2, t2)
    _code(codes, at3, ok3, a3, b3, t3)


@triton.jit
def _spread(codes, out, base, row, column, channel, ok, H, W, C, step, through):
    ok = ok & ((row < H) & (column < W))[:, None]
    at = base + (row * W + column)[:, None].to(tl.int64) * C + channel[None, :]
    code = tl.load(codes + at, mask=ok, other=1).to(tl.int32)
    found = ((code & 3) - 1).to(tl.float32) * step + tl.where(code >= 4, through, 0.0)
    tl.store(out + at, found.to(out.dtype.element_ty), mask=ok)


@triton.jit
def _backward(codes, gradients, through, out, H, W, C, over, POOL: tl.constexpr,
              CELLS: tl.constexpr,
              CHANNELS: tl.constexpr):  # fmt: skip
    """out: the gradient of the convolution's result. ``gradients`` (B,) are those of each
    picture's mean difference, ``through`` those of its pooled map. over: 1 / elements of a
    picture's map."""
    picture = tl.program_id(2).to(tl.int64)
    across = (W + 1) // 2
    cell = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    i, j = cell // across, cell % across
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    ok = (channel < C)[None, :]
    step = tl.load(gradients + picture) * over
    base = picture * H * W * C
    if POOL:
        whole = ok & ((i < H // 2) & (j < W // 2))[:, None]
        to = ((picture * (H // 2) + i) * (W // 2) + j)[:, None] * C + channel[None, :]
        share = tl.load(through + to, mask=whole, other=0.0).to(tl.float32)
    else:
        share = tl.zeros((CELLS, CHANNELS), tl.float32)
    _spread(codes, out, base, 2 * i, 2 * j, channel, ok, H, W, C, step, share)
    _spread(codes, out, base, 2 * i, 2 * j + 1, channel, ok, H, W, C, step, share)
    _spread(codes, out, base, 2 * i + 1, 2 * j, channel, ok, H, W, C, step, share)
    _spread(codes, out, base, 2 * i + 1, 2 * j + 1, channel, ok, H, W, C, step, share)


def _grid(batch: int, channels: int, height: int, width: int) -> tuple[int, int, int]:
    cells = -(-height // 2) * -(-width // 2)
    return -(-cells // _CELLS), -(-channels // _CHANNELS), batch


def compare(raw: Tensor, bias: Tensor, pool: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """``raw`` (2B,C,H,W) channels last, a convolution of B pictures and of B others without its
    ``bias`` (C,) -> the mean absolute difference of their activations (B,) float32; the activations
    pooled by 2x2 (2B,C,H//2,W//2) if ``pool``; codes for :func:`compare_backward`."""
    batch, channels, height, width = raw.shape[0] // 2, *raw.shape[1:]
    raw = raw.contiguous(memory_format=torch.channels_last)
    grid = _grid(batch, channels, height, width)
    shape = 2 * batch, channels, height // 2, width // 2
    pooled = (
        torch.empty(shape, dtype=raw.dtype, device=raw.device, memory_format=torch.channels_last)
        if pool
        else None
    )
    codes = torch.empty((batch, height, width, channels), dtype=torch.uint8, device=raw.device)
    sums = torch.empty((batch, grid[0] * grid[1]), dtype=torch.float32, device=raw.device)
    quarter = batch * channels * (height // 2) * (width // 2)
    _forward[grid](
        raw, bias, raw if pooled is None else pooled, codes, sums, height, width, channels,
        raw.numel() // 2, quarter,
        POOL=pool, CELLS=_CELLS, CHANNELS=_CHANNELS, num_warps=4,
    )  # fmt: skip
    return sums.sum(dim=1) / (channels * height * width), pooled, codes


def compare_backward(
    codes: Tensor, gradients: Tensor, through: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Gradient (B,C,H,W) channels last of the first B pictures' ``raw``, from the gradients of
    their differences (B,) float32 and, after a pool, of their pooled maps, ``through``
    (B,C,H//2,W//2)."""
    batch, height, width, channels = codes.shape
    out = torch.empty_like(codes, dtype=dtype).permute(0, 3, 1, 2)
    if through is not None:
        through = through.contiguous(memory_format=torch.channels_last)
    _backward[_grid(batch, channels, height, width)](
        codes, gradients.contiguous(), out if through is None else through, out, height, width,
        channels,
        1 / (channels * height * width), POOL=through is not None, CELLS=_CELLS, CHANNELS=_CHANNELS,
        num_warps=4,
    )  # fmt: skip
    return out
