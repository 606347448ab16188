"""``cmmfnet export``: a model as one ONNX file, compared with PyTorch before it is written.

The file's metadata has all that colouring needs. docs/onnx.md describes the graph for other
programs; colorizer/onnx.py runs it in Python without torch.
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

from cmmfnet.colorizer.onnx import DEFAULT_TOKENS, FORMAT, default_tokens_string
from cmmfnet.export.graph import (
    Graph,
    convert,
    frames,
    optional_text,
    set_metadata,
    some_text,
    to_float16,
)
from cmmfnet.files.atomic import atomic_write, clear_parts
from cmmfnet.files.errors import UserError
from cmmfnet.methods.traits import Traits, traits_of
from cmmfnet.weights.files import describe, load_model

if TYPE_CHECKING:
    import onnx

# Largest difference from PyTorch in float32: of colours from -1 to 1, where half a grey level is
# .004, and of the probabilities of tags
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

    The graph takes any batch, height and width; text is an input that may be left out. The graph
    is compared with PyTorch at three sizes and two batches, with and without text, and the file is
    written only if both agree.

    Args:
        model: a name of `cmmfnet models`, a .safetensors file, or hf:OWNER/REPO@COMMIT
        out: the file to write, NAME.onnx; an existing file is replaced
        half: float16 weights and arithmetic, for GPUs; half the size
        int8: 8-bit convolutions, for CPUs, calibrated on thermal frames like those to be coloured:
            a picture, a folder, a glob in quotes, or scenes:COUNT for rendered ones

    Returns:
        The file.

    Raises:
        UserError, ModelError: nothing was written. ImportError: onnx, onnxscript or
        onnxruntime is missing.
    """
    path = Path(out)
    if path.suffix != ".onnx":
        raise UserError(
            f"--out is {out!r}; a graph is written as NAME.onnx: {path.with_suffix('.onnx')}"
        )
    if half and int8 is not None:
        raise UserError("--half is for GPUs and --int8 for CPUs; give one of them")
    _needs("onnx", "onnxscript", "onnxruntime")
    clear_parts(path.parent)
    loaded, about = load_model(model), describe(model)
    if reason := NO_GRAPH.get(loaded.config["method"]):
        raise UserError(f"{loaded.name}: {loaded.config['method']} cannot be exported: {reason}")
    graph = convert(loaded.network, loaded.name)
    precision = "float16" if half else "float32"
    if half:
        graph = to_float16(graph)
    traits = traits_of(loaded.network)
    default = default_tokens(traits)
    optional_text(graph, default)
    metadata = traits.to_strings() | {
        "format": FORMAT, "model": loaded.name, "method": loaded.config["method"],
        "sha256": about["sha256"],
        "licence": about["licence"], "precision": precision,
    }  # fmt: skip
    if default is not None:
        metadata[DEFAULT_TOKENS] = default_tokens_string(default)
    set_metadata(graph, metadata)
    parity = measure_parity(loaded.network, graph, default)
    if max(parity.colour, parity.tags) > TOLERANCE[precision]:
        raise UserError(
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


def default_tokens(traits: Traits) -> np.ndarray | None:
    """Tokens (L, D) float32 of the default prompt of a sentence model; None without one.

    A model that takes names has no such tokens: its caller finds the names in the prompt, which is
    in the metadata.

    Raises:
        ImportError, OSError: there is no CLIP text encoder on this machine.
    """
    if not traits.default_prompt or traits.takes_names:
        return None
    from cmmfnet.text.sentences import SentenceEncoder

    tokens, mask = SentenceEncoder()([traits.default_prompt])
    return tokens[0][mask[0]].cpu().numpy()


def _needs(*packages: str) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(
            f"cmmfnet export needs {', '.join(missing)}: pip install 'cmmfnet[export]'"
        )


# --- parity


def measure_parity(
    network: torch.nn.Module, graph: onnx.ModelProto, default: np.ndarray | None = None
) -> Parity:
    """Compare the graph with the network on the CPU, at three sizes (or the ``fixed_size``) and
    batches of 1 and 3, in float32.

    With a batch of 1 the graph's inputs of text are left out, and the network gets no text or its
    ``default`` tokens (L, D). With a batch of 3, frames have texts of different length if the
    network takes text.

    Raises:
        UserError: the graph gives NaN or infinite values.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    wrapped = Graph(network)
    traits = wrapped.traits
    multiple, fixed = traits.multiple_of, traits.fixed_size
    least = max(1, math.ceil(64 / multiple))
    sizes = [
        (least, least + 1),
        (least + 2, least),
        (math.ceil(192 / multiple), math.ceil(256 / multiple)),
    ]
    by_default: dict[str, torch.Tensor] = {}
    if default is not None:
        by_default = {
            "text": torch.from_numpy(default)[None],
            "text_mask": torch.ones(1, len(default), dtype=torch.bool),
        }
    worst = [0.0, 0.0]
    runs = list(itertools.product([(1, 1)] if fixed else sizes, (1, 3)))
    for (rows, columns), batch in runs:
        thermal = frames(
            batch, rows * (fixed or multiple), columns * (fixed or multiple), seed=rows
        )
        text: dict[str, torch.Tensor] = {}
        if traits.takes_text and batch > 1:
            text = some_text(traits, batch, min(4, traits.text_length), seed=rows)
        with torch.inference_mode():
            reference = text or by_default
            expected = (
                wrapped(thermal, **reference)
                if reference or not traits.takes_text
                else wrapped.without_text(thermal)
            )
        given = session.run(
            None, {"thermal": thermal.numpy()} | {key: value.numpy() for key, value in text.items()}
        )
        for i, (one, other) in enumerate(
            zip(given, expected if traits.predicts_tags else [expected], strict=True)
        ):
            if not np.isfinite(one).all():
                raise UserError(
                    f"the graph gives NaN or infinite values for {tuple(thermal.shape)}; nothing "
                    "was written"
                )
            worst[i] = max(worst[i], float(np.abs(one - other.numpy()).max()))
    return Parity(*worst, len(runs))
