"""Losses that two methods or more share. Pictures are (B,C,H,W) float in [-1,1]; every loss returns
a float32 scalar.

The CMMF-Net paper (section 3.5) sums four of them with weight 1: L1, perceptual
(perceptual.Perceptual, mode "l1"), total variation and SSIM.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def l1(x: Tensor, y: Tensor) -> Tensor:
    """Content loss: mean of |x - y| over all elements."""
    return (x.float() - y.float()).abs().mean()


def total_variation(x: Tensor, legacy: bool = False) -> Tensor:
    """Total variation: sum over C, H, W of |x[h+1,w] - x[h,w]| and |x[h,w+1] - x[h,w]|, divided by W*H, mean over B.

    ``legacy`` sums over the batch as the family's code does, so that its weight grows with the
    batch (notes 15, row 13).
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

    Local statistics, not the single-window formula as printed (notes 15, row 14). Borders where the
    window does not fit are left out. Pictures smaller than the window raise ``ValueError``.
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
        xx, yy, xy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
        luminance = (2 * mx * my + 1e-4) / (mx * mx + my * my + 1e-4)
        structure = (2 * xy + 9e-4) / (xx + yy + 9e-4)
    return (luminance * structure).mean()


def ssim_loss(x: Tensor, y: Tensor) -> Tensor:
    """Structural loss: 1 - SSIM(x, y)."""
    return 1 - ssim(x, y)


def hinge_generator(fake: Tensor) -> Tensor:
    """Hinge GAN, generator: -mean(D(fake)) (Lim & Ye, 2017)."""
    return -fake.float().mean()


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge GAN, discriminator: mean(max(0, 1 - D(real))) + mean(max(0, 1 + D(fake)))."""
    return F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()
