"""Plain English sentences from COCO-Stuff names and label maps, for frames that nobody
described."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from cmmfnet.text.vocabulary import LIGHTINGS, SKIES

_WHERE = ("road", "railroad", "river", "sea", "bridge", "pavement", "playingfield", "platform",
          "house", "building-other",
          "skyscraper", "hill", "mountain", "grass")  # fmt: skip
_PLURAL = {
    "person": "people", "car": "cars", "tree": "trees", "building-other": "buildings",
    "bush": "bushes", "light": "street lamps",
    "banner": "signs", "window-other": "windows", "flower": "flowers", "plant-other": "plants",
    "clouds": "clouds",
    "leaves": "leaves", "stairs": "stairs", "waterdrops": "waterdrops",
    "traffic light": "traffic lights", "rock": "rocks",
    "stone": "stones", "branch": "branches", "bicycle": "bicycles", "door-stuff": "doors",
    "curtain": "curtains",
    "window-blind": "window blinds", "playingfield": "a playing field", "railroad": "a railway",
    "ground-other": "bare ground", "sky-other": "sky", "skyscraper": "skyscrapers",
}  # fmt: skip
_MASS = frozenset((
    "grass", "snow", "water-other", "sand", "dirt", "gravel", "fog", "mud", "moss", "straw",
    "pavement", "cloth", "clothes",
    "food-other", "fruit", "furniture-other", "metal", "paper", "plastic", "wood", "broccoli",
    "cardboard", "scissors", "skis",
    "salad", "textile-other",
))  # fmt: skip
_NO_WORD = ("solid-other", "structural-other", "other")
_MATERIALS = ("wall-brick", "wall-stone", "wall-wood", "wall-concrete")


def describe(tags: Iterable[str], lighting: str | None = None, sky: str | None = None) -> str:
    """A plain sentence of COCO-Stuff names, the same for the same names; "" where there are none.

    >>> describe(["road", "car", "tree", "house", "wall-brick", "sky-other"], "day", "cloudy")
    'A road with cars, trees and a brick house by day under a cloudy sky.'
    """
    names = [tag for tag in dict.fromkeys(tags) if tag not in (*_NO_WORD, *LIGHTINGS, *SKIES)]
    walls = [name for name in names if name in _MATERIALS]
    built = next((name for name in names if name in ("house", "building-other")), None)
    said = {name: _say(name) for name in names}
    if len(walls) == 1 and built:  # a house with a brick wall is a brick house
        material = walls[0].removeprefix("wall-").replace("wood", "wooden")
        said[built] = (
            f"{material} buildings" if built == "building-other" else f"a {material} house"
        )
        names.remove(walls[0])
    when = {"day": " by day", "dusk": " at dusk", "night": " at night"}.get(lighting or "", "")
    if names == ["sky-other"]:
        return f"{'Sky' if sky not in SKIES else _article(sky).capitalize() + ' sky'}{when}."
    under = ""
    if "sky-other" in names:
        under = f" under {_article(sky)} sky" if sky in SKIES else " under the sky"
        names.remove("sky-other")
    if not names:
        return ""
    place = next((name for name in names if name in _WHERE), names[0])
    others = [said[name] for name in names if name != place][:8]
    listed = (
        f" with {', '.join(others[:-1])}{' and ' if others[1:] else ''}{others[-1]}"
        if others
        else ""
    )
    return f"{said[place][0].upper()}{said[place][1:]}{listed}{when}{under}."


def _say(name: str) -> str:
    if name in _PLURAL:
        return _PLURAL[name]
    kind, _, what = name.partition("-")
    if kind in ("wall", "floor", "ceiling") and what and what != "other":
        return f"{_article(what.replace('wood', 'wooden'))} {kind}"
    plain = name.removesuffix("-other").removesuffix("-stuff")
    return plain if name in _MASS else _article(plain)


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def sentence(data: Path, entry: dict) -> str:
    """From the entry's tags, or from its label map: what covers 1 % of it or more, as in
    training."""
    tags = entry.get("tags") or []
    label = data / "label" / f"{entry['name']}.png"
    if not tags and label.is_file():
        from cmmfnet.text.labels import CLASSES, COCOSTUFF

        with Image.open(label) as picture:
            area = np.bincount(np.asarray(picture).ravel(), minlength=len(CLASSES))[: len(CLASSES)]
        order = np.argsort(-area, kind="stable")
        tags = [
            name for i in order if area[i] >= 0.01 * area.sum() and (name := COCOSTUFF[CLASSES[i]])
        ]
    return describe(tags, entry.get("lighting"), entry.get("sky"))
