"""The model file of the network that is small enough to read, for tests of `cmmfnet colorize`."""

from __future__ import annotations

import pytest
from fake_network import Fake

from cmmfnet import methods
from cmmfnet.weights.files import save_model


@pytest.fixture
def fake_method(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "fake", "fake_network:FakeMethod")


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("model") / "fake.safetensors"
    return str(save_model(path, Fake(), {"method": "fake"}))
