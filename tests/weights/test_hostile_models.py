"""Model files that lie: wrong types, deep nesting, sizes that no machine has, NaN. One clear error,
soon, and before anything is allocated."""

from __future__ import annotations

import json
import resource
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cmmfnet.methods import build_network
from cmmfnet.weights.files import describe, load_model, save_model
from cmmfnet.weights.known import ModelError

SMALL = {
    "method": "cmmfnet", "text": "none", "channels": [8, 8, 8], "encoder_blocks": [0, 0, 0],
    "decoder_blocks": [0, 0, 0], "kernels": [7, 7, 7], "global_size": 32, "vit_depth": 1,
    "vit_width": 16, "vit_heads": 2,
}  # fmt: skip


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    """A safetensors file with any header; text is taken as it is."""
    raw = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def metadata(**changes: Any) -> dict[str, Any]:
    texts = {
        "format": "cmmfnet-1", "config": json.dumps(SMALL), "training": "null", "storage": "float32"
    }  # fmt: skip
    return {"__metadata__": texts | changes}


def tensor(**changes: Any) -> dict[str, Any]:
    return {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("[" * 100_000, "its header does not read"),
        ('{"x": ' * 50_000, "its header does not read"),
        ([], "its header does not read"),
        ("7", "its header does not read"),
        (metadata() | {"x": 7}, "its header does not read"),
        (metadata() | tensor(shape="22"), "its header does not read"),
        (metadata() | tensor(shape=[2.0]), "its header does not read"),
        (metadata() | tensor(shape=[-2, -1]), "its header does not read"),
        (metadata() | tensor(shape=[10**12]), "its header does not read .a tensor of 8 bytes"),
        (metadata() | tensor(shape=[True, 2]), "its header does not read"),
        (metadata() | tensor(dtype=32), "its header does not read"),
        (metadata() | tensor(dtype="F7"), "its header does not read"),
        (metadata() | tensor(data_offsets=[0]), "its header does not read"),
        (metadata() | tensor(data_offsets=[None, 8]), "its header does not read"),
        ({"__metadata__": []}, "its header does not read"),
        ({"__metadata__": {"format": 1}}, "its header does not read .metadata that are no texts"),
        ({"__metadata__": {}}, "is no cmmfnet model"),
        (metadata(config="["), "'config' is missing or no JSON"),
        (metadata(config="[" * 100_000), "'config' is missing or no JSON"),
        (metadata(config="9" * 5000), "'config' is missing or no JSON"),
        (metadata(config="x" * 1_000_001), "'config' is missing or no JSON"),
        (metadata(config="[]"), "names no method, found .."),
        (metadata(config='{"method": ["cmmfnet"]}'), "names no method"),
        (metadata(config='{"method": "gone"}'), "method is 'gone'; expected one of"),
        (metadata(training="[1]"), "'training' is .1.; expected an object or null"),
        (metadata(training="x"), "'training' is missing or no JSON"),
        (metadata(storage="int4"), "storage='int4'; expected one of float32, float16, int8"),
    ],
)
def test_a_header_that_is_not_one_is_refused(tmp_path, header, message):
    data = bytes(8) if isinstance(header, dict) and "x" in header else b""
    path = write(tmp_path / "m.safetensors", header, data)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 1500


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vit_depth": 10**6}, "vit_depth is 1000000; expected 16,384 at most"),
        ({"vit_depth": 16_000}, "asks for more than .* parameters in .* tensors"),
        ({"vit_width": 10**5}, "vit_width is 100000; expected 16,384 at most"),
        ({"vit_width": 1_024}, "its tensors are not those of the network"),
        ({"vit_width": 16_384}, "asks for more than .* parameters in .* tensors"),
        ({"vit_width": 10**400}, "vit_width is a huge number"),
        ({"vit_width": -16}, "no network can be built|its tensors are not those"),
        ({"vit_heads": 0}, "no network can be built"),
        ({"vit_heads": float("nan")}, "vit_heads is"),
        ({"vit_heads": None}, "no network can be built"),
        ({"vit_depth": "many"}, "no network can be built"),
        ({"vit_depth": {"a": 1}}, "no network can be built"),
        ({"channels": 8}, "no network can be built"),
        ({"channels": [8, 8, 10**9]}, "channels is 1000000000; expected 16,384 at most"),
        ({"channels": [[[[[[[8]]]]]]]}, "channels has 1 entries on level 6"),
        ({"global_size": 10**6}, "global_size is 1000000; expected 4,096 at most"),
        ({"working_size": 10**6}, "working_size is 1000000; expected 4,096 at most"),
        ({"text": "clip-tags", "words": ["car"] * 10_001}, "words has 10,001 entries"),
        ({"text": "clip-tags", "words": 10**6}, "words is 1000000; expected 16,384 at most"),
        ({"text": "clip-tags", "words": [7]}, "its tensors are not|no network can be built"),
        ({"ci": "x" * 10_001}, "ci is a text of 10,001 characters"),
        ({"faithfull": True}, "no network can be built"),
    ],
)
def test_a_configuration_that_asks_for_too_much_is_refused_at_once(tmp_path, changes, message):
    path = tmp_path / "m.safetensors"
    save_model(path, build_network(SMALL), SMALL | changes)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ModelError, match=message) as caught:
        load_model(path)
    assert time.process_time() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KB
    assert str(caught.value).startswith(f"{path}: ")


def test_a_million_words_in_a_small_file(tmp_path):
    text = (
        '{"method": "cmmfnet", "text": "clip-tags", "words": [' + ",".join(["0"] * 400_000) + "]}"
    )
    with pytest.raises(ModelError, match="words has 400,000 entries"):
        load_model(write(tmp_path / "m.safetensors", metadata(config=text)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    path = save_model(tmp_path / "m.safetensors", build_network(SMALL), SMALL)
    data = bytearray(path.read_bytes())
    data[-4:] = struct.pack("<f", value)
    path.write_bytes(data)
    with pytest.raises(ModelError, match="it holds NaN or infinite values"):
        load_model(path)


def test_what_a_model_says_of_itself_may_be_anything(tmp_path):
    training = {"licence": 7, "summary": ["a"], "recipe": None}
    path = save_model(tmp_path / "m.safetensors", build_network(SMALL), SMALL, training)
    assert describe(path)["licence"] == "7"


def test_a_refusal_leaves_the_random_numbers_alone(tmp_path):
    path = save_model(tmp_path / "m.safetensors", build_network(SMALL), SMALL | {"vit_heads": 0})
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with pytest.raises(ModelError):
        load_model(path)
    assert torch.equal(torch.rand(2), expected)
