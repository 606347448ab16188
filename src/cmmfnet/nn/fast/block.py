"""The residual blocks of a large-kernel stage for training on CUDA, each with a gradient written by
hand.

Autograd of the separate operators reads and writes maps more often than it needs to: it stores
every normalised map and every GELU, adds the residual's gradient in a pass of its own, and turns
maps around for the 1x1 convolutions. Passes over a map of the block's own size, forwards and
backwards: 15 and 27 by separate operators for the large-kernel block, here 10 and 17; 23 and 41 for
the feed-forward, whose wide map counts as four, here 6 and 16.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cmmfnet.nn.fast.enlarge import plain
from cmmfnet.nn.fast.norm import Statistics, instance_norm_backward, residual_norm_and_own
from cmmfnet.nn.fast.serving import HALVES, trains_on_cuda

try:
    import triton

    from cmmfnet.nn.fast.products import (
        Inside,
        feed_forward,
        inside_of,
        inward,
        onward,
        slopes,
        through_norms,
    )
except ImportError:  # no Triton on this platform: layers.py goes its ordinary way
    triton = None

CHANNELS = (64, 128)  # with more, what a program holds no longer fits into registers


def serves_training(x: Tensor) -> bool:
    """Whether these blocks take this input here: CUDA, 16 bits, 64 or 128 channels, a gradient
    wanted, no compiler at work."""
    return triton is not None and trains_on_cuda(x) and x.dtype in HALVES and x.shape[1] in CHANNELS


def large_kernel(
    x: Tensor,
    statistics: Statistics,
    enter: Tensor,
    depthwise: Tensor,
    bias: Tensor,
    leave: Tensor,
    *unfelt: Tensor,
) -> tuple[Tensor, Statistics]:
    """x (B,C,H,W) and its planes' statistics -> x +
    gelu(IN(leave(gelu(depthwise(gelu(IN(enter(IN(x)))))))) and its statistics.

    enter, leave (C,C,1,1), depthwise (C,1,K,K) with its bias (C,); ``unfelt``: biases before norms,
    whose gradient is zero. Weights may be float32: products take x's dtype, and the weights'
    gradients are in the weights' own.
    """
    y, *after = _LargeKernel.apply(x, *statistics, enter, depthwise, bias, leave, *unfelt)
    return y, tuple(after)


def feed_forward_with_gradient(
    x: Tensor, statistics: Statistics, widen: Tensor, narrow: Tensor, *unfelt: Tensor
) -> tuple[Tensor, Statistics]:
    """x (B,C,H,W) and its planes' statistics, widen (4C,C,1,1), narrow (C,4C,1,1) -> x +
    IN(narrow(gelu(IN(widen(IN(x)))))) and its statistics. As ``large_kernel``."""
    y, *after = _FeedForward.apply(x, *statistics, widen, narrow, *unfelt)
    return y, tuple(after)


def _in_dtype(x: Tensor, *weights: Tensor) -> list[Tensor]:
    """Weights in x's dtype, contiguous; those of 1x1 convolutions as matrices. One launch for all
    of a block."""
    weights = [w.flatten(1) if w.shape[2:] == (1, 1) and w.shape[1] > 1 else w for w in weights]
    if all(w.dtype == x.dtype for w in weights):
        return [w.contiguous() for w in weights]
    found = [w.new_empty(w.shape, dtype=x.dtype) for w in weights]
    torch._foreach_copy_(found, weights)
    return found


class _LargeKernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mean, scale, enter, depthwise, bias, leave, *unfelt):
        x, (first, kernel, added, outside) = plain(x), _in_dtype(x, enter, depthwise, bias, leave)
        inside = inside_of(x, (mean, scale), first)
        a = inward(inside)
        u = torch.ops.cmmfnet.depthwise(a, kernel, added)
        z = onward(u, outside)
        y, of_z, after = residual_norm_and_own(z, x, True)
        _save(
            ctx,
            inside,
            (a, u, z, *of_z, outside, kernel),
            unfelt,
            (enter, depthwise, bias, leave),
            after,
        )
        return y, *after

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, *_unused):
        inside, (a, u, z, z_mean, z_scale, outside, kernel), zeros = _saved(ctx, 7)
        dy = plain(dy)
        dz = instance_norm_backward(dy, z, (z_mean, z_scale), True)
        du, _, d_leave = slopes(u, dz, outside)
        da, d_kernel, d_bias = torch.ops.cmmfnet.depthwise_backward(du, a, kernel)
        sdv, found, _ = slopes(inside, da)
        dx, d_enter = through_norms(sdv, found, inside, dy)
        return dx, None, None, *_as(ctx.like, d_enter, d_kernel, d_bias, d_leave), *zeros


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mean, scale, widen, narrow, *unfelt):
        x, (first, outside) = plain(x), _in_dtype(x, widen, narrow)
        inside = inside_of(x, (mean, scale), first)
        z = feed_forward(inside, outside)
        y, of_z, after = residual_norm_and_own(z, x)
        _save(ctx, inside, (z, *of_z, outside), unfelt, (widen, narrow), after)
        return y, *after

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, *_unused):
        inside, (z, z_mean, z_scale, outside), zeros = _saved(ctx, 4)
        dy = plain(dy)
        dz = instance_norm_backward(dy, z, (z_mean, z_scale), False)
        sdv, found, d_narrow = slopes(inside, dz, outside)
        dx, d_widen = through_norms(sdv, found, inside, dy)
        return dx, None, None, *_as(ctx.like, d_widen, d_narrow), *zeros


def _save(
    ctx, inside: Inside, more: tuple, unfelt: tuple, weights: tuple, after: Statistics
) -> None:
    """For ``_saved``; ``weights`` are those whose gradients the backward pass has to make."""
    ctx.save_for_backward(
        inside.x, *inside.x_statistics, inside.weight, *inside.statistics, inside.ws, *more, *unfelt
    )
    ctx.like = [(w.shape, w.dtype) for w in weights]
    ctx.mark_non_differentiable(*after)
    ctx.set_materialize_grads(False)  # zeros for what has no gradient


def _saved(ctx, number: int) -> tuple[Inside, tuple[Tensor, ...], list[Tensor]]:
    """What ``_save`` took, of the ``number`` tensors among them, and zeros for what is not felt."""
    x, mean, scale, weight, h_mean, h_scale, ws, *rest = ctx.saved_tensors
    inside = Inside(x, (mean, scale), weight, (h_mean, h_scale), ws)
    unfelt = rest[number:]
    sizes = [len(b) for b in unfelt]
    zeros = x.new_zeros(sum(sizes), dtype=torch.float32).split(sizes)  # one launch for all
    return (
        inside,
        tuple(rest[:number]),
        [zero.to(b.dtype) for zero, b in zip(zeros, unfelt, strict=True)],
    )


def _as(like: list[tuple[torch.Size, torch.dtype]], *gradients: Tensor) -> list[Tensor]:
    return [d.to(dtype).reshape(shape) for d, (shape, dtype) in zip(gradients, like, strict=True)]
