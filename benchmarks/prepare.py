"""Time of `cmmfnet prepare` on a raw tree like KAIST's, where links suffice. The bar: 20,000 frames
in 3 minutes on 2 cores.

    python benchmarks/prepare.py [--frames 20000] [--jobs 2] [--copy]

A frame is a thermal and a colour JPEG. They are small (64x51), the headers that `prepare` reads are
as long as any: the time of linking does not depend on the size of a picture, that of --copy does.
Their making is not timed. Prints one Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VIDEO = 1_000  # frames of a video


def make_raw(raw: Path, frames: int) -> None:
    """``frames`` pairs spread over the day sets; every file is a file of its own."""
    import io

    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    content = {}
    for kind, shape in (("lwir", (51, 64)), ("visible", (51, 64, 3))):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(buffer, format="JPEG")
        content[kind] = buffer.getvalue()
    sets = (0, 1, 2, 6, 7, 8)
    for i in range(frames):
        number, video = sets[i // VIDEO % len(sets)], i // VIDEO // len(sets)
        for kind, data in content.items():
            folder = raw / "images" / f"set{number:02d}" / f"V{video:03d}" / kind
            if i % VIDEO == 0:
                folder.mkdir(parents=True)
            (folder / f"I{i % VIDEO:05d}.jpg").write_bytes(data)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--copy", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        raw, out = Path(folder, "raw"), Path(folder, "out")
        make_raw(raw, arguments.frames)
        command = [
            sys.executable,
            "-m",
            "cmmfnet",
            "prepare",
            "kaist",
            str(raw),
            str(out),
            "--partial",
        ]
        command += ["--jobs", str(arguments.jobs), *(["--copy"] if arguments.copy else [])]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        info = json.loads((out / "data_set.json").read_text(encoding="utf-8"))
        kind = shutil.disk_usage(folder).total >> 30
    frames = sum(count["frames"] for count in info["counts"].values())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(
        f"{platform.platform()}, {platform.machine()}, {cores} cores, disk of {kind} GiB at "
        f"{tempfile.gettempdir()}"
    )
    print(", ".join(f"{name} {version}" for name, version in info["versions"].items()))
    print(" ".join(["cmmfnet prepare kaist RAW OUT", *command[7:]]))
    print("\n| frames | files | seconds | frames/s |\n| --- | --- | --- | --- |")
    print(f"| {frames:,} | {info['files']} | {seconds:.1f} | {frames / seconds:,.0f} |")


if __name__ == "__main__":
    main()
