"""Large-kernel depthwise convolution, stride 1, "same" padding: eager PyTorch as reference and fallback, Triton on CUDA.

A depthwise convolution does K*K multiply-adds for each value that it reads, which is too many for the ordinary units and,
done one channel at a time, has no matrix product for the tensor cores. Here it gets one: for a row of the kernel, 16
neighbouring outputs of a row are a product of the 16+K-1 inputs under them with a banded Toeplitz matrix of the kernel's row,

    y[r, n] += sum_j x[r, j] T[j, n],    T[j, n] = w[kh, j - n] where 0 <= j - n < K, else 0,

and rows r of all pictures of the batch make the tall side. So K products of (rows x 32) by (32 x 16) replace K*K shifted
reads. The input's gradient is the same with the kernel turned round; for the weight's gradient the product x^T dy of the same
tiles holds each dw[kh, kw] as the sum of one diagonal.
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


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (B,C,H,W), weight (C,1,K,K) with K odd, bias (C,) -> (B,C,H,W), zero padding of K // 2; accumulates in float32.

    Triton serves CUDA tensors of float16, bfloat16 and float32 with 5 <= K <= 31; anything else is ``F.conv2d``.
    """
    kernel = weight.shape[-1]
    if (
        triton is None
        or not x.is_cuda
        or not 5 <= kernel <= 31
        or x.dtype not in (torch.float16, torch.bfloat16, torch.float32)
    ):
        return F.conv2d(x, weight, bias, padding=kernel // 2, groups=x.shape[1])
    if bias is None:
        bias = x.new_zeros(x.shape[1])
    return _depthwise(x, weight.to(x.dtype), bias.to(x.dtype))


if triton is not None:

    @triton.jit
    def _correlate(x, w, bias, y, rows, channels, height, width, K: tl.constexpr, FLIP: tl.constexpr, BIAS: tl.constexpr,
                   BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, IEEE: tl.constexpr):  # fmt: skip
        c = tl.program_id(1)
        tiles = tl.cdiv(width, BN)
        r = (tl.program_id(0) // tiles) * BM + tl.arange(0, BM)
        left = (tl.program_id(0) % tiles) * BN
        h = r % height
        start = ((r // height).to(tl.int64) * channels + c) * height  # first row of this picture and channel
        column = left - K // 2 + tl.arange(0, BK)
        column_ok = (column >= 0) & (column < width)
        tap = tl.arange(0, BK)[:, None] - tl.arange(0, BN)[None, :]
        tap_ok = (tap >= 0) & (tap < K)
        acc = tl.zeros((BM, BN), dtype=tl.float32)
        for kh in range(K):
            row = h + kh - K // 2
            ok = ((r < rows) & (row >= 0) & (row < height))[:, None] & column_ok[None, :]
            a = tl.load(x + (start + row)[:, None] * width + column[None, :], mask=ok, other=0.0)
            if FLIP:
                at = (K - 1 - kh) * K + (K - 1 - tap)
            else:
                at = kh * K + tap
            t = tl.load(w + c * K * K + at, mask=tap_ok, other=0.0)
            if IEEE:
                acc = tl.dot(a, t, acc, input_precision="ieee")
            else:
                acc = tl.dot(a, t, acc)
        if BIAS:
            acc += tl.load(bias + c).to(tl.float32)
        out = left + tl.arange(0, BN)
        tl.store(y + (start + h)[:, None] * width + out[None, :], acc.to(y.dtype.element_ty),
                 mask=(r < rows)[:, None] & (out < width)[None, :])  # fmt: skip

    @triton.jit
    def _weight_products(x, dy, g, rows, channels, height, width, per_split, K: tl.constexpr, SPLITS: tl.constexpr,
                         BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, IEEE: tl.constexpr):  # fmt: skip
        kh = tl.program_id(0) % K
        split = tl.program_id(0) // K
        c = tl.program_id(1)
        acc = tl.zeros((BK, BN), dtype=tl.float32)
        tiles = tl.cdiv(width, BN)
        for i in range(split * per_split, (split + 1) * per_split):
            r = (i // tiles) * BM + tl.arange(0, BM)
            left = (i % tiles) * BN
            h = r % height
            start = ((r // height).to(tl.int64) * channels + c) * height
            row = h + kh - K // 2
            column = left - K // 2 + tl.arange(0, BK)
            ok = ((r < rows) & (row >= 0) & (row < height))[:, None] & ((column >= 0) & (column < width))[None, :]
            a = tl.load(x + (start + row)[:, None] * width + column[None, :], mask=ok, other=0.0)
            out = left + tl.arange(0, BN)
            ok = (r < rows)[:, None] & (out < width)[None, :]
            d = tl.load(dy + (start + h)[:, None] * width + out[None, :], mask=ok, other=0.0)
            if IEEE:
                acc = tl.dot(tl.trans(a), d, acc, input_precision="ieee")
            else:
                acc = tl.dot(tl.trans(a), d, acc)
        at = ((c * K + kh) * SPLITS + split) * BK * BN
        tl.store(g + at + tl.arange(0, BK)[:, None] * BN + tl.arange(0, BN)[None, :], acc)

    def _blocks(kernel: int) -> tuple[int, int]:
        """Outputs and inputs along a row: the inputs under 16 outputs, rounded up to a power of two."""
        return 16, triton.next_power_of_2(16 + kernel - 1)

    def _run_correlate(x: Tensor, weight: Tensor, bias: Tensor | None, flip: bool) -> Tensor:
        batch, channels, height, width = x.shape
        x, weight, y = x.contiguous(), weight.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        bn, bk = _blocks(weight.shape[-1])
        bm = 128
        grid = (triton.cdiv(batch * height, bm) * triton.cdiv(width, bn), channels)
        _correlate[grid](
            x, weight, weight if bias is None else bias, y, batch * height, channels, height, width,
            K=weight.shape[-1], FLIP=flip, BIAS=bias is not None,
            BM=bm, BN=bn, BK=bk, IEEE=x.dtype == torch.float32, num_warps=4, num_stages=3,
        )  # fmt: skip
        return y

    @torch.library.custom_op("cmmfnet::depthwise", mutates_args=())
    def _depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _run_correlate(x, weight, bias, flip=False)

    @_depthwise.register_fake
    def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    @torch.library.custom_op("cmmfnet::depthwise_backward", mutates_args=())
    def _depthwise_backward(dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        dx = _run_correlate(dy, weight, None, flip=True)
        batch, channels, height, width = x.shape
        kernel = weight.shape[-1]
        x, dy = x.contiguous(), dy.contiguous()
        bn, bk = _blocks(kernel)
        bm = 64
        work = triton.cdiv(batch * height, bm) * triton.cdiv(width, bn)
        # enough programs to fill the card, few enough that partial sums stay small; a fixed order of summation: no race
        splits = max(1, min(work, 4096 // (channels * kernel) + 1))
        per_split = triton.cdiv(work, splits)
        g = torch.empty(channels, kernel, splits, bk, bn, device=x.device, dtype=torch.float32)
        _weight_products[(kernel * splits, channels)](
            x, dy, g, batch * height, channels, height, width, per_split, K=kernel, SPLITS=splits,
            BM=bm, BN=bn, BK=bk, IEEE=x.dtype == torch.float32, num_warps=4, num_stages=3,
        )  # fmt: skip
        g = g.sum(dim=2)
        # dw[kh, kw] = sum over n of g[n + kw, n]: one diagonal
        diagonals = g.as_strided((channels, kernel, kernel, bn), (kernel * bk * bn, bk * bn, bn, bn + 1))
        return dx, diagonals.sum(dim=3).view(channels, 1, kernel, kernel).to(weight.dtype)

    @_depthwise_backward.register_fake
    def _(dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(weight)

    def _save(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs[:2])

    def _backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dx, dw = torch.ops.cmmfnet.depthwise_backward(dy, *ctx.saved_tensors)
        return dx, dw, dy.sum(dim=(0, 2, 3))

    _depthwise.register_autograd(_backward, setup_context=_save)
