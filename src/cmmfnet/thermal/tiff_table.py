"""The tables of a TIFF file, read without trust.

A table (IFD) lists the tags of one picture. Here only the tags that pixels depend on are read, and
their types, counts and places are checked first. ``alone`` then gives a file with the one checked
table in it, so that the decoder (tifffile) meets no other.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from cmmfnet.thermal.limits import ThermalFileError

MAX_SEGMENTS = 1 << 18
"""Strips or tiles of one picture, at most."""
_MAX_TABLES, _MAX_ENTRIES, _MAX_TEXT = 65536, 4096, 1 << 20

_FORMATS = {1: "B", 2: "s", 3: "H", 4: "I", 6: "b", 7: "s", 8: "h", 9: "i", 11: "f", 12: "d",
            13: "I", 16: "Q", 17: "q", 18: "Q"}  # fmt: skip
_WHOLE = (1, 3, 4, 13, 16, 18)

REDUCED, MASK = 1, 4
"""Bits of the tag NewSubfileType."""

# Tag -> the most values that it can have. All are whole numbers.
_PIXEL_TAGS = {
    254: 1,  # NewSubfileType
    255: 1,  # SubfileType
    256: 1,  # ImageWidth
    257: 1,  # ImageLength
    258: 1 << 16,  # BitsPerSample
    259: 1,  # Compression
    262: 1,  # PhotometricInterpretation
    266: 1,  # FillOrder
    273: 4 * MAX_SEGMENTS,  # StripOffsets
    274: 1,  # Orientation
    277: 1,  # SamplesPerPixel
    278: 1,  # RowsPerStrip
    279: 4 * MAX_SEGMENTS,  # StripByteCounts
    284: 1,  # PlanarConfiguration
    317: 1,  # Predictor
    320: 3 << 16,  # ColorMap
    322: 1,  # TileWidth
    323: 1,  # TileLength
    324: 4 * MAX_SEGMENTS,  # TileOffsets
    325: 4 * MAX_SEGMENTS,  # TileByteCounts
    330: 64,  # SubIFDs
    338: 1 << 16,  # ExtraSamples
    339: 1 << 16,  # SampleFormat
    32997: 1,  # ImageDepth
    32998: 1,  # TileDepth
}
_NO_DATA, _METADATA = 42113, 42112
_FREE_TAGS = (_NO_DATA, _METADATA)
"""Tags of GDAL: of any type, and not worth an error."""


@dataclass(frozen=True)
class Table:
    """One checked table: tag -> its values; ``order`` is ``"<"`` or ``">"``."""

    tags: dict[int, tuple]
    order: str

    def one(self, tag: int, default: int) -> int:
        values = self.tags.get(tag)
        return values[0] if values else default

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.one(257, 0), self.one(256, 0)

    @property
    def kind(self) -> tuple:
        """What the frames of one sequence have in common: size, samples, their bits and type."""
        return (*self.size, self.one(277, 1), self.tags.get(258), self.tags.get(339))

    @property
    def is_mask(self) -> bool:
        return bool(self.one(254, 0) & MASK)

    @property
    def is_reduced(self) -> bool:
        """A preview of another picture of the file."""
        return bool(self.one(254, 0) & REDUCED) or self.one(255, 0) == 2

    @property
    def no_data(self) -> object:
        """The value of GDAL's no-data tag as it stands there (text or numbers); None without."""
        values = self.tags.get(_NO_DATA)
        return None if values is None else values[0] if len(values) == 1 else values

    @property
    def metadata(self) -> str:
        """GDAL's metadata, XML; empty without."""
        values = self.tags.get(_METADATA, ("",))
        return values[0] if isinstance(values[0], str) else ""


class Tables:
    """The tables of one file, in the file's order, with the sub-tables of each behind it."""

    def __init__(self, stream: BinaryIO, name: str):
        self._stream, self._name = stream, name
        self._size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        head = stream.read(16)
        self._order = "<" if head[:2] == b"II" else ">"
        self._big = len(head) == 16 and head[2:4] in (b"+\0", b"\0+")
        if len(head) < (16 if self._big else 8):
            raise self._damaged("ends within its header")
        place = head[8:16] if self._big else head[4:8]
        self._first = struct.unpack(self._order + ("Q" if self._big else "I"), place)[0]

    def __iter__(self) -> Iterator[Table]:
        """Each table when it is asked for.

        Raises:
            ThermalFileError: a table that is damaged, or tables without end.
        """
        offset, seen = self._first, set()
        while offset:
            if offset in seen or len(seen) >= _MAX_TABLES:
                raise self._damaged("has tables without end")
            seen.add(offset)
            table, offset = self._read(offset)
            yield table
            for place in table.tags.get(330, ()):
                if place and place not in seen:
                    seen.add(place)
                    yield self._read(place)[0]

    def _damaged(self, what: str) -> ThermalFileError:
        return ThermalFileError(
            f"{self._name}: damaged TIFF that {what}; expected a complete file. Copy or export it "
            "again"
        )

    def _bytes(self, offset: int, count: int) -> bytes:
        if offset + count > self._size:
            raise self._damaged(f"ends at byte {self._size}, before its table or a value of it")
        self._stream.seek(offset)
        return self._stream.read(count)

    def _read(self, offset: int) -> tuple[Table, int]:
        """The table at ``offset``, and where the next one is (0: there is none)."""
        order, big = self._order, self._big
        count = struct.unpack(order + ("Q" if big else "H"), self._bytes(offset, 8 if big else 2))[
            0
        ]
        if count > _MAX_ENTRIES:
            raise self._damaged(f"has a table of {count} tags")
        length, start = (20, offset + 8) if big else (12, offset + 2)
        entries = self._bytes(start, length * count)
        tags = {}
        for at in range(0, len(entries), length):
            tag, kind, number = struct.unpack_from(order + ("HHQ" if big else "HHI"), entries, at)
            if tag in tags or (tag not in _PIXEL_TAGS and tag not in _FREE_TAGS):
                continue
            place = entries[at + (12 if big else 8) : at + length]
            values = self._values(tag, kind, number, place)
            if values is not None:
                tags[tag] = values
        try:
            following = self._bytes(start + length * count, 8 if big else 4)
        except ThermalFileError:  # cut off behind its last table: the picture is still there
            return Table(tags, order), 0
        return Table(tags, order), struct.unpack(order + ("Q" if big else "I"), following)[0]

    def _values(self, tag: int, kind: int, number: int, place: bytes) -> tuple | None:
        """The values of one tag; None for one that is damaged and that pixels do not depend on."""
        free = tag in _FREE_TAGS
        form = _FORMATS.get(kind)
        if form is None or (not free and kind not in _WHOLE):
            if free:
                return None
            raise self._damaged(f"has tag {tag} of type {kind}, where whole numbers are expected")
        if number == 0:
            return None
        if number > (_MAX_TEXT if free else _PIXEL_TAGS[tag]):
            if free:
                return None
            raise self._damaged(
                f"has {number} values of tag {tag}, where at most {_PIXEL_TAGS[tag]} are expected"
            )
        size = number * struct.calcsize("=" + form)
        if size > len(place):
            offset = struct.unpack(self._order + ("Q" if self._big else "I"), place)[0]
            if free and offset + size > self._size:
                return None
            place = self._bytes(offset, size)
        if form == "s":
            return (place[:size].split(b"\0")[0].decode("latin-1"),)
        return struct.unpack(f"{self._order}{number}{form}", place[:size])


def alone(stream: BinaryIO, table: Table) -> io.BufferedReader:
    """A BigTIFF file of the same contents with ``table`` as its only table."""
    size = stream.seek(0, io.SEEK_END)
    order = table.order
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HHHQ", 43, 8, 0, size)
    tags = sorted((tag, values) for tag, values in table.tags.items()
                  if tag in _PIXEL_TAGS and tag not in (254, 255, 274, 320, 330))  # fmt: skip
    entries, rest = [], b""
    behind = size + 8 + 20 * len(tags) + 8
    for tag, values in tags:
        content = struct.pack(f"{order}{len(values)}Q", *values)
        if len(values) == 1:
            place = content
        else:
            place, rest = struct.pack(order + "Q", behind + len(rest)), rest + content
        entries.append(struct.pack(order + "HHQ", tag, 16, len(values)) + place)
    tail = struct.pack(order + "Q", len(tags)) + b"".join(entries) + bytes(8) + rest
    return io.BufferedReader(_Spliced(stream, size, head, tail))


class _Spliced(io.RawIOBase):
    """A stream with its first bytes replaced by ``head``, and ``tail`` behind its end."""

    def __init__(self, stream: BinaryIO, size: int, head: bytes, tail: bytes):
        self._stream, self._size, self._head, self._tail = stream, size, head, tail
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = (0, self._at, self._size + len(self._tail))[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer) -> int:
        at, view = self._at, memoryview(buffer).cast("B")
        if at < len(self._head):
            piece = self._head[at : at + len(view)]
            view[: len(piece)] = piece
            count = len(piece)
        elif at < self._size:
            self._stream.seek(at)
            count = self._stream.readinto(view[: self._size - at])
        else:
            piece = self._tail[at - self._size : at - self._size + len(view)]
            view[: len(piece)] = piece
            count = len(piece)
        self._at += count
        return count
