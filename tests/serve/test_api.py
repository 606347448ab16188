"""The HTTP interface: pictures in, colours out, and what it refuses."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import threading

import numpy as np
import pytest
import tifffile
from fake_network import FakeWithHeads
from PIL import Image
from serve_app import fake, false_colour, opened, pixels_of, png, post, ramp, service, talk

pytest.importorskip("fastapi", reason="needs cmmfnet[serve]")
pytest.importorskip("prometheus_client", reason="needs cmmfnet[serve]")
httpx = pytest.importorskip("httpx", reason="needs httpx")

import camera_files  # noqa: E402

from cmmfnet import Colorizer  # noqa: E402

TOKEN = "0123456789abcdef0123"


def error_of(answer) -> dict:
    """The three parts of an error, which every error has."""
    error = answer.json()["error"]
    assert error["status"] == answer.status_code
    assert all(error[part] for part in ("found", "expected", "instead"))
    return error


# --- pictures


def test_a_picture_comes_back_in_colour_as_the_colorizer_gives_it():
    answer = post("/v1/colorize", content=png())
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert answer.headers["x-model"] == "fake" and json.loads(answer.headers["x-notes"]) == []
    np.testing.assert_array_equal(pixels_of(answer.content), fake()(ramp()))


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_formats(form):
    answer = post(f"/v1/colorize?format={form}", content=png())
    assert answer.headers["content-type"] == f"image/{form}"
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert picture.format == form.upper() and picture.size == (32, 24)


def test_a_form_does_the_same_as_raw_bytes():
    options = {"text": "a car", "span": "7200,7800"}
    raw = post("/v1/colorize", params=options, content=png())
    form = post("/v1/colorize", data=options, files={"picture": ("x.png", png())})
    assert raw.status_code == form.status_code == 200 and raw.content == form.content
    expected = fake()(ramp(), text="a car", span=(7200, 7800))
    np.testing.assert_array_equal(pixels_of(raw.content), expected)


def tiff() -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, ramp())
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, ramp())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "options"),
    [
        (tiff(), {}),
        (npy(), {}),
        (camera_files.flir_jpeg(), {"span": "0,40"}),
        (ramp().tobytes(), {"raw": "32x24,uint16le"}),
        (ramp().tobytes(), {"raw": "32x24,uint16le", "kelvin_per_count": "0.04"}),
    ],
    ids=["TIFF", "NumPy", "R-JPEG", "raw", "kelvin"],
)
def test_files_of_cameras(content, options):
    answer = post("/v1/colorize", content=content, params=options)
    assert answer.status_code == 200, answer.text
    assert pixels_of(answer.content).shape == (24, 32, 3)


def test_the_answer_has_no_place_and_no_serial_number_of_the_input():
    exif = Image.Exif()
    exif[0x010F], exif[0xA431] = "ACME", "SERIAL-4711"
    exif.get_ifd(0x8825)[1] = "N"
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 12.0)
    buffer = io.BytesIO()
    Image.fromarray((ramp() // 40).astype(np.uint8)).save(buffer, "JPEG", exif=exif)
    assert b"SERIAL-4711" in buffer.getvalue()
    for form in ("png", "jpeg", "webp"):
        answer = post(f"/v1/colorize?format={form}", content=buffer.getvalue())
        with Image.open(io.BytesIO(answer.content)) as picture:
            assert not picture.getexif().get_ifd(0x8825)
        assert b"4711" not in answer.content and b"ACME" not in answer.content


def test_warnings_about_picture_and_text_come_as_notes():
    colours = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    answer = post("/v1/colorize?text=a+flibber", content=png(colours))
    notes = json.loads(answer.headers["x-notes"])
    assert any("flibber" in note for note in notes) and len(notes) == 2
    again = talk(lambda c: _twice(c, "/v1/colorize?text=a+flibber"))
    assert [json.loads(each.headers["x-notes"]) for each in again] == [[notes[1]]] * 2


@pytest.mark.parametrize(
    ("words", "text", "told"),
    [(("day", "dusk", "night"), "", True), (("night", "dusk", "day"), "", False),
     (("day", "dusk", "night"), "night", False), (("car", "road", "night"), "", False)],
)  # fmt: skip
def test_a_frame_that_looks_like_night_gets_a_note(words, text, told):
    """The likelier word is the later one in Fake's list."""
    served = service(Colorizer(FakeWithHeads(words=words), device="cpu", name="fake"))
    path = "/v1/colorize" + (f"?text={text}" if text else "")
    answer = talk(lambda client: client.post(path, content=png()), served)
    note = (
        "the picture looks like night, and without text is coloured as by day or at dusk: try the "
        "text night"
    )
    assert json.loads(answer.headers["x-notes"]) == ([note] if told else [])


async def _twice(client, path):
    return [await client.post(path, content=png()) for _ in range(2)]


def test_tags():
    answer = post("/v1/tags?top=2", content=png()).json()
    assert (answer["width"], answer["height"], answer["unit"]) == (32, 24, "counts")
    expected = fake().tags(ramp(), 2)
    assert [(tag["name"], tag["probability"]) for tag in answer["tags"]] == expected


def test_models_health_metrics_and_description():
    async def conversation(client):
        await client.post("/v1/colorize", content=png())
        paths = ("/v1/models", "/healthz", "/metrics", "/openapi.json")
        return [await client.get(path) for path in paths]

    models, health, metrics, described = talk(conversation)
    assert models.json()["models"][0] | {"words": []} == {
        "name": "fake", "default": True, "takes_text": True, "takes_colours": False,
        "predicts_tags": True, "words": [],
    }  # fmt: skip
    assert health.json()["status"] == "ok" and health.json()["waiting"] == 0
    assert 'cmmfnet_requests_total{route="/v1/colorize",status="200"} 1.0' in metrics.text
    paths = described.json()["paths"]
    assert set(paths) == {"/v1/colorize", "/v1/tags", "/v1/models", "/healthz", "/metrics"}
    parameters = paths["/v1/colorize"]["post"]["parameters"]
    assert {p["name"] for p in parameters} >= {"text", "span", "palette", "model", "format"}
    examples = [p["schema"].get("examples") for p in parameters]
    assert sum(bool(e) for e in examples) >= 5


def test_a_model_is_chosen_by_name_and_never_by_path(tmp_path):
    other = fake()
    other.name = "other"
    for name, status in (("other", 200), ("cmmfnet", 422), (str(tmp_path), 422)):
        answer = post("/v1/colorize", service(fake(), other), params={"model": name}, content=png())
        assert answer.status_code == status
        if status == 422:
            assert error_of(answer)["expected"] == "one of fake, other"


# --- refusals


def test_an_option_that_does_not_fit_is_named_and_not_the_file():
    for query, found, expected, instead in (
        ("span=1,2", "A span that fits: span=", "span=LOW,HIGH", "leave span out"),
        ("raw=9x9,uint8", "frames of 9 x 9", "that fits raw", "check raw"),
        ("kelvin_per_count=nan", "nan kelvin", "that fits kelvin_per_count", "check kelvin"),
    ):
        error = error_of(post(f"/v1/colorize?{query}", content=png()))
        assert found in error["found"] and expected in error["expected"], error
        assert instead in error["instead"], error


def test_notes_name_options_as_programs_send_them():
    answer = post("/v1/colorize?text=zork", content=false_colour())
    false, unknown = json.loads(answer.headers["X-Notes"])
    assert "type palette=ironbow or export" in false and "--" not in false
    assert "'zork'" in unknown


@pytest.mark.parametrize(
    ("path", "content", "status", "found"),
    [
        ("/v1/colorize", b"", 422, "empty body"),
        ("/v1/colorize", b"hello", 422, "text"),
        ("/v1/colorize", b"\0\0\0\x18ftypmp42", 422, "a video"),
        ("/v1/colorize", png()[:60], 422, "damaged"),
        ("/v1/colorize?span=9", png(), 422, "span '9'"),
        ("/v1/colorize?span=1,2", png(), 422, "the span 1,2"),
        ("/v1/colorize?palette=plaid", png(), 422, "palette='plaid'"),
        ("/v1/colorize?raw=3x3,uint8", png(), 422, "bytes are"),
        ("/v1/colorize?text=%2B+snow", png(), 422, "sign"),
        ("/v1/colorize?format=gif", png(), 422, "format='gif'"),
        ("/v1/colorize?colour=red", png(), 422, "the option 'colour'"),
        ("/v1/colorize?text=a&text=b", png(), 422, "'text' twice"),
        ("/v1/tags?top=0", png(), 422, "top='0'"),
        ("/v1/nothing", png(), 404, "POST /v1/nothing"),
        ("/healthz", png(), 405, "POST /healthz"),
    ],
)
def test_errors_say_what_was_found_expected_and_what_to_do(path, content, status, found):
    answer = post(path, content=content)
    assert answer.status_code == status, answer.text
    assert found in error_of(answer)["found"]


def test_a_damaged_form_and_one_without_a_file():
    answer = post("/v1/colorize", data={"text": "x"}, files={"picture": b""})
    assert answer.status_code == 422 and "file" in error_of(answer)["found"]
    answer = post("/v1/colorize", content=b"x", headers={"Content-Type": "multipart/form-data"})
    assert answer.status_code == 400 and error_of(answer)
    answer = post("/v1/colorize", data={"colour": "red"}, files={"picture": png()})
    assert answer.status_code == 422 and "colour" in error_of(answer)["found"]
    assert "text" in error_of(answer)["expected"] and "top" not in error_of(answer)["expected"]
    answer = post("/v1/colorize?text=a", data={"text": "b"}, files={"picture": png()})
    assert answer.status_code == 422 and "'text' twice" in error_of(answer)["found"]


def test_a_picture_of_many_pixels_is_refused_before_it_is_decoded():
    answer = post("/v1/colorize", service(pixels=32 * 24 - 1), content=png())
    assert answer.status_code == 413 and "pixels" in error_of(answer)["found"]


def test_ten_gigabytes_are_refused_unread():
    sent = 0

    async def body():
        nonlocal sent
        while sent < 10_000_000_000:
            sent += 100_000
            yield bytes(100_000)
            await asyncio.sleep(0.001)

    claimed = {"Content-Length": "10000000000"}
    answer = post("/v1/colorize", service(body=1_000_000), content=body(), headers=claimed)
    assert answer.status_code == 413 and sent == 0 and error_of(answer)
    answer = post("/v1/colorize", service(body=1_000_000), content=body())
    assert answer.status_code == 413 and sent < 1_000_000_000 and error_of(answer)
    for length in ("-1", "1e3", "٣"):
        head = {"Content-Length": length.encode()}
        answer = post("/v1/colorize", service(), content=b"", headers=head)
        assert answer.status_code == 413


@pytest.mark.parametrize("status", [401, 404, 422, 429])
def test_an_early_answer_waits_for_the_body(status):
    """A connection that is closed with bytes unread loses the answer."""
    from cmmfnet.serve.api import make_app

    served = service(waiting=0 if status == 429 else 1)
    app = make_app(served, token=TOKEN if status == 401 else None)
    path = "/v1/none" if status == 404 else "/v1/colorize"
    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "headers": [],
        "query_string": b"top=x" if status == 422 else b"", "http_version": "1.1",
        "scheme": "http", "server": ("test", 80), "root_path": "",
    }  # fmt: skip
    scope["headers"] = [(b"transfer-encoding", b"chunked")]
    happened: list = []

    async def receive():
        chunk = happened.count("read") < 4
        happened.append("read")
        return {"type": "http.request", "body": b"x" * 1000, "more_body": chunk}

    async def send(message):
        kind = message["type"].rpartition(".")[2]
        happened.append(message["status"] if kind == "start" else message.get("more_body", False))

    asyncio.run(app(scope, receive, send))
    served.close()
    assert happened == [status, True, *["read"] * 5, False]


def test_a_form_is_refused_by_count_too():
    files = {"picture": ("x.png", bytes(2_000_000))}
    answer = post("/v1/colorize", service(body=1_000_000), files=files)
    assert answer.status_code == 413 and error_of(answer)


def test_a_token_is_asked_for():
    async def conversation(client):
        get = client.get
        return [
            await get("/v1/models"),
            await get("/v1/models", headers={"Authorization": "Bearer wrong"}),
            await get("/v1/models", headers={"Authorization": f"Bearer {TOKEN}"}),
            await get("/v1/models", auth=("anyone", TOKEN)),
            await get("/v1/models", headers={"Authorization": "Basic !!"}),
            await get("/healthz"),
        ]

    answers = talk(conversation, token=TOKEN)
    assert [each.status_code for each in answers] == [401, 401, 200, 200, 401, 200]
    assert error_of(answers[0]) and "Basic" in answers[0].headers["www-authenticate"]


def test_a_full_queue_answers_429_and_forgets_nobody():
    served = service(fake(delay=0.05), waiting=3)

    async def conversation(client):
        return await asyncio.gather(
            *(client.post("/v1/colorize", content=png()) for _ in range(12))
        )

    answers = talk(conversation, served)
    statuses = [each.status_code for each in answers]
    assert sorted(statuses) == [200] * 3 + [429] * 9
    late = next(each for each in answers if each.status_code == 429)
    assert int(late.headers["retry-after"]) >= 1 and error_of(late)
    assert served.waiting == 0


def test_requests_that_wait_together_are_coloured_together():
    colorizer = fake(delay=0.2)
    pictures = [png(ramp() + i * np.arange(32, dtype=np.uint16)) for i in range(5)]
    texts = ["", "car", "road", "tree", "-car"]

    async def conversation(client):
        return await asyncio.gather(
            *(
                client.post("/v1/colorize", content=content, params={"text": text})
                for content, text in zip(pictures, texts, strict=True)
            )
        )

    answers = talk(conversation, service(colorizer))
    # the first alone, since it found an idle engine, the others in few passes
    assert sum(size[0] for size in colorizer.network.seen) == 5
    assert max(size[0] for size in colorizer.network.seen) > 1
    for answer, content, text in zip(answers, pictures, texts, strict=True):
        expected = fake()(content, text=text)
        np.testing.assert_array_equal(pixels_of(answer.content), expected)


def test_a_fault_of_one_request_leaves_the_others_of_its_batch(monkeypatch):
    colorizer = fake(delay=0.1)
    run = colorizer.run

    def stumbling(frames, texts, **options):
        if "car" in texts:
            raise RuntimeError("boom")
        return run(frames, texts, **options)

    monkeypatch.setattr(colorizer, "run", stumbling)

    async def conversation(client):
        texts = ["road", "car", "tree", "road"]
        return await asyncio.gather(
            *(client.post("/v1/colorize", content=png(), params={"text": t}) for t in texts)
        )

    statuses = [each.status_code for each in talk(conversation, service(colorizer))]
    assert statuses == [200, 500, 200, 200]


def test_a_request_that_takes_too_long_is_given_up():
    answer = post("/v1/colorize", service(fake(delay=1), seconds=0.2), content=png())
    assert answer.status_code == 503 and "0.2 s" in error_of(answer)["found"]

    async def slowly():
        yield png()[:10]
        await asyncio.sleep(5)

    answer = post("/v1/colorize", service(seconds=0.2), content=slowly())
    assert answer.status_code == 408 and error_of(answer)


def test_a_network_that_gives_nan_is_a_fault_with_a_message(monkeypatch):
    colorizer = fake()
    with_nan = colorizer.network.table.data
    with_nan[:] = float("nan")
    answer = post("/v1/colorize", service(colorizer), content=png(), params={"text": "car"})
    assert answer.status_code == 500 and "NaN" in error_of(answer)["found"]


def test_threads_do_not_get_each_others_warnings():
    import warnings

    from cmmfnet.serve.notes import collected, warnings_by_thread

    found: dict[int, list[str]] = {}
    barrier = threading.Barrier(4)

    def work(i: int) -> None:
        with collected() as notes:
            for _ in range(20):
                barrier.wait()
                warnings.warn(f"of {i}", stacklevel=1)
        found[i] = notes

    with warnings_by_thread():
        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {i: [f"of {i}"] for i in range(4)}


def test_nothing_is_written_to_disk(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    async def conversation(client):
        await client.post("/v1/colorize", files={"picture": png()})
        assert (await client.post("/v1/colorize", content=png())).status_code == 200

    talk(conversation)
    assert list(tmp_path.iterdir()) == []


def test_a_closed_app_runs_again():
    served = service()

    async def twice():
        async with opened(served) as client:
            return (await client.get("/healthz")).status_code

    assert [asyncio.run(twice()) for _ in range(2)] == [200, 200]
    served.close()


def test_a_full_disk_while_a_large_form_is_read(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", full)
    answer = post("/v1/colorize", files={"picture": bytes(2_000_000)})
    assert answer.status_code == 507
    assert answer.json()["error"]["found"] == "no space left on the server's disk"
