"""Plots along the streets of `scenes`: town buildings, or houses with gardens, walls, fences and
hedges."""

import numpy as np

from cmmfnet.data.scenes import buildings, sprites
from cmmfnet.data.scenes import models as m
from cmmfnet.data.scenes.sprites import linear
from cmmfnet.data.scenes.world import Author

END = 210.0  # metres of street that are built


def fill_side(a: Author, style, side, edge, cross) -> list[tuple]:
    """Fill one side of the street; returns (side, y0, width, setback) of every house."""
    rng = a.rng
    y, houses = -14.0, []
    kinds = {
        "terrace": ["brick", "brick", "render", "stone"],
        "avenue": ["panel", "render", "stone", "brick", "panel"],
    }.get(style)
    town = rng.random() < 0.6
    while y < END - 20:
        if cross is not None and cross - 5.5 - 6 < y < cross + 5.5:
            y = cross + 5.5
        if style in ("terrace", "avenue"):
            wide = rng.uniform(5.5, 11) if style == "terrace" else rng.uniform(9, 24)
            if cross is not None and y < cross < y + wide + 5.5:
                wide = cross - 5.5 - y
            if rng.random() < 0.13:
                _wall(a, side, edge + 0.2, y, y + wide * 0.6, 2.0)
                for _ in range(3):
                    a.tree(side * (edge + rng.uniform(2, 8)), y + rng.uniform(0, wide * 0.6))
                y += wide * 0.6
                continue
            floors = int(rng.integers(2, 4) if style == "terrace" else rng.integers(2, 8))
            deep = rng.uniform(7, 11)
            mesh = buildings.building(
                a.climate,
                rng,
                wide,
                deep,
                floors,
                kinds,
                rng.random() < (0.4 if style == "terrace" else 0.7),
                style == "terrace" or rng.random() < 0.15,
            )
            set_back = 0.0 if style == "avenue" or town else 2.2
            _place(a, mesh, side, edge + set_back, y, wide, deep)
            if set_back:
                _wall(a, side, edge + 0.1, y, y + wide - 1.1, 0.8)
                if rng.random() < 0.7:
                    a.bush(side * (edge + 1.1), y + rng.uniform(0, wide), 0.8)
            y += wide + (rng.uniform(1, 5) if rng.random() < 0.2 else 0.0)
            continue
        if style == "green" and rng.random() < 0.72:
            long = rng.uniform(8, 20)
            if cross is not None and y < cross < y + long + 5.5:
                long = max(cross - 5.5 - y, 1.0)
            _border(a, side, edge, y, y + long)
            for _ in range(int(long / 3)):
                a.tree(side * (edge + rng.uniform(1.5, 14)), y + rng.uniform(0, long))
            y += long
            continue
        wide, gap = rng.uniform(6.5, 13), rng.uniform(2.5, 6)
        if cross is not None and y < cross < y + wide + 8:
            y = cross + 5.5
        set_back = rng.uniform(4.5, 8.5)
        mesh = buildings.house(a.climate, rng, wide, int(rng.choice([1, 2, 2])))
        _place(a, mesh, side, edge + set_back, y + gap, wide, 8.0)
        houses.append((side, y + gap, wide, set_back))
        _garden(a, side, edge, set_back, y, gap, wide)
        y += wide + gap
    return houses


def _place(a: Author, mesh, side, x, y, wide, deep) -> None:
    foot = (*sorted((side * x, side * (x + deep))), y, y + wide)
    if side > 0:
        a.fixed(mesh, x, y + wide, 0.1, -np.pi / 2, foot, 0.45)
    else:
        a.fixed(mesh, -x, y, 0.1, np.pi / 2, foot, 0.45)


def _wall(a: Author, side, x, y0, y1, high) -> None:
    rng = a.rng
    kind = int(rng.choice([0, 1, 1, 2]))
    colour = linear(*(buildings.BRICKS if kind == 1 else buildings.STONES)[rng.integers(3)])
    xa, xb = sorted((side * x, side * (x + 0.22)))
    a.ground.box(
        xa,
        xb,
        y0,
        y1,
        0.1,
        high,
        m.MASONRY,
        m.WALL,
        colour,
        "wall",
        "nesw",
        param=(kind,),
        seed=int(rng.integers(999)),
    )
    a.ground.box(
        xa - 0.04,
        xb + 0.04,
        y0,
        y1,
        high,
        high + 0.07,
        m.PLAIN,
        m.WALL,
        linear(150, 146, 138),
        "wall",
    )
    a.footprints.append((xa, xb, y0, y1, 0.4))


def _border(a: Author, side, edge, y0, y1) -> None:
    """The border of a garden and the pavement: hedge, wall, fence, railings or nothing."""
    rng = a.rng
    kind = str(
        rng.choice(
            ["hedge", "wall", "planks", "bars", "picket", "mesh", "open"],
            p=[0.3, 0.25, 0.1, 0.1, 0.1, 0.05, 0.1],
        )
    )
    x = side * (edge + 0.25)
    if kind == "hedge":
        for dx in (0.0, 0.45):
            a.panel(
                a.hedge,
                x + side * dx,
                y0 + dx,
                x + side * dx,
                y1 - dx,
                0.1,
                m.VEGETATION,
                repeat=True,
            )
        a.footprints.append((*sorted((x, x + side * 0.8)), y0, y1, 0.6))
    elif kind == "wall":
        _wall(a, side, edge + 0.1, y0, y1, rng.uniform(0.6, 1.2))
        if rng.random() < 0.4:
            for y in np.arange(y0 + 0.5, y1 - 0.5, 1.3):
                a.bush(x + side * 0.7, y, 0.85)
    elif kind == "planks":
        wood = linear(*rng.choice([(136, 104, 74), (112, 98, 82), (98, 70, 50)]))
        xa, xb = sorted((x, x + side * 0.06))
        a.ground.box(
            xa,
            xb,
            y0,
            y1,
            0.1,
            rng.uniform(1.0, 1.8),
            m.PLANKS,
            m.FENCE,
            wood,
            "wood",
            seed=int(rng.integers(999)),
        )
    elif kind in ("bars", "picket", "mesh"):
        s = a.sprite(sprites.railing(rng, rng.uniform(0.9, 1.3), kind))
        a.panel(s, x, y0, x, y1, 0.1, m.FENCE, repeat=True)


def _garden(a: Author, side, edge, back, y, gap, wide) -> None:
    rng = a.rng
    start, stop = y + 0.3, y + gap + wide
    drive = rng.uniform(2.6, 3.4)
    first = rng.random() < 0.5
    da, db = (start, start + drive) if first else (stop - drive, stop)
    stone = linear(*rng.choice([(150, 142, 130), (120, 118, 116), (150, 112, 92)]))
    xs = sorted((side * edge, side * (edge + back + (3 if first else 0))))
    m.flat(
        a.ground,
        *xs,
        da,
        db,
        0.11,
        m.PAVING,
        m.PAVEMENT,
        stone,
        "paving",
        param=(float(rng.choice([0, 0.3, 0.6])),),
        layer=2,
        seed=7,
    )
    if rng.random() < 0.5:
        a.car(side * (edge + back * 0.5), (da + db) / 2, -side * np.pi / 2 * rng.choice([-1, 1]))
    ga, gb = (db, stop) if first else (start, da)
    _border(a, side, edge, ga + 0.2, gb - 0.2)
    for _ in range(rng.integers(1, 5)):
        a.bush(side * (edge + back - rng.uniform(0.5, 1.2)), rng.uniform(ga + 0.5, gb - 0.5), 0.75)
    if rng.random() < 0.55:
        a.tree(
            side * (edge + rng.uniform(1.5, max(2, back - 2))),
            rng.uniform(ga, gb),
            rng.uniform(0.4, 0.7),
        )
    for _ in range(2):
        a.tree(
            side * (edge + back + rng.uniform(11, 18)),
            rng.uniform(start, stop),
            rng.uniform(0.8, 1.3),
        )
