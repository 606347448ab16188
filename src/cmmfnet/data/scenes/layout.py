"""The world of a seed for `scenes`, and the ground plan of streets. The camera looks along a
street, or across it in scenes of kind "house"."""

from functools import lru_cache

import numpy as np

from cmmfnet.data.scenes import models as m
from cmmfnet.data.scenes import sprites
from cmmfnet.data.scenes.park import park
from cmmfnet.data.scenes.plots import END, fill_side
from cmmfnet.data.scenes.sprites import linear
from cmmfnet.data.scenes.weather import make_climate, make_light
from cmmfnet.data.scenes.world import Author, Card, World


def street(a: Author, kind: str, heading: float) -> World:
    """A straight street along y. kind "street" looks along it, "house" across it at one house."""
    rng = a.rng
    style = (
        "suburb"
        if kind == "house"
        else str(rng.choice(["terrace", "avenue", "suburb", "green"], p=[0.32, 0.26, 0.27, 0.15]))
    )
    half = rng.uniform(3.0, 4.2) if style in ("terrace", "suburb") else rng.uniform(4.0, 6.5)
    path = rng.uniform(1.6, 2.6) if style != "avenue" else rng.uniform(2.5, 4.0)
    verge = rng.uniform(0.8, 2.0) if style in ("suburb", "green") and rng.random() < 0.6 else 0.0
    cross = rng.uniform(24, 60) if kind == "street" and rng.random() < 0.55 else None
    parked = kind == "street" and rng.random() < (0.75 if style in ("terrace", "avenue") else 0.3)
    if parked:
        half = max(half, rng.uniform(4.4, 5.2))
    _ground(a, style, half, verge, path, cross)
    drive = 1 if rng.random() < 0.5 else -1  # the side of the road on which one drives
    edge = half + verge + path
    houses = []
    for side in (-1, 1):
        houses += fill_side(a, style, side, edge, cross)
    lane = drive * (half - 2.1 * parked) / 2
    if kind == "street":
        _roadside(a, style, half, verge, path, cross, drive, kind, parked)
        speed = float(rng.uniform(1.5, 7.0))
        _traffic(a, half, lane, cross, speed)
        start = (lane * rng.uniform(0.3, 1.15), 0.0, rng.uniform(1.25, 2.1))
        yaw = np.deg2rad(rng.normal(0, 3.5))
        return a.finish(
            kind,
            start,
            yaw,
            np.deg2rad(rng.uniform(-3, 4)),
            rng.uniform(0.75, 1.1),
            (0.0, speed),
            45.0,
        )
    side = 1 if np.sin(heading) < 0 else -1  # yaw -90 degrees looks to +x
    fronts = [h for h in houses if h[0] == side and 25 < h[1] < 80]
    x, y = side * (edge + fronts[0][3]), fronts[0][1] + fronts[0][2] / 2
    # as far back as the pavement opposite
    room = (fronts[0][3] + edge + half + verge + 0.6 * path) / abs(np.sin(heading))
    away = min(rng.uniform(11, 16) + 0.25 * fronts[0][2], room)
    back = np.array([-np.sin(heading), np.cos(heading)]) * away
    start = (x - back[0], y - back[1], rng.uniform(1.5, 1.9))
    velocity = (0.0, float(rng.choice([-1, 1]) * rng.uniform(0.3, 0.9)))
    a.view = (np.array(start[:2]), np.array([x, y]))
    _roadside(a, style, half, verge, path, cross, drive, kind, parked)
    a.cards[:] = [c for c in a.cards if not a.hides(*c.at[:2], 2.5)]
    a.movers[:] = [c for c in a.movers if not a.hides(*c.start, 4.0)]
    return a.finish(
        kind, start, heading, np.deg2rad(rng.uniform(1, 6)), rng.uniform(0.72, 0.9), velocity, 4.0
    )


def _ground(a: Author, style, half, verge, path, cross) -> None:
    rng, g = a.rng, a.ground
    tar = linear(*rng.choice([(104, 104, 106), (122, 120, 118), (92, 94, 98), (112, 108, 102)]))
    slab = linear(*rng.choice([(158, 154, 146), (146, 144, 140), (166, 154, 138)]))
    green = linear(*rng.choice([(96, 112, 62), (108, 118, 70), (88, 106, 56), (122, 120, 78)]))
    earth = linear(134, 118, 96)
    field = (
        (m.GRASS, m.GRASS_ID, green, "grass")
        if rng.random() < 0.8
        else (m.DIRT, m.TERRAIN, earth, "dirt")
    )
    m.flat(g, -300, 300, -60, 500, -0.02, *field, seed=1)
    lane = half if half < 4.5 else half * 2 / 3
    m.flat(
        g,
        -half,
        half,
        -30,
        420,
        0,
        m.ASPHALT,
        m.ROAD,
        tar,
        "road",
        param=(half, lane),
        seed=int(rng.integers(99)),
        layer=1,
    )
    gap = 4.0
    spans = [(-30.0, END)] if cross is None else [(-30.0, cross - gap), (cross + gap, END)]
    if cross is not None:
        m.flat(
            g,
            -90,
            90,
            cross - gap,
            cross + gap,
            0,
            m.ASPHALT,
            m.ROAD,
            tar,
            "road",
            param=(0, 9999),
            layer=0.5,
        )
    flags = rng.uniform(0.45, 0.9) if rng.random() < 0.7 else 0.0
    if style in ("suburb", "green"):
        yard = field
    else:
        yard = (m.PAVING, m.PAVEMENT, slab * 0.85, "paving")
    z = 0.11
    for y0, y1 in spans:
        for s in (-1, 1):

            def strip(xa, xb, *rest, s=s, y0=y0, y1=y1, **more):
                m.flat(g, *sorted((s * xa, s * xb)), y0, y1, z, *rest, **more)

            strip(
                half,
                half + 0.16,
                m.PAVING,
                m.PAVEMENT,
                slab * 1.12,
                "paving",
                param=(0.9,),
                layer=2,
            )
            kerb = [(s * half, y1, 0), (s * half, y0, 0), (s * half, y0, z), (s * half, y1, z)]
            g.quad(
                kerb if s > 0 else [kerb[k] for k in (1, 0, 3, 2)],
                m.PLAIN,
                m.PAVEMENT,
                slab * 0.8,
                "paving",
            )
            m.flat(
                g,
                *sorted((s * (half - 0.28), s * half)),
                y0,
                y1,
                0,
                m.DIRT,
                m.ROAD,
                tar * 0.72,
                "road",
                layer=1.5,
            )
            if verge:
                strip(half + 0.16, half + verge, m.GRASS, m.GRASS_ID, green, "grass", layer=1)
            strip(
                half + max(verge, 0.16),
                half + verge + path,
                m.PAVING,
                m.PAVEMENT,
                slab,
                "paving",
                param=(flags,),
                seed=4,
                layer=1,
            )
            strip(half + verge + path, 60, *yard, seed=2)
            if cross is not None:
                for y, t in ((y1, 1), (y0, -1)):
                    if abs(y - cross) > 5:
                        continue
                    face = [(60, y, 0), (half, y, 0), (half, y, z), (60, y, z)]
                    face = [(s * p, q, r) for p, q, r in face]
                    g.quad(
                        face if s * t > 0 else [face[k] for k in (1, 0, 3, 2)],
                        m.PLAIN,
                        m.PAVEMENT,
                        slab * 0.8,
                        "paving",
                    )
    _markings(a, half, cross, gap)


def _markings(a: Author, half, cross, gap) -> None:
    rng, g = a.rng, a.ground
    white, yellow = linear(206, 206, 202), linear(198, 160, 72)

    def line(x, y0, y1, wide=0.12, colour=white):
        m.flat(g, x - wide / 2, x + wide / 2, y0, y1, 0, m.MARKING, m.ROAD, colour, "road", layer=3)

    clear = [] if cross is None else [(cross - gap - 5, cross + gap + 2)]
    american = rng.random() < 0.35
    centres = [0.0] if half < 4.5 else [-half / 3, half / 3]
    for x in centres if rng.random() < 0.88 else []:
        if american:
            y1 = END if not clear else clear[0][0]
            for dx in (-0.1, 0.1):
                line(x + dx, -30, y1, 0.1, yellow)
                if clear:
                    line(x + dx, clear[0][1], END, 0.1, yellow)
            continue
        for y in np.arange(-24, END, 6.0):
            if not any(p < y + 3 and y < q for p, q in clear):
                line(x, y, y + 2.6)
    if rng.random() < 0.45:
        for x in (half - 0.5, 0.5 - half):
            for p, q in [(-30, END)] if not clear else [(-30, clear[0][0] + 3), (clear[0][1], END)]:
                line(x, p, q, 0.1, yellow if rng.random() < 0.5 and not american else white)
    if cross is not None:
        stop = cross - gap - 3.6
        line(0, stop - 0.2, stop + 0.2, 1.9 * half, white)
        if rng.random() < 0.7:
            for x in np.arange(-half + 0.4, half - 0.3, 1.0):
                line(x + 0.25, cross - gap - 3.0, cross - gap - 0.6, 0.5)


def _roadside(a: Author, style, half, verge, path, cross, drive, kind, parked) -> None:
    rng = a.rng
    step = rng.uniform(22, 32)
    for k, y in enumerate(np.arange(rng.uniform(5, 14), END, step)):
        s = 1 if k % 2 else -1
        if cross is None or abs(y - cross) > 6:
            a.lamp(s * (half + 0.45), y, -s * 1.4)
    if (style == "avenue" and rng.random() < 0.65) or (verge and rng.random() < 0.6):
        kind_of = a.trees[rng.integers(len(a.trees))]
        pitch = rng.uniform(8, 15)
        for s in (-1, 1):
            for y in np.arange(rng.uniform(6, 14), END, pitch):
                if cross is None or abs(y - cross) > 7:
                    a.tree(
                        s * (half + max(verge * 0.5, 0.9)),
                        y + rng.normal(0, 0.5),
                        rng.uniform(0.6, 0.85),
                        kind_of if rng.random() < 0.8 else None,
                    )
    for _ in range(rng.integers(1, 4)):
        y = rng.uniform(9, 60)
        a.sign(
            drive * (half + 0.5), y, str(rng.choice(["stop", "limit", "blue", "warning", "plate"]))
        )
    if cross is not None and rng.random() < 0.7:
        lit = int(rng.choice([0, 0, 1, 2]))
        for s in (-1, 1):
            a.traffic_light(s * (half + 0.4), cross - 7.8, lit)
            a.traffic_light(s * (half + 0.4), cross + 5.0, lit)
    walk = half + verge + path * 0.55
    count = int(rng.integers(0, 3) if style in ("suburb", "green") else rng.integers(1, 6))
    ahead = (8, 45) if kind == "street" else (25, 75)
    a.people(
        count,
        lambda: (rng.choice([-1, 1]) * walk + rng.normal(0, 0.3), rng.uniform(*ahead)),
        lambda: (0.0, float(rng.choice([-1, 1]) * rng.uniform(1.0, 1.5))),
    )
    if rng.random() < 0.25:
        s = rng.choice([-1, 1])
        y = rng.uniform(8, 20)
        b = a.sprite(sprites.bicycle(rng))
        a.panel(b, s * (half + 0.6), y, s * (half + 0.75), y + 1.75, 0.11, m.BICYCLE)
    for s in (-1, 1) if parked else ():
        y = rng.uniform(7, 18)
        while y < 120:
            if cross is None or abs(y - cross) > 13:
                a.car(s * (half - 1.05), y, 0.0 if (s == drive) or rng.random() < 0.2 else np.pi)
            y += rng.uniform(5.4, 7) if rng.random() < 0.7 else rng.uniform(8, 22)


def _traffic(a: Author, half, lane, cross, speed) -> None:
    rng = a.rng
    y = rng.uniform(11, 28)
    for _ in range(rng.integers(0, 3)):  # no slower than the camera, which follows them
        a.car(lane + rng.normal(0, 0.15), y, rng.normal(0, 0.02), speed + rng.uniform(0, 1.5))
        y += rng.uniform(8, 25)
    y = rng.uniform(14, 35)
    for _ in range(rng.integers(0, 4)):
        a.car(-lane + rng.normal(0, 0.15), y, np.pi + rng.normal(0, 0.02), -rng.uniform(3, 8))
        y += rng.uniform(9, 30)
    if rng.random() < 0.4:
        kind = str(rng.choice(["bus", "truck"]))
        s = rng.choice([-1, 1])
        a.big(
            kind,
            s * abs(lane) * 1.05,
            y + rng.uniform(6, 16),
            0.0 if s * lane > 0 else np.pi,
            (1 if s * lane > 0 else -1) * rng.uniform(3, 6),
        )
    if cross is not None and rng.random() < 0.4:
        a.car(rng.uniform(-3, 12), cross - 1.8, -np.pi / 2, 0.0, running=True)
    if rng.random() < 0.3:
        s = a.sprite(sprites.person(rng, 0.6, int(rng.integers(999)), a.climate.air, rider=True))
        t = a.sprite(sprites.person(rng, 3.7, int(a.rng.integers(999)), a.climate.air, rider=True))
        at = (np.sign(lane) * (half - 1.6 - 1.0 * (half > 4)), rng.uniform(8, 18), 0.0)
        a.cards.append(Card(at, (s, t), 1.0, velocity=(0.0, 4.0), contact=0.4))


@lru_cache(maxsize=3)
def build(seed: int, kind: str, lighting: str) -> World:
    """The world of a seed. Cached, because the frames of a video share it."""
    rng = np.random.default_rng([seed, 20250305])
    heading = {"street": 0.0, "house": -np.pi / 2 * rng.choice([-1, 1]), "park": 0.0}[kind]
    if kind == "house":
        heading += np.deg2rad(rng.uniform(-22, 22))
    snow = rng.random() < 0.05
    light = make_light(rng, lighting, heading, snow)
    author = Author(rng, light, make_climate(rng, light), heading)
    return (park if kind == "park" else street)(author, kind, heading)
