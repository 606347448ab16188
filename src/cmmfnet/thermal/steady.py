"""The span of a sequence's frames, smoothed over time: a stretch that does not jump.

Each frame alone is stretched between its own percentiles, which jump when something hot enters.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np

from cmmfnet.thermal.frame import Thermal
from cmmfnet.thermal.limits import ThermalFileError
from cmmfnet.thermal.stretch import frame_span
from cmmfnet.thermal.units import refuse_empty

_CUT = 0.8
"""Two frames whose thumbnails correlate by less are of two scenes."""
_OVERLAP = 0.5
"""Spans that share less of their union are of two scenes, or of two gains of the camera."""
_THUMBNAIL = 16


class WithinSpan:
    """The frames of a sequence, for a span that a user gave.

    A frame that the span leaves out (the shutter of the camera) is clipped, once frames before it
    fitted, with one warning. Until then it is refused, since the span may be in another unit than
    the frames.
    """

    def __init__(self, span: tuple[float, float]):
        self.span = span
        self.fitted = False
        self._warned = False

    def __call__(self, thermal: Thermal) -> Thermal:
        """The frame, clipped if it has to be.

        Raises:
            ThermalFileError: the span leaves this frame out, and every frame before.
        """
        try:
            refuse_empty(thermal, self.span)
            self.fitted = True
        except ThermalFileError as error:
            if not self.fitted:
                raise
            if not self._warned:
                warnings.warn(
                    f"{error}. The frame is coloured with its values clipped to the span, as are "
                    "further ones of this file",
                    stacklevel=2,
                )
            self._warned = True
            values = np.clip(thermal.values, *np.float32(self.span))
            return replace(thermal, values=values, whole=False)
        return thermal


class SteadySpan:
    """The span of each frame, given in the order of time.

    >>> import numpy as np
    >>> from cmmfnet.thermal.frame import read_thermal
    >>> frames = [np.linspace(low, 100 + low, 4096, dtype=np.float32).reshape(64, 64)
    ...           for low in (0, 10)]
    >>> steady = SteadySpan(0.5)
    >>> [[round(float(end), 3) for end in steady(read_thermal(frame))] for frame in frames]
    [[1.0, 99.0], [6.0, 104.0]]
    """

    def __init__(self, smooth: float):
        """``smooth``: the weight of the frames before, 0 (each frame by itself) to 1 (the first
        frame of a scene decides)."""
        self.smooth = smooth
        self.cuts = 0
        self.cut = False  # whether the last frame began another scene
        self._span: tuple[float, float] | None = None
        self._thumbnail: np.ndarray | None = None

    def __call__(self, thermal: Thermal) -> tuple[float, float] | None:
        """The span to stretch the next frame between; None for its own percentiles, as for a frame
        of one value, which changes nothing for the frames after it."""
        self.cut = False
        if self.smooth == 0:
            return None
        own = frame_span(thermal)
        if own is None:
            return None
        thumbnail = _thumbnail(thermal, own)
        before, self._thumbnail = self._thumbnail, thumbnail
        if self._span is not None and not _same_scene(before, thumbnail, self._span, own):
            self.cuts += 1
            self.cut = True
            self._span = None
        if self._span is None:
            self._span = own
        else:
            low, high = (
                self.smooth * old + (1 - self.smooth) * new
                for old, new in zip(self._span, own, strict=True)
            )
            self._span = (low, high)
        return self._span


def _thumbnail(thermal: Thermal, span: tuple[float, float]) -> np.ndarray:
    """Means of blocks, of the values clipped to the span."""
    values = thermal.values
    height, width = (min(_THUMBNAIL, side) for side in values.shape)
    values = values[: values.shape[0] // height * height, : values.shape[1] // width * width]
    if not thermal.whole:
        values = np.nan_to_num(values, nan=sum(span) / 2)
    clipped = np.clip(values, *span)
    blocks = clipped.reshape(height, values.shape[0] // height, width, values.shape[1] // width)
    return blocks.mean(axis=(1, 3), dtype=np.float64)


def _same_scene(
    before: np.ndarray, now: np.ndarray, span: tuple[float, float], own: tuple[float, float]
) -> bool:
    shared = min(span[1], own[1]) - max(span[0], own[0])
    if shared < _OVERLAP * (max(span[1], own[1]) - min(span[0], own[0])):
        return False
    if before.shape != now.shape:
        return False
    if before.std() == 0 or now.std() == 0:
        return True
    return bool(np.corrcoef(before.ravel(), now.ravel())[0, 1] >= _CUT)
