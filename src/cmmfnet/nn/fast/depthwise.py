"""Large-kernel depthwise convolution, stride 1, zero padding of half the kernel: Triton.

A depthwise convolution does K*K multiply-adds for each value that it reads. These are too many for
the ordinary units, and a single channel has no matrix product for the tensor cores. So the
convolution is written as a matrix product. A *patch* is ROWS x 16 outputs of one channel. The
inputs of a patch are ROWS+K-1 rows. Each row has 16 columns and a border left and right, wide
enough for the kernel and rounded up so that every row begins at a multiple of 16 bytes. With both
flattened, the outputs are a product

    y[p, (r, n)] = sum over (i, j) of x[p, (i, j)] T[(i, j), (r, n)],     T = w[i - r, j - n -
    shift] or 0 outside the kernel,

of all patches p of the batch with a Toeplitz matrix of the kernel's weights. A small kernel writes
the Toeplitz matrix beforehand. Each input is read (ROWS+K-1) / ROWS times per row of patches
instead of K times, by aligned loads. The input's gradient is the same product with the kernel
turned round. For the weight's gradient, dw[kh, kw] is the sum of ROWS*16 entries of the product x^T
dy of the same patches. All sums run in a fixed order, so results are equal from run to run.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from cmmfnet.nn.fast.gelu import gelu_in
from cmmfnet.nn.fast.sums import in_parts

KERNELS = range(5, 33, 2)
"""Sides of the kernels that are faster here than in cuDNN."""


def depthwise(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool = False) -> Tensor:
    """x (B,C,H,W) of 16 bits or float32, weight (C,1,K,K) with K in ``KERNELS``, bias (C,) ->
    (B,C,H,W) of x's dtype, contiguous; sums are float32. ``gelu``: GELU (erf) follows; for
    inference only, as it has no gradient."""
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    if gelu:
        return correlate(x, weight, bias, gelu=True)
    return _Depthwise.apply(x, weight, bias)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return correlate(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return depthwise_backward(dy, *ctx.saved_tensors)


class Tiles(NamedTuple):
    """Division of the work. ``rows`` of a patch; ``patches`` of a program; ``group``: input rows in
    one product; ``values`` of one load, forward only (loads of 4 use the nearest cache, which holds
    rows that another patch has read)."""

    rows: int
    patches: int
    group: int
    warps: int
    stages: int
    values: int = 8


# A patch of 16 columns needs a border of K // 2 on both sides. The left border is rounded up to 8
# values (16 bytes).
COLUMNS = 16


def _border(kernel: int) -> tuple[int, int]:
    """Input columns to the left of a patch, and in all (a power of two)."""
    left = -(-(kernel // 2) // 8) * 8
    return left, 32 if left + COLUMNS + kernel // 2 <= 32 else 64


def _forward_tiles(kernel: int, x: Tensor) -> Tiles:
    """The fastest tiles on an H200. Patches of 8 rows read less, but need many patches."""
    if x.dtype == torch.float32:
        return Tiles(4, 64, 1, 4, 2)
    if _border(kernel)[1] == 64:
        return Tiles(4, 128, 1, 4, 3)
    enough = x.shape[0] * -(-x.shape[2] // 8) * -(-x.shape[3] // COLUMNS) >= 128
    return Tiles(8, 128, 1, 4, 3, values=4) if enough else Tiles(4, 128, 2, 4, 3)


def _weight_tiles(kernel: int, x: Tensor) -> Tiles:
    if x.dtype == torch.float32:
        return Tiles(4, 32, 1, 4, 2)
    return Tiles(4, 64, 4 if _border(kernel)[1] == 32 else 2, 4, 3)


@triton.jit
def _toeplitz(w, t, inputs, K: tl.constexpr, FLIP: tl.constexpr, ROWS: tl.constexpr,
              BN: tl.constexpr,
              BK: tl.constexpr, SHIFT: tl.constexpr):  # fmt: skip
    """One input row i of the Toeplitz matrix of one channel: t[c, i, j, (r, n)]; rows beyond
    ROWS+K-1 are zeros."""
    i, c = tl.program_id(0), tl.program_id(1)
    j = tl.arange(0, BK)[:, None]
    out = tl.arange(0, ROWS * BN)[None, :]
    kh = i - out // BN
    kw = j - out % BN - SHIFT
    ok = (kh >= 0) & (kh < K) & (kw >= 0) & (kw < K)
    if FLIP:
        at = (K - 1 - kh) * K + (K - 1 - kw)
    else:
        at = kh * K + kw
    value = tl.load(w + c * K * K + at, mask=ok, other=0.0)
    tl.store(t + ((c * inputs + i).to(tl.int64) * BK + j) * (ROWS * BN) + out, value)


@triton.jit
def _patches(
    number,
    first,
    channels,
    c,
    height,
    width,
    across,
    down,
    ROWS: tl.constexpr,
    BN: tl.constexpr,
):
    """For the patches from ``first`` on: offset of their plane, upper row, left column."""
    p = first + tl.arange(0, number)
    line = (p.to(tl.uint32) // across.to(tl.uint32)).to(tl.int32)  # unsigned: half the instructions
    picture = (line.to(tl.uint32) // down.to(tl.uint32)).to(tl.int32)
    plane = (picture.to(tl.int64) * channels + c) * height * width
    return p, plane, (line - picture * down) * ROWS, (p - line * across) * BN


@triton.jit
def _place(row, column, at, height, width, COLUMNS: tl.constexpr, LEFT: tl.constexpr):
    """Offsets (patches, positions) in a plane, and whether they are inside; position ``at`` of
    a patch is row ``at // COLUMNS`` and column ``at % COLUMNS``, counted from ``LEFT`` to the
    left of the patch."""
    r = row[:, None] + (at // COLUMNS)[None, :]
    c = column[:, None] + (at % COLUMNS)[None, :]
    return r * width + c - LEFT, (r >= 0) & (r < height) & (c >= LEFT) & (c < width + LEFT)


@triton.jit
def _read(
    source,
    p,
    plane,
    row,
    column,
    patches,
    height,
    width,
    at,
    COLUMNS: tl.constexpr,
    LEFT: tl.constexpr,
):
    offset, ok = _place(row, column, at, height, width, COLUMNS, LEFT)
    return tl.load(source + plane[:, None] + offset, mask=ok & (p < patches)[:, None], other=0.0)


@triton.jit(
    do_not_specialize=["across", "down", "width"]
)  # a 1 would become a constant without .to()
def _correlate(x, t, bias, y, patches, channels, height, width, across, down, inputs,
               K: tl.constexpr,
               ROWS: tl.constexpr, LEFT: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
               BM: tl.constexpr,
               GROUP: tl.constexpr, EVEN: tl.constexpr, BIAS: tl.constexpr, GELU: tl.constexpr,
               VALUES: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    c = tl.program_id(1)
    if EVEN:
        pitch = width // VALUES * VALUES  # so that the compiler knows how rows are aligned
        width = width // 8 * 8
    else:
        pitch = width
    p, plane, row, column = _patches(
        BM, tl.program_id(0) * BM, channels, c, height, width, across, down, ROWS, BN
    )  # fmt: skip
    at = tl.arange(0, GROUP * BK)
    out = tl.arange(0, ROWS * BN)
    acc = tl.zeros((BM, ROWS * BN), dtype=tl.float32)
    t += c.to(tl.int64) * inputs * BK * ROWS * BN
    for i in range(0, inputs, GROUP):
        a = _read(x, p, plane, row + i - K // 2, column, patches, height, pitch, at, BK, LEFT)
        b = tl.load(t + (i * BK + at)[:, None] * (ROWS * BN) + out[None, :])
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    if BIAS:
        acc += tl.load(bias + c).to(tl.float32)
    if GELU:
        acc = gelu_in(acc, y.dtype.element_ty)
    offset, ok = _place(row, column, out, height, width, BN, 0)
    tl.store(
        y + plane[:, None] + offset,
        acc.to(y.dtype.element_ty),
        mask=ok & (p < patches)[:, None],
    )


@triton.jit(do_not_specialize=["across", "down"])  # a 1 would become a constant without .to()
def _weight_products(
    x,
    dy,
    g,
    gb,
    patches,
    channels,
    height,
    width,
    across,
    down,
    steps,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    LEFT: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BM: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """g[c, split, group of input rows] = x^T dy over the patches of the split; gb[c, split] =
    sums of dy."""
    group, split, c = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if EVEN:
        width = width // 8 * 8
    at = tl.arange(0, GROUP * BK)
    out = tl.arange(0, ROWS * BN)
    acc = tl.zeros((GROUP * BK, ROWS * BN), dtype=tl.float32)
    total = tl.zeros((BM, ROWS * BN), dtype=tl.float32)
    for step in range(steps):
        p, plane, row, column = _patches(
            BM, (split * steps + step) * BM, channels, c, height, width, across, down, ROWS, BN
        )  # fmt: skip
        upper = row + group * GROUP - K // 2
        a = _read(x, p, plane, upper, column, patches, height, width, at, BK, LEFT)
        d = _read(dy, p, plane, row, column, patches, height, width, out, BN, 0)
        acc = tl.dot(tl.trans(a), d, acc, input_precision=PRECISION)
        if group == 0:
            total += d.to(tl.float32)
    splits, groups = tl.num_programs(1), tl.num_programs(0)
    start = ((c.to(tl.int64) * splits + split) * groups + group) * (GROUP * BK * ROWS * BN)
    tl.store(g + start + at[:, None] * (ROWS * BN) + out[None, :], acc)
    if group == 0:
        tl.store(gb + (c * splits + split) * (ROWS * BN) + out, tl.sum(total, axis=0))


@triton.jit
def _diagonals(g, dw, splits, inputs, K: tl.constexpr, ROWS: tl.constexpr, BN: tl.constexpr,
               BK: tl.constexpr,
               SHIFT: tl.constexpr, BW: tl.constexpr):  # fmt: skip
    """dw[c, kh, kw] = sum over splits, r, n of g[c, split, kh + r, kw + n + shift, (r, n)]."""
    kh, c = tl.program_id(0), tl.program_id(1)
    kw = tl.arange(0, BW)
    out = tl.arange(0, ROWS * BN)
    at = (kh + out // BN)[None, :] * BK + kw[:, None] + (out % BN)[None, :] + SHIFT
    at = at * (ROWS * BN) + out[None, :]
    total = tl.zeros((BW, ROWS * BN), dtype=tl.float32)
    for split in range(splits):
        start = (c.to(tl.int64) * splits + split) * (inputs * BK * ROWS * BN)
        total += tl.load(g + start + at, mask=(kw < K)[:, None], other=0.0)
    tl.store(dw + (c * K + kh) * K + kw, tl.sum(total, axis=1).to(dw.dtype.element_ty), mask=kw < K)


def _plan(x: Tensor, kernel: int, tiles: Tiles) -> tuple[int, tuple, dict]:
    """Number of patches; arguments and constants that the kernels share."""
    batch, channels, height, width = x.shape
    across, down = triton.cdiv(width, COLUMNS), triton.cdiv(height, tiles.rows)
    left, columns = _border(kernel)
    constants = {
        "K": kernel, "ROWS": tiles.rows, "LEFT": left, "BN": COLUMNS, "BK": columns,
        "BM": tiles.patches,
        "GROUP": tiles.group, "EVEN": width % 8 == 0, "num_warps": tiles.warps,
        "num_stages": tiles.stages,
        # "tf32" has no effect on 16-bit products
        "PRECISION": "ieee" if x.dtype == torch.float32 else "tf32",
    }  # fmt: skip
    patches = batch * across * down
    return patches, (patches, channels, height, width, across, down), constants


def _inputs(kernel: int, tiles: Tiles) -> int:
    """Input rows under a patch, in whole groups."""
    return triton.cdiv(tiles.rows + kernel - 1, tiles.group) * tiles.group


def correlate(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, flip: bool = False, gelu: bool = False
) -> Tensor:
    """The forward pass, without a gradient; ``flip``: with the kernel turned round."""
    kernel, channels = weight.shape[-1], x.shape[1]
    tiles = _forward_tiles(kernel, x)
    x, weight, y = (
        x.contiguous(),
        weight.contiguous(),
        torch.empty_like(x, memory_format=torch.contiguous_format),
    )
    patches, sizes, constants = _plan(x, kernel, tiles)
    inputs, (left, columns) = _inputs(kernel, tiles), _border(kernel)
    t = torch.empty(channels, inputs, columns, tiles.rows * COLUMNS, device=x.device, dtype=x.dtype)
    _toeplitz[(inputs, channels)](
        weight, t, inputs, K=kernel, FLIP=flip, ROWS=tiles.rows, BN=COLUMNS, BK=columns,
        SHIFT=left - kernel // 2,
        num_warps=4,
    )  # fmt: skip
    _correlate[(triton.cdiv(patches, tiles.patches), channels)](
        x, t, weight if bias is None else bias, y, *sizes, inputs, BIAS=bias is not None,
        GELU=gelu,
        VALUES=tiles.values, **constants,
    )  # fmt: skip
    return y


def depthwise_backward(dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias, in their own dtype."""
    kernel, channels = weight.shape[-1], x.shape[1]
    x, dy = x.contiguous(), dy.contiguous()
    dx = correlate(dy, weight, None, flip=True)
    tiles = _weight_tiles(kernel, x)
    patches, sizes, constants = _plan(x, kernel, tiles)
    inputs, (left, columns) = _inputs(kernel, tiles), _border(kernel)
    groups = inputs // tiles.group
    # enough programs to fill the card, few enough that the partial sums stay small
    splits, steps = in_parts(patches, tiles.patches, 1024 // (channels * groups))
    cells = tiles.rows * COLUMNS
    g = torch.empty(channels, splits, inputs, columns, cells, device=x.device, dtype=torch.float32)
    gb = torch.empty(channels, splits, cells, device=x.device, dtype=torch.float32)
    _weight_products[(groups, splits, channels)](x, dy, g, gb, *sizes, steps, **constants)
    dw = torch.empty_like(weight, memory_format=torch.contiguous_format)
    _diagonals[(kernel, channels)](
        g, dw, splits, inputs, K=kernel, ROWS=tiles.rows, BN=COLUMNS, BK=columns,
        SHIFT=left - kernel // 2,
        BW=triton.next_power_of_2(kernel), num_warps=4,
    )  # fmt: skip
    return dx, dw, gb.sum(dim=(1, 2)).to(dy.dtype)
