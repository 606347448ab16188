"""Where the files of a data set are: one interface for a folder of pictures and for tar shards."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from cmmfnet.files.errors import UserError
from cmmfnet.files.pictures import PICTURES

KINDS = ("thermal", "visible", "photo", "label")


class PairsError(UserError):
    """A data set is not in the layout of data/pairs.py, or a file of it cannot be used."""


class Store(Protocol):
    """The files of a data set: :class:`Folder`, or ``data.shards.Shards``."""

    def names(self, kind: str) -> Collection[str]:
        """The entries that have a file of ``kind`` (one of ``KINDS``)."""

    def where(self, kind: str, name: str) -> str:
        """The file, as messages name it."""

    def source(self, kind: str, name: str) -> Path | bytes:
        """The file or its content. Raises :class:`PairsError`."""


class Folder:
    """A folder of pictures as a :class:`Store`."""

    def __init__(self, root: Path):
        self._files: dict[str, dict[str, Path]] = {}
        for kind in KINDS:
            found = (root / kind).iterdir() if (root / kind).is_dir() else ()
            self._files[kind] = {p.stem: p for p in found if p.suffix.lower() in PICTURES}

    def names(self, kind: str) -> Collection[str]:
        return self._files[kind].keys()

    def where(self, kind: str, name: str) -> str:
        return str(self._files[kind][name])

    def source(self, kind: str, name: str) -> Path:
        return self._files[kind][name]
