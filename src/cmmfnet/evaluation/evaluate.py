"""``cmmfnet evaluate``: scores of a model, a run or a folder of predictions on pairs, under one
protocol.

PSNR and SSIM alone reward grey blur. Read them together with LPIPS, the colourfulness of output and
truth, and the trivial baselines, which are scored the same way (docs/evaluation.md).
"""

from __future__ import annotations

import importlib.util
import json as jsonlib
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cmmfnet.data.pairs import Pairs, PairsError
from cmmfnet.evaluation.baselines import Colour, trivial_baselines
from cmmfnet.evaluation.clips import clip_table, evaluate_clip
from cmmfnet.evaluation.learned import Lpips
from cmmfnet.evaluation.metrics import METRICS, SSIM_PRESETS, without_value
from cmmfnet.evaluation.predictors import Predictor, baseline, open_predictor, takes, to_picture
from cmmfnet.evaluation.protocol import (
    DEFAULT_GEOMETRY,
    LKAT,
    PICTURES,
    SIZE,
    centre_crop,
    check_geometry,
    frames_sha256,
    is_whole,
    make_protocol,
    sentence,
)
from cmmfnet.evaluation.scoring import (
    Rows,
    Scorer,
    cells,
    check_metrics,
    default_metrics,
    measure,
    summary,
)
from cmmfnet.evaluation.setting import Setting
from cmmfnet.files.atomic import atomic_write
from cmmfnet.files.errors import UserError
from cmmfnet.thermal.stretch import normalise

if TYPE_CHECKING:
    import torch

__all__ = [
    "Evaluation",
    "by_default",
    "centre_crops",
    "evaluate",
    "score",
    "score_all",
    "score_network",
    "summary",
    "to_picture",
]

FORMAT = "cmmfnet-evaluate-1"


# --- for training


def centre_crops(
    pairs: Pairs, size: int = SIZE, limit: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray, dict]]:
    """For each pair: thermal (size,size) float32 in [-1,1], stretched after the crop; truth
    (size,size,3) uint8; the index entry."""
    for i in range(min(len(pairs), limit or len(pairs))):
        pair = pairs[i]
        thermal = normalise(centre_crop(pair.thermal, size), find_fill=False)
        yield thermal, centre_crop(pair.visible, size), pair.meta


def score_all(
    methods: dict[str, Colour],
    pairs: Pairs,
    pretrained: str | Path | None = None,
    geometry: str = DEFAULT_GEOMETRY,
) -> dict[str, Rows]:
    """Method -> one row per picture, cut by ``geometry``. Decodes every picture once.

    A row has name, source, lighting, sequence, psnr, ssim, colourfulness, truth (the colourfulness
    of the truth), and lpips if its files are found.
    """
    scorer = Scorer(default_metrics(pretrained), pretrained=pretrained)
    predictors = [baseline(name, colour) for name, colour in methods.items()]
    return measure(predictors, pairs, scorer, geometry)[0]


def score(
    colour: Colour,
    pairs: Pairs,
    pretrained: str | Path | None = None,
    geometry: str = DEFAULT_GEOMETRY,
) -> Rows:
    """The rows of :func:`score_all` for one method."""
    return score_all({"": colour}, pairs, pretrained, geometry)[""]


def by_default(network: torch.nn.Module) -> Colour:
    """A function that colours square frames with ``network`` and its default text, mostly none.

    The network is in evaluation mode, in float32, on its device. A frame of a size that the network
    does not take is resized to one that it takes, and its picture is resized back, as
    ``cmmfnet colorize`` does.
    """
    import torch

    from cmmfnet.colorizer.torch import Colorizer

    device = next(network.parameters()).device
    colorizer = Colorizer(network, device=device, dtype=torch.float32)
    if not takes(colorizer.traits, SIZE) or colorizer.traits.default_text == "predicted":
        return lambda thermal, _: colorizer(thermal, span=(-1, 1))
    given = colorizer.text_input(None)
    text = [part[None] for part in given.tokens] if given is not None else []

    def colour(thermal: np.ndarray, _: dict) -> np.ndarray:
        with torch.inference_mode():
            return to_picture(network(torch.from_numpy(thermal)[None, None].to(device), *text)[0])

    return colour


def score_network(
    network: torch.nn.Module,
    pairs: Pairs,
    pretrained: str | Path | None = None,
    geometry: str = DEFAULT_GEOMETRY,
) -> dict[str, float]:
    """Means over ``pairs``, cut by ``geometry``, for a network with its default text."""
    return summary(score(by_default(network), pairs, pretrained, geometry))


# --- the command


def evaluate(
    what: str,
    setting: Setting,
    *,
    thermal: str | None = None,
    truth: str | None = None,
    save: Path | None = None,
    json: Path | None = None,
) -> dict:
    """Score a model, a run or a folder of predictions on pairs, beside trivial baselines: means by
    source and overall.

    The protocol is printed with the numbers. The trivial baselines come from the split "train" of
    the same folder, lighting and sources. Intervals are 95 % bootstrap intervals that resample
    whole sequences (docs/evaluation.md). With `--thermal`, the coloured video `what` is scored
    instead: how steady its colours are and, with `--truth`, how right.

    Args:
        what: a name of `cmmfnet models`, a .safetensors or .onnx file, hf:OWNER/REPO@COMMIT, a
            run's folder, or a folder of predictions with NAME.png for every frame; with --thermal a
            coloured video, or a folder of its frames
        setting: pairs, geometry and metrics
        thermal: the video, sequence or folder of frames that was coloured
        truth: the video or folder of frames of a colour camera beside it
        save: a new folder for the outputs as they are scored, NAME.png
        json: also write protocol, means, intervals and every picture's scores to this file

    Returns:
        The content of ``json``; with ``thermal`` as of :func:`evaluate_clip`, else: protocol;
        method, the label of ``what``; methods, label -> record; scores, source ("all" for all of
        them) -> label -> pairs, sequences, and metric -> mean, low, high, over_sequences; pictures,
        label -> rows.

    Raises:
        UserError: the request makes no sense, or a file, model or metric cannot be used; nothing
            was scored.
    """
    if thermal is not None:
        return _evaluate_clip(what, setting, thermal, truth, save, json)
    if truth is not None:
        raise UserError("--truth is for a coloured video; give the thermal one by --thermal")
    evaluation = Evaluation(setting)
    if save is not None and Path(save).exists() and any(Path(save).iterdir()):
        raise FileExistsError(f"{save} is not empty; name a new folder for the outputs")
    predictor = evaluation.open(what)
    result = evaluation.run([predictor], {predictor.name: Path(save)} if save is not None else {})
    print(describe(result["protocol"], evaluation.pairs.root))
    if setting.metrics is None and not Lpips.at_hand(setting.pretrained):
        print("no LPIPS: its files are not found (--pretrained)")
    found = {name for cell in result["scores"]["all"].values() for name in cell}
    if lacking := without_value(_names(setting.metrics) or (), found):
        print(lacking)
    print(table(result))
    result["method"] = predictor.name
    if json is not None:
        write_result(json, result)
    return result


def _evaluate_clip(
    what: str,
    setting: Setting,
    thermal: str,
    truth: str | None,
    save: Path | None,
    json: Path | None,
) -> dict:
    from cmmfnet.colorizer.torch import pick_device

    given = [
        f"--{name}"
        for name in ("data", "split", "lighting", "sources", "geometry", "text", "preset")
        if getattr(setting, name) != getattr(Setting(), name)
    ] + ["--save"] * (save is not None)
    if given:
        are = "are" if len(given) > 1 else "is"
        raise UserError(
            f"{', '.join(given)} {are} for pairs, and --thermal for a video; leave one out"
        )
    if not Path(what).exists() and not any(c in what for c in "*?["):
        raise UserError(
            f"{what} is no video or folder; with --thermal, give the coloured video, as written by "
            "cmmfnet colorize"
        )
    result = evaluate_clip(
        what,
        thermal,
        truth,
        metrics=_names(setting.metrics),
        ssim=setting.ssim,
        pretrained=setting.pretrained,
        device=str(pick_device(setting.device)),
    )
    if lacking := without_value(result["metrics"], result["scores"]["colours"]):
        print(lacking)
    print(clip_table(result))
    if json is not None:
        write_result(json, result)
    return result


class Evaluation:
    """A :class:`Setting` with its pairs opened and its options checked.

    Raises:
        UserError: no data, or an option that does not exist or does not fit the pairs.
        ImportError: scikit-image is not installed.
    """

    def __init__(self, setting: Setting):
        if importlib.util.find_spec("skimage") is None:
            raise ImportError("SSIM needs scikit-image: pip install 'cmmfnet[train]'")
        if setting.data is None:
            raise UserError("--data is missing; give a folder of pairs (docs/data.md)")
        check_geometry(setting.geometry)
        if setting.ssim not in SSIM_PRESETS:
            raise UserError(f"ssim is {setting.ssim!r}; expected one of {', '.join(SSIM_PRESETS)}")
        check_preset(setting)
        self.setting = setting
        self.chosen = {"lighting": _names(setting.lighting), "sources": _names(setting.sources)}
        self.pairs = Pairs(setting.data, setting.split, **self.chosen).require("thermal")
        self.metrics = list(
            dict.fromkeys(_names(setting.metrics) or default_metrics(setting.pretrained))
        )
        check_metrics(self.metrics, self.pairs, setting.geometry)

    def protocol(self, truth_sha256: str) -> dict:
        """The record of what must be equal for two results to be compared."""
        return make_protocol(
            self.pairs,
            truth_sha256,
            self.setting.geometry,
            self.setting.ssim,
            self.metrics,
            self.setting.preset,
        )

    def open(self, what: str) -> Predictor:
        """The model, run or folder of predictions called ``what``."""
        return open_predictor(
            what,
            self.pairs,
            self.setting.geometry,
            text=self.setting.text,
            device=self.setting.device,
            preset=self.setting.preset,
        )

    def baselines(self) -> list[Predictor]:
        """The trivial baselines made from the split "train"; none, with a warning, if there is no
        such split."""
        try:
            train = Pairs(self.setting.data, "train", **self.chosen).require("thermal")
        except PairsError as error:
            warnings.warn(
                f"no trivial baselines, which come from the split train: {error}", stacklevel=3
            )
            return []
        origin = {
            "kind": "baseline",
            "frames": len(train),
            "frames_sha256": frames_sha256(train.entries),
        }
        made = trivial_baselines(train, self.setting.geometry)
        return [
            Predictor(name, baseline(name, colour).colour, origin) for name, colour in made.items()
        ]

    def run(self, predictors: Sequence[Predictor], save: dict[str, Path]) -> dict:
        """Scores of ``predictors`` and of the trivial baselines, as :func:`evaluate` returns them
        without the key "method". ``save``: name of a predictor -> folder for its pictures."""
        from cmmfnet.colorizer.torch import pick_device

        setting, baselines = self.setting, self.baselines()
        if taken := {p.name for p in predictors} & {p.name for p in baselines}:
            raise UserError(
                f"{', '.join(taken)} is the name of a trivial baseline; rename the folder or file"
            )
        everything = [*predictors, *baselines]
        scorer = Scorer(
            self.metrics,
            ssim=setting.ssim,
            pretrained=setting.pretrained,
            device=str(pick_device(setting.device)),
        )
        rows, truth_sha256 = measure(everything, self.pairs, scorer, setting.geometry, save)
        scores = by_source(rows, self.metrics, setting.seed)
        for name, cell in scores["all"].items():
            cell |= scorer.together(name)
        root = self.pairs.root
        return {
            "format": FORMAT,
            "data": str(root.resolve() if isinstance(root, Path) else root),
            "protocol": self.protocol(truth_sha256),
            "metrics": self.metrics,
            "seed": setting.seed,
            "methods": {
                p.name: p.record
                | ({"saved": str(save[p.name].resolve())} if p.name in save else {})
                for p in everything
            },
            "scores": scores,
            "pictures": rows,
        }


def check_preset(setting: Setting) -> None:
    """Raises :class:`UserError` for an unknown preset, and for other options than the preset's."""
    if setting.preset not in PICTURES:
        raise UserError(f"preset is {setting.preset!r}; expected {LKAT} or none")
    if setting.preset == LKAT and (is_whole(setting.geometry) or setting.ssim != "skimage-u7"):
        raise UserError(
            f"preset lkat scores 256x256 pictures by SSIM skimage-u7; found geometry "
            f"{setting.geometry} and ssim {setting.ssim}, use kaist-b and skimage-u7"
        )


def by_source(rows: dict[str, Rows], names: Sequence[str], seed: int) -> dict[str, dict]:
    """Source, and "all" -> method -> pairs, sequences, metric -> cell."""
    found = sorted({str(row["source"]) for row in next(iter(rows.values()))})
    scores: dict[str, dict] = {}
    for source in (*(found if len(found) > 1 else ()), "all"):
        scores[source] = {}
        for method, each in rows.items():
            part = [row for row in each if source in ("all", row["source"])]
            counts = {
                "pairs": len(part),
                "sequences": len({row["sequence"] or row["name"] for row in part}),
            }
            scores[source][method] = counts | cells(part, names, seed)
    return scores


def _names(text: str | None) -> tuple[str, ...] | None:
    return (
        tuple(name.strip() for name in text.split(",") if name.strip())
        if text is not None
        else None
    )


# --- as text and as a file


def describe(protocol: dict, data: str | Path) -> str:
    """The protocol in three lines."""
    usual = protocol["pictures"] == PICTURES[None]
    pictures = "" if usual else f"; pictures: {protocol['pictures']}"
    versions = ", ".join(f"{name} {version}" for name, version in protocol["versions"].items())
    return (
        f"{data}, split {protocol['split']}: "
        f"{sentence(protocol['geometry']['name'], protocol['ssim']['preset'])}\n"
        f"{protocol['frames']} frames, sha256 of their list {protocol['frames_sha256'][:16]}, of "
        "the true pictures "
        f"{protocol['truth_sha256'][:16]}{pictures}\n{versions}"
    )


def table(result: dict) -> str:
    """Means by source; for all, the 95 % interval under each, and the mean over sequences."""
    shown = [
        name for name in METRICS if any(name in cell for cell in result["scores"]["all"].values())
    ]
    width = max([14, *(len(METRICS[name].title) + 2 for name in shown)])
    lines = [
        f"{'source':16}{'pairs':>6}  {'':28}"
        + "".join(f"{METRICS[name].title:>{width}}" for name in shown)
    ]

    def line(source: str, count: str, method: str, values: Sequence[str]) -> None:
        lines.append(
            f"{source:16}{count:>6}  {method:28}" + "".join(f"{value:>{width}}" for value in values)
        )

    def number(name: str, cell: dict | None, key: str = "mean") -> str:
        return f"{cell[key]:.{METRICS[name].decimals}f}" if cell and cell[key] is not None else "-"

    def interval(name: str, cell: dict | None) -> str:
        return (
            f"[{number(name, cell, 'low')},{number(name, cell, 'high')}]"
            if cell and cell["low"] is not None
            else ""
        )

    for source, methods in result["scores"].items():
        for method, cell in methods.items():
            line(
                source, str(cell["pairs"]), method, [number(name, cell.get(name)) for name in shown]
            )
            if source == "all":
                line("", "", "", [interval(name, cell.get(name)) for name in shown])
    sequences = next(iter(result["scores"]["all"].values()))["sequences"]
    for method, cell in result["scores"]["all"].items():
        if sequences == cell["pairs"]:
            break  # every picture is its own sequence: the same numbers again
        line(
            "by sequence",
            str(sequences),
            method,
            [number(name, cell.get(name), "over_sequences") for name in shown],
        )
    directions = ", ".join(
        f"{METRICS[n].title} {METRICS[n].better}" for n in shown if METRICS[n].better
    )
    return "\n".join(
        text.rstrip()
        for text in [*lines, f"better is: {directions}; [95 % interval over sequences]"]
    )


def write_result(path: str | Path, result: dict) -> None:
    """As JSON; numbers that JSON does not have (the PSNR of equal pictures) as the string "inf" or
    "nan"."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [plain(each) for each in value]
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    with atomic_write(Path(path), text=True) as file:
        jsonlib.dump(plain(result), file, indent=1, allow_nan=False)
