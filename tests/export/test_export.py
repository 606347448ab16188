"""``cmmfnet export``: a graph for any batch and size that gives PyTorch's colours, or no file at
all."""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from cmmfnet import Colorizer
from cmmfnet.cli import main
from cmmfnet.files.errors import UserError
from cmmfnet.methods import METHODS, build_network
from cmmfnet.weights.files import save_model

onnx = pytest.importorskip("onnx", reason="onnx writes graphs")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime measures parity")
pytest.importorskip("onnxscript", reason="torch.onnx.export needs onnxscript")

from cmmfnet.colorizer import torch as torch_colorizer  # noqa: E402
from cmmfnet.colorizer.onnx import OnnxColorizer  # noqa: E402
from cmmfnet.export.int8 import calibration_frames  # noqa: E402
from cmmfnet.text import sentences  # noqa: E402

WORDS = ("night", "car", "road", "tree")
SMALL = {
    "method": "cmmfnet", "channels": (8, 8, 16), "encoder_blocks": (1, 1, 1),
    "decoder_blocks": (1, 1, 0), "kernels": (3, 3, 5),
    "global_size": 32, "vit_depth": 1, "vit_width": 16, "vit_heads": 2, "ci": "image_query",
    "ci_depth": 1,
    "text": "clip-tags", "text_width": 16, "text_length": 16, "words": WORDS, "modulation": True,
    "local_contrast": True,
    "classes": 3, "tail": 16, "working_size": 96, "least_size": 32,
}  # fmt: skip


def shaken(config: dict) -> torch.nn.Module:
    """A network none of whose parts is the identity or zero, as they are before training."""
    network = build_network(dict(config)).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return network


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("export")
    network = shaken(SMALL)
    save_model(folder / "small.safetensors", network, SMALL, {"licence": "none"})
    assert (
        main(["export", str(folder / "small.safetensors"), "-o", str(folder / "small.onnx")]) == 0
    )
    return folder, network, folder / "small.onnx"


def test_it_gives_the_colours_of_colorizer_with_and_without_text(exported):
    folder, _, path = exported
    ours = OnnxColorizer(path, device="cpu")
    theirs = Colorizer.from_pretrained(
        folder / "small.safetensors", device="cpu", dtype=torch.float32
    )
    rng = np.random.default_rng(0)
    frames = [
        rng.integers(0, 255, size, dtype=np.uint8)
        for size in ((40, 56), (40, 56), (33, 71), (150, 170))
    ]
    texts = ["a road at night", None, "a car", "trees, a car and a road"]
    together = ours(frames, text=texts, batch_size=4)
    for one, other in zip(together, theirs(frames, text=texts), strict=True):
        difference = np.abs(one.astype(int) - other.astype(int))
        assert difference.max() <= 1 and difference.mean() < 0.02
    assert (
        np.abs(together[0].astype(int) - ours(frames[0]).astype(int)).max() > 2
    )  # text does something here
    assert dict(ours.tags(frames[0], top=4)) == pytest.approx(
        dict(theirs.tags(frames[0], top=4)), abs=1e-4
    )


@pytest.mark.slow
def test_colours_of_things_reach_the_graph(tmp_path):
    """A model with regions: the same colours as PyTorch for coloured words, and for no text beside
    them."""
    config = SMALL | {"regions": True, "classes": 25}
    torch.manual_seed(2)
    network = build_network(config).eval()
    for value in network.regions.values:
        torch.nn.init.normal_(value[-1].weight, std=0.3)
    save_model(tmp_path / "regions.safetensors", network, config)
    assert (
        main(
            ["export", str(tmp_path / "regions.safetensors"), "-o", str(tmp_path / "regions.onnx")]
        )
        == 0
    )
    ours = OnnxColorizer(tmp_path / "regions.onnx", device="cpu")
    theirs = Colorizer(network, device="cpu", dtype=torch.float32)
    frames = [np.random.default_rng(i).integers(0, 255, (40, 56), dtype=np.uint8) for i in range(3)]
    texts = ["a red car on a road", None, "a blue car, bare trees"]
    given = ours(frames, text=texts, batch_size=3)
    for one, other in zip(given, theirs(frames, text=texts), strict=True):
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1
    assert (
        np.abs(
            given[0].astype(int) - ours(frames[0], text="a blue car on a road").astype(int)
        ).max()
        > 2
    )
    inputs = {i.name for i in onnx.load(tmp_path / "regions.onnx").graph.input}
    assert inputs == {"thermal", "text", "text_mask", "text_colours"} and ours.traits.takes_colours


def test_the_file_says_all_that_colouring_needs(exported):
    path = exported[2]
    graph = onnx.load(path)
    onnx.checker.check_model(graph)
    dims = {
        i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim]
        for i in graph.graph.input
    }
    assert dims["thermal"][1] == 1 and all(isinstance(dims["thermal"][i], str) for i in (0, 2, 3))
    assert dims["text"] == ["texts", "tokens"] == dims["text_mask"]
    ours = OnnxColorizer(path, device="cpu")
    assert (
        ours.traits.words == WORDS
        and ours.traits.multiple_of == 8
        and ours.traits.fixed_size is None
    )
    assert (ours.traits.least_size, ours.traits.working_size) == (32, 96)
    assert ours.metadata["licence"] == "none" and len(ours.metadata["sha256"]) == 64
    assert float(ours.metadata["parity"]) < 1e-3 and ours.name == "small"


def test_the_plain_layers_are_exported_not_those_for_pytorch_on_the_cpu(exported):
    operators = {node.op_type for node in onnx.load(exported[2]).graph.node}
    assert (
        "InstanceNormalization" in operators
        and "Gelu" in operators
        and "LayerNormalization" in operators
    )


def test_nothing_is_written_where_the_graph_gives_other_colours(
    exported, tmp_path, monkeypatch, capsys
):
    folder, _, path = exported
    wrong = onnx.load(path)
    (bias,) = (i for i in wrong.graph.initializer if i.name.endswith("last.bias"))
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 0.01, bias.name))
    for name in ("text", "text_mask"):  # as convert gives it
        (default,) = (i for i in wrong.graph.initializer if i.name == name)
        wrong.graph.initializer.remove(default)
    monkeypatch.setattr(export_module(), "convert", lambda *_: wrong)
    monkeypatch.setattr(export_module(), "optional_text", lambda *_: None)
    monkeypatch.setattr(export_module(), "some_text", lambda *_args, **_more: {})
    real = onnxruntime.InferenceSession.run
    none = {"text": np.zeros((1, 1), dtype=np.int64), "text_mask": np.zeros((1, 1), dtype=bool)}
    monkeypatch.setattr(
        onnxruntime.InferenceSession, "run", lambda self, out, feed: real(self, out, none | feed)
    )
    (tmp_path / "a.onnx").write_bytes(b"the old one")
    assert main(["export", str(folder / "small.safetensors"), "-o", str(tmp_path / "a.onnx")]) == 2
    assert "differ from PyTorch's by up to 0.0" in capsys.readouterr().err
    assert (tmp_path / "a.onnx").read_bytes() == b"the old one" and len(
        list(tmp_path.iterdir())
    ) == 1


def export_module():
    return importlib.import_module("cmmfnet.export.export")


def test_a_full_disk_leaves_no_file(exported, tmp_path, monkeypatch, disk_full_while_writing):
    graph = onnx.load(exported[2])
    monkeypatch.setattr(export_module(), "convert", lambda *_: graph)
    monkeypatch.setattr(export_module(), "optional_text", lambda *_: None)
    disk_full_while_writing()
    with pytest.raises(OSError, match="No space left"):
        export_module().export(str(exported[0] / "small.safetensors"), out=str(tmp_path / "a.onnx"))
    assert list(tmp_path.iterdir()) == []


def test_half_stores_float16_and_is_held_to_a_bound_of_its_own(exported, tmp_path, monkeypatch):
    """An untrained network normalises nearly flat maps, which makes much of rounding: it may miss
    the bound, and then says so."""
    folder, _, path = exported
    module = export_module()
    monkeypatch.setattr(module, "convert", lambda *_: without_defaults(onnx.load(path)))
    monkeypatch.setitem(module.TOLERANCE, "float16", 1e-6)
    with pytest.raises(module.UserError, match="at most 1e-06 is allowed in float16"):
        module.export(str(folder / "small.safetensors"), out=str(tmp_path / "h.onnx"), half=True)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setitem(module.TOLERANCE, "float16", 0.1)
    module.export(str(folder / "small.safetensors"), out=str(tmp_path / "h.onnx"), half=True)
    graph = onnx.load(tmp_path / "h.onnx")
    onnx.checker.check_model(graph)
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    assert half in {i.data_type for i in graph.graph.initializer if np.prod(i.dims) > 64}
    assert (
        graph.graph.input[0].type.tensor_type.elem_type
        == graph.graph.output[0].type.tensor_type.elem_type
        == single
    )
    casts = {n.output[0]: n for n in graph.graph.node if n.op_type == "Cast"}
    assert not [
        n for n in casts.values() if n.attribute[0].i == single and n.input[0] in casts
    ]  # down and up again
    ours = OnnxColorizer(tmp_path / "h.onnx", device="cpu")
    assert ours.metadata["precision"] == "float16" and 0 < float(ours.metadata["parity"]) < 0.1


@pytest.mark.slow
def test_int8_colours_nearly_alike_and_says_what_it_costs(exported, tmp_path, monkeypatch, capsys):
    folder, _, path = exported
    monkeypatch.setattr(export_module(), "convert", lambda *_: without_defaults(onnx.load(path)))
    command = [
        "export",
        str(folder / "small.safetensors"),
        "-o",
        str(tmp_path / "q.onnx"),
        "--int8",
        "scenes:8",
    ]
    assert main(command) == 0
    assert (
        "calibrated on 6 frames of scenes:8: on 2 others the mean difference"
        in capsys.readouterr().out
    )
    graph = onnx.load(tmp_path / "q.onnx")
    assert any(i.data_type == onnx.TensorProto.INT8 for i in graph.graph.initializer)
    frame = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    one, other = (
        OnnxColorizer(p, device="cpu")(frame, text="a car").astype(int)
        for p in (path, tmp_path / "q.onnx")
    )
    assert 0 < np.abs(one - other).mean() < 8


def without_defaults(graph):
    """The graph as ``convert`` gives it: before its text got a default."""
    nodes = {"frames_in_batch", "text_shape", "text_each", "text_mask_shape", "text_mask_each"}
    for node in [n for n in graph.graph.node if set(n.output) & nodes]:
        graph.graph.node.remove(node)
    for each in [
        i
        for i in graph.graph.initializer
        if i.name in ("text", "text_mask", "text_ones", "text_mask_ones")
    ]:
        graph.graph.initializer.remove(each)
    for node in graph.graph.node:
        for i, given in enumerate(node.input):
            node.input[i] = given.removesuffix("_each") if given in nodes else given
    return graph


def test_calibration_frames_are_checked(tmp_path):
    with pytest.raises(UserError, match="gives 2 frames; int8 needs 8 or more"):
        calibration_frames("scenes:2")
    with pytest.raises(ValueError, match="nowhere"):
        calibration_frames(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cmmfnet", "-o", "a.pt"], "written as NAME.onnx"),
        (["cmmfnet", "-o", "a.onnx", "--half", "--int8", "scenes:8"], "give one of them"),
        (["nothing", "-o", "a.onnx"], "unknown model"),
    ],
)
def test_requests_that_make_no_sense(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *arguments]) != 0
    assert message in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: None if name == "onnxscript" else real(name, *a),
    )
    with pytest.raises(ImportError, match=r"needs onnxscript: pip install 'cmmfnet\[export\]'"):
        export_module().export("cmmfnet", out=str(tmp_path / "a.onnx"))


def test_palette_says_why_not(tmp_path):
    about = importlib.import_module("test_palette")
    save_model(tmp_path / "p.safetensors", build_network(dict(about.SMALL)), about.SMALL)
    with pytest.raises(UserError, match="palette cannot be exported: its colours are sampled"):
        export_module().export(str(tmp_path / "p.safetensors"), out=str(tmp_path / "p.onnx"))


@pytest.mark.skipif(
    "CMMFNET_ALL_EXPORTS" not in os.environ,
    reason="5 to 10 s a method: CMMFNET_ALL_EXPORTS=1 runs it",
)
@pytest.mark.parametrize("name", sorted(set(METHODS) - {"palette", "cmmfnet"}))
def test_every_method_exports(name, tmp_path):
    about = importlib.import_module(f"test_{name.replace('-', '_')}")
    save_model(tmp_path / "m.safetensors", shaken(about.SMALL), about.SMALL)
    path = export_module().export(str(tmp_path / "m.safetensors"), out=str(tmp_path / "m.onnx"))
    colour = OnnxColorizer(path, device="cpu")(
        np.random.default_rng(0).integers(0, 255, (45, 70), dtype=np.uint8)
    )
    assert colour.shape == (45, 70, 3) and colour.std() > 0


@pytest.mark.skipif(
    "CMMFNET_ALL_EXPORTS" not in os.environ,
    reason="5 to 10 s a mode: CMMFNET_ALL_EXPORTS=1 runs it",
)
@pytest.mark.parametrize("ci", ["text_query", "text_key", "add", "none"])
def test_every_way_of_text_exports(ci, tmp_path):
    config = SMALL | {"text": "clip-sentence", "words": (), "ci": ci, "text_length": 7}
    network = shaken(config)
    graph = export_module().convert(network)
    export_module().optional_text(graph)
    assert export_module().measure_parity(network, graph).colour < 1e-3


def test_the_document_names_every_input_output_and_key_of_the_metadata(exported):
    page = (Path(__file__).parents[2] / "docs" / "onnx.md").read_text(encoding="utf-8")
    graph = onnx.load(exported[2])
    names = [each.name for each in (*graph.graph.input, *graph.graph.output)]
    names += [each.key for each in graph.metadata_props] + ["int8"]
    assert [name for name in names if f"`{name}`" not in page] == []


def test_the_rest_of_a_killed_export_is_cleared(tmp_path):
    part = tmp_path / ".cmmfnet-0123456789ab.part"
    part.write_bytes(b"half")
    assert main(["export", str(tmp_path / "none.safetensors"), "-o", str(tmp_path / "m.onnx")]) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_sentence_model_keeps_its_default_prompt_in_the_graph(tmp_path, monkeypatch):
    """The tokens of the prompt are in the file, so that neither CLIP nor torch is needed."""

    class Encoder:
        def __call__(self, texts):
            generator = torch.Generator().manual_seed(len(texts[0]))
            mask = torch.zeros(1, 12, dtype=torch.bool)
            mask[:, :7] = True
            return torch.randn(1, 12, 16, generator=generator) * mask[..., None], mask

    monkeypatch.setattr(sentences, "SentenceEncoder", Encoder)
    monkeypatch.setattr(torch_colorizer, "SentenceEncoder", Encoder)
    config = SMALL | {"text": "clip-sentence", "words": (), "default_prompt": "a road by day"}
    torch.manual_seed(3)
    save_model(tmp_path / "s.safetensors", shaken(config), config)
    assert main(["export", str(tmp_path / "s.safetensors"), "-o", str(tmp_path / "s.onnx")]) == 0
    ours = OnnxColorizer(tmp_path / "s.onnx", device="cpu")
    theirs = Colorizer.from_pretrained(
        tmp_path / "s.safetensors", device="cpu", dtype=torch.float32
    )
    frames = [np.random.default_rng(i).integers(0, 255, (40, 56), dtype=np.uint8) for i in range(3)]
    texts = [None, "", None]
    found, expected = (each(frames, text=texts, batch_size=3) for each in (ours, theirs))
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1
    plain = ours(frames[0], text="")
    assert np.abs(found[0].astype(int) - plain.astype(int)).max() > 2
    # a program that feeds the frame alone gets the colours of the default prompt
    session = onnxruntime.InferenceSession(str(tmp_path / "s.onnx"))
    frame = ours.prepare(frames[0])
    (colour,) = session.run(["colour"], {"thermal": ours.batch([frame])[:, None]})
    alone = ours.finish(colour[0][:, : frame.low.shape[0], : frame.low.shape[1]], frame)
    np.testing.assert_array_equal(alone, ours(frames[0]))


def test_a_torch_that_is_too_old_is_named(tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("The model contains functions")  # as onnxscript's PassError

    save_model(tmp_path / "a.safetensors", build_network(SMALL), SMALL)
    monkeypatch.setattr(torch.onnx, "export", fail)
    monkeypatch.setattr(torch, "__version__", "2.6.0+cu124")
    assert main(["export", str(tmp_path / "a.safetensors"), "-o", str(tmp_path / "a.onnx")]) == 2
    error = capsys.readouterr().err
    assert "by torch 2.6.0+cu124: The model contains functions. Update torch to 2.1" in error
    assert not (tmp_path / "a.onnx").exists()
