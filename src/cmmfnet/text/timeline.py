"""Texts by time: the text of each frame of a sequence, from a small file. No torch.

    # one clip of a drive
    fps: 30
    0:00-0:12 a street; 0:12-0:40.5 a wood
    0:40.5- a street at night

Times have a colon (minutes:seconds or hours:minutes:seconds, with decimals); a span holds from its
first time up to, but not at, its second. Numbers without a colon are frames, counted from 0, and
both ends are in: ``0-299 a street``. Without a second number a span has no end. One file has times
or frames, not both. A line that starts with # is a comment.
"""

from __future__ import annotations

import bisect
import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from cmmfnet.files.errors import UserError

_POINT = r"\d+(?::\d+){1,2}(?:\.\d+)?|\d+"
_SPAN = re.compile(rf"({_POINT})\s*[-–]\s*({_POINT})?(?=\s|$)")
_FPS = re.compile(r"fps\s*[:=]?\s*(\S+)$", re.IGNORECASE)
_NEXT = re.compile(rf";\s*(?=(?:{_POINT})\s*[-–])")


class Span(NamedTuple):
    """From ``start`` up to, not at, ``end``, in seconds or frames."""

    start: float
    end: float
    text: str
    line: int


@dataclass(frozen=True)
class Timeline:
    """The content of a file of times.

    Attributes:
        spans: in the order of time, without overlaps.
        in_frames: whether their ends are frames; else they are seconds.
        fps: frames a second as the file says, or None.
    """

    spans: list[Span] = field(default_factory=list)
    in_frames: bool = False
    fps: float | None = None

    def at(self, frame: int, fps: float | None = None) -> Span | None:
        """The span of a frame, or None where no text is given.

        Args:
            frame: counted from 0.
            fps: frames a second of the sequence, such as a video's own; it overrides the file's.

        Raises:
            UserError: the spans are in seconds and nothing says how many frames a second has.
        """
        place = float(frame)
        if not self.in_frames:
            rate = fps or self.fps
            if rate is None:
                raise UserError(
                    "its spans are times, and pictures have none: write a line such as 'fps: 30' "
                    "at its start, or frames "
                    "in place of times (0-299 a street)"
                )
            place = (frame + 1e-6) / rate  # frame 360 at 29.97 is at 12.012, not before
        return self._holding(place)

    def at_time(self, frame: int, seconds: float) -> Span | None:
        """The span of a video's frame, which has a time stamp, or None where no text is given."""
        return self._holding(float(frame) if self.in_frames else seconds + 1e-6)

    def _holding(self, place: float) -> Span | None:
        before = bisect.bisect_right(self.spans, place, key=lambda span: span.start)
        return self.spans[before - 1] if before and place < self.spans[before - 1].end else None


def is_timeline(text: str) -> bool:
    """Whether the first line that is neither empty nor a comment is a span or the frame rate."""
    first = next((line for _, line in _lines(text)), "")
    return bool(_SPAN.match(first) or _FPS.match(first))


def read_timeline(text: str, check: Callable[[str], None] = lambda text: None) -> Timeline:
    """Read the content of a file of times.

    Args:
        text: the content; see the module's example.
        check: raises ValueError for a text that cannot be used.

    Raises:
        UserError: a line is not as it should be, two spans overlap, or there is none.
    """
    spans: list[Span] = []
    units: dict[bool, int] = {}
    fps = None
    for number, line in _lines(text):
        if match := _FPS.match(line):
            fps = _rate(match[1], number)
            continue
        for piece in _NEXT.split(line):
            span, in_frames = _span(piece.strip().rstrip(";").strip(), number)
            try:
                check(span.text)
            except ValueError as error:
                raise UserError(f"line {number}: {error}") from error
            units.setdefault(in_frames, number)
            spans.append(span)
    if len(units) == 2:
        raise UserError(
            f"line {units[False]} has times (with a colon), line {units[True]} has frames; use "
            "one of them"
        )
    if not spans:
        raise UserError(
            "it has no spans; expected lines such as '0:00-0:12 a street' or '0-299 a street'"
        )
    spans.sort(key=lambda span: span.start)
    for one, other in itertools.pairwise(spans):
        if other.start < one.end:
            first, second = sorted((one.line, other.line))
            raise UserError(
                f"the spans of line {first} and line {second} overlap; each frame has one text"
            )
    return Timeline(spans, True in units, fps)


def _lines(text: str) -> list[tuple[int, str]]:
    lines = ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1))
    return [(number, line) for number, line in lines if line and not line.startswith("#")]


def _span(piece: str, line: int) -> tuple[Span, bool]:
    match = _SPAN.match(piece)
    if match is None:
        raise UserError(
            f"line {line}: {piece[:60]!r}; expected a span and its text, such as '0:00-0:12 a "
            "street'"
        )
    start, end = match[1], match[2]
    text = piece[match.end() :].strip()
    if not text:
        raise UserError(
            f"line {line}: no text after {match[0]!r}; leave the line out where no text holds"
        )
    in_frames = ":" not in start
    if end is None:
        return Span(_place(start, line), math.inf, text, line), in_frames
    if in_frames != (":" not in end):
        raise UserError(
            f"line {line}: {match[0]!r} mixes a time (with a colon) and a frame; use two of one "
            "kind"
        )
    first, last = _place(start, line), _place(end, line)
    if last < first or (last == first and not in_frames):
        raise UserError(f"line {line}: {match[0]!r} ends before it starts")
    return Span(first, last + 1 if in_frames else last, text, line), in_frames


def _place(written: str, line: int) -> float:
    if len(written) > 20:
        raise UserError(f"line {line}: {written[:20]}... is too long for a time or a frame")
    parts = written.split(":")
    if len(parts) > 1 and any(float(part) >= 60 for part in parts[1:]):
        raise UserError(
            f"line {line}: {written!r} is no time; minutes and seconds after a colon are below 60"
        )
    seconds = 0.0
    for part in parts:
        seconds = 60 * seconds + float(part)
    return seconds


def _rate(written: str, line: int) -> float:
    try:
        rate = float(written)
    except ValueError:
        rate = math.nan
    if not 0 < rate <= 100_000:
        raise UserError(
            f"line {line}: fps is {written[:20]!r}; expected frames a second, such as 'fps: 30'"
        )
    return rate
