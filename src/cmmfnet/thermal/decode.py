"""Files into frames: the format is found from the first bytes. PNG, JPEG, BMP and WebP are decoded
in pillow.py, TIFF in tiff.py, formats of cameras in cameras/.

Pictures come from strangers: the formats are a short list, the size is taken from the header before
anything is decoded, and whatever a decoder does with a damaged file ends in one exception type,
``ThermalFileError``.
"""

from __future__ import annotations

import contextlib
import itertools
import stat
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from cmmfnet.thermal.cameras import cptv, fff, numpy_file, raw
from cmmfnet.thermal.cameras.reading import Reading
from cmmfnet.thermal.limits import ThermalFileError
from cmmfnet.thermal.orientation import turned
from cmmfnet.thermal.pillow import OPENERS, decode_pillow
from cmmfnet.thermal.tiff import holds_second_page, tiff_pages

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),  # BigTIFF
    (b"MM\0+", "TIFF"),
    (b"GIF8", "a GIF"),
    (b"FFF\0", "FLIR"),
    (b"AFF\0", "FLIR"),
    (b"%PDF", "a PDF"),
    (numpy_file.NPY, "NumPy"),
    (numpy_file.ZIP, "NumPy"),
    (cptv.GZIP, "CPTV"),
    (b"\x1aE\xdf\xa3", "a Matroska video"),
)

# What holds frames of plain values, perhaps many: each gives them one after another.
_CAMERA_FRAMES: dict[str, Callable[[BinaryIO, str, int], Iterator[Reading]]] = {
    "FLIR": fff.frames,
    "CPTV": cptv.frames,
    "NumPy": numpy_file.frames,
}
_SUPPORTED = "PNG, TIFF, JPEG, BMP, WebP, FLIR (JPEG, FFF, SEQ, CSQ), CPTV or NumPy"


@contextlib.contextmanager
def opened(name: str) -> Iterator[tuple[BinaryIO, int]]:
    """A file of this name, and its size in bytes.

    Raises:
        ThermalFileError: no such file, or it cannot be opened.
    """
    try:
        status = Path(name).stat()
        # opening a FIFO would wait for ever, and /dev/zero never ends
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise ThermalFileError(f"{name!r}: {kind}; expected one picture file")
        stream = Path(name).open("rb")  # noqa: SIM115, closed below
    except ThermalFileError:
        raise
    except FileNotFoundError:
        raise ThermalFileError(
            f"{name!r}: no such file; check the path and the working folder"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise ThermalFileError(
            f"{name!r}: cannot be opened ({error}); expected a readable picture file"
        ) from error
    with stream:
        yield stream, status.st_size


def _identify(head: bytes) -> str:
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            if kind == "CPTV" and not cptv.is_cptv(head):
                return "a gzip file"
            if head[:4] == numpy_file.ZIP and not numpy_file.is_npz(head):
                return "a ZIP file"
            return kind
    if head[:4] == b"RIFF":
        return "WebP" if head[8:12] == b"WEBP" else "a RIFF file (AVI video?)"
    if head[4:8] == b"ftyp":
        brand = head[8:12].decode("latin-1")
        return (
            f"a HEIC or AVIF picture ({brand})"
            if brand[:3] in ("hei", "hev", "mif", "avi")
            else f"a video ({brand})"
        )
    head = head.removeprefix(b"\xef\xbb\xbf")  # the mark of UTF-8
    if head and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return "text"
    return "data of no known kind" if head else "an empty file"


def is_known(name: str) -> bool:
    """Whether a file is of a format that :func:`frames` reads, by its first bytes.

    Raises:
        ThermalFileError: no such file, or it cannot be opened.
    """
    with opened(name) as (stream, _):
        kind = _identify(stream.read(4096))
    return kind == "TIFF" or kind in OPENERS or kind in _CAMERA_FRAMES


def decode(
    stream: BinaryIO, name: str, size: int, max_pixels: int, layout: raw.RawLayout | None = None
) -> Reading:
    """The first frame of a file, turned upright; a warning where there are more.

    ``layout``: the file holds plain numbers in this layout, whatever it looks like.
    """
    first = next(frames(stream, name, size, max_pixels, layout))
    if several(stream, name, size, max_pixels, layout):
        warnings.warn(
            f"{name}: holds several pictures; the first is used. cmmfnet.open_sequence and cmmfnet "
            "colorize take them all",
            stacklevel=5,
        )
    return first


def several(
    stream: BinaryIO, name: str, size: int, max_pixels: int, layout: raw.RawLayout | None = None
) -> bool:
    """Whether a file holds a second frame that can be read; a damaged one does not count."""
    stream.seek(0)
    kind = _identify(stream.read(4096))
    stream.seek(0)
    if layout is not None:
        return size >= 2 * layout.bytes
    if kind == "TIFF":
        return holds_second_page(stream, name)
    if kind == "FLIR":
        return fff.holds_several(stream)
    if kind not in _CAMERA_FRAMES:
        return False
    try:
        return len(list(itertools.islice(frames(stream, name, size, max_pixels), 2))) == 2
    except ThermalFileError:
        return False


def frames(
    stream: BinaryIO, name: str, size: int, max_pixels: int, layout: raw.RawLayout | None = None
) -> Iterator[Reading]:
    """The frames of a file, one or more, each decoded when it is asked for.

    Raises:
        ThermalFileError: no supported format, damaged, or more than ``max_pixels`` a frame.
    """
    stream.seek(0)
    head = stream.read(4096)
    stream.seek(0)
    kind = "raw" if layout is not None else _identify(head)
    if kind != "TIFF" and kind not in OPENERS and kind not in _CAMERA_FRAMES and layout is None:
        advice = "Export the frame as 16-bit TIFF or PNG"
        if "video" in kind or kind == "a GIF":
            advice = "cmmfnet colorize makes a video of it: -o colour.mp4"
        elif kind == "data of no known kind":
            advice = (
                "Plain numbers without a header need their layout, such as --raw 640x512,uint16le"
            )
        raise ThermalFileError(
            f"{name}: found {kind}, which is not a supported picture; expected {_SUPPORTED}. "
            f"{advice}"
        )
    # Pillow and libpng read such files whole; no honest picture takes 16 bytes a pixel
    if kind in OPENERS and size > max(16 * max_pixels, 1 << 26):
        raise ThermalFileError(
            f"{name}: {kind} file of {size / 1e6:.0f} MB is too large for {max_pixels} pixels"
        )
    try:
        if layout is not None:
            for reading in layout.frames(stream, name, size, max_pixels):
                yield replace(reading, details={"format": "raw numbers"})
        elif kind == "TIFF":
            for pixels, orientation in tiff_pages(stream, name, max_pixels):
                yield turned(Reading(pixels, details={"format": kind}), orientation)
        elif kind in _CAMERA_FRAMES:
            found = False
            for reading in _CAMERA_FRAMES[kind](stream, name, max_pixels):
                found = True
                yield reading
            if not found:
                raise ThermalFileError(
                    f"{name}: damaged {kind} file without a frame; expected a complete file. Copy "
                    "it again"
                )
        else:
            yield decode_pillow(stream, name, kind, head, max_pixels)
    except (
        ThermalFileError,
        UserWarning,
    ):  # a warning only where the caller turned warnings into errors
        raise
    except (
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:  # Pillow checks WebP by itself
        raise ThermalFileError(
            f"{name}: {kind} larger than the decoder's limit ({error}); use TIFF or PNG"
        ) from error
    except (
        Exception
    ) as error:  # third-party decoders raise almost anything on hostile bytes, MemoryError included
        raise ThermalFileError(
            f"{name}: damaged or truncated {kind} ({type(error).__name__}: {str(error)[:200]}); "
            "expected a complete "
            "file. Copy or export it again"
        ) from error
