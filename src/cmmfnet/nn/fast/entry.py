"""The first convolution of a VGG on pictures, and its gradient, each in one pass: Triton, CUDA
only, in 16 bits.

cuDNN is made for many channels. Of 3 to 64 the map that comes out is all there is to move: forwards
a program normalises the pixels that it reads, multiplies, adds the bias, applies the ReLU and
writes; backwards it reads the gradient through the ReLU.
"""

from __future__ import annotations

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton on this platform
    triton = None

_WIDE, _TALL = 16, 8  # pixels of a program


if triton is not None:

    @triton.jit
    def _pixels(H, W, WIDE: tl.constexpr, TALL: tl.constexpr):
        """Rows and columns of this program's pixels, (WIDE * TALL,) each."""
        across = tl.cdiv(W, WIDE)
        p = tl.arange(0, WIDE * TALL)
        return tl.program_id(0) // across * TALL + p // WIDE, tl.program_id(
            0
        ) % across * WIDE + p % WIDE

    @triton.jit
    def _pick(a, b, c, which):
        return tl.where(which == 0, a, tl.where(which == 1, b, c))

    @triton.jit
    def _forward(
        x,
        weight,
        bias,
        shift,
        scale,
        out,
        H,
        W,
        C: tl.constexpr,
        WIDE: tl.constexpr,
        TALL: tl.constexpr,
    ):
        """weight (32, C): of tap 9 * colour + 3 * row + column, zero beyond 27. scale (3,): what
        differences to ``shift`` are multiplied by. out (B,H,W,C)."""
        r, c = _pixels(H, W, WIDE, TALL)
        picture = tl.program_id(1).to(tl.int64)
        tap, channel = tl.arange(0, 32), tl.arange(0, C)
        colour = tap // 9
        row, column = r[:, None] + (tap % 9 // 3 - 1)[None, :], c[:, None] + (tap % 3 - 1)[None, :]
        ok = (row >= 0) & (row < H) & (column >= 0) & (column < W) & (tap < 27)[None, :]
        v = tl.load(
            x + (picture * 3 + colour[None, :]) * H * W + row * W + column, mask=ok, other=0.0
        ).to(tl.float32)
        # picked from numbers that all threads share: a load each would be twice the loads of pixels
        move = _pick(tl.load(shift), tl.load(shift + 1), tl.load(shift + 2), colour)[None, :]
        over = _pick(tl.load(scale), tl.load(scale + 1), tl.load(scale + 2), colour)[None, :]
        v = tl.where(ok, (v - move) * over, 0.0)
        w = tl.load(weight + tap[:, None] * C + channel[None, :])
        y = tl.dot(v.to(w.dtype), w) + tl.load(bias + channel)[None, :]
        y = tl.where(y < 0, 0.0, y)  # NaN stays NaN
        at = ((picture * H + r) * W + c)[:, None] * C + channel[None, :]
        tl.store(out + at, y.to(out.dtype.element_ty), mask=((r < H) & (c < W))[:, None])

    @triton.jit
    def _backward(
        dy, y, weight, scale, dx, H, W, C: tl.constexpr, WIDE: tl.constexpr, TALL: tl.constexpr
    ):
        """dy, y (B,H,W,C): gradient behind the ReLU, and what came out of it. weight (9, C, 16): of
        tap 3 * row + column, zero beyond 3 colours. dx (B,3,H,W)."""
        r, c = _pixels(H, W, WIDE, TALL)
        picture = tl.program_id(1).to(tl.int64)
        channel, colour = tl.arange(0, C), tl.arange(0, 16)
        found = tl.zeros((WIDE * TALL, 16), tl.float32)
        for tap in tl.static_range(9):
            row, column = r + (1 - tap // 3), c + (1 - tap % 3)
            ok = ((row >= 0) & (row < H) & (column >= 0) & (column < W))[:, None]
            at = ((picture * H + row) * W + column)[:, None] * C + channel[None, :]
            g = tl.load(dy + at, mask=ok, other=0.0)
            g = tl.where(tl.load(y + at, mask=ok, other=0.0) > 0, g, 0.0)
            w = tl.load(weight + (tap * C + channel)[:, None] * 16 + colour[None, :])
            found = tl.dot(g, w, found)
        found *= tl.load(scale + colour, mask=colour < 3, other=0.0)[None, :]
        at = ((picture * 3 + colour[None, :]) * H + r[:, None]) * W + c[:, None]
        tl.store(
            dx + at,
            found.to(dx.dtype.element_ty),
            mask=((r < H) & (c < W))[:, None] & (colour < 3)[None, :],
        )


class Entry:
    """A convolution of 3x3 from 3 to C channels (a power of two, 16 at least) in ``dtype`` (16
    bits), of pictures less ``shift`` (3,) over ``scale`` (3,) float32, with bias (C,) float32 and
    ReLU."""

    def __init__(
        self, weight: Tensor, bias: Tensor, shift: Tensor, scale: Tensor, dtype: torch.dtype
    ):
        channels = len(weight)
        self.bias, self.shift, self.scale = (
            bias.float(),
            shift.flatten().contiguous(),
            1 / scale.flatten(),
        )
        self.ahead = weight.new_zeros(32, channels, dtype=dtype)
        self.ahead[:27] = weight.reshape(channels, 27).T
        self.back = weight.new_zeros(9, channels, 16, dtype=dtype)
        self.back[..., :3] = weight.permute(2, 3, 0, 1).reshape(9, channels, 3)

    def __call__(self, x: Tensor, out: Tensor) -> None:
        """x (B,3,H,W) float -> out (B,C,H,W), which is channels last."""
        batch, _, height, width = x.shape
        _forward[_grid(batch, height, width)](
            x.contiguous(), self.ahead, self.bias, self.shift, self.scale, out, height, width,
            C=len(self.bias),
            WIDE=_WIDE, TALL=_TALL, num_warps=8,
        )  # fmt: skip

    def backward(self, dy: Tensor, y: Tensor) -> Tensor:
        """The gradient of x (B,3,H,W) float32 from that of what came out, y (B,C,H,W)."""
        batch, channels, height, width = y.shape
        dy, y = (t.contiguous(memory_format=torch.channels_last) for t in (dy, y))
        dx = torch.empty(batch, 3, height, width, dtype=torch.float32, device=y.device)
        _backward[_grid(batch, height, width)](
            dy,
            y,
            self.back,
            self.scale,
            dx,
            height,
            width,
            C=channels,
            WIDE=_WIDE,
            TALL=_TALL,
            num_warps=8,
        )
        return dx


def _grid(batch: int, height: int, width: int) -> tuple[int, int]:
    return -(-height // _TALL) * -(-width // _WIDE), batch
