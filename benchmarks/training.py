"""Images a second of a whole training, loader and all, and how it scales over GPUs.

    python benchmarks/training.py --data DATA --pretrained WEIGHTS --processes 1 2

Runs `cmmfnet train` under torchrun for each number of processes, with the same batch for each
process, and takes the last rows of its log, when everything is warm. Efficiency = images/s of N
processes over N times those of one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch


def speed(given: argparse.Namespace, processes: int, out: Path) -> float:
    """Median images/s over the log's rows after the first third."""
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
    ]
    arguments = [
        "-m", "cmmfnet", "train", "--config", given.config, "--data", given.data, "--out", str(out),
        "--config.batch_size", str(given.batch * processes), "--max-steps", str(given.steps),
        "--config.log_every", "10",
        "--config.validation", "null", "--config.save_every", "1000000", *given.more,
    ]  # fmt: skip
    if given.pretrained:
        arguments += ["--pretrained", given.pretrained]
    done = subprocess.run(launch + arguments, capture_output=True, text=True, timeout=given.limit)
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    speeds = [row["images_per_second"] for row in rows if "images_per_second" in row]
    return statistics.median(speeds[len(speeds) // 3 :])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="cmmfnet")
    parser.add_argument("--data", required=True)
    parser.add_argument("--pretrained")
    parser.add_argument("--batch", type=int, default=24, help="pictures a step and process")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--processes", type=int, nargs="+", default=[1])
    parser.add_argument("--limit", type=float, default=400, help="seconds for one run")
    parser.add_argument("more", nargs="*", help="after --: further options of cmmfnet train")
    given = parser.parse_args()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(
        f"{name}, torch {torch.__version__}; config {given.config}, batch {given.batch} a "
        f"process, {given.steps} steps"
    )
    first = None
    with tempfile.TemporaryDirectory() as folder:
        for processes in given.processes:
            found = speed(given, processes, Path(folder) / str(processes))
            first = first or found / processes
            print(
                f"{processes} process(es): {found:.1f} images/s, {found / first:.2f} times one",
                flush=True,
            )


if __name__ == "__main__":
    main()
