"""Colour an archive on a Ray cluster of several nodes while workers and nodes are killed.

    python benchmarks/archive_kill.py --frames 20000 --kills 50

All nodes run on this machine. The frames are rendered, the network is small. The archive is first
coloured by one process without Ray and without kills; its time and peak memory are printed, and
those of 1000 frames. Then the cluster colours it; processes of its pool of actors, of its tasks and
whole nodes get SIGKILL at random moments, spread over the run. Afterwards each frame must have
exactly one recorded success, each picture must have the recorded checksum, there must be no other
picture, and all of them must be those of the undisturbed run.
Exits with 1 where anything differs. Linux only: victims are found in /proc.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import ray
import torch
from kill import NETWORK
from PIL import Image
from ray.cluster_utils import Cluster

from cmmfnet import cli
from cmmfnet.archive.archive import Recorder
from cmmfnet.archive.manifest import read_manifest
from cmmfnet.methods import build_network
from cmmfnet.weights.files import save_model

SMALL = NETWORK | {"least_size": 32}  # frames keep their size
VICTIMS = {
    "actor": b"ray::MapWorker",
    "expansion": b"ray::MapBatches",
    "listing": b"ray::ReadSource",
}


def write_frames(folder: Path, count: int, size: int) -> None:
    """Warm discs on a cool ramp, each in a place of its own, in folders of 1000."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size]
    for i in range(count):
        path = folder / f"{i // 1000:03d}" / f"{i:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        y, x, radius = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(3, size / 3)
        frame = 60 + rows + rng.normal(0, 3, (size, size))
        frame[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] += 90
        Image.fromarray(frame.clip(0, 255).astype(np.uint8)).save(path, compress_level=1)


def write_model(root: Path) -> str:
    """A small network as an ONNX file, with which a killed worker is back soonest."""
    path = root / "model.safetensors"
    torch.manual_seed(0)
    save_model(path, build_network(SMALL), SMALL)
    assert cli.main(["export", str(path), "--out", str(path.with_suffix(".onnx"))]) == 0
    return str(path.with_suffix(".onnx"))


def plainly(source: Path, out: Path, options: list[str]) -> None:
    """Colour in a process of its own without Ray; prints its time and its peak memory."""
    command = [sys.executable, "-m", "cmmfnet", "archive", str(source), str(out), *options]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        # not by wait4, whose peak has that of this process in it
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
        peak = int(found[1]) if found else peak
        time.sleep(0.1)
    assert process.returncode == 0, f"{' '.join(command)} ended with {process.returncode}"
    count = sum(1 for _ in out.rglob("*.png"))
    print(
        f"without Ray: {count} frames in {time.monotonic() - began:.0f} s, "
        f"peak {peak / 1024:.0f} MB",
        flush=True,
    )


class Killer:
    """Kills, one at a time, each once the archive has come a random part of the way further."""

    def __init__(self, cluster: Cluster, add_node: Callable, frames: int, kills: int, seed: int):
        self.cluster, self.add_node, self.rng = cluster, add_node, random.Random(seed)
        # the last tenth is left to the workers, so that all kills fall into the run
        self.moments = sorted(self.rng.uniform(0, 0.9 * frames) for _ in range(kills))
        self.done = 0  # frames recorded
        self.killed: collections.Counter[str] = collections.Counter()

    def run(self, coloured: threading.Thread) -> None:
        """Kill until the thread that colours has ended."""
        while coloured.is_alive():
            coloured.join(0.2)
            if self.moments and self.done >= self.moments[0] and self.kill():
                self.moments.pop(0)
                print(f"{self.done} frames: {dict(self.killed)}", flush=True)

    def kill(self) -> bool:
        kind = self.rng.choices(["actor", "expansion", "listing", "node"], [14, 2, 1, 3])[0]
        if kind == "node":
            nodes = [node for node in self.cluster.worker_nodes]
            self.cluster.remove_node(self.rng.choice(nodes), allow_graceful=False)
            self.killed[kind] += 1
            self.add_node()
            return True
        found = processes(VICTIMS[kind])
        if not found:
            return False
        try:
            os.kill(self.rng.choice(found), signal.SIGKILL)
        except ProcessLookupError:
            return False
        self.killed[kind] += 1
        return True


def processes(title: bytes) -> list[int]:
    """Descendants of this process whose title starts so."""
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            titles[int(folder.name)] = (folder / "cmdline").read_bytes()
            parents[int(folder.name)] = int(stat[1])
        except OSError:
            continue
    found = []
    for pid, name in titles.items():
        above = pid
        while above in parents and above != os.getpid():
            above = parents[above]
        if above == os.getpid() and name.startswith(title):
            found.append(pid)
    return found


def check(out: Path, inputs: set[str], reference: dict[str, str] | None) -> dict[str, str]:
    """Picture -> SHA-256, after everything that must hold was found to hold."""
    rows = [row for row in read_manifest(str(out)).to_pylist() if row["output"] is not None]
    counts = collections.Counter(row["input"] for row in rows)
    assert set(counts) == inputs, f"{len(inputs - set(counts))} frames have no success"
    twice = [name for name, count in counts.items() if count != 1]
    assert not twice, f"{len(twice)} frames have several successes"
    pictures = {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.rglob("*.png")
    }
    recorded = {row["output"]: row["sha256"] for row in rows}
    assert pictures == recorded, "pictures are not those of the manifest"
    assert reference is None or pictures == reference, "pictures are not those without kills"
    return pictures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--nodes", type=int, default=3, help="besides the head, one CPU each")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--size", type=int, default=64, help="of a frame, pixels")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(f"ray {ray.__version__}, torch {torch.__version__}, {os.cpu_count()} cores", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_frames(root / "frames", given.frames, given.size)
        inputs = {str(p.relative_to(root / "frames")) for p in (root / "frames").rglob("*.png")}
        common = ["--model", write_model(root), "--device", "cpu",
                  "--batch-size", str(given.batch_size)]  # fmt: skip

        plainly(root / "frames" / "000", root / "few", common)
        plainly(root / "frames", root / "plain", common)
        reference = check(root / "plain", inputs, None)

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})

        def add_node() -> None:
            cluster.add_node(num_cpus=1, object_store_memory=80 << 20)

        for _ in range(given.nodes):
            add_node()
        cluster.connect()
        killer = Killer(cluster, add_node, given.frames, given.kills, given.seed)
        add = Recorder.add

        def counted(self, outcome):
            add(self, outcome)
            killer.done = self.report.coloured

        Recorder.add = counted
        began = time.monotonic()
        command = ["archive", str(root / "frames"), str(root / "ray"), *common,
                   "--workers", str(given.workers)]  # fmt: skip
        status: list[int] = []
        # Ray starts nodes in the main thread only
        thread = threading.Thread(target=lambda: status.append(cli.main(command)), daemon=True)
        thread.start()
        killer.run(thread)
        seconds = time.monotonic() - began
        killed = sum(killer.killed.values())
        print(f"on Ray: {seconds:.0f} s, {killed} kills: {dict(killer.killed)}", flush=True)
        assert status == [0], f"archive ended with {status}"
        check(root / "ray", inputs, reference)
        print(
            f"{len(inputs)} frames: each with one recorded success, checksums right, pictures "
            "those of the undisturbed run",
            flush=True,
        )
        ray.shutdown()
        cluster.shutdown()
        if killed < given.kills:
            print(f"only {killed} of {given.kills} kills fell into the run", flush=True)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
