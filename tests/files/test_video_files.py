"""Video files read and written: bits, ranges, turned frames, colours, sizes, damage."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import video_files as made

from cmmfnet.files import video_pixels
from cmmfnet.files.video import VideoError
from cmmfnet.files.video_reader import Picture, VideoReader
from cmmfnet.files.video_writer import VideoWriter


def read(path: Path, max_pixels: int = 10**7) -> tuple[VideoReader, list[Picture]]:
    with path.open("rb") as file:
        reader = VideoReader(file, str(path), max_pixels)
        items = list(reader.items())
        reader.close()
    return reader, [item for item in items if isinstance(item, Picture)]


@pytest.mark.parametrize(
    ("pix_fmt", "top"), [("gray", 255), ("gray10le", 1023), ("gray12le", 4095), ("gray16le", 65535)]
)
def test_grey_frames_keep_every_bit(tmp_path, pix_fmt, top):
    frames = made.ramps(3, top=top)
    path = made.write(tmp_path / "a.mkv", frames, codec="ffv1", pix_fmt=pix_fmt)
    reader, found = read(path)
    assert not reader.problems and len(found) == 3
    for picture, frame in zip(found, frames, strict=True):
        assert picture.pixels.dtype == frame.dtype
        np.testing.assert_array_equal(picture.pixels, frame)


def test_luma_is_brought_to_the_full_range_without_losing_a_level():
    for bits, low, high in ((8, 16, 235), (10, 64, 940), (12, 256, 3760), (16, 4096, 60160)):
        luma = np.arange(low, high + 1).astype(np.uint8 if bits == 8 else np.uint16)[None]
        full = video_pixels._full_range(luma, bits)
        assert full[0, 0] == 0 and full[0, -1] == 2**bits - 1
        assert len(np.unique(full)) == luma.size


def test_ten_bits_of_luma_stay_ten_bits(tmp_path):
    frames = made.ramps(2, top=65535)
    path = made.write(
        tmp_path / "a.mkv", frames, pix_fmt="yuv420p10le", options={"qp": "0", "preset": "fast"}
    )
    _, found = read(path)
    assert found[0].pixels.dtype == np.uint16 and len(np.unique(found[0].pixels)) > 600
    assert np.abs(found[0].pixels - frames[0] * (1023 / 65535)).max() <= 2


def test_colours_come_as_rgb_and_a_grey_picture_as_grey(tmp_path):
    rgb = np.zeros((48, 64, 3), np.uint8)
    rgb[:, 32:] = (220, 60, 30)
    path = made.write(tmp_path / "a.mkv", [rgb], codec="ffv1", pix_fmt="bgr0")
    np.testing.assert_array_equal(read(path)[1][0].pixels, rgb)
    path = made.write(tmp_path / "b.mp4", [rgb] * 2)
    assert read(path)[1][0].pixels.shape == (48, 64, 3)
    path = made.write(tmp_path / "c.mp4", made.ramps(2))
    assert read(path)[1][0].pixels.shape == (48, 64)


@pytest.mark.parametrize(
    ("matrix", "turned"),
    [
        ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),  # a phone held upright
        ((0, -1, 1, 0), lambda x: np.rot90(x, 1)),
        ((-1, 0, 0, -1), lambda x: x[::-1, ::-1]),
        ((-1, 0, 0, 1), lambda x: x[:, ::-1]),
    ],
)
def test_turned_frames_come_upright(tmp_path, matrix, turned):
    plain = made.write(tmp_path / "a.mp4", made.ramps(2), options={"qp": "0"})
    before = read(plain)[1][0].pixels
    _, found = read(made.turn(plain, matrix))
    np.testing.assert_array_equal(found[0].pixels, turned(before))


def test_colours_survive_writing(tmp_path):
    rgb = np.zeros((48, 64, 3), np.uint8)
    rgb[:24, :32], rgb[24:, :32], rgb[:24, 32:] = (220, 60, 30), (40, 180, 60), (30, 60, 200)
    rgb[24:, 32:] = 128
    for name, codec, limit in (
        ("a.mp4", "auto", 3), ("a.mkv", "ffv1", 0), ("a.webm", "auto", 4), ("b.mkv", "h265", 3),
        ("c.mp4", "av1", 4),
    ):  # fmt: skip
        with (tmp_path / name).open("wb") as file:
            writer = VideoWriter(
                file, name, (48, 64), time_base=Fraction(1, 30), rate=None, codec=codec, quality=95
            )
            for index in range(3):
                writer.picture(rgb, index, 1)
            writer.close()
        found = made.pictures_of(tmp_path / name)
        assert found.shape == (3, 48, 64, 3)
        middle = np.array([found[1, y, x] for y in (12, 36) for x in (16, 48)], int)
        truth = np.array([rgb[y, x] for y in (12, 36) for x in (16, 48)], int)
        assert np.abs(middle - truth).max() <= limit, name


def test_quality_decides_the_size(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    sizes = []
    for quality in (10, 60, 100):
        with (tmp_path / "a.mp4").open("wb") as file:
            writer = VideoWriter(
                file, "a.mp4", (48, 64), time_base=Fraction(1, 30), rate=None, quality=quality
            )
            writer.picture(noise, 0, 1)
            writer.close()
        sizes.append((tmp_path / "a.mp4").stat().st_size)
    assert sizes == sorted(sizes) and sizes[2] > 2 * sizes[0]


def test_odd_sizes(tmp_path):
    for name, codec in (("a.mp4", "auto"), ("a.webm", "auto"), ("a.mkv", "h265")):
        with (tmp_path / name).open("wb") as file:
            writer = VideoWriter(
                file, name, (47, 63), time_base=Fraction(1, 30), rate=None, codec=codec
            )
            writer.picture(np.zeros((47, 63, 3), np.uint8), 0, 1)
            writer.close()
        assert made.about(tmp_path / name)["size"] == (47, 63)


def test_a_playlist_opens_nothing(tmp_path):
    made.write(tmp_path / "a.ts", made.ramps(3), form="mpegts")
    head, end = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n", "#EXT-X-ENDLIST\n"
    lists = {
        "a.m3u8": f"{head}{tmp_path}/a.ts\n{end}",
        "b.m3u8": f"{head}http://127.0.0.1:9/a.ts\n{end}",
        "c.txt": f"ffconcat version 1.0\nfile '{tmp_path}/a.ts'\n",
    }
    for name, content in lists.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(VideoError):
            _, found = read(tmp_path / name)
            raise AssertionError(f"{len(found)} frames of {name}")


def test_no_video_is_one_clear_error(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(1000))
    (tmp_path / "b.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "c.mp4").write_bytes(b"")
    for name in "abc":
        with pytest.raises(VideoError, match=f"{name}.mp4"):
            read(tmp_path / f"{name}.mp4")
    whole = made.write(tmp_path / "d.mp4", made.ramps())
    with pytest.raises(VideoError, match="--max-pixels 3072"):
        read(whole, max_pixels=3000)


def test_truncated_files_say_so(tmp_path):
    for suffix, codec in ((".mp4", "libx264"), (".mkv", "ffv1"), (".avi", "mjpeg")):
        pix_fmt = {"ffv1": "gray16le", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        frames = made.ramps(90, top=65535 if codec == "ffv1" else 255)
        path = made.write(tmp_path / f"a{suffix}", frames, codec=codec, pix_fmt=pix_fmt)
        assert read(path)[0].problems == []
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 3])
        try:
            reader, found = read(path)
        except VideoError:
            assert suffix == ".mp4"  # its table of frames stands at the end
        else:
            assert len(reader.problems) == 1 and 0 < len(found) < 60


def test_damaged_bytes_never_give_another_kind_of_error(tmp_path):
    rng = np.random.default_rng(3)
    for suffix, codec in ((".mp4", "libx264"), (".mkv", "ffv1")):
        pix_fmt = "gray16le" if codec == "ffv1" else "yuv420p"
        frames = made.ramps(6, top=65535 if codec == "ffv1" else 255)
        data = made.write(
            tmp_path / f"a{suffix}", frames, codec=codec, pix_fmt=pix_fmt
        ).read_bytes()
        for _ in range(40):
            bad = bytearray(data)
            for at in rng.integers(0, len(bad), 8):
                bad[at] = rng.integers(256)
            (tmp_path / f"b{suffix}").write_bytes(bad)
            try:
                read(tmp_path / f"b{suffix}", max_pixels=100_000)
            except VideoError as error:
                assert f"b{suffix}" in str(error)


def test_sound_out_of_order_loses_its_packets_alone(tmp_path):
    made.write(tmp_path / "a.mp4", made.ramps(30), sound="aac")
    with (tmp_path / "a.mp4").open("rb") as file, (tmp_path / "b.mp4").open("wb") as out:
        reader = VideoReader(file, "a.mp4", 10**6)
        writer = VideoWriter(
            out, "b.mp4", (48, 64), time_base=reader.time_base, rate=None, copied=reader.copied
        )
        count = 0
        for item in reader.items():
            if isinstance(item, Picture):
                writer.picture(np.zeros((48, 64, 3), np.uint8), item.pts, item.duration)
            else:
                count += 1
                if count == 5:
                    item.dts = item.pts = 0
                writer.packet(item)
        writer.close()
        reader.close()
    assert writer.lost == 1 and len(made.packets_of(tmp_path / "b.mp4", "audio")) == count - 1
    assert len(made.stamps_of(tmp_path / "b.mp4")) == 30
