"""Augmentation of pairs: one geometry for both pictures, sensor effects on the thermal frame only.

Drawing and applying are separate. Random numbers are drawn for every picture of a step's whole
batch, from a generator that the caller seeds by (seed, step); a process applies the numbers of its
own pictures. So a picture is the same for any number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cmmfnet.nn.blur import blur

Draws = dict[str, Tensor]
"""Named random numbers; the first dimension of each is the picture."""


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device) * (high - low) + low


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


@dataclass(frozen=True)
class Crop:
    """A rectangle in source pixels and a mirror flag."""

    top: int
    left: int
    height: int
    width: int
    flip: bool

    @staticmethod
    def draw(
        rng: np.random.Generator, height: int, width: int, scale: tuple[float, float], aspect: float
    ) -> Crop:
        """A random crop: side ``scale`` times the short side of the picture, stretched up to
        ``aspect`` either way."""
        side = min(height, width) * rng.uniform(*scale)
        stretch = np.exp(rng.uniform(-np.log(aspect), np.log(aspect)) / 2)
        h, w = min(height, max(8, round(side / stretch))), min(width, max(8, round(side * stretch)))
        return Crop(
            int(rng.integers(height - h + 1)),
            int(rng.integers(width - w + 1)),
            h,
            w,
            bool(rng.random() < 0.5),
        )

    @staticmethod
    def draw_zoomed(
        rng: np.random.Generator,
        height: int,
        width: int,
        size: tuple[int, int],
        zoom: tuple[float, float],
        aspect: float,
    ) -> Crop:
        """A random crop for ``size`` (height, width) pixels: ``zoom`` of them for each pixel of the
        picture, stretched up to ``aspect`` either way.

        Of a picture that is too small for that the crop is as large as its shape allows.
        """
        chosen = np.exp(rng.uniform(*np.log(zoom)))
        stretch = np.exp(rng.uniform(-np.log(aspect), np.log(aspect)) / 2)
        h, w = size[0] / (chosen * stretch), size[1] * stretch / chosen
        fit = min(1.0, height / h, width / w)
        h, w = max(8, round(h * fit)), max(8, round(w * fit))
        return Crop(
            int(rng.integers(height - h + 1)),
            int(rng.integers(width - w + 1)),
            h,
            w,
            bool(rng.random() < 0.5),
        )

    def apply(
        self, picture: np.ndarray, size: tuple[int, int], nearest: bool = False
    ) -> np.ndarray:
        """picture (H,W) or (H,W,3) uint8 -> the crop at ``size`` = (h,w), (h,w) or (h,w,3) uint8,
        antialiased; ``nearest`` for label maps.

        Resampled in whole numbers, so that the number of threads does not show in the bits.
        """
        part = picture[self.top : self.top + self.height, self.left : self.left + self.width]
        if nearest:
            rows, columns = (
                ((np.arange(m) + 0.5) * n // m).astype(np.intp)
                for m, n in zip(size, part.shape[:2], strict=True)
            )
            return part[rows[:, None], columns[::-1] if self.flip else columns]
        # a copy of the crop: torch is twice as quick on contiguous memory
        planes = (
            torch.from_numpy(part.copy()).view(1, self.height, self.width, -1).permute(0, 3, 1, 2)
        )
        planes = F.interpolate(planes, size, mode="bilinear", antialias=True, align_corners=False)
        if self.flip:
            planes = planes.flip(3)
        return planes[0].permute(1, 2, 0).numpy().reshape(*size, *part.shape[2:])


def stretch(x: Tensor, low: float = 0.01, high: float = 0.99) -> Tensor:
    """(B,F,H,W) any range -> [-1,1] by the percentiles of each of the F frames, as
    ``thermal.normalise`` does."""
    flat = x.flatten(2)
    step = max(1, flat.shape[2] // 16384)
    ordered = flat[..., ::step].sort(dim=2).values
    last = ordered.shape[2] - 1

    # not torch.quantile: it wants its quantiles on the device, and to send them there makes the
    # host wait
    def bound(q: float) -> Tensor:
        below = int(q * last)
        return torch.lerp(
            ordered[..., below], ordered[..., min(below + 1, last)], q * last - below
        )[..., None, None]

    bottom = bound(low)
    return ((x - bottom) / (bound(high) - bottom).clamp_min(1e-4) * 2 - 1).clamp(-1, 1)


def sensor_draws(
    count: int, frames: int, height: int, width: int, generator: torch.Generator
) -> Draws:
    """Random numbers of :func:`sensor` for ``count`` pictures of ``frames`` frames, on the
    generator's device."""

    def one(low: float, high: float) -> Tensor:
        return uniform((count, 1, 1, 1), low, high, generator)

    return {
        "polarity": one(0, 1),
        "tone": one(-0.5, 0.5),
        "sigma": one(0.2, 1.2),
        "soft": one(0, 1),
        # squared and cubed: most frames are clean, a few are bad
        "white": normal((count, frames, height, width), generator) * one(0, 1).square() * 0.04,
        "rows": normal((count, 1, height, 1), generator) * one(0, 1) ** 3 * 0.03,
        "columns": normal((count, 1, 1, width), generator) * one(0, 1) ** 3 * 0.02,
    }


def sensor(frame: Tensor, draws: Draws, strength: float = 1.0, invert: float = 0.1) -> Tensor:
    """Sensor effects on thermal frames (B,F,H,W) in about 0..1 -> stretched (B,F,H,W) in [-1,1].

    Tone curve, polarity (``invert`` = share of black-hot pictures), blur, white noise, row and
    column noise, as uncooled microbolometers show them; the stretch raises the noise of frames with
    little contrast. ``strength`` scales all but polarity. The F frames of a picture share
    everything but white noise: they are moments of one camera.
    """
    x = (stretch(frame, 0.002, 0.998) + 1) / 2
    x = torch.where(draws["polarity"] < invert, 1 - x, x)
    x = x.clamp_min(1e-4) ** torch.exp(draws["tone"] * strength)
    soft = blur(x, draws["sigma"].flatten() * strength)
    x = torch.where(draws["soft"] < 0.4, soft, x)
    return stretch(x + (draws["white"] + draws["rows"] + draws["columns"]) * strength)


def gain_draws(count: int, generator: torch.Generator) -> Draws:
    """Random numbers of :func:`gain_control` for ``count`` pictures, on the generator's device."""

    def one(low: float, high: float) -> Tensor:
        return uniform((count, 1, 1, 1), low, high, generator)

    return {
        "tone": one(-0.6, 0.6),
        "equalise": one(-1, 1).clamp_min(0),  # 0: not at all, for half of the pictures
        "detail": one(-2, 2).clamp_min(0),
        "width": one(0.4, 2.0).exp(),
    }


def gain_control(frame: Tensor, draws: Draws) -> Tensor:
    """What the electronics of thermal cameras do to a picture: thermal frames (B,F,H,W), H and W
    multiples of 4, of any range -> the same, about 0..1.

    A tone curve, histogram equalisation by up to its full strength, and detail enhancement (an
    unsharp mask of 1.5 to 7 pixels), as cameras differ most in these (docs/training.md). Before
    :func:`sensor`.
    """
    x = (stretch(frame, 0.002, 0.998) + 1) / 2
    x = x.clamp_min(1e-4) ** torch.exp(draws["tone"])
    x = torch.lerp(x, _equalised(x), draws["equalise"])
    # a quarter of the size: the window of blur() is 13 pixels
    wide = blur(F.avg_pool2d(x, 4), draws["width"].flatten() / 4)
    wide = F.interpolate(wide, x.shape[-2:], mode="bilinear", align_corners=False)
    return x + draws["detail"] * (x - wide)


def _equalised(x: Tensor) -> Tensor:
    """(B,F,H,W) in 0..1 -> the share of each frame's pixels that are darker, in 256 levels."""
    level = (x * 255).round().long().flatten(2)
    counts = x.new_zeros(*x.shape[:2], 256).scatter_add_(
        2, level, x.new_ones(1).expand(level.shape)
    )
    darker = (counts.cumsum(2) - counts / 2) / level.shape[2]
    return darker.gather(2, level).view_as(x)
