"""ToDayGAN, and what it shares with PearlGAN: sizes, skeleton, three heads, relativistic losses,
the step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from method_checks import check_generator, count, pairs, pictures, sharpen, train
from torch import Tensor, nn

from cmmfnet.methods import build_network
from cmmfnet.methods.combogan import Head, ThreeHeadedDiscriminator, relativistic_loss
from cmmfnet.methods.method import ImagePool, StepContext
from cmmfnet.methods.pearlgan import AttentionTranslator, PearlGAN
from cmmfnet.methods.todaygan import ToDayGAN, Translator

SMALL = {"method": "todaygan", "width": 4, "encoder_blocks": 1, "decoder_blocks": 1}
LOSSES = {"adversarial": 1.0, "cycle": 10.0}
OPTIONS = {"discriminator_width": 4}
SIZE = 32


def small(**options) -> Translator:
    torch.manual_seed(0)
    return build_network(SMALL | options)


def test_sizes_are_the_papers():
    method = ToDayGAN(Translator(), ToDayGAN.LOSSES)
    for name in ("generator", "inverse"):
        assert count(method.networks[name].encoder) == 5_099_143
        assert count(method.networks[name].decoder) == 6_565_770
        assert count(method.networks[name]) == 5_099_143 + 6_565_770
    for kind in ("visible", "thermal"):
        assert count(method.networks[f"discriminator_{kind}"]) == 16_698_201
    assert not ToDayGAN.paired and ToDayGAN.LOSSES == LOSSES


@pytest.mark.parametrize("size", [(8, 8), (16, 40), (64, 32)])
def test_generator(size):
    check_generator(sharpen(small()), *size)


def test_other_shapes_raise():
    with pytest.raises(
        ValueError, match=r"\(1, 1, 12, 16\); expected \(B,1,H,W\) with H and W multiples of 8"
    ):
        small()(torch.zeros(1, 1, 12, 16))


def test_generator_is_what_it_is_said_to_be():
    network = sharpen(small())
    slopes = [m for m in network.modules() if isinstance(m, nn.PReLU)]
    for i, slope in enumerate(slopes):
        nn.init.constant_(slope.weight, 0.1 * (i + 1))
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    prelus = iter(slopes)

    def act(y: Tensor) -> Tensor:
        y = F.instance_norm(y)
        return torch.where(y > 0, y, next(prelus).weight * y)

    def reflect(y: Tensor, conv: nn.Conv2d) -> Tensor:
        return F.conv2d(
            F.pad(y, (conv.kernel_size[0] // 2,) * 4, mode="reflect"), conv.weight, conv.bias
        )

    x = pictures(2, 3, 32, 24)
    y = act(reflect(x, convs[0]))
    for conv in convs[1:3]:
        y = act(F.conv2d(y, conv.weight, conv.bias, stride=2, padding=1))
    for first, second in (convs[3:5], convs[5:7]):
        y = y + F.instance_norm(reflect(act(reflect(y, first)), second))
    for conv in convs[7:9]:
        y = act(F.conv_transpose2d(y, conv.weight, conv.bias, stride=2, padding=1))
    assert torch.allclose(network(x), torch.tanh(reflect(y, convs[9])), atol=1e-4)
    grey = pictures(2, 1, 16, 16)
    assert torch.equal(network(grey), network(torch.cat([grey] * 3, dim=1)))


# ---- the discriminator


def test_heads_see_blurred_colour_grey_and_gradient():
    judge = ThreeHeadedDiscriminator(4).eval()
    seen = {}
    for name in ("colour", "grey", "gradient"):
        getattr(judge, name).register_forward_pre_hook(
            lambda _, args, name=name: seen.update({name: args[0]})
        )
    picture = pictures(2, 3, 32, 40)
    answers = judge(picture)
    assert [len(head) for head in answers] == [4, 4, 3]

    window = np.exp(-((np.arange(5) - 2.0) ** 2) / 18)
    window = np.outer(window, window) / np.outer(window, window).sum()
    x = picture.double().numpy()
    padded = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)))
    blurred = sum(
        window[i, j] * padded[:, :, i : i + 32, j : j + 40] for i in range(5) for j in range(5)
    )
    assert np.allclose(seen["colour"].numpy(), blurred, atol=1e-5)
    grey = 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
    assert np.allclose(seen["grey"][:, 0].numpy(), grey, atol=1e-6)
    half = grey[:, ::2, ::2]
    found = seen["gradient"].numpy()
    assert found.shape == (2, 2, 14, 18)
    for i in range(14):
        for j in range(18):
            assert np.allclose(
                found[:, 0, i, j], half[:, i + 1, j + 2] - half[:, i + 1, j], atol=1e-5
            )
            assert np.allclose(
                found[:, 1, i, j], half[:, i + 2, j + 1] - half[:, i, j + 1], atol=1e-5
            )


def test_heads_have_the_norm_of_their_paper():
    """ToDayGAN: instance norm behind all convolutions but the first and the last. PearlGAN:
    spectral norm of all."""
    judge = ToDayGAN(small(), LOSSES, **OPTIONS).networks["discriminator_visible"]
    for head, layers in ((judge.colour, 4), (judge.grey, 4), (judge.gradient, 3)):
        kinds = [type(m).__name__ for m in head.modules() if not list(m.children())]
        inner = ["Conv2d", "InstanceNorm", "PReLU"] * layers
        assert kinds == ["Conv2d", "PReLU", *inner, "Conv2d"]
    x = pictures(1, 3, 32, 32)
    with torch.no_grad():
        y = judge.colour.middle[0][0](judge.colour.enter(x))
        want = F.instance_norm(y)
        want = torch.where(want > 0, want, 0.25 * want)
        assert torch.allclose(judge.colour(x)[0], want[:, -1], atol=1e-5)
    spectral = PearlGAN(AttentionTranslator(width=4), PearlGAN.LOSSES, **OPTIONS)
    judge = spectral.networks["discriminator_visible"]
    convs = [m for m in judge.modules() if isinstance(m, nn.Conv2d)]
    assert all(hasattr(conv, "parametrizations") for conv in convs)
    with pytest.raises(ValueError, match="expected 'spectral' or 'instance'"):
        Head(3, 4, 3, norm="batch")


def test_a_head_answers_at_every_depth():
    torch.manual_seed(0)
    head = Head(3, 4, 3).eval()
    convs = [m for m in head.modules() if isinstance(m, nn.Conv2d)]
    assert [c.weight.shape[0] for c in convs] == [4, 9, 17, 32, 1]
    for (
        conv
    ) in convs:  # spectral norm: the largest singular value, which is an estimate, is about 1
        assert 0.8 < torch.linalg.matrix_norm(conv.weight.flatten(1), 2) < 1.2
    x = pictures(2, 3, 32, 32)
    found = head(x)

    def conv(y: Tensor, layer: nn.Conv2d, stride: int) -> Tensor:
        return F.conv2d(y, layer.weight, layer.bias, stride, padding=2)

    y = F.leaky_relu(conv(x, convs[0], 2), 0.25)
    want = []
    for layer in convs[1:3]:
        y = F.leaky_relu(conv(y, layer, 2), 0.25)
        want.append(y[:, -1])
        y = y[:, :-1]
    want.append(conv(F.leaky_relu(conv(y, convs[3], 1), 0.25), convs[4], 1)[:, 0])
    assert len(found) == len(want) == 3
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, want, strict=True))


def answers(seed: int) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        [torch.randn(2, n, n, generator=generator) for n in (9, 5, 3, 4)[:k]] for k in (4, 4, 3)
    ]


@pytest.mark.parametrize("judge", [True, False])
def test_relativistic_loss_is_the_weighted_mean_of_squared_leads(judge):
    real, fake = answers(1), answers(2)
    total = 0.0
    for r, f in zip(real, fake, strict=True):
        weights = {4: (1, 2, 3, 5), 3: (1, 2, 4)}[len(r)]
        for weight, a, b in zip(weights, r, f, strict=True):
            a, b = a.numpy(), b.numpy()
            lead = a - b if judge else b - a
            total += weight * ((lead - 1) ** 2).mean() / sum(weights) / len(r) / 3
    assert float(relativistic_loss(real, fake, judge)) == pytest.approx(total, rel=1e-5)
    ahead = [[a + 1 for a in head] for head in real]
    best = relativistic_loss(ahead, real, True) if judge else relativistic_loss(real, ahead, False)
    assert float(best) == pytest.approx(0, abs=1e-6)


# ---- the step


def test_losses():
    method = ToDayGAN(small(), {"adversarial": 2.0, "cycle": 3.0}, **OPTIONS)
    for name in ("generator", "inverse"):
        sharpen(method.networks[name], 0.1)
    for network in method.networks.values():
        network.eval()  # spectral norm stands still, so that it can be recomputed
    batch = pairs(2, SIZE)
    forth, back = method.networks["generator"], method.networks["inverse"]
    judges = {kind: method.networks[f"discriminator_{kind}"] for kind in ("visible", "thermal")}
    real = {"thermal": torch.cat([batch.thermal] * 3, dim=1), "visible": batch.visible}
    with torch.no_grad():
        fake = {"visible": forth(real["thermal"]), "thermal": back(real["visible"])}
        cycle = F.smooth_l1_loss(back(fake["visible"]), real["thermal"])
        cycle = cycle + F.smooth_l1_loss(forth(fake["thermal"]), real["visible"])
        said = {kind: (judges[kind](real[kind]), judges[kind](fake[kind])) for kind in judges}
    step = method.training_step(batch, StepContext(0, 0, 1))
    optimiser, losses = next(step)
    assert optimiser == "generator" and set(losses) == {"adversarial", "cycle"}
    assert torch.allclose(losses["cycle"], 3 * cycle, rtol=1e-4)
    want = sum(relativistic_loss(*said[kind], judge=False) for kind in judges)
    assert torch.allclose(losses["adversarial"], 2 * want, rtol=1e-4)
    optimiser, losses = next(step)
    assert optimiser == "discriminator"
    for kind in judges:
        want = relativistic_loss(*said[kind], judge=True) / 2
        assert torch.allclose(losses[f"discriminator_{kind}"], want, rtol=1e-4)


def test_discriminators_see_old_pictures():
    method = ToDayGAN(small(), LOSSES, **OPTIONS)
    assert {k: p.size for k, p in method.pools.items()} == {"visible": 50, "thermal": 50}
    batch, marker = pairs(1, SIZE), torch.full((3, SIZE, SIZE), 0.5)
    seen = []
    method.networks["discriminator_visible"].register_forward_pre_hook(
        lambda _, args: seen.append(args[0].detach())
    )
    method.pools = {"visible": ImagePool(1), "thermal": ImagePool(1)}
    method.pools["visible"].pictures = [marker]
    for step in range(5):
        for _ in method.training_step(batch, StepContext(3, step, 5)):
            pass
    assert sum(torch.equal(x[0], marker) for x in seen) == 1
    assert method.pools["visible"].pictures[0].shape == marker.shape
    assert not method.pools["visible"].pictures[0].requires_grad


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("loss", list(LOSSES))
def test_any_loss_alone_trains_both_translators(loss, batch):
    method = ToDayGAN(small(), {loss: 1.0}, **OPTIONS)
    assert loss in train(method, pairs(batch, SIZE))[0]
    assert (
        ("discriminator_visible" in method.networks)
        == (loss == "adversarial")
        == bool(method.pools)
    )


def test_training_learns():
    history = train(
        ToDayGAN(small(width=8), LOSSES, **OPTIONS), pairs(2, SIZE), steps=12, rate=1e-3
    )
    # single steps of a GAN jump, differently with every order of sums (number of threads)
    assert min(losses["cycle"] for losses in history) < 0.5 * history[0]["cycle"]
    assert set(history[0]) == {*LOSSES, "discriminator_visible", "discriminator_thermal"}
