"""Maps in another size or memory order: Triton, for inference; doubled maps also for training.

PyTorch's kernels give all channels of a pixel to one thread, or divide indices for every value. For
the largest maps of a U-Net this takes longer than the convolution that follows. Here a doubled map
is written channels-last, as cuDNN's convolutions need it, whatever the order of its input. An
enlarged map is added to another map and modulated in the same pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable


def double(x: Tensor) -> Tensor:
    """x (B,C,H,W) -> (B,C,2H,2W), nearest neighbours, channels-last."""
    return _Doubled.apply(x)


def ordered(x: Tensor, last: bool) -> Tensor:
    """x (B,C,H,W) contiguous or, with ``last``, channels-last; copied where x has another
    order."""
    layout = torch.channels_last if last else torch.contiguous_format
    return x if x.is_contiguous(memory_format=layout) else _Ordered.apply(x, last)


def bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    """x (B,C,h,w) -> (B,C,*size), corners not aligned, without antialiasing; contiguous. Without a
    gradient."""
    return _enlarge(x, size, nearest=False)


def add_bilinear(
    x: Tensor, y: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
) -> Tensor:
    """x (B,C,H,W) plus y (B,C,h,w), of one dtype, enlarged to x's size. With scale and shift (B,C),
    the sum times (1 + scale) plus shift. Without a gradient."""
    return _enlarge(y, x.shape[2:], nearest=False, plus=x, scale=scale, shift=shift)


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.last = _is_last(x)
        return _enlarge(x, (2 * x.shape[2], 2 * x.shape[3]), last=True)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        """The gradient in x's memory order, since it is added to maps of that order."""
        return _halve(dy, ctx.last)


class _Ordered(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, last):
        ctx.last = _is_last(x)
        return _enlarge(x, x.shape[2:], last=last)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return _enlarge(dy, dy.shape[2:], last=ctx.last), None


@triton.jit
def _places(picture, place, c, channels, size, LAST: tl.constexpr):
    """Where pixels ``place`` of channels ``c`` are in a map of ``size`` pixels: a tile (pixels,
    channels)."""
    if LAST:
        at = (picture * size + place)[:, None] * channels + c[None, :]
    else:
        at = (picture * channels + c)[None, :] * size + place[:, None]
    return at


@triton.jit
def _resized(x, plus, scale, shift, out, channels, height, width, low, narrow, ratio_y, ratio_x,
             NEAREST: tl.constexpr, ADD: tl.constexpr, MODULATE: tl.constexpr,
             LAST_IN: tl.constexpr,
             LAST_OUT: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    """x (low by narrow pixels) at the size of ``out`` (height by width)."""
    picture = tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    size, source = height * width, low * narrow
    ok = (pixel < size)[:, None] & (c < channels)[None, :]
    row, column = pixel // width, pixel % width
    if NEAREST:
        place = (row * low // height) * narrow + column * narrow // width
        v = tl.load(
            x + _places(picture, place, c, channels, source, LAST_IN), mask=ok, other=0.0
        ).to(tl.float32)
    else:
        v = tl.zeros((BP, BC), dtype=tl.float32)
        y_at = tl.maximum((row + 0.5) * ratio_y - 0.5, 0.0)
        x_at = tl.maximum((column + 0.5) * ratio_x - 0.5, 0.0)
        top, left = y_at.to(tl.int32), x_at.to(tl.int32)
        for i in tl.static_range(2):
            for j in tl.static_range(2):
                y_part = y_at - top if i else 1.0 - (y_at - top)
                x_part = x_at - left if j else 1.0 - (x_at - left)
                place = tl.minimum(top + i, low - 1) * narrow + tl.minimum(left + j, narrow - 1)
                at = _places(picture, place, c, channels, source, LAST_IN)
                v += (y_part * x_part)[:, None] * tl.load(x + at, mask=ok, other=0.0).to(tl.float32)
    to = _places(picture, pixel, c, channels, size, LAST_OUT)
    if ADD:
        v += tl.load(plus + to, mask=ok, other=0.0).to(tl.float32)
    if MODULATE:
        of = picture * channels + c
        factor = 1.0 + tl.load(scale + of, mask=c < channels, other=0.0).to(tl.float32)
        v = (
            v * factor[None, :]
            + tl.load(shift + of, mask=c < channels, other=0.0).to(tl.float32)[None, :]
        )
    tl.store(out + to, v.to(out.dtype.element_ty), mask=ok)


def _is_last(x: Tensor) -> bool:
    return x.shape[1] > 1 and x.is_contiguous(memory_format=torch.channels_last)


def _empty(x: Tensor, size: Sequence[int], last: bool) -> Tensor:
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(*x.shape[:2], *size, device=x.device, dtype=x.dtype, memory_format=layout)


def _enlarge(
    x: Tensor, size: Sequence[int], *, nearest: bool = True, last: bool = False,
    plus: Tensor | None = None, scale: Tensor | None = None, shift: Tensor | None = None,
) -> Tensor:  # fmt: skip
    (batch, channels, low, narrow), (height, width) = x.shape, size
    out = _empty(x, size, last)
    came_last = _is_last(x)
    x = x if came_last else x.contiguous()
    plus, scale, shift = (None if t is None else t.contiguous() for t in (plus, scale, shift))
    columns = min(64, triton.next_power_of_2(channels))
    rows = 2048 // columns
    _resized[(triton.cdiv(height * width, rows), triton.cdiv(channels, columns), batch)](
        x, x if plus is None else plus, x if scale is None else scale,
        x if shift is None else shift, out,
        channels, height, width, low, narrow, low / height, narrow / width, NEAREST=nearest,
        ADD=plus is not None,
        MODULATE=scale is not None, LAST_IN=came_last, LAST_OUT=last, BP=rows, BC=columns,
        num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _halved(dy, dx, channels, height, width, LAST_IN: tl.constexpr, LAST_OUT: tl.constexpr,
            BP: tl.constexpr,
            BC: tl.constexpr):  # fmt: skip
    """dx (height by width pixels) = the sums of 2x2 pixels of dy."""
    picture = tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    size = height * width
    ok = (pixel < size)[:, None] & (c < channels)[None, :]
    first = (pixel // width) * 4 * width + pixel % width * 2
    v = tl.zeros((BP, BC), dtype=tl.float32)
    for i in tl.static_range(2):
        for j in tl.static_range(2):
            at = _places(picture, first + i * 2 * width + j, c, channels, 4 * size, LAST_IN)
            v += tl.load(dy + at, mask=ok, other=0.0).to(tl.float32)
    tl.store(
        dx + _places(picture, pixel, c, channels, size, LAST_OUT),
        v.to(dx.dtype.element_ty),
        mask=ok,
    )


def _halve(dy: Tensor, last: bool) -> Tensor:
    """dy (B,C,2H,2W) -> the sums of 2x2 pixels (B,C,H,W), channels-last where ``last``."""
    batch, channels, height, width = *dy.shape[:2], dy.shape[2] // 2, dy.shape[3] // 2
    dx = _empty(dy, [height, width], last)
    came_last = _is_last(dy)
    columns = min(64, triton.next_power_of_2(channels))
    rows = 2048 // columns
    _halved[(triton.cdiv(height * width, rows), triton.cdiv(channels, columns), batch)](
        dy if came_last else dy.contiguous(), dx, channels, height, width, LAST_IN=came_last,
        LAST_OUT=last, BP=rows,
        BC=columns, num_warps=4,
    )  # fmt: skip
    return dx
