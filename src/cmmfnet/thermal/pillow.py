"""PNG, JPEG, BMP and WebP into frames, by Pillow: grey of any depth stays grey, alpha becomes
missing pixels, and a camera's JPEG gives the thermal frame inside it."""

from __future__ import annotations

import io
import warnings
from dataclasses import replace
from typing import BinaryIO

import imagecodecs
import numpy as np
from PIL import BmpImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from cmmfnet.thermal.cameras import dji, fff
from cmmfnet.thermal.cameras.reading import Reading
from cmmfnet.thermal.jpeg import check_jpeg
from cmmfnet.thermal.limits import check_size
from cmmfnet.thermal.missing import (
    alpha_mask,
    apart,
    no_data_mask,
    sidecar_no_data,
    with_missing,
)
from cmmfnet.thermal.orientation import turned, upright
from cmmfnet.thermal.tiff import mask_beside

# The plug-ins' own openers, not Image.open(formats=...): that one compares the size with the
# process-wide Image.MAX_IMAGE_PIXELS first, so that max_pixels could not be raised above it, and
# warns where we refuse.
OPENERS = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.jpeg_factory,
    "BMP": BmpImagePlugin.BmpImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
}


def decode_pillow(stream: BinaryIO, name: str, kind: str, head: bytes, max_pixels: int) -> Reading:
    try:
        image = OPENERS[kind](stream, "")  # reads the header only
    except ValueError as error:
        if kind != "PNG" or "text" not in str(error).lower():
            raise
        # a text chunk larger than Pillow unpacks: the pixels do not need it
        stream = _without_text(stream)
        image = OPENERS[kind](stream, "")
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
            return turned(_as_on_screen(reading, image), orientation)
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
    return turned(Reading(pixels, details=details, advice=advice), orientation)


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
    return turned(reading, orientation)


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


def pillow_pixels(image: Image.Image) -> np.ndarray:
    """(H, W) for grey modes, else (H, W, 3); a masked array where pixels are missing. Never
    convert("L"), which clips 16 bits to white."""
    transparent = image.info.get("transparency")
    if image.mode in ("L", "F") or image.mode.startswith("I"):
        pixels = np.asarray(image)
        missing = None
        if isinstance(transparent, int | float):  # the one value that a PNG names as transparent
            missing = no_data_mask(pixels, transparent, "")
        return with_missing(pixels, missing)
    if image.mode in ("LA", "La"):
        both = np.asarray(image)
        return with_missing(both[..., 0], alpha_mask(both[..., 1]))
    if image.mode == "1":
        return np.asarray(image.convert("L"))
    if image.mode in ("RGBA", "RGBa", "PA") or transparent is not None:
        return channels(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def channels(decoded: np.ndarray) -> np.ndarray:
    """(H, W), (H, W, 2), (H, W, 3) or (H, W, 4), with alpha last of 2 and 4 -> (H, W) or (H, W, 3),
    a masked array where alpha says so."""
    if decoded.ndim == 2 or decoded.shape[2] == 3:
        return decoded
    colours, alpha = decoded[..., :-1], decoded[..., -1]
    return with_missing(colours[..., 0] if colours.shape[2] == 1 else colours, alpha_mask(alpha))
