"""Augmentation: one geometry for both pictures of a pair, sensor effects on the thermal frame alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmmfnet.data.augment import Crop, blur, sensor, stretch


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", range(8))
def test_the_same_place_of_every_picture_lands_at_the_same_place(seed):
    """Bright blocks at the same pixels of frame, photo and label map end at one place in all three."""
    crop = Crop.draw(np.random.default_rng(seed), 90, 120, (0.7, 1.0), aspect=1.3)
    y, x = crop.top + crop.height // 3, crop.left + crop.width // 4
    thermal, visible = torch.zeros(1, 90, 120, dtype=torch.uint8), torch.zeros(3, 90, 120, dtype=torch.uint8)
    for picture in (thermal, visible):
        picture[:, y : y + 6, x : x + 6] = 255
    label = thermal // 255

    def centre(picture: torch.Tensor) -> torch.Tensor:
        weights = picture[0] / picture[0].sum()
        rows, columns = torch.arange(64.0)[:, None] + 0.5, torch.arange(64.0) + 0.5
        return torch.stack([(weights * rows).sum(), (weights * columns).sum()])

    expected = torch.tensor([(y + 3 - crop.top) / crop.height * 64, (x + 3 - crop.left) / crop.width * 64])
    if crop.flip:
        expected[1] = 64 - expected[1]
    assert torch.allclose(centre(crop.apply(thermal, 64)), expected, atol=0.1)
    assert torch.equal(crop.apply(visible, 64)[:1], crop.apply(thermal, 64))
    assert torch.allclose(centre(crop.apply(label, 64, nearest=True)), expected, atol=0.6)
    assert set(crop.apply(label, 64, nearest=True).unique().tolist()) == {0, 1}  # no classes between classes


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
    assert crop.apply(torch.zeros(3, 5, 9, dtype=torch.uint8), 32).shape == (3, 32, 32)


def test_blur_keeps_the_mean_and_takes_a_sigma_for_each_picture():
    x = torch.zeros(2, 1, 33, 33)
    x[:, :, 16, 16] = 1
    y = blur(x, torch.tensor([0.0, 2.0]))
    assert torch.allclose(y.sum(dim=(1, 2, 3)), torch.ones(2), atol=1e-5)
    assert torch.allclose(y[0], x[0], atol=1e-6)
    assert y[1, 0, 16, 16] == pytest.approx(1 / (2 * np.pi * 2**2), rel=0.02)
    assert torch.allclose(blur(torch.full((1, 2, 8, 9), 0.3), torch.tensor([1.0])), torch.tensor(0.3))  # borders too


def test_stretch_takes_each_frame_by_itself():
    ramp = torch.linspace(0, 1, 10_000).view(1, 1, 100, 100)
    y = stretch(torch.cat([ramp, 40 + 3 * ramp]))
    assert torch.allclose(y[0], y[1], atol=1e-3)
    assert (y[0] == -1).float().mean() == pytest.approx(0.01, abs=2e-3)
    assert (y[0] == 1).float().mean() == pytest.approx(0.01, abs=2e-3)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_sensor_gives_finite_frames_in_range_for_constant_ones(value):
    y = sensor(torch.full((8, 1, 24, 40), value), generator(0))
    assert y.shape == (8, 1, 24, 40) and y.dtype == torch.float32
    assert y.isfinite().all() and y.min() >= -1 and y.max() <= 1


def test_sensor_is_a_function_of_the_generator():
    x = torch.rand(4, 1, 32, 32, generator=generator(1))
    torch.manual_seed(0)
    first = sensor(x, generator(2))
    torch.manual_seed(1)  # global state has no say
    assert torch.equal(first, sensor(x, generator(2)))
    assert not torch.equal(first, sensor(x, generator(3)))


def test_sensor_inverts_the_asked_share_and_keeps_the_picture():
    ramp = torch.linspace(0, 1, 48).expand(200, 1, 48, 48)
    y = sensor(ramp, generator(0), invert=0.25)
    rising = y[..., 24:].mean(dim=(1, 2, 3)) > y[..., :24].mean(dim=(1, 2, 3))
    assert 30 <= (~rising).sum() <= 70
    assert sensor(ramp, generator(0), invert=0.0)[..., 24:].mean() > 0.2
