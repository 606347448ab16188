"""Which way of running a model is fastest on this CPU, and where its time goes
(docs/performance.md).

    python benchmarks/cpu.py   # PyTorch: eager float32, bfloat16, compiled; ResNet-9
    python benchmarks/cpu.py --onnx cmmfnet.onnx --int8 int8.onnx   # ONNX Runtime, OpenVINO, too
    python benchmarks/cpu.py --parts   # multiply-adds, bytes and time of each part

One process, every round runs every way once, so that a machine whose speed drifts slows all alike:
read the ratios. ``wall`` is what a user waits; ``cpu`` (seconds of all threads) hardly changes
where other programs share the machine. A frame is a tensor in memory before, and after. Medians of
the rounds after a warm-up.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command line does

import numpy as np
import torch
from torch import nn

from cmmfnet.export.graph import frames
from cmmfnet.methods.cyclegan import ResnetGenerator
from cmmfnet.weights.files import load_model

Way = Callable[[np.ndarray], np.ndarray]


def in_torch(network: nn.Module, *, bfloat16: bool = False) -> Way:
    def run(thermal: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return network(torch.from_numpy(thermal)).float().numpy()

    return run


def in_onnx_runtime(path: Path, threads: int) -> Way:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda thermal: session.run(["colour"], {"thermal": thermal})[0]


def in_openvino(path: Path, threads: int, precision: str) -> Way:
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", settings)
    return lambda thermal: compiled({"thermal": thermal})[compiled.output("colour")]


def ways(
    model: str, onnx: Path | None, int8: Path | None, threads: int, skip: set[str]
) -> dict[str, Way]:
    network = load_model(model).network
    found: dict[str, Callable[[], Way]] = {
        "PyTorch eager float32": lambda: in_torch(network),
        "PyTorch eager bfloat16": lambda: in_torch(network, bfloat16=True),
        "PyTorch compiled float32": lambda: in_torch(torch.compile(network)),
        "PyTorch compiled bfloat16": lambda: in_torch(torch.compile(network), bfloat16=True),
        "ResNet-9, PyTorch eager float32": lambda: in_torch(
            ResnetGenerator().eval().requires_grad_(False)
        ),
    }
    if onnx is not None:
        found["ONNX Runtime float32"] = lambda: in_onnx_runtime(onnx, threads)
        found["OpenVINO float32"] = lambda: in_openvino(onnx, threads, "f32")
        found["OpenVINO bfloat16"] = lambda: in_openvino(onnx, threads, "bf16")
    if int8 is not None:
        found["ONNX Runtime int8"] = lambda: in_onnx_runtime(int8, threads)
        found["OpenVINO int8"] = lambda: in_openvino(int8, threads, "f32")
        found["OpenVINO int8 and bfloat16"] = lambda: in_openvino(int8, threads, "bf16")
    made = {}
    for name, make in found.items():
        if any(word in name for word in skip):
            continue
        try:
            made[name] = make()
        except ImportError as error:
            print(f"without {name}: {error}")
    return made


def compare(all_ways: dict[str, Way], size: tuple[int, int], rounds: int) -> list[dict]:
    """One row a way: seconds, ratios to the first way (above 1: faster than that) and the
    difference of its colours."""
    thermal = frames(1, *size, seed=5).numpy()
    reference, rows, working = None, {}, dict(all_ways)
    for name, run in all_ways.items():
        try:
            started = time.perf_counter()
            colour = run(thermal)
            first = time.perf_counter() - started
            run(thermal)
        except (
            Exception
        ) as error:  # a compiler that is not there, for example; the table says so, and goes on
            print(f"{name} failed: {type(error).__name__}: {str(error).splitlines()[0][:160]}")
            del working[name]
            continue
        reference = colour if reference is None else reference
        off = np.abs(colour - reference) * 127.5
        rows[name] = {
            "way": name,
            "first": first,
            "wall": [],
            "cpu": [],
            "mean_off": off.mean(),
            "largest_off": off.max(),
        }
    for _ in range(rounds):
        for name, run in working.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run(thermal)
            rows[name]["wall"].append(time.perf_counter() - wall)
            rows[name]["cpu"].append(time.process_time() - cpu)
    base = rows[next(iter(rows))]
    bases = {key: list(base[key]) for key in ("wall", "cpu")}
    for row in rows.values():
        for key in ("wall", "cpu"):
            row[f"{key}_ratio"] = statistics.median(
                b / mine for b, mine in zip(bases[key], row[key], strict=True)
            )
            row[f"{key}_least"], row[key] = min(row[key]), statistics.median(row[key])
    return list(rows.values())


def parts(network: nn.Module, size: tuple[int, int], rounds: int) -> list[dict]:
    """Each part of the network: multiply-adds, least traffic (weights, input and output of every
    layer once), seconds.

    Counted on tensors without data, and then timed; ``rounds`` 0 only counts.
    """
    from torch.utils.flop_counter import FlopCounterMode

    counted = copy.deepcopy(network).to("meta")
    rows = {}
    with contextlib.ExitStack() as stack:
        for name, module in _parts(counted):
            rows[name] = {"part": name, "multiply_adds": 0, "least_bytes": 0}

            def traffic(layer: nn.Module, given: tuple, result, row=rows[name]) -> None:
                tensors = [t for t in (*given, result) if isinstance(t, torch.Tensor)]
                row["least_bytes"] += sum(
                    t.numel() * 4 for t in [*tensors, *layer.parameters(recurse=False)]
                )

            for layer in module.modules():
                if isinstance(layer, nn.Conv2d | nn.Linear | nn.LayerNorm):
                    stack.callback(layer.register_forward_hook(traffic).remove)
        with FlopCounterMode(display=False) as counter:
            counted(torch.zeros(1, 1, *size, device="meta"))
    counts = counter.get_flop_counts()
    for name, module in _parts(counted):
        path = f"{type(network).__name__}.{name}"
        # a list of layers that is not called itself has its counts under each of them
        paths = (
            [path] if path in counts else [f"{path}.{i}" for i, _ in enumerate(module.children())]
        )
        rows[name]["multiply_adds"] = (
            sum(sum(counts[each].values()) for each in paths if each in counts) // 2
        )
    if rounds:
        _time_parts(network, size, rounds, rows)
    return [row for row in rows.values() if row["multiply_adds"]]


def _parts(network: nn.Module) -> list[tuple[str, nn.Module]]:
    found = []
    for name, module in network.named_children():
        inner = module.named_children() if name == "image_encoder" else ()
        found += [(f"{name}.{each}", part) for each, part in inner] or [(name, module)]
    return found


def _time_parts(
    network: nn.Module, size: tuple[int, int], rounds: int, rows: dict[str, dict]
) -> None:
    """Median seconds a frame, in eager float32 as Colorizer computes; what lies between parts
    (joins, resizing) is left out."""
    thermal, now, started = frames(1, *size, seed=5), dict.fromkeys(rows, 0.0), {}
    times: dict[str, list[float]] = {name: [] for name in rows}
    with contextlib.ExitStack() as stack, torch.inference_mode():
        for name, module in _parts(network):

            def enter(*_, name=name) -> None:
                started[name] = time.perf_counter()

            def leave(*_, name=name) -> None:
                now[name] += time.perf_counter() - started[name]

            lists = (
                isinstance(module, nn.ModuleList) or name == "image_encoder.stem"
            )  # which is run layer by layer
            for each in module if lists else [module]:
                stack.callback(each.register_forward_pre_hook(enter).remove)
                stack.callback(each.register_forward_hook(leave).remove)
        for _ in range(rounds + 1):
            now.update(dict.fromkeys(now, 0.0))
            network(thermal)
            for name, seconds in now.items():
                times[name].append(seconds)
    for name, row in rows.items():
        row["seconds"] = statistics.median(times[name][1:])


def machine(threads: int) -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next(
        (line.split(": ")[1] for line in lines if line.startswith("model name")),
        platform.processor(),
    )
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    versions = {"torch": torch.__version__, "numpy": np.__version__}
    for package in ("onnxruntime", "openvino"):
        with contextlib.suppress(ImportError):
            versions[package] = __import__(package).__version__
    known = [
        flag
        for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
        if flag in flags
    ]
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "threads": threads,
        "instructions": known,
        "load": os.getloadavg()[0],
    } | versions


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="cmmfnet", help="a model that `cmmfnet models` knows, or its file"
    )
    parser.add_argument("--onnx", type=Path, help="its export in float32")
    parser.add_argument("--int8", type=Path, help="its export in int8")
    parser.add_argument(
        "--sizes", default="256x320,512x640", help="HEIGHTxWIDTH, with commas between"
    )
    parser.add_argument("--rounds", type=int, default=9, help="0 with --parts: count, do not time")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--skip", default="", help="ways whose names hold one of these words, with commas between"
    )
    parser.add_argument("--parts", action="store_true", help="where PyTorch's time goes, instead")
    parser.add_argument("--json", type=Path, help="also write machine and rows to this file")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    about = machine(given.threads)
    print(json.dumps(about))
    tables = {}
    made = (
        None
        if given.parts
        else ways(
            given.model,
            given.onnx,
            given.int8,
            given.threads,
            set(filter(None, given.skip.split(","))),
        )
    )
    for text in given.sizes.split(","):
        size = tuple(map(int, text.split("x")))
        if given.parts:
            tables[text] = parts(load_model(given.model).network, size, given.rounds)
            print(f"\n{text}: part, million multiply-adds, MB moved at least, ms, GMAC/s")
            for row in tables[text]:
                mac, seconds = row["multiply_adds"], row.get("seconds", math.nan)
                print(
                    f"  {row['part']:26} {mac / 1e6:8.0f} {row['least_bytes'] / 1e6:8.1f} "
                    f"{seconds * 1e3:8.1f} "
                    f"{mac / seconds / 1e9:8.1f}"
                )
            total = sum(row["multiply_adds"] for row in tables[text])
            print(
                f"  {'all':26} {total / 1e6:8.0f} "
                f"{sum(r['least_bytes'] for r in tables[text]) / 1e6:8.1f}"
            )
            continue
        tables[text] = compare(made, size, given.rounds)
        print(
            f"\n{text}: s a frame (least), ratio to the first; CPU s, ratio; grey levels off in "
            "the mean and at most"
        )
        for row in tables[text]:
            print(
                f"  {row['way']:32} {row['wall']:6.3f} ({row['wall_least']:.3f}) "
                f"{row['wall_ratio']:5.2f}   "
                f"{row['cpu']:6.3f} {row['cpu_ratio']:5.2f}   {row['mean_off']:6.2f} "
                f"{row['largest_off']:6.1f}"
            )
    if given.json:
        given.json.write_text(
            json.dumps({"machine": about, "tables": tables}, indent=1, default=float) + "\n"
        )


if __name__ == "__main__":
    main()
