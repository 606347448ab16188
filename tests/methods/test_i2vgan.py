"""I2V-GAN: parameters, layers, every loss against its formula written out, the step's order, what
`faithful` changes."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cmmfnet.methods import build_network
from cmmfnet.methods import i2vgan as module
from cmmfnet.methods.i2vgan import I2VGAN, I2VGenerator
from cmmfnet.methods.method import StepContext
from cmmfnet.methods.patchnce import (
    STYLE_TAPS,
    STYLE_WEIGHTS,
    ContentAndStyle,
    ProjectionHead,
    draw_places,
    external_similarity,
    internal_similarity,
    motion,
    patch_nce,
    take,
)
from cmmfnet.nn import perceptual

SMALL = {"method": "i2vgan", "width": 8, "blocks": 2}
LOSSES = dict(I2VGAN.LOSSES)
OPTIONS = {"perceptual": "none", "predictor_levels": 3, "patches": 32}
SIZE = 32
MOMENT = StepContext(seed=3, step=5, steps=100)


def small(losses=LOSSES, seed=0, dropout=0.0, **options) -> I2VGAN:
    torch.manual_seed(seed)
    network = build_network({**SMALL, "dropout": dropout}).train()
    return I2VGAN(network, losses, **{**OPTIONS, **options})


def batch(count=2, size=SIZE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return SimpleNamespace(
        thermal=torch.rand(count, 3, 1, size, size, generator=generator) * 2 - 1,
        visible=torch.rand(count, 3, 3, size, size, generator=generator) * 2 - 1,
        positions=list(range(count)),
    )


def one_step(method: I2VGAN, data, moment=MOMENT, optimisers=None) -> dict[str, dict[str, float]]:
    """A step as the loop makes it; plain gradients without ``optimisers``. -> losses by
    optimiser."""
    seen = {}
    for name, losses in method.training_step(data, moment):
        parameters = [
            p for key in method.optimisers[name] for p in method.networks[key].parameters()
        ]
        for parameter in parameters:
            parameter.grad = None
        sum(losses.values()).backward()
        if optimisers is not None:
            optimisers[name].step()
        seen[name] = {key: loss.item() for key, loss in losses.items()}
    return seen


@pytest.fixture
def random_vgg(monkeypatch):
    """Loss networks with random weights, small enough that their features have the pictures'
    size."""

    def load(name, folder):
        torch.manual_seed(11)
        layers = []
        for i in range(max(STYLE_TAPS[name]) + 1):
            layers.append(nn.Conv2d(3 if i == 0 else 4, 4, 1) if i % 2 == 0 else nn.ReLU())
        return nn.Sequential(*layers).requires_grad_(False)

    monkeypatch.setattr(perceptual, "load_features", load)
    return load


# --- networks


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_parameters_at_full_size():
    with torch.device("meta"):  # shapes without numbers
        method = I2VGAN(build_network({"method": "i2vgan"}), LOSSES, perceptual="none")
    for kind, parameters in [
        ("generator", 7_837_699), ("inverse", 7_837_699), ("predictor_visible", 41_828_739),
        ("predictor_thermal", 41_828_739), ("discriminator_visible", 2_764_737),
        ("discriminator_thermal", 2_764_737),
    ]:  # fmt: skip
        assert count(method.networks[kind]) == parameters
    # (3, 128, 256, 256, 256) channels, two linear layers each
    heads = sum(c * 256 + 256 + 256 * 256 + 256 for c in (3, 128, 256, 256, 256))
    assert count(method.networks["head_visible"]) == count(method.networks["head_thermal"]) == heads
    assert set(method.networks) == set(method.optimisers["generator"]) | set(
        method.optimisers["discriminator"]
    )


def test_layers_that_are_compared():
    network = I2VGenerator(width=4, blocks=6, dropout=0.0)
    x = torch.rand(2, 3, 16, 24) * 2 - 1
    maps = network.encode(x)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (3, 22, 30),
        (8, 8, 12),
        (16, 4, 6),
        (16, 4, 6),
        (16, 8, 12),
    ]
    torch.testing.assert_close(maps[0], F.pad(x, (3, 3, 3, 3), mode="reflect"))
    # the last is the upsampled result of the blocks, from which the rest of the network makes the
    # picture
    torch.testing.assert_close(network.layers[17:](maps[4]), network(x))


def test_up_is_the_codes_blur():
    """A transposed convolution of stride 2 with the filter 1, 3, 3, 1 on replicated borders is
    bilinear interpolation."""
    line = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = line[:, None] * line / line.sum() ** 2 * 4
    x = torch.randn(2, 1, 5, 6)
    y = F.conv_transpose2d(
        F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel[None, None], stride=2, padding=3
    )
    torch.testing.assert_close(module.smooth_up(1, 1)[0](x), y)


@pytest.mark.parametrize("size", [(32, 32), (8, 48)])
def test_shapes_and_a_picture_of_its_own(size):
    network = build_network(SMALL).eval()
    thermal = torch.rand(3, 1, *size) * 2 - 1
    colour = network(thermal)
    assert colour.shape == (3, 3, *size) and colour.abs().max() <= 1
    torch.testing.assert_close(
        network(thermal, torch.zeros(3, 1, 4), torch.ones(3, 1) > 0), colour, atol=0, rtol=0
    )
    torch.testing.assert_close(network(thermal[1:2]), colour[1:2], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(network(thermal.expand(-1, 3, -1, -1)), colour, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(network.train()(thermal), colour)  # dropout
    with pytest.raises(ValueError, match="multiples of 8"):
        network(torch.zeros(1, 1, 12, 16))


def test_copies_and_half_precision():
    network = build_network(SMALL).eval()
    thermal = torch.rand(1, 1, 32, 32) * 2 - 1
    colour = network(thermal)
    other = build_network(SMALL).eval()
    other.load_state_dict(copy.deepcopy(network).state_dict())
    torch.testing.assert_close(other(thermal), colour)
    with torch.autocast("cpu", torch.bfloat16):
        assert (network(thermal).float() - colour).abs().mean() < 0.05


# --- losses


def test_patch_nce_against_loops():
    torch.manual_seed(0)
    query, key = (F.normalize(torch.randn(2, 5, 7), dim=-1) for _ in range(2))
    query.requires_grad_()
    key.requires_grad_()
    got = patch_nce(query, key)
    for b in range(2):
        total = 0.0
        for i in range(5):
            similar = [math.exp((query[b, i] @ key[b, j]).item() / 0.07) for j in range(5)]
            total -= math.log(similar[i] / sum(similar)) / 5
        assert got[b].item() == pytest.approx(total, rel=1e-4)
    got.sum().backward()
    assert query.grad.abs().sum() > 0 and key.grad is None


def test_similarities_against_loops():
    torch.manual_seed(1)
    real, fake = ([F.normalize(torch.randn(2, 3, n, 6), dim=-1) for n in (5, 4)] for _ in range(2))

    def nce(q, k):
        return F.cross_entropy(q @ k.T / 0.07, torch.arange(len(q))).item()

    external, internal = 0.0, 0.0
    for b in range(2):
        for frame in range(3):
            external += (
                sum(nce(f[b, frame], r[b, frame]) for r, f in zip(real, fake, strict=True)) / 2 / 2
            )
        ratios = [
            np.array([nce(x[b, 1], x[b, 2]) / nce(x[b, 0], x[b, 1]) for x in video])
            for video in (real, fake)
        ]
        cosine = ratios[0] @ ratios[1] / np.linalg.norm(ratios[0]) / np.linalg.norm(ratios[1])
        internal += (1 - cosine) / 2
    assert external_similarity(real, fake).item() == pytest.approx(external, rel=1e-4)
    assert internal_similarity(real, fake).item() == pytest.approx(internal, rel=1e-3, abs=1e-6)
    assert internal_similarity(real, real).item() == pytest.approx(0, abs=1e-6)


def test_motion_of_equal_frames_is_finite():
    still = F.normalize(torch.eye(6), dim=-1).expand(1, 3, 6, 6).clone().requires_grad_()
    ratios = motion([still])
    assert ratios.item() == pytest.approx(1, abs=1e-3)
    ratios.sum().backward()
    assert torch.isfinite(still.grad).all()


def test_patches_are_a_pictures_own_and_frames_share_places():
    maps = [torch.randn(6, 3, 4, 5), torch.randn(6, 2, 40, 40)]
    places = draw_places(maps, [MOMENT.rng(0), MOMENT.rng(1)], 256)
    assert [tuple(p.shape) for p in places] == [(2, 20), (2, 256)]
    assert all(len(set(row.tolist())) == len(row) for p in places for row in p)  # no place twice
    taken = take(maps, places)
    assert [tuple(t.shape) for t in taken] == [(2, 3, 20, 3), (2, 3, 256, 2)]
    for b, frame, n in [(0, 0, 0), (1, 2, 199), (0, 1, 17)]:
        y, x = divmod(int(places[1][b, n]), 40)
        assert torch.equal(taken[1][b, frame, n], maps[1][3 * b + frame, :, y, x])
    alone = draw_places(maps, [MOMENT.rng(1)], 256)
    assert torch.equal(alone[1], places[1][1:])


def test_projection_head():
    head = ProjectionHead((3, 5), width=40)
    out = head(torch.randn(2, 3, 6, 3), torch.randn(2, 3, 9, 5))
    assert [tuple(x.shape) for x in out] == [(2, 3, 6, 40), (2, 3, 9, 40)]
    assert all(torch.allclose(x.norm(dim=-1), torch.ones(())) for x in out)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("name", ["vgg16", "vgg19"])
def test_content_and_style_against_its_formula(random_vgg, name, normalised):
    loss = ContentAndStyle(name, normalised=normalised)
    layers = random_vgg(name, None)
    generator = torch.Generator().manual_seed(2)
    x, y = (torch.rand(2, 3, 5, 6, generator=generator) * 2 - 1 for _ in range(2))

    def features(picture):
        mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(
            2, 3, 1, 1
        )
        z = ((picture + 1) / 2 - mean) / deviation if normalised else picture
        out = []
        for i, layer in enumerate(layers):
            z = layer(z)
            if i in STYLE_TAPS[name]:
                out.append(z)
        return out

    got = loss(x.requires_grad_(), y.requires_grad_())
    for b in range(2):
        a, c = features(x[b : b + 1].detach()), features(y[b : b + 1].detach())
        total = (x[b] - y[b]).abs().mean().item() + (a[3] - c[3]).abs().mean().item()
        for weight, p, q in zip(STYLE_WEIGHTS, a, c, strict=True):
            channels, size = p.shape[1], p[0].numel()
            squares = 0.0
            for i in range(channels):
                for j in range(channels):
                    squares += (
                        ((p[0, i] * p[0, j]).sum() - (q[0, i] * q[0, j]).sum()).item() / size
                    ) ** 2
            total += 100 * weight * squares / channels**2
        # LPIPS' shift and scale are ImageNet's in three digits
        assert got[b].item() == pytest.approx(total, rel=5e-3 if normalised else 1e-4)
    got.sum().backward()
    assert x.grad.abs().sum() > 0 and y.grad is None


def test_taps_are_the_first_relu_of_each_level():
    for name, taps in STYLE_TAPS.items():
        layers = perceptual.feature_layers(name)
        pools = [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
        assert list(taps) == [start + 2 for start in [-1, *pools[:4]]]
        assert all(isinstance(layers[i], nn.ReLU) for i in taps)


# --- the step


def test_losses_of_a_step_against_their_formulas(random_vgg):
    method, data = small(perceptual="vgg16"), batch(2)
    nets = method.networks
    got = one_step(method, data)
    g, f = nets["generator"], nets["inverse"]
    domains = {"thermal": data.thermal.expand(-1, -1, 3, -1, -1), "visible": data.visible}
    expected = dict.fromkeys(LOSSES, 0.0)
    judged = {}
    with torch.no_grad():
        for source, target, there, back in (
            ("thermal", "visible", g, f),
            ("visible", "thermal", f, g),
        ):
            x0, x1, x2 = domains[source].unbind(1)
            y0, y1 = there(x0), there(x1)
            y2 = nets[f"predictor_{target}"](torch.cat([y0, y1], dim=1))
            distance = method.distance
            for y in (y0, y1, y2):
                expected["adversarial"] += (nets[f"discriminator_{target}"](y) - 1).square().mean()
            expected["cycle"] += distance(back(y0), x0).mean() + distance(back(y1), x1).mean()
            expected["recycle"] += distance(back(y2), x2).mean()
            next_frame = nets[f"predictor_{source}"](torch.cat([x0, x1], dim=1))
            expected["prediction"] += distance(next_frame, x2).mean()
            expected["identity"] += (back(x0) - x0).abs().mean() + (back(x1) - x1).abs().mean()
            judged.setdefault(target, {}).update(fake=[y0, y1, y2])
            judged.setdefault(source, {}).update(real=[x0, x1, x2, x2], predicted=next_frame)
        for name in ("adversarial", "cycle", "recycle", "prediction", "identity"):
            assert got["generator"][name] == pytest.approx(
                LOSSES[name] * float(expected[name]), rel=1e-4
            )
        for kind, seen in judged.items():
            judge, total = nets[f"discriminator_{kind}"], 0.0
            for real, fake in zip(seen["real"], [*seen["fake"], seen["predicted"]], strict=True):
                total += 0.5 * ((judge(real) - 1).square().mean() + judge(fake).square().mean())
            assert got["discriminator"][f"discriminator_{kind}"] == pytest.approx(
                float(total), rel=1e-4
            )


def test_similarity_of_a_step():
    """With the places given, as the formulas say: queries from the translation, both through the
    same encoder and head."""
    method, data = small({"external": 0.1, "internal": 40.0}), batch(1)
    got = one_step(method, data)["generator"]
    rng = MOMENT.rng(0)
    external = internal = 0.0
    nets = method.networks
    with torch.no_grad():
        for real, there, target in (
            (data.thermal.expand(-1, -1, 3, -1, -1), "generator", "visible"),
            (data.visible, "inverse", "thermal"),
        ):  # fmt: skip
            first = nets[there](real[0, :2])
            third = nets[f"predictor_{target}"](first.reshape(1, 6, SIZE, SIZE))
            encoded = [nets[there].encode(x) for x in (real[0], torch.cat([first, third]))]
            places = draw_places(encoded[0], [rng], 32)
            ours, theirs = (nets[f"head_{target}"](*take(maps, places)) for maps in encoded)
            external += external_similarity(ours, theirs)
            internal += internal_similarity(ours, theirs)
    assert got["external"] == pytest.approx(0.1 * float(external), rel=1e-4)
    assert got["internal"] == pytest.approx(40 * float(internal), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("pictures", [1, 2])
@pytest.mark.parametrize(
    "losses",
    [
        LOSSES,
        {"adversarial": 1.0},
        {"cycle": 1.0, "prediction": 1.0},
        {"identity": 1.0},
        {"internal": 1.0},
    ],
    ids=lambda losses: "-".join(losses),
)
def test_a_step_reaches_every_parameter(losses, pictures):
    method = small(losses, dropout=0.5)
    names = []
    with torch.autocast("cpu", torch.bfloat16):
        for name, values in method.training_step(batch(pictures), MOMENT):
            names.append(name)
            assert all(torch.isfinite(v) and v.dtype == torch.float32 for v in values.values())
            others = [
                p
                for key, n in method.networks.items()
                if key not in method.optimisers[name]
                for p in n.parameters()
            ]
            before = [None if p.grad is None else p.grad.clone() for p in others]
            sum(values.values()).backward()
            for key in method.optimisers[name]:
                for parameter, p in method.networks[key].named_parameters():
                    assert p.grad is not None and torch.isfinite(p.grad).all(), (key, parameter)
            for p, b in zip(
                others, before, strict=True
            ):  # none leaks into the other optimiser's networks
                assert (p.grad is None) if b is None else torch.equal(p.grad, b)
    assert names == list(method.optimisers)
    assert set(method.networks) == {n for group in method.optimisers.values() for n in group}


def test_what_is_left_out():
    assert set(small({"cycle": 1.0}).networks) == {"generator", "inverse"}
    assert not small({"cycle": 1.0}).pools
    assert set(small({**LOSSES, "external": 0, "internal": 0}).networks) == {
        "generator", "inverse", "predictor_visible", "predictor_thermal", "discriminator_visible",
        "discriminator_thermal",
    }  # fmt: skip
    seen = one_step(small({**LOSSES, "prediction": 0.0}), batch(1))
    assert "prediction" not in seen["generator"] and len(seen["discriminator"]) == 2
    method = small({**LOSSES, "prediction": 0.0})
    one_step(method, batch(2))
    assert [tuple(p.shape) for p in method.pools["visible"].pictures] == [(3, 3, SIZE, SIZE)] * 2
    with pytest.raises(ValueError, match="besides prediction"):
        small({"prediction": 1.0, "cycle": 0.0})
    with pytest.raises(ValueError, match="perceptual is 'vgg11'"):
        small(perceptual="vgg11")
    with pytest.raises(ValueError, match=r"crops are 28 pixels.*multiples of 8"):
        one_step(small(), batch(1, size=28))


def test_pools_hold_what_discriminators_are_shown():
    method = small({"adversarial": 1.0, "prediction": 10.0})
    for step in range(13):
        one_step(method, batch(1, seed=step), StepContext(0, step, 100))
    for pool in method.pools.values():
        assert len(pool.pictures) == 12
        assert all(p.shape == (4, 3, SIZE, SIZE) and not p.requires_grad for p in pool.pictures)


def test_faithful_heads_never_learn(random_vgg):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    plain, faithful = small(seed=1), small(seed=1, faithful=True)
    other = small(seed=2, faithful=True)
    assert not torch.equal(before, torch.get_rng_state())
    assert {"head_visible", "head_thermal"} <= set(plain.optimisers["generator"])
    assert "head_visible" not in faithful.networks and set(faithful.heads) == {
        "head_visible",
        "head_thermal",
    }
    for kind, head in faithful.heads.items():
        assert not any(p.requires_grad for p in head.parameters())
        for a, b in zip(head.parameters(), other.heads[kind].parameters(), strict=True):
            assert torch.equal(a, b)  # whatever the run's seed: no checkpoint has them
    state = copy.deepcopy({k: h.state_dict() for k, h in faithful.heads.items()})
    optimisers = {
        name: torch.optim.Adam(
            [p for key in keys for p in faithful.networks[key].parameters()], 1e-3
        )
        for name, keys in faithful.optimisers.items()
    }
    losses = one_step(faithful, batch(1), optimisers=optimisers)["generator"]
    assert math.isfinite(losses["external"]) and math.isfinite(losses["internal"])
    for kind, head in faithful.heads.items():
        assert all(torch.equal(v, state[kind][k]) for k, v in head.state_dict().items())
    assert torch.equal(
        small(perceptual="vgg16", faithful=True).distance.scale.flatten(), torch.ones(3)
    )
    assert not torch.equal(small(perceptual="vgg16").distance.scale.flatten(), torch.ones(3))
    faithful.to(torch.device("cpu"))


def test_steps_reduce_the_losses():
    method, data = (
        small({"cycle": 10.0, "identity": 5.0, "prediction": 10.0, "recycle": 10.0}),
        batch(1, size=16),
    )
    for kind, channels in (("thermal", 1), ("visible", 3)):  # smooth pictures that do not move
        coarse = (
            torch.rand(1, channels, 3, 3, generator=torch.Generator().manual_seed(channels)) * 2 - 1
        )
        still = F.interpolate(coarse, (16, 16), mode="bilinear")
        setattr(data, kind, still[:, None].expand(-1, 3, -1, -1, -1).contiguous())
    parameters = [p for network in method.networks.values() for p in network.parameters()]
    optimisers = {"generator": torch.optim.Adam(parameters, 4e-3, betas=(0.5, 0.999))}
    values = [
        sum(one_step(method, data, StepContext(0, s, 15), optimisers)["generator"].values())
        for s in range(15)
    ]
    assert values[-1] < 0.6 * values[0]
