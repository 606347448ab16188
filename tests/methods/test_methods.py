"""What holds for every method that CMMF-Net is compared with: it trains a step, resumes exactly,
and its model colours a frame of any size.

Each method's own test file names a network of reduced size (SMALL), losses that need no pre-trained
files (LOSSES), options (OPTIONS) and the side of its training crops (SIZE).
"""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from run_checks import equal

from cmmfnet import Colorizer
from cmmfnet.data.scenes import write_pairs
from cmmfnet.data.source import Source
from cmmfnet.methods import METHODS, method_class
from cmmfnet.training import checkpoint
from cmmfnet.training.recipe import Recipe, find_config
from cmmfnet.training.train import train

OTHERS = sorted(name for name in METHODS if not name.startswith("cmmfnet"))
PARTS = ("networks", "optimisers", "ema", "pools")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("scenes"), 4, seed=1, size=(96, 96)).parent


def recipe(name: str, **changes) -> Recipe:
    about = importlib.import_module(f"test_{name}")
    basic = {
        "model": about.SMALL, "losses": about.LOSSES, "options": getattr(about, "OPTIONS", {}),
        "size": about.SIZE,
        "sources": [Source(".", split="train")], "steps": 2, "batch_size": 2,
        "learning_rate": 1e-4, "log_every": 1,
    }  # fmt: skip
    return Recipe(**(basic | changes))


def run(data: Path, out: Path, config: Recipe, **more) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as SCGAN's, that its saliency is an estimate
        train(config=config, data=data, out=out, device="cpu", workers=0, **more)


@pytest.mark.parametrize("name", OTHERS)
def test_it_trains_resumes_exactly_and_colours(data, tmp_path, name):
    run(data, tmp_path / "straight", recipe(name))
    run(data, tmp_path / "parts", recipe(name), max_steps=1)
    torch.manual_seed(99)
    run(data, tmp_path / "parts", recipe(name))
    one, two = (checkpoint.load(tmp_path / out / "step-2.pt") for out in ("straight", "parts"))
    assert {part: equal(one[part], two[part]) for part in PARTS} == dict.fromkeys(PARTS, True)
    assert one["networks"].keys() >= {
        n for names in method_class(name).optimisers.values() for n in names
    }
    before = checkpoint.load(tmp_path / "parts" / "step-2.pt")["networks"]["generator"]
    assert all(torch.isfinite(v).all() for v in before.values())

    colorizer = Colorizer.from_pretrained(
        tmp_path / "straight" / "model.safetensors", device="cpu", dtype=torch.float32
    )
    frame = np.random.default_rng(0).integers(0, 255, (45, 70), dtype=np.uint8)
    colour = colorizer(frame)
    assert colour.shape == (45, 70, 3) and colour.dtype == np.uint8
    assert np.array_equal(colour, colorizer(frame))  # evaluation draws nothing


@pytest.mark.parametrize("name", [n for n in OTHERS if n not in ("palette", "i2vgan")])
def test_our_losses_train_its_network_too(data, tmp_path, name):
    """What `--recipe matched` does, at a reduced size and without the losses that need files."""
    losses = {"l1": 2.0, "ssim": 0.5, "adversarial": 0.015}
    run(data, tmp_path, recipe(name, training="matched", losses=losses, options={}))
    assert checkpoint.load(tmp_path / "step-2.pt")["optimisers"].keys() == {
        "generator",
        "discriminator",
    }


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_configuration_comes_with_it(name):
    from cmmfnet.training.recipe import read_recipe

    own = read_recipe(find_config(name))
    assert own.model["method"] == name and own.training is None
    assert set(own.losses) <= set(method_class(name).LOSSES)
