"""Pixels without data: GDAL's no-data values, masks, alpha, and fill values that nothing marks."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable

import imagecodecs
import numpy as np
import pytest
import tifffile
from picture_files import file_of, read_quietly
from PIL import Image

from cmmfnet.thermal.frame import read_thermal
from cmmfnet.thermal.stretch import normalise

HEIGHT, WIDTH = 96, 128
Y, X = np.mgrid[:HEIGHT, :WIDTH]
CELSIUS = (
    20 + 10 * np.sin(X / 17) * np.cos(Y / 11) + np.random.default_rng(0).normal(0, 0.2, Y.shape)
).astype(np.float32)
COUNTS = np.round((CELSIUS + 273.15) * 100).astype(np.uint16)
LEVELS = np.round((CELSIUS - 5) * 8).clip(1, 254).astype(np.uint8)
INSIDE = abs(Y - HEIGHT / 2) / HEIGHT + abs(X - WIDTH / 2) / WIDTH < 0.45


def tiff(array: np.ndarray, *, tag: str | None = None, **options) -> bytes:
    """A TIFF file; ``tag``: GDAL's no-data value."""
    extra = [] if tag is None else [(42113, "s", 0, tag, True)]
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **{"photometric": "minisblack", "extratags": extra} | options)
    return buffer.getvalue()


def check(source, scene: np.ndarray, missing: np.ndarray = ~INSIDE) -> None:
    """NaN exactly where the picture is missing, the scene's values elsewhere, and its contrast."""
    thermal = read_quietly(source)
    np.testing.assert_array_equal(np.isnan(thermal.values), missing)
    np.testing.assert_array_equal(thermal.values[~missing], scene[~missing].astype(np.float32))
    right = normalise(scene[~missing][None].astype(np.float32))[0]
    np.testing.assert_allclose(normalise(thermal)[~missing], right, atol=0.02)


LOWEST = np.finfo(np.float32).min


@pytest.mark.parametrize(
    ("dtype", "stored", "tag"),
    [
        ("float32", LOWEST, "-3.4028234663852886e+38"),
        ("float32", LOWEST, "-3.40282346638529e+38"),
        ("float32", LOWEST, "-3.4e+38"),
        ("float32", -3.4e38, "-3.4e+38"),
        ("float32", LOWEST, "-1.7976931348623157e+308"),
        ("float32", -np.inf, "-1.7976931348623157e+308"),
        ("float64", np.finfo(np.float64).min, "-1.7976931348623157e+308"),
        ("float32", np.finfo(np.float32).max, "3.4028234663852886e+38"),
        ("float32", -9999, "-9999"),
        ("float32", -9999, "-9999.0 "),
        ("float32", -9999, "-9.999e+03"),
        ("float32", -9999, "-9999,0"),
        ("float32", -9999, "-9999 -9999 -9999"),
        ("float32", -9999.9, "-9999.9"),
        ("float64", -9999.9, "-9999.9"),
        ("float32", -10000, "\n-10000\n"),
        ("float32", 0, "0"),
        ("float32", 0, "-0.0"),
        ("float32", np.nan, "nan"),
        ("float32", np.nan, "-nan"),
        ("float32", np.nan, "NaN"),
        ("float32", np.nan, "-1.#IND"),
        ("float32", np.nan, "1.#QNAN"),
        ("float32", np.inf, "inf"),
        ("float32", -np.inf, "-inf"),
        ("float16", -9999, "-9999"),
        ("uint16", 65535, "65535"),
        ("uint16", 65535, "65535.0"),
        ("uint16", 65535, "6.5535e+04"),
        ("uint16", 0, "0"),
        ("uint16", 0, "-0"),
        ("int16", -32768, "-32768"),
        ("int16", -9999, "-9999.000000"),
        ("int32", -2147483648, "-2147483648"),
        ("uint32", 4294967295, "4294967295"),
        ("int64", -9223372036854775808, "-9223372036854775808"),
        ("uint64", 18446744073709551615, "18446744073709551615"),
        ("uint8", 0, "0"),
        ("uint8", 255, "2.55e2"),
    ],
)
def test_no_data_values_as_gdal_and_its_users_write_them(dtype, stored, tag):
    scene = {"uint8": LEVELS, "int16": COUNTS // 10, "uint16": COUNTS}.get(dtype)
    if scene is None:
        scene = CELSIUS if dtype.startswith("float") else COUNTS
    scene = scene.astype(dtype)
    array = np.where(INSIDE, scene, np.array(stored).astype(dtype))
    for options in ({}, {"bigtiff": True}, {"byteorder": ">"}, {"compression": "zlib"}):
        check(tiff(array, tag=tag, **options), scene)


@pytest.mark.parametrize(
    ("dtype", "tag"),
    [("uint8", "nan"), ("uint8", "-9999"), ("uint8", "256"), ("uint16", "-32768"), ("uint8", "0.5"),
     ("uint16", "1e40"), ("int16", "65535"), ("uint16", "inf"), ("uint16", "-3.4e+38"),
     ("uint8", "")],
)  # fmt: skip
def test_a_no_data_value_that_does_not_fit_the_type_is_no_pixel(dtype, tag):
    scene = (LEVELS if dtype == "uint8" else COUNTS).astype(dtype)
    scene[0, :3] = 0, 1, 255
    thermal = read_quietly(tiff(scene, tag=tag))
    np.testing.assert_array_equal(thermal.values, scene)
    assert thermal.dtype == dtype


def test_a_no_data_tag_that_is_no_number_is_named():
    with pytest.warns(UserWarning, match="no-data value 'none' is not a number"):
        np.testing.assert_array_equal(read_thermal(tiff(COUNTS, tag="none")).values, COUNTS)


def test_no_data_of_white_is_zero_files_is_what_is_stored():
    stored = np.where(INSIDE, 65535 - COUNTS, 0).astype(np.uint16)
    check(tiff(stored, tag="0", photometric="miniswhite"), COUNTS)
    levels = np.where(INSIDE, 255 - LEVELS, 255).astype(np.uint8)
    check(tiff(levels, tag="255", photometric="miniswhite"), LEVELS)


def test_no_data_of_indexed_and_rgb_files():
    index = np.where(INSIDE, LEVELS, 7).astype(np.uint8)
    ramp = np.stack([np.arange(256, dtype=np.uint16) * 257] * 3)
    check(tiff(index, tag="7", photometric="palette", colormap=ramp), LEVELS, index == 7)
    rgb = np.stack([np.where(INSIDE, LEVELS, 0)] * 3, axis=2).astype(np.uint8)
    check(tiff(rgb, tag="0", photometric="rgb"), LEVELS)


def with_mask(mask: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    scene = np.where(INSIDE, CELSIUS, 0).astype(np.float32)
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(scene, photometric="minisblack", metadata=None)
        writer.write(scene[::2, ::2], photometric="minisblack", subfiletype=1, metadata=None)
        # 8-bit masks are no masks to tifffile, so the tag is set without it
        kind = [] if mask.dtype == bool else [(254, "I", 1, 4, True)]
        part = {"photometric": "mask", "subfiletype": 4} if not kind else {"extratags": kind}
        writer.write(mask, metadata=None, **{"photometric": "minisblack"} | part | options)
        writer.write(mask[::2, ::2] > 0, photometric="mask", subfiletype=5, metadata=None)
    return buffer.getvalue()


def test_a_mask_that_is_a_page_of_its_own():
    check(with_mask(INSIDE), CELSIUS)
    check(with_mask(INSIDE.astype(np.uint8) * 255, compression="zlib"), CELSIUS)


def test_a_mask_beside_the_file_and_one_that_does_not_fit(tmp_path):
    path = tmp_path / "map.tif"
    path.write_bytes(tiff(np.where(INSIDE, CELSIUS, 0).astype(np.float32)))
    beside = tmp_path / "map.tif.msk"
    beside.write_bytes(tiff(INSIDE.astype(np.uint8) * 255))
    check(path, CELSIUS)
    picture = tmp_path / "map.png"
    picture.write_bytes(file_of(np.where(INSIDE, COUNTS, 0).astype(np.uint16)))
    (tmp_path / "map.png.msk").write_bytes(beside.read_bytes())
    check(picture, COUNTS)
    for damaged in (tiff(INSIDE.astype(np.uint8)[:9]), b"II*\0 nothing", b""):
        beside.write_bytes(damaged)
        with pytest.warns(UserWarning, match=r"its mask .*map.tif.msk cannot be used"):
            assert np.isfinite(read_thermal(path).values).all()


def test_no_data_in_notes_beside_the_file(tmp_path):
    for name, data, value in (
        ("map.tif", tiff(np.where(INSIDE, CELSIUS, -9999).astype(np.float32)), "-9.999E+03"),
        ("map.png", file_of(np.where(INSIDE, COUNTS, 0).astype(np.uint16)), "0"),
    ):
        (tmp_path / name).write_bytes(data)
        (tmp_path / f"{name}.aux.xml").write_text(
            '<PAMDataset><PAMRasterBand band="1"><NoDataValue>'
            f"{value}</NoDataValue></PAMRasterBand></PAMDataset>"
        )
        check(tmp_path / name, CELSIUS if name.endswith("tif") else COUNTS)


@pytest.mark.parametrize("opaque", [1, 255])
def test_the_alpha_band_of_a_float_mosaic(opaque):
    alpha = INSIDE.astype(np.float32) * opaque
    scene = np.where(INSIDE, CELSIUS, 0).astype(np.float32)
    for extra in ("unassalpha", "assocalpha", "unspecified"):
        for layout, axis in (("contig", 2), ("separate", 0)):
            array = np.stack([scene, alpha], axis=axis)
            check(tiff(array, planarconfig=layout, extrasamples=[extra]), CELSIUS)


def test_alpha_of_png_pil_and_arrays():
    alpha8, alpha16 = (
        INSIDE * np.array(most, dtype) for most, dtype in ((255, "u1"), (65535, "u2"))
    )
    black8, black16 = np.where(INSIDE, LEVELS, 0), np.where(INSIDE, COUNTS, 0)
    grey = np.dstack([black8, alpha8]).astype(np.uint8)
    colours = np.dstack([black8] * 3 + [alpha8]).astype(np.uint8)
    for array in (grey, colours):
        check(file_of(array), LEVELS)
        check(Image.fromarray(array), LEVELS)
    check(colours, LEVELS)
    for channels in (1, 3):
        deep = np.dstack([black16] * channels + [alpha16]).astype(np.uint16)
        check(imagecodecs.png_encode(deep), COUNTS)
        check(Image.open(io.BytesIO(imagecodecs.png_encode(deep))), COUNTS)
    indexed = Image.fromarray(black8.astype(np.uint8)).convert("P")
    check(file_of(indexed, transparency=0), LEVELS)
    check(file_of(black8.astype(np.uint8), transparency=0), LEVELS)
    check(file_of(black16.astype(np.uint16), transparency=0), COUNTS)


def test_alpha_that_is_no_mask_is_ignored():
    graded = ((X * 255) // WIDTH).astype(np.uint8)
    for alpha in (graded, np.zeros_like(graded), np.full_like(graded, 255)):
        array = np.dstack([LEVELS] * 3 + [alpha])
        for source in (array, file_of(array), Image.fromarray(array)):
            np.testing.assert_array_equal(read_quietly(source).values, LEVELS)


def test_black_hot_with_missing_pixels_is_still_turned_over():
    array = np.where(INSIDE, LEVELS, 0).astype(np.uint8)
    values = read_quietly(tiff(array, tag="0"), palette="black-hot").values
    np.testing.assert_array_equal(values[INSIDE], 255 - LEVELS[INSIDE])
    assert np.isnan(values[~INSIDE]).all()


def test_orientation_moves_the_missing_pixels_along():
    array = np.where(X < 20, -9999, CELSIUS).astype(np.float32)
    extra = [(42113, "s", 0, "-9999", True), (274, "H", 1, 6, True)]
    values = read_quietly(tiff(array, extratags=extra)).values
    assert values.shape == (WIDTH, HEIGHT)
    assert np.isnan(values[:20]).all() and np.isfinite(values[20:]).all()


def test_scale_and_offset_of_gdal_give_degrees():
    items = (
        '<Item name="SCALE" sample="0" role="scale">0.01</Item>'
        '<Item name="OFFSET" sample="0" role="offset">-273.15</Item>'
    )
    extra = [(42112, "s", 0, f"<GDALMetadata>{items}</GDALMetadata>", True),
             (42113, "s", 0, "0", True)]  # fmt: skip
    values = read_quietly(
        tiff(np.where(INSIDE, COUNTS, 0).astype(np.uint16), extratags=extra)
    ).values
    assert np.isnan(values[~INSIDE]).all()
    np.testing.assert_allclose(values[INSIDE], CELSIUS[INSIDE], atol=0.006)


# ---- fill values that nothing marks


def rows(value: float, scene: np.ndarray) -> np.ndarray:
    return np.where(Y >= HEIGHT - 2, np.array(value, scene.dtype), scene)


def border(value: float, scene: np.ndarray) -> np.ndarray:
    edge = (X < 3) | (X >= WIDTH - 3) | (Y < 2)
    return np.where(edge, np.array(value, scene.dtype), scene)


def outside(value: float, scene: np.ndarray) -> np.ndarray:
    return np.where(INSIDE, scene, np.array(value, scene.dtype))


@pytest.mark.parametrize("shape", [rows, border, outside])
@pytest.mark.parametrize(
    ("value", "scene"),
    [(0, COUNTS), (65535, COUNTS), (0, COUNTS // 10), (-9999, CELSIUS), (-10000, CELSIUS),
     (-32767, CELSIUS), (-32768, (COUNTS - 27315).astype(np.int16)), (0, CELSIUS + 273.15),
     (-3.4e38, CELSIUS), (1e20, CELSIUS), (-300.5, CELSIUS), (-273.15, CELSIUS)],
)  # fmt: skip
def test_fill_values_are_left_out_of_the_stretch(shape, value, scene):
    scene = scene.astype(np.float32) if scene.dtype == np.float64 else scene
    frame = shape(value, scene)
    picture = frame == scene
    with pytest.warns(UserWarning, match=re.escape(f"exactly {value:g}, far outside the rest")):
        stretched = normalise(frame)
    right = normalise(scene[picture][None].astype(np.float32))[0]
    np.testing.assert_allclose(stretched[picture], right, atol=0.02)
    # the pixels stay, at the end that they are nearest to
    assert (stretched[~picture] == (-1 if value < 1000 else 1)).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(read_thermal(frame).values, frame.astype(np.float32))


def test_two_fill_values_in_one_frame():
    frame = outside(-9999, np.where(Y > 75, 0, CELSIUS + 273.15).astype(np.float32))
    picture = INSIDE & (frame != 0)
    with pytest.warns(UserWarning, match="exactly -9999 and 0, far outside"):
        stretched = normalise(frame)
    assert abs(stretched[picture].std() - normalise(CELSIUS[picture][None]).std()) < 0.02
    both = rows(65535, border(0, COUNTS))
    picture = both == COUNTS
    with pytest.warns(UserWarning, match="exactly 0 and 65535"):
        stretched = normalise(both)
    assert abs(stretched[picture].std() - normalise(COUNTS[picture][None]).std()) < 0.02


def test_the_blurred_edge_of_a_rotated_frame_is_left_out_too():
    turned = Image.fromarray(COUNTS.astype(np.float32)).rotate(9, Image.Resampling.BILINEAR)
    frame = np.asarray(turned).round().astype(np.uint16)
    picture = frame > COUNTS.min() - 1
    with pytest.warns(UserWarning, match="exactly 0"):
        stretched = normalise(frame)
    assert abs(stretched[picture].std() - normalise(COUNTS).std()) < 0.03


@pytest.mark.parametrize("degrees", [3, 15])
def test_the_corners_of_a_small_frame_that_is_rotated(degrees):
    small = COUNTS[:60, :80].astype(np.float32)
    turned = Image.fromarray(small).rotate(degrees, Image.Resampling.BILINEAR)
    assert read_thermal(np.asarray(turned).round().astype(np.uint16)).fill == (0,)


@pytest.mark.parametrize("shape", [rows, border, outside])
def test_fill_values_of_8_bit_frames(shape):
    frame = shape(0, (110 + LEVELS // 4).astype(np.uint8))
    with pytest.warns(UserWarning, match="exactly 0"):
        stretched = normalise(frame)
    picture = frame > 0
    right = normalise((110 + LEVELS // 4).astype(np.uint8)[picture][None])
    assert abs(stretched[picture].std() - right.std()) < 0.02


def test_telemetry_with_numbers_between_the_zeros():
    frame = rows(0, COUNTS)
    frame[-2, :9] = [14, 3, 8192, 0, 65535, 1, 77, 12000, 5]
    with pytest.warns(UserWarning, match="exactly 0"):
        stretched = normalise(frame)
    assert abs(stretched[:-2].std() - normalise(COUNTS[:-2]).std()) < 0.02


def saturated_sky() -> np.ndarray:
    sky = np.clip(255 - Y * 3 + 4 * np.sin(X), 0, 255)
    return sky.astype(np.uint8)


NOT_FILLED: dict[str, Callable[[], np.ndarray]] = {
    "a sky that is cut off at 255": saturated_sky,
    "a sky that is cut off at 0": lambda: 255 - saturated_sky(),
    "a sky that is cut off at 0, and bright houses": lambda: np.where(
        Y < 40, 0, 40 + LEVELS.astype(int)
    ).astype(np.uint8),
    "a hot body of one temperature": lambda: np.where(
        (X - 60) ** 2 + (Y - 40) ** 2 < 200, 80, CELSIUS
    ).astype(np.float32),
    "a car that is cut off at 255": lambda: np.where(
        (X - 60) ** 2 + (Y - 40) ** 2 < 200, 255, LEVELS // 2
    ).astype(np.uint8),
    "a body that is cut off at 255 and blurs into the background": lambda: np.minimum(
        255, 20 + LEVELS // 16 + 700 * np.exp(-((X - 60) ** 2 + (Y - 40) ** 2) / 30)
    ).astype(np.uint8),
    "a car that is cut off at 65535": lambda: np.where(
        (X - 60) ** 2 + (Y - 40) ** 2 < 200,
        65535,
        65535 - 3 * np.ptp(COUNTS) + COUNTS - COUNTS.min(),
    ).astype(np.uint16),
    "a dark corner, nearly all of it 1 and 2": lambda: np.choose(
        np.searchsorted([10, 920, 980], (Y * WIDTH + X) * 37 % 1000), [0, 1, 2, 3 + X % 12]
    ).astype(np.uint8),
    "counts": lambda: COUNTS,
    "degrees around 0": lambda: np.where(INSIDE, CELSIUS - 20, 0).astype(np.float32),
    "a few dead pixels": lambda: np.where(Y * WIDTH + X < 9, 0, COUNTS).astype(np.uint16),
    "black and white": lambda: INSIDE.astype(np.uint8) * 255,
    "few levels": lambda: LEVELS // 64 * 64,
    "a hot spot": lambda: np.where(INSIDE & (X % 40 == 0) & (Y == 50), 9000, 7000),
}


@pytest.mark.parametrize("kind", NOT_FILLED)
def test_nothing_is_left_out_where_there_is_no_gap(kind):
    frame = NOT_FILLED[kind]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_thermal(frame).fill == ()
        stretched = normalise(frame)
    values = frame.astype(np.float64)
    low, high = np.percentile(values, (1, 99))
    low, high = (low, high) if low < high else (values.min(), values.max())
    if low < high:
        want = np.clip((values - low) / (high - low) * 2 - 1, -1, 1)
        np.testing.assert_allclose(stretched, want, atol=1e-4)
