"""The limits of a server, and the error that a request outside of them gets. No FastAPI."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cmmfnet.serve.wording import for_programs

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Limits:
    """What one request may cost.

    Attributes:
        body: bytes of a picture file, or of any other request.
        video: bytes of a video file.
        pixels: of a picture, or of a frame of a video.
        frames: of a video.
        waiting: requests that are worked on or wait; further ones get status 429.
        seconds: from the first byte of a request to its answer; of a video, ten times as many.
    """

    body: int = 64 * MEGABYTE
    video: int = 500 * MEGABYTE
    pixels: int = 20_000_000
    frames: int = 3000
    waiting: int = 32
    seconds: float = 60


class Refused(Exception):
    """A request that is answered with an error.

    Attributes:
        status: of HTTP, 400 to 599.
        found, expected, instead: what was found, what was expected, and what to do instead, with
            options as on the command line (wording.py has them for clients).
        headers: further ones of the answer.
    """

    def __init__(
        self,
        status: int,
        found: str,
        expected: str,
        instead: str,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(f"{found}; expected {expected}; {instead}")
        self.status, self.headers = status, headers or {}
        self.found, self.expected, self.instead = found, expected, instead

    @property
    def content(self) -> dict[str, Any]:
        """The JSON of the answer."""
        parts = {"found": self.found, "expected": self.expected, "instead": self.instead}
        parts = {name: for_programs(part) for name, part in parts.items()}
        return {"error": {"status": self.status, **parts}}


def too_large(found: int | str, limit: int) -> Refused:
    """The error for a body of more than ``limit`` bytes."""
    return Refused(
        413,
        f"a body of {found} bytes",
        f"at most {limit} bytes",
        "send a smaller file, or start the server with a larger --max-megabytes",
        {"Connection": "close"},
    )


def busy(waiting: int, seconds: int) -> Refused:
    """The error for a request that finds the queue full."""
    return Refused(
        429,
        f"{waiting} requests that are worked on or wait",
        f"fewer than {waiting}",
        f"send it again in {seconds} s",
        {"Retry-After": str(seconds)},
    )


def no_such_place(method: str, path: str) -> Refused:
    """The error for an address that has nothing."""
    return Refused(
        404,
        f"{method} {path[:100]}",
        "POST /v1/colorize or /v1/tags, GET /v1/models, /healthz, /metrics or /openapi.json",
        "see /openapi.json, or open the page at /",
    )


def too_slow(seconds: float, *, reading: bool) -> Refused:
    """The error for a request that took too long: to arrive, or to be answered."""
    what = "its body has not arrived" if reading else "its picture is not finished"
    return Refused(
        408 if reading else 503,
        f"after {seconds:g} s {what}",
        "a request that takes less time",
        "send it again, or start the server with a larger --timeout",
        {"Connection": "close"} if reading else {"Retry-After": str(round(seconds))},
    )


def no_room() -> Refused:
    """The error for a server whose disk is full."""
    return Refused(
        507,
        "no space left on the server's disk",
        "space for temporary files",
        "send it again later; who runs the server can free space, or start it with TMPDIR on "
        "another disk",
    )
