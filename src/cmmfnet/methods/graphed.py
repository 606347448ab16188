"""A generator's forward pass and its gradients as two CUDA graphs, for training.

A step of CMMF-Net launches thousands of kernels, which takes Python longer than the card takes to run them. Captured once,
both passes are launched whole. The arithmetic is the same.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten


class Graphed:
    """Called like ``network(*inputs, **options)``; the first call captures, later ones with other shapes run as they are.

    What a call returns is overwritten by the next: one call a step, whose gradients are taken before the next one. Inputs
    are tensors or None. Where capturing fails, for want of memory or because the network asks the host for something, a
    warning says so and the network runs as it is.
    """

    def __init__(self, network: nn.Module, **options: Any):
        self.network, self.options = network, options
        self._key: Any = None
        self._flat: _Flat | None = None

    def __call__(self, *inputs: Tensor | None) -> Any:
        key = [None if x is None else (x.shape, x.dtype, x.requires_grad) for x in inputs]
        if self._key is None:
            self._key = key
            try:
                self._capture(inputs)
            except RuntimeError as error:  # torch.cuda.OutOfMemoryError among them
                self._flat = None
                warnings.warn(f"no CUDA graph of the training step, which will take longer: {error}", stacklevel=2)
        if self._flat is None or key != self._key:
            return self.network(*inputs, **self.options)
        found = iter(self._flat(*(x for x in inputs if x is not None)))
        leaves, structure = self._flat.shape
        return tree_unflatten([next(found) if is_tensor else None for is_tensor in leaves], structure)

    def _capture(self, inputs: tuple[Tensor | None, ...]) -> None:
        samples = [None if x is None else x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
        device = next(x.device for x in samples if x is not None)
        flat = _Flat(self.network, self.options, [x is not None for x in samples])
        kept = [buffer.clone() for buffer in self.network.buffers()]
        dtype, on = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
        # A cast weight that outlives the capture would be stale. Runs to warm up leave neither draws nor statistics behind,
        # so that a resumed training goes on as one that was never stopped.
        with torch.autocast("cuda", dtype, on, cache_enabled=False), torch.random.fork_rng([device]):
            given = tuple(x for x in samples if x is not None)
            torch.cuda.make_graphed_callables(flat, given, allow_unused_input=True)
        with torch.no_grad():
            for buffer, value in zip(self.network.buffers(), kept, strict=True):
                buffer.copy_(value)
        self._flat = flat


class _Flat(nn.Module):
    """The network with a tuple of its output's tensors, as make_graphed_callables wants them; ``shape`` remembers the rest."""

    def __init__(self, network: nn.Module, options: dict, given: list[bool]):
        super().__init__()
        self.network, self.options, self.given = network, options, given
        self.shape: Any = None
        self.train(network.training)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        some = iter(inputs)
        out = self.network(*(next(some) if is_given else None for is_given in self.given), **self.options)
        leaves, structure = tree_flatten(out)
        self.shape = [isinstance(x, Tensor) for x in leaves], structure
        return tuple(x for x in leaves if isinstance(x, Tensor))
