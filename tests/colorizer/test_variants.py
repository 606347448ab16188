"""`cmmfnet colorize --variants`: several pictures of one frame, by texts with other colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fake_network import Fake, colorize
from PIL import Image

from cmmfnet import methods
from cmmfnet.colorizer.variants import COLOURS, draw_texts
from cmmfnet.files.pictures import read_notes
from cmmfnet.text.parser import parse_tags
from cmmfnet.text.vocabulary import MAX_TAGS
from cmmfnet.weights.files import save_model


class Painted(Fake):
    """Takes colours: the token of a name moves with them."""

    takes_colours = True

    def embed_tags(self, ids, weights=None):
        tokens = super().embed_tags(ids)
        if weights is None:
            return tokens
        steps = torch.arange(1.0, weights.shape[-1] + 1) / 40
        return tokens + (weights * steps).sum(-1, keepdim=True)


class PaintedMethod:
    Network = Painted


@pytest.fixture(autouse=True)
def _methods(monkeypatch, fake_method):
    monkeypatch.setitem(methods.METHODS, "painted", "test_variants:PaintedMethod")


@pytest.fixture(scope="module")
def painted(tmp_path_factory) -> str:
    return str(save_model(tmp_path_factory.mktemp("m") / "p.safetensors", Painted(),
                          {"method": "painted"}))  # fmt: skip


@pytest.fixture
def frames(tmp_path) -> Path:
    """Two frames that are hot enough for the network to see a car, a road and a tree."""
    (tmp_path / "in").mkdir()
    for i in range(2):
        pixels = 255 * np.random.default_rng(i).random((20, 30)) ** 0.3
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "in" / f"f{i}.jpg")
    return tmp_path / "in"


def texts(folder: Path) -> dict[str, str]:
    return {file.name: read_notes(file)["Text"] for file in sorted(folder.glob("*.png"))}


def test_every_colour_of_the_table_is_read_back():
    assert len(COLOURS) <= MAX_TAGS
    for name, (word, counts) in COLOURS.items():
        for colour in counts:
            parsed = parse_tags(f"{colour} {word}")
            assert parsed.colours == [(colour, name)] and not parsed.unknown


def test_frequent_colours_come_often_and_texts_differ():
    drawn = draw_texts(COLOURS, 16, (0, 1))
    assert len(set(drawn)) == 16
    cars = [text.split(" car")[0] for text in drawn]
    # 29 and 14 of 76 cars, whatever the seed
    assert 5 <= cars.count("white") <= 7 and 2 <= cars.count("silver") <= 4
    assert drawn == draw_texts(sorted(COLOURS), 16, (0, 1)) != draw_texts(COLOURS, 16, (1, 1))


def test_things_without_colours_give_empty_texts():
    assert draw_texts({"road", "person"}, 3, (0,)) == ["", "", ""]


def test_variants_differ_and_come_again_by_their_text(frames, painted, tmp_path):
    out = tmp_path / "out"
    assert colorize(painted, frames, "-o", out, "--variants", 3) == 0
    found = texts(out)
    assert list(found) == [f"f{i}-{k}.png" for i in (0, 1) for k in (1, 2, 3)]
    for i in (0, 1):
        assert len({found[f"f{i}-{k}.png"] for k in (1, 2, 3)}) == 3
        pictures = {(out / f"f{i}-{k}.png").read_bytes() for k in (1, 2, 3)}
        assert len(pictures) == 3
    assert "car" in found["f0-1.png"] and read_notes(out / "f0-1.png")["Variants"] == "3, seed 0"
    again = tmp_path / "again.png"
    assert colorize(painted, frames / "f0.jpg", "-o", again, "--text", found["f0-2.png"]) == 0
    assert np.array_equal(np.asarray(Image.open(again)), np.asarray(Image.open(out / "f0-2.png")))


def test_variants_depend_on_the_seed_and_the_name_alone(frames, painted, tmp_path):
    for folder, more in (("a", []), ("b", ["--batch-size", 4]), ("c", ["--seed", 1])):
        args = [frames, "-o", tmp_path / folder, "--variants", 2, *more]
        assert colorize(painted, *args) == 0
    alone = tmp_path / "d" / "f1.png"
    alone.parent.mkdir()
    assert colorize(painted, frames / "f1.jpg", "-o", alone, "--variants", 2) == 0
    a, b, c = (texts(tmp_path / folder) for folder in "abc")
    assert a == b != c
    assert texts(alone.parent) == {name: text for name, text in a.items() if name > "f1"}


def test_variants_go_on_where_they_stopped(frames, painted, tmp_path, capsys):
    out = tmp_path / "out"
    assert colorize(painted, frames, "-o", out, "--variants", 2) == 0
    before = (out / "f1-2.png").read_bytes()
    (out / "f1-2.png").unlink()
    capsys.readouterr()
    page = tmp_path / "page.html"
    assert colorize(painted, frames, "-o", out, "--variants", 2, "--gallery", page) == 0
    said = capsys.readouterr().out
    assert "coloured 1, skipped 3 that were done before (" in said
    assert (out / "f1-2.png").read_bytes() == before
    assert all(f"text: {text}" in page.read_text() for text in texts(out).values())
    assert colorize(painted, frames, "-o", out, "--variants", 2, "--seed", 5) == 0
    assert "skipped 4 that were done before, 4 of them with other options" in (
        capsys.readouterr().out
    )


def test_too_few_colours_for_so_many_variants_are_a_warning(frames, tmp_path):
    network = Painted(words=("road", "tree"))
    model = save_model(tmp_path / "few.safetensors", network, {"method": "painted",
                       "words": ["road", "tree"]})  # fmt: skip
    with pytest.warns(UserWarning, match=r"f0.jpg: 3 different variants, not 8: .* sees tree"):
        args = [frames / "f0.jpg", "-o", tmp_path / "o.png", "--variants", 8]
        assert colorize(str(model), *args) == 0
    assert len(list(tmp_path.glob("o-*.png"))) == 8


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--variants", 1], "--variants is 1; expected 2 to 16"),
        (["--variants", 17], "--variants is 17; expected 2 to 16"),
        (["--variants", 2, "--seed", -1], "--seed is -1; expected 0 or more"),
        (["--seed", 3], "--seed goes with --variants"),
        (["--variants", 2, "--text", "a red car"], "takes no --text; leave one of the two out"),
        (["--variants", 2, "--text-file", "beside"], "takes no --text-file"),
        (["--variants", 2, "--visible"], "takes no --visible"),
    ],
)
def test_options_that_do_not_go_together(frames, painted, tmp_path, capsys, more, message):
    assert colorize(painted, frames, "-o", tmp_path / "out", *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_variants_of_a_video_or_of_many_frames_are_refused(frames, painted, tmp_path, capsys):
    assert colorize(painted, frames, "-o", tmp_path / "a.mp4", "--variants", 2) == 2
    assert "--variants is for pictures, and" in capsys.readouterr().err
    np.save(tmp_path / "in" / "many.npy", np.zeros((3, 20, 30), np.uint8))
    assert colorize(painted, frames, "-o", tmp_path / "out", "--variants", 2) == 2
    assert "many.npy holds several frames" in capsys.readouterr().err


def test_a_variant_never_replaces_an_input(frames, painted, tmp_path, capsys):
    source = tmp_path / "a-1.png"
    Image.open(frames / "f0.jpg").save(source)
    before = source.read_bytes()
    args = [source, "-o", tmp_path / "a.png", "--variants", 2, "--overwrite"]
    assert colorize(painted, *args) == 2
    assert "variant 1 would replace the input" in capsys.readouterr().err
    assert source.read_bytes() == before


def test_a_model_without_colour_words_is_refused(frames, model, tmp_path, capsys):
    assert colorize(model, frames, "-o", tmp_path / "out", "--variants", 2) == 2
    assert "--variants needs a model that predicts things and takes" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.png"))
