"""Picture files into pixels: formats are told apart here, PNG, JPEG, BMP and WebP are decoded here,
and TIFF in tiff.py.

Pictures come from strangers: the formats are a short list, the size is taken from the header before
anything is decoded, and whatever a decoder does with a damaged file ends in one exception type,
``ThermalFileError``.
"""

from __future__ import annotations

import io
import stat
import warnings
from pathlib import Path
from typing import BinaryIO

import imagecodecs
import numpy as np
from PIL import BmpImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from cmmfnet.thermal.limits import ThermalFileError, check_size
from cmmfnet.thermal.tiff import decode_tiff

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),  # BigTIFF
    (b"MM\0+", "TIFF"),
    (b"GIF8", "a GIF"),
    (b"FFF\0", "a FLIR camera file (FFF, SEQ)"),
    (b"%PDF", "a PDF"),
    (b"\x93NUMPY", "a NumPy file"),
    (b"\x1aE\xdf\xa3", "a Matroska video"),
)

# The plug-ins' own openers, not Image.open(formats=...): that one compares the size with the
# process-wide Image.MAX_IMAGE_PIXELS first, so that max_pixels could not be raised above it, and
# warns where we refuse.
_OPENERS = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.jpeg_factory,
    "BMP": BmpImagePlugin.BmpImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
}


def read_file(name: str, max_pixels: int) -> tuple[np.ndarray, str]:
    try:
        status = Path(name).stat()
        # opening a FIFO would wait for ever, and /dev/zero never ends
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise ThermalFileError(f"{name!r}: {kind}; expected one picture file")
        with Path(name).open("rb") as stream:
            return decode(stream, name, status.st_size, max_pixels)
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


def _identify(head: bytes) -> str:
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
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
    if head and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return "text"
    return "data of no known kind" if head else "an empty file"


def decode(stream: BinaryIO, name: str, size: int, max_pixels: int) -> tuple[np.ndarray, str]:
    """-> pixels (H, W) or (H, W, C), and a sentence on the camera maker's format or ''."""
    head = stream.read(32)
    stream.seek(0)
    kind = _identify(head)
    if kind != "TIFF" and kind not in _OPENERS:
        raise ThermalFileError(
            f"{name}: found {kind}, which is not a supported picture; expected PNG, TIFF, JPEG, "
            "BMP or WebP. "
            "Export the frame as 16-bit TIFF or PNG"
        )
    # Pillow and libpng read such files whole; no honest picture takes 16 bytes a pixel
    if kind != "TIFF" and size > max(16 * max_pixels, 1 << 26):
        raise ThermalFileError(
            f"{name}: {kind} file of {size / 1e6:.0f} MB is too large for {max_pixels} pixels"
        )
    try:
        if kind == "TIFF":
            (pixels, orientation, several), maker = decode_tiff(stream, name, max_pixels), ""
            if several:
                _warn_first_of_several(name)
            pixels = _upright(pixels, orientation)
        else:
            pixels, maker = _decode_pillow(stream, name, kind, head, max_pixels)
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
    return pixels, maker


def _decode_pillow(
    stream: BinaryIO, name: str, kind: str, head: bytes, max_pixels: int
) -> tuple[np.ndarray, str]:
    try:
        image = _OPENERS[kind](stream, "")  # reads the header only
    except ValueError as error:
        if kind != "PNG" or "text" not in str(error).lower():
            raise
        # a text chunk larger than Pillow unpacks: the pixels do not need it
        stream = _without_text(stream)
        image = _OPENERS[kind](stream, "")
    check_size(name, *image.size, max_pixels)
    if kind in ("PNG", "WebP") and getattr(image, "n_frames", 1) > 1:
        _warn_first_of_several(name)
    pixels = pillow_pixels(image)
    if kind == "PNG" and head[24] == 16 and pixels.dtype != np.uint16:
        # Pillow cuts 16-bit PNG with alpha or colour to 8 bits without a word; libpng does not
        stream.seek(0)
        pixels = imagecodecs.png_decode(stream.read())
    try:
        exif = image.getexif()
        orientation, make = exif.get(274, 1), str(exif.get(271, ""))
    except Exception:  # damaged metadata around a sound picture: read it as it lies
        orientation, make = 1, ""
    maker = ""
    segments = getattr(image, "applist", [])  # JPEG only
    if make.startswith("DJI") or any(
        marker == "APP1" and data.startswith(b"FLIR\0") for marker, data in segments
    ):
        maker = " It may be a radiometric JPEG: the maker's tool can export its temperatures as 16-bit TIFF."
    return _upright(pixels, orientation), maker


def _without_text(stream: BinaryIO) -> io.BytesIO:
    """A PNG file without its text chunks."""
    stream.seek(0)
    data, place = stream.read(), 8
    kept = [data[:8]]
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] not in (b"tEXt", b"zTXt", b"iTXt"):
            kept.append(data[place : place + 12 + length])
        place += 12 + length
    return io.BytesIO(b"".join(kept))


def pillow_pixels(image: Image.Image) -> np.ndarray:
    """(H, W) for grey modes, alpha dropped, else (H, W, 3). Never convert("L"), which clips 16 bits
    to white."""
    if image.mode in ("L", "F") or image.mode.startswith("I"):
        return np.asarray(image)
    if image.mode in ("LA", "La"):
        return np.asarray(image)[..., 0]
    if image.mode == "1":
        return np.asarray(image.convert("L"))
    return np.asarray(image.convert("RGBA" if "transparency" in image.info else "RGB"))[..., :3]


def _upright(pixels: np.ndarray, orientation: object) -> np.ndarray:
    """Apply an EXIF or TIFF orientation (1 to 8; anything else is none)."""
    match orientation:
        case 2:
            return pixels[:, ::-1]
        case 3:
            return pixels[::-1, ::-1]
        case 4:
            return pixels[::-1]
        case 5:
            return pixels.swapaxes(0, 1)
        case 6:
            return pixels[::-1].swapaxes(0, 1)
        case 7:
            return pixels[::-1, ::-1].swapaxes(0, 1)
        case 8:
            return pixels[:, ::-1].swapaxes(0, 1)
    return pixels


def _warn_first_of_several(name: str) -> None:
    warnings.warn(
        f"{name}: holds several pictures; the first is used. Split the file to use the others",
        stacklevel=6,
    )
