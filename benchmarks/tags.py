"""How good the predicted tags are: mean average precision on pairs, and what corrections would have
to put right.

    python benchmarks/tags.py --data DATA/pairs --sources roadscene,house,msrs --lighting day,dusk

Each frame is cut as `cmmfnet evaluate` cuts it and goes through the tag head alone, in float32.
Average precision of a name is the mean, over the frames that have it (their hand-written tags,
lighting and sky), of the precision at their rank among all frames sorted by that name's probability
(the definition of TREC and of scikit-learn, without interpolation; equal probabilities rank in the
worst order). The 20 commonest names of things in the frames are averaged (of equally common ones
the first in the vocabulary), and once more the 20 commonest with the words of light and sky among
them, which are common and easier; the interval is a bootstrap over sequences (intervals.py
says why), names fixed. What chance would give is the share of frames that have a name.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from cmmfnet.data.pairs import Pairs
from cmmfnet.evaluation.protocol import DEFAULT_GEOMETRY, GEOMETRIES, frame
from cmmfnet.methods.traits import traits_of
from cmmfnet.text.vocabulary import COCO_STUFF, LIGHTINGS, SKIES
from cmmfnet.weights.files import describe, load_model

RESAMPLES = 2_000


def average_precision(score: np.ndarray, truth: np.ndarray) -> float:
    """score (N,) float, truth (N,) bool with at least one True -> in (0, 1]."""
    order = np.lexsort((truth, -score))  # of equal scores those without the name first
    hits = truth[order]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].mean())


def mean_average_precision(scores: np.ndarray, truths: np.ndarray) -> float:
    """scores and truths (N, names) -> the mean over the names that occur; NaN where none does."""
    values = [average_precision(s, t) for s, t in zip(scores.T, truths.T, strict=True) if t.any()]
    return float(np.mean(values)) if values else float("nan")


def predictions(network: torch.nn.Module, pairs: Pairs) -> np.ndarray:
    """(N, words) float32: the probability of every word of the network in every frame."""
    rows = []
    with torch.inference_mode():
        for i in range(len(pairs)):
            thermal = frame(pairs, i, DEFAULT_GEOMETRY)[0]
            rows.append(network.predict_tags(torch.from_numpy(thermal)[None, None])[0].numpy())
    return np.stack(rows)


def interval(
    scores: np.ndarray, truths: np.ndarray, clusters: list[str], seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap over whole clusters of the mean average precision."""
    members = [np.flatnonzero(np.array(clusters) == cluster) for cluster in dict.fromkeys(clusters)]
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(RESAMPLES):
        rows = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        values.append(mean_average_precision(scores[rows], truths[rows]))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="cmmfnet")
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--sources", help="with commas between")
    parser.add_argument("--lighting", help="with commas between")
    parser.add_argument(
        "--names", type=int, default=20, help="how many of the commonest names are averaged"
    )
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    given = parser.parse_args()
    listed = {
        key: tuple(value.split(","))
        for key in ("sources", "lighting")
        if (value := getattr(given, key))
    }
    pairs = Pairs(given.data, split=given.split, **listed)
    network = load_model(given.model).network.eval()
    words = list(network.words)
    probabilities = predictions(network, pairs)

    said = [
        {*entry.get("tags", ()), entry.get("lighting"), entry.get("sky")} for entry in pairs.entries
    ]
    truths = np.array([[word in names for word in words] for names in said])
    things = {word: i for i, word in enumerate(words) if word in COCO_STUFF}
    counts = Counter({word: int(truths[:, i].sum()) for word, i in things.items()})
    common = [word for word, count in counts.most_common(given.names) if count]
    columns = [things[word] for word in common]
    clusters = [entry.get("sequence") or entry["name"] for entry in pairs.entries]
    value = mean_average_precision(probabilities[:, columns], truths[:, columns])
    low_high = interval(probabilities[:, columns], truths[:, columns], clusters)

    print(
        f"{given.model} (sha256 {describe(given.model)['sha256'][:12]}), {len(pairs)} frames of "
        f"{given.data}, {given.split}"
    )
    print(
        f"{GEOMETRIES[DEFAULT_GEOMETRY]}; float32, torch {torch.__version__}, "
        f"{platform.processor() or platform.machine()}\n"
    )
    print("| name | frames that have it | average precision |\n| --- | --- | --- |")
    for word, i in zip(common, columns, strict=True):
        print(
            f"| {word} | {counts[word]} | "
            f"{average_precision(probabilities[:, i], truths[:, i]):.2f} |"
        )
    span = f" ({low_high[0]:.3f} to {low_high[1]:.3f})" if low_high else ""
    chance = truths[:, columns].mean()
    print(
        f"| **mean of the {len(common)} commonest** | | **{value:.3f}**{span}; by chance about "
        f"{chance:.2f} |"
    )

    everything = Counter({word: int(truths[:, i].sum()) for i, word in enumerate(words)})
    mixed = [words.index(word) for word, count in everything.most_common(given.names) if count]
    print(
        f"\nwith light and sky among the {len(mixed)} commonest: "
        f"{mean_average_precision(probabilities[:, mixed], truths[:, mixed]):.3f}"
    )

    threshold = traits_of(network).tag_threshold
    every = [*things.values()]
    believed = probabilities[:, every] > threshold
    right = (believed & truths[:, every]).sum()
    print(
        f"\nabove the threshold {threshold}: {believed.sum() / len(pairs):.1f} names a frame, "
        f"{right / believed.sum():.0%} of "
        f"them in the hand-written tags, which have {truths[:, every].sum() / len(pairs):.1f} a "
        "frame, of which "
        f"{right / truths[:, every].sum():.0%} are believed"
    )
    for what, group in (("lighting", LIGHTINGS), ("sky", SKIES)):
        if set(group) <= set(words):
            best = probabilities[:, [words.index(word) for word in group]].argmax(1)
            true = [entry.get(what) for entry in pairs.entries]
            table = Counter((t, group[b]) for t, b in zip(true, best, strict=True) if t in group)
            if table:
                print(f"{what}: {sum(n for (t, b), n in table.items() if t == b)} of "
                      f"{table.total()} right; "
                      + ", ".join(f"{t} taken for {b} {n}"
                                  for (t, b), n in sorted(table.items()) if t != b))  # fmt: skip
    if given.json is not None:
        record = {"frames": len(pairs),
                  "names": dict(zip(common, (counts[w] for w in common), strict=True)),
                  "map": value,
                  "interval": low_high, "chance": float(chance)}  # fmt: skip
        given.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
