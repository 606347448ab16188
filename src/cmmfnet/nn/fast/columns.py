"""Sums over the rows of matrices in 16 bits, the gradients of biases, with what else has to pass
over the same rows: Triton.

PyTorch's reduction of (6144,512) takes four times as long as reading it. Here a first launch sums
parts of the rows, a second one the parts: float32, in a fixed order, the same from run to run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmmfnet.nn.fast.gelu import gelu_slope
from cmmfnet.nn.fast.sums import in_parts


class Cut(NamedTuple):
    """How the work is cut: rows and columns at a time, warps, and about how many programs in
    all."""

    rows: int
    columns: int
    warps: int
    programs: int = 0


CUTS = {
    "sums": Cut(64, 64, 4, 264),
    "join": Cut(64, 64, 4, 528),
    "gelu": Cut(32, 128, 4, 528),
    "totals": Cut(64, 32, 4),
}
COPIED = 2048  # values of a program that joins weights


@triton.jit
def _sums(a, b, c, before, out, parts, rows, columns, step_a, step_b, step_c, each,
          GELU: tl.constexpr, WRITE: tl.constexpr,
          BR: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    """parts[part, which, column]: the sum of ``each`` rows of a, b or c, whose rows are ``step``
    values apart. GELU: times GELU's slope at ``before``. WRITE: what is summed goes to ``out``,
    those of a, b and c side by side."""
    part, which = tl.program_id(0), tl.program_id(2)
    kinds = tl.num_programs(2)
    column = tl.program_id(1) * BC + tl.arange(0, BC)
    source, step = a, step_a
    if which == 1:
        source, step = b, step_b
    if which == 2:
        source, step = c, step_c
    total = tl.zeros((BR, BC), tl.float32)
    for first in range(part * each, tl.minimum(part * each + each, rows), BR):
        row = (first + tl.arange(0, BR)).to(tl.int64)
        ok = (row < rows)[:, None] & (column < columns)[None, :]
        v = tl.load(source + row[:, None] * step + column[None, :], mask=ok, other=0.0)
        if GELU:
            at = tl.load(before + row[:, None] * columns + column[None, :], mask=ok, other=0.0).to(
                tl.float32
            )
            v = (v.to(tl.float32) * gelu_slope(at, before.dtype.element_ty == tl.float32)).to(
                out.dtype.element_ty
            )
        if WRITE:
            tl.store(
                out + row[:, None] * (kinds * columns) + which * columns + column[None, :],
                v,
                mask=ok,
            )
        total += v.to(tl.float32)
    tl.store(
        parts + (part * kinds + which) * columns + column,
        tl.sum(total, axis=0),
        mask=column < columns,
    )


@triton.jit
def _totals(parts, a, b, c, count, columns, BP: tl.constexpr, BC: tl.constexpr):
    """The sums of parts[:, which] go to a, b or c."""
    which, kinds = tl.program_id(1), tl.num_programs(1)
    column = tl.program_id(0) * BC + tl.arange(0, BC)
    inside = column < columns
    found = tl.zeros((BP, BC), tl.float32)
    for first in range(0, count, BP):
        part = first + tl.arange(0, BP)
        at = (part * kinds + which)[:, None] * columns + column[None, :]
        found += tl.load(parts + at, mask=(part < count)[:, None] & inside[None, :], other=0.0)
    total = tl.sum(found, axis=0)
    if which == 0:
        tl.store(a + column, total.to(a.dtype.element_ty), mask=inside)
    if which == 1:
        tl.store(b + column, total.to(b.dtype.element_ty), mask=inside)
    if which == 2:
        tl.store(c + column, total.to(c.dtype.element_ty), mask=inside)


@triton.jit
def _copy(source, to, start, at, size):
    tl.store(
        to + start + at,
        tl.load(source + at, mask=at < size, other=0.0).to(to.dtype.element_ty),
        mask=at < size,
    )


@triton.jit
def _joined(a, b, c, bias_a, bias_b, bias_c, weight, bias, size, count, BLOCK: tl.constexpr):
    """Three matrices of ``size`` values each one below the other, and their biases of ``count``
    each."""
    which, at = tl.program_id(1), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if which == 0:
        _copy(a, weight, 0, at, size)
        _copy(bias_a, bias, 0, at, count)
    if which == 1:
        _copy(b, weight, size, at, size)
        _copy(bias_b, bias, count, at, count)
    if which == 2:
        _copy(c, weight, 2 * size, at, size)
        _copy(bias_c, bias, 2 * count, at, count)


def joined(
    weights: Sequence[Tensor], biases: Sequence[Tensor], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Three weights (N,K) and biases (N,) -> (3N,K) and (3N,) in ``dtype``; one launch, casts
    included."""
    (outputs, inputs), device = weights[0].shape, weights[0].device
    weight = torch.empty(3 * outputs, inputs, dtype=dtype, device=device)
    bias = torch.empty(3 * outputs, dtype=dtype, device=device)
    given = [t.contiguous() for t in (*weights, *biases)]
    size = outputs * inputs
    _joined[(triton.cdiv(size, COPIED), 3)](
        *given, weight, bias, size, outputs, BLOCK=COPIED, num_warps=4
    )
    return weight, bias


def totals(parts: Tensor, outs: Sequence[Tensor]) -> None:
    """parts (P,k,C) float32 -> their sums over P into the k (at most three) vectors (C,), each in
    its own dtype."""
    (count, kinds, columns), cut = parts.shape, CUTS["totals"]
    a, b, c = (outs[min(i, kinds - 1)] for i in range(3))
    _totals[(triton.cdiv(columns, cut.columns), kinds)](
        parts, a, b, c, count, columns, BP=cut.rows, BC=cut.columns, num_warps=cut.warps
    )


def _run(
    kind: str,
    matrices: Sequence[Tensor],
    before: Tensor | None,
    out: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    (rows, columns), kinds, cut = matrices[0].shape, len(matrices), CUTS[kind]
    matrices = [m if m.stride(1) == 1 or columns == 1 else m.contiguous() for m in matrices]
    blocks = triton.cdiv(columns, cut.columns)
    count, steps = in_parts(rows, cut.rows, cut.programs // (blocks * kinds))
    a, b, c = (matrices[min(i, kinds - 1)] for i in range(3))
    parts = torch.empty(count, 1, kinds * columns, dtype=torch.float32, device=a.device)
    found = torch.empty(kinds * columns, dtype=dtype, device=a.device)
    _sums[(count, blocks, kinds)](
        a, b, c, a if before is None else before, a if out is None else out, parts, rows, columns,
        a.stride(0), b.stride(0),
        c.stride(0), steps * cut.rows, GELU=before is not None, WRITE=out is not None, BR=cut.rows,
        BC=cut.columns,
        num_warps=cut.warps,
    )  # fmt: skip
    totals(parts, [found])
    return found


def column_sums(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x (R,C) -> the sums of its columns, (C,) in ``dtype``."""
    return _run("sums", [x], None, None, dtype)


def joined_columns(matrices: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Three matrices (R,C) of one dtype side by side, (R,3C), and the sums of its columns, (3C,) in
    ``dtype``."""
    rows, columns = matrices[0].shape
    out = torch.empty(rows, 3 * columns, dtype=matrices[0].dtype, device=matrices[0].device)
    return out, _run("join", matrices, None, out, dtype)


def through_gelu(dy: Tensor, before: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """dy (R,C), the gradient behind a GELU (erf) of ``before`` (R,C, contiguous) -> that in front
    of it, and the sums of its columns, (C,) in ``dtype``."""
    out = torch.empty_like(before)
    return out, _run("gelu", [dy], before, out, dtype)
