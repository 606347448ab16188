"""The newest frame of a live source: a camera, an address, or a folder that fills up."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmmfnet.files.counted import counted
from cmmfnet.files.errors import UserError
from cmmfnet.files.pictures import RAW_FILES, THERMAL_FILES, natural_key
from cmmfnet.files.stream import Stream, StreamError, is_stream, public_name
from cmmfnet.files.video_pixels import pixels_of, upright
from cmmfnet.thermal.cameras.reading import Reading
from cmmfnet.thermal.frame import Thermal, read_thermal, thermal_of
from cmmfnet.thermal.limits import ThermalFileError

_LOOK, _LISTING = 0.02, 0.5
"""Seconds between two looks at a folder, and between looks at all its files: the time of a folder
does not show that a file is written again."""
_PATIENCE = 3.0
"""Seconds for which a file that cannot be read may stay unchanged before it counts as damaged."""
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 10.0
"""Seconds before the first and before the last attempts to connect again."""


@dataclass(frozen=True, eq=False)
class Arrived:
    """A frame of a live source.

    Attributes:
        index: its number, from 0, counting those that were dropped.
        at: when it had arrived, on the clock of ``time.perf_counter``.
        read: gives the thermal frame; may raise ThermalFileError.
    """

    index: int
    at: float
    read: Callable[[], Thermal]


class Capture:
    """Reads a live source in a thread of its own and keeps its newest frame.

    Attributes:
        dropped: frames that a newer one replaced before they were taken.
        reconnects: connections after the first one.
        lost: whether the connection or the folder is lost, and being looked for.
        problems: reasons of damaged files and lost connections, oldest first; for the caller to
            take away.
    """

    def __init__(self, source: str, reading: dict[str, Any], *, timeout: float, retries: int):
        """
        Args:
            source: an address, /dev/video0 or a folder.
            reading: options of ``read_thermal``.
            timeout: seconds to wait for a connection and for each frame of it.
            retries: attempts in a row to connect, or to list the folder, again before the source is
                given up.

        Raises:
            UserError: no such source, or no connection.
        """
        self.source, self.reading = source, reading
        self.timeout, self.retries = timeout, retries
        self.dropped = self.reconnects = 0
        self.lost = False
        self.problems: deque[str] = deque(maxlen=100)
        self._damaged, self._stream = 0, None
        self._count = 0
        self._newest: Arrived | None = None
        self._error: UserError | None = None
        self._changed = threading.Condition()
        self._ending = threading.Event()
        if is_stream(source):
            self._stream = Stream(source, timeout)
            frames = self._streamed()
        elif Path(source).is_dir():
            frames = self._appearing(Path(source))
        else:
            raise UserError(_no_source(source))
        self._thread = threading.Thread(target=self._run, args=(frames,), daemon=True)
        self._thread.start()

    @property
    def damaged(self) -> int:
        """Frames that could not be read."""
        stream = self._stream
        return self._damaged + (stream.damaged if stream is not None else 0)

    def take(self, seconds: float) -> Arrived | None:
        """The newest frame that was not taken yet; None if there is none within ``seconds``.

        Raises:
            UserError: the source is given up.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._newest or self._error, seconds)
            found, self._newest = self._newest, None
            if found is None and self._error is not None:
                raise self._error
            return found

    def close(self) -> None:
        """End the thread. A connection that does not answer ends with the process."""
        self._ending.set()
        self._thread.join(1)

    def _run(self, frames: Iterator[None]) -> None:
        try:
            for _ in frames:
                if self._ending.is_set():
                    return
        except UserError as error:
            self._give_up(error)
        except Exception as error:  # in a thread it would go unseen, and the caller wait for ever
            found = UserError(f"{public_name(self.source)}: {type(error).__name__}: {error}")
            found.__cause__ = error
            self._give_up(found)

    def _give_up(self, error: UserError) -> None:
        with self._changed:
            self._error = error
            self._changed.notify()

    def _put(self, read: Callable[[], Thermal], passed_over: int = 0) -> None:
        """Make a frame the newest, after some that are dropped."""
        with self._changed:
            self.dropped += passed_over + (self._newest is not None)
            self._count += passed_over
            self._newest = Arrived(self._count, time.perf_counter(), read)
            self._count += 1
            self._changed.notify()

    # --- streams

    def _streamed(self) -> Iterator[None]:
        """Put each frame; connect again where the connection is lost."""
        failures = 0
        while True:
            try:
                if self._stream is None:
                    self._stream = Stream(self.source, self.timeout)
                    self.reconnects += 1
                for frame in self._stream.frames():
                    failures = 0
                    self._found()
                    index = self._count
                    self._put(lambda frame=frame, index=index: self._thermal(frame, index))
                    yield
            except StreamError as error:
                failures += 1
                if failures > self.retries:
                    attempts = counted(self.retries, "attempt")
                    raise StreamError(
                        f"{error}. Given up after {attempts} to connect again"
                    ) from error
                self.lost = True
                self.problems.append(f"{error}; connecting again")
            stream, self._stream = self._stream, None
            if stream is not None:
                self._damaged += stream.damaged
                stream.close()
            if self._ending.wait(_pause(failures)):
                return
            yield

    def _found(self) -> None:
        if self.lost:
            self.lost = False
            self.problems.append(f"{public_name(self.source)}: there again")

    def _thermal(self, frame: Any, index: int) -> Thermal:
        pixels, _ = upright(pixels_of(frame), frame)
        if pixels.shape[0] * pixels.shape[1] > self.reading["max_pixels"]:
            raise ThermalFileError(
                f"{public_name(self.source)}: frames of {pixels.shape[1]} x {pixels.shape[0]} "
                f"pixels; expected at most {self.reading['max_pixels']} in all (--max-pixels)"
            )
        name = f"{public_name(self.source)}, frame {index}"
        reading = self.reading
        return thermal_of(Reading(pixels), name, reading["palette"], reading["kelvin_per_count"])

    # --- folders

    def _appearing(self, folder: Path) -> Iterator[None]:
        """Put each newest file that is complete; those that are there at the start count as one."""
        suffixes = RAW_FILES if self.reading["raw"] is not None else THERMAL_FILES
        seen: dict[str, _State] = {}  # file -> its state when it was put or given up
        looked: dict[str, _State] = {}  # file -> its state at the last look
        since: dict[str, float] = {}  # file -> when it got that state
        newest, waiting, listed, next_listing = None, [], None, 0.0
        failures = 0
        while True:
            now, changed = time.monotonic(), _state(folder)
            if waiting or changed != listed or now >= next_listing or (
                newest is not None and _state(folder / newest) != seen.get(newest)
            ):  # fmt: skip
                whole = now >= next_listing
                next_listing = now + _LISTING if whole else next_listing
                again = {newest}.union(waiting)  # files that may have changed
                known = {} if whole else {n: seen[n] for n in seen if n not in again}
                listed = changed
                try:
                    states = _states(folder, suffixes, known)
                except OSError as error:
                    failures += 1
                    reason = f"{folder} can be listed no more ({error.strerror})"
                    if failures > self.retries:
                        attempts = counted(self.retries, "attempt")
                        raise UserError(
                            f"{reason}. Given up after {attempts} to list it again"
                        ) from error
                    self.lost, next_listing = True, 0.0
                    self.problems.append(f"{reason}; waiting for it")
                    if self._ending.wait(_pause(failures)):
                        return
                    continue
                self.reconnects += self.lost
                failures = 0
                self._found()
                waiting = [name for name, state in states.items() if seen.get(name) != state]
                waiting.sort(key=lambda name: (states[name][0], natural_key(Path(name))))
                since = {
                    name: since[name] if looked.get(name) == states[name] else now
                    for name in waiting
                }
                looked = states
                done = self._put_newest(folder, waiting, since, now)
                if done is not None:
                    position = waiting.index(done)
                    newest, passed, waiting = done, waiting[: position + 1], waiting[position + 1 :]
                    seen |= {name: states[name] for name in passed}
                lost = [name for name in waiting if now - since[name] >= _PATIENCE]
                seen = {name: state for name, state in seen.items() if name in states}
                seen |= {name: states[name] for name in lost}  # they do not grow any more
                self._damaged += len(lost)
                waiting = [name for name in waiting if name not in lost]
            yield
            if self._ending.wait(_LOOK):
                return

    def _put_newest(
        self, folder: Path, waiting: list[str], since: dict[str, float], now: float
    ) -> str | None:
        """Put the newest file that is complete and can be read; its name, or None. Files older than
        it are dropped, but for those that were there at the start."""
        for position, name in reversed(list(enumerate(waiting))):
            if since[name] == now:
                continue  # it has just changed, and may change again
            try:
                thermal = read_thermal(folder / name, **self.reading)
            except FileNotFoundError:
                continue  # removed meanwhile
            except (ThermalFileError, OSError) as error:
                if now - since[name] >= _PATIENCE:
                    self.problems.append(str(error))
                continue  # half-written as yet, or damaged
            self._put(lambda thermal=thermal: thermal, position if self._count else 0)
            return name
        return None


def _pause(failures: int) -> float:
    """Seconds before the next attempt to connect."""
    return min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** max(0, failures - 1))


_State = tuple[int, int]


def _state(path: Path) -> _State | None:
    """Time of the last change in ns and size; None for a file that is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _states(folder: Path, suffixes: tuple[str, ...], known: dict[str, _State]) -> dict[str, _State]:
    """File of a folder -> its state, of files that are not empty. ``known``: states that are taken
    as they are, which saves the time of looking."""
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if (state := known.get(entry.name)) is not None:
                found[entry.name] = state
                continue
            if entry.name.startswith(".") or not entry.name.lower().endswith(suffixes):
                continue
            try:
                status = entry.stat()
            except OSError:  # removed meanwhile
                continue
            if status.st_size:
                found[entry.name] = (status.st_mtime_ns, status.st_size)
    return found


def _no_source(source: str) -> str:
    if Path(source).is_file():
        return f"{source} is a file; cmmfnet colorize colours files"
    return (
        f"{source} is no live source; expected an address such as rtsp://camera/stream, a device "
        "such as /dev/video0, or a folder"
    )
