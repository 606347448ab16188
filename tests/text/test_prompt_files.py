"""Texts for each picture: captions files, files of times, files beside the pictures; and
corrections of predicted tags."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cmmfnet.files.errors import UserError
from cmmfnet.files.pictures import list_sources
from cmmfnet.text.caption_files import write_captions
from cmmfnet.text.prompt import has_corrections, read_prompt
from cmmfnet.text.prompt_files import check_prompt, picture_texts
from cmmfnet.text.timeline import is_timeline, read_timeline

# --------------------------------------------------------------------------------------------------
# corrections

PREDICTED = ["road", "grass", "car", "day", "clear"]


@pytest.mark.parametrize(
    "text, tags",
    [
        ("+snow -grass", ["snow", "road", "car"]),
        ("-grass", ["road", "car"]),
        ("−grass", ["road", "car"]),  # the minus sign of a word processor
        ("+a brick wall, parked lorries -cars", ["wall-brick", "truck", "road", "grass"]),
        ("+night", ["night", "road", "grass", "car"]),  # light is never taken from the prediction
        ("+overcast +dusk", ["dusk", "overcast", "road", "grass", "car"]),
        ("+snow -snow", ["road", "grass", "car"]),
        ("-snow", ["road", "grass", "car"]),
        ("+grass", ["grass", "road", "car"]),
        ("+no cars", ["road", "grass"]),
        ("no cars +snow", ["snow", "road", "grass"]),
        ("+frobnicator", ["road", "grass", "car"]),
    ],
)
def test_corrections_of_the_prediction(text, tags):
    prompt = read_prompt(text)
    assert has_corrections(text) and prompt.needs_prediction
    assert prompt.names(PREDICTED) == tags


@pytest.mark.parametrize(
    "text, tags",
    [
        ("a street +snow", ["snow", "road"]),
        ("a street with trees -trees", ["road"]),
        ("a street at night +dusk", ["dusk", "road"]),
    ],
)
def test_plain_text_before_the_first_sign_takes_the_place_of_the_prediction(text, tags):
    prompt = read_prompt(text)
    assert has_corrections(text) and not prompt.needs_prediction
    assert prompt.names(PREDICTED) == tags


@pytest.mark.parametrize(
    "text, tags",
    [
        ("a car-free street", ["road"]),
        ("grass + sheep", ["grass", "sheep"]),
        ("- a car\n- a tree", ["car", "tree"]),
        ("a street - at night", ["road", "night"]),
        ("10 -15 cars", ["car"]),
        ("", []),
    ],
)
def test_plain_text_has_no_corrections(text, tags):
    prompt = read_prompt(text)
    assert (
        not has_corrections(text)
        and not prompt.needs_prediction
        and prompt.names(PREDICTED) == tags
    )


def test_corrections_keep_unknown_words_and_colours():
    prompt = read_prompt("a street +red car, frobnicator -snwo")
    assert (prompt.unknown, prompt.unknown_removed) == (["frobnicator"], ["snwo"])
    assert prompt.colours == [("red", "car")]
    assert read_prompt("+red car -car").colours == []
    assert read_prompt("+red car +blue car").colours == [("blue", "car")]


def test_a_sign_that_stands_alone_is_refused():
    with pytest.raises(UserError, match=r"write it next to its word: '\+snow'"):
        read_prompt("+ snow - grass")
    with pytest.raises(ValueError, match="2,001 characters"):
        read_prompt("+" + "c" * 2000)
    with pytest.raises(TypeError, match="int"):
        read_prompt(3)


# --------------------------------------------------------------------------------------------------
# times

CLIP = """# a drive
fps: 30
0:00-0:12 a street; 0:12 - 0:40.5 a wood; with a lake
0:40.5- a street at night
"""


def test_times():
    timeline = read_timeline(CLIP)
    assert is_timeline(CLIP) and timeline.fps == 30 and not timeline.in_frames
    texts = [
        (span := timeline.at(frame)) and span.text for frame in (0, 359, 360, 1214, 1215, 10**9)
    ]
    assert (
        texts == ["a street", "a street"] + ["a wood; with a lake"] * 2 + ["a street at night"] * 2
    )
    assert (
        timeline.at(360, fps=15).text == "a wood; with a lake"
        and timeline.at(180, fps=15).line == 3
    )
    assert timeline.at(179, fps=15).text == "a street"  # a video's own rate goes before the file's


@pytest.mark.parametrize("fps", [23.976, 24, 25, 29.97, 30, 59.94])
def test_the_frame_at_a_border_belongs_to_the_span_that_starts_there(fps):
    timeline = read_timeline("0:00-0:12 a\n0:12-1:00:00 b")
    first = next(frame for frame in range(2000) if timeline.at(frame, fps).text == "b")
    assert first / fps >= 12 - 1e-6 and (first - 1) / fps < 12
    assert timeline.at(int(3600 * fps) + 1, fps) is None


def test_frames_count_from_0_and_both_ends_are_in():
    timeline = read_timeline("0-299 a street\n300-300 a wood; 400 – a park")
    assert timeline.in_frames
    found = [(span := timeline.at(frame)) and span.text for frame in (0, 299, 300, 301, 399, 400)]
    assert found == ["a street", "a street", "a wood", None, None, "a park"]


def test_times_of_pictures_need_a_rate():
    with pytest.raises(UserError, match="fps: 30"):
        read_timeline("0:00-0:12 a street").at(0)


@pytest.mark.parametrize(
    "content, message",
    [
        ("0:00-0:12 a\n0:10-0:20 b", "line 1 and line 2 overlap"),
        ("0-5 a\n\n5-9 b", "line 1 and line 3 overlap"),
        ("0:00- a\n0:10- b", "overlap"),
        ("0:12-0:10 a", "line 1: '0:12-0:10' ends before it starts"),
        ("0:10-0:10 a", "ends before it starts"),
        ("0:10-0:75 a", "below 60"),
        ("0-5 a\n0:10-0:20 b", "line 2 has times .* line 1 has frames"),
        ("0-0:20 b", "mixes"),
        ("0-5 a\nhello", r"line 2: 'hello'; expected a span"),
        ("0-5", "line 1: no text"),
        ("fps: 30", "no spans"),
        ("fps: fast\n0-5 a", "line 1: fps is 'fast'"),
        ("fps: 0\n0-5 a", "expected frames a second"),
        ("0-" + "9" * 40 + " a", "too long"),
        ("0-5 a\n6-9 " + "c" * 2001, "line 2: the prompt has 2,001"),
    ],
)
def test_wrong_times(content, message):
    with pytest.raises(UserError, match=message):
        read_timeline(content, check_prompt)


# --------------------------------------------------------------------------------------------------
# pictures


@pytest.fixture
def frames(tmp_path):
    for name in ("f1.png", "f2.png", "f10.png", "night/g.png", "night/deep/h.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    return tmp_path / "in"


def texts(source, text_file, text=None, inputs=None):
    inputs = list_sources(source) if inputs is None else inputs
    found = picture_texts(source, inputs, text=text, text_file=text_file)
    return dict(zip([file.name for file in inputs], found.texts, strict=True)), found


def jsonl(path: Path, *rows: tuple[str, object]) -> Path:
    path.write_text(
        "".join(json.dumps({"name": n, "caption": c}) + "\n" for n, c in rows), encoding="utf-8"
    )
    return path


def test_without_a_file_all_get_the_same(frames):
    found, report = texts(frames, None, "a car")
    assert (
        set(found.values()) == {"a car"} and str(report) == "texts: 3 --text" and not report.unused
    )
    assert str(texts(frames, None)[1]) == "texts: 3 none" and set(
        texts(frames, None)[0].values()
    ) == {None}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt"])
def test_a_captions_file_of_each_kind(frames, tmp_path, kind):
    rows = {"f1": "a car, a tree", "f10.png": 'the "red" bus', "f2": ""}
    path = tmp_path / f"c.{kind}"
    if kind == "jsonl":
        jsonl(path, *rows.items())
    elif kind == "csv":
        path.write_text(
            'name,caption\nf1,"a car, a tree"\nf10.png,"the ""red"" bus"\nf2,\n',
            encoding="utf-8-sig",
        )
    else:
        path.write_text(
            "name\tcaption\r\n" + "".join(f"{n}\t{c}\r\n" for n, c in rows.items()),
            encoding="utf-8",
        )
    found, report = texts(frames, path, "fallback")
    assert found == {"f1.png": "a car, a tree", "f2.png": "fallback", "f10.png": 'the "red" bus'}
    assert str(report) == "texts: 2 their own, 1 --text" and not report.unused


def test_a_file_of_the_captions_command_is_one(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").touch()
    for suffix in ("jsonl", "csv", "txt"):
        write_captions(tmp_path / f"c.{suffix}", [("a", "a car, \ttwo\n lines; tree")])
        assert texts(tmp_path / "in", tmp_path / f"c.{suffix}")[0] == {
            "a.png": "a car, two lines; tree"
        }


def test_the_picture_goes_before_its_folder_before_the_common_text(frames, tmp_path):
    path = jsonl(
        tmp_path / "c.jsonl",
        ("night", "night"),
        ("deep/h", "a car"),
        ("night/g.png", ""),
        ("f1", "f one"),
    )
    path.write_text(path.read_text().replace("deep/h", "night/deep/h"))
    inputs = list_sources(f"{frames}/**/*.png")
    found, report = texts(f"{frames}/**/*.png", path, "common", inputs)
    assert found == {
        "f1.png": "f one",
        "f2.png": "common",
        "f10.png": "common",
        "g.png": "night",
        "h.png": "a car",
    }
    assert str(report) == "texts: 2 their own, 1 their folder's, 2 --text"
    path = jsonl(tmp_path / "c.jsonl", ("night/deep/", "deepest"), (".", "all"), ("night", "night"))
    found, _ = texts(f"{frames}/**/*.png", path, "common", inputs)
    assert [found[n] for n in ("f1.png", "g.png", "h.png")] == [
        "all",
        "night",
        "deepest",
    ]  # the nearest folder wins


def test_names_that_fit_several_pictures(tmp_path):
    for name in ("a.png", "a.jpg", "s/a.png", "t/b.png", "u/b.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    source = f"{tmp_path}/in/**/*.*"
    inputs = list_sources(source)
    found = picture_texts(
        source, inputs, text_file=jsonl(tmp_path / "c.jsonl", ("a.png", "x"), ("s/a", "y"))
    )
    named = {
        str(f.relative_to(tmp_path / "in")): t
        for f, t in zip(inputs, found.texts, strict=True)
        if t
    }
    assert named == {"a.png": "x", "s/a.png": "y"}  # the exact name goes first
    for name, which in (("a", "a.jpg, a.png"), ("b", "t/b.png, u/b.png")):
        with pytest.raises(UserError, match=f"line 1: '{name}' may be {which}"):
            picture_texts(source, inputs, text_file=jsonl(tmp_path / "c.jsonl", (name, "x")))


def test_unused_names_are_reported_with_their_lines(frames, tmp_path):
    _, report = texts(
        frames, jsonl(tmp_path / "c.jsonl", ("f1", "x"), ("f22.png", "y"), ("other", "z"))
    )
    assert len(report.unused) == 1
    assert (
        "2 of its names" in report.unused[0]
        and "'f22.png' (line 2, did you mean f2.png?)" in report.unused[0]
    )
    with pytest.raises(
        UserError,
        match=r"none of its 1 names is a picture of .*'f11' \(line 1, did you mean f1\?",
    ):
        texts(frames, jsonl(tmp_path / "c.jsonl", ("f11", "x")))


@pytest.mark.parametrize(
    "name, content, message",
    [
        (
            "c.jsonl",
            b'{"name": "f1", "caption": "a"}\n{"name": "f1.png", "caption": "b"}',
            "twice, in lines 1 and 2",
        ),
        ("c.jsonl", b'\n{"name": "f1"}', "line 2: expected .*KeyError"),
        ("c.jsonl", b'{"name": "f1", "caption": 3}', "line 1: .*name and caption must be strings"),
        ("c.jsonl", b"not json", "line 1: expected"),
        ("c.jsonl", b"[" * 100_000, "line 1: over 40,000"),
        ("c.jsonl", b"[" * 39_000, "line 1: expected"),
        ("c.jsonl", b"9" * 10_000, "line 1: expected .*Exceeds"),
        ("c.jsonl", b'{"name": "f1", "caption": "\\u0000"}', "line 1: the text has the character"),
        ("c.jsonl", b'{"name": "f1", "caption": "\\ud800"}', r"'\\ud800'"),
        (
            "c.jsonl",
            b'{"name": "f1", "caption": "%s"}' % (b"c" * 2001),
            "line 1: the prompt has 2,001 characters",
        ),
        ("c.jsonl", b'{"name": "f1", "caption": "+ snow"}', "line 1: .*write it next to its word"),
        ("c.jsonl", b'{"name": "", "caption": "a"}', "an empty name"),
        ("c.jsonl", b"\n\n", "has no texts"),
        (
            "c.csv",
            b"file,text\nf1,a",
            "found the columns .*'file', 'text'.*expected name and caption",
        ),
        ("c.csv", b"name,caption\nf1,a,b", "line 2: more cells"),
        ("c.csv", b"name,caption\nf1," + b"c" * 200_000, "line 2: over 40,000"),
        ("c.txt", b"f1 a car", "line 1: no tab in 'f1 a car'"),
        ("c.txt", b"f1\ta\nf2\xff\tb", "line 2: not UTF-8"),
        ("c.txt", "f1\ta".encode("utf-16"), "UTF-16"),
        ("c.txt", b"f1\ta\n\x00\x01", "binary file .*line 2"),
        ("c.txt", b"0-1 a\n1-2 b", "line 1 and line 2 overlap"),
        ("c.txt", b"50-60 a\n", "none of its spans is reached by the 3 pictures"),
        ("c.txt", b"0:00-0:10 a\n", "fps: 30"),
        ("c.txt", b"", "has no texts"),
    ],
)
def test_wrong_files_are_refused_with_their_line(frames, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        texts(frames, tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and len(str(caught.value)) < 600


def test_files_that_are_no_files(frames, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no file of texts .*gone\.jsonl \(looked in"):
        texts(frames, tmp_path / "gone.jsonl")
    with pytest.raises(UserError, match=r"is a folder, .*write beside"):
        texts(frames, tmp_path)
    with pytest.raises(UserError, match="no ordinary file"):
        texts(frames, "/dev/zero")
    monkeypatch.setattr("cmmfnet.text.prompt_files.MAX_FILE_BYTES", 100)
    with pytest.raises(UserError, match="has 2,000 bytes; a file of texts has at most 100"):
        (tmp_path / "big.jsonl").write_bytes(b"x" * 2000)
        texts(frames, tmp_path / "big.jsonl")


def test_frames_of_a_folder_by_time(frames, tmp_path):
    path = tmp_path / "times.txt"
    path.write_text("fps: 2\n0:00-0:01 a street; 0:01- night; ", encoding="utf-8")
    found, report = texts(frames, path)
    assert (
        found == {"f1.png": "a street", "f2.png": "a street", "f10.png": "night"}
        and not report.unused
    )
    assert texts(frames / "f10.png", path)[0] == {
        "f10.png": "night"
    }  # its place is that in the folder
    path.write_text("0-0 a street\n7-9 night\n", encoding="utf-8")
    found, report = texts(frames, path, "fallback")
    assert found == {"f1.png": "a street", "f2.png": "fallback", "f10.png": "fallback"}
    assert (
        "1 of its spans hold none of the 3 pictures" in report.unused[0]
        and "'night' (line 2)" in report.unused[0]
    )
    with pytest.raises(
        UserError, match="for the frames of one folder, and these pictures are in 3"
    ):
        texts(f"{frames}/**/*.png", path)


def test_texts_beside_the_pictures(frames):
    (frames / "f1.txt").write_text("a car\nand a tree\n", encoding="utf-8-sig")
    (frames / "f2.txt").write_text("  \n")
    (frames / "_folder.txt").write_text("a street")
    (frames / "f3.txt").write_text("no such picture")
    (frames / "night/_folder.txt").write_text("night")
    found, report = texts(frames, "beside", "common")
    assert found == {"f1.png": "a car\nand a tree", "f2.png": "a street", "f10.png": "a street"}
    assert str(report) == "texts: 1 their own, 2 their folder's"
    assert (
        "1 text files are beside no picture of their name" in report.unused[0]
        and "f3.txt" in report.unused[0]
    )
    source = f"{frames}/**/*.png"
    found, _ = texts(source, "beside", inputs=list_sources(source))
    assert [found[name] for name in ("f2.png", "g.png", "h.png")] == [
        "a street",
        "night",
        "night",
    ]  # also from above


def test_texts_beside_the_pictures_of_a_part_of_a_folder(frames):
    (frames / "f2.txt").write_text("a car")
    found, report = texts(frames / "f2.png", "beside")
    assert found == {"f2.png": "a car"} and not report.unused
    with pytest.raises(
        UserError, match=r"no texts beside the 1 pictures .* expected f1\.txt beside f1\.png"
    ):
        texts(frames / "f1.png", "beside")


@pytest.mark.parametrize(
    "content, message",
    [(b"\xff\xfea\0", "UTF-16"), (b"\0", "binary"), (b"c " * 1500, "2,999|3,000")],
)
def test_wrong_texts_beside_the_pictures_are_refused(frames, content, message):
    (frames / "f2.txt").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        texts(frames, "beside")
    assert "f2.txt" in str(caught.value)
    (frames / "f2.txt").write_bytes(b"x" * 70_000)
    with pytest.raises(UserError, match="70,000 bytes; a file of texts has at most 64,000"):
        texts(frames, "beside")


def test_no_torch():
    code = "import sys, cmmfnet.text.prompt_files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
