"""Casts in one launch all weights that autocast would cast. One at a time, weights and gradients
would cost hundreds of launches a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cmmfnet.nn.fast.modules import FastConvFFN, FastLargeKernelBlock

OWN_CASTS = (FastLargeKernelBlock, FastConvFFN)
"""Modules whose kernels take weights in float32 and give their gradients so."""


class CastWeights:
    """A network under autocast to ``dtype``, called like ``network`` and with the same results.

    A call first brings 16-bit copies of the weights up to date. ``leaf(parameter)`` is the tensor
    whose gradient is the parameter's. ``alike`` casts gradients to the dtypes of their parameters.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype):
        self.network = network
        cast = _cast_by_autocast(network)
        self.originals = [p for p in network.parameters() if id(p) in cast]
        self.copies = [torch.empty_like(p, dtype=dtype).requires_grad_() for p in self.originals]
        self._of = {id(p): copy for p, copy in zip(self.originals, self.copies, strict=True)}
        # by name: a module that is registered twice has one name here, a weight of two modules two
        self._places = {
            f"{at}.{name}".lstrip("."): self._of[id(p)]
            for at, module in network.named_modules()
            for name, p in module.named_parameters(recurse=False, remove_duplicate=False)
            if id(p) in self._of
        }

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if not self.copies:
            return self.network(*inputs, **options)
        with torch.no_grad():
            torch._foreach_copy_(self.copies, self.originals)
        return functional_call(self.network, self._places, inputs, options, tie_weights=False)

    def leaf(self, parameter: Tensor) -> Tensor:
        return self._of.get(id(parameter), parameter)

    @staticmethod
    def alike(
        gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """Gradients in the dtypes of their parameters."""
        found, to, of = list(gradients), [], []
        for i, (gradient, parameter) in enumerate(zip(gradients, parameters, strict=True)):
            if gradient is not None and gradient.dtype != parameter.dtype:
                found[i] = torch.empty_like(gradient, dtype=parameter.dtype)
                to.append(found[i])
                of.append(gradient)
        if to:
            torch._foreach_copy_(to, of)
        return found


def _cast_by_autocast(network: nn.Module) -> set[int]:
    """Ids of the trained float32 parameters that the network uses only where autocast casts them:
    weights of linear layers and convolutions, and biases of linear layers. (A bias of a convolution
    is not among them, since a kernel of ours may take it in float32.)"""
    own = {id(p) for m in network.modules() if isinstance(m, OWN_CASTS) for p in m.parameters()}
    cast, other = set(), set()
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            some = type(module) is nn.Linear or (type(module) is nn.Conv2d and name == "weight")
            (
                cast
                if some and parameter.requires_grad and parameter.dtype == torch.float32
                else other
            ).add(id(parameter))
    return cast - other - own
