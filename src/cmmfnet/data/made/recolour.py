"""Recoloured photos: the same thermal frame with another true colour, and the words for that
colour.

A network that is trained with one colour for each frame learns that colour and ignores the words.
So in a part of the labelled pictures a region is painted over (grass becomes snow, a car red, day
night) and gets words for it, while the thermal frame stays the same. Then only the words tell the
colour. Shading and fine texture stay: a region is shifted in CIELAB towards the colour, with
lightness as a power law about the region's median, so that black stays black.

Every result is a function of the picture, its label map and a random generator. Arrays: photo
(H,W,3) uint8 sRGB, label (H,W) uint8 (ids of text.labels.CLASSES).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cmmfnet.data.made.lab import LEAST, to_lab, to_rgb
from cmmfnet.text.colour_words import (
    BLUE_SKY,
    CAR_COLOURS,
    LAWN,
    MASONRY,
    OVERCAST,
    PAINT,
    SNOW,
    SOIL,
    WALL_COLOURS,
    draw_colour,
    draw_foliage,
    near,
)
from cmmfnet.text.labels import CLAIMS, CLASSES, COCOSTUFF

_PAINTED = {
    "car": PAINT, "truck": PAINT, "bus": PAINT, "door": PAINT, "building": MASONRY, "wall": MASONRY,
    "roof": MASONRY,
}  # fmt: skip
_NAMES = {
    "car": "car", "truck": "truck", "bus": "bus", "door": "door-stuff",
    "building": "building-other",
    "wall": "wall-concrete", "roof": "roof",
}  # fmt: skip


@dataclass
class Recoloured:
    """A result of :func:`recolour`.

    Attributes:
        photo: (H,W,3) uint8 sRGB.
        given_tags: names of the repainted things. The thermal frame does not show the change, so
            training always gives these names as text.
        colours: (colour or "bare", name).
        removed: names that are no longer true.
    """

    photo: np.ndarray
    given_tags: list[str] = field(default_factory=list)
    colours: list[tuple[str, str]] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


def region(label: np.ndarray, *classes: str) -> np.ndarray:
    """(H,W) bool: where the label map has one of these classes."""
    return np.isin(label, [CLASSES.index(name) for name in classes])


def soft(mask: np.ndarray, sigma: float = 0.8) -> np.ndarray:
    """The mask with an edge as soft as a photo's: (H,W) float32 in [0,1]."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(mask.astype(np.float32), sigma, mode="nearest")


def shift(
    lab: np.ndarray, median: np.ndarray, target: Sequence[float], *, contrast: float, variety: float
) -> np.ndarray:
    """Lab (N,3) of a region with this median -> the same with the median at ``target``.

    Lightness L' = L_target (L / L_median)^contrast: shading stays multiplicative. Colour goes with
    the lightness, so that shadows are not more colourful than the light, and keeps ``variety`` of
    its own variation.
    """
    lightness = target[0] * (np.maximum(lab[:, 0], 1) / max(float(median[0]), 4.0)) ** contrast
    lightness = np.where(
        lightness > 90, 90 + 10 * np.tanh((lightness - 90) / 10), lightness
    )  # no hard white
    fade = (np.clip(lightness / target[0], 0, 1) ** 0.7)[:, None]
    colour = np.array(target[1:], np.float32) * fade + variety * (lab[:, 1:] - median[1:])
    return np.concatenate([lightness[:, None], colour], axis=1)


def paint(
    photo: np.ndarray,
    weight: np.ndarray,
    target: Sequence[float],
    *,
    contrast: float = 0.8,
    variety: float = 0.3,
    lift: float = 100.0,
) -> np.ndarray:
    """Move the colour of a region towards ``target`` (CIELAB). weight (H,W) in [0,1]: how far, at
    every pixel.

    ``lift``: the largest increase of the median lightness; a small one is for things that are dark
    because they lie in the shade.
    """
    inside = weight > 0.02
    lab = to_lab(photo[inside][None])[0]
    full = weight[inside] > 0.9
    median = np.median(lab[full] if full.any() else lab, axis=0)
    # a far lighter colour would blow the noise and the highlights of a dark surface up
    contrast = contrast / max(1.0, float(target[0]) / max(float(median[0]), 4.0) / 1.6)
    share = min(1.0, (median[0] + lift) / target[0])
    new = to_rgb(shift(lab, median, np.array(target) * share, contrast=contrast, variety=variety))
    out = photo.copy()
    mix = weight[inside][:, None]
    out[inside] = (photo[inside] * (1 - mix) + new * mix).round().astype(np.uint8)
    return out


def painted_surface(photo: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Weight of a vehicle's or wall's paint in its region: not its glass, tyres and gaps, which are
    dark, nor highlights."""
    weight = soft(mask)
    inside = weight > 0.02
    lab = to_lab(photo[inside][None])[0]
    lightness, chroma = lab[:, 0], np.hypot(lab[:, 1], lab[:, 2])
    median = np.median(lightness[weight[inside] > 0.5]) if (weight[inside] > 0.5).any() else 50.0
    dark = np.clip((lightness - 0.30 * median) / (0.30 * median + 1), 0, 1)
    if median < 25:  # a black car: the dark parts are its paint
        dark = np.ones_like(dark)
    glare = np.clip((lightness - 93) / 5, 0, 1) * (chroma < 8) * (median < 80)
    weight[inside] *= dark * (1 - glare)
    return weight


def foliage(photo: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Weight of leaves in a region of plants: not the sky between them."""
    weight = soft(mask)
    inside = weight > 0.02
    lab = to_lab(photo[inside][None])[0]
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    hole = np.clip((lab[:, 0] - 62) / 12, 0, 1) * np.clip((16 - chroma) / 8, 0, 1)
    blue = np.clip((-lab[:, 2] - 6) / 6, 0, 1) * np.clip((lab[:, 0] - 50) / 12, 0, 1)
    weight[inside] *= 1 - np.maximum(hole, blue)
    return weight


def snow(photo: np.ndarray, mask: np.ndarray, target: Sequence[float] = SNOW) -> np.ndarray:
    """Snow on a region: bright, a little blue in the shade. The fine relief of the ground stays;
    of how light its large parts are, which is paint and shade, a fifth does."""
    from scipy.ndimage import gaussian_filter

    weight = soft(mask)
    inside = weight > 0.02
    lab = to_lab(photo[inside][None])[0]
    level = np.zeros(mask.shape, np.float32)
    level[inside] = lab[:, 0]
    sigma = min(mask.shape) / 20
    shares = gaussian_filter(inside.astype(np.float32), sigma)
    near = (gaussian_filter(level, sigma) / np.maximum(shares, 1e-3))[inside]
    broad = np.clip(near - np.median(lab[:, 0]), -30, 30)
    fine = np.clip(lab[:, 0] - near, -35, 25)
    lightness = target[0] - 1 + 0.2 * broad + 0.75 * fine
    lightness = np.where(lightness > 94, 94 + 6 * np.tanh((lightness - 94) / 6), lightness)
    shade = np.clip(-(0.4 * broad + fine) / 30, 0, 1)
    new = np.stack([lightness, target[1] + 0 * shade, target[2] - 6 * shade], axis=1)
    out, mix = photo.copy(), weight[inside][:, None]
    out[inside] = (photo[inside] * (1 - mix) + to_rgb(new) * mix).round().astype(np.uint8)
    return out


def sky(photo: np.ndarray, mask: np.ndarray, target: Sequence[float], texture: float) -> np.ndarray:
    """Another sky: clouds kept by ``texture`` (0 = none), paler towards the horizon."""
    weight = soft(mask, 0.7)
    inside = weight > 0.02
    lab = to_lab(photo[inside][None])[0]
    median = np.median(lab, axis=0)
    rows = np.nonzero(inside)[0]
    low = np.clip((rows - rows.min()) / max(1, rows.max() - rows.min()), 0, 1)
    lightness = (
        target[0] + texture * (lab[:, 0] - median[0]) + 12 * (low - 0.5) * (94 - target[0]) / 26
    )
    pale = 1.25 - 0.6 * low
    new = np.stack([lightness, target[1] * pale, target[2] * pale], axis=1)
    # branches and wires that the label map counts as sky stay
    thin = np.clip((median[0] - lab[:, 0] - 22) / 12, 0, 1)
    out, mix = photo.copy(), (weight[inside] * (1 - thin))[:, None]
    out[inside] = (photo[inside] * (1 - mix) + to_rgb(new) * mix).round().astype(np.uint8)
    return out


# Light falls to this, linear, in R, G, B; the first number is the sky's own share on top of it. The
# night photos at hand have a mean lightness of 9 (MSRS) to 31 (RoadScene, with its levels
# stretched).
_FALL = {"dusk": (0.30, (0.36, 0.30, 0.31)), "night": (0.25, (0.265, 0.232, 0.226))}


def nightfall(
    photo: np.ndarray, label: np.ndarray, lighting: str, rng: np.random.Generator
) -> np.ndarray:
    """Dusk or night of a day picture: linear light reduced and tinted, the sky more so; at night
    some windows are lit, and lamps (traffic lights) stay."""
    sky_share, tint = _FALL[lighting]
    linear = (photo.astype(np.float32) / 255) ** 2.2
    grey = linear.mean(axis=2, keepdims=True)
    # little light has little colour, and no sharp shadows: highlights fall more
    dim = (0.55 * linear + 0.45 * grey) if lighting == "night" else linear
    dim = (
        dim
        / (1 + 0.8 * grey)
        * np.array(tint, np.float32)
        * (rng.uniform(0.7, 1.9) if lighting == "night" else rng.uniform(0.6, 1.5))
    )
    dim = dim * (1 + rng.normal(0, 0.08, 3).astype(np.float32))
    up = soft(region(label, "sky"), 1.5)[..., None]
    rows = np.linspace(0, 1, photo.shape[0], dtype=np.float32)[:, None, None]
    if lighting == "dusk":
        glow = np.array([0.42, 0.26, 0.17], np.float32) * rows + np.array(
            [0.13, 0.17, 0.26], np.float32
        ) * (1 - rows)
        above = sky_share * (grey + 0.5) * glow * 2.0
    else:
        above = sky_share * np.array([0.020, 0.022, 0.032], np.float32) * (0.5 + 0.5 * grey + rows)
    dim = dim * (1 - up) + above * up
    if lighting == "night":
        dim += _lit_windows(linear, label, rng)
        keep = soft(region(label, "traffic light"), 0.5)[..., None]
        dim = dim * (1 - keep) + linear * keep
    return ((dim.clip(0, 1) ** (1 / 2.2)) * 255).round().astype(np.uint8)


def _lit_windows(linear: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    from scipy.ndimage import find_objects
    from scipy.ndimage import label as connected

    parts, count = connected(region(label, "window"))
    light = np.zeros(label.shape, np.float32)
    for number, box in enumerate(find_objects(parts), start=1):
        if count <= 60 and rng.random() < 0.3:
            light[box][parts[box] == number] = rng.uniform(0.15, 0.6)
    texture = 0.4 + linear.mean(axis=2)
    return (
        soft(light, 0.7)[..., None] * texture[..., None] * np.array([1.0, 0.72, 0.38], np.float32)
    )


def exposure(photo: np.ndarray, label: np.ndarray) -> float:
    """Share of daylight on a picture's ground and buildings, in [0.4, 1]; a white car at dusk is
    not white."""
    ground = ~region(label, "sky")
    level = float(np.median(photo[ground].mean(axis=1))) if ground.any() else 128.0
    return float(np.clip(0.4 + 0.6 * level / 70, 0.4, 1))


def recolour(
    photo: np.ndarray, label: np.ndarray, rng: np.random.Generator, *, lighting: str = "day"
) -> Recoloured:
    """Repaint one or two regions of a picture, or change its light. A picture without a region to
    paint comes back unchanged.

    Only day pictures change their light. ``rng`` draws the region, the colour and the details.
    """
    if lighting == "day" and rng.random() < 0.12:
        fall = "night" if rng.random() < 0.6 else "dusk"
        skies = ["day", "clear", "cloudy", "overcast"]
        return Recoloured(
            nightfall(photo, label, fall, rng), [fall], [], skies if fall == "night" else skies[:1]
        )
    area = np.bincount(label.ravel(), minlength=256)[: len(CLASSES)] / label.size
    present = {name for name, part in zip(CLASSES, area, strict=True) if part >= LEAST}
    choices = [name for name in ("vegetation", "sky", *_PAINTED) if name in present]
    weights = [{"car": 3.0, "vegetation": 6.0}.get(name, 1.5) for name in choices]
    if present & {CLASSES[number] for number in CLAIMS["snow"]}:
        choices, weights = [*choices, "ground"], [*weights, 3.5]
    out = Recoloured(photo)
    if choices:
        count = min(len(choices), 1 + int(rng.random() < 0.5))
        drawn = rng.choice(choices, count, replace=False, p=np.array(weights) / sum(weights))
        names = [str(name) for name in drawn]
        for name in names:
            if name != "roof" or "ground" not in names:  # snow may lie on the roof
                _change(out, name, label, present, rng)
    return out


def _change(
    out: Recoloured, name: str, label: np.ndarray, present: set[str], rng: np.random.Generator
) -> None:
    mask = region(label, name) if name in CLASSES else None
    if name == "ground":
        green = ["dirt", "green"] if "grass" in present else ["grass"]
        kind = str(rng.choice(["snow"] * 3 + (green if present & {"grass", "terrain"} else [])))
        if kind == "snow":
            claimed = [c for c in (CLASSES[n] for n in CLAIMS["snow"]) if c in present]
            # a name keeps its surface: "snow, a road" is a cleared road
            bare = [c for c in claimed if c not in ("grass", "terrain") and rng.random() < 0.25]
            covered = [c for c in claimed if c not in bare] or claimed
            white = near(SNOW, rng) * [max(0.7, exposure(out.photo, label)), 1, 1]
            out.photo = snow(out.photo, region(label, *covered), white)
            out.removed += dict.fromkeys(["grass", "dirt", *(COCOSTUFF[c] for c in covered)])
            out.given_tags += [COCOSTUFF[c] for c in claimed if c not in covered]
        elif kind == "green":
            kind = "grass"
            out.photo = paint(
                out.photo, soft(region(label, "grass")), near(LAWN, rng), contrast=0.9, variety=0.7
            )
            out.colours.append(("green", "grass"))
        else:
            target, old = (SOIL, "grass") if kind == "dirt" else (LAWN, "terrain")
            out.photo = paint(out.photo, soft(region(label, old)), near(target, rng), contrast=0.7)
            out.removed.append("grass" if kind == "dirt" else "dirt")
        out.given_tags.append(kind)
    elif name == "vegetation":
        colour, target = draw_foliage(rng)
        out.photo = paint(out.photo, foliage(out.photo, mask), target, variety=0.35, lift=35.0)
        out.given_tags.append("tree")
        out.colours.append((colour, "tree"))
    elif name == "sky":
        if rng.random() < 0.5:
            out.photo, words = sky(out.photo, mask, near(OVERCAST, rng), 0.35), ("overcast", "grey")
        else:
            out.photo, words = sky(out.photo, mask, near(BLUE_SKY, rng), 0.15), ("clear", "blue")
        out.given_tags += ["sky-other", words[0]] if rng.random() < 0.5 else ["sky-other"]
        out.colours.append((words[1], "sky-other"))
        out.removed += ["clear", "cloudy", "overcast", "clouds"]
    else:
        table = _PAINTED[name]
        colour, target = draw_colour(table, CAR_COLOURS if table is PAINT else WALL_COLOURS, rng)
        out.photo = paint(
            out.photo, painted_surface(out.photo, mask), target * exposure(out.photo, label)
        )
        out.given_tags.append(_NAMES[name])
        out.colours.append((colour, _NAMES[name]))
