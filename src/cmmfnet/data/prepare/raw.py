"""RawPair: one pair as it lies in somebody else's data set, before it is in the project's layout
(data/pairs.py)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cmmfnet.files.errors import UserError

Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels, right and bottom excluded."""


class PrepareError(UserError):
    """A raw data set is not what its name says; the message tells what was found, expected and
    missing."""


@dataclass(frozen=True)
class RawPair:
    """Where a pair's two pictures are, and its index entry.

    ``name``: unique in the data set; letters, digits, ``-`` and ``_``. A box cuts the pair out of a
    larger picture (side by side, triplets); without one the file is linked as it is.
    ``visible_size`` (width, height): resample the colour picture to it, for cameras that differ in
    size. ``meta``: further index keys (lighting, sky, caption, tags, aligned, ...).
    """

    name: str
    thermal: Path
    visible: Path
    split: str
    source: str
    sequence: str | None = None
    thermal_box: Box | None = None
    visible_box: Box | None = None
    visible_size: tuple[int, int] | None = None
    meta: dict = field(default_factory=dict)
