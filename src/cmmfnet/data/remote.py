"""Shards at a URL, through fsspec, and the cache that they are read from."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmmfnet.data.store import PairsError
from cmmfnet.files.atomic import atomic_write


@dataclass(frozen=True)
class Remote:
    """A folder at any URL that fsspec knows. Shards are fetched whole, once for the machine, before
    they are read.

    Whole and not in blocks: pictures are drawn at random, so that soon every part of every shard is
    needed, and one long request beats thousands of short ones. fsspec's own caches (filecache,
    simplecache, blockcache) write to the final name and know no lock, so that data workers would
    read each other's half-written shards; hence a lock, a temporary name, the SHA-256 and a rename.
    The cached file is named by that SHA-256: a data set that changed is never taken for the old
    one.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    @staticmethod
    def open(url: str) -> Remote | Path:
        """The folder at ``url``; ``file://`` is a plain path, with nothing to fetch."""
        remote = Remote(url.rstrip("/"))
        system, path = remote._system()
        return Path(path) if "file" in np.atleast_1d(system.protocol) else remote

    def _system(self):
        try:
            import fsspec

            # anew in each process (fsspec keeps one for each): connections do not survive a fork
            return fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            raise ImportError(f"{self.url}: {error}: pip install 'cmmfnet[shards]'") from error
        except ValueError as error:
            raise PairsError(
                f"{self.url}: {error}; expected a URL such as s3://bucket/kaist"
            ) from error

    def text(self, name: str) -> str:
        system, path = self._system()
        try:
            return system.cat_file(f"{path.rstrip('/')}/{name}").decode()
        except Exception as error:  # every file system has errors of its own
            raise PairsError(f"{self.url}/{name} cannot be read ({_short(error)})") from error

    def has(self, name: str) -> bool:
        """Whether there is such a file; False also where the place cannot be reached."""
        system, path = self._system()
        try:
            return system.isfile(f"{path.rstrip('/')}/{name}")
        except Exception:  # every file system has errors of its own; reading the file reports them
            return False

    def fetch(self, name: str, size: int, sha256: str) -> Path:
        """The file ``name`` in the cache, after a download where it is not there yet. Raises
        :class:`PairsError`."""
        cached = cache() / f"{sha256}.tar"
        if cached.is_file() and cached.stat().st_size == size:
            return cached
        from filelock import FileLock, Timeout  # comes with torch

        cached.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(cached.with_suffix(".lock"), timeout=1800):
                if not (
                    cached.is_file() and cached.stat().st_size == size
                ):  # or another process was quicker
                    self._download(name, cached, size, sha256)
        except Timeout:
            raise PairsError(
                f"{self.url}/{name}: another process has been fetching it for 30 minutes"
            ) from None
        return cached

    def _download(self, name: str, cached: Path, size: int, sha256: str) -> None:
        system, path = self._system()
        with atomic_write(cached, durable=False) as file:
            try:
                system.get_file(f"{path.rstrip('/')}/{name}", file.name)
                with Path(file.name).open("rb") as stream:
                    found = (
                        os.fstat(stream.fileno()).st_size,
                        hashlib.file_digest(stream, "sha256").hexdigest(),
                    )
            except Exception as error:
                raise PairsError(
                    f"{self.url}/{name} cannot be fetched to {cached.parent} ({_short(error)})"
                ) from error
            if found != (size, sha256):
                raise PairsError(
                    f"{self.url}/{name}: fetched {found[0]} bytes with SHA-256 {found[1]}, "
                    f"expected {size} with {sha256} "
                    "(shards.json); it is damaged or of another data set"
                )


def cache() -> Path:
    """The folder of fetched shards: in ``CMMFNET_CACHE``, or in ~/.cache/cmmfnet."""
    return Path(os.environ.get("CMMFNET_CACHE") or Path.home() / ".cache" / "cmmfnet") / "shards"


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"
