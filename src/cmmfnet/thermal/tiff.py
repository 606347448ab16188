"""TIFF files into pixels. The table of a file is checked before anything is decoded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import tifffile

from cmmfnet.thermal.limits import ThermalFileError, check_size

# Byte codecs, whose output tifffile bounds by the size of the piece. JPEG and its like inside TIFF
# have a header, so a size, of their own to lie about.
_TIFF_COMPRESSIONS = {
    1: "none",
    5: "LZW",
    8: "deflate",
    32946: "deflate",
    32773: "PackBits",
    50000: "zstd",
}
_MAX_TIFF_SEGMENTS = 1 << 18


def tiff_pages(stream: BinaryIO, name: str, max_pixels: int) -> Iterator[tuple[np.ndarray, object]]:
    """The pictures of a file, each with its orientation (1 to 8, or whatever stands there).

    Yields:
        Pixels (H, W) or (H, W, 3). After the first picture, pages of another size or type are left
        out: they are previews.
    """
    # microscope dialects off: they parse further pages and vendor blocks while opening
    with tifffile.TiffFile(
        stream, name=name, is_lsm=False, is_scanimage=False, is_ndpi=False, is_stk=False
    ) as tiff:
        number, first = 0, None
        while True:
            try:
                page = tiff.pages[number]  # not len(tiff.pages): that walks a chain of any length
            except IndexError:  # after the last page
                if number == 0:
                    raise
                return
            number += 1
            kind = page.shaped, page.dtype
            if first is None or kind == first:
                first = kind
                yield _page(page, name, tiff.filehandle.size, max_pixels)


def holds_second_page(stream: BinaryIO, name: str) -> bool:
    """Whether the second page is another frame, and no preview of the first. Decodes nothing."""
    try:
        with tifffile.TiffFile(
            stream, name=name, is_lsm=False, is_scanimage=False, is_ndpi=False, is_stk=False
        ) as tiff:
            first, second = tiff.pages[0], tiff.pages[1]
            return (first.shaped, first.dtype) == (second.shaped, second.dtype)
    except Exception:  # IndexError after the last page; a damaged second page is none
        return False


def _page(
    page: tifffile.TiffPage, name: str, file_size: int, max_pixels: int
) -> tuple[np.ndarray, object]:
    _check_tiff_page(page, name, file_size, max_pixels)
    # (separate samples, depth, H, W, interleaved samples)
    pixels = page.asarray(squeeze=False, maxworkers=1)
    pixels = pixels[:, 0, :, :, 0].transpose(1, 2, 0) if pixels.shape[0] > 1 else pixels[0, 0]
    return _tiff_photometry(pixels, page, name), page.tags.valueof(274, 1)


def _check_tiff_page(page: tifffile.TiffPage, name: str, file_size: int, max_pixels: int) -> None:
    _, depth, height, width, _ = page.shaped
    check_size(name, width, height, max_pixels)
    if depth != 1 or page.samplesperpixel not in (1, 2, 3, 4):
        raise ThermalFileError(
            f"{name}: TIFF with depth {depth} and {page.samplesperpixel} channels; expected one "
            "grey plane or RGB. "
            "Extract the thermal plane first"
        )
    if page.dtype is None or page.dtype.kind not in "buif":
        raise ThermalFileError(
            f"{name}: TIFF with {page.bitspersample}-bit samples of type "
            f"{page.dtype or page.sampleformat}; "
            "expected integers or floats"
        )
    if page.compression not in _TIFF_COMPRESSIONS:
        raise ThermalFileError(
            f"{name}: TIFF compression {getattr(page.compression, 'name', page.compression)}; "
            "expected one of "
            f"{', '.join(dict.fromkeys(_TIFF_COMPRESSIONS.values()))}. Save it again without "
            "lossy compression"
        )
    # What the table makes tifffile allocate: tiles are decoded at full size even where they
    # overhang the picture.
    segments = math.prod(page.chunked)
    largest = page.tilewidth * page.tilelength * page.tiledepth if page.is_tiled else height * width
    if segments > _MAX_TIFF_SEGMENTS or (page.is_tiled and segments * largest > 2 * max_pixels):
        raise ThermalFileError(
            f"{name}: TIFF of {width} x {height} pixels in {segments} pieces of {largest}; "
            "expected at most "
            f"{_MAX_TIFF_SEGMENTS} pieces and {2 * max_pixels} pixels in all. Save it again in "
            "strips"
        )
    if len(page.dataoffsets) != segments or len(page.databytecounts) != segments:
        raise ThermalFileError(
            f"{name}: damaged TIFF that lists {len(page.dataoffsets)} pieces, expected {segments}. "
            "Copy or export it again"
        )
    end = max(
        offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
    )
    needed = max(
        end, sum(page.databytecounts)
    )  # the sum: thousands of pieces that are all the same megabytes
    if needed > file_size:
        raise ThermalFileError(
            f"{name}: truncated TIFF of {file_size} bytes, expected {needed} from its table. Copy "
            "or export it again"
        )


def _tiff_photometry(pixels: np.ndarray, page: tifffile.TiffPage, name: str) -> np.ndarray:
    """(H, W, C) samples -> (H, W) or (H, W, 3): white-is-zero, colour map, no-data value, alpha."""
    photometric = page.tags.valueof(262, 1)
    channels = pixels.shape[2]
    if photometric not in (0, 1, 2, 3) or (photometric != 2 and channels == 4):
        raise ThermalFileError(
            f"{name}: TIFF with {channels} channels of photometric type {photometric}; expected "
            "grey, palette or RGB"
        )
    if channels >= 3:
        return pixels[..., :3]
    grey = pixels[..., 0]
    if photometric == 3:
        return (page.colormap.T >> 8).astype(np.uint8)[grey]
    if photometric == 0 and grey.dtype.kind in "bu":
        grey = (~grey if grey.dtype.kind == "b" else (1 << page.bitspersample) - 1 - grey).astype(
            grey.dtype
        )
    if 42113 in page.tags:  # GDAL_NODATA, in thermal maps from drones
        return np.where(grey == page.nodata, np.nan, grey.astype(np.float32))
    return grey
