"""benchmarks/text.py: medians over seeds, and the wording of its swaps."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("skimage", reason="recolouring needs scikit-image")


@pytest.fixture(scope="module")
def response():
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    try:
        yield importlib.import_module("text_response")
    finally:
        sys.path.pop(0)


def test_medians_of_seeds_and_the_interval_of_their_mean(response):
    one = response.medians([[0.1, 0.5, 0.9]])
    assert (
        one["median"] == 0.5
        and one["seeds"] == [0.5]
        and one["interval"][0] < 0.5 < one["interval"][1]
    )
    values = np.random.default_rng(0).normal(0.7, 0.1, 40)
    three = response.medians([values - 0.1, values, values + 0.1])
    assert three["median"] == pytest.approx(np.median(values)) and len(three["seeds"]) == 3
    # scenes are drawn together for all seeds: seeds that differ by a constant leave the interval as
    # wide
    assert three["interval"] == pytest.approx(response.medians([values])["interval"])
    assert response.medians([[], []]) is None


def test_a_swap_covers_what_the_new_word_brings(response):
    case = next(response.rendered(1, (64, 80)))

    class Painter:  # knows the night, and nothing else
        def __call__(self, thermal, text, span):
            return case.repaint({"lighting": "night" if "night" in text else "day"})

    result = response.response([Painter(), Painter()], iter([case]), "rendered", sheet := [])
    assert result["day -> night"]["covered"]["seeds"] == [1, 1] and len(sheet) >= 1
    others = [
        result[name]["covered"]
        for name in response.SWAPS
        if name != "day -> night" and result[name]["pictures"]
    ]
    assert all(cell["median"] == pytest.approx(0) for cell in others)
