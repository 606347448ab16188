"""NIQE: values of another implementation, and that distortions raise it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image, ImageFilter
from tiny_data import write_data

from cmmfnet.cli import main
from cmmfnet.evaluation.niqe import niqe


def photograph(height: int = 240, width: int = 320, seed: int = 0) -> np.ndarray:
    """A picture with the spectrum of photographs, 1/f, and blocks with edges on it."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij")
    spectrum = np.fft.fft2(rng.normal(size=(height, width))) / np.maximum(np.hypot(x, y), 1e-3)
    grey = np.fft.ifft2(spectrum).real
    grey = 128 + 45 * (grey - grey.mean()) / grey.std()
    for _ in range(12):
        top, left = rng.integers(height - 40), rng.integers(width - 40)
        grey[top : top + rng.integers(10, 40), left : left + rng.integers(10, 40)] += rng.normal(
            0, 40
        )
    return np.repeat(grey.clip(0, 255).round().astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize(("seed", "expected"), [(0, 6.643), (1, 6.868)])
def test_the_value_of_another_implementation(seed, expected):
    """BasicSR 1.4.2, which follows the authors' MATLAB code; it reduces pictures by another
    bicubic filter, hence the tolerance."""
    assert niqe(photograph(seed=seed)) == pytest.approx(expected, abs=0.1)


def test_distortions_raise_it():
    plain = photograph()
    noise = np.random.default_rng(1).normal(0, 25, plain.shape[:2])[..., None]
    noisy = (plain + noise).clip(0, 255).astype(np.uint8)
    blurred = np.asarray(Image.fromarray(plain).filter(ImageFilter.GaussianBlur(3)))
    assert niqe(plain) + 1 < min(niqe(noisy), niqe(blurred))


@pytest.mark.parametrize(
    "picture",
    [np.zeros((100, 190, 3), np.uint8), np.full((256, 256, 3), 90, np.uint8)],
    ids=["one patch", "flat"],
)
def test_pictures_without_a_value(picture):
    assert niqe(picture) is None


def test_night_frames_are_scored_without_their_truth(tmp_path, capsys):
    """The score of a folder of predictions does not depend on the true pictures."""
    entries = [
        {"name": f"n{i}", "split": "val", "lighting": "night", "sequence": f"s{i}"}
        for i in range(2)
    ]
    data = write_data(tmp_path / "pairs", entries, size=(210, 200))
    folder = tmp_path / "mine"
    folder.mkdir()
    for i in range(2):
        Image.fromarray(photograph(210, 200, i)).save(folder / f"n{i}.png")
    out = tmp_path / "mine.json"
    with pytest.warns(UserWarning, match="no trivial baselines"):
        how = ("--lighting", "night", "--metrics", "niqe", "--geometry", "whole", "--device", "cpu")
        assert not main(["evaluate", str(folder), "--data", str(data), *how, "--json", str(out)])
    found = json.loads(out.read_text())["scores"]["all"]["mine"]["niqe"]
    assert found["mean"] == pytest.approx(np.mean([niqe(photograph(210, 200, i)) for i in (0, 1)]))
    assert "NIQE" in capsys.readouterr().out
