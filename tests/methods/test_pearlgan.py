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
from cmmfnet.methods.method import StepContext
from cmmfnet.methods.pearlgan import (
    AttentionTranslator,
    PearlGAN,
    TopDownAttention,
    alignment_loss,
    attended,
    attention_loss,
    edge_map,
    gradient_alignment_loss,
    likeness_loss,
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
    colour, maps, encoded = network(x, attention=True)
    assert torch.equal(colour, network(x))
    assert maps.shape == (2, 4, 8, 10) and encoded.shape == (2, 16, 8, 10)
    assert maps.min() > 0 and maps.max() < 1
    norms = [m for m in network.decoder.modules() if isinstance(m, nn.GroupNorm)]
    assert [(m.num_groups, m.num_channels) for m in norms] == [(8, 8), (4, 4)]
    full = [m for m in AttentionTranslator().decoder.modules() if isinstance(m, nn.GroupNorm)]
    assert [(m.num_groups, m.num_channels) for m in full] == [(32, 128), (32, 64)]


def test_attention_goes_from_coarse_to_fine():
    torch.manual_seed(1)
    block = sharpen(TopDownAttention(8))
    x = torch.randn(2, 8, 40, 36)
    conv = block.enter[0]
    y = F.instance_norm(F.conv2d(x, conv.weight, conv.bias))
    y = torch.where(y > 0, y, 0.25 * y)

    def enlarge(small: Tensor, large: Tensor) -> Tensor:
        return F.interpolate(small, large.shape[-2:], mode="bilinear", align_corners=False)

    attention, parts, maps = None, [], []
    for i in (3, 2, 1, 0):
        group = y[:, 2 * i : 2 * i + 2]
        pooled = F.avg_pool2d(group, 3, 2 ** (i + 1))
        if attention is not None:
            pooled = pooled * (1 + enlarge(attention, pooled))
        border = F.pad(pooled, (1, 1, 1, 1), mode="reflect")
        z = F.conv2d(border, block.look[i].weight, block.look[i].bias)
        z = (z - z.mean((2, 3), keepdim=True)) / (
            z.var((2, 3), correction=0, keepdim=True) + 1e-5
        ).sqrt()
        attention = torch.sigmoid(z)
        maps.append(enlarge(attention, x))
        parts.append(group * maps[-1])
    found, found_maps = block(x)
    assert torch.allclose(found, x + torch.cat(parts[::-1], dim=1), atol=1e-5)
    assert torch.allclose(found_maps, torch.cat(maps[::-1], dim=1), atol=1e-5)
    small, _ = block(torch.randn(1, 8, 2, 3))  # pooled to one pixel: its border repeats it
    assert small.shape == (1, 8, 2, 3) and small.isfinite().all()


# ---- losses


def test_attention_loss_asks_for_one_scale_at_every_place():
    maps = torch.rand(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    a = maps.double().numpy()
    want = 0.5 * (0.25 * (a.sum(axis=1) - 1) ** 2).mean() + 0.5 * (1 - a.max(axis=1)).mean()
    assert float(attention_loss(maps)) == pytest.approx(want, rel=1e-5)
    one = F.one_hot(torch.randint(3, (1, 4, 4)), 3).permute(0, 3, 1, 2).float()
    assert float(attention_loss(one)) == 0 and float(attention_loss(one * 0)) == 0.625


def test_attention_reads_features_by_its_maps():
    features, maps = torch.randn(2, 5, 4, 3), torch.rand(2, 3, 4, 3)
    found = attended(features, maps)
    for b in range(2):
        for i in range(3):
            mean = (features[b] * maps[b, i]).sum(dim=(1, 2)) / maps[b, i].sum()
            assert torch.allclose(found[b, i], mean / mean.norm(), atol=1e-6)
    units = torch.eye(3)[None]
    assert float(likeness_loss(units)) == 0
    assert float(likeness_loss(units[:, [0, 0, 1]])) == pytest.approx(2 / 9)
    assert float(likeness_loss(torch.stack([units[0, 0], -units[0, 0]])[None])) == 0  # clamped


def test_alignment_compares_a_scale_with_the_likest_scale():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1, 5, 4, 4, generator=generator) for _ in range(2))
    maps, others = (torch.rand(1, 3, 4, 4, generator=generator).requires_grad_() for _ in range(2))
    loss = alignment_loss(a, b, maps, others)
    x, y = (attended(f, m)[0].detach().numpy() for f, m in ((a, maps), (b, others)))
    products = x @ y.T
    lead = products.max(axis=1) - np.diag(products)
    weight = np.minimum(
        *(m.detach().amax(dim=(2, 3))[0].numpy() for m in (maps, others)), dtype=np.float64
    )
    like = [max(0, (z @ z.T - np.diag(np.diag(z @ z.T))).mean()) for z in (x, y)]
    want = (weight * lead).sum() / (weight.sum() + 1e-6) + 0.25 * sum(like)
    assert float(loss.detach()) == pytest.approx(want, rel=1e-4)
    loss.backward()
    assert maps.grad.abs().max() > 0 and others.grad.abs().max() > 0
    two = [torch.cat([x, y]) for x, y in ((a, b), (b, a), (maps, others), (others, maps))]
    mean = (loss + alignment_loss(b, a, others, maps)) / 2
    assert float(alignment_loss(*two).detach()) == pytest.approx(float(mean.detach()), rel=1e-5)


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


def draws(count: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, i]) for i in range(count)]


def test_a_flat_picture_has_no_edges_and_no_gradient_loss():
    flat, translation = torch.zeros(1, 3, 16, 16), pictures(1, 3, 16, 16).requires_grad_()
    assert edge_map(flat).sum() == 0
    loss = gradient_alignment_loss(translation, edge_map(flat), 0.5, draws(1))
    loss.backward()  # DDP waits for a gradient
    assert float(loss.detach()) == 0 and translation.grad.abs().max() == 0


def test_gradient_alignment_is_what_edges_lack_to_the_steepest_place_of_a_cell():
    translation = pictures(2, 3, 32, 48, seed=3)
    edges = torch.zeros(2, 1, 32, 48)
    edges[0, 0, 5, 9], edges[0, 0, 30, 40:44], edges[1, 0, 12, 20] = 1, 1, 1  # three cells of 4x6
    weights = np.array([0.299, 0.587, 0.114])[None, :, None, None]
    grey = np.pad(
        ((translation.double().numpy() + 1) / 2 * weights).sum(axis=1), [(0, 0), (1, 1), (1, 1)]
    )
    across, down = grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2], grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1]
    size = np.sqrt(across**2 + down**2 + 1e-6)

    def cell(b: int, row: int, column: int) -> float:
        part = (b, slice(4 * row, 4 * row + 4), slice(6 * column, 6 * column + 6))
        marks = edges[:, 0].numpy()[part]
        lack = np.maximum(0, 0.9 * marks - size[part] / size[part].max())
        return lack.sum() / (marks.sum() + 1)

    want = {
        round((first + cell(1, 3, 3)) / 2, 5)
        for first in (cell(0, 1, 1), cell(0, 7, 6), cell(0, 7, 7))
    }
    found = {
        round(float(gradient_alignment_loss(translation, edges, 0.9, draws(2, seed))), 5)
        for seed in range(12)
    }
    assert found <= want and len(found) > 1  # of the first picture any cell that has an edge
    # an edge where the source has one costs nothing, whatever its contrast; a flat picture does
    source = torch.full((1, 3, 16, 16), -0.8)
    source[..., 4:] = 0.8
    edges = edge_map(source)
    assert edges.sum() > 10
    loss = {
        k: float(gradient_alignment_loss(x, edges, 0.44, draws(1)))
        for k, x in {"same": source, "weaker": 0.1 * source, "flat": 0 * source - 1}.items()
    }
    assert loss["same"] == loss["weaker"] == 0 and loss["flat"] == 0  # nothing to compare with


def test_variation_is_squared():
    x = pictures(2, 3, 8, 12)
    a = x.double().numpy()
    want = 2 * ((np.diff(a, axis=2) ** 2).mean() + (np.diff(a, axis=3) ** 2).mean())
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
        fake_b, maps_a, encoded_a = forth(a, attention=True)
        fake_a, maps_b, encoded_b = back(b, attention=True)
        back_a, _, encoded_fake_b = back(fake_b, attention=True)
        back_b, _, encoded_fake_a = forth(fake_a, attention=True)
    maps_a, maps_b = maps_a[:, :3], maps_b[:, :3]  # without the coarsest
    moment = StepContext(0, 5, 10)
    cells = [moment.rng(position) for position in batch.positions]
    _, losses = next(method.training_step(batch, moment))
    assert set(losses) == set(LOSSES)
    want = {
        "cycle": F.smooth_l1_loss(back_a, a) + F.smooth_l1_loss(back_b, b),
        "tv": squared_variation(fake_a) + squared_variation(fake_b),
        "diversity": attention_loss(maps_a) + attention_loss(maps_b),
        "alignment": alignment_loss(encoded_a, encoded_fake_a, maps_a, maps_b)
        + alignment_loss(encoded_b, encoded_fake_b, maps_b, maps_a),
    }
    want["gradient"] = gradient_alignment_loss(
        fake_b, edge_map(a), 0.44, cells
    ) + gradient_alignment_loss(fake_a, edge_map(b), 0.44, cells)
    for name, value in want.items():
        assert torch.allclose(losses[name], 2 * value, rtol=1e-4), name
    assert float(losses["ssim"].detach()) == pytest.approx(
        2 * (2 - similarity(back_a, a) - similarity(back_b, b)), rel=1e-3
    )


def test_late_losses_begin_late():
    method = PearlGAN(small(), LOSSES, **OPTIONS)
    assert method.late == 0.25 and method.edge_threshold == 0.44
    begun = [
        set(next(method.training_step(pairs(1, SIZE), StepContext(0, step, 8)))[1])
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
