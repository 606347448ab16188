"""Pointwise products behind a norm for inference on CUDA, without writing the normalised map; and the pointwise
feed-forward of a large-kernel stage without ever writing its wide map.

The latter: IN, 1x1 from C to 4C, IN, GELU, 1x1 to C (`layers.ConvFFN` up to its last norm). The wide map, four times the
input, is most of the memory traffic of a stage: PyTorch writes and reads it twice. Here a first pass over the input computes
tiles of it only for the sums of its norm's statistics, and a second one computes each tile again, normalises it, and
multiplies it on at once. What is normalised behind a convolution loses its bias in the norm, so there is none here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cmmfnet.ops.norm import Statistics

try:
    import triton
    import triton.language as tl

    from cmmfnet.ops.norm import gelu_of
except ImportError:  # no Triton on this platform: layers.ConvFFN goes its ordinary way
    triton = None

CHANNELS = (64, 128)  # with more, the weights no longer fit beside a tile, and cuBLAS is as fast


def serves_pointwise(x: Tensor, outputs: int) -> bool:
    """Whether these functions take this input here: CUDA, 16 bits, no gradient wanted, 64 or 128 channels."""
    return (
        triton is not None
        and x.is_cuda
        and not torch.is_grad_enabled()
        and x.dtype in (torch.float16, torch.bfloat16)
        and x.shape[1] in CHANNELS
        and outputs % 64 == 0
    )


def norm_project(x: Tensor, weight: Tensor, statistics: Statistics) -> Tensor:
    """x (B,C,H,W) and its planes' statistics, weight (O,C,1,1) -> the 1x1 convolution of IN(x), (B,O,H,W), without a bias.
    Products take x's dtype, sums are float32. No gradient."""
    return _norm_project(x, weight.to(x.dtype), *statistics)


def join(x: Tensor, skip: Tensor, weight: Tensor, bias: Tensor, x_bias: Tensor) -> Tensor:
    """x and skip (B,C,H,W), weight (O,2C,1,1), bias (O,), x_bias (C,) -> the 1x1 convolution of (x + x_bias) and skip
    together, (B,O,H,W), without putting them together first. Products take x's dtype, sums are float32. No gradient."""
    return _join(x, skip, weight.to(x.dtype), bias, x_bias)


def feed_forward(
    x: Tensor, widen: Tensor, narrow: Tensor, bias: Tensor, statistics: Statistics, eps: float = 1e-5
) -> Tensor:
    """x (B,C,H,W) and its planes' statistics, widen (F,C,1,1), narrow (C,F,1,1), bias (C,) ->
    narrow(gelu(IN(widen(IN(x))))) + bias, (B,C,H,W).

    C and F are powers of two, F at least 64; products take x's dtype, sums and statistics are float32. No gradient.
    """
    return _feed_forward(x, widen.to(x.dtype), narrow.to(x.dtype), bias.to(x.dtype), *statistics, eps)


if triton is not None:

    @triton.jit
    def normalised(x, mean, scale, start, pixel, size, C: tl.constexpr):
        """Tile (C, pixels) of a picture that begins at plane ``start``, in the dtype of the input."""
        c = tl.arange(0, C)
        at = (start + c).to(tl.int64)[:, None] * size + pixel[None, :]
        value = tl.load(x + at, mask=(pixel < size)[None, :], other=0.0).to(tl.float32)
        value = (value - tl.load(mean + start + c)[:, None]) * tl.load(scale + start + c)[:, None]
        return value.to(x.dtype.element_ty)

    @triton.jit
    def _hidden_sums(x, widen, mean, scale, sums, size, tiles, C: tl.constexpr, HIDDEN: tl.constexpr,
                     BH: tl.constexpr, BP: tl.constexpr):  # fmt: skip
        """sums[picture, tile, 0 and 1, hidden]: of the wide map and of its square over the pixels of a tile."""
        tile, picture = tl.program_id(0), tl.program_id(1)
        pixel = tile * BP + tl.arange(0, BP)
        a = normalised(x, mean, scale, picture * C, pixel, size, C)
        c = tl.arange(0, C)
        for first in range(0, HIDDEN, BH):
            h = first + tl.arange(0, BH)
            wide = tl.dot(tl.load(widen + h[:, None] * C + c[None, :]), a)
            wide = tl.where((pixel < size)[None, :], wide, 0.0)
            to = sums + (picture * tiles + tile) * 2 * HIDDEN + h
            tl.store(to, tl.sum(wide, axis=1))
            tl.store(to + HIDDEN, tl.sum(wide * wide, axis=1))

    @triton.jit
    def _through(x, widen, narrow, bias, mean, scale, hidden_mean, hidden_scale, y, size, C: tl.constexpr,
                 HIDDEN: tl.constexpr, BIAS: tl.constexpr, BH: tl.constexpr, BP: tl.constexpr):  # fmt: skip
        picture = tl.program_id(1)
        pixel = tl.program_id(0) * BP + tl.arange(0, BP)
        a = normalised(x, mean, scale, picture * C, pixel, size, C)
        c = tl.arange(0, C)
        acc = tl.zeros((C, BP), dtype=tl.float32)
        for first in range(0, HIDDEN, BH):
            h = first + tl.arange(0, BH)
            wide = tl.dot(tl.load(widen + h[:, None] * C + c[None, :]), a)
            at = picture * HIDDEN + h
            factor = tl.load(hidden_scale + at)
            wide = wide * factor[:, None] - (tl.load(hidden_mean + at) * factor)[:, None]
            wide = gelu_of(wide, False)
            acc = tl.dot(tl.load(narrow + c[:, None] * HIDDEN + h[None, :]), wide.to(x.dtype.element_ty), acc)
        if BIAS:
            acc += tl.load(bias + c).to(tl.float32)[:, None]
        at = (picture * C + c).to(tl.int64)[:, None] * size + pixel[None, :]
        tl.store(y + at, acc.to(y.dtype.element_ty), mask=(pixel < size)[None, :])

    @triton.jit
    def _hidden_norm(sums, mean_out, scale_out, size, tiles, eps, HIDDEN: tl.constexpr, BH: tl.constexpr,
                     BT: tl.constexpr):  # fmt: skip
        """From the sums of all tiles, the statistics of the wide map's planes."""
        picture = tl.program_id(1)
        h = tl.program_id(0) * BH + tl.arange(0, BH)
        total = tl.zeros((BT, BH), dtype=tl.float32)
        squares = tl.zeros((BT, BH), dtype=tl.float32)
        for first in range(0, tiles, BT):
            tile = first + tl.arange(0, BT)
            at = ((picture * tiles + tile) * 2 * HIDDEN)[:, None] + h[None, :]
            total += tl.load(sums + at, mask=(tile < tiles)[:, None], other=0.0)
            squares += tl.load(sums + at + HIDDEN, mask=(tile < tiles)[:, None], other=0.0)
        mean = tl.sum(total, axis=0) / size
        variance = tl.maximum(tl.sum(squares, axis=0) / size - mean * mean, 0.0)
        tl.store(mean_out + picture * HIDDEN + h, mean)
        tl.store(scale_out + picture * HIDDEN + h, 1.0 / tl.sqrt(variance + eps))

    @triton.jit
    def _project(x, weight, mean, scale, y, size, C: tl.constexpr, OUT: tl.constexpr, BH: tl.constexpr,
                 BP: tl.constexpr):  # fmt: skip
        picture = tl.program_id(1)
        pixel = tl.program_id(0) * BP + tl.arange(0, BP)
        a = normalised(x, mean, scale, picture * C, pixel, size, C)
        c = tl.arange(0, C)
        for first in range(0, OUT, BH):
            o = first + tl.arange(0, BH)
            value = tl.dot(tl.load(weight + o[:, None] * C + c[None, :]), a)
            at = (picture * OUT + o).to(tl.int64)[:, None] * size + pixel[None, :]
            tl.store(y + at, value.to(y.dtype.element_ty), mask=(pixel < size)[None, :])

    # by channels, the fastest on an H200: pixels at a time, wide channels at a time, warps, stages
    _SUMS = {64: (128, 64, 4, 3), 128: (256, 64, 8, 3)}
    _THROUGH = {64: (64, 64, 4, 2), 128: (128, 64, 4, 2)}
    _PROJECT = {64: (128, 64, 8, 2), 128: (128, 64, 4, 1)}

    def _tiling(pixels: int, block: int, warps: int, stages: int) -> dict[str, int]:
        return {"BP": pixels, "BH": block, "num_warps": warps, "num_stages": stages}

    @torch.library.custom_op("cmmfnet::norm_project", mutates_args=())
    def _norm_project(x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        size, outputs = height * width, weight.shape[0]
        x, weight = x.contiguous(), weight.contiguous()
        y = _projected(x, weight)
        tiling = _tiling(*_PROJECT[channels])
        grid = (triton.cdiv(size, tiling["BP"]), batch)
        _project[grid](x, weight, mean, scale, y, size, C=channels, OUT=outputs, **tiling)
        return y

    def _projected(x: Tensor, weight: Tensor) -> Tensor:
        return torch.empty(x.shape[0], weight.shape[0], *x.shape[2:], device=x.device, dtype=x.dtype)

    @_norm_project.register_fake
    def _(x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        return _projected(x, weight)

    @triton.jit
    def _joined(x, skip, weight, bias, x_bias, y, size, C: tl.constexpr, OUT: tl.constexpr, LAST: tl.constexpr,
                BO: tl.constexpr, BP: tl.constexpr):  # fmt: skip
        """LAST: x is channels-last."""
        picture = tl.program_id(1).to(tl.int64)
        pixel = tl.program_id(0) * BP + tl.arange(0, BP)
        c = tl.arange(0, C)
        ok = (pixel < size)[None, :]
        plane_at = (picture * C + c)[:, None] * size + pixel[None, :]
        if LAST:
            at = (picture * size + pixel)[None, :] * C + c[:, None]
        else:
            at = plane_at
        left = tl.load(x + at, mask=ok, other=0.0).to(tl.float32) + tl.load(x_bias + c).to(tl.float32)[:, None]
        left = left.to(x.dtype.element_ty)
        right = tl.load(skip + plane_at, mask=ok, other=0.0)
        for first in range(0, OUT, BO):
            o = first + tl.arange(0, BO)
            row = weight + o[:, None] * (2 * C) + c[None, :]
            value = tl.dot(tl.load(row), left)
            value = tl.dot(tl.load(row + C), right, value) + tl.load(bias + o).to(tl.float32)[:, None]
            tl.store(y + (picture * OUT + o)[:, None] * size + pixel[None, :], value.to(y.dtype.element_ty), mask=ok)

    @torch.library.custom_op("cmmfnet::join", mutates_args=())
    def _join(x: Tensor, skip: Tensor, weight: Tensor, bias: Tensor, x_bias: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        size, pixels = height * width, 128 if channels == 64 else 64  # more would fill the shared memory
        last = x.is_contiguous(memory_format=torch.channels_last)
        x, skip, weight = x if last else x.contiguous(), skip.contiguous(), weight.contiguous()
        y = _projected(x, weight)
        _joined[(triton.cdiv(size, pixels), batch)](
            x, skip, weight, bias, x_bias, y, size, C=channels, OUT=weight.shape[0], LAST=last, BO=64, BP=pixels,
            num_warps=8 if channels > 64 else 4,
        )  # fmt: skip
        return y

    @_join.register_fake
    def _(x: Tensor, skip: Tensor, weight: Tensor, bias: Tensor, x_bias: Tensor) -> Tensor:
        return _projected(x, weight)

    @torch.library.custom_op("cmmfnet::feed_forward", mutates_args=())
    def _feed_forward(
        x: Tensor, widen: Tensor, narrow: Tensor, bias: Tensor, mean: Tensor, scale: Tensor, eps: float
    ) -> Tensor:
        batch, channels, height, width = x.shape
        hidden, size = widen.shape[0], height * width
        x, widen, narrow = x.contiguous(), widen.contiguous(), narrow.contiguous()
        tiling = _tiling(*_SUMS[channels])
        tiles = triton.cdiv(size, tiling["BP"])
        sums = torch.empty(batch, tiles, 2, hidden, device=x.device, dtype=torch.float32)
        _hidden_sums[(tiles, batch)](x, widen, mean, scale, sums, size, tiles, C=channels, HIDDEN=hidden, **tiling)
        hidden_mean = torch.empty(batch * hidden, device=x.device, dtype=torch.float32)
        hidden_scale = torch.empty_like(hidden_mean)
        _hidden_norm[(hidden // 16, batch)](
            sums, hidden_mean, hidden_scale, size, tiles, eps, HIDDEN=hidden, BH=16, BT=128, num_warps=4
        )
        return through(x, widen, narrow, bias, (mean, scale), (hidden_mean, hidden_scale))

    def through(
        x: Tensor, widen: Tensor, narrow: Tensor, bias: Tensor | None, of_x: Statistics, of_hidden: Statistics
    ) -> Tensor:
        """``feed_forward`` with the statistics of the wide map, too."""
        batch, channels, height, width = x.shape
        y, tiling, size = torch.empty_like(x), _tiling(*_THROUGH[channels]), height * width
        _through[(triton.cdiv(size, tiling["BP"]), batch)](
            x, widen, narrow, x if bias is None else bias, *of_x, *of_hidden, y, size, C=channels, HIDDEN=widen.shape[0],
            BIAS=bias is not None, **tiling,
        )  # fmt: skip
        return y

    @_feed_forward.register_fake
    def _(x: Tensor, widen: Tensor, narrow: Tensor, bias: Tensor, mean: Tensor, scale: Tensor, eps: float) -> Tensor:
        return torch.empty_like(x, memory_format=torch.contiguous_format)
