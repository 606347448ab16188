"""Launches of the kernels in pointwise.py, which says what they compute. Maps are contiguous,
weights of 1x1 convolutions are matrices of the maps' dtype, (outputs, inputs)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from cmmfnet.nn.fast import pointwise
from cmmfnet.nn.fast.norm import Statistics
from cmmfnet.nn.fast.pointwise import TILES
from cmmfnet.nn.fast.sums import float32, in_parts, sum_of_parts


class Inside(NamedTuple):
    """What is in front of a GELU: IN, 1x1, IN. Small but for x."""

    x: Tensor  # (B,C,H,W)
    x_statistics: Statistics
    weight: Tensor  # (R,C)
    statistics: Statistics  # of the R planes that the second norm takes
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
    pointwise._covariance[(parts, batch)](
        x, *x_statistics, products, size, steps, C=channels, BP=tiles.pixels, STAGES=tiles.stages,
        num_warps=tiles.warps,
    )  # fmt: skip
    mean, scale, ws = (
        float32(x, batch * rows),
        float32(x, batch * rows),
        float32(x, batch, rows, channels),
    )
    block = 64 if channels == 64 else 32
    pointwise._wide_statistics[(rows // block, batch)](
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
    pointwise._inward[(triton.cdiv(_size(x), tiles.pixels), x.shape[0])](
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
    pointwise._onward[(triton.cdiv(size, tiles.pixels), batch)](
        u, weight, y, size, ROWS=rows, C=channels, BH=tiles.rows, BP=tiles.pixels,
        STAGES=tiles.stages,
        num_warps=tiles.warps,
    )  # fmt: skip
    return y


def feed_forward(inside: Inside, outside: Tensor) -> Tensor:
    """outside (C,R) -> outside gelu(IN(weight IN(x))), (B,C,H,W)."""
    x, tiles = inside.x, TILES["feed-forward"][inside.x.shape[1]]
    y = torch.empty_like(x)
    pointwise._feed_forward[(triton.cdiv(_size(x), tiles.pixels), x.shape[0])](
        x, inside.weight, outside, *inside.x_statistics, *inside.statistics, y, _size(x),
        ROWS=inside.weight.shape[0],
        C=x.shape[1], BH=tiles.rows, BP=tiles.pixels, num_warps=tiles.warps,
        num_stages=tiles.stages,
    )  # fmt: skip
    return y


class Sums(NamedTuple):
    """What ``slopes`` summed, each part of a picture by itself, float32; of what, ``_slopes``
    says."""

    sums: Tensor  # (B,parts,2,R)
    dn: Tensor  # (B,parts,R,C)


def slopes(
    before: Inside | Tensor, grad: Tensor, outside: Tensor | None = None
) -> tuple[Tensor, Sums | None, Tensor | None]:
    """The gradient in front of a GELU, whose input (B,R,H,W) is given as itself or by what makes
    it.

    ``grad`` is the gradient behind it or, with ``outside`` (C,R), behind the 1x1 convolution that
    follows, (B,C,H,W). -> the gradient (B,R,H,W), with Inside s dv and the sums, and the gradient
    of ``outside``, (C,R) float32.
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
    pointwise._slopes[(rows // tiles.rows, parts, batch)](
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
    pointwise._between[(channels // tiles.pixels, batch)](
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
    pointwise._through_norms[(triton.cdiv(size, tiles.pixels), batch)](
        sdv, inside.weight, x, *inside.x_statistics, matrix, shift, dy, dx, size, ROWS=rows,
        C=channels, BH=tiles.rows,
        BP=tiles.pixels, STAGES=tiles.stages, num_warps=tiles.warps,
    )  # fmt: skip
    return dx, dw
