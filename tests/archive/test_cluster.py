"""`cmmfnet archive --workers`: the same archive through Ray."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from archive_files import frame
from test_archive import complete, pictures

from cmmfnet.cli import main

ray = pytest.importorskip("ray", reason="--workers needs Ray: pip install 'cmmfnet[ray]'")
GIVEN = ["--model", "cmmfnet-small", "--device", "cpu", "--batch-size", "4"]


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20)
    yield
    ray.shutdown()


def kill_one(killed: list[int], out) -> None:
    """Kill a worker once some pictures are there."""
    limit = time.monotonic() + 120
    while time.monotonic() < limit and not killed:
        if len(list(out.rglob("*.png"))) >= 4:
            for pid in actors()[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
        time.sleep(0.05)


def actors() -> list[int]:
    """Process ids of the pool's actors on this test's own cluster."""
    found = []
    for title in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            pid = int(title.parent.name)
            if b"ray::MapWorker" in title.read_bytes() and parent(parent(pid)) == os.getpid():
                found.append(pid)
    return found


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.slow
def test_an_archive_on_ray_is_that_of_one_process(source, tmp_path, cluster, capsys):
    (source / "bad.png").write_bytes(b"no picture")
    for i in range(24):
        frame(source / "more" / f"{i}.png", 100 + i, size=(48, 64))
    names = {str(p.relative_to(source)) for p in source.rglob("*.*") if p.suffix != ".md"}
    assert main(["archive", str(source), str(tmp_path / "one"), *GIVEN]) == 1
    killed: list[int] = []
    killer = threading.Thread(target=kill_one, args=(killed, tmp_path / "ray"), daemon=True)
    killer.start()
    assert main(["archive", str(source), str(tmp_path / "ray"), *GIVEN, "--workers", "2"]) == 1
    assert "coloured 31 frames, failed 1" in capsys.readouterr().out
    killer.join(1)
    assert killed
    complete(tmp_path / "ray", names - {"bad.png"})
    assert pictures(tmp_path / "ray") == pictures(tmp_path / "one")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "0"], "--workers is 0"),
        (["--workers", "2", "--cpus", "0"], "expected more"),
        (["--address", "auto"], "--address needs --workers"),
    ],
)
def test_options_that_cannot_be(source, tmp_path, capsys, options, message):
    assert main(["archive", str(source), str(tmp_path / "out"), *GIVEN, *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_workers_that_the_cluster_has_no_room_for(source, tmp_path, cluster, capsys):
    given = [*GIVEN, "--workers", "2", "--gpus", "0.5"]
    assert main(["archive", str(source), str(tmp_path / "out"), *given]) == 2
    assert "2 workers of 0.5 GPU need 1" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_that_is_not_there(source, tmp_path, cluster, capsys):
    given = ["--model", "no-such-model", "--device", "cpu", "--workers", "1"]
    assert main(["archive", str(source), str(tmp_path / "out"), *given]) == 1
    assert "no-such-model" in capsys.readouterr().err
