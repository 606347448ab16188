"""Tar shards: a data set in a few large files, for disks that are slow with small ones and for
object stores.

Every shard is an ordinary tar in the WebDataset convention: the files of a pair stand side by side
and share their name up to the first dot (``NAME.thermal.jpg``, ``NAME.visible.jpg``,
``NAME.label.png``, ``NAME.json``). ``index.jsonl`` is the data set's own index, each entry with the
place of its files, so that a picture is read with one seek; ``shards.json`` has the size and
SHA-256 of each shard. docs/shards.md has the format in full; data/prepare/write_shards.py writes
it.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Collection
from pathlib import Path
from urllib.parse import quote

import numpy as np

from cmmfnet.data.remote import Remote
from cmmfnet.data.store import KINDS, PairsError

BLOCK = 512  # of a tar file: a header takes one, and every file is padded to the next


def key(name: str) -> str:
    """A pair's name as its files in a shard have it: without the dots and slashes that would end
    WebDataset's key."""
    return quote(name, safe=" ").replace(".", "%2E")


class Shards:
    """A folder or URL of shards as a ``pairs.Store``. ``entries``: the parsed index, whose key
    ``shard`` is taken out.

    Raises :class:`PairsError` for an index that does not fit its shards. A file is opened for each
    read, so that processes share no position in it.
    """

    def __init__(self, root: Path | Remote, entries: list[dict]):
        self._root = root
        self._shards = _read_table(root)
        number = {shard["file"]: i for i, shard in enumerate(self._shards)}
        # arrays, not a dict for each entry: data workers would copy those, page by page, as
        # reference counts change
        self._place = np.full((len(entries), len(KINDS), 2), -1, np.int64)
        self._shard = np.empty(len(entries), np.int32)
        self._row: dict[str, int] = {}
        self._names: dict[str, dict[str, None]] = {kind: {} for kind in KINDS}
        for row, entry in enumerate(entries):
            name, record = entry["name"], entry.pop("shard", None)
            what = f"{self._root}/index.jsonl, {name}"
            if not isinstance(record, dict) or str(record.get("file")) not in number:
                raise PairsError(
                    f"{what}: shard {record!r:.200}; expected one of those in shards.json, by its "
                    "file name"
                )
            if name in self._row:
                raise PairsError(f"{what}: stands twice in the index")
            self._row[name], self._shard[row] = row, number[record["file"]]
            limit = self._shards[number[record["file"]]]["size"]
            for k, kind in enumerate(KINDS):
                if kind in record:
                    self._place[row, k] = _check_place(
                        record[kind], limit, f"{what}, {kind} in {record['file']}"
                    )
                    self._names[kind][name] = None
        if isinstance(root, Path):
            for i in np.unique(self._shard):
                self._local(int(i))

    def names(self, kind: str) -> Collection[str]:
        return self._names[kind].keys()

    def where(self, kind: str, name: str) -> str:
        return (
            f"{kind} of {name} in {self._root}/{self._shards[self._shard[self._row[name]]]['file']}"
        )

    def source(self, kind: str, name: str) -> bytes:
        row = self._row[name]
        offset, size = self._place[row, KINDS.index(kind)].tolist()
        path = self._local(int(self._shard[row]))
        with path.open("rb") as file:
            file.seek(offset - BLOCK)
            content = file.read(BLOCK + size)
        if len(content) < BLOCK + size:
            raise PairsError(
                f"{self.where(kind, name)}: the shard ends before it; copy the shard again"
            )
        try:
            header = tarfile.TarInfo.frombuf(content[:BLOCK], "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise PairsError(
                f"{self.where(kind, name)}: no file starts at byte {offset} ({error}); {_REWRITE}"
            ) from None
        expected = f"{key(name)}.{kind}."[
            :100
        ]  # the header has room for so much; the rest stands in the one before
        if not header.name.startswith(expected) or header.size != size:
            raise PairsError(
                f"{self.where(kind, name)}: found {header.name} of {header.size} bytes at byte "
                f"{offset}, expected "
                f"{expected}* of {size}; {_REWRITE}"
            )
        return content[BLOCK:]

    def _local(self, number: int) -> Path:
        """The shard as a file on this machine, of the size that the table says."""
        shard = self._shards[number]
        if isinstance(self._root, Remote):
            return self._root.fetch(shard["file"], shard["size"], shard["sha256"])
        path = self._root / shard["file"]
        try:
            size = path.stat().st_size
        except OSError as error:
            raise PairsError(
                f"{path} is missing ({error.strerror}); the index needs it: copy all shards"
            ) from None
        if size != shard["size"]:
            raise PairsError(
                f"{path} has {size} bytes, expected {shard['size']} (shards.json): truncated? "
                "Copy it again"
            )
        return path


_REWRITE = "index and shards do not belong together: copy them again, or write the shards anew"


def _read_table(root: Path | Remote) -> list[dict]:
    try:
        text = (
            root.text("shards.json")
            if isinstance(root, Remote)
            else (root / "shards.json").read_text(encoding="utf-8")
        )
        table = json.loads(text)
        for shard in table:
            # both become parts of paths
            if not re.fullmatch(r"[\w-][\w.-]*\.tar", shard["file"]) or not re.fullmatch(
                r"[0-9a-f]{64}", shard["sha256"]
            ):
                raise ValueError(f"file {shard['file']!r:.100}, sha256 {shard['sha256']!r:.100}")
            if type(shard["size"]) is not int or shard["size"] < 0:
                raise ValueError(f"size {shard['size']!r:.100} of {shard['file']}")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise PairsError(
            f"{root}/shards.json: {error!r}; expected a list of objects with file, size and "
            "sha256, as write_shards makes it"
        ) from error
    return table


def _check_place(place: object, limit: int, what: str) -> tuple[int, int]:
    try:
        _, offset, size = place
        if (
            type(offset) is int
            and type(size) is int
            and offset >= BLOCK
            and size >= 0
            and offset + size <= limit
        ):
            return offset, size
    except (TypeError, ValueError):
        pass
    raise PairsError(
        f"{what}: {place!r:.200}; expected [name, offset, size] inside the shard's {limit} bytes, "
        f"after a header of {BLOCK}"
    )
