"""How steady colours are: flicker where the thermal frame stands still, error along its motion."""

from __future__ import annotations

import json

import numpy as np
import pytest
import video_files as made
from PIL import Image

from cmmfnet.cli import main
from cmmfnet.evaluation.temporal import STILL, ThermalStep, still_flicker, warping_error

cv2 = pytest.importorskip("cv2", reason="motion needs OpenCV: pip install 'cmmfnet[video]'")


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W) float32 in [-1, 1]."""
    noise = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), 4)
    return blurred / np.abs(blurred).max()


def coloured(thermal: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8, three colours of each thermal value."""
    levels = np.stack([thermal, -thermal, thermal / 2], axis=2) * 60 + 128
    return np.rint(levels).astype(np.uint8)


def test_flicker_counts_the_still_pixels_alone():
    before = texture(40, 60)
    thermal = before.copy()
    thermal[:, 30:] += (STILL + 1) / 127.5
    thermal[:, :30] += (STILL - 0.5) / 127.5
    x = np.full((40, 60, 3), 100, np.uint8)
    changed = x.copy()
    changed[:, :30, 0] += 9  # a third of 9 levels, over channels
    changed[:, 30:] += 100
    assert still_flicker(changed, x, ThermalStep(thermal, before)) == pytest.approx(3)
    assert still_flicker(x, changed, ThermalStep(thermal, before)) == pytest.approx(3)
    assert still_flicker(changed, x, ThermalStep(before + 1, before)) is None


def test_warping_error_follows_the_motion():
    wide = texture(90, 160)
    before, now = wide[:, 8:148].copy(), wide[:, 5:145].copy()  # things move 3 to the right
    step = ThermalStep(now, before)
    moved = warping_error(coloured(now), coloured(before), step)
    left_behind = warping_error(coloured(before), coloured(before), step)
    assert moved < 1e-4 and moved < left_behind / 10
    lighter = coloured(now) + np.uint8(12)
    assert warping_error(lighter, coloured(before), step) == pytest.approx((12 / 255) ** 2, rel=0.1)
    assert step.visible.mean() > 0.8 and not step.visible[:, 0].any()


def test_what_a_thing_hides_does_not_count():
    ground = 0.2 * texture(90, 140)
    before, now = ground.copy(), ground.copy()
    before[20:70, 40:80] = 0.7 + 0.3 * texture(50, 40, 3)
    now[20:70, 46:86] = 0.7 + 0.3 * texture(50, 40, 3)
    step = ThermalStep(now, before)
    uncovered = step.visible[25:65, 40:45]
    assert uncovered.mean() < 0.2 and step.visible[:, 100:].mean() > 0.8


def clip(tmp_path, flicker: int):
    """thermal.mkv, colours.mkv and truth.mkv of eight frames in two scenes."""
    scenes = [texture(64, 96)] * 4 + [texture(64, 96, 5)] * 4
    thermals = [np.rint(scene * 100 + 128).astype(np.uint8) for scene in scenes]
    steady = [coloured(scene) for scene in scenes]
    colours = [each + np.uint8(flicker * (i % 2)) for i, each in enumerate(steady)]
    made.write(tmp_path / "thermal.mkv", thermals, codec="ffv1", pix_fmt="gray")
    made.write(tmp_path / "colours.mkv", colours, codec="ffv1", pix_fmt="bgr0")
    made.write(tmp_path / "truth.mkv", steady, codec="ffv1", pix_fmt="bgr0")
    for name, frames in (("thermal", thermals), ("colours", colours)):
        (tmp_path / name).mkdir()
        for index, frame in enumerate(frames):
            Image.fromarray(frame).save(tmp_path / name / f"{index}.png")


def evaluate(*arguments: object) -> int:
    return main(["evaluate", *map(str, arguments), "--device", "cpu"])


def test_a_video_and_its_frames_score_alike_and_no_cut_counts(tmp_path, capsys):
    clip(tmp_path, 6)
    results = []
    for kind in (".mkv", ""):
        arguments = (tmp_path / f"colours{kind}", "--thermal", tmp_path / f"thermal{kind}")
        assert evaluate(*arguments, "--json", tmp_path / "r.json") == 0
        results.append(json.loads((tmp_path / "r.json").read_text()))
    for result in results:
        assert result["frames"] == 8 and result["scenes"] == 2
        scores = result["scores"]["colours"]
        assert scores["still_flicker"] == pytest.approx(6)
        assert scores["warping_error"] == pytest.approx((6 / 255) ** 2, rel=1e-3)
        rows = result["rows"]["colours"]
        assert ["still_flicker" in row for row in rows] == [i not in (0, 4) for i in range(8)]
    assert "still flicker" in capsys.readouterr().out


def test_with_truth(tmp_path):
    clip(tmp_path, 6)
    arguments = (tmp_path / "colours.mkv", "--thermal", tmp_path / "thermal.mkv")
    more = ("--truth", tmp_path / "truth.mkv", "--metrics", "psnr,still_flicker,flicker")
    assert evaluate(*arguments, *more, "--json", tmp_path / "r.json") == 0
    scores = json.loads((tmp_path / "r.json").read_text())["scores"]
    assert scores["truth"]["still_flicker"] == 0 and scores["truth"]["psnr"] == "inf"
    assert scores["colours"]["flicker"] == pytest.approx(6)


def test_what_cannot_be_scored_is_refused(tmp_path, capsys):
    clip(tmp_path, 0)
    colours, thermal = tmp_path / "colours.mkv", tmp_path / "thermal.mkv"
    (tmp_path / "colours/7.png").unlink()
    made.write(tmp_path / "small.mkv", made.ramps(8), codec="ffv1", pix_fmt="gray")
    wide = [np.hstack([frame, frame]) for frame in made.pictures_of(colours)]
    made.write(tmp_path / "wide.mkv", wide, codec="ffv1", pix_fmt="bgr0")
    for arguments, message in (
        ((tmp_path / "colours", "--thermal", thermal), "colours ends after 7 frames"),
        ((tmp_path / "small.mkv", "--thermal", thermal), "64 x 48 pixels"),
        ((tmp_path / "wide.mkv", "--thermal", thermal), "without --side-by-side"),
        ((colours, "--thermal", thermal, "--metrics", "psnr"), "add --truth"),
        ((colours, "--thermal", thermal, "--metrics", "flicks"), "unknown metric flicks"),
        ((colours, "--thermal", thermal, "--data", tmp_path), "leave one out"),
        ((colours, "--truth", thermal), "--thermal"),
        (("cmmfnet", "--thermal", thermal), "no video or folder"),
        ((colours, "--thermal", tmp_path / "none.mkv"), "none.mkv"),
    ):
        assert evaluate(*arguments) in (1, 2), arguments
        assert message in " ".join(capsys.readouterr().err.split()), arguments


def test_metrics_without_a_value_are_named(tmp_path, capsys):
    clip(tmp_path, 0)
    colours, thermal = (tmp_path / f"{name}.mkv" for name in ("colours", "thermal"))
    for video in (colours, thermal):  # one frame
        first = made.pictures_of(video)[:1, ..., 0]
        made.write(video, list(first), codec="ffv1", pix_fmt="gray")
    assert evaluate(colours, "--thermal", thermal) == 0
    out = capsys.readouterr().out
    assert "no still flicker: it needs two frames" in out and "no warping error" in out
