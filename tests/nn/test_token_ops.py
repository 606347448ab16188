"""What a transformer's tokens go through in training (ops/token_norm.py, ops/token_linear.py)
against float64 autograd of PyTorch.

The Triton kernels run in Triton's interpreter on the CPU where Triton is installed, and as they are
on a CUDA device.
"""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
import torch.nn.functional as F
from test_ops import cuda, interpreted, relative
from torch import Tensor, nn

from cmmfnet.methods.cmmfnet import interaction as cmmfnet_interaction
from cmmfnet.methods.cmmfnet.interaction import CrossBlock
from cmmfnet.nn import fast as ops
from cmmfnet.nn import transformer
from cmmfnet.nn.fast.graphed import Graphed
from cmmfnet.nn.transformer import MLP, Attention, TransformerBlock, transformed

# rows that are no whole number of blocks, one row, widths that are no power of two, more rows than
# one block of a program
SIZES = [(2, 3, 64), (1, 1, 32), (3, 37, 320), (1, 70, 511)]


def errors(
    function, reference, shapes, dtypes, of: tuple[torch.dtype, ...], device="cpu"
) -> list[float]:
    """Relative errors of what ``function`` returns, which is of the dtypes ``of``, and of the
    gradients of all operands, whose dtypes theirs have; ``reference`` does the same in float64. A
    second run gives the same bits."""
    generator = torch.Generator().manual_seed(7)
    given = [
        torch.randn(s, generator=generator).to(device, d)
        for s, d in zip(shapes, dtypes, strict=True)
    ]
    exact = [x.cpu().double().requires_grad_() for x in given]
    given = [x.requires_grad_() for x in given]
    found, wanted = function(*given), reference(*exact)
    assert tuple(y.dtype for y in found) == of
    dy = [torch.randn(y.shape, generator=generator).to(device, y.dtype) for y in found]
    gradients = torch.autograd.grad(found, given, dy)
    want = torch.autograd.grad(wanted, exact, [d.cpu().double() for d in dy])
    assert [d.dtype for d in gradients] == list(dtypes)
    again = function(*given)
    again = (*again, *torch.autograd.grad(again, given, dy))
    assert all(torch.equal(a, b) for a, b in zip((*found, *gradients), again, strict=True))
    pairs = zip((*found, *gradients), (*wanted, *want), strict=True)
    return [relative(a.cpu(), b) for a, b in pairs]


def norm_errors(shape, stream, half, device="cpu") -> list[float]:
    """Of the norm alone, and behind an addition; ``stream``: dtype of the tokens, ``half`` of
    branch and products."""
    d, single = (shape[-1],), torch.float32

    def reference(x, w, b):
        return (F.layer_norm(x, x.shape[-1:], w, b),)

    def reference_added(x, branch, added, w, b):
        total = x + (branch + added)
        return total, *reference(total, w, b)

    alone = errors(
        lambda *x: (ops.layer_norm(*x, dtype=half),),
        reference,
        (shape, d, d),
        (stream, single, single),
        (half,),
        device,
    )
    behind = errors(
        lambda *x: ops.add_layer_norm(*x, dtype=half), reference_added, (shape, shape, d, d, d),
        (stream, half, half, single, single), (torch.promote_types(stream, half), half), device,
    )  # fmt: skip
    return alone + behind


def linear_errors(shape, outputs, dtype, device="cpu", weights=None) -> list[float]:
    """Of one layer, of one with GELU, and of three of one input; ``weights``: their dtype, else
    ``dtype``."""
    weights, width = weights or dtype, shape[-1]
    one, dtypes = (shape, (outputs, width), (outputs,)), (dtype, weights, weights)
    matrices = ((outputs, width),) * 3

    def three(x, *parameters):
        return ops.linear_of_three(x, parameters[:3], parameters[3:])

    def reference_of_three(x, *parameters):
        return [F.linear(x, w, b) for w, b in zip(parameters[:3], parameters[3:], strict=True)]

    return [
        *errors(lambda *x: (ops.linear(*x),), lambda *x: (F.linear(*x),), one, dtypes, (dtype,), device),
        *errors(lambda *x: (ops.linear_gelu(*x),), lambda *x: (F.gelu(F.linear(*x)),), one, dtypes, (dtype,), device),
        *errors(three, reference_of_three, (shape, *matrices, *((outputs,),) * 3), (dtype, *(weights,) * 6), (dtype,) * 3, device),
    ]  # fmt: skip


class Crossed(nn.Module):
    """Three cross blocks, the last of which is given one thing for query, key and value."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.blocks = nn.ModuleList(CrossBlock(width, heads) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks[0](x[:, :5], x, x)
        y = self.blocks[1](y, y, y, torch.arange(5, device=x.device).lt(3).expand(len(x), -1))
        return self.blocks[2](y, y, y)


class Chained(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.blocks, self.norm = (
            nn.ModuleList(TransformerBlock(width, heads) for _ in range(2)),
            nn.LayerNorm(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return transformed(self.blocks, self.norm, x)


class Attended(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention, self.mlp = Attention(width, heads), MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x) + self.mlp(x)


KINDS = {"block": TransformerBlock, "chain": Chained, "cross": Crossed, "attention": Attended}


def network(kind: str, width: int, heads: int, device="cpu") -> nn.Module:
    """With weights of norms, and biases, that are not those of the start."""
    torch.manual_seed(3)
    made = KINDS[kind](width, heads)
    with torch.no_grad():
        for p in made.parameters():
            if p.ndim == 1:
                p.add_(torch.randn(p.shape) * 0.2)
    return made.to(device)


def results(
    made: nn.Module, x: Tensor, dtype: torch.dtype | None = None, call=None
) -> list[Tensor]:
    """Output and all gradients; ``dtype``: that of autocast."""
    x = x.detach().clone().requires_grad_()
    with torch.autocast(x.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        y = (call or made)(x)
    weight = (
        torch.linspace(-1, 1, y.numel(), device=y.device, dtype=torch.float64)
        .view_as(y)
        .sin()
        .to(y.dtype)
    )
    return [
        y.detach().clone(),
        *(d.clone() for d in torch.autograd.grad((y * weight).sum(), [x, *made.parameters()])),
    ]


def served(patch: pytest.MonkeyPatch, yes: bool) -> None:
    for module in (transformer, cmmfnet_interaction):
        patch.setattr(module, "serves_tokens", lambda x: yes)


def network_errors(kind: str, shape=(2, 9, 32)) -> list[float]:
    """Of the kernels' way in float32 against the ordinary way in float64."""
    made, x = network(kind, shape[-1], 4), torch.randn(shape)
    with pytest.MonkeyPatch.context() as patch:
        served(patch, True)
        found = results(made, x)
        served(patch, False)
        wanted = results(copy.deepcopy(made).double(), x.double())
    assert [a.shape for a in found] == [b.shape for b in wanted]
    # those of keys' biases are nothing but rounding
    size = max(float(b.norm()) for b in wanted[1:])
    return [
        float((a - b).norm()) / max(float(b.norm()), 1e-3 * size)
        for a, b in zip(found, wanted, strict=True)
    ]


_INTERPRETED = """
import json, sys
import torch
sys.path.insert(0, {tests!r})
import test_token_ops as t

half, single = torch.float16, torch.float32
print(json.dumps({{
    "norm": [t.norm_errors(s, single, single) for s in t.SIZES],
    "norm in 16 bits": [t.norm_errors(s, d, half) for s in t.SIZES for d in (half, single)],
    "linear": [t.linear_errors(s, n, single) for s in t.SIZES for n in (48, 130)],
    "linear in 16 bits": [t.linear_errors(s, 48, half, weights=w) for s in t.SIZES for w in (half, single)],
    "networks": [t.network_errors(kind) for kind in t.KINDS],
}}))
"""


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="the kernels run on the GPU itself in the tests below"
)
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_of_tokens_in_the_interpreter():
    found = interpreted(_INTERPRETED)
    assert max(map(max, found["norm"])) < 3e-6
    assert max(map(max, found["norm in 16 bits"])) < 2e-3
    assert max(map(max, found["linear"])) < 3e-6
    assert max(map(max, found["linear in 16 bits"])) < 3e-3
    assert len(found["networks"]) == len(KINDS) and max(map(max, found["networks"])) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_on_the_cpu_nothing_but_pytorch_runs(kind, monkeypatch):
    """With and without autocast, bit for bit."""
    made, x = network(kind, 32, 4), torch.randn(2, 9, 32)
    assert not ops.serves_tokens(x)
    for name in ("layer_norm", "add_layer_norm", "linear", "linear_gelu", "linear_of_three"):
        monkeypatch.setattr(transformer, name, None)
    if kind in ("block", "chain"):
        blocks = [made] if kind == "block" else made.blocks

        def plain(x):
            for b in blocks:
                y, a = b.norm1(x), b.attention
                q, k, v = (
                    m(y).unflatten(-1, (4, -1)).transpose(1, 2) for m in (a.query, a.key, a.value)
                )
                x = x + a.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
                x = x + b.mlp[2](F.gelu(b.mlp[0](b.norm2(x))))
            return x if kind == "block" else made.norm(x)

        for dtype in (None, torch.bfloat16):
            pairs = zip(results(made, x, dtype), results(made, x, dtype, plain), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)
    else:
        assert all(x.isfinite().all() for x in results(made, x, torch.bfloat16))


WIDE = [*SIZES, (24, 256, 512), (24, 78, 512), (2, 1024, 256), (3, 17, 4096)]


@cuda
@pytest.mark.parametrize("shape", WIDE, ids=str)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_norms_on_cuda(shape, half):
    for stream in (torch.float32, half):
        assert max(norm_errors(shape, stream, half, "cuda")) < (
            1e-2 if half == torch.bfloat16 else 2e-3
        )


@cuda
@pytest.mark.parametrize("outputs", [48, 130, 512])
@pytest.mark.parametrize("shape", WIDE[:-1], ids=str)
def test_linear_layers_on_cuda(shape, outputs):
    for weights in (torch.bfloat16, torch.float32):
        assert max(linear_errors(shape, outputs, torch.bfloat16, "cuda", weights)) < 2e-2


@cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(4, 256, 512), (2, 37, 320), (3, 65, 256)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_networks_on_cuda_are_as_near_as_without_kernels(kind, shape, dtype, monkeypatch):
    made, x = network(kind, shape[-1], 8, "cuda"), torch.randn(shape, device="cuda")
    found = results(made, x, dtype)
    served(monkeypatch, False)
    before, exact = results(made, x, dtype), results(copy.deepcopy(made).double(), x.double())
    assert [(a.dtype, a.shape) for a in found] == [(b.dtype, b.shape) for b in before]
    size = max(float(b.norm()) for b in exact[1:])
    for a, b, c in zip(found, before, exact, strict=True):
        floor = max(
            float(c.norm()), 1e-3 * size
        )  # gradients of keys' biases are nothing but rounding
        ours, theirs = (float((y.double() - c).norm()) / floor for y in (a, b))
        assert ours < 1.5 * theirs + (2e-3 if dtype == torch.bfloat16 else 3e-4)


@cuda
def test_weights_of_16_bits_train_on_cuda(monkeypatch):
    made, x = (
        network("chain", 256, 4, "cuda").bfloat16(),
        torch.randn(2, 37, 256, device="cuda", dtype=torch.bfloat16),
    )
    found = results(made, x)
    served(monkeypatch, False)
    for a, b in zip(found, results(made, x), strict=True):
        assert a.dtype == b.dtype == torch.bfloat16
    exact = results(copy.deepcopy(made).double(), x.double())
    assert relative(found[0], exact[0]) < 2e-2 and relative(found[1], exact[1]) < 3e-2


@cuda
def test_kernels_of_tokens_are_what_runs_on_cuda():
    made, x = (
        network("chain", 256, 4, "cuda"),
        torch.randn(2, 37, 256, device="cuda", requires_grad=True),
    )
    with torch.autocast("cuda", torch.bfloat16):
        y = made(x)
    assert "AddNorm" in y.grad_fn.name() and y.dtype == torch.float32
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        assert relative(made(x), y) < 2e-2
        assert not ops.serves_tokens(x)
    assert not ops.serves_tokens(x)  # in float32


@cuda
def test_tokens_in_a_graph_on_cuda():
    """With copies of weights in 16 bits (methods/copied.py): what runs without, to rounding, each
    time."""
    made, x = network("chain", 256, 4, "cuda"), torch.randn(3, 37, 256, device="cuda")
    expected, graphed = results(made, x, torch.bfloat16), Graphed(made)
    first, second = (results(made, x, torch.bfloat16, graphed) for _ in range(2))
    assert graphed.captured
    size = max(float(b.norm()) for b in expected[1:])
    for a, b, c in zip(first, second, expected, strict=True):
        assert a.dtype == b.dtype == c.dtype
        for found in (a, b):  # PyTorch's attention may add its gradient up in any order
            assert float((found - c).norm()) < 3e-2 * max(float(c.norm()), 1e-2 * size)
