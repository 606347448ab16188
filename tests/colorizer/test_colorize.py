"""`cmmfnet colorize` again and again: own results, links, lost files, full disks, killed runs."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_network import Fake, colorize
from PIL import Image, PngImagePlugin

from cmmfnet.colorizer import batches
from cmmfnet.colorizer import colorize as module

pytestmark = pytest.mark.usefixtures("fake_method")


def frame(path: Path, seed: int = 0, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 30), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def frames(tmp_path) -> Path:
    """A folder of three JPEG frames."""
    for i in (1, 2, 3):
        frame(tmp_path / "in" / f"f{i}.jpg", i)
    return tmp_path / "in"


def names(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


# --- own results


def test_results_in_the_folder_of_the_inputs_are_left_out(frames, model, capsys):
    """`cmmfnet colorize n/a -o n/a`, twice, and with --overwrite."""
    for more, message in (
        ([], "coloured 3;"),
        ([], "coloured 0, skipped 3 that were done before (--overwrite colours them again), left "
             "out 3 that are results of cmmfnet themselves"),
        (["--overwrite"], "coloured 3, left out 3 that are results of cmmfnet themselves;"),
    ):  # fmt: skip
        assert colorize(model, frames, "-o", frames, *more) == 0
        assert message in capsys.readouterr().out
        assert names(frames) == [f"f{i}.{s}" for i in (1, 2, 3) for s in ("jpg", "png")]


def test_an_output_folder_inside_the_glob(tmp_path, model, capsys):
    frame(tmp_path / "d" / "a.png")
    out = tmp_path / "d" / "out"
    for _ in range(2):
        assert colorize(model, f"{tmp_path}/d/**/*.png", "-o", out, "--overwrite") == 0
        assert names(tmp_path / "d") == ["a.png", "out/a.png"]
    assert "coloured 1, left out 1" in capsys.readouterr().out


def test_a_link_to_the_folder_colours_one_picture_once(tmp_path, model, capsys):
    frame(tmp_path / "d" / "a.png")
    (tmp_path / "d" / "loop").symlink_to(".")
    assert colorize(model, f"{tmp_path}/d/**/*.png", "-o", tmp_path / "out") == 0
    assert names(tmp_path / "out") == ["a.png"] and "coloured 1;" in capsys.readouterr().out


def test_nothing_but_results_is_an_error(frames, model, capsys):
    out = frames.parent / "out"
    assert colorize(model, frames, "-o", out) == 0
    assert colorize(model, out, "-o", frames.parent / "again") == 2
    assert "all 3 pictures in" in (error := capsys.readouterr().err)
    assert "are results of cmmfnet (a note in the file says so)" in error
    assert colorize(model, out / "f1.png", "-o", frames.parent / "again.png") == 2
    assert "f1.png is a result of cmmfnet" in capsys.readouterr().err
    assert not (frames.parent / "again").exists()


def test_frames_that_cmmfnet_rendered_are_no_results(tmp_path, model):
    from cmmfnet.files.pictures import write_picture

    write_picture(tmp_path / "in" / "a.png", np.arange(600, dtype=np.uint16).reshape(20, 30))
    assert colorize(model, tmp_path / "in", "-o", tmp_path / "out") == 0


def test_a_folder_named_like_a_result_is_not_done(frames, model, capsys):
    (frames.parent / "out" / "f2.png").mkdir(parents=True)
    assert colorize(model, frames, "-o", frames.parent / "out") == 1
    captured = capsys.readouterr()
    assert "f2.png cannot be written: " in captured.err and "is a directory" in captured.err.lower()
    assert "coloured 2, failed 1" in captured.out
    assert names(frames.parent / "out") == ["f1.png", "f3.png"]


# --- what cannot be read


def test_links_that_lead_nowhere_fail_by_name(frames, model, capsys):
    (frames / "f4.jpg").symlink_to("../.git/annex/objects/f4.jpg")
    assert colorize(model, frames, "-o", frames.parent / "out") == 1
    captured = capsys.readouterr()
    assert re.search(
        r"failed: .*f4\.jpg is a link to \S+, which is not there; git annex", captured.err
    )
    assert "coloured 3, failed 1" in captured.out


def test_a_long_text_chunk_does_no_harm(tmp_path, model):
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * 5_000_000, zip=True)
    frame(tmp_path / "plain.png")
    frame(tmp_path / "in" / "a.png", pnginfo=info)
    assert colorize(model, tmp_path / "in", "-o", tmp_path / "out") == 0
    assert colorize(model, tmp_path / "plain.png", "-o", tmp_path / "plain-colour.png") == 0
    with (
        Image.open(tmp_path / "out/a.png") as one,
        Image.open(tmp_path / "plain-colour.png") as two,
    ):
        assert np.array_equal(np.asarray(one), np.asarray(two))


def test_the_limit_of_pixels_is_an_option(frames, model, capsys):
    out = frames.parent / "out"
    assert colorize(model, frames, "-o", out, "--max-pixels", 599) == 1
    error = capsys.readouterr().err
    assert error.count("raise it: --max-pixels 600 of cmmfnet colorize") == 3
    assert colorize(model, frames, "-o", out, "--max-pixels", 600) == 0
    assert colorize(model, frames, "-o", out, "--max-pixels", 0) == 2


@pytest.mark.parametrize("length", [240, 251])
def test_names_of_the_longest_kind(tmp_path, model, length):
    name = "n" * (length - 4)
    frame(tmp_path / "in" / f"{name}.png")
    assert colorize(model, tmp_path / "in", "-o", tmp_path / "out") == 0
    assert names(tmp_path / "out") == [f"{name}.png"]


# --- the page


def page_of(frames: Path) -> Path:
    return frames.parent / "page.html"


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are UTF-8")
def test_a_page_with_a_name_that_is_not_utf8(frames, model, capsys):
    frame(frames / "f1.jpg").rename(frames / os.fsdecode(b"f\xff9.jpg"))
    assert colorize(model, frames, "-o", frames.parent / "out", "--gallery", page_of(frames)) == 0
    text = page_of(frames).read_text(encoding="utf-8")
    assert text.count("<article") == 3 and r"f\udcff9.jpg" in text
    assert "coloured 3;" in capsys.readouterr().out


def test_a_page_without_a_damaged_earlier_result(frames, model, capsys):
    out = frames.parent / "out"
    out.mkdir()
    (out / "f2.png").write_bytes(b"\x89PNG\r\n\x1a\nhalf")
    assert colorize(model, frames, "-o", out, "--gallery", page_of(frames)) == 1
    captured = capsys.readouterr()
    assert "coloured 2, skipped 1" in captured.out
    assert re.search(
        r"not in .*page\.html: .*f2\.jpg: its result .*f2\.png cannot be read", captured.err
    )
    assert page_of(frames).read_text().count("<article") == 2


def test_a_page_without_an_input_that_is_gone(frames, model, capsys, monkeypatch):
    out, real = frames.parent / "out", batches.colour_all

    def run_and_delete(*arguments, **options):
        real(*arguments, **options)
        (frames / "f3.jpg").unlink()

    monkeypatch.setattr(batches, "colour_all", run_and_delete)
    assert colorize(model, frames, "-o", out, "--gallery", page_of(frames)) == 1
    captured = capsys.readouterr()
    assert "coloured 3;" in captured.out and "f3.jpg" in captured.err
    assert page_of(frames).read_text().count("<article") == 2


def test_the_report_comes_before_a_page_that_cannot_be_written(frames, model, capsys):
    (frames / "bad.png").write_bytes(b"")
    page = page_of(frames)
    page.mkdir()
    assert colorize(model, frames, "-o", frames.parent / "out", "--gallery", page) == 1
    captured = capsys.readouterr()
    assert "coloured 3, failed 1" in captured.out
    assert "bad.png" in captured.err and "page.html" in captured.err
    assert not list(frames.parent.glob(".*.part"))


def test_a_warning_is_shown_once_with_a_page(tmp_path, model):
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[..., 0] = np.arange(30) * 8
    pixels[..., 2] = 255 - np.arange(20)[:, None] * 8
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png")
    with pytest.warns(UserWarning) as shown:
        colorize(model, tmp_path / "in", "-o", tmp_path / "out", "--gallery", tmp_path / "p.html")
    assert len([w for w in shown if "a.png" in str(w.message)]) == 1


# --- stopped runs


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "No space left on device; free some space"),
        (errno.EROFS, "Read-only file system"),
    ],
)
def test_a_disk_that_takes_no_more_stops_the_run_with_a_report(
    frames, model, capsys, monkeypatch, number, message
):
    real, calls = batches.write_picture, []

    def full(path, *arguments):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(number, message, str(path))
        return real(path, *arguments)

    monkeypatch.setattr(batches, "write_picture", full)
    assert colorize(model, frames, "-o", frames.parent / "out") == 1
    captured = capsys.readouterr()
    assert "coloured 1, failed 1" in captured.out and len(calls) == 2
    assert captured.err.count(message) == 2 and "f2.png" in captured.err


def test_an_input_that_vanishes_fails_alone(frames, model, capsys, monkeypatch):
    real = batches.read_thermal

    def read(source, **options):
        (frames / "f2.jpg").unlink(missing_ok=True)
        return real(source, **options)

    monkeypatch.setattr(batches, "read_thermal", read)
    out = frames.parent / "out"
    assert colorize(model, frames, "-o", out, "--batch-size", 1) == 1
    captured = capsys.readouterr()
    assert "coloured 2, failed 1" in captured.out and names(out) == ["f1.png", "f3.png"]
    assert "f2.jpg': no such file" in captured.err


@pytest.mark.slow
def test_killed_runs_leave_nothing(tmp_path, model):
    for i in range(30):
        frame(tmp_path / "in" / f"{i}.png", i)
    code = (
        "import sys, cmmfnet.methods; "
        "cmmfnet.methods.METHODS['fake'] = 'fake_network:FakeMethod'; "
        "from cmmfnet.cli import main; sys.exit(main())"
    )
    out = tmp_path / "out"
    command = [
        sys.executable, "-c", code, "colorize", tmp_path / "in", "-o", out, "--model", model,
        "--device", "cpu", "--gallery", out / "page.html",
    ]  # fmt: skip
    paths = [str(Path(module.__file__).parents[2]), str(Path(__file__).parents[1])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    with subprocess.Popen(command, env=environment) as process:
        deadline = time.monotonic() + 40
        while not list(out.glob("*")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
    (out / ".cmmfnet-0123456789ab.part").write_bytes(b"half")  # of a run killed as it wrote
    for name in out.glob("*.png"):
        Image.open(name).load()
    assert colorize(model, tmp_path / "in", "-o", out, "--gallery", out / "page.html") == 0
    assert names(out) == sorted([*(f"{i}.png" for i in range(30)), "page.html"])


# --- too little memory


def test_too_little_memory_takes_fewer_frames_and_fails_for_single_frames(
    frames, model, capsys, monkeypatch
):
    """A batch is halved; a frame too large alone fails, and the others are coloured."""
    Image.fromarray(np.arange(1800, dtype=np.uint16).reshape(20, 90)).save(frames / "wide.png")
    forward = Fake.forward

    def limited(self: Fake, thermal: torch.Tensor, *rest: object) -> torch.Tensor:
        if len(thermal) > 2 or thermal.shape[-1] > 60:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")
        return forward(self, thermal, *rest)

    monkeypatch.setattr(Fake, "forward", limited)
    out = frames.parent / "out"
    assert colorize(model, frames, "-o", out, "--batch-size", 4) == 1
    captured = capsys.readouterr()
    assert "wide.png: too little memory for this one frame" in captured.err
    assert "coloured 3, failed 1" in captured.out and names(out) == ["f1.png", "f2.png", "f3.png"]


# --- warnings


def test_of_many_equal_warnings_three_are_shown_and_the_others_counted(tmp_path, model):
    for i in range(5):
        path = tmp_path / "in" / f"f{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((20, 30), i, np.uint8)).save(path)
    frame(tmp_path / "in" / "g.png", save_all=True, append_images=[Image.new("L", (30, 20))])
    with pytest.warns(UserWarning) as caught:
        assert colorize(model, tmp_path / "in", "-o", tmp_path / "out") == 0
    texts = [str(each.message) for each in caught]
    assert [name for text in texts for name in re.findall(r"(f\d)\.png: every pixel is", text)] == [
        "f0", "f1", "f2",
    ]  # fmt: skip
    assert sum("animated PNG" in text for text in texts) == 1 and len(texts) == 5
    assert texts[-1].startswith("2 more warnings like: every pixel is 0 (a closed shutter")
