"""The command line: what is typed, what is printed where, the exit status, and the files that are
left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fake_network import Fake
from PIL import Image

from cmmfnet import __version__, cli, methods
from cmmfnet.cli import COMMANDS, Command, main
from cmmfnet.files import pictures as sources
from cmmfnet.files.errors import UserError
from cmmfnet.files.pictures import list_sources, plan_outputs, write_picture
from cmmfnet.weights.files import save_model

TESTS = Path(__file__).parent
# The command in a process of its own, knowing the fake method.
WITH_FAKE = (
    "import sys, cmmfnet.methods; "
    "cmmfnet.methods.METHODS['fake'] = 'fake_network:FakeMethod'; from cmmfnet.cli import main; "
    "sys.exit(main())"
)


@pytest.fixture(autouse=True)
def fake_method(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "fake", "fake_network:FakeMethod")


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    return str(
        save_model(
            tmp_path_factory.mktemp("model") / "fake.safetensors", Fake(), {"method": "fake"}
        )
    )


def frame(path: Path, seed: int = 0, size: tuple[int, int] = (20, 30)) -> Path:
    pixels = np.random.default_rng(seed).integers(7000, 8000, size, dtype=np.uint16)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jpg":
        pixels = (pixels // 32).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def frames(tmp_path) -> Path:
    """A folder of three frames."""
    for i in (1, 2, 10):
        frame(tmp_path / "in" / f"frame{i}.png", seed=i)
    return tmp_path / "in"


def colorize(model: str, *arguments: object) -> int:
    return main(["colorize", *map(str, arguments), "--model", model, "--device", "cpu"])


def names(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


# Subprocesses run this checkout, not another cmmfnet that happens to be installed.
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(Path(cli.__file__).parents[1]), str(TESTS)]),
}


def python(*arguments: object, **more) -> subprocess.CompletedProcess:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=ENVIRONMENT, **more
    )


# --- the command itself, in a process of its own


def test_help_and_version_are_quick_and_do_not_import_torch():
    code = (
        "import sys; from cmmfnet.cli import main\n"
        "for line in (['--help'], ['--version'], ['colorize', '--help'], ['models', '--help'], "
        "['demo', '--help']):\n"
        "    try: assert main(line) == 0\n"
        "    except SystemExit as e: assert e.code == 0\n"
        "print('heavy:', [m for m in ('torch', 'transformers', 'tifffile') if m in sys.modules])"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert "heavy: []" in done.stdout and f"cmmfnet {__version__}" in done.stdout
    for name, command in COMMANDS.items():
        assert name in done.stdout and command.help in done.stdout
    for option in (
        "-o OUT",
        "--text",
        "--text-file",
        "--span",
        "--palette",
        "--batch-size",
        "--gallery",
        "--overwrite",
        "--show-tags",
    ):
        assert option in done.stdout, option
    assert "a picture, camera file or video, a folder of pictures, or a glob" in re.sub(
        r"\s+", " ", done.stdout
    )  # docstrings are the help


def test_python_m_cmmfnet_is_the_command():
    done = python("-m", "cmmfnet", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"cmmfnet {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["colorise", "x"], 2, "unknown command 'colorise'; did you mean 'colorize'?"),
        (["colorize", "gone.png", "-o", "out"], 2, "no file or folder gone.png"),
        (["models", "gone.safetensors"], 2, "no model file gone.safetensors"),
        (["colorize"], 2, "required: source, out"),
        (["colorize", "x", "-o", "y", "--frobnicate"], 2, "frobnicate"),
        ([], 2, ""),
    ],
)
def test_mistakes_get_one_clear_line_and_no_traceback(tmp_path, arguments, status, message):
    done = python("-m", "cmmfnet", *arguments, cwd=tmp_path)
    assert done.returncode == status
    assert message in done.stderr and "Traceback" not in done.stderr
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is of Linux")
@pytest.mark.parametrize("arguments", ["--help", "--version", "colorize --help", "models"])
def test_output_that_nobody_takes_is_no_traceback(arguments):
    command = f"{sys.executable} -m cmmfnet {arguments}"
    for rest, status in ((" | true; exit ${PIPESTATUS[0]}", (0, 141)), (">/dev/full", (0, 1))):
        done = subprocess.run(
            ["bash", "-c", command + rest], env=ENVIRONMENT, capture_output=True, text=True,
            timeout=60,
        )  # fmt: skip
        assert done.returncode in status, (rest, done)
        assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_our_own_mistakes_keep_their_traceback(monkeypatch):
    monkeypatch.setitem(
        COMMANDS, "broken", Command("test_cli:broken", "raise what no user can put right")
    )
    with pytest.raises(ValueError, match="operands could not be broadcast"):
        main(["broken"])


def broken() -> None:
    """Raise."""
    raise ValueError("operands could not be broadcast")


def test_a_whole_run_in_a_process_of_its_own(frames, model):
    (frames / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    done = python(
        "-c",
        WITH_FAKE,
        "colorize",
        frames,
        "-o",
        frames.parent / "out",
        "--model",
        model,
        "--device",
        "cpu",
    )
    assert done.returncode == 1, done.stderr
    assert re.fullmatch(
        rf"coloured 3, failed 1; \d+\.\d\d s a frame; in {frames.parent / 'out'}\n", done.stdout
    )
    (line,) = done.stderr.splitlines()
    assert (
        line.startswith("cmmfnet: failed:")
        and str(frames / "bad.png") in line
        and "damaged" in line
    )
    assert names(frames.parent / "out") == ["frame1.png", "frame10.png", "frame2.png"]


def test_ctrl_c_leaves_finished_files_whole(tmp_path):
    slow = save_model(
        tmp_path / "slow.safetensors", Fake(delay=0.1), {"method": "fake", "delay": 0.1}
    )
    for i in range(60):
        frame(tmp_path / "in" / f"{i}.png", seed=i)
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-c",
        WITH_FAKE,
        "colorize",
        tmp_path / "in",
        "-o",
        out,
        "--model",
        slow,
        "--device",
        "cpu",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        deadline = time.monotonic() + 40
        while len(list(out.glob("*.png"))) < 3:
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted" in stderr and "Traceback" not in stderr
    finished = names(out)
    assert 3 <= len(finished) < 60 and all(re.fullmatch(r"\d+\.png", name) for name in finished)
    for name in finished:
        with Image.open(out / name) as picture:
            picture.load()
            assert picture.size == (30, 20)


# --- pictures in, pictures out


def test_a_folder_gives_one_png_each_with_the_size_of_the_input(frames, model, capsys):
    frame(frames / "frame3.tiff", size=(33, 47))
    assert colorize(model, frames, "-o", frames.parent / "out") == 0
    assert names(frames.parent / "out") == ["frame1.png", "frame10.png", "frame2.png", "frame3.png"]
    assert Image.open(frames.parent / "out" / "frame3.png").size == (47, 33)
    assert Image.open(frames.parent / "out" / "frame1.png").mode == "RGB"
    assert capsys.readouterr().out.startswith("coloured 4;")


def test_what_is_done_is_skipped_and_kept_and_overwrite_replaces_it(frames, model, capsys):
    out = frames.parent / "out"
    out.mkdir()
    (out / "frame2.png").write_bytes(b"mine")
    assert colorize(model, frames, "-o", out) == 0
    assert (out / "frame2.png").read_bytes() == b"mine"
    assert "coloured 2, skipped 1 that were done before (--overwrite" in capsys.readouterr().out
    assert colorize("no-model-is-needed", frames, "-o", out) == 0  # nothing to do
    assert "coloured 0, skipped 3" in capsys.readouterr().out
    differ = "2 of them with other options (model, text, span, palette ...)"
    for other in (["--span", "10,200"], ["--text", "a car"], ["--palette", "black-hot"],
                  ["--kelvin-per-count", "0.04"], ["--guidance", "2"]):  # fmt: skip
        assert colorize(model, frames, "-o", out, *other) == 0
        assert f"skipped 3 that were done before, {differ} (--overwrite" in capsys.readouterr().out
    assert colorize(model, frames, "-o", out, "--overwrite") == 0
    assert Image.open(out / "frame2.png").size == (30, 20)
    assert capsys.readouterr().out.startswith("coloured 3;")


@pytest.mark.parametrize("suffix", sorted(sources._FORMATS))
def test_one_file_into_one_file_of_any_format(frames, model, suffix):
    out = frames.parent / "new" / f"result{suffix}"
    assert colorize(model, frames / "frame1.png", "-o", out) == 0
    picture = Image.open(out)
    assert (
        picture.size == (30, 20)
        and picture.mode == "RGB"
        and picture.format == sources._FORMATS[suffix]
    )
    assert names(out.parent) == [out.name]


def test_one_file_whose_result_is_there_is_an_error(frames, model, capsys):
    out = frame(frames.parent / "result.png")
    before = out.read_bytes()
    assert colorize(model, frames / "frame1.png", "-o", out) == 1
    assert "result.png is there already; --overwrite replaces it" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert colorize(model, frames / "frame1.png", "-o", out, "--overwrite") == 0
    assert out.read_bytes() != before


def test_an_input_is_never_written_to(frames, model, capsys):
    before = {file: file.read_bytes() for file in frames.iterdir()}
    link = frames.parent / "link"
    link.symlink_to(frames)
    for source, out in [
        (frames, frames),
        (frames, link),
        (frames / "frame1.png", frames / "frame1.png"),
        (frames / "frame1.png", frames),
        (f"{frames}/frame*.png", link),
    ]:
        assert colorize(model, source, "-o", out, "--overwrite") == 2
        assert "would replace the input" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in frames.iterdir()} == before


def test_bad_files_are_named_at_the_end_and_do_not_stop_the_rest(frames, model, capsys):
    (frames / "frame0.png").write_bytes(b"")
    (frames / "frame5.jpg").write_text("hello")
    assert colorize(model, frames, "-o", frames.parent / "out", "--batch-size", 2) == 1
    captured = capsys.readouterr()
    assert [Path(line.split(":")[2].strip()).name for line in captured.err.splitlines()] == [
        "frame0.png",
        "frame5.jpg",
    ]
    assert "an empty file" in captured.err and "coloured 3, failed 2" in captured.out
    assert names(frames.parent / "out") == ["frame1.png", "frame10.png", "frame2.png"]


def test_a_result_that_cannot_be_written_is_a_failed_file(frames, model, capsys):
    (frames.parent / "out" / "frame2.png").mkdir(parents=True)
    assert colorize(model, frames, "-o", frames.parent / "out", "--overwrite") == 1
    captured = capsys.readouterr()
    assert "frame2.png cannot be written" in captured.err and "coloured 2, failed 1" in captured.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--span", "35,20"], "the low end must be below the high end"),
        (["--span", "20"], "is not LOW,HIGH"),
        (["--palette", "rainbow-unicorn"], "unknown palette"),
        (["--batch-size", "0"], "expected 1 or more"),
        (["--gallery", "page.pdf"], "name it page.html"),
        (["--text", "car " * 900], "the most is 2,000"),
        (["--device", "gpu"], "unknown device 'gpu'"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_written(
    frames, model, capsys, arguments, message
):
    before = names(frames.parent)
    out = frames.parent / "out"
    assert main(["colorize", str(frames), "-o", str(out), "--model", model, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert names(frames.parent) == before


def test_a_span_below_zero_is_not_taken_for_an_option(tmp_path, model):
    values = np.array([[-20.0, -10.0, 35.0, 40.0]], np.float32)
    Image.fromarray(values).save(tmp_path / "celsius.tiff")
    assert (
        colorize(model, tmp_path / "celsius.tiff", "-o", tmp_path / "c.png", "--span", "-10,35")
        == 0
    )
    assert np.asarray(Image.open(tmp_path / "c.png"))[0, :, 0].tolist() == [0, 0, 255, 255]


def test_a_text_that_takes_away_is_not_taken_for_an_option():
    from cmmfnet.cli import _normal

    assert _normal(["--text", "-grass +snow", "-o", "x"]) == ["--text=-grass +snow", "-o", "x"]
    assert _normal(["--text", "-o", "x"]) == ["--text", "-o", "x"]
    assert _normal(["--text", "--overwrite"]) == ["--text", "--overwrite"]


def test_text_and_tags(frames, model, capsys):
    out = frames.parent / "out"
    assert colorize(model, frames, "-o", out, "--text", "a car", "--show-tags") == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r".*frame1\.png: tree 0\.\d\d, road 0\.\d\d, car 0\.\d\d", lines[0])
    assert len(lines) == 4
    assert np.asarray(Image.open(out / "frame1.png"))[0, 0, 1] > 0  # Fake paints text green


def green(path: Path) -> int:
    """Fake paints the mean text token green; 0 without text."""
    return int(np.asarray(Image.open(path))[0, 0, 1])


def test_each_picture_has_its_own_text(frames, model, capsys):
    out, texts = frames.parent / "out", frames.parent / "texts.jsonl"
    texts.write_text(
        '{"name": "frame1", "caption": "a tree"}\n{"name": "frame2.png", "caption": "a car"}\n'
    )
    page = frames.parent / "page.html"
    assert (
        colorize(
            model, frames, "-o", out, "--text-file", texts, "--text", "a road", "--gallery", page
        )
        == 0
    )
    assert "texts: 2 their own, 1 --text\ncoloured 3" in capsys.readouterr().out
    noted = {name: Image.open(out / name).text["Text"] for name in names(out)}
    assert noted == {"frame1.png": "a tree", "frame2.png": "a car", "frame10.png": "a road"}
    assert green(out / "frame2.png") < green(out / "frame10.png") < green(out / "frame1.png")
    assert [
        text in page.read_text() for text in ("text: a tree", "text: a car", "text: a road")
    ] == [True] * 3
    # what is done stays, with its text, when the texts change; the page says what each picture was
    # made with
    (out / "frame2.png").unlink()
    texts.write_text(
        '{"name": "frame1", "caption": "a road"}\n{"name": "frame2", "caption": "a tree"}\n'
    )
    assert colorize(model, frames, "-o", out, "--text-file", texts, "--gallery", page) == 0
    assert (
        Image.open(out / "frame1.png").text["Text"]
        == Image.open(out / "frame2.png").text["Text"]
        == "a tree"
    )
    assert (
        page.read_text().count("text: a tree") == 2 and page.read_text().count("text: a road") == 1
    )


def test_texts_beside_the_pictures(frames, model, capsys):
    out = frames.parent / "out"
    (frames / "frame1.txt").write_text("a tree")
    (frames / "_folder.txt").write_text("a car")
    (frames / "frame3.txt").write_text("a tree")
    assert colorize(model, frames, "-o", out) == 0  # not asked for, not read
    assert {Image.open(out / name).text["Text"] for name in names(out)} == {""}
    with pytest.warns(
        UserWarning, match=r"1 text files are beside no picture of their name: .*frame3\.txt"
    ):
        assert colorize(model, frames, "-o", out, "--text-file", "beside", "--overwrite") == 0
    assert "texts: 1 their own, 2 their folder's" in capsys.readouterr().out
    assert [Image.open(out / name).text["Text"] for name in names(out)] == [
        "a tree",
        "a car",
        "a car",
    ]


def test_texts_by_time(frames, model):
    times = frames.parent / "times.txt"
    times.write_text("fps: 2\n0:00-0:01 a tree; 0:01- a car")
    assert colorize(model, frames, "-o", frames.parent / "out", "--text-file", times) == 0
    noted = {
        name: Image.open(frames.parent / "out" / name).text["Text"]
        for name in names(frames.parent / "out")
    }
    assert noted == {"frame1.png": "a tree", "frame2.png": "a tree", "frame10.png": "a car"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            b'{"name": "frame1", "caption": "a"}\n{"name": 3}',
            "a.jsonl, line 2: expected",
        ),
        ("a.jsonl", b'{"name": "other", "caption": "a"}', "none of its 1 names is a picture"),
        ("a.txt", b"\x89PNG\r\n\0\0", "a.txt is a binary file"),
        ("a.txt", b"frame1\t" + b"car " * 900, "a.txt, line 1: the prompt has 3,599"),
        ("gone.csv", None, "no file of texts"),
    ],
)
def test_a_bad_file_of_texts_is_refused_before_anything_is_coloured(
    frames, model, capsys, name, content, message
):
    if content is not None:
        (frames.parent / name).write_bytes(content)
    before = names(frames.parent)
    assert (
        colorize(model, frames, "-o", frames.parent / "out", "--text-file", frames.parent / name)
        == 2
    )
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1 and "Traceback" not in error
    assert names(frames.parent) == before


def test_predicted_tags_are_corrected(frames, model, capsys):
    out, page = frames.parent / "out", frames.parent / "page.html"
    options = ("--show-tags", "--gallery", page)
    assert colorize(model, frames, "-o", out, "--text", "+car -tree", *options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r".*frame1\.png: tree 0\.\d\d, road 0\.\d\d, car 0\.\d\d; given: car(, road)?", lines[0]
    )
    given_tags = lines[0].partition("given: ")[2]
    note = Image.open(out / "frame1.png").text
    assert (note["Text"], note["Tags"]) == (
        "+car -tree",
        given_tags,
    ) and f"given: {given_tags}" in page.read_text()
    assert (
        colorize(model, frames, "-o", out, "--text=-tree", "--overwrite") == 0
    )  # a minus needs the equals sign
    assert Image.open(out / "frame1.png").text["Tags"] == given_tags.removeprefix(
        "car"
    ).removeprefix(", ")
    assert colorize(model, frames, "-o", out, "--text", "+ car", "--overwrite") == 2
    assert "write it next to its word: '+car'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "text", "told"),
    [(("day", "dusk", "night"), None, True), (("night", "dusk", "day"), None, False),
     (("day", "dusk", "night"), "night", False), (("car", "road", "night"), None, False)],
)  # fmt: skip
def test_frames_that_look_like_night_are_counted(frames, tmp_path, capsys, words, text, told):
    """The likelier word is the later one in Fake's list."""
    model = save_model(
        tmp_path / "fake.safetensors", Fake(words=words), {"method": "fake", "words": list(words)}
    )
    options = ["--show-tags", *(["--text", text] if text else [])]
    assert colorize(str(model), frames, "-o", tmp_path / "out", *options) == 0
    count = len(list((tmp_path / "out").glob("*.png")))
    note = f"{count} of {count} look like night, and without text are coloured as by day or at dusk"
    assert (f"{note}: try --text night" in capsys.readouterr().out) == told


def test_corrections_need_a_model_that_predicts(frames, tmp_path, capsys):
    options = {"words": [], "text": "clip-sentence"}
    model = save_model(
        tmp_path / "plain.safetensors", Fake(**options), {"method": "fake", **options}
    )
    assert colorize(str(model), frames, "-o", tmp_path / "out", "--text", "+snow") == 2
    assert "has nothing to start from; write what is to be seen" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_show_tags_of_a_model_without_is_a_mistake(frames, tmp_path, capsys):
    model = save_model(
        tmp_path / "plain.safetensors", Fake(words=()), {"method": "fake", "words": []}
    )
    assert colorize(str(model), frames, "-o", tmp_path / "out", "--show-tags") == 2
    assert "predicts no tags" in capsys.readouterr().err


def test_gallery_shows_every_finished_picture_also_those_of_an_earlier_run(frames, model):
    out = frames.parent / "out"
    assert colorize(model, frames, "-o", out) == 0
    frame(frames / "frame11.png")
    (frames / "bad.png").write_text("x")
    assert (
        colorize(model, frames, "-o", out, "--gallery", out / "index.html", "--text", "a car") == 1
    )
    page = (out / "index.html").read_text()
    assert page.count("<article") == 4 and "text: a car" in page and "bad.png" not in page


def test_the_picture_says_what_made_it(frames, model):
    out = frames.parent
    assert (
        colorize(
            model,
            frames / "frame1.png",
            "-o",
            out / "a.png",
            "--text",
            "a car",
            "--span",
            "7000,8000",
        )
        == 0
    )
    text = Image.open(out / "a.png").text
    assert text["Software"] == f"cmmfnet {__version__}" and text["Model"] == "fake"
    assert text["Text"] == "a car" and text["Span"] == "7000,8000" and "guessed" in text["Comment"]
    assert colorize(model, frames / "frame1.png", "-o", out / "a.jpg") == 0
    exif = Image.open(out / "a.jpg").getexif()
    assert (
        exif[0x0131] == f"cmmfnet {__version__}"
        and "Model: fake" in exif[0x010E]
        and "percentile" in exif[0x010E]
    )


def test_models_describes_a_file(model, capsys):
    assert main(["models", model]) == 0
    out = capsys.readouterr().out
    assert "float32" in out and "sha256" in out and "M parameters" in out


def test_demo_renders_colours_and_writes_its_page(tmp_path, model, monkeypatch, capsys):
    import cmmfnet.data.scenes as scenes

    def render(seed, kind, *_args, **_kwargs):
        thermal = np.random.default_rng(seed).integers(7000, 8000, (20, 30), dtype=np.uint16)
        return SimpleNamespace(thermal=thermal, visible=np.full((20, 30, 3), 9, np.uint8))

    monkeypatch.setattr(scenes, "render", render, raising=False)
    for _ in range(2):  # a second time is as good as the first
        assert (
            main(["demo", "--out", str(tmp_path / "demo"), "--model", model, "--device", "cpu"])
            == 0
        )
    thermal = sorted((tmp_path / "demo" / "thermal").iterdir())
    assert len(thermal) == 6 and np.asarray(Image.open(thermal[0])).dtype == np.uint16
    assert names(tmp_path / "demo" / "colour") == [file.name for file in thermal]
    page = (tmp_path / "demo" / "gallery.html").read_text()
    assert page.count("<article") == 6 and page.count("true colours") == 6
    assert (tmp_path / "demo" / "street.mp4").is_file() == (find_spec("av") is not None)
    assert str(tmp_path / "demo" / "gallery.html") in capsys.readouterr().out


# --- sources


def test_folders_are_sorted_naturally_and_hold_only_visible_pictures(tmp_path):
    for name in ("f10.png", "f2.png", "f1.PNG", "f02.jpg", ".hidden.png", "notes.txt", "sub/g.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [file.name for file in list_sources(tmp_path)] == [
        "f1.PNG",
        "f02.jpg",
        "f2.png",
        "f10.png",
    ]
    assert [file.name for file in list_sources(f"{tmp_path}/**/*.png")] == [
        "f2.png",
        "f10.png",
        "g.png",
    ]


def test_a_file_with_glob_characters_in_its_name_is_a_file(tmp_path):
    (tmp_path / "a[1].png").touch()
    assert list_sources(tmp_path / "a[1].png") == [tmp_path / "a[1].png"]


def test_nothing_found_says_what_was_looked_for_and_what_is_there(tmp_path):
    with pytest.raises(
        UserError, match=r"looked for png jpg jpeg tif tiff bmp webp; found no files"
    ):
        list_sources(tmp_path)
    for name in ("a.mp4", "b.mp4", "c.csv"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"found only 2 x \.mp4, 1 x \.csv; a video is coloured by"):
        list_sources(tmp_path)
    with pytest.raises(UserError, match=r"no pictures in glob .*\*\.tif"):
        list_sources(f"{tmp_path}/*.tif")
    with pytest.raises(UserError, match="no file or folder"):
        list_sources(tmp_path / "gone")
    with pytest.raises(UserError, match="is an address; cmmfnet archive takes object stores"):
        list_sources("http://127.0.0.1/a.png")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is a pipe or device; expected a file or folder"):
        list_sources(tmp_path / "pipe")
    (tmp_path / "d.png").touch()
    with pytest.warns(UserWarning, match=r"2 videos are left out; a video is coloured by itself"):
        assert list_sources(tmp_path) == [tmp_path / "d.png"]


@pytest.mark.filterwarnings("error")
def test_pictures_of_kinds_that_are_not_read_are_named_and_other_files_are_not(tmp_path):
    for name in ("a.png", "notes.txt", "a.png.msk", "a.png.aux.xml", ".b.gif", "list.csv"):
        (tmp_path / name).touch()
    assert list_sources(tmp_path) == [tmp_path / "a.png"]
    for name in ("c.gif", "d.GIF", "e.heic", "f.raw"):
        (tmp_path / name).touch()
    with pytest.warns(UserWarning, match=r"left out 2 x \.gif, 1 x \.heic, 1 x \.raw; looked"):
        assert list_sources(tmp_path) == [tmp_path / "a.png"]


def plan(tmp_path: Path, source: str, *files: str, out: str = "out") -> list[str]:
    inputs = [tmp_path / file for file in files]
    for file in inputs:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return [
        str(path.relative_to(tmp_path))
        for path in plan_outputs(tmp_path / source, inputs, tmp_path / out)
    ]


def test_equal_stems_keep_their_suffix_in_the_name(tmp_path):
    planned = plan(tmp_path, "in", "in/a.png", "in/a.jpg", "in/b.png", "in/B.tif", "in/c.png")
    assert planned == [
        "out/a-png.png",
        "out/a-jpg.png",
        "out/b-png.png",
        "out/B-tif.png",
        "out/c.png",
    ]


def test_globs_keep_the_folders_in_which_files_differ(tmp_path):
    planned = plan(tmp_path, "in/**/*.png", "in/s0/lwir/a.png", "in/s1/lwir/a.png")
    assert planned == ["out/s0/lwir/a.png", "out/s1/lwir/a.png"]


def test_names_that_meet_all_the_same_are_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"a-png\.tif would both become .*a-png\.png|would both become"
    ):
        plan(tmp_path, "in", "in/a.png", "in/a.jpg", "in/a-png.tif")


def test_many_inputs_into_one_picture_and_a_file_as_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"names one picture, but .* can be many; give a folder"):
        plan(tmp_path, "in", "in/a.png", "in/b.png", out="all.png")
    (tmp_path / "taken").touch()
    with pytest.raises(UserError, match="taken is a file; results go into a folder"):
        plan(tmp_path, "in", "in/a.png", out="taken")
    os.mkfifo(tmp_path / "pipe")
    for out in (tmp_path / "pipe", "-"):  # as /dev/stdout; "-" would become a folder of that name
        with pytest.raises(UserError, match="is no folder and no file's name"):
            plan_outputs(tmp_path / "in", [tmp_path / "in" / "a.png"], out)


def test_a_failed_write_leaves_the_old_picture_and_no_rubbish(tmp_path, disk_full_while_writing):
    path = write_picture(tmp_path / "a.png", np.zeros((4, 5, 3), np.uint8))
    before = path.read_bytes()
    disk_full_while_writing()
    with pytest.raises(OSError, match="No space left"):
        write_picture(path, np.ones((4, 5, 3), np.uint8))
    assert path.read_bytes() == before and names(tmp_path) == ["a.png"]


def test_a_suffix_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot write 'a\.gif'; choose a name that ends in"):
        write_picture(tmp_path / "a.gif", np.zeros((4, 5, 3), np.uint8))


# --- signatures as arguments


def test_a_function_becomes_a_command_with_one_line(monkeypatch, capsys):
    monkeypatch.setitem(COMMANDS, "sum", Command("test_cli:total", "add numbers"))
    assert main(["sum", "3", "--times-two", "--offset", "-1.5"]) == 0
    assert capsys.readouterr().out == "3 True -1.5\n"
    assert "  sum " in cli._overview()
    with pytest.raises(SystemExit):
        main(["sum", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--offset OFFSET what to add (default: 0.0)" in text and "type:" not in text
    with pytest.raises(SystemExit) as stop:
        main(["sum", "three"])
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["sum", "three"], "NUMBER is 'three'; expected a whole number; see cmmfnet sum --help"),
        (["sum", "3", "--offset", "x"], "--offset is 'x'; expected a number"),
        (["sum", "3", "--ofset", "1"], "there is no option --ofset; did you mean --offset?"),
        (["sum", "3", "4"], "there is no place for 4; write names with spaces, and globs"),
        (["sum", "3", "--offset"], "expected one argument"),
        (["sum", "--", "3", "--offset", "1"], "--offset comes after --, behind which only names"),
        (
            ["colorize", "x", "-o", "y", "--batch-size", "q"],
            "--batch-size is 'q'; expected a whole",
        ),
        (["prepare", "kaistt", "a", "b"], "NAME is 'kaistt'; expected one of kaist, irvi, flir"),
        (["prepare", "kaist", "a", "b", "--protocol", "D"], "--protocol is 'D'; expected one of A"),
        (["evaluate", "x", "--seed", "q"], "--seed is 'q'; expected a whole number"),
        (
            ["train", "--data", "x", "--config", "tiny", "--resume", "so"],
            "one of auto, never, must",
        ),
    ],
)
def test_typing_errors_are_in_terms_of_the_command_line(monkeypatch, capsys, typed, message):
    monkeypatch.setitem(COMMANDS, "sum", Command("test_cli:total", "add numbers"))
    with pytest.raises(SystemExit) as stop:
        main(typed)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and len(error.splitlines()) == 1
    assert "Union" not in error and "<class" not in error and "Parser key" not in error


def total(number: int, *, times_two: bool = False, offset: float = 0.0) -> None:
    """Add numbers.

    Args:
        number: the first
        times_two: twice
        offset: what to add
    """
    print(number, times_two, offset)


@pytest.mark.parametrize(("arguments", "status"), [(["--version"], 0), (["colour"], 2)])
def test_one_process_of_several_ends_with_its_status_and_output(arguments, status):
    """It ends without tearing the interpreter down (__main__.leave), which must lose nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "cmmfnet", *arguments], env=os.environ | {"WORLD_SIZE": "2"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == status
    assert __version__ in done.stdout if status == 0 else "unknown command" in done.stderr
