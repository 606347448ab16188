"""The 1x1 convolutions of a large-kernel stage in inference: Triton.

A convolution behind a norm reads the map itself, not a normalised copy. A convolution in front of a
norm and GELU writes the output of the GELU. A feed-forward never writes its wide map.

The statistics of a norm behind a 1x1 convolution of a normalised map are known before the
convolution. With G the map's Gram matrix (channels by channels, over the N pixels of a picture),
output o has the mean 0 and the variance w_o G w_o' / N. So a first pass reads the map for the
variances alone, from G or from the products themselves. The norm is then folded into the weights, a
set for each picture, and the convolution writes normalised values.

A feed-forward is IN, 1x1 from C to 4C, IN, GELU, 1x1 to C (`blocks.ConvFFN` up to its last norm).
Its wide map, four times the input, stays in registers, tile by tile. A norm takes away the bias of
the convolution in front of it, so these convolutions have no bias.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmmfnet.nn.fast.gelu import gelu_in
from cmmfnet.nn.fast.norm import Statistics
from cmmfnet.nn.fast.sums import in_parts

CHANNELS = (64, 128)
"""Channels that are faster here: with more, weights and a tile no longer fit the memory."""


def enter(
    x: Tensor, weight: Tensor, statistics: Statistics, eps: float = 1e-5, last: bool = False
) -> Tensor:
    """gelu(IN(weight * IN(x))), as a large-kernel block begins.

    x (B,C,H,W) of 16 bits and its planes' statistics, weight (O,C,1,1), O a multiple of 64 ->
    (B,O,H,W), channels-last if ``last``. Scales of 1 leave the first norm out, since the second
    norm takes the mean away. Products take x's dtype, sums are float32.
    """
    (batch, channels, height, width), outputs = x.shape, weight.shape[0]
    x, weight, size = x.contiguous(), weight.to(x.dtype).contiguous(), height * width
    folded, y = _weights_with_norm(x, weight, *statistics, eps), _empty(x, outputs, last)
    tiling = _tiling(*_ENTERED[channels])
    _entered[(triton.cdiv(size, tiling["BP"]), batch)](
        x, folded, *statistics, y, size, outputs, C=channels, LAST=last, **tiling
    )
    return y


def feed_forward(
    x: Tensor, widen: Tensor, narrow: Tensor, bias: Tensor, statistics: Statistics,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """narrow(gelu(IN(widen(IN(x))))) + bias.

    x (B,C,H,W) of 16 bits with C in CHANNELS and its planes' statistics, widen (F,C,1,1) with F a
    multiple of 64, narrow (C,F,1,1), bias (C,) -> (B,C,H,W). Products take x's dtype, sums and
    statistics are float32.
    """
    batch, channels, height, width = x.shape
    hidden, size = widen.shape[0], height * width
    x = x.contiguous()
    widen, narrow = (w.to(x.dtype).contiguous() for w in (widen, narrow))
    folded = _weights_with_norm(x, widen, *statistics, eps)
    y, tiling = torch.empty_like(x), _tiling(*_THROUGH[channels], name="BH")
    _through[(triton.cdiv(size, tiling["BP"]), batch)](
        x, folded, narrow, bias.to(x.dtype), *statistics, y, size, hidden, C=channels, **tiling
    )
    return y


def join(x: Tensor, skip: Tensor, weight: Tensor, bias: Tensor, x_bias: Tensor) -> Tensor:
    """The 1x1 convolution of (x + x_bias) and skip together, without a map of both.

    x and skip (B,C,H,W) of 16 bits with C in CHANNELS, weight (O,2C,1,1) with O a multiple of 64,
    bias (O,), x_bias (C,) -> (B,O,H,W). Products take x's dtype, sums are float32.
    """
    batch, channels, height, width = x.shape
    size, pixels = height * width, 128 if channels == 64 else 64  # more would not fit
    last = x.is_contiguous(memory_format=torch.channels_last)
    x, skip, weight = x if last else x.contiguous(), skip.contiguous(), weight.to(x.dtype)
    y = _empty(x, weight.shape[0])
    _joined[(triton.cdiv(size, pixels), batch)](
        x, skip, weight.contiguous(), bias, x_bias, y, size, C=channels, OUT=weight.shape[0],
        LAST=last, BO=64, BP=pixels, num_warps=8 if channels > 64 else 4, num_stages=3,
    )  # fmt: skip
    return y


@triton.jit
def normalised(x, mean, scale, start, pixel, size, C: tl.constexpr):
    """Tile (C, pixels) of a picture from plane ``start`` on, in the dtype of the input; zeros
    beyond the planes."""
    c = tl.arange(0, C)
    at = (start + c).to(tl.int64)[:, None] * size + pixel[None, :]
    ok = (pixel < size)[None, :]
    value = tl.load(x + at, mask=ok, other=0.0).to(tl.float32)
    value = (value - tl.load(mean + start + c)[:, None]) * tl.load(scale + start + c)[:, None]
    return tl.where(ok, value, 0.0).to(x.dtype.element_ty)


@triton.jit
def _gram(x, weight, mean, scale, parts, size, steps, outputs, C: tl.constexpr,
          BO: tl.constexpr,
          BP: tl.constexpr):  # fmt: skip
    """parts[picture, part, o]: w_o G w_o' with the Gram matrix G of IN(x) over a part of a
    picture's pixels."""
    part, picture = tl.program_id(0), tl.program_id(1)
    gram = tl.zeros((C, C), dtype=tl.float32)
    for step in range(steps):
        pixel = (part * steps + step) * BP + tl.arange(0, BP)
        a = normalised(x, mean, scale, picture * C, pixel, size, C)
        gram = tl.dot(a, tl.trans(a), gram)
    c = tl.arange(0, C)
    for first in range(0, outputs, BO):
        o = first + tl.arange(0, BO)
        rows = tl.load(weight + o[:, None] * C + c[None, :]).to(tl.float32)
        # variances are small differences of G's products, which 16 bits would lose
        product = tl.dot(rows, gram, input_precision="tf32") * rows
        tl.store(
            parts + (picture * tl.num_programs(0) + part) * outputs + o, tl.sum(product, axis=1)
        )


@triton.jit
def _squares(
    x,
    weight,
    mean,
    scale,
    parts,
    size,
    outputs,
    C: tl.constexpr,
    BO: tl.constexpr,
    BP: tl.constexpr,
):
    """parts[picture, part, o]: the sum of (w_o IN(x))^2 over BP pixels."""
    part, picture = tl.program_id(0), tl.program_id(1)
    a = normalised(x, mean, scale, picture * C, part * BP + tl.arange(0, BP), size, C)
    c = tl.arange(0, C)
    for first in range(0, outputs, BO):
        o = first + tl.arange(0, BO)
        value = tl.dot(tl.load(weight + o[:, None] * C + c[None, :]), a)
        tl.store(
            parts + (picture * tl.num_programs(0) + part) * outputs + o,
            tl.sum(value * value, axis=1),
        )


@triton.jit
def _folded(
    weight,
    parts,
    y,
    size,
    count,
    outputs,
    eps,
    C: tl.constexpr,
    BO: tl.constexpr,
    BT: tl.constexpr,
):
    """y[picture]: the weights, with the scale of the norm behind them, from all ``count`` parts
    of its variances."""
    picture = tl.program_id(1)
    o = tl.program_id(0) * BO + tl.arange(0, BO)
    squares = tl.zeros((BT, BO), dtype=tl.float32)
    for first in range(0, count, BT):
        part = first + tl.arange(0, BT)
        at = ((picture * count + part) * outputs)[:, None] + o[None, :]
        squares += tl.load(parts + at, mask=(part < count)[:, None], other=0.0)
    scale = 1.0 / tl.sqrt(tl.maximum(tl.sum(squares, axis=0) / size, 0.0) + eps)
    at = o[:, None] * C + tl.arange(0, C)[None, :]
    value = tl.load(weight + at).to(tl.float32) * scale[:, None]
    tl.store(y + picture.to(tl.int64) * outputs * C + at, value.to(y.dtype.element_ty))


@triton.jit
def _entered(x, weight, mean, scale, y, size, outputs, C: tl.constexpr, LAST: tl.constexpr,
             BO: tl.constexpr,
             BP: tl.constexpr):  # fmt: skip
    """gelu(weight * IN(x)), with weights for each picture. LAST: y is channels-last."""
    picture = tl.program_id(1)
    pixel = tl.program_id(0) * BP + tl.arange(0, BP)
    ok = (pixel < size)[None, :]
    c = tl.arange(0, C)
    a = normalised(x, mean, scale, picture * C, pixel, size, C)
    weight += picture.to(tl.int64) * outputs * C
    for first in range(0, outputs, BO):
        o = first + tl.arange(0, BO)
        value = tl.dot(tl.load(weight + o[:, None] * C + c[None, :]), a)
        value = gelu_in(value, y.dtype.element_ty)
        if LAST:
            at = (picture.to(tl.int64) * size + pixel)[None, :] * outputs + o[:, None]
        else:
            at = (picture * outputs + o).to(tl.int64)[:, None] * size + pixel[None, :]
        tl.store(y + at, value.to(y.dtype.element_ty), mask=ok)


@triton.jit
def _through(x, widen, narrow, bias, mean, scale, y, size, hidden, C: tl.constexpr,
             BH: tl.constexpr,
             BP: tl.constexpr):  # fmt: skip
    """narrow gelu(IN(widen IN(x))) + bias. Pixels are the rows of both products, so the wide
    tile stays in registers between them."""
    picture = tl.program_id(1)
    pixel = tl.program_id(0) * BP + tl.arange(0, BP)
    a = tl.trans(normalised(x, mean, scale, picture * C, pixel, size, C))
    c = tl.arange(0, C)
    widen += picture.to(tl.int64) * hidden * C
    acc = tl.zeros((BP, C), dtype=tl.float32)
    for first in range(0, hidden, BH):
        h = first + tl.arange(0, BH)
        wide = gelu_in(tl.dot(a, tl.load(widen + h[None, :] * C + c[:, None])), x.dtype.element_ty)
        acc = tl.dot(
            wide.to(x.dtype.element_ty), tl.load(narrow + c[None, :] * hidden + h[:, None]), acc
        )
    acc += tl.load(bias + c).to(tl.float32)[None, :]
    at = (picture * C + c).to(tl.int64)[None, :] * size + pixel[:, None]
    tl.store(y + at, acc.to(y.dtype.element_ty), mask=(pixel < size)[:, None])


# The fastest tiles on an H200, by channels: pixels at a time, outputs (or wide channels) at a
# time, warps, stages.
_VARIANCES = {64: (128, 64, 4, 3), 128: (256, 64, 8, 3)}
_ENTERED = {64: (128, 64, 8, 2), 128: (256, 64, 8, 1)}
_THROUGH = {64: (64, 64, 4, 3), 128: (64, 64, 4, 3)}


def _tiling(pixels: int, block: int, warps: int, stages: int, name: str = "BO") -> dict[str, int]:
    return {"BP": pixels, name: block, "num_warps": warps, "num_stages": stages}


def _weights_with_norm(
    x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, eps: float
) -> Tensor:
    """Contiguous x and weight (O,C,1,1) -> the weights with the norm behind them, (B,O,C)."""
    batch, channels, height, width = x.shape
    size, outputs, tiling = height * width, weight.shape[0], _tiling(*_VARIANCES[channels])
    given = x, weight, mean, scale
    if channels == 64:  # with more channels, the Gram matrix costs more than the products
        # enough programs to fill the card, few enough that they do more with pixels than with
        # weights
        count, steps = in_parts(size, tiling["BP"], 256 // batch)
        parts = torch.empty(batch, count, outputs, device=x.device, dtype=torch.float32)
        _gram[(count, batch)](*given, parts, size, steps, outputs, C=channels, **tiling)
    else:
        count = triton.cdiv(size, tiling["BP"])
        parts = torch.empty(batch, count, outputs, device=x.device, dtype=torch.float32)
        _squares[(count, batch)](*given, parts, size, outputs, C=channels, **tiling)
    y = torch.empty(batch, outputs, channels, device=x.device, dtype=x.dtype)
    _folded[(outputs // 16, batch)](
        weight, parts, y, size, count, outputs, eps, C=channels, BO=16, BT=32, num_warps=4
    )
    return y


def _empty(x: Tensor, outputs: int, last: bool = False) -> Tensor:
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(
        x.shape[0], outputs, *x.shape[2:], device=x.device, dtype=x.dtype, memory_format=layout
    )


@triton.jit
def _joined(x, skip, weight, bias, x_bias, y, size, C: tl.constexpr, OUT: tl.constexpr,
            LAST: tl.constexpr,
            BO: tl.constexpr, BP: tl.constexpr):  # fmt: skip
    """y = weight [x + x_bias, skip] + bias. LAST: x is channels-last."""
    picture = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.arange(0, C)
    ok = (pixel < size)[None, :]
    plane_at = (picture * C + c)[:, None] * size + pixel[None, :]
    if LAST:
        at = (picture * size + pixel)[None, :] * C + c[:, None]
    else:
        at = plane_at
    left = (
        tl.load(x + at, mask=ok, other=0.0).to(tl.float32)
        + tl.load(x_bias + c).to(tl.float32)[:, None]
    )
    left = left.to(x.dtype.element_ty)
    right = tl.load(skip + plane_at, mask=ok, other=0.0)
    for first in range(0, OUT, BO):
        o = first + tl.arange(0, BO)
        row = weight + o[:, None] * (2 * C) + c[None, :]
        value = tl.dot(tl.load(row), left)
        value = tl.dot(tl.load(row + C), right, value) + tl.load(bias + o).to(tl.float32)[:, None]
        tl.store(
            y + (picture * OUT + o)[:, None] * size + pixel[None, :],
            value.to(y.dtype.element_ty),
            mask=ok,
        )
