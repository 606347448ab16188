"""The end of a U-Net in training: bias, GELU, and the 3x3 convolution to colours: Triton.

cuDNN is made for many channels. This convolution has three output channels, and its input is the
largest map of the network. Here the map in front of the bias is kept; the output of GELU is never
written.

Forwards, a program walks down some columns of the picture. A row of pixels takes part in three rows
of outputs, so it is multiplied by the three rows of weights at once, and the three sums move up by
one. Other threads hold the sums of left and right neighbours, so a second kernel adds them. It
reads three planes for each colour, a twelfth of the map's channels in float32.

Backwards, each pixel has 27 values of the colours' gradient around it. Times the weights they give
the map's gradient, and times the map the weights' gradient. Sums are in float32 and in a fixed
order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cmmfnet.nn.fast.gelu import gelu_and_slope_in, gelu_in
from cmmfnet.nn.fast.sums import in_parts

CHANNELS = (32, 64, 128)
FORWARD = {"pixels": 64, "rows": 64, "warps": 4, "stages": 3}
"""Columns and rows of outputs of a program, warps, stages of loads ahead."""
BACKWARD = {"pixels": 64, "parts": 32, "warps": 4, "stages": 3, "registers": 168}
"""Pixels at a time, parts of a picture whose sums are kept apart, warps, stages of loads ahead,
registers of a thread at most."""


def takes_last(layer: nn.Conv2d) -> bool:
    """Whether ``last_layer`` computes this convolution: 3x3 with a bias, from 32, 64 or 128
    channels to at most three."""
    return (
        layer.bias is not None
        and layer.in_channels in CHANNELS
        and layer.out_channels <= 3
        and (layer.kernel_size, layer.stride, layer.padding) == ((3, 3), (1, 1), (1, 1))
        and (layer.dilation, layer.groups, layer.padding_mode) == ((1, 1), 1, "zeros")
    )


def last_layer(u: Tensor, bias: Tensor, weight: Tensor, last_bias: Tensor) -> Tensor:
    """u (B,C,H,W) in 16 bits, bias (C,), weight (O,C,3,3), last_bias (O,), O three at most -> the
    convolution with zeros around of gelu(u + bias), plus ``last_bias``: (B,O,H,W) of u's dtype,
    contiguous.

    u's gradient is channels-last. Weights and biases may be float32: products take u's dtype, and
    gradients are in their own.
    """
    return _LastLayer.apply(u, bias, weight, last_bias)


class _LastLayer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, bias, weight, last_bias):
        u, bias, weight = (
            u.contiguous(memory_format=torch.channels_last),
            bias.contiguous(),
            weight.contiguous(),
        )
        ctx.save_for_backward(u, bias, weight)
        ctx.last_dtype = last_bias.dtype
        return _forward(u, bias, weight, last_bias.contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        dy = dy.contiguous()
        found = _backward(dy, *ctx.saved_tensors)
        last = (
            dy.sum(dim=(0, 2, 3), dtype=torch.float32).to(ctx.last_dtype)
            if ctx.needs_input_grad[3]
            else None
        )
        return *found, last


@triton.jit
def _keep(columns, tile, row, column, k, H, W, rows_from, COLOURS: tl.constexpr):
    """Store a finished row of sums, if the row belongs to this program."""
    ours = (column < W) & (0 * column + row >= rows_from)  # a vector: the interpreter wants one
    ok = ours[:, None] & (k < 3 * COLOURS)[None, :]
    tl.store(columns + (k[None, :] * H + row) * W + column[:, None], tile, mask=ok)


@triton.jit
def _taps_of_row(weight, c, k, row: tl.constexpr, C: tl.constexpr, COLOURS: tl.constexpr):
    """(C,16) of a row of weight (COLOURS,C,3,3): column k = 3 * colour + the weight's column,
    zero beyond."""
    at = ((k // 3)[None, :] * C + c[:, None]) * 9 + 3 * row + (k % 3)[None, :]
    return tl.load(weight + at, mask=(k < 3 * COLOURS)[None, :], other=0.0)


@triton.jit
def _columns(u, bias, weight, columns, H, W, rows, C: tl.constexpr, COLOURS: tl.constexpr,
             BP: tl.constexpr,
             STAGES: tl.constexpr):  # fmt: skip
    """columns (B,COLOURS,3,H,W): for every pixel and colour, its column's share of the outputs to
    its right, at it, and to its left, summed over channels and three rows."""
    across = tl.cdiv(W, BP)
    picture = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) // across * rows
    column = tl.program_id(0) % across * BP + tl.arange(0, BP)
    c, k = tl.arange(0, C), tl.arange(0, 16)
    dtype = u.dtype.element_ty
    upper = _taps_of_row(weight, c, k, 0, C, COLOURS).to(dtype)
    middle = _taps_of_row(weight, c, k, 1, C, COLOURS).to(dtype)
    lower = _taps_of_row(weight, c, k, 2, C, COLOURS).to(dtype)
    added = tl.load(bias + c).to(tl.float32)[None, :]
    u += picture * H * W * C
    columns += picture * 3 * COLOURS * H * W
    above = tl.zeros((BP, 16), tl.float32)  # of the row above the one that is read, and of itself
    here = tl.zeros((BP, 16), tl.float32)
    for row in tl.range(
        tl.maximum(first - 1, 0), tl.minimum(first + rows + 1, H), num_stages=STAGES
    ):
        at = (row * W + column)[:, None] * C + c[None, :]
        v = tl.load(u + at, mask=(column < W)[:, None], other=0.0).to(tl.float32) + added
        a = gelu_in(v, dtype).to(dtype)
        above = tl.dot(a, lower, above)
        _keep(columns, above, row - 1, column, k, H, W, first, COLOURS)
        above = tl.dot(a, middle, here)
        here = tl.dot(a, upper)
    # below the last row of the picture is nothing that would have finished it
    row = tl.where(first + rows >= H, H - 1, -1)
    _keep(columns, above, row, column, k, H, W, first, COLOURS)


@triton.jit
def _across(columns, bias, y, size, W, BLOCK: tl.constexpr):
    """y (B,COLOURS,H,W): the sum of the shares from the left, from here and from the right, and
    the bias."""
    colour = tl.program_id(1)
    plane = (tl.program_id(2) * tl.num_programs(1) + colour).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ok, column = at < size, at % W
    columns += plane * 3 * size
    v = tl.load(columns + size + at, mask=ok, other=0.0) + tl.load(bias + colour).to(tl.float32)
    v += tl.load(columns + at - 1, mask=ok & (column > 0), other=0.0)
    v += tl.load(columns + 2 * size + at + 1, mask=ok & (column < W - 1), other=0.0)
    tl.store(y + plane * size + at, v.to(y.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=["steps"])
def _gradients(u, bias, weight, dy, du, sums, H, W, steps, C: tl.constexpr,
               COLOURS: tl.constexpr, BP: tl.constexpr,
               STAGES: tl.constexpr):  # fmt: skip
    """du (B,H,W,C), and sums (B,parts,33,C) for a part of a picture's pixels: the weight's
    gradient by 9 * colour + tap, and in the last row the bias's gradient."""
    part, picture = tl.program_id(0), tl.program_id(1).to(tl.int64)
    place = picture * tl.num_programs(0) + part
    size = H * W
    dtype = u.dtype.element_ty
    c, k = tl.arange(0, C), tl.arange(0, 32)
    colour, tap = k // 9, k % 9
    down, right = tap // 3 - 1, tap % 3 - 1
    real = k < 9 * COLOURS
    w = tl.load(
        weight + (colour[:, None] * C + c[None, :]) * 9 + tap[:, None],
        mask=real[:, None],
        other=0.0,
    )
    w = w.to(dtype)
    added = tl.load(bias + c).to(tl.float32)[None, :]
    u += picture * size * C
    du += picture * size * C
    # an output is below and to the right of what its first weight saw
    from_pixel = (dy + picture * COLOURS * size) + (colour * size - down * W - right)[:, None]
    acc = tl.zeros((C, 32), tl.float32)
    sum_d = tl.zeros(
        (C, 16), tl.float32
    )  # the same in every column: a product takes fewer instructions than a sum
    ones = tl.full((BP, 16), 1.0, dtype)
    for step in tl.range(0, steps, num_stages=STAGES):
        p = (part * steps + step) * BP + tl.arange(0, BP)
        v = (
            tl.load(u + p[:, None] * C + c[None, :], mask=(p < size)[:, None], other=0.0).to(
                tl.float32
            )
            + added
        )
        row, column = (p // W)[None, :] - down[:, None], (p % W)[None, :] - right[:, None]
        ok = (
            (row >= 0)
            & (row < H)
            & (column >= 0)
            & (column < W)
            & real[:, None]
            & (p < size)[None, :]
        )
        g = tl.load(from_pixel + p[None, :], mask=ok, other=0.0)
        a, slope = gelu_and_slope_in(v, dtype)
        d = tl.dot(tl.trans(g), w)
        # adds nothing, but has the compiler compute the GELU in d's order; else it does so
        # twice, once for each product
        a += 0.0 * d
        d = (d * slope).to(dtype)
        acc = tl.dot(tl.trans(a.to(dtype)), tl.trans(g), acc)
        sum_d = tl.dot(tl.trans(d), ones, sum_d)
        tl.store(du + p[:, None] * C + c[None, :], d, mask=(p < size)[:, None])
    sums += place * 33 * C
    tl.store(sums + k[None, :] * C + c[:, None], acc)
    tl.store(sums + 32 * C + c, tl.sum(sum_d, axis=1) / 16)


def _forward(u: Tensor, bias: Tensor, weight: Tensor, last_bias: Tensor) -> Tensor:
    (batch, channels, height, width), colours = u.shape, len(weight)
    columns = torch.empty(batch, colours, 3, height, width, device=u.device, dtype=torch.float32)
    y = torch.empty(batch, colours, height, width, device=u.device, dtype=u.dtype)
    tiles = FORWARD
    programs = triton.cdiv(width, tiles["pixels"]) * triton.cdiv(height, tiles["rows"])
    _columns[(programs, batch)](
        u, bias, weight, columns, height, width, tiles["rows"], C=channels, COLOURS=colours,
        BP=tiles["pixels"],
        STAGES=tiles["stages"], num_warps=tiles["warps"],
    )  # fmt: skip
    size = height * width
    _across[(triton.cdiv(size, 1024), colours, batch)](
        columns, last_bias, y, size, width, BLOCK=1024, num_warps=4
    )
    return y


def _backward(dy: Tensor, u: Tensor, bias: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dy (B,O,H,W), contiguous -> the gradients of u, channels-last, of bias and of weight."""
    (batch, channels, height, width), colours, tiles = u.shape, len(weight), BACKWARD
    parts, steps = in_parts(height * width, tiles["pixels"], tiles["parts"])
    limit = (
        {} if torch.version.hip else {"maxnreg": tiles["registers"]}
    )  # only NVIDIA's compiler takes one
    du = torch.empty_like(u, memory_format=torch.channels_last)
    sums = torch.empty(batch * parts, 33, channels, device=u.device, dtype=torch.float32)
    _gradients[(parts, batch)](
        u, bias, weight, dy, du, sums, height, width, steps, C=channels, COLOURS=colours,
        BP=tiles["pixels"],
        STAGES=tiles["stages"], num_warps=tiles["warps"], **limit,
    )  # fmt: skip
    total = sums.sum(dim=0)
    dw = total[: 9 * colours].view(colours, 9, channels).transpose(1, 2).reshape(weight.shape)
    return du, total[32].to(bias.dtype), dw.to(weight.dtype)
