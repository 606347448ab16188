"""The frames that ``cmmfnet colorize`` colours: one of a picture, several of a sequence, each with
the file that its result goes to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmmfnet.files.pictures import write_picture
from cmmfnet.thermal.limits import ThermalFileError

if TYPE_CHECKING:
    from cmmfnet.thermal.frame import Thermal


@dataclass(frozen=True, eq=False)
class Job:
    """One frame to colour.

    Attributes:
        file: the input, which texts are looked up by.
        result: the picture to write.
        thermal: the frame, if it has been decoded; else ``file`` is read.
    """

    file: Path
    result: Path
    thermal: Thermal | None = None

    @property
    def label(self) -> Path:
        """The file, with the frame's number for a sequence: what messages call it."""
        return self.file if self.thermal is None else Path(self.thermal.name)


def sequences_in(inputs: Sequence[Path], reading: dict[str, Any]) -> set[Path]:
    """The inputs that hold several frames. ``reading``: options of ``read_thermal``."""
    from cmmfnet.thermal.sequence import holds_several

    def check(file: Path) -> bool:
        return holds_several(file, reading["raw"], reading["max_pixels"])

    with ThreadPoolExecutor(4) as pool:
        several = list(pool.map(check, inputs))
    return {file for file, many in zip(inputs, several, strict=True) if many}


def frame_path(folder: Path, index: int) -> Path:
    """The result of a sequence's frame: walk/000012.png of walk.seq."""
    return folder / f"{index:06d}.png"


def sequence_jobs(
    file: Path,
    folder: Path,
    reading: dict[str, Any],
    span: tuple[float, float] | None,
    *,
    overwrite: bool,
    skipped: list[Path],
    failed: dict[Path, str],
) -> Iterator[Job]:
    """The frames of a sequence, decoded when they are asked for.

    Frames that have a result go to ``skipped``; a frame that cannot be read ends the sequence, and
    its reason goes to ``failed``. A frame that ``span`` leaves out (the shutter of the camera) is
    clipped, once frames before it fitted; until then it fails, since the span may be in another
    unit than the file.
    """
    from cmmfnet.thermal.sequence import open_sequence
    from cmmfnet.thermal.steady import WithinSpan

    within = WithinSpan(span) if span is not None else None
    try:
        with open_sequence(file, **reading) as frames:
            for frame in frames:
                result = frame_path(folder, frame.index)
                if result.is_file() and not overwrite:
                    skipped.append(result)
                    if within is not None:
                        within.fitted = True
                    continue
                thermal = frame.thermal
                if within is not None:
                    try:
                        thermal = within(thermal)
                    except ThermalFileError as error:
                        failed.setdefault(file, str(error))
                        continue
                yield Job(file, result, thermal)
    except (ThermalFileError, OSError) as error:
        failed[file] = str(error)


def write_photo(job: Job, thermal: Thermal, *, overwrite: bool, taken: set[Path]) -> Path | None:
    """Write the photo of a camera's file next to the frame's result: house-visible.png.

    The photo is encoded anew, so that places and serial numbers stay in the input.

    Returns:
        The file; None if it exists already, or the camera's file holds no photo.

    Raises:
        ThermalFileError: the photo is damaged, or its place is among ``taken``.
        OSError: it cannot be written.
    """
    path = job.result.with_name(f"{job.result.stem}-visible.png")
    if thermal.visible is None:
        return None
    if path.resolve() in taken:
        raise ThermalFileError(
            f"{job.label}: its photo would replace {path}, an input or another result"
        )
    if path.exists() and not overwrite:
        return None
    # "Model" marks the picture as no input for later runs
    notes = {"Comment": "photo of a thermal camera", "Model": "none"}
    return write_picture(path, thermal.visible.pixels(), notes)
