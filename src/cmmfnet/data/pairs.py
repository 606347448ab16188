"""Pairs: the project's one layout of thermal/colour pairs on disk.

A folder with

- ``index.jsonl``: one JSON object a line. ``name`` is needed; ``split`` ("train", "val", "test"), ``source``,
  ``sequence`` (frames of one camera position: never split, weighted as one scene), ``lighting`` ("day", "dusk",
  "night"), ``sky``, ``caption``, ``colour_caption``, ``tags`` (COCO-Stuff names) are used where they are given.
- ``thermal/NAME.EXT``: one-channel pictures, 8 or 16 bit, anything that ``read_thermal`` takes.
- ``visible/NAME.EXT``: 8-bit RGB pictures of the same size.
- ``label/NAME.png`` (optional): uint8 class ids (``data.scenes.CLASSES``), for sources that have them.

Labelled colour photos without thermal (for simulation) have the same layout with ``photo`` in place of ``visible`` and
no ``thermal``.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from cmmfnet.thermal import normalise, read_thermal

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")


class PairsError(ValueError):
    """A data set's folder is not in the layout that this module documents."""


@dataclass(frozen=True)
class Pair:
    """One decoded item: ``thermal`` (H,W) uint8 (stretched between its 1st and 99th percentile) or None, ``visible``
    (H,W,3) uint8, ``label`` (H,W) uint8 or None, ``meta`` the index entry."""

    name: str
    thermal: np.ndarray | None
    visible: np.ndarray
    label: np.ndarray | None
    meta: dict


@dataclass
class Pairs:
    """A data set in the project's layout: ``Pairs(root, split="train", lighting=("day", "dusk"))[i]`` -> Pair.

    Files are decoded on access. ``weights`` (N,) float64 sums to 1 and gives every scene the same weight: frames of one
    sequence share one. Raises :class:`PairsError` that says what was found and expected.
    """

    root: Path
    split: str | None = None
    lighting: tuple[str, ...] | None = None
    sources: tuple[str, ...] | None = None
    entries: list[dict] = field(init=False)

    def __post_init__(self) -> None:
        self.root = Path(self.root)
        index = self.root / "index.jsonl"
        if not index.is_file():
            raise PairsError(
                f"{index} does not exist; a data set is a folder with index.jsonl, thermal/ and visible/ (docs/data.md)"
            )
        self.entries, read = [], []
        for number, line in enumerate(index.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                if not isinstance(entry["name"], str):
                    raise TypeError(f"its name is {entry['name']!r}, no string")
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise PairsError(f'{index}, line {number}: expected a JSON object with "name"; {error!r}') from error
            read.append(entry)
            if (
                (self.split is None or entry.get("split") == self.split)
                and (self.lighting is None or entry.get("lighting", "day") in self.lighting)
                and (self.sources is None or entry.get("source") in self.sources)
            ):
                self.entries.append(entry)
        if not self.entries:
            raise PairsError(
                f"{index} has no entry with split={self.split!r}, lighting={self.lighting}, sources={self.sources} "
                f"(null or None takes all); it has {_values(read, 'split')}; {_values(read, 'lighting')}; "
                f"{_values(read, 'source')}"
            )
        scenes = [e.get("sequence") or e["name"] for e in self.entries]
        counts = Counter(scenes)
        weights = np.array([1.0 / counts[s] for s in scenes])
        self.weights = weights / weights.sum()
        self._files = {kind: self._list(kind) for kind in ("thermal", "visible", "photo", "label")}
        colour = self._files["visible"] | self._files["photo"]
        self._complain([e["name"] for e in self.entries if e["name"] not in colour], "visible/NAME or photo/NAME")
        if self._files["thermal"]:
            self.require("thermal")

    def require(self, kind: str) -> Pairs:
        """These pairs, if every entry has a file of ``kind`` ("thermal", "label"); else raises :class:`PairsError`."""
        self._complain([e["name"] for e in self.entries if e["name"] not in self._files[kind]], f"{kind}/NAME")
        return self

    def _complain(self, missing: list[str], what: str) -> None:
        if missing:
            raise PairsError(
                f"{self.root}: {len(missing)} of {len(self.entries)} entries have no picture {what} "
                f"({', '.join(SUFFIXES)}); the first is {missing[0]!r}"
            )

    def _list(self, kind: str) -> dict[str, Path]:
        folder = self.root / kind
        if not folder.is_dir():
            return {}
        return {p.stem: p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES}

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, i: int) -> Pair:
        entry = self.entries[i]
        name = entry["name"]
        path = self._files["visible"].get(name) or self._files["photo"][name]
        with Image.open(path) as picture:
            visible = np.asarray(picture.convert("RGB"))
        thermal = label = None
        if name in self._files["thermal"]:
            stretched = normalise(read_thermal(self._files["thermal"][name]))
            thermal = np.round((stretched + 1) * 127.5).astype(np.uint8)
            self._same_size(name, "thermal", thermal, visible)
        if name in self._files["label"]:
            with Image.open(self._files["label"][name]) as picture:
                label = np.asarray(picture)
            if label.dtype != np.uint8:
                raise PairsError(f"{self.root}, {name}: the label map is {label.dtype}; expected 8-bit class ids")
            self._same_size(name, "label", label, visible)
        return Pair(name, thermal, visible, label, entry)

    def _same_size(self, name: str, kind: str, picture: np.ndarray, visible: np.ndarray) -> None:
        if picture.shape != visible.shape[:2]:
            raise PairsError(
                f"{self.root}, {name}: {kind} is {picture.shape}, the colour picture is {visible.shape[:2]} "
                "(height, width); pairs are aligned pixel by pixel, crop or resample them to one size"
            )


def _values(entries: list[dict], key: str) -> str:
    found = Counter(str(entry.get(key)) for entry in entries)
    return f"{key}: {', '.join(f'{value} ({n})' for value, n in found.most_common(8)) or 'nothing'}"
