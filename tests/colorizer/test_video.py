"""`cmmfnet colorize` of videos: time stamps, sound, depths, sequences, folders, damage, Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import camera_files
import numpy as np
import pytest
import torch
import video_files as made
from fake_network import Fake, colorize
from PIL import Image

from cmmfnet.thermal.frame import read_thermal
from cmmfnet.thermal.steady import SteadySpan
from cmmfnet.thermal.stretch import frame_span, normalise
from cmmfnet.weights.files import save_model

pytestmark = pytest.mark.usefixtures("fake_method")


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


NTSC = Fraction(30000, 1001)
UNEVEN = [0, 3, 4, 9, 20, 21, 22, 40, 41, 44, 50, 77]


@pytest.mark.parametrize(
    ("source", "result"),
    [("a.mp4", "b.mp4"), ("a.mkv", "b.mkv"), ("a.mov", "b.mov"), ("a.mkv", "b.mp4")],
)
@pytest.mark.parametrize("batch", [1, 5])
def test_time_stamps_and_duration_are_kept(tmp_path, model, source, result, batch):
    for number, stamps in enumerate((None, [7 + t for t in UNEVEN])):
        path = tmp_path / f"{number}{source}"
        made.write(path, made.ramps(), rate=NTSC, stamps=stamps, time_base=1 / NTSC)
        out = tmp_path / f"{number}{result}"
        assert colorize(model, path, "-o", out, "--batch-size", batch) == 0
        assert made.stamps_of(out) == made.stamps_of(path)
        assert len(made.stamps_of(out)) == 12
        stamps = made.stamps_of(path)
        duration = made.about(out)["duration"]
        if duration is not None:  # Matroska has none for a stream
            assert abs(duration - (stamps[-1] - stamps[0] + 1 / NTSC)) <= Fraction(1, 1000)
        if source[-3:] == result[-3:]:
            assert duration == made.about(path)["duration"]
            assert abs(made.about(out)["length"] - made.about(path)["length"]) <= 1000  # us


def test_frames_are_those_of_the_pictures(tmp_path, model):
    frames = made.ramps(3, top=65535)
    made.write(tmp_path / "a.mkv", frames, codec="ffv1", pix_fmt="gray16le")
    assert colorize(model, tmp_path / "a.mkv", "-o", tmp_path / "b.mkv", "--codec", "ffv1") == 0
    (tmp_path / "in").mkdir()
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"in/{index}.png")
    assert colorize(model, tmp_path / "in", "-o", tmp_path / "out") == 0
    for index, picture in enumerate(made.pictures_of(tmp_path / "b.mkv")):
        with Image.open(tmp_path / f"out/{index}.png") as still:
            np.testing.assert_array_equal(picture, np.asarray(still))


def test_sound_and_subtitles_are_copied(tmp_path, model, capsys):
    made.write(tmp_path / "a.mp4", made.ramps(30), sound="aac", words="a street")
    assert colorize(model, tmp_path / "a.mp4", "-o", tmp_path / "b.mp4") == 0
    assert made.about(tmp_path / "b.mp4")["streams"] == ["video", "audio", "subtitle"]
    for kind in ("audio", "subtitle"):
        packets = made.packets_of(tmp_path / "a.mp4", kind)
        assert packets and packets == made.packets_of(tmp_path / "b.mp4", kind)
    assert "model fake" in made.about(tmp_path / "b.mp4")["comment"]
    assert colorize(model, tmp_path / "a.mp4", "-o", tmp_path / "c.webm") == 2
    assert "name the result c.mkv" in capsys.readouterr().err.replace(str(tmp_path) + "/", "")
    assert names(tmp_path) == ["a.mp4", "b.mp4"]


def test_turned_video_comes_upright(tmp_path, model):
    made.turn(made.write(tmp_path / "a.mp4", made.ramps(2)), (0, 1, -1, 0))
    assert colorize(model, tmp_path / "a.mp4", "-o", tmp_path / "b.mp4") == 0
    assert made.about(tmp_path / "b.mp4")["size"] == (64, 48)


def test_side_by_side(tmp_path, model):
    frames = made.ramps(2)
    made.write(tmp_path / "a.mkv", frames, codec="ffv1", pix_fmt="gray")
    out = tmp_path / "b.mkv"
    assert colorize(model, tmp_path / "a.mkv", "-o", out, "--side-by-side", "--codec", "ffv1") == 0
    found = made.pictures_of(out)[0]
    grey = np.round((normalise(frames[0]) + 1) * 127.5)
    assert found.shape == (48, 128, 3) and np.abs(found[:, :64, 0] - grey).max() <= 1
    assert (found[:, 64:, 1] == 0).all()  # the network's green, without text


def test_sequences_keep_their_times_and_folders_take_fps(tmp_path, model, capsys):
    counts = [camera_files.counts_of(camera_files.scene(6, 8)) for _ in range(3)]
    (tmp_path / "bird.cptv").write_bytes(camera_files.cptv(counts, bits=20))
    assert colorize(model, tmp_path / "bird.cptv", "-o", tmp_path / "bird.mp4") == 0
    from cmmfnet import open_sequence

    with open_sequence(tmp_path / "bird.cptv") as frames:
        times = [frame.time for frame in frames]
    stamps = made.stamps_of(tmp_path / "bird.mp4")
    assert len(stamps) == 3 and np.allclose([float(t) for t in stamps], times, atol=1e-4)

    np.save(tmp_path / "walk.npy", np.stack(made.ramps(4, top=9000)))
    assert colorize(model, tmp_path / "walk.npy", "-o", tmp_path / "walk.mp4") == 2
    assert "has no time stamps; add --fps, such as --fps 30" in capsys.readouterr().err
    Image.fromarray(made.ramps(1)[0]).save(tmp_path / "one.png")
    assert colorize(model, tmp_path / "one.png", "-o", tmp_path / "one.mp4") == 2
    error = capsys.readouterr().err
    assert "has no time stamps; add --fps" in error and "cannot be opened" not in error
    arguments = ("-o", tmp_path / "walk.mp4", "--fps", "29.97")
    assert colorize(model, tmp_path / "walk.npy", *arguments) == 0
    assert made.stamps_of(tmp_path / "walk.mp4") == [i / NTSC for i in range(4)]

    (tmp_path / "in").mkdir()
    for index in (1, 2, 10):
        Image.fromarray(made.ramps(12)[index]).save(tmp_path / f"in/f{index}.png")
    (tmp_path / "in/f9.png").write_bytes(b"\x89PNG\r\n\x1a\nhalf")
    out = tmp_path / "frames.mp4"
    assert colorize(model, tmp_path / "in", "-o", out, "--fps", "10") == 1
    assert made.stamps_of(out) == [Fraction(0), Fraction(1, 10), Fraction(3, 10)]
    assert "f9.png" in capsys.readouterr().err


def test_a_file_of_times_gives_each_frame_its_text(tmp_path, model):
    made.write(tmp_path / "a.mkv", made.ramps(10), codec="ffv1", pix_fmt="gray", rate=Fraction(10))
    (tmp_path / "t.txt").write_text("0:00-0:00.5 car\n0:00.5- tree\n")
    arguments = ("-o", tmp_path / "b.mkv", "--codec", "ffv1", "--text-file", tmp_path / "t.txt")
    assert colorize(model, tmp_path / "a.mkv", *arguments) == 0
    green = made.pictures_of(tmp_path / "b.mkv")[:, 0, 0, 1]
    assert len(set(green[:5])) == 1 and len(set(green[5:])) == 1 and green[0] != green[5]


def test_a_truncated_video_keeps_its_frames_and_fails(tmp_path, model, capsys):
    frames = made.ramps(90, top=65535)
    path = made.write(tmp_path / "a.mkv", frames, codec="ffv1", pix_fmt="gray16le")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert colorize(model, path, "-o", tmp_path / "b.mp4") == 1
    found = len(made.stamps_of(tmp_path / "b.mp4"))
    error = capsys.readouterr().err
    assert 20 < found < 60 and "truncated" in error and f"holds {found} frames" in error


def test_a_truncated_matroska_fails_with_sound_and_however_short(tmp_path, model, capsys):
    tone = {"rate": Fraction(10), "sound": "aac"}
    for name, more in (("sound.mkv", tone), ("short.webm", {})):
        codec = "libvpx-vp9" if name.endswith("webm") else "ffv1"
        pix_fmt = "yuv420p" if name.endswith("webm") else "gray"
        path = made.write(tmp_path / name, made.ramps(8), codec=codec, pix_fmt=pix_fmt, **more)
        assert colorize(model, path, "-o", tmp_path / "b.mkv", "--overwrite") == 0
        path.write_bytes(path.read_bytes()[:-20])
        assert colorize(model, path, "-o", tmp_path / "b.mkv", "--overwrite") == 1
        assert "truncated: 20 bytes are missing" in capsys.readouterr().err


def test_a_video_whose_clock_starts_late_is_whole(tmp_path, model):
    stamps = [5000 + 100 * index for index in range(4)]
    for suffix, pix_fmt, codec in ((".mkv", "gray", "ffv1"), (".mp4", "yuv420p", "libx264")):
        path = made.write(
            tmp_path / f"a{suffix}", made.ramps(4), codec=codec, pix_fmt=pix_fmt, stamps=stamps,
            time_base=Fraction(1, 1000),
        )  # fmt: skip
        assert colorize(model, path, "-o", tmp_path / f"b{suffix}") == 0
        found = made.stamps_of(tmp_path / f"b{suffix}")
        assert [stamp - found[0] for stamp in found] == [Fraction(i, 10) for i in range(4)]


def test_what_makes_no_sense_is_refused_before_anything_is_written(tmp_path, model, capsys):
    video = made.write(tmp_path / "a.mp4", made.ramps(2))
    (tmp_path / "text.mp4").write_text("no video")
    for arguments, message in (
        ((video, "-o", tmp_path / "out"), "-o a-colour.mp4"),
        ((video, "-o", video, "--overwrite"), "would replace the input"),
        ((video, "-o", tmp_path / "b.mp4", "--codec", "ffv1"), "b.mkv"),
        ((video, "-o", tmp_path / "b.mp4", "--codec", "divx"), "h264"),
        ((video, "-o", tmp_path / "b.mp4", "--quality", "101"), "0 to 100"),
        ((video, "-o", tmp_path / "b.mp4", "--smooth", "2"), "0 to 1"),
        ((video, "-o", tmp_path / "b.mp4", "--fps", "5"), "leave out --fps"),
        ((video, "-o", tmp_path / "b.mp4", "--gallery", "x.html"), "for pictures"),
        ((video, "-o", tmp_path / "b.mp4", "--span", "900,1000"), "leaves nearly nothing"),
        ((video, "-o", tmp_path / "b.mp4", "--max-pixels", "100"), "--max-pixels 3072"),
        ((video, "-o", tmp_path / "b.png", "--smooth", ".5"), "are for videos"),
        ((tmp_path / "text.mp4", "-o", tmp_path / "b.mp4"), "text.mp4: no video"),
        ((tmp_path, "-o", tmp_path / "b.mp4"), "no pictures in folder"),
    ):
        assert colorize(model, *arguments) == 2, arguments
        assert message in " ".join(capsys.readouterr().err.split()), arguments
    assert names(tmp_path) == ["a.mp4", "text.mp4"]
    assert colorize(model, video, "-o", tmp_path / "b.mp4") == 0
    assert colorize(model, video, "-o", tmp_path / "b.mp4") == 1
    assert "--overwrite" in capsys.readouterr().err


def test_a_shutter_frame_outside_the_span_does_not_end_the_video(tmp_path, model):
    frames = made.ramps(5)
    frames[2] = np.full_like(frames[2], 255)
    made.write(tmp_path / "a.mkv", frames, codec="ffv1", pix_fmt="gray")
    arguments = ("-o", tmp_path / "b.mkv", "--codec", "ffv1", "--span", "10,200")
    with pytest.warns(UserWarning, match="clipped to the span"):
        assert colorize(model, tmp_path / "a.mkv", *arguments) == 0
    found = made.pictures_of(tmp_path / "b.mkv")
    assert len(found) == 5 and (found[2, :, :, 0] == 255).all()


def test_a_shutter_frame_at_the_start_is_left_out(tmp_path, model, capsys):
    frames = made.ramps(5)
    frames[0] = frames[1] = np.full_like(frames[2], 255)
    made.write(tmp_path / "a.mkv", frames, codec="ffv1", pix_fmt="gray")
    arguments = ("-o", tmp_path / "b.mkv", "--span", "10,200")
    assert colorize(model, tmp_path / "a.mkv", *arguments) == 1
    assert made.stamps_of(tmp_path / "b.mkv") == made.stamps_of(tmp_path / "a.mkv")[2:]
    error = capsys.readouterr().err
    assert "leaves nearly nothing" in error and "holds 3 frames" in error


def test_too_little_memory_for_a_batch_takes_fewer_frames(tmp_path, model, capsys, monkeypatch):
    forward, room = Fake.forward, 2

    def limited(self: Fake, thermal: torch.Tensor, *rest: object) -> torch.Tensor:
        if len(thermal) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, thermal, *rest)

    video = made.write(tmp_path / "a.mp4", made.ramps(9))
    monkeypatch.setattr(Fake, "forward", limited)
    arguments = ("-o", tmp_path / "b.mp4", "--batch-size", 4)
    assert colorize(model, video, *arguments) == 0
    assert len(made.stamps_of(tmp_path / "b.mp4")) == 9
    room = 0
    assert colorize(model, video, *arguments, "--overwrite") == 2
    assert "--device cpu" in capsys.readouterr().err and len(names(tmp_path)) == 2


def test_a_full_disk_leaves_nothing(tmp_path, model, disk_full_while_writing, capsys):
    video = made.write(tmp_path / "a.mp4", made.ramps(2))
    disk_full_while_writing()
    assert colorize(model, video, "-o", tmp_path / "b.mp4") == 1
    assert "No space left" in capsys.readouterr().err and names(tmp_path) == ["a.mp4"]


def start(tmp_path: Path, *arguments: object) -> subprocess.Popen:
    """A run in a process of its own, of a slow network, that has begun to write."""
    config = {"method": "fake", "delay": 0.05}
    slow = str(save_model(tmp_path / "slow.safetensors", Fake(delay=0.05), config))
    made.write(tmp_path / "a.mp4", made.ramps(90, width=160))
    code = "import sys; from cmmfnet import methods; from cmmfnet.cli import main; "
    code += "methods.METHODS['fake'] = 'fake_network:FakeMethod'; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "colorize", tmp_path / "a.mp4", *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.Popen(
        [*map(str, command), "--model", slow, "--device", "cpu"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    limit = time.monotonic() + 60
    while not list(tmp_path.glob(".cmmfnet-*.part")) and time.monotonic() < limit:
        time.sleep(0.05)
    time.sleep(1)
    return run


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_ctrl_c_leaves_a_playable_file_and_a_kill_none(tmp_path, model):
    run = start(tmp_path, "-o", tmp_path / "b.mp4")
    run.send_signal(signal.SIGINT)
    error = run.communicate(timeout=60)[1]
    assert run.returncode == 130, error
    found = len(made.stamps_of(tmp_path / "b.partial.mp4"))
    assert 0 < found < 90 and f"first {found} frames; the next run starts at" in error
    assert "continue" not in error
    assert not (tmp_path / "b.mp4").exists() and not list(tmp_path.glob(".cmmfnet-*"))

    run = start(tmp_path, "-o", tmp_path / "c.mp4")
    run.kill()
    run.communicate(timeout=60)
    assert not (tmp_path / "c.mp4").exists() and len(list(tmp_path.glob(".cmmfnet-*"))) == 1
    assert colorize(model, tmp_path / "a.mp4", "-o", tmp_path / "c.mp4") == 0
    assert len(made.stamps_of(tmp_path / "c.mp4")) == 90
    assert not list(tmp_path.glob(".cmmfnet-*"))


def test_smoothing_steadies_the_span_and_ends_at_a_cut(tmp_path, model):
    rng = np.random.default_rng(0)
    base = np.linspace(1000, 2000, 48 * 64).reshape(48, 64)
    ends = base + rng.normal(0, 3, base.shape)
    frames = [ends * scale for scale in (1, 1.05, 1, 1.05, 1, 1.05)]
    frames += [3000 + ends[::-1, ::-1] * scale for scale in (1, 1.05)]
    thermals = [read_thermal(frame.astype(np.uint16)) for frame in frames]
    steady = SteadySpan(0.9)
    spans = [steady(thermal) for thermal in thermals]
    own = [frame_span(thermal) for thermal in thermals]
    assert steady.cuts == 1 and spans[0] == own[0] and spans[6] == own[6]
    assert np.ptp([high for _, high in spans[:6]]) < 0.5 * np.ptp([high for _, high in own[:6]])
    fixed = SteadySpan(1)
    assert len({fixed(thermal) for thermal in thermals[:6]}) == 1
    for thermal, span in zip(thermals, own, strict=True):
        np.testing.assert_array_equal(normalise(thermal), normalise(thermal, span))

    stack = np.stack(frames).astype(np.uint16)
    np.save(tmp_path / "a.npy", stack)
    for smooth in (0, 0.9):
        out = tmp_path / f"{smooth}.mkv"
        arguments = ("-o", out, "--codec", "ffv1", "--fps", "10", "--smooth", smooth)
        assert colorize(model, tmp_path / "a.npy", *arguments) == 0
    assert not np.array_equal(
        made.pictures_of(tmp_path / "0.mkv"), made.pictures_of(tmp_path / "0.9.mkv")
    )


def test_warnings_about_frames_are_shown_once(tmp_path, model, capsys):
    frames = made.ramps(6, top=9000)
    for frame in frames:
        frame[:4] = 0
        frame[4:] += 3000
    made.write(tmp_path / "a.mkv", frames, codec="ffv1", pix_fmt="gray16le")
    with pytest.warns(UserWarning) as caught:
        assert colorize(model, tmp_path / "a.mkv", "-o", tmp_path / "b.mp4") == 0
    first, rest = (str(warning.message) for warning in caught)
    assert "many pixels are exactly 0" in first and rest.startswith("5 more warnings like: many")


def test_a_caller_can_watch_and_end_a_video(tmp_path, capsys):
    from cmmfnet import Colorizer
    from cmmfnet.colorizer.video import colorize_video
    from cmmfnet.colorizer.video_options import VideoOptions

    made.write(tmp_path / "a.mp4", made.ramps(5))
    seen: list[tuple[int, int | None]] = []

    def end_at_two(done: int, total: int | None) -> None:
        seen.append((done, total))
        if done == 2:
            raise InterruptedError("enough")

    def run(out: str, watch) -> None:
        reading = dict.fromkeys(("palette", "raw", "kelvin_per_count")) | {"max_pixels": 10_000}
        colorize_video(
            str(tmp_path / "a.mp4"), str(tmp_path / out), lambda: Colorizer(Fake(), device="cpu"),
            text=None, text_file=None, span=None, reading=reading, batch_size=None,
            overwrite=False, options=VideoOptions(), watch=watch,
        )  # fmt: skip

    run("b.mp4", lambda *each: seen.append(each))
    assert seen == [(i, 5) for i in range(6)] and len(made.stamps_of(tmp_path / "b.mp4")) == 5
    with pytest.raises(InterruptedError):
        run("c.mp4", end_at_two)
    assert names(tmp_path) == ["a.mp4", "b.mp4"]
    assert capsys.readouterr() == ("", "")
