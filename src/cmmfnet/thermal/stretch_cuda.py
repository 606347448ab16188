"""Stretching on the GPU: what stretch.py gives, bit for bit, without the way over the host."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from cmmfnet.thermal.frame import Thermal
from cmmfnet.thermal.stretch import (
    PERCENTILES,
    checked_span,
    may_be_counts,
    normalise,
    quantile_ranks,
    sampling_step,
    stretched_levels,
)


def normalised(
    frame: Thermal,
    span: tuple[float, float] | None,
    device: torch.device,
    stretch: Callable[..., Tensor] | None = None,
) -> Tensor:
    """:func:`cmmfnet.thermal.stretch.normalise` as a tensor (H, W) float32 on ``device``.

    Of counts and grey levels the card counts how often each occurs, and where a frame is known to
    be such, the host need not wait for it; anything else is stretched where NumPy is. ``stretch``:
    ``stretched_counts`` as a CUDA graph, to be quicker. Raises what ``normalise`` raises.
    """
    span = checked_span(frame, span)
    values = torch.from_numpy(np.ascontiguousarray(frame.values)).to(device)
    if frame.whole and span is None:
        return (stretch or stretched_counts)(values, *_ranks(tuple(values.shape), device))
    least, most = torch.stack(values.aminmax()).tolist()
    if may_be_counts(least, most):
        steps = (values - least).int()
        counts = torch.zeros(int(most - least) + 2, dtype=torch.int32, device=device)
        sampled = steps.flatten()[:: sampling_step(tuple(steps.shape))].long()
        counts.scatter_add_(0, sampled, torch.ones_like(sampled, dtype=torch.int32))
        counts[-1] = (steps + least != values).any()
        found = counts.cpu().numpy()
        if not found[-1]:
            return torch.from_numpy(stretched_levels(found[:-1], least, span)).to(device)[steps]
    return torch.from_numpy(np.ascontiguousarray(normalise(frame, span), dtype=np.float32)).to(
        device
    )


def stretched_counts(values: Tensor, ranks: Tensor, weights: Tensor) -> Tensor:
    """:func:`cmmfnet.thermal.stretch.normalise`, to the bit, of whole numbers (H, W) float32 from
    -2^15 to 2^16 - 1, on their device and without waiting for it. ``ranks`` (3, 2) int64 and
    ``weights`` (2,) float64: of both percentiles
    (:func:`cmmfnet.thermal.stretch.quantile_ranks`)."""
    lowest = -(2**15)
    counts = torch.zeros(2**16 - lowest, dtype=torch.int32, device=values.device)
    values = values.double()
    sampled = values.flatten()[:: sampling_step(tuple(values.shape))].long() - lowest
    counts.scatter_add_(0, sampled, torch.ones_like(sampled, dtype=torch.int32))
    least, most = values.aminmax()
    start, a, b = (
        torch.searchsorted(counts.cumsum(0), ranks, right=True) + lowest - least
    ).unbind()
    ends = start + (b - a) * weights + least
    low, high = torch.where(ends[0] < ends[1], ends, torch.stack([least, most])).unbind()
    stretched = (values.clamp(low, high) - low) / (high - low) * 2 - 1
    return torch.where(low < high, stretched, torch.sign(values - low)).float()


@functools.lru_cache(maxsize=64)
def _ranks(shape: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    sampled = -(-shape[0] * shape[1] // sampling_step(shape))
    *ranks, weights = zip(
        *(quantile_ranks(sampled, percentile / 100) for percentile in PERCENTILES), strict=True
    )
    return torch.tensor(ranks, device=device), torch.tensor(
        weights, dtype=torch.float64, device=device
    )
