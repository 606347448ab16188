"""GELU within kernels for inference: for results in bfloat16 by the tanh of the hardware, else as everywhere (ops/norm.py)."""

from __future__ import annotations

import torch

try:
    import triton
    import triton.language as tl

    from cmmfnet.ops.norm import gelu_of
except ImportError:  # no Triton on this platform: nothing of this is asked for
    triton = None

if triton is not None:
    NVIDIA = tl.constexpr(torch.version.hip is None)  # the instruction is NVIDIA's

    @triton.jit
    def gelu_in(v, dtype: tl.constexpr):
        """GELU (erf) of float32 v for a result of ``dtype``. In bfloat16, whose values near 1 are 4e-3 or 8e-3 apart: off by
        2.7e-4 at most, and by the instruction's 2^-11 of its result; the constants are a minimax fit. Of a fused
        feed-forward the polynomial's instructions are most of the time; this takes half as many, on two units side by side."""
        if dtype == tl.bfloat16 and NVIDIA:
            slope = 0.8001565681509738 + 0.034701071256603835 * (v * v)
            bent = tl.inline_asm_elementwise(
                "tanh.approx.f32 $0, $1;", "=f,f", [v * slope], dtype=tl.float32, is_pure=True, pack=1
            )
            half = 0.5 * v
            result = half * bent + half
        else:
            result = gelu_of(v, dtype == tl.float32)
        return result
