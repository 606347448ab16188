"""Packs a data set in a folder of pictures into tar shards (data/shards.py reads them)."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from cmmfnet.data.pairs import Pairs
from cmmfnet.data.shards import BLOCK, key
from cmmfnet.data.store import KINDS, Folder, PairsError
from cmmfnet.files.atomic import atomic_write, clear_parts

_UNFINISHED = "UNFINISHED"


def write_shards(folder: Path, out: Path, *, shard_mb: int = 256) -> Path:
    """Pack the data set in ``folder`` into tar shards of at most ``shard_mb`` MB (2^20 bytes).

    A pair that is larger gets a shard of its own. Pictures are copied byte for byte; equal data
    sets give equal shards. ``out`` is a new or empty folder. Each shard appears whole or not at
    all, the index last; after an interruption the same command starts again.

    Returns ``out``, which ``Pairs`` opens. Raises :class:`PairsError` if ``folder`` is no folder of
    pictures, ``out`` is in use, or two entries have one name.
    """
    if shard_mb < 1:
        raise PairsError(f"shards of {shard_mb} MB; expected 1 or more, 256 is usual")
    pairs, out = Pairs(folder), Path(out)
    store = pairs.store
    if not isinstance(store, Folder):
        raise PairsError(
            f"{folder} is in shards already; to cut them anew, start from the folder of pictures"
        )
    _check_names(pairs)
    _claim(out)
    lines, shards = [], []
    with tqdm(total=len(pairs), desc="shards", unit="pair", mininterval=2, disable=None) as bar:
        for number, group in enumerate(_groups(pairs.entries, store, shard_mb * 2**20)):
            file = f"shard-{number:06d}.tar"
            with (
                atomic_write(out / file) as stream,
                tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar,
            ):
                for entry in group:
                    lines.append(
                        json.dumps(
                            entry | {"shard": _pack(tar, entry, store) | {"file": file}},
                            ensure_ascii=False,
                        )
                    )
                    bar.update()
            with (out / file).open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            shards.append(
                {
                    "file": file,
                    "size": (out / file).stat().st_size,
                    "sha256": digest,
                    "pairs": len(group),
                }
            )
    with atomic_write(out / "shards.json", text=True) as stream:
        json.dump(shards, stream, indent=1)
    with atomic_write(out / "index.jsonl", text=True) as stream:
        stream.write("\n".join(lines) + "\n")
    (out / _UNFINISHED).unlink()
    return out


def _check_names(pairs: Pairs) -> None:
    seen: set[str] = set()
    for entry in pairs.entries:
        if entry["name"] in seen:
            raise PairsError(
                f"{pairs.root} has two entries {entry['name']!r}; in a shard every pair needs a "
                "name of its own"
            )
        seen.add(entry["name"])


def _claim(out: Path) -> None:
    """Create ``out``, or empty it if an interrupted run filled it."""
    out.mkdir(parents=True, exist_ok=True)
    clear_parts(out)
    found = sorted(p.name for p in out.iterdir())
    if _UNFINISHED in found:
        for name in found:
            if re.fullmatch(r"shard-\d{6}\.tar|shards\.json|index\.jsonl", name):
                (out / name).unlink()
    elif found:
        raise PairsError(
            f"{out} is not empty (it has {', '.join(found[:4])}); shards go to a new folder"
        )
    (out / _UNFINISHED).write_text(
        "write_shards is working here, or was interrupted; the same command starts again\n"
    )


def _groups(entries: list[dict], store: Folder, limit: int) -> Iterator[list[dict]]:
    """The entries of each shard, by the sizes of their files."""
    group: list[dict] = []
    total = tarfile.RECORDSIZE  # a tar is padded to a multiple of it
    for entry in entries:
        files = [
            store.source(kind, entry["name"])
            for kind in KINDS
            if entry["name"] in store.names(kind)
        ]
        # for pictures and entry: a header of up to three blocks (long names), and padding
        size = sum(p.stat().st_size + 4 * BLOCK for p in files) + len(json.dumps(entry)) + 4 * BLOCK
        if group and total + size > limit:
            yield group
            group, total = [], tarfile.RECORDSIZE
        group.append(entry)
        total += size
    yield group


def _pack(tar: tarfile.TarFile, entry: dict, store: Folder) -> dict[str, list]:
    """Adds the files of one entry -> kind: [name in the tar, offset of the content, size]."""
    name, members = entry["name"], {}
    for kind in KINDS:
        if name in store.names(kind):
            path = store.source(kind, name)
            members[kind] = _add(tar, f"{key(name)}.{kind}{path.suffix.lower()}", path.read_bytes())
    _add(tar, f"{key(name)}.json", json.dumps(entry, ensure_ascii=False).encode())
    return members


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> list:
    info = tarfile.TarInfo(name)  # without owner and time, which differ between runs
    info.size = len(content)
    offset = tar.offset + len(info.tobuf(tar.format, tar.encoding, tar.errors))
    tar.addfile(info, io.BytesIO(content))
    return [name, offset, len(content)]
