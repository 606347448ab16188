"""Archives from strangers: nothing is written outside the output folder, nothing waits for ever, no
limit is passed, and what cannot be coloured is recorded."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from archive_files import frame
from PIL import Image
from test_archive import complete, pictures, rows

from cmmfnet.archive import places
from cmmfnet.archive.items import HEADER_LIMIT, Reader, Scan
from cmmfnet.archive.names import as_text


def png(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 30), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(content)
    return info, io.BytesIO(content)


def write_tar(path: Path, *members, form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form, errors="surrogateescape") as tar:
        for info, content in members:
            tar.addfile(info, content)
    return path


def errors(out: Path) -> dict[str, str]:
    return {row["input"]: row["error"] for row in rows(out) if row["error"] is not None}


def all_files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def test_members_that_lead_out_of_a_tar(tmp_path, archive):
    secret = frame(tmp_path / "secret.png", 9)
    write_tar(
        tmp_path / "in" / "s.tar",
        member("good.png", png(1)),
        member("../up.png", png(2)),
        member("a/../../up.png", png(2)),
        member("/tmp/absolute.png", png(3)),
        member("link.png", kind=tarfile.SYMTYPE, link=str(secret)),
        member("hard.png", kind=tarfile.LNKTYPE, link="good.png"),
        member("out", kind=tarfile.SYMTYPE, link=str(tmp_path)),
        member("out/through.png", png(4)),
        member("pipe.png", kind=tarfile.FIFOTYPE),
        member("device.png", kind=tarfile.CHRTYPE),
        member("good.png", png(5)),
        member("walk.mp4", b"video"),
    )
    before = all_files(tmp_path)
    assert archive(tmp_path / "in", tmp_path / "out") == 1
    new = all_files(tmp_path) - before
    assert all(name.startswith("out/") for name in new)
    assert set(pictures(tmp_path / "out")) == {"s.tar/good.png", "s.tar/out/through.png"}
    found = errors(tmp_path / "out")
    for name, message in {
        "../up.png": "no name inside the archive",
        "a/../../up.png": "no name inside the archive",
        "/tmp/absolute.png": "no name inside the archive",
        "link.png": "is a link in a tar",
        "hard.png": "is a link in a tar",
        "pipe.png": "is no plain file",
        "device.png": "is no plain file",
        "walk.mp4": "a video or archive inside a tar",
    }.items():
        assert message in found.pop(f"s.tar#{name}")
    (again,) = found.values()
    assert "stands twice" in again


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_names_in_any_script_and_with_line_breaks(tmp_path, archive, capsys, form):
    names = ["дорога.png", "道路.png", "two\nlines.png", "a\x1b[31mred.png", "ü" * 60 + "/x.png"]
    write_tar(
        tmp_path / "in" / "s.tar", *(member(n, png(i)) for i, n in enumerate(names)), form=form
    )
    for i, name in enumerate(names):
        frame(tmp_path / "in" / "plain" / name, i)
    raw = os.fsdecode(b"no-utf8-\xff\xfe.png")
    frame(tmp_path / "in" / raw, 7)
    (tmp_path / "in" / "bad\n\x1b[2J.png").write_bytes(b"nothing")
    assert archive(tmp_path / "in", tmp_path / "out") == 1
    assert "\x1b" not in "".join(capsys.readouterr())
    good = {f"s.tar#{name}" for name in names} | {f"plain/{name}" for name in names}
    complete(tmp_path / "out", good | {as_text(raw)})
    assert archive(tmp_path / "in", tmp_path / "out") == 1
    assert "coloured 0 frames, 11 were done before, failed 1" in capsys.readouterr().out


def test_a_truncated_tar(tmp_path, archive):
    path = write_tar(tmp_path / "in" / "s.tar", *(member(f"{i}.png", png(i)) for i in range(4)))
    content = path.read_bytes()
    path.write_bytes(content[: 3 * 512 * 3 + 700])  # 512 of header and 1024 of content each
    assert archive(tmp_path / "in", tmp_path / "out") == 1
    found = errors(tmp_path / "out")
    assert found and all("ends inside" in e or "damaged tar" in e for e in found.values())
    assert pictures(tmp_path / "out")


def test_a_tar_header_that_asks_for_gigabytes(tmp_path, archive):
    path = write_tar(tmp_path / "in" / "s.tar", member("a.png", png()))
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 7 << 30
    path.write_bytes(path.read_bytes()[:1536] + info.tobuf(tarfile.USTAR_FORMAT) + bytes(10240))
    tracemalloc.start()
    assert archive(tmp_path / "in", tmp_path / "out") == 1
    assert tracemalloc.get_traced_memory()[1] < 64 * HEADER_LIMIT
    tracemalloc.stop()
    assert "the limit is 1048576" in errors(tmp_path / "out")["s.tar"]
    assert set(pictures(tmp_path / "out")) == {"s.tar/a.png"}


def test_what_is_no_tar(tmp_path, archive):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar").write_bytes(os.urandom(3000))
    (tmp_path / "in" / "b.tar.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "in" / "c.zip").write_bytes(b"PK\3\4")
    assert archive(tmp_path / "in", tmp_path / "out") == 1
    found = errors(tmp_path / "out")
    assert "damaged tar after 0 pictures" in found["a.tar"]
    assert "cannot be read member by member" in found["b.tar.gz"]
    assert "cannot be read member by member" in found["c.zip"]


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be of this size, one bit a pixel."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_pictures_that_claim_to_be_huge(tmp_path, archive):
    frame(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "bomb.png").write_bytes(bomb(60_000, 60_000))
    write_tar(tmp_path / "in" / "s.tar", member("bomb.png", bomb(60_000, 60_000)))
    assert archive(tmp_path / "in", tmp_path / "out") == 1
    found = errors(tmp_path / "out")
    assert set(found) == {"bomb.png", "s.tar#bomb.png"}
    assert all("60000 x 60000" in error and "limit" in error for error in found.values())
    assert set(pictures(tmp_path / "out")) == {"good.png"}


def test_a_member_of_too_many_bytes_is_not_read(tmp_path, archive):
    big = tmp_path / "in" / "s.tar"
    info = tarfile.TarInfo("big.png")
    info.size = 5 << 30
    big.parent.mkdir()
    with big.open("wb") as file:  # sparse: 5 GB of nothing
        file.write(info.tobuf())
        file.truncate(512 + info.size + 1024)
    assert archive(tmp_path / "in", tmp_path / "out") == 1
    assert "the limit for one picture" in errors(tmp_path / "out")["s.tar#big.png"]


def test_a_truncated_video_keeps_its_frames(tmp_path, archive):
    video_files = pytest.importorskip("video_files")
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "walk.mkv"
    video_files.write(path, video_files.ramps(40) * 3)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 4 // 10])
    assert archive(tmp_path / "in", tmp_path / "out") == 1
    assert "walk.mkv" in errors(tmp_path / "out")["walk.mkv"]
    kept = set(pictures(tmp_path / "out"))
    assert kept == {f"walk.mkv/{i:06d}.png" for i in range(len(kept))} and 3 < len(kept) < 120


def test_links_and_special_files_in_a_folder(tmp_path, archive):
    frame(tmp_path / "in" / "a.png", 1)
    frame(tmp_path / "elsewhere" / "b.png", 2)
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "linked.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    (tmp_path / "in" / "lost.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "in" / "pipe.png")
    os.mkfifo(tmp_path / "in" / "pipe.tar")
    os.mkfifo(tmp_path / "in" / "pipe.mp4")
    assert archive(tmp_path / "in", tmp_path / "out") == 1
    assert set(pictures(tmp_path / "out")) == {"a.png", "linked.png"}
    assert set(errors(tmp_path / "out")) == {"lost.png", "pipe.png", "pipe.tar", "pipe.mp4"}


def test_a_name_that_is_the_manifests_own(tmp_path, archive):
    frame(tmp_path / "in" / "cmmfnet-manifest" / "part-0of1-00-0-0.parquet.png")
    assert archive(tmp_path / "in", tmp_path / "out") == 1
    (error,) = errors(tmp_path / "out").values()
    assert "is the manifest's own" in error


def test_listing_takes_no_memory_for_each_file(tmp_path, monkeypatch):
    """200,000 names, of which none is kept."""

    class Entry:
        def __init__(self, number: int):
            self.name = f"frame-{number:09d}.png"
            self.path = f"/in/{self.name}"

        def is_dir(self, follow_symlinks: bool = True) -> bool:
            return False

        def is_symlink(self) -> bool:
            return False

    class Entries:
        def __init__(self, _):
            self.names = map(Entry, range(200_000))

        def __next__(self):
            return next(self.names)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def close(self):
            pass

    scan = Scan(str(tmp_path), Reader())
    next(iter(scan.files()), None)  # what is imported once
    monkeypatch.setattr(places.os, "scandir", Entries)
    tracemalloc.start()
    assert sum(1 for _ in scan.files()) == 200_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000, f"{peak} bytes"


def test_folders_that_are_nested_without_end(tmp_path, archive, monkeypatch, capsys):
    monkeypatch.setattr(places, "DEPTH", 5)
    frame(tmp_path / "in" / "a" / "b" / "c" / "d" / "x.png")
    assert archive(tmp_path / "in", tmp_path / "out") == 0
    frame(tmp_path / "in" / "a" / "b" / "c" / "d" / "e" / "x.png")
    assert archive(tmp_path / "in", tmp_path / "out") == 2
    assert "more than 5 nested folders" in capsys.readouterr().err
