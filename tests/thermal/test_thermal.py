"""Reading thermal pictures of every format, damaged ones included, and stretching them. All
pictures are made here."""

from __future__ import annotations

import doctest
import io
import os
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from picture_files import file_of, read_quietly, tiff_bytes
from PIL import Image

from cmmfnet.thermal.frame import ThermalFileError, read_thermal
from cmmfnet.thermal.palettes import PALETTES, invert_palette, palette_fit
from cmmfnet.thermal.stretch import normalise

SCENE_SHAPE = (48, 64)


def scene8() -> np.ndarray:
    """(48, 64) uint8: every grey level, a warm disc, no symmetry."""
    rows, columns = np.mgrid[: SCENE_SHAPE[0], : SCENE_SHAPE[1]]
    ramp = (rows * SCENE_SHAPE[1] + columns) * 255 / (SCENE_SHAPE[0] * SCENE_SHAPE[1] - 1)
    return (
        np.where((rows - 14) ** 2 + (columns - 40) ** 2 < 80, 230 - columns, ramp)
        .round()
        .astype(np.uint8)
    )


def scene16() -> np.ndarray:
    """(48, 64) uint16: all different, up to 65535, low byte in use."""
    return (
        (65535 - np.arange(SCENE_SHAPE[0] * SCENE_SHAPE[1], dtype=np.uint32) * 21)
        .reshape(SCENE_SHAPE)
        .astype(np.uint16)
    )


def stack(*channels: np.ndarray) -> np.ndarray:
    return np.stack(channels, axis=-1)


# ---- formats and data types
# --------------------------------------------------------------------------------------------------


def lossless_files() -> dict[str, tuple[bytes, np.ndarray, str]]:
    """name -> (file, expected values, expected dtype)."""
    grey, counts = scene8(), scene16()
    opaque8, opaque16 = np.full_like(grey, 255), np.full_like(counts, 65535)
    indexed = Image.fromarray(grey).convert("P")
    indexed.putpalette(
        [255 - i // 3 for i in range(768)]
    )  # index 0 is white: the index is not the value
    celsius = (counts / 1000 - 20).astype(np.float32)
    cases = {
        "png8": (file_of(grey, "PNG"), grey, "uint8"),
        "png16": (file_of(counts, "PNG"), counts, "uint16"),
        "png8-alpha": (file_of(stack(grey, opaque8), "PNG"), grey, "uint8"),
        "png16-alpha": (imagecodecs.png_encode(stack(counts, opaque16)), counts, "uint16"),
        "png8-rgb": (file_of(stack(grey, grey, grey), "PNG"), grey, "uint8"),
        "png8-rgba": (file_of(stack(grey, grey, grey, opaque8), "PNG"), grey, "uint8"),
        "png16-rgb": (imagecodecs.png_encode(stack(counts, counts, counts)), counts, "uint16"),
        "png16-rgba": (
            imagecodecs.png_encode(stack(counts, counts, counts, opaque16)),
            counts,
            "uint16",
        ),
        "png-indexed": (file_of(indexed, "PNG"), 255 - grey, "uint8"),
        "png-indexed-transparency": (
            file_of(indexed, "PNG", transparency=bytes(range(256))),
            255 - grey,
            "uint8",
        ),
        "png-1bit": (file_of(Image.fromarray(grey > 99), "PNG"), (grey > 99) * 255, "uint8"),
        "bmp8": (file_of(grey, "BMP"), grey, "uint8"),
        "bmp-rgb": (file_of(stack(grey, grey, grey), "BMP"), grey, "uint8"),
        "webp": (file_of(stack(grey, grey, grey), "WEBP", lossless=True), grey, "uint8"),
        "tiff-rgb": (
            tiff_bytes(stack(counts, counts, counts), photometric="rgb"),
            counts,
            "uint16",
        ),
        "tiff-planar": (
            tiff_bytes(np.stack([counts] * 3), photometric="rgb", planarconfig="separate"),
            counts,
            "uint16",
        ),
        "tiff-alpha": (
            tiff_bytes(stack(counts, opaque16), extrasamples=["unassalpha"], planarconfig="contig"),
            counts,
            "uint16",
        ),
        "tiff-white-is-zero": (
            tiff_bytes(counts, photometric="miniswhite"),
            65535 - counts,
            "uint16",
        ),
        "tiff-bigtiff": (tiff_bytes(counts, bigtiff=True), counts, "uint16"),
        "tiff-tiled": (tiff_bytes(counts, tile=(32, 32), compression="zlib"), counts, "uint16"),
        "tiff-1bit": (tiff_bytes(grey > 99, photometric="minisblack"), grey > 99, "bool"),
        "tiff-indexed": (
            tiff_bytes(
                grey,
                photometric="palette",
                colormap=np.stack([np.arange(255, -1, -1, dtype=np.uint16) * 257] * 3),
            ),
            255 - grey,
            "uint8",
        ),
    }
    for dtype in (
        "uint8",
        "int8",
        "uint16",
        "int16",
        "uint32",
        "int32",
        "float16",
        "float32",
        "float64",
    ):
        data = (
            grey // 2
            if dtype in ("uint8", "int8")
            else celsius
            if "float" in dtype
            else counts // 2
        )
        data = data.astype(dtype)
        for order in "<>":
            cases[f"tiff-{dtype}-{order}"] = (tiff_bytes(data, byteorder=order), data, dtype)
    for compression in ("lzw", "zlib", "zstd", "packbits"):
        for order in "<>":
            file = tiff_bytes(counts, compression=compression, byteorder=order, rowsperstrip=7)
            cases[f"tiff-{compression}-{order}"] = (file, counts, "uint16")
        file = tiff_bytes(counts, compression=compression, predictor=True)
        cases[f"tiff-{compression}-predictor"] = (file, counts, "uint16")
    return cases


LOSSLESS = lossless_files()


@pytest.mark.parametrize("case", LOSSLESS)
def test_lossless_formats_come_through_exactly(case, tmp_path):
    data, expected, dtype = LOSSLESS[case]
    path = tmp_path / f"frame.{case.split('-')[0]}"
    path.write_bytes(data)
    for source in (path, str(path), data, memoryview(data)):
        thermal = read_quietly(source)
        assert (
            thermal.values.dtype == np.float32
            and thermal.dtype == dtype
            and thermal.palette is None
        )
        np.testing.assert_array_equal(thermal.values, expected.astype(np.float32))
    assert read_quietly(path).name == str(path)


@pytest.mark.parametrize("quality", [50, 75, 95])
def test_jpeg_and_webp_are_grey_with_one_channel_or_three(quality):
    grey = scene8()
    noise = np.random.default_rng(0).integers(-2, 3, (*SCENE_SHAPE, 3))
    noisy = (stack(grey, grey, grey) + noise).clip(0, 255).astype(np.uint8)
    for picture in (grey, stack(grey, grey, grey), noisy):
        for format in ("JPEG", "WEBP"):
            values = read_quietly(file_of(picture, format, quality=quality)).values
            assert values.shape == SCENE_SHAPE and values.min() >= 0 and values.max() <= 255
            assert np.abs(values - grey).mean() < 6


def test_near_grey_channels_and_a_small_coloured_overlay_are_grey():
    grey = scene8()
    rgb = stack(grey, grey, grey)
    rgb[2:5, 2:8] = (255, 0, 0)  # 18 of 3072 pixels
    np.testing.assert_allclose(read_quietly(rgb).values[10:], grey[10:], atol=0.01)


def test_suffix_does_not_matter(tmp_path):
    path = tmp_path / "frame.jpg"
    path.write_bytes(LOSSLESS["tiff-uint16-<"][0])
    np.testing.assert_array_equal(read_quietly(path).values, scene16() // 2)


def test_no_data_value_of_a_thermal_map_becomes_nan():
    celsius = np.full((8, 8), 21.5, np.float32)
    celsius[:3] = -10000
    thermal = read_quietly(tiff_bytes(celsius, extratags=[(42113, "s", 0, "-10000", True)]))
    assert np.isnan(thermal.values[:3]).all() and (thermal.values[3:] == 21.5).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[274] = orientation
    picture = Image.fromarray(scene8())
    png, jpeg = (file_of(picture, format, exif=exif) for format in ("PNG", "JPEG"))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(png))))
    np.testing.assert_array_equal(read_quietly(png).values, expected)
    assert read_quietly(jpeg).values.shape == expected.shape
    tiff = tiff_bytes(scene8(), extratags=[(274, "H", 1, orientation, True)])
    np.testing.assert_array_equal(read_quietly(tiff).values, expected)


def test_of_several_pictures_the_first_is_taken_with_a_warning(tmp_path):
    first = scene16()
    pages = tmp_path / "pages.tiff"
    tifffile.imwrite(pages, np.stack([first, first // 3, first // 5]), photometric="minisblack")
    frames = [Image.fromarray(scene8() // (i + 1)) for i in range(2)]
    animated = file_of(frames[0], "PNG", save_all=True, append_images=frames[1:])
    for source, expected, message in (
        (pages, first, "several pictures; the first is used"),
        (animated, scene8(), "animated PNG; its first picture is used"),
    ):
        with pytest.warns(UserWarning, match=message):
            np.testing.assert_array_equal(read_thermal(source).values, expected)


# ---- arrays
# --------------------------------------------------------------------------------------------------

INTEGERS = ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"]


@pytest.mark.parametrize("dtype", ["bool", *INTEGERS, "float16", "float32", "float64"])
def test_arrays_of_every_numeric_type_and_layout(dtype):
    picture = (
        np.arange(35).reshape(5, 7) % 2 if dtype == "bool" else np.arange(35).reshape(5, 7)
    ).astype(dtype)
    layouts = (
        picture,
        picture[..., None],
        picture[None],
        stack(picture, picture, picture),
        np.stack([picture] * 3),
    )
    for array in layouts:
        thermal = read_quietly(array)
        np.testing.assert_array_equal(thermal.values, picture.astype(np.float32))
        assert thermal.dtype == dtype
    np.testing.assert_array_equal(
        read_quietly(picture.astype(picture.dtype.newbyteorder(">"))).values, picture
    )


def test_the_result_does_not_share_memory_that_the_caller_may_change():
    array = np.ones((3, 3), np.float32)
    thermal = read_thermal(array)
    array[:] = 7
    assert (thermal.values == 1).all()


def test_other_array_like_sources():
    picture = np.arange(12, dtype=np.float32).reshape(3, 4)
    masked = np.ma.MaskedArray(picture, mask=picture == 5)
    assert np.isnan(read_thermal(masked).values[1, 1])
    np.testing.assert_array_equal(read_thermal(Image.fromarray(scene16())).values, scene16())
    thermal = read_thermal(picture)
    assert read_thermal(thermal) is thermal
    with pytest.raises(ThermalFileError, match=r"PIL image.*expected a complete picture"):
        read_thermal(Image.open(io.BytesIO(SMALL["png8"][:-60])))


def test_torch_tensors_are_read_without_importing_torch():
    torch = pytest.importorskip("torch")
    picture = torch.arange(15.0).reshape(1, 3, 5)
    for tensor in (
        picture,
        picture.clone().requires_grad_(),
        picture.to(torch.bfloat16),
        picture.to(torch.uint8),
    ):
        np.testing.assert_array_equal(read_thermal(tensor).values, picture[0].numpy())
    with pytest.raises(ThermalFileError, match="one frame of the batch"):
        read_thermal(picture[None])
    script = "import sys, cmmfnet.thermal.frame; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": "src"}, check=False
        ).returncode
        == 0
    )


@pytest.mark.parametrize(
    "source",
    [
        np.zeros((2, 2), complex),
        pytest.param(np.array([[object()]]), id="objects"),
        np.array([["a"]]),
        np.zeros((2, 2), "datetime64[s]"),
        np.zeros((0, 5)),
        np.zeros((5, 0, 3)),
        np.zeros(5),
        np.float32(3),
        np.zeros((1, 1, 4, 4)),
        np.zeros((4, 4, 7)),
        np.zeros((4, 4), [("a", "u1")]),
        None,
        3,
        [[1, 2], [3, 4]],
        pytest.param(object(), id="an object"),
    ],
    ids=repr,
)
def test_what_is_no_picture_is_refused(source):
    with pytest.raises(ThermalFileError, match="expected"):
        read_thermal(source)


def test_three_planes_of_counts_are_not_colours():
    planes = np.random.default_rng(0).integers(7000, 9000, (8, 8, 3), dtype=np.int32)
    with pytest.raises(ThermalFileError, match="Pass the thermal channel alone"):
        read_thermal(planes)


# ---- bad files
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file"),
        (b"temperature;20;21\n", "text"),
        (b"GIF89a" + bytes(40), "a GIF"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "HEIC"),
        (b"\0\0\0\x18ftypisom" + bytes(40), "a video"),
        (b"RIFF\x10\0\0\0AVI LIST", "AVI"),
        (bytes(range(200, 256)), "no known kind"),
    ],
)
def test_unsupported_files_are_named(content, found, tmp_path):
    path = tmp_path / "frame.png"
    path.write_bytes(content)
    for source in (path, content):
        with pytest.raises(
            ThermalFileError, match=f"{found}.*expected PNG, TIFF, JPEG, BMP, WebP, FLIR"
        ):
            read_thermal(source)


def test_paths_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path, "a folder"),
        (tmp_path / "none.png", "no such file"),
        (tmp_path / "pipe", "not a regular file"),
        ("", "a folder"),
        ("a\0b", "cannot be opened"),
        ("x" * 5000, "cannot be opened"),
    ):
        with pytest.raises(ThermalFileError, match=message):
            read_thermal(path)


def small_files() -> dict[str, bytes]:
    grey, counts = scene8(), scene16()
    return {
        "png8": file_of(grey, "PNG"),
        "png16-rgb": imagecodecs.png_encode(stack(counts, counts, counts)),
        "jpeg": file_of(grey, "JPEG"),
        "jpeg-rgb": file_of(PALETTES["ironbow"][grey], "JPEG", progressive=True),
        "bmp": file_of(grey, "BMP"),
        "webp": file_of(stack(grey, grey, grey), "WEBP"),
        "webp-lossless": file_of(PALETTES["ironbow"][grey], "WEBP", lossless=True),
        "tiff": tiff_bytes(counts, rowsperstrip=10),
        "tiff-lzw": tiff_bytes(counts, compression="lzw", byteorder=">", rowsperstrip=10),
        "tiff-zlib-tiled": tiff_bytes(counts, compression="zlib", tile=(16, 16), predictor=True),
        "tiff-zstd": tiff_bytes(counts, compression="zstd"),
        "tiff-float": tiff_bytes(
            counts.astype(np.float32), compression="zlib", predictor=True, bigtiff=True
        ),
    }


SMALL = small_files()


@pytest.mark.parametrize("case", SMALL)
def test_truncated_files_are_refused(case):
    data = SMALL[case]
    read_thermal(data, palette="auto")
    for length in [1, 2, 7, 9, 20, 30, *(len(data) * k // 10 for k in range(1, 10))]:
        with pytest.raises(ThermalFileError, match="expected"):
            read_thermal(data[:length])


def thermal_or_error(data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            thermal = read_thermal(data, max_pixels=1 << 20)
        except ThermalFileError as error:
            assert str(error)
            return
    assert (
        thermal.values.dtype == np.float32
        and thermal.values.ndim == 2
        and 1 <= thermal.values.size <= 1 << 20
    )
    assert np.isfinite(normalise(thermal)).all()


FUZZ = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
SIGNATURES = [b"", *(data[:12] for data in SMALL.values())]


@settings(FUZZ, max_examples=300)
@given(st.sampled_from(SIGNATURES), st.binary(max_size=300))
def test_random_bytes(signature, data):
    thermal_or_error(signature + data)


@settings(FUZZ, max_examples=600)
@given(st.sampled_from(sorted(SMALL)), st.data())
def test_mutated_files(case, draw):
    data = bytearray(SMALL[case])
    # half of the damage goes to the headers, where the lies are: front for most, and the tag table
    # of TIFF
    near = st.integers(0, min(400, len(data) - 1))
    for _ in range(draw.draw(st.integers(1, 4))):
        position = draw.draw(st.one_of(near, st.integers(0, len(data) - 1)))
        patch = draw.draw(
            st.one_of(
                st.binary(min_size=1, max_size=4),
                st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\x7f\xff"]),
            )
        )
        data[position : position + len(patch)] = patch
    thermal_or_error(bytes(data))


@settings(FUZZ, max_examples=200)
@given(
    st.sampled_from(
        [
            254,
            255,
            256,
            257,
            258,
            259,
            262,
            273,
            274,
            277,
            278,
            279,
            284,
            317,
            320,
            322,
            323,
            324,
            325,
            338,
            339,
        ]
    ),
    st.sampled_from([1, 2, 3, 4, 5, 11, 12, 16]),
    st.sampled_from([0, 1, 2, 3, 1000, 2**31, 2**32 - 1]),
    st.sampled_from([0, 1, 2, 3, 8, 255, 65535, 2**31, 2**32 - 1]),
    st.sampled_from(["tiff", "tiff-zlib-tiled", "tiff-zstd"]),
)
def test_lying_tiff_tags(code, kind, count, value, case):
    """One tag of the table is replaced (or, where the file has none such, the last one)."""
    data = bytearray(SMALL[case])
    table = struct.unpack_from("<I", data, 4)[0]
    entries = [table + 2 + 12 * i for i in range(struct.unpack_from("<H", data, table)[0])]
    entry = next((e for e in entries if struct.unpack_from("<H", data, e)[0] == code), entries[-1])
    struct.pack_into("<HHII", data, entry, code, kind, count, value)
    thermal_or_error(bytes(data))


def png_header(width: int, height: int, depth: int = 8, colour: int = 0) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def bombs() -> dict[str, bytes]:
    """Small files that claim 60000 x 60000 pixels (WebP: its largest, 16383 x 16383)."""
    jpeg = bytearray(file_of(scene8(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    struct.pack_into(">HH", jpeg, frame + 5, 60000, 60000)
    bmp = bytearray(file_of(scene8(), "BMP"))
    struct.pack_into("<ii", bmp, 18, 60000, 60000)
    webp = bytearray(file_of(stack(scene8(), scene8(), scene8()), "WEBP"))
    struct.pack_into("<HH", webp, 26, 16383, 16383)

    def lying_tiff(case: str = "tiff-zlib-tiled", **tags: int) -> bytes:
        buffer = io.BytesIO(SMALL[case])
        with tifffile.TiffFile(buffer, mode="r+") as tiff:
            for name, value in tags.items():
                tiff.pages[0].tags[name].overwrite(value)
        return buffer.getvalue()

    return {
        "png": png_header(60000, 60000),
        "png16-rgb": png_header(60000, 60000, depth=16, colour=2),
        "jpeg": bytes(jpeg),
        "bmp": bytes(bmp),
        "webp": bytes(webp),
        "tiff": lying_tiff(ImageWidth=60000, ImageLength=60000),
        "tiff-one-strip": lying_tiff(
            "tiff-zstd", ImageWidth=60000, ImageLength=60000, RowsPerStrip=60000
        ),
        "tiff-tile": lying_tiff(TileWidth=60000, TileLength=60000),
        "tiff-small-tiles": lying_tiff(
            ImageWidth=50000, ImageLength=1000, TileWidth=1, TileLength=1
        ),
        "tiff-samples": lying_tiff(SamplesPerPixel=65535),
    }


BOMBS = bombs()


@pytest.mark.parametrize("case", BOMBS)
def test_sizes_are_checked_before_decoding(case, tmp_path):
    path = tmp_path / "bomb"
    path.write_bytes(BOMBS[case])
    tracemalloc.start()
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # in particular no DecompressionBombWarning
        with pytest.raises(
            ThermalFileError, match=r"limit is 5000|decoder's limit|expected at most|65535 channels"
        ):
            read_thermal(path)
    seconds, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 2 and peak < 20e6


@pytest.mark.parametrize("compression", [8, 50000])
def test_a_strip_that_inflates_beyond_its_picture_does_not_fill_the_memory(compression):
    encode = {8: imagecodecs.zlib_encode, 50000: imagecodecs.zstd_encode}[compression]
    payload = encode(bytes(200_000_000))
    small = tiff_bytes(np.zeros((4, 4), np.uint8), compression=compression)
    buffer = io.BytesIO(small + payload)
    with tifffile.TiffFile(buffer, mode="r+") as tiff:
        tags = tiff.pages[0].tags
        tags["StripOffsets"].overwrite(len(small))
        tags["StripByteCounts"].overwrite(len(payload))
    tracemalloc.start()
    thermal_or_error(buffer.getvalue())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_the_pixel_limit_can_be_moved():
    data = file_of(scene8(), "PNG")
    with pytest.raises(
        ThermalFileError, match=r"64 x 48 = 3072 pixels, the limit is 3071.*max_pixels"
    ):
        read_thermal(data, max_pixels=3071)
    read_thermal(data, max_pixels=3072)
    # above Pillow's own limit the user's word counts: damaged, not too large
    with pytest.raises(ThermalFileError, match="damaged or truncated PNG"):
        read_thermal(png_header(20000, 9001), max_pixels=200_000_000)


def test_lossy_tiff_and_colour_spaces_are_refused_with_a_reason():
    for data, reason in (
        (tiff_bytes(scene8(), compression="jpeg"), "compression JPEG; expected one of none, LZW"),
        (tiff_bytes(scene8().astype(complex)), "complex"),
        (tiff_bytes(np.zeros((8, 8, 6), np.uint8), planarconfig="contig"), "6 channels"),
        (tiff_bytes(np.zeros((8, 8, 4), np.uint8), photometric="separated"), "photometric type 5"),
    ):
        with pytest.raises(ThermalFileError, match=reason):
            read_thermal(data)


# ---- palettes
# --------------------------------------------------------------------------------------------------

COLOURED = [name for name in PALETTES if not name.endswith("-hot")]


def test_palette_tables_can_be_inverted():
    for name, table in PALETTES.items():
        assert table.shape == (256, 3) and table.dtype == np.uint8
        # neighbours may be one colour: viridis has 253 colours of 8 bits
        levels = invert_palette(table[None], name)[0]
        np.testing.assert_allclose(levels, np.arange(256), atol=1, err_msg=name)


@pytest.mark.parametrize("name", ["hot", "inferno", "jet", "magma", "plasma", "turbo", "viridis"])
def test_palettes_of_libraries_follow_opencv(name):
    cv2 = pytest.importorskip("cv2")
    ramp = np.arange(256, dtype=np.uint8)[:, None]
    theirs = cv2.applyColorMap(ramp, getattr(cv2, f"COLORMAP_{name.upper()}"))[..., ::-1]
    assert np.abs(PALETTES[name].astype(int) - theirs[:, 0]).max() <= 16
    values = read_quietly(np.ascontiguousarray(theirs).repeat(4, 1), palette="auto")
    assert values.palette == name and np.abs(values.values - ramp).max() <= 6


@pytest.mark.parametrize("name", COLOURED)
def test_false_colour_is_recognised_and_undone(name, tmp_path):
    grey = scene8()
    path = tmp_path / "false-colour.png"
    Image.fromarray(PALETTES[name][grey]).save(path)
    with pytest.warns(UserWarning, match=f"palette '{name}'.*--palette {name}"):
        thermal = read_thermal(path)
    assert thermal.palette is None
    rgb = PALETTES[name][grey].astype(float)
    np.testing.assert_allclose(thermal.values, rgb @ [0.299, 0.587, 0.114], atol=0.01)
    for palette in (name, "auto"):
        thermal = read_quietly(path, palette=palette)
        assert thermal.palette == name and np.abs(thermal.values - grey).max() < 2

    indexed = Image.fromarray(grey).convert("P")  # how many cameras store it
    indexed.putpalette(PALETTES[name].tobytes())
    values = read_quietly(file_of(indexed, "PNG"), palette=name).values
    np.testing.assert_allclose(values, grey, atol=1)

    smooth = np.asarray(Image.fromarray(grey).resize((320, 240), Image.Resampling.BICUBIC))
    jpeg = read_quietly(file_of(PALETTES[name][smooth], "JPEG", quality=90), palette="auto")
    assert jpeg.palette == name and np.abs(jpeg.values - smooth).mean() < 2


def test_false_colour_arrays_of_other_types():
    grey = scene8()
    rgb = PALETTES["ironbow"][grey]
    for array in (
        rgb / 255,
        rgb.astype(np.float32),
        rgb.astype(np.uint16) * 257,
        rgb.astype(np.int64),
        rgb.transpose(2, 0, 1),
    ):
        np.testing.assert_array_equal(read_quietly(array, palette="ironbow").values, grey)


def colour_photo() -> np.ndarray:
    """A stand-in for a street by day: blue sky, green trees, grey road, textured."""
    photo = np.zeros((60, 80, 3), np.int64)
    photo[:20], photo[20:40], photo[40:] = (120, 170, 230), (60, 120, 50), (110, 108, 105)
    photo[25:40, 50:] = (180, 200, 170)
    return (
        (photo + np.random.default_rng(0).integers(-12, 12, photo.shape))
        .clip(0, 255)
        .astype(np.uint8)
    )


def test_a_colour_photo_is_called_one():
    with pytest.warns(UserWarning, match=r"ordinary colour photo.*luminance is used.*--palette"):
        assert read_thermal(colour_photo()).palette is None
    with pytest.warns(UserWarning, match="ordinary colour photo.*luminance is used"):
        assert read_thermal(colour_photo(), palette="auto").palette is None
    with pytest.warns(UserWarning, match="ordinary colour photo.*as asked"):
        assert read_thermal(colour_photo(), palette="lava").palette == "lava"


def test_the_wrong_palette_is_pointed_out():
    with pytest.warns(UserWarning, match="'jet' fits far better; type --palette jet"):
        read_thermal(PALETTES["jet"][scene8()], palette="ironbow")


def test_black_hot_and_palettes_without_use():
    grey = scene8()
    np.testing.assert_array_equal(read_quietly(grey, palette="black-hot").values, 255 - grey)
    for palette in ("auto", "white-hot"):
        np.testing.assert_array_equal(read_quietly(grey, palette=palette).values, grey)
    for picture, palette in ((grey, "ironbow"), (scene16(), "black-hot")):
        with pytest.warns(UserWarning, match=f"palette '{palette}' is not applied"):
            np.testing.assert_array_equal(read_thermal(picture, palette=palette).values, picture)


def test_unknown_palette_lists_the_names():
    with pytest.raises(
        ThermalFileError, match=r"unknown palette 'iron'.*auto.*ironbow.*rainbow.*lava.*arctic"
    ):
        read_thermal(scene8(), palette="iron")


def test_radiometric_jpeg_in_false_colour_points_to_the_maker():
    jpeg = file_of(PALETTES["ironbow"][scene8()], "JPEG")
    flir = (
        jpeg[:2] + b"\xff\xe1" + struct.pack(">H", 16) + b"FLIR\0\1\0".ljust(14, b"\0") + jpeg[2:]
    )
    exif = Image.Exif()
    exif[271] = "DJI"
    dji = file_of(PALETTES["ironbow"][scene8()], "JPEG", exif=exif)
    for data in (flir, dji):
        with pytest.warns(UserWarning, match="ironbow.*no thermal frame"):
            read_thermal(data)
    with pytest.warns(UserWarning) as caught:
        read_thermal(jpeg)
    assert "thermal camera" not in str(caught[0].message)


def test_palette_fit_is_sorted():
    fit = palette_fit(PALETTES["arctic"][scene8()])
    assert next(iter(fit)) == "arctic" and list(fit.values()) == sorted(fit.values())


def test_the_shared_thermal_pictures_read_as_grey():
    folder = Path(__file__).parents[3] / "shared/data/pairs/thermal"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not on this machine")
    for path in sorted(folder.iterdir())[::40]:
        assert np.ptp(normalise(read_quietly(path))) == 2


def test_the_examples_of_modules_and_page_are_true():
    from cmmfnet.thermal import frame, stretch

    page = Path(__file__).parents[2] / "docs" / "thermal.md"
    modules = [doctest.testmod(module) for module in (frame, stretch)]
    for result in (*modules, doctest.testfile(str(page), module_relative=False)):
        assert result.attempted > 0 and result.failed == 0
    for name in PALETTES:
        assert f"`{name}`" in page.read_text()
