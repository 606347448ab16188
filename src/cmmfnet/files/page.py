"""Pictures inside of HTML pages."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

LONGEST_SIDE = 640


def as_grey(thermal: np.ndarray) -> np.ndarray:
    """A normalised frame (H, W) in [-1, 1] as (H, W) uint8."""
    return np.clip((thermal + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8)


def data_url(pixels: np.ndarray, longest_side: int = LONGEST_SIDE, quality: int = 88) -> str:
    """(H, W) or (H, W, 3) uint8 -> a JPEG inside of a page, reduced to ``longest_side`` where it is
    larger."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
