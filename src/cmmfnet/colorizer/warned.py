"""Warnings about the frames of a video."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def warned_once() -> Iterator[None]:
    """Warnings that differ in numbers alone, as those of a video's frames, are shown once."""
    shown: set[str] = set()
    show = warnings.showwarning

    def once(message: Warning | str, *arguments: Any, **named: Any) -> None:
        key = re.sub(r"-?[\d.]+(?: and -?[\d.]+)*", "#", str(message)).replace(", frame #", "")
        if key not in shown:
            shown.add(key)
            show(message, *arguments, **named)

    with warnings.catch_warnings():
        warnings.showwarning = once
        yield
