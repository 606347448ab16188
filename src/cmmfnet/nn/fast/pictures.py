"""L1, total variation and SSIM of pictures in one pass, and their gradient in another: Triton, CUDA
only.

losses.py has the formulas, which are what a CPU runs and what the tests compare with. Operator by
operator they are some sixty passes over the pictures. Here a program takes a tile of 64x64 pixels;
a Gaussian window over its rows or columns is a product with a band matrix, which is what tensor
cores are for: three products of 16 bits, which are as exact as one of float32 (the compiler's own
such product, "tf32x3", does not fit the registers). SSIM is taken of pictures in [-.5,.5]:
variances are the same as of those in [0,1], and are differences of smaller numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cmmfnet.nn.fast.norm import DTYPES

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton on this platform: the formulas in losses.py serve
    triton = None

WINDOW = 11
"""Side of SSIM's window in pixels; its standard deviation is 1.5."""


def serves_pictures(x: Tensor, y: Tensor) -> bool:
    """Whether :func:`picture_losses` takes these pictures."""
    fits = x.shape == y.shape and min(x.shape[-2:]) >= WINDOW
    return (
        triton is not None
        and x.is_cuda
        and fits
        and x.dtype in DTYPES
        and y.dtype in DTYPES
        and not y.requires_grad
    )


def picture_losses(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``l1(x, y)``, ``total_variation(x)`` and ``ssim(x, y)`` of losses.py, of x and y (B,C,H,W) in
    [-1,1]: float32 scalars. Gradients are of x alone. The same result from run to run."""
    return _losses(x, y)[0].unbind()


if triton is not None:
    _TILE = tl.constexpr(64)
    _OWN = tl.constexpr(54)  # rows and columns of a tile whose window lies in it
    _HALO = tl.constexpr(10)

    @triton.jit
    def _band(at, to):
        """Weight of pixel ``to`` in the window that begins at ``at``: exp(-(d - 5)^2 / (2 *
        1.5^2)), of sum 1."""
        d = to - at
        weight = tl.exp((d - 5) * (d - 5) * (-1.0 / 4.5)) * 0.26601172486179436
        return tl.where((d >= 0) & (d <= 10), weight, 0.0)

    @triton.jit
    def _halves(z):
        """float32 as a sum of two in 16 bits, to 2^-22 of the largest values here."""
        high = z.to(tl.float16)
        return high, (z - high.to(tl.float32)).to(tl.float16)

    @triton.jit
    def _blurred(i, j, z):
        """The window's sums over z (64,64), beginning at each pixel; right for the first 54 rows
        and columns."""
        high, low = _halves(z)
        band, rest = _halves(_band(i, j))
        z = tl.dot(band, high, tl.dot(rest, high, tl.dot(band, low)))
        high, low = _halves(z)
        band, rest = _halves(_band(j, i))
        return tl.dot(high, band, tl.dot(high, rest, tl.dot(low, band)))

    @triton.jit
    def _tile(height, width):
        """Of this program: rows (64,1) and columns (1,64) in its tile and in the picture, and its
        plane's offset."""
        across = tl.cdiv(width, _OWN)
        i, j = tl.arange(0, _TILE)[:, None], tl.arange(0, _TILE)[None, :]
        r = tl.program_id(0) // across * _OWN + i
        c = tl.program_id(0) % across * _OWN + j
        return i, j, r, c, tl.program_id(1).to(tl.int64) * height * width

    @triton.jit
    def _similarity(mx, my, xx, yy, xy):
        """Luminance and structure terms of SSIM, and their denominators, from means and second
        moments less 1/2."""
        a, b = mx + 0.5, my + 0.5
        low, bottom = a * a + b * b + 1e-4, xx - mx * mx + yy - my * my + 9e-4
        return (2 * a * b + 1e-4) / low, (2 * (xy - mx * my) + 9e-4) / bottom, low, bottom

    @triton.jit
    def _sign(v):
        return (v > 0).to(tl.float32) - (v < 0).to(tl.float32)

    @triton.jit
    def _forward(x, y, maps, sums, height, width, size, over_l1, over_tv, over_ssim):
        """sums (3, programs): each tile's share of the three means. maps (3, planes, H-10, W-10):
        derivatives of each window's similarity for its mean of x, of x^2 and of xy. size: elements
        of one of the maps; over_: 1 / number of elements."""
        i, j, r, c, plane = _tile(height, width)
        at = plane + r * width + c
        inside = (r < height) & (c < width)
        u = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
        own = inside & (i < _OWN) & (j < _OWN)
        down = tl.load(x + at + width, mask=own & (r + 1 < height), other=0.0).to(tl.float32)
        right = tl.load(x + at + 1, mask=own & (c + 1 < width), other=0.0).to(tl.float32)
        variation = tl.where(r + 1 < height, tl.abs(down - u), 0.0) + tl.where(
            c + 1 < width, tl.abs(right - u), 0.0
        )
        l1 = tl.sum(tl.where(own, tl.abs(u - v), 0.0)) * over_l1
        tv = tl.sum(tl.where(own, variation, 0.0)) * over_tv

        u, v = u * 0.5, v * 0.5
        mx, my = _blurred(i, j, u), _blurred(i, j, v)
        xx, yy = _blurred(i, j, u * u), _blurred(i, j, v * v)
        xy = _blurred(i, j, u * v)
        luminance, structure, low, bottom = _similarity(mx, my, xx, yy, xy)
        fits = own & (r + _HALO < height) & (c + _HALO < width)
        ssim = tl.sum(tl.where(fits, luminance * structure, 0.0)) * over_ssim
        by_square = -luminance * structure / bottom
        by_product = 2 * luminance / bottom
        by_mean = (
            structure * (2 * (my + 0.5) - 2 * (mx + 0.5) * luminance) / low
            - 2 * mx * by_square
            - my * by_product
        )
        to = (
            tl.program_id(1).to(tl.int64) * (height - _HALO) * (width - _HALO)
            + r * (width - _HALO)
            + c
        )
        tl.store(maps + to, by_mean, mask=fits)
        tl.store(maps + size + to, by_square, mask=fits)
        tl.store(maps + 2 * size + to, by_product, mask=fits)

        programs = tl.num_programs(0) * tl.num_programs(1)
        program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        tl.store(sums + program, l1)
        tl.store(sums + programs + program, tv)
        tl.store(sums + 2 * programs + program, ssim)

    @triton.jit
    def _backward(gradients, x, y, maps, dx, height, width, size, over_l1, over_tv, over_ssim):
        """dx of the three means, whose gradients are ``gradients`` (3,)."""
        i, j, r, c, plane = _tile(height, width)
        first, left = r - _HALO, c - _HALO  # the windows that this tile's pixels are in
        inside = (first >= 0) & (left >= 0) & (r < height) & (c < width)
        at = (
            tl.program_id(1).to(tl.int64) * (height - _HALO) * (width - _HALO)
            + first * (width - _HALO)
            + left
        )
        by_mean = _blurred(i, j, tl.load(maps + at, mask=inside, other=0.0))
        by_square = _blurred(i, j, tl.load(maps + size + at, mask=inside, other=0.0))
        by_product = _blurred(i, j, tl.load(maps + 2 * size + at, mask=inside, other=0.0))

        at = plane + r * width + c
        own = (r < height) & (c < width) & (i < _OWN) & (j < _OWN)
        u = tl.load(x + at, mask=own, other=0.0).to(tl.float32)
        v = tl.load(y + at, mask=own, other=0.0).to(tl.float32)
        up = tl.load(x + at - width, mask=own & (r > 0), other=0.0).to(tl.float32)
        down = tl.load(x + at + width, mask=own & (r + 1 < height), other=0.0).to(tl.float32)
        left_of = tl.load(x + at - 1, mask=own & (c > 0), other=0.0).to(tl.float32)
        right = tl.load(x + at + 1, mask=own & (c + 1 < width), other=0.0).to(tl.float32)
        variation = tl.where(r > 0, _sign(u - up), 0.0) - tl.where(
            r + 1 < height, _sign(down - u), 0.0
        )
        variation += tl.where(c > 0, _sign(u - left_of), 0.0) - tl.where(
            c + 1 < width, _sign(right - u), 0.0
        )
        ssim = 0.5 * (by_mean + u * by_square + 0.5 * v * by_product)
        found = (
            tl.load(gradients) * over_l1 * _sign(u - v)
            + tl.load(gradients + 1) * over_tv * variation
        )
        found += tl.load(gradients + 2) * over_ssim * ssim
        tl.store(dx + at, found.to(dx.dtype.element_ty), mask=own)

    def _setting(
        x: Tensor,
    ) -> tuple[tuple[int, int], tuple[int, int, int, int], tuple[float, float, float]]:
        batch, channels, height, width = x.shape
        grid = triton.cdiv(height, _OWN.value) * triton.cdiv(width, _OWN.value), batch * channels
        windows = batch * channels * (height - WINDOW + 1) * (width - WINDOW + 1)
        return (
            grid,
            (height, width, windows),
            (1 / x.numel(), 1 / (batch * height * width), 1 / windows),
        )

    @torch.library.custom_op("cmmfnet::picture_losses", mutates_args=())
    def _losses(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        grid, sizes, over = _setting(x)
        maps = x.new_empty(
            3, *x.shape[:2], *(side - WINDOW + 1 for side in x.shape[2:]), dtype=torch.float32
        )
        sums = x.new_empty(3, grid[0] * grid[1], dtype=torch.float32)
        _forward[grid](x.contiguous(), y.contiguous(), maps, sums, *sizes, *over, num_warps=8)
        return sums.sum(dim=1), maps

    @torch.library.custom_op("cmmfnet::picture_losses_backward", mutates_args=())
    def _losses_backward(gradients: Tensor, x: Tensor, y: Tensor, maps: Tensor) -> Tensor:
        grid, sizes, over = _setting(x)
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        _backward[grid](
            gradients.contiguous(),
            x.contiguous(),
            y.contiguous(),
            maps,
            dx,
            *sizes,
            *over,
            num_warps=8,
        )
        return dx

    @_losses.register_fake
    def _(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        sides = (side - WINDOW + 1 for side in x.shape[2:])
        return x.new_empty(3, dtype=torch.float32), x.new_empty(
            3, *x.shape[:2], *sides, dtype=torch.float32
        )

    @_losses_backward.register_fake
    def _(gradients: Tensor, x: Tensor, y: Tensor, maps: Tensor) -> Tensor:
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    def _save(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs, output[1])

    def _gradients(ctx, gradients: Tensor, _maps: Tensor | None) -> tuple[Tensor, None]:
        return torch.ops.cmmfnet.picture_losses_backward(gradients, *ctx.saved_tensors), None

    _losses.register_autograd(_gradients, setup_context=_save)
