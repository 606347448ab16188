"""Walls and facades for `scenes`: brick, stone, render, and rows of recessed windows, doors and
shops."""

from dataclasses import dataclass

import numpy as np

from cmmfnet.data.scenes import models as m
from cmmfnet.data.scenes.shading import F, hash01, noises
from cmmfnet.data.scenes.sprites import linear


@dataclass
class Points:
    """All surface points of one material in a frame, as arrays over points; painters write into
    them."""

    u: np.ndarray
    v: np.ndarray
    foot: np.ndarray
    param: np.ndarray
    seed: np.ndarray
    colour: np.ndarray
    ray: np.ndarray | None  # unit view direction in the texture frame (u, v, outwards), for facades
    sun: np.ndarray | None  # the same for the sun
    slow: np.ndarray  # cloud-like noise, about 7 m
    fine: np.ndarray  # cloud-like noise, about 1 m
    grain: np.ndarray  # fine grain, about 0.6 m
    label: np.ndarray
    ambient: np.ndarray
    direct: np.ndarray
    mirror: np.ndarray
    kelvin: np.ndarray  # added
    emissivity: np.ndarray
    emit: np.ndarray
    night: bool


def _courses(p: Points, high: float, wide: float, joint: float, mortar, spread: float) -> None:
    """Bricks or stones laid in courses; the pattern fades into its mean before it becomes finer
    than a pixel."""
    row = np.floor(p.v / high)
    along = p.u / wide + (row % 2) * 0.5
    brick = np.floor(along)
    tone = hash01(brick, row, p.seed) - F(0.5)
    tint = hash01(row, brick, p.seed + 3) - F(0.5)
    sharp = np.clip(1.6 - p.foot / high * 1.6, 0, 1)
    line = ((p.v / high - row) < joint / high) | ((along - brick) < joint / wide)
    bed = np.where(line, sharp, 0) + (1 - sharp) * 1.6 * joint / high * 0.7
    p.colour *= (1 + spread * tone * np.clip(1.6 - p.foot / wide * 1.2, 0, 1))[:, None]
    p.colour[:, 0] *= 1 + 0.25 * spread * tint
    p.colour += (np.asarray(mortar, F) - p.colour) * bed[:, None]
    p.kelvin += 0.25 * tone * sharp - 0.2 * line * sharp


def paint_wall(p: Points, kind: np.ndarray) -> None:
    """Weathered render, brick, stone, panels or boards, by number."""
    soft, _ = noises()
    streak = soft(p.u, p.v * F(0.12), 5.0, p.foot)
    for number in np.unique(kind):
        s = np.flatnonzero(kind == number)
        q = _pick(p, s)
        if number == 1:
            _courses(q, 0.075, 0.225, 0.011, linear(158, 150, 138), 0.75)
        elif number == 2:
            _courses(q, 0.28, 0.55, 0.016, linear(126, 120, 108), 0.5)
        elif number == 3:
            joint = ((q.v % 1.5) < 0.025) | ((q.u % 3.0) < 0.025)
            q.colour *= (1 - 0.45 * joint * np.clip(1.5 - q.foot / 0.04, 0, 1))[:, None]
        elif number == 4:
            at = (q.v / 0.16) % 1
            q.colour *= (
                1 - (0.5 * (at < 0.14) + 0.12 * (1 - at)) * np.clip(1.6 - q.foot / 0.09, 0, 1)
            )[:, None]
        _put(p, s, q)
    p.colour *= np.clip(
        1 + 0.06 * p.slow + 0.05 * streak + 0.035 * p.fine + 0.025 * p.grain, 0.5, 1.4
    )[:, None]
    p.colour *= (1 - 0.28 * np.exp(-np.maximum(p.v, 0) / 0.35))[
        :, None
    ]  # splashed dirt at the foot
    p.ambient *= 1 - 0.3 * np.exp(-np.maximum(p.v, 0) / 0.8)
    p.kelvin += (
        0.2 * p.slow + 0.12 * streak + 0.1 * p.fine + 0.6 * np.exp(-np.maximum(p.v, 0) / 0.5)
    )


def _pick(p: Points, s: np.ndarray) -> Points:
    values = {k: (x[s] if isinstance(x, np.ndarray) else x) for k, x in vars(p).items()}
    return Points(**values)


def _put(p: Points, s: np.ndarray, q: Points) -> None:
    for k in ("colour", "label", "ambient", "direct", "mirror", "kelvin", "emissivity", "emit"):
        getattr(p, k)[s] = getattr(q, k)


def facade(p: Points) -> None:
    """A wall with rows of recessed windows, a door, sills, lintels, cornice, or a shop on the
    ground floor.

    param: width, height, storey, bay, window width, window height, sill, ground floor (0 windows, 1
        shop, 2 few windows, 3 none, 4 garage door), door bay, wall kind, frame colour, 1 for a
        dwelling.
    """
    wide, high, storey, bay, ww, wh, sill, ground, door_bay, kind, frame, home = p.param.T
    wall = p.colour.copy()
    paint_wall(p, kind.astype(int))
    column, floor = np.floor(p.u / bay), np.floor(p.v / storey)
    fu, fv = p.u - (column + F(0.5)) * bay, p.v - floor * storey
    fits = (
        (floor >= 0)
        & ((floor + 0.9) * storey <= high + 0.15)
        & (column >= 0)
        & ((column + 1) * bay <= wide + 0.01)
    )
    unit = hash01(column, floor, p.seed)
    is_door = fits & (floor == 0) & (column == door_bay) & (ground != 1)
    is_shop = fits & (floor == 0) & (ground == 1)
    garage = ground == 4
    opening = fits & (ground != 3) & ~(is_shop & (fv > 2.65)) & ((ground != 2) | (unit < 0.35))
    w = np.where(is_door & ~garage, F(1.02), np.where(is_shop, bay - F(0.35), ww))
    bottom = np.where(is_door, F(0.02), np.where(is_shop, F(0.45), sill))
    top = np.where(
        is_door,
        np.where(garage, F(2.1), F(2.12)),
        np.where(is_shop, F(2.55), np.minimum(sill + wh, storey - F(0.12))),
    )

    def within(a, b):
        return opening & (np.abs(a) < w / 2) & (b > bottom) & (b < top)

    # trims outside of the opening: sill, lintel, surround
    trim = np.where(frame == 0, F(0.62), F(0.3))[:, None] * np.array([1, 0.98, 0.94], F)
    hole = within(fu, fv)
    under = bottom - fv
    on_sill = (
        opening & ~is_door & ~is_shop & (under > 0) & (under < 0.09) & (np.abs(fu) < w / 2 + 0.06)
    )
    lintel = (
        opening
        & (fv > top)
        & (fv < top + 0.16)
        & (np.abs(fu) < w / 2 + 0.08)
        & (hash01(p.seed, 31) < 0.6)
    )
    band = (high > 4) & (np.abs(fv) < 0.07) & (floor > 0) & (hash01(p.seed, 37) < 0.35)
    p.colour[on_sill | lintel | band] = (0.55 * trim + 0.45 * wall * 1.25)[on_sill | lintel | band]
    p.direct[
        opening & (under > 0.09) & (under < 0.2) & (np.abs(fu) < w / 2 + 0.06) & ~is_shop & ~is_door
    ] *= 0.55
    p.ambient *= 1 - 0.45 * np.clip(1 - (high - p.v) / 0.55, 0, 1) * (home > 0)  # under the eaves
    p.kelvin += 0.5 * (on_sill | lintel) + np.where(fits & (fv < 0.14) & (floor > 0), 0.25, 0)
    sign = is_shop & (fv > 2.65) & (fv < 3.25) & (np.abs(p.u - wide / 2) < wide / 2 - 0.15)
    if sign.any():
        _fascia(p, sign, fv)
    # parallax: follow the view ray to the pane at the back of the recess
    deep = np.where(is_door, F(0.18), F(0.12))
    slope = deep / np.maximum(-p.ray[:, 2], F(0.08))
    bu, bv = fu + p.ray[:, 0] * slope, fv + p.ray[:, 1] * slope
    pane = hole & within(bu, bv)
    reveal = hole & ~pane
    p.ambient[reveal] *= 0.55
    p.direct[reveal] *= 0.3
    if p.sun is not None:
        reach = deep / np.maximum(p.sun[:, 2], F(0.05))
        p.direct[pane & ~within(bu + p.sun[:, 0] * reach, bv + p.sun[:, 1] * reach)] = 0
    s = np.flatnonzero(pane)
    q = _pick(p, s)
    _panes(
        q,
        bu[s],
        bv[s],
        w[s],
        bottom[s],
        top[s],
        unit[s],
        is_door[s],
        is_shop[s],
        garage[s],
        frame[s],
        column[s],
        floor[s],
    )
    _put(p, s, q)


def _fascia(p: Points, sign, fv) -> None:
    palette = np.stack(
        [
            linear(*c)
            for c in [
                (64, 30, 32),
                (30, 50, 66),
                (36, 60, 46),
                (44, 44, 46),
                (150, 120, 60),
                (190, 186, 176),
            ]
        ]
    )
    s = np.flatnonzero(sign)
    shop = p.seed[s]
    colour = palette[(hash01(shop, 41) * len(palette)).astype(int)]
    bright = colour.mean(1) < 0.2
    height = (fv[s] - 2.95) / 0.15
    letter = (hash01(np.floor(p.u[s] / 0.21), shop) < 0.8) & (np.abs(height) < 1)
    letter &= hash01(np.floor(p.u[s] / 0.07), np.floor(height * 2.5), shop) < 0.62
    letter &= np.abs(p.u[s] - p.param[s, 0] / 2) < p.param[s, 0] * 0.3
    colour = np.where(letter[:, None], np.where(bright[:, None], F(0.6), F(0.05)), colour * 0.9)
    p.colour[s], p.label[s], p.kelvin[s] = colour, m.SIGN, p.kelvin[s] * 0.3 + 0.6
    if p.night:
        p.emit[s] += colour * 0.5


def _panes(
    p: Points, u, v, w, bottom, top, unit, is_door, is_shop, garage, frame, column, floor
) -> None:
    """The back of a window recess: frame, glazing bars, glass with curtains behind it; or a
    door."""
    high = top - bottom
    edge = np.minimum(w / 2 - np.abs(u), np.minimum(v - bottom, top - v))
    style = hash01(p.seed, 51)
    bar = (np.abs(u) < 0.025) & (style < 0.75)
    bar |= (np.abs(v - (bottom + np.where(style < 0.4, F(0.5), F(0.68)) * high)) < 0.025) & (
        style < 0.85
    )
    bar |= (style > 0.85) & ((np.abs(u % 0.4 - 0.2) < 0.014) | (np.abs(v % 0.4 - 0.2) < 0.014))
    bar = np.where(is_shop, np.abs((u + w / 2) % 1.6) < 0.05, bar)
    framed = (edge < np.where(is_shop, 0.07, 0.055)) | bar
    frames = np.stack([linear(206, 206, 202), linear(46, 48, 50), linear(104, 72, 48)])
    p.kelvin[:] = 0
    p.label[:] = m.WINDOW
    # behind the glass: dark rooms, curtains at the sides, blinds from above
    inside = np.full((len(u), 3), 0.016, F) * (0.6 + 1.2 * unit)[:, None]
    cloth = linear(176, 168, 154) * (0.35 + 0.5 * hash01(column, floor, p.seed + 7))[:, None]
    drawn = (
        (np.abs(u) > w * (0.5 - 0.26 * hash01(column, floor, p.seed + 8)))
        & (unit < 0.75)
        & ~is_shop
    )
    blind = ((top - v) < high * (hash01(column, floor, p.seed + 9) - 0.45)) & ~is_shop
    fold = 0.85 + 0.15 * np.sin(u * 60)
    inside = np.where((drawn | blind)[:, None], cloth * (fold * 0.5)[:, None], inside)
    goods = is_shop & (v < bottom + high * (0.35 + 0.4 * hash01(np.floor(u / 0.5), p.seed + 5)))
    ware = np.stack(
        [hash01(np.floor(u / 0.23), np.floor(v / 0.3), p.seed + k) for k in (1, 2, 3)], 1
    )
    inside = np.where(goods[:, None], 0.03 + 0.09 * ware, inside)
    p.colour[:] = np.where(framed[:, None], frames[frame.astype(int)] * 0.9, inside)
    p.direct[~framed] *= 0.45
    p.ambient *= np.where(framed, 0.75, 0.6)
    p.mirror[:] = np.where(framed, 0.02, 0.10)
    p.emissivity[:] = np.where(framed, 0.93, 0.87)
    p.kelvin += np.where(framed, 0.8, -0.8) + 0.6 * (unit - 0.5)
    if p.night:
        home = unit < np.where(is_shop, 0.8, 0.33)
        warm = (
            np.array([1.0, 0.72, 0.42], F)
            * (0.25 + 0.5 * hash01(column, floor, p.seed + 12))[:, None]
        )
        glow = np.where(
            (drawn | blind)[:, None],
            warm * 0.55,
            warm * (0.5 + 0.5 * np.clip((v - bottom) / high, 0, 1))[:, None],
        )
        p.emit[:] = np.where((home & ~framed & ~is_door)[:, None], glow, 0)
        p.kelvin += np.where(home, 1.6, 0.6)
    s = np.flatnonzero(is_door)
    if not len(s):
        return
    doors = np.stack(
        [
            linear(*c)
            for c in [
                (46, 58, 82),
                (96, 36, 34),
                (44, 66, 52),
                (60, 60, 62),
                (198, 196, 190),
                (92, 62, 42),
            ]
        ]
    )
    colour = doors[(hash01(p.seed[s], 61) * len(doors)).astype(int)]
    x, z = u[s], v[s] - bottom[s]
    shed = garage[s]
    panel = np.where(
        shed, (z % 0.3) < 0.03, (np.abs(np.abs(x) - 0.22) < 0.16) & (np.abs(z % 0.95 - 0.5) < 0.36)
    )
    glazed = ~shed & (z > 1.45) & (z < 1.85) & (np.abs(x) < 0.3)
    jamb = ~shed & (edge[s] < 0.06)
    colour = colour * (np.where(panel, 0.78, 1.0) * (1 + 0.03 * p.fine[s]))[:, None]
    colour = np.where(
        jamb[:, None], linear(200, 200, 196), np.where(glazed[:, None], F(0.03), colour)
    )
    p.colour[s], p.label[s] = colour, m.DOOR
    p.mirror[s], p.emissivity[s] = np.where(glazed, 0.1, 0.03), 0.93
    p.kelvin[s] = 0.9 + 0.5 * panel - 0.8 * glazed
    p.emit[s] = np.where((glazed & p.night)[:, None], np.array([0.6, 0.42, 0.22], F), 0)
