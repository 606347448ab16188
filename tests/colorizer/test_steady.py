"""Colours of a video, steady over time: flicker, moving things, a panning camera, cuts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import video_files as made
from fake_network import Fake, colorize

pytest.importorskip("cv2", reason="smoothing needs OpenCV: pip install 'cmmfnet[video]'")

from cmmfnet import Colorizer
from cmmfnet.colorizer.steady import SteadyFrames
from cmmfnet.thermal.frame import read_thermal
from cmmfnet.thermal.motion import motion

pytestmark = pytest.mark.usefixtures("fake_method")


@pytest.fixture(scope="module")
def colorizer():
    return Colorizer(Fake(working_size=120), device="cpu")


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W) float32 in [-1, 1], smooth and without repetition."""
    import cv2

    noise = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), 4)
    return blurred / np.abs(blurred).max()


def pictures(
    colorizer: Colorizer, thermals: list[np.ndarray], colours: list[np.ndarray], smooth: float
) -> np.ndarray:
    """(N, H, W, 3) int16, as a video shows ``colours`` (3, H, W) of ``thermals`` (H, W)."""
    steady = SteadyFrames(colorizer, smooth, (-1, 1))
    found = []
    for thermal, colour in zip(thermals, colours, strict=True):
        ready = steady.prepare(read_thermal(thermal))
        found.append(steady.finish(colour.astype(np.float32), ready))
    return np.stack(found).astype(np.int16)


def flickering(count: int, shape: tuple[int, ...]) -> np.ndarray:
    """(N, 3, H, W): colours that shift by some 5 levels from frame to frame."""
    shifts = np.random.default_rng(1).normal(0, 0.03, (count, 3, 1, 1)).astype(np.float32)
    return np.broadcast_to(shifts, (count, *shape))


def test_flicker_falls_and_zero_changes_nothing(colorizer):
    still = texture(96, 120)
    colours = 0.3 * still + flickering(20, (3, 96, 120))
    alone = pictures(colorizer, [still] * 20, colours, 0)
    for smooth, most in ((0.5, 0.7), (0.9, 0.3), (1, 0.2)):
        shown = pictures(colorizer, [still] * 20, colours, smooth)
        change, before = (np.abs(np.diff(x, axis=0)).mean() for x in (shown, alone))
        assert change < most * before, smooth
    for colour, picture in zip(colours, alone, strict=True):
        frame = colorizer.prepare(still, (-1, 1))
        np.testing.assert_array_equal(picture, colorizer.finish(colour, frame))


def test_a_moving_thing_takes_its_colour_along_and_leaves_none_behind(colorizer):
    ground = 0.1 * texture(96, 120) - 0.6
    thermals, colours = [], []
    for index in range(14):
        thermal, colour = ground.copy(), np.stack([ground * 0, ground * 0 + 0.4, ground * 0])
        thing = (slice(30, 60), slice(10 + 5 * index, 34 + 5 * index))
        thermal[thing] = 0.7 + 0.2 * texture(30, 24, 3)
        colour[(slice(None), *thing)] = np.float32([0.8, -0.5, -0.5])[:, None, None]
        thermals.append(thermal)
        colours.append(colour)
    alone = pictures(colorizer, thermals, colours, 0)
    shown = pictures(colorizer, thermals, colours, 0.9)
    assert np.abs(shown - alone).max() <= 20  # of 166 between the thing and the ground
    assert np.abs(shown - alone).mean() < 0.3


def test_flicker_falls_while_the_camera_pans(colorizer):
    import cv2

    wide = texture(96, 240)
    thermals = [
        cv2.warpAffine(wide, np.float32([[1, 0, -2.5 * i], [0, 1, 0]]), (120, 96))
        for i in range(20)
    ]
    base = [0.3 * np.stack([t, -t, t * 0]) for t in thermals]
    colours = np.stack(base) + flickering(20, (3, 96, 120))
    target = pictures(colorizer, thermals, base, 0)
    shown = pictures(colorizer, thermals, colours, 0.9) - target
    alone = pictures(colorizer, thermals, colours, 0) - target
    inner = (slice(None), slice(8, -8), slice(8, -8))
    change, before = (np.abs(np.diff(x[inner], axis=0)).mean() for x in (shown, alone))
    assert change < 0.5 * before
    # sharp: what remains is no blur of the pattern
    assert (shown[inner] - shown[inner].mean((1, 2), keepdims=True)).std() < 2


def test_nothing_passes_a_cut(colorizer):
    scenes = [texture(96, 120)] * 5 + [texture(96, 120, 7)] * 5
    colours = [np.full((3, 96, 120), value, np.float32) for value in [0.1] * 5 + [0.15] * 5]
    steady = SteadyFrames(colorizer, 1)
    shown = []
    for thermal, colour in zip(scenes, colours, strict=True):
        shown.append(steady.finish(colour, steady.prepare(read_thermal(thermal))))
    assert steady.cuts == 1
    np.testing.assert_array_equal(
        shown[5], colorizer.finish(colours[5], colorizer.prepare(scenes[5]))
    )


@pytest.mark.parametrize("size", [(1, 40), (7, 9), (13, 300)])
def test_frames_of_any_size(colorizer, size):
    frames = [np.random.default_rng(i).integers(0, 999, size).astype(np.uint16) for i in range(3)]
    steady = SteadyFrames(colorizer, 0.5)
    for frame in frames:
        ready = steady.prepare(read_thermal(frame))
        colour, _ = colorizer.run([ready.frame], [None])
        assert steady.finish(colour[0], ready).shape == (*size, 3)


def test_frames_as_tensors_give_the_same_pictures():
    """On a GPU frames are tensors; here on the CPU."""
    wide = texture(480, 560)
    thermals = [wide[:, 3 * i : 500 + 3 * i].copy() for i in range(5)]
    shifts = np.random.default_rng(1).normal(0, 0.03, (5, 3, 1, 1)).astype(np.float32)
    found = []
    for tensors in (False, True):
        one = Colorizer(Fake(working_size=480), device="cpu")
        one.runtime.frames_are_tensors = tensors
        steady, shown = SteadyFrames(one, 0.9), []
        for thermal, shift in zip(thermals, shifts, strict=True):
            ready = steady.prepare(read_thermal(thermal))
            assert isinstance(ready.frame.full, torch.Tensor) == tensors
            colours, _ = one.run([ready.frame], [None])
            shown.append(steady.finish(colours[0] + torch.from_numpy(shift), ready))
        found.append(np.stack(shown).astype(int))
    difference = np.abs(found[0] - found[1])
    # frames are reduced by two filters, so the flow may differ at an edge
    assert difference.mean() < 0.1 and np.percentile(difference, 99.9) <= 1


def test_motion_of_a_shift():
    wide = texture(90, 140)
    found = motion(wide[5:85, 10:130].copy(), wide[5:85, 13:133].copy())
    inner = (slice(15, -15), slice(15, -15))
    columns = found.columns - np.arange(120)
    rows = found.rows - np.arange(80)[:, None]
    assert np.abs(columns[inner] + 3).max() < 0.3 and np.abs(rows[inner]).max() < 0.3
    assert found.agreement[inner].min() > 0.8
    assert found.agreement[40, 0] == 0  # came from outside
    other = motion(wide[5:85, 10:130].copy(), texture(80, 120, 9))
    assert other.agreement.mean() < 0.3


def test_a_folder_of_frames_is_smoothed_too(tmp_path, model):
    from PIL import Image

    (tmp_path / "in").mkdir()
    for index, frame in enumerate(made.ramps(6)):
        Image.fromarray(frame).save(tmp_path / f"in/{index}.png")
    found = {}
    for smooth in ("0", "0.9"):
        out = tmp_path / f"{smooth}.mkv"
        arguments = ("-o", out, "--codec", "ffv1", "--fps", "10", "--smooth", smooth)
        assert colorize(model, tmp_path / "in", *arguments) == 0
        found[smooth] = made.pictures_of(out)
    assert len(found["0.9"]) == 6
    np.testing.assert_array_equal(found["0"][0], found["0.9"][0])
