"""A span in another unit than the frame: found, and turned into one that fits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cmmfnet.thermal.limits import ThermalFileError
from cmmfnet.thermal.palettes import coprime_step

if TYPE_CHECKING:
    from cmmfnet.thermal.frame import Thermal

_LEAST_INSIDE = 0.001
"""Of the pixels: with fewer inside the span, the picture is of one or two colours."""
_FITS = 0.5
"""Of the pixels that a span turned into another unit holds, where the unit is believed."""

_CELSIUS = "degrees Celsius"
# What cameras write for degrees Celsius, the usual first: name, counts per kelvin, and whether they
# are counted from -273.15 C.
_SCALES = (
    ("centikelvin (0.01 K a count)", 100.0, True),
    ("decikelvin (0.1 K a count)", 10.0, True),
    ("counts of 0.04 K", 25.0, True),
    ("counts of 0.4 K", 2.5, True),
    ("kelvin", 1.0, True),
    ("64ths of a kelvin", 64.0, True),
    ("hundredths of a degree Celsius", 100.0, False),
    ("tenths of a degree Celsius", 10.0, False),
    (_CELSIUS, 1.0, False),
)
_SAMPLE = 1 << 16


def refuse_empty(thermal: Thermal, span: tuple[float, float]) -> None:
    """Refuse a span that leaves nearly nothing of a frame inside.

    Raises:
        ThermalFileError: with the frame's range, its unit where that can be told, and a span that
            fits.
    """
    low, high = span
    flat = thermal.values.ravel()
    if thermal.fill:
        flat = flat[~np.isin(flat, np.array(thermal.fill, flat.dtype))]
    sample = flat[:: coprime_step(flat.size, thermal.values.shape[1], _SAMPLE)]
    if np.count_nonzero((sample >= low) & (sample <= high)) > 2 * _LEAST_INSIDE * sample.size:
        return  # the usual case, in little time
    known = flat[np.isfinite(flat)]
    if known.size == 0 or np.mean((known >= low) & (known <= high)) >= _LEAST_INSIDE:
        return
    ends = np.percentile(known.astype(np.float64), (1, 99)).tolist()
    unit, fitting = _fitting(thermal, known, span)
    low_end, high_end = fitting or _wider(*ends)
    raise ThermalFileError(
        f"{thermal.name}: the span {low:g},{high:g} leaves nearly nothing of the frame inside; its "
        f"values go from {_shown(ends[0])} to {_shown(ends[1])}{unit or _unit_of(thermal)}. A span "
        f"that fits: --span={_shown(low_end)},{_shown(high_end)}"
    )


def _unit_of(thermal: Thermal) -> str:
    return {"": "", "C": " degrees Celsius"}.get(thermal.unit, f" {thermal.unit}")


def _fitting(
    thermal: Thermal, known: np.ndarray, span: tuple[float, float]
) -> tuple[str, tuple[float, float] | None]:
    """What unit the frame seems to have if the span is in another, and the span in that unit."""
    if thermal.unit == "grey levels":
        return "", None
    for given, given_scale, given_from_zero in reversed(_SCALES):  # most spans are in Celsius
        celsius = [end / given_scale - (273.15 if given_from_zero else 0) for end in span]
        if not -100 <= celsius[0] <= celsius[1] <= 2000:
            continue
        for unit, scale, from_zero in _SCALES:
            if unit == given or _CELSIUS not in (unit, given):
                continue
            if thermal.unit == "C" and unit != _CELSIUS:
                continue
            low, high = ((end + (273.15 if from_zero else 0)) * scale for end in celsius)
            if np.mean((known >= low) & (known <= high)) > _FITS:
                return f", as in {unit}, and the span looks like {given}", (low, high)
    return "", None


def _wider(low: float, high: float) -> tuple[float, float]:
    """Ends that differ, for a frame of one value, too."""
    return (low, high) if low < high else (low - 1, high + 1)


def _shown(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
