"""One frame of a `scenes` world: visible surfaces with their light and heat, at twice the size,
then through the sensors.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from cmmfnet.data.scenes import models as m
from cmmfnet.data.scenes.facade import Points
from cmmfnet.data.scenes.paint import PAINTERS
from cmmfnet.data.scenes.raster import Camera, Mesh, ShadowMap, join, look, rasterise
from cmmfnet.data.scenes.sensors import microbolometer, photograph
from cmmfnet.data.scenes.shading import F, noises, sky
from cmmfnet.data.scenes.world import World

FAR = 175.0  # metres


def _cards(world: World, time: float, yaw: float, seen: bool) -> Mesh | None:
    """Billboards as patches turned by `yaw`: towards the camera (`seen`), or towards the sun, where
    they only cast shadows (not `seen`)."""
    cards = world.cards
    if not cards:
        return None
    at = np.array([c.at for c in cards], F)
    at[:, :2] += np.array([c.velocity for c in cards], F) * F(time)
    sprite = np.array([c.phases[int(time * 6.5) % len(c.phases)] for c in cards])
    size = world.sizes[sprite] * np.array([c.scale for c in cards], F)[:, None]
    # All cards are parallel: turned one by one they would cut into each other as the camera passes.
    right = np.array([np.cos(yaw), np.sin(yaw), 0], F)
    right = np.where(np.array([c.mirror for c in cards])[:, None], -right, right).astype(F)
    up = np.zeros_like(right)
    up[:, 2] = 1
    low = at - right * size[:, :1] / 2
    across, rise = right * size[:, :1], up * size[:, 1:]
    n = len(cards)
    param = np.zeros((n, 12), F)
    param[:, :2] = size
    param[:, 2] = (
        size[:, 0] * 0.5 + 0.3
    )  # a crown must not shade its own card: look for the sun from this far off
    zero = np.zeros(n, F)
    return Mesh(
        quad=np.stack([low, low + across, low + across + rise, low + rise], 1), origin=low,
        u_axis=right, v_axis=up,
        material=np.full(n, m.SPRITE, np.int16), label=np.full(n, m.VEGETATION, np.uint8),
        colour=np.zeros((n, 3), F),
        temperature=zero, heating=zero, gloss=zero, param=param, seed=np.arange(n),
        sprite=sprite.astype(np.int32),
        layer=zero, seen=np.full(n, seen), casts=np.full(n, not seen),
    )  # fmt: skip


def _assemble(world: World, camera: Camera, time: float) -> Mesh:
    centre = world.static.quad.mean(1) - camera.position
    ahead = centre @ camera.axes[2]
    size = np.abs(world.static.quad - world.static.quad.mean(1, keepdims=True)).max((1, 2))
    parts = [world.static.take(np.flatnonzero((ahead > -25 - size) & (ahead < FAR + size)))]
    for mover in world.movers:
        x, y = mover.start[0], mover.start[1] + mover.velocity * time
        d = np.array([x, y]) - camera.position[:2]
        if d @ camera.axes[2][:2] < -12 or np.hypot(*d) > 130:
            continue
        if mover.velocity and np.hypot(*d) < 3.0:
            continue  # traffic that would drive through the camera
        parts.append(mover.mesh.placed(x, y, 0.0, mover.yaw))
    for seen in (True, False):
        if not seen and world.light.sun is None:
            break
        yaw = world.yaw if seen else float(np.arctan2(world.light.sun[0], -world.light.sun[1]))
        cards = _cards(world, time, yaw, seen)
        if cards is not None:
            parts.append(cards)
    return join(parts)


class ContactMap:
    """Map of the things on the ground from above, (dark, warm), that dims the light of the sky next
    to walls and below cars.
    """

    step = 0.125

    def __init__(self, world: World, time: float, centre):
        side = 800
        self.side = side
        self.corner = np.floor(np.array(centre) / self.step) * self.step - side * self.step / 2
        layers = {k: Image.new("L", (side, side)) for k in ("broad", "sharp", "warm")}
        draw = {k: ImageDraw.Draw(v) for k, v in layers.items()}

        def cell(points):
            return [tuple((np.array(p) - self.corner) / self.step) for p in points]

        for x0, x1, y0, y1, strength in world.footprints:
            draw["broad"].polygon(
                cell([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]), fill=int(255 * strength)
            )
        for mover in world.movers:
            x, y = mover.start[0], mover.start[1] + mover.velocity * time
            c, s = np.cos(mover.yaw), np.sin(mover.yaw)
            w, h = mover.size
            points = [
                (x + c * a - s * b, y + s * a + c * b)
                for a, b in ((-w, -h), (w, -h), (w, h), (-w, h))
            ]
            draw["sharp"].polygon(cell(points), fill=235)
            draw["warm"].polygon(cell(points), fill=int(min(255, mover.warm * 25)))
        for card in world.cards:
            x, y = card.at[0] + card.velocity[0] * time, card.at[1] + card.velocity[1] * time
            r = 0.22 if card.velocity != (0.0, 0.0) else card.contact
            (x0, y0), (x1, y1) = cell([(x - r, y - r), (x + r, y + r)])
            draw["broad" if r > 0.4 else "sharp"].ellipse((x0, y0, x1, y1), fill=140)
        blur = {"broad": 5, "sharp": 1.6, "warm": 3}
        self.maps = {
            k: np.asarray(v.filter(ImageFilter.GaussianBlur(blur[k])), F).ravel() / 255
            for k, v in layers.items()
        }

    def __call__(self, name: str, x, y) -> np.ndarray:
        i = ((y - F(self.corner[1])) / F(self.step)).astype(np.int32)
        j = ((x - F(self.corner[0])) / F(self.step)).astype(np.int32)
        inside = (i >= 0) & (j >= 0) & (i < self.side) & (j < self.side)
        return np.where(inside, self.maps[name][np.where(inside, i * self.side + j, 0)], 0)


def surfaces(world: World, camera: Camera, time: float):
    """Linear radiance (P,3), apparent temperature (P,) in kelvin and label (P,) of every pixel."""
    light, air = world.light, world.climate.air
    mesh = _assemble(world, camera, time)
    patch, close, texel = rasterise(camera, mesh, world.atlas)
    size = len(patch)
    rgb, kelvin, label = np.zeros((size, 3), F), np.zeros(size, F), np.zeros(size, np.uint8)
    empty = np.flatnonzero(patch < 0)
    if len(empty):
        rgb[empty], kelvin[empty], label[empty] = sky(light, camera.rays(empty), air)
    hit = np.flatnonzero(patch >= 0)
    hit = hit[np.argsort(mesh.material[patch[hit]], kind="stable")]  # one slice per material
    p = patch[hit]
    material = mesh.material[p]
    card = material == m.SPRITE
    ray = camera.rays(hit)
    depth = 1 / close[hit]
    world_at = camera.position + ray * depth[:, None]
    length = np.linalg.norm(ray, axis=1)
    ray /= length[:, None]
    normals = mesh.normal.astype(F)
    normal = normals[p]
    cosine = np.einsum("ij,ij->i", ray, normal)
    normal[cosine > 0] *= -1  # sprites have no back
    cosine = np.abs(cosine)
    offset = world_at - mesh.origin[p]
    u = np.einsum("ij,ij->i", offset, mesh.u_axis[p])
    v = np.einsum("ij,ij->i", offset, mesh.v_axis[p])
    foot = depth / F(camera.focal) / np.sqrt(np.maximum(cosine, 0.06))
    count = len(hit)
    albedo = mesh.colour[p]
    ambient, direct = np.ones(count, F), np.ones(count, F)
    mirror, added, emissivity = mesh.gloss[p], np.zeros(count, F), np.full(count, 0.95, F)
    emit, found = np.zeros((count, 3), F), mesh.label[p]
    heated = mesh.heating[p]
    soft, fine = noises()
    bounds = np.flatnonzero(np.diff(material)) + 1
    for a, b in zip([0, *bounds], [*bounds, count], strict=True):
        if a == b:
            continue
        kind, s, q = int(material[a]), slice(a, b), p[a:b]
        if kind == m.SPRITE:
            t = texel[hit[s]]
            atlas = world.atlas
            albedo[s], direct[s], ambient[s] = atlas.colour[t], atlas.shade[t], atlas.ambient[t]
            added[s], found[s] = atlas.kelvin[t], atlas.label[t]
            emit[s] = atlas.colour[t] * atlas.glow[t][:, None]
            emissivity[s] = 1.0  # its temperatures are apparent ones
            heated[s] = 0
            free = mesh.param[q, 2] > 0
            if light.sun is not None:
                world_at[s] += np.where(free, mesh.param[q, 2], 0)[:, None] * light.sun.astype(F)
            continue
        seed = mesh.seed[q]
        shift = (seed % 1009).astype(F) * F(1.37)
        x, y, f = u[s] + shift, v[s] + shift, foot[s]
        frame = [mesh.u_axis[q], mesh.v_axis[q], normals[q]]

        def local(d, frame=frame):
            return np.stack(
                [np.einsum("ij,ij->i", np.broadcast_to(d, k.shape), k) for k in frame], 1
            )

        points = Points(
            u=u[s], v=v[s], foot=f, param=mesh.param[q], seed=seed, colour=albedo[s],
            ray=local(ray[s]) if kind == m.FACADE else None,
            sun=local(light.sun.astype(F)) if light.sun is not None and kind == m.FACADE else None,
            slow=soft(x, y, 14.0, f), fine=soft(x, y, 2.3, f), grain=fine(x, y, 1.1, f),
            label=found[s],
            ambient=ambient[s], direct=direct[s], mirror=mirror[s], kelvin=added[s],
            emissivity=emissivity[s],
            emit=emit[s], night=light.lighting != "day",
        )  # fmt: skip
        PAINTERS[kind](points)
        if light.snow:
            _snow(points, kind, normal[s], light.snow)
    # slices of the arrays above were views, so the painters have written into them
    level = (normal[:, 2] > 0.9) & (world_at[:, 2] < 0.3) & ~card
    ground = np.flatnonzero(level)
    middle = camera.position[:2] + 42 * camera.axes[2][:2]
    contact = ContactMap(world, time, middle)
    gx, gy = world_at[ground, 0], world_at[ground, 1]
    dim = (1 - contact("sharp", gx, gy)) * (1 - 0.9 * contact("broad", gx, gy))
    ambient[ground] *= dim
    added[ground] += 8 * contact("warm", gx, gy) - 1.2 * contact("broad", gx, gy) * light.insolation

    up = 0.5 + 0.5 * normal[:, 2]
    bounce = 0.16 * light.ambient + 0.13 * light.sun_colour * (
        light.sun[2] if light.sun is not None else 0
    )
    fill = ambient * up
    fill[card] = ambient[card]
    shine = light.ambient * fill[:, None] + bounce * ((1 - up) * ambient)[:, None]
    lit = np.full(count, 0.5, F)
    facing = lit
    if light.sun is not None:
        sun = light.sun.astype(F)
        facing = np.where(card, F(0.85), np.maximum(normal @ sun, 0))
        lit = np.zeros(count, F)
        able = np.flatnonzero((facing > 0) & (direct > 0))
        shadow = ShadowMap(sun, mesh, world.atlas, middle, 110.0, 1024)
        lit[able] = shadow.lit(world_at[able], normal[able] * (~card[able])[:, None])
        shine += light.sun_colour * (facing * direct * lit)[:, None]
    shine += _lamps(world, camera, world_at, normal, card)
    colour = albedo * shine + emit
    # heat: stored warmth fades the shadows of moving things
    gain = (
        light.insolation * (facing * (0.35 + 0.65 * lit) * 0.85 + 0.12)
        if light.sun is not None
        else light.insolation * 0.5
    )
    warmth = air + np.where(card, 0, mesh.temperature[p]) + heated * gain + added
    leaf = card & (light.sun is not None)
    warmth = np.where(leaf, warmth + light.insolation * 1.2 * (lit - 0.6) * direct, warmth)
    around = air - up * light.drop * 0.6
    glossy = np.flatnonzero(mirror > 0.015)
    normal_g = normal[glossy]
    wet = found[glossy] == m.WATER_ID
    if wet.any():
        normal_g = normal_g.copy()
        at, near = world_at[glossy[wet]], foot[glossy[wet]] * 2
        wave = F(0.028) / (1 + near * 4)
        normal_g[wet, 0] += wave * soft(at[:, 0] + F(0.2 * time), at[:, 1] * 1, 3.0, near)
        normal_g[wet, 1] += wave * soft(at[:, 1] + F(0.2 * time), at[:, 0] * 1, 3.1, near)
    d = ray[glossy]
    bent = d - 2 * np.einsum("ij,ij->i", d, normal_g)[:, None] * normal_g
    seen, cold, _ = sky(light, bent, air, ground_mirror=True)
    if wet.any():
        seen[wet], cold[wet], _ = sky(light, bent[wet], air)
        # trees on the far bank, which the mirror of the sky alone would miss
        azimuth, rise = np.arctan2(bent[wet, 0], bent[wet, 1]), bent[wet, 2]
        bank = np.clip((0.11 + 0.035 * soft(azimuth, 0 * azimuth, 1.1) - rise) / 0.03, 0, 1)[
            :, None
        ]
        seen[wet] += (light.ambient * np.array([0.09, 0.11, 0.06], F) - seen[wet]) * bank
    share = mirror[glossy] + (1 - mirror[glossy]) * np.clip(1 - cosine[glossy], 0, 1) ** 5 * F(0.75)
    colour[glossy] += (np.minimum(seen, 1.6) - colour[glossy]) * share[:, None]
    smooth = (found[glossy] == m.WINDOW) | wet | (emissivity[glossy] < 0.905)
    around[glossy[smooth]] = cold[smooth]
    warmth = emissivity * warmth + (1 - emissivity) * around
    distance = depth * length
    far = (1 - np.exp(-distance / F(light.haze)))[:, None]
    rgb[hit] = colour + (light.horizon * F(0.85) - colour) * far
    kelvin[hit] = warmth + (air - warmth) * (1 - np.exp(-distance / F(350)))
    label[hit] = found
    return rgb, kelvin, label


def _snow(p: Points, kind: int, normal, amount: float) -> None:
    """Snow on surfaces that face up: thick on grass and roofs, in patches on roads; an ``amount``
    of 2 covers roads, too."""
    thick = {
        m.GRASS: 1.6,
        m.DIRT: 1.3,
        m.TILES: 1.2,
        m.PAVING: 0.3,
        m.ASPHALT: -1.1,
        m.PLAIN: 1.0,
        m.MARKING: -1.1,
        m.PAINT: -0.4,
    }.get(kind)
    if thick is None:
        return
    if kind != m.PAINT:
        thick += 2.2 * (amount - 1)
    cover = np.clip((thick + 0.7 * p.slow + 0.5 * p.fine) * 1.5 + 0.5, 0, 1) * np.clip(
        (normal[:, 2] - 0.45) * 4, 0, 1
    )
    white = (
        np.array([0.72, 0.75, 0.80], F)
        * np.clip(1 + 0.05 * p.fine + 0.04 * p.grain, 0.7, 1.2)[:, None]
    )
    p.colour += (white - p.colour) * cover[:, None]
    p.mirror *= 1 - cover
    p.kelvin -= cover * (1.5 + 0.2 * p.slow)
    p.emissivity[:] = np.maximum(p.emissivity, 0.98 * (cover > 0.5))
    if kind in (m.GRASS, m.DIRT, m.PAVING, m.ASPHALT):
        p.label[cover > 0.6] = m.SNOW


def _lamps(world: World, camera: Camera, at, normal, sprite) -> np.ndarray:
    """Irradiance of the nearest lamps, which shine at night only."""
    total = np.zeros((len(at), 3), F)
    if not len(world.lamps):
        return total
    d = np.linalg.norm(world.lamps[:, :3] - camera.position, axis=1)
    ahead = (world.lamps[:, :3] - camera.position) @ camera.axes[2]
    for i in [i for i in np.argsort(d) if ahead[i] > -10][:8]:
        x, y, z, *colour = world.lamps[i]
        near = np.flatnonzero((np.abs(at[:, 0] - x) < 20) & (np.abs(at[:, 1] - y) < 20))
        to = np.array([x, y, z], F) - at[near]
        square = np.einsum("ij,ij->i", to, to) + F(0.5)
        facing = np.einsum("ij,ij->i", to, normal[near]) / np.sqrt(square)
        facing = np.where(sprite[near], 0.4, np.maximum(facing, 0))
        down = np.clip(to[:, 2] / np.sqrt(square) + 0.25, 0.05, 1)
        edge = np.clip(1 - square / 400, 0, 1)
        total[near] += (facing * down * edge / square)[:, None] * np.array(colour, F) * F(3.0)
    return total


def frame(world: World, seed: int, height: int, width: int, time: float):
    """One frame: thermal (H,W) uint16 in 0.01 K, visible (H,W,3) uint8 sRGB, labels (H,W) uint8."""
    camera = look(
        world.pose(time), world.yaw, world.pitch, world.zoom * 2 * width, 2 * height, 2 * width
    )
    rgb, kelvin, label = surfaces(world, camera, time)
    rgb = np.minimum(rgb, 6).reshape(height, 2, width, 2, 3).mean((1, 3))
    kelvin = kelvin.reshape(height, 2, width, 2).mean((1, 3))
    a, b, c, d = (label.reshape(height, 2, width, 2)[:, i, :, j] for i in (0, 1) for j in (0, 1))
    label = np.where(
        (a == b) | (a == c) | (a == d), a, np.where((b == c) | (b == d), b, np.where(c == d, c, a))
    )
    fixed = np.random.default_rng([seed, 1])
    rng = np.random.default_rng([seed, 2, round(time * 1e6)])
    balance = (1 + fixed.normal(0, 0.025, 3)).astype(F)
    thermal = microbolometer(
        kelvin, rng, fixed, float(fixed.uniform(0.5, 0.85)) * max(1.0, width / 400)
    )
    return thermal, photograph(world, rgb, rng, balance), label
