"""NumPy files: .npy and .npz of one array, (H, W) or (T, H, W). Pickles are never opened."""

from __future__ import annotations

import ast
import io
import math
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from cmmfnet.thermal.cameras.reading import Reading
from cmmfnet.thermal.limits import ThermalFileError, check_size

NPY, ZIP = b"\x93NUMPY", b"PK\x03\x04"
_EXPECTED = "expected one array of numbers, (H, W), (T, H, W), (H, W, 3) or (T, H, W, 1)"


@dataclass(frozen=True)
class Array:
    """An array in a file whose numbers have not been read yet.

    Attributes:
        shape: (T, H, W, C); C is 1 or 3.
        dtype: of the numbers as stored.
        stream: at the first number.
        rows_first: C order; else Fortran order.
        start: where the first number stands in the stream.
    """

    shape: tuple[int, int, int, int]
    dtype: np.dtype
    stream: BinaryIO
    rows_first: bool
    start: int

    def frame(self, number: int, name: str) -> np.ndarray:
        """(H, W) or (H, W, 3): frame ``number``."""
        frames, height, width, channels = self.shape
        size = height * width * channels * self.dtype.itemsize
        if self.rows_first:
            self.stream.seek(self.start + number * size)
            values = np.frombuffer(self._read(size, name), self.dtype)
            values = values.reshape(height, width, channels)
        else:  # frames are interleaved: all are needed
            self.stream.seek(self.start)
            values = np.frombuffer(self._read(size * frames, name), self.dtype)
            values = values.reshape(self.shape, order="F")[number]
        return values[..., 0] if channels == 1 else values

    def _read(self, size: int, name: str) -> bytes:
        content = self.stream.read(size)
        if len(content) < size:
            raise ThermalFileError(
                f"{name}: truncated NumPy file; expected {size - len(content)} bytes more. Copy it "
                "again"
            )
        return content


def is_npz(head: bytes) -> bool:
    """Whether a ZIP file's first entry is a NumPy array."""
    length = int.from_bytes(head[26:28], "little")
    return head[30 : 30 + length].endswith(b".npy")


def frames(stream: BinaryIO, name: str, max_pixels: int) -> Iterator[Reading]:
    """The frames of a .npy or .npz file."""
    array = open_array(stream, name, max_pixels)
    for number in range(array.shape[0]):
        yield Reading(array.frame(number, name), details={"format": "NumPy"})


def open_array(stream: BinaryIO, name: str, max_pixels: int) -> Array:
    """The array of a .npy file, or the only (or first usable) one of an .npz file.

    Raises:
        ThermalFileError: damaged, of objects, of another shape, or frames of more than
            ``max_pixels``.
    """
    head = stream.read(4)
    stream.seek(0)
    if head == ZIP:
        stream = _unpack(stream, name, max_pixels)
    return _header(stream, name, max_pixels)


def _unpack(stream: BinaryIO, name: str, max_pixels: int) -> BinaryIO:
    """The .npy file in an .npz file, in memory."""
    try:
        with zipfile.ZipFile(stream) as archive:
            inside = [entry for entry in archive.infolist() if entry.filename.endswith(".npy")]
            if len(inside) != 1:
                raise ThermalFileError(
                    f"{name}: NPZ file of {len(inside)} arrays "
                    f"({', '.join(e.filename[:-4] for e in inside[:8])}); {_EXPECTED}. Save the "
                    "one that holds the thermal frames as .npy"
                )
            if inside[0].file_size > 16 * max_pixels:
                raise ThermalFileError(
                    f"{name}: NPZ file that unpacks to {inside[0].file_size / 1e6:.0f} MB; "
                    f"expected at most {16 * max_pixels / 1e6:.0f} MB. Save it as .npy, which is "
                    "read frame by frame"
                )
            with archive.open(inside[0]) as entry:
                return io.BytesIO(entry.read(inside[0].file_size))
    except ThermalFileError:
        raise
    except Exception as error:  # zipfile and zlib on hostile bytes
        raise ThermalFileError(
            f"{name}: damaged NPZ file ({type(error).__name__}: {str(error)[:200]}); expected a "
            "complete file"
        ) from error


def _header(stream: BinaryIO, name: str, max_pixels: int) -> Array:
    start = stream.read(10)
    if len(start) < 10 or start[:6] != NPY:
        raise ThermalFileError(f"{name}: no NumPy array; {_EXPECTED}")
    if start[6] == 1:
        length, rest = struct.unpack_from("<H", start, 8)[0], b""
    else:
        rest = stream.read(2)
        length = int.from_bytes(start[8:10] + rest, "little")
    try:
        if length > 10_000:
            raise ValueError(f"a header of {length} bytes")
        described = ast.literal_eval(stream.read(length).decode("latin-1"))
        dtype = np.dtype(described["descr"])
        shape = tuple(int(side) for side in described["shape"])
        rows_first = not described["fortran_order"]
    except Exception as error:
        raise ThermalFileError(
            f"{name}: damaged NumPy header ({type(error).__name__}: {str(error)[:200]}); "
            f"{_EXPECTED}"
        ) from error
    if dtype.kind not in "buif" or dtype.itemsize > 8:
        raise ThermalFileError(f"{name}: NumPy array of {dtype}; {_EXPECTED}")
    match shape:
        case (h, w):
            full = (1, h, w, 1)
        case (h, w, (1 | 3) as c) if h > 4:
            full = (1, h, w, c)
        case (t, h, w):
            full = (t, h, w, 1)
        case (t, h, w, (1 | 3) as c):
            full = (t, h, w, c)
        case (t, 1, h, w):
            full = (t, h, w, 1)
        case _:
            raise ThermalFileError(f"{name}: NumPy array of shape {shape}; {_EXPECTED}")
    if min(full) < 1:
        raise ThermalFileError(f"{name}: NumPy array of shape {shape} is empty; {_EXPECTED}")
    check_size(name, full[2], full[1], max_pixels)
    if not rows_first and math.prod(full) > 4 * max_pixels:
        raise ThermalFileError(
            f"{name}: NumPy array of shape {shape} in Fortran order is too large; save it with "
            "numpy.ascontiguousarray"
        )
    return Array(full, dtype, stream, rows_first, stream.tell())
