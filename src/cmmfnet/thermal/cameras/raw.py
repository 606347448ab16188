"""Frames of plain numbers without a header, as sensors and SDKs write them: the user says how they
lie."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np

from cmmfnet.thermal.cameras.layout import better_type, better_width
from cmmfnet.thermal.cameras.reading import Reading
from cmmfnet.thermal.limits import ThermalFileError, check_size

_TYPES = {"uint8": "u1", "uint16": "u2", "int16": "i2", "uint32": "u4", "float32": "f4"}
_FORM = re.compile(
    r"(\d{1,6})x(\d{1,6}),(uint8|uint16|int16|uint32|float32)(le|be)?(?:,skip(\d{1,9}))?"
)


@dataclass(frozen=True)
class RawLayout:
    """How frames lie in a file: ``--raw 640x512,uint16le``.

    Attributes:
        width, height: of a frame, pixels.
        dtype: of a number.
        skip: bytes before each frame that are not pixels.
    """

    width: int
    height: int
    dtype: np.dtype
    skip: int = 0

    @property
    def bytes(self) -> int:
        """Of a frame, ``skip`` included."""
        return self.skip + self.width * self.height * self.dtype.itemsize

    def count(self, size: int, name: str, max_pixels: int) -> int:
        """The number of frames in a file of ``size`` bytes.

        Raises:
            ThermalFileError: not a whole number of frames.
        """
        check_size(name, self.width, self.height, max_pixels)
        if size == 0 or size % self.bytes:
            raise ThermalFileError(
                f"{name}: {size} bytes are {size / self.bytes:.3f} frames of {self.width} x "
                f"{self.height} {self.dtype.name}; expected a whole number ({self.bytes} bytes a "
                "frame). Check the size, the type, or add ,skipN for N bytes before each frame"
            )
        return size // self.bytes

    def frames(self, stream: BinaryIO, name: str, size: int, max_pixels: int) -> Iterator[Reading]:
        """The frames of a file of ``size`` bytes.

        Raises:
            ThermalFileError: not a whole number of frames, or another layout fits far better.
        """
        for number in range(self.count(size, name, max_pixels)):
            stream.seek(number * self.bytes)
            content = stream.read(self.bytes)
            values = np.frombuffer(content, self.dtype, self.width * self.height, self.skip)
            frame = values.reshape(self.height, self.width)
            if number == 0:
                self._check_fit(frame, content[self.skip :], name, size)
            yield Reading(frame)

    def _check_fit(self, frame: np.ndarray, content: bytes, name: str, size: int) -> None:
        """Refuse a layout whose first frame is noise, slanted stripes or a doubled picture, where
        another layout gives a smooth one."""
        types = [
            dtype
            for dtype in (np.dtype(order + each) for each in _TYPES.values() for order in "<>")
            if dtype != self.dtype and size % replace(self, dtype=dtype).bytes == 0
        ]
        if (dtype := better_type(content, self.dtype, types)) is not None:
            found = replace(self, dtype=dtype)
        elif (width := better_width(frame)) is not None:
            found = replace(self, width=width, height=frame.size // width)
            narrow = np.dtype("u1")
            if (
                2 * width == self.width
                and self.dtype.itemsize == 2
                and size % (halved := replace(self, dtype=narrow)).bytes == 0
            ):
                found = halved
        else:
            return
        raise ThermalFileError(
            f"{name}: read as {self}, its pixels do not fit together; read as {found}, they do. "
            f"If that is right, type {found}"
        )

    def __str__(self) -> str:
        order = "" if self.dtype.itemsize == 1 else "be" if self.dtype.str[0] == ">" else "le"
        skip = f",skip{self.skip}" if self.skip else ""
        return f"{self.width}x{self.height},{self.dtype.name}{order}{skip}"


def parse_raw(text: str) -> RawLayout:
    """``"640x512,uint16le"`` or ``"640x512,uint16be,skip128"``; without le or be: little-endian.

    Raises:
        ThermalFileError: not of that form.
    """
    match = _FORM.fullmatch(text.strip().lower())
    if match is None or int(match[1]) < 1 or int(match[2]) < 1:
        raise ThermalFileError(
            f"raw layout {text!r}; expected WIDTHxHEIGHT,TYPE with TYPE one of "
            f"{', '.join(_TYPES)} and le or be, e.g. 640x512,uint16le"
        )
    dtype = np.dtype((">" if match[4] == "be" else "<") + _TYPES[match[3]])
    return RawLayout(int(match[1]), int(match[2]), dtype, int(match[5] or 0))
