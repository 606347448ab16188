"""Recoloured photos: what is painted, what is said of it, and what stays."""

from __future__ import annotations

import numpy as np
import pytest

from cmmfnet.data.batches import Batches
from cmmfnet.data.items import Items
from cmmfnet.data.made import lab
from cmmfnet.data.made import recolour as r
from cmmfnet.data.made.repainted import changes, repainted, write_repainted
from cmmfnet.data.pairs import Pairs
from cmmfnet.data.scenes import render, repaint, write_pairs
from cmmfnet.data.source import Source
from cmmfnet.text import colour_words
from cmmfnet.text.attributes import ATTRIBUTES, attribute_weights
from cmmfnet.text.labels import CLASSES
from cmmfnet.text.vocabulary import WORDS

SIZE = (96, 128)


@pytest.fixture(scope="module")
def street():
    return render(11, "street", size=SIZE, lighting="day")


@pytest.fixture(scope="module")
def park():
    return render(4, "park", size=SIZE, lighting="day")


def mean_lab(picture, mask):
    return lab.to_lab(picture)[mask].mean(axis=0)


def test_lab_goes_there_and_back():
    picture = np.random.default_rng(0).integers(0, 256, (20, 20, 3)).astype(np.uint8)
    assert np.abs(lab.to_rgb(lab.to_lab(picture)).astype(int) - picture).max() <= 1


def test_lab_is_that_of_scikit_image():
    colour = pytest.importorskip("skimage.color")

    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    assert lab.to_lab(picture) == pytest.approx(colour.rgb2lab(picture), abs=2e-3)
    values = np.random.default_rng(1).uniform((5, -30, -30), (95, 30, 30), (40, 40, 3))
    assert (
        np.abs(
            lab.to_rgb(values).astype(float)
            - 255 * colour.xyz2rgb(np.maximum(colour.lab2xyz(values), 0))
        ).max()
        < 0.6
    )


@pytest.mark.parametrize("colour", ["red", "blue", "white", "black", "yellow"])
def test_cars_take_the_colour_and_the_rest_stays(street, colour):
    mask = r.region(street.labels, "car")
    out = r.paint(street.visible, r.painted_surface(street.visible, mask), r.PAINT[colour])
    before, after = (
        np.linalg.norm(mean_lab(p, mask) - r.PAINT[colour]) for p in (street.visible, out)
    )
    assert after < 0.6 * before
    far = r.soft(mask) <= 0.02
    assert np.array_equal(out[far], street.visible[far])


def test_snow_is_bright_bluish_and_keeps_relief(park):
    mask = r.region(park.labels, "grass")
    out = r.snow(park.visible, mask)
    lightness, _, b = mean_lab(out, mask)
    assert lightness > 78 and b < 0
    old, new = (lab.to_lab(p)[mask][:, 0] for p in (park.visible, out))
    assert np.corrcoef(old, new)[0, 1] > 0.4 and new.std() > 0.5


def test_night_is_dark_and_keeps_the_order_of_things(street):
    out = r.nightfall(street.visible, street.labels, "night", np.random.default_rng(0))
    assert out.mean() < 0.4 * street.visible.mean() and out.mean() > 3
    ground = ~r.region(street.labels, "sky", "window", "traffic light")
    assert np.corrcoef(street.visible[ground].mean(axis=1), out[ground].mean(axis=1))[0, 1] > 0.8
    assert (
        out.mean()
        < r.nightfall(street.visible, street.labels, "dusk", np.random.default_rng(0)).mean()
    )


def test_the_same_seed_gives_the_same_picture_and_words(street):
    a, b = (r.recolour(street.visible, street.labels, np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(a.photo, b.photo) and (a.given_tags, a.colours) == (
        b.given_tags,
        b.colours,
    )


def test_words_say_what_was_changed(street, park):
    seen = set()
    for scene in (street, park):
        for seed in range(40):
            made = r.recolour(scene.visible, scene.labels, np.random.default_rng(seed))
            assert made.given_tags and not np.array_equal(made.photo, scene.visible)
            assert set(made.given_tags) <= set(WORDS) and {n for _, n in made.colours} <= set(
                made.given_tags
            )
            assert all(attribute_weights(c).sum() >= 1 for c, _ in made.colours)
            assert not set(made.given_tags) & set(made.removed) - {"clear", "overcast"}
            assert len(made.given_tags) == len(set(made.given_tags))
            seen |= set(made.given_tags)
    assert {"snow", "tree", "car", "night", "sky-other", "grass"} <= seen


def test_dusk_pictures_do_not_turn_to_night(street):
    for seed in range(40):
        made = r.recolour(
            street.visible, street.labels, np.random.default_rng(seed), lighting="dusk"
        )
        assert not {"night", "dusk"} & set(made.given_tags)


def test_nothing_labelled_changes_nothing(street):
    made = r.recolour(
        street.visible, np.zeros(SIZE, np.uint8), np.random.default_rng(0), lighting="dusk"
    )
    assert made.photo is street.visible and not made.given_tags


@pytest.mark.parametrize(
    ("rgb", "name"),
    [((200, 30, 30), "red"), ((240, 240, 240), "white"), ((15, 15, 15), "black"),
     ((120, 120, 122), "grey"), ((40, 70, 160), "blue"), ((60, 110, 40), "green"),
     ((250, 210, 40), "yellow"), ((100, 65, 40), "brown"), ((175, 175, 177), None)],
)  # fmt: skip
def test_colours_have_the_names_that_people_give_them(rgb, name):
    assert lab.colour_name(lab.to_lab(np.array([[rgb]], np.uint8))[0, 0]) == name


def test_painted_colours_are_named_as_they_were_asked_for():
    for colour, value in r.PAINT.items():
        assert lab.colour_name(value) in (colour, None) or colour == "silver"


def test_a_drawn_phrase_is_true_of_its_colour():
    rng, seen = np.random.default_rng(0), set()
    for _ in range(300):
        phrase, value = colour_words.draw_colour(r.PAINT, r.CAR_COLOURS, rng)
        shade, _, word = phrase.rpartition(" ")
        seen.add(shade)
        assert word in ATTRIBUTES
        plain = r.PAINT[word][0]
        if not shade:
            assert abs(value[0] - plain) < 15
        else:
            assert value[0] < 0.8 * plain if shade == "dark" else value[0] > plain - 8
    assert seen == {"", "dark", "pale"}


def test_dark_things_are_said_to_be_dark():
    label = np.full((20, 20), CLASSES.index("vegetation"), np.uint8)
    for lightness, name in ((18, "dark green"), (40, "green")):
        photo = lab.to_rgb(np.full((20, 20, 3), (lightness, -15, 18), np.float32))
        assert lab.colours_of(photo, label, {"vegetation": "tree"}) == [(name, "tree")]


def test_rendered_scenes_change_only_what_they_are_asked_to(street):
    assert np.array_equal(repaint(11, "street", SIZE), street.visible)
    red = repaint(11, "street", SIZE, cars=(150, 20, 25))
    cars = r.region(street.labels, "car")
    assert mean_lab(red, cars)[1] > mean_lab(street.visible, cars)[1] + 10
    far = r.soft(cars, 6) < 1e-4
    # a red car throws a little of its light about
    assert np.abs(red[far].astype(int) - street.visible[far]).mean() < 1
    night = repaint(11, "street", SIZE, lighting="night")  # dark, with shapes to see
    assert 0.15 * street.visible.mean() < night.mean() < 0.4 * street.visible.mean()
    with pytest.raises(ValueError, match="'slush'; expected one of None, 'snow'"):
        repaint(11, "street", SIZE, ground="slush")


@pytest.mark.parametrize(
    ("kind", "seed", "covered", "free"),
    [("park", 4, "grass", "vegetation"), ("house", 6, "roof", "building"),
     ("house", 6, "road", "building"), ("street", 11, "road", "car")],
)  # fmt: skip
def test_snow_in_a_rendered_scene_covers_ground_and_roofs(kind, seed, covered, free):
    scene = render(seed, kind, size=SIZE, lighting="day")
    white = repaint(seed, kind, SIZE, ground="snow")
    change = {
        name: mean_lab(white, mask)[0] - mean_lab(scene.visible, mask)[0]
        for name in (covered, free)
        for mask in [r.region(scene.labels, name)]
    }
    assert change[covered] > 15 and abs(change[free]) < 0.3 * change[covered]


def test_snow_covers_the_ground_whose_name_is_not_given():
    scene, kept = render(6, "house", size=SIZE, lighting="day"), 0
    for seed in range(120):
        made = r.recolour(scene.visible, scene.labels, np.random.default_rng(seed))
        if "snow" in made.given_tags:
            road = r.region(scene.labels, "road")
            rise = mean_lab(made.photo, road)[0] - mean_lab(scene.visible, road)[0]
            named = "road" in made.given_tags
            assert ("road" in made.removed) == (not named)
            assert abs(rise) < 3 if named else rise > 20
            kept += named
    assert kept > 0


def test_leaves_of_a_rendered_park_take_any_colour(park):
    plants = r.region(park.labels, "vegetation")
    green, red = (repaint(4, "park", SIZE, trees=trees) for trees in ("green", (150, 40, 30)))
    assert mean_lab(red, plants)[1] > mean_lab(green, plants)[1] + 15
    assert np.array_equal(repaint(4, "park", SIZE, trees=(84, 104, 52)), green)


def test_changes_of_a_scene_are_named(street):
    seen = set()
    for seed in range(40):
        change, words = changes(street, np.random.default_rng(seed))
        assert set(change) <= {"trees", "cars", "ground", "lighting"} and words["given_tags"]
        assert {name for _, name in words["colours"]} == {"tree", "car"} & set(words["given_tags"])
        seen |= set(words["given_tags"])
    assert {"tree", "car", "night"} <= seen


# ---- in training


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("scenes")
    write_pairs(path, 6, seed=3, size=(48, 64), val_fraction=0)
    return path


def batches(folder, recolour: float, **options) -> Batches:
    source = Source(str(folder), (1, 1), recolour=recolour, **options).opened()
    return Batches([source], batch_size=6, size=32, steps=9, seed=1)


def test_a_recoloured_picture_keeps_its_thermal_frame_and_label_map(folder):
    plain, changed = batches(folder, 0.0), batches(folder, 1.0)
    given_tags = 0
    for step in range(4):
        a, b = plain[step], changed[step]
        assert (
            np.array_equal(a.thermal, b.thermal)
            and np.array_equal(a.label, b.label)
            and a.names == b.names
        )
        for i, words in enumerate(b.given_tags):
            same = np.array_equal(a.visible[i], b.visible[i])
            assert same == (not words)
            assert set(words) <= set(b.tags[i])
            assert not (words and b.tagged[i])
            given_tags += bool(words)
        assert a.given_tags == [[]] * 6 and a.colours == [[]] * 6
    assert given_tags > 10


def test_simulated_frames_come_from_the_photo_as_it_was(folder):
    plain, changed = (batches(folder, part, simulate=True)[2] for part in (0.0, 1.0))
    assert np.array_equal(plain.thermal, changed.thermal)
    assert any(changed.given_tags) and not np.array_equal(plain.visible, changed.visible)


def test_colours_are_facts_of_the_picture(folder):
    batch = batches(folder, 0.01)[0]
    assert any(batch.colours)
    for row in batch.colours:
        assert all(attribute_weights(colour).sum() >= 1 and name in WORDS for colour, name in row)


def test_classes_that_are_painted_exist():
    assert set(r._PAINTED) <= set(CLASSES) and set(r._NAMES) == set(r._PAINTED)


# ---- rendered anew


@pytest.fixture(scope="module")
def anew(tmp_path_factory):
    path = tmp_path_factory.mktemp("anew") / "scenes"
    write_repainted(path, count=4, seed=3, each=2, size=(48, 64))
    return path


def test_scenes_rendered_anew_are_pairs_with_words(anew):
    pairs = Pairs(anew)
    assert len(pairs) >= 4 and len({entry["sequence"] for entry in pairs.entries}) * 2 == len(pairs)
    pair, entry = pairs[0], pairs.entries[0]
    scene = render(int(entry["origin"].split()[-1]), size=(48, 64))
    assert np.array_equal(pair.label, scene.labels) and pair.thermal.shape == (48, 64)
    assert not np.array_equal(pair.visible, scene.visible)
    with pytest.raises(FileExistsError, match="name another folder"):
        write_repainted(anew)


def test_training_says_what_holds_in_the_crop(anew):
    items = Items(
        [Source(str(anew), (1, 1), recolour=0.01).opened()], batch_size=6,
        shapes=[(32, 32)], steps=9, seed=1, rank=0, world=1,
        unpaired=False, frames=1, workers=0,
    )  # fmt: skip
    made = [items[step] for step in range(5)]
    assert any(words for batch in made for words in batch["given_tags"])
    for batch in made:
        for given_tags, tags, tagged in zip(
            batch["given_tags"], batch["tags"], batch["tagged"].tolist(), strict=True
        ):
            assert set(given_tags) <= set(tags) and not (given_tags and tagged)
    photo = np.zeros((8, 8, 3), np.uint8)
    meta = {
        "repainted": {
            "given_tags": ["car", "snow"],
            "colours": [["red", "car"]],
            "removed": ["grass"],
        }
    }
    assert (
        repainted(meta, photo, ["sky-other"]).given_tags == []
        and repainted({}, photo, ["car"]).given_tags == []
    )
    assert repainted(meta, photo, ["road"]).given_tags == ["snow"]
    both = repainted(meta, photo, ["car", "grass"])
    assert (both.given_tags, both.colours, both.removed) == (
        ["car", "snow"],
        [("red", "car")],
        ["grass"],
    )
