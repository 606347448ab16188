"""Pictures a second of whole networks in inference, on one GPU, in one run: ours, ours without our
kernels, and the others.

    python benchmarks/network.py                                   # batch 16, 256x256, bfloat16
    python benchmarks/network.py --batch 1 --networks cmmfnet-paper cmmfnet
    python benchmarks/network.py --frame     # one 640x512 frame through Colorizer, end to end

"plain" is the network as it is written, "fast" with the twins of cmmfnet.nn.fast; each launched
from Python and as a CUDA graph of the whole network. "compiled" is torch.compile of the plain
network. Weights are random (speed does not depend on them). The better of both memory formats is
shown. Medians; warmed up. ``--without`` leaves twins out, to see what each is worth.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch
from cuda_graph import captured
from torch import Tensor, nn

from cmmfnet.methods import build_network, method_class
from cmmfnet.nn.fast.modules import FAST, accelerate
from cmmfnet.training.recipe import find_config, read_recipe

NETWORKS = ["cmmfnet-paper", "cmmfnet", "lkatgan", "ticcgan", "mugan", "cyclegan", "pix2pix"]


def build(name: str, device: torch.device) -> nn.Module:
    model = dict(read_recipe(find_config(name)).model)
    torch.manual_seed(0)
    return build_network(method_class(model["method"]).configuration(model)).to(device).eval()


def text_of(
    network: nn.Module, batch: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor] | None:
    """A caption's worth of tokens: as many as the network's source of text gives."""
    source = getattr(network, "text_source", "none")
    if source == "none":
        return None
    length = 77 if source == "clip-sentence" else 8
    tokens = torch.randn(batch, length, network.text_width, device=device, dtype=dtype)
    return tokens, torch.ones(batch, length, dtype=torch.bool, device=device)


def seconds(function, device: torch.device, repeats: int) -> float:
    """Median of one call."""
    for _ in range(max(3, repeats // 5)):
        function()
    found = []
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def measure(
    name: str, given: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> dict[str, float]:
    """Pictures a second by way of running."""
    network = build(name, device).to(dtype)
    height, width = given.size
    thermal = torch.rand(given.batch, 1, height, width, device=device, dtype=dtype) * 2 - 1
    text = text_of(network, given.batch, device, dtype) or ()

    def run() -> Tensor:
        return network(thermal, *text)

    def speeds(way: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for layout in (torch.contiguous_format, torch.channels_last):
            network.to(memory_format=layout)
            each = {way: given.batch / seconds(run, device, given.repeats)}
            if device.type == "cuda":
                replay = captured(run)
                each[f"{way}, graph"] = given.batch / seconds(replay, device, given.repeats)
            found = {name: max(speed, found.get(name, 0)) for name, speed in each.items()}
        return found

    with torch.inference_mode():
        found = speeds("plain")
        accelerate(network)
        found |= speeds("fast")
    if given.compile:
        network = torch.compile(build(name, device).to(dtype))
        with torch.inference_mode():
            found |= speeds("compiled")
    return found


def frame(device: torch.device, repeats: int) -> None:
    """One 640x512 frame, array in, array out, through Colorizer with the bundled model."""
    from cmmfnet.colorizer.torch import Colorizer

    picture = np.random.default_rng(0).integers(7000, 9000, (512, 640)).astype(np.uint16)
    for dtype in (None, torch.float32):
        colorizer = Colorizer.from_pretrained(device=device, dtype=dtype)
        for text in ("", "a road with a red car, trees and snow"):
            once = seconds(
                lambda colorizer=colorizer, text=text: colorizer(picture, text=text),
                device,
                repeats,
            )
            shown = dtype or "the default dtype"
            print(
                f"Colorizer, cmmfnet, 640x512, {shown}, text {text!r}: {once * 1e3:.2f} ms a "
                "frame, memory to memory"
            )


def leave_out(names: Sequence[str]) -> None:
    """Take these twins, by the names of their plain modules, out of what ``accelerate`` puts in."""
    for plain in [plain for plain in FAST if plain.__name__ in names]:
        del FAST[plain]


def main() -> None:
    kinds = sorted(plain.__name__ for plain in FAST)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument(
        "--size", type=int, nargs=2, default=(256, 256), metavar=("HEIGHT", "WIDTH")
    )
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument(
        "--compile", action="store_true", help="also torch.compile, which takes minutes to warm up"
    )
    parser.add_argument("--frame", action="store_true")
    parser.add_argument("--without", nargs="*", default=(), choices=kinds, metavar="MODULE")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    leave_out(given.without)
    device, dtype = torch.device(given.device), getattr(torch, given.dtype)
    torch.backends.cudnn.benchmark = True
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    size = f"{given.size[0]}x{given.size[1]}"
    print(
        f"{name}, torch {torch.__version__}; batch {given.batch}, {size}, {given.dtype}; images a "
        "second"
    )
    if given.frame:
        frame(device, given.repeats)
        return
    ways = [f"{way}{how}" for way in ("plain", "fast", "compiled") for how in ("", ", graph")]
    print(f"| network | parameters | {' | '.join(ways)} |\n" + "| --- " * 8 + "|")
    for network in given.networks:
        built = build(network, torch.device("cpu"))
        count = sum(p.numel() for p in built.parameters()) / 1e6
        fixed, multiple = getattr(built, "fixed_size", None), getattr(built, "multiple_of", 1)
        if any((fixed and side != fixed) or side % multiple for side in given.size):
            print(
                f"| {network} | {count:.1f} M | takes {fixed or f'multiples of {multiple}'} only "
                "| | | | |"
            )
            continue
        found = measure(network, given, device, dtype)
        cells = [f"{found[way]:.0f}" if way in found else "" for way in ways]
        print(f"| {network} | {count:.1f} M | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
