"""Products of 1x1 convolutions in training on CUDA, with the norms and GELUs around them: what ops/block.py is made of.

Maps keep PyTorch's order (a plane for each channel), in which cuDNN would turn them before and after each of its products.
No normalised map is stored, nor the output of a GELU in front of a 1x1 convolution: both are computed again where they are
read, which costs multiply-adds in place of bytes.

**The gradient of IN, 1x1, IN, GELU** in one pass over the wide map and one product. With n = IN(x) (C planes), h = W n (R
planes), v = (h - mean) s, and dv the gradient at v, the second norm's gradient is dh = s (dv - m1 - v m2), where m1 and m2
are the means of dv and dv v over a plane. A first kernel (``slopes``) writes s dv and sums m1, m2, and over a plane's pixels
(s dv) x' and v x', from which follow D = (s dv) n' and V = v n', for n is x less its mean, times its scale. What else is
needed is small: as n and dh have means of zero,

    dW = dh n' = D - s m2 V,     W' dh = W' (s dv) - M n + shift,     M = W' diag(s^2 m2) W,
    mean(n W' dh) = the sums over R of W dW / size = k,

since v itself is linear in n. So the first norm's gradient, scale (W' dh - n k), is a product of s dv and n with known
matrices (``through_norms``), and the residual's gradient is added on the way. Products take the maps' dtype, all sums are
float32 in a fixed order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmmfnet.ops.ffn import normalised
from cmmfnet.ops.gelu import gelu_and_slope, gelu_of
from cmmfnet.ops.norm import Statistics


class Tiles(NamedTuple):
    """How the work is cut: pixels at a time, rows (wide channels) at a time, warps, stages of loads ahead; ``parts`` of a
    picture whose sums a gradient keeps apart."""

    pixels: int
    rows: int
    warps: int
    stages: int
    parts: int = 1


# By channels C; "narrow", "leave" and "enter" are the gradients in front of a GELU. benchmarks/blocks.py --tune tries others.
TILES = {
    "onward": {64: Tiles(128, 64, 4, 3), 128: Tiles(128, 64, 8, 3)},
    "narrow": {64: Tiles(64, 64, 4, 3, 4), 128: Tiles(64, 64, 8, 3, 4)},
    "leave": {64: Tiles(64, 64, 4, 3, 16), 128: Tiles(64, 64, 8, 3, 8)},
    "enter": {64: Tiles(64, 64, 4, 3, 16), 128: Tiles(64, 64, 8, 3, 8)},
    "through": {64: Tiles(128, 64, 4, 3), 128: Tiles(128, 64, 8, 3)},
}


@triton.jit
def _onward(u, mean, scale, weight, y, size, ROWS: tl.constexpr, C: tl.constexpr, NORM: tl.constexpr, BH: tl.constexpr,
            BP: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """y (C planes) = weight gelu(u), or NORM weight gelu(IN(u)), of ROWS planes."""
    picture = tl.program_id(1)
    pixel = tl.program_id(0) * BP + tl.arange(0, BP)
    ok = (pixel < size)[None, :]
    c = tl.arange(0, C)
    u += picture.to(tl.int64) * ROWS * size
    acc = tl.zeros((C, BP), dtype=tl.float32)
    for first in tl.range(0, ROWS, BH, num_stages=STAGES):
        r = first + tl.arange(0, BH)
        v = tl.load(u + r[:, None] * size + pixel[None, :], mask=ok, other=0.0).to(tl.float32)
        if NORM:
            factor = tl.load(scale + picture * ROWS + r)
            v = v * factor[:, None] - (tl.load(mean + picture * ROWS + r) * factor)[:, None]
        v = gelu_of(v, u.dtype.element_ty == tl.float32).to(u.dtype.element_ty)
        acc = tl.dot(tl.load(weight + c[:, None] * ROWS + r[None, :]), v, acc)
    y += picture.to(tl.int64) * C * size
    tl.store(y + c[:, None] * size + pixel[None, :], acc.to(y.dtype.element_ty), mask=ok)


@triton.jit
def _slopes(u, u_mean, u_scale, grad, weight, x, out, sums, dx, vx, dw, size, steps, ROWS: tl.constexpr, C: tl.constexpr,
            PRODUCT: tl.constexpr, NORM: tl.constexpr, BH: tl.constexpr, BP: tl.constexpr,
            STAGES: tl.constexpr):  # fmt: skip
    """The gradient in front of a GELU, and all that can be summed on the way, of BH rows and a part of a picture's pixels.

    PRODUCT: behind the GELU is a 1x1 convolution with ``weight`` (C,ROWS), whose output's gradient is ``grad`` (C planes); its
    own is dw[picture, part, row, c]. Else ``grad`` (ROWS planes) is the gradient behind the GELU.
    NORM: before the GELU is the second norm of the module's text, and out = s dv; sums[picture, part, 0 and 1, row] of dv
    and dv v, and dx and vx [picture, part, row, c] = (s dv) x' and v x'. Else out = dv.
    """
    part, parts, picture = tl.program_id(1), tl.num_programs(1), tl.program_id(2)
    dtype = u.dtype.element_ty
    r = tl.program_id(0) * BH + tl.arange(0, BH)
    c = tl.arange(0, C)
    rows_at = (picture * ROWS).to(tl.int64) * size
    channels_at = (picture * C).to(tl.int64) * size
    if NORM:
        factor = tl.load(u_scale + picture * ROWS + r)
        shift = -tl.load(u_mean + picture * ROWS + r) * factor
        sum_d = tl.zeros((BH,), dtype=tl.float32)
        sum_dv = tl.zeros((BH,), dtype=tl.float32)
        acc_d = tl.zeros((BH, C), dtype=tl.float32)
        acc_v = tl.zeros((BH, C), dtype=tl.float32)
    if PRODUCT:
        back = tl.load(weight + c[None, :] * ROWS + r[:, None])
        acc_w = tl.zeros((BH, C), dtype=tl.float32)
    for step in tl.range(0, steps, num_stages=STAGES):
        pixel = (part * steps + step) * BP + tl.arange(0, BP)
        ok = (pixel < size)[None, :]
        wide = rows_at + r[:, None] * size + pixel[None, :]
        narrow = channels_at + c[:, None] * size + pixel[None, :]
        v = tl.load(u + wide, mask=ok, other=0.0).to(tl.float32)
        if NORM:
            v = v * factor[:, None] + shift[:, None]
        value, slope = gelu_and_slope(v, dtype == tl.float32)
        if PRODUCT:
            dz = tl.load(grad + narrow, mask=ok, other=0.0)
            dv = tl.dot(back, dz) * slope
            acc_w = tl.dot(value.to(dtype), tl.trans(dz), acc_w)
        else:
            dv = tl.load(grad + wide, mask=ok, other=0.0).to(tl.float32) * slope
        if NORM:
            sum_d += tl.sum(dv, axis=1)
            sum_dv += tl.sum(dv * v, axis=1)
            dv *= factor[:, None]
            beside = tl.trans(tl.load(x + narrow, mask=ok, other=0.0))
            acc_d = tl.dot(dv.to(dtype), beside, acc_d)
            acc_v = tl.dot(v.to(dtype), beside, acc_v)
        tl.store(out + wide, dv.to(dtype), mask=ok)
    place = picture * parts + part
    at = (place.to(tl.int64) * ROWS + r)[:, None] * C + c[None, :]
    if NORM:
        tl.store(sums + place * 2 * ROWS + r, sum_d)
        tl.store(sums + place * 2 * ROWS + ROWS + r, sum_dv)
        tl.store(dx + at, acc_d)
        tl.store(vx + at, acc_v)
    if PRODUCT:
        tl.store(dw + at, acc_w)


@triton.jit
def _between(sums, dx, vx, weight, mean, scale, x_mean, x_scale, dw, matrix, shift_out, size, parts, ROWS: tl.constexpr,
             C: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    """Of a picture and BC of its C columns: dW (ROWS,C) float32, -(M + diag(k)) in the maps' dtype, and the shift (C,)."""
    picture = tl.program_id(1)
    c = tl.arange(0, C)
    b = tl.program_id(0) * BC + tl.arange(0, BC)
    m = tl.zeros((C, BC), dtype=tl.float32)
    k = tl.zeros((BC,), dtype=tl.float32)
    shift = tl.zeros((BC,), dtype=tl.float32)
    n_mean = tl.load(x_mean + picture * C + b)[None, :]
    n_scale = tl.load(x_scale + picture * C + b)[None, :]
    for first in range(0, ROWS, BR):
        r = first + tl.arange(0, BR)
        s1 = tl.zeros((BR,), dtype=tl.float32)
        s2 = tl.zeros((BR,), dtype=tl.float32)
        total_d = tl.zeros((BR, BC), dtype=tl.float32)
        total_v = tl.zeros((BR, BC), dtype=tl.float32)
        for part in range(parts):
            place = picture * parts + part
            s1 += tl.load(sums + place * 2 * ROWS + r)
            s2 += tl.load(sums + place * 2 * ROWS + ROWS + r)
            at = (place.to(tl.int64) * ROWS + r)[:, None] * C + b[None, :]
            total_d += tl.load(dx + at)
            total_v += tl.load(vx + at)
        s = tl.load(scale + picture * ROWS + r)
        q = s * s2 / size
        found = (total_d - (s * s1)[:, None] * n_mean - q[:, None] * total_v) * n_scale  # the sum of v is 0
        tl.store(dw + (picture * ROWS + r)[:, None] * C + b[None, :], found)
        w = tl.load(weight + r[:, None] * C + b[None, :]).to(tl.float32)
        whole = tl.load(weight + r[:, None] * C + c[None, :]).to(tl.float32)
        k += tl.sum(w * found, axis=0)
        q *= s
        shift += tl.sum(w * (q * tl.load(mean + picture * ROWS + r) - s * s1 / size)[:, None], axis=0)
        m = tl.dot(tl.trans(whole), w * q[:, None], m, input_precision="tf32")
    m += tl.where(c[:, None] == b[None, :], (k / size)[None, :], 0.0)
    tl.store(matrix + (picture * C + c)[:, None] * C + b[None, :], (-m).to(matrix.dtype.element_ty))
    tl.store(shift_out + picture * C + b, shift)


@triton.jit
def _through_norms(sdv, weight, x, x_mean, x_scale, matrix, shift, dy, dx, size, ROWS: tl.constexpr, C: tl.constexpr,
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
    acc = (acc + tl.load(shift + picture * C + c)[:, None]) * tl.load(x_scale + picture * C + c)[:, None]
    at = (picture * C).to(tl.int64) * size + c[:, None] * size + pixel[None, :]
    acc += tl.load(dy + at, mask=ok, other=0.0).to(tl.float32)
    tl.store(dx + at, acc.to(dx.dtype.element_ty), mask=ok)


def onward(u: Tensor, statistics: Statistics | None, weight: Tensor) -> Tensor:
    """u (B,R,H,W), weight (C,R) of u's dtype -> the 1x1 convolution of gelu(u), with statistics of gelu(IN(u)), (B,C,H,W)."""
    (batch, rows, height, width), channels = u.shape, weight.shape[0]
    y = torch.empty(batch, channels, height, width, device=u.device, dtype=u.dtype)
    size, tiles = height * width, TILES["onward"][channels]
    mean, scale = (u, u) if statistics is None else statistics
    _onward[(triton.cdiv(size, tiles.pixels), batch)](
        u, mean, scale, weight, y, size, ROWS=rows, C=channels, NORM=statistics is not None, BH=tiles.rows,
        BP=tiles.pixels, STAGES=tiles.stages, num_warps=tiles.warps,
    )  # fmt: skip
    return y


class Sums(NamedTuple):
    """What ``slopes`` summed, each part of a picture by itself, float32; of what, ``_slopes`` says."""

    sums: Tensor  # (B,parts,2,R)
    dx: Tensor  # (B,parts,R,C)
    vx: Tensor  # (B,parts,R,C)


def slopes(
    u: Tensor,
    grad: Tensor,
    weight: Tensor | None,
    norm: tuple[Statistics, Tensor] | None,
    channels: int,
) -> tuple[Tensor, Tensor | None, Sums | None]:
    """The gradient in front of a GELU of u (B,R,H,W), as ``_slopes`` says.

    With weight (C,R), grad is (B,C,H,W), and the second result is the gradient of weight, (C,R) float32; else (B,R,H,W).
    With ``norm``, the statistics of u, and x (B,C,H,W), the first result is s dv, and the third is there.
    """
    batch, rows, height, width = u.shape
    kind = "leave" if norm is None else "enter" if weight is None else "narrow"
    size, tiles = height * width, TILES[kind][channels]
    parts = min(tiles.parts, triton.cdiv(size, tiles.pixels))
    steps = triton.cdiv(triton.cdiv(size, tiles.pixels), parts)
    out = torch.empty_like(u)

    def partial() -> Tensor:
        return torch.empty(batch, parts, rows, channels, device=u.device, dtype=torch.float32)

    dw = None if weight is None else partial()
    statistics, x = ((u, u), u) if norm is None else norm
    found = None
    if norm is not None:
        found = Sums(torch.empty(batch, parts, 2, rows, device=u.device, dtype=torch.float32), partial(), partial())
    _slopes[(rows // tiles.rows, parts, batch)](
        u, *statistics, grad, u if weight is None else weight, x, out, *(found or (u, u, u)),
        u if dw is None else dw, size, steps, ROWS=rows, C=channels, PRODUCT=weight is not None, NORM=norm is not None,
        BH=tiles.rows, BP=tiles.pixels, STAGES=tiles.stages, num_warps=tiles.warps,
    )  # fmt: skip
    return out, None if dw is None else dw.sum(dim=(0, 1)).t().contiguous(), found


def through_norms(
    sdv: Tensor, found: Sums, statistics: Statistics, weight: Tensor, x: Tensor, x_statistics: Statistics, dy: Tensor
) -> tuple[Tensor, Tensor]:
    """From ``slopes`` with a norm, weight (R,C) between the norms, and dy (B,C,H,W), the gradient beside the branch:
    dx (B,C,H,W), the sum of both, and the gradient of weight, (R,C) float32."""
    batch, rows, height, width = sdv.shape
    channels, size, tiles = x.shape[1], height * width, TILES["through"][x.shape[1]]
    dw = torch.empty(batch, rows, channels, device=x.device, dtype=torch.float32)
    matrix = torch.empty(batch, channels, channels, device=x.device, dtype=x.dtype)
    shift = torch.empty(batch, channels, device=x.device, dtype=torch.float32)
    columns = 32
    _between[(channels // columns, batch)](
        *found, weight, *statistics, *x_statistics, dw, matrix, shift, size, found.sums.shape[1], ROWS=rows, C=channels, BR=64,
        BC=columns, num_warps=4,
    )  # fmt: skip
    dx = torch.empty_like(x)
    _through_norms[(triton.cdiv(size, tiles.pixels), batch)](
        sdv, weight, x, *x_statistics, matrix, shift, dy, dx, size, ROWS=rows, C=channels, BH=tiles.rows,
        BP=tiles.pixels, STAGES=tiles.stages, num_warps=tiles.warps,
    )  # fmt: skip
    return dx, dw.sum(dim=0)
