"""What a model makes of text: right against wrong captions, the response to a swapped word, and what text costs.

    python benchmarks/text.py captions --data DATA/pairs --pretrained WEIGHTS [--model cmmfnet]
    python benchmarks/text.py response [--data DATA/pairs] [--model cmmfnet] [--sheet swaps.png]
    python benchmarks/text.py cost [--model cmmfnet]

captions: PSNR, SSIM and LPIPS of the validation pairs of day and dusk without text, with right text (names; colours too),
with predicted tags, with the caption of another scene and with wrong colours and ground, and the paired differences to
no text; 95 % bootstrap intervals, scenes drawn together.

response: one word is swapped (grass -> snow, tree without -> with leaves, grey -> red car, day -> night). Covered share of a
region = 1 - |mean Lab with the new word - target| / |mean Lab with the old word - target|. On rendered scenes label map and
target (the scene rendered anew) are exact; on pairs (--data) the region is what the label head of the bundled model finds in
the thermal frame with a probability of .4, and the target is the picture with the old word, recoloured (data/recolour.py).
The rest is all pixels farther than 4 px from the region; its change is the mean CIEDE2000. Medians over pictures. Beside the
covered share stands what one colour would cover, the mean target of the other pictures.

cost: milliseconds a text, new and cached, and the time of a frame with text over that without, repeats interleaved.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cmmfnet import Colorizer
from cmmfnet.data.colour_words import FOLIAGE, PAINT
from cmmfnet.data.lab import to_lab
from cmmfnet.data.pairs import Pairs
from cmmfnet.data.recolour import foliage, nightfall, paint, painted_surface, snow
from cmmfnet.data.scene_repaint import repaint
from cmmfnet.data.scenes import CLASSES, render
from cmmfnet.evaluate import centre_crops, score_all
from cmmfnet.intervals import mean_interval, percentile_interval
from cmmfnet.metrics import METRICS
from cmmfnet.thermal import normalise

# --- captions

OPPOSITE = {
    "white": "black", "black": "white", "grey": "red", "red": "green", "green": "purple", "blue": "orange",
    "brown": "blue", "beige": "blue", "cream": "blue", "yellow": "purple", "orange": "blue", "pink": "green",
    "grass": "snow", "clear": "overcast", "overcast": "clear", "cloudy": "clear",
}  # fmt: skip


def wrong(text: str) -> str:
    """The text with its colours, sky and ground swapped for others."""
    return re.sub(r"[a-z]+", lambda m: OPPOSITE.get(m[0], m[0]), text.lower())


def light(meta: dict) -> str:
    sky = "" if meta["sky"] in (None, "none") else f", {meta['sky']}"
    return f"{meta['lighting']}{sky}"


def captions(colorizer: Colorizer, data: str, pretrained: str | None, seed: int) -> dict:
    pairs = Pairs(data, "val", ("day", "dusk"), ("roadscene", "house", "msrs"))
    metas = pairs.entries
    other = {}
    for i, meta in enumerate(metas):  # the next scene of the same light, so that light is not what differs
        turn = [*metas[i + 1 :], *metas[:i]]
        other[meta["name"]] = next((m for m in turn if m["lighting"] == meta["lighting"] and m != meta), meta)

    def with_text(make: Callable[[dict], str]):
        return lambda thermal, meta: colorizer(thermal, text=make(meta), span=(-1, 1))

    def predicted(thermal: np.ndarray, _: dict) -> np.ndarray:
        names = [n for n, p in colorizer.tags(thermal, 16, span=(-1, 1)) if p > colorizer.network.tag_threshold]
        return colorizer(thermal, text=", ".join(names), span=(-1, 1))

    def coloured(meta: dict) -> str:
        return f"{meta['colour_caption']} {light(meta)}"

    methods = {
        "none": with_text(lambda meta: ""),
        "light": with_text(light),
        "right names": with_text(lambda meta: f"{', '.join(meta['tags'])}, {light(meta)}"),
        "right names and colours": with_text(coloured),
        "predicted tags": predicted,
        "another scene's": with_text(lambda meta: f"{other[meta['name']]['colour_caption']} {light(meta)}"),
        "wrong colours and ground": with_text(lambda meta: wrong(coloured(meta))),
    }
    rows = score_all(methods, pairs, pretrained)
    names = [name for name in ("psnr", "ssim", "lpips") if name in rows["none"][0]]
    clusters = [str(row["sequence"] or row["name"]) for row in rows["none"]]
    result = {"pairs": len(pairs), "scores": {}}
    print(f"{len(pairs)} pairs, {len(set(clusters))} scenes; mean, and difference to no text [95 % interval]")
    print("| text | " + " | ".join(f"{METRICS[n].title} | difference" for n in names) + " |")
    print("| --- |" + " --- |" * (2 * len(names)))
    for method, found in rows.items():
        cells = result["scores"].setdefault(method, {})
        for name in names:
            values = [float(row[name]) for row in found]
            difference = [v - float(row[name]) for v, row in zip(values, rows["none"], strict=True)]
            interval = mean_interval(difference, [1.0] * len(values), clusters, seed=seed)
            cells[name] = {
                "mean": float(np.mean(values)),
                "difference": float(np.mean(difference)),
                "interval": interval,
            }
        line = []
        for name, cell in cells.items():
            d = METRICS[name].decimals
            low, high = cell["interval"] or (float("nan"),) * 2
            line.append(f"{cell['mean']:.{d}f} | {cell['difference']:+.{d}f} [{low:+.{d}f}, {high:+.{d}f}]")
        print(f"| {method} | " + " | ".join(line) + " |")
    return result


# --- response


@dataclass(frozen=True)
class Swap:
    """``classes``: what the region is (empty: the whole frame). ``old``, ``new``: what the text says of it. ``silent``: names
    that the rest of the text leaves out. ``recolour``: (picture, label) -> the target; ``repaint``: keywords of repaint."""

    classes: tuple[str, ...]
    old: str
    new: str
    silent: tuple[str, ...]
    recolour: Callable[[np.ndarray, np.ndarray], np.ndarray]
    repaint: dict


def _region(label: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    ids = [CLASSES.index(name) for name in classes]
    return np.isin(label, ids) if ids else np.ones(label.shape, bool)


SWAPS: dict[str, Swap] = {
    "grass -> snow": Swap(
        ("grass",), "grass", "snow", ("grass", "dirt", "snow", "playingfield"),
        lambda picture, label: snow(picture, _region(label, ("grass",))), {"ground": "snow"},
    ),
    "tree without -> with leaves": Swap(
        ("vegetation",), "a tree without leaves", "a tree with leaves", ("tree", "bush", "leaves", "branch", "plant-other"),
        lambda picture, label: paint(
            picture, foliage(picture, _region(label, ("vegetation",))), FOLIAGE["green"], variety=0.35
        ),
        {"trees": "green"},
    ),
    "grey -> red car": Swap(
        ("car",), "a grey car", "a red car", ("car",),
        lambda picture, label: paint(picture, painted_surface(picture, _region(label, ("car",))), PAINT["red"]),
        {"cars": (150, 20, 25)},
    ),
    "day -> night": Swap(
        (), "day", "night", (),
        lambda picture, label: nightfall(picture, label, "night", np.random.default_rng(0)), {"lighting": "night"},
    ),
}  # fmt: skip
LEAST_REGION, LEAST_DISTANCE, MARGIN = 0.01, 8.0, 4


@dataclass
class Case:
    """One picture: thermal (H,W) in [-1,1], label (H,W), the names in it, its scene; repaint: keywords -> the true target."""

    thermal: np.ndarray
    label: np.ndarray
    tags: list[str]
    scene: str
    repaint: Callable[[dict], np.ndarray] | None


def rendered(count: int, size: tuple[int, int]) -> Iterator[Case]:
    """Day scenes of seeds from 500 on: training has those from 10,000 on."""
    for seed in range(500, 500 + count):
        scene = render(seed, size=size, lighting="day")
        label = scene.labels
        yield Case(
            normalise(scene.thermal.astype(np.float32)), label, scene.tags, f"seed {seed}",
            lambda change, seed=seed, kind=scene.kind: repaint(seed, kind, size, **change),
        )  # fmt: skip


def real(data: str, judge: Colorizer) -> Iterator[Case]:
    """The validation pairs of day and dusk, with the regions that ``judge`` finds in the thermal frame."""
    for thermal, _, meta in centre_crops(Pairs(data, "val", ("day", "dusk"), ("roadscene", "house", "msrs"))):
        with torch.inference_mode():
            _, _, logits = judge.network(torch.from_numpy(thermal)[None, None], heads=True)
            share = torch.nn.functional.interpolate(
                logits.float().softmax(dim=1), thermal.shape, mode="bilinear", align_corners=False
            )[0]
        likely, label = share.max(dim=0)
        label = torch.where(likely >= 0.4, label, 0).numpy().astype(np.uint8)
        yield Case(thermal, label, meta["tags"], meta["sequence"] or meta["name"], None)


def response(colorizer: Colorizer, cases: Iterator[Case], where: str, sheet: list[np.ndarray]) -> dict:
    from scipy.ndimage import binary_dilation
    from skimage.color import deltaE_ciede2000

    found: dict[str, list[dict]] = {name: [] for name in SWAPS}
    left_out = dict.fromkeys(SWAPS, 0)
    for case in cases:
        for name, swap in SWAPS.items():
            region = _region(case.label, swap.classes)
            if region.mean() < LEAST_REGION:
                continue
            others = [t for t in case.tags if t not in swap.silent][:6]
            old, new = (
                colorizer(
                    case.thermal, text=", ".join([said, *others, *(["day"] if swap.classes else [])]), span=(-1, 1)
                )
                for said in (swap.old, swap.new)
            )
            target = case.repaint(swap.repaint) if case.repaint else swap.recolour(old, case.label)
            lab_old, lab_new, lab_target = to_lab(old), to_lab(new), to_lab(target)
            was, now, goal = (lab[region].mean(axis=0) for lab in (lab_old, lab_new, lab_target))
            before = float(np.linalg.norm(was - goal))
            if before < LEAST_DISTANCE:  # it has that colour already
                left_out[name] += 1
                continue
            after = float(np.linalg.norm(now - goal))
            rest = ~binary_dilation(region, iterations=MARGIN)
            change = float(deltaE_ciede2000(lab_old, lab_new)[rest].mean()) if rest.mean() > 0.05 else None
            labs = {"old": was.tolist(), "new": now.tolist(), "target": goal.tolist()}
            found[name].append({"scene": case.scene, "covered": 1 - after / before, "rest": change, **labs})
            if len(found[name]) <= 3:
                grey = ((case.thermal + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
                row = [np.repeat(grey[..., None], 3, axis=2), old, new, target]
                sheet.append(np.concatenate([_fit(p) for p in row], axis=1))
    result = {}
    print(f"{where}: median [95 % interval by scene]")
    print("| swap | pictures | left out | covered share | rest, CIEDE2000 | covered by one colour for all |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, rows in found.items():
        covered = [row["covered"] for row in rows]
        rest = [row["rest"] for row in rows if row["rest"] is not None]
        cell = {"pictures": len(rows), "left_out": left_out[name], "covered": _median(covered), "rest": _median(rest)}
        cell["one_colour"] = _median(_by_one_colour(rows))
        result[name] = cell | {"rows": rows}
        cells = " | ".join(_show(cell[key]) for key in ("covered", "rest", "one_colour"))
        print(f"| {name} | {len(rows)} | {left_out[name]} | {cells} |")
    return result


def _by_one_colour(rows: list[dict]) -> list[float]:
    """Covered share of each picture, had its region become the mean target of the other pictures: what can be had by
    somebody who knows the word, and not how this picture was painted."""
    old, target = (np.array([row[key] for row in rows]) for key in ("old", "target"))
    if len(rows) < 2:
        return []
    others = (target.sum(axis=0) - target) / (len(rows) - 1)
    return (1 - np.linalg.norm(others - target, axis=1) / np.linalg.norm(old - target, axis=1)).tolist()


def _fit(picture: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((240, 192), Image.Resampling.BILINEAR))


def _median(values: list[float]) -> dict | None:
    """Every picture is a scene of its own in both sets, so pictures are what is drawn."""
    if not values:
        return None
    draws = np.random.default_rng(0).choice(values, (2000, len(values)))
    return {"median": float(np.median(values)), "interval": percentile_interval(np.median(draws, axis=1))}


def _show(cell: dict | None) -> str:
    return f"{cell['median']:.2f} [{cell['interval'][0]:.2f}, {cell['interval'][1]:.2f}]" if cell else "-"


# --- cost


def cost(colorizer: Colorizer, repeats: int) -> dict:
    texts = [f"a {c} car on a road, trees, a {d} house, night" for c in PAINT for d in PAINT]

    def milliseconds(call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1000

    with torch.inference_mode():
        new = [milliseconds(lambda t=t: colorizer._text(t)) for t in texts]
        again = [milliseconds(lambda: colorizer._text(texts[-1])) for _ in range(1000)]
    frame = (np.random.default_rng(0).random((256, 320)) * 1000).astype(np.uint16)
    calls = {"without": lambda: colorizer(frame, text=""), "with": lambda: colorizer(frame, text=texts[-1])}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            spent = milliseconds(call)
            if turn:
                times[name].append(spent)
    result = {
        "new_text_ms": statistics.median(new), "cached_text_ms": statistics.median(again),
        "frame_without_ms": statistics.median(times["without"]), "frame_with_ms": statistics.median(times["with"]),
        "ratio": statistics.median(b / a for a, b in zip(times["without"], times["with"], strict=True)),
    }  # fmt: skip
    print(f"a new text {result['new_text_ms']:.2f} ms, a cached one {result['cached_text_ms']:.4f} ms")
    print(
        f"a 320x256 frame: {result['frame_without_ms']:.0f} ms without text, with text {result['ratio']:.2f} times that"
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("captions", "response", "cost"))
    parser.add_argument("--model", default="cmmfnet")
    parser.add_argument("--data")
    parser.add_argument("--pretrained")
    parser.add_argument("--scenes", type=int, default=24, help="rendered scenes for response; 0 leaves them out")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    colorizer = Colorizer.from_pretrained(
        options.model, device=options.device, dtype=torch.float32, guidance=options.guidance
    )
    print(
        f"{colorizer.name}, guidance {options.guidance}, {colorizer.device}, torch {torch.__version__}, {platform.machine()}"
    )
    result: dict = {"model": str(options.model), "guidance": options.guidance}
    if options.what == "captions":
        if options.data is None:
            parser.error("captions needs --data, the folder of pairs")
        result |= captions(colorizer, options.data, options.pretrained, options.seed)
    elif options.what == "cost":
        result |= cost(colorizer, options.repeats)
    else:
        sheet: list[np.ndarray] = []
        if options.scenes:
            result["rendered"] = response(colorizer, rendered(options.scenes, (256, 320)), "rendered scenes", sheet)
        if options.data is not None:
            judge = Colorizer.from_pretrained(device="cpu", dtype=torch.float32)
            result["pairs"] = response(colorizer, real(options.data, judge), "validation pairs", sheet)
        if options.sheet and sheet:
            Image.fromarray(np.concatenate(sheet)).save(options.sheet)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
