"""Kill `cmmfnet serve` under load many times: is anything left behind, is any answer wrong?

    python benchmarks/serve_kill.py --trials 200
    python benchmarks/serve_kill.py --trials 50 --signal TERM

Clients send pictures over HTTP, and a video as a browser on the page does. SIGKILL comes at a
random moment: while the server starts, reads, colours or answers. Each answer that arrived whole
must be the picture, or video, of a server that nobody disturbed; each other one must be an error
for its client. The next server must start at the same port, and find or leave nothing of the one
before it in the folder of temporary files or in the user's home. After SIGTERM each request
that was sent before must be answered, and the server must end with exit status 0.

A server is a fork of a process that has the package imported already, so that more signals fall
into the work and fewer into Python's start; every tenth is a process of its own. The network is
small. Exits with 1 where a trial failed.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a fork has no threads of the process before it
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import av
import gradio
import httpx
import numpy as np
import torch
import uvicorn  # noqa: F401
from kill import NETWORK
from PIL import Image

from cmmfnet import Colorizer, cli
from cmmfnet.methods import build_network
from cmmfnet.serve import api, page  # noqa: F401
from cmmfnet.weights.files import save_model

LIMIT = 60.0
"""Seconds that a start, or an end after SIGTERM, may take."""
LOAD, LONG_LOAD = 2.5, 10.0
"""Seconds of load before a signal, at most, and before every tenth, so that videos end, too."""
FRESH = 10
"""Each so many servers is a process of its own in place of a fork."""
FRAMES = 24
FORMATS = ("png", "jpeg", "webp")


class Wrong(Exception):
    """An answer, or a state, that must not be."""


def write_video(path: Path) -> None:
    rng = np.random.default_rng(1)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("ffv1", rate=Fraction(10))
        stream.width, stream.height, stream.pix_fmt = 96, 64, "gray"
        for i in range(FRAMES):
            pixels = np.add.outer(np.arange(64), np.arange(96)) + 2 * i
            frame = (pixels + rng.integers(0, 9, pixels.shape)).astype(np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "gray")))
        file.mux(stream.encode(None))


def write_pictures() -> list[bytes]:
    """PNG files of 16 bits; the answer to the last one does not fit into a socket's buffer."""
    rng = np.random.default_rng(0)
    found = []
    for height, width in ((64, 96), (120, 160), (240, 320), (900, 1200)):
        counts = np.add.outer(np.arange(height) * 5, np.arange(width) * 3) + 28_000
        buffer = io.BytesIO()
        counts = (counts + rng.integers(0, 600, counts.shape)).astype(np.uint16)
        Image.fromarray(counts).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


class Server:
    """A server that starts, and then listens at ``port``."""

    def __init__(self, root: Path, port: int, model: Path, *, fresh: bool):
        self.log, self.fresh = root / "server.log", fresh
        command = ["serve", "--port", str(port), "--device", "cpu", "--model", str(model)]
        log = self.log.open("wb")
        if fresh:
            place = [sys.executable, "-m", "cmmfnet", *command]
            self.pid = subprocess.Popen(place, stdout=log, stderr=log).pid
        else:
            self.pid = os.fork()
        if self.pid == 0:
            status = 70
            try:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                status = cli.main(command)
            finally:
                sys.stdout.flush()
                os._exit(status)
        log.close()
        self.status: int | None = None

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.ended():
            self.send(signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def wait_for_start(self) -> None:
        end = time.monotonic() + LIMIT
        while b"listening at" not in self.log.read_bytes():
            if self.ended() or time.monotonic() > end:
                raise Wrong(f"no start: {self.log.read_text()[-1000:]}")
            time.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def ended(self) -> bool:
        if self.status is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if done else None
        return self.status is not None

    def wait_for_end(self) -> int:
        end = time.monotonic() + LIMIT
        while not self.ended():
            if time.monotonic() > end:
                raise Wrong(f"no end after {LIMIT:g} s")
            time.sleep(0.01)
        return self.status


class Load:
    """Clients of one server, and what they got."""

    def __init__(self, port: int, pictures: list[bytes], video: bytes, known: dict[str, str]):
        self.address, self.pictures, self.video = f"http://127.0.0.1:{port}", pictures, video
        self.known, self.tally = known, Counter()
        self.wrong: list[str] = []
        self.signalled = False

    async def run(self, seconds: float, server: Server, number: signal.Signals) -> None:
        """Load, a signal after ``seconds``, and all answers that come after it."""
        tasks = [asyncio.create_task(self.client(turn)) for turn in range(3)]
        tasks.append(asyncio.create_task(self.visitor()))
        await asyncio.sleep(seconds)
        server.send(number)
        self.signalled = True
        _, late = await asyncio.wait(tasks, timeout=LIMIT)
        if late:
            self.wrong.append(f"{len(late)} clients still wait {LIMIT:g} s after the signal")
            for task in late:
                task.cancel()

    async def client(self, turn: int) -> None:
        """Pictures, one after another, half of them over connections that stay open."""
        async with httpx.AsyncClient(timeout=LIMIT) as http:
            while not self.signalled:
                turn += 1
                number, form = turn % len(self.pictures), FORMATS[turn // 2 % 3]
                sent = []

                async def trace(event: str, _: dict, sent: list = sent) -> None:
                    if event == "http11.send_request_body.complete":
                        sent.append(not self.signalled)

                headers = {"Connection": "close"} if turn % 2 else {}
                request = http.build_request(
                    "POST", f"{self.address}/v1/colorize", params={"format": form},
                    content=self.pictures[number], headers=headers, extensions={"trace": trace},
                )  # fmt: skip
                try:
                    answer = await http.send(request, stream=True)
                    content = await self.read(answer)
                except httpx.HTTPError as error:
                    self.cut("picture", error, sent == [True])
                    continue
                if answer.status_code == 200:
                    self.check(f"{number}.{form}", content)
                elif answer.status_code != 429:
                    self.wrong.append(f"status {answer.status_code}: {content[:300]}")

    async def read(self, answer: httpx.Response) -> bytes:
        """The body, slowly where it is large."""
        content = b""
        try:
            async for chunk in answer.aiter_raw(1 << 16):
                content += chunk
                await asyncio.sleep(0.01 if len(content) > 1 << 17 else 0)
        finally:
            await answer.aclose()
        return content

    async def visitor(self) -> None:
        """A video on the page: sent, chosen, coloured, downloaded, again and again."""
        while not self.signalled:
            async with httpx.AsyncClient(base_url=self.address, timeout=LIMIT) as http:
                try:
                    self.check("video", await colour_video(http, self.video))
                except httpx.HTTPError as error:
                    self.cut("video", error, False)
                except Stopped:
                    self.tally["video stopped, with a message"] += 1

    def check(self, what: str, content: bytes) -> None:
        found = digest(what, content)
        right = self.known.setdefault(what, found) == found
        self.tally[f"{'video' if what == 'video' else 'picture'} whole and right"] += right
        if not right:
            self.wrong.append(f"{what}: {len(content)} bytes with status 200 that are another one")

    def cut(self, what: str, error: Exception, sent_before: bool) -> None:
        if not self.signalled:
            self.wrong.append(f"{what}, before the signal: {error!r}")
        self.tally[f"{what}: {type(error).__name__}"] += 1
        self.tally["unanswered, sent before the signal"] += sent_before


class Stopped(Exception):
    """The page says that the server ends."""


async def colour_video(http: httpx.AsyncClient, video: bytes) -> bytes:
    """The result of the page's `Colour all frames`."""
    kind = {"Content-Type": "application/octet-stream"}
    sent = await http.post("/files", params={"name": "a.mkv"}, content=video, headers=kind)
    token = sent.raise_for_status().json()["token"]
    config = (await http.get("/config")).raise_for_status().json()
    values = {each["id"]: each["props"].get("value") for each in config["components"]}
    ids = {each["props"].get(key): each["id"] for each in config["components"]
           for key in ("elem_id", "value") if isinstance(each["props"].get(key), str)}  # fmt: skip
    session = os.urandom(8).hex()
    chosen = {"token": token, "name": "a.mkv"}
    for name, kind_of_event, data in (
        ("drop", "select", chosen | {"files": [chosen]}),
        ("Colour all frames", "click", None),
    ):
        dependency = next(
            each for each in config["dependencies"] if [ids[name], kind_of_event] in each["targets"]
        )
        event = {
            "fn_index": dependency["id"], "session_hash": session, "trigger_id": ids[name],
            "data": [values.get(each) for each in dependency["inputs"]], "event_data": data,
        }  # fmt: skip
        (await http.post("/gradio_api/queue/join", json=event)).raise_for_status()
        output = await event_output(http, session)
    found = re.search(r"src=\"files/([\w-]+)\"", json.dumps(output).replace('\\"', '"'))
    if not found:
        if "was stopped" in str(output):
            raise Stopped
        raise Wrong(f"no video: {output}")
    answer = await http.get(f"/files/{found[1]}")
    return answer.raise_for_status().content


async def event_output(http: httpx.AsyncClient, session: str) -> dict:
    """What an event of the page came to.

    Raises:
        httpx.HTTPError: the server ended before.
    """
    place = "/gradio_api/queue/data"
    async with http.stream("GET", place, params={"session_hash": session}) as stream:
        async for line in stream.aiter_lines():
            message = json.loads(line.removeprefix("data: ")) if line else {}
            if message.get("msg") == "process_completed":
                if not message["success"]:
                    raise Wrong(f"the page failed: {message}")
                return message["output"]
    raise httpx.RemoteProtocolError("the events ended before the result")


def digest(what: str, content: bytes) -> str:
    if what != "video":
        return hashlib.sha256(content).hexdigest()
    with av.open(io.BytesIO(content)) as file:  # its bytes may have a time in them
        frames = [frame.to_ndarray(format="rgb24").tobytes() for frame in file.decode(video=0)]
    if len(frames) != FRAMES:
        raise Wrong(f"a video of {len(frames)} of {FRAMES} frames")
    return hashlib.sha256(b"".join(frames)).hexdigest()


def check_known(known: dict[str, str], pictures: list[bytes], model: Path, port: int) -> None:
    """Fill ``known`` from a server that nobody disturbs; its PNG must show the library's pixels."""
    colorizer = Colorizer.from_pretrained(model, device="cpu")
    for number, file in enumerate(pictures):
        for form in FORMATS:
            address = f"http://127.0.0.1:{port}/v1/colorize"
            answer = httpx.post(address, params={"format": form}, content=file, timeout=LIMIT)
            known[f"{number}.{form}"] = digest(form, answer.raise_for_status().content)
            if form == "png":
                with Image.open(io.BytesIO(answer.content)) as picture:
                    same = np.array_equal(np.asarray(picture), colorizer(file))
                if not same:
                    raise Wrong(f"picture {number} is not that of the library")


def left(temporary: Path, home: Path) -> list[str]:
    """What lies in the folders that a server may write to."""
    return [str(path) for folder in (temporary, home) for path in sorted(folder.iterdir())]


def trials(count: int, number: signal.Signals, root: Path, moments: random.Random) -> int:
    """Signals to ``count`` servers; the number of trials that failed."""
    temporary, home, model = root / "tmp", root / "home", root / "model.safetensors"
    temporary.mkdir()
    home.mkdir()
    os.environ |= {"TMPDIR": str(temporary), "HOME": str(home), "XDG_CACHE_HOME": str(home)}
    tempfile.tempdir = None  # look again
    torch.manual_seed(0)
    # small enough that a frame's colours are the same to the bit in any batch
    network = NETWORK | {"working_size": 256}
    save_model(model, build_network(network), network)
    write_video(root / "a.mkv")
    samples = page.render_samples()  # nine tenths of a start, and the same each time
    page.render_samples = lambda: samples
    pictures, video = write_pictures(), (root / "a.mkv").read_bytes()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    known: dict[str, str] = {}
    began = time.monotonic()
    with Server(root, port, model, fresh=False) as server:
        server.wait_for_start()
        start = time.monotonic() - began
        check_known(known, pictures, model, port)
        known_video(known, port, video)
        server.send(signal.SIGTERM)
        if status := server.wait_for_end():
            raise Wrong(f"the undisturbed server ended with {status}: {server.log.read_text()}")
    if found := left(temporary, home):
        raise Wrong(f"the undisturbed server leaves {found}")
    print(f"start {start:.1f} s; {len(known)} known results", flush=True)
    tally, failed = Counter(), 0
    for trial in range(count):
        load = Load(port, pictures, video, known)
        try:
            with Server(root, port, model, fresh=trial % FRESH == FRESH - 1) as server:
                if number is signal.SIGKILL and moments.random() < 0.2:
                    # a process of its own takes some four times as long
                    time.sleep(moments.uniform(0, start * (4 if server.fresh else 1)))
                    server.send(number)
                    tally["signals while starting"] += 1
                else:
                    server.wait_for_start()
                    found = left(temporary, home)
                    if len(found) > 1:  # the folder of this server
                        raise Wrong(f"left by the one before: {found}")
                    longest = LONG_LOAD if trial % 10 == 5 else LOAD
                    asyncio.run(load.run(moments.uniform(0, longest), server, number))
                    tally["signals under load"] += 1
                status = server.wait_for_end()
            if number is signal.SIGTERM:
                if status:
                    load.wrong.append(f"exit status {status}: {server.log.read_text()[-1000:]}")
                if unanswered := load.tally["unanswered, sent before the signal"]:
                    load.wrong.append(f"{unanswered} unanswered: {dict(load.tally)}")
                if found := left(temporary, home):
                    load.wrong.append(f"left: {found}")
        except Wrong as error:
            load.wrong.append(str(error))
        tally += load.tally
        failed += bool(load.wrong)
        for line in load.wrong:
            print(f"trial {trial}: {line}", flush=True)
        if trial % 50 == 49:
            print(f"after {trial + 1}, {time.monotonic() - began:.0f} s: {dict(tally)}", flush=True)
    with Server(root, port, model, fresh=True) as server:
        server.wait_for_start()
        server.send(signal.SIGTERM)
        status = server.wait_for_end()
    if status or left(temporary, home):
        print(f"at the end: exit status {status}, left {left(temporary, home)}")
        failed += 1
    seconds = time.monotonic() - began
    print(f"{count} times {number.name} in {seconds:.0f} s, {failed} failed: {dict(tally)}")
    return failed


def known_video(known: dict[str, str], port: int, video: bytes) -> None:
    """The video of an undisturbed server, into ``known``."""

    async def colour() -> bytes:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT) as http:
            return await colour_video(http, video)

    known["video"] = digest("video", asyncio.run(colour()))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(f"torch {torch.__version__}, gradio {gradio.__version__}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        number = signal.Signals[f"SIG{given.signal}"]
        return int(trials(given.trials, number, Path(folder), random.Random(given.seed)) > 0)


if __name__ == "__main__":
    sys.exit(main())
