"""`cmmfnet captions`: what is written into the index, what stays, and what the check says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmmfnet.data import captions as module
from cmmfnet.data.captions import captions, check_captions, estimate_tokens
from cmmfnet.data.pairs import PairsError
from cmmfnet.data.sentences import describe
from cmmfnet.files.errors import UserError
from cmmfnet.text.caption_files import read_captions
from cmmfnet.text.parser import parse_tags
from cmmfnet.text.sentences import DEFAULT_PROMPT
from cmmfnet.text.vocabulary import COCO_STUFF

ENTRIES = [
    {
        "name": "a",
        "split": "train",
        "lighting": "day",
        "caption": "A car by day.",
        "own key": [1, {"x": None}],
    },
    {"name": "b.1", "split": "val", "lighting": "night", "tags": ["road", "car"]},
    {"name": "ü", "split": "train", "caption": "", "sky": "clear"},
]


@pytest.fixture
def data(tmp_path) -> Path:
    root = tmp_path / "data"
    root.mkdir()
    # separators of its own: lines that do not change must stay byte for byte
    (root / "index.jsonl").write_text(
        "".join(json.dumps(e, separators=(",", ":")) + "\n" for e in ENTRIES)
    )
    return root


def index(data: Path) -> list[dict]:
    return [
        json.loads(line)
        for line in (data / "index.jsonl").read_text(encoding="utf-8").split("\n")
        if line
    ]


def texts(data: Path) -> list[str | None]:
    return [entry.get("caption") for entry in index(data)]


# --- writing


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.tsv", "name\tcaption\nb.1\tA road, at night.\r\nü\tA  tree.\n\n"),
        ("c.txt", "\ufeffb.1.png\tA road, at night.\nü\tA  tree.\na\t\n"),
        ("c.csv", 'caption,name\n"A road, at night.",b.1\nA  tree.,ü.jpg\n'),
        ("c.jsonl", '{"name": "b.1", "caption": "A road, at night."}\n{"name": "ü", "caption": "A '
                    ' tree."}\n'
                    '{"name": "a", "caption": null}\n'),
    ],
)  # fmt: skip
def test_a_file_goes_into_the_index_and_nothing_else_changes(data, tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    before = (data / "index.jsonl").read_bytes()
    report = captions(data, file=tmp_path / name)
    assert texts(data) == ["A car by day.", "A road, at night.", "A  tree."]
    assert [{k: v for k, v in e.items() if k != "caption"} for e in index(data)] == [
        {k: v for k, v in e.items() if k != "caption"} for e in ENTRIES
    ]
    assert (data / "index.jsonl").read_bytes().split(b"\n")[0] == before.split(b"\n")[0]
    assert (data / "index.jsonl.bak").read_bytes() == before
    assert (report.changed, report.problems, report.exit_status) == (2, [], 0)


@pytest.mark.parametrize("name", ["c.tsv", "c.csv", "c.jsonl"])
def test_what_is_written_to_edit_is_read_back(data, tmp_path, name):
    captions(data, template='A "road", a car;\tand\na tree.')
    captions(data, out=tmp_path / name)
    assert captions(data, file=tmp_path / name).changed == 2  # white space only
    assert texts(data)[1] == 'A "road", a car; and a tree.'
    assert captions(data, file=tmp_path / name).changed == 0


def test_a_template_fills_gaps_and_replaces_only_when_told(data):
    captions(data, template="street-day")
    assert texts(data) == ["A car by day.", DEFAULT_PROMPT, DEFAULT_PROMPT]
    captions(data, template="A street.")
    assert texts(data)[1] == DEFAULT_PROMPT
    report = captions(data, template="A street.", overwrite=True)
    assert texts(data) == ["A street."] * 3
    assert any("all captions are the same" in note for note in report.notes)


def test_file_then_tags_then_template(data, tmp_path):
    (tmp_path / "c.tsv").write_text("a\tMine.\n")
    captions(data, file=tmp_path / "c.tsv", from_tags=True, template="Else.", overwrite=True)
    assert texts(data) == ["Mine.", "A road with cars at night.", "Else."]


def test_sentences_from_label_maps(data):
    (data / "label").mkdir()
    label = np.full((20, 20), 6, np.uint8)  # road
    label[:5], label[5:8], label[8, 0], label[9] = (
        1,
        14,
        17,
        255,
    )  # sky, cars; one pixel of person, too small; none
    Image.fromarray(label).save(data / "label" / "ü.png")
    captions(data, from_tags=True)
    assert texts(data)[2] == "A road with cars under a clear sky."


def test_tags_are_filled_from_captions_only_when_asked(data):
    captions(data, from_tags=True)
    assert "tags" not in index(data)[0]
    captions(data, fill_tags=True)
    assert [entry.get("tags") for entry in index(data)] == [["car", "day"], ["road", "car"], None]


def test_check_writes_nothing_and_says_what_would_change(data, tmp_path, capsys):
    before = (data / "index.jsonl").read_bytes()
    report = captions(data, template="A street.", check=True)
    assert (report.changed, report.exit_status) == (
        2,
        0,
    ) and "2 entries would change" in capsys.readouterr().out
    assert captions(data).exit_status == 1  # two frames have none
    assert (data / "index.jsonl").read_bytes() == before and not (data / "index.jsonl.bak").exists()


def test_a_full_disk_leaves_the_old_index(data, disk_full_while_writing, monkeypatch):
    before = (data / "index.jsonl").read_bytes()
    disk_full_while_writing()
    with pytest.raises(OSError, match="No space left"):
        captions(data, template="A street.")
    monkeypatch.undo()
    assert (data / "index.jsonl").read_bytes() == before and [p.name for p in data.iterdir()] == [
        "index.jsonl"
    ]


def test_shards_with_old_captions_are_named(data, capsys):
    (data / "shards").mkdir()
    (data / "shards" / "index.jsonl").write_text("")
    captions(data, template="A street.")
    assert "shards still has the old captions" in capsys.readouterr().out


# --- errors


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "c.tsv",
            "a\tx\nb1\ty\n",
            r"captions for 1 frames that are not in the data set: 'b1' \(line 2, did you mean "
            r"b.1\?\)",
        ),
        ("c.tsv", "a\tx\na.png\ty\n", "a is there twice, in lines 1 and 2"),
        ("c.tsv", "a x\n", "line 1: no tab in 'a x'"),
        (
            "c.csv",
            "file,caption\na,x\n",
            r"found the columns \['file', 'caption'\]; expected name and caption",
        ),
        ("c.csv", "name,caption\na,x,y\n", "line 2: more cells"),
        ("c.jsonl", '{"name": "a"}\n', "line 1: expected"),
        ("c.jsonl", '{"name": "a", "caption": 3}\n', "must be strings"),
    ],
)
def test_a_file_that_does_not_fit_changes_nothing(data, tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=says):
        captions(data, file=tmp_path / name)
    assert index(data) == ENTRIES


def test_unknown_frames_are_a_problem_of_a_check(data, tmp_path):
    (tmp_path / "c.tsv").write_text("zebra\tx\na\tA tree.\n")
    report = captions(data, file=tmp_path / "c.tsv", check=True)
    assert "'zebra' (line 1)" in report.problems[0] and report.exit_status == 1


def test_other_mistakes(data, tmp_path):
    with pytest.raises(UserError, match=r"--out .*gone\.tsv makes one"):
        captions(data, file=tmp_path / "gone.tsv")
    (tmp_path / "latin.tsv").write_bytes("a\tStraße\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        captions(data, file=tmp_path / "latin.tsv")
    for template in (" ", "street-night"):
        with pytest.raises(UserError, match="street-day"):
            captions(data, template=template)
    with pytest.raises(PairsError, match="does not exist"):
        captions(tmp_path / "nothing")
    (data / "index.jsonl").write_text('{"name": "a"}\n[1]\n')
    with pytest.raises(PairsError, match="line 2"):
        captions(data)


# --- the check


def problem(**entry) -> str:
    report = check_captions([{"name": "x"} | entry])
    assert len(report.problems) <= 1
    return (report.problems or [""])[0]


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"caption": "A street at night.", "lighting": "day"}, "says night, lighting is day"),
        ({"caption": "A street at noon.", "lighting": "dusk"}, "says day, lighting is dusk"),
        ({"caption": "A sunlit street.", "lighting": "night"}, "says sunlit, lighting is night"),
        (
            {"caption": "Cars under a bright blue sky.", "lighting": "night"},
            "says bright blue sky, lighting is night",
        ),
        (
            {"caption": "Cars under a black sky.", "lighting": "day"},
            "says black sky, lighting is day",
        ),
        ({"caption": "An overcast sky.", "sky": "clear"}, "says overcast, sky is clear"),
    ],
)
def test_contradictions_to_the_index(entry, says):
    assert says in problem(**entry)


@pytest.mark.parametrize(
    "entry",
    [
        {"caption": "A street at night.", "lighting": "night"},
        {"caption": "A street at night."},
        {"caption": "A blue car by a road.", "lighting": "night"},
        {"caption": "A dark blue sky.", "lighting": "night"},
        {"caption": "A red car under a blue sky.", "lighting": "day", "sky": "none"},
    ],
)
def test_no_contradiction(entry):
    assert problem(**entry) == ""


def test_missing_and_unknown_words():
    report = check_captions(
        [
            {"name": "x", "caption": "A car and a bollrd"},
            {"name": "y", "caption": "A bollrd"},
            {"name": "z"},
        ]
    )
    assert report.problems == ["1 of 3 frames have no caption: z"]
    assert "'bollrd' (2" in report.notes[0] and (report.captioned, report.distinct) == (2, 2)


def test_long_captions_by_estimate_and_by_the_tokenizer(monkeypatch):
    monkeypatch.setattr(module, "_cached_tokenizer", lambda: None)
    words = "car tree road " * 25
    assert "x (77)" not in problem(caption=words) and problem(caption=words) == ""  # 77 fit
    assert "more than CLIP's 77 tokens (estimated" in problem(
        caption=words + "car"
    ) and "x (78)" in problem(caption=words + "car")
    assert "x (" in problem(caption="car " * 5000)  # far beyond what the parser takes

    class Tokenizer:
        def __call__(self, text, verbose):
            return type("Ids", (), {"input_ids": text.split()})

    monkeypatch.setattr(module, "_cached_tokenizer", Tokenizer)
    assert problem(caption=words + "car") == ""  # 76 by this one: it has the last word
    assert "counted by CLIP's tokenizer" in problem(caption=words + "car car car")


def test_tokens_are_estimated():
    assert estimate_tokens("") == 2
    assert estimate_tokens("a car") == 4
    assert estimate_tokens("A street, 25 cars!") == 2 + 7  # a street , 2 5 cars !
    assert estimate_tokens("Bäume") > estimate_tokens("Baume")


# --- sentences


def test_the_sentence_of_the_documentation():
    tags = ["road", "car", "tree", "house", "wall-brick", "sky-other"]
    assert (
        describe(tags, "day", "cloudy")
        == "A road with cars, trees and a brick house by day under a cloudy sky."
    )
    assert describe(tags, "day", "cloudy") == describe(list(tags), "day", "cloudy")
    assert describe(["sky-other"], "dusk", "overcast") == "An overcast sky at dusk."
    assert describe(["tree", "person"]) == "Trees with people."
    assert describe([]) == describe(["solid-other"], "day") == ""


@pytest.mark.parametrize(
    "name", [n for n in COCO_STUFF if n not in ("solid-other", "structural-other")]
)
def test_a_sentence_names_what_the_parser_finds_again(name):
    found = parse_tags(describe([name]))
    # English has no other word for these three: the parser takes a desk for a table, a wall for one
    # of concrete
    expected = {
        "desk-stuff": "table",
        "wall-other": "wall-concrete",
        "ceiling-tile": "ceiling-other",
    }.get(name, name)
    assert found.tags == [expected]


@pytest.mark.parametrize(
    ("lighting", "sky"), [("day", "clear"), ("dusk", "cloudy"), ("night", "overcast")]
)
def test_light_and_sky_are_found_again(lighting, sky):
    found = parse_tags(describe(["road", "person", "sky-other"], lighting, sky))
    # a cloudy sky has clouds, too
    assert (
        set(found.tags) - {"clouds"} == {"road", "person", "sky-other", lighting, sky}
        and not found.unknown
    )


# --- the command


def test_the_command(data):
    command = [sys.executable, "-m", "cmmfnet", "captions", str(data)]
    done = subprocess.run([*command, "--check"], capture_output=True, text=True, timeout=60)
    assert (
        done.returncode == 1 and "problem: 2 of 3 frames have no caption: b.1; ü" in done.stdout
    ), done.stderr
    done = subprocess.run(
        [*command, "--template", "A road, a car and a tree."],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (
        done.returncode == 0
        and "2 entries changed" in done.stdout
        and texts(data)[2] == "A road, a car and a tree."
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("deep.jsonl", '{"name": "a", "caption": ' + "[" * 100_000 + "\n"),
        ("long.jsonl", '{"name": ' + "9" * 5000 + ', "caption": "x"}\n'),
        ("wide.csv", "name,caption\na," + "x" * 200_000 + "\n"),
    ],
)
def test_hostile_caption_files_get_the_one_error(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=name):
        read_captions(tmp_path / name)
