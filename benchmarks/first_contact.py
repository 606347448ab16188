"""Time and memory of the bundled model on this machine: load, one 640x512 frame, one 2560x2048
frame.

    python benchmarks/first_contact.py [--device cpu] [--repeats 7]

Each size runs in a process of its own, so that its peak memory is its own. Frames are noise: the
time does not depend on what is in a frame. Prints a Markdown table; the figures that the documents
state come from it.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time

SIZES = ((512, 640), (2048, 2560))


def measure(height: int, width: int, device: str, repeats: int) -> dict[str, float | str]:
    import os

    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command line does
    import numpy as np
    import torch

    from cmmfnet import Colorizer

    start = time.perf_counter()
    colorizer = Colorizer.from_pretrained(device=device)
    load = time.perf_counter() - start
    frame = (np.random.default_rng(0).random((height, width)) * 1000).astype(np.uint16)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        colorizer(frame)
        times.append(time.perf_counter() - start)
    return {
        "size": f"{width}x{height}", "load": load, "first": times[0],
        "median": statistics.median(times[1:]),
        "fastest": min(times[1:]),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "torch": torch.__version__, "threads": torch.get_num_threads(),
        "device": str(colorizer.device),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--one", nargs=2, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*arguments.one, arguments.device, arguments.repeats)))
        return
    rows = []
    for size in SIZES:
        command = [
            sys.executable,
            __file__,
            "--device",
            arguments.device,
            "--repeats",
            str(arguments.repeats),
        ]
        done = subprocess.run(
            [*command, "--one", *map(str, size)],
            check=True,
            capture_output=True,
            text=True,
            timeout=600,
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    machine = platform.processor() or platform.machine()
    print(
        f"{machine}, {rows[0]['threads']} threads, torch {rows[0]['torch']}, {rows[0]['device']}\n"
    )
    print(
        "| frame | load, s | first, s | median, s | fastest, s | peak memory, GB "
        "|\n|---|---|---|---|---|---|"
    )
    for r in rows:
        print(
            f"| {r['size']} | {r['load']:.2f} | {r['first']:.2f} | {r['median']:.2f} | "
            f"{r['fastest']:.2f} | {r['memory']:.2f} |"
        )


if __name__ == "__main__":
    main()
