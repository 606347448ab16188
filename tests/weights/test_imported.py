"""cmmfnet import-weights: random checkpoints with the official key names, by plain copies of the
official layouts."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from cmmfnet.cli import main
from cmmfnet.files.errors import UserError
from cmmfnet.weights.files import load_model
from cmmfnet.weights.imported import import_weights


def named(**parts: nn.Module) -> nn.Module:
    module = nn.Module()
    for name, part in parts.items():
        module.add_module(name, part)
    return module


def block(width: int, act: type[nn.Module] = nn.ReLU, dropout: bool = False) -> nn.Module:
    middle = [nn.Dropout(0.5)] if dropout else []
    layers = [
        nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width), act(), *middle,
        nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width),
    ]  # fmt: skip

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv_block = nn.Sequential(*layers)

        def forward(self, x):
            return x + self.conv_block(x)

    return Block()


def enter(inputs: int, width: int, act: type[nn.Module] = nn.ReLU) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, width, 7)
    return [nn.ReflectionPad2d(3), conv, nn.InstanceNorm2d(width), act()]


def down(a: int, b: int, act: type[nn.Module] = nn.ReLU) -> list[nn.Module]:
    return [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.InstanceNorm2d(b), act()]


def up(a: int, b: int, tracked: bool = False) -> list[nn.Module]:
    conv = nn.ConvTranspose2d(a, b, 3, stride=2, padding=1, output_padding=1)
    return [conv, nn.InstanceNorm2d(b, track_running_stats=tracked), nn.ReLU()]


def leave(width: int) -> list[nn.Module]:
    return [nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh()]


def cyclegan() -> nn.Module:
    layers = [*enter(3, 4), *down(4, 8), *down(8, 16), block(16), block(16)]
    return named(model=nn.Sequential(*layers, *up(16, 8), *up(8, 4), *leave(4)))


def ticcgan() -> nn.Module:
    """Global network, enhancer down and up, instance norms with running statistics in between."""
    whole = [*enter(3, 8), *down(8, 16), *down(16, 32), *down(32, 64), block(64)]
    whole += [*up(64, 32, True), *up(32, 16), *up(16, 8)]
    last = [block(8), block(8), *up(8, 4), *leave(4)]
    fine = nn.Sequential(*enter(3, 4), *down(4, 8))
    return named(model=nn.Sequential(*whole), model1_1=fine, model1_2=nn.Sequential(*last))


class UNetBlock(nn.Module):
    def __init__(self, outer: int, inner: int, inside: nn.Module | None, inputs: int = 0):
        super().__init__()
        self.outermost = bool(inputs)
        first = nn.Conv2d(inputs or outer, inner, 4, stride=2, padding=1, bias=False)
        wide = 2 * inner if inside is not None else inner
        last = nn.ConvTranspose2d(wide, outer, 4, stride=2, padding=1, bias=self.outermost)
        if self.outermost:
            layers = [first, inside, nn.ReLU(), last, nn.Tanh()]
        elif inside is None:
            layers = [nn.LeakyReLU(0.2), first, nn.ReLU(), last, nn.BatchNorm2d(outer)]
        else:
            layers = [nn.LeakyReLU(0.2), first, nn.BatchNorm2d(inner), inside]
            layers += [nn.ReLU(), last, nn.BatchNorm2d(outer)]
        self.model = nn.Sequential(*layers)

    def forward(self, x):
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], dim=1)


def pix2pix() -> nn.Module:
    """Five levels. Batch norms in training mode on one picture, as the original tests."""
    inner = UNetBlock(32, 32, None)
    for outer, wide in ((16, 32), (8, 16), (4, 8)):
        inner = UNetBlock(outer, wide, inner)
    return named(model=UNetBlock(3, 4, inner, inputs=3))


def i2vgan() -> nn.Module:
    class Double(nn.Module):
        def __init__(self, channels: int):
            super().__init__()
            self.register_buffer("filt", torch.ones(channels, 1, 4, 4))

        def forward(self, x):
            return nn.functional.interpolate(x, scale_factor=2, mode="bilinear")

    layers = [*enter(3, 4), *down(4, 8), *down(8, 16)]
    layers += [block(16, dropout=True) for _ in range(2)]
    for a, b in ((16, 8), (8, 4)):
        conv = nn.Conv2d(a, b, 3, padding=1)
        layers += [Double(a), conv, nn.InstanceNorm2d(b), nn.ReLU()]
    return named(model=nn.Sequential(*layers, *leave(4)))


ORIGINALS = {"cyclegan": cyclegan, "ticcgan": ticcgan, "pix2pix": pix2pix, "i2vgan": i2vgan}


def original(name: str, x: torch.Tensor) -> tuple[dict, torch.Tensor]:
    """A random checkpoint, and what the original makes of x."""
    torch.manual_seed(0)
    network = ORIGINALS[name]()
    for parameter in network.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.1)
    network.train(name in ("pix2pix", "ticcgan"))
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    state = OrderedDict((key, value.clone()) for key, value in network.state_dict().items())
    with torch.no_grad():
        if name == "ticcgan":
            half = nn.functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
            return state, network.model1_2(network.model1_1(x) + network.model(half))
        return state, network.model(x)


@pytest.mark.parametrize("name", ORIGINALS)
def test_an_imported_generator_paints_what_the_original_paints(tmp_path, name, capsys):
    x = torch.rand(1, 1, 64, 64) * 2 - 1
    state, want = original(name, x.expand(-1, 3, -1, -1))
    torch.save(state, file := tmp_path / "latest_net_G.pth")
    out = tmp_path / "model.safetensors"
    assert main(["import-weights", str(file), "--method", name, "-o", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    with torch.inference_mode():
        found = load_model(out).network(x)
    assert torch.allclose(found, want, atol=1e-4)


def pearlgan(width: int = 4) -> tuple[dict, dict]:
    def attention(channels: int) -> nn.Module:
        looks = {
            f"bottlenec{i}": nn.Sequential(
                nn.ReflectionPad2d(1), nn.Conv2d(channels // 4, 1, 3), nn.InstanceNorm2d(1)
            )
            for i in (1, 2, 3, 4)
        }
        norm = nn.InstanceNorm2d(channels)
        return named(
            conv=nn.Sequential(nn.Conv2d(channels, channels, 1), norm, nn.PReLU()), **looks
        )

    w = 4 * width
    layers = [*enter(3, width, nn.PReLU), *down(width, 2 * width, nn.PReLU)]
    layers += [*down(2 * width, w, nn.PReLU), attention(w)]
    blocks = nn.Sequential(block(w, nn.PReLU))
    rises = []
    for a, b in ((w, 2 * width), (2 * width, width)):
        rises += [nn.ConvTranspose2d(a, b, 4, stride=2, padding=1), nn.GroupNorm(b, b), nn.PReLU()]
    painted = nn.Sequential(block(w, nn.PReLU), block(w, nn.PReLU), *rises, *leave(width))
    encoder = named(model=nn.Sequential(*layers), model_postfix=blocks)
    return encoder.state_dict(), named(model_att=attention(w), model=painted).state_dict()


def test_pearlgan_comes_in_two_files(tmp_path):
    files = tmp_path / "encoder.pth", tmp_path / "decoder.pth"
    states = pearlgan()
    for file, state in zip(files, states, strict=True):
        torch.save(state, file)
    network = load_model(
        import_weights(*files, method="pearlgan", out=tmp_path / "m.safetensors")
    ).network
    found = network.state_dict()
    coarsest = states[0]["model.10.bottlenec1.1.weight"]
    assert torch.equal(found["encoder.1.look.3.weight"], coarsest)
    assert torch.equal(found["decoder.0.look.0.bias"], states[1]["model_att.bottlenec4.1.bias"])
    assert torch.equal(found["decoder.2.7.weight"], states[1]["model.9.weight"])
    assert network(torch.zeros(1, 1, 32, 32)).shape == (1, 3, 32, 32)
    with pytest.raises(UserError, match="pearlgan is given 1 files; expected 2"):
        import_weights(files[0], method="pearlgan", out=tmp_path / "n.safetensors")


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("harmed"),))


def test_what_is_no_checkpoint_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "model.safetensors"
    state = cyclegan().state_dict()
    for name, content, said in (
        (
            "harm.pth",
            {"model.1.weight": Harmful()},
            "no checkpoint of plain tensors: .*Python objects, which could run",
        ),
        ("list.pth", [torch.zeros(2)], "holds no dictionary of tensors"),
        ("other.pth", {"weight": torch.zeros(2)}, "no checkpoint of the official cyclegan"),
        ("more.pth", state | {"model.9.x": torch.zeros(2)}, "1 are not known .*layers.9.x"),
        ("less.pth", {k: v for k, v in state.items() if k != "model.4.bias"}, "1 tensors are mis"),
        ("shape.pth", state | {"model.4.bias": torch.zeros(3)}, r"is \(3,\); expected \(8,\)"),
    ):
        torch.save(content, tmp_path / name)
        with pytest.raises(UserError, match=said):
            import_weights(tmp_path / name, method="cyclegan", out=out)
        assert not out.exists() and not (tmp_path / "harmed").exists()
    with pytest.raises(UserError, match=r"no.pth does not exist"):
        import_weights(tmp_path / "no.pth", method="cyclegan", out=out)
    with pytest.raises(UserError, match="method is 'lkatgan'; expected one of pix2pix"):
        import_weights(tmp_path / "no.pth", method="lkatgan", out=out)
