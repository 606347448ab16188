"""`cmmfnet archive`: every frame once, in any number of runs, with a row for each."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from archive_files import frame
from fake_network import colorize
from PIL import Image

from cmmfnet.archive.archive import parse_shard
from cmmfnet.archive.manifest import read_manifest
from cmmfnet.archive.names import as_text, frame_output, output_name
from cmmfnet.files.errors import UserError


def pictures(out: Path) -> dict[str, str]:
    """Output -> SHA-256 of its file."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.rglob("*.png")
    }


def rows(out: Path) -> list[dict]:
    return read_manifest(str(out)).to_pylist()


def complete(out: Path, inputs: set[str]) -> None:
    """Each input has one success, whose checksum is that of the picture; there is no other
    picture, and no journal or temporary file is left."""
    good = [row for row in rows(out) if row["output"] is not None]
    assert sorted(row["input"] for row in good) == sorted(inputs)
    assert {row["output"]: row["sha256"] for row in good} == pictures(out)
    left = [path for path in out.rglob("*") if path.suffix in (".part", ".json", ".jsonl")]
    assert [path.name for path in left] == ["_archive.json"]


def test_a_folder_becomes_pictures_and_a_manifest(source, tmp_path, archive, capsys):
    assert archive(source, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert said.startswith("coloured 7 frames, left out 1 file of other kinds; ")
    names = {f"night/{i}.png" for i in range(4)} | {f"day/{i}.jpg" for i in range(3)}
    complete(tmp_path / "out", names)
    row = next(row for row in rows(tmp_path / "out") if row["input"] == "day/1.jpg")
    assert row["output"] == "day/1.jpg.png"
    assert (row["width"], row["height"], row["attempts"], row["error"]) == (30, 20, 1, None)
    assert row["bytes"] == (tmp_path / "out" / "day" / "1.jpg.png").stat().st_size
    assert 0 <= row["span"][0] < 10 and 245 < row["span"][1] <= 255 and row["seconds"] > 0
    assert {tag["name"] for tag in row["tags"]} == {"car", "road", "tree"}


def test_results_of_other_runs_are_left_out_and_no_failures(source, tmp_path, archive, capsys):
    assert archive(source, source / "earlier") == 0  # with a manifest, which is of another kind
    capsys.readouterr()
    with tarfile.open(source / "shard.tar", "w") as tar:
        tar.add(source / "earlier" / "night" / "0.png", "0.png")
        tar.add(source / "night" / "0.png", "1.png")
    for before in ("coloured 8 frames, ", "coloured 0 frames, 8 were done before, "):
        assert archive(source, tmp_path / "out") == 0
        said = capsys.readouterr().out
        assert said.startswith(before) and ", left out 8 results of cmmfnet" in said
        found = [row["input"] for row in rows(tmp_path / "out") if row["frames"] is None]
        assert len(found) == 8 and not any("earlier" in name for name in found)
    assert archive(source / "earlier", tmp_path / "none") == 2
    assert "and 7 results of cmmfnet" in capsys.readouterr().err


def test_the_pictures_are_those_of_colorize(source, tmp_path, archive, fake_model):
    assert archive(source, tmp_path / "out", "--text", "a car", "--span", "20,200") == 0
    given = ["-o", tmp_path / "one", "--text", "a car", "--span", "20,200"]
    assert colorize(fake_model, source / "night", *given) == 0
    for i in range(4):
        one, other = (tmp_path / "one" / f"{i}.png"), (tmp_path / "out" / "night" / f"{i}.png")
        assert one.read_bytes() == other.read_bytes()


def test_a_second_run_does_only_what_is_missing(source, tmp_path, archive, capsys):
    archive(source, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}
    frame(source / "new.png", 50)
    capsys.readouterr()
    assert archive(source, tmp_path / "out") == 0
    assert capsys.readouterr().out.startswith("coloured 1 frame, 7 were done before")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert archive(source, tmp_path / "out") == 0
    assert capsys.readouterr().out.startswith("coloured 0 frames, 8 were done before")


def test_verify_colours_lost_and_changed_pictures_again(source, tmp_path, archive, capsys):
    archive(source, tmp_path / "out")
    expected = pictures(tmp_path / "out")
    (tmp_path / "out" / "night" / "0.png").unlink()
    (tmp_path / "out" / "night" / "1.png").write_bytes(b"half a pict")
    capsys.readouterr()
    assert archive(source, tmp_path / "out", "--verify") == 0
    said = capsys.readouterr().out
    assert "coloured 2 frames, 5 were done before, 2 were lost or changed" in said
    assert pictures(tmp_path / "out") == expected
    complete(tmp_path / "out", {row["input"] for row in rows(tmp_path / "out")})


@pytest.mark.parametrize("more", [[], ["--batch-size", "2"]])
def test_shards_are_the_whole_without_overlap(source, tmp_path, archive, more):
    for i in (3, 1, 2):
        archive(source, tmp_path / "out", "--shard", f"{i}/3", *more)
    names = {f"night/{i}.png" for i in range(4)} | {f"day/{i}.jpg" for i in range(3)}
    complete(tmp_path / "out", names)
    assert archive(source, tmp_path / "out") == 0  # a run of all takes the shards' rows
    complete(tmp_path / "out", names)


def test_a_shard_without_frames_is_no_error(tmp_path, source, archive, capsys):
    """Of 50 machines for 7 frames, most have nothing to do."""
    one = next(source.rglob("*.png"))
    assert {archive(one, tmp_path / "out", "--shard", f"{i}/3") for i in (1, 2, 3)} == {0}
    assert capsys.readouterr().out.count("coloured 0 frames") == 2


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0"])
def test_no_such_shard(text):
    with pytest.raises(UserError, match=r"expected i/n"):
        parse_shard(text)


def test_a_glob_and_a_file(source, tmp_path, archive):
    assert archive(f"{source}/**/[01].*", tmp_path / "some") == 0
    complete(tmp_path / "some", {"night/0.png", "night/1.png", "day/0.jpg", "day/1.jpg"})
    assert archive(source / "day" / "2.jpg", tmp_path / "one") == 0
    complete(tmp_path / "one", {"2.jpg"})


def test_an_output_folder_inside_the_source_holds_no_inputs(source, archive):
    for _ in range(2):
        assert archive(source, source / "out") == 0
        assert len(pictures(source / "out")) == 7


@pytest.mark.parametrize("out", ["in", ".", "in/.."])
def test_results_may_not_replace_inputs(source, tmp_path, archive, capsys, out):
    assert archive(source, tmp_path / out) == 2
    assert "results could replace inputs" in capsys.readouterr().err


def test_frames_of_sequences_and_tars(tmp_path, archive, capsys):
    frames = np.random.default_rng(0).integers(7000, 9000, (5, 20, 30)).astype(np.uint16)
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "walk.npy", frames)
    Image.fromarray(frames[0]).save(tmp_path / "in" / "one.tif")
    with tarfile.open(tmp_path / "in" / "s.tar", "w") as tar:
        for i in range(3):
            content = io.BytesIO()
            Image.fromarray(frames[i]).save(content, "PNG")
            for name, data in (
                (f"./a/{i}.thermal.png", content.getvalue()),
                (f"a/{i}.json", b"{}"),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    assert archive(tmp_path / "in", tmp_path / "out", "--batch-size", "2") == 0
    names = {f"walk.npy#{i}" for i in range(5)} | {f"s.tar#a/{i}.thermal.png" for i in range(3)}
    complete(tmp_path / "out", names | {"one.tif"})
    found = set(pictures(tmp_path / "out"))
    assert {"walk.npy/000004.png", "s.tar/a/2.thermal.png", "one.tif.png"} <= found
    ends = {r["input"]: r["frames"] for r in rows(tmp_path / "out") if r["frames"] is not None}
    assert ends == {"walk.npy": 5, "s.tar": 3}
    # the same pixels through a tar, a sequence and a picture
    pixels = [
        np.asarray(Image.open(tmp_path / "out" / name))
        for name in ("walk.npy/000000.png", "s.tar/a/0.thermal.png", "one.tif.png")
    ]
    assert np.array_equal(pixels[0], pixels[1]) and np.array_equal(pixels[0], pixels[2])
    capsys.readouterr()
    assert archive(tmp_path / "in", tmp_path / "out") == 0
    assert capsys.readouterr().out.startswith("coloured 0 frames, 9 were done before")


def test_frames_of_a_video(tmp_path, archive):
    video_files = pytest.importorskip("video_files")
    (tmp_path / "in").mkdir()
    video_files.write(tmp_path / "in" / "walk.mp4", video_files.ramps(5))
    assert archive(tmp_path / "in", tmp_path / "out", "--batch-size", "2") == 0
    complete(tmp_path / "out", {f"walk.mp4#{i}" for i in range(5)})


def test_other_settings_are_refused(source, tmp_path, archive, capsys):
    archive(source, tmp_path / "out")
    assert archive(source, tmp_path / "out", "--text", "snow") == 2
    assert "begun with other settings: text None, now 'snow'" in capsys.readouterr().err
    assert archive(source / "day", tmp_path / "out") == 2
    assert "other settings: source" in capsys.readouterr().err


def test_a_folder_with_files_is_no_output(source, tmp_path, archive, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("")
    assert archive(source, tmp_path / "out") == 2
    assert "holds files, but no manifest" in capsys.readouterr().err


def test_nothing_to_colour(tmp_path, archive, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.md").write_text("")
    assert archive(tmp_path / "in", tmp_path / "out") == 2
    assert "found 1 files of other kinds" in capsys.readouterr().err
    assert archive(tmp_path / "nowhere", tmp_path / "out") == 2
    assert "no file or folder" in capsys.readouterr().err


def test_no_two_inputs_share_an_output():
    names = ["a.png", "a.jpg", "a.PNG", "a.jpg.png", "a.jpg.png.png", "a.tiff", "b/a.png"]
    outputs = [output_name(name) for name in names]
    assert len(set(outputs)) == len(names)
    assert outputs[0] == "a.png" and all(name.endswith(".png") for name in outputs)
    assert frame_output("a/walk.mp4", 7) == "a/walk.mp4/000007.png"
    texts = ["a", "a\udcff", "a\ufffdff", "a\ufffd", "a\ufffdu", "ä\n"]
    assert len({as_text(name) for name in texts}) == len(texts)
    for text in map(as_text, texts):
        text.encode()


def test_long_names_are_shortened_to_names_of_their_own():
    names = [f"{'ü' * 125}{i}.jpg" for i in range(3)]
    outputs = {output_name(name) for name in names}
    assert len(outputs) == 3 and all(len(name.encode()) <= 255 for name in outputs)
