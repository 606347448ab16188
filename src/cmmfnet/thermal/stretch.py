"""The stretch of a thermal frame to [-1, 1], the range that the networks take.

>>> import numpy as np
>>> counts = np.array([[7000, 7500], [8000, 65535]], dtype=np.uint16)
>>> normalise(counts, span=(7000, 8000))
array([[-1.,  0.],
       [ 1.,  1.]], dtype=float32)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from cmmfnet.thermal.fill import without_fill
from cmmfnet.thermal.frame import Thermal, read_thermal
from cmmfnet.thermal.palettes import coprime_step
from cmmfnet.thermal.units import refuse_empty

SAMPLE = 1_000_000
"""Pixels that percentiles are taken of, at most."""
PERCENTILES = (1.0, 99.0)
"""What a frame is stretched between."""


def normalise(
    thermal: Thermal | Any,
    span: tuple[float, float] | None = None,
    percentiles: tuple[float, float] = PERCENTILES,
    *,
    find_fill: bool = True,
) -> np.ndarray:
    """Stretch a frame to the range the networks take (automatic gain control).

    Args:
        thermal: a ``Thermal`` or an array ``read_thermal`` takes.
        span: ``(low, high)`` in the frame's own units: low maps to -1, high to 1, values outside
            are clipped. ``None`` takes ``percentiles`` of this frame's finite values instead (its
            extremes where the two are equal). Frames above 1 MP are sampled for that, always at the
            same pixels.
        percentiles: (low, high), 0 <= low < high <= 100.
        find_fill: leave fill values out of the percentiles. False for a part of a frame that has
            been stretched before: its many pixels at 0 or 255 are the ends of that stretch.

    Returns:
        (H, W) float32 in [-1, 1], always finite. NaN takes the median of the finite values, so that
        a dead pixel is neither hot nor cold; +Inf is 1 and -Inf is -1. Without ``span`` a constant
        frame is 0, and so is a frame of NaN, each with a warning.

    Raises:
        ValueError: ``span`` or ``percentiles`` are not two finite increasing numbers.
        ThermalFileError: ``thermal`` is not a picture.
    """
    thermal = read_thermal(thermal)
    values = thermal.values
    span = checked_span(thermal, span, percentiles, find_fill=find_fill)
    if (counted := _levels(thermal, span, percentiles)) is not None:
        steps, stretched = counted
        return stretched.take(steps, mode="clip")  # unlike stretched[steps], in half the time
    finite = np.isfinite(values)
    all_finite = bool(finite.all())
    known = values.ravel() if all_finite else values[finite]
    if known.size == 0:
        warnings.warn(
            f"{thermal.name}: no pixel has a value (all are NaN or infinite), so its colours mean "
            "nothing",
            stacklevel=2,
        )
        return np.nan_to_num(values, nan=0.0, posinf=1.0, neginf=-1.0)
    sample = known[:: coprime_step(known.size, values.shape[1], SAMPLE)].astype(np.float64)
    low, high = span or _range_of(sample, known, percentiles)
    if not all_finite:
        values = np.where(np.isnan(values), np.float32(np.median(sample)), values)
    if low == high:
        return np.select(
            [values > high, values < low], [np.float32(1), np.float32(-1)], np.float32(0)
        )
    return _stretch(values, low, high)


def checked_span(
    thermal: Thermal,
    span: tuple[float, float] | None,
    percentiles: tuple[float, float] = PERCENTILES,
    *,
    find_fill: bool = True,
) -> tuple[float, float] | None:
    """The span that a frame is stretched between; None: its percentiles.

    A span that is given must leave something of the frame inside. Without one, a frame with fill
    values gets the percentiles of its other pixels, and a warning; a frame of one value gets a
    warning.

    Raises:
        ValueError: as :func:`normalise`.
    """
    if span is not None:
        span = _pair("span", span)
        refuse_empty(thermal, span)
        return span
    low, high = _pair("percentiles", percentiles)
    if not 0 <= low < high <= 100:
        raise ValueError(
            f"percentiles {percentiles} are not within 0 to 100; the usual ones are (1, 99)"
        )
    if not find_fill:
        return None
    first, last = thermal.values.flat[0], thermal.values.flat[-1]
    if math.isfinite(first) and first == last and (thermal.values == first).all():
        warnings.warn(
            f"{thermal.name}: every pixel is {first:g} (a closed shutter, a lens cap), so its "
            "colours mean nothing",
            stacklevel=3,
        )
        return None
    if not thermal.fill:
        return None
    these = " and ".join(f"{value:g}" for value in thermal.fill)
    warnings.warn(
        f"{thermal.name}: many pixels are exactly {these}, far outside the rest: a border, status "
        "rows or missing data. The stretch leaves them out; for a range of your own use "
        "--span LOW,HIGH",
        stacklevel=3,
    )
    rest = without_fill(thermal.values, thermal.fill)
    sample = rest[:: coprime_step(rest.size, thermal.values.shape[1], SAMPLE)].astype(np.float64)
    low, high = _range_of(sample, rest, percentiles)
    return (low, high) if low < high else None


def frame_span(thermal: Thermal) -> tuple[float, float] | None:
    """What :func:`normalise` stretches a frame between where it is given no span; None for a frame
    without two different finite values."""
    if (span := checked_span(thermal, None)) is not None:
        return span
    if (counted := _counted(thermal)) is not None:
        _, counts, least = counted
        low, high = span_of_counts(counts, least, PERCENTILES)
        return (low, high) if low < high else None
    values = thermal.values
    finite = np.isfinite(values)
    known = values.ravel() if finite.all() else values[finite]
    if known.size == 0:
        return None
    sample = known[:: coprime_step(known.size, values.shape[1], SAMPLE)].astype(np.float64)
    low, high = _range_of(sample, known, PERCENTILES)
    return (low, high) if low < high else None


def _range_of(
    sample: np.ndarray, known: np.ndarray, percentiles: tuple[float, float]
) -> tuple[float, float]:
    """The percentiles of ``sample``, or the extremes of ``known`` where they are equal."""
    low, high = np.percentile(sample, percentiles).tolist()
    return (low, high) if low < high else (float(known.min()), float(known.max()))


def to_8_bits(thermal: Thermal | Any) -> np.ndarray:
    """``normalise(thermal)`` on the scale 0 to 255: (H, W) uint8."""
    thermal = read_thermal(thermal)
    span = checked_span(thermal, None)
    if thermal.whole and thermal.dtype == "uint8" and sampling_step(thermal.values.shape) == 1:
        return _grey_to_8_bits(thermal.values.astype(np.uint8), span)
    if (counted := _levels(thermal, span)) is not None:
        steps, stretched = counted
        return _rounded(stretched)[steps]
    return _rounded(normalise(thermal))


def _grey_to_8_bits(grey: np.ndarray, span: tuple[float, float] | None) -> np.ndarray:
    """The same of grey levels (H, W) uint8, in a third of the time."""
    counts = np.array(Image.fromarray(grey).histogram())
    least, most = np.flatnonzero(counts)[[0, -1]].tolist()
    table = np.zeros(256, np.uint8)
    table[least : most + 1] = _rounded(stretched_levels(counts[least : most + 1], least, span))
    made = grey.tobytes().translate(table.tobytes())
    return np.frombuffer(bytearray(made), np.uint8).reshape(grey.shape)


def _rounded(stretched: np.ndarray) -> np.ndarray:
    return np.round((stretched + 1) * 127.5).astype(np.uint8)


def _levels(
    thermal: Thermal,
    span: tuple[float, float] | None = None,
    percentiles: tuple[float, float] = PERCENTILES,
) -> tuple[np.ndarray, np.ndarray] | None:
    """A frame of counts or grey levels as (H, W) steps above its least value, and what each step
    is stretched to (K,); None for any other frame.

    With at most 65,536 levels, what is done to every pixel is done once for every level: a third
    of the time.
    """
    if (counted := _counted(thermal)) is None:
        return None
    steps, counts, least = counted
    return steps, stretched_levels(counts, least, span, percentiles)


def _counted(thermal: Thermal) -> tuple[np.ndarray, np.ndarray, float] | None:
    """A frame of counts or grey levels as (H, W) steps above its least value, how often each step
    occurs (K,) among the pixels that percentiles are taken of, and the least value; None for any
    other frame."""
    values = thermal.values
    least, most = (float(bound) for bound in (values.min(), values.max()))
    if not may_be_counts(least, most):
        return None
    if thermal.whole and most - least < 256 and sampling_step(values.shape) == 1:
        steps = (values - np.float32(least)).astype(np.uint8)
        counts = np.array(Image.fromarray(steps).histogram()[: int(most - least) + 1])
        return steps, counts, least
    steps = (values - np.float32(least)).astype(np.intp)
    if not thermal.whole:
        again = steps.astype(np.float32)
        again += np.float32(least)
        if not np.array_equal(again, values):
            return None
    counts = np.bincount(
        steps.ravel()[:: sampling_step(values.shape)], minlength=int(most - least) + 1
    )
    return steps, counts, least


def may_be_counts(least: float, most: float) -> bool:
    """Whether a frame between these two values can be one of whole numbers of at most 65,536
    levels; not for NaN or Inf."""
    return abs(least) < 2**23 and abs(most) < 2**23 and most - least < 2**16 and least.is_integer()


def sampling_step(shape: tuple[int, int]) -> int:
    """Of every how many pixels the percentiles are, in a frame (H, W) of whole numbers."""
    return coprime_step(shape[0] * shape[1], shape[1], SAMPLE)


def stretched_levels(
    counts: np.ndarray,
    least: float,
    span: tuple[float, float] | None = None,
    percentiles: tuple[float, float] = PERCENTILES,
) -> np.ndarray:
    """What :func:`normalise` makes of each of the levels ``least``, ``least + 1``, ..., that occur
    ``counts`` times: float32."""
    levels = least + np.arange(float(len(counts)))
    if span is not None:
        low, high = _pair("span", span)
    else:
        low, high = span_of_counts(counts, least, percentiles)
    if low == high:
        return np.sign(levels - low).astype(np.float32)
    return _stretch(levels, low, high)


def span_of_counts(
    counts: np.ndarray, least: float, percentiles: tuple[float, float]
) -> tuple[float, float]:
    """The percentiles of the numbers ``least``, ``least + 1``, ... that occur ``counts`` times
    each, or their extremes where the percentiles are equal."""
    low, high = quantiles_of_counts(counts, *(p / 100 for p in percentiles))
    return (low + least, high + least) if low < high else (least, least + len(counts) - 1)


def quantiles_of_counts(counts: np.ndarray, *quantiles: float) -> list[float]:
    """``np.quantile``, to the bit, of the numbers 0, 1, ... that occur ``counts`` (K,) times each;
    quantiles in [0, 1]."""
    below = counts.cumsum()
    found = []
    for quantile in quantiles:
        *ranks, weight = quantile_ranks(int(below[-1]), quantile)
        start, a, b = np.searchsorted(below, ranks, side="right").tolist()
        found.append(start + (b - a) * weight)
    return found


def quantile_ranks(count: int, quantile: float) -> tuple[int, int, int, float]:
    """How ``np.quantile`` comes by one of ``count`` sorted numbers: (i, j, k, weight), and x[i] +
    (x[k] - x[j]) * weight."""
    at = (count - 1) * quantile
    a = math.floor(at)
    b, part = min(a + 1, count - 1), at - a
    return (b, a, b, part - 1) if part >= 0.5 else (a, a, b, part)


def _stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """[low, high] to [-1, 1], float32. In float64: neither end overflows, and the ends come out as
    exactly -1 and 1."""
    stretched = np.clip(values.astype(np.float64), low, high)
    stretched -= low
    stretched /= high - low
    stretched *= 2
    stretched -= 1
    return stretched.astype(np.float32)


def parse_span(text: str) -> tuple[float, float]:
    """``"20,35"`` -> ``(20.0, 35.0)``: a span as typed on the command line.

    Raises:
        ValueError: not two finite numbers, the lower one first.
    """
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"span {text!r} is not LOW,HIGH; expected two numbers with a decimal point, e.g. "
            "20,35 or 20.5,35"
        ) from None
    return _pair("span", (low, high))


def _pair(what: str, pair: Sequence[float]) -> tuple[float, float]:
    try:
        low, high = (float(number) for number in pair)
    except (TypeError, ValueError):
        raise ValueError(
            f"{what} {pair!r} is not a pair of numbers; expected (low, high), e.g. (20, 35)"
        ) from None
    if not (
        abs(low) < 3e38 and abs(high) < 3e38
    ):  # the range of float32, which frames are held in; false for NaN
        raise ValueError(
            f"{what} {low:g},{high:g} is not finite; expected two ordinary numbers, low before high"
        )
    if low >= high:
        fix = f"type {high:g},{low:g}" if low > high else "make the second number larger"
        raise ValueError(f"{what} {low:g},{high:g}: the low end must be below the high end; {fix}")
    return low, high
