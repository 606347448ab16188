"""SCGAN: sizes, networks, each loss, the gradient penalty, stages, saliency."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from method_checks import count, pairs, pictures, train
from PIL import Image
from skimage.color import rgb2lab
from torch import Tensor, nn

from cmmfnet.data.augment import Crop
from cmmfnet.files.errors import UserError
from cmmfnet.methods import build_network
from cmmfnet.methods.method import StepContext
from cmmfnet.methods.saliency import SaliencyMaps, frequency_tuned
from cmmfnet.methods.scgan import (
    SCGAN,
    Convolution,
    Critic,
    SaliencyBranch,
    SCGANGenerator,
    gradient_penalty,
)

SMALL = {"method": "scgan", "width": 4, "levels": 7, "global_width": 4}
LOSSES = {"l1": 1.0, "attention": 0.5, "adversarial": 0.05}
OPTIONS = {"stage_two": 0.0, "discriminator_width": 4}
SIZE = 64

pytestmark = pytest.mark.filterwarnings("ignore:SCGAN's reference saliency")


def small(**options) -> SCGANGenerator:
    torch.manual_seed(0)
    return build_network(SMALL | options)


def scgan(losses: dict[str, float] | None = None, **options) -> SCGAN:
    return SCGAN(small(), LOSSES if losses is None else losses, **(OPTIONS | options))


# ---- networks


def test_sizes_are_the_papers():
    network = SCGANGenerator()
    assert SCGAN.size(network) == 57_270_525 and count(network) == 57_130_752
    assert SCGAN.size(network.features) == 17_120_713
    assert SCGAN.size(SaliencyBranch()) == 1_638_913
    assert SCGAN.size(Critic()) == 5_788_229 and count(Critic()) == 5_766_144
    assert SCGAN.paired and SCGAN.LOSSES == LOSSES | {"perceptual": 5.0}


@pytest.mark.parametrize("size", [(32, 32), (96, 160), (256, 64)])
@pytest.mark.parametrize("levels", [7, 9])
def test_generator(size, levels):
    network = small(levels=levels)
    network(pictures(4, 1, *size))  # running statistics that are no longer those of a fresh network
    network.eval()
    x = pictures(3, 1, *size)
    with torch.inference_mode():
        colour = network(x, None, None)
        assert (colour.shape, colour.dtype) == ((3, 3, *size), torch.float32)
        assert colour.abs().max() <= 1 and colour.std() > 1e-4
        assert torch.equal(colour, network(x))
        for i in range(3):
            assert (network(x[i : i + 1])[0] - colour[i]).abs().max() < 1e-5
        twin = copy.deepcopy(network)
        assert torch.equal(colour, twin(x))
        other = small(levels=levels).eval()
        assert not torch.equal(colour, other(x))
        other.load_state_dict(network.state_dict())
        assert torch.equal(colour, other(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert (network(x).float() - colour).abs().mean() < 0.05
        colour, maps = network(x, maps=True)
        assert [m.shape[1:] for m in maps] == [
            (c, size[0] // n, size[1] // n) for c, n in ((32, 8), (16, 4), (8, 2))
        ]
        seen = SaliencyBranch(4).eval()(maps)
        assert seen.shape == (3, 1, *size) and seen.min() > 0 and seen.max() < 1


def test_other_shapes_raise():
    for shape in ((1, 1, 48, 32), (1, 3, 32, 32)):
        with pytest.raises(ValueError, match="H and W multiples of 32"):
            small()(torch.zeros(shape))
    with pytest.raises(ValueError, match="levels is 6; expected 7 or more"):
        small(levels=6)


def test_generator_is_what_it_is_said_to_be():
    network = small(width=2, levels=9, global_width=2).eval()
    for i, norm in enumerate(m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        torch.manual_seed(i)
        norm.running_mean.normal_(std=0.1)
        norm.running_var.uniform_(0.5, 2)

    def apply(block: Convolution, x: Tensor, stride: int = 1, norm: bool = True) -> Tensor:
        pad = block.conv.weight.shape[-1] // 2
        y = F.conv2d(F.pad(x, (pad,) * 4, mode="reflect"), block.conv.weight, stride=stride)
        assert block.conv.bias is None and (block.norm is not None) == norm
        if norm:
            n = block.norm
            y = (y - n.running_mean.view(-1, 1, 1)) / (n.running_var.view(-1, 1, 1) + 1e-5).sqrt()
        return y

    def leaky(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.2 * x)

    x = pictures(1, 1, 256, 256)
    z = x
    for i, block in enumerate(network.features):
        z = leaky(apply(block, z, stride=2 if i in (2, 4, 7, 10, 13) else 1, norm=i > 0))
    assert z.shape == (1, 16, 8, 8) and len(network.features) == 14
    skips = [leaky(apply(network.encode[0], x, norm=False))]
    for i in range(1, 9):
        y = skips[-1] if i != 6 else torch.cat([skips[-1], z], dim=1)
        skips.append(leaky(apply(network.encode[i], y, stride=2, norm=i < 8)))
    assert [s.shape[-1] for s in skips] == [256, 128, 64, 32, 16, 8, 4, 2, 1]
    assert [s.shape[1] for s in skips] == [2, 4, 8, 16, 16, 16, 16, 16, 16]
    y = skips[8]
    for i in range(7, -1, -1):
        y = leaky(apply(network.decode[i], y.repeat_interleave(2, 2).repeat_interleave(2, 3)))
        y = torch.cat([y, skips[i]], dim=1)
    assert torch.allclose(network(x), torch.tanh(apply(network.last, y, norm=False)), atol=1e-5)


def test_convolutions_have_spectral_norm():
    for network in (small(), Critic(4), SaliencyBranch(4)):
        blocks = [m for m in network.modules() if isinstance(m, Convolution)]
        assert len(blocks) == sum(isinstance(m, nn.Conv2d) for m in network.modules())
        for block in blocks:
            assert 0.8 < torch.linalg.matrix_norm(block.eval().conv.weight.flatten(1), 2) < 1.2
    assert Critic(4)(torch.zeros(2, 1, 64, 96), torch.zeros(2, 3, 64, 96)).shape == (2, 1, 6, 10)


# ---- losses


class Slope(nn.Module):
    """A critic whose gradient is known: at one corner, for red x, 6 x times the thermal frame; else
    0."""

    def forward(self, thermal: Tensor, colour: Tensor) -> Tensor:
        return 3 * thermal[:, :, :1, :1] * colour[:, :1, :1, :1] ** 2


def test_gradient_penalty_is_the_formulas():
    thermal = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    real, fake = torch.full((2, 3, 4, 4), 0.5), torch.full((2, 3, 4, 4), 0.1)
    share = torch.tensor([0.25, 1.0]).view(2, 1, 1, 1)
    points = [0.25 * 0.5 + 0.75 * 0.1, 0.5]
    want = np.mean([(6 * t * x - 1) ** 2 for t, x in zip((1, 2), points, strict=True)])
    assert gradient_penalty(Slope(), thermal, real, fake, share).item() == pytest.approx(
        want, rel=1e-5
    )


def test_gradient_penalty_trains_the_critic():
    torch.manual_seed(0)
    critic, batch = Critic(4), pairs(2, SIZE)
    fake, share = torch.zeros_like(batch.visible), torch.rand(2, 1, 1, 1)
    adam = torch.optim.Adam(critic.parameters(), 1e-2)
    values = []
    for _ in range(12):
        adam.zero_grad()
        loss = gradient_penalty(critic, batch.thermal, batch.visible, fake, share)
        loss.backward()
        adam.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.7 * values[0]


def test_losses(random_vgg):
    method = scgan({"l1": 2.0, "attention": 3.0, "perceptual": 5.0, "adversarial": 7.0})
    for network in method.networks.values():
        # spectral and batch norm stand still, so that their numbers can be recomputed
        network.eval()
    batch, moment = pairs(2, SIZE), StepContext(4, 1, 2)
    generator, critic, branch = (
        method.networks[n] for n in ("generator", "discriminator", "saliency")
    )
    with torch.no_grad():
        output, maps = generator(batch.thermal, maps=True)
        looked = branch(maps)
        thermal, truth, colour = ((x + 1) / 2 for x in (batch.thermal, batch.visible, output))
        real, fake = critic(thermal, truth).mean(), critic(thermal, colour).mean()
    share = torch.tensor(
        [moment.rng(p).random() for p in batch.positions], dtype=torch.float32
    ).view(-1, 1, 1, 1)
    step = method.training_step(batch, moment)
    optimiser, losses = next(step)
    assert optimiser == "discriminator" and set(losses) == {"discriminator", "gradient_penalty"}
    assert torch.allclose(losses["discriminator"], fake - real, atol=1e-6)
    penalty = gradient_penalty(critic, thermal, truth, colour, share)
    assert torch.allclose(losses["gradient_penalty"], 10 * penalty, rtol=1e-4)
    optimiser, losses = next(step)
    assert optimiser == "generator" and set(losses) == {
        "l1",
        "attention",
        "perceptual",
        "adversarial",
    }
    assert torch.allclose(losses["l1"], 2 * (colour - truth).abs().mean(), rtol=1e-4)
    reference = frequency_tuned(batch.visible)
    want = 3 * (colour * looked - truth * reference).abs().mean()
    assert torch.allclose(losses["attention"], want, rtol=1e-4)
    assert torch.allclose(losses["adversarial"], -7 * fake, atol=1e-6)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def conv3_3(x: Tensor) -> Tensor:
        x = (x - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)
        for layer in random_vgg[:15]:
            x = layer(x)
        return x

    assert random_vgg[14].weight.shape[:2] == (16, 16) and isinstance(random_vgg[15], nn.ReLU)
    want = 5 * (conv3_3(colour) - conv3_3(truth)).abs().mean()
    assert torch.allclose(losses["perceptual"], want, rtol=1e-2)


# ---- stages


def test_stage_one_has_no_critic_and_leaves_it_as_it_is(random_vgg):
    method = scgan(SCGAN.LOSSES, stage_two=0.5)
    adam = {
        name: torch.optim.Adam(method.parameter_groups(name, None), 1e-3)
        for name in method.optimisers
    }
    assert list(method.optimisers) == ["discriminator", "generator"]
    before = copy.deepcopy(method.networks["discriminator"].state_dict())
    seen = []
    for step in range(4):
        names: list[str] = []
        for optimiser, losses in method.training_step(pairs(1, SIZE), StepContext(0, step, 4)):
            adam[optimiser].zero_grad()
            sum(losses.values()).backward()
            adam[optimiser].step()
            names += losses
        seen.append(names)
        same = all(
            torch.equal(a, before[k])
            for k, a in method.networks["discriminator"].state_dict().items()
        )
        assert same == (step < 2) == (not adam["discriminator"].state), step
    assert seen[0] == seen[1] == ["discriminator", "l1", "attention"]
    assert (
        seen[2]
        == seen[3]
        == ["discriminator", "gradient_penalty", "adversarial", "l1", "attention", "perceptual"]
    )


def test_what_cannot_train_raises():
    with pytest.raises(ValueError, match="stage 1 needs l1 or attention; set stage_two to 0"):
        SCGAN(small(), {"adversarial": 1.0})
    with pytest.raises(ValueError, match="stage_two is 10; expected 0 to 1"):
        SCGAN(small(), LOSSES, stage_two=10)


@pytest.mark.parametrize("batch", [1, 2])
def test_every_weight_has_a_gradient(batch):
    values = train(scgan(), pairs(batch, SIZE))[0]
    assert set(values) == {"discriminator", "gradient_penalty", *LOSSES}


@pytest.mark.parametrize(
    ("loss", "networks", "optimisers"),
    [
        ("l1", {"generator"}, ["generator"]),
        ("attention", {"generator", "saliency"}, ["generator"]),
        ("adversarial", {"generator", "discriminator"}, ["discriminator", "generator"]),
    ],
)
def test_a_loss_alone_needs_its_networks_only(loss, networks, optimisers):
    method = scgan({loss: 1.0})
    assert set(method.networks) == networks and list(method.optimisers) == optimisers
    assert loss in train(method, pairs(1, SIZE))[0]


def test_training_learns():
    history = train(scgan(), pairs(2, SIZE), steps=15, rate=2e-3)
    assert history[-1]["l1"] < 0.9 * history[0]["l1"]


# ---- saliency


def test_estimate_is_achantas():
    torch.manual_seed(0)
    picture = pictures(2, 3, 40, 48)
    picture[1] *= 0.2  # one thing in a dull picture
    picture[1, :, 10:20, 30:40] = torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1)
    found = frequency_tuned(picture)
    assert found.shape == (2, 1, 40, 48)
    assert torch.allclose(found.amax(dim=(1, 2, 3)), torch.ones(2))
    assert found[1, 0, 12:18, 32:38].mean() > 2 * found[1].mean()
    line = np.exp(-(np.arange(-6, 7) ** 2) / 2.0)
    line /= line.sum()
    for p, f in zip(picture, found, strict=True):
        lab = rgb2lab(p.permute(1, 2, 0).double().numpy() / 2 + 0.5)
        soft = np.pad(lab, ((6, 6), (6, 6), (0, 0)), mode="edge")
        soft = sum(w * soft[k : k + 40] for k, w in enumerate(line))
        soft = sum(w * soft[:, k : k + 48] for k, w in enumerate(line))
        distance = np.sqrt(((soft - lab.mean(axis=(0, 1))) ** 2).sum(axis=2))
        assert np.allclose(f[0].numpy(), distance / distance.max(), atol=2e-3)
    assert frequency_tuned(torch.zeros(1, 3, 16, 16)).abs().max() < 1e-2  # flat: nothing stands out


def test_the_estimate_is_said():
    with pytest.warns(
        UserWarning,
        match=r"frequency-tuned estimate of Achanta et al. \(CVPR 2009\).*saliency: FOLDER",
    ):
        SCGAN(small(), LOSSES)


@pytest.fixture
def maps(tmp_path):
    """A folder with one map, 40 x 60, and it."""
    whole = (np.indices((40, 60)).sum(axis=0) * 2).astype(np.uint8)
    Image.fromarray(whole).save(tmp_path / "one.png")
    return tmp_path, whole


def seen_in(name: str, crop: Crop):
    batch = pairs(1, 32)
    batch.names, batch.crops = [name], [crop]
    return batch


def test_maps_of_a_folder_are_cropped_as_the_pictures(maps, recwarn):
    folder, whole = maps
    found = SaliencyMaps(folder)(seen_in("one", Crop(4, 10, 32, 32, False)))
    assert (found.shape, found.dtype) == ((1, 1, 32, 32), torch.float32)
    assert np.allclose(found[0, 0].numpy(), whole[4:36, 10:42] / 255)
    mirrored = SaliencyMaps(folder)(seen_in("one", Crop(4, 10, 32, 32, True)))
    assert torch.equal(mirrored, found.flip(3))
    method = scgan({"attention": 1.0}, saliency=str(folder))
    assert not [w for w in recwarn if "saliency" in str(w.message)]
    batch = seen_in("one", Crop(4, 10, 32, 32, False))
    for network in method.networks.values():
        network.eval()
    _, losses = next(method.training_step(batch, StepContext(0, 0, 1)))
    output, taps = method.networks["generator"](batch.thermal, maps=True)
    looked = method.networks["saliency"](taps)
    want = ((output + 1) / 2 * looked - (batch.visible + 1) / 2 * found).abs().mean()
    assert torch.allclose(losses["attention"], want, rtol=1e-4)


def test_maps_that_do_not_fit_raise(maps):
    folder, _ = maps
    with pytest.raises(UserError, match=r"has no map for the frame two; expected two.png"):
        SaliencyMaps(folder)(seen_in("two", Crop(0, 0, 32, 32, False)))
    with pytest.raises(
        UserError, match=r"one.png is \(40, 60\) \(height, width\), smaller than its frame"
    ):
        SaliencyMaps(folder)(seen_in("one", Crop(20, 0, 32, 32, False)))
    with pytest.raises(UserError, match=r"is no folder; it should have a saliency map NAME.png"):
        scgan(saliency=str(folder / "none"))
