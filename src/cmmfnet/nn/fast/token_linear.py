"""Linear layers on tokens for training on CUDA in 16 bits: products by torch.mm as ever, gradients
of biases by kernels.

Around the products of a transformer's tokens PyTorch spends as much time again: a slow reduction
for each bias, a pass for GELU's gradient, and for query, key and value of the same tokens three
products each way and two additions of gradients.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cmmfnet.nn.fast.serving import HALVES, product_dtype, trains_on_cuda

try:
    import triton

    from cmmfnet.nn.fast.columns import column_sums, joined, joined_columns, through_gelu
except ImportError:  # no Triton on this platform: transformer.py goes its ordinary way
    triton = None

WIDEST = 4096  # channels of a token that a norm's kernel holds


def serves_tokens(x: Tensor) -> bool:
    """Whether the functions here and in token_norm.py take x (...,D): CUDA, a gradient wanted,
    products in 16 bits, no compiler at work."""
    return (
        triton is not None
        and trains_on_cuda(x)
        and product_dtype(x) in HALVES
        and x.dtype in (*HALVES, torch.float32)
        and 0 < x.shape[-1] <= WIDEST
        and x.numel() > 0
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``F.linear``: x (...,K), weight (N,K), bias (N,) -> (...,N) of ``product_dtype``; x and
    weights of any dtype, which their gradients have, too. Where ``serves_tokens``."""
    return _Linear.apply(x.to(product_dtype(x)), weight, bias, False)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``F.gelu(F.linear(...))``, as ``linear``; GELU's gradient and the bias's in one pass."""
    return _Linear.apply(x.to(product_dtype(x)), weight, bias, True)


def linear_of_three(
    x: Tensor, weights: tuple[Tensor, ...], biases: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Three linear layers of the same x and size, as ``linear`` of each; one product for all. The
    results are views of one tensor (...,3N)."""
    return _Three.apply(x.to(product_dtype(x)), *weights, *biases)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, gelu):
        flat, cast = x.reshape(-1, x.shape[-1]), weight.to(x.dtype)
        y = F.linear(flat, cast, bias.to(x.dtype))
        ctx.save_for_backward(flat, cast, *([y] if gelu else []))
        ctx.shape, ctx.dtypes = x.shape, (weight.dtype, bias.dtype)
        return (F.gelu(y) if gelu else y).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        flat, weight, *before = ctx.saved_tensors
        dy, (of_weight, of_bias) = dy.reshape(-1, len(weight)), ctx.dtypes
        if before:
            dy, db = through_gelu(dy, before[0], of_bias)
        else:
            db = column_sums(dy, of_bias) if ctx.needs_input_grad[2] else None
        dx = dy.mm(weight).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return dx, dy.t().mm(flat).to(of_weight) if ctx.needs_input_grad[1] else None, db, None


class _Three(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, *parameters):
        weights, biases = parameters[:3], parameters[3:]
        weight, bias = joined(weights, biases, x.dtype)
        flat = x.reshape(-1, x.shape[-1])
        ctx.save_for_backward(flat, weight)
        ctx.shape, ctx.dtypes = x.shape, (weights[0].dtype, biases[0].dtype)
        return F.linear(flat, weight, bias).view(*x.shape[:-1], -1).chunk(3, dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        flat, weight = ctx.saved_tensors
        dy, db = joined_columns([d.reshape(-1, len(weight) // 3) for d in gradients], ctx.dtypes[1])
        dx = dy.mm(weight).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return dx, *dy.t().mm(flat).to(ctx.dtypes[0]).chunk(3), *db.chunk(3)
