"""The frames of a video and their colours, steady over time.

A network that colours each frame by itself gives a pixel that stands still other colours from frame
to frame. Nearly all of that flicker is in broad areas and hardly any in edges. So the colours are
reduced, the reduced colours of the frames before are moved along with the thermal frame's motion,
and what they differ by is added to the full colours. Edges stay those of the frame itself. Of the
fine part of that difference, luma takes half and chroma all: texture, which lies in luma, would
fade where many frames are averaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cmmfnet.thermal.frame import Thermal
from cmmfnet.thermal.motion import Motion, motion, opencv
from cmmfnet.thermal.steady import SteadySpan, WithinSpan

if TYPE_CHECKING:
    from cmmfnet.colorizer.base import Frame, FrameColorizer

_SIDE = 240
"""The short side, in pixels, to which frames and colours are about reduced."""
_LIKENESS = 0.12
"""Difference of colours, of a range of 2, at which those before count 1 / e. A larger difference is
a change that must show, such as what a person uncovers on the way."""

_LUMA = np.float32([0.299, 0.587, 0.114])


@dataclass(frozen=True, eq=False)
class SteadyFrame:
    """A frame ready for the network, and its motion; None for the first frame of a scene."""

    frame: Frame
    motion: Motion | None


class SteadyFrames:
    """Makes frames ready and finishes their pictures, both in the order of time. ``prepare`` may
    run in another thread than ``finish``."""

    def __init__(
        self, colorizer: FrameColorizer, smooth: float, span: tuple[float, float] | None = None
    ):
        """
        Args:
            smooth: weight of the frames before, 0 (each frame by itself) to 1.
            span: what every frame is stretched between; None: each frame's own span, smoothed.

        Raises:
            ImportError: OpenCV is not installed, and ``smooth`` is not 0.
        """
        self.colorizer, self.smooth = colorizer, smooth
        self._steady = SteadySpan(smooth)
        self._within = WithinSpan(span) if span is not None else None
        self._thermal: np.ndarray | None = None  # of the frame before, reduced
        self._colours: np.ndarray | None = None  # steady ones of the frame before, reduced
        if smooth:
            opencv()

    @property
    def cuts(self) -> int:
        """Scene cuts found so far; they are looked for where ``smooth`` is not 0."""
        return self._steady.cuts

    def prepare(self, thermal: Thermal) -> SteadyFrame:
        """A thermal frame, ready for the network.

        Raises:
            ThermalFileError: the span leaves the frame out, and every frame before.
        """
        span = self._steady(thermal)
        if self._within is not None:
            thermal, span = self._within(thermal), self._within.span
        frame = self.colorizer.prepare(thermal, span)
        if not self.smooth:
            return SteadyFrame(frame, None)
        runtime = self.colorizer.runtime
        with runtime.inference():
            reduced = self._reduced(frame.low)
        before, self._thermal = self._thermal, reduced
        if before is None or before.shape != reduced.shape or self._steady.cut:
            return SteadyFrame(frame, None)
        return SteadyFrame(frame, motion(reduced, before))

    def finish(self, colour: Any, steady: SteadyFrame) -> np.ndarray:
        """The colours (3, h, w) of a frame -> its picture (H, W, 3) uint8."""
        if self.smooth:
            with self.colorizer.runtime.inference():
                colour = self._smoothed(colour, steady)
        return self.colorizer.finish(colour, steady.frame)

    def _smoothed(self, colour: Any, steady: SteadyFrame) -> Any:
        cv2, runtime = opencv(), self.colorizer.runtime
        if isinstance(steady.frame.full, np.ndarray):
            colour = runtime.array(colour)
        reduced = self._reduced(colour)
        found, before = steady.motion, self._colours
        if found is None or before is None:
            self._colours = reduced
            return colour
        change = found.warp(before) - reduced
        largest = np.maximum(np.maximum(*np.abs(change[:2])), np.abs(change[2]))
        alike = np.exp(-((cv2.blur(largest, (5, 5)) / _LIKENESS) ** 2))
        change *= self.smooth * found.agreement * alike
        luma = np.tensordot(_LUMA, change, 1)
        change += (cv2.blur(luma, (3, 3)) - luma) / 2  # less of its fine part
        self._colours = reduced + change
        if not isinstance(colour, np.ndarray):
            module = runtime.sizes(colour)
            return colour + module.resize(module.like(change, colour), colour.shape[-2:])
        return colour + _resized(change, colour.shape[-2:], cv2.INTER_LINEAR)

    def _reduced(self, planes: Any) -> np.ndarray:
        """Planes (..., h, w) at working size, reduced, as an array."""
        runtime = self.colorizer.runtime
        height, width = planes.shape[-2:]
        factor = max(1, round(min(height, width) / _SIDE))
        size = (-(-height // factor), -(-width // factor))
        if factor == 1:
            return runtime.array(planes)
        if isinstance(planes, np.ndarray):
            return _resized(planes, size, opencv().INTER_AREA)
        return runtime.array(runtime.sizes(planes).resize(planes, size))


def _resized(planes: np.ndarray, size: tuple[int, int], how: int) -> np.ndarray:
    """Planes (..., h, w) -> (..., H, W); by OpenCV in a tenth of Pillow's time."""
    cv2, many = opencv(), planes.reshape(-1, *planes.shape[-2:])
    resized = [cv2.resize(plane, size[::-1], interpolation=how) for plane in many]
    return np.stack(resized).reshape(*planes.shape[:-2], *size)
