"""Two models at once: what the second gives, that a text acts as with the first alone, and how they
are named."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from fake_network import Fake, colorize
from PIL import Image
from tiny_data import write_data
from torch import nn

from cmmfnet.cli import main
from cmmfnet.colorizer.torch import SECOND, Colorizer
from cmmfnet.methods import build_network
from cmmfnet.weights.files import save_model
from cmmfnet.weights.known import ModelError, parts

CONFIG = {
    "method": "cmmfnet", "global_size": 32, "vit_depth": 1, "vit_width": 16, "vit_heads": 2,
    "channels": [8, 8, 8],
    "encoder_blocks": [0, 0, 0], "decoder_blocks": [0, 0, 0], "text": "none",
}  # fmt: skip


class Flat(nn.Module):
    """The same colour everywhere; its frames have sides that are multiples of ``multiple_of``."""

    def __init__(self, multiple_of: int = 8, fixed_size: int | None = None):
        super().__init__()
        self.multiple_of, self.fixed_size = multiple_of, fixed_size
        self.colour = nn.Parameter(torch.tensor([0.5, -0.5, 1.0]))

    def forward(self, thermal, text=None, text_mask=None):
        batch, _, height, width = thermal.shape
        assert text is None and height % self.multiple_of == width % self.multiple_of == 0
        return self.colour[None, :, None, None].expand(batch, -1, height, width)


def frame(height=20, width=30):
    return np.random.default_rng(0).integers(7000, 8000, (height, width), dtype=np.uint16)


def test_a_fifth_of_the_colours_is_the_seconds():
    alone, both = Colorizer(Fake(), device="cpu"), Colorizer(Fake(), device="cpu", second=Flat())
    first = alone(frame()).astype(float)
    flat = (np.array([0.5, -0.5, 1.0]) + 1) * 127.5
    np.testing.assert_allclose(both(frame()), first + SECOND * (flat - first), atol=1.01)


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_a_text_moves_the_colours_as_with_the_first_alone(guidance):
    def change(second):
        colorizer = Colorizer(Fake(), device="cpu", guidance=guidance, second=second)
        mixed = colorizer([frame(), frame()], text=["a car", None])  # of one batch
        return mixed[0].astype(int) - mixed[1]

    alone, both = change(None), change(Flat())
    assert abs(alone[..., 1]).min() > 20, "the text moves green"
    np.testing.assert_allclose(both, alone, atol=1)


def test_frames_are_padded_for_both_networks():
    assert Colorizer(Fake(), device="cpu", second=Flat(24))(frame()).shape == (20, 30, 3)
    with pytest.raises(ValueError, match="64x64 pixels alone"):
        Colorizer(Fake(), device="cpu", second=Flat(fixed_size=64))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_has_both(copied):
    colorizer = Colorizer(Fake(), device="cpu", second=Flat())
    np.testing.assert_array_equal(copied(colorizer)(frame()), colorizer(frame()))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        save_model(root / f"{name}.safetensors", build_network(CONFIG), CONFIG)
    return root


def test_two_models_are_named_with_a_plus(models, tmp_path):
    a, b = (Colorizer.from_pretrained(models / f"{n}.safetensors", device="cpu") for n in "ab")
    name = f"{models / 'a.safetensors'}+{models / 'b.safetensors'}"
    both = Colorizer.from_pretrained(name, device="cpu")
    assert both.name == "a+b"
    want = Colorizer(a.network, device="cpu", second=b.network)(frame())
    np.testing.assert_array_equal(both(frame()), want)
    Image.fromarray(frame()).save(tmp_path / "f.png")
    assert colorize(name, tmp_path / "f.png", "--out", tmp_path / "out.png") == 0
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out.png")), want)


def test_names_with_a_plus(tmp_path, monkeypatch):
    assert parts("cmmfnet+cmmfnet-small") == ["cmmfnet", "cmmfnet-small"]
    for wrong in ("cmmfnet+", "+cmmfnet", "a+b+c"):
        with pytest.raises(ModelError, match="or two as in cmmfnet\\+cmmfnet-small"):
            parts(wrong)
    with pytest.raises(ModelError, match="unknown model 'cmmfnet-smal'; did you mean"):
        Colorizer.from_pretrained("cmmfnet+cmmfnet-smal", device="cpu")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a+b.safetensors").touch()
    assert parts("a+b.safetensors") == ["a+b.safetensors"], "a file of that name is one model"


def test_evaluate_scores_both_and_says_so(models, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("CMMFNET_PRETRAINED", raising=False)
    entries = [{"name": "x", "split": "val", "source": "a", "lighting": "day"}]
    write_data(tmp_path / "data", entries)
    name = f"{models / 'a.safetensors'}+{models / 'b.safetensors'}"
    out = tmp_path / "out.json"
    where = ["--data", str(tmp_path / "data"), "--device", "cpu", "--json", str(out)]
    assert main(["evaluate", name, *where]) == 0
    record = json.loads(out.read_text())["methods"]["a+b"]
    assert "a+b" in capsys.readouterr().out and len(record["second"]["sha256"]) == 64
