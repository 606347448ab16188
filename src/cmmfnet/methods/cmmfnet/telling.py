"""The words that training gives with a picture: a random part of what is in it, in other words at
times, and beside words for what is not there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cmmfnet.text.labels import CLAIMS, PLACES
from cmmfnet.text.vocabulary import COCO_STUFF, COLOURS

_ALIKE = (
    ("building-other", "house"),
    ("tree", "bush", "plant-other"),
    ("dirt", "ground-other"),
    ("sky-other", "clouds"),
)
BASIC = tuple(dict.fromkeys(COLOURS.values()))
_ABSENT = tuple(name for name in PLACES if name not in ("metal", "clothes", "window-blind"))
# Names that no label map has: a network that never heard them would do anything.
_UNKNOWN = tuple(name for name in COCO_STUFF if name not in PLACES)


def draw_words(
    rng: np.random.Generator,
    tags: Sequence[str],
    colours: Sequence[tuple[str, str]],
    told: Sequence[str],
    words: Sequence[str],
    *,
    drop: bool,
    labelled: bool,
    most: int,
) -> list[tuple[str, str | None]]:
    """What is said of a training picture: at most ``most`` pairs of a name and a colour phrase or
    None.

    ``told`` is always said, with its colour, since the picture alone cannot tell it; ``drop``:
    nothing else is. Of the rest four fifths are, half of those with the colour they have; trees
    whose colour is said now and then with their leaves; and, where label maps say what is there
    (``labelled``), by another name for the same class, and beside names of what is not there, which
    must change nothing.
    """
    known, colour_of = set(words), dict(reversed([(name, colour) for colour, name in colours]))
    said: list[tuple[str, str | None]] = []
    for name in tags:
        chosen, coloured = rng.random() < 0.8, rng.random() < 0.5
        if name in told or (chosen and not drop):
            said.append((name, colour_of.get(name) if coloured or name in told else None))
    if labelled and not drop:
        there = {number for name in tags for number in PLACES.get(name, ())}
        absent = [n for n in _ABSENT if not there & {*PLACES[n], *CLAIMS.get(n, ())}]
        for _ in range(int(rng.integers(1, 3)) if absent and rng.random() < 0.4 else 0):
            colour = str(rng.choice(BASIC)) if rng.random() < 0.4 else None
            said.append((str(rng.choice(absent if rng.random() < 0.5 else _UNKNOWN)), colour))
    foliage = dict(said).get("tree")
    if foliage and foliage != "bare" and rng.random() < (0.6 if foliage == "green" else 0.3):
        said.append(("leaves", foliage))  # as `Prompt.colours_of` reads "a tree with leaves"
    if labelled:
        for i, (name, colour) in enumerate(said):
            group = next((g for g in _ALIKE if name in g), None)
            if group and rng.random() < 0.25:
                said[i] = (str(rng.choice(group)), colour)
    said = [pair for pair in dict(said).items() if pair[0] in known]
    first = [pair for pair in said if pair[0] in told]
    rest = [pair for pair in said if pair[0] not in told]
    kept = first[:most] + rest[: max(0, most - len(first))]
    return [kept[i] for i in rng.permutation(len(kept))]
