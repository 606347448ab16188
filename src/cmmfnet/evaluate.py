"""Scores of a network on pairs under one protocol: short side 256, centre crop 256x256, metrics on uint8.

PSNR and SSIM alone reward grey blur; read them with LPIPS, with the colourfulness of output and truth, and with the trivial
baselines that :func:`trivial_baselines` scores the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cmmfnet import metrics
from cmmfnet.data.pairs import Pairs
from cmmfnet.perceptual import Perceptual, PretrainedError
from cmmfnet.thermal import normalise

PROTOCOL = "short side 256 (bicubic, antialiased), centre crop 256x256, PSNR and SSIM (skimage-u7) on uint8, LPIPS v0.1 Alex"


def centre_crop(picture: np.ndarray, size: int) -> np.ndarray:
    """(H,W) or (H,W,3) uint8 -> short side ``size``, central ``size`` x ``size``."""
    image = Image.fromarray(picture)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def centre_crops(pairs: Pairs, size: int = 256, limit: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray, dict]]:
    """thermal (size,size) float32 in [-1,1] (stretched after the crop), truth (size,size,3) uint8, the index entry."""
    for i in range(min(len(pairs), limit or len(pairs))):
        pair = pairs[i]
        yield normalise(centre_crop(pair.thermal, size)), centre_crop(pair.visible, size), pair.meta


class Lpips:
    """LPIPS v0.1 with AlexNet on uint8 pictures (H,W,3); needs the pre-trained files (see perceptual.py)."""

    def __init__(self, folder: str | Path | None = None):
        self.network = Perceptual("alex", "lpips", folder)

    def __call__(self, x: np.ndarray, y: np.ndarray) -> float:
        def tensor(a: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(a.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]

        with torch.inference_mode():
            return float(self.network(tensor(x), tensor(y)))


def score(
    colour: Callable[[np.ndarray, dict], np.ndarray], pairs: Pairs, pretrained: str | Path | None = None
) -> list[dict[str, float | str]]:
    """One row a picture: name, source, psnr, ssim, lpips (where its files are at hand), colourfulness, colourfulness of the truth.

    ``colour`` maps (thermal (256,256) float32 in [-1,1], index entry) to (256,256,3) uint8.
    """
    try:
        lpips = Lpips(pretrained)
    except PretrainedError:
        lpips = None
    rows = []
    for thermal, truth, meta in centre_crops(pairs):
        out = colour(thermal, meta)
        row = {
            "name": meta["name"], "source": meta.get("source", ""), "lighting": meta.get("lighting", ""),
            "psnr": metrics.psnr(out, truth), "ssim": metrics.ssim(out, truth),
            "colourfulness": metrics.colourfulness(out), "truth": metrics.colourfulness(truth),
        }  # fmt: skip
        if lpips is not None:
            row["lpips"] = lpips(out, truth)
        rows.append(row)
    return rows


def summary(rows: list[dict]) -> dict[str, float]:
    """Means over pictures; ``colour_share`` = mean colourfulness of the outputs over that of the truth."""
    result = {k: float(np.mean([r[k] for r in rows])) for k in ("psnr", "ssim", "lpips") if k in rows[0]}
    result["colour_share"] = float(np.mean([r["colourfulness"] for r in rows]) / np.mean([r["truth"] for r in rows]))
    return result


def to_picture(output: torch.Tensor) -> np.ndarray:
    """(3,H,W) float in [-1,1] -> (H,W,3) uint8, rounded."""
    return ((output.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()


def score_network(
    network: torch.nn.Module,
    pairs: Pairs,
    pretrained: str | Path | None = None,
    text: Callable[[dict], tuple[torch.Tensor, torch.Tensor] | None] | None = None,
) -> dict[str, float]:
    """Means for a network (evaluation mode) without text, or with ``text``: index entry -> (tokens (1,L,D), mask (1,L))."""
    device = next(network.parameters()).device

    def colour(thermal: np.ndarray, meta: dict) -> np.ndarray:
        given = text(meta) if text else None
        with torch.inference_mode():
            x = torch.from_numpy(thermal)[None, None].to(device)
            return to_picture(network(x, *given)[0] if given else network(x)[0])

    return summary(score(colour, pairs, pretrained))


def trivial_baselines(train: Pairs, size: int = 256) -> dict[str, Callable[[np.ndarray, dict], np.ndarray]]:
    """What needs no learning, for :func:`score`: grey replicate, mean colour, mean picture, mean colour of each thermal level."""
    total = np.zeros((size, size, 3))
    levels, counts = np.zeros((64, 3)), np.zeros(64)
    for thermal, truth, _ in centre_crops(train, size):
        total += truth
        bins = np.clip(((thermal + 1) * 32).astype(int), 0, 63).ravel()
        for c in range(3):
            levels[:, c] += np.bincount(bins, truth[..., c].ravel(), minlength=64)
        counts += np.bincount(bins, minlength=64)
    mean = total / len(train)
    table = levels / np.maximum(counts, 1)[:, None]

    def picture(x: np.ndarray) -> np.ndarray:
        return np.clip(np.round(x), 0, 255).astype(np.uint8)

    return {
        "grey replicate": lambda t, _: picture(np.repeat((t[..., None] + 1) * 127.5, 3, axis=2)),
        "mean colour": lambda t, _: picture(np.broadcast_to(mean.mean(axis=(0, 1)), (size, size, 3))),
        "mean picture": lambda t, _: picture(mean),
        "mean colour of each level": lambda t, _: picture(table[np.clip(((t + 1) * 32).astype(int), 0, 63)]),
    }
