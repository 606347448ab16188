"""CIELAB of 8-bit pictures, and the everyday names of colours in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cmmfnet.text.labels import CLASSES

LEAST = 0.01
"""Least share of the picture of a region that is painted: smaller regions give no signal."""


DARK = 26.0
"""Lightness below which a green, red, blue or brown thing is called dark."""


_XYZ = np.array(
    [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ],
    np.float32,
) / np.array([[0.95047], [1.0], [1.08883]], np.float32)  # linear sRGB to XYZ in parts of D65 white
_RGB = np.linalg.inv(_XYZ.astype(np.float64)).astype(np.float32)
_SRGB = np.arange(256) / 255
_LINEAR = np.where(_SRGB > 0.04045, ((_SRGB + 0.055) / 1.055) ** 2.4, _SRGB / 12.92).astype(
    np.float32
)


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 sRGB -> CIELAB float32, D65. The numbers of scikit-image in a fraction of its
    time, since data workers do this for every picture."""
    xyz = _LINEAR[rgb] @ _XYZ.T
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116).astype(np.float32)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def to_rgb(lab: np.ndarray) -> np.ndarray:
    """CIELAB (..., 3) -> uint8 sRGB; colours outside of sRGB are clipped."""
    lab = np.asarray(lab, np.float32).clip((0, -110, -110), (100, 110, 110)).astype(np.float32)
    y = (lab[..., 0] + 16) / 116
    f = np.stack([y + lab[..., 1] / 500, y, np.maximum(y - lab[..., 2] / 200, 0)], axis=-1)
    xyz = np.where(f > 0.2068966, f**3, (f - 16 / 116) / 7.787)
    linear = (np.maximum(xyz, 0) @ _RGB.T).clip(0, 1)
    srgb = np.where(
        linear > 0.0031308, 1.055 * linear ** np.float32(1 / 2.4) - 0.055, 12.92 * linear
    )
    return (srgb * 255).round().clip(0, 255).astype(np.uint8)


def colour_name(lab: Sequence[float]) -> str | None:
    """The basic colour (a value of text.vocabulary.COLOURS) that people would call this CIELAB
    colour; None where it is between two."""
    lightness, a, b = (float(v) for v in lab)
    chroma, hue = np.hypot(a, b), np.degrees(np.arctan2(b, a)) % 360
    if chroma < 7:
        for low, high, name in ((0, 20, "black"), (27, 66, "grey"), (78, 101, "white")):
            if low <= lightness < high:
                return name
        return None
    if (
        chroma < 11
    ):  # between grey and a colour: if such trees were called green, "green" would mean little
        return None
    if hue < 40 or hue >= 345:
        return (
            "pink"
            if lightness > 62
            else "red"
            if chroma > 28
            else "brown"
            if lightness < 50
            else None
        )
    if hue < 75:
        return (
            "orange"
            if chroma > 42
            else ("beige" if lightness > 66 else "brown" if lightness < 55 else None)
        )
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


def colours_of(
    photo: np.ndarray, label: np.ndarray, names: dict[str, str | None]
) -> list[tuple[str, str]]:
    """(colour, name) of the regions whose colour has a name; ``names``: class -> name
    (text.labels.COCOSTUFF).

    A thing that is far darker than paint of its colour is called dark ("dark green" trees), since
    otherwise the plain word would come to mean the dark colour.
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
