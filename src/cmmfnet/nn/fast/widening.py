"""The first layer of a U-Net on a thermal frame for inference on CUDA: one or two channels to many
by a 1x1 convolution, instance norm, GELU.

At full resolution the map is the largest of the network, though it is a line (or a plane) of one
value (or two) at each pixel. The norm's statistics follow from those of the frame: with S the
covariance of its channels over all pixels, the convolution W has the variances diag(W S W'), and
its bias vanishes. So the map is written once, normalised, in the order that the convolution behind
it wants, and never read in between.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cmmfnet.nn.fast.norm import DTYPES

try:
    import triton
    import triton.language as tl

    from cmmfnet.nn.fast.gelu import gelu_in
except ImportError:  # no Triton on this platform: layers.Downsample goes its ordinary way
    triton = None


def serves_widen(x: Tensor) -> bool:
    """Whether ``widen`` takes this frame here: CUDA, no gradient wanted, one channel or two."""
    return (
        triton is not None
        and x.is_cuda
        and not torch.is_grad_enabled()
        and x.dtype in DTYPES
        and x.shape[1] <= 2
    )


def widen(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """x (B,I,H,W), weight (O,I,1,1) -> gelu(IN(weight * x)), (B,O,H,W) of x's dtype, channels-last.
    No gradient."""
    flat = x.flatten(2).float()
    mean = flat.mean(dim=2)
    centred = flat - mean.unsqueeze(2)
    weight = weight.flatten(1).float()
    variance = (weight.square() * centred.square().mean(dim=2).unsqueeze(1)).sum(dim=2)
    if x.shape[1] == 2:
        variance += (
            2
            * (weight[:, 0] * weight[:, 1])
            * (centred[:, 0] * centred[:, 1]).mean(dim=1, keepdim=True)
        )
    matrix = weight * torch.rsqrt(variance.clamp_min(0) + eps).unsqueeze(2)
    return _planes(x, matrix, -(matrix * mean.unsqueeze(1)).sum(dim=2))


if triton is not None:

    @triton.jit
    def _gelu_of_lines(
        x,
        matrix,
        shift,
        y,
        size,
        channels,
        INPUTS: tl.constexpr,
        BP: tl.constexpr,
        BC: tl.constexpr,
    ):
        picture = tl.program_id(2).to(tl.int64)
        pixel = tl.program_id(0) * BP + tl.arange(0, BP)
        c = tl.program_id(1) * BC + tl.arange(0, BC)
        v = tl.load(shift + picture * channels + c, mask=c < channels, other=0.0)[
            None, :
        ] + tl.zeros((BP, BC), tl.float32)
        for i in tl.static_range(INPUTS):
            factor = tl.load(
                matrix + (picture * channels + c) * INPUTS + i, mask=c < channels, other=0.0
            )
            value = tl.load(
                x + (picture * INPUTS + i) * size + pixel, mask=pixel < size, other=0.0
            ).to(tl.float32)
            v += value[:, None] * factor[None, :]
        at = (picture * size + pixel)[:, None] * channels + c[None, :]
        ok = (pixel < size)[:, None] & (c < channels)[None, :]
        v = gelu_in(v, y.dtype.element_ty)
        tl.store(y + at, v.to(y.dtype.element_ty), mask=ok)

    @torch.library.custom_op("cmmfnet::gelu_of_lines", mutates_args=())
    def _planes(x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
        return write_lines(
            x.contiguous(), matrix.contiguous(), shift.contiguous(), x.dtype, 2048, 4
        )

    def at_a_time(channels: int) -> int:
        """Channels of a program."""
        return min(64, triton.next_power_of_2(channels))

    def write_lines(
        x: Tensor, matrix: Tensor, shift: Tensor, dtype: torch.dtype, values: int, warps: int
    ) -> Tensor:
        """x (B,I,H,W), matrix (B,O,I), shift (B,O), contiguous -> gelu(matrix x + shift), (B,O,H,W)
        of ``dtype``, channels-last; ``values`` of it and ``warps`` a program."""
        batch, channels, inputs = matrix.shape
        size, y, columns = x.shape[2] * x.shape[3], _wide(x, channels, dtype), at_a_time(channels)
        rows = values // columns
        _gelu_of_lines[(triton.cdiv(size, rows), triton.cdiv(channels, columns), batch)](
            x, matrix, shift, y, size, channels, INPUTS=inputs, BP=rows, BC=columns, num_warps=warps
        )
        return y

    def _wide(x: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
        batch, _, height, width = x.shape
        y = torch.empty(batch, height, width, channels, device=x.device, dtype=dtype)
        return y.permute(0, 3, 1, 2)

    @_planes.register_fake
    def _(x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
        return _wide(x, matrix.shape[1], x.dtype)
