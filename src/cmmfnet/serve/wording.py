"""Options in messages, as a client has them.

Messages of the library name options of the command line (``--span 20,35``). A program sends
``span=20,35``, and a visitor of the page has a field "Values shown".
"""

from __future__ import annotations

import re
from collections.abc import Callable

from cmmfnet.thermal.palettes import PALETTES

LABELS = {
    "text": "What the picture shows",
    "span": "Values shown",
    "palette": "False colours of the file",
    "raw": "Plain numbers",
    "kelvin-per-count": "Kelvin per count",
    "fps": "Frames a second",
    "smooth": "Steadiness",
}
"""Options of the command line -> the page's fields."""
_NAMES = "|".join([*sorted(PALETTES, key=len, reverse=True), "auto", "night", "LOW,HIGH"])
_OPTION = re.compile(
    rf"--({'|'.join(LABELS)})(?![\w-])(?:[ =]((?:{_NAMES})\b|-?\d(?:[\w.,+-]*\w)?))?"
)
_PYTHON = re.compile(r" \(read_thermal\(.*?\)\)")


def for_programs(message: str) -> str:
    """A message with options as fields of a request: ``span=20,35``."""
    return _with_options(message, "{}={}".format, lambda name: name.replace("-", "_"))


def for_visitors(message: str) -> str:
    """A message with options as fields of the page: "Values shown": 20,35."""
    return _with_options(message, "{}: {}".format, lambda name: f'"{LABELS[name]}"')


def _with_options(
    message: str, pair: Callable[[str, str], str], spelled: Callable[[str], str]
) -> str:
    def put(match: re.Match) -> str:
        name = spelled(match[1])
        return pair(name, match[2]) if match[2] else name

    return _OPTION.sub(put, _PYTHON.sub("", message))
