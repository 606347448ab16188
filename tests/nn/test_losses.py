"""The paper's four losses and the hinge pair against their formulas, written out in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import nn

from cmmfnet.nn import losses, perceptual

HALF = [torch.float16, torch.bfloat16]


def pictures(shape, seed=0):
    """Two pictures in [-1,1] that resemble each other a little."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator) * 2 - 1
    return x, (0.6 * x + 0.4 * (torch.rand(shape, generator=generator) * 2 - 1))


@pytest.fixture
def tiny_perceptual(monkeypatch):
    """The "l1" distance on two 1x1 convolutions with a ReLU behind each, and those convolutions."""
    torch.manual_seed(3)
    stack = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.ReLU(), nn.Conv2d(5, 2, 1)
    ).requires_grad_(False)
    monkeypatch.setattr(perceptual, "load_features", lambda name, folder: stack)
    monkeypatch.setitem(perceptual.TAPS, "vgg16", {"family": (1, 3), "lpips": (1,)})
    return perceptual.Perceptual("vgg16", "l1"), stack


def paper_losses(tiny):
    return {
        "l1": losses.l1,
        "tv": lambda x, _: losses.total_variation(x),
        "ssim": losses.ssim_loss,
        "perceptual": lambda x, y: tiny(x, y).mean(),
    }


def test_l1_is_the_mean_absolute_difference():
    x, y = pictures((2, 3, 5, 7))
    total = 0.0
    for a, b in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True):
        total += abs(a - b)
    assert losses.l1(x, y).item() == pytest.approx(total / (2 * 3 * 5 * 7), abs=1e-6)


def total_variations(x: np.ndarray) -> list[float]:
    """Of each picture of (B,C,H,W), by loops over the pixels."""
    batch, channels, height, width = x.shape
    result = []
    for b in range(batch):
        total = 0.0
        for c in range(channels):
            for h in range(height):
                for w in range(width):
                    if h + 1 < height:
                        total += abs(x[b, c, h + 1, w] - x[b, c, h, w])
                    if w + 1 < width:
                        total += abs(x[b, c, h, w + 1] - x[b, c, h, w])
        result.append(total / (height * width))
    return result


def test_total_variation_against_loops():
    x, _ = pictures((3, 2, 5, 8))
    want = total_variations(x.double().numpy())
    assert losses.total_variation(x).item() == pytest.approx(np.mean(want), rel=1e-6)
    assert losses.total_variation(x, legacy=True).item() == pytest.approx(np.sum(want), rel=1e-6)


def test_total_variation_of_one_edge():
    """A step of 2 across 4 rows of a 4x6 picture, in one of two pictures and three channels."""
    x = torch.zeros(2, 3, 4, 6)
    x[0, :, :, 3:] = 2
    assert losses.total_variation(x).item() == pytest.approx(3 * 4 * 2 / 24 / 2)
    assert losses.total_variation(x, legacy=True).item() == pytest.approx(3 * 4 * 2 / 24)


def ssim_at(x: np.ndarray, y: np.ndarray, top: int, left: int) -> float:
    """Wang et al. (2004), equation 13 with an 11x11 Gaussian window of deviation 1.5, for pictures
    in [0,1]."""
    weights = np.zeros((11, 11))
    for i in range(11):
        for j in range(11):
            weights[i, j] = math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    mx = my = xx = yy = xy = 0.0
    for i in range(11):
        for j in range(11):
            a, b = x[top + i, left + j], y[top + i, left + j]
            mx, my = mx + weights[i, j] * a, my + weights[i, j] * b
            xx, yy, xy = (
                xx + weights[i, j] * a * a,
                yy + weights[i, j] * b * b,
                xy + weights[i, j] * a * b,
            )
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mx * my + c1) / (mx * mx + my * my + c1)
    return luminance * (2 * (xy - mx * my) + c2) / (xx - mx * mx + yy - my * my + c2)


def test_ssim_against_loops():
    """In 12x13 pixels the window fits at 2x3 places."""
    x, y = pictures((2, 2, 12, 13))
    a, b = x.double().numpy() / 2 + 0.5, y.double().numpy() / 2 + 0.5
    want = [
        ssim_at(a[n, c], b[n, c], i, j)
        for n in range(2)
        for c in range(2)
        for i in range(2)
        for j in range(3)
    ]
    assert losses.ssim(x, y).item() == pytest.approx(np.mean(want), abs=1e-5)
    assert losses.ssim_loss(x, y).item() == pytest.approx(1 - np.mean(want), abs=1e-5)


def test_ssim_against_scikit_image():
    x, y = pictures((1, 3, 40, 33), seed=5)
    a, b = ((p[0].double().numpy() / 2 + 0.5).transpose(1, 2, 0) for p in (x, y))
    options = {
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
        "data_range": 1.0,
    }
    # with full=True the map has the picture's size: its border is where the window does not fit
    _, full = structural_similarity(a, b, channel_axis=2, full=True, **options)
    assert losses.ssim(x, y).item() == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-5)


def test_ssim_of_a_picture_smaller_than_its_window():
    with pytest.raises(ValueError, match="11-pixel window"):
        losses.ssim(torch.zeros(1, 3, 10, 64), torch.zeros(1, 3, 10, 64))


def test_perceptual_l1_against_numpy(tiny_perceptual):
    distance, stack = tiny_perceptual
    x, y = pictures((2, 3, 4, 6))

    def features(picture: np.ndarray) -> list[np.ndarray]:
        maps = []
        h = (picture - np.array([-0.030, -0.088, -0.188])[:, None, None]) / np.array(
            [0.458, 0.448, 0.450]
        )[:, None, None]
        for layer in (stack[0], stack[2]):
            weight, bias = layer.weight.double().numpy()[:, :, 0, 0], layer.bias.double().numpy()
            h = np.maximum(np.einsum("oi,ihw->ohw", weight, h) + bias[:, None, None], 0)
            maps.append(h)
        return maps

    want = []
    for a, b in zip(x.double().numpy(), y.double().numpy(), strict=True):
        want.append(
            sum(np.abs(p - q).mean() for p, q in zip(features(a), features(b), strict=True))
        )
    assert distance(x, y).tolist() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("name", ["l1", "ssim", "perceptual"])
def test_equal_pictures_cost_nothing(tiny_perceptual, name):
    x, y = pictures((2, 3, 16, 16))
    loss = paper_losses(tiny_perceptual[0])[name]
    assert loss(x, x.clone()).item() == pytest.approx(0, abs=1e-6)
    assert loss(x, y).item() > 0.01


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_flat_picture_has_no_variation(value):
    assert losses.total_variation(torch.full((2, 3, 8, 8), value)).item() == 0


@pytest.mark.parametrize("name", ["l1", "tv", "ssim", "perceptual"])
@pytest.mark.parametrize("values", [(-1.0, -1.0), (0.0, 0.5), (1.0, -1.0)], ids=str)
def test_flat_pictures_have_finite_gradients(tiny_perceptual, name, values):
    x, y = (torch.full((1, 3, 16, 16), v) for v in values)
    x.requires_grad_()
    loss = paper_losses(tiny_perceptual[0])[name](x, y)
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", ["l1", "tv", "ssim", "perceptual"])
def test_half_precision_input_costs_what_its_float32_copy_does(tiny_perceptual, name, dtype):
    """256x256, where sums in half precision overflow or stall; the arithmetic has to be in
    float32."""
    x, y = (p.to(dtype) for p in pictures((1, 3, 256, 256)))
    loss = paper_losses(tiny_perceptual[0])[name]
    # under autocast the features are meant to be in half precision; the other losses stay as they
    # are
    with torch.autocast("cpu", torch.bfloat16, enabled=name != "perceptual"):
        found = loss(x, y)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(loss(x.float(), y.float()).item(), rel=1e-5)


def test_hinge_losses_against_their_formulas():
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(2, 1, 5, 5, generator=generator) * 2 for _ in range(2))
    r, f = real.double().numpy(), fake.double().numpy()
    want = np.maximum(0, 1 - r).mean() + np.maximum(0, 1 + f).mean()
    assert losses.hinge_discriminator(real, fake).item() == pytest.approx(want, rel=1e-6)
    assert losses.hinge_generator(fake).item() == pytest.approx(-f.mean(), rel=1e-5)


def test_hinge_discriminator_is_content_beyond_the_margin():
    real, fake = torch.full((1, 1, 3, 3), 1.5), torch.full((1, 1, 3, 3), -1.5)
    assert losses.hinge_discriminator(real, fake).item() == 0
    assert (
        losses.hinge_discriminator(fake, real).item() == 5
    )  # (1 + 1.5) for each: the sides are not exchangeable


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_hinge_losses_are_float32(dtype):
    logits = torch.linspace(-3, 3, 4096).to(dtype)
    assert losses.hinge_generator(logits).dtype == torch.float32
    found = losses.hinge_discriminator(logits, logits)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(
        losses.hinge_discriminator(logits.float(), logits.float()).item(), rel=1e-6
    )


def test_losses_against_the_truth_come_in_one_order_and_only_those_asked_for():
    x, y = pictures((1, 3, 16, 16))
    found = losses.PictureLosses(
        {"ssim", "tv", "l1", "perceptual"}, lambda a, b: (a - b).square().mean(dim=(1, 2, 3))
    )(x, y)
    assert list(found) == ["l1", "perceptual", "tv", "ssim"]
    assert list(losses.PictureLosses({"tv"})(x, y)) == ["tv"]
    assert losses.PictureLosses(())(x, y) == {}
    part = losses.PictureLosses({"perceptual"}, lambda a, b: (a - b).abs().mean(dim=(1, 2, 3)))(
        x, y, x[..., :2], y[..., :2]
    )
    assert torch.equal(part["perceptual"], (x - y)[..., :2].abs().mean())
