"""PearlGAN: sizes, attention, each of its losses, edge maps, when late losses begin."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from method_checks import check_generator, count, pairs, pictures, sharpen, train
from skimage.feature import canny
from torch import Tensor, nn

from cmmfnet.methods import build_network
from cmmfnet.methods.method import Moment
from cmmfnet.methods.pearlgan import (
    AttentionTranslator,
    PearlGAN,
    TopDownAttention,
    alignment_loss,
    diversity_loss,
    edge_map,
    gradient_alignment_loss,
    squared_variation,
)

SMALL = {"method": "pearlgan", "width": 4, "encoder_blocks": 1, "decoder_blocks": 1}
LOSSES = {
    "adversarial": 1.0, "cycle": 10.0, "ssim": 1.0, "gradient": 0.5, "tv": 5.0, "diversity": 1.0,
    "alignment": 1.0,
}  # fmt: skip
OPTIONS = {"discriminator_width": 4}
SIZE = 32


def small(**options) -> AttentionTranslator:
    torch.manual_seed(0)
    return build_network(SMALL | options)


def test_sizes_are_the_papers():
    method = PearlGAN(AttentionTranslator(), PearlGAN.LOSSES)
    for name in ("generator", "inverse"):
        assert count(method.networks[name].encoder) == 5_167_244
        assert count(method.networks[name].decoder) == 6_634_255
        assert count(method.networks[name]) == 5_167_244 + 6_634_255
    for kind in ("visible", "thermal"):
        assert count(method.networks[f"discriminator_{kind}"]) == 16_698_201
    assert not PearlGAN.paired and PearlGAN.LOSSES == LOSSES


@pytest.mark.parametrize("size", [(8, 8), (16, 40), (72, 32)])
def test_generator(size):
    check_generator(sharpen(small(), 0.1), *size)


def test_generator_is_what_it_is_said_to_be():
    network = sharpen(small())
    x = pictures(2, 3, 32, 40)
    colour, encoder_maps, decoder_maps = network(x, attention=True)
    assert torch.equal(colour, network(x))
    assert [m.shape for m in encoder_maps + decoder_maps] == [(2, 1, 8, 10)] * 8
    assert all(m.min() > 0 and m.max() < 1 for m in encoder_maps + decoder_maps)
    norms = [m for m in network.decoder.modules() if isinstance(m, nn.GroupNorm)]
    assert [(m.num_groups, m.num_channels) for m in norms] == [(8, 8), (4, 4)]
    full = [m for m in AttentionTranslator().decoder.modules() if isinstance(m, nn.GroupNorm)]
    assert [(m.num_groups, m.num_channels) for m in full] == [(32, 128), (32, 64)]


def test_attention_goes_from_coarse_to_fine():
    torch.manual_seed(1)
    block = sharpen(TopDownAttention(8))
    x = torch.randn(2, 8, 24, 20)
    conv = block.enter[0]
    y = F.instance_norm(F.conv2d(x, conv.weight, conv.bias))
    y = torch.where(y > 0, y, 0.25 * y)

    def enlarge(small: Tensor, large: Tensor) -> Tensor:
        return F.interpolate(small, large.shape[-2:], mode="bilinear", align_corners=False)

    attention, parts, maps = None, [], []
    for i in (3, 2, 1, 0):
        group = y[:, 2 * i : 2 * i + 2]
        pooled = F.avg_pool2d(group, 3, 2 ** (i + 1), 1)
        if attention is not None:
            pooled = pooled * (1 + enlarge(attention, pooled))
        z = F.conv2d(pooled, block.look[i].weight, block.look[i].bias, padding=1)
        z = (z - z.mean((2, 3), keepdim=True)) / (
            z.var((2, 3), correction=0, keepdim=True) + 1e-5
        ).sqrt()
        attention = torch.sigmoid(z)
        maps.append(enlarge(attention, x))
        parts.append(group * maps[-1])
    found, found_maps = block(x)
    assert torch.allclose(found, x + torch.cat(parts[::-1], dim=1), atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found_maps, maps[::-1], strict=True))


# ---- losses


def test_diversity_is_the_cosine_similarity_of_pairs_of_scales():
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand(2, 1, 4, 6, generator=generator) for _ in range(4)]
    values = []
    for i in range(4):
        for j in range(i):
            for a, b in zip(maps[i].numpy(), maps[j].numpy(), strict=True):
                values.append((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))
    assert float(diversity_loss(maps)) == pytest.approx(np.mean(values), rel=1e-5)
    apart = [torch.zeros(1, 1, 2, 2) for _ in range(4)]
    for k, m in enumerate(apart):
        m.view(-1)[k] = 1
    assert float(diversity_loss(apart)) == 0 and float(
        diversity_loss([apart[0]] * 4)
    ) == pytest.approx(1)


def test_alignment_moves_the_translation_only():
    a = [torch.rand(1, 1, 3, 3, requires_grad=True) for _ in range(4)]
    b = [torch.rand(1, 1, 3, 3, requires_grad=True) for _ in range(4)]
    loss = alignment_loss(a, b)
    want = np.mean(
        [np.abs(x.detach().numpy() - y.detach().numpy()).mean() for x, y in zip(a, b, strict=True)]
    )
    assert loss.item() == pytest.approx(want, rel=1e-5)
    loss.backward()
    assert all(x.grad is None and y.grad is not None for x, y in zip(a, b, strict=True))


def test_edges_are_cannys():
    picture = torch.full((2, 3, 64, 64), -0.5)
    picture[0, :, 16:48, 20:44] = 0.5
    picture[1] = pictures(1, 3, 64, 64)[0]
    found = edge_map(picture)
    assert found.shape == (2, 1, 64, 64) and set(found.unique().tolist()) == {0.0, 1.0}
    square = found[0, 0].bool().numpy()
    assert square[24:40, 19:21].any(axis=1).all() and square[15:17, 24:40].any(axis=0).all()
    assert not square[:12].any() and not square[22:42, 26:38].any()
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    grey = (((picture[1] * weights).sum(dim=0) + 1) * 127.5).round().numpy() / 255
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(grey, 2**0.5, mode="nearest")
    largest = np.hypot(ndimage.sobel(smooth, 0), ndimage.sobel(smooth, 1)).max()
    want = canny(grey, 2**0.5, 0.1 * largest, 0.2 * largest, mode="nearest")
    here = found[1, 0].bool().numpy()
    assert want.sum() > 100 and (want & here).sum() > 0.95 * max(want.sum(), here.sum())


def test_a_flat_picture_has_no_edges_and_no_gradient_loss():
    flat = torch.zeros(1, 3, 16, 16)
    assert edge_map(flat).sum() == 0
    assert float(gradient_alignment_loss(pictures(1, 3, 16, 16), edge_map(flat), 0.5)) == 0


def test_gradient_alignment_is_what_edges_lack_to_the_steepest_place_of_their_patch():
    translation = pictures(2, 3, 16, 24, seed=3)
    edges = (torch.rand(2, 1, 16, 24, generator=torch.Generator().manual_seed(0)) < 0.2).float()
    weights = np.array([0.299, 0.587, 0.114])[None, :, None, None]
    grey = np.pad(
        (translation.double().numpy() * weights).sum(axis=1), ((0, 0), (1, 1), (1, 1)), mode="edge"
    )
    across, down = grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2], grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1]
    size = np.sqrt(across**2 + down**2 + 1e-8)
    lacks = []
    for b, i, j in zip(*np.nonzero(edges[:, 0].numpy()), strict=True):
        patch = size[b, i // 8 * 8 : i // 8 * 8 + 8, j // 8 * 8 : j // 8 * 8 + 8]
        lacks.append(max(0.0, 0.6 - size[b, i, j] / (patch.max() + 0.01)))
    assert float(gradient_alignment_loss(translation, edges, 0.6)) == pytest.approx(
        np.mean(lacks), rel=1e-4
    )
    # an edge where the source has one costs nothing, whatever its contrast; beside it, or none at
    # all, does
    source, beside = torch.full((1, 3, 16, 16), -0.8), torch.full((1, 3, 16, 16), -0.8)
    source[..., 4:], beside[..., 2:] = 0.8, 0.8
    edges = edge_map(source)
    assert edges.sum() > 10
    loss = {
        k: float(gradient_alignment_loss(x, edges, 0.44))
        for k, x in {
            "same": source,
            "weaker": 0.1 * source,
            "beside": beside,
            "flat": 0 * source,
        }.items()
    }
    assert loss["same"] == loss["weaker"] == 0 and loss["beside"] > 0.3 and loss["flat"] > 0.4


def test_variation_is_squared():
    x = pictures(2, 3, 8, 12)
    a = x.double().numpy()
    want = (np.diff(a, axis=2) ** 2).mean() + (np.diff(a, axis=3) ** 2).mean()
    assert float(squared_variation(x)) == pytest.approx(want, rel=1e-5)


def similarity(x: Tensor, y: Tensor) -> float:
    """SSIM on [0,1] with a Gaussian window of 3 pixels (sigma 1.5), where it fits, by loops over
    the window."""
    line = np.exp(-(np.arange(-1, 2.0) ** 2) / 4.5)
    window = np.outer(line, line) / np.outer(line, line).sum()
    a, b = (z.double().numpy() / 2 + 0.5 for z in (x, y))

    def mean(z: np.ndarray) -> np.ndarray:
        h, w = z.shape[-2] - 2, z.shape[-1] - 2
        return sum(window[i, j] * z[..., i : i + h, j : j + w] for i in range(3) for j in range(3))

    ma, mb = mean(a), mean(b)
    va, vb, ab = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    return float(
        (
            (2 * ma * mb + 1e-4) * (2 * ab + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
        ).mean()
    )


def test_losses_of_the_step():
    method = PearlGAN(small(), {name: 2.0 for name in LOSSES}, late=0.5, **OPTIONS)
    forth, back = (sharpen(method.networks[name], 0.1) for name in ("generator", "inverse"))
    batch = pairs(2, SIZE)
    a, b = torch.cat([batch.thermal] * 3, dim=1), batch.visible
    with torch.no_grad():
        fake_b, a_encoder, a_decoder = forth(a, attention=True)
        fake_a, b_encoder, b_decoder = back(b, attention=True)
        back_a, fake_b_encoder, _ = back(fake_b, attention=True)
        back_b, fake_a_encoder, _ = forth(fake_a, attention=True)
    _, losses = next(method.training_step(batch, Moment(0, 5, 10)))
    assert set(losses) == set(LOSSES)
    want = {
        "cycle": F.smooth_l1_loss(back_a, a) + F.smooth_l1_loss(back_b, b),
        "tv": squared_variation(fake_a) + squared_variation(fake_b),
        "gradient": gradient_alignment_loss(fake_b, edge_map(a), 0.44)
        + gradient_alignment_loss(fake_a, edge_map(b), 0.44),
        "diversity": sum(diversity_loss(m) for m in (a_encoder, a_decoder, b_encoder, b_decoder)),
        "alignment": alignment_loss(a_encoder, fake_b_encoder)
        + alignment_loss(b_encoder, fake_a_encoder),
    }
    for name, value in want.items():
        assert torch.allclose(losses[name], 2 * value, rtol=1e-4), name
    assert float(losses["ssim"].detach()) == pytest.approx(
        2 * (2 - similarity(back_a, a) - similarity(back_b, b)), rel=1e-3
    )


def test_late_losses_begin_late():
    method = PearlGAN(small(), LOSSES, **OPTIONS)
    assert method.late == 0.25 and method.edge_threshold == 0.44
    begun = [
        set(next(method.training_step(pairs(1, SIZE), Moment(0, step, 8)))[1])
        for step in (0, 1, 2, 7)
    ]
    assert begun == [set(LOSSES) - {"ssim", "alignment"}] * 2 + [set(LOSSES)] * 2


def test_what_cannot_train_raises():
    with pytest.raises(
        ValueError, match="nothing trains before ssim and alignment begin; set late to 0"
    ):
        PearlGAN(small(), {"ssim": 1.0})
    with pytest.raises(ValueError, match=r"edge_threshold is 1.5, late is 0.25; expected 0 to 1"):
        PearlGAN(small(), LOSSES, edge_threshold=1.5)


@pytest.mark.parametrize("loss", ["adversarial", "cycle", "ssim", "gradient", "tv"])
def test_a_loss_alone_trains_both_translators(loss):
    method = PearlGAN(small(), {loss: 1.0}, late=0, **OPTIONS)
    assert loss in train(method, pairs(1, SIZE))[0]
    assert (
        ("discriminator_visible" in method.networks)
        == (loss == "adversarial")
        == bool(method.pools)
    )


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("late", [0.0, 1.0])
def test_every_weight_has_a_gradient(batch, late):
    values = train(PearlGAN(small(), LOSSES, late=late, **OPTIONS), pairs(batch, SIZE))[0]
    assert {"discriminator_visible", "discriminator_thermal"} < set(values)


def test_training_learns():
    history = train(
        PearlGAN(small(width=8), LOSSES, **OPTIONS), pairs(2, SIZE), steps=12, rate=1e-3
    )
    assert history[-1]["cycle"] < 0.95 * history[0]["cycle"]
