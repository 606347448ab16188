"""Pictures that a program holds already: arrays, tensors and PIL images, into pixels."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image, ImageFile

from cmmfnet.thermal.decode import decode
from cmmfnet.thermal.limits import ThermalFileError, check_size
from cmmfnet.thermal.missing import alpha_mask, with_missing
from cmmfnet.thermal.orientation import upright
from cmmfnet.thermal.palettes import planes_or_colours
from cmmfnet.thermal.pillow import pillow_pixels

_EXPECTED = (
    "expected a path, the bytes of a picture file, or a numeric array (H, W), (H, W, 1), (1, H, W) "
    "or (H, W, 3)"
)

_TIFF_CODECS = ("raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "zstd")
"""Pillow's names of the compressions that tiff.py knows."""


def from_array(source: Any) -> np.ndarray:
    """An array, or anything that turns into one.

    Returns:
        (H, W) or (H, W, 3), bool, integer or float; a masked array where pixels are missing.

    Raises:
        ThermalFileError: not such an array.
    """
    if not any(
        hasattr(source, attribute) for attribute in ("detach", "__array__", "__array_interface__")
    ):
        raise ThermalFileError(f"found {type(source).__name__}; {_EXPECTED}")
    try:
        if hasattr(source, "detach"):  # a torch tensor, on any device; torch is not imported here
            source = source.detach().cpu()
            source = (source.float() if "bfloat16" in str(source.dtype) else source).numpy()
        pixels = np.asanyarray(source)
        pixels = pixels if isinstance(pixels, np.ma.MaskedArray) else np.asarray(pixels)
    except Exception as error:  # the array protocol runs foreign code
        raise ThermalFileError(
            f"{type(source).__name__} does not turn into an array ({error}); {_EXPECTED}"
        ) from error
    if pixels.dtype.kind not in "buif":
        raise ThermalFileError(f"array of {pixels.dtype}; {_EXPECTED} of bool, integers or floats")
    if pixels.ndim == 3 and pixels.size:
        if pixels.shape[2] == 4:
            pixels = with_missing(pixels[..., :3], alpha_mask(pixels[..., 3]))
        elif pixels.shape[2] == 1:
            pixels = pixels[..., 0]
        elif pixels.shape[2] != 3 and pixels.shape[0] == 1:
            pixels = pixels[0]
        elif pixels.shape[2] != 3 and pixels.shape[0] == 3:
            pixels = pixels.transpose(1, 2, 0)
            if pixels.dtype != np.uint8 and not (pixels.dtype.kind == "f" and pixels.max() <= 1):
                pixels = planes_or_colours(pixels, "<array>")
    if pixels.size == 0 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        shape = tuple(np.shape(source))
        hint = "; pass one frame of the batch at a time" if len(shape) == 4 else ""
        raise ThermalFileError(f"array of shape {shape}; {_EXPECTED}, not empty{hint}")
    return pixels


def from_pillow(image: Image.Image, name: str, max_pixels: int) -> np.ndarray:
    """A PIL image, upright.

    Pillow cuts 16-bit colour and 16-bit grey with alpha to 8 bits and knows no no-data values, so
    the file behind an image of PNG or TIFF is decoded anew, unless the image was changed since.

    Returns:
        (H, W) or (H, W, 3); a masked array where pixels are missing.

    Raises:
        ThermalFileError: the file behind the image is damaged.
    """
    check_size(name, *image.size, max_pixels)
    try:
        data = _file_behind(image)
        if data is not None:
            return decode(io.BytesIO(data), name, len(data), max_pixels).values
        pixels = pillow_pixels(image)  # loads it, and Pillow turns TIFF while it loads
        try:
            orientation = image.getexif().get(274, 1)
        except Exception:  # damaged metadata around a sound picture: read it as it lies
            orientation = 1
    except Exception as error:  # Image.open has read the header only; the rest may be damaged
        raise ThermalFileError(
            f"{name} cannot be decoded ({error}); expected a complete picture"
        ) from error
    return upright(pixels, orientation)


def _file_behind(image: Image.Image) -> bytes | None:
    """The file that an image was opened from; None where there is none, where the format has
    nothing that Pillow would lose, or where the image may have been changed."""
    if not isinstance(image, ImageFile.ImageFile) or image.tell() != 0:
        return None
    ours = image.format == "PNG" or (
        image.format == "TIFF"
        and image.info.get("compression") in _TIFF_CODECS
        and image.mode not in ("CMYK", "YCbCr", "LAB")
    )
    if not ours:
        return None
    if image.tile and image.fp is not None:  # not decoded yet, so not changed either
        place = image.fp.tell()
        image.fp.seek(0)
        data = image.fp.read()
        image.fp.seek(place)
        return data
    path = getattr(image, "filename", "")
    if image.format != "PNG" or image.mode not in ("LA", "RGB", "RGBA") or not path:
        return None
    try:
        data = Path(path).read_bytes()
        stored = imagecodecs.png_decode(data) if data[24:25] == b"\x10" else None
    except Exception:  # the file has gone, or was replaced
        return None
    if stored is None:
        return None
    loaded = np.asarray(image)
    if stored.ndim == 3 and stored.shape[2] == 2 and image.mode == "RGBA":
        stored = stored[..., [0, 0, 0, 1]]
    return data if np.array_equal(stored >> 8, loaded) else None
