"""What makes one frame quick on a CUDA GPU: stretching on the card, and the network as a CUDA
graph.

A network of a few hundred small kernels takes as long as Python needs to launch them, whatever the
card can do. A graph launches them all at once. Both give what the ordinary way gives, bit for bit.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cmmfnet.thermal.frame import Thermal
from cmmfnet.thermal.stretch import (
    PERCENTILES,
    checked_span,
    may_be_counts,
    normalise,
    quantile_ranks,
    sampling_step,
    stretched_levels,
)


def normalised(
    frame: Thermal,
    span: tuple[float, float] | None,
    device: torch.device,
    stretch: Callable[..., Tensor] | None = None,
) -> Tensor:
    """:func:`cmmfnet.thermal.stretch.normalise` as a tensor (H, W) float32 on ``device``.

    Of counts and grey levels the card counts how often each occurs, and where a frame is known to
    be such, the host need not wait for it; anything else is stretched where NumPy is. ``stretch``:
    ``Graphs(stretched_counts)``, to be quicker. Raises what ``normalise`` raises.
    """
    span = checked_span(frame, span)
    values = torch.from_numpy(np.ascontiguousarray(frame.values)).to(device)
    if frame.whole and span is None:
        return (stretch or stretched_counts)(values, *_ranks(tuple(values.shape), device))
    least, most = torch.stack(values.aminmax()).tolist()
    if may_be_counts(least, most):
        steps = (values - least).int()
        counts = torch.zeros(int(most - least) + 2, dtype=torch.int32, device=device)
        sampled = steps.flatten()[:: sampling_step(tuple(steps.shape))].long()
        counts.scatter_add_(0, sampled, torch.ones_like(sampled, dtype=torch.int32))
        counts[-1] = (steps + least != values).any()
        found = counts.cpu().numpy()
        if not found[-1]:
            return torch.from_numpy(stretched_levels(found[:-1], least, span)).to(device)[steps]
    return torch.from_numpy(np.ascontiguousarray(normalise(frame, span), dtype=np.float32)).to(
        device
    )


def stretched_counts(values: Tensor, ranks: Tensor, weights: Tensor) -> Tensor:
    """:func:`cmmfnet.thermal.stretch.normalise`, to the bit, of whole numbers (H, W) float32 from
    -2^15 to 2^16 - 1, on their device and without waiting for it. ``ranks`` (3, 2) int64 and
    ``weights`` (2,) float64: of both percentiles
    (:func:`cmmfnet.thermal.stretch.quantile_ranks`)."""
    lowest = -(2**15)
    counts = torch.zeros(2**16 - lowest, dtype=torch.int32, device=values.device)
    values = values.double()
    sampled = values.flatten()[:: sampling_step(tuple(values.shape))].long() - lowest
    counts.scatter_add_(0, sampled, torch.ones_like(sampled, dtype=torch.int32))
    least, most = values.aminmax()
    start, a, b = (
        torch.searchsorted(counts.cumsum(0), ranks, right=True) + lowest - least
    ).unbind()
    ends = start + (b - a) * weights + least
    low, high = torch.where(ends[0] < ends[1], ends, torch.stack([least, most])).unbind()
    stretched = (values.clamp(low, high) - low) / (high - low) * 2 - 1
    return torch.where(low < high, stretched, torch.sign(values - low)).float()


@functools.lru_cache(maxsize=64)
def _ranks(shape: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    sampled = -(-shape[0] * shape[1] // sampling_step(shape))
    *ranks, weights = zip(
        *(quantile_ranks(sampled, percentile / 100) for percentile in PERCENTILES), strict=True
    )
    return torch.tensor(ranks, device=device), torch.tensor(
        weights, dtype=torch.float64, device=device
    )


@contextlib.contextmanager
def capturing(device: torch.device) -> Iterator[None]:
    """What a capture happens in: one that fails leaves the device's generator of random numbers
    believing that it goes on, and every later draw would raise."""
    with torch.cuda.device(device):
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        before = generator.clone_state()
        try:
            yield
        except RuntimeError:
            generator.graphsafe_set_state(before.graphsafe_get_state())
            raise


class Graphs:
    """A network's forward pass, from the second time that inputs of the same shapes come as a CUDA
    graph.

    Called like the network, without gradient; what it returns are copies. Several threads may call
    it. ``KEPT`` graphs stay, which share their memory. Batches above ``PIXELS`` run as they are:
    there the card is what takes the time, and a graph would hold as much memory again.
    """

    KEPT, PIXELS = 8, 2**20

    def __init__(self, network: nn.Module):
        self.network = network
        self._kept: OrderedDict[Any, tuple[torch.cuda.CUDAGraph, list[Tensor], Any]] = OrderedDict()
        self._seen: OrderedDict[Any, bool] = (
            OrderedDict()
        )  # whether to capture it when it comes again
        self._lock, self._pool, self._last = threading.Lock(), None, None

    def __call__(self, thermal: Tensor, *text: Tensor | None, **options: bool) -> Any:
        given = [thermal, *(x for x in text if x is not None)]
        key = tuple((x.shape, x.dtype) for x in given), tuple(sorted(options.items()))
        if thermal.numel() > self.PIXELS or not getattr(self.network, "capturable", True):
            return self.network(thermal, *text, **options)
        with self._lock:
            if key not in self._kept and not self._again(key, thermal, text, options):
                return self.network(thermal, *text, **options)
            self._kept.move_to_end(key)
            graph, places, out = self._kept[key]
            stream = torch.cuda.current_stream(thermal.device)
            if (
                self._last is not None
            ):  # another thread's stream may still read what this writes over
                stream.wait_event(self._last)
            for place, value in zip(places, given, strict=True):
                place.copy_(value)
            graph.replay()
            copies = tuple(_copy(x) for x in out) if isinstance(out, tuple) else _copy(out)
            self._last = stream.record_event()
            return copies

    def _again(
        self, key: Any, thermal: Tensor, text: tuple[Tensor | None, ...], options: dict[str, bool]
    ) -> bool:
        """Whether there is a graph of ``key`` now. The first time there is none: a size that comes
        once is not worth it, and what a first run compiles or tunes cannot be captured."""
        if not self._seen.get(key):
            self._seen.setdefault(key, True)
            while len(self._seen) > 8 * self.KEPT:
                self._seen.popitem(last=False)
            return False
        try:
            self._kept[key] = self._capture(thermal, text, options)
        except RuntimeError as error:
            self._seen[key] = False  # it ran without
            if not isinstance(error, torch.cuda.OutOfMemoryError):
                warnings.warn(f"no CUDA graph, frames take longer: {error}", stacklevel=6)
            return False
        while len(self._kept) > self.KEPT:
            self._kept.popitem(last=False)
        return True

    def _capture(
        self, thermal: Tensor, text: tuple[Tensor | None, ...], options: dict[str, bool]
    ) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Any]:
        with capturing(thermal.device):
            inputs = [None if x is None else x.clone() for x in (thermal, *text)]
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(
                side
            ):  # what a stream sets up on first use must not be in the graph
                self.network(*inputs, **options)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(
                graph, pool=self._pool, stream=side, capture_error_mode="thread_local"
            ):
                out = self.network(*inputs, **options)
        return graph, [x for x in inputs if x is not None], out


def _copy(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.clone()
