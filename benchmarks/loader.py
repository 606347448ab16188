"""Images a second that the data workers deliver, for KAIST-sized JPEG pairs (640x512, quality 90).

    python benchmarks/loader.py [--data FOLDER] [--shards] [--workers 0 1 2 4 8 16] [--device cuda]

Without --data, pairs with the spectrum of real frames are made in a temporary folder: as many bytes
a pixel as real ones, which is what decoding costs go by. "decoded": what the workers hand over, in
pinned memory where there is a GPU. "batches": what the training loop receives, after upload and
sensor effects, which on the CPU run in the training process. Each number is the median of --repeats
windows of --seconds, after a warm-up. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image

from cmmfnet.data.batches import Batches
from cmmfnet.data.pairs import Pairs
from cmmfnet.data.prepare.write_shards import write_shards
from cmmfnet.data.source import Source

HEIGHT, WIDTH = 512, 640
ENDLESS = 10**9  # steps; the windows end it


def frame(rng: np.random.Generator, channels: int, slope: float) -> np.ndarray:
    """Noise with an amplitude of 1/f^slope, as pictures of the world have it: (H,W,channels)
    uint8."""
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH))
    frequency[0, 0] = 1
    common = rng.normal(size=(HEIGHT, WIDTH))
    planes = []
    for _ in range(channels):
        noise = np.fft.rfft2(common + 0.15 * rng.normal(size=(HEIGHT, WIDTH)))
        plane = np.fft.irfft2(noise / frequency**slope, s=(HEIGHT, WIDTH))
        planes.append((plane - plane.mean()) / plane.std())
    return (128 + 50 * np.stack(planes, axis=-1)).clip(0, 255).astype(np.uint8)


def make_pairs(root: Path, count: int) -> Path:
    for kind in ("thermal", "visible"):
        (root / kind).mkdir(parents=True)
    for i in range(count):
        rng = np.random.default_rng(i)
        Image.fromarray(frame(rng, 3, 1.25)).save(root / "visible" / f"{i}.jpg", quality=90)
        Image.fromarray(frame(rng, 1, 1.45)[..., 0]).save(root / "thermal" / f"{i}.jpg", quality=90)
    (root / "index.jsonl").write_text(
        "".join(json.dumps({"name": str(i)}) + "\n" for i in range(count))
    )
    return root


def milliseconds(function, count: int) -> float:
    """Milliseconds for each of ``count``: the least of three passes, for what other processes take
    is no property of ours."""
    passes = []
    for _ in range(3):
        began = time.perf_counter()
        for i in range(count):
            function(i)
        passes.append((time.perf_counter() - began) * 1000 / count)
    return min(passes)


def rate(stream: Iterable, warm_up: int, images: int, arguments: argparse.Namespace) -> float:
    """Images a second: the median over windows. ``warm_up`` batches go first: those that wait ready
    are no rate."""
    stream = iter(stream)
    for _ in range(warm_up):
        next(stream)
    rates = []
    for _ in range(arguments.repeats):
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < arguments.seconds:
            next(stream)
            count += images
        if arguments.device == "cuda":
            torch.cuda.synchronize()
        rates.append(count / (time.perf_counter() - began))
    return statistics.median(rates)


def measure(pairs: Pairs, workers: int, arguments: argparse.Namespace) -> tuple[float, float]:
    batches = Batches(
        [Source(str(pairs.root)).opened()], batch_size=arguments.batch,
        size=arguments.size, steps=ENDLESS,
        device=arguments.device, workers=workers,
    )  # fmt: skip
    warm_up = 2 + 3 * workers
    decoded = rate(iter(batches._loader(range(ENDLESS))), warm_up, arguments.batch, arguments)
    with closing(batches.from_step()) as stream:
        return decoded, rate(stream, warm_up, arguments.batch, arguments)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="a data set of yours: folder or URL")
    parser.add_argument(
        "--count", type=int, default=240, help="pairs to make where there is no --data"
    )
    parser.add_argument(
        "--shards", action="store_true", help="measure the same pairs in tar shards, too"
    )
    parser.add_argument(
        "--workers", type=int, nargs="+", help="default: 0 1 2 4 8 16, up to the number of cores"
    )
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    arguments = parse()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.data or make_pairs(Path(temporary) / "pairs", arguments.count)
        sets = {"folder": Pairs(root)}
        if arguments.shards:
            sets["shards"] = Pairs(write_shards(root, Path(temporary) / "shards"))
        gpu = torch.cuda.get_device_name() if arguments.device == "cuda" else "no GPU"
        print(f"{processor()}, {cores} cores, {gpu}; Python {platform.python_version()}, torch "
              f"{torch.__version__}, "
              f"Pillow {PIL.__version__}, numpy {np.__version__}")  # fmt: skip
        print(
            f"python {' '.join(sys.argv)}\nbatch {arguments.batch}, size {arguments.size}, "
            f"{len(sets['folder'])} pairs\n"
        )

        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in a worker
        count = min(48, len(sets["folder"]))
        items = Batches(
            [Source(str(sets["folder"].root)).opened()],
            batch_size=1,
            size=arguments.size,
            steps=ENDLESS,
        )._items
        print(f"one core, ms a pair: {milliseconds(lambda i: items[i], count):.2f} in all", end="")
        for kind in ("visible", "thermal"):
            cost = milliseconds(lambda i, kind=kind: sets["folder"].pictures(i, (kind,)), count)
            print(f"; {kind} read and decoded {cost:.2f}", end="")
        torch.set_num_threads(threads)

        print(
            "\n\n| pairs in | workers | decoded, images/s | batches, images/s |\n|---|---|---|---|"
        )
        for name, pairs in sets.items():
            for workers in arguments.workers or [n for n in (0, 1, 2, 4, 8, 16) if n <= cores]:
                decoded, finished = measure(pairs, workers, arguments)
                print(f"| {name} | {workers} | {decoded:.0f} | {finished:.0f} |", flush=True)


if __name__ == "__main__":
    main()
