"""The builder of solid objects for `scenes`, the numbers of materials and classes, and street
furniture."""

from dataclasses import dataclass

import numpy as np

from cmmfnet.data.scenes.raster import Mesh
from cmmfnet.data.scenes.sprites import linear

# materials: paint.py and facade.py have the painter of each
(
    PLAIN,
    FACADE,
    TILES,
    MASONRY,
    PLANKS,
    PAINT,
    ASPHALT,
    PAVING,
    GRASS,
    DIRT,
    WATER,
    MARKING,
    SPRITE,
    GLOWING,
) = range(14)


(
    SKY_ID,
    BUILDING,
    WALL,
    FENCE,
    POLE,
    ROAD,
    PAVEMENT,
    VEGETATION,
    GRASS_ID,
    TERRAIN,
    MOUNTAIN,
    WATER_ID,
    SNOW,
) = range(1, 14)


CAR, TRUCK, BUS, PERSON, BICYCLE, SIGN, LIGHT, WINDOW, DOOR, ROOF, OTHER = range(14, 25)


WALL_KINDS = {"render": 0, "brick": 1, "stone": 2, "panel": 3, "boards": 4}


@dataclass(frozen=True)
class Climate:
    """Temperatures of one scene. air in kelvin; base: K above the air in the shade, heat: K gained
    in full sun, by kind of thing.
    """

    air: float
    base: dict[str, float]
    heat: dict[str, float]


class Builder:
    """Collects patches. Corners go counter-clockwise on the visible side."""

    def __init__(self, climate: Climate):
        self.climate = climate
        self.rows: list[tuple] = []

    def quad(self, corners, material, label, colour, thing, *, param=(), gloss=0.0, seed=0, layer=0,
             add=0.0, sprite=-1,
             seen=True, casts=True, origin=None) -> None:  # fmt: skip
        """One patch. thing: key of Climate.base and heat; add: kelvin on top; origin: of the
        texture, else the first corner.
        """
        c = np.asarray(corners, np.float64)
        if len(c) == 3:
            c = c[[0, 1, 2, 2]]
        u = c[1] - c[0]
        u /= np.sqrt(u @ u)
        v = c[2] - c[0]
        if len(corners) == 4:
            v = v + c[3] - c[0]
        v = v - u * (v @ u)
        v /= np.sqrt(v @ v)
        param = (*param, *[0.0] * (12 - len(param)))
        at = c[0] if origin is None else origin
        base, heat = self.climate.base[thing] + add, self.climate.heat[thing]
        self.rows.append(
            (
                c,
                at,
                u,
                v,
                material,
                label,
                colour,
                base,
                heat,
                gloss,
                param,
                seed,
                sprite,
                layer,
                seen,
                casts,
            )
        )

    def box(
        self, x0, x1, y0, y1, z0, z1, material, label, colour, thing, faces="nesw t", **more
    ) -> None:
        """An upright box; faces: s is -y, n is +y, w is -x, e is +x, t the top."""
        corners = {
            "s": [(x0, y0, z0), (x1, y0, z0), (x1, y0, z1), (x0, y0, z1)],
            "n": [(x1, y1, z0), (x0, y1, z0), (x0, y1, z1), (x1, y1, z1)],
            "w": [(x0, y1, z0), (x0, y0, z0), (x0, y0, z1), (x0, y1, z1)],
            "e": [(x1, y0, z0), (x1, y1, z0), (x1, y1, z1), (x1, y0, z1)],
            "t": [(x0, y0, z1), (x1, y0, z1), (x1, y1, z1), (x0, y1, z1)],
        }
        for face in faces.replace(" ", ""):
            self.quad(corners[face], material, label, colour, thing, **more)

    def mesh(self) -> Mesh:
        """The patches so far."""
        kinds = (
            [np.float32] * 4
            + [np.int16, np.uint8]
            + [np.float32] * 5
            + [np.int64, np.int32, np.float32, bool, bool]
        )
        columns = zip(*self.rows, strict=True)
        return Mesh(*[np.array(column, kind) for column, kind in zip(columns, kinds, strict=True)])


def flat(builder: Builder, x0, x1, y0, y1, z, material, label, colour, thing, **more) -> None:
    """A level rectangle."""
    corners = [(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)]
    builder.quad(corners, material, label, colour, thing, origin=(0.0, 0.0, z), casts=z > 1, **more)


def post(
    climate, height: float, radius: float, colour, label=POLE, arm: float = 0.0, lamp: float = 0.0
) -> Mesh:
    """A pole; with `arm` metres of outreach towards +x and a lamp of brightness `lamp` it is a
    street light."""
    b = Builder(climate)
    b.box(
        -radius,
        radius,
        -radius,
        radius,
        0,
        height,
        PLAIN,
        label,
        colour,
        "pole",
        "nesw",
        gloss=0.04,
    )
    b.box(
        -radius * 1.6,
        radius * 1.6,
        -radius * 1.6,
        radius * 1.6,
        0,
        min(1.0, height / 4),
        PLAIN,
        label,
        colour,
        "pole",
        "nesw",
    )
    if arm:
        z = height - 0.05
        b.box(0, arm, -0.04, 0.04, z, z + 0.08, PLAIN, label, colour, "pole", "nesw t")
        b.box(
            arm - 0.2,
            arm + 0.5,
            -0.14,
            0.14,
            z - 0.04,
            z + 0.1,
            PLAIN,
            label,
            colour * 0.8,
            "pole",
            "nesw t",
            add=4.0 if lamp else 0,
        )
        under = [
            (arm - 0.15, 0.12, z - 0.05),
            (arm + 0.45, 0.12, z - 0.05),
            (arm + 0.45, -0.12, z - 0.05),
            (arm - 0.15, -0.12, z - 0.05),
        ]
        b.quad(
            under,
            GLOWING,
            label,
            linear(255, 214, 160),
            "pole",
            param=(lamp,),
            add=15.0 if lamp else 0,
        )
    return b.mesh()


def bench(climate, rng) -> Mesh:
    """A park bench, 1.7 m long, facing -y."""
    b = Builder(climate)
    wood = linear(112, 84, 58) * rng.uniform(0.7, 1.2)
    for y in (0.0, 0.15, 0.3):
        b.box(-0.85, 0.85, y, y + 0.12, 0.42, 0.46, PLANKS, OTHER, wood, "wood")
    for z in (0.6, 0.75):
        b.box(-0.85, 0.85, 0.44, 0.48, z, z + 0.11, PLANKS, OTHER, wood, "wood")
    for x in (-0.7, 0.65):
        b.box(x, x + 0.05, 0.0, 0.46, 0, 0.42, PLAIN, OTHER, linear(50, 52, 52), "pole", "nesw")
        b.box(x, x + 0.05, 0.46, 0.5, 0, 0.88, PLAIN, OTHER, linear(50, 52, 52), "pole", "nesw")
    return b.mesh()
