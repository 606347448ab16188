"""Rendered scenes with other leaves, cars, ground or light, and the words for the change: pairs
whose colours are exact.

    cmmfnet repaint data/repainted --count 300 --seed 10000 --jobs 16

A recoloured photo (recolour.py) has a car in the plain colour of a word. Here the renderer paints
the car (data/scenes/repainting.py), so that the paint gets the light of its scene: red in a dark
street is a dark red. Thermal frame and label map are the same as of the scene. An entry of the
index has the change as ``repainted``, with ``given_tags``, ``colours`` and ``removed`` of
``recolour.Recoloured``.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cmmfnet.data.made.lab import LEAST, to_rgb
from cmmfnet.data.made.recolour import Recoloured
from cmmfnet.data.scenes import Scene, render, repaint
from cmmfnet.data.write import PairsWriter
from cmmfnet.text.colour_words import CAR_COLOURS, PAINT, draw_colour, draw_foliage
from cmmfnet.text.labels import CLAIMS, CLASSES, COCOSTUFF
from cmmfnet.text.vocabulary import EXTRA_WORDS

_COVERED = [COCOSTUFF[CLASSES[number]] for number in CLAIMS["snow"]]  # names of what snow covers


def write_repainted(
    out: str | Path,
    *,
    count: int = 300,
    seed: int = 10000,
    each: int = 3,
    size: tuple[int, int] = (288, 352),
    jobs: int = 1,
) -> Path:
    """Render scenes in other colours, with the words for them, as a folder of pairs: every day
    scene several times, with other leaves, cars, snow or light each time.

    Args:
        out: a new folder for thermal/, visible/, label/ and index.jsonl
        count: seeds to go through; scenes at dusk and at night, and those with nothing to paint,
            are left out
        seed: the first seed
        each: pictures of a scene
        size: height and width
        jobs: processes that render; the pictures are the same

    Returns: the index. Raises FileExistsError for a used folder.
    """
    writer = PairsWriter(Path(out)).refuse_finished()
    one = partial(_write, writer, each, size)
    with ProcessPoolExecutor(jobs) if jobs > 1 else nullcontext() as pool:
        made = (pool.map if pool else map)(one, range(seed, seed + count))
        bar = tqdm(made, desc="repaint", unit="scene", total=count, disable=None)
        rows = [row for some in bar for row in some]
    index = writer.finish(rows)
    print(f"{len(rows)} pairs in {writer.root}")
    return index


def repainted(meta: dict, photo: np.ndarray, tags: Sequence[str]) -> Recoloured:
    """A crop of a picture with this index entry, and the words of its scene that hold in the crop;
    ``tags`` are the names of the things in the crop."""
    words = meta.get("repainted")
    if not words:
        return Recoloured(photo)
    there = {*tags, *EXTRA_WORDS, *(["snow"] if {*tags} & {*_COVERED} else [])}
    given_tags = [name for name in words["given_tags"] if name in there]
    colours = [(colour, name) for colour, name in words["colours"] if name in given_tags]
    return Recoloured(photo, given_tags, colours, list(words["removed"]) if given_tags else [])


def changes(
    scene: Scene, rng: np.random.Generator
) -> tuple[dict[str, Any], dict[str, list]] | None:
    """Keywords of `repaint` for a day scene, and the words for them; None for a scene without a
    thing to paint."""
    if rng.random() < 0.1:
        removed = ["day", "clear", "cloudy", "overcast"]
        return {"lighting": "night"}, {"given_tags": ["night"], "colours": [], "removed": removed}
    area = np.bincount(scene.labels.ravel(), minlength=len(CLASSES)) / scene.labels.size
    ground = float(sum(area[number] for number in CLAIMS["snow"]))
    seen = {name: area[CLASSES.index(name)] for name in ("vegetation", "car")} | {"ground": ground}
    likely = {"vegetation": 0.75, "car": 0.95, "ground": 0.5}
    there = [name for name in likely if seen[name] >= LEAST]
    if not there:
        return None
    chosen = {name for name in there if rng.random() < likely[name]} or {there[0]}
    change: dict[str, Any] = {}
    words: dict[str, list] = {"given_tags": [], "colours": [], "removed": []}
    for key, name, thing in (("trees", "vegetation", "tree"), ("cars", "car", "car")):
        if name in chosen:
            colour, lab = (
                draw_foliage(rng) if name == "vegetation" else draw_colour(PAINT, CAR_COLOURS, rng)
            )
            change[key] = tuple(to_rgb(lab[None])[0].tolist())
            words["given_tags"].append(thing)
            words["colours"].append((colour, thing))
    if "ground" in chosen:
        change["ground"] = "snow"
        words["given_tags"].append("snow")
        words["removed"] += _COVERED
    return change, words


def _write(writer: PairsWriter, each: int, size: tuple[int, int], seed: int) -> list[dict]:
    """Render and write one scene's pictures; their entries of the index."""
    scene, rows = render(seed, size=size), []
    for number in range(each if scene.lighting == "day" else 0):
        made = changes(scene, np.random.default_rng([seed, number, 11]))
        if made is None:
            break
        change, words = made
        name, tags = f"repainted_{seed:06d}_{number}", scene.tags
        if "snow" in words["given_tags"]:
            tags = ["snow", *(tag for tag in tags if tag not in _COVERED)]
        colour = repaint(seed, scene.kind, size, **change)
        writer.write(name, thermal=scene.thermal, visible=colour, label=scene.labels)
        rows.append({
            "name": name, "split": "train", "source": "repainted",
            "sequence": f"rendered_{seed:06d}",
            "lighting": change.get("lighting", "day"), "sky": scene.sky, "tags": tags,
            "repainted": words,
            "width": size[1], "height": size[0], "licence": "Apache-2.0",
            "origin": f"cmmfnet.data.made.repainted seed {seed}",
        })  # fmt: skip
    return rows
