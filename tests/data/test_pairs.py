"""The one layout of pairs on disk: what is read, and what is said about a folder that is not in
it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_data import data_set

from cmmfnet.data.pairs import Pairs, PairsError, inside

ENTRIES = [
    {"name": "a", "split": "train", "lighting": "day", "source": "one"},
    {"name": "b", "split": "train", "lighting": "night", "source": "one"},
    {"name": "c.1", "split": "val", "source": "two"},
]


def test_a_pair_is_decoded_to_one_size_and_8_bits(tmp_path):
    pair = Pairs(data_set(tmp_path, ENTRIES))[2]
    assert (pair.name, pair.meta) == ("c.1", ENTRIES[2])
    assert (pair.thermal.shape, pair.visible.shape, pair.label.shape) == (
        (24, 32),
        (24, 32, 3),
        (24, 32),
    )
    assert {a.dtype for a in (pair.thermal, pair.visible, pair.label)} == {np.dtype(np.uint8)}
    # 16 bits are stretched between the 1st and the 99th percentile, not cut off
    assert pair.thermal.min() == 0 and pair.thermal.max() == 255 and 100 < pair.thermal.mean() < 155
    stored = np.asarray(Image.open(tmp_path / "visible" / "c.1.png"))
    assert np.array_equal(pair.visible, stored)


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        ({}, ["a", "b", "c.1"]),
        ({"split": "train"}, ["a", "b"]),
        ({"lighting": ("day",)}, ["a", "c.1"]),  # an entry without lighting is taken for day
        ({"split": "train", "lighting": ("night", "dusk")}, ["b"]),
        ({"sources": ("two",)}, ["c.1"]),
    ],
)
def test_split_lighting_and_sources_choose(tmp_path, chosen, names):
    assert [
        entry["name"] for entry in Pairs(data_set(tmp_path, ENTRIES), **chosen).entries
    ] == names


def test_the_frames_of_a_sequence_share_one_weight(tmp_path):
    entries = [{"name": str(i), "sequence": "clip" if i < 3 else None} for i in range(5)]
    weights = Pairs(data_set(tmp_path, entries)).weights
    assert weights == pytest.approx([1 / 9, 1 / 9, 1 / 9, 1 / 3, 1 / 3])


def test_weights_of_a_large_index_are_quick(tmp_path):
    root = data_set(tmp_path, [{"name": "a"}])
    lines = (
        json.dumps({"name": "a", "sequence": str(i)}) for i in range(60_000)
    )  # KAIST has as many frames
    (root / "index.jsonl").write_text("\n".join(lines))
    started = time.perf_counter()
    assert Pairs(root).weights.sum() == pytest.approx(1)
    assert time.perf_counter() - started < 15  # a count that is quadratic takes a minute


def test_labelled_photos_have_no_thermal(tmp_path):
    pairs = Pairs(data_set(tmp_path, ENTRIES, colour="photo"))
    assert pairs[0].thermal is None and pairs[0].label is not None
    assert pairs.require("label") is pairs
    with pytest.raises(
        PairsError, match=r"3 of 3 entries have no picture thermal/NAME .*the first is 'a'"
    ):
        pairs.require("thermal")


def test_a_missing_index(tmp_path):
    with pytest.raises(
        PairsError,
        match=r"index.jsonl does not exist; a data set is a folder with index.jsonl, thermal/",
    ):
        Pairs(tmp_path / "nowhere")


@pytest.mark.parametrize("line", ['{"name": "b"', '{"split": "train"}', '"b"', '{"name": 7}', "3"])
def test_a_bad_line_is_named_by_its_number(tmp_path, line):
    root = data_set(tmp_path, [{"name": "a"}])
    (root / "index.jsonl").write_text(f'{{"name": "a"}}\n\n{line}\n')
    with pytest.raises(PairsError, match=r'line 3: expected a JSON object with "name"'):
        Pairs(root)


@pytest.mark.parametrize("kind", ["thermal", "visible"])
def test_missing_files_are_counted_and_the_first_is_named(tmp_path, kind):
    root = data_set(tmp_path, ENTRIES)
    (root / kind / "b.png").unlink()
    (root / kind / "c.1.png").unlink()
    with pytest.raises(
        PairsError, match=rf"2 of 3 entries have no picture .*{kind}/NAME.*the first is 'b'"
    ):
        Pairs(root)
    assert (
        len(Pairs(root, split="train", lighting=("day",))) == 1
    )  # what is not chosen need not be there


@pytest.mark.parametrize("kind", ["thermal", "label"])
def test_unequal_sizes(tmp_path, kind):
    root = data_set(tmp_path, ENTRIES)
    Image.fromarray(np.zeros((20, 32), np.uint8)).save(root / kind / "a.png")
    with pytest.raises(
        PairsError,
        match=rf"a: {kind} is \(20, 32\), the colour picture is \(24, 32\) \(height, width\)",
    ):
        Pairs(root)[0]


def test_a_label_map_of_16_bits(tmp_path):
    root = data_set(tmp_path, ENTRIES)
    Image.fromarray(np.zeros((24, 32), np.uint16)).save(root / "label" / "a.png")
    with pytest.raises(
        PairsError,
        match=r"label.a.png cannot be used \(uint16 of shape .*one channel of 8-bit class ids",
    ):
        Pairs(root)[0]


def test_nothing_selected_says_what_there_is(tmp_path):
    with pytest.raises(
        PairsError,
        match=r"split='test'.*split: train \(2\), val \(1\); lighting: .*source: one \(2\), two",
    ):
        Pairs(data_set(tmp_path, ENTRIES), split="test")


# ---- decoding


@pytest.mark.parametrize("kind", ["thermal", "visible", "label"])
@pytest.mark.parametrize("damage", ["empty", "text", "cut", "gone", "folder"])
def test_a_broken_file_is_named(tmp_path, kind, damage):
    pairs = Pairs(data_set(tmp_path, ENTRIES))
    file = tmp_path / kind / "b.png"
    content = file.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage != "gone":
        file.write_bytes(
            {"empty": b"", "text": b"no picture", "cut": content[: len(content) // 2]}[damage]
        )
    assert pairs[0].name == "a"
    with pytest.raises(PairsError, match=rf"{kind}.b.png cannot be used \(.+\); copy it again"):
        pairs[1]


def test_a_jpeg_that_is_cut_off_is_not_taken_for_whole(tmp_path):
    root = data_set(tmp_path, [{"name": "a"}])
    (root / "visible" / "a.png").unlink()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(
        root / "visible" / "a.jpg"
    )
    content = (root / "visible" / "a.jpg").read_bytes()
    (root / "visible" / "a.jpg").write_bytes(content[:-40])
    with pytest.raises(PairsError, match=r"a.jpg cannot be used \(image file is truncated"):
        Pairs(root)[0]


def test_pictures_of_some_kinds_only(tmp_path):
    pairs = Pairs(data_set(tmp_path, ENTRIES))
    (tmp_path / "visible" / "a.png").write_bytes(b"not looked at")
    found = pairs.pictures(0, ("thermal", "label"))
    assert list(found) == ["thermal", "label"] and found["thermal"].shape == found[
        "label"
    ].shape == (24, 32)
    (tmp_path / "label" / "b.png").unlink()
    assert Pairs(tmp_path).pictures(1, ("label",)) == {"label": None}


# ---- sequences, parts, places


def test_triplets_are_neighbours_in_the_order_of_numbers(tmp_path):
    names = ["f10", "f2", "f1", "f9", "g1", "g2", "alone"]
    entries = [{"name": n, "sequence": n[0] if n != "alone" else None} for n in names]
    triplets = Pairs(data_set(tmp_path, entries)).triplets()
    assert triplets.tolist() == [
        [0, 0, 0],
        [2, 1, 3],
        [2, 2, 2],
        [1, 3, 0],
        [4, 4, 4],
        [5, 5, 5],
        [6, 6, 6],
    ]


def test_thinned_is_evenly_spaced(tmp_path):
    entries = [{"name": str(i), "sequence": "clip" if i < 6 else None} for i in range(10)]
    pairs = Pairs(data_set(tmp_path, entries))
    assert pairs.thinned(10) is pairs and pairs.thinned(99) is pairs
    fewer = pairs.thinned(4)
    assert [entry["name"] for entry in fewer.entries] == ["0", "2", "5", "7"]
    assert fewer.weights == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2]) and fewer[3].name == "7"
    assert len(pairs) == 10 and len(pairs.weights) == 10


def test_inside_keeps_the_slashes_of_a_url():
    assert inside("s3://bucket/data/", "kaist") == "s3://bucket/data/kaist"
    assert inside("s3://bucket/data", ".") == "s3://bucket/data"
    assert inside("data", "kaist") == Path("data/kaist") == inside(Path("data"), "kaist")
    assert inside("data", "memory://kaist") == "memory://kaist"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sequence": ["a"]}, "sequence is .'a'.; expected a text or null"),
        ({"lighting": 3}, "lighting is 3; expected a text or null"),
        ({"caption": {}}, "caption is {}; expected a text or null"),
        ({"tags": "car"}, "tags is 'car'; expected a list of texts or null"),
        ({"tags": ["car", 7]}, "tags is .'car', 7.; expected a list of texts"),
        ({"repainted": []}, "repainted is ..; expected given_tags, colours and removed"),
        (
            {"repainted": {"given_tags": ["car"], "removed": [], "colours": [["red"]]}},
            "repainted is .*; expected given_tags, colours and removed",
        ),
    ],
)
def test_a_value_of_another_type_is_named_with_its_line(tmp_path, values, message):
    root = data_set(tmp_path, [{"name": "a"}, {"name": "b"} | values])
    with pytest.raises(PairsError, match=rf"index.jsonl, line 2: {message}"):
        Pairs(root)


@pytest.mark.parametrize("line", ["[" * 100_000, '{"name": "a", "x": ' + "9" * 5000 + "}"])
def test_a_line_that_json_does_not_read_is_named(tmp_path, line):
    root = data_set(tmp_path, [{"name": "a"}])
    (root / "index.jsonl").write_text(line)
    with pytest.raises(PairsError, match="line 1: expected a JSON object"):
        Pairs(root)
    (root / "index.jsonl").write_bytes(b'{"name": "\xff"}\n')
    with pytest.raises(PairsError, match="is not UTF-8 text"):
        Pairs(root)


@pytest.mark.parametrize("kind", ["thermal", "label"])
def test_pictures_of_different_sizes_are_found_when_the_set_is_opened(tmp_path, kind):
    root = data_set(tmp_path, ENTRIES)
    file = next((root / kind).glob("c.1.*"))
    with Image.open(file) as picture:
        picture.crop((0, 0, 16, 8)).save(file)
    with pytest.raises(PairsError, match=rf"c.1: {kind} is \(8, 16\), the colour picture is"):
        Pairs(root)
    assert len(Pairs(root, lighting=("night",))) >= 1  # what is not chosen need not fit
