"""The user's own pairs: four layouts recognised, splits by blocks, and what is said about
everything else."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import camera_files
import numpy as np
import pytest
from PIL import Image

from cmmfnet.cli import main
from cmmfnet.data.pairs import Pairs
from cmmfnet.data.prepare.folder import hold_out, read_folder
from cmmfnet.data.prepare.raw import PrepareError, RawPair
from cmmfnet.thermal.frame import read_thermal

SIZE = (12, 16)  # height, width
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, SIZE, dtype=np.uint8)
COLOUR = (RNG.integers(0, 256, (*SIZE, 3)) // (1, 2, 4)).astype(np.uint8)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def pair(raw: Path, thermal: str, visible: str) -> None:
    save(raw / thermal, GREY)
    save(raw / visible, COLOUR)


def side_by_side(path: Path, thermal_left: bool = True) -> Path:
    halves = [np.repeat(GREY[..., None], 3, 2), COLOUR]
    return save(path, np.concatenate(halves if thermal_left else halves[::-1], 1))


def seen(pairs: list[RawPair]) -> list[tuple]:
    return [(p.name, p.split, p.sequence) for p in pairs]


def error(raw: Path) -> str:
    with pytest.raises(PrepareError) as caught:
        read_folder(raw)
    return str(caught.value)


# --- (a) two folders


@pytest.mark.parametrize("thermal", ["thermal", "ir", "lwir", "Infrared", "TIR", "A"])
@pytest.mark.parametrize("visible", ["visible", "VIS", "rgb", "vi", "color", "colour", "B"])
def test_two_folders_with_equal_stems(tmp_path, thermal, visible):
    for i in range(3):
        pair(tmp_path, f"{thermal}/cat {i}.png", f"{visible}/cat {i}.jpg")
    pairs = read_folder(tmp_path)
    assert [p.name for p in pairs] == ["cat-0", "cat-1", "cat-2"]
    assert {p.thermal.parent.name for p in pairs} == {thermal} and {
        p.visible.suffix for p in pairs
    } == {".jpg"}
    assert {p.source for p in pairs} == {"folder"}


def test_splits_below_and_above_and_sub_folders_as_sequences(tmp_path):
    for layout in (
        "{split}/{side}/{seq}/1.png",
        "{side}/{split}/{seq}/1.png",
        "{seq}/{split}/{side}/1.png",
    ):
        raw = tmp_path / re.sub(r"\W", "", layout)
        for split in ("train", "validation", "test"):
            for seq in ("a", "b"):
                pair(
                    raw,
                    layout.format(split=split, side="thermal", seq=seq),
                    layout.format(split=split, side="rgb", seq=seq),
                )
        assert seen(read_folder(raw)) == [
            (f"{split}_{seq}_1", split, seq)
            for split in ("test", "train", "val")
            for seq in ("a", "b")
        ]


def test_sequences_may_be_called_a_and_b_and_archives_have_a_folder_around(tmp_path):
    for seq in "AB":
        for i in range(2):
            pair(tmp_path, f"my data/thermal/{seq}/{i}.png", f"my data/visible/{seq}/{i}.png")
    assert [(p.name, p.sequence) for p in read_folder(tmp_path)][:2] == [("A_0", "A"), ("A_1", "A")]


def test_16_bits_and_hidden_files(tmp_path):
    pair(tmp_path, "thermal/1.png", "visible/1.png")
    save(tmp_path / "thermal" / "2.tiff", GREY.astype(np.uint16) * 100)
    save(tmp_path / "visible" / "2.bmp", COLOUR)
    (tmp_path / "thermal" / "._1.png").write_bytes(b"\0\5\x16\7")  # AppleDouble
    (tmp_path / "__MACOSX" / "thermal").mkdir(parents=True)
    (tmp_path / "__MACOSX" / "thermal" / "3.png").write_bytes(b"")
    assert [p.thermal.name for p in read_folder(tmp_path)] == ["1.png", "2.tiff"]


def test_missing_partners_are_counted_and_named(tmp_path):
    for i in range(12):
        pair(tmp_path, f"thermal/{i}.png", f"visible/{i + 3}.png")
    text = error(tmp_path)
    assert text.startswith("6 of 12 thermal and 12 colour pictures have no partner")
    assert (
        "thermal/0.png; thermal/1.png; thermal/2.png; visible/12.png; visible/13.png; ..." in text
    )


def test_sizes_damage_and_duplicates_are_counted_and_named(tmp_path):
    for i in range(3):
        pair(tmp_path, f"thermal/{i}.png", f"visible/{i}.png")
    save(tmp_path / "visible" / "1.png", COLOUR[:10])
    assert re.search(
        r"^1 of 3 pairs are of two sizes: \S+thermal/1.png is 16 x 12, 1.png 16 x 10",
        error(tmp_path),
    )
    (tmp_path / "thermal" / "2.png").write_bytes(b"")
    (tmp_path / "visible" / "0.png").write_bytes(b"no picture")
    text = error(tmp_path)
    assert (
        text.startswith("2 of 3 pairs cannot be read")
        and "2.png (0 bytes)" in text
        and "0.png (10 bytes)" in text
    )
    save(tmp_path / "thermal" / "0.jpg", GREY)
    assert error(tmp_path).startswith("1 pictures are there twice: thermal/0")


def test_colour_of_more_than_8_bits_or_lying_on_its_side_is_refused(tmp_path):
    pair(tmp_path, "thermal/1.png", "visible/1.jpg")
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(COLOUR).save(tmp_path / "visible" / "1.jpg", exif=exif)
    assert "EXIF orientation" in error(tmp_path)
    (tmp_path / "visible" / "1.jpg").unlink()
    save(tmp_path / "visible" / "1.png", GREY.astype(np.uint16))
    assert "more than 8 bits" in error(tmp_path) and "(I;16)" in error(tmp_path)


# --- (b) side by side


@pytest.mark.parametrize("thermal_left", [True, False])
def test_halves_are_told_by_their_colour(tmp_path, thermal_left):
    for split in ("train", "test"):
        side_by_side(tmp_path / split / "1.png", thermal_left)
    pairs = read_folder(tmp_path)
    assert seen(pairs) == [("test_1", "test", None), ("train_1", "train", None)]
    left, right = (0, 0, 16, 12), (16, 0, 32, 12)
    assert {(p.thermal_box, p.visible_box) for p in pairs} == {
        (left, right) if thermal_left else (right, left)
    }


def test_halves_that_cannot_be_told_are_refused_until_the_folder_says_it(tmp_path):
    grey = np.concatenate([GREY, GREY], 1)
    save(tmp_path / "x" / "1.png", grey)
    assert "not clear which half is thermal" in error(
        tmp_path / "x"
    ) and "visible-thermal" in error(tmp_path / "x")
    (tmp_path / "x").rename(tmp_path / "x_visible-thermal")
    assert read_folder(tmp_path / "x_visible-thermal")[0].thermal_box == (16, 0, 32, 12)


def test_pictures_that_are_no_two_halves_get_the_list_of_layouts(tmp_path):
    save(tmp_path / "1.png", COLOUR[:, :15])
    save(tmp_path / "2.png", COLOUR[:, :10])
    text = error(tmp_path)
    assert (
        "2 of 2 (the first is 1.png (15 x 12))" in text
        or "2 of 2 (the first is 2.png (10 x 12))" in text
    )
    assert "found 1.png, 2.png" in text and "trainA/" in text and "source, target" in text


# --- (c) trainA, trainB


def test_lettered_folders(tmp_path):
    for split in ("train", "test"):
        for i in range(2):
            pair(tmp_path, f"{split}A/{i}.png", f"{split}B/{i}.png")
    assert seen(read_folder(tmp_path)) == [
        (f"{s}_{i}", s, None) for s in ("test", "train") for i in range(2)
    ]


def test_a_and_b_swapped_is_said(tmp_path):
    pair(tmp_path, "trainB/0.png", "trainA/0.png")
    assert "the folders look swapped" in error(tmp_path) and "Rename" in error(tmp_path)
    pair(tmp_path / "named", "visible/0.png", "thermal/0.png")
    assert "the folders look swapped" in error(tmp_path / "named")


def test_thermal_frames_in_false_colour_are_said(tmp_path):
    for folder in ("thermal", "visible"):
        save(tmp_path / folder / "0.png", COLOUR)
    with pytest.warns(UserWarning, match=r"thermal/0\.png, are in false colour \(or are photos\)"):
        assert len(read_folder(tmp_path)) == 1


def test_names_of_any_script_stay_apart(tmp_path):
    """Also where the letter and its accent are stored apart, as on macOS."""
    for name in ("一", "二", "o\u0308", "u\u0308 1"):
        pair(tmp_path, f"thermal/{name}.png", f"visible/{name}.png")
    assert sorted(p.name for p in read_folder(tmp_path)) == ["ö", "ü-1", "一", "二"]
    assert main(["prepare", "folder", str(tmp_path), str(tmp_path.parent / "out")]) == 0
    assert len(Pairs(tmp_path.parent / "out", split="train")) + 1 == 4


def test_a_list_that_cannot_be_read_is_not_left_out_in_silence(tmp_path):
    pair(tmp_path, "thermal/0.png", "visible/0.png")
    (tmp_path / "list.csv").write_text("source,target\n", encoding="utf-16")
    with pytest.warns(UserWarning, match=r"not used as a list of pairs: .*list\.csv is not UTF-8"):
        assert len(read_folder(tmp_path)) == 1


def test_unpaired_sets_are_no_pairs(tmp_path):
    save(tmp_path / "trainA" / "x1.png", GREY)
    save(tmp_path / "trainB" / "y1.png", COLOUR)
    assert "unpaired" in error(tmp_path)


# --- (d) lists


def write_list(path: Path, rows: list[dict], delimiter: str = ",", start: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        keys = list(rows[0])
        lines = [
            delimiter.join(keys),
            *(delimiter.join(str(row.get(key, "")) for key in keys) for row in rows),
        ]
    else:
        lines = [json.dumps(row) for row in rows]
    path.write_text(start + "\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "delimiter", "start"),
    [
        ("l.csv", ",", ""),
        ("l.csv", ";", "\ufeff"),
        ("l.csv", "\t", ""),
        ("l.jsonl", "", ""),
        ("prompt.json", "", ""),
    ],
)
def test_lists_with_everything(tmp_path, name, delimiter, start):
    rows = []
    for i in range(4):
        pair(tmp_path, f"hot/{i}.png", f"seen/photo{i}.jpg")
        rows.append({"source": f"hot/{i}.png", "target": f"seen/photo{i}.jpg",
                     "prompt": f"Straße {i}", "split": "train", "sequence": f"s{i % 2}",
                     "lighting": "night"})  # fmt: skip
    rows[3]["split"] = "val"
    path = write_list(tmp_path / name, rows, delimiter, start)
    for raw in (path, tmp_path):
        pairs = read_folder(raw)
        assert (
            seen(pairs)[0] == ("train_s0_0", "train", "s0")
            and sum(p.split == "val" for p in pairs) == 1
        )
        assert pairs[0].meta == {"caption": "Straße 0", "lighting": "night"}
        assert pairs[0].visible.name == "photo0.jpg"


@pytest.mark.parametrize("name", ["l.csv", "l.jsonl"])
def test_a_list_written_on_windows(tmp_path, name):
    pair(tmp_path, "hot/a/0.png", "seen/a/0.jpg")
    pair(tmp_path, "hot/a/1.png", "seen/a/1.jpg")
    rows = [
        {"source": rf"hot\a\{i}.png", "target": rf"seen\a\{i}.jpg", "split": split}
        for i, split in enumerate(("train", "val"))
    ]
    pairs = read_folder(write_list(tmp_path / name, rows))
    assert [(p.thermal.name, p.visible.name) for p in pairs] == [
        ("0.png", "0.jpg"),
        ("1.png", "1.jpg"),
    ]
    assert all(p.thermal.is_file() and p.visible.is_file() for p in pairs)


def test_a_folder_linked_into_itself_is_entered_once(tmp_path):
    pair(tmp_path, "thermal/0.png", "visible/0.png")
    pair(tmp_path, "thermal/1.png", "visible/1.png")
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "thermal" / "again").symlink_to("..")
    assert [p.name for p in read_folder(tmp_path)] == ["0", "1"]


def test_links_that_lead_nowhere_are_named(tmp_path):
    for i in range(3):
        pair(tmp_path, f"thermal/{i}.png", f"visible/{i}.png")
    (tmp_path / "visible" / "1.png").unlink()
    (tmp_path / "visible" / "1.png").symlink_to("../.git/annex/objects/1.png")
    message = error(tmp_path)
    assert "1 of 3 pairs cannot be read" in message and "git annex get fetches it" in message


def test_prompts_with_commas_and_line_breaks_need_quotes(tmp_path):
    pair(tmp_path, "t.png", "v.png")
    (tmp_path / "l.csv").write_text('source,target,prompt\nt.png,v.png,"a car,\na tree"\n')
    assert read_folder(tmp_path)[0].meta == {"caption": "a car,\na tree"}
    (tmp_path / "l.csv").write_text("source,target,prompt\nt.png,v.png,a car, a tree\n")
    assert "line 2: more cells" in error(tmp_path / "l.csv")


def test_equal_names_in_several_folders_of_a_list(tmp_path):
    rows = []
    for folder in ("x", "y"):
        pair(tmp_path, f"{folder}/t/1.png", f"{folder}/v/1.png")
        rows.append({"source": f"{folder}/t/1.png", "target": f"{folder}/v/1.png"})
    assert [p.name for p in read_folder(write_list(tmp_path / "l.csv", rows))] == ["x_t_1", "y_t_1"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"source": ""}, "line 2: no source"),
        (
            {"source": "gone.png"},
            r"1 of 4 files that .*l.csv names do not exist: .*gone.png \(line 2\)",
        ),
        ({"source": "1.png"}, r"1 frames are in .* twice: 1.png \(lines 2 and 3\)"),
        ({"split": "holdout"}, "line 2: split 'holdout'; expected train, val or test"),
        ({"split": ""}, "1 of 2 lines have no split"),
        ({"lighting": "noon"}, "line 2: lighting 'noon'; expected one of day"),
    ],
)
def test_mistakes_in_a_list_name_the_line(tmp_path, change, says):
    pair(tmp_path, "0.png", "c0.png")
    pair(tmp_path, "1.png", "c1.png")
    rows = [
        {"source": f"{i}.png", "target": f"c{i}.png", "split": "train", "lighting": ""}
        for i in range(2)
    ]
    assert re.search(says, error(write_list(tmp_path / "l.csv", [rows[0] | change, rows[1]])))


def test_other_columns_are_named_in_a_warning_and_broken_lines_in_an_error(tmp_path):
    pair(tmp_path, "0.png", "c.png")
    path = write_list(
        tmp_path / "l.csv", [{"source": "0.png", "target": "c.png", "promt": "a car", "id": 7}]
    )
    with pytest.warns(UserWarning, match=r"not used: 'promt' \(did you mean prompt\?\), 'id'"):
        assert read_folder(path)[0].meta == {}
    for line, says in (("{", "line 1 is not JSON"), ("[1]", "expected an object")):
        (tmp_path / "l.jsonl").write_text(line + "\n")
        assert says in error(tmp_path / "l.jsonl")
    (tmp_path / "l.txt").write_text("x")
    assert "is a file" in error(tmp_path / "l.txt")
    (tmp_path / "latin.csv").write_bytes("source,target\nä,b\n".encode("latin-1"))
    assert "not UTF-8" in error(tmp_path / "latin.csv")


# --- none or two


def test_none_and_two_layouts_say_what_was_found(tmp_path):
    assert "does not exist" in error(tmp_path / "no")
    (tmp_path / "notes").mkdir()
    assert "found notes/" in error(tmp_path) and "thermal/ and visible/" in error(tmp_path)
    pair(tmp_path, "thermal/0.png", "visible/0.png")
    write_list(tmp_path / "pairs.csv", [{"source": "thermal/0.png", "target": "visible/0.png"}])
    assert "2 ways: the list pairs.csv; parallel folders" in error(tmp_path)
    (tmp_path / "pairs.csv").write_text("name,weather\n0,rain\n")  # a table of something else
    assert len(read_folder(tmp_path)) == 1
    (tmp_path / "index.jsonl").write_text('{"name": "0"}\n')
    assert "layout already" in error(tmp_path)


# --- splits


def raw_pairs(*counts: tuple[str | None, int]) -> list[RawPair]:
    return [
        RawPair(f"{sequence or 'x'}_{i:04}", Path("t"), Path("v"), "train", "folder", sequence)
        for sequence, n in counts
        for i in range(n)
    ]


def test_whole_sequences_are_held_out():
    pairs = hold_out(raw_pairs(("a", 40), ("b", 42), ("c", 6), ("d", 6), ("e", 6)))
    assert {p.sequence for p in pairs if p.split == "val"} == {"d", "e"}  # c, too, would be 18 %
    assert len(pairs) == 100 and not {p.sequence for p in pairs if p.split == "train"} & {"d", "e"}


def test_a_large_last_sequence_is_passed_over():
    pairs = hold_out(raw_pairs(("a", 12), ("b", 88)))
    assert {p.sequence for p in pairs if p.split == "val"} == {"a"}


def test_one_long_drive_is_cut_with_a_gap():
    with pytest.warns(
        UserWarning, match="the last 200 of 2000 frames are for validation, and the 30 before them"
    ):
        pairs = hold_out(raw_pairs(("drive", 2000)))
    train, val = ([p for p in pairs if p.split == s] for s in ("train", "val"))
    assert [len(train), len(val)] == [1770, 200]
    assert (train[-1].name, val[0].name) == ("drive_1769", "drive_1800")
    assert {p.sequence for p in train} == {"drive"} and {p.sequence for p in val} == {"drive_val"}


def test_small_sets_lose_no_frame():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [p.split for p in hold_out(raw_pairs((None, 5)))] == ["train"] * 4 + ["val"]
        assert [p.split for p in hold_out(raw_pairs((None, 1)))] == ["train"]


def test_numbered_runs_are_sequences_and_numbers_sort_as_numbers(tmp_path):
    for run, count in (("yard_", 18), ("tram-", 2)):
        for i in range(count):
            pair(tmp_path, f"ir/{run}{i}.png", f"rgb/{run}{i}.png")
    pairs = read_folder(tmp_path)
    assert [p.sequence for p in pairs] == ["tram"] * 2 + ["yard"] * 18
    assert [p.name for p in pairs if p.split == "val"] == ["tram-0", "tram-1"]
    assert [p.name for p in pairs][-1] == "yard_17"


def test_given_splits_stay_and_train_alone_is_none(tmp_path):
    for i in range(20):
        pair(tmp_path, f"train/ir/{i}.png", f"train/rgb/{i}.png")
    pairs = read_folder(tmp_path)
    assert [p.name for p in pairs if p.split == "val"] == ["18", "19"]
    pair(tmp_path, "test/ir/0.png", "test/rgb/0.png")
    assert [p.split for p in read_folder(tmp_path)] == ["test"] + ["train"] * 20


# --- the command


def test_prepare_folder_on_the_command_line(tmp_path):
    for i in range(6):
        side_by_side(tmp_path / "raw" / f"{i}.png")
    command = [
        sys.executable,
        "-m",
        "cmmfnet",
        "prepare",
        "folder",
        str(tmp_path / "raw"),
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    pairs = Pairs(tmp_path / "out", split="train")
    assert (
        len(pairs) == 5
        and np.array_equal(pairs[0].visible, COLOUR)
        and pairs[0].thermal.shape == SIZE
    )
    (tmp_path / "raw" / "0.png").write_bytes(b"")
    done = subprocess.run(
        [*command[:-1], str(tmp_path / "again")], capture_output=True, text=True, timeout=60
    )
    assert (
        done.returncode == 2 and "0.png (0 bytes)" in done.stderr and "Traceback" not in done.stderr
    )


# --- (e) camera files


def camera_file(path: Path, ratio: float = 2.0, dx: int = 0, photo: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((96, 128, 3), np.uint8)
    pixels[:, 64:] = (200, 60, 40)
    placing = struct.pack("<fhh", ratio, dx, 0).ljust(96, b"\0")
    more = [(0x0E, camera_files.photo_record(pixels)), (0x2A, placing)] if photo else []
    path.write_bytes(camera_files.flir_jpeg(camera_files.flir(more=more)))
    return path


def test_camera_files_hold_pairs(tmp_path):
    for i in range(12):
        camera_file(tmp_path / f"RAW/house/IR_{i:04}.jpg")
    camera_file(tmp_path / "RAW/yard/IR_0001.jpg", ratio=1.25, dx=14)  # photo ends within the frame
    assert main(["prepare", "folder", str(tmp_path / "RAW"), str(tmp_path / "out")]) == 0
    pairs = Pairs(tmp_path / "out")
    assert len(pairs) == 13
    index = [json.loads(line) for line in (tmp_path / "out/index.jsonl").read_text().splitlines()]
    assert {entry["sequence"] for entry in index} >= {"yard"}
    frame = read_thermal(tmp_path / "out/thermal/house_IR_0003.tiff").values
    assert np.abs(frame - camera_files.scene()).max() < 0.02
    with Image.open(tmp_path / "out/visible/house_IR_0003.png") as photo:
        assert photo.size == (32, 24)
        left, right = photo.getpixel((4, 12)), photo.getpixel((28, 12))
        assert left[0] < 30 and right[0] > 170
    with Image.open(tmp_path / "out/visible/yard_IR_0001.png") as photo:
        cut = read_thermal(tmp_path / "out/thermal/yard_IR_0001.tiff").values
        assert photo.size == cut.shape[::-1] and photo.width < 32
        assert photo.getpixel((photo.width - 1, 12))[0] > 170  # no black beside the photo


def test_camera_files_without_a_pair_are_named(tmp_path):
    camera_file(tmp_path / "a.jpg")
    camera_file(tmp_path / "b.jpg", photo=False)
    camera_file(tmp_path / "c.jpg", ratio=0.0)
    message = error(tmp_path)
    assert "b.jpg holds no visible photo" in message and "c.jpg does not say" in message


def test_radiometric_frames_in_two_folders_count_by_the_frame_inside(tmp_path):
    for i in range(3):
        path = tmp_path / f"thermal/{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        screen = np.full((240, 320), 90, np.uint8)
        path.write_bytes(camera_files.flir_jpeg(screen=screen))
        save(tmp_path / f"visible/{i}.png", np.zeros((24, 32, 3), np.uint8))
    assert len(read_folder(tmp_path)) == 3
