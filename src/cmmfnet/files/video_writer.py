"""Video files, written: frames with their time stamps, and packets that are copied from another
file."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np

from cmmfnet.files.video import (
    FITTING,
    VideoError,
    choose_codec,
    container_of,
    pyav,
    reason_of,
    whole_frames,
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
        whole_frames(context)
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
                f"({reason_of(error)}); choose another --codec: {', '.join(FITTING[kind])}"
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
