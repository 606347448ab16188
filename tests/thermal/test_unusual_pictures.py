"""PIL images, swapped bytes, spans in another unit, and JPEG files of no or of too many scans."""

from __future__ import annotations

import io
import time

import imagecodecs
import numpy as np
import pytest
from picture_files import file_of, read_quietly, tiff_bytes
from PIL import Image, ImageOps

from cmmfnet.thermal.byte_order import in_byte_order
from cmmfnet.thermal.frame import ThermalFileError, read_thermal
from cmmfnet.thermal.stretch import normalise

Y, X = np.mgrid[:96, :128]
NOISE = np.random.default_rng(0)
CELSIUS = 26 + 7 * np.sin(X / 17) * np.cos(Y / 11) + NOISE.normal(0, 0.05, Y.shape)
COUNTS = np.round((CELSIUS + 273.15) * 100).astype(np.uint16)
LEVELS = np.round((CELSIUS - 15) * 10).clip(0, 255).astype(np.uint8)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


# ---- PIL images


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_pil_images_are_turned_as_their_files_are(kind, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = file_of(LEVELS, kind, exif=exif, **options)
    expected = read_thermal(data).values
    np.testing.assert_array_equal(read_quietly(opened(data)).values, expected)
    loaded = opened(data)
    loaded.load()
    np.testing.assert_array_equal(read_quietly(loaded).values, expected)
    turned = ImageOps.exif_transpose(opened(data))
    np.testing.assert_array_equal(read_quietly(turned).values, expected)


def test_pil_images_of_16_bits_keep_them(tmp_path):
    opaque = np.full_like(COUNTS, 65535)
    for channels in ([COUNTS, opaque], [COUNTS] * 3, [COUNTS] * 3 + [opaque]):
        data = imagecodecs.png_encode(np.dstack(channels))
        thermal = read_quietly(opened(data))
        assert thermal.dtype == "uint16"
        np.testing.assert_array_equal(thermal.values, COUNTS)
        path = tmp_path / "frame.png"
        path.write_bytes(data)
        loaded = Image.open(path)
        loaded.load()  # its file is closed, but known by name
        np.testing.assert_array_equal(read_quietly(loaded).values, COUNTS)
    np.testing.assert_array_equal(
        read_quietly(opened(tiff_bytes(np.dstack([COUNTS] * 3), photometric="rgb"))).values, COUNTS
    )


def test_a_pil_image_that_was_changed_is_not_read_from_its_file(tmp_path):
    path = tmp_path / "frame.png"
    path.write_bytes(imagecodecs.png_encode(np.dstack([COUNTS] * 3)))
    image = Image.open(path)
    image.paste((0, 0, 0), (0, 0, 64, 96))
    values = read_quietly(image).values
    assert (values[:, :64] == 0).all()
    np.testing.assert_array_equal(values[:, 64:], COUNTS[:, 64:] >> 8)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("I;16", COUNTS), ("I;16B", COUNTS), ("I", COUNTS), ("F", CELSIUS), ("L", LEVELS),
     ("1", (LEVELS > 99) * 255), ("LA", LEVELS), ("RGB", LEVELS), ("RGBA", LEVELS),
     ("P", LEVELS), ("PA", LEVELS), ("CMYK", LEVELS)],
)  # fmt: skip
def test_modes_of_pil(mode, expected):
    if mode == "I;16B":
        image = Image.frombytes(mode, X.shape[::-1], COUNTS.astype(">u2").tobytes())
    elif mode == "I":
        image = Image.fromarray(COUNTS.astype(np.int32))
    elif mode == "F":
        image = Image.fromarray(CELSIUS.astype(np.float32))
    elif mode == "I;16":
        image = Image.fromarray(COUNTS)
    elif mode == "1":
        image = Image.fromarray(LEVELS > 99)
    else:
        image = Image.fromarray(LEVELS).convert(mode)
    assert image.mode == mode
    np.testing.assert_array_equal(read_quietly(image).values, expected.astype(np.float32))


def test_no_data_of_pil_images():
    hole = np.where(X < 20, 0, COUNTS).astype(np.uint16)
    for data in (tiff_bytes(hole, extratags=[(42113, "s", 0, "0", True)]),
                 file_of(hole, transparency=0)):  # fmt: skip
        values = read_quietly(opened(data)).values
        assert np.isnan(values[:, :20]).all()
        np.testing.assert_array_equal(values[:, 20:], COUNTS[:, 20:])


def test_damaged_files_behind_pil_images():
    for kind, cut in (("PNG", 60), ("TIFF", 900), ("JPEG", 60)):
        with pytest.raises(ThermalFileError, match=r"PIL image.*expected a complete picture"):
            read_thermal(opened(file_of(LEVELS, kind)[:-cut]))


# ---- bytes in the wrong order

CAMERAS = {
    "centikelvin": COUNTS,
    "14 bits": (8000 + (COUNTS.astype(int) - 29000) // 2).astype(np.uint16),
    "wide": (COUNTS.astype(int) * 8 - 210_000).clip(0, 65535).astype(np.uint16),
    "200 counts": (8092 + (COUNTS.astype(int) - COUNTS.min()) * 200 // np.ptp(COUNTS)).astype(
        np.uint16
    ),
}


@pytest.mark.parametrize("camera", CAMERAS)
def test_swapped_bytes_are_put_right_with_a_warning(camera, tmp_path):
    counts = CAMERAS[camera]
    path = tmp_path / "raw.png"
    path.write_bytes(file_of(counts.byteswap()))
    for source in (path, tiff_bytes(counts.byteswap()), counts.byteswap(), Image.open(path)):
        with pytest.warns(UserWarning, match="two bytes of each 16-bit number are swapped"):
            np.testing.assert_array_equal(read_thermal(source).values, counts)


def test_right_bytes_stay():
    frames = [
        *CAMERAS.values(),
        LEVELS.astype(np.uint16),
        LEVELS.astype(np.uint16) * 256,
        LEVELS.astype(np.uint16) * 257,
        np.full_like(COUNTS, 256),
        (X * 7 + Y).astype(np.uint16),
    ]
    for scale in (1, 40, 300, 9000):
        for middle in (255, 8191, 30000):
            noise = NOISE.normal(middle, scale, X.shape).round().clip(0, 65535)
            frames.append(noise.astype(np.uint16))
            frames.append((noise + COUNTS // 10).clip(0, 65535).astype(np.uint16))
    frames.append(NOISE.integers(0, 65536, X.shape).astype(np.uint16))
    for frame in list(frames):
        dead = frame.copy()
        dead[NOISE.random(X.shape) < 0.002] = NOISE.choice([0, 255, 16383, 65280, 65535])
        border = frame.copy()
        border[:, :4] = border[-3:] = NOISE.choice([0, 16383, 65535])
        frames += [dead, border]
    for frame in frames:
        assert in_byte_order(frame, "") is frame


# ---- spans


@pytest.mark.parametrize(
    ("frame", "span", "unit", "fits"),
    [
        (COUNTS, (20, 35), "centikelvin", "29315,30815"),
        (COUNTS // 10, (20, 35), "decikelvin", r"2932,3082|2931,3081"),
        (
            (CELSIUS + 273.15).astype(np.float32),
            (20, 35),
            "as in kelvin",
            r"293.1,308.1|293.2,308.2",
        ),
        (((CELSIUS + 273.15) / 0.04).astype(np.uint16), (20, 35), "0.04 K", r"7329,7704|7328,7703"),
        (CELSIUS.astype(np.float32), (29315, 30815), "degrees Celsius", "20,35"),
        ((COUNTS.astype(int) - 27315).astype(np.int16), (20, 35), "hundredths", "2000,3500"),
    ],
    ids=["centikelvin", "decikelvin", "kelvin", "0.04 K", "celsius", "hundredths"],
)
def test_a_span_in_another_unit_is_turned_into_one_that_fits(frame, span, unit, fits):
    with pytest.raises(ThermalFileError, match="leaves nearly nothing of the frame inside") as info:
        normalise(frame, span=span)
    low, high = np.percentile(frame.astype(np.float64), (1, 99))
    message = str(info.value)
    assert unit in message
    assert any(f"--span={one}" in message for one in fits.split("|")), message
    shown = [float(word) for word in message.split("go from ")[1].split(",")[0].split()[::2][:2]]
    np.testing.assert_allclose(shown, (low, high), rtol=0.01)


def test_a_span_that_fits_no_unit_gets_the_frame_s_own_range():
    with pytest.raises(ThermalFileError, match=r"from 7[0-9]{3} to 9[0-9]{3}.*--span=7\d+,9\d+$"):
        normalise((7000 + X * 20).astype(np.uint16), span=(-5000, -4000))
    with pytest.raises(ThermalFileError, match="grey levels"):
        normalise(LEVELS, span=(300, 400))
    with pytest.raises(ThermalFileError, match="--span="):
        normalise(np.full((20, 20), 7000, np.uint16), span=(20, 35))


def test_spans_that_leave_something_inside_are_taken():
    for span in ((20, 35), (30, 60), (32, 40)):
        assert np.ptp(normalise(CELSIUS.astype(np.float32), span=span)) > 0.05
    dead = COUNTS.copy()
    dead[5, 5] = 30  # one dead pixel inside does not make the span right
    with pytest.raises(ThermalFileError, match="centikelvin"):
        normalise(dead, span=(20, 35))
    filled = np.where(X < 12, 0, COUNTS).astype(np.uint16)  # nor does a border
    with pytest.raises(ThermalFileError, match="centikelvin"):
        normalise(filled, span=(-1, 35))
    assert (normalise(np.full((4, 4), np.nan), span=(20, 35)) == 0).all()


# ---- JPEG


def test_a_jpeg_of_too_many_scans_is_refused_at_once():
    data = file_of(Image.new("L", (3000, 3000)), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    assert read_thermal(data).values.shape == (3000, 3000)
    start = time.process_time()
    with pytest.raises(ThermalFileError, match=r"more than 100 scans.*expected about 10"):
        read_thermal(data[:-2] + last * 2000 + b"\xff\xd9")
    assert time.process_time() - start < 1


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_its_data_is_damaged(progressive):
    data = file_of(LEVELS, "JPEG", progressive=progressive)
    scan = data.index(b"\xff\xda")
    header = 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")
    for end in (scan, scan + header, scan + header + 5):
        for rest in (b"\xff\xd9", b""):
            with pytest.raises(ThermalFileError, match="expected a complete file"):
                read_thermal(data[:end] + rest)


def test_plain_jpegs_are_not_refused():
    for picture in (LEVELS, np.zeros_like(LEVELS), np.full((300, 301), 255, np.uint8)):
        for options in ({}, {"progressive": True}, {"optimize": True}, {"quality": 1},
                        {"restart_marker_rows": 1}, {"comment": b"\xff\xda" * 300}):  # fmt: skip
            values = read_quietly(file_of(picture, "JPEG", **options)).values
            assert np.abs(values - picture).mean() < 15
