"""One self-contained HTML page of a comparison: scores, paired differences, curves, scenes,
pictures, protocol."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmmfnet import __version__
from cmmfnet.evaluation.metrics import METRICS
from cmmfnet.evaluation.report_chart import chart
from cmmfnet.evaluation.report_style import FOOT, HEAD
from cmmfnet.files.atomic import atomic_write
from cmmfnet.files.page import as_grey, data_url

ARROWS = {"higher": "↑", "lower": "↓", "near 1": "→ 1", "": ""}
ALPHA = 0.05


@dataclass(frozen=True)
class GridRow:
    """One frame: ``thermal`` (h,w) in [-1,1], ``truth`` and ``outputs`` by label (h,w,3) uint8,
    ``scores`` label -> metric -> value."""

    name: str
    meta: dict
    thermal: np.ndarray
    truth: np.ndarray
    outputs: dict[str, np.ndarray]
    scores: dict[str, dict[str, float]]


def write_report(path: str | Path, found: dict, grid: Iterable[GridRow]) -> Path:
    """Write the page of what ``cmmfnet.evaluation.compare.compare`` returns, completely or not at
    all.

    Nothing in it is loaded from anywhere else; the page forbids it. ``grid`` may be a generator.
    """
    path = Path(path)
    title = f"Comparison: {', '.join(found['compared'])}"
    with atomic_write(path, text=True, durable=False) as file:
        file.write(HEAD.replace("{title}", html.escape(title)))
        file.write(
            _intro(found) + _scores(found) + _paired(found) + _curves(found) + _groups(found)
        )
        file.write(_grid_head(found))
        count = 0
        for row in grid:
            file.write(_row(found, row))
            count += 1
        file.write(_grid_foot(count) + _protocol(found))
        file.write(FOOT.replace("{version}", __version__))
    return path


def number(name: str, value: float | None, sign: bool = False, more: int = 0) -> str:
    if value is None or not np.isfinite(value):
        return "–" if value is None else f"{value}"
    text = f"{value:{'+' if sign else ''}.{METRICS[name].decimals + more}f}"
    return text.replace("-", "−")


def _header(name: str) -> str:
    metric = METRICS[name]
    arrow = f" {ARROWS[metric.better]}" if metric.better else ""
    unit = f"<small>{metric.unit}</small>" if metric.unit else ""
    return f'<th scope="col" title="{html.escape(metric.meaning)}">{metric.title}{arrow}{unit}</th>'


def _shown(found: dict) -> list[str]:
    return [name for name in METRICS if any(name in cells for cells in found["scores"].values())]


def _table(label: str, head: str, body: str) -> str:
    """In a box that scrolls sideways, by keyboard, too."""
    return (
        '<div class="scroll" role="region" tabindex="0" '
        f'aria-label="{html.escape(label)}"><table><thead>{head}</thead>'
        f"<tbody>{body}</tbody></table></div>\n"
    )


def _chip(found: dict, label: str) -> str:
    place = found["compared"].index(label) % 8 if label in found["compared"] else None
    chip = f'<i class="chip m{place}"></i>' if place is not None else ""
    return f"{chip}{html.escape(label)}"


def _intro(found: dict) -> str:
    protocol, cells = found["protocol"], found["scores"][found["compared"][0]]
    chosen = [
        f"split {protocol['split']}",
        *(protocol["lighting"] or []),
        *(protocol["sources"] or []),
    ]
    return (
        f'<p class="note">{protocol["frames"]} frames in {cells["sequences"]} sequences '
        f"({html.escape(', '.join(chosen))}); "
        f"{html.escape(protocol['geometry']['what'])}. Colours are a plausible guess by each "
        "method, not a measurement.</p>\n"
    )


def _scores(found: dict) -> str:
    shown = _shown(found)
    best: dict[str, set[str]] = {}
    for name in shown:
        # as they are shown: of two that read the same, none is the better one
        of = {x: found["scores"][x] for x in found["compared"]}
        values = {
            x: round(cells[name]["mean"], METRICS[name].decimals)
            for x, cells in of.items()
            if name in cells
        }
        better = METRICS[name].better
        if better and len(values) > 1:
            key = {"higher": lambda v: -v, "lower": lambda v: v, "near 1": lambda v: abs(v - 1)}[
                better
            ]
            least = min(map(key, values.values()))
            best[name] = {x for x, value in values.items() if key(value) == least}
    body = ""
    for label, cells in found["scores"].items():
        row = f'<th scope="row">{_chip(found, label)}</th>'
        for name in shown:
            cell = cells.get(name)
            if cell is None:
                row += "<td>–</td>"
                continue
            mean = number(name, cell["mean"])
            if label in best.get(name, ()):
                mean = f"<strong>{mean}</strong>"
            interval = (
                f"{number(name, cell['low'])} to {number(name, cell['high'])}"
                if cell["low"] is not None
                else ""
            )
            row += f"<td>{mean}<small>{interval}</small></td>"
        kind = "" if label in found["compared"] else ' class="baseline"'
        body += f"<tr{kind}>{row}</tr>"
    head = "<tr><th></th>" + "".join(map(_header, shown)) + "</tr>"
    note = (
        "Means over pictures with 95 % bootstrap intervals, whole sequences drawn together. Bold: "
        "best of what is compared. "
        "Grey rows are trivial baselines, which need no network: a method that does not beat them "
        "has learned little of use."
    )
    return f'<h2>Scores</h2><p class="note">{note}</p>' + _table("Scores", head, body)


def _paired(found: dict) -> str:
    shown = [name for name in METRICS if any(name in cells for cells in found["paired"].values())]
    if not shown:
        return ""
    body = ""
    for label, cells in found["paired"].items():
        row = f'<th scope="row">{_chip(found, label)}</th>'
        for name in shown:
            cell = cells.get(name)
            if cell is None:
                row += "<td>–</td>"
                continue
            better = (cell["difference"] > 0) == (METRICS[name].better == "higher")
            sure = cell["p_holm"] is not None and cell["p_holm"] < ALPHA
            verdict = f' class="{"better" if better else "worse"}"' if sure else ""
            word = ("better" if better else "worse") if sure else "open"
            interval = (
                f"{number(name, cell['low'], True, 1)} to {number(name, cell['high'], True, 1)}"
                if cell["low"] is not None
                else "one sequence: no interval"
            )
            p = "no test" if cell["p"] is None else f"p {_p(cell['p_holm'])}, {word}"
            row += f"<td{verdict}>{number(name, cell['difference'], True, 1)}<small>{interval}</small><small>{p}</small></td>"
        body += f"<tr>{row}</tr>"
    head = "<tr><th></th>" + "".join(map(_header, shown)) + "</tr>"
    tests = sum(
        cell["p"] is not None for cells in found["paired"].values() for cell in cells.values()
    )
    note = (
        f"Mean less that of {html.escape(found['reference'])} on the same pictures, 95 % "
        "bootstrap interval by sequence. p: "
        f"sign flips of whole sequences, two-sided, Holm's correction over all {tests} tests of "
        "this table; open: p of "
        f"{ALPHA} or more."
    )
    title = f"<h2>Differences to {html.escape(found['reference'])}</h2>"
    return f'{title}<p class="note">{note}</p>' + _table("Paired differences", head, body)


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "&lt; .001"


def _curves(found: dict) -> str:
    metrics = [name for name in METRICS if any(name in curve for curve in found["curves"].values())]
    if not metrics:
        return ""
    legend = " ".join(f"<span>{_chip(found, label)}</span>" for label in found["curves"])
    charts = "".join(
        chart(
            name,
            {
                x: (found["compared"].index(x) % 8, c[name])
                for x, c in found["curves"].items()
                if name in c
            },
        )
        for name in metrics
    )
    note = (
        "From the runs' log.jsonl: their own validation pictures under the default protocol "
        "without text, which need not be "
        "the pictures above. The last step counts, not the best one."
    )
    return (
        f'<h2>Score by step of training</h2><p class="note">{note}</p><p '
        f'class="legend">{legend}</p>'
        f'<div class="charts">{charts}</div>\n'
    )


def _groups(found: dict) -> str:
    names = _shown(found)
    options = "".join(f'<option value="{name}">{METRICS[name].title}</option>' for name in names)
    text = (
        '<h2>By scene</h2><p class="note">Means over pictures. Small groups scatter widely.</p>'
        f'<label class="pick">Score <select id="metric">{options}</select></label>'
    )
    labels = list(found["scores"])
    for kind, values in found["groups"].items():
        head = f'<tr><th scope="col">{kind}</th><th scope="col">pairs</th>'
        head += "".join(
            f'<th scope="col"{"" if x in found["compared"] else " class=baseline"}>{_chip(found, x)}</th>'
            for x in labels
        )
        body = ""
        for value, cells in values.items():
            body += (
                f'<tr><th scope="row">{html.escape(value)}</th><td>{cells[labels[0]]["pairs"]}</td>'
            )
            for label in labels:
                spans = "".join(
                    f'<span data-metric="{name}"{" hidden" if i else ""}>{number(name, cells[label].get(name))}</span>'
                    for i, name in enumerate(names)
                )
                body += f"<td{'' if label in found['compared'] else ' class=baseline'}>{spans}</td>"
            body += "</tr>"
        text += _table(f"Scores by {kind}", head + "</tr>", body)
    return text


def _grid_head(found: dict) -> str:
    sortable = [name for name in METRICS if found["order"].get(name)]
    first = next(
        (name for name in ("lpips", "ssim", "psnr") if name in sortable),
        sortable[0] if sortable else "",
    )
    options = "".join(
        f'<option value="{name}"{" selected" if name == first else ""}>range of '
        f"{METRICS[name].title}</option>"
        for name in sortable
    )
    return (
        '<h2>Pictures</h2><p class="note">The frames about which the methods disagree most: those '
        "with the largest range of "
        f"{METRICS[first].title if first else 'scores'} over the methods, and of every sequence "
        "one before any second. This "
        "choice shows where methods differ, not how they look on average.</p>"
        f'<label class="pick">Sort these by <select id="sort">{options}<option '
        'value="name">name</option></select></label>'
        '<div id="grid">\n'
    )


def _row(found: dict, row: GridRow) -> str:
    name = html.escape(row.name)
    spread = {}
    for metric in found["order"]:
        values = [scores[metric] for scores in row.scores.values() if metric in scores]
        if len(values) > 1 and np.isfinite(values).all():
            spread[metric] = max(values) - min(values)
    figures = _figure(as_grey(row.thermal), f"{name}, thermal", "thermal", "")
    for label in found["compared"]:
        own = row.scores.get(label, {})
        scores = ", ".join(
            f"{METRICS[m].title} {number(m, own[m])}" for m in _captioned(found) if m in own
        )
        if label in row.outputs:
            figures += _figure(
                row.outputs[label], f"{name}, {html.escape(label)}", _chip(found, label), scores
            )
        else:
            figures += (
                '<figure><div class="none">no picture stored</div>'
                f"<figcaption>{_chip(found, label)}<small>{scores}</small></figcaption></figure>"
            )
    figures += _figure(row.truth, f"{name}, true colours", "truth", "")
    about = ", ".join(
        html.escape(str(row.meta[key]))
        for key in ("source", "lighting", "sequence")
        if row.meta.get(key)
    )
    data = html.escape(json.dumps(spread | {"name": row.name}))
    return f'<article data-scores="{data}"><h3>{name} <small>{about}</small></h3><div class="row">{figures}</div></article>\n'


def _captioned(found: dict) -> list[str]:
    """The three metrics under a picture."""
    return [name for name in METRICS if found["order"].get(name)][:3]


def _figure(pixels: np.ndarray, alt: str, caption: str, scores: str) -> str:
    return (
        f'<figure><img src="{data_url(pixels)}" alt="{alt}" '
        f'loading="lazy"><figcaption>{caption}<small>{scores}</small>'
        "</figcaption></figure>"
    )


def _grid_foot(count: int) -> str:
    empty = "<p>No pictures: none were asked for, or the data of the stored results are no longer where they were.</p>"
    return ("" if count else empty) + "</div>\n"


def _protocol(found: dict) -> str:
    def value(x) -> str:
        if isinstance(x, dict):
            return ", ".join(f"{key} {value(each)}" for key, each in x.items())
        return html.escape(", ".join(map(str, x)) if isinstance(x, list) else str(x))

    def block(entries: dict) -> str:
        return (
            "<dl>"
            + "".join(
                f"<dt>{html.escape(str(k))}</dt><dd>{value(v)}</dd>" for k, v in entries.items()
            )
            + "</dl>"
        )

    methods = "".join(
        f"<h3>{_chip(found, x)}</h3>{block({k: v for k, v in found['methods'][x].items() if k != 'training'})}"
        for x in found["compared"]
    )
    resampling = {
        "bootstrap": "2,000 resamples of whole sequences, percentile 95 %",
        "seed": found["seed"],
    }
    return (
        f"<h2>Protocol</h2>{block({k: v for k, v in found['protocol'].items() if v is not None} | resampling)}"
        f"<h2>What was compared</h2>{methods}\n"
    )
