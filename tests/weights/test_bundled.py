"""The released model, as users get it: it loads, colours, says what it sees and is what the table
says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation

from cmmfnet import Colorizer
from cmmfnet.data.made.lab import to_lab
from cmmfnet.data.scenes import render
from cmmfnet.evaluation.metrics import colourfulness, psnr
from cmmfnet.text.labels import CLASSES
from cmmfnet.weights.files import describe
from cmmfnet.weights.known import BUNDLED, KNOWN

GROUND = ["grass", "terrain", "road", "pavement"]
LIMIT = 32 * 2**20  # of all bundled weights together: they travel with every clone


@pytest.fixture(scope="module")
def colorizer() -> Colorizer:
    return Colorizer.from_pretrained(device="cpu")


@pytest.fixture(scope="module")
def scenes():
    return [
        render(seed, kind, size=(256, 320), lighting="day")
        for seed, kind in ((3, "street"), (6, "house"), (4, "park"))
    ]


def grey(scene) -> np.ndarray:
    frame = scene.thermal.astype(float)
    low, high = np.percentile(frame, [1, 99])
    level = np.clip((frame - low) / (high - low) * 255, 0, 255).round().astype(np.uint8)
    return np.repeat(level[..., None], 3, axis=2)


def test_the_bundled_files_are_those_of_the_table_and_stay_small():
    files = sorted(p.name for p in BUNDLED.glob("*.safetensors"))
    assert files == sorted(known.file for known in KNOWN.values())
    assert sum(p.stat().st_size for p in BUNDLED.glob("*")) <= LIMIT


def test_the_model_describes_itself():
    facts = describe("cmmfnet")
    assert facts["method"] == "cmmfnet" and facts["storage"] == "int8"
    assert 28_000_000 < facts["parameters"] < 29_000_000
    assert "research" in facts["licence"]
    assert facts["training"]["recipe"]["sources"] and facts["training"]["data"]


def test_no_clip_vectors_travel_with_the_model(colorizer):
    """Their width is 512; the released table is folded through the learned projection, so text
    needs no CLIP."""
    assert colorizer.network.word_vectors.shape == (177, colorizer.network.text_width)
    assert colorizer.network.text_width < 512 and isinstance(
        colorizer.network.text_projection, torch.nn.Identity
    )


def test_colours_are_nearer_to_the_truth_than_grey_and_mean_colour(colorizer, scenes):
    """Rendered scenes are held out: training used seeds from 10,000 on."""
    for scene in scenes:
        colour = colorizer(scene.thermal)
        mean = np.broadcast_to(
            scene.visible.mean(axis=(0, 1)).round().astype(np.uint8), scene.visible.shape
        )
        assert colour.shape == scene.visible.shape and colour.dtype == np.uint8
        assert psnr(colour, scene.visible) > psnr(grey(scene), scene.visible) + 2
        assert psnr(colour, scene.visible) > psnr(np.ascontiguousarray(mean), scene.visible)
        assert colourfulness(colour) > 0.4 * colourfulness(scene.visible)


@pytest.mark.parametrize(
    ("kind", "seed", "names", "old", "new"),
    [("street", 3, ["car"], "a grey car", "a red car"),
     ("park", 4, GROUND, "grass, a path", "snow"),
     ("street", 3, GROUND, "a road", "snow"),
     ("park", 4, ["vegetation"], "green trees", "orange trees")],
)  # fmt: skip
def test_words_act_where_their_thing_is(colorizer, kind, seed, names, old, new):
    """The region takes the colour, and the rest stays: in CIELAB, far more of it there than
    elsewhere."""
    scene = render(seed, kind, size=(256, 320), lighting="day")
    inside = np.isin(scene.labels, [CLASSES.index(name) for name in names])
    before, after = (to_lab(colorizer(scene.thermal, text=f"{text}, day")) for text in (old, new))
    change = after[inside].mean(axis=0) - before[inside].mean(axis=0)
    if new == "snow":
        assert (
            change[0] > 25 and np.hypot(*after[inside].mean(axis=0)[1:]) < 12
        )  # bright and without colour
    else:
        assert change[1] > 15  # towards red
    far = ~binary_dilation(inside, iterations=12)
    assert np.linalg.norm(after - before, axis=-1)[far].mean() < 0.2 * np.linalg.norm(change)


def test_half_precision_on_the_cpu_stays_close(colorizer, scenes):
    exact = Colorizer.from_pretrained(device="cpu", dtype=torch.float32)
    difference = np.abs(
        colorizer(scenes[0].thermal).astype(int) - exact(scenes[0].thermal).astype(int)
    )
    assert difference.mean() < 1.0


@pytest.mark.parametrize("shape", [(1, 1), (1, 37), (33, 17), (120, 160), (256, 256)])
def test_any_size_comes_back_at_its_size(colorizer, shape):
    frame = (np.random.default_rng(0).random(shape) * 60000).astype(np.uint16)
    assert colorizer(frame).shape == (*shape, 3)


def test_it_says_what_it_sees(colorizer, scenes):
    names = [name for name, _ in colorizer.tags(scenes[0].thermal, top=10)]
    assert {"road", "sky-other"} <= set(names)
    assert "road" not in [name for name, p in colorizer.tags(scenes[2].thermal, top=177) if p > 0.9]


def test_text_is_accepted_without_clip(colorizer, scenes):
    colour = colorizer(
        scenes[1].thermal, text="a brick house, a hedge and a lawn under a cloudy sky"
    )
    assert colour.shape == scenes[1].visible.shape


def test_night_is_dark_when_the_text_says_so_and_shapes_stay(colorizer, scenes):
    for scene in scenes:
        night, day = (colorizer(scene.thermal, text=t) for t in ("a street at night", ""))
        assert night.mean() < 0.5 * day.mean()
        ground = ~np.isin(scene.labels, [CLASSES.index("sky")])
        levels = night[ground].mean(axis=1)
        assert np.percentile(levels, 90) - np.percentile(levels, 10) > 12


# --- the small model


@pytest.fixture(scope="module")
def small() -> Colorizer:
    return Colorizer.from_pretrained("cmmfnet-small", device="cpu")


def test_the_small_model_describes_itself_and_is_small():
    facts = describe("cmmfnet-small")
    assert facts["method"] == "cmmfnet-small" and facts["storage"] == "int8"
    assert facts["bytes"] <= 4.2e6
    assert "research" in facts["licence"]
    assert facts["training"]["recipe"]["sources"] and facts["training"]["data"]


def test_the_small_model_is_nearer_to_the_truth_than_grey(small, scenes):
    for scene in scenes:
        colour = small(scene.thermal)
        assert colour.shape == scene.visible.shape and colour.dtype == np.uint8
        assert psnr(colour, scene.visible) > psnr(grey(scene), scene.visible) + 2
        assert colourfulness(colour) > 0.3 * colourfulness(scene.visible)


@pytest.mark.parametrize("shape", [(1, 1), (33, 17), (120, 160)])
def test_the_small_model_colours_any_size(small, shape):
    frame = (np.random.default_rng(0).random(shape) * 60000).astype(np.uint16)
    assert small(frame).shape == (*shape, 3)


def test_the_small_model_hears_night(small, scenes):
    for scene in scenes:
        assert small(scene.thermal, text="night").mean() < 0.7 * small(scene.thermal).mean()
