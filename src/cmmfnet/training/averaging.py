"""EMA of the weights, and loss readings that do not block the GPU."""

from __future__ import annotations

import copy
from collections import deque

import torch
from torch import Tensor, nn

from cmmfnet.data.batches import Batch
from cmmfnet.methods.method import Losses


class EMA:
    """Exponential moving average of parameters; buffers are copied. The decay warms up as (1 + t) /
    (10 + t)."""

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._source: nn.Module | None = None

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        if (
            network is not self._source
        ):  # collecting them from hundreds of modules takes longer than averaging them
            self._source = network
            self._lists = [list(n.parameters()) for n in (self.network, network)]
            self._buffers = [list(n.buffers()) for n in (self.network, network)]
        torch._foreach_lerp_(*self._lists, 1 - decay)
        if self._buffers[0]:
            torch._foreach_copy_(*self._buffers)


def copy_async(x: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A copy of ``x`` on the host, queued on the device; wait for the event before reading it."""
    if not x.is_cuda:
        return x, None
    found, event = x.to("cpu", non_blocking=True), torch.cuda.Event()  # pinned
    event.record()
    return found, event


class Readings:
    """Losses of the last updates, on their way from the device to the host.

    Reading a number at once makes Python wait for the device, and then the device wait for Python.
    So the numbers are copied behind their step, and read after a later step was launched.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, Batch, Losses, Tensor, torch.cuda.Event | None]] = deque()
        self.last: Losses = {}

    def note(self, step: int, batch: Batch, values: Losses) -> None:
        """``values``: scalars of one dtype. ``step`` and ``batch`` are reported if they are not
        finite."""
        self.last = values
        copied = copy_async(torch.stack(list(values.values())))
        self._waiting.append((step, batch, values, *copied))

    def not_finite(self, but: int) -> tuple[int, Batch, Losses] | None:
        """Step, batch and values of the first update whose values are not finite, or None; waits
        for the device. The last ``but`` updates are left for later."""
        while len(self._waiting) > but:
            step, batch, values, found, event = self._waiting[0]
            if event is not None:
                event.synchronize()
            if not found.isfinite().all():  # stays first, so that no checkpoint is made of it
                return step, batch, values
            self._waiting.popleft()
        return None
