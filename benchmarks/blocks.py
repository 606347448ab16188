"""The residual blocks of a U-Net's stage in training, forward and backward as one CUDA graph: their hand-written gradients
(ops/block.py) against autograd of the separate operators, in one run.

    python benchmarks/blocks.py                # a pair of blocks at the three sizes of CMMF-Net at 256x256, batch 24, bfloat16
    python benchmarks/blocks.py --kernels      # and what each kernel takes
    python benchmarks/blocks.py --tune         # and other tilings of each kernel, the fastest last

Beside the times: the bytes that each way must move at least (passes over a map counted by hand, ops/block.py) over the
bandwidth of a large copy measured here, and the relative error of the output and the worst gradient against float32.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import multiprocessing
import os
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import torch
from cuda_graph import captured
from torch import Tensor

from cmmfnet import layers
from cmmfnet.ops import block, products
from cmmfnet.ops.norm import instance_norm_backward, plane_statistics, residual_norm
from cmmfnet.ops.pointwise import TILES, Tiles

SIZES = [(64, 128), (128, 64), (256, 32)]  # channels, side
PASSES = {True: 10 + 17 + 6 + 16, False: 15 + 27 + 23 + 41}


def graph_ms(function: Callable[[], object], repeats: int = 15) -> float:
    """Median milliseconds of a replay of ``function`` captured as a CUDA graph."""
    replay = captured(function)
    for _ in range(3):
        replay()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        replay()
        event.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(events))


def bandwidth() -> float:
    """Bytes/s of a large copy."""
    a = torch.empty(1 << 29, device="cuda", dtype=torch.uint8)
    b = torch.empty_like(a)
    return 2 * a.numel() / (graph_ms(lambda: b.copy_(a)) * 1e-3)


def both(stage: torch.nn.Module, x: Tensor, dy: Tensor, ours: bool, dtype: torch.dtype) -> Callable[[], list[Tensor]]:
    """Output and all gradients of a stage, by ``ours`` or by autograd of the separate operators."""
    x = x.detach().requires_grad_()

    def run() -> list[Tensor]:
        original = layers.serves_training
        layers.serves_training = original if ours else lambda x: False
        try:
            with torch.autocast("cuda", dtype, dtype != torch.float32, cache_enabled=False):
                y = stage(x)
            wanted = [x, *(p for name, p in stage.named_parameters() if not_before_norm(name))]
            return [y, *torch.autograd.grad(y, wanted, dy)]
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
    rows = [(event.device_time_total / 1e3, event.count, event.key) for event in profile.key_averages()]
    return sorted((row for row in rows if row[0] > 0), reverse=True)


def parts_of(channels: int, side: int, batch: int, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Each kernel at work by itself, by its name in pointwise.TILES where it is there."""

    def draw(planes: int) -> Tensor:
        return torch.randn(batch, planes, side, side, device="cuda", dtype=dtype)

    x, narrow, other = draw(channels), draw(channels), draw(channels)
    of_x, of_other = plane_statistics(x), plane_statistics(other)
    wide = torch.randn(4 * channels, channels, device="cuda", dtype=dtype) * channels**-0.5
    back, square = wide.t().contiguous(), wide[:channels].contiguous()
    feed_forward, enter = (products.inside_of(x, of_x, w) for w in (wide, square))
    sdv, sums, _ = products.slopes(feed_forward, narrow, back)
    return {
        "covariance": lambda: products.inside_of(x, of_x, wide),
        "inward": lambda: products.inward(enter),
        "onward": lambda: products.onward(other, square),
        "feed-forward": lambda: products.feed_forward(feed_forward, back),
        "narrow": lambda: products.slopes(feed_forward, narrow, back),
        "leave": lambda: products.slopes(other, narrow, square),
        "enter": lambda: products.slopes(enter, other),
        "through": lambda: products.through_norms(sdv, sums, feed_forward, other),
        "norm": lambda: residual_norm(narrow, x),
        "norm's gradient": lambda: instance_norm_backward(narrow, other, of_other, False),
    }


def candidates() -> list[tuple[str, Tiles]]:
    """Tilings of the kernels in pointwise.TILES, by their names there."""
    found = []
    for pixels, warps, stages in itertools.product((64, 128), (4, 8), (1, 2, 3, 4)):
        plain = Tiles(pixels, 64, warps, stages)
        found += [(name, plain) for name in ("inward", "onward", "feed-forward", "through")]
        found += [("covariance", plain._replace(parts=parts)) for parts in (8, 16, 32)]
        found += [(name, plain._replace(parts=parts)) for name in ("leave", "enter") for parts in (4, 8, 16)]
        found += [("narrow", plain._replace(parts=parts)) for parts in (2, 4, 8)]
        if pixels == 64:
            found += [("narrow", plain._replace(rows=128, parts=parts)) for parts in (4, 8)]
    return found


def compiled(candidate: tuple[str, Tiles], channels: int, dtype: torch.dtype) -> str:
    """Run a tiling once, so that Triton's cache on disk has it; what is wrong with it, or nothing."""
    name, tiles = candidate
    part, original = parts_of(channels, 32, 2, dtype)[name], TILES[name][channels]
    TILES[name][channels] = tiles
    try:
        part()
        torch.cuda.synchronize()
    except Exception as problem:  # out of shared memory
        return f"{type(problem).__name__}: {str(problem)[:80]}"
    finally:
        TILES[name][channels] = original
    return ""


def tune(channels: int, side: int, batch: int, dtype: torch.dtype) -> None:
    """Times of tilings. The compiler takes seconds for each, so all cores compile before anything is timed."""
    named = candidates()
    with ProcessPoolExecutor(min(os.cpu_count(), 12), multiprocessing.get_context("spawn")) as pool:
        once = list({(name, tiles._replace(parts=1)) for name, tiles in named})
        problems = dict(zip(once, pool.map(compiled, once, *([v] * len(once) for v in (channels, dtype))), strict=True))
    parts, timed = parts_of(channels, side, batch, dtype), []
    for name, tiles in named:
        problem = problems[name, tiles._replace(parts=1)]
        if problem:
            continue
        original = TILES[name][channels]
        TILES[name][channels] = tiles
        try:
            timed.append((name, graph_ms(parts[name], 7), tiles))
        finally:
            TILES[name][channels] = original
    for name in parts:
        rows = [(ms, tiles) for n, ms, tiles in timed if n == name]
        if name not in TILES:
            rows = [(graph_ms(parts[name], 7), "as it is")]
        for ms, tiles in sorted(rows, reverse=True)[-6:]:
            print(f"  {channels} {name}: {ms:.4f} ms {tiles}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--kernel", type=int, default=13)
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--tune", action="store_true")
    given = parser.parse_args()
    if not torch.cuda.is_available() or block.triton is None:
        raise SystemExit("this benchmark needs a CUDA GPU and Triton; elsewhere the blocks are PyTorch's own operators")
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False  # the reference is float32
    dtype, rate = torch.bfloat16, bandwidth()
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Triton {block.triton.__version__}; copy "
        f"{rate / 1e12:.2f} TB/s; {dtype}, batch {given.batch}, milliseconds of a pair, forward and backward"
    )
    print("| size | separate | floor | error | ours | floor | error | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for channels, side in SIZES:
        torch.manual_seed(0)
        stage = layers.large_kernel_stage(channels, 1, given.kernel).cuda()
        x, dy = (torch.randn(given.batch, channels, side, side, device="cuda", dtype=dtype) for _ in range(2))
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
        if given.tune and channels in TILES["onward"]:
            tune(channels, side, given.batch, dtype)


if __name__ == "__main__":
    main()
