"""A network as an ONNX graph: conversion by PyTorch, float16, default text, metadata."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from cmmfnet.colorizer.onnx import TEXT_INPUTS
from cmmfnet.files.errors import UserError
from cmmfnet.methods.traits import Traits, traits_of
from cmmfnet.text.attributes import ATTRIBUTES

if TYPE_CHECKING:
    import onnx

OPSET = 20  # the first with Gelu
TESTED = (2, 11)
"""The oldest version of torch that is known to export the networks; 2.6 to 2.9 do not."""
# float16 sums of squares are too coarse for a variance; these stay in float32
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


class Graph(nn.Module):
    """The module that is exported: thermal, and text if the network takes text -> colour, and tags
    if the network predicts tags."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.traits = traits_of(network)

    def forward(
        self,
        thermal: Tensor,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        text_colours: Tensor | None = None,
    ):
        if self.traits.takes_names:
            text = self.network.embed_tags(text, *(() if text_colours is None else (text_colours,)))
        return self._answer(thermal, text, text_mask)

    def without_text(self, thermal: Tensor):
        return self._answer(thermal, None, None)

    def _answer(self, thermal: Tensor, text: Tensor | None, text_mask: Tensor | None):
        if not self.traits.predicts_tags:
            return self.network(thermal, text, text_mask)
        if self.traits.heads:  # one pass through the image encoder for both
            colour, logits = self.network(thermal, text, text_mask, heads=True)[:2]
            return colour, torch.sigmoid(logits)
        return self.network(thermal, text, text_mask), self.network.predict_tags(thermal)


def convert(network: nn.Module, name: str = "network") -> onnx.ModelProto:
    """The network as a float32 graph with dynamic batch, height and width (one size where it has a
    ``fixed_size``).

    Inputs ``thermal`` (B,1,H,W) and, where the network takes text, ``text`` and ``text_mask`` (B,L)
    bool: ``text`` is (B,L) int64, indices into ``words``, for clip-tags, and (B,L,D) float32 for
    clip-sentence; where the network knows colours also ``text_colours`` (B,L,A) float32, weights
    over cmmfnet.text.attributes.ATTRIBUTES. Outputs ``colour`` (B,3,H,W) and, where the network
    predicts tags, ``tags`` (B,words), probabilities.

    Raises:
        UserError: PyTorch cannot express it; the message has its reason.
    """
    wrapped = Graph(network.float().cpu().eval())
    traits, dim = wrapped.traits, torch.export.Dim
    batch, multiple, fixed = dim("batch"), traits.multiple_of, traits.fixed_size
    steps = max(
        2, math.ceil(64 / multiple)
    )  # rows and columns differ and exceed 1, or the exporter takes them for equal or constant
    height, width = (fixed, fixed) if fixed else ((steps + 1) * multiple, (steps + 3) * multiple)
    size = {} if fixed else {2: multiple * dim("rows"), 3: multiple * dim("columns")}
    inputs, shapes = {"thermal": frames(2, height, width)}, {"thermal": {0: batch} | size}
    if traits.takes_text:
        tokens = dim("tokens", min=1, max=traits.text_length)
        text = some_text(traits, 2, min(3, traits.text_length))
        inputs |= text
        shapes |= {name: {0: batch, 1: tokens} for name in text}
    try:
        with _quiet():
            program = torch.onnx.export(
                wrapped, tuple(inputs.values()), input_names=list(inputs), dynamic_shapes=shapes,
                opset_version=OPSET,
                output_names=["colour", "tags"] if traits.predicts_tags else ["colour"],
                dynamo=True, verbose=False,
            )  # fmt: skip
    except RuntimeError as error:  # OnnxExporterError, and PassError of onnxscript
        old = tuple(map(int, torch.__version__.split(".")[:2])) < TESTED
        advice = f". Update torch to {TESTED[0]}.{TESTED[1]} or newer" if old else ""
        raise UserError(
            f"{name} cannot be exported by torch {torch.__version__}: {_reason(error)}{advice}"
        ) from error
    graph = program.model_proto
    for given, dims in zip(graph.graph.input, shapes.values(), strict=True):
        for (
            i
        ) in dims:  # the exporter fixes a size silently where the code works for that size alone
            found = given.type.tensor_type.shape.dim[i]
            if not found.dim_param:
                raise UserError(
                    f"{name} cannot be exported: its code fixes dimension {i} of {given.name!r} "
                    f"to {found.dim_value}"
                )
    return graph


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:400]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's stages and deprecation warnings, which a user cannot act on."""
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
    """Weights and arithmetic in float16, except ``FLOAT32_OPERATORS``, inputs and outputs."""
    from onnxruntime.transformers import float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    kept = [*float16.DEFAULT_OP_BLOCK_LIST, *FLOAT32_OPERATORS]
    smaller = float16.convert_float_to_float16(graph, keep_io_types=True, op_block_list=kept)
    _without_round_trips(smaller.graph)
    OnnxModel(smaller).topological_sort()  # the casts of inputs come last
    return smaller


def _without_round_trips(graph: onnx.GraphProto) -> None:
    """Remove casts to float16 and back, which the converter puts between two float32 operators and
    which round their values."""
    from onnx import TensorProto

    def target(node: onnx.NodeProto) -> int | None:
        return (
            next(a.i for a in node.attribute if a.name == "to") if node.op_type == "Cast" else None
        )

    down = {
        node.output[0]: node.input[0] for node in graph.node if target(node) == TensorProto.FLOAT16
    }
    instead = {
        node.output[0]: down[node.input[0]]
        for node in graph.node
        if target(node) == TensorProto.FLOAT and node.input[0] in down
    }
    outputs = {each.name for each in graph.output}
    for node in graph.node:
        for i, given in enumerate(node.input):
            node.input[i] = instead.get(given, given)
    used = {given for node in graph.node for given in node.input} | outputs
    for node in [n for n in graph.node if n.op_type == "Cast" and n.output[0] not in used]:
        graph.node.remove(node)


def optional_text(graph: onnx.ModelProto, default: np.ndarray | None = None) -> None:
    """Give the text inputs a default, and let one text hold for a whole batch.

    The default is no text, or the tokens ``default`` (L, D). An initializer with the name of an
    input is that input's default (ONNX IR, "Graphs"), so a program may give ``thermal`` alone.
    """
    from onnx import helper, numpy_helper

    inputs = {each.name: each for each in graph.graph.input}
    if "text" not in inputs:
        return
    nodes = [helper.make_node("Shape", ["thermal"], ["frames_in_batch"], start=0, end=1)]
    for name in [name for name in TEXT_INPUTS if name in inputs]:
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
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        value = np.zeros([d if isinstance(d, int) else 1 for d in dims], dtype)
        if default is not None:
            value = (
                default[None].astype(dtype) if name == "text" else np.ones((1, len(default)), dtype)
            )
        graph.graph.initializer.append(numpy_helper.from_array(value, name))
        kind.shape.dim[0].dim_param = "texts"  # 1, or as many as frames
    for node in reversed(nodes):
        graph.graph.node.insert(0, node)


def set_metadata(graph: onnx.ModelProto, metadata: dict[str, str]) -> None:
    from onnx import helper

    del graph.metadata_props[:]
    helper.set_model_props(graph, metadata)


def frames(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Test frames (B,1,H,W) float32 in [-1,1]: smooth regions with edges and noise, as in thermal
    frames."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 1, 6, 7, generator=generator) * 2 - 1
    smooth = nn.functional.interpolate(
        coarse, (height, width), mode="bilinear", align_corners=False
    )
    noise = torch.randn(batch, 1, height, width, generator=generator)
    return (smooth + 0.5 * (smooth > 0.2) + 0.05 * noise).clamp(-1, 1)


def some_text(traits: Traits, batch: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """Random text inputs for a graph (``TEXT_INPUTS``). The last token of the first text is masked
    unless it is the only one."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, length, dtype=torch.bool)
    mask[0, -1] = length == 1
    if traits.takes_names:
        text = torch.randint(len(traits.words), (batch, length), generator=generator)
    else:
        text = torch.randn(batch, length, traits.text_width, generator=generator)
    found = {"text": text, "text_mask": mask}
    if traits.takes_colours:
        found["text_colours"] = torch.rand(batch, length, len(ATTRIBUTES), generator=generator)
    return found
