"""Colour words in training: the CIELAB colour of each word, and the range of colours that it
covers.

Photos are painted with these colours (data/made/recolour.py). Rendered scenes get them as albedo
(data/made/repainted.py), so that the renderer lights them like any paint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

# CIELAB of the basic colours (values of vocabulary.COLOURS) as vehicles and painted doors have
# them, D65.
PAINT: dict[str, tuple[float, float, float]] = {
    "black": (13, 0, -1), "white": (88, -1, 2), "grey": (50, 0, -1), "silver": (70, -1, -2),
    "red": (38, 50, 32),
    "orange": (58, 36, 50), "yellow": (78, 3, 60), "green": (40, -30, 20), "cyan": (58, -26, -13),
    "blue": (34, 5, -40), "purple": (32, 32, -32), "pink": (70, 28, 4), "brown": (34, 13, 18),
    "beige": (76, 3, 15),
}  # fmt: skip
# Render, brick, wood and roof tiles are duller.
MASONRY: dict[str, tuple[float, float, float]] = PAINT | {
    "black": (22, 0, 0), "white": (86, 0, 3), "grey": (56, 0, 1), "red": (44, 26, 20),
    "orange": (58, 22, 30),
    "yellow": (78, 3, 32), "green": (52, -14, 12), "cyan": (62, -13, -8), "blue": (52, -3, -20),
    "pink": (70, 17, 9),
    "brown": (42, 10, 17), "beige": (76, 2, 14),
}  # fmt: skip
CAR_COLOURS = (
    "red", "blue", "white", "black", "silver", "grey", "green", "yellow",
    "orange", "brown", "beige",
)  # fmt: skip
WALL_COLOURS = (
    "white", "grey", "red", "yellow", "beige", "brown", "pink", "blue",
    "green", "orange",
)  # fmt: skip
FOLIAGE = {
    "green": (40, -17, 25), "brown": (42, 9, 24), "orange": (52, 24, 46), "yellow": (66, 3, 52),
    "red": (40, 34, 30),
    "bare": (44, 2, 6),
}  # fmt: skip
SNOW, SOIL, LAWN = (86, -1, -4), (46, 7, 17), (46, -13, 26)
OVERCAST, BLUE_SKY = (80, -1, -3), (68, -5, -27)

_SHADELESS = ("black", "white", "grey", "silver", "bare")


def near(target: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """A random CIELAB colour near ``target``, since a word covers a range of colours."""
    scale = rng.uniform(0.85, 1.12)
    return np.array(target, np.float32) * [1, scale, scale] + rng.normal(0, [3.0, 1.5, 1.5])


def draw_colour(
    table: Mapping[str, Sequence[float]],
    words: Sequence[str],
    rng: np.random.Generator,
    p: Sequence[float] | None = None,
) -> tuple[str, np.ndarray]:
    """A random phrase ("red", at times "dark red" or "pale red") and a CIELAB colour for it."""
    word = str(rng.choice(words, p=p))
    target, shade = near(table[word], rng), rng.random()
    if word in _SHADELESS or shade >= 0.2:
        return word, target
    if shade < 0.12:
        return f"dark {word}", target * [0.55, 0.7, 0.7]
    return f"pale {word}", np.array([target[0] + 0.45 * (92 - target[0]), *(0.55 * target[1:])])


def draw_foliage(rng: np.random.Generator) -> tuple[str, np.ndarray]:
    """As `draw_colour`, for plants: green or bare more often than in autumn."""
    return draw_colour(FOLIAGE, list(FOLIAGE), rng, p=[0.42, 0.07, 0.07, 0.06, 0.04, 0.34])
