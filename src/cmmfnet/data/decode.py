"""Files of a pair to 8-bit arrays. Most of a data worker's time is spent here."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from cmmfnet.thermal.frame import Thermal, normalise, read_thermal
from cmmfnet.thermal.palettes import coprime_step


def stretched(frame: Thermal) -> np.ndarray:
    """``normalise(frame)`` on the scale 0 to 255: (H,W) uint8.

    Frames of 8 or 16 bits go through a table of their levels, with percentiles from a histogram:
    the same result in an eighth of the time, which is most of what a JPEG pair costs.
    """
    if frame.dtype in ("uint8", "uint16") and frame.palette is None:
        levels = frame.values.astype(frame.dtype)
        if np.array_equal(levels, frame.values):  # not so for the luminance of a coloured file
            sample = levels.ravel()[:: coprime_step(levels.size, levels.shape[1], 1_000_000)]
            counts = np.bincount(sample.ravel(), minlength=256 if frame.dtype == "uint8" else 65536)
            low, high = (quantile(counts, percent / 100) for percent in (1.0, 99.0))
            if low < high:
                grey = Thermal(
                    np.arange(len(counts), dtype=np.float32)[None], frame.name, frame.dtype
                )
                table = _to_8_bits(normalise(grey, span=(low, high)))[0]
                if frame.dtype == "uint16":
                    return table[levels]
                # bytes.translate: a quarter of the time of indexing with an array
                return np.frombuffer(levels.tobytes().translate(table.tobytes()), np.uint8).reshape(
                    levels.shape
                )
    return _to_8_bits(normalise(frame))


def quantile(counts: np.ndarray, q: float) -> float:
    """The quantile ``q`` in [0,1] of integers by their histogram ``counts`` (K,), to the bit as
    ``np.quantile`` of them (linear interpolation) has it."""
    cumulative = counts.cumsum()
    place = (int(cumulative[-1]) - 1) * q
    rank = int(place)
    low, high = (
        float(v)
        for v in np.searchsorted(
            cumulative, (rank, min(rank + 1, cumulative[-1] - 1)), side="right"
        )
    )
    share = place - rank
    return low + (high - low) * share if share < 0.5 else high - (high - low) * (1 - share)


def _to_8_bits(frame: np.ndarray) -> np.ndarray:
    return np.round((frame + 1) * 127.5).astype(np.uint8)


def colour(source: Path | bytes) -> np.ndarray:
    # not imagecodecs, which is quicker: it takes a JPEG that is cut off for a whole one
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
        return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def thermal(source: Path | bytes) -> np.ndarray:
    return stretched(read_thermal(source))


def label(source: Path | bytes) -> np.ndarray:
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
        ids = np.asarray(picture)
    if ids.dtype != np.uint8 or ids.ndim != 2:
        raise ValueError(
            f"{ids.dtype} of shape {ids.shape}; a label map has one channel of 8-bit class ids"
        )
    return ids


DECODERS = {"visible": colour, "thermal": thermal, "label": label}
