"""Steps between the stages of a U-Net. They have no parameters of their own: their convolutions
belong to the network, which passes them in the call.

They are modules so that a fast twin can take their place (nn/fast/modules.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

A, B = TypeVar("A"), TypeVar("B")


def autocasts(x: Tensor) -> bool:
    """Whether autocast casts products of x here."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def _interpolate(x: Tensor, **how: object) -> Tensor:
    """``F.interpolate`` in x's dtype: autocast would take float32, twice the memory traffic."""
    if not autocasts(x):
        return F.interpolate(x, **how)
    with torch.autocast(x.device.type, enabled=False):
        return F.interpolate(x, **how)


def double(x: Tensor) -> Tensor:
    """(B,C,H,W) -> (B,C,2H,2W), nearest neighbours."""
    return _interpolate(x, scale_factor=2.0, mode="nearest")


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x (B,C,H,W) times (1 + scale) plus shift, both (B,C)."""
    return x * (1 + scale[:, :, None, None]) + shift[:, :, None, None]


class Resize(nn.Module):
    """(B,C,h,w) -> (B,C,*size), bilinear, corners not aligned. Without antialiasing, so that an
    exported graph gives the same numbers."""

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        if tuple(x.shape[-2:]) == tuple(size):
            return x
        return _interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


class Guide(nn.Module):
    """x (B,C,H,W) plus a map y (B,C,h,w) resized to x's size, then times (1 + scale) plus shift,
    both (B,C). Without y, or without scale and shift, that step is left out."""

    def __init__(self):
        super().__init__()
        self.resize = Resize()

    def forward(
        self,
        x: Tensor,
        y: Tensor | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        if y is not None:
            x = x + self.resize(y, x.shape[-2:])
        return x if scale is None else modulated(x, scale, shift)


class UpAndJoin(nn.Module):
    """x (B,C,H,W) is doubled in size and goes through ``up``; then it is joined with skip
    (B,D,2H,2W): concatenated, and the convolution ``join``; or added where ``join`` is None."""

    def forward(self, up: nn.Conv2d, x: Tensor, skip: Tensor, join: nn.Conv2d | None) -> Tensor:
        y = up(double(x))
        return y + skip if join is None else join(torch.cat([y, skip], dim=1))


class UpAndPaint(nn.Module):
    """x (B,C,H,W) is doubled in size and goes through ``up``, GELU, the function ``between`` if
    given, and the convolution ``last`` to colours (B,3,2H,2W)."""

    def forward(
        self,
        up: nn.Conv2d,
        x: Tensor,
        last: nn.Conv2d,
        between: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        y = F.gelu(up(double(x)))
        return last(y if between is None else between(y))


class SideBySide(nn.Module):
    """Two parts of a network that do not depend on each other: x -> (first(x), second(x))."""

    def forward(
        self, first: Callable[[Tensor], A], second: Callable[[Tensor], B], x: Tensor
    ) -> tuple[A, B]:
        return first(x), second(x)
