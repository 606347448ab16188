"""Numbers of things in reports."""

from __future__ import annotations


def counted(number: int, thing: str) -> str:
    """``number`` with its noun, in the plural where it is not one.

    >>> counted(1, "frame"), counted(20, "frame")
    ('1 frame', '20 frames')
    """
    return f"{number} {thing}{'s' * (number != 1)}"
