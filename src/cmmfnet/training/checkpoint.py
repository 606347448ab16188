"""Training state on disk: written atomically, loaded without pickle, checked before it is used.

A checkpoint holds the networks, their EMA copy, the optimisers and the step. There is no random
state: all draws depend on (seed, step).
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch

from cmmfnet.files.atomic import atomic_write
from cmmfnet.files.errors import UserError

STATE = {
    "step": int, "config": dict, "recipe": dict, "best": dict, "pools": list, "networks": dict,
    "optimisers": dict, "ema": dict, "scaler": (dict, type(None)),
}  # fmt: skip
"""The entries of a checkpoint and their types."""


class CheckpointError(UserError):
    """A checkpoint that a training cannot go on from; the message says what to do instead."""

    def __init__(self, path: Path, reason: str):
        super().__init__(
            f"{path} {reason}. Move it away and the same command starts anew; with --from "
            f"{path.parent / 'model.safetensors'} it starts from the weights that were saved"
        )


def save(path: Path, state: dict) -> None:
    """Write ``state`` (tensors, numbers, strings, nested dicts and lists) to ``path``: whole or not
    at all."""
    with atomic_write(path) as file:
        torch.save(state, file)


def load(path: Path) -> dict[str, Any]:
    """The state in ``path``, on the CPU, with the entries of :data:`STATE`. Only tensors and plain
    values are read, never code. Raises :class:`CheckpointError`."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch raises almost anything for damaged bytes
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        if isinstance(error, pickle.UnpicklingError):  # torch advises to load it all the same
            reason = "it holds objects other than tensors and plain values"
        raise CheckpointError(path, f"is damaged or no checkpoint ({reason})") from error
    if not isinstance(state, dict) or not state.keys() & STATE.keys():
        raise CheckpointError(path, "is not a checkpoint of cmmfnet train")
    for name, kind in STATE.items():
        if not isinstance(state.get(name, ...), kind):
            found = type(state[name]).__name__ if name in state else "nothing"
            raise CheckpointError(
                path, f"was written by another version of cmmfnet: its {name!r} is {found}"
            )
    if state["step"] < 0 or state["step"] != _step(path):
        raise CheckpointError(path, f"is of step {state['step']}, which is not that of its name")
    return state


def latest(folder: Path) -> Path | None:
    """The checkpoint with the highest step in ``folder``, or None."""
    found = [path for path in Path(folder).glob("step-*.pt") if _step(path) is not None]
    return max(found, key=_step, default=None)


def _step(path: Path) -> int | None:
    """The number in the name of a checkpoint."""
    match = re.fullmatch(r"step-(\d{1,18})\.pt", path.name)
    return int(match[1]) if match else None


def not_finite(tensors: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors with NaN or infinite values; one wait for the device."""
    floats = {name: x for name, x in tensors.items() if x.is_floating_point()}
    if not floats:
        return []
    finite = torch.stack([x.isfinite().all() for x in floats.values()]).tolist()
    return [name for name, well in zip(floats, finite, strict=True) if not well]
