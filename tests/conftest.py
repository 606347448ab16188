"""Fixtures that several test files share."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest
import torch
from fake_network import Fake
from torch import nn

from cmmfnet import methods
from cmmfnet.weights.files import save_model


@pytest.fixture
def fake_method(monkeypatch):
    """The method of the network that is small enough to read, for tests in this process."""
    monkeypatch.setitem(methods.METHODS, "fake", "fake_network:FakeMethod")


@pytest.fixture(scope="session")
def fake_model(tmp_path_factory) -> str:
    """A model file of that network."""
    path = tmp_path_factory.mktemp("model") / "fake.safetensors"
    return str(save_model(path, Fake(), {"method": "fake"}))


@pytest.fixture(autouse=True)
def seeded():
    """Networks that a test makes are the same in any order of tests, alone, and again."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps the first training's precision for the process; each test has its own."""
    yield
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def disk_full_while_writing(monkeypatch):
    """A call of it makes every new file take half a word and then find the disk full, until
    monkeypatch.undo()."""
    real = Path.open

    def open_full(self, mode="r", *args, **kwargs):
        file = real(self, mode, *args, **kwargs)
        if "x" in mode:
            file.write(b"half")
            file.close()
            raise OSError(errno.ENOSPC, "No space left on device")
        return file

    return lambda: monkeypatch.setattr(Path, "open", open_full)


@pytest.fixture
def random_vgg(monkeypatch) -> nn.Sequential:
    """VGG-16 with random weights in place of the pre-trained one, 1/16 as wide."""
    from cmmfnet.nn import perceptual

    table = perceptual._VGG["vgg16"]
    monkeypatch.setitem(perceptual._VGG, "vgg16", [c if c == "M" else c // 16 for c in table])
    torch.manual_seed(1)
    layers = perceptual.feature_layers("vgg16")
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    layers = layers.eval().requires_grad_(False)
    monkeypatch.setattr(perceptual, "load_features", lambda name, folder=None: layers)
    return layers
