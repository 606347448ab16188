"""What every update ends with: the moving average of the weights, and a look at the losses that
does not stop the device."""

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


def on_the_way(x: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """``x`` for the host, copied behind all that the device has been told so far, and what to wait
    for before it is read."""
    if not x.is_cuda:
        return x, None
    found, event = x.to("cpu", non_blocking=True), torch.cuda.Event()  # pinned
    event.record()
    return found, event


class Readings:
    """Losses of the last updates, on their way from the device to the host.

    Asking for a number at once makes Python wait for all that it has launched, and the device then
    for Python. The numbers are copied behind the step that made them, and looked at when a later
    one has been launched.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, Batch, Losses, Tensor, torch.cuda.Event | None]] = deque()
        self.last: Losses = {}

    def note(self, step: int, batch: Batch, values: Losses) -> None:
        """``values``: scalars of one dtype. ``step``, ``batch``: what is to be said of them if they
        are not finite."""
        self.last = values
        self._waiting.append((step, batch, values, *on_the_way(torch.stack(list(values.values())))))

    def not_finite(self, but: int) -> tuple[int, Batch, Losses] | None:
        """Step, batch and values of the first update whose values are not finite, or None; the last
        ``but`` are left for later. Waits for the device to make them."""
        while len(self._waiting) > but:
            step, batch, values, found, event = self._waiting.popleft()
            if event is not None:
                event.synchronize()
            if not found.isfinite().all():
                self._waiting.appendleft(
                    (step, batch, values, found, event)
                )  # a checkpoint must not be made of it
                return step, batch, values
        return None
