"""`cmmfnet serve` as a process, and its options."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
from serve_app import png, ramp, server

from cmmfnet.cli import main
from cmmfnet.files.errors import UserError
from cmmfnet.serve.serve import listen, read_token

pytest.importorskip("fastapi", reason="needs cmmfnet[serve]")
pytest.importorskip("uvicorn", reason="needs cmmfnet[serve]")
pytest.importorskip("prometheus_client", reason="needs cmmfnet[serve]")


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
    while waiting(address) + len(answers) < 6 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    for client in clients:
        client.join(timeout=60)
    assert answers == [200] * 6
    assert process.wait(timeout=30) == 0
    with pytest.raises(OSError):
        send(address)


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
