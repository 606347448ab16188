"""What tests of trainings look at: a run's log, and whether two states are equal."""

from __future__ import annotations

import json
from pathlib import Path

import torch


def log(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def equal(x, y) -> bool:
    """Bit for bit, all the way down."""
    if isinstance(x, torch.Tensor):
        return torch.equal(x, y)
    if isinstance(x, dict):
        return x.keys() == y.keys() and all(equal(x[key], y[key]) for key in x)
    if isinstance(x, list | tuple):
        return len(x) == len(y) and all(map(equal, x, y))
    return x == y
