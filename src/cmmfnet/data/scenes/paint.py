"""Painters of the materials of `scenes`: roofs, vehicles, roads, ground, water (walls: facade.py).
PAINTERS lists them all.
"""

import numpy as np

from cmmfnet.data.scenes import models as m
from cmmfnet.data.scenes.facade import Points, facade, paint_wall
from cmmfnet.data.scenes.shading import F, hash01, noises
from cmmfnet.data.scenes.sprites import linear


def tiles(p: Points) -> None:
    """Roof tiles in rows."""
    row = np.floor(p.v / 0.28)
    across = p.u / 0.24 + (row % 2) * 0.5
    tone = hash01(np.floor(across), row, p.seed) - F(0.5)
    sharp = np.clip(1.7 - p.foot / 0.12, 0, 1)
    at = p.v / 0.28 - row
    p.colour *= (1 + (0.35 * tone + 0.22 * (at - 0.5) - 0.45 * (at < 0.1)) * sharp)[:, None]
    p.colour *= np.clip(1 + 0.1 * p.slow + 0.06 * p.fine, 0.5, 1.5)[:, None]
    moss = np.clip(p.slow - 0.9, 0, 1) * 0.5
    p.colour += (linear(88, 92, 58) - p.colour) * moss[:, None]
    p.kelvin += 0.7 * p.slow + 0.3 * tone * sharp + 0.2 * p.fine
    p.emissivity[:] = 0.93


def masonry(p: Points) -> None:
    """Garden walls of brick or stone; param: kind of wall."""
    paint_wall(p, p.param[:, 0].astype(int))


def planks(p: Points) -> None:
    """Upright boards of a wooden fence."""
    board = np.floor(p.u / 0.14)
    tone = hash01(board, p.seed) - F(0.5)
    gap = ((p.u / 0.14 - board) < 0.12) * np.clip(1.6 - p.foot / 0.08, 0, 1)
    soft, _ = noises()
    grain = soft(p.u * 8, p.v * F(0.6), 3.0, p.foot * 4)
    p.colour *= np.clip(1 + 0.4 * tone + 0.12 * grain - 0.6 * gap + 0.08 * p.slow, 0.2, 1.6)[
        :, None
    ]
    p.ambient *= 1 - 0.35 * np.exp(-np.maximum(p.v, 0) / 0.4)
    p.kelvin += 0.8 * tone + 0.3 * grain


def vehicle(p: Points) -> None:
    """Car paint, with a window where param (bottom, top, pillar spacing, pillar width, margin) says
    so and seams if param[5].
    """
    low, high, spacing, pillar, margin, seam, blank = p.param[:, :7].T
    p.emissivity[:] = 0.90
    gap = np.abs((p.u - 1.55) % 1.05) < 0.014
    p.colour *= (1 - 0.55 * ((seam > 0) & (high == 0) & gap))[:, None]
    p.colour *= (1 + 0.02 * p.slow)[:, None]
    p.ambient *= np.where(high == 0, np.clip(0.72 + 0.5 * p.v, 0.6, 1), 1)
    p.kelvin += 0.25 * p.slow
    reach = np.where(spacing > 0, spacing, 1)
    post = ((p.u - margin) % reach) < pillar
    pane = (high > 0) & (p.v > low) & (p.v < high) & (p.u > margin) & ~post
    pane &= ~((blank > 0) & (p.u < blank))
    room = np.array([0.014, 0.015, 0.016], F) * (1 + 0.8 * (p.slow > 0.3))[:, None]
    p.colour[pane] = room[pane]
    p.mirror[pane] = 0.11
    p.emissivity[pane] = 0.84
    p.kelvin[pane] = -0.6
    rim = (high > 0) & ~pane
    p.colour[rim] *= 0.55
    if p.night:
        bus = pane & (p.label == m.BUS)
        p.emit[bus] = np.array([0.55, 0.5, 0.4], F)


def asphalt(p: Points) -> None:
    """Road surface; param: half width of the road, lane width. Wheel tracks are paler and warmer,
    the middle of a lane is oily.
    """
    half, lane = p.param[:, 0], np.maximum(p.param[:, 1], 1)
    at = ((p.u + half) % lane) / lane
    track = np.exp(-(((at - 0.22) / 0.09) ** 2)) + np.exp(-(((at - 0.78) / 0.09) ** 2))
    oil = np.exp(-(((at - 0.5) / 0.1) ** 2))
    patch = (p.slow > 1.35) & (hash01(p.seed, 3) < 0.7)
    crack = np.abs(p.fine + 0.3 * p.slow) < 0.035
    p.colour *= np.clip(
        1
        + 0.07 * p.slow
        + 0.07 * p.fine
        + 0.12 * p.grain
        + 0.06 * track
        - 0.09 * oil
        - 0.16 * patch,
        0.4,
        1.6,
    )[:, None]
    p.colour[crack & (p.foot < 0.05)] *= 0.8
    p.kelvin += 0.25 * p.slow + 0.15 * p.fine + 0.7 * track + 0.5 * patch + 0.06 * p.grain
    p.emissivity[:] = 0.96


def paving(p: Points) -> None:
    """Slabs; param: size of a slab in metres (0: poured concrete or gravel)."""
    size = p.param[:, 0]
    slab = size > 0
    s = np.where(slab, size, 1)
    row = np.floor(p.v / s)
    column = np.floor(p.u / s + 0.5 * (row % 2))
    tone = np.where(slab, hash01(column, row, p.seed) - F(0.5), 0)
    sharp = np.clip(1.8 - p.foot / s * 5, 0, 1)
    line = slab & (
        ((p.v / s - row) < 0.012 / s * 2) | ((p.u / s + 0.5 * (row % 2) - column) < 0.012 / s * 2)
    )
    p.colour *= np.clip(
        1
        + 0.16 * tone * sharp
        + 0.08 * p.slow
        + 0.06 * p.fine
        + 0.07 * p.grain
        - 0.4 * line * sharp,
        0.3,
        1.6,
    )[:, None]
    p.kelvin += 0.3 * p.slow + 0.2 * tone * sharp + 0.1 * p.fine
    p.emissivity[:] = 0.95


def grass(p: Points) -> None:
    """Lawn or field: blades, clumps, dry patches, a few leaves or daisies."""
    soft, fine = noises()
    blade = fine(p.u, p.v * F(0.45), 0.9, p.foot * F(0.7))
    clump = soft(p.u, p.v, 2.7, p.foot)
    dry = np.clip(0.28 * p.slow + 0.16 * clump + 0.1, 0, 1)
    p.colour += (p.colour * np.array([1.45, 1.1, 0.8], F) - p.colour) * dry[:, None]
    p.colour *= np.clip(1 + 0.3 * blade + 0.16 * clump + 0.08 * p.slow, 0.3, 1.9)[:, None]
    speck = (p.grain > 2.6) & (p.foot < 0.03)
    p.colour[speck] = p.colour[speck] * 0.4 + linear(180, 160, 110) * 0.6
    p.kelvin += 0.45 * p.slow + 0.35 * clump + 0.3 * blade + 0.8 * dry
    p.emissivity[:] = 0.97


def dirt(p: Points) -> None:
    """Bare earth, sand or gravel."""
    p.colour *= np.clip(1 + 0.15 * p.slow + 0.12 * p.fine + 0.16 * p.grain, 0.4, 1.7)[:, None]
    p.kelvin += 0.5 * p.slow + 0.25 * p.fine + 0.12 * p.grain
    p.emissivity[:] = 0.94


def water(p: Points) -> None:
    """A pond: mostly a mirror (the caller bends the reflected ray by these ripples)."""
    p.mirror[:] = 0.04
    p.colour *= (1 + 0.1 * p.slow)[:, None]
    p.kelvin += 0.1 * p.slow
    p.emissivity[:] = 0.96


def marking(p: Points) -> None:
    """Worn road paint; nearly invisible in thermal."""
    worn = np.clip(0.22 + 0.18 * p.fine + 0.16 * p.grain + 0.1 * p.slow, 0, 0.85)
    p.colour += (linear(96, 96, 96) - p.colour) * worn[:, None]
    p.kelvin += 0.25 * p.slow + 0.15 * p.fine - 0.35
    p.emissivity[:] = 0.96


def plain(p: Points) -> None:
    """Matte paint, concrete, metal."""
    p.colour *= np.clip(1 + 0.05 * p.slow + 0.05 * p.fine + 0.04 * p.grain, 0.5, 1.5)[:, None]
    p.kelvin += 0.2 * p.slow + 0.1 * p.fine
    p.emissivity[p.label == m.POLE] = 0.72


def glowing(p: Points) -> None:
    """Lamps; param: brightness."""
    p.emit[:] = p.colour * p.param[:, :1]
    p.mirror[:] = 0.06


PAINTERS = {
    m.PLAIN: plain, m.FACADE: facade, m.TILES: tiles, m.MASONRY: masonry, m.PLANKS: planks,
    m.PAINT: vehicle,
    m.ASPHALT: asphalt, m.PAVING: paving, m.GRASS: grass, m.DIRT: dirt, m.WATER: water,
    m.MARKING: marking,
    m.GLOWING: glowing,
}  # fmt: skip
