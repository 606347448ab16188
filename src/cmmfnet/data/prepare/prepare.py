"""``cmmfnet prepare``: brings raw data sets into the layout of data/pairs.py, with a frame list and
its checksum."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import PIL
from tqdm import tqdm

from cmmfnet import __version__
from cmmfnet.data.prepare.place import place_pair
from cmmfnet.data.prepare.raw import SPLITS, Need, PrepareError, RawPair, choose_frames
from cmmfnet.files.atomic import atomic_write, clear_parts
from cmmfnet.files.pictures import PICTURES

MARKER = "preparing.json"
"""Exists while the folder is half a data set, and identifies the request that began it."""


def prepare(
    name: Literal["kaist", "irvi", "flir", "llvip", "m3fd", "msrs", "roadscene", "folder"],
    raw: Path,
    out: Path,
    *,
    protocol: Literal["A", "B", "C"] | None = None,
    frames: Path | None = None,
    partial: bool = False,
    train_all: bool = False,
    jobs: int | None = None,
    copy: bool = False,
    check_alignment: bool = False,
    shards: int | None = None,
) -> dict[str, Any]:
    """Bring a raw data set into the project's layout: links to its pictures, an index, and a frame
    list with a checksum.

    If it is interrupted, the same command continues. docs/prepare.md has the expected layout of
    each set.

    Args:
        name: which data set; folder: your own pictures
        raw: the unpacked data set
        out: a new folder for thermal/, visible/, index.jsonl, frames.txt and data_set.json
        protocol: kaist: A (resize to 320x256, centre crop 256x256; the default), B (a 256x256 crop
            of the frame, by its name) or C (every 20th frame of A)
        frames: file that lists the frames to use, one a line: setXX/VXXX/IXXXXX for kaist, names
            of frames.txt for all, with or without train, val or test before them
        partial: use an incomplete copy as it is
        train_all: kaist: train on every video of the training sets (default: the last video of
            each is for validation)
        jobs: files at a time (default: one for each CPU)
        copy: copy files instead of linking to them
        check_alignment: estimate the shift of each pair, flag bad ones and write a page with them
        shards: also write tar shards of this many MB to OUT/shards
    """
    raw, out = Path(raw).expanduser().resolve(), Path(out).expanduser().resolve()
    jobs = _jobs(jobs)
    _check_request(name, raw, out, protocol, frames, partial, train_all, shards)
    protocol = protocol or ("A" if name == "kaist" else None)
    need = "listed" if frames is not None else "partial" if partial else "whole"
    pairs = _read(name, raw, protocol, need, train_all, jobs)
    if frames is not None:
        pairs = choose_frames(pairs, Path(frames))
    about: dict[str, Any] = {"name": name, "raw": str(raw)}
    if protocol:
        from cmmfnet.data.prepare.kaist import GEOMETRY

        about |= {"protocol": protocol, "geometry": GEOMETRY[protocol]}
    about |= {
        "frames": str(frames) if frames is not None else None,
        "partial": partial,
        "train_all": train_all,
    }

    info = _finished(pairs, out, copy) if check_alignment or shards else None
    if info is None:
        info = write_data_set(pairs, out, jobs=jobs, copy=copy, about=about)
    _print(info, out)
    if check_alignment:
        from cmmfnet.data.prepare import alignment

        alignment.check_alignment(out, jobs=jobs)
    if shards:
        from cmmfnet.data.prepare.write_shards import write_shards

        if (out / "shards" / "index.jsonl").is_file():  # written last, so they are complete
            print(f"shards      {out / 'shards'} are there already")
        else:
            print(f"shards      {write_shards(out, out / 'shards', shard_mb=shards)}")
    return info


def write_data_set(
    pairs: list[RawPair],
    out: Path,
    *,
    jobs: int | None = None,
    copy: bool = False,
    about: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write thermal/, visible/, frames.txt, data_set.json and, last, index.jsonl.

    Whole pictures become symbolic links; hard links if the file system has no symbolic ones; else
    copies. Cut or resampled ones become PNG, even from JPEG: compressing them a second time would
    add losses to training targets and scores.

    Args:
        pairs: in any order; the result is the same.
        out: a new folder, or one that an interrupted call with the same pairs began.
        jobs: threads (default: one for each CPU).
        copy: copy instead of linking.
        about: further keys of data_set.json.

    Returns:
        The content of data_set.json: ``about``; ``counts`` (split -> frames, sha256 of their list,
        all and by lighting, frames of each source, lighting and sequence); ``sha256`` of
        frames.txt; ``plan``, sha256 of files, boxes and index entries; ``files``, how many were
        linked, copied, written; ``versions``.

    Raises:
        PrepareError: names, splits or pictures that cannot be used; a folder with other content.
    """
    pairs = _check(pairs)
    plan = _plan(pairs, copy)
    clear_parts(out, out / "thermal", out / "visible")
    _open(out, plan)
    with ThreadPoolExecutor(_jobs(jobs)) as pool:
        results = pool.map(lambda pair: place_pair(pair, out, copy), pairs)
        results = list(tqdm(results, total=len(pairs), desc="prepare", unit="pair", disable=None))
    if bad := [error for _, error in results if error]:
        shown = "".join(f"\n  {line}" for line in bad[:5])
        raise PrepareError(
            f"{len(bad)} of {len(pairs)} pairs cannot be used:{shown}\nReplace these files and "
            "run again"
        )
    info = {
        **(about or {}),
        "counts": _count(pairs),
        "sha256": _sha256(pairs),
        "plan": plan,
        "files": dict(sorted(Counter(how for hows, _ in results for how in hows).items())),
        "versions": {
            "cmmfnet": __version__,
            "python": platform.python_version(),
            "pillow": PIL.__version__,
        },
    }
    _write(out / "frames.txt", _frame_list(pairs))
    _write(out / "data_set.json", json.dumps(info, indent=1) + "\n")
    _write(
        out / "index.jsonl",
        "".join(json.dumps(_entry(pair), ensure_ascii=False) + "\n" for pair in pairs),
    )
    (out / MARKER).unlink()
    return info


def _check_request(name, raw, out, protocol, frames, partial, train_all, shards) -> None:
    if not raw.is_dir() and not (name == "folder" and raw.is_file()):  # a list of pairs is a file
        raise PrepareError(
            f"{raw} is no folder; expected the unpacked data set (archives must be unpacked first)"
        )
    if out == raw:
        raise PrepareError(f"OUT is RAW ({raw}); name another folder, the raw data stays as it is")
    for given, option in ((protocol, "--protocol"), (train_all, "--train-all")):
        if given and name != "kaist":
            raise PrepareError(f"{option} is for kaist only; leave it out for {name}")
    if partial and name == "folder":
        raise PrepareError(
            "--partial is for sets with published counts; folder has none, leave it out"
        )
    if protocol == "C" and frames is not None:
        raise PrepareError(
            "--protocol C chooses every 20th frame, --frames those of a list; use A or B with a "
            "list"
        )
    if shards is not None and shards < 1:
        raise PrepareError(
            f"--shards is {shards}; expected the size of a shard in MB, for example 256"
        )


def _read(
    name: str, raw: Path, protocol: str | None, need: Need, train_all: bool, jobs: int
) -> list[RawPair]:
    match name:
        case "kaist":
            from cmmfnet.data.prepare.kaist import read_kaist

            return read_kaist(raw, protocol=protocol or "A", train_all=train_all, need=need)
        case "irvi":
            from cmmfnet.data.prepare.irvi import read_irvi

            return read_irvi(raw, need=need, jobs=jobs)
        case "flir":
            from cmmfnet.data.prepare.flir import read_flir

            return read_flir(raw, need=need)
        case "folder":
            from cmmfnet.data.prepare.folder import read_folder

            return read_folder(raw)
        case _:
            from cmmfnet.data.prepare import small_sets

            return getattr(small_sets, f"read_{name}")(raw, need=need)


def _check(pairs: Iterable[RawPair]) -> list[RawPair]:
    """The pairs in the order of frames.txt."""
    pairs = sorted(pairs, key=lambda pair: (pair.split, pair.name))
    if not pairs:
        raise PrepareError("there is not one pair to prepare")
    names = [pair.name for pair in pairs]
    if unsafe := [
        name for name in names if not re.fullmatch(r"[\w-]+", name) or len(name.encode()) > 200
    ]:
        raise PrepareError(
            f"{len(unsafe)} names are not made of letters, digits, - and _ (at most 200 bytes in "
            f"UTF-8; the first is {unsafe[0]!r}); rename these files"
        )
    if odd := [pair for pair in pairs if pair.split not in SPLITS]:
        raise PrepareError(
            f"{odd[0].name} has split {odd[0].split!r}; expected one of {', '.join(SPLITS)}"
        )
    seen: dict[str, RawPair] = {}
    for pair in pairs:  # NAME.jpg and name.jpg are one file on some systems
        other = seen.setdefault(pair.name.lower(), pair)
        if other is not pair:
            raise PrepareError(
                f"two pairs would be called {pair.name}: {other.thermal} and {pair.thermal}; "
                "rename one of them"
            )
        for path in (pair.thermal, pair.visible):
            if path.suffix.lower() not in PICTURES:
                raise PrepareError(f"{path}: expected a picture ({', '.join(PICTURES)})")
    return pairs


def _open(out: Path, plan: str) -> None:
    """Mark ``out`` as begun, or check that the same request began it."""
    # a run that was killed at its very end has both: it is finished again
    if (out / "index.jsonl").exists() and not (out / MARKER).is_file():
        raise PrepareError(
            f"{out} is a finished data set (it has index.jsonl); delete it or name another folder"
        )
    if (out / MARKER).is_file():
        if json.loads((out / MARKER).read_text(encoding="utf-8")).get("plan") != plan:
            raise PrepareError(
                f"{out} was begun with other options or other raw data; repeat that command, "
                "delete the folder or name another one"
            )
    elif out.is_dir() and any(out.iterdir()):
        raise PrepareError(
            f"{out} is not empty, and this command did not begin it; name a new folder"
        )
    else:
        _write(out / MARKER, json.dumps({"plan": plan}) + "\n")
    for kind in ("thermal", "visible"):
        (out / kind).mkdir(exist_ok=True)


def _finished(pairs: list[RawPair], out: Path, copy: bool) -> dict[str, Any] | None:
    """The content of data_set.json if ``out`` is finished with the same pairs; None if it is not
    finished."""
    if not (out / "index.jsonl").exists():
        return None
    path = out / "data_set.json"
    info = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if info.get("plan") != _plan(_check(pairs), copy):
        raise PrepareError(
            f"{out} is a finished data set of other pairs; delete it or name another folder"
        )
    return info


def _frame_list(pairs: list[RawPair]) -> str:
    """A line "SPLIT NAME" for each frame, sorted, with line feeds between them and none at the end,
    as in protocol.frames_sha256."""
    return "\n".join(sorted(f"{pair.split} {pair.name}" for pair in pairs))


def _sha256(pairs: list[RawPair]) -> str:
    """Identifies the choice of frames, whatever their files contain."""
    return hashlib.sha256(_frame_list(pairs).encode()).hexdigest()


def _entry(pair: RawPair) -> dict[str, Any]:
    sequence = {"sequence": pair.sequence} if pair.sequence is not None else {}
    return {"name": pair.name, "split": pair.split, "source": pair.source, **sequence, **pair.meta}


def _plan(pairs: list[RawPair], copy: bool) -> str:
    digest = hashlib.sha256(f"copy={copy}\n".encode())
    for p in pairs:
        files = [str(p.thermal), p.thermal_box, str(p.visible), p.visible_box, p.visible_size]
        files += ["embedded"] if p.embedded else []
        digest.update((json.dumps([_entry(p), files]) + "\n").encode())
    return digest.hexdigest()


def _count(pairs: list[RawPair]) -> dict[str, Any]:
    counts: dict[str, Any] = {}
    for split in SPLITS:
        chosen = [pair for pair in pairs if pair.split == split]
        if chosen:
            lighting = Counter(pair.meta.get("lighting", "day") for pair in chosen)
            by_lighting = {
                k: [p for p in chosen if p.meta.get("lighting", "day") == k]
                for k in sorted(lighting)
            }
            counts[split] = {
                "frames": len(chosen),
                "sha256": {"all": _sha256(chosen)}
                | {key: _sha256(part) for key, part in by_lighting.items()},
                "sources": dict(sorted(Counter(pair.source for pair in chosen).items())),
                "lighting": dict(sorted(lighting.items())),
                "sequences": dict(
                    sorted(Counter(p.sequence for p in chosen if p.sequence is not None).items())
                ),
            }
    return counts


def _print(info: dict[str, Any], out: Path) -> None:
    protocol = f", protocol {info['protocol']}" if "protocol" in info else ""
    print(f"{info['name']}{protocol}: {info['raw']} -> {out}")
    for split, count in info["counts"].items():
        parts = [
            f"{n:,} {key}" for key, n in (*count["sources"].items(), *count["lighting"].items())
        ]
        sequences = f"{len(count['sequences'])} sequences: " if count["sequences"] else ""
        print(f"{split:10}  {count['frames']:,} frames, {sequences}{', '.join(parts)}")
    print(f"files       {', '.join(f'{n:,} {how}' for how, n in info['files'].items())}")
    print(f"frame list  {out / 'frames.txt'}\nsha256      {info['sha256']}")


def _write(path: Path, text: str) -> None:
    with atomic_write(path, text=True) as file:
        file.write(text)


def _jobs(jobs: int | None) -> int:
    if jobs is not None and jobs < 1:
        raise PrepareError(f"--jobs is {jobs}; expected 1 or more")
    return jobs or (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
