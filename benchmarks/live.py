"""Frames a second of the small model on this CPU, picture in memory to picture in memory, beside
the released one.

    python benchmarks/live.py [--model cmmfnet-small] [--threads 2] [--size 256 320] [--rounds 20]

Every round runs each row once, in turn, so that what else the machine does meets all of them;
medians and fastest are over the rounds. A frame is a rendered scene's 16-bit thermal picture; the
time has stretching, network and 8-bit colour in it. ONNX Runtime runs what `cmmfnet export` writes,
and is left out, with the reason, where its packages are missing.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path


def rows(model: str, beside: str, threads: int, folder: Path) -> dict[str, Callable]:
    """Label -> something to call with a frame."""
    import torch

    from cmmfnet import Colorizer

    found: dict[str, Callable] = {}
    for name in dict.fromkeys((model, beside)):
        found[f"{name}, PyTorch float32"] = Colorizer.from_pretrained(
            name, device="cpu", dtype=torch.float32
        )
        default = Colorizer.from_pretrained(name, device="cpu")
        if default._mixed:  # bfloat16 where the CPU has it; elsewhere the default is the row above
            found[f"{name}, PyTorch bfloat16"] = default
    try:
        from cmmfnet.colorizer.onnx import OnnxColorizer
        from cmmfnet.export.export import export

        export(model, out=str(folder / "model.onnx"))
        found[f"{model}, ONNX Runtime float32"] = OnnxColorizer(
            folder / "model.onnx", device="cpu", threads=threads
        )
    except ImportError as error:
        print(f"without ONNX Runtime: {error}")
    return found


def machine() -> str:
    names = [
        line.partition(":")[2].strip()
        for line in _lines("/proc/cpuinfo")
        if line.startswith("model name")
    ]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def _lines(file: str) -> list[str]:
    return Path(file).read_text().splitlines() if Path(file).exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="cmmfnet-small", help="a known name or a .safetensors file"
    )
    parser.add_argument("--beside", default="cmmfnet", help="the model to compare with")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--size", nargs=2, type=int, default=(256, 320), metavar=("HEIGHT", "WIDTH")
    )
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command line does
    import torch

    from cmmfnet.data.scenes import render

    torch.set_num_threads(arguments.threads)
    frame = render(3, "street", size=tuple(arguments.size)).thermal
    with tempfile.TemporaryDirectory() as folder:
        found = rows(arguments.model, arguments.beside, arguments.threads, Path(folder))
        times: dict[str, list[float]] = {label: [] for label in found}
        for colorizer in found.values():
            for _ in range(3):
                colorizer(frame)
        for _ in range(arguments.rounds):
            for label, colorizer in found.items():
                start = time.perf_counter()
                colorizer(frame)
                times[label].append(time.perf_counter() - start)
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    height, width = arguments.size
    print(
        f"{machine()}; {arguments.threads} threads, torch {torch.__version__}, "
        f"{width}x{height}{load}\n"
    )
    print(
        "| | median, ms | fastest, ms | frames/s (median) | frames/s (fastest) "
        "|\n|---|---|---|---|---|"
    )
    for label, each in times.items():
        median, fastest = statistics.median(each), min(each)
        print(
            f"| {label} | {median * 1e3:.0f} | {fastest * 1e3:.0f} | {1 / median:.1f} | "
            f"{1 / fastest:.1f} |"
        )


if __name__ == "__main__":
    main()
