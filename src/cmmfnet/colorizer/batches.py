"""Frames from files into pictures on disk, in batches: while one is coloured, the next is read and
the last is written."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cmmfnet.colorizer.jobs import Job
from cmmfnet.colorizer.memory import OutOfMemory, halving
from cmmfnet.colorizer.report import Report
from cmmfnet.files.errors import NO_MORE_FILES
from cmmfnet.files.pictures import dangling, write_picture
from cmmfnet.thermal.frame import Thermal, read_thermal
from cmmfnet.thermal.limits import ThermalFileError
from cmmfnet.thermal.stretch import parse_span
from cmmfnet.thermal.units import refuse_empty

if TYPE_CHECKING:
    from cmmfnet.colorizer.base import FrameColorizer, Seen


@dataclass(frozen=True, eq=False)
class _Coloured:
    """A frame's picture, the text that it was coloured with, and what the model saw, if asked."""

    picture: np.ndarray
    text: str | None
    seen: Seen | None


def colour_all(
    colorizer: FrameColorizer,
    todo: Iterable[Job],
    report: Report,
    notes: dict[str, str],
    text_of: Callable[[Job, Thermal], str | None],
    span: str | None,
    reading: dict,
    batch_size: int | None,
    *,
    tags: bool,
    keep_tags: bool,
    total: int | None,
    photos: Callable[[Job, Thermal], Path | None] | None,
) -> None:
    """Colour ``todo`` and note in ``report`` what became of each frame.

    ``reading``: options of ``read_thermal``. ``tags``: predict tags; ``keep_tags``: note them in
    the report. ``total``: number of jobs, if it is known. ``photos``: writes a frame's photo.
    Raises ``OSError`` if the disk is full or read-only: all further results would fail, too.
    """
    from tqdm import tqdm

    size = batch_size or colorizer.default_batch
    jobs = iter(todo)
    writes: list[tuple[Job, Future]] = []

    def finish_writes() -> None:
        full = None
        for job, write in writes:
            try:
                written = write.result()
                if written == job.result:
                    report.coloured.append(job.result)
                elif written is not None:
                    report.photos.append(written)
            except ThermalFileError as error:  # of a photo
                report.failed[job.label] = str(error)
            except OSError as error:
                report.failed[job.label] = (
                    f"{job.label}: its result {job.result} cannot be written: {error}"
                )
                full = error if error.errno in NO_MORE_FILES else full
        if full is not None:
            raise full

    def run(batch: Sequence[tuple[Job, Thermal]]) -> list[_Coloured]:
        given = [text_of(job, thermal) for job, thermal in batch]
        frames = [thermal for _, thermal in batch]
        asked = {"text": given, "span": span, "batch_size": size}
        if tags:
            pictures, seen = colorizer(frames, return_tags=True, **asked)
        else:
            pictures, seen = colorizer(frames, **asked), [None] * len(batch)
        return list(map(_Coloured, pictures, given, seen))

    with ThreadPoolExecutor(4) as pool, tqdm(total=total, unit="frame", disable=None) as bar:

        def read_one(job: Job) -> Thermal:
            thermal = read_thermal(job.thermal or job.file, **reading)
            if span is not None:
                refuse_empty(thermal, parse_span(span))  # here, so that one frame fails alone
            return thermal

        def start_reads() -> list[tuple[Job, Future]]:
            return [(job, pool.submit(read_one, job)) for job in itertools.islice(jobs, size)]

        try:
            ahead = start_reads()
            while ahead:
                reads, ahead = ahead, start_reads()
                good: list[tuple[Job, Thermal]] = []
                for job, read in reads:
                    try:
                        good.append((job, read.result()))
                    except (ThermalFileError, OSError) as error:
                        lost = job.file.is_symlink() and not job.file.exists()
                        report.failed[job.file] = dangling(job.file) if lost else str(error)
                coloured: list[tuple[Job, Thermal, _Coloured]] = []
                for (job, thermal), result in zip(good, halving(run, good), strict=True):
                    if isinstance(result, OutOfMemory):
                        report.failed[job.label] = str(result)
                    elif isinstance(result, Exception):
                        raise result
                    else:
                        coloured.append((job, thermal, result))
                        if result.seen is None:
                            continue
                        if keep_tags:
                            report.seen[job.label] = result.seen
                        if result.seen.night and (not result.text or "Variants" in notes):
                            report.night.append(job.label)
                finish_writes()
                writes = [
                    (
                        job,
                        pool.submit(
                            write_picture,
                            job.result,
                            each.picture,
                            notes | _text_notes(each.text, report.seen.get(job.label)),
                        ),
                    )
                    for job, _, each in coloured
                ]
                if photos is not None:
                    writes += [
                        (job, pool.submit(photos, job, thermal)) for job, thermal, _ in coloured
                    ]
                bar.update(len(reads))
            finish_writes()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # waits for the pictures that are being written
            raise


def _text_notes(text: str | None, seen: Seen | None) -> dict[str, str]:
    """What a picture notes of its text, and the names that it stands for where the text corrects
    predicted tags."""
    given_tags = seen.given_tags if seen is not None else None
    return {"Text": text or ""} | ({} if given_tags is None else {"Tags": ", ".join(given_tags)})
