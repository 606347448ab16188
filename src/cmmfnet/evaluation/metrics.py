"""Picture metrics on (H,W,3) uint8 arrays, and the table of everything that is scored
(``METRICS``).

SSIM has named presets, because numbers of different windows and ranges cannot be compared. LPIPS,
which needs a network, is in learned.py. docs/evaluation.md has formulas, sources and how to read
the numbers.
"""

from __future__ import annotations

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
