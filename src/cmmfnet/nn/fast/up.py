"""A 3x3 convolution of a doubled map for inference on CUDA, without the doubled map: Triton, and
PyTorch elsewhere.

Of a map that nearest neighbours have doubled, three rows and columns hold two different values
each. So an output is a 2x2 convolution of the small map, whose weights are sums of the 3x3 ones and
depend on whether its row and its column are even: 4/9 of the multiply-adds, and the largest maps of
a U-Net are written once, with bias and activation, and never read in between.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmmfnet.nn.fast.bias import convolve
from cmmfnet.nn.fast.enlarge import channels_last, double
from cmmfnet.nn.fast.serving import HALVES

try:
    import triton
    import triton.language as tl

    from cmmfnet.nn.fast.gelu import gelu_in
except ImportError:  # no Triton on this platform: the eager path below serves
    triton = None


def _serves(layer: nn.Conv2d, x: Tensor) -> bool:
    return (
        triton is not None
        and x.is_cuda
        and not torch.is_grad_enabled()
        and x.dtype in HALVES
        and layer.kernel_size == (3, 3)
        and layer.padding == (1, 1)
        and layer.in_channels % 32 == 0
        and layer.out_channels % 32 == 0
    )


def double_convolve(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """x (B,C,H,W) -> the 3x3 convolution of ``double(x)`` without its bias, (B,O,2H,2W);
    channels-last where the kernel makes it. Products take x's dtype (the sums of weights, too),
    sums are float32."""
    if _serves(layer, x):
        return _double_convolve(x, layer.weight.to(x.dtype), None)
    return F.conv2d(double(x), layer.weight.to(x.dtype), None, layer.stride, layer.padding)


def double_convolve_gelu(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """``gelu(layer(double(x)))``, likewise."""
    if _serves(layer, x):
        return _double_convolve(x, layer.weight.to(x.dtype), layer.bias)
    return convolve(layer, double(x), "gelu")


if triton is not None:

    @triton.jit
    def _sums_of_weights(weight, y, count, BLOCK: tl.constexpr):
        """weight (O,C,3,3) -> y[rows, columns] (O,C) of ``count`` values, for even outputs the
        weights of the first and of the other two rows (columns), for odd ones of the first two and
        of the last."""
        rows, columns = tl.program_id(0) // 4, tl.program_id(0) % 4
        at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        for i in tl.static_range(3):
            for j in tl.static_range(3):
                # rows 0: {0}, 1: {1, 2}, 2: {0, 1}, 3: {2}
                ok_i = (
                    (rows == 0) & (i == 0)
                    | (rows == 1) & (i > 0)
                    | (rows == 2) & (i < 2)
                    | (rows == 3) & (i == 2)
                )
                ok_j = (
                    (columns == 0) & (j == 0) | (columns == 1) & (j > 0) | (columns == 2) & (j < 2)
                )
                ok_j = ok_j | (columns == 3) & (j == 2)
                total += tl.load(
                    weight + at * 9 + i * 3 + j, mask=(at < count) & ok_i & ok_j, other=0.0
                ).to(tl.float32)
        tl.store(y + tl.program_id(0) * count + at, total.to(y.dtype.element_ty), mask=at < count)

    @triton.jit
    def _doubled(x, weight, bias, y, height, width, outputs, C: tl.constexpr, GELU: tl.constexpr,
                 BK: tl.constexpr,
                 BO: tl.constexpr, BP: tl.constexpr):  # fmt: skip
        """x and y channels-last. A program has BP pixels of x, of the outputs over them the even or
        the odd row, BO channels. GELU: bias and activation follow."""
        parts = 2 * (outputs // BO)
        part, tile = tl.program_id(0) % parts, tl.program_id(0) // parts
        odd, o = part % 2, part // 2 * BO + tl.arange(0, BO)
        size = height * width
        picture = tl.program_id(1).to(tl.int64)
        pixel = tile * BP + tl.arange(0, BP)
        row, column = pixel // width, pixel % width
        c = tl.arange(0, BK)
        x += picture * size * C
        plane = outputs * C
        left = tl.zeros((BP, BO), dtype=tl.float32)
        right = tl.zeros((BP, BO), dtype=tl.float32)
        for step in range(2 * (C // BK)):
            tap, first = step // (C // BK), step % (C // BK) * BK
            up = row + odd - 1 + tap
            ok = (up >= 0) & (up < height)
            at = (up * width + column)[:, None] * C + first + c[None, :]
            w = weight + (odd * 2 + tap) * 4 * plane + o[None, :] * C + first + c[:, None]
            a = tl.load(x + at - C, mask=(ok & (column > 0))[:, None], other=0.0)
            left = tl.dot(a, tl.load(w), left)
            a = tl.load(x + at, mask=ok[:, None], other=0.0)
            left = tl.dot(a, tl.load(w + plane), left)
            right = tl.dot(a, tl.load(w + 2 * plane), right)
            a = tl.load(x + at + C, mask=(ok & (column < width - 1))[:, None], other=0.0)
            right = tl.dot(a, tl.load(w + 3 * plane), right)
        if GELU:
            added = tl.load(bias + o).to(tl.float32)[None, :]
            left = gelu_in(left + added, y.dtype.element_ty)
            right = gelu_in(right + added, y.dtype.element_ty)
        to = (picture * 4 * size + (2 * row + odd) * (2 * width) + 2 * column)[
            :, None
        ] * outputs + o[None, :]
        inside = (pixel < size)[:, None]
        tl.store(y + to, left.to(y.dtype.element_ty), mask=inside)
        tl.store(y + to + outputs, right.to(y.dtype.element_ty), mask=inside)

    _TILING = (256, 32, 8, 3)
    """Pixels at a time, input channels at a time, warps, stages."""

    def _empty(x: Tensor, outputs: int) -> Tensor:
        batch, _, height, width = x.shape
        return torch.empty(
            batch,
            outputs,
            2 * height,
            2 * width,
            device=x.device,
            dtype=x.dtype,
            memory_format=torch.channels_last,
        )

    @torch.library.custom_op("cmmfnet::double_convolve", mutates_args=())
    def _double_convolve(x: Tensor, weight: Tensor, gelu_bias: Tensor | None) -> Tensor:
        batch, channels, height, width = x.shape
        outputs, (pixels, inputs, warps, stages) = weight.shape[0], _TILING
        x, weight, y = channels_last(x), weight.contiguous(), _empty(x, weight.shape[0])
        sums = torch.empty(16, outputs, channels, device=x.device, dtype=x.dtype)
        _sums_of_weights[(16, triton.cdiv(outputs * channels, 1024))](
            weight, sums, outputs * channels, BLOCK=1024
        )
        columns = 64 if outputs % 64 == 0 else 32
        programs = triton.cdiv(height * width, pixels) * 2 * (outputs // columns)
        _doubled[(programs, batch)](
            x, sums, sums if gelu_bias is None else gelu_bias, y, height, width, outputs,
            C=channels,
            GELU=gelu_bias is not None, BK=inputs if channels % inputs == 0 else 32, BO=columns,
            BP=pixels,
            num_warps=warps, num_stages=stages,
        )  # fmt: skip
        return y

    @_double_convolve.register_fake
    def _(x: Tensor, weight: Tensor, gelu_bias: Tensor | None) -> Tensor:
        return _empty(x, weight.shape[0])
