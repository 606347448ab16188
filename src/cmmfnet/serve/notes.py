"""Warnings of the library as notes for the client whose picture they are about."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator
from typing import Any

_here = threading.local()


@contextlib.contextmanager
def warnings_by_thread() -> Iterator[None]:
    """While this is open, a warning goes to the ``collected`` of its thread and is not shown.

    ``warnings.catch_warnings`` alone changes the whole process, so that threads would get each
    other's warnings.
    """

    def keep(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        notes = getattr(_here, "notes", None)
        text = str(message)
        if notes is not None and issubclass(category, UserWarning) and text not in notes:
            notes.append(text)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = keep
        yield


@contextlib.contextmanager
def collected() -> Iterator[list[str]]:
    """The warnings of this thread, without repeats; filled until the end of the block."""
    before, _here.notes = getattr(_here, "notes", None), []
    try:
        yield _here.notes
    finally:
        _here.notes = before
