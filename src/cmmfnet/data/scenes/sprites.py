"""Cut-out pictures for `scenes`: people, bicycles, wheels, signs, railings, and the atlas that
holds them (plants: plants.py).

A sprite is one object from one side. Every point has a linear albedo, shares of direct sun and of
sky light (so that a crown has a bright and a dark side), and a temperature above the air in kelvin.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from cmmfnet.data.scenes.raster import Atlas

# Class ids, as in text.labels.CLASSES.
PERSON, BICYCLE, VEGETATION, CAR, SIGN, FENCE, LIGHT = 17, 18, 8, 14, 19, 4, 20


def linear(red, green, blue) -> np.ndarray:
    """sRGB 0..255 to linear albedo."""
    return (np.array([red, green, blue], np.float32) / 255) ** np.float32(2.2)


@dataclass
class Sprite:
    """One cut-out of size `wide` x `high` metres; arrays (h,w[,3]) as in raster.Atlas."""

    wide: float
    high: float
    colour: np.ndarray
    shade: np.ndarray
    ambient: np.ndarray
    kelvin: np.ndarray
    glow: np.ndarray
    opaque: np.ndarray
    label: np.ndarray


def build_atlas(sprites: list[Sprite], levels: int = 6) -> Atlas:
    """Flatten sprites with `levels` mip levels; averages are weighted by opacity so that edges keep
    their colour."""
    names = ("colour", "shade", "ambient", "kelvin", "glow")
    parts = {k: [] for k in (*names, "opaque", "label")}
    table = np.zeros((3, len(sprites), levels), np.int64)
    total = 0
    for s, sprite in enumerate(sprites):
        now = {k: np.asarray(getattr(sprite, k), np.float32) for k in names}
        alpha, label = sprite.opaque.astype(np.float32), sprite.label
        for level in range(levels):
            h, w = alpha.shape
            table[:, s, level] = total, h, w
            total += h * w
            for k in names:
                parts[k].append(now[k].reshape(h * w, -1))
            parts["opaque"].append((alpha > 0.4).ravel())
            parts["label"].append(label.ravel())
            if min(h, w) < 4:
                table[:, s, level:] = table[:, s, level, None]
                break
            h, w = h // 2 * 2, w // 2 * 2
            weight = alpha[:h, :w] + np.float32(1e-4)
            mean = _halved(weight)
            for k in names:
                deep = (..., None) if now[k].ndim == 3 else ...
                now[k] = _halved(now[k][:h, :w] * weight[deep]) / mean[deep]
            # classes cannot be averaged: take the class of the most opaque corner
            strong = alpha[0:h:2, 0:w:2] >= alpha[1:h:2, 1:w:2]
            label = np.where(strong, label[0:h:2, 0:w:2], label[1:h:2, 1:w:2])
            alpha = mean
    flat = {k: np.concatenate(v) for k, v in parts.items()}
    return Atlas(
        colour=flat["colour"],
        **{k: flat[k].ravel() for k in names[1:]},
        opaque=flat["opaque"],
        label=flat["label"].astype(np.uint8),
        start=table[0],
        rows=table[1],
        columns=table[2],
    )


def _halved(image: np.ndarray) -> np.ndarray:
    return (
        image[0::2, 0::2] + image[1::2, 0::2] + image[0::2, 1::2] + image[1::2, 1::2]
    ) * np.float32(0.25)


def _body(part: np.ndarray, lut, kelvin, labels, wide, high, rng, glow=None) -> Sprite:
    """A sprite from a map of part numbers, rounded by a pseudo-normal from its blurred outline."""
    solid = part > 0
    soft = Image.fromarray((solid * 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(max(2, part.shape[0] / 45))
    )
    soft = np.asarray(soft, np.float32) / 255
    tilt = np.gradient(soft, axis=0)
    share = np.clip(0.62 + 9 * tilt + 0.25 * (soft - 0.7), 0.2, 1.0)
    warm = (
        np.asarray(kelvin, np.float32)[part] + rng.normal(0, 0.25, part.shape) + 1.5 * (soft - 0.8)
    )
    colour = np.asarray(lut, np.float32)[part] * rng.normal(1, 0.05, (*part.shape, 1))
    shine = np.zeros(part.shape) if glow is None else np.asarray(glow, np.float32)[part]
    return Sprite(
        wide,
        high,
        colour,
        share,
        0.45 + 0.5 * soft,
        warm,
        shine,
        solid,
        np.asarray(labels, np.uint8)[part],
    )


_TOPS = [
    (40, 44, 58),
    (92, 40, 40),
    (150, 150, 148),
    (60, 76, 100),
    (30, 30, 32),
    (186, 178, 160),
    (70, 84, 60),
    (168, 60, 50),
]


_LEGS = [(44, 50, 70), (32, 32, 36), (90, 84, 72), (58, 64, 84), (120, 112, 96)]


_SKINS = [(214, 170, 144), (188, 138, 108), (140, 96, 72), (96, 64, 48)]


def person(rng, phase: float, look: int, air: float, rider=False) -> Sprite:
    """A pedestrian, or a cyclist from behind, in one phase (radians) of the step. `look` picks
    build and clothes. air in kelvin.
    """
    own = np.random.default_rng([look, 77])
    high, wide = (1.9, 1.0) if rider else (1.85, 1.0)
    s = 150  # texels per metre
    h, w = int(high * s), int(wide * s)
    image = Image.new("L", (w, h))
    draw = ImageDraw.Draw(image)
    build = own.uniform(0.9, 1.15)

    def limb(points, width, part):
        points = [(w / 2 + x * s, h - z * s) for x, z in points]
        draw.line(points, fill=part, width=int(width * s), joint="curve")
        r = width * s / 2
        for x, y in points:
            draw.ellipse((x - r, y - r, x + r, y + r), fill=part)

    swing = np.sin(phase)
    if rider:
        draw.line((w / 2, h, w / 2, h - 0.68 * s), fill=8, width=int(0.05 * s))  # the tyre, edge on
        draw.line(
            (w / 2 - 0.28 * s, h - 1.02 * s, w / 2 + 0.28 * s, h - 1.02 * s),
            fill=7,
            width=int(0.04 * s),
        )
        lift = 0.1 * swing
        limb([(-0.1, 0.95), (-0.13, 0.62 + lift), (-0.1, 0.26 + lift)], 0.12, 4)
        limb([(0.1, 0.95), (0.13, 0.62 - lift), (0.1, 0.26 - lift)], 0.12, 4)
        limb([(-0.1, 0.22 + lift), (-0.1, 0.2 + lift)], 0.11, 5)
        limb([(0.1, 0.22 - lift), (0.1, 0.2 - lift)], 0.11, 5)
        hip, neck = 0.98, 1.5
        arms = ((-1, -0.27, 1.06), (1, 0.27, 1.06))
    else:
        for sign in (-1, 1):
            knee = sign * 0.07 * swing
            foot = sign * 0.13 * swing
            lift = 0.05 * max(0, sign * np.cos(phase))
            limb(
                [
                    (sign * 0.075, 0.88),
                    (sign * 0.08 + knee, 0.48),
                    (sign * 0.085 + foot, 0.08 + lift),
                ],
                0.14 * build,
                4,
            )
            limb([(sign * 0.085 + foot, 0.05 + lift), (sign * 0.12 + foot, 0.045 + lift)], 0.09, 5)
        hip, neck = 0.86, 1.42
        arms = (
            (-1, -0.24 - 0.05 * swing, 0.8 + 0.04 * swing),
            (1, 0.24 - 0.05 * swing, 0.8 - 0.04 * swing),
        )
    for sign, x, z in arms:
        limb(
            [
                (sign * 0.17 * build, neck - 0.07),
                (sign * 0.225 * build, (neck + z) / 2 + 0.02),
                (x, z),
            ],
            0.088,
            3,
        )
        limb([(x, z), (x, z - 0.03)], 0.08, 1)
    limb([(0, hip + 0.06), (0, neck - 0.2)], 0.31 * build, 3)
    limb([(-0.13 * build, neck - 0.1), (0.13 * build, neck - 0.1)], 0.18, 3)
    limb([(0, neck), (0, neck + 0.06)], 0.11, 1)
    head = (w / 2 - 0.077 * s, h - (neck + 0.285) * s, w / 2 + 0.077 * s, h - (neck + 0.055) * s)
    draw.ellipse(head, fill=1)
    if rider or own.random() < 0.5:
        draw.pieslice((head[0] - 3, head[1] - 4, head[2] + 3, head[3]), 180, 360, fill=2)
    else:
        draw.ellipse((head[0] - 2, head[1] - 3, head[2] + 2, head[3] - 9), fill=2)
    if not rider and own.random() < 0.35:
        limb([(-0.22, 1.1), (-0.22, 1.0)], 0.2, 6)
    lut = [(0, 0, 0)] + [
        linear(*c)
        for c in (
            _SKINS[own.integers(len(_SKINS))],
            (36, 28, 24),
            _TOPS[own.integers(len(_TOPS))],
            _LEGS[own.integers(len(_LEGS))],
            (40, 34, 32),
            (80, 56, 44),
            (60, 60, 64),
            (24, 24, 26),
        )
    ]
    body = 305.5 - air
    warm = [0, body - 1, 0.55 * body, 0.42 * body, 0.5 * body, 0.25 * body, 0.1 * body, 0.5, 1.5]
    labels = [0, *[PERSON] * 6, BICYCLE, BICYCLE]
    return _body(np.asarray(image), lut, warm, labels, wide, high, rng)


def bicycle(rng) -> Sprite:
    """A parked bicycle from the side."""
    s, wide, high = 150, 1.75, 1.1
    h, w = int(high * s), int(wide * s)
    image = Image.new("L", (w, h))
    draw = ImageDraw.Draw(image)
    point = {
        "r": (0.36, 0.35),
        "f": (1.39, 0.35),
        "b": (0.8, 0.3),
        "s": (0.68, 0.84),
        "h": (1.2, 0.82),
        "t": (1.16, 0.98),
    }
    at = {k: (x * s, h - z * s) for k, (x, z) in point.items()}
    for k in "rf":
        x, y = at[k]
        draw.ellipse((x - 0.33 * s, y - 0.33 * s, x + 0.33 * s, y + 0.33 * s), outline=2, width=6)
        for a in np.arange(0, np.pi, np.pi / 7):
            dx, dy = 0.31 * s * np.cos(a), 0.31 * s * np.sin(a)
            draw.line((x - dx, y - dy, x + dx, y + dy), fill=3)
    for a, b in ("rb", "bs", "sr", "bh", "sh", "hf", "ht"):
        draw.line((*at[a], *at[b]), fill=1, width=6)
    x, y = at["s"]
    draw.line((x - 18, y - 6, x + 16, y - 8), fill=2, width=9)
    x, y = at["t"]
    draw.line((x - 4, y, x + 22, y - 4), fill=2, width=6)
    paint = linear(
        *[(120, 30, 30), (30, 50, 90), (40, 40, 42), (60, 96, 70), (150, 150, 150)][rng.integers(5)]
    )
    lut = [(0, 0, 0), paint, linear(28, 28, 30), linear(120, 120, 122)]
    return _body(np.asarray(image), lut, [0, 0.2, 0.8, -1.5], [0, *[BICYCLE] * 3], wide, high, rng)


def wheel(rng, warm: float) -> Sprite:
    """A car wheel; warm: kelvin of a tyre after driving, the brake behind the rim is hotter."""
    n = 96
    image = Image.new("L", (n, n))
    draw = ImageDraw.Draw(image)
    draw.ellipse((0, 0, n - 1, n - 1), fill=1)
    draw.ellipse((16, 16, n - 17, n - 17), fill=2)
    spokes = rng.integers(5, 9)
    for a in np.arange(spokes) * 2 * np.pi / spokes:
        x, y = n / 2 + 31 * np.cos(a), n / 2 + 31 * np.sin(a)
        draw.line((n / 2, n / 2, x, y), fill=3, width=9)
    draw.ellipse((18, 18, n - 19, n - 19), outline=3, width=4)
    draw.ellipse((n / 2 - 8, n / 2 - 8, n / 2 + 8, n / 2 + 8), fill=3)
    rim = linear(*[(130, 132, 136), (96, 98, 102), (60, 60, 64)][rng.integers(3)])
    lut = [(0, 0, 0), linear(30, 30, 31), linear(26, 26, 28), rim]
    return _body(
        np.asarray(image), lut, [0, warm, warm * 2.2, warm * 0.8], [0, *[CAR] * 3], 0.66, 0.66, rng
    )


def sign(rng, kind: str) -> Sprite:
    """A road sign: "stop", "limit", "blue", "warning" or "plate" (a street-name or advertising
    panel)."""
    n = 120
    wide = 0.75 if kind != "plate" else 1.3
    w = n if kind != "plate" else 200
    image = Image.new("L", (w, n))
    draw = ImageDraw.Draw(image)
    if kind == "stop":
        draw.regular_polygon((n / 2, n / 2, n / 2 - 1), 8, rotation=22.5, fill=2)
        draw.regular_polygon((n / 2, n / 2, n / 2 - 6), 8, rotation=22.5, fill=1)
        draw.text((n / 2, n / 2), "STOP", fill=2, font_size=34, anchor="mm", stroke_width=1)
    elif kind == "limit":
        draw.ellipse((1, 1, n - 2, n - 2), fill=1)
        draw.ellipse((15, 15, n - 16, n - 16), fill=2)
        draw.text(
            (n / 2, n / 2),
            str(rng.choice([20, 30, 40, 50])),
            fill=3,
            font_size=56,
            anchor="mm",
            stroke_width=1,
        )
    elif kind == "blue":
        draw.ellipse((1, 1, n - 2, n - 2), fill=4)
        draw.polygon(
            [(n / 2, 20), (90, 62), (70, 62), (70, 98), (50, 98), (50, 62), (30, 62)], fill=2
        )
    elif kind == "warning":
        draw.polygon([(n / 2, 4), (n - 2, n - 10), (1, n - 10)], fill=1)
        draw.polygon([(n / 2, 26), (n - 20, n - 20), (19, n - 20)], fill=2)
        draw.line((n / 2, 48, n / 2, 82), fill=3, width=9)
        draw.ellipse((n / 2 - 5, 87, n / 2 + 5, 97), fill=3)
    else:
        draw.rectangle((0, 8, w - 1, n - 8), fill=int(rng.choice([1, 4, 5])))
        for row in (36, 64, 86):
            draw.rectangle((16, row, int(rng.integers(90, 180)), row + 9), fill=2)
    lut = [
        (0, 0, 0),
        linear(168, 34, 38),
        linear(214, 214, 208),
        linear(36, 36, 36),
        linear(38, 76, 142),
        linear(36, 92, 66),
    ]
    return _body(np.asarray(image), lut, [0, -1, -1, -1, -1, -1], [0, *[SIGN] * 5], wide, 0.75, rng)


def traffic_light(rng, lit: int) -> Sprite:
    """A three-lens head; lit: 0 red, 1 amber, 2 green."""
    h, w = 150, 60
    image = Image.new("L", (w, h))
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((0, 0, w - 1, h - 1), 8, fill=1)
    for k in range(3):
        draw.ellipse((12, 9 + 46 * k, w - 13, 44 + 46 * k), fill=2 + k)
    lut = [
        (0, 0, 0),
        linear(30, 32, 32),
        linear(232, 44, 30),
        linear(236, 160, 30),
        linear(60, 226, 140),
    ]
    lut = [np.asarray(c) * (0.12 if k >= 2 and k - 2 != lit else 1) for k, c in enumerate(lut)]
    glow = [0, 0, *[2.5 if k == lit else 0 for k in range(3)]]
    warm = [0, 0.6, *[5.0 if k == lit else 1.0 for k in range(3)]]
    return _body(np.asarray(image), lut, warm, [0, *[LIGHT] * 4], 0.36, 0.9, rng, glow)


def railing(rng, high: float, kind: str) -> Sprite:
    """Two metres of "bars" (metal railings), "mesh" (chain link) or "picket" (painted boards with
    gaps)."""
    s = 64
    w, h = 2 * s, int(high * s)
    image = Image.new("L", (w, h))
    draw = ImageDraw.Draw(image)
    if kind == "mesh":
        for k in range(-h, w + h, 8):
            draw.line((k, 0, k + h, h), fill=1)
            draw.line((k, h, k + h, 0), fill=1)
    step, thick = {"bars": (8, 2), "mesh": (64, 4), "picket": (10, 6)}[kind]
    for x in range(0, w, step):
        draw.rectangle((x, 2, x + thick - 1, h), fill=1)
    for z in (4, h - 10):
        draw.rectangle((0, z, w, z + 3), fill=1)
    paint = {"bars": (40, 44, 44), "mesh": (110, 114, 112), "picket": (196, 192, 182)}[kind]
    return _body(
        np.asarray(image), [(0, 0, 0), linear(*paint)], [0, -0.8], [0, FENCE], 2.0, high, rng
    )
