"""The parts of a world of `scenes`, and the Author, with which the layouts put things into it."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cmmfnet.data.scenes import models as m
from cmmfnet.data.scenes import plants, sprites, vehicles
from cmmfnet.data.scenes.raster import Atlas, Mesh, join
from cmmfnet.data.scenes.shading import Light
from cmmfnet.data.scenes.sprites import linear


@dataclass
class Mover:
    """A vehicle: a mesh that drives from `start` (x, y) with `velocity` m/s along y."""

    mesh: Mesh
    start: tuple[float, float]
    velocity: float
    yaw: float
    size: tuple[float, float]
    warm: float


@dataclass
class Card:
    """A billboard: a sprite that turns towards whoever looks. `phases` are the sprites of one step;
    velocity (x, y) in m/s.
    """

    at: tuple[float, float, float]
    phases: tuple[int, ...]
    scale: float
    mirror: bool = False
    velocity: tuple[float, float] = (0.0, 0.0)
    contact: float = 0.3


@dataclass
class World:
    """Everything about a scene that does not depend on the frame."""

    kind: str
    light: Light
    climate: m.Climate
    static: Mesh
    atlas: Atlas
    sizes: np.ndarray  # (sprites, 2) metres
    movers: list[Mover]
    cards: list[Card]
    lamps: np.ndarray  # (k,6): position, colour
    footprints: list[tuple]  # (x0, x1, y0, y1, strength)
    start: tuple[float, float, float]
    yaw: float
    pitch: float
    zoom: float  # focal length over picture width
    velocity: tuple[float, float]
    reach: float  # metres after which the camera slows to a stop

    def pose(self, time: float):
        """Camera position at `time` seconds: constant speed that fades out, so that any length of
        video stays inside the world.
        """
        speed = float(np.hypot(*self.velocity))
        far = self.reach * np.tanh(speed * time / self.reach)
        x, y, z = self.start
        return x + self.velocity[0] / speed * far, y + self.velocity[1] / speed * far, z


SUMMER = [(84, 100, 52), (70, 88, 46), (98, 108, 60), (62, 80, 44), (106, 112, 70), (78, 92, 58)]


AUTUMN = [(158, 116, 54), (140, 92, 48), (172, 136, 64), (120, 104, 56), (134, 72, 44)]


DARK = [(46, 62, 42), (52, 70, 48), (42, 56, 44)]


class Author:
    """Puts things into a world while it is being laid out."""

    def __init__(self, rng, light: Light, climate: m.Climate, heading: float):
        self.rng, self.light, self.climate = rng, light, climate
        self.ground = m.Builder(climate)
        self.meshes: list[Mesh] = []
        self.sprites: list[sprites.Sprite] = []
        self.movers: list[Mover] = []
        self.cards: list[Card] = []
        self.lamps: list[tuple] = []
        self.footprints: list[tuple] = []
        self.view: tuple[np.ndarray, np.ndarray] | None = (
            None  # camera and subject; nothing may stand between them
        )
        self.dark = light.lighting != "day"
        self.sun = None
        if (
            light.sun is not None
        ):  # in the frame of the trees along `heading`: right, towards the viewer, up
            right, back = (
                np.array([np.cos(heading), np.sin(heading)]),
                np.array([np.sin(heading), -np.cos(heading)]),
            )
            self.sun = np.array([light.sun[:2] @ right, light.sun[:2] @ back, light.sun[2]])
        self.season = (
            "winter"
            if light.snow
            else str(rng.choice(["summer", "autumn", "winter"], p=[0.7, 0.17, 0.13]))
        )
        self.wheels = [self.sprite(sprites.wheel(rng, x)) for x in (0.8, 5.0)]
        self._plants()

    def sprite(self, sprite: sprites.Sprite) -> int:
        self.sprites.append(sprite)
        return len(self.sprites) - 1

    def _plants(self) -> None:
        rng, c = self.rng, self.climate
        heat, base = c.heat["leaf"] * max(self.light.insolation, 0.02), c.base["leaf"]
        palette = np.stack([linear(*x) for x in (AUTUMN if self.season == "autumn" else SUMMER)])
        dark = np.stack([linear(*x) for x in DARK])
        bark = linear(*[(92, 80, 66), (112, 104, 92), (74, 62, 52)][rng.integers(3)])

        def greens(some):
            return np.clip(some[rng.permutation(len(some))[:3]] * rng.uniform(0.75, 1.15), 0, 1)

        shapes = [
            *rng.choice(["round", "spread", "tall", "round"], 3),
            str(rng.choice(["cone", "column", "tall"])),
        ]
        self.trees = []
        for shape in shapes:
            high = {"round": 8.0, "spread": 9.0, "tall": 10.0, "cone": 9.0, "column": 8.0}[
                shape
            ] * rng.uniform(0.8, 1.3)
            evergreen = shape in ("cone", "column")
            bare = self.season == "winter" and not evergreen
            sprite = plants.tree(
                rng,
                shape,
                high,
                greens(dark if evergreen else palette),
                bark,
                self.sun,
                heat,
                base,
                bare,
            )
            self.trees.append(self.sprite(sprite))
        if self.season == "summer" and rng.random() < 0.15 and not self.dark:
            self.trees += [
                self.sprite(plants.palm(rng, rng.uniform(9, 14), greens(palette), bark, heat, base))
            ] * 3
        leafy = palette if self.season != "winter" else dark
        self.bushes = [
            self.sprite(plants.tree(rng, "bush", 1.5, greens(some), bark, self.sun, heat, base))
            for some in (leafy, dark, SUMMER_GREENS)
        ]
        self.hedge = self.sprite(
            plants.tree(
                rng,
                "hedge",
                1.5,
                greens(dark if rng.random() < 0.5 else leafy),
                bark,
                self.sun,
                heat,
                base,
            )
        )

    def hides(self, x, y, half: float) -> bool:
        """Whether a thing at (x, y), `half` metres wide to each side, hides the subject or stands
        right in front of the lens.
        """
        if self.view is None:
            return False
        p, d = np.array([x, y]) - self.view[0], self.view[1] - self.view[0]
        along, aside = p @ d / (d @ d), abs(p[0] * d[1] - p[1] * d[0]) / np.hypot(*d)
        return bool(0 < along < 0.72 and aside < half + 1.0 + 2.0 * along) or bool(
            np.hypot(*p) < 3.0 + half
        )

    def tree(self, x, y, scale=None, kind=None) -> None:
        rng = self.rng
        which = self.trees[rng.integers(len(self.trees))] if kind is None else kind
        scale = rng.uniform(0.75, 1.2) if scale is None else scale
        self.cards.append(Card((x, y, 0.0), (which,), scale, bool(rng.random() < 0.5), contact=0.5))

    def bush(self, x, y, scale=1.0) -> None:
        rng = self.rng
        which = self.bushes[rng.integers(len(self.bushes))]
        self.cards.append(
            Card(
                (x, y, 0.05),
                (which,),
                scale * rng.uniform(0.6, 1.2),
                bool(rng.random() < 0.5),
                contact=0.7,
            )
        )

    def people(self, count: int, place, velocity) -> None:
        """`count` walkers; place() -> (x, y), velocity() -> (x, y) in m/s."""
        for _ in range(count):
            look = int(self.rng.integers(1 << 20))
            walk = velocity()
            steps = np.arange(8) * np.pi / 4 if np.hypot(*walk) > 0.1 else [0.25]
            ids = tuple(
                self.sprite(sprites.person(self.rng, float(k), look, self.climate.air))
                for k in steps
            )
            self.cards.append(
                Card((*place(), 0.1), ids, self.rng.uniform(0.9, 1.02), walk[0] < 0, walk, 0.25)
            )

    def car(self, x, y, yaw, velocity=0.0, running=None) -> None:
        running = velocity != 0 or self.rng.random() < 0.25 if running is None else running
        lights = running and (self.dark or self.rng.random() < 0.15)
        mesh = vehicles.car(self.climate, self.rng, self.wheels[int(running)], running, lights)
        self.movers.append(Mover(mesh, (x, y), velocity, yaw, (1.0, 2.25), 4.0 if running else 1.0))
        if lights and self.light.lighting == "night":
            ahead = np.array([-np.sin(yaw), np.cos(yaw)])
            if velocity == 0:
                self.lamps.append((*(np.array([x, y]) + 5 * ahead), 0.9, 1.2, 1.1, 0.9))

    def big(self, kind, x, y, yaw, velocity) -> None:
        mesh = vehicles.big_vehicle(self.climate, self.rng, kind, self.wheels[1], True, self.dark)
        self.movers.append(Mover(mesh, (x, y), velocity, yaw, (1.25, 4.5), 5.0))

    def fixed(self, mesh: Mesh, x, y, z=0.0, yaw=0.0, foot=None, strength=0.5) -> None:
        self.meshes.append(mesh.placed(x, y, z, yaw))
        if foot is not None:
            self.footprints.append((*foot, strength))

    def panel(self, sprite: int, x0, y0, x1, y1, z, label, repeat: bool = False) -> None:
        """An upright sprite from (x0, y0) to (x1, y1), stretched, or `repeat`ed at its own
        width."""
        wide, high = self.sprites[sprite].wide, self.sprites[sprite].high
        long = np.hypot(x1 - x0, y1 - y0)
        count = max(1, round(long / wide)) if repeat else 1
        points = np.linspace([x0, y0], [x1, y1], count + 1)
        for (xa, ya), (xb, yb) in pairwise(points):
            corners = [(xa, ya, z), (xb, yb, z), (xb, yb, z + high), (xa, ya, z + high)]
            self.ground.quad(
                corners,
                m.SPRITE,
                label,
                np.zeros(3),
                "pole",
                param=(long / count, high),
                sprite=sprite,
            )

    def lamp(self, x, y, arm: float) -> None:
        if self.hides(x, y, 2.0):
            return
        mesh = m.post(
            self.climate,
            6.5,
            0.06,
            linear(96, 100, 100),
            arm=abs(arm),
            lamp=5.0 if self.dark else 0.0,
        )
        self.fixed(mesh, x, y, 0, 0.0 if arm > 0 else np.pi)
        if self.light.lighting == "night":
            self.lamps.append((x + arm, y, 6.3, *np.array([8.0, 5.8, 3.3])))

    def sign(self, x, y, kind) -> None:
        """A road sign that faces -y."""
        if self.hides(x, y, 2.0):
            return
        self.fixed(m.post(self.climate, 2.6, 0.035, linear(132, 134, 134)), x, y)
        picture = self.sprites[s := self.sprite(sprites.sign(self.rng, kind))]
        self.panel(s, x - picture.wide / 2, y - 0.06, x + picture.wide / 2, y - 0.06, 2.0, m.SIGN)

    def traffic_light(self, x, y, lit) -> None:
        self.fixed(m.post(self.climate, 3.4, 0.06, linear(60, 62, 62)), x, y)
        s = self.sprite(sprites.traffic_light(self.rng, lit))
        self.panel(s, x - 0.18, y - 0.1, x + 0.18, y - 0.1, 2.4, m.LIGHT)

    def finish(self, kind, start, yaw, pitch, zoom, velocity, reach) -> World:
        if self.ground.rows:
            self.meshes.append(self.ground.mesh())
        sizes = np.array([(s.wide, s.high) for s in self.sprites], np.float32)
        lamps = np.array(self.lamps, np.float32).reshape(-1, 6)
        return World(
            kind, self.light, self.climate, join(self.meshes), sprites.build_atlas(self.sprites),
            sizes, self.movers,
            self.cards, lamps, self.footprints, start, yaw, pitch, zoom, velocity, reach,
        )  # fmt: skip


SUMMER_GREENS = np.stack([linear(*x) for x in SUMMER])
