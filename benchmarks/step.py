"""One step of training on one GPU, from a batch at hand: images a second by batch size, our kernels
against PyTorch's.

    python benchmarks/step.py --data DATA --pretrained WEIGHTS        # cmmfnet-paper's four losses
    python benchmarks/step.py --data DATA --pretrained WEIGHTS --batch 24 48 96 --profile
    python benchmarks/step.py --data DATA --pretrained WEIGHTS --curve 60   # losses, step by step

A step is the whole of it: forward, losses, backward, clipping, optimiser, averaged weights. "plain"
is the network and the losses as they are written, also as CUDA graphs. Tags stand in for CLIP's
sentences and VGG-16 for VGG-19 where these are not at hand, which changes the speed by the frozen
network's last convolutions only. ``--without`` leaves twins out, to see what each is worth.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from network import leave_out

from cmmfnet.data.batches import Batches
from cmmfnet.nn.fast.modules import FAST
from cmmfnet.training.recipe import Recipe, find_config, read_recipe
from cmmfnet.training.run import Run


@contextlib.contextmanager
def plain():
    """No fast twin takes the place of its plain module."""
    before = dict(FAST)
    FAST.clear()
    try:
        yield
    finally:
        FAST.update(before)


def recipe_of(given: argparse.Namespace, batch: int) -> Recipe:
    recipe = read_recipe(find_config("cmmfnet-paper"))
    model, options = recipe.model | {"text": "clip-tags"}, recipe.options | {"perceptual": "vgg16"}
    return replace(
        recipe,
        model=model,
        options=options,
        precision="bf16",
        batch_size=batch,
        steps=10_000,
        epochs=None,
    )


def begin(
    given: argparse.Namespace, batch: int, accelerator: Accelerator, out: Path
) -> tuple[Run, Iterator]:
    recipe = recipe_of(given, batch)
    run = Run(recipe, out, accelerator, pretrained=given.pretrained)
    batches = Batches(
        [source.opened(given.data) for source in recipe.sources], batch_size=batch,
        size=recipe.size,
        steps=recipe.steps, seed=recipe.seed, device=accelerator.device, rank=0, world=1,
        workers=given.workers,
        unpaired=False, frames=1,
    )  # fmt: skip
    return run, batches.from_step(0)


def seconds(run: Run, batch, repeats: int) -> float:
    """Median of a step."""
    for step in range(8):
        run.update(step, batch)
    found = []
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for step in range(repeats):
            run.update(step, batch)
        torch.cuda.synchronize()
        found.append((time.perf_counter() - start) / repeats)
    return statistics.median(found)


def profile(run: Run, batch, top: int = 40) -> None:
    steps, time_of, count_of = 4, Counter(), Counter()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        for step in range(steps):
            run.update(step, batch)
        torch.cuda.synchronize()
    for event in found.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            time_of[event.name] += event.device_time / steps / 1e3
            count_of[event.name] += 1 / steps
    print(
        f"all kernels: {sum(time_of.values()):.2f} ms, {sum(count_of.values()):.0f} launches a step"
    )
    for name, ms in time_of.most_common(top):
        print(f"{ms:8.3f} ms {count_of[name]:7.1f}x  {name[:130]}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--pretrained", type=Path)
    parser.add_argument("--batch", type=int, nargs="+", default=[24])
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument(
        "--profile", action="store_true", help="kernels of the first batch size, longest first"
    )
    parser.add_argument(
        "--ours",
        action="store_true",
        help="only the fast way; the plain one takes most of the time",
    )
    parser.add_argument(
        "--curve", type=int, default=0, metavar="STEPS", help="losses of both ways, no speed"
    )
    parser.add_argument("--without", nargs="*", default=(), metavar="MODULE")
    given = parser.parse_args()
    leave_out(given.without)
    torch.backends.cudnn.benchmark = True
    accelerator = Accelerator(mixed_precision="bf16")
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}; cmmfnet-paper, four losses, "
        "256x256, bfloat16"
    )
    ways = {"fast": contextlib.nullcontext, "plain": plain}
    with tempfile.TemporaryDirectory() as folder:
        if given.curve:
            for name, way in ways.items():
                with way():
                    run, stream = begin(given, given.batch[0], accelerator, Path(folder))
                    sums = {}
                    for step, batch in stream:
                        run.update(step, batch)
                        if (step + 1) % 10 == 0:
                            sums[step + 1] = sum(v for k, v in run.losses().items() if k != "norm")
                        if step + 1 == given.curve:
                            break
                    stream.close()
                print(
                    f"{name}: " + ", ".join(f"{step} {value:.4f}" for step, value in sums.items()),
                    flush=True,
                )
            return
        for batch_size in given.batch:
            for name, way in ways.items():
                if name == "plain" and (given.ours or batch_size != given.batch[0]):
                    continue
                with way():
                    run, stream = begin(given, batch_size, accelerator, Path(folder))
                    batch = next(stream)[1]
                    stream.close()
                    each = seconds(run, batch, given.repeats if name == "fast" else 3)
                    print(
                        f"batch {batch_size}, {name}: {each * 1e3:.1f} ms a step, "
                        f"{batch_size / each:.0f} images/s",
                        flush=True,
                    )
                    if given.profile and name == "fast" and batch_size == given.batch[0]:
                        profile(run, batch)
                del run, batch
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
