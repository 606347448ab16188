"""Videos for tests, made with PyAV, and what is in a video."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

av = pytest.importorskip("av", reason="video needs PyAV: pip install 'cmmfnet[video]'")


def ramps(count: int = 12, height: int = 48, width: int = 64, top: int = 255) -> list[np.ndarray]:
    """Grey frames (H, W): a ramp with a square that moves by a pixel a frame."""
    kind = np.uint8 if top <= 255 else np.uint16
    base = np.linspace(0, 0.8 * top, height * width).reshape(height, width)
    frames = []
    for index in range(count):
        frame = base.copy()
        frame[10:20, 5 + index : 15 + index] = top
        frames.append(frame.astype(kind))
    return frames


def write(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rate: Fraction = Fraction(30),
    stamps: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    sound: str | None = None,
    words: str | None = None,
    options: dict[str, str] | None = None,
    form: str | None = None,
) -> Path:
    """A video of grey (H, W) or RGB (H, W, 3) frames. ``stamps`` are in units of ``time_base``.

    ``sound``: an audio codec, of a tone as long as the frames. ``words``: a subtitle in the
    codec mov_text.
    """
    file = av.open(str(path), "w", format=form)
    stream = file.add_stream(codec, rate=rate, options=options or {})
    stream.height, stream.width = frames[0].shape[:2]
    stream.pix_fmt = pix_fmt
    if codec == "libx264":  # frames in order, so that a file of uneven stamps has a right duration
        stream.codec_context.max_b_frames = 0
    if time_base is not None:
        stream.codec_context.time_base = stream.time_base = time_base
    audio = file.add_stream(sound, rate=48000) if sound else None
    text = file.add_stream("mov_text") if words else None
    if text is not None:
        text.codec_context.subtitle_header = (
            b"[Script Info]\nScriptType: v4.00+\n[V4+ Styles]\nFormat: Name, Fontname, Fontsize\n"
            b"Style: Default,Arial,16\n[Events]\nFormat: Layer, Start, End, Style, Text\n"
        )
    for index, pixels in enumerate(frames):
        form_in = {np.uint8: "gray", np.uint16: "gray16le"}[pixels.dtype.type]
        form_in = "rgb24" if pixels.ndim == 3 else form_in
        if pix_fmt.startswith("gray") and pixels.dtype == np.uint16:
            form_in = pix_fmt  # as it is
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=form_in)
        frame.pts = index if stamps is None else stamps[index]
        frame.time_base = time_base or 1 / rate
        for packet in stream.encode(frame):
            file.mux(packet)
    file.mux(stream.encode(None))
    if audio is not None:
        seconds = float(len(frames) / rate)
        tone = np.sin(np.arange(int(48000 * seconds)) * 0.05).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
        resampler = av.AudioResampler(
            audio.format.name, audio.layout.name, 48000, frame_size=audio.codec_context.frame_size
        )
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(audio.encode(piece))
        file.mux(audio.encode(None))
    if text is not None:
        content = words.encode()
        packet = av.Packet(len(content).to_bytes(2, "big") + content)
        packet.stream, packet.pts, packet.dts, packet.duration = text, 0, 0, 100
        packet.time_base = Fraction(1, 1000)
        file.mux(packet)
    file.close()
    return path


def turn(path: Path, matrix: Sequence[int]) -> Path:
    """Give an MP4 file a display matrix: (a, b, c, d), each -1, 0 or 1."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    numbers = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4")
    data[at : at + 36] = numbers.tobytes()
    path.write_bytes(data)
    return path


def stamps_of(path: Path) -> list[Fraction]:
    """The time stamps of a video's frames in seconds."""
    with av.open(str(path)) as file:
        return [frame.pts * frame.time_base for frame in file.decode(video=0)]


def pictures_of(path: Path) -> np.ndarray:
    """Its frames (N, H, W, 3) uint8."""
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def packets_of(path: Path, kind: str) -> list[bytes]:
    """The content of the packets of the first stream of a kind: audio, subtitle."""
    with av.open(str(path)) as file:
        stream = next(s for s in file.streams if s.type == kind)
        return [bytes(packet) for packet in file.demux(stream) if packet.size]


def about(path: Path) -> dict[str, Any]:
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        return {
            "codec": stream.codec_context.name,
            "pix_fmt": stream.codec_context.pix_fmt,
            "size": (stream.height, stream.width),
            "duration": stream.duration and stream.duration * stream.time_base,
            "length": file.duration,
            "streams": [s.type for s in file.streams],
            "comment": file.metadata.get("comment", ""),
        }
