"""``cmmfnet live``: a thermal camera in colour, as it comes."""

from __future__ import annotations

import contextlib
import re
import signal
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cmmfnet.colorizer.base import NIGHT_NOTE
from cmmfnet.colorizer.capture import Arrived, Capture
from cmmfnet.colorizer.live_outputs import (
    Output,
    Page,
    PictureFile,
    PictureFolder,
    Recording,
    Window,
)
from cmmfnet.colorizer.options import check_options, open_for_text
from cmmfnet.colorizer.steady import SteadyFrames
from cmmfnet.colorizer.video import grey_picture
from cmmfnet.colorizer.video_options import is_video_name
from cmmfnet.colorizer.warned import few_warnings
from cmmfnet.files.counted import counted
from cmmfnet.files.errors import UserError
from cmmfnet.files.pictures import PICTURES, check_folder_name
from cmmfnet.files.stream import is_stream, public_name
from cmmfnet.files.video import choose_codec, container_of
from cmmfnet.thermal.limits import MAX_PIXELS, ThermalFileError
from cmmfnet.thermal.stretch import parse_span

if TYPE_CHECKING:
    from cmmfnet.colorizer.base import FrameColorizer

_RECENT = 30
"""Frames whose latency and speed are shown."""
_SAY, _SAY_TO_FILE = 1.0, 60.0
"""Seconds between two lines about speed and latency, on a terminal and elsewhere."""
_SILENT = 2.0
"""Seconds without a frame after which the picture that is shown is called an old one."""
_NIGHT = 10
"""Frames in a row that must look like night before that is said."""


@dataclass
class LiveReport:
    """What became of a live source."""

    source: str
    frames: int = 0
    dropped: int = 0
    failed: int = 0
    reconnects: int = 0
    seconds: float = 0.0
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=100_000))
    problems: list[str] = field(default_factory=list)

    @property
    def exit_status(self) -> int:
        return 1 if self.problems else 0

    def __str__(self) -> str:
        frames = counted(self.frames, "frame")
        parts = [f"{self.source}: coloured {frames} in {self.seconds:.0f} s"]
        if self.latencies:
            middle = statistics.median(self.latencies)
            most = float(np.percentile(self.latencies, 95))
            parts.append(f"latency {middle * 1e3:.0f} ms, 95 % within {most * 1e3:.0f} ms")
        parts.append(f"dropped {self.dropped} older ones")
        if self.failed:
            parts.append(f"{self.failed} could not be read")
        if self.reconnects:
            parts.append(f"connected again {counted(self.reconnects, 'time')}")
        return "; ".join(parts)


def live(
    source: str,
    *,
    out: str | None = None,
    page: int | None = None,
    record: str | None = None,
    text: str | None = None,
    model: str = "cmmfnet-small",
    device: str = "auto",
    span: str | None = None,
    palette: str | None = None,
    smooth: float = 0.9,
    side_by_side: bool = False,
    frames: int | None = None,
    timeout: float = 10.0,
    retries: int = 10,
    guidance: float = 1.0,
    max_pixels: int = MAX_PIXELS,
    raw: str | None = None,
    kelvin_per_count: float | None = None,
) -> LiveReport:
    """Colour a thermal camera as it comes: the newest frame is coloured, and older ones that wait
    are dropped. It shows a window, if nothing else is asked for. Ctrl-C ends it.

    Args:
        source: an address (rtsp://, http:// with motion JPEG, or what else FFmpeg reads), a camera
            (/dev/video0), or a folder that fills up with thermal files
        out: a picture file, which always holds the newest picture, or a folder for all pictures
        page: port of a page for browsers of this machine, http://127.0.0.1:PORT/; 0 takes a free
            one
        record: also write a video (.mp4, .mov, .mkv, .webm); .mkv survives a power cut
        text: what the picture shows, as for `cmmfnet colorize`
        model: a name of `cmmfnet models`, a .safetensors or .onnx file, or hf:OWNER/REPO@COMMIT
        device: auto, cpu, cuda, cuda:1 or mps
        span: LOW,HIGH in the frames' own units; without it each frame's own span, smoothed
        palette: false-colour palette of the frames, e.g. ironbow; auto finds it
        smooth: how slowly stretch and colours follow the frames, 0 (each by itself) to 1
        side_by_side: show the stretched thermal frame left of the colours
        frames: end after this number of frames
        timeout: seconds to wait for a connection, and for each frame of a stream
        retries: attempts in a row to connect again before the source is given up
        guidance: how strongly a text moves the colours, 1 as trained, up to 4
        max_pixels: larger frames are refused
        raw: the files hold plain numbers, WIDTHxHEIGHT,TYPE, e.g. 640x512,uint16le
        kelvin_per_count: counts become degrees Celsius by count * this - 273.15

    Raises:
        UserError: the request makes no sense, no connection, or no display.
        FileExistsError: ``record`` exists.
    """
    check_options(text, span, palette, None, max_pixels, raw)
    _check(source, out, page, record, smooth, frames, timeout, retries, raw)
    reading = {
        "palette": palette,
        "max_pixels": max_pixels,
        "raw": raw,
        "kelvin_per_count": kelvin_per_count,
    }
    name = public_name(source)
    report = LiveReport(name)
    with few_warnings(), contextlib.ExitStack() as stack, _ended_by_signals():
        capture = Capture(source, reading, timeout=timeout, retries=retries)
        stack.callback(capture.close)
        colorizer = open_for_text(text, model, device, guidance)
        outputs, recording = _open_outputs(stack, out, page, record, name, colorizer)
        steady = SteadyFrames(colorizer, smooth, None if span is None else parse_span(span))
        shower = _Shower(colorizer, steady, text, outputs, report, capture, side_by_side)
        started = time.perf_counter()
        try:
            while frames is None or report.frames < frames:
                arrived = capture.take(0.1)
                shower.say_problems()
                if arrived is None:
                    shower.say_silence()
                    if not all(each.alive() for each in outputs if isinstance(each, Window)):
                        break
                elif not shower.show(arrived):
                    break
        except KeyboardInterrupt:
            pass  # the usual end
        except (UserError, OSError) as error:  # OSError: a place that cannot be written any more
            report.problems.append(str(error))
        finally:
            report.seconds = time.perf_counter() - started
            report.dropped, report.reconnects = capture.dropped, capture.reconnects
            report.failed += capture.damaged
            shower.end_line()
    if recording is not None:
        if recording.problem:
            report.problems.append(recording.problem)
        frames = counted(recording.frames, "frame")
        print(f"cmmfnet: {recording.path} holds {frames}", file=sys.stderr)
    for problem in report.problems:
        print(f"cmmfnet: failed: {problem}", file=sys.stderr)
    print(report)
    return report


class _Shower:
    """Colours frames and shows them."""

    def __init__(
        self,
        colorizer: FrameColorizer,
        steady: SteadyFrames,
        text: str | None,
        outputs: list[Output],
        report: LiveReport,
        capture: Capture,
        side_by_side: bool,
    ):
        self.colorizer, self.steady, self.text, self.outputs = colorizer, steady, text, outputs
        self.report, self.capture, self.side_by_side = report, capture, side_by_side
        self.shown: deque[float] = deque(maxlen=_RECENT)
        self.signs = [each for each in outputs if isinstance(each, Window | Page)]
        self.came, self.said = time.perf_counter(), 0.0
        self.reasons: dict[str, float] = {}  # a kind of reason -> when it was printed
        # tags that come out of the colouring pass cost nothing
        self.asks_night = not text and colorizer.traits.predicts_tags and colorizer.traits.heads
        self.dark = 0
        self.terminal = sys.stderr.isatty()

    def show(self, arrived: Arrived) -> bool:
        """Colour and show a frame; False: the user has closed a window."""
        self.came = time.perf_counter()
        try:
            ready = self.steady.prepare(arrived.read())
        except ThermalFileError as error:
            self.report.failed += 1
            reason = str(error).replace(f", frame {arrived.index}", "")
            self._say(f"left out: {reason}")
            return True
        colours, seen = self.colorizer.run([ready.frame], [self.text], tags=self.asks_night)
        if seen[0] is not None:
            self._note_night(seen[0].night)
        rgb = self.steady.finish(colours[0], ready)
        if self.side_by_side:
            rgb = np.hstack([grey_picture(ready.frame.full), rgb])
        open_ = all([each.show(rgb, arrived.at) for each in self.outputs])
        now = time.perf_counter()
        self.report.frames += 1
        self.report.latencies.append(now - arrived.at)
        self.shown.append(now)
        self._tell(self._state(), now)
        return open_

    def _note_night(self, dark: bool) -> None:
        """Say once that the camera looks at night, after ``_NIGHT`` such frames in a row."""
        self.dark = self.dark + 1 if dark else 0
        if self.dark == _NIGHT:
            self.asks_night = False
            self._say(f"the camera {NIGHT_NOTE}")

    def say_problems(self) -> None:
        """Print why files or connections failed, each kind of reason once a minute."""
        while self.capture.problems:
            self._say(self.capture.problems.popleft())

    def say_silence(self) -> None:
        """Tell where no frame has come for long, as the last picture stays where it is shown."""
        now = time.perf_counter()
        if now - self.came >= _SILENT:
            lost = ": lost, connecting again" if self.capture.lost else ""
            self._tell(f"no new frame for {now - self.came:.0f} s{lost}", now)

    def _tell(self, state: str, now: float) -> None:
        for each in self.signs:
            each.tell(state)
        if now - self.said >= (_SAY if self.terminal else _SAY_TO_FILE):
            self.said = now
            self._print(state)

    def end_line(self) -> None:
        """End the line about speed and latency."""
        if self.terminal and self.said:
            print(file=sys.stderr)

    def _state(self) -> str:
        recent = [self.report.latencies[-1 - i] for i in range(len(self.shown))]
        parts = []
        if len(self.shown) > 1:
            speed = (len(self.shown) - 1) / (self.shown[-1] - self.shown[0])
            parts.append(f"{speed:.1f} frames/s")
        parts.append(f"latency {statistics.median(recent) * 1e3:.0f} ms")
        parts.append(f"{self.report.frames} frames, {self.capture.dropped} dropped")
        if self.capture.reconnects:
            parts.append(f"connected again {counted(self.capture.reconnects, 'time')}")
        return ", ".join(parts)

    def _say(self, reason: str) -> None:
        kind, now = re.sub(r"[0-9]+", "", reason), time.perf_counter()  # they differ in numbers
        known = kind in self.reasons
        if now - self.reasons.get(kind, -_SAY_TO_FILE) < _SAY_TO_FILE or (
            not known and len(self.reasons) >= 20
        ):
            return
        self.reasons[kind] = now
        self.end_line()
        print(f"cmmfnet: {reason}", file=sys.stderr, flush=True)

    def _print(self, line: str) -> None:
        if self.terminal:
            print(f"\r{line:79}", end="", file=sys.stderr, flush=True)
        else:
            print(f"cmmfnet: {line}", file=sys.stderr, flush=True)


def _check(
    source: str,
    out: str | None,
    page: int | None,
    record: str | None,
    smooth: float,
    frames: int | None,
    timeout: float,
    retries: int,
    raw: str | None,
) -> None:
    for option, value, least, most in (
        ("--page", page, 0, 65535), ("--smooth", smooth, 0, 1), ("--frames", frames, 1, None),
        ("--timeout", timeout, 0.1, 3600), ("--retries", retries, 0, None),
    ):  # fmt: skip
        if value is not None and not least <= value <= (most if most is not None else value):
            upper = f"to {most}" if most is not None else "or more"
            raise UserError(f"{option} is {value}; expected {least} {upper}")
    if is_stream(source) and raw is not None:
        raise UserError("--raw is for files, and a stream says itself what it holds; leave it out")
    if record is not None:
        choose_codec(container_of(record), "auto", record)
    if out is None:
        return
    if is_video_name(out):
        raise UserError(f"{out} is a video; write it with --record {out}")
    folder = Path(out).parent
    if Path(out).suffix.lower() not in PICTURES:
        folder = Path(out)
        check_folder_name(folder)
    if folder.resolve() == Path(source).resolve():
        raise UserError(f"the results would be read as frames of {source}; choose another place")


def _open_outputs(
    stack: contextlib.ExitStack,
    out: str | None,
    page: int | None,
    record: str | None,
    name: str,
    colorizer: FrameColorizer,
) -> tuple[list[Output], Recording | None]:
    """The places that were asked for, a window where there is none; each is closed by ``stack``."""
    outputs: list[Output] = []

    def add(output: Any) -> Any:
        stack.callback(output.close)
        outputs.append(output)
        return output

    comment = f"colours guessed from thermal video by the model {colorizer.name}"
    notes = {"Comment": comment, "Model": colorizer.name}
    if page is not None:
        print(f"cmmfnet: {add(Page(page, name)).address}", file=sys.stderr, flush=True)
    if out is not None:
        is_file = Path(out).suffix.lower() in PICTURES
        add(PictureFile(Path(out), notes) if is_file else PictureFolder(Path(out), notes))
    if page is None and out is None and record is None:
        add(Window(name))
    return outputs, add(Recording(Path(record), comment)) if record is not None else None


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM, which services are ended by, acts like Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
