"""Predictors: networks (known name, file, run folder, exported graph) and folders of predictions,
behind one call."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cmmfnet.data.pairs import Pairs
from cmmfnet.evaluation.protocol import LKAT, SIZE, cut, is_whole
from cmmfnet.files.errors import UserError
from cmmfnet.files.pictures import PICTURES

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cmmfnet.colorizer.base import FrameColorizer
    from cmmfnet.methods.traits import Traits

TEXTS = ("default", "none", "caption", "tags")
RUN_MODEL, BEST_MODEL = "model.safetensors", "best.safetensors"


@dataclass(frozen=True)
class Predictor:
    """A method to score.

    Attributes:
        name: its label.
        colour: ``colour(thermals, metas)`` takes lists of (h,w) float32 in [-1,1] and of index
            entries and returns a list of (h,w,3) uint8.
        record: its description for JSON: what, kind ("model", "run", "graph", "predictions",
            "baseline"), sha256, text, training.
        batch: number of frames per call.
    """

    name: str
    colour: Callable[[Sequence[np.ndarray], Sequence[dict]], list[np.ndarray]]
    record: dict
    batch: int = 1


def to_picture(output: torch.Tensor) -> np.ndarray:
    """(3,H,W) float in [-1,1] -> (H,W,3) uint8, rounded."""
    return ((output.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()


def truncated(output: np.ndarray) -> np.ndarray:
    """(3,H,W) float in [-1,1] -> (H,W,3) uint8 with the decimals cut off, as LKAT-GAN's code writes
    pictures: half a level darker than rounded in the mean.

    Raises ``FloatingPointError`` for colours that are NaN or infinite.
    """
    if not np.isfinite(output).all():
        raise FloatingPointError("the model gave NaN or infinite colours")
    return ((output.clip(-1, 1) + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0)


def baseline(name: str, colour: Callable[[np.ndarray, dict], np.ndarray]) -> Predictor:
    return Predictor(
        name,
        lambda thermals, metas: [colour(t, m) for t, m in zip(thermals, metas, strict=True)],
        {"kind": "baseline"},
    )


def open_predictor(
    what: str,
    pairs: Pairs,
    geometry: str,
    *,
    text: str = "default",
    device: str = "auto",
    preset: str | None = None,
) -> Predictor:
    """The predictor for a known model, a .safetensors file, an .onnx file, hf:..., a run folder, or
    a folder of predictions. ``preset``: as in :class:`cmmfnet.evaluation.setting.Setting`.

    Raises:
        UserError: ``what`` is none of these, or does not fit ``pairs``.
    """
    from cmmfnet.weights.files import describe, load_model
    from cmmfnet.weights.known import KNOWN, parts

    if text not in TEXTS:
        raise UserError(f"text is {text!r}; expected one of {', '.join(TEXTS)}")
    path, kind = Path(what), "model"
    if path.suffix.lower() == ".onnx":
        return graph_predictor(path, pairs, geometry, text=text, device=device, preset=preset)
    if what not in KNOWN and not what.startswith("hf:") and path.is_dir():
        if not (path / RUN_MODEL).is_file():
            return folder_predictor(path, pairs, geometry)
        path, kind = path / (BEST_MODEL if preset == LKAT else RUN_MODEL), "run"
        if not path.is_file():
            raise UserError(
                f"{what} has no {BEST_MODEL}, since it was trained without validation; preset lkat "
                f"scores the best epoch, give {what}/{RUN_MODEL} to score the last"
            )
    source = str(path) if kind == "run" else what
    source, *seconds = parts(source)
    loaded, described = load_model(source), describe(source)
    second = load_model(seconds[0]) if seconds else None
    name = Path(what).resolve().name if kind == "run" else loaded.name
    if name == Path(RUN_MODEL).stem and path.name == RUN_MODEL:  # every run calls its model that
        name = path.resolve().parent.name
    record = {
        "what": what, "kind": kind, "method": loaded.config["method"],
        "sha256": described["sha256"],
        "parameters": described["parameters"], "training": loaded.training,
    }  # fmt: skip
    if second is not None:
        name, more = f"{name}+{second.name}", describe(seconds[0])
        record["parameters"] += more["parameters"]
        record["second"] = {"sha256": more["sha256"], "training": second.training}
    return network_predictor(
        name, loaded.network, pairs, geometry, text=text, device=device, record=record,
        preset=preset, second=second and second.network,
    )  # fmt: skip


# --- networks


def takes(traits: Traits, side: int) -> bool:
    """Whether a network colours squares of this side in pixels as they are."""
    return side == traits.fixed_size if traits.fixed_size else side % traits.multiple_of == 0


def default_text(traits: Traits) -> str:
    """The text of a frame without a text: "none", "predicted" or "default prompt"."""
    return "default prompt" if traits.default_prompt else traits.default_text


def network_predictor(
    name: str,
    network: nn.Module,
    pairs: Pairs,
    geometry: str,
    *,
    text: str = "default",
    device: str = "auto",
    record: dict | None = None,
    preset: str | None = None,
    second: nn.Module | None = None,
) -> Predictor:
    """The predictor for a network, and a second one as for ``Colorizer``, in float32."""
    import torch

    from cmmfnet.colorizer.torch import Colorizer

    colorizer = Colorizer(network, device=device, dtype=torch.float32, name=name, second=second)
    record = record or {"kind": "model"}
    return _colorizer_predictor(name, colorizer, pairs, geometry, text, record, preset)


def graph_predictor(
    path: Path,
    pairs: Pairs,
    geometry: str,
    *,
    text: str = "default",
    device: str = "auto",
    preset: str | None = None,
) -> Predictor:
    """The predictor for a file of ``cmmfnet export``, by ONNX Runtime.

    Raises:
        UserError: no such file or device, no graph of ours, or one that takes whole sentences.
    """
    from cmmfnet.colorizer.onnx import OnnxColorizer

    colorizer = OnnxColorizer(path, device=device)
    if text in ("caption", "tags") and colorizer.traits.text_source == "clip-sentence":
        raise UserError(
            f"{path} takes whole sentences, whose tokens PyTorch makes; use --text default or "
            "none, or the model it was exported from"
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    known = {
        key: colorizer.metadata[key]
        for key in ("model", "method", "precision")
        if key in colorizer.metadata
    }
    record = {"what": str(path), "kind": "graph", "sha256": digest} | known
    return _colorizer_predictor(path.stem, colorizer, pairs, geometry, text, record, preset)


def _colorizer_predictor(
    name: str,
    colorizer: FrameColorizer,
    pairs: Pairs,
    geometry: str,
    text: str,
    record: dict,
    preset: str | None,
) -> Predictor:
    """The predictor for a colorizer.

    256x256 cuts go through the network without resizing. Whole frames, and cuts for a network of
    another size, get the colorizer's sizes and padding. On CUDA eight frames go together; a network
    must give the same answer for a frame alone and in a batch.
    """
    from cmmfnet.colorizer.base import Frame

    traits = colorizer.traits
    used = default_text(traits) if text == "default" else text
    texts = _texts(pairs, text) if traits.takes_text and text in ("caption", "tags") else {}
    without = "" if text == "none" else None  # "": no text; None: the model's default
    if preset == LKAT and not takes(traits, SIZE):
        raise UserError(f"preset lkat needs a network that takes {SIZE}x{SIZE}; {name} does not")
    record = record | {"text": used if traits.takes_text else "none (takes none)"}

    def colour(thermals: Sequence[np.ndarray], metas: Sequence[dict]) -> list[np.ndarray]:
        words = [texts.get(meta["name"], without) for meta in metas]
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="the model does not know and leaves out"
            )  # docs/evaluation.md
            try:
                if is_whole(geometry) or not takes(traits, SIZE):
                    return colorizer(list(thermals), span=(-1, 1), text=words, batch_size=batch)
                frames = [Frame(thermal, thermal) for thermal in thermals]
                colours, _ = colorizer.run(frames, words)
                if preset == LKAT:
                    return [truncated(colorizer.runtime.array(each)) for each in colours]
                return [colorizer.finish(*each) for each in zip(colours, frames, strict=True)]
            except FloatingPointError as error:
                raise UserError(f"{metas[0]['name']} or a frame beside it: {error}") from error

    batch = colorizer.default_batch
    return Predictor(name, colour, record, batch)


def _texts(pairs: Pairs, text: str) -> dict[str, str]:
    """Name -> caption, or tags joined by commas. Raises :class:`UserError` if no entry has one."""
    texts = {}
    for entry in pairs.entries:
        value = entry.get(text)
        if value:
            texts[entry["name"]] = value if isinstance(value, str) else ", ".join(value)
    if not texts:
        raise UserError(f"no entry of {pairs.root}/index.jsonl has {text!r}; use --text none")
    if missing := len(pairs) - len(texts):
        warnings.warn(
            f"{missing} of {len(pairs)} entries have no {text!r} and get the model's default text",
            stacklevel=2,
        )
    return texts


# --- folders of predictions


def folder_predictor(folder: Path, pairs: Pairs, geometry: str) -> Predictor:
    """The predictor for a folder with one picture for every frame, named like it (NAME.png,
    NAME.jpg, ...).

    A picture of the size of the true picture is cut like it; one of the size that is scored is used
    unchanged.

    Raises:
        UserError: missing, surplus or double names, with their number; when a picture is read,
            another size.
    """
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in PICTURES or path.name.startswith("."):
            continue
        if path.stem in files:
            raise UserError(
                f"{folder} has two pictures of {path.stem!r}: {files[path.stem].name} and "
                f"{path.name}"
            )
        files[path.stem] = path
    if not files:
        raise UserError(
            f"{folder} is neither a run (it has no {RUN_MODEL}) nor a folder of predictions (it "
            "has no picture); give a model, a run, or a folder with NAME.png for every frame"
        )
    names = [entry["name"] for entry in pairs.entries]
    # of all splits: a folder may have the pictures of others, too
    known = {entry["name"] for entry in Pairs(pairs.root).entries}
    problems = []
    for what, found in (
        ("missing", [n for n in names if n not in files]),
        ("not in the index", sorted(files.keys() - known)),
    ):
        if found:
            problems.append(
                f"{len(found)} {what} ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})"
            )
    if problems:
        raise UserError(
            f"{folder}: its {len(files)} pictures are not those of the {len(names)} frames: "
            f"{'; '.join(problems)}. Name each like its frame in {pairs.root}/index.jsonl: "
            f"{names[0]}.png"
        )
    digest = hashlib.sha256()
    for name in sorted(names):
        with files[name].open("rb") as file:
            digest.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())

    place = {name: i for i, name in enumerate(names)}

    def colour(thermals: Sequence[np.ndarray], metas: Sequence[dict]) -> list[np.ndarray]:
        return [
            _read(
                files[name],
                name,
                thermal.shape,
                lambda i=place[name]: pairs.pictures(i, ("visible",))["visible"].shape[:2],
                geometry,
            )
            for thermal, name in zip(thermals, (meta["name"] for meta in metas), strict=True)
        ]

    record = {
        "what": str(folder),
        "kind": "predictions",
        "sha256": digest.hexdigest(),
        "text": "not known",
    }
    return Predictor(folder.resolve().name, colour, record)


def _read(
    path: Path, name: str, scored: tuple[int, int], full: Callable[[], tuple], geometry: str
) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except OSError as error:
        raise UserError(f"{path} is no picture that can be read: {error}") from error
    if pixels.shape[:2] == scored:
        return pixels
    if pixels.shape[:2] == full():
        return cut(pixels, geometry, name)
    found, whole, part = (
        f"{width}x{height}" for height, width in (pixels.shape[:2], full(), scored)
    )
    raise UserError(
        f"{path} is {found}; expected {whole} like the true picture, or {part} as it is scored by "
        f"geometry {geometry}"
    )
