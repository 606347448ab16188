"""Pictures of every kind through `Colorizer` and `cmmfnet colorize`: PIL images, masked arrays,
transparent PNG files, and spans in another unit than the frame's.

The network is `Fake`, whose red is the stretched frame, so red is compared with a stretch that
numpy computes here.
"""

from __future__ import annotations

import struct
import warnings
import zlib

import imagecodecs
import numpy as np
import pytest
import torch
from fake_network import Fake
from picture_files import file_of
from PIL import Image

from cmmfnet import methods
from cmmfnet.cli import main
from cmmfnet.colorizer.torch import Colorizer
from cmmfnet.thermal.frame import ThermalFileError
from cmmfnet.weights.files import save_model

Y, X = np.mgrid[:48, :64]
CELSIUS = 26 + 7 * np.sin(X / 9) * np.cos(Y / 6)
COUNTS = np.round((CELSIUS + 273.15) * 100).astype(np.uint16)  # centikelvin
LEVELS = np.round((CELSIUS - 15) * 10).astype(np.uint8)
HOLE = X < 15


def red(source, **options) -> np.ndarray:
    """(H, W) 0 to 255, without a warning."""
    colorizer = Colorizer(Fake(), device="cpu", dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return colorizer(source, **options)[..., 0].astype(int)


def stretched(values: np.ndarray, missing: np.ndarray | None = None) -> np.ndarray:
    """The 1st to 99th percentile of the known values on 0 to 255; missing ones are the median."""
    known = values if missing is None else values[~missing]
    low, middle, high = np.percentile(known.astype(float), (1, 50, 99))
    filled = values if missing is None else np.where(missing, middle, values)
    return np.round(np.clip((filled.astype(float) - low) / (high - low), 0, 1) * 255).astype(int)


def assert_coloured(source, values: np.ndarray, missing: np.ndarray | None = None) -> None:
    np.testing.assert_allclose(red(source), stretched(values, missing), atol=1)  # .5 may round up


# --- PIL images


def image_of(mode: str) -> tuple[Image.Image, np.ndarray]:
    """An image and the numbers in it."""
    grey = Image.fromarray(LEVELS)
    if mode.startswith("I;16"):
        order = ">u2" if mode == "I;16B" else "<u2"
        return Image.frombytes(mode, grey.size, COUNTS.astype(order).tobytes()), COUNTS
    if mode == "I":
        return Image.fromarray(COUNTS.astype(np.int32)), COUNTS
    if mode == "F":
        return Image.fromarray(CELSIUS.astype(np.float32)), CELSIUS
    if mode == "1":
        return Image.fromarray(LEVELS > 110), LEVELS > 110
    if mode in ("La", "RGBa"):
        return grey.convert(mode[:-1] + "A").convert(mode), LEVELS
    if mode == "LAB":
        middle = Image.new("L", grey.size, 128)
        return Image.merge(mode, [grey, middle, middle]), LEVELS
    return grey.convert(mode), LEVELS


@pytest.mark.parametrize(
    "mode",
    ["1", "L", "P", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", "LA", "La", "PA",
     "I;16", "I;16B", "I;16L", "I", "F"],
)  # fmt: skip
def test_pil_images_of_every_mode_are_coloured_by_their_numbers(mode):
    image, values = image_of(mode)
    assert image.mode == mode
    if mode == "1":
        np.testing.assert_array_equal(red(image), values * 255)
    elif mode == "LAB":  # lightness is no linear grey, but it has the same order
        assert np.corrcoef(red(image).ravel(), stretched(values).ravel())[0, 1] > 0.99
    else:
        assert_coloured(image, values)


def test_every_mode_that_pil_has_is_tried():
    mark = test_pil_images_of_every_mode_are_coloured_by_their_numbers.pytestmark[0]
    swapped = {"BGR;15", "BGR;16", "BGR;24", "I;16N"}  # raw layouts of Pillow, no pictures
    assert set(Image.MODES) - swapped <= set(mark.args[1])


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_pil_images_of_files_keep_transparency_and_16_bits(tmp_path, loaded, channels):
    holed = np.where(HOLE, 0, LEVELS).astype(np.uint8)
    key = 0 if channels == 1 else (0, 0, 0)
    path = tmp_path / "a.png"
    path.write_bytes(file_of(holed if channels == 1 else np.dstack([holed] * 3), transparency=key))
    deep = tmp_path / "b.png"
    deep.write_bytes(imagecodecs.png_encode(COUNTS if channels == 1 else np.dstack([COUNTS] * 3)))
    for file, values, missing in ((path, LEVELS, HOLE), (deep, COUNTS, None)):
        with Image.open(file) as image:
            if loaded:
                image.load()
            assert_coloured(image, values, missing)


# --- masked arrays


@pytest.mark.parametrize(
    "values", [CELSIUS, CELSIUS.astype(np.float32), COUNTS, LEVELS], ids=lambda v: v.dtype.name
)
@pytest.mark.parametrize("under", ["as they were", 0, "largest"])
def test_masked_pixels_are_neither_hot_nor_cold_whatever_lies_under_the_mask(values, under):
    data = values.copy()
    if under != "as they were":
        most = np.iinfo(values.dtype).max if values.dtype.kind == "u" else 1e9
        data[HOLE] = 0 if under == 0 else most
    assert_coloured(np.ma.array(data, mask=HOLE), values, HOLE)


def test_masked_arrays_of_other_shapes():
    for shape in ((1, *X.shape), (*X.shape, 1)):
        frame = np.ma.array(CELSIUS.reshape(shape), mask=HOLE.reshape(shape))
        assert_coloured(frame, CELSIUS, HOLE)
    three = np.ma.array(np.dstack([LEVELS] * 3), mask=np.dstack([HOLE] * 3))
    assert_coloured(three, LEVELS, HOLE)
    assert_coloured(np.ma.array(CELSIUS), CELSIUS)  # nothing is masked
    colorizer = Colorizer(Fake(), device="cpu", dtype=torch.float32)
    with pytest.warns(UserWarning, match="no pixel has a value"):
        nothing = colorizer(np.ma.masked_all(X.shape))
    assert np.unique(nothing[..., 0]).tolist() == [128]  # the middle of the range


# --- PNG files with a transparent colour (tRNS)


def with_trns(data: bytes, payload: bytes) -> bytes:
    """A PNG file with a chunk that Pillow cannot write for 16 bits."""
    at = data.index(b"IDAT") - 4
    chunk = b"tRNS" + payload
    chunk = struct.pack(">I", len(payload)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return data[:at] + chunk + data[at:]


def transparent(kind: str) -> tuple[bytes, np.ndarray]:
    """A PNG file whose pixels at HOLE have the transparent colour, and the values of the others."""
    levels, counts = (np.where(HOLE, 0, each).astype(each.dtype) for each in (LEVELS, COUNTS))
    if kind == "grey":
        return file_of(levels, transparency=0), LEVELS
    if kind == "grey 16":
        return file_of(counts, transparency=0), COUNTS
    if kind == "colour":
        return file_of(np.dstack([levels] * 3), transparency=(0, 0, 0)), LEVELS
    if kind == "colour 16":
        return with_trns(imagecodecs.png_encode(np.dstack([counts] * 3)), bytes(6)), COUNTS
    if kind == "inside the range":  # a value that the stretch could not tell from others
        inside = np.where(HOLE, 29_900, np.where(COUNTS == 29_900, 29_901, COUNTS))
        data = imagecodecs.png_encode(inside.astype(np.uint16))
        return with_trns(data, struct.pack(">H", 29_900)), inside
    table = Image.fromarray(levels).convert("P")
    return file_of(table, transparency=bytes([0] + [255] * 255)), LEVELS


@pytest.fixture
def model(tmp_path, monkeypatch) -> str:
    monkeypatch.setitem(methods.METHODS, "fake", "fake_network:FakeMethod")
    return str(save_model(tmp_path / "fake.safetensors", Fake(), {"method": "fake"}))


def colorize(model: str, *arguments: object) -> int:
    return main(["colorize", *map(str, arguments), "--model", model, "--device", "cpu"])


@pytest.mark.parametrize(
    "kind", ["grey", "grey 16", "colour", "colour 16", "inside the range", "table"]
)
def test_the_transparent_colour_of_a_png_is_no_temperature(kind, tmp_path, model):
    data, values = transparent(kind)
    assert_coloured(data, values, HOLE)
    (tmp_path / "a.png").write_bytes(data)
    assert colorize(model, tmp_path / "a.png", "-o", tmp_path / "out.png") == 0
    made = np.asarray(Image.open(tmp_path / "out.png"))[..., 0].astype(int)
    np.testing.assert_allclose(made, stretched(values, HOLE), atol=1)


def test_a_frame_without_any_value_is_told(tmp_path, model):
    np.save(tmp_path / "a.npy", np.full((48, 64), np.nan, np.float32))
    with pytest.warns(UserWarning, match="a.npy: no pixel has a value"):
        assert colorize(model, tmp_path / "a.npy", "-o", tmp_path / "out.png") == 0


# --- spans


FITS = {
    "centikelvin": (COUNTS, "20,35", "as in centikelvin", "29315,30815"),
    "decikelvin": (COUNTS // 10, "20,35", "as in decikelvin", "2932,3082"),
    "Celsius": (CELSIUS.astype(np.float32), "29315,30815", "as in degrees Celsius", "20,35"),
}


@pytest.mark.parametrize("unit", FITS)
def test_a_span_in_the_wrong_unit_for_every_frame_colours_nothing(unit, tmp_path, model, capsys):
    values, span, seen, fits = FITS[unit]
    frames = tmp_path / "in"
    frames.mkdir()
    for i in range(3):
        Image.fromarray(values + values.dtype.type(i)).save(frames / f"f{i}.tiff")
    for batch in (1, 2):
        out, page = tmp_path / f"out{batch}", tmp_path / f"{batch}.html"
        arguments = ("-o", out, f"--span={span}", "--batch-size", batch, "--gallery", page)
        assert colorize(model, frames, *arguments) == 1
        told = capsys.readouterr()
        assert "coloured 0, failed 3" in told.out
        failures = told.err.strip().splitlines()
        assert len(failures) == 3
        for i, line in enumerate(failures):
            assert f"f{i}.tiff: the span {span} leaves nearly nothing of the frame inside" in line
            assert seen in line and line.endswith(f"--span={fits}")
        assert not list(tmp_path.rglob("*.png")) and not page.exists()
    # the span of the message colours them all
    assert colorize(model, frames, "-o", tmp_path / "right", f"--span={fits}") == 0
    for i in range(3):
        made = np.asarray(Image.open(tmp_path / "right" / f"f{i}.png"))[..., 0]
        assert made.std() > 40


def test_a_span_that_fits_some_frames_colours_those(tmp_path, model, capsys):
    (tmp_path / "in").mkdir()
    Image.fromarray(COUNTS).save(tmp_path / "in" / "counts.png")
    np.save(tmp_path / "in" / "degrees.npy", CELSIUS.astype(np.float32))
    assert colorize(model, tmp_path / "in", "-o", tmp_path / "out", "--span=20,35") == 1
    told = capsys.readouterr()
    assert "coloured 1, failed 1" in told.out and "counts.png: the span 20,35" in told.err
    made = np.asarray(Image.open(tmp_path / "out" / "degrees.png"))[..., 0].astype(int)
    expected = np.round(np.clip((CELSIUS - 20) / 15, 0, 1) * 255)
    np.testing.assert_allclose(made, expected, atol=1)


@pytest.mark.parametrize("unit", FITS)
def test_colorizer_refuses_a_span_in_the_wrong_unit(unit):
    values, span, seen, fits = FITS[unit]
    message = rf"span {span} leaves nearly nothing.*{seen}.*--span={fits}$"
    numbers = tuple(map(float, span.split(",")))
    for given in (span, numbers):
        for source in (values, np.ma.array(values, mask=HOLE), [values] * 3):
            with pytest.raises(ThermalFileError, match=message):
                red(source, span=given)


def test_the_wrong_picture_of_a_list_is_named_by_its_place():
    with pytest.raises(ThermalFileError, match=r"^picture 1 of 3 \(counted from 0\): <array>: the"):
        red([CELSIUS, COUNTS, CELSIUS], span=(20, 35))
    with pytest.raises(ThermalFileError, match=r"^picture 2 of 3 \(counted from 0\): "):
        red([CELSIUS, LEVELS, b"no picture"])
    with pytest.raises(ThermalFileError, match=r"^<array>: the span"):
        red(COUNTS, span=(20, 35))


def test_spans_that_are_none():
    for span, message in (
        ((35, 20), "type 20,35"),
        ((float("nan"), 20), "is not finite"),
        ((1, 2, 3), "not a pair of numbers"),
        ("warm", "not LOW,HIGH"),
    ):
        with pytest.raises(ValueError, match=message):
            red(CELSIUS, span=span)
