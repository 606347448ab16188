"""The smaller public sets as lists of RawPair: LLVIP, M3FD, MSRS, RoadScene.

Folders, counts and splits are those that the sets' makers state; docs/prepare.md says where each
fact comes from and what is our own choice.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from cmmfnet.data.prepare.raw import (
    Need,
    PrepareError,
    RawPair,
    check_counts,
    complain,
    contents,
    fifth_blocks,
    find_root,
    here_and_below,
    match,
    picture_size,
    safe,
    subfolder,
)

PUBLISHED = {
    "llvip": {"train": 12_025, "test": 3_463},
    "msrs": {"train": 1_083, "test": 361},
    "m3fd": {"pairs": 4_200},
    "m3fd-fusion": {"pairs": 300},
    "roadscene": {"pairs": 221},
}


def read_llvip(raw: Path, *, need: Need = "whole") -> list[RawPair]:
    """LLVIP (Jia et al., ICCVW 2021): ``{infrared,visible}/{train,test}/NNNNNN.jpg``, 12,025 and
    3,463 pairs, all by night.

    The first two digits of a name are assumed to be the camera position (``sequence``).
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
    """M3FD (Liu et al., CVPR 2022): ``Ir/`` and ``Vis/``, or as in its code ``ir/``, ``vi/``,
    ``meta/{train,val}.txt``.

    The lists give the splits if there are any (``pred.txt`` is "test"). Without them the 4,200
    detection pairs are split in blocks (:func:`fifth_blocks`), and the 300 fusion pairs are all for
    testing.
    """
    roots = [r for r in here_and_below(raw) if subfolder(r, "ir") and subfolder(r, "vis", "vi")]
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

    If there is only ``crop_HR_visible/``, colour is resampled to the thermal frame's size, with
    ``aligned: false``. The set has no official split: blocks of 20 (:func:`fifth_blocks`).
    """
    roots = [r for r in here_and_below(raw) if subfolder(r, "crop_lr_visible", "crop_hr_visible")]
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
