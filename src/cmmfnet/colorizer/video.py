"""``cmmfnet colorize in.mp4 -o out.mp4``: a video, a sequence of a camera or a folder of frames
into a video. Reading, colouring, finishing and writing overlap in four threads."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cmmfnet.colorizer.memory import halving
from cmmfnet.colorizer.steady import SteadyFrame, SteadyFrames
from cmmfnet.colorizer.video_options import VideoOptions, VideoReport
from cmmfnet.colorizer.video_source import Shot, Source, open_source
from cmmfnet.colorizer.warned import few_warnings
from cmmfnet.files.atomic import atomic_write, clear_parts
from cmmfnet.files.errors import UserError
from cmmfnet.files.page import as_grey
from cmmfnet.files.video import VideoError, pyav
from cmmfnet.files.video_writer import VideoWriter
from cmmfnet.text.prompt_files import MAX_FILE_BYTES, check_prompt, read_text
from cmmfnet.text.timeline import Timeline, is_timeline, read_timeline
from cmmfnet.thermal.limits import ThermalFileError
from cmmfnet.thermal.stretch import parse_span

if TYPE_CHECKING:
    from cmmfnet.colorizer.base import FrameColorizer

Watch = Callable[[int, int | None], None]
_PIXELS_AHEAD, _ITEMS_AHEAD = 16_000_000, 16
"""Of frames that wait between two threads, at most, but at least two frames."""


def colorize_video(
    source: str,
    out: str,
    open_model: Callable[[], FrameColorizer],
    *,
    text: str | None,
    text_file: str | None,
    span: str | None,
    reading: dict[str, Any],
    batch_size: int | None,
    overwrite: bool,
    options: VideoOptions,
    watch: Watch | None = None,
    subtitles: bool = True,
) -> VideoReport:
    """Colour a video, a sequence of a camera, or a folder or glob of frames, as one video.

    Args:
        open_model: opens the model, after everything else has been checked.
        reading: options of ``read_thermal``.
        watch: called with the frames done and the frames in all (None if unknown), before the first
            frame and from time to time; what it raises ends the video, and nothing is written.
            Then there is no progress bar, and nothing is printed.
        subtitles: whether those of a video are copied; drones write their places into them.
        Others as for ``cmmfnet colorize``.

    Raises:
        UserError: the request makes no sense, or not one frame can be read; nothing was written.
        FileExistsError: the result exists.
        OSError: the disk is full; nothing was written.
        KeyboardInterrupt: the frames until then are in NAME.partial.mp4, as the message says.
    """
    pyav()
    options.check(out)
    result = Path(out)
    if Path(source).is_file() and Path(source).resolve() == result.resolve():
        raise UserError(f"the result would replace the input {source}; choose another name")
    if result.is_dir():
        raise UserError(f"{out} is a folder; name the video, such as {out}/colour.mp4")
    timeline = _read_texts(text_file)
    clear_parts(result.parent)
    report = VideoReport(result)
    # a caller who watches may have threads, and warnings once a process would be lost to them
    once = few_warnings() if watch is None else contextlib.nullcontext()
    with once, contextlib.ExitStack() as stack:
        opened = stack.enter_context(open_source(source, reading, options.fps, subtitles=subtitles))
        if result.exists() and not overwrite:
            raise FileExistsError(f"{out} is there already; --overwrite replaces it")
        colorizer = open_model()
        started = time.perf_counter()
        pipeline = _Pipeline(
            colorizer, opened, report, options, span, batch_size, text, timeline, watch
        )
        try:
            pipeline.run(result)
        finally:
            report.seconds = time.perf_counter() - started
    report.problems += opened.problems
    if not report.frames:
        raise VideoError("; ".join(report.problems))
    if watch is not None:
        return report
    for problem in report.problems:
        print(f"cmmfnet: failed: {problem}", file=sys.stderr)
    if report.problems:
        print(f"cmmfnet: {out} holds {report.frames} frames", file=sys.stderr)
    print(report)
    return report


class _Pipeline:
    def __init__(
        self,
        colorizer: FrameColorizer,
        source: Source,
        report: VideoReport,
        options: VideoOptions,
        span: str | None,
        batch_size: int | None,
        text: str | None,
        timeline: Timeline | None,
        watch: Watch | None,
    ):
        self.colorizer, self.source, self.report, self.options = colorizer, source, report, options
        self.batch = batch_size or colorizer.default_batch
        self.text, self.timeline, self.watch = text, timeline, watch
        # Where the network has all cores, a stage beside it makes all of them wait for one: taking
        # turns costs half as much (docs/video.md)
        self.turn = threading.Lock() if _takes_all_cores(colorizer) else contextlib.nullcontext()
        self.steady = SteadyFrames(
            colorizer, options.smooth, parse_span(span) if span is not None else None
        )

    def run(self, result: Path) -> None:
        """Read, colour and write until the source ends."""
        with contextlib.ExitStack() as stack:
            reading, self.finishing, writing = (
                stack.enter_context(ThreadPoolExecutor(1)) for _ in range(3)
            )
            items = self._prepared()
            waiting: deque[Future] = deque()  # what the writing thread still has to do

            def submit(action: Callable, *arguments: Any) -> None:
                while len(waiting) >= self.depth:
                    waiting.popleft().result()
                waiting.append(writing.submit(action, *arguments))

            try:
                first = next((x for x in self._packets_kept(items)), None)
                if first is None:
                    return
                shape = first.thermal.values.shape
                self.depth = max(2, min(_ITEMS_AHEAD, _PIXELS_AHEAD // (shape[0] * shape[1])))
                shots = _ahead(itertools.chain(self.early, [first], items), self.depth, reading)
                with atomic_write(result, durable=False) as file:
                    writer = self._writer(file, result, shape)
                    try:
                        self._colour(shots, writer, submit)
                    except KeyboardInterrupt as interrupt:
                        writing.shutdown()  # after what it still has to do
                        if not writer.frames:
                            raise KeyboardInterrupt("No frame was written") from interrupt
                        writer.close()
                        kept = _keep_partial(file, result)
                        raise KeyboardInterrupt(
                            f"{kept} holds the first {writer.frames} frames; the next run starts "
                            "at the first one"
                        ) from interrupt
                    while waiting:
                        waiting.popleft().result()
                    writer.close()
                    self.report.frames = writer.frames
                    if writer.lost:
                        self.report.problems.append(
                            f"{writer.lost} packets of sound or subtitles have time stamps out of "
                            "order and were left out"
                        )
            finally:
                for pool in (reading, writing, self.finishing):  # writing waits for finishing
                    pool.shutdown(cancel_futures=True)
                self.report.scenes += self.steady.cuts

    def _packets_kept(self, items: Iterator[Any]) -> Iterator[Shot]:
        """The frames; packets before the first one wait in ``early``, as the file is not open."""
        self.early: list[Any] = []
        for item in items:
            if isinstance(item, Shot):
                yield item
            else:
                self.early.append(item)

    def _prepared(self) -> Iterator[Any]:
        """The source's items, frames ready for the network. Frames that the span leaves out are
        left out until one fits: it may be in another unit than they are."""
        started = refused = False
        try:
            for item in self.source.items:
                if isinstance(item, Shot):
                    try:
                        with self.turn:
                            item = replace(item, ready=self.steady.prepare(item.thermal))
                        started = True
                    except ThermalFileError as error:
                        if started:
                            raise
                        if not refused:
                            self.source.problems.append(str(error))
                        refused = True
                        continue
                yield item
        except ThermalFileError as error:
            self.source.problems.append(str(error))

    def _colour(self, shots: Iterable[Any], writer: VideoWriter, submit: Callable) -> None:
        from tqdm import tqdm

        group: list[Shot] = []
        done, total = 0, self.source.total
        watch = self.watch or (lambda *_: None)

        def run_group() -> None:
            nonlocal done
            for shot, colour in zip(group, halving(self._colours, group), strict=True):
                if isinstance(colour, Exception):
                    raise colour
                finished = self.finishing.submit(self._finished, colour, shot.ready)
                submit(self._write, writer, finished, shot)
            bar.update(len(group))
            done += len(group)
            watch(done, total)
            group.clear()

        watch(0, total)
        quiet = None if self.watch is None else True
        with tqdm(total=total, unit="frame", disable=quiet) as bar:
            for item in shots:
                if not isinstance(item, Shot):
                    submit(writer.packet, item)
                    continue
                group.append(item)
                if len(group) == self.batch:
                    run_group()
            if group:
                run_group()

    def _finished(self, colour: Any, ready: SteadyFrame) -> np.ndarray:
        with self.turn:
            rgb = self.steady.finish(colour, ready)
        if self.options.side_by_side:
            return np.hstack([grey_picture(ready.frame.full), rgb])
        return rgb

    def _write(self, writer: VideoWriter, finished: Future, shot: Shot) -> None:
        picture = finished.result()
        with self.turn:
            writer.picture(picture, shot.pts, shot.duration)

    def _colours(self, shots: Sequence[Shot]) -> Sequence[Any]:
        texts = [self._text_of(shot) for shot in shots]
        with self.turn:
            return self.colorizer.run([shot.ready.frame for shot in shots], texts)[0]

    def _text_of(self, shot: Shot) -> str | None:
        if self.timeline is None:
            return self.text
        found = self.timeline.at_time(shot.index, float(shot.pts * self.source.time_base))
        return found.text if found is not None else self.text

    def _writer(self, file: Any, result: Path, shape: tuple[int, ...]) -> VideoWriter:
        reader = self.source.reader
        height, width = shape
        return VideoWriter(
            file,
            str(result),
            (height, 2 * width if self.options.side_by_side else width),
            time_base=self.source.time_base,
            rate=self.source.rate,
            codec=self.options.codec,
            quality=self.options.quality,
            aspect=reader.aspect if reader else Fraction(1),
            copied=reader.copied if reader else (),
            comment=f"colours guessed from thermal video by the model {self.colorizer.name}",
        )


def _takes_all_cores(colorizer: FrameColorizer) -> bool:
    """Whether PyTorch runs the network on every core that this process may use."""
    torch = sys.modules.get("torch")
    if torch is None or colorizer.device.type != "cpu":
        return False
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return 1 < (cores or 1) <= torch.get_num_threads()


def grey_picture(full: Any) -> np.ndarray:
    """A stretched frame as (H, W, 3) uint8."""
    full = full if isinstance(full, np.ndarray) else full.cpu().numpy()
    return np.repeat(as_grey(full)[:, :, None], 3, axis=2)


_END = object()


def _ahead(items: Iterator[Any], count: int, pool: ThreadPoolExecutor) -> Iterator[Any]:
    """``items``, of which ``count`` are made ahead in the one thread of ``pool``."""
    waiting = deque(pool.submit(next, items, _END) for _ in range(count))
    while (item := waiting.popleft().result()) is not _END:
        waiting.append(pool.submit(next, items, _END))
        yield item


def _keep_partial(file: Any, result: Path) -> Path:
    """Name an unfinished video, which is playable, so that it is no result."""
    partial = result.with_name(f"{result.stem}.partial{result.suffix}")
    file.flush()
    Path(file.name).replace(partial)
    return partial


def _read_texts(path: str | None) -> Timeline | None:
    """The texts by time of a video."""
    if path is None:
        return None
    content = read_text(Path(path), MAX_FILE_BYTES) if Path(path).is_file() else ""
    if not is_timeline(content):
        raise UserError(
            f"--text-file {path}: a video takes a file of times, with lines such as 0:00-0:12 a "
            "street"
        )
    try:
        return read_timeline(content, check_prompt)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
