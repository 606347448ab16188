"""Files of a pair to 8-bit arrays. Most of a data worker's time is spent here."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from cmmfnet.thermal.stretch import to_8_bits


def colour(source: Path | bytes) -> np.ndarray:
    # not imagecodecs, which is quicker: it accepts a truncated JPEG
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
        return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def thermal(source: Path | bytes) -> np.ndarray:
    return to_8_bits(source)


def label(source: Path | bytes) -> np.ndarray:
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
        ids = np.asarray(picture)
    if ids.dtype != np.uint8 or ids.ndim != 2:
        raise ValueError(
            f"{ids.dtype} of shape {ids.shape}; a label map has one channel of 8-bit class ids"
        )
    return ids


DECODERS = {"visible": colour, "thermal": thermal, "label": label}
