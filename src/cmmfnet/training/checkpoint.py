"""Training state on disk: written atomically, loaded without pickle.

A checkpoint holds the networks, their EMA copy, the optimisers, the step and every random state.
``latest`` goes by the step number in the name, never by string order.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from cmmfnet.files.atomic import atomic_write


def save(path: Path, state: dict) -> None:
    """Write ``state`` (tensors, numbers, strings, nested dicts and lists) to ``path``: whole or not
    at all."""
    with atomic_write(path) as file:
        torch.save(state, file)


def load(path: Path) -> dict:
    """The state in ``path``, on the CPU. Only tensors and plain values are read, never code."""
    return torch.load(path, map_location="cpu", weights_only=True)


def latest(folder: Path) -> Path | None:
    """The checkpoint with the highest step in ``folder``, or None."""
    found = [
        (int(m[1]), p)
        for p in Path(folder).glob("step-*.pt")
        if (m := re.fullmatch(r"step-(\d+)\.pt", p.name))
    ]
    return max(found)[1] if found else None


def random_state() -> dict:
    """State of torch's global generators; the data's own draws depend on (seed, step) alone."""
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict) -> None:
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
