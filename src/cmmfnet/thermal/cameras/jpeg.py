"""The segments of a JPEG file before its picture, in which cameras store other data."""

from __future__ import annotations

from collections.abc import Iterator

APP1, APP3 = 0xE1, 0xE3


def segments(data: bytes) -> Iterator[tuple[int, memoryview]]:
    """(marker, content) of each segment up to the start of the picture's own data.

    A file that ends within a segment ends the list.
    """
    view = memoryview(data)
    at = 2
    while at + 4 <= len(view):
        if view[at] != 0xFF:
            return
        marker = view[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in (0xD8, 0x01) or 0xD0 <= marker <= 0xD7:  # without content
            at += 2
            continue
        if marker in (0xDA, 0xD9):  # the picture starts, or ends
            return
        length = int.from_bytes(view[at + 2 : at + 4], "big")
        if length < 2 or at + 2 + length > len(view):
            return
        yield marker, view[at + 4 : at + 2 + length]
        at += 2 + length


def frame_header(data: bytes | memoryview) -> tuple[int, int, int, int] | None:
    """(marker, bits, width, height) of a JPEG's frame header (SOF); None where there is none.

    Marker 0xF7 is JPEG-LS, 0xC3 lossless JPEG, 0xC0 to 0xC2 are lossy.
    """
    for marker, content in segments(bytes(data[:65536])):
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            if len(content) < 6:
                return None
            height, width = (int.from_bytes(content[i : i + 2], "big") for i in (1, 3))
            return marker, content[0], width, height
    return None
