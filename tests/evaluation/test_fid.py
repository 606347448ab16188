"""FID with a small network in the place of Inception-v3, and its distance by other formulas."""

from __future__ import annotations

import json
import sys
import types
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from tiny_data import write_data
from torch import nn

from cmmfnet.cli import main
from cmmfnet.data.pairs import Pairs
from cmmfnet.evaluation import fid
from cmmfnet.nn.perceptual import PretrainedError


class Network(nn.Module):
    """Called as torch-fidelity's Inception-v3 is: uint8 pictures -> a tuple of features."""

    def __init__(self, name: str, features: list[str]):
        super().__init__()
        assert features == ["2048"]
        self.weights = nn.Parameter(torch.linspace(-1, 1, 3 * 16).view(3, 16))

    def forward(self, x):
        assert x.dtype == torch.uint8 and x.shape[1] == 3
        means = nn.functional.adaptive_avg_pool2d(x.float() / 255, 2)
        return ((means.flatten(2).transpose(1, 2) @ self.weights).sin().flatten(1),)


@pytest.fixture
def library(monkeypatch):
    made = types.ModuleType("torch_fidelity")
    made.FeatureExtractorInceptionV3 = Network
    monkeypatch.setitem(sys.modules, "torch_fidelity", made)
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    entries = [{"name": f"t{i}", "split": "train", "lighting": "day"} for i in range(3)]
    entries += [{"name": f"v{i}", "split": "val", "lighting": "day"} for i in range(5)]
    return write_data(tmp_path_factory.mktemp("pairs"), entries)


def written(folder, pairs, change):
    folder.mkdir()
    for i in range(len(pairs)):
        Image.fromarray(change(pairs[i].visible)).save(folder / f"{pairs[i].name}.png")
    return folder


def ask(folder, data, *more):
    how = ("--device", "cpu", "--geometry", "whole")
    return main(["evaluate", str(folder), "--data", str(data), *how, *map(str, more)])


@pytest.mark.parametrize("counts", [(40, 60), (5, 7), (30, 4)], ids=str)
def test_the_distance_is_that_of_the_roots_of_matrices(counts):
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(8, 8))
    x, y = rng.normal(size=(counts[0], 8)) @ mix, rng.normal(1, 2, size=(counts[1], 8))
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    wide = [m + 1e-9 * np.eye(8) for m in (a, b)]  # sqrtm needs full rank
    root = np.trace(sqrtm(wide[0] @ wide[1])).real
    expected = np.square(x.mean(axis=0) - y.mean(axis=0)).sum() + np.trace(a + b) - 2 * root
    assert fid.frechet_distance(x, y) == pytest.approx(expected, rel=1e-3)


def test_the_distance_of_known_normal_distributions():
    x = np.array([[-1.0, 0], [1, 0], [0, -1], [0, 1]])  # means 0, variances 2/3, no covariance
    assert fid.frechet_distance(x, x) == pytest.approx(0, abs=1e-12)
    assert fid.frechet_distance(x, x + np.array([3, 4])) == pytest.approx(25)
    assert fid.frechet_distance(x, 3 * x) == pytest.approx(2 * (2 / 3) * (3 - 1) ** 2)


def test_truth_has_none_and_others_what_their_features_give(library, data, tmp_path):
    pairs = Pairs(data, "val")
    same = written(tmp_path / "same", pairs, lambda x: x)
    dark = written(tmp_path / "dark", pairs, lambda x: x // 3)
    found = {}
    for folder in (same, dark):
        out = tmp_path / f"{folder.name}.json"
        with pytest.warns(UserWarning, match="FID of 5 frames"):
            assert not ask(folder, data, "--metrics", "psnr,fid", "--json", out)
        found[folder.name] = json.loads(out.read_text())
    cells = found["dark"]["scores"]["all"]
    assert found["same"]["scores"]["all"]["same"]["fid"]["mean"] == pytest.approx(0, abs=1e-9)
    network = Network("", ["2048"])
    features = [
        np.stack([
            network(torch.tensor(change(pairs[i].visible)).permute(2, 0, 1)[None])[0][0]
            .detach().numpy() for i in range(5)
        ])
        for change in (lambda x: x, lambda x: x // 3)
    ]  # fmt: skip
    expected = fid.frechet_distance(*features)
    assert cells["dark"]["fid"]["mean"] == pytest.approx(expected, rel=1e-4) and expected > 0.01
    assert cells["dark"]["fid"]["low"] is None and "mean colour" in cells
    assert cells["mean colour"]["fid"]["mean"] > 0
    assert not any("fid" in row for row in found["dark"]["pictures"]["dark"])

    both = tmp_path / "both.json"
    files = [str(tmp_path / f"{name}.json") for name in found]
    assert not main(["compare", *files, "--json", str(both)])
    scores = json.loads(both.read_text())["scores"]
    assert scores["dark"]["fid"] == cells["dark"]["fid"]


def test_a_video_has_one_too(library, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for kind in ("thermal", "colours", "truth"):
        (tmp_path / kind).mkdir()
        for i in range(4):
            shape = (32, 40) if kind == "thermal" else (32, 40, 3)
            pixels = rng.integers(0, 256 if kind == "truth" else 99, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / kind / f"{i}.png")
    clip = ["evaluate", tmp_path / "colours", "--thermal", tmp_path / "thermal", "--truth"]
    clip += [tmp_path / "truth", "--metrics", "fid,psnr", "--device", "cpu", "--json"]
    assert main([*map(str, clip), str(tmp_path / "r.json")]) == 0
    scores = json.loads((tmp_path / "r.json").read_text())["scores"]
    assert scores["colours"]["fid"] > 0.01
    assert scores["truth"]["fid"] == pytest.approx(0, abs=1e-9)
    for option in (["--preset", "lkat"], ["--lighting", "day"], ["--geometry", "whole"]):
        assert main([*map(str, clip), str(tmp_path / "r.json"), *option]) == 2
        assert f"{option[0]} is for pairs" in capsys.readouterr().err


def test_pictures_of_several_sizes_and_more_than_a_batch():
    seen = []
    made = fid.Fid(lambda x: seen.append(len(x)) or x.float().mean(dim=(2, 3)))
    for i in range(40):
        for name in (fid.Fid.TRUTH, "a"):
            made.add(name, np.full((4, 4 + i // 30, 3), i, np.uint8))
    assert made.distance("a") == pytest.approx(0, abs=1e-9)
    assert sum(seen) == 80 and max(seen) <= 32
    assert made.features["a"][35] == pytest.approx([35, 35, 35])


def test_without_the_library_or_its_weights(library, data, tmp_path, monkeypatch, capsys):
    def offline(*_):
        raise URLError("no route to host")

    library.FeatureExtractorInceptionV3 = offline
    with pytest.raises(PretrainedError, match=r"Inception-v3: .*no route to host"):
        fid.inception("cpu")
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    folder = written(tmp_path / "mine", Pairs(data, "val"), lambda x: x)
    with pytest.warns(UserWarning, match="FID of 5 frames"):
        assert ask(folder, data, "--metrics", "fid") == 2
    assert "pip install 'cmmfnet[fid]'" in capsys.readouterr().err
