"""Video files, read and written with PyAV (FFmpeg): frames with their time stamps, and the packets
of sound and subtitles beside them, which are copied.

PyAV comes with ``pip install 'cmmfnet[video]'`` and is imported when a video is opened.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import numpy as np

from cmmfnet.files.errors import UserError

CONTAINERS = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "webm",
}
"""Suffix of a video that can be written -> FFmpeg's name of its container."""
VIDEOS = (*CONTAINERS, ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".wmv", ".flv", ".3gp")
"""Suffixes that are surely videos."""
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
"""First bytes of a Matroska file, and of the element that holds all the others."""
_THREADS = 4
"""Of a codec. Each takes whole frames: with one for each core, which take strips of one frame, a
machine of 16 cores spends most of its time on handing out the strips."""
_GREY_NOISE, _COLOURED_SHARE = 6, 0.01
"""Chroma of a grey video is off by this much (of 255) at most, but for a small overlay."""


class VideoError(UserError):
    """The video cannot be read or written. The message says what was found and what to do."""


@dataclass(frozen=True)
class Codec:
    """A codec that is written: FFmpeg's encoder, and what quality 0 and 100 are in its own terms
    (``crf``); None for a lossless one."""

    encoder: str
    worst_best: tuple[int, int] | None
    options: tuple[tuple[str, str], ...] = ()


# Without frames out of order (bf, bframes): with them, a file of uneven time stamps has a wrong
# duration, which containers count by the order of decoding.
CODECS = {
    "h264": Codec("libx264", (51, 1), (("preset", "veryfast"), ("bf", "0"))),
    "h265": Codec("libx265", (51, 1), (("x265-params", "bframes=0:log-level=none"),)),
    "av1": Codec("libsvtav1", (63, 1), (("preset", "8"),)),
    "vp9": Codec("libvpx-vp9", (63, 1), (("b", "0"), ("cpu-used", "4"), ("row-mt", "1"))),
    "ffv1": Codec("ffv1", None),
}
_FITTING = {"webm": ("vp9", "av1"), "matroska": tuple(CODECS)}
_FITTING |= dict.fromkeys(("mp4", "mov"), ("h264", "h265", "av1", "vp9"))


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


def pyav() -> ModuleType:
    """PyAV.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("video needs PyAV: pip install 'cmmfnet[video]'") from error
    return av


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
                f"{name}: no video that can be read ({_reason(error)}); expected a complete video "
                "file such as MP4, MKV or AVI. Copy or export it again"
            ) from error
        stream = self._container.streams.best("video")
        if stream is None or stream.codec_context is None:
            found = ", ".join(s.type for s in self._container.streams) or "no streams"
            self.close()
            raise VideoError(f"{name}: no video that can be decoded; found {found}")
        self._stream = stream
        self._check_size(stream.width, stream.height)
        _whole_frames(stream.codec_context)
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
                f"{self.name}: damaged after {shown} frames ({_reason(error)}); copy it again"
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


class VideoWriter:
    """A video file in the making. Not for several threads at once.

    Attributes:
        frames: number of frames given so far.
        lost: number of packets of sound and subtitles that could not be copied.
    """

    def __init__(
        self,
        file: IO[bytes],
        name: str,
        size: tuple[int, int],
        *,
        time_base: Fraction,
        rate: Fraction | None,
        codec: str = "auto",
        quality: int = 65,
        aspect: Fraction = Fraction(1),
        copied: Sequence[Any] = (),
        comment: str = "",
    ):
        """
        Args:
            file: open for writing; must stay open.
            name: file name with the suffix of its container.
            size: (H, W) of its frames.
            time_base: seconds of one unit of a time stamp.
            rate: frames a second, as a hint to the encoder.
            codec: a key of ``CODECS``, or auto: VP9 for WebM, else H.264.
            quality: 0 to 100; 65 is hard to tell from the original.
            aspect: width of a pixel by its height.
            copied: streams of a ``VideoReader`` whose packets will come.
            comment: a note in the file.

        Raises:
            VideoError: the container cannot hold that, or the encoder refuses.
        """
        av = pyav()
        self._av, self.name, self.frames, self.lost = av, name, 0, 0
        kind = container_of(name)
        chosen = choose_codec(kind, codec, name)
        self._container = av.open(file, mode="w", format=kind)
        for stream in copied:
            codec_name = stream.codec_context.name
            known = {codec_name, stream.codec_context.codec.canonical_name}
            if not known & self._container.supported_codecs:
                raise VideoError(
                    f"a {Path(name).suffix} file cannot hold the {stream.type} of the input "
                    f"({codec_name}); name the result {Path(name).stem}.mkv"
                )
        self._container.metadata["comment"] = comment
        height, width = size
        options = dict(chosen.options)
        if chosen.worst_best is not None:
            worst, best = chosen.worst_best
            options["crf"] = str(round(worst + (best - worst) * quality / 100))
        rate = rate or Fraction(30)
        out = self._container.add_stream(chosen.encoder, rate=rate, options=options)
        out.width, out.height = width, height
        odd = (width % 2 or height % 2) and chosen.encoder != "libsvtav1"
        lossless = chosen.worst_best is None
        out.pix_fmt = "bgr0" if lossless else "yuv444p" if odd else "yuv420p"
        context = out.codec_context
        context.time_base = out.time_base = time_base
        context.sample_aspect_ratio = aspect
        if not lossless:  # players guess the colours of a file that does not say
            context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
            context.color_range = 1  # 16 to 235
        _whole_frames(context)
        self._stream, self._lossless = out, lossless
        self._reformatter = av.video.reformatter.VideoReformatter()
        self._copies = {
            stream.index: self._container.add_stream_from_template(stream) for stream in copied
        }
        self._durations: dict[int, int] = {}
        try:
            context.open()
        except (av.FFmpegError, OSError, ValueError) as error:
            raise VideoError(
                f"{name}: {chosen.encoder} refuses frames of {width} x {height} pixels "
                f"({_reason(error)}); choose another --codec: {', '.join(_FITTING[kind])}"
            ) from error

    def picture(self, rgb: np.ndarray, pts: int, duration: int | None) -> None:
        """Encode a frame (H, W, 3) uint8 with its time stamp, later than the one before."""
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        if not self._lossless:
            frame = self._reformatter.reformat(
                frame,
                format=self._stream.pix_fmt,
                dst_colorspace="itu709",
                interpolation="BICUBIC",
                threads=1,
            )
            frame.colorspace = 1
        frame.pts, frame.time_base = pts, self._stream.codec_context.time_base
        if duration is not None:
            frame.duration = self._durations[pts] = duration
        self._mux(self._stream.encode(frame))
        self.frames += 1

    def packet(self, packet: Any) -> None:
        """Copy a packet of sound or subtitles."""
        packet.stream = self._copies[packet.stream.index]
        try:
            self._container.mux_one(packet)
        except self._av.error.ArgumentError:  # a time stamp before that of the packet before
            self.lost += 1

    def close(self) -> None:
        """Write what the encoder still holds, and the end of the file."""
        self._mux(self._stream.encode(None))
        self._container.close()

    def _mux(self, packets: Sequence[Any]) -> None:
        for packet in packets:
            duration = self._durations.pop(packet.pts, None)
            if duration is not None:  # the encoder's guess comes from the frame rate
                packet.duration = duration
            self._container.mux_one(packet)


def _whole_frames(context: Any) -> None:
    """Let a few threads of a codec take a frame each."""
    context.thread_type, context.thread_count = "FRAME", _THREADS


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


def container_of(name: str) -> str:
    """FFmpeg's name of the container that a file name's suffix stands for.

    Raises:
        VideoError: no container that can be written.
    """
    kind = CONTAINERS.get(Path(name).suffix.lower())
    if kind is None:
        raise VideoError(
            f"cannot write a video {Path(name).name!r}; choose a name that ends in "
            f"{' '.join(CONTAINERS)}"
        )
    return kind


def choose_codec(kind: str, codec: str, name: str) -> Codec:
    """The codec of a container.

    Raises:
        VideoError: unknown, or the container cannot hold it.
    """
    fitting = _FITTING[kind]
    if codec not in ("auto", *CODECS):
        raise VideoError(f"unknown codec {codec!r}; choose auto, {', '.join(CODECS)}")
    if codec != "auto" and codec not in fitting:
        raise VideoError(
            f"a {Path(name).suffix} file cannot hold {codec}; choose {', '.join(fitting)}, or name "
            f"the result {Path(name).stem}.mkv"
        )
    return CODECS[
        fitting[0] if codec == "auto" and kind == "webm" else codec.replace("auto", "h264")
    ]


def _by(size: tuple[int, ...]) -> str:
    return f"{size[1]} x {size[0]}"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"[:200]


def pixels_of(frame: Any) -> np.ndarray:
    """The pixels of a decoded frame; see ``Picture``."""
    form = frame.format
    first = form.components[0]
    if form.name.startswith("gray") and len(form.components) == 1:
        return _plane(frame, 0, first)
    planar = len(frame.planes) == len(form.components) == 3
    if planar and not form.is_rgb and form.name.startswith("yuv"):
        middle = 1 << (first.bits - 1)
        noise = _GREY_NOISE << (first.bits - 8)
        chroma = [_plane(frame, i, form.components[i]) for i in (1, 2)]
        far = [np.abs(plane.astype(np.int32) - middle) > noise for plane in chroma]
        if np.mean(far[0] | far[1]) <= _COLOURED_SHARE:
            luma = _plane(frame, 0, first)
            full = form.name.startswith("yuvj") or frame.color_range == 2
            return luma if full else _full_range(luma, first.bits)
    deep = first.bits > 8
    return frame.to_ndarray(format="rgb48le" if deep else "rgb24")


def _plane(frame: Any, index: int, component: Any) -> np.ndarray:
    """A plane of one component as (H, W) uint8, uint16 or float32."""
    plane, name = frame.planes[index], frame.format.name
    order = ">" if name.endswith("be") else "<"
    if component.bits == 32:
        kind = np.dtype(f"{order}f4")
    else:
        kind = np.dtype(np.uint8 if component.bits <= 8 else f"{order}u2")
    rows = np.frombuffer(plane, kind).reshape(plane.height, -1)
    pixels = rows[:, : plane.width]
    return np.array(pixels, kind.newbyteorder("="), order="C")  # FFmpeg uses its buffers again


def _full_range(luma: np.ndarray, bits: int) -> np.ndarray:
    """Luma from the range of television (16 to 235 of 255) to 0 to 2^bits - 1. Each level keeps a
    level of its own."""
    table = _full_range_table(bits)
    if bits == 8:  # in a third of the time
        made = bytearray(luma.tobytes().translate(table.tobytes()))
        return np.frombuffer(made, np.uint8).reshape(luma.shape)
    return table[np.minimum(luma, len(table) - 1)]


@functools.cache
def _full_range_table(bits: int) -> np.ndarray:
    top, unit = (1 << bits) - 1, 1 << (bits - 8)
    levels = np.arange(top + 1, dtype=np.float64)
    table = np.clip((levels - 16 * unit) * top / (219 * unit), 0, top).round()
    return table.astype(np.uint8 if bits == 8 else np.uint16)


def upright(pixels: np.ndarray, frame: Any) -> tuple[np.ndarray, bool]:
    """Pixels turned as the frame's display matrix says, and whether by a quarter."""
    data = next((d for d in frame.side_data if d.type.name == "DISPLAYMATRIX"), None)
    if data is None:
        return pixels, False
    # x' = a x + c y, y' = b x + d y
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].astype(float)
    turned = abs(b) > abs(a)
    if turned:
        pixels = pixels.swapaxes(0, 1)
    if (c if turned else a) < 0:
        pixels = pixels[:, ::-1]
    if (b if turned else d) < 0:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels), turned
