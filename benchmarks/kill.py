"""Kill a training with SIGKILL at random moments, and go on with it each time: does every
checkpoint load?

    python benchmarks/kill.py --trials 100

A small CMMF-Net on rendered scenes, on the CPU, with a checkpoint after every step, so that most of
the time is spent writing one. Every trial starts the same command, waits until it has trained,
kills it after a random time and loads what is there: checkpoint and model. The last one goes on to
its end. Exits with 1 where a trial lost anything.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from cmmfnet import __version__
from cmmfnet.data.scenes import write_pairs
from cmmfnet.training import checkpoint
from cmmfnet.weights.files import load_model

STEPS = 1_000_000


def trial(command: list[str], out: Path, wait: float) -> int:
    """Start, kill ``wait`` seconds after the first new step; the step of the checkpoint that is
    left."""
    log = out / "log.jsonl"
    before = log.stat().st_size if log.exists() else 0
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    limit = time.monotonic() + 120
    try:
        while not (log.exists() and log.stat().st_size > before):
            if process.poll() is not None:
                raise RuntimeError(f"training ended by itself: {process.communicate()[1]}")
            if time.monotonic() > limit:
                raise TimeoutError("no step in 120 s")
            time.sleep(0.005)
        time.sleep(wait)
    finally:
        process.kill()
        process.communicate(timeout=30)
    newest = checkpoint.latest(out)
    if newest is None:
        return 0
    state = checkpoint.load(newest)
    if not all(torch.isfinite(v).all() for v in state["ema"].values()):
        raise ValueError(f"{newest} has weights that are not finite")
    load_model(out / "model.safetensors")
    return state["step"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    moments = random.Random(given.seed)
    print(
        f"cmmfnet {__version__}, torch {torch.__version__}, {os.cpu_count()} cores, "
        f"{given.trials} trials"
    )
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "scenes", Path(folder) / "run"
        write_pairs(data, 6, seed=1, size=(64, 80))
        command = [
            sys.executable, "-m", "cmmfnet", "train", "--config", "tiny", "--config.size", "32",
            "--config.batch_size", "1",
            "--config.steps", str(STEPS), "--config.save_every", "1", "--config.log_every", "1",
            "--config.sheet_every", str(STEPS), "--data", str(data), "--out", str(out), "--device",
            "cpu", "--workers", "0",
        ]  # fmt: skip
        resumed, lost, partial, reached = 0, 0, 0, 0
        for number in range(given.trials):
            step = trial(command, out, moments.uniform(0, 0.5))
            partial += len(list(out.glob(".*.part")))
            if step < reached:
                lost += 1
                print(f"trial {number}: back at step {step} from {reached}")
            else:
                resumed += 1
            reached = step
            if number % 20 == 19:
                print(f"after {number + 1} trials: {resumed} went on, step {reached}", flush=True)
        subprocess.run(
            [*command, "--max-steps", str(reached + 2)],
            check=True,
            capture_output=True,
            timeout=120,
        )
        end = json.loads((out / "log.jsonl").read_text().splitlines()[-1])["step"]
    print(
        f"{resumed} of {given.trials} trials went on where they were killed, {lost} lost steps "
        "that were saved"
    )
    print(
        f"{partial} times the kill came while a file was written; the training reached step {end}"
    )
    return 0 if resumed == given.trials and end == reached + 2 else 1


if __name__ == "__main__":
    sys.exit(main())
