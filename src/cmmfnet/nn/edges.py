"""Edges of a picture: gradient magnitude where it is largest across the edge, as in Canny."""

from __future__ import annotations

import numpy as np

SIGMA = 2**0.5
"""Standard deviation in pixels of the Gaussian before the gradient."""


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
