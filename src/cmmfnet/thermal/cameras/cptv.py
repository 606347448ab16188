"""CPTV, the thermal video of The Cacophony Project's wildlife cameras: gzip around a header and
frames, each stored as differences to the frame before.

Layout: https://github.com/TheCacophonyProject/go-cptv/blob/master/SPECv2.md and the code of the
PyPI package ``cptv`` (Apache-2.0). That package is not used: it believes every size in the file.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from cmmfnet.thermal.cameras.reading import COUNTS, Reading
from cmmfnet.thermal.limits import ThermalFileError, check_size

GZIP = b"\x1f\x8b"
_CHUNK = 1 << 16


class _Unzipped:
    """The content of a gzip file, a few bytes at a time: how much it unpacks to is never known
    before."""

    def __init__(self, stream: BinaryIO, name: str):
        self._stream, self._name = stream, name
        self._unzip = zlib.decompressobj(31)
        self._ready = bytearray()

    def read(self, count: int) -> bytes:
        """``count`` bytes, or what is left of them."""
        while len(self._ready) < count and not self._unzip.eof:
            packed = self._unzip.unconsumed_tail or self._stream.read(_CHUNK)
            if not packed:
                break
            try:
                self._ready += self._unzip.decompress(packed, _CHUNK)
            except zlib.error as error:
                raise ThermalFileError(
                    f"{self._name}: damaged CPTV file ({error}); expected a complete file. Copy it "
                    "again"
                ) from None
        taken = bytes(self._ready[:count])
        del self._ready[:count]
        return taken

    def exactly(self, count: int) -> bytes:
        taken = self.read(count)
        if len(taken) < count:
            raise ThermalFileError(
                f"{self._name}: truncated CPTV file; expected a complete file. Copy it again"
            )
        return taken

    def fields(self) -> dict[bytes, bytes]:
        """A section's fields: code -> value."""
        count = self.exactly(1)[0]
        found = {}
        for _ in range(count):
            length, code = self.exactly(1)[0], self.exactly(1)
            found[code] = self.exactly(length)
        return found


def is_cptv(head: bytes) -> bool:
    """Whether the first bytes of a gzip file unpack to a CPTV header."""
    if head[:2] != GZIP:
        return False
    try:
        return zlib.decompressobj(31).decompress(head, 4) == b"CPTV"
    except zlib.error:
        return False


def _number(field: bytes | None) -> int:
    return int.from_bytes(field or b"", "little")


def frames(stream: BinaryIO, name: str, max_pixels: int) -> Iterator[Reading]:
    """The frames of a CPTV file, one after another; background frames are left out.

    Raises:
        ThermalFileError: no CPTV of version 1 or 2, damaged, or of more than ``max_pixels``.
    """
    unzipped = _Unzipped(stream, name)
    magic = unzipped.exactly(6)
    if magic[:4] != b"CPTV" or magic[4] not in (1, 2) or magic[5:6] != b"H":
        raise ThermalFileError(
            f"{name}: header {magic!r}; expected CPTV of version 1 or 2 (b'CPTV\\x02H')"
        )
    header = unzipped.fields()
    width, height = _number(header.get(b"X")), _number(header.get(b"Y"))
    check_size(name, width, height, max_pixels)
    if _number(header.get(b"C")) != 1:
        raise ThermalFileError(
            f"{name}: CPTV of compression {_number(header.get(b'C'))}; expected 1"
        )
    details: dict[str, str | float] = {"format": "CPTV", "maker": "The Cacophony Project"}
    for key, code in (("sensor_maker", b"B"), ("model", b"E")):
        text = header.get(code, b"").decode("latin-1").strip("\0 ")
        if text and text.isascii() and text.isprintable():
            details[key] = text
    started, rate = _number(header.get(b"T")) / 1e6, _number(header.get(b"Z")) or 9
    counts, number, first = np.zeros(width * height, np.int64), 0, None
    while section := unzipped.read(1):
        if section != b"F":
            raise ThermalFileError(
                f"{name}: damaged CPTV file, section {section!r} after {number} frames; "
                "expected b'F'"
            )
        fields = unzipped.fields()
        bits, size = _number(fields.get(b"w")), _number(fields.get(b"f"))
        needed = 4 + -(-bits * (width * height - 1) // 8)
        if not 1 <= bits <= 24 or not needed <= size <= needed + 64:
            raise ThermalFileError(
                f"{name}: damaged CPTV file, frame {number} of {bits} bits takes {size} bytes; "
                f"expected {needed}"
            )
        counts = counts + _differences(unzipped.exactly(size), bits, width, height)
        if counts.min() < 0 or counts.max() > 65535:
            raise ThermalFileError(
                f"{name}: damaged CPTV file, frame {number} has counts of {counts.min()} to "
                f"{counts.max()}; expected 0 to 65535"
            )
        if _number(fields.get(b"g")):  # the empty scene, kept for comparison
            continue
        seconds = _number(fields[b"t"]) / 1000 if b"t" in fields else number / rate
        first = seconds if first is None else first
        yield Reading(
            counts.reshape(height, width).astype(np.uint16),
            COUNTS,
            details,
            time=started + seconds - first,
        )
        number += 1


def _differences(packed: bytes, bits: int, width: int, height: int) -> np.ndarray:
    """What a frame adds to the one before, (H*W,) int64.

    The first number has 32 bits, little-endian. Each further one is added to the number before it,
    along rows that run to the right and to the left in turn, and is packed into ``bits`` bits, the
    highest first.
    """
    count = width * height - 1
    flags = np.unpackbits(np.frombuffer(packed, np.uint8, offset=4), count=count * bits)
    steps = np.zeros(count, np.int64)
    for bit in flags.reshape(count, bits).T:
        steps = steps * 2 + bit
    steps -= (steps >> (bits - 1)) << bits  # two's complement
    first = struct.unpack_from("<i", packed)
    along = np.concatenate([first, steps]).cumsum().reshape(height, width)
    along[1::2] = along[1::2, ::-1]
    return along.ravel()
