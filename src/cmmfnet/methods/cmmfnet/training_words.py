"""The words that training gives with a picture: a random part of the things in it, at times by
other names, at times with names of absent things."""

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
# Names that no label map has. A network that was never trained with them would do anything.
_UNKNOWN = tuple(name for name in COCO_STUFF if name not in PLACES)


def draw_words(
    rng: np.random.Generator,
    tags: Sequence[str],
    colours: Sequence[tuple[str, str]],
    always: Sequence[str],
    words: Sequence[str],
    *,
    drop: bool,
    labelled: bool,
    most: int,
) -> list[tuple[str, str | None]]:
    """Draw the words for one training picture.

    Args:
        rng: the picture's random numbers.
        tags: names of the things in the picture.
        colours: (colour, name) of some of these things.
        always: names that are always given, with their colour, since the thermal frame alone does
            not show them.
        words: the network's vocabulary; other names are left out.
        drop: give nothing but ``always``.
        labelled: whether the picture has a label map. Then names are at times replaced by another
            name of the same class, and names of absent things are added, which must change nothing.
        most: the largest number of words.

    Returns:
        At most ``most`` pairs of a name and a colour phrase or None, in random order. Of ``tags``
        four fifths are given, half of these with their colour; a tree with a colour at times also
        gives its leaves.
    """
    known, colour_of = set(words), dict(reversed([(name, colour) for colour, name in colours]))
    given: list[tuple[str, str | None]] = []
    for name in tags:
        chosen, coloured = rng.random() < 0.8, rng.random() < 0.5
        if name in always or (chosen and not drop):
            given.append((name, colour_of.get(name) if coloured or name in always else None))
    if labelled and not drop:
        there = {number for name in tags for number in PLACES.get(name, ())}
        absent = [n for n in _ABSENT if not there & {*PLACES[n], *CLAIMS.get(n, ())}]
        for _ in range(int(rng.integers(1, 3)) if absent and rng.random() < 0.4 else 0):
            colour = str(rng.choice(BASIC)) if rng.random() < 0.4 else None
            given.append((str(rng.choice(absent if rng.random() < 0.5 else _UNKNOWN)), colour))
    foliage = dict(given).get("tree")
    if foliage and foliage != "bare" and rng.random() < (0.6 if foliage == "green" else 0.3):
        given.append(("leaves", foliage))  # as `Prompt.colours_of` reads "a tree with leaves"
    if labelled:
        for i, (name, colour) in enumerate(given):
            group = next((g for g in _ALIKE if name in g), None)
            if group and rng.random() < 0.25:
                given[i] = (str(rng.choice(group)), colour)
    given = [pair for pair in dict(given).items() if pair[0] in known]
    first = [pair for pair in given if pair[0] in always]
    rest = [pair for pair in given if pair[0] not in always]
    kept = first[:most] + rest[: max(0, most - len(first))]
    return [kept[i] for i in rng.permutation(len(kept))]
