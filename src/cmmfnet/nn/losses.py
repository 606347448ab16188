"""Losses that two methods or more share. Pictures are (B,C,H,W) float in [-1,1]; every loss returns
a float32 scalar.

The CMMF-Net paper (section 3.5, eq. 3 to 6) sums four losses with weight 1: ``l1``, perceptual
(``perceptual.Perceptual`` with mode "l1"), ``total_variation`` and ``ssim_loss``. ``PictureLosses``
computes the four.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def l1(x: Tensor, y: Tensor) -> Tensor:
    """Content loss (CMMF-Net, eq. 3): mean of |x - y| over all elements."""
    return (x.float() - y.float()).abs().mean()


def total_variation(x: Tensor, legacy: bool = False) -> Tensor:
    """Total variation (CMMF-Net, eq. 5): sum over C, H, W of |x[h+1,w] - x[h,w]| and
    |x[h,w+1] - x[h,w]|, divided by W*H, mean over B.

    ``legacy`` sums over the batch as the family's code does, so that its weight grows with the
    batch (docs/architecture.md, row 13).
    """
    x = x.float()
    down = (x[:, :, 1:] - x[:, :, :-1]).abs().sum(dim=(1, 2, 3))
    right = (x[:, :, :, 1:] - x[:, :, :, :-1]).abs().sum(dim=(1, 2, 3))
    each = (down + right) / (x.shape[2] * x.shape[3])
    return each.sum() if legacy else each.mean()


def _gaussian(window: int, sigma: float, device: torch.device) -> Tensor:
    offsets = torch.arange(window, device=device, dtype=torch.float32) - (window - 1) / 2
    weights = torch.exp(-offsets.square() / (2 * sigma**2))
    return weights / weights.sum()


def ssim(x: Tensor, y: Tensor, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Mean structural similarity on [0,1] copies, Gaussian window, per channel (Wang et al., 2004;
    C1 = .01^2, C2 = .03^2).

    Local statistics, not the single-window formula as printed (docs/architecture.md, row 14).
    Borders where the window does not fit are left out. Pictures smaller than the window raise
    ``ValueError``.
    """
    if min(x.shape[-2:]) < window:
        raise ValueError(
            f"pictures are {tuple(x.shape[-2:])}; SSIM with an {window}-pixel window needs at "
            "least that size"
        )
    x, y = x.float() * 0.5 + 0.5, y.float() * 0.5 + 0.5
    channels = x.shape[1]
    line = _gaussian(window, sigma, x.device).expand(channels, 1, 1, window)

    def blur(z: Tensor) -> Tensor:
        z = F.conv2d(z, line, groups=channels)
        return F.conv2d(z, line.transpose(2, 3), groups=channels)

    with torch.autocast(x.device.type, enabled=False):
        mx, my = blur(x), blur(y)
        squares = mx * mx + my * my
        variances = blur(x * x + y * y) - squares  # of x and y, added
        covariance = blur(x * y) - mx * my
        luminance = (2 * mx * my + 1e-4) / (squares + 1e-4)
        structure = (2 * covariance + 9e-4) / (variances + 9e-4)
    return (luminance * structure).mean()


def ssim_loss(x: Tensor, y: Tensor) -> Tensor:
    """Structural loss (CMMF-Net, eq. 6): 1 - SSIM(x, y)."""
    return 1 - ssim(x, y)


class PictureLosses(nn.Module):
    """The losses called ``names`` (some of l1, perceptual, tv, ssim) of colour pictures against
    their truth, (B,3,H,W) each in [-1,1]; float32 scalars without weights.

    ``perceptual``: a distance of pictures, or None. It compares ``part`` and ``true_part``,
    (B,3,h,w) each, where they are given, else the whole pictures.
    """

    def __init__(self, names: Collection[str], perceptual: nn.Module | None = None):
        super().__init__()
        self.names, self.perceptual = tuple(names), perceptual

    def pixelwise(self, colour: Tensor, truth: Tensor) -> dict[str, Tensor]:
        losses = {}
        if "l1" in self.names:
            losses["l1"] = l1(colour, truth)
        if "tv" in self.names:
            losses["tv"] = total_variation(colour)
        if "ssim" in self.names:
            losses["ssim"] = ssim_loss(colour, truth)
        return losses

    def forward(
        self,
        colour: Tensor,
        truth: Tensor,
        part: Tensor | None = None,
        true_part: Tensor | None = None,
    ) -> dict[str, Tensor]:
        losses = self.pixelwise(colour, truth)
        if "perceptual" in self.names:
            seen = (colour, truth) if part is None else (part, true_part)
            losses["perceptual"] = self.perceptual(*seen).mean()
        return {name: losses[name] for name in ("l1", "perceptual", "tv", "ssim") if name in losses}


def hinge_generator(fake: Tensor) -> Tensor:
    """Hinge GAN, generator: -mean(D(fake)) (Lim & Ye, 2017)."""
    return -fake.float().mean()


def hinge_discriminator(real: Tensor, fake: Tensor, counted: Tensor | None = None) -> Tensor:
    """Hinge GAN, discriminator: mean(max(0, 1 - D(real))) + mean(max(0, 1 + D(fake))).

    ``counted`` (B,), 1 or 0: the pictures that the first mean is over; None: all.
    """
    each = F.relu(1 - real.float())
    if counted is None:
        of_real = each.mean()
    else:
        of_real = (each.flatten(1).mean(dim=1) * counted).sum() / counted.sum().clamp_min(1)
    return of_real + F.relu(1 + fake.float()).mean()
