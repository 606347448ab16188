"""Maps brought to another size, for inference on CUDA, and doubled ones also for training: Triton,
and PyTorch elsewhere.

PyTorch's kernels give one thread all channels of a pixel, or divide indices for every value; for
the largest maps of a U-Net that takes longer than the convolution behind it. Here a doubled map is
written in the order that cuDNN's convolutions want, whatever order it comes in, and what a map is
enlarged for - to be added and modulated - is done on the way.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cmmfnet.nn.fast.norm import DTYPES
from cmmfnet.nn.fast.serving import HALVES, autocasts

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton on this platform: the eager path below serves
    triton = None


def _interpolate(x: Tensor, **options: Any) -> Tensor:
    """In x's own dtype: autocast has every enlargement in float32, twice the traffic for the
    largest maps."""
    if not autocasts(x):
        return F.interpolate(x, **options)
    with torch.autocast(x.device.type, enabled=False):
        return F.interpolate(x, **options)


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x (B,C,H,W) times (1 + scale) plus shift, both (B,C)."""
    return x * (1 + scale[:, :, None, None]) + shift[:, :, None, None]


def _serves(*maps: Tensor) -> bool:
    """Whether the kernel, which has no gradient, takes these."""
    if triton is None or torch.is_grad_enabled():
        return False
    return all(x.is_cuda and x.dtype in DTYPES for x in maps)


def _serves_training(x: Tensor) -> bool:
    """Whether the kernels that have a gradient take x."""
    return triton is not None and x.is_cuda and torch.is_grad_enabled() and x.dtype in HALVES


def double(x: Tensor) -> Tensor:
    """(B,C,H,W) -> (B,C,2H,2W), nearest; channels-last where the kernel makes it, in training of 16
    bits, too."""
    if _serves_training(x):
        return _doubled(x)
    if _serves(x):
        return _enlarge(x, [2 * x.shape[2], 2 * x.shape[3]], True, True, None, None, None)
    return _interpolate(x, scale_factor=2.0, mode="nearest")


def plain(x: Tensor) -> Tensor:
    """``x.contiguous()``, (B,C,H,W): of a channels-last map PyTorch reads a value of every pixel at
    a time."""
    if _serves(x) and not x.is_contiguous():
        return _enlarge(x, list(x.shape[-2:]), True, False, None, None, None)
    if _serves_training(x) and not x.is_contiguous():
        return _reordered(x, False)
    return x.contiguous()


def channels_last(x: Tensor) -> Tensor:
    """The same the other way round, where the kernel serves."""
    if x.is_contiguous(memory_format=torch.channels_last):
        return x
    return _enlarge(x, list(x.shape[-2:]), True, True, None, None, None)


def for_convolution(x: Tensor) -> Tensor:
    """A map in front of a convolution of cuDNN, which in 16 bits wants it channels-last: in
    training on CUDA it comes so, for cuDNN would turn it around once forwards and again for the
    weight's gradient, and the output's gradient twice."""
    if (
        not _serves_training(x)
        or torch.compiler.is_compiling()
        or x.is_contiguous(memory_format=torch.channels_last)
    ):
        return x
    return _reordered(x, True)


def bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B,C,h,w) -> (B,C,*size), corners not aligned, without antialiasing; contiguous where the
    kernel makes it."""
    if _serves(x):
        return _enlarge(x, list(size), False, False, None, None, None)
    if (
        x.is_cuda and x.shape[1] >= 4
    ):  # else one thread of PyTorch's kernel walks through all channels of a pixel
        x = x.contiguous(memory_format=torch.channels_last)
    return _interpolate(x, size=size, mode="bilinear", align_corners=False)


def add_bilinear(
    x: Tensor, y: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
) -> Tensor:
    """x (B,C,H,W) plus y (B,C,h,w) at x's size; of that, with scale and shift (B,C), times (1 +
    scale) plus shift."""
    if _serves(x, y) and x.dtype == y.dtype:
        return _enlarge(y, list(x.shape[-2:]), False, False, x, scale, shift)
    x = x + (y if x.shape == y.shape else bilinear(y, tuple(x.shape[-2:])))
    return x if scale is None else modulated(x, scale, shift)


if triton is not None:

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
                    v += (y_part * x_part)[:, None] * tl.load(x + at, mask=ok, other=0.0).to(
                        tl.float32
                    )
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

    @torch.library.custom_op("cmmfnet::enlarge", mutates_args=())
    def _enlarge(
        x: Tensor, size: list[int], nearest: bool, last: bool, plus: Tensor | None,
        scale: Tensor | None,
        shift: Tensor | None,
    ) -> Tensor:  # fmt: skip
        (batch, channels, low, narrow), (height, width) = x.shape, size
        out = _empty(x, size, last)
        came_last = channels > 1 and x.is_contiguous(memory_format=torch.channels_last)
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

    @torch.library.custom_op("cmmfnet::doubled", mutates_args=())
    def _doubled(x: Tensor) -> Tensor:
        return _enlarge(x, [2 * x.shape[2], 2 * x.shape[3]], True, True, None, None, None)

    @torch.library.custom_op("cmmfnet::doubled_backward", mutates_args=())
    def _doubled_backward(dy: Tensor, last: bool) -> Tensor:
        batch, channels, height, width = (
            dy.shape[0],
            dy.shape[1],
            dy.shape[2] // 2,
            dy.shape[3] // 2,
        )
        dx = _empty(dy, [height, width], last)
        came_last = channels > 1 and dy.is_contiguous(memory_format=torch.channels_last)
        columns = min(64, triton.next_power_of_2(channels))
        rows = 2048 // columns
        _halved[(triton.cdiv(height * width, rows), triton.cdiv(channels, columns), batch)](
            dy if came_last else dy.contiguous(), dx, channels, height, width, LAST_IN=came_last,
            LAST_OUT=last, BP=rows,
            BC=columns, num_warps=4,
        )  # fmt: skip
        return dx

    @_doubled.register_fake
    def _(x: Tensor) -> Tensor:
        return _empty(x, [2 * x.shape[2], 2 * x.shape[3]], True)

    @_doubled_backward.register_fake
    def _(dy: Tensor, last: bool) -> Tensor:
        return _empty(dy, [dy.shape[2] // 2, dy.shape[3] // 2], last)

    def _save(ctx, inputs, output) -> None:
        ctx.last = inputs[0].shape[1] > 1 and not inputs[0].is_contiguous()

    def _gradient(ctx, dy: Tensor) -> Tensor:
        """In the order that x came in: what follows adds it to maps of that order."""
        return torch.ops.cmmfnet.doubled_backward(dy, ctx.last)

    _doubled.register_autograd(_gradient, setup_context=_save)

    @torch.library.custom_op("cmmfnet::reordered", mutates_args=())
    def _reordered(x: Tensor, last: bool) -> Tensor:
        return _enlarge(x, list(x.shape[-2:]), True, last, None, None, None)

    @_reordered.register_fake
    def _(x: Tensor, last: bool) -> Tensor:
        return _empty(x, list(x.shape[-2:]), last)

    def _back(ctx, dy: Tensor) -> tuple[Tensor, None]:
        return torch.ops.cmmfnet.reordered(dy, ctx.last), None

    _reordered.register_autograd(_back, setup_context=_save)

    def _empty(x: Tensor, size: list[int], last: bool) -> Tensor:
        layout = torch.channels_last if last else torch.contiguous_format
        return torch.empty(
            *x.shape[:2], *size, device=x.device, dtype=x.dtype, memory_format=layout
        )

    @_enlarge.register_fake
    def _(
        x: Tensor, size: list[int], nearest: bool, last: bool, plus: Tensor | None,
        scale: Tensor | None,
        shift: Tensor | None,
    ) -> Tensor:  # fmt: skip
        return _empty(x, size, last)
