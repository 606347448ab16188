"""What a text says of a thing beside its name: its colour, or that a tree is bare. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from cmmfnet.text.vocabulary import COLOURS

ATTRIBUTES: tuple[str, ...] = (*dict.fromkeys(COLOURS.values()), "dark", "pale", "bare")
"""What may be said of a name: basic colours, two shades, and that a tree has no leaves."""
_SHADE = {"dark": "dark", "deep": "dark", "light": "pale", "pale": "pale", "faded": "pale"}
_BARE = re.compile(
    r"\b(?:bare|leafless) (?:\w+ )?trees?\b|\btrees? (?:is|are|stands?) (?:bare|leafless)\b"
    r"|\btrees?(?: \w+)? (?:without|with no) (?:any )?(?:leaves|foliage)\b",
    re.IGNORECASE,
)


def attribute_weights(colour: str | None) -> np.ndarray:
    """A colour phrase of `prompts.Parsed` ("red", "dark blue-grey", or "bare") -> weights over
    ATTRIBUTES, (A,) float32."""
    weights = np.zeros(len(ATTRIBUTES), np.float32)
    if colour:
        shade, _, rest = colour.rpartition(" ")
        if shade in _SHADE:
            weights[ATTRIBUTES.index(_SHADE[shade])] = 1
        parts = [part for part in rest.split("-") if part in ATTRIBUTES]
        for part in parts:
            weights[ATTRIBUTES.index(part)] = 1 / len(parts)
    return weights


def said_of(
    names: Iterable[str], colours: Iterable[tuple[str, str]], text: str = ""
) -> list[str | None]:
    """The colour phrase that a text says of each name, or None.

    Args:
        names: tags of the text.
        colours: (colour, name), as in `prompts.Parsed`; of several colours of one name the first
            counts.
        text: the text itself, which says whether trees are bare.

    Leaves are green where nothing else is said of them, and so is the tree that has them: "a tree
    with leaves" alone moves a picture a fifth of the way to green, since most trees of the training
    had leaves that nobody named; "green" three fifths.
    """
    names = list(names)
    first: dict[str, str] = {}
    for colour, name in colours:
        first.setdefault(name, colour)
    if "leaves" in names:
        first.setdefault("leaves", first.get("tree", "green"))
        first.setdefault("tree", first["leaves"])
    if _BARE.search(text):
        first["tree"] = "bare"
    return [first.get(name) for name in names]
