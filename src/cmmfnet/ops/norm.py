"""Instance normalisation, with GELU behind it where asked for, in one pass over memory: Triton on CUDA, PyTorch elsewhere.

Around a large kernel these two are most of the memory traffic. PyTorch reads and writes the map five times forwards and nine
times backwards (statistics, normalisation, GELU, and their gradients); here one program takes one plane (picture, channel),
which fits the cache, so device memory sees one read and one write, and backwards two reads and one write. Statistics are in
float32, computed in two passes (mean, then deviations), so that flat planes stay exact.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton on this platform: the eager path below serves
    triton = None


def instance_norm(x: Tensor, gelu: bool = False, eps: float = 1e-5) -> Tensor:
    """(B,C,H,W) -> the same shape and dtype: (x - mean) / sqrt(variance + eps) over each plane, then GELU (erf) if asked for."""
    if triton is None or not x.is_cuda or x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        if x.shape[2] * x.shape[3] == 1:
            return torch.zeros_like(x)  # one value has no variance, which PyTorch refuses; gelu(0) = 0
        # Flat, because for a batch of one and a channels-last gradient PyTorch 2.13 on the CPU returns a wrong gradient.
        y = F.instance_norm(x.flatten(2), eps=eps).reshape(x.shape)
        return F.gelu(y) if gelu else y
    return _norm(x, gelu, eps)[0]


if triton is not None:

    @triton.jit
    def _forward(x, y, mean_out, scale_out, size, eps, GELU: tl.constexpr, BLOCK: tl.constexpr):
        plane = tl.program_id(0)
        start = plane.to(tl.int64) * size
        at = tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        for i in range(0, size, BLOCK):
            total += tl.load(x + start + i + at, mask=i + at < size, other=0.0).to(tl.float32)
        mean = tl.sum(total) / size
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        for i in range(0, size, BLOCK):
            v = tl.load(x + start + i + at, mask=i + at < size, other=0.0).to(tl.float32) - mean
            total += tl.where(i + at < size, v * v, 0.0)
        scale = 1.0 / tl.sqrt(tl.sum(total) / size + eps)
        tl.store(mean_out + plane, mean)
        tl.store(scale_out + plane, scale)
        for i in range(0, size, BLOCK):
            v = (tl.load(x + start + i + at, mask=i + at < size, other=0.0).to(tl.float32) - mean) * scale
            if GELU:
                v = 0.5 * v * (1.0 + tl.erf(v * 0.7071067811865476))
            tl.store(y + start + i + at, v.to(y.dtype.element_ty), mask=i + at < size)

    @triton.jit
    def _gradient(x, dy, start, i, at, size, mean, scale, GELU: tl.constexpr):
        """Normalised value, and gradient at it, of one block; zeros beyond the plane."""
        ok = i + at < size
        v = (tl.load(x + start + i + at, mask=ok, other=0.0).to(tl.float32) - mean) * scale
        d = tl.load(dy + start + i + at, mask=ok, other=0.0).to(tl.float32)
        if GELU:
            d *= 0.5 * (1.0 + tl.erf(v * 0.7071067811865476)) + v * tl.exp(-0.5 * v * v) * 0.3989422804014327
        return v, d

    @triton.jit
    def _backward(x, dy, dx, mean_in, scale_in, size, GELU: tl.constexpr, BLOCK: tl.constexpr):
        plane = tl.program_id(0)
        start = plane.to(tl.int64) * size
        at = tl.arange(0, BLOCK)
        mean = tl.load(mean_in + plane)
        scale = tl.load(scale_in + plane)
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
                dx + start + i + at, (scale * (d - mean_d - v * mean_dv)).to(dx.dtype.element_ty), mask=i + at < size
            )

    def _block(size: int) -> int:
        return min(4096, triton.next_power_of_2(size))

    @torch.library.custom_op("cmmfnet::instance_norm", mutates_args=())
    def _norm(x: Tensor, gelu: bool, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        x = x.contiguous()
        planes, size = x.shape[0] * x.shape[1], x.shape[2] * x.shape[3]
        y = torch.empty_like(x)
        mean = torch.empty(planes, device=x.device, dtype=torch.float32)
        scale = torch.empty_like(mean)
        _forward[(planes,)](x, y, mean, scale, size, eps, GELU=gelu, BLOCK=_block(size), num_warps=8)
        return y, mean, scale

    @_norm.register_fake
    def _(x: Tensor, gelu: bool, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        mean = x.new_empty(x.shape[0] * x.shape[1], dtype=torch.float32)
        return torch.empty_like(x, memory_format=torch.contiguous_format), mean, torch.empty_like(mean)

    @torch.library.custom_op("cmmfnet::instance_norm_backward", mutates_args=())
    def _norm_backward(dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, gelu: bool) -> Tensor:
        x, dy = x.contiguous(), dy.contiguous()
        planes, size = x.shape[0] * x.shape[1], x.shape[2] * x.shape[3]
        dx = torch.empty_like(x)
        _backward[(planes,)](x, dy, dx, mean, scale, size, GELU=gelu, BLOCK=_block(size), num_warps=8)
        return dx

    @_norm_backward.register_fake
    def _(dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, gelu: bool) -> Tensor:
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    def _save(ctx, inputs, output) -> None:
        ctx.save_for_backward(inputs[0], output[1], output[2])
        ctx.gelu = inputs[1]
        ctx.mark_non_differentiable(output[1], output[2])

    def _norm_grad(ctx, dy: Tensor, *_unused) -> tuple[Tensor, None, None]:
        return torch.ops.cmmfnet.instance_norm_backward(dy, *ctx.saved_tensors, ctx.gelu), None, None

    _norm.register_autograd(_norm_grad, setup_context=_save)
