"""Live video of a camera or an address, read with PyAV (FFmpeg)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from cmmfnet.files.errors import UserError
from cmmfnet.files.video import pyav

SCHEMES = {
    "http": "http,https,tcp,tls,crypto,httpproxy",
    "https": "http,https,tcp,tls,crypto,httpproxy",
    "rtsp": "rtsp,rtp,udp,tcp,tls,srtp,http,https",
    "rtsps": "rtsp,rtp,udp,tcp,tls,srtp,http,https",
    "rtmp": "rtmp,tcp",
    "rtp": "rtp,udp",
    "srt": "srt",
    "tcp": "tcp",
    "udp": "udp",
}
"""Scheme of an address -> FFmpeg's protocols that it may use. None opens a file, so that a playlist
from the network cannot name one."""
_SECRET_OPTION = re.compile(
    r"(?<=[?&])([^=&#]*(?:user|usr|login|pwd|pass|psw|token|key|auth)[^=&#]*)=[^&#]*", re.IGNORECASE
)
_DAMAGED = 100
"""Packets in a row that cannot be decoded, after which the stream counts as lost."""


class StreamError(UserError):
    """The stream cannot be opened, or has ended. The message says what was found."""


def is_stream(source: str) -> bool:
    """Whether a source is the address of a stream or a V4L2 device."""
    return "://" in source or source.startswith("/dev/video")


def public_name(source: str) -> str:
    """A source without the name and password of a user, in front of the host or as options."""
    source = re.sub(r"(?<=://)[^/]*@", "", source)
    return _SECRET_OPTION.sub(r"\1=...", source)


class Stream:
    """A connection to a camera.

    Attributes:
        damaged: number of packets that could not be decoded, and of smeared frames.
    """

    def __init__(self, source: str, timeout: float):
        """
        Args:
            source: http://, rtsp:// and the like, or /dev/video0.
            timeout: seconds to wait for the connection and for each packet.

        Raises:
            StreamError: no connection, or no video.
        """
        av = pyav()
        self._av, self._timeout, self.damaged = av, timeout, 0
        self.name = public_name(source)
        options = {"fflags": "nobuffer", "analyzeduration": "1000000"}
        if source.startswith("/dev/video"):
            form = "v4l2"
        else:
            form, scheme = None, source.partition("://")[0].lower()
            if scheme not in SCHEMES:
                raise StreamError(
                    f"{self.name}: unknown kind of address; expected one of "
                    f"{', '.join(f'{each}://' for each in SCHEMES)}, /dev/video0, or a folder"
                )
            options["protocol_whitelist"] = SCHEMES[scheme]
            if scheme in ("rtsp", "rtsps"):
                options["rtsp_transport"] = "tcp"  # UDP loses packets, which shows as smears
        try:
            self._container = av.open(
                source, format=form, options=options, timeout=timeout, metadata_errors="replace"
            )
        except (av.FFmpegError, OSError, ValueError) as error:
            raise StreamError(f"{self.name}: no connection: {self._reason(error)}") from error
        self._stream = self._container.streams.best("video")
        if self._stream is None or self._stream.codec_context is None:
            self.close()
            raise StreamError(f"{self.name}: no video that can be decoded in this stream")

    def frames(self) -> Iterator[Any]:
        """PyAV's frames as they come.

        Raises:
            StreamError: the stream has ended or been lost.
        """
        damaged = 0
        try:
            for packet in self._container.demux(self._stream):
                try:
                    frames = packet.decode()
                except self._av.error.InvalidDataError:
                    self.damaged += 1
                    damaged += 1
                    if damaged > _DAMAGED:
                        raise
                    continue
                for frame in frames:
                    if frame.is_corrupt:  # packets were lost, and its picture is smeared
                        self.damaged += 1
                        continue
                    damaged = 0
                    yield frame
        except (self._av.FFmpegError, OSError, ValueError) as error:
            raise StreamError(f"{self.name}: lost: {self._reason(error)}") from error
        raise StreamError(f"{self.name}: the stream has ended")

    def close(self) -> None:
        """End the connection."""
        self._container.close()

    def _reason(self, error: Exception) -> str:
        """FFmpeg's reason, without the address, which may have a password."""
        if isinstance(error, self._av.error.ExitError):
            return f"no answer within {self._timeout:g} s"
        return (getattr(error, "strerror", None) or type(error).__name__)[:200]
