"""Picture metrics and the evaluation protocol against explicit formulas and scikit-image."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from cmmfnet import evaluate, metrics
from cmmfnet.data.pairs import Pairs


def pictures(height=24, width=31, seed=0):
    """Two uint8 pictures that resemble each other a little."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (height, width, 3))
    return x.astype(np.uint8), np.clip(x + rng.normal(0, 40, x.shape), 0, 255).astype(np.uint8)


def test_psnr_against_its_formula_and_scikit_image():
    x, y = pictures()
    total = 0
    for a, b in zip(x.ravel().tolist(), y.ravel().tolist(), strict=True):  # Python's integers: uint8 would wrap around
        total += (a - b) ** 2
    want = 20 * math.log10(255) - 10 * math.log10(total / x.size)
    assert metrics.psnr(x, y) == pytest.approx(want, abs=1e-6)
    assert metrics.psnr(x, y) == pytest.approx(peak_signal_noise_ratio(x, y, data_range=255), abs=1e-6)


def test_psnr_of_black_and_white_is_zero_and_of_equal_pictures_infinite():
    black = np.zeros((4, 5, 3), np.uint8)
    assert metrics.psnr(black, black + 255) == 0
    assert metrics.psnr(black, black.copy()) == math.inf


def ssim_by_windows(x, y, weights, correction):
    """Equation 13 of Wang et al. (2004) at every place where the window fits, mean over places, then over channels."""
    size = len(weights)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for channel in range(3):
        a, b = (
            np.lib.stride_tricks.sliding_window_view(p[..., channel].astype(np.float64), (size, size)) for p in (x, y)
        )
        ma, mb = (a * weights).sum(axis=(2, 3)), (b * weights).sum(axis=(2, 3))
        aa, bb, ab = ((p * q * weights).sum(axis=(2, 3)) for p, q in ((a, a), (b, b), (a, b)))
        va, vb, vab = (correction * v for v in (aa - ma * ma, bb - mb * mb, ab - ma * mb))
        values.append((2 * ma * mb + c1) * (2 * vab + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2)))
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
        ("w3", uniform(3), 9 / 8, {"win_size": 3}),
        (
            "gauss-11",
            gaussian(11, 1.5),
            1,
            {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False},
        ),
    ],
)
def test_ssim_presets_against_formula_and_scikit_image(preset, weights, correction, options):
    for x, y in (pictures(), [p // 32 for p in pictures()]):  # in dark pictures the two constants count
        found = metrics.ssim(x, y, preset)
        assert found == pytest.approx(ssim_by_windows(x, y, weights, correction), abs=1e-6)
        assert found == pytest.approx(structural_similarity(x, y, channel_axis=2, data_range=255, **options), abs=1e-6)
        assert metrics.ssim(x, x.copy(), preset) == pytest.approx(1, abs=1e-12)


def test_ssim_presets_differ_and_the_default_is_the_protocols():
    x, y = pictures()
    values = {preset: metrics.ssim(x, y, preset) for preset in metrics.SSIM_PRESETS}
    assert len({round(v, 3) for v in values.values()}) == 3
    assert metrics.ssim(x, y) == values["skimage-u7"]
    with pytest.raises(ValueError, match=r"'u7'; expected one of skimage-u7, gauss-11, w3"):
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


@pytest.mark.parametrize(
    "size", [(1, 1), (3, 999), (255, 257), (257, 255), (256, 256), (480, 641), (77, 91), (513, 300)], ids=str
)
def test_centre_crop_has_its_size(size):
    rng = np.random.default_rng(0)
    assert evaluate.centre_crop(rng.integers(0, 256, (*size, 3)).astype(np.uint8), 256).shape == (256, 256, 3)
    grey = evaluate.centre_crop(rng.integers(0, 256, size).astype(np.uint8), 256)
    assert (grey.shape, grey.dtype) == ((256, 256), np.uint8)


@pytest.mark.parametrize("size", [(64, 96), (96, 64)], ids=str)
def test_centre_crop_is_the_middle(size):
    picture = np.arange(64 * 96, dtype=np.int64).reshape(size) % 251
    top, left = (size[0] - 64) // 2, (size[1] - 64) // 2
    want = picture[top : top + 64, left : left + 64].astype(np.uint8)
    assert np.array_equal(evaluate.centre_crop(picture.astype(np.uint8), 64), want)


def test_centre_crop_scales_the_short_side():
    """Halved: a grey middle square of half the side stays a middle square of half the side."""
    picture = np.zeros((128, 200), np.uint8)
    picture[32:96, 68:132] = 255
    crop = evaluate.centre_crop(picture, 64) > 127
    assert crop[17:47, 17:47].all() and crop.sum() == pytest.approx(32 * 32, rel=0.1)


def test_summary_is_means_and_a_share_of_colour():
    rows = [
        {"name": "a", "psnr": 20.0, "ssim": 0.5, "lpips": 0.2, "colourfulness": 10.0, "truth": 40.0},
        {"name": "b", "psnr": 30.0, "ssim": 0.7, "lpips": 0.6, "colourfulness": 50.0, "truth": 20.0},
    ]
    want = {"psnr": 25.0, "ssim": 0.6, "lpips": 0.4, "colour_share": 1.0}  # 60 / 60, not the mean of 1/4 and 5/2
    assert evaluate.summary(rows) == pytest.approx(want)
    without = [{k: v for k, v in row.items() if k != "lpips"} for row in rows]
    assert "lpips" not in evaluate.summary(without)


@pytest.fixture
def pairs(tmp_path):
    """Two 64x64 pictures: cold left, hot right; the colours of the halves are red and blue, then green and grey."""
    colours = {"a": [(200, 20, 10), (0, 40, 250)], "b": [(0, 180, 30), (90, 90, 90)]}
    for part in ("thermal", "visible"):
        (tmp_path / part).mkdir()
    for name, (cold, hot) in colours.items():
        thermal = np.zeros((64, 64), np.uint8)
        thermal[:, 32:] = 255
        visible = np.zeros((64, 64, 3), np.uint8)
        visible[:, :32], visible[:, 32:] = cold, hot
        Image.fromarray(thermal).save(tmp_path / "thermal" / f"{name}.png")
        Image.fromarray(visible).save(tmp_path / "visible" / f"{name}.png")
    (tmp_path / "index.jsonl").write_text("".join(json.dumps({"name": n, "source": "hand"}) + "\n" for n in colours))
    return Pairs(tmp_path)


def test_trivial_baselines_on_halves(pairs):
    baselines = evaluate.trivial_baselines(pairs, size=64)
    assert list(baselines) == ["grey replicate", "mean colour", "mean picture", "mean colour of each level"]
    thermal = np.full((64, 64), -1, np.float32)
    thermal[:, 32:] = 1
    cold, hot = [100, 100, 20], [45, 65, 170]  # means of red and green, of blue and grey
    found = {name: f(thermal, {}) for name, f in baselines.items()}
    for picture in found.values():
        assert (picture.shape, picture.dtype) == ((64, 64, 3), np.uint8)
    halves = {name: (p[:, :32].reshape(-1, 3), p[:, 32:].reshape(-1, 3)) for name, p in found.items()}
    assert (halves["grey replicate"][0] == 0).all() and (halves["grey replicate"][1] == 255).all()
    for side in halves["mean colour"]:
        assert (np.abs(side - (np.array(cold) + hot) / 2) <= 0.5).all()
    for name in ("mean picture", "mean colour of each level"):
        assert (halves[name][0] == cold).all() and (halves[name][1] == hot).all()
    # where the frame is turned round, the mean picture stays and the colours of the levels follow
    turned = {name: baselines[name](-thermal, {}) for name in ("mean picture", "mean colour of each level")}
    assert np.array_equal(turned["mean picture"], found["mean picture"])
    assert (turned["mean colour of each level"][:, :32] == hot).all()


def test_scores_of_the_truth_and_of_a_baseline(pairs, tmp_path):
    """At 256 pixels, without LPIPS, whose files are not there."""
    truths = {meta["name"]: truth for _, truth, meta in evaluate.centre_crops(pairs)}
    rows = evaluate.score(lambda thermal, meta: truths[meta["name"]], pairs, tmp_path)
    assert [(r["name"], r["source"], r["psnr"], r["ssim"]) for r in rows] == [
        ("a", "hand", math.inf, pytest.approx(1)),
        ("b", "hand", math.inf, pytest.approx(1)),
    ]
    assert all("lpips" not in r and r["colourfulness"] == r["truth"] for r in rows)
    assert evaluate.summary(rows)["colour_share"] == 1
    grey = evaluate.score(evaluate.trivial_baselines(pairs)["grey replicate"], pairs, tmp_path)
    assert evaluate.summary(grey)["colour_share"] == 0 and evaluate.summary(grey)["psnr"] < 15
