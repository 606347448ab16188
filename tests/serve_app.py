"""An application with the network that is small enough to read, requests to it, and a whole
server as a process."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import numpy as np
from fake_network import Fake
from PIL import Image

from cmmfnet import Colorizer
from cmmfnet.thermal.palettes import PALETTES


def ramp(height: int = 24, width: int = 32) -> np.ndarray:
    """Counts that rise to the right."""
    return np.tile(np.linspace(7000, 8000, width).astype(np.uint16), (height, 1))


def png(pixels: np.ndarray | None = None) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(ramp() if pixels is None else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def false_colour() -> bytes:
    """A PNG file of a ramp in the colours of ironbow."""
    return png(PALETTES["ironbow"][np.tile(np.arange(256), (32, 1))])


def pixels_of(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as picture:
        return np.asarray(picture.convert("RGB"))


def fake(**options: Any) -> Colorizer:
    return Colorizer(Fake(**options), device="cpu", name="fake")


def service(*colorizers: Colorizer, **limits: Any):
    from cmmfnet.serve.limits import Limits
    from cmmfnet.serve.metrics import Metrics
    from cmmfnet.serve.service import Service

    named = {each.name: each for each in colorizers or [fake()]}
    return Service(named, Limits(**limits), Metrics())


@contextlib.asynccontextmanager
async def opened(served: Any, **options: Any) -> AsyncIterator[Any]:
    """A client of an application that runs in this event loop."""
    import httpx

    from cmmfnet.serve.api import make_app

    app = make_app(served, **options)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


def talk(conversation: Callable[[Any], Awaitable[Any]], served: Any = None, **options: Any) -> Any:
    """The result of a conversation with an application."""
    served = served or service()

    async def run() -> Any:
        async with opened(served, **options) as client:
            return await conversation(client)

    try:
        return asyncio.run(run())
    finally:
        served.close()


def post(path: str, served: Any = None, *, token: str | None = None, **request: Any) -> Any:
    """The answer to one POST."""
    return talk(lambda client: client.post(path, **request), served, token=token)


@contextlib.contextmanager
def server(*options: str, model: str = "cmmfnet-small") -> Iterator[tuple[subprocess.Popen, str]]:
    """`cmmfnet serve` with a bundled model: its process and its address."""
    command = ["serve", "--port", "0", "--device", "cpu", "--model", model, *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "cmmfnet", *command],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        yield process, re.search(r"http://\S+", process.stdout.readline())[0]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
