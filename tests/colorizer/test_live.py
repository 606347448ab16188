"""`cmmfnet live`: a stream of motion JPEG on this machine, a folder that fills up, its outputs."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import video_files as made
from fake_network import FakeWithHeads
from PIL import Image
from rtsp_camera import RtspCamera

from cmmfnet import methods
from cmmfnet.cli import main
from cmmfnet.colorizer.capture import Capture
from cmmfnet.colorizer.live_outputs import Page, Recording
from cmmfnet.files.errors import UserError
from cmmfnet.files.stream import Stream, StreamError, public_name
from cmmfnet.weights.files import save_model

pytestmark = [
    pytest.mark.usefixtures("fake_method"),
    pytest.mark.skipif(sys.platform == "win32", reason="signals and files of Unix"),
]

READING = {"palette": None, "raw": None, "kelvin_per_count": None, "max_pixels": 10**6}


def encoded(frame: np.ndarray, form: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, form, quality=95)
    return file.getvalue()


class Camera(ThreadingHTTPServer):
    """A camera that sends motion JPEG to whoever asks: ``count`` frames for each connection, one in
    ``pause`` seconds, and then nothing for ``hang`` seconds before it closes the connection."""

    daemon_threads = True

    def __init__(
        self,
        count: int = 10_000,
        pause: float = 0.02,
        content: bytes | None = None,
        hang: float = 0,
    ):
        self.count, self.pause, self.content, self.hang = count, pause, content, hang
        self.connections = self.sent = 0
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        return f"http://someone:secret@127.0.0.1:{self.server_address[1]}/video"

    def handle_error(self, *_: object) -> None:
        """The test goes away."""


class _Handler(BaseHTTPRequestHandler):
    server: Camera

    def do_GET(self) -> None:
        camera = self.server
        camera.connections += 1
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=here")
        self.end_headers()
        frames = made.ramps(8)
        for index in range(camera.count):
            jpeg = camera.content or encoded(frames[index % 8])
            head = f"--here\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            self.wfile.write(head.encode() + jpeg + b"\r\n")
            camera.sent += 1
            time.sleep(camera.pause)
        time.sleep(camera.hang)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def camera(**options: object) -> Iterator[Camera]:
    server = Camera(**options)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def live(model: str, *arguments: object) -> int:
    return main(["live", *map(str, arguments), "--model", model, "--device", "cpu"])


def write_slowly(path: Path, content: bytes, seconds: float) -> None:
    with path.open("wb") as file:
        for part in (content[: len(content) // 2], content[len(content) // 2 :]):
            file.write(part)
            file.flush()
            time.sleep(seconds)


def test_a_stream_into_a_folder_a_video_and_a_report(tmp_path, model, capsys):
    with camera() as server:
        arguments = ("-o", tmp_path / "out", "--record", tmp_path / "a.mkv", "--frames", 12)
        assert live(model, server.address, *arguments) == 0
    assert [f.name for f in sorted((tmp_path / "out").iterdir())][-1] == "000011.png"
    with Image.open(tmp_path / "out/000011.png") as picture:
        assert picture.size == (64, 48) and picture.info["Model"] == "fake"
    stamps = made.stamps_of(tmp_path / "a.mkv")
    assert len(stamps) == 12 and stamps[0] == 0 and all(np.diff(np.array(stamps, float)) > 0)
    found = capsys.readouterr()
    assert "coloured 12 frames" in found.out and "latency" in found.out
    assert "secret" not in found.out + found.err


def test_an_rtsp_camera(tmp_path, model):
    with RtspCamera(made.ramps(25)) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        assert live(model, server.address, "-o", tmp_path / "out", "--frames", 5) == 0
        server.shutdown()
    assert len(list((tmp_path / "out").iterdir())) == 5


def test_the_newest_frame_wins_and_dropped_ones_are_counted():
    with camera(pause=0.01) as server:
        capture = Capture(server.address, READING, timeout=5, retries=0)
        first = capture.take(5)
        time.sleep(0.5)
        second = capture.take(5)
        capture.close()
    assert first.index == 0 or capture.dropped > 0
    assert second.index - first.index > 10 and capture.dropped >= second.index - first.index - 1
    assert time.perf_counter() - second.at < 1.5
    assert second.read().values.shape == (48, 64)


def test_a_lost_stream_is_connected_again_and_given_up_at_last(tmp_path, model, capsys):
    with camera(count=12, pause=0.005) as server:
        arguments = ("-o", tmp_path / "now.png", "--frames", 100_000, "--retries", 1)
        thread = threading.Timer(3, server.shutdown)  # answers, and then does not
        thread.start()
        assert live(model, server.address, *arguments, "--timeout", 1) == 1
        thread.join()
        assert server.connections >= 2
    error = capsys.readouterr()
    assert "Given up after 1 attempt" in error.err and "connected again" in error.out
    assert "; connecting again" in error.err
    assert "secret" not in error.err and (tmp_path / "now.png").is_file()


def states(port: int, ending: threading.Event) -> tuple[threading.Thread, list[str]]:
    """The lines of the page about speed, as they come."""
    found: list[str] = []

    def look() -> None:
        while not ending.wait(0.02):
            with contextlib.suppress(OSError):
                found.append(json.loads(fetch(f"http://127.0.0.1:{port}/state"))["state"])

    thread = threading.Thread(target=look)
    thread.start()
    return thread, found


def test_a_stream_that_stops_is_told_and_taken_up_again(tmp_path, model, capsys, monkeypatch):
    """Its connection stays open, as of a camera whose cable was pulled."""
    monkeypatch.setattr("cmmfnet.colorizer.live._SILENT", 0.3)
    monkeypatch.setattr("cmmfnet.colorizer.capture._FIRST_WAIT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ending = threading.Event()
    thread, shown = states(port, ending)
    record = tmp_path / "a.mkv"
    with camera(count=12, hang=30) as server:
        arguments = ("--page", port, "--record", record, "-o", tmp_path / "out", "--timeout", 1)
        try:
            assert live(model, server.address, *arguments, "--frames", 16) == 0
        finally:
            ending.set()
            thread.join()
        assert server.connections > 1
    error = capsys.readouterr().err
    assert "lost: no answer within 1 s; connecting again" in error and ": there again" in error
    assert any(re.match(r"no new frame for \d+ s$", each) for each in shown), shown
    assert "no new frame for 1 s: lost, connecting again" in shown
    assert "connected again" in shown[-1] or "connected again" in error
    stamps = np.array(made.stamps_of(record), float)
    assert len(stamps) == 16 == len(list((tmp_path / "out").iterdir()))
    assert (np.diff(stamps) > 0).all() and np.diff(stamps).max() > 1  # the gap is in the video


class Unplugged:
    """PyAV whose V4L2 devices are files of video, and fail with ENODEV after some packets; while
    ``path`` is away they cannot be opened."""

    def __init__(self, path: Path, packets: int, number: int):
        self.path, self.packets, self.number = path, packets, number
        self.opened = 0

    def __getattr__(self, name: str) -> object:
        import av

        return getattr(av, name)

    def open(self, source: str, *, format: str | None, timeout: float, **_: object) -> object:
        import av

        assert source == "/dev/video7" and format == "v4l2"
        container = av.open(str(self.path))
        self.opened += 1
        opened = self

        class Device:
            streams, close = container.streams, container.close

            @staticmethod
            def demux(stream: object) -> Iterator[object]:
                for count, packet in enumerate(container.demux(stream)):
                    if count == opened.packets:
                        av.error.err_check(-opened.number)
                    time.sleep(0.02)
                    yield packet

        return Device()


@pytest.mark.parametrize("number", [errno.ENODEV, errno.EIO])
def test_an_unplugged_camera_is_looked_for(tmp_path, model, capsys, monkeypatch, number):
    monkeypatch.setattr("cmmfnet.colorizer.capture._FIRST_WAIT", 0.1)
    video = Path(made.write(tmp_path / "device.mkv", made.ramps(12)))
    devices = Unplugged(video, 8, number)
    monkeypatch.setattr("cmmfnet.files.stream.pyav", lambda: devices)

    def unplug() -> None:
        limit = time.monotonic() + 30
        while devices.opened < 2 and time.monotonic() < limit:
            time.sleep(0.01)
        video.rename(tmp_path / "gone")
        time.sleep(0.5)
        if number == errno.ENODEV:
            (tmp_path / "gone").rename(video)

    threading.Thread(target=unplug).start()
    record = tmp_path / "a.mkv"
    arguments = ("--record", record, "--frames", 20, "--retries", 5)
    status = live(model, "/dev/video7", *arguments)
    found = capsys.readouterr()
    assert f"/dev/video7: lost: {os.strerror(number)}; connecting again" in found.err
    assert "no connection: No such file or directory" in found.err
    if number == errno.ENODEV:  # it was plugged in again
        assert status == 0 and ": there again" in found.err
    else:
        assert status == 1 and "Given up after 5 attempts to connect again" in found.err
    frames = int(re.search(r"coloured (\d+) frames", found.out)[1])
    assert len(made.stamps_of(record)) == frames >= 2


def test_a_full_disk_ends_a_recording_that_can_be_played(tmp_path, model, capsys, monkeypatch):
    record, real = tmp_path / "a.mkv", Path.open

    class Full(io.FileIO):
        def write(self, content: bytes) -> int:
            room = 3000 - self.tell()
            if len(content) > room:
                super().write(content[: max(0, room)])
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(content)

    def open_full(path: Path, mode: str = "r", *args: object, **kwargs: object) -> object:
        return Full(path, mode) if path == record else real(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_full)
    with camera() as server:
        arguments = ("--record", record, "-o", tmp_path / "now.png", "--frames", 1000)
        assert live(model, server.address, *arguments) == 1
    monkeypatch.undo()
    found = capsys.readouterr()
    assert f"No space left on device: '{record}'" in found.err and "lacks its end" in found.err
    frames = int(re.search(r"coloured (\d+) frames", found.out)[1])
    assert 1 <= len(made.stamps_of(record)) <= frames < 1000


def test_a_folder_that_can_be_written_no_more_ends_with_a_report(
    tmp_path, model, capsys, disk_full_while_writing
):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "0.png").write_bytes(encoded(made.ramps(1)[0], "PNG"))
    disk_full_while_writing()
    assert live(model, folder, "-o", tmp_path / "out") == 1
    found = capsys.readouterr()
    assert "No space left on device" in found.err and "coloured 0 frames" in found.out
    assert not list((tmp_path / "out").iterdir())


def test_what_is_no_stream_is_an_error(tmp_path, model, capsys):
    video = made.write(tmp_path / "a.mp4", made.ramps(2))
    with camera(count=0) as server, camera(content=b"no picture", count=3) as other:
        for source, message in (
            ("http://127.0.0.1:9/video", "no connection"),
            (server.address, "127.0.0.1"),
            (other.address, "127.0.0.1"),
            ("file:///etc/passwd", "unknown kind of address"),
            ("concat://a|b", "unknown kind of address"),
            (video, "cmmfnet colorize colours files"),
            (tmp_path / "none", "no live source"),
            ("/dev/video99", "no connection"),
        ):
            assert live(model, source, "-o", tmp_path / "out.png", "--timeout", 2) in (1, 2), source
            error = capsys.readouterr().err
            assert message in error and "secret" not in error and "Traceback" not in error, source
    assert not (tmp_path / "out.png").exists()
    for secret in ("rtsp://a:b@host/c", "rtsp://a:b@b@host/c"):
        assert public_name(secret) == "rtsp://host/c"
    secret = "http://host/c?channel=1&user=me&password=b"
    assert public_name(secret) == "http://host/c?channel=1&user=...&password=..."


def test_a_playlist_from_the_network_opens_no_file(tmp_path):
    made.write(tmp_path / "secret.ts", made.ramps(9), form="mpegts")
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{tmp_path}/secret.ts\n"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/vnd.apple.mpegurl")
            self.end_headers()
            self.wfile.write((playlist + "#EXT-X-ENDLIST\n").encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(StreamError):
        next(Stream(f"http://127.0.0.1:{server.server_address[1]}/a.m3u8", 3).frames())
    server.shutdown()
    server.server_close()


# --- folders


def test_a_folder_that_fills_up(tmp_path, model):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    frames = made.ramps(12, top=9000)
    (folder / "0.png").write_bytes(encoded(frames[0], "PNG"))

    def fill() -> None:
        for index in range(1, 6):
            # the next one comes when this one is done, as on a machine that is not busy
            limit = time.monotonic() + 20
            while not (out / f"{index - 1:06d}.png").is_file() and time.monotonic() < limit:
                time.sleep(0.02)
            write_slowly(folder / f"{index}.png", encoded(frames[index], "PNG"), 0.1)

    filling = threading.Thread(target=fill)
    filling.start()
    assert live(model, folder, "-o", out, "--smooth", 0, "--frames", 6) == 0
    filling.join()
    shown = []
    for file in sorted(out.iterdir()):
        with Image.open(file) as picture:
            hot = np.argwhere(np.asarray(picture)[15, :, 0] > 250)
        shown.append(int(hot[0, 0]) - 5)  # where the square is tells which frame it was
    assert shown == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("words", "text", "told"),
    [(("day", "dusk", "night"), None, 1), (("night", "dusk", "day"), None, 0),
     (("day", "dusk", "night"), "night", 0)],
)  # fmt: skip
def test_a_camera_at_night_is_told_once(tmp_path, monkeypatch, capsys, words, text, told):
    """The likelier word is the later one in Fake's list."""
    monkeypatch.setitem(methods.METHODS, "fake-heads", "fake_network:FakeWithHeadsMethod")
    path = tmp_path / "fake.safetensors"
    model = save_model(path, FakeWithHeads(words=words), {"method": "fake-heads", "words": words})
    options = ["--frames", 14, *(["--text", text] if text else [])]
    with camera() as server:
        assert live(str(model), server.address, "-o", tmp_path / "out", *options) == 0
    note = "cmmfnet: the camera looks like night, and without text is coloured as by day or at dusk"
    assert capsys.readouterr().err.count(f"{note}: try the text night") == told


def test_files_are_taken_when_they_are_whole_and_only_the_newest(tmp_path):
    frames = [encoded(frame, "PNG") for frame in made.ramps(6, top=9000)]
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(frames[index])
        os.utime(tmp_path / f"{index}.png", (1000 + index, 1000 + index))
    capture = Capture(str(tmp_path), READING, timeout=1, retries=0)
    first = capture.take(5)
    assert first.read().name.endswith("2.png") and capture.dropped == 0
    assert capture.take(0.2) is None

    (tmp_path / "3.png").write_bytes(frames[3][:300])
    assert capture.take(0.3) is None
    (tmp_path / "3.png").write_bytes(frames[3])
    assert capture.take(5).read().name.endswith("3.png")

    for index in (4, 5):  # two at once
        (tmp_path / f"new{index}").write_bytes(frames[index])
        os.utime(tmp_path / f"new{index}", (9e9 + index, 9e9 + index))
    for index in (4, 5):
        (tmp_path / f"new{index}").rename(tmp_path / f"{index}.png")
    last = capture.take(5)
    if last.read().name.endswith("4.png"):  # a look fell between the two
        last = capture.take(5)
    assert last.read().name.endswith("5.png") and last.index == 3

    (tmp_path / "5.png").write_bytes(frames[0])  # the same file again
    os.utime(tmp_path / "5.png", (9.1e9, 9.1e9))
    again = capture.take(5)
    assert again.read().name.endswith("5.png") and again.index == 4
    (tmp_path / "7.png").write_bytes(frames[1])  # written after the clock went back
    os.utime(tmp_path / "7.png", (2000, 2000))
    assert capture.take(5).read().name.endswith("7.png")
    (tmp_path / "6.png").write_bytes(frames[0][:200])  # and one that stays damaged
    limit = time.monotonic() + 10
    while not capture.damaged and time.monotonic() < limit:
        assert capture.take(0.2) is None
    capture.close()
    assert capture.damaged == 1 and "6.png" in capture.problems[-1]


def test_frames_left_out_are_told_once_and_a_lost_folder_ends(tmp_path, model, capsys):
    """``--raw`` of another size: why nothing is shown must be told."""
    folder = tmp_path / "in"
    folder.mkdir()
    made.ramps(1, top=9000)[0].tofile(folder / "0.raw")
    threading.Timer(5, lambda: folder.rename(tmp_path / "gone")).start()
    arguments = ("--raw", "65x48,uint16le", "--retries", 1)
    assert live(model, folder, "-o", tmp_path / "out", *arguments) == 1
    error = capsys.readouterr().err
    assert error.count("0.raw") == 1 and "6144 bytes" in error
    assert "can be listed no more (No such file or directory); waiting for it" in error
    assert "Given up after 1 attempt to list it again" in error


def test_a_folder_that_comes_back_goes_on(tmp_path, model, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    frames = [encoded(frame, "PNG") for frame in made.ramps(3, top=9000)]
    (folder / "0.png").write_bytes(frames[0])

    def unplug() -> None:
        limit = time.monotonic() + 30
        while not list(tmp_path.glob("out/*.png")) and time.monotonic() < limit:
            time.sleep(0.02)
        folder.rename(tmp_path / "gone")
        time.sleep(0.3)
        (tmp_path / "gone").rename(folder)
        (folder / "1.png").write_bytes(frames[1])

    threading.Thread(target=unplug).start()
    assert live(model, folder, "-o", tmp_path / "out", "--frames", 2) == 0
    found = capsys.readouterr()
    assert "waiting for it" in found.err and f"{folder}: there again" in found.err
    assert "connected again 1 time" in found.out
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_span_that_never_fits_is_told_once(tmp_path, model, capsys):
    folder = tmp_path / "in"
    folder.mkdir()

    def fill() -> None:
        for index in range(20):
            time.sleep(0.1)
            frame = made.ramps(1, top=1000 + index)[0]
            (folder / "new").write_bytes(encoded(frame, "PNG"))
            (folder / "new").rename(folder / f"{index}.png")
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=fill).start()
    live(model, folder, "-o", tmp_path / "out", "--span", "5000,6000")
    assert capsys.readouterr().err.count("leaves nearly nothing") == 1


def test_options_that_make_no_sense(tmp_path, model, capsys, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    for arguments, message in (
        ((tmp_path, "-o", tmp_path / "now.png"), "would be read as frames"),
        ((tmp_path, "-o", tmp_path), "would be read as frames"),
        ((tmp_path, "-o", tmp_path / "a.mp4"), "--record"),
        ((tmp_path, "-o", tmp_path / "a.gif"), "cannot be written"),
        ((tmp_path, "--record", tmp_path / "a.avi"), ".mp4"),
        ((tmp_path, "--page", 70000), "0 to 65535"),
        ((tmp_path, "--smooth", 2), "0 to 1"),
        ((tmp_path, "--frames", 0), "1 or more"),
        ((tmp_path, "--span", "5"), "span"),
        (("http://127.0.0.1:9/", "--raw", "8x8,uint8"), "--raw is for files"),
        ((tmp_path,), "--page 8010"),
    ):
        assert live(model, *arguments) == 2, arguments
        assert message in capsys.readouterr().err, arguments
    (tmp_path / "a.mkv").touch()
    assert live(model, tmp_path, "--record", tmp_path / "a.mkv") == 1
    assert "there already" in capsys.readouterr().err


# --- the page, and the end


def fetch(address: str, host: str | None = None) -> bytes:
    request = urllib.request.Request(address, headers={"Host": host} if host else {})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return answer.read()


def test_the_page():
    page = Page(0, "a <b> camera")
    try:
        assert b"a &lt;b&gt; camera" in fetch(page.address)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            fetch(page.address + "frame.jpg")
        with pytest.raises(urllib.error.HTTPError, match="403"):
            fetch(page.address, "evil.example")
        page.show(np.full((48, 64, 3), 90, np.uint8), 0)
        page.tell("9 frames/s")
        assert json.loads(fetch(page.address + "state"))["state"] == "9 frames/s"
        with Image.open(io.BytesIO(fetch(page.address + "frame.jpg"))) as picture:
            assert picture.size == (64, 48)
        with pytest.raises(UserError, match="another port"):
            Page(page.port, "")
        ending = threading.Event()

        def show() -> None:
            while not ending.wait(0.01):
                page.show(np.full((48, 64, 3), 90, np.uint8), 0)

        showing = threading.Thread(target=show)
        showing.start()
        stream = Stream(page.address + "stream.mjpeg", 5)  # what we send, we read
        assert next(stream.frames()).width == 64
        stream.close()
        ending.set()
        showing.join()
    finally:
        page.close()
    with pytest.raises(OSError):
        fetch(page.address)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_well(tmp_path, model, capsys, number):
    def interrupt() -> None:
        limit = time.monotonic() + 30
        while not list(tmp_path.glob("out/00001?.png")) and time.monotonic() < limit:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    with camera() as server:
        threading.Thread(target=interrupt).start()
        arguments = ("-o", tmp_path / "out", "--record", tmp_path / "a.mp4", "--page", 0)
        assert live(model, server.address, *arguments) == 0
    shown = len(list((tmp_path / "out").iterdir()))
    assert len(made.stamps_of(tmp_path / "a.mp4")) in (shown, shown - 1)
    found = capsys.readouterr()
    assert "coloured" in found.out and "http://127.0.0.1" in found.err


@pytest.mark.skipif(not os.environ.get("DISPLAY"), reason="no display")
def test_a_window(tmp_path, model):
    with camera() as server:
        assert live(model, server.address, "--frames", 5) == 0


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_frames_that_arrive_at_once_have_two_time_stamps(tmp_path, suffix):
    recording = Recording(tmp_path / f"a.{suffix}", "a test")
    for at in (5.0, 5.0, 5.00002, 5.1):
        recording.show(np.zeros((32, 48, 3), np.uint8), at)
    recording.close()
    stamps = np.array(made.stamps_of(recording.path), float)
    np.testing.assert_allclose(stamps, [0, 0.001, 0.002, 0.1], atol=1e-6)
