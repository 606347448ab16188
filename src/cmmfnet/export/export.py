"""``cmmfnet export``: a model as one ONNX file that measures its own parity with PyTorch and says
all that colouring needs.

docs/onnx.md describes the graph for those who run it elsewhere; onnx_runtime.py runs it in Python
without torch.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from cmmfnet.colorizer.onnx import FORMAT
from cmmfnet.export.graph import (
    ExportError,
    Graph,
    convert,
    describe_network,
    frames,
    longest_text,
    optional_text,
    set_metadata,
    some_text,
    to_float16,
)
from cmmfnet.files.atomic import atomic_write, clear_parts
from cmmfnet.weights.files import describe, load_model

if TYPE_CHECKING:
    import onnx

# Largest difference from PyTorch in float32, in colour values from -1 to 1 (half a grey level is
# .004) and in tags' probabilities
TOLERANCE = {"float32": 1e-3, "float16": 2e-2}
NO_GRAPH = {
    "palette": "its colours are sampled from noise of the frame's size, which a graph for any "
    "size cannot draw"
}


@dataclass(frozen=True)
class Parity:
    """Largest absolute differences from PyTorch in float32, over ``cases`` runs of the graph."""

    colour: float
    tags: float
    cases: int


def export(
    model: str = "cmmfnet", *, out: str, half: bool = False, int8: str | None = None
) -> Path:
    """Write a model as an ONNX file for ONNX Runtime, OpenVINO or TensorRT.

    Any batch, height and width; text is an input that may be left out. The graph is run beside
    PyTorch at three sizes and two batches, with and without text, and nothing is written unless
    both agree.

    Args:
        model: a name of `cmmfnet models`, a .safetensors file, or hf:OWNER/REPO@COMMIT
        out: the file to write, NAME.onnx; one that is there is replaced
        half: float16 weights and arithmetic, for GPUs; half the size
        int8: 8-bit convolutions, for CPUs, calibrated on thermal frames like those to be coloured:
            a picture, a folder, a glob in quotes, or scenes:COUNT for rendered ones

    Returns:
        The file.

    Raises:
        ExportError, ModelError, UserError: nothing was written. ImportError: onnx, onnxscript or
        onnxruntime is missing.
    """
    path = Path(out)
    if path.suffix != ".onnx":
        raise ExportError(
            f"--out is {out!r}; a graph is written as NAME.onnx: {path.with_suffix('.onnx')}"
        )
    if half and int8 is not None:
        raise ExportError("--half is for GPUs and --int8 for CPUs; give one of them")
    _needs("onnx", "onnxscript", "onnxruntime")
    clear_parts(path.parent)
    loaded, about = load_model(model), describe(model)
    if reason := NO_GRAPH.get(loaded.config["method"]):
        raise ExportError(f"{loaded.name}: {loaded.config['method']} cannot be exported: {reason}")
    graph = convert(loaded.network, loaded.name)
    precision = "float16" if half else "float32"
    if half:
        graph = to_float16(graph)
    optional_text(graph)
    metadata = describe_network(loaded.network) | {
        "format": FORMAT, "model": loaded.name, "method": loaded.config["method"],
        "sha256": about["sha256"],
        "licence": about["licence"], "precision": precision,
    }  # fmt: skip
    set_metadata(graph, metadata)
    parity = measure_parity(loaded.network, graph)
    if max(parity.colour, parity.tags) > TOLERANCE[precision]:
        raise ExportError(
            f"{loaded.name}: the graph's colours differ from PyTorch's by up to "
            f"{parity.colour:.2g} and its tags by "
            f"{parity.tags:.2g}; at most {TOLERANCE[precision]:g} is allowed in {precision}. "
            f"{path} was not written"
        )
    print(
        f"largest difference from PyTorch in {parity.cases} runs: {parity.colour:.2g} of colours "
        "from -1 to 1"
    )
    metadata["parity"] = f"{parity.colour:.3g}"
    if int8 is not None:
        from cmmfnet.export.int8 import quantise

        graph, metadata["int8"] = quantise(graph, int8)
        metadata["precision"] = "int8"
        print(metadata["int8"])
    set_metadata(graph, metadata)
    with atomic_write(path) as file:
        file.write(graph.SerializeToString())
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {metadata['precision']}")
    return path


def _needs(*packages: str) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(
            f"cmmfnet export needs {', '.join(missing)}: pip install 'cmmfnet[export]'"
        )


# --- parity


def measure_parity(network: torch.nn.Module, graph: onnx.ModelProto) -> Parity:
    """Run the graph on the CPU beside the network, at three sizes (one of a ``fixed_size``) and
    batches of 1 and 3.

    A batch of 1 goes without text, the graph's inputs for it left out; where the network takes
    text, frames of a batch of 3 have texts of different length. The reference is what Colorizer
    computes in float32.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    multiple, fixed = getattr(network, "multiple_of", 8), getattr(network, "fixed_size", None)
    least = max(1, math.ceil(64 / multiple))
    sizes = [
        (least, least + 1),
        (least + 2, least),
        (math.ceil(192 / multiple), math.ceil(256 / multiple)),
    ]
    wrapped = Graph(network)
    worst = [0.0, 0.0]
    runs = list(itertools.product([(1, 1)] if fixed else sizes, (1, 3)))
    for (rows, columns), batch in runs:
        thermal = frames(
            batch, rows * (fixed or multiple), columns * (fixed or multiple), seed=rows
        )
        text: dict[str, torch.Tensor] = {}
        if wrapped.source != "none" and batch > 1:
            text = some_text(network, batch, min(4, longest_text(network)), seed=rows)
        with torch.inference_mode():
            expected = (
                wrapped(thermal, **text)
                if text or wrapped.source == "none"
                else wrapped.without_text(thermal)
            )
        given = session.run(
            None, {"thermal": thermal.numpy()} | {key: value.numpy() for key, value in text.items()}
        )
        for i, (one, other) in enumerate(
            zip(given, expected if wrapped.tags else [expected], strict=True)
        ):
            if not np.isfinite(one).all():
                raise ExportError(
                    f"the graph gives NaN or infinite values for {tuple(thermal.shape)}; nothing "
                    "was written"
                )
            worst[i] = max(worst[i], float(np.abs(one - other.numpy()).max()))
    return Parity(*worst, len(runs))
