"""Uncertainty of mean scores: bootstrap intervals and paired tests, both by cluster.

Frames of one fixed camera, or of one drive, are near copies of each other: taken for independent
they give intervals that are far too narrow. So whole sequences are drawn (bootstrap) or change sign
(permutation) together; a picture without sequence is its own cluster.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES, FLIPS, LEVEL = 2_000, 10_000, 0.95
_EXACT = 12  # clusters up to which all sign patterns are gone through: 4,096


def cluster_sums(values: Sequence[float], clusters: Sequence[str]) -> np.ndarray:
    """Sum of ``values`` within each cluster, in order of first appearance: (K,) float64."""
    index: dict[str, int] = {}
    places = [index.setdefault(cluster, len(index)) for cluster in clusters]
    return np.bincount(places, np.asarray(values, np.float64), len(index))


def resampled_ratios(
    numerators: Sequence[float],
    denominators: Sequence[float],
    clusters: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> np.ndarray:
    """Bootstrap distribution of sum(numerators) / sum(denominators) over resampled clusters:
    (resamples,) float64.

    Denominators of one give the mean per picture. As many clusters as there are, are drawn with
    replacement (Davison & Hinkley 1997, section 3.8). Equal clusters and seed give equal draws, so
    that the difference of two results is the paired bootstrap of the difference. NaN where a
    resample's denominators sum to 0.
    """
    top, bottom = cluster_sums(numerators, clusters), cluster_sums(denominators, clusters)
    count, rng = len(top), np.random.default_rng(seed)
    block = max(1, 2_000_000 // count)  # resamples at a time: memory
    parts = []
    for start in range(0, resamples, block):
        drawn = rng.multinomial(count, np.full(count, 1 / count), min(block, resamples - start))
        with np.errstate(invalid="ignore", divide="ignore"):
            parts.append((drawn @ top) / (drawn @ bottom))
    return np.concatenate(parts)


def percentile_interval(samples: np.ndarray, level: float = LEVEL) -> tuple[float, float] | None:
    """The middle ``level`` of a bootstrap distribution; None where a sample is not finite (a PSNR
    of equal pictures)."""
    if not np.isfinite(samples).all():
        return None
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_interval(
    numerators: Sequence[float],
    denominators: Sequence[float],
    clusters: Sequence[str],
    *,
    seed: int = 0,
) -> tuple[float, float] | None:
    """95 % bootstrap interval of a mean or ratio; None for a single cluster, whose spread nobody
    knows."""
    if len(set(clusters)) < 2 or not np.isfinite(numerators).all():
        return None
    return percentile_interval(resampled_ratios(numerators, denominators, clusters, seed=seed))


def mean_over_clusters(
    numerators: Sequence[float], denominators: Sequence[float], clusters: Sequence[str]
) -> float:
    """The mean where every sequence counts once, whatever its number of frames. Clusters without
    denominator are left out."""
    top, bottom = cluster_sums(numerators, clusters), cluster_sums(denominators, clusters)
    return (
        float(np.mean(top[bottom > 0] / bottom[bottom > 0])) if (bottom > 0).any() else float("nan")
    )


def sign_flip_p(
    differences: Sequence[float], clusters: Sequence[str], *, flips: int = FLIPS, seed: int = 0
) -> float | None:
    """Two-sided p of "the two methods are exchangeable" for paired differences, whose sign is
    flipped by whole clusters.

    Statistic: the sum of the differences. Up to 12 clusters all sign patterns are gone through, and
        p is the share whose absolute sum is at least the one found; beyond, ``flips`` random
        patterns, and p = (1 + that many) / (1 + flips) (Phipson & Smyth 2010). K clusters cannot
        give less than 2 / 2^K. None for differences that are not finite.
    """
    sums = cluster_sums(differences, clusters)
    if not np.isfinite(sums).all():
        return None
    found = abs(sums.sum()) * (1 - 1e-12)  # equal sums in another order of addition
    count = len(sums)
    if count <= _EXACT:
        signs = 1 - 2 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
        return float(np.mean(np.abs(signs @ sums) >= found))
    rng, block, extreme = np.random.default_rng(seed), max(1, 2_000_000 // count), 0
    for start in range(0, flips, block):
        signs = 1 - 2 * rng.integers(0, 2, (min(block, flips - start), count), dtype=np.int8)
        extreme += int((np.abs(signs @ sums) >= found).sum())
    return (1 + extreme) / (1 + flips)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): adjusted p values, in the order given, that keep the
    family's error rate."""
    order = np.argsort(p_values)
    adjusted, largest = [0.0] * len(order), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted
