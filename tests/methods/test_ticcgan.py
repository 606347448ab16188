"""TIC-CGAN: sizes, the coarse-to-fine generator, losses with a random VGG-16, and what ``faithful``
brings back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from method_checks import check_generator, count, pairs, pictures, sharpen, train
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from cmmfnet.methods import build_network
from cmmfnet.methods.method import StepContext
from cmmfnet.methods.ticcgan import TICCGAN, CoarseToFineGenerator
from cmmfnet.nn import perceptual

SMALL = {"method": "ticcgan", "width": 4, "global_blocks": 1, "local_blocks": 1}
LOSSES = {"adversarial": 0.03, "l1": 1.0, "tv": 1.0}
OPTIONS: dict = {}
SIZE = 32


def small(**options) -> CoarseToFineGenerator:
    torch.manual_seed(0)
    return build_network(SMALL | options)


def test_sizes_are_the_papers():
    with torch.device("meta"):
        assert count(CoarseToFineGenerator()) == 45_851_907
        method = TICCGAN(CoarseToFineGenerator(), LOSSES)
        assert count(method.networks["discriminator"]) == 695_777
        assert method.pools["pairs"].size == 50


@pytest.mark.parametrize("size", [(32, 32), (64, 32), (32, 96)])
@pytest.mark.parametrize("options", [{}, {"inputs": 1, "local_blocks": 2}], ids=str)
def test_generator(options, size):
    check_generator(sharpen(small(**options)), *size)


def test_other_shapes_raise():
    with pytest.raises(ValueError, match="multiples of 32"):
        small()(torch.zeros(1, 1, 48, 32))


def test_generator_is_what_it_is_said_to_be():
    network, x = sharpen(small()), pictures(2, 1, 64, 32)

    def conv(y: Tensor, layer: nn.Module) -> Tensor:
        if isinstance(layer, nn.ConvTranspose2d):
            y = F.conv_transpose2d(
                y, layer.weight, layer.bias, stride=2, padding=1, output_padding=1
            )
        elif layer.stride == (2, 2):
            y = F.conv2d(y, layer.weight, layer.bias, stride=2, padding=1)
        else:
            y = F.conv2d(
                F.pad(y, (layer.kernel_size[0] // 2,) * 4, mode="reflect"), layer.weight, layer.bias
            )
        return y

    def norm(y: Tensor) -> Tensor:
        return F.instance_norm(y)

    def residual(y: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
        return y + norm(conv(norm(conv(y, first)).relu(), second))

    def convs(part: nn.Module) -> list[nn.Module]:
        return [m for m in part.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]

    x3 = x.expand(-1, 3, -1, -1)
    # 3x3 mean at every second pixel over what lies inside the frame
    total = F.conv2d(x3, torch.ones(3, 1, 3, 3), stride=2, padding=1, groups=3)
    y = total / F.conv2d(torch.ones(1, 1, 64, 32), torch.ones(1, 1, 3, 3), stride=2, padding=1)
    coarse = convs(network.coarse)
    assert [c.out_channels for c in coarse] == [8, 16, 32, 64, 64, 64, 32, 16, 8]
    for layer in coarse[:4]:
        y = norm(conv(y, layer)).relu()
    y = residual(y, *coarse[4:6])
    for layer in coarse[6:]:
        y = norm(conv(y, layer)).relu()
    z = x3
    for layer in convs(network.fine_in):
        z = norm(conv(z, layer)).relu()
    first, second, up, last = convs(network.fine_out)
    z = norm(conv(residual(z + y, first, second), up)).relu()
    assert torch.allclose(network(x), torch.tanh(conv(z, last)), atol=1e-4)


def check_losses_and_order(
    method: TICCGAN, weights: dict[str, float], vgg: nn.Sequential, faithful: bool, gan: str
) -> None:
    """The family's step (TIC-CGAN, MUGAN, LKAT-GAN) by its formulas; the discriminator's step lies
    in between."""
    batch = pairs(2, SIZE)
    judge, truth = method.networks["discriminator"], batch.visible
    condition = torch.cat([batch.thermal] * 3, dim=1)
    with torch.no_grad():
        colour = method.networks["generator"](batch.thermal)
        step = method.training_step(batch, StepContext(0, 0, 1))
        with torch.enable_grad():
            optimiser, losses = next(step)
        assert optimiser == "discriminator" and list(losses) == ["discriminator"]
        real = judge(torch.cat([condition, truth], 1)).double()
        fake = judge(torch.cat([condition, colour], 1)).double()
        if gan == "bce":
            want = -(torch.sigmoid(real).log().mean() + (1 - torch.sigmoid(fake)).log().mean()) / 2
        else:
            want = ((real - 1).square().mean() + fake.square().mean()) / 2
        assert float(losses["discriminator"].detach()) == pytest.approx(float(want), rel=1e-4)
        assert torch.allclose(
            torch.stack(method.pools["pairs"].pictures),
            torch.cat([condition, colour], 1),
            atol=1e-5,
        )
        for p in judge.parameters():  # what its optimiser would do: the generator meets the new one
            p.mul_(1.2)
        with torch.enable_grad():
            optimiser, losses = next(step)
        assert optimiser == "generator" and set(losses) == set(weights)
        assert next(step, None) is None

        losses = {name: loss.detach() for name, loss in losses.items()}
        answer = judge(torch.cat([condition, colour], 1)).double()
        want = -torch.sigmoid(answer).log().mean() if gan == "bce" else (answer - 1).square().mean()
        assert float(losses["adversarial"]) == pytest.approx(
            weights["adversarial"] * float(want), rel=1e-4
        )
        assert torch.allclose(
            losses["l1"], weights["l1"] * (colour - truth).abs().mean(), rtol=1e-4
        )

        x, y = colour, truth
        if not faithful:  # ImageNet's mean and deviation, of pictures in [0,1]
            mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
            deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
            x, y = (((z + 1) / 2 - mean) / deviation for z in (x, y))
        want = torch.zeros(())
        for i, layer in enumerate(vgg[:23]):
            x, y = layer(x), layer(y)
            if i in (3, 8, 15, 22):  # relu1_2, 2_2, 3_3, 4_3
                want = want + (x - y).abs().mean()
        assert torch.allclose(losses["perceptual"], weights["perceptual"] * want, rtol=1e-3)

        variation = colour.diff(dim=2).abs().sum() + colour.diff(dim=3).abs().sum()
        want = variation / (SIZE * SIZE) / (1 if faithful else 2)
        assert torch.allclose(losses["tv"], weights["tv"] * want, rtol=1e-4)

        if "ssim" in weights:
            options = {
                "gaussian_weights": True,
                "sigma": 1.5,
                "use_sample_covariance": False,
                "data_range": 1.0,
            }
            found = []
            for a, b in zip(colour.double() / 2 + 0.5, truth.double() / 2 + 0.5, strict=True):
                _, each = structural_similarity(
                    a.numpy(), b.numpy(), channel_axis=0, full=True, **options
                )
                found.append(
                    each[:, 5:-5, 5:-5].mean()
                )  # with full=True the border is where the window does not fit
            want = 1 - sum(found) / 2
            assert float(losses["ssim"]) == pytest.approx(weights["ssim"] * want, rel=1e-3)


@pytest.mark.parametrize("faithful", [False, True])
def test_losses_and_order(random_vgg, faithful):
    weights = {"adversarial": 2.0, "l1": 3.0, "perceptual": 5.0, "tv": 7.0}
    method = TICCGAN(sharpen(small(), 0.1), weights, faithful=faithful)
    sharpen(method.networks["discriminator"], 0.1)
    check_losses_and_order(method, weights, random_vgg, faithful, gan="lsgan")


@pytest.mark.parametrize("batch", [1, 2])
def test_training_learns(batch, random_vgg):
    method = TICCGAN(small(), LOSSES | {"perceptual": 1.0})
    history = train(method, pairs(batch, SIZE), steps=22, rate=2e-3)
    assert history[-1]["l1"] < 0.8 * history[0]["l1"]
    assert history[-1]["perceptual"] < history[0]["perceptual"]
    assert set(history[0]) == {"discriminator", "adversarial", "l1", "perceptual", "tv"}


def test_losses_of_weight_0_are_left_out(monkeypatch):
    monkeypatch.setattr(perceptual, "load_features", None)  # nothing may ask for a pre-trained file
    method = TICCGAN(small(), {"adversarial": 0.0, "l1": 1.0, "perceptual": 0.0, "tv": 0.0})
    assert list(method.networks) == ["generator"] and not method.pools and method.perceptual is None
    assert set(train(method, pairs(1, SIZE))[0]) == {"l1"}
