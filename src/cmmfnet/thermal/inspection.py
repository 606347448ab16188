"""What a thermal file holds, in words and numbers: ``cmmfnet inspect FILE``."""

from __future__ import annotations

import contextlib
import json as json_format
import sys
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from cmmfnet.thermal.frame import Thermal
from cmmfnet.thermal.limits import MAX_PIXELS, ThermalFileError
from cmmfnet.thermal.sequence import open_sequence

BINS = 16
"""Bars of the histogram."""
_COUNTED = 10_000
"""Frames that are counted, at most."""
_KELVIN_PER_COUNT = (0.01, 0.04)


@dataclass
class Inspected:
    """What ``inspect`` found: ``files`` in the order asked for, and how many could not be read."""

    files: list[dict[str, Any]]
    failed: int = 0

    @property
    def exit_status(self) -> int:
        return 1 if self.failed else 0


def inspect(
    *files: str,
    json: bool = False,
    raw: str | None = None,
    kelvin_per_count: float | None = None,
) -> Inspected:
    """Print what thermal files hold: maker, model, size, values, temperatures and a histogram.

    Args:
        files: pictures, camera files (FLIR, DJI, CPTV) or NumPy arrays
        json: print one JSON object a file and line
        raw: the files hold plain numbers, e.g. 640x512,uint16le
        kelvin_per_count: counts become degrees Celsius by count * this - 273.15, e.g. 0.01 or 0.04

    Returns:
        The same as printed, as dictionaries.
    """
    if not files:
        raise ThermalFileError("no file to inspect; expected cmmfnet inspect FILE ...")
    found = Inspected([])
    for number, file in enumerate(files):
        try:
            facts = describe(file, raw=raw, kelvin_per_count=kelvin_per_count)
        except (ThermalFileError, OSError) as error:
            found.failed += 1
            print(f"cmmfnet: failed: {error}", file=sys.stderr)
            continue
        found.files.append(facts)
        if json:
            print(json_format.dumps(facts, allow_nan=False))
        else:
            print("\n" * (number > 0) + _page(facts))
    return found


def describe(
    file: str, *, raw: str | None = None, kelvin_per_count: float | None = None
) -> dict[str, Any]:
    """The facts of one file; numbers are plain, absent ones are left out.

    Keys: ``file``, ``format``, ``maker``, ``model``, ``width``, ``height``, ``frames``, ``seconds``
    (of a sequence with time stamps), ``depth``, ``unit``, ``minimum``, ``percentile_1``,
    ``median``, ``percentile_99``, ``maximum``, ``no_data`` (pixels), ``palette``, ``orientation``,
    ``photo``, ``camera`` (its other notes), ``histogram`` (``edges``, ``pixels``), ``notes``.

    Raises:
        ThermalFileError: not a thermal file that can be read.
    """
    with warnings.catch_warnings(record=True) as caught, contextlib.ExitStack() as stack:
        warnings.simplefilter("always")
        frames = stack.enter_context(
            open_sequence(file, raw=raw, kelvin_per_count=kelvin_per_count)
        )
        first = next(frames)
        count, seconds, damaged = 1, first.time, ""
        try:
            for frame in frames:
                count, seconds = count + 1, frame.time
                if count >= _COUNTED:
                    break
        except ThermalFileError as error:
            damaged = str(error)
    notes = list(dict.fromkeys(str(warning.message) for warning in caught))
    return _facts(file, first.thermal, count, seconds, [*notes, *filter(None, [damaged])])


def _facts(
    file: str, thermal: Thermal, count: int, seconds: float | None, notes: list[str]
) -> dict[str, Any]:
    values, details = thermal.values, dict(thermal.details)
    finite = values[np.isfinite(values)]
    facts: dict[str, Any] = {"file": str(file)}
    for key in ("format", "maker", "model"):
        if key in details:
            facts[key] = details.pop(key)
    facts |= {"width": values.shape[1], "height": values.shape[0], "frames": count}
    if count > 1 and seconds is not None:
        facts["seconds"] = round(seconds, 3)
    facts |= {"depth": thermal.dtype, "unit": thermal.unit or "not given by the file"}
    if finite.size:
        low, near_low, median, near_high, high = np.percentile(finite, (0, 1, 50, 99, 100)).tolist()
        facts |= {
            "minimum": low,
            "percentile_1": near_low,
            "median": median,
            "percentile_99": near_high,
            "maximum": high,
        }
        facts = {k: round(v, 4) if isinstance(v, float) else v for k, v in facts.items()}
    facts["no_data"] = int(values.size - finite.size)
    if palette := details.pop("screen_palette", None) or thermal.palette:
        facts["palette"] = palette
    facts["orientation"] = details.pop("orientation", 1)
    if thermal.visible is not None:
        try:
            height, width = thermal.visible.pixels(MAX_PIXELS).shape[:2]
            facts["photo"] = f"{width} x {height}" + (
                ", its place is known" if thermal.visible.ratio else ""
            )
        except ThermalFileError as error:
            notes.append(str(error))
    facts["camera"] = details
    if finite.size:
        pixels, edges = np.histogram(finite, bins=BINS)
        facts["histogram"] = {
            "edges": [round(edge, 4) for edge in edges.tolist()],
            "pixels": pixels.tolist(),
        }
        if thermal.unit == "counts":
            notes += _linear_readings(median)
    facts["notes"] = notes
    return facts


def _linear_readings(median: float) -> list[str]:
    """What counts would be as temperatures of cameras with linear output, where that is likely."""
    celsius = {k: median * k - 273.15 for k in _KELVIN_PER_COUNT}
    return [
        f"if a count is {k:g} K, the median is {c:.1f} C: --kelvin-per-count {k:g}"
        for k, c in celsius.items()
        if -40 <= c <= 60
    ]


def _title(key: str) -> str:
    """A key of a camera's notes as a page shows it: distance_m is distance (m)."""
    for ending, unit in (("_c", " (C)"), ("_m", " (m)"), ("_percent", " (%)")):
        if key.endswith(ending):
            key = key.removesuffix(ending) + unit
    return key.replace("_", " ")


def _page(facts: dict[str, Any]) -> str:
    unit = {"C": " C"}.get(facts["unit"], "")
    lines = [facts["file"]]

    def line(name: str, text: Any) -> None:
        lines.append(f"  {name:<26}{text}")

    for key in ("format", "maker", "model"):
        if key in facts:
            line(key, facts[key])
    line("size", f"{facts['width']} x {facts['height']}")
    if facts["frames"] > 1:
        more = " or more" if facts["frames"] >= _COUNTED else ""
        after = f" in {facts['seconds']} s" if "seconds" in facts else ""
        line("frames", f"{facts['frames']}{more}{after}; what follows is of the first")
    line("values", f"{facts['depth']}, {facts['unit']}" + (" (Celsius)" if unit else ""))
    if "minimum" in facts:
        line("minimum to maximum", f"{facts['minimum']:.6g} to {facts['maximum']:.6g}{unit}")
        near = f"{facts['percentile_1']:.6g} to {facts['percentile_99']:.6g}{unit}"
        line("1 % to 99 %", f"{near} (shown without --span)")
        line("median", f"{facts['median']:.6g}{unit}")
    line("pixels without data", facts["no_data"])
    for key in ("palette", "photo"):
        if key in facts:
            line(key, facts[key])
    line(
        "orientation", f"{facts['orientation']}" + " (turned upright)" * (facts["orientation"] > 1)
    )
    for key, value in facts["camera"].items():
        line(_title(key), value)
    for note in facts["notes"]:
        line("note", note)
    if "histogram" in facts:
        edges, pixels = facts["histogram"]["edges"], facts["histogram"]["pixels"]
        most = max(pixels)
        for edge, number in zip(edges, pixels, strict=False):
            lines.append(f"  {edge:>12.6g}{unit}  {'#' * round(40 * number / most):<40} {number}")
    return "\n".join(lines)
