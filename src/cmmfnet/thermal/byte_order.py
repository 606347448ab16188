"""16-bit frames whose two bytes lie in the wrong order.

FLIR's cameras keep their counts in a PNG with the bytes swapped. What exiftool cuts out of such a
file (``-RawThermalImage``) looks like texture and noise.
"""

from __future__ import annotations

import warnings

import numpy as np

from cmmfnet.thermal.fill import fill_values

_ROWS, _LEAST_SIDE = 48, 16
_EVERY = 8  # value of these rows is looked at for percentiles, which cost most
_ROUGH = 0.03
"""Half the mean squared step between neighbours over the variance: 1 for noise. Smoother frames
are right."""
_SMOOTHER = 0.6
"""A frame with swapped bytes is at least so much smoother when they are put right. Right frames,
noise included, do not get smoother at all (0.93 was the least of 4,540 measured:
benchmarks/false_alarms.py)."""
_FEW, _FEW_SMOOTHER = 4, 0.9
"""A swapped frame of few counts keeps the high byte of each, which is one of some neighbouring
numbers, where the low byte belongs. Nothing else looks like that, so less proof is enough, and
large even parts that make the frame smooth do not matter."""


def in_byte_order(pixels: np.ndarray, name: str) -> np.ndarray:
    """``pixels`` (H, W) uint16 with their bytes swapped where that makes a smooth picture of a
    rough one, with a warning; anything else as it is."""
    if pixels.dtype.newbyteorder("=") != np.uint16 or pixels.ndim != 2:
        return pixels
    if min(pixels.shape) < _LEAST_SIDE:
        return pixels
    rows = pixels[:: max(1, pixels.shape[0] // _ROWS)]
    few = _few_low_bytes(rows[:, ::3])
    if not few and _roughness(rows) < _ROUGH:  # the usual case, in little time
        return pixels
    known = ~np.isin(rows, (0, 65535, *fill_values(pixels.astype(np.float32))))
    if np.count_nonzero(known) < 64:
        return pixels
    rough, swapped = (_roughness(each, known) for each in (rows, rows.byteswap()))
    if swapped > (_FEW_SMOOTHER if few else _SMOOTHER) * rough or not (few or rough >= _ROUGH):
        return pixels
    warnings.warn(
        f"{name}: the two bytes of each 16-bit number are swapped, as in what exiftool cuts out of "
        "a FLIR file; they are put right",
        stacklevel=3,
    )
    return pixels.byteswap()


def _few_low_bytes(rows: np.ndarray) -> bool:
    """Whether the low bytes of all pixels but dead ones are two to four neighbouring numbers, none
    of them 0 (8 bits times 256)."""
    known = rows[(rows != 0) & (rows != 65535)]
    found = np.flatnonzero(np.bincount(known & 255, minlength=256) > known.size / 1000)
    return len(found) > 1 and found[0] > 0 and found[-1] - found[0] < _FEW


def _roughness(rows: np.ndarray, known: np.ndarray | None = None) -> float:
    """Of the pixels ``known``, without outliers: a few dead pixels or a border would be all that
    counts."""
    values = rows.astype(np.float32)
    if known is not None:
        values = np.clip(values, *np.percentile(values[known][::_EVERY], (2, 98)))
    steps = np.diff(values, axis=1)
    if known is not None:
        steps, values = steps[known[:, 1:] & known[:, :-1]], values[known]
    # no np.dot: its threads wait for one another on a busy machine, for 40 ms instead of .05
    spread = float(values.var())
    return float(np.square(steps).mean()) / (2 * spread) if spread and steps.size else 0.0
