"""DJI radiometric JPEG (R-JPEG): the sensor's counts lie in APP3 segments, 16 bits, little-endian.

DJI publishes no way from counts to temperatures; only its own Thermal SDK knows it, and files of
different cameras differ. So the counts are given, with a note. Files of the Zenmuse XT and XT2 are
FLIR files (fff.py).
"""

from __future__ import annotations

import numpy as np

from cmmfnet.thermal.cameras import jpeg
from cmmfnet.thermal.cameras.reading import COUNTS, Reading
from cmmfnet.thermal.limits import check_size

SENSORS = ((640, 512), (1280, 1024), (336, 256), (160, 120), (256, 192), (320, 256), (384, 288))
"""(width, height) of thermal sensors that DJI builds in."""


def read(
    data: bytes, name: str, max_pixels: int, size: tuple[int, int], make: str, model: str
) -> Reading | None:
    """The counts of a DJI file.

    Args:
        data: the whole file.
        name: of the file, for messages.
        max_pixels: frames of more pixels are refused.
        size: (width, height) of the JPEG's own picture.
        make: the maker that EXIF names.
        model: the model that EXIF names.

    Returns:
        None where the file is no DJI file with counts in it.
    """
    if not make.upper().startswith("DJI"):
        return None
    body = b"".join(content for marker, content in jpeg.segments(data) if marker == jpeg.APP3)
    found = [
        (width, height)
        for width, height in (size, (size[0] // 2, size[1] // 2), *SENSORS)
        if width * height * 2 == len(body) and width
    ]
    if not found:
        return None
    width, height = found[0]
    check_size(name, width, height, max_pixels)
    counts = np.frombuffer(body, "<u2").reshape(height, width).astype(np.uint16)
    note = (
        "DJI camera: its files hold counts, and only DJI's Thermal SDK turns them into "
        "temperatures (dji_irp -a measure --measurefmt float32 writes what --raw "
        f"{width}x{height},float32le reads). The counts are used as they are; --span is in counts"
    )
    details = {"format": "DJI radiometric JPEG", "maker": "DJI"} | (
        {"model": model} if model else {}
    )
    return Reading(counts, COUNTS, details, note)
