"""A call as a CUDA graph, for benchmarks: a replay has no launches from Python in it."""

from __future__ import annotations

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
