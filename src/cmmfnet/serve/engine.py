"""One thread that runs the networks: frames that wait together go through them in one batch."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cmmfnet.colorizer.base import Frame, FrameColorizer


@dataclass(eq=False)
class Job:
    """A frame that waits for a network.

    Attributes:
        colorizer: with the network.
        frame: of its ``prepare``.
        text: as in a call of it; one that it can read.
        colour, tags: whether colours and tags are wanted. With tags the colours may differ by a
            grey level, as a network computes both in one pass.
        done: gets (colours (3, h, w), ``Seen`` or None), or for tags alone probabilities (words,).
    """

    colorizer: FrameColorizer
    frame: Frame
    text: str | None = None
    colour: bool = True
    tags: bool = False
    done: Future = field(default_factory=Future)

    @property
    def kind(self) -> tuple:
        """Jobs of one kind fit into one batch."""
        return id(self.colorizer), self.colorizer.network_size(self.frame), self.colour, self.tags


class Engine:
    """Runs jobs in the order in which they came, those of one kind together."""

    def __init__(self, batch: int, watch: Callable[[int], None] = lambda size: None):
        """
        Args:
            batch: jobs that go through a network together, at most.
            watch: called with the size of every batch.
        """
        self.batch, self._watch = batch, watch
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="cmmfnet-engine", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> Future:
        """Queue a job. A future that is cancelled before its turn costs nothing."""
        with self._changed:
            if self._stopped:
                raise RuntimeError("the engine has stopped")
            self._waiting.append(job)
            self._changed.notify()
        return job.done

    def stop(self) -> None:
        """Finish the jobs that wait, and end the thread."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while group := self._take():
            if group := [job for job in group if job.done.set_running_or_notify_cancel()]:
                self._watch(len(group))
                self._run(group)

    def _take(self) -> list[Job]:
        """The oldest job and others of its kind; [] at the end."""
        with self._changed:
            while not self._waiting and not self._stopped:
                self._changed.wait()
            if not self._waiting:
                return []
            kind = self._waiting[0].kind
            group = [job for job in self._waiting if job.kind == kind][: self.batch]
            for job in group:
                self._waiting.remove(job)
            return group

    def _run(self, group: list[Job]) -> None:
        try:
            results = self._results(group)
        except Exception as error:
            if len(group) == 1:
                group[0].done.set_exception(error)
                return
            for job in group:  # the fault of one, or too little memory for all
                self._run([job])
            return
        for job, result in zip(group, results, strict=True):
            job.done.set_result(result)

    @staticmethod
    def _results(group: list[Job]) -> list[Any]:
        colorizer = group[0].colorizer
        frames = [job.frame for job in group]
        if not group[0].colour:
            return list(colorizer.predict(frames))
        texts = [job.text for job in group]
        colours, seen = colorizer.run(frames, texts, tags=group[0].tags)
        return list(zip(colours, seen, strict=True))
