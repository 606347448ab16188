"""Pictures as the bytes of files, and reading them where any warning is a failure."""

from __future__ import annotations

import io
import warnings

import numpy as np
import tifffile
from PIL import Image

from cmmfnet.thermal.frame import Thermal, read_thermal


def file_of(image: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    """A picture as a file that Pillow writes."""
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff_bytes(array: np.ndarray, **options) -> bytes:
    """A grey TIFF file, unless the options of tifffile say otherwise."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **{"photometric": "minisblack"} | options)
    return buffer.getvalue()


def read_quietly(source, **options) -> Thermal:
    """``read_thermal``, where any warning is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_thermal(source, **options)
