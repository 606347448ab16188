"""One self-contained HTML page to look at the alignment of pairs: flicker, overlay, histogram; the
worst pairs first."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cmmfnet import __version__
from cmmfnet.data.pairs import Pairs
from cmmfnet.files.atomic import atomic_write
from cmmfnet.files.page import data_url

if TYPE_CHECKING:
    from cmmfnet.data.prepare.alignment import PairShift

MOST_PAIRS = 60
_THUMBNAIL = 480


def write_page(path: Path, pairs: Pairs, results: dict[int, PairShift], summary: str) -> Path:
    """Write the page, completely or not at all. Nothing in it is loaded from anywhere else; the
    page forbids it.

    Args:
        path: the .html file.
        pairs: the data set.
        results: index in ``pairs`` -> what was found. The worst 60 are shown, as JPEG of at most
            480 pixels.
        summary: plain text, as are all names.
    """
    worst = sorted(results, key=lambda i: _badness(results[i]))[:MOST_PAIRS]
    head = _HEAD.replace("{summary}", html.escape(summary)).replace(
        "{histogram}", _histogram(list(results.values()))
    )
    head = head.replace("{shown}", f"{len(worst)} of {len(results)} pairs, the worst first")
    with atomic_write(path, text=True, durable=False) as file:
        file.write(head.replace("{title}", html.escape(f"Alignment of {path.parent.name}")))
        for index in worst:
            file.write(_card(pairs, index, results[index]))
        file.write(_FOOT.replace("{version}", __version__))
    return path


def _badness(result: PairShift) -> tuple:
    """Sort key, the worst first: what can be nothing but wrong, the largest shift, the least
    certain."""
    rank = ["unreadable", "unlike", "scaled", "shifted", "uncertain", ""].index(
        result.reason.partition(":")[0]
    )
    if result.shift is None:
        return rank, 0.0
    if result.reason in ("unlike", "uncertain"):
        return rank, result.shift.confidence
    # a scale of 1 % moves the borders of a picture by some pixels
    return rank if rank > 3 else 2, -float(np.hypot(result.shift.dx, result.shift.dy)) - 300 * abs(
        result.shift.scale - 1
    )


def _card(pairs: Pairs, index: int, result: PairShift) -> str:
    name, mark = (
        html.escape(result.name),
        html.escape(result.reason.partition(":")[0] or "in place"),
    )
    if result.shift is None:
        why = html.escape(result.reason.removeprefix("unreadable: "))
        return f"""
<article>
  <header><h2>{name}</h2><span class="mark bad">{mark}</span><p>{why}</p></header>
</article>
"""
    pair, shift = pairs[index], result.shift
    height, width = pair.thermal.shape
    # undoes the estimate: the colour picture back by its shift, in percent of its size, and to the
    # thermal one's scale
    back = f"scale({1 / shift.scale:.4f}) translate({-100 * shift.dx / width:.3f}%,{-100 * shift.dy / height:.3f}%)"
    numbers = (
        f"dx {shift.dx:+.1f}, dy {shift.dy:+.1f} px, scale {shift.scale:.3f}, confidence "
        f"{shift.confidence:.1f}, "
        f"similarity {shift.similarity:.0f}"
    )
    return f"""
<article>
  <figure style="aspect-ratio:{width}/{height}">
    <img src="{data_url(pair.thermal, _THUMBNAIL, 82)}" alt="{name}, thermal">
    <img class="top" style="--back:{back}" src="{data_url(pair.visible, _THUMBNAIL, 82)}"
  alt="{name}, colour">
  </figure>
  <label class="overlay">thermal<input type="range" min="0" max="100" value="50"
  aria-label="{name}: share of the colour
    picture, stops the flicker">colour</label>
  <header><h2>{name}</h2><span class="mark{" bad" if result.flagged else ""}">{mark}</span>
    <p>{numbers}; {html.escape(result.group)}, {width} × {height}</p></header>
</article>
"""


def _histogram(results: Sequence[PairShift]) -> str:
    """The shifts of the pairs that can be judged, across and down, in bins of 1 pixel or more."""
    trusted = [r.shift for r in results if r.trusted and r.shift is not None]
    if not trusted:
        return "<p>No pair can be judged, so there are no shifts to count.</p>"
    largest = max(max(abs(s.dx), abs(s.dy)) for s in trusted)
    step = max(1, int(np.ceil(largest / 24)))
    reach = max(4, int(np.ceil(largest / step + 0.5)))
    charts = []
    for axis, meaning in (("dx", "to the right"), ("dy", "down")):
        values = np.array([getattr(s, axis) for s in trusted])
        counts, _ = np.histogram(values, bins=(np.arange(-reach, reach + 2) - 0.5) * step)
        bars = "".join(
            f'<rect x="{i * 10 + 1}" y="{100 - 100 * n / counts.max():.1f}" width="8" '
            f'height="{100 * n / counts.max():.1f}">'
            f"<title>{_signed((i - reach) * step)} px: {n} pairs</title></rect>"
            for i, n in enumerate(counts)
            if n
        )
        width = 10 * len(counts)
        ticks = "".join(
            f'<text x="{(i + 0.5) * 10:g}" y="114" '
            f'text-anchor="middle">{_signed((i - reach) * step)}</text>'
            for i in sorted({0, reach, 2 * reach})
        )
        charts.append(
            f'<figure><svg viewBox="-12 -4 {width + 24} 122" role="img" aria-label="Histogram of '
            f"{axis}: median "
            f'{np.median(values):+.1f} px">{bars}<path d="M0 '
            f'100.5H{width}"/>{ticks}</svg><figcaption>{axis} ({meaning}), px; '
            f"median {np.median(values):+.1f}, most {counts.max()} pairs</figcaption></figure>"
        )
    return f'<div class="charts">{"".join(charts)}</div>'


def _signed(number: int) -> str:
    return f"{number:+d}" if number else "0"


# The flicker is slow (a change each 0.7 s) and can be stopped: flashing faster than three times a
# second can harm people with epilepsy (WCAG 2.3.1), and what moves for over five seconds must be
# stoppable (WCAG 2.2.2).
_HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline';
  script-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root { color-scheme: light dark; --page: #f6f6f4; --card: #fff; --ink: #1c1d1f; --soft: #63666b;
  --line: #e2e2de;
  --accent: #d9480f; --bar: #5b7f95; }
@media (prefers-color-scheme: dark) {
  :root { --page: #131416; --card: #1c1e21; --ink: #ececea; --soft: #9a9da3; --line: #2c2f33;
  --accent: #ff922b; --bar: #7fa8c0; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1440px; padding: 2.5rem clamp(1rem, 4vw, 3rem);
  background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue",
  sans-serif; }
h1 { margin: 0 0 .75rem; font-size: clamp(1.4rem, 3vw, 2rem); line-height: 1.2;
  letter-spacing: -.015em;
  overflow-wrap: anywhere; }
pre { margin: 0 0 1.25rem; max-width: 110ch; white-space: pre-wrap; overflow-wrap: anywhere;
  font: inherit; }
.charts { display: grid; gap: 1.5rem; max-width: 900px;
  grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); }
.charts figure { margin: 0; } .charts svg { display: block; width: 100%; max-height: 170px; }
.charts rect { fill: var(--bar); } .charts path { stroke: var(--line);
  } .charts text { fill: var(--soft); font-size: 11px; }
figcaption, header p, .note { color: var(--soft); font-size: .86rem;
  font-variant-numeric: tabular-nums; }
.bar { position: sticky; top: 0; z-index: 2; display: flex; flex-wrap: wrap; align-items: center;
  gap: .5rem 1.25rem;
  margin: 1.5rem 0 1rem; padding: .6rem 0; background: var(--page);
  border-bottom: 1px solid var(--line); }
button { padding: .35rem 1.1rem; border: 1px solid var(--line); border-radius: 99px;
  background: var(--card); color: inherit;
  font: inherit; cursor: pointer; }
button:focus-visible, input:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
main { display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr));
  align-items: start; }
article { overflow: hidden; background: var(--card); border: 1px solid var(--line);
  border-radius: 14px; }
article figure { position: relative; margin: 0; overflow: hidden; background: #000; }
article img { display: block; width: 100%; height: 100%; }
article .top { position: absolute; inset: 0; opacity: var(--share, .5);
  animation: flicker 1.4s steps(1) infinite; }
.undone .top { transform: var(--back); }
.still .top, .paused .top { animation: none; }
@keyframes flicker { 0% { opacity: 1; } 50% { opacity: 0; } }
.overlay { display: flex; align-items: center; gap: .6rem; padding: .7rem 1rem 0;
  color: var(--soft); font-size: .8rem; }
.overlay input { flex: 1; min-width: 0; accent-color: var(--accent); }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 .75rem;
  padding: .5rem 1rem .9rem; }
h2 { margin: 0; font-size: 1rem; font-weight: 600; overflow-wrap: anywhere; }
header p { flex-basis: 100%; margin: .1rem 0 0; overflow-wrap: anywhere; }
.mark { padding: 0 .55rem; border: 1px solid var(--line); border-radius: 99px; color: var(--soft);
  font-size: .78rem; }
.mark.bad { border-color: var(--accent); color: var(--accent); }
footer { margin-top: 2.5rem; color: var(--soft); font-size: .86rem; }
</style>
<body class="paused">
<h1>{title}</h1>
<pre>{summary}</pre>
{histogram}
<div class="bar">
  <button id="flicker" type="button">Flicker</button>
  <label><input type="checkbox" id="undo"> with the estimated shift undone</label>
  <span class="note">{shown}. What jumps is not aligned. A slider lays one picture over the
  other.</span>
</div>
<main>
"""

_FOOT = """
</main>
<footer>cmmfnet {version}. The estimate is made from edges;
  docs/folder.md says how well it does.</footer>
<script>
const button = document.getElementById("flicker");
const set = (paused) => {
  document.body.classList.toggle("paused", paused);
  button.textContent = paused ? "Flicker" : "Pause";
};
button.addEventListener("click", () => {
  const paused = !document.body.classList.contains("paused");
  if (!paused) for (const card of document.querySelectorAll(".still"))
  card.classList.remove("still");
  set(paused);
});
document.getElementById("undo").addEventListener("change", (event) =>
  document.body.classList.toggle("undone", event.target.checked));
for (const input of document.querySelectorAll("input[type=range]")) {
  const card = input.closest("article");
  const show = () => card.style.setProperty("--share", input.value / 100);
  input.addEventListener("input", () => { card.classList.add("still"); show(); });
  show();
}
set(matchMedia("(prefers-reduced-motion: reduce)").matches);
</script>
</body>
</html>
"""
