"""cmmfnet prepare: every raw layout in miniature, what is written, and what is said of wrong, half
and interrupted data."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmmfnet.cli import main
from cmmfnet.data.pairs import Pairs
from cmmfnet.data.prepare import (
    flir as layouts_flir,
)
from cmmfnet.data.prepare import (
    irvi as layouts_irvi,
)
from cmmfnet.data.prepare import (
    kaist as layouts_kaist,
)
from cmmfnet.data.prepare import (
    place,
    small_sets,
)
from cmmfnet.data.prepare import prepare as prepare_module
from cmmfnet.data.prepare.prepare import prepare, write_data_set
from cmmfnet.data.prepare.raw import PrepareError, RawPair

SIZE = (16, 12)


def picture(
    path: Path, seed: int | None = None, size: tuple[int, int] = SIZE, grey: bool = False
) -> Path:
    """A tiny picture of noise; the same path gives the same noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(path.name.encode()) if seed is None else seed)
    shape = (size[1], size[0]) if grey else (size[1], size[0], 3)
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path, quality=95)
    return path


def pair(thermal: Path, visible: Path, size: tuple[int, int] = SIZE) -> None:
    picture(thermal, grey=True, size=size)
    picture(visible, size=size)


def kaist(raw: Path, sets: dict[int, list[int]]) -> Path:
    """KAIST with ``sets``: set -> frames of each video."""
    for number, videos in sets.items():
        for v, frames in enumerate(videos):
            for i in range(frames):
                video = raw / "images" / f"set{number:02d}" / f"V{v:03d}"
                pair(video / "lwir" / f"I{i:05d}.jpg", video / "visible" / f"I{i:05d}.jpg")
    return raw


DAY_SETS = {0: [3, 2], 1: [2], 2: [2], 6: [2, 2], 7: [1], 8: [1]}
NIGHT_SETS = {3: [2], 4: [1], 5: [1], 9: [1], 10: [2], 11: [1]}


@pytest.fixture
def small_kaist(monkeypatch):
    sets = DAY_SETS | NIGHT_SETS
    monkeypatch.setattr(
        layouts_kaist, "COUNTS", {n: (sum(sets[n]), len(sets[n])) for n in sorted(sets)}
    )


def quiet(name: str, raw: Path, out: Path, **options) -> dict:
    """prepare without warnings being errors or noise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return prepare(name, raw, out, **options)


def entries(out: Path) -> dict[str, dict]:
    return {e["name"]: e for e in map(json.loads, (out / "index.jsonl").read_text().splitlines())}


def splits(out: Path) -> dict[str, list[str]]:
    chosen: dict[str, list[str]] = {}
    for name, entry in entries(out).items():
        chosen.setdefault(entry["split"], []).append(name)
    return chosen


def tree(out: Path) -> dict[str, bytes]:
    """Every file below ``out`` but data_set.json, which has the path of RAW and versions."""
    return {
        str(p.relative_to(out)): p.read_bytes()
        for p in out.rglob("*")
        if p.is_file() and p.name != "data_set.json"
    }


# --- KAIST


def test_kaist_whole(tmp_path, small_kaist, capsys):
    raw, out = kaist(tmp_path / "raw", DAY_SETS | NIGHT_SETS), tmp_path / "out"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        info = prepare("kaist", raw, out, train_all=True)
    found = entries(out)
    assert found["set00_V001_I00000"] == {
        "name": "set00_V001_I00000", "split": "train", "source": "kaist", "sequence": "set00/V001",
        "lighting": "day",
    }  # fmt: skip
    assert {n[:5] for n, e in found.items() if e["split"] == "train"} == {
        f"set0{i}" for i in range(6)
    }
    assert {n[:5] for n, e in found.items() if e["lighting"] == "night"} == {
        f"set{i:02d}" for i in NIGHT_SETS
    }
    day_train = Pairs(out, split="train", lighting=("day",))
    assert len(day_train) == 9 and len(Pairs(out, split="test", lighting=("day",))) == 6
    assert day_train[0].thermal.shape == (12, 16) and day_train[0].visible.shape == (12, 16, 3)
    assert info["counts"]["train"]["frames"] == 13
    assert info["counts"]["train"]["sequences"]["set00/V000"] == 3
    assert info["counts"]["test"]["lighting"] == {"day": 6, "night": 4}
    assert "val" not in info["counts"]
    assert info["protocol"] == "A" and info["geometry"] == "kaist-a"
    assert json.loads((out / "data_set.json").read_text()) == info
    printed = capsys.readouterr().out
    assert (
        "train       13 frames, 7 sequences: 13 kaist, 9 day, 4 night" in printed
        and info["sha256"] in printed
    )


def test_links_are_absolute_links_and_copies_are_not(tmp_path, small_kaist):
    raw = kaist(tmp_path / "raw", DAY_SETS)
    quiet("kaist", raw, tmp_path / "links")
    info = quiet("kaist", raw, tmp_path / "copies", copy=True)
    source = raw / "images" / "set00" / "V000" / "lwir" / "I00001.jpg"
    link, copy = (tmp_path / k / "thermal" / "set00_V000_I00001.jpg" for k in ("links", "copies"))
    assert link.is_symlink() and Path(os.readlink(link)) == source  # noqa: PTH115, Path.readlink would do the same
    assert (
        not copy.is_symlink()
        and not copy.samefile(source)
        and copy.read_bytes() == source.read_bytes()
    )
    assert info["files"] == {"copied": 30}


def test_hard_links_and_copies_where_links_are_refused(tmp_path, small_kaist, monkeypatch):
    raw = kaist(tmp_path / "raw", DAY_SETS)

    def refuse(*_):
        raise OSError("not on this file system")

    monkeypatch.setattr(place.os, "symlink", refuse)
    assert quiet("kaist", raw, tmp_path / "hard")["files"] == {"hard-linked": 30}
    monkeypatch.setattr(place.os, "link", refuse)
    assert quiet("kaist", raw, tmp_path / "copied")["files"] == {"copied": 30}
    assert tree(tmp_path / "hard") == tree(tmp_path / "copied")


def test_the_night_sets_may_be_missing_with_a_warning(tmp_path, small_kaist):
    raw = kaist(tmp_path / "raw", DAY_SETS)
    with pytest.warns(UserWarning, match="has no set03, set04, set05, set09, set10, set11"):
        info = prepare("kaist", raw, tmp_path / "out", train_all=True)
    assert info["counts"]["train"]["lighting"] == {"day": 9}


def test_protocol_b_has_the_frames_of_a_and_c_every_20th(tmp_path, monkeypatch):
    sets = {0: [45], 1: [19], 2: [20], 6: [40], 7: [1], 8: [1]}
    monkeypatch.setattr(layouts_kaist, "COUNTS", {n: (sum(f), 1) for n, f in sets.items()})
    raw = kaist(tmp_path / "raw", sets)
    a, b, c = (quiet("kaist", raw, tmp_path / p, protocol=p) for p in "ABC")
    assert a["sha256"] == b["sha256"] != c["sha256"]
    assert (a["geometry"], b["geometry"], c["geometry"]) == ("kaist-a", "kaist-b", "kaist-a")
    assert splits(tmp_path / "C") == {
        "train": ["set00_V000_I00019", "set00_V000_I00039", "set02_V000_I00019"],
        "test": ["set06_V000_I00019", "set06_V000_I00039"],
    }


def test_whole_videos_of_training_sets_are_held_out(tmp_path, small_kaist):
    raw = kaist(tmp_path / "raw", DAY_SETS)
    quiet("kaist", raw, tmp_path / "out")
    sequences = {s: {n[:10] for n in names} for s, names in splits(tmp_path / "out").items()}
    assert sequences["val"] == {"set00_V001"}  # the last of set00; sets of one video stay
    assert sequences["train"] == {"set00_V000", "set01_V000", "set02_V000"}
    assert sequences["test"] == {"set06_V000", "set06_V001", "set07_V000", "set08_V000"}


@pytest.mark.parametrize("below", ["", "images", "download"])
def test_kaist_is_found_in_and_above_its_images(tmp_path, small_kaist, below):
    raw = kaist(tmp_path / "download" / "kaist", DAY_SETS)
    where = {"": raw, "images": raw / "images", "download": tmp_path / "download"}[below]
    assert quiet("kaist", where, tmp_path / "out")["counts"]["test"]["frames"] == 6


def remove(root: Path, pattern: str) -> None:
    found = list(root.glob(pattern))
    assert found, pattern
    for path in found:
        path.unlink()


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (
            "images/set00/V000/*/I00001.jpg",
            r"set00: 4 of 5 frames, 2 of 2 videos, 1 frames before I00002 of V000",
        ),
        ("images/set06/V001/*/*.jpg", r"set06/V001: .*lwir has no pictures"),
        ("images/set07/V000/lwir/*.jpg", r"set07: 0 of 1 frames"),
        (
            "images/set00/V001/visible/I00000.jpg",
            r"set00/V001: 1 missing in V001/visible/ \(the first is I00000\)",
        ),
        (
            "images/set00/V001/lwir/I00001.jpg",
            r"set00/V001: 1 missing in V001/lwir/ \(the first is I00001\)",
        ),
    ],
)
def test_half_a_kaist_is_refused_and_taken_with_partial(tmp_path, small_kaist, broken, said):
    raw = kaist(tmp_path / "raw", DAY_SETS)
    remove(raw, broken)
    with pytest.raises(
        PrepareError,
        match=rf"(?s)found 1[234] frames, expected 15:.*{said}.*--partial.*--frames LIST",
    ):
        quiet("kaist", raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.warns(UserWarning, match=rf"(?s){said}.*using the part there is"):
        info = prepare("kaist", raw, tmp_path / "out", partial=True, train_all=True)
    assert info["partial"] is True
    assert (
        len(Pairs(tmp_path / "out"))
        == info["counts"]["train"]["frames"] + info["counts"]["test"]["frames"]
    )


def test_missing_sets_and_videos_and_strange_names_are_named_together(tmp_path, small_kaist):
    sets = {n: videos for n, videos in DAY_SETS.items() if n != 7} | {0: [3]}
    raw = kaist(tmp_path / "raw", sets)
    video = raw / "images" / "set08" / "V000"
    pair(video / "lwir" / "frame1.jpg", video / "visible" / "frame1.jpg")
    with pytest.raises(PrepareError) as caught:
        quiet("kaist", raw, tmp_path / "out")
    assert "set00: 3 of 5 frames, 1 of 2 videos, missing V001" in str(caught.value)
    assert "set07: 0 of 1 frames, 0 of 1 videos, missing V000" in str(caught.value)
    assert "set08/V000: 1 names are not like I00000.jpg (the first is frame1)" in str(caught.value)


def test_kaist_with_more_frames_than_published_is_not_kaist(tmp_path, small_kaist):
    raw = kaist(tmp_path / "raw", DAY_SETS | {8: [2]})
    with pytest.raises(PrepareError, match=r"set08: 2 of 1 frames"):
        quiet("kaist", raw, tmp_path / "out")


def test_the_published_counts():
    day = [frames for n, (frames, _) in layouts_kaist.COUNTS.items() if n in layouts_kaist.DAY]
    assert (sum(day[:3]), sum(day[3:])) == (
        33_399,
        29_179,
    )  # notes of the field; not 26,387 and 23,925
    assert sum(frames for frames, _ in layouts_kaist.COUNTS.values()) == 95_328


# --- frame lists


def test_a_list_picks_frames_of_an_incomplete_copy(tmp_path, small_kaist):
    raw = kaist(tmp_path / "raw", {0: [3], 6: [2]})
    (tmp_path / "list.txt").write_text(
        "\ufeff# mine\nset00/V000/I00002\n\nset06/V000/I00001.jpg\nval set00_V000_I00000\n"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        info = prepare("kaist", raw, tmp_path / "out", frames=tmp_path / "list.txt")
    assert (tmp_path / "out" / "frames.txt").read_text() == (
        "test set06_V000_I00001\ntrain set00_V000_I00002\nval set00_V000_I00000"
    )
    assert info["frames"] == str(tmp_path / "list.txt") and info["protocol"] == "A"
    # and the frames.txt of one is a list for the next
    again = prepare("kaist", raw, tmp_path / "again", frames=tmp_path / "out" / "frames.txt")
    assert again["sha256"] == info["sha256"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "set00/V000/I00007\nset00/V000/I00001\n",
            r"1 of 2 frames are not in this copy of 5 \(the first is set00/V000/I0",
        ),
        ("set00/V000/I00001\nset00_V000_I00001.jpg\n", "line 2: set00_V000_I00001 is there twice"),
        (
            "day set00/V000/I00001\n",
            "line 1: found 'day set00/V000/I00001'; expected NAME, or train, val or test",
        ),
        ("# nothing\n", "names no frames"),
    ],
)
def test_lists_that_cannot_be(tmp_path, small_kaist, text, said):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(PrepareError, match=said):
        prepare(
            "kaist",
            kaist(tmp_path / "raw", {0: [3], 6: [2]}),
            tmp_path / "out",
            frames=tmp_path / "list.txt",
        )


# --- IRVI


def irvi_triplets(clip: Path, split: str, starts: list[int], side: int = 32) -> None:
    """Triplets that begin at the given frames; frame i looks the same in every triplet."""
    for letter, grey in (("A", True), ("B", False)):
        for start in starts:
            frames = []
            for i in range(start, start + 3):
                rng = np.random.default_rng([i, grey])
                pixels = rng.integers(
                    0, 256, (side, side) if grey else (side, side, 3), dtype=np.uint8
                )
                frames.append(pixels // 8 * 8)
            path = clip / f"{split}{letter}" / f"{start:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.concatenate(frames, axis=1)).save(path, quality=95)


def irvi_singles(clip: Path, split: str, count: int, side: int = 32) -> None:
    for i in range(count):
        pair(clip / f"{split}A" / f"{i:05d}.jpg", clip / f"{split}B" / f"{i:05d}.jpg", (side, side))


@pytest.fixture
def small_irvi(monkeypatch):
    counts = {"traffic train": 5, "traffic test": 2, "monitoring train": 9, "monitoring test": 2}
    monkeypatch.setattr(layouts_irvi, "COUNTS", counts)
    monkeypatch.setattr(layouts_irvi, "BLOCK", 4)


def irvi(raw: Path) -> Path:
    irvi_triplets(raw / "triplet" / "traffic", "train", [0, 1, 2])  # frames 0 to 4, overlapping
    irvi_singles(raw / "triplet" / "traffic", "test", 2)
    irvi_triplets(raw / "triplet" / "rooftop_sub1", "train", [0, 3])
    irvi_triplets(raw / "triplet" / "rooftop_sub2", "train", [0])
    irvi_singles(raw / "triplet" / "rooftop_sub1", "test", 1)
    irvi_singles(raw / "triplet" / "rooftop_sub2", "test", 1)
    return raw


def test_irvi_triplets_are_cut_without_repeats(tmp_path, small_irvi):
    raw, out = irvi(tmp_path / "IRVI"), tmp_path / "out"
    info = prepare("irvi", raw, out, jobs=2)
    assert info["counts"]["train"]["sources"] == {"monitoring": 9, "traffic": 5}
    assert info["counts"]["test"]["sources"] == {"monitoring": 2, "traffic": 2}
    traffic = [n for n in splits(out)["train"] if "traffic" in n]
    assert traffic == [
        f"traffic_train_{n}" for n in ("00000-0", "00000-1", "00000-2", "00001-2", "00002-2")
    ]
    assert entries(out)["traffic_train_00002-2"]["sequence"] == "traffic/train/001"  # blocks of 4
    assert {e["sequence"].split("/")[0] for e in entries(out).values()} == {
        "traffic", "rooftop_sub1", "rooftop_sub2",
    }  # fmt: skip
    with Image.open(raw / "triplet" / "traffic" / "trainB" / "00001.jpg") as triplet:
        third = np.asarray(triplet)[:, 64:]
    pairs = Pairs(out, split="train", sources=("traffic",))
    assert np.array_equal(pairs[3].visible, third) and pairs[3].thermal.shape == (32, 32)
    assert (out / "thermal" / "traffic_train_00001-2.png").is_file()
    assert (out / "thermal" / "traffic_test_00000.jpg").is_symlink()


def test_irvi_single_frames_are_linked_and_preferred(tmp_path, small_irvi):
    raw = irvi(tmp_path / "IRVI")
    irvi_singles(raw / "single" / "traffic", "train", 5)
    irvi_singles(raw / "single" / "traffic", "test", 2)
    irvi_singles(raw / "single" / "rooftop_total", "train", 9)
    irvi_singles(raw / "single" / "rooftop_total", "test", 2)
    info = prepare("irvi", raw, tmp_path / "out")
    assert info["files"] == {"linked": 36}
    assert {n.rpartition("_")[0] for n in entries(tmp_path / "out")} == {
        "traffic_train", "traffic_test", "rooftop_total_train", "rooftop_total_test",
    }  # fmt: skip


def test_irvi_sub_folders_stand_for_their_total(tmp_path, small_irvi):
    raw = irvi(tmp_path / "IRVI")
    irvi_triplets(raw / "triplet" / "rooftop_total", "train", [0, 3, 6])
    irvi_singles(raw / "triplet" / "rooftop_total", "test", 2)
    assert prepare("irvi", raw, tmp_path / "out")["counts"]["train"]["sources"]["monitoring"] == 9
    assert not any("total" in name for name in entries(tmp_path / "out"))


def test_irvi_sides_with_other_names_are_matched_by_number(tmp_path, small_irvi):
    raw = irvi(tmp_path / "IRVI")
    for path in list(raw.rglob("testB/*.jpg")):
        path.rename(path.with_name(f"vis_{int(path.stem)}.jpg"))
    info = prepare("irvi", raw, tmp_path / "out")
    assert info["counts"]["test"]["frames"] == 4
    link = tmp_path / "out" / "visible" / "traffic_test_00001.jpg"
    assert link.resolve().name == "vis_1.jpg"


def test_irvi_half_and_wrong(tmp_path, small_irvi):
    raw = irvi(tmp_path / "IRVI")
    (raw / "triplet" / "traffic" / "testB" / "00001.jpg").unlink()
    with pytest.raises(PrepareError, match=r"1 missing in traffic/testB/ \(the first is 00001\)"):
        prepare("irvi", raw, tmp_path / "out")
    with pytest.raises(
        PrepareError, match=r"missing 1 traffic test, 9 monitoring train, 2 monitoring test"
    ):
        (raw / "triplet" / "traffic" / "testA" / "00001.jpg").unlink()
        prepare("irvi", raw / "triplet" / "traffic", tmp_path / "out")
    with pytest.warns(UserWarning, match="missing 1 traffic test"):
        info = prepare("irvi", raw / "triplet" / "traffic", tmp_path / "out", partial=True)
    assert info["counts"]["train"]["sources"] == {"traffic": 5}
    picture(raw / "triplet" / "traffic" / "testA" / "00000.jpg", size=(48, 32))
    with pytest.raises(
        PrepareError, match=r"is \(48, 32\).*expected a square frame, or three side by side"
    ):
        prepare("irvi", raw, tmp_path / "odd")
    (raw / "triplet").rename(raw / "things")
    (raw / "things" / "traffic").rename(raw / "things" / "unknown")
    with pytest.raises(PrepareError, match=r"unknown may be Traffic or Monitoring"):
        prepare("irvi", raw, tmp_path / "odd")


# --- FLIR


def flir_v1(raw: Path) -> Path:
    for folder, count in (("train", 4), ("val", 3), ("video", 2)):
        for i in range(1, count + 1):
            picture(raw / folder / "thermal_8_bit" / f"FLIR_{i:05d}.jpeg", grey=True, size=(20, 16))
            if i > 1:  # the first has no colour file
                picture(raw / folder / "RGB" / f"FLIR_{i:05d}.jpg", size=(36, 32))
    return raw


@pytest.fixture
def small_flir(monkeypatch):
    monkeypatch.setattr(layouts_flir, "V1", {"train": (4, 1), "val": (3, 1), "test": (2, 1)})
    monkeypatch.setattr(layouts_flir, "V2", 3)
    monkeypatch.setattr(layouts_flir, "ALIGNED", {"train": 2, "val": 1})


def test_flir_v1_is_cut_resampled_and_marked_as_unregistered(tmp_path, small_flir):
    with pytest.warns(UserWarning) as caught:
        info = prepare("flir", flir_v1(tmp_path / "raw"), tmp_path / "out")
    said = " ".join(str(w.message) for w in caught)
    assert "without a colour file are left out: 1 of train, 1 of val, 1 of video" in said
    assert "not registered" in said
    assert splits(tmp_path / "out") == {
        "train": ["train_FLIR_00002", "train_FLIR_00003", "train_FLIR_00004"],
        "val": ["val_FLIR_00002", "val_FLIR_00003"],
        "test": ["video_FLIR_00002"],
    }
    entry = entries(tmp_path / "out")["video_FLIR_00002"]
    assert (
        entry["aligned"] is False
        and entry["lighting"] == "none"
        and entry["sequence"] == "flir/video"
    )
    assert info["files"] == {"linked": 6, "written": 6}
    assert Pairs(tmp_path / "out", split="val")[0].visible.shape == (16, 20, 3)


def test_flir_v1_with_other_counts(tmp_path, small_flir):
    raw = flir_v1(tmp_path / "raw")
    (raw / "val" / "RGB" / "FLIR_00003.jpg").unlink()
    with pytest.raises(
        PrepareError, match=r"found .*1 val pairs.*expected .*2 val pairs.*missing 1 val pairs"
    ):
        quiet("flir", raw, tmp_path / "out")
    assert quiet("flir", raw, tmp_path / "out", partial=True)["counts"]["val"]["frames"] == 1


def flir_v2(raw: Path) -> Path:
    partners = {}
    for i in range(3):
        thermal, colour = f"video-AbC-frame-{i:06d}-t{i}.jpg", f"video-XyZ-frame-{i:06d}-c{i}.jpg"
        picture(raw / "video_thermal_test" / "data" / thermal, grey=True, size=(20, 16))
        picture(raw / "video_rgb_test" / "data" / colour, size=(40, 36))
        partners[colour] = thermal
    (raw / "rgb_to_thermal_vid_map.json").write_text(json.dumps(partners))
    images = [
        {"file_name": f"data/{t}", "extra_info": {"hours": "night"}}
        for t in list(partners.values())[:1]
    ]
    (raw / "video_thermal_test" / "coco.json").write_text(json.dumps({"images": images}))
    return raw


@pytest.mark.parametrize("map_above", [False, True])
def test_flir_v2_pairs_come_from_the_map(tmp_path, small_flir, map_above):
    raw = flir_v2(tmp_path / "raw" / "FLIR_ADAS_v2")
    if map_above:  # as in the archive
        (raw / layouts_flir.MAP).rename(raw.parent / layouts_flir.MAP)
    info = quiet("flir", tmp_path / "raw", tmp_path / "out")
    assert info["counts"]["test"]["sequences"] == {"flir/AbC": 3}
    found = entries(tmp_path / "out")
    assert [e["lighting"] for e in found.values()] == ["night", "none", "none"]
    pair = Pairs(tmp_path / "out")[0]
    assert pair.visible.shape == (16, 20, 3) and pair.meta["aligned"] is False


def test_flir_v2_wrong_and_half(tmp_path, small_flir):
    raw = flir_v2(tmp_path / "raw")
    (raw / "video_rgb_test" / "data" / "video-XyZ-frame-000001-c1.jpg").unlink()
    with pytest.raises(PrepareError, match=r"found 3 names in the map, 2 pairs; .*missing 1 pairs"):
        quiet("flir", raw, tmp_path / "out")
    (raw / "video_thermal_test" / "coco.json").write_text('{"images": [')
    with pytest.raises(PrepareError, match="expected COCO annotations"):
        quiet("flir", raw, tmp_path / "out")
    (raw / layouts_flir.MAP).write_text("[1]")
    with pytest.raises(PrepareError, match="expected a JSON object of colour name: thermal name"):
        quiet("flir", raw, tmp_path / "out")
    (raw / layouts_flir.MAP).unlink()
    with pytest.raises(PrepareError, match=r"has no rgb_to_thermal_vid_map\.json"):
        quiet("flir", raw, tmp_path / "out")


def test_the_view_of_the_thermal_camera_in_the_colour_frame():
    assert layouts_flir.centre_box((1800, 1600), 1.0, (640, 512)) == (0, 80, 1800, 1520)
    left, top, right, bottom = layouts_flir.centre_box(
        (1224, 1024), layouts_flir.V2_VIEW, (640, 512)
    )
    assert (right - left, bottom - top) == (1021, 817)  # 45 of 52.8 degrees; 816.9
    assert left + right in (1223, 1224) and top + bottom in (1023, 1024)
    assert layouts_flir.centre_box((100, 40), 1.0, (5, 4)) == (
        25,
        0,
        75,
        40,
    )  # too low for its whole width


@pytest.mark.parametrize("lists_in", ["", "ImageSets/Main"])
def test_flir_aligned(tmp_path, small_flir, lists_in):
    raw = tmp_path / "raw" / "align"
    for i in range(3):
        pair(
            raw / "JPEGImages" / f"FLIR_{i:05d}_PreviewData.jpeg",
            raw / "JPEGImages" / f"FLIR_{i:05d}_RGB.jpg",
        )
    (raw / lists_in).mkdir(parents=True, exist_ok=True)
    (raw / lists_in / "align_train.txt").write_text("FLIR_00000_PreviewData\nFLIR_00002\n")
    (raw / lists_in / "align_validation.txt").write_text("FLIR_00001_PreviewData.jpeg\n")
    info = prepare("flir", tmp_path / "raw", tmp_path / "out")
    assert splits(tmp_path / "out") == {
        "train": ["FLIR_00000", "FLIR_00002"],
        "val": ["FLIR_00001"],
    }
    assert info["files"] == {"linked": 6} and info["counts"]["val"]["sources"] == {
        "flir-aligned": 1
    }
    (raw / "JPEGImages" / "FLIR_00002_RGB.jpg").unlink()
    with pytest.raises(PrepareError, match=r"missing 1 train pairs"):
        prepare("flir", raw, tmp_path / "half")


def test_what_is_no_flir(tmp_path):
    (tmp_path / "raw" / "pictures").mkdir(parents=True)
    with pytest.raises(PrepareError, match=r"expected ADAS v1.3 .* found pictures/"):
        prepare("flir", tmp_path / "raw", tmp_path / "out")


# --- LLVIP, MSRS, M3FD, RoadScene


def side_by_side(
    raw: Path, thermal: str, visible: str, names: list[str], suffix: str = ".png"
) -> None:
    for name in names:
        pair(raw / thermal / (name + suffix), raw / visible / (name + suffix))


@pytest.mark.parametrize("below", [".", "LLVIP"])
def test_llvip(tmp_path, monkeypatch, below):
    monkeypatch.setitem(small_sets.PUBLISHED, "llvip", {"train": 2, "test": 1})
    raw = tmp_path / "raw" / below
    side_by_side(raw, "infrared/train", "visible/train", ["010001", "020001"], ".jpg")
    side_by_side(raw, "infrared/test", "visible/test", ["190001"], ".jpg")
    prepare("llvip", tmp_path / "raw", tmp_path / "out")
    assert splits(tmp_path / "out") == {"train": ["010001", "020001"], "test": ["190001"]}
    assert {e["lighting"] for e in entries(tmp_path / "out").values()} == {"night"}
    assert entries(tmp_path / "out")["020001"]["sequence"] == "llvip/02"
    (raw / "visible" / "train" / "010001.jpg").unlink()
    with pytest.raises(
        PrepareError, match=r"found 2 thermal and 1 colour pictures; 1 missing in visible/train/"
    ):
        prepare("llvip", tmp_path / "raw", tmp_path / "half")


def test_msrs(tmp_path, monkeypatch):
    monkeypatch.setitem(small_sets.PUBLISHED, "msrs", {"train": 2, "test": 1})
    raw = tmp_path / "raw"
    side_by_side(raw, "train/ir", "train/vi", ["00001D", "00881N"])
    side_by_side(raw, "test/ir", "test/vi", ["00537D"])
    prepare("msrs", raw, tmp_path / "out")
    assert {n: (e["split"], e["lighting"]) for n, e in entries(tmp_path / "out").items()} == {
        "00001D": ("train", "day"), "00881N": ("train", "night"), "00537D": ("test", "day"),
    }  # fmt: skip
    with pytest.raises(PrepareError, match="expected one folder with train/ and test/"):
        prepare("msrs", raw / "train", tmp_path / "half")
    side_by_side(raw, "test/ir", "test/vi", ["00538X"])
    with pytest.raises(
        PrepareError, match=r"00538X.png: expected a name that ends in D \(day\) or N \(night\)"
    ):
        prepare("msrs", raw, tmp_path / "half")


def test_a_part_of_msrs_that_has_one_split_only(tmp_path, monkeypatch):
    monkeypatch.setitem(small_sets.PUBLISHED, "msrs", {"train": 2, "test": 1})
    side_by_side(tmp_path / "raw", "train/ir", "train/vi", ["00001D", "00881N"])
    with pytest.warns(
        UserWarning, match="found 2 train, 0 test; expected 2 train, 1 test; missing 1 test"
    ):
        info = prepare("msrs", tmp_path / "raw", tmp_path / "out", partial=True)
    assert list(info["counts"]) == ["train"]


def test_m3fd_for_detection_is_split_by_blocks(tmp_path, monkeypatch):
    monkeypatch.setitem(small_sets.PUBLISHED, "m3fd", {"pairs": 12})
    monkeypatch.setattr(
        small_sets,
        "fifth_blocks",
        lambda names, size, original=small_sets.fifth_blocks: original(names, 2),
    )
    raw = tmp_path / "M3FD_Detection"
    side_by_side(raw, "Ir", "Vis", [f"{i:05d}" for i in range(12)])
    (raw / "Annotation").mkdir()
    prepare("m3fd", raw, tmp_path / "out")
    assert splits(tmp_path / "out")["test"] == ["00008", "00009"]
    assert len(splits(tmp_path / "out")["train"]) == 10
    assert Pairs(
        tmp_path / "out", sources=("m3fd",), lighting=("none",)
    )  # unknown, so neither day nor night
    with pytest.raises(
        PrepareError, match=r"found 12 pairs; expected 4,200 pairs; missing 4,188 pairs"
    ):
        monkeypatch.setitem(small_sets.PUBLISHED, "m3fd", {"pairs": 4_200})
        prepare("m3fd", raw, tmp_path / "half")


def test_m3fd_for_fusion_is_for_testing(tmp_path, monkeypatch):
    monkeypatch.setitem(small_sets.PUBLISHED, "m3fd-fusion", {"pairs": 3})
    side_by_side(tmp_path / "raw" / "M3FD_Fusion", "Ir", "Vis", ["1", "2", "10"])
    info = prepare("m3fd", tmp_path / "raw", tmp_path / "out")
    assert info["counts"]["test"]["sources"] == {"m3fd-fusion": 3} and len(info["counts"]) == 1
    side_by_side(tmp_path / "raw" / "M3FD_Detection", "Ir", "Vis", ["1"])
    with pytest.raises(
        PrepareError,
        match=r"expected one folder with Ir/ and Vis/.*found .*M3FD_Detection, .*M3FD_F",
    ):
        prepare("m3fd", tmp_path / "raw", tmp_path / "both")


def test_m3fd_with_lists(tmp_path, monkeypatch):
    monkeypatch.setitem(small_sets.PUBLISHED, "m3fd", {"pairs": 4})
    raw = tmp_path / "m3fd"
    side_by_side(raw, "ir", "vi", ["00000", "00001", "00002", "00003"])
    (raw / "meta").mkdir()
    (raw / "meta" / "train.txt").write_text("00000.png\n00002.png\n")
    (raw / "meta" / "val.txt").write_text("00001.png\n")
    (raw / "meta" / "pred.txt").write_text("00001.png\n00003.png\n")
    prepare("m3fd", raw, tmp_path / "out")
    assert splits(tmp_path / "out") == {
        "train": ["00000", "00002"],
        "val": ["00001"],
        "test": ["00003"],
    }
    (raw / "meta" / "val.txt").write_text("00009.png\n")
    with pytest.raises(
        PrepareError, match=r"val.txt: 1 of 1 names have no pair \(the first is 00009\)"
    ):
        prepare("m3fd", raw, tmp_path / "half")


def test_roadscene_in_both_variants(tmp_path, monkeypatch):
    monkeypatch.setitem(small_sets.PUBLISHED, "roadscene", {"pairs": 3})
    raw = tmp_path / "road-scene"
    for i, size in enumerate([(16, 12), (20, 14), (18, 18)]):
        name = f"FLIR_{i:05d}.jpg"
        pair(raw / "cropinfrared" / name, raw / "crop_LR_visible" / name, size)
        picture(raw / "crop_HR_visible" / name, size=(2 * size[0], 2 * size[1]))
    info = prepare("roadscene", tmp_path / "road-scene", tmp_path / "low")
    assert info["files"] == {"linked": 6} and Pairs(tmp_path / "low")[1].visible.shape == (
        14,
        20,
        3,
    )
    assert "aligned" not in entries(tmp_path / "low")["FLIR_00001"]
    (raw / "crop_LR_visible").rename(tmp_path / "away")
    with pytest.warns(UserWarning, match="crop_HR_visible is not known to be aligned"):
        prepare("roadscene", raw, tmp_path / "high")
    assert Pairs(tmp_path / "high")[1].visible.shape == (14, 20, 3)
    assert entries(tmp_path / "high")["FLIR_00001"]["aligned"] is False
    (raw / "crop_HR_visible").rename(tmp_path / "away too")
    with pytest.raises(
        PrepareError, match=r"expected cropinfrared/ and crop_LR_visible/ .*found cropinfrared/"
    ):
        prepare("roadscene", raw, tmp_path / "none")


def test_blocks_keep_neighbours_together():
    chosen = small_sets.fifth_blocks([f"FLIR_{i}" for i in range(221)], 20)
    test = [i for i in range(221) if chosen[f"FLIR_{i}"] == "test"]
    assert test == [*range(80, 100), *range(180, 200)]


# --- the writer


def raw_pairs(folder: Path, names: list[str]) -> list[RawPair]:
    pairs = []
    for i, name in enumerate(names):
        thermal = picture(folder / f"{i}_t.png", grey=True)
        pairs.append(
            RawPair(
                name, thermal, picture(folder / f"{i}_v.jpg"), "train" if i % 2 else "test", "mine"
            )
        )
    return pairs


def test_counts_and_checksum_do_not_depend_on_order_or_jobs(tmp_path, small_irvi):
    pairs = raw_pairs(tmp_path / "raw", [f"n{i}" for i in range(12)])
    shuffled = random.Random(0).sample(pairs, len(pairs))
    one, four = (
        write_data_set(pairs, tmp_path / "1", jobs=1),
        write_data_set(shuffled, tmp_path / "4", jobs=4),
    )
    assert one == four and tree(tmp_path / "1") == tree(tmp_path / "4")
    frames = (tmp_path / "1" / "frames.txt").read_bytes()
    assert one["sha256"] == hashlib.sha256(frames).hexdigest()
    assert frames == "\n".join(sorted(f"{p.split} {p.name}" for p in pairs)).encode()
    assert (
        not list((tmp_path / "1").glob("**/.*"))
        and not (tmp_path / "1" / prepare_module.MARKER).exists()
    )
    irvi(tmp_path / "IRVI")  # cutting, too
    for jobs in (1, 4):
        prepare("irvi", tmp_path / "IRVI", tmp_path / f"irvi{jobs}", jobs=jobs)
    assert tree(tmp_path / "irvi1") == tree(tmp_path / "irvi4")


def test_the_checksums_are_those_that_an_evaluation_prints(tmp_path, small_kaist):
    from cmmfnet.evaluation import protocol

    out = tmp_path / "out"
    info = quiet("kaist", kaist(tmp_path / "raw", DAY_SETS | NIGHT_SETS), out)
    assert info["sha256"] == protocol.frames_sha256(Pairs(out).entries)
    test = info["counts"]["test"]["sha256"]
    assert test["all"] == protocol.frames_sha256(Pairs(out, split="test").entries)
    assert (
        test["day"]
        == protocol.frames_sha256(Pairs(out, split="test", lighting=("day",)).entries)
        != test["all"]
    )
    assert set(layouts_kaist.GEOMETRY.values()) <= protocol.GEOMETRIES.keys()


def test_boxes_keep_16_bits_and_orientation_of_the_axes(tmp_path):
    values = np.arange(24 * 10, dtype=np.uint16).reshape(10, 24) + 7000
    Image.fromarray(values).save(tmp_path / "both.png")
    picture(tmp_path / "colour.bmp", size=(24, 10))
    boxes = {"thermal_box": (2, 1, 12, 7), "visible_box": (14, 4, 24, 10)}
    write_data_set(
        [RawPair("a", tmp_path / "both.png", tmp_path / "colour.bmp", "val", "x", **boxes)],
        tmp_path / "out",
    )
    with Image.open(tmp_path / "out" / "thermal" / "a.png") as cut:
        assert np.array_equal(np.asarray(cut), values[1:7, 2:12])
    with (
        Image.open(tmp_path / "out" / "visible" / "a.png") as cut,
        Image.open(tmp_path / "colour.bmp") as whole,
    ):
        assert np.array_equal(np.asarray(cut), np.asarray(whole)[4:10, 14:24])


def test_resampling_takes_the_box_and_averages(tmp_path):
    colours = np.zeros((20, 40, 3), np.uint8)
    colours[:, 20:] = 200
    Image.fromarray(colours).save(tmp_path / "v.png")
    picture(tmp_path / "t.png", grey=True, size=(5, 5))
    job = RawPair(
        "a",
        tmp_path / "t.png",
        tmp_path / "v.png",
        "train",
        "x",
        None,
        None,
        (20, 0, 40, 20),
        (5, 5),
    )
    write_data_set([job], tmp_path / "out")
    shown = Pairs(tmp_path / "out")[0].visible
    assert (
        shown[:, 3:] == 200
    ).all()  # away from the black half, that the filter reaches into at the border
    assert (np.abs(shown.astype(int) - 200) < 20).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "a b"}, r"1 names are not made of letters, digits, - and _ .*'a b'"),
        ({"name": "../a"}, "are not made of letters"),
        ({"name": ""}, "are not made of letters"),
        ({"name": "N1"}, r"two pairs would be called N1|two pairs would be called n1"),
        ({"split": "training"}, "n0 has split 'training'; expected one of train, val, test"),
        ({"visible": Path("a.gif")}, r"a.gif: expected a picture"),
        (
            {"thermal": Path("nowhere.png")},
            r"1 of 3 pairs cannot be used:\n  n0: nowhere.png does not exist",
        ),
        ({"thermal_box": (0, 0, 17, 12)}, r"the box \(0, 0, 17, 12\) does not lie in it"),
        (
            {"thermal_box": (0, 0, 8, 6)},
            r"n0: .*0_t.png is \(8, 6\), .*0_v.jpg is \(16, 12\) \(width, height\)",
        ),
    ],
)
def test_pairs_that_cannot_be(tmp_path, change, said):
    first, *others = raw_pairs(tmp_path / "raw", ["n0", "n1", "n2"])
    wrong = RawPair(**{**first.__dict__, **change})
    with pytest.raises(PrepareError, match=said):
        write_data_set([wrong, *others], tmp_path / "out")
    assert not (tmp_path / "out" / "index.jsonl").exists()


def test_nothing_to_prepare(tmp_path):
    with pytest.raises(PrepareError, match="not one pair"):
        write_data_set([], tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"<html>quota exceeded</html>"])
def test_files_that_are_no_pictures_are_named_and_can_be_replaced(tmp_path, content):
    pairs = raw_pairs(tmp_path / "raw", ["n0", "n1", "n2"])
    good = pairs[1].visible.read_bytes()
    pairs[1].visible.write_bytes(content)
    with pytest.raises(
        PrepareError,
        match=rf"1 of 3 pairs .*\n  n1: .*1_v.jpg \({len(content)} bytes\) is no picture",
    ):
        write_data_set(pairs, tmp_path / "out")
    assert not (tmp_path / "out" / "index.jsonl").exists()
    pairs[1].visible.write_bytes(good)
    write_data_set(pairs, tmp_path / "out")
    assert len(Pairs(tmp_path / "out")) == 3


def test_a_damaged_picture_that_is_to_be_cut(tmp_path):
    (job,) = raw_pairs(tmp_path / "raw", ["n0"])
    job.visible.write_bytes(job.visible.read_bytes()[:-200])
    with pytest.raises(PrepareError, match=r"0_v\.jpg is damaged"):
        write_data_set(
            [RawPair(**{**job.__dict__, "visible_box": (0, 0, 16, 12)})], tmp_path / "out"
        )


def test_stopped_half_way_the_same_command_goes_on(tmp_path, small_irvi, monkeypatch):
    raw, out = irvi(tmp_path / "IRVI"), tmp_path / "out"
    cut, calls = place._cut, []

    def stop_at_five(*arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        cut(*arguments)

    monkeypatch.setattr(place, "_cut", stop_at_five)
    with pytest.raises(KeyboardInterrupt):
        prepare("irvi", raw, out, jobs=1)
    assert not (out / "index.jsonl").exists()  # so nobody takes it for a data set
    done = {p: p.stat().st_mtime_ns for p in out.rglob("*.png")}
    assert 4 <= len(done) < 20  # what was under way when the stop came is finished
    # other raw data in the same folder is not mixed in
    with pytest.raises(PrepareError, match="was begun with other options or other raw data"):
        prepare("irvi", raw, out, copy=True)

    monkeypatch.setattr(place, "_cut", cut)
    info = prepare("irvi", raw, out, jobs=1)
    assert {p: p.stat().st_mtime_ns for p in done} == done  # not made again
    assert info == {**prepare("irvi", raw, tmp_path / "at once"), "plan": info["plan"]}
    assert tree(out) == tree(tmp_path / "at once")


def test_a_full_disk_leaves_no_data_set_and_no_half_pictures(
    tmp_path, small_kaist, monkeypatch, disk_full_while_writing
):
    raw = kaist(tmp_path / "raw", DAY_SETS)
    place_pair = prepare_module.place_pair

    def fill_after_five(job, out, copy):
        if len(list((out / "thermal").iterdir())) == 5:
            disk_full_while_writing()
        return place_pair(job, out, copy)

    monkeypatch.setattr(prepare_module, "place_pair", fill_after_five)
    with pytest.raises(OSError, match="No space left on device"):
        quiet("kaist", raw, tmp_path / "out", copy=True, jobs=1)
    monkeypatch.undo()
    assert not (tmp_path / "out" / "index.jsonl").exists()
    assert not list((tmp_path / "out").rglob("*.part"))


def test_killed_runs_are_finished_by_the_same_command(tmp_path):
    """Killed as it wrote its first file, as it wrote a picture, and as it took its mark away."""
    pairs = raw_pairs(tmp_path / "raw", ["n0", "n1"])
    write_data_set(pairs, tmp_path / "whole")
    out = tmp_path / "out"
    out.mkdir()
    (out / ".cmmfnet-0123456789ab.part").write_text('{"plan"')
    write_data_set(pairs, out)
    plan = json.loads((out / "data_set.json").read_text())["plan"]
    (out / "thermal" / ".cmmfnet-0123456789ab.part").write_bytes(b"half")
    (out / prepare_module.MARKER).write_text(json.dumps({"plan": plan}))
    write_data_set(pairs, out)
    assert tree(out) == tree(tmp_path / "whole") and not list(out.rglob(".*"))
    assert not (out / prepare_module.MARKER).exists()


def test_links_that_lead_nowhere_are_left_out_with_a_warning(tmp_path, small_kaist):
    raw = kaist(tmp_path / "raw", DAY_SETS)
    lost = sorted(raw.rglob("lwir/*.jpg"))[0]
    lost.unlink()
    lost.symlink_to("../.git/annex/objects/x.jpg")
    with pytest.warns(UserWarning, match=r"1 links lead nowhere and are left out; .*git annex get"):
        prepare("kaist", raw, tmp_path / "out", partial=True)
    assert len(entries(tmp_path / "out")) == sum(map(sum, DAY_SETS.values())) - 1


def test_a_finished_folder_and_a_foreign_one_are_refused(tmp_path):
    pairs = raw_pairs(tmp_path / "raw", ["n0", "n1"])
    write_data_set(pairs, tmp_path / "out")
    before = tree(tmp_path / "out")
    with pytest.raises(
        PrepareError, match=r"is a finished data set .*delete it or name another folder"
    ):
        write_data_set(pairs, tmp_path / "out")
    assert tree(tmp_path / "out") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(PrepareError, match="is not empty, and this command did not begin it"):
        write_data_set(pairs, tmp_path / "mine")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("llvip", {"protocol": "A"}, "--protocol is for kaist only; leave it out for llvip"),
        ("irvi", {"train_all": True}, "--train-all is for kaist only"),
        ("folder", {"partial": True}, "--partial is for sets with published counts"),
        ("kaist", {"protocol": "C", "frames": Path("x")}, "--protocol C chooses every 20th frame"),
        ("kaist", {"frames": Path("no-list.txt")}, "--frames no-list.txt does not exist"),
        ("kaist", {"jobs": 0}, "--jobs is 0; expected 1 or more"),
        ("kaist", {"shards": 0}, "--shards is 0"),
    ],
)
def test_requests_that_make_no_sense(tmp_path, small_kaist, name, options, said):
    raw = kaist(tmp_path / "raw", {0: [1], 6: [1]})
    with pytest.raises(PrepareError, match=said):
        prepare(name, raw, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_raw_must_be_a_folder_other_than_out(tmp_path):
    with pytest.raises(PrepareError, match="is no folder; expected the unpacked data set"):
        prepare("kaist", tmp_path / "kaist.zip", tmp_path / "out")
    with pytest.raises(PrepareError, match="OUT is RAW"):
        prepare("kaist", tmp_path, tmp_path / "x" / "..")


@pytest.mark.parametrize("name", ["kaist", "irvi", "flir", "llvip", "m3fd", "msrs", "roadscene"])
def test_an_empty_or_wrong_folder_says_what_it_has(tmp_path, name):
    with pytest.raises(PrepareError, match=r"expected .*found nothing"):
        prepare(
            name,
            tmp_path / "empty" if (tmp_path / "empty").mkdir() is None else tmp_path,
            tmp_path / "out",
        )
    picture(tmp_path / "wrong" / "cats" / "1.jpg")
    with pytest.raises(PrepareError, match=r"expected .*found cats/"):
        prepare(name, tmp_path / "wrong", tmp_path / "out")


def test_alignment_and_shards_follow_also_on_a_finished_folder(tmp_path, small_kaist, monkeypatch):
    calls = []
    alignment, shards = (
        type(sys)("cmmfnet.data.prepare.alignment"),
        type(sys)("cmmfnet.data.prepare.write_shards"),
    )
    alignment.check_alignment = lambda out, *, jobs: calls.append(("alignment", out, jobs))
    shards.write_shards = lambda folder, out, *, shard_mb: (
        calls.append(("shards", folder, out, shard_mb)) or out
    )
    for module in (alignment, shards):
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(
            sys.modules["cmmfnet.data.prepare"],
            module.__name__.rpartition(".")[2],
            module,
            raising=False,
        )
    raw, out = kaist(tmp_path / "raw", DAY_SETS), tmp_path / "out"
    quiet("kaist", raw, out, shards=64, jobs=1)
    quiet("kaist", raw, out, check_alignment=True, jobs=1)
    assert calls == [("shards", out, out / "shards", 64), ("alignment", out, 1)]
    with pytest.raises(PrepareError, match="is a finished data set of other pairs"):
        quiet("kaist", raw, out, train_all=True, check_alignment=True)


# --- the command line


def test_through_the_command_line(tmp_path):
    raw = kaist(tmp_path / "raw", {0: [2], 6: [1]})
    environment = {**os.environ, "PYTHONPATH": str(Path(small_sets.__file__).parents[3])}
    command = [sys.executable, "-m", "cmmfnet", "prepare", "kaist", str(raw), str(tmp_path / "out")]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert (
        "found 3 frames, expected 62,578" in refused.stderr
        and "set01: 0 of 8,035 frames" in refused.stderr
    )
    command += ["--partial", "--protocol", "B", "--jobs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    assert "kaist, protocol B" in done.stdout and "train       2 frames" in done.stdout
    assert "cmmfnet: warning:" in done.stderr
    assert len(Pairs(tmp_path / "out", split="train")) == 2


def test_the_command_knows_its_options(tmp_path, small_kaist, capsys):
    raw = kaist(tmp_path / "raw", DAY_SETS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert (
            main(["prepare", "kaist", str(raw), str(tmp_path / "out"), "--train-all", "--copy"])
            == 0
        )
        assert main(["prepare", "kaist", str(raw), str(tmp_path / "out"), "--train-all"]) == 2
    assert "is a finished data set" in capsys.readouterr().err
