"""LKAT-GAN: sizes, branches against plain PyTorch, losses, what ``faithful`` adds."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from method_checks import check_generator, count, pairs, pictures, sharpen, train
from test_ticcgan import check_losses_and_order
from torch import Tensor, nn

from cmmfnet.methods import build_network
from cmmfnet.methods.lkatgan import (
    LKATGAN,
    AttentionResidual,
    AttentionUNet,
    LargeKernelUNet,
    LKATGenerator,
    TokenPainter,
)  # fmt: skip
from cmmfnet.methods.method import StepContext

SMALL = {
    "method": "lkatgan", "size": 32, "width": 8, "blocks": (1, 1, 1), "kernel": 5, "patch": 4,
    "vit": (16, 2, 2), "decoder": (8, 1, 2),
}  # fmt: skip
LOSSES = {"adversarial": 0.03, "l1": 1.0, "tv": 1.0}
OPTIONS: dict = {}
SIZE = 32


def small(**options) -> LKATGenerator:
    torch.manual_seed(0)
    return build_network(SMALL | options)


def total(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_sizes_are_the_papers():
    with torch.device("meta"):
        network = LKATGenerator(faithful=True)
        assert total(network) == 83_635_241  # beside the fixed positions
        assert total(network.attention) == 12_709_987 - 9_438_915
        assert (
            total(network.painter) == 66_402_816 - (65 + 64 * 0.5) * 512 - 256
        )  # without positions and mask token
        encoder = ("down1", "encode1", "down2", "encode2", "down3", "encode3")
        assert sum(total(getattr(network.unet, name)) for name in encoder) == 3_441_088
        assert total(network.unet) == 4_571_715 - 3_587
        assert sum(b.numel() for b in network.buffers()) == (64 + 64 * 0.5) * 512
        # without layers that no output reaches, and one channel in place of three equal ones
        assert (
            count(LKATGenerator())
            == total(LKATGenerator())
            == 83_635_241 - 9_438_915 - 3_587 - 256 - 2 * 64
        )
        method = LKATGAN(LKATGenerator(), LOSSES)
        assert count(method.networks["discriminator"]) == 2_767_809
        assert method.pools["pairs"].size == 50


@pytest.mark.parametrize("options", [{}, {"faithful": True}, {"size": 64, "patch": 8}], ids=str)
def test_generator(options):
    network = sharpen(small(**options), 0.1)
    check_generator(network, network.fixed_size, network.fixed_size, buffers=True)
    assert not set(network.state_dict()) & {
        name for name, _ in network.named_buffers()
    }  # computed, not stored


@pytest.mark.parametrize("shape", [(1, 1, 64, 64), (1, 1, 32, 40), (1, 2, 32, 32), (1, 32, 32)])
def test_other_shapes_raise(shape):
    with pytest.raises(ValueError, match=r"expected \(B,1,32,32\)"):
        small()(torch.zeros(shape))


@pytest.mark.parametrize(("size", "patch"), [(36, 3), (48, 16), (100, 16)])
def test_sizes_that_do_not_fit_raise(size, patch):
    with pytest.raises(ValueError, match="multiple of 8 and of 2 x patch"):
        small(size=size, patch=patch)


def norm(x: Tensor) -> Tensor:
    return F.instance_norm(x)


def conv(x: Tensor, layer: nn.Conv2d, stride: int = 1) -> Tensor:
    return F.conv2d(x, layer.weight, layer.bias, stride=stride, padding=layer.weight.shape[-1] // 2)


def double(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def test_large_kernel_unet():
    unet, x = sharpen(LargeKernelUNet(1, 4, (1, 2, 1), 5), 0.3), pictures(2, 1, 32, 32)

    def fall(y: Tensor, part: nn.Module) -> Tensor:
        y = F.gelu(norm(conv(y, part.widen)))
        return F.gelu(norm(conv(y, part.stride, 2)))

    def large(y: Tensor, block: nn.Module) -> Tensor:
        z = F.gelu(norm(conv(norm(y), block.enter)))
        assert block.depthwise.weight.shape[-1] == 5
        z = F.conv2d(z, block.depthwise.weight, block.depthwise.bias, padding=2, groups=y.shape[1])
        return y + F.gelu(norm(conv(F.gelu(z), block.leave)))

    def feed(y: Tensor, block: nn.Module) -> Tensor:
        return y + norm(conv(F.gelu(norm(conv(norm(y), block.widen))), block.narrow))

    def stage(y: Tensor, blocks: nn.Sequential, pairs: int) -> Tensor:
        assert len(blocks) == 2 * pairs
        for i in range(pairs):
            y = feed(large(y, blocks[2 * i]), blocks[2 * i + 1])
        return y

    e1 = stage(fall(x, unet.down1), unet.encode1, 1)
    e2 = stage(fall(e1, unet.down2), unet.encode2, 2)
    y = stage(fall(e2, unet.down3), unet.encode3, 1)
    y = stage(conv(double(y), unet.up2), unet.decode2, 1) + e2
    y = stage(conv(double(y), unet.up1), unet.decode1, 2) + e1
    y = feed(large(feed(large(y, unet.close1), unet.close), unet.close2), unet.close)
    assert torch.allclose(unet(x), y, atol=1e-3) and y.shape == (2, 4, 16, 16)


def gated(x: Tensor, part: AttentionResidual) -> Tensor:
    squeeze, excite = part.squeeze, part.excite
    assert squeeze.weight.shape[0] * 4 == x.shape[1]
    v = F.gelu(x.mean(dim=(2, 3)) @ squeeze.weight[:, :, 0, 0].T + squeeze.bias)
    y = x * torch.sigmoid(v @ excite.weight[:, :, 0, 0].T + excite.bias)[:, :, None, None]
    return x + y * torch.sigmoid(y.max(dim=1, keepdim=True).values)


def test_attention_unet():
    unet, x = sharpen(AttentionUNet(4), 0.3), torch.randn(2, 4, 16, 16)

    def layer(y: Tensor, part: nn.Sequential, stride: int = 1) -> Tensor:
        return F.gelu(norm(conv(y, part[0], stride)))

    d1 = gated(layer(x, unet.down1[0]), unet.down1[1])
    d2 = gated(layer(d1, unet.down2[0], 2), unet.down2[1])
    d3 = gated(layer(d2, unet.down3[0], 2), unet.down3[1])
    assert [d.shape[1:] for d in (d1, d2, d3)] == [(8, 16, 16), (16, 8, 8), (32, 4, 4)]
    y = layer(double(d3), unet.up3) + d2
    y = layer(double(y), unet.up2) + d1
    assert torch.allclose(unet(x), layer(double(y), unet.up1), atol=1e-4)


def test_positions_are_sines_and_cosines_of_row_and_column():
    painter = TokenPainter(2, 12, 8, 4, 8, 1, 2, 4, 1, 2)  # 3 x 3 tokens
    assert painter.positions.shape == (1, 9, 8) and painter.decoder_positions.shape == (1, 9, 4)
    for row in range(3):
        for column in range(3):
            want = [
                f(i / 10000 ** (2 * k / 4))
                for i in (column, row)
                for f in (math.sin, math.cos)
                for k in range(2)
            ]
            assert painter.positions[0, 3 * row + column].tolist() == pytest.approx(want, abs=1e-6)


def test_a_token_paints_a_channel():
    painter, x = sharpen(TokenPainter(2, 12, 8, 4, 8, 1, 2, 4, 1, 2)), torch.randn(2, 2, 12, 12)
    seen: list[Tensor] = []
    for module in (painter.blocks, painter.decoder, painter.paint):
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    y = painter(x)
    entered, narrowed, last = seen
    assert y.shape == (2, 9, 8, 8) and entered.shape == (2, 10, 8) and narrowed.shape == (2, 9, 4)
    assert torch.equal(
        entered[:, 0], painter.token[0].expand(2, -1)
    )  # the class token has no position
    patch = x[1, :, 4:8, 8:12]  # row 1, column 2: token 5
    want = (
        (patch * painter.embed.weight).sum(dim=(1, 2, 3))
        + painter.embed.bias
        + painter.positions[0, 5]
    )
    assert torch.allclose(entered[1, 6], want, atol=1e-4)
    want = painter.paint.weight @ last[1, 5] + painter.paint.bias
    assert torch.allclose(y[1, 5], want.view(8, 8), atol=1e-4)


def test_branches_are_joined_and_clipped_in_evaluation_only():
    network, x = sharpen(small(), 0.1).train(), pictures(2, 1, 32, 32)
    y = network.unet(x)
    joined = torch.cat([network.attention(y), network.painter(y)], dim=1)
    assert joined.shape == (2, 8 + 16, 32, 32)
    want = torch.einsum(
        "oi,bihw->bohw", network.last.weight[:, :, 0, 0], joined
    ) + network.last.bias.view(3, 1, 1)
    assert torch.allclose(network(x), want, atol=1e-4)
    nn.init.constant_(network.last.bias, 3.0)
    assert network(x).max() > 2
    assert torch.equal(network.eval()(x), network.train()(x).clamp(-1, 1))


def test_faithful_computes_the_same_and_does_not_train_what_it_never_uses():
    network, x = sharpen(small(faithful=True), 0.1), pictures(2, 1, 32, 32)
    unused = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert unused and all(name.startswith("unused.") for name in unused)
    network(x).square().mean().backward()
    for name, p in network.named_parameters():
        assert (p.grad is None) == (name in unused), name
    twin = sharpen(small(), 0.1)
    state = {k: v for k, v in network.state_dict().items() if not k.startswith("unused.")}
    state["unet.down1.widen.weight"] = state["unet.down1.widen.weight"].sum(dim=1, keepdim=True)
    twin.load_state_dict(state)
    assert torch.allclose(network(x), twin(x), atol=1e-3)


@pytest.mark.parametrize("faithful", [False, True])
def test_losses_and_order(random_vgg, faithful):
    weights = {"adversarial": 2.0, "l1": 3.0, "perceptual": 5.0, "tv": 7.0}
    method = LKATGAN(sharpen(small(), 0.1), weights, faithful=faithful)
    sharpen(method.networks["discriminator"], 0.1)
    check_losses_and_order(method, weights, random_vgg, faithful, gan="bce")


@pytest.mark.parametrize("batch_size", [1, 3])
def test_step_gives_every_parameter_a_gradient(batch_size):
    train(LKATGAN(small(), LOSSES), pairs(batch_size, SIZE))


def test_it_learns_a_batch():
    method = LKATGAN(sharpen(small(), 0.1), {"l1": 1.0, "adversarial": 0.03})
    history = train(method, pairs(2, SIZE), 25, rate=5e-3)
    assert history[-1]["l1"] < 0.5 * history[0]["l1"]


def test_its_paper_has_no_ssim_and_a_recipe_may_add_it():
    assert LKATGAN.LOSSES["ssim"] == 0
    method = LKATGAN(small(), {"l1": 1.0, "ssim": 1.0})
    _, losses = next(method.training_step(pairs(1, 32), StepContext(0, 0, 1)))
    assert set(losses) == {"l1", "ssim"} and 0 < float(losses["ssim"].detach()) < 2
