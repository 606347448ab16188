"""The HTTP interface: POST a thermal picture, get it in colour."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import cmmfnet
from cmmfnet.files.errors import DISK_FULL
from cmmfnet.serve.guard import Guard
from cmmfnet.serve.limits import Refused, no_room, no_such_place
from cmmfnet.serve.metrics import CONTENT_TYPE
from cmmfnet.serve.notes import warnings_by_thread
from cmmfnet.serve.service import FORMATS, ClientGone, Prepared, Reading, Service, encode
from cmmfnet.serve.wording import for_programs
from cmmfnet.thermal.palettes import PALETTES

_FIELDS = 20
"""Fields of a form, at most."""


class ReadingOptions(BaseModel):
    """How a picture is read."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(
        None, max_length=200, description="a name of /v1/models", examples=["cmmfnet"]
    )
    span: str | None = Field(
        None,
        max_length=100,
        description="LOW,HIGH in the picture's own unit (degrees Celsius, counts or grey levels); "
        "without it the 1st to 99th percentile of the frame",
        examples=["20,35"],
    )
    palette: Literal[("auto", *PALETTES)] | None = Field(  # type: ignore[valid-type]
        None, description="the false colours of the picture", examples=["ironbow"]
    )
    raw: str | None = Field(
        None,
        max_length=100,
        description="the body holds plain numbers: WIDTHxHEIGHT,TYPE",
        examples=["640x512,uint16le"],
    )
    kelvin_per_count: float | None = Field(
        None,
        description="counts become degrees Celsius by count * this - 273.15",
        examples=[0.01],
    )

    @property
    def reading(self) -> Reading:
        return Reading(self.span, self.palette, self.raw, self.kelvin_per_count)


class ColorizeOptions(ReadingOptions):
    """Query parameters, or fields of the form, of /v1/colorize."""

    text: str | None = Field(
        None,
        max_length=2000,
        description="what the picture shows; without it the model guesses, with an empty one it "
        "gets no text; '+snow -grass' corrects what it guesses",
        examples=["a street at night with a red car"],
    )
    format: Literal["png", "jpeg", "webp"] = Field("png", description="of the answer")


class TagsOptions(ReadingOptions):
    """Query parameters, or fields of the form, of /v1/tags."""

    top: int = Field(8, ge=1, le=200, description="number of tags")


class ErrorParts(BaseModel):
    """What was found, what was expected, and what to do instead."""

    status: int
    found: str
    expected: str
    instead: str


class Error(BaseModel):
    """The answer to a request that cannot be carried out."""

    error: ErrorParts


class Tag(BaseModel):
    """A thing that a model sees in a frame."""

    name: str
    probability: float = Field(ge=0, le=1)


class Tags(BaseModel):
    """The answer of /v1/tags, likeliest first."""

    model: str
    width: int
    height: int
    unit: str
    threshold: float = Field(description="tags above it are what the model takes as its text")
    tags: list[Tag]
    notes: list[str] = Field(description="warnings about the picture")


class Model(BaseModel):
    """A model of this server."""

    name: str
    default: bool
    takes_text: bool
    takes_colours: bool
    predicts_tags: bool
    words: list[str] = Field(description="the names that it knows in a text")


class Models(BaseModel):
    """The answer of /v1/models."""

    models: list[Model]
    palettes: list[str]
    formats: list[str]


class Health(BaseModel):
    """The answer of /healthz."""

    status: Literal["ok"] = "ok"
    version: str
    waiting: int = Field(description="requests that are worked on or wait")


def _example(error: Refused) -> dict[str, Any]:
    return {"application/json": {"example": error.content}}


_PICTURE = {"type": "string", "format": "binary"}
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": Error, "description": "not a request that can be read"},
    401: {"model": Error, "description": "no token, or a wrong one"},
    408: {"model": Error, "description": "the body did not arrive in time"},
    413: {"model": Error, "description": "too many bytes or pixels"},
    422: {
        "model": Error,
        "description": "no picture that can be read, or an option that does not fit",
        "content": _example(
            Refused(
                422,
                "an MP4 video",
                "a picture: PNG, TIFF, JPEG ...",
                "check the file with cmmfnet inspect FILE",
            )
        ),
    },
    429: {
        "model": Error,
        "description": "too many requests wait; Retry-After says when to send it again",
        "headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}},
    },
    503: {"model": Error, "description": "the picture was not finished in time"},
    507: {"model": Error, "description": "no space left on the server's disk, for a large form"},
}


def _body(options: type[BaseModel]) -> dict[str, Any]:
    """The two forms of a body, for OpenAPI."""
    properties = options.model_json_schema()["properties"]
    form = {"type": "object", "required": ["picture"], "additionalProperties": False}
    form["properties"] = {"picture": _PICTURE, **properties}
    content = {
        "application/octet-stream": {"schema": _PICTURE},
        "multipart/form-data": {"schema": form},
    }
    return {"requestBody": {"required": True, "content": content}}


def make_app(service: Service, *, token: str | None = None) -> FastAPI:
    """The application, without the page. ``token``: every request but /healthz must bring it."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with warnings_by_thread():
            yield

    app = FastAPI(
        title="cmmfnet",
        description="Thermal-infrared pictures to colour, guided by text. The colours are a "
        "plausible guess, not a measurement.",
        version=cmmfnet.__version__,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.include_router(_router(service))
    app.add_exception_handler(Refused, _on_refused)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_options)
    app.add_exception_handler(ValidationError, _on_options)
    app.add_exception_handler(OSError, _on_os_error)
    app.add_exception_handler(Exception, _on_fault)
    app.add_middleware(Guard, limits=service.limits, metrics=service.metrics, token=token)
    return app


def _router(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post(
        "/v1/colorize",
        summary="Colour a thermal picture",
        response_class=Response,
        openapi_extra=_body(ColorizeOptions),
        responses={
            200: {
                "content": {kind: {"schema": _PICTURE} for kind in FORMATS.values()},
                "description": "the picture in colour, of the size of the input",
                "headers": {
                    "X-Model": {"schema": {"type": "string"}},
                    "X-Notes": {
                        "schema": {"type": "string"},
                        "description": "a JSON list of warnings about picture and text",
                    },
                },
            },
            **_ERRORS,
        },
    )
    async def colorize(request: Request, options: Annotated[ColorizeOptions, Query()]) -> Response:
        """The body is the file of a picture, with options in the query; or a form, whose field
        `picture` is the file, with options in the query or in further fields. Nothing of it is
        kept."""
        async with service.turn() as turn:
            turn.reading = True
            content, options = await _read(request, options)
            turn.reading = False
            colorizer = service.colorizer(options.model)
            prepared = await service.in_pool(service.prepare, colorizer, content, options.reading)
            del content
            coloured = await service.colour(
                colorizer, prepared, options.text, request.is_disconnected
            )
            name = _name_of(service, colorizer)
            file = await service.in_pool(encode, options.format, coloured.rgb, name, options.span)
        headers = {"X-Model": name, "X-Notes": json.dumps(list(map(for_programs, coloured.notes)))}
        return Response(file, media_type=FORMATS[options.format], headers=headers)

    @router.post(
        "/v1/tags",
        summary="The things that a model sees in a thermal picture",
        openapi_extra=_body(TagsOptions),
        responses=_ERRORS,
    )
    async def tags(request: Request, options: Annotated[TagsOptions, Query()]) -> Tags:
        """The body is as for /v1/colorize."""
        async with service.turn() as turn:
            turn.reading = True
            content, options = await _read(request, options)
            turn.reading = False
            colorizer = service.colorizer(options.model)
            prepared: Prepared = await service.in_pool(
                service.prepare, colorizer, content, options.reading
            )
            found = await service.tags(colorizer, prepared, options.top, request.is_disconnected)
        height, width = prepared.thermal.values.shape
        return Tags(
            model=_name_of(service, colorizer),
            width=width,
            height=height,
            unit=prepared.thermal.unit,
            threshold=colorizer.traits.tag_threshold,
            tags=[Tag(name=name, probability=p) for name, p in found],
            notes=list(map(for_programs, prepared.notes)),
        )

    @router.get("/v1/models", summary="The models of this server", responses=_only(401))
    async def models() -> Models:
        found = []
        for i, (name, colorizer) in enumerate(service.models.items()):
            traits = colorizer.traits
            found.append(
                Model(
                    name=name,
                    default=i == 0,
                    takes_text=traits.takes_text,
                    takes_colours=traits.takes_colours,
                    predicts_tags=traits.predicts_tags,
                    words=list(traits.words),
                )
            )
        return Models(models=found, palettes=list(PALETTES), formats=list(FORMATS))

    @router.get("/healthz", summary="Whether the server answers")
    async def healthz() -> Health:
        return Health(version=cmmfnet.__version__, waiting=service.waiting)

    @router.get(
        "/metrics",
        summary="Numbers for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}, **_only(401)},
    )
    async def metrics() -> Response:
        return Response(service.metrics.page(), headers={"Content-Type": CONTENT_TYPE})

    return router


def _only(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: _ERRORS[status] for status in statuses}


def _name_of(service: Service, colorizer: Any) -> str:
    return next(name for name, each in service.models.items() if each is colorizer)


async def _read(request: Request, options: Any) -> tuple[bytes, Any]:
    """The bytes of the picture in a request, and its options with those of a form.

    Raises:
        Refused: no picture in it, or an option twice. ValidationError: a field of the form that
            does not fit.
    """
    names = [name for name, _ in request.query_params.multi_items()]
    _check_once(names)
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        content = bytearray()
        async for chunk in request.stream():
            content += chunk
        if not content:
            raise _no_picture("an empty body")
        return bytes(content), options
    async with request.form(max_files=1, max_fields=_FIELDS) as form:
        files = [value for value in form.values() if isinstance(value, UploadFile)]
        if len(files) != 1:
            raise _no_picture("a form without a file")
        fields = [(key, v) for key, v in form.multi_items() if isinstance(v, str)]
        _check_once([*names, *(key for key, _ in fields)])
        given = options.model_dump(exclude_unset=True)
        options = type(options).model_validate(given | dict(fields))
        content = await files[0].read()
    if not content:
        raise _no_picture("an empty file")
    return content, options


def _check_once(names: list[str]) -> None:
    """Refuse an option that is given twice, of which one would be lost."""
    if twice := [name for name in names if names.count(name) > 1]:
        raise Refused(
            422, f"the option {twice[0][:100]!r} twice", "each option once", "leave one of them out"
        )


def _no_picture(found: str) -> Refused:
    return Refused(
        422,
        found,
        "the file of a thermal picture",
        "send it as the body (curl --data-binary @FILE) or in a form (curl -F picture=@FILE)",
    )


# --- errors


def _answer(error: Refused) -> JSONResponse:
    return JSONResponse(error.content, error.status, error.headers)


async def _on_refused(_: Request, error: Refused) -> JSONResponse:
    return _answer(error)


async def _on_http(request: Request, error: HTTPException) -> JSONResponse:
    """Errors of the framework: no such address, another method, a damaged form."""
    status, detail = error.status_code, str(error.detail)
    place = no_such_place(request.method, request.url.path)
    found, expected = place.found, place.expected
    if status == 400:
        found = f"a request that cannot be read ({detail})"
        expected = "the file of a picture, or a form with one"
    elif status not in (404, 405):
        found = f"{HTTPStatus(status).phrase}: {detail}"
    return _answer(Refused(status, found, expected, place.instead, dict(error.headers or {})))


async def _on_options(
    request: Request, error: RequestValidationError | ValidationError
) -> JSONResponse:
    """An option that does not fit."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"] if part not in ("query", "body"))
    value = str(first.get("input"))[:100]
    what = first["msg"][:1].lower() + first["msg"][1:]
    if first["type"] == "extra_forbidden":
        options = TagsOptions if request.url.path.endswith("/tags") else ColorizeOptions
        expected = f"some of {', '.join(options.model_fields)}"
        return _answer(Refused(422, f"the option {name[:100]!r}", expected, "leave it out"))
    return _answer(Refused(422, f"{name}={value!r}", what[:500], "see /openapi.json"))


async def _on_os_error(_: Request, error: OSError) -> JSONResponse:
    if error.errno in DISK_FULL:
        return _answer(no_room())
    raise error


async def _on_fault(_: Request, error: Exception) -> Response:
    """A mistake of this package, or a client that has hung up."""
    if isinstance(error, ClientGone | ClientDisconnect):
        return Response(status_code=499)
    return _answer(
        Refused(500, "a mistake of the server", "an answer", "tell who runs it; its log has more")
    )
