"""Archives of small frames, and the model that colours them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from archive_files import frame

pytest.importorskip("pyarrow", reason="an archive needs PyArrow: pip install 'cmmfnet[archive]'")


@pytest.fixture
def archive(fake_method, fake_model) -> Callable[..., int]:
    """`cmmfnet archive SOURCE OUT ...` with a small model on the CPU; its exit status."""
    from cmmfnet.cli import main

    def run(*arguments: object) -> int:
        given = ["--model", fake_model, "--device", "cpu", "--retries", "1"]
        return main(["archive", *map(str, arguments), *given])

    return run


@pytest.fixture
def source(tmp_path) -> Path:
    """Seven pictures in two folders, and a file of another kind."""
    for i in range(4):
        frame(tmp_path / "in" / "night" / f"{i}.png", i)
    for i in range(3):
        frame(tmp_path / "in" / "day" / f"{i}.jpg", i + 10)
    (tmp_path / "in" / "notes.md").write_text("at dusk")
    return tmp_path / "in"
