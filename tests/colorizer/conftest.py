"""The model file of the network that is small enough to read, for tests of `cmmfnet colorize`."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def model(fake_model) -> str:
    return fake_model
