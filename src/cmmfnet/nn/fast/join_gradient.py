"""The 1x1 convolution of two maps together for training on CUDA, without putting them together:
ffn.py's ``join`` with a gradient.

By separate operators a decoder turns the map from below around, copies both into one, has PyTorch
add two biases in passes of their own and sum them in two more, and on the way back cuts the
gradient in two, neither half of which is contiguous, so that whatever they meet next is slow. Here
every product is a matrix product of each picture, which cuBLAS takes in either order of the maps,
and each gradient comes in the order of its map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cmmfnet.nn.fast.ffn import CHANNELS, join
from cmmfnet.nn.fast.serving import HALVES, trains_on_cuda

try:
    import triton
except ImportError:  # no Triton on this platform: the network goes its ordinary way
    triton = None


def serves_join_with_gradient(x: Tensor, skip: Tensor, layer: nn.Conv2d) -> bool:
    """Whether ``join_with_gradient`` takes ``layer`` of both maps here: CUDA, 16 bits, a gradient
    wanted, no compiler at work. Of x channels and dtype are looked at, for it may still be half as
    large."""
    return (
        triton is not None
        and trains_on_cuda(skip)
        and skip.dtype in HALVES
        and x.dtype == skip.dtype
        and layer.bias is not None
        and layer.kernel_size == (1, 1)
        and layer.in_channels == 2 * skip.shape[1]
    )


def join_with_gradient(
    x: Tensor, skip: Tensor, weight: Tensor, bias: Tensor, x_bias: Tensor | None = None
) -> Tensor:
    """x and skip (B,C,H,W), weight (O,2C,1,1), bias (O,), x_bias (C,) or none -> the 1x1
    convolution of (x + x_bias) and skip together, (B,O,H,W), contiguous, in the maps' dtype.

    Maps may be plain or channels-last, each by itself, and their gradients are likewise. Weight and
    biases may be float32: products take the maps' dtype, and gradients are in the parameters' own.
    """
    return _Join.apply(x, skip, weight, bias, x_bias)


def _in_order(x: Tensor) -> Tensor:
    return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


def _pixels(x: Tensor) -> Tensor:
    """(B,C,H,W) in either order -> its pixels as rows, (B,HW,C), a view."""
    return (
        x.flatten(2).transpose(1, 2) if x.is_contiguous() else x.permute(0, 2, 3, 1).flatten(1, 2)
    )


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, skip, weight, bias, x_bias):
        x, skip, matrix = _in_order(x), _in_order(skip), weight.flatten(1).to(skip.dtype)
        ctx.save_for_backward(x, skip, matrix, x_bias)
        ctx.weight, ctx.bias_dtype = (weight.shape, weight.dtype), bias.dtype
        if x.is_cuda and x_bias is not None and x.shape[1] in CHANNELS and len(matrix) % 64 == 0:
            return join(x, skip, matrix, bias, x_bias)
        return _products(x, skip, matrix, bias, x_bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, skip, matrix, x_bias = ctx.saved_tensors
        channels, dy = x.shape[1], dy.flatten(2).contiguous()
        left, right = matrix.split(channels, dim=1)
        dx = _of_map(dy, left, x) if ctx.needs_input_grad[0] else None
        dskip = _of_map(dy, right, skip) if ctx.needs_input_grad[1] else None
        dw = db = d_x_bias = None
        # of a whole row at a time: PyTorch's sum over pictures and pixels at once takes three times
        # as long
        total = dy.sum(dim=2, dtype=torch.float32).sum(dim=0)
        if ctx.needs_input_grad[2]:
            dw = _of_weight(dy, x, skip)
            if x_bias is not None:
                dw[:, :channels].addr_(total, x_bias.float())
            dw = dw.view(ctx.weight[0]).to(ctx.weight[1])
        if ctx.needs_input_grad[3]:
            db = total.to(ctx.bias_dtype)
        if ctx.needs_input_grad[4]:
            d_x_bias = (
                (total[:, None] * left.float()).sum(dim=0).to(x_bias.dtype)
            )  # in float32: it is small
        return dx, dskip, dw, db, d_x_bias


def _of_map(dy: Tensor, matrix: Tensor, x: Tensor) -> Tensor:
    """dy (B,O,HW), matrix (O,C) -> the gradient of x (B,C,H,W), in x's order."""
    matrix = matrix.expand(len(x), -1, -1)
    if x.is_contiguous():
        return torch.bmm(matrix.transpose(1, 2), dy).view(x.shape)
    return torch.bmm(dy.transpose(1, 2), matrix).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


def _of_weight(dy: Tensor, x: Tensor, skip: Tensor) -> Tensor:
    """dy (B,O,HW) -> the gradient of the matrix, (O,2C) float32: that of each picture in the maps'
    dtype, summed in float32, is as exact as a sum that is rounded once, for the pictures' roundings
    are independent."""
    halves = [torch.bmm(dy, _pixels(of)) for of in (x, skip)]
    return torch.cat([half.sum(dim=0, dtype=torch.float32) for half in halves], dim=1)


def _products(
    x: Tensor, skip: Tensor, matrix: Tensor, bias: Tensor, x_bias: Tensor | None
) -> Tensor:
    """What ``join`` computes, for any number of channels."""
    batch, channels = x.shape[:2]
    left, right = (part.expand(batch, -1, -1) for part in matrix.split(channels, dim=1))
    added = bias if x_bias is None else bias + (left[0].float() * x_bias).sum(dim=1)
    y = torch.baddbmm(added.to(skip.dtype)[:, None], right, _pixels(skip).transpose(1, 2))
    y.baddbmm_(left, _pixels(x).transpose(1, 2))
    return y.view(batch, len(matrix), *x.shape[2:])
