"""The large-kernel depthwise convolution against cuDNN, in one run: forward, and forward with
backward.

    python benchmarks/depthwise.py                          # the three sizes of CMMF-Net's U-Net, k
    = 13, bfloat16 python benchmarks/depthwise.py --kernel 7 31 --dtype float16 python
    benchmarks/depthwise.py --tune                   # other tilings of the kernels, the fastest
    last

Each time is the median over CUDA graph replays, so that launches from Python do not count; inputs
rotate among as many copies as exceed the cache. The two floors beside it: bytes (every input read
once, every output written once, over the bandwidth of a large copy measured here) and arithmetic
(the multiply-adds that the kernels do, Toeplitz zeros and all, over the rate of a large matrix
product measured here).
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import torch
import torch.nn.functional as F
from cuda_graph import graph_ms
from torch import Tensor

from cmmfnet.nn.fast import depthwise

SIZES = [(8, 64, 128, 128), (8, 128, 64, 64), (8, 256, 32, 32)]


def ceilings(dtype: torch.dtype) -> tuple[float, float]:
    """Bytes/s of a large copy, and floating-point operations/s of a large matrix product."""
    a = torch.empty(1 << 29, device="cuda", dtype=torch.uint8)
    b = torch.empty_like(a)
    bandwidth = 2 * a.numel() / (graph_ms(lambda: b.copy_(a)) * 1e-3)
    x = torch.randn(8192, 8192, device="cuda", dtype=dtype)
    rate = 2 * 8192**3 / (graph_ms(lambda: x @ x) * 1e-3)
    return bandwidth, rate


def operands(size: tuple[int, ...], kernel: int, dtype: torch.dtype) -> list[tuple[Tensor, ...]]:
    """Rotating sets of input, weight, bias and output gradient: together over 200 MB."""
    count = max(2, 200_000_000 // (2 * torch.Size(size).numel() * dtype.itemsize))

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device="cuda", dtype=dtype)

    return [
        (draw(*size).requires_grad_(), draw(size[1], 1, kernel, kernel).requires_grad_(),
         draw(size[1]).requires_grad_(), draw(*size))
        for _ in range(count)
    ]  # fmt: skip


def cudnn(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=x.shape[1])


def forward(function, sets: list[tuple[Tensor, ...]]) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            for x, weight, bias, _ in sets:
                function(x, weight, bias)

    return run


def both(function, sets: list[tuple[Tensor, ...]]) -> Callable[[], None]:
    """Forward with all three gradients."""

    def run() -> None:
        for x, weight, bias, dy in sets:
            torch.autograd.grad(function(x, weight, bias), (x, weight, bias), dy)

    return run


def times(function, sets: list[tuple[Tensor, ...]]) -> tuple[float, float]:
    """Milliseconds forward, and forward with all three gradients."""
    return graph_ms(forward(function, sets)) / len(sets), graph_ms(both(function, sets)) / len(sets)


def floors(
    size, kernel: int, dtype: torch.dtype, bandwidth: float, rate: float
) -> tuple[float, float]:
    """Milliseconds forward: of the bytes, and of the multiply-adds."""
    values = torch.Size(size).numel()
    tiles = depthwise._forward_tiles(kernel, torch.empty(size, dtype=dtype, device="meta"))
    products = depthwise._inputs(kernel, tiles) * depthwise._border(kernel)[1]
    return 2 * values * dtype.itemsize / bandwidth * 1e3, 2 * values * products / rate * 1e3


def error(size, kernel: int, dtype: torch.dtype) -> float:
    """Largest relative error of value and gradients against float64."""
    (x, weight, bias, dy), *_ = operands(size, kernel, dtype)
    y = depthwise.depthwise_conv2d(x, weight, bias)
    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    want = cudnn(*exact)
    given = (y, *torch.autograd.grad(y, (x, weight, bias), dy))
    wanted = (want, *torch.autograd.grad(want, exact, dy.double()))
    return max(
        float(((a.double() - b).norm() / b.norm()).detach())
        for a, b in zip(given, wanted, strict=True)
    )


def candidates(kernel: int) -> list[tuple[str, depthwise.Tiles]]:
    """Tilings of both kernels that registers can hold."""
    wide = depthwise._border(kernel)[1] == 64
    groups = {
        "_forward_tiles": (1, 2) if wide else (1, 2, 4),
        "_weight_tiles": (1, 2) if wide else (2, 4),
    }
    return [
        (which, depthwise.Tiles(rows, patches, group, warps, stages, values))
        for which in groups
        for values in ((4, 8) if which == "_forward_tiles" else (8,))
        for rows, patches, group, warps, stages in itertools.product(
            (2, 4, 8), (64, 128, 256), groups[which], (4, 8), (2, 3, 4)
        )
        if patches * rows * 16 <= 4096 * warps
    ]


def compiled(candidate: tuple[str, depthwise.Tiles], size, kernel: int, dtype: torch.dtype) -> str:
    """Run a tiling once, so that Triton's cache on disk has it; what is wrong with it, or
    nothing."""
    which, tiles = candidate
    original = getattr(depthwise, which)
    setattr(depthwise, which, lambda *_: tiles)
    x, weight, bias, dy = (
        torch.randn(s, device="cuda", dtype=dtype, requires_grad=True)
        for s in (size, (size[1], 1, kernel, kernel), (size[1],), size)
    )
    try:
        y = depthwise.depthwise_conv2d(x, weight, bias)
        if which == "_weight_tiles":
            torch.autograd.grad(y, (x, weight, bias), dy)
        torch.cuda.synchronize()
    except Exception as problem:  # out of shared memory
        return f"{type(problem).__name__}: {str(problem)[:100]}"
    finally:
        setattr(depthwise, which, original)
    return ""


def tune(size, kernel: int, dtype: torch.dtype, named: list[tuple[str, depthwise.Tiles]]) -> list:
    """Forward, or forward and backward, times of tilings, slowest first; one that does not fit is
    named so.

    The compiler takes seconds for each: all cores compile before anything is timed. Returns the 12
    best of each kernel.
    """
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        problems = list(
            pool.map(compiled, named, *([value] * len(named) for value in (size, kernel, dtype)))
        )
    sets = operands(size, kernel, dtype)
    found: dict[str, list] = {"_forward_tiles": [], "_weight_tiles": []}
    for (which, tiles), problem in zip(named, problems, strict=True):
        if problem:
            print(f"  {which} {tiles}: {problem}")
            continue
        original = getattr(depthwise, which)
        setattr(depthwise, which, lambda *_, tiles=tiles: tiles)
        run = (forward if which == "_forward_tiles" else both)(depthwise.depthwise_conv2d, sets)
        found[which].append((graph_ms(run) / len(sets), tiles))
        setattr(depthwise, which, original)
    best = []
    for which, timed in found.items():
        timed.sort(reverse=True, key=lambda pair: pair[0])
        for ms, tiles in timed[-8:]:
            print(f"  {which} {size} k={kernel}: {ms:.4f} ms {tiles}", flush=True)
        best += [(which, tiles) for _, tiles in timed[-12:]]
    return best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kernel", type=int, nargs="+", default=[13])
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--tune", action="store_true")
    given = parser.parse_args()
    if not torch.cuda.is_available() or depthwise.triton is None:
        raise SystemExit(
            "this benchmark needs a CUDA GPU and Triton; on the CPU the operator is PyTorch's own"
        )
    dtype = getattr(torch, given.dtype)
    torch.backends.cudnn.benchmark = True
    bandwidth, rate = ceilings(dtype)
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Triton "
        f"{depthwise.triton.__version__}; copy "
        f"{bandwidth / 1e12:.2f} TB/s, matrix product {rate / 1e12:.0f} TFLOP/s; {given.dtype}, "
        "milliseconds"
    )
    print(
        "| size | k | cuDNN fwd | ours | ratio | cuDNN fwd+bwd | ours | ratio | bytes floor | "
        "arithmetic floor | error |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    named: dict[int, list] = {}  # all tilings at the first size, the best of them at the next
    for size in SIZES:
        for kernel in given.kernel:
            sets = operands(size, kernel, dtype)
            (theirs, theirs_both), (ours, ours_both) = (
                times(cudnn, sets),
                times(depthwise.depthwise_conv2d, sets),
            )
            low = floors(size, kernel, dtype, bandwidth, rate)
            print(
                f"| {size} | {kernel} | {theirs:.3f} | {ours:.3f} | **{theirs / ours:.1f}** | "
                f"{theirs_both:.3f} | "
                f"{ours_both:.3f} | **{theirs_both / ours_both:.1f}** | {low[0]:.3f} | "
                f"{low[1]:.3f} | "
                f"{error(size, kernel, dtype):.1e} |",
                flush=True,
            )
            del sets
            if given.tune:
                named[kernel] = tune(size, kernel, dtype, named.get(kernel) or candidates(kernel))


if __name__ == "__main__":
    main()
