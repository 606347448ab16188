"""Fixtures that several test files share."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
    """Networks that a test makes are the same in any order of tests, alone, and again."""
    torch.manual_seed(0)


@pytest.fixture
def disk_full_while_writing(monkeypatch):
    """A call of it makes every new file take half a word and then find the disk full, until monkeypatch.undo()."""
    real = Path.open

    def open_full(self, mode="r", *args, **kwargs):
        file = real(self, mode, *args, **kwargs)
        if "x" in mode:
            file.write(b"half")
            file.close()
            raise OSError(errno.ENOSPC, "No space left on device")
        return file

    return lambda: monkeypatch.setattr(Path, "open", open_full)
