"""How steady the colours of a video are, measured against its thermal frames. No truth is needed.

OpenCV, which finds the motion, comes with ``pip install 'cmmfnet[video]'``.
"""

from __future__ import annotations

import functools

import numpy as np

from cmmfnet.evaluation.metrics import LEAST_STATIC
from cmmfnet.thermal.motion import flow, moved

STILL = 2
"""Levels, of 255 between the ends of the stretch, by which the thermal value of a pixel may change
from frame to frame and still counts as unchanged."""


class ThermalStep:
    """A thermal frame and the frame before; its parts are computed once, when they are needed."""

    def __init__(self, thermal: np.ndarray, before: np.ndarray):
        """``thermal``, ``before``: (H, W) float32 in [-1, 1], stretched between equal values."""
        self.thermal, self.before = thermal, before

    @functools.cached_property
    def still(self) -> np.ndarray:
        """(H, W) bool: the pixels whose value changes by at most ``STILL`` levels of 255."""
        return np.abs(self.thermal - self.before) * 127.5 <= STILL

    @functools.cached_property
    def flow(self) -> np.ndarray:
        """(H, W, 2): the flow to the frame before."""
        return flow(self.thermal, self.before, fine=True)

    @functools.cached_property
    def visible(self) -> np.ndarray:
        """(H, W) bool: the pixels that are visible in the frame before, too."""
        return seen_before(self.flow, flow(self.before, self.thermal, fine=True))


def still_flicker(x: np.ndarray, before: np.ndarray, step: ThermalStep) -> float | None:
    """Change of the colours between two frames where the thermal frame did not change.

    Mean of ``|x - before|`` over channels and over the pixels of ``step.still``.

    Args:
        x, before: (H, W, 3) uint8, the colours of a frame and of the frame before.
        step: their thermal frames.

    Returns:
        Levels of 255. None if fewer than 1 % of the pixels are unchanged.
    """
    if step.still.mean() < LEAST_STATIC:
        return None
    return float(np.abs(x.astype(np.int16) - before)[step.still].mean())


def warping_error(x: np.ndarray, before: np.ndarray, step: ThermalStep) -> float | None:
    """Change of the colours between two frames along the motion of the thermal frames.

    Lai et al., ECCV 2018 (arXiv 1808.00449), section 4.2: the mean square of ``x - warp(before)``
    over channels, on the scale 0 to 1, over the pixels that are visible in both frames. Unlike
    there, the flow is OpenCV's (DIS, preset medium) instead of FlowNet2's, it is that of the
    thermal frames, and the earlier frame is the one that is warped.

    Args:
        As of :func:`still_flicker`.

    Returns:
        The mean square. None if fewer than 1 % of the pixels are visible in both frames.
    """
    if step.visible.mean() < LEAST_STATIC:
        return None
    change = (x - moved(before.astype(np.float32), step.flow))[step.visible] / 255
    return float(np.mean(np.square(change)))


def seen_before(forth: np.ndarray, back: np.ndarray) -> np.ndarray:
    """The pixels of a frame that are visible in the frame before, too: (H, W) bool.

    The test of Ruder, Dosovitskiy and Brox (2016, arXiv 1604.08610), section 4.3: flow and flow
    back cancel, and the flow is no motion boundary.

    Args:
        forth: (H, W, 2), the flow from the frame to the frame before.
        back: the flow from the frame before to the frame.
    """
    returned = moved(back, forth)
    cancels = _square(forth + returned) <= 0.01 * (_square(forth) + _square(returned)) + 0.5
    height, width = forth.shape[:2]
    x = forth[..., 0] + np.arange(width)
    y = forth[..., 1] + np.arange(height)[:, None]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    if min(height, width) < 2:
        return cancels & inside
    slopes = sum(_square(slope) for slope in np.gradient(forth, axis=(0, 1)))
    return cancels & inside & (slopes <= 0.01 * _square(forth) + 0.002)


def _square(vectors: np.ndarray) -> np.ndarray:
    return np.square(vectors).sum(axis=2)
