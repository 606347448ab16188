"""Instance normalisation, optionally with GELU and a residual behind it: Triton.

Around a large kernel, norm and GELU are most of the memory traffic. For statistics, normalisation,
GELU and their gradients PyTorch passes over the map five times forwards and nine times backwards.
Here one program takes one plane (picture, channel), which fits the cache. Device memory has one
read and one write forwards, and two reads and one write backwards. Statistics are in float32 and
take two passes, mean and deviations (over each part of a large plane), so flat planes stay exact.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from cmmfnet.nn.fast.gelu import gelu_of, gelu_slope

Statistics = tuple[Tensor, Tensor]
"""Of every plane of a map (B,C,H,W): mean, and 1 / sqrt(variance + eps), each (B*C,) float32."""


def instance_norm(
    x: Tensor, gelu: bool = False, residual: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """x (B,C,H,W) of 16 bits or float32 -> the same shape and dtype, contiguous: (x - mean) /
    sqrt(variance + eps) over each plane, then GELU (erf) if ``gelu``, then plus ``residual``
    (B,C,H,W), whose dtype may be wider and is then the output's."""
    if residual is not None and residual.dtype != x.dtype:
        return residual + _Norm.apply(x, None, gelu, eps)
    return _Norm.apply(x, residual, gelu, eps)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, gelu, eps):
        x = x.contiguous()
        y = torch.empty_like(x)
        residual = None if residual is None else residual.contiguous()
        ctx.save_for_backward(x, *_run(x, residual, y, gelu, eps))
        ctx.add, ctx.gelu = residual is not None, gelu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, *statistics = ctx.saved_tensors
        dx = instance_norm_backward(dy, x, tuple(statistics), ctx.gelu)
        return dx, dy if ctx.add else None, None, None


def plane_statistics(x: Tensor, eps: float = 1e-5) -> Statistics:
    """Statistics of the planes of x (B,C,H,W), without a gradient."""
    return _run(x.detach().contiguous(), None, None, False, eps)


def residual_norm(
    x: Tensor, residual: Tensor, gelu: bool = False, eps: float = 1e-5
) -> tuple[Tensor, Statistics, Statistics]:
    """``instance_norm(x, gelu, residual)`` without a gradient; the statistics of x, which a
    gradient needs; and those of the output, which the next norm needs."""
    x = x.contiguous()
    y = torch.empty_like(x)
    mean, scale, *after = _run(x, residual.contiguous(), y, gelu, eps, after=True)
    return y, (mean, scale), tuple(after)


def instance_norm_backward(dy: Tensor, x: Tensor, statistics: Statistics, gelu: bool) -> Tensor:
    """The gradient of ``instance_norm(x, gelu)``, dy (B,C,H,W) -> the gradient of x, in its
    dtype."""
    x, dy = x.contiguous(), dy.contiguous()
    planes, size = x.shape[0] * x.shape[1], x.shape[2] * x.shape[3]
    dx, cut = torch.empty_like(x), _cut(size)
    _backward[(planes,)](
        x, dy, dx, *statistics, size, GELU=gelu, WHOLE=size <= WHOLE, FULL=size == cut["BLOCK"],
        **cut,
    )  # fmt: skip
    return dx


@triton.jit
def _write(v, residual, y, start, at, size, GELU: tl.constexpr, ADD: tl.constexpr):
    """GELU and residual for the normalised values v (float32) at ``at`` in a plane; stores the
    results and returns them."""
    if GELU:
        v = gelu_of(v, y.dtype.element_ty == tl.float32)
    if ADD:
        v += tl.load(residual + start + at, mask=at < size, other=0.0).to(tl.float32)
    written = v.to(y.dtype.element_ty)
    tl.store(y + start + at, written, mask=at < size)
    return written.to(tl.float32)


@triton.jit
def _centred(v, at, size, eps):
    """A plane's values less their mean, zeros beyond it; the mean, and the scale that makes
    their variance 1."""
    mean = tl.sum(tl.where(at < size, v, 0.0)) / size
    v = tl.where(at < size, v - mean, 0.0)
    return v, mean, 1.0 / tl.sqrt(tl.sum(v * v) / size + eps)


@triton.jit
def _forward(
    x,
    residual,
    y,
    mean_out,
    scale_out,
    mean_after,
    scale_after,
    size,
    eps,
    GELU: tl.constexpr,
    ADD: tl.constexpr,
    WRITE: tl.constexpr,
    AFTER: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """y of a plane that fits into the registers of one program, the statistics of x and, for
    AFTER, of y."""
    if FULL:
        size = BLOCK  # so that the compiler leaves all masks out
    plane = tl.program_id(0)
    start = plane.to(tl.int64) * size
    at = tl.arange(0, BLOCK)
    v, mean, scale = _centred(
        tl.load(x + start + at, mask=at < size, other=0.0).to(tl.float32), at, size, eps
    )
    tl.store(mean_out + plane, mean)
    tl.store(scale_out + plane, scale)
    if WRITE:
        v = _write(v * scale, residual, y, start, at, size, GELU, ADD)
    if AFTER:
        v, mean, scale = _centred(v, at, size, eps)
        tl.store(mean_after + plane, mean)
        tl.store(scale_after + plane, scale)


@triton.jit
def _moments(x, moments, size, parts, BLOCK: tl.constexpr):
    """moments[plane, part] = mean and sum of squared deviations of a part of a plane."""
    plane, part = tl.program_id(0), tl.program_id(1)
    at = part * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + plane.to(tl.int64) * size + at, mask=at < size, other=0.0).to(tl.float32)
    mean = tl.sum(v) / tl.minimum(BLOCK, size - part * BLOCK)
    v = tl.where(at < size, v - mean, 0.0)
    to = moments + (plane * parts + part) * 2
    tl.store(to, mean)
    tl.store(to + 1, tl.sum(v * v))


@triton.jit
def _forward_parts(x, residual, y, moments, mean_out, scale_out, size, parts, eps,
                   GELU: tl.constexpr,
                   ADD: tl.constexpr, WRITE: tl.constexpr, PARTS: tl.constexpr,
                   BLOCK: tl.constexpr):  # fmt: skip
    """One part of a plane, whose statistics come from the moments of all its parts (Chan et
    al., 1983, eq. 2.1)."""
    plane, part = tl.program_id(0), tl.program_id(1)
    i = tl.arange(0, PARTS)
    count = tl.where(i < parts, tl.minimum(BLOCK, size - i * BLOCK), 0).to(tl.float32)
    means = tl.load(moments + (plane * parts + i) * 2, mask=i < parts, other=0.0)
    squares = tl.load(moments + (plane * parts + i) * 2 + 1, mask=i < parts, other=0.0)
    mean = tl.sum(count * means) / size
    squares += count * (means - mean) * (means - mean)
    scale = 1.0 / tl.sqrt(tl.sum(squares) / size + eps)
    if part == 0:
        tl.store(mean_out + plane, mean)
        tl.store(scale_out + plane, scale)
    if WRITE:
        start = plane.to(tl.int64) * size
        at = part * BLOCK + tl.arange(0, BLOCK)
        v = (tl.load(x + start + at, mask=at < size, other=0.0).to(tl.float32) - mean) * scale
        _write(v, residual, y, start, at, size, GELU, ADD)


@triton.jit
def _gradient(x, dy, start, i, at, size, mean, scale, GELU: tl.constexpr):
    """Normalised values of one block, and the gradient at them; zeros beyond the plane."""
    ok = i + at < size
    v = (tl.load(x + start + i + at, mask=ok, other=0.0).to(tl.float32) - mean) * scale
    d = tl.load(dy + start + i + at, mask=ok, other=0.0).to(tl.float32)
    if GELU:
        d *= gelu_slope(v, dy.dtype.element_ty == tl.float32)
    return v, d


@triton.jit
def _backward(x, dy, dx, mean_in, scale_in, size, GELU: tl.constexpr, WHOLE: tl.constexpr,
              FULL: tl.constexpr,
              BLOCK: tl.constexpr):  # fmt: skip
    if FULL:
        size = BLOCK
    plane = tl.program_id(0)
    start = plane.to(tl.int64) * size
    at = tl.arange(0, BLOCK)
    mean = tl.load(mean_in + plane)
    scale = tl.load(scale_in + plane)
    if WHOLE:
        v, d = _gradient(x, dy, start, 0, at, size, mean, scale, GELU)
        change = scale * (d - tl.sum(d) / size - v * (tl.sum(d * v) / size))
        tl.store(dx + start + at, change.to(dx.dtype.element_ty), mask=at < size)
    else:
        sum_d = tl.zeros((BLOCK,), dtype=tl.float32)
        sum_dv = tl.zeros((BLOCK,), dtype=tl.float32)
        for i in range(0, size, BLOCK):
            v, d = _gradient(x, dy, start, i, at, size, mean, scale, GELU)
            sum_d += d
            sum_dv += d * v
        mean_d = tl.sum(sum_d) / size
        mean_dv = tl.sum(sum_dv) / size
        for i in range(0, size, BLOCK):
            v, d = _gradient(x, dy, start, i, at, size, mean, scale, GELU)
            tl.store(
                dx + start + i + at,
                (scale * (d - mean_d - v * mean_dv)).to(dx.dtype.element_ty),
                mask=i + at < size,
            )


WHOLE, BLOCK = 16384, 4096
"""Pixels of a plane that one program takes at once, and otherwise of a part of it."""


def _cut(size: int) -> dict[str, int]:
    block = triton.next_power_of_2(size) if size <= WHOLE else BLOCK
    # 16 values a lane: of small planes, few lanes each and many programs at a time keep the
    # most bytes on their way
    return {"BLOCK": block, "num_warps": min(max(block // 512, 1), 16)}


def _empty_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.new_empty(x.shape[0] * x.shape[1], dtype=torch.float32)
    return mean, torch.empty_like(mean)


def _run(
    x: Tensor,
    residual: Tensor | None,
    y: Tensor | None,
    gelu: bool,
    eps: float,
    after: bool = False,
) -> tuple[Tensor, ...]:
    """Writes y unless it is None; -> mean and scale of x, and with ``after`` also of y."""
    planes, size = x.shape[0] * x.shape[1], x.shape[2] * x.shape[3]
    mean, scale = _empty_statistics(x)
    found = mean, scale, *(_empty_statistics(x) if after else ())
    operands = x, x if residual is None else residual, x if y is None else y
    does = {"GELU": gelu, "ADD": residual is not None, "WRITE": y is not None, **_cut(size)}
    if size <= WHOLE:
        _forward[(planes,)](
            *operands, mean, scale, *found[-2:], size, eps, AFTER=after,
            FULL=size == does["BLOCK"], **does,
        )  # fmt: skip
    else:  # parts side by side, for of one large frame there are fewer planes than processors
        parts = triton.cdiv(size, BLOCK)
        moments = torch.empty(planes, parts, 2, device=x.device, dtype=torch.float32)
        _moments[(planes, parts)](x, moments, size, parts, **_cut(size))
        last = (planes, parts if y is not None else 1)
        _forward_parts[last](
            *operands, moments, mean, scale, size, parts, eps,
            PARTS=triton.next_power_of_2(parts), **does,
        )  # fmt: skip
        if after:
            return mean, scale, *_run(y, None, None, False, eps)
    return found
