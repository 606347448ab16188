"""Palette: parameters, noise levels, denoiser, samplers against distributions whose denoiser is
known, the training step."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cmmfnet.methods import build_network
from cmmfnet.methods.method import StepContext
from cmmfnet.methods.palette import (
    SAMPLING,
    TRAINING,
    AttentionBlock,
    Palette,
    PaletteNetwork,
    ResidualBlock,
    embed_level,
    noise_levels,
    without_low_frequencies,
)

SMALL = {
    "method": "palette", "width": 16, "multipliers": (1, 2), "blocks": 1, "attention": (2,),
    "head_channels": 16, "steps": 4,
}  # fmt: skip
LOSSES = {"noise": 1.0}
OPTIONS: dict = {}
SIZE = 32


def small(seed=0, awake=True, **options) -> PaletteNetwork:
    """A reduced network; ``awake``: with random numbers where it starts with zeros, so that every
    part of it matters."""
    torch.manual_seed(seed)
    network = build_network({**SMALL, **options})
    if awake:
        with torch.no_grad():
            for parameter in network.parameters():
                if not parameter.any():
                    parameter.normal_(0, 0.05)
    return network.eval()


def batch(count=2, size=SIZE, seed=0, positions=None):
    generator = torch.Generator().manual_seed(seed)
    return SimpleNamespace(
        thermal=torch.rand(count, 1, size, size, generator=generator) * 2 - 1,
        visible=torch.rand(count, 3, size, size, generator=generator) * 2 - 1,
        positions=positions or list(range(count)),
    )


def test_parameters_at_full_size():
    with torch.device("meta"):  # shapes without numbers
        network, more = build_network({"method": "palette"}), PaletteNetwork(attention=(8,))
    count = sum(p.numel() for p in network.parameters())
    # the port's network has two more input channels: 3 x 3 weights to 64 channels each
    assert count == 62_640_195 == 62_641_347 - 2 * 9 * 64
    assert sum(isinstance(m, AttentionBlock) for m in network.modules()) == 1  # in the middle
    assert [m.heads for m in network.modules() if isinstance(m, AttentionBlock)] == [16]
    assert sum(isinstance(m, ResidualBlock) for m in network.modules()) == 8 + 3 + 2 + 12 + 3
    assert sum(isinstance(m, AttentionBlock) for m in more.modules()) == 1 + 2 + 3


def test_noise_levels_are_products():
    first, last, steps = TRAINING
    level, expected = 1.0, []
    for t in range(steps):
        level *= 1 - (first + (last - first) * t / (steps - 1))
        expected.append(level)
    np.testing.assert_allclose(noise_levels(*TRAINING), expected, rtol=1e-9)
    assert noise_levels(*TRAINING)[-1] == pytest.approx(math.exp(-10), rel=0.05)


def test_level_embedding():
    got = embed_level(torch.tensor([0.0, 0.3, 1.0]), 8)
    for row, level in zip(got, (0.0, 0.3, 1.0), strict=True):
        angles = [level * 10_000 ** (-i / 4) for i in range(4)]
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        np.testing.assert_allclose(row.numpy(), expected, atol=1e-6)


def test_attention_against_loops():
    torch.manual_seed(1)
    block = AttentionBlock(8, 4)
    torch.nn.init.normal_(block.out.weight)
    x = torch.randn(2, 8, 3, 2)
    normed = torch.nn.functional.group_norm(x, 8, block.norm.weight, block.norm.bias).flatten(2)
    q, k, v = (
        torch.einsum("oc,bcn->bon", w.flatten(1), normed) + b[:, None]
        for w, b in zip(block.qkv.weight.split(8), block.qkv.bias.split(8), strict=True)
    )
    mixed = torch.zeros_like(normed)
    for b in range(2):
        for head in (slice(0, 4), slice(4, 8)):
            for i in range(6):
                scores = [(q[b, head, i] @ k[b, head, j]).item() / 2 for j in range(6)]
                weights = torch.tensor(scores).softmax(0)
                mixed[b, head, i] = sum(weights[j] * v[b, head, j] for j in range(6))
    expected = x + block.out(mixed.view_as(x))
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("scale", "size"), [(1, (8, 6)), (2, (16, 12)), (0.5, (4, 3))])
def test_residual_block(scale, size):
    torch.manual_seed(2)
    block = ResidualBlock(8, 16, 12, dropout=0.2, scale=scale).eval()
    x, embedding = torch.randn(3, 8, 8, 6), torch.randn(3, 12)
    # its second convolution starts at zero: the block starts as its (resampled) skip
    skip = block.skip(block._resample(x))
    torch.testing.assert_close(block(x, embedding), skip)
    assert block(x, embedding).shape == (3, 16, *size)
    torch.nn.init.normal_(block.conv2.weight)
    assert not torch.allclose(block(x, embedding), block(x, torch.zeros(3, 12)))


def test_level_reaches_the_embedding():
    """Times 1000; with ``faithful`` as it is."""
    level = torch.tensor([0.2])
    for network, scale in ((small(), 1000), (small(faithful=True), 1)):
        seen = []
        network.embed.register_forward_pre_hook(
            lambda module, inputs, seen=seen: seen.append(inputs[0])
        )
        network(torch.zeros(1, 1, 8, 8), noisy=torch.zeros(1, 3, 8, 8), level=level)
        torch.testing.assert_close(seen[0], embed_level(level * scale, 16))


@pytest.mark.parametrize("size", [(32, 32), (16, 40), (6, 10)])
def test_shapes_and_range(size):
    network = small()
    assert network.multiple_of == 2 and PaletteNetwork.multiple_of == 8
    colour = network(torch.rand(2, 1, *size) * 2 - 1)
    assert colour.shape == (2, 3, *size) and colour.abs().max() <= 1
    assert not colour.requires_grad
    noise = network(
        torch.zeros(2, 1, *size), noisy=torch.randn(2, 3, *size), level=torch.tensor([0.1, 0.9])
    )
    assert noise.shape == (2, 3, *size) and noise.requires_grad


def test_mistakes_are_named():
    network = small()
    with pytest.raises(ValueError, match=r"thermal is \(1, 1, 7, 8\).*multiples of 2"):
        network(torch.zeros(1, 1, 7, 8))
    with pytest.raises(ValueError, match="both noisy and level"):
        network(torch.zeros(1, 1, 8, 8), noisy=torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="learns from its own loss"):
        network.train()(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="sampler is 'ddpm'"):
        build_network({**SMALL, "sampler": "ddpm"})
    with pytest.raises(ValueError, match="steps is 0; expected 1 to 2000"):
        build_network({**SMALL, "steps": 0})
    with pytest.raises(ValueError, match="expected 1 to 1000"):
        build_network({**SMALL, "sampler": "ancestral", "steps": 1001})
    with pytest.raises(ValueError, match="heads of 12"):
        build_network({**SMALL, "head_channels": 12})
    with pytest.raises(ValueError, match="unknown loss l1"):
        Palette(network, {"l1": 1.0})


def test_sampling_levels():
    assert PaletteNetwork(**{**options(), "steps": None}).steps == 20
    paper = PaletteNetwork(**{**options(), "steps": None, "sampler": "ancestral"})
    assert paper.steps == 1000
    np.testing.assert_allclose(paper.sampling_levels(), [*noise_levels(*SAMPLING)[::-1], 1.0])
    levels = small(steps=7).sampling_levels()
    assert len(levels) == 8 and levels == sorted(levels) and levels[-1] == 1
    assert levels[0] == noise_levels(*TRAINING)[-1] and set(levels[:-1]) <= set(
        noise_levels(*TRAINING).tolist()
    )


def test_without_low_frequencies():
    noise = torch.randn(1, 2, 8, 12)
    rest = without_low_frequencies(noise, 4)
    for y in (0, 4):
        for x in (0, 4, 8):
            cell = noise[..., y : y + 4, x : x + 4]
            torch.testing.assert_close(
                rest[..., y : y + 4, x : x + 4], cell - cell.mean(dim=(2, 3), keepdim=True)
            )


def options() -> dict:
    return {k: v for k, v in SMALL.items() if k != "method"}


@pytest.mark.parametrize(
    ("sampler", "steps"), [("ddim", 1), ("ddim", 20), ("ancestral", 10), ("ancestral", 1000)]
)
def test_sampling_a_known_picture(monkeypatch, sampler, steps):
    """Where the data are one picture, the best denoiser is known, and every sampler ends at that
    picture."""
    network = small(sampler=sampler, steps=steps)
    picture = torch.rand(1, 3, 8, 8) * 2 - 1

    def denoise(thermal, noisy, level):
        gamma = level[:, None, None, None].double()
        return ((noisy - gamma.sqrt() * picture) / (1 - gamma).sqrt()).float()

    monkeypatch.setattr(network, "_denoise", denoise)
    # the noise of the first level is 1e10 times the picture, so rounding decides what is first
    # guessed
    torch.testing.assert_close(
        network(torch.zeros(2, 1, 8, 8)), picture.expand(2, -1, -1, -1), atol=2e-3, rtol=0
    )


def expected_deviation(sampler: str, levels: list[float], deviation: float) -> float:
    """Of the samples, where the data are Gaussian with this deviation: every step is then a known
    number times what it had, plus noise. Textbook forms: DDPM's posterior with its betas, DDIM's
    eq. 12 with no noise of its own."""
    variance = 1.0
    for gamma, less_noisy in pairwise(levels):
        marginal = gamma * deviation**2 + 1 - gamma
        picture = math.sqrt(gamma) * deviation**2 / marginal  # E[picture | x] = picture * x
        if sampler == "ddim":
            noise = math.sqrt(1 - gamma) / marginal
            factor, added = math.sqrt(less_noisy) * picture + math.sqrt(1 - less_noisy) * noise, 0.0
        else:
            beta = 1 - gamma / less_noisy
            factor = math.sqrt(less_noisy) * beta / (1 - gamma) * picture
            factor += math.sqrt(1 - beta) * (1 - less_noisy) / (1 - gamma)
            added = (1 - less_noisy) / (1 - gamma) * beta
        variance = factor**2 * variance + added
    return math.sqrt(variance)


@pytest.mark.parametrize(
    ("sampler", "steps"), [("ddim", 20), ("ddim", 2000), ("ancestral", 100), ("ancestral", 1000)]
)
def test_sampling_a_known_distribution(monkeypatch, sampler, steps):
    """Independent Gaussian pixels of mean 0.2, deviation 0.15, whose best denoiser is known: the
    samples have both."""
    network = small(sampler=sampler, steps=steps)
    mean, deviation = 0.2, 0.15

    def denoise(thermal, noisy, level):
        gamma = float(level[0])
        return (
            math.sqrt(1 - gamma)
            * (noisy - math.sqrt(gamma) * mean)
            / (gamma * deviation**2 + 1 - gamma)
        )

    monkeypatch.setattr(network, "_denoise", denoise)
    samples = network(torch.zeros(1, 1, 128, 128))
    expected = expected_deviation(sampler, network.sampling_levels(), deviation)
    if (
        sampler == "ddim"
    ):  # the start lacks the mean of every 2 x 2 pixels, a quarter of its variance
        cells = torch.nn.functional.avg_pool2d(samples, 2)
        torch.testing.assert_close(cells, torch.full_like(cells, mean), atol=1e-3, rtol=0)
        samples = mean + (samples - mean) / math.sqrt(0.75)
    assert samples.mean().item() == pytest.approx(mean, abs=0.01)
    assert samples.std().item() == pytest.approx(expected, rel=0.02)
    if steps >= 1000:
        assert expected == pytest.approx(deviation, rel=0.05)


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_evaluation_is_deterministic_and_a_pictures_own(sampler):
    network = small(sampler=sampler, dropout=0.5)
    thermal = torch.rand(3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(5)) * 2 - 1
    before = torch.get_rng_state()
    together = network(thermal)
    torch.manual_seed(99)
    torch.testing.assert_close(network(thermal), together, atol=0, rtol=0)
    torch.testing.assert_close(
        network(thermal[1:2]), together[1:2], atol=1e-3, rtol=0
    )  # rounding, times 1 / sqrt(gamma)
    torch.testing.assert_close(
        network(thermal, torch.zeros(3, 2, 4), torch.ones(3, 2) > 0), together, atol=0, rtol=0
    )
    torch.set_rng_state(before)
    network(thermal)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.allclose(together[0], together[1])


def test_copies_and_half_precision():
    network = small()
    thermal = torch.rand(1, 1, SIZE, SIZE) * 2 - 1
    colour = network(thermal)
    torch.testing.assert_close(copy.deepcopy(network)(thermal), colour)
    other = small(seed=7)
    assert not torch.allclose(other(thermal), colour)
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(other(thermal), colour)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network(thermal)
    assert (mixed.float() - colour).abs().mean() < 0.05
    low = copy.deepcopy(network).to(torch.bfloat16)(thermal.to(torch.bfloat16))
    assert low.dtype == torch.bfloat16 and (low.float() - colour).abs().mean() < 0.05


def test_training_loss_against_its_formula():
    network = small().train()
    method = Palette(network, {"noise": 3.0})
    sent = {}

    def generator(thermal, noisy, level):
        sent.update(thermal=thermal, noisy=noisy, level=level)
        return noisy * 0.5

    method.networks["generator"] = generator
    data, moment = batch(3), StepContext(seed=4, step=9, steps=100)
    level, noise = method.draw(data, moment)
    ((optimiser, losses),) = method.training_step(data, moment)
    assert optimiser == "generator" and list(losses) == ["noise"]
    assert torch.equal(sent["thermal"], data.thermal) and torch.equal(sent["level"], level)
    total = 0.0
    for i in range(3):
        gamma = float(level[i])
        noisy = math.sqrt(gamma) * data.visible[i] + math.sqrt(1 - gamma) * noise[i]
        torch.testing.assert_close(sent["noisy"][i], noisy, atol=1e-5, rtol=1e-5)
        total += float(((noisy * 0.5 - noise[i]) ** 2).mean()) / 3
    assert losses["noise"].item() == pytest.approx(3 * total, rel=1e-4)


def test_draws_belong_to_seed_step_and_position():
    method = Palette(small(), LOSSES)
    level, noise = method.draw(batch(4), StepContext(1, 5, 10))
    again = method.draw(batch(2, seed=3, positions=[2, 0]), StepContext(1, 5, 10))
    assert torch.equal(again[0], level[[2, 0]]) and torch.equal(again[1], noise[[2, 0]])
    assert len(set(level.tolist())) == 4
    for other in (StepContext(2, 5, 10), StepContext(1, 6, 10)):
        assert not torch.equal(method.draw(batch(4), other)[1], noise)
    many, drawn = method.draw(batch(2000, size=1), StepContext(0, 0, 1))
    assert many.min() > noise_levels(*TRAINING)[-1] and many.max() < 1
    # as many below the schedule's level halfway as above; noise of mean 0 and deviation 1
    assert (many < noise_levels(*TRAINING)[1000]).float().mean().item() == pytest.approx(
        0.5, abs=0.05
    )
    assert drawn.mean().item() == pytest.approx(
        0, abs=0.05
    ) and drawn.std().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("count", [1, 2])
def test_a_step_reaches_every_parameter(count):
    network = small(awake=False).train()
    method = Palette(network, LOSSES)
    assert method.optimisers == {"generator": ("generator",)}
    with torch.autocast("cpu", torch.bfloat16):
        for _, losses in method.training_step(batch(count), StepContext(0, 0, 10)):
            assert all(
                torch.isfinite(loss) and loss.dtype == torch.float32 for loss in losses.values()
            )
            sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    # zeros at the end of it, so it starts with the loss of knowing nothing
    assert losses["noise"].item() == pytest.approx(1, abs=0.05)


def test_steps_reduce_the_loss():
    network = small(awake=False, dropout=0.0).train()
    method = Palette(network, LOSSES)
    optimiser = torch.optim.Adam(method.networks["generator"].parameters(), 2e-3)
    values = []
    for _ in range(25):
        for _, losses in method.training_step(batch(2), StepContext(0, 0, 1)):
            optimiser.zero_grad()
            losses["noise"].backward()
            optimiser.step()
        values.append(losses["noise"].item())
    assert values[-1] < 0.6 * values[0]
