"""Two parts of a network at once, where it is recorded as a CUDA graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


@contextlib.contextmanager
def beside(x: Tensor) -> Iterator[Callable[[], None]]:
    """While a CUDA graph is recorded without gradient, what is launched within is put beside what is launched after, until
    the function that this gives is called: small kernels leave most of a GPU idle. Otherwise all is done in its order.
    ``x``: a tensor of the device. What is within may not write to tensors from outside.
    """
    if torch.is_grad_enabled() or not x.is_cuda or torch.compiler.is_compiling():
        recording = False
    else:
        recording = torch.cuda.is_current_stream_capturing()
    if not recording:
        yield lambda: None
        return
    first, second = torch.cuda.current_stream(x.device), torch.cuda.Stream(x.device)
    second.wait_stream(first)
    with torch.cuda.stream(second):
        yield lambda: first.wait_stream(second)
