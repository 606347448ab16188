"""NIQE, a picture's distance from the statistics of undistorted photographs. It needs no truth.

Mittal, Soundararajan and Bovik, *Making a "completely blind" image quality analyzer*, IEEE Signal
Processing Letters 2013. The model of undistorted photographs, niqe.npz (mean and covariance of 36
features), is the authors', out of "NIQE Software Release" (2012), under the terms in niqe.txt.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

PATCH = 96
"""Side of a patch in pixels, as in the authors' model."""
_SHAPES = np.arange(200, 10_001) / 1000
"""Shapes of generalised Gaussians that are tried."""


@cache
def _model() -> tuple[np.ndarray, np.ndarray]:
    with np.load(Path(__file__).with_name("niqe.npz")) as file:
        return file["mean"], file["covariance"]


@cache
def _moments() -> np.ndarray:
    """(mean of |x|)^2 over mean of x^2 of generalised Gaussians of ``_SHAPES``."""
    from scipy.special import gamma

    return gamma(2 / _SHAPES) ** 2 / (gamma(1 / _SHAPES) * gamma(3 / _SHAPES))


def niqe(picture: np.ndarray) -> float | None:
    """NIQE of a picture (H,W,3) uint8: 0 and up, lower is more natural.

    None for pictures with fewer than two whole patches of 96x96, and for those in which fewer than
    two patches have any texture.
    """
    grey = np.asarray(Image.fromarray(picture).convert("L"), np.float64)
    rows, columns = grey.shape[0] // PATCH, grey.shape[1] // PATCH
    grey = grey[: rows * PATCH, : columns * PATCH]
    if rows * columns < 2:
        return None
    found = []
    for scale in (1, 2):
        if scale == 2:
            half = (columns * PATCH // 2, rows * PATCH // 2)
            reduced = Image.fromarray(grey.astype(np.float32)).resize(
                half, Image.Resampling.BICUBIC
            )
            grey = np.asarray(reduced, np.float64)
        side = PATCH // scale
        patches = _normalised(grey).reshape(rows, side, columns, side).swapaxes(1, 2)
        found.append([_features(patch) for patch in patches.reshape(-1, side, side)])
    features = np.concatenate(found, axis=1)
    features = features[np.isfinite(features).all(axis=1)]
    if len(features) < 2:
        return None
    mean, covariance = _model()
    gap = features.mean(axis=0) - mean
    between = np.linalg.pinv((covariance + np.cov(features, rowvar=False)) / 2)
    return float(np.sqrt(gap @ between @ gap))


def _normalised(grey: np.ndarray) -> np.ndarray:
    """The paper's eq. 1: less the local mean, over the local deviation plus 1; a Gaussian window of
    7x7 pixels, sigma 7/6."""
    from scipy.ndimage import gaussian_filter

    def local(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 7 / 6, radius=3, mode="nearest")

    mean = local(grey)
    return (grey - mean) / (np.sqrt(np.abs(local(grey**2) - mean**2)) + 1)


def _features(patch: np.ndarray) -> list[float]:
    """18 of them: a patch's own shape and width, then shape, mean and both widths of its products
    with the patch moved by one pixel, four ways."""
    from scipy.special import gamma

    shape, left, right = _fitted(patch)
    found = [shape, (left + right) / 2]
    for move in ((0, 1), (1, 0), (1, 1), (1, -1)):
        shape, left, right = _fitted(patch * np.roll(patch, move, axis=(0, 1)))
        mean = (right - left) * gamma(2 / shape) / gamma(1 / shape)
        found += [shape, mean, left, right]
    return found


def _fitted(x: np.ndarray) -> tuple[float, float, float]:
    """Shape, left and right width of an asymmetric generalised Gaussian with the moments of x;
    NaN where x has no values on one side of 0."""
    from scipy.special import gamma

    below, above = x[x < 0], x[x > 0]
    if not (len(below) and len(above)):
        return np.nan, np.nan, np.nan
    left, right = (np.sqrt(np.mean(side**2)) for side in (below, above))
    skew, ratio = left / right, np.mean(np.abs(x)) ** 2 / np.mean(x**2)
    ratio *= (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    shape = float(_SHAPES[np.argmin((_moments() - ratio) ** 2)])
    width = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, float(left * width), float(right * width)
