"""How often read_thermal sees fill values and swapped bytes, where there are none and where there
are.

    python benchmarks/false_alarms.py DATA/pairs/thermal [FOLDER ...]

Each picture is looked at as it is, and as made frames: counts of 16 bits of several cameras, dead
pixels, noise. Then borders, rotations and fill values are put on it, and its bytes are swapped.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    warnings.simplefilter("ignore")
    alarms: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    swapped: Counter[str] = Counter()
    found: Counter[str] = Counter()
    off: dict[str, float] = {}
    files = [p for folder in parser.parse_args().folders for p in sorted(folder.iterdir())]
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
