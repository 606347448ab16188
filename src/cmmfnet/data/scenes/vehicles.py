"""Cars, buses and trucks for `scenes`. They drive towards +y and are placed with `Mesh.placed`."""

from itertools import pairwise

import numpy as np

from cmmfnet.data.scenes.models import BUS, CAR, GLOWING, PAINT, PLAIN, SPRITE, TRUCK, Builder
from cmmfnet.data.scenes.raster import Mesh
from cmmfnet.data.scenes.sprites import linear

CAR_PAINTS = [
    (202, 204, 204), (150, 154, 158), (60, 63, 68), (26, 27, 30), (92, 96, 102), (126, 28, 30),
    (40, 58, 92),
    (30, 40, 62), (186, 182, 168), (70, 92, 84), (116, 122, 128), (150, 98, 48), (86, 108, 136),
]  # fmt: skip


# length, half width; heights of sill, belt, roof, bonnet, boot; where along the length: rear glass
# foot and top, windscreen top and foot
_CAR_SHAPES = {
    "saloon": (4.5, 0.88, 0.24, 0.93, 1.44, 0.78, 0.93, 0.62, 1.25, 2.65, 3.35),
    "hatch": (4.0, 0.86, 0.24, 0.94, 1.48, 0.82, 1.0, 0.12, 0.55, 2.35, 3.05),
    "estate": (4.6, 0.89, 0.24, 0.95, 1.49, 0.80, 1.0, 0.12, 0.45, 2.75, 3.45),
    "suv": (4.5, 0.93, 0.34, 1.08, 1.72, 1.0, 1.1, 0.1, 0.4, 2.6, 3.25),
    "van": (5.0, 0.98, 0.30, 1.15, 2.1, 1.15, 1.15, 0.02, 0.1, 3.5, 4.25),
}


def car(climate, rng, wheel: int, running: bool, lights: bool) -> Mesh:
    """A car of one of five shapes, centred on the origin. wheel: sprite id; running: warm bonnet
    and exhaust."""
    shape = ["saloon", "hatch", "hatch", "estate", "suv", "suv", "van"][rng.integers(7)]
    long, half, sill, belt, roof, bonnet, boot, glass0, roof0, roof1, glass1 = _CAR_SHAPES[shape]
    b = Builder(climate)
    paint = linear(*CAR_PAINTS[rng.integers(len(CAR_PAINTS))]) * rng.uniform(0.8, 1.1)
    engine = rng.uniform(5, 12) if running else rng.uniform(0, 1.5)
    low = 0.55 * sill + 0.45 * belt  # the widest line

    def plan(y, scale):  # half width at y: the ends are rounded
        return scale * half * (1 - 0.16 * abs(2 * y / long - 1) ** 7)

    def crest(y):  # upper edge of the body side
        if y > glass1:
            return belt + (bonnet - belt) * ((y - glass1) / (long - glass1)) ** 1.4
        return belt if y > glass0 else belt + (boot - belt)

    ys = np.unique([0, 0.12, 0.5, glass0, 1.3, 2.2, 3.0, glass1, long - 0.45, long - 0.1, long])
    side = dict(gloss=0.06, layer=0)
    seam = (0, 0, 0, 0, 0, 1.0)
    for sign in (-1, 1):
        for y0, y1 in pairwise(ys):
            rims = [(sill, 0.95), (low, 1.0), (None, 0.94)]
            for (za, sa), (zb, sb) in pairwise(rims):
                top0, top1 = (crest(y0), crest(y1)) if zb is None else (zb, zb)
                corners = [
                    (sign * plan(y0, sa), y0, za),
                    (sign * plan(y1, sa), y1, za),
                    (sign * plan(y1, sb), y1, top1),
                    (sign * plan(y0, sb), y0, top0),
                ]
                # the texture frame starts at the rear sill, so that u is metres along the car on
                # every patch
                corners = corners if sign > 0 else [corners[k] for k in (1, 0, 3, 2)]
                warm = engine * 0.4 if y0 >= glass1 - 0.3 else 0
                b.quad(corners, PAINT, CAR, paint, "metal", param=seam, add=warm, **side)
        window = [
            (sign * plan(glass0, 0.93), glass0 + 0.12, belt),
            (sign * plan(glass1, 0.93), glass1 - 0.05, belt),
        ]
        window += [
            (sign * 0.76 * half, roof1, roof - 0.06),
            (sign * 0.76 * half, roof0 + 0.1, roof - 0.06),
        ]
        spacing = 1.05 if shape != "van" else 5.0
        glazing = (
            0.05,
            roof - belt - 0.09,
            spacing,
            0.07,
            0.12,
            1.0,
            2.2 if shape == "van" and rng.random() < 0.6 else 0,
        )
        window = window if sign > 0 else [window[k] for k in (1, 0, 3, 2)]
        b.quad(window, PAINT, CAR, paint, "metal", param=glazing, gloss=0.06)
        for y in (0.16 * long + 0.1, 0.81 * long):
            x = sign * (half * 0.985)
            r = 0.33 if shape not in ("suv", "van") else 0.37
            tyre = [(x, y - r, 0), (x, y + r, 0), (x, y + r, 2 * r), (x, y - r, 2 * r)]
            tyre = tyre if sign > 0 else [tyre[k] for k in (1, 0, 3, 2)]
            b.quad(tyre, SPRITE, CAR, paint, "rubber", param=(2 * r, 2 * r), sprite=wheel)
            arch = [
                (x * 0.995, y - r * 1.16, sill),
                (x * 0.995, y + r * 1.16, sill),
                (x * 0.995, y + r * 0.8, 2.2 * r),
                (x * 0.995, y - r * 0.8, 2.2 * r),
            ]
            arch = arch if sign > 0 else [arch[k] for k in (1, 0, 3, 2)]
            b.quad(arch, PLAIN, CAR, linear(20, 20, 20), "rubber", layer=-0.5)
            inner = sign * (half - 0.24)
            b.box(
                min(x, inner),
                max(x, inner),
                y - r * 0.8,
                y + r * 0.8,
                0.02,
                r * 1.5,
                PLAIN,
                CAR,
                linear(24, 24, 24),
                "rubber",
                "ns",
                add=1.5 + engine * 0.3,
            )
    ridge = 0.05
    for y0, y1 in [(glass1, long - 0.45), (long - 0.45, long - 0.02)] + (
        [(0.02, glass0)] if glass0 > 0.3 else []
    ):
        for sign in (-1, 1):
            corners = [
                (0, y0, crest(y0) + ridge),
                (sign * plan(y0, 0.94), y0, crest(y0)),
                (sign * plan(y1, 0.94), y1, crest(y1)),
                (0, y1, crest(y1) + ridge * 0.6),
            ]
            corners = corners if sign > 0 else corners[::-1]
            b.quad(
                corners, PAINT, CAR, paint, "metal", gloss=0.06, add=engine if y0 >= glass1 else 0
            )
    glass = (0.06, 9, 99, 0.03, 0.07, 1.0)
    b.quad(
        [
            (half * 0.93, glass1, belt),
            (-half * 0.93, glass1, belt),
            (-half * 0.75, roof1, roof - 0.03),
            (half * 0.75, roof1, roof - 0.03),
        ],
        PAINT,
        CAR,
        paint,
        "metal",
        param=glass,
        gloss=0.06,
    )
    rear = (0.06, 9, 99, 0.03, 0.1, 1.0) if shape != "van" else (0.3, 0.8, 99, 0.03, 0.15, 1.0)
    b.quad(
        [
            (-half * 0.93, glass0, boot),
            (half * 0.93, glass0, boot),
            (half * 0.75, roof0, roof - 0.03),
            (-half * 0.75, roof0, roof - 0.03),
        ],
        PAINT,
        CAR,
        paint,
        "metal",
        param=rear,
        gloss=0.06,
    )
    for y0, y1, z0, z1 in (
        (roof0, (roof0 + roof1) / 2, roof - 0.03, roof),
        ((roof0 + roof1) / 2, roof1, roof, roof - 0.03),
    ):
        for sign in (-1, 1):
            corners = [
                (0, y0, z0 + 0.04),
                (sign * half * 0.77, y0, z0 - 0.03),
                (sign * half * 0.77, y1, z1 - 0.03),
                (0, y1, z1 + 0.04),
            ]
            b.quad(corners if sign > 0 else corners[::-1], PAINT, CAR, paint, "metal", gloss=0.06)
    dark, red = linear(30, 30, 32), linear(150, 26, 22)
    plate = linear(*[(186, 186, 180), (184, 168, 104)][rng.integers(2)])
    tall = rng.uniform(0.14, 0.26)
    for y, s, top in ((0.0, -1, boot), (long, 1, bonnet)):
        w0, w1 = plan(y, 0.95), plan(y, 0.94)

        def strip(xa, xb, za, zb, *rest, y=y, s=s, layer=0, out=0.0, **more):
            corners = [
                (xa, y + s * out, za),
                (xb, y + s * out, za),
                (xb, y + s * out, zb),
                (xa, y + s * out, zb),
            ]
            b.quad(
                corners if s < 0 else [corners[k] for k in (1, 0, 3, 2)], *rest, layer=layer, **more
            )

        warm = engine * 0.7 if s > 0 else 0
        strip(-w0, w0, sill, low, PAINT, CAR, paint * 0.8, "metal", gloss=0.05, add=warm)
        strip(-w1, w1, low, top, PAINT, CAR, paint, "metal", gloss=0.06, add=warm)
        strip(
            -w0 * 0.96, w0 * 0.96, sill, sill + 0.12, PLAIN, CAR, dark, "rubber", out=0.01, layer=1
        )
        # bumper, number plate, grille, lamps
        strip(
            -w0 * 0.97,
            w0 * 0.97,
            sill + 0.12,
            low - 0.06,
            PAINT,
            CAR,
            paint * 0.72,
            "metal",
            out=0.02,
            layer=1,
            gloss=0.05,
            add=warm,
        )
        strip(
            -0.24,
            0.24,
            low - 0.02,
            low + 0.08,
            PLAIN,
            CAR,
            plate if s < 0 else linear(190, 190, 184),
            "metal",
            out=0.021,
            layer=2,
        )
        if s > 0:
            strip(
                -0.5 * half,
                0.5 * half,
                low + 0.1,
                top - 0.06,
                PLAIN,
                CAR,
                dark,
                "rubber",
                out=0.011,
                layer=1,
                add=engine,
            )
        for e in (-1, 1):
            xa, xb = sorted((e * w1 * (0.62 if s > 0 or tall < 0.2 else 0.74), e * w1 * 0.985))
            z = (top - 0.22, top - 0.08) if s > 0 else (top - 0.05 - tall, top - 0.05)
            lamp = linear(186, 190, 192) if s > 0 else red
            glow = (4.0 if s > 0 else 1.2) if lights else 0.0
            strip(
                xa, xb, *z, GLOWING, CAR, lamp, "metal", out=0.013, layer=3, param=(glow,), add=1.0
            )
        if s < 0 and running:
            strip(
                0.35,
                0.5,
                0.2,
                0.3,
                PLAIN,
                CAR,
                dark,
                "rubber",
                out=0.014,
                layer=3,
                add=rng.uniform(10, 28),
            )
    b.box(
        -half * 0.8,
        half * 0.8,
        0.2,
        long - 0.2,
        0.16,
        sill + 0.05,
        PLAIN,
        CAR,
        linear(18, 18, 18),
        "rubber",
        "nesw",
        add=engine * 0.5,
    )
    return b.mesh().placed(0, -long / 2)


def big_vehicle(climate, rng, kind: str, wheel: int, running: bool, lights: bool) -> Mesh:
    """A "bus" or a "truck" (a box body behind a cab), centred on the origin."""
    b = Builder(climate)
    label = BUS if kind == "bus" else TRUCK
    long, half, high = (
        (11.0, 1.25, rng.choice([3.0, 4.2]))
        if kind == "bus"
        else (rng.uniform(6.5, 8.5), 1.2, rng.uniform(3.0, 3.6))
    )
    paints = [(148, 40, 38), (60, 88, 120), (196, 196, 190), (70, 110, 86), (190, 150, 60)]
    paint = linear(*paints[rng.integers(len(paints))]) * 0.9
    body = (
        paint
        if kind == "bus" or rng.random() < 0.4
        else linear(*rng.choice([(200, 200, 196), (150, 152, 150)]))
    )
    front = long if kind == "bus" else long - 1.9
    glazing = (0.75, 1.75, 1.5, 0.12, 0.3, 1.0) if kind == "bus" else (0, 0, 0, 0, 0, 0)
    warm = 5.0 if running else 0.5
    b.box(
        -half,
        half,
        0,
        front,
        0.4,
        min(high, 3.0),
        PAINT,
        label,
        body,
        "metal",
        "ew",
        param=glazing,
        gloss=0.05,
    )
    if high > 4:
        b.box(
            -half,
            half,
            0,
            front,
            3.0,
            high,
            PAINT,
            label,
            body,
            "metal",
            "ew",
            param=(0.1, 0.95, 1.5, 0.12, 0.3, 1.0),
            gloss=0.05,
        )
    b.box(-half, half, 0, front, 0.4, high, PAINT, label, body, "metal", "t", gloss=0.05)
    tail = (0.9, 1.7, 99, 0.1, 0.2, 1.0) if kind == "bus" else (0, 0, 1.2, 0, 0, 1.0)
    b.box(
        -half,
        half,
        0,
        front,
        0.4,
        high,
        PAINT,
        label,
        body,
        "metal",
        "s",
        param=tail,
        gloss=0.05,
        add=warm * (0.6 if kind == "bus" else 0),
    )
    screen = (0.8, 2.0, 99, 0.08, 0.12, 1.0)
    if kind == "bus":
        b.box(
            -half,
            half,
            0,
            front,
            0.4,
            high,
            PAINT,
            label,
            body,
            "metal",
            "n",
            param=screen,
            gloss=0.05,
        )
    else:
        b.box(-half, half, 0, front, 0.4, high, PAINT, label, body, "metal", "n", gloss=0.05)
        b.box(
            -half * 0.95,
            half * 0.95,
            front + 0.1,
            long,
            0.4,
            2.5,
            PAINT,
            label,
            paint,
            "metal",
            "new t",
            param=screen,
            gloss=0.05,
            add=warm * 0.5,
        )
    for e in (-1, 1):
        xa, xb = sorted((e * half * 0.7, e * half * 0.95))
        rear = [(xa, -0.01, 0.8), (xb, -0.01, 0.8), (xb, -0.01, 1.05), (xa, -0.01, 1.05)]
        b.quad(
            rear,
            GLOWING,
            label,
            linear(200, 24, 20),
            "metal",
            param=(0.9 if lights else 0.02,),
            layer=2,
        )
        lamp = [
            (xb, long + 0.01, 0.6),
            (xa, long + 0.01, 0.6),
            (xa, long + 0.01, 0.8),
            (xb, long + 0.01, 0.8),
        ]
        b.quad(
            lamp,
            GLOWING,
            label,
            linear(214, 216, 214),
            "metal",
            param=(4.0 if lights else 0.0,),
            layer=2,
        )
        for y in (0.2 * long, 0.82 * long):
            x = e * half * 1.005
            tyre = [(x, y - 0.48, 0), (x, y + 0.48, 0), (x, y + 0.48, 0.96), (x, y - 0.48, 0.96)]
            tyre = tyre if e > 0 else [tyre[k] for k in (1, 0, 3, 2)]
            b.quad(tyre, SPRITE, label, paint, "rubber", param=(0.96, 0.96), sprite=wheel)
    b.box(
        -half * 0.9,
        half * 0.9,
        0.3,
        long - 0.3,
        0.15,
        0.45,
        PLAIN,
        label,
        linear(18, 18, 18),
        "rubber",
        "nesw",
        add=warm,
    )
    return b.mesh().placed(0, -long / 2)
