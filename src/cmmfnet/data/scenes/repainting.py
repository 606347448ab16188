"""Rendered scenes with one thing in another colour: the exact target of a swapped word.

Only materials and light change. Geometry, camera and noise are the same as before, so that the
labels and the thermal frame of the seed stay valid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cmmfnet.data.scenes import models as m
from cmmfnet.data.scenes.frame import frame
from cmmfnet.data.scenes.layout import build
from cmmfnet.data.scenes.raster import Mesh
from cmmfnet.data.scenes.sprites import linear
from cmmfnet.data.scenes.weather import make_light
from cmmfnet.data.scenes.world import World

DEEP = 2.0  # Light.snow that covers roads
LEAVES, BARE = linear(84, 104, 52), linear(104, 96, 88)


def repaint(
    seed: int,
    kind: str,
    size: tuple[int, int],
    *,
    ground: str | None = None,
    trees: str | Sequence[int] | None = None,
    cars: Sequence[int] | None = None,
    lighting: str = "day",
) -> np.ndarray:
    """The colour picture of `scenes.render(seed, kind, size, lighting="day")` with some things
    changed.

    Args:
        seed, kind, size: as for `scenes.render`.
        ground: "snow" puts snow on the ground, roads included, and on roofs; None: no change.
        trees: "green", "bare" (the colour of twigs; the shape of the crown stays), or the mean sRGB
            of the leaves; None: no change.
        cars: sRGB of the paint of all cars; None: no change.
        lighting: "day", or "night" for the same place without daylight.

    Returns:
        (height, width, 3) uint8 sRGB.

    Raises:
        ValueError: another word than these.
    """
    for name, word, known in (
        ("ground", ground, (None, "snow")), ("lighting", lighting, ("day", "night")),
        ("trees", trees if isinstance(trees, str) else None, (None, "green", "bare")),
    ):  # fmt: skip
        if word not in known:
            raise ValueError(f"{name} is {word!r}; expected one of {', '.join(map(repr, known))}")
    world = build(seed, kind, "day")
    if ground is not None:
        world = replace(world, light=replace(world.light, snow=DEEP))
    if trees is not None:
        named = {"green": LEAVES, "bare": BARE}
        world = _leaves(world, named[trees] if isinstance(trees, str) else linear(*trees))
    if cars is not None:
        paint = linear(*cars)
        movers = [replace(mover, mesh=_painted(mover.mesh, paint)) for mover in world.movers]
        world = replace(world, movers=movers)
    if lighting == "night":
        world = replace(
            world, light=make_light(np.random.default_rng([seed, 7]), "night", 0.0, False)
        )
    return frame(world, seed, *size, 0.0)[1]


def _painted(mesh: Mesh, paint: np.ndarray) -> Mesh:
    body = (mesh.label == m.CAR) & (mesh.material == m.PAINT)
    return replace(mesh, colour=np.where(body[:, None], paint.astype(np.float32), mesh.colour))


def _leaves(world: World, colour: np.ndarray) -> World:
    atlas = world.atlas
    plant = (atlas.label == m.VEGETATION) & atlas.opaque
    if not plant.any():
        return world
    level = atlas.colour[plant].mean(axis=1)
    changed = atlas.colour.copy()
    changed[plant] = colour * (level / max(float(level.mean()), 1e-6))[:, None].clip(0.3, 2.0)
    return replace(world, atlas=replace(atlas, colour=changed))
