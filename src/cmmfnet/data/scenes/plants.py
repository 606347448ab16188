"""Trees, bushes, hedges and palms for `scenes`: sprites that are grown leaf by leaf."""

import numpy as np
from PIL import Image, ImageDraw

from cmmfnet.data.scenes.sprites import VEGETATION, Sprite


def _branches(rng, h, w, ppm, trunk_top, spread, depth, thick):
    """Trunk and branches as an (h,w) bool mask; lengths in metres, ppm pixels per metre."""
    image = Image.new("L", (w, h))
    draw = ImageDraw.Draw(image)
    stack = [(w / 2, h, np.pi / 2 + rng.normal(0, 0.03), trunk_top * ppm, thick * ppm, depth)]
    while stack:
        x, y, angle, length, width, left = stack.pop()
        x1, y1 = x + np.cos(angle) * length, y - np.sin(angle) * length
        draw.line((x, y, x1, y1), fill=255, width=max(1, round(width)))
        if left:
            for k in range(3):
                turn = rng.normal(0, spread) + (k - 1) * spread * 0.9
                at = 1.0 if k == 1 else rng.uniform(0.55, 1.0)
                here = (x + (x1 - x) * at, y + (y1 - y) * at)
                bent = angle + turn
                bent += (np.pi / 2 - bent) * 0.12  # twigs grow towards the light
                stack.append(
                    (
                        *here,
                        bent,
                        length * rng.uniform(0.5, 0.78),
                        width * rng.uniform(0.45, 0.62),
                        left - 1,
                    )
                )
    return np.asarray(image) > 0


# shape of the crown: (centre height, half width, half height, lobes, lobe radius), as shares of the
# tree's height
_CROWNS = {
    "round": (0.62, 0.36, 0.36, 9, 0.52),
    "spread": (0.66, 0.48, 0.30, 12, 0.46),
    "tall": (0.56, 0.24, 0.42, 10, 0.55),
    "column": (0.53, 0.12, 0.46, 12, 0.62),
    "cone": (0.52, 0.23, 0.47, 26, 0.34),
    "bush": (0.46, 0.60, 0.48, 8, 0.55),
    "hedge": (0.50, 1.0, 0.52, 40, 0.35),
}


def tree(
    rng,
    shape: str,
    high: float,
    greens: np.ndarray,
    bark,
    sun,
    heat: float,
    base: float,
    bare=False,
) -> Sprite:
    """A tree `high` metres tall. greens (k,3) linear leaf colours; sun: unit vector (right, towards
    the viewer, up) or None.

    heat: kelvin that a leaf in full sun gains; base: kelvin above the air in the shade. bare:
        branches only.
    """
    middle, half_w, half_h, lobes, lobe_r = _CROWNS[shape]
    wide = 2.4 * half_w * high if shape != "hedge" else 3.0
    ppm = min(300 / high, 90)
    h, w = int(high * ppm), int(wide * ppm)
    size = np.array([wide * 0.4 if shape != "hedge" else wide * 0.56, wide * 0.35, half_h * high])
    centre = np.array([0, 0, middle * high])
    # lobes: the big bulges of the crown; leaves sit in clumps on them
    at = rng.normal(size=(lobes, 3))
    at /= np.linalg.norm(at, axis=1, keepdims=True)
    at *= rng.uniform(0.25, 0.75, (lobes, 1))
    if shape == "hedge":
        at = rng.uniform(-1, 1, (lobes, 3)) * [1, 0.4, 0.62]
    radius = rng.uniform(0.75, 1.15, lobes) * lobe_r
    if shape == "cone":
        at[:, 2] = rng.uniform(-0.95, 0.9, lobes)
        taper = (0.97 - at[:, 2]) / 2
        at[:, :2] *= (1.3 * taper)[:, None]
        radius *= 0.25 + taper
    clumps = 330 if shape != "column" else 260
    lobe = rng.integers(0, lobes, clumps)
    out = rng.normal(size=(clumps, 3))
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    clump = at[lobe] + out * radius[lobe, None] * rng.uniform(0.6, 1.0, (clumps, 1))
    leaves = 90
    reach = rng.uniform(0.06, 0.13, (clumps, 1, 1)) if shape != "hedge" else 0.12
    scatter = (
        rng.standard_normal((clumps, leaves, 3), np.float32)
        * np.array([1, 1, 0.8], np.float32)
        * reach
    )
    points = (clump[:, None] + scatter).reshape(-1, 3)
    facing = (out[:, None] * 0.55 + clump[:, None] * 0.5 + scatter * 3.0).reshape(-1, 3)
    facing += rng.standard_normal(facing.shape, np.float32) * 0.28
    facing /= np.sqrt(np.einsum("ij,ij->i", facing, facing))[:, None]
    points = points * size + centre
    tint = rng.integers(0, len(greens), clumps).repeat(leaves)
    bright = (rng.normal(1, 0.13, clumps)[:, None] * rng.normal(1, 0.16, (clumps, leaves))).ravel()
    order = np.argsort(points[:, 1])  # far to near
    points, facing, tint, bright = points[order], facing[order], tint[order], bright[order]
    shade = np.full(len(points), 0.5)
    if sun is not None:
        sun = np.asarray(sun)
        across = np.cross(sun, [0.0, 0.0, 1.0])
        across /= np.linalg.norm(across)
        shade = np.clip(0.35 + 0.75 * facing @ sun, 0.06, 1) * (
            0.12 + 0.88 * _reach(points, sun, across, high)
        )
    top = _reach(points, np.array([0, 0, 1.0]), np.array([1.0, 0, 0]), high * 1.6)
    ambient = (0.34 + 0.66 * top) * (0.66 + 0.34 * facing[:, 2])
    # splat: leaf-major order, so that a nearer leaf always covers a farther one
    grain = max(1, round(ppm * 0.03))
    dots = [
        (i, j)
        for i in range(-grain, grain + 1)
        for j in range(-grain, grain + 1)
        if i * i + j * j <= grain * grain * rng.choice([0.6, 1.2])
    ]
    dots = np.array(dots)
    row = (h - points[:, 2] * ppm).astype(int)[:, None] + dots[:, 0]
    column = (w / 2 + points[:, 0] * ppm).astype(int)[:, None] + dots[:, 1]
    ok = (row >= 0) & (row < h) & (column >= 0) & (column < w)
    index = np.full((h, w), -1)
    if not bare:
        which = np.broadcast_to(np.arange(len(points))[:, None], row.shape)
        index[row[ok], column[ok]] = which[ok]
    leafy = index >= 0
    colour = greens[tint[index]] * np.clip(bright[index], 0.5, 1.6)[..., None]
    wood = np.zeros((h, w), bool)
    if shape not in ("bush", "hedge"):
        clear = {"round": 0.34, "spread": 0.36, "tall": 0.28, "column": 0.2, "cone": 0.55}[
            shape
        ] * high
        wood = _branches(
            rng, h, w, ppm, clear, 0.36, 6 if bare else 3, high * rng.uniform(0.022, 0.034)
        )
    wooden = wood & ~leafy
    streak = rng.normal(1, 0.18, (1, w, 1)) * rng.normal(1, 0.08, (h, w, 1))
    colour[wooden] = (np.asarray(bark) * streak)[wooden]
    share = shade[index]
    share[wooden] = 0.35 if sun is not None else 0.5
    ambient = ambient[index]
    ambient[wooden] = 0.55
    kelvin = base + heat * share + rng.normal(0, 0.25, (h, w)) - 0.8 * ambient
    kelvin[wooden] += 0.6
    label = np.full((h, w), VEGETATION, np.uint8)
    return Sprite(
        w / ppm, h / ppm, colour, share, ambient, kelvin, np.zeros((h, w)), leafy | wooden, label
    )


def _reach(points, axis, across, scale):
    """Share of the light along `axis` that reaches each leaf: Beer's law behind the first leaf of
    its column."""
    third = np.cross(axis, across)
    i, j, t = points @ across, points @ third, points @ axis
    cell = scale * 0.035
    i, j = ((i - i.min()) / cell).astype(int), ((j - j.min()) / cell).astype(int)
    first = np.full((i.max() + 1, j.max() + 1), -np.inf)
    np.maximum.at(first, (i, j), t)
    return np.exp(-(first[i, j] - t) / (scale * 0.13))


def palm(rng, high: float, greens, bark, heat: float, base: float) -> Sprite:
    """A fan of drooping fronds on a bare trunk."""
    ppm = 260 / high
    wide = 0.42 * high
    h, w = 260, int(wide * ppm)
    part = Image.new("L", (w, h))
    draw = ImageDraw.Draw(part)
    crown = h * 0.2
    draw.line(
        (w / 2, h, w / 2 + rng.normal(0, 3), crown), fill=1, width=max(2, int(0.035 * high * ppm))
    )
    for k in range(34):
        angle = rng.uniform(-0.5, np.pi + 0.5)
        length = rng.uniform(0.32, 0.47) * w
        x, y, step = w / 2, crown, length / 9
        for _ in range(9):
            x1, y1 = x + np.cos(angle) * step, y - np.sin(angle) * step
            draw.line((x, y, x1, y1), fill=2 + k % 3, width=max(1, int(0.02 * high * ppm)))
            for side in (-1, 1):
                lean = angle + side * 1.9
                draw.line(
                    (x1, y1, x1 - np.cos(lean) * step * 0.9, y1 + np.sin(lean) * step * 0.9),
                    fill=2 + k % 3,
                )
            x, y = x1, y1
            angle -= 0.16 * np.sign(np.cos(angle) + 1e-3)
    part = np.asarray(part)
    lut = np.stack([np.zeros(3), bark, greens[0], greens[-1] * 1.25, greens[0] * 0.6])
    up = np.clip(1.3 - np.arange(h)[:, None] / (0.55 * h), 0.25, 1) * np.ones((1, w))
    share = np.where(part == 1, 0.5, 0.75 * up)
    return Sprite(
        wide, high, lut[part] * rng.normal(1, 0.12, (h, w, 1)), share, 0.3 + 0.6 * up,
        base + heat * share - 0.5,
        np.zeros((h, w)), part > 0, np.full((h, w), VEGETATION, np.uint8),
    )  # fmt: skip
