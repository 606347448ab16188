"""What a server does with a picture: read, colour, encode, within its limits. No FastAPI."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from cmmfnet.colorizer.base import NIGHT_NOTE
from cmmfnet.files.errors import UserError
from cmmfnet.files.pictures import OWN_SPAN, encode_picture
from cmmfnet.serve.engine import Engine, Job
from cmmfnet.serve.limits import Limits, Refused, busy, too_slow
from cmmfnet.serve.metrics import Metrics
from cmmfnet.serve.notes import collected
from cmmfnet.text.prompt import read_prompt
from cmmfnet.thermal.frame import Thermal, read_thermal
from cmmfnet.thermal.limits import TooManyPixelsError
from cmmfnet.thermal.stretch import parse_span

if TYPE_CHECKING:
    from cmmfnet.colorizer.base import Frame, FrameColorizer, Seen

Result = TypeVar("Result")
FORMATS = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
"""Pictures that are sent -> their media types."""
_LONGEST_SIDE = {"png": 1 << 31, "jpeg": 65_535, "webp": 16_383}
_KINDS = "PNG, TIFF, JPEG, BMP, WebP, FLIR or DJI file, CPTV or NumPy array, of one frame"
_READERS = 4
"""Threads that decode and encode pictures."""
_CPU_BATCH = 4


@dataclass(frozen=True)
class Reading:
    """How the bytes of a picture are read; as in ``read_thermal``."""

    span: str | None = None
    palette: str | None = None
    raw: str | None = None
    kelvin_per_count: float | None = None


@dataclass(frozen=True, eq=False)
class Prepared:
    """A picture ready for the network.

    Attributes:
        thermal, frame: as read, and stretched.
        notes: warnings about it, in words.
    """

    thermal: Thermal
    frame: Frame
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Coloured:
    """A coloured picture: (H, W, 3) uint8 RGB, the predicted tags, and notes."""

    rgb: np.ndarray
    seen: Seen | None
    notes: list[str]


@dataclass
class Turn:
    """A request on its way. ``reading``: its body is still to come."""

    reading: bool = False


class Service:
    """Colours pictures for many clients with a few models.

    Attributes:
        models: name -> colorizer; the first is the default.
        limits, metrics: of the server.
    """

    def __init__(self, models: Mapping[str, FrameColorizer], limits: Limits, metrics: Metrics):
        self.models, self.limits, self.metrics = dict(models), limits, metrics
        batch = max(_CPU_BATCH, *(model.default_batch for model in self.models.values()))
        self._engine = Engine(batch, metrics.batches.observe)
        self._pool = ThreadPoolExecutor(_READERS, thread_name_prefix="cmmfnet-reader")
        self._places, self._lock = 0, threading.Lock()
        self._seconds_each = 0.0  # of late, between two answers

    def close(self) -> None:
        """Finish what waits, and end the threads."""
        self._engine.stop()
        self._pool.shutdown()

    @property
    def waiting(self) -> int:
        """Requests that are worked on or wait."""
        return self._places

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue, for one request, from before its body is read to its answer.

        Raises:
            Refused: the queue is full.
        """
        with self._lock:
            if self._places >= self.limits.waiting:
                raise busy(self._places, max(1, math.ceil(self._places * self._seconds_each)))
            self._places += 1
            ahead, started = self._places, time.monotonic()
            self.metrics.waiting.set(ahead)
        try:
            yield
            each = (time.monotonic() - started) / ahead
            self._seconds_each += (each - self._seconds_each) * 0.1
        finally:
            with self._lock:
                self._places -= 1
                self.metrics.waiting.set(self._places)

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """A place in the queue, for as long as a request may take.

        Raises:
            Refused: the queue is full, or the time is over.
        """
        turn = Turn()
        with self.place():
            try:
                async with asyncio.timeout(self.limits.seconds):
                    yield turn
            except TimeoutError:
                raise too_slow(self.limits.seconds, reading=turn.reading) from None

    def colorizer(self, name: str | None) -> FrameColorizer:
        """The model of that name, None for the default.

        Raises:
            Refused: no such model.
        """
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise Refused(
                422,
                f"model {name[:100]!r}",
                f"one of {', '.join(self.models)}",
                "leave it out for the first of them",
            )
        return self.models[name]

    async def in_pool(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """The result of ``function`` in a thread for pictures."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    # --- the steps of a request

    def prepare(
        self,
        colorizer: FrameColorizer,
        source: bytes | Callable[[], Thermal],
        reading: Reading,
    ) -> Prepared:
        """Decode a picture and stretch it. ``source``: its file, or what reads it.

        Raises:
            Refused: no picture that can be read, too many pixels, or a span that does not fit.
        """
        with collected() as notes:
            try:
                span = parse_span(reading.span) if reading.span is not None else None
            except ValueError as error:
                raise refused(
                    error, "--span LOW,HIGH", "leave it out, or give two numbers"
                ) from None
            try:
                thermal = (
                    source()
                    if callable(source)
                    else read_thermal(
                        source,
                        palette=reading.palette,
                        max_pixels=self.limits.pixels,
                        raw=reading.raw,
                        kelvin_per_count=reading.kelvin_per_count,
                    )
                )
            except TooManyPixelsError:
                raise Refused(
                    413,
                    f"a picture of more than {self.limits.pixels} pixels",
                    f"at most {self.limits.pixels}",
                    "reduce it, or start the server with a larger --max-pixels",
                ) from None
            except UserError as error:
                named = {"--raw": reading.raw, "--kelvin-per-count": reading.kelvin_per_count}
                given = " and ".join(name for name, value in named.items() if value is not None)
                raise refused(
                    error,
                    f"a {_KINDS}" + (f", that fits {given}" if given else ""),
                    f"check {given}" if given else "check the file with cmmfnet inspect FILE",
                ) from None
            try:
                frame = colorizer.prepare(thermal, span)
            except UserError as error:
                expected = "--span LOW,HIGH with values of the picture between"
                raise refused(
                    error, expected, "leave --span out, or give the one that fits"
                ) from None
        return Prepared(thermal, frame, [_anonymous(note) for note in notes])

    def check_text(self, colorizer: FrameColorizer, text: str | None) -> list[str]:
        """Notes on a text, such as words that the model does not know.

        Raises:
            Refused: this model cannot take this text.
        """
        if text is None:
            return []
        traits = colorizer.traits
        with collected() as notes:
            try:
                colorizer.text_input(text, np.zeros(len(traits.words), np.float32))
                if traits.takes_names and text.strip():  # again, as texts are cached
                    colorizer.warn_unused(read_prompt(text, traits.words))
            except ValueError as error:
                what = "names of things, perhaps with colours, in at most 2,000 characters"
                raise refused(error, what, "see docs/text.md, or leave the text out") from None
        return list(dict.fromkeys(notes))

    async def colour(
        self,
        colorizer: FrameColorizer,
        prepared: Prepared,
        text: str | None,
        gone: Callable[[], Awaitable[bool]] | None = None,
        *,
        tags: bool = False,
    ) -> Coloured:
        """Colour a picture.

        Args:
            tags: also predict tags, with a model that can. Without text a model whose tags come out
                of the colouring pass always predicts them, for the note about frames that look like
                night.
            gone: says whether the client has hung up: then a picture that waits is dropped.

        Raises:
            Refused: the text does not fit, or the network gave NaN. ClientGone: of ``gone``.
        """
        notes = await self.in_pool(self.check_text, colorizer, text)
        traits = colorizer.traits
        tags = traits.predicts_tags and (tags or (traits.heads and not text))
        done = self._engine.submit(Job(colorizer, prepared.frame, text, tags=tags))
        colour, seen = await _result(done, gone)
        try:
            rgb = await self.in_pool(colorizer.finish, colour, prepared.frame)
        except FloatingPointError as error:
            raise refused(error, "finite colours", "choose another model", status=500) from None
        dark = [f"the picture {NIGHT_NOTE}"] if seen is not None and seen.night and not text else []
        return Coloured(rgb, seen, [*prepared.notes, *notes, *dark])

    async def tags(
        self,
        colorizer: FrameColorizer,
        prepared: Prepared,
        top: int,
        gone: Callable[[], Awaitable[bool]] | None = None,
    ) -> list[tuple[str, float]]:
        """The ``top`` likeliest tags of a picture, with their probabilities.

        Raises:
            Refused: the model predicts none. ClientGone: of ``gone``.
        """
        if not colorizer.traits.predicts_tags:
            predicting = [n for n, m in self.models.items() if m.traits.predicts_tags]
            raise Refused(
                422,
                f"model {colorizer.name!r}, which predicts no tags",
                f"one of {', '.join(predicting)}" if predicting else "a model that predicts tags",
                "choose another model" if predicting else "start the server with cmmfnet",
            )
        done = self._engine.submit(Job(colorizer, prepared.frame, colour=False, tags=True))
        return colorizer.likeliest(await _result(done, gone), top)


class ClientGone(Exception):
    """Nobody waits for the answer."""


async def _result(done: Future, gone: Callable[[], Awaitable[bool]] | None) -> Any:
    waiting = asyncio.wrap_future(done)  # is cancelled with the request, and then so is ``done``
    while gone is not None and not waiting.done():
        await asyncio.wait({waiting}, timeout=1)
        if not waiting.done() and await gone():
            done.cancel()
            raise ClientGone
    return await waiting


def encode(form: str, rgb: np.ndarray, model: str, span: str | None) -> bytes:
    """A picture as a file; it has notes on how it was made, and nothing of the input's own notes.

    Raises:
        Refused: the picture is too large for the format.
    """
    height, width = rgb.shape[:2]
    if max(height, width) > _LONGEST_SIDE[form]:
        raise Refused(
            422,
            f"{form} for a picture of {width} x {height} pixels",
            f"at most {_LONGEST_SIDE[form]} pixels a side",
            "ask for png",
        )
    notes = {
        "Comment": "colours guessed from a thermal picture by a model",
        "Model": model,
        "Span": span or OWN_SPAN,
    }
    return encode_picture(rgb, form.upper(), notes)


def refused(error: Exception, expected: str, instead: str, status: int = 422) -> Refused:
    """An error of the library as an answer."""
    return Refused(status, _anonymous(str(error)), expected, instead)


def _anonymous(message: str) -> str:
    """A message about bytes, which have no name of their own."""
    return re.sub(r"^(<\d+ bytes>: )?(found )?", "", message)
