"""One data set of a training mix: the choice of its pictures, their share, and their changes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from cmmfnet.data.fields import RecipeError, bounded, check

GIVEN = ("thermal", "colour")


@dataclass
class Source:
    """An entry of ``sources`` in a recipe. :meth:`opened` gives it its ``pairs``.

    Raises :class:`RecipeError` for values out of range.
    """

    pairs: ClassVar[Any]
    """The opened ``data.pairs.Pairs``: an attribute of :meth:`opened` copies, not a field of
    recipes."""

    folder: str
    """Folder in the project's layout (data/pairs.py), relative to the data folder given to the
    command. ``pairs`` is DATA/pairs, or DATA itself where that is a single data set, so that one
    recipe takes both."""
    share: tuple[float, float] = bounded((1.0, 1.0), 0, 1e6)
    """Part of a batch at the start and at the end of training, relative to the other sources."""
    split: str | None = None
    lighting: tuple[str, ...] | None = None
    sources: tuple[str, ...] | None = None
    """Only entries with this split, one of these lightings, one of these sources; null takes
    all."""
    simulate: bool = False
    """Make the thermal frame from the photo and its label map (data/simulate.py)."""
    level: bool = False
    """Level photos first: darkest 0.5 % to black, 99.7 % of the brightest channel to white."""
    scale: tuple[float, float] = bounded((0.5, 1.0), 0, 1, above=True)
    """Side of the random crop, in parts of the picture's short side."""
    zoom: tuple[float, float] | None = bounded(None, 0.05, 20)
    """In place of ``scale``: pixels of the crop for each pixel of the picture. Goes with the
    recipe's ``shapes``. A picture that is too small for it is enlarged until the crop fits."""
    aspect: float = bounded(1.3, 1, 10)
    """Largest stretch of the random crop, either way; 1 keeps things as wide as they are."""
    sensor: bool = True
    """Random tone, noise, blur and polarity on the thermal frame (data/augment.py); false only
    stretches it between its 1st and 99th percentile."""
    gain_control: bool = False
    """Random gain control on the thermal frame before that (tone of wide range, histogram
    equalisation, detail enhancement), for frames of cameras that are not trained on."""
    order: Literal["scenes", "epoch"] = "scenes"
    """scenes: drawn with replacement, every scene as often (Pairs.weights); epoch: every picture
    once a pass, in a new order each pass (for a single source)."""
    gives: Literal["both", "thermal", "colour"] = "both"
    """The pictures that an unpaired method takes from this source: both, thermal or colour. So
    night frames can be trained with daylight colour."""
    text: Literal["own", "shuffled", "empty"] = "own"
    """Caption and tags of a picture: own; shuffled (of any picture of the source, drawn anew each
    time); empty (none). The last two are controls: a gain over them is a gain from reading the
    text."""
    taught: bool = False
    """The colours are a model's (training/softened.py): the discriminator of a matched training
    does not learn them as real."""
    recolour: float = bounded(0.0, 0, 1)
    """Part of the labelled pictures whose colours are changed, with words that name the change
    (data/made/recolour.py); more than 0 also names the colours of things."""

    def __post_init__(self) -> None:
        check(self, of=f" of {self.folder}")
        if self.scale[0] > self.scale[1]:
            raise RecipeError(
                f"scale of {self.folder} is {self.scale}; expected smallest, then largest"
            )
        if self.zoom is not None and self.zoom[0] > self.zoom[1]:
            raise RecipeError(
                f"zoom of {self.folder} is {self.zoom}; expected smallest, then largest"
            )

    def opened(self, data: str | Path = ".") -> Source:
        """A copy with its ``pairs``, found in the folder or URL ``data``.

        Raises :class:`cmmfnet.data.store.PairsError`, also where a thermal frame, or for
        ``simulate`` a label map, is missing.
        """
        from cmmfnet.data.pairs import Pairs, find  # here, so that `train --help` is quick

        one = copy.copy(self)
        one.pairs = Pairs(find(data, self.folder), self.split, self.lighting, self.sources)
        if self.gives != "colour":
            one.pairs.require("label" if self.simulate else "thermal")
        return one


def sources_for(sources: Sequence[Source], kind: str) -> list[Source]:
    """The sources from which an unpaired method takes ``kind`` ("thermal" frames or "colour"
    pictures); a paired method takes pairs from all."""
    return [source for source in sources if source.gives in ("both", kind)]


def check_mix(sources: Sequence[Source]) -> None:
    """Raises :class:`RecipeError` where the sources' shares or orders do not go together."""
    if not sources:
        raise RecipeError(
            "sources is empty; name at least one folder of pairs, for example {folder: pairs, "
            "split: train}"
        )
    shares = [source.share for source in sources]
    if not _always_positive(sources):
        raise RecipeError(
            f"the sources' shares are {shares}; they may not all be 0 at the start or the end"
        )
    parts = {kind: sources_for(sources, kind) for kind in GIVEN}
    for kind, part in parts.items():
        if not _always_positive(part):
            raise RecipeError(
                f"no source gives {kind} pictures all the time; expected gives: both or {kind} for "
                "one"
            )
    for source in sources:
        alone = all(len(part) == 1 for part in parts.values() if source in part)
        if source.order == "epoch" and not alone:
            raise RecipeError(
                f"order of {source.folder} is epoch for one of {len(sources)} sources; it takes a "
                "single source, a mix scenes"
            )


def _always_positive(sources: Sequence[Source]) -> bool:
    """Whether the shares of ``sources`` add up to more than 0 from the start to the end."""
    return bool(sources) and all(
        sum(shares) > 0 for shares in zip(*(s.share for s in sources), strict=True)
    )
