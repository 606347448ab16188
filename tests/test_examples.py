"""The examples run: the notebook, the camera loop, and the clients of a server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import video_files as made
from PIL import Image
from serve_app import png, ramp, server

from cmmfnet import Colorizer

EXAMPLES = Path(__file__).parent.parent / "examples"
WITH_PATH = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def test_the_notebook_runs_from_its_first_cell_to_its_last(capsys):
    notebook = json.loads((EXAMPLES / "first_steps.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    assert len(cells) >= 6
    assert all(not c.get("outputs") for c in notebook["cells"]), "clear the outputs"
    names: dict = {}
    for cell in cells:
        exec(compile(cell, "first_steps.ipynb", "exec"), names)
    assert names["colour"].shape == (256, 320, 3)
    assert np.abs(names["red"].astype(int) - names["colour"]).mean() > 1
    assert np.abs(names["snow"].astype(int) - names["colour"]).mean() > 1
    assert "car" in capsys.readouterr().out


def test_the_camera_loop_colours_a_video(tmp_path):
    pytest.importorskip("cv2", reason="needs OpenCV")
    made.write(tmp_path / "a.avi", made.ramps(4), codec="ffv1", pix_fmt="gray")
    run = subprocess.run(
        [sys.executable, EXAMPLES / "camera_loop.py", "a.avi"],
        capture_output=True, text=True, cwd=tmp_path, env=WITH_PATH, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "frames in colour" in run.stdout and not run.stdout.startswith("0 ")
    with Image.open(tmp_path / "latest.jpg") as picture:
        assert picture.size == (64, 48)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.avi", "latest.jpg"]


def test_the_clients_of_a_server(tmp_path):
    pytest.importorskip("gradio", reason="needs cmmfnet[serve]")
    (tmp_path / "token").write_text(token := "0123456789abcdef")
    (tmp_path / "frame.png").write_bytes(png(ramp(48, 64)))
    night = Colorizer.from_pretrained("cmmfnet", device="cpu")(
        ramp(48, 64), text="a street at night"
    )
    with server("--token-file", str(tmp_path / "token"), model="cmmfnet") as (_, address):
        command = [sys.executable, EXAMPLES / "rest_client.py", "frame.png", "colour.png"]
        command += ["--server", address, "--text", "a street at night"]
        run = subprocess.run(
            [*command, "--token", token], capture_output=True, text=True, cwd=tmp_path, timeout=120
        )
        assert run.returncode == 0, run.stderr
        with Image.open(tmp_path / "colour.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), night)
        run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
        assert run.returncode == 1 and "no token" in run.stderr
        if shutil.which("curl") is None:
            pytest.skip("needs curl")
        run = subprocess.run(
            ["sh", EXAMPLES / "rest_client.sh", "frame.png", "curl.png"],
            capture_output=True, text=True, cwd=tmp_path, timeout=120,
            env=os.environ | {"SERVER": address, "TOKEN": token},
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        assert len(json.loads(run.stdout)["tags"]) == 5
        with Image.open(tmp_path / "curl.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), night)


def test_the_node_of_ros_is_short_and_says_that_it_is_not_tested():
    text = (EXAMPLES / "ros2_node.py").read_text(encoding="utf-8")
    compile(text, "ros2_node.py", "exec")
    assert "NOT TESTED" in text and len(text.splitlines()) <= 45
