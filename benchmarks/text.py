"""The effect of text: right against wrong captions, the response to a swapped word, colour that
spills out of a word's thing, and the cost of text.

    python benchmarks/text.py captions --data DATA/pairs --pretrained WEIGHTS [--model cmmfnet]
    python benchmarks/text.py response [--data DATA/pairs] [--model A B C] [--sheet swaps.png]
    python benchmarks/text.py spill [--data DATA/pairs] [--model A B]
    python benchmarks/text.py cost [--model cmmfnet]

captions: PSNR, SSIM and LPIPS of the validation pairs of day and dusk without text, with right text
    (names; colours too), with predicted tags (also without those of light and sky), with the
    caption of another scene and with wrong colours and ground, and the paired differences to no
    text; 95 % bootstrap intervals, scenes drawn together.

response: one word is swapped (grass -> snow, tree without -> with leaves, grey -> red car, day ->
    night). Covered share of a region = 1 - |mean Lab with the new word - target| / |mean Lab with
    the old word - target|. On rendered scenes label map and target (the scene rendered anew) are
    exact; on pairs (--data) the region is what the label head of the bundled model finds in the
    thermal frame with a probability of .4, and the target is the picture with the old word,
    recoloured (made/recolour.py). The rest is all pixels farther than 4 px from the region; its
    change is the mean CIEDE2000. Medians over pictures. Beside the covered share stands that of a*
    and b* alone, since how light a scene is no word tells, and what one colour would cover, the
    mean target of the other pictures.

Several models are trainings of one recipe that differ in their seed: the mean over them, with an
interval by the same bootstrap over scenes (of a picture's mean, or of the seeds' mean median), and
the range of the seeds.

spill: "a red car", "a white house", "orange trees" and "snow" alone, against no text, on pictures
    of which at least 1 % is the thing (label maps as for response). Pixels that change by more than
    10 (CIEDE2000): their share of the thing, and of the pixels farther than 4 px from it; spill is
    the share of all such pixels that lie there. Each model has rows of its own.

cost: milliseconds a text, new and cached, and the time of a frame with text over that without,
    repeats interleaved.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from text_response import real, rendered, response
from text_spill import spill

from cmmfnet import Colorizer
from cmmfnet.data.pairs import Pairs
from cmmfnet.evaluation.intervals import mean_interval
from cmmfnet.evaluation.metrics import METRICS
from cmmfnet.evaluation.network_scores import score_all
from cmmfnet.text.colour_words import PAINT
from cmmfnet.text.vocabulary import EXTRA_WORDS

# --- captions

OPPOSITE = {
    "white": "black", "black": "white", "grey": "red", "red": "green", "green": "purple",
    "blue": "orange",
    "brown": "blue", "beige": "blue", "cream": "blue", "yellow": "purple", "orange": "blue",
    "pink": "green",
    "grass": "snow", "clear": "overcast", "overcast": "clear", "cloudy": "clear",
}  # fmt: skip


def wrong(text: str) -> str:
    """The text with its colours, sky and ground swapped for others."""
    return re.sub(r"[a-z]+", lambda m: OPPOSITE.get(m[0], m[0]), text.lower())


def light(meta: dict) -> str:
    sky = "" if meta["sky"] in (None, "none") else f", {meta['sky']}"
    return f"{meta['lighting']}{sky}"


def captions(colorizers: Sequence[Colorizer], data: str, pretrained: str | None, seed: int) -> dict:
    """Scores of all texts; those of a picture are the mean over the models."""
    pairs = Pairs(data, "val", ("day", "dusk"), ("roadscene", "house", "msrs"))
    metas = pairs.entries
    other = {}
    for i, meta in enumerate(
        metas
    ):  # the next scene of the same light, so that light is not what differs
        turn = [*metas[i + 1 :], *metas[:i]]
        other[meta["name"]] = next(
            (m for m in turn if m["lighting"] == meta["lighting"] and m != meta), meta
        )

    def coloured(meta: dict) -> str:
        return f"{meta['colour_caption']} {light(meta)}"

    texts: dict[str, Callable[[dict], str]] = {
        "none": lambda meta: "",
        "light": light,
        "right names": lambda meta: f"{', '.join(meta['tags'])}, {light(meta)}",
        "right names and colours": coloured,
        "another scene's": lambda meta: f"{other[meta['name']]['colour_caption']} {light(meta)}",
        "wrong colours and ground": lambda meta: wrong(coloured(meta)),
    }

    def methods(colorizer: Colorizer) -> dict:
        def predicted(thermal: np.ndarray, left_out: Sequence[str] = ()) -> np.ndarray:
            names = [
                n
                for n, p in colorizer.tags(thermal, 16, span=(-1, 1))
                if p > colorizer.traits.tag_threshold
            ]
            return colorizer(
                thermal, text=", ".join(n for n in names if n not in left_out), span=(-1, 1)
            )

        def with_text(make: Callable[[dict], str]):
            return lambda thermal, meta: colorizer(thermal, text=make(meta), span=(-1, 1))

        return {name: with_text(make) for name, make in texts.items()} | {
            "predicted tags": lambda thermal, _: predicted(thermal),
            "predicted things": lambda thermal, _: predicted(thermal, EXTRA_WORDS),
        }

    seeds = [score_all(methods(colorizer), pairs, pretrained) for colorizer in colorizers]
    first = seeds[0]["none"]
    names = [name for name in ("psnr", "ssim", "lpips") if name in first[0]]
    clusters = [str(row["sequence"] or row["name"]) for row in first]
    result = {"pairs": len(pairs), "scores": {}}
    spread = "; (lowest to highest mean of a seed)" if len(seeds) > 1 else ""
    print(
        f"{len(pairs)} pairs, {len(set(clusters))} scenes; mean, difference to no text [95 % "
        f"interval]{spread}"
    )
    print("| text | " + " | ".join(f"{METRICS[n].title} | difference" for n in names) + " |")
    print("| --- |" + " --- |" * (2 * len(names)))
    for method in seeds[0]:
        cells, line = result["scores"].setdefault(method, {}), []
        for name in names:
            values, none = (
                np.array([[float(row[name]) for row in found[m]] for found in seeds])
                for m in (method, "none")
            )
            difference = (values - none).mean(axis=0).tolist()
            interval = mean_interval(difference, [1.0] * len(difference), clusters, seed=seed)
            each = values.mean(axis=1).tolist()
            cells[name] = {
                "mean": float(np.mean(each)), "difference": float(np.mean(difference)),
                "interval": interval, "seeds": each,
            }  # fmt: skip
            d = METRICS[name].decimals
            low, high = interval or (float("nan"),) * 2
            seen = f" ({min(each):.{d}f} to {max(each):.{d}f})" if len(each) > 1 else ""
            line.append(
                f"{np.mean(each):.{d}f}{seen} | {np.mean(difference):+.{d}f} [{low:+.{d}f}, "
                f"{high:+.{d}f}]"
            )
        print(f"| {method} | " + " | ".join(line) + " |")
    return result


# --- cost


def cost(colorizer: Colorizer, repeats: int) -> dict:
    texts = [f"a {c} car on a road, trees, a {d} house, night" for c in PAINT for d in PAINT]

    def milliseconds(call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1000

    with torch.inference_mode():
        new = [milliseconds(lambda t=t: colorizer.text_input(t)) for t in texts]
        again = [milliseconds(lambda: colorizer.text_input(texts[-1])) for _ in range(1000)]
    frame = (np.random.default_rng(0).random((256, 320)) * 1000).astype(np.uint16)
    calls = {
        "without": lambda: colorizer(frame, text=""),
        "with": lambda: colorizer(frame, text=texts[-1]),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            spent = milliseconds(call)
            if turn:
                times[name].append(spent)
    result = {
        "new_text_ms": statistics.median(new), "cached_text_ms": statistics.median(again),
        "frame_without_ms": statistics.median(times["without"]),
        "frame_with_ms": statistics.median(times["with"]),
        "ratio": statistics.median(
            b / a for a, b in zip(times["without"], times["with"], strict=True)
        ),
    }  # fmt: skip
    print(
        f"a new text {result['new_text_ms']:.2f} ms, a cached one {result['cached_text_ms']:.4f} ms"
    )
    print(
        f"a 320x256 frame: {result['frame_without_ms']:.0f} ms without text, with text "
        f"{result['ratio']:.2f} times that"
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("captions", "response", "spill", "cost"))
    parser.add_argument(
        "--model", nargs="+", default=["cmmfnet"], help="several: trainings of one recipe"
    )
    parser.add_argument("--data")
    parser.add_argument("--pretrained")
    parser.add_argument(
        "--scenes", type=int, default=24, help="rendered scenes for response and spill; 0: none"
    )
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    colorizers = [
        Colorizer.from_pretrained(
            model, device=options.device, dtype=torch.float32, guidance=options.guidance
        )
        for model in options.model
    ]
    named = ", ".join(colorizer.name for colorizer in colorizers)
    print(
        f"{named}, guidance {options.guidance}, {colorizers[0].device}, torch "
        f"{torch.__version__}, {platform.machine()}"
    )
    result: dict = {"model": options.model, "guidance": options.guidance}
    if options.what == "captions":
        if options.data is None:
            parser.error("captions needs --data, the folder of pairs")
        result |= captions(colorizers, options.data, options.pretrained, options.seed)
    elif options.what == "cost":
        result |= cost(colorizers[0], options.repeats)
    else:
        sheet: list[np.ndarray] = []
        sets = {}
        if options.scenes:
            sets["rendered"] = rendered(options.scenes, (256, 320)), "rendered scenes"
        if options.data is not None:
            judge = Colorizer.from_pretrained(device="cpu", dtype=torch.float32)
            sets["pairs"] = real(options.data, judge), "validation pairs"
        for name, (cases, where) in sets.items():
            if options.what == "spill":
                result[name] = spill(colorizers, cases, where)
            else:
                result[name] = response(colorizers, cases, where, sheet)
        if options.sheet and sheet:
            Image.fromarray(np.concatenate(sheet)).save(options.sheet)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
