"""What the conditions have in common under which kernels serve: dtypes, autocast, and whether a
gradient is wanted here."""

from __future__ import annotations

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)


def autocasts(x: Tensor) -> bool:
    """Whether products of x are cast to 16 bits here."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def product_dtype(x: Tensor) -> torch.dtype:
    """What a product of x is computed in here: autocast's dtype, or x's own."""
    return torch.get_autocast_dtype(x.device.type) if autocasts(x) else x.dtype


def trains_on_cuda(x: Tensor) -> bool:
    """Whether x is on CUDA and a gradient is wanted here, with no compiler at work, which would
    want fake kernels."""
    return x.is_cuda and torch.is_grad_enabled() and not torch.compiler.is_compiling()
