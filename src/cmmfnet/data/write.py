"""Writes data sets in the layout of data/pairs.py: pictures first, the index last."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cmmfnet.data.store import KINDS
from cmmfnet.files.atomic import atomic_write


@dataclass(frozen=True)
class PairsWriter:
    """A data set that is being made in the folder ``root``. It can be sent to other processes."""

    root: Path

    @property
    def index(self) -> Path:
        return self.root / "index.jsonl"

    def refuse_finished(self) -> PairsWriter:
        """This writer. Raises FileExistsError where the folder has an index already."""
        if self.index.exists():
            raise FileExistsError(
                f"{self.root} is a data set already (it has index.jsonl); name another folder"
            )
        return self

    def write(self, name: str, **pictures: np.ndarray) -> None:
        """Write pictures of one entry as PNG: kind (thermal, visible, photo, label) -> (H,W) uint8
        or uint16, or (H,W,3) uint8. An older picture of that name is replaced."""
        for kind, picture in pictures.items():
            assert kind in KINDS, kind
            with atomic_write(self.root / kind / f"{name}.png", durable=False) as file:
                Image.fromarray(picture).save(file, format="PNG", compress_level=1)

    def finish(self, entries: Iterable[dict]) -> Path:
        """Write the index in one go, so that it names only pictures that are there; returns it."""
        with atomic_write(self.index, text=True) as file:
            file.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        return self.index

    def append(self, entries: Iterable[dict]) -> None:
        """Add entries to the index, after their pictures: for a data set that grows."""
        with self.index.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))
