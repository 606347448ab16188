"""A worker: one model, which turns batches of items into pictures at the output place and records
of what became of each frame."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cmmfnet.archive.items import Item, Reader
from cmmfnet.archive.names import as_text
from cmmfnet.archive.places import Place, is_fatal, open_place, open_source
from cmmfnet.colorizer.memory import halving
from cmmfnet.colorizer.options import open_colorizer
from cmmfnet.files.errors import UserError
from cmmfnet.files.pictures import encode_picture, is_result, option_notes
from cmmfnet.thermal.decode import decode
from cmmfnet.thermal.frame import Thermal, read_thermal, thermal_of
from cmmfnet.thermal.stretch import frame_span, parse_span


@dataclass(frozen=True)
class Task:
    """What a worker does with a frame.

    Attributes:
        source, out: as the command got them.
        model, device, text, span: as for ``cmmfnet colorize``.
        reader: how files are read.
        retries: of a frame that failed.
    """

    source: str
    out: str
    model: str = "cmmfnet"
    device: str = "auto"
    text: str | None = None
    span: str | None = None
    reader: Reader = field(default_factory=Reader)
    retries: int = 2


@dataclass
class Record:
    """What became of a frame, or of a file of several frames: a row of the manifest.

    Attributes:
        input: its key.
        output: its picture, relative to the output folder; None where it failed, and for a file of
            several frames.
        container: key of the file of several frames that it is part of.
        frames: of a file of several frames; None for a frame.
        bytes, width, height: of the picture.
        span: lowest and highest value shown, in the frame's units; None for a frame of one value.
        tags: predicted tags and probabilities, likeliest first; None where the model predicts none.
        sha256: of the picture's file.
        seconds: the frame's share of its batch.
        attempts: until it succeeded, or was given up.
        error: why there is no picture.
    """

    input: str
    output: str | None = None
    container: str | None = None
    frames: int | None = None
    bytes: int | None = None
    width: int | None = None
    height: int | None = None
    span: list[float] | None = None
    tags: list[tuple[str, float]] | None = None
    sha256: str | None = None
    seconds: float | None = None
    attempts: int = 1
    error: str | None = None


@dataclass
class Outcome:
    """The records of a batch.

    Attributes:
        fatal: why no further output can be written.
        results: pictures that cmmfnet has made, which are no inputs and have no record.
    """

    records: list[Record]
    fatal: str | None = None
    results: int = 0


class OwnResult(Exception):
    """A picture that cmmfnet has made, such as by another run with its output in the source."""


class Worker:
    """Colours batches of items. Several threads may call it: while the network colours one batch,
    the next is read and the last is written."""

    def __init__(self, task: Task):
        self.task = task
        self.source: Place = open_source(task.source)[0]
        self.out: Place = open_place(task.out)
        self.colorizer = open_colorizer(task.model, task.device)
        self.span = None if task.span is None else parse_span(task.span)
        on_gpu = self.colorizer.device.type != "cpu"
        self._batch = None if on_gpu else self.colorizer.default_batch
        self._network = threading.Lock()
        # decoding keeps a core busy, a store makes its clients wait
        self._pool = ThreadPoolExecutor(4 if self.source.local and self.out.local else 16)
        reader = task.reader
        self._notes = {
            "Comment": "colours guessed from a thermal picture by a model",
            "Model": self.colorizer.name,
            **option_notes(task.span, reader.palette, reader.raw, reader.kelvin_per_count),
            "Text": task.text or "",
        }

    def __call__(self, items: Sequence[Item]) -> Outcome:
        """Colour a batch. Every item has a record afterwards, unless the output place fails or it
        is a result."""
        records = {id(item): Record(item.key, container=item.container) for item in items}
        waiting = list(items)
        results = 0
        for attempt in range(1, self.task.retries + 2):
            for item in waiting:
                records[id(item)].attempts = attempt
            failed, fatal = self._once(waiting, records)
            if fatal is not None:
                done = [record for record in records.values() if record.output is not None]
                return Outcome(done, fatal)
            for item in [item for item, error in failed if isinstance(error, OwnResult)]:
                del records[id(item)]
                results += 1
            waiting = [item for item, _ in failed if id(item) in records and not item.error]
            if not waiting:
                break
            if any(isinstance(error, OSError) for _, error in failed):  # which may pass
                time.sleep(0.1 * 2**attempt)
        return Outcome(list(records.values()), results=results)

    def _once(self, items: list[Item], records: dict[int, Record]) -> tuple[list[Item], str | None]:
        """Colour ``items`` once -> those that failed, and why no further output can be written."""
        started = time.perf_counter()
        failed: list[tuple[Item, Exception]] = []

        def fail(item: Item, error: Exception, where: str = "") -> None:
            records[id(item)].error = where + _one_line(error)
            failed.append((item, error))

        good: list[tuple[Item, Thermal]] = []
        reads = [(item, self._pool.submit(self._read, item)) for item in items]
        for item, read in reads:
            try:
                good.append((item, read.result()))
            except (UserError, OSError, MemoryError, OwnResult) as error:
                fail(item, error)
        with self._network:
            coloured = halving(self._colour, [thermal for _, thermal in good])
        writes = []
        for (item, thermal), result in zip(good, coloured, strict=True):
            if isinstance(result, Exception):
                fail(item, result)
            else:
                writes.append((item, self._pool.submit(self._write, item, thermal, *result)))
        fatal = None
        for item, write in writes:
            try:
                found = write.result()
            except OSError as error:
                where = f"its picture {self.out.where(item.output)} cannot be written: "
                if is_fatal(error):
                    fatal = fatal or where + str(error)
                fail(item, error, where)
            else:
                record = records[id(item)]
                record.error = None
                for name, value in found.items():
                    setattr(record, name, value)
        share = (time.perf_counter() - started) / max(1, len(items))
        for item in items:
            records[id(item)].seconds = round((records[id(item)].seconds or 0) + share, 6)
        return failed, fatal

    def _read(self, item: Item) -> Thermal:
        if item.error:
            raise UserError(item.error)
        thermal = item.thermal
        options = self.task.reader.options
        if thermal is None and self.source.local and item.span is None:
            path = Path(self.source.where(item.file))
            if path.is_file() and is_result(path):
                raise OwnResult
            thermal = read_thermal(path, **options)
        elif thermal is None:
            start, size = item.span or (0, None)
            content = self.source.read(item.file, self.task.reader.most_bytes, start, size)
            name = self.source.where(item.key)
            if is_result(content):
                raise OwnResult
            raw, max_pixels = options.pop("raw"), options.pop("max_pixels")
            thermal = _decoded(content, name, raw, max_pixels, **options)
        return thermal

    def _colour(self, thermals: list[Thermal]) -> list[tuple[np.ndarray, list | None]]:
        """Frames -> their pictures (H, W, 3) uint8 and tags."""
        given = {"text": self.task.text, "span": self.span}
        given["batch_size"] = self._batch or len(thermals)
        if not self.colorizer.traits.predicts_tags:
            return [(rgb, None) for rgb in self.colorizer(thermals, **given)]
        pictures, seen = self.colorizer(thermals, return_tags=True, **given)
        tags = [[(name, round(p, 4)) for name, p in each.predicted] for each in seen]
        return list(zip(pictures, tags, strict=True))

    def _write(self, item: Item, thermal: Thermal, rgb: np.ndarray, tags: list | None) -> dict:
        content = encode_picture(rgb, "PNG", self._notes)
        self.out.put(item.output, content)
        span = self.span or frame_span(thermal)
        return {
            "output": item.output,
            "bytes": len(content),
            "width": rgb.shape[1],
            "height": rgb.shape[0],
            "span": None if span is None else list(span),
            "tags": tags,
            "sha256": hashlib.sha256(content).hexdigest(),
        }


def _decoded(
    content: bytes,
    name: str,
    raw: str | None,
    max_pixels: int,
    palette: str | None,
    kelvin_per_count: float | None,
) -> Thermal:
    from cmmfnet.thermal.cameras.raw import parse_raw

    layout = None if raw is None else parse_raw(raw)
    reading = decode(io.BytesIO(content), name, len(content), max_pixels, layout)
    return thermal_of(reading, name, palette, kelvin_per_count)


def _one_line(error: Exception) -> str:
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return as_text(text[:1000])
