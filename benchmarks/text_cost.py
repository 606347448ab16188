"""The cost of text for a frame, without the network itself: microseconds on the CPU.

    python benchmarks/text_cost.py [--model cmmfnet] [--repeats 300]

Measured on the path that every frame takes from its text to the tokens that the network gets
(`FrameColorizer.text_input`), with the network's own pass left out. "first time" reads the text,
"again" finds it in the cache; "+snow -grass" is put together anew for every frame, and its
prediction by the network's image encoder is listed by itself. The last two lines are texts of a
clip-sentence model, from disk and from memory, with arrays of CLIP's size (77 tokens of 512 numbers
at most, 20 here); CLIP itself does not run. Medians, after a warm-up.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch

from cmmfnet.colorizer.torch import Colorizer
from cmmfnet.text.parser import parse_tags
from cmmfnet.text.prompt import read_prompt
from cmmfnet.text.sentences import SentenceEncoder

PROMPT = (
    "a street at night with parked cars, two red brick houses, trees without leaves and people on "
    "the pavement"
)


def median(
    call: Callable[[], object], repeats: int, before: Callable[[], object] = lambda: None
) -> float:
    """Microseconds of ``call``; ``before`` runs before each and is not counted."""
    times = []
    for _ in range(repeats + 10):
        before()
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times[10:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="cmmfnet")
    parser.add_argument("--repeats", type=int, default=300)
    given = parser.parse_args()
    colorizer = Colorizer.from_pretrained(given.model, device="cpu", dtype=torch.float32)
    frame = colorizer.prepare(np.zeros((256, 320), np.float32))
    rows = []
    with torch.inference_mode():
        parse_tags("")  # the table of phrases is made once in a process
        rows.append(("read the text", median(lambda: parse_tags(PROMPT), given.repeats)))
        first = median(
            lambda: colorizer.text_input(PROMPT), given.repeats, colorizer._read.cache_clear
        )
        rows.append(("clip-tags, first time", first))
        rows.append(
            ("clip-tags, again", median(lambda: colorizer.text_input(PROMPT), given.repeats))
        )
        if colorizer.traits.predicts_tags:
            probabilities = colorizer.predict([frame])[0]
            predict = median(lambda: colorizer.predict([frame]), 5)
            rows.append(
                (
                    "+snow -grass",
                    median(
                        lambda: colorizer.text_input("+snow -grass", probabilities), given.repeats
                    ),
                )
            )
            rows.append(("... its prediction", predict))
            rows.append(
                ("... reading it", median(lambda: read_prompt("+snow -grass"), given.repeats))
            )
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CMMFNET_CACHE"] = folder
        encoder = SentenceEncoder()
        tokens = np.zeros((20, 512), np.float32)
        encoder._disk.put(PROMPT, {"tokens": tokens, "counts": np.array([20, 77])})
        rows.append(
            (
                "clip-sentence, from disk",
                median(lambda: encoder([PROMPT]), given.repeats, encoder.cached.cache_clear),
            )
        )
        rows.append(("clip-sentence, again", median(lambda: encoder([PROMPT]), given.repeats)))
    machine = platform.processor() or platform.machine()
    print(
        f"{given.model}, {machine}, torch {torch.__version__}, {torch.get_num_threads()} threads\n"
    )
    print("| | microseconds a frame |\n| --- | --- |")
    for what, value in rows:
        print(f"| {what} | {value:,.0f} |")


if __name__ == "__main__":
    main()
