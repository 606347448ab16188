"""Three sets of street scenes by Teledyne FLIR: ADAS v1.3, the video test of ADAS v2, and the
aligned part of v1.3.

ADAS pairs are not registered: the two lenses are side by side and have different angles. Colour is
cut to the thermal camera's angle of view as stated by FLIR and resampled to the thermal frame's
size; the index says ``aligned: false``.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from pathlib import Path

from cmmfnet.data.prepare.raw import (
    Box,
    Need,
    PrepareError,
    RawPair,
    check_counts,
    contents,
    list_pictures,
    picture_size,
    safe,
    subfolder,
)

MAP = "rgb_to_thermal_vid_map.json"
LISTS = {"train": "align_train.txt", "val": "align_validation.txt"}
V1 = {"train": (8_862, 499), "val": (1_366, 109), "test": (4_224, 29)}
"""Split -> thermal frames, and how many of them have no colour file."""
V1_FOLDERS = {"train": "train", "val": "val", "test": "video"}
V2 = 3_749
ALIGNED = {"train": 4_129, "val": 1_013}
V2_VIEW = math.tan(math.radians(45 / 2)) / math.tan(math.radians(52.8 / 2))
"""Share of the colour frame's width that the thermal camera sees: 45 and 52.8 degrees (read-me of
ADAS v2)."""
UNREGISTERED = (
    "{title}: the two cameras are not registered; colour is cut to about the thermal frame's view "
    "(aligned: false in the index). Suitable for unpaired methods; for paired ones use "
    "FLIR-aligned, or try --check-alignment"
)


def read_flir(raw: Path, *, need: Need = "whole") -> list[RawPair]:
    """The pairs of the one of the three sets that ``raw``, or a folder in it, is."""
    for root in (raw, *sorted(p for p in raw.iterdir() if p.is_dir())):
        if (root / "video_thermal_test").is_dir():
            return _read_v2(root, need)
        if any(_list_file(root, name) for name in LISTS.values()):
            return _read_aligned(root, need)
        if any((root / folder / "thermal_8_bit").is_dir() for folder in V1_FOLDERS.values()):
            return _read_v1(root, need)
    raise PrepareError(
        f"FLIR: expected ADAS v1.3 (train/thermal_8_bit/), ADAS v2 ({MAP} and "
        f"video_thermal_test/) or FLIR-aligned ({LISTS['train']} and JPEGImages/) in {raw}; found "
        f"{contents(raw)}"
    )


def _read_v1(root: Path, need: Need) -> list[RawPair]:
    """``{train,val,video}/{thermal_8_bit,RGB}``; video (one drive of 144 s) is the split "test"."""
    pairs, found = [], {}
    for split, folder in V1_FOLDERS.items():
        if need != "whole" and not (root / folder).is_dir():
            continue
        thermal = list_pictures(root / folder / "thermal_8_bit")
        visible = list_pictures(root / folder / "RGB")
        both = sorted(thermal.keys() & visible.keys())
        found |= {f"{folder} thermal frames": len(thermal), f"{folder} pairs": len(both)}
        for stem in both:
            name, sequence = safe(folder, stem), "video" if split == "test" else None
            # read-me of v1: the colour lens is set to the thermal camera's view
            pairs.append(_loose(name, thermal[stem], visible[stem], split, sequence, 1.0, "none"))
    expected = {}
    for split, (frames, alone) in V1.items():
        expected |= {
            f"{V1_FOLDERS[split]} thermal frames": frames,
            f"{V1_FOLDERS[split]} pairs": frames - alone,
        }
    check_counts("FLIR ADAS v1.3", root, found, expected, need)
    alone = ", ".join(
        f"{found[f'{f} thermal frames'] - found[f'{f} pairs']} of {f}"
        for f in V1_FOLDERS.values()
        if f"{f} pairs" in found
    )
    warnings.warn(
        f"FLIR ADAS v1.3: thermal frames without a colour file are left out: {alone}", stacklevel=2
    )
    warnings.warn(UNREGISTERED.format(title="FLIR ADAS v1.3"), stacklevel=2)
    return pairs


def _read_v2(root: Path, need: Need) -> list[RawPair]:
    """The 3,749 frames of the video test that FLIR pairs by time; all for testing. The still
    pictures of v2 have no partners."""
    path = next((p for p in (root / MAP, root.parent / MAP) if p.is_file()), None)
    if path is None:
        raise PrepareError(
            f"FLIR ADAS v2: {root} has no {MAP}, which says which frames belong together"
        )
    try:
        partners = json.loads(path.read_text(encoding="utf-8"))
        partners = {str(colour): str(thermal) for colour, thermal in partners.items()}
    except (ValueError, AttributeError) as error:
        raise PrepareError(
            f"{path}: expected a JSON object of colour name: thermal name; {error}"
        ) from error
    sides = [root / f"video_{kind}_test" for kind in ("thermal", "rgb")]
    thermal, visible = (
        list_pictures(subfolder(side, "data") or side if side.is_dir() else side) for side in sides
    )
    lighting = _hours(sides[0] / "coco.json")
    pairs = []
    for colour_name, thermal_name in sorted(partners.items(), key=lambda item: item[1]):
        colour_stem, stem = Path(colour_name).stem, Path(thermal_name).stem
        if stem in thermal and colour_stem in visible:
            video = re.match(r"video-([^-]+)-", stem)
            files, sequence = (thermal[stem], visible[colour_stem]), video and video[1]
            hour = lighting.get(stem, "none")
            pairs.append(_loose(safe(stem), *files, "test", sequence, V2_VIEW, hour))
    found = {"names in the map": len(partners), "pairs": len(pairs)}
    check_counts(
        "FLIR ADAS v2 (video test)", root, found, {"names in the map": V2, "pairs": V2}, need
    )
    warnings.warn(UNREGISTERED.format(title="FLIR ADAS v2"), stacklevel=2)
    return pairs


def _read_aligned(root: Path, need: Need) -> list[RawPair]:
    """FLIR-aligned (Zhang et al., ICIP 2020): ``JPEGImages/FLIR_XXXXX_{PreviewData,RGB}``, split by
    two lists of names."""
    files = list_pictures(root / "JPEGImages")
    pairs, found = [], {}
    for split, name in LISTS.items():
        path = _list_file(root, name)
        if path is None:
            found[f"{split} pairs"] = 0
            continue
        lines = [
            line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
        ]
        stems = [
            re.sub(r"_(PreviewData|RGB)$", "", re.sub(r"\.jpe?g$", "", Path(line).name))
            for line in lines
        ]
        whole = [
            stem for stem in stems if f"{stem}_PreviewData" in files and f"{stem}_RGB" in files
        ]
        found[f"{split} pairs"] = len(whole)
        for stem in whole:
            thermal, visible = files[f"{stem}_PreviewData"], files[f"{stem}_RGB"]
            pairs.append(
                RawPair(
                    safe(stem), thermal, visible, split, "flir-aligned", meta={"lighting": "none"}
                )
            )
    check_counts(
        "FLIR-aligned", root, found, {f"{split} pairs": n for split, n in ALIGNED.items()}, need
    )
    return pairs


def centre_box(size: tuple[int, int], part: float, aspect: tuple[int, int]) -> Box:
    """The box in the middle of a (width, height) picture: ``part`` of its width, in the proportions
    ``aspect``; if that is too high, the largest box of these proportions."""
    width = min(size[0] * part, size[1] * aspect[0] / aspect[1])
    wide, high = round(width), round(width * aspect[1] / aspect[0])
    left, top = (size[0] - wide) // 2, (size[1] - high) // 2
    return left, top, left + wide, top + high


def _loose(name, thermal, visible, split, sequence, part, lighting) -> RawPair:
    """A pair that is not registered: colour is cut to ``part`` of its width."""
    meta = {"lighting": lighting, "aligned": False}
    sequence = f"flir/{sequence}" if sequence else None
    size = picture_size(thermal)
    box = centre_box(picture_size(visible), part, size)
    return RawPair(
        name,
        thermal,
        visible,
        split,
        "flir",
        sequence,
        visible_box=box,
        visible_size=size,
        meta=meta,
    )


def _list_file(root: Path, name: str) -> Path | None:
    return next((p for p in (root / name, root / "ImageSets" / "Main" / name) if p.is_file()), None)


def _hours(coco: Path) -> dict[str, str]:
    """Stem -> "day" or "night" where FLIR's annotations say so."""
    if not coco.is_file():
        return {}
    try:
        images = json.loads(coco.read_text(encoding="utf-8"))["images"]
        hours = {
            Path(i["file_name"]).stem: str((i.get("extra_info") or {}).get("hours", "")).lower()
            for i in images
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PrepareError(
            f"{coco}: expected COCO annotations with images; {error!r}. Unpack it again"
        ) from error
    return {stem: hour for stem, hour in hours.items() if hour in ("day", "night")}
