"""The two cameras of `scenes`: from radiance to a photograph and from temperature to raw counts of
a microbolometer."""

import numpy as np
from PIL import Image

from cmmfnet.data.scenes.shading import F
from cmmfnet.data.scenes.world import World


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Separable Gaussian over the first two axes, edges repeated."""
    r = max(1, int(3 * sigma + 0.5))
    kernel = np.exp(-0.5 * (np.arange(-r, r + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).astype(F)
    for axis in (0, 1):
        pad = [(r, r) if k == axis else (0, 0) for k in range(image.ndim)]
        wide = np.pad(image, pad, mode="edge")
        n = image.shape[axis]
        image = sum(k * np.take(wide, np.arange(i, i + n), axis=axis) for i, k in enumerate(kernel))
    return image


def photograph(world: World, rgb: np.ndarray, rng, balance) -> np.ndarray:
    """Linear radiance (H,W,3) -> sRGB uint8: bloom, exposure, film curve, vignetting, sensor
    noise."""
    h, w = rgb.shape[:2]
    night = world.light.lighting == "night"
    bright = np.minimum(np.maximum(rgb - 0.9, 0), 5)
    k = max(1, min(h, w) // 64)
    ph, pw = -(-h // k) * k, -(-w // k) * k
    small = (
        np.pad(bright, ((0, ph - h), (0, pw - w), (0, 0)), mode="edge")
        .reshape(ph // k, k, pw // k, k, 3)
        .mean((1, 3))
    )
    halo = _blur(small, 1.6) * (0.5 if night else 0.25) + _blur(small, 5.0) * (
        0.35 if night else 0.12
    )
    halo = np.stack(
        [
            np.asarray(Image.fromarray(halo[..., c]).resize((w, h), Image.Resampling.BILINEAR))
            for c in range(3)
        ],
        -1,
    )
    y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j].astype(F)
    x = (rgb + halo) * (
        world.light.exposure * balance * (1 - 0.13 * (x * x + y * y) * 0.7)[..., None]
    ).astype(F)
    x = x * (2.51 * x + 0.03) / (x * (2.43 * x + 0.59) + 0.14)  # the usual fit of a film's S-curve
    x = np.clip(x, 0, 1) ** F(1 / 2.2)
    grain = 0.02 if night else 0.006
    noise = rng.normal(0, grain, (h, w, 1)) + _blur(
        rng.normal(0, grain * 1.2, (h, w, 3)).astype(F), 0.8
    )
    return (np.clip(x + noise * (1.25 - 0.6 * x), 0, 1) * 255 + 0.5).astype(np.uint8)


def microbolometer(kelvin: np.ndarray, rng, fixed_rng, blur: float) -> np.ndarray:
    """Apparent temperature (H,W) in kelvin -> uint16 counts of 0.01 K: blur, vignetting, fixed
    pattern, noise of about 60 mK.
    """
    h, w = kelvin.shape
    image = _blur(kelvin.astype(F), blur)
    y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    image = image - fixed_rng.uniform(0.0, 0.5) * (x * x + y * y) / 2
    image += (
        fixed_rng.normal(0, 0.035, (1, w))
        + fixed_rng.normal(0, 0.012, (h, 1))
        + fixed_rng.normal(0, 0.02, (h, w))
    )
    image += rng.normal(0, 0.06, (h, w))
    return np.clip(np.round(image * 100), 0, 65535).astype(np.uint16)
