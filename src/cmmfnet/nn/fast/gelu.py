"""GELU (erf) and its derivative for Triton kernels.

For 16 bits they need multiply-adds only. An exponential and a division would be most of the work of
a kernel that reads a map once.
"""

import torch
import triton
import triton.language as tl

NVIDIA = tl.constexpr(torch.version.hip is None)


@triton.jit
def normal(v):
    """float32 v -> the normal distribution function, and exp(-v^2 / 2). Abramowitz and Stegun
    7.1.26, off by 7.5e-8 at most, has a third of the instructions of erf."""
    t = 1.0 / (1.0 + 0.2316419 * tl.abs(v))
    bell = tl.exp(-0.5 * v * v)
    tail = 0.7107068705 + t * (-0.7265760135 + t * 0.5307027145)
    tail = bell * t * (0.127414796 + t * (-0.142248368 + t * tail))
    return tl.where(v >= 0, 1.0 - tail, tail), bell


@triton.jit
def coarse_normal(v):
    """The normal distribution function P, off by 2e-5: a least-squares fit of (P - 1/2) / v in v^2
    on |v| <= 4.25."""
    inside = tl.minimum(tl.maximum(v, -4.25), 4.25)
    u = inside * inside
    p = -4.515731788501398e-09 + u * 4.547582796443628e-11
    p = -5.147800493432442e-06 + u * (1.9863092859395692e-07 + u * p)
    p = -0.001079099252820015 + u * (8.849235018715262e-05 + u * p)
    p = -0.06619042903184891 + u * (0.009718858636915684 + u * p)
    return 0.5 + inside * (0.39881932735443115 + u * p)


@triton.jit
def gelu_of(v, FINE: tl.constexpr):
    """GELU of float32 v: FINE to 1e-7, else to 8e-5, which is enough for 16 bits."""
    if FINE:
        below, _ = normal(v)
    else:
        below = coarse_normal(v)
    return v * below


@triton.jit
def gelu_slope(v, FINE: tl.constexpr):
    """The derivative of GELU at float32 v: FINE to 1e-7, else to 1.1e-4, fitted as
    ``coarse_normal``."""
    if FINE:
        below, bell = normal(v)
        slope = below + v * bell * 0.3989422804014327
    else:
        inside = tl.minimum(tl.maximum(v, -4.25), 4.25)
        u = inside * inside
        p = 3.552296012898637e-09 - u * 3.4265573017888684e-11
        p = 4.432568857737351e-06 + u * (-1.6348570852642297e-07 + u * p)
        p = 0.0009965418139472604 + u * (-7.936178735690191e-05 + u * p)
        p = 0.059092506766319275 + u * (-0.009040436707437038 + u * p)
        slope = 0.5 + inside * (0.7977564334869385 + u * (-0.26539257168769836 + u * p))
    return slope


@triton.jit
def gelu_and_slope(v, FINE: tl.constexpr):
    """GELU and its derivative, which share the distribution function. The density is one
    exponential, which another unit computes."""
    if FINE:
        below, bell = normal(v)
    else:
        below = coarse_normal(v)
        bell = tl.exp2(-0.7213475204444817 * v * v)
    return v * below, below + v * bell * 0.3989422804014327


@triton.jit
def _tanh(v):
    """tanh by the GPU's instruction, off by 2^-11."""
    return tl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [v], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def _power(v):
    """2^v by the GPU's instruction; denormal results become 0."""
    return tl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [v], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def gelu_in(v, dtype: tl.constexpr):
    """GELU (erf) of float32 v for a result of ``dtype``, for maps that are written or multiplied.

    In bfloat16 the result is off by 2.7e-4 at most, and by the instruction's 2^-11 of the result;
    bfloat16 values near 1 are 4e-3 or 8e-3 apart. The constants are a minimax fit. The polynomial's
    instructions would be most of the time of a fused feed-forward. This form has half as many, on
    two units side by side.
    """
    if dtype == tl.bfloat16 and NVIDIA:  # the instruction is NVIDIA's
        slope = 0.8001565681509738 + 0.034701071256603835 * (v * v)
        bent = _tanh(v * slope)
        half = 0.5 * v
        result = half * bent + half
    else:
        result = gelu_of(v, dtype == tl.float32)
    return result


@triton.jit
def gelu_and_slope_in(v, dtype: tl.constexpr):
    """``gelu_in`` and the derivative of GELU. In bfloat16 the derivative is off by 7e-4 at most,
    like the distribution function that the tanh instruction gives."""
    if dtype == tl.bfloat16 and NVIDIA:
        square = v * v
        below = 0.5 + 0.5 * _tanh(v * (0.8001565681509738 + 0.034701071256603835 * square))
        bell = _power(-0.7213475204444817 * square)
        value, slope = v * below, below + v * bell * 0.3989422804014327
    else:
        value, slope = gelu_and_slope(v, dtype == tl.float32)
    return value, slope
