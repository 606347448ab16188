"""Thermal pictures in, numbers out. How files are decoded stands in thermal_files.py.

>>> import numpy as np
>>> counts = np.array([[7000, 7500], [8000, 65535]], dtype=np.uint16)
>>> thermal = read_thermal(counts)                 # or "frame.tiff", or the bytes of a file, or a
tensor
>>> thermal.values[0, 0], thermal.dtype
(np.float32(7000.0), 'uint16')
>>> normalise(thermal, span=(7000, 8000))
array([[-1.,  0.],
       [ 1.,  1.]], dtype=float32)
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from cmmfnet.thermal.decode import ThermalFileError, check_size, decode, pillow_pixels, read_file
from cmmfnet.thermal.palettes import PALETTES, coprime_step, to_grey

SAMPLE = 1_000_000
"""Pixels that percentiles are taken of, at most."""
PERCENTILES = (1.0, 99.0)
"""What a frame is stretched between."""


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
    """

    values: np.ndarray
    name: str
    dtype: str
    palette: str | None = None
    whole: bool = False


def read_thermal(
    source: str | os.PathLike | bytes | Any,
    *,
    palette: str | None = None,
    max_pixels: int = 50_000_000,
) -> Thermal:
    """Read one thermal picture.

    Args:
        source: a path; the bytes of a file; a NumPy array, torch tensor on any device, other array
            with ``__array__``, or PIL image; or a ``Thermal``, which is returned as it is. Files:
            PNG, TIFF, JPEG, BMP and WebP. Arrays: bool, integer or float of shape (H, W), (H, W,
            1), (1, H, W), (H, W, 3), (H, W, 4) or (3, H, W); where two readings are possible,
            channels are last. Equal channels are grey, alpha is ignored.
        palette: a key of ``cmmfnet.thermal.palettes.PALETTES``: turn a false-colour picture back
            into grey levels 0 to 255. ``"auto"`` takes the palette that fits best. ``None`` takes
            the luminance (Rec. 601), with a warning.
        max_pixels: files whose header claims more pixels are refused before decoding. Arrays are
            not limited.

    Returns:
        The frame, turned upright where the file has an EXIF or TIFF orientation.

    Raises:
        ThermalFileError: for anything that is not such a picture, and for an unknown palette.

    Warns:
        UserWarning: false colour, a colour photo, several pages (the first is taken), a palette
            without use.
    """
    if palette is not None and palette != "auto" and palette not in PALETTES:
        raise ThermalFileError(
            f"unknown palette {palette!r}; expected 'auto' or one of: {', '.join(PALETTES)}"
        )
    if isinstance(source, Thermal):
        return source
    maker = ""
    if isinstance(source, (str, os.PathLike)):
        name = os.fsdecode(source)
        pixels, maker = read_file(name, max_pixels)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        source = bytes(source)
        name = f"<{len(source)} bytes>"
        pixels, maker = decode(io.BytesIO(source), name, len(source), max_pixels)
    elif isinstance(source, Image.Image):
        name = "<PIL image>"
        check_size(name, *source.size, max_pixels)
        try:
            pixels = pillow_pixels(source)
        except (
            Exception
        ) as error:  # Image.open has read the header only; the file behind it may be damaged
            raise ThermalFileError(
                f"{name} cannot be decoded ({error}); expected a complete picture"
            ) from error
    else:
        name = "<array>"
        pixels = _from_array(source)
    try:
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # float64 beyond float32 becomes Inf, which normalise knows
            values, used = to_grey(pixels, name, palette, maker)
            whole = values.dtype.kind in "bui" and values.dtype.itemsize <= 2
            values = np.array(
                values, dtype=np.float32, order="C"
            )  # a copy: cameras reuse their buffers
    except ValueError as error:
        raise ThermalFileError(str(error)) from None
    return Thermal(values, name, pixels.dtype.name, used, whole)


def normalise(
    thermal: Thermal | Any,
    span: tuple[float, float] | None = None,
    percentiles: tuple[float, float] = PERCENTILES,
) -> np.ndarray:
    """Stretch a frame to the range the networks take (automatic gain control).

    Args:
        thermal: a ``Thermal`` or an array ``read_thermal`` takes.
        span: ``(low, high)`` in the frame's own units: low maps to -1, high to 1, values outside
            are clipped. ``None`` takes ``percentiles`` of this frame's finite values instead (its
            extremes where the two are equal). Frames above 1 MP are sampled for that, always at the
            same pixels.
        percentiles: (low, high), 0 <= low < high <= 100.

    Returns:
        (H, W) float32 in [-1, 1], always finite. NaN takes the median of the finite values, so that
        a dead pixel is neither hot nor cold; +Inf is 1 and -Inf is -1. Without ``span`` a constant
        frame is 0; a frame of NaN is 0.

    Raises:
        ValueError: ``span`` or ``percentiles`` are not two finite increasing numbers.
        ThermalFileError: ``thermal`` is not a picture.
    """
    values = read_thermal(thermal).values
    low, high = _pair("percentiles", percentiles) if span is None else _pair("span", span)
    if span is None and not 0 <= low < high <= 100:
        raise ValueError(
            f"percentiles {percentiles} are not within 0 to 100; the usual ones are (1, 99)"
        )
    if (whole := _whole_numbers(values)) is not None:
        steps, least = whole
        counts = np.bincount(
            steps.ravel()[:: sampling_step(values.shape)], minlength=int(steps.max()) + 1
        )
        return stretched_levels(counts, least, span, percentiles)[steps]
    finite = np.isfinite(values)
    all_finite = bool(finite.all())
    known = values.ravel() if all_finite else values[finite]
    if known.size == 0:
        return np.nan_to_num(values, nan=0.0, posinf=1.0, neginf=-1.0)
    sample = known[:: coprime_step(known.size, values.shape[1], SAMPLE)].astype(np.float64)
    if span is None:
        low, high = np.percentile(sample, (low, high)).tolist()
        if low == high:
            low, high = float(known.min()), float(known.max())
    if not all_finite:
        values = np.where(np.isnan(values), np.float32(np.median(sample)), values)
    if low == high:
        return np.select(
            [values > high, values < low], [np.float32(1), np.float32(-1)], np.float32(0)
        )
    return _stretch(values, low, high)


def may_be_counts(least: float, most: float) -> bool:
    """Whether a frame between these two values can be one of whole numbers of at most 65,536
    levels; not for NaN or Inf."""
    return abs(least) < 2**23 and abs(most) < 2**23 and most - least < 2**16 and least.is_integer()


def _whole_numbers(values: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Counts and grey levels as (H,W) int32 steps above their least value, and that value; None for
    anything else.

    With at most 65,536 levels what is done to every pixel is done once for every level: a third of
    the time of a frame.
    """
    least, most = (float(bound) for bound in (values.min(), values.max()))
    if not may_be_counts(least, most):
        return None
    steps = (values - np.float32(least)).astype(np.int32)
    return (steps, least) if (steps + np.float32(least) == values).all() else None


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
        low, high = _percentiles_of_counts(counts, *percentiles)
        low, high = (low + least, high + least) if low < high else (levels[0], levels[-1])
    if low == high:
        return np.sign(levels - low).astype(np.float32)
    return _stretch(levels, low, high)


def _percentiles_of_counts(counts: np.ndarray, *percentiles: float) -> list[float]:
    """``np.percentile`` of the numbers 0, 1, ... that occur ``counts`` times each, in its own
    arithmetic."""
    below = counts.cumsum()
    found = []
    for percentile in percentiles:
        *ranks, weight = percentile_ranks(int(below[-1]), percentile)
        start, a, b = np.searchsorted(below, ranks, side="right").tolist()
        found.append(start + (b - a) * weight)
    return found


def percentile_ranks(count: int, percentile: float) -> tuple[int, int, int, float]:
    """How ``np.percentile`` comes by one of ``count`` sorted numbers: (i, j, k, weight), and x[i] +
    (x[k] - x[j]) * weight."""
    at = (count - 1) * (percentile / 100)
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


# ---- arrays
# --------------------------------------------------------------------------------------------------


def _from_array(source: Any) -> np.ndarray:
    """-> (H, W) or (H, W, 3), bool, integer or float."""
    expected = "expected a path, the bytes of a picture file, or a numeric array (H, W), (H, W, 1), (1, H, W) or (H, W, 3)"
    if not any(
        hasattr(source, attribute) for attribute in ("detach", "__array__", "__array_interface__")
    ):
        raise ThermalFileError(f"found {type(source).__name__}; {expected}")
    try:
        if hasattr(source, "detach"):  # a torch tensor, on any device; torch is not imported here
            source = source.detach().cpu()
            source = (source.float() if "bfloat16" in str(source.dtype) else source).numpy()
        if isinstance(source, np.ma.MaskedArray):
            source = source.astype(np.float32).filled(np.nan)
        pixels = np.asarray(source)
    except Exception as error:  # the array protocol runs foreign code
        raise ThermalFileError(
            f"{type(source).__name__} does not turn into an array ({error}); {expected}"
        ) from error
    if pixels.dtype.kind not in "buif":
        raise ThermalFileError(f"array of {pixels.dtype}; {expected} of bool, integers or floats")
    if pixels.ndim == 3:
        if pixels.shape[2] in (3, 4):
            pixels = pixels[..., :3]
        elif pixels.shape[2] == 1:
            pixels = pixels[..., 0]
        elif pixels.shape[0] in (1, 3):
            pixels = pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)
    if pixels.size == 0 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        shape = tuple(np.shape(source))
        hint = "; pass one frame of the batch at a time" if len(shape) == 4 else ""
        raise ThermalFileError(f"array of shape {shape}; {expected}, not empty{hint}")
    return pixels
