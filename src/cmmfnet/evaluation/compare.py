"""``cmmfnet compare``: several methods under one protocol, with paired tests, in one table and one
page."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from cmmfnet.data.pairs import Pairs, PairsError
from cmmfnet.evaluation.comparison import by_disagreement, groups, paired, read_curve, varied
from cmmfnet.evaluation.evaluate import FORMAT, Setting, describe, table, write_result
from cmmfnet.evaluation.metrics import METRICS
from cmmfnet.evaluation.predictors import Predictor
from cmmfnet.evaluation.protocol import (
    DEFAULT_GEOMETRY,
    ProtocolError,
    differing,
    frame,
    frames_sha256,
)
from cmmfnet.evaluation.report import GridRow, write_report
from cmmfnet.evaluation.scoring import Rows, cells, colour_all
from cmmfnet.files.errors import UserError


class CompareError(UserError):
    """What cannot be compared; the message says what to give instead."""


@dataclass
class Contestant:
    """One method that was asked for, with the result its rows are in and, where it can colour
    again, its predictor."""

    label: str
    what: str
    result: dict
    key: str  # its name in ``result``
    predictor: Predictor | None = None

    @property
    def record(self) -> dict:
        return self.result["methods"][self.key]


def compare(
    *what: str,
    data: str | None = None,
    report: Path | None = None,
    json: Path | None = None,
    reference: str | None = None,
    split: str = "val",
    lighting: str | None = None,
    sources: str | None = None,
    geometry: str = DEFAULT_GEOMETRY,
    text: str = "none",
    metrics: str | None = None,
    ssim: str = "skimage-u7",
    detector: Path | None = None,
    pretrained: Path | None = None,
    pictures: int = 24,
    seed: int = 0,
    device: str = "auto",
) -> dict:
    """Compare models, runs, folders of predictions and results of `cmmfnet evaluate --json` under
    one protocol.

    Differences to the reference are paired by picture; intervals and tests take whole sequences
    together. Results made under different protocols are refused (docs/evaluation.md).

    Args:
        what: two or more of: a name of `cmmfnet models`, a .safetensors or .onnx file, a run's
            folder, a folder of predictions, a .json file of `cmmfnet evaluate`, which is not run
            again
        data: a folder of pairs (docs/data.md); not needed where all are .json
        report: write one page FILE.html with table, differences, pictures, scenes and curves
        json: write the numbers to this file
        reference: what the others are compared to, as given or as labelled (default: the first)
        split: train, val or test, as in its index
        lighting: only these, with commas between: day,dusk
        sources: only these, with commas between
        geometry: how frames are cut: short-256-crop-256, kaist-a, kaist-b or whole
            (docs/evaluation.md)
        text: what models are told: none, caption or tags, as the index has them
        metrics: as for `cmmfnet evaluate`
        ssim: window of SSIM: skimage-u7, gauss-11 or w3
        detector: a YOLOX detector as ONNX
        pretrained: folder with the files for LPIPS (default: environment variable
            CMMFNET_PRETRAINED)
        pictures: how many frames the page shows: those about which the methods disagree most, of
            every sequence one before any second
        seed: of bootstrap and permutations
        device: auto, cpu, cuda, cuda:1 or mps

    Returns:
        What goes into ``json``: protocol; reference; methods, label -> what it is; scores, label ->
        metric -> mean, low, high, over_sequences; paired, label -> metric -> difference, low, high,
        p, p_holm; groups, kind -> value -> label -> metric -> mean; curves, label -> metric ->
        [[step, value]]; order, the frames by disagreement.

    Raises:
        CompareError, and what :func:`cmmfnet.evaluation.evaluate.evaluate` raises: nothing was
        written.
    """
    if len(what) < 2:
        raise CompareError(
            f"found {len(what)} to compare; give two or more, or use cmmfnet evaluate for one"
        )
    if report is not None and Path(report).suffix.lower() not in (".html", ".htm"):
        raise CompareError(f"--report is one HTML page; name it {Path(report).stem}.html")
    if pictures < 0:
        raise CompareError(f"--pictures is {pictures}; expected 0 or more")
    stored = {each: read_result(Path(each)) for each in what if each.lower().endswith(".json")}
    fresh = [each for each in what if each not in stored]
    setting = None
    if fresh:
        if data is None:
            raise CompareError(
                f"--data is needed to score {', '.join(fresh)}; only .json results are scored "
                "already"
            )
        setting = Setting(
            data=data, split=split, lighting=lighting, sources=sources, geometry=geometry,
            text=text, metrics=metrics,
            ssim=ssim, detector=detector, pretrained=pretrained, seed=seed, device=device,
        )  # fmt: skip
        for (
            each,
            result,
        ) in (
            stored.items()
        ):  # before anything is run: of the pictures themselves, it is known after
            _same_protocol(
                "this command",
                setting.protocol(result["protocol"]["truth_sha256"]),
                each,
                result["protocol"],
            )
    contestants = _contestants(what, stored, setting)
    results = list({id(c.result): c.result for c in contestants}.values())
    for each in contestants[1:]:
        _same_protocol(
            contestants[0].what,
            contestants[0].result["protocol"],
            each.what,
            each.result["protocol"],
        )
    chosen = _reference(contestants, reference)

    names = [
        name
        for name in results[0]["metrics"]
        if all(name in result["metrics"] for result in results)
    ]
    if not names:
        raise CompareError("these results share no metric; evaluate them with the same --metrics")
    rows, sets = _rows(contestants, results)
    labels = [c.label for c in contestants]
    scores = {
        label: {
            "pairs": len(each),
            "sequences": len({row["sequence"] or row["name"] for row in each}),
        }
        | cells(each, names, seed, {k: v for k, v in sets[label].items() if k in names})
        for label, each in rows.items()
    }
    found = {
        "format": "cmmfnet-compare-1",
        "protocol": contestants[0].result["protocol"],
        "reference": chosen,
        "seed": seed,
        "metrics": names,
        "compared": labels,
        "methods": {c.label: c.record for c in contestants}
        | {label: {"kind": "baseline"} for label in rows if label not in labels},
        "scores": scores,
        "paired": paired(rows, labels, chosen, names, seed),
        "groups": groups(rows, names),
        "curves": {
            c.label: curve for c in contestants if (curve := read_curve(c.record.get("what")))
        },
        "order": by_disagreement({label: rows[label] for label in labels}, names),
    }
    print(describe(found["protocol"], setting.data if setting else results[0]["data"]))
    print(table({"scores": {"all": scores}}))
    print(differences(found))
    if json is not None:
        write_result(json, found)
    if report is not None:
        write_report(report, found, _grid(found, contestants, rows, setting, pictures))
        print(f"page {report}")
    return found


# --- reading and matching


def read_result(path: Path) -> dict:
    """A result of ``cmmfnet evaluate --json``. Raises :class:`CompareError` for anything else."""
    try:
        result = jsonlib.loads(path.read_text(encoding="utf-8"))
    except (jsonlib.JSONDecodeError, UnicodeDecodeError) as error:
        raise CompareError(f"{path} is no JSON: {error}") from error
    found = result.get("format") if isinstance(result, dict) else None
    if found != FORMAT:
        raise CompareError(
            f"{path} has the format {found!r}, expected {FORMAT!r}: a file of cmmfnet evaluate "
            "--json"
        )
    measured = {metric.values for metric in METRICS.values()}
    for rows in result["pictures"].values():
        for row in rows:
            row.update(
                {key: float(value) for key, value in row.items() if key in measured}
            )  # "inf"
    return result


def _contestants(
    what: Sequence[str], stored: dict[str, dict], setting: Setting | None
) -> list[Contestant]:
    labels: list[str] = []
    found, opened = [], []
    for each in what:
        predictor = None if each in stored else setting.open(each)
        name = stored[each]["method"] if each in stored else predictor.name
        label = name if name not in labels else f"{name} ({Path(each).stem})"
        if label in labels:
            raise CompareError(
                f"two of what is compared are called {label!r} ({each}); give each its own file "
                "or folder name"
            )
        labels.append(label)
        if predictor is not None:
            predictor = replace(predictor, name=label)
            opened.append(predictor)
        found.append(
            Contestant(
                label, each, stored.get(each, {}), name if each in stored else label, predictor
            )
        )
    if opened:
        result = setting.run(opened, {})
        for contestant in found:
            contestant.result = contestant.result or result
    return found


def _same_protocol(one: str, protocol: dict, other: str, theirs: dict) -> None:
    if protocol["detector"] is None or theirs["detector"] is None:  # then detection is left out
        protocol, theirs = protocol | {"detector": None}, theirs | {"detector": None}
    if different := differing(protocol, theirs):
        raise ProtocolError(
            f"{one} and {other} were made under different protocols and cannot be compared: "
            f"{'; '.join(different)}"
        )


def _reference(contestants: list[Contestant], reference: str | None) -> str:
    for each in contestants:
        if reference in (None, each.label, each.what):
            return each.label
    raise CompareError(
        f"reference is {reference!r}; expected one of {', '.join(c.label for c in contestants)}"
    )


def _rows(
    contestants: list[Contestant], results: list[dict]
) -> tuple[dict[str, Rows], dict[str, dict]]:
    """Label -> rows in one order of frames, and -> the metrics of whole sets: what was asked for,
    then baselines."""
    order = {
        row["name"]: i
        for i, row in enumerate(contestants[0].result["pictures"][contestants[0].key])
    }
    rows, sets = {}, {}
    baselines = [
        (name, result, name)
        for result in results
        for name, r in result["methods"].items()
        if r["kind"] == "baseline"
    ]
    for label, result, key in [(c.label, c.result, c.key) for c in contestants] + baselines:
        if label not in rows:
            rows[label] = sorted(result["pictures"][key], key=lambda row: order[row["name"]])
            sets[label] = result["sets"][key]
    return rows, sets


def differences(found: dict) -> str:
    """The paired differences in lines."""
    lines = [
        f"differences to {found['reference']}, paired by picture [95 % interval], p by sign flips "
        "of sequences, Holm"
    ]
    for label, each in found["paired"].items():
        for name, cell in each.items():
            digits = METRICS[name].decimals + 1
            interval = (
                f"[{cell['low']:+.{digits}f},{cell['high']:+.{digits}f}]"
                if cell["low"] is not None
                else ""
            )
            p = (
                f"p {cell['p']:.4f}, corrected {cell['p_holm']:.4f}"
                if cell["p"] is not None
                else "no test"
            )
            lines.append(
                f"  {label:28}{METRICS[name].title:10}{cell['difference']:+9.{digits}f} "
                f"{interval:22}{p}"
            )
    return "\n".join(lines)


# --- pictures


def _grid(
    found: dict,
    contestants: list[Contestant],
    rows: dict[str, Rows],
    setting: Setting | None,
    limit: int,
) -> Iterator[GridRow]:
    """The frames about which the methods disagree most, each with what every method made of it."""
    metric = next(
        (name for name in ("lpips", "ssim", "psnr", *found["order"]) if found["order"].get(name)),
        None,
    )
    protocol = found["protocol"]
    pairs = setting.pairs if setting else _pairs_of(contestants[0].result)
    if metric is None or pairs is None:
        return
    index = {entry["name"]: i for i, entry in enumerate(pairs.entries)}
    place = {row["name"]: i for i, row in enumerate(next(iter(rows.values())))}
    sequences = {row["name"]: row["sequence"] or row["name"] for row in next(iter(rows.values()))}
    for name in varied([name for name, _ in found["order"][metric]], sequences)[:limit]:
        thermal, truth, meta = frame(pairs, index[name], protocol["geometry"]["name"])
        outputs, values = {}, {}
        for each in contestants:
            saved = Path(each.record.get("saved", "")) / f"{name}.png"
            if each.predictor is not None:
                outputs[each.label] = colour_all(each.predictor, [thermal], [meta])[0]
            elif "saved" in each.record and saved.is_file():
                with Image.open(saved) as picture:
                    outputs[each.label] = np.asarray(picture.convert("RGB"))
            row = rows[each.label][place[name]]
            values[each.label] = {n: float(row[n]) for n in found["order"] if n in row}
        yield GridRow(name, meta, thermal, truth, outputs, values)


def _pairs_of(result: dict) -> Pairs | None:
    """The frames of a stored result, if its data are still where they were."""
    protocol = result["protocol"]
    chosen = [tuple(protocol[key]) if protocol[key] else None for key in ("lighting", "sources")]
    try:
        pairs = Pairs(result["data"], protocol["split"], *chosen)
    except PairsError:
        return None
    return pairs if frames_sha256(pairs.entries) == protocol["frames_sha256"] else None
