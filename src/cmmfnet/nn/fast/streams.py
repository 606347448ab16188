"""Two parts of a network at once, where it is recorded as a CUDA graph."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor


class Beside:
    """While a CUDA graph is recorded, what is launched within ``with Beside(x) as other`` is put
    beside what is launched after it, until ``other.join(...)``: small kernels leave most of a GPU
    idle. Otherwise all is done in its order.

    ``x``: the tensor on the device that what is within takes from outside; ``join`` is given all
    that goes the other way. Other tensors from outside may be read only where they outlive the
    recording, as parameters do, and none may be written to. Autograd runs the gradient of each
    operator on the stream of the operator itself and lets streams wait for each other where
    gradients cross, so that a backward pass recorded after this one has both parts beside each
    other, too.

    A class, no generator, for torch.compile before 2.7 cannot see into those.
    """

    def __init__(self, x: Tensor):
        self.stream = None
        # a compiler makes one graph of both parts anyhow, and cannot ask for the stream's state
        if (
            x.is_cuda
            and not torch.compiler.is_compiling()
            and torch.cuda.is_current_stream_capturing()
        ):
            self.first, self.stream = (
                torch.cuda.current_stream(x.device),
                torch.cuda.Stream(x.device),
            )
            # what is kept for the gradient is let go when the host has launched the last kernel
            # that reads it; until that has run on its stream, the other one must not be given the
            # memory
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
        """What follows waits for what was within, whose ``results`` it reads."""
        if self.stream is not None:
            self.first.wait_stream(self.stream)
            for result in results:
                result.record_stream(self.first)
