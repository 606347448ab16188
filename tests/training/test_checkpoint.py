"""Training state on disk: whole or not at all, and never code."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from cmmfnet.training import checkpoint

STATE = {
    "step": 3, "config": {}, "best": {}, "pools": [], "optimisers": {}, "ema": {}, "scaler": None,
    "networks": {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(True)},
    "recipe": {"betas": (0.5, 0.999), "sources": [{"folder": "x", "split": None}], "name": "é"},
}  # fmt: skip


def test_what_is_saved_comes_back(tmp_path):
    file = tmp_path / "new" / "folder" / "step-3.pt"
    checkpoint.save(file, STATE)
    state = checkpoint.load(file)
    assert torch.equal(state["networks"]["a"], STATE["networks"]["a"]) and bool(
        state["networks"]["b"]
    )
    assert (state["step"], state["recipe"]) == (3, STATE["recipe"])
    assert [p.name for p in file.parent.iterdir()] == ["step-3.pt"]


def test_latest_goes_by_number(tmp_path):
    assert checkpoint.latest(tmp_path) is None and checkpoint.latest(tmp_path / "nowhere") is None
    for name in (
        "step-9.pt",
        "step-10.pt",
        "step-100.pt.part",
        ".step-2000.pt.17.part",
        "step-x.pt",
        "model-300.pt",
    ):
        (tmp_path / name).touch()
    assert checkpoint.latest(tmp_path) == tmp_path / "step-10.pt"


class HalfWritten(Exception):
    """Stands for whatever ends a process in the middle of a write, and lets handlers run."""


def write_half(state: dict, file) -> None:
    file.write(b"PK\x03\x04 the first half of a checkpoint")
    raise HalfWritten


def disk_full(state: dict, file) -> None:
    file.write(b"PK\x03\x04")
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("failure", "error"), [(write_half, HalfWritten), (disk_full, OSError)])
def test_a_failed_write_is_raised_and_leaves_the_old_file(tmp_path, monkeypatch, failure, error):
    file = tmp_path / "step-3.pt"
    checkpoint.save(file, STATE)
    before = file.read_bytes()
    monkeypatch.setattr(torch, "save", failure)
    with pytest.raises(error):
        checkpoint.save(file, {"step": 4})
    assert file.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["step-3.pt"]
    with pytest.raises(error):
        checkpoint.save(tmp_path / "step-4.pt", {"step": 4})
    assert [p.name for p in tmp_path.iterdir()] == ["step-3.pt"]


def test_data_is_on_disk_before_the_name_is(tmp_path, monkeypatch):
    """A rename that reaches the disk before the bytes do would leave an empty file after a power
    cut."""
    calls = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("fsync"), fsync(handle)))
    monkeypatch.setattr(
        Path, "replace", lambda path, to: (calls.append("replace"), replace(path, to))
    )
    checkpoint.save(tmp_path / "step-3.pt", STATE)
    assert calls == ["fsync", "replace", "fsync"]


class Hostile:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_a_checkpoint_that_holds_code_raises_and_does_not_run_it(tmp_path):
    ran = tmp_path / "ran"
    torch.save({"step": 3, "network": Hostile(ran)}, tmp_path / "step-3.pt")
    with pytest.raises(checkpoint.CheckpointError, match="it holds objects other than tensors"):
        checkpoint.load(tmp_path / "step-3.pt")
    assert not ran.exists()
    torch.load(tmp_path / "step-3.pt", weights_only=False)
    assert ran.exists()  # the payload works; it was the loader that stopped it
