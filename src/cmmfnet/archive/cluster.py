"""An archive on Ray: one task lists the source, some expand videos and tar shards, and a pool of
actors, each with a model, colours batches. Ray Data moves the batches, and starts again what dies.

A row of the data set is one batch, so that a batch is what is repeated when an actor is killed.
Listing goes on only a little ahead of colouring, so that memory does not grow with the archive.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import pickle
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmmfnet import __version__
from cmmfnet.archive.items import End, Item, Listed, Scan
from cmmfnet.archive.worker import Outcome, Record, Task, Worker
from cmmfnet.colorizer.warned import few_warnings
from cmmfnet.files.errors import UserError

if TYPE_CHECKING:
    from cmmfnet.archive.archive import ClusterOptions, Recorder

GROUP = 16
"""Batches of files that are listed together."""
RETRIES = 4
"""Of a batch whose worker dies, before it is left for the next pass over what is missing."""
STORE_BYTES = 256 << 20
"""Of Ray's shared memory on this machine; batches are small."""


@dataclass(frozen=True)
class Notes:
    """What comes with a batch: ends of files, and whether it is the last one of its group."""

    ends: tuple[End, ...] = ()
    items: int | None = None  # of the whole group, in its last batch
    listed: tuple[int, int] | None = None  # groups, and files of other kinds: the listing's end


def run_on_ray(
    scan: Scan, task: Task, batch_size: int, recorder: Recorder, options: ClusterOptions
) -> None:
    """Colour an archive on Ray; arguments as for ``archive.run_here``.

    Raises:
        ImportError: Ray is not installed. UserError: the cluster cannot be reached, or lacks what a
            worker needs.
    """
    ray = _ray()
    scan = replace(scan, source=_absolute(scan.source))
    task = replace(task, source=scan.source, out=_absolute(task.out))
    with _connected(ray, options):
        _check_resources(ray, options)
        coloured = 0
        size = batch_size
        while not _pass(ray, scan, task, size, recorder, options):
            print("cmmfnet: workers died; colouring what is missing", file=sys.stderr)
            if recorder.report.coloured == coloured and size == 1:
                break
            # where nothing else is left, a frame alone shows whether it is what kills workers
            size = batch_size if recorder.report.coloured > coloured else 1
            coloured = recorder.report.coloured
        else:
            return
        for item in scan.items(scan.files()):
            if isinstance(item, Item):
                error = item.error or "each worker that coloured it died; see Ray's logs"
                recorder.add(Outcome([Record(item.key, container=item.container, error=error)]))


def _pass(
    ray: Any,
    scan: Scan,
    task: Task,
    batch_size: int,
    recorder: Recorder,
    options: ClusterOptions,
) -> bool:
    """Colour what is not done -> whether every frame that was listed came back."""
    from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy, read_datasource

    # max_retries and the like have no other place yet; hence ray<2.64 in pyproject.toml
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    context = DataContext.get_current()
    context.target_min_block_size = context.target_max_block_size = 1  # a block for each row
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # what they held is missing, and comes again
    context.max_consecutive_actor_init_deaths = 20
    workers = options.workers or 1
    gate = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Gate).remote()
    source = _source(Listing(scan, batch_size, 4 * workers + 4, gate))
    rows = read_datasource(source, override_num_blocks=1, num_cpus=0)
    rows = rows.map_batches(
        Expansion(scan, batch_size),
        batch_size=None,
        batch_format="pyarrow",
        compute=TaskPoolStrategy(size=max(1, workers // 2)),
        num_cpus=0,
        max_retries=10,  # other than that of the listing: else both would be one task
    )
    given = (task, _model_file(ray, task, options), __version__)
    rows = rows.map_batches(
        Actor,
        fn_constructor_args=given,
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
        num_cpus=options.cpus,
        num_gpus=options.gpus or None,
        max_restarts=-1,
        max_task_retries=RETRIES,
    )
    groups = wanted = came = 0
    listed = None
    for block in rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for outcome, notes in _unpacked(block):
            came += len(outcome.records) + outcome.results
            recorder.add(outcome)
            for end in notes.ends:
                recorder.end(end)
            if notes.items is not None:
                groups, wanted = groups + 1, wanted + notes.items
                gate.passed.remote(groups)
            if notes.listed is not None:
                listed, recorder.report.others = notes.listed
    return listed == groups and came == wanted


class Gate:
    """How many groups are coloured: the listing waits for it."""

    def __init__(self) -> None:
        self._groups = 0

    def passed(self, groups: int) -> None:
        self._groups = max(self._groups, groups)

    def groups(self) -> int:
        return self._groups


@dataclass(frozen=True)
class Listing:
    """Rows of file names: groups of pictures, and videos, sequences and tars one by one."""

    scan: Scan
    batch_size: int
    ahead: int
    gate: Any

    def __call__(self) -> Iterator[Any]:
        import ray

        passed = 0
        groups, listed = 0, Listed()
        for group in self._groups(self.scan.files(listed)):
            patience = time.monotonic() + 60  # a gate that was killed has forgotten
            while groups - passed >= self.ahead and time.monotonic() < patience:
                passed = max(passed, ray.get(self.gate.groups.remote()))
                if groups - passed >= self.ahead:
                    time.sleep(0.05)
            groups += 1
            yield _packed((group, None))
        yield _packed(([], (groups, listed.others)))

    def _groups(self, files: Iterable[str]) -> Iterator[list[str]]:
        group: list[str] = []
        for file in files:
            if self.scan.is_container(file):
                yield [file]
                continue
            group.append(file)
            if len(group) == GROUP * self.batch_size:
                yield group
                group = []
        if group:
            yield group


@dataclass(frozen=True)
class Expansion:
    """Rows of file names into rows of batches."""

    scan: Scan
    batch_size: int

    def __call__(self, block: Any) -> Iterator[Any]:
        for files, listed in _unpacked(block):
            if listed is not None:
                yield _packed(([], Notes(listed=listed)))
                continue
            batch: list[Item] = []
            ends: list[End] = []
            items = 0
            for item in self.scan.items(files):
                if isinstance(item, End):
                    ends.append(item)
                    continue
                if len(batch) == self.batch_size:
                    yield _packed((batch, Notes(tuple(ends))))
                    batch, ends = [], []
                batch.append(item)
                items += 1
            yield _packed((batch, Notes(tuple(ends), items=items)))


class Actor:
    """A worker in a process of Ray."""

    def __init__(self, task: Task, model: tuple[str, bytes] | None, version: str):
        few_warnings().__enter__()  # for the life of the process
        self._fatal: str | None = None
        try:
            if version != __version__:
                raise UserError(f"a worker has cmmfnet {__version__}, the driver {version}")
            if model is not None and not Path(task.model).is_file():
                path = Path(tempfile.mkdtemp(prefix="cmmfnet-")) / model[0]
                atexit.register(shutil.rmtree, path.parent, ignore_errors=True)
                path.write_bytes(model[1])
                task = replace(task, model=str(path))
            self._worker = Worker(task)
        except (UserError, ImportError) as error:
            self._fatal = str(error)

    def __call__(self, block: Any) -> Any:
        made = []
        for batch, notes in _unpacked(block):
            outcome = Outcome([], self._fatal) if self._fatal else self._coloured(batch)
            made.append((outcome, notes))
        return _packed(*made)

    def _coloured(self, batch: list[Item]) -> Outcome:
        try:
            return self._worker(batch)
        except Exception as error:
            if "CUDA error" in str(error):  # the device is lost to this process, perhaps not to all
                print(f"cmmfnet: worker ends: {error}", file=sys.stderr, flush=True)
                os._exit(1)
            traceback.print_exc()
            return Outcome([], f"a worker failed: {type(error).__name__}: {error}")


def _packed(*rows: Any) -> Any:
    import pyarrow

    content = [pickle.dumps(row, protocol=pickle.HIGHEST_PROTOCOL) for row in rows]
    return pyarrow.table({"row": pyarrow.array(content, pyarrow.large_binary())})


def _unpacked(block: Any) -> Iterator[Any]:
    """Rows of a block. Ray alone has written them, for this run."""
    for row in block["row"]:
        yield pickle.loads(row.as_buffer())


def _source(listing: Listing) -> Any:
    """A Ray data source of one task."""
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    class Source(Datasource):
        def estimate_inmemory_data_size(self) -> None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
            size = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(listing, size)]

    return Source()


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # sends nothing unless asked to
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError("--workers needs Ray: pip install 'cmmfnet[ray]'") from error
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # the plan, and each dead worker
    return ray


@contextlib.contextmanager
def _connected(ray: Any, options: ClusterOptions) -> Iterator[None]:
    """A cluster: the one that is connected, that of ``--address``, or one on this machine."""
    if ray.is_initialized():
        yield
        return
    try:
        if options.address is not None:
            ray.init(address=options.address, log_to_driver=True, logging_level="warning")
        else:
            ray.init(
                address="local",  # not a cluster that happens to run on this machine
                num_cpus=max(1, -(-options.cpus * (options.workers or 1) // 1)),
                include_dashboard=False,
                object_store_memory=STORE_BYTES,
                logging_level="error",  # warnings tell that it has a token, and of dead workers
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"no Ray cluster ({error}); expected --address HOST:PORT or auto"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_resources(ray: Any, options: ClusterOptions) -> None:
    """Refuse workers that the cluster has no room for: Ray would wait for ever."""
    there = ray.cluster_resources()
    for name, each in (("CPU", options.cpus), ("GPU", options.gpus)):
        need, have = each * (options.workers or 1), there.get(name, 0)
        if need > have:
            raise UserError(
                f"{options.workers} workers of {each:g} {name} need {need:g}, and the cluster has "
                f"{have:g}; lower --workers or --{name.lower()}s"
            )


def _model_file(ray: Any, task: Task, options: ClusterOptions) -> Any:
    """A model file's name and bytes for workers of other machines, else None."""
    path = Path(task.model)
    if options.address is None or not path.is_file():
        return None
    return path.name, path.read_bytes()


def _absolute(place: str) -> str:
    return place if "://" in place else str(Path(place).absolute())
