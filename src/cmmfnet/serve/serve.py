"""``cmmfnet serve``: the command. The server listens until Ctrl-C or SIGTERM and then finishes what
it has accepted."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmmfnet.files.errors import UserError
from cmmfnet.serve.limits import MEGABYTE, Limits

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

_SHORTEST_TOKEN = 16
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LAST_BYTES = 0.5
"""Seconds for which the end waits for the bytes of requests that are on their way."""


def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    model: str = "cmmfnet,cmmfnet-small",
    device: str = "auto",
    token_file: str | None = None,
    max_megabytes: int = 64,
    max_pixels: int = 20_000_000,
    queue: int = 32,
    timeout: float = 60,
) -> None:
    """Colour pictures over HTTP, for browsers and programs (docs/serve.md).

    Only programs of this machine reach the server, unless --host opens it. Nothing that is sent to
    it is kept. The colours are a plausible guess, not a measurement.

    Args:
        host: address to listen at; 0.0.0.0 opens the server to the network
        port: to listen at; 0 picks a free one
        model: names of `cmmfnet models`, .safetensors files, hf:OWNER/REPO@COMMIT or .onnx files,
            separated by commas; clients choose among them, the first is the default
        device: auto, cpu, cuda, cuda:1 or mps
        token_file: file with a token that every request must bring
        max_megabytes: larger requests are refused
        max_pixels: pictures of more pixels are refused before they are decoded
        queue: requests that are worked on or wait; further ones are refused with status 429
        timeout: seconds until a request is given up

    Raises:
        UserError: the request makes no sense, or the address is in use.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    try:
        import fastapi  # noqa: F401
        import gradio  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"serve needs FastAPI and more ({error}): pip install 'cmmfnet[serve]'"
        ) from error

    limits = _limits(max_megabytes, max_pixels, queue, timeout)
    token = read_token(token_file) if token_file is not None else None
    listening = listen(host, port)
    try:
        app = build(model, device, limits, token)
        run(app, listening, limits, functools.partial(_announce, listening, token))
    finally:
        listening.close()


def _announce(listening: socket.socket, token: str | None) -> None:
    address = listening.getsockname()
    shown = f"[{address[0]}]" if ":" in address[0] else address[0]
    print(f"cmmfnet: listening at http://{shown}:{address[1]}  (Ctrl-C ends it)", flush=True)
    if token is None and not _is_loopback(address[0]):
        print(
            "cmmfnet: everybody who reaches this address may use it; --token-file asks for a token",
            file=sys.stderr,
        )


def _limits(max_megabytes: int, max_pixels: int, queue: int, timeout: float) -> Limits:
    for option, value, least in (
        ("--max-megabytes", max_megabytes, 1),
        ("--max-pixels", max_pixels, 1),
        ("--queue", queue, 1),
        ("--timeout", timeout, 1),
    ):
        if not value >= least:
            raise UserError(f"{option} is {value}; expected {least} or more")
    return Limits(body=max_megabytes * MEGABYTE, pixels=max_pixels, waiting=queue, seconds=timeout)


def read_token(path: str) -> str:
    """The token in a file, without the white space around it.

    Raises:
        UserError: no such file, or no token that a header can hold.
    """
    try:
        token = Path(path).read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise UserError(f"--token-file {path} cannot be read ({error})") from error
    if len(token) < _SHORTEST_TOKEN or any(not "!" <= letter <= "~" for letter in token):
        raise UserError(
            f"--token-file {path} holds {len(token)} characters; expected one token of at least "
            f"{_SHORTEST_TOKEN} letters and digits, such as that of: openssl rand -hex 16"
        )
    return token


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address.

    Raises:
        UserError: the address is in use, or not one of this machine.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port is {port}; expected 0 to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"cannot listen at {host}, port {port} ({error}); choose another --port, or a --host "
            "of this machine"
        ) from error


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def build(model: str, device: str, limits: Limits, token: str | None) -> FastAPI:
    """The application with its models loaded.

    Raises:
        UserError: a model that cannot be loaded.
    """
    from cmmfnet.colorizer.options import open_colorizer
    from cmmfnet.serve.api import make_app
    from cmmfnet.serve.blocks import add_page
    from cmmfnet.serve.metrics import Metrics
    from cmmfnet.serve.service import Service

    names = list(dict.fromkeys(name.strip() for name in model.split(",") if name.strip()))
    if not names:
        raise UserError("--model names none; expected one or more, separated by commas")
    models = {}
    for name in names:
        colorizer = open_colorizer(name, device)
        shown = name if name not in models and "/" not in name else colorizer.name
        if shown in models:
            raise UserError(f"--model has two models named {shown}; rename one of the files")
        models[shown] = colorizer
    app = make_app(Service(models, limits, Metrics()), token=token)
    app.state.page = add_page(app)
    return app


def run(
    app: FastAPI, listening: socket.socket, limits: Limits, started: Callable[[], None]
) -> None:
    """Answer requests until Ctrl-C or SIGTERM, then finish those that were sent before.

    Args:
        started: called once requests are answered.
    """
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.state.page.stop()
            await _take_last_requests(self, listening)
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app,
        access_log=False,  # addresses hold texts of visitors
        log_level="warning",
        server_header=False,
        # longer than a usual Retry-After: a client that comes back while its connection is being
        # closed loses its request
        timeout_keep_alive=75,
        timeout_graceful_shutdown=round(limits.seconds) + 5,
        ws="none",
        proxy_headers=False,
    )
    server = Server(config)

    def end(*_: object) -> None:
        server.should_exit = True

    # uvicorn has handlers of its own while it runs. These are for a signal that comes before, and
    # for the one that uvicorn sends itself once it has stopped
    before = {each: signal.signal(each, end) for each in _SIGNALS}
    try:
        asyncio.run(server.serve(sockets=[listening]))
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        app.state.service.close()


async def _take_last_requests(server: uvicorn.Server, listening: socket.socket) -> None:
    """Stop listening, and read what clients have sent already: closing a socket resets each
    connection that has not been accepted, or whose bytes have not been read."""
    loop = asyncio.get_running_loop()
    try:
        loop.remove_reader(listening)
    except NotImplementedError:  # the event loop of Windows
        return
    await asyncio.sleep(0.02)  # asyncio finishes what it has accepted
    accepted = []
    with contextlib.suppress(BlockingIOError):
        while True:
            accepted.append(listening.accept()[0])
    for each in server.servers:  # at once, so that no further connection comes between
        each.close()
    make = functools.partial(
        server.config.http_protocol_class,
        config=server.config,
        server_state=server.server_state,
        app_state=server.lifespan.state,
    )
    for connection in accepted:
        connection.setblocking(False)
        await loop.connect_accepted_socket(make, connection)
    end = loop.time() + _LAST_BYTES
    while loop.time() < end and any(map(_expects_request, server.server_state.connections)):
        await asyncio.sleep(0.005)


def _expects_request(connection: Any) -> bool:
    """Whether a request is on its way: the first one of a connection, or bytes of the next one."""
    if connection.transport.is_closing():
        return False
    if connection.cycle is None:
        return True
    if not connection.cycle.response_complete:
        return False
    poll = select.poll()
    poll.register(connection.transport.get_extra_info("socket"), select.POLLIN)
    return bool(poll.poll(0))
