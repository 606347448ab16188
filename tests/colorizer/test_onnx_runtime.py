"""OnnxColorizer: the interface and results of Colorizer from a graph, without torch.

The graph here is fake_network.py's, written by hand, so that what the exporter does has no part in
it (test_export.py has).
"""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_network import Fake
from PIL import Image

from cmmfnet import Colorizer
from cmmfnet.cli import main
from cmmfnet.methods.traits import traits_of
from cmmfnet.weights.known import ModelError

onnx = pytest.importorskip("onnx", reason="onnx builds the graph of these tests")
pytest.importorskip("onnxruntime", reason="onnxruntime runs the graph of these tests")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from cmmfnet.colorizer.onnx import DEFAULT_TOKENS, FORMAT, OnnxColorizer  # noqa: E402
from cmmfnet.export.graph import optional_text, set_metadata  # noqa: E402


def fake_graph(network: Fake) -> onnx.ModelProto:
    """``Fake`` for clip-tags as a graph with what ``cmmfnet export`` adds to one."""

    def constant(name: str, value, dtype) -> None:
        constants.append(numpy_helper.from_array(np.array(value, dtype=dtype), name))

    constants: list = []
    constant("table", network.table.detach().numpy()[:, 0], np.float32)
    constant("none", -1, np.float32)
    constant("one", 1, np.float32)
    constant("zero", 0, np.float32)
    constant("four", 4, np.float32)
    constant("axis1", [1], np.int64)
    constant("axes123", [1, 2, 3], np.int64)
    constant("bias", np.arange(len(network.words)) - 1, np.float32)
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "text"], ["embedded"]),
        node("Cast", ["text_mask"], ["valid"], to=TensorProto.FLOAT),
        node("Mul", ["embedded", "valid"], ["kept"]),
        node("ReduceSum", ["kept", "axis1"], ["sum"], keepdims=0),
        node("ReduceSum", ["valid", "axis1"], ["count"], keepdims=0),
        node("Max", ["count", "one"], ["divisor"]),
        node("Div", ["sum", "divisor"], ["mean"]),
        node("Greater", ["count", "zero"], ["any"]),
        node("Where", ["any", "mean", "none"], ["green"]),
        node("Unsqueeze", ["green", "axes123"], ["green4"]),
        node("Shape", ["thermal"], ["size"]),
        node("Expand", ["green4", "size"], ["green_plane"]),
        node("Mul", ["thermal", "zero"], ["blue"]),
        node("Concat", ["thermal", "green_plane", "blue"], ["colour"], axis=1),
        node("ReduceMean", ["thermal", "axes123"], ["heat"], keepdims=0),
        node("Unsqueeze", ["heat", "axis1"], ["heat2"]),
        node("Mul", ["heat2", "four"], ["heat4"]),
        node("Add", ["heat4", "bias"], ["logits"]),
        node("Sigmoid", ["logits"], ["tags"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "fake",
        [
            value("thermal", TensorProto.FLOAT, ["batch", 1, "height", "width"]),
            value("text", TensorProto.INT64, ["batch", "tokens"]),
            value("text_mask", TensorProto.BOOL, ["batch", "tokens"]),
        ],
        [
            value("colour", TensorProto.FLOAT, ["batch", 3, "height", "width"]),
            value("tags", TensorProto.FLOAT, ["batch", len(network.words)]),
        ],
        constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    optional_text(model)
    set_metadata(model, traits_of(network).to_strings() | {"format": FORMAT, "model": "fake"})
    onnx.checker.check_model(model)
    return model


def make(folder: Path, **options) -> tuple[OnnxColorizer, Colorizer]:
    network = Fake(**options)
    onnx.save(fake_graph(network), folder / "fake.onnx")
    return OnnxColorizer(folder / "fake.onnx", device="cpu"), Colorizer(
        network, device="cpu", name="fake"
    )


@pytest.fixture
def pair(tmp_path):
    return make(tmp_path)


def frame(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(7000, 8000, (height, width), dtype=np.uint16)


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (16, 16), (33, 63), (64, 200), (200, 320)])
def test_a_frame_of_any_size_gets_the_colours_that_colorizer_gives(pair, size):
    ours, theirs = pair
    result = ours(frame(*size))
    assert result.shape == (*size, 3) and result.dtype == np.uint8
    np.testing.assert_array_equal(result, theirs(frame(*size)))


def test_a_network_of_one_size(tmp_path):
    ours, theirs = make(tmp_path, fixed_size=48)
    assert ours.traits.fixed_size == 48
    for size in [(100, 80), (20, 30)]:
        np.testing.assert_array_equal(ours(frame(*size)), theirs(frame(*size)))


def test_batches_with_texts_of_different_length_none_and_an_empty_one(pair):
    ours, theirs = pair
    frames = [frame(20 + 7 * (i % 2), 30, seed=i) for i in range(6)]
    texts = ["a car on a road", None, "tree", "", "car, road, tree", "a car"]
    results = ours(frames, text=texts, batch_size=8)
    greens = {int(rgb[0, 0, 1]) for rgb in results}
    assert len(greens) == 5  # of which None and "" are one
    for one, other in zip(results, theirs(frames, text=texts, batch_size=8), strict=True):
        np.testing.assert_array_equal(one, other)


def test_predicted_tags_are_text_where_the_network_says_so(tmp_path):
    ours, theirs = make(tmp_path, default_text="predicted")
    for value in (40.0, 25.0, 10.0):
        hot = np.full((16, 16), value)
        np.testing.assert_array_equal(ours(hot, span=(10, 40)), theirs(hot, span=(10, 40)))


def test_tags_alone_and_with_colours(pair):
    ours, theirs = pair
    (names, chances), (known, expected) = (
        zip(*c.tags(frame(20, 30), top=2), strict=True) for c in (ours, theirs)
    )
    assert names == known and chances == pytest.approx(expected, abs=1e-5)
    _, seen = ours(frame(20, 30), return_tags=True)
    assert seen.predicted[0][0] == names[0] and seen.predicted[0][1] == pytest.approx(
        chances[0], abs=1e-5
    )


def test_unknown_words_are_warned_about(pair):
    with pytest.warns(UserWarning, match="zeppelin"):
        pair[0](frame(16, 16), text="car, zeppelin")


def test_thermal_alone_is_a_whole_input_and_one_text_serves_a_batch(tmp_path):
    import onnxruntime

    make(tmp_path)
    session = onnxruntime.InferenceSession(
        str(tmp_path / "fake.onnx"), providers=["CPUExecutionProvider"]
    )
    thermal = np.zeros((2, 1, 16, 16), dtype=np.float32)
    assert (session.run(["colour"], {"thermal": thermal})[0][:, 1] == -1).all()
    text = {"text": np.array([[1]]), "text_mask": np.array([[True]])}
    expected = Fake().table[1, 0].item()
    assert session.run(["colour"], {"thermal": thermal} | text)[0][:, 1] == pytest.approx(expected)


def test_nothing_imports_torch(tmp_path):
    make(tmp_path)
    Image.fromarray(frame(40, 50)).save(tmp_path / "a.png")
    code = (
        "import sys\nfrom cmmfnet.cli import main\n"
        f"status = main(['colorize', {str(tmp_path / 'a.png')!r}, '-o', "
        f"{str(tmp_path / 'b.png')!r}, "
        f"'--model', {str(tmp_path / 'fake.onnx')!r}, '--text', 'a car', '--show-tags'])\n"
        "found = sorted(m for m in sys.modules if m.partition('.')[0] in ('torch', "
        "'torchvision'))\n"
        "assert status == 0 and not found, (status, found[:5])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "b.png") as picture:
        assert picture.size == (50, 40) and picture.info["Model"] == "fake"


def test_the_command_says_what_is_wrong_with_a_file(tmp_path, capsys):
    Image.fromarray(frame(20, 20)).save(tmp_path / "a.png")
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    for model, message in (
        ("gone.onnx", "no model file"),
        ("bad.onnx", "cannot be loaded by ONNX Runtime"),
    ):
        command = [
            "colorize",
            str(tmp_path / "a.png"),
            "-o",
            str(tmp_path / "b.png"),
            "--model",
            str(tmp_path / model),
        ]
        assert main(command) != 0
        assert message in capsys.readouterr().err
    assert not (tmp_path / "b.png").exists()


def test_a_graph_of_another_program_and_incomplete_metadata_are_refused(tmp_path):
    model = fake_graph(Fake())
    set_metadata(model, {"format": "other"})
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(ModelError, match=r"format='other', expected 'cmmfnet-onnx-1'"):
        OnnxColorizer(tmp_path / "other.onnx")
    set_metadata(model, {"format": FORMAT, "text_source": "none"})
    onnx.save(model, tmp_path / "half.onnx")
    with pytest.raises(ModelError, match="metadata are incomplete"):
        OnnxColorizer(tmp_path / "half.onnx")


def test_devices_that_are_not_there_are_refused(tmp_path):
    make(tmp_path)
    with pytest.raises(ModelError, match="cpu or cuda"):
        OnnxColorizer(tmp_path / "fake.onnx", device="tpu")
    with pytest.raises(ModelError, match="onnxruntime-gpu"):
        from cmmfnet.colorizer.onnx import _pick

        _pick("cuda", ["CPUExecutionProvider"])


def test_nan_is_an_error_not_a_black_picture(tmp_path):
    network = Fake()
    network.table.data.fill_(float("nan"))
    onnx.save(fake_graph(network), tmp_path / "nan.onnx")
    with pytest.raises(FloatingPointError, match="export it without --half"):
        OnnxColorizer(tmp_path / "nan.onnx", device="cpu")(frame(16, 16), text="car")


def test_sentences_come_from_the_encoder_that_is_given(tmp_path):
    ours, _ = make(tmp_path)
    sentence = OnnxColorizer(
        tmp_path / "fake.onnx",
        device="cpu",
        sentences=lambda texts: (np.ones((1, 5, 4)), np.ones((1, 5))),
    )
    tokens, mask = sentence.runtime.encode("a road")
    assert tokens.shape == (5, 4) and tokens.dtype == np.float32 and mask.dtype == bool
    with pytest.raises(ModelError, match="sentences="):
        ours.runtime.encode("a road")


def test_a_default_prompt_of_names_is_the_text_of_a_frame_without(tmp_path):
    ours, theirs = make(tmp_path, default_prompt="a road")
    texts = [None, "a car", ""]
    frames = [frame(20, 30, seed) for seed in range(3)]
    for one, other in zip(ours(frames, text=texts), theirs(frames, text=texts), strict=True):
        np.testing.assert_array_equal(one, other)
    assert ours(frames[0])[0, 0, 1] != ours(frames[0], text="")[0, 0, 1]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_gives_the_same_pictures(pair, copied):
    ours, _ = pair
    np.testing.assert_array_equal(
        copied(ours)(frame(20, 30), text="car"), ours(frame(20, 30), text="car")
    )


@pytest.mark.parametrize("value", ["2x2", "2x2:AAAA", "x:", "1x1:!!!!", "1x1:AADAfw=="])
def test_default_tokens_that_cannot_be_read_are_a_model_error(tmp_path, value):
    model = fake_graph(Fake())
    metadata = {each.key: each.value for each in model.metadata_props}
    set_metadata(model, metadata | {DEFAULT_TOKENS: value})
    onnx.save(model, tmp_path / "bad.onnx")
    with pytest.raises(ModelError, match=r"incomplete or wrong \(default_tokens"):
        OnnxColorizer(tmp_path / "bad.onnx", device="cpu")
