"""KAIST multispectral pedestrian set (Hwang et al., CVPR 2015):
``images/setXX/VXXX/{lwir,visible}/IXXXXX.jpg``."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from cmmfnet.data.prepare.raw import (
    WAY_OUT,
    Need,
    PrepareError,
    RawPair,
    contents,
    list_pictures,
    unmatched,
)

COUNTS = {
    0: (17_498, 9), 1: (8_035, 6), 2: (7_866, 5), 3: (6_668, 2), 4: (7_200, 2), 5: (2_920, 1),
    6: (12_988, 5), 7: (8_141, 3), 8: (8_050, 3), 9: (3_500, 1), 10: (8_902, 2), 11: (3_560, 2),
}  # fmt: skip
"""Set -> (frames, videos) as published: 0 to 5 for training, 6 to 11 for testing."""
DAY = (0, 1, 2, 6, 7, 8)

GEOMETRY = {"A": "kaist-a", "B": "kaist-b", "C": "kaist-a"}
"""Protocol -> the ``--geometry`` of ``cmmfnet evaluate`` for it; frames are stored unchanged."""


def read_kaist(
    raw: Path, *, protocol: str = "A", train_all: bool = False, need: Need = "whole"
) -> list[RawPair]:
    """All frames (protocols A and B) or every 20th (C), train or test as in the makers' sets.

    Night sets get lighting "night"; the paper's protocol is lighting "day". If they are missing,
    that is only a warning. C takes frames 19, 39, 59, ... of each video. The last video of each
    training set that has several gets the split "val", unless ``train_all``. Names are
    setXX_VXXX_IXXXXX, sequences setXX/VXXX.

    Raises:
        PrepareError: missing sets, videos or frames, on one side or on both, all in one message.
    """
    root = _images(raw)
    pairs: list[RawPair] = []
    faults: list[str] = []
    absent = []
    total = expected = 0
    for number, (frames, videos) in COUNTS.items():
        folder = root / f"set{number:02d}"
        if not folder.is_dir() and number not in DAY:
            absent.append(folder.name)
            continue
        expected += frames
        matched = {video.name: _video(video, faults) for video in _videos(folder)}
        count = sum(map(len, matched.values()))
        total += count
        if count != frames or len(matched) != videos:
            faults.append(_shortage(folder.name, matched, frames, videos))
        for video, files in matched.items():
            split = "train" if number < 6 else "test"
            if not train_all and split == "train" and len(matched) > 1 and video == max(matched):
                split = "val"
            for stem, (thermal, visible) in files.items():
                if protocol == "C" and int(stem[1:]) % 20 != 19:
                    continue
                lighting = "day" if number in DAY else "night"
                sequence = f"{folder.name}/{video}"
                name = f"{folder.name}_{video}_{stem}"
                pairs.append(
                    RawPair(
                        name,
                        thermal,
                        visible,
                        split,
                        "kaist",
                        sequence,
                        meta={"lighting": lighting},
                    )
                )
    if faults and need != "listed":
        shown = "".join(f"\n  {fault}" for fault in faults[:20])
        shown += f"\n  and {len(faults) - 20} more" if len(faults) > 20 else ""
        text = (
            f"{root} is not KAIST as published: found {total:,} frames, expected {expected:,}:"
            f"{shown}\n"
        )
        if need == "whole":
            raise PrepareError(text + WAY_OUT)
        warnings.warn(text + "using the part there is", stacklevel=2)
    if absent and need == "whole":
        warnings.warn(
            f"{root} has no {', '.join(absent)} (night; protocols A, B and C need the day sets "
            "only)",
            stacklevel=2,
        )
    return pairs


def _images(raw: Path) -> Path:
    """The folder that has set00, set01, ..."""
    for root in (
        raw,
        raw / "images",
        *sorted(raw.glob("*/images")),
        *sorted(p for p in raw.iterdir() if p.is_dir()),
    ):
        if root.is_dir() and any(
            re.fullmatch(r"set\d\d", p.name) and p.is_dir() for p in root.iterdir()
        ):
            return root
    raise PrepareError(
        f"KAIST: expected images/setXX/VXXX/lwir and visible in {raw}, with set00 to set11; found "
        f"{contents(raw)}"
    )


def _videos(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and re.fullmatch(r"V\d{3}", p.name))


def _video(video: Path, faults: list[str]) -> dict[str, tuple[Path, Path]]:
    """Stem -> (thermal, visible) of the frames on both sides; adds faults to ``faults``."""
    where = f"{video.parent.name}/{video.name}"
    try:
        left, right = list_pictures(video / "lwir"), list_pictures(video / "visible")
    except PrepareError as error:
        faults.append(f"{where}: {error}")
        return {}
    if alone := unmatched(left, right, video / "lwir", video / "visible"):
        faults.append(f"{where}: {alone}")
    both = left.keys() & right.keys()
    if odd := {stem for stem in both if not re.fullmatch(r"I\d{5}", stem)}:
        faults.append(
            f"{where}: {len(odd)} names are not like I00000.jpg (the first is {min(odd)})"
        )
    return {stem: (left[stem], right[stem]) for stem in sorted(both - odd)}


def _shortage(name: str, matched: dict[str, dict], frames: int, videos: int) -> str:
    count = sum(map(len, matched.values()))
    text = f"{name}: {count:,} of {frames:,} frames, {len(matched)} of {videos} videos"
    if missing := sorted({f"V{i:03d}" for i in range(videos)} - matched.keys()):
        text += f", missing {', '.join(missing)}"
    for video, files in matched.items():
        if files and (gaps := int(max(files)[1:]) + 1 - len(files)) > 0:
            text += f", {gaps:,} frames before {max(files)} of {video}"
    return text
