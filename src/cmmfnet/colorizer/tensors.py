"""sizes.py for tensors, on any device: padding, resizing, pictures."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cmmfnet.colorizer import sizes


def pad(frame: Tensor, multiple: int) -> Tensor:
    """``sizes.pad`` for a tensor (H, W)."""
    for axis, side in enumerate(frame.shape):
        if side % multiple:
            frame = frame.index_select(axis, _padded_places(side, multiple, frame.device))
    return frame


@functools.lru_cache(maxsize=64)
def _padded_places(side: int, multiple: int, device: torch.device) -> Tensor:
    """The row or column at each place of a padded side, as an index."""
    with torch.inference_mode(False):  # a tensor that any later call may use
        return torch.from_numpy(sizes.pad(np.arange(side)[None], multiple)[0]).to(device)


def stack(frames: Sequence[Tensor]) -> Tensor:
    """B frames (H, W) -> (B, H, W)."""
    return torch.stack(list(frames))


def like(x: np.ndarray, other: Tensor) -> Tensor:
    """An array as a tensor on the device and in the precision of ``other``."""
    return torch.from_numpy(x).to(other.device, other.dtype)


def resize(x: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """``sizes.resize`` for a tensor (..., h, w) of two or three dimensions."""
    # PyTorch fails on frames of one or two rows or columns, which are coloured enlarged: CUDA's
    # filter lies in shared memory and is refused where a side shrinks by some 90 times or more, and
    # the CPU's takes a column of one pixel for another order of memory (torch 2.13)
    shrinks = max(old / new for old, new in zip(x.shape[-2:], size, strict=True))
    if shrinks > 32 or 1 in size:
        return torch.from_numpy(sizes.resize(x.cpu().numpy(), size, mode)).to(x.device)
    planes = x.reshape(1, -1, *x.shape[-2:])
    resized = F.interpolate(planes, tuple(size), mode=mode, antialias=True, align_corners=False)
    return resized.reshape(*x.shape[:-2], *size)


def box_mean(x: Tensor, radius: int) -> Tensor:
    """``sizes.box_mean`` for a tensor (C, h, w)."""
    padded = F.pad(x[None], (radius,) * 4, mode="replicate")
    return F.avg_pool2d(padded, 2 * radius + 1, stride=1)[0]


def to_picture(colour: Tensor) -> np.ndarray:
    """``sizes.to_picture`` for a tensor (3, H, W). The host waits for the device once."""
    total = colour.sum()  # not finite if any value is not
    picture = ((colour + 1) * 127.5).round_().clamp_(0, 255).byte().permute(1, 2, 0).contiguous()
    picture, total = (x.to("cpu", non_blocking=True) for x in (picture, total))
    if colour.is_cuda:
        torch.cuda.current_stream(colour.device).synchronize()
    if not math.isfinite(total):
        raise FloatingPointError("NaN or infinite colours")
    return picture.numpy().copy()
