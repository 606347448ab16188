"""Which pairs of a data set without splits are held out for validation."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

from cmmfnet.data.prepare.raw import RawPair
from cmmfnet.files.pictures import natural_key


def hold_out(pairs: list[RawPair]) -> list[RawPair]:
    """The pairs with splits "train" and "val"; one single pair is for training.

    Neighbouring frames of a video are near duplicates, so whole sequences are held out: from the
    last in natural order backwards, as long as they make no more than 15 % of the frames, until
    they make 10 %. Where not one is small enough (one long drive), the last tenth of the frames is
    held out, and before it a fiftieth, 30 frames at most, is left out, with a warning. Held-out
    frames of a sequence that is cut so get the sequence NAME_val.
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
            f"{gap} before them are left out, "
            "since they may look the same; name the splits in folders or in a list to choose them "
            "yourself",
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
