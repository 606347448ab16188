"""Noise, light and sky for `scenes`.

Colours are linear light; heat is an apparent temperature in kelvin.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from cmmfnet.data.scenes import models as m
from cmmfnet.data.scenes.sprites import linear

F = np.float32


class Noise:
    """Periodic random textures with mip levels: unit variance, so that an amplitude is a standard
    deviation."""

    def __init__(self, slope: float, seed: int, side: int = 256, lowest: float = 1.0):
        f = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]) * side
        spectrum = np.where(f >= lowest, np.maximum(f, 1) ** -slope, 0)
        field = np.fft.irfft2(
            np.fft.rfft2(np.random.default_rng(seed).normal(size=(side, side))) * spectrum,
            s=(side, side),
        )
        field = ((field - field.mean()) / field.std()).astype(F)
        levels = []
        while field.shape[0] >= 4:
            levels.append(field)
            field = field.reshape(field.shape[0] // 2, 2, -1, 2).mean((1, 3))
        self.side, self.top = side, len(levels) - 1
        self.start = np.cumsum([0] + [x.size for x in levels])[:-1].astype(np.int32)
        self.flat = np.concatenate([x.ravel() for x in levels])

    def __call__(self, u, v, period: float, footprint=0.0) -> np.ndarray:
        """Value at u, v (metres) of a texture that repeats every `period` metres, averaged over
        `footprint` metres."""
        level = np.log2(np.maximum(np.asarray(footprint, F) * F(self.side / period), F(1)))
        level = np.minimum((level + F(0.5)).astype(np.int32), self.top)
        side = self.side >> level
        x, y = u * (side * F(1 / period)) - F(0.5), v * (side * F(1 / period)) - F(0.5)
        i, j = np.floor(x), np.floor(y)
        x, y = (x - i).astype(F), (y - j).astype(F)
        i, j = i.astype(np.int32), j.astype(np.int32)
        mask = side - 1
        start = self.start[level]
        row0, row1 = start + (j & mask) * side, start + ((j + 1) & mask) * side
        i0, i1 = i & mask, (i + 1) & mask
        t = self.flat
        return (t[row0 + i0] * (1 - x) + t[row0 + i1] * x) * (1 - y) + (
            t[row1 + i0] * (1 - x) + t[row1 + i1] * x
        ) * y


@lru_cache(maxsize=1)
def noises() -> tuple[Noise, Noise]:
    """Cloud-like noise and fine grain; the same for every scene."""
    return Noise(1.35, 11), Noise(0.55, 12, lowest=6)


def hash01(*keys) -> np.ndarray:
    """Uniform [0,1) numbers from integers, element by element."""
    h = np.uint32(2166136261)
    for k in keys:
        h = (h ^ np.asarray(k).astype(np.int64).astype(np.uint32)) * np.uint32(0x9E3779B1)
        h = h ^ (h >> np.uint32(15))
    h = h * np.uint32(0x85EBCA6B)
    return ((h ^ (h >> np.uint32(13))) >> np.uint32(8)).astype(F) * F(2**-24)


@dataclass(frozen=True)
class Light:
    """Light and weather of a scene. Radiances are linear RGB; `sun` is the direction towards it or
    None."""

    lighting: str
    sky: str
    sun: np.ndarray | None
    sun_colour: np.ndarray
    ambient: np.ndarray
    zenith: np.ndarray
    horizon: np.ndarray
    glow: np.ndarray  # colour of the sky around the sun
    haze: float  # metres over which the air hides 63 %
    exposure: float
    cover: float  # share of the sky with clouds
    drop: float  # kelvin by which the zenith is colder than the air
    insolation: float  # share of full sun's heating
    cloud_shift: np.ndarray
    hills: np.ndarray  # (k,4): amplitude, frequency, phase, layer
    snow: float


def _profile(light: Light, azimuth, layer: int):
    total = np.zeros_like(azimuth)
    for amplitude, frequency, phase, where in light.hills:
        if where == layer:
            total += F(amplitude) * np.sin(azimuth * F(frequency) + F(phase))
    return total


def sky(light: Light, ray: np.ndarray, air: float, ground_mirror: bool = False):
    """Radiance (M,3), kelvin (M,) and label (M,) of directions (M,3); with `ground_mirror` a soft
    street skyline instead of hills.
    """
    d = ray / np.linalg.norm(ray, axis=1, keepdims=True)
    up = d[:, 2]
    rise = np.clip(up, 0, 1)
    mix = (rise[:, None] ** F(0.45)).astype(F)
    rgb = light.horizon * (1 - mix) + light.zenith * mix
    kelvin = air - light.drop * (0.28 + 0.72 * rise**0.6)
    around = np.zeros_like(up)
    if light.sun is not None:
        around = np.clip(d @ light.sun.astype(F), 0, 1)
        rgb = (
            rgb
            + light.glow
            * (
                0.35 * around**6
                + 0.9 * around**60
                + (6 * around**2500 if light.cover < 0.95 else 0)
            )[:, None]
        )
    soft, fine = noises()
    plane = d[:, :2] / (rise + F(0.10))[:, None]
    x, y = plane[:, 0] + light.cloud_shift[0], plane[:, 1] + light.cloud_shift[1]
    foot = F(0.01) / (rise + F(0.10))
    billow = 0.8 * soft(x, y, 9.0, foot) + 0.3 * soft(x, y, 2.6, foot)
    edge = F(1.5 - 3.0 * light.cover)
    dense = np.clip((billow - edge) / 0.9, 0, 1)
    dense = dense * dense * (3 - 2 * dense) * np.clip(0.25 + rise * 6, 0, 1)
    if light.cover > 0:
        toward = 0.25 * (np.array([0.5, 0.5]) if light.sun is None else light.sun[:2])
        thick = 0.8 * soft(x + toward[0], y + toward[1], 9.0, foot) - edge
        shade = np.clip(1.02 - 0.16 * thick - 0.12 * dense, 0.6, 1.05)
        cloud = (
            light.horizon * 0.45
            + light.ambient * 0.55
            + light.glow * (0.25 + 0.4 * around[:, None] ** 4)
        ) * shade[:, None]
        rgb = rgb * (1 - dense[:, None]) + cloud * dense[:, None]
        kelvin = kelvin + dense * light.drop * (0.45 if light.sky == "cloudy" else 0.15)
    label = np.full(len(d), m.SKY_ID, np.uint8)
    near = np.flatnonzero(up < 0.3)
    azimuth, low = np.arctan2(d[near, 0], d[near, 1]), up[near]
    wall = light.ambient * 0.5 + light.sun_colour * 0.08
    if ground_mirror:
        dark = low < 0.24 + 0.1 * soft(azimuth, 0 * azimuth, 1.6) + 0.02 * fine(azimuth, low, 0.5)
        rgb[near[dark]] = (wall * linear(110, 106, 100)) * (
            1 + 0.25 * fine(azimuth[dark], low[dark], 1.2)
        )[:, None]
        kelvin[near[dark]] = air + 1
        return rgb, kelvin, label
    haze = light.horizon
    grain = fine(azimuth, low, 0.35) * 0.5 + soft(azimuth, low, 0.8) * 0.5
    layers = (
        (0, m.MOUNTAIN, linear(96, 104, 84), 0.74),
        (1, m.BUILDING, linear(150, 140, 130), 0.45),
        (2, m.VEGETATION, linear(64, 76, 50), 0.4),
    )
    for layer, name, tint, share in layers:
        if not (light.hills[:, 3] == layer).any():
            continue
        top = np.maximum(_profile(light, azimuth, layer), 0)
        if layer == 1:
            cell = np.floor(azimuth * 40 + 2 * np.sin(azimuth * 9))
            top = top * (0.25 + 0.75 * hash01(cell, 5))
        if layer == 2:
            top = (
                top
                + 0.004 * soft(azimuth, 0 * azimuth, 0.5)
                + 0.002 * fine(azimuth, 0 * azimuth, 0.12)
                + 0.006
            )
        inside = low < top
        if layer == 1:
            panes = (hash01(np.floor(azimuth * 420), np.floor(low * 260)) < 0.4) * 0.25
            tone = (0.8 + 0.4 * hash01(cell, 9) - panes)[:, None]
        else:
            tone = (1 + (0.3 if layer == 2 else 0.12) * grain)[:, None]
        near_colour = tint * tone * (light.ambient * 0.75 + light.sun_colour * 0.35)
        pick = near[inside]
        rgb[pick] = (near_colour * (1 - share) + haze * share)[inside]
        kelvin[pick] = (
            air
            + (0.3 + 0.35 * grain - (1.2 if layer == 0 else 0) + (1.0 if layer == 1 else 0))[inside]
        )
        label[pick] = m.SNOW if name == m.MOUNTAIN and light.snow else name
    ground = up < 0
    rgb[ground] = haze * 0.7
    kelvin[ground] = air
    return rgb, kelvin, label
