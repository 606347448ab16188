"""The user's own pairs, in one of five layouts, as lists of RawPair (docs/folder.md).

The layout follows from the content of RAW. If several layouts fit, or none, the error says what was
found and how to name one; nothing is guessed, since a wrong guess (thermal taken for colour) shows
only after training.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from cmmfnet.data.prepare.cameras import holds_flir_frame, read_camera_files
from cmmfnet.data.prepare.found import (
    EXPECTED,
    FoundPair,
    check_names,
    check_pictures,
    progress,
    raw_pair,
    refuse,
    size_of,
    some,
)
from cmmfnet.data.prepare.lists import LISTS, SPLITS, columns, read_list
from cmmfnet.data.prepare.raw import Box, PrepareError, RawPair, contents, walk
from cmmfnet.files.pictures import PICTURES, natural_key

THERMAL = ("thermal", "ir", "lwir", "infrared", "tir")
VISIBLE = ("visible", "vis", "rgb", "vi", "color", "colour")
GREY, COLOURED = 4.0, 6.0
"""Mean difference between the largest and the smallest channel of a pixel, in levels of 255: grey
pictures are below the first, coloured ones at or above the second."""
_SAMPLED = 16


def read_folder(raw: Path) -> list[RawPair]:
    """The pairs in ``raw``: parallel folders, trainA/trainB, side-by-side pictures, camera files
    that hold a photo, or a list (``raw`` may be the list itself).

    Every picture's header is read: both pictures of a pair must be complete files of one size.
    Splits named in RAW are kept; if it names none, or only train, a tenth of the frames, in whole
    blocks, becomes "val" (:func:`hold_out`).

    Returns:
        Pairs of the source "folder", in natural order; ``meta`` has the list's caption and
        lighting.

    Raises:
        PrepareError: none of the layouts fits, or several do; pictures without a partner, of two
            sizes, damaged, or listed twice.

    Warns:
        UserWarning: frames left out between train and val; columns of a list that are not used.
    """
    raw = Path(raw)
    if raw.is_file():
        found = read_list(raw)
    else:
        if (raw / "index.jsonl").is_file():
            raise PrepareError(
                f"{raw} is a data set in the project's layout already (it has index.jsonl); use "
                "it as it is"
            )
        found = _recognise(raw)()
    if all(pair.split == "train" for pair in found):  # the same as no split
        found = [replace(pair, split=None) for pair in found]
    found.sort(key=lambda pair: natural_key(Path(pair.name)))
    check_names(found)
    check_pictures(found)
    pairs = [raw_pair(pair) for pair in found]
    return pairs if any(pair.split for pair in found) else hold_out(pairs)


def _recognise(raw: Path) -> Callable[[], list[FoundPair]]:
    """The reader of the only layout that fits."""
    if not raw.is_dir():
        raise PrepareError(f"{raw} does not exist; expected a folder of pairs or a list of them")
    pictures = [p for p in _walk(raw) if p.suffix.lower() in PICTURES]
    fits: dict[str, Callable[[], list[FoundPair]]] = {}
    for path in sorted(raw.iterdir()):
        if path.suffix.lower() in LISTS and columns(path) >= {"source", "target"}:
            fits[f"the list {path.name}"] = lambda path=path: read_list(path)
    for title, side_of in (
        ("parallel folders", _named_side),
        ("trainA, trainB and their like", _lettered_side),
    ):
        sides = {side for p in pictures if (side := side_of(p.relative_to(raw).parts[:-1])[0])}
        if len(sides) == 2:
            fits[title] = lambda side_of=side_of: _read_parallel(raw, pictures, side_of)
    if len(fits) > 1:
        raise PrepareError(
            f"{raw} can be read in {len(fits)} ways: {'; '.join(fits)}. Give the list itself or "
            "the folder of one of them as RAW, or move the other away"
        )
    if fits:
        return next(iter(fits.values()))
    if any(holds_flir_frame(p) for p in _sample(pictures)):
        return lambda: _without_common_folder(read_camera_files(raw, pictures))
    if pictures:
        return lambda: _read_side_by_side(raw, pictures)
    raise PrepareError(
        f"{raw} has no pairs: found {contents(raw)}, no picture ({', '.join(PICTURES)}); {EXPECTED}"
    )


def _walk(raw: Path) -> Iterable[Path]:
    """All files below ``raw``, without hidden ones (macOS leaves a ._NAME.png beside each NAME.png
    that it copies)."""
    for folder, below, files in walk(raw):
        below[:] = sorted(name for name in below if not name.startswith(".") and name != "__MACOSX")
        yield from (folder / name for name in files if not name.startswith("."))


# ---- two folders


def _named_side(folders: Sequence[str]) -> tuple[str, list[str]]:
    """The side that a path's folders name ("thermal", "visible" or ""), and its other folders.

    Words count before letters: thermal/A/ is sequence A.
    """
    for thermal, visible in ((THERMAL, VISIBLE), (("A",), ("B",))):
        for i, folder in enumerate(folders):
            name = folder if thermal == ("A",) else folder.lower()
            if name in thermal or name in visible:
                return "thermal" if name in thermal else "visible", [
                    *folders[:i],
                    *folders[i + 1 :],
                ]
    return "", list(folders)


def _lettered_side(folders: Sequence[str]) -> tuple[str, list[str]]:
    for i, folder in enumerate(folders):
        if (match := re.fullmatch(r"([a-z]+)_?([AB])", folder)) and match[1] in SPLITS:
            return {"A": "thermal", "B": "visible"}[match[2]], [
                *folders[:i],
                match[1],
                *folders[i + 1 :],
            ]
    return "", list(folders)


def _read_parallel(raw: Path, pictures: list[Path], side_of: Callable) -> list[FoundPair]:
    sides: dict[str, dict[tuple, Path]] = {"thermal": {}, "visible": {}}
    twice = []
    for path in pictures:
        folders = path.relative_to(raw).parts[:-1]
        side, rest = side_of(folders)
        if not side:
            continue
        split, others = _split_of(rest)
        other = sides[side].setdefault((split, others, path.stem), path)
        if other is not path:
            twice.append(f"{other.relative_to(raw)} and {path.relative_to(raw)}")
    refuse(twice, "pictures are there twice", "keep one of each two")
    thermal, visible = sides["thermal"], sides["visible"]
    alone = [thermal[key] for key in thermal if key not in visible] + [
        visible[key] for key in visible if key not in thermal
    ]
    refuse(
        [str(path.relative_to(raw)) for path in sorted(alone, key=natural_key)],
        f"of {len(thermal)} thermal and {len(visible)} colour pictures have no partner of the "
        "same name",
        "give both the same name or move them away; if names differ by a rule, write a CSV list "
        "source,target; pictures of different scenes (unpaired) are no pairs",
    )
    found = [FoundPair(thermal[key], visible[key], key[1], key[2], key[0]) for key in thermal]
    _check_sides(raw, list(thermal.values()), list(visible.values()))
    return _without_common_folder(found)


def _check_sides(raw: Path, thermal: list[Path], visible: list[Path]) -> None:
    """Refuse thermal and colour folders that are swapped, and warn of thermal frames in colours;
    some pictures of each side are looked at."""

    def spread(side: list[Path]) -> float:
        found = []
        for path in _sample(side):
            # damaged files are reported with the others; Pillow knows only some kinds of TIFF
            with contextlib.suppress(PrepareError):
                found.append(_colourfulness(path))
        return float(np.median(found or [0.0]))

    heat, colour = spread(thermal), spread(visible)
    if heat < COLOURED:
        return
    if colour < GREY:
        raise PrepareError(
            f"{raw}: the folders look swapped: {thermal[0]} and its like are coloured (channels "
            f"differ by {heat:.0f} grey levels), {visible[0]} and its like are grey "
            f"({colour:.0f}); expected thermal frames in the folder thermal (or A). Rename the "
            "folders to thermal and visible"
        )
    warnings.warn(
        f"{raw}: the thermal frames, such as {thermal[0]}, are in false colour (or are photos); "
        "their luminance will be used, which does not follow temperature in most palettes. Export "
        "them as grey from the camera",
        stacklevel=2,
    )


def _split_of(folders: Sequence[str]) -> tuple[str | None, tuple[str, ...]]:
    """The split that a path names, and its other folders."""
    splits = [SPLITS[folder.lower()] for folder in folders if folder.lower() in SPLITS]
    if len(set(splits)) > 1:
        raise PrepareError(
            f"{'/'.join(folders)} names two splits; expected one of train, val and test in a path"
        )
    return (splits or [None])[0], tuple(
        folder for folder in folders if folder.lower() not in SPLITS
    )


def _without_common_folder(found: list[FoundPair]) -> list[FoundPair]:
    """Without the folders that all pairs share: a folder around everything is no sequence."""
    around = 0
    while (
        len({pair.folders[around : around + 1] or None for pair in found}) == 1
        and found[0].folders[around:]
    ):
        around += 1
    return [replace(pair, folders=pair.folders[around:]) for pair in found]


# ---- side by side


def _read_side_by_side(raw: Path, pictures: list[Path]) -> list[FoundPair]:
    odd, sizes = [], {}
    for path in progress(pictures):
        width, height = sizes[path] = size_of(path)
        if width % 2 or width < height:
            odd.append(f"{path.relative_to(raw)} ({width} x {height})")
    if odd:
        raise PrepareError(
            f"{raw} has pictures, but neither two folders nor a list, and "
            f"{some(odd, len(pictures))} cannot be two pictures side by side (even width, at "
            f"least as wide as high): found {contents(raw)}; {EXPECTED}"
        )
    if match := re.search(r"(thermal-visible|visible-thermal)$", raw.resolve().name.lower()):
        thermal_first = match[1] == "thermal-visible"
    else:
        thermal_first = _thermal_is_left(raw, pictures, sizes)
    found = []
    for path in pictures:
        width, height = sizes[path]
        halves = ((0, 0, width // 2, height), (width // 2, 0, width, height))
        split, others = _split_of(path.relative_to(raw).parts[:-1])
        found.append(
            FoundPair(
                path, path, others, path.stem, split, halves if thermal_first else halves[::-1]
            )
        )
    return _without_common_folder(found)


def _thermal_is_left(raw: Path, pictures: list[Path], sizes: dict[Path, tuple[int, int]]) -> bool:
    """Whether the left halves are grey and the right ones coloured (or the other way round)."""
    chosen = _sample(pictures)
    left = float(
        np.median([_colourfulness(p, (0, 0, sizes[p][0] // 2, sizes[p][1])) for p in chosen])
    )
    right = float(np.median([_colourfulness(p, (sizes[p][0] // 2, 0, *sizes[p])) for p in chosen]))
    if (left < GREY) == (right < GREY) or max(left, right) < COLOURED:
        raise PrepareError(
            f"{raw}: pictures of even width, but it is not clear which half is thermal: the "
            f"channels differ by {left:.0f} grey levels in the left halves and by {right:.0f} in "
            f"the right ones (thermal: less than {GREY:.0f}, colour: {COLOURED:.0f} or more). "
            "Rename the folder so that its name ends in thermal-visible (thermal on the left) or "
            f"visible-thermal. If these are no pictures side by side: {EXPECTED}"
        )
    return left < right


def _colourfulness(path: Path, box: Box | None = None) -> float:
    """Mean over a 64x64 copy, where JPEG noise has gone, of the largest minus the smallest
    channel: 0 to 255."""
    try:
        with Image.open(path) as picture:
            if picture.mode not in ("RGB", "RGBA", "P", "CMYK", "YCbCr"):
                return 0.0
            part = (
                picture.convert("RGB")
                .crop(box or (0, 0, *picture.size))
                .resize((64, 64), Image.Resampling.BOX)
            )
    except (OSError, SyntaxError, ValueError) as error:
        raise PrepareError(
            f"{path} cannot be decoded ({error}); copy it again or move it away"
        ) from error
    pixels = np.asarray(part).astype(int)
    return float((pixels.max(2) - pixels.min(2)).mean())


def _sample(paths: Iterable[Path]) -> list[Path]:
    paths = sorted(paths, key=natural_key)
    return (
        [paths[i * len(paths) // _SAMPLED] for i in range(_SAMPLED)]
        if len(paths) > _SAMPLED
        else paths
    )


# ---- held-out frames


def hold_out(pairs: list[RawPair]) -> list[RawPair]:
    """The pairs with splits "train" and "val"; a single pair is for training.

    Neighbouring frames of a video are near duplicates, so whole sequences are held out: from the
    last in natural order backwards, while they are at most 15 % of the frames, until they are 10 %.
    If none is small enough (one long drive), the last tenth of the frames is held out, and a
    fiftieth before it, at most 30 frames, is left out, with a warning. Held-out frames of a
    sequence that is cut in this way get the sequence NAME_val.
    """
    if len(pairs) < 2:
        return pairs
    sizes: dict[str, int] = {}
    for pair in pairs:
        sizes[_scene(pair)] = sizes.get(_scene(pair), 0) + 1
    held: set[str] = set()
    count = 0
    for scene in sorted(sizes, key=lambda scene: natural_key(Path(scene)), reverse=True):
        if count >= len(pairs) / 10:
            break
        if count + sizes[scene] <= 0.15 * len(pairs):
            held.add(scene)
            count += sizes[scene]
    if held:
        return [replace(pair, split="val" if _scene(pair) in held else "train") for pair in pairs]
    start = len(pairs) - max(1, round(len(pairs) / 10))
    gap = min(30, len(pairs) // 50)
    if gap:
        warnings.warn(
            f"the last {len(pairs) - start} of {len(pairs)} frames are for validation, and the "
            f"{gap} before them are left out, since they may look the same; name the splits in "
            "folders or in a list to choose them yourself",
            stacklevel=3,
        )
    train = [replace(pair, split="train") for pair in pairs[: start - gap]]
    known = {pair.sequence for pair in train if pair.sequence}
    return train + [
        replace(
            pair,
            split="val",
            sequence=f"{pair.sequence}_val" if pair.sequence in known else pair.sequence,
        )
        for pair in pairs[start:]
    ]


def _scene(pair: RawPair) -> str:
    return pair.sequence or pair.name
