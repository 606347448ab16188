"""`cmmfnet colorize` of camera files: degrees, sequences, raw numbers, embedded photos, and nothing
of the input's places and serial numbers in the output."""

from __future__ import annotations

import struct
from pathlib import Path

import camera_files as made
import numpy as np
import pytest
import tifffile
from fake_network import colorize
from PIL import Image

pytestmark = pytest.mark.usefixtures("fake_method")


def names(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_a_span_in_degrees(tmp_path, model):
    (tmp_path / "house.jpg").write_bytes(made.flir_jpeg())
    np.save(tmp_path / "house.npy", made.scene().astype(np.float32))
    assert colorize(model, tmp_path / "house.jpg", "-o", tmp_path / "a.png", "--span", "10,25") == 0
    assert colorize(model, tmp_path / "house.npy", "-o", tmp_path / "b.png", "--span", "10,25") == 0
    a, b = pixels(tmp_path / "a.png").astype(int), pixels(tmp_path / "b.png").astype(int)
    assert a.shape == (24, 32, 3) and np.abs(a - b).max() <= 1


def test_a_span_in_another_unit_fails_for_its_frame_alone(tmp_path, model, capsys):
    from PIL import Image

    celsius = np.linspace(15, 35, 32 * 48).reshape(32, 48)
    frames, out = tmp_path / "frames", tmp_path / "out"
    frames.mkdir()
    Image.fromarray(celsius.astype(np.float32)).save(frames / "celsius.tiff")
    Image.fromarray(((celsius + 273.15) * 100).astype(np.uint16)).save(frames / "counts.png")
    assert colorize(model, frames, "-o", out, "--span", "20,35") == 1
    assert names(out) == ["celsius.png"]
    assert "looks like degrees Celsius. A span that fits: --span=29315,30815" in (
        " ".join(capsys.readouterr().err.split())
    )


def test_a_shutter_frame_does_not_stop_a_sequence(tmp_path, model):
    scene = np.linspace(15, 35, 32 * 48).reshape(32, 48).astype(np.float32)
    shutter = np.full_like(scene, 50)
    np.save(tmp_path / "walk.npy", np.stack([scene, shutter, shutter - 100, scene]))
    np.save(tmp_path / "clipped.npy", np.stack([scene, np.full_like(scene, 35), scene]))
    arguments = (model, tmp_path / "clipped.npy", "-o", tmp_path / "clipped", "--span", "20,35")
    assert colorize(*arguments) == 0
    arguments = (model, tmp_path / "walk.npy", "-o", tmp_path / "walk", "--span", "20,35")
    with pytest.warns(UserWarning, match=r"walk.npy, frame 1: the span .* clipped") as caught:
        assert colorize(*arguments) == 0
    assert len(caught) == 1
    assert names(tmp_path / "walk") == [f"walk/{i:06d}.png" for i in range(4)]
    frames = [pixels(tmp_path / "walk/walk" / f"{i:06d}.png") for i in range(4)]
    assert np.array_equal(frames[0], frames[3])
    assert np.array_equal(frames[1], pixels(tmp_path / "clipped/clipped/000001.png"))
    assert not np.array_equal(frames[1], frames[2])  # the hot end and the cold end


def test_a_span_in_another_unit_colours_nothing_of_a_sequence(tmp_path, model, capsys):
    scene = np.linspace(15, 35, 32 * 48).reshape(32, 48)
    counts = ((scene + 273.15) * 100).astype(np.uint16)
    np.save(tmp_path / "walk.npy", np.stack([counts, counts]))
    assert colorize(model, tmp_path / "walk.npy", "-o", tmp_path / "out", "--span", "20,35") == 1
    assert not names(tmp_path / "out")
    message = " ".join(capsys.readouterr().err.split())
    assert message.count("A span that fits: --span=29315,30815") == 1


def test_a_folder_of_camera_files_and_sequences(tmp_path, model, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "house.jpg").write_bytes(made.flir_jpeg())
    (folder / "frame.fff").write_bytes(made.flir())
    (folder / "walk.seq").write_bytes(made.flir() + made.flir(made.scene() + 1) * 2)
    (folder / "bird.cptv").write_bytes(made.cptv([made.counts_of(made.scene(6, 8))] * 2, bits=20))
    np.save(folder / "stack.npy", np.arange(600, dtype=np.uint16).reshape(2, 15, 20))
    tifffile.imwrite(folder / "two.tiff", np.arange(600, dtype=np.uint16).reshape(2, 15, 20))
    assert colorize(model, folder, "-o", out) == 0
    expected = [f"{name}/{i:06d}.png" for name in ("bird", "stack", "two") for i in range(2)]
    expected += [f"walk/{i:06d}.png" for i in range(3)] + ["frame.png", "house.png"]
    assert names(out) == sorted(expected)
    assert "coloured 11" in capsys.readouterr().out
    (out / "walk/000001.png").unlink()
    assert colorize(model, folder, "-o", out) == 0
    assert "coloured 1, skipped 10" in capsys.readouterr().out


def test_a_sequence_does_not_fit_into_one_picture(tmp_path, model, capsys):
    (tmp_path / "walk.seq").write_bytes(made.flir() * 2)
    assert colorize(model, tmp_path / "walk.seq", "-o", tmp_path / "walk.png") == 2
    assert "several frames" in capsys.readouterr().err and names(tmp_path) == ["walk.seq"]


def test_a_sequence_that_breaks_off_keeps_its_frames_and_fails(tmp_path, model, capsys):
    (tmp_path / "walk.seq").write_bytes(made.flir() * 2 + made.flir()[:500])
    assert colorize(model, tmp_path / "walk.seq", "-o", tmp_path / "out") == 1
    assert len(names(tmp_path / "out")) == 2
    assert "frame 2: truncated" in capsys.readouterr().err


def test_raw_numbers(tmp_path, model, capsys):
    frames = np.arange(600, dtype="<u2").reshape(2, 15, 20)
    (tmp_path / "a.raw").write_bytes(frames.tobytes())
    (tmp_path / "b.raw").write_bytes(frames[0].tobytes())
    arguments = (tmp_path, "-o", tmp_path / "out", "--raw", "20x15,uint16le")
    assert colorize(model, *arguments, "--kelvin-per-count", "0.9", "--span=-100,150") == 0
    assert names(tmp_path / "out") == ["a/000000.png", "a/000001.png", "b.png"]
    assert colorize(model, tmp_path, "-o", tmp_path / "out2", "--raw", "20x15") == 2
    assert "640x512,uint16le" in capsys.readouterr().err


def test_the_photo_is_written_once_and_is_no_input_later(tmp_path, model, capsys):
    photo = np.zeros((48, 64, 3), np.uint8)
    photo[:, 32:] = (200, 40, 30)
    inner = made.flir(more=[(0x0E, made.photo_record(photo))])
    (tmp_path / "house.jpg").write_bytes(made.flir_jpeg(inner))
    (tmp_path / "plain.jpg").write_bytes(made.flir_jpeg())
    assert colorize(model, tmp_path, "-o", tmp_path, "--visible") == 0
    assert "wrote 1 photos" in capsys.readouterr().out
    assert names(tmp_path) == [
        "house-visible.png", "house.jpg", "house.png", "plain.jpg", "plain.png",
    ]  # fmt: skip
    assert np.abs(pixels(tmp_path / "house-visible.png").astype(int) - photo).mean() < 6
    assert colorize(model, tmp_path, "-o", tmp_path / "again") == 0
    assert names(tmp_path / "again") == ["house.png", "plain.png"]


def test_a_photo_replaces_no_result(tmp_path, model, capsys):
    photo = np.full((48, 64, 3), 9, np.uint8)
    (tmp_path / "in").mkdir()
    for name in ("house", "house-visible"):
        inner = made.flir(more=[(0x0E, made.photo_record(photo))])
        (tmp_path / f"in/{name}.jpg").write_bytes(made.flir_jpeg(inner))
    assert colorize(model, tmp_path / "in", "-o", tmp_path, "--visible") == 1
    assert "house.jpg: its photo would replace" in capsys.readouterr().err
    assert pixels(tmp_path / "house-visible.png").shape == (24, 32, 3)


def test_outputs_carry_no_place_and_no_serial_number(tmp_path, model):
    photo = Image.fromarray(np.zeros((48, 64, 3), np.uint8))
    exif = Image.Exif()
    exif[0x010F], exif[0xA431] = "FLIR", "S3CRET"
    gps = exif.get_ifd(0x8825)
    gps[1], gps[2] = "N", (53.0, 1.0, 26.0)
    photo.save(tmp_path / "photo.jpg", exif=exif)
    record = struct.pack("<HHH", 3, 64, 48).ljust(32, b"\0") + (tmp_path / "photo.jpg").read_bytes()
    place = (0x2B, b"N\0\0\0W\0\0\0" + struct.pack("<dd", 53.02, -2.03).ljust(176, b"\0"))
    data = made.flir_jpeg(made.flir(more=[(0x0E, record), place]))
    assert data.count(b"S3CRET") == 2  # of the camera, and in the photo's EXIF
    source = tmp_path / "in"
    source.mkdir()
    (source / "house.jpg").write_bytes(data)
    for suffix in ("png", "jpg", "tif", "webp"):
        out = tmp_path / suffix / f"house.{suffix}"
        assert colorize(model, source / "house.jpg", "-o", out, "--visible") == 0
        for file in out.parent.iterdir():
            content = file.read_bytes()
            assert b"S3CRET" not in content and b"GPS" not in content
            with Image.open(file) as picture:
                tags = picture.getexif()
                assert not tags.get_ifd(0x8825) and 0xA431 not in tags
                assert set(tags) <= {0x010E, 0x0131, *range(254, 340)}
