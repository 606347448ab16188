"""The page without a browser: what its events do, and what is closed to visitors."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import camera_files
import numpy as np
import pytest
import video_files as made
from serve_app import fake, false_colour, pixels_of, png, ramp, service

import cmmfnet

pytest.importorskip("gradio", reason="needs cmmfnet[serve]")
httpx = pytest.importorskip("httpx", reason="needs httpx")

from cmmfnet.serve.api import make_app  # noqa: E402
from cmmfnet.serve.blocks import add_page  # noqa: E402
from cmmfnet.serve.limits import Refused  # noqa: E402
from cmmfnet.serve.notes import warnings_by_thread  # noqa: E402
from cmmfnet.serve.page import Page, with_chips  # noqa: E402
from cmmfnet.serve.shelf import Shelf  # noqa: E402
from cmmfnet.serve.wording import for_programs, for_visitors  # noqa: E402

GREY = "none: grey"


def options(text="", model="fake", palette=GREY, span="", raw="", kelvin=0, form="png") -> tuple:
    return text, model, palette, span, raw, kelvin, form


@pytest.fixture
def page():
    served, shelf = service(frames=20), Shelf(10_000_000, 60)
    with warnings_by_thread():
        yield Page(served, shelf, {"street": ramp()})
    served.close()
    shelf.close()


def dropped(page: Page, *files: tuple[str, bytes]) -> dict:
    """The state of a visitor who has dropped files and chosen the first."""
    kept = [page.shelf.put(name, "", content) for name, content in files]
    listed = [{"token": each.token, "name": each.name} for each in kept]
    return listed[0] | {"files": listed}


def result_of(page: Page, state: dict) -> bytes:
    return page.shelf.get(state["result"]).path.read_bytes()


def test_a_dropped_file_is_shown_in_colour_with_its_tags_and_values(page):
    state = dropped(page, ("house.jpg", camera_files.flir_jpeg()))
    state, chips, histogram, html, many, frames = asyncio.run(page.look(state, *options()))
    expected = fake()(camera_files.flir_jpeg())
    np.testing.assert_array_equal(pixels_of(result_of(page, state)), expected)
    assert "house.jpg" in html and 'type="range"' in html and f"files/{state['result']}" in html
    assert "°C" in histogram and "<svg" in histogram
    names = [name for _, name in chips.choices]
    assert names == [name for name, _ in fake().tags(camera_files.flir_jpeg())]
    assert set(state["predicted"]) == set(chips.value) < set(names)
    assert not many.visible and not frames.visible


def test_chips_correct_the_text(page):
    assert with_chips("", ["car", "road"], ["car", "road"]) is None
    assert with_chips("a street ", ["car", "road"], ["road", "tree"]) == "a street +tree -car"
    state, *_ = asyncio.run(page.look(dropped(page, ("a.png", png())), *options()))
    before = result_of(page, state)
    chosen = ["car", *state["predicted"][1:]]
    state, _, html = asyncio.run(page.recolour(state, chosen, *options()))
    text = with_chips("", state["predicted"], chosen)
    assert f"Text: {text}" in html
    np.testing.assert_array_equal(pixels_of(result_of(page, state)), fake()(ramp(), text=text))
    assert result_of(page, state) != before and len(page.shelf) == 2  # the file and one result


def test_the_span_and_the_palette_are_used(page):
    state = dropped(page, ("a.png", png()))
    state, _, histogram, html, *_ = asyncio.run(page.look(state, *options(span="7200,7300")))
    assert "shown: 7200 to 7300 counts" in histogram
    expected = fake()(ramp(), span=(7200, 7300))
    np.testing.assert_array_equal(pixels_of(result_of(page, state)), expected)
    state, _, _, html, *_ = asyncio.run(page.look(state, *options(palette="ironbow")))
    assert "ironbow" in html  # a note: the palette has no use for a grey picture


def test_notes_and_errors_name_the_fields_of_the_page(page):
    state = dropped(page, ("a.png", false_colour()))
    state, _, _, html, *_ = asyncio.run(page.look(state, *options()))
    assert "type &#34;False colours of the file&#34;: ironbow or export" in html
    state, _, _, html, *_ = asyncio.run(page.look(state, *options(span="400,500")))
    assert "A span that fits: &#34;Values shown&#34;: " in html and "--span" not in html
    assert "<b>Expected:</b> &#34;Values shown&#34;: LOW,HIGH with values" in html


def test_options_in_messages():
    for message, programs, visitors in (
        ("use --span LOW,HIGH", "use span=LOW,HIGH", 'use "Values shown": LOW,HIGH'),
        ("fits: --span=-4.5,225", "fits: span=-4.5,225", 'fits: "Values shown": -4.5,225'),
        ("--span is in counts", "span is in counts", '"Values shown" is in counts'),
        ("try --palette white-hot.", "try palette=white-hot.",
         'try "False colours of the file": white-hot.'),
        ("that fits --raw and --kelvin-per-count", "that fits raw and kelvin_per_count",
         'that fits "Plain numbers" and "Kelvin per count"'),
        ("--raw 640x512,uint16le, say", "raw=640x512,uint16le, say",
         '"Plain numbers": 640x512,uint16le, say'),
        ("add --fps, such as --fps 30", "add fps, such as fps=30",
         'add "Frames a second", such as "Frames a second": 30'),
        ("a larger --max-pixels", "a larger --max-pixels", "a larger --max-pixels"),
    ):  # fmt: skip
        assert (for_programs(message), for_visitors(message)) == (programs, visitors)


@pytest.mark.parametrize(
    ("name", "content", "chosen", "message"),
    [
        ("a.txt", b"hello", options(), "a.txt"),
        ("a.png", png()[:60], options(), "damaged"),
        ("a.png", png(), options(span="9"), "not LOW,HIGH"),
        ("a.png", png(), options(text="+ snow"), "sign"),
        ("<b>.png", b"", options(), "&lt;b&gt;.png"),
    ],
)
def test_errors_are_shown_with_the_visitors_name_of_the_file(page, name, content, chosen, message):
    state, _, _, html, *_ = asyncio.run(page.look(dropped(page, (name, content)), *chosen))
    assert message in html and 'role="alert"' in html and "result" not in state
    assert "cmmfnet-serve-" not in html and "<b>.png" not in html
    for word in ("Found", "Expected", "Instead"):
        assert f"<b>{word}:</b>" in html


def test_several_files_become_one_archive(page):
    files = [("a.png", png()), ("b.txt", b"x"), ("../a.png", png(ramp() + 9)), ("c/a.png", png())]
    state = dropped(page, *files)
    shown = asyncio.run(page.look(state, *options()))
    assert shown[4].visible
    told = []
    state, html = asyncio.run(
        page.colour_all(
            shown[0], *options(form="webp"), progress=lambda at, **more: told.append((at, more))
        )
    )
    with zipfile.ZipFile(io.BytesIO(result_of(page, state))) as archive:
        assert archive.namelist() == ["a-colour.webp", "a-colour-2.webp", "a-colour-3.webp"]
    assert "3 of 4 pictures" in html and "b.txt" in html and len(told) == 4


def test_a_video_is_coloured_with_progress(page, tmp_path):
    words = "GPS 52.5, 13.4"
    made.write(tmp_path / "a.mp4", made.ramps(5), sound="aac", words=words)
    assert words.encode() in (tmp_path / "a.mp4").read_bytes()
    state = dropped(page, ("walk.mp4", (tmp_path / "a.mp4").read_bytes()))
    state, _, _, html, _, frames = asyncio.run(page.look(state, *options()))
    assert frames.visible and "walk.mp4" in html
    told: list = []
    state, html = page.colour_video(
        state,
        state["predicted"],
        0,
        0.5,
        False,
        *options(),
        progress=lambda at, **_: told.append(at),
    )
    assert told == [(i, 5) for i in range(6)] and "<video" in html
    (tmp_path / "b.mp4").write_bytes(result_of(page, state))
    assert made.stamps_of(tmp_path / "b.mp4") == made.stamps_of(tmp_path / "a.mp4")
    assert made.about(tmp_path / "b.mp4")["streams"] == ["video", "audio"]
    assert words.encode() not in (tmp_path / "b.mp4").read_bytes()
    assert page.shelf.get(state["result"]).name == "walk-colour.mp4"
    assert len(list(page.shelf.get(state["result"]).path.parent.iterdir())) == 2


def test_videos_that_end_early_leave_nothing(page, tmp_path):
    made.write(tmp_path / "a.mp4", made.ramps(25))
    state = dropped(page, ("walk.mp4", (tmp_path / "a.mp4").read_bytes()))
    folder = page.shelf.get(state["token"]).path.parent
    arguments = (state, [], 0, 0.5, False, *options())
    _, html = page.colour_video(*arguments, progress=lambda *_, **__: None)
    assert "a video of 25 frames" in html and "at most 20" in html
    state = dropped(page, ("a.seq", b"FFF\0"))
    _, html = page.colour_video(state, *arguments[1:], progress=lambda *_, **__: None)
    assert "a.seq" in html and "cmmfnet-serve-" not in html
    made.write(tmp_path / "b.mp4", made.ramps(6))
    state = dropped(page, ("walk.mp4", (tmp_path / "b.mp4").read_bytes()))

    def stop_at_two(at, **_):
        if at[0] == 2:
            page.stop_video(state)

    _, html = page.colour_video(state, *arguments[1:], progress=stop_at_two)
    assert "stopped" in html
    assert len(list(folder.iterdir())) == len(page.shelf) == 3
    assert page.service.waiting == 0


def test_a_sequence_can_become_a_video(page):
    buffer = io.BytesIO()
    np.save(buffer, np.stack([ramp(), ramp() + 5, ramp() + 10]))
    state = dropped(page, ("walk.npy", buffer.getvalue()))
    state, *_, html, _, frames = asyncio.run(page.look(state, *options()))
    assert frames.visible and "several" not in html
    _, html = page.colour_video(
        state, state["predicted"], 0, 0, False, *options(), progress=lambda *_, **__: None
    )
    assert "--fps" in html or "Frames a second" in html
    state, html = page.colour_video(
        state, state["predicted"], 10, 0, True, *options(), progress=lambda *_, **__: None
    )
    assert "<video" in html


def test_a_sample_needs_no_file(page):
    class Event:
        def __init__(self, data):
            self._data = data

    state, *_, html, _, _ = asyncio.run(page.pick(Event({"sample": "street"}), {}, *options()))
    np.testing.assert_array_equal(pixels_of(result_of(page, state)), fake()(ramp()))
    for data in (None, [], {"token": 3, "files": "x"}, {"token": "../../etc/passwd", "files": [1]}):
        state, *_, html, _, _ = asyncio.run(page.pick(Event(data), {}, *options()))
        assert "appears here" in html or "no such file any more" in html


FULL = "no space left on the server&#39;s disk"


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_told_and_nothing_is_kept(page, tmp_path, monkeypatch):
    video = Path(made.write(tmp_path / "a.mp4", made.ramps(5)))
    state = dropped(page, ("walk.mp4", video.read_bytes()), ("a.png", png()))
    kept = len(page.shelf)
    looked, *_ = asyncio.run(page.look(state, *options()))
    with monkeypatch.context() as patch:
        patch.setattr("cmmfnet.files.atomic._new_part", full)
        _, html = page.colour_video(
            looked, [], None, 0.9, False, *options(), progress=lambda *_, **__: None
        )
        assert FULL in html
        patch.setattr("zipfile.ZipFile.writestr", full)
        _, html = asyncio.run(page.colour_all(looked, *options(), progress=lambda *_, **__: None))
        assert FULL in html
    assert len(page.shelf) == kept  # the result of look was dropped, no other was kept
    with monkeypatch.context() as patch:
        real = Path.open
        patch.setattr(
            Path, "open", lambda path, mode="r": (full if "a" in mode else real)(path, mode)
        )
        shown = asyncio.run(page.look(state, *options()))
    assert FULL in shown[3] and len(page.shelf) == kept
    assert len(list(page.shelf.folder.iterdir())) == kept


def test_a_full_disk_while_a_file_arrives(visit, monkeypatch):
    kind = {"Content-Type": "application/octet-stream"}
    before = len(visit.page.shelf)
    monkeypatch.setattr(Path, "open", full)
    answer = visit(lambda client: client.post("/files", content=png(), headers=kind))
    assert answer.status_code == 507 and len(visit.page.shelf) == before
    assert "TMPDIR" in answer.json()["error"]["instead"]


def test_a_folder_that_a_killed_server_left_is_removed_by_the_next(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import os, signal; from cmmfnet.serve.shelf import Shelf\n"
        "shelf = Shelf(100, 60)\n"
        "print(shelf.put('a', '', b'private').path)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    places = os.pathsep.join([str(Path(cmmfnet.__file__).parents[1]), *sys.path])
    environment = os.environ | {
        "TMPDIR": str(tmp_path),
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": places,
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60
    )
    left = Path(done.stdout.strip())
    assert left.read_bytes() == b"private"
    other = tmp_path / "cmmfnet-serve-of-someone-else"
    other.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    running = Shelf(100, 60)
    kept = running.put("b", "", b"x")
    assert not left.parent.exists() and other.is_symlink()
    second = Shelf(100, 60)
    assert kept.path.read_bytes() == b"x"
    running.close()
    second.close()
    assert list(tmp_path.glob("cmmfnet-serve-*")) == [other]


def test_an_empty_folder_that_a_killed_server_left_is_removed_too(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / "cmmfnet-serve-abc"
    left.mkdir()
    running = Shelf(100, 60)  # empty, too
    assert not left.exists()
    second = Shelf(100, 60)
    assert running.folder.exists() and second.folder != running.folder
    running.close()
    second.close()
    assert not list(tmp_path.iterdir())


def test_a_new_folder_that_another_server_takes_for_one_left_behind(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made, make = [], tempfile.TemporaryDirectory

    def taken(**options):
        folder = make(**options)
        made.append(folder.name)
        if len(made) == 1:
            Path(folder.name).rmdir()
        return folder

    monkeypatch.setattr(tempfile, "TemporaryDirectory", taken)
    shelf = Shelf(100, 60)
    assert len(made) == 2 and str(shelf.folder) == made[1]
    assert shelf.put("a", "", b"x").path.read_bytes() == b"x"
    shelf.close()


def test_the_shelf_forgets():
    shelf = Shelf(100, 0.05)
    first, second = shelf.put("a", "", bytes(60)), shelf.put("b", "", bytes(60))
    assert shelf.get(first.token) is None and not first.path.exists()  # the oldest made room
    assert shelf.get(second.token) is second
    with pytest.raises(Refused):
        shelf.put("c", "", bytes(101))
    assert len(shelf) == 0
    third = shelf.put("d", "", b"x")
    shelf.sweep()
    assert shelf.get(third.token) is third
    import time

    time.sleep(0.06)
    shelf.sweep()
    assert len(shelf) == 0 and not third.path.exists()
    folder = third.path.parent
    assert folder.stat().st_mode & 0o077 == 0
    shelf.close()
    assert not folder.exists()


# --- the application with the page


@pytest.fixture(scope="module")
def visit():
    """A call of it has a conversation with an application that has the page."""
    served = service(body=100_000, video=300_000)
    app = make_app(served)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cmmfnet.serve.blocks.render_samples", lambda: {"street": ramp()})
        page = add_page(app)

    def talk(conversation):
        async def run():
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await conversation(client)

        return asyncio.run(run())

    talk.page = page
    yield talk
    served.close()
    page.shelf.close()


def test_the_page_loads_nothing_from_elsewhere(visit):
    async def conversation(client):
        return await client.get("/"), await client.get("/theme.css")

    html, css = visit(conversation)
    assert html.status_code == css.status_code == 200
    loaded = re.findall(r'(?:src|href)="(https?:)?//([^"]+)', html.text)
    assert loaded == [] and "url(http" not in css.text and "@import" not in css.text
    assert "default-src 'self'" in html.headers["content-security-policy"]
    assert '"analytics_enabled":false' in html.text.replace(" ", "")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/gradio_api/file/etc/passwd"),
        ("GET", "/gradio_api/proxy=http://127.0.0.1/"),
        ("POST", "/gradio_api/upload"),
        ("POST", "/gradio_api/run/predict"),
        ("POST", "/gradio_api/call/predict"),
        ("GET", "/monitoring"),
        ("GET", "/gradio_api/runs"),
        ("POST", "/gradio_api/process_recording"),
        ("GET", "/gradio_api/stream/a/1/2/playlist.m3u8"),
        ("GET", "/login"),
        ("GET", "/docs"),
        ("GET", "/assets/../../../../etc/passwd"),
        ("GET", "/static/%2e%2e/%2e%2e/%2e%2e/etc/passwd"),
        ("GET", "//etc/passwd"),
    ],
)
def test_what_the_page_does_not_need_is_closed(visit, method, path):
    answer = visit(lambda client: client.request(method, path))
    assert answer.status_code in (403, 404) and "root:" not in answer.text


def test_a_wrong_method_or_path_has_an_error_of_ours(visit):
    for method, path, status in (
        ("TRACE", "/healthz", 405), ("POST", "/v1/models", 405), ("GET", "/v1/colorize", 405),
        ("GET", "/v1/none", 404), ("PUT", "/files", 405), ("POST", "/docs", 404),
        ("DELETE", "/", 405), ("PUT", "/config", 405), ("GET", "/assets/none.js", 404),
        ("GET", "/gradio_api/queue/join", 405), ("POST", "/theme.css", 405),
    ):  # fmt: skip
        answer = visit(lambda client, method=method, path=path: client.request(method, path))
        assert answer.status_code == status and answer.json()["error"]["expected"]


def test_files_go_to_the_shelf_and_only_results_come_back(visit):
    kind = {"Content-Type": "application/octet-stream"}

    async def conversation(client):
        sent = await client.post("/files?name=..%2Fa.png", content=png(), headers=kind)
        token = sent.json()["token"]
        kept = visit.page.shelf.get(token)
        answers = [await client.get(f"/files/{token}"), await client.delete(f"/files/{token}")]
        return kept, answers

    kept, (fetched, removed) = visit(conversation)
    assert kept.name == "../a.png" and "a.png" not in str(kept.path)
    assert fetched.status_code == 404 and removed.status_code == 204
    assert not kept.path.exists()
    result = visit.page.shelf.put('"x\n.png', "image/png", png())
    fetched = visit(lambda client: client.get(f"/files/{result.token}"))
    assert fetched.content == png() and fetched.headers["content-type"] == "image/png"
    assert fetched.headers["content-disposition"].startswith("attachment")


def test_files_are_limited_and_never_kept_in_part(visit):
    async def body():
        for _ in range(100):
            yield bytes(10_000)

    kind = {"Content-Type": "application/octet-stream"}
    before = len(visit.page.shelf)
    answer = visit(lambda client: client.post("/files", content=body(), headers=kind))
    assert answer.status_code == 413 and len(visit.page.shelf) == before
    answer = visit(lambda client: client.post("/files", content=png()))
    assert answer.status_code == 415 and len(visit.page.shelf) == before


def test_an_event_with_an_address_in_it_opens_nothing(visit, monkeypatch):
    """The page has no part that takes files, so Gradio has no reason to fetch an address."""
    opened = []
    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_get", opened.append)
    monkeypatch.setattr("gradio.processing_utils.ssrf_protected_download", opened.append)
    file = {"path": "http://example.org/x.png", "meta": {"_type": "gradio.FileData"}}

    async def conversation(client):
        config = (await client.get("/config")).json()
        kinds = {each["type"] for each in config["components"]}
        assert not kinds & {"file", "image", "video", "gallery", "uploadbutton", "imageslider"}
        statuses = []
        for dependency in config["dependencies"]:
            event = {
                "fn_index": dependency["id"], "session_hash": "s", "trigger_id": 1,
                "data": [file] * len(dependency["inputs"]), "event_data": {"token": file},
            }  # fmt: skip
            answer = await client.post("/gradio_api/queue/join", content=json.dumps(event))
            statuses.append(answer.status_code)
        return statuses

    assert visit(conversation) and not opened
