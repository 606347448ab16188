"""Where live pictures go: a window, a picture file, a folder, a page for browsers, a recording."""

from __future__ import annotations

import html
import json
import sys
import threading
from contextlib import suppress
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Protocol

import numpy as np

from cmmfnet.files.errors import UserError
from cmmfnet.files.pictures import encode_picture, natural_key, write_picture
from cmmfnet.files.video import pyav
from cmmfnet.files.video_writer import VideoWriter

_CLOCK = Fraction(1, 1000)  # the finest of Matroska: two frames at once get two time stamps
_WATCHING = 16
"""Browsers that may watch the page at once."""
_LATE = 5.0
"""Seconds after which the page sends the last picture again, so that browsers keep the
connection."""


class Output(Protocol):
    """A place for pictures."""

    def show(self, rgb: np.ndarray, at: float) -> bool:
        """Show a picture (H, W, 3) uint8 that arrived ``at``, in seconds from any start. False: the
        user has closed the place."""
        ...

    def close(self) -> None:
        """Finish."""
        ...


class Window:
    """A window of Tk, which comes with Python."""

    def __init__(self, title: str):
        """
        Raises:
            UserError: no display, or Python has no Tk.
        """
        other = "use --page 8010 and a browser, or -o FOLDER"
        try:
            import tkinter

            from PIL import ImageTk
        except ImportError as error:
            raise UserError(
                f"a window needs Tk, which this Python lacks ({error}); on Debian: apt install "
                f"python3-tk. Or {other}"
            ) from error
        try:
            self._root = tkinter.Tk()
        except tkinter.TclError as error:
            raise UserError(f"no display for a window ({error}); {other}") from error
        self._make, self._title, self._open = ImageTk.PhotoImage, title, True
        self._gone = tkinter.TclError
        self._root.title(title)
        self._root.protocol("WM_DELETE_WINDOW", self._closed)
        self._root.bind("<Escape>", lambda _: self._closed())
        self._label = tkinter.Label(self._root, borderwidth=0)
        self._label.pack()
        self._root.update()

    def show(self, rgb: np.ndarray, at: float) -> bool:
        from PIL import Image

        if self._open:
            self._picture = self._make(Image.fromarray(rgb), master=self._root)
            self._label.configure(image=self._picture)
        return self.alive()

    def tell(self, state: str) -> None:
        """Show a line about speed and latency."""
        if self._open:
            self._root.title(f"{self._title}: {state}")

    def alive(self) -> bool:
        """Let the window answer its user; whether it is still open."""
        if self._open:
            self._root.update()
        return self._open

    def close(self) -> None:
        with suppress(self._gone):
            self._root.destroy()
        self._open = False

    def _closed(self) -> None:
        self._open = False


class PictureFile:
    """One picture file, which always holds the newest picture."""

    def __init__(self, path: Path, notes: dict[str, str]):
        self.path, self.notes = path, notes

    def show(self, rgb: np.ndarray, at: float) -> bool:
        write_picture(self.path, rgb, self.notes)
        return True

    def close(self) -> None:
        pass


class PictureFolder:
    """A numbered picture for each frame: 000000.png; it continues after those that are there."""

    def __init__(self, folder: Path, notes: dict[str, str]):
        folder.mkdir(parents=True, exist_ok=True)
        taken = [file for file in folder.glob("*.png") if file.stem.isdigit()]
        self._next = int(max(taken, key=natural_key).stem) + 1 if taken else 0
        self.folder, self.notes = folder, notes

    def show(self, rgb: np.ndarray, at: float) -> bool:
        write_picture(self.folder / f"{self._next:06d}.png", rgb, self.notes)
        self._next += 1
        return True

    def close(self) -> None:
        pass


class Recording:
    """A video of the pictures, with the times at which they arrived.

    It is written under its final name, so that a power cut leaves what was written (playable if it
    is .mkv).
    """

    def __init__(self, path: Path, comment: str):
        """
        Raises:
            FileExistsError: the file exists.
        """
        try:
            self._file = path.open("xb")
        except FileExistsError as error:
            raise FileExistsError(f"{path} is there already; record to another file") from error
        self.path, self.comment = path, comment
        self._writer: VideoWriter | None = None
        self._size: tuple[int, ...] = ()
        self._last = -1
        self.problem = ""

    @property
    def frames(self) -> int:
        return self._writer.frames if self._writer is not None else 0

    def show(self, rgb: np.ndarray, at: float) -> bool:
        if self._writer is None:
            self._size, self._start = rgb.shape, at
            self._writer = VideoWriter(
                self._file,
                str(self.path),
                rgb.shape[:2],
                time_base=_CLOCK,
                rate=None,
                comment=self.comment,
            )
        if rgb.shape != self._size:
            if not self.problem:
                self.problem = (
                    f"{self.path} ends after {self.frames} frames: the camera's frames changed "
                    f"from {self._size[1]} x {self._size[0]} to {rgb.shape[1]} x {rgb.shape[0]}"
                )
                print(f"cmmfnet: {self.problem}", file=sys.stderr, flush=True)
            return True
        self._last = max(self._last + 1, round((at - self._start) / _CLOCK))
        try:
            self._writer.picture(rgb, self._last, None)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        return True

    def close(self) -> None:
        """Finish the video. What cannot be written is a ``problem``."""
        try:
            with self._file:
                if self._writer is not None:
                    self._writer.close()
        except (OSError, pyav().FFmpegError) as error:
            self.problem = self.problem or f"{self.path} lacks its end: {error.strerror}"
        if self._writer is None:
            self.path.unlink()


class Page:
    """A page for browsers of this machine: / with the pictures as motion JPEG, /stream.mjpeg,
    /frame.jpg and /state (JSON)."""

    def __init__(self, port: int, title: str):
        """``port``: 0 takes a free one.

        Raises:
            UserError: the port is taken.
        """
        self.title = title
        self.jpeg: bytes | None = None
        self.state = "waiting for the first frame"
        self.count, self.ended = 0, False
        self.changed = threading.Condition()
        self.watching = threading.BoundedSemaphore(_WATCHING)
        try:
            self._server = _Server(("127.0.0.1", port), self)
        except (OSError, OverflowError) as error:
            raise UserError(f"--page {port}: {error}; choose another port") from error
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def show(self, rgb: np.ndarray, at: float) -> bool:
        jpeg = encode_picture(rgb, "JPEG")
        with self.changed:
            self.jpeg, self.count = jpeg, self.count + 1
            self.changed.notify_all()
        return True

    def tell(self, state: str) -> None:
        """Show a line about speed and latency."""
        self.state = state

    def after(self, sent: int) -> tuple[int, bytes | None]:
        """Number and JPEG of the newest picture, once it is later than number ``sent``, or once
        browsers need one again; None at the end."""
        with self.changed:
            self.changed.wait_for(lambda: self.count > sent or self.ended, _LATE)
            while self.jpeg is None and not self.ended:
                self.changed.wait()
            return self.count, None if self.ended else self.jpeg

    def close(self) -> None:
        with self.changed:
            self.ended = True
            self.changed.notify_all()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], page: Page):
        self.page = page
        super().__init__(address, _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that goes away is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 30

    def do_GET(self) -> None:
        page = self.server.page
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if host not in ("127.0.0.1", "localhost"):  # a name that points here from elsewhere
            self._send(403, "text/plain", b"this page answers to 127.0.0.1 and localhost")
        elif self.path == "/":
            self._send(200, "text/html; charset=utf-8", _html(page.title).encode())
        elif self.path == "/state":
            self._send(200, "application/json", json.dumps({"state": page.state}).encode())
        elif self.path == "/frame.jpg" and page.jpeg is not None:
            self._send(200, "image/jpeg", page.jpeg)
        elif self.path == "/stream.mjpeg":
            if not page.watching.acquire(blocking=False):
                self._send(503, "text/plain", b"too many are watching")
                return
            try:
                self._stream(page)
            finally:
                page.watching.release()
        else:
            self._send(404, "text/plain", b"there is nothing here, or no frame as yet")

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, page: Page) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        # browsers show a picture when the boundary after it has come
        self.wfile.write(b"--frame\r\n")
        sent = 0
        while True:
            sent, jpeg = page.after(sent)
            if jpeg is None:
                return
            self.wfile.write(
                b"Content-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n--frame\r\n"
                % (len(jpeg), jpeg)
            )

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


def _html(title: str) -> str:
    title = html.escape(title)
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }}
body {{ margin: 0 auto; max-width: 80rem; padding: 1rem }}
h1 {{ font-size: 1.3rem; overflow-wrap: anywhere }}
img {{ display: block; max-width: 100%; min-height: 4rem; background: #8882 }}
</style>
<h1>{title}</h1>
<img src="/stream.mjpeg" alt="the live picture in colour">
<p id="state" role="status"></p>
<script>
const line = document.getElementById("state");
async function update() {{
  try {{ line.textContent = (await (await fetch("/state")).json()).state; }}
  catch {{ line.textContent = "cmmfnet live has ended"; }}
}}
update();
setInterval(update, 1000);
</script>
</html>
"""
