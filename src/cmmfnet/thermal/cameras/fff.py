"""FLIR's own file format FFF, which .fff, .seq, .csq and radiometric JPEG files hold: records with
the sensor's counts, the camera's constants, and a visible photo.

Layout after exiftool's FLIR.pm (Phil Harvey). Byte orders of the header, of the counts and of the
camera's notes are three matters: all mixtures occur.
"""

from __future__ import annotations

import contextlib
import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import imagecodecs
import numpy as np

from cmmfnet.thermal.cameras import jpeg
from cmmfnet.thermal.cameras.planck import ZERO, Constants, ConstantsError, celsius
from cmmfnet.thermal.cameras.reading import CELSIUS, COUNTS, Reading
from cmmfnet.thermal.cameras.visible import Visible
from cmmfnet.thermal.limits import ThermalFileError, check_size

MAGICS = (b"FFF\0", b"AFF\0")
HEADER = 64
RAW, VISIBLE, CAMERA, PALETTE, PICTURE_IN_PICTURE = 0x01, 0x0E, 0x20, 0x22, 0x2A
_MAX_RECORDS = 1024
_EXPECTED = "expected a complete file. Copy it again from the camera"


@dataclass(frozen=True)
class Directory:
    """Where the records of one frame lie, counted from the frame's start.

    Attributes:
        records: type -> (offset, length), the first of each type.
        length: bytes from the start of the frame to the end of its last record.
    """

    records: dict[int, tuple[int, int]]
    length: int


def header(head: bytes) -> tuple[str, int, int] | None:
    """(byte order "<" or ">", offset of the directory, number of records) of the first 64 bytes of
    a frame; None where these are no header."""
    if len(head) < HEADER or head[:4] not in MAGICS:
        return None
    for order in "><":
        version, offset, count = struct.unpack_from(f"{order}3I", head, 0x14)
        if 100 <= version < 200 and 0 < count <= _MAX_RECORDS and HEADER <= offset < 2**31:
            return order, offset, count
    return None


def directory(order: str, offset: int, table: bytes) -> Directory:
    """The records that the ``table`` (32 bytes a record, at ``offset``) lists."""
    records: dict[int, tuple[int, int]] = {}
    end = offset + len(table)
    for start in range(0, len(table) - 31, 32):
        kind, at, length = struct.unpack_from(f"{order}H10xII", table, start)
        if kind and length:
            records.setdefault(kind, (at, length))
            end = max(end, at + length)
    return Directory(records, end)


def from_jpeg(data: bytes, name: str) -> bytes | None:
    """The FFF file that the APP1 segments of a JPEG file hold, put together by their numbers.

    Returns:
        None where the file has no such segments.

    Raises:
        ThermalFileError: a segment is missing, or there twice with different content.
    """
    parts: dict[int, memoryview] = {}
    for marker, content in jpeg.segments(data):
        if marker != jpeg.APP1 or content[:5] != b"FLIR\0" or len(content) < 8:
            continue
        if parts.setdefault(content[6], content[8:]) != content[8:]:
            raise ThermalFileError(
                f"{name}: damaged FLIR file with two different segments {content[6]}; {_EXPECTED}"
            )
    if not parts:
        return None
    missing = sorted(set(range(max(parts) + 1)) - set(parts))
    if missing:
        raise ThermalFileError(
            f"{name}: damaged FLIR file, segment {missing[0]} of {max(parts) + 1} is missing; "
            f"{_EXPECTED}"
        )
    return b"".join(parts[number] for number in sorted(parts))


def holds_frame(data: bytes | None) -> bool:
    """Whether the directory of a frame lists a thermal frame; editors of pictures drop it."""
    found = header(data[:HEADER]) if data else None
    if found is None:
        return False
    order, offset, count = found
    return RAW in directory(order, offset, data[offset : offset + 32 * count]).records


def frames(stream: BinaryIO, name: str, max_pixels: int) -> Iterator[Reading]:
    """The frames of a .fff, .seq or .csq file, one after another.

    Raises:
        ThermalFileError: as :func:`read`.
    """
    camera = None
    for number, (at, length) in enumerate(_places(stream)):
        if length > 16 * max_pixels + (1 << 26):
            raise ThermalFileError(
                f"{name}: FLIR frame {number} claims {length / 1e6:.0f} MB, which is too large for "
                f"{max_pixels} pixels"
            )
        stream.seek(at)
        data = stream.read(length)
        camera = camera_notes(data) or camera
        yield read(data, f"{name}, frame {number}" if number else name, max_pixels, camera)


def holds_several(stream: BinaryIO) -> bool:
    """Whether the file holds a second frame to its end. Decodes nothing."""
    size = stream.seek(0, 2)
    second = next(itertools.islice(_places(stream), 1, None), None)
    return second is not None and sum(second) <= size


def _places(stream: BinaryIO) -> Iterator[tuple[int, int]]:
    """(start, length) of each frame, which ends where its last record ends: its magic also occurs
    by chance within the counts."""
    size = stream.seek(0, 2)
    at: int | None = 0
    while at is not None and at < size:
        stream.seek(at)
        found = header(stream.read(HEADER))
        if found is None:
            at = _next_header(stream, at)
            continue
        order, offset, count = found
        stream.seek(at + offset)
        length = directory(order, offset, stream.read(32 * count)).length
        yield at, length
        at += length


def camera_notes(data: bytes) -> bytes:
    """The record of a frame that holds the camera's notes; empty where it has none."""
    order, offset, count = header(data[:HEADER]) or (">", 0, 0)
    records = directory(order, offset, data[offset : offset + 32 * count]).records
    at, length = records.get(CAMERA, (0, 0))
    return data[at : at + length]


def _next_header(stream: BinaryIO, at: int) -> int | None:
    """Where the next frame starts, from ``at`` on; None where there is none."""
    stream.seek(at)
    block = b""
    while more := stream.read(1 << 20):
        start = at - len(block)
        block += more
        at += len(more)
        place = min((p for magic in MAGICS if (p := block.find(magic)) >= 0), default=-1)
        while place >= 0:
            stream.seek(start + place)
            if header(stream.read(HEADER)) is not None:
                return start + place
            place = min((p for m in MAGICS if (p := block.find(m, place + 1)) >= 0), default=-1)
        stream.seek(at)
        block = block[-3:]
    return None


def read(
    data: bytes | memoryview, name: str, max_pixels: int, camera: bytes | None = None
) -> Reading:
    """One frame.

    Args:
        data: the frame, from its header on.
        name: of the file, for messages.
        max_pixels: frames that claim more pixels are refused.
        camera: the camera's record of an earlier frame, for frames of a sequence without one.

    Raises:
        ThermalFileError: damaged, or without a thermal frame.
    """
    view = memoryview(data)
    found = header(bytes(view[:HEADER]))
    if found is None:
        raise ThermalFileError(f"{name}: damaged FLIR file without a header; {_EXPECTED}")
    order, offset, count = found
    if offset + 32 * count > len(view):
        raise ThermalFileError(
            f"{name}: truncated FLIR file of {len(view)} bytes, its directory ends at "
            f"{offset + 32 * count}; {_EXPECTED}"
        )
    records = directory(order, offset, bytes(view[offset : offset + 32 * count])).records
    if RAW not in records:
        raise ThermalFileError(
            f"{name}: FLIR file without a thermal frame (records of types "
            f"{', '.join(map(str, sorted(records))) or 'none'}); expected one of type 1. It may "
            "have been saved by an editor that drops it: copy it again from the camera"
        )

    def content(kind: int) -> memoryview:
        at, length = records.get(kind, (0, 0))
        return view[at : at + length]

    notes = bytes(content(CAMERA)) if CAMERA in records else camera or b""
    counts, form = _counts(content(RAW), records[RAW][1], name, max_pixels)
    details = {
        "format": "FLIR FFF",
        "stored_as": form,
        "maker": "FLIR",
        **_camera_details(notes),
        **_palette(bytes(content(PALETTE))),
    }
    visible = _visible(bytes(content(VISIBLE)), bytes(content(PICTURE_IN_PICTURE)))
    time = _time(notes)
    try:
        values, unit, note = _temperatures(counts, notes, form), CELSIUS, ""
    except ConstantsError as error:
        values, unit = counts, COUNTS
        note = (
            f"{name}: the camera's constants do not give temperatures: {error}. The counts are "
            "used as they are; --span is in counts"
        )
    return Reading(values, unit, details, note, visible, time)


# ---- counts
# --------------------------------------------------------------------------------------------------


def _counts(record: memoryview, length: int, name: str, max_pixels: int) -> tuple[np.ndarray, str]:
    """-> (H, W) uint8 or uint16, and how they are stored."""
    if len(record) < 32:
        raise ThermalFileError(f"{name}: truncated FLIR file, no thermal frame; {_EXPECTED}")
    # the record's first number is small (2 or 3) in its own byte order
    order = "<" if record[1] == 0 else ">"
    width, height = struct.unpack_from(f"{order}HH", record, 2)
    body = record[32:]
    if body[:8] == b"\x89PNG\r\n\x1a\n":
        if len(record) < length:
            raise ThermalFileError(f"{name}: truncated FLIR file within its PNG; {_EXPECTED}")
        width, height, bits, colour = struct.unpack(">IIBB", body[16:26])
        check_size(name, width, height, max_pixels)
        if colour != 0 or bits not in (8, 16):
            raise ThermalFileError(
                f"{name}: thermal frame as PNG of colour type {colour} with {bits} bits; expected "
                "grey of 8 or 16 bits"
            )
        counts = _decode(imagecodecs.png_decode, body, name, (height, width))
        # PNG is big-endian; most FLIR cameras write their own little-endian words into it
        if counts.dtype == np.uint16 and order == "<":
            counts = counts.byteswap()
        return counts, "PNG"
    if body[:3] == b"\xff\xd8\xff":
        found = jpeg.frame_header(body)
        if found is None or found[0] not in (0xF7, 0xC3):
            raise ThermalFileError(
                f"{name}: thermal frame as lossy or unknown JPEG; expected JPEG-LS, lossless JPEG, "
                "PNG or plain counts"
            )
        marker, _bits, width, height = found
        check_size(name, width, height, max_pixels)
        # decoders take seconds to notice; the end's marker occurs nowhere else
        if (end := bytes(body).find(b"\xff\xd9")) < 0:
            raise ThermalFileError(f"{name}: truncated FLIR file within its JPEG; {_EXPECTED}")
        body = body[: end + 2]
        decoder = imagecodecs.jpegls_decode if marker == 0xF7 else imagecodecs.ljpeg_decode
        counts = _decode(decoder, body, name, (height, width))
        return counts, "JPEG-LS" if marker == 0xF7 else "lossless JPEG"
    check_size(name, width, height, max_pixels)
    if len(body) < width * height * 2:
        raise ThermalFileError(
            f"{name}: truncated FLIR file, {len(body)} bytes of counts, expected "
            f"{width * height * 2} for {width} x {height}; {_EXPECTED}"
        )
    counts = np.frombuffer(body, f"{order}u2", width * height).reshape(height, width)
    return counts.astype(np.uint16), "plain"


def _decode(decoder, body: memoryview, name: str, shape: tuple[int, int]) -> np.ndarray:
    try:
        counts = decoder(bytes(body))
    except Exception as error:  # decoders raise almost anything on hostile bytes
        raise ThermalFileError(
            f"{name}: damaged FLIR file, its thermal frame cannot be decoded "
            f"({type(error).__name__}: {str(error)[:200]}); {_EXPECTED}"
        ) from error
    if counts.shape != shape or counts.dtype not in (np.uint8, np.uint16):
        raise ThermalFileError(
            f"{name}: damaged FLIR file, its thermal frame is {counts.dtype} of {counts.shape}; "
            f"expected whole numbers of {shape}"
        )
    return counts


def _temperatures(counts: np.ndarray, notes: bytes, form: str) -> np.ndarray:
    constants = _constants(notes)
    if form in ("PNG", "plain") and counts.dtype == np.uint16:
        # A few writers mark the byte order wrongly. The other order must give a far smoother frame
        # and a temperature for each pixel: 8-bit values in the upper bytes are no such case.
        turned = counts.byteswap()
        if 8 * _roughness(turned) < _roughness(counts):
            with contextlib.suppress(ConstantsError):
                values = celsius(turned, constants)
                if np.isfinite(values).all():
                    return values
    return celsius(counts, constants)


def _roughness(counts: np.ndarray) -> float:
    return float(np.abs(np.diff(counts.astype(np.int32), axis=1)).mean()) if counts.size > 1 else 0


# ---- the camera's notes
# --------------------------------------------------------------------------------------------------


def _order(notes: bytes) -> str:
    return "<" if notes[1:2] == b"\0" else ">"


def _floats(notes: bytes, **offsets: int) -> dict[str, float]:
    order = _order(notes)
    return {name: struct.unpack_from(f"{order}f", notes, at)[0] for name, at in offsets.items()}


def _constants(notes: bytes) -> Constants:
    if len(notes) < 0x310:
        raise ConstantsError(
            f"the file has {len(notes)} bytes of camera notes, expected {0x310} or more"
            if notes
            else "the file has none"
        )
    found = _floats(
        notes,
        r1=0x58,
        b=0x5C,
        f=0x60,
        r2=0x30C,
        emissivity=0x20,
        distance=0x24,
        reflected=0x28,
        air=0x2C,
        window=0x30,
        window_transmission=0x34,
        humidity=0x3C,
        alpha1=0x70,
        alpha2=0x74,
        beta1=0x78,
        beta2=0x7C,
        x=0x80,
        hottest=0xA8,
        coldest=0xAC,
    )
    found["o"] = float(struct.unpack_from(f"{_order(notes)}i", notes, 0x308)[0])
    found["window_transmission"] = found["window_transmission"] or 1.0  # not filled in
    if found["humidity"] > 2:  # percent
        found["humidity"] /= 100
    constants = Constants(**found)
    if constants.r1 == constants.r2 == constants.b == 0:
        raise ConstantsError("Planck's constants are missing")
    return constants


def _camera_details(notes: bytes) -> dict[str, str | float]:
    if len(notes) < 0xF4:
        return {}
    details: dict[str, str | float] = {}
    for key, at, length in (("model", 0xD4, 32), ("lens", 0x170, 32), ("filter", 0x1EC, 16)):
        if text := plain_text(notes[at : at + length]):
            details[key] = text
    numbers = _floats(
        notes, emissivity=0x20, distance=0x24, reflected=0x28, air=0x2C, humidity=0x3C
    )
    numbers["humidity"] *= 100 if numbers["humidity"] <= 2 else 1
    for key, value in (
        ("emissivity", numbers["emissivity"]),
        ("distance_m", numbers["distance"]),
        ("reflected_temperature_c", numbers["reflected"] - ZERO),
        ("air_temperature_c", numbers["air"] - ZERO),
        ("humidity_percent", numbers["humidity"]),
    ):
        if np.isfinite(value):
            details[key] = round(value, 3)
    return details


def _palette(record: bytes) -> dict[str, str]:
    name = plain_text(record[0x50:0x70])
    return {"screen_palette": name} if name else {}


def plain_text(raw: bytes | str) -> str:
    """What stands before the first zero, if it is printable ASCII; FLIR ONE writes "*" for what it
    does not know."""
    text = raw if isinstance(raw, str) else raw.decode("latin-1")
    text = text.split("\0")[0].strip()
    return text if text.isascii() and text.isprintable() and text != "*" else ""


def _time(notes: bytes) -> float | None:
    """Seconds since 1970, UTC."""
    if len(notes) < 0x38E:
        return None
    seconds, milliseconds = struct.unpack_from(f"{_order(notes)}II", notes, 0x384)
    return seconds + min(milliseconds & 0xFFFF, 999) / 1000 if seconds else None


def _visible(record: bytes, placing: bytes) -> Visible | None:
    photo = record[32:]
    if photo[:3] != b"\xff\xd8\xff" and photo[:4] != b"\x89PNG":
        return None
    ratio, dx, dy = 0.0, 0, 0
    if len(placing) >= 8:
        ratio, dx, dy = struct.unpack_from("<fhh", placing)
        if not 0.2 <= ratio <= 20:
            ratio, dx, dy = 0.0, 0, 0
    return Visible(photo, ratio, dx, dy)
