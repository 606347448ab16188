"""Data sets of a few pictures that tests of several packages share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cmmfnet.data.batches import Batch


def data_set(
    root: Path, entries: list[dict], size: tuple[int, int] = (24, 32), colour: str = "visible"
) -> Path:
    """A data set of noise with the given index; thermal for pairs only, labels of class 1 and 2."""
    rng = np.random.default_rng(0)
    for kind in ("thermal", colour, "label"):
        (root / kind).mkdir(parents=True, exist_ok=True)
    for entry in entries:
        name = f"{entry['name']}.png"
        if colour == "visible":
            Image.fromarray(rng.integers(7000, 8000, size, dtype=np.uint16)).save(
                root / "thermal" / name
            )
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / colour / name)
        Image.fromarray(rng.integers(1, 3, size, dtype=np.uint8)).save(root / "label" / name)
    (root / "index.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return root


def same(x: Batch, y: Batch) -> bool:
    tensors = all(
        torch.equal(getattr(x, k), getattr(y, k)) for k in ("thermal", "visible", "label", "tagged")
    )
    lists = all(getattr(x, k) == getattr(y, k) for k in ("tags", "captions", "names", "positions"))
    return tensors and lists


BASELINES = [
    "grey replicate", "mean colour", "mean picture", "mean colour of each level",
    "nearest training picture",
]  # fmt: skip


def write_data(root, entries, size=(64, 80)):
    """Pairs of blobs: the colour depends on the thermal value and on the scene; in a sequence a
    square moves."""
    for kind in ("thermal", "visible"):
        (root / kind).mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[: size[0], : size[1]]
    scenes: dict[str, int] = {}
    for number, entry in enumerate(entries):
        i = scenes.setdefault(entry.get("sequence") or entry["name"], number)
        thermal = np.clip(128 + 90 * np.sin(x / 9 + i) * np.cos(y / 11 + 2 * i), 0, 255)
        thermal[20:30, 4 * number : 4 * number + 10] = 250
        tint = np.array([[1.0, 0.6, 0.3], [0.4, 0.9, 0.5], [0.5, 0.6, 1.0]])[i % 3]
        Image.fromarray(thermal.astype(np.uint8)).save(root / "thermal" / f"{entry['name']}.png")
        Image.fromarray((thermal[..., None] * tint).astype(np.uint8)).save(
            root / "visible" / f"{entry['name']}.png"
        )
    (root / "index.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return root
