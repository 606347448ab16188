"""A small polygon rasteriser in numpy: a world of flat patches into pixels.

World axes: x right, y forward, z up, in metres. Every patch is a convex quadrilateral with its own
texture frame (origin and two unit axes), so that its texture stays the same from frame to frame of
a video. All patches of a frame are scan-converted at once: spans first, then fragments,
then one depth test (`np.maximum.at`). There is no Python loop over patches.
"""

from dataclasses import dataclass, fields

import numpy as np

NEAR = 0.3  # metres


@dataclass
class Mesh:
    """Flat patches. n of them; float arrays are float32.

    quad (n,4,3): corners in metres. origin, u_axis, v_axis (n,3): texture frame, axes of unit
    length, normal = u x v. material (n,): a number of models.py. label (n,): class id.
    colour (n,3): linear albedo. temperature (n,): K above the air without sun. heating (n,): K
    gained in full sun. gloss (n,): mirror share at normal incidence. param (n,12): meaning set by
    the material. seed (n,): int. sprite (n,): atlas id or -1. layer (n,): wins over lower layers in
    the same plane. seen, casts (n,): whether the camera sees the patch, and whether it casts a
    shadow.
    """

    quad: np.ndarray
    origin: np.ndarray
    u_axis: np.ndarray
    v_axis: np.ndarray
    material: np.ndarray
    label: np.ndarray
    colour: np.ndarray
    temperature: np.ndarray
    heating: np.ndarray
    gloss: np.ndarray
    param: np.ndarray
    seed: np.ndarray
    sprite: np.ndarray
    layer: np.ndarray
    seen: np.ndarray
    casts: np.ndarray

    def __len__(self) -> int:
        return len(self.quad)

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.u_axis, self.v_axis)

    def placed(self, x: float, y: float, z: float = 0.0, yaw: float = 0.0) -> "Mesh":
        """The same patches turned by `yaw` radians (counter-clockwise from above) and moved to
        (x, y, z)."""
        c, s = np.cos(yaw), np.sin(yaw)
        turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], np.float32).T
        shift = np.array([x, y, z], np.float32)
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["quad"] = self.quad @ turn + shift
        values["origin"] = self.origin @ turn + shift
        values["u_axis"] = self.u_axis @ turn
        values["v_axis"] = self.v_axis @ turn
        return Mesh(**values)

    def take(self, index: np.ndarray) -> "Mesh":
        return Mesh(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def join(meshes: list[Mesh]) -> Mesh:
    """One mesh of several."""
    return Mesh(
        **{f.name: np.concatenate([getattr(m, f.name) for m in meshes]) for f in fields(Mesh)}
    )


@dataclass(frozen=True)
class Camera:
    """Pinhole camera. `focal` and the principal point (cx, cy) in pixels; rows of `axes` are right,
    down, forward."""

    position: np.ndarray
    axes: np.ndarray
    focal: float
    cx: float
    cy: float
    height: int
    width: int

    def rays(self, pixels: np.ndarray) -> np.ndarray:
        """World directions (M,3), with forward component 1, of flat pixel indices (M,)."""
        x = ((pixels % self.width + np.float32(0.5)) - self.cx).astype(np.float32) / np.float32(
            self.focal
        )
        y = ((pixels // self.width + np.float32(0.5)) - self.cy).astype(np.float32) / np.float32(
            self.focal
        )
        return x[:, None] * self.axes[0] + y[:, None] * self.axes[1] + self.axes[2]


def look(position, yaw: float, pitch: float, focal: float, height: int, width: int) -> Camera:
    """A level camera. yaw 0 looks along +y, positive to the left; pitch positive looks up; focal in
    pixels."""
    forward = np.array([-np.sin(yaw) * np.cos(pitch), np.cos(yaw) * np.cos(pitch), np.sin(pitch)])
    right = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    axes = np.stack([right, np.cross(forward, right), forward]).astype(np.float32)
    return Camera(
        np.asarray(position, np.float32), axes, float(focal), width / 2, height / 2, height, width
    )


@dataclass
class Atlas:
    """Cut-out pictures with their mip levels, flattened to one list of texels.

    colour (T,3), shade (T,) share of direct sun, ambient (T,), kelvin (T,) above the air, glow (T,)
    share of colour emitted, opaque (T,) bool, label (T,). start, rows, columns: (sprites, levels).
    """

    colour: np.ndarray
    shade: np.ndarray
    ambient: np.ndarray
    kelvin: np.ndarray
    glow: np.ndarray
    opaque: np.ndarray
    label: np.ndarray
    start: np.ndarray
    rows: np.ndarray
    columns: np.ndarray

    def texel(self, sprite, u, v, texels_per_pixel) -> np.ndarray:
        """Flat texel index for u, v in [0,1] (v up)."""
        level = np.clip(
            np.log2(np.maximum(texels_per_pixel, 1e-6)) + 0.3, 0, self.start.shape[1] - 1
        ).astype(np.int64)
        rows, columns = self.rows[sprite, level], self.columns[sprite, level]
        i = np.clip(((1 - v) * rows).astype(np.int64), 0, rows - 1)
        j = np.clip((u * columns).astype(np.int64), 0, columns - 1)
        return self.start[sprite, level] + i * columns + j


def _clip_near(quads: np.ndarray) -> np.ndarray:
    """(n,4,3) camera-space corners -> (n,5,3), cut at depth NEAR; a patch that is wholly nearer
    becomes a point."""
    out = np.concatenate([quads, quads[:, 3:]], axis=1)
    depth = quads[:, :, 2]
    for i in np.flatnonzero((depth < NEAR).any(1)):
        kept = []
        for a, b in zip(quads[i], np.roll(quads[i], -1, axis=0), strict=True):
            if a[2] >= NEAR:
                kept.append(a)
            if (a[2] >= NEAR) != (b[2] >= NEAR):
                kept.append(a + (b - a) * ((NEAR - a[2]) / (b[2] - a[2])))
        kept = kept or [np.array([0, 0, NEAR], np.float32)]
        out[i] = (kept + [kept[-1]] * 5)[:5]
    return out


def _fragments(sx, sy, plane, height: int, width: int):
    """Scan-convert convex polygons. sx, sy (n,k) pixels; plane (n,3): closeness = a x + b y + c.

    Returns polygon index, flat pixel, closeness of every fragment.
    """
    top = np.clip(np.ceil(sy.min(1) - 0.5), 0, height).astype(np.int64)
    bottom = np.clip(np.ceil(sy.max(1) - 0.5), 0, height).astype(np.int64)
    count = np.maximum(bottom - top, 0)
    poly = np.repeat(np.arange(len(sx)), count)
    row = np.arange(len(poly)) - np.repeat(np.cumsum(count) - count, count) + top[poly]
    y = row + 0.5
    left, right = np.full(len(poly), np.inf), np.full(len(poly), -np.inf)
    for k in range(sx.shape[1]):
        x0, y0 = sx[poly, k], sy[poly, k]
        x1, y1 = sx[poly, k - 1], sy[poly, k - 1]
        hit = (y0 <= y) != (y1 <= y)
        x = x0 + (y - y0) * (x1 - x0) / np.where(hit, y1 - y0, 1)
        left = np.where(hit, np.minimum(left, x), left)
        right = np.where(hit, np.maximum(right, x), right)
    start = np.clip(np.ceil(left - 0.5), 0, width).astype(np.int64)
    stop = np.clip(np.ceil(right - 0.5), 0, width).astype(np.int64)
    count = np.maximum(stop - start, 0)
    base = plane[poly, 1] * y + plane[poly, 2]
    span = np.repeat(np.arange(len(poly), dtype=np.int32), count)
    x = np.arange(len(span), dtype=np.int64) - (np.cumsum(count) - count - start)[span]
    closeness = (plane[poly, 0])[span] * (x + 0.5) + base[span]
    return poly[span], x + (row * width)[span], closeness.astype(np.float32)


def rasterise(camera: Camera, mesh: Mesh, atlas: Atlas):
    """Depth-tested picture of a mesh.

    Returns patch (P,) int32 (-1: nothing), closeness (P,) float32 = 1/depth, texel (P,) int64 (-1:
    no sprite), P = height*width.
    """
    local = (mesh.quad - camera.position) @ camera.axes.T
    normal = mesh.normal @ camera.axes.T
    distance = (local[:, 0] * normal).sum(
        1
    )  # of the plane from the camera; 1/depth = (normal . ray) / distance
    depth = local[:, :, 2]
    facing = (distance < -1e-4) | ((mesh.sprite >= 0) & (np.abs(distance) > 1e-4))
    keep = np.flatnonzero(mesh.seen & facing & (depth.max(1) > NEAR))
    corners = _clip_near(local[keep]).astype(np.float64)
    sx = corners[:, :, 0] / corners[:, :, 2] * camera.focal + camera.cx
    sy = corners[:, :, 1] / corners[:, :, 2] * camera.focal + camera.cy
    n = normal[keep].astype(np.float64) / distance[keep, None]
    bias = 1 + mesh.layer[keep, None] * 4e-4
    plane = bias * np.stack(
        [
            n[:, 0] / camera.focal,
            n[:, 1] / camera.focal,
            n[:, 2] - (n[:, 0] * camera.cx + n[:, 1] * camera.cy) / camera.focal,
        ],
        1,
    )
    size = camera.height * camera.width
    poly, pixel, close = _fragments(sx, sy, plane, camera.height, camera.width)
    poly = keep[poly]
    texel = np.full(len(poly), -1, np.int64)
    cut = np.flatnonzero(mesh.sprite[poly] >= 0)
    if len(cut):
        p = poly[cut]
        world = camera.position + camera.rays(pixel[cut]) / close[cut, None]
        found, opaque = _cut_out(mesh, atlas, p, world, 1 / (close[cut] * camera.focal))
        texel[cut] = found
        kept = np.ones(len(poly), bool)
        kept[cut] = opaque
        poly, pixel, close, texel = poly[kept], pixel[kept], close[kept], texel[kept]
    nearest = np.zeros(size, np.float32)
    np.maximum.at(nearest, pixel, close)
    won = np.flatnonzero(close == nearest[pixel])
    patch, texels = np.full(size, -1, np.int32), np.full(size, -1, np.int64)
    patch[pixel[won]] = poly[won]
    texels[pixel[won]] = texel[won]
    return patch, nearest, texels


def _cut_out(mesh: Mesh, atlas: Atlas, poly, world, metres_per_pixel):
    offset = world - mesh.origin[poly]
    wide, high = mesh.param[poly, 0], mesh.param[poly, 1]
    u = np.einsum("ij,ij->i", offset, mesh.u_axis[poly]) / wide
    v = np.einsum("ij,ij->i", offset, mesh.v_axis[poly]) / high
    sprite = mesh.sprite[poly]
    texel = atlas.texel(sprite, u, v, metres_per_pixel * atlas.rows[sprite, 0] / high)
    return texel, atlas.opaque[texel]


class ShadowMap:
    """Depth map of a mesh from the sun: orthographic, `side` texels a side, over a square of
    `extent` metres around `centre` (x, y).
    """

    def __init__(self, sun: np.ndarray, mesh: Mesh, atlas: Atlas, centre, extent: float, side: int):
        right = np.cross([0.0, 0.0, 1.0], sun)
        right /= np.linalg.norm(right)
        up = np.cross(sun, right)
        self.axes = np.stack([right, up, sun]).astype(np.float32)
        self.scale, self.side = side / extent, side
        middle = self.axes[:2] @ np.array([*centre, 0.0], np.float32)
        # Whole texels only: a map that slides with the camera by fractions makes shadow edges crawl
        # in a video.
        self.corner = np.floor(middle * self.scale) - side // 2
        use = np.flatnonzero(mesh.casts & (np.abs(mesh.normal @ self.axes[2]) > 1e-3))
        quads = mesh.quad[use] @ self.axes.T
        normal = mesh.normal[use].astype(np.float64) @ self.axes.T.astype(np.float64)
        sx, sy = (quads[:, :, k].astype(np.float64) * self.scale - self.corner[k] for k in (0, 1))
        slope = -normal[:, :2] / normal[:, 2:] / self.scale
        start = quads[:, 0, 2] - slope[:, 0] * sx[:, 0] - slope[:, 1] * sy[:, 0]
        poly, pixel, close = _fragments(
            sx, sy, np.concatenate([slope, start[:, None]], 1), side, side
        )
        poly = use[poly]
        cut = np.flatnonzero(mesh.sprite[poly] >= 0)
        if len(cut):
            plane = np.stack([pixel[cut] % side + 0.5, pixel[cut] // side + 0.5], 1) + self.corner
            world = (
                np.concatenate([plane / self.scale, close[cut, None]], 1).astype(np.float32)
                @ self.axes
            )
            kept = np.ones(len(poly), bool)
            kept[cut] = _cut_out(mesh, atlas, poly[cut], world, np.float32(1 / self.scale))[1]
            pixel, close = pixel[kept], close[kept]
        self.height = np.full(side * side, -1e9, np.float32)
        np.maximum.at(self.height, pixel, close)

    def lit(self, world: np.ndarray, normal: np.ndarray) -> np.ndarray:
        """Visible share of the sun's disc, (M,) in [0,1], from points (M,3) with surface normals
        (M,3)."""
        taps = (
            (-1.2, -0.5),
            (0.6, -1.2),
            (-0.5, 1.1),
            (1.2, 0.6),
            (0.05, 0.0),
            (-2.1, 1.2),
            (2.2, -0.9),
            (0.9, 2.2),
        )
        # A wall lit at a grazing angle must not shade itself through the neighbouring texels that
        # the taps reach.
        grazing = 1 - np.abs(normal @ self.axes[2])
        moved = (
            world + normal * (np.float32(0.06) + np.float32(2.2 / self.scale) * grazing)[:, None]
        )
        x = (moved @ self.axes[0]) * np.float32(self.scale) - np.float32(self.corner[0])
        y = (moved @ self.axes[1]) * np.float32(self.scale) - np.float32(self.corner[1])
        level = moved @ self.axes[2] + np.float32(0.05)
        inside = (x > 3) & (y > 3) & (x < self.side - 4) & (y < self.side - 4)
        x, y = np.where(inside, x, 4), np.where(inside, y, 4)
        total = np.zeros(len(x), np.float32)
        for dx, dy in taps:
            total += (
                level
                >= self.height[(y + dy).astype(np.int32) * self.side + (x + dx).astype(np.int32)]
            )
        return np.where(inside, total / len(taps), 1).astype(np.float32)
