"""CUDA graphs of inference, and parallel streams in them.

A network of a few hundred small kernels takes as long as Python needs to launch them. A graph
launches them all at once, and gives the same bits. Graphs of training are in graphed.py.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def capturing(device: torch.device) -> Iterator[None]:
    """The context of a capture. A failed capture leaves the device's random generator in capture
    mode, in which every later draw raises, so its state is restored."""
    with torch.cuda.device(device):
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        before = generator.clone_state()
        try:
            yield
        except RuntimeError:
            generator.graphsafe_set_state(before.graphsafe_get_state())
            raise


class GraphedInference:
    """A network's forward pass as a CUDA graph, from the second call with inputs of some shapes.

    It is called like the network, without a gradient, and returns copies. Several threads may call
    it. At most ``KEPT`` graphs are kept; they share their memory. Batches above ``PIXELS`` pixels
    run without a graph: the GPU, not Python, determines their time, and a graph would hold as much
    memory again.
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
        """Whether ``key`` has a graph now. The first call captures none: a size that comes only
        once is not worth a graph, and compiling and tuning cannot be captured."""
        if not self._seen.get(key):
            self._seen.setdefault(key, True)
            while len(self._seen) > 8 * self.KEPT:
                self._seen.popitem(last=False)
            return False
        try:
            self._kept[key] = self._capture(thermal, text, options)
        except RuntimeError as error:
            self._seen[key] = False  # the network runs without a graph
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


class SideStream:
    """A second CUDA stream for one part of a network, while a graph is captured; elsewhere nothing.

    Kernels launched within ``with SideStream(x) as side`` run beside those launched after it, until
    ``side.join(...)``: small kernels leave most of a GPU idle. ``x`` is the tensor that the part
    takes from outside; ``join`` is given all tensors that it returns. Other outside tensors may be
    read if they outlive the capture, as parameters do; none may be written to. Autograd runs each
    operator's gradient on the operator's own stream, so a captured backward pass has both parts
    beside each other, too.

    A class and no generator, since torch.compile before 2.7 cannot trace those.
    """

    def __init__(self, x: Tensor):
        self.stream = None
        # a compiler makes one graph of both parts, and cannot ask for the stream's state
        if (
            x.is_cuda
            and not torch.compiler.is_compiling()
            and torch.cuda.is_current_stream_capturing()
        ):
            self.first, self.stream = (
                torch.cuda.current_stream(x.device),
                torch.cuda.Stream(x.device),
            )
            # Tensors kept for the gradient are freed when the host has launched the last kernel
            # that reads them. Until that kernel has run, the other stream must not get the memory.
            x.record_stream(self.stream)

    def __enter__(self) -> Self:
        if self.stream is not None:
            self.stream.wait_stream(self.first)
            self.within = torch.cuda.stream(self.stream)
            self.within.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self.stream is not None:
            self.within.__exit__(*error)

    def join(self, *results: Tensor) -> None:
        """Later kernels, which read ``results``, wait for the side stream."""
        if self.stream is not None:
            self.first.wait_stream(self.stream)
            for result in results:
                result.record_stream(self.first)
