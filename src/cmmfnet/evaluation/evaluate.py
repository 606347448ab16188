"""``cmmfnet evaluate``: scores of a model, a run or a folder of predictions on pairs, under one
protocol.

PSNR and SSIM alone reward grey blur. Read them together with LPIPS, the colourfulness of output and
truth, and the trivial baselines, which are scored the same way (docs/evaluation.md).
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path

from cmmfnet.data.pairs import Pairs, PairsError
from cmmfnet.evaluation.baselines import trivial_baselines
from cmmfnet.evaluation.clips import clip_table, evaluate_clip
from cmmfnet.evaluation.learned import Lpips
from cmmfnet.evaluation.metrics import SSIM_PRESETS, without_value
from cmmfnet.evaluation.predictors import Predictor, baseline, open_predictor
from cmmfnet.evaluation.protocol import (
    LKAT,
    PICTURES,
    check_geometry,
    frames_sha256,
    is_whole,
    make_protocol,
)
from cmmfnet.evaluation.result import describe, table, write_result
from cmmfnet.evaluation.scoring import (
    Rows,
    Scorer,
    cells,
    check_metrics,
    default_metrics,
    measure,
)
from cmmfnet.evaluation.setting import Setting
from cmmfnet.files.errors import UserError

FORMAT = "cmmfnet-evaluate-1"


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
        what: a name of `cmmfnet models`, a .safetensors or .onnx file, hf:OWNER/REPO@COMMIT, two
            models joined by a +, a run's folder, or a folder of predictions with NAME.png for every
            frame; with --thermal a coloured video, or a folder of its frames
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
