"""Camera files: temperatures and counts of files made here, damaged files, and the real ones where
they are at hand."""

from __future__ import annotations

import io
import json
import struct
import warnings
from pathlib import Path

import camera_files as made
import numpy as np
import pytest
import tifffile
from picture_files import read_quietly
from PIL import Image

from cmmfnet.cli import main
from cmmfnet.thermal.frame import read_thermal
from cmmfnet.thermal.inspection import describe
from cmmfnet.thermal.limits import ThermalFileError
from cmmfnet.thermal.sequence import open_sequence

REAL = Path(__file__).parents[3] / "shared/data/radiometric"


def frames_of(path, **options):
    with open_sequence(path, **options) as frames:
        return list(frames)


# ---- FLIR: one frame
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["plain", "png", "jpegls", "ljpeg"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("counts_order", ["<", ">"])
@pytest.mark.parametrize("notes_order", ["<", ">"])
def test_temperatures_of_every_form_and_byte_order(form, order, counts_order, notes_order):
    inner = made.flir(form=form, order=order, counts_order=counts_order, notes_order=notes_order)
    for data in (inner, made.flir_jpeg(inner)):
        thermal = read_quietly(data)
        assert thermal.unit == "C"
        assert np.abs(thermal.values - made.scene()).max() < 0.02
        assert thermal.details["model"] == "FLIR T0"


def test_reflection_and_emissivity():
    """A grey body: what it reflects is taken away."""
    seen = 0.7 * made.planck(made.scene()) + 0.3 * made.planck(-20.0)
    data = made.flir(counts=seen.round().astype(np.uint16), emissivity=0.7, reflected=253.15)
    assert np.abs(read_quietly(data).values - made.scene()).max() < 0.03


def test_air_and_window_take_nothing_away_when_all_have_one_temperature():
    """Kirchhoff: with everything at 20 C, the object is at 20 C whatever lies between."""
    data = made.flir(np.full((4, 6), 20.0), emissivity=0.6, distance=40, window_transmission=0.8)
    assert np.abs(read_quietly(data).values - 20).max() < 0.05


def test_air_dims_by_the_published_transmission():
    """FLIR's example: 0.98 or so at 10 m in usual air; a warm object is warmer than it seems."""
    near, far = (
        read_quietly(made.flir(np.full((4, 6), 60.0), distance=d)).values.mean() for d in (0, 10)
    )
    assert 60.3 < far < 62 and abs(near - 60) < 0.02


def test_what_has_no_effect_may_be_missing_in_the_file():
    nothing = {"reflected": 0.0, "air": 0.0, "window": 0.0, "humidity": float("nan")}
    values = read_quietly(made.flir(emissivity=1.0, distance=0.0, **nothing)).values
    assert np.abs(values - made.scene()).max() < 0.02


def test_humidity_may_be_in_percent():
    one, other = (read_quietly(made.flir(distance=30, humidity=h)).values for h in (0.75, 75.0))
    assert np.array_equal(one, other)


def test_segments_in_any_order_and_many_of_them():
    parts = made.flir_segments(made.flir(made.scene(60, 80)), piece=900)
    assert len(parts) > 12
    for order in (parts[::-1], parts[1::2] + parts[::2]):
        values = read_quietly(made.in_jpeg(order, make="FLIR Systems AB")).values
        assert np.abs(values - made.scene(60, 80)).max() < 0.02


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ({"r1": 0.0}, "r1"),
        ({"r1": float("nan")}, "r1"),
        ({"b": 0.0}, "b is 0"),
        ({"emissivity": 0.0}, "emissivity"),
        ({"reflected": 0.0, "emissivity": 0.9}, "reflected"),
        ({"r1": 0.0, "r2": 0.0, "b": 0.0}, "missing"),
        ({"o": 40000}, "C"),
    ],
)
def test_constants_that_give_no_temperatures_are_named_and_counts_kept(broken, named):
    with pytest.warns(UserWarning, match=named):
        thermal = read_thermal(made.flir(**broken))
    assert thermal.unit == "counts"
    assert np.array_equal(thermal.values, made.counts_of(made.scene()))


def test_a_frame_without_camera_notes_keeps_its_counts():
    data = made.fff([(1, made.raw_record(made.counts_of(made.scene())))])
    with pytest.warns(UserWarning, match="the file has none"):
        assert read_thermal(data).unit == "counts"


def test_wrongly_marked_byte_order_is_found_by_impossible_temperatures():
    record = bytearray(made.raw_record(made.counts_of(made.scene()), "plain", ">"))
    record[:6] = struct.pack("<HHH", 2, 32, 24)
    data = made.fff([(1, bytes(record)), (0x20, made.camera_notes())])
    assert np.abs(read_quietly(data).values - made.scene()).max() < 0.02


def test_a_jpeg_whose_thermal_frame_was_dropped_is_read_as_a_picture_with_a_warning():
    colours = np.zeros((24, 32, 3), np.uint8)
    colours[:, 16:] = (228, 66, 28)
    data = made.flir_jpeg(made.fff([(0x20, made.camera_notes())]), colours)
    with pytest.warns(UserWarning, match="no thermal frame"):
        assert read_thermal(data).unit == "grey levels"


def test_exif_orientation_turns_the_frame():
    data = made.flir_jpeg(orientation=6)
    values = read_quietly(data).values
    assert np.abs(values - np.rot90(made.scene(), 3)).max() < 0.02


def test_a_turned_screen_picture_turns_the_frame_alike():
    """Viewers turn the picture on the screen and know nothing of the frame behind it."""
    screen = np.interp(made.scene(), (5, 60), (0, 255)).astype(np.uint8)
    for turns in (1, 3):
        values = read_quietly(made.flir_jpeg(screen=np.rot90(screen, turns))).values
        assert np.abs(values - np.rot90(made.scene(), turns)).max() < 0.02


def test_palette_is_of_no_use_for_temperatures():
    with pytest.warns(UserWarning, match="leave it out"):
        thermal = read_thermal(made.flir(), palette="ironbow")
    assert thermal.unit == "C" and thermal.palette is None


# ---- the visible photo
# --------------------------------------------------------------------------------------------------


def photo(turns: int = 0) -> np.ndarray:
    """(96, 128, 3): blue sky, green ground, a red square where a thermal frame of half the width,
    moved 10 to the right and 6 up, has its middle."""
    pixels = np.zeros((96, 128, 3), np.uint8)
    pixels[:40], pixels[40:] = (70, 120, 230), (60, 140, 50)
    pixels[48 - 6 - 8 : 48 - 6 + 8, 64 + 10 - 8 : 64 + 10 + 8] = (220, 30, 30)
    return pixels


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_photo_and_its_part_that_the_frame_shows(form, orientation):
    placing = struct.pack("<fhh", 2.0, 10, -6).ljust(96, b"\0")
    more = [(0x0E, made.photo_record(photo(), form)), (0x2A, placing)]
    thermal = read_quietly(made.flir_jpeg(made.flir(more=more), orientation=orientation))
    turns = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]
    whole = thermal.visible.pixels().astype(int)
    assert np.abs(whole - np.rot90(photo(), turns)).mean() < 6
    part = thermal.visible.aligned(thermal.values.shape)
    assert part.shape == (*thermal.values.shape, 3)
    middle = part[part.shape[0] // 2, part.shape[1] // 2].astype(int)
    assert np.abs(middle - (220, 30, 30)).max() < 25
    red = (part[..., 0].astype(int) - part[..., 1] > 100).sum()
    assert 40 <= red <= 90  # 16 photo pixels are 8 thermal ones


def test_a_photo_of_unknown_place_is_not_aligned():
    thermal = read_quietly(made.flir(more=[(0x0E, made.photo_record(photo()))]))
    assert thermal.visible.pixels().shape == (96, 128, 3)
    with pytest.raises(ThermalFileError, match="does not say"):
        thermal.visible.aligned((24, 32))


def test_a_damaged_photo_does_not_spoil_the_frame():
    record = made.photo_record(photo())[:200]
    thermal = read_quietly(made.flir(more=[(0x0E, record)]))
    assert thermal.unit == "C"
    with pytest.raises(ThermalFileError, match="photo is damaged"):
        thermal.visible.pixels()


# ---- sequences
# --------------------------------------------------------------------------------------------------


def test_seq_frames_with_their_times(tmp_path):
    parts = []
    for i in range(3):
        parts.append(
            made.flir(
                made.scene() + i,
                order="<" if i else ">",
                taken=(1_600_000_000 + i, 250 + 40 * i),
            )
        )
    path = tmp_path / "walk.seq"
    path.write_bytes(b"".join(parts))
    frames = frames_of(path)
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert np.allclose([frame.time for frame in frames], [0, 1.04, 2.08])
    for i, frame in enumerate(frames):
        assert np.abs(frame.thermal.values - made.scene() - i).max() < 0.02
    with pytest.warns(UserWarning, match="holds several pictures"):
        assert np.abs(read_thermal(path).values - made.scene()).max() < 0.02


def test_the_magic_within_counts_starts_no_frame(tmp_path):
    counts = made.counts_of(made.scene())
    counts[3, :8] = np.frombuffer(made.flir()[:16], "<u2")
    path = tmp_path / "a.seq"
    path.write_bytes(made.flir(counts=counts) + made.flir())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "FFF" as counts is out of the camera's range
        assert len(frames_of(path)) == 2


def test_frames_are_found_after_filling_and_without_notes_of_their_own(tmp_path):
    bare = made.fff([(1, made.raw_record(made.counts_of(made.scene() + 1), "jpegls"))])
    path = tmp_path / "a.csq"
    path.write_bytes(made.flir(form="jpegls") + bytes(5000) + b"FFF" + bare + b"\0" * 100)
    frames = frames_of(path)
    assert len(frames) == 2
    assert np.abs(frames[1].thermal.values - made.scene() - 1).max() < 0.02


def test_a_sequence_that_ends_within_a_frame_gives_the_frames_before(tmp_path):
    path = tmp_path / "a.seq"
    path.write_bytes(made.flir() + made.flir()[:900])
    with open_sequence(path) as frames:
        assert next(frames).thermal.unit == "C"
        with pytest.raises(ThermalFileError, match="frame 1: truncated"):
            next(frames)
    assert read_quietly(path).unit == "C"


def test_cptv(tmp_path):
    rng = np.random.default_rng(0)
    frames = [rng.integers(2600, 2900, (7, 9), dtype=np.uint16) for _ in range(4)]
    frames[3][0, 0] = 65535
    path = tmp_path / "bird.cptv"
    path.write_bytes(made.cptv(frames, bits=18))
    found = frames_of(path)
    assert np.allclose([frame.time for frame in found], [0, 0.11, 0.22, 0.33])
    for frame, expected in zip(found, frames, strict=True):
        assert frame.thermal.unit == "counts"
        assert np.array_equal(frame.thermal.values, expected)
    path.write_bytes(made.cptv(frames, bits=18, background=True))
    assert np.array_equal(frames_of(path)[0].thermal.values, frames[1])
    assert found[0].thermal.details["model"] == "lepton3"


def test_cptv_that_is_no_cptv_or_damaged(tmp_path):
    import gzip

    with pytest.raises(ThermalFileError, match="a gzip file"):
        read_thermal(gzip.compress(b"hello"))
    good = gzip.decompress(made.cptv([made.counts_of(made.scene(6, 8))] * 2, bits=20))
    for damaged, named in (
        (good.replace(b"CPTV\2", b"CPTV\3"), "version 1 or 2"),
        (good[:60], "truncated"),
        (good.replace(struct.pack("<I", 8), struct.pack("<I", 2**31), 1), "pixels"),
        (good.replace(b"\1C\1", b"\1C\0"), "compression"),
        (good.replace(b"\1w\x14", b"\1w\x02"), "bits"),
    ):
        with pytest.raises(ThermalFileError, match=named):
            read_thermal(gzip.compress(damaged))


def test_a_gzip_bomb_is_not_unpacked():
    import gzip
    import tracemalloc

    bomb = gzip.compress(b"CPTV\2H\1\xffD" + bytes(60_000_000))
    tracemalloc.start()
    with pytest.raises(ThermalFileError):
        read_thermal(bomb)
    assert tracemalloc.get_traced_memory()[1] < 8_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "u1", "<f4", ">f8", "<i4"])
@pytest.mark.parametrize("shape", [(5, 6), (3, 5, 6), (3, 5, 6, 1), (3, 1, 5, 6), (5, 6, 1)])
def test_numpy_files(tmp_path, dtype, shape):
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    expected = array.reshape(-1, 5, 6)
    for name, save in (
        ("a.npy", np.save),
        ("a.npz", np.savez),
        ("b.npz", np.savez_compressed),
        ("f.npy", lambda path, a: np.save(path, np.asfortranarray(a))),
    ):
        save(tmp_path / name, array)
        found = np.stack([frame.thermal.values for frame in frames_of(tmp_path / name)])
        assert np.array_equal(found, expected)


def test_numpy_files_that_are_refused(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ThermalFileError, match="object"):
        read_thermal(path)
    np.save(path, np.zeros((4, 5), np.complex64))
    with pytest.raises(ThermalFileError, match="complex64"):
        read_thermal(path)
    np.save(path, np.zeros((2, 3, 4, 5, 6), np.uint8))
    with pytest.raises(ThermalFileError, match="shape"):
        read_thermal(path)
    np.savez(tmp_path / "two.npz", a=np.zeros((4, 5)), b=np.zeros((4, 5)))
    with pytest.raises(ThermalFileError, match="2 arrays"):
        read_thermal(tmp_path / "two.npz")
    np.save(path, np.zeros((100, 100), np.uint16))
    with pytest.raises(ThermalFileError, match="limit"):
        read_thermal(path, max_pixels=9999)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ThermalFileError, match="truncated"):
        read_thermal(path)


def test_tiff_stacks(tmp_path):
    stack = np.random.default_rng(0).integers(0, 65535, (4, 9, 7), dtype=np.uint16)
    path = tmp_path / "stack.tiff"
    with tifffile.TiffWriter(path) as writer:
        for frame in stack[:2]:
            writer.write(frame, contiguous=False)
        writer.write(np.zeros((3, 3), np.uint8), contiguous=False)  # a preview
        for frame in stack[2:]:
            writer.write(frame, contiguous=False)
    assert np.array_equal(np.stack([f.thermal.values for f in frames_of(path)]), stack)


# ---- raw numbers
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "dtype", "skip"),
    [
        ("7x5,uint16le", "<u2", 0),
        ("7x5,uint16", "<u2", 0),
        ("7X5,UINT16BE,skip12", ">u2", 12),
        ("7x5,int16le", "<i2", 0),
        ("7x5,float32le", "<f4", 0),
        ("7x5,uint8", "u1", 3),
    ],
)
def test_raw_frames(tmp_path, layout, dtype, skip):
    frames = np.arange(3 * 35).reshape(3, 5, 7).astype(dtype)
    path = tmp_path / "a.raw"
    path.write_bytes(b"".join(bytes(skip) + frame.tobytes() for frame in frames))
    layout = layout if "skip" in layout or not skip else f"{layout},skip{skip}"
    found = frames_of(path, raw=layout)
    assert np.array_equal(np.stack([frame.thermal.values for frame in found]), frames)
    with pytest.raises(ThermalFileError, match="whole number"):
        read_thermal(path.read_bytes()[:-1], raw=layout)


SMOOTH = np.add.outer(np.sin(np.arange(96) / 11), np.cos(np.arange(128) / 17))
SMOOTH += np.hypot(*np.ogrid[-40:56, -60:68]) < 20


@pytest.mark.parametrize(
    ("dtype", "right", "wrong"),
    [
        ("<u2", "128x96,uint16le", ["96x128,uint16le", "128x96,uint16be", "128x96,uint8"]),
        ("<u2", "128x96,uint16le", ["128x96,int16le", "192x64,uint16le"]),
        (">u2", "128x96,uint16be", ["128x96,uint16le"]),
        ("<f4", "128x96,float32le", ["128x96,float32be", "128x96,uint16le", "128x96,uint32le"]),
        ("<u4", "128x96,uint32le", ["128x96,float32le"]),
        ("u1", "128x96,uint8", ["128x96,uint16le", "96x128,uint8", "256x48,uint8"]),
    ],
)
def test_raw_layouts_that_make_stripes_or_noise(dtype, right, wrong):
    noise = np.random.default_rng(0).normal(0, 0.01, SMOOTH.shape)
    low, high = {"u1": (20, 200), "<f4": (-3, 30), "<u4": (0, 1e6)}.get(dtype, (31000, 36000))
    scaled = np.interp(SMOOTH + noise, (-2, 3), (low, high))
    data = scaled.astype(dtype).tobytes() * 4
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*holds several")
        for layout in wrong:
            with pytest.raises(ThermalFileError, match=f"type {right}$"):
                read_thermal(data, raw=layout)
        assert np.allclose(read_thermal(data, raw=right).values, scaled.astype(dtype))


@pytest.mark.parametrize("dtype", ["uint8", "uint16le", "int16be", "float32le"])
def test_raw_frames_of_any_content_are_read(dtype):
    """Noise, one value, slopes along a row and a column, stripes: no other layout is better."""
    rng = np.random.default_rng(0)
    slope = np.linspace(0, 200, 96)[:, None] * np.ones(128)
    for frame in (
        rng.uniform(0, 255, SMOOTH.shape), np.full(SMOOTH.shape, 7.0), slope,
        np.linspace(0, 200, 128) * np.ones((96, 1)), np.tile([3, 90], (96, 64)), slope // 9 % 2,
    ):  # fmt: skip
        code = {"uint8": "u1", "uint16le": "<u2", "int16be": ">i2", "float32le": "<f4"}[dtype]
        read_thermal(frame.astype(code).tobytes(), raw=f"128x96,{dtype}")


@pytest.mark.parametrize("layout", ["640", "640x512", "640x512,u16", "0x5,uint8", "7x5,uint16le,3"])
def test_raw_layouts_that_make_no_sense(layout):
    with pytest.raises(ThermalFileError, match="640x512,uint16le"):
        read_thermal(b"1234", raw=layout)


def test_kelvin_per_count():
    counts = np.array([[27315, 29315], [30000, 31000]], np.uint16)
    thermal = read_quietly(counts, kelvin_per_count=0.01)
    assert thermal.unit == "C" and np.allclose(thermal.values, [[0, 20], [26.85, 36.85]], atol=1e-4)
    for source, value in ((counts, 0.0), (made.flir(), 0.04), (counts / 2, 0.04)):
        with pytest.raises(ThermalFileError, match=r"kelvin a count"):
            read_thermal(source, kelvin_per_count=value)


# ---- DJI
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "screen"),
    [((512, 640), (512, 640)), ((512, 640), (1024, 1280)), ((120, 160), (480, 640))],
)
def test_dji_counts_to_the_bit_and_no_degrees(shape, screen):
    counts = np.random.default_rng(0).integers(0, 65536, shape, dtype=np.uint16)
    with pytest.warns(UserWarning, match="Thermal SDK"):
        thermal = read_thermal(made.dji_jpeg(counts, np.zeros(screen, np.uint8)))
    assert thermal.unit == "counts" and np.array_equal(thermal.values, counts)
    assert thermal.details["maker"] == "DJI" and thermal.details["model"] == "ZH20T"


def test_dji_pictures_without_counts_are_pictures():
    picture = np.arange(24 * 32).reshape(24, 32).astype(np.uint8)
    thermal = read_quietly(made.in_jpeg([], picture, make="DJI"))
    assert thermal.unit == "grey levels" and thermal.values.shape == (24, 32)


def test_dji_files_of_flir_form_give_temperatures():
    thermal = read_quietly(made.flir_jpeg(make="DJI", model="XT2"))
    assert thermal.unit == "C" and thermal.details["maker"] == "DJI"


# ---- hostile files
# --------------------------------------------------------------------------------------------------


def seeds() -> dict[str, bytes]:
    frames = [made.counts_of(made.scene(6, 8))] * 2
    array = io.BytesIO()
    np.savez(array, np.zeros((3, 5, 6), np.uint16))
    placing = struct.pack("<fhh", 2.0, 10, -6).ljust(96, b"\0")
    more = [(0x0E, made.photo_record(photo())), (0x2A, placing)]
    return {
        "flir": made.flir(made.scene(6, 8), more=more),
        "png": made.flir(made.scene(6, 8), form="png"),
        "csq": made.flir(made.scene(6, 8), form="jpegls") * 2,
        "jpeg": made.flir_jpeg(made.flir(made.scene(6, 8))),
        "dji": made.dji_jpeg(np.zeros((120, 160), np.uint16)),
        "cptv": made.cptv(frames, bits=20),
        "npz": array.getvalue(),
    }


@pytest.mark.parametrize("kind", list(seeds()))
def test_damaged_files_end_in_one_error(kind, tmp_path):
    """Cut anywhere, or with bytes changed: a frame, or a ThermalFileError, and bounded memory."""
    seed, rng = seeds()[kind], np.random.default_rng(0)
    path = tmp_path / "a"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(150):
            data = bytearray(seed)
            if i % 3 == 0:
                data = data[: rng.integers(0, len(data))]
            else:
                head = min(len(data), 2600) if i % 3 == 1 else len(data)
                for at in rng.integers(0, head, rng.integers(1, 6)):
                    data[at] = rng.choice([0, 1, 0x7F, 0xFF, rng.integers(0, 256)])
            path.write_bytes(data)
            try:
                for frame in frames_of(path, max_pixels=100_000):
                    assert frame.thermal.values.size <= 100_000
                    if frame.thermal.visible is not None:
                        frame.thermal.visible.aligned(frame.thermal.values.shape, 100_000)
            except ThermalFileError as error:
                assert str(error)


@pytest.mark.parametrize("form", ["plain", "png", "jpegls", "ljpeg"])
def test_sizes_are_checked_before_decoding(form):
    with pytest.raises(ThermalFileError, match="limit"):
        read_thermal(made.flir(form=form), max_pixels=500)


def test_a_directory_that_points_outside_of_the_file():
    data = bytearray(made.flir())
    struct.pack_into(">II", data, 64 + 12, 2**31, 2**31)
    with pytest.raises(ThermalFileError, match="FLIR"):
        read_thermal(bytes(data))


# ---- inspect
# --------------------------------------------------------------------------------------------------


def test_inspect_prints_and_gives_json(tmp_path, capsys):
    path = tmp_path / "house.jpg"
    path.write_bytes(made.flir_jpeg(made.flir(more=[(0x0E, made.photo_record(photo()))])))
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    for word in ("FLIR", "FLIR T0", "32 x 24", "C (Celsius)", "128 x 96", "emissivity", "###"):
        assert word in text
    assert "S3CRET" not in text
    assert main(["inspect", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["unit"] == "C" and facts["maker"] == "FLIR"
    assert abs(facts["maximum"] - 60) < 0.05 and facts["no_data"] == 0
    assert sum(facts["histogram"]["pixels"]) == 24 * 32


def test_inspect_goes_on_after_a_bad_file(tmp_path, capsys):
    bad, good = tmp_path / "bad.jpg", tmp_path / "good.npy"
    bad.write_bytes(b"no")
    np.save(good, np.full((3, 5, 6), 7000, np.uint16))
    assert main(["inspect", str(bad), str(good), "--json"]) == 1
    out = capsys.readouterr()
    assert "bad.jpg" in out.err
    facts = json.loads(out.out)
    assert facts["frames"] == 3 and "--kelvin-per-count 0.04" in facts["notes"][0]


def test_inspect_counts_pixels_without_data(tmp_path):
    values = np.full((5, 6), 20, np.float32)
    values[1, 2] = np.nan
    np.save(tmp_path / "a.npy", values)
    assert describe(str(tmp_path / "a.npy"))["no_data"] == 1


# ---- real files
# --------------------------------------------------------------------------------------------------

real = pytest.mark.skipif(not REAL.is_dir(), reason="shared/data/radiometric is not at hand")


@real
def test_e40bx_every_pixel():
    lines = (REAL / "flir_E40bx_irimage_test.csv").read_text("utf-8-sig").split()
    expected = np.array([[float(value) for value in line.split(",")] for line in lines])
    values = read_quietly(REAL / "flir_E40bx_irimage_test.jpg").values
    assert np.abs(values - expected).max() < 0.15


@real
def test_real_flir_files_against_their_table():
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in (REAL / "README.md").read_text().splitlines()
        if line.startswith(("| flir_", "| dji_XT2"))
    ]
    checked = 0
    for name, _, _, _, _, temperatures, *_ in rows:
        found = [part for part in temperatures.replace("*", "").split(" / ")]
        if name.endswith(".csv") or "EX320" in name or ".seq" in name or len(found) != 3:
            continue
        values = read_quietly(REAL / name).values
        measured = (np.nanmin(values), np.nanmedian(values), np.nanmax(values))
        assert np.allclose(measured, [float(x) for x in found], atol=0.2), name
        checked += 1
    assert checked >= 14
    # The table's reading of this file swaps the bytes of a big-endian frame. Its screen: 32.6 C.
    face = read_quietly(REAL / "flir_ThermaCAM_EX320_wikimedia07.jpg").values
    assert abs(face[115:125, 155:165].mean() - 32.6) < 1


@real
def test_real_sequences():
    second = frames_of(REAL / "flir_SampleSEQ.seq")[1].thermal.values
    measured = (second.min(), np.median(second), second.max())
    assert np.allclose(measured, (18.61, 22.31, 37.39), atol=0.2)
    assert len(frames_of(REAL / "cptv_v2.cptv")) == 100
    tiff = read_thermal(REAL / "tiff16_flirpy_example_radiometric.tiff", kelvin_per_count=0.04)
    assert np.allclose((tiff.values.min(), tiff.values.max()), (-3.43, 9.93), atol=0.01)


@real
def test_real_dji_counts():
    data = (REAL / "dji_H20T_0001_R.JPG").read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        counts = b"".join(content for marker, content in image.applist if marker == "APP3")
    with pytest.warns(UserWarning, match="Thermal SDK"):
        values = read_thermal(data).values
    assert np.array_equal(values, np.frombuffer(counts, "<u2").reshape(512, 640))


@real
def test_nothing_at_hand_gives_a_traceback(capsys):
    for path in sorted(REAL.iterdir()):
        assert main(["inspect", str(path), "--json"]) in (0, 1)
    out = capsys.readouterr()
    assert "Traceback" not in out.err
    assert out.out.count("\n") >= 23
