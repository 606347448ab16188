"""Disk cache of CLIP's tokens for a text, so that CLIP need not be loaded for a known text.

One file for each text in ``$CMMFNET_CACHE/text/MODEL/`` (``~/.cache/cmmfnet/text/MODEL/``), named
by the SHA-256 of the text: the text itself is not stored. A file is a SHA-256 digest and arrays in
numpy's npz format; a damaged file counts as missing and is written anew. Files are written whole or
not at all, so that any number of processes may share the folder, which may be deleted at any time.
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

MOST_TEXTS = (
    20_000  # of one model: about 0.8 GB of hidden states; later texts are encoded anew each time
)
_DIGEST = 32


def cache_folder() -> Path:
    """The folder of all models' texts."""
    return Path(os.environ.get("CMMFNET_CACHE") or Path.home() / ".cache" / "cmmfnet") / "text"


class TextCache:
    """Named arrays by text, for one model.

    Args:
        model: identifies the weights, their revision and the kind of tokens; part of the folder's
            name.
    """

    def __init__(self, model: str) -> None:
        self.folder = cache_folder() / re.sub(r"[^\w.@-]+", "--", model)
        self._room: int | None = None  # files that may still be written; None: not counted yet

    def get(self, text: str) -> dict[str, np.ndarray] | None:
        """Arrays by name, or None where there are none that can be read."""
        try:
            data = self._path(text).read_bytes()
        except OSError:  # not there, or not ours to read: the text is encoded
            return None
        if len(data) <= _DIGEST or hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
            return None
        with np.load(io.BytesIO(data[_DIGEST:]), allow_pickle=False) as arrays:
            return dict(arrays)

    def put(self, text: str, arrays: dict[str, np.ndarray]) -> None:
        """Keep arrays by name; a folder that cannot be written to costs a warning, once."""
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        content = buffer.getvalue()
        try:
            if self._room is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._room = MOST_TEXTS - sum(1 for _ in os.scandir(self.folder))
            if self._room <= 0:
                return
            self._room -= 1
            with atomic_write(self._path(text), durable=False) as file:
                file.write(hashlib.sha256(content).digest() + content)
        except OSError as error:
            self._room = 0
            warnings.warn(
                f"encoded texts cannot be kept in {self.folder} ({error}); set CMMFNET_CACHE to a "
                "folder that can be "
                "written to, or go on without",
                stacklevel=2,
            )

    def _path(self, text: str) -> Path:
        return (
            self.folder
            / f"{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}.tokens"
        )
