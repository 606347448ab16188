"""What became of the pictures of ``cmmfnet colorize``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cmmfnet.colorizer.base import Seen


@dataclass
class Report:
    """The outcome for each picture."""

    where: Path
    coloured: list[Path] = field(default_factory=list)  # the files written
    photos: list[Path] | None = None  # photos of cameras written, if asked for
    skipped: list[Path] = field(default_factory=list)  # the files that were there before
    differing: list[Path] = field(default_factory=list)  # of these, made with other settings
    results: list[Path] = field(default_factory=list)  # inputs that are results of an earlier run
    failed: dict[Path, str] = field(default_factory=dict)  # input -> reason
    not_shown: dict[Path, str] = field(default_factory=dict)  # input -> why the page lacks it
    seen: dict[Path, Seen] = field(default_factory=dict)  # input -> prediction, if asked for
    night: list[Path] = field(default_factory=list)  # inputs without text that look like night
    seconds: float = 0.0  # without loading the model

    @property
    def exit_status(self) -> int:
        return 1 if self.failed or self.not_shown else 0

    def __str__(self) -> str:
        parts = [f"coloured {len(self.coloured)}"]
        if self.skipped:
            differing = len(self.differing)
            other = (
                f", {differing} of them with other options (model, text, span, palette ...)"
                if differing
                else ""
            )
            parts.append(
                f"skipped {len(self.skipped)} that were done before{other} (--overwrite colours "
                "them again)"
            )
        if self.photos is not None:
            parts.append(f"wrote {len(self.photos)} photos from inside the files")
        if self.results:
            parts.append(f"left out {len(self.results)} that are results of cmmfnet themselves")
        if self.failed:
            parts.append(f"failed {len(self.failed)}")
        speed = f"; {self.seconds / len(self.coloured):.2f} s a frame" if self.coloured else ""
        return f"{', '.join(parts)}{speed}; in {self.where}"


def tags_line(seen: Seen) -> str:
    """The predicted tags, and the names that the model got as text if a text corrects them."""
    predicted = ", ".join(f"{name} {probability:.2f}" for name, probability in seen.predicted)
    return (
        predicted
        if seen.given_tags is None
        else f"{predicted}; given: {', '.join(seen.given_tags) or 'nothing'}"
    )
