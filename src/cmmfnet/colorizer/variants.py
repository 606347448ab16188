"""``cmmfnet colorize --variants``: several plausible colourings of one frame. Each has a text with
a colour for every thing that the model sees, drawn as often as people name that colour."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cmmfnet.files.errors import UserError

if TYPE_CHECKING:
    from cmmfnet.colorizer.base import FrameColorizer
    from cmmfnet.colorizer.jobs import Job
    from cmmfnet.thermal.frame import Thermal

MOST = 16
TRIES = 20

# Name: its word in a text: how many of the 112 different captions of the released model's training
# pairs by day and dusk give it which colour. Shades are merged; things of one usual colour (road,
# grass) are left out, and so are painted roofs and trees in full autumn colours, which come out
# bolder than they are.
_COLOURS = """
car: car: white 29, silver 14, black 12, dark blue 9, grey 7, red 5
truck: truck: white 3, dark grey 3, silver 1
house: house: white 13, beige 13, brown 7, pale grey 4, pink 2
building-other: building: white 9, brown 4, grey 3, beige 3
roof: roof: grey 9, dark grey 9, brown 8
tree: tree: green 28, dark green 15, brown 3
bush: bush: green 8, dark green 2, brown 1
wall-brick: brick wall: brown 9, grey 1
wall-concrete: concrete wall: dark grey 3, brown 2, grey 1, beige 1, white 1
door-stuff: door: dark blue 4, brown 4, white 2, green 2, dark grey 2, red 1
fence: fence: black 4, grey 3, brown 3, white 2
sky-other: sky: pale blue 26, white 24, blue 20, grey 4
"""
COLOURS: dict[str, tuple[str, dict[str, int]]] = {}
for _line in _COLOURS.strip().splitlines():
    _name, _word, _counts = _line.split(": ")
    _pairs = (_each.rsplit(" ", 1) for _each in _counts.split(", "))
    COLOURS[_name] = _word, {_colour: int(_count) for _colour, _count in _pairs}


def draw_texts(names: Collection[str], count: int, seed: Sequence[int]) -> list[str]:
    """``count`` texts such as "white car, green tree", for those of ``names`` that have colours.

    The colours of a thing are spread over the texts in proportion to their frequency. Of ``TRIES``
    draws the first with the most different texts counts.
    """
    rng = np.random.default_rng(list(seed))

    def spread(word: str, counts: dict[str, int]) -> list[str]:
        ends = np.array(list(accumulate(counts.values()))) / sum(counts.values())
        places = (rng.permutation(count) + rng.random(count)) / count  # one in each part of 0..1
        chosen = np.searchsorted(ends, places, side="right").clip(max=len(ends) - 1)
        return [f"{list(counts)[i]} {word}" for i in chosen]

    def draw() -> list[str]:
        columns = [spread(*entry) for name, entry in COLOURS.items() if name in names]
        return [", ".join(row) for row in zip(*columns, strict=True)] or [""] * count

    return max((draw() for _ in range(TRIES)), key=lambda texts: len(set(texts)))


@dataclass
class Variants:
    """The texts of ``count`` variants of each picture. A picture's colours depend on ``seed`` and
    its file name alone.

    Raises:
        UserError: ``count`` is out of range.
    """

    count: int
    seed: int
    number: dict[Path, int] = field(default_factory=dict)  # result -> which variant, from 0
    _last: tuple[Path | None, list[str]] = (None, [])  # a picture and its texts

    def __post_init__(self) -> None:
        if not 2 <= self.count <= MOST:
            raise UserError(f"--variants is {self.count}; expected 2 to {MOST}")
        if self.seed < 0:
            raise UserError(f"--seed is {self.seed}; expected 0 or more")

    def __str__(self) -> str:
        return f"{self.count}, seed {self.seed}"

    def check(self, colorizer: FrameColorizer) -> None:
        """Raises :class:`UserError` for a model that predicts no things or takes no colours."""
        traits = colorizer.traits
        if not (traits.can_correct and traits.takes_colours):
            raise UserError(
                f"--variants needs a model that predicts things and takes their colours as words, "
                f"such as cmmfnet; {colorizer.name!r} does not"
            )

    def outputs(self, inputs: Sequence[Path], outputs: Sequence[Path]) -> list[Path]:
        """NAME-1.png ... NAME-N.png for each of ``outputs``.

        Raises:
            UserError: one of them is an input.
        """
        originals = {file.resolve() for file in inputs}
        for output in outputs:
            for i in range(self.count):
                result = output.with_name(f"{output.stem}-{i + 1}{output.suffix}")
                if result.resolve() in originals:
                    raise UserError(
                        f"variant {i + 1} would replace the input {result}; choose another output"
                    )
                self.number[result] = i
        return list(self.number)

    def text(self, colorizer: FrameColorizer, job: Job, thermal: Thermal, span: str | None) -> str:
        """The text of one variant; for variants in a row the things are predicted once."""
        if job.file != self._last[0]:
            probabilities = colorizer.predict([colorizer.prepare(thermal, span)])[0]
            pairs = zip(colorizer.traits.words, probabilities, strict=True)
            names = {name for name, p in pairs if p > colorizer.traits.tag_threshold}
            seed = (self.seed, zlib.crc32(job.file.name.encode(errors="surrogateescape")))
            texts = draw_texts(names, self.count, seed)
            self._last = job.file, texts
            if (different := len(set(texts))) < self.count:
                seen = ", ".join(name for name in COLOURS if name in names) or "nothing"
                warnings.warn(
                    f"{job.file}: {different} different variants, not {self.count}: of things "
                    f"whose colours vary the model sees {seen}",
                    stacklevel=2,
                )
        return self._last[1][self.number[job.result]]
