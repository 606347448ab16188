"""APCE, the edge agreement between a thermal picture and its coloured version.

Luo et al., IEEE TITS 2022 (PearlGAN): for 99 Canny thresholds, high = .01, .02, ... .99 and low =
high / 2, the share of thermal edge pixels that are also edge pixels of the grey output; the mean
over the thresholds. scikit-image's Canny would repeat gradient and non-maximum suppression for each
threshold, so this module has its own.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from cmmfnet.nn.edges import gradient_maxima

THRESHOLDS = np.arange(1, 100) / 100


def grey(picture: np.ndarray) -> np.ndarray:
    """(H,W,3) or (H,W) uint8 -> (H,W) uint8, ITU-R 601 luma."""
    return np.asarray(Image.fromarray(picture).convert("L"))


def edge_maps(picture: np.ndarray) -> np.ndarray:
    """Canny edges of (H,W) uint8 at the 99 thresholds: (99,H,W) bool.

    Thresholds are shares of the picture's largest gradient, after a Gaussian of sigma sqrt(2).
    Gradient and non-maximum suppression do not depend on the threshold and are computed once; only
    hysteresis runs 99 times.
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


def agreement(thermal: np.ndarray, output: np.ndarray) -> float | None:
    """Mean over thresholds of ``|thermal & output| / |thermal|``, for results of :func:`edge_maps`.

    Thresholds at which the thermal picture has no edge do not count; None if it has no edge at all.
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
