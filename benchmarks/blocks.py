"""The residual blocks of a U-Net's stage in training, forward and backward as one CUDA graph: their
hand-written gradients (ops/block.py) against autograd of the separate operators, in one run.

    python benchmarks/blocks.py                # a pair of blocks at the three sizes of CMMF-Net at
    256x256, batch 24, bfloat16 python benchmarks/blocks.py --kernels      # and what each kernel
    takes python benchmarks/blocks.py --tune         # instead of all that, other tilings of each
    kernel, the fastest five

Beside the times: the bytes that each way must move at least (passes over a map counted by hand,
ops/block.py) over the bandwidth of a large copy measured here, and the relative error of the output
and the worst gradient against float32.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, wait
from typing import TypeVar

import torch
from cuda_graph import graph_ms
from torch import Tensor

from cmmfnet.nn import blocks as layers
from cmmfnet.nn.fast import block, products
from cmmfnet.nn.fast.norm import Statistics, instance_norm_backward, residual_norm
from cmmfnet.nn.fast.pointwise import TILES, Tiles
from cmmfnet.nn.fast.products import Inside, Sums

Result = TypeVar("Result")

SIZES = [(64, 128), (128, 64), (256, 32)]  # channels, side
PASSES = {True: 10 + 17 + 6 + 16, False: 15 + 27 + 23 + 41}


def bandwidth() -> float:
    """Bytes/s of a large copy."""
    a = torch.empty(1 << 29, device="cuda", dtype=torch.uint8)
    b = torch.empty_like(a)
    return 2 * a.numel() / (graph_ms(lambda: b.copy_(a)) * 1e-3)


def both(
    stage: torch.nn.Module, x: Tensor, dy: Tensor, ours: bool, dtype: torch.dtype
) -> Callable[[], list[Tensor]]:
    """Output and all gradients of a stage, by ``ours`` or by autograd of the separate operators."""
    x = x.detach().requires_grad_()

    def run() -> list[Tensor]:
        original = layers.serves_training
        layers.serves_training = original if ours else lambda x: False
        try:
            with torch.autocast("cuda", dtype, dtype != torch.float32, cache_enabled=False):
                y = stage(x)
            wanted = [x, *(p for name, p in stage.named_parameters() if not_before_norm(name))]
            # not y itself: its graph would live on, whose leaves are bound to this stream, into a
            # capture on another
            return [y.detach(), *torch.autograd.grad(y, wanted, dy)]
        finally:
            layers.serves_training = original

    return run


def not_before_norm(name: str) -> bool:
    return not name.endswith("bias") or "depthwise" in name


def relative(found: Tensor, wanted: Tensor) -> float:
    return float(((found.float() - wanted).norm() / wanted.norm()).detach())


def by_kernel(run: Callable[[], object]) -> list[tuple[float, int, str]]:
    """Milliseconds, launches and name of each kernel of a run, longest first."""
    run()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    rows = [
        (event.device_time_total / 1e3, event.count, event.key) for event in profile.key_averages()
    ]
    return sorted((row for row in rows if row[0] > 0), reverse=True)


def parts_of(
    channels: int, side: int, batch: int, dtype: torch.dtype
) -> dict[str, Callable[[], object]]:
    """Each kernel at work by itself on numbers drawn at random, by its name in pointwise.TILES
    where it is there."""

    def draw(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, device="cuda", dtype=dtype)

    def moments(planes: int) -> Statistics:
        mean = torch.zeros(batch * planes, device="cuda")
        return mean, torch.ones_like(mean)

    def inside(rows: int) -> Inside:
        weight = draw(rows, channels) * channels**-0.5
        return Inside(
            x,
            moments(channels),
            weight,
            moments(rows),
            draw(batch, rows, channels, dtype=torch.float32),
        )

    x, narrow, other, sdv = (draw(batch, planes * channels, side, side) for planes in (1, 1, 1, 4))
    enter, widen = inside(channels), inside(4 * channels)
    back, square = widen.weight.t().contiguous(), enter.weight
    parts, rows = TILES["narrow"][channels].parts, 4 * channels
    sums = Sums(
        *(
            draw(batch, parts, *shape, dtype=torch.float32)
            for shape in ((2, rows), (rows, channels))
        )
    )
    return {
        "covariance": lambda: products.inside_of(x, enter.x_statistics, widen.weight),
        "inward": lambda: products.inward(enter),
        "onward": lambda: products.onward(other, square),
        "feed-forward": lambda: products.feed_forward(widen, back),
        "narrow": lambda: products.slopes(widen, narrow, back),
        "leave": lambda: products.slopes(other, narrow, square),
        "enter": lambda: products.slopes(enter, other),
        "between": lambda: products.between(sums, widen, side * side),
        "through": lambda: products.through_norms(sdv, sums, widen, other),
        "norm": lambda: residual_norm(narrow, x),
        "norm's gradient": lambda: instance_norm_backward(narrow, other, enter.x_statistics, False),
    }


# pixels, rows, warps, stages and parts to try, first for what takes longest; few for what matters
# little
TRIED = {
    "leave": ((32, 64, 128), (32, 64, 128), (4, 8), (2, 3), (4, 8, 16, 32)),
    "narrow": ((32, 64, 128), (32, 64, 128), (4, 8), (2, 3), (2, 4, 8)),
    "enter": ((32, 64, 128), (32, 64, 128), (4, 8), (2, 3), (4, 8, 16, 32)),
    "through": ((64, 128), (32, 64), (4, 8), (2, 3), (1,)),
    "between": ((16, 32), (32, 64), (4, 8), (3, 4), (1,)),
    "feed-forward": ((64, 128), (64, 128), (4, 8), (2, 3), (1,)),
    "covariance": ((64, 128), (64,), (4, 8), (2, 3), (4, 8, 16, 32)),
    "inward": ((64, 128), (64,), (4, 8), (2,), (1,)),
    "onward": ((64, 128), (64,), (4, 8), (3,), (1,)),
}
SUMS = {
    "narrow": 2,
    "leave": 1,
    "enter": 1,
}  # matrices (rows, channels) that a program of _slopes holds


def candidates(channels: int) -> list[tuple[str, int, Tiles]]:
    """Tilings by the names of kernels in pointwise.TILES, the present ones among them; none that
    cannot fit into registers."""
    found = {(name, channels, of[channels]): None for name, of in TILES.items()}
    for name, tried in TRIED.items():
        for tiles in itertools.starmap(Tiles, itertools.product(*tried)):
            threads, tile = 32 * tiles.warps, tiles.rows * tiles.pixels
            held = (SUMS[name] * tiles.rows if name in SUMS else tiles.pixels) * channels
            if name == "covariance":
                tile, held = channels * tiles.pixels, channels**2
            most = 4 * channels if name in ("narrow", "feed-forward") else channels
            if tiles.rows <= most and tile <= 64 * threads and held <= 128 * threads:
                found[name, channels, tiles] = None
    return list(found)


COMPILING = 60  # seconds after which what the compiler has not come to is left out


def with_tiles(name: str, channels: int, tiles: Tiles, run: Callable[[], Result]) -> Result:
    """What ``run`` returns where a kernel has these tiles."""
    original = TILES[name][channels]
    TILES[name][channels] = tiles
    try:
        return run()
    finally:
        TILES[name][channels] = original


def compiled(candidate: tuple[str, int, Tiles], dtype: torch.dtype) -> str:
    """Run a tiling once, so that Triton's cache on disk has it; what is wrong with it, or
    nothing."""
    name, channels, tiles = candidate
    try:
        with_tiles(name, channels, tiles, parts_of(channels, 32, 2, dtype)[name])
        torch.cuda.synchronize()
    except Exception as problem:  # out of shared memory
        return f"{type(problem).__name__}: {str(problem)[:80]}"
    return ""


def quick_ms(function: Callable[[], object], calls: int = 4, repeats: int = 5) -> float:
    """As ``graph_ms`` of some calls, but without all that torch.cuda.graph does first, which takes
    longer than a kernel."""
    function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(torch.cuda.Stream()):
        graph.capture_begin()
        try:
            for _ in range(calls):
                function()
        finally:
            graph.capture_end()
    graph.replay()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        graph.replay()
        event.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(events)) / calls


def tune(batch: int, dtype: torch.dtype) -> None:
    """Times of tilings. The compiler takes seconds for each, so all cores compile before anything
    is timed."""
    began = time.perf_counter()
    sizes = [(channels, side) for channels, side in SIZES if channels in TILES["onward"]]
    named = [candidate for channels, _ in sizes for candidate in candidates(channels)]
    named.sort(key=lambda candidate: list(TRIED).index(candidate[0]))
    once = {(name, channels, tiles._replace(parts=1)): None for name, channels, tiles in named}
    with ProcessPoolExecutor(min(os.cpu_count(), 16), multiprocessing.get_context("spawn")) as pool:
        runs = {candidate: pool.submit(compiled, candidate, dtype) for candidate in once}
        wait(runs.values(), COMPILING)
        pool.shutdown(cancel_futures=True)
    runs = {candidate: run.result() for candidate, run in runs.items() if not run.cancelled()}
    fine = {candidate for candidate, problem in runs.items() if not problem}
    print(
        f"{len(runs)} of {len(once)} kernels compiled in {time.perf_counter() - began:.0f} s, of "
        f"which {len(fine)} run",
        flush=True,
    )
    for channels, side in sizes:
        parts = parts_of(channels, side, batch, dtype)
        for name, run in parts.items():
            if name not in TILES:
                print(f"  {channels} {name}: {quick_ms(run):.4f} ms")
                continue
            rows = []
            for of, c, tiles in named:
                if (of, c) == (name, channels) and (of, c, tiles._replace(parts=1)) in fine:
                    rows.append(
                        (with_tiles(name, channels, tiles, lambda run=run: quick_ms(run)), tiles)
                    )
            rows.sort()
            for place, (ms, tiles) in enumerate(rows):
                now = tiles == TILES[name][channels]
                if place < 5 or now:
                    print(
                        f"  {channels} {name}: {ms:.4f} ms {tiles}{' <- now' if now else ''}",
                        flush=True,
                    )
    print(f"{time.perf_counter() - began:.0f} s in all")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--kernel", type=int, default=13)
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--tune", action="store_true")
    given = parser.parse_args()
    if not torch.cuda.is_available() or block.triton is None:
        raise SystemExit(
            "this benchmark needs a CUDA GPU and Triton; elsewhere the blocks are PyTorch's own "
            "operators"
        )
    if given.tune:
        tune(given.batch, torch.bfloat16)
        return
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False  # the reference is float32
    dtype, rate = torch.bfloat16, bandwidth()
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Triton "
        f"{block.triton.__version__}; copy "
        f"{rate / 1e12:.2f} TB/s; {dtype}, batch {given.batch}, milliseconds of a pair, forward "
        "and backward"
    )
    print("| size | separate | floor | error | ours | floor | error | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for channels, side in SIZES:
        torch.manual_seed(0)
        stage = layers.large_kernel_stage(channels, 1, given.kernel).cuda()
        x, dy = (
            torch.randn(given.batch, channels, side, side, device="cuda", dtype=dtype)
            for _ in range(2)
        )
        few = slice(0, 4)  # float32 of the whole batch would take seconds
        wanted = both(copy.deepcopy(stage), x[few].float(), dy[few].float(), False, torch.float32)()
        cells, runs = [], {}
        for ours in (False, True):
            found = both(stage, x[few], dy[few], ours, dtype)()
            errors = [relative(a, b) for a, b in zip(found, wanted, strict=True)]
            # the gradient of x without that of the residual, which hides errors
            errors[1] = relative(found[1].float() - dy[few].float(), wanted[1] - dy[few].float())
            runs[ours] = both(stage, x, dy, ours, dtype)
            floor = PASSES[ours] * x.element_size() * x.numel() / rate * 1e3
            cells.append((graph_ms(runs[ours]), floor, f"{errors[0]:.1e}, {max(errors[1:]):.1e}"))
        row = " | ".join(f"{ms:.3f} | {floor:.3f} | {error}" for ms, floor, error in cells)
        print(f"| {channels} x {side}² | {row} | **{cells[0][0] / cells[1][0]:.2f}** |", flush=True)
        if given.kernels:
            for ours, run in runs.items():
                for ms, count, name in by_kernel(run)[:24]:
                    print(f"  {'ours' if ours else 'separate'} {ms:.4f} ms {count:3d} {name[:90]}")


if __name__ == "__main__":
    main()
