"""Label maps of real pairs, found by a trained network in the thermal frame and drawn along the
photo's edges.

    cmmfnet found-labels data/found --pairs data/pairs --model cmmfnet

Real thermal/colour pairs have no label maps. A network whose label head was trained on simulated
frames finds most large things in them. With these label maps, training recolours real pairs as it
recolours labelled photos (data/made/recolour.py). Without them, words would matter on simulated
frames only; the network learns to tell these from real frames, and ignores words on real frames
(docs/text.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cmmfnet.colorizer.sizes import box_mean
from cmmfnet.data.pairs import Pairs
from cmmfnet.data.prepare.place import place_pair
from cmmfnet.data.prepare.raw import RawPair
from cmmfnet.data.store import Folder, PairsError
from cmmfnet.data.write import PairsWriter
from cmmfnet.text.labels import IGNORE

SIDE = 256  # pixels of the short side of the network's input and of the label maps


def write_found_labels(
    out: str | Path,
    *,
    pairs: str,
    model: str = "cmmfnet",
    split: str = "train",
    lighting: Sequence[str] = ("day", "dusk"),
    least: float = 0.5,
    device: str = "auto",
) -> Path:
    """Write a folder of pairs like ``pairs`` (its pictures are links) with label maps that a model
    finds in the thermal frames.

    Args:
        out: a new folder for thermal/, visible/, label/ and index.jsonl, whose entries say
            ``labels: predicted``
        pairs: a folder of pairs (docs/data.md), thermal and colour at hand
        model: a known name, a .safetensors file or hf:OWNER/REPO@COMMIT; a CMMF-Net with a label
            head
        split: entries of this split get label maps; the others are left out
        lighting: entries with these lightings get label maps; the others are copied without, since
            recolouring is for daylight
        least: probability below which a pixel has no label
        device: auto, cpu, cuda, cuda:1 or mps

    Returns: the index. Raises :class:`PairsError`, ``ModelError``, ``DeviceError``, and
        FileExistsError for a used folder.
    """
    from cmmfnet.colorizer.torch import pick_device
    from cmmfnet.weights.files import load_model

    writer = PairsWriter(Path(out)).refuse_finished()
    place = pick_device(device)
    network = load_model(model).network.to(place)
    if getattr(network, "label_head", None) is None:
        raise PairsError(
            f"model {model!r} has no label head; expected a CMMF-Net trained with labels, like "
            "cmmfnet"
        )
    chosen = Pairs(pairs, split).require("thermal")
    store = chosen.store
    if not isinstance(store, Folder):
        raise PairsError(
            f"{pairs} is packed in shards; expected a folder of pictures, which label maps can be "
            "put beside"
        )
    for kind in ("thermal", "visible", "label"):
        (writer.root / kind).mkdir(parents=True, exist_ok=True)
    rows = []
    for i, entry in enumerate(chosen.entries):
        if entry.get("lighting", "day") in lighting:
            pair = chosen[i]
            label = found(network, pair.thermal, pair.visible, least, place)
            writer.write(entry["name"], label=label)
            entry = entry | {"labels": "predicted"}
        files = (store.source(kind, entry["name"]) for kind in ("thermal", "visible"))
        _, wrong = place_pair(
            RawPair(entry["name"], *files, split, entry.get("source", "")), writer.root, copy=False
        )
        if wrong:
            raise PairsError(wrong)
        rows.append(entry)
    index = writer.finish(rows)
    print(f"{len(rows)} pairs in {writer.root}")
    return index


def found(network, thermal: np.ndarray, visible: np.ndarray, least: float, device) -> np.ndarray:
    """thermal (H,W) uint8 and visible (H,W,3) uint8 -> label (H,W) uint8, ids of
    text.labels.CLASSES or IGNORE.

    The mean of the network's shares for the frame and its mirror image, smoothed along the photo's
    edges (guided filter, He et al. 2013), so that a painted region ends at the edge of its thing.
    """
    import torch
    import torch.nn.functional as F

    scale = SIDE / min(thermal.shape)
    size = [max(SIDE, round(side * scale / 16) * 16) for side in thermal.shape]
    x = torch.from_numpy(thermal.astype(np.float32)).to(device)[None, None] / 127.5 - 1
    x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
    with torch.inference_mode():
        both = network(torch.cat([x, x.flip(-1)]), heads=True)[2].float().softmax(dim=1)
        share = (both[:1] + both[1:].flip(-1)) / 2
        share = F.interpolate(share, size, mode="bilinear", align_corners=False)[0].cpu().numpy()
    guide = Image.fromarray(visible).resize(size[::-1], Image.Resampling.BOX).convert("L")
    guide = np.asarray(guide, np.float32) / 255
    here = np.nonzero(share.max(axis=(1, 2)) > least / 2)[0]
    if not len(here):
        return np.full(thermal.shape, IGNORE, np.uint8)
    drawn = guided(share[here], guide, radius=6)
    label = np.where(drawn.max(axis=0) >= least, here[drawn.argmax(axis=0)], IGNORE).astype(
        np.uint8
    )
    return np.asarray(Image.fromarray(label).resize(thermal.shape[::-1], Image.Resampling.NEAREST))


def guided(planes: np.ndarray, guide: np.ndarray, radius: int, eps: float = 1e-3) -> np.ndarray:
    """``planes`` (..., H, W) float32, each as the locally linear function of ``guide`` (H, W) that
    is nearest to it."""
    level, middle = box_mean(guide, radius), box_mean(planes, radius)
    slope = (box_mean(guide * planes, radius) - level * middle) / (
        box_mean(guide * guide, radius) - level**2 + eps
    )
    return box_mean(slope, radius) * guide + box_mean(middle - slope * level, radius)
