"""The protocol of a comparison: which frames, how they are cut, how they are scored.

A protocol is data: it is printed and stored with every number, and results of different protocols
are not compared.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Iterator

import numpy as np
from PIL import Image

from cmmfnet import __version__
from cmmfnet.data.pairs import Pairs
from cmmfnet.evaluation.metrics import METRICS, SSIM_PRESETS, STATIC
from cmmfnet.files.errors import UserError
from cmmfnet.thermal.stretch import normalise

SIZE = 256
GEOMETRIES: dict[str, str] = {
    "short-256-crop-256": "short side 256 (bicubic, antialiased), centre crop 256x256",
    "kaist-a": "resize to 320x256 (bicubic, antialiased), centre crop 256x256",
    "kaist-b": "256x256 crop of the frame, its place drawn from the frame's name",
    "whole": "the whole frame at its own size",
    "whole-256": "the whole frame coloured at its own size; output and truth then reduced to a "
    "short side of 256 (bicubic, antialiased), centre crop 256x256",
}
DEFAULT_GEOMETRY = next(iter(GEOMETRIES))
LKAT = "lkat"
"""The preset of :class:`Setting` that scores as LKAT-GAN's code does; not our protocol."""
PICTURES = {
    None: "8-bit RGB, rounded, 0 to 255",
    LKAT: "8-bit RGB, decimals cut off, 0 to 255; runs by their best epoch (preset lkat: as "
    "LKAT-GAN's code scores, not our protocol)",
}
"""Preset -> how outputs become pictures."""
THERMAL = "stretched between the 1st and 99th percentile of what is left after cutting, to [-1, 1]"

COMPARED = (
    "frames",
    "frames_sha256",
    "truth_sha256",
    "geometry",
    "thermal",
    "pictures",
    "psnr",
    "ssim",
)
"""Fields that must be equal for two numbers to be comparable. Versions are recorded, but need not
be equal."""


def check_geometry(geometry: str) -> None:
    if geometry not in GEOMETRIES:
        raise UserError(f"geometry is {geometry!r}; expected one of {', '.join(GEOMETRIES)}")


def centre_crop(picture: np.ndarray, size: int) -> np.ndarray:
    """(H,W) or (H,W,3) uint8 -> short side ``size``, central ``size`` x ``size``."""
    image = Image.fromarray(picture)
    scale = size / min(image.size)
    return _centre(
        image.resize(
            (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
        ),
        size,
    )


def _centre(image: Image.Image, size: int) -> np.ndarray:
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def cut(picture: np.ndarray, geometry: str, name: str) -> np.ndarray:
    """The part of a picture (H,W) or (H,W,3) uint8 that methods colour: 256x256, or all of it for
    "whole" and "whole-256".

    "kaist-b" draws the place from the frame's ``name``: row and column of the upper left corner
    are the first and second draw of ``numpy.random.default_rng(n).integers``, where n is the first
    8 bytes, big-endian, of the name's sha256. Raises :class:`UserError` for a frame that is too
    small.
    """
    if geometry == "short-256-crop-256":
        return centre_crop(picture, SIZE)
    if is_whole(geometry):
        return picture
    height, width = picture.shape[:2]
    if geometry == "kaist-a":
        return _centre(Image.fromarray(picture).resize((320, SIZE), Image.Resampling.BICUBIC), SIZE)
    if min(height, width) < SIZE:
        raise UserError(
            f"{name} is {width}x{height}; geometry kaist-b cuts {SIZE}x{SIZE} out of larger "
            "frames, use short-256-crop-256"
        )
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))
    top, left = int(rng.integers(height - SIZE + 1)), int(rng.integers(width - SIZE + 1))
    return picture[top : top + SIZE, left : left + SIZE]


def is_whole(geometry: str) -> bool:
    """Whether methods colour whole frames at their own size."""
    return geometry in ("whole", "whole-256")


def scored(picture: np.ndarray, geometry: str) -> np.ndarray:
    """The scored part of a coloured picture, its truth or its thermal frame, each as :func:`cut`
    leaves it: (H,W,3) uint8 or (H,W) float32 -> the same, or for "whole-256" 256x256 pixels of
    it."""
    return centre_crop(picture, SIZE) if geometry == "whole-256" else picture


def frames(
    pairs: Pairs, geometry: str = DEFAULT_GEOMETRY
) -> Iterator[tuple[np.ndarray, np.ndarray, dict]]:
    """For each pair: thermal (h,w) float32 in [-1,1], stretched after the cut; truth (h,w,3) uint8;
    the index entry."""
    check_geometry(geometry)
    for i in range(len(pairs)):
        yield frame(pairs, i, geometry)


def frame(pairs: Pairs, i: int, geometry: str) -> tuple[np.ndarray, np.ndarray, dict]:
    """Pair number ``i``, as :func:`frames` gives it."""
    pair = pairs[i]
    thermal, truth = cut(pair.thermal, geometry, pair.name), cut(pair.visible, geometry, pair.name)
    return normalise(thermal, find_fill=False), truth, pair.meta


def frames_sha256(entries: list[dict]) -> str:
    """sha256 over the sorted lines "split name", joined by line feeds."""
    lines = sorted(f"{entry.get('split')} {entry['name']}" for entry in entries)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python, this package and the libraries that the numbers depend on."""
    packages = ("numpy", "pillow", "scikit-image", "scipy", "torch")
    return {"python": platform.python_version(), "cmmfnet": __version__} | {
        package: importlib.metadata.version(package) for package in packages
    }


def make_protocol(
    pairs: Pairs,
    truth_sha256: str,
    geometry: str,
    ssim_preset: str,
    metrics: list[str],
    preset: str | None = None,
) -> dict:
    """The record of a protocol, for JSON.

    ``truth_sha256`` is over the true pictures as scored, in the order of the index: equal names do
    not make equal pictures.
    """
    return {
        "split": pairs.split,
        "lighting": list(pairs.lighting) if pairs.lighting else None,
        "sources": list(pairs.sources) if pairs.sources else None,
        "frames": len(pairs),
        "frames_sha256": frames_sha256(pairs.entries),
        "truth_sha256": truth_sha256,
        "geometry": {"name": geometry, "what": GEOMETRIES[geometry]},
        "thermal": THERMAL,
        "pictures": PICTURES[preset],
        "psnr": "per picture, mean squared error over all channels, peak 255; then the mean",
        "ssim": {"preset": ssim_preset, "data_range": 255, "per channel": True}
        | SSIM_PRESETS[ssim_preset],
        "metrics": {name: METRICS[name].meaning for name in metrics},
        "static pixels": f"change of at most {STATIC} levels (flicker)",
        "versions": versions(),
    }


def sentence(geometry: str, ssim_preset: str) -> str:
    """The protocol in one line."""
    return f"{GEOMETRIES[geometry]}; PSNR and SSIM ({ssim_preset}) on uint8"


def differing(one: dict, other: dict) -> list[str]:
    """The ``COMPARED`` fields in which two records differ, with both values."""
    return [
        f"{key}: {one.get(key)} and {other.get(key)}"
        for key in COMPARED
        if one.get(key) != other.get(key)
    ]
