"""Augmentation of pairs: one geometry for both pictures, sensor effects on the thermal frame only.

All draws come from generators that the caller seeds by (seed, step), never from global state, so that a batch depends
on its number alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator, device) -> Tensor:
    return torch.rand(shape, generator=generator, device=device) * (high - low) + low


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of x (B,C,H,W), a sigma (B,) in pixels for each picture; window 13, replicated borders."""
    radius = 6
    height, width = x.shape[-2:]
    offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=torch.float32)
    taps = torch.exp(-offsets.square() / (2 * sigma.clamp_min(1e-2)[:, None] ** 2))
    taps = (taps / taps.sum(dim=1, keepdim=True)).to(x.dtype)[:, :, None, None, None]
    # Shifted sums: with a kernel of its own for every picture, a grouped convolution is slower by far.
    y = F.pad(x, (radius, radius, 0, 0), mode="replicate")
    x = sum(y[..., k : k + width] * taps[:, k] for k in range(2 * radius + 1))
    y = F.pad(x, (0, 0, radius, radius), mode="replicate")
    return sum(y[..., k : k + height, :] * taps[:, k] for k in range(2 * radius + 1))


@dataclass(frozen=True)
class Crop:
    """A rectangle in source pixels and a mirror flag."""

    top: int
    left: int
    height: int
    width: int
    flip: bool

    @staticmethod
    def draw(rng: np.random.Generator, height: int, width: int, scale: tuple[float, float], aspect: float) -> Crop:
        """A random crop: side ``scale`` times the short side of the picture, stretched up to ``aspect`` either way."""
        side = min(height, width) * rng.uniform(*scale)
        stretch = np.exp(rng.uniform(-np.log(aspect), np.log(aspect)) / 2)
        h, w = min(height, max(8, round(side / stretch))), min(width, max(8, round(side * stretch)))
        return Crop(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w, bool(rng.random() < 0.5))

    def apply(self, picture: Tensor, size: int, nearest: bool = False) -> Tensor:
        """picture (C,H,W) uint8 -> (C,size,size) float32 in 0..255, antialiased; ``nearest`` for label maps."""
        part = picture[None, :, self.top : self.top + self.height, self.left : self.left + self.width].float()
        if nearest:
            part = F.interpolate(part, (size, size), mode="nearest-exact")
        else:
            part = F.interpolate(part, (size, size), mode="bilinear", antialias=True, align_corners=False)
        return part[0].flip(-1) if self.flip else part[0]


def stretch(x: Tensor, low: float = 0.01, high: float = 0.99) -> Tensor:
    """(B,1,H,W) any range -> [-1,1] by each frame's percentiles, as ``thermal.normalise`` does."""
    flat = x.flatten(1)
    step = max(1, flat.shape[1] // 16384)
    bounds = torch.quantile(flat[:, ::step], torch.tensor([low, high], device=x.device), dim=1)[:, :, None, None, None]
    return ((x - bounds[0]) / (bounds[1] - bounds[0]).clamp_min(1e-4) * 2 - 1).clamp(-1, 1)


def sensor(frame: Tensor, generator: torch.Generator, strength: float = 1.0, invert: float = 0.1) -> Tensor:
    """Sensor effects on thermal frames (B,1,H,W) in about 0..1 -> stretched (B,1,H,W) in [-1,1].

    Tone curve, polarity (``invert`` = share of black-hot frames), blur, white noise, row and column noise, as uncooled
    microbolometers show them; the stretch raises the noise of frames with little contrast. ``strength`` scales all but
    polarity.
    """
    batch, _, height, width = frame.shape
    device = frame.device

    def draw(low: float, high: float) -> Tensor:
        return uniform((batch, 1, 1, 1), low, high, generator, device)

    def noise(*shape: int) -> Tensor:
        return torch.randn(batch, 1, *shape, generator=generator, device=device)

    x = (stretch(frame, 0.002, 0.998) + 1) / 2
    x = torch.where(draw(0, 1) < invert, 1 - x, x)
    x = x.clamp_min(1e-4) ** torch.exp(draw(-0.5, 0.5) * strength)
    soft = blur(x, draw(0.2, 1.2).flatten() * strength)
    x = torch.where(draw(0, 1) < 0.4, soft, x)
    # squared draws: most frames are clean, a few are bad
    x = x + noise(height, width) * 0.04 * strength * draw(0, 1).square()
    x = x + noise(height, 1) * 0.03 * strength * draw(0, 1) ** 3 + noise(1, width) * 0.02 * strength * draw(0, 1) ** 3
    return stretch(x)
