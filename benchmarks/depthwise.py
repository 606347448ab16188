"""The large-kernel depthwise convolution against cuDNN, in one run: forward, and forward with backward.

    python benchmarks/depthwise.py                          # the three sizes of CMMF-Net's U-Net, k = 13, bfloat16
    python benchmarks/depthwise.py --kernel 7 31 --dtype float16
    python benchmarks/depthwise.py --tune                   # other tilings of the kernels, the fastest last

Each time is the median over CUDA graph replays, so that launches from Python do not count; inputs rotate among as many
copies as exceed the cache. The two floors beside it: bytes (every input read once, every output written once, over the
bandwidth of a large copy measured here) and arithmetic (the multiply-adds that the kernels do, Toeplitz zeros and all, over
the rate of a large matrix product measured here).
"""

from __future__ import annotations

import argparse
import itertools
import statistics

import torch
import torch.nn.functional as F
from cuda_graph import captured
from torch import Tensor

from cmmfnet.ops import depthwise

SIZES = [(8, 64, 128, 128), (8, 128, 64, 64), (8, 256, 32, 32)]


def graph_ms(function, repeats: int = 30) -> float:
    """Median milliseconds of a replay of ``function`` captured as a CUDA graph."""
    replay = captured(function)
    for _ in range(5):
        replay()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        replay()
        event.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(events))


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


def times(function, sets: list[tuple[Tensor, ...]]) -> tuple[float, float]:
    """Milliseconds forward, and forward with all three gradients."""

    def forward() -> None:
        with torch.no_grad():
            for x, weight, bias, _ in sets:
                function(x, weight, bias)

    def both() -> None:
        for x, weight, bias, dy in sets:
            torch.autograd.grad(function(x, weight, bias), (x, weight, bias), dy)

    return graph_ms(forward) / len(sets), graph_ms(both) / len(sets)


def floors(size, kernel: int, dtype: torch.dtype, bandwidth: float, rate: float) -> tuple[float, float]:
    """Milliseconds forward: of the bytes, and of the multiply-adds."""
    values = torch.Size(size).numel()
    tiles = depthwise._forward_tiles(kernel, dtype)
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
    return max(float((a.double() - b).norm() / b.norm()) for a, b in zip(given, wanted, strict=True))


def tune(size, kernel: int, dtype: torch.dtype) -> None:
    """Forward and weight-gradient times of other tilings, slowest first; one that does not fit the card is named so."""
    sets = operands(size, kernel, dtype)
    wide = depthwise._border(kernel)[1] == 64
    for which in ("_forward_tiles", "_weight_tiles"):
        original, found = getattr(depthwise, which), []
        groups = ((1, 2) if wide else (1, 2, 4)) if which == "_forward_tiles" else ((1, 2) if wide else (2, 4))
        for rows, patches, group, warps, stages in itertools.product(
            (2, 4, 8), (64, 128, 256), groups, (4, 8), (2, 3, 4)
        ):
            tiles = depthwise.Tiles(rows, patches, group, warps, stages)
            if patches * rows * 16 > 4096 * warps:  # the sums alone would fill the registers
                continue
            setattr(depthwise, which, lambda *_, tiles=tiles: tiles)
            try:
                found.append((times(depthwise.depthwise_conv2d, sets)[which == "_weight_tiles"], tiles))
            except Exception as problem:  # out of shared memory: said, and the next is tried
                print(f"  {tiles}: {type(problem).__name__}: {str(problem)[:100]}")
                torch.cuda.synchronize()
        setattr(depthwise, which, original)
        for ms, tiles in sorted(found, reverse=True, key=lambda pair: pair[0])[-8:]:
            print(f"  {which} {size} k={kernel}: {ms:.4f} ms {tiles}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", type=int, nargs="+", default=[13])
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--tune", action="store_true")
    given = parser.parse_args()
    if not torch.cuda.is_available() or depthwise.triton is None:
        raise SystemExit("this benchmark needs a CUDA GPU and Triton; on the CPU the operator is PyTorch's own")
    dtype = getattr(torch, given.dtype)
    torch.backends.cudnn.benchmark = True
    bandwidth, rate = ceilings(dtype)
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Triton {depthwise.triton.__version__}; copy "
        f"{bandwidth / 1e12:.2f} TB/s, matrix product {rate / 1e12:.0f} TFLOP/s; {given.dtype}, milliseconds"
    )
    print(
        "| size | k | cuDNN fwd | ours | ratio | cuDNN fwd+bwd | ours | ratio | bytes floor | arithmetic floor | error |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for size in SIZES:
        for kernel in given.kernel:
            sets = operands(size, kernel, dtype)
            (theirs, theirs_both), (ours, ours_both) = times(cudnn, sets), times(depthwise.depthwise_conv2d, sets)
            low = floors(size, kernel, dtype, bandwidth, rate)
            print(
                f"| {size} | {kernel} | {theirs:.3f} | {ours:.3f} | **{theirs / ours:.1f}** | {theirs_both:.3f} | "
                f"{ours_both:.3f} | **{theirs_both / ours_both:.1f}** | {low[0]:.3f} | {low[1]:.3f} | "
                f"{error(size, kernel, dtype):.1e} |",
                flush=True,
            )
            del sets
            if given.tune:
                tune(size, kernel, dtype)


if __name__ == "__main__":
    main()
