"""Files of several frames (SEQ, CSQ, CPTV, TIFF stacks, NumPy, raw frames), one frame at a time.

>>> import numpy as np, tempfile, pathlib
>>> path = pathlib.Path(tempfile.mkdtemp(), "walk.npy")
>>> np.save(path, np.arange(24, dtype=np.uint16).reshape(2, 3, 4))
>>> with open_sequence(path) as frames:
...     for frame in frames:
...         print(frame.index, frame.time, frame.thermal.values.mean())
0 None 5.5
1 None 17.5
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from cmmfnet.thermal.cameras.raw import RawLayout, parse_raw
from cmmfnet.thermal.decode import frames, opened, several
from cmmfnet.thermal.frame import Thermal, thermal_of
from cmmfnet.thermal.limits import MAX_PIXELS, ThermalFileError


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a sequence.

    Attributes:
        index: 0 for the first.
        time: seconds since the first frame, by the file's time stamps; None where it has none.
        thermal: the frame.
    """

    index: int
    time: float | None
    thermal: Thermal


@contextlib.contextmanager
def open_sequence(
    source: str | os.PathLike,
    *,
    palette: str | None = None,
    raw: RawLayout | str | None = None,
    kelvin_per_count: float | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Iterator[Frame]]:
    """The frames of a file, decoded one at a time, as an iterator; a picture is one frame.

    Args:
        source: the file. Other arguments as for ``read_thermal``.

    Raises:
        ThermalFileError: when the file is opened, or when a frame that is damaged is asked for; the
            frames before it have been given.
    """
    name = os.fsdecode(source)
    layout = parse_raw(raw) if isinstance(raw, str) else raw
    with opened(name) as (stream, size):
        yield _frames(stream, name, size, max_pixels, layout, palette, kelvin_per_count)


def _frames(stream, name, size, max_pixels, layout, palette, kelvin_per_count) -> Iterator[Frame]:
    start = None
    for index, reading in enumerate(frames(stream, name, size, max_pixels, layout)):
        time = reading.time
        if time is not None:
            start = time if start is None else start
            time -= start
        label = name if index == 0 else f"{name}, frame {index}"
        yield Frame(index, time, thermal_of(reading, label, palette, kelvin_per_count))


def holds_several(
    source: str | os.PathLike,
    raw: RawLayout | str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> bool:
    """Whether a file holds more than one frame. A file that cannot be read does not."""
    layout = parse_raw(raw) if isinstance(raw, str) else raw
    try:
        with opened(os.fsdecode(source)) as (stream, size):
            return several(stream, os.fsdecode(source), size, max_pixels, layout)
    except ThermalFileError:
        return False
