"""JPEG files looked through before they are decoded: scans without end, and none at all."""

from __future__ import annotations

import re

from cmmfnet.thermal.limits import ThermalFileError

MOST_SCANS = 100
"""Progressive files have about ten. Each one costs a pass over the whole picture."""
_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")  # not a stuffed byte, fill or restart
_ALONE = (0x01, *range(0xD0, 0xD8))


def check_jpeg(data: bytes, width: int, height: int, name: str) -> None:
    """Refuse a JPEG file of too many scans, and one whose scans are too short for its picture.

    Raises:
        ThermalFileError: as above.
    """
    scans, length, arithmetic = 0, 0, False
    at = 2
    while (found := _MARKER.search(data, at)) is not None:
        marker, at = data[found.end() - 1], found.end()
        if marker == 0xD9:  # the end; camera makers put more pictures behind it
            break
        if marker in _ALONE:
            continue
        arithmetic |= marker in (0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
        size = int.from_bytes(data[at : at + 2], "big")
        if size < 2:
            break  # damaged: for the decoder to say
        at += size
        if marker == 0xDA:
            scans += 1
            following = _MARKER.search(data, at)
            end = following.start() if following else len(data)
            length += max(0, end - at)
            at = end
        if scans > MOST_SCANS:
            raise ThermalFileError(
                f"{name}: JPEG of more than {MOST_SCANS} scans, which would take minutes to "
                "decode; expected about 10 at most. Save it again, as PNG where possible"
            )
    # at least one bit for each block of 8 x 8 pixels; arithmetic coding can do with less
    least = -(-width // 8) * -(-height // 8) // 8
    if scans == 0 or (length < max(1, least) and not arithmetic):
        raise ThermalFileError(
            f"{name}: damaged or truncated JPEG: {length} bytes of picture data for {width} x "
            f"{height} pixels; expected a complete file. Copy or export it again"
        )
