"""The pixels of decoded frames of a video: grey of any depth as it is stored, turned upright."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

_GREY_NOISE, _COLOURED_SHARE = 6, 0.01
"""Chroma of a grey video is off by this much (of 255) at most, but for a small overlay."""


def pixels_of(frame: Any) -> np.ndarray:
    """The pixels of a decoded frame; see ``video_reader.Picture``."""
    form = frame.format
    first = form.components[0]
    if form.name.startswith("gray") and len(form.components) == 1:
        return _plane(frame, 0, first)
    planar = len(frame.planes) == len(form.components) == 3
    if planar and not form.is_rgb and form.name.startswith("yuv"):
        middle = 1 << (first.bits - 1)
        noise = _GREY_NOISE << (first.bits - 8)
        chroma = [_plane(frame, i, form.components[i]) for i in (1, 2)]
        far = [np.abs(plane.astype(np.int32) - middle) > noise for plane in chroma]
        if np.mean(far[0] | far[1]) <= _COLOURED_SHARE:
            luma = _plane(frame, 0, first)
            full = form.name.startswith("yuvj") or frame.color_range == 2
            return luma if full else _full_range(luma, first.bits)
    deep = first.bits > 8
    return frame.to_ndarray(format="rgb48le" if deep else "rgb24")


def _plane(frame: Any, index: int, component: Any) -> np.ndarray:
    """A plane of one component as (H, W) uint8, uint16 or float32."""
    plane, name = frame.planes[index], frame.format.name
    order = ">" if name.endswith("be") else "<"
    if component.bits == 32:
        kind = np.dtype(f"{order}f4")
    else:
        kind = np.dtype(np.uint8 if component.bits <= 8 else f"{order}u2")
    rows = np.frombuffer(plane, kind).reshape(plane.height, -1)
    pixels = rows[:, : plane.width]
    return np.array(pixels, kind.newbyteorder("="), order="C")  # FFmpeg uses its buffers again


def _full_range(luma: np.ndarray, bits: int) -> np.ndarray:
    """Luma from the range of television (16 to 235 of 255) to 0 to 2^bits - 1. Each level keeps a
    level of its own."""
    table = _full_range_table(bits)
    if bits == 8:  # in a third of the time
        made = bytearray(luma.tobytes().translate(table.tobytes()))
        return np.frombuffer(made, np.uint8).reshape(luma.shape)
    return table[np.minimum(luma, len(table) - 1)]


@functools.cache
def _full_range_table(bits: int) -> np.ndarray:
    top, unit = (1 << bits) - 1, 1 << (bits - 8)
    levels = np.arange(top + 1, dtype=np.float64)
    table = np.clip((levels - 16 * unit) * top / (219 * unit), 0, top).round()
    return table.astype(np.uint8 if bits == 8 else np.uint16)


def upright(pixels: np.ndarray, frame: Any) -> tuple[np.ndarray, bool]:
    """Pixels turned as the frame's display matrix says, and whether by a quarter."""
    data = next((d for d in frame.side_data if d.type.name == "DISPLAYMATRIX"), None)
    if data is None:
        return pixels, False
    # x' = a x + c y, y' = b x + d y
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].astype(float)
    turned = abs(b) > abs(a)
    if turned:
        pixels = pixels.swapaxes(0, 1)
    if (c if turned else a) < 0:
        pixels = pixels[:, ::-1]
    if (b if turned else d) < 0:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels), turned
