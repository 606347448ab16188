"""Pairs: the project's one layout of thermal/colour pairs on disk.

A folder with

- ``index.jsonl``: one JSON object a line. ``name`` is needed; ``split`` ("train", "val", "test"), ``source``, ``sequence``
  (frames of one camera position: never split, weighted as one scene), ``lighting`` ("day", "dusk", "night"), ``sky``,
  ``caption``, ``colour_caption``, ``tags`` (COCO-Stuff names) are used where they are given.
- ``thermal/NAME.EXT``: one-channel pictures, 8 or 16 bit, anything that ``read_thermal`` takes.
- ``visible/NAME.EXT``: 8-bit RGB pictures of the same size.
- ``label/NAME.png`` (optional): uint8 class ids (``data.scenes.CLASSES``), for sources that have them.

Labelled colour photos without thermal (for simulation) have the same layout with ``photo`` in place of ``visible`` and no
``thermal``.
"""

from __future__ import annotations

import json
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
    """One decoded item. ``thermal`` (H,W) uint8 (1..99 percentile stretch) or None, ``visible`` (H,W,3) uint8, ``label`` (H,W) uint8 or None."""

    name: str
    thermal: np.ndarray | None
    visible: np.ndarray
    label: np.ndarray | None
    meta: dict


@dataclass
class Pairs:
    """A data set in the project's layout. ``Pairs(root, split="train", lighting=("day", "dusk"))``; ``pairs[i]`` -> Pair.

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
            raise PairsError(f"{index} does not exist; a data set is a folder with index.jsonl, thermal/ and visible/")
        self.entries = []
        for number, line in enumerate(index.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                entry["name"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise PairsError(f'{index}, line {number}: expected a JSON object with "name": {error!r}') from error
            if (
                (self.split is None or entry.get("split") == self.split)
                and (self.lighting is None or entry.get("lighting", "day") in self.lighting)
                and (self.sources is None or entry.get("source") in self.sources)
            ):
                self.entries.append(entry)
        if not self.entries:
            raise PairsError(f"{index} has no entry with split={self.split!r}, lighting={self.lighting}, sources={self.sources}")
        scenes = [e.get("sequence") or e["name"] for e in self.entries]
        counts = {s: scenes.count(s) for s in set(scenes)}
        weights = np.array([1.0 / counts[s] for s in scenes])
        self.weights = weights / weights.sum()
        self._files = {kind: self._list(kind) for kind in ("thermal", "visible", "photo", "label")}
        colour = self._files["visible"] or self._files["photo"]
        missing = [e["name"] for e in self.entries if e["name"] not in colour]
        if self._files["thermal"]:
            missing += [e["name"] for e in self.entries if e["name"] not in self._files["thermal"]]
        if missing:
            raise PairsError(f"{self.root}: {len(missing)} of {len(self.entries)} entries have no file, the first is {missing[0]!r}")

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
            if thermal.shape != visible.shape[:2]:
                raise PairsError(f"{name}: thermal is {thermal.shape}, visible is {visible.shape[:2]}; pairs have one size")
        if name in self._files["label"]:
            with Image.open(self._files["label"][name]) as picture:
                label = np.asarray(picture)
        return Pair(name, thermal, visible, label, entry)
