"""Frames a second of `cmmfnet archive` with and without Ray, and its peak memory by length.

    python benchmarks/archive_speed.py speed --frames 256 --rounds 3
    python benchmarks/archive_speed.py memory --frames 1000 20000

speed: frames of 256 x 256 pixels are coloured by cmmfnet-small. A plain loop in one process and
Ray's workers on as many cores take turns, so that both meet the same load of the machine. The rate
counts from the first recorded batch to the last one; starting Ray and loading models is shown
apart. memory: hard links to a few frames of 64 x 64 pixels are coloured by a small network; the
peak is the largest resident size of a process, for the command itself and for Ray's processes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

# name -> threads of the command's own process, options
SETTINGS = {
    "1 worker of 1 core": (1, ["--workers", "1"]),
    "loop, 2 threads": (2, []),
    "1 worker of 2 cores": (2, ["--workers", "1", "--cpus", "2"]),
    "2 workers of 1 core": (2, ["--workers", "2"]),
}
PAIRS = [
    ("1 worker of 2 cores", "loop, 2 threads"),
    ("2 workers of 1 core", "loop, 2 threads"),
]


def child(arguments: list[str]) -> int:
    """Run `cmmfnet archive` and print when batches were recorded, as the last line."""
    from cmmfnet import cli
    from cmmfnet.archive.archive import Recorder

    began, moments = time.monotonic(), []
    add = Recorder.add

    def timed(self, outcome):
        add(self, outcome)
        if outcome.records:
            moments.append((time.monotonic() - began, self.report.coloured))

    Recorder.add = timed
    status = cli.main(["archive", *arguments])
    print(json.dumps({"first": moments[0], "last": moments[-1], "peaks": peaks()}))
    return status


def run(arguments: list[str], threads: int) -> dict:
    """The last line of a child, and the peak memory in MB of its processes by kind."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, "child", *arguments]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    highest: dict[str, float] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            for kind, peak in peaks(process.pid).items():
                highest[kind] = max(peak, highest.get(kind, 0))

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate(timeout=3600)
    ended.set()
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}: {output}")
    found = json.loads(output.strip().splitlines()[-1])
    for kind, peak in found.pop("peaks").items():
        highest[kind] = max(peak, highest.get(kind, 0))
    return found | {"peaks": highest}


def peaks(root: int | None = None) -> dict[str, float]:
    """Peak resident memory, MB, of a process and its descendants: the largest of each kind."""
    root = os.getpid() if root is None else root
    parents, found = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            pid, stat = int(folder.name), (folder / "stat").read_text().rpartition(")")[2]
            parents[pid] = int(stat.split()[1])
            name = (folder / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
            status = (folder / "status").read_text()
            found[pid] = (name, int(status.partition("VmHWM:")[2].split()[0]) / 1024)
        except (OSError, IndexError, ValueError):
            continue
    result: dict[str, float] = {}
    for pid, (name, peak) in found.items():
        above = pid
        while above in parents and above != root:
            above = parents[above]
        if above != root:
            continue
        kind = "command" if pid == root else "worker" if "MapWorker" in name else None
        if kind is not None:
            result[kind] = max(peak, result.get(kind, 0))
    return result


def speed(root: Path, frames: int, rounds: int) -> None:
    from archive_kill import write_frames  # here, so that no child holds what it imports

    write_frames(root / "frames", frames, 256)
    given = ["--model", "cmmfnet-small", "--device", "cpu", "--batch-size", "16"]
    rates: dict[str, list[float]] = {name: [] for name in SETTINGS}
    starts: dict[str, list[float]] = {name: [] for name in SETTINGS}
    for number in range(rounds):
        for name, (threads, options) in SETTINGS.items():
            out = root / f"{name.replace(' ', '-')}-{number}"
            found = run([str(root / "frames"), str(out), *given, *options], threads)
            (began, before), (ended, after) = found["first"], found["last"]
            rates[name].append((after - before) / (ended - began))
            starts[name].append(began)
            print(f"{name}: {rates[name][-1]:.2f} frames a second, first batch after {began:.1f} s",
                  flush=True)  # fmt: skip
    for name in SETTINGS:
        print(f"{name}: median {statistics.median(rates[name]):.2f} frames a second, first batch "
              f"after {statistics.median(starts[name]):.1f} s")  # fmt: skip
    for ray, loop in PAIRS:
        ratio = statistics.median(b / a for a, b in zip(rates[ray], rates[loop], strict=True))
        print(f"{ray}: {100 * (ratio - 1):+.1f} % time a frame against {loop}")


def memory(root: Path, lengths: list[int], options: list[str]) -> None:
    from archive_kill import write_frames, write_model

    write_frames(root / "few", 100, 64)
    few = sorted((root / "few").rglob("*.png"))
    given = ["--model", write_model(root), "--device", "cpu", *options]
    for length in dict.fromkeys(lengths):
        source = root / f"frames-{length}"
        for i in range(length):
            path = source / f"{i // 1000:03d}" / f"{i:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.hardlink_to(few[i % len(few)])
        found = run([str(source), str(root / f"out-{length}"), *given], 1)
        shown = ", ".join(f"{kind} {peak:.0f} MB" for kind, peak in found["peaks"].items())
        print(f"{length} frames {' '.join(options)}: peak {shown}", flush=True)


def main() -> int:
    if sys.argv[1:2] == ["child"]:
        return child(sys.argv[2:])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("speed")
    one.add_argument("--frames", type=int, default=256)
    one.add_argument("--rounds", type=int, default=3)
    other = commands.add_parser("memory")
    other.add_argument("--frames", type=int, nargs="+", default=[1000, 20_000])
    other.add_argument("--workers", type=int, help="also with so many workers of Ray")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.command == "speed":
            speed(Path(folder), given.frames, given.rounds)
        elif given.workers:
            memory(Path(folder), given.frames, ["--workers", str(given.workers)])
        else:
            memory(Path(folder), given.frames, [])
    return 0


if __name__ == "__main__":
    sys.exit(main())
