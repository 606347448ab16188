"""A call as a CUDA graph, for benchmarks: a replay has no launches from Python in it."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable

import torch


def captured(function: Callable[[], object]) -> Callable[[], None]:
    """Warm ``function`` up, capture it, and return the graph's replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def graph_ms(function: Callable[[], object], repeats: int = 30) -> float:
    """Median milliseconds of a replay of ``function`` captured as a CUDA graph."""
    replay = captured(function)
    for _ in range(5):
        replay()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        replay()
        event.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(events))
