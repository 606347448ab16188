"""Colours of things as numbers for a network: basic colours, shades, and bare trees. No torch."""

from __future__ import annotations

import numpy as np

from cmmfnet.text.vocabulary import COLOURS

ATTRIBUTES: tuple[str, ...] = (*dict.fromkeys(COLOURS.values()), "dark", "pale", "bare")
"""Attributes of a name: basic colours, two shades, and "bare" for a tree without leaves."""
_SHADE = {"dark": "dark", "deep": "dark", "light": "pale", "pale": "pale", "faded": "pale"}


def attribute_weights(colour: str | None) -> np.ndarray:
    """A colour phrase of `Prompt.colours_of` ("red", "dark blue-grey", "bare"; None: no colour) ->
    weights from 0 to 1 over ATTRIBUTES, (A,) float32."""
    weights = np.zeros(len(ATTRIBUTES), np.float32)
    if colour:
        shade, _, rest = colour.rpartition(" ")
        if shade in _SHADE:
            weights[ATTRIBUTES.index(_SHADE[shade])] = 1
        parts = [part for part in rest.split("-") if part in ATTRIBUTES]
        for part in parts:
            weights[ATTRIBUTES.index(part)] = 1 / len(parts)
    return weights
