"""Picture metrics on (H,W,3) uint8 arrays, and the table of everything that is scored
(``METRICS``).

SSIM has named presets, because numbers of different windows and ranges cannot be compared. LPIPS,
which needs a network, is in learned.py. docs/evaluation.md has formulas, sources and how to read
the numbers.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass

import numpy as np

from cmmfnet.files.errors import UserError


@dataclass(frozen=True)
class Metric:
    """One column of a table.

    ``better`` is "higher", "lower", "near 1" or "" (no direction). The
    value over a set of pictures is the sum of ``values`` divided by the sum of ``per`` in the
    pictures' rows, where "" counts pictures: a mean. ``values`` "" is a metric of all pictures
    together, which single pictures do not have.
    """

    title: str
    better: str
    decimals: int
    unit: str
    meaning: str
    values: str
    per: str = ""


METRICS: dict[str, Metric] = {
    "psnr": Metric("PSNR", "higher", 2, "dB", "peak signal-to-noise ratio, peak 255", "psnr"),
    "ssim": Metric(
        "SSIM", "higher", 3, "", "structural similarity, preset in the protocol", "ssim"
    ),
    "lpips": Metric("LPIPS", "lower", 3, "", "LPIPS v0.1, AlexNet", "lpips"),
    "lpips_vgg": Metric("LPIPS VGG", "lower", 3, "", "LPIPS v0.1, VGG-16", "lpips_vgg"),
    "delta_e": Metric("Delta E", "lower", 2, "CIEDE2000", "mean colour difference", "delta_e"),
    "colourfulness": Metric(
        "colourf.", "", 1, "", "Hasler & Suesstrunk M3 of the output", "colourfulness"
    ),
    "colour_share": Metric(
        "colour", "near 1", 2, "", "colourfulness over that of the truth", "colourfulness", "truth"
    ),
    "apce": Metric(
        "APCE",
        "higher",
        3,
        "",
        "share of thermal edges that the output has, 99 Canny thresholds",
        "apce",
    ),
    "flicker": Metric(
        "flicker",
        "lower",
        2,
        "levels",
        "change between frames where the truth stands still",
        "flicker",
    ),
    "still_flicker": Metric(
        "still flicker",
        "lower",
        2,
        "levels",
        "change between frames where the thermal frame stands still",
        "still_flicker",
    ),
    "warping_error": Metric(
        "warping error",
        "lower",
        6,
        "",
        "mean square of the change along the thermal frames' motion, scale 0 to 1",
        "warping_error",
    ),
    "niqe": Metric(
        "NIQE", "lower", 2, "", "distance from photographs' statistics, without truth", "niqe"
    ),
    "fid": Metric(
        "FID", "lower", 1, "", "Frechet distance to the truths in Inception-v3, all frames", ""
    ),
}


TEMPORAL = ("flicker", "still_flicker", "warping_error")
"""Metrics of a frame and the frame before it."""


def without_value(asked: Iterable[str], found: Container[str]) -> str:
    """One line for each metric that was asked for and that no frame has, as text; "" for none."""
    needs = dict.fromkeys(TEMPORAL, "two frames after one another in one scene")
    needs["niqe"] = "two patches of 96x96 pixels in a frame, not flat"
    return "\n".join(
        f"no {METRICS[name].title}: it needs {needs.get(name, 'other frames')} (docs/evaluation.md)"
        for name in asked
        if name not in found
    )


def _check(*pictures: np.ndarray) -> None:
    for a in pictures:
        if a.dtype != np.uint8 or a.ndim != 3 or a.shape[2] != 3:
            raise ValueError(f"found {a.dtype} {a.shape}; expected uint8 (H, W, 3)")
        if a.shape != pictures[0].shape:
            raise ValueError(f"pictures differ in size: {pictures[0].shape} and {a.shape}")


def psnr(x: np.ndarray, y: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, peak 255, mean squared error over all channels; inf for
    equal pictures."""
    _check(x, y)
    error = np.mean((x.astype(np.float64) - y.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


SSIM_PRESETS: dict[str, dict] = {
    "skimage-u7": {"win_size": 7},  # scikit-image's default: 7x7 uniform window, per channel
    "gauss-11": {
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
        "win_size": 11,
    },
}


def ssim(x: np.ndarray, y: np.ndarray, preset: str = "skimage-u7") -> float:
    """Structural similarity by scikit-image on uint8 (range 255), per channel, in one of
    ``SSIM_PRESETS``.

    Wang et al., IEEE TIP 2004, equation 13, at every place where the window fits. Raises
    :class:`UserError` for another preset.
    """
    from skimage.metrics import structural_similarity

    _check(x, y)
    if preset not in SSIM_PRESETS:
        raise UserError(f"preset is {preset!r}; expected one of {', '.join(SSIM_PRESETS)}")
    return float(
        structural_similarity(x, y, channel_axis=2, data_range=255, **SSIM_PRESETS[preset])
    )


def colourfulness(x: np.ndarray) -> float:
    """Hasler & Suesstrunk 2003, M3: deviation + 0.3 mean of the opponent axes R-G and (R+G)/2-B, on
    0..255."""
    _check(x)
    r, g, b = (x[..., i].astype(np.float64) for i in range(3))
    rg, yb = r - g, (r + g) / 2 - b
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))


def delta_e(x: np.ndarray, y: np.ndarray) -> float:
    """Mean CIEDE2000 difference (Sharma et al. 2005) of sRGB pictures under D65. A difference of
    about 1 is just noticeable."""
    from skimage.color import deltaE_ciede2000, rgb2lab

    _check(x, y)
    return float(deltaE_ciede2000(rgb2lab(x), rgb2lab(y)).mean())


STATIC = 10
"""Grey levels by which a pixel may change from frame to frame, in any channel, and still counts as
static."""
LEAST_STATIC = 0.01
"""Share of static pixels below which a pair of frames has no flicker value."""


def flicker(
    x: np.ndarray, before: np.ndarray, truth: np.ndarray, truth_before: np.ndarray
) -> float | None:
    """Change of the output between two frames that the truth does not have, where the truth is
    static.

    Mean of ``|(x - before) - (truth - truth_before)|`` over channels and over the pixels whose true
    colour changes by at most ``STATIC`` levels in every channel; in levels of 255, 0 for the truth
    itself. No motion is estimated: with a fixed camera these are the static parts of the scene,
    with a moving one the parts that happen to keep their colour. None if fewer than
    ``LEAST_STATIC`` of the pixels are static.
    """
    _check(x, before, truth, truth_before)
    change, true_change = (a.astype(np.int16) - b for a, b in ((x, before), (truth, truth_before)))
    static = np.abs(true_change).max(axis=2) <= STATIC
    if static.mean() < LEAST_STATIC:
        return None
    return float(np.abs(change - true_change)[static].mean())
