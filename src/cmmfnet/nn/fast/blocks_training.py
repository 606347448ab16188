"""The residual blocks of a large-kernel stage in training, each with a gradient written by hand.

Autograd of the separate operators reads and writes maps more often than necessary. It stores every
normalised map and every GELU, adds the residual's gradient in a pass of its own, and reorders maps
for the 1x1 convolutions. Passes over a map of the block's size (a wide map counts as four):

    block           operators: forward, backward      here: forward, backward
    large kernel                   15        27                 10         17
    feed-forward                   23        41                  6         16

Maps keep PyTorch's order (a plane for each channel); cuDNN would reorder them around each of its
products. Three kinds of maps are not stored: normalised maps, the wide map of a feed-forward, and
the output of a GELU in front of a 1x1 convolution. The gradient computes them again, which costs
multiply-adds and saves memory traffic.

**IN, 1x1, IN.** With n = IN(x) (C planes), h = W n (R planes) and v = (h - mean) s, the second
norm's statistics follow from the covariance S of n over a plane's pixels: h has the variances
diag(W S W').

**The gradient of IN, 1x1, IN, GELU.** With dv the gradient at v, the second norm's is dh = s (dv -
m1 - v m2), where m1 and m2 are the means of dv and dv v over a plane. A first kernel (``slopes``)
writes s dv and sums m1, m2 and D = (s dv) n'. The rest is small matrices: as n and dh have means of
zero, and v is linear in n,

    dW = dh n' = D - s^2 m2 size W S,     W' dh = W' (s dv) - M n + shift,     M = W' diag(s^2 m2)
    W, mean(n W' dh) = the sums over R of W dW / size = k.

So the first norm's gradient, scale (W' dh - n k), is a product of s dv and n with known matrices
(``through_norms``), and the residual's gradient is added on the way. Products take the maps' dtype,
all sums are float32 in a fixed order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from cmmfnet.nn.fast import blocks_training_kernels as kernels
from cmmfnet.nn.fast.blocks_training_kernels import TILES
from cmmfnet.nn.fast.depthwise import correlate, depthwise_backward
from cmmfnet.nn.fast.enlarge import ordered
from cmmfnet.nn.fast.norm import Statistics, instance_norm_backward, residual_norm
from cmmfnet.nn.fast.sums import float32, in_parts, sum_of_parts

CHANNELS = (64, 128)
"""Channels that are faster here: with more, the tiles of a program no longer fit into registers."""


def large_kernel(
    x: Tensor,
    statistics: Statistics,
    enter: Tensor,
    depthwise: Tensor,
    bias: Tensor,
    leave: Tensor,
    *zero_grad_bias: Tensor,
) -> tuple[Tensor, Statistics]:
    """x (B,C,H,W) and its planes' statistics -> x +
    gelu(IN(leave(gelu(depthwise(gelu(IN(enter(IN(x)))))))) and its statistics.

    enter, leave (C,C,1,1), depthwise (C,1,K,K) with its bias (C,); ``zero_grad_bias``: biases in
    front of norms, whose gradient is zero. Weights may be float32: products take x's dtype, and the
    weights' gradients are in the weights' own.
    """
    y, *after = _LargeKernel.apply(x, *statistics, enter, depthwise, bias, leave, *zero_grad_bias)
    return y, tuple(after)


def feed_forward(
    x: Tensor, statistics: Statistics, widen: Tensor, narrow: Tensor, *zero_grad_bias: Tensor
) -> tuple[Tensor, Statistics]:
    """x (B,C,H,W) and its planes' statistics, widen (4C,C,1,1), narrow (C,4C,1,1) -> x +
    IN(narrow(gelu(IN(widen(IN(x)))))) and its statistics. As ``large_kernel``."""
    y, *after = _FeedForward.apply(x, *statistics, widen, narrow, *zero_grad_bias)
    return y, tuple(after)


def _in_dtype(x: Tensor, *weights: Tensor) -> list[Tensor]:
    """Weights in x's dtype, contiguous; weights of 1x1 convolutions as matrices. One launch casts
    all weights of a block."""
    weights = [w.flatten(1) if w.shape[2:] == (1, 1) and w.shape[1] > 1 else w for w in weights]
    if all(w.dtype == x.dtype for w in weights):
        return [w.contiguous() for w in weights]
    found = [w.new_empty(w.shape, dtype=x.dtype) for w in weights]
    torch._foreach_copy_(found, weights)
    return found


class _LargeKernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mean, scale, enter, depthwise, bias, leave, *zero_grad_bias):
        x, (first, kernel, added, outside) = (
            ordered(x, False),
            _in_dtype(x, enter, depthwise, bias, leave),
        )
        inside = inside_of(x, (mean, scale), first)
        a = inward(inside)
        u = correlate(a, kernel, added)
        z = onward(u, outside)
        y, of_z, after = residual_norm(z, x, True)
        _save(
            ctx,
            inside,
            (a, u, z, *of_z, outside, kernel),
            zero_grad_bias,
            (enter, depthwise, bias, leave),
            after,
        )
        return y, *after

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, *_unused):
        inside, (a, u, z, z_mean, z_scale, outside, kernel), zeros = _saved(ctx, 7)
        dy = ordered(dy, False)
        dz = instance_norm_backward(dy, z, (z_mean, z_scale), True)
        du, _, d_leave = slopes(u, dz, outside)
        da, d_kernel, d_bias = depthwise_backward(du, a, kernel)
        sdv, found, _ = slopes(inside, da)
        dx, d_enter = through_norms(sdv, found, inside, dy)
        return dx, None, None, *_as(ctx.like, d_enter, d_kernel, d_bias, d_leave), *zeros


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mean, scale, widen, narrow, *zero_grad_bias):
        x, (first, outside) = ordered(x, False), _in_dtype(x, widen, narrow)
        inside = inside_of(x, (mean, scale), first)
        z = through(inside, outside)
        y, of_z, after = residual_norm(z, x)
        _save(ctx, inside, (z, *of_z, outside), zero_grad_bias, (widen, narrow), after)
        return y, *after

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, *_unused):
        inside, (z, z_mean, z_scale, outside), zeros = _saved(ctx, 4)
        dy = ordered(dy, False)
        dz = instance_norm_backward(dy, z, (z_mean, z_scale), False)
        sdv, found, d_narrow = slopes(inside, dz, outside)
        dx, d_widen = through_norms(sdv, found, inside, dy)
        return dx, None, None, *_as(ctx.like, d_widen, d_narrow), *zeros


def _save(
    ctx, inside: Inside, more: tuple, zero_grad_bias: tuple, weights: tuple, after: Statistics
) -> None:
    """Keep values for ``_saved``. The backward pass computes the gradients of ``weights``."""
    ctx.save_for_backward(
        inside.x,
        *inside.x_statistics,
        inside.weight,
        *inside.statistics,
        inside.ws,
        *more,
        *zero_grad_bias,
    )
    ctx.like = [(w.shape, w.dtype) for w in weights]
    ctx.mark_non_differentiable(*after)
    ctx.set_materialize_grads(False)  # no zeros for outputs without a gradient


def _saved(ctx, number: int) -> tuple[Inside, tuple[Tensor, ...], list[Tensor]]:
    """The values that ``_save`` kept, the first ``number`` tensors among them, and zeros for inputs
    without a gradient."""
    x, mean, scale, weight, h_mean, h_scale, ws, *rest = ctx.saved_tensors
    inside = Inside(x, (mean, scale), weight, (h_mean, h_scale), ws)
    zero_grad_bias = rest[number:]
    sizes = [len(b) for b in zero_grad_bias]
    zeros = x.new_zeros(sum(sizes), dtype=torch.float32).split(sizes)  # one launch for all zeros
    return (
        inside,
        tuple(rest[:number]),
        [zero.to(b.dtype) for zero, b in zip(zeros, zero_grad_bias, strict=True)],
    )


def _as(like: list[tuple[torch.Size, torch.dtype]], *gradients: Tensor) -> list[Tensor]:
    return [d.to(dtype).reshape(shape) for d, (shape, dtype) in zip(gradients, like, strict=True)]


class Inside(NamedTuple):
    """The operators in front of a GELU: IN, 1x1, IN. Small tensors, except x."""

    x: Tensor  # (B,C,H,W)
    x_statistics: Statistics
    weight: Tensor  # (R,C)
    statistics: Statistics  # of the R planes in front of the second norm
    ws: Tensor  # (B,R,C) float32, weight times the covariance of IN(x)


def _size(x: Tensor) -> int:
    return x.shape[2] * x.shape[3]


def inside_of(x: Tensor, x_statistics: Statistics, weight: Tensor, eps: float = 1e-5) -> Inside:
    """x (B,C,H,W) and its planes' statistics, weight (R,C): the statistics of ``weight IN(x)``
    without computing it."""
    batch, channels, rows, size = x.shape[0], x.shape[1], weight.shape[0], _size(x)
    tiles = TILES["covariance"][channels]
    parts, steps = in_parts(size, tiles.pixels, tiles.parts)
    products = float32(x, batch, parts, channels + 1, channels)
    kernels._covariance[(parts, batch)](
        x, *x_statistics, products, size, steps, C=channels, BP=tiles.pixels, STAGES=tiles.stages,
        num_warps=tiles.warps,
    )  # fmt: skip
    mean, scale, ws = (
        float32(x, batch * rows),
        float32(x, batch * rows),
        float32(x, batch, rows, channels),
    )
    block = 64 if channels == 64 else 32
    kernels._wide_statistics[(rows // block, batch)](
        sum_of_parts(products, 1),
        weight,
        mean,
        scale,
        ws,
        size,
        eps,
        ROWS=rows,
        C=channels,
        BR=block,
        num_warps=8,
    )
    return Inside(x, x_statistics, weight, (mean, scale), ws)


def inward(inside: Inside) -> Tensor:
    """-> gelu(IN(weight IN(x))), (B,R,H,W)."""
    x, rows, tiles = inside.x, inside.weight.shape[0], TILES["inward"][inside.x.shape[1]]
    y = torch.empty(x.shape[0], rows, *x.shape[2:], device=x.device, dtype=x.dtype)
    kernels._inward[(triton.cdiv(_size(x), tiles.pixels), x.shape[0])](
        x, inside.weight, *inside.x_statistics, *inside.statistics, y, _size(x), ROWS=rows,
        C=x.shape[1], BH=tiles.rows,
        BP=tiles.pixels, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return y


def onward(u: Tensor, weight: Tensor) -> Tensor:
    """u (B,R,H,W), weight (C,R) -> weight gelu(u), (B,C,H,W)."""
    (batch, rows, *sides), channels, size = u.shape, weight.shape[0], _size(u)
    y, tiles = (
        torch.empty(batch, channels, *sides, device=u.device, dtype=u.dtype),
        TILES["onward"][channels],
    )
    kernels._onward[(triton.cdiv(size, tiles.pixels), batch)](
        u, weight, y, size, ROWS=rows, C=channels, BH=tiles.rows, BP=tiles.pixels,
        STAGES=tiles.stages,
        num_warps=tiles.warps,
    )  # fmt: skip
    return y


def through(inside: Inside, outside: Tensor) -> Tensor:
    """outside (C,R) -> outside gelu(IN(weight IN(x))), (B,C,H,W)."""
    x, tiles = inside.x, TILES["feed-forward"][inside.x.shape[1]]
    y = torch.empty_like(x)
    kernels._feed_forward[(triton.cdiv(_size(x), tiles.pixels), x.shape[0])](
        x, inside.weight, outside, *inside.x_statistics, *inside.statistics, y, _size(x),
        ROWS=inside.weight.shape[0],
        C=x.shape[1], BH=tiles.rows, BP=tiles.pixels, num_warps=tiles.warps,
        num_stages=tiles.stages,
    )  # fmt: skip
    return y


class Sums(NamedTuple):
    """The sums of ``slopes`` for each part of a picture, float32; ``_slopes`` defines them."""

    sums: Tensor  # (B,parts,2,R)
    dn: Tensor  # (B,parts,R,C)


def slopes(
    before: Inside | Tensor, grad: Tensor, outside: Tensor | None = None
) -> tuple[Tensor, Sums | None, Tensor | None]:
    """The gradient in front of a GELU. The GELU's input (B,R,H,W) is a tensor, or an ``Inside``
    that computes it.

    ``grad`` is the gradient behind the GELU or, with ``outside`` (C,R), the gradient (B,C,H,W)
    behind the 1x1 convolution that follows. Returns the gradient (B,R,H,W) (for an ``Inside``: s dv
    and the sums), and the gradient of ``outside``, (C,R) float32.
    """
    inside = before if isinstance(before, Inside) else None
    if inside is not None:
        u, x, weight, of_x, of_h = (
            grad,
            inside.x,
            inside.weight,
            inside.x_statistics,
            inside.statistics,
        )
        batch, channels, rows = *x.shape[:2], weight.shape[0]
    else:
        u = x = weight = before
        of_x = of_h = before, before
        batch, rows, channels = *before.shape[:2], outside.shape[0]
    kind = "leave" if inside is None else "enter" if outside is None else "narrow"
    size, tiles = _size(grad), TILES[kind][channels]
    parts, steps = in_parts(size, tiles.pixels, tiles.parts)
    out = torch.empty(batch, rows, *grad.shape[2:], device=grad.device, dtype=grad.dtype)
    dw = None if outside is None else float32(grad, batch, parts, channels, rows)
    found = None
    if inside is not None:
        found = Sums(
            float32(grad, batch, parts, 2, rows), float32(grad, batch, parts, rows, channels)
        )
    kernels._slopes[(rows // tiles.rows, parts, batch)](
        u, x, *of_x, weight, *of_h, grad, grad if outside is None else outside, out,
        *(found or (grad, grad)),
        grad if dw is None else dw, size, steps, ROWS=rows, C=channels, INSIDE=inside is not None,
        OUTSIDE=outside is not None, BH=tiles.rows, BP=tiles.pixels, STAGES=tiles.stages,
        num_warps=tiles.warps,
    )  # fmt: skip
    return out, found, None if dw is None else sum_of_parts(dw)


def between(found: Sums, inside: Inside, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """From ``slopes`` with ``inside`` of maps of ``size`` pixels: matrix (B,C,C) and shift (B,C)
    for ``through_norms``, and the gradient of ``inside.weight``, (R,C) float32."""
    x, rows = inside.x, inside.weight.shape[0]
    batch, channels = x.shape[:2]
    tiles = TILES["between"][channels]
    dw, shift = float32(x, batch, rows, channels), float32(x, batch, channels)
    matrix = torch.empty(batch, channels, channels, device=x.device, dtype=x.dtype)
    kernels._between[(channels // tiles.pixels, batch)](
        *found, inside.ws, inside.weight, *inside.statistics, dw, matrix, shift, size,
        found.sums.shape[1], ROWS=rows,
        C=channels, BR=tiles.rows, BC=tiles.pixels, STAGES=tiles.stages, num_warps=tiles.warps,
    )  # fmt: skip
    return matrix, shift, sum_of_parts(dw)


def through_norms(sdv: Tensor, found: Sums, inside: Inside, dy: Tensor) -> tuple[Tensor, Tensor]:
    """From ``slopes`` with ``inside``, and dy (B,C,H,W), the gradient beside the branch: dx
    (B,C,H,W), the sum of both, and the gradient of ``inside.weight``, (R,C) float32."""
    x, (batch, rows), channels, size = inside.x, sdv.shape[:2], inside.x.shape[1], _size(sdv)
    matrix, shift, dw = between(found, inside, size)
    dx, tiles = torch.empty_like(x), TILES["through"][channels]
    kernels._through_norms[(triton.cdiv(size, tiles.pixels), batch)](
        sdv, inside.weight, x, *inside.x_statistics, matrix, shift, dy, dx, size, ROWS=rows,
        C=channels, BH=tiles.rows,
        BP=tiles.pixels, STAGES=tiles.stages, num_warps=tiles.warps,
    )  # fmt: skip
    return dx, dw
