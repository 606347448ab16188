"""The kernels of blocks_training.py: products of 1x1 convolutions with the norms and GELUs around
them. The docstring of blocks_training.py defines the names. Products take the maps' dtype, all sums
are float32 in a fixed order."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from cmmfnet.nn.fast.blocks_inference import normalised
from cmmfnet.nn.fast.gelu import gelu_and_slope, gelu_of


class Tiles(NamedTuple):
    """Division of the work: pixels at a time, rows (wide channels) at a time, warps, stages of
    loads ahead, and ``parts`` of a picture that have sums of their own."""

    pixels: int
    rows: int
    warps: int
    stages: int
    parts: int = 1


# The fastest tiles on an H200, by channels C. "narrow", "leave" and "enter" are the gradients in
# front of a GELU.
TILES = {
    "covariance": {64: Tiles(64, 64, 4, 3, 16), 128: Tiles(64, 64, 8, 3, 4)},
    "inward": {64: Tiles(128, 64, 8, 2), 128: Tiles(64, 64, 8, 2)},
    "onward": {64: Tiles(64, 64, 4, 3), 128: Tiles(64, 64, 8, 3)},
    "feed-forward": {64: Tiles(64, 64, 4, 2), 128: Tiles(128, 64, 4, 2)},
    "narrow": {64: Tiles(32, 64, 4, 3, 4), 128: Tiles(32, 128, 8, 3, 4)},
    "leave": {64: Tiles(64, 64, 4, 3, 16), 128: Tiles(32, 64, 4, 3, 8)},
    "enter": {64: Tiles(64, 64, 4, 3, 32), 128: Tiles(32, 64, 4, 3, 8)},
    "between": {
        64: Tiles(16, 64, 4, 4),
        128: Tiles(32, 64, 8, 4),
    },  # columns in the place of pixels
    "through": {64: Tiles(128, 32, 4, 3), 128: Tiles(128, 32, 8, 3)},
}


@triton.jit(do_not_specialize=["steps"])
def _covariance(
    x, mean, scale, out, size, steps, C: tl.constexpr, BP: tl.constexpr, STAGES: tl.constexpr
):
    """Of n = IN(x), over a part of a picture's pixels: out[picture, part, row, c] = n n' and, as
    the row behind it, the sum."""
    part, picture = tl.program_id(0), tl.program_id(1)
    c = tl.arange(0, C)
    acc = tl.zeros((C, C), dtype=tl.float32)
    total = tl.zeros((C,), dtype=tl.float32)
    for step in tl.range(0, steps, num_stages=STAGES):
        pixel = (part * steps + step) * BP + tl.arange(0, BP)
        n = normalised(x, mean, scale, picture * C, pixel, size, C)
        acc = tl.dot(n, tl.trans(n), acc)
        total += tl.sum(n.to(tl.float32), axis=1)
    out += (picture * tl.num_programs(0) + part).to(tl.int64) * (C + 1) * C
    tl.store(out + c[:, None] * C + c[None, :], acc)
    tl.store(out + C * C + c, total)


@triton.jit
def _wide_statistics(sums, weight, mean_out, scale_out, ws, size, eps, ROWS: tl.constexpr,
                     C: tl.constexpr,
                     BR: tl.constexpr):  # fmt: skip
    """From ``sums`` (B,C+1,C), of all parts, of BR planes of h = weight n mean and scale; and
    ws[picture, row, c] = weight S."""
    picture = tl.program_id(1)
    r = tl.program_id(0) * BR + tl.arange(0, BR)
    c = tl.arange(0, C)
    sums += picture * (C + 1) * C
    mean = tl.load(sums + C * C + c) / size
    s = tl.load(sums + c[:, None] * C + c[None, :]) / size - mean[:, None] * mean[None, :]
    w = tl.load(weight + r[:, None] * C + c[None, :]).to(tl.float32)
    product = tl.dot(w, s, input_precision="tf32x3")
    tl.store(ws + (picture * ROWS + r)[:, None] * C + c[None, :], product)
    variance = tl.maximum(tl.sum(product * w, axis=1), 0.0)
    tl.store(mean_out + picture * ROWS + r, tl.sum(w * mean[None, :], axis=1))
    tl.store(scale_out + picture * ROWS + r, 1.0 / tl.sqrt(variance + eps))


@triton.jit
def _inward(x, weight, mean, scale, h_mean, h_scale, y, size, ROWS: tl.constexpr, C: tl.constexpr,
            BH: tl.constexpr,
            BP: tl.constexpr):  # fmt: skip
    """y (ROWS planes) = gelu(IN(weight IN(x)))."""
    picture = tl.program_id(1)
    pixel = tl.program_id(0) * BP + tl.arange(0, BP)
    a = normalised(x, mean, scale, picture * C, pixel, size, C)
    c = tl.arange(0, C)
    y += picture.to(tl.int64) * ROWS * size
    for first in range(0, ROWS, BH):
        r = first + tl.arange(0, BH)
        v = tl.dot(tl.load(weight + r[:, None] * C + c[None, :]), a)
        factor = tl.load(h_scale + picture * ROWS + r)
        v = v * factor[:, None] - (tl.load(h_mean + picture * ROWS + r) * factor)[:, None]
        v = gelu_of(v, y.dtype.element_ty == tl.float32)
        tl.store(
            y + r[:, None] * size + pixel[None, :],
            v.to(y.dtype.element_ty),
            mask=(pixel < size)[None, :],
        )


@triton.jit
def _feed_forward(x, widen, narrow, mean, scale, h_mean, h_scale, y, size, ROWS: tl.constexpr,
                  C: tl.constexpr,
                  BH: tl.constexpr, BP: tl.constexpr):  # fmt: skip
    """y (C planes) = narrow gelu(IN(widen IN(x)))."""
    picture = tl.program_id(1)
    pixel = tl.program_id(0) * BP + tl.arange(0, BP)
    a = normalised(x, mean, scale, picture * C, pixel, size, C)
    c = tl.arange(0, C)
    acc = tl.zeros((C, BP), dtype=tl.float32)
    for first in range(0, ROWS, BH):
        r = first + tl.arange(0, BH)
        v = tl.dot(tl.load(widen + r[:, None] * C + c[None, :]), a)
        factor = tl.load(h_scale + picture * ROWS + r)
        v = v * factor[:, None] - (tl.load(h_mean + picture * ROWS + r) * factor)[:, None]
        v = gelu_of(v, x.dtype.element_ty == tl.float32).to(x.dtype.element_ty)
        acc = tl.dot(tl.load(narrow + c[:, None] * ROWS + r[None, :]), v, acc)
    y += picture.to(tl.int64) * C * size
    tl.store(
        y + c[:, None] * size + pixel[None, :],
        acc.to(y.dtype.element_ty),
        mask=(pixel < size)[None, :],
    )


@triton.jit
def _onward(u, weight, y, size, ROWS: tl.constexpr, C: tl.constexpr, BH: tl.constexpr,
            BP: tl.constexpr,
            STAGES: tl.constexpr):  # fmt: skip
    """y (C planes) = weight gelu(u), of ROWS planes."""
    picture = tl.program_id(1)
    pixel = tl.program_id(0) * BP + tl.arange(0, BP)
    ok = (pixel < size)[None, :]
    c = tl.arange(0, C)
    u += picture.to(tl.int64) * ROWS * size
    acc = tl.zeros((C, BP), dtype=tl.float32)
    for first in tl.range(0, ROWS, BH, num_stages=STAGES):
        r = first + tl.arange(0, BH)
        v = tl.load(u + r[:, None] * size + pixel[None, :], mask=ok, other=0.0).to(tl.float32)
        v = gelu_of(v, u.dtype.element_ty == tl.float32).to(u.dtype.element_ty)
        acc = tl.dot(tl.load(weight + c[:, None] * ROWS + r[None, :]), v, acc)
    y += picture.to(tl.int64) * C * size
    tl.store(y + c[:, None] * size + pixel[None, :], acc.to(y.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=["steps"])
def _slopes(u, x, x_mean, x_scale, inside, h_mean, h_scale, grad, outside, out, sums, dn, dw, size,
            steps,
            ROWS: tl.constexpr, C: tl.constexpr, INSIDE: tl.constexpr, OUTSIDE: tl.constexpr,
            BH: tl.constexpr,
            BP: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """The gradient in front of a GELU, and the sums of it, for BH rows and a part of a picture's
    pixels.

    INSIDE: the GELU's input is v of blocks_training.py, with W = ``inside`` (ROWS,C), and out = s
        dv. sums[picture, part, 0 and 1, row] are of dv and dv v; dn[picture, part, row, c] = D.
        Without INSIDE the GELU's input is u, and out = dv.
    OUTSIDE: a 1x1 convolution with ``outside`` (C,ROWS) follows the GELU. ``grad`` (C planes) is
        the gradient of its output, and dw[picture, part, c, row] the gradient of its weight.
        Without OUTSIDE ``grad`` (ROWS planes) is the gradient behind the GELU.
    """
    part, parts, picture = tl.program_id(1), tl.num_programs(1), tl.program_id(2)
    dtype = out.dtype.element_ty
    r = tl.program_id(0) * BH + tl.arange(0, BH)
    c = tl.arange(0, C)
    rows_at = (picture * ROWS).to(tl.int64) * size
    if INSIDE:
        w = tl.load(inside + r[:, None] * C + c[None, :])
        factor = tl.load(h_scale + picture * ROWS + r)
        shift = -tl.load(h_mean + picture * ROWS + r) * factor
        sum_d = tl.zeros((BH,), dtype=tl.float32)
        sum_dv = tl.zeros((BH,), dtype=tl.float32)
        acc_d = tl.zeros((BH, C), dtype=tl.float32)
    if OUTSIDE:
        back = tl.load(outside + c[None, :] * ROWS + r[:, None])
        grad += (picture * C).to(tl.int64) * size
        acc_w = tl.zeros((BH, C), dtype=tl.float32)
    for step in tl.range(0, steps, num_stages=STAGES):
        pixel = (part * steps + step) * BP + tl.arange(0, BP)
        ok = (pixel < size)[None, :]
        wide = rows_at + r[:, None] * size + pixel[None, :]
        if INSIDE:
            n = normalised(x, x_mean, x_scale, picture * C, pixel, size, C)
            v = tl.dot(w, n) * factor[:, None] + shift[:, None]
        else:
            v = tl.load(u + wide, mask=ok, other=0.0).to(tl.float32)
        value, slope = gelu_and_slope(v, dtype == tl.float32)
        if OUTSIDE:
            dz = tl.load(grad + c[:, None] * size + pixel[None, :], mask=ok, other=0.0)
            dv = tl.dot(back, dz) * slope
            acc_w = tl.dot(value.to(dtype), tl.trans(dz), acc_w)
        else:
            dv = tl.load(grad + wide, mask=ok, other=0.0).to(tl.float32) * slope
        if INSIDE:
            sum_d += tl.sum(dv, axis=1)
            sum_dv += tl.sum(dv * v, axis=1)
            dv *= factor[:, None]
            acc_d = tl.dot(dv.to(dtype), tl.trans(n), acc_d)
        tl.store(out + wide, dv.to(dtype), mask=ok)
    place = picture * parts + part
    if INSIDE:
        tl.store(sums + place * 2 * ROWS + r, sum_d)
        tl.store(sums + place * 2 * ROWS + ROWS + r, sum_dv)
        tl.store(dn + (place.to(tl.int64) * ROWS + r)[:, None] * C + c[None, :], acc_d)
    if OUTSIDE:
        tl.store(dw + (place.to(tl.int64) * C + c)[None, :] * ROWS + r[:, None], acc_w)


@triton.jit(do_not_specialize=["parts"])
def _between(sums, dn, ws, weight, mean, scale, dw, matrix, shift_out, size, parts,
             ROWS: tl.constexpr, C: tl.constexpr,
             BR: tl.constexpr, BC: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """For a picture and BC of the C columns: dW (ROWS,C) float32, -(M + diag(k)) in the maps'
    dtype, and the shift (C,)."""
    picture = tl.program_id(1)
    c = tl.arange(0, C)
    b = tl.program_id(0) * BC + tl.arange(0, BC)
    m = tl.zeros((C, BC), dtype=tl.float32)
    k = tl.zeros((BC,), dtype=tl.float32)
    shift = tl.zeros((BC,), dtype=tl.float32)
    for first in range(0, ROWS, BR):
        r = first + tl.arange(0, BR)
        m1 = tl.zeros((BR,), dtype=tl.float32)
        m2 = tl.zeros((BR,), dtype=tl.float32)
        found = tl.zeros((BR, BC), dtype=tl.float32)
        for part in tl.range(0, parts, num_stages=STAGES):
            place = picture * parts + part
            m1 += tl.load(sums + place * 2 * ROWS + r) / size
            m2 += tl.load(sums + place * 2 * ROWS + ROWS + r) / size
            found += tl.load(dn + (place.to(tl.int64) * ROWS + r)[:, None] * C + b[None, :])
        s = tl.load(scale + picture * ROWS + r)
        q = s * s * m2
        at = (picture * ROWS + r)[:, None] * C + b[None, :]
        found -= (q * size)[:, None] * tl.load(ws + at)
        tl.store(dw + at, found)
        w = tl.load(weight + r[:, None] * C + b[None, :]).to(tl.float32)
        whole = tl.load(weight + r[:, None] * C + c[None, :]).to(tl.float32)
        k += tl.sum(w * found, axis=0) / size
        shift += tl.sum(w * (q * tl.load(mean + picture * ROWS + r) - s * m1)[:, None], axis=0)
        m = tl.dot(tl.trans(whole), w * q[:, None], m, input_precision="tf32x3")
    m += tl.where(c[:, None] == b[None, :], k[None, :], 0.0)
    tl.store(matrix + (picture * C + c)[:, None] * C + b[None, :], (-m).to(matrix.dtype.element_ty))
    tl.store(shift_out + picture * C + b, shift)


@triton.jit
def _through_norms(sdv, weight, x, x_mean, x_scale, matrix, shift, dy, dx, size, ROWS: tl.constexpr,
                   C: tl.constexpr,
                   BH: tl.constexpr, BP: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """dx = dy + scale (weight' sdv + matrix n + shift), with n = IN(x)."""
    picture = tl.program_id(1)
    pixel = tl.program_id(0) * BP + tl.arange(0, BP)
    ok = (pixel < size)[None, :]
    c = tl.arange(0, C)
    sdv += picture.to(tl.int64) * ROWS * size
    n = normalised(x, x_mean, x_scale, picture * C, pixel, size, C)
    acc = tl.dot(tl.load(matrix + (picture * C + c)[:, None] * C + c[None, :]), n)
    for first in tl.range(0, ROWS, BH, num_stages=STAGES):
        r = first + tl.arange(0, BH)
        g = tl.load(sdv + r[:, None] * size + pixel[None, :], mask=ok, other=0.0)
        acc = tl.dot(tl.load(weight + r[None, :] * C + c[:, None]), g, acc)
    acc = (acc + tl.load(shift + picture * C + c)[:, None]) * tl.load(x_scale + picture * C + c)[
        :, None
    ]
    at = (picture * C).to(tl.int64) * size + c[:, None] * size + pixel[None, :]
    acc += tl.load(dy + at, mask=ok, other=0.0).to(tl.float32)
    tl.store(dx + at, acc.to(dx.dtype.element_ty), mask=ok)
