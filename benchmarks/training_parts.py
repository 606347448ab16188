"""What a training step takes beside the generator, part by part, by PyTorch's operators and as this package does it.

    python benchmarks/training_parts.py --pretrained WEIGHTS

Milliseconds by the clock and in the card's kernels, of 24 pictures of 256x256 under bfloat16, forward and backward; medians.
"Operators" has our pass that adds a bias and its ReLU; "graph" is how a training runs it. AdamW, clipping and the average are of
the paper's 40 M parameters. `--kernels` also lists what takes the time in the last of each part's ways.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from cmmfnet import losses
from cmmfnet.averaging import EMA
from cmmfnet.methods import build_network
from cmmfnet.methods.cmmfnet import PAPER
from cmmfnet.methods.graphed import Graphed
from cmmfnet.methods.matched import Against
from cmmfnet.perceptual import Perceptual


class Eager(nn.Module):
    """``Against`` by the formulas of losses.py and the layers of perceptual.py."""

    def __init__(self, names: set[str], distance: Perceptual | None):
        super().__init__()
        self.names, self.distance = names, distance

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        found = {}
        if "l1" in self.names:
            found = {"l1": losses.l1(x, y), "tv": losses.total_variation(x), "ssim": losses.ssim_loss(x, y)}
        if "perceptual" in self.names:
            with torch.no_grad():
                theirs = self.distance.features(y)
            maps = zip(self.distance.features(x), theirs, strict=True)
            each = [(a - b).abs().mean(dim=(1, 2, 3), dtype=torch.float32) for a, b in maps]
            found["perceptual"] = torch.stack(each).sum(dim=0).mean()
        return found


def measure(step: Callable[[], object], rounds: int = 15) -> tuple[float, float, list[tuple[str, float]]]:
    """Median milliseconds of a step by the clock; in kernels; and the kernels that take most of it."""
    for _ in range(4):
        step()
    times = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        began = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - began) * 1e3)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(3):
            step()
        torch.cuda.synchronize()
    rows = [(event.key, event.self_device_time_total / 3e3) for event in profile.key_averages()]
    return statistics.median(times), sum(t for _, t in rows), sorted(rows, key=lambda row: -row[1])


def loss_step(module: Callable[..., dict[str, Tensor]], x: Tensor, y: Tensor) -> Callable[[], list[Tensor]]:
    def step() -> list[Tensor]:
        with torch.autocast("cuda", torch.bfloat16):
            found = module(x, y)
            total = sum(found.values())
        (dx,) = torch.autograd.grad(total, x)
        return [*(found[name].detach().clone() for name in sorted(found)), dx.float()]

    return step


def optimiser_steps() -> dict[str, Callable[[], None]]:
    network = build_network(PAPER).cuda()
    parameters = list(network.parameters())
    for p in parameters:
        p.grad = torch.randn_like(p) * 1e-3
    average = EMA(network, 0.999)
    optimiser = torch.optim.AdamW(parameters, 1e-4, fused=True)

    def eager() -> None:
        nn.utils.clip_grad_norm_(parameters, float("inf"))
        optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.network.parameters()), list(network.parameters()), 1e-3)
            for mine, theirs in zip(average.network.buffers(), network.buffers(), strict=True):
                mine.copy_(theirs)

    def ours() -> None:
        nn.utils.get_total_norm([p.grad for p in parameters])
        optimiser.step()
        average.update(network, 10**6)

    return {"operators": eager, "ours": ours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--kernels", action="store_true")
    given = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    distance = Perceptual("vgg16", "l1", given.pretrained).cuda()
    y = torch.rand(given.batch, 3, 256, 256, device="cuda") * 2 - 1
    x = (0.7 * y + 0.3 * (torch.rand_like(y) * 2 - 1)).bfloat16().requires_grad_()
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, batch {given.batch}; ms by the clock, in kernels"
    )
    parts = {
        "L1, TV, SSIM": {"l1", "tv", "ssim"},
        "perceptual": {"perceptual"},
        "all four": {"l1", "tv", "ssim", "perceptual"},
    }
    for title, names in parts.items():
        seen = distance if "perceptual" in names else None
        ways = {
            "operators": Eager(names, seen), "operators, graph": Graphed(Eager(names, seen)),
            "ours": Against(names, seen), "ours, graph": Graphed(Against(names, seen)),
        }  # fmt: skip
        first = None
        for way, module in ways.items():
            step = loss_step(module, x, y)
            clock, kernels, rows = measure(step)
            results = step()
            first = first or [r.double() for r in results]
            off = [float((a - b).norm() / b.norm()) for a, b in zip(results, first, strict=True)]
            said = ", ".join(f"{o:.1e}" for o in off)
            print(f"{title:13} {way:17} {clock:7.2f} {kernels:7.2f}   off the first: {said}", flush=True)
        if given.kernels:
            for key, ms in rows[:24]:
                print(f"    {ms:7.3f}  {key[:110]}")
    for way, step in optimiser_steps().items():
        clock, kernels, rows = measure(step)
        print(f"{'AdamW and all':13} {way:17} {clock:7.2f} {kernels:7.2f}", flush=True)
    if given.kernels:
        for key, ms in rows[:8]:
            print(f"    {ms:7.3f}  {key[:110]}")


if __name__ == "__main__":
    main()
