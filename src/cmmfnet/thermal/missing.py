"""Pixels without data: no-data values as text, masks and alpha channels. All become NaN in the end;
until then, they are the mask of a masked array, which leaves the other pixels their type."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path

import numpy as np

_LARGEST = 3.4e38
"""No-data values beyond this stand for "the lowest float32", however it was rounded as text."""


def no_data_mask(stored: np.ndarray, no_data: object, name: str) -> np.ndarray | None:
    """Where ``stored`` (H, W) or (H, W, C), as it lies in the file, holds the no-data value.

    Args:
        no_data: the value as the file has it: a number, or text such as ``"-9999"``, ``"65535.0"``,
            ``"-3.4e+38"`` or ``"nan"`` (GDAL writes what C prints).

    Returns:
        (H, W) bool; None where no pixel can have the value: a fraction, NaN or a number out of
        range on whole numbers.
    """
    value = _number(no_data)
    if value is None:
        if str(no_data).strip():
            warnings.warn(
                f"{name}: its no-data value {no_data!r} is not a number and is not used; expected "
                "one such as -9999 or nan",
                stacklevel=2,
            )
        return None
    found = _equal(stored, value)
    return found.all(axis=2) if found is not None and found.ndim == 3 else found


def _number(no_data: object) -> int | float | None:
    if isinstance(no_data, int | float | np.number):
        return no_data.item() if isinstance(no_data, np.number) else no_data
    if isinstance(no_data, tuple):
        return _number(no_data[0]) if no_data else None
    # some writers repeat the value for each band
    words = str(no_data).replace("\0", " ").strip().strip("'\"").split()
    if not words:
        return None
    word = words[0].lower()
    if re.fullmatch(r"[-+]?(nan.*|1\.#(qnan|snan|ind|inf).*)", word):  # as Windows prints them, too
        infinite = "#inf" in word
        return (-math.inf if word[0] == "-" else math.inf) if infinite else math.nan
    if re.fullmatch(r"[-+]?\d+,\d+(e[-+]?\d+)?", word):  # a decimal comma, from the locale
        word = word.replace(",", ".")
    for kind in (int, float):  # int first: 64 bits do not fit a float
        try:
            return kind(word)
        except ValueError:
            pass
    return None


def _equal(stored: np.ndarray, value: int | float) -> np.ndarray | None:
    if stored.dtype.kind == "f":
        if math.isnan(value):
            return None  # NaN already
        if abs(value) >= _LARGEST and stored.dtype.itemsize <= 4:
            with np.errstate(over="ignore"):
                bound = stored.dtype.type(math.copysign(_LARGEST, value))
            return stored >= bound if value > 0 else stored <= bound
        with np.errstate(over="ignore"):
            return stored == stored.dtype.type(value)
    if not math.isfinite(value) or value != int(value):
        return None
    low, high = (0, 1) if stored.dtype.kind == "b" else _range(stored.dtype)
    return stored == stored.dtype.type(int(value)) if low <= value <= high else None


def _range(dtype: np.dtype) -> tuple[int, int]:
    return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)


def alpha_mask(alpha: np.ndarray) -> np.ndarray | None:
    """Where an alpha channel (H, W) says that there is no picture.

    Alpha that is a mask has two values: 0, and one other for nearly all the rest. Any other channel
    (a graded alpha, all zeros, a second measurement) says nothing about missing pixels.

    Returns:
        (H, W) bool, or None where nothing is missing.
    """
    missing = alpha == 0
    share = np.count_nonzero(missing) / alpha.size
    if share in (0, 1):
        return None
    opaque = alpha == alpha.max()
    # the rest: edges that a program has smoothed
    return missing if np.count_nonzero(missing | opaque) >= 0.9 * alpha.size else None


def with_missing(pixels: np.ndarray, *masks: np.ndarray | None) -> np.ndarray:
    """``pixels`` (H, W) or (H, W, 3) as a masked array where one of the masks (H, W) is true; as
    they are where nothing is missing."""
    masks = [mask for mask in masks if mask is not None and mask.any()]
    if not masks:
        return pixels
    missing = np.logical_or.reduce(masks)
    if pixels.ndim == 3:
        missing = np.repeat(missing[..., None], pixels.shape[2], axis=2)
    return np.ma.array(pixels, mask=missing)


def apart(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels, masked or not -> plain pixels, and where they are missing: (H, W) bool or None."""
    if not isinstance(pixels, np.ma.MaskedArray):
        return pixels, None
    missing = np.ma.getmaskarray(pixels)
    missing = missing.any(axis=2) if missing.ndim == 3 else missing
    return pixels.data, missing if missing.any() else None


def sidecar_no_data(path: object) -> str | None:
    """The no-data value in GDAL's file of notes next to a picture (``frame.png.aux.xml``), as text;
    None without."""
    if not isinstance(path, str):
        return None
    notes = Path(path + ".aux.xml")
    try:
        text = notes.read_bytes()[: 1 << 20] if notes.is_file() else b""
    except OSError:
        return None
    found = re.search(rb"<NoDataValue[^>]*>([^<]{1,100})</NoDataValue>", text)
    return found[1].decode("latin-1") if found else None
