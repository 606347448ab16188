"""The page's way of bringing files: its drop zone sends them here, results are downloaded here."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.responses import FileResponse

from cmmfnet.serve.limits import Refused, too_slow
from cmmfnet.serve.service import Service
from cmmfnet.serve.shelf import Shelf

_VIDEO_TIME = 10
"""A video may take so many times longer to arrive than a picture."""
_BY_SCRIPT = "application/octet-stream"
"""A page of another site cannot send this media type without being asked first."""


def gone() -> Refused:
    """The error for a file that is not on the shelf any more."""
    return Refused(
        404, "no such file any more", "a file of the last minutes", "drop it on the page again"
    )


def files_router(service: Service, shelf: Shelf) -> APIRouter:
    """The routes under /files. They are the page's own and may change."""
    router = APIRouter(include_in_schema=False)

    @router.post("/files")
    async def send(request: Request, name: str = Query("file", max_length=1000)) -> dict[str, str]:
        if request.headers.get("content-type") != _BY_SCRIPT:
            raise Refused(415, "another media type", _BY_SCRIPT, "use POST /v1/colorize")
        seconds = service.limits.seconds * _VIDEO_TIME
        kept = shelf.new(name)
        try:
            async with asyncio.timeout(seconds):
                async for chunk in request.stream():
                    shelf.add(kept, chunk)
        except TimeoutError:
            shelf.drop(kept.token)
            raise too_slow(seconds, reading=True) from None
        except BaseException:
            shelf.drop(kept.token)
            raise
        return {"token": kept.token}

    @router.get("/files/{token}")
    async def fetch(token: str) -> FileResponse:
        kept = shelf.get(token)
        if kept is None or not kept.media:
            raise gone()
        return FileResponse(kept.path, media_type=kept.media, filename=kept.name)

    @router.delete("/files/{token}")
    async def remove(token: str) -> Response:
        shelf.drop(token)
        return Response(status_code=204)

    return router


def sweep_regularly(app: FastAPI, shelf: Shelf) -> None:
    """Let an application remove old files while it runs, and all at its end."""
    inner = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def lifespan(running: FastAPI) -> AsyncIterator[object]:
        async def sweep() -> None:
            while True:
                await asyncio.sleep(min(30, shelf.seconds))
                shelf.sweep()

        task = asyncio.create_task(sweep())
        try:
            async with inner(running) as state:
                yield state
        finally:
            task.cancel()
            shelf.close()

    app.router.lifespan_context = lifespan
