"""`cmmfnet live` for a long time: do memory and open files stay flat, and how late are pictures?

    python benchmarks/live_soak.py --seconds 1800

Writes frames into a folder, ten a second, and colours them with `cmmfnet live`, which also serves
its page to a viewer. The folder is emptied now and then, as an archiver would. Exit status 1:
memory grows by more than a tenth, open files become more, or the command ends badly.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image

GROWTH = 1.1
"""Of the memory, from the second quarter of the time to the last, at most."""


def feed(folder: Path, stop: threading.Event, rate: float) -> None:
    """A scene that moves, as 16-bit PNG of 320x240, until ``stop``."""
    random = np.random.default_rng(0)
    scene = np.add.outer(np.arange(240) * 5, np.arange(960) * 3) + 28_000
    scene[80:160, 300:340] += 900
    for number in itertools.count():
        left = number * 2 % 640
        counts = scene[:, left : left + 320] + random.integers(0, 60, (240, 320))
        part = folder / "new.part"
        Image.fromarray(counts.astype(np.uint16)).save(part, "PNG")
        part.rename(folder / f"{number:07d}.png")
        for old in sorted(folder.glob("*.png"))[:-100] if number % 100 == 0 else []:
            old.unlink()
        if stop.wait(1 / rate):
            return


def view(address: str, stop: threading.Event) -> None:
    """A browser that watches the stream."""
    with urllib.request.urlopen(f"{address}stream.mjpeg", timeout=30) as stream:
        while not stop.is_set() and stream.read(1 << 14):
            pass


def state(process: int) -> tuple[float, int]:
    """Resident memory in MB, and the number of open files."""
    status = Path(f"/proc/{process}/status").read_text()
    files = len(list(Path(f"/proc/{process}/fd").iterdir()))
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024, files


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--rate", type=float, default=10)
    options = parser.parse_args()
    stop, used = threading.Event(), []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "camera")
        folder.mkdir()
        feeder = threading.Thread(target=feed, args=(folder, stop, options.rate))
        feeder.start()
        log = Path(place, "log").open("w+")  # noqa: SIM115
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "cmmfnet", "live", str(folder)),
                *("-o", str(Path(place, "now.jpg")), "--page", "0"),
            ],
            stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        try:
            address, end = None, time.monotonic() + 120
            while address is None and time.monotonic() < end and process.poll() is None:
                time.sleep(0.5)
                address = re.search(r"http://127\S+", Path(log.name).read_text())
            if address is None:
                print("no page:", Path(log.name).read_text())
                return 1
            viewer = threading.Thread(target=view, args=(address[0], stop), daemon=True)
            viewer.start()
            end = time.monotonic() + options.seconds
            while time.monotonic() < end and process.poll() is None:
                time.sleep(1)
                used.append(state(process.pid))
            process.send_signal(signal.SIGTERM)
            status = process.wait(60)
        finally:
            stop.set()
            if process.poll() is None:
                process.kill()
            feeder.join(30)
        print(Path(log.name).read_text().strip().splitlines()[-1])
        log.close()
    quarter = len(used) // 4
    before, after = used[quarter : 2 * quarter], used[-quarter:]
    memory = [statistics.median(each for each, _ in part) for part in (before, after)]
    files = [max(each for _, each in part) for part in (before, after)]
    print(f"memory: {memory[0]:.0f} MB in the second quarter, {memory[1]:.0f} MB in the last")
    print(f"open files, at most: {files[0]}, {files[1]}; exit status {status}")
    return int(status != 0 or memory[1] > memory[0] * GROWTH or files[1] > files[0])


if __name__ == "__main__":
    sys.exit(main())
