"""FoundPair, a pair in the user's own folders or list, and the checks that all of them must
pass."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from cmmfnet.data.prepare.raw import Box, PrepareError, RawPair, picture_size, safe
from cmmfnet.files.pictures import dangling

EXPECTED = """expected one of
  thermal/ and visible/ with equal names (or ir, lwir, infrared, tir, A; vis, rgb, vi, color,
    colour, B)
  trainA/, trainB/, testA/, testB/ with equal names, A thermal
  radiometric JPEG of a FLIR camera, each with a visible photo inside
  pictures of even width with the thermal frame in one half and the colour picture in the other
  a list .csv or .jsonl with source, target (thermal and colour file) and optionally prompt, split,
    sequence, lighting"""


@dataclass(frozen=True)
class FoundPair:
    """A pair as it was found. ``folders``: its path without splits and thermal/visible."""

    thermal: Path
    visible: Path
    folders: tuple[str, ...]
    stem: str
    split: str | None = None
    boxes: tuple[Box, Box] | None = None
    meta: dict = field(default_factory=dict)
    embedded: bool = False

    @property
    def name(self) -> str:
        # the split is part of it: 0001 of train/ and 0001 of test/ are two pairs
        return safe(*((self.split,) if self.split else ()), *self.folders, self.stem)


def raw_pair(pair: FoundPair) -> RawPair:
    """The RawPair. Its sequence: its folders, or its name without the digits at its end (drive1 of
    drive1_0042)."""
    run = re.sub(r"[\s_.-]*\d+$", "", pair.stem)
    sequence = safe(*pair.folders) if pair.folders else safe(run) if run != pair.stem else None
    boxes = pair.boxes or (None, None)
    return RawPair(
        pair.name,
        pair.thermal,
        pair.visible,
        pair.split or "train",
        "folder",
        sequence or None,
        *boxes,
        meta=pair.meta,
        embedded=pair.embedded,
    )


def check_names(found: list[FoundPair]) -> None:
    seen: dict[str, FoundPair] = {}
    twice = []
    for pair in found:
        if (other := seen.setdefault(pair.name.lower(), pair)) is not pair:
            twice.append(f"{other.thermal} and {pair.thermal} (both {pair.name})")
    refuse(twice, "pairs would get a name that another has", "rename one of each two")


def check_pictures(found: list[FoundPair]) -> None:
    broken, unequal, turned, deep = [], [], [], []
    for pair in progress([pair for pair in found if not pair.embedded]):
        try:
            thermal = size_of(pair.thermal)
            with Image.open(pair.visible) as picture:
                visible, mode = picture.size, picture.mode
                # only if there is EXIF: Pillow would decode a whole PNG to look for it
                orientation = picture.getexif().get(274, 1) if "exif" in picture.info else 1
        except PrepareError as error:
            broken.append(str(error))
            continue
        except FileNotFoundError:  # a link that leads nowhere; lists check their files before
            lost = pair.visible.is_symlink()
            broken.append(dangling(pair.visible) if lost else f"{pair.visible} does not exist")
            continue
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            broken.append(
                f"{pair.visible} ({pair.visible.stat().st_size:,} bytes) cannot be read: {error}"
            )
            continue
        if orientation != 1:
            turned.append(str(pair.visible))
        elif pair.boxes is None and thermal != visible:
            sizes = f"{thermal[0]} x {thermal[1]}, {pair.visible.name} {visible[0]} x {visible[1]}"
            unequal.append(f"{pair.thermal} is {sizes}")
        elif mode in ("F", "I") or mode.startswith("I;"):
            deep.append(f"{pair.visible} ({mode})")
    refuse(
        broken,
        f"of {len(found)} pairs cannot be read",
        "copy them again or move them and their partners away",
    )
    refuse(
        turned,
        "colour pictures have an EXIF orientation, which training does not apply",
        "turn the pixels themselves, for example with mogrify -auto-orient",
    )
    refuse(
        unequal,
        f"of {len(found)} pairs are of two sizes",
        "the two must match pixel by pixel: register and resample both to one size",
    )
    refuse(deep, "colour pictures have more than 8 bits", "save them as 8-bit RGB")


def size_of(path: Path) -> tuple[int, int]:
    try:
        return picture_size(path)
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, PrepareError):
            raise
        raise PrepareError(f"{path} cannot be read: {error}") from error


def refuse(bad: list[str], what: str, remedy: str) -> None:
    if bad:
        raise PrepareError(
            f"{len(bad)} {what}: {'; '.join(bad[:5])}{'; ...' if len(bad) > 5 else ''}. To do: "
            f"{remedy}"
        )


def some(bad: list[str], of: int) -> str:
    return f"{len(bad)} of {of} (the first is {bad[0]})"


def progress(items: list) -> Iterable:
    return tqdm(items, desc="read headers", unit="picture", disable=None, leave=False)
