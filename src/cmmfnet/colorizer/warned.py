"""Warnings about frames: a few of each kind, not one for each of a million frames."""

from __future__ import annotations

import re
import threading
import warnings
from collections import Counter
from typing import Any

from cmmfnet.files.counted import counted


class few_warnings:
    """While it lasts, warnings that differ in the file's name and in numbers alone are shown
    ``most`` times; its end counts the others. Several threads may warn.

    Only ``UserWarning`` is shown: other warnings are about the libraries' own changes.
    """

    def __init__(self, most: int = 1):
        self.most = most

    def __enter__(self) -> None:
        self._seen: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        lock = threading.Lock()
        self._caught = warnings.catch_warnings()
        self._caught.__enter__()
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        self._show = warnings.showwarning

        def show(message: Warning | str, *arguments: Any, **named: Any) -> None:
            kind = re.sub(r"-?\d[\d.,]*", "#", str(message).rpartition(": ")[2])
            with lock:
                self._seen[kind] += 1
                self._first.setdefault(kind, str(message))
                shown = self._seen[kind] <= self.most
            if shown:
                self._show(message, *arguments, **named)

        warnings.showwarning = show

    def __exit__(self, *error: Any) -> None:
        self._caught.__exit__(*error)
        for kind, count in self._seen.items():
            if count > self.most:
                name, _, text = self._first[kind].partition(": ")
                like = f"{text or name:.80}"
                more = counted(count - self.most, "more warning")
                warnings.warn(f"{more} like: {like} ...", stacklevel=2)
