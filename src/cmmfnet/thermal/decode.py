"""Files into frames: the format is found from the first bytes. PNG, JPEG, BMP and WebP are decoded
here, TIFF in tiff.py, formats of cameras in cameras/.

Pictures come from strangers: the formats are a short list, the size is taken from the header before
anything is decoded, and whatever a decoder does with a damaged file ends in one exception type,
``ThermalFileError``.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import stat
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import imagecodecs
import numpy as np
from PIL import BmpImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from cmmfnet.thermal.cameras import cptv, dji, fff, numpy_file, raw
from cmmfnet.thermal.cameras.reading import Reading
from cmmfnet.thermal.jpeg import check_jpeg
from cmmfnet.thermal.limits import ThermalFileError, check_size
from cmmfnet.thermal.missing import apart, no_data_mask, sidecar_no_data, with_missing
from cmmfnet.thermal.pillow import channels, pillow_pixels
from cmmfnet.thermal.tiff import holds_second_page, mask_beside, tiff_pages

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

# The plug-ins' own openers, not Image.open(formats=...): that one compares the size with the
# process-wide Image.MAX_IMAGE_PIXELS first, so that max_pixels could not be raised above it, and
# warns where we refuse.
_OPENERS = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.jpeg_factory,
    "BMP": BmpImagePlugin.BmpImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
}

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
    return kind == "TIFF" or kind in _OPENERS or kind in _CAMERA_FRAMES


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
    if kind != "TIFF" and kind not in _OPENERS and kind not in _CAMERA_FRAMES and layout is None:
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
    if kind in _OPENERS and size > max(16 * max_pixels, 1 << 26):
        raise ThermalFileError(
            f"{name}: {kind} file of {size / 1e6:.0f} MB is too large for {max_pixels} pixels"
        )
    try:
        if layout is not None:
            for reading in layout.frames(stream, name, size, max_pixels):
                yield replace(reading, details={"format": "raw numbers"})
        elif kind == "TIFF":
            for pixels, orientation in tiff_pages(stream, name, max_pixels):
                yield _turned(Reading(pixels, details={"format": kind}), orientation)
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
            yield _decode_pillow(stream, name, kind, head, max_pixels)
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


def _decode_pillow(stream: BinaryIO, name: str, kind: str, head: bytes, max_pixels: int) -> Reading:
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
        warnings.warn(
            f"{name}: animated {kind}; its first picture is used. Save the others as files of "
            "their own, or as a TIFF of several pages",
            stacklevel=5,
        )
    try:
        exif = image.getexif()
        orientation, make, model = exif.get(274, 1), str(exif.get(271, "")), str(exif.get(272, ""))
    except Exception:  # damaged metadata around a sound picture: read it as it lies
        orientation, make, model = 1, "", ""
    advice = ""
    if kind == "JPEG":
        reading, advice = _radiometric(image, stream, name, max_pixels, make, model)
        if reading is not None:
            return _turned(_as_on_screen(reading, image), orientation)
        place = stream.tell()
        stream.seek(0)
        check_jpeg(stream.read(), *image.size, name)
        stream.seek(place)
    if kind == "PNG" and head[24] == 16 and not image.mode.startswith("I"):
        # Pillow cuts 16-bit PNG with alpha or colour to 8 bits without a word; libpng does not
        stream.seek(0)
        pixels = channels(imagecodecs.png_decode(stream.read()))
    else:
        pixels = pillow_pixels(image)
    pixels = _with_notes_beside(pixels, getattr(stream, "name", None), name, max_pixels)
    details = {"format": kind, "maker": make, "model": model}
    details = {key: text for key, value in details.items() if (text := fff.plain_text(value))}
    return _turned(Reading(pixels, details=details, advice=advice), orientation)


def _radiometric(
    image: Image.Image, stream: BinaryIO, name: str, max_pixels: int, make: str, model: str
) -> tuple[Reading | None, str]:
    """The sensor's frame in a JPEG file; None for an ordinary one, with what to add to warnings."""
    from_flir = any(
        marker == "APP1" and content.startswith(b"FLIR\0")
        for marker, content in getattr(image, "applist", [])
    )
    if not from_flir and not make.upper().startswith("DJI"):
        return None, ""
    place = stream.tell()
    stream.seek(0)
    data = stream.read()
    stream.seek(place)
    reading = None
    if from_flir:
        inner = fff.from_jpeg(data, name)
        if fff.holds_frame(inner):
            reading = fff.read(inner, name, max_pixels)
            exif = {"model": fff.plain_text(model)} if fff.plain_text(model) else {}
            details = dict(reading.details) | {"format": "FLIR radiometric JPEG"}
            if make.upper().startswith("DJI"):  # the Zenmuse XT and XT2 write FLIR's files
                details |= exif | {"maker": "DJI"}
            reading = replace(reading, details=exif | details)
    else:
        reading = dji.read(data, name, max_pixels, image.size, make, fff.plain_text(model))
    return reading, (
        " The file has a thermal camera's marks, but no thermal frame: this is the picture on the "
        "camera's screen. The maker's tool may export its temperatures as 16-bit TIFF."
    )


def _as_on_screen(reading: Reading, image: Image.Image) -> Reading:
    """A frame turned by a quarter where the file's picture was turned and the frame in it was not,
    as picture viewers do that know nothing of the frame."""
    height, width = reading.values.shape
    if (width - height) * (image.width - image.height) >= 0:
        return reading
    try:
        screen = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.BOX), np.float64)
    except Exception:  # a damaged screen picture does not spoil the frame
        return reading
    rows, columns = (np.linspace(0, side - 1, 32).round().astype(int) for side in (height, width))
    small = np.nan_to_num(reading.values[np.ix_(rows, columns)].astype(np.float64))
    if small.std() == 0 or screen.std() == 0:
        return reading
    orientation = max(
        (6, 8), key=lambda way: np.corrcoef(upright(small, way).ravel(), screen.ravel())[0, 1]
    )
    return _turned(reading, orientation)


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


def _with_notes_beside(pixels: np.ndarray, path: object, name: str, max_pixels: int) -> np.ndarray:
    """``pixels`` without those that GDAL's files beside the picture, for what the picture's own
    format cannot hold, call missing."""
    masks = [mask_beside(path, pixels.shape[:2], name, max_pixels)]
    if (no_data := sidecar_no_data(path)) is not None:
        masks.append(no_data_mask(np.ma.getdata(pixels), no_data, name))
    if isinstance(pixels, np.ma.MaskedArray):
        pixels, known = apart(pixels)
        masks.append(known)
    return with_missing(pixels, *masks)


_QUARTERS = {3: 2, 6: 3, 8: 1}
"""Orientation -> quarter turns against the clock, of those that mirror nothing."""


def _turned(reading: Reading, orientation: object) -> Reading:
    """A frame and its photo, upright; their orientation is noted."""
    if orientation not in range(2, 9):
        return reading
    visible = reading.visible
    if visible is not None and orientation in _QUARTERS:
        visible = replace(visible, turns=(visible.turns + _QUARTERS[orientation]) % 4)
    elif visible is not None:
        visible = replace(visible, ratio=0.0)
    return replace(
        reading,
        values=upright(reading.values, orientation),
        visible=visible,
        details=dict(reading.details) | {"orientation": int(orientation)},
    )


def upright(pixels: np.ndarray, orientation: object) -> np.ndarray:
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
