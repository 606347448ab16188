"""The residual blocks of a large-kernel stage for training on CUDA, each with a gradient written by hand.

Autograd of the separate operators reads and writes maps more often than it needs to: it stores every normalised map and every
GELU, adds the residual's gradient in a pass of its own, and turns maps around for the 1x1 convolutions. Passes over a map of
the block's own size, forwards and backwards: 15 and 27 by separate operators for the large-kernel block, here 11 and 18; 23
and 41 for the feed-forward, whose wide map counts as four, here 13 and 21.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cmmfnet.ops.ffn import CHANNELS
from cmmfnet.ops.norm import Statistics, instance_norm_backward, residual_norm_and_own

try:
    import triton

    from cmmfnet.ops.ffn import norm_project, project_with_sums
    from cmmfnet.ops.pointwise import onward, slopes, through_norms
except ImportError:  # no Triton on this platform: layers.py goes its ordinary way
    triton = None


EPS = 1e-5


def serves_training(x: Tensor) -> bool:
    """Whether these blocks take this input here: CUDA, 16 bits, 64 or 128 channels, a gradient wanted, no compiler at work."""
    return (
        triton is not None
        and x.is_cuda
        and torch.is_grad_enabled()
        and x.dtype in (torch.float16, torch.bfloat16)
        and x.shape[1] in CHANNELS
        and not torch.compiler.is_compiling()
    )


def large_kernel(
    x: Tensor, statistics: Statistics, enter: Tensor, depthwise: Tensor, bias: Tensor, leave: Tensor, *unfelt: Tensor
) -> tuple[Tensor, Statistics]:
    """x (B,C,H,W) and its planes' statistics -> x + gelu(IN(leave(gelu(depthwise(gelu(IN(enter(IN(x)))))))) and its statistics.

    enter, leave (C,C,1,1), depthwise (C,1,K,K) with its bias (C,); ``unfelt``: biases before norms, whose gradient is zero.
    Weights may be float32: products take x's dtype, and the weights' gradients are in the weights' own.
    """
    y, *after = _LargeKernel.apply(x, *statistics, enter, depthwise, bias, leave, *unfelt)
    return y, tuple(after)


def feed_forward_with_gradient(
    x: Tensor, statistics: Statistics, widen: Tensor, narrow: Tensor, *unfelt: Tensor
) -> tuple[Tensor, Statistics]:
    """x (B,C,H,W) and its planes' statistics, widen (4C,C,1,1), narrow (C,4C,1,1) -> x + IN(narrow(gelu(IN(widen(IN(x))))))
    and its statistics. As ``large_kernel``."""
    y, *after = _FeedForward.apply(x, *statistics, widen, narrow, *unfelt)
    return y, tuple(after)


def _matrix(weight: Tensor, x: Tensor) -> Tensor:
    """Of a 1x1 convolution, in x's dtype."""
    return weight.flatten(1).to(x.dtype).contiguous()


def _as(like: list[tuple[torch.Size, torch.dtype]], *gradients: Tensor) -> list[Tensor]:
    return [d.to(dtype).reshape(shape) for d, (shape, dtype) in zip(gradients, like, strict=True)]


class _LargeKernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mean, scale, enter, depthwise, bias, leave, *unfelt):
        x = x.contiguous()
        inside, outside, kernel = _matrix(enter, x), _matrix(leave, x), depthwise.to(x.dtype)
        e = norm_project(x, inside[:, :, None, None], (mean, scale))
        a, *e_statistics = torch.ops.cmmfnet.instance_norm(e, None, True, EPS)
        u = torch.ops.cmmfnet.depthwise(a, kernel, bias.to(x.dtype))
        z = onward(u, None, outside)
        y, z_statistics, after = residual_norm_and_own(z, x, True)
        ctx.save_for_backward(
            x, mean, scale, e, *e_statistics, a, u, z, *z_statistics, inside, kernel, outside, *unfelt
        )
        ctx.like = [(w.shape, w.dtype) for w in (enter, depthwise, bias, leave)]
        ctx.mark_non_differentiable(*after)
        ctx.set_materialize_grads(False)  # zeros for what has no gradient
        return y, *after

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, *_unused):
        x, mean, scale, e, e_mean, e_scale, a, u, z, z_mean, z_scale, inside, kernel, outside, *unfelt = (
            ctx.saved_tensors
        )
        dy, c = dy.contiguous(), x.shape[1]
        dz = instance_norm_backward(dy, z, (z_mean, z_scale), True)
        du, d_leave, _ = slopes(u, dz, outside, None, c)
        da, d_kernel, d_bias = torch.ops.cmmfnet.depthwise_backward(du, a, kernel)
        sdv, _, found = slopes(e, da, None, ((e_mean, e_scale), x), c)
        dx, d_enter = through_norms(sdv, found, (e_mean, e_scale), inside, x, (mean, scale), dy)
        weights = _as(ctx.like, d_enter, d_kernel, d_bias, d_leave)
        return dx, None, None, *weights, *(torch.zeros_like(b) for b in unfelt)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mean, scale, widen, narrow, *unfelt):
        x = x.contiguous()
        inside, outside = _matrix(widen, x), _matrix(narrow, x)
        h, h_statistics = project_with_sums(x, inside, (mean, scale), EPS)
        z = onward(h, h_statistics, outside)
        y, z_statistics, after = residual_norm_and_own(z, x)
        ctx.save_for_backward(x, mean, scale, h, *h_statistics, z, *z_statistics, inside, outside, *unfelt)
        ctx.like = [(w.shape, w.dtype) for w in (widen, narrow)]
        ctx.mark_non_differentiable(*after)
        ctx.set_materialize_grads(False)
        return y, *after

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, *_unused):
        x, mean, scale, h, h_mean, h_scale, z, z_mean, z_scale, inside, outside, *unfelt = ctx.saved_tensors
        dy = dy.contiguous()
        dz = instance_norm_backward(dy, z, (z_mean, z_scale), False)
        sdv, d_narrow, found = slopes(h, dz, outside, ((h_mean, h_scale), x), x.shape[1])
        dx, d_widen = through_norms(sdv, found, (h_mean, h_scale), inside, x, (mean, scale), dy)
        weights = _as(ctx.like, d_widen, d_narrow)
        return dx, None, None, *weights, *(torch.zeros_like(b) for b in unfelt)
