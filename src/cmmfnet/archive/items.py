"""What an archive consists of: one item for each frame, found file by file.

A picture, or a member of a tar shard, is an item that names its place; it is read where it is
coloured. Frames of a video or sequence are decoded here, one after another, and travel with their
pixels. A file of several frames ends with an ``End``, which says how many there were.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any

from cmmfnet.archive.names import (
    NameRefused,
    as_text,
    checked,
    fingerprint,
    frame_output,
    in_shard,
    output_name,
    shown,
)
from cmmfnet.archive.places import Place, open_source
from cmmfnet.files.errors import UserError
from cmmfnet.files.pictures import RAW_FILES, THERMAL_FILES
from cmmfnet.files.video import VIDEOS
from cmmfnet.files.video_reader import Picture, VideoReader
from cmmfnet.thermal.cameras.reading import Reading
from cmmfnet.thermal.frame import Thermal, thermal_of
from cmmfnet.thermal.limits import MAX_PIXELS
from cmmfnet.thermal.sequence import holds_several, open_sequence

TAR = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip", ".7z", ".rar")
_SINGLE = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
HEADER_LIMIT = 1 << 20
"""Bytes of a tar's header for one member (its long name, its PAX records), at most."""


@dataclass(frozen=True, eq=False)
class Item:
    """One frame to colour.

    Attributes:
        key: its name in the manifest: a/b.png, shard.tar#b.png, walk.mp4#12.
        output: its picture, relative to the output folder; "" where ``error`` is set.
        file: the file that it is in, as the place names it.
        span: (start, size) in bytes inside that file; None: the whole file.
        thermal: the frame itself, if it has been decoded.
        container: key of the file of several frames that it is part of.
        error: why it cannot be coloured.
    """

    key: str
    output: str = ""
    file: str = ""
    span: tuple[int, int] | None = None
    thermal: Thermal | None = None
    container: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class End:
    """The end of a file of several frames: how many it has, and why there are no more."""

    key: str
    frames: int
    error: str | None = None


@dataclass
class Listed:
    """What a listing has come by so far."""

    files: int = 0
    others: int = 0  # neither picture, video nor tar


@dataclass(frozen=True)
class Reader:
    """How files are read; options of ``read_thermal``."""

    palette: str | None = None
    max_pixels: int = MAX_PIXELS
    raw: str | None = None
    kelvin_per_count: float | None = None

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.__dict__)

    @property
    def most_bytes(self) -> int:
        """Of a picture's file; no honest picture takes 16 bytes a pixel."""
        return max(16 * self.max_pixels, 1 << 26)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of pictures and sequences."""
        return RAW_FILES if self.raw is not None else THERMAL_FILES


def _nothing(_: str) -> bool:
    return False


@dataclass(frozen=True)
class Scan:
    """A source to be listed, and what of it is wanted.

    Attributes:
        source: as the command got it.
        reader: how its files are read.
        shard: (i, n): every n-th of its files, chosen by a hash of the name.
        done: whether the frame or file of this key needs nothing any more.
        left_out: a folder of the source that holds no inputs but results.
    """

    source: str
    reader: Reader
    shard: tuple[int, int] = (0, 1)
    done: Callable[[str], bool] = _nothing
    left_out: str | None = None

    def files(self, listed: Listed | None = None) -> Iterator[str]:
        """The files that hold frames and are not done, in no certain order.

        Raises:
            UserError: no such source.
        """
        listed = Listed() if listed is None else listed
        place, wanted = open_source(self.source)
        known = (*self.reader.suffixes, *VIDEOS, TAR, *COMPRESSED)
        for name in place.names():
            key = as_text(name)
            if not wanted(name) or not in_shard(key, self.shard):
                continue
            if self.left_out is not None and name.startswith(f"{self.left_out}/"):
                continue
            if not name.lower().endswith(known):
                listed.others += 1
                continue
            listed.files += 1
            if not self.done(key):
                yield name

    def is_container(self, file: str) -> bool:
        """Whether a file may hold several frames, by its name."""
        return self.reader.raw is not None or not file.lower().endswith(_SINGLE)

    def items(self, files: Iterable[str]) -> Iterator[Item | End]:
        """The frames of ``files`` that are not done."""
        place, _ = open_source(self.source)
        for file in files:
            yield from self._items_of(place, file)

    def _items_of(self, place: Place, file: str) -> Iterator[Item | End]:
        key, low = as_text(file), file.lower()
        try:
            checked(key)
            if low.endswith(COMPRESSED):
                raise UserError(
                    f"{shown(key)}: a compressed archive cannot be read member by member; unpack "
                    "it, or store it as plain .tar"
                )
            if low.endswith(TAR):
                yield from self._tar(place, file, key)
            elif low.endswith(self.reader.suffixes):
                yield from self._picture(place, file, key)
            else:
                yield from self._frames(key, self._video(place, file), TAR)
        except (UserError, OSError, ImportError) as error:
            yield Item(key, file=file, error=str(error))

    def _picture(self, place: Place, file: str, key: str) -> Iterator[Item | End]:
        if self.is_container(file):
            with place.on_disk(file) as path:
                if holds_several(path, self.reader.raw, self.reader.max_pixels):
                    options = self.reader.options
                    with open_sequence(path, **options) as frames:
                        thermals = (frame.thermal for frame in frames)
                        yield from self._frames(key, thermals, file)
                    return
        yield Item(key, output_name(key), file)

    def _video(self, place: Place, file: str) -> Iterator[Thermal | str]:
        """The frames of a video, then its problems."""
        with place.open(file) as stream:
            name = place.where(file)
            reader = VideoReader(stream, name, self.reader.max_pixels)
            try:
                index = 0
                for item in reader.items():
                    if isinstance(item, Picture):
                        label = name if index == 0 else f"{name}, frame {index}"
                        index += 1
                        yield thermal_of(
                            Reading(item.pixels),
                            label,
                            self.reader.palette,
                            self.reader.kelvin_per_count,
                        )
                yield from reader.problems[:1]
            finally:
                reader.close()

    def _frames(self, key: str, frames: Iterator[Thermal | str], file: str) -> Iterator[Item | End]:
        """Items of the frames of a video or sequence that are not done, and its end."""
        count, error = 0, None
        try:
            for thermal in frames:
                if isinstance(thermal, str):
                    error = thermal
                    break
                name = f"{key}#{count}"
                if not self.done(name):
                    output = frame_output(key, count)
                    yield Item(name, output, file, thermal=thermal, container=key)
                count += 1
        except (UserError, OSError) as problem:
            error = str(problem)
        yield End(key, count, error)

    def _tar(self, place: Place, file: str, key: str) -> Iterator[Item | End]:
        """The pictures of a tar, by their place in it. Nothing is unpacked: no member is written
        under its name, no link is followed, and only plain members are read."""
        count, error, seen = 0, None, set()
        with place.open(file) as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            try:
                for member in _members(stream):
                    if member.isdir():
                        continue
                    name = as_text(member.name)
                    if not name.lower().endswith(self.reader.suffixes) or _is_hidden(name):
                        if name.lower().endswith((*VIDEOS, TAR, *COMPRESSED)):
                            count += 1
                            yield Item(
                                f"{key}#{name}",
                                container=key,
                                error="a video or archive inside a tar; unpack it",
                            )
                        continue
                    count += 1
                    item = self._member(key, file, member, name, size, seen)
                    if item.error or not self.done(item.key):
                        yield item
            except (tarfile.TarError, OSError, ValueError, EOFError) as problem:
                error = (
                    f"{shown(key)}: damaged tar after {count} pictures ({problem}); copy it again"
                )
        yield End(key, count, error)

    def _member(
        self, key: str, file: str, member: tarfile.TarInfo, name: str, size: int, seen: set[bytes]
    ) -> Item:
        try:
            if not name.startswith("/"):  # "./a.png" is the usual way to write a.png
                name = "/".join(part for part in name.split("/") if part not in ("", "."))
            checked(name)
            if not member.isreg() or member.issparse():
                kind = "a link" if member.issym() or member.islnk() else "no plain file"
                raise NameRefused(f"{shown(name)} is {kind} in a tar; only plain files are read")
            if (mark := fingerprint(name)) in seen:
                name = f"{name} at byte {member.offset}"
                raise NameRefused(f"{shown(name)} stands twice in the tar; the first one counts")
            seen.add(mark)
            if member.offset_data + member.size > size:
                raise NameRefused(f"{shown(name)}: the tar ends inside it; copy it again")
            output = output_name(f"{key}/{name}")
        except NameRefused as error:
            return Item(f"{key}#{name}", container=key, error=str(error))
        return Item(f"{key}#{name}", output, file, (member.offset_data, member.size), None, key)


class _Headers:
    """A tar file for reading headers: a hostile header may not ask for the memory of a whole
    file."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= HEADER_LIMIT:
            raise tarfile.ReadError(f"a header of {size} bytes; the limit is {HEADER_LIMIT}")
        return self._file.read(size)


def _members(stream: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    with tarfile.open(fileobj=_Headers(stream), mode="r:", errors="surrogateescape") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # it keeps all of them, millions of them, too
            yield member


def _is_hidden(name: str) -> bool:
    return PurePosixPath(name).name.startswith(".")
