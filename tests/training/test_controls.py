"""What a recipe's sources can say beyond pairs: thermal or colour alone, text that is not the
picture's own, one DATA for all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_data import data_set

from cmmfnet.data.batches import Batches
from cmmfnet.data.fields import RecipeError
from cmmfnet.data.pairs import PairsError, find
from cmmfnet.data.source import Source
from cmmfnet.methods import build_network
from cmmfnet.training import checkpoint
from cmmfnet.training.recipe import Recipe, find_config, read_recipe
from cmmfnet.training.train import train

ENTRIES = [
    {
        "name": f"{light}{i}",
        "lighting": light,
        "caption": f"{light} {i}",
        "tags": [f"tag{i}"],
        "split": "train",
    }
    for light in ("day", "night")
    for i in range(4)
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Pairs whose colour is 200 by day, 40 at night; a set of colour pictures alone at 120; labels
    out of the way."""
    root = tmp_path_factory.mktemp("data")
    for folder, entries in (("pairs", ENTRIES), ("photos", [{"name": "x"}, {"name": "y"}])):
        data_set(root / folder, entries)
        for entry in entries:
            value = {"day": 200, "night": 40}.get(entry.get("lighting"), 120)
            Image.fromarray(np.full((24, 32, 3), value, np.uint8)).save(
                root / folder / "visible" / f"{entry['name']}.png"
            )
        for file in (root / folder / "label").iterdir():
            file.unlink()
    for file in (root / "photos" / "thermal").iterdir():
        file.unlink()
    return root


def source(data: Path, folder="pairs", lighting=None, **more) -> Source:
    return Source(str(data / folder), (1, 1), **more, lighting=lighting).opened()


def shown(batch) -> set[int]:
    return {round(float((v + 1) / 2 * 255)) for v in batch.visible.mean(dim=(1, 2, 3))}


def night_to_day(data: Path, **more) -> list[Source]:
    return [
        source(data, lighting=("night",), gives="thermal", **more),
        source(data, lighting=("day",), gives="colour", **more),
    ]  # fmt: skip


@pytest.mark.parametrize("order", ["scenes", "epoch"])
def test_night_thermal_meets_daylight_colour(data, order):
    batch = Batches(
        night_to_day(data, order=order), batch_size=16, size=16, steps=1, unpaired=True
    )[0]
    assert all(name.startswith("night") for name in batch.names) and shown(batch) == {200}
    both = Batches([source(data)], batch_size=32, size=16, steps=1, unpaired=True)[0]
    assert {name[:3] for name in both.names} == {"day", "nig"} and shown(both) == {200, 40}


def test_colour_pictures_need_no_thermal(data):
    sources = [source(data, gives="thermal"), source(data, "photos", gives="colour")]
    assert shown(Batches(sources, batch_size=8, size=16, steps=1, unpaired=True)[0]) == {120}
    with pytest.raises(PairsError, match="2 of 2 entries have no picture thermal"):
        source(data, "photos")


def test_an_epoch_takes_every_picture_of_each_kind_once(data):
    batches = Batches(
        night_to_day(data, order="epoch"), batch_size=4, size=16, steps=2, unpaired=True
    )
    for step in range(2):
        assert sorted(batches[step].names) == [f"night{i}" for i in range(4)]


def recipe(**changes) -> Recipe:
    basic = {
        "model": {"method": "cyclegan", "width": 4, "blocks": 1}, "losses": {"cycle": 1.0},
        "batch_size": 2, "size": 16,
        "sources": [Source("pairs")], "steps": 1,
    }  # fmt: skip
    return Recipe(**(basic | changes))


def test_training_by_night_frames_and_daylight_colour(data, tmp_path):
    night = Source("pairs", lighting=("night",), gives="thermal", order="epoch", scale=(1, 1))
    day = Source("pairs", lighting=("day",), gives="colour", order="epoch", scale=(1, 1))
    given = {"data": data, "device": "cpu", "workers": 0}
    train(config=recipe(sources=[night, day], steps=None, epochs=1), out=tmp_path / "run", **given)
    assert (
        checkpoint.load(tmp_path / "run" / "step-2.pt")["step"] == 2
    )  # 4 thermal frames and 4 colour pictures, 2 a step
    paired = recipe(
        sources=[night, day],
        model={"method": "pix2pix", "levels": 4, "width": 4},
        losses={"l1": 1.0},
    )
    with pytest.raises(
        RecipeError,
        match="gives of pairs is thermal or colour alone, and pix2pix learns from pairs",
    ):
        train(config=paired, out=tmp_path / "paired", **given)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([{"gives": "night"}], "gives of pairs is 'night'; expected one of both, thermal, colour"),
        ([{"text": "wrong"}], "text of pairs is 'wrong'; expected one of own, shuffled, empty"),
        ([{"gives": "thermal"}], "no source gives colour pictures all the time"),
        (
            [{"gives": "thermal"}, {"gives": "colour", "share": (1, 0)}],
            "no source gives colour pictures all the time",
        ),
        ([{"order": "epoch"}, {"gives": "colour"}], "order of pairs is epoch"),
    ],
)
def test_sources_that_make_no_sense(sources, message):
    with pytest.raises(RecipeError, match=message):
        recipe(sources=[Source("pairs", **each) for each in sources])


# --- text that is not the picture's own


def test_shuffled_text_is_of_any_picture_and_drawn_anew(data):
    mixed = Batches([source(data, text="shuffled")], batch_size=64, size=16, steps=2, seed=3)
    own = Batches([source(data)], batch_size=64, size=16, steps=2, seed=3)
    batch, right = mixed[0], own[0]
    assert batch.names == right.names and torch.equal(
        batch.thermal, right.thermal
    )  # nothing else changes
    assert right.captions == [f"{name[:-1]} {name[-1]}" for name in right.names]
    assert set(batch.captions) == {entry["caption"] for entry in ENTRIES}
    matches = sum(a == b for a, b in zip(batch.captions, right.captions, strict=True))
    assert matches < 24  # 8 of 64 by chance
    # tags and caption go together, lighting included
    for caption, tags in zip(batch.captions, batch.tags, strict=True):
        assert tags == [f"tag{caption[-1]}", caption[:-2]]
    assert not batch.tagged.any() and right.tagged.all()
    first = {name: caption for name, caption in zip(batch.names, batch.captions, strict=True)}
    assert any(
        first[n] != c for n, c in zip(mixed[1].names, mixed[1].captions, strict=True) if n in first
    )
    assert mixed[0].captions == batch.captions


def test_empty_text(data):
    batch = Batches([source(data, text="empty")], batch_size=8, size=16, steps=1)[0]
    assert batch.captions == [None] * 8 and batch.tags == [[]] * 8 and not batch.tagged.any()


def test_shuffled_text_of_labelled_pictures_is_from_label_maps(tmp_path):
    root = data_set(tmp_path, [{"name": "a"}, {"name": "b"}])
    for name, label in (("a", 1), ("b", 6)):  # sky, road
        Image.fromarray(np.full((24, 32), label, np.uint8)).save(root / "label" / f"{name}.png")
    batch = Batches(
        [Source(str(root), (1, 1), text="shuffled").opened()], batch_size=32, size=16, steps=1
    )[0]
    said = {(name, tags[0]) for name, tags in zip(batch.names, batch.tags, strict=True)}
    assert said == {(n, t) for n in "ab" for t in ("sky-other", "road")}


def test_learned_queries_replace_text():
    small = {
        "method": "cmmfnet", "channels": (4, 8, 16), "encoder_blocks": (1, 1, 1),
        "decoder_blocks": (1, 1, 0),
        "kernels": (5, 5, 3), "global_size": 32, "vit_depth": 1, "vit_width": 16, "vit_heads": 2,
        "text_length": 6, "tail": 4,
    }  # fmt: skip
    network = build_network(small | {"text": "learned"})
    assert network.text_source == "none" and network.interaction.mode == "text_query"
    assert network.queries.shape == (1, 6, 16)
    thermal = torch.rand(2, 1, 32, 32) * 2 - 1
    colour = network(thermal)
    assert torch.equal(
        colour, network(thermal, torch.randn(2, 3, 512), torch.ones(2, 3) > 0)
    )  # takes no text
    colour.square().mean().backward()
    assert (
        all(p.grad is not None for p in network.parameters())
        and network.queries.grad.abs().sum() > 0
    )
    with torch.no_grad():
        network.queries.add_(torch.randn_like(network.queries))
        assert not torch.allclose(network(thermal), colour)
    with pytest.raises(ValueError, match="'learned' or 'none'"):
        build_network(small | {"text": "guessed"})


# --- one DATA for own and matched recipes


def test_pairs_are_found_inside_data_or_are_data(data, tmp_path):
    assert find(data, "pairs") == data / "pairs" and find(data / "pairs", "pairs") == data / "pairs"
    assert find(data, "photos") == data / "photos" and find(data / "pairs", ".") == data / "pairs"
    url = (data / "pairs").as_uri()
    assert find(data.as_uri(), "pairs") == url and find(url, "pairs") == url
    assert (
        len(Source("pairs").opened(url).pairs) == len(Source("pairs").opened(str(data)).pairs) == 8
    )
    with pytest.raises(
        PairsError,
        match=r"there is no .*/pairs/index.jsonl nor .*/index.jsonl; a data set is a folder",
    ):
        find(tmp_path, "pairs")
    with pytest.raises(
        PairsError,
        match=r"rendered/index.jsonl does not exist.*'rendered' as well.*--recipe finetune",
    ):
        find(data, "rendered")
    with pytest.raises(PairsError, match=r"there is no .*index.jsonl; a data set"):
        find(tmp_path, ".")


@pytest.mark.parametrize("folder", [".", "pairs"])
def test_own_and_matched_recipes_read_the_same_data(data, tmp_path, folder):
    """Of every configuration's sources, those named pairs are there whichever of the two DATA
    is."""
    for name in ("pix2pix", "pearlgan", "cmmfnet-paper", "finetune", "tiny", "cmmfnet"):
        own = read_recipe(find_config(name))
        assert own.validation.folder == "pairs" and any(s.folder == "pairs" for s in own.sources)
        for source in own.sources:
            if source.folder == "pairs":
                assert len(source.opened(data / folder).pairs) >= 4


def test_matched_without_photos_says_what_to_do(data, tmp_path):
    with pytest.raises(PairsError, match="--recipe finetune"):
        train(config=recipe(), recipe="matched", data=data, out=tmp_path, device="cpu", workers=0)


# --- a network of one size


def test_validation_of_a_network_of_another_size(data, tmp_path):
    """It sees the scored 256x256 crop resized, as `cmmfnet colorize` does it; evaluate agrees with
    training."""
    from cmmfnet.evaluation.evaluate import evaluate
    from cmmfnet.evaluation.setting import Setting

    small = {
        "method": "lkatgan", "size": 32, "width": 8, "blocks": (1, 1, 1), "kernel": 5, "patch": 4,
        "vit": (16, 2, 2),
        "decoder": (8, 1, 2),
    }  # fmt: skip
    validation = Source("pairs", lighting=("day",))
    made = recipe(model=small, losses={"l1": 1.0}, size=32, validation=validation, ema=0.0)
    scores = train(config=made, data=data, out=tmp_path / "run", device="cpu", workers=0)
    assert 2 < scores["psnr"] < 40
    with Image.open(tmp_path / "run" / "sheets" / "step-1.jpg") as sheet:
        assert sheet.size == (6 * 256, 2 * 256)
    result = evaluate(
        str(tmp_path / "run"),
        Setting(
            data=str(data / "pairs"), split="train", lighting="day", metrics="psnr", device="cpu"
        ),
    )
    found = result["scores"]["all"]["run"]["psnr"]["mean"]
    assert found == pytest.approx(scores["psnr"], abs=0.05)  # the saved weights are float16


def test_the_sources_in_the_methods_page(data):
    import re

    import yaml

    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.M | re.S)
    made = recipe(sources=[Source(**each) for each in yaml.safe_load(block)["sources"]])
    assert [s.gives for s in made.sources] == ["thermal", "colour"]
    assert [len(s.opened(data).pairs) for s in made.sources] == [4, 4]
