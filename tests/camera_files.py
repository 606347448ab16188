"""Files as thermal cameras write them, made byte by byte for tests."""

from __future__ import annotations

import gzip
import io
import struct

import imagecodecs
import numpy as np
from PIL import Image

R1, R2, B, F, OFFSET = 16000.0, 0.0125, 1430.0, 1.0, -6000
"""Planck's constants of a FLIR camera, of usual size."""


def planck(celsius: np.ndarray | float) -> np.ndarray:
    """What a sensor with these constants gives for a black body: float counts."""
    return R1 / (R2 * (np.exp(B / (np.asarray(celsius, np.float64) + 273.15)) - F)) - OFFSET


def counts_of(celsius: np.ndarray) -> np.ndarray:
    """The same as the whole numbers that a camera stores."""
    return planck(celsius).round().astype(np.uint16)


def scene(height: int = 24, width: int = 32) -> np.ndarray:
    """(H, W) degrees Celsius: a ramp from 5 to 30 with a warm disc, no symmetry."""
    rows, columns = np.mgrid[:height, :width]
    ramp = 5 + 25 * (rows * width + columns) / (height * width)
    disc = (rows - height / 3) ** 2 + (columns - width / 4) ** 2 < (height / 5) ** 2
    return np.where(disc, 60.0, ramp)


def camera_notes(order: str = "<", **values: float | str | tuple[int, int]) -> bytes:
    """The record of FLIR's camera constants. Keywords replace single values; ``model`` and
    ``serial`` are texts."""
    notes = bytearray(2476)
    struct.pack_into(f"{order}H", notes, 0, 2)
    floats = {
        "emissivity": (0x20, 1.0),
        "distance": (0x24, 0.0),
        "reflected": (0x28, 293.15),
        "air": (0x2C, 293.15),
        "window": (0x30, 293.15),
        "window_transmission": (0x34, 1.0),
        "humidity": (0x3C, 0.5),
        "r1": (0x58, R1),
        "b": (0x5C, B),
        "f": (0x60, F),
        "alpha1": (0x70, 0.006569),
        "alpha2": (0x74, 0.01262),
        "beta1": (0x78, -0.002276),
        "beta2": (0x7C, -0.00667),
        "x": (0x80, 1.9),
        "hottest": (0xA8, 273.15 + 150),
        "coldest": (0xAC, 273.15 - 60),
        "r2": (0x30C, R2),
    }
    for name, (at, value) in floats.items():
        struct.pack_into(f"{order}f", notes, at, values.get(name, value))
    struct.pack_into(f"{order}i", notes, 0x308, int(values.get("o", OFFSET)))
    seconds, milliseconds = values.get("taken", (1_600_000_000, 250))
    struct.pack_into(f"{order}II", notes, 0x384, seconds, milliseconds)
    for at, text in (
        (0xD4, values.get("model", "FLIR T0")),
        (0x104, values.get("serial", "S3CRET")),
    ):
        notes[at : at + len(text)] = text.encode()
    return bytes(notes)


def raw_record(counts: np.ndarray, form: str = "plain", order: str = "<") -> bytes:
    """The record of a thermal frame; ``form``: plain, png, jpegls or ljpeg."""
    height, width = counts.shape
    head = struct.pack(f"{order}HHH", 2, width, height).ljust(32, b"\0")
    if form == "plain":
        return head + counts.astype(f"{order}u2").tobytes()
    if form == "png":  # PNG is big-endian; cameras put their own words into it
        return head + imagecodecs.png_encode(counts.byteswap() if order == "<" else counts)
    encode = {"jpegls": imagecodecs.jpegls_encode, "ljpeg": imagecodecs.ljpeg_encode}[form]
    return head + encode(counts)


def photo_record(photo: np.ndarray, form: str = "JPEG") -> bytes:
    """The record of a visible photo (H, W, 3); PNG holds Y, Cb and Cr."""
    image = Image.fromarray(photo)
    if form == "PNG":
        image = Image.frombytes("RGB", image.size, image.convert("YCbCr").tobytes())
    buffer = io.BytesIO()
    image.save(buffer, form, **({"quality": 95} if form == "JPEG" else {}))
    head = struct.pack("<HHH", 3, image.width, image.height).ljust(32, b"\0")
    return head + buffer.getvalue()


def fff(records: list[tuple[int, bytes]], order: str = ">", magic: bytes = b"FFF\0") -> bytes:
    """An FFF file of (type, content) records."""
    at = 64 + 32 * len(records)
    table, body = b"", b""
    for kind, content in records:
        table += struct.pack(f"{order}HHIIII", kind, 1, 100, 1, at + len(body), len(content)).ljust(
            32, b"\0"
        )
        body += content
    head = magic.ljust(0x14, b"\0") + struct.pack(f"{order}III", 100, 64, len(records))
    return head.ljust(64, b"\0") + table + body


def flir(
    celsius: np.ndarray | None = None,
    *,
    form: str = "plain",
    order: str = ">",
    counts_order: str = "<",
    notes_order: str = "<",
    counts: np.ndarray | None = None,
    more: list[tuple[int, bytes]] | None = None,
    **notes,
) -> bytes:
    """An FFF file of one frame that shows ``celsius``."""
    if counts is None:
        counts = counts_of(scene() if celsius is None else celsius)
    records = [
        (0x01, raw_record(counts, form, counts_order)),
        (0x20, camera_notes(notes_order, **notes)),
    ]
    return fff([*records, *(more or [])], order)


def segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


def in_jpeg(segments: list[bytes], screen: np.ndarray | None = None, **exif) -> bytes:
    """A JPEG picture with ``segments`` after its first marker. Keywords: make, model,
    orientation."""
    tags = Image.Exif()
    for tag, key in ((271, "make"), (272, "model"), (274, "orientation")):
        if key in exif:
            tags[tag] = exif[key]
    buffer = io.BytesIO()
    screen = np.full((24, 32), 90, np.uint8) if screen is None else screen
    Image.fromarray(screen).save(buffer, "JPEG", exif=tags)
    jpeg = buffer.getvalue()
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def flir_segments(inner: bytes, piece: int = 65000) -> list[bytes]:
    """APP1 segments that hold an FFF file."""
    parts = [inner[at : at + piece] for at in range(0, len(inner), piece)]
    return [
        segment(0xE1, b"FLIR\0\1" + bytes((i, len(parts) - 1)) + part)
        for i, part in enumerate(parts)
    ]


def flir_jpeg(inner: bytes | None = None, screen: np.ndarray | None = None, **exif) -> bytes:
    return in_jpeg(
        flir_segments(flir() if inner is None else inner),
        screen,
        **({"make": "FLIR Systems AB"} | exif),
    )


def dji_jpeg(counts: np.ndarray, screen: np.ndarray | None = None, **exif) -> bytes:
    body = counts.astype("<u2").tobytes()
    parts = [segment(0xE3, body[at : at + 65530]) for at in range(0, len(body), 65530)]
    screen = np.full(counts.shape, 90, np.uint8) if screen is None else screen
    return in_jpeg(parts, screen, **({"make": "DJI", "model": "ZH20T"} | exif))


def cptv(frames: list[np.ndarray], bits: int = 13, background: bool = False) -> bytes:
    """A CPTV file of (H, W) frames, 110 ms apart; ``background`` marks the first as the empty
    scene."""

    def field(code: str, value: bytes) -> bytes:
        return bytes((len(value),)) + code.encode() + value

    height, width = frames[0].shape
    header = [
        field("T", struct.pack("<Q", 1_600_000_000_000_000)),
        field("X", struct.pack("<I", width)),
        field("Y", struct.pack("<I", height)),
        field("C", b"\1"),
        field("E", b"lepton3"),
        field("N", struct.pack("<I", 77)),
        field("L", struct.pack("<f", 43.5)),
    ]
    content = b"CPTV\2H" + bytes((len(header),)) + b"".join(header)
    before = np.zeros(height * width, np.int64)
    for number, frame in enumerate(frames):
        along = frame.astype(np.int64)
        along[1::2] = along[1::2, ::-1]
        steps = along.ravel() - before
        before = along.ravel()
        packed = "".join(f"{int(s) & ((1 << bits) - 1):0{bits}b}" for s in np.diff(steps))
        packed = packed.ljust(-(-len(packed) // 8) * 8, "0")
        body = struct.pack("<i", steps[0]) + bytes(
            int(packed[i : i + 8], 2) for i in range(0, len(packed), 8)
        )
        fields = [
            field("t", struct.pack("<I", 5000 + 110 * number)),
            field("w", bytes((bits,))),
            field("f", struct.pack("<I", len(body))),
        ]
        if background and number == 0:
            fields.append(field("g", b"\1"))
        content += b"F" + bytes((len(fields),)) + b"".join(fields) + body
    return gzip.compress(content)
