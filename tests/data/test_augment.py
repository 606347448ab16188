"""Augmentation: one geometry for both pictures of a pair, sensor effects on the thermal frame
alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmmfnet.data.augment import (
    Crop,
    gain_control,
    gain_draws,
    sensor,
    sensor_draws,
    stretch,
)
from cmmfnet.nn.blur import blur
from cmmfnet.thermal.stretch import normalise


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_effects(frame: torch.Tensor, seed: int, **more) -> torch.Tensor:
    return sensor(frame, sensor_draws(*frame.shape, generator(seed)), **more)


@pytest.mark.parametrize("seed", range(8))
def test_the_same_place_of_every_picture_lands_at_the_same_place(seed):
    """Bright blocks at the same pixels of frame, photo and label map end at one place in all
    three."""
    crop = Crop.draw(np.random.default_rng(seed), 90, 120, (0.7, 1.0), aspect=1.3)
    y, x = crop.top + crop.height // 3, crop.left + crop.width // 4
    thermal, visible = np.zeros((90, 120), np.uint8), np.zeros((90, 120, 3), np.uint8)
    for picture in (thermal, visible):
        picture[y : y + 6, x : x + 6] = 255
    label = thermal // 255

    def centre(picture: np.ndarray) -> np.ndarray:
        weights = picture / picture.sum()
        places = np.arange(64.0) + 0.5
        return np.array([(weights * places[:, None]).sum(), (weights * places).sum()])

    expected = np.array(
        [(y + 3 - crop.top) / crop.height * 64, (x + 3 - crop.left) / crop.width * 64]
    )
    if crop.flip:
        expected[1] = 64 - expected[1]
    assert np.allclose(centre(crop.apply(thermal, (64, 64))), expected, atol=0.1)
    assert np.allclose(centre(crop.apply(label, (64, 64), nearest=True)), expected, atol=0.6)
    assert set(np.unique(crop.apply(label, (64, 64), nearest=True))) == {
        0,
        1,
    }  # no classes between classes
    for channel in range(3):
        difference = crop.apply(visible, (64, 64))[..., channel].astype(int) - crop.apply(
            thermal, (64, 64)
        )
        assert np.abs(difference).max() <= 1  # torch has one kernel for grey, another for colour


def test_crops_are_antialiased_as_in_floating_point():
    rng = np.random.default_rng(3)
    picture = rng.integers(0, 256, (200, 300, 3), dtype=np.uint8)
    crop = Crop(11, 7, 150, 190, False)
    part = torch.from_numpy(picture)[11:161, 7:197].permute(2, 0, 1)[None].float()
    exact = torch.nn.functional.interpolate(part, (64, 64), mode="bilinear", antialias=True)[
        0
    ].permute(1, 2, 0)
    assert (
        np.abs(crop.apply(picture, (64, 64)) - exact.numpy()).max() <= 1.5
    )  # rounded once for each direction
    assert (
        crop.apply(picture, (64, 64)).std() < 0.5 * picture.std()
    )  # noise is averaged, not picked from


def test_crops_stay_inside_and_keep_to_scale_and_aspect():
    rng = np.random.default_rng(0)
    crops = [Crop.draw(rng, 100, 160, (0.5, 0.8), aspect=1.3) for _ in range(300)]
    for crop in crops:
        assert 0 <= crop.top <= 100 - crop.height and 0 <= crop.left <= 160 - crop.width
        assert 1 / 1.33 < crop.height / crop.width < 1.33
        assert 49 <= (crop.height * crop.width) ** 0.5 <= 81
    assert 100 < sum(crop.flip for crop in crops) < 200
    assert len({(crop.top, crop.left) for crop in crops}) > 250


def test_a_picture_smaller_than_the_crop_is_enlarged():
    crop = Crop.draw(np.random.default_rng(0), 5, 9, (0.5, 1.0), aspect=1.3)
    assert crop.apply(np.zeros((5, 9, 3), np.uint8), (32, 32)).shape == (32, 32, 3)
    assert crop.apply(np.zeros((5, 9), np.uint8), (32, 32)).shape == (32, 32)


def test_aspect_1_does_not_stretch():
    rng = np.random.default_rng(0)
    crops = [Crop.draw(rng, 100, 160, (0.5, 0.8), aspect=1.0) for _ in range(50)]
    assert (
        all(crop.height == crop.width for crop in crops)
        and len({crop.height for crop in crops}) > 10
    )


def test_blur_keeps_the_mean_and_takes_a_sigma_for_each_picture():
    x = torch.zeros(2, 1, 33, 33)
    x[:, :, 16, 16] = 1
    y = blur(x, torch.tensor([0.0, 2.0]))
    assert torch.allclose(y.sum(dim=(1, 2, 3)), torch.ones(2), atol=1e-5)
    assert torch.allclose(y[0], x[0], atol=1e-6)
    assert y[1, 0, 16, 16] == pytest.approx(1 / (2 * np.pi * 2**2), rel=0.02)
    assert torch.allclose(
        blur(torch.full((1, 2, 8, 9), 0.3), torch.tensor([1.0])), torch.tensor(0.3)
    )  # borders too


def test_stretch_takes_each_frame_by_itself():
    ramp = torch.linspace(0, 1, 10_000).view(1, 1, 100, 100)
    y = stretch(torch.cat([ramp, 40 + 3 * ramp]))
    assert torch.allclose(y[0], y[1], atol=1e-3)
    assert (y[0] == -1).float().mean() == pytest.approx(0.01, abs=2e-3)
    assert (y[0] == 1).float().mean() == pytest.approx(0.01, abs=2e-3)
    frame = (
        torch.rand(2, 3, 60, 50, generator=generator(0)) ** 2
    )  # frames of a clip, too, each by itself
    expected = np.stack([[normalise(f) for f in clip] for clip in frame.numpy()])
    assert np.allclose(stretch(frame).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_sensor_gives_finite_frames_in_range_for_constant_ones(value):
    y = with_effects(torch.full((8, 1, 24, 40), value), 0)
    assert y.shape == (8, 1, 24, 40) and y.dtype == torch.float32
    assert y.isfinite().all() and y.min() >= -1 and y.max() <= 1


def test_sensor_is_a_function_of_the_generator():
    x = torch.rand(4, 1, 32, 32, generator=generator(1))
    torch.manual_seed(0)
    first = with_effects(x, 2)
    torch.manual_seed(1)  # global state has no say
    assert torch.equal(first, with_effects(x, 2))
    assert not torch.equal(first, with_effects(x, 3))


def test_a_picture_takes_its_own_row_of_the_draws():
    x = torch.rand(4, 1, 32, 32, generator=generator(1))
    draws = sensor_draws(4, 1, 32, 32, generator(2))
    whole = sensor(x, draws)
    for i in range(4):
        assert torch.allclose(
            sensor(x[i : i + 1], {k: v[i : i + 1] for k, v in draws.items()}), whole[i], atol=1e-5
        )
    assert {len(v) for v in draws.values()} == {4}


def test_the_frames_of_a_clip_share_all_but_white_noise():
    still = torch.rand(20, 1, 24, 24, generator=generator(0)).expand(-1, 3, -1, -1)
    draws = sensor_draws(20, 3, 24, 24, generator(1))
    noisy = sensor(still, draws)
    assert not torch.equal(noisy[:, 0], noisy[:, 1])
    quiet = sensor(still, draws | {"white": torch.zeros_like(draws["white"])})
    assert torch.equal(quiet[:, 0], quiet[:, 1]) and torch.equal(quiet[:, 0], quiet[:, 2])
    assert (quiet[:, 0] - still[:, 0] * 2 + 1).abs().mean() > 0.1  # and that is not nothing


def test_sensor_inverts_the_asked_share_and_keeps_the_picture():
    ramp = torch.linspace(0, 1, 48).expand(200, 1, 48, 48)
    y = with_effects(ramp, 0, invert=0.25)
    rising = y[..., 24:].mean(dim=(1, 2, 3)) > y[..., :24].mean(dim=(1, 2, 3))
    assert 30 <= (~rising).sum() <= 70
    assert with_effects(ramp, 0, invert=0.0)[..., 24:].mean() > 0.2


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_gain_control_of_a_constant_frame_is_finite(value):
    y = gain_control(torch.full((8, 1, 24, 40), value), gain_draws(8, generator(0)))
    assert y.shape == (8, 1, 24, 40) and y.isfinite().all()


def off(**more: float) -> dict[str, torch.Tensor]:
    """Draws for one picture that change nothing, but for ``more``."""
    neutral = {"tone": 0.0, "equalise": 0.0, "detail": 0.0, "width": 4.0} | more
    return {name: torch.full((1, 1, 1, 1), value) for name, value in neutral.items()}


def test_gain_control_equalises_keeps_order_and_raises_detail():
    x = torch.rand(1, 1, 64, 64, generator=generator(1)) ** 4  # dark, with a few hot pixels
    as_it_is = (stretch(x, 0.002, 0.998) + 1) / 2
    assert torch.allclose(gain_control(x, off()), as_it_is, atol=1e-3)
    even = gain_control(x, off(equalise=1.0))
    shares = torch.histc(even, 4, 0, 1) / even.numel()  # a quarter of the pixels in each quarter
    assert shares[1:].sub(0.25).abs().max() < 0.05 and as_it_is.lt(0.25).float().mean() > 0.6
    places = x.flatten().argsort()
    assert (even.flatten()[places].diff() >= 0).all()
    step = torch.cat([torch.full((1, 1, 64, 32), 0.4), torch.full((1, 1, 64, 32), 0.6)], dim=3)
    step[..., 0], step[..., -1] = 0, 1  # so that the stretch leaves room
    sharp, plain = gain_control(step, off(detail=1.0)), gain_control(step, off())
    rise = [float(y[0, 0, 32, 32] - y[0, 0, 32, 31]) for y in (plain, sharp)]
    assert rise[1] > 1.1 * rise[0]
    flat = [float(y[0, 0, 32, 50] - y[0, 0, 32, 14]) for y in (plain, sharp)]
    assert flat[1] == pytest.approx(flat[0], abs=0.02)  # large areas keep their levels


def test_half_of_the_frames_are_neither_equalised_nor_enhanced_and_rows_are_their_own():
    draws = gain_draws(400, generator(0))
    for name in ("equalise", "detail"):
        assert 160 <= (draws[name] == 0).sum() <= 240
    x = torch.rand(4, 1, 32, 32, generator=generator(1))
    four = {name: values[:4] for name, values in draws.items()}
    whole = gain_control(x, four)
    for i in range(4):
        own = {name: values[i : i + 1] for name, values in four.items()}
        assert torch.allclose(gain_control(x[i : i + 1], own), whole[i], atol=1e-5)
