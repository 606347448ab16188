"""One frame as a file holds it: values with their unit, and the camera's notes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from cmmfnet.thermal.cameras.visible import Visible

CELSIUS, COUNTS, LEVELS = "C", "counts", "grey levels"
"""The units that values can have; ``""`` where the file does not say."""


@dataclass(frozen=True, eq=False)
class Reading:
    """One frame of a file.

    Attributes:
        values: (H, W) float32 in degrees Celsius; (H, W) unsigned integers (counts) as stored; or
            the pixels of an ordinary picture, (H, W) or (H, W, 3) of any numeric type.
        unit: ``"C"``, ``"counts"``, or ``""`` where the file does not say.
        details: the camera's notes, e.g. ``maker``, ``model``, ``emissivity``; never a serial
            number or a place.
        note: why the values are counts although the camera measures temperatures; ``""`` otherwise.
        visible: the photo that the file holds in addition to the thermal frame.
        time: seconds since 1970, UTC, or since the first frame where the file knows no date.
        advice: what to add to a warning about false colour.
    """

    values: np.ndarray
    unit: str = ""
    details: Mapping[str, str | float] = field(default_factory=dict)
    note: str = ""
    visible: Visible | None = None
    time: float | None = None
    advice: str = ""
