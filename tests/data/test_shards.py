"""Shards: the same data set in tar files, from disk and from URLs, and what is said of damaged
ones."""

from __future__ import annotations

import functools
import http.server
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tarfile
import threading
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image
from tiny_data import data_set, same

from cmmfnet.data.batches import Batch, Batches
from cmmfnet.data.pairs import Pairs, PairsError
from cmmfnet.data.prepare.write_shards import write_shards
from cmmfnet.data.remote import Remote
from cmmfnet.data.shards import key
from cmmfnet.data.source import Source

NAMES = ["a", "b.c", "d e", ".f", "ü%", "w" * 120, "g", "h"]
ENTRIES = [
    {
        "name": n,
        "split": "train" if i else "val",
        "sequence": "s" if i > 4 else None,
        "caption": "Straße\u2028\x85.",
        "tags": ["road"],
    }
    for i, n in enumerate(NAMES)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = data_set(tmp_path_factory.mktemp("pictures"), ENTRIES)
    (root / "visible" / "a.png").rename(root / "visible" / "a.PNG")
    (root / "label" / "g.png").unlink()
    noise = np.random.default_rng(0).integers(0, 256, (300, 486, 3), dtype=np.uint8)
    for name in ("b.c", NAMES[5], "g"):  # two of them do not fit into 1 MB
        for kind, picture in (
            ("visible", noise),
            ("thermal", noise[..., 0]),
            ("label", noise[..., 0] % 3),
        ):
            if (root / kind / f"{name}.png").exists():
                Image.fromarray(picture).save(root / kind / f"{name}.png", compress_level=0)
    return root


@pytest.fixture(scope="module")
def shards(folder, tmp_path_factory) -> Path:
    return write_shards(folder, tmp_path_factory.mktemp("shards") / "out", shard_mb=1)


@pytest.fixture
def copy(shards, tmp_path) -> Path:
    return shutil.copytree(shards, tmp_path / "copy")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CMMFNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "shards"


def lines(root: Path) -> list[dict]:
    return [
        json.loads(line)
        for line in (root / "index.jsonl").read_text(encoding="utf-8").strip().split("\n")
    ]


def rewrite(root: Path, change) -> None:
    """The index with ``change`` applied to the shard record of its entries."""
    entries = lines(root)
    for entry in entries:
        change(entry["shard"])
    (root / "index.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def some_batches(root: Path | str, workers: int = 0) -> list[Batch]:
    source = Source(str(root), split="train").opened()
    return [
        b
        for _, b in Batches(
            [source], batch_size=4, size=16, steps=5, seed=3, workers=workers
        ).from_step()
    ]


# ---- writing


def test_entries_and_pictures_are_those_of_the_folder(folder, shards):
    plain, packed = Pairs(folder), Pairs(shards)
    assert packed.entries == plain.entries == ENTRIES and np.array_equal(
        packed.weights, plain.weights
    )
    for i in range(len(plain)):
        x, y = plain[i], packed[i]
        assert np.array_equal(x.thermal, y.thermal) and np.array_equal(x.visible, y.visible)
        assert (x.label is None) == (y.label is None) == (x.name == "g")
        assert x.label is None or np.array_equal(x.label, y.label)
    assert [e["name"] for e in Pairs(shards, split="val").entries] == ["a"]


def test_photos_without_thermal_are_packed(tmp_path):
    root = data_set(tmp_path / "photos", [{"name": "p"}], colour="photo")
    packed = Pairs(write_shards(root, tmp_path / "out"))
    assert packed[0].thermal is None and np.array_equal(packed[0].visible, Pairs(root)[0].visible)
    assert packed.require("label") is packed


def test_tarfile_and_the_grouping_rule_of_webdataset_read_the_shards(folder, shards):
    """The rule: files side by side whose names are equal up to the first dot after the last slash
    are one sample."""
    names, samples = [], {}
    files = sorted(shards.glob("*.tar"))
    assert len(files) == 3  # as the sizes want
    for file in files:
        with tarfile.open(file) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (
                    0,
                    0,
                    0,
                    "",
                    0o644,
                )
                prefix, extension = re.fullmatch(r"((?:.*/|)[^.]+)[.]([^/]*)", member.name).groups()
                if not names or names[-1] != prefix:
                    names.append(prefix)
                samples.setdefault(prefix, {})[extension] = tar.extractfile(member).read()
        assert file.stat().st_size <= 2**20
    assert names == [key(entry["name"]) for entry in ENTRIES]  # none is torn apart
    for entry in ENTRIES:
        sample = samples[key(entry["name"])]
        kinds = ["thermal.png", "visible.png", "label.png", "json"]
        assert list(sample) == [k for k in kinds if (entry["name"], k) != ("g", "label.png")]
        assert json.loads(sample["json"]) == entry
        assert sample["thermal.png"] == (folder / "thermal" / f"{entry['name']}.png").read_bytes()


def test_keys_are_plain_and_tell_names_apart():
    names = ["a", "a.b", "a/b", "a%2Eb", "..", "/etc/x", "ü", "a b"]
    keys = [key(name) for name in names]
    assert len(set(keys)) == len(names)
    assert all(re.fullmatch(r"[\w% -]+", k, re.ASCII) for k in keys) and keys[0] == "a"


def test_equal_input_gives_equal_bytes(folder, shards, tmp_path):
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    again = write_shards(moved, tmp_path / "again", shard_mb=1)
    assert sorted(p.name for p in again.iterdir()) == sorted(p.name for p in shards.iterdir())
    assert all((again / p.name).read_bytes() == p.read_bytes() for p in shards.iterdir())


def test_an_occupied_folder_is_refused(folder, shards, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "shard-000000.tar").write_bytes(b"mine")
    for out in (tmp_path / "mine", shards):
        with pytest.raises(
            PairsError, match=r"is not empty \(it has .*shard|index.*shards go to a new folder"
        ):
            write_shards(folder, out)
    assert (tmp_path / "mine" / "shard-000000.tar").read_bytes() == b"mine"


def test_what_cannot_be_packed(folder, shards, tmp_path):
    with pytest.raises(PairsError, match="is in shards already"):
        write_shards(shards, tmp_path / "out")
    with pytest.raises(PairsError, match="shards of 0 MB; expected 1 or more"):
        write_shards(folder, tmp_path / "out", shard_mb=0)
    twice = data_set(tmp_path / "twice", [{"name": "a"}, {"name": "a"}])
    with pytest.raises(PairsError, match="two entries 'a'"):
        write_shards(twice, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_no_index_and_the_next_run_starts_over(
    folder, shards, tmp_path, disk_full_while_writing, monkeypatch
):
    out = tmp_path / "out"
    disk_full_while_writing()
    with pytest.raises(OSError, match="No space left"):
        write_shards(folder, out, shard_mb=1)
    monkeypatch.undo()
    with pytest.raises(PairsError, match=r"index.jsonl does not exist"):
        Pairs(out)
    (out / "shard-000009.tar").write_bytes(b"of an earlier try")
    (out / ".cmmfnet-0123456789ab.part").write_bytes(b"half")
    write_shards(folder, out, shard_mb=1)
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in shards.iterdir())
    assert all((out / p.name).read_bytes() == p.read_bytes() for p in shards.iterdir())


def test_killed_while_writing_starts_over(folder, shards, tmp_path):
    out = tmp_path / "out"
    process = multiprocessing.get_context("fork").Process(
        target=write_shards, args=(folder, out), kwargs={"shard_mb": 1}
    )
    process.start()
    for _ in range(2000):
        if (out / "shard-000000.tar").exists():
            break
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join(20)
    if process.exitcode == 0:
        pytest.skip("it was too quick to be killed")
    with pytest.raises(PairsError, match=r"index.jsonl does not exist"):
        Pairs(out)
    assert Pairs(write_shards(folder, out, shard_mb=1)).entries == ENTRIES


# ---- reading


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_folder(folder, shards, workers):
    assert all(
        same(x, y) for x, y in zip(some_batches(folder), some_batches(shards, workers), strict=True)
    )


def test_memory_urls_give_the_batches_of_the_folder(folder, shards, cache):
    memory = fsspec.filesystem("memory")
    memory.put(str(shards), "/bucket/set", recursive=True)
    url = "memory://bucket/set"
    assert Pairs(url).root == url and not cache.exists()  # nothing is fetched before it is needed
    packed = some_batches(url, workers=2)
    assert all(same(x, y) for x, y in zip(some_batches(folder), packed, strict=True))
    kept = {p.name: p.stat().st_mtime_ns for p in cache.glob("*.tar")}
    assert kept and not list(cache.glob(".*.part"))
    memory.rm("/bucket/set", recursive=True)
    memory.put(str(shards / "index.jsonl"), "/bucket/set/index.jsonl")
    memory.put(str(shards / "shards.json"), "/bucket/set/shards.json")
    some_batches(url)  # the shards are gone there, and are not asked for again
    assert {p.name: p.stat().st_mtime_ns for p in cache.glob("*.tar")} == kept
    memory.rm("/bucket", recursive=True)


def test_file_urls_are_read_where_they_are(folder, shards, cache):
    pairs = Pairs(shards.as_uri())
    assert pairs.root == shards and pairs.entries == ENTRIES
    assert pairs[0].name == "a" and not cache.exists()
    assert Pairs(folder.as_uri())[0].name == "a"  # a folder of pictures, too


@pytest.fixture
def served(shards):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(shards))
    handler.log_message = None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join(10)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_web_server_gives_the_batches_of_the_folder(folder, served, workers, cache):
    pytest.importorskip("aiohttp", reason="http needs aiohttp: pip install 'cmmfnet[shards]'")
    assert all(
        same(x, y) for x, y in zip(some_batches(folder), some_batches(served, workers), strict=True)
    )
    assert list(cache.glob("*.tar"))


def test_processes_that_want_one_shard_fetch_it_once(shards, tmp_path, cache, monkeypatch):
    table = json.loads((shards / "shards.json").read_text())[0]
    source = tmp_path / "slow"
    shutil.copytree(shards, source)
    fetched = tmp_path / "fetched"

    class Slow:
        def get_file(self, path, to):
            with fetched.open("a") as log:
                log.write(f"{os.getpid()}\n")
            content = Path(path).read_bytes()
            with Path(to).open("wb") as file:
                file.write(content[:1000])
                file.flush()
                time.sleep(0.3)
                file.write(content[1000:])

    monkeypatch.setattr(Remote, "_system", lambda self: (Slow(), str(source)))
    context = multiprocessing.get_context("fork")
    want = (table["file"], table["size"], table["sha256"])
    processes = [context.Process(target=Remote("slow://x").fetch, args=want) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(fetched.read_text().splitlines()) == 1
    assert (cache / f"{table['sha256']}.tar").read_bytes() == (shards / table["file"]).read_bytes()


@pytest.mark.parametrize("damage", ["short", "other"])
def test_a_damaged_download_is_not_kept(shards, cache, damage):
    memory = fsspec.filesystem("memory")
    memory.put(str(shards), "/damaged", recursive=True)
    for file in shards.glob("*.tar"):
        content = file.read_bytes()
        bad = content[:-512] if damage == "short" else content[:600] + b"x" + content[601:]
        memory.pipe(f"/damaged/{file.name}", bad)
    with pytest.raises(
        PairsError, match=r"memory://damaged/shard-\d+.tar: fetched \d+ bytes with SHA-256"
    ):
        Pairs("memory://damaged")[0]
    assert not list(cache.glob("*.tar")) and not list(cache.glob(".*.part"))
    memory.rm("/damaged", recursive=True)


def test_urls_that_lead_nowhere(folder):
    with pytest.raises(
        PairsError, match=r"memory://nothing/index.jsonl cannot be read \(FileNotFoundError"
    ):
        Pairs("memory://nothing")
    with pytest.raises(PairsError, match="Protocol not known: ftq"):
        Pairs("ftq://x/y")
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/pictures", recursive=True)
    with pytest.raises(
        PairsError,
        match=r"memory://pictures/index.jsonl names no shards; pictures at a URL have to be packed",
    ):
        Pairs("memory://pictures")
    memory.rm("/pictures", recursive=True)


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ImportError, match=r"s3://bucket/set: .*pip install 'cmmfnet\[shards\]'"):
        Pairs("s3://bucket/set")


# ---- damaged shards


def test_a_missing_shard_is_named(copy):
    (copy / "shard-000001.tar").unlink()
    with pytest.raises(PairsError, match=r"shard-000001.tar is missing \(No such file"):
        Pairs(copy)


def test_a_truncated_shard_is_named(copy):
    file = copy / "shard-000000.tar"
    os.truncate(file, file.stat().st_size - 100)
    with pytest.raises(
        PairsError, match=r"shard-000000.tar has \d+ bytes, expected \d+ .*truncated"
    ):
        Pairs(copy)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_is_truncated_later_is_named(copy, workers):
    source = Source(str(copy), (1, 1)).opened()
    for file in copy.glob("*.tar"):
        os.truncate(file, 700)
    with pytest.raises(PairsError, match=r"shard-\d+.tar has 700 bytes, expected"):
        list(Batches([source], batch_size=4, size=16, steps=5, workers=workers).from_step())


@pytest.mark.parametrize(
    "place",
    [
        ["x", -512, 10],
        ["x", 0, 10],
        ["x", 512, -1],
        ["x", 512, 10**30],
        ["x", 10**9, 10],
        ["x", 512.5, 10],
        ["x", True, 10],
        ["x", "512", 10],
        ["x", 512],
        [512, 10, 3, 4],
        None,
        7,
        {},
    ],
    ids=str,
)
def test_a_place_outside_the_shard_is_named(copy, place):
    entries = lines(copy)
    entries[2]["shard"]["thermal"] = place
    (copy / "index.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    with pytest.raises(
        PairsError,
        match=r"index.jsonl, d e, thermal in shard-000000.tar: .*expected \[name, offset, size\]",
    ):
        Pairs(copy)


@pytest.mark.parametrize("shift", [512, 1, -1, 1024])
def test_a_wrong_offset_inside_the_shard_is_noticed(copy, shift):
    def move(record):
        record["thermal"][1] += shift

    rewrite(copy, move)
    with pytest.raises(
        PairsError,
        match=r"thermal of (a|d e) in .*tar: (no file starts at byte|found .* expected)|expected "
        r"\[",
    ):
        Pairs(copy)[0], Pairs(copy)[2]


def test_exchanged_places_are_noticed(copy):
    def exchange(record):
        record["thermal"], record["visible"] = record["visible"], record["thermal"]

    rewrite(copy, exchange)
    with pytest.raises(
        PairsError,
        match=r"visible of a in .*: found a.thermal.png of \d+ bytes at byte \d+, expected "
        r"a.visible",
    ):
        Pairs(copy)[0]


def test_a_wrong_size_is_noticed(copy):
    def shorten(record):
        record["visible"][2] -= 1

    rewrite(copy, shorten)
    with pytest.raises(
        PairsError,
        match=r"visible of a in .*: found a.visible.png of (\d+) bytes .* expected a.visible",
    ):
        Pairs(copy)[0]


@pytest.mark.parametrize(
    "record", [None, "shard-000000.tar", {}, {"file": "other.tar"}, {"file": ["x"]}], ids=str
)
def test_a_shard_that_is_not_in_the_table_is_named(copy, record):
    entries = lines(copy)
    entries[1]["shard"] = record
    (copy / "index.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    with pytest.raises(
        PairsError, match=r"index.jsonl, b.c: shard .*expected one of those in shards.json"
    ):
        Pairs(copy)


@pytest.mark.parametrize(
    "table",
    [
        "",
        "{}x",
        '{"file": 1}',
        "[7]",
        '[{"file": "../../etc/passwd.tar", "size": 1, "sha256": "%s"}]' % ("0" * 64),
        '[{"file": "shard-000000.tar", "size": 1, "sha256": "../x"}]',
        '[{"file": "shard-000000.tar", "size": "1", "sha256": "%s"}]' % ("0" * 64),
    ],
)
def test_a_bad_table_of_shards_is_named(copy, table):
    (copy / "shards.json").write_text(table)
    with pytest.raises(
        PairsError, match=r"shards.json: .*expected a list of objects with file, size and sha256"
    ):
        Pairs(copy)


def test_a_broken_picture_in_a_shard_is_named(tmp_path):
    root = data_set(tmp_path / "set", [{"name": "a"}])
    (root / "visible" / "a.png").write_bytes(b"no picture")
    (tmp_path / "out").mkdir()
    packed = Pairs(write_shards(root, tmp_path / "out"))
    with pytest.raises(
        PairsError, match=r"visible of a in .*shard-000000.tar cannot be used \(cannot identify"
    ):
        packed[0]
