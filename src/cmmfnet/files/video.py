"""Containers and codecs of video files, and PyAV (FFmpeg), which reads and writes them.

PyAV comes with ``pip install 'cmmfnet[video]'`` and is imported when a video is opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

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
_THREADS = 4
"""Of a codec. Each takes whole frames: with one for each core, which take strips of one frame, a
machine of 16 cores spends most of its time on handing out the strips."""


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
FITTING = {"webm": ("vp9", "av1"), "matroska": tuple(CODECS)}
FITTING |= dict.fromkeys(("mp4", "mov"), ("h264", "h265", "av1", "vp9"))
"""Container -> the codecs that it can hold, as keys of ``CODECS``."""


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


def whole_frames(context: Any) -> None:
    """Let a few threads of a codec take a frame each."""
    context.thread_type, context.thread_count = "FRAME", _THREADS


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
    fitting = FITTING[kind]
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


def reason_of(error: Exception) -> str:
    """FFmpeg's words for an error, on one line."""
    return f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"[:200]
