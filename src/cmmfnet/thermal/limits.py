"""The error of every decoder, and the limit on the size of a picture."""

from __future__ import annotations

from cmmfnet.files.errors import UserError

MAX_PIXELS = 50_000_000
"""Pixels that a picture may have by default."""


class ThermalFileError(UserError):
    """The picture cannot be used. The message names what was found, what was expected and what to
    do."""


class TooManyPixelsError(ThermalFileError):
    """The picture has more pixels than are allowed; found before it was decoded."""


def check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    """Refuse a picture of no pixels, or of more than ``max_pixels``, before it is decoded.

    Raises:
        ThermalFileError: too small. TooManyPixelsError: too large.
    """
    if width < 1 or height < 1:
        raise ThermalFileError(f"{name}: {width} x {height} pixels; expected at least 1 x 1")
    if width * height > max_pixels:
        raise TooManyPixelsError(
            f"{name}: the header claims {width} x {height} = {width * height} pixels, the limit "
            f"is {max_pixels}; if you trust the file, raise it: --max-pixels {width * height} of "
            "cmmfnet colorize, max_pixels of read_thermal"
        )
