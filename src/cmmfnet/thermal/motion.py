"""Motion between two thermal frames of a video, found with OpenCV.

OpenCV comes with ``pip install 'cmmfnet[video]'`` and is imported when motion is asked for. Its
dense inverse search (DIS; Kroeger et al., ECCV 2016, arXiv 1603.03590) takes a millisecond for
320x240 pixels; scikit-image's TV-L1 and iterative Lucas-Kanade take a hundred times as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np

_TOLERANCE = 0.1
"""Difference of the stretched values, of a range of 2, at which two places agree by 1 / e."""
_TEAR = 1.0
"""Range of the flow among neighbours, in pixels, at which a pixel agrees by 1 / e. At such an edge
one thing hides or uncovers another."""
_LEAST_SIDE = 12
"""OpenCV refuses smaller frames."""


def opencv() -> ModuleType:
    """OpenCV.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        import cv2
    except ImportError as error:
        raise ImportError("motion needs OpenCV: pip install 'cmmfnet[video]'") from error
    return cv2


@dataclass(frozen=True, eq=False)
class Motion:
    """Where each pixel of a frame was in the frame before.

    Attributes:
        columns, rows: (H, W) float32, the place in the frame before, in pixels.
        agreement: (H, W) float32 in [0, 1]: how far the frame before can be trusted there. It is
            low where the two thermal frames differ, where the flow tears, and outside of the frame
            before.
    """

    columns: np.ndarray
    rows: np.ndarray
    agreement: np.ndarray

    def warp(self, planes: np.ndarray) -> np.ndarray:
        """Planes (C, H, W) float32 of the frame before, moved to where they are now."""
        cv2 = opencv()
        return np.stack(
            [
                cv2.remap(
                    plane,
                    self.columns,
                    self.rows,
                    cv2.INTER_LINEAR,
                    borderMode=cv2.BORDER_REPLICATE,
                )
                for plane in planes
            ]
        )


def flow(now: np.ndarray, before: np.ndarray, *, fine: bool = False) -> np.ndarray:
    """Optical flow from a thermal frame to the frame before.

    Args:
        now, before: (H, W) float32 in [-1, 1], stretched between equal values.
        fine: take the slower and more exact preset of OpenCV.

    Returns:
        (H, W, 2) float32: what is at (x, y) now was at (x + flow[y, x, 0], y + flow[y, x, 1]).
        Zero for frames with a side below 12 pixels.
    """
    cv2 = opencv()
    if min(now.shape) < _LEAST_SIDE:
        return np.zeros((*now.shape, 2), np.float32)
    preset = cv2.DISOPTICAL_FLOW_PRESET_MEDIUM if fine else cv2.DISOPTICAL_FLOW_PRESET_FAST
    return cv2.DISOpticalFlow_create(preset).calc(_bytes(now), _bytes(before), None)


def moved(before: np.ndarray, found: np.ndarray) -> np.ndarray:
    """A picture (H, W) or (H, W, C) float32 of the frame before, moved to where its things are
    now by a flow (H, W, 2); its edge is repeated outwards."""
    return _read(before, *_places(found))


def motion(now: np.ndarray, before: np.ndarray) -> Motion:
    """The motion from the frame before, with its agreement. Arguments as of :func:`flow`."""
    cv2 = opencv()
    found = flow(now, before)
    columns, rows = _places(found)
    height, width = now.shape
    warped = _read(before, columns, rows)
    difference = cv2.blur(cv2.absdiff(now, warped), (3, 3)) / _TOLERANCE
    square = np.ones((3, 3), np.uint8)
    tear = (cv2.dilate(found, square) - cv2.erode(found, square)) / _TEAR
    agreement = np.exp(-(difference**2 + np.maximum(tear[..., 0], tear[..., 1]) ** 2))
    inside = (columns >= 0) & (columns <= width - 1) & (rows >= 0) & (rows <= height - 1)
    return Motion(columns, rows, cv2.erode(agreement * inside, square))


def _places(found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Column and row, each (H, W) float32, that a flow (H, W, 2) points at."""
    height, width = found.shape[:2]
    columns = found[..., 0] + np.arange(width, dtype=np.float32)
    return columns, found[..., 1] + np.arange(height, dtype=np.float32)[:, None]


def _read(picture: np.ndarray, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """A picture, read at the given places; its edge is repeated outwards."""
    cv2 = opencv()
    return cv2.remap(picture, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _bytes(frame: np.ndarray) -> np.ndarray:
    """The form that OpenCV's flow takes."""
    return ((frame + 1) * 127.5).astype(np.uint8)
