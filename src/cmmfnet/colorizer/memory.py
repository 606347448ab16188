"""Batches that a device has no memory for, or that one frame spoils, in halves."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from cmmfnet.files.errors import UserError

T, R = TypeVar("T"), TypeVar("R")


class OutOfMemory(UserError):
    """One frame alone is too large for the device."""


def halving(run: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T]) -> list[R | Exception]:
    """``run(items)``; where that fails, of each half, down to single items.

    Returns:
        A result for each item, or why there is none: :class:`OutOfMemory` where the device's memory
        does not suffice for it alone, else what ``run`` raised for it. Only errors that a frame can
        cause are caught; others are raised.
    """
    if not items:
        return []
    try:
        return list(run(items))
    except (ValueError, ArithmeticError, OSError, MemoryError, RuntimeError) as error:
        lacking = is_out_of_memory(error)
        if not lacking and "CUDA error" in str(error):
            raise  # the device is lost: all further frames would fail, too
        if len(items) == 1:
            return [_too_large(error) if lacking else error]
    if lacking:  # after the except clause, which keeps the tensors of the failed run alive
        free_memory()
    half = (len(items) + 1) // 2
    return halving(run, items[:half]) + halving(run, items[half:])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had too little memory: PyTorch's, ONNX Runtime's or Python's
    own error for it."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and ("out of memory" in text or "failed to allocate" in text or "can't allocate" in text)
    )


def free_memory() -> None:
    """Give back what PyTorch keeps of the GPU's memory for later."""
    gc.collect()
    torch: Any = sys.modules.get("torch")  # an .onnx model does without
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _too_large(error: BaseException) -> OutOfMemory:
    return OutOfMemory(
        f"too little memory for this one frame ({str(error)[:120]}); use a smaller model, or a GPU "
        "(else --device cpu) or machine with more memory"
    )
