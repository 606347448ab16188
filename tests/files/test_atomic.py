"""Files are written whole or not at all, and killed writers leave nothing for good."""

from __future__ import annotations

import errno
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cmmfnet.files.atomic import atomic_write, clear_parts

WRITER = """
import sys, time
from pathlib import Path
from cmmfnet.files.atomic import atomic_write
with atomic_write(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def writer(tmp_path):
    """A process that has begun to write a file."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "result.png")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        yield process
        process.kill()


def parts(folder):
    return list(folder.glob(".*.part"))


def test_the_part_of_a_killed_process_is_cleared_and_that_of_a_running_one_stays(tmp_path, writer):
    (part,) = parts(tmp_path)
    clear_parts(tmp_path)
    assert parts(tmp_path) == [part]
    writer.kill()
    writer.wait()
    assert parts(tmp_path) == [part]
    (tmp_path / "mine.part").touch()
    (tmp_path / ".mine.part").touch()
    clear_parts(tmp_path, tmp_path / "no-such-folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".mine.part", "mine.part"]


def test_this_process_keeps_its_own_parts(tmp_path):
    with atomic_write(tmp_path / "a") as file:
        file.write(b"one")
        clear_parts(tmp_path)
        assert len(parts(tmp_path)) == 1
    assert (tmp_path / "a").read_bytes() == b"one" and parts(tmp_path) == []


def test_a_part_that_is_cleared_as_it_is_made_is_made_again(tmp_path, monkeypatch):
    """Between the creation of the file and its lock, another process may take it for a left one."""
    import fcntl

    real, calls = fcntl.flock, []

    def flock(file, how):
        if not calls:
            (part,) = parts(tmp_path)
            part.unlink()
        calls.append(how)
        return real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with atomic_write(tmp_path / "a") as file:
        file.write(b"whole")
    assert len(calls) == 2 and (tmp_path / "a").read_bytes() == b"whole"


def test_a_name_as_long_as_the_file_system_takes(tmp_path):
    path = tmp_path / ("n" * 251 + ".png")
    with atomic_write(path) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"whole" and parts(tmp_path) == []


def test_a_full_disk_names_the_file_and_what_to_do(tmp_path):
    path = tmp_path / "result.png"
    path.write_bytes(b"old")
    with (
        pytest.raises(OSError, match=r"No space left on device; free some space.*result\.png") as e,
        atomic_write(path) as file,
    ):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert e.value.errno == errno.ENOSPC and e.value.filename == str(path)
    assert path.read_bytes() == b"old" and parts(tmp_path) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full is of Linux")
def test_a_disk_that_is_full_at_the_last_flush(tmp_path, monkeypatch):
    """Buffered bytes meet the full disk only when the file is flushed."""
    import cmmfnet.files.atomic as atomic

    def full(folder, text):
        (tmp_path / "x.part").touch()
        return tmp_path / "x.part", open("/dev/full", "wb")  # noqa: PTH123

    monkeypatch.setattr(atomic, "_new_part", full)
    full_disk = pytest.raises(OSError, match=r"No space left on device.*a\.png")
    with full_disk, atomic_write(tmp_path / "a.png", durable=False) as file:
        file.write(b"few bytes")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs /proc, where nobody writes")
def test_a_folder_where_nothing_can_be_written_names_the_file():
    with pytest.raises(OSError, match=r"'/proc/a\.png'$"), atomic_write(Path("/proc/a.png")):
        raise AssertionError("it was opened")


def test_an_error_leaves_the_old_file(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyError), atomic_write(tmp_path / "a", text=True) as file:
        file.write("new")
        raise KeyError
    assert (tmp_path / "a").read_text() == "old" and parts(tmp_path) == []


def test_many_killed_writers(tmp_path):
    """Killed at random moments: the final name has nothing or the whole, and no part stays."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom cmmfnet.files.atomic import atomic_write\n"
        "print('go', flush=True)\n"
        "for i in range(10**6):\n"
        "    with atomic_write(Path(sys.argv[1]) / f'{i % 50}.bin', durable=False) as f:\n"
        "        f.write(b'x' * 65536)\n        f.write(b'y' * 65536)\n"
    )
    for trial in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE
        ) as process:
            process.stdout.readline()
            time.sleep(0.02 + 0.013 * trial)
            process.kill()
    clear_parts(tmp_path)
    files = list(tmp_path.iterdir())
    assert files and all(f.suffix == ".bin" and f.stat().st_size == 131072 for f in files)
