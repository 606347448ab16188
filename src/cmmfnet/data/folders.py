"""The user's own pairs, in one of four layouts, as lists of RawPair: see docs/folder.md.

What RAW is follows from what is in it. Where that is not plain, the error says what was found and how to make it plain;
nothing is guessed, since a wrong guess (thermal taken for colour) shows only after training.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from cmmfnet.data.layouts import contents, picture_size, safe
from cmmfnet.data.pairs import SUFFIXES
from cmmfnet.data.raw import Box, PrepareError, RawPair
from cmmfnet.sources import natural_key

THERMAL = ("thermal", "ir", "lwir", "infrared", "tir")
VISIBLE = ("visible", "vis", "rgb", "vi", "color", "colour")
SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip
LISTS = (".csv", ".jsonl", ".json")  # .json: ControlNet's prompt.json has an object a line, too
LIGHTINGS = ("day", "dusk", "night")
COLUMNS = ("source", "target", "prompt", "split", "sequence", "lighting")
GREY, COLOURED = 4.0, 6.0  # mean difference of a picture's largest and smallest channel, in grey levels: below, from
_SAMPLED = 16

EXPECTED = """expected one of
  thermal/ and visible/ with equal names (or ir, lwir, infrared, tir, A; vis, rgb, vi, color, colour, B)
  trainA/, trainB/, testA/, testB/ with equal names, A thermal
  pictures of even width with the thermal frame in one half and the colour picture in the other
  a list .csv or .jsonl with source, target (thermal and colour file) and, where wanted, prompt, split, sequence, lighting"""


@dataclass(frozen=True)
class _Pair:
    """A pair as it was found. ``folders``: what its path has beside splits and thermal/visible."""

    thermal: Path
    visible: Path
    folders: tuple[str, ...]
    stem: str
    split: str | None = None
    boxes: tuple[Box, Box] | None = None
    meta: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        # the split is part of it: 0001 of train/ and 0001 of test/ are two pairs
        return safe(*((self.split,) if self.split else ()), *self.folders, self.stem)


def read_folder(raw: Path) -> list[RawPair]:
    """The pairs in ``raw``: parallel folders, trainA/trainB, side-by-side pictures, or a list (or ``raw`` is the list).

    Every picture's header is read: both of a pair must be whole files of one size. Splits that RAW names are kept; where it
    names none, or only train, a tenth of the frames in whole blocks becomes "val" (:func:`hold_out`).

    Returns:
        Pairs of the source "folder", in natural order; ``meta`` has the list's caption and lighting.

    Raises:
        PrepareError: none of the layouts or several of them; pictures without partner, of two sizes, damaged, twice.

    Warns:
        UserWarning: frames left out between train and val; columns of a list that are not used.
    """
    raw = Path(raw)
    if raw.is_file():
        found = _read_list(raw)
    else:
        if (raw / "index.jsonl").is_file():
            raise PrepareError(
                f"{raw} is a data set in the project's layout already (it has index.jsonl); use it as it is"
            )
        found = _recognise(raw)()
    if all(pair.split == "train" for pair in found):  # which says nothing
        found = [replace(pair, split=None) for pair in found]
    found.sort(key=lambda pair: natural_key(Path(pair.name)))
    _check_names(found)
    _check_pictures(found)
    pairs = [_raw_pair(pair) for pair in found]
    return pairs if any(pair.split for pair in found) else hold_out(pairs)


def _recognise(raw: Path) -> Callable[[], list[_Pair]]:
    """The reader of the one layout that fits."""
    if not raw.is_dir():
        raise PrepareError(f"{raw} does not exist; expected a folder of pairs or a list of them")
    pictures = [p for p in _walk(raw) if p.suffix.lower() in SUFFIXES]
    fits: dict[str, Callable[[], list[_Pair]]] = {}
    for path in sorted(raw.iterdir()):
        if path.suffix.lower() in LISTS and _columns(path) >= {"source", "target"}:
            fits[f"the list {path.name}"] = lambda path=path: _read_list(path)
    for title, side_of in (("parallel folders", _named_side), ("trainA, trainB and their like", _lettered_side)):
        sides = {side for p in pictures if (side := side_of(p.relative_to(raw).parts[:-1])[0])}
        if len(sides) == 2:
            fits[title] = lambda side_of=side_of: _read_parallel(raw, pictures, side_of)
    if len(fits) > 1:
        raise PrepareError(
            f"{raw} can be read in {len(fits)} ways: {'; '.join(fits)}. Give the list itself or the folder of one of them as "
            "RAW, or take the other away"
        )
    if fits:
        return next(iter(fits.values()))
    if pictures:
        return lambda: _read_side_by_side(raw, pictures)
    raise PrepareError(f"{raw} has no pairs: found {contents(raw)}, no picture ({', '.join(SUFFIXES)}); {EXPECTED}")


def _walk(raw: Path) -> Iterable[Path]:
    """All files below, but for what is hidden (macOS leaves a ._NAME.png beside each NAME.png that it copies)."""
    for folder, below, files in os.walk(raw, followlinks=True):
        below[:] = sorted(name for name in below if not name.startswith(".") and name != "__MACOSX")
        yield from (Path(folder, name) for name in files if not name.startswith("."))


# ---- two folders ----------------------------------------------------------------------------------------------------


def _named_side(folders: Sequence[str]) -> tuple[str, list[str]]:
    """("thermal", "visible" or "", the other folders). Words go before letters: thermal/A/ is sequence A."""
    for thermal, visible in ((THERMAL, VISIBLE), (("A",), ("B",))):
        for i, folder in enumerate(folders):
            name = folder if thermal == ("A",) else folder.lower()
            if name in thermal or name in visible:
                return "thermal" if name in thermal else "visible", [*folders[:i], *folders[i + 1 :]]
    return "", list(folders)


def _lettered_side(folders: Sequence[str]) -> tuple[str, list[str]]:
    for i, folder in enumerate(folders):
        if (match := re.fullmatch(r"([a-z]+)_?([AB])", folder)) and match[1] in SPLITS:
            return {"A": "thermal", "B": "visible"}[match[2]], [*folders[:i], match[1], *folders[i + 1 :]]
    return "", list(folders)


def _read_parallel(raw: Path, pictures: list[Path], side_of: Callable) -> list[_Pair]:
    sides: dict[str, dict[tuple, Path]] = {"thermal": {}, "visible": {}}
    twice, lettered = [], False
    for path in pictures:
        folders = path.relative_to(raw).parts[:-1]
        side, rest = side_of(folders)
        if not side:
            continue
        lettered |= side_of is _lettered_side or not {f.lower() for f in folders} & {*THERMAL, *VISIBLE}
        split, others = _split_of(rest)
        other = sides[side].setdefault((split, others, path.stem), path)
        if other is not path:
            twice.append(f"{other.relative_to(raw)} and {path.relative_to(raw)}")
    _refuse(twice, "pictures are there twice", "keep one of each two")
    thermal, visible = sides["thermal"], sides["visible"]
    alone = [thermal[key] for key in thermal if key not in visible] + [
        visible[key] for key in visible if key not in thermal
    ]
    _refuse(
        [str(path.relative_to(raw)) for path in sorted(alone, key=natural_key)],
        f"of {len(thermal)} thermal and {len(visible)} colour pictures have no partner of the same name",
        "give both the same name or take them away; where names differ by a rule, write a CSV list source,target; pictures "
        "that show different scenes (unpaired) are no pairs",
    )
    found = [_Pair(thermal[key], visible[key], key[1], key[2], key[0]) for key in thermal]
    if lettered:
        colours = [np.median([_colourfulness(p) for p in _sample(side.values())]) for side in (thermal, visible)]
        if colours[0] >= COLOURED and colours[1] < GREY:
            raise PrepareError(
                f"{raw}: A and B look swapped: A is coloured (channels differ by {colours[0]:.0f} grey levels), B is grey "
                f"({colours[1]:.0f}); expected thermal frames in A. Rename the folders to thermal and visible"
            )
    return _without_common_folder(found)


def _split_of(folders: Sequence[str]) -> tuple[str | None, tuple[str, ...]]:
    """The split that a path names, and its other folders."""
    splits = [SPLITS[folder.lower()] for folder in folders if folder.lower() in SPLITS]
    if len(set(splits)) > 1:
        raise PrepareError(f"{'/'.join(folders)} names two splits; expected one of train, val and test in a path")
    return (splits or [None])[0], tuple(folder for folder in folders if folder.lower() not in SPLITS)


def _without_common_folder(found: list[_Pair]) -> list[_Pair]:
    """A folder around everything, as archives have it, is no sequence."""
    around = 0
    while len({pair.folders[around : around + 1] or None for pair in found}) == 1 and found[0].folders[around:]:
        around += 1
    return [replace(pair, folders=pair.folders[around:]) for pair in found]


# ---- side by side ---------------------------------------------------------------------------------------------------


def _read_side_by_side(raw: Path, pictures: list[Path]) -> list[_Pair]:
    odd, sizes = [], {}
    for path in _progress(pictures):
        width, height = sizes[path] = _size(path)
        if width % 2 or width < height:
            odd.append(f"{path.relative_to(raw)} ({width} x {height})")
    if odd:
        raise PrepareError(
            f"{raw} has pictures, but neither two folders nor a list, and {_some(odd, len(pictures))} cannot be two pictures "
            f"side by side (even width, at least as wide as high): found {contents(raw)}; {EXPECTED}"
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
        found.append(_Pair(path, path, others, path.stem, split, halves if thermal_first else halves[::-1]))
    return _without_common_folder(found)


def _thermal_is_left(raw: Path, pictures: list[Path], sizes: dict[Path, tuple[int, int]]) -> bool:
    """Which half is grey while the other is coloured."""
    chosen = _sample(pictures)
    left = float(np.median([_colourfulness(p, (0, 0, sizes[p][0] // 2, sizes[p][1])) for p in chosen]))
    right = float(np.median([_colourfulness(p, (sizes[p][0] // 2, 0, *sizes[p])) for p in chosen]))
    if (left < GREY) == (right < GREY) or max(left, right) < COLOURED:
        raise PrepareError(
            f"{raw}: pictures of even width, but which half is thermal cannot be told: the channels differ by {left:.0f} grey "
            f"levels in the left halves and by {right:.0f} in the right ones (thermal: less than {GREY:.0f}, colour: "
            f"{COLOURED:.0f} or more). Rename the folder so that its name ends in thermal-visible (thermal on the left) or "
            f"visible-thermal. If these are no pictures side by side: {EXPECTED}"
        )
    return left < right


def _colourfulness(path: Path, box: Box | None = None) -> float:
    """Mean over the picture of the largest less the smallest channel, 0 to 255; small, so that JPEG's noise is out."""
    try:
        with Image.open(path) as picture:
            if picture.mode not in ("RGB", "RGBA", "P", "CMYK", "YCbCr"):
                return 0.0
            part = picture.convert("RGB").crop(box or (0, 0, *picture.size)).resize((64, 64), Image.Resampling.BOX)
    except (OSError, SyntaxError, ValueError) as error:
        raise PrepareError(f"{path} cannot be decoded ({error}); copy it again or take it away") from error
    pixels = np.asarray(part).astype(int)
    return float((pixels.max(2) - pixels.min(2)).mean())


def _sample(paths: Iterable[Path]) -> list[Path]:
    paths = sorted(paths, key=natural_key)
    return [paths[i * len(paths) // _SAMPLED] for i in range(_SAMPLED)] if len(paths) > _SAMPLED else paths


# ---- lists ----------------------------------------------------------------------------------------------------------


def _rows(path: Path) -> Iterable[tuple[int, dict]]:
    """(line, row) of a CSV (comma, semicolon or tab) or JSONL list."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PrepareError(f"{path} is not UTF-8 ({error}); save it as CSV UTF-8") from error
    if path.suffix.lower() == ".csv":
        head = text.partition("\n")[0]
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count))
        for row in reader:
            if None in row:
                raise PrepareError(
                    f'{path}, line {reader.line_num}: more cells than in the first line; write "..." around a prompt with commas'
                )
            yield reader.line_num, {str(key).strip().lower(): value for key, value in row.items()}
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise PrepareError(f"{path}, line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise PrepareError(
                    f"{path}, line {number}: found {line[:60]}; expected an object with source and target"
                )
            yield number, row


def _columns(path: Path) -> set[str]:
    """Of the first row; none where the file is no list."""
    try:
        return set(next(iter(_rows(path)), (0, {}))[1])
    except PrepareError:  # some other file beside the pictures; as RAW itself, it is read again and complained of
        return set()


def _read_list(path: Path) -> list[_Pair]:
    if path.suffix.lower() not in LISTS:
        raise PrepareError(f"{path} is a file; {EXPECTED}")
    found, missing, twice, used = [], [], [], {}
    rows = list(_rows(path))
    unused = dict.fromkeys(key for _, row in rows for key in row if key not in COLUMNS)
    for number, row in rows:
        values = {key: str(row.get(key) or "").strip() for key in COLUMNS}
        if not values["source"] or not values["target"]:
            raise PrepareError(
                f"{path}, line {number}: no {'source' if not values['source'] else 'target'}; found {', '.join(row)}. Expected "
                "the columns source (thermal file), target (colour file) and, where wanted, prompt, split, sequence, lighting"
            )
        split, lighting = SPLITS.get(values["split"].lower()), values["lighting"].lower()
        if values["split"] and split is None:
            raise PrepareError(f"{path}, line {number}: split {values['split']!r}; expected train, val or test")
        if lighting and lighting not in LIGHTINGS:
            raise PrepareError(f"{path}, line {number}: lighting {lighting!r}; expected one of {', '.join(LIGHTINGS)}")
        files = [path.parent / values[key] for key in ("source", "target")]
        missing += [f"{file} (line {number})" for file in files if not file.is_file()]
        if (first := used.setdefault(files[0], number)) != number:
            twice.append(f"{values['source']} (lines {first} and {number})")
        meta = {"caption": values["prompt"], "lighting": lighting}
        folders = (values["sequence"],) if values["sequence"] else ()
        meta = {key: value for key, value in meta.items() if value}
        found.append(_Pair(*files, folders, files[0].stem, split, None, meta))
    if not found:
        raise PrepareError(f"{path} has no pairs; {EXPECTED}")
    _refuse(missing, f"of {2 * len(found)} files that {path} names do not exist", f"paths count from {path.parent}")
    _refuse(twice, f"frames are in {path} twice", "keep one line of each")
    if unused:
        guesses = [f"{key!r} (did you mean {near[0]}?)" if (near := difflib.get_close_matches(key, COLUMNS, 1)) else repr(key)
                   for key in unused]  # fmt: skip
        warnings.warn(f"{path}: not used: {', '.join(guesses)}; used are {', '.join(COLUMNS)}", stacklevel=3)
    if len({pair.split is None for pair in found}) == 2:
        raise PrepareError(
            f"{path}: {sum(pair.split is None for pair in found)} of {len(found)} lines have no split; name it in all or none"
        )
    return _told_apart(found)


def _told_apart(found: list[_Pair]) -> list[_Pair]:
    """Where files of a list have one name in several folders, the folders become part of their names."""
    if len({pair.name.lower() for pair in found}) == len(found):
        return found
    common = Path(os.path.commonpath([pair.thermal.parent.resolve() for pair in found]))
    return [
        replace(pair, stem="_".join([*pair.thermal.parent.resolve().relative_to(common).parts, pair.stem]))
        for pair in found
    ]


# ---- checks ---------------------------------------------------------------------------------------------------------


def _check_names(found: list[_Pair]) -> None:
    seen: dict[str, _Pair] = {}
    twice = []
    for pair in found:
        if (other := seen.setdefault(pair.name.lower(), pair)) is not pair:
            twice.append(f"{other.thermal} and {pair.thermal} (both {pair.name})")
    _refuse(twice, "pairs would get a name that another has", "rename one of each two")


def _check_pictures(found: list[_Pair]) -> None:
    broken, unequal, turned, deep = [], [], [], []
    for pair in _progress(found):
        try:
            thermal = _size(pair.thermal)
            with Image.open(pair.visible) as picture:
                visible, mode = picture.size, picture.mode
                # asked for only where there is any: a PNG would be decoded whole to look for it
                orientation = picture.getexif().get(274, 1) if "exif" in picture.info else 1
        except PrepareError as error:
            broken.append(str(error))
            continue
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            broken.append(f"{pair.visible} ({pair.visible.stat().st_size:,} bytes) cannot be read: {error}")
            continue
        if orientation != 1:
            turned.append(str(pair.visible))
        elif pair.boxes is None and thermal != visible:
            sizes = f"{thermal[0]} x {thermal[1]}, {pair.visible.name} {visible[0]} x {visible[1]}"
            unequal.append(f"{pair.thermal} is {sizes}")
        elif mode in ("F", "I") or mode.startswith("I;"):
            deep.append(f"{pair.visible} ({mode})")
    _refuse(broken, f"of {len(found)} pairs cannot be read", "copy them again or take them and their partners away")
    _refuse(turned, "colour pictures are to be turned by their EXIF orientation, which training does not do",
            "turn the pixels themselves, for example with mogrify -auto-orient")  # fmt: skip
    _refuse(unequal, f"of {len(found)} pairs are of two sizes", "pairs lie on each other pixel by pixel: register and "
            "resample both to one size")  # fmt: skip
    _refuse(deep, "colour pictures have more than 8 bits", "save them as 8-bit RGB")


def _size(path: Path) -> tuple[int, int]:
    try:
        return picture_size(path)
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, PrepareError):
            raise
        raise PrepareError(f"{path} cannot be read: {error}") from error


def _refuse(bad: list[str], what: str, remedy: str) -> None:
    if bad:
        raise PrepareError(f"{len(bad)} {what}: {'; '.join(bad[:5])}{'; ...' if len(bad) > 5 else ''}. To do: {remedy}")


def _some(bad: list[str], of: int) -> str:
    return f"{len(bad)} of {of} (the first is {bad[0]})"


def _progress(items: list) -> Iterable:
    return tqdm(items, desc="read headers", unit="picture", disable=None, leave=False)


# ---- splits ---------------------------------------------------------------------------------------------------------


def _raw_pair(pair: _Pair) -> RawPair:
    """With its sequence: its folders, or the name before the digits at its end (drive1_ of drive1_0042)."""
    run = re.sub(r"[\s_.-]*\d+$", "", pair.stem)
    sequence = safe(*pair.folders) if pair.folders else safe(run) if run != pair.stem else None
    boxes = pair.boxes or (None, None)
    return RawPair(
        pair.name, pair.thermal, pair.visible, pair.split or "train", "folder", sequence or None, *boxes, meta=pair.meta
    )


def hold_out(pairs: list[RawPair]) -> list[RawPair]:
    """The pairs with splits "train" and "val"; one single pair is for training.

    Neighbouring frames of a video are near duplicates, so whole sequences are held out: from the last in natural order
    backwards, as long as they make no more than 15 % of the frames, until they make 10 %. Where not one is small enough
    (one long drive), the last tenth of the frames is held out, and before it a fiftieth, 30 frames at most, is left out, with
    a warning. Held-out frames of a sequence that is cut so get the sequence NAME_val.
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
            f"the last {len(pairs) - start} of {len(pairs)} frames are for validation, and the {gap} before them are left out, "
            "since they may look the same; name the splits in folders or in a list to choose them yourself",
            stacklevel=3,
        )
    train = [replace(pair, split="train") for pair in pairs[: start - gap]]
    known = {pair.sequence for pair in train if pair.sequence}
    return train + [
        replace(pair, split="val", sequence=f"{pair.sequence}_val" if pair.sequence in known else pair.sequence)
        for pair in pairs[start:]
    ]


def _scene(pair: RawPair) -> str:
    return pair.sequence or pair.name
