"""Rendered street, house and park scenes: aligned thermal, colour and label pictures made from a
seed, free to publish.

They are not photographs and not radiometric, but they have the statistics that matter for
thermal-to-colour networks: the sky is cold, glass mirrors it, sunlit walls, roofs and roads are
warm, people, bonnets and tyres are warmer, paint and road markings are invisible in thermal.

Modules: raster (polygons to pixels); plants, sprites, models, buildings and vehicles (objects);
layout, plots, park, weather and world (places, temperatures and light of the objects); shading,
facade and paint (colour and heat of a surface); frame (the two pictures before the sensors);
sensors (their noise); repainting (the same scene in other colours).

>>> scene = render(3, "street", size=(48, 64))
>>> scene.thermal.shape, scene.visible.shape, scene.labels.shape
((48, 64), (48, 64, 3), (48, 64))
"""

import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cmmfnet.data.scenes.frame import frame
from cmmfnet.data.scenes.layout import build
from cmmfnet.data.write import PairsWriter
from cmmfnet.files.errors import UserError
from cmmfnet.text.labels import CLASSES, COCOSTUFF
from cmmfnet.text.vocabulary import LIGHTINGS

KINDS = ("street", "house", "park")
TAG_SHARE = 0.001  # share of the picture; smaller things are not named
_PLURAL = {
    "building": "buildings", "wall": "a wall", "fence": "a fence", "pole": "poles",
    "road": "a road",
    "pavement": "a pavement", "vegetation": "trees and bushes", "grass": "grass",
    "terrain": "bare earth",
    "mountain": "hills", "water": "a pond", "snow": "snow", "car": "cars", "truck": "a truck",
    "bus": "a bus",
    "person": "people", "bicycle": "a bicycle", "sign": "signs", "traffic light": "traffic lights",
    "window": "windows", "door": "a door", "roof": "roofs",
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """One rendered frame; all pictures are aligned pixel by pixel.

    thermal (H,W) uint16: apparent temperature in units of 0.01 K (kelvin = thermal / 100), with
    sensor noise. visible (H,W,3) uint8: sRGB. labels (H,W) uint8: index into CLASSES. tags:
    COCO-Stuff names of the things that cover at least TAG_SHARE of the picture, largest first.
    caption names things without colours, colour_caption with their colours in `visible`. kind: one
    of KINDS, lighting: one of LIGHTINGS, sky: "clear", "cloudy", "overcast" or "none" (not in the
    picture).
    """

    thermal: np.ndarray
    visible: np.ndarray
    labels: np.ndarray
    tags: list[str]
    caption: str
    colour_caption: str
    kind: str
    lighting: str
    sky: str


def render(
    seed: int,
    kind: str | None = None,
    size: tuple[int, int] = (256, 320),
    time: float = 0.0,
    lighting: str | None = None,
) -> Scene:
    """Render the scene of a seed: on one machine and numpy version the same bytes every time.

    seed: 0 or more. kind: one of KINDS; None draws one from the seed. size: (height, width) in
        pixels, at least 16 each. time: seconds since the start of the video, 0 or more; the camera,
        vehicles and walkers move, and `render(seed, time=k / 25)` for k = 0, 1, ... is a video of
        one world. lighting: one of LIGHTINGS; None draws one, day in 80 % of the seeds.

    Raises ValueError for anything else.
    """
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be 0 or a positive integer")
    if kind is not None and kind not in KINDS:
        raise ValueError(
            f"kind is {kind!r}; use one of {', '.join(map(repr, KINDS))} or None for any"
        )
    if lighting is not None and lighting not in LIGHTINGS:
        raise ValueError(
            f"lighting is {lighting!r}; use one of {', '.join(map(repr, LIGHTINGS))} or None for "
            "any"
        )
    height, width = size
    if height < 16 or width < 16:
        raise ValueError(f"size (height, width) is {tuple(size)}; both must be at least 16 pixels")
    if not 0 <= time < float("inf"):
        raise ValueError(f"time is {time}; it must be 0 or more seconds")
    rng = np.random.default_rng([seed, 3])
    drawn_kind, drawn_lighting = (
        rng.choice(KINDS, p=[0.45, 0.28, 0.27]),
        rng.choice(LIGHTINGS, p=[0.8, 0.11, 0.09]),
    )
    kind, lighting = str(kind or drawn_kind), str(lighting or drawn_lighting)
    world = build(int(seed), kind, lighting)
    thermal, visible, labels = frame(world, int(seed), int(height), int(width), float(time))
    named = _named(labels)
    sky = world.light.sky if "sky" in named else "none"
    caption, colour_caption = _captions(visible, labels, named, kind, lighting, sky)
    tags = [COCOSTUFF[name] for name in named if COCOSTUFF[name]]
    return Scene(thermal, visible, labels, tags, caption, colour_caption, kind, lighting, sky)


def _named(labels: np.ndarray) -> list[str]:
    """Classes that cover at least TAG_SHARE of the picture, largest first."""
    area = np.bincount(labels.ravel(), minlength=len(CLASSES))
    order = np.argsort(-area, kind="stable")
    return [CLASSES[i] for i in order if area[i] >= TAG_SHARE * labels.size]


def _colour_name(rgb: np.ndarray) -> str:
    """The everyday name of an sRGB colour (3,) in 0..255."""
    red, green, blue = (float(x) / 255 for x in rgb)
    high, low = max(red, green, blue), min(red, green, blue)
    chroma = high - low
    # dull foliage is still called green, but asphalt with a blue or brown cast is called grey
    if chroma < (0.03 if high == green else 0.06 + 0.06 * high):
        names = (
            (0.13, "black"),
            (0.34, "dark grey"),
            (0.62, "grey"),
            (0.82, "light grey"),
            (2, "white"),
        )
        return next(name for limit, name in names if high < limit)
    if high == red:
        hue = (60 * (green - blue) / chroma) % 360
    elif high == green:
        hue = 60 * (blue - red) / chroma + 120
    else:
        hue = 60 * (red - green) / chroma + 240
    if hue < 15 or hue >= 335:
        name = "red" if chroma > 0.3 else "brown"
    elif hue < 52:
        name = "orange" if chroma > 0.45 else ("beige" if high > 0.6 and chroma < 0.28 else "brown")
    elif hue < 68:
        name = "yellow" if high > 0.6 and chroma > 0.3 else "olive"
    elif hue < 165:
        name = "green"
    elif hue < 265:
        name = "blue" if chroma > 0.14 else "blue-grey"
    else:
        name = "purple"
    shade = (
        "dark "
        if high < 0.36
        else ("pale " if high > 0.75 and chroma < 0.3 and name not in ("beige", "brown") else "")
    )
    return shade + name


def _list(things: list[str]) -> str:
    return things[0] if len(things) == 1 else ", ".join(things[:-1]) + " and " + things[-1]


def _captions(visible, labels, named, kind, lighting, sky) -> tuple[str, str]:
    what = {"street": "A street", "house": "A house by a road", "park": "A path through a park"}[
        kind
    ]
    shown = [name for name in named if name in _PLURAL and name not in ("pole", "window", "door")][
        :7
    ]
    plain, coloured = [], []
    for name in shown:
        thing = _PLURAL[name]
        colour = _colour_name(np.median(visible[labels == CLASSES.index(name)], axis=0))
        plain.append(thing)
        if thing.startswith("a "):
            coloured.append(f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {thing[2:]}")
        else:
            coloured.append(f"{colour} {thing}")
    when = {"day": "by day", "dusk": "at dusk", "night": "at night"}[lighting]
    under = "" if sky == "none" else f" under {'an' if sky == 'overcast' else 'a'} {sky} sky"
    blue = ""
    if sky != "none":
        blue = _colour_name(np.median(visible[labels == 1], axis=0))
        blue = f" under {'an' if sky == 'overcast' else 'a'} {sky} {blue} sky"
    with_plain, with_colour = (f" with {_list(x)}" if x else "" for x in (plain, coloured))
    return f"{what} {when}{with_plain}{under}.", f"{what} {when}{with_colour}{blue}."


def scenes(out: str, *, count: int, seed: int = 0, size: str = "256,320") -> None:
    """Render street, house and park scenes as a folder of pairs: computer graphics, free to use and
    publish.

    Args:
        out: a new folder for thermal/, visible/, label/ and index.jsonl; the last fifth is for
            validation
        count: number of scenes; each takes about a second
        seed: seed of the first scene; the next scenes have the next seeds
        size: HEIGHT,WIDTH in pixels
    """
    match = re.fullmatch(r"\s*(\d+)\s*[,x]\s*(\d+)\s*", size)
    if match is None or min(height := int(match[1]), width := int(match[2])) < 16:
        raise UserError(
            f"--size is {size!r}; expected HEIGHT,WIDTH of at least 16 pixels each, for example "
            "256,320"
        )
    if count < 1 or seed < 0:
        raise UserError(
            f"--count is {count}, --seed is {seed}; expected a count of 1 or more and a seed of 0 "
            "or more"
        )
    PairsWriter(Path(out)).refuse_finished()
    print(f"rendering {count} scenes, about a second each for a core", file=sys.stderr)
    index = write_pairs(out, count, seed=seed, size=(height, width), jobs=os.cpu_count() or 1)
    print(f"{count} pairs in {index.parent}")


def write_pairs(
    folder: str | Path,
    count: int,
    *,
    seed: int = 0,
    size: tuple[int, int] = (256, 320),
    val_fraction: float = 0.2,
    jobs: int = 1,
) -> Path:
    """Render `count` scenes (seeds seed, seed+1, ...) into the project's layout of pairs; returns
    the path of the index.

    Writes thermal/NAME.png (16-bit grey, 0.01 K), visible/NAME.png (RGB), label/NAME.png (8-bit
    class ids) and index.jsonl. The last round(count * val_fraction) scenes are the split "val".
    size: (height, width). Every scene has its own world, so that no world is in both splits. jobs:
    processes that render; the scenes are the same. Raises ValueError for a count below 1 or a
    fraction outside of [0, 1).
    """
    if count < 1:
        raise ValueError(f"count is {count}; ask for at least 1 scene")
    if not 0 <= val_fraction < 1:
        raise ValueError(
            f"val_fraction is {val_fraction}; it must be at least 0 and below 1, for example 0.2"
        )
    writer = PairsWriter(Path(folder))
    train = count - round(count * val_fraction)
    one = partial(_write, writer, size)
    seeds, splits = range(seed, seed + count), ["train"] * train + ["val"] * (count - train)
    with ProcessPoolExecutor(jobs) if jobs > 1 else nullcontext() as pool:
        made = (pool.map if pool else map)(one, seeds, splits)
        # disable=None: the bar is for terminals
        return writer.finish(list(tqdm(made, "render", unit="scene", total=count, disable=None)))


def _write(writer: PairsWriter, size: tuple[int, int], seed: int, split: str) -> dict:
    """Render and write one scene; returns its entry of the index."""
    scene, name = render(seed, size=size), f"rendered_{seed:06d}"
    writer.write(name, thermal=scene.thermal, visible=scene.visible, label=scene.labels)
    return {
        "name": name, "split": split, "source": "rendered", "sequence": None,
        "lighting": scene.lighting, "sky": scene.sky, "caption": scene.caption,
        "colour_caption": scene.colour_caption, "tags": scene.tags, "width": size[1],
        "height": size[0],
        "licence": "Apache-2.0", "origin": f"cmmfnet.data.scenes seed {seed}",
    }  # fmt: skip
