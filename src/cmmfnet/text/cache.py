"""Disk cache of encoded texts, so that a known text needs no CLIP text encoder.

Each text has one file in ``$CMMFNET_CACHE/text/MODEL/`` (``~/.cache/cmmfnet/text/MODEL/``), named
by the SHA-256 of the text; the text itself is not stored. A file is a SHA-256 checksum followed by
arrays in numpy's npz format. Damaged files are written anew. Writes are atomic, so processes may
share the folder, and it can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import warnings
from pathlib import Path

import numpy as np

from cmmfnet.files.atomic import atomic_write

MOST_TEXTS = 20_000
"""Files of one model, about 0.8 GB of sentences; further texts are encoded on every run."""
_CHECKSUM = 32  # bytes


class TextCache:
    """Named arrays by text, for one model.

    Args:
        model: names the exact weights, their revision and the kind of tokens; part of the folder's
            name.
    """

    def __init__(self, model: str) -> None:
        root = Path(os.environ.get("CMMFNET_CACHE") or Path.home() / ".cache" / "cmmfnet")
        self.folder = root / "text" / re.sub(r"[^\w.@-]+", "--", model)
        self._room: int | None = None  # files that may still be written; None before the first

    def get(self, text: str) -> dict[str, np.ndarray] | None:
        """Arrays by name; None if the text has no file, or a damaged one."""
        try:
            data = self._path(text).read_bytes()
        except OSError:  # missing or unreadable: the caller encodes the text
            return None
        if len(data) <= _CHECKSUM or hashlib.sha256(data[_CHECKSUM:]).digest() != data[:_CHECKSUM]:
            return None
        with np.load(io.BytesIO(data[_CHECKSUM:]), allow_pickle=False) as arrays:
            return dict(arrays)

    def put(self, text: str, arrays: dict[str, np.ndarray]) -> None:
        """Keep the arrays of a text. A folder that cannot be written to gives one warning."""
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        content = buffer.getvalue()
        try:
            if self._room is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._room = MOST_TEXTS - sum(1 for _ in os.scandir(self.folder))
            if self._room > 0:
                self._room -= 1
                with atomic_write(self._path(text), durable=False) as file:
                    file.write(hashlib.sha256(content).digest() + content)
        except OSError as error:
            self._room = 0
            warnings.warn(
                f"encoded texts cannot be kept in {self.folder} ({error}). Colouring goes on; to "
                "keep them, set CMMFNET_CACHE to a folder that can be written to",
                stacklevel=2,
            )

    def _path(self, text: str) -> Path:
        name = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / f"{name}.tokens"
