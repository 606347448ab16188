"""RawPair, a pair as it lies in somebody else's data set, and the tools that all readers of such
sets share."""

from __future__ import annotations

import os
import re
import unicodedata
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import tifffile
from PIL import Image, UnidentifiedImageError

from cmmfnet.files.errors import UserError
from cmmfnet.files.pictures import PICTURES, dangling, natural_key
from cmmfnet.thermal.frame import read_thermal
from cmmfnet.thermal.limits import ThermalFileError

SPLITS = ("train", "val", "test")
Need = Literal["whole", "partial", "listed"]
"""What is expected of a copy: everything that its makers published; any part of it, with a warning;
or only the frames of a list, which are looked for one by one afterwards."""
WAY_OUT = (
    "Complete the copy; or use the part there is with --partial; or name the frames to use with "
    "--frames LIST"
)
Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels, right and bottom excluded."""


class PrepareError(UserError):
    """A raw data set that is not as expected; the message says what was found and what is
    missing."""


@dataclass(frozen=True)
class RawPair:
    """The files of a pair, and its index entry.

    ``name``: unique in the data set; letters, digits, ``-`` and ``_``. A box cuts the picture out
    of a larger one (side by side, triplets); without a box the file is linked. ``visible_size``
    (width, height): resample the colour picture to this size, for cameras of different sizes.
    ``embedded``: ``thermal`` and ``visible`` are one camera file that holds both. ``meta``:
    further index keys (lighting, sky, caption, tags, aligned, ...).
    """

    name: str
    thermal: Path
    visible: Path
    split: str
    source: str
    sequence: str | None = None
    thermal_box: Box | None = None
    visible_box: Box | None = None
    visible_size: tuple[int, int] | None = None
    meta: dict = field(default_factory=dict)
    embedded: bool = False


def choose_frames(pairs: list[RawPair], path: Path) -> list[RawPair]:
    """The pairs that a list names, in the list's splits if it has any.

    A line is NAME or SPLIT NAME, so any frames.txt is such a list. NAME may be a path
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
        name = name.replace("\\", "/").strip("/").replace("/", "_")  # paths of Windows, too
        if name in chosen:
            raise PrepareError(f"{path}, line {number}: {name} is there twice")
        if name in known:
            chosen[name] = replace(known[name], split=words[0]) if len(words) == 2 else known[name]
        else:
            absent.append(words[-1])
    if absent:
        raise PrepareError(
            f"{path}: {len(absent)} of {len(absent) + len(chosen)} frames are not in this copy of "
            f"{len(known)} (the first is {absent[0]}); its names are like "
            f"{next(iter(known), 'none, it is empty')}"
        )
    if not chosen:
        raise PrepareError(f"{path} names no frames")
    return list(chosen.values())


def fifth_blocks(names: list[str], size: int) -> dict[str, str]:
    """Name -> "train" or "test", for a set without splits: every fifth block of ``size``
    consecutive names is for testing.

    Blocks, because neighbours may be frames of one drive, and training on a test frame's neighbour
    would give the answer away; spread over the set, because its parts differ in place and hour.
    """
    return {
        n: "test" if i // size % 5 == 4 else "train"
        for i, n in enumerate(sorted(names, key=natural_key))
    }


def match(thermal: Path, visible: Path, need: Need) -> list[tuple[str, Path, Path]]:
    """(stem, thermal file, colour file) of two parallel folders, in natural order.

    Raises :class:`PrepareError` if a folder is missing or empty or, for ``need="whole"``, a picture
    has no partner. In an incomplete copy both folders may be missing.
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
    """A sentence about the pictures that are on one side only; "" if there are none."""
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
    """Stem -> file of the pictures in ``folder``, without sub-folders.

    Links that lead nowhere (git-annex files that are not fetched) are left out with a warning.
    Raises :class:`PrepareError`: no folder, no picture, a stem twice.
    """
    try:
        entries = [e for e in os.scandir(folder) if not e.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        raise PrepareError(
            f"{folder} does not exist; {folder.parent} has {contents(folder.parent)}. Is RAW the "
            "right folder, and is it unpacked?"
        ) from None
    lost = [folder / e.name for e in entries if e.is_symlink() and not e.is_file()]
    lost = [path for path in lost if path.suffix.lower() in PICTURES and not path.exists()]
    if lost:
        warnings.warn(
            f"{folder}: {len(lost)} links lead nowhere and are left out; {dangling(min(lost))}",
            stacklevel=2,
        )
    pictures: dict[str, Path] = {}
    for entry in entries:
        if not entry.is_file():
            continue
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
    """Compare with the published counts; ``least`` is the share of them that counts as whole."""
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
    """Raise :class:`PrepareError` with the way out or, if the user took that, warn."""
    if need == "whole":
        raise PrepareError(f"{text}. {WAY_OUT}")
    warnings.warn(f"{text}; using the part there is", stacklevel=2)


def find_root(raw: Path, title: str, need: Need, *names: str) -> Path:
    """``raw``, or the only folder in it, with all the sub-folders ``names`` (any of them for an
    incomplete copy)."""
    enough = all if need == "whole" else any
    roots = [
        root for root in here_and_below(raw) if enough((root / name).is_dir() for name in names)
    ]
    if len(roots) != 1:
        wanted = " and ".join(f"{name}/" for name in names)
        found = ", ".join(map(str, roots)) or contents(raw)
        raise PrepareError(f"{title}: expected one folder with {wanted} in {raw}; found {found}")
    return roots[0]


def subfolder(root: Path, *names: str) -> Path | None:
    """The first of the sub-folders ``names`` (given in lower case) that ``root`` has, in any
    spelling."""
    there = {p.name.lower(): p for p in root.iterdir() if p.is_dir()}
    return next((there[name] for name in names if name in there), None)


def contents(folder: Path) -> str:
    """The first names in a folder, for messages."""
    if not folder.is_dir():
        return "nothing (no such folder)"
    names = sorted(
        p.name + ("/" if p.is_dir() else "") for p in folder.iterdir() if not p.name.startswith(".")
    )
    return (
        ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        or "nothing"
    )


def walk(raw: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """``os.walk`` through links; a folder that is linked several times, or into itself, is entered
    once."""
    entered: set[Path] = set()
    for folder, below, files in os.walk(raw, followlinks=True):
        place = Path(folder).resolve()
        if place in entered:
            below.clear()
            continue
        entered.add(place)
        yield Path(folder), below, files


def safe(*parts: str) -> str:
    """A name of letters and digits of any script, - and _."""
    # one spelling of letters with accents: macOS stores them as a letter and its accent
    return re.sub(r"[^\w-]+", "-", unicodedata.normalize("NFC", "_".join(parts)))


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height), from the header. Raises :class:`PrepareError` if the file is no picture."""
    try:
        if path.suffix.lower() in (".tif", ".tiff"):  # Pillow knows only some kinds
            with tifffile.TiffFile(path) as tiff:
                return tiff.pages.first.imagewidth, tiff.pages.first.imagelength
        with Image.open(path) as picture:
            size = picture.size
            radiometric = _is_radiometric(picture)
        if radiometric:  # training reads the frame inside, not the picture on the screen
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                height, width = read_thermal(path).values.shape
            size = width, height
        return size
    except ThermalFileError as error:
        raise PrepareError(str(error)) from error
    except FileNotFoundError:
        lost = dangling(path) if path.is_symlink() else f"{path} does not exist"
        raise PrepareError(lost) from None
    except (UnidentifiedImageError, Image.DecompressionBombError, tifffile.TiffFileError) as error:
        raise PrepareError(
            f"{path} ({path.stat().st_size:,} bytes) is no picture that can be read: {error}"
        ) from error


def _is_radiometric(picture: Image.Image) -> bool:
    segments = getattr(picture, "applist", ())  # JPEG only
    return any(
        marker == "APP3" or (marker == "APP1" and content.startswith(b"FLIR\0"))
        for marker, content in segments
    )


def here_and_below(raw: Path) -> list[Path]:
    return [raw, *sorted(p for p in raw.iterdir() if p.is_dir())]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{n:,} {key}" for key, n in counts.items())
