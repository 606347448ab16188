"""Where the frames of a video come from: a video file, a sequence of a camera, or a folder or glob
of frames."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmmfnet.files.errors import UserError
from cmmfnet.files.pictures import RAW_FILES, THERMAL_FILES, is_result, list_sources
from cmmfnet.files.video_reader import Picture, VideoReader
from cmmfnet.thermal.cameras.reading import Reading
from cmmfnet.thermal.decode import is_known
from cmmfnet.thermal.frame import Thermal, read_thermal, thermal_of
from cmmfnet.thermal.limits import ThermalFileError
from cmmfnet.thermal.sequence import open_sequence

if TYPE_CHECKING:
    from cmmfnet.colorizer.steady import SteadyFrame

_CLOCK = Fraction(1, 90_000)
"""Time base of sequences that have time stamps in seconds."""


@dataclass(frozen=True, eq=False)
class Shot:
    """One thermal frame with its time stamp, and the same frame made ready."""

    index: int
    pts: int
    duration: int | None
    thermal: Thermal
    ready: SteadyFrame | None = None


@dataclass(eq=False)
class Source:
    """Where frames come from: ``items`` gives a ``Shot`` for each, and packets to copy.

    ``problems`` is filled while they are read.
    """

    items: Iterator[Any]
    time_base: Fraction
    rate: Fraction | None
    problems: list[str]
    total: int | None = None
    reader: VideoReader | None = None


@contextlib.contextmanager
def open_source(
    source: str, reading: dict[str, Any], fps: float | None, *, subtitles: bool = True
) -> Iterator[Source]:
    """Open a video, a sequence of a camera, or a folder or glob of frames.

    Args:
        reading: options of ``read_thermal``.
        fps: frames a second of frames without time stamps.
        subtitles: whether those of a video are copied.

    Raises:
        UserError: nothing that can be read, or ``fps`` is missing or one too many.
    """
    path = Path(source)
    if not path.is_file():
        if not path.is_dir() and path.exists():
            raise UserError(f"{source} is not a regular file; give a video file")
        yield _folder(source, reading, fps)
    elif reading["raw"] is not None or is_known(source):
        with open_sequence(path, **reading) as frames:
            yield _sequence(source, frames, fps)
    else:
        if fps is not None:
            raise UserError(f"{source} has time stamps of its own; leave out --fps")
        with path.open("rb") as file:
            reader = VideoReader(file, source, reading["max_pixels"], subtitles=subtitles)
            try:
                if reader.left_out:
                    warnings.warn(
                        f"{source}: left out of the result: {', '.join(reader.left_out)}",
                        stacklevel=2,
                    )
                yield Source(
                    _frames_of(reader, reading),
                    reader.time_base,
                    reader.rate,
                    reader.problems,
                    reader.frames or None,
                    reader,
                )
            finally:
                reader.close()


def _frames_of(reader: VideoReader, reading: dict[str, Any]) -> Iterator[Any]:
    palette, kelvin = reading["palette"], reading["kelvin_per_count"]
    index = 0
    for item in reader.items():
        if isinstance(item, Picture):
            name = reader.name if index == 0 else f"{reader.name}, frame {index}"
            thermal = thermal_of(Reading(item.pixels), name, palette, kelvin)
            item = Shot(index, item.pts, item.duration, thermal)
            index += 1
        yield item


def _sequence(source: str, frames: Iterator[Any], fps: float | None) -> Source:
    first = next(frames)
    frames = itertools.chain([first], frames)
    problems: list[str] = []
    if fps is not None:
        rate = _exact_rate(fps)
        shots = (Shot(frame.index, frame.index, 1, frame.thermal) for frame in frames)
        return Source(_whole(shots, problems), 1 / rate, rate, problems)
    if first.time is None:
        raise UserError(f"{source} has no time stamps; add --fps, such as --fps 30")
    return Source(_whole(_timed(frames), problems), _CLOCK, None, problems)


def _timed(frames: Iterator[Any]) -> Iterator[Shot]:
    """Frames with time stamps in units of ``_CLOCK``, each later than the one before; the last one
    is shown as long as the one before it."""
    waiting, last, length = None, -1, round(Fraction(1, 30) / _CLOCK)
    for frame in frames:
        pts = max(last + 1, round((frame.time or 0) / _CLOCK))
        if waiting is not None:
            length = pts - last
            yield replace(waiting, duration=length)
        waiting, last = Shot(frame.index, pts, None, frame.thermal), pts
    if waiting is not None:
        yield replace(waiting, duration=length)


def _whole(shots: Iterator[Shot], problems: list[str]) -> Iterator[Shot]:
    """``shots`` up to one that is damaged, or of another size than the first."""
    size = None
    try:
        for shot in shots:
            size = size or shot.thermal.values.shape
            if shot.thermal.values.shape != size:
                raise ThermalFileError(
                    f"{shot.thermal.name}: frame of {_by(shot.thermal)} pixels; those before it "
                    f"have {size[1]} x {size[0]}"
                )
            yield shot
    except ThermalFileError as error:
        problems.append(str(error))


def _folder(source: str, reading: dict[str, Any], fps: float | None) -> Source:
    suffixes: Sequence[str] = RAW_FILES if reading["raw"] is not None else THERMAL_FILES
    files = [file for file in list_sources(source, suffixes) if not is_result(file)]
    if not files:
        raise UserError(f"all pictures in {source} are results of cmmfnet; give thermal frames")
    if fps is None:
        raise UserError(f"{source} has no time stamps; add --fps, such as --fps 30")
    rate = _exact_rate(fps)
    problems: list[str] = []
    return Source(_stills(files, reading, problems), 1 / rate, rate, problems, len(files))


def _stills(files: Sequence[Path], reading: dict[str, Any], problems: list[str]) -> Iterator[Shot]:
    """The frames of a folder. One that cannot be used leaves a gap, in which the frame before it
    stays."""
    size = None
    for index, file in enumerate(files):
        try:
            thermal = read_thermal(file, **reading)
            size = size or thermal.values.shape
            if thermal.values.shape != size:
                raise ThermalFileError(
                    f"{file}: frame of {_by(thermal)} pixels; the first has {size[1]} x {size[0]}"
                )
        except (ThermalFileError, OSError) as error:
            problems.append(str(error))
            continue
        yield Shot(index, index, 1, thermal)


def _by(thermal: Thermal) -> str:
    height, width = thermal.values.shape
    return f"{width} x {height}"


def _exact_rate(fps: float) -> Fraction:
    """29.97 -> 30000/1001, as broadcast rates are meant; others as they are."""
    broadcast = Fraction(round(fps) * 1000, 1001)
    if round(fps) and abs(float(broadcast) - fps) < 0.004:
        return broadcast
    return Fraction(fps).limit_denominator(1001)
