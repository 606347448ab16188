"""Places of files: a folder of this machine, or any URL that fsspec knows (``s3://bucket/folder``).

Both list their files one by one, in memory that does not grow with their number, and write a file
whole or not at all. Credentials come from the environment as each store's client reads them; a URL
that holds some is refused, so that none is printed or stored.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar
from urllib.parse import urlsplit

from cmmfnet.archive.names import shown
from cmmfnet.files.atomic import atomic_write, clear_parts
from cmmfnet.files.errors import NO_MORE_FILES, UserError

DEPTH = 256
"""Folders inside each other that are entered, at most."""
ATTEMPTS = 5
"""Of a request to a store, before its error counts."""
_ATOMIC = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory", "oci", "oss"}
"""Stores whose single put makes a whole object or none."""
_CLIENTS = ("botocore", "aiobotocore", "aiohttp", "google", "gcsfs", "azure", "paramiko")
"""Packages of the clients of stores. Some of their errors are no ``OSError``."""
_FINAL = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    FileExistsError,
)
_FATAL = (*NO_MORE_FILES, errno.EACCES, errno.EPERM)

T = TypeVar("T")


class Place(Protocol):
    """A folder of files. Names are relative, with ``/`` between their parts."""

    url: str
    local: bool

    def names(self, folder: str = "") -> Iterator[str]:
        """Files in ``folder`` and its sub-folders, relative to the place, in no certain order."""

    def where(self, name: str) -> str:
        """A file as messages name it; for a folder of this machine, its path."""

    def read(self, name: str, limit: int, start: int = 0, size: int | None = None) -> bytes:
        """The bytes of a file, or ``size`` of them from ``start``. OSError: more than ``limit``."""

    def open(self, name: str) -> IO[bytes]:
        """A file to read in, with ``seek``."""

    def on_disk(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """A file as one of this machine: the file itself, or a copy for the time of the block."""

    def put(self, name: str, content: Any) -> None:
        """Write a file, whole or not at all."""

    def delete(self, name: str) -> None:
        """Delete a file; one that is not there is no error."""


def open_place(url: str) -> Place:
    """The folder at a path or URL.

    Raises:
        UserError: no such kind of place, or a URL with credentials.
    """
    if "://" not in url and "::" not in url:
        return Folder(Path(url))
    if url.startswith("file://"):
        return Folder(Path(url.removeprefix("file://")))
    parts = urlsplit(url)
    if "::" in url or not parts.scheme:
        raise UserError(f"{parts.scheme or url}: expected a folder or one URL, s3://bucket/folder")
    if parts.password or ("@" in parts.netloc and parts.scheme in _ATOMIC) or parts.query:
        raise UserError(
            f"{parts.scheme}://...: the URL holds credentials or options; leave them out. The "
            "client reads credentials from the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, "
            "GOOGLE_APPLICATION_CREDENTIALS, ...)"
        )
    return Store(url.rstrip("/"))


def retried(action: Callable[[], T], attempts: int = ATTEMPTS, wait: float = 0.3) -> T:
    """``action()``, again after an ``OSError`` that may pass, with doubled and random waits.

    A file that is missing or forbidden, and a full or read-only disk, are not tried again.

    Raises:
        OSError: the last one. Errors of a store's client that are none become one: PermissionError
            where it has no credentials, else ConnectionError.
    """
    for attempt in range(attempts):
        try:
            return action()
        except Exception as found:
            error = _of_client(found)
            if error is None:
                raise
            last = attempt == attempts - 1
            if last or isinstance(error, _FINAL) or error.errno in _FATAL:
                raise error from (None if error is found else found)
            time.sleep(wait * 2**attempt * random.uniform(0.5, 1.5))
    raise AssertionError("attempts is 0")


def _of_client(error: Exception) -> OSError | None:
    """An error of a store's client as an ``OSError``; None for one of another part."""
    if isinstance(error, OSError):
        return error
    if type(error).__module__.partition(".")[0] not in _CLIENTS:
        return None
    if any(word in type(error).__name__ for word in ("Credential", "Profile", "Token", "Auth")):
        return PermissionError(
            f"the store's client has no credentials ({error}); it reads them from the environment: "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, "
            "GOOGLE_APPLICATION_CREDENTIALS, ..."
        )
    return ConnectionError(f"{type(error).__name__}: {error}")


def is_fatal(error: OSError) -> bool:
    """Whether an output's error means that all further outputs would fail, too."""
    return isinstance(error, PermissionError) or error.errno in _FATAL


class Folder:
    """A folder of this machine."""

    local = True

    def __init__(self, path: Path):
        self.path, self.url = path, str(path)

    def names(self, folder: str = "") -> Iterator[str]:
        """As ``Place.names``. Links to files are followed, links to folders are not; names that
        start with a dot are left out."""
        try:
            stack = [(f"{folder}/" if folder else "", os.scandir(self.path / folder))]
        except FileNotFoundError:
            return
        try:
            while stack:
                prefix, entries = stack[-1]
                entry = next(entries, None)
                if entry is None:
                    stack.pop()[1].close()
                elif entry.name.startswith("."):
                    continue
                elif entry.is_dir(follow_symlinks=False):
                    if len(stack) >= DEPTH:
                        raise UserError(f"{shown(entry.path)}: more than {DEPTH} nested folders")
                    stack.append((f"{prefix}{entry.name}/", os.scandir(entry.path)))
                elif not entry.is_symlink() or not Path(entry.path).is_dir():
                    yield prefix + entry.name
        finally:
            for _, entries in stack:
                entries.close()

    def where(self, name: str) -> str:
        return str(self.path / name)

    def read(self, name: str, limit: int, start: int = 0, size: int | None = None) -> bytes:
        with self.open(name) as file:
            total = os.fstat(file.fileno()).st_size
            return _read(file, self.where(name), total, limit, start, size)

    def open(self, name: str) -> IO[bytes]:
        path = self.path / name
        if not path.is_file() and path.exists():  # opening a FIFO would wait for ever
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return path.open("rb")

    @contextlib.contextmanager
    def on_disk(self, name: str) -> Iterator[Path]:
        yield self.path / name

    def put(self, name: str, content: Any) -> None:
        path = self.path / name
        with atomic_write(path, durable=False, parts=self._parts()) as file:
            file.write(content)

    def delete(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def clear_parts(self) -> None:
        """Delete the temporary files of killed processes."""
        clear_parts(self._parts())

    def _parts(self) -> Path:
        parts = self.path / ".cmmfnet-parts"
        parts.mkdir(parents=True, exist_ok=True)
        return parts


class Store:
    """A folder at a URL, through fsspec."""

    local = False

    def __init__(self, url: str):
        self.url = url
        self._fs, self._path = self._connect()

    def _connect(self):
        try:
            import fsspec

            # a listing kept in memory would grow with the archive
            fs, path = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            raise ImportError(f"{self.url}: {error}: pip install 'cmmfnet[archive]'") from error
        except ValueError as error:
            raise UserError(f"{self.url}: {error}; expected a URL like s3://bucket/it") from error
        return fs, path.rstrip("/")

    def __getstate__(self) -> str:
        return self.url  # connections do not go into another process

    def __setstate__(self, url: str) -> None:
        self.__init__(url)

    def names(self, folder: str = "") -> Iterator[str]:
        """As ``Place.names``; S3 is listed in pages of 1000 keys, other stores folder by folder."""
        root = f"{self._path}/{folder}".rstrip("/")
        start = len(self._path) + 1
        if hasattr(self._fs, "call_s3"):
            yield from (key[start:] for key in self._s3_keys(root))
            return
        waiting = [root]
        while waiting:
            try:
                found = retried(lambda: self._fs.ls(waiting.pop(), detail=True))
            except FileNotFoundError:
                continue
            for entry in found:
                name = entry["name"].removeprefix("/") if self._path[:1] != "/" else entry["name"]
                if entry["type"] == "directory":
                    waiting.append(name)
                elif not _hidden(name[start:]):
                    yield name[start:]

    def _s3_keys(self, root: str) -> Iterator[str]:
        bucket, _, prefix = root.partition("/")
        query = {"Bucket": bucket, "Prefix": f"{prefix}/" if prefix else ""}
        while True:
            try:
                page = retried(lambda: self._fs.call_s3("list_objects_v2", **query))
            except FileNotFoundError:
                return
            for entry in page.get("Contents", ()):
                if not entry["Key"].endswith("/") and not _hidden(entry["Key"][len(prefix) :]):
                    yield f"{bucket}/{entry['Key']}"
            if not page.get("IsTruncated"):
                return
            query["ContinuationToken"] = page["NextContinuationToken"]

    def where(self, name: str) -> str:
        return f"{self.url}/{name}"

    def read(self, name: str, limit: int, start: int = 0, size: int | None = None) -> bytes:
        path = f"{self._path}/{name}"

        def fetch() -> bytes:
            if size is not None:
                _check_size(self.where(name), size, limit)
                return self._fs.cat_file(path, start=start, end=start + size)
            # one request: a file of more than the limit is found by its one byte too many
            content = self._fs.cat_file(path, start=start, end=start + limit + 1)
            _check_size(self.where(name), len(content), limit)
            return content

        return retried(fetch)

    def open(self, name: str) -> IO[bytes]:
        return retried(lambda: self._fs.open(f"{self._path}/{name}", "rb", cache_type="readahead"))

    @contextlib.contextmanager
    def on_disk(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"file{Path(name).suffix}"

            def fetch() -> None:
                with self.open(name) as source, path.open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)

            retried(fetch)
            yield path

    def put(self, name: str, content: Any) -> None:
        path = f"{self._path}/{name}"

        def write() -> None:
            if _protocols(self._fs) & _ATOMIC:
                self._fs.pipe_file(path, bytes(content))
                return
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            part = f"{path.rpartition('/')[0]}/.cmmfnet-{os.urandom(6).hex()}.part"
            self._fs.pipe_file(part, bytes(content))
            self._fs.mv(part, path)

        retried(write)

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            retried(lambda: self._fs.rm_file(f"{self._path}/{name}"))

    def is_file(self) -> bool:
        return retried(lambda: self._fs.isfile(self._path))


def open_source(source: str) -> tuple[Place, Callable[[str], bool]]:
    """The place of a SOURCE, and which of its names are meant.

    A folder means all that it holds; a glob (``**`` enters sub-folders) is relative to the folders
    before its first special character. Parts that exist as they are written stand for themselves.

    Raises:
        UserError: nothing there.
    """
    local = "://" not in source
    head, _, tail = source.rpartition("/")
    if local:
        path = Path(source)
        if path.is_dir():
            return Folder(path), _all
        if path.is_file():
            return Folder(path.parent), path.name.__eq__
        literal, rest = Path(), list(path.parts)
        while rest and (literal / rest[0]).is_dir():
            literal /= rest.pop(0)
        if not rest or not glob.has_magic(str(Path(*rest))):
            raise UserError(f"no file or folder {source} (looked in {path.absolute().parent})")
        return Folder(literal), _matches("/".join(rest))
    scheme, _, rest = source.partition("://")
    parts = rest.split("/")
    literal = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    if literal == 0:
        raise UserError(f"{source}: the bucket's name must be written out")
    if literal < len(parts):
        root = open_place(f"{scheme}://{'/'.join(parts[:literal])}")
        return root, _matches("/".join(parts[literal:]))
    place = open_place(source)
    if isinstance(place, Store) and place.is_file():
        return open_place(head), tail.__eq__
    if isinstance(place, Folder):
        return open_source(place.url)
    return place, _all


def _all(_: str) -> bool:
    return True


def _matches(pattern: str) -> Callable[[str], bool]:
    from fsspec.utils import glob_translate

    expression = re.compile(glob_translate(pattern))
    return lambda name: expression.match(name) is not None


def _protocols(fs: Any) -> set[str]:
    return {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)


def _hidden(name: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def _check_size(where: str, size: int, limit: int) -> None:
    if size > limit:
        raise OSError(errno.EFBIG, f"more than {limit} bytes, the limit for one picture", where)


def _read(
    file: IO[bytes], where: str, total: int, limit: int, start: int, size: int | None
) -> bytes:
    size = total - start if size is None else size
    _check_size(where, size, limit)
    file.seek(start)
    content = file.read(size)
    if len(content) < size:
        raise OSError(errno.EIO, f"ends {size - len(content)} bytes early", where)
    return content
