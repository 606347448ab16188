"""How the smaller public sets lie on disk, as lists of RawPair: LLVIP, M3FD, MSRS, RoadScene; and
what all readers share.

The facts (folders, counts, splits) are those that the sets' makers state; docs/prepare.md says
where each comes from and what is our own choice.
"""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Literal

import tifffile
from PIL import Image, UnidentifiedImageError

from cmmfnet.data.prepare.raw import PrepareError, RawPair
from cmmfnet.files.pictures import PICTURES, natural_key

SPLITS = ("train", "val", "test")
Need = Literal["whole", "partial", "listed"]
"""What is expected of a copy: everything that its makers published; what there is, with a warning;
or only the frames of a list, which are looked for one by one afterwards."""

PUBLISHED = {
    "llvip": {"train": 12_025, "test": 3_463},
    "msrs": {"train": 1_083, "test": 361},
    "m3fd": {"pairs": 4_200},
    "m3fd-fusion": {"pairs": 300},
    "roadscene": {"pairs": 221},
}
WAY_OUT = "Complete the copy; or take what there is with --partial; or name the frames to take with --frames LIST"


def read_llvip(raw: Path, *, need: Need = "whole") -> list[RawPair]:
    """LLVIP (Jia et al., ICCVW 2021): ``{infrared,visible}/{train,test}/NNNNNN.jpg``, 12,025 and
    3,463 pairs, all by night.

    The first two digits of a name are taken for the camera position (``sequence``).
    """
    root = find_root(raw, "LLVIP", need, "infrared", "visible")
    pairs, found = [], {}
    for split in ("train", "test"):
        matched = match(root / "infrared" / split, root / "visible" / split, need)
        found[split] = len(matched)
        for stem, thermal, visible in matched:
            pairs.append(
                RawPair(
                    safe(stem),
                    thermal,
                    visible,
                    split,
                    "llvip",
                    f"llvip/{stem[:2]}",
                    meta={"lighting": "night"},
                )
            )
    check_counts("LLVIP", root, found, PUBLISHED["llvip"], need)
    return pairs


def read_msrs(raw: Path, *, need: Need = "whole") -> list[RawPair]:
    """MSRS (Tang et al., Information Fusion 2022): ``{train,test}/{ir,vi}``, 1,083 and 361 pairs;
    names end in D or N."""
    root = find_root(raw, "MSRS", need, "train", "test")
    pairs, found = [], {}
    for split in ("train", "test"):
        matched = match(root / split / "ir", root / split / "vi", need)
        found[split] = len(matched)
        for stem, thermal, visible in matched:
            lighting = {"D": "day", "N": "night"}.get(stem[-1].upper())
            if lighting is None:
                raise PrepareError(
                    f"{thermal}: expected a name that ends in D (day) or N (night), like 00537D.png"
                )
            pairs.append(
                RawPair(safe(stem), thermal, visible, split, "msrs", meta={"lighting": lighting})
            )
    check_counts("MSRS", root, found, PUBLISHED["msrs"], need)
    return pairs


def read_m3fd(raw: Path, *, need: Need = "whole") -> list[RawPair]:
    """M3FD (Liu et al., CVPR 2022): ``Ir/`` and ``Vis/``, or as its code wants it ``ir/``, ``vi/``,
    ``meta/{train,val}.txt``.

    The lists are followed where there are any (``pred.txt`` is the split "test"). Without them the
    4,200 detection pairs are cut into blocks (:func:`fifth_blocks`), and the 300 fusion pairs are
    all for testing.
    """
    roots = [r for r in _here_and_below(raw) if subfolder(r, "ir") and subfolder(r, "vis", "vi")]
    if len(roots) != 1:
        found = ", ".join(map(str, roots)) or contents(raw)
        raise PrepareError(
            f"M3FD: expected one folder with Ir/ and Vis/ (or ir/ and vi/) in {raw}; found {found}"
        )
    root = roots[0]
    matched = match(subfolder(root, "ir"), subfolder(root, "vis", "vi"), need)
    meta = subfolder(root, "meta")
    lists = {
        s: meta / f"{s}.txt"
        for s in ("train", "val", "pred")
        if meta and (meta / f"{s}.txt").is_file()
    }
    fusion = (
        not lists
        and not subfolder(root, "annotation")
        and len(matched) <= PUBLISHED["m3fd-fusion"]["pairs"]
    )
    source = "m3fd-fusion" if fusion else "m3fd"
    check_counts("M3FD", root, {"pairs": len(matched)}, PUBLISHED[source], need)
    if lists:
        splits = _listed_splits(lists, {stem for stem, *_ in matched}, need)
    elif fusion:
        splits = dict.fromkeys((stem for stem, *_ in matched), "test")
    else:
        splits = fifth_blocks([stem for stem, *_ in matched], 200)
    return [
        RawPair(safe(stem), thermal, visible, splits[stem], source, meta={"lighting": "none"})
        for stem, thermal, visible in matched
        if stem in splits
    ]


def read_roadscene(raw: Path, *, need: Need = "whole") -> list[RawPair]:
    """RoadScene (Xu et al., AAAI 2020): ``cropinfrared/`` with ``crop_LR_visible/``, 221 registered
    pairs of many sizes.

    Where there is only ``crop_HR_visible/``, colour is resampled to the thermal frame's size, with
    ``aligned: false``. The set has no official split: blocks of 20 (:func:`fifth_blocks`).
    """
    roots = [r for r in _here_and_below(raw) if subfolder(r, "crop_lr_visible", "crop_hr_visible")]
    if len(roots) != 1 or not subfolder(roots[0], "cropinfrared", "infrared"):
        raise PrepareError(
            "RoadScene: expected cropinfrared/ and crop_LR_visible/ (or crop_HR_visible/) in "
            f"{raw}; found {contents(raw)}"
        )
    low = subfolder(roots[0], "crop_lr_visible") if subfolder(roots[0], "cropinfrared") else None
    colour = low or subfolder(roots[0], "crop_hr_visible")
    if colour is None:
        raise PrepareError(
            f"RoadScene: {roots[0]} has crop_LR_visible/ without cropinfrared/, and only these "
            "two belong together"
        )
    matched = match(
        subfolder(roots[0], "cropinfrared") or subfolder(roots[0], "infrared"), colour, need
    )
    check_counts("RoadScene", roots[0], {"pairs": len(matched)}, PUBLISHED["roadscene"], need)
    if not low:
        warnings.warn(
            f"{colour} is not known to be aligned with the thermal frames; crop_LR_visible/ is",
            stacklevel=2,
        )
    splits = fifth_blocks([stem for stem, *_ in matched], 20)
    return [
        RawPair(
            safe(stem),
            thermal,
            visible,
            splits[stem],
            "roadscene",
            visible_size=None if low else picture_size(thermal),
            meta={"lighting": "none"} if low else {"lighting": "none", "aligned": False},
        )
        for stem, thermal, visible in matched
    ]


def choose_frames(pairs: list[RawPair], path: Path) -> list[RawPair]:
    """The pairs that a list names, in its splits where it has any.

    A line is NAME or SPLIT NAME, so any frames.txt is such a list; NAME may be a path
    (setXX/VXXX/IXXXXX.jpg). Empty lines and lines that start with # are skipped.

    Raises:
        PrepareError: no such file, a line that cannot be read, a name twice, or names that are not
            in the data set.
    """
    if not path.is_file():
        raise PrepareError(
            f"--frames {path} does not exist; expected a text file with one frame a line"
        )
    known = {pair.name: pair for pair in pairs}
    chosen: dict[str, RawPair] = {}
    absent: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) > 2 or (len(words) == 2 and words[0] not in SPLITS):
            raise PrepareError(
                f"{path}, line {number}: found {line!r}; expected NAME, or train, val or test and "
                "NAME"
            )
        name = words[-1].removesuffix(
            Path(words[-1]).suffix if Path(words[-1]).suffix.lower() in PICTURES else ""
        )
        name = name.strip("/").replace("/", "_")
        if name in chosen:
            raise PrepareError(f"{path}, line {number}: {name} is there twice")
        if name in known:
            chosen[name] = replace(known[name], split=words[0]) if len(words) == 2 else known[name]
        else:
            absent.append(words[-1])
    if absent:
        raise PrepareError(
            f"{path}: {len(absent)} of {len(absent) + len(chosen)} frames are not in this copy of "
            f"{len(known)} (the first "
            f"is {absent[0]}); its names are like {next(iter(known), 'none, it is empty')}"
        )
    if not chosen:
        raise PrepareError(f"{path} names no frames")
    return list(chosen.values())


def fifth_blocks(names: list[str], size: int) -> dict[str, str]:
    """Name -> "train" or "test", for a set without a split: every fifth block of ``size``
    consecutive names is for testing.

    Blocks, because neighbours may be frames of one drive, and a test frame's neighbour in training
    would give it away; spread over the set, because its parts differ in place and hour.
    """
    return {
        n: "test" if i // size % 5 == 4 else "train"
        for i, n in enumerate(sorted(names, key=natural_key))
    }


def match(thermal: Path, visible: Path, need: Need) -> list[tuple[str, Path, Path]]:
    """(stem, thermal file, colour file) of two parallel folders, in natural order.

    Raises :class:`PrepareError` where a folder is missing or empty, or, unless ``need`` is less, a
    picture has no partner. Of an incomplete copy both folders may be missing.
    """
    if need != "whole" and not thermal.is_dir() and not visible.is_dir():
        return []
    left, right = list_pictures(thermal), list_pictures(visible)
    if need != "listed" and (alone := unmatched(left, right, thermal, visible)):
        found = f"found {len(left)} thermal and {len(right)} colour pictures; {alone}"
        complain(f"{thermal}: {found}", need)
    return [
        (stem, left[stem], right[stem])
        for stem in sorted(left.keys() & right.keys(), key=natural_key)
    ]


def unmatched(left: dict[str, Path], right: dict[str, Path], thermal: Path, visible: Path) -> str:
    """What is on one side only, in words; empty if nothing is."""
    parts = []
    for folder, alone in (
        (visible, left.keys() - right.keys()),
        (thermal, right.keys() - left.keys()),
    ):
        if alone:
            parts.append(
                f"{len(alone)} missing in {folder.parent.name}/{folder.name}/ (the first is "
                f"{min(alone, key=natural_key)})"
            )
    return ", ".join(parts)


def list_pictures(folder: Path) -> dict[str, Path]:
    """Stem -> file of the pictures right in ``folder``. Raises :class:`PrepareError`: no folder,
    nothing there, a stem twice."""
    try:
        entries = [e for e in os.scandir(folder) if not e.name.startswith(".") and e.is_file()]
    except (FileNotFoundError, NotADirectoryError):
        raise PrepareError(
            f"{folder} does not exist; {folder.parent} has {contents(folder.parent)}. Is RAW the "
            "right folder, and is it "
            "unpacked?"
        ) from None
    pictures: dict[str, Path] = {}
    for entry in entries:
        stem, suffix = os.path.splitext(entry.name)  # noqa: PTH122, ten times as quick for a hundred thousand files
        if suffix.lower() in PICTURES:
            if stem in pictures:
                raise PrepareError(
                    f"{folder} has two pictures {stem}: {pictures[stem].name} and {entry.name}; "
                    "keep one"
                )
            pictures[stem] = folder / entry.name
    if not pictures:
        raise PrepareError(
            f"{folder} has no pictures ({', '.join(PICTURES)}); it has {contents(folder)}"
        )
    return pictures


def check_counts(
    title: str,
    root: Path,
    found: dict[str, int],
    expected: dict[str, int],
    need: Need,
    least: float = 1.0,
) -> None:
    """Compare with what the makers published; ``least`` is the part of it that counts as whole."""
    if need == "listed" or all(least * n <= found.get(key, 0) <= n for key, n in expected.items()):
        return
    short = {key: n - found.get(key, 0) for key, n in expected.items()}
    missing = [f"{n:,} {key}" for key, n in short.items() if n > 0]
    beyond = [f"{-n:,} {key}" for key, n in short.items() if n < 0]
    text = (
        f"{root} is not {title} as published: found {_counts(found)}; expected {_counts(expected)}"
    )
    text += f"; missing {', '.join(missing)}" if missing else ""
    complain(text + (f"; too many: {', '.join(beyond)}" if beyond else ""), need)


def complain(text: str, need: Need) -> None:
    """A :class:`PrepareError` with the way out, or where the user took it a warning."""
    if need == "whole":
        raise PrepareError(f"{text}. {WAY_OUT}")
    warnings.warn(f"{text}; taking what there is", stacklevel=2)


def find_root(raw: Path, title: str, need: Need, *names: str) -> Path:
    """``raw``, or the one folder in it, that has all the sub-folders ``names``, or any of them in
    an incomplete copy."""
    enough = all if need == "whole" else any
    roots = [
        root for root in _here_and_below(raw) if enough((root / name).is_dir() for name in names)
    ]
    if len(roots) != 1:
        wanted = " and ".join(f"{name}/" for name in names)
        found = ", ".join(map(str, roots)) or contents(raw)
        raise PrepareError(f"{title}: expected one folder with {wanted} in {raw}; found {found}")
    return roots[0]


def subfolder(root: Path, *names: str) -> Path | None:
    """The first of the sub-folders ``names`` (in lower case) that ``root`` has, however it is
    spelt."""
    there = {p.name.lower(): p for p in root.iterdir() if p.is_dir()}
    return next((there[name] for name in names if name in there), None)


def contents(folder: Path) -> str:
    """What a folder has, in a few words."""
    if not folder.is_dir():
        return "nothing (no such folder)"
    names = sorted(
        p.name + ("/" if p.is_dir() else "") for p in folder.iterdir() if not p.name.startswith(".")
    )
    return (
        ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        or "nothing"
    )


def safe(*parts: str) -> str:
    """A name of letters, digits, - and _."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", "_".join(parts))


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height), from the header. Raises :class:`PrepareError` if the file is no picture."""
    try:
        if path.suffix.lower() in (".tif", ".tiff"):  # of which Pillow knows but some
            with tifffile.TiffFile(path) as tiff:
                return tiff.pages.first.imagewidth, tiff.pages.first.imagelength
        with Image.open(path) as picture:
            return picture.size
    except FileNotFoundError:
        raise PrepareError(f"{path} does not exist") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, tifffile.TiffFileError) as error:
        raise PrepareError(
            f"{path} ({path.stat().st_size:,} bytes) is no picture that can be read: {error}"
        ) from error


def _here_and_below(raw: Path) -> list[Path]:
    return [raw, *sorted(p for p in raw.iterdir() if p.is_dir())]


def _listed_splits(lists: dict[str, Path], known: set[str], need: Need) -> dict[str, str]:
    """Stem -> split by M3FD's lists."""
    splits: dict[str, str] = {}
    for name, path in lists.items():
        stems = [
            Path(line.strip()).stem
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.strip()
        ]
        if need != "listed" and (absent := [stem for stem in stems if stem not in known]):
            complain(
                f"{path}: {len(absent)} of {len(stems)} names have no pair (the first is "
                f"{absent[0]})",
                need,
            )
        for stem in stems:
            splits.setdefault(
                stem, "test" if name == "pred" else name
            )  # train and val come first: pred may repeat them
    return splits


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{n:,} {key}" for key, n in counts.items())
