"""Picture metrics on (H,W,3) uint8 arrays. Protocol: notes/methods.md section 11 in short: PSNR on rounded uint8 per picture.

SSIM has named presets, because numbers of different windows and ranges cannot be compared.
"""

from __future__ import annotations

import numpy as np


def _check(*pictures: np.ndarray) -> None:
    for a in pictures:
        if a.dtype != np.uint8 or a.ndim != 3 or a.shape[2] != 3:
            raise ValueError(f"found {a.dtype} {a.shape}; expected uint8 (H, W, 3)")
        if a.shape != pictures[0].shape:
            raise ValueError(f"pictures differ in size: {pictures[0].shape} and {a.shape}")


def psnr(x: np.ndarray, y: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, peak 255, mean squared error over all channels; inf for equal pictures."""
    _check(x, y)
    error = np.mean((x.astype(np.float64) - y.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


SSIM_PRESETS: dict[str, dict] = {
    "skimage-u7": {"win_size": 7},  # scikit-image's default: 7x7 uniform window, per channel
    "gauss-11": {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "win_size": 11},
    "w3": {"win_size": 3},
}


def ssim(x: np.ndarray, y: np.ndarray, preset: str = "skimage-u7") -> float:
    """Structural similarity by scikit-image on uint8 (range 255), per channel, in one of ``SSIM_PRESETS``."""
    from skimage.metrics import structural_similarity

    _check(x, y)
    if preset not in SSIM_PRESETS:
        raise ValueError(f"preset is {preset!r}; expected one of {', '.join(SSIM_PRESETS)}")
    return float(structural_similarity(x, y, channel_axis=2, data_range=255, **SSIM_PRESETS[preset]))


def colourfulness(x: np.ndarray) -> float:
    """Hasler & Suesstrunk 2003, M3: deviation + 0.3 mean of the opponent axes R-G and (R+G)/2-B, on 0..255."""
    _check(x)
    r, g, b = (x[..., i].astype(np.float64) for i in range(3))
    rg, yb = r - g, (r + g) / 2 - b
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))
