"""Pseudo-thermal frames from labelled photos, and the levelling of photos."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmmfnet.data.simulate import PRIOR, level, simulate_thermal, simulation_draws
from cmmfnet.text.labels import CLASSES


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def simulated(photo: torch.Tensor, label: torch.Tensor, seed: int) -> torch.Tensor:
    return simulate_thermal(photo, label, simulation_draws(len(photo), generator(seed)))


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    return torch.rand(6, 3, 40, 56, generator=generator(0))


@pytest.fixture(scope="module")
def label() -> torch.Tensor:
    blocks = torch.randint(0, len(CLASSES), (6, 5, 7), generator=generator(1))
    return blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)


def test_every_class_has_a_prior():
    assert len(PRIOR) == len(CLASSES)


def test_frames_are_finite_and_of_the_photo_s_size(photo, label):
    frame = simulated(photo, label, 2)
    assert frame.shape == (6, 1, 40, 56) and frame.dtype == torch.float32 and frame.isfinite().all()
    assert frame.flatten(1).std(dim=1).min() > 0.02  # each shows something
    flat = simulated(torch.zeros(1, 3, 16, 16), torch.zeros(1, 16, 16, dtype=torch.long), 2)
    assert flat.isfinite().all()


def test_a_frame_is_a_function_of_the_generator(photo, label):
    first = simulated(photo, label, 2)
    torch.manual_seed(5)
    assert torch.equal(first, simulated(photo, label, 2))
    assert not torch.equal(first, simulated(photo, label, 3))


def test_frames_depend_on_labels_and_on_the_photo(photo, label):
    first = simulated(photo, label, 2)
    assert (first - simulated(photo, label.flip(1), 2)).abs().mean() > 0.02
    assert (first - simulated(photo.flip(3), label, 2)).abs().mean() > 0.02


def test_a_picture_takes_its_own_row_of_the_draws(photo, label):
    draws = simulation_draws(6, generator(2))
    whole = simulate_thermal(photo, label, draws)
    for i in range(6):
        row = slice(i, i + 1)
        alone = simulate_thermal(photo[row], label[row], {k: v[row] for k, v in draws.items()})
        assert torch.allclose(alone, whole[row], atol=1e-5)
    assert {len(v) for v in draws.values()} == {6}


def test_a_class_has_one_temperature_where_the_photo_is_plain():
    """Two halves of two classes on a grey photo: the frame differs between them, hardly inside
    them."""
    label = torch.ones(64, 32, 32, dtype=torch.long)
    label[:, :, 16:] = CLASSES.index("road")
    frame = simulated(torch.full((64, 3, 32, 32), 0.5), label, 0)[:, 0]
    between = (frame[:, :, :12].mean(dim=(1, 2)) - frame[:, :, 20:].mean(dim=(1, 2))).abs().mean()
    assert between > 0.2
    assert frame[:, 10:22, 4:10].flatten(1).std(dim=1).mean() < between / 4


def test_half_of_the_frames_know_that_people_are_warmer_than_the_sky():
    label = torch.ones(400, 8, 8, dtype=torch.long)
    label[:, :, 4:] = CLASSES.index("person")
    frame = simulated(torch.full((400, 3, 8, 8), 0.5), label, 0)
    warmer = (
        (frame[..., 6:].mean(dim=(1, 2, 3)) > frame[..., :2].mean(dim=(1, 2, 3))).float().mean()
    )
    assert 0.68 < warmer < 0.82  # half of them always, the others by chance


def test_level_puts_each_channel_s_dark_to_black_and_the_brightest_to_white():
    ramp = np.arange(1000) / 999
    photo = (
        np.stack([90 + 60 * ramp, 80 + 100 * ramp, 100 + 40 * ramp], axis=1)
        .round()
        .astype(np.uint8)
        .reshape(20, 50, 3)
    )
    y = level(photo)
    assert y.dtype == np.uint8 and y.shape == photo.shape
    assert y.min(axis=(0, 1)).tolist() == [0, 0, 0]
    # the brightest channel is the second: (x - low_c) / (high - low_c) with high its 99.7 %
    # quantile
    x = photo.reshape(-1, 3).astype(float)
    low, high = np.quantile(x, 0.005, axis=0), np.quantile(x, 0.997, axis=0).max()
    assert np.array_equal(
        y.reshape(-1, 3), ((x - low) / (high - low) * 255).clip(0, 255).round().astype(np.uint8)
    )
    assert (
        y[..., 1].max() == 255 and y[..., 2].max() < 160
    )  # channels keep their balance at the bright end


def test_level_of_a_constant_photo_does_not_amplify_noise():
    photo = np.full((20, 20, 3), 120, np.uint8)
    photo[0, 0] = 122
    assert level(photo).mean() < 40
