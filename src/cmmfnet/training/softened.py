"""Pairs whose brightness of large areas is half a second model's, to train on.

    cmmfnet soften data/softened --pairs data/pairs

A thermal frame does not show how bright a sky, a wall or a road is. A large network learns it by
heart for each training scene, and guesses with too much confidence on others. The mean of two
networks' guesses is nearer to the truth than either (docs/training.md), so a network is trained
towards it: on frames by night, whose colours by day nobody knows, the colours are a teacher's and
half of their brightness is the second model's; on real pairs half of the photo's brightness is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cmmfnet.data.pairs import Pairs
from cmmfnet.data.write import PairsWriter

BRIGHTNESS, CHROMA = 0.5, 0.3
"""The second model's parts of the brightness and of the colour differences of large areas."""
PHOTO, MADE = 32, 96
"""The short side of a frame in widths (sigma) of the blur that leaves its large areas: of a photo,
and of a teacher's colours."""


def write_softened(
    out: str | Path,
    *,
    pairs: str,
    teacher: str = "cmmfnet",
    second: str = "cmmfnet-small",
    split: str = "train",
    device: str = "auto",
) -> Path:
    """Write softened pairs of a folder of real pairs.

    Args:
        out: a new folder for thermal/, visible/ and index.jsonl. Pairs by day and dusk keep their
            entries. A night frame NAME becomes NAME_by_day, by day, without words, source "taught"
        pairs: a folder of pairs (docs/data.md), thermal and colour at hand
        teacher: the model whose colours the night frames get: a known name, a .safetensors file or
            hf:OWNER/REPO@COMMIT
        second: the model whose brightness is mixed in, best one of another architecture
        split: entries of this split are written; the others are left out
        device: auto, cpu, cuda, cuda:1 or mps

    Returns: the index. Raises :class:`PairsError`, ``ModelError``, ``DeviceError``, and
        FileExistsError for a used folder.
    """
    from cmmfnet.colorizer.torch import Colorizer

    writer = PairsWriter(Path(out)).refuse_finished()
    chosen = Pairs(pairs, split).require("thermal")
    first, other = (Colorizer.from_pretrained(name, device=device) for name in (teacher, second))
    rows = []
    for i, entry in enumerate(chosen.entries):
        pair = chosen[i]
        if entry.get("lighting") == "night":
            colours, size = first(pair.thermal), MADE
            entry = {
                "name": f"{entry['name']}_by_day", "split": split, "source": "taught",
                "sequence": entry.get("sequence"), "lighting": "day",
            }  # fmt: skip
        else:
            colours, size = pair.visible, PHOTO
        soft = softened(colours, other(pair.thermal), size)
        writer.write(entry["name"], thermal=pair.thermal, visible=soft)
        rows.append(entry)
    index = writer.finish(rows)
    print(f"{len(rows)} pairs in {writer.root}")
    return index


def softened(colours: np.ndarray, guess: np.ndarray, size: int) -> np.ndarray:
    """``colours`` (H,W,3) uint8 with parts of the large areas of ``guess`` (H,W,3) uint8: half of
    the brightness, .3 of the colour differences.

    Large areas are what a Gaussian blur of sigma = short side / ``size`` leaves.
    """
    from scipy.ndimage import gaussian_filter

    sigma = min(colours.shape[:2]) / size
    difference = guess.astype(np.float32) - colours
    difference = gaussian_filter(difference, (sigma, sigma, 0))
    brightness = (difference @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    mixed = colours + BRIGHTNESS * brightness + CHROMA * (difference - brightness)
    return mixed.round().clip(0, 255).astype(np.uint8)
