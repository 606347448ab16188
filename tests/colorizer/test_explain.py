"""`cmmfnet explain`: maps, boxes, the page and the folder, on a network of a few thousand
weights."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from cmmfnet.cli import main
from cmmfnet.colorizer.explain import (
    attention_maps,
    heat,
    look,
    read_boxes,
    write_explanation,
)
from cmmfnet.colorizer.torch import Colorizer
from cmmfnet.files.errors import UserError
from cmmfnet.methods import build_network
from cmmfnet.weights.files import save_model

CONFIG = {
    "method": "cmmfnet", "channels": (8, 12, 16), "encoder_blocks": (1, 1, 1),
    "decoder_blocks": (1, 1, 0),
    "kernels": (5, 5, 3), "global_size": 32, "vit_depth": 1, "vit_width": 16, "vit_heads": 2,
    "text_width": 16,
    "text_length": 16, "tail": 8, "ci": "image_query", "text": "clip-tags",
    "words": ("road", "tree", "car", "night"),
    "least_size": 0,
}  # fmt: skip


def network(**options):
    torch.manual_seed(0)
    made = build_network(CONFIG | options).eval()
    if made.regions is not None:
        for value in made.regions.values:
            torch.nn.init.normal_(value[-1].weight, std=0.3)
    return made


@pytest.fixture(scope="module")
def steered() -> Colorizer:
    return Colorizer(network(regions=True), device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def frame() -> np.ndarray:
    return (np.random.default_rng(0).random((37, 50)) * 1000).astype(np.uint16)


def test_maps_have_the_size_of_the_frame_and_pictures_are_those_of_colorizer(steered, frame):
    found = look(steered, frame, "a red car on a road at night")
    assert found.words == ["red car", "road", "night"] and found.kind == "regions"
    assert found.maps.shape == (3, 37, 50) and found.maps.min() >= 0 and found.maps.max() <= 1
    assert (found.maps[2] == 1).all() and (found.maps[:2].sum(axis=0) <= 1.001).all()
    assert np.array_equal(found.colour, steered(frame, text="a red car on a road at night"))
    assert np.array_equal(found.plain, steered(frame, text=""))
    assert not np.array_equal(found.colour, found.plain)
    assert [name for name, _ in found.tags] == [name for name, _ in steered.tags(frame, 12)]


def test_colours_reach_the_network_through_colorizer(steered, frame):
    red, blue = (steered(frame, text=f"a {colour} car").astype(int) for colour in ("red", "blue"))
    assert np.abs(red - blue).max() > 1
    assert np.array_equal(steered(frame, text="a tree"), steered(frame, text="trees"))
    assert not np.array_equal(steered(frame, text="a tree"), steered(frame, text="a bare tree"))


def test_a_box_moves_a_word_there(steered, frame):
    found = look(steered, frame, "a car, a tree", boxes={"car": (20, 10, 40, 30)})
    inside, outside = found.maps[0, 16:24, 26:34], found.maps[0, :, :8]
    assert inside.min() > 0.9 and outside.max() < 0.1


def test_corrections_of_predicted_tags_are_explained_as_they_are_coloured(steered, frame):
    colour, seen = steered(frame, text="+a red car -road", return_tags=True)
    found = look(steered, frame, "+a red car -road")
    assert found.words[0] == "red car" and "road" not in found.words
    assert [word.split()[-1] for word in found.words] == seen.given_tags
    assert np.array_equal(found.colour, colour) and len(found.maps) == len(found.words)


def test_guidance_scales_the_difference_to_no_text(steered, frame):
    text = "a red car"
    plain, given_tags = (steered(frame, text=t).astype(int) for t in ("", text))

    def guided(amount: float) -> np.ndarray:
        colorizer = Colorizer(
            network(regions=True), device="cpu", dtype=torch.float32, guidance=amount
        )
        return colorizer(frame, text=text).astype(int)

    assert np.array_equal(guided(1.0), given_tags) and np.array_equal(guided(0.0), plain)
    want = np.clip(plain + 2 * (given_tags - plain), 0, 255)
    assert np.abs(guided(2.0) - want).max() <= 2
    with pytest.raises(ValueError, match=r"guidance is -1; expected 0"):
        guided(-1)


def test_without_text_the_predicted_tags_are_shown(steered, frame):
    found = look(steered, frame)
    assert found.words == [name for name, p in found.tags if p > steered.traits.tag_threshold]
    assert found.maps.shape == (len(found.words), 37, 50)


@pytest.mark.parametrize("text", ["a frobnitz", ""])
def test_a_text_without_known_words_changes_nothing(steered, frame, text):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not know")
        found = look(steered, frame, text)
    assert found.words == [] and found.maps.shape == (0, 37, 50)
    assert np.array_equal(found.colour, found.plain)


def test_a_model_without_regions_shows_attention(frame):
    colorizer = Colorizer(network(), device="cpu", dtype=torch.float32)
    with pytest.warns(UserWarning, match="knows no colours, so those of 'red car' have no effect"):
        found = look(colorizer, frame, "a red car on a road")
    assert found.kind == "attention" and found.words == ["car", "road"]
    assert (
        found.maps.shape == (2, 37, 50)
        and found.maps.min() > 0
        and found.maps.sum(axis=0).max() < 1
    )
    with pytest.raises(UserError, match="has no regions, so boxes have no effect"):
        look(colorizer, frame, "a car", boxes={"car": (0, 0, 9, 9)})


def test_attention_maps_are_the_weights_that_the_block_uses(frame):
    made = network()
    text = made.embed_tags(torch.tensor([[0, 2]]))
    mask = torch.ones(1, 2, dtype=torch.bool)
    x = torch.rand(1, 1, 32, 32) * 2 - 1
    with torch.inference_mode():
        block, kept = made.interaction.blocks[-1].attention, []
        hook = block.register_forward_hook(lambda _, inputs, output: kept.append((inputs, output)))
        maps = attention_maps(made, x, text, mask)
        hook.remove()
        (query, key, value, allowed), output = kept[0]
        assert allowed.all()
        weights = torch.stack(
            [
                (q @ k.T * q.shape[-1] ** -0.5).softmax(dim=-1)
                for q, k in zip(
                    block.query(query)[0].unflatten(-1, (2, -1)).unbind(1),
                    block.key(key)[0].unflatten(-1, (2, -1)).unbind(1),
                    strict=True,
                )
            ]
        )
        heads = torch.stack(block.value(value)[0].unflatten(-1, (2, -1)).unbind(1))
        assert torch.allclose(
            block.out(torch.cat(list(weights @ heads), dim=-1))[0], output[0][0], atol=1e-5
        )
    assert torch.allclose(maps[0].flatten(1), weights.mean(dim=0)[:, 1:].T, atol=1e-5)
    with pytest.raises(UserError, match="only image_query attends"):
        attention_maps(network(ci="text_query"), x, text, mask)
    with pytest.raises(UserError, match="neither regions nor attention to words"):
        attention_maps(torch.nn.Identity(), x, text, mask)  # as cmmfnet-small is


def test_models_that_take_no_names_say_so(frame):
    silent = Colorizer(network(text="none", words=()), device="cpu")
    with pytest.raises(UserError, match="does not take the names of things"):
        look(silent, frame, "a car")


def test_boxes_as_they_are_typed():
    assert read_boxes("car = 1,2,30,40; trees=0,0,5,5") == {
        "car": (1, 2, 30, 40),
        "tree": (0, 0, 5, 5),
    }
    for bad in ("car", "car=1,2,3", "car=9,0,3,4", "qwerty=0,0,5,5", "car and tree=0,0,5,5"):
        with pytest.raises(UserError, match="for example car=10,20,200,180"):
            read_boxes(bad)


def test_a_box_for_a_word_that_is_not_said(steered, frame):
    with pytest.raises(UserError, match=r"--box names car, which the text does not have \(tree\)"):
        look(steered, frame, "a tree", boxes={"car": (0, 0, 9, 9)})


def test_heat_shows_the_picture_where_nothing_holds():
    grey = np.full((4, 4), 200, np.uint8)
    share = np.zeros((4, 4), np.float32)
    share[0] = 1
    out = heat(grey, share)
    assert (out[1:] == 150).all() and (out[0, :, 0] > out[0, :, 2] + 80).all()


def test_the_page_loads_nothing_and_escapes(tmp_path, steered, frame):
    page = tmp_path / "page.html"
    write_explanation(page, look(steered, frame, "a red car"), "<script>alert(1)</script>")
    text = page.read_text()
    assert "<script>" not in text and "&lt;script&gt;" in text
    assert "default-src 'none'" in text and "http://" not in text and "https://" not in text
    assert text.count("<img ") == 4 and "red car" in text


def test_the_command_writes_a_page_and_a_folder(tmp_path, frame, capsys):
    model = save_model(
        tmp_path / "m.safetensors", network(regions=True), CONFIG | {"regions": True}
    )
    Image.fromarray(frame).save(tmp_path / "frame.png")
    common = [
        "explain",
        str(tmp_path / "frame.png"),
        "--model",
        str(model),
        "--device",
        "cpu",
        "--text",
        "a red car, night",
    ]
    assert main([*common, "--out", str(tmp_path / "page.html")]) == 0
    assert main([*common, "-o", str(tmp_path / "folder"), "--box", "car=2,2,20,20"]) == 0
    assert "red car, night" in capsys.readouterr().out
    names = {p.name for p in (tmp_path / "folder").iterdir()}
    assert names == {"colour.png", "plain.png", "red_car.png", "night.png", "tags.txt"}
    assert np.asarray(Image.open(tmp_path / "folder" / "red_car.png")).shape == (37, 50)


def test_errors_leave_nothing(tmp_path, capsys):
    assert main(["explain", str(tmp_path / "no.png"), "-o", str(tmp_path / "p.html")]) == 1
    assert "no picture" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
