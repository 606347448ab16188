"""The outermost layer of a server: token, size of a body, and security headers, for every route."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.responses import JSONResponse

from cmmfnet.serve.limits import Limits, Refused, no_such_place, too_large
from cmmfnet.serve.metrics import Metrics

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
        b"style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
        b"media-src 'self' blob:; object-src 'none'; base-uri 'self'; frame-ancestors 'self'",
    ),
    (b"cache-control", b"no-store"),
)
OURS = ("/v1/", "/healthz", "/metrics", "/openapi.json", "/files")
"""How the paths begin that are not the page's."""
# Of Gradio only what its page needs: no uploads, files, proxies, recordings or code.
_GRADIO = (
    "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/gradio_api/info",
    "/gradio_api/queue/join", "/gradio_api/queue/data", "/gradio_api/startup-events",
    "/gradio_api/cancel", "/gradio_api/app_id",
)  # fmt: skip
_GRADIO_FOLDERS = ("/assets/", "/static/", "/svelte/", "/gradio_api/heartbeat/")
_LINGER = 1.0
"""Seconds for which the rest of a body is thrown away that has its answer already."""
_EVENT = 1_000_000
"""Bytes of an event of the page: a text and a few numbers."""


def _is_open(path: str) -> bool:
    """Whether there is something for clients at a path."""
    return path == "/" or path.startswith((*OURS, *_GRADIO_FOLDERS)) or path in _GRADIO


class Guard:
    """Refuses requests before the application sees them, and bodies while it reads them."""

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        *,
        limits: Limits,
        metrics: Metrics,
        token: str | None = None,
    ):
        self.app, self.limits, self.metrics, self.token = app, limits, metrics, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        exchange = _Exchange(self, scope, receive, send)
        await exchange.run()

    def check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Raise ``Refused`` for a request without the token, or to a place that is closed."""
        needs_token = self.token is not None and scope["path"] != "/healthz"
        if needs_token and not hmac.compare_digest(_given_token(headers), self.token.encode()):
            raise Refused(
                401,
                "no token, or a wrong one",
                "the header Authorization: Bearer TOKEN",
                "ask who runs this server; in a browser the token is the password",
                {"WWW-Authenticate": 'Basic realm="cmmfnet", charset="UTF-8"'},
            )
        if not _is_open(scope["path"]):
            raise no_such_place(scope["method"], scope["path"])

    def limit_of(self, path: str) -> int:
        """The bytes that the body of a request may have."""
        if path == "/files":
            return self.limits.video
        return _EVENT if path.startswith("/gradio_api/") else self.limits.body


class _Exchange:
    """One request and its answer."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send):
        self.guard, self.scope, self._receive, self._send = guard, scope, receive, send
        self.limit, self.read = guard.limit_of(scope["path"]), 0
        self.status: int | None = None
        self.refused = False
        self.arrived = False  # the whole body

    async def run(self) -> None:
        started = time.perf_counter()
        headers = dict(self.scope["headers"])
        try:
            self.guard.check(self.scope, headers)
            length = headers.get(b"content-length", b"0")
            self.arrived = length == b"0" and b"transfer-encoding" not in headers
            if not length.isdigit() or int(length) > self.limit:
                self.arrived = True  # or never: nothing of it is read
                raise too_large(length[:30].decode("latin-1"), self.limit)
        except Refused as error:
            await self.refuse(error)
        else:
            try:
                await self.guard.app(self.scope, self.receive, self.send)
            except Exception:
                if not self.refused:  # else the application stumbled over a body that ended
                    raise
        finally:
            route = _route(self.scope)
            self.guard.metrics.requests.labels(route, self.status or 500).inc()
            self.guard.metrics.seconds.labels(route).observe(time.perf_counter() - started)

    async def refuse(self, error: Refused) -> None:
        response = JSONResponse(error.content, error.status, error.headers)
        await response(self.scope, self._receive, self.send)
        self.refused = True

    async def receive(self) -> dict[str, Any]:
        if self.refused:
            return {"type": "http.disconnect"}
        message = await self._receive()
        self.arrived = self.arrived or not message.get("more_body", False)
        self.read += len(message.get("body", b""))
        if self.read > self.limit and self.status is None:
            await self.refuse(too_large(f"more than {self.limit}", self.limit))
            return {"type": "http.disconnect"}
        return message

    async def send(self, message: dict[str, Any]) -> None:
        if self.refused:
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = {key.lower() for key, _ in message["headers"]}
            if self.scope["path"].startswith(("/assets/", "/static/")):
                given.add(b"cache-control")  # they are the same for everybody
            more = [pair for pair in _HEADERS if pair[0] not in given]
            message = message | {"headers": [*message["headers"], *more]}
        elif not self.arrived and not message.get("more_body", False):
            # A connection that is closed with bytes unread loses the answer
            await self._send(message | {"more_body": True})
            await self._throw_rest_away()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _throw_rest_away(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER):
                while (await self._receive()).get("more_body", False):
                    pass


def _route(scope: Scope) -> str:
    """A name for the kind of a request, one of few."""
    if scope["path"].startswith(OURS):
        return getattr(scope.get("route"), "path", None) or "other"
    return "page" if _is_open(scope["path"]) else "other"


def _given_token(headers: dict[bytes, bytes]) -> bytes:
    """The token of a request: of ``Bearer TOKEN``, or the password that a browser asks for."""
    scheme, _, value = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer":
        return value.strip()
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except ValueError:
            pass
    return b""
