"""The manifest of runs that were killed: no row is lost, none is there twice."""

from __future__ import annotations

import json

import pytest
from archive_files import frame

from cmmfnet.archive import manifest as module
from cmmfnet.archive.manifest import JOURNAL, MANIFEST, Done, Manifest, read_manifest
from cmmfnet.archive.places import Folder
from cmmfnet.archive.worker import Record
from cmmfnet.files.errors import UserError

SETTINGS = {"version": "1", "model": "m"}


def opened(out, shard=(0, 1)) -> Manifest:
    return Manifest(str(out), shard, SETTINGS)


def record(name: str, **more) -> Record:
    return Record(name, output=name, sha256="0", **more)


def inputs(out) -> list[str]:
    return sorted(read_manifest(str(out)).column("input").to_pylist())


def names(out) -> list[str]:
    return sorted(path.name for path in (out / MANIFEST).rglob("*.*"))


def test_a_run_killed_before_its_rows_became_parquet(tmp_path):
    first = opened(tmp_path)
    for i in range(3):
        first.add([record(f"{i}a"), record(f"{i}b")])
    first.close()  # as a kill does, which also takes the lock
    assert inputs(tmp_path) == ["0a", "0b", "1a", "1b", "2a", "2b"]
    assert not list(tmp_path.rglob("*.parquet"))
    second = opened(tmp_path)
    assert len(second.done) == 6 and second.done("1b") and not second.done("3a")
    assert len(list(tmp_path.rglob("*.parquet"))) == 1 and not list((tmp_path / JOURNAL).iterdir())
    assert inputs(tmp_path) == ["0a", "0b", "1a", "1b", "2a", "2b"]


def test_a_run_killed_before_it_cleared_its_journal(tmp_path, monkeypatch):
    first = opened(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "delete", lambda *_: None)
        first.add([record("a")])
        first.add([record("b")])
        first.flush()
    first.close()
    assert inputs(tmp_path) == ["a", "b"]
    second = opened(tmp_path)
    assert inputs(tmp_path) == ["a", "b"] and len(second.done) == 2
    assert not list((tmp_path / JOURNAL).iterdir())


def test_a_frame_that_comes_twice_is_recorded_once(tmp_path):
    run = opened(tmp_path)
    run.add([record("a"), record("b")])
    assert [each.input for each in run.add([record("b"), record("c")])] == ["c"]
    run.flush()
    run.close()
    assert opened(tmp_path).add([record("a")]) == []
    assert inputs(tmp_path) == ["a", "b", "c"]


def test_a_failed_frame_is_not_done(tmp_path):
    run = opened(tmp_path)
    run.add([Record("a", error="damaged")])
    assert not run.done("a")
    run.add([record("a")])
    assert run.done("a")


def test_many_rows_become_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART_ROWS", 10)
    run = opened(tmp_path)
    for i in range(7):
        run.add([record(f"{i}{c}") for c in "abcd"])
    run.close()
    assert len(list(tmp_path.rglob("*.parquet"))) == 2
    assert len(inputs(tmp_path)) == 28
    assert len(opened(tmp_path).done) == 28


def test_files_of_several_frames(tmp_path):
    done = Done()
    for row in (
        record("v#0", container="v"), Record("v", frames=3), record("v#2", container="v"),
        Record("w", frames=0), Record("x", frames=0, error="truncated"),
    ):  # fmt: skip
        done.add(vars(row))
    assert not done("v") and done("w") and not done("x")
    done.add(vars(record("v#1", container="v")))
    assert done("v") and done("v#0") and not done("v#3")


def test_done_keeps_every_fingerprint():
    done = Done()
    for i in range(70_000):
        done.add(vars(record(str(i))))
    assert len(done) == 70_000
    assert all(done(str(i)) for i in range(0, 70_000, 77)) and not done("70000")


def test_two_runs_of_the_same_frames(tmp_path):
    first = opened(tmp_path, (0, 2))
    other = opened(tmp_path, (1, 2))
    for shard in ((0, 2), (0, 1), (0, 3)):
        with pytest.raises(UserError, match="another run is colouring the same frames"):
            opened(tmp_path, shard)
    first.close()
    other.close()
    opened(tmp_path)


def test_a_damaged_part_is_named(tmp_path):
    run = opened(tmp_path)
    run.add([record("a")])
    run.flush()
    run.close()
    part = next(tmp_path.rglob("*.parquet"))
    part.write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"part-.*cannot be read.*coloured again"):
        opened(tmp_path)
    (tmp_path / MANIFEST / "_archive.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        opened(tmp_path)


def test_another_version_is_a_warning(tmp_path):
    opened(tmp_path).close()
    with pytest.warns(UserWarning, match="begun by cmmfnet 1, this is 2"):
        Manifest(str(tmp_path), (0, 1), {**SETTINGS, "version": "2"})


def test_an_interrupted_command_goes_on(source, tmp_path, archive, monkeypatch, capsys):
    """Ctrl-C after the first batch; the second run is complete."""
    add, calls = Manifest.add, []

    def interrupted(self, records):
        calls.append(add(self, records))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return calls[-1]

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "add", interrupted)
        assert archive(source, tmp_path / "out", "--batch-size", "2") == 130
    assert len(inputs(tmp_path / "out")) == 4
    frame(source / "more.png", 77)
    assert archive(source, tmp_path / "out", "--batch-size", "2") == 0
    assert len(inputs(tmp_path / "out")) == 8
    assert "coloured 4 frames, 4 were done before" in capsys.readouterr().out
    settings = json.loads((tmp_path / "out" / MANIFEST / "_archive.json").read_text())
    assert settings["source"] == str(source)
