"""Disks, inputs and devices that fail while an archive is coloured."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from archive_files import frame
from test_archive import complete, pictures, rows

from cmmfnet.archive.items import Scan
from cmmfnet.archive.places import Folder, retried
from cmmfnet.archive.worker import Worker
from cmmfnet.colorizer.memory import OutOfMemory, halving

NAMES = {f"night/{i}.png" for i in range(4)} | {f"day/{i}.jpg" for i in range(3)}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES])
def test_an_output_that_cannot_be_written_ends_the_run(
    source, tmp_path, archive, monkeypatch, capsys, code
):
    put, written = Folder.put, []

    def failing(self, name, content):
        if name.endswith(".png"):
            if len(written) >= 3:
                raise OSError(code, os.strerror(code), name)
            written.append(name)
        put(self, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "put", failing)
        assert archive(source, tmp_path / "out", "--batch-size", "1") == 1
    assert "cannot be written" in capsys.readouterr().err
    good = [row for row in rows(tmp_path / "out") if row["output"]]
    assert {row["output"] for row in good} <= set(written)
    assert archive(source, tmp_path / "out") == 0
    complete(tmp_path / "out", NAMES)


def test_a_disk_that_is_full_at_once(source, tmp_path, archive, disk_full_while_writing, capsys,
                                     monkeypatch):  # fmt: skip
    disk_full_while_writing()
    assert archive(source, tmp_path / "out") == 1
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    assert not pictures(tmp_path / "out")


def test_an_input_that_vanished(source, tmp_path, archive, monkeypatch):
    files = Scan.files

    def listed(self, *arguments):
        for name in files(self, *arguments):
            if name in ("night/2.png", "day/0.jpg"):
                (source / name).unlink()
            yield name

    with monkeypatch.context() as patch:
        patch.setattr(Scan, "files", listed)
        assert archive(source, tmp_path / "out") == 1
    failed = {row["input"]: row["error"] for row in rows(tmp_path / "out") if row["error"]}
    assert set(failed) == {"night/2.png", "day/0.jpg"}
    assert all("no such file" in error for error in failed.values())
    complete(tmp_path / "out", NAMES - set(failed))


def test_an_error_that_passes_is_tried_again(source, tmp_path, archive, monkeypatch):
    read, failed = Worker._read, set()

    def shaky(self, item):
        if item.key.startswith("night") and item.key not in failed:
            failed.add(item.key)
            raise OSError(errno.EIO, "Input/output error")
        return read(self, item)

    monkeypatch.setattr(Worker, "_read", shaky)
    assert archive(source, tmp_path / "out") == 0
    complete(tmp_path / "out", NAMES)
    attempts = {row["input"]: row["attempts"] for row in rows(tmp_path / "out")}
    assert attempts == {name: 2 if name.startswith("night") else 1 for name in NAMES}


def test_a_frame_that_always_fails_is_recorded_and_the_others_are_coloured(
    source, tmp_path, archive, monkeypatch
):
    colour = Worker._colour

    def failing(self, thermals):
        if any("1.jpg" in thermal.name for thermal in thermals):
            raise FloatingPointError("NaN colours")
        return colour(self, thermals)

    monkeypatch.setattr(Worker, "_colour", failing)
    assert archive(source, tmp_path / "out") == 1
    (row,) = [row for row in rows(tmp_path / "out") if row["error"]]
    assert (row["input"], row["attempts"]) == ("day/1.jpg", 2)
    assert row["error"] == "FloatingPointError: NaN colours"
    complete(tmp_path / "out", NAMES - {"day/1.jpg"})


def out_of_memory(limit: int):
    sizes = []

    def run(items):
        sizes.append(len(items))
        if len(items) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return [item + 1 for item in items]

    return run, sizes


def test_a_gpu_without_memory_gets_half_the_batch():
    run, sizes = out_of_memory(2)
    assert halving(run, list(range(7))) == list(range(1, 8))
    assert sizes == [7, 4, 2, 2, 3, 2, 1]


def test_a_gpu_without_memory_for_one_frame():
    run, _ = out_of_memory(0)
    results = halving(run, [1, 2])
    assert all(isinstance(result, OutOfMemory) for result in results)
    assert "too little memory for this one frame" in str(results[0])
    assert "--device cpu" in str(results[0])


def test_a_lost_device_is_no_frames_fault():
    def run(_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        halving(run, [1, 2])


def test_an_archive_on_a_gpu_without_memory(source, tmp_path, archive, monkeypatch):
    colour, sizes = Worker._colour, []

    def run(self, thermals):
        sizes.append(len(thermals))
        if len(thermals) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return colour(self, thermals)

    monkeypatch.setattr(Worker, "_colour", run)
    assert archive(source, tmp_path / "out") == 0
    assert max(sizes) == 7
    complete(tmp_path / "out", NAMES)


def test_a_clock_that_goes_back(source, tmp_path, archive, monkeypatch):
    """No result depends on the time of day: rows have none, and files are not compared by age."""
    archive(source, tmp_path / "out", "--shard", "1/2")
    monkeypatch.setattr(time, "time", iter(range(10_000_000, 0, -1000)).__next__)
    for path in tmp_path.rglob("*.*"):
        if path.is_file():
            os.utime(path, (4e9, 4e9))
    assert archive(source, tmp_path / "out") == 0
    complete(tmp_path / "out", NAMES)
    assert all(row["seconds"] >= 0 for row in rows(tmp_path / "out"))


def test_requests_are_tried_again_with_growing_waits(monkeypatch):
    waits, calls = [], []
    monkeypatch.setattr(time, "sleep", waits.append)

    def shaky():
        calls.append(1)
        if len(calls) < 4:
            raise OSError("503 Slow Down")
        return 7

    assert retried(shaky) == 7
    assert len(waits) == 3 and waits[2] > waits[0] > 0.1
    for error in (FileNotFoundError(), PermissionError(), OSError(errno.ENOSPC, "full")):
        calls.clear()

        def final(error=error):
            calls.append(1)
            raise error

        with pytest.raises(type(error)):
            retried(final)
        assert len(calls) == 1


def test_frames_of_any_mix_of_sizes(tmp_path, archive):
    for i, size in enumerate([(20, 30), (33, 47), (20, 30), (64, 16), (1, 1), (33, 47)]):
        frame(tmp_path / "in" / f"{i}.png", i, size=size)
    assert archive(tmp_path / "in", tmp_path / "out") == 0
    found = {(r["height"], r["width"]) for r in rows(tmp_path / "out")}
    assert found == {(20, 30), (33, 47), (64, 16), (1, 1)}
    assert np.array(list(Path(tmp_path / "out").rglob("*.png"))).size == 6
