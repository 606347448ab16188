"""Many clients of `cmmfnet serve` on this machine: does it hold, and does its memory stay flat?

    python benchmarks/serve_load.py --clients 200 --seconds 60

Starts a server of its own on the loopback address. Every client sends pictures as fast as answers
come, and waits as Retry-After says after a 429. At the end SIGTERM comes while they go on: what was
accepted must be answered. Exit status 1: an answer other than 200 or 429, a crash, growing memory,
or an accepted request without an answer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

GROWTH = 1.1
"""Of the memory, from the second quarter of the time to the last, at most."""


def pictures() -> list[bytes]:
    """PNG files of several sizes."""
    random = np.random.default_rng(0)
    found = []
    for height, width in ((96, 128), (240, 320), (256, 256)):
        counts = np.add.outer(np.arange(height) * 5, np.arange(width) * 3) + 28_000
        counts = (counts + random.integers(0, 60, counts.shape)).astype(np.uint16)
        buffer = io.BytesIO()
        Image.fromarray(counts).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


class Load:
    """Clients and what they got."""

    def __init__(self, address: str):
        self.address, self.files = address, pictures()
        self.statuses: Counter = Counter()
        self.seconds: list[float] = []
        self.broken: list[str] = []
        self.stopping = self.over = False
        self.late = 0  # pictures that came after SIGTERM

    async def client(self, number: int) -> None:
        async with httpx.AsyncClient(timeout=120) as http:
            turn = number
            while not self.over:
                turn += 1
                try:
                    await self.one(http, turn)
                except httpx.HTTPError as error:
                    if self.stopping:
                        return
                    self.broken.append(f"{type(error).__name__}: {error}")

    async def one(self, http: httpx.AsyncClient, turn: int) -> None:
        file, started = self.files[turn % len(self.files)], time.perf_counter()
        if turn % 5 == 0:
            answer = await http.post(
                f"{self.address}/v1/colorize", files={"picture": file}, data={"format": "webp"}
            )
        else:
            answer = await http.post(
                f"{self.address}/v1/colorize", content=file, params={"text": "a red car"}
            )
        self.statuses[answer.status_code] += 1
        if answer.status_code == 200:
            self.seconds.append(time.perf_counter() - started)
            with Image.open(io.BytesIO(answer.content)) as picture:
                picture.load()
            self.late += self.stopping
        elif answer.status_code == 429:
            await asyncio.sleep(min(5, int(answer.headers["Retry-After"])))


def memory(process: int) -> float:
    """Resident memory, MB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def open_files(process: int) -> int:
    """Files that are no connections."""
    files = Path(f"/proc/{process}/fd").iterdir()
    return sum(not str(file.readlink()).startswith("socket:") for file in list(files))


async def measure(process: subprocess.Popen, address: str, clients: int, seconds: float) -> int:
    load = Load(address)
    tasks = [asyncio.create_task(load.client(i)) for i in range(clients)]
    used: list[float] = []
    files = []
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        await asyncio.sleep(0.5)
        used.append(memory(process.pid))
        with contextlib.suppress(FileNotFoundError):  # one was closed meanwhile
            files.append(open_files(process.pid))
    async with httpx.AsyncClient(timeout=30) as http:
        health = (await http.get(f"{address}/healthz")).json()
    load.stopping = True
    process.send_signal(signal.SIGTERM)
    stopped = time.monotonic()
    while process.poll() is None and time.monotonic() < stopped + 90:
        await asyncio.sleep(0.1)
    load.over = True
    await asyncio.wait(tasks, timeout=30)
    quarter = len(used) // 4
    before, after = (
        statistics.median(part) for part in (used[quarter : 2 * quarter], used[-quarter:])
    )
    times = sorted(load.seconds)
    print(f"{clients} clients, {seconds:g} s: {dict(load.statuses)}; broken {len(load.broken)}")
    print(f"pictures a second: {load.statuses[200] / seconds:.1f}")
    median, late, latest = (times[int(share * (len(times) - 1))] for share in (0.5, 0.95, 0.99))
    print(
        f"seconds a picture: median {median:.2f}, 95 % within {late:.2f}, 99 % within "
        f"{latest:.2f}, longest {times[-1]:.2f}"
    )
    print(f"open files: {files[len(files) // 4]} after a quarter, {files[-1]} at the end")
    print(f"memory: {before:.0f} MB in the second quarter, {after:.0f} MB in the last")
    print(
        f"SIGTERM: {health['waiting']} accepted, {load.late} answered after it, exit status "
        f"{process.poll()}, {time.monotonic() - stopped:.1f} s"
    )
    for line in dict.fromkeys(load.broken):
        print("broken:", line)
    bad = set(load.statuses) - {200, 429} or load.broken or process.poll() != 0
    return int(bool(bad or after > before * GROWTH or load.late < health["waiting"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--model", default="cmmfnet-small")
    options = parser.parse_args()
    process = subprocess.Popen(
        [sys.executable, "-m", "cmmfnet", "serve", "--port", "0", "--model", options.model],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        address = re.search(r"http://\S+", process.stdout.readline())[0]
        return asyncio.run(measure(process, address, options.clients, options.seconds))
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
