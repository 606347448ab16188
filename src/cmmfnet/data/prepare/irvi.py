"""IRVI (Li et al., ACM MM 2021, with I2V-GAN):
``{single,triplet}/CLIP/{trainA,trainB,testA,testB}``, A thermal, B colour.

CLIP is ``traffic`` or a part of Monitoring. A training picture of ``triplet/`` is three consecutive
frames side by side.
"""

from __future__ import annotations

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from cmmfnet.data.prepare.raw import (
    Box,
    Need,
    PrepareError,
    RawPair,
    check_counts,
    complain,
    contents,
    list_pictures,
    picture_size,
    safe,
    unmatched,
    walk,
)
from cmmfnet.files.pictures import natural_key

PARTS = ("trainA", "trainB", "testA", "testB")
COUNTS = {
    "traffic train": 17_000,
    "traffic test": 1_000,
    "monitoring train": 5_080,
    "monitoring test": 1_272,
}
BLOCK = 200
"""Frames of one ``sequence``: where one clip ends and the next begins is not published."""


def read_irvi(raw: Path, *, need: Need = "whole", jobs: int = 1) -> list[RawPair]:
    """Single frames. Triplets are cut into three, and a frame of several triplets is used once.

    ``source`` is "traffic" or "monitoring": train on both, test on each. If there is ``single/``,
    ``triplet/`` is ignored: it has the same frames. Repeats are found by the content of both
    pictures, within a clip. Copies in use have one traffic frame fewer than published, and cutting
    into threes loses some, so 99 % of the counts are enough.
    """
    pairs: list[RawPair] = []
    found = dict.fromkeys(COUNTS, 0)
    for clip in _clips(raw):
        source = _source(raw, clip)
        for split in ("train", "test"):
            frames = _frames(clip, split, need, jobs)
            found[f"{source} {split}"] += len(frames)
            for i, (stem, thermal, visible, thermal_box, visible_box) in enumerate(frames):
                sequence = f"{clip.name}/{split}/{i // BLOCK:03d}"
                name = safe(clip.name, split, stem)
                pairs.append(
                    RawPair(
                        name, thermal, visible, split, source, sequence, thermal_box, visible_box
                    )
                )
    check_counts("IRVI", raw, found, COUNTS, need, least=0.99)
    return pairs


def _clips(raw: Path) -> list[Path]:
    """Folders with any of trainA, trainB, testA, testB."""
    clips = []
    for folder, folders, _files in walk(raw):
        if any(part in folders for part in PARTS):
            clips.append(folder)
            folders.clear()
    if not clips:
        raise PrepareError(
            f"IRVI: expected folders with {', '.join(PARTS)} in {raw} (single/traffic, ...); "
            f"found {contents(raw)}"
        )
    single = [clip for clip in clips if "single" in clip.relative_to(raw).parts]
    clips = single or clips
    # rooftop_total repeats the frames of the other folders, whose names give the camera position
    parts = {clip.parent for clip in clips if re.search(r"sub[-_]?\d", clip.name)}
    return sorted(clip for clip in clips if not ("total" in clip.name and clip.parent in parts))


def _source(raw: Path, clip: Path) -> str:
    path = "/".join((raw.name, *clip.relative_to(raw).parts)).lower()
    if "traffic" in path:
        return "traffic"
    if re.search(r"roof|monitor|sub[-_]?\d", path):
        return "monitoring"
    raise PrepareError(
        f"IRVI: {clip} may be Traffic or Monitoring; rename a folder in its path to traffic, "
        "monitoring, rooftop or sub1 to sub5"
    )


def _frames(
    clip: Path, split: str, need: Need, jobs: int
) -> list[tuple[str, Path, Path, Box | None, Box | None]]:
    """(stem, thermal, visible, box, box) of every frame once, in time order."""
    folders = clip / f"{split}A", clip / f"{split}B"
    if need != "whole" and not any(folder.is_dir() for folder in folders):
        return []
    files = []
    for stem, thermal, visible in _match(*folders, need):
        sizes = picture_size(thermal), picture_size(visible)
        counts = [width // height if width % height == 0 else 0 for width, height in sizes]
        if counts[0] != counts[1] or counts[0] not in (1, 3):
            raise PrepareError(
                f"{thermal} is {sizes[0]}, {visible.parent.name}/{visible.name} is {sizes[1]} "
                "(width, height); expected a square frame, or three side by side, on both sides"
            )
        boxes = [_thirds(size) if counts[0] == 3 else [None] for size in sizes]
        files.append((stem, thermal, visible, *boxes))
    with ThreadPoolExecutor(jobs) as pool:
        contents_ = list(pool.map(_contents, files))
    frames, seen = [], set()
    for (stem, thermal, visible, left, right), digests in zip(files, contents_, strict=True):
        for k, digest in enumerate(digests):
            if digest is None or digest not in seen:
                seen.add(digest)
                name = stem if left[k] is None else f"{stem}-{k}"
                frames.append((name, thermal, visible, left[k], right[k]))
    return frames


def _match(thermal: Path, visible: Path, need: Need) -> list[tuple[str, Path, Path]]:
    """Files of the two sides with equal names or, if no name is equal, with equal numbers at the
    end of the name."""
    left, right = list_pictures(thermal), list_pictures(visible)
    if not left.keys() & right.keys():
        numbered = [
            {int(m[-1]): s for s in side if (m := re.findall(r"\d+", s))} for side in (left, right)
        ]
        if all(len(n) == len(side) for n, side in zip(numbered, (left, right), strict=True)):
            right = {numbered[0].get(i, s): right[s] for i, s in numbered[1].items()}
    if need != "listed" and (alone := unmatched(left, right, thermal, visible)):
        complain(
            f"{thermal}: found {len(left)} thermal and {len(right)} colour pictures; {alone}", need
        )
    return [
        (stem, left[stem], right[stem])
        for stem in sorted(left.keys() & right.keys(), key=natural_key)
    ]


def _thirds(size: tuple[int, int]) -> list[Box]:
    height = size[1]
    return [(k * height, 0, (k + 1) * height, height) for k in range(3)]


def _contents(file: tuple) -> list[bytes | None]:
    """A digest of each frame of a triplet; None for a single frame, which cannot repeat.

    JPEG mixes a few columns of neighbouring frames at their border, so the border is left out.
    """
    _stem, thermal, visible, left, right = file
    if left[0] is None:
        return [None]
    grey = []
    for path in (thermal, visible):
        with Image.open(path) as picture:
            grey.append(np.asarray(picture.convert("L")))
    digests = []
    for boxes in zip(left, right, strict=True):
        digest = hashlib.sha256()
        for pixels, (x0, y0, x1, y1) in zip(grey, boxes, strict=True):
            margin = min(8, (x1 - x0) // 8)
            digest.update(np.ascontiguousarray(pixels[y0:y1, x0 + margin : x1 - margin]).tobytes())
        digests.append(digest.digest())
    return digests
