"""Places one raw pair into thermal/ and visible/ of the layout: a link, a copy, or a cut or
resampled PNG."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import tifffile
from PIL import Image

from cmmfnet.data.prepare.cameras import read_camera_pair
from cmmfnet.data.prepare.raw import Box, PrepareError, RawPair, picture_size
from cmmfnet.files.atomic import atomic_write


def place_pair(pair: RawPair, out: Path, copy: bool) -> tuple[list[str], str]:
    """The placement of the two pictures, and their fault in words, or ""."""
    try:
        if pair.embedded:
            return _split(pair, out), ""
        sizes = [
            _placed_size(pair.thermal, pair.thermal_box, None),
            _placed_size(pair.visible, pair.visible_box, pair.visible_size),
        ]
        if sizes[0] != sizes[1]:
            return (
                [],
                f"{pair.name}: {pair.thermal} is {sizes[0]}, {pair.visible} is {sizes[1]} (width, "
                "height)",
            )
        return [
            _place(pair.thermal, out / "thermal", pair.name, pair.thermal_box, None, copy),
            _place(
                pair.visible, out / "visible", pair.name, pair.visible_box, pair.visible_size, copy
            ),
        ], ""
    except PrepareError as error:
        return [], f"{pair.name}: {error}"


def _split(pair: RawPair, out: Path) -> list[str]:
    """A camera file into its frame (float32 TIFF, in the frame's unit) and the part of its photo
    that the frame shows, unless an earlier run did so."""
    targets = [out / "thermal" / f"{pair.name}.tiff", out / "visible" / f"{pair.name}.png"]
    if not all(target.exists() and target.stat().st_size for target in targets):
        thermal = read_camera_pair(pair.thermal)
        left, top, right, bottom = thermal.visible.covers(thermal.values.shape)
        photo = thermal.visible.aligned(thermal.values.shape)
        with atomic_write(targets[0], durable=False) as file:
            tifffile.imwrite(
                file,
                np.ascontiguousarray(thermal.values[top:bottom, left:right]),
                photometric="minisblack",
                compression="deflate",
                metadata=None,
            )
        with atomic_write(targets[1], durable=False) as file:
            part = np.ascontiguousarray(photo[top:bottom, left:right])
            Image.fromarray(part).save(file, "PNG", compress_level=4)
    return ["written", "written"]


def _placed_size(path: Path, box: Box | None, size: tuple[int, int] | None) -> tuple[int, int]:
    """(width, height) of the placed picture, from the source's header."""
    width, height = picture_size(path)
    if box is not None:
        if not (0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height):
            raise PrepareError(f"{path} is {width}x{height}; the box {box} does not lie in it")
        width, height = box[2] - box[0], box[3] - box[1]
    return size or (width, height)


def _place(
    source: Path, folder: Path, name: str, box: Box | None, size: tuple[int, int] | None, copy: bool
) -> Literal["linked", "hard-linked", "copied", "written"]:
    """Link, copy or cut one picture, unless an earlier run did so."""
    target = folder / (name + (source.suffix.lower() if box is None and size is None else ".png"))
    if box is not None or size is not None:
        if not (target.exists() and target.stat().st_size):
            _cut(source, target, box, size)
        return "written"
    path = os.path.abspath(source)  # noqa: PTH100, a link to a link stays one
    if target.exists():
        if target.is_symlink():
            return "linked"
        return "hard-linked" if target.samefile(path) else "copied"
    target.unlink(missing_ok=True)  # a link to a file that is gone
    if not copy:
        for link, how in ((os.symlink, "linked"), (os.link, "hard-linked")):
            try:
                link(path, target)
                return how
            except OSError:  # not on this file system, or not across two: the next way
                continue
    with Path(path).open("rb") as original, atomic_write(target, durable=False) as file:
        shutil.copyfileobj(original, file)
    return "copied"


def _cut(source: Path, target: Path, box: Box | None, size: tuple[int, int] | None) -> None:
    with Image.open(source) as picture:
        try:
            picture.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise PrepareError(f"{source} is damaged: {error}") from error
        if target.parent.name == "visible":
            picture = picture.convert("RGB")
        if picture.mode not in ("1", "L", "LA", "P", "I;16", "RGB", "RGBA"):
            raise PrepareError(
                f"{source}: a part of a {picture.mode} picture cannot be stored as PNG; cut it "
                "beforehand"
            )
        if size is None:
            part = picture.crop(box)
        else:
            part = picture.resize(size, Image.Resampling.LANCZOS, box=box)
    with atomic_write(target, durable=False) as file:
        part.save(file, format="PNG", compress_level=4)
