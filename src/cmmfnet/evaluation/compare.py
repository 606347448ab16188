"""``cmmfnet compare``: several methods under one protocol, with paired tests, as a table and as a
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
from cmmfnet.evaluation.evaluate import FORMAT, Evaluation
from cmmfnet.evaluation.metrics import METRICS
from cmmfnet.evaluation.predictors import Predictor
from cmmfnet.evaluation.protocol import (
    differing,
    frame,
    frames_sha256,
)
from cmmfnet.evaluation.report import GridRow, write_report
from cmmfnet.evaluation.result import describe, table, write_result
from cmmfnet.evaluation.scoring import Rows, cells, colour_all
from cmmfnet.evaluation.setting import Setting
from cmmfnet.files.errors import UserError


@dataclass
class Entry:
    """One compared method: the result that has its rows and, if it can colour again, its
    predictor."""

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
    setting: Setting = Setting(),  # noqa: B008, it is frozen
    report: Path | None = None,
    json: Path | None = None,
    reference: str | None = None,
    pictures: int = 24,
) -> dict:
    """Compare models, runs, folders of predictions and results of `cmmfnet evaluate --json` under
    one protocol.

    Differences to the reference are paired by picture; intervals and tests resample whole
    sequences. Results of different protocols are refused (docs/evaluation.md).

    Args:
        what: two or more of: a name of `cmmfnet models`, a .safetensors or .onnx file, a run's
            folder, a folder of predictions, a .json file of `cmmfnet evaluate`, which is not run
            again
        setting: pairs, geometry and metrics; data is not needed if all are .json
        report: write one page FILE.html with table, differences, pictures, scenes and curves
        json: write the numbers to this file
        reference: what the others are compared with, as given or as labelled (default: the first)
        pictures: number of frames on the page: those with the largest differences between methods,
            one of every sequence before a second of any

    Returns:
        The content of ``json``: protocol; reference; methods, label -> record; scores, label ->
        metric -> mean, low, high, over_sequences; paired, label -> metric -> difference, low, high,
        p, p_holm; groups, kind -> value -> label -> metric -> mean; curves, label -> metric ->
        [[step, value]]; order, the frames by disagreement.

    Raises:
        UserError: what cannot be compared; nothing was written.
    """
    if len(what) < 2:
        raise UserError(
            f"found {len(what)} to compare; give two or more, or use cmmfnet evaluate for one"
        )
    if report is not None and Path(report).suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--report is one HTML page; name it {Path(report).stem}.html")
    if pictures < 0:
        raise UserError(f"--pictures is {pictures}; expected 0 or more")
    stored = {each: read_result(Path(each)) for each in what if each.lower().endswith(".json")}
    fresh = [each for each in what if each not in stored]
    evaluation = None
    if fresh:
        if setting.data is None:
            raise UserError(
                f"--data is needed to score {', '.join(fresh)}; only .json results are scored "
                "already"
            )
        evaluation = Evaluation(setting)
        # Protocols are compared before anything is run, all but the sha256 of the pictures, which
        # is known only afterwards.
        for each, result in stored.items():
            protocol = evaluation.protocol(result["protocol"]["truth_sha256"])
            _same_protocol("this command", protocol, each, result["protocol"])
    entries = _entries(what, stored, evaluation)
    results = list({id(entry.result): entry.result for entry in entries}.values())
    first = entries[0]
    for each in entries[1:]:
        _same_protocol(first.what, first.result["protocol"], each.what, each.result["protocol"])
    chosen = _reference(entries, reference)

    names = [
        name
        for name in results[0]["metrics"]
        if all(name in result["metrics"] for result in results) and name in METRICS
    ]
    if not names:
        raise UserError("these results share no metric; evaluate them with the same --metrics")
    rows = _rows(entries, results)
    labels = [entry.label for entry in entries]
    scores = {
        label: {
            "pairs": len(each),
            "sequences": len({row["sequence"] or row["name"] for row in each}),
        }
        | cells(each, names, setting.seed)
        for label, each in rows.items()
    }
    together = [name for name in names if not METRICS[name].values]
    for entry in entries:  # metrics of all pictures together are not in rows
        theirs = entry.result["scores"]["all"][entry.key]
        scores[entry.label] |= {name: theirs[name] for name in together if name in theirs}
    found = {
        "format": "cmmfnet-compare-1",
        "protocol": first.result["protocol"],
        "reference": chosen,
        "seed": setting.seed,
        "metrics": names,
        "compared": labels,
        "methods": {entry.label: entry.record for entry in entries}
        | {label: {"kind": "baseline"} for label in rows if label not in labels},
        "scores": scores,
        "paired": paired(rows, labels, chosen, names, setting.seed),
        "groups": groups(rows, names),
        "curves": {
            entry.label: curve
            for entry in entries
            if (curve := read_curve(entry.record.get("what")))
        },
        "order": by_disagreement({label: rows[label] for label in labels}, names),
    }
    data = evaluation.pairs.root if evaluation else first.result["data"]
    print(describe(found["protocol"], data))
    print(table({"scores": {"all": scores}}))
    print(differences(found))
    if json is not None:
        write_result(json, found)
    if report is not None:
        pairs = evaluation.pairs if evaluation else _pairs_of(first.result)
        write_report(report, found, _grid(found, entries, rows, pairs, pictures))
        print(f"page {report}")
    return found


# --- reading and matching


def read_result(path: Path) -> dict:
    """A result of ``cmmfnet evaluate --json``. Raises :class:`UserError` for anything else."""
    try:
        result = jsonlib.loads(path.read_text(encoding="utf-8"))
    except (jsonlib.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    found = result.get("format") if isinstance(result, dict) else None
    if found != FORMAT:
        raise UserError(
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


def _entries(
    what: Sequence[str], stored: dict[str, dict], evaluation: Evaluation | None
) -> list[Entry]:
    labels: list[str] = []
    found, opened = [], []
    for each in what:
        predictor = None if each in stored else evaluation.open(each)
        name = stored[each]["method"] if each in stored else predictor.name
        label = name if name not in labels else f"{name} ({Path(each).stem})"
        if label in labels:
            raise UserError(
                f"two of what is compared are called {label!r} ({each}); give each its own file "
                "or folder name"
            )
        labels.append(label)
        if predictor is not None:
            predictor = replace(predictor, name=label)
            opened.append(predictor)
        key = name if each in stored else label
        found.append(Entry(label, each, stored.get(each, {}), key, predictor))
    if opened:
        result = evaluation.run(opened, {})
        for entry in found:
            entry.result = entry.result or result
    return found


def _same_protocol(one: str, protocol: dict, other: str, theirs: dict) -> None:
    if different := differing(protocol, theirs):
        raise UserError(
            f"{one} and {other} were made under different protocols and cannot be compared: "
            f"{'; '.join(different)}"
        )


def _reference(entries: list[Entry], reference: str | None) -> str:
    for entry in entries:
        if reference in (None, entry.label, entry.what):
            return entry.label
    raise UserError(
        f"reference is {reference!r}; expected one of {', '.join(e.label for e in entries)}"
    )


def _rows(entries: list[Entry], results: list[dict]) -> dict[str, Rows]:
    """Label -> rows, all in one order of frames: first the compared methods, then baselines."""
    first = entries[0]
    order = {row["name"]: i for i, row in enumerate(first.result["pictures"][first.key])}
    baselines = [
        (name, result, name)
        for result in results
        for name, record in result["methods"].items()
        if record["kind"] == "baseline"
    ]
    rows = {}
    for label, result, key in [(e.label, e.result, e.key) for e in entries] + baselines:
        if label not in rows:
            rows[label] = sorted(result["pictures"][key], key=lambda row: order[row["name"]])
    return rows


def differences(found: dict) -> str:
    """The paired differences as text."""
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
                f"  {label:28} {METRICS[name].title:10}{cell['difference']:+9.{digits}f} "
                f"{interval:22}{p}"
            )
    return "\n".join(lines)


# --- pictures


def _grid(
    found: dict, entries: list[Entry], rows: dict[str, Rows], pairs: Pairs | None, limit: int
) -> Iterator[GridRow]:
    """The frames with the largest differences between methods, with every method's picture."""
    metric = next(
        (name for name in ("lpips", "ssim", "psnr", *found["order"]) if found["order"].get(name)),
        None,
    )
    if metric is None or pairs is None:
        return
    index = {entry["name"]: i for i, entry in enumerate(pairs.entries)}
    place = {row["name"]: i for i, row in enumerate(next(iter(rows.values())))}
    sequences = {row["name"]: row["sequence"] or row["name"] for row in next(iter(rows.values()))}
    geometry = found["protocol"]["geometry"]["name"]
    for name in varied([name for name, _ in found["order"][metric]], sequences)[:limit]:
        thermal, truth, meta = frame(pairs, index[name], geometry)
        outputs, values = {}, {}
        for entry in entries:
            saved = Path(entry.record.get("saved", "")) / f"{name}.png"
            if entry.predictor is not None:
                outputs[entry.label] = colour_all(entry.predictor, [thermal], [meta])[0]
            elif "saved" in entry.record and saved.is_file():
                with Image.open(saved) as picture:
                    outputs[entry.label] = np.asarray(picture.convert("RGB"))
            row = rows[entry.label][place[name]]
            values[entry.label] = {n: float(row[n]) for n in found["order"] if n in row}
        yield GridRow(name, meta, thermal, truth, outputs, values)


def _pairs_of(result: dict) -> Pairs | None:
    """The pairs of a stored result; None if its data have moved or changed."""
    protocol = result["protocol"]
    chosen = [tuple(protocol[key]) if protocol[key] else None for key in ("lighting", "sources")]
    try:
        pairs = Pairs(result["data"], protocol["split"], *chosen)
    except PairsError:
        return None
    return pairs if frames_sha256(pairs.entries) == protocol["frames_sha256"] else None
