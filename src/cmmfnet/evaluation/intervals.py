"""Uncertainty of mean scores: bootstrap intervals and paired permutation tests, by sequence.

Frames of one fixed camera or one drive are near copies of each other. Treated as independent, they
give intervals that are far too narrow. So whole sequences are resampled (bootstrap) or change sign
(permutation test); a picture without a sequence is a sequence of its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

RESAMPLES, FLIPS, LEVEL = 2_000, 10_000, 0.95
_BATCH = 2_000_000  # numbers resampled at a time, to bound memory


def cluster_sums(values: Sequence[float], clusters: Sequence[str]) -> np.ndarray:
    """Sum of ``values`` within each cluster, in order of first appearance: (K,) float64."""
    index: dict[str, int] = {}
    places = [index.setdefault(cluster, len(index)) for cluster in clusters]
    return np.bincount(places, np.asarray(values, np.float64), len(index))


def mean_interval(
    numerators: Sequence[float],
    denominators: Sequence[float],
    clusters: Sequence[str],
    *,
    seed: int = 0,
) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of sum(numerators) / sum(denominators).

    Whole clusters are drawn with replacement, 2,000 times (Davison & Hinkley 1997, section 3.8).
    With denominators of 1 the ratio is the mean per picture. Equal clusters and seed give equal
    draws. None for a single cluster, whose spread is unknown, and where a ratio is not finite (the
    PSNR of equal pictures, a resample without denominator).
    """
    from scipy.stats import DegenerateDataWarning, bootstrap

    sums = cluster_sums(numerators, clusters), cluster_sums(denominators, clusters)
    if len(sums[0]) < 2 or not np.isfinite(sums).all():
        return None
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # ratios that are not finite
        found = bootstrap(
            sums,
            lambda top, bottom, axis: top.sum(axis) / bottom.sum(axis),
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=max(1, _BATCH // len(sums[0])),
            confidence_level=LEVEL,
            method="percentile",
            random_state=seed,
        )
    if not np.isfinite(found.bootstrap_distribution).all():
        return None
    low, high = found.confidence_interval
    return float(low), float(high)


def mean_over_clusters(
    numerators: Sequence[float], denominators: Sequence[float], clusters: Sequence[str]
) -> float:
    """The mean in which every cluster counts once, whatever its number of frames.

    Clusters whose denominators sum to 0 are left out; NaN if none is left.
    """
    top, bottom = cluster_sums(numerators, clusters), cluster_sums(denominators, clusters)
    return (
        float(np.mean(top[bottom > 0] / bottom[bottom > 0])) if (bottom > 0).any() else float("nan")
    )


def sign_flip_p(
    differences: Sequence[float], clusters: Sequence[str], *, flips: int = FLIPS, seed: int = 0
) -> float | None:
    """Two-sided p of "the two methods are exchangeable", for paired differences.

    The statistic is the absolute sum of the differences; the signs of whole clusters are flipped.
    If there are at most ``flips`` patterns of signs (13 clusters by default), all are tried and p
    is the share whose statistic is at least the one found. With more clusters ``flips`` random
    patterns are drawn and p = (1 + extreme) / (1 + flips) (Phipson & Smyth 2010). K clusters cannot
    give less than 2 / 2^K. None for differences that are not finite.
    """
    from scipy.stats import permutation_test

    sums = cluster_sums(differences, clusters)
    if not np.isfinite(sums).all():
        return None
    if len(sums) < 2:
        return 1.0  # both signs have the same absolute sum
    found = permutation_test(
        (sums,),
        lambda x, axis: np.abs(x.sum(axis)),
        permutation_type="samples",
        vectorized=True,
        n_resamples=flips,
        batch=max(1, _BATCH // len(sums)),
        alternative="greater",
        random_state=seed,
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values by Holm's step-down correction (1979), in the order given."""
    order = np.argsort(p_values)
    adjusted, largest = [0.0] * len(order), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted
