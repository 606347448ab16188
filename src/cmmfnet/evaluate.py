"""Scores of a network on pairs under one protocol: short side 256, centre crop 256x256, metrics on uint8.

PSNR and SSIM alone reward grey blur; read them with LPIPS, with the colourfulness of output and truth, and with the
trivial baselines that :func:`trivial_baselines` scores the same way.
"""

from __future__ import annotations

import importlib.util
import json as jsonlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cmmfnet import metrics
from cmmfnet.data.pairs import Pairs, PairsError
from cmmfnet.thermal import normalise

if TYPE_CHECKING:
    import torch

Colour = Callable[[np.ndarray, dict], np.ndarray]
"""(thermal (S,S) float32 in [-1,1], index entry) -> (S,S,3) uint8."""

PROTOCOL = (
    "short side 256 (bicubic, antialiased), centre crop 256x256, PSNR and SSIM (skimage-u7) on uint8, LPIPS v0.1 Alex"
)


def centre_crop(picture: np.ndarray, size: int) -> np.ndarray:
    """(H,W) or (H,W,3) uint8 -> short side ``size``, central ``size`` x ``size``."""
    image = Image.fromarray(picture)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def centre_crops(
    pairs: Pairs, size: int = 256, limit: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray, dict]]:
    """thermal (size,size) float32 in [-1,1] (stretched after the crop), truth (size,size,3) uint8, the index entry."""
    for i in range(min(len(pairs), limit or len(pairs))):
        pair = pairs[i]
        yield normalise(centre_crop(pair.thermal, size)), centre_crop(pair.visible, size), pair.meta


class Lpips:
    """LPIPS v0.1 with AlexNet on uint8 pictures (H,W,3); needs the pre-trained files (see perceptual.py)."""

    def __init__(self, folder: str | Path | None = None):
        from cmmfnet.perceptual import Perceptual

        self.network = Perceptual("alex", "lpips", folder)

    @staticmethod
    def at_hand(folder: str | Path | None = None) -> bool:
        """Whether the learned heads are in ``folder`` (default: CMMFNET_PRETRAINED), which nothing downloads."""
        from cmmfnet.perceptual import HEADS

        folder = folder or os.environ.get("CMMFNET_PRETRAINED")
        return folder is not None and (Path(folder) / HEADS["alex"][0]).is_file()

    def __call__(self, x: np.ndarray, y: np.ndarray) -> float:
        import torch

        def tensor(a: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(a.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]

        with torch.inference_mode():
            return float(self.network(tensor(x), tensor(y)))


def score_all(
    methods: dict[str, Colour], pairs: Pairs, pretrained: str | Path | None = None
) -> dict[str, list[dict[str, float | str]]]:
    """Method -> one row a picture: name, source, lighting, psnr, ssim, colourfulness, that of the truth, and lpips where
    its files are at hand. Every picture is decoded once; methods are asked for pictures of 256x256.
    """
    lpips = Lpips(pretrained) if Lpips.at_hand(pretrained) else None
    rows: dict[str, list[dict]] = {name: [] for name in methods}
    for thermal, truth, meta in centre_crops(pairs):
        for name, colour in methods.items():
            out = colour(thermal, meta)
            row = {
                "name": meta["name"], "source": meta.get("source", ""), "lighting": meta.get("lighting", ""),
                "psnr": metrics.psnr(out, truth), "ssim": metrics.ssim(out, truth),
                "colourfulness": metrics.colourfulness(out), "truth": metrics.colourfulness(truth),
            }  # fmt: skip
            if lpips is not None:
                row["lpips"] = lpips(out, truth)
            rows[name].append(row)
    return rows


def score(colour: Colour, pairs: Pairs, pretrained: str | Path | None = None) -> list[dict[str, float | str]]:
    """The rows of :func:`score_all` for one method."""
    return score_all({"": colour}, pairs, pretrained)[""]


def summary(rows: list[dict]) -> dict[str, float]:
    """Means over pictures; ``colour_share`` = mean colourfulness of the outputs over that of the truth."""
    result = {k: float(np.mean([r[k] for r in rows])) for k in ("psnr", "ssim", "lpips") if k in rows[0]}
    result["colour_share"] = float(np.mean([r["colourfulness"] for r in rows]) / np.mean([r["truth"] for r in rows]))
    return result


def to_picture(output: torch.Tensor) -> np.ndarray:
    """(3,H,W) float in [-1,1] -> (H,W,3) uint8, rounded."""
    return ((output.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()


def without_text(network: torch.nn.Module) -> Colour:
    """What ``network`` (evaluation mode, on its device) makes of a frame alone."""
    import torch

    device = next(network.parameters()).device

    def colour(thermal: np.ndarray, _: dict) -> np.ndarray:
        with torch.inference_mode():
            return to_picture(network(torch.from_numpy(thermal)[None, None].to(device))[0])

    return colour


def score_network(network: torch.nn.Module, pairs: Pairs, pretrained: str | Path | None = None) -> dict[str, float]:
    """Means over ``pairs`` for a network without text."""
    return summary(score(without_text(network), pairs, pretrained))


def trivial_baselines(train: Pairs, size: int = 256) -> dict[str, Colour]:
    """What needs no learning: grey replicate, mean colour, mean picture, mean colour of each of 64 thermal levels."""
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


def evaluate(
    model: str,
    *,
    data: Path,
    split: str = "val",
    lighting: str | None = None,
    sources: str | None = None,
    pretrained: Path | None = None,
    device: str = "auto",
    json: Path | None = None,
) -> dict[str, dict[str, dict[str, float]]]:
    """Score a model without text, and what needs no learning, on pairs: the means by source and in all.

    The protocol is printed with the numbers: short side 256, centre crop 256x256, metrics on 8-bit pictures. The
    trivial baselines come from the split "train" of the same folder, lighting and sources.

    Args:
        model: a name of `cmmfnet models`, a .safetensors file, or hf:OWNER/REPO@COMMIT
        data: a folder of pairs (docs/data.md)
        split: train, val or test, as in its index
        lighting: only these, with commas between: day,dusk
        sources: only these, with commas between
        pretrained: folder with the files for LPIPS (default: environment variable CMMFNET_PRETRAINED)
        device: auto, cpu, cuda, cuda:1 or mps
        json: also write the means and every picture's scores to this file

    Returns:
        Source ("all" for all of them) -> model or baseline -> mean scores, and ``pairs``, their number.

    Raises:
        PairsError, ModelError, PretrainedError, DeviceError: nothing was scored.
    """
    if importlib.util.find_spec("skimage") is None:
        raise ImportError("SSIM needs scikit-image: pip install 'cmmfnet[train]'")
    from cmmfnet.colorizer import pick_device
    from cmmfnet.weights import load_model

    chosen = {"lighting": _names(lighting), "sources": _names(sources)}
    pairs = Pairs(data, split, **chosen).require("thermal")
    loaded = load_model(model)
    methods = {loaded.name: without_text(loaded.network.to(pick_device(device)))}
    try:
        methods |= trivial_baselines(Pairs(data, "train", **chosen).require("thermal"))
    except PairsError as error:
        warnings.warn(f"without trivial baselines, which come from the split train: {error}", stacklevel=2)
    rows = score_all(methods, pairs, pretrained)

    found = {row["source"] for row in rows[loaded.name]}
    scores = {
        source: {
            name: {"pairs": len(part), **summary(part)}
            for name, each in rows.items()
            if (part := [row for row in each if source in ("all", row["source"])])
        }
        for source in (*(sorted(found) if len(found) > 1 else ()), "all")
    }
    print(f"{data}, split {split}: {PROTOCOL}")
    if not Lpips.at_hand(pretrained):
        print("no LPIPS: its files are not at hand (--pretrained)")
    print(_table(scores))
    if json is not None:
        result = {"model": model, "data": str(data), "split": split, **chosen, "protocol": PROTOCOL}
        Path(json).write_text(jsonlib.dumps(result | {"scores": scores, "pictures": rows}, indent=1))
    return scores


def _names(text: str | None) -> tuple[str, ...] | None:
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text is not None else None


def _table(scores: dict[str, dict[str, dict[str, float]]]) -> str:
    """Fixed columns; "colour" is the mean colourfulness over that of the truth."""
    columns = {"psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS", "colour_share": "colour"}
    lines = [f"{'source':16}{'pairs':>6}  {'':28}" + "".join(f"{title:>8}" for title in columns.values())]
    for source, methods in scores.items():
        for name, means in methods.items():
            numbers = "".join(
                f"{means[key]:8.{2 if key == 'psnr' else 3}f}" if key in means else f"{'-':>8}" for key in columns
            )
            lines.append(f"{source:16}{means['pairs']:6}  {name:28}{numbers}")
    return "\n".join(lines)
