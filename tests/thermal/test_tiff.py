"""Which picture of a TIFF file is the frame, what its numbers mean, and tables that lie."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import warnings

import numpy as np
import pytest
import tifffile

from cmmfnet.thermal.frame import ThermalFileError, read_thermal
from cmmfnet.thermal.palettes import PALETTES
from cmmfnet.thermal.sequence import open_sequence

Y, X = np.mgrid[:48, :64]
COUNTS = (8000 + 20 * X + 7 * Y + 300 * ((X - 30) ** 2 + (Y - 20) ** 2 < 90)).astype(np.uint16)
LEVELS = (X * 3 + Y).astype(np.uint8)
PREVIEW = np.full((12, 16), 9, np.uint8)


def tiff(array: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **{"photometric": "minisblack", "metadata": None} | options)
    return buffer.getvalue()


def pages(*parts: tuple[np.ndarray, dict]) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for array, options in parts:
            writer.write(array, **{"photometric": "minisblack", "metadata": None} | options)
    return buffer.getvalue()


def quietly(source, **options) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_thermal(source, **options).values


RGB = np.dstack([PREVIEW, PREVIEW // 2, PREVIEW])


@pytest.mark.parametrize(
    "file",
    [
        pages((PREVIEW, {"subfiletype": 1}), (COUNTS, {})),
        pages((PREVIEW, {}), (COUNTS, {})),
        pages((RGB, {"photometric": "rgb", "subfiletype": 1}), (COUNTS, {})),
        pages((PREVIEW, {"extratags": [(255, "H", 1, 2, True)]}), (COUNTS, {})),
        pages((np.dstack([np.kron(PREVIEW, np.ones((9, 9), np.uint8))] * 3),
               {"photometric": "rgb"}), (COUNTS, {})),
        pages((PREVIEW, {"subfiletype": 1, "subifds": 1}), (COUNTS, {})),
        pages((COUNTS, {}), (COUNTS[::2, ::2], {"subfiletype": 1}), (PREVIEW, {"subfiletype": 1})),
        pages((COUNTS, {"tile": (16, 16)}), (COUNTS[::2, ::2], {})),
        pages((COUNTS, {"subifds": 1}), (COUNTS[::2, ::2], {"subfiletype": 1})),
    ],
    ids=["marked", "unmarked", "rgb", "old mark", "large photo", "frame below its preview",
         "previews behind", "small behind", "preview below"],
)  # fmt: skip
def test_the_frame_is_the_largest_picture_at_full_resolution(file):
    np.testing.assert_array_equal(quietly(file), COUNTS)


def test_frames_of_another_size_are_not_left_out_in_silence(tmp_path):
    path = tmp_path / "mixed.tif"
    for parts, count in (
        ([COUNTS, COUNTS[1:], COUNTS[:, ::-1]], 2), ([COUNTS[1:], COUNTS], 1),
        ([COUNTS, COUNTS.T], 1),
    ):  # fmt: skip
        path.write_bytes(pages(*((part.copy(), {}) for part in parts)))
        with pytest.warns(UserWarning, match="1 of its pictures have another size .* left out"):
            if count == 1:
                read_thermal(path)
            else:
                with open_sequence(path) as frames:
                    assert len(list(frames)) == count


def test_further_frames_are_announced_and_previews_are_not():
    with pytest.warns(UserWarning, match="several pictures; the first is used"):
        values = read_thermal(pages((PREVIEW, {"subfiletype": 1}), (COUNTS, {}), (COUNTS + 1, {})))
    np.testing.assert_array_equal(values.values, COUNTS)


@pytest.mark.parametrize("most", [255, 65280, 65535])
def test_colour_maps_of_8_and_of_16_bits(most):
    ramp = np.arange(255, -1, -1)
    colours = np.stack([ramp if most == 255 else ramp * (most // 255)] * 3).astype(np.uint16)
    file = tiff(LEVELS, photometric="palette", colormap=colours)
    np.testing.assert_array_equal(quietly(file), 255 - LEVELS)


def test_a_false_colour_map():
    for scale in (1, 257):
        colours = (PALETTES["ironbow"].T.astype(np.uint16) * scale).astype(np.uint16)
        file = tiff(LEVELS, photometric="palette", colormap=colours)
        np.testing.assert_array_equal(quietly(file, palette="ironbow"), LEVELS)


def drifting(dtype) -> np.ndarray:
    """Three frames of one sequence, (3, H, W)."""
    frames = [np.roll(COUNTS, 3 * i, axis=1).astype(np.float64) + 5 * i for i in range(3)]
    stack = np.stack(frames)
    if dtype == np.uint8:
        stack = (stack - 8000) / 8
    elif np.dtype(dtype).kind == "f":
        stack = stack / 100 - 60
    return stack.astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
def test_three_planes_are_three_pictures_and_no_colours(dtype):
    stack = drifting(dtype)
    for photometric in ("minisblack", "rgb"):
        file = tiff(stack, photometric=photometric, planarconfig="separate")
        with pytest.warns(UserWarning, match="three pictures as planes; the first is used"):
            values = read_thermal(file).values
        np.testing.assert_array_equal(values, stack[0].astype(np.float32))
    if dtype not in (np.uint8,):
        with pytest.warns(UserWarning, match="three pictures as planes; the first is used"):
            np.testing.assert_array_equal(read_thermal(stack).values, stack[0].astype(np.float32))


def test_planes_that_are_colours_stay_colours():
    rgb = PALETTES["ironbow"][LEVELS]
    file = tiff(rgb.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(quietly(file, palette="ironbow"), LEVELS)
    equal = tiff(np.stack([COUNTS] * 3), photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(quietly(equal), COUNTS)


# ---- tables that lie


def small_tiff(*changed: tuple[int, int, int, int]) -> bytes:
    """A TIFF of one row of 20 pixels with other entries (tag, type, count, value)."""
    entries = {tag: (kind, 1, value) for tag, kind, value in (
        (256, 4, 20), (257, 4, 1), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8),
        (277, 3, 1), (278, 4, 1), (279, 4, 20))}  # fmt: skip
    entries |= {tag: rest for tag, *rest in changed}
    table = b"".join(struct.pack("<HHII", tag, *rest) for tag, rest in sorted(entries.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(68)


@pytest.mark.parametrize(
    "entries",
    [
        [(257, 4, 1, 2**26), (32997, 5, 1, 8)],
        [(32997, 3, 1, 0)],
        [(32997, 4, 1, 2**31)],
        [(32998, 4, 1, 2**31)],
        [(257, 5, 1, 8)],
        [(256, 12, 1, 8)],
        [(258, 5, 1, 8)],
        [(277, 10, 1, 8)],
        [(278, 12, 1, 8)],
        [(273, 4, 2**30, 8)],
        [(279, 16, 2**28, 8)],
        [(320, 3, 2**31, 8)],
        [(258, 3, 2**20, 8)],
        [(330, 4, 2**20, 8)],
        [(284, 2, 1, 2)],
        [(339, 3, 2**16 + 1, 8)],
    ],
    ids=str,
)
def test_types_and_counts_of_a_table_are_checked_first(entries):
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(ThermalFileError, match="expected"):
        read_thermal(small_tiff(*entries))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - start < 1 and peak < 20e6


def test_the_small_file_is_sound_without_its_lies():
    assert quietly(small_tiff()).shape == (1, 20)


def test_private_tags_are_not_looked_at():
    for tag in (33628, 34118, 34361, 34412, 37706, 50838, 51023, 65420):
        for kind in (1, 2, 5, 7, 12, 99):
            assert quietly(small_tiff((tag, kind, 2**31, 8))).shape == (1, 20)


@pytest.mark.parametrize("order", "<>")
def test_tables_in_a_circle_end(order):
    file = bytearray(tiff(COUNTS, byteorder=order))
    first = struct.unpack_from(order + "I", file, 4)[0]
    number = struct.unpack_from(order + "H", file, first)[0]
    struct.pack_into(order + "I", file, first + 2 + 12 * number, first)
    np.testing.assert_array_equal(quietly(bytes(file)), COUNTS)


def test_a_damaged_second_table_does_not_spoil_the_first():
    file = bytearray(pages((COUNTS, {}), (COUNTS + 1, {})))
    first = struct.unpack_from("<I", file, 4)[0]
    number = struct.unpack_from("<H", file, first)[0]
    for place in (1, len(file) - 3, 2**32 - 1):
        struct.pack_into("<I", file, first + 2 + 12 * number, place)
        np.testing.assert_array_equal(quietly(bytes(file)), COUNTS)


def test_a_file_without_a_table_is_refused():
    with pytest.raises(ThermalFileError, match=r"without pictures|damaged"):
        read_thermal(b"II*\0" + bytes(40))
