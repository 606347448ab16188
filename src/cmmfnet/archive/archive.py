"""``cmmfnet archive``: any number of frames, on this machine or on a cluster; resumable, with a
manifest of every frame."""

from __future__ import annotations

import hashlib
import itertools
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmmfnet import __version__
from cmmfnet.archive.items import End, Item, Listed, Reader, Scan
from cmmfnet.archive.manifest import Manifest, pyarrow
from cmmfnet.archive.names import shown
from cmmfnet.archive.places import Folder, Place, open_place, open_source
from cmmfnet.archive.worker import Outcome, Record, Task, Worker
from cmmfnet.colorizer.options import check_options
from cmmfnet.colorizer.warned import few_warnings
from cmmfnet.files.counted import counted
from cmmfnet.files.errors import UserError
from cmmfnet.thermal.limits import MAX_PIXELS

SHOWN_FAILURES = 20
"""Failed frames that are printed; the manifest has all of them."""


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Options of ``cmmfnet archive`` for Ray.

    Attributes:
        workers: processes with a model each, run by Ray (pip install 'cmmfnet[ray]'); without it
            one process does all, without Ray
        address: of a Ray cluster, e.g. auto or ray://head:10001; without it Ray runs on this
            machine
        cpus: CPU cores of each worker
        gpus: GPUs of each worker; 0.25 puts four workers on one GPU
    """

    workers: int | None = None
    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0

    def check(self) -> None:
        """Refuse numbers that cannot be.

        Raises:
            UserError: which one.
        """
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--workers is {self.workers}; expected 1 or more")
        if self.cpus < 0 or self.gpus < 0 or self.cpus + self.gpus == 0:
            raise UserError(f"--cpus is {self.cpus:g} and --gpus {self.gpus:g}; expected more")
        if self.address is not None and self.workers is None:
            raise UserError("--address needs --workers, the number of processes on the cluster")


@dataclass
class ArchiveReport:
    """What became of an archive."""

    where: str
    coloured: int = 0
    failed: int = 0
    before: int = 0  # coloured by earlier runs
    others: int = 0  # files that are neither picture, video nor tar
    results: int = 0  # pictures that cmmfnet has made
    lost: int = 0  # found lost or changed by --verify
    seconds: float = 0.0

    @property
    def exit_status(self) -> int:
        return 1 if self.failed else 0

    def __str__(self) -> str:
        parts = [f"coloured {counted(self.coloured, 'frame')}"]
        if self.before:
            parts.append(f"{self.before} were done before")
        if self.lost:
            parts.append(f"{self.lost} were lost or changed")
        if self.failed:
            parts.append(f"failed {self.failed}: see error in the manifest")
        if self.others:
            parts.append(f"left out {counted(self.others, 'file')} of other kinds")
        if self.results:
            parts.append(f"left out {counted(self.results, 'result')} of cmmfnet")
        speed = f"; {self.coloured / self.seconds:.1f} frames a second" if self.coloured else ""
        return f"{', '.join(parts)}{speed}; in {self.where}"


def archive(
    source: str,
    out: str,
    *,
    text: str | None = None,
    model: str = "cmmfnet",
    device: str = "auto",
    span: str | None = None,
    palette: str | None = None,
    batch_size: int = 32,
    shard: str = "1/1",
    retries: int = 2,
    verify: bool = False,
    max_pixels: int = MAX_PIXELS,
    raw: str | None = None,
    kelvin_per_count: float | None = None,
    cluster: ClusterOptions = ClusterOptions(),
) -> ArchiveReport:
    """Colour an archive of any length: each frame of its pictures, camera files, videos and tar
    shards becomes a PNG in OUT, with a row in the manifest, OUT/cmmfnet-manifest (Parquet).

    The same command again colours only what is missing, after a crash, too; a frame that fails is
    tried again, then recorded with its error. Memory does not grow with the archive. docs/scale.md
    describes clusters, object stores and the manifest.

    Args:
        source: a folder with its sub-folders, a file, a glob in quotes, or a URL of these
            (s3://bucket/folder, gs://...)
        out: a new folder or URL, or that of an earlier run with the same settings
        text: what the pictures show, for all of them; as for cmmfnet colorize
        model: a name of `cmmfnet models`, a .safetensors file, hf:OWNER/REPO@COMMIT, or an .onnx
            file
        device: auto, cpu, cuda, cuda:1 or mps
        span: LOW,HIGH in the pictures' own units, for all; without it each frame is stretched
            between its 1st and 99th percentile
        palette: false-colour palette of the pictures, e.g. ironbow; auto finds it
        batch_size: frames of one piece of work, which is repeated if its worker dies; a GPU
            colours those of one size together
        shard: i/n: only the i-th of n parts of the archive, i from 1 to n; for n machines or
            processes without Ray
        retries: how often a frame that failed is tried again
        verify: read all pictures of earlier runs again, and colour those anew that are lost or
            changed
        max_pixels: pictures of more pixels are refused before they are decoded
        raw: the files hold plain numbers, WIDTHxHEIGHT,TYPE, e.g. 640x512,uint16le
        kelvin_per_count: counts become degrees Celsius by count * this - 273.15
        cluster: options of Ray

    Raises:
        UserError: the request makes no sense, or OUT is of another run; nothing was written.
        OSError: OUT cannot be written to; what was recorded before is complete.
    """
    pyarrow()
    check_options(text, span, palette, batch_size, max_pixels, raw)
    cluster.check()
    if retries < 0:
        raise UserError(f"--retries is {retries}; expected 0 or more")
    part = parse_shard(shard)
    place, _ = open_source(source)
    own = _inside(place, out)
    reader = Reader(palette, max_pixels, raw, kelvin_per_count)
    task = Task(source, out, model, device, text, span, reader, retries)
    settings = {
        "version": __version__,
        "source": str(Path(place.url).resolve()) if isinstance(place, Folder) else place.url,
        "model": _identity(model),
        "text": text,
        "span": span,
        "palette": palette,
        "raw": raw,
        "kelvin_per_count": kelvin_per_count,
    }
    manifest = Manifest(out, part, settings)
    try:
        report = ArchiveReport(out)
        report.lost = manifest.verify() if verify else 0
        report.before = len(manifest.done)
        scan = Scan(source, reader, part, manifest.done, own)
        recorder = Recorder(manifest, report)
        started = time.perf_counter()
        with few_warnings(), recorder:
            if cluster.workers is None:
                run_here(scan, task, batch_size, recorder)
            else:
                from cmmfnet.archive.cluster import run_on_ray

                run_on_ray(scan, task, batch_size, recorder, cluster)
        manifest.flush()
        report.seconds = time.perf_counter() - started
    finally:
        manifest.close()
    if part == (0, 1) and not report.coloured + report.before + report.failed:
        raise UserError(
            f"no frames in {source}: looked for pictures, camera files, videos and tar shards; "
            f"found {report.others or 'no'} files of other kinds"
            + (f" and {report.results} results of cmmfnet" if report.results else "")
        )
    print(report)
    return report


class Recorder:
    """Takes what workers give: counts it, records it, and shows how far the archive is."""

    def __init__(self, manifest: Manifest, report: ArchiveReport):
        self.manifest, self.report = manifest, report
        self._shown = 0

    def __enter__(self) -> Recorder:
        from tqdm import tqdm

        self._bar = tqdm(unit="frame", disable=None, smoothing=0.05)
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    def add(self, outcome: Outcome) -> None:
        """Record a batch.

        Raises:
            OSError: no further output can be written.
        """
        for record in self.manifest.add(outcome.records):
            if record.output is not None:
                self.report.coloured += 1
                self._bar.update()
            if record.error is not None:
                self.report.failed += 1
                self._say(record)
        self.report.results += outcome.results
        if outcome.fatal is not None:
            again = "the same command again goes on"
            known = "the same command again" in outcome.fatal
            raise OSError(outcome.fatal if known else f"{outcome.fatal}; {again} from there")

    def end(self, end: End) -> None:
        """Record a file of several frames."""
        self.add(Outcome([Record(end.key, frames=end.frames, error=end.error)]))

    def _say(self, record: Record) -> None:
        self._shown += 1
        if self._shown <= SHOWN_FAILURES:
            name, error = shown(record.input), shown(record.error or "")
            print(
                f"cmmfnet: failed: {error if name in error else f'{name}: {error}'}",
                file=sys.stderr,
            )
        elif self._shown == SHOWN_FAILURES + 1:
            print("cmmfnet: further failures are in the manifest only", file=sys.stderr)


def run_here(scan: Scan, task: Task, batch_size: int, recorder: Recorder) -> None:
    """Colour an archive in this process: while one batch is coloured, another is read and a third
    one written."""
    listed = Listed()
    items = iter(scan.items(scan.files(listed)))
    first = next(items, None)
    if first is not None:
        worker = Worker(task)
        waiting: deque = deque()
        with ThreadPoolExecutor(3) as pool:
            try:
                for batch in batches(itertools.chain([first], items), batch_size, recorder.end):
                    waiting.append(pool.submit(worker, batch))
                    if len(waiting) == 3:
                        recorder.add(waiting.popleft().result())
                while waiting:
                    recorder.add(waiting.popleft().result())
            except BaseException:
                pool.shutdown(cancel_futures=True)  # waits for the batches at work
                raise
    recorder.report.others = listed.others


def batches(
    items: Iterable[Item | End], size: int, end: Callable[[End], None]
) -> Iterator[list[Item]]:
    """Items in batches of ``size``; the last one may be smaller. Each ``End`` goes to ``end``."""
    batch: list[Item] = []
    for item in items:
        if isinstance(item, End):
            end(item)
            continue
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def parse_shard(text: str) -> tuple[int, int]:
    """``"2/8"`` -> ``(1, 8)``.

    Raises:
        UserError: no such part.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard is {text!r}; expected i/n with i from 1 to n, such as 2/8")
    return int(match[1]) - 1, int(match[2])


def _inside(source: Place, out: str) -> str | None:
    """The output place relative to the source's folder, if it lies in there: what it holds is no
    input.

    Raises:
        UserError: the source lies inside the output place, where results could replace it.
    """
    target = open_place(out)
    if source.local != target.local:
        return None
    a, b = source.url, target.url
    if isinstance(target, Folder):
        if target.path.is_file():
            raise UserError(f"{out} is a file; give a folder")
        a, b = str(Path(a).resolve()), str(Path(b).resolve())
    if f"{a}/".startswith(f"{b}/"):
        raise UserError(
            f"the source {source.url!r} lies in the output folder {out!r}, so results could "
            "replace inputs; choose another output folder"
        )
    return b[len(a) + 1 :] if b.startswith(f"{a}/") else None


def _identity(model: str) -> str:
    """A model's name, with the hash of its file where it is one."""
    path = Path(model)
    if not path.is_file():
        return model
    with path.open("rb") as file:
        return f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}"
