"""Town buildings and houses for `scenes`. They front towards -y and are placed with
`Mesh.placed`."""

import numpy as np

from cmmfnet.data.scenes.models import (
    BUILDING,
    FACADE,
    MASONRY,
    PLAIN,
    ROOF,
    TILES,
    WALL_KINDS,
    Builder,
    flat,
)
from cmmfnet.data.scenes.raster import Mesh
from cmmfnet.data.scenes.sprites import linear

BRICKS = [(146, 92, 72), (128, 78, 62), (160, 124, 92), (176, 152, 116), (112, 72, 60)]


RENDERS = [
    (206, 200, 188),
    (218, 214, 206),
    (196, 184, 160),
    (178, 176, 172),
    (200, 176, 150),
    (158, 164, 168),
    (186, 160, 132),
]


STONES = [(158, 150, 134), (136, 130, 120), (172, 160, 136)]


PANELS = [(140, 140, 138), (112, 114, 116), (166, 158, 148), (124, 104, 92)]


BOARDS = [(198, 198, 192), (132, 146, 150), (156, 148, 126), (110, 122, 112), (172, 164, 150)]


ROOFS = [(84, 84, 88), (104, 92, 86), (128, 84, 66), (70, 72, 78), (146, 100, 78), (112, 106, 100)]


def _wall_look(rng, kinds):
    kind = kinds[rng.integers(len(kinds))]
    palette = {
        "brick": BRICKS,
        "render": RENDERS,
        "stone": STONES,
        "panel": PANELS,
        "boards": BOARDS,
    }[kind]
    colour = (
        linear(*palette[rng.integers(len(palette))])
        * rng.uniform(0.82, 1.08)
        * rng.normal(1, 0.03, 3)
    )
    return WALL_KINDS[kind], colour


def _pitched(b, rng, x0, x1, y0, y1, eaves, rise, along, wall, colour, seed, over=0.35):
    """A gabled roof over a rectangle, ridge along "x" or "y", with gable walls, barge boards and
    gutters."""
    tile, white = (
        linear(*ROOFS[rng.integers(len(ROOFS))]) * rng.uniform(0.85, 1.1),
        linear(200, 200, 196),
    )
    high = eaves + rise
    blank = (x1 - x0, high, 2.7, 3, 1, 1, 1, 3, -1, wall, 0, 0)

    def put(
        points, *rest, **more
    ):  # drawn for a ridge along x; the other way round it is mirrored about the diagonal
        if along == "y":
            points = [(x0 + (q - y0), y0 + (p - x0), z) for p, q, z in points]
            points = [points[k] for k in ((1, 0, 2) if len(points) == 3 else (1, 0, 3, 2))]
        b.quad(points, *rest, **more)

    wide, deep = (x1 - x0, y1 - y0) if along == "x" else (y1 - y0, x1 - x0)
    xa, xb, ya, yb = x0, x0 + wide, y0, y0 + deep
    mid = (ya + yb) / 2
    drop = rise / (deep / 2) * over
    args = (TILES, ROOF, tile, "roof")
    front = [
        (xa - over, ya - over, eaves - drop),
        (xb + over, ya - over, eaves - drop),
        (xb + over, mid, high),
        (xa - over, mid, high),
    ]
    back = [
        (xb + over, yb + over, eaves - drop),
        (xa - over, yb + over, eaves - drop),
        (xa - over, mid, high),
        (xb + over, mid, high),
    ]
    put(front, *args, seed=seed)
    put(back, *args, seed=seed)
    put(
        [(xa, yb, eaves), (xa, ya, eaves), (xa, mid, high)],
        FACADE,
        BUILDING,
        colour,
        "wall",
        param=blank,
        seed=seed,
    )
    put(
        [(xb, ya, eaves), (xb, yb, eaves), (xb, mid, high)],
        FACADE,
        BUILDING,
        colour,
        "wall",
        param=blank,
        seed=seed,
    )
    t = 0.18
    for x, s in ((xa - over, 1), (xb + over, -1)):
        for y, z in ((ya - over, eaves - drop), (yb + over, eaves - drop)):
            edge = [(x, y, z - t), (x, mid, high - t), (x, mid, high), (x, y, z)]
            put(edge if (s < 0) == (y < mid) else edge[::-1], PLAIN, ROOF, white, "wall", seed=seed)
    y, z = ya - over, eaves - drop
    put(
        [
            (xa - over, y, z - 0.13),
            (xb + over, y, z - 0.13),
            (xb + over, y, z + 0.02),
            (xa - over, y, z + 0.02),
        ],
        PLAIN,
        ROOF,
        white,
        "wall",
    )
    put(
        [
            (xa - over, ya, z - 0.05),
            (xb + over, ya, z - 0.05),
            (xb + over, y, z - 0.13),
            (xa - over, y, z - 0.13),
        ],
        PLAIN,
        ROOF,
        white * 0.7,
        "wall",
    )


def building(
    climate, rng, width: float, depth: float, floors: int, kinds, shop: bool, pitched: bool
) -> Mesh:
    """A town building, front along x from 0 to width at y = 0."""
    b = Builder(climate)
    seed = int(rng.integers(1 << 30))
    wall, colour = _wall_look(rng, kinds)
    floor = rng.uniform(2.7, 3.4)
    high = floors * floor + rng.uniform(0.3, 0.9)
    bays = max(2, round(width / rng.uniform(1.9, 3.3)))
    bay = width / bays
    big = wall == WALL_KINDS["panel"]
    win_w = bay * (rng.uniform(0.6, 0.85) if big else rng.uniform(0.34, 0.52))
    win_h = floor * (rng.uniform(0.5, 0.62) if big else rng.uniform(0.46, 0.6))
    frame = float(rng.choice([0, 0, 0, 1, 2]))
    param = (
        width,
        high,
        floor,
        bay,
        win_w,
        win_h,
        floor * 0.27,
        float(shop),
        float(rng.integers(bays)),
        wall,
        frame,
        0,
    )
    end = (depth, high, floor, depth / 3, win_w, win_h, floor * 0.27, 2.0, -1, wall, frame, 0)
    b.quad(
        [(0, 0, 0), (width, 0, 0), (width, 0, high), (0, 0, high)],
        FACADE,
        BUILDING,
        colour,
        "wall",
        param=param,
        seed=seed,
    )
    b.quad(
        [(width, 0, 0), (width, depth, 0), (width, depth, high), (width, 0, high)],
        FACADE,
        BUILDING,
        colour,
        "wall",
        param=end,
        seed=seed + 1,
    )
    b.quad(
        [(0, depth, 0), (0, 0, 0), (0, 0, high), (0, depth, high)],
        FACADE,
        BUILDING,
        colour,
        "wall",
        param=end,
        seed=seed + 2,
    )
    b.quad(
        [(width, depth, 0), (0, depth, 0), (0, depth, high), (width, depth, high)],
        PLAIN,
        BUILDING,
        colour,
        "wall",
        seed=seed,
    )
    if pitched:
        _pitched(
            b,
            rng,
            0,
            width,
            0,
            depth,
            high,
            rng.uniform(0.5, 0.85) * depth / 2,
            "x",
            wall,
            colour,
            seed,
            over=0.25,
        )
        for x in (0.15, width - 0.85) if rng.random() < 0.7 else ():
            _chimney(b, rng, x, depth / 2 - 0.45, high + 0.15 * depth, high + 0.5 * depth)
    else:
        flat(b, 0, width, 0, depth, high - 0.02, PLAIN, ROOF, linear(120, 118, 114), "roof")
        trim = colour * 0.5 + 0.25 if rng.random() < 0.6 else colour * 0.7
        out = rng.uniform(0.1, 0.35)
        b.box(
            -0.05,
            width + 0.05,
            -out,
            0.1,
            high - 0.3,
            high + 0.12,
            PLAIN,
            BUILDING,
            trim,
            "wall",
            "sew t",
        )
        if rng.random() < 0.5:
            x = rng.uniform(0.2, 0.6) * width
            b.box(
                x,
                x + 2.5,
                depth * 0.4,
                depth * 0.7,
                high,
                high + 1.8,
                PLAIN,
                BUILDING,
                linear(130, 130, 128),
                "wall",
            )
    return b.mesh()


def _chimney(b, rng, x, y, z0, z1):
    b.box(
        x,
        x + 0.7,
        y,
        y + 0.9,
        z0,
        z1,
        MASONRY,
        BUILDING,
        linear(*BRICKS[rng.integers(len(BRICKS))]),
        "wall",
        "nesw",
        add=0.5,
    )
    flat(
        b,
        x - 0.06,
        x + 0.76,
        y - 0.06,
        y + 0.96,
        z1,
        PLAIN,
        BUILDING,
        linear(120, 116, 110),
        "wall",
    )
    b.box(
        x + 0.22,
        x + 0.48,
        y + 0.3,
        y + 0.56,
        z1,
        z1 + 0.35,
        PLAIN,
        ROOF,
        linear(150, 92, 70),
        "wall",
        add=rng.uniform(0, 6),
    )


def house(climate, rng, width: float, storeys: int) -> Mesh:
    """A detached house, front along x from 0 to width at y = 0; perhaps with a front gable, porch,
    garage, chimney."""
    b = Builder(climate)
    seed = int(rng.integers(1 << 30))
    wall, colour = _wall_look(rng, ["render", "render", "brick", "brick", "boards", "stone"])
    floor = rng.uniform(2.5, 2.75)
    eaves, depth = storeys * floor, rng.uniform(7, 9)
    bays = max(2, round(width / rng.uniform(2.8, 3.6)))
    win_w, win_h = rng.uniform(1.2, 1.9), rng.uniform(1.1, 1.35)
    frame = float(rng.choice([0, 0, 0, 1, 2]))
    door = float(rng.integers(bays))

    def face(p, q, name, door_bay=-1.0, bay=None, kind=0.0):
        length = float(np.hypot(q[0] - p[0], q[1] - p[1]))
        bay = length / max(1, round(length / (bay or width / bays)))
        param = (
            length,
            eaves,
            floor,
            bay,
            min(win_w, 0.6 * bay),
            win_h,
            0.85,
            kind,
            door_bay,
            wall,
            frame,
            1,
        )
        corners = [(*p, 0), (*q, 0), (*q, eaves), (*p, eaves)]
        b.quad(corners, FACADE, BUILDING, colour, "wall", param=param, seed=seed + name)

    face((0, 0), (width, 0), 0, door)
    face((width, 0), (width, depth), 1, bay=4.0)
    face((0, depth), (0, 0), 2, bay=4.0)
    face((width, depth), (0, depth), 3)
    rise = rng.uniform(0.55, 0.9) * depth / 2
    along = "x" if width > 7.5 or rng.random() < 0.6 else "y"
    if along == "y":
        rise = rng.uniform(0.55, 0.8) * width / 2
    _pitched(b, rng, 0, width, 0, depth, eaves, rise, along, wall, colour, seed)
    if along == "x" and width > 9 and rng.random() < 0.6:  # a wing with its gable to the street
        wing = rng.uniform(3.2, 4.4)
        x = 0.0 if door >= bays / 2 else width - wing
        face((x, -1.3), (x + wing, -1.3), 4, bay=wing)
        face((x + wing, -1.3), (x + wing, 0), 5, kind=3.0)
        face((x, 0), (x, -1.3), 6, kind=3.0)
        _pitched(
            b,
            rng,
            x,
            x + wing,
            -1.3,
            depth / 2,
            eaves,
            min(rise, 0.75 * wing / 2),
            "y",
            wall,
            colour,
            seed,
        )
    if rng.random() < 0.6:
        x = (door + 0.5) * width / bays
        tile = linear(*ROOFS[rng.integers(len(ROOFS))])
        b.quad(
            [(x - 1, -1.1, 2.3), (x + 1, -1.1, 2.3), (x + 1, 0, 2.75), (x - 1, 0, 2.75)],
            TILES,
            ROOF,
            tile,
            "roof",
            seed=seed,
        )
        b.quad(
            [(x - 1, -1.1, 2.16), (x + 1, -1.1, 2.16), (x + 1, -1.1, 2.3), (x - 1, -1.1, 2.3)],
            PLAIN,
            ROOF,
            linear(205, 205, 200),
            "wall",
        )
        for post in (x - 0.95, x + 0.85):
            b.box(
                post,
                post + 0.1,
                -1.05,
                -0.95,
                0,
                2.2,
                PLAIN,
                BUILDING,
                linear(205, 205, 200),
                "wall",
                "sew",
            )
    if rng.random() < 0.45:
        side = -3.1 if rng.random() < 0.5 else width + 0.1
        param = (3.0, 2.5, 2.5, 3.0, 2.4, 2.0, 0.0, 4.0, 0, wall, frame, 1)
        b.quad(
            [(side, 0.6, 0), (side + 3, 0.6, 0), (side + 3, 0.6, 2.5), (side, 0.6, 2.5)],
            FACADE,
            BUILDING,
            colour,
            "wall",
            param=param,
            seed=seed,
        )
        b.box(
            side,
            side + 3,
            0.6,
            6,
            0,
            2.5,
            FACADE,
            BUILDING,
            colour,
            "wall",
            "enw",
            param=(3, 2.5, 3, 3, 1, 1, 1, 3, -1, wall, 0, 0),
        )
        _pitched(b, rng, side, side + 3, 0.6, 6, 2.5, 1.1, "y", wall, colour, seed, over=0.15)
    if rng.random() < 0.7:
        x = rng.choice([0.4, width / 2, width - 1.1])
        _chimney(
            b,
            rng,
            x,
            depth / 2 - 0.9,
            eaves + (rise * 0.55 if along == "x" else 0.3),
            eaves + rise + 0.9,
        )
    return b.mesh()
