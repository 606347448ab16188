"""Fill values: what programs write where there is no picture, without marking it.

Rows of zeros from a camera with telemetry, the corners of a rectified frame, -9999 outside a map:
one value far below or above all others that takes the whole contrast of a stretch.
"""

from __future__ import annotations

import numpy as np

from cmmfnet.thermal.palettes import coprime_step

_SAMPLE = 1 << 14
_LEAST_SHARE = 0.003
"""Of the pixels that one fill value has: fewer hardly move a percentile."""
_LEAST_REST = 0.02
"""Of the pixels that are picture."""
_STRAYS = 0.02
"""Of the other pixels that may lie between a fill value and the rest: the blurred edge of a rotated
frame, the numbers in a row of telemetry."""
_MOST_VALUES = 4
"""Fill values on one side."""
_GAP, _GAP_OF_LEVELS, _WIDE_GAP = 0.5, 1.0, 5.0
"""Least distance from a fill value to the rest, in units of the rest's own range (5th to 95th
percentile): for the values that programs fill with, for 0 in a frame of grey levels, where a
clipped sky is 0, too, and for any other value, such as a hot body of one temperature or one that
is cut off at 65535."""
_USUAL = {float(np.float32(value)) for value in (
    0, -1, 999, -999, 9999, -9999, 99999, -99999, -10000, -32767, -32768, -273.15,
    -1e10, 1e20, -1e20)}  # fmt: skip
_LEVELS = 8
"""Different values that the rest has, at least, and how many of their steps the gap has: in a dark
corner of an 8-bit frame, where all is 1 or 2, zeros are no fill."""
_BETWEEN = 0.5
"""Of the filled pixels: so many others may lie in the gap. The blurred edge of a frame of 80x60
pixels that is rotated by 3 degrees or more is less; around a hot body that is cut off at the end of
the range, most often twice as many pixels lie there (benchmarks/false_alarms.py --crops)."""


def fill_values(values: np.ndarray, *, grey_levels: bool = False) -> tuple[float, ...]:
    """The fill values of a frame (H, W) float32; empty where it has none.

    A fill value is exactly one number, has 0.3 % of the pixels or more, and lies outside the rest
    with a gap: half the range of the rest, and more for numbers that are not usual for it and for
    frames of ``grey_levels`` (8 bits). A sky that is cut off at 0 has no gap.
    """
    flat = values.ravel()
    sample = flat[:: coprime_step(flat.size, values.shape[1], _SAMPLE)]
    sample = np.sort(sample[np.isfinite(sample)])
    if sample.size < 64:
        return ()
    starts = np.flatnonzero(np.concatenate(([True], sample[1:] != sample[:-1])))
    ends = np.append(starts[1:], sample.size)
    often = np.flatnonzero(ends - starts >= max(4, _LEAST_SHARE * sample.size))
    if often.size == 0:
        return ()
    below, above = (_outermost(ends - starts, often, upwards) for upwards in (True, False))
    best: tuple[float, ...] = ()
    for low in below:
        for high in above:
            rest = sample[ends[low[-1]] if low else 0 : starts[high[-1]] if high else sample.size]
            found = {float(sample[starts[i]]): int(ends[i] - starts[i]) for i in (*low, *high)}
            if len(found) > len(best) and _stands_apart(rest, found, grey_levels):
                best = tuple(found)
    return best


def _outermost(counts: np.ndarray, often: np.ndarray, upwards: bool) -> list[list[int]]:
    """The choices of fill values on one side: none, the outermost of ``often``, the two outermost,
    and so on, as long as next to nothing else lies so far outside."""
    choices: list[list[int]] = [[]]
    for n in range(1, min(_MOST_VALUES, len(often)) + 1):
        chosen = often[:n] if upwards else often[::-1][:n]
        outside = counts[: chosen[-1] + 1] if upwards else counts[chosen[-1] :]
        filled = counts[chosen].sum()
        if outside.sum() - filled > 0.1 * filled:
            break
        choices.append(chosen.tolist())
    return choices


def _stands_apart(rest: np.ndarray, found: dict[float, int], grey_levels: bool) -> bool:
    """Whether the values of ``found``, with how many pixels have each, lie far outside of ``rest``
    (sorted)."""
    if len(rest) < max(64, _LEAST_REST * (len(rest) + sum(found.values()))):
        return False
    spread = _at(rest, 0.95) - _at(rest, 0.05)
    if spread <= 0:
        return False
    usual = _GAP_OF_LEVELS if grey_levels else _GAP
    gaps = {
        value: spread * (usual if value in _USUAL or abs(value) > 1e30 else _WIDE_GAP)
        for value in found
    }
    above = {value: gaps[value] for value in found if value > rest[-1]}
    below = {-value: gaps[value] for value in found if value < rest[0]}
    least = min(
        _distance(side, ordered, sum(found[sign * value] for value in side))
        for side, ordered, sign in ((above, rest, 1), (below, -rest[::-1], -1))
        if side
    )
    if least <= 0:  # the usual case, before what costs most
        return False
    steps = np.diff(rest.astype(np.float64))  # float32 overflows
    steps = steps[steps > 0]
    return len(steps) >= _LEVELS - 1 and least >= _LEVELS * float(np.median(steps))


def _distance(gaps: dict[float, float], rest: np.ndarray, filled: int) -> float:
    """How far the nearest value lies above ``rest`` (sorted); 0 if one lies nearer than its gap, or
    much of ``rest`` lies between."""
    top = _at(rest, 1 - _STRAYS)
    if any(value - top < gap for value, gap in gaps.items()):
        return 0.0
    gap_starts = top + 0.25 * (min(gaps) - top)
    between = len(rest) - np.searchsorted(rest, gap_starts, side="right")
    return min(gaps) - top if between <= _BETWEEN * filled else 0.0


def _at(ordered: np.ndarray, quantile: float) -> float:
    return float(ordered[round(quantile * (len(ordered) - 1))])


def without_fill(values: np.ndarray, fill: tuple[float, ...]) -> np.ndarray:
    """The finite values (N,) of a frame (H, W) that are picture: without its fill values, and
    without what a rotation or a blur has mixed from both at their edge."""
    filled = np.isin(values, np.array(fill, values.dtype))
    known = np.isfinite(values) & ~filled
    low, high = np.percentile(values[known], (5, 95)).tolist()
    near = _grown(filled, 2)
    mixed = np.zeros_like(known)
    if min(fill) < low:
        mixed |= near & (values < low - (high - low))
    if max(fill) > high:
        mixed |= near & (values > high + (high - low))
    rest = values[known & ~mixed]
    return rest if rest.size else values[known]


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    """``mask`` (H, W) and all pixels at most ``by`` rows and columns from it."""
    padded = np.pad(mask, by)
    height, width = mask.shape
    rows = np.any([padded[i : i + height] for i in range(2 * by + 1)], axis=0)
    return np.any([rows[:, i : i + width] for i in range(2 * by + 1)], axis=0)
