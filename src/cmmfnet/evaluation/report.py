"""One self-contained HTML page of a comparison: scores, paired differences, curves, scenes,
pictures, protocol. The page itself is report.html."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmmfnet.evaluation.metrics import METRICS
from cmmfnet.files.page import as_grey, write_page

ALPHA = 0.05
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 440, 240, 52, 14, 30, 34
"""Size of a chart and its margins, in its own units."""


@dataclass(frozen=True)
class GridRow:
    """One frame: ``thermal`` (h,w) in [-1,1]; ``truth``, and ``outputs`` by label, (h,w,3) uint8;
    ``scores`` label -> metric -> value."""

    name: str
    meta: dict
    thermal: np.ndarray
    truth: np.ndarray
    outputs: dict[str, np.ndarray]
    scores: dict[str, dict[str, float]]


def write_report(path: str | Path, found: dict, grid: Iterable[GridRow]) -> Path:
    """Write the page of a result of ``cmmfnet.evaluation.compare.compare``, completely or not at
    all.

    ``grid`` may be a generator: one frame at a time is held.
    """
    shown = [name for name in METRICS if any(name in cells for cells in found["scores"].values())]
    paired = [name for name in METRICS if any(name in cells for cells in found["paired"].values())]
    sortable = [name for name in METRICS if found["order"].get(name)]
    preferred = [name for name in ("lpips", "ssim", "psnr") if name in sortable]
    protocol = found["protocol"]
    charts = [
        chart(
            name, {label: curve[name] for label, curve in found["curves"].items() if name in curve}
        )
        for name in METRICS
    ]
    return write_page(
        path,
        "evaluation/report.html",
        title=f"Comparison: {', '.join(found['compared'])}",
        found=found,
        metrics=METRICS,
        shown=shown,
        best={name: _best(found, name) for name in shown},
        paired=paired,
        tests=sum(c["p"] is not None for cells in found["paired"].values() for c in cells.values()),
        verdict=_verdict,
        alpha=ALPHA,
        number=number,
        p_value=lambda p: f"{p:.3f}" if p >= 0.001 else "< .001",
        charts=[each for each in charts if each],
        sortable=sortable,
        first=(preferred or sortable or [""])[0],
        rows=_rows(found, sortable[:3], grid),
        chosen=[f"split {protocol['split']}", *(protocol["lighting"] or []),
                *(protocol["sources"] or [])],
        protocol={key: _words(value) for key, value in protocol.items() if value is not None}
        | {"bootstrap": "2,000 resamples of whole sequences, percentile 95 %",
           "seed": _words(found["seed"])},
        records_of={
            label: {k: _words(v) for k, v in found["methods"][label].items() if k != "training"}
            for label in found["compared"]
        },
    )  # fmt: skip


def number(name: str, value: float | None, sign: bool = False, more: int = 0) -> str:
    """A value of metric ``name`` as text, with its decimals and ``more``."""
    if value is None or not np.isfinite(value):
        return "–" if value is None else f"{value}"
    text = f"{value:{'+' if sign else ''}.{METRICS[name].decimals + more}f}"
    return text.replace("-", "−")


def _best(found: dict, name: str) -> set[str]:
    """The compared methods with the best mean, as it is shown; none if only one has it or the
    metric has no direction."""
    cells = {label: found["scores"][label].get(name) for label in found["compared"]}
    values = {
        label: round(cell["mean"], METRICS[name].decimals) for label, cell in cells.items() if cell
    }
    keys = {"higher": lambda v: -v, "lower": lambda v: v, "near 1": lambda v: abs(v - 1)}
    key = keys.get(METRICS[name].better)
    if key is None or len(values) < 2:
        return set()
    least = min(map(key, values.values()))
    return {label for label, value in values.items() if key(value) == least}


def _verdict(name: str, cell: dict) -> str:
    """ "better", "worse", or "open" if the corrected p is not below ``ALPHA``."""
    if cell["p_holm"] is None or cell["p_holm"] >= ALPHA:
        return "open"
    better = (cell["difference"] > 0) == (METRICS[name].better == "higher")
    return "better" if better else "worse"


def _rows(found: dict, captioned: list[str], grid: Iterable[GridRow]) -> Iterator[dict]:
    """The frames for the template: name, about, data (JSON for sorting), figures."""
    for row in grid:
        spread: dict = {"name": row.name}
        for metric in found["order"]:
            values = [scores[metric] for scores in row.scores.values() if metric in scores]
            if len(values) > 1 and np.isfinite(values).all():
                spread[metric] = max(values) - min(values)
        figures = [{"label": "thermal", "pixels": as_grey(row.thermal), "scores": ""}]
        for label in found["compared"]:
            own = row.scores.get(label, {})
            scores = [f"{METRICS[m].title} {number(m, own[m])}" for m in captioned if m in own]
            figures.append(
                {"label": label, "pixels": row.outputs.get(label), "scores": ", ".join(scores)}
            )
        figures.append({"label": "truth", "pixels": row.truth, "scores": ""})
        about = [row.meta[key] for key in ("source", "lighting", "sequence") if row.meta.get(key)]
        yield {
            "name": row.name,
            "about": ", ".join(map(str, about)),
            "data": json.dumps(spread),
            "figures": figures,
        }


def _words(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(each)}" for key, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


# --- charts


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers within [low, high], about ``count`` of them."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    base = 10 ** math.floor(math.log10(raw))
    step = min((base * f for f in (1, 2, 2.5, 5, 10)), key=lambda each: abs(math.log(each / raw)))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def chart(name: str, curves: dict[str, list[list[float]]]) -> dict | None:
    """The chart of a metric over training steps, for report.html: marks on both axes, and lines.

    ``curves``: label -> [[step, value], ...]. None if there is no finite value.
    """
    points = [point for curve in curves.values() for point in curve if math.isfinite(point[1])]
    if not points:
        return None
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    low, high = min(ys), max(ys)
    margin = (high - low) * 0.08 or abs(high) * 0.05 or 1.0
    low, high, start, end = low - margin, high + margin, 0, max(xs) or 1

    def x(step: float) -> float:
        return round(LEFT + (step - start) / (end - start) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    metric, marks = METRICS[name], ticks(low, high)
    digits = metric.decimals
    if len(marks) > 1:
        gap = marks[1] - marks[0]
        digits = max(0, -math.floor(math.log10(gap) + 1e-9))
        digits += round(gap, digits) != round(gap, 12)  # steps of 2.5
    lines = {
        label: [
            (x(step), y(value), f"{label}, step {step:g}: {value:.{metric.decimals}f}")
            for step, value in curve
            if math.isfinite(value)
        ]
        for label, curve in curves.items()
    }
    return {
        "title": f"{metric.title} ({metric.better or 'no direction'} is better)",
        "rows": [(y(mark), f"{mark:.{digits}f}") for mark in marks],
        "columns": [
            (x(mark), f"{mark / 1000:g}k" if mark >= 1000 else f"{mark:g}")
            for mark in ticks(start, end, 5)
        ],
        "lines": lines,
        "last": "; ".join(
            f"{label} {curve[-1][1]:.{metric.decimals}f}" for label, curve in curves.items()
        ),
        "size": (WIDTH, HEIGHT, LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM),
    }
