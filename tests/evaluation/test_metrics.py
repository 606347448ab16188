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
from cmmfnet.files.errors import UserError
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
    for metric in METRICS.values():
        assert metric.title and metric.meaning and metric.decimals >= 1
    together = {name for name, metric in METRICS.items() if not metric.values}
    assert together == {"fid"}  # all pictures have it together


# --- colour difference


def test_delta_e_against_published_pairs_and_by_way_of_srgb():
    """Sharma, Wu & Dalal (2005), pairs 1, 7, 17 and 25 of their table; then white against black,
    which is 100."""
    pairs = [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425), ((50, 0, 0), (50, -1, 2), 2.3669),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ]  # fmt: skip
    for one, other, want in pairs:
        assert deltaE_ciede2000(np.array(one), np.array(other)) == pytest.approx(want, abs=1e-4)
    white = np.full((2, 3, 3), 255, np.uint8)
    assert metrics.delta_e(white, white * 0) == pytest.approx(100, abs=1e-2)
    half = white.copy()
    half[0] = 0
    assert metrics.delta_e(white, half) == pytest.approx(50, abs=1e-2)  # the mean over pixels
    assert metrics.delta_e(half, half) == 0


# --- edges


def scene(seed=0, size=(48, 60)):
    """Smooth blobs with a few hard edges: (H,W) uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    picture = 90 + 40 * np.sin(x / 7 + seed) + 30 * np.cos(y / 5) + rng.normal(0, 4, size)
    picture[10:30, 20:45] += 60
    return np.clip(picture, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("high", [0.02, 0.1, 0.3, 0.7, 0.99])
def test_edges_are_those_of_canny(high):
    """scikit-image's, given the same thresholds in its own units."""
    picture = scene()
    largest = gradient_maxima(picture).max()
    want = canny(
        picture / 255,
        sigma=2**0.5,
        low_threshold=high / 2 * largest,
        high_threshold=high * largest,
        mode="nearest",
    )
    assert want.any() and np.array_equal(edges.edge_maps(picture)[round(high * 100) - 1], want)


def test_apce_is_the_mean_recall_over_99_thresholds():
    thermal, other = scene(), scene(3)
    picture = np.repeat(other[..., None], 3, axis=2)
    a, b = edges.edge_maps(thermal), edges.edge_maps(other)
    assert a.shape == (99, 48, 60) and a[0].sum() > a[50].sum() > 0
    want = np.mean([(x & y).sum() / x.sum() for x, y in zip(a, b, strict=True)])
    assert edges.apce(thermal, picture) == pytest.approx(want) and 0 < want < 1
    assert edges.apce(thermal, np.repeat(thermal[..., None], 3, axis=2)) == 1
    assert (
        edges.apce(thermal, np.repeat(255 - thermal[..., None], 3, axis=2)) == 1
    )  # edges have no sign
    assert edges.apce(thermal, np.full((48, 60, 3), 90, np.uint8)) == 0
    assert edges.apce(np.full((48, 60), 90, np.uint8), picture) is None


# --- time


def test_flicker_counts_change_that_the_truth_does_not_have_where_it_stands_still():
    before, truth = np.full((4, 4, 3), 100, np.uint8), np.full((4, 4, 3), 104, np.uint8)
    truth[0] = 180  # moves: not counted
    assert metrics.flicker(truth, before, truth, before) == 0
    output = before.copy()
    assert (
        metrics.flicker(output, before, truth, before) == 4
    )  # the truth drifts by 4, the output does not
    output[1:, :2] += 24
    assert metrics.flicker(output, before, truth, before) == pytest.approx((6 * 20 + 6 * 4) / 12)
    output[0] = 0
    assert metrics.flicker(output, before, truth, before) == pytest.approx(12)
    one_channel = before.copy()
    one_channel[..., 2] += metrics.STATIC + 1
    assert metrics.flicker(output, before, one_channel, before) is None


# --- LPIPS on the real weights

WEIGHTS = Path(os.environ.get("CMMFNET_PRETRAINED") or ROOT.parent / "shared" / "weights")


def texture(seed):
    y, x = np.mgrid[:96, :112]
    waves = np.stack(
        [127 + 100 * np.sin(x / (5 + c + seed) + y / (9 - c)) for c in range(3)], axis=-1
    )
    return np.clip(
        np.round(waves + np.random.default_rng(seed).normal(0, 12, waves.shape)), 0, 255
    ).astype(np.uint8)


@pytest.mark.parametrize(
    ("network", "want"),
    # the PyPI package lpips 0.1.4 with the same (float16) convolutions, run once
    [("alex", (0.112763, 0.981814, 0.969736)), ("vgg16", (0.333696, 0.925501, 0.914359))],
)
def test_lpips_check_values(network, want):
    if not all((WEIGHTS / f).is_file() for f in (HEADS[network][0], *FILES[network][0])):
        pytest.skip(
            f"no pre-trained {network} and LPIPS heads in {WEIGHTS} (set CMMFNET_PRETRAINED)"
        )
    a, b, grey = texture(1), texture(2), np.full((96, 112, 3), 90, np.uint8)
    assert (
        int(a.sum()) == 4093132 and int(b.sum()) == 4084136
    )  # the pictures that the values belong to
    distance = learned.Lpips(WEIGHTS, network)
    assert [distance(a, b), distance(a, grey), distance(b, grey)] == pytest.approx(want, abs=1e-3)
    assert distance(a, a) == 0


def test_a_folder_of_pretrained_files_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.delenv("CMMFNET_PRETRAINED", raising=False)
    assert learned.pretrained_folder() is None and not learned.Lpips.at_hand(tmp_path)
    with pytest.raises(UserError, match=r"no folder .*gone of pre-trained files \(--pretrained\)"):
        learned.Lpips.at_hand(tmp_path / "gone")
    monkeypatch.setenv("CMMFNET_PRETRAINED", str(tmp_path / "away"))
    with pytest.raises(UserError, match=r"no folder .*away .*\(CMMFNET_PRETRAINED\)"):
        learned.pretrained_folder()
    assert learned.pretrained_folder(tmp_path) == tmp_path
