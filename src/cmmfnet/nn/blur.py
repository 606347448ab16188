"""Gaussian blur with a width of its own for each picture of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of x (B,C,H,W), a sigma (B,) in pixels for each picture; window 13, replicated
    borders."""
    radius = 6
    height, width = x.shape[-2:]
    offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=torch.float32)
    taps = torch.exp(-offsets.square() / (2 * sigma.clamp_min(1e-2)[:, None] ** 2))
    taps = (taps / taps.sum(dim=1, keepdim=True)).to(x.dtype)[:, :, None, None, None]
    # Shifted sums: with a kernel of its own for every picture, a grouped convolution is slower by
    # far.
    y = F.pad(x, (radius, radius, 0, 0), mode="replicate")
    x = sum(y[..., k : k + width] * taps[:, k] for k in range(2 * radius + 1))
    y = F.pad(x, (0, 0, radius, radius), mode="replicate")
    return sum(y[..., k : k + height, :] * taps[:, k] for k in range(2 * radius + 1))
