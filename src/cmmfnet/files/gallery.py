"""One self-contained HTML page to compare thermal pictures with their colours, by a slider over
each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmmfnet.files.page import write_page

GUESS = (
    "The colours are a plausible guess by a model, not measured: a thermal camera does not see "
    "colour."
)


@dataclass(frozen=True)
class Item:
    """One card of the page."""

    name: str
    thermal: np.ndarray  # (H, W) or (H, W, 3) uint8
    colour: np.ndarray  # (H, W, 3) uint8
    caption: str = ""
    truth: np.ndarray | None = None  # (H, W, 3) uint8, if the real colours are known


def write_gallery(path: str | Path, items: Iterable[Item], title: str, note: str = GUESS) -> Path:
    """Write the page, completely or not at all.

    Args:
        path: the .html file; pictures go into it as JPEG, at most 640 px wide and high.
        items: may be a generator; one picture at a time is held.
        title: plain text, as are note, names and captions.
        note: the text above the pictures.

    Raises:
        OSError: the file cannot be written.
    """
    return write_page(path, "files/gallery.html", items=items, title=title, note=note)
