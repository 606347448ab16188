"""The spill of text.py: how much of a word's colour lies outside of its thing.

text.py says how; here are the texts and the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from text_response import LEAST_REGION, MARGIN, Case

from cmmfnet import Colorizer
from cmmfnet.data.made.lab import to_lab
from cmmfnet.evaluation.intervals import mean_interval
from cmmfnet.text.labels import CLAIMS, CLASSES

TEXTS: dict[str, tuple[str, ...]] = {
    "a red car": ("car",),
    "a white house": ("building", "wall"),
    "orange trees": ("vegetation",),
    "snow": tuple(CLASSES[number] for number in CLAIMS["snow"]),
}
"""Text -> the classes of its things."""
STRONG = 10.0  # CIEDE2000
RELATED = {
    "a white house": ("window", "door", "roof"), "snow": ("terrain", "snow", "mountain"),
    "a red car": ("truck", "bus"),
}  # fmt: skip
"""Text -> classes that neither count as its things nor as outside of them."""


def spill(colorizers: Sequence[Colorizer], cases: Iterator[Case], where: str) -> dict:
    """Shares of strongly changed pixels inside and outside of the things that a text names."""
    found: dict[str, list[list[tuple[int, int, int, int]]]] = {text: [] for text in TEXTS}
    for case in cases:
        plain = [to_lab(c(case.thermal, text="", span=(-1, 1))) for c in colorizers]
        for text, classes in TEXTS.items():
            if np.isin(case.label, _ids(classes)).mean() >= LEAST_REGION:
                found[text].append([
                    _counts(to_lab(c(case.thermal, text=text, span=(-1, 1))), before, case, text)
                    for c, before in zip(colorizers, plain, strict=True)
                ])  # fmt: skip
    print(f"{where}: shares of pixels that change by more than {STRONG:.0f} (CIEDE2000)")
    print("| text | pictures | model | of the thing | of the rest | spill [95 % interval] |")
    print("| --- | --- | --- | --- | --- | --- |")
    result: dict = {}
    for text, rows in found.items():
        for k, colorizer in enumerate(colorizers):
            if not rows:
                continue
            inside, things, outside, rest = np.array([row[k] for row in rows], float).T
            interval = mean_interval(
                outside.tolist(), (inside + outside).tolist(), [str(i) for i in range(len(rows))]
            )
            cell = {
                "pictures": len(rows),
                "inside": float(inside.sum() / things.sum()),
                "outside": float(outside.sum() / rest.sum()),
                "spill": float(outside.sum() / max(1, (inside + outside).sum())),
                "interval": interval,
            }
            result.setdefault(text, {})[colorizer.name] = cell
            low, high = interval or (float("nan"),) * 2
            print(
                f"| {text} | {len(rows)} | {colorizer.name} | {cell['inside']:.2f} | "
                f"{cell['outside']:.3f} | {cell['spill']:.2f} [{low:.2f}, {high:.2f}] |"
            )
    return result


def _ids(classes: Sequence[str]) -> list[int]:
    return [CLASSES.index(name) for name in classes]


def _counts(
    after: np.ndarray, before: np.ndarray, case: Case, text: str
) -> tuple[int, int, int, int]:
    """Pixels: of the thing that change, of the thing, of the rest that change, of the rest. The
    margin around the thing and pixels without a label count as neither."""
    from scipy.ndimage import binary_dilation
    from skimage.color import deltaE_ciede2000

    change = deltaE_ciede2000(before, after) > STRONG
    thing = np.isin(case.label, _ids(TEXTS[text]))
    rest = ~binary_dilation(thing, iterations=MARGIN) & (case.label != 0)
    rest &= ~np.isin(case.label, _ids(RELATED.get(text, ())))
    return tuple(int(x.sum()) for x in (change & thing, thing, change & rest, rest))
