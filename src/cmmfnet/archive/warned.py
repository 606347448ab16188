"""Warnings of an archive: each kind once, not for each of a million frames."""

from __future__ import annotations

import re
import threading
import warnings
from typing import Any


class each_warning_once:
    """While it lasts, a warning of a kind is shown once, not for each frame."""

    def __enter__(self) -> None:
        shown_before: set[str] = set()
        lock = threading.Lock()
        self._caught = warnings.catch_warnings()
        self._caught.__enter__()
        warnings.simplefilter("ignore")  # of the libraries' own changes
        warnings.simplefilter("always", UserWarning)
        show = warnings.showwarning

        def once(message: Warning | str, *arguments: Any, **named: Any) -> None:
            # without the file's name, and with any numbers
            kind = re.sub(r"-?\d[\d.,]*", "#", str(message).rpartition(": ")[2])
            with lock:
                if kind in shown_before:
                    return
                shown_before.add(kind)
            show(f"{message} (shown once)", *arguments, **named)

        warnings.showwarning = once

    def __exit__(self, *error: Any) -> None:
        self._caught.__exit__(*error)
