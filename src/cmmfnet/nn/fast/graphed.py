"""A generator's forward pass and its gradients as two CUDA graphs, for training.

A step of CMMF-Net launches thousands of kernels. Python needs longer for the launches than the GPU
for the kernels. A pass captured as a graph is one launch with the same arithmetic.
``torch.cuda.make_graphed_callables`` is not used: while it captures, no other thread may pin
memory, as the loader's thread does.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from cmmfnet.nn.fast.cast_weights import CastWeights
from cmmfnet.nn.fast.graphs import capturing


class GraphedTraining:
    """A network in training as CUDA graphs, called like ``network(*inputs, **options)``.

    The first call with inputs of new shapes captures, for up to ``KEPT`` shapes. Further shapes run
    without a graph. A call overwrites the outputs of the call before, so a step makes one call and
    takes its gradients before the next call. The graphs of all shapes share their memory. Inputs
    are tensors or None. If capturing fails, for lack of memory or because the network needs the
    host, a warning is given and the network runs without graphs from then on.
    """

    WARM_UP = 3
    KEPT = 16

    def __init__(self, network: nn.Module, **options: Any):
        self.network, self.options = network, options
        self._replays: dict[tuple, tuple[type[torch.autograd.Function], Any]] = {}
        self._fails = False
        self._pool: Any = None
        self._called: Any = None

    @property
    def captured(self) -> int:
        """How many shapes of inputs run as graphs."""
        return len(self._replays)

    def __call__(self, *inputs: Tensor | None) -> Any:
        key = tuple(None if x is None else (x.shape, x.dtype, x.requires_grad) for x in inputs)
        if key not in self._replays and not self._fails and len(self._replays) < self.KEPT:
            try:
                with capturing(inputs[0].device):
                    self._replays[key] = self._capture(inputs)
            except RuntimeError as error:  # torch.cuda.OutOfMemoryError among them
                self._fails = True
                warnings.warn(
                    f"no CUDA graph of the training step, which will take longer: {error}",
                    stacklevel=2,
                )
        if key not in self._replays:
            return self.network(*inputs, **self.options)
        replay, (leaves, structure) = self._replays[key]
        found = iter(replay.apply(*(x for x in inputs if x is not None), *self._parameters))
        return tree_unflatten(
            [next(found) if is_tensor else None for is_tensor in leaves], structure
        )

    def _capture(
        self, inputs: tuple[Tensor | None, ...]
    ) -> tuple[type[torch.autograd.Function], Any]:
        """The replayed passes, which leaves of the output are tensors, and its structure."""
        self._parameters = [p for p in self.network.parameters() if p.requires_grad]
        kept = [buffer.clone() for buffer in self.network.buffers()]
        places = [
            None if x is None else x.detach().clone().requires_grad_(x.requires_grad)
            for x in inputs
        ]
        given = [x for x in places if x is not None]
        dtype, on = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
        if self._called is None:  # kept: the graphs use its copies
            self._called = CastWeights(self.network, dtype) if on else self.network
            self._pool = torch.cuda.graph_pool_handle()
        call = self._called
        shape: list[Any] = []
        felt = [x for x in [*given, *self._parameters] if x.requires_grad]
        wanted = [call.leaf(x) for x in felt] if on else felt

        def forward() -> tuple[Tensor, ...]:
            leaves, structure = tree_flatten(call(*places, **self.options))
            shape[:] = [isinstance(x, Tensor) for x in leaves], structure
            return tuple(x for x in leaves if isinstance(x, Tensor))

        def gradients(out: tuple[Tensor, ...], of: list[Tensor]) -> list[Tensor | None]:
            found = torch.autograd.grad(
                [x for x in out if x.requires_grad], wanted, of, allow_unused=True
            )
            return CastWeights.alike(found, felt)

        def zeros(out: tuple[Tensor, ...]) -> list[Tensor]:
            return [torch.zeros_like(x) for x in out if x.requires_grad]

        # A cast weight that outlives the capture would be stale. Warm-up runs leave neither random
        # draws nor statistics behind, so a resumed training equals one that was never stopped.
        device, side, pool = given[0].device, torch.cuda.Stream(), self._pool
        passes = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with (
            torch.autocast("cuda", dtype, on, cache_enabled=False),
            torch.random.fork_rng([device]),
        ):
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(self.WARM_UP):
                    out = forward()
                    gradients(out, zeros(out))
                    del out  # else its autograd nodes would live on into the capture
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(
                passes[0], pool=pool, stream=side, capture_error_mode="thread_local"
            ):
                out = forward()
            of = zeros(out)
            with torch.cuda.graph(
                passes[1], pool=pool, stream=side, capture_error_mode="thread_local"
            ):
                found = iter(gradients(out, of))
        back = [next(found) if x.requires_grad else None for x in [*given, *self._parameters]]
        with torch.no_grad():
            for buffer, value in zip(self.network.buffers(), kept, strict=True):
                buffer.copy_(value)
        replay = _replayed(
            passes, given, tuple(x.detach() for x in out), [x.requires_grad for x in out], of, back
        )
        return replay, tuple(shape)


def _replayed(
    passes: tuple[torch.cuda.CUDAGraph, torch.cuda.CUDAGraph],
    places: list[Tensor],
    out: tuple[Tensor, ...],
    differentiable: list[bool],
    of: list[Tensor],
    back: list[Tensor | None],
) -> type[torch.autograd.Function]:
    """The two graphs as one differentiable function of inputs and parameters. ``of`` receives the
    gradients of the ``differentiable`` outputs; ``back`` holds the gradients of inputs and
    parameters."""

    class Replay(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs: Tensor) -> tuple[Tensor, ...]:
            for place, value in zip(
                places, inputs, strict=False
            ):  # the parameters, which follow, are read in place
                place.copy_(value)
            passes[0].replay()
            results = tuple(x.detach() for x in out)
            ctx.mark_non_differentiable(
                *(x for x, yes in zip(results, differentiable, strict=True) if not yes)
            )
            return results

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
            some = (g for g, yes in zip(gradients, differentiable, strict=True) if yes)
            for place, value in zip(of, some, strict=True):
                place.copy_(value)
            passes[1].replay()
            return tuple(None if x is None else x.detach() for x in back)

    return Replay
