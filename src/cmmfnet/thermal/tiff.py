"""The TIFF decoder: the choice of the frame among a file's pictures, its pixels and their
meaning."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import tifffile

from cmmfnet.thermal.limits import ThermalFileError, check_size
from cmmfnet.thermal.missing import alpha_mask, no_data_mask, sidecar_no_data, with_missing
from cmmfnet.thermal.palettes import planes_or_colours
from cmmfnet.thermal.tiff_table import MAX_SEGMENTS, Table, Tables, alone

# Byte codecs, whose output tifffile bounds by the size of the piece. JPEG and its like inside TIFF
# have a header, so a size, of their own to lie about.
_COMPRESSIONS = {
    1: "none",
    5: "LZW",
    8: "deflate",
    32946: "deflate",
    32773: "PackBits",
    50000: "zstd",
}
_LOOKED_AT = 32
"""Tables among which the frame is searched for."""


def tiff_pages(stream: BinaryIO, name: str, max_pixels: int) -> Iterator[tuple[np.ndarray, object]]:
    """The frames of a file, each with its orientation (1 to 8, or whatever stands there).

    The first frame is the largest picture of the file that is no preview and no mask; a grey one
    comes before one in colours. Pictures behind it of the same size and type are further frames.

    Yields:
        Pixels (H, W) or (H, W, 3); a masked array where there is no data: by GDAL's no-data value,
        by a mask (in the file, or next to it as FILE.msk), or by an alpha channel.
    """
    damage: list[ThermalFileError] = []
    others: list[Table] = []
    path = getattr(stream, "name", None)
    for table, mask in _frames(_until_damage(Tables(stream, name), damage), others):
        yield _frame(stream, table, mask, name, max_pixels, path)
        path = None
    _warn_of_others(others, name)
    if damage:  # of tables behind the last sound one
        raise damage[0]


def holds_second_page(stream: BinaryIO, name: str) -> bool:
    """Whether a second frame follows the first, and no preview or mask of it. Decodes nothing."""
    try:
        others: list[Table] = []
        tables = _until_damage(Tables(stream, name), [])
        second = len(list(islice(_frames(tables, others), 2))) == 2
        if not second:
            _warn_of_others(others, name)
        return second
    except ThermalFileError:
        return False


def _warn_of_others(others: list[Table], name: str) -> None:
    if others:
        sizes = ", ".join(dict.fromkeys("{1}x{0}".format(*table.size) for table in others))
        warnings.warn(
            f"{name}: {len(others)} of its pictures have another size ({sizes}) and are left out; "
            "split the file to use them",
            stacklevel=2,
        )


def _frames(tables: Iterator[Table], others: list[Table]) -> Iterator[tuple[Table, Table | None]]:
    """The tables of frames, each with the table of its mask or None. Pictures of the frames' type
    and of half their pixels or more that are no frames, as their size differs, go to ``others``."""
    first = list(islice(tables, _LOOKED_AT))
    start = _frame_among(first)
    current, mask = first[start], None
    least = math.prod(current.size) / 2

    def is_other(table: Table) -> bool:
        alike = table.kind[2:] == current.kind[2:] and table.size != current.size
        return alike and not table.is_reduced and math.prod(table.size) >= least

    others += [table for table in first[:start] if not table.is_mask and is_other(table)]
    for table in chain(first[start + 1 :], tables):
        if table.is_mask:
            mask = table if mask is None and table.size == current.size else mask
        elif table.kind == current.kind and not table.is_reduced:
            yield current, mask
            current, mask = table, None
        elif is_other(table):
            others.append(table)
    yield current, mask


def _until_damage(tables: Iterable[Table], damage: list[ThermalFileError]) -> Iterator[Table]:
    """``tables`` up to the first damaged one, whose error is added to ``damage``; the error is
    raised at once where no table is sound."""
    found = False
    try:
        for table in tables:
            yield table
            found = True
    except ThermalFileError as error:
        if not found:
            raise
        damage.append(error)


def _frame_among(tables: list[Table]) -> int:
    """Which table is the first frame's: no mask, no preview, grey, large, early, in this order of
    importance."""

    def fitness(table: Table) -> tuple:
        height, width = table.size
        grey = table.one(277, 1) <= 2
        return not table.is_mask, not table.is_reduced, grey, height * width

    if not tables:
        raise ThermalFileError("a TIFF file without pictures; expected a thermal frame")
    return max(range(len(tables)), key=lambda i: (*fitness(tables[i]), -i))


def _frame(
    stream: BinaryIO,
    table: Table,
    mask: Table | None,
    name: str,
    max_pixels: int,
    path: object,
) -> tuple[np.ndarray, object]:
    stored = _samples(stream, table, name, max_pixels)
    no_data = table.no_data if table.no_data is not None else sidecar_no_data(path)
    pixels, alpha = _colours_and_alpha(stored, table, name)
    missing = [None if alpha is None else alpha_mask(alpha)]
    if no_data is not None:
        missing.append(no_data_mask(pixels, no_data, name))
    if mask is not None:
        missing.append(~_samples(stream, mask, name, max_pixels).any(axis=2))
    missing.append(mask_beside(path, stored.shape[:2], name, max_pixels))
    return with_missing(_in_units(pixels, table), *missing), table.one(274, 1)


def _samples(stream: BinaryIO, table: Table, name: str, max_pixels: int) -> np.ndarray:
    """(H, W, samples) as stored."""
    check_size(name, *table.size[::-1], max_pixels)
    samples, depth = table.one(277, 1), table.one(32997, 1)
    if depth != 1 or table.one(32998, 1) != 1 or samples not in (1, 2, 3, 4):
        raise ThermalFileError(
            f"{name}: TIFF with depth {depth} and {samples} channels; expected one "
            "grey plane or RGB. Extract the thermal plane first"
        )
    with alone(stream, table) as file, tifffile.TiffFile(file, name=name) as tiff:
        page = tiff.pages[0]
        _check_page(page, name, tiff.filehandle.size, max_pixels)
        pixels = page.asarray(squeeze=False, maxworkers=1)
    # (separate samples, depth, H, W, interleaved samples)
    return pixels[:, 0, :, :, 0].transpose(1, 2, 0) if pixels.shape[0] > 1 else pixels[0, 0]


def _check_page(page: tifffile.TiffPage, name: str, file_size: int, max_pixels: int) -> None:
    _, _, height, width, _ = page.shaped
    if page.dtype is None or page.dtype.kind not in "buif":
        raise ThermalFileError(
            f"{name}: TIFF with {page.bitspersample}-bit samples of type "
            f"{page.dtype or page.sampleformat}; expected integers or floats"
        )
    if page.compression not in _COMPRESSIONS:
        raise ThermalFileError(
            f"{name}: TIFF compression {getattr(page.compression, 'name', page.compression)}; "
            f"expected one of {', '.join(dict.fromkeys(_COMPRESSIONS.values()))}. Save it again "
            "without lossy compression"
        )
    # What the table makes tifffile allocate: tiles are decoded at full size even where they
    # overhang the picture.
    segments = math.prod(page.chunked)
    largest = page.tilewidth * page.tilelength * page.tiledepth if page.is_tiled else height * width
    if segments > MAX_SEGMENTS or (page.is_tiled and segments * largest > 2 * max_pixels):
        raise ThermalFileError(
            f"{name}: TIFF of {width} x {height} pixels in {segments} pieces of {largest}; "
            f"expected at most {MAX_SEGMENTS} pieces and {2 * max_pixels} pixels in all. Save it "
            "again in strips"
        )
    if len(page.dataoffsets) != segments or len(page.databytecounts) != segments:
        raise ThermalFileError(
            f"{name}: damaged TIFF that lists {len(page.dataoffsets)} pieces, expected {segments}. "
            "Copy or export it again"
        )
    end = max(
        offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
    )
    # the sum: thousands of pieces that are all the same megabytes
    needed = max(end, sum(page.databytecounts))
    if needed > file_size:
        raise ThermalFileError(
            f"{name}: truncated TIFF of {file_size} bytes, expected {needed} from its table. Copy "
            "or export it again"
        )


def _colours_and_alpha(
    stored: np.ndarray, table: Table, name: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """(H, W, samples) -> (H, W) or (H, W, 3), and the alpha channel (H, W) or None."""
    photometric, channels = table.one(262, 1), stored.shape[2]
    if photometric not in (0, 1, 2, 3) or (photometric != 2 and channels == 4):
        raise ThermalFileError(
            f"{name}: TIFF with {channels} channels of photometric type {photometric}; expected "
            "grey, palette or RGB"
        )
    if channels <= 2:
        return stored[..., 0], stored[..., 1] if channels == 2 else None
    if table.one(284, 1) == 2 or (photometric != 2 and stored.dtype != np.uint8):
        pixels = planes_or_colours(stored[..., :3], name)
    else:
        pixels = stored[..., :3]
    return pixels, stored[..., 3] if channels == 4 else None


def _in_units(pixels: np.ndarray, table: Table) -> np.ndarray:
    """Stored numbers -> grey levels, colours or units: white-is-zero, the colour map, and GDAL's
    scale and offset."""
    if pixels.ndim == 3:
        return pixels
    photometric = table.one(262, 1)
    if photometric == 3:
        return _looked_up(pixels, table)
    if photometric == 0 and pixels.dtype.kind in "bu":
        white = (1 << table.one(258, 1)) - 1
        pixels = (~pixels if pixels.dtype.kind == "b" else white - pixels).astype(pixels.dtype)
    scale, offset = (_from_metadata(table.metadata, role) for role in ("scale", "offset"))
    if (scale, offset) in ((None, None), (1.0, 0.0)) or scale == 0:
        return pixels
    return (pixels * (1.0 if scale is None else scale) + (offset or 0.0)).astype(np.float32)


def _looked_up(index: np.ndarray, table: Table) -> np.ndarray:
    """(H, W, 3) uint8 by the colour map, whose entries are 16 bits; some writers use 0 to 255."""
    colours = np.array(table.tags.get(320, ()), np.uint32)
    if colours.size == 0 or colours.size % 3:
        raise ValueError(f"a colour map of {colours.size} numbers; expected 3 for each index")
    colours = colours.reshape(3, -1).T
    return (colours if colours.max() < 256 else colours >> 8).astype(np.uint8)[index]


def _from_metadata(metadata: str, role: str) -> float | None:
    """GDAL's scale or offset of the first band; None without."""
    for attributes, text in re.findall(r"<Item([^>]*)>([^<]*)</Item>", metadata):
        sample = re.search(r'sample="(\d+)"', attributes)
        if f'role="{role}"' in attributes and (sample is None or sample[1] == "0"):
            try:
                number = float(text)
            except ValueError:
                return None
            return number if math.isfinite(number) else None
    return None


def mask_beside(
    path: object, shape: tuple[int, int], name: str, max_pixels: int
) -> np.ndarray | None:
    """Where GDAL's mask file beside the picture (``frame.tif.msk``, a TIFF) says that there is no
    data: (H, W) bool; None without such a file."""
    if not isinstance(path, str) or not Path(path + ".msk").is_file():
        return None
    beside = path + ".msk"
    try:
        with Path(beside).open("rb") as stream:
            table = next(iter(Tables(stream, beside)))
            valid = _samples(stream, table, beside, max_pixels).any(axis=2)
        if valid.shape != shape:
            raise ValueError(f"{valid.shape[1]} x {valid.shape[0]} pixels, not the picture's size")
    except Exception as error:  # whatever a decoder does with a damaged file
        warnings.warn(f"{name}: its mask {beside} cannot be used ({error})", stacklevel=2)
        return None
    return ~valid
