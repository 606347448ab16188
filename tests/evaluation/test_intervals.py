"""Bootstrap intervals and paired tests by cluster, on simulated data whose truth is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cmmfnet.evaluation.intervals import (
    cluster_sums,
    holm,
    mean_interval,
    mean_over_clusters,
    sign_flip_p,
)


def simulated(rng, clusters=30, size=8, between=1.0, within=0.3, mean=0.0):
    """Scores whose spread is mostly between sequences, and the name of each one's sequence."""
    values = (
        mean + rng.normal(0, between, clusters)[:, None] + rng.normal(0, within, (clusters, size))
    )
    return values.ravel(), [f"s{i}" for i in range(clusters) for _ in range(size)]


def test_cluster_sums_and_means_by_hand():
    values, clusters = [1, 2, 4, 10], ["a", "b", "a", "c"]
    assert cluster_sums(values, clusters).tolist() == [5, 2, 10]
    assert mean_over_clusters(values, [1] * 4, clusters) == pytest.approx((2.5 + 2 + 10) / 3)
    assert mean_over_clusters(values, [2, 0, 2, 5], clusters) == pytest.approx(
        (5 / 4 + 2) / 2
    )  # b has no denominator


def test_95_percent_intervals_cover_about_95_percent_and_naive_ones_do_not():
    rng = np.random.default_rng(0)
    by_sequence = by_picture = 0
    for trial in range(200):
        values, clusters = simulated(rng)
        low, high = mean_interval(values, np.ones(len(values)), clusters, seed=trial)
        by_sequence += low <= 0 <= high
        low, high = mean_interval(
            values, np.ones(len(values)), [str(i) for i in range(len(values))], seed=trial
        )
        by_picture += low <= 0 <= high
    assert 0.88 <= by_sequence / 200 <= 0.99
    assert by_picture / 200 < 0.75  # frames of one sequence are no independent pictures


def test_interval_of_a_ratio_and_what_has_none():
    rng = np.random.default_rng(1)
    weights = rng.integers(1, 9, 60).astype(float)
    values, clusters = weights * 0.5 + rng.normal(0, 0.2, 60), [str(i) for i in range(60)]
    low, high = mean_interval(values, weights, clusters)
    assert low < values.sum() / weights.sum() < high and low > 0.47 and high < 0.53
    assert mean_interval(values, weights, clusters) == (low, high)  # the same draws
    assert mean_interval(values, weights, clusters, seed=1) != (low, high)
    assert mean_interval(values, weights, ["one"] * 60) is None
    assert mean_interval([np.inf, *values[1:]], weights, clusters) is None
    assert (
        mean_interval([1, 0], [1, 0], ["a", "b"]) is None
    )  # some resamples have nothing to divide by


def test_the_interval_of_a_difference_is_paired():
    """What sequences share cancels: the same constant everywhere has an interval of no width."""
    values, clusters = simulated(np.random.default_rng(2))
    gaps = (values + 3) - values
    assert mean_interval(gaps, np.ones(len(gaps)), clusters) == pytest.approx((3, 3))


def test_an_interval_by_hand():
    """Two sequences: a resample has both (half of the time) or one of them twice."""
    low, high = mean_interval([1.0, 3.0, 10.0], [1] * 3, ["a", "a", "b"])
    assert (low, high) == pytest.approx((2.0, 10.0))


def test_p_is_uniform_where_nothing_differs():
    rng = np.random.default_rng(3)
    found = [sign_flip_p(*simulated(rng, clusters=20), flips=400, seed=i) for i in range(300)]
    for level in (0.05, 0.25, 0.5, 0.75):
        assert np.mean(np.array(found) <= level) == pytest.approx(level, abs=0.07)


def test_p_is_tiny_for_a_clear_difference_and_no_smaller_than_the_clusters_allow():
    rng = np.random.default_rng(4)
    values, clusters = simulated(rng, mean=2.0)
    assert sign_flip_p(values, clusters) == pytest.approx(1 / 10_001)
    assert sign_flip_p(-values, clusters) == sign_flip_p(values, clusters)
    few, names = simulated(rng, clusters=5, mean=50.0)
    assert sign_flip_p(few, names) == pytest.approx(
        2 / 2**5
    )  # exact: all patterns are gone through
    assert sign_flip_p([1.0] * 9, ["one"] * 9) == 1.0
    assert sign_flip_p([0.0, 0.0], ["a", "b"]) == 1.0
    assert sign_flip_p([np.inf, 1.0], ["a", "b"]) is None


def test_exact_and_drawn_patterns_agree():
    """An exact p is the share of sign patterns with a sum at least as far from 0."""
    values, clusters = simulated(np.random.default_rng(5), clusters=10, mean=0.5)
    sums = cluster_sums(values, clusters)
    patterns = np.array(list(itertools.product((-1, 1), repeat=10)))
    exact = np.mean(np.abs(patterns @ sums) >= abs(sums.sum()) * (1 - 1e-12))
    assert sign_flip_p(values, clusters) == exact
    drawn = [sign_flip_p(values, clusters, flips=1000, seed=seed) for seed in range(20)]
    assert len(set(drawn)) > 1 and np.mean(drawn) == pytest.approx(exact, abs=0.01)


def test_flipping_single_pictures_would_find_what_is_not_there():
    rng = np.random.default_rng(6)
    naive = []
    for i in range(100):
        values, _ = simulated(rng, clusters=15)
        naive.append(sign_flip_p(values, [str(i) for i in range(len(values))], flips=200, seed=i))
    assert np.mean(np.array(naive) <= 0.05) > 0.25


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []
