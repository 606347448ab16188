"""Archives of small frames, and the model that colours them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from archive_files import frame
from fake_network import Fake

from cmmfnet import methods
from cmmfnet.weights.files import save_model

pytest.importorskip("pyarrow", reason="an archive needs PyArrow: pip install 'cmmfnet[archive]'")


@pytest.fixture
def fake_method(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "fake", "fake_network:FakeMethod")


@pytest.fixture(scope="session")
def fake_model(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("model") / "fake.safetensors"
    return str(save_model(path, Fake(), {"method": "fake"}))


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
