"""Instance normalisation, with GELU and a residual behind it where asked for: Triton on CUDA,
PyTorch elsewhere.

Around a large kernel these two are most of the memory traffic. PyTorch reads and writes the map
five times forwards and nine times backwards (statistics, normalisation, GELU, and their gradients);
here one program takes one plane (picture, channel), which fits the cache, so device memory sees one
read and one write, and backwards two reads and one write. Statistics are in float32, computed in
two passes (mean, then deviations; of a large plane for each of its parts), so that flat planes stay
exact.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    import triton
    import triton.language as tl

    from cmmfnet.nn.fast.gelu import gelu_of, gelu_slope
except ImportError:  # no Triton on this platform: the eager path below serves
    triton = None


Statistics = tuple[Tensor, Tensor]
"""Of every plane of a map (B,C,H,W): mean, and 1 / sqrt(variance + eps), each (B*C,) float32."""
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
"""What the kernels take; their arithmetic is in float32."""


def instance_norm(
    x: Tensor, gelu: bool = False, residual: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """(B,C,H,W) -> the same shape and dtype: (x - mean) / sqrt(variance + eps) over each plane,
    then GELU (erf) if asked for, then plus ``residual`` (B,C,H,W) where there is one."""
    if triton is None or not x.is_cuda or x.dtype not in DTYPES:
        if x.shape[2] * x.shape[3] == 1:
            y = torch.zeros_like(x)  # one value has no variance, which PyTorch refuses; gelu(0) = 0
            return y if residual is None else residual + y
        # Flat, because for a batch of one and a channels-last gradient PyTorch 2.13 on the CPU
        # returns a wrong gradient.
        y = F.instance_norm(x.flatten(2), eps=eps).reshape(x.shape)
        y = F.gelu(y) if gelu else y
        return y if residual is None else residual + y
    if residual is not None and (residual.dtype != x.dtype or residual.shape != x.shape):
        return residual + _norm(x, None, gelu, eps)[0]  # under autocast the stream may be float32
    return _norm(x, residual, gelu, eps)[0]


def plane_statistics(x: Tensor, eps: float = 1e-5) -> Statistics:
    """Of x (B,C,H,W), without a gradient; CUDA only."""
    return _statistics(x.detach(), eps)


def residual_norm(
    x: Tensor, residual: Tensor, gelu: bool = False, eps: float = 1e-5
) -> tuple[Tensor, Statistics]:
    """``instance_norm(x, gelu, residual)`` and the statistics of its planes, for the norm that
    comes next; CUDA only."""
    y, _, statistics = residual_norm_and_own(x, residual, gelu, eps)
    return y, statistics


def residual_norm_and_own(
    x: Tensor, residual: Tensor, gelu: bool = False, eps: float = 1e-5
) -> tuple[Tensor, Statistics, Statistics]:
    """``residual_norm``, in the middle the statistics of x, which a gradient needs; CUDA only."""
    y, mean, scale, mean_after, scale_after = _residual_norm(x, residual, gelu, eps)
    return y, (mean, scale), (mean_after, scale_after)


def instance_norm_backward(dy: Tensor, x: Tensor, statistics: Statistics, gelu: bool) -> Tensor:
    """From dy (B,C,H,W), the gradient of ``instance_norm(x, gelu)``: that of x, in x's dtype; CUDA
    only."""
    return _norm_backward(dy, x, *statistics, gelu)


if triton is not None:

    @triton.jit
    def _write(v, residual, y, start, at, size, GELU: tl.constexpr, ADD: tl.constexpr):
        """What follows the norm of the values v (float32) at ``at`` in a plane, and their way to
        memory; -> what is there."""
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
        """A plane that fits into the registers of one program, with its statistics and, for AFTER,
        those of y."""
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
        """Normalised value, and gradient at it, of one block; zeros beyond the plane."""
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

    @torch.library.custom_op("cmmfnet::instance_norm", mutates_args=())
    def _norm(
        x: Tensor, residual: Tensor | None, gelu: bool, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = x.contiguous()
        y = torch.empty_like(x)
        return y, *_run(x, None if residual is None else residual.contiguous(), y, gelu, eps)

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
        """Writes y, where there is one; -> mean and scale of x, and ``after`` those of y."""
        planes, size = x.shape[0] * x.shape[1], x.shape[2] * x.shape[3]
        mean, scale = _empty_statistics(x)
        found = mean, scale, *(_empty_statistics(x) if after else ())
        operands = x, x if residual is None else residual, x if y is None else y
        does = {"GELU": gelu, "ADD": residual is not None, "WRITE": y is not None, **_cut(size)}
        if size <= WHOLE:
            _forward[(planes,)](
                *operands,
                mean,
                scale,
                *found[-2:],
                size,
                eps,
                AFTER=after,
                FULL=size == does["BLOCK"],
                **does,
            )
        else:  # parts side by side, for of one large frame there are fewer planes than processors
            parts = triton.cdiv(size, BLOCK)
            moments = torch.empty(planes, parts, 2, device=x.device, dtype=torch.float32)
            _moments[(planes, parts)](x, moments, size, parts, **_cut(size))
            last = (planes, parts if y is not None else 1)
            _forward_parts[last](
                *operands,
                moments,
                mean,
                scale,
                size,
                parts,
                eps,
                PARTS=triton.next_power_of_2(parts),
                **does,
            )
            if after:
                return mean, scale, *_run(y, None, None, False, eps)
        return found

    @torch.library.custom_op("cmmfnet::plane_statistics", mutates_args=())
    def _statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return _run(x.contiguous(), None, None, False, eps)

    @torch.library.custom_op("cmmfnet::residual_norm", mutates_args=())
    def _residual_norm(
        x: Tensor, residual: Tensor, gelu: bool, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        x = x.contiguous()
        y = torch.empty_like(x)
        return y, *_run(x, residual.contiguous(), y, gelu, eps, after=True)

    @_statistics.register_fake
    def _(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return _empty_statistics(x)

    @_residual_norm.register_fake
    def _(
        x: Tensor, residual: Tensor, gelu: bool, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        return y, *_empty_statistics(x), *_empty_statistics(x)

    @_norm.register_fake
    def _(
        x: Tensor, residual: Tensor | None, gelu: bool, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        return torch.empty_like(x, memory_format=torch.contiguous_format), *_empty_statistics(x)

    @torch.library.custom_op("cmmfnet::instance_norm_backward", mutates_args=())
    def _norm_backward(dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, gelu: bool) -> Tensor:
        x, dy = x.contiguous(), dy.contiguous()
        planes, size = x.shape[0] * x.shape[1], x.shape[2] * x.shape[3]
        dx = torch.empty_like(x)
        cut = _cut(size)
        _backward[(planes,)](
            x,
            dy,
            dx,
            mean,
            scale,
            size,
            GELU=gelu,
            WHOLE=size <= WHOLE,
            FULL=size == cut["BLOCK"],
            **cut,
        )
        return dx

    @_norm_backward.register_fake
    def _(dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, gelu: bool) -> Tensor:
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    def _save(ctx, inputs, output) -> None:
        ctx.save_for_backward(inputs[0], output[1], output[2])
        ctx.add, ctx.gelu = inputs[1] is not None, inputs[2]
        ctx.mark_non_differentiable(output[1], output[2])

    def _norm_grad(ctx, dy: Tensor, *_unused) -> tuple[Tensor, Tensor | None, None, None]:
        dx = torch.ops.cmmfnet.instance_norm_backward(dy, *ctx.saved_tensors, ctx.gelu)
        return dx, dy if ctx.add else None, None, None

    _norm.register_autograd(_norm_grad, setup_context=_save)
