"""The numbers of a comparison: paired differences with tests, means by group, training curves,
disagreement.

Rows come from scoring.py; all lists of rows cover the same frames in the same order.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cmmfnet.evaluation import intervals
from cmmfnet.evaluation.metrics import METRICS
from cmmfnet.evaluation.scoring import Rows, mean_of

GROUPS = ("source", "lighting", "sequence")


def paired(
    rows: dict[str, Rows], labels: Sequence[str], reference: str, names: Sequence[str], seed: int
) -> dict:
    """Label -> metric -> difference, low, high, p, p_holm, compared with the reference.

    ``difference`` is between the means over the pictures that both have; ``low`` and ``high`` are
    its 95 % bootstrap interval, ``p`` is from the sign-flip test, ``p_holm`` is corrected over all
    tests of this call (labels times metrics). Metrics without a better direction are not tested.
    """
    found: dict[str, dict] = {label: {} for label in labels if label != reference}
    tested = [n for n in names if METRICS[n].better in ("higher", "lower")]
    for label, name in itertools.product(found, tested):
        key, per = METRICS[name].values, METRICS[name].per
        both = [
            (a, b)
            for a, b in zip(rows[label], rows[reference], strict=True)
            if key in a and key in b
        ]
        weights = [float(a[per]) if per else 1.0 for a, _ in both]
        if sum(weights) == 0:
            continue
        values, theirs = ([float(row[key]) for row in side] for side in zip(*both, strict=True))
        clusters = [str(a["sequence"] or a["name"]) for a, _ in both]
        gaps = [
            0.0 if v == t else v - t for v, t in zip(values, theirs, strict=True)
        ]  # inf - inf is no difference
        interval = intervals.mean_interval(gaps, weights, clusters, seed=seed)
        found[label][name] = {
            "difference": float(np.sum(gaps) / np.sum(weights)), "low": interval and interval[0],
            "high": interval and interval[1], "p": intervals.sign_flip_p(gaps, clusters, seed=seed),
        }  # fmt: skip
    tests = [cell for each in found.values() for cell in each.values()]
    adjusted = iter(intervals.holm([cell["p"] for cell in tests if cell["p"] is not None]))
    for cell in tests:
        cell["p_holm"] = None if cell["p"] is None else next(adjusted)
    return found


def groups(rows: dict[str, Rows], names: Sequence[str]) -> dict[str, dict]:
    """Kind of group -> its value -> label -> pairs, and metric -> mean."""
    found: dict[str, dict] = {}
    for kind in GROUPS:
        values = sorted({str(row[kind]) for row in next(iter(rows.values())) if row[kind]})
        for value in values:
            of_value = {
                label: [row for row in each if row[kind] == value] for label, each in rows.items()
            }
            found.setdefault(kind, {})[value] = {
                label: {"pairs": len(part)}
                | {n: mean for n in names if (mean := mean_of(METRICS[n], part)) is not None}
                for label, part in of_value.items()
            }
    return found


def read_curve(what: str | None) -> dict[str, list]:
    """Metric -> [step, value] of a run's validation, from its log.jsonl; {} without one."""
    log = Path(what or "") / "log.jsonl"
    if what is None or not log.is_file():
        return {}
    curve: dict[str, dict[int, float]] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # the last line of a run that was killed, or is being written
        for name, value in row.get("validation", {}).items():
            if isinstance(value, int | float):
                curve.setdefault(name, {})[int(row["step"])] = float(
                    value
                )  # a resumed run repeats steps
    return {name: sorted(map(list, points.items())) for name, points in curve.items()}


def by_disagreement(rows: dict[str, Rows], names: Sequence[str]) -> dict[str, list]:
    """Metric -> [frame, range of its scores over the methods], the largest range first."""
    found = {}
    for name in names:
        key = METRICS[name].values
        if METRICS[name].per or name == "colourfulness":
            continue
        spread = []
        for together in zip(*rows.values(), strict=True):
            values = [float(row[key]) for row in together if key in row]
            if len(values) == len(together) and np.isfinite(values).all():
                spread.append([together[0]["name"], max(values) - min(values)])
        found[name] = sorted(spread, key=lambda each: (-each[1], each[0]))
    return found


def varied(names: Sequence[str], sequences: dict[str, str]) -> list[str]:
    """``names`` in their order, but the first of every sequence before the second of any.

    Neighbouring frames look alike, so a page of a few frames should show many sequences.
    """
    seen: dict[str, int] = {}
    ranks = {}
    for name in names:
        ranks[name] = seen[sequences[name]] = seen.get(sequences[name], -1) + 1
    return sorted(names, key=ranks.__getitem__)
