"""Sums in parts: kernels write float32 sums of parts of their work, and another kernel adds them.

PyTorch's reduction over leading axes has few programs, each with long columns. Here a tile takes
many rows at once, and there are enough tiles to fill a GPU. The order is fixed, so sums are equal
from run to run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS, VALUES = 264, 4096
"""About as many programs at least, and the values of a tile."""


@triton.jit(do_not_specialize=["rows"])
def _sums(parts, out, rows, columns, BR: tl.constexpr, BC: tl.constexpr):
    """out[plane, column] = the sum over rows of parts[plane, row, column]."""
    plane = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BC + tl.arange(0, BC)
    inside = column < columns
    parts += plane * rows * columns
    total = tl.zeros((BR, BC), tl.float32)
    for first in range(0, rows, BR):
        row = first + tl.arange(0, BR)
        at = row.to(tl.int64)[:, None] * columns + column[None, :]
        total += tl.load(parts + at, mask=(row < rows)[:, None] & inside[None, :], other=0.0)
    tl.store(out + plane * columns + column, tl.sum(total, axis=0), mask=inside)


def in_parts(size: int, step: int, most: int) -> tuple[int, int]:
    """Number of parts of ``size`` values, at most ``most``, and of steps of ``step`` values through
    each part."""
    blocks = triton.cdiv(size, step)
    steps = triton.cdiv(blocks, max(1, min(blocks, most)))
    return triton.cdiv(blocks, steps), steps


def float32(x: Tensor, *shape: int) -> Tensor:
    """An empty float32 tensor on x's device, for a kernel to write."""
    return torch.empty(shape, device=x.device, dtype=torch.float32)


def sum_of_parts(parts: Tensor, kept: int = 0) -> Tensor:
    """parts (..., P, *shape) float32, contiguous -> ``parts.sum`` over all axes but the first
    ``kept`` and the last two, ``shape``."""
    shape, leading = parts.shape[-2:], parts.shape[:kept]
    planes, columns = leading.numel(), shape.numel()
    rows = parts.shape[kept:-2].numel()
    if rows == 1:
        return parts.view(*leading, *shape)
    out = torch.empty(*leading, *shape, device=parts.device, dtype=torch.float32)
    wide = 16
    while wide < 256 and planes * columns >= 2 * wide * PROGRAMS:
        wide *= 2
    tall = min(triton.next_power_of_2(rows), VALUES // wide)
    _sums[(triton.cdiv(columns, wide), planes)](
        parts, out, rows, columns, BR=tall, BC=wide, num_warps=4
    )
    return out
