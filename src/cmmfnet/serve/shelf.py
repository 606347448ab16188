"""Files of the page's visitors, for as long as they are on the page. No FastAPI."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from cmmfnet.files.errors import DISK_FULL
from cmmfnet.serve.limits import Refused, no_room

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_PREFIX = "cmmfnet-serve-"


@dataclass(eq=False)
class Kept:
    """A file on the shelf.

    Attributes:
        token: which alone leads to it; cannot be guessed.
        path: where it lies; has nothing of the visitor's name for it.
        name: what the visitor calls it, or what a result is downloaded as. Never a path.
        media: its media type, of a result; "" for a visitor's own file, which is never sent.
        size: bytes so far.
        used: time of the last use.
    """

    token: str
    path: Path
    name: str
    media: str = ""
    size: int = 0
    used: float = field(default_factory=time.monotonic)


class Shelf:
    """Keeps files in a folder of its own, which ends with the process. A process that was killed
    leaves its folder behind; the next one removes it.

    A file goes when its visitor removes it or leaves the page, when nobody has used it for
    ``seconds``, or when the shelf is full and it is the one that waited longest.
    """

    def __init__(self, limit: int, seconds: float):
        """
        Args:
            limit: bytes of all files.
            seconds: until a file that nobody uses goes.
        """
        self.limit, self.seconds = limit, seconds
        _remove_left_behind()
        self._folder, self._held = _new_folder()
        self._kept: dict[str, Kept] = {}
        self._lock = threading.Lock()

    @property
    def folder(self) -> Path:
        """Where the files lie; goes with the shelf."""
        return Path(self._folder.name)

    def close(self) -> None:
        self._kept.clear()
        self._folder.cleanup()
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def __len__(self) -> int:
        return len(self._kept)

    def new(self, name: str, media: str = "") -> Kept:
        """A place for a file; its content comes by ``add``, or is written to ``path`` and then
        counted by ``add``."""
        token = secrets.token_urlsafe(18)
        kept = Kept(token, self.folder / secrets.token_hex(16), name[:200], media)
        with self._lock:
            self._kept[token] = kept
        return kept

    def put(self, name: str, media: str, content: bytes) -> Kept:
        """A whole file."""
        kept = self.new(name, media)
        self.add(kept, content)
        return kept

    def add(self, kept: Kept, content: bytes = b"") -> None:
        """Append to a file, and count what its path holds. Files that waited longest make room.

        Raises:
            Refused: not enough room.
        """
        try:
            with kept.path.open("ab") as file:
                file.write(content)
        except OSError as error:
            self.drop(kept.token)
            if error.errno in DISK_FULL:
                raise no_room() from error
            raise
        with self._lock:
            kept.size, kept.used = kept.path.stat().st_size, time.monotonic()
            others = sorted(self._kept.values(), key=lambda each: each.used)
            total = sum(each.size for each in others)
            for each in others:
                if total <= self.limit or each is kept:
                    break
                total -= each.size
                self._forget(each)
            if total > self.limit:
                self._forget(kept)
                raise Refused(
                    413, f"{total} bytes", f"at most {self.limit} bytes", "send a smaller file"
                )

    def get(self, token: object) -> Kept | None:
        """The file of a token; None for one that has gone, or for what is no token."""
        with self._lock:
            kept = self._kept.get(token) if isinstance(token, str) else None
            if kept is not None:
                kept.used = time.monotonic()
            return kept

    def drop(self, token: str) -> None:
        """Remove a file; nothing happens where it has gone."""
        with self._lock:
            if token in self._kept:
                self._forget(self._kept[token])

    def sweep(self) -> None:
        """Remove the files that nobody has used for long."""
        oldest = time.monotonic() - self.seconds
        with self._lock:
            for kept in [each for each in self._kept.values() if each.used < oldest]:
                self._forget(kept)

    def _forget(self, kept: Kept) -> None:
        del self._kept[kept.token]
        kept.path.unlink(missing_ok=True)


def _new_folder() -> tuple[tempfile.TemporaryDirectory, int | None]:
    """A folder of this user alone, locked where the file system has locks."""
    while True:
        folder = tempfile.TemporaryDirectory(prefix=_PREFIX)
        if fcntl is None:
            return folder, None
        try:
            held = _locked(folder.name)
        except (FileNotFoundError, BlockingIOError):  # another server took it for one left behind
            folder.cleanup()
            continue
        except OSError:  # a file system without locks: nothing is removed either
            return folder, None
        if Path(folder.name).exists():
            return folder, held
        os.close(held)
        folder.cleanup()


def _locked(folder: str | Path) -> int:
    """The folder, open and locked.

    Raises:
        OSError: another process has locked it.
    """
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        raise
    return held


def _remove_left_behind() -> None:
    """Remove the folders of servers of this user that were killed: nobody has locked them."""
    if fcntl is None:
        return
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # a server that runs has it locked
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            held = _locked(folder)
            try:
                shutil.rmtree(folder)
            finally:
                os.close(held)
