"""The names that `import cmmfnet` offers."""

from __future__ import annotations

import inspect

import pytest

import cmmfnet
from cmmfnet.evaluation.setting import Setting


@pytest.mark.parametrize("name", cmmfnet.__all__)
def test_every_public_name_is_there(name):
    assert getattr(cmmfnet, name) is not None and name in dir(cmmfnet)


def test_evaluate_and_compare_take_one_setting():
    for function in (cmmfnet.evaluate, cmmfnet.compare):
        own = set(inspect.signature(function).parameters)
        assert "setting" in own and not own & set(inspect.signature(Setting).parameters)


def test_other_names_are_not():
    with pytest.raises(AttributeError, match="has no attribute 'colorise'"):
        _ = cmmfnet.colorise
