"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def atomic_write(path: Path, *, text: bool = False, durable: bool = True) -> Iterator[IO]:
    """A file object whose content becomes ``path`` when the block ends well; after an error
    ``path`` is as it was.

    It is written beside its target and renamed, so that a crash, a full disk or Ctrl-C never leaves
    half a file under the name that others read. ``durable`` also flushes file and folder to the
    disk, against a power cut: for what cannot be made again. The folder is created where it is
    missing; the file gets the permissions that any new file gets.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with part.open("x" if text else "xb", encoding="utf-8" if text else None) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    if durable:
        folder = os.open(path.parent, os.O_RDONLY)  # the rename itself must survive, too
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
