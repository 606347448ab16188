"""Edge agreement between a thermal picture and what was made of it: APCE as PearlGAN defines it.

Luo et al., IEEE TITS 2022 (PearlGAN): for 99 Canny thresholds, high = .01, .02, ... .99 and low =
high / 2, the share of thermal edge pixels that are edge pixels of the grey translated picture, too;
the mean over the thresholds.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

SIGMA = 2**0.5
THRESHOLDS = np.arange(1, 100) / 100


def grey(picture: np.ndarray) -> np.ndarray:
    """(H,W,3) or (H,W) uint8 -> (H,W) uint8, ITU-R 601 luma."""
    return np.asarray(Image.fromarray(picture).convert("L"))


def edge_maps(picture: np.ndarray) -> np.ndarray:
    """Canny edges of (H,W) uint8 at the 99 thresholds: (99,H,W) bool.

    Thresholds are shares of the picture's largest gradient, after a Gaussian of sigma sqrt(2).
    Gradient and suppression of non-maxima do not depend on the threshold and are made once; only
    hysteresis is made 99 times.
    """
    from scipy import ndimage

    maxima = gradient_maxima(picture)
    if maxima.max() == 0:
        return np.zeros((len(THRESHOLDS), *picture.shape), bool)
    maxima /= maxima.max()
    maps = []
    for high in THRESHOLDS:
        labels, count = ndimage.label(maxima >= high / 2, np.ones((3, 3), bool))
        strong = np.zeros(count + 1, bool)
        strong[labels[maxima >= high]] = True
        maps.append(strong[labels])
    return np.stack(maps)


def gradient_maxima(picture: np.ndarray) -> np.ndarray:
    """Gradient magnitude (Sobel on the smoothed picture in [0,1]) where it is largest across the
    edge, else 0.

    (H,W) uint8 -> (H,W) float64. The two neighbours along the gradient are interpolated; the
    outermost pixels are 0. The largest value always belongs to an inner pixel.
    """
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(picture / 255, SIGMA, mode="nearest")
    down, right = ndimage.sobel(smooth, axis=0), ndimage.sobel(smooth, axis=1)
    size = np.hypot(down, right)
    size[size < 1e-9] = 0  # a flat picture, smoothed in floating point
    i, j = np.indices(size.shape)
    inner = (i > 0) & (j > 0) & (i < size.shape[0] - 1) & (j < size.shape[1] - 1) & (size > 0)
    i, j, down, right = (a[inner] for a in (i, j, down, right))
    step_i, step_j = np.where(down < 0, -1, 1), np.where(right < 0, -1, 1)
    steep = np.abs(down) >= np.abs(right)
    weight = np.minimum(np.abs(down), np.abs(right)) / np.maximum(np.abs(down), np.abs(right))
    straight_i, straight_j = np.where(steep, step_i, 0), np.where(steep, 0, step_j)
    here = size[inner]
    largest = np.ones(here.shape, bool)
    for way in (1, -1):
        straight = size[i + way * straight_i, j + way * straight_j]
        diagonal = size[i + way * step_i, j + way * step_j]
        largest &= (1 - weight) * straight + weight * diagonal <= here
    result = np.zeros_like(size)
    result[inner] = np.where(largest, here, 0)
    return result


def agreement(thermal: np.ndarray, output: np.ndarray) -> float | None:
    """Mean over thresholds of ``|thermal & output| / |thermal|`` for two results of :func:`edge_maps`.

    Thresholds at which the thermal picture has no edge do not count; None where it has none at any.
    """
    edges = thermal.sum(axis=(1, 2))
    if not edges.any():
        return None
    shared = (thermal & output).sum(axis=(1, 2))
    return float(np.mean(shared[edges > 0] / edges[edges > 0]))


def apce(thermal: np.ndarray, output: np.ndarray) -> float | None:
    """APCE of (H,W) uint8 thermal and (H,W,3) uint8 output, in [0,1], higher is better; None for a
    flat thermal picture."""
    return agreement(edge_maps(thermal), edge_maps(grey(output)))
