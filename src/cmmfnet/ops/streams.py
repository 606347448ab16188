"""Two parts of a network at once, where it is recorded as a CUDA graph."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor


class Beside:
    """While a CUDA graph is recorded without gradient, what is launched within ``with Beside(x) as other`` is put beside what
    is launched after it, until ``other.join()``: small kernels leave most of a GPU idle. Otherwise all is done in its order.

    ``x``: a tensor on the device. What is within may not write to tensors from outside. A class, no generator, for
    torch.compile before 2.7 cannot see into those.
    """

    def __init__(self, x: Tensor):
        self.stream = None
        # a compiler makes one graph of both parts anyhow, and cannot ask for the stream's state
        if x.is_cuda and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self.first = torch.cuda.current_stream(x.device)
            if torch.cuda.is_current_stream_capturing():
                self.stream = torch.cuda.Stream(x.device)

    def __enter__(self) -> Self:
        if self.stream is not None:
            self.stream.wait_stream(self.first)
            self.within = torch.cuda.stream(self.stream)
            self.within.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self.stream is not None:
            self.within.__exit__(*error)

    def join(self) -> None:
        """What follows waits for what was within."""
        if self.stream is not None:
            self.first.wait_stream(self.stream)
