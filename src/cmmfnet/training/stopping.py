"""Stopping a training early: signals, and the agreement of all processes on it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from accelerate import Accelerator

from cmmfnet.training.averaging import copy_async

GO_ON, TIME_IS_UP, SIGNALLED = range(3)


@contextmanager
def signals() -> Iterator[list[str]]:
    """A list to which the names of SIGTERM and SIGINT are added when they come; a second SIGINT
    interrupts at once."""
    came: list[str] = []

    def note(number: int, _) -> None:
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        came.append(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():  # only there can handlers be set
        yield came
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Agreement:
    """The next action of all processes: the largest of their wishes (GO_ON, TIME_IS_UP, SIGNALLED).

    An answer belongs to the question of the step before, so that no process waits for it.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator, self.asked = accelerator, None

    def on(self, wish: int) -> int:
        if self.accelerator.num_processes == 1:
            return wish
        answer = GO_ON
        if self.asked is not None:
            found, event = self.asked
            if event is not None:  # waits for the question of the last step, not for this step
                event.synchronize()
            answer = int(found.item())
        flag = torch.full((1,), float(wish), device=self.accelerator.device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)  # on a GPU the host does not wait
        self.asked = copy_async(flag)
        return answer

    def end(self) -> None:
        """Wait for the open question: a process that left before its answer would abort."""
        if self.asked is not None and self.asked[1] is not None:
            self.asked[1].synchronize()
        self.asked = None
