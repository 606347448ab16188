"""Thermal frames: one picture, from a file or an array, as numbers in its own units.

Files are decoded in decode.py, tiff.py and cameras/, false colour is undone in palettes.py, and
stretch.py brings a frame to the range of the networks.

>>> import numpy as np
>>> counts = np.array([[7000, 7500], [8000, 65535]], dtype=np.uint16)
>>> thermal = read_thermal(counts)  # or "frame.tiff", the bytes of a file, a tensor, a PIL image
>>> float(thermal.values[0, 0]), thermal.dtype
(7000.0, 'uint16')
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from cmmfnet.thermal.byte_order import in_byte_order
from cmmfnet.thermal.cameras.planck import ZERO
from cmmfnet.thermal.cameras.raw import RawLayout, parse_raw
from cmmfnet.thermal.cameras.reading import CELSIUS, COUNTS, LEVELS, Reading
from cmmfnet.thermal.cameras.visible import Visible
from cmmfnet.thermal.decode import decode, opened
from cmmfnet.thermal.fill import fill_values
from cmmfnet.thermal.limits import MAX_PIXELS, ThermalFileError
from cmmfnet.thermal.missing import apart
from cmmfnet.thermal.objects import from_array, from_pillow
from cmmfnet.thermal.palettes import PALETTES, to_grey


@dataclass(frozen=True, eq=False)
class Thermal:
    """One decoded thermal frame.

    Attributes:
        values: (H, W) float32 in the units of the source: counts, degrees, or grey levels 0 to 255.
            May hold NaN and Inf. Exact for integers up to 2^24, so for every 8- and 16-bit picture.
        name: where it came from, for messages.
        dtype: name of the source's data type, e.g. ``"uint16"`` (``"float32"`` where a no-data
            value became NaN).
        palette: the palette that was inverted, ``None`` where the picture was grey or its luminance
            was taken.
        whole: surely whole numbers of 16 bits at most, signed or not: counts or grey levels as they
            were read.
        unit: of the values: ``"C"`` (degrees Celsius), ``"counts"``, ``"grey levels"``, or ``""``
            where the file does not say.
        details: the notes of a camera's file: ``maker``, ``model``, ``emissivity`` and more; never
        a
            serial number or a place.
        visible: the photo that a camera's file also holds.
    """

    values: np.ndarray
    name: str
    dtype: str
    palette: str | None = None
    whole: bool = False
    unit: str = ""
    details: Mapping[str, str | float] = field(default_factory=dict)
    visible: Visible | None = None

    @cached_property
    def fill(self) -> tuple[float, ...]:
        """Values that stand where there is no picture, though nothing marks them: a border, rows
        of telemetry (:func:`cmmfnet.thermal.fill.fill_values`). Usually empty."""
        return fill_values(self.values, grey_levels=self.unit == LEVELS)


def read_thermal(
    source: str | os.PathLike | bytes | Any,
    *,
    palette: str | None = None,
    max_pixels: int = MAX_PIXELS,
    raw: RawLayout | str | None = None,
    kelvin_per_count: float | None = None,
) -> Thermal:
    """Read one thermal picture.

    Args:
        source: a path; the bytes of a file; a NumPy array, torch tensor on any device, other array
            with ``__array__``, or PIL image; or a ``Thermal``, which is returned as it is. Files:
            PNG, TIFF, JPEG, BMP and WebP; of cameras: radiometric JPEG of FLIR (in degrees Celsius)
            and of DJI (counts), FFF, SEQ and CSQ of FLIR, CPTV, NumPy (docs/thermal.md). Arrays:
            bool, integer or float of shape (H, W), (H, W, 1), (1, H, W), (H, W, 3), (H, W, 4) or
            (3, H, W); where two readings are possible, channels are last. Equal channels are grey.
            Pixels without data become NaN: masked ones, those that alpha makes fully transparent,
            and those with the no-data value of the file.
        palette: a key of ``cmmfnet.thermal.palettes.PALETTES``: turn a false-colour picture back
            into grey levels 0 to 255. ``"auto"`` takes the palette that fits best. ``None`` takes
            the luminance (Rec. 601), with a warning.
        max_pixels: files whose header claims more pixels are refused before decoding. Arrays are
            not limited.
        raw: the file holds plain numbers without a header in this layout, e.g.
            ``"640x512,uint16le"``.
        kelvin_per_count: counts become degrees Celsius by count * kelvin_per_count - 273.15. For
            cameras with linear output: 0.01 (Lepton, Boson), 0.04 or 0.4 (Tau, Duo).

    Returns:
        The frame, turned upright where the file has an EXIF or TIFF orientation.

    Raises:
        ThermalFileError: for anything that is not such a picture, and for an unknown palette.

    Warns:
        UserWarning: false colour, a colour photo, several pictures (the first full-size one is
            taken), a palette without use, 16-bit numbers whose bytes were swapped, counts where a
            camera's file does not suffice for temperatures.
    """
    if palette is not None and palette != "auto" and palette not in PALETTES:
        raise ThermalFileError(
            f"unknown palette {palette!r}; expected 'auto' or one of: {', '.join(PALETTES)}"
        )
    if isinstance(source, Thermal):
        return source
    layout = parse_raw(raw) if isinstance(raw, str) else raw
    if isinstance(source, (str, os.PathLike)):
        name = os.fsdecode(source)
        with opened(name) as (stream, size):
            reading = decode(stream, name, size, max_pixels, layout)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        source = bytes(source)
        name = f"<{len(source)} bytes>"
        reading = decode(io.BytesIO(source), name, len(source), max_pixels, layout)
    elif isinstance(source, Image.Image):
        name = "<PIL image>"
        reading = Reading(from_pillow(source, name, max_pixels))
    else:
        name = "<array>"
        reading = Reading(from_array(source))
    return thermal_of(reading, name, palette, kelvin_per_count)


def thermal_of(
    reading: Reading,
    name: str,
    palette: str | None = None,
    kelvin_per_count: float | None = None,
) -> Thermal:
    """A frame as it was decoded -> the frame in its units; arguments, errors and warnings as in
    :func:`read_thermal`."""
    unit = reading.unit
    pixels, missing = apart(reading.values)
    if not unit:  # camera files say what their bytes are
        pixels = in_byte_order(pixels, name)
    if reading.note:
        warnings.warn(reading.note, stacklevel=3)
    if kelvin_per_count is not None:
        pixels, unit = _linear(pixels, unit, name, kelvin_per_count), CELSIUS
    try:
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # float64 beyond float32 becomes Inf, which normalise knows
            values, used = to_grey(pixels, name, palette, reading.advice)
            whole = values.dtype.kind in "bui" and values.dtype.itemsize <= 2
            values = np.array(
                values, dtype=np.float32, order="C"
            )  # a copy: cameras reuse their buffers
    except ValueError as error:
        raise ThermalFileError(str(error)) from None
    if not unit:
        levels = used is not None or pixels.dtype in (np.uint8, np.bool_)
        unit = LEVELS if levels else COUNTS if pixels.dtype.kind in "ui" else ""
    if missing is not None:
        values[missing] = np.nan
        whole = False
    return Thermal(
        values,
        name,
        reading.values.dtype.name if missing is None else "float32",
        used,
        whole,
        unit,
        reading.details,
        reading.visible,
    )


def _linear(pixels: np.ndarray, unit: str, name: str, kelvin_per_count: float) -> np.ndarray:
    """Counts of a camera with linear output -> degrees Celsius."""
    if not 1e-6 <= kelvin_per_count <= 100:
        raise ThermalFileError(
            f"{kelvin_per_count} kelvin a count; expected a number such as 0.01 or 0.04"
        )
    if unit == CELSIUS or pixels.ndim != 2 or pixels.dtype.kind not in "ui":
        found = "in degrees already" if unit == CELSIUS else f"{pixels.dtype} of {pixels.shape}"
        raise ThermalFileError(
            f"{name}: {kelvin_per_count:g} kelvin a count is for counts, and the frame is {found}; "
            "leave it out"
        )
    return (pixels * np.float64(kelvin_per_count) - ZERO).astype(np.float32)
