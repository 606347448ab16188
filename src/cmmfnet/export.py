"""``cmmfnet export``: a model as one ONNX file that measures its own parity with PyTorch and says all that colouring needs.

docs/onnx.md describes the graph for those who run it elsewhere; onnx_runtime.py runs it in Python without torch.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import json
import logging
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from cmmfnet.atomic import atomic_write
from cmmfnet.onnx_runtime import FORMAT
from cmmfnet.weights import describe, load_model

if TYPE_CHECKING:
    import onnx

OPSET = 20  # the first with Gelu
# Largest difference from PyTorch in float32, in colour values from -1 to 1 (half a grey level is .004) and in tags' probabilities
TOLERANCE = {"float32": 1e-3, "float16": 2e-2}
# float16 sums of a frame's squares lose what a variance is; these stay in float32
FLOAT32_OPERATORS = (
    "AveragePool",
    "InstanceNormalization",
    "LayerNormalization",
    "Pow",
    "Sqrt",
    "Sub",
    "ReduceMean",
    "Resize",
)
NO_GRAPH = {"palette": "its colours are sampled from noise of the frame's size, which a graph for any size cannot draw"}


class ExportError(ValueError):
    """The model has no ONNX form, or its graph does not give the network's colours; nothing was written."""


@dataclass(frozen=True)
class Parity:
    """Largest absolute differences from PyTorch in float32, over ``cases`` runs of the graph."""

    colour: float
    tags: float
    cases: int


def export(model: str = "cmmfnet", *, out: str, half: bool = False, int8: str | None = None) -> Path:
    """Write a model as an ONNX file for ONNX Runtime, OpenVINO or TensorRT.

    Any batch, height and width; text is an input that may be left out. The graph is run beside PyTorch at three sizes and two
    batches, with and without text, and nothing is written unless both agree.

    Args:
        model: a name of `cmmfnet models`, a .safetensors file, or hf:OWNER/REPO@COMMIT
        out: the file to write, NAME.onnx; one that is there is replaced
        half: float16 weights and arithmetic, for GPUs; half the size
        int8: 8-bit convolutions, for CPUs, calibrated on thermal frames like those to be coloured: a picture, a folder, a
            glob in quotes, or scenes:COUNT for rendered ones

    Returns:
        The file.

    Raises:
        ExportError, ModelError, SourceError: nothing was written. ImportError: onnx, onnxscript or onnxruntime is missing.
    """
    path = Path(out)
    if path.suffix != ".onnx":
        raise ExportError(f"--out is {out!r}; a graph is written as NAME.onnx: {path.with_suffix('.onnx')}")
    if half and int8 is not None:
        raise ExportError("--half is for GPUs and --int8 for CPUs; give one of them")
    _needs("onnx", "onnxscript", "onnxruntime")
    loaded, about = load_model(model), describe(model)
    if reason := NO_GRAPH.get(loaded.config["method"]):
        raise ExportError(f"{loaded.name}: {loaded.config['method']} cannot be exported: {reason}")
    graph = convert(loaded.network, loaded.name)
    precision = "float16" if half else "float32"
    if half:
        graph = to_float16(graph)
    optional_text(graph)
    metadata = describe_network(loaded.network) | {
        "format": FORMAT, "model": loaded.name, "method": loaded.config["method"], "sha256": about["sha256"],
        "licence": about["licence"], "precision": precision,
    }  # fmt: skip
    set_metadata(graph, metadata)
    parity = measure_parity(loaded.network, graph)
    if max(parity.colour, parity.tags) > TOLERANCE[precision]:
        raise ExportError(
            f"{loaded.name}: the graph's colours differ from PyTorch's by up to {parity.colour:.2g} and its tags by "
            f"{parity.tags:.2g}; at most {TOLERANCE[precision]:g} is allowed in {precision}. {path} was not written"
        )
    print(f"largest difference from PyTorch in {parity.cases} runs: {parity.colour:.2g} of colours from -1 to 1")
    metadata["parity"] = f"{parity.colour:.3g}"
    if int8 is not None:
        from cmmfnet.quantise import quantise

        graph, metadata["int8"] = quantise(graph, int8)
        metadata["precision"] = "int8"
        print(metadata["int8"])
    set_metadata(graph, metadata)
    with atomic_write(path) as file:
        file.write(graph.SerializeToString())
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {metadata['precision']}")
    return path


def _needs(*packages: str) -> None:
    import importlib.util

    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(f"cmmfnet export needs {', '.join(missing)}: pip install {' '.join(missing)}")


# --- the graph


class _Graph(nn.Module):
    """What becomes the graph: thermal, and text where the network takes some -> colour, and tags where it predicts some."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.source = getattr(network, "text_source", "none")
        self.tags = bool(getattr(network, "predicts_tags", False))
        self.heads = "heads" in inspect.signature(network.forward).parameters

    def forward(self, thermal: Tensor, text: Tensor | None = None, text_mask: Tensor | None = None):
        return self._answer(thermal, self.network.embed_tags(text) if self.source == "clip-tags" else text, text_mask)

    def without_text(self, thermal: Tensor):
        return self._answer(thermal, None, None)

    def _answer(self, thermal: Tensor, text: Tensor | None, text_mask: Tensor | None):
        if not self.tags:
            return self.network(thermal, text, text_mask)
        if self.heads:  # one pass through the image encoder for both
            colour, logits = self.network(thermal, text, text_mask, heads=True)[:2]
            return colour, torch.sigmoid(logits)
        return self.network(thermal, text, text_mask), self.network.predict_tags(thermal)


def convert(network: nn.Module, name: str = "network") -> onnx.ModelProto:
    """The network as a float32 graph with dynamic batch, height and width (one size where it has a ``fixed_size``).

    Inputs ``thermal`` (B,1,H,W) and, where the network takes text, ``text`` and ``text_mask`` (B,L) bool: ``text`` is (B,L) int64,
    indices into ``words``, for clip-tags, and (B,L,D) float32 for clip-sentence. Outputs ``colour`` (B,3,H,W) and, where the
    network predicts tags, ``tags`` (B,words), probabilities.

    Raises:
        ExportError: PyTorch cannot express it; the message has its reason.
    """
    wrapped = _Graph(network.float().cpu().eval())
    dim = torch.export.Dim
    batch, multiple, fixed = dim("batch"), getattr(network, "multiple_of", 8), getattr(network, "fixed_size", None)
    steps = max(
        2, math.ceil(64 / multiple)
    )  # two or more, and not as many in both: nothing may be taken for equal or for 1
    height, width = (fixed, fixed) if fixed else ((steps + 1) * multiple, (steps + 3) * multiple)
    size = {} if fixed else {2: multiple * dim("rows"), 3: multiple * dim("columns")}
    inputs, shapes = {"thermal": frames(2, height, width)}, {"thermal": {0: batch} | size}
    if wrapped.source != "none":
        tokens = dim("tokens", min=1, max=_longest_text(network))
        inputs |= some_text(network, 2, min(3, _longest_text(network)))
        shapes |= {"text": {0: batch, 1: tokens}, "text_mask": {0: batch, 1: tokens}}
    try:
        with _quiet():
            program = torch.onnx.export(
                wrapped, tuple(inputs.values()), input_names=list(inputs), dynamic_shapes=shapes, opset_version=OPSET,
                output_names=["colour", "tags"] if wrapped.tags else ["colour"], dynamo=True, verbose=False,
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(f"{name} cannot be exported by torch {torch.__version__}: {_reason(error)}") from error
    graph = program.model_proto
    for given, dims in zip(graph.graph.input, shapes.values(), strict=True):
        for i in dims:  # the exporter falls back on the example's own size where the code leaves no other
            found = given.type.tensor_type.shape.dim[i]
            if not found.dim_param:
                raise ExportError(
                    f"{name} cannot be exported: its code fixes dimension {i} of {given.name!r} to {found.dim_value}"
                )
    return graph


def _longest_text(network: nn.Module) -> int:
    return getattr(getattr(network, "interaction", None), "length", 77)


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:400]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports its stages and its own deprecations; a user can do nothing about either."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def to_float16(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Weights and arithmetic in float16, but for ``FLOAT32_OPERATORS``; inputs and outputs stay float32."""
    from onnxruntime.transformers import float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    kept = [*float16.DEFAULT_OP_BLOCK_LIST, *FLOAT32_OPERATORS]
    smaller = float16.convert_float_to_float16(graph, keep_io_types=True, op_block_list=kept)
    OnnxModel(smaller).topological_sort()  # the casts of inputs come last
    return smaller


def optional_text(graph: onnx.ModelProto) -> None:
    """Make ``text`` and ``text_mask`` inputs with a default, which is no text, and let one text serve a whole batch.

    An initializer with the name of an input is that input's default (ONNX IR, "Graphs"), so that a program which gives
    ``thermal`` alone gets what the network gives without text.
    """
    from onnx import helper, numpy_helper

    inputs = {each.name: each for each in graph.graph.input}
    if "text" not in inputs:
        return
    nodes = [helper.make_node("Shape", ["thermal"], ["frames_in_batch"], start=0, end=1)]
    for name in ("text", "text_mask"):
        kind = inputs[name].type.tensor_type
        dims = [d.dim_value or d.dim_param for d in kind.shape.dim]
        ones = numpy_helper.from_array(np.ones(len(dims) - 1, dtype=np.int64), f"{name}_ones")
        graph.graph.initializer.append(ones)
        for node in graph.graph.node:
            for i, given in enumerate(node.input):
                if given == name:
                    node.input[i] = f"{name}_each"
        nodes += [
            helper.make_node("Concat", ["frames_in_batch", ones.name], [f"{name}_shape"], axis=0),
            helper.make_node("Expand", [name, f"{name}_shape"], [f"{name}_each"]),
        ]
        default = np.zeros(
            [d if isinstance(d, int) else 1 for d in dims], helper.tensor_dtype_to_np_dtype(kind.elem_type)
        )
        graph.graph.initializer.append(numpy_helper.from_array(default, name))
        kind.shape.dim[0].dim_param = "texts"  # 1, or as many as frames
    for node in reversed(nodes):
        graph.graph.node.insert(0, node)


def describe_network(network: nn.Module) -> dict[str, str]:
    """What FrameColorizer asks of a network, as the strings that ONNX metadata take."""
    found: dict[str, Any] = {
        "text_source": getattr(network, "text_source", "none"),
        "words": list(getattr(network, "words", [])),
        "multiple_of": getattr(network, "multiple_of", 8),
        "fixed_size": getattr(network, "fixed_size", None),
        "least_size": getattr(network, "least_size", 0),
        "working_size": getattr(network, "working_size", 512),
        "predicts_tags": bool(getattr(network, "predicts_tags", False)),
        "default_text": getattr(network, "default_text", "none"),
        "tag_threshold": getattr(network, "tag_threshold", 0.5),
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in found.items()}


def set_metadata(graph: onnx.ModelProto, metadata: dict[str, str]) -> None:
    from onnx import helper

    del graph.metadata_props[:]
    helper.set_model_props(graph, metadata)


# --- parity


def frames(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth regions with edges and noise, (B,1,H,W) float32 in [-1,1]: as unlike from place to place as a thermal frame."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 1, 6, 7, generator=generator) * 2 - 1
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    noise = torch.randn(batch, 1, height, width, generator=generator)
    return (smooth + 0.5 * (smooth > 0.2) + 0.05 * noise).clamp(-1, 1)


def some_text(network: nn.Module, batch: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """``text`` and ``text_mask`` inputs of the graph, of which the first frame's last token is not valid."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, length, dtype=torch.bool)
    mask[0, -1] = length == 1
    if network.text_source == "clip-tags":
        text = torch.randint(len(network.words), (batch, length), generator=generator)
    else:
        text = torch.randn(batch, length, network.text_width, generator=generator)
    return {"text": text, "text_mask": mask}


def measure_parity(network: nn.Module, graph: onnx.ModelProto) -> Parity:
    """Run the graph on the CPU beside the network, at three sizes (one of a ``fixed_size``) and batches of 1 and 3.

    A batch of 1 goes without text, the graph's inputs for it left out; where the network takes text, frames of a batch of 3
    have texts of different length. The reference is what Colorizer computes in float32.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    multiple, fixed = getattr(network, "multiple_of", 8), getattr(network, "fixed_size", None)
    least = max(1, math.ceil(64 / multiple))
    sizes = [(least, least + 1), (least + 2, least), (math.ceil(192 / multiple), math.ceil(256 / multiple))]
    wrapped = _Graph(network)
    worst = [0.0, 0.0]
    runs = list(itertools.product([(1, 1)] if fixed else sizes, (1, 3)))
    for (rows, columns), batch in runs:
        thermal = frames(batch, rows * (fixed or multiple), columns * (fixed or multiple), seed=rows)
        text: dict[str, Tensor] = {}
        if wrapped.source != "none" and batch > 1:
            text = some_text(network, batch, min(4, _longest_text(network)), seed=rows)
        with torch.inference_mode():
            expected = wrapped(thermal, **text) if text or wrapped.source == "none" else wrapped.without_text(thermal)
        given = session.run(None, {"thermal": thermal.numpy()} | {key: value.numpy() for key, value in text.items()})
        for i, (one, other) in enumerate(zip(given, expected if wrapped.tags else [expected], strict=True)):
            if not np.isfinite(one).all():
                raise ExportError(
                    f"the graph gives NaN or infinite values for {tuple(thermal.shape)}; nothing was written"
                )
            worst[i] = max(worst[i], float(np.abs(one - other.numpy()).max()))
    return Parity(*worst, len(runs))
