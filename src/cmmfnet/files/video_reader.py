"""Video files, read: frames with their time stamps, and the packets of sound and subtitles beside
them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import IO, Any

import numpy as np

from cmmfnet.files.video import VideoError, pyav, reason_of, whole_frames
from cmmfnet.files.video_pixels import pixels_of, upright

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
"""First bytes of a Matroska file, and of the element that holds all the others."""


@dataclass(frozen=True, eq=False)
class Picture:
    """One frame of a video.

    Attributes:
        pixels: (H, W), or (H, W, 3) for RGB that is not grey; uint8, or uint16 for more bits, as
            stored (a 10-bit frame has values 0 to 1023); float32 for float video. Turned upright.
        pts: time stamp, in the stream's time base.
        duration: in the same unit; None where the file does not say.
    """

    pixels: np.ndarray
    pts: int
    duration: int | None


class VideoReader:
    """A video file, read once from its start.

    Attributes:
        time_base: seconds of one unit of a time stamp.
        rate: frames a second, None where the file does not say.
        frames: number of frames that the file claims; 0 where it does not say.
        aspect: width of a pixel by its height, upright.
        copied: streams of sound and subtitles, whose packets ``items`` gives.
        left_out: further streams, in words.
        problems: filled while reading: why there are fewer frames than the file claims.
    """

    def __init__(self, file: IO[bytes], name: str, max_pixels: int, *, subtitles: bool = True):
        """
        Args:
            file: open for reading; must stay open.
            name: of the video, for messages.
            max_pixels: frames of more pixels are refused before they are decoded.
            subtitles: whether they are copied; drones write their places into them.

        Raises:
            VideoError: not a video, or damaged at its start.
        """
        self.name, self.problems = name, []
        self._max_pixels = max_pixels
        self._missing = missing_bytes(file)
        av = pyav()
        self._av = av

        def refuse(url: str, *_: Any) -> None:
            raise VideoError(f"{name}: a playlist that names other files; give the video itself")

        try:
            self._container = av.open(
                file,
                # a playlist must not open files or addresses of its choice
                io_open=refuse,
                container_options={"protocol_whitelist": "none"},
                metadata_errors="replace",
            )
        except VideoError:
            raise
        except (av.FFmpegError, OSError, ValueError) as error:
            raise VideoError(
                f"{name}: no video that can be read ({reason_of(error)}); expected a complete "
                "video file such as MP4, MKV or AVI. Copy or export it again"
            ) from error
        stream = self._container.streams.best("video")
        if stream is None or stream.codec_context is None:
            found = ", ".join(s.type for s in self._container.streams) or "no streams"
            self.close()
            raise VideoError(f"{name}: no video that can be decoded; found {found}")
        self._stream = stream
        self._check_size(stream.width, stream.height)
        whole_frames(stream.codec_context)
        self.time_base = stream.time_base
        self.rate = stream.average_rate or stream.guessed_rate
        self.frames = stream.frames
        others = [each for each in self._container.streams if each.index != stream.index]
        kinds = ("audio", "subtitle") if subtitles else ("audio",)
        self.copied = [s for s in others if s.type in kinds and s.codec_context]
        kept = {s.index for s in self.copied}
        self.left_out = [f"stream {s.index} ({s.type})" for s in others if s.index not in kept]
        self.aspect = stream.sample_aspect_ratio or Fraction(1)

    def items(self) -> Iterator[Any]:
        """Every ``Picture`` and every packet of ``copied``, in the order of the file.

        Damage ends the pictures; its description goes to ``problems``.
        """
        packets = shown = 0
        last: int | None = None
        size: tuple[int, ...] | None = None
        damaged = 0
        wanted = [self._stream, *self.copied]
        try:
            for packet in self._container.demux(wanted):
                if packet.stream.index != self._stream.index:
                    if packet.dts is not None:
                        yield packet
                    continue
                packets += packet.size > 0
                for frame in packet.decode():
                    self._check_size(frame.width, frame.height)
                    pixels, turned = upright(pixels_of(frame), frame)
                    if size is None:
                        size = pixels.shape[:2]
                        self.aspect = 1 / self.aspect if turned else self.aspect
                    elif size != pixels.shape[:2]:
                        raise VideoError(
                            f"{self.name}: frame {shown} has {_by(pixels.shape[:2])} pixels, "
                            f"those before it have {_by(size)}; cut the video there"
                        )
                    damaged += bool(frame.is_corrupt)
                    pts = frame.pts
                    if pts is None or (last is not None and pts <= last):
                        pts = self._next(last, pts)
                    last = pts
                    shown += 1
                    yield Picture(pixels, pts, frame.duration or None)
        except VideoError as error:
            self.problems.append(str(error))
        except (self._av.FFmpegError, OSError, ValueError, MemoryError) as error:
            self.problems.append(
                f"{self.name}: damaged after {shown} frames ({reason_of(error)}); copy it again"
            )
        else:
            self._check_length(packets, shown, last)
        if damaged:
            self.problems.append(f"{self.name}: {damaged} of its frames are damaged")
        if not shown and not self.problems:
            self.problems.append(f"{self.name}: a video without a frame")

    def close(self) -> None:
        """Close the decoders; the file stays open."""
        self._container.close()

    def _next(self, last: int | None, found: int | None) -> int:
        """A time stamp where a frame has none, or not a later one than the frame before."""
        if last is None:
            return found or 0
        if found is not None:
            return last + 1
        return last + max(1, round(1 / (self.rate or 25) / self.time_base))

    def _check_length(self, packets: int, shown: int, last: int | None) -> None:
        """Note a file that ends early."""
        if self._missing:
            self.problems.append(
                f"{self.name}: truncated: {self._missing} bytes are missing at its end, it ends "
                f"after {shown} frames; copy it again"
            )
        elif self._missing is not None:
            return  # complete; the duration of Matroska counts from 0, not from the first frame
        elif self.frames > packets:
            self.problems.append(
                f"{self.name}: truncated: it ends after {shown} of {self.frames} frames; copy it "
                "again"
            )
        elif last is not None and not self.frames and self._container.duration:
            start = Fraction(self._container.start_time or 0, 1_000_000)
            end = start + Fraction(self._container.duration, 1_000_000)
            gap = end - last * self.time_base
            if gap > max(Fraction(3, 2), (end - start) / 20) and not self.copied:
                self.problems.append(
                    f"{self.name}: truncated: its frames end {float(gap):.1f} s before its end; "
                    "copy it again"
                )

    def _check_size(self, width: int, height: int) -> None:
        if width < 1 or height < 1 or width * height > self._max_pixels:
            raise VideoError(
                f"{self.name}: frames of {width} x {height} pixels; expected 1 to "
                f"{self._max_pixels}. If you trust the file, use --max-pixels {width * height}"
            )


def missing_bytes(file: IO[bytes]) -> int | None:
    """How many bytes a Matroska or WebM file lacks, by the size in its header.

    FFmpeg ends such a file where it breaks off, without an error. The file is left at its start.

    Returns:
        0 for a complete file; None for another container, or one that was still being recorded
        and has no size.
    """
    head = file.read(4096)
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if not head.startswith(_EBML):
        return None
    place = len(_EBML)
    length, place = _ebml_size(head, place)
    if length is None or head[place + length : place + length + 4] != _SEGMENT:
        return None
    length, place = _ebml_size(head, place + length + 4)
    return None if length is None else max(0, place + length - size)


def _ebml_size(head: bytes, place: int) -> tuple[int | None, int]:
    """The size field of an EBML element (RFC 8794, section 4), None for "unknown", and the place
    behind it."""
    first = head[place] if place < len(head) else 0
    width = 9 - first.bit_length()  # the leading zeros say how many bytes follow
    field = head[place : place + width]
    if width > 8 or len(field) < width:
        return None, place
    mask = (1 << 7 * width) - 1
    value = int.from_bytes(field, "big") & mask
    return None if value == mask else value, place + width


def _by(size: tuple[int, ...]) -> str:
    return f"{size[1]} x {size[0]}"
