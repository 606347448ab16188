"""False-colour palettes of thermal cameras: their tables, which one a picture uses, and the way
back to grey.

Many thermal cameras write pictures in which every grey level has been replaced by a colour. The
tables here are drawn through control colours of each palette. Makers' own tables of the same name
differ, so that inverting a camera's picture recovers its grey levels nearly, not exactly. From
``jet`` on they follow OpenCV's and Matplotlib's.
"""

from __future__ import annotations

import math
import warnings

import numpy as np


def _table(*stops: tuple[float, tuple[int, int, int]]) -> np.ndarray:
    """(256, 3) uint8 table, linear between ``(position in [0, 1], (R, G, B))`` stops."""
    positions = [position * 255 for position, _ in stops]
    channels = [
        np.interp(np.arange(256), positions, [colour[c] for _, colour in stops]) for c in range(3)
    ]
    table = np.stack(channels, axis=1).round().astype(np.uint8)
    table.setflags(write=False)
    return table


def _even(*colours: tuple[int, int, int]) -> np.ndarray:
    return _table(*[(i / (len(colours) - 1), colour) for i, colour in enumerate(colours)])


def _hex(colours: str) -> np.ndarray:
    """The even table of colours that are written as ``rrggbb``."""
    return _even(*[tuple(bytes.fromhex(colour)) for colour in colours.split()])


PALETTES: dict[str, np.ndarray] = {
    # black - violet - magenta - orange - yellow - white; most of the range is spent between violet
    # and yellow
    "ironbow": _table(
        (0.000, (0, 0, 10)),
        (0.035, (0, 0, 82)),
        (0.070, (13, 0, 117)),
        (0.110, (44, 0, 138)),
        (0.170, (84, 0, 152)),
        (0.240, (132, 0, 157)),
        (0.300, (174, 1, 152)),
        (0.360, (199, 15, 137)),
        (0.420, (214, 37, 103)),
        (0.470, (224, 56, 55)),
        (0.500, (228, 66, 28)),
        (0.550, (239, 96, 4)),
        (0.620, (245, 122, 0)),
        (0.700, (251, 156, 0)),
        (0.800, (254, 190, 0)),
        (0.860, (254, 212, 9)),
        (0.900, (255, 226, 36)),
        (0.940, (255, 241, 119)),
        (0.970, (255, 249, 200)),
        (1.000, (255, 255, 246)),
    ),
    # dark blue - blue - teal - green - yellow - orange - red
    "rainbow": _table(
        (0.00, (1, 3, 74)),
        (0.12, (0, 20, 140)),
        (0.25, (0, 75, 200)),
        (0.37, (0, 150, 190)),
        (0.47, (20, 180, 100)),
        (0.57, (110, 210, 30)),
        (0.67, (220, 225, 10)),
        (0.77, (255, 180, 0)),
        (0.87, (250, 90, 10)),
        (0.95, (225, 20, 20)),
        (1.00, (190, 0, 60)),
    ),
    # black - dark blue - purple - red - orange - yellow - white
    "lava": _table(
        (0.00, (0, 0, 0)),
        (0.14, (8, 36, 84)),
        (0.28, (58, 32, 112)),
        (0.42, (128, 20, 90)),
        (0.54, (190, 24, 30)),
        (0.68, (236, 88, 6)),
        (0.82, (252, 170, 20)),
        (0.92, (254, 226, 90)),
        (1.00, (255, 255, 255)),
    ),
    # deep blue - light blue - grey - brown - gold - pale yellow
    "arctic": _table(
        (0.00, (8, 10, 70)),
        (0.18, (10, 50, 180)),
        (0.34, (40, 130, 235)),
        (0.48, (130, 190, 220)),
        (0.56, (140, 140, 140)),
        (0.68, (150, 92, 30)),
        (0.82, (220, 150, 20)),
        (0.92, (250, 205, 60)),
        (1.00, (255, 244, 180)),
    ),
    "jet": _table(
        (0.000, (0, 0, 128)),
        (0.125, (0, 0, 255)),
        (0.375, (0, 255, 255)),
        (0.625, (255, 255, 0)),
        (0.875, (255, 0, 0)),
        (1.000, (128, 0, 0)),
    ),
    "inferno": _even(
        (0, 0, 4),
        (31, 12, 72),
        (85, 15, 109),
        (136, 34, 106),
        (186, 54, 85),
        (227, 89, 51),
        (249, 140, 10),
        (249, 201, 50),
        (252, 255, 164),
    ),
    "hot": _table(
        (0.00, (0, 0, 0)),
        (0.40, (255, 0, 0)),  # Matplotlib's: .365
        (0.80, (255, 255, 0)),  # Matplotlib's: .746
        (1.00, (255, 255, 255)),
    ),
    "magma": _hex(
        "000004 0a0822 1d1147 36106b 51127c 6a1c81 832681 9c2e7f b73779 cf4070 e55064 f4695c "
        "fb8761 fea571 fec287 fde0a1 fcfdbf"
    ),
    "plasma": _hex(
        "0d0887 280592 3a049a 4c02a1 5c01a6 6e00a8 7e03a8 8d0ba5 9c179e aa2395 b52f8c c13b82 "
        "cc4778 d5536f de5f65 e56b5d ed7953 f3874a f89441 fca338 fdb22f fdc328 fbd524 f6e626 f0f921"
    ),
    "viridis": _hex(
        "440154 471164 481f70 472d7b 443983 404688 3b528b 365d8d 31688e 2c728e 287c8e 24868e "
        "21918c 1f9a8a 20a486 27ad81 35b779 48c16e 5cc863 75d054 8ed645 aadc32 c8e020 e2e418 fde725"
    ),
    "turbo": _hex(
        "30123b 3c3286 434eba 466be3 4685fa 3ba0fd 28bceb 1ad2d2 1ae4b6 32f298 55fa76 80ff53 "
        "a4fc3c bef434 d9e436 ecd13a faba39 fe9e2f fb8122 f26014 e5470b d23105 b91e02 9e1001 7a0403"
    ),
    "white-hot": _even((0, 0, 0), (255, 255, 255)),
    "black-hot": _even((255, 255, 255), (0, 0, 0)),
}

GREY_PALETTES = ("white-hot", "black-hot")

GOOD_FIT = 20.0
"""Largest mean distance in RGB (see ``palette_fit``) of a picture that uses a palette. Measured:
JPEGs of the palettes above give 2 to 7, the closest of 227 street photos 24, the median photo
50."""

COLOURED_SPREAD = 12
"""A pixel whose largest and smallest channels differ by more than this many levels of 255 is
coloured. JPEG and WebP turn exact grey into channels a few levels apart; of a colour palette, only
the black and white ends are that grey."""


def to_grey(
    pixels: np.ndarray, name: str, palette: str | None, advice: str
) -> tuple[np.ndarray, str | None]:
    """One grey channel out of one to four, with a warning wherever colours have to be judged.

    Args:
        pixels: (H, W) or (H, W, C), bool, integer or float; C = 2 is grey and alpha, 3 RGB, 4 RGB
            and alpha.
        name: where the picture came from, for messages.
        palette: a key of ``PALETTES``, ``"auto"``, or ``None`` for the luminance of false colour.
        advice: a sentence to end warnings with, or ``""``.

    Returns:
        (H, W) values in the units of the source, or grey levels 0 to 255 where a palette was
        inverted; and that palette's name or ``None``.

    Raises:
        ValueError: unequal channels that are not colours, such as three planes of counts.
    """
    levels = 255 if pixels.dtype == np.uint8 else 0  # 0: not known
    if pixels.ndim == 3 and pixels.shape[2] == 2:
        pixels = pixels[..., 0]
    if pixels.ndim == 2:
        return _grey_palette(pixels, name, palette, levels)
    red, green, blue = (pixels[..., c] for c in range(3))
    exact = pixels.dtype.kind == "f"
    if np.array_equal(red, green, equal_nan=exact) and np.array_equal(red, blue, equal_nan=exact):
        return _grey_palette(red, name, palette, levels)
    rgb = _to_8bit(pixels[..., :3], name)
    spread = np.maximum(np.maximum(rgb[..., 0], rgb[..., 1]), rgb[..., 2])
    spread -= np.minimum(np.minimum(rgb[..., 0], rgb[..., 1]), rgb[..., 2])
    luminance = np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue
    # one coloured pixel in a hundred: the maker's logo, a cross-hair or a scale on a grey picture
    if np.count_nonzero(spread > COLOURED_SPREAD) <= 0.01 * spread.size:
        return _grey_palette(luminance, name, palette, levels)

    fit = palette_fit(rgb)
    best = next(iter(fit))
    photo = (
        f"{name}: coloured, but fits no known palette (closest {best!r}, mean distance "
        f"{fit[best]:.0f} of 441): "
        "an ordinary colour photo? Expected a thermal picture."
    )
    if palette is None or (palette == "auto" and fit[best] > GOOD_FIT):
        if fit[best] > GOOD_FIT:
            message = (
                f"{photo} Its luminance is used; if it is false colour, try --palette {best}."
                f"{advice}"
            )
        else:
            message = (
                f"{name}: false-colour picture (palette {best!r}, mean distance {fit[best]:.0f} "
                "of 441). Its luminance "
                "is used, which does not follow temperature in most palettes; type "
                f"--palette {best} (read_thermal(..., palette={best!r})) or export grey from the "
                f"camera.{advice}"
            )
        warnings.warn(message, stacklevel=3)
        return luminance, None
    chosen = best if palette == "auto" else palette
    if fit.get(chosen, math.inf) > GOOD_FIT:
        message = (
            photo
            if fit[best] > GOOD_FIT
            else f"{name}: palette {best!r} fits far better; type --palette {best}."
        )
        warnings.warn(
            f"{message} Inverted with {chosen!r} as asked; the values mean little.{advice}",
            stacklevel=3,
        )
    return invert_palette(rgb, chosen), chosen


def planes_or_colours(pixels: np.ndarray, name: str) -> np.ndarray:
    """Three planes that lie one behind another in a file: a picture in colours, or three grey
    pictures, of which the first is taken with a warning.

    Programs mark a stack of three frames as RGB. Planes count as colours where they are equal, or
    are false colour of a known palette.

    Args:
        pixels: (H, W, 3).

    Returns:
        (H, W, 3), or (H, W) for a stack.
    """
    exact = pixels.dtype.kind == "f"
    first = pixels[..., 0]
    if all(np.array_equal(first, pixels[..., c], equal_nan=exact) for c in (1, 2)):
        return pixels
    try:
        rgb = _to_8bit(pixels, name)
    except ValueError:  # counts or degrees, not colours
        rgb = None
    coloured = rgb is not None and np.mean(np.ptp(rgb, axis=2) > COLOURED_SPREAD) > 0.01
    if coloured and next(iter(palette_fit(rgb).values())) <= GOOD_FIT:
        return pixels
    warnings.warn(
        f"{name}: holds three pictures as planes; the first is used. Split the file to use the "
        "others",
        stacklevel=2,
    )
    return first


def _grey_palette(
    values: np.ndarray, name: str, palette: str | None, levels: int
) -> tuple[np.ndarray, str | None]:
    """Palettes for a picture that is grey already: black-hot is turned over, white-hot is as it
    should be."""
    if palette == "black-hot" and levels == 255:
        return 255 - values, palette
    if palette not in (None, "auto", "white-hot"):
        found = "grey" if levels == 255 else "more than 8 bits deep"
        warnings.warn(
            f"{name}: the picture is {found}; palette {palette!r} is not applied, leave it out",
            stacklevel=4,
        )
    return values, None


def _to_8bit(pixels: np.ndarray, name: str) -> np.ndarray:
    """(H, W, 3) of any numeric type -> uint8 colours."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.uint16:
        return (pixels >> 8).astype(np.uint8)
    if pixels.dtype.kind in "bf":
        pixels = np.nan_to_num(pixels.astype(np.float32))
        pixels = pixels * 255 if pixels.max() <= 1 else pixels
    if pixels.min() < 0 or pixels.max() > 255:
        raise ValueError(
            f"{name}: three unequal {pixels.dtype} channels from {pixels.min():g} to "
            f"{pixels.max():g}; expected "
            "colours 0 to 255 (or floats 0 to 1). Pass the thermal channel alone"
        )
    return pixels.round().astype(np.uint8)


def palette_fit(rgb: np.ndarray) -> dict[str, float]:
    """How well each colour palette explains a picture, best first.

    Args:
        rgb: (H, W, 3) uint8.

    Returns:
        Palette name -> mean distance in RGB (0 to 441) from the coloured pixels to the nearest
        palette colour. Some thousand pixels, always the same ones, are looked at. White-hot and
        black-hot are left out: the shadows and walls of any photo fit them.
    """
    height, width = rgb.shape[:2]
    pixels = rgb.reshape(-1, 3)[:: coprime_step(height * width, width, 1 << 16)].astype(np.float32)
    coloured = pixels[np.ptp(pixels, axis=1) > COLOURED_SPREAD]
    if len(coloured) == 0:
        coloured = pixels
    coloured = coloured[:: max(1, len(coloured) // 1024)]
    fit = {}
    for name, table in PALETTES.items():
        if name not in GREY_PALETTES:
            squared = ((coloured[:, None, :] - table.astype(np.float32)) ** 2).sum(axis=2)
            fit[name] = float(np.sqrt(squared.min(axis=1)).mean())
    return dict(sorted(fit.items(), key=lambda item: item[1]))


def invert_palette(rgb: np.ndarray, name: str) -> np.ndarray:
    """Grey levels of a false-colour picture: the index of the nearest palette colour in RGB.

    Args:
        rgb: (H, W, 3) uint8.
        name: a key of ``PALETTES``.

    Returns:
        (H, W) float32 in [0, 255], whole numbers; 255 is the hot end.
    """
    table = PALETTES[name].astype(np.float32)
    packed = (
        (rgb[..., 0].astype(np.int32) << 16) | (rgb[..., 1].astype(np.int32) << 8) | rgb[..., 2]
    )
    # A table over all 2^24 colours is exact, and only the colours that occur are searched for: some
    # hundreds in a PNG.
    occurs = np.zeros(1 << 24, dtype=bool)
    occurs[packed.ravel()] = True
    colours = np.flatnonzero(occurs)
    nearest = np.zeros(1 << 24, dtype=np.uint8)
    for start in range(0, len(colours), 65536):
        chunk = colours[start : start + 65536]
        points = np.stack([chunk >> 16, (chunk >> 8) & 255, chunk & 255], axis=1).astype(np.float32)
        # |p - t|^2 without |p|^2, which does not change the order; all terms are whole and below
        # 2^24, so exact
        nearest[chunk] = ((table**2).sum(axis=1) - 2 * points @ table.T).argmin(axis=1)
    return nearest[packed].astype(np.float32)


def coprime_step(count: int, width: int, target: int) -> int:
    """Smallest step that leaves at most ``target`` of ``count`` row-major pixels and shares no
    factor with ``width``.

    A step that divides the width would look at the same few columns only, and thermal sensors have
    column noise.
    """
    step = max(1, -(-count // target))
    while math.gcd(step, width) != 1:
        step += 1
    return step
