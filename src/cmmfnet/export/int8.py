"""int8 for an exported graph: static quantisation of its convolutions. No torch.

Weights are int8 with a scale for each output channel. Activations are uint8 with one scale for each
tensor, from the smallest and largest value on the calibration frames. Norms, attention and
depthwise convolutions stay in float32, since no 8-bit kernel is faster. So do convolutions with few
input or output channels: they cost little, and their rounding errors show in the picture.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cmmfnet.colorizer.sizes import pad, resize
from cmmfnet.files.errors import UserError
from cmmfnet.files.pictures import list_sources
from cmmfnet.thermal.frame import read_thermal
from cmmfnet.thermal.stretch import normalise

if TYPE_CHECKING:
    import onnx

FRAMES = 48  # at most, evenly spaced; more hardly change the ranges
LEAST = 8  # fewer frames do not cover the range of the activations
FEW_CHANNELS = 8
SHORT_SIDE = 256
# Mean absolute difference from float32 of colours in [-1, 1], on frames that are not used for
# calibration; about 4 grey levels
WORST = 0.03


def calibration_frames(source: str) -> list[np.ndarray]:
    """Frames for calibration, stretched as for colouring: (H, W) float32 in [-1, 1] each.

    Args:
        source: a picture, a folder, a glob, or scenes:COUNT for rendered scenes.

    Raises:
        UserError: no picture, or fewer than 8 frames. ThermalFileError: one
            cannot be read.
    """
    if match := re.fullmatch(r"scenes:(\d+)", source):
        from cmmfnet.data.scenes import render

        values = [render(30_000 + seed).thermal for seed in range(min(int(match[1]), FRAMES))]
    else:
        files = list_sources(source)
        step = max(1, len(files) // FRAMES)
        values = [read_thermal(file) for file in files[::step][:FRAMES]]
    if len(values) < LEAST:
        raise UserError(
            f"{source!r} gives {len(values)} frames; int8 needs {LEAST} or more, as different as "
            "those to be coloured"
        )
    return [normalise(each) for each in values]


def quantise(graph: onnx.ModelProto, source: str) -> tuple[onnx.ModelProto, str]:
    """The graph with 8-bit convolutions, and a sentence with its mean difference from float32.

    Every fourth frame is left out of calibration and measures the difference.

    Raises:
        UserError, ThermalFileError: see :func:`calibration_frames`; or the
        colours differ too much.
    """
    import onnx
    import onnxruntime
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    onnxruntime.set_default_logger_severity(
        3
    )  # it warns that inputs with a default are no constants
    multiple = {each.key: each.value for each in graph.metadata_props}["multiple_of"]
    fixed = {each.key: each.value for each in graph.metadata_props}["fixed_size"]
    feeds = [
        _feed(frame, int(multiple), None if fixed == "null" else int(fixed))
        for frame in calibration_frames(source)
    ]
    kept = feeds[3::4]

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds: Iterator[dict] = iter([feed for i, feed in enumerate(feeds) if i % 4 != 3])

        def get_next(self) -> dict | None:
            return next(self.feeds, None)

    with tempfile.TemporaryDirectory() as folder:
        plain, prepared, done = (
            Path(folder) / name for name in ("plain.onnx", "prepared.onnx", "int8.onnx")
        )
        onnx.save(graph, plain)
        quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared), str(done), Reader(), quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=["Conv"], nodes_to_exclude=_left_in_float(onnx.load(prepared)),
        )  # fmt: skip
        small = onnx.load(done)
    del small.metadata_props[:]
    small.metadata_props.extend(graph.metadata_props)
    off = np.mean(
        [
            np.abs(one - other).mean()
            for one, other in zip(_colours(graph, kept), _colours(small, kept), strict=True)
        ]
    )
    sentence = (
        f"int8, calibrated on {len(feeds) - len(kept)} frames of {source}: on {len(kept)} others "
        "the mean difference from float32 "
        f"is {off * 127.5:.1f} grey levels"
    )
    if not off <= WORST:
        raise UserError(
            f"{sentence}, more than {WORST * 127.5:.1f}: this network does not stand 8 bits; "
            "export it without"
        )
    return small, sentence


def _feed(frame: np.ndarray, multiple: int, fixed: int | None) -> dict[str, np.ndarray]:
    """A frame as the graph's input; its short side is at most SHORT_SIDE, for quick calibration."""
    scale = min(1.0, SHORT_SIDE / min(frame.shape))
    size = (fixed, fixed) if fixed else tuple(max(1, round(side * scale)) for side in frame.shape)
    reduced = frame if size == frame.shape else resize(frame, size)
    return {"thermal": np.ascontiguousarray(pad(reduced, fixed or multiple))[None, None]}


def _left_in_float(graph: onnx.ModelProto) -> list[str]:
    weights = {each.name: tuple(each.dims) for each in graph.graph.initializer}
    names = []
    for node in graph.graph.node:
        if node.op_type != "Conv":
            continue
        outputs, inputs_a_group = weights[node.input[1]][:2]
        if (
            min(outputs, inputs_a_group) <= FEW_CHANNELS
        ):  # a depthwise convolution has one input a group
            names.append(node.name)
    return names


def _colours(graph: onnx.ModelProto, feeds: list[dict[str, np.ndarray]]) -> Iterator[np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    for feed in feeds:
        yield session.run(["colour"], feed)[0]


__all__ = ["calibration_frames", "quantise"]
