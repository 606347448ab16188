"""How often read_thermal sees fill values and swapped bytes, where there are none and where there
are.

    python benchmarks/false_alarms.py DATA/pairs/thermal [FOLDER ...]
    python benchmarks/false_alarms.py DATA/pairs/thermal --crops 50

Each picture is looked at as it is, and as made frames: counts of 16 bits of several cameras, dead
pixels, noise. Then borders, rotations and fill values are put on it, and its bytes are swapped.
``--crops`` looks at parts of the pictures alone: a part that is half sky has the least rest.
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from cmmfnet.thermal.byte_order import in_byte_order
from cmmfnet.thermal.fill import fill_values
from cmmfnet.thermal.frame import Thermal, ThermalFileError, read_thermal
from cmmfnet.thermal.stretch import normalise

# Counts per grey level, the count of black, and the sensor's noise in counts.
CAMERAS = {
    "14 bits, little contrast": (1.0, 8191, 0.6),
    "14 bits": (10.0, 7000, 10.0),
    "decikelvin": (0.5, 2850, 0.5),
    "centikelvin": (12.0, 28500, 5.0),
    "radiometric, wide": (40.0, 16000, 20.0),
    "nearly full range": (200.0, 1000, 40.0),
}


BORDER = "border (bytes only)"


def counts(grey: np.ndarray, camera: str, rng: np.random.Generator) -> np.ndarray:
    gain, black, noise = CAMERAS[camera]
    made = black + gain * grey + rng.normal(0, noise, grey.shape)
    return made.round().clip(0, 65535).astype(np.uint16)


def right_frames(grey: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """Frames with nothing to find, and what they are."""
    yield "the picture", grey
    yield "the picture, 8 bits in 16", grey.astype(np.uint16)
    yield "the picture, 8 bits high in 16", grey.astype(np.uint16) * 256
    for camera in CAMERAS:
        frame = counts(grey, camera, rng)
        yield camera, frame
        dead = frame.copy()
        places = rng.random(frame.shape) < 0.0005
        dead[places] = rng.choice([0, 16383, 65280, 65535], np.count_nonzero(places))
        yield f"{camera}, dead pixels", dead
        edge = frame.copy()
        edge[:, :5] = edge[-2:] = rng.choice([0, 16383, 65535])
        yield f"{camera}, {BORDER}", edge
        half = frame.astype(np.float64).mean()
        noise = rng.normal(half, CAMERAS[camera][0] * 40, grey.shape)
        yield f"{camera}, noise alone", noise.clip(0, 65535).astype(np.uint16)


def filled_frames(
    grey: np.ndarray, rng: np.random.Generator
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(kind, frame, where the picture is) with fill values to find."""
    frame = counts(grey, "centikelvin", rng)
    celsius = (frame / 100 - 273.15).astype(np.float32)
    height, width = grey.shape
    rows = np.zeros(grey.shape, bool)
    rows[-max(2, height // 60) :] = True
    border = np.ones(grey.shape, bool)
    border[height // 50 + 1 : -height // 50, width // 40 + 1 : -width // 40] = False
    y, x = np.mgrid[:height, :width]
    outside = abs(y - height / 2) / height + abs(x - width / 2) / width > 0.45
    for name, mask in (("status rows", rows), ("border", border), ("outside a map", outside)):
        for value in (0, 65535):
            yield f"{name} {value}", np.where(mask, np.uint16(value), frame), ~mask
        for value in (-9999, -10000, -32767):
            yield f"{name} {value}", np.where(mask, np.float32(value), celsius), ~mask
    two = np.where(outside, np.float32(-9999), np.where(border, np.float32(0), celsius))
    yield "outside -9999, border 0", two, ~outside & ~border
    whole = np.ones(grey.shape, np.float32)
    turned, inside = (
        np.asarray(Image.fromarray(x.astype(np.float32)).rotate(7, Image.Resampling.BILINEAR))
        for x in (frame, whole)
    )
    yield "rotated by 7 degrees", turned.round().astype(np.uint16), inside == 1


def crops(
    values: np.ndarray, count: int, rng: np.random.Generator
) -> Iterator[tuple[str, np.ndarray]]:
    """Parts of a picture (H, W): the centre square, the quarters, and ``count`` at random."""
    height, width = values.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    yield "centre square", values[top : top + side, left : left + side]
    for rows in (slice(None, height // 2), slice(height // 2, None)):
        for columns in (slice(None, width // 2), slice(width // 2, None)):
            yield "quarters", values[rows, columns]
    yield "half size", values[::2, ::2]
    for _ in range(count):
        h, w = (int(rng.integers(min(32, n), n + 1)) for n in values.shape)
        y, x = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
        yield "random, 32 pixels a side or more", values[y : y + h, x : x + w]


def saturated(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Counts (H, W) of a camera whose hottest half per cent is cut off at the end of its range."""
    top, gain = rng.choice([16383, 65535]), rng.choice([5, 30, 100])
    made = top + gain * (grey - np.percentile(grey, 99.5)) + rng.normal(0, gain / 2, grey.shape)
    return made.round().clip(0, top).astype(np.float32)


def show_crops(files: list[Path], count: int) -> None:
    seen: Counter[str] = Counter()
    alarms: Counter[str] = Counter()
    for number, file in enumerate(files):
        try:
            frame = read_thermal(file)
        except (ThermalFileError, OSError):
            continue
        rng = np.random.default_rng(number)
        camera = counts(frame.values, list(CAMERAS)[number % len(CAMERAS)], rng).astype(np.float32)
        for what, values, levels in (
            ("8 bits", frame.values, frame.dtype == "uint8"),
            ("counts", camera, False),
            ("saturated counts", saturated(frame.values, rng), False),
        ):
            for kind, part in crops(values, count, np.random.default_rng(number)):
                kind = f"{what}, {kind}"
                seen[kind] += 1
                if found := fill_values(part, grey_levels=levels):
                    alarms[kind] += 1
                    print(f"{file.name}: {kind} {part.shape}: {found}")
    for kind in seen:
        print(f"{kind:56} {seen[kind]:6} {alarms[kind]:7}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--crops", type=int, metavar="N", help="N random parts of each picture")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    files = [p for folder in given.folders for p in sorted(folder.iterdir())]
    if given.crops is not None:
        show_crops(files, given.crops)
        return
    alarms: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    swapped: Counter[str] = Counter()
    found: Counter[str] = Counter()
    off: dict[str, float] = {}
    for file in files:
        try:
            frame = read_thermal(file)
        except (ThermalFileError, OSError):
            continue
        rng = np.random.default_rng(len(seen))
        seen["files as read"] += 1
        alarms["files as read"] += bool(frame.fill)
        if frame.dtype != "uint8":
            continue
        grey = frame.values.astype(np.uint8)
        for kind, made in right_frames(grey, rng):
            seen[kind] += 1
            if BORDER not in kind:
                levels = made.dtype == np.uint8
                alarms[kind] += bool(fill_values(made.astype(np.float32), grey_levels=levels))
            if made.dtype == np.uint16:
                alarms[kind] += in_byte_order(made, "") is not made
                turned = made.byteswap()
                swapped[kind] += np.array_equal(in_byte_order(turned, ""), made)
        for kind, made, inside in filled_frames(grey, rng):
            right = normalise(Thermal(made[inside][None].astype(np.float32), "", "float32"))
            seen[kind] += 1
            found[kind] += bool(fill_values(made.astype(np.float32)))
            contrast = normalise(made)[inside].std() / right.std()
            off[kind] = max(off.get(kind, 0.0), abs(contrast - 1))
    print(f"{'nothing to find':36} frames  alarms  bytes put right when swapped")
    for kind in [k for k in seen if k not in found]:
        print(f"{kind:36} {seen[kind]:6} {alarms[kind]:7}  {swapped.get(kind, '')}")
    print(f"\n{'fill values':36} frames   found  contrast off by at most")
    for kind in found:
        print(f"{kind:36} {seen[kind]:6} {found[kind]:7}  {off[kind]:.1%}")


if __name__ == "__main__":
    main()
