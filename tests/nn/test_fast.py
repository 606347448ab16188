"""Fast twins against their plain modules: values and gradients.

Everywhere: their fallbacks on the CPU. With Triton: the kernels in its interpreter, in a process of
its own. On CUDA: the kernels themselves, in every dtype, layout and size.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cmmfnet.methods import build_network
from cmmfnet.nn import blocks, losses, patchgan, perceptual, transformer, unet
from cmmfnet.nn.fast import modules
from cmmfnet.nn.fast.modules import FAST, accelerate

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
LAYOUTS = ("contiguous", "channels_last")
TINY = {
    "method": "cmmfnet", "channels": (64, 64, 16), "encoder_blocks": (1, 1, 1),
    "decoder_blocks": (1, 1, 0), "kernels": (5, 5, 5), "vit_depth": 1, "vit_width": 32,
    "vit_heads": 2, "global_size": 32, "text_width": 24, "text_length": 4, "tail": 32,
}  # fmt: skip
RELEASED = TINY | {
    "stem": "vgg16", "text": "clip-tags", "words": ["tree", "car"], "ci": "image_query",
    "modulation": True, "local_contrast": True, "classes": 25, "regions": True,
}  # fmt: skip


class Call(nn.Module):
    """A module of ``parts``, whose forward is a function of them and of tensors."""

    def __init__(self, function: Callable, **parts: nn.Module):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, *x: Tensor):
        return self.function(self, *x)


def conv(inputs: int, outputs: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2)


def joined(channels: int, outputs: int = 64) -> Call:
    return Call(
        lambda m, x, skip: m.step(m.up, x, skip, m.join), step=unet.UpAndJoin(),
        up=conv(2 * channels, channels), join=conv(2 * channels, outputs, 1),
    )  # fmt: skip


def painted(tail: int, between: Callable | None = None) -> Call:
    return Call(
        lambda m, x: m.step(m.up, x, m.last, between), step=unet.UpAndPaint(), up=conv(64, tail),
        last=conv(tail, 3),
    )  # fmt: skip


def narrow_vgg() -> nn.Sequential:
    """VGG-16's layers with an eighth of their channels."""
    layers = perceptual.feature_layers("vgg16")[:23]
    for i, layer in enumerate(layers):
        if isinstance(layer, nn.Conv2d):
            layers[i] = conv(3 if i == 0 else layer.in_channels // 8, layer.out_channels // 8)
    return layers.eval().requires_grad_(False)


def distance(mode: str = "l1") -> nn.Module:
    before = perceptual.load_features
    perceptual.load_features = lambda name, folder: narrow_vgg()
    try:
        return perceptual.Perceptual("vgg16", mode, layers="family")
    finally:
        perceptual.load_features = before


def with_text(network: nn.Module) -> Call:
    ids, mask = torch.tensor([[0, 1], [1, 0]]), torch.tensor([[True, True], [True, False]])

    def call(m: Call, x: Tensor):
        if "words" not in network_of(m):
            text = torch.linspace(-1, 1, 2 * 3 * 24).view(2, 3, 24).to(x)
            return m.network(x, text, torch.ones(2, 3, dtype=torch.bool, device=x.device))
        return m.network(x, m.network.embed_tags(ids.to(x.device)), mask.to(x.device))

    def network_of(m: Call) -> tuple[str, ...]:
        return ("words",) if m.network.words else ()

    return Call(call, network=network)


@dataclass
class Case:
    """A plain module, and shapes of its inputs: one list for each call."""

    make: Callable[[], nn.Module]
    shapes: list[list[tuple[int, ...]]]
    small: bool = True
    """Whether the interpreter runs it in some seconds."""
    inputs_have_gradients: bool = True
    error: float = 1.0
    """Factor on the errors allowed."""


def maps(*sizes: tuple[int, ...]) -> list[list[tuple[int, ...]]]:
    return [[size] for size in sizes]


RAGGED = ((2, 64, 9, 13), (1, 64, 16, 16))
CASES = {
    "large kernel": Case(lambda: blocks.LargeKernelBlock(64, 5), maps(*RAGGED, (3, 64, 24, 40))),
    "large kernel of 128": Case(
        lambda: blocks.LargeKernelBlock(128, 13), maps((2, 128, 20, 21)), False
    ),
    "large kernel, separate": Case(
        lambda: blocks.LargeKernelBlock(12, 13), maps((2, 12, 11, 18), (1, 12, 40, 33))
    ),
    "large kernel of 31": Case(lambda: blocks.LargeKernelBlock(3, 31), maps((1, 3, 20, 40))),
    "large kernel of 3": Case(lambda: blocks.LargeKernelBlock(4, 3), maps((1, 4, 8, 8))),
    "feed-forward": Case(lambda: blocks.ConvFFN(64), maps(*RAGGED)),
    "feed-forward of 128": Case(lambda: blocks.ConvFFN(128), maps((2, 128, 20, 21)), False),
    "feed-forward, separate": Case(
        lambda: blocks.ConvFFN(10), maps((2, 10, 9, 13), (1, 10, 130, 127))
    ),
    "stage": Case(lambda: blocks.Stage(64, 1, 5), maps((2, 64, 9, 13)), False),
    "downsample of 1": Case(
        lambda: blocks.Downsample(1, 24),
        maps((2, 1, 18, 22), (1, 1, 80, 64)),
        inputs_have_gradients=False,
        error=3,
    ),  # the norm takes its scale away
    "downsample of 2": Case(
        lambda: blocks.Downsample(2, 64), maps((2, 2, 18, 22)), inputs_have_gradients=False
    ),
    "downsample of 64": Case(lambda: blocks.Downsample(64, 64), maps((2, 64, 10, 14))),
    "downsample, separate": Case(lambda: blocks.Downsample(12, 20), maps((1, 12, 10, 14))),
    "instance norm": Case(
        lambda: patchgan.InstanceNorm(5, affine=True), maps((2, 5, 9, 13), (1, 5, 130, 127))
    ),
    "resize": Case(
        lambda: Call(lambda m, x: m.step(x, (9, 21)), step=unet.Resize()),
        maps((2, 5, 4, 7), (1, 2, 12, 30)),
    ),
    "guide": Case(
        lambda: Call(lambda m, x, y, a, b: m.step(x, y, a, b), step=unet.Guide()),
        [[(2, 5, 9, 13), (2, 5, 4, 7), (2, 5), (2, 5)]],
    ),
    "guide, added": Case(
        lambda: Call(lambda m, x, y: m.step(x, y), step=unet.Guide()),
        [[(2, 5, 9, 13), (2, 5, 4, 7)]],
    ),
    "join": Case(lambda: joined(64), [[(2, 128, 5, 7), (2, 64, 10, 14)]]),
    "join, separate": Case(lambda: joined(10, 20), [[(1, 20, 5, 7), (1, 10, 10, 14)]]),
    "sum": Case(
        lambda: Call(
            lambda m, x, skip: m.step(m.up, x, skip, None), step=unet.UpAndJoin(), up=conv(8, 4)
        ),
        [[(1, 8, 5, 7), (1, 4, 10, 14)]],
    ),
    "paint": Case(lambda: painted(32), maps((2, 64, 5, 9), (1, 64, 8, 40))),
    "paint, separate": Case(lambda: painted(12), maps((1, 64, 5, 9))),
    "paint, with something between": Case(lambda: painted(32, torch.sin), maps((1, 64, 5, 9))),
    "side by side": Case(
        lambda: Call(
            lambda m, x: sum(m.step(m.a, m.b, x)),
            step=unet.SideBySide(),
            a=conv(3, 4),
            b=conv(3, 4),
        ),
        maps((2, 3, 9, 13)),
    ),
    "transformer block": Case(
        lambda: transformer.TransformerBlock(32, 2), maps((2, 9, 32), (1, 16, 32))
    ),
    "cross block": Case(
        lambda: Call(lambda m, q, k: m.block(q, k, k), block=transformer.CrossBlock(32, 2)),
        [[(2, 9, 32), (2, 5, 32)]],
    ),
    "picture losses": Case(
        lambda: Call(
            lambda m, x, y: torch.stack(list(m.losses(x.tanh(), y.tanh()).values())),
            losses=losses.PictureLosses(("l1", "tv", "ssim")),
        ),
        [[(2, 3, 20, 17), (2, 3, 20, 17)]],
    ),
    # signs of differences, and which pixel a pool takes, turn over
    "perceptual": Case(
        lambda: Call(lambda m, x, y: m.distance(x.tanh(), y.tanh().detach()), distance=distance()),
        [[(2, 3, 22, 35), (2, 3, 22, 35)]],
        small=False,
        error=10,
    ),
    "perceptual of unit length": Case(
        lambda: Call(
            lambda m, x, y: m.distance(x.tanh(), y.tanh().detach()), distance=distance("unit")
        ),
        [[(2, 3, 22, 35), (2, 3, 22, 35)]],
        small=False,
        error=10,
    ),
    "network": Case(
        lambda: with_text(build_network(TINY)),
        maps((2, 1, 32, 40)),
        False,
        inputs_have_gradients=False,
        error=4,
    ),
    "network with regions": Case(
        lambda: with_text(build_network(RELEASED)),
        maps((2, 1, 32, 40)),
        False,
        inputs_have_gradients=False,
        error=4,
    ),
}
# relative errors of a value and of a gradient
ALLOWED = {
    torch.float32: (2e-5, 1e-4), torch.float16: (4e-3, 2e-2), torch.bfloat16: (2e-2, 8e-2),
}  # fmt: skip


def run(module: nn.Module, inputs: list[Tensor], gradient: bool) -> list[Tensor]:
    """Output and, with ``gradient``, those of inputs and parameters."""
    if not gradient:
        with torch.no_grad():
            return [module(*inputs)]
    inputs = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
    y = module(*inputs)
    torch.manual_seed(5)
    weight = torch.randn(y.shape, dtype=torch.float64).to(y)
    leaves = [x for x in (*inputs, *module.parameters()) if x.requires_grad]
    found = torch.autograd.grad((y * weight).sum(), leaves, allow_unused=True)
    return [
        y.detach(),
        *(torch.zeros_like(x) if d is None else d for x, d in zip(leaves, found, strict=True)),
    ]


def check(
    name: str, device: str, dtype: torch.dtype, layout: str, gradient: bool, calls: int = 9
) -> list[list[float]]:
    """Errors of a twin, over what is allowed, of each call: its value, its worst gradient. In 16
    bits training has weights in float32 under autocast, inference all in 16 bits."""
    case = CASES[name]
    found = []
    for shapes in case.shapes[:calls]:
        torch.manual_seed(1)
        exact = case.make().to(device).double().eval()
        for p in exact.parameters():
            if p.ndim == 1:  # as after some training
                p.data.add_(0.1 * torch.randn_like(p))
            p.data = p.data.to(dtype).double() if not gradient else p.data.float().double()
        twin = accelerate(copy.deepcopy(exact).to(torch.float32 if gradient else dtype))
        inputs = []
        for shape in shapes:
            x = (torch.randn(shape, device=device) * 2 + 1).to(dtype)
            if x.ndim == 4 and layout == "channels_last":
                x = x.contiguous(memory_format=torch.channels_last)
            inputs.append(x.requires_grad_(gradient and case.inputs_have_gradients))
        wanted = run(
            exact, [x.detach().double().requires_grad_(x.requires_grad) for x in inputs], gradient
        )
        with torch.autocast(device, dtype, enabled=gradient and dtype != torch.float32):
            ours = run(twin, inputs, gradient)
        errors, largest = [], max(float(b.norm()) for b in wanted[1:]) if gradient else 0.0
        for i, (a, b) in enumerate(zip(ours, wanted, strict=True)):
            assert a.shape == b.shape
            # a bias in front of a norm has a gradient of nothing but rounding errors
            scale = max(float(b.norm()), 1e-2 * largest if i else 1e-6)
            allowed = ALLOWED[dtype][i > 0] * case.error
            errors.append(float((a.double() - b).norm()) / scale / allowed)
        found.append([errors[0], max(errors[1:], default=0.0)])
    return found


@pytest.mark.parametrize("gradient", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", CASES)
def test_twins_on_the_cpu(name, gradient):
    for layout in LAYOUTS if CASES[name].small else LAYOUTS[:1]:
        assert max(map(max, check(name, "cpu", torch.float32, layout, gradient))) < 1


@cuda
@pytest.mark.parametrize("dtype", ALLOWED, ids=str)
@pytest.mark.parametrize("gradient", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", CASES)
def test_twins_on_cuda(name, gradient, dtype):
    with torch.backends.cudnn.flags(allow_tf32=False):
        for layout in LAYOUTS:
            assert max(map(max, check(name, "cuda", dtype, layout, gradient))) < 1


def interpreted() -> dict[str, float]:
    """The worst errors of all small cases, and how often a kernel took them; float16, since the
    interpreter knows no inline assembly."""
    found, fits, taken = {}, modules.fits, []
    modules.fits = lambda *x, **how: taken.append(fits(*x, **how)) or taken[-1]
    for name, case in CASES.items():
        if case.small:
            for gradient in (False, True):
                errors = check(name, "cpu", torch.float16, "channels_last", gradient, calls=1)
                found[f"{name}, {gradient}"] = max(map(max, errors))
    return found | {"taken": float(sum(taken))}


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="the kernels run on the GPU itself in the tests above"
)
@pytest.mark.skipif(not modules.TRITON, reason="Triton is not installed")
def test_twins_in_the_interpreter():
    code = "import json, test_fast; print(json.dumps(test_fast.interpreted()))"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600,
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("taken") > 50
    assert {k: v for k, v in found.items() if not v < 1} == {}


def test_triton_that_cannot_be_imported_is_not_used(tmp_path, monkeypatch):
    """As version 3.2 where setuptools is missing."""
    (tmp_path / "triton.py").write_text("import no_such_setuptools\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    assert modules._has_triton() is False
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.warns(UserWarning, match="No module named 'no_such_setuptools'"):
        assert modules._has_triton() is False


@pytest.mark.parametrize(
    "config", [TINY, RELEASED, {"method": "cmmfnet-small"}, {"method": "cyclegan"}]
)
def test_twins_have_the_parameters_of_their_modules(config):
    network = build_network(config)
    state, types = network.state_dict(), {type(m) for m in network.modules()}
    assert accelerate(network) is network
    assert not any(type(m) in FAST for m in network.modules())
    assert {FAST.get(t, t) for t in types} == {type(m) for m in network.modules()}
    after = network.state_dict()
    assert list(after) == list(state) and all(torch.equal(after[k], state[k]) for k in state)
    types = {type(m) for m in network.modules()}
    accelerate(network)
    assert types == {type(m) for m in network.modules()}


def test_a_plain_network_calls_no_kernel_while_a_compiler_or_exporter_traces_it(monkeypatch):
    x = torch.rand(1, 64, 8, 8)
    monkeypatch.setattr(modules, "TRITON", True)
    monkeypatch.setattr(modules, "DEVICES", ("cpu",))
    with torch.no_grad():
        assert modules.fits(x, dtypes=modules.FLOATS) and modules.fits_cpu(x)
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not modules.fits(x, dtypes=modules.FLOATS) and not modules.fits_cpu(x)


def test_the_distance_of_unit_length_compiles_whole(monkeypatch):
    """With its gradient, as one graph: every break in it would read the maps again."""
    network = accelerate(distance("unit"))
    compiled = torch.compile(
        perceptual.Perceptual.forward, fullgraph=True, backend="aot_eager", dynamic=False
    )
    asked = []
    monkeypatch.setattr(modules, "_compiled", lambda of: asked.append(of) or compiled)
    x, y = torch.randn(2, 2, 3, 24, 40).tanh()
    found = []
    for compiles in (False, True):
        monkeypatch.setattr(modules, "fits_compiler", lambda x, yes=compiles: yes)
        given = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            loss = network(given, y)
        found.append((loss.detach(), *torch.autograd.grad(loss.sum(), given)))
    for plain, one in zip(*found, strict=True):
        torch.testing.assert_close(one, plain, rtol=1e-2, atol=1e-2 * float(plain.abs().max()))
    assert asked == [perceptual.Perceptual.forward]


def test_a_flat_map_has_a_finite_gradient():
    for value in (0.0, 1.0, 300.0):
        x = torch.full((1, 3, 5, 5), value, requires_grad=True)
        y = accelerate(patchgan.InstanceNorm(3))(x)
        assert y.abs().max() < 1e-2
        assert torch.autograd.grad(y.sum(), x)[0].isfinite().all()


@cuda
@pytest.mark.parametrize("name", ["stage", "downsample of 1", "join", "paint"])
def test_the_same_from_run_to_run_on_cuda(name):
    case = CASES[name]
    module = accelerate(case.make().cuda())
    inputs = [torch.randn(s, device="cuda", dtype=torch.bfloat16) for s in case.shapes[0]]
    with torch.autocast("cuda", torch.bfloat16):
        first, second = (run(module, inputs, True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@cuda
@pytest.mark.parametrize("name", ["stage", "downsample of 2", "resize", "join", "paint", "network"])
def test_kernels_are_what_runs_on_cuda(name, monkeypatch):
    """Otherwise the tests above would compare PyTorch with itself."""
    taken, fits = [], modules.fits
    monkeypatch.setattr(
        modules, "fits", lambda *x, **how: taken.append(fits(*x, **how)) or taken[-1]
    )
    gradient = name != "resize"  # whose kernel is for inference
    assert max(map(max, check(name, "cuda", torch.bfloat16, "contiguous", gradient))) < 1
    assert any(taken)


@cuda
@torch.no_grad()
def test_a_side_stream_in_a_graph_is_joined():
    def long(x: Tensor) -> Tensor:
        y = x
        for _ in range(8):
            y = (y @ x).softmax(dim=1)
        return y

    x, step = torch.rand(1024, 1024, device="cuda"), modules.FastSideBySide()
    expected, graph = sum(step(long, torch.square, x)), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = sum(step(long, torch.square, x))
    for _ in range(5):
        found.zero_()
        graph.replay()
        torch.testing.assert_close(found, expected)
