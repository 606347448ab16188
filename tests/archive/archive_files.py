"""Frames of archives for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def frame(path: Path, seed: int = 0, size: tuple[int, int] = (20, 30), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, size, dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path
