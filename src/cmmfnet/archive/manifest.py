"""The manifest: a row for every frame, in Parquet files beside the pictures.

Rows of a finished batch go into a small file of the journal first. Once there are many, they become
one Parquet file, whose name has the numbers of the journal files in it, and these are deleted. A
process that is killed at any moment leaves each row in the journal, in a Parquet file, or in both,
which the numbers tell; the next run puts what the journal has into a Parquet file.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import os
import re
import secrets
import warnings
import zlib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import IO, Any

import numpy as np

from cmmfnet.archive.names import MANIFEST, fingerprint, in_shard
from cmmfnet.archive.places import Folder, Place, open_place
from cmmfnet.archive.worker import Record
from cmmfnet.files.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

JOURNAL, SETTINGS = f"{MANIFEST}/_journal", f"{MANIFEST}/_archive.json"
PART_ROWS = 5000
"""Rows of a Parquet file, about."""
GROUP = 64
"""Files of the journal in a row group of a Parquet file."""
THREADS = 16
"""Requests to an object store at a time."""
LIMIT = 1 << 30
"""Bytes of a file of the manifest, at most."""
_PART = re.compile(
    r"part-(?P<shard>\d+of\d+)-(?P<run>[0-9a-f]+)-(?P<first>\d+)-(?P<last>\d+)\.parquet"
)
_ENTRY = re.compile(r"(?P<shard>\d+of\d+)-(?P<run>[0-9a-f]+)-(?P<number>\d+)\.jsonl")


def pyarrow() -> Any:
    """PyArrow, with its Parquet module.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    # its own pool keeps what one Parquet file took; read when it is imported first
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("an archive needs PyArrow: pip install 'cmmfnet[archive]'") from error
    return pyarrow


def schema() -> Any:
    """The columns of the manifest; ``Record`` describes them."""
    pa = pyarrow()
    tag = pa.struct([("name", pa.string()), ("probability", pa.float32())])
    return pa.schema(
        [
            ("input", pa.string()),
            ("output", pa.string()),
            ("container", pa.string()),
            ("frames", pa.int64()),
            ("bytes", pa.int64()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("span", pa.list_(pa.float64())),
            ("tags", pa.list_(tag)),
            ("sha256", pa.string()),
            ("seconds", pa.float32()),
            ("attempts", pa.int32()),
            ("error", pa.string()),
            ("run", pa.string()),
        ]
    )


class Done:
    """Frames and files that need nothing any more; 16 bytes for each frame."""

    def __init__(self) -> None:
        self._sorted = np.empty(0, "S16")
        self._new: set[bytes] = set()
        # of each file of several frames: how many have a picture, and how many there are
        self._files: dict[bytes, tuple[int, float]] = {}

    def __call__(self, key: str) -> bool:
        mark = fingerprint(key)
        if mark in self._new:
            return True
        if mark in self._files:
            coloured, frames = self._files[mark]
            return coloured >= frames
        at = int(np.searchsorted(self._sorted, mark))
        return at < len(self._sorted) and bool(self._sorted[at] == mark)

    def __len__(self) -> int:
        return len(self._sorted) + len(self._new)

    def add(self, row: Mapping[str, Any]) -> None:
        """Note a row of the manifest: its input, output, container, frames and error."""
        if row["output"] is not None:
            self._new.add(fingerprint(row["input"]))
            if row["container"] is not None:
                mark = fingerprint(row["container"])
                coloured, frames = self._files.get(mark, (0, math.inf))
                self._files[mark] = coloured + 1, frames
        elif row["frames"] is not None and row["error"] is None:
            mark = fingerprint(row["input"])
            self._files[mark] = self._files.get(mark, (0, 0))[0], row["frames"]
        if len(self._new) > max(4096, len(self._sorted) // 8):
            self._merge()

    def _merge(self) -> None:
        new = np.fromiter(self._new, "S16", len(self._new))
        self._sorted = np.unique(np.concatenate([self._sorted, new]))
        self._new = set()

    def __getstate__(self) -> dict[str, Any]:
        self._merge()
        return self.__dict__


class Manifest:
    """The manifest of an output place, for one run of one shard.

    Attributes:
        done: what the rows say.
        run: a random name of this run, in every row that it writes.
    """

    def __init__(self, out: str, shard: tuple[int, int], settings: Mapping[str, Any]):
        """Open the manifest, put the journal of killed runs into Parquet files, and read what is
        done.

        Args:
            shard: (i, n), i from 0.
            settings: what every run into this place must have in common.

        Raises:
            UserError: the place has pictures of other settings, files without a manifest, or a run
                that is still at work.
            OSError: it cannot be written to.
        """
        self.place, self.shard = open_place(out), shard
        self.done, self.run = Done(), secrets.token_hex(6)
        self._name = f"{shard[0]}of{shard[1]}"
        self._number, self._first, self._rows = 0, 0, 0
        self._journal: list[bytes] = []  # rows that are not in a Parquet file yet, compressed
        self._pool = ThreadPoolExecutor(2 if self.place.local else THREADS)
        self._puts: deque[Future] = deque()
        self._check(settings)
        self._lock = _lock(self.place, shard)
        if isinstance(self.place, Folder):
            self.place.clear_parts()
        self._recover()

    def add(self, records: Sequence[Record]) -> list[Record]:
        """Record a batch for good -> the records that count: a frame that was coloured twice, since
        its worker died late, is recorded once."""
        fresh = []
        for record in records:
            if record.output is None or not self.done(record.input):
                fresh.append(record)
                self.done.add(vars(record))
        if not fresh:
            return []
        rows = [_row(record, self.run) for record in fresh]
        while len(self._puts) >= 2 * THREADS:
            self._puts.popleft().result()
        content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        put = self._pool.submit(self.place.put, self._entry(self._number), content)
        self._puts.append(put)
        if self.place.local:
            self._puts.pop().result()  # a store answers later, and others go on meanwhile
        self._number += 1
        self._journal.append(zlib.compress(content, 1))
        self._rows += len(rows)
        if self._rows >= PART_ROWS:
            self.flush()
        return fresh

    def flush(self) -> None:
        """Put the rows of the journal into a Parquet file."""
        while self._puts:
            self._puts.popleft().result()
        if not self._journal:
            return
        last = self._number - 1
        contents = map(zlib.decompress, self._journal)
        self._put_part(self._name, self.run, self._first, last, map(_table, contents))
        self._journal, self._rows = [], 0
        entries = [self._entry(number) for number in range(self._first, last + 1)]
        list(self._pool.map(self.place.delete, entries))
        self._first = self._number

    def close(self) -> None:
        """Let another run begin, once what is being written is complete."""
        self._pool.shutdown()
        if self._lock is not None:
            self._lock.close()

    def verify(self) -> int:
        """Read all pictures of the shard again; rows of those that are lost or changed are taken
        out of the manifest -> how many. They are not done any more."""
        lost = 0
        kept = Done()
        for part in self._parts():
            table = self._read_part(part)
            whole = list(self._pool.map(self._is_whole, table.to_pylist()))
            bad = len(whole) - sum(whole)
            if bad:
                lost += bad
                table = table.filter(pyarrow().array(whole))
                self.place.put(f"{MANIFEST}/{part}", _parquet([table]))
            self._note(table, kept)
        self.done = kept
        return lost

    def _entry(self, number: int) -> str:
        return f"{JOURNAL}/{self._name}-{self.run}-{number}.jsonl"

    def _is_whole(self, row: dict[str, Any]) -> bool:
        if row["output"] is None:
            return True
        try:
            content = self.place.read(row["output"], LIMIT)
        except OSError:
            return False
        return hashlib.sha256(content).hexdigest() == row["sha256"]

    def _check(self, settings: Mapping[str, Any]) -> None:
        wanted = dict(settings)
        try:
            found = json.loads(self.place.read(SETTINGS, LIMIT))
        except FileNotFoundError:
            if any(not name.startswith(f"{MANIFEST}/") for name in self.place.names()):
                raise UserError(
                    f"{self.place.url} holds files, but no manifest; give a new or empty folder"
                ) from None
            self.place.put(SETTINGS, json.dumps(wanted, indent=1).encode())
            return
        except ValueError as error:
            raise UserError(
                f"{self.place.where(SETTINGS)} is damaged ({error}); delete it if you know the "
                "settings to be the same"
            ) from error
        others = [key for key in wanted if found.get(key) != wanted[key] and key != "version"]
        if others:
            differing = "; ".join(f"{k} {found.get(k)!r}, now {wanted[k]!r}" for k in others)
            raise UserError(
                f"{self.place.url} was begun with other settings: {differing}. Give the same, or "
                "another output folder"
            )
        if found.get("version") != wanted["version"]:
            warnings.warn(
                f"{self.place.url} was begun by cmmfnet {found.get('version')}, this is "
                f"{wanted['version']}: colours may differ slightly",
                stacklevel=2,
            )

    def _recover(self) -> None:
        parts: dict[str, list[tuple[int, int]]] = {}
        entries: dict[tuple[str, str], list[int]] = {}
        ours = []
        for name in self.place.names(MANIFEST):
            name = name.removeprefix(f"{MANIFEST}/")
            if match := _PART.fullmatch(name):
                parts.setdefault(match["run"], []).append((int(match["first"]), int(match["last"])))
                if self._may_hold(match["shard"]):
                    ours.append(name)
            match = _ENTRY.fullmatch(name.removeprefix("_journal/"))
            if match and self._may_hold(match["shard"]):
                numbers = entries.setdefault((match["shard"], match["run"]), [])
                numbers.append(int(match["number"]))
        for name in ours:
            self._note(self._read_part(name, _NOTED))
        for (shard, run), numbers in entries.items():
            covered = parts.get(run, [])
            waiting = [n for n in sorted(numbers) if not any(a <= n <= b for a, b in covered)]
            files = [f"{JOURNAL}/{shard}-{run}-{n}.jsonl" for n in waiting]
            tables = [_table(self.place.read(file, LIMIT)) for file in files]
            for table in tables:
                self._note(table)
            if shard != self._name and self.shard[1] > 1:
                continue  # of a run with another --shard, which may go on
            if tables:
                self._put_part(shard, run, waiting[0], waiting[-1], tables)
            for number in numbers:
                self.place.delete(f"{JOURNAL}/{shard}-{run}-{number}.jsonl")

    def _may_hold(self, shard: str) -> bool:
        """Whether a run of ``shard`` may have coloured frames of this one."""
        return shard == self._name or int(shard.partition("of")[2]) != self.shard[1]

    def _parts(self) -> list[str]:
        names = (name.removeprefix(f"{MANIFEST}/") for name in self.place.names(MANIFEST))
        matches = [match for match in map(_PART.fullmatch, names) if match]
        return [match[0] for match in matches if self._may_hold(match["shard"])]

    def _read_part(self, name: str, columns: list[str] | None = None) -> Any:
        try:
            content = self.place.read(f"{MANIFEST}/{name}", LIMIT)
            return pyarrow().parquet.read_table(io.BytesIO(content), columns=columns)
        except (ValueError, OSError) as error:
            raise UserError(
                f"{self.place.where(f'{MANIFEST}/{name}')} cannot be read ({error}); restore it, "
                "or delete it: its frames are then coloured again"
            ) from error

    def _note(self, table: Any, done: Done | None = None) -> None:
        done = self.done if done is None else done
        for batch in table.select(_NOTED).to_batches(max_chunksize=4096):
            for row in batch.to_pylist():
                if in_shard(row["container"] or row["input"], self.shard):
                    done.add(row)

    def _put_part(self, shard: str, run: str, first: int, last: int, tables: Iterable[Any]) -> None:
        name = f"part-{shard}-{run}-{first:06d}-{last:06d}.parquet"
        self.place.put(f"{MANIFEST}/{name}", _parquet(tables))


_NOTED = ["input", "output", "container", "frames", "error"]


def _row(record: Record, run: str) -> dict[str, Any]:
    tags = record.tags and [{"name": name, "probability": p} for name, p in record.tags]
    return asdict(record) | {"tags": tags, "run": run}


def _table(content: bytes) -> Any:
    """A file of the journal, one JSON object a line."""
    # not of Python's lists: PyArrow would import pandas for these, 40 MB
    from pyarrow import json as reader

    return reader.read_json(
        io.BytesIO(content),
        reader.ReadOptions(use_threads=False, block_size=max(1, len(content))),
        reader.ParseOptions(explicit_schema=schema(), unexpected_field_behavior="error"),
    )


def _parquet(tables: Iterable[Any]) -> Any:
    """The content of a Parquet file; not all tables are in memory at once."""
    pa = pyarrow()
    sink, tables = pa.BufferOutputStream(), iter(tables)
    with pa.parquet.ParquetWriter(sink, schema(), compression="zstd") as writer:
        while group := list(itertools.islice(tables, GROUP)):
            writer.write_table(pa.concat_tables(group))
    return sink.getvalue()


def read_manifest(out: str) -> Any:
    """The manifest of an output place as an Arrow table, rows of a run that was killed or is at
    work included."""
    place, covered, tables, entries = open_place(out), {}, [], []
    for name in place.names(MANIFEST):
        short = name.removeprefix(f"{MANIFEST}/")
        if match := _PART.fullmatch(short):
            covered.setdefault(match["run"], []).append((int(match["first"]), int(match["last"])))
            tables.append(pyarrow().parquet.read_table(io.BytesIO(place.read(name, LIMIT))))
        elif match := _ENTRY.fullmatch(short.removeprefix("_journal/")):
            entries.append((match["run"], int(match["number"]), name))
    for run, number, name in entries:
        if not any(first <= number <= last for first, last in covered.get(run, ())):
            tables.append(_table(place.read(name, LIMIT)))
    return pyarrow().concat_tables(tables) if tables else schema().empty_table()


def _lock(place: Place, shard: tuple[int, int]) -> IO | None:
    """A lock that two runs cannot hold whose frames overlap. Object stores have none.

    Raises:
        UserError: another run holds it.
    """
    if not isinstance(place, Folder) or fcntl is None:
        return None
    folder = place.path / MANIFEST / "_locks"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{shard[0]}of{shard[1]}"
    file = (folder / name).open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for other in folder.iterdir():
            if other.name != name and int(other.name.partition("of")[2]) != shard[1]:
                with other.open("a") as held:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(
            f"another run is colouring the same frames into {place.url}; wait for it, or give each "
            "its own --shard i/n with one n"
        ) from None
    except OSError:  # a file system without locks
        return file
    return file
