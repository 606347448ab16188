"""A convolution's bias and the activation behind it in one pass over the map: Triton on CUDA,
PyTorch elsewhere.

In 16 bits cuDNN has PyTorch add the bias in a pass of its own, and the activation is another: for
VGG-16's first maps these take longer than their convolutions. Works on channels-last and on plain
maps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmmfnet.nn.fast.norm import DTYPES

try:
    import triton
    import triton.language as tl

    from cmmfnet.nn.fast.gelu import gelu_of, gelu_slope
except ImportError:  # no Triton on this platform: the eager path below serves
    triton = None


def convolve(layer: nn.Conv2d, x: Tensor, activation: str) -> Tensor:
    """``activation(layer(x))`` of x (B,C,H,W); activation is "relu" or "gelu" (erf). In the
    convolution's memory format."""
    if triton is None or not x.is_cuda or x.dtype not in DTYPES or layer.bias is None:
        return (F.relu if activation == "relu" else F.gelu)(layer(x))
    y = F.conv2d(x, layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    return _activate(y, layer.bias, activation == "gelu")


if triton is not None:

    @triton.jit
    def _activation(x, bias, dy, out, rows, channels, size, GELU: tl.constexpr,
                    BACKWARD: tl.constexpr,
                    LAST: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr):  # fmt: skip
        """out = activation(x + bias), or BACKWARD dy times GELU's derivative there. LAST: rows are
        pixels and columns channels; else rows are planes (picture, channel), columns ``size``
        pixels."""
        row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
        column = tl.program_id(1) * BC + tl.arange(0, BC)
        width = channels if LAST else size
        at = row[:, None] * width + column[None, :]
        ok = (row < rows)[:, None] & (column < width)[None, :]
        v = tl.load(x + at, mask=ok, other=0.0).to(tl.float32)
        if LAST:
            v += tl.load(bias + column, mask=column < channels, other=0.0).to(tl.float32)[None, :]
        else:
            v += tl.load(bias + row % channels, mask=row < rows, other=0.0).to(tl.float32)[:, None]
        if GELU:
            if BACKWARD:
                v = gelu_slope(v, out.dtype.element_ty == tl.float32)
            else:
                v = gelu_of(v, out.dtype.element_ty == tl.float32)
        else:
            v = tl.where(v < 0, 0.0, v)  # NaN stays NaN
        if BACKWARD:
            v *= tl.load(dy + at, mask=ok, other=0.0).to(tl.float32)
        tl.store(out + at, v.to(out.dtype.element_ty), mask=ok)

    def _layout(x: Tensor) -> torch.memory_format:
        last = x.shape[1] > 1 and x.is_contiguous(memory_format=torch.channels_last)
        return torch.channels_last if last else torch.contiguous_format

    def _run(x: Tensor, bias: Tensor, dy: Tensor | None, gelu: bool) -> Tensor:
        batch, channels, height, width = x.shape
        layout = _layout(x)
        last, size = layout == torch.channels_last, height * width
        x = x.contiguous(memory_format=layout)
        given = x if dy is None else dy.contiguous(memory_format=layout)
        out = torch.empty_like(x, memory_format=layout)
        rows, columns = (batch * size, channels) if last else (batch * channels, size)
        wide = min(triton.next_power_of_2(columns), 256 if last else 1024)
        tall = max(1, 2048 // wide)
        _activation[(triton.cdiv(rows, tall), triton.cdiv(columns, wide))](
            x, bias, given, out, rows, channels, size, GELU=gelu, BACKWARD=dy is not None,
            LAST=last, BR=tall, BC=wide,
            num_warps=4,
        )  # fmt: skip
        return out

    @torch.library.custom_op("cmmfnet::bias_activation", mutates_args=())
    def _activate(x: Tensor, bias: Tensor, gelu: bool) -> Tensor:
        return _run(x, bias, None, gelu)

    @torch.library.custom_op("cmmfnet::bias_gelu_backward", mutates_args=())
    def _gelu_backward(dy: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        return _run(x, bias, dy, True)

    @_activate.register_fake
    def _(x: Tensor, bias: Tensor, gelu: bool) -> Tensor:
        return torch.empty_like(x, memory_format=_layout(x))

    @_gelu_backward.register_fake
    def _(dy: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        return torch.empty_like(x, memory_format=_layout(x))

    def _save(ctx, inputs, output) -> None:
        x, bias, ctx.gelu = inputs
        ctx.save_for_backward(x if ctx.gelu else output, bias)

    def _gradients(ctx, dy: Tensor) -> tuple[Tensor, Tensor | None, None]:
        kept, bias = ctx.saved_tensors
        if ctx.gelu:
            dx = torch.ops.cmmfnet.bias_gelu_backward(dy, kept, bias)
        else:
            dx = torch.ops.aten.threshold_backward(dy, kept, 0)
        return (
            dx,
            dx.sum(dim=(0, 2, 3), dtype=bias.dtype) if ctx.needs_input_grad[1] else None,
            None,
        )

    _activate.register_autograd(_gradients, setup_context=_save)
