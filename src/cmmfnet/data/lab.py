"""CIELAB of 8-bit pictures, and the everyday names of colours in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cmmfnet.data.scenes import CLASSES

LEAST = 0.01
"""Part of the picture that a region must have to be painted: smaller ones give no signal."""


DARK = 26.0
"""Lightness below which a green, red, blue or brown thing is called dark."""


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 -> CIELAB float32, D65."""
    from skimage.color import rgb2lab

    return rgb2lab(rgb).astype(np.float32)


def to_rgb(lab: np.ndarray) -> np.ndarray:
    """CIELAB (..., 3) -> uint8; what no screen has is clipped."""
    from skimage.color import lab2xyz, xyz2rgb

    xyz = np.maximum(lab2xyz(lab.reshape(1, -1, 3).clip((0, -110, -110), (100, 110, 110))), 0)
    return (xyz2rgb(xyz) * 255).round().clip(0, 255).astype(np.uint8).reshape(lab.shape)


def colour_name(lab: Sequence[float]) -> str | None:
    """The basic colour (a value of words.COLOURS) that people would call this CIELAB; None where it is between two."""
    lightness, a, b = (float(v) for v in lab)
    chroma, hue = np.hypot(a, b), np.degrees(np.arctan2(b, a)) % 360
    if chroma < 7:
        for low, high, name in ((0, 20, "black"), (27, 66, "grey"), (78, 101, "white")):
            if low <= lightness < high:
                return name
        return None
    if chroma < 11 and not 105 <= hue < 290:
        return None
    if hue < 40 or hue >= 345:
        return "pink" if lightness > 62 else "red" if chroma > 28 else "brown" if lightness < 50 else None
    if hue < 75:
        return "orange" if chroma > 42 else ("beige" if lightness > 66 else "brown" if lightness < 55 else None)
    if hue < 102:
        return (
            "yellow"
            if chroma > 32 and lightness > 55
            else ("beige" if lightness > 66 else "brown" if hue < 88 else None)
        )
    if hue < 165:
        return "green"
    if hue < 215:
        return "cyan" if chroma > 14 else None
    if hue < 298:
        return "blue"
    return "purple" if chroma > 14 else None


def colours_of(photo: np.ndarray, label: np.ndarray, names: dict[str, str | None]) -> list[tuple[str, str]]:
    """(colour, name) of the regions whose colour has a name; ``names``: class -> what it is called (data.scenes.COCOSTUFF).

    What is far darker than paint of its colour is called so ("dark green" trees): the plain word would mean less and less.
    """
    small, at = photo[::2, ::2], label[::2, ::2]
    found = []
    for number in np.unique(at):
        name = names.get(CLASSES[number]) if number < len(CLASSES) else None
        mask = at == number
        if name and mask.mean() >= LEAST:
            middle = np.median(to_lab(small[mask][None])[0], axis=0)
            if colour := colour_name(middle):
                dark = middle[0] < DARK and colour not in ("black", "grey", "white")
                found.append((f"dark {colour}" if dark else colour, name))
    return found
