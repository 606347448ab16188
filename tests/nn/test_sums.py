"""Sums of kernels' parts (ops/sums.py) against float64: in Triton's interpreter, and on a CUDA
device."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from test_ops import cuda, interpreted, relative

# parts, and leading axes that are kept; one part, one row of a tile, columns that are no whole
# number of tiles
PARTS = [
    ((3, 5, 65, 64), 1),
    ((7, 2, 64, 96), 0),
    ((300, 8, 8), 0),
    ((1, 1, 9, 9), 0),
    ((2, 1, 9, 9), 1),
    ((5, 3, 3), 0),
]


def sum_error(shape, kept, device="cpu"):
    from cmmfnet.nn.fast.sums import sum_of_parts

    parts = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(device)
    found, want = (
        sum_of_parts(parts, kept),
        parts.double().sum(dim=tuple(range(kept, len(shape) - 2))),
    )
    assert (found.shape, found.dtype) == (want.shape, torch.float32)
    return relative(found, want)


_INTERPRETED = """
import json, sys
sys.path.insert(0, {tests!r})
import test_sums as t

print(json.dumps([t.sum_error(*given) for given in t.PARTS]))
"""


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="the kernel runs on the GPU itself in the test below"
)
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_sums_in_the_interpreter():
    assert max(interpreted(_INTERPRETED)) < 1e-6


@cuda
@pytest.mark.parametrize(
    "given", [*PARTS, ((48, 16, 64, 64), 0), ((24, 4, 512, 128), 0), ((48, 16, 65, 64), 1)], ids=str
)
def test_sums_on_cuda(given):
    assert sum_error(*given, "cuda") < 1e-6
