"""Layer norm for training on CUDA in 16 bits, and the addition of a residual branch that comes
before it: Triton.

Under autocast PyTorch's norm is in float32: a float32 map goes out, and each linear layer behind it
casts it, and its gradient back. The addition in front is a pass of its own each way, and the
gradients of the norm's weights are another. Here a map is read once: sum, norm and cast forwards;
backwards the norm's gradient, that beside it, and the sums over tokens that the gradients of
weights are, among them that of the bias of the branch's last layer. Arithmetic is in float32, sums
have a fixed order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cmmfnet.nn.fast.serving import product_dtype

try:
    import triton
    import triton.language as tl

    from cmmfnet.nn.fast.columns import totals
    from cmmfnet.nn.fast.sums import in_parts
except ImportError:  # no Triton on this platform: transformer.py goes its ordinary way
    triton = None


class Cut(NamedTuple):
    """How the work is cut: values of a program at a time (whole tokens), warps, about how many
    programs in all."""

    values: int
    warps: int
    programs: int = 0


FORWARD = Cut(2048, 4)
BACKWARD = Cut(1024, 2, 528)


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, dtype: torch.dtype | None = None
) -> Tensor:
    """``F.layer_norm`` of x (...,D) over D, weight and bias (D,): of ``dtype``, else of
    ``product_dtype``. Where ``serves_tokens``."""
    return _Norm.apply(x, weight, bias, eps, dtype or product_dtype(x))


def add_layer_norm(
    x: Tensor, branch: Tensor, added: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5,
    dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """x and branch (...,D), added (D,) -> x + (branch + added), of the wider dtype of x and branch,
    and its ``layer_norm``."""
    return _AddNorm.apply(x, branch, added, weight, bias, eps, dtype or product_dtype(x))


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps, dtype):
        x = x.contiguous()
        y, *statistics = _run(x, None, None, x, weight, bias, eps, dtype)
        ctx.save_for_backward(x, weight, *statistics)
        ctx.dtype = bias.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, *statistics = ctx.saved_tensors
        vectors = [torch.empty_like(weight), torch.empty_like(weight, dtype=ctx.dtype)]
        dx, _ = _run_backward(dy, None, x, weight, statistics, vectors, None)
        return dx, *vectors, None, None


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, branch, added, weight, bias, eps, dtype):
        x, branch = x.contiguous(), branch.contiguous()
        total = torch.empty_like(x, dtype=torch.promote_types(x.dtype, branch.dtype))
        y, *statistics = _run(x, branch, added, total, weight, bias, eps, dtype)
        ctx.save_for_backward(total, weight, *statistics)
        ctx.dtypes, ctx.of_branch = (weight.dtype, bias.dtype, added.dtype), branch.dtype
        ctx.set_materialize_grads(False)
        return total, y

    @staticmethod
    @once_differentiable
    def backward(ctx, dtotal, dy):
        total, weight, *statistics = ctx.saved_tensors
        dy = torch.zeros_like(total) if dy is None else dy
        vectors = [torch.empty_like(weight, dtype=dtype) for dtype in ctx.dtypes]
        dx, dbranch = _run_backward(dy, dtotal, total, weight, statistics, vectors, ctx.of_branch)
        return dx, dbranch, vectors[2], *vectors[:2], None, None


if triton is not None:

    @triton.jit
    def _forward(x, branch, added, total, weight, bias, y, mean, scale, rows, width, eps,
                 ADD: tl.constexpr,
                 FULL: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr):  # fmt: skip
        if FULL:
            width = BD  # so that the compiler leaves masks out
        row, column = tl.program_id(0) * BR + tl.arange(0, BR), tl.arange(0, BD)
        inside = column < width
        ok = (row < rows)[:, None] & inside[None, :]
        at = row.to(tl.int64)[:, None] * width + column[None, :]
        v = tl.load(x + at, mask=ok, other=0.0).to(tl.float32)
        if ADD:
            more = tl.load(added + column, mask=inside, other=0.0).to(tl.float32)
            v += tl.load(branch + at, mask=ok, other=0.0).to(tl.float32) + more[None, :]
            kept = v.to(total.dtype.element_ty)
            tl.store(total + at, kept, mask=ok)
            v = kept.to(tl.float32)  # as the gradient will read it
        middle = tl.sum(v, axis=1) / width
        v = tl.where(inside[None, :], v - middle[:, None], 0.0)
        over = 1.0 / tl.sqrt(tl.sum(v * v, axis=1) / width + eps)
        tl.store(mean + row, middle, mask=row < rows)
        tl.store(scale + row, over, mask=row < rows)
        w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
        v = v * over[:, None] * w[None, :] + b[None, :]
        tl.store(y + at, v.to(y.dtype.element_ty), mask=ok)

    @triton.jit
    def _backward(dy, dtotal, x, mean, scale, weight, dx, dbranch, parts, rows, width, each,
                  ADD: tl.constexpr,
                  SPLIT: tl.constexpr, BRANCH: tl.constexpr, FULL: tl.constexpr, BR: tl.constexpr,
                  BD: tl.constexpr):  # fmt: skip
        """parts[part, kind, column]: over ``each`` tokens, the sums of dy times the normalised
        value, of dy, and for BRANCH of dx. ADD: dx has dtotal in it. SPLIT: dx goes to dbranch,
        too, in another dtype."""
        if FULL:
            width = BD
        part, column = tl.program_id(0), tl.arange(0, BD)
        inside = column < width
        w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)[None, :]
        of_weight = tl.zeros((BR, BD), tl.float32)
        of_bias = tl.zeros((BR, BD), tl.float32)
        of_added = tl.zeros((BR, BD), tl.float32)
        for first in range(part * each, tl.minimum(part * each + each, rows), BR):
            row = first + tl.arange(0, BR)
            ok = (row < rows)[:, None] & inside[None, :]
            at = row.to(tl.int64)[:, None] * width + column[None, :]
            g = tl.load(dy + at, mask=ok, other=0.0).to(tl.float32)
            n = tl.load(x + at, mask=ok, other=0.0).to(tl.float32)
            over = tl.load(scale + row, mask=row < rows, other=0.0)[:, None]
            n = tl.where(
                ok, (n - tl.load(mean + row, mask=row < rows, other=0.0)[:, None]) * over, 0.0
            )
            of_weight += g * n
            of_bias += g
            g *= w
            d = over * (
                g
                - (tl.sum(g, axis=1) / width)[:, None]
                - n * (tl.sum(g * n, axis=1) / width)[:, None]
            )
            if ADD:
                d += tl.load(dtotal + at, mask=ok, other=0.0).to(tl.float32)
            tl.store(dx + at, d.to(dx.dtype.element_ty), mask=ok)
            if SPLIT:
                tl.store(dbranch + at, d.to(dbranch.dtype.element_ty), mask=ok)
            if BRANCH:
                of_added += tl.where(ok, d, 0.0)
        kinds: tl.constexpr = 3 if BRANCH else 2
        to = parts + part * kinds * width + column
        tl.store(to, tl.sum(of_weight, axis=0), mask=inside)
        tl.store(to + width, tl.sum(of_bias, axis=0), mask=inside)
        if BRANCH:
            tl.store(to + 2 * width, tl.sum(of_added, axis=0), mask=inside)

    def _cut(cut: Cut, width: int) -> dict[str, int]:
        block = triton.next_power_of_2(width)
        return {
            "BR": max(1, cut.values // block),
            "BD": block,
            "FULL": block == width,
            "num_warps": cut.warps,
        }

    def _run(
        x: Tensor, branch: Tensor | None, added: Tensor | None, total: Tensor, weight: Tensor,
        bias: Tensor, eps: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Writes ``total`` where there is a branch; -> y, mean and scale."""
        width, y = x.shape[-1], torch.empty_like(x, dtype=dtype)
        rows, cut = x.numel() // width, _cut(FORWARD, width)
        mean, scale = torch.empty(2, rows, dtype=torch.float32, device=x.device)
        _forward[(triton.cdiv(rows, cut["BR"]),)](
            x, x if branch is None else branch, weight if added is None else added, total, weight,
            bias, y, mean, scale, rows,
            width, eps, ADD=branch is not None, **cut,
        )  # fmt: skip
        return y, mean, scale

    def _run_backward(
        dy: Tensor, dtotal: Tensor | None, x: Tensor, weight: Tensor, statistics: list[Tensor],
        vectors: list[Tensor],
        of_branch: torch.dtype | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Writes the gradients of weight, bias and, where there is a branch (of that dtype),
        ``added``; -> those of x and of it."""
        dy, width, dx = dy.contiguous(), x.shape[-1], torch.empty_like(x)
        dtotal = None if dtotal is None else dtotal.contiguous()
        split = of_branch not in (None, x.dtype)
        dbranch = torch.empty_like(x, dtype=of_branch) if split else dx
        rows, cut = x.numel() // width, _cut(BACKWARD, width)
        count, steps = in_parts(rows, cut["BR"], BACKWARD.programs)
        parts = torch.empty(count, len(vectors), width, dtype=torch.float32, device=x.device)
        _backward[(count,)](
            dy, dy if dtotal is None else dtotal, x, *statistics, weight, dx, dbranch, parts, rows,
            width,
            steps * cut["BR"], ADD=dtotal is not None, SPLIT=split, BRANCH=of_branch is not None,
            **cut,
        )  # fmt: skip
        totals(parts, vectors)
        return dx, dbranch
