"""Metrics against explicit formulas, scikit-image and the reference implementation of LPIPS."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
from skimage.color import deltaE_ciede2000
from skimage.feature import canny
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from cmmfnet.evaluation import edges, learned, metrics
from cmmfnet.evaluation.metrics import METRICS, TEMPORAL
from cmmfnet.nn.edges import gradient_maxima
from cmmfnet.nn.perceptual import FILES, HEADS

ROOT = Path(__file__).parents[2]


def pictures(height=24, width=31, seed=0):
    """Two uint8 pictures that resemble each other a little."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (height, width, 3))
    return x.astype(np.uint8), np.clip(x + rng.normal(0, 40, x.shape), 0, 255).astype(np.uint8)


def test_psnr_against_its_formula_and_scikit_image():
    x, y = pictures()
    total = 0
    for a, b in zip(
        x.ravel().tolist(), y.ravel().tolist(), strict=True
    ):  # Python's integers: uint8 would wrap around
        total += (a - b) ** 2
    want = 20 * math.log10(255) - 10 * math.log10(total / x.size)
    assert metrics.psnr(x, y) == pytest.approx(want, abs=1e-6)
    assert metrics.psnr(x, y) == pytest.approx(
        peak_signal_noise_ratio(x, y, data_range=255), abs=1e-6
    )


def test_psnr_of_black_and_white_is_zero_and_of_equal_pictures_infinite():
    black = np.zeros((4, 5, 3), np.uint8)
    assert metrics.psnr(black, black + 255) == 0
    assert metrics.psnr(black, black.copy()) == math.inf


def ssim_by_windows(x, y, weights, correction):
    """Equation 13 of Wang et al. (2004) at every place where the window fits, mean over places,
    then over channels."""
    size = len(weights)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for channel in range(3):
        a, b = (
            np.lib.stride_tricks.sliding_window_view(
                p[..., channel].astype(np.float64), (size, size)
            )
            for p in (x, y)
        )
        ma, mb = (a * weights).sum(axis=(2, 3)), (b * weights).sum(axis=(2, 3))
        aa, bb, ab = ((p * q * weights).sum(axis=(2, 3)) for p, q in ((a, a), (b, b), (a, b)))
        va, vb, vab = (correction * v for v in (aa - ma * ma, bb - mb * mb, ab - ma * mb))
        values.append(
            (2 * ma * mb + c1) * (2 * vab + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2))
        )
    return np.mean(values)


def uniform(size):
    return np.full((size, size), size**-2.0)


def gaussian(size, sigma):
    line = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * sigma**2))
    return np.outer(line, line) / line.sum() ** 2


@pytest.mark.parametrize(
    ("preset", "weights", "correction", "options"),
    [
        ("skimage-u7", uniform(7), 49 / 48, {}),
        (
            "gauss-11",
            gaussian(11, 1.5),
            1,
            {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False},
        ),
    ],
)
def test_ssim_presets_against_formula_and_scikit_image(preset, weights, correction, options):
    for x, y in (
        pictures(),
        [p // 32 for p in pictures()],
    ):  # in dark pictures the two constants count
        found = metrics.ssim(x, y, preset)
        assert found == pytest.approx(ssim_by_windows(x, y, weights, correction), abs=1e-6)
        assert found == pytest.approx(
            structural_similarity(x, y, channel_axis=2, data_range=255, **options), abs=1e-6
        )
        assert metrics.ssim(x, x.copy(), preset) == pytest.approx(1, abs=1e-12)


def test_ssim_presets_differ_and_the_default_is_the_protocols():
    x, y = pictures()
    values = {preset: metrics.ssim(x, y, preset) for preset in metrics.SSIM_PRESETS}
    assert len({round(v, 3) for v in values.values()}) == 2
    assert metrics.ssim(x, y) == values["skimage-u7"]
    with pytest.raises(ValueError, match=r"'u7'; expected one of skimage-u7, gauss-11"):
        metrics.ssim(x, y, "u7")


@pytest.mark.parametrize("metric", [metrics.psnr, metrics.ssim])
def test_two_pictures_have_to_be_of_one_size_and_uint8(metric):
    x, y = pictures()
    for wrong in (x.astype(np.float32), x[..., 0], x[..., :1], x.transpose(2, 0, 1)):
        with pytest.raises(ValueError, match=r"expected uint8 \(H, W, 3\)"):
            metric(wrong, y)
        with pytest.raises(ValueError, match=r"expected uint8 \(H, W, 3\)"):
            metric(x, wrong)
    with pytest.raises(ValueError, match="differ in size"):
        metric(x, y[1:])


def test_colourfulness_by_hand():
    """Hasler & Suesstrunk on four pixels: red, blue, grey and yellow."""
    x = np.array([[[255, 0, 0], [0, 0, 255]], [[90, 90, 90], [200, 180, 20]]], np.uint8)
    rg = [255, 0, 0, 20]
    yb = [127.5, -255, 0, 170]

    def mean(v):
        return sum(v) / 4

    def variance(v):
        return sum((a - mean(v)) ** 2 for a in v) / 4

    want = math.sqrt(variance(rg) + variance(yb)) + 0.3 * math.sqrt(mean(rg) ** 2 + mean(yb) ** 2)
    assert metrics.colourfulness(x) == pytest.approx(want, abs=1e-9)


def test_colourfulness_of_grey_is_zero_and_of_other_arrays_an_error():
    assert metrics.colourfulness(np.repeat(pictures()[0][..., :1], 3, axis=2)) == 0
    with pytest.raises(ValueError, match="expected uint8"):
        metrics.colourfulness(pictures()[0][..., 0])


def test_every_metric_says_which_way_is_better():
    assert {metric.better for metric in METRICS.values()} == {"higher", "lower", "near 1", ""}
    lower = {name for name, metric in METRICS.items() if metric.better == "lower"}
    assert lower == {"lpips", "lpips_vgg", "delta_e", "niqe", "fid"} | set(TEMPORAL)
