"""The response of text.py: one word of a text is swapped, and the colour that its thing should take
is measured.

text.py says how; here are the swaps, the pictures and the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from cmmfnet import Colorizer
from cmmfnet.data.made.lab import to_lab
from cmmfnet.data.made.recolour import foliage, nightfall, paint, painted_surface, snow
from cmmfnet.data.pairs import Pairs
from cmmfnet.data.scenes import render, repaint
from cmmfnet.evaluation.network_scores import centre_crops
from cmmfnet.text.colour_words import FOLIAGE, PAINT
from cmmfnet.text.labels import CLASSES
from cmmfnet.thermal.stretch import normalise


@dataclass(frozen=True)
class Swap:
    """``classes``: what the region is (empty: the whole frame). ``old``, ``new``: what the text
    says of it. ``silent``: names that the rest of the text leaves out. ``recolour``: (picture,
    label) -> the target; ``repaint``: keywords of repaint."""

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
        ("vegetation",), "a tree without leaves", "a tree with leaves",
        ("tree", "bush", "leaves", "branch", "plant-other"),
        lambda picture, label: paint(
            picture, foliage(picture, _region(label, ("vegetation",))), FOLIAGE["green"],
            variety=0.35
        ),
        {"trees": "green"},
    ),
    "grey -> red car": Swap(
        ("car",), "a grey car", "a red car", ("car",),
        lambda picture,
        label: paint(picture, painted_surface(picture, _region(label, ("car",))), PAINT["red"]),
        {"cars": (150, 20, 25)},
    ),
    "day -> night": Swap(
        (), "day", "night", (),
        lambda picture, label: nightfall(picture, label, "night", np.random.default_rng(0)),
        {"lighting": "night"},
    ),
}  # fmt: skip
LEAST_REGION, LEAST_DISTANCE, MARGIN = 0.01, 8.0, 4


@dataclass
class Case:
    """One picture: thermal (H,W) in [-1,1], label (H,W), the names in it, its scene; repaint:
    keywords -> the true target."""

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
    """The validation pairs of day and dusk, with the regions that ``judge`` finds in the thermal
    frame."""
    for thermal, _, meta in centre_crops(
        Pairs(data, "val", ("day", "dusk"), ("roadscene", "house", "msrs"))
    ):
        with torch.inference_mode():
            _, _, logits = judge.network(torch.from_numpy(thermal)[None, None], heads=True)
            share = torch.nn.functional.interpolate(
                logits.float().softmax(dim=1), thermal.shape, mode="bilinear", align_corners=False
            )[0]
        likely, label = share.max(dim=0)
        label = torch.where(likely >= 0.4, label, 0).numpy().astype(np.uint8)
        yield Case(thermal, label, meta["tags"], meta["sequence"] or meta["name"], None)


def response(
    colorizers: Sequence[Colorizer], cases: Iterator[Case], where: str, sheet: list[np.ndarray]
) -> dict:
    """What swaps come to for one model, or for several trainings of one; ``sheet`` gets rows of
    pictures of the first."""
    found: dict[str, list[dict]] = {name: [] for name in SWAPS}
    left_out = dict.fromkeys(SWAPS, 0)
    for case in cases:
        for name, swap in SWAPS.items():
            region = _region(case.label, swap.classes)
            if region.mean() < LEAST_REGION:
                continue
            target = case.repaint(swap.repaint) if case.repaint else None
            made = [_swapped(colorizer, case, swap, region, target) for colorizer in colorizers]
            if any(one is None for one in made):
                left_out[name] += 1
                continue
            found[name].append({"scene": case.scene, "seeds": [row for row, _ in made]})
            if len(found[name]) <= 3:
                sheet.append(np.concatenate([_fit(picture) for picture in made[0][1]], axis=1))
    result = {}
    several = len(colorizers) > 1
    print(
        f"{where}: median [95 % interval by scene]{' (lowest to highest seed)' if several else ''}"
    )
    print(
        "| swap | pictures | left out | covered share | of a*, b* alone | rest, CIEDE2000 | "
        "covered by one colour for all |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, rows in found.items():
        by_seed = [[row["seeds"][k] for row in rows] for k in range(len(colorizers))]
        rests = [[one["rest"] for one in seed if one["rest"] is not None] for seed in by_seed]
        cell = {
            "pictures": len(rows), "left_out": left_out[name],
            "covered": medians([[one["covered"] for one in seed] for seed in by_seed]),
            "covered_ab": medians([[one["covered_ab"] for one in seed] for seed in by_seed]),
            "rest": medians(rests),
            "one_colour": medians([_by_one_colour(seed) for seed in by_seed]),
        }  # fmt: skip
        result[name] = cell | {"rows": rows}
        cells = " | ".join(
            _show(cell[key]) for key in ("covered", "covered_ab", "rest", "one_colour")
        )
        print(f"| {name} | {len(rows)} | {left_out[name]} | {cells} |")
    return result


def _swapped(
    colorizer: Colorizer, case: Case, swap: Swap, region: np.ndarray, target: np.ndarray | None
) -> tuple[dict, list[np.ndarray]] | None:
    """Numbers of one swap, and thermal frame, old, new and target picture; None where the old has
    the new colour already."""
    from scipy.ndimage import binary_dilation
    from skimage.color import deltaE_ciede2000

    others = [t for t in case.tags if t not in swap.silent][:6]
    light = ["day"] if swap.classes else []
    old, new = (
        colorizer(case.thermal, text=", ".join([said, *others, *light]), span=(-1, 1))
        for said in (swap.old, swap.new)
    )
    target = swap.recolour(old, case.label) if target is None else target
    lab_old, lab_new, lab_target = to_lab(old), to_lab(new), to_lab(target)
    was, now, goal = (lab[region].mean(axis=0) for lab in (lab_old, lab_new, lab_target))
    before = float(np.linalg.norm(was - goal))
    if before < LEAST_DISTANCE:
        return None
    after = float(np.linalg.norm(now - goal))
    rest = ~binary_dilation(region, iterations=MARGIN)
    change = float(deltaE_ciede2000(lab_old, lab_new)[rest].mean()) if rest.mean() > 0.05 else None
    labs = {"old": was.tolist(), "new": now.tolist(), "target": goal.tolist()}
    grey = ((case.thermal + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
    pictures = [np.repeat(grey[..., None], 3, axis=2), old, new, target]
    in_plane = float(np.linalg.norm((now - goal)[1:]) / max(np.linalg.norm((was - goal)[1:]), 1.0))
    return {
        "covered": 1 - after / before,
        "covered_ab": 1 - in_plane,
        "rest": change,
        **labs,
    }, pictures


def _by_one_colour(rows: list[dict]) -> list[float]:
    """Covered share of each picture, had its region become the mean target of the other pictures:
    what can be had by somebody who knows the word, and not how this picture was painted."""
    old, target = (np.array([row[key] for row in rows]) for key in ("old", "target"))
    if len(rows) < 2:
        return []
    others = (target.sum(axis=0) - target) / (len(rows) - 1)
    return (
        1 - np.linalg.norm(others - target, axis=1) / np.linalg.norm(old - target, axis=1)
    ).tolist()


def _fit(picture: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((240, 192), Image.Resampling.BILINEAR))


def medians(seeds: Sequence[Sequence[float]]) -> dict | None:
    """The mean over seeds of their medians over pictures, its bootstrap interval and the medians;
    None without pictures.

    Every picture is a scene of its own in both sets, so pictures are what is drawn, the same for
    all seeds.
    """
    values = np.array(seeds, float)
    if not values.size:
        return None
    drawn = np.random.default_rng(0).integers(values.shape[1], size=(2000, values.shape[1]))
    draws = np.median(values[:, drawn], axis=2).mean(axis=0)
    each = np.median(values, axis=1)
    return {
        "median": float(each.mean()),
        "interval": np.quantile(draws, [0.025, 0.975]).tolist(),
        "seeds": each.tolist(),
    }


def _show(cell: dict | None) -> str:
    if cell is None:
        return "-"
    spread = (
        f" ({min(cell['seeds']):.2f} to {max(cell['seeds']):.2f})" if len(cell["seeds"]) > 1 else ""
    )
    return f"{cell['median']:.2f} [{cell['interval'][0]:.2f}, {cell['interval'][1]:.2f}]{spread}"
