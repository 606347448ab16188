"""`cmmfnet serve` as a process, and its options."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest
from serve_app import pixels_of, png, ramp, server, service

from cmmfnet import Colorizer
from cmmfnet.cli import main
from cmmfnet.files.errors import UserError
from cmmfnet.serve.limits import Limits
from cmmfnet.serve.serve import listen, read_token, run
from cmmfnet.serve.shelf import Shelf

pytest.importorskip("fastapi", reason="needs cmmfnet[serve]")
pytest.importorskip("uvicorn", reason="needs cmmfnet[serve]")
pytest.importorskip("prometheus_client", reason="needs cmmfnet[serve]")

from cmmfnet.serve.api import make_app


def send(address: str) -> tuple[int, bytes]:
    request = urllib.request.Request(f"{address}/v1/colorize", data=png(ramp(240, 320)))
    request.add_header("Content-Type", "application/octet-stream")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.status, answer.read()


def waiting(address: str) -> int:
    with urllib.request.urlopen(f"{address}/healthz", timeout=10) as answer:
        return int(re.search(rb'"waiting":(\d+)', answer.read())[1])


def test_sigterm_finishes_what_was_accepted():
    with server() as (process, address):
        check_stop(process, address)


def check_stop(process: subprocess.Popen, address: str) -> None:
    send(address)
    answers: list[int] = []
    clients = [threading.Thread(target=lambda: answers.append(send(address)[0])) for _ in range(6)]
    for client in clients:
        client.start()
    deadline = time.monotonic() + 30
    # in this order, so that one that is answered between is not counted twice
    while len(answers) + waiting(address) < 6 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    for client in clients:
        client.join(timeout=60)
    assert answers == [200] * 6
    assert process.wait(timeout=30) == 0
    with pytest.raises(OSError):
        send(address)


@pytest.fixture
def application():
    served = service()
    app = make_app(served)
    app.state.page = SimpleNamespace(stop=lambda: None)
    yield app
    served.close()


REQUEST = b"POST /v1/colorize HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b"


def receive(client: socket.socket) -> bytes:
    """An answer; the connection stays open."""
    client.settimeout(30)
    file = client.makefile("rb")
    head = b"".join(iter(file.readline, b"\r\n"))
    length = re.search(rb"content-length: (\d+)", head)
    assert head.startswith(b"HTTP/1.1 200 OK"), head
    return file.read(int(length[1]))


def test_what_was_sent_before_sigterm_is_answered_although_nobody_has_read_it(application):
    """Requests in the queue of the listening socket, and on a connection that was idle."""
    request = REQUEST % (len(png()), png())
    clients = []

    async def stop_while_requests_come(address):
        kept = await asyncio.to_thread(socket.create_connection, address)
        kept.sendall(request)
        await asyncio.to_thread(receive, kept)
        # from here on the loop does not run until it finds connections, bytes and signal at once
        clients.extend([kept, *(socket.create_connection(address) for _ in range(3))])
        for client in clients:
            client.sendall(request)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)

    with listen("127.0.0.1", 0) as listening:
        tasks = []
        address = listening.getsockname()
        run(
            application, listening, Limits(),
            lambda: tasks.append(asyncio.create_task(stop_while_requests_come(address))),
        )  # fmt: skip
        tasks[0].result()
    for client in clients:
        assert pixels_of(receive(client)).shape == (24, 32, 3)
        assert client.recv(1) == b""
        client.close()


def test_a_signal_that_comes_while_the_server_starts_ends_it(application, monkeypatch):
    import uvicorn

    startup = uvicorn.Server.startup

    async def slow(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        await startup(*arguments, **options)

    monkeypatch.setattr(uvicorn.Server, "startup", slow)
    monkeypatch.setattr(uvicorn.Server, "capture_signals", lambda _: contextlib.nullcontext())
    with listen("127.0.0.1", 0) as listening:
        run(application, listening, Limits(), lambda: None)


@pytest.mark.slow
def test_after_kill_9_the_next_server_starts_and_nothing_is_left(tmp_path, monkeypatch):
    """Three kills; benchmarks/serve_kill.py does it many times, with a video."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    expected = Colorizer.from_pretrained("cmmfnet-small", device="cpu")(png(ramp(240, 320)))
    cut = 0
    for moment in (0.1, 0.5, 1.0):
        with server() as (process, address):
            assert len(list(tmp_path.iterdir())) == 1  # of this server
            answers: list = []

            def client(address=address, answers=answers):
                while answers[-1:] != ["cut"]:
                    try:
                        answers.append(send(address))
                    except (OSError, http.client.HTTPException):
                        answers.append("cut")

            clients = [threading.Thread(target=client) for _ in range(3)]
            for each in clients:
                each.start()
            time.sleep(moment)
            process.kill()
            for each in clients:
                each.join(timeout=60)
            whole = [each for each in answers if each != "cut"]
            for status, content in whole:
                assert status == 200
                np.testing.assert_array_equal(pixels_of(content), expected)
            cut += len(answers) - len(whole)
    assert cut == 9
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    Shelf(100, 60).close()  # as the next server would begin and end
    assert not list(tmp_path.iterdir())


def test_options_that_make_no_sense(tmp_path, capsys):
    (tmp_path / "short").write_text("abc\n")
    (tmp_path / "two").write_text("0123456789 0123456789\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for options, message in (
            (["--port", str(port)], "choose another --port"),
            (["--port", "70000"], "expected 0 to 65535"),
            (["--host", "no.such.host.invalid"], "a --host of this machine"),
            (["--queue", "0"], "--queue is 0"),
            (["--timeout", "0.5"], "--timeout is 0.5"),
            (["--token-file", str(tmp_path / "none")], "cannot be read"),
            (["--token-file", str(tmp_path / "short")], "holds 3 characters"),
            (["--token-file", str(tmp_path / "two")], "expected one token"),
            (["--port", "0", "--model", "cmmfnet-smal"], "did you mean 'cmmfnet-small'"),
            (["--port", "0", "--model", ","], "--model names none"),
            (["--port", "0", "--model", "cmmfnet-small,cmmfnet-small", "--device", "xyz"], "xyz"),
        ):
            assert main(["serve", *options]) == 2
            assert message in capsys.readouterr().err


def test_a_token_is_read_without_white_space(tmp_path):
    (tmp_path / "token").write_text("  0123456789abcdef\n")
    assert read_token(str(tmp_path / "token")) == "0123456789abcdef"


def test_the_server_listens_on_this_machine_only_by_default():
    import inspect

    from cmmfnet.serve.serve import serve

    assert inspect.signature(serve).parameters["host"].default == "127.0.0.1"
    with listen("127.0.0.1", 0) as one, pytest.raises(UserError):
        listen("127.0.0.1", one.getsockname()[1])


def test_help_loads_no_server():
    code = (
        "import sys; from cmmfnet.cli import main\n"
        "try: main(['serve', '--help'])\n"
        "except SystemExit: pass\n"
        "print(*{'fastapi', 'gradio', 'uvicorn', 'torch'} & set(sys.modules), 'end')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stdout.splitlines()[-1] == " end".strip() and "--token-file" in run.stdout
