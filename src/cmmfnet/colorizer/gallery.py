"""One self-contained HTML page to compare thermal pictures with their colours, by a slider over
each."""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmmfnet import __version__
from cmmfnet.files.atomic import atomic_write
from cmmfnet.files.page import data_url


@dataclass(frozen=True)
class Item:
    """One row of the page."""

    name: str
    thermal: np.ndarray  # (H, W) or (H, W, 3) uint8
    colour: np.ndarray  # (H, W, 3) uint8
    caption: str = ""
    truth: np.ndarray | None = None  # (H, W, 3) uint8, where the real colours are known


def write_gallery(path: str | Path, items: Iterable[Item], title: str) -> Path:
    """Write the page, completely or not at all. Nothing in it is loaded from anywhere else; the
    page forbids it.

    Args:
        path: the .html file; pictures go into it as JPEG, at most 640 px wide and high.
        items: may be a generator; one picture at a time is held.
        title: plain text, as are names and captions.

    Raises:
        OSError: the folder cannot be written to.
    """
    path = Path(path)
    with atomic_write(path, text=True, durable=False) as file:
        file.write(_HEAD.replace("{title}", html.escape(title)))
        for item in items:
            file.write(_card(item))
        file.write(_FOOT.replace("{version}", __version__))
    return path


def _card(item: Item) -> str:
    name, height, width = html.escape(item.name), *item.colour.shape[:2]
    caption = f"<p>{html.escape(item.caption)}</p>" if item.caption else ""
    truth = ""
    if item.truth is not None:
        truth = f'<figure><img src="{data_url(item.truth)}" alt="{name}, true colours" loading="lazy"><b>truth</b></figure>'
    return f"""
<article{' class="pair"' if truth else ""}>
  <div class="pictures">
    <figure class="compare" style="aspect-ratio:{width}/{height}">
      <img src="{data_url(item.colour)}" alt="{name}, coloured" loading="lazy">
      <img class="top" src="{data_url(item.thermal)}" alt="{name}, thermal" loading="lazy">
      <b>thermal</b><b class="right">colour</b>
      <input type="range" min="0" max="100" value="50" step="any" aria-label="{name}: share of
  thermal shown">
    </figure>
    {truth}
  </div>
  <header><h2>{name}</h2><span>{width} × {height}</span>{caption}</header>
</article>
"""


# An invisible range input holds the position, for keyboards and screen readers. Pointers are
# followed by hand, because on iOS a range input moves only when its thumb itself is hit.
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
  --accent: #d9480f; }
@media (prefers-color-scheme: dark) {
  :root { --page: #131416; --card: #1c1e21; --ink: #ececea; --soft: #9a9da3; --line: #2c2f33;
  --accent: #ff922b; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1440px; padding: 2.5rem clamp(1rem, 4vw, 3rem);
  background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { margin: 0 0 .25rem; font-size: clamp(1.4rem, 3vw, 2rem); line-height: 1.2;
  letter-spacing: -.015em;
  overflow-wrap: anywhere; }
.note { margin: 0 0 2rem; max-width: 62ch; color: var(--soft); }
main { display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr));
  align-items: start; }
article { overflow: hidden; background: var(--card); border: 1px solid var(--line);
  border-radius: 14px; }
.pair { grid-column: span 2; }
@media (max-width: 900px) { .pair { grid-column: auto; } }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr));
  gap: 2px; }
figure { position: relative; margin: 0; min-width: 0; overflow: hidden; }
figure img { display: block; width: 100%; height: 100%; object-fit: cover; }
.compare .top { position: absolute; inset: 0; clip-path: inset(0 calc(100% - var(--at, 50%)) 0 0); }
.compare { cursor: ew-resize; touch-action: pan-y; user-select: none; }
.compare::after { content: ""; position: absolute; top: 0; bottom: 0; left: var(--at, 50%);
  width: 2px;
  margin-left: -1px; background: #fff; box-shadow: 0 0 6px #0008; pointer-events: none; }
.compare::before { content: "⇆"; position: absolute; z-index: 1; top: 50%; left: var(--at, 50%);
  width: 36px; height: 36px; margin: -18px; border-radius: 50%; background: #fff; color: #222;
  box-shadow: 0 1px 8px #0007; text-align: center;
  font: 18px/35px system-ui, sans-serif; pointer-events: none; }
.compare:focus-within { outline: 3px solid var(--accent); outline-offset: -3px; }
.compare input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0;
  pointer-events: none; }
figure b { position: absolute; bottom: .6rem; left: .6rem; padding: .1rem .5rem;
  border-radius: 99px; background: #000a;
  color: #fff; font-size: .72rem; font-weight: 600; pointer-events: none; }
figure b.right { left: auto; right: .6rem; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 .75rem;
  padding: .8rem 1rem .9rem; }
h2 { margin: 0; font-size: 1rem; font-weight: 600; overflow-wrap: anywhere; }
header span, header p { color: var(--soft); font-size: .86rem; font-variant-numeric: tabular-nums; }
header p { flex-basis: 100%; margin: .1rem 0 0; overflow-wrap: anywhere; }
footer { margin-top: 2.5rem; color: var(--soft); font-size: .86rem; }
</style>
<h1>{title}</h1>
<p class="note">The colours are a plausible guess by a model, not measured: a thermal camera does
  not see
colour. Drag across a picture, or use the arrow keys, to compare.</p>
<main>
"""

_FOOT = """
</main>
<footer>cmmfnet {version}</footer>
<script>
for (const input of document.querySelectorAll("input[type=range]")) {
  const picture = input.parentElement;
  const show = () => picture.style.setProperty("--at", input.value + "%");
  const follow = (event) => {
    const box = picture.getBoundingClientRect();
    input.value = 100 * (event.clientX - box.left) / box.width;
    show();
  };
  picture.addEventListener("pointerdown", (event) => {
    picture.setPointerCapture(event.pointerId);
    event.preventDefault();
    input.focus({ preventScroll: true });
    follow(event);
  });
  picture.addEventListener("pointermove", (event) => {
    if (picture.hasPointerCapture(event.pointerId)) follow(event);
  });
  input.addEventListener("input", show);
  input.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -5, ArrowDown: -5, ArrowRight: 5, ArrowUp: 5 }[event.key];
    if (!step) return;
    input.value = +input.value + step;
    show();
    event.preventDefault();
  });
  show();
}
</script>
</html>
"""
