"""Frames turned upright, by the orientation (1 to 8) that EXIF and TIFF note."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cmmfnet.thermal.cameras.reading import Reading

_QUARTERS = {3: 2, 6: 3, 8: 1}
"""Orientation -> quarter turns against the clock, of those that mirror nothing."""


def turned(reading: Reading, orientation: object) -> Reading:
    """A frame and its photo, upright; their orientation is noted."""
    if orientation not in range(2, 9):
        return reading
    visible = reading.visible
    if visible is not None and orientation in _QUARTERS:
        visible = replace(visible, turns=(visible.turns + _QUARTERS[orientation]) % 4)
    elif visible is not None:
        visible = replace(visible, ratio=0.0)
    return replace(
        reading,
        values=upright(reading.values, orientation),
        visible=visible,
        details=dict(reading.details) | {"orientation": int(orientation)},
    )


def upright(pixels: np.ndarray, orientation: object) -> np.ndarray:
    """Apply an EXIF or TIFF orientation (1 to 8; anything else is none)."""
    match orientation:
        case 2:
            return pixels[:, ::-1]
        case 3:
            return pixels[::-1, ::-1]
        case 4:
            return pixels[::-1]
        case 5:
            return pixels.swapaxes(0, 1)
        case 6:
            return pixels[::-1].swapaxes(0, 1)
        case 7:
            return pixels[::-1, ::-1].swapaxes(0, 1)
        case 8:
            return pixels[:, ::-1].swapaxes(0, 1)
    return pixels
