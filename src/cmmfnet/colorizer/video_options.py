"""The options of ``cmmfnet colorize`` for videos, and its report. No decoder is imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cmmfnet.files.counted import counted
from cmmfnet.files.errors import UserError
from cmmfnet.files.video import CONTAINERS, VIDEOS, choose_codec, container_of


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """The options of ``cmmfnet colorize`` for videos.

    Attributes:
        fps: frames a second of a folder, or of a sequence without time stamps; 29.97 is 30000/1001
        codec: of a video: h264, h265, av1, vp9 or ffv1 (lossless, for .mkv); auto is h264, for
            .webm vp9
        quality: of a video, 0 to 100; 65 is hard to tell from the lossless one
        side_by_side: the video shows the stretched thermal frame left of the colours
        smooth: how slowly the stretch and the colours of a video follow its frames, 0 (each frame
            by itself) to 1 (fixed until the thermal frame changes)
    """

    fps: float | None = None
    codec: str = "auto"
    quality: int = 65
    side_by_side: bool = False
    smooth: float = 0.0

    def check(self, out: str) -> None:
        """Refuse what cannot be written to ``out``.

        Raises:
            UserError: a value outside of its range, or a codec that the container cannot hold.
        """
        if self.fps is not None and not 0.001 <= self.fps <= 10_000:
            raise UserError(f"--fps is {self.fps}; expected 0.001 to 10000")
        if not 0 <= self.quality <= 100:
            raise UserError(f"--quality is {self.quality}; expected 0 to 100")
        if not 0 <= self.smooth <= 1:
            raise UserError(f"--smooth is {self.smooth}; expected 0 to 1")
        choose_codec(container_of(out), self.codec, out)


@dataclass
class VideoReport:
    """What became of a video."""

    where: Path
    frames: int = 0
    scenes: int = 1
    seconds: float = 0.0  # without loading the model
    problems: list[str] = field(default_factory=list)  # why frames are missing

    @property
    def exit_status(self) -> int:
        return 1 if self.problems else 0

    def __str__(self) -> str:
        speed = f"; {self.seconds / self.frames:.2f} s a frame" if self.frames else ""
        return f"coloured {counted(self.frames, 'frame')}{speed}; in {self.where}"


def is_video_name(name: str) -> bool:
    """Whether a name has the suffix of a video that can be written."""
    return Path(name).suffix.lower() in CONTAINERS


def looks_like_video(source: str) -> bool:
    """Whether a source has the suffix of a video."""
    return Path(source).suffix.lower() in VIDEOS
