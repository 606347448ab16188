"""Rendered scenes: what they promise to networks, to videos and to the layout on disk."""

import json
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from cmmfnet.data.scenes import KINDS, TAG_SHARE, render, write_pairs
from cmmfnet.text.labels import CLASSES, COCOSTUFF

SMALL = (72, 96)


@pytest.fixture(scope="module")
def scenes():
    """Twelve scenes: every kind in every lighting, and three more days."""
    plan = [
        (k, kind, light)
        for k, (kind, light) in enumerate((a, b) for a in KINDS for b in ("day", "dusk", "night"))
    ]
    return [
        render(seed, kind, SMALL, lighting=light)
        for seed, kind, light in plan + [(s, None, None) for s in (31, 32, 33)]
    ]


def test_shapes_and_types(scenes):
    for scene in scenes:
        assert scene.thermal.shape == SMALL and scene.thermal.dtype == np.uint16
        assert scene.visible.shape == (*SMALL, 3) and scene.visible.dtype == np.uint8
        assert scene.labels.shape == SMALL and scene.labels.dtype == np.uint8
        assert scene.kind in KINDS and scene.lighting in ("day", "dusk", "night")
        assert scene.sky in ("clear", "cloudy", "overcast", "none")


def test_asked_for_kind_and_lighting_are_given(scenes):
    assert [(s.kind, s.lighting) for s in scenes[:9]] == [
        (k, x) for k in KINDS for x in ("day", "dusk", "night")
    ]


def test_class_table_is_complete():
    assert (
        len(CLASSES) == 25
        and CLASSES[1] == "sky"
        and CLASSES[14] == "car"
        and CLASSES[24] == "other"
    )
    assert list(COCOSTUFF) == list(CLASSES)
    assert [name for name in CLASSES if COCOSTUFF[name] is None] == ["unlabelled", "other"]


def test_every_pixel_is_labelled(scenes):
    for scene in scenes:
        assert scene.labels.min() >= 1 and scene.labels.max() < len(CLASSES)


def test_tags_are_the_labels_by_area(scenes):
    for scene in scenes:
        counts = np.bincount(scene.labels.ravel(), minlength=len(CLASSES))
        area = {
            COCOSTUFF[name]: n
            for name, n in zip(CLASSES, counts, strict=True)
            if n >= TAG_SHARE * scene.labels.size
        }
        area.pop(None, None)
        assert set(scene.tags) == set(area) and len(scene.tags) == len(area)
        sizes = [area[name] for name in scene.tags]
        assert sizes == sorted(sizes, reverse=True)


def test_captions_differ_in_colours_only(scenes):
    colours = {
        "green",
        "blue",
        "grey",
        "white",
        "black",
        "brown",
        "red",
        "beige",
        "olive",
        "orange",
        "yellow",
        "purple",
    }
    for scene in scenes:
        plain = set(scene.caption.replace(",", " ").replace(".", " ").replace("-", " ").split())
        full = set(
            scene.colour_caption.replace(",", " ").replace(".", " ").replace("-", " ").split()
        )
        assert not plain & colours
        assert full & colours
        assert plain - full <= {"a", "an"}


def test_temperatures_are_plausible(scenes):
    for scene in scenes:
        kelvin = scene.thermal / 100
        assert kelvin.min() > 240 and kelvin.max() < 350
        ground = kelvin[scene.labels != CLASSES.index("sky")]
        assert 260 < np.median(ground) < 325
        assert 1 < np.percentile(kelvin, 99) - np.percentile(kelvin, 1) < 60


def test_sky_is_cold_and_people_are_warm():
    seen = 0
    for seed in range(40, 44):
        scene = render(seed, "street", SMALL, lighting="day")
        kelvin, sky = scene.thermal / 100, scene.labels == CLASSES.index("sky")
        if sky.sum() > 50:
            assert np.median(kelvin[sky]) < np.median(kelvin[~sky]) - 1
            seen += 1
    assert seen >= 3
    night = render(102, "park", (144, 192), lighting="night")
    person = night.labels == CLASSES.index("person")
    assert person.sum() >= 10
    assert np.median(night.thermal[person]) > np.median(night.thermal[~person]) + 200


def test_night_is_darker_than_day():
    for kind in ("street", "park"):
        day, night = (render(5, kind, SMALL, lighting=x).visible.mean() for x in ("day", "night"))
        assert 60 < day < 210 and night < 0.6 * day


def test_same_seed_same_bytes_and_other_seed_other_scene():
    from cmmfnet.data.scenes.layout import build

    first = render(7, size=SMALL)
    build.cache_clear()  # or the second would only show that a cache works
    again, other = render(7, size=SMALL), render(8, size=SMALL)
    for name in ("thermal", "visible", "labels"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
        assert not np.array_equal(getattr(first, name), getattr(other, name))
    assert (first.tags, first.caption, first.colour_caption) == (
        again.tags,
        again.caption,
        again.colour_caption,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_video_is_coherent(kind):
    frames = [render(11, kind, SMALL, time=k / 25, lighting="day") for k in range(3)]
    later = render(11, kind, SMALL, time=4.0, lighting="day")
    steps = []
    for a, b in pairwise(frames):
        steps.append(np.abs(a.visible.astype(float) - b.visible).mean())
        assert 0 < steps[-1] < 10
        assert 0 < np.abs(a.thermal.astype(float) - b.thermal).mean() < 80
        assert (a.labels != b.labels).mean() < 0.1
    assert np.abs(frames[0].visible.astype(float) - later.visible).mean() > 1.5 * max(
        steps
    )  # the camera does move
    # the same things in the same light: nothing is drawn anew from frame to frame
    assert (
        frames[0].sky == later.sky
        and abs(np.median(frames[0].thermal) - np.median(later.thermal)) < 400
    )


def test_sensor_noise_is_new_in_every_frame_and_sharp_scene_is_not():
    a, b = render(11, "house", SMALL, time=0.0), render(11, "house", SMALL, time=1e-4)
    assert np.array_equal(a.labels, b.labels)
    spread = np.std(a.thermal.astype(float) - b.thermal)
    assert 5 < spread < 15  # two draws of about 0.06 K


@pytest.mark.parametrize("size", [(97, 131), (16, 16), (33, 180), (120, 31)])
def test_any_size(size):
    scene = render(3, size=size)
    assert (
        scene.thermal.shape == size
        and scene.labels.shape == size
        and scene.visible.shape == (*size, 3)
    )


def test_picture_is_the_same_scene_at_another_size():
    small, large = render(3, "house", (64, 80)), render(3, "house", (128, 160))
    shrunk = large.visible.astype(float).reshape(64, 2, 80, 2, 3).mean((1, 3))
    assert np.abs(shrunk - small.visible).mean() < 8


def test_camera_stays_inside_the_world_in_a_long_video():
    scene = render(11, "street", SMALL, time=600.0)
    assert (scene.labels == CLASSES.index("road")).mean() > 0.05


@pytest.mark.parametrize(
    ("wrong", "given_tags"),
    [
        ({"kind": "beach"}, "'street', 'house', 'park'"),
        ({"lighting": "noon"}, "'day', 'dusk', 'night'"),
        ({"size": (8, 100)}, "at least 16"),
        ({"time": -1.0}, "0 or more"),
        ({"seed": -3}, "positive"),
    ],
)
def test_wrong_arguments_are_explained(wrong, given_tags):
    with pytest.raises(ValueError, match=given_tags):
        render(**{"seed": 0, **wrong})


def test_write_pairs(tmp_path):
    index = write_pairs(tmp_path / "set", 5, seed=20, size=(48, 64), val_fraction=0.4)
    rows = [json.loads(line) for line in index.read_text().splitlines()]
    assert index == tmp_path / "set" / "index.jsonl"
    assert [row["split"] for row in rows] == ["train"] * 3 + ["val"] * 2
    assert len({row["name"] for row in rows}) == 5
    for k, row in enumerate(rows):
        pictures = [
            tmp_path / "set" / part / f"{row['name']}.png"
            for part in ("thermal", "visible", "label")
        ]
        thermal, visible, label = (np.asarray(Image.open(path)) for path in pictures)
        assert (
            thermal.dtype == np.uint16 and visible.shape == (48, 64, 3) and label.shape == (48, 64)
        )
        assert row["origin"] == f"cmmfnet.data.scenes seed {20 + k}"
        if k not in (0, 4):
            continue
        scene = render(20 + k, size=(48, 64))
        assert np.array_equal(thermal, scene.thermal)
        assert np.array_equal(visible, scene.visible) and np.array_equal(label, scene.labels)
        assert (row["width"], row["height"]) == (64, 48)
        assert (
            row["tags"] == scene.tags
            and row["caption"] == scene.caption
            and row["sky"] == scene.sky
        )
        assert (
            row["source"] == "rendered"
            and row["sequence"] is None
            and row["licence"] == "Apache-2.0"
        )


def test_write_pairs_refuses_nonsense(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        write_pairs(tmp_path, 0)
    with pytest.raises(ValueError, match="below 1"):
        write_pairs(tmp_path, 2, val_fraction=1.0)
    assert not (tmp_path / "index.jsonl").exists()
