"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from cmmfnet.files.errors import DISK_FULL

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be deleted
    fcntl = None


@contextmanager
def atomic_write(
    path: Path, *, text: bool = False, durable: bool = True, parts: Path | None = None
) -> Iterator[IO]:
    """A file object whose content becomes ``path`` if the block succeeds; after an error ``path``
    is as it was.

    The content goes to a temporary file in the same folder, or in ``parts``, a folder of the same
    file system, and the file is then renamed, so a crash, a full disk or Ctrl-C never leaves half a
    file under the final name. ``durable`` also flushes file
    and folder to the disk, against a power cut: for files that cannot be made again. The folder is
    created if it is missing; the file gets the permissions of any new file.

    A killed process leaves its temporary file behind; :func:`clear_parts` removes it.

    Raises:
        OSError: the file cannot be written. For a full disk the message says so and names ``path``.
    """
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part, file = _new_part(parts or path.parent, text)
        with file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
            file.flush()
            if fcntl is None:
                file.close()
            part.replace(path)  # still locked, so clear_parts leaves it alone
    except OSError as error:
        if error.errno not in DISK_FULL:
            if Path(str(error.filename)).suffix == ".part":  # name the file that users know
                raise type(error)(error.errno, error.strerror, str(path)) from error
            raise
        advice = "free some space, or write to another disk, and run the same command again"
        raise OSError(error.errno, f"No space left on device; {advice}", str(path)) from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)
    if durable:
        folder = os.open(path.parent, os.O_RDONLY)  # the rename itself must survive, too
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def clear_parts(*folders: Path) -> None:
    """Delete the temporary files that killed processes left in ``folders``.

    Every writer locks its temporary file, so a file that can be locked has no writer any more. The
    files of running processes, on other machines too if the file system has locks, stay.
    """
    for folder in dict.fromkeys(folders):
        for part in folder.glob(".cmmfnet-*.part"):
            with suppress(OSError), part.open("rb") as file:  # deleted meanwhile, or in use
                if fcntl is None:
                    file.close()
                else:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.unlink(missing_ok=True)


def _new_part(folder: Path, text: bool) -> tuple[Path, IO]:
    """A new temporary file in ``folder``, open and locked. Its name is short: a result's name may
    be as long as the file system allows."""
    while True:
        part = folder / f".cmmfnet-{os.urandom(6).hex()}.part"
        try:
            file = part.open("x" if text else "xb", encoding="utf-8" if text else None)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        if fcntl is None:
            return part, file
        with suppress(OSError):  # a file system without locks, where nothing is cleared either
            fcntl.flock(file, fcntl.LOCK_EX)
        if part.exists():  # else clear_parts took it between the two lines
            return part, file
        file.close()
