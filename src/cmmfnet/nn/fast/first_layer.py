"""The first layer of a U-Net on a thermal frame: a 1x1 convolution of one or two channels to many,
instance norm, GELU. Triton.

At full resolution the output is the largest map of the network, though it is a linear function of
the frame's one or two channels. The norm's statistics follow from the statistics of the frame. So
the map is written once, normalised and channels-last. The gradient computes the map again from the
frame.

Let x' be the deviations of the frame's channels from their means, S their covariance over a
picture's N pixels, w a row of the convolution and s = 1 / sqrt(w S w' + eps). The normalised map is
v = s w x'. With d the gradient in front of the GELU, the weight's gradient through the norm is

    dw = sum of s (d - mean(d) - v mean(d v)) x' = s (D - s^2 (w D) S w) = s^3 (eps D + (w S w') D -
    (w D) S w)

with D = sum of d x'. D is the only sum over pixels, for which the map's gradient is read once. For
one channel the last two terms cancel, since the norm takes away the scale but for eps. For two
channels they are w's other channel times D_0 (S w)_1 - D_1 (S w)_0, or its negative. This form has
no differences of large numbers; for one channel autograd finds nothing but their rounding errors.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from cmmfnet.nn.fast.gelu import gelu_in, gelu_slope
from cmmfnet.nn.fast.sums import float32, in_parts

FORWARD = {"values": 4096, "warps": 4}
"""Of a program that writes the map: pixels times channels, warps."""
BACKWARD = {"pixels": 32, "parts": 44, "warps": 4, "stages": 1}
"""Pixels at a time (of 64 channels), parts of a picture whose sums are kept apart, warps, stages of
loads ahead."""
PART = 4096
"""Pixels of a frame whose moments are taken together."""


def first_layer(
    x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype, eps: float = 1e-5
) -> Tensor:
    """x (B,I,H,W) with I 1 or 2, weight (O,I,1,1) -> gelu(IN(weight * x)), (B,O,H,W) of ``dtype``,
    channels-last.

    ``bias`` (O,), the convolution's, vanishes in the norm, and its gradient is zero. x gets no
    gradient; the weight's is in the weight's dtype.
    """
    return _FirstLayer.apply(x, weight, bias, dtype, eps)


class _FirstLayer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, dtype, eps):
        x, lines = x.contiguous(), weight.flatten(1).contiguous()
        factors = _factors(x, lines, eps)
        ctx.save_for_backward(x, lines, bias, *factors)
        ctx.shape, ctx.eps = weight.shape, eps
        return _write_lines(x, *factors[:2], dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, bias, *factors = ctx.saved_tensors
        dw = _backward(dy, x, weight, factors, ctx.eps).reshape(ctx.shape)
        return None, dw, torch.zeros_like(bias), None, None


@triton.jit
def _gelu_of_lines(
    x,
    matrix,
    shift,
    y,
    size,
    channels,
    INPUTS: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    picture = tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    v = tl.load(shift + picture * channels + c, mask=c < channels, other=0.0)[None, :] + tl.zeros(
        (BP, BC), tl.float32
    )
    for i in tl.static_range(INPUTS):
        factor = tl.load(
            matrix + (picture * channels + c) * INPUTS + i, mask=c < channels, other=0.0
        )
        value = tl.load(x + (picture * INPUTS + i) * size + pixel, mask=pixel < size, other=0.0).to(
            tl.float32
        )
        v += value[:, None] * factor[None, :]
    at = (picture * size + pixel)[:, None] * channels + c[None, :]
    ok = (pixel < size)[:, None] & (c < channels)[None, :]
    v = gelu_in(v, y.dtype.element_ty)
    tl.store(y + at, v.to(y.dtype.element_ty), mask=ok)


@triton.jit
def _moments(x, moments, size, parts, INPUTS: tl.constexpr, BLOCK: tl.constexpr):
    """moments (B,parts,5): for a part of a picture's pixels the means of both channels, and the
    sums of the products 00, 01, 11 of their deviations. One channel has its mean and 00 only."""
    part, picture = tl.program_id(0), tl.program_id(1)
    at = part * BLOCK + tl.arange(0, BLOCK)
    ok = at < size
    count = tl.minimum(BLOCK, size - part * BLOCK)
    x += picture.to(tl.int64) * INPUTS * size
    to = moments + (picture * parts + part) * 5
    a = tl.load(x + at, mask=ok, other=0.0).to(tl.float32)
    mean = tl.sum(a) / count
    a = tl.where(ok, a - mean, 0.0)
    tl.store(to, mean)
    tl.store(to + 2, tl.sum(a * a))
    if INPUTS == 2:
        b = tl.load(x + size + at, mask=ok, other=0.0).to(tl.float32)
        mean = tl.sum(b) / count
        b = tl.where(ok, b - mean, 0.0)
        tl.store(to + 1, mean)
        tl.store(to + 3, tl.sum(a * b))
        tl.store(to + 4, tl.sum(b * b))


@triton.jit
def _lines(moments, weight, matrix, shift, known, size, parts, channels, eps,
           INPUTS: tl.constexpr, PARTS: tl.constexpr,
           BLOCK: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    """matrix (B,O,I) and shift (B,O): matrix x + shift is the normalised map of a picture x. known
    (B,5): means and covariance of the picture's channels, from the moments of all parts (Chan et
    al., 1983, eq. 2.1)."""
    picture = tl.program_id(1)
    i = tl.arange(0, PARTS)
    ok = i < parts
    count = tl.where(ok, tl.minimum(BLOCK, size - i * BLOCK), 0).to(tl.float32)
    of = moments + (picture * parts + i) * 5
    means = tl.load(of, mask=ok, other=0.0)
    mean_a = tl.sum(count * means) / size
    off_a = means - mean_a
    aa = tl.sum(tl.load(of + 2, mask=ok, other=0.0) + count * off_a * off_a) / size
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    inside = c < channels
    a = tl.load(weight + c * INPUTS, mask=inside, other=0.0).to(tl.float32)
    variance = a * a * aa
    tl.store(known + picture * 5, mean_a)  # all programs of a picture store equal values
    tl.store(known + picture * 5 + 2, aa)
    if INPUTS == 2:
        means = tl.load(of + 1, mask=ok, other=0.0)
        mean_b = tl.sum(count * means) / size
        off_b = means - mean_b
        ab = tl.sum(tl.load(of + 3, mask=ok, other=0.0) + count * off_a * off_b) / size
        bb = tl.sum(tl.load(of + 4, mask=ok, other=0.0) + count * off_b * off_b) / size
        b = tl.load(weight + c * INPUTS + 1, mask=inside, other=0.0).to(tl.float32)
        variance += 2 * a * b * ab + b * b * bb
        tl.store(known + picture * 5 + 1, mean_b)
        tl.store(known + picture * 5 + 3, ab)
        tl.store(known + picture * 5 + 4, bb)
    scale = 1.0 / tl.sqrt(tl.maximum(variance, 0.0) + eps)
    to = picture * channels + c
    moved = a * scale * mean_a
    tl.store(matrix + to * INPUTS, a * scale, mask=inside)
    if INPUTS == 2:
        moved += b * scale * mean_b
        tl.store(matrix + to * INPUTS + 1, b * scale, mask=inside)
    tl.store(shift + to, -moved, mask=inside)


@triton.jit(do_not_specialize=["steps", "parts"])
def _sums(dy, x, matrix, shift, known, found, size, channels, steps, parts,
          INPUTS: tl.constexpr, BP: tl.constexpr,
          BC: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """found (B,parts,I,O): D of the module's docstring, for a part of a picture's pixels."""
    part, picture = tl.program_id(0), tl.program_id(2)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = c < channels
    of = picture * channels + c
    added = tl.load(shift + of, mask=inside, other=0.0)[None, :]
    factor_a = tl.load(matrix + of * INPUTS, mask=inside, other=0.0)[None, :]
    mean_a = tl.load(known + picture * 5)
    sum_a = tl.zeros((BP, BC), tl.float32)
    if INPUTS == 2:
        factor_b = tl.load(matrix + of * INPUTS + 1, mask=inside, other=0.0)[None, :]
        mean_b = tl.load(known + picture * 5 + 1)
        sum_b = tl.zeros((BP, BC), tl.float32)
    x += picture.to(tl.int64) * INPUTS * size
    dy += picture.to(tl.int64) * channels * size
    for step in tl.range(0, steps, num_stages=STAGES):
        pixel = (part * steps + step) * BP + tl.arange(0, BP)
        ok = pixel < size
        d = tl.load(
            dy + pixel[:, None] * channels + c[None, :],
            mask=ok[:, None] & inside[None, :],
            other=0.0,
        )
        a = tl.load(x + pixel, mask=ok, other=0.0).to(tl.float32)
        v = a[:, None] * factor_a + added
        if INPUTS == 2:
            b = tl.load(x + size + pixel, mask=ok, other=0.0).to(tl.float32)
            v += b[:, None] * factor_b
        d = d.to(tl.float32) * gelu_slope(v, False)
        sum_a += d * (a - mean_a)[:, None]
        if INPUTS == 2:
            sum_b += d * (b - mean_b)[:, None]
    to = found + (picture * parts + part) * INPUTS * channels + c
    tl.store(to, tl.sum(sum_a, axis=0), mask=inside)
    if INPUTS == 2:
        tl.store(to + channels, tl.sum(sum_b, axis=0), mask=inside)


@triton.jit
def _through_norm(found, weight, known, dw, parts, channels, eps, INPUTS: tl.constexpr,
                  PARTS: tl.constexpr,
                  BC: tl.constexpr):  # fmt: skip
    """dw (B,O,I): a picture's share of the weight's gradient."""
    picture = tl.program_id(1)
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    inside = c < channels
    i = tl.arange(0, PARTS)[:, None]
    at = found + (picture * parts + i) * INPUTS * channels + c[None, :]
    ok = (i < parts) & inside[None, :]
    sum_a = tl.sum(tl.load(at, mask=ok, other=0.0), axis=0)
    a = tl.load(weight + c * INPUTS, mask=inside, other=0.0).to(tl.float32)
    aa = tl.load(known + picture * 5 + 2)
    variance, change = a * a * aa, eps * sum_a
    to = dw + (picture * channels + c) * INPUTS
    if INPUTS == 2:
        sum_b = tl.sum(tl.load(at + channels, mask=ok, other=0.0), axis=0)
        b = tl.load(weight + c * INPUTS + 1, mask=inside, other=0.0).to(tl.float32)
        ab, bb = tl.load(known + picture * 5 + 3), tl.load(known + picture * 5 + 4)
        variance += 2 * a * b * ab + b * b * bb
        turned = sum_a * (ab * a + bb * b) - sum_b * (aa * a + ab * b)
        change += b * turned
    scale = 1.0 / tl.sqrt(tl.maximum(variance, 0.0) + eps)
    scale = scale * scale * scale
    tl.store(to, scale * change, mask=inside)
    if INPUTS == 2:
        tl.store(to + 1, scale * (eps * sum_b - a * turned), mask=inside)


def _factors(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x (B,I,H,W), weight (O,I) -> matrix, shift, known, as ``_lines`` writes them."""
    (batch, inputs), size, channels = x.shape[:2], x.shape[2] * x.shape[3], len(weight)
    parts, columns = triton.cdiv(size, PART), _columns(channels)
    moments, known = float32(x, batch, parts, 5), float32(x, batch, 5)
    matrix, shift = float32(x, batch, channels, inputs), float32(x, batch, channels)
    _moments[(parts, batch)](x, moments, size, parts, INPUTS=inputs, BLOCK=PART, num_warps=8)
    _lines[(triton.cdiv(channels, columns), batch)](
        moments, weight, matrix, shift, known, size, parts, channels, eps, INPUTS=inputs,
        PARTS=triton.next_power_of_2(parts), BLOCK=PART, BC=columns, num_warps=1,
    )  # fmt: skip
    return matrix, shift, known


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, factors: tuple[Tensor, Tensor, Tensor], eps: float
) -> Tensor:
    """dy (B,O,H,W) -> the gradient of ``weight`` (O,I), in its dtype."""
    (matrix, shift, known), size = factors, x.shape[2] * x.shape[3]
    batch, channels, inputs = matrix.shape
    columns = _columns(channels)
    pixels = BACKWARD["pixels"] * 64 // columns
    parts, steps = in_parts(size, pixels, BACKWARD["parts"])
    found, dw = float32(x, batch, parts, inputs, channels), float32(x, batch, channels, inputs)
    across = triton.cdiv(channels, columns)
    _sums[(parts, across, batch)](
        dy.contiguous(memory_format=torch.channels_last), x, matrix, shift, known, found, size,
        channels, steps, parts,
        INPUTS=inputs, BP=pixels, BC=columns, STAGES=BACKWARD["stages"],
        num_warps=BACKWARD["warps"],
    )  # fmt: skip
    _through_norm[(across, batch)](
        found, weight, known, dw, parts, channels, eps, INPUTS=inputs,
        PARTS=triton.next_power_of_2(parts), BC=columns,
        num_warps=4,
    )  # fmt: skip
    return dw.sum(dim=0).to(weight.dtype)


def _columns(channels: int) -> int:
    """Channels of a program."""
    return min(64, triton.next_power_of_2(channels))


def _write_lines(x: Tensor, matrix: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    """x (B,I,H,W), matrix (B,O,I), shift (B,O), contiguous -> gelu(matrix x + shift), (B,O,H,W)
    of ``dtype``, channels-last."""
    batch, channels, inputs = matrix.shape
    size, y, columns = x.shape[2] * x.shape[3], _wide(x, channels, dtype), _columns(channels)
    rows = FORWARD["values"] // columns
    _gelu_of_lines[(triton.cdiv(size, rows), triton.cdiv(channels, columns), batch)](
        x,
        matrix,
        shift,
        y,
        size,
        channels,
        INPUTS=inputs,
        BP=rows,
        BC=columns,
        num_warps=FORWARD["warps"],
    )
    return y


def _wide(x: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    batch, _, height, width = x.shape
    y = torch.empty(batch, height, width, channels, device=x.device, dtype=dtype)
    return y.permute(0, 3, 1, 2)
