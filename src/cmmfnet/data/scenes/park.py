"""The ground plan of parks for `scenes`."""

from itertools import pairwise

import numpy as np

from cmmfnet.data.scenes import buildings, sprites
from cmmfnet.data.scenes import models as m
from cmmfnet.data.scenes.sprites import linear
from cmmfnet.data.scenes.world import Author, World


def park(a: Author, kind: str, heading: float) -> World:
    """Lawns with a winding path, trees, perhaps a pond, benches and walkers."""
    rng, g = a.rng, a.ground
    green = linear(*rng.choice([(96, 116, 58), (106, 120, 66), (86, 108, 54), (118, 122, 76)]))
    m.flat(g, -300, 300, -60, 500, 0, m.GRASS, m.GRASS_ID, green, "grass", seed=1)
    sandy = rng.random() < 0.4
    surface = (
        (m.DIRT, m.TERRAIN, linear(164, 144, 112), "dirt")
        if sandy
        else (m.ASPHALT, m.PAVEMENT, linear(122, 120, 118), "paving")
    )
    bend, wave, wide = rng.uniform(1, 9), rng.uniform(0.03, 0.09), rng.uniform(1.0, 2.2)
    shift = rng.uniform(0, 6.3)

    def middle(y):
        return (
            bend * (np.sin(wave * y + shift) - np.sin(shift))
            - wide * 0.4
            + 0.02 * y * np.cos(shift)
        )

    ys = np.arange(-12, 150, 3.0)
    for y0, y1 in pairwise(ys):
        for extra, layer, what in (
            (0.18, 1, (m.DIRT, m.TERRAIN, linear(112, 98, 76), "dirt")),
            (0.0, 2, surface),
        ):
            corners = [
                (middle(y0) - wide - extra, y0, 0),
                (middle(y0) + wide + extra, y0, 0),
                (middle(y1) + wide + extra, y1, 0),
                (middle(y1) - wide - extra, y1, 0),
            ]
            # u along x for all pieces, so that the texture runs through
            g.quad(
                corners, *what, param=(0, 9999), layer=layer, origin=(0.0, 0.0, 0.0), casts=False
            )
    pond = None
    if rng.random() < 0.5:
        s = rng.choice([-1, 1])
        py, rx, ry = rng.uniform(16, 32), rng.uniform(7, 15), rng.uniform(6, 11)
        px = middle(py) + s * (rx + wide + rng.uniform(1.5, 4))
        pond = (px, py, rx, ry)
        t = np.linspace(0, 2 * np.pi, 25)
        lobes = 1 + 0.1 * np.sin(3 * t + shift) + 0.06 * np.sin(5 * t)
        for scale, layer, what in (
            (1.0, 4, (m.WATER, m.WATER_ID, linear(46, 54, 46), "water")),
            (1.06, 3, (m.DIRT, m.TERRAIN, linear(104, 94, 74), "dirt")),
        ):
            x, y = px + scale * rx * np.cos(t) * lobes, py + scale * ry * np.sin(t) * lobes
            for k in range(0, 24, 2):
                corners = [
                    (px, py, 0),
                    (x[k], y[k], 0),
                    (x[k + 1], y[k + 1], 0),
                    (x[(k + 2) % 24], y[(k + 2) % 24], 0),
                ]
                g.quad(corners, *what, layer=layer, origin=(0.0, 0.0, 0.0), casts=False)

    def free(x, y, margin=1.5):
        on_path = abs(x - middle(y)) < wide + margin
        in_pond = (
            pond is not None
            and ((x - pond[0]) / (pond[2] + 1.5)) ** 2 + ((y - pond[1]) / (pond[3] + 1.5)) ** 2
            < 1.1
        )
        in_pond = in_pond or (
            pond is not None and y < pond[1] and abs(x - pond[0]) < pond[2] * 0.8 and y > 4
        )
        return not on_path and not in_pond

    for _ in range(int(rng.integers(16, 34))):
        x, y = rng.uniform(-34, 34), rng.uniform(13, 85)
        if free(x, y):
            a.tree(x, y, rng.uniform(0.7, 1.3))
    for x in np.arange(-75, 76, rng.uniform(3.5, 7)):
        a.tree(x + rng.normal(0, 2), rng.uniform(80, 115), rng.uniform(0.9, 1.5))
        a.bush(x + rng.normal(0, 2), rng.uniform(70, 90), 2.5)
    for _ in range(int(rng.integers(4, 22))):
        x, y = rng.uniform(-20, 20), rng.uniform(6, 50)
        if free(x, y, 0.8):
            a.bush(x, y, rng.uniform(0.6, 1.3))
    if rng.random() < 0.35:
        s = rng.choice([-1, 1])
        what = str(rng.choice(["bars", "picket", "hedge"]))
        panel = a.hedge if what == "hedge" else a.sprite(sprites.railing(rng, 1.1, what))
        x = s * rng.uniform(6, 12)
        if free(x, 20) and free(x, 30):
            a.panel(
                panel, x, 6, x, 60, 0, m.VEGETATION if what == "hedge" else m.FENCE, repeat=True
            )
    if rng.random() < 0.45:  # a building behind the trees
        wide_b = rng.uniform(14, 34)
        mesh = buildings.building(
            a.climate,
            rng,
            wide_b,
            12,
            int(rng.integers(2, 6)),
            ["brick", "stone", "panel", "render"],
            False,
            rng.random() < 0.5,
        )
        a.fixed(mesh, rng.uniform(-40, 10), rng.uniform(60, 95), 0)
    s = rng.choice([-1, 1])
    for y in (
        np.arange(rng.uniform(9, 24), 80, rng.uniform(14, 24))
        if rng.random() < 0.7 or a.dark
        else ()
    ):
        a.lamp(middle(y) + s * (wide + 0.7), y, -s * 0.6)
    for _ in range(rng.integers(0, 4)):
        y = rng.uniform(7, 30)
        s = rng.choice([-1, 1])
        x = middle(y) + s * (wide + 0.7)
        if pond is None or ((x - pond[0]) / pond[2]) ** 2 + ((y - pond[1]) / pond[3]) ** 2 > 1.2:
            a.fixed(
                m.bench(a.climate, rng),
                x,
                y,
                0,
                -s * np.pi / 2,
                (x - 0.4, x + 0.4, y - 0.9, y + 0.9),
                0.4,
            )
    # walkers follow the path only for a few metres, so a straight line will do
    for _ in range(int(rng.integers(0, 5))):
        y = rng.uniform(7, 35)
        slope = (middle(y + 1) - middle(y - 1)) / 2
        v = rng.choice([-1, 1]) * rng.uniform(0.9, 1.5)
        a.people(
            1,
            lambda y=y: (middle(y) + rng.uniform(-0.7, 0.7) * wide, y),
            lambda v=v, slope=slope: (float(v * slope), float(v)),
        )
    # on the path, or on the lawn next to it
    off = rng.normal(0, 0.5) if rng.random() < 0.5 else rng.choice([-1, 1]) * rng.uniform(1.5, 5)
    if not (free(off, 2, 0) or abs(off) < wide):
        off = 0.0
    start = (middle(0.0) + off, 0.0, rng.uniform(1.45, 1.85))
    yaw = np.deg2rad(rng.normal(0, 9)) - np.arctan((middle(18.0) - off) / 24)
    slope = (middle(4.0) - middle(0.0)) / 4
    speed = rng.uniform(0.7, 1.4)
    return a.finish(
        kind,
        start,
        yaw,
        np.deg2rad(rng.uniform(-5, 2)),
        rng.uniform(0.75, 1.05),
        (float(speed * slope), float(speed)),
        12.0,
    )
